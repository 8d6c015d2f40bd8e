"""What rules read: one attribute for each field, nothing known where nothing is said."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Facts"]


class Facts(Protocol):
    """
    What is known of one transaction.

    ``None`` is what is missing, or not known yet: whoever subclasses this overrides what
    it knows. Text holds characters that can be encoded, and nothing raises. A compiled
    rule reads what its text names, as often as it names it, so reading must be cheap.
    """

    __slots__ = ()

    @property
    def direction(self) -> str | None:
        """``ingress``, ``egress-internal`` or ``egress-external``."""
        return None

    @property
    def transport(self) -> str | None:
        """``type`` in a rule: ``tcp``."""
        return None

    @property
    def protocol(self) -> str | None:
        """``http1``, ``http2`` or ``grpc``."""
        return None

    @property
    def tags(self) -> tuple[str, ...] | None:
        """``key:value`` each."""
        return None

    @property
    def tls_enabled(self) -> bool | None:
        """Whether the connection is encrypted; missing where nothing tells."""
        return None

    @property
    def tls_version(self) -> float | None:
        """``1.2``, ``1.3``."""
        return None

    @property
    def tls_sni(self) -> str | None:
        """The server that the client asked for."""
        return None

    @property
    def tls_alpn(self) -> tuple[str, ...] | None:
        """The protocols that the client offered."""
        return None

    @property
    def src_ip(self) -> str | None:
        """Address of the end that belongs to the captured process, also for ingress."""
        return None

    @property
    def src_port(self) -> int | None:
        """Of the same end."""
        return None

    @property
    def src_process_path(self) -> str | None:
        """Of its program."""
        return None

    @property
    def src_process_binary(self) -> str | None:
        """File name of its program."""
        return None

    @property
    def src_process_pid(self) -> int | None:
        """Its process id."""
        return None

    @property
    def src_process_hostname(self) -> str | None:
        """Name of the host that it believes to be on."""
        return None

    @property
    def src_process_user_id(self) -> int | None:
        """Numeric id of its user."""
        return None

    @property
    def src_process_user_name(self) -> str | None:
        """Name of its user."""
        return None

    @property
    def src_container_id(self) -> str | None:
        """First twelve characters of the id of its container."""
        return None

    @property
    def src_container_name(self) -> str | None:
        """Name of its container."""
        return None

    @property
    def src_container_image(self) -> str | None:
        """Image of its container."""
        return None

    @property
    def src_pod_name(self) -> str | None:
        """Kubernetes pod that it runs in."""
        return None

    @property
    def src_pod_namespace(self) -> str | None:
        """Namespace of that pod."""
        return None

    @property
    def dst_ip(self) -> str | None:
        """Address of the remote end, also for ingress."""
        return None

    @property
    def dst_port(self) -> int | None:
        """Of the remote end."""
        return None

    @property
    def dst_domain(self) -> str | None:
        """Name of the server; missing where only its address is known."""
        return None

    @property
    def http_req_method(self) -> str | None:
        """As sent."""
        return None

    @property
    def http_req_path(self) -> str | None:
        """Without the query."""
        return None

    @property
    def http_req_scheme(self) -> str | None:
        """``http`` or ``https``."""
        return None

    @property
    def http_req_url(self) -> str | None:
        """Whole URL, as the text output shows it."""
        return None

    @property
    def http_req_host(self) -> str | None:
        """Host header, with the port where it has one."""
        return None

    @property
    def http_res_status(self) -> int | None:
        """Of the final response."""
        return None

    @property
    def http_res_duration_ms(self) -> float | None:
        """First request byte to last response byte; missing without a response."""
        return None

    @property
    def http_res_transfer_encoding(self) -> str | None:
        """``chunked`` where the response came in chunks."""
        return None

    def http_req_header(self, _name: str, /) -> str | None:
        """First value of a request header; names in lower case."""
        return None

    def http_res_header(self, _name: str, /) -> str | None:
        """First value of a response header; names in lower case."""
        return None

    def src_process_env(self, _name: str, /) -> str | None:
        """A variable from the environment of the process."""
        return None

    def src_container_label(self, _name: str, /) -> str | None:
        """A label of its container."""
        return None

    def src_pod_label(self, _name: str, /) -> str | None:
        """A label of its pod."""
        return None

    def src_pod_annotation(self, _name: str, /) -> str | None:
        """An annotation of its pod."""
        return None

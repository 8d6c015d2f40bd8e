"""
What rules read of a transaction, and rules that plugins can ask about one.

Facts are looked up when a rule reads them, because most rules read two of the forty. A
rule sees a transaction as it was on the wire: nothing is redacted yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Container, Process
from otel_qtap.rules import Facts, Rule, Stage
from otel_qtap.stores.qtap_fields import authority_host, protocol_of
from otel_qtap.stores.tags import process_tags
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = ["RuleBinder", "TransactionFacts", "TransactionRule", "highest_possible_level"]

_SHORT_ID = 12  # characters of a container's id that Qtap shows
_POD_NAME = "io.kubernetes.pod.name"
_POD_NAMESPACE = "io.kubernetes.pod.namespace"
_IP_CHARACTERS = frozenset("0123456789.")
_LEVELS = tuple(CaptureLevel)


class TransactionFacts(Facts):
    """
    The fields of one transaction, over or as far as it has come.

    Missing, because nothing here knows them yet: ``tls.version``, ``tls.sni``,
    ``tls.alpn``, labels and annotations of pods, and of ``src.process.env`` all but what
    the agent keeps of an environment.
    """

    __slots__ = (
        "_hostname",
        "_path",
        "_path_of",
        "_tags",
        "_tags_of",
        "_url",
        "_url_of",
        "transaction",
    )

    def __init__(self, transaction: Transaction | None = None, hostname: str = "") -> None:
        """``hostname`` is the name of this host, which processes in containers do not see."""
        self.transaction: Transaction
        """May be set to another one, which costs a tenth of making new facts."""
        if transaction is not None:
            self.transaction = transaction
        self._hostname = hostname
        self._path: str | None = None
        self._path_of: str | None = None
        self._url: str | None = None
        self._url_of: Transaction | None = None
        self._tags: tuple[str, ...] = ()
        self._tags_of: tuple[Process | None, Container | None, str] = None, None, ""

    # Request and response ----------------------------------------------------------------

    @property
    def http_req_method(self) -> str | None:
        """As sent."""
        return self.transaction.request.method

    @property
    def http_req_path(self) -> str | None:
        """Without the query; missing in ``CONNECT``. Kept, because most rules ask for it."""
        transaction = self.transaction
        target = transaction.request.target
        if target is self._path_of:
            return self._path
        if target[:1] == "/" and target.isascii():  # nearly all of them
            path: str | None = target.split("?", 1)[0] if "?" in target else target
        elif transaction.request.method == "CONNECT":
            return None
        else:
            path = readable_text(transaction.path) or None
        self._path_of, self._path = target, path
        return path

    @property
    def http_req_scheme(self) -> str | None:
        """``http`` or ``https``."""
        return self.transaction.scheme

    @property
    def http_req_url(self) -> str | None:
        """As the text output shows it; costs more than all other fields, so it is kept."""
        transaction = self.transaction
        if self._url_of is not transaction:
            self._url = readable_text(transaction.url)
            self._url_of = transaction
        return self._url

    @property
    def http_req_host(self) -> str | None:
        """Host header, or what the target says in its place."""
        request = self.transaction.request
        if request.target[:1] == "/" and request.method != "CONNECT":  # nearly all of them
            return self.http_req_header("host") or None
        return readable_text(self.transaction.authority) or None

    def http_req_header(self, name: str, /) -> str | None:
        """First value of a request header."""
        size = len(name)
        for key, value in self.transaction.request.headers:
            if len(key) == size and key.lower() == name:  # most names have another length
                return readable_text(value)
        return None

    @property
    def http_res_status(self) -> int | None:
        """Missing without a response."""
        response = self.transaction.response
        return None if response is None else response.status

    @property
    def http_res_duration_ms(self) -> float | None:
        """First request byte to last response byte, or to what ended the response."""
        transaction = self.transaction
        if transaction.response is None:
            return None
        return transaction.timings.duration_ns / 1_000_000

    @property
    def http_res_transfer_encoding(self) -> str | None:
        """As the header says."""
        return self.http_res_header("transfer-encoding")

    def http_res_header(self, name: str, /) -> str | None:
        """First value of a response header."""
        response = self.transaction.response
        if response is not None:
            size = len(name)
            for key, value in response.headers:
                if len(key) == size and key.lower() == name:
                    return readable_text(value)
        return None

    # Connection --------------------------------------------------------------------------

    @property
    def direction(self) -> str | None:
        """Qtap's word."""
        word: str = self.transaction.direction._value_  # ``value`` takes eight times as long
        return word

    @property
    def transport(self) -> str | None:
        """Only TCP is captured."""
        return "tcp"

    @property
    def protocol(self) -> str | None:
        """``http1``, ``http2`` or ``grpc``."""
        return protocol_of(self.transaction)

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The same as those of events."""
        transaction = self.transaction
        process, container, version = self._tags_of
        if (  # mostly they are the very same objects as the time before
            transaction.process is not process
            or transaction.container is not container
            or transaction.request.version != version
            or version[:1] == "2"  # headers tell which protocol that is
        ):
            process, container = transaction.process, transaction.container
            protocol = protocol_of(transaction)
            self._tags = process_tags(process, container, self._hostname, protocol)
            self._tags_of = process, container, transaction.request.version
        return self._tags

    @property
    def tls_enabled(self) -> bool | None:
        """Missing in plain text, as in Qtap, which learns it from the handshake."""
        return True if self.transaction.scheme == "https" else None

    @property
    def src_ip(self) -> str | None:
        """Of the captured process."""
        return self.transaction.local.address

    @property
    def src_port(self) -> int | None:
        """Of the captured process."""
        return self.transaction.local.port

    @property
    def dst_ip(self) -> str | None:
        """Of the remote end."""
        return self.transaction.remote.address

    @property
    def dst_port(self) -> int | None:
        """Of the remote end."""
        return self.transaction.remote.port

    @property
    def dst_domain(self) -> str | None:
        """Name of the server: as the process knows it, else what was asked for."""
        transaction = self.transaction
        if not transaction.direction.is_ingress and transaction.remote_name:
            name = transaction.remote_name
        else:
            name = authority_host(readable_text(transaction.authority))
        return None if not name or ":" in name or _IP_CHARACTERS.issuperset(name) else name

    # Process, container, pod -------------------------------------------------------------

    @property
    def src_process_path(self) -> str | None:
        """Inside the root directory of the process."""
        return readable_text(self.transaction.process.executable) or None

    @property
    def src_process_binary(self) -> str | None:
        """``haproxy``."""
        process = self.transaction.process
        return readable_text(process.name) if process.executable else None

    @property
    def src_process_pid(self) -> int | None:
        """As this host counts."""
        return self.transaction.process.pid

    @property
    def src_process_hostname(self) -> str | None:
        """Missing in a container, whose own name for itself is not known."""
        return None if self.transaction.process.container_id else self._hostname or None

    @property
    def src_process_user_id(self) -> int | None:
        """Missing when the process was gone before it could be asked."""
        user_id = self.transaction.process.user_id
        return None if user_id < 0 else user_id

    @property
    def src_process_user_name(self) -> str | None:
        """As this host names the user."""
        return self.transaction.process.user or None

    def src_process_env(self, name: str, /) -> str | None:
        """One of the variables that the agent keeps."""
        return _entry(self.transaction.process.environment, name)

    @property
    def src_container_id(self) -> str | None:
        """First twelve characters."""
        return self.transaction.process.container_id[:_SHORT_ID] or None

    @property
    def src_container_name(self) -> str | None:
        """As its engine names it."""
        container = self.transaction.container
        return None if container is None else readable_text(container.name) or None

    @property
    def src_container_image(self) -> str | None:
        """With its tag."""
        container = self.transaction.container
        return None if container is None else readable_text(container.image) or None

    def src_container_label(self, name: str, /) -> str | None:
        """A label, dots in its name and all."""
        container = self.transaction.container
        return None if container is None else _entry(container.labels, name)

    @property
    def src_pod_name(self) -> str | None:
        """From the label that Kubernetes puts on containers."""
        return self.src_container_label(_POD_NAME) or None

    @property
    def src_pod_namespace(self) -> str | None:
        """From the label that Kubernetes puts on containers."""
        return self.src_container_label(_POD_NAMESPACE) or None


class TransactionRule:
    """A compiled entry of the ``rules`` of a plugin; ``RuleBinder`` makes it."""

    __slots__ = ("format", "level", "matches", "rule", "sample_rate")

    def __init__(
        self,
        rule: Rule,
        facts: TransactionFacts,
        *,
        level: CaptureLevel,
        format_: CaptureFormat | None = None,
        sample_rate: float | None = None,
    ) -> None:
        self.rule = rule
        self.level = level
        """What to keep of what it matches."""
        self.format = format_
        """How to store it; ``None`` for the format of the plugin."""
        self.sample_rate = sample_rate
        """The share to keep; ``None`` for that of the plugin."""
        self.matches: Callable[[Transaction], bool] = rule.about(facts, "transaction")
        """Whether this rule decides about a transaction."""

    @property
    def mode(self) -> CaptureLevel:
        """The word of ``access_logs`` for the level."""
        return self.level


class RuleBinder:
    """
    Makes rules that share the facts they look up.

    They belong to one thread. ``hostname`` is the name of this host.
    """

    def __init__(self, hostname: str = "") -> None:
        self._facts = TransactionFacts(hostname=hostname)

    def bind(
        self,
        rule: Rule,
        level: CaptureLevel,
        format_: CaptureFormat | None = None,
        sample_rate: float | None = None,
    ) -> TransactionRule:
        """Return ``rule`` as an entry of the ``rules`` of ``http_capture`` or ``access_logs``."""
        return TransactionRule(
            rule, self._facts, level=level, format_=format_, sample_rate=sample_rate
        )


def highest_possible_level(
    rules: Sequence[TransactionRule], default: CaptureLevel, facts: Facts, known: Stage
) -> CaptureLevel:
    """
    Return the most that the rules of a plugin can still decide to keep.

    ``facts`` are those of a transaction that has come as far as ``known``, ``default``
    is the level when no rule matches. Where this is less than ``full``, nobody will ask
    for the bodies.
    """
    possible: list[CaptureLevel] = []
    for entry in rules:
        if entry.rule.needs <= known:
            if entry.rule.matches(facts):
                return _highest([*possible, entry.level])  # none of the later ones is asked
        elif entry.rule.may_match(facts, known):
            possible.append(entry.level)
    return _highest([*possible, default])


def _highest(levels: Iterable[CaptureLevel]) -> CaptureLevel:
    return max(levels, key=_LEVELS.index)


def _entry(entries: Iterable[tuple[str, str]], name: str) -> str | None:
    return next((readable_text(value) for key, value in entries if key == name), None)

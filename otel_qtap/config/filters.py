"""``tap.filters``: processes to leave alone, by the path of their executable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from pydantic import Field, model_validator

from otel_qtap.config.section import Section
from otel_qtap.rules.regex import Regex, RegexError

__all__ = ["FILTER_GROUPS", "GROUP_ALIASES", "CustomFilterConfig", "FiltersConfig"]

FILTER_GROUPS: Mapping[str, tuple[str, ...]] = {
    "container-runtimes": ("/usr/bin/containerd", "/usr/bin/dockerd", "/usr/bin/runc"),
    "eks": (
        "/app/aws-k8s-agent",
        "/usr/bin/amazon-ssm-agent",
        "/usr/bin/ssm-agent-worker",
        "/usr/bin/ssm-document-worker",
    ),
    "gke": (
        "/home/kubernetes/bin/gcfsd",
        "/event-exporter",
        "/fluent-bit-gke-exporter",
        "/home/kubernetes/bin/node-problem-detector",
    ),
    "kubernetes": (
        "/home/kubernetes/bin/kubelet",
        "/home/kubernetes/bin/kube-proxy",
        "/proxy-agent",
        "/cluster-proportional-autoscaler",
        "/csi-node-driver-registrar",
    ),
    "qpoint": (),  # the agent's own process: the kernel side skips it by its id
}
"""Executables behind the names that ``tap.filters.groups`` may list; exact paths."""

GROUP_ALIASES: Mapping[str, str] = {"container": "container-runtimes"}
"""Names that Qtap's documentation uses for a group and Qtap itself ignores."""

MAX_PATH_LENGTH = 4096  # PATH_MAX of linux/limits.h: what a filter looks at


class CustomFilterConfig(Section):
    """A process to leave alone, by the path of its executable."""

    exe: str = Field(min_length=1)
    """The path, or the part of it that ``strategy`` says."""
    strategy: Literal["exact", "prefix", "suffix", "contains", "regex"] = "suffix"
    """How to compare; case counts for ``regex`` only."""
    only: tuple[Literal["data", "dns", "tls", "http"], ...] = ()
    """What to leave out of it; empty: everything."""

    @model_validator(mode="after")
    def _compile(self) -> CustomFilterConfig:
        if self.strategy == "regex":
            _compiled(self.exe)
        return self

    def matches(self, executable: str) -> bool:
        """Whether this filter is about ``executable``; case counts for ``regex`` only."""
        if self.strategy == "regex":
            return _compiled(self.exe).search(executable)
        path, wanted = executable.lower(), self.exe.lower()
        match self.strategy:
            case "exact":
                return path == wanted
            case "prefix":
                return path.startswith(wanted)
            case "suffix":
                return path.endswith(wanted)
            case "contains":
                return wanted in path

    def covers(self, *, tls: bool) -> bool:
        """Whether it leaves out the HTTP of encrypted or of plaintext connections."""
        return not self.only or "data" in self.only or ("tls" if tls else "http") in self.only


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Regex:
    try:
        return Regex(pattern)
    except RegexError as error:
        raise ValueError(f"not a regular expression: {error}") from None


class FiltersConfig(Section):
    """``tap.filters``: a match means exclude."""

    groups: tuple[str, ...] = ()
    """Names of known sets of processes."""
    custom: tuple[CustomFilterConfig, ...] = ()
    """Tried before the groups; the first that matches decides."""

    def deciding(self, executable: str) -> CustomFilterConfig | None:
        """Return the custom filter that decides about ``executable``, if there is one."""
        return next((item for item in self.custom if item.matches(executable)), None)

    def excludes(self, executable: str, *, tls: bool = False) -> bool:
        """
        Whether the HTTP of this executable is to be left alone.

        The first custom filter that matches decides, before any group.
        """
        path = executable[:MAX_PATH_LENGTH]
        custom = self.deciding(path)
        if custom is not None:
            return custom.covers(tls=tls)
        return any(
            path in FILTER_GROUPS.get(GROUP_ALIASES.get(group, group), ()) for group in self.groups
        )

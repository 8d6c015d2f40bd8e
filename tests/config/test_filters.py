"""Which processes are left alone."""

from __future__ import annotations

import pytest

from otel_qtap.config.filters import FiltersConfig

HAPROXY = "/usr/local/sbin/haproxy"
MATCHES = [
    pytest.param("exact", "/USR/local/sbin/haproxy", True, id="exact-ignores-case"),
    pytest.param("exact", "haproxy", False, id="exact-is-the-whole-path"),
    pytest.param("prefix", "/usr/local/", True, id="prefix"),
    pytest.param("prefix", "local", False, id="prefix-not-inside"),
    pytest.param("suffix", "/HAProxy", True, id="suffix"),
    pytest.param("contains", "local/S", True, id="contains"),
    pytest.param("regex", "^/usr/.*/ha[a-z]+$", True, id="regex"),
    pytest.param("regex", "sbin", True, id="regex-is-not-anchored"),
    pytest.param("regex", "HAPROXY", False, id="regex-minds-case"),
    pytest.param("regex", "(?i)HAPROXY", True, id="regex-flag"),
    pytest.param("regex", "[[]", False, id="regex-odd-class"),
    pytest.param("regex", r"\Ahaproxy|proxy\z", True, id="regex-of-re2"),
]


@pytest.mark.parametrize(("strategy", "exe", "excluded"), MATCHES)
def test_a_custom_filter_excludes_by_its_strategy(strategy, exe, excluded) -> None:
    """Qtap's strategies and their case rules."""
    filters = FiltersConfig.model_validate({"custom": [{"exe": exe, "strategy": strategy}]})

    assert filters.excludes(HAPROXY) is excluded


def test_a_filter_without_strategy_looks_at_the_end_of_the_path() -> None:
    """Qtap's default."""
    filters = FiltersConfig.model_validate({"custom": [{"exe": "haproxy"}]})

    assert filters.excludes(HAPROXY)
    assert not filters.excludes("/usr/bin/haproxy-exporter")


def test_groups_are_exact_paths() -> None:
    """A group stands for its members and nothing that looks like them."""
    filters = FiltersConfig(groups=("kubernetes", "container", "qpoint", "unknown"))

    assert filters.excludes("/home/kubernetes/bin/kubelet")
    assert filters.excludes("/usr/bin/dockerd")
    assert not filters.excludes("/opt/usr/bin/dockerd")
    assert not filters.excludes("/app/aws-k8s-agent")


def test_the_first_custom_filter_that_matches_decides_before_any_group() -> None:
    """Also when it leaves out less than a later one or a group would."""
    filters = FiltersConfig.model_validate(
        {
            "groups": ["container-runtimes"],
            "custom": [
                {"exe": "dockerd", "only": ["dns"]},
                {"exe": "haproxy", "only": ["tls"]},
                {"exe": "haproxy"},
            ],
        }
    )

    assert not filters.excludes("/usr/bin/dockerd")
    assert not filters.excludes(HAPROXY)
    assert filters.excludes(HAPROXY, tls=True)

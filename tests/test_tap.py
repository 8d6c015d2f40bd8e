"""What the tap asks of the kernel side."""

from __future__ import annotations

import pytest

from otel_qtap.receiver.kernel import KernelSettings
from otel_qtap.tap import kernel_settings


@pytest.mark.parametrize(
    ("direction", "wants"),
    [
        ("all", (True, True, True)),
        ("ingress", (True, False, False)),
        ("egress", (False, True, True)),
        ("egress-internal", (False, True, False)),
        ("egress-external", (False, False, True)),
    ],
)
def test_the_kernel_side_hands_over_only_the_directions_that_are_wanted(
    configure, direction, wants
) -> None:
    """What is not handed over costs nothing."""
    settings = kernel_settings(configure(direction=direction), 1000)

    assert (settings.ingress, settings.egress_internal, settings.egress_external) == wants


@pytest.mark.parametrize(("level", "bodies"), [("full", 5000), ("headers", 0), ("summary", 0)])
def test_bodies_are_copied_only_if_some_level_can_want_them(configure, level, bodies) -> None:
    """A head always fits: HAProxy takes none of more than 16 KiB."""
    assert kernel_settings(configure(level=level), 5000).turn_limit == 16384 + bodies


@pytest.mark.parametrize("loopback", ["true", "false"])
def test_loopback_is_left_out_in_the_kernel(configure, loopback) -> None:
    """As the file says."""
    assert kernel_settings(configure(loopback=loopback), 0).ignore_loopback is (loopback == "true")


def test_settings_are_packed_as_the_kernel_side_reads_them() -> None:
    """``struct settings`` of ``bpf/maps.h``: nine words."""
    settings = KernelSettings(
        egress_internal=False, ignore_loopback=True, turn_limit=0x1234, beyond_limit=9
    )
    packed = settings.pack(generation=7, changes=3, has_haproxy=True)
    words = [int.from_bytes(packed[at : at + 4], "little") for at in range(0, 36, 4)]

    assert len(packed) == 36
    assert words[:5] == [7, 0b101, 1, 0x1234, 9]
    assert words[5] == 1 << 1 | 1 << 2 | 1 << 4  # HTTP/1 both ways, PROXY protocol
    assert (words[6], words[8]) == (3, 1)

"""Request and connection ids: xid, as Qtap writes them."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.transaction.identity import IdGenerator

_S = 1_000_000_000
_SEEDS = st.binary(min_size=8, max_size=8)


def _plain(seconds: int, origin: bytes, number: int) -> str:
    """The clear way to write an xid, as a reference for the fast one."""
    raw = (seconds & 0xFFFFFFFF).to_bytes(4, "big") + origin + number.to_bytes(3, "big")
    return base64.b32hexencode(raw).decode().rstrip("=").lower()


@given(_SEEDS, st.lists(st.integers(0, 2**33), min_size=1, max_size=200))
def test_an_id_is_seconds_origin_and_counter_in_base32hex(seed, seconds) -> None:
    """However the seconds jump and the counter wraps."""
    ids = IdGenerator(seed)
    first = int.from_bytes(seed[5:], "big")

    for count, second in enumerate(seconds):
        expected = _plain(second, seed[:5], (first + count) & 0xFFFFFF)
        assert ids.new(second * _S + 999_999_999) == expected


def test_the_counter_wraps_without_a_gap() -> None:
    """After 2 ** 24 ids it begins anew."""
    ids = IdGenerator(b"\1\2\3\4\5\xff\xff\xff")

    assert ids.new(5 * _S) == _plain(5, b"\1\2\3\4\5", 0xFFFFFF)
    assert ids.new(5 * _S) == _plain(5, b"\1\2\3\4\5", 0)


def test_ids_of_later_seconds_sort_behind() -> None:
    """As text, which is what a store sorts by."""
    ids = IdGenerator(bytes(5) + b"\xff\xff\x00")
    made = [ids.new(second * _S) for second in range(1_788_000_000, 1_788_000_050)]

    assert made == sorted(made)
    assert all(len(text) == 20 for text in made)


def test_ids_are_unique_and_a_seed_repeats_them() -> None:
    """Two generators share no ids unless they share a seed."""
    seeded = [[IdGenerator(bytes(8)).new(0) for _ in range(1)] for _ in range(2)]
    ids = IdGenerator()
    other = IdGenerator()

    assert seeded[0] == seeded[1]
    assert len({ids.new(0) for _ in range(2000)} | {other.new(0) for _ in range(2000)}) == 4000

"""What operators mean between values, compiled and walked alike."""

from __future__ import annotations

import pytest
from rules.corpus import FAIL, MISSING, PASS, make_facts, outcome_of

CASES = [
    # text
    pytest.param('s == "hello"', PASS, id="equal-text"),
    pytest.param('s != "hello"', FAIL, id="unequal-text"),
    pytest.param('"hello" == s', PASS, id="sides-change-places"),
    pytest.param("s == /ell/", PASS, id="text-equals-pattern"),
    pytest.param("s contains /^hel/", PASS, id="text-contains-pattern"),
    pytest.param("s != /ell/", FAIL, id="text-differs-from-pattern"),
    pytest.param("/ell/ == s", PASS, id="pattern-equals-text"),
    pytest.param('s contains ""', PASS, id="contains-nothing"),
    pytest.param("s == 68:65:6c:6C:6f", PASS, id="text-equals-octets"),
    pytest.param("s contains 65:6c", PASS, id="text-contains-octets"),
    pytest.param("68:65:6c:6c:6f == s", PASS, id="octets-equal-text"),
    pytest.param('e == ""', PASS, id="empty-text"),
    pytest.param('s in ["x", "hello"]', PASS, id="text-in-list"),
    pytest.param('s in ["x", "y"]', FAIL, id="text-not-in-list"),
    pytest.param('s != ["x", "hello"]', FAIL, id="text-differs-from-none"),
    pytest.param('s != ["x", "y"]', PASS, id="text-differs-from-all"),
    pytest.param('s contains ["hello"]', FAIL, id="text-contains-no-list"),
    pytest.param("s in [/^h/, 1]", PASS, id="text-in-list-of-patterns"),
    pytest.param("s == 10.0.0.1", FAIL, id="text-is-no-address"),
    pytest.param("s != 10.0.0.1", PASS, id="text-differs-from-address"),
    # numbers
    pytest.param("n == 404", PASS, id="equal-number"),
    pytest.param("n > 403.9", PASS, id="number-above-float"),
    pytest.param("404 < n", FAIL, id="number-mirrored"),
    pytest.param("405 >= n", PASS, id="number-mirrored-equal"),
    pytest.param("n == true", FAIL, id="number-is-no-truth-value"),
    pytest.param("n != true", FAIL, id="number-differs-from-no-truth-value"),
    pytest.param("n contains 4", FAIL, id="number-contains-nothing"),
    pytest.param("n matches /404/", FAIL, id="number-matches-nothing"),
    pytest.param("n != [1, 2]", PASS, id="number-differs-from-all"),
    pytest.param("n in [404.0]", PASS, id="number-in-list-of-floats"),
    pytest.param("z >= 0", PASS, id="zero"),
    pytest.param("n == z", FAIL, id="two-fields"),
    pytest.param("n > z", PASS, id="two-fields-in-order"),
    # truth values
    pytest.param("t == true", PASS, id="truth"),
    pytest.param("t != false", PASS, id="not-false"),
    pytest.param("t == 1", FAIL, id="truth-is-no-number"),
    pytest.param("f in [false, 1]", PASS, id="false-in-list"),
    # addresses
    pytest.param("ip == 10.1.2.3", PASS, id="equal-address"),
    pytest.param("ip == ::ffff:10.1.2.3", PASS, id="equal-mapped-address"),
    pytest.param("ip != 10.1.2.4", PASS, id="other-address"),
    pytest.param("ip != 10.0.0.0/8", FAIL, id="address-outside"),
    pytest.param("ip in 192.168.0.0/16", FAIL, id="address-not-in-network"),
    pytest.param("ip in [192.168.0.0/16, 10.1.0.0/16]", PASS, id="address-in-one-network"),
    pytest.param("10.0.0.0/8 contains ip", PASS, id="network-contains-address"),
    pytest.param("ip in 2001:db8::/32", FAIL, id="other-family"),
    pytest.param("ip == /^10[.]/", PASS, id="address-as-text"),
    pytest.param("ip matches /^10[.]/", PASS, id="address-matches"),
    pytest.param('ip contains "10.1."', PASS, id="address-contains"),
    # lists that a field holds
    pytest.param('ss == "a"', PASS, id="one-equals"),
    pytest.param('ss contains "a"', PASS, id="one-is-contained"),
    pytest.param('ss contains "ab"', FAIL, id="no-parts-of-items"),
    pytest.param('ss != "a"', PASS, id="one-differs"),
    pytest.param("ss matches /^b/", PASS, id="one-matches"),
    pytest.param("ss matches /^c/", FAIL, id="none-matches"),
    pytest.param('ss in ["a", "b"]', FAIL, id="list-in-list"),
    pytest.param('ss == ["x", "a"]', PASS, id="list-equals-list"),
    pytest.param("ss == 1", FAIL, id="list-of-text-and-number"),
    # lists in the expression
    pytest.param("[1, 404] contains n", PASS, id="list-contains"),
    pytest.param("[1, 2] == n", FAIL, id="list-equals"),
    pytest.param("[1, 2] != n", PASS, id="no-item-equals"),
    pytest.param("[1, 404] != n", FAIL, id="an-item-equals"),
    pytest.param("[s, e] matches /^hel/", PASS, id="an-item-matches"),
    pytest.param("n in [z, n]", PASS, id="list-of-fields"),
    pytest.param("n in [missing, n]", MISSING, id="list-with-a-missing-field"),
    # alone
    pytest.param("s", PASS, id="text-alone"),
    pytest.param("e", FAIL, id="empty-text-alone"),
    pytest.param("!e", PASS, id="empty-text-negated"),
    pytest.param("n && t && ip && ss", PASS, id="non-zero-values"),
    pytest.param("z || f || 0 || 0.0 || ''", FAIL, id="zero-values"),
    pytest.param("[0] && /x/ && 10.0.0.0/8 && 0a && '00:00:00:00:00:00'", PASS, id="others"),
    # missing
    pytest.param("x == 1", MISSING, id="missing-field"),
    pytest.param("x != 1", MISSING, id="missing-field-differs"),
    pytest.param("!(x == 1)", MISSING, id="missing-stays-missing"),
    pytest.param("!x && f", FAIL, id="and-decides"),
    pytest.param("!(!x || t)", FAIL, id="or-decides"),
    pytest.param("x && t", MISSING, id="and-does-not-decide"),
    pytest.param("http.req.headers.absent == 'a'", MISSING, id="missing-header"),
]


@pytest.mark.parametrize(("text", "outcome"), CASES)
def test_comparisons(text, outcome) -> None:
    """Each pair of kinds has its meaning; kinds that do not go together are never equal."""
    assert outcome_of(text) == outcome


ANY = [
    pytest.param("x == y", {"x": "a", "y": "a"}, PASS, id="text"),
    pytest.param("x == y", {"x": 1, "y": 1.0}, PASS, id="numbers"),
    pytest.param("x == y", {"x": 1, "y": True}, FAIL, id="number-and-truth"),
    pytest.param("x != y", {"x": 1, "y": "1"}, FAIL, id="kinds-that-do-not-go-together"),
    pytest.param("x == y", {"x": ("a", "b"), "y": "b"}, PASS, id="list-and-text"),
    pytest.param("x == y", {"x": "b", "y": ("a", "b")}, FAIL, id="text-and-list"),
    pytest.param("x != 1", {"x": (1, 3)}, FAIL, id="no-number-of-a-list-may-equal"),
    pytest.param("x != 2", {"x": (1, 3)}, PASS, id="no-number-of-a-list-equals"),
    pytest.param("x > 2", {"x": (1, 3)}, PASS, id="one-number-is-larger"),
    pytest.param("x", {"x": ()}, FAIL, id="empty-list"),
    pytest.param("x == 'y'", {"x": ()}, FAIL, id="nothing-in-an-empty-list"),
    pytest.param("ip == 1", {"ip": "no address"}, MISSING, id="not-an-address"),
    pytest.param("ip in 10.0.0.0/8", {"ip": "no address"}, MISSING, id="not-an-address-in"),
    pytest.param("ip in 10.0.0.0/8", {"ip": "::ffff:10.9.9.9"}, PASS, id="mapped-peer"),
    pytest.param("ip in fe80::/10", {"ip": "fe80::1%eth0"}, PASS, id="zone-of-an-address"),
    pytest.param("s matches /^.$/", {"s": "é"}, PASS, id="one-character-of-two-octets"),
    pytest.param("s matches /^.$/", {"s": "\udcff"}, PASS, id="lone-surrogate"),
    pytest.param('s == "01:23:45:67:89:ab"', {"s": "01:23:45:67:89:AB"}, PASS, id="mac"),
]


@pytest.mark.parametrize(("text", "changes", "outcome"), ANY)
def test_values_of_any_kind(text, changes, outcome) -> None:
    """What a field holds decides, not what it is expected to hold."""
    assert outcome_of(text, make_facts(**changes)) == outcome

"""Functions, and what they make of host names."""

from __future__ import annotations

import pytest
from rules.corpus import FAIL, MISSING, PASS, make_facts, outcome_of

CASES = [
    pytest.param('starts_with(s, "hel")', PASS, id="prefix"),
    pytest.param('starts_with(s, "HEL")', FAIL, id="case-counts"),
    pytest.param("starts_with(s, s)", PASS, id="two-fields"),
    pytest.param("starts_with(n, 40)", PASS, id="numbers-as-text"),
    pytest.param("starts_with(404.0, '404')", PASS, id="float-as-text"),
    pytest.param("starts_with(t, 'tr')", PASS, id="truth-value-as-text"),
    pytest.param("starts_with(ip, '10.1.')", PASS, id="address-as-text"),
    pytest.param("starts_with(ss, '[a b')", PASS, id="list-as-text"),
    pytest.param("starts_with(s, 10.0.0.0/8)", FAIL, id="network-as-text"),
    pytest.param("starts_with(missing, 'a')", MISSING, id="missing-value"),
    pytest.param("starts_with(s, missing)", MISSING, id="missing-prefix"),
    pytest.param("!starts_with(missing, 'a')", MISSING, id="missing-negated"),
    pytest.param("!starts_with(s, 'x')", PASS, id="negated"),
    pytest.param("starts_with(s, 'hel') == true", PASS, id="result-compared"),
    pytest.param("zone('api.example.com') == 'example.com'", PASS, id="zone"),
    pytest.param("zone('a.b.example.co.uk') == 'example.co.uk'", PASS, id="zone-of-co-uk"),
    pytest.param("zone('Api.Example.com:8443') == 'example.com'", PASS, id="zone-with-port"),
    pytest.param("zone('user.github.io') == 'user.github.io'", PASS, id="private-suffix"),
    pytest.param("zone('localhost') == 'localhost'", MISSING, id="zone-of-localhost"),
    pytest.param("zone('co.uk') != 'x'", MISSING, id="zone-of-a-suffix"),
    pytest.param("zone(ip) == '2.3'", MISSING, id="zone-of-an-address"),
    pytest.param("zone(zone('a.example.com')) == 'example.com'", PASS, id="nested"),
    pytest.param("in_zone('api.example.com', 'example.com')", PASS, id="in-zone"),
    pytest.param("in_zone('example.com', 'example.com')", PASS, id="zone-itself"),
    pytest.param("in_zone('EXAMPLE.com.', 'example.com')", PASS, id="case-and-root"),
    pytest.param("in_zone('api.example.com:80', 'example.com')", PASS, id="in-zone-with-port"),
    pytest.param("in_zone('badexample.com', 'example.com')", FAIL, id="suffix-of-a-label"),
    pytest.param("in_zone('example.com', 'api.example.com')", FAIL, id="other-way-round"),
    pytest.param("in_zone('example.com', '')", FAIL, id="no-zone"),
    pytest.param("in_zone(missing, 'example.com')", MISSING, id="missing-domain"),
]


@pytest.mark.parametrize(("text", "outcome"), CASES)
def test_functions(text, outcome) -> None:
    """What is missing stays missing; hosts are compared without case, port and root."""
    assert outcome_of(text) == outcome


def test_functions_of_fields() -> None:
    """The value of the field is looked at each time."""
    text = "zone(s) == 'example.com'"
    assert outcome_of(text, make_facts(s="www.example.com:443")) == PASS
    assert outcome_of(text, make_facts(s="www.example.org")) == FAIL
    assert outcome_of(text, make_facts(s="")) == MISSING

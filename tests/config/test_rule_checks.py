"""Rules that cannot be compiled, and rules that nothing can ever match."""

from __future__ import annotations

import pytest

from otel_qtap.config import ConfigError

MACROS = "rulekit:\n  macros:\n"


def rules(*expressions, tap="", macros=(), compat=""):
    """Return a file with a rule for each expression, the first in line 8, one in two lines."""
    lines = "".join(
        f"            - expr: {expression}\n              level: full\n"
        for expression in expressions
    )
    text = (
        "services: {object_stores: [{type: stdout}]}\nstacks:\n  web:\n    plugins:\n"
        f"      - type: http_capture\n        config:\n          rules:\n{lines}"
        f"tap:\n{tap}  http: {{stack: web}}\n"
    )
    if macros or compat:
        text += "rulekit:\n" + compat + ("  macros:\n" if macros else "")
        text += "".join(f"    - name: {name}\n      expr: {body}\n" for name, body in macros)
    return text


RULE = "stacks.web.plugins.0.config.rules.0.expr"

MACRO = "rulekit.macros.0"
BACKSLASHES = "; in double quotes YAML itself takes the backslashes: use single quotes"
COMMENT = "; YAML takes what follows ' #' for a comment: quote the expression"

ERRORS = [
    pytest.param(
        rules("http.res.status >="),
        f"8: {RULE}: column 19: ",
        "",
        ["http.res.status >=", "                  ^"],
        id="unfinished",
    ),
    pytest.param(
        rules("is_eror()", macros=[("is_error", "http.res.status >= 400")]),
        f"8: {RULE}: column 1: ",
        "did you mean is_error?",
        ["is_eror()", "^"],
        id="misspelt-macro",
    ),
    pytest.param(
        rules("is_a()", macros=[("is_a", "http.res.status => 400")]),
        f"15: {MACRO}.expr: column 17: ",
        "",
        ["http.res.status => 400", "                ^"],
        id="macro",
    ),
    pytest.param(
        rules("b()", macros=[("a", "b()"), ("b", "a()")]),
        "17: rulekit.macros.1.expr: column 1: macro b: ",
        "a -> b -> a",
        ["a()", "^"],
        id="macros-in-a-circle",
    ),
    pytest.param(
        rules("zone(http.req.host) == 'a'", macros=[("zone", "http.req.path == '/'")]),
        f"14: {MACRO}.name: macro ",
        "",
        [],
        id="name-of-a-function",
    ),
    pytest.param(
        rules("a && b || c"),
        f"8: {RULE}: column 8: ",
        "write (a && b) || c or, as Qtap reads it, a && (b || c)",
        ["a && b || c", "       ^"],
        id="mixed-operators",
    ),
    pytest.param(
        rules(r'"http.req.path matches /^\/api\//"'),
        f"8: {RULE}: column 26: ",
        BACKSLASHES,
        ["http.req.path matches /^/api//", "                         ^"],
        id="backslashes-in-double-quotes",
    ),
    pytest.param(
        rules("http.req.path matches /a #b/"),
        f"8: {RULE}: column 23: ",
        COMMENT,
        ["http.req.path matches /a", "                      ^"],
        id="cut-by-a-comment",
    ),
]


@pytest.mark.parametrize(("text", "start", "end", "excerpt"), ERRORS)
def test_a_rule_that_cannot_be_compiled_is_shown_with_its_place(
    text, start, end, excerpt, errors
) -> None:
    """The rule stands under the message, with a mark where it goes wrong."""
    line, *below = errors(text)

    assert line.startswith(f"qtap.yaml:{start}")
    assert line.endswith(end)
    assert below == [f"    {line}" for line in excerpt]


def test_all_rules_and_macros_are_checked_in_one_run(errors) -> None:
    """A wrong macro is not told again where it is used."""
    text = rules(
        "bad() && ==", "bad()", "http.res.status > '5'", macros=[("bad", "("), ("worse", "x = 1")]
    )
    paths = [line.split(": ")[1] for line in errors(text) if line.startswith("qtap")]
    assert paths == [
        "stacks.web.plugins.0.config.rules.0.expr",
        "stacks.web.plugins.0.config.rules.2.expr",
        "rulekit.macros.0.expr",
        "rulekit.macros.1.expr",
    ]


def test_rules_of_access_logs_and_of_unused_stacks_are_checked_too(errors) -> None:
    """Somebody will name the stack one day."""
    capture = "{type: http_capture, config: {rules: [{expr: 'a ==', level: full}]}}"
    logs = "{type: access_logs, config: {rules: [{expr: 'a ==', mode: full}]}}"

    told = errors(
        f"stacks: {{web: {{}}, spare: {{plugins: [{capture}, {logs}]}}}}\n"
        "tap: {http: {stack: web}}\n"
    )
    assert [line.split(": ")[1] for line in told if line.startswith("qtap")] == [
        "stacks.spare.plugins.0.config.rules.0.expr",
        "stacks.spare.plugins.1.config.rules.0.expr",
    ]


@pytest.mark.parametrize("macros", ["is_a", "{is_a: b}", "[{expr: b}]", "[is_a]"])
def test_macros_that_are_not_readable_are_not_missed_in_rules(macros, errors) -> None:
    """One mistake is one message."""
    text = rules("is_a()") + f"rulekit: {{macros: {macros}}}\n"

    (line,) = errors(text)
    assert line.startswith("qtap.yaml:12: rulekit.macros")


def test_qtaps_reading_is_a_choice(load) -> None:
    """What is ambiguous otherwise is not with ``compat``."""
    config = load(rules("a == 1 && b == 1 || c == 1", compat="  compat: qtap\n")).config

    assert str(config.rule_compiler().compile("a == 1 && b == 1 || c == 1")) != ""
    with pytest.raises(ConfigError, match="mixed without parentheses"):
        load(rules("a == 1 && b == 1 || c == 1", compat="  compat: none\n"))


CONTROL = "control:\n  rules:\n    - {name: a, expr: dst.port >, actions: [deny]}\n"


def test_rules_of_the_egress_controller_bring_warnings(warnings_of) -> None:
    """They have no effect here, and Qtap would not take them."""
    _, line = warnings_of(rules("http.res.status >= 400") + CONTROL)

    assert line.startswith("qtap.yaml:14: control.rules.0.expr: column ")


LANGUAGE = [
    pytest.param(rules("http.req.pth == '/'"), f"8: {RULE}", "http.req.path?", id="misspelt"),
    pytest.param(
        rules("http.req.headers.Retry-After != ''"),
        f"8: {RULE}",
        "http.req.headers.retry-after",
        id="capital-letters",
    ),
    pytest.param(
        rules("is_a()", macros=[("is_a", "exe == '/usr/bin/curl'")]),
        f"15: {MACRO}.expr",
        "src.process.path",
        id="old-name-in-a-macro",
    ),
]


@pytest.mark.parametrize(("text", "place", "way_out"), LANGUAGE)
def test_what_the_language_finds_odd_is_passed_on(text, place, way_out, warnings_of) -> None:
    """With the column, and once for a macro that several rules call."""
    (line,) = warnings_of(text)

    assert line.startswith(f"qtap.yaml:{place}: column 1: ")
    assert line.endswith(way_out)


ODD = [
    pytest.param(
        rules("direction == 'egress'"),
        f"8: {RULE}: asks for direction 'egress', which there is not: it is one of ingress, "
        "egress-internal, egress-external",
        id="direction-that-is-none",
    ),
    pytest.param(
        rules("direction == 'ingress' && http.res.status >= 500", tap="  direction: egress\n"),
        f"8: {RULE}: asks for direction 'ingress', and tap.direction is egress, so it never "
        "matches",
        id="direction-that-is-not-looked-at",
    ),
    pytest.param(
        rules("served()", tap="  direction: egress-external\n",
              macros=[("served", "inside() && http.res.status >= 500"),
                      ("inside", 'direction eq "egress-internal"')]),
        f"8: {RULE}: asks for direction 'egress-internal', and tap.direction is egress-external, "
        "so it never matches",
        id="direction-in-a-macro-of-a-macro",
    ),
    pytest.param(
        rules("src.process.path == '/usr/bin/dockerd'",
              tap="  filters: {groups: [container-runtimes]}\n"),
        f"8: {RULE}: asks for '/usr/bin/dockerd', which tap.filters exclude, so it never matches",
        id="executable-in-an-excluded-group",
    ),
    pytest.param(
        rules("src.process.binary == 'curl'", tap="  filters: {custom: [{exe: /curl}]}\n"),
        f"8: {RULE}: asks for 'curl', which tap.filters exclude, so it never matches",
        id="program-that-is-excluded",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ODD)
def test_a_rule_that_can_never_match_brings_a_warning(text, message, warnings_of) -> None:
    """Nothing else would show it: the rule is right, and silent."""
    assert warnings_of(text) == [f"qtap.yaml:{message}"]


FINE = [
    pytest.param(rules("direction == 'ingress'", tap="  direction: all\n"), id="all-directions"),
    pytest.param(rules("direction != 'ingress'", tap="  direction: egress\n"), id="not-ingress"),
    pytest.param(
        rules("http.req.headers.direction == 'x'", tap="  direction: egress\n"), id="other-field"
    ),
    pytest.param(
        rules("src.process.binary == 'curl'", tap="  filters: {custom: [{exe: /usr/bin/curl}]}\n"),
        id="only-one-of-the-places-of-a-program",
    ),
    pytest.param(
        rules("src.process.path == '/usr/bin/curl'",
              tap="  filters: {custom: [{exe: curl, only: [dns]}]}\n"),
        id="only-dns",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text", FINE)
def test_a_rule_that_can_match_brings_none(text, warnings_of) -> None:
    """A warning that is wrong once is not read again."""
    assert warnings_of(text) == []


# HAProxy left out --------------------------------------------------------------------

EXCLUDED = (
    ", so no rule sees any of HAProxy's traffic (a filter that matches leaves a process out); "
    "to pass over some requests only, write a rule with level: none"
)
NOT_HEALTH = 'http.req.path != "/health"'
FILTERS = [
    pytest.param(
        "{exe: /usr/local/sbin/haproxy, strategy: exact}", "/usr/local/sbin/haproxy", id="guide"
    ),
    pytest.param("{exe: haproxy}", "/usr/local/sbin/haproxy", id="suffix"),
    pytest.param("{exe: /usr/sbin, strategy: prefix}", "/usr/sbin/haproxy", id="folder"),
    pytest.param(
        "{exe: '^/opt/.*proxy$', strategy: regex}", "/opt/haproxy/sbin/haproxy", id="regex"
    ),
    pytest.param("{exe: haproxy, only: [http]}", "/usr/local/sbin/haproxy", id="plaintext-only"),
]


@pytest.mark.parametrize(("item", "path"), FILTERS)
def test_a_filter_that_leaves_haproxy_out_is_told_to_who_has_rules(item, path, warnings_of) -> None:
    """The guide's own advice against noisy health checks switches everything off."""
    text = rules(NOT_HEALTH, tap=f"  filters:\n    custom:\n      - {item}\n")

    assert warnings_of(text) == [f"qtap.yaml:13: tap.filters.custom.0: excludes {path}{EXCLUDED}"]


WANTED = [
    pytest.param(rules(NOT_HEALTH, tap="  filters: {custom: [{exe: curl}]}\n"), id="another"),
    pytest.param(
        rules(NOT_HEALTH, tap="  filters: {custom: [{exe: haproxy, only: [dns]}]}\n"), id="dns"
    ),
    pytest.param(
        rules("src.process.binary == 'nginx'", tap="  filters: {custom: [{exe: haproxy}]}\n"),
        id="rules-about-another-program",
    ),
    pytest.param(rules(tap="  filters: {custom: [{exe: haproxy}]}\n").replace(
        "rules:\n", "level: full\n"), id="no-rules"),
]  # fmt: skip


@pytest.mark.parametrize("text", WANTED)
def test_leaving_haproxy_out_on_purpose_brings_no_warning(text, warnings_of) -> None:
    """Who captures other programs may well pass over HAProxy."""
    assert warnings_of(text) == []


def test_circles_of_macros_are_told_up_to_a_number(errors) -> None:
    """Each costs a look at all macros; the rest is told in the next run."""
    text = rules("m0()", macros=[(f"m{number}", f"m{number}()") for number in range(30)])

    told = [line for line in errors(text) if line.startswith("qtap")]
    assert len(told) == 20
    assert told[0].startswith("qtap.yaml:15: rulekit.macros.0.expr: column 1: macro m0: ")

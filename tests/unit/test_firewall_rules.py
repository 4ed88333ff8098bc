"""Rules and default policies of firewall mode: what is taken, and what a refusal says."""

from __future__ import annotations

import pytest

from engines.stateful.firewall.hooks import HOOKS, find_hook
from engines.stateful.firewall.policies import ActionError, ActionScope, Policies
from engines.stateful.firewall.rules import AppHook, FirewallRule, parse_firewall_rules
from engines.verdict import Direction, Scope, Verdict
from tests.unit.rulekit import VARIABLES, parse

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def rule(text: str) -> FirewallRule:
    parsed = parse_firewall_rules(text, "f.rules", VARIABLES)
    assert not parsed.errors, [str(error) for error in parsed.errors]
    (made,) = parsed.rules
    return made


TAKEN = [
    # header, options, verdict, scope, table, hook
    ("accept:hook tcp:all", "", Verdict.ACCEPT, ActionScope.HOOK, "filter", None),
    ("accept:packet arp:all", "", Verdict.ACCEPT, ActionScope.PACKET, "filter", None),
    ("drop:flow tcp:flow_start", "flags:S;", Verdict.DROP, ActionScope.FLOW, "filter", None),
    ("reject:packet ip:all", "", Verdict.REJECT, ActionScope.PACKET, "filter", None),
    ("drop:packet icmp:pre_flow", "itype:8;", Verdict.DROP, ActionScope.PACKET, "pre_flow", None),
    ("drop:flow tcp:pre_stream", "flags:S;", Verdict.DROP, ActionScope.FLOW, "pre_stream", None),
    (
        "accept:hook tls:client_hello_done",
        'tls.sni; content:"a.test";',
        Verdict.ACCEPT,
        ActionScope.HOOK,
        "",
        AppHook("tls", TO_SERVER, 1, False),
    ),
    ("accept:tx dns:<request_complete", "", Verdict.ACCEPT, ActionScope.TX, "", AppHook("dns", TO_SERVER, 1, True)),
    (
        "drop:flow http1:response_line",
        'http.stat_code; content:"500";',
        Verdict.DROP,
        ActionScope.FLOW,
        "",
        AppHook("http1", TO_CLIENT, 1, False),
    ),
    (
        "accept:tx http2:stream:request_headers",
        "",
        Verdict.ACCEPT,
        ActionScope.TX,
        "",
        AppHook("http2:stream", TO_SERVER, 1, False),
    ),
    # The first and the last hook of a side go by their general names, too.
    ("accept:flow tls:request_started", "", Verdict.ACCEPT, ActionScope.FLOW, "", AppHook("tls", TO_SERVER, 0, False)),
    (
        "drop:packet ssh:response_complete",
        "",
        Verdict.DROP,
        ActionScope.PACKET,
        "",
        AppHook("ssh", TO_CLIENT, 3, False),
    ),
]


@pytest.mark.parametrize(("header", "options", "verdict", "scope", "table", "hook"), TAKEN)
def test_a_rule_says_what_to_do_and_where(
    header: str, options: str, verdict: Verdict, scope: ActionScope, table: str, hook: AppHook | None
) -> None:
    made = rule(f"{header} any any -> any any ({options} sid:1;)")
    assert (made.action.verdict, made.action.scope, made.table, made.hook) == (verdict, scope, table, hook)
    assert not made.action.alert


@pytest.mark.parametrize(
    ("text", "alert", "passes"),
    [
        ("accept:hook,alert tcp:all any any -> any any (sid:1;)", True, ""),
        ("drop:flow tcp:all any any -> any any (alert; sid:1;)", True, ""),
        ("drop:flow tcp:all any any -> any any (alert; noalert; sid:1;)", False, ""),
        ("accept:flow,pass:flow,alert tcp:all any any -> any any (sid:1;)", True, "flow"),
        ("accept:packet,pass:packet tcp:all any any -> any any (sid:1;)", False, "packet"),
    ],
)
def test_second_actions(text: str, alert: bool, passes: str) -> None:
    action = rule(text).action
    assert (action.alert, action.passes) == (alert, passes)


REFUSED = [
    ("accept tcp:all any any -> any any (sid:1;)", "1:1", "accept has no scope; expected accept:hook"),
    ("accept:tx tcp:all any any -> any any (sid:1;)", "1:1", "accept:tx is no action in this place"),
    ("drop:tx dns:request_complete any any -> any any (sid:1;)", "1:1", "expected drop:packet, drop:flow"),
    ("pass:flow tcp:all any any -> any any (sid:1;)", "1:1", "unknown firewall action 'pass'"),
    ("alert tcp:all any any -> any any (sid:1;)", "1:1", "expected accept, drop or reject"),
    ("drop:flow,pass:flow tcp:all any any -> any any (sid:1;)", "1:1", "pass:flow follows accept only"),
    ("accept:hook,log tcp:all any any -> any any (sid:1;)", "1:1", "unknown second action 'log'"),
    ("drop:flow icmp:pre_flow any any -> any any (sid:1;)", "1:1", "expected drop:packet"),
    ("accept:flow tcp:pre_stream any any -> any any (sid:1;)", "1:1", "expected accept:hook"),
    ("accept:hook tcp any any -> any any (sid:1;)", "1:13", "tcp has no hook; expected tcp:all"),
    ("accept:hook tcp:start any any -> any any (sid:1;)", "1:13", "unknown hook tcp:start"),
    ("accept:hook tls any any -> any any (sid:1;)", "1:13", "tls has no hook; expected one of client_in_progress"),
    ("accept:hook tls:hello any any -> any any (sid:1;)", "1:13", "unknown hook hello of tls"),
    ("accept:hook http:request_line any any -> any any (sid:1;)", "1:13", "expected http1 or http2:stream"),
    ("accept:hook http2:request_headers any any -> any any (sid:1;)", "1:13", "expected http2:stream or http2:global"),
    ("accept:hook modbus:request_started any any -> any any (sid:1;)", "1:13", "there is no parser for modbus"),
    ("accept:hook tlss:request_started any any -> any any (sid:1;)", "1:13", "unknown protocol 'tlss'"),
    ("accept:hook tls:server_hello any any -> any any (flow:to_server; sid:1;)", "1:13", "on the side that flow asks"),
    ("accept:hook tcp:all any any -> any any (http.uri; content:\"x\"; sid:1;)", "1:13", "http.uri needs the hook"),
    ("accept:hook tcp:pre_flow any any -> any any (flow:to_server; sid:1;)", "1:46", "a packet has no flow"),
    ("accept:hook tcp:all any any -> any any (xbits:set,a,track tx; sid:1;)", "1:40", "no transaction"),
    ('accept:hook tcp:all any any -> any any (content:"x"; replace:"y"; sid:1;)', "1:54", "no place in firewall mode"),
    ("accept:hook tcp:all any any -> any any (nothing:1; sid:1;)", "1:41", "unknown keyword 'nothing'"),
    ("accept:hook tcp:all any any -> any 99999 (sid:1;)", "1:36", "port 99999 is above 65535"),
    ("accept:hook", "1:12", "expected ( and the options"),
    ("accept:hook (sid:1;)", "1:1", "a protocol with its hook"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "what"), REFUSED)
def test_a_refusal_says_where_and_what_was_expected(text: str, where: str, what: str) -> None:
    parsed = parse_firewall_rules(text, "f.rules", VARIABLES)
    (error,) = parsed.errors
    assert not parsed.rules
    assert str(error).startswith(f"f.rules:{where}: ")
    assert what in error.message


def test_every_error_is_said_at_once_and_the_other_rules_are_there() -> None:
    text = "\n".join(
        (
            "accept tcp:all any any -> any any (sid:1;)",
            "accept:hook tcp:all any any -> any any (sid:2;)",
            "drop tls:client_hello any any -> any any (sid:3;)",
            "accept:hook udp:all any any -> any any (sid:2;)",
        )
    )
    parsed = parse_firewall_rules(text, "f.rules", VARIABLES)
    assert [error.line for error in parsed.errors] == [1, 3, 4]
    assert [made.signature.sid for made in parsed.rules] == [2]


def test_a_rule_without_its_closing_parenthesis_is_taken_with_a_warning() -> None:
    parsed = parse_firewall_rules("drop:flow tcp:all any any -> any any (sid:1; \\\n\n", "f.rules", VARIABLES)
    assert [made.signature.sid for made in parsed.rules] == [1]
    assert [str(warning) for warning in parsed.warnings] == ["f.rules:1: the ) at the end of the rule is missing"]


@pytest.mark.parametrize(
    "text", ["accept:hook tcp:all any any -> any any (sid:1;)", "drop:flow tcp any any -> any any (sid:1;)"]
)
def test_ordinary_rules_say_where_firewall_rules_belong(text: str) -> None:
    (error,) = parse(text).errors
    assert "only `nfw replay --firewall-rules` knows" in error.message


@pytest.mark.parametrize(
    ("written", "hook", "action"),
    [
        ({}, ("packet", "filter"), "drop:packet"),
        ({}, ("packet", "pre_flow"), "accept:hook"),
        ({}, ("tls", "client_hello_done"), "drop:flow"),
        ({"packet.filter": "reject:packet"}, ("packet", "filter"), "reject:packet"),
        ({"default-policy": "accept:hook"}, ("packet", "filter"), "accept:hook"),
        ({"default-policy": "accept:hook"}, ("dns", "request_started"), "accept:hook"),
        (
            {"default-policy": "accept:hook", "app.default-policy": "drop:packet"},
            ("dns", "request_started"),
            "drop:packet",
        ),
        ({"app.dns.default-policy": "accept:tx"}, ("dns", "response_complete"), "accept:tx"),
        ({"app.dns.default-policy": "accept:tx"}, ("tls", "server_hello"), "drop:flow"),
        (
            {"app.dns.default-policy": "accept:tx", "app.dns.request-complete": "drop:packet"},
            ("dns", "request_complete"),
            "drop:packet",
        ),
        ({"app.tls.request-started": "accept:flow"}, ("tls", "client_in_progress"), "accept:flow"),
        ({"app.http2.default-policy": "accept:hook"}, ("http2:stream", "request_data"), "accept:hook"),
        ({"app.http2.global.request-started": "accept:tx"}, ("http2:global", "request_started"), "accept:tx"),
        ({"app.http2.global.request-started": "accept:tx"}, ("http2:stream", "request_started"), "drop:flow"),
        # What would not fit a hook of packets is covered there.
        (
            {"default-policy": "accept:tx", "packet.default-policy": "accept:hook"},
            ("ssh", "request_started"),
            "accept:tx",
        ),
    ],
)
def test_the_most_specific_policy_wins(written: dict[str, str], hook: tuple[str, str], action: str) -> None:
    policies = Policies(written)
    if hook[0] == "packet":
        found = policies.packet[hook[1]]
    else:
        place = find_hook(*hook)
        assert place is not None
        found = policies.app(hook[0], *place)
    assert f"{found.verdict.value}:{found.scope.value}" == action


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ({"default-policy": "accept:tx"}, "default-policy: accept:tx is no action in this place"),
        ({"packet.filter": "accept"}, "packet.filter: accept has no scope"),
        ({"app.tls.client-helo-done": "accept:hook"}, "did you mean app.tls.client-hello-done?"),
        ({"app.dns.request-started": "pass:flow"}, "app.dns.request-started: unknown firewall action 'pass'"),
    ],
)
def test_policies_that_do_not_fit(written: dict[str, str], what: str) -> None:
    with pytest.raises(ActionError) as refused:
        Policies(written)
    assert what in str(refused.value)


def test_each_hook_is_found_by_its_name() -> None:
    for protocol, sides in HOOKS.items():
        for side in Direction:
            assert [find_hook(protocol, name) for name in sides[side]] == [(side, n) for n in range(len(sides[side]))]


def test_actions_of_ordinary_rules_have_scopes_behind_a_firewall() -> None:
    from dataclasses import replace

    from engines.stateful.parser import parse_rules
    from engines.stateful.ruleconfig import DEFAULT_CONFIG

    config = replace(DEFAULT_CONFIG, action_scopes=True)
    text = "drop:packet tcp any any -> any any (sid:1;)\nreject:flow tcp any any -> any any (flags:S; sid:2;)\n"
    parsed = parse_rules(text + "drop:hook tcp any any -> any any (sid:3;)", "t.rules", VARIABLES, config=config)
    assert [signature.scope for signature in parsed.signatures] == [Scope.PACKET, Scope.FLOW]
    assert ["drop:hook: the scope is packet or flow" in str(error) for error in parsed.errors] == [True]

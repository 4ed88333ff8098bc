"""`nfw policy check`: what is probably not meant is said with its line, and what only looks like it is not."""

from __future__ import annotations

import itertools
import random
import re
import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.tlsfacts import NAME_BUFFERS, SESSION_BUFFERS, TlsFacts, TlsTransaction
from engines.stateless.filter import StatelessFilter
from engines.stateless.rule import StatelessAction, StatelessRule, TcpFlagsMatch
from engines.tls.bypass import Exemption
from engines.tls.scope import TlsScope
from engines.verdict import Direction, Verdict
from nfw.policy import Policy
from nfw.policy.check import check_policy, regions
from nfw.policy.check.regions import Lookup, Point, lookup_of, region_of_rule, regions_of_signature
from nfw.policy.check.stateless import check_stateless
from nfw.policy.errors import CODES, MAX_PROBLEMS, Level, PolicyError
from nfw.policy.loader import load_policy_text
from nfw.policy.model import CertificateAuthority, InboundTls, ServerCertificate, Stateless, Tls, TlsKeywords
from tests.bench.etopen import RULES as ETOPEN
from tests.bench.rulesets import etopen_policy, nested_stateless_rules
from tests.unit.rulekit import parse
from tests.unit.test_inspector import DOWN, GET, OK, UP, Flow, compiled

PASS, DROP, FORWARD = StatelessAction.PASS, StatelessAction.DROP, StatelessAction.FORWARD


def policy(text: str) -> Policy:
    return load_policy_text(text.encode(), Path("p.yaml"))


def said(loaded: Policy) -> list[str]:
    """``line code`` of each warning."""
    return [f"{warning.line} {warning.code}" for warning in check_policy(loaded)]


# -- stateless rules -----------------------------------------------------------------------------------------------

TELNET = "action: drop, protocols: [tcp], destination_ports: [23]"


def stateless(*rules: str, default: str = "forward") -> list[str]:
    """Rules stand on line 4 and the following."""
    lines = [f"    - {{priority: {priority}, {rule}}}" for priority, rule in enumerate(rules, 1)]
    return said(policy("\n".join(["stateless:", f"  default: {default}", "  rules:", *lines])))


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        # one earlier rule is wider, or is not
        ((TELNET, f"{TELNET}, sources: [10.0.0.0/8]"), ["5 stateless-shadowed"]),
        ((f"{TELNET}, sources: [10.0.0.0/8]", TELNET), []),
        ((f"{TELNET}, sources: [10.0.0.0/8]", f"{TELNET}, sources: [10.0.0.0/7]"), []),
        ((TELNET, "action: drop, protocols: [tcp], destination_ports: [23, 24]"), []),
        ((TELNET, "action: drop, protocols: [tcp, udp], destination_ports: [23]"), []),
        ((TELNET, "action: drop, destination_ports: [23]"), []),
        # several earlier ones together
        (
            (
                f"{TELNET}, sources: [10.0.0.0/9]",
                f"{TELNET}, sources: [10.128.0.0/9]",
                f"{TELNET}, sources: [10.0.0.0/8]",
            ),
            ["6 stateless-shadowed"],
        ),
        (
            (
                f"{TELNET}, sources: [10.0.0.0/9]",
                f"{TELNET}, sources: [10.128.0.0/10]",
                f"{TELNET}, sources: [10.0.0.0/8]",
            ),
            [],
        ),
        (
            (
                'action: drop, protocols: [udp], destination_ports: ["0-99"]',
                'action: drop, protocols: [udp], destination_ports: ["100-65535"]',
                "action: drop, protocols: [udp]",
            ),
            ["6 stateless-shadowed"],
        ),
        (
            (
                'action: drop, protocols: [udp], destination_ports: ["0-99"]',
                'action: drop, protocols: [udp], destination_ports: ["101-65535"]',
                "action: drop, protocols: [udp]",
            ),
            [],
        ),
        # address families, flags, what has no ports
        (('action: drop, sources: ["0.0.0.0/0", "::/0"]', TELNET), ["5 stateless-shadowed"]),
        (('action: drop, sources: ["0.0.0.0/0"]', TELNET), []),
        (('action: drop, sources: ["::/0"]', TELNET), []),
        (
            (
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN], masks: [SYN]}]",
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN], masks: [SYN, ACK]}]",
            ),
            ["5 stateless-shadowed"],
        ),
        (
            (
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN], masks: [SYN, ACK]}]",
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN], masks: [SYN]}]",
            ),
            [],
        ),
        (
            (
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN], masks: [SYN]}]",
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [], masks: [SYN]}]",
                "action: drop, protocols: [tcp]",
            ),
            ["6 stateless-shadowed"],
        ),
        (('action: drop, destination_ports: ["0-65535"]', "action: drop, protocols: [icmp]"), []),
        (("action: drop, protocols: [icmp, udp]", "action: drop, protocols: [icmp]"), ["5 stateless-shadowed"]),
        # no packet has it
        (('action: drop, sources: [10.0.0.0/8], destinations: ["2001:db8::/32"]',), ["4 stateless-never"]),
        (('action: drop, sources: [10.0.0.0/8, "2001:db8::/32"], destinations: ["2001:db8::/32"]',), []),
    ],
)
def test_stateless_rules_that_are_not_reached(rules: tuple[str, ...], found: list[str]) -> None:
    assert stateless(*rules) == found


OUT, BACK = "sources: [10.0.0.0/8], destinations: [192.0.2.0/24]", "destinations: [10.0.0.0/8], sources: [192.0.2.0/24]"
HTTPS, HTTPS_BACK = "protocols: [tcp], destination_ports: [443]", "protocols: [tcp], source_ports: [443]"


@pytest.mark.parametrize(
    ("rules", "default", "found"),
    [
        ((f"action: pass, {OUT}",), "forward", ["4 stateless-asymmetric"]),
        ((f"action: pass, {OUT}", f"action: pass, {BACK}"), "forward", []),
        ((f"action: forward, {OUT}, {HTTPS}",), "drop", ["4 stateless-asymmetric"]),
        ((f"action: forward, {OUT}, {HTTPS}", f"action: forward, {BACK}, {HTTPS_BACK}"), "drop", []),
        ((f"action: forward, {OUT}, {HTTPS}", f"action: forward, {BACK}"), "drop", ["5 stateless-asymmetric"]),
        ((f"action: forward, {OUT}, {HTTPS}", f"action: forward, {BACK}, {HTTPS}"), "drop", ["4", "5"]),
        ((f"action: forward, {OUT}",), "pass", ["4 stateless-asymmetric"]),
        ((f"action: pass, {OUT}", f"action: drop, {BACK}"), "forward", []),  # one way is meant
        ((f"action: drop, {OUT}",), "forward", []),
        ((f"action: drop, {OUT}, {HTTPS}",), "pass", []),
        (("action: pass, protocols: [icmp]",), "forward", []),
        # one half of the answers goes the same way
        (
            (f"action: pass, {OUT}", "action: pass, destinations: [10.0.0.0/9], sources: [192.0.2.0/24]"),
            "forward",
            ["4 stateless-asymmetric"],
        ),
        # rules about flags look at one direction by their nature
        (
            (
                "action: drop, protocols: [tcp], tcp_flags: [{flags: [SYN, FIN], masks: [SYN, FIN]}]",
                f"action: forward, {OUT}",
                f"action: forward, {BACK}",
            ),
            "drop",
            [],
        ),
    ],
)
def test_one_direction_of_a_flow(rules: tuple[str, ...], default: str, found: list[str]) -> None:
    told = stateless(*rules, default=default)
    assert [line if " " in wanted else line.split()[0] for line, wanted in zip(told, found, strict=True)] == found


def test_a_warning_says_what_and_what_to_do() -> None:
    (warning,) = check_policy(
        policy(f"stateless:\n  rules:\n    - {{priority: 1, {TELNET}}}\n    - {{priority: 2, {TELNET}}}")
    )
    assert str(warning) == (
        "p.yaml:4: stateless rule of priority 2 is never reached: every packet it is about is matched before by the "
        "rule of priority 1 on line 3, with the same action; remove it"
    )
    assert warning.to_json() == {
        "level": "warning",
        "file": "p.yaml",
        "line": 4,
        "column": 0,
        "code": "stateless-shadowed",
        "message": warning.message,
        "remedy": "remove it",
    }


NETWORKS = ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31", "10.0.0.1/32", "2001:db8::/127", "2001:db8::/128", "0.0.0.0/0"]
PORTS = [(0, 65535), (0, 5), (6, 65535), (3, 9), (5, 5), (0, 0)]
FLAGS = [TcpFlagsMatch(2, 2), TcpFlagsMatch(0, 2), TcpFlagsMatch(2, 18), TcpFlagsMatch(18), TcpFlagsMatch(0, 0)]


@st.composite
def small_rules(draw: st.DrawFn) -> StatelessRule:
    some = st.lists(st.sampled_from(NETWORKS).map(ip_network), max_size=2).map(tuple)
    ports = st.lists(st.sampled_from(PORTS), max_size=2).map(tuple)
    return StatelessRule(
        priority=0,
        action=draw(st.sampled_from([PASS, DROP, FORWARD])),
        protocols=draw(st.lists(st.sampled_from([1, 6, 17]), max_size=2).map(tuple)),
        sources=draw(some),
        destinations=draw(some),
        source_ports=draw(ports) if draw(st.booleans()) else (),
        destination_ports=draw(ports),
        tcp_flags=draw(st.lists(st.sampled_from(FLAGS), max_size=2).map(tuple)) if draw(st.booleans()) else (),
    )


def every_kind() -> list[Point]:
    """One packet of every kind that rules of :func:`small_rules` can tell apart."""
    addresses = {4: [int(ip_network("10.0.0.0").network_address) + n for n in range(-1, 5)]}
    addresses[6] = [int(ip_network("2001:db8::").network_address) + n for n in range(3)]
    found = []
    for family, source, destination in ((f, s, d) for f in (4, 6) for s in addresses[f] for d in addresses[f]):
        found += [Point(family, protocol, source, destination, 0, 0, 0) for protocol in (1, 50)]
        for sport, dport in itertools.product((0, 3, 5, 6, 10), repeat=2):
            found.append(Point(family, 17, source, destination, sport, dport, 0))
            found += [Point(family, 6, source, destination, sport, dport, flags) for flags in (0, 2, 3, 16, 18, 19)]
    return found


EVERY_KIND = every_kind()


@settings(max_examples=60, deadline=None)
@given(st.lists(small_rules(), min_size=2, max_size=6))
def test_shadowed_is_what_no_packet_reaches(rules: list[StatelessRule]) -> None:
    ordered = StatelessFilter([replace(rule, priority=number) for number, rule in enumerate(rules, 1)], FORWARD)
    lookup = Lookup(ordered, [region_of_rule(rule) for rule in ordered.rules])
    reached = {lookup.first(point) for point in EVERY_KIND}
    told: list[PolicyError] = []
    check_stateless(Stateless(rules=ordered.rules, default=FORWARD), told.append)
    silent = {"stateless-shadowed", "stateless-never"}
    told_of = {int(found[1]) - 1 for each in told if each.code in silent and (found := _PRIORITY.search(each.message))}
    assert told_of == set(range(len(rules))) - reached


_PRIORITY = re.compile(r"rule of priority (\d+)")


def test_rules_that_overlap_everywhere_take_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is hidden by 256 others, so that all of them would take a minute."""
    monkeypatch.setattr(regions, "MAX_ALL_STEPS", 20_000)  # a tenth
    narrow = [
        StatelessRule(i, DROP, protocols=(6,), sources=(ip_network(((10 << 24) | i << 8, 24)),)) for i in range(5000)
    ]
    wide = [
        StatelessRule(
            5000 + i,
            DROP,
            protocols=(6,),
            sources=(ip_network(((10 << 24) | (i % 19) << 16, 16)),),
            destination_ports=((i, i),),
        )
        for i in range(5000)
    ]
    told: list[PolicyError] = []
    started = time.monotonic()
    check_stateless(Stateless(rules=(*narrow, *wide), default=FORWARD), told.append)
    assert time.monotonic() - started < 30  # 2 s on a machine with nothing else to do
    shadowed = [each for each in told if each.code == "stateless-shadowed"]
    assert len(shadowed) + 1 >= 20_000 // 256
    (undecided,) = [each for each in told if each.code == "undecided"]
    assert undecided.message.startswith(f"{5000 - len(shadowed)} stateless rules overlap")


def test_ten_thousand_stateless_rules() -> None:
    told: list[PolicyError] = []
    started = time.monotonic()
    check_stateless(Stateless(rules=tuple(nested_stateless_rules(10_000)), default=FORWARD), told.append)
    assert time.monotonic() - started < 30  # 3 s on a machine with nothing else to do
    assert not [each for each in told if each.code == "undecided"]


def test_no_more_warnings_than_a_person_reads() -> None:
    lines = [f"    - {{priority: {priority}, {TELNET}}}" for priority in range(1, MAX_PROBLEMS + 12)]
    found = check_policy(policy("\n".join(["stateless:", "  rules:", *lines])))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1].message == "and 10 more warnings"


# -- stateful rules ------------------------------------------------------------------------------------------------


def stateful(*rules: str, order: str = "strict", more: str = "") -> list[str]:
    """Rules stand on line 4 and the following; without the warning that a first line brings along."""
    lines = [f"    {rule} sid:{sid};)" for sid, rule in enumerate(rules, 1)]
    text = "\n".join(["stateful:", f"  order: {order}", "  rules: |", *lines, *([f"  {more}"] if more else [])])
    return said(policy(text))


ANY = "any any -> any any"
HELLO = f'pass tls {ANY} (tls.sni; content:"a.example"; endswith;'
TO_SERVER = "flow:established,to_server;"


@pytest.mark.parametrize(
    ("rules", "order", "found"),
    [
        ((f"drop ip {ANY} (", f'pass tcp {ANY} (content:"x";'), "strict", ["5 stateful-shadowed"]),
        ((f'pass tcp {ANY} (content:"x";', f"drop ip {ANY} ("), "strict", []),
        ((f"pass ip {ANY} (", f"alert ip {ANY} ("), "strict", ["5 stateful-shadowed"]),
        ((f"drop ip {ANY} (", f"alert ip {ANY} ("), "strict", []),  # a drop does not end logging
        ((f"alert ip {ANY} (", f"drop ip {ANY} ("), "strict", []),
        ((f"drop udp {ANY} (", f'pass tcp {ANY} (content:"x";'), "strict", []),
        ((f'drop tcp {ANY} (content:"y";', f'pass tcp {ANY} (content:"x";'), "strict", []),
        ((f"drop tcp {ANY} (ttl:3;", f'pass tcp {ANY} (content:"x";'), "strict", []),
        ((f"drop tcp {ANY} (flowbits:isnotset,a;", f"pass tcp {ANY} (flowbits:set,a;"), "strict", []),
        ((f"drop tcp {ANY} (threshold:type limit,track by_src,count 1,seconds 9;", f"pass tcp {ANY} ("), "strict", []),
        # headers
        (
            ("drop tcp 10.0.0.0/8 any -> any any (", 'pass tcp 10.1.0.0/16 any -> any 80 (content:"x";'),
            "strict",
            ["5 stateful-shadowed"],
        ),
        (
            ("drop tcp 10.1.0.0/16 any -> any any (", 'pass tcp 10.0.0.0/8 any -> any 80 (content:"x";'),
            "strict",
            [],
        ),
        (
            (
                "drop tcp 10.0.0.0/9 any -> any any (",
                "drop tcp 10.128.0.0/9 any -> any any (",
                'pass tcp 10.0.0.0/8 any -> any 80 (content:"x";',
            ),
            "strict",
            ["6 stateful-shadowed"],
        ),
        (("drop tcp any any -> any ![80] (", 'pass tcp any any -> any 80 (content:"x";'), "strict", []),
        (
            ("drop tcp any any -> any ![81] (", 'pass tcp any any -> any 80 (content:"x";'),
            "strict",
            ["5 stateful-shadowed"],
        ),
        (("drop tcp any any -> 10.0.0.1 any (", "pass tcp any any <> 10.0.0.1 any ("), "strict", []),
        (("drop tcp any any <> 10.0.0.1 any (", "pass tcp 10.0.0.1 any -> any 9 ("), "strict", ["5 stateful-shadowed"]),
        # the state of the flow and the protocol
        ((f"drop tcp {ANY} ({TO_SERVER}", HELLO), "strict", ["5 stateful-shadowed"]),
        ((f"drop tcp {ANY} (flow:established,to_client;", HELLO), "strict", []),
        ((f"drop tcp {ANY} (flow:not_established;", HELLO), "strict", []),
        ((f"drop tcp {ANY} ({TO_SERVER}", f"pass tcp {ANY} ("), "strict", []),
        ((f"drop tcp {ANY} ({TO_SERVER}", HELLO.replace("pass", "drop")), "strict", []),  # ends the flow, not a packet
        ((f"pass tcp {ANY} ({TO_SERVER}", HELLO.replace("pass", "drop")), "strict", ["5 stateful-shadowed"]),
        ((f"drop tcp {ANY} ({TO_SERVER}", f"reject tcp {ANY} ({TO_SERVER} ttl:3;"), "strict", ["5 stateful-shadowed"]),
        ((f"drop udp {ANY} ({TO_SERVER}", f'pass dns {ANY} (dns.query; content:"x";'), "strict", []),
        ((f"drop tls {ANY} (", HELLO), "strict", ["5 stateful-shadowed"]),
        ((f"drop ssh {ANY} (", HELLO), "strict", []),
        ((f"drop http {ANY} (", f'pass http2 {ANY} (http.host; content:"x";'), "strict", ["5 stateful-shadowed"]),
        ((f"drop http2 {ANY} (", f'pass http {ANY} (http.host; content:"x";'), "strict", []),
        # order of actions
        ((f"drop ip {ANY} (", f'pass tcp {ANY} (content:"x";'), "action", []),
        ((f'drop tcp {ANY} (content:"x";', f"pass ip {ANY} ("), "action", ["4 stateful-shadowed"]),
        ((f"reject ip {ANY} (", f"drop ip {ANY} ("), "action", ["4 stateful-shadowed"]),
        ((f"alert ip {ANY} (", f"drop ip {ANY} ("), "action", []),
    ],
)  # fmt: skip
def test_stateful_rules_that_never_decide(rules: tuple[str, ...], order: str, found: list[str]) -> None:
    assert [each for each in stateful(*rules, order=order) if each.endswith("shadowed")] == found


@pytest.mark.parametrize("seed", range(6))
def test_a_rule_called_shadowed_never_decides(seed: int) -> None:
    """Random rules against flows that meet many of them: what is said of a rule holds for each packet."""
    chance = random.Random(seed)
    shadowed = 0
    for _ in range(60):
        rules = [_random_rule(chance, sid) for sid in range(1, 8)]
        order = chance.choice(["strict", "action"])
        loaded = policy("\n".join(["stateful:", f"  order: {order}", "  rules: |", *(f"    {rule}" for rule in rules)]))
        warnings = [warning for warning in check_policy(loaded) if warning.code == "stateful-shadowed"]
        shadowed += len(warnings)
        ruleset = compiled("\n".join(rules), order)
        for protocol, port, fast_open in [(6, 80, True), *itertools.product((6, 17), (80, 9), (False,))]:
            flow = Flow(ruleset, protocol, port=port)
            steps = [(UP, b""), (DOWN, b""), (UP, b"")] if protocol == 6 and not fast_open else []
            told = {each.line - 3 for each in warnings if not (fast_open and "TCP Fast Open" in each.message)}
            alerts = {sid for sid in told if rules[sid - 1].startswith("alert")}
            for number, (way, data) in enumerate([*steps, (UP, GET), (DOWN, OK), (UP, GET)]):
                if data:
                    flow.data(way, data, established=(protocol == 6 and not fast_open) or number > 1)
                else:
                    flow.packet(way)
                decision = flow.last.decision
                assert decision.rule is None or decision.rule.id not in told, rules
                assert alerts.isdisjoint(flow.sids), rules
                if decision.verdict is not Verdict.ACCEPT or flow.inspector.finished:
                    break
    assert shadowed > 20


def _random_rule(chance: random.Random, sid: int) -> str:
    action = chance.choice(["pass", "drop", "reject", "alert"])
    protocol = chance.choice(["ip", "tcp", "udp", "http"])
    source = chance.choice(["any", "any", "10.0.0.0/8", "!10.0.0.0/9", "198.51.100.7"])
    arrow = chance.choice(["->", "->", "<>"])
    ports = chance.choice(["any", "any", "80", "!80", "[9,80]"])
    flow = chance.choice(["", "", "", "flow:to_server;", "flow:established;", TO_SERVER, "flow:to_client;"])
    options = ["", "", "", 'content:"html";', "dsize:>0;"]
    if protocol in ("tcp", "http") and "client" not in flow:
        options += ['http.host; content:"example";']
    return f"{action} {protocol} {source} any {arrow} any {ports} ({flow} {chance.choice(options)} sid:{sid};)"


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (("alert icmp any 80 -> any any (",), ["4 stateful-never"]),
        (("alert icmp any any -> any any (",), []),
        (("alert tcp 10.0.0.0/8 any -> 2001:db8::/32 any (",), ["4 stateful-never"]),
        (("alert tcp 10.0.0.0/8 any -> [2001:db8::/32,192.0.2.1] any (",), []),
        ((f'alert http {ANY} (flow:not_established; http.host; content:"x";',), ["4 stateful-never"]),
        ((f'alert http {ANY} (flow:established; http.host; content:"x";',), []),
        ((f"alert tcp {ANY} (flow:not_established;",), []),
        ((f'alert dns {ANY} (flow:not_established; dns.query; content:"x";',), []),
        ((f'alert tcp {ANY} (content:"abc"; content:!"b";',), ["4 stateful-never"]),
        ((f'alert tcp {ANY} (content:"abc"; content:!"B"; nocase;',), ["4 stateful-never"]),
        ((f'alert tcp {ANY} (content:"abc"; content:!"B";',), []),
        ((f'alert tcp {ANY} (content:"abc"; nocase; content:!"b";',), []),
        ((f'alert tcp {ANY} (content:"abc"; content:!"b"; depth:1;',), []),
        ((f'alert tcp {ANY} (content:"abc"; content:!"b"; distance:0;',), []),
        ((f'alert http {ANY} (http.uri; content:"abc"; http.host; content:!"b";',), []),
        ((f'alert http {ANY} (http.uri; content:"/a"; startswith; content:"/b"; startswith;',), ["4 stateful-never"]),
        ((f'alert http {ANY} (http.uri; content:"/a"; startswith; content:"/ab"; startswith;',), []),
        ((f'alert http {ANY} (http.uri; content:"/a"; startswith; content:"/A"; startswith; nocase;',), []),
        ((f'alert tls {ANY} (tls.sni; content:".org"; endswith; content:".com"; endswith;',), ["4 stateful-never"]),
        ((f'alert tls {ANY} (tls.sni; content:".org"; endswith; content:"e.org"; endswith;',), []),
        ((f"alert tls {ANY} (tls.version:1.2; tls.version:1.3;",), ["4 stateful-never"]),
        ((f"alert tls {ANY} (tls.version:1.2;",), []),
        ((f"alert tcp {ANY} (flowbits:isset,a;",), ["4 flowbit-never-set"]),
        ((f"alert tcp {ANY} (flowbits:isset,a;", f"alert tcp {ANY} (flowbits:set,a;"), []),
        ((f"alert tcp {ANY} (flowbits:isset,a|b;", f"alert tcp {ANY} (flowbits:set,b;"), []),
        ((f"alert tcp {ANY} (flowbits:isset,a;", f"alert tcp {ANY} (flowbits:unset,a;"), ["4 flowbit-never-set"]),
        ((f"alert tcp {ANY} (flowbits:isnotset,a;",), []),
    ],
)
def test_stateful_rules_that_never_match(rules: tuple[str, ...], found: list[str]) -> None:
    assert stateful(*rules) == found


@pytest.mark.parametrize(
    ("rules", "order", "more", "found"),
    [
        ((HELLO, f"drop tls {ANY} (", f"drop tls {ANY} (flow:to_server;"), "strict", "", ["5", "6"]),
        ((HELLO, f"reject tls {ANY} ({TO_SERVER}"), "strict", "", ["5"]),
        ((HELLO, f"drop tls {ANY} ("), "action", "", ["5"]),
        ((HELLO, f"drop tcp {ANY} ({TO_SERVER}"), "strict", "", ["5"]),
        ((HELLO, f"drop tcp {ANY} (app-layer-protocol:tls;"), "strict", "", ["5"]),
        # these wait for the hello, or have nothing to spoil
        ((HELLO, f"drop tls {ANY} (ssl_state:client_hello;"), "strict", "", []),
        ((HELLO, f'drop tls {ANY} (tls.sni; content:"b";'), "strict", "", []),
        ((HELLO, f"drop tls {ANY} (flow:to_client;"), "strict", "", []),
        ((HELLO, f"alert tls {ANY} ("), "strict", "", []),
        ((HELLO, f"drop tcp {ANY} (flow:not_established;"), "strict", "", []),
        ((HELLO, f"drop tcp {ANY} (app-layer-protocol:!tls;"), "strict", "", []),
        ((HELLO, f"drop udp {ANY} ("), "strict", "", []),
        ((f"drop tls {ANY} (",), "strict", "", []),
        ((f"pass tls {ANY} (", f"drop tls {ANY} (flow:to_server;"), "strict", "", []),
        ((HELLO.replace("any", "10.0.0.0/8", 1), "drop tls 192.0.2.0/24 any -> any any ("), "strict", "", []),
        # the default action
        ((HELLO,), "strict", "default_actions: [drop_established]", ["0"]),
        ((HELLO,), "strict", "default_actions: [drop_established_app_layer_to_server]", []),
        ((f"pass tcp {ANY} (flow:not_established;",), "strict", "default_actions: [drop_established]", []),
    ],
)  # fmt: skip
def test_drops_that_end_unfinished_hellos(rules: tuple[str, ...], order: str, more: str, found: list[str]) -> None:
    told = [each.split() for each in stateful(*rules, order=order, more=more)]
    assert [line for line, code in told if code == "tls-split-hello"] == found


SCOPED = Tls(
    CertificateAuthority(Path("ca.pem"), Path("ca.key")),
    (TlsScope(sources=(ip_network("10.0.0.0/8"),), destination_ports=((443, 443),)),),
)
WITHIN = "10.1.0.0/16 any -> any 443"
OUTSIDE = "any any -> any 443"


@pytest.mark.parametrize(
    ("rule", "keywords", "found"),
    [
        (f'alert tls {WITHIN} (tls.cert_issuer; content:"x";', TlsKeywords.SNI, True),
        (f'alert tls {WITHIN} (tls.cert_issuer; content:"x";', TlsKeywords.ALL, False),
        (f'alert tls {OUTSIDE} (tls.cert_issuer; content:"x";', TlsKeywords.SNI, False),
        (f'alert tls {WITHIN} (tls.sni; content:"x";', TlsKeywords.SNI, False),
        (f'alert tls {WITHIN} (ja3s.hash; content:"5d79edf64e03689ff559a54e9d9487bc";', TlsKeywords.ALL, True),
        (f'alert tcp {WITHIN} (content:"|16 03 01|"; depth:3;', TlsKeywords.ALL, True),
        (f'alert tcp {WITHIN} (content:"|16 03 01|";', TlsKeywords.ALL, False),
        (f'alert tcp {OUTSIDE} (content:"|16 03 01|"; depth:3;', TlsKeywords.ALL, False),
        (f'alert http {OUTSIDE} (http.host; content:"x";', TlsKeywords.ALL, False),
        ('alert http 192.0.2.0/24 any -> any 443 (http.host; content:"x";', TlsKeywords.ALL, True),
        ('alert http 192.0.2.0/24 any -> any 80 (http.host; content:"x";', TlsKeywords.ALL, False),
        ('alert http 192.0.2.0/24 any -> any [80,443] (http.host; content:"x";', TlsKeywords.ALL, False),
        ('alert tls 192.0.2.0/24 any -> any 443 (tls.sni; content:"x";', TlsKeywords.ALL, False),
    ],
)
def test_scopes_and_what_rules_look_at(rule: str, keywords: TlsKeywords, found: bool) -> None:
    loaded = policy(f"stateful:\n  rules: |\n    {rule} sid:1;)")
    loaded = replace(loaded, tls=replace(SCOPED, keywords=keywords))
    assert said(loaded) == (["3 tls-scope-hides"] if found else [])


def test_scopes_with_exemptions() -> None:
    """Of what a scope may leave encrypted nothing is said; HTTP within an inbound scope is seen."""
    rule = f'alert tls {WITHIN} (tls.cert_issuer; content:"x";'
    loaded = policy(f"stateful:\n  rules: |\n    {rule} sid:1;)")
    hiding = replace(SCOPED, keywords=TlsKeywords.SNI)
    assert said(replace(loaded, tls=hiding)) == ["3 tls-scope-hides"]
    assert not said(replace(loaded, tls=replace(hiding, bypass=(Exemption(("a.example",)),))))
    inbound = InboundTls((ServerCertificate(arn="arn:x"),), (TlsScope(destination_ports=((443, 443),)),))
    web = policy('stateful:\n  rules: |\n    alert http any any -> any 443 (http.host; content:"x"; sid:1;)')
    assert said(web) == ["3 tls-scope-hides"]
    assert not said(replace(web, inbound=(inbound,)))


def test_what_an_intercepted_session_shows() -> None:
    facts = TlsFacts("a.example", (b"h2",), 0x0304, "ja3", "771,", "ja4")

    def shown(facts: TlsFacts) -> set[str]:
        transaction = TlsTransaction(facts)
        names = NAME_BUFFERS | SESSION_BUFFERS
        return {name for name in names if transaction.buffer(name, Direction.TO_SERVER)}

    assert shown(facts.name_only()) == NAME_BUFFERS
    certificates = {name for name in SESSION_BUFFERS if "cert" in name or "alt" in name}
    assert shown(facts) == SESSION_BUFFERS - certificates


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ('content:"x"; pcre:"/.*/";', True),
        ('content:"x"; pcre:"/a*|b/";', True),
        ('content:"x"; pcre:"/.+/s";', False),  # not the empty text
        ('content:"x"; pcre:"/^$/";', False),
        ('content:"x"; pcre:"/a+b/";', False),
        ('content:"x"; pcre:!"/.*/";', False),
        ('content:"x"; pcre:"/^(?!a)/";', False),
        ('pcre:"/a+b/";', True),  # on every packet
        ('http.uri; pcre:"/a+b/";', False),
    ],
)
def test_expressions_that_are_too_broad(options: str, found: bool) -> None:
    protocol = "http" if "http" in options else "tcp"
    assert stateful(f"alert {protocol} {ANY} ({options}") == (["4 broad-regex"] if found else [])


GROUPS = """\
stateful:
  groups:
    - name: a
      rules: |
        alert udp any any -> any 1 (sid:{first};)
        alert udp any any -> any 2 (sid:8;)
    - name: b
      rules: |
        alert udp any any -> any 3 (sid:{second};)
        alert udp any any -> any 4 (sid:8;)
    - {{name: c, domains: {{action: deny, targets: [a.example], types: [tls_sni]}}}}
    - {{name: d, domains: {{action: deny, targets: [b.example], types: [tls_sni]}}}}
"""


def test_sids_of_two_groups() -> None:
    (warning,) = check_policy(policy(GROUPS.format(first=7, second=9)))
    assert str(warning) == (
        "p.yaml:10: rule with sid 8 of group b has the sid of sid 8 (line 6) of group a; give every rule a sid of its "
        "own, for records to tell them apart"
    )
    (both,) = check_policy(policy(GROUPS.format(first=7, second=7)))
    assert "and 1 more of its rules the same way" in both.message
    assert not check_policy(policy(GROUPS.replace("sid:8", "sid:{first}0", 1).format(first=5, second=6)))


def test_headers_as_regions() -> None:
    """A header's region holds what its rule's predicates do."""
    chance = random.Random(5)
    headers = [
        f"alert {protocol} {source} {sport} {arrow} {destination} {dport} (sid:{sid};)"
        for sid, (protocol, source, sport, arrow, destination, dport) in enumerate(
            itertools.product(
                ["ip", "udp", "icmp", "ipv6"],
                ["any", "![10.0.0.0/30,2001:db8::1]"],
                ["any", "!5"],
                ["->", "<>"],
                ["10.0.0.1-10.0.0.3", "2001:db8::/127", "$EXTERNAL_NET"],
                ["any", "[0:4,6]"],
            ),
            1,
        )
    ]
    signatures = parse("\n".join(headers)).signatures
    assert len(signatures) == len(headers)
    for signature in signatures:
        regions = regions_of_signature(signature)
        lookup = lookup_of(regions)
        for point in chance.sample(EVERY_KIND, 200):
            size = 4 if point.family == 4 else 16
            source, destination = point.source.to_bytes(size, "big"), point.destination.to_bytes(size, "big")

            def fits(a: bytes, p: int, b: bytes, q: int, rule: object = signature) -> bool:
                tests = ((rule.source, a), (rule.source_port, p), (rule.destination, b), (rule.destination_port, q))  # type: ignore[attr-defined]
                return all(test is None or test(value) for test, value in tests)

            wanted = (not signature.ip_protocols or point.protocol in signature.ip_protocols) and (
                fits(source, point.source_port, destination, point.destination_port)
                or (signature.bidirectional and fits(destination, point.destination_port, source, point.source_port))
            )
            held = [region.around(point) for region in regions]
            assert any(held) == wanted, (signature.text, point)
            if point.protocol in (6, 17):
                assert (lookup.first(point) >= 0) == wanted, (signature.text, point)


@pytest.mark.skipif(not ETOPEN.is_dir(), reason="the Emerging Threats Open rules are not beside the checkout")
def test_rules_people_load_bring_few_warnings(tmp_path: Path) -> None:
    """Flowbits that files left out would set, and rules that look for plain HTTP on port 443 on purpose."""
    loaded = load_policy_text(etopen_policy(ETOPEN).encode(), tmp_path / "etopen.yaml")
    found = check_policy(loaded)
    assert {warning.code for warning in found} <= {"flowbit-never-set", "tls-scope-hides"}
    assert len(found) < 100
    hidden = [warning for warning in found if warning.code == "tls-scope-hides"]
    texts = {(rule.ref.file, rule.ref.line): rule.text for rule in loaded.stateful.signatures}
    assert all("443" in texts[warning.file, warning.line] for warning in hidden)


def test_every_code_is_known() -> None:
    folder = Path(check_policy.__code__.co_filename).parent
    used = {code for file in folder.glob("*.py") for code in re.findall(r'"([a-z]+(?:-[a-z]+)+)"', file.read_text())}
    used -= {"tcp-pkt", "tcp-stream"}
    assert used <= CODES.keys()
    assert {"stateless-shadowed", "stateful-shadowed", "tls-split-hello"} <= used
    assert {PolicyError("f", 0, 0, "m", level).to_json()["code"] for level in Level} <= CODES.keys()

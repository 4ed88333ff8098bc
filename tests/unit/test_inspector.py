"""The inspector as the worker sees it: segments in, decisions, alerts and held bytes out; and against a slow twin."""

from __future__ import annotations

import contextlib
import random
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import hpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dnslib import DNSRecord
from hpack import Encoder
from hyperframe.frame import (
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from engines.packet import decode
from engines.stateful.app.detect import Detector, recognised
from engines.stateful.app.registry import PARSERS
from engines.stateful.inspector import FlowFacts, Inspector, Outcome, Segment, TlsFacts
from engines.stateful.limits import StatefulLimits
from engines.stateful.match import Absent, match_buffer, transform
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleset import GROWING_BUFFERS, RuleSet, compile_ruleset, covered_protocols
from engines.stateful.signature import Action, BufferMatch, RuleType, Signature
from engines.stateful.thresholdconfig import parse_threshold_config
from engines.tls.clienthello import Fingerprints
from engines.verdict import Direction, Scope, Verdict

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
TCP, UDP, ICMP = 6, 17, 1
CLIENT, SERVER = b"\x0a\x00\x00\x01", b"\xc6\x33\x64\x07"
ANY = "any any -> any any"
GET = b"GET /index.html HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
SMALL = StatefulLimits()


def compiled(text: str, order: str = "action", defaults: Sequence[str] = (), **limits: Any) -> RuleSet:
    parsed = parse_rules(text, "test.rules", Variables())
    assert not parsed.errors, [str(error) for error in parsed.errors]
    return compile_ruleset(parsed.signatures, order, defaults, StatefulLimits(**limits))


@dataclass
class Flow:
    """A flow under inspection; keeps the outcome of the last step and says it in short."""

    rules: RuleSet
    protocol: int = TCP
    decrypted: bool = False
    port: int = 80
    now: float = 0.0
    last: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        facts = FlowFacts(1, self.protocol, CLIENT, SERVER, 40000, self.port)
        self.inspector = Inspector(self.rules, facts, self.now, self.decrypted)

    def packet(self, direction: Direction = UP, *, established: bool = False, packet: Any = None) -> str:
        """A packet without payload."""
        return self._say(self.inspector.inspect(Segment(direction, established, b"", b"", packet, self.now)))

    def handshake(self) -> Flow:
        for direction in (UP, DOWN, UP):
            self.packet(direction)
        return self

    def data(self, direction: Direction, data: bytes, *, established: bool = True) -> str:
        return self._say(self.inspector.inspect(Segment(direction, established, data, data, None, self.now)))

    def _say(self, outcome: Outcome) -> str:
        """``accept``, ``drop!`` (``!``: the whole flow), then the sids alerted."""
        self.last = outcome
        decision = outcome.decision
        return " ".join([decision.verdict.value + ("!" if decision.scope is Scope.FLOW else ""), *map(str, self.sids)])

    @property
    def sids(self) -> list[int]:
        return [alert.rule.sid for alert in self.last.alerts]

    @property
    def held(self) -> tuple[int, int]:
        return self.inspector.held[0], self.inspector.held[1]


# -- how often a rule matches and what it acts on --------------------------------------------------------------------


def seen(rules: str, order: str = "strict") -> list[str]:
    """The outcome of each packet of one ordinary flow."""
    flow = Flow(compiled(rules, order))
    return [
        flow.packet(UP),
        flow.packet(DOWN),
        flow.packet(UP),
        flow.data(UP, GET),
        flow.packet(DOWN, established=True),
        flow.data(DOWN, OK),
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # type               SYN          SYN/ACK      ACK          GET          ACK          200 OK
        (f"alert ip {ANY} (sid:1;)", ["accept 1", "accept 1", "accept", "accept", "accept", "accept"]),
        (f"drop ip {ANY} (sid:1;)", ["drop! 1", "drop!", "drop!", "drop!", "drop!", "drop!"]),
        (f"pass ip {ANY} (sid:1;)", ["accept!"] * 6),
        (f"alert tcp {ANY} (flow:established; sid:1;)", ["accept"] * 3 + ["accept 1"] * 3),
        (f"drop tcp {ANY} (flow:established,to_client; sid:1;)", ["accept"] * 4 + ["drop 1"] * 2),
        (f"pass tcp {ANY} (flow:not_established; sid:1;)", ["accept"] * 6),
        ("alert ip !192.0.2.1 any -> any any (sid:1;)", ["accept 1"] * 6),  # like_ip_only
        ("alert tcp any any -> any 80 (flow:established; sid:1;)", ["accept"] * 3 + ["accept 1", "accept", "accept"]),
        ("alert tcp any any <> any 80 (flow:established; sid:1;)", ["accept"] * 3 + ["accept 1"] * 3),
        ("alert tcp any any -> any 81 (flow:established; sid:1;)", ["accept"] * 6),
        ("alert udp any any -> any any (sid:1;)", ["accept"] * 6),
        (f"alert http {ANY} (sid:1;)", ["accept"] * 3 + ["accept 1"] * 3),
        (f"drop http {ANY} (sid:1;)", ["accept"] * 3 + ["drop! 1"] + ["drop!"] * 2),
        (f"alert tls {ANY} (sid:1;)", ["accept"] * 6),
        (f"alert tcp {ANY} (app-layer-protocol:http; sid:1;)", ["accept"] * 3 + ["accept 1", "accept", "accept 1"]),
        (f"drop tcp {ANY} (app-layer-protocol:!tls; sid:1;)", ["accept"] * 3 + ["drop! 1"] + ["drop!"] * 2),
        (f"drop tcp {ANY} (app-layer-protocol:!http; sid:1;)", ["accept"] * 6),
        (f'alert tcp {ANY} (content:"index"; sid:1;)', ["accept"] * 3 + ["accept 1", "accept", "accept"]),
        (f'drop tcp {ANY} (content:"index"; sid:1;)', ["accept"] * 3 + ["drop! 1"] + ["drop!"] * 2),
        (f'reject tcp {ANY} (content:"GET"; depth:3; sid:1;)', ["accept"] * 3 + ["reject! 1"] + ["drop!"] * 2),
        (f'drop tcp-pkt {ANY} (content:"index"; sid:1;)', ["accept"] * 3 + ["drop 1", "accept", "accept"]),
        (f'alert http {ANY} (http.uri; content:"index"; sid:1;)', ["accept"] * 3 + ["accept 1", "accept", "accept"]),
        (f'alert http {ANY} (http.stat_code; content:"200"; sid:1;)', ["accept"] * 5 + ["accept 1"]),
        (f'alert tcp {ANY} (file.data; content:"hello"; sid:1;)', ["accept"] * 5 + ["accept 1"]),
        (f'drop http {ANY} (http.uri; content:"index"; noalert; sid:1;)', ["accept"] * 3 + ["drop!"] * 3),
        (f"alert tcp {ANY} (dsize:>3; sid:1;)", ["accept"] * 6),  # header tests need a packet
    ],
)
def test_rule_types(rule: str, expected: list[str]) -> None:
    assert seen(rule) == expected


def test_a_rule_matches_once_per_transaction() -> None:
    flow = Flow(compiled(f'alert http {ANY} (http.host; content:"example"; sid:1;)')).handshake()
    assert [flow.data(UP, GET), flow.data(DOWN, OK), flow.data(UP, GET + GET), flow.data(DOWN, OK)] == [
        "accept 1",
        "accept",
        "accept 1 1",
        "accept",
    ]


def test_packet_tests_see_the_packet() -> None:
    syn = bytes.fromhex("4500002800004000400600000a000001c63364079c40005000000001000000005002ffff00000000")
    flow = Flow(compiled(f"alert tcp {ANY} (flags:S; ttl:64; sid:1;)"))
    assert flow.packet(UP, packet=decode(syn)) == "accept 1"
    assert flow.packet(UP) == "accept"


def test_icmp_and_udp_have_no_handshake() -> None:
    rules = compiled(f'alert icmp {ANY} (content:"ping"; sid:1;)\ndrop ip {ANY} (content:"bad"; sid:2;)', "strict")
    icmp, udp = Flow(rules, ICMP), Flow(rules, UDP)
    assert [icmp.data(UP, b"a ping"), icmp.data(UP, b"a ping")] == ["accept 1", "accept 1"]
    assert [udp.data(UP, b"bad"), udp.data(UP, b"good")] == ["drop 2", "accept"]  # a datagram is no stream


DNS = bytes.fromhex("abcd01000001000000000000") + b"\x04evil\x07example\x00\x00\x01\x00\x01"


@pytest.mark.parametrize(
    ("which", "matches"),
    [("", True), (",all", False), (",0", False), (",-1", True), (",nb>1", False), (",nb<2", True), (",2", False)],
)
def test_of_several_questions(which: str, matches: bool) -> None:
    flow = Flow(compiled(f"alert dns {ANY} (dns.rrtype:TXT{which}; flow:to_server; sid:1;)"), UDP, port=53)
    query = DNSRecord.question("a.example", "A")
    query.add_question(DNSRecord.question("b.example", "TXT").q)
    assert flow.data(UP, query.pack(), established=False) == ("accept 1" if matches else "accept")


def test_dns_over_udp() -> None:
    flow = Flow(compiled(f'drop dns {ANY} (dns.query; content:"evil.example"; sid:1;)'), UDP, port=53)
    assert flow.data(UP, DNS.replace(b"evil", b"good"), established=False) == "accept"
    assert flow.data(UP, DNS, established=False) == "drop! 1"
    assert list(flow.last.alerts[0].tx) == ["dns"]


@pytest.mark.parametrize(
    ("asked", "said", "matches"),
    [
        ("tls|http", GET, True),
        ("tls|ssh", GET, False),
        ("!tls|ssh", GET, True),
        ("!tls|http", GET, False),
        ("tls|failed", b"\x01\x02nothing known\r\n" * 400, True),
    ],
)
def test_one_of_several_protocols(asked: str, said: bytes, matches: bool) -> None:
    flow = Flow(compiled(f"alert tcp {ANY} (app-layer-protocol:{asked}; flow:to_server; sid:1;)")).handshake()
    found = [flow.data(UP, said), flow.data(DOWN, OK if said is GET else said)]
    assert any("1" in each for each in found) is matches


def test_bare_hooks_match_once_each() -> None:
    states = ("request_started", "request_line", "request_headers", "response_line", "response_headers")
    rules = "\n".join(f"alert http1:{state} {ANY} (sid:{sid};)" for sid, state in enumerate(states, 1))
    flow = Flow(compiled(rules)).handshake()
    said = [(UP, GET[:20]), (UP, GET[20:]), (DOWN, OK[:-5]), (DOWN, OK[-5:])]
    assert [flow.data(*each) for each in said] == ["accept", "accept 1 2 3", "accept 4 5", "accept"]


def test_a_rule_on_request_and_response() -> None:
    header = "alert http any any => any 80"
    flow = Flow(compiled(f'{header} (http.uri; content:"index"; http.stat_code; content:"200"; sid:1;)')).handshake()
    assert [flow.data(UP, GET), flow.data(DOWN, OK)] == ["accept", "accept 1"]
    assert [flow.data(UP, EVIL), flow.data(DOWN, OK)] == ["accept", "accept"]


def test_buffer_and_payload_in_one_rule() -> None:
    rule = f'alert http {ANY} (content:"example"; http.method; content:"GET"; sid:1;)'
    assert Flow(compiled(rule)).handshake().data(UP, GET) == "accept 1"
    assert Flow(compiled(rule)).handshake().data(UP, GET.replace(b"example", b"other")) == "accept"


_ABSENT: tuple[Any, ...] = (Absent(),)


def without(rules: RuleSet, sid: int, buffer: str) -> RuleSet:
    """The rule with ``buffer; absent;`` in addition."""
    signatures = [rule.signature for rule in rules.rules]
    absent = BufferMatch(buffer, _ABSENT, absent=True)
    changed = [replace(s, buffers=(*s.buffers, absent)) if s.sid == sid else s for s in signatures]
    return compile_ruleset(changed, "strict", limits=rules.limits)


@pytest.mark.parametrize(
    ("options", "buffer", "request_", "expected"),
    [
        ("http.uri; bsize:>0;", "http.host", b"GET / HTTP/1.0\r\nA: b\r\n\r\n", "drop! 1"),
        ("http.uri; bsize:>0;", "http.host", GET, "accept"),
        ('http.uri; content:"index";', "http.cookie", GET, "drop! 1"),
        ('http.uri; content:"other";', "http.cookie", GET, "accept"),
        ("app-layer-event:http.missing_host_header;", "http.host", b"GET / HTTP/1.1\r\n\r\n", "drop! 1"),
        ("http.uri; bsize:>0;", "http.request_body", GET, "drop! 1"),
    ],
)
def test_absent_buffers(options: str, buffer: str, request_: bytes, expected: str) -> None:
    rules = without(compiled(f"drop http {ANY} (flow:to_server; {options} sid:1;)", "strict"), 1, buffer)
    for size in (1, len(request_)):
        flow = Flow(rules).handshake()
        for at in range(0, len(request_), size):
            said = flow.data(UP, request_[at : at + size])
        assert said == expected


def test_only_absent_buffers() -> None:
    rules = compiled(f"drop http {ANY} (flow:to_server; http.host; bsize:>0; sid:1;)", "strict")
    absent = BufferMatch("http.host", _ABSENT, absent=True)
    flow = Flow(compile_ruleset([replace(rules.rules[0].signature, buffers=(absent,))], "strict")).handshake()
    assert flow.data(UP, GET) == "accept"
    assert flow.data(UP, b"GET / HTTP/1.0\r\n\r\n") == "drop! 1"


def test_protocol_inside_an_upgraded_connection() -> None:
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    flow = Flow(compiled(f'alert http {ANY} (http.uri; content:"index"; sid:1;)')).handshake()
    assert [flow.data(UP, upgrade), flow.data(DOWN, switched)] == ["accept 1", "accept"]
    for direction in (UP, DOWN, UP):
        assert flow.data(direction, b"\x81\x85\x01\x02\x03\x04nobody knows this") == "accept"
    assert flow.inspector.finished
    connect = Flow(compiled(f'drop ssh {ANY} (ssh.software; content:"Evil"; sid:1;)')).handshake()
    connect.data(UP, b"CONNECT a.example:22 HTTP/1.1\r\nHost: a.example\r\n\r\n")
    connect.data(DOWN, b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-Good\r\n")
    assert connect.data(UP, b"SSH-2.0-Evil\r\n") == "drop! 1"


# -- order and actions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "order", "expected"),
    [
        # the first that decides wins, and a pass silences what comes after it
        ("drop=1 pass=2", "strict", "drop 1"),
        ("drop=1 pass=2", "action", "accept"),
        ("pass=1 drop=2", "strict", "accept"),
        ("alert=1 pass=2 alert=3", "strict", "accept 1"),
        ("alert=1 pass=2 alert=3", "action", "accept"),
        ("alert=1 drop=2 alert=3", "strict", "drop 1 2 3"),
        ("reject=1 drop=2", "strict", "reject 1 2"),
        ("reject=1 drop=2", "action", "drop 2 1"),
    ],
)
def test_order(rules: str, order: str, expected: str) -> None:
    text = "\n".join(
        f"{action} tcp {ANY} (flow:established; sid:{sid};)"
        for action, _, sid in (word.partition("=") for word in rules.split())
    )
    assert Flow(compiled(text, order)).handshake().data(UP, b"x") == expected


def test_pass_with_alert_is_logged_as_allowed() -> None:
    flow = Flow(compiled(f"pass tcp {ANY} (flow:established; alert; sid:1;)")).handshake()
    assert flow.data(UP, b"x") == "accept 1"
    assert flow.last.alerts[0].action == "allowed"


@pytest.mark.parametrize(("action", "token"), [("alert", "allowed"), ("drop", "blocked"), ("reject", "blocked")])
def test_action_token(action: str, token: str) -> None:
    flow = Flow(compiled(f"{action} tcp {ANY} (flow:established; sid:1;)")).handshake()
    flow.data(UP, b"x")
    assert flow.last.alerts[0].action == token


def test_packet_decision_and_flow_decision_of_one_packet() -> None:
    drop_packet, drop_flow = "drop tcp {0} (flow:established; sid:1;)", 'drop tcp {0} (content:"x"; sid:2;)'
    flow = Flow(compiled((drop_packet + "\n" + drop_flow).format(ANY), "strict")).handshake()
    assert flow.data(UP, b"x") == "drop! 1 2"
    pass_flow = 'pass tcp {0} (content:"x"; sid:2;)'
    flow = Flow(compiled((drop_packet + "\n" + pass_flow).format(ANY), "strict")).handshake()
    assert [flow.data(UP, b"x"), flow.data(UP, b"y")] == ["drop 1", "drop 1"]
    pass_packet = "pass tcp {0} (flow:established; sid:1;)"
    flow = Flow(compiled((pass_packet + "\n" + drop_flow).format(ANY), "strict")).handshake()
    assert [flow.data(UP, b"x"), flow.data(UP, b"y")] == ["accept", "accept"]


def test_decision_names_the_rule() -> None:
    flow = Flow(compiled(f'\ndrop tcp {ANY} (msg:"no x"; content:"x"; sid:7; rev:3;)')).handshake()
    flow.data(UP, b"x")
    decision = flow.last.decision
    assert (decision.reason, str(decision.rule)) == ("rule", "stateful:7 (test.rules:2)")
    flow.data(DOWN, b"y")
    assert (flow.last.decision.reason, flow.last.decision.verdict) == ("flow_drop", Verdict.DROP)


def test_more_alerts_than_are_logged_still_act() -> None:
    text = "\n".join(f"alert tcp {ANY} (flow:established; sid:{sid};)" for sid in range(1, 30))
    flow = Flow(compiled(f"{text}\ndrop tcp {ANY} (flow:established; sid:99;)", "strict")).handshake()
    flow.data(UP, b"x")
    assert (flow.last.decision.verdict, len(flow.sids)) == (Verdict.DROP, 15)
    assert flow.rules.overflowed == 15


def test_flowbits_from_setter_to_reader() -> None:
    rules = f"""
    alert http {ANY} (http.uri; content:"index"; flowbits:set,asked; flowbits:noalert; sid:1;)
    alert tcp {ANY} (flow:to_client; content:"hello"; flowbits:isset,asked; sid:2;)
    """
    asked = Flow(compiled(rules)).handshake()
    assert [asked.data(UP, GET), asked.data(DOWN, OK)] == ["accept", "accept 2"]
    other = Flow(compiled(rules)).handshake()
    assert [other.data(UP, EVIL), other.data(DOWN, OK)] == ["accept", "accept"]


def configured(text: str, config: str) -> RuleSet:
    """Rules with a threshold.config."""
    found = parse_threshold_config(config, "t.config", Variables())
    rules, warnings = found.apply(parse_rules(text, "test.rules", Variables()).signatures)
    assert found.errors == warnings == []
    return compile_ruleset(rules)


EACH = f"tcp {ANY} (flow:established,to_server; sid:1;)"
OF_1 = "gen_id 1, sig_id 1"
RATE = f"rate_filter {OF_1}, track by_src, count 2, seconds 10, timeout 5, new_action"


@pytest.mark.parametrize(
    ("rule", "config", "expected"),
    [
        # What is suppressed still acts.
        (f"drop {EACH}", f"suppress {OF_1}", ["drop"] * 4),
        (f"alert {EACH}", f"suppress {OF_1}, track by_src, ip 10.0.0.0/8", ["accept"] * 4),
        (f"alert {EACH}", f"suppress {OF_1}, track by_dst, ip 10.0.0.0/8", ["accept 1"] * 4),
        (f"alert {EACH}", f"suppress {OF_1}, track by_either, ip 198.51.100.7", ["accept"] * 4),
        (
            f"drop {EACH}",
            f"threshold {OF_1}, type limit, track by_src, count 1, seconds 10",
            ["drop 1", *["drop"] * 3],
        ),
        (
            f"alert {EACH}",
            f"event_filter {OF_1}, type threshold, track by_src, count 2, seconds 10",
            ["accept", "accept 1"] * 2,
        ),
        (f"alert {EACH}", f"{RATE} drop", ["accept 1", "accept 1", "drop 1", "drop 1"]),
        (f"alert {EACH}", f"{RATE} reject", ["accept 1", "accept 1", "reject 1", "reject 1"]),
        (f"drop {EACH}", f"{RATE} alert", ["drop 1", "drop 1", "accept 1", "accept 1"]),
        (f"drop {EACH}", f"{RATE} pass", ["drop 1", "drop 1", "accept", "accept"]),
    ],
)
def test_threshold_config(rule: str, config: str, expected: list[str]) -> None:
    flow = Flow(configured(rule, config)).handshake()
    assert [flow.packet(UP, established=True) for _ in range(4)] == expected
    flow.now += 20.0  # the first match behind the timeout is the rule's own again
    assert flow.packet(UP, established=True) == expected[0]


def test_a_rate_filter_says_so_and_the_alert_says_what_was_done() -> None:
    flow = Flow(configured(f"alert {EACH}", f"{RATE} drop")).handshake()
    steps = []
    for _ in range(3):
        flow.packet(UP, established=True)
        steps.append((flow.last.decision.reason, flow.last.alerts[0].action))
    assert steps == [("no_match", "allowed"), ("no_match", "allowed"), ("rate_filter", "blocked")]


def test_a_rate_filter_that_may_deny_holds_what_it_has_to_judge() -> None:
    rule = f'alert http {ANY} (http.uri; content:"/evil"; sid:1;)'
    config = f"rate_filter {OF_1}, track by_rule, count 1, seconds 60, timeout 60, new_action drop"
    rules = configured(rule, config)
    first, second = Flow(rules).handshake(), Flow(rules).handshake()
    assert first.data(UP, EVIL) == "accept 1"
    assert second.data(UP, EVIL[:20]) == "accept"
    assert second.held[UP] == 20
    assert second.data(UP, EVIL[20:]) == "drop! 1"
    assert Flow(configured(rule, f"suppress {OF_1}")).handshake().data(UP, EVIL) == "accept"


def test_threshold_limit_is_silent_but_still_drops() -> None:
    rules = f"drop tcp {ANY} (flow:established; threshold:type limit,track by_src,count 1,seconds 60; sid:1;)"
    flow = Flow(compiled(rules)).handshake()
    assert [flow.data(UP, b"x"), flow.data(UP, b"x")] == ["drop 1", "drop"]
    flow.now = 100
    assert flow.data(UP, b"x") == "drop 1"


def test_detection_filter_acts_after_count() -> None:
    rules = f"drop tcp {ANY} (flow:established; detection_filter:track by_flow,count 2,seconds 60; sid:1;)"
    flow = Flow(compiled(rules)).handshake()
    assert [flow.data(UP, b"x") for _ in range(4)] == ["accept", "accept", "drop 1", "drop 1"]


def test_hits_are_counted() -> None:
    rules = compiled(f"pass tcp {ANY} (flow:established; sid:1;)\nalert tcp {ANY} (flow:established; sid:2;)", "strict")
    flow = Flow(rules).handshake()
    flow.now = 5.0
    flow.data(UP, b"x")
    assert (rules.counts.hits, rules.counts.last, rules.hit_counts()) == ([1, 1], [5.0, 5.0], {"1:1": 1, "1:2": 1})


# -- streams ---------------------------------------------------------------------------------------------------------


def test_pattern_across_chunks() -> None:
    for cut in range(1, 6):
        flow = Flow(compiled(f'drop tcp {ANY} (content:"secret"; sid:1;)')).handshake()
        assert flow.data(UP, b"..secret"[: 2 + cut]) == "accept"
        assert flow.data(UP, b"..secret"[2 + cut :]) == "drop! 1"


@pytest.mark.parametrize("others", [0, 10])  # few patterns are searched one by one, many in a database
@pytest.mark.parametrize("cut", range(7))
def test_pattern_across_the_border_of_long_chunks(cut: int, others: int) -> None:
    """Nothing was found before it, so only the border and the new bytes are searched."""
    rules = "".join(f'drop tcp {ANY} (content:"another{sid}"; sid:{sid};)\n' for sid in range(2, 2 + others))
    flow = Flow(compiled(rules + f'drop tcp {ANY} (content:"secret"; sid:1;)')).handshake()
    for _ in range(3):
        assert flow.data(UP, bytes(5000)) == "accept"
    assert flow.data(UP, bytes(5000) + b"secret"[:cut]) == ("accept" if cut < 6 else "drop! 1")
    if cut < 6:
        assert flow.data(UP, b"secret"[cut:] + bytes(5000)) == "drop! 1"


def test_second_pattern_a_chunk_later() -> None:
    """The pattern that makes the rule worth trying is found with one chunk, the rest of the rule with a later one."""
    rules = compiled(f'drop tcp {ANY} (content:"long-first"; content:"then"; distance:0; content:"a"; sid:1;)')
    flow = Flow(rules).handshake()
    assert flow.data(UP, bytes(5000)) == "accept"
    assert flow.data(UP, bytes(3000) + b"long-first") == "accept"
    assert flow.data(UP, bytes(1000)) == "accept"
    assert flow.data(UP, b"a" + bytes(1000)) == "accept"
    assert flow.data(UP, b"then") == "drop! 1"
    late = Flow(rules).handshake()
    assert late.data(UP, bytes(3000) + b"long-first") == "accept"
    assert late.data(UP, bytes(2560)) == "accept"
    assert late.data(UP, b"athen") == "accept"  # more than a window behind


def test_one_byte_pattern_in_long_chunks() -> None:
    flow = Flow(compiled(f'drop tcp {ANY} (content:"x"; sid:1;)')).handshake()
    assert flow.data(UP, bytes(5000)) == "accept"
    assert flow.data(UP, bytes(5000)) == "accept"
    assert flow.data(UP, bytes(5000) + b"x") == "drop! 1"


def test_window_and_depth_bound_what_is_searched() -> None:
    rules = compiled(f'alert tcp {ANY} (content:"secret"; sid:1;)', stream_window=8, stream_depth=40)
    flow = Flow(rules).handshake()
    assert flow.data(UP, b"secret" + b"." * 4) == "accept 1"
    assert flow.data(UP, b"." * 10) == "accept"  # the window behind it holds "cret...."
    assert flow.data(UP, b"." * 14) == "accept"
    assert flow.data(UP, b"secret" * 3) == "accept 1"  # up to offset 40
    assert flow.data(UP, b"secret") == "accept"
    assert flow.data(DOWN, b"secret") == "accept 1"  # the other direction has its own


def test_anchored_patterns_count_from_the_start_of_the_stream() -> None:
    flow = Flow(compiled(f'drop tcp {ANY} (content:"ab"; startswith; sid:1;)', stream_window=4)).handshake()
    assert flow.data(UP, b"x" * 10) == "accept"
    assert flow.data(UP, b"abc") == "drop 1"  # a packet that starts with it, not the stream
    other = Flow(compiled(f'drop tcp {ANY} (content:"ab"; startswith; sid:1;)')).handshake()
    assert other.data(UP, b"a") == "accept"
    assert other.data(UP, b"bc") == "drop! 1"


# -- holding ---------------------------------------------------------------------------------------------------------

DROP_EVIL = f'drop http {ANY} (http.uri; content:"/evil"; sid:1;)'


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_not_one_byte_of_the_request_leaves_before_its_verdict(size: int) -> None:
    flow = Flow(compiled(DROP_EVIL)).handshake()
    sent = 0
    for at in range(0, len(EVIL), size):
        said = flow.data(UP, EVIL[at : at + size])
        sent = min(at + size, len(EVIL))
        if said != "accept":
            break
        assert flow.held == (sent, 0)
    assert (said, sent) == ("drop! 1", len(EVIL))


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_a_good_request_is_let_go_when_judged(size: int) -> None:
    flow = Flow(compiled(DROP_EVIL)).handshake()
    for at in range(0, len(GET), size):
        assert flow.data(UP, GET[at : at + size]) == "accept"
    assert flow.held == (0, 0)
    assert flow.data(UP, GET[:9]) == "accept"
    assert flow.held == (9, 0)  # the next one


def test_nothing_is_held_when_nothing_could_be_dropped() -> None:
    flow = Flow(compiled(DROP_EVIL.replace("drop", "alert"))).handshake()
    assert flow.data(UP, EVIL[:20]) == "accept"
    assert flow.held == (0, 0)
    assert flow.data(UP, EVIL[20:]) == "accept 1"


def test_body_is_held_when_a_rule_could_drop_it() -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    flow = Flow(compiled(f'drop http {ANY} (http.request_body; content:"secret"; sid:1;)')).handshake()
    assert flow.data(UP, post + b"1234") == "accept"
    assert flow.held == (len(post) + 4, 0)
    assert flow.data(UP, b"secret") == "drop! 1"
    other = Flow(compiled(f'drop http {ANY} (http.request_body; content:"secret"; sid:1;)')).handshake()
    other.data(UP, post + b"1234")
    assert other.data(UP, b"567890") == "accept"
    assert other.held == (0, 0)


def test_absence_in_a_body_is_known_at_its_end() -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
    flow = Flow(compiled(f'alert http {ANY} (http.request_body; content:!"token"; sid:1;)')).handshake()
    assert flow.data(UP, post + b"123") == "accept"
    assert flow.data(UP, b"45678") == "accept 1"


def test_hold_expired_lets_the_bytes_go() -> None:
    flow = Flow(compiled(DROP_EVIL)).handshake()
    flow.data(UP, EVIL[:12])
    outcome = flow.inspector.hold_expired(1.0)
    assert outcome.decision.verdict is Verdict.ACCEPT
    assert flow.held == (0, 0)
    flow.data(UP, EVIL[12:20])
    assert flow.held == (0, 0)  # the same unit
    assert flow.data(UP, EVIL[20:]) == "drop! 1"  # its end is judged all the same


def test_hold_expired_releases_and_detection_goes_on() -> None:
    flow = Flow(compiled(DROP_EVIL)).handshake()
    assert flow.data(UP, EVIL[:2]) == "accept"
    assert flow.held == (2, 0)
    assert flow.inspector.hold_expired(1.0).decision.verdict is Verdict.ACCEPT
    assert flow.held == (0, 0)
    assert flow.data(UP, EVIL[2:]) == "drop! 1"


def test_close_judges_and_releases() -> None:
    flow = Flow(compiled(DROP_EVIL)).handshake()
    flow.data(UP, EVIL[:12])
    assert flow.inspector.close(UP, 1.0).decision.verdict is Verdict.ACCEPT
    assert flow.held == (0, 0)


def test_too_much_held_drops_the_flow() -> None:
    flow = Flow(compiled(DROP_EVIL, hold_bytes=100)).handshake()
    assert flow.data(UP, b"GET /" + b"a" * 90) == "accept"
    assert flow.data(UP, b"a" * 90) == "drop!"
    assert flow.last.decision.reason == "hold_overflow"


def test_a_parser_that_gives_up_drops_the_flow_only_if_a_rule_could_have() -> None:
    junk = b"GET /" + b"a" * 200_000
    dropping = Flow(compiled(DROP_EVIL)).handshake()
    assert dropping.data(UP, junk) == "drop!"
    assert dropping.last.decision.reason == "app_layer_error"
    assert Flow(compiled(DROP_EVIL.replace("drop", "alert"))).handshake().data(UP, junk) == "accept"


# -- default actions -------------------------------------------------------------------------------------------------

PASS_GOOD = f'pass http {ANY} (http.host; content:"good"; sid:1;)'
GOOD = GET.replace(b"www", b"good")


def test_drop_strict_drops_the_first_packet() -> None:
    assert Flow(compiled(PASS_GOOD, "strict", ["drop_strict"])).packet(UP) == "drop"
    passed = Flow(compiled(f"pass tcp {ANY} (sid:1;)", "strict", ["drop_strict"]))
    assert passed.packet(UP) == "accept!"


def test_drop_established() -> None:
    rules = compiled(PASS_GOOD, "strict", ["drop_established", "alert_established"])
    flow = Flow(rules)
    assert [flow.packet(UP), flow.packet(DOWN), flow.packet(UP)] == ["accept"] * 3
    assert flow.packet(DOWN, established=True) == "accept"
    assert flow.data(UP, GET) == "drop! 4"
    alert, decision = flow.last.alerts[0], flow.last.decision
    assert (alert.action, alert.rule.ref.msg) == ("blocked", "aws:alert_established action")
    assert (decision.reason, decision.rule and decision.rule.id) == ("default_drop_established", 4)
    assert Flow(rules).handshake().data(UP, GOOD) == "accept!"
    assert rules.hit_counts() == {"1:1": 1, "drop_established": 1, "alert_established": 1}


def test_drop_established_does_not_wait_for_the_rest_of_a_request() -> None:
    flow = Flow(compiled(PASS_GOOD, "strict", ["drop_established"])).handshake()
    assert flow.data(UP, GOOD[:20]) == "drop!"
    assert flow.sids == []  # without its alert it is silent


@pytest.mark.parametrize("name", ["drop_established_app_layer", "drop_established_app_layer_to_server"])
@pytest.mark.parametrize("size", [1, 5, 200])
def test_app_layer_defaults_wait_for_the_host(name: str, size: int) -> None:
    for request, expected in ((GOOD, "accept!"), (GET, "drop!")):
        flow = Flow(compiled(PASS_GOOD, "strict", [name])).handshake()
        said = [flow.data(UP, request[at : at + size]) for at in range(0, len(request), size)]
        assert said == ["accept"] * (len(said) - 1) + [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("drop_established", "accept"),
        ("drop_established_app_layer", "drop!"),
        ("drop_established_app_layer_to_server", "accept"),
    ],
)
def test_a_server_that_speaks_first(name: str, expected: str) -> None:
    flow = Flow(compiled(PASS_GOOD, "strict", [name])).handshake()
    assert flow.data(DOWN, b"SSH-2.0-OpenSSH_9.2\r\n") == expected


def test_defaults_on_udp_mean_every_packet() -> None:
    flow = Flow(compiled(f'pass udp {ANY} (content:"good"; sid:1;)', "strict", ["drop_established"]), UDP)
    assert [flow.data(UP, b"bad"), flow.data(DOWN, b"bad"), flow.data(UP, b"good")] == ["drop", "drop", "accept"]


def test_alert_alone_is_logged_once_per_direction() -> None:
    flow = Flow(compiled("", "strict", ["alert_strict"]))
    assert [flow.packet(UP), flow.packet(DOWN), flow.packet(UP), flow.data(UP, b"x")] == [
        "accept 2",
        "accept 2",
        "accept",
        "accept",
    ]


def test_unknown_protocol_under_app_layer_default() -> None:
    flow = Flow(compiled(PASS_GOOD, "strict", ["drop_established_app_layer_to_server"])).handshake()
    assert flow.packet(UP, established=True) == "accept"  # an acknowledgement says nothing
    assert flow.data(UP, b"\x99\x98\x97\x96nobody's protocol") == "drop!"


def client_hello(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


PASS_SNI = f'pass tls {ANY} (tls.sni; dotprefix; content:".good.example"; endswith; sid:1;)'


@pytest.mark.parametrize("size", [1, 100, 5000])
@pytest.mark.parametrize(("name", "expected"), [("www.good.example", "accept!"), ("evil.example", "drop!")])
def test_segmented_client_hello_waits_for_its_name(name: str, expected: str, size: int) -> None:
    hello = client_hello(name)
    flow = Flow(compiled(PASS_SNI, "strict", ["drop_established_app_layer_to_server"]), port=443).handshake()
    for at in range(0, len(hello), size):
        said = flow.data(UP, hello[at : at + size])
        if at + size < len(hello):
            assert (said, flow.held) == ("accept", (at + size, 0))
    assert said == expected


def test_http2_requests_are_transactions_of_their_own() -> None:
    def head(stream: int, path: str) -> bytes:
        block = encoder.encode([(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", path)])
        return bytes([0, 0, len(block), 1, 5, 0, 0, 0, stream, *block])

    encoder = hpack.Encoder()
    flow = Flow(compiled(DROP_EVIL + f'\nalert http2 {ANY} (http.uri; content:"/"; sid:2;)', "strict")).handshake()
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    assert flow.data(UP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings) == "accept"
    assert flow.data(UP, head(1, "/a") + head(3, "/b")) == "accept 2 2"
    evil = head(5, "/evil")
    assert flow.data(UP, evil[:12]) == "accept"
    assert flow.held == (12, 0)
    assert flow.data(UP, evil[12:]) == "drop! 1 2"
    assert list(flow.last.alerts[0].tx) == ["http"]


# -- decrypted flows -------------------------------------------------------------------------------------------------

FACTS = TlsFacts(sni="www.example.com", alpn=(b"http/1.1",), version=0x0304, ja3="0" * 32, ja4="t13d")


def decrypted(rules: str, order: str = "strict", defaults: Sequence[str] = ()) -> Flow:
    flow = Flow(compiled(rules, order, defaults), decrypted=True, port=443)
    assert flow.packet(UP) == "accept"
    return flow


def test_tls_and_http_rules_are_judged_together() -> None:
    rules = f"""
    drop http {ANY} (http.uri; content:"/evil"; sid:1;)
    pass tls {ANY} (tls.sni; content:"example.com"; sid:2;)
    """
    flow = decrypted(rules)
    assert flow._say(flow.inspector.tls_hello(FACTS, 0.0)) == "accept"
    assert flow.data(UP, EVIL[:10]) == "accept"  # the name alone would let it pass: not before the request is known
    assert flow.held == (10, 0)
    assert flow.data(UP, EVIL[10:]) == "drop! 1"
    good = decrypted(rules)
    good.inspector.tls_hello(FACTS, 0.0)
    assert good.data(UP, GET) == "accept!"


SERVER_RULES = f"""
    drop tls {ANY} (tls.cert_subject; content:"CN=bad.example"; sid:1;)
    alert tls {ANY} (tls.subjectaltname; content:"good.example"; sid:2;)
    alert tls {ANY} (flow:to_client; tls.cert_issuer; content:"O=Test"; tls_cert_notafter:>2000; sid:3;)
    alert tls {ANY} (flow:to_client; tls.certs; content:"good.example"; tls.cert_chain_len:1; sid:4;)
    alert tls {ANY} (tls.cert_subject; content:!"bad"; sid:5;)
"""


@pytest.mark.parametrize("holding", [False, True])
def test_rules_see_the_certificate_of_the_server_behind_a_decrypted_flow(holding: bool) -> None:
    bad = decrypted(SERVER_RULES)
    assert bad._say(bad.inspector.tls_hello(FACTS, 0.0, holding, server_follows=True)) == "accept"
    said = bad._say(bad.inspector.tls_server([certificate("bad.example")], 0.0))
    assert said == ("drop! 1 3" if holding else "accept")
    assert bad.data(UP, GET).startswith("drop!")
    good = decrypted(SERVER_RULES)
    good.inspector.tls_hello(FACTS, 0.0, holding, server_follows=True)
    said = good._say(good.inspector.tls_server([certificate("good.example")], 0.0))
    assert said == ("accept 2 3 4 5" if holding else "accept")
    assert good.data(UP, GET) == ("accept" if holding else "accept 2 3 4 5")
    assert good.data(DOWN, OK) == "accept"


def test_nothing_is_said_about_a_certificate_nobody_has_shown() -> None:
    flow = decrypted(SERVER_RULES)
    flow.inspector.tls_hello(FACTS.name_only(), 0.0)
    assert flow.data(UP, GET) == "accept"
    assert flow.data(DOWN, OK) == "accept"
    odd = decrypted(SERVER_RULES)
    odd.inspector.tls_hello(FACTS, 0.0, server_follows=True)
    odd.inspector.tls_server([b"no certificate"], 0.0)
    assert odd.data(UP, GET) == "accept"


def certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), 5, start, start + timedelta(days=90))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_session_holding_judges_the_name_first() -> None:
    flow = decrypted(
        f'drop http {ANY} (http.uri; content:"/evil"; sid:1;)\npass tls {ANY} (tls.sni; content:"example"; sid:2;)'
    )
    assert flow._say(flow.inspector.tls_hello(FACTS, 0.0, session_holding=True)) == "accept!"
    assert flow.data(UP, EVIL) == "accept!"  # a pass on the name is a pass (AWS)
    bad = decrypted(f'reject tls {ANY} (tls.sni; content:"example"; sid:1;)')
    assert bad._say(bad.inspector.tls_hello(FACTS, 0.0, session_holding=True)) == "reject! 1"


@pytest.mark.parametrize("state", ["established", "not_established"])
def test_a_held_session_is_established_on_the_clients_side_only(state: str) -> None:
    """AWS: the ClientHello counts as not established; domain lists, which ask for established, decide all the same."""
    held = decrypted(f'drop tls {ANY} (flow:to_server,{state}; tls.sni; content:"example"; sid:1;)')
    assert held._say(held.inspector.tls_hello(FACTS, 0.0, session_holding=True)) == "drop! 1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('tls.sni; content:"www.example.com"; startswith; endswith', "accept 1"),
        ('tls.sni; dotprefix; content:".example.com"; endswith', "accept 1"),
        ('tls.sni; content:"other"', "accept"),
        ("tls.version:1.3", "accept 1"),
        ("ssl_state:client_hello", "accept 1"),
        ('ja3.hash; content:"00000000000000000000000000000000"', "accept 1"),
        ('ja4.hash; content:"t13d"', "accept 1"),
        ('tls.alpn; content:"http/1.1"', "accept 1"),
    ],
)
def test_tls_buffers_of_a_decrypted_flow(options: str, expected: str) -> None:
    flow = decrypted(f"alert tls {ANY} ({options}; sid:1;)")
    flow.inspector.tls_hello(FACTS, 0.0)
    assert flow.data(UP, GET) == expected
    if flow.sids:
        assert flow.last.alerts[0].tx["tls"]["sni"] == "www.example.com"  # type: ignore[index]


def test_a_decrypted_flow_is_tls_and_what_it_carries() -> None:
    flow = decrypted(
        f"""
        drop tcp {ANY} (app-layer-protocol:!tls; sid:1;)
        drop tcp {ANY} (app-layer-protocol:!http; sid:2;)
        alert tls {ANY} (sid:3;)
        alert http {ANY} (sid:4;)
        """
    )
    flow.inspector.tls_hello(FACTS, 0.0)
    assert flow.data(UP, GET) == "accept 3 4"
    assert flow.inspector.app_proto == "http"


def test_defaults_wait_on_plaintext() -> None:
    flow = decrypted(PASS_GOOD, defaults=["drop_established"])
    assert flow.data(UP, GOOD[:10]) == "accept"  # how TLS records are cut says nothing
    assert flow.held == (10, 0)
    assert flow.data(UP, GOOD[10:]) == "accept!"
    other = decrypted(PASS_GOOD, defaults=["drop_established"])
    assert other.data(UP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00") == "accept"
    assert other.inspector.app_proto == "http2"


def test_facts_from_a_hello() -> None:
    class Hello:
        sni = None
        alpn = (b"h2",)
        versions = (0x7A7A, 0x0304, 0x0303)  # GREASE first
        legacy_version = 0x0303
        fingerprints = Fingerprints(ja3="a", ja3_string="b", ja4="c")

    assert TlsFacts.from_hello(Hello()) == TlsFacts("", (b"h2",), 0x0304, "a", "b", "c")


# -- finished --------------------------------------------------------------------------------------------------------


def test_finished_at_once_without_rules() -> None:
    flow = Flow(compiled(""))
    flow.packet(UP)
    assert flow.inspector.finished


def test_finished_when_address_rules_have_seen_both_directions() -> None:
    flow = Flow(compiled(f"alert ip {ANY} (sid:1;)"))
    assert [(flow.packet(direction), flow.inspector.finished) for direction in (UP, DOWN)] == [
        ("accept 1", False),
        ("accept 1", True),
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ('alert tcp any any -> any any (content:"x"; sid:1;)', [False, False, True]),
        ('alert tcp any any -> any any (content:"x"; flow:to_server; sid:1;)', [False, True, True]),
        ('alert tcp any any -> any 81 (content:"x"; sid:1;)', [True, True, True]),  # does not cover the flow
        ("alert tcp any any -> any any (flow:established; sid:1;)", [False, False, False]),
        ("pass tcp any any -> any any (flow:not_established; sid:1;)", [True, True, True]),
    ],
)
def test_finished_when_nothing_can_match(rule: str, expected: list[bool]) -> None:
    flow = Flow(compiled(rule, stream_depth=10)).handshake()
    states = []
    for direction, data in ((UP, b"12345"), (UP, b"67890"), (DOWN, b"1234567890")):
        flow.data(direction, data)
        states.append(flow.inspector.finished)
    assert states == expected


def test_finished_after_pass_and_after_drop() -> None:
    for action in ("pass", "drop"):
        flow = Flow(compiled(f'{action} http {ANY} (http.uri; content:"/"; sid:1;)')).handshake()
        flow.data(UP, GET)
        assert flow.inspector.finished
        assert flow.held == (0, 0)


def test_not_finished_while_a_default_action_could_come() -> None:
    flow = Flow(compiled("", "strict", ["drop_established"])).handshake()
    flow.data(DOWN, b"x")
    assert not flow.inspector.finished


def test_ssh_is_over_after_the_key_exchange() -> None:
    keys_follow = b"\0\0\0\x0c\x0a\x15" + bytes(10)  # RFC 4253, section 7.3: NEWKEYS
    flow = Flow(compiled(f'alert ssh {ANY} (ssh.software; content:"Bad"; sid:1;)')).handshake()
    flow.data(DOWN, b"SSH-2.0-OpenSSH_9.2\r\n" + keys_follow)
    flow.data(UP, b"SSH-2.0-OpenSSH_9.2\r\n")
    assert not flow.inspector.finished
    flow.data(UP, keys_follow)
    assert flow.inspector.finished


@pytest.mark.parametrize("size", [1, 3, 7, 30])
def test_a_payload_around_a_transaction_is_searched_across_segments(size: int) -> None:
    rules = f"""
        alert http {ANY} (content:"needle across"; http.stat_code; content:"200"; sid:1;)
        alert http {ANY} (content:"needle across"; http.stat_code; content:"404"; sid:2;)
    """
    body = b"." * 40 + b"needle across" + b"." * 40
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    flow = Flow(compiled(rules)).handshake()
    got = []
    for _ in range(2):  # the second finds the first one's still in the window, and once
        assert flow.data(UP, GET) == "accept"
        for at in range(0, len(answer), size):
            flow.data(DOWN, answer[at : at + size])
            got += flow.sids
    assert got == [1, 1]


# -- the request line ------------------------------------------------------------------------------------------------


def test_in_a_capture_rules_on_the_request_line_do_not_wait_for_its_head() -> None:
    text = f"""
        alert http {ANY} (http.uri; content:"/evil"; sid:1;)
        alert http {ANY} (http.uri; content:"/evil"; http.host; content:"example"; sid:2;)
        alert http {ANY} (http.uri; content:"/evil"; http.referer; absent; sid:3;)
        alert http {ANY} (http.host; content:"example"; sid:4;)
    """
    rules = compile_ruleset(parse_rules(text, "test.rules", Variables()).signatures, captures=True)
    inspector = Inspector(rules, FlowFacts(1, TCP, CLIENT, SERVER, 40000, 80), 0.0, watching=True)
    line, _, rest = EVIL.partition(b"\r\n")
    seen = []
    for piece in (line, b"\r\n", rest):
        inspector.absorb(UP, piece)
        outcome = inspector.inspect(Segment(UP, True, piece, b"", decode(b""), 0.0))
        seen.append([alert.rule.sid for alert in outcome.alerts])
    assert seen == [[], [1], [2, 3, 4]]


def test_live_a_pass_on_the_request_line_waits_for_the_rest_of_the_head() -> None:
    rules = f"""
        drop http {ANY} (http.host; content:"www.example.com"; sid:1;)
        pass http {ANY} (http.uri; content:"/evil"; sid:2;)
    """
    flow = Flow(compiled(rules, "strict")).handshake()
    line, _, rest = EVIL.partition(b"\r\n")
    assert flow.data(UP, line + b"\r\n") == "accept"
    assert flow.held == (len(line) + 2, 0)
    assert flow.data(UP, rest) == "drop! 1"


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_transactions_are_pruned() -> None:
    flow = Flow(compiled(f'alert http {ANY} (http.uri; content:"index"; sid:1;)')).handshake()
    for _ in range(50):
        assert flow.data(UP, GET) == "accept 1"
        flow.data(DOWN, OK)
    layer = flow.inspector._layers[0]
    assert layer.parser is not None
    assert (len(layer.parser.transactions), len(layer._states)) == (0, 0)


def test_more_transactions_than_the_limit() -> None:
    dropping = Flow(compiled(DROP_EVIL, max_transactions=3)).handshake()
    assert dropping.data(UP, GET * 5) == "drop!"
    assert dropping.last.decision.reason == "transaction_overflow"
    alerting = Flow(compiled(DROP_EVIL.replace("drop", "alert"), max_transactions=3)).handshake()
    assert alerting.data(UP, GET * 5) == "accept"
    assert len(alerting.inspector._layers[0].parser.transactions) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(6))
def test_no_bytes_raise(seed: int) -> None:
    rng = random.Random(seed)
    rules = compiled(
        f"""
        drop http {ANY} (http.uri; content:"zzz"; sid:1;)
        drop http {ANY} (file.data; content:"zzz"; sid:2;)
        alert tls {ANY} (tls.sni; content:"zzz"; sid:3;)
        alert dns {ANY} (dns.query; content:"zzz"; sid:4;)
        alert tcp {ANY} (content:"zzz"; sid:5;)
        pass tcp {ANY} (app-layer-protocol:ssh; sid:6;)
        """,
        "strict",
        ["drop_established_app_layer"],
    )
    seeds = [
        GET,
        OK,
        DNS,
        b"\x16\x03\x01\x00\x50\x01\x00\x00\x4c\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ]
    for _ in range(150):
        flow = Flow(rules, rng.choice([TCP, UDP]), decrypted=rng.random() < 0.3)
        for _ in range(rng.randint(1, 6)):
            data = bytearray(rng.choice(seeds) * rng.randint(1, 3))
            for _ in range(rng.randint(0, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            direction = rng.choice([UP, DOWN])
            flow.data(direction, bytes(data[: rng.randint(1, len(data))]))
            assert all(held >= 0 for held in flow.held)
            if rng.random() < 0.1:
                flow.inspector.hold_expired(1.0)
            if rng.random() < 0.1:
                flow.inspector.close(direction, 1.0)


# -- a protocol inside another one -------------------------------------------------------------------------------------

UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2C = UPGRADE.replace(b"websocket", b"h2c"), SWITCHED.replace(b"WebSocket", b"h2c")


def masked(first: int, payload: bytes) -> bytes:
    key = b"\1\2\3\4"
    return bytes([first, 0x80 | len(payload)]) + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


@pytest.mark.parametrize("size", [1, 1000])
def test_websocket_goes_on_after_the_upgrade(size: int) -> None:
    rules = f"""
        alert websocket {ANY} (websocket.payload; content:"evil"; sid:1;)
        alert websocket {ANY} (websocket.opcode:text; websocket.flags:fin,!comp; websocket.mask:0x01020304; sid:2;)
        alert websocket {ANY} (websocket.opcode:ping; sid:3;)
        alert tcp {ANY} (flow:to_client; app-layer-protocol:http,original; app-layer-protocol:websocket; sid:4;)
        drop http {ANY} (http.uri; content:"/other"; sid:5;)
    """
    flow = Flow(compiled(rules)).handshake()
    got: list[int] = []
    for direction, data in ((UP, UPGRADE), (DOWN, SWITCHED), (UP, masked(0x81, b"some evil")), (DOWN, b"\x89\0")):
        for at in range(0, len(data), size):
            flow.data(direction, data[at : at + size])
            got += flow.sids
    assert sorted(got) == [1, 2, 3, 4]
    assert flow.inspector.app_proto == "websocket"


def test_another_upgrade_is_told_by_its_bytes() -> None:
    rules = f"alert tcp {ANY} (flow:to_server; app-layer-protocol:http,original; app-layer-protocol:http2; sid:1;)"
    flow = Flow(compiled(rules)).handshake()
    assert [flow.data(d, data) for d, data in zip((UP, DOWN, UP), (*H2C, PREFACE), strict=True)] == [
        "accept",
        "accept",
        "accept 1",
    ]


@pytest.mark.parametrize("size", [1, 1000])
def test_the_request_that_asked_for_http2_is_its_first(size: int) -> None:
    rules = f"""
        alert http2 {ANY} (http.uri; content:"/chat"; http.host; content:"a"; sid:1;)
        alert http2 {ANY} (http.stat_code; content:"404"; sid:2;)
        alert http2 {ANY} (http2.settings:SETTINGS_ENABLE_PUSH=0; sid:3;)
        alert http2 {ANY} (http2.settings:SETTINGS_MAX_FRAME_SIZE; sid:4;)
    """
    asks = H2C[0].replace(b"\r\n\r\n", b"\r\nHTTP2-Settings: AAIAAAAA\r\n\r\n")
    answer = HeadersFrame(1, Encoder().encode([(":status", "404")]), flags=["END_HEADERS", "END_STREAM"]).serialize()
    flow = Flow(compiled(rules)).handshake()
    got: list[int] = []
    for direction, data in ((UP, asks), (DOWN, H2C[1] + SettingsFrame(0).serialize() + answer), (UP, PREFACE)):
        for at in range(0, len(data), size):
            flow.data(direction, data[at : at + size])
            got += flow.sids
    assert sorted(got) == [1, 2, 3]


@pytest.mark.parametrize(
    ("condition", "frame"),
    [
        ("http2.frametype:goaway", GoAwayFrame(0)),
        ("http2.frametype:7", GoAwayFrame(0)),
        ("http2.errorcode:enhance_your_calm", GoAwayFrame(0, error_code=11)),
        ("http2.errorcode:>7", RstStreamFrame(1, error_code=8)),
        ("http2.priority:>250", PriorityFrame(1, stream_weight=255)),
        ("http2.window:1-9", WindowUpdateFrame(0, window_increment=5)),
        ("http2.settings:SETTINGS_INITIAL_WINDOW_SIZE>1000", SettingsFrame(0, settings={4: 1001})),
    ],
)
def test_a_frame_is_judged_before_it_leaves(condition: str, frame: Frame) -> None:
    """Live, however it is cut; the frames before it go on."""
    rules = compiled(f"drop http2 {ANY} ({condition}; sid:1;)")
    request = HeadersFrame(1, Encoder().encode([(":method", "GET"), (":path", "/")]), flags=["END_HEADERS"]).serialize()
    before = PREFACE + SettingsFrame(0, settings={4: 1000}).serialize() + request
    wire = bytes(frame.serialize())
    for cut in range(1, len(wire)):
        flow = Flow(rules).handshake()
        assert flow.data(UP, before) == "accept"
        assert flow.held == (0, 0)
        assert flow.data(UP, wire[:cut]) == "accept"
        assert flow.held == (cut, 0)
        assert flow.data(UP, wire[cut:]) == "drop! 1"


def test_frames_do_not_end_the_wait_for_a_request() -> None:
    """A default action on what the application says waits for a request; its settings are none."""
    rules = f"""
        pass http2 {ANY} (http.host; content:"good"; sid:1;)
        alert http2 {ANY} (http2.frametype:settings; sid:2;)
    """
    flow = Flow(compiled(rules, "strict", ["drop_established_app_layer"])).handshake()
    assert flow.data(UP, PREFACE + SettingsFrame(0, settings={4: 1000}).serialize()) == "accept 2"
    fields = [(":method", "GET"), (":authority", "good"), (":path", "/")]
    request = HeadersFrame(1, Encoder().encode(fields), flags=["END_HEADERS"]).serialize()
    assert flow.data(UP, request) == "accept!"
    assert flow.inspector.transactions == []


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("http,to_server", True),
        ("ssh,to_client", True),
        ("http,to_client", False),
        ("!http,to_client", True),
        ("ssh,either", True),
        ("!ssh,either", False),
        ("tls,either", False),
        ("http,original", False),
    ],
)
def test_what_each_side_speaks(test: str, expected: bool) -> None:
    flow = Flow(compiled(f"alert tcp {ANY} (flow:to_client; app-layer-protocol:{test}; sid:1;)")).handshake()
    flow.data(UP, GET)
    flow.packet(DOWN, established=True)
    assert flow.data(DOWN, b"SSH-2.0-OpenSSH\r\n") == ("accept 1" if expected else "accept")


def test_a_side_that_says_nothing_known_is_not_judged_by_its_protocol() -> None:
    flow = Flow(compiled(f"alert tcp {ANY} (app-layer-protocol:http; sid:1;)")).handshake()
    assert flow.data(UP, GET) == "accept 1"
    assert [flow.data(DOWN, b"\xff\xff\xff\xff\xff\xff\xff\xff") for _ in range(2)] == ["accept"] * 2


def test_dns_rules_see_dns_over_https() -> None:
    query = bytes(DNSRecord.question("blocked.example").pack())
    path = "/q?dns=" + urlsafe_b64encode(query).decode().rstrip("=")
    fields = [(":method", "GET"), (":path", path), ("accept", "application/dns-message")]
    frame = HeadersFrame(1, Encoder().encode(fields), flags=["END_HEADERS", "END_STREAM"]).serialize()
    rules = f"""
        alert http2 {ANY} (http.method; content:"GET"; sid:2;)
        alert tcp {ANY} (app-layer-protocol:dns,exact; sid:3;)
        drop dns {ANY} (dns.query; content:"blocked"; sid:1;)
    """
    flow = Flow(compiled(rules, "strict")).handshake()
    assert flow.data(UP, PREFACE + SettingsFrame(0).serialize() + frame) == "drop! 2 1"
    assert flow.inspector.app_proto == "doh2"


# -- the slow twin ---------------------------------------------------------------------------------------------------


class SlowInspector:
    """Every rule against everything, every time: no groups, no patterns, no caches. Alerts and decisions only."""

    def __init__(self, rules: Sequence[Signature], ports: tuple[int, int], window: int, depth: int) -> None:
        self.rules = rules
        self.ports = ports
        self.window, self.depth = window, depth
        self.detector: Detector | None = Detector()
        self.early: list[tuple[Direction, bytes]] = []
        self.proto = ""
        self.parser: Any = None
        self.stream = [b"", b""]
        self.packets = [0, 0]
        self.bits: set[str] = set()
        self.progress: dict[tuple[int, Direction], int] = {}
        self.matched: dict[tuple[int, int, Direction], set[int]] = {}  # (tx, rule, side) -> buffers that matched
        self.done: set[tuple[int, int, Direction]] = set()
        self.final = [False, False]
        self.listener: Detector | None = None  # of the side that has not told the protocol
        self.verdict = ""

    def inspect(self, direction: Direction, established: bool, data: bytes) -> tuple[str, list[int]]:
        if self.verdict:
            return self.verdict, []
        self._parse(direction, data)
        start = max(len(self.stream[direction]) - self.window, 0)
        before = len(self.stream[direction])
        room = max(self.depth - before, 0)
        new = data[:room]
        self.stream[direction] += new
        window = self.stream[direction][start:] if new else b""
        first = self.packets[direction] == 0
        self.packets[direction] += 1
        final_now = not self.final[direction] and self._final(direction)
        matches: list[tuple[int, int, bool]] = []  # rank, tx, flow
        for kinds in (
            {RuleType.IP_ONLY},
            {RuleType.LIKE_IP_ONLY, RuleType.PKT, RuleType.PKT_STREAM, RuleType.STREAM},
            {RuleType.APP_LAYER},
        ):
            for rank, rule in enumerate(self.rules):
                kind = rule.rule_type
                if kind not in kinds or not self._applies(rule, direction, established):
                    continue
                if kind is RuleType.IP_ONLY:
                    if first:
                        self._match(matches, rank, -1, True)
                elif kind in (RuleType.LIKE_IP_ONLY, RuleType.PKT):
                    if self._payload(rule, data):
                        self._match(matches, rank, -1, kind is RuleType.LIKE_IP_ONLY)
                elif kind is RuleType.APP_LAYER or (
                    window and (start == 0 or kind is RuleType.STREAM) and self._payload(rule, window)
                ):
                    self._match(matches, rank, -1, True)
                elif kind is RuleType.PKT_STREAM and self._payload(rule, data):
                    self._match(matches, rank, -1, False)
        self._transactions(matches, established, window or data)
        if final_now:
            self.final[direction] = True
            for rank, rule in enumerate(self.rules):
                if rule.rule_type is RuleType.PD_ONLY and self._applies(rule, direction, established):
                    self._match(matches, rank, -1, True)
        return self._carry_out(sorted(matches))

    def _final(self, direction: Direction) -> bool:
        if self.detector is not None:
            return self.detector.final_for(direction)
        return self.listener is None or self.told is direction

    def _listen(self, direction: Direction, data: bytes) -> None:
        if self.listener is None or direction is self.told:
            return
        name = self.listener.feed(direction, data)
        if name is not None or self.listener.final_for(direction):
            self.listener = None
            if name in (None, "failed") and self.proto in recognised(direction):
                self.final[direction] = True

    def _parse(self, direction: Direction, data: bytes) -> None:
        if not data:
            return
        self._listen(direction, data)
        if self.detector is None:
            if self.parser is not None:
                self.parser.feed(direction, data)
            return
        self.early.append((direction, data))
        name = self.detector.feed(direction, data)
        if name is None:
            return
        self.detector = None
        if name == "failed":
            return
        self.proto, self.told, self.listener = name, direction, Detector()
        early = b"".join(data for which, data in self.early if which is not direction)
        if early:
            self._listen(direction.reply, early)
        if name in PARSERS:
            self.parser = PARSERS[name](SMALL.app, False)
            for side in (UP, DOWN):
                early = b"".join(data for which, data in self.early if which is side)
                if early:
                    self.parser.feed(side, early)

    def _applies(self, rule: Signature, direction: Direction, established: bool) -> bool:
        source, destination = self.ports if direction is UP else self.ports[::-1]
        if rule.direction not in (None, direction):
            return False
        if rule.flow.established not in (None, established):
            return False
        if not (
            (rule.source_port is None or rule.source_port(source))
            and (rule.destination_port is None or rule.destination_port(destination))
        ):
            return False
        if rule.app_proto and self.proto not in covered_protocols(rule.app_proto):
            return False
        for name, negated, _ in rule.app_layer_protocols:
            final = self.detector is None or self.detector.final_for(direction)
            if (self.proto in covered_protocols(name)) == negated or (negated and not final):
                return False
        return all(any(name in self.bits for name in op.names) == (op.op == "isset") for op in rule.flowbit_checks)

    @staticmethod
    def _payload(rule: Signature, data: bytes) -> bool:
        return all(match_buffer(match, data, {}) for match in rule.buffers if match.buffer == "payload")

    def _match(self, matches: list[tuple[int, int, bool]], rank: int, tx: int, flow: bool) -> None:
        matches.append((rank, tx, flow))
        for op in self.rules[rank].flowbit_sets:
            self.bits.update(op.names)

    def _transactions(self, matches: list[tuple[int, int, bool]], established: bool, payload: bytes) -> None:
        for tx in self.parser.transactions if self.parser is not None else ():
            for side in (UP, DOWN):
                progress = tx.progress(side)
                if progress == 0 or progress == self.progress.get((tx.id, side)):
                    continue
                self.progress[tx.id, side] = progress
                for rank, rule in enumerate(self.rules):
                    key = (tx.id, rank, side)
                    if rule.rule_type is not RuleType.APP_TX or key in self.done:
                        continue
                    if self._applies(rule, side, established) and self._tx_matches(rule, tx, side, payload):
                        self.done.add(key)
                        self._match(matches, rank, tx.id, True)

    def _tx_matches(self, rule: Signature, tx: Any, side: Direction, payload: bytes) -> bool:
        return self._payload(rule, payload) and all(
            self._buffer_matches(match, tx, side) for match in rule.buffers if match.buffer != "payload"
        )

    @staticmethod
    def _buffer_matches(match: BufferMatch, tx: Any, side: Direction) -> bool:
        if match.absent and not tx.buffer(match.buffer, side):
            return bool(tx.is_complete(side) if match.buffer in GROWING_BUFFERS else tx.progress(side))
        if match.buffer in GROWING_BUFFERS and not tx.is_complete(side) and any(m.negated for m in match.matchers):
            return False
        return any(match_buffer(match, transform(match, data), {}) for data in tx.buffer(match.buffer, side))

    def _carry_out(self, matches: Iterable[tuple[int, int, bool]]) -> tuple[str, list[int]]:
        verdict, alerts, scope = "accept", [], False
        decided = False
        for rank, _, flow in matches:
            rule = self.rules[rank]
            if rule.action is not Action.ALERT:
                word = {Action.PASS: "accept", Action.DROP: "drop", Action.REJECT: "reject"}[rule.action]
                if not decided:
                    verdict, scope, decided = word, flow, True
                elif flow and not scope:
                    if rule.action is Action.PASS:
                        self.verdict = "accept!"
                    elif verdict != "accept":
                        verdict, scope = word, True
            if rule.action is not Action.PASS:
                alerts.append(rule.sid)
            if rule.action is Action.PASS:
                break
        if decided and scope and not self.verdict:
            self.verdict = "accept!" if verdict == "accept" else "drop!"
        return verdict + ("!" if decided and scope else ""), alerts[:15]


WORDS = ["alpha", "beta", "gamma", "x", "Al", "ETA", "aa"]
_HTTP = ("uri", "host", "method", "header", "user_agent", "request_body", "stat_code", "cookie")
BUFFERS = [*(f"http.{name}" for name in _HTTP), "file.data", "ssh.software"]
FLOWS = ["", "", "flow:established;", "flow:to_server;", "flow:to_client;", "flow:established,to_server;"]


def random_content(rng: random.Random, *, anchored: bool, lower: bool = False) -> str:
    word = rng.choice(WORDS)
    if lower:
        word = word.lower()
    text = f'content:{"!" if rng.random() < 0.15 else ""}"{word}";'
    if rng.random() < 0.5 and not lower:
        text += " nocase;"
    if anchored and rng.random() < 0.3:
        text += rng.choice([" startswith;", " depth:12;", " offset:2;", " endswith;"])
    return text


def random_rule(rng: random.Random, sid: int) -> str:
    action = rng.choices(["alert", "pass", "drop", "reject"], [80, 1, 1, 1])[0]
    ports = rng.choice(["any any -> any any"] * 4 + ["any any -> any 80", "any 80 -> any any", "any any -> any 81"])
    flow = rng.choice(
        ["", "", "flow:established;", "flow:to_server;", "flow:to_client;", "flow:established,to_server;"]
    )
    kind = rng.random()
    if kind < 0.4:
        buffers = rng.sample(BUFFERS, rng.randint(1, 2))
        proto = "ssh" if buffers[0].startswith("ssh") else rng.choice(["http", "tcp"])
        options = " ".join(
            f"{buffer}; " + random_content(rng, anchored=True, lower=buffer == "http.host") for buffer in buffers
        )
        if rng.random() < 0.2:
            options = random_content(rng, anchored=True) + " " + options
    elif kind < 0.75:
        proto = rng.choice(["tcp", "tcp", "tcp-pkt", "http", "ip"])
        options = " ".join(random_content(rng, anchored=True) for _ in range(rng.randint(1, 2)))
    else:
        proto = rng.choice(["tcp", "ip", "http", "tls", "ssh"])
        options = (
            ""
            if proto not in ("tcp", "ip")
            else rng.choice(["", "app-layer-protocol:http;", "app-layer-protocol:!tls;"])
        )
    if rng.random() < 0.15 and action == "alert":
        options += (
            rng.choice([" flowbits:set,seen;", " flowbits:isset,seen;"]) if kind >= 0.4 else " flowbits:set,seen;"
        )
    return f"{action} {proto} {ports} ({flow} {options} sid:{sid};)"


def random_traffic(rng: random.Random) -> list[tuple[Direction, bytes]]:
    def words(count: int, glue: str) -> str:
        return glue.join(rng.choice([*WORDS, "other", "word"]) for _ in range(count))

    style = rng.random()
    chunks: list[tuple[Direction, bytes]] = []
    for _ in range(rng.randint(1, 4)):
        if style < 0.7:
            body = words(rng.randint(0, 30), " ")
            up = (
                f"{rng.choice(['GET', 'POST'])} /{words(2, '/')} HTTP/1.1\r\nHost: {words(1, '')}.example\r\n"
                f"User-Agent: {words(2, ' ')}\r\nCookie: {words(1, '')}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            body = words(rng.randint(0, 30), " ")
            down = f"HTTP/1.1 {rng.choice([200, 404])} {words(1, '')}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        elif style < 0.8:
            up, down = f"SSH-2.0-{words(1, '')}\r\n", f"SSH-2.0-{words(1, '')}\r\n"
        else:
            up, down = "\x00" + words(10, "."), words(10, ".")
        for direction, text in ((UP, up), (DOWN, down)):
            data = text.encode()
            while data:
                size = rng.randint(1, len(data))
                chunks.append((direction, data[:size]))
                data = data[size:]
            if rng.random() < 0.3:
                chunks.append((direction.reply, b""))
    return chunks


@pytest.mark.parametrize("seed", range(40))
def test_same_as_the_slow_twin(seed: int) -> None:
    rng = random.Random(seed)
    text, order = "", rng.choice(["strict", "action"])
    for sid in range(1, 40):
        rule = random_rule(rng, sid)
        if not parse_rules(rule, "test.rules", Variables()).errors:  # a random rule may contradict itself
            text += rule + "\n"
    window, depth = rng.choice([(64, 400), (2560, 1 << 20)])
    rules = compiled(text, order, stream_window=window, stream_depth=depth)
    if order == "strict":
        chosen = [rule.signature.sid for rule in rules.rules if rule.tx and "http" in rule.app_protos]
        for sid in rng.sample(chosen, min(3, len(chosen))):
            rules = without(rules, sid, rng.choice(["http.cookie", "http.connection", "file.data"]))
    for _ in range(8):
        flow = Flow(rules)
        twin = SlowInspector([rule.signature for rule in rules.rules], (40000, 80), window, depth)
        steps: list[tuple[Direction, bool, bytes]] = [(UP, False, b""), (DOWN, False, b""), (UP, False, b"")]
        steps += [(direction, True, data) for direction, data in random_traffic(rng)]
        for direction, established, data in steps:
            said = flow.data(direction, data, established=established).split()[0]
            verdict, alerts = twin.inspect(direction, established, data)
            assert (said, flow.sids) == (verdict, alerts), (text, direction, data)

"""Firewall mode over captures: which table decides, what the ordinary rules still see, what is counted."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, UDP

from engines.stateful.firewall.filter import FirewallFlow
from engines.stateful.firewall.inspector import BothRuleSets, FirewallInspector
from engines.stateful.firewall.policies import Policies
from engines.stateful.firewall.rules import parse_firewall_rules
from engines.stateful.firewall.tables import FirewallTables
from engines.stateful.limits import DEFAULT_LIMITS
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleconfig import DEFAULT_CONFIG
from engines.stateful.ruleset import compile_ruleset
from engines.stateful.segment import FlowFacts, Segment
from engines.verdict import Direction, Verdict
from nfw.capture import read_capture
from nfw.cli.app import call
from nfw.replay import ReplayOptions, Summary, apply_setting, replay
from tests.unit.corpus import corpus
from tests.unit.pcapfile import pcap
from tests.unit.test_app_snmp import ASKS
from tests.unit.test_replay import conversation
from tests.unit.test_watch_session import C, S, segment

Seen = tuple[list[tuple[int, str]], list[tuple[int, int]], dict[str, int], list[dict[str, Any]]]

PACKETS = "accept:hook tcp:all any any -> any any (sid:1;)\n"
STARTED = "accept:hook http1:request_started any any -> any any (sid:2;)\n"
APP_POLICY, FLOW_DROP = "firewall default app policy", "firewall flow drop"
PACKET_POLICY = "firewall default packet policy"


def run(
    tmp_path: Path, firewall: str, packets: list[bytes], ordinary: str = "", link_type: int = 101, **policies: str
) -> Seen:
    """Drops (packet, reason), alerts (packet, sid), counters and flow records."""
    (tmp_path / "x.pcap").write_bytes(pcap(packets, link_type))
    parsed = parse_firewall_rules(firewall, "f.rules", Variables({}, {}))
    behind = parse_rules(ordinary, "t.rules", Variables({}, {}), config=replace(DEFAULT_CONFIG, action_scopes=True))
    assert not parsed.errors, [str(error) for error in parsed.errors]
    assert not behind.errors, [str(error) for error in behind.errors]
    options = ReplayOptions(enforce=True)
    for name, value in policies.items():
        options = apply_setting(options, "firewall.policies." + name.replace("__", ".").replace("_", "-"), value)
    records: list[dict[str, Any]] = []
    summary: Summary = replay(
        read_capture(tmp_path / "x.pcap"), behind.signatures, options, records.append, firewall=parsed.rules
    )
    drops = [(r.get("pcap_cnt", 0), r["drop"]["reason"]) for r in records if r["event_type"] == "drop"]
    alerts = [(r.get("pcap_cnt", 0), r["alert"]["signature_id"]) for r in records if r["event_type"] == "alert"]
    return drops, alerts, dict(summary.counts), [r for r in records if r["event_type"] == "flow"]


def from_packet(first: int, reason: str, rest: str = FLOW_DROP) -> list[tuple[int, str]]:
    """Of the conversation's eight packets, what is dropped when packet ``first`` is, with the flow."""
    return [(first, reason), *((number, rest) for number in range(first + 1, 9))]


HOOKS = "".join(
    f"accept:hook http1:{side}_{name} any any -> any any (sid:{number + base};)\n"
    for base, side in ((100, "request"), (200, "response"))
    for number, name in enumerate(("started", "line", "headers", "body", "trailer", "complete"))
)

DECIDES: list[tuple[str, dict[str, str], list[tuple[int, str]]]] = [
    # No rule: every packet by itself.
    ("", {}, [(number, PACKET_POLICY) for number in range(1, 9)]),
    ("", {"packet__filter": "drop:flow"}, from_packet(1, PACKET_POLICY)),
    ("", {"packet__filter": "accept:packet"}, []),
    ("", {"packet__filter": "accept:flow"}, []),
    # The packets are let through, the application is not.
    (PACKETS, {}, from_packet(4, APP_POLICY)),
    (PACKETS + STARTED, {}, from_packet(4, APP_POLICY)),
    (PACKETS + HOOKS, {}, []),
    (PACKETS, {"app__default_policy": "accept:hook"}, []),
    (PACKETS, {"app__http1__request_started": "accept:tx"}, []),
    (PACKETS, {"app__http1__request_started": "accept:flow"}, []),
    (PACKETS, {"app__http1__request_started": "drop:packet"}, [(4, APP_POLICY), *from_packet(5, APP_POLICY)]),
    # The request passes, the answer does not.
    (PACKETS + "accept:hook http1:<request_complete any any -> any any (sid:3;)", {}, from_packet(5, APP_POLICY)),
    # accept:tx is about both sides; accept:flow about everything.
    (PACKETS + STARTED + "accept:tx http1:request_line any any -> any any (sid:3;)", {}, []),
    ("accept:flow tcp:flow_start any any -> any any (flags:S; sid:3;)", {}, []),
    # A rule that does not match leaves its hook to the policy.
    (
        PACKETS + 'accept:flow http1:<request_line any any -> any any (http.method; content:"GET"; sid:3;)',
        {},
        [],
    ),
    (
        PACKETS + 'accept:flow http1:<request_line any any -> any any (http.method; content:"PUT"; sid:3;)',
        {},
        from_packet(4, APP_POLICY),
    ),
    # The first rule that matches decides.
    (
        PACKETS + "drop:flow http1:request_started any any -> any any (sid:3;)\n" + HOOKS,
        {},
        from_packet(4, "firewall rules"),
    ),
    (PACKETS + HOOKS + "drop:flow http1:request_started any any -> any any (sid:3;)", {}, []),
    # What a dropped packet brought is judged with the next one: it may come again, and be no news then.
    (
        "drop:packet tcp:all any any -> any any (dsize:>0; sid:3;)\n" + PACKETS,
        {},
        [(4, "firewall rules"), (5, "firewall rules"), *from_packet(6, APP_POLICY)],
    ),
    # What the connection is has not been asked yet.
    (
        "accept:hook tcp:all any any -> any any (app-layer-protocol:unknown; sid:3;)",
        {},
        [(number, PACKET_POLICY) for number in range(4, 9)],
    ),
    (
        "accept:packet tcp:all any any -> any any (tcp.session:setup; sid:3;)",
        {},
        [(n, PACKET_POLICY) for n in range(4, 9)],
    ),
    # Bits on the transaction.
    (
        PACKETS
        + "accept:hook http1:request_started any any -> any any (xbits:set,seen,track tx; sid:3;)\n"
        + "accept:flow http1:<request_line any any -> any any (xbits:isset,seen,track tx; sid:4;)",
        {},
        [],
    ),
    (
        PACKETS + STARTED + "accept:flow http1:request_line any any -> any any (xbits:isset,seen,track tx; sid:4;)",
        {},
        from_packet(4, APP_POLICY),
    ),
]


@pytest.mark.parametrize(("firewall", "policies", "dropped"), DECIDES)
def test_which_packets_are_dropped_and_why(
    firewall: str, policies: dict[str, str], dropped: list[tuple[int, str]], tmp_path: Path
) -> None:
    drops, _, counts, _ = run(tmp_path, firewall, conversation(), **policies)
    assert drops == dropped
    assert counts.get("firewall.blocked", 0) == len(dropped)
    assert counts.get("firewall.accepted", 0) == counts.get("ips.accepted", 0) == 8 - len(dropped)


BEHIND: list[tuple[str, str, list[tuple[int, int]], list[tuple[int, str]]]] = [
    # firewall rules, ordinary rules, alerts, drops
    (PACKETS + HOOKS, 'alert http any any -> any any (http.uri; content:"/secret"; sid:9;)', [(4, 9)], []),
    ("accept:flow tcp:all any any -> any any (sid:1;)", "alert tcp any any -> any any (flags:S; sid:9;)", [(1, 9)], []),
    # What the firewall drops the ordinary rules do not see, except those on packets before app:filter.
    ("", "alert tcp any any -> any any (flags:S; sid:9;)", [], [(n, PACKET_POLICY) for n in range(1, 9)]),
    (PACKETS, 'alert http any any -> any any (http.uri; content:"/secret"; sid:9;)', [], from_packet(4, APP_POLICY)),
    (PACKETS, 'alert tcp-pkt any any -> any any (content:"secret"; sid:9;)', [(4, 9)], from_packet(4, APP_POLICY)),
    # pass:flow says that they need not look; pass in an ordinary rule says nothing to the firewall rules.
    (
        "accept:flow,pass:flow tcp:all any any -> any any (sid:1;)",
        'alert http any any -> any any (http.uri; content:"/secret"; sid:9;)',
        [],
        [],
    ),
    (PACKETS, "pass tcp any any -> any any (sid:9;)", [], from_packet(4, APP_POLICY)),
    # A drop of theirs, with a scope and without.
    (
        PACKETS + HOOKS,
        'drop:packet tcp-pkt any any -> any any (content:"secret"; sid:9;)',
        [(4, 9)],
        [(4, "rules")],
    ),
    (
        PACKETS + HOOKS,
        'drop http any any -> any any (http.uri; content:"/secret"; sid:9;)',
        [(4, 9)],
        from_packet(4, "rules", "flow drop"),
    ),
]


@pytest.mark.parametrize(("firewall", "ordinary", "alerted", "dropped"), BEHIND)
def test_what_the_ordinary_rules_see(
    firewall: str, ordinary: str, alerted: list[tuple[int, int]], dropped: list[tuple[int, str]], tmp_path: Path
) -> None:
    drops, alerts, _, _ = run(tmp_path, firewall, conversation(), ordinary)
    assert (alerts, drops) == (alerted, dropped)


@pytest.mark.parametrize(
    ("firewall", "policies", "alerted"),
    [
        ("accept:hook,alert tcp:all any any -> any any (flags:S; sid:1;)", {}, [(1, 1)]),
        ("accept:hook tcp:all any any -> any any (flags:S; alert; sid:1;)", {}, [(1, 1)]),
        ("drop:packet tcp:all any any -> any any (flags:S; sid:1;)", {}, []),
        (PACKETS, {"app__default_policy": "drop:flow,alert"}, [(4, 2201001)]),
        ("", {"packet__filter": "drop:flow,alert"}, [(1, 2201000)]),
        (PACKETS + HOOKS.replace("accept:hook http1:request_l", "accept:hook,alert http1:request_l"), {}, [(4, 101)]),
    ],
)
def test_only_what_says_alert_is_logged(
    firewall: str, policies: dict[str, str], alerted: list[tuple[int, int]], tmp_path: Path
) -> None:
    _, alerts, _, _ = run(tmp_path, firewall, conversation(), **policies)
    assert alerts == alerted


def test_a_packet_dropped_before_its_stream_is_no_part_of_it(tmp_path: Path) -> None:
    rules = PACKETS + "drop:packet tcp:pre_stream any any -> any any (flow:to_server; flags:S,12; sid:2;)"
    drops, _, counts, _ = run(tmp_path, rules, conversation())
    assert drops[:2] == [(1, "firewall pre stream hook"), (2, "stream midstream")]
    assert (counts["firewall.blocked"], counts["ips.blocked"]) == (1, 7)


def test_a_packet_dropped_before_its_flow_makes_none(tmp_path: Path) -> None:
    pings = [raw(IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8, code=code, id=7)) for code in (1, 0)]
    rules = "drop:packet icmp:pre_flow any any -> any any (icode:1; sid:1;)\n"
    rules += "accept:packet icmp:all any any -> any any (sid:2;)"
    drops, _, counts, flows = run(tmp_path, rules, pings)
    assert drops == [(1, "firewall pre flow hook")]
    assert [record["flow"]["pkts_toserver"] for record in flows] == [1]
    assert counts["firewall.drop_reason.pre_flow_hook"] == 1


def test_what_is_no_ip_is_dropped_too(tmp_path: Path) -> None:
    frame = b"\xff" * 6 + bytes(6) + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + bytes(20)
    drops, _, _, _ = run(tmp_path, "accept:packet ip:all any any -> any any (sid:1;)", [frame], link_type=1)
    assert drops == [(1, PACKET_POLICY)]
    drops, _, counts, _ = run(tmp_path, "accept:packet arp:all any any -> any any (sid:1;)", [frame], link_type=1)
    assert (drops, counts["firewall.accepted"]) == ([], 1)


def test_messages_of_dns_are_transactions_of_one_side(tmp_path: Path) -> None:
    query = DNSRecord.question("a.test")
    ends = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5000, dport=53)
    back = IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=53, dport=5000)
    packets = [raw(ends / query.pack()), raw(back / query.reply().pack())]
    rules = "accept:hook udp:all any any -> any any (sid:1;)\n"
    rules += 'accept:tx dns:<request_complete any any -> any any (dns.query; content:"a.test"; sid:2;)'
    drops, _, _, _ = run(tmp_path, rules, packets)
    assert drops == [(2, APP_POLICY)]


def test_an_application_nobody_can_parse_falls_to_its_policy(tmp_path: Path) -> None:
    packets = [*conversation()[:3], segment(S, "PA", 501, 101, b"+OK POP3 ready\r\n").data]
    drops, _, _, _ = run(tmp_path, PACKETS + HOOKS, packets)
    assert drops == [(4, APP_POLICY)]
    drops, _, _, _ = run(tmp_path, PACKETS + HOOKS, packets, app__default_policy="accept:hook")
    assert drops == []


def test_what_cannot_be_parsed_is_dropped_before_any_rule(tmp_path: Path) -> None:
    ends = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5000, dport=161)
    packets = [raw(ends / data) for data in (ASKS, ASKS.replace(b"\xa0", b"\x04"), ASKS)]
    rules = "accept:hook,alert udp:all any any -> any any (sid:1;)\n"
    rules += "accept:tx snmp:<request_complete any any -> any any (sid:2;)"
    drops, alerts, counts, _ = run(tmp_path, rules, packets)
    assert drops == [(2, "applayer error"), (3, "exception policy flow drop")]
    assert alerts == [(1, 1)]
    assert (counts["ips.blocked"], counts["ips.drop_reason.applayer_error"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--firewall-rules", "f.rules"], 0, "8 packets, 1 flow, 0 alerts, 5 dropped packets"),
        (["--firewall-rules", "f.rules", "--mode", "ids"], 2, "--mode ids does not go with them"),
        (["--rules", "t.rules", "--set", "firewall.policies.packet.filter=accept:hook"], 2, "are for --firewall-rules"),
        (["--firewall-rules", "f.rules", "--set", "firewall.policies.app.dns.x=accept:hook"], 2, "no such policy"),
        (["--firewall-rules", "bad.rules"], 1, "1 firewall rule refused; nothing was replayed"),
        (["--rules", "f.rules"], 1, "only `nfw replay --firewall-rules` knows"),
        (["--policy", "p.yaml", "--firewall-rules", "f.rules"], 2, "--firewall-rules does not go with --policy"),
    ],
)
def test_the_command(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pcap").write_bytes(pcap(conversation()))
    (tmp_path / "f.rules").write_text(PACKETS)
    (tmp_path / "t.rules").write_text("alert tcp any any -> any any (sid:1;)\n")
    (tmp_path / "bad.rules").write_text(PACKETS + "drop tcp:all any any -> any any (sid:3;)\n")
    assert call(["replay", "x.pcap", *arguments]) == status
    out, err = capsys.readouterr()
    assert said in out + err


@pytest.mark.parametrize(
    ("firewall", "dropped"),
    [
        (PACKETS + HOOKS, []),
        (PACKETS + HOOKS.replace("accept:hook http1:request_started", "drop:packet http1:request_started"), [4, 5]),
        (PACKETS, [4, 5]),
    ],
)
def test_the_beginning_of_a_request_is_at_its_first_hook(firewall: str, dropped: list[int], tmp_path: Path) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    parts = [(101, request[:14]), (115, request[14:])]
    packets = conversation()[:3] + [segment(C, "PA", at, 501, data).data for at, data in parts]
    drops, _, _, _ = run(tmp_path, firewall, packets)
    assert [number for number, _ in drops] == dropped


def test_messages_that_are_judged_are_forgotten() -> None:
    """accept:packet leaves its transaction where it is; one that is over must not stay."""
    parsed = parse_firewall_rules(
        "accept:hook udp:all any any -> any any (sid:1;)\n"
        "accept:packet snmp:<request_complete any any -> any any (snmp.pdu_type:0; sid:2;)",
        "f.rules",
        Variables({}, {}),
    )
    limits = replace(DEFAULT_LIMITS, max_transactions=3)
    tables = FirewallTables(parsed.rules, Policies(), limits)
    flow = FirewallFlow(tables, FlowFacts(1, 17, b"\x0a\0\0\1", b"\x0a\0\0\2", 5000, 161), 0.0)
    for number in range(10):
        segment = Segment(Direction.TO_SERVER, False, ASKS, b"", None, float(number))
        flow.absorb(Direction.TO_SERVER, ASKS)
        assert not flow.packet("filter", segment).drops
        assert not flow.app(segment).drops, number


def test_too_many_transactions_fall_to_the_policy() -> None:
    parsed = parse_firewall_rules(
        "accept:hook tcp:all any any -> any any (sid:1;)\n" + HOOKS, "f.rules", Variables({}, {})
    )
    tables = FirewallTables(parsed.rules, Policies(), replace(DEFAULT_LIMITS, max_transactions=3))
    for requests, drops in ((3, False), (4, True)):
        flow = FirewallFlow(tables, FlowFacts(1, 6, b"\x0a\0\0\1", b"\x0a\0\0\2", 5000, 80), 0.0)
        flow.absorb(Direction.TO_SERVER, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * requests)
        ruling = flow.app(Segment(Direction.TO_SERVER, True, b"", b"", None, 0.0))
        assert (ruling.drops, ruling.reason) == (drops, "default_app_policy" if drops else "")


@pytest.mark.parametrize("policy", ["accept:hook", "accept:packet", "drop:packet"])
def test_any_bytes(policy: str) -> None:
    """Nothing raises, whatever comes."""
    chance = random.Random(7)
    rules = PACKETS + "accept:hook udp:all any any -> any any (sid:4;)"
    parsed = parse_firewall_rules(rules, "f.rules", Variables({}, {}))
    limits = replace(DEFAULT_LIMITS, max_transactions=8)
    tables = FirewallTables(parsed.rules, Policies({"app.default-policy": policy}), limits)
    both = BothRuleSets.of(tables, compile_ruleset([]), errors_drop=False)
    for name in ("tls", "http1", "http2", "dns", "ssh", "smtp", "ftp", "smb", "snmp", "sip"):
        seeds = corpus(name)
        for protocol in (6, 17):
            flow = FirewallInspector(both, FlowFacts(1, protocol, b"\x0a\0\0\1", b"\x0a\0\0\2", 5000, 53), 0.0)
            for number in range(60):
                data = bytearray(chance.choice(seeds))
                if chance.random() < 0.5:
                    data[chance.randrange(len(data))] = chance.randrange(256)
                side = Direction(chance.randrange(2))
                flow.absorb(side, bytes(data), gap=chance.random() < 0.02)
                outcome = flow.inspect(Segment(side, True, bytes(data), b"", None, float(number)))
                assert outcome.decision.verdict in Verdict
            for side in Direction:
                flow.end(side)
                flow.inspect(Segment(side, True, b"", b"", None, 60.0))

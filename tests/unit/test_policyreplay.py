"""``nfw replay --policy``: the packet path over a capture, with the kernel's part played."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfw.capture import Captured
from nfw.cli.app import call
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from nfw.policyreplay import PolicySummary, replay_policy
from tests.unit import awskit
from tests.unit.pcapfile import pcap

CLIENT, SERVER = "10.1.0.2", "203.0.113.10"
RULES = """\
stateful:
  order: action
  rules: |
    drop http any any -> any any (msg:"secret"; http.uri; content:"/secret"; sid:1;)
    reject tcp any any -> any 7 (msg:"evil"; flow:established; content:"EVIL"; sid:2;)
    pass tcp any any -> any 8080 (msg:"fine"; sid:3;)
    alert udp any any -> any any (msg:"seen"; content:"LOOK"; sid:4;)
"""


class Talk:
    """Both sides of a TCP conversation, as packets with times: ``Talk()(0.1, "PA", b"GET")``; server: upper-case S."""

    def __init__(self, dport: int = 80, sport: int = 40000) -> None:
        self.ports, self.next = (sport, dport), [1000, 5000]
        self.packets: list[tuple[float, Scapy]] = []
        self.now = 1_000_000.0

    def say(self, side: int, flags: str, data: bytes = b"", after: float = 0.01) -> Talk:
        self.now += after
        ends, ports = (CLIENT, SERVER), self.ports
        packet = IP(src=ends[side], dst=ends[1 - side]) / TCP(
            sport=ports[side], dport=ports[1 - side], flags=flags, seq=self.next[side], ack=self.next[1 - side]
        )
        self.next[side] += len(data) + ("S" in flags) + ("F" in flags)
        self.packets.append((self.now, packet / Raw(data) if data else packet))
        return self

    def open(self) -> Talk:
        return self.say(0, "S").say(1, "SA").say(0, "A")

    def close(self) -> Talk:
        return self.say(0, "FA").say(1, "FA").say(0, "A")


def compiled(tmp_path: Path, policy: str) -> Compiled:
    (tmp_path / "p.yaml").write_text("name: t\n" + policy)
    return compile_policy(load_policy(tmp_path / "p.yaml"))


def run(
    tmp_path: Path, policy: str, packets: list[tuple[float, Any]], **options: Any
) -> tuple[PolicySummary, list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    captured = [Captured(number, now, 101, bytes(data)) for number, (now, data) in enumerate(packets, 1)]
    return replay_policy(captured, compiled(tmp_path, policy), records.append, **options), records


def verdicts(summary: PolicySummary) -> dict[str, int]:
    return {" ".join(what): number for what, number in summary.verdicts.items()}


def seen(records: list[dict[str, Any]], kind: str) -> list[int | None]:
    return [record.get("pcap_cnt") for record in records if record["event_type"] == kind]


# --- stateful ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 9, 100])
def test_a_request_is_held_and_dropped_whole_and_the_kernel_drops_the_rest(tmp_path: Path, size: int) -> None:
    talk = Talk().open()
    request = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
    pieces = [request[at : at + size] for at in range(0, len(request), size)]
    for piece in pieces:
        talk.say(0, "PA", piece, after=0.001)
    talk.say(0, "PA", b"more").say(0, "FA")
    summary, records = run(tmp_path, RULES, talk.packets)
    assert verdicts(summary) == {
        "stateful accept no_match": 3,
        "stateful drop rule": len(pieces),
        "kernel drop flow_drop": 2,
    }
    assert seen(records, "alert") == seen(records, "drop") == [3 + len(pieces)]
    assert summary.dropped == len(pieces) + 2
    (flow,) = [record for record in records if record["event_type"] == "flow"]
    assert flow["flow"]["reason"] == "dropped"


def test_a_hold_ends_by_the_clock_of_the_capture(tmp_path: Path) -> None:
    """After a quarter of a second the first packet goes on by itself; then the next one ends the flow alone."""
    head, rest = b"GET /secret HTTP/1.1\r\n", b"Host: x\r\n\r\n"
    for pause, accepted in ((0.2, 3), (0.3, 4)):
        talk = Talk().open().say(0, "PA", head).say(0, "PA", rest, after=pause)
        summary, _ = run(tmp_path, RULES, talk.packets)
        assert verdicts(summary) == {"stateful accept no_match": accepted, "stateful drop rule": 5 - accepted}


def test_a_passed_flow_is_the_kernels_for_as_long_as_conntrack_remembers(tmp_path: Path) -> None:
    talk = Talk(8080).open().say(0, "PA", b"x" * 40).say(1, "PA", b"y", after=900.0).close()
    summary, records = run(tmp_path, RULES, talk.packets)
    # By its SYN alone: the rule asks for nothing more. Long idle, and still no mid-stream TCP.
    assert verdicts(summary) == {"stateful accept pass_rule": 1, "kernel accept flow_pass": 7}
    assert [record["event_type"] for record in records] == ["flow"]


def test_a_closed_connection_begins_anew(tmp_path: Path) -> None:
    first = Talk(8080).open().close()
    again = Talk(8080)
    again.now = first.now + 5.0
    summary, _ = run(tmp_path, RULES, [*first.packets, *again.open().packets])
    assert sum(summary.verdicts.values()) == 9
    assert summary.stateless_default == 2  # each SYN was judged, nothing else had to be
    assert summary.dropped == 0


def test_reject_says_so_and_counts_what_it_sends(tmp_path: Path) -> None:
    talk = Talk(7).open().say(0, "PA", b"EVIL").say(0, "PA", b"more")
    summary, records = run(tmp_path, RULES, talk.packets)
    assert verdicts(summary) == {
        "stateful accept no_match": 3,
        "stateful reject rule": 1,
        "kernel drop flow_drop": 1,
    }
    assert summary.injected == 2
    assert [record["verdict"]["action"] for record in records if record["event_type"] == "drop"] == ["reject"]


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        ("drop", {"flow drop stream_exception": 2}),
        ("reject", {"flow reject stream_exception": 2}),
        ("continue", {"stateful accept no_match": 2}),
    ],
)
def test_midstream_tcp_meets_the_stream_exception(tmp_path: Path, exception: str, expected: dict[str, int]) -> None:
    late = Talk(9).say(0, "PA", b"\xff" * 20).say(1, "PA", b"\xff" * 20)
    policy = RULES + f"  stream_exception: {exception}\n"
    assert verdicts(run(tmp_path, policy, late.packets)[0]) == expected


def test_default_actions(tmp_path: Path) -> None:
    policy = "stateful: {order: strict, default_actions: [drop_established, alert_established]}\n"
    summary, records = run(tmp_path, policy, Talk().open().say(0, "PA", b"\x01\x02").packets)
    assert summary.hits == {"drop_established": summary.dropped, "alert_established": summary.dropped}
    assert "stateful drop default_drop_established" in verdicts(summary)
    assert seen(records, "drop") == seen(records, "alert")


def test_a_policy_without_stateful_rules_leaves_established_flows_to_the_kernel(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, "stateless: {default: forward}\n", Talk().open().say(0, "PA", b"x").packets)
    assert verdicts(summary) == {"stateful accept no_rules": 3, "kernel accept flow_pass": 1}


# --- stateless --------------------------------------------------------------------------------------------------------


def test_stateless_rules_and_their_hits(tmp_path: Path) -> None:
    policy = """\
stateless:
  default: drop
  default_counters: [rest]
  rules:
    - {priority: 20, action: pass, protocols: [icmp], counters: [ping]}
    - {priority: 10, action: drop, protocols: [tcp], destination_ports: [23]}
    - {priority: 30, action: forward, protocols: [tcp], destination_ports: [80]}
"""
    ping = [(1.0 + n, IP(src=CLIENT, dst=SERVER) / ICMP()) for n in range(2)]
    telnet = [(4.0, Talk(23).say(0, "S").packets[0][1])]
    web = [(5.0, Talk(80).say(0, "S").packets[0][1])]
    other = [(6.0, IP(src=CLIENT, dst=SERVER) / UDP(dport=9) / b"x")]
    summary, _ = run(tmp_path, policy, ping + telnet + web + other)
    assert [(rule.priority, hits) for rule, hits in summary.stateless] == [(10, 1), (20, 2), (30, 1)]
    assert (summary.stateless_default, summary.counters) == (1, {"ping": 2, "rest": 1})
    assert verdicts(summary) == {
        "stateless accept stateless_pass": 2,
        "stateless drop stateless_rule": 1,
        "stateful accept no_rules": 1,
        "stateless drop stateless_default": 1,
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("drop", {"fragments drop fragments_udp": 3}),
        ("pass", {"fragments joined fragment": 3, "fragments accept fragment_default": 1}),
        ("forward", {"fragments joined fragment": 3, "stateful accept no_match": 1}),
    ],
)
def test_fragments_by_the_policys_setting(tmp_path: Path, family: int, setting: str, expected: dict[str, int]) -> None:
    data = b"x" * 30 + b"LOOK" + b"y" * 30
    datagram = b"\x9c\x40\x00\x09" + struct.pack("!HH", 8 + len(data), 0) + data
    pieces: list[Any]
    if family == 4:
        pieces = fragment(IP(src=CLIENT, dst=SERVER, id=7, proto=17) / Raw(datagram), 24)
        pieces = [pieces[0], pieces[1], *pieces[2:]]
    else:
        pieces = [
            IPv6(src="2001:db8::1", dst="2001:db8::2")
            / IPv6ExtHdrFragment(nh=17, id=7, offset=at // 8, m=at + 24 < len(datagram))
            / Raw(datagram[at : at + 24])
            for at in range(0, len(datagram), 24)
        ]
    assert len(pieces) == 3
    policy = f"stateless: {{default: forward, fragments: {setting}}}\n" + RULES
    summary, records = run(tmp_path, policy, [(10.0 + n, piece) for n, piece in enumerate(pieces)])
    assert verdicts(summary) == expected
    assert seen(records, "alert") == ([3] if setting == "forward" else [])
    summary, _ = run(tmp_path, policy, [(10.0, piece) for piece in pieces[:2]])
    assert summary.incomplete == (setting != "drop")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        # Start and end in units of 8 bytes; the datagram has 6.
        ([(0, 3), (0, 3), (3, 6)], {"fragments joined fragment": 3, "stateful accept no_match": 1}),
        ([(0, 4), (1, 3), (4, 6)], {"fragments joined fragment": 3, "stateful accept no_match": 1}),
        ([(0, 4), (3, 6)], {"fragments joined fragment": 1, "fragments drop fragment_overlap": 1}),
        (
            [(2, 4), (1, 3), (0, 2), (2, 6)],
            {"fragments joined fragment": 3, "fragments drop fragment_overlap": 1, "stateful accept no_match": 1},
        ),
    ],
)
def test_what_overlaps_is_discarded_as_linux_does(
    tmp_path: Path, family: int, extents: list[tuple[int, int]], expected: dict[str, int]
) -> None:
    datagram = b"\x9c\x40\x00\x09" + struct.pack("!HH", 48, 0) + bytes(40)
    packets: list[tuple[float, Any]] = []
    for start, end in extents:
        piece = Raw(datagram[8 * start : 8 * end])
        if family == 4:
            head = IP(src=CLIENT, dst=SERVER, id=7, proto=17, frag=start, flags="MF" if end < 6 else 0)
        else:
            head = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(nh=17, id=7, offset=start, m=end < 6)
        packets.append((1.0, head / piece))
    policy = "stateless: {default: forward, fragments: forward}\n" + RULES
    summary, _ = run(tmp_path, policy, packets)
    assert verdicts(summary) == expected


@pytest.mark.parametrize(
    ("setting", "protocol", "expected"),
    [
        ("drop", 17, "fragments drop fragments_udp"),
        ("pass", 17, "fragments accept fragment_default"),
        ("forward", 17, "stateful accept no_match"),
        ("forward", 6, "fragments drop fragments_other"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"\x2c\0" + bytes(6), b"\x2c\1" + bytes(14)])
def test_a_datagram_in_a_single_fragment_is_a_fragment(
    tmp_path: Path, setting: str, protocol: int, expected: str, before: bytes
) -> None:
    inner = UDP(sport=9, dport=10) / b"x" if protocol == 17 else TCP(sport=9, dport=10)
    rest = before + bytes([protocol]) + bytes(7) + bytes(inner)
    packet = IPv6(src="2001:db8::1", dst="2001:db8::2", nh=60 if before else 44) / Raw(rest)
    policy = f"stateless: {{default: forward, fragments: {setting}}}\n" + RULES
    summary, _ = run(tmp_path, policy, [(1.0, packet)])
    assert verdicts(summary) == {expected: 1}


def test_fragments_of_anything_but_udp_are_dropped(tmp_path: Path) -> None:
    pieces = fragment(Talk().say(0, "PA", b"x" * 60).packets[0][1], 24)
    policy = "stateless: {default: pass, fragments: pass}\n"
    assert verdicts(run(tmp_path, policy, [(1.0, piece) for piece in pieces])[0]) == {
        "fragments drop fragments_other": len(pieces)
    }


def test_an_icmp_error_goes_with_the_flow_it_quotes(tmp_path: Path) -> None:
    passed, inspected = Talk(8080).open(), Talk(80).open()
    errors = [
        (talk.now + 1, IP(src=SERVER, dst=CLIENT) / ICMP(type=3, code=4) / bytes(talk.packets[0][1])[:28])
        for talk in (passed, inspected, Talk(5555).say(0, "S"))
    ]
    summary, _ = run(tmp_path, RULES, [*passed.packets, *inspected.packets, *errors])
    assert verdicts(summary) == {
        "stateful accept pass_rule": 1,
        "kernel accept flow_pass": 3,
        "stateful accept no_match": 3,
        "flow accept icmp_error": 1,
        "flow drop invalid_unrelated_icmp": 1,
    }


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_policy(tmp_path: Path) -> str:
    assert call(["ca", "create", "--name", "Test CA", "--out", str(tmp_path)]) == 0
    certificate, key = sorted(tmp_path.glob("*.pem"))[0], sorted(tmp_path.glob("*.key"))[0]
    return (
        f"tls: {{ca: {{certificate: {certificate.name}, private_key: {key.name}}},"
        " scopes: [{destination_ports: [443]}]}\n"
        'stateful: {order: action, rules: \'alert tcp any any -> any 443 (msg:"wire"; content:"abc"; sid:9;)\'}\n'
    )


def test_a_flow_in_scope_is_reported_and_left(tmp_path: Path, tls_policy: str) -> None:
    talk = Talk(443).open().say(0, "PA", b"\xff abc").close()
    summary, records = run(tmp_path, tls_policy, talk.packets)
    assert verdicts(summary) == {"tls intercept would_be_intercepted": 7}
    assert summary.intercepted == 1
    (record,) = records
    assert (record["event_type"], record["pcap_cnt"], record["dest_port"]) == ("tls", 1, 443)
    assert record["nfw"] == {"reason": "would_be_intercepted"}


def test_or_inspected_as_it_is_on_the_wire(tmp_path: Path, tls_policy: str) -> None:
    talk = Talk(443).open().say(0, "PA", b"\xff abc").close()
    summary, records = run(tmp_path, tls_policy, talk.packets, inspect_tls=True)
    assert summary.intercepted == 1
    assert seen(records, "tls") == [1]
    assert seen(records, "alert") == [4]
    assert {what.stage for what in summary.verdicts} <= {"stateful", "kernel"}


# --- any bytes --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 400), st.binary(max_size=80)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_frame_has_one_verdict(tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[int, bytes]]) -> None:
    now, packets = 1000.0, []
    talk = Talk().open().say(0, "PA", b"GET /secret HTTP/1.1\r\n\r\n")
    for number, (step, data) in enumerate(frames):
        now += step
        whole = [bytes(IP(src=CLIENT, dst=SERVER, proto=6) / Raw(data)), b"\x45" + data, b"\x60" + data, data]
        packets.append((now, whole[number % 4]))
        packets += [(now, bytes(packet)) for _, packet in talk.packets[number % 4 : number % 4 + 1]]
    summary, _ = run(tmp_path_factory.mktemp("any"), RULES, packets)
    assert sum(summary.verdicts.values()) + summary.unread == len(packets)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    talk = Talk().open().say(0, "PA", b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n").say(0, "FA")
    (tmp_path / "x.pcap").write_bytes(pcap([bytes(packet) for _, packet in talk.packets]))
    (tmp_path / "p.yaml").write_text(
        "name: t\nstateless: {default: forward, rules: [{priority: 5, name: telnet, action: drop, "
        "protocols: [tcp], destination_ports: [23]}]}\n" + RULES
    )
    return str(tmp_path / "x.pcap"), str(tmp_path / "p.yaml")


def test_the_summary(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, policy = files
    assert call(["replay", capture, "--policy", policy]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "5 packets, 1 flow, 1 alert, 2 dropped packets",
        "       1 × 1  secret",
        "verdicts by stage and reason:",
        "       1 kernel    drop      flow_drop",
        "       3 stateful  accept    no_match",
        "       1 stateful  drop      rule",
        "stateless rules:",
        "       0 × priority 5: drop (telnet)",
        "       4 × default",
        "stateful rules and default actions:",
        "       1 × 1:1",
    ]


def test_eve(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, policy = files
    assert call(["replay", capture, "--policy", policy, "--eve", "-"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["event_type"], record["pcap_cnt"]) for record in records] == [
        ("alert", 4),
        ("drop", 4),
        ("flow", 4),
    ]
    assert records[0]["timestamp"].startswith("1970-01-01T00:16:43.5")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda c, p: [c], 2, "--firewall-rules FILE or --policy FILE"),
        (lambda c, p: [c, "--policy", p, "--rules", "x"], 2, "--rules does not go with --policy"),
        (lambda c, p: [c, "--policy", p, "--mode", "ids"], 2, "--mode does not go with --policy"),
        (lambda c, p: [c, "--policy", p, "--set", "a=b"], 2, "--set does not go with --policy"),
        (lambda c, p: [c, "--rules", "x", "--tls", "stop"], 2, "--tls is for --policy"),
        (lambda c, p: [c, "--policy", p, "--tls", "open"], 2, "open"),
        (lambda c, p: [c, "--policy", p + "x"], 1, "policy file does not exist"),
        (lambda c, p: [c + "x", "--policy", p], 1, "No such file"),
    ],
)
def test_wrong_calls(
    files: tuple[str, str], change: Any, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["replay", *change(*files)]) == code
    assert says in capsys.readouterr().err


def test_every_error_of_the_policy_is_told(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, policy = files
    with Path(policy).open("a") as file:
        file.write("  order_: x\nfail_open: perhaps\n")
    assert call(["replay", capture, "--policy", policy]) == 1
    told = capsys.readouterr()
    assert 'unknown key "order_"' in told.err
    assert "fail_open: expected true or false" in told.err
    assert told.err.splitlines()[-1] == f"{policy}: nothing was replayed"
    assert told.out == ""


def test_a_capture_of_pieces_says_so(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, policy = files
    data = bytes(Talk().say(0, "PA", b"x" * 100).packets[0][1])
    Path(capture).write_bytes(pcap([data[:60]])[:-64] + struct.pack("<I", len(data)) + data[:60])
    assert call(["replay", capture, "--policy", policy, "--filter", "tcp"]) == 0
    out = capsys.readouterr().out
    assert "1 packet cut short by the capture" in out
    assert "flow      drop      invalid_packet" in out


def test_what_never_matches_is_said(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, policy = files
    with Path(policy).open("a") as file:
        file.write("    alert enip any any -> any any (enip.status:1; sid:77;)\n")
    assert call(["replay", capture, "--policy", policy]) == 0
    assert "never matches" in capsys.readouterr().err


def test_documents_of_aws(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder, what its documents refer to, and the policy that is meant."""
    capture, _ = files
    arn = "arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/BotNetStrictOrder"
    references = [{"ResourceArn": arn, "Priority": 1}]
    folder = tmp_path / "aws"
    folder.mkdir()
    awskit.write(folder, awskit.policy(StatefulRuleGroupReferences=references), {"FirewallPolicy": {}})
    (tmp_path / "bot.rules").write_text('alert tcp any any -> any any (msg:"any"; sid:77;)\n')
    (tmp_path / "map.yaml").write_text("rule_groups: {BotNetStrictOrder: bot.rules}\n")
    assert call(["replay", capture, "--policy", str(folder), "--map", str(tmp_path / "map.yaml"), "--name", "p"]) == 0
    assert "1:77" in capsys.readouterr().out
    assert call(["replay", capture, "--rules", str(tmp_path / "bot.rules"), "--name", "p"]) == 2

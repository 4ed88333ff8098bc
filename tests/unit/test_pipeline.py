"""The packet path without a kernel: packets in, answers and effects out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfw.marks import Disposition
from nfw.pipeline import Answer, Pipeline
from nfw.policy.compile import compile_policy
from nfw.policy.loader import load_policy
from nfw.tuples import flow_tuple

CLIENT, SERVER = "10.1.0.2", "203.0.113.10"
RULES = """\
drop http any any -> any any (msg:"secret"; http.uri; content:"/secret"; sid:1;)
reject tcp any any -> any 7 (msg:"evil"; flow:established; content:"EVIL"; sid:2;)
drop udp any any -> any 53 (msg:"udp"; content:"BAD"; sid:3;)
alert tcp any any -> any any (msg:"seen"; flow:established; content:"LOOK"; sid:4;)
"""


class Recorder:
    """Effects as lists."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[int, bool]] = []
        self.rewritten: list[tuple[int, bytes]] = []
        self.injected: list[bytes] = []
        self.events: list[dict[str, Any]] = []

    def verdict(self, packet_id: int, accept: bool) -> None:
        self.verdicts.append((packet_id, accept))

    def rewrite(self, packet_id: int, packet: bytes) -> None:
        self.rewritten.append((packet_id, packet))

    def inject(self, packet: bytes) -> None:
        self.injected.append(packet)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


class Bench:
    """A pipeline of generation 5 fed with scapy packets."""

    def __init__(self, tmp_path: Path, policy: str, more_rules: str = "") -> None:
        (tmp_path / "r.rules").write_text(RULES + more_rules)
        (tmp_path / "p.yaml").write_text("name: t\n" + policy)
        self.effects = Recorder()
        compiled = compile_policy(load_policy(tmp_path / "p.yaml", check_key=False))
        self.pipeline = Pipeline(compiled, 5, self.effects, 0.0)
        self.number = 0
        self.now = 1000.0

    def send(self, packet: Scapy, generation: int = 0, disposition: int = 0) -> Answer:
        self.number += 1
        return self.pipeline.packet(self.number, generation, disposition, bytes(packet), self.now)

    def known(self, packet: Scapy) -> Answer:
        return self.send(packet, 5, Disposition.INSPECT)


class Talk:
    """One TCP conversation."""

    def __init__(self, bench: Bench, dport: int = 80, sport: int = 40000) -> None:
        self.bench, self.sport, self.dport = bench, sport, dport
        self.seq, self.ack = 1000, 5000

    def client(self, flags: str = "PA", data: bytes = b"", seq: int | None = None) -> Scapy:
        packet = IP(src=CLIENT, dst=SERVER) / TCP(
            sport=self.sport, dport=self.dport, flags=flags, seq=self.seq if seq is None else seq, ack=self.ack
        )
        if seq is None:
            self.seq += len(data) + ("S" in flags) + ("F" in flags)
        return packet / Raw(data) if data else packet

    def server(self, flags: str = "PA", data: bytes = b"") -> Scapy:
        packet = IP(src=SERVER, dst=CLIENT) / TCP(
            sport=self.dport, dport=self.sport, flags=flags, seq=self.ack, ack=self.seq
        )
        self.ack += len(data) + ("S" in flags) + ("F" in flags)
        return packet / Raw(data) if data else packet

    def open(self) -> None:
        assert self.bench.send(self.client("S")) is Answer.INSPECT
        assert self.bench.known(self.server("SA")) is Answer.ACCEPT
        assert self.bench.known(self.client("A")) is Answer.ACCEPT


INSPECT = "stateful: {order: action, rule_files: [r.rules]}\n"


def test_clean_flow_is_inspected_and_logged_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.ACCEPT
    assert bench.known(talk.server(data=b"HTTP/1.1 204 No\r\n\r\n")) is Answer.ACCEPT
    for packet in (talk.client("FA"), talk.server("FA"), talk.client("A")):
        bench.known(packet)
    flows = [event for event in bench.effects.events if event["event_type"] == "flow"]
    assert [(flow["app_proto"], flow["flow"]["reason"]) for flow in flows] == [("http", "closed")]
    bench.now += 1000
    bench.pipeline.tick(bench.now)
    assert len([event for event in bench.effects.events if event["event_type"] == "flow"]) == 1


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_request_is_held_until_judged(tmp_path: Path, size: int) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    request = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
    pieces = [request[at : at + size] for at in range(0, len(request), size)]
    answers = [bench.known(talk.client(data=piece)) for piece in pieces]
    assert set(answers[:-1]) <= {Answer.HOLD}
    assert answers[-1] is Answer.DROP_FLOW
    assert [accept for _, accept in bench.effects.verdicts] == [False] * (len(pieces) - 1)


def test_held_packets_leave_in_order_when_the_request_is_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HTTP/1.1\r\n")) is Answer.HOLD
    assert bench.known(talk.client(data=b"Host: x\r\n")) is Answer.HOLD
    assert bench.known(talk.client(data=b"\r\n")) is Answer.ACCEPT
    assert bench.effects.verdicts == [(4, True), (5, True)]
    assert bench.pipeline.held_packets == 0


def test_a_hold_ends_by_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HTTP/1.1\r\n")) is Answer.HOLD
    assert bench.known(talk.client(data=b"GET / HTTP/1.1\r\n", seq=talk.seq - 16)) is Answer.DROP  # a retransmission
    bench.now += 1
    bench.pipeline.tick(bench.now)
    assert bench.effects.verdicts == [(4, True)]
    assert not bench.pipeline.holding


def test_reject_resets_both_sides(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench, 7)
    talk.open()
    assert bench.known(talk.client(data=b"an EVIL word")) is Answer.DROP_FLOW
    resets = [IP(packet) for packet in bench.effects.injected]
    assert {(packet.src, packet.dst) for packet in resets} == {(CLIENT, SERVER), (SERVER, CLIENT)}
    assert all("R" in str(packet[TCP].flags) for packet in resets)


def test_alert_names_its_rule(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench, 7)
    talk.open()
    assert bench.known(talk.client(data=b"\xff" * 16 + b"LO")) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"OK")) is Answer.ACCEPT
    (alert,) = [event for event in bench.effects.events if event["event_type"] == "alert"]
    assert alert["alert"]["signature_id"] == 4
    assert alert["nfw"]["rule_at"].endswith("r.rules:4")


def test_retransmission_with_other_bytes_is_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench, 7)
    talk.open()
    assert bench.known(talk.client(data=b"\xff" * 16 + b"good")) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"\xff" * 16 + b"EVIL", seq=talk.seq - 20)) is Answer.DROP
    assert bench.pipeline.counts["stream_conflict"] == 1


def test_udp(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    good = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=53) / Raw(b"fine")
    assert bench.send(good) is Answer.INSPECT
    assert bench.known(good) is Answer.ACCEPT
    assert bench.known(good / Raw(b"BAD")) is Answer.DROP  # content on UDP acts on the packet


def test_ipv6(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    packet = IPv6(src="fd00:1::2", dst="2001:db8::1") / TCP(sport=1, dport=2, flags="S")
    assert bench.send(packet) is Answer.INSPECT


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        ("stateless: {default: pass}\n", Answer.PASS),
        ("stateless: {default: drop}\n", Answer.DROP),
        (  # replies are not passed, so the kernel may not take over
            "stateless: {default: drop, rules: [{priority: 1, action: pass, destinations: [203.0.113.0/24]}]}\n",
            Answer.ONCE,
        ),
        (
            "stateless: {default: pass, rules: [{priority: 1, action: pass, tcp_flags: [{flags: [SYN]}]}]}",
            Answer.ONCE,
        ),
    ],
)
def test_stateless(tmp_path: Path, policy: str, answer: Answer) -> None:
    bench = Bench(tmp_path, policy)
    assert bench.send(Talk(bench).client("S")) is answer


def test_a_flow_without_stateful_rules_goes_to_the_kernel(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateless: {default: forward}\n")
    talk = Talk(bench)
    assert bench.send(talk.client("S")) is Answer.INSPECT
    bench.known(talk.server("SA"))
    assert bench.known(talk.client("A")) is Answer.PASS


@pytest.mark.parametrize(
    ("exception", "answer", "resets"),
    [("drop", Answer.DROP, 0), ("reject", Answer.DROP, 2), ("continue", Answer.INSPECT, 0)],
)
def test_midstream(tmp_path: Path, exception: str, answer: Answer, resets: int) -> None:
    bench = Bench(tmp_path, f"stateful: {{order: action, stream_exception: {exception}, rule_files: [r.rules]}}\n")
    assert bench.send(Talk(bench, 9).client(data=b"\xff" * 16)) is answer
    assert len(bench.effects.injected) == resets


@pytest.mark.parametrize(
    ("which", "action", "answer", "resets"),
    [
        ("all", "drop", Answer.DROP, 0),
        ("all", "reject", Answer.DROP, 2),
        ("tls_scope", "drop", Answer.INSPECT, 0),
        ("none", "drop", Answer.INSPECT, 0),
    ],
)
@pytest.mark.parametrize("known_by", ["mark", "tuple"])
def test_open_flows(tmp_path: Path, which: str, action: str, answer: Answer, resets: int, known_by: str) -> None:
    policy = "stateful: {order: action, stream_exception: continue, rule_files: [r.rules]}\n"
    bench = Bench(tmp_path, policy + f"open_flows: {{which: {which}, action: {action}}}\n")
    talk = Talk(bench, 9)
    if known_by == "tuple":
        packet = IP(bytes(talk.client()))
        bench.pipeline.remember_old_flows([flow_tuple(6, b"\x0a\x01\0\2", 40000, b"\xcb\0\x71\x0a", 9)])
        assert bench.send(packet) is answer
    else:
        assert bench.send(talk.client(data=b"\xff" * 16), 4, Disposition.INSPECT) is answer
    assert len(bench.effects.injected) == resets


def datagram(client: bool = True, data: bytes = b"fine") -> Scapy:
    if client:
        return IP(src=CLIENT, dst=SERVER) / UDP(sport=40000, dport=9) / Raw(data)
    return IP(src=SERVER, dst=CLIENT) / UDP(sport=9, dport=40000) / Raw(data)


UDP_RULE = 'stateful: {order: action, rules: \'alert udp any any -> any any (msg:"x"; content:"zzz"; sid:1;)\'}\n'
OLD, OLD_REPLY = (4, Disposition.INSPECT_UDP), (4, Disposition.REPLY)


@pytest.mark.parametrize(
    ("which", "action", "from_client", "from_server", "errors"),
    [
        ("all", "drop", Answer.INSPECT, Answer.ENDED, 0),
        ("all", "reject", Answer.ENDED, Answer.ENDED, 2),
        ("tls_scope", "reject", Answer.INSPECT, Answer.INSPECT, 0),
        ("none", "reject", Answer.INSPECT, Answer.INSPECT, 0),
    ],
)
@pytest.mark.parametrize("client", [True, False])
def test_open_udp_flows(
    tmp_path: Path, which: str, action: str, from_client: Answer, from_server: Answer, errors: int, client: bool
) -> None:
    bench = Bench(tmp_path, UDP_RULE + f"open_flows: {{which: {which}, action: {action}}}\n")
    answer = bench.send(datagram(client), *(OLD if client else OLD_REPLY))
    assert answer is (from_client if client else from_server)
    ended = answer is Answer.ENDED
    assert bench.pipeline.counts.get("open_flow", 0) == ended
    assert len(bench.effects.events) == ended
    assert len(bench.effects.injected) == (errors if ended else 0)
    if ended:  # what was queued before the mark was set says nothing new, and nobody is told twice
        assert bench.send(datagram(client=False), *OLD_REPLY) is Answer.ENDED
        assert len(bench.effects.events) == 1
        assert len(bench.effects.injected) == errors
        assert len(bench.pipeline.table) == 0
        assert bench.send(datagram(), 5, Disposition.ENDED) is Answer.INSPECT
        assert bench.send(datagram(client=False), *OLD_REPLY) is Answer.INSPECT  # of the flow that has begun
    (flow,) = bench.pipeline.table.flows()
    assert (flow.client_port, flow.server_port) == (40000, 9)
    bench.now += 60
    bench.pipeline.tick(bench.now)
    assert not bench.pipeline.ended


def test_a_udp_flow_that_had_ended_before_is_not_rejected_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, UDP_RULE + "open_flows: {which: all, action: reject}\n")
    assert bench.send(datagram(), 4, Disposition.ENDED) is Answer.INSPECT
    assert bench.effects.injected == []


@pytest.mark.parametrize("generation", [0, 4, 5, 7])
def test_a_datagram_of_a_server_is_never_a_beginning_whatever_generation_it_bears(
    tmp_path: Path, generation: int
) -> None:
    """The kernel copies the ct mark bit by bit, and a verdict may change it meanwhile: any mixture of two generations
    can come, the current one (5) included."""
    bench = Bench(tmp_path, UDP_RULE + "open_flows: {which: all, action: drop}\n")
    for _ in range(2):
        assert bench.send(datagram(client=False), generation, Disposition.REPLY) is Answer.ENDED
    assert len(bench.pipeline.table) == 0


def test_an_old_datagram_behind_a_flow_the_kernel_has_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateless: {default: forward}\nopen_flows: {which: all, action: drop}\n")
    assert bench.send(datagram(), *OLD) is Answer.PASS
    assert bench.send(datagram(client=False), *OLD_REPLY) is Answer.PASS
    assert "open_flow" not in bench.pipeline.counts


def test_ended_flows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfw.pipeline.SETTLED_KEYS", 3)
    bench = Bench(tmp_path, UDP_RULE + "open_flows: {which: all, action: drop}\n")
    for port in range(10):
        packet = IP(src=SERVER, dst=CLIENT) / UDP(sport=9, dport=40000 + port)
        assert bench.send(packet, *OLD_REPLY) is Answer.ENDED
    assert len(bench.pipeline.ended) == 3


def test_rules_about_what_is_odd_in_a_header(tmp_path: Path) -> None:
    rule = 'drop pkthdr any any -> any any (msg:"twice"; decode-event:tcp.opt_duplicate; sid:8;)\n'
    bench = Bench(tmp_path, INSPECT, rule)
    talk = Talk(bench)
    talk.open()
    odd = talk.client("A")
    odd[TCP].options = [("WScale", 7), ("WScale", 7)]
    assert bench.known(odd) is Answer.DROP
    assert [event["alert"]["signature_id"] for event in bench.effects.events if event["event_type"] == "alert"] == [8]
    assert bench.known(talk.client("A")) is Answer.ACCEPT


def test_icmp_error_of_a_known_flow(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    syn = talk.client("S")
    bench.send(syn)
    error = IP(src="203.0.113.1", dst=CLIENT) / ICMP(type=3, code=4) / IP(bytes(syn))
    assert bench.send(error) is Answer.ONCE


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" + bytes(10), bytes(40), b"\x4f" + bytes(30)])
def test_garbage_is_dropped(tmp_path: Path, data: bytes) -> None:
    bench = Bench(tmp_path, INSPECT)
    assert bench.pipeline.packet(1, 0, 0, data, 1.0) is Answer.DROP


def test_drop_records_are_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateless: {default: drop}\n")
    for port in range(1000):
        bench.send(Talk(bench, 80, 1024 + port).client("S"))
    assert len(bench.effects.events) <= 101
    assert bench.pipeline.counts["stateless_default"] == 1000


def test_one_direction_beyond_the_stream_depth_is_left_to_the_kernel(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateful: {order: action, rule_files: [r.rules], stream_depth: 100000}\n")
    talk = Talk(bench, 7)
    talk.open()
    answers = [bench.known(talk.client("A", b"\xff" * 60000)) for _ in range(2)]
    assert answers == [Answer.ACCEPT, Answer.INSPECT_TO_CLIENT]
    assert bench.send(talk.server("A"), 5, Disposition.INSPECT_TO_CLIENT) is Answer.ACCEPT
    look = talk.server("PA", b"\xff" * 16 + b"LOOK")
    assert bench.send(look, 5, Disposition.INSPECT_TO_CLIENT) is Answer.ACCEPT
    assert [event["alert"]["signature_id"] for event in bench.effects.events if event["event_type"] == "alert"] == [4]


@pytest.mark.parametrize("unseen", [50_000_000, 1 << 31, (1 << 32) - 1])
def test_the_end_of_a_half_inspected_flow_is_seen(tmp_path: Path, unseen: int) -> None:
    bench = Bench(tmp_path, "stateful: {order: action, rule_files: [r.rules], stream_depth: 100000}\n")
    talk = Talk(bench, 7)
    talk.open()
    for _ in range(2):
        bench.known(talk.client("A", b"\xff" * 60000))
    mark = Disposition.INSPECT_TO_CLIENT
    talk.seq = talk.seq + unseen & 0xFFFFFFFF  # forwarded by the kernel, as most of what acknowledges it
    assert bench.send(talk.server("A"), 5, mark) is Answer.ACCEPT
    talk.seq = talk.seq + unseen & 0xFFFFFFFF
    assert bench.send(talk.client("FA"), 5, mark) is Answer.INSPECT  # from here on every acknowledgement counts
    for packet in (talk.server("A"), talk.server("FA"), talk.client("A")):
        assert bench.send(packet, 5, Disposition.INSPECT) is Answer.ACCEPT
    flows = [event["flow"]["reason"] for event in bench.effects.events if event["event_type"] == "flow"]
    assert flows == ["closed"]


def test_a_reset_of_a_half_inspected_flow_ends_it_only_when_conntrack_believes_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateful: {order: action, rule_files: [r.rules], stream_depth: 100000}\n")
    talk = Talk(bench, 7)
    talk.open()
    for _ in range(2):
        bench.known(talk.client("A", b"\xff" * 60000))
    talk.seq += 50_000_000
    reset = talk.client("RA")
    assert bench.send(reset) is Answer.DROP  # out of the window: conntrack has not tied it to the flow
    assert not [event for event in bench.effects.events if event["event_type"] == "flow"]
    assert bench.send(reset, 5, Disposition.INSPECT_TO_CLIENT) is Answer.ACCEPT
    flows = [event["flow"]["reason"] for event in bench.effects.events if event["event_type"] == "flow"]
    assert flows == ["reset"]


def test_acknowledgements_a_rule_is_about_are_not_left_to_the_kernel(tmp_path: Path) -> None:
    rule = 'alert tcp any 7 -> any any (msg:"bare"; flags:A; dsize:0; sid:8;)\n'
    bench = Bench(tmp_path, "stateful: {order: action, rule_files: [r.rules], stream_depth: 100000}\n", rule)
    talk = Talk(bench, 7)
    talk.open()
    assert [bench.known(talk.client("A", b"\xff" * 60000)) for _ in range(3)] == [Answer.ACCEPT] * 3


# -- packets behind a decision, held packets, ends ---------------------------------------------------------------------

CONTINUE = "stateful: {order: action, stream_exception: continue, rule_files: [r.rules]}\n"


@pytest.mark.parametrize("exception", ["drop", "reject", "continue"])
def test_packets_queued_behind_a_drop_are_dropped_silently(tmp_path: Path, exception: str) -> None:
    bench = Bench(tmp_path, CONTINUE.replace("continue", exception))
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.DROP_FLOW
    assert bench.known(talk.client(data=b"more of it")) is Answer.DROP_FLOW
    assert bench.known(talk.server(data=b"answer")) is Answer.DROP_FLOW
    assert bench.effects.injected == []
    assert [event["drop"]["reason"] for event in bench.effects.events if event["event_type"] == "drop"] == ["rule"]
    again = Talk(bench)  # the same ports, a new connection
    again.open()


@pytest.mark.parametrize("exception", ["drop", "reject", "continue"])
def test_packets_queued_behind_a_pass_are_passed(tmp_path: Path, exception: str) -> None:
    bench = Bench(tmp_path, f"stateful: {{order: action, stream_exception: {exception}}}\n")
    talk = Talk(bench)
    assert bench.send(talk.client("S")) is Answer.INSPECT
    bench.known(talk.server("SA"))
    assert bench.known(talk.client("A")) is Answer.PASS
    assert bench.known(talk.client(data=b"x")) is Answer.PASS
    assert bench.known(talk.server("A")) is Answer.PASS
    assert bench.effects.injected == []
    bench.now += 60
    bench.pipeline.tick(bench.now)
    assert not bench.pipeline.settled
    datagram = IP(src=CLIENT, dst=SERVER) / UDP(sport=5, dport=6) / Raw(b"fine")
    assert [bench.send(datagram), bench.send(datagram)] == [Answer.PASS, Answer.PASS]
    assert len([event for event in bench.effects.events if event["proto"] == "UDP"]) == 1


def test_what_a_hold_ends_with_holds_for_the_flow(tmp_path: Path) -> None:
    """A drop decided by the clock, with no packet at hand, stops the retransmission and what comes behind it."""
    actions = "order: strict, stream_exception: continue, default_actions: [drop_established_app_layer]"
    bench = Bench(tmp_path, f"stateful: {{{actions}}}\n")
    talk = Talk(bench)
    talk.open()
    piece = talk.client(data=b"GE")
    assert bench.known(piece) is Answer.HOLD
    bench.now += 1
    bench.pipeline.tick(bench.now)
    assert [accept for _, accept in bench.effects.verdicts] == [False]
    assert (bench.pipeline.held_packets, len(bench.pipeline.holding)) == (0, 0)
    refused = {Answer.DROP, Answer.DROP_FLOW}
    assert bench.known(piece) in refused
    assert bench.known(talk.client(data=b"T / HTTP/1.1\r\n\r\n")) in refused


def test_hold_retransmit_complete(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    first = talk.client(data=b"GET / HTTP/1.1\r\n")
    assert bench.known(first) is Answer.HOLD
    assert bench.known(first) is Answer.DROP
    whole = talk.client(data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", seq=1001)  # coalesced retransmission
    assert bench.known(whole) is Answer.ACCEPT
    assert bench.effects.verdicts == [(4, True)]
    assert bench.known(first) is Answer.ACCEPT  # it may have been lost behind us


def test_a_lost_judged_segment_may_be_repeated_while_the_next_is_held(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    first = talk.client(data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert bench.known(first) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"GET /next HT")) is Answer.HOLD
    assert bench.known(first) is Answer.ACCEPT


def test_second_request_of_a_connection_is_blocked_whole(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CONTINUE)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.ACCEPT
    assert bench.known(talk.server(data=b"HTTP/1.1 204 No\r\n\r\n")) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"GET /se")) is Answer.HOLD
    assert bench.known(talk.server("A")) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"cret HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.DROP_FLOW
    assert [accept for _, accept in bench.effects.verdicts] == [False]
    assert len([event for event in bench.effects.events if event["event_type"] == "flow"]) == 1


def test_pipelined_requests_in_one_segment(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    data = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
    assert bench.known(talk.client(data=data)) is Answer.DROP_FLOW


def test_response_before_the_request_is_complete(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert (
        bench.known(talk.client(data=b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")) is Answer.ACCEPT
    )
    assert bench.known(talk.server(data=b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")) is Answer.ACCEPT
    assert bench.known(talk.client(data=b"defghij")) is Answer.ACCEPT


def test_fin_on_the_last_held_segment_lets_all_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) is Answer.HOLD
    assert bench.known(talk.client("FPA", b"TP/1")) is Answer.ACCEPT
    assert bench.effects.verdicts == [(4, True)]
    assert bench.pipeline.held_packets == 0


def test_a_reset_ends_a_hold_and_its_payload_is_nobodys(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) is Answer.HOLD
    assert bench.known(talk.server("R")) is Answer.ACCEPT
    assert bench.effects.verdicts == [(4, False)]
    assert (bench.pipeline.held_packets, len(bench.pipeline.holding)) == (0, 0)
    assert bench.known(talk.client("RA", b"GET /secret HTTP/1.1\r\n\r\n")) is Answer.ACCEPT
    flows = [event["flow"]["reason"] for event in bench.effects.events if event["event_type"] == "flow"]
    assert flows == ["reset"]


def test_out_of_order_pieces_of_a_bad_request(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    late = talk.client(data=b"GET /sec")
    early = talk.client(data=b"ret HTTP/1.1\r\nHost: x\r\n\r\n")
    bench.known(early)  # the receiver can do nothing with it before the rest is there
    assert bench.known(late) is Answer.DROP_FLOW


def test_hold_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    answers = [bench.known(talk.client(data=piece)) for piece in [b"GET /", *[b"a"] * 64]]
    assert answers == [Answer.HOLD] * 64 + [Answer.ACCEPT]
    assert [accept for _, accept in bench.effects.verdicts] == [True] * 64
    assert (bench.pipeline.held_packets, len(bench.pipeline.holding)) == (0, 0)


@pytest.mark.parametrize("when_full", ["evict_oldest", "refuse"])
def test_a_full_table_with_held_packets(tmp_path: Path, when_full: str) -> None:
    bench = Bench(tmp_path, INSPECT + f"flows: {{max_flows: 1000, when_full: {when_full}}}\n")
    bench.pipeline.table.max_flows = 1
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) is Answer.HOLD
    other = bench.send(Talk(bench, sport=40001).client("S"))
    assert other is (Answer.DROP if when_full == "refuse" else Answer.INSPECT)
    assert bench.effects.verdicts == ([] if when_full == "refuse" else [(4, False)])
    bench.now += 10_000
    bench.pipeline.tick(bench.now)
    assert len(bench.effects.verdicts) == 1
    assert (bench.pipeline.held_packets, len(bench.pipeline.holding)) == (0, 0)


def test_the_end_of_a_generation_drops_what_is_held(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) is Answer.HOLD
    bench.pipeline.finish(bench.now)
    assert bench.effects.verdicts == [(4, False)]


@pytest.mark.parametrize(("flags", "data", "answer"), [("R", b"", Answer.ONCE), ("RA", b"x", Answer.DROP)])
def test_a_reset_of_an_unknown_connection_may_pass_where_it_may_continue(
    tmp_path: Path, flags: str, data: bytes, answer: Answer
) -> None:
    bench = Bench(tmp_path, CONTINUE)
    assert bench.send(Talk(bench, 9).client(flags, data)) is answer
    assert "flow_table_full" not in bench.pipeline.counts


def test_icmp_error_for_a_flow_of_another_worker(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    error = IP(src="203.0.113.1", dst=CLIENT) / ICMP(type=3, code=4) / IP(bytes(Talk(bench).client("A")))
    assert bench.send(error) is Answer.DROP
    assert bench.send(error, 4, Disposition.INSPECT) is Answer.DROP
    assert bench.known(error) is Answer.ONCE  # the kernel's conntrack knows the flow


def test_a_bug_in_the_judgement_of_a_hold_keeps_no_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) is Answer.HOLD

    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(bench.pipeline, "_judge_now", broken)
    bench.now += 1
    with pytest.raises(RuntimeError, match="bug"):
        bench.pipeline.tick(bench.now)
    assert bench.effects.verdicts == [(4, False)]
    assert (bench.pipeline.held_packets, len(bench.pipeline.holding)) == (0, 0)


def test_a_pause_in_the_first_bytes_does_not_end_detection(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"G")) is Answer.HOLD
    bench.now += 1
    bench.pipeline.tick(bench.now)
    assert bench.effects.verdicts == [(4, True)]
    answers = [bench.known(talk.client(data=piece)) for piece in (b"ET /secret HTTP/1.1\r\n", b"Host: x\r\n\r\n")]
    assert answers[-1] is Answer.DROP_FLOW


LOGS = "log: {events: [http, dns, flow, alert]}\n"


def records(bench: Bench, kind: str) -> list[dict[str, Any]]:
    return [event for event in bench.effects.events if event["event_type"] == kind]


@pytest.mark.parametrize("policy", [INSPECT, "stateful: {order: action}\n"])
@pytest.mark.parametrize("size", [1, 1000])
def test_each_request_is_logged_with_and_without_rules(tmp_path: Path, policy: str, size: int) -> None:
    bench = Bench(tmp_path, policy + LOGS)
    talk = Talk(bench)
    talk.open()
    for number in range(2):
        request = b"GET /%d HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x\r\n\r\n" % number
        for at in range(0, len(request), size):
            bench.known(talk.client(data=request[at : at + size]))
        bench.known(talk.server(data=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"))
    bench.known(talk.client(data=b"GET /last HTTP/1.1\r\nHost: a.test\r\n\r\n"))  # never answered
    bench.now += 1000
    bench.pipeline.tick(bench.now)
    found = records(bench, "http")
    assert [(event["http"]["url"], event["tx_id"]) for event in found] == [("/0", 0), ("/1", 1), ("/last", 2)]
    assert found[0]["http"] == {
        "hostname": "a.test",
        "url": "/0",
        "http_user_agent": "x",
        "http_method": "GET",
        "protocol": "HTTP/1.1",
        "http_content_type": "text/html",
        "status": 200,
        "length": 2,
    }
    assert (found[0]["src_ip"], found[0]["dest_port"]) == (CLIENT, 80)


def test_a_blocked_request_is_logged_and_its_alert_says_the_verdict(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT + LOGS)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.DROP_FLOW
    assert [event["http"]["url"] for event in records(bench, "http")] == ["/secret"]
    (alert,) = records(bench, "alert")
    assert (alert["alert"]["action"], alert["verdict"]) == ("blocked", {"action": "drop"})
    (flow,) = records(bench, "flow")
    assert flow["tcp"]["tcp_flags_ts"] == "1a"
    assert bench.pipeline.verdicts["stateful", "drop", "rule"] == 1


def test_logging_alone_decides_nothing(tmp_path: Path) -> None:
    """What is no HTTP after all, or half a request, is neither held nor dropped for the log's sake."""
    rules = 'default_actions: [drop_established], rules: "pass tcp any any -> any 81 (sid:1;)"'
    policy = f"stateful: {{order: strict, {rules}}}\n"
    with_rules = "stateful: {order: action, rules: 'alert tcp any any -> any 9 (sid:1;)'}\n"
    for text, port in ((policy, 81), (with_rules, 80)):
        answers = []
        for log in ("", LOGS):
            bench = Bench(tmp_path, text + log)
            talk = Talk(bench, port)
            got = [bench.send(talk.client("S")), bench.known(talk.server("SA")), bench.known(talk.client("A"))]
            pieces = (b"GET / HTTP/1.1\r\nHo", b"st x\x00\x01\r\n\r\n", b"\xff" * 40, b"CONNECT \r\n\r\n")
            got += [bench.known(talk.client(data=data)) for data in pieces]
            answers.append([answer in (Answer.DROP, Answer.DROP_FLOW, Answer.HOLD) for answer in got])
        assert answers[0] == answers[1], text


def test_dns_messages_are_logged(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateful: {order: action}\n" + LOGS)
    query = DNS(id=7, qd=DNSQR(qname="a.test"))
    answer = DNS(id=7, qr=1, qd=DNSQR(qname="a.test"), an=DNSRR(rrname="a.test", ttl=9, rdata="192.0.2.9"))
    assert bench.send(IP(src=CLIENT, dst=SERVER) / UDP(sport=4000, dport=53) / query) is Answer.INSPECT
    assert bench.known(IP(src=SERVER, dst=CLIENT) / UDP(sport=53, dport=4000) / answer) is Answer.ACCEPT
    asked, told = records(bench, "dns")
    assert (asked["dns"]["type"], asked["dns"]["queries"]) == ("request", [{"rrname": "a.test", "rrtype": "A"}])
    assert (told["src_ip"], told["dest_port"], told["dns"]["rcode"]) == (CLIENT, 53, "NOERROR")
    assert told["dns"]["answers"] == [{"rrname": "a.test", "rrtype": "A", "ttl": 9, "rdata": "192.0.2.9"}]


def test_verdicts_and_volumes_are_counted(tmp_path: Path) -> None:
    rules = "{priority: 1, action: drop, protocols: [udp]}, {priority: 2, action: pass, protocols: [icmp]}"
    bench = Bench(tmp_path, f"stateless: {{default: forward, rules: [{rules}]}}\n" + INSPECT)
    bench.send(IP(src=CLIENT, dst=SERVER) / UDP(sport=1, dport=2))
    bench.send(IP(src=CLIENT, dst=SERVER) / ICMP())
    bench.send(Talk(bench).client("S"))
    bench.send(Talk(bench, sport=41000).client("PA", b"x"))  # mid-stream
    counted = bench.pipeline
    assert (counted.packets, counted.forwarded, counted.forwarded_bytes) == (4, 2, 81)
    assert counted.verdicts == {
        ("stateless", "drop", "stateless_rule"): 1,
        ("stateless", "pass", "stateless_rule"): 1,
        ("flow", "drop", "stream_exception"): 1,
    }


# -- mode monitor ------------------------------------------------------------------------------------------------------

WATCH = "mode: monitor\n" + INSPECT


def told(bench: Bench) -> list[tuple[str, str, dict[str, str]]]:
    """(event type, reason, verdict) of the records that have a verdict."""
    return [
        (event["event_type"], event["nfw"].get("reason", ""), event["verdict"])
        for event in bench.effects.events
        if "verdict" in event
    ]


def test_monitor_lets_a_dropped_request_go_and_records_it_once(tmp_path: Path) -> None:
    """Held like any request until it can be judged, then released; the rest is the kernel's."""
    bench = Bench(tmp_path, WATCH)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET /secret HT")) is Answer.HOLD
    assert bench.known(talk.client(data=b"TP/1.1\r\nHost: x\r\n\r\n")) is Answer.PASS
    assert [accept for _, accept in bench.effects.verdicts] == [True]
    would_be = {"action": "pass", "would_be": "drop"}
    assert told(bench) == [("alert", "", would_be), ("drop", "rule", would_be), ("flow", "rule", would_be)]
    assert bench.effects.events[0]["alert"]["action"] == "allowed"
    assert bench.effects.injected == []
    assert bench.pipeline.verdicts == {("stateful", "would_drop", "rule"): 1}


def test_monitor_of_a_request_that_does_not_end(tmp_path: Path) -> None:
    """What is decided when a hold runs out does not drop the packet that comes next."""
    policy = "mode: monitor\nstateful: {order: strict, default_actions: [drop_established]}\n"
    bench = Bench(tmp_path, policy)
    talk = Talk(bench)
    talk.open()
    assert bench.known(talk.client(data=b"GET / HT")) in (Answer.HOLD, Answer.PASS)
    bench.now += 1
    bench.pipeline.tick(bench.now)
    assert all(accept for _, accept in bench.effects.verdicts)
    assert bench.known(talk.client(data=b"TP/1.1\r\n\r\n")) in (Answer.PASS, Answer.ACCEPT)
    assert ("drop", "default_drop_established", {"action": "pass", "would_be": "drop"}) in told(bench)


@pytest.mark.parametrize(
    ("policy", "packet", "answer", "reason", "would_be"),
    [
        ("stateless: {default: drop}\n", TCP(dport=80, flags="S"), Answer.PASS, "stateless_default", "drop"),
        ("stateless: {default: drop}\n", UDP(dport=80) / b"x", Answer.PASS, "stateless_default", "drop"),
        ("stateless: {default: drop}\n", ICMP(), Answer.ONCE, "stateless_default", "drop"),
        (
            "stateless: {default: forward, rules: [{priority: 1, action: drop, tcp_flags: [{flags: [SYN]}]}]}\n",
            TCP(dport=80, flags="S"),
            Answer.ONCE,
            "stateless_rule",
            "drop",
        ),
        ("stateful: {stream_exception: drop}\n", TCP(dport=80, flags="A") / b"x", None, "stream_exception", "drop"),
        ("stateful: {stream_exception: reject}\n", TCP(dport=80, flags="A") / b"x", None, "stream_exception", "reject"),
        (INSPECT, UDP(dport=53) / b"BAD", Answer.INSPECT, "rule", "drop"),
    ],
)
def test_monitor_of_every_stage(
    tmp_path: Path, policy: str, packet: Scapy, answer: Answer | None, reason: str, would_be: str
) -> None:
    """``answer`` None: the flow is taken up."""
    bench = Bench(tmp_path, "mode: monitor\n" + policy)
    whole = IP(src=CLIENT, dst=SERVER) / packet
    given = bench.send(whole)
    assert given is answer or (answer is None and given in (Answer.INSPECT, Answer.PASS))
    bench.send(whole)
    records = [record for record in told(bench) if record[0] == "drop"]
    assert records == [("drop", reason, {"action": "pass", "would_be": would_be})]
    assert bench.effects.injected == []


def test_monitor_ends_no_open_flow(tmp_path: Path) -> None:
    policy = "mode: monitor\nopen_flows: {which: all, action: reject}\n" + INSPECT
    bench = Bench(tmp_path, policy)
    packet = IP(src=CLIENT, dst=SERVER) / TCP(sport=40000, dport=80, flags="A", seq=5, ack=6) / b"x"
    assert bench.send(packet, 4, Disposition.INSPECT) is Answer.HOLD
    assert (
        bench.send(IP(src=SERVER, dst=CLIENT) / UDP(sport=53, dport=9) / b"x", 4, Disposition.REPLY) is not Answer.ENDED
    )
    assert bench.effects.injected == []


def test_monitor_of_what_is_malformed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WATCH)
    assert bench.pipeline.packet(1, 0, 0, b"\x45\x00\x00", bench.now) is Answer.ONCE
    assert bench.pipeline.verdicts == {("flow", "would_drop", "invalid_packet"): 1}

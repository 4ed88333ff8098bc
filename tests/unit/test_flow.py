"""engines.flow: transcripts of conversations, timeouts by arithmetic, and a slow obvious twin on random input."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from engines.flow import (
    TRANSITIONS,
    CloseReason,
    Flow,
    FlowTable,
    FlowTimeouts,
    Kind,
    TcpEvent,
    TcpState,
    Tracked,
)
from engines.packet import Packet, decode
from engines.verdict import Direction

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}

PAIRS = {4: ("10.1.0.5", "192.0.2.9"), 6: ("fd00:1::5", "2001:db8::9")}
BOTH = pytest.mark.parametrize("family", [4, 6])


def ip(src: str, dst: str, protocol: int, body: bytes, fragment: int = 0) -> Packet:
    a, b = ip_address(src).packed, ip_address(dst).packed
    if len(a) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, protocol, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return decode(head + a + b + body)


def udp(src: str, dst: str, sport: int, dport: int, size: int = 0) -> Packet:
    return ip(src, dst, 17, struct.pack("!HHHH", sport, dport, 8 + size, 0) + bytes(size))


def tcp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: str,
    seq: int = 0,
    ack: int = 0,
    size: int = 0,
    window: int = 1000,
    options: bytes = b"",
) -> Packet:
    bits = sum(FLAGS[letter] for letter in flags)
    offset = 5 + len(options) // 4 << 4
    head = struct.pack("!HHIIBBHI", sport, dport, seq % 2**32, ack % 2**32, offset, bits, window, 0)
    return ip(src, dst, 6, head + options + bytes(size))


def echo(src: str, dst: str, kind: int, ident: int = 1) -> Packet:
    return ip(src, dst, 1 if "." in src else 58, struct.pack("!BBHHH", kind, 0, 0, ident, 1))


@dataclass
class Conversation:
    """Client and server of one TCP connection. Numbers are relative to the initial ones, as in a packet capture."""

    family: int = 4
    table: FlowTable = field(default_factory=FlowTable)
    now: float = 1000.0
    sport: int = 50000
    client_isn: int = 2**32 - 50  # the sequence space wraps early in every test
    server_isn: int = 7_000_000

    def client(self, flags: str, seq: int = 0, ack: int = 0, size: int = 0, **more: int | bytes) -> Tracked:
        """A segment to the server."""
        client, server = PAIRS[self.family]
        absolute = ack + self.server_isn if "A" in flags else 0
        return self._send(client, server, self.sport, 80, flags, seq + self.client_isn, absolute, size, **more)

    def server(self, flags: str, seq: int = 0, ack: int = 0, size: int = 0, **more: int | bytes) -> Tracked:
        client, server = PAIRS[self.family]
        absolute = ack + self.client_isn if "A" in flags else 0
        return self._send(server, client, 80, self.sport, flags, seq + self.server_isn, absolute, size, **more)

    def _send(
        self, src: str, dst: str, sport: int, dport: int, flags: str, seq: int, ack: int, size: int, **more: int | bytes
    ) -> Tracked:
        return self.table.track(tcp(src, dst, sport, dport, flags, seq, ack, size, **more), self.now)  # type: ignore[arg-type]

    def handshake(self) -> Flow:
        new = self.client("S")
        self.server("SA", 0, 1)
        self.client("A", 1, 1)
        assert new.flow is not None
        assert new.flow.established
        return new.flow

    @property
    def flow(self) -> Flow:
        (flow,) = self.table.flows()
        return flow


def transcript(text: str, family: int = 4) -> Conversation:
    """Play ``>> FLAGS seq ack size | kind state`` (client) and ``<<`` (server) lines; compare what is behind the bar.

    ``kind`` is the answer's, with its reason for INVALID; ``state`` the flow's after it, with ``+`` if the packet
    itself counted as established.
    """
    conversation = Conversation(family)
    got = []
    lines = [line.strip() for line in text.strip().splitlines()]
    for line in lines:
        action, _ = map(str.strip, line.split("|"))
        arrow, flags, *numbers = action.split()
        seq, ack, size = (*map(int, numbers), 0, 0, 0)[:3]
        send = conversation.client if arrow == ">>" else conversation.server
        tracked = send(flags, seq, ack, size)
        kind = f"{tracked.kind.value}:{tracked.reason}" if tracked.reason else tracked.kind.value
        state = tracked.flow.tcp_state.value if tracked.flow else "-"
        if tracked.flow:
            assert tracked.direction is (TO_SERVER if arrow == ">>" else TO_CLIENT)
        got.append(f"{action} | {kind} {state}{'+' if tracked.established else ''}")
        check(conversation.table)
    assert got == [" | ".join(map(str.strip, line.split("|"))) for line in lines]
    return conversation


def check(table: FlowTable) -> None:
    """What holds at all times: bounds, and that keys, wheel and count speak of the same flows."""
    flows = table.flows()
    assert len(flows) == len(table) <= table.max_flows
    filed = [flow for bucket in table._wheel._buckets.values() for flow in bucket]
    assert {flow.id for flow in filed} == {flow.id for flow in flows}
    assert len(filed) == len(flows)
    for flow in flows:
        assert flow._bucket <= flow.last_seen + flow._timeout
        assert flow.close_reason in (None, CloseReason.REUSED)


# --- TCP transcripts --------------------------------------------------------------------------------------------------


@BOTH
def test_handshake_data_and_orderly_close(family: int) -> None:
    """The final ACK of the handshake still counts as not established; the segment after it does."""
    conversation = transcript(
        """
        >> S  0          | new syn_sent
        << SA 0 1        | known syn_received
        >> A  1 1        | known established
        >> PA 1 1 100    | known established+
        << A  1 101      | known established+
        << PA 1 101 2000 | known established+
        >> A  101 2001   | known established+
        >> FA 101 2001   | known fin_wait_1+
        << A  2001 102   | known fin_wait_2+
        << PA 2001 102 9 | known fin_wait_2+
        << FA 2010 102   | known last_ack+
        >> A  102 2011   | known time_wait+
        >> A  102 2011   | known time_wait+
        """,
        family,
    )
    flow = conversation.flow
    assert (flow.client, flow.server) == tuple(ip_address(text).packed for text in PAIRS[family])
    assert (flow.client_port, flow.server_port, flow.protocol, flow.family) == (50000, 80, 6, family)
    assert flow.packets == [7, 6]
    header = (20 if family == 4 else 40) + 20
    assert flow.bytes == [7 * header + 100, 6 * header + 2009]
    assert flow.flags == [0x1B, 0x1B]
    assert flow.established


def test_server_closes_first_and_both_at_once() -> None:
    transcript(
        """
        >> S  0     | new syn_sent
        << SA 0 1   | known syn_received
        >> PA 1 1 9 | known established+
        << FA 1 10  | known fin_wait_1+
        >> FA 10 2  | known last_ack+
        << A  2 11  | known time_wait+
        """
    )
    transcript(
        """
        >> S  0     | new syn_sent
        << SA 0 1   | known syn_received
        >> A  1 1   | known established
        >> FA 1 1   | known fin_wait_1+
        << FA 1 1   | known closing+
        >> A  2 2   | known closing+
        << A  2 2   | known time_wait+
        """
    )


def test_repeated_segments_change_nothing() -> None:
    transcript(
        """
        >> S  0     | new syn_sent
        >> S  0     | known syn_sent
        << SA 0 1   | known syn_received
        << SA 0 1   | known syn_received
        >> S  0     | known syn_received
        >> A  1 1   | known established
        << SA 0 1   | known established+
        >> A  1 1   | known established+
        >> FA 1 1   | known fin_wait_1+
        >> FA 1 1   | known fin_wait_1+
        << A  1 2   | known fin_wait_2+
        >> FA 1 1   | known fin_wait_2+
        """
    )


def test_simultaneous_open() -> None:
    """RFC 9293 figure 7."""
    transcript(
        """
        >> S  0     | new syn_sent
        << S  0     | known syn_received
        >> SA 0 1   | known syn_received
        << SA 0 1   | known established
        >> PA 1 1 5 | known established+
        """
    )


def test_fast_open_carries_data_in_the_syn() -> None:
    transcript(
        """
        >> S  0 0 100   | new syn_sent
        << SA 0 101     | known syn_received
        << PA 1 101 500 | known syn_received
        >> A  101 501   | known established
        """
    )


def test_data_before_the_handshake_is_over() -> None:
    transcript(
        """
        >> S  0      | new syn_sent
        >> PA 1 1 5  | invalid:before_handshake syn_sent
        << PA 1 1 5  | invalid:before_handshake syn_sent
        << FA 1 1    | invalid:before_handshake syn_sent
        << SA 0 1    | known syn_received
        >> PA 1 0 5  | invalid:bad_ack syn_received
        >> PA 1 2 5  | invalid:bad_ack syn_received
        >> PA 1 1 5  | known established+
        """
    )


def test_syn_ack_with_a_wrong_acknowledgment() -> None:
    """It passes bare, so that the client can reset the old half-open connection behind it, but opens nothing."""
    transcript(
        """
        >> S  0      | new syn_sent
        << SA 0 9    | known syn_sent
        << SA 0 9 1  | invalid:bad_ack syn_sent
        >> R  9      | known syn_sent
        << SA 0 1    | known syn_received
        """
    )


def test_the_server_still_holds_an_older_connection() -> None:
    """RFC 9293 section 3.5.1: SYN, challenge ACK, RST, SYN again."""
    transcript(
        """
        >> S  0         | new syn_sent
        << A  5000 7777 | known syn_sent
        >> R  7777      | known syn_sent
        >> S  0         | known syn_sent
        << SA 0 1       | known syn_received
        >> A  1 1       | known established
        """
    )


def test_refused_connection() -> None:
    transcript(
        """
        >> S  0      | new syn_sent
        << R  0      | invalid:bad_ack syn_sent
        << RA 0 2    | invalid:bad_ack syn_sent
        << RA 0 1    | known closed
        """
    )


def test_rst_must_be_where_the_receiver_expects_it() -> None:
    transcript(
        """
        >> S  0           | new syn_sent
        << SA 0 1         | known syn_received
        >> A  1 1         | known established
        >> PA 1 1 100     | known established+
        << R  5000        | invalid:out_of_window established+
        << R  0           | invalid:out_of_window established+
        >> R  2000        | invalid:out_of_window established+
        >> R  101         | known closed+
        << A  1 101       | known closed+
        << RA 1 101       | known closed+
        """
    )
    transcript(
        """
        >> S  0           | new syn_sent
        << SA 0 1         | known syn_received
        << R  1           | known closed
        """
    )


def test_fin_must_be_where_the_receiver_expects_it() -> None:
    transcript(
        """
        >> S  0           | new syn_sent
        << SA 0 1         | known syn_received
        >> A  1 1         | known established
        >> FA 9000 1      | invalid:out_of_window established+
        >> PA 1 1 100     | known established+
        >> FA 101 1       | known fin_wait_1+
        >> FA 55 1        | invalid:second_fin_elsewhere fin_wait_1+
        """
    )


@pytest.mark.parametrize("flags", ["", "F", "P", "U", "FPU", "SF", "SFA", "SR", "SRA", "FR", "FRA", "RU", "SFRPAUEC"])
def test_flags_no_stack_sends(flags: str) -> None:
    conversation = Conversation()
    first = conversation.client(flags)
    assert (first.kind, first.reason, first.flow) == (Kind.INVALID, "tcp_flags", None)
    flow = conversation.handshake()
    before = (flow.packets[:], flow.last_seen)
    conversation.now += 1
    inside = conversation.client(flags, 1, 1)
    assert (inside.kind, inside.reason, inside.flow) == (Kind.INVALID, "tcp_flags", flow)
    assert (flow.packets, flow.last_seen) == before  # and it is not accounted
    assert conversation.table.counters.invalid == 2


@pytest.mark.parametrize("flags", ["A", "PA", "AU", "PAE", "AC"])
def test_flags_that_are_fine(flags: str) -> None:
    conversation = Conversation()
    conversation.handshake()
    assert conversation.client(flags, 1, 1, 5).kind is Kind.KNOWN


def test_ecn_setup_syn_is_a_syn() -> None:
    assert Conversation().client("SEC").kind is Kind.NEW


def test_a_syn_starts_anew_once_the_flow_is_over() -> None:
    conversation = Conversation()
    flow = conversation.handshake()
    conversation.client("R", 1)
    assert flow.tcp_state is TcpState.CLOSED
    conversation.client_isn += 90_000
    again = conversation.client("S")
    assert (again.kind, again.ended, again.established) == (Kind.NEW, flow, False)
    assert again.flow is not None
    assert again.flow.id > flow.id
    assert flow.close_reason is CloseReason.RESET
    assert conversation.table.flows() == [again.flow]
    check(conversation.table)


def test_the_new_flow_may_run_the_other_way() -> None:
    conversation = Conversation()
    flow = conversation.handshake()
    conversation.client("R", 1)
    again = conversation.server("S", 50_000)
    assert (again.kind, again.direction, again.ended) == (Kind.NEW, TO_SERVER, flow)
    assert again.flow is not None
    assert again.flow.client == flow.server


def test_a_client_that_tries_again_before_any_answer_starts_anew() -> None:
    conversation = Conversation()
    first = conversation.client("S").flow
    again = conversation.client("S", 5000)
    assert (again.kind, again.ended) == (Kind.NEW, first)
    assert first is not None
    assert first.close_reason is CloseReason.REUSED


def test_a_syn_inside_a_connection_waits_for_what_the_server_says() -> None:
    """RFC 5961 section 4: the server answers with an ACK; only a client that has lost the connection resets it."""
    conversation = transcript(
        """
        >> S  0        | new syn_sent
        << SA 0 1      | known syn_received
        >> A  1 1      | known established
        >> S  90000    | known established+
        << A  1 1      | known established+
        >> R  1        | known closed+
        """
    )
    old = conversation.flow
    assert conversation.client("S", 90000).ended is old
    transcript(
        """
        >> S  0        | new syn_sent
        << SA 0 1      | known syn_received
        >> A  1 1      | known established
        >> S  900 0 5  | invalid:stray_syn established+
        << SA 900 1 5  | invalid:stray_syn established+
        >> PA 1 1 5    | known established+
        """
    )


def test_both_ends_have_lost_the_connection() -> None:
    """The server's SYN|ACK to a stray SYN closes the flow, the repeated SYN starts one with a known beginning."""
    conversation = transcript(
        """
        >> S  0            | new syn_sent
        << SA 0 1          | known syn_received
        >> A  1 1          | known established
        >> S  90000        | known established+
        << SA 50000 90001  | invalid:reopened closed+
        >> S  90000        | new syn_sent
        << SA 50000 90001  | known syn_received
        >> A  90001 50001  | known established
        """
    )
    assert conversation.table.counters.reused == 1
    transcript(
        """
        >> S  0            | new syn_sent
        << SA 0 1          | known syn_received
        >> A  1 1          | known established
        >> S  90000        | known established+
        << RA 3000000 90001  | known closed+
        """
    )


def test_a_scaled_window_is_the_limit_for_a_rst() -> None:
    """RFC 7323: the shift applies behind the handshake, and only when both sides offered it."""
    offer = b"\x03\x03\x07\0"
    for server_options, far_enough in ((offer, True), (b"", False)):
        conversation = Conversation()
        conversation.client("S", options=offer)
        conversation.server("SA", 0, 1, options=server_options)
        conversation.client("A", 1, 1, window=1000)
        kind = conversation.server("R", 100_000).kind
        assert (kind is Kind.KNOWN) == far_enough


def test_midstream_tcp_makes_no_flow() -> None:
    for flags in ("A", "PA", "SA", "FA", "R", "RA"):
        conversation = Conversation()
        tracked = conversation.client(flags, 1, 1, 10)
        assert (tracked.kind, tracked.flow, len(conversation.table)) == (Kind.MIDSTREAM, None, 0)
        assert conversation.table.counters.midstream == 1


@BOTH
def test_adopting_a_midstream_packet(family: int) -> None:
    client, server = PAIRS[family]
    table = FlowTable()
    packet = tcp(client, server, 50000, 80, "PA", 1, 1, 10)
    assert table.track(packet, 1).kind is Kind.MIDSTREAM
    adopted = table.adopt(packet, 1)
    flow = adopted.flow
    assert flow is not None
    assert (adopted.kind, adopted.direction, adopted.established) == (Kind.MIDSTREAM, TO_SERVER, False)
    assert (flow.midstream, flow.tcp_state, flow.packets, flow.client_port) == (
        True,
        TcpState.ESTABLISHED,
        [1, 0],
        50000,
    )
    check(table)
    reply = table.track(tcp(server, client, 80, 50000, "A", 1, 11), 2)
    # Like Suricata, flow:established never matches a flow picked up in its middle.
    assert (reply.kind, reply.direction, reply.established, reply.flow) == (Kind.KNOWN, TO_CLIENT, False, flow)
    assert table.track(tcp(client, server, 50000, 80, "FA", 11, 1), 3).kind is Kind.KNOWN
    table.track(tcp(server, client, 80, 50000, "FA", 1, 12), 3)
    table.track(tcp(client, server, 50000, 80, "A", 12, 2), 3)
    assert flow.tcp_state is TcpState.TIME_WAIT
    assert table.adopt(packet, 4).kind is Kind.KNOWN  # nothing to adopt any more
    assert table.counters.adopted == 1


@pytest.mark.parametrize(
    ("sport", "dport", "flags", "direction"),
    [
        (50000, 80, "A", TO_SERVER),
        (80, 50000, "A", TO_CLIENT),
        (50000, 8443, "A", TO_SERVER),
        (8443, 50000, "A", TO_SERVER),  # a guess that must be wrong sometimes
        (8443, 50000, "SA", TO_CLIENT),
        (22, 25, "PA", TO_CLIENT),
    ],
)
def test_who_is_the_client_of_an_adopted_flow(sport: int, dport: int, flags: str, direction: Direction) -> None:
    table = FlowTable()
    adopted = table.adopt(tcp("10.0.0.1", "10.0.0.2", sport, dport, flags, 5, 5), 0)
    assert adopted.flow is not None
    assert adopted.direction is direction
    assert adopted.flow.server_port == (dport if direction is TO_SERVER else sport)
    assert adopted.flow.packets[direction] == 1


def test_adopt_as_established_and_adopt_refused() -> None:
    table = FlowTable(max_flows=1, when_full="refuse")
    adopted = table.adopt(tcp("10.0.0.1", "10.0.0.2", 5, 6, "A"), 0, established=True)
    assert adopted.flow is not None
    assert table.track(tcp("10.0.0.2", "10.0.0.1", 6, 5, "A"), 0).established
    assert table.adopt(tcp("10.0.0.1", "10.0.0.2", 7, 6, "A"), 0).kind is Kind.REFUSED
    # What track() does not call midstream is not adopted either.
    table = FlowTable()
    assert table.adopt(tcp("10.0.0.1", "10.0.0.2", 5, 6, "R"), 0).flow is None
    assert table.adopt(tcp("10.0.0.1", "10.0.0.2", 5, 6, "SF"), 0).kind is Kind.INVALID
    assert table.adopt(tcp("10.0.0.1", "10.0.0.2", 5, 6, "S"), 0).kind is Kind.NEW
    assert table.adopt(udp("10.0.0.1", "10.0.0.2", 5, 6), 0).kind is Kind.NEW


def test_the_transition_table_is_whole() -> None:
    """Every state but NEW has a row, every event leads somewhere, and RESET ends all that is open."""
    assert set(TRANSITIONS) == set(TcpState) - {TcpState.NEW}
    assert {event for row in TRANSITIONS.values() for event in row} == set(TcpEvent)
    for state, row in TRANSITIONS.items():
        assert state is TcpState.CLOSED or row[TcpEvent.RESET] is TcpState.CLOSED
    reached = {TcpState.SYN_SENT}
    while more := {to for state in reached for to in TRANSITIONS[state].values()} - reached:
        reached |= more
    assert reached == set(TRANSITIONS)


# --- other protocols --------------------------------------------------------------------------------------------------


@BOTH
def test_udp_is_established_by_the_reply(family: int) -> None:
    """Suricata: once both sides were seen, the packet that makes it so included."""
    client, server = PAIRS[family]
    table = FlowTable()
    new = table.track(udp(client, server, 5000, 53, 30), 1)
    assert (new.kind, new.direction, new.established) == (Kind.NEW, TO_SERVER, False)
    again = table.track(udp(client, server, 5000, 53), 2)
    assert (again.kind, again.established, again.flow) == (Kind.KNOWN, False, new.flow)
    reply = table.track(udp(server, client, 53, 5000, 500), 3)
    assert (reply.kind, reply.direction, reply.established, reply.flow) == (Kind.KNOWN, TO_CLIENT, True, new.flow)
    assert table.track(udp(client, server, 5000, 53), 4).established
    flow = new.flow
    assert flow is not None
    assert (flow.packets, flow.created, flow.last_seen, flow.tcp_state) == ([3, 1], 1, 4, TcpState.NEW)
    assert table.track(udp(client, server, 5001, 53), 4).kind is Kind.NEW


@BOTH
def test_a_udp_flow_older_than_the_table_is_resumed_by_its_server(family: int) -> None:
    client, server = PAIRS[family]
    table = FlowTable(max_flows=1)
    first = udp(server, client, 53, 4000)
    assert not table.knows(first, 0)
    resumed = table.resume(first, 0)
    assert (resumed.kind, resumed.direction, resumed.established) == (Kind.NEW, TO_CLIENT, True)
    flow = resumed.flow
    assert flow is not None
    assert (flow.client_port, flow.server_port, flow.packets) == (4000, 53, [0, 1])
    assert table.knows(first, 1)
    asked = table.track(udp(client, server, 4000, 53), 1)
    assert (asked.flow, asked.direction, asked.kind, asked.established) == (flow, TO_SERVER, Kind.KNOWN, True)
    check(table)
    late = 1 + table.timeouts.udp
    assert not table.knows(first, late)
    again = table.resume(first, late)
    assert again.ended is flow
    assert flow.close_reason is CloseReason.TIMEOUT
    other = table.resume(udp(server, client, 53, 4001), late)
    assert other.ended is again.flow
    table.when_full = "refuse"
    assert table.resume(udp(server, client, 53, 4002), late).kind is Kind.REFUSED
    check(table)


@BOTH
def test_tcp_and_udp_with_equal_ports_are_two_flows(family: int) -> None:
    client, server = PAIRS[family]
    table = FlowTable()
    one = table.track(udp(client, server, 5000, 443), 1)
    other = table.track(tcp(client, server, 5000, 443, "S"), 1)
    assert (one.kind, other.kind, len(table)) == (Kind.NEW, Kind.NEW, 2)


@pytest.mark.parametrize(("family", "request_type", "reply_type"), [(4, 8, 0), (4, 13, 14), (6, 128, 129)])
def test_icmp_queries_share_their_identifier(family: int, request_type: int, reply_type: int) -> None:
    client, server = PAIRS[family]
    table = FlowTable()
    stray = table.track(echo(server, client, reply_type), 0)
    assert (stray.kind, stray.reason) == (Kind.INVALID, "unsolicited_reply")
    new = table.track(echo(client, server, request_type), 0)
    reply = table.track(echo(server, client, reply_type), 0)
    assert (new.kind, reply.kind, reply.direction, reply.flow) == (Kind.NEW, Kind.KNOWN, TO_CLIENT, new.flow)
    assert table.track(echo(client, server, request_type, ident=2), 0).kind is Kind.NEW
    assert table.track(echo(server, client, reply_type, ident=3), 0).kind is Kind.INVALID


@BOTH
def test_other_protocols_are_told_apart_by_addresses(family: int) -> None:
    client, server = PAIRS[family]
    table = FlowTable()
    new = table.track(ip(client, server, 47, bytes(30)), 0)
    reply = table.track(ip(server, client, 47, bytes(9)), 0)
    assert (new.kind, reply.kind, reply.flow, reply.established) == (Kind.NEW, Kind.KNOWN, new.flow, True)
    assert table.track(ip(client, server, 50, bytes(30)), 0).kind is Kind.NEW


def test_source_equal_to_destination() -> None:
    table = FlowTable()
    for packet in (udp("10.0.0.1", "10.0.0.1", 7, 7), tcp("10.0.0.1", "10.0.0.1", 7, 7, "S")):
        new = table.track(packet, 0)
        again = table.track(packet, 1)
        assert (new.kind, again.kind, again.direction, again.flow) == (Kind.NEW, Kind.KNOWN, TO_SERVER, new.flow)
        check(table)
    assert len(table.expire(1000)) == 2
    assert table._tcp == table._other == {}


def test_what_cannot_belong_to_a_flow() -> None:
    table = FlowTable()
    for packet, reason in (
        (decode(b""), "truncated"),
        (tcp("10.0.0.1", "10.0.0.2", 1, 2, "S", options=b"").data[:-1], "truncated"),
        (ip("10.0.0.1", "10.0.0.2", 17, bytes(3)), "truncated"),
        (ip("10.0.0.1", "10.0.0.2", 17, bytes(30), fragment=5), "fragment"),
        (ip("10.0.0.1", "10.0.0.2", 6, bytes(30), fragment=5), "fragment"),
    ):
        tracked = table.track(packet if isinstance(packet, Packet) else decode(packet), 0)
        assert (tracked.kind, tracked.reason, tracked.flow) == (Kind.INVALID, reason, None)
    assert len(table) == 0


# --- ICMP errors ------------------------------------------------------------------------------------------------------


def icmp_error(router: str, to: str, about: Packet, kept: int = 8) -> Packet:
    quote = about.data[: about.l4_offset + kept]
    return ip(router, to, 1 if "." in to else 58, struct.pack("!BBHI", 3, 1, 0, 0) + quote)


@BOTH
def test_icmp_errors_belong_to_the_flow_they_quote(family: int) -> None:
    client, server = PAIRS[family]
    router = "203.0.113.1" if family == 4 else "2001:db8:ffff::1"
    for packet, reply in (
        (udp(client, server, 5, 6, 100), udp(server, client, 6, 5, 100)),
        (tcp(client, server, 5, 6, "S", 1), tcp(server, client, 6, 5, "SA", 1, 2)),
        (echo(client, server, 8 if family == 4 else 128), echo(server, client, 0 if family == 4 else 129)),
    ):
        table = FlowTable()
        flow = table.track(packet, 0).flow
        assert flow is not None
        tracked = table.track(icmp_error(router, client, packet), 5)
        assert (tracked.kind, tracked.flow, tracked.direction) == (Kind.RELATED, flow, TO_CLIENT)
        assert table.track(icmp_error(router, server, reply), 5).direction is TO_SERVER
        assert (flow.packets, flow.last_seen) == ([1, 0], 0)  # an error keeps nothing alive
        stray = table.track(icmp_error(router, server, packet), 5)
        assert (stray.kind, stray.reason) == (Kind.INVALID, "misdirected_icmp")
        assert table.track(icmp_error(router, client, packet), 400).reason == "unrelated_icmp"
        assert table.counters.related == 2


def test_icmp_errors_about_nothing_we_know() -> None:
    table = FlowTable()
    packet = udp("10.0.0.1", "10.0.0.2", 5, 6)
    assert table.track(icmp_error("10.9.9.9", "10.0.0.1", packet), 0).reason == "unrelated_icmp"
    table.track(packet, 0)
    assert table.track(icmp_error("10.9.9.9", "10.0.0.1", packet, kept=7), 0).reason == "bad_quote"
    error = icmp_error("10.9.9.9", "10.0.0.1", packet)
    assert table.track(icmp_error("10.9.9.9", "10.9.9.9", error), 0).reason == "unrelated_icmp"  # an error's error
    assert len(table) == 1


# --- timeouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "timeout", "reason"),
    [
        (["c S"], 60, CloseReason.TIMEOUT),
        (["c S", "s SA 0 1"], 60, CloseReason.TIMEOUT),
        (["c S", "s SA 0 1", "c A 1 1"], 350, CloseReason.TIMEOUT),
        (["c S", "s SA 0 1", "c A 1 1", "c FA 1 1"], 60, CloseReason.TIMEOUT),
        (["c S", "s SA 0 1", "c A 1 1", "c FA 1 1", "s A 1 2"], 350, CloseReason.TIMEOUT),
        (["c S", "s SA 0 1", "c A 1 1", "c FA 1 1", "s FA 1 1"], 60, CloseReason.CLOSED),
        (["c S", "s SA 0 1", "c A 1 1", "c FA 1 1", "s FA 1 2", "c A 2 2"], 60, CloseReason.CLOSED),
        (["c S", "s SA 0 1", "c A 1 1", "c R 1"], 10, CloseReason.RESET),
        (["c S", "s RA 0 1"], 10, CloseReason.RESET),
    ],
)
def test_tcp_timeouts(steps: list[str], timeout: float, reason: CloseReason) -> None:
    conversation = Conversation()
    for step in steps:
        side, flags, *numbers = step.split()
        (conversation.client if side == "c" else conversation.server)(flags, *map(int, numbers))
        conversation.now += 0.25
    flow = conversation.flow
    end = flow.last_seen + timeout
    assert conversation.table.expire(end - 0.001) == []
    assert conversation.table.expire(end) == [flow]
    assert (flow.close_reason, len(conversation.table), conversation.table.counters.expired) == (reason, 0, 1)
    check(conversation.table)
    assert conversation.table.expire(end + 9999) == []


@pytest.mark.parametrize(
    ("packet", "timeout"),
    [
        (udp("10.0.0.1", "10.0.0.2", 5, 6), 120),
        (echo("10.0.0.1", "10.0.0.2", 8), 30),
        (echo("fd00::1", "fd00::2", 128), 30),
        (ip("10.0.0.1", "10.0.0.2", 47, bytes(8)), 120),
    ],
)
def test_other_timeouts(packet: Packet, timeout: float) -> None:
    table = FlowTable()
    flow = table.track(packet, 100.5).flow
    assert flow is not None
    table.track(packet, 107.25)
    assert table.expire(107 + timeout) == []
    assert table.expire(107.25 + timeout) == [flow]
    assert flow.close_reason is CloseReason.TIMEOUT


def test_timeouts_can_be_set() -> None:
    table = FlowTable(timeouts=FlowTimeouts(tcp_idle=6000, udp=1.5))
    conversation = Conversation(table=table, now=0)
    conversation.handshake()
    table.track(udp("10.0.0.1", "10.0.0.2", 5, 6), 0)
    assert len(table.expire(1.5)) == 1
    assert table.expire(5999.9) == []
    assert len(table.expire(6000)) == 1


@pytest.mark.parametrize("wrong", [{"tcp_idle": 59.0}, {"tcp_idle": 6001.0}, {"udp": 0.0}, {"icmp": -1.0}])
def test_timeouts_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowTimeouts(**wrong)


def test_the_answer_does_not_wait_for_expire() -> None:
    """A packet after the timeout meets no flow, whether or not expire() has run (AWS: data drops, a SYN is new)."""
    conversation = Conversation()
    flow = conversation.handshake()
    conversation.now += 350
    late = conversation.client("PA", 1, 1, 10)
    assert (late.kind, late.flow, late.ended) == (Kind.MIDSTREAM, None, flow)
    assert flow.close_reason is CloseReason.TIMEOUT
    assert conversation.table.expire(conversation.now) == []
    assert conversation.client("S", 99).kind is Kind.NEW
    table = FlowTable()
    first = table.track(udp("10.0.0.1", "10.0.0.2", 5, 6), 0).flow
    again = table.track(udp("10.0.0.2", "10.0.0.1", 6, 5), 120)
    assert (again.kind, again.ended, again.direction) == (Kind.NEW, first, TO_SERVER)
    check(table)


def test_expire_costs_what_is_due() -> None:
    table = FlowTable()
    for port in range(100):
        table.track(udp("10.0.0.1", "10.0.0.2", port, 53), port / 10)
    assert table.expire(100.0) == []
    assert len(table.expire(124.95, limit=10)) == 10
    assert len(table.expire(124.95)) == 40
    check(table)
    assert len(table.expire(130.0)) == 50


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_refuse_when_full() -> None:
    table = FlowTable(max_flows=2, when_full="refuse")
    for port in (1, 2):
        assert table.track(udp("10.0.0.1", "10.0.0.2", port, 53), 0).kind is Kind.NEW
    refused = table.track(udp("10.0.0.1", "10.0.0.2", 3, 53), 0)
    assert (refused.kind, refused.reason, refused.flow) == (Kind.REFUSED, "flow_table_full", None)
    assert table.track(tcp("10.0.0.1", "10.0.0.2", 3, 53, "S"), 0).kind is Kind.REFUSED
    assert table.track(udp("10.0.0.1", "10.0.0.2", 2, 53), 0).kind is Kind.KNOWN
    assert table.counters.refused == 2
    table.expire(200)
    assert table.track(udp("10.0.0.1", "10.0.0.2", 3, 53), 200).kind is Kind.NEW


def test_evict_the_one_nearest_to_its_timeout() -> None:
    """Not yet opened connections go before those in use, however old those are."""
    conversation = Conversation(table=FlowTable(max_flows=3))
    table = conversation.table
    conversation.handshake()
    a = table.track(udp("10.0.0.1", "10.0.0.2", 1, 53), 1010).flow
    b = table.track(udp("10.0.0.1", "10.0.0.2", 2, 53), 1020).flow
    table.track(udp("10.0.0.1", "10.0.0.2", 1, 53), 1030)  # a is now younger than b
    c = table.track(tcp("10.0.0.1", "10.0.0.2", 9, 80, "S"), 1040)
    assert (c.kind, c.ended, table.evicted) == (Kind.NEW, b, 1)
    assert b is not None
    assert b.close_reason is CloseReason.EVICTED
    d = table.track(udp("10.0.0.1", "10.0.0.2", 4, 53), 1041)
    assert d.ended is c.flow  # 60 s for a handshake
    e = table.track(udp("10.0.0.1", "10.0.0.2", 5, 53), 1042)
    assert e.ended is a
    check(table)


def test_eviction_looks_at_few_flows() -> None:
    """All were seen since they were filed: one goes, and no packet pays for filing all of them anew."""
    table = FlowTable(max_flows=1000)
    packets = [udp("10.0.0.1", "10.0.0.2", port, 53) for port in range(1001)]
    for packet in packets[:1000]:
        table.track(packet, 0)
    for packet in packets[:1000]:
        table.track(packet, 50)
    filed = len(table._wheel._buckets[120])
    assert table.track(packets[1000], 60).ended is not None
    assert filed - len(table._wheel._buckets[120]) <= 16
    check(table)


def test_a_flood_leaves_nothing_behind() -> None:
    table = FlowTable(max_flows=50)
    for port in range(3000):
        table.track(tcp("10.0.0.1", "10.0.0.2", port, 80, "S"), port / 1000)
    assert (len(table), table.evicted) == (50, 2950)
    assert len(table._tcp) == 100
    check(table)
    assert len(table.expire(1000)) == 50
    assert table._wheel._buckets == {}
    assert table._wheel._ticks == []


def test_remove() -> None:
    conversation = Conversation()
    flow = conversation.handshake()
    assert conversation.table.remove(flow)
    assert flow.close_reason is CloseReason.FLUSHED
    assert not conversation.table.remove(flow)
    assert conversation.client("PA", 1, 1, 5).kind is Kind.MIDSTREAM
    assert len(conversation.table) == 0
    check(conversation.table)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="max_flows"):
        FlowTable(max_flows=0)
    with pytest.raises(ValueError, match="when_full"):
        FlowTable(when_full="explode")  # type: ignore[arg-type]


# --- random input -----------------------------------------------------------------------------------------------------


class SlowTable:
    """The twin: a list of conversations, searched from the front. UDP, ICMP echo and GRE; ``refuse`` when full."""

    def __init__(self, max_flows: int) -> None:
        self.max_flows = max_flows
        self.rows: list[list[object]] = []  # [client end, server end, protocol, last seen, both seen, packets]

    def track(self, source: object, target: object, protocol: str, reply: bool, now: float) -> tuple[object, ...]:
        limit = {"udp": 120, "echo": 30, "gre": 120}[protocol]
        for row in self.rows:
            if row[2] == protocol and {str(row[0]), str(row[1])} == {str(source), str(target)}:
                if now - row[3] >= limit:  # type: ignore[operator]
                    self.rows.remove(row)
                    break
                row[3] = now
                direction = TO_SERVER if row[0] == source else TO_CLIENT
                row[4] = row[4] or direction is TO_CLIENT
                row[5][direction] += 1  # type: ignore[index]
                return "known", direction, row[4], list(row[5])  # type: ignore[call-overload]
        if reply:
            return ("invalid",)
        if len(self.rows) >= self.max_flows:
            return ("refused",)
        self.rows.append([source, target, protocol, now, False, [1, 0]])
        return "new", TO_SERVER, False, [1, 0]

    def expire(self, now: float) -> int:
        gone = [row for row in self.rows if now - row[3] >= (30 if row[2] == "echo" else 120)]  # type: ignore[operator]
        for row in gone:
            self.rows.remove(row)
        return len(gone)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_slow_twin(seed: int) -> None:
    rng = random.Random(seed)
    table, slow, now = FlowTable(max_flows=40, when_full="refuse"), SlowTable(40), 1000.0
    hosts = {4: ["10.0.0.1", "10.0.0.2", "10.0.0.3"], 6: ["fd00::1", "fd00::2", "fd00::3"]}
    for _ in range(4000):
        now += rng.choice([0, 0.1, 1, 3, rng.random() * 40])
        family = rng.choice([4, 6])
        a, b = rng.sample(hosts[family], 2)
        protocol = rng.choice(["udp", "udp", "echo", "gre"])
        reply = False
        if protocol == "udp":
            sport, dport = rng.choice([53, 54]), rng.choice([53, 54])
            packet, source, target = udp(a, b, sport, dport), (a, sport), (b, dport)
        elif protocol == "echo":
            ident, reply = rng.choice([1, 2]), rng.random() < 0.5
            packet = echo(a, b, {(4, 0): 8, (4, 1): 0, (6, 0): 128, (6, 1): 129}[family, reply], ident)
            source, target = (a, ident), (b, ident)
        else:
            packet, source, target = ip(a, b, 47, bytes(4)), (a, 0), (b, 0)
        tracked = table.track(packet, now)
        expected = slow.track(source, target, protocol, reply, now)
        got: tuple[object, ...] = (tracked.kind.value,)
        if tracked.flow is not None:
            got = (*got, tracked.direction, tracked.established, tracked.flow.packets)
        assert got == expected
        if rng.random() < 0.05:
            assert len(table.expire(now)) == slow.expire(now)
            check(table)


@pytest.mark.parametrize("seed", range(6))
def test_any_segments_in_any_order(seed: int) -> None:
    """Never raises, never exceeds its bounds, and each state is one the table of transitions allows."""
    rng = random.Random(seed)
    table, now = FlowTable(max_flows=8), 1000.0
    client, server = PAIRS[rng.choice([4, 6])]
    numbers = [0, 1, 2, 100, 2**31, 2**32 - 1, 1000]
    for _ in range(6000):
        now += rng.choice([0, 0.5, 20])
        flags = rng.choice(["S", "SA", "A", "PA", "FA", "R", "RA", "".join(rng.sample("FSRPAU", rng.randrange(6)))])
        port, size = 4000 + rng.randrange(12), rng.choice([0, 0, 5])
        ends = (client, server, port, 80) if rng.random() < 0.5 else (server, client, 80, port)
        packet = tcp(*ends, flags, rng.choice(numbers), rng.choice(numbers), size)
        before = {flow.id: flow.tcp_state for flow in table.flows()}
        tracked = table.adopt(packet, now) if rng.random() < 0.05 else table.track(packet, now)
        if rng.random() < 0.1:
            table.expire(now)
        flow = tracked.flow
        if flow is not None and flow.id in before and tracked.reason != "reopened":
            assert flow.tcp_state in reachable(before[flow.id])
        assert tracked.kind is not Kind.KNOWN or flow is not None
        if tracked.ended is not None:
            assert tracked.ended.close_reason is not None
            assert tracked.ended.id not in {each.id for each in table.flows()}
        check(table)


def reachable(state: TcpState) -> set[TcpState]:
    """Where one segment may lead: it can open, acknowledge a FIN and carry one."""
    states = {state}
    for _ in range(3):
        states |= {to for each in states for to in TRANSITIONS[each].values()}
    return states


@pytest.mark.parametrize("seed", range(30))
def test_a_true_connection_is_never_invalid(seed: int) -> None:
    """Two ends that lose, repeat and reorder segments: all are KNOWN, and the flow ends in TIME_WAIT."""
    rng = random.Random(seed)
    conversation = Conversation(4 + 2 * (seed % 2), client_isn=rng.getrandbits(32), server_isn=rng.getrandbits(32))
    conversation.client("S")
    conversation.server("SA", 0, 1)
    sent = {TO_SERVER: 1, TO_CLIENT: 1}  # next new sequence number of each side
    acked = {TO_SERVER: 1, TO_CLIENT: 1}  # what each side has acknowledged
    send = {TO_SERVER: conversation.client, TO_CLIENT: conversation.server}
    assert conversation.client("A", 1, 1).kind is Kind.KNOWN
    window: list[tuple[Direction, str, int, int, int]] = []
    for _ in range(60):
        side = rng.choice([TO_SERVER, TO_CLIENT])
        acked[side] = rng.randint(acked[side], sent[side.reply])
        size = rng.choice([0, 1, 300])
        window.append((side, "PA" if size else "A", sent[side], acked[side], size))
        sent[side] += size
        if len(window) > 4:
            rng.shuffle(window)
            for segment in (window.pop(), *rng.sample(window, rng.randrange(2))):
                if sent[segment[0]] - segment[2] > 3000:
                    continue
                assert send[segment[0]](*segment[1:]).kind is Kind.KNOWN
    for segment in window:
        assert send[segment[0]](*segment[1:]).kind is Kind.KNOWN
    first = rng.choice([TO_SERVER, TO_CLIENT])
    second = first.reply
    tail = [
        (first, "FA", sent[first], sent[second], 0),
        (second, "A", sent[second], sent[first] + 1, 0),
        (second, "FA", sent[second], sent[first] + 1, 0),
        (first, "A", sent[first] + 1, sent[second] + 1, 0),
    ]
    for index, segment in enumerate(tail):
        for again in rng.sample(tail[:index], rng.randrange(index + 1)):
            assert send[again[0]](*again[1:]).kind is Kind.KNOWN
        assert send[segment[0]](*segment[1:]).kind is Kind.KNOWN
    assert conversation.flow.tcp_state is TcpState.TIME_WAIT

"""What a bystander takes for final, as transcripts: client's segments and server's, and what each hands out."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from engines.packet import Packet, decode
from engines.verdict import Direction
from engines.watch.segments import OverlapPolicy
from engines.watch.session import Session, SessionOptions, State, UrgentPolicy

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}


def segment(direction: Direction, flags: str, seq: int, ack: int, data: bytes = b"", options: bytes = b"") -> Packet:
    addresses = [bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])]
    ports = [4000, 80]
    if direction is S:
        addresses.reverse()
        ports.reverse()
    bits = sum(FLAGS[flag] for flag in flags)
    options += b"\0" * (-len(options) % 4)
    length = 20 + len(options)
    tcp = struct.pack("!HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, length // 4 << 4, bits, 65535, 0, 0) + options
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length + len(data), 0, 0, 64, 6, 0)
    return decode(head + addresses[0] + addresses[1] + tcp + data)


class Talk:
    """A session and what came out of it."""

    def __init__(self, **options: Any) -> None:
        self.session = Session(SessionOptions(**options), (OverlapPolicy.BSD, OverlapPolicy.BSD))
        self.got: list[tuple[Direction, bytes]] = []
        self.closed: list[Direction] = []

    def say(self, direction: Direction, flags: str, seq: int, ack: int = 0, data: bytes = b"", **more: Any) -> Any:
        packet = segment(direction, flags, seq, ack, data, **more)
        step = self.session.segment(packet, direction, packet.payload)
        self.got += [(each.direction, each.data) for each in step.deliveries]
        self.closed += step.closed
        self.session.settle()
        return step

    def open(self, base: int = 100) -> Talk:
        self.say(C, "S", base)
        self.say(S, "SA", 500, base + 1)
        self.say(C, "A", base + 1, 501)
        assert self.session.established
        return self


def test_bytes_are_final_when_the_other_side_acknowledges_them() -> None:
    talk = Talk().open()
    assert talk.say(C, "PA", 101, 501, b"GET").added
    assert talk.got == []
    talk.say(S, "A", 501, 103)
    assert talk.got == [(C, b"GE")]
    talk.say(S, "A", 501, 104)
    assert talk.got == [(C, b"GE"), (C, b"T")]


def test_inline_bytes_are_final_at_once() -> None:
    talk = Talk(inline=True).open()
    talk.say(C, "PA", 101, 501, b"GET")
    assert talk.got == [(C, b"GET")]


def test_sequence_numbers_wrap() -> None:
    talk = Talk().open(2**32 - 3)
    talk.say(C, "PA", 2**32 - 2, 501, b"abcdef")
    talk.say(C, "PA", 4, 501, b"ghi")
    talk.say(S, "A", 501, 7)
    assert b"".join(data for _, data in talk.got) == b"abcdefghi"


def test_a_hole_is_waited_for_until_it_is_acknowledged() -> None:
    talk = Talk().open()
    talk.say(C, "PA", 105, 501, b"later")
    talk.say(S, "A", 501, 101)
    assert talk.got == []
    step = talk.say(S, "A", 501, 110)  # of bytes that were never captured
    assert [(each.data, each.gap) for each in step.deliveries] == [(b"", True), (b"later", False)]


def test_the_end_of_the_capture_makes_the_rest_final() -> None:
    talk = Talk().open()
    talk.say(C, "PA", 101, 501, b"GET")
    step = talk.session.finish(C)
    assert [each.data for each in step.deliveries] == [b"GET"]
    assert step.closed == (C,)


def test_fins_close_and_both_acknowledged_end_it() -> None:
    talk = Talk().open()
    talk.say(C, "FA", 101, 501, b"bye")
    assert talk.session.state is State.FIN_WAIT1
    talk.say(S, "A", 501, 105)
    assert talk.closed == [C]
    talk.say(S, "FA", 501, 105)
    talk.say(C, "A", 105, 502)
    assert talk.session.state is State.CLOSED
    assert (C, b"bye") in talk.got


def test_a_reset_out_of_the_window_ends_nothing() -> None:
    talk = Talk().open()
    assert not talk.say(C, "R", 101 + 1_000_000).accepted
    assert talk.session.established
    assert talk.say(C, "R", 101).accepted
    assert talk.session.closed_by_reset


@pytest.mark.parametrize(("options", "added"), [(b"\x22\x02", True), (b"\xfe\x04\xf9\x89", True), (b"", False)])
def test_data_on_a_syn_counts_with_the_fast_open_option(options: bytes, added: bool) -> None:
    talk = Talk()
    assert talk.say(C, "S", 100, 0, b"early", options=options).added is added


def test_without_a_handshake_there_is_no_session_unless_asked_for() -> None:
    assert not Talk().say(C, "PA", 101, 501, b"x").accepted
    talk = Talk(midstream=True)
    assert talk.say(C, "PA", 101, 501, b"x").added
    talk.say(S, "A", 501, 102)
    assert talk.got == [(C, b"x")]


def test_four_steps_make_a_handshake_too() -> None:
    talk = Talk()
    talk.say(C, "S", 100)
    talk.say(S, "S", 500)
    talk.say(C, "SA", 100, 501)
    talk.say(S, "A", 501, 101)
    talk.say(C, "A", 101, 501)
    assert talk.session.established


def test_raw_bytes_are_looked_at_in_chunks_and_once() -> None:
    talk = Talk(chunk_to_server=8).open()
    talk.say(C, "PA", 101, 501, b"12345")
    talk.say(S, "A", 501, 106)
    assert talk.session.chunks(C) == []
    talk.say(C, "PA", 106, 501, b"6789")
    talk.say(S, "A", 501, 110)
    assert talk.session.chunks(C) == [(b"123456789", 0)]
    assert talk.session.chunks(C) == []
    talk.say(C, "PA", 110, 501, b"x")
    talk.say(S, "A", 501, 111)
    talk.session.trigger(C)
    assert talk.session.chunks(C) == [(b"x", 9)]


def test_the_depth_bounds_what_is_kept() -> None:
    talk = Talk(depth=4).open()
    assert talk.say(C, "PA", 101, 501, b"123456").added
    assert not talk.say(C, "PA", 107, 501, b"7").added
    talk.say(S, "A", 501, 108)
    assert talk.got == [(C, b"1234")]


def stamps(value: int, echo: int = 0) -> bytes:
    return struct.pack("!BBBBII", 1, 1, 8, 10, value, echo)


STAMPED = (
    (C, "S", 100, 0, b"", stamps(1000)),
    (S, "SA", 500, 101, b"", stamps(2000, 1000)),
    (C, "A", 101, 501, b"", stamps(1001, 2000)),
)
OPEN = ((C, "S", 100, 0, b"", b""), (S, "SA", 500, 101, b"", b""), (C, "A", 101, 501, b"", b""))


@pytest.mark.parametrize(
    ("before", "last", "event", "accepted"),
    [
        ((), (C, "R", 1, 0, b"", b""), "rst_but_no_session", False),
        ((), (C, "FA", 1, 1, b"", b""), "fin_but_no_session", False),
        (STAMPED[:1], (S, "SA", 500, 101, b"", stamps(9, 100)), "pkt_invalid_timestamp", False),
        (OPEN[:1], (S, "RA", 0, 101, b"", stamps(9, 100)), "pkt_invalid_timestamp", False),
        (OPEN[:1], (S, "SA", 500, 99, b"", b""), "3whs_synack_with_wrong_ack", False),
        (OPEN[:1], (C, "SA", 500, 99, b"", b""), "3whs_synack_in_wrong_direction", False),
        (OPEN[:2], (C, "A", 101, 700, b"", b""), "3whs_right_seq_wrong_ack_evasion", False),
        (OPEN[:2], (C, "A", 108, 700, b"", b""), "3whs_wrong_seq_wrong_ack", False),
        (OPEN[:2], (C, "PA", 101 + 65_536, 501, b"x", b""), "3whs_wrong_seq_wrong_ack", False),
        (OPEN[:2], (S, "S", 500, 0, b"", b""), "3whs_syn_toclient_on_syn_recv", False),
        (OPEN[:2], (C, "S", 77, 0, b"", b""), "3whs_syn_resend_diff_seq_on_syn_recv", False),
        (STAMPED, (C, "PA", 101, 501, b"x", stamps(900, 2000)), "pkt_invalid_timestamp", False),
        (STAMPED, (C, "PA", 101, 501, b"x", stamps(0, 2000)), "pkt_invalid_timestamp", False),
        (OPEN, (C, "PA", 101 + 200_000, 501, b"x", b""), "est_packet_out_of_window", False),
        (OPEN, (C, "PA", 101, 501 + 200_000, b"x", b""), "est_invalid_ack", False),
        (OPEN, (C, "FA", 101 + 200_000, 501, b"", b""), "fin_out_of_window", False),
        (OPEN, (C, "S", 100, 0, b"", b""), "est_syn_resend", False),
        (OPEN, (C, "S", 7, 0, b"", b""), "est_syn_resend_diff_seq", False),
        (OPEN, (S, "S", 500, 0, b"", b""), "est_syn_toclient", False),
        (OPEN, (C, "SA", 100, 501, b"", b""), "est_synack_toserver", False),
        (OPEN, (S, "SA", 7, 101, b"", b""), "est_synack_resend_with_diff_seq", False),
        (OPEN, (C, "R", 101 + 200_000, 0, b"", b""), "rst_invalid_ack", False),
        (
            (*OPEN, (C, "RA", 101, 501, b"", b"")),
            (C, "PA", 101, 501, b"goes on", b""),
            "suspected_rst_inject",
            True,
        ),
        ((*OPEN, (C, "PA", 105, 501, b"late", b"")), (S, "A", 501, 109, b"", b""), "reassembly_seq_gap", True),
    ],
)
def test_what_is_odd_has_a_name(before: Any, last: Any, event: str, accepted: bool) -> None:
    talk = Talk()
    for direction, flags, seq, ack, data, options in before:
        step = talk.say(direction, flags, seq, ack, data, options=options)
        assert (step.accepted, step.events) == (True, ())
    direction, flags, seq, ack, data, options = last
    step = talk.say(direction, flags, seq, ack, data, options=options)
    assert (step.accepted, step.events) == (accepted, (event,))


def test_after_a_reset_the_other_side_is_not_believed() -> None:
    talk = Talk().open()
    talk.say(C, "RA", 101, 501)
    assert not talk.say(S, "PA", 501, 101, b"still").accepted
    assert talk.session.state is State.CLOSED


def test_timestamps_may_come_round() -> None:
    talk = Talk()
    for direction, flags, seq, ack, data, options in STAMPED:
        talk.say(direction, flags, seq, ack, data, options=options)
    late = segment(C, "PA", 101, 501, b"x", stamps(900, 2000))
    assert talk.session.segment(late, C, b"x", 25 * 86_400.0).accepted


def test_each_piece_beyond_a_hole_is_looked_at() -> None:
    talk = Talk().open()
    talk.say(C, "PA", 101, 501, b"VERY")
    talk.say(C, "PA", 109, 501, b"DATA")
    talk.say(S, "A", 501, 113)
    talk.session.trigger(C)
    assert talk.session.chunks(C) == [(b"VERY", 0), (b"DATA", 8)]


def test_inline_each_segment_is_looked_at_as_the_receiver_gets_it() -> None:
    talk = Talk(inline=True, chunk_to_server=8).open()
    assert talk.say(C, "PA", 101, 501, b"GOOD").kept is None
    assert talk.session.chunks(C) == [(b"GOOD", 0)]
    step = talk.say(C, "PA", 101, 501, b"EVIL more")
    assert (step.kept, step.events) == (b"GOOD more", ("reassembly_overlap_different_data",))
    assert talk.session.chunks(C) == [(b"GOOD more", 0)]
    talk.say(C, "PA", 120, 501, b"far")
    assert talk.session.chunks(C) == [(b"far", 19)]
    assert talk.session.chunks(C) == []


def urgent(talk: Talk, seq: int, data: bytes, pointer: int) -> Any:
    """The client says something with an urgent pointer."""
    plain = segment(C, "PAU", seq, 501, data)
    raw = bytearray(plain.data)
    raw[plain.l4_offset + 18 : plain.l4_offset + 20] = struct.pack("!H", pointer)
    packet = decode(bytes(raw))
    step = talk.session.segment(packet, C, packet.payload)
    talk.got += [(each.direction, each.data) for each in step.deliveries]
    return step


@pytest.mark.parametrize(
    ("policy", "segments", "got"),
    [
        # (offset, data, urgent pointer); 0: a segment without
        pytest.param("inline", [(0, b"ab", 0), (2, b"X", 1), (3, b"cd", 0)], b"abXcd", id="data"),
        pytest.param("oob", [(0, b"ab", 0), (2, b"X", 1), (3, b"cd", 0)], b"abcd", id="apart"),
        pytest.param("oob", [(0, b"abXY", 3), (4, b"cd", 0)], b"abYcd", id="inside"),
        pytest.param("oob", [(0, b"abX", 3), (0, b"abX", 3), (3, b"cd", 0)], b"abcd", id="twice"),
        pytest.param("oob", [(0, b"abX", 3), (1, b"bXcd", 0)], b"abcd", id="again without the flag"),
        pytest.param("oob", [(0, b"abX", 3), (3, b"cY", 2), (5, b"d", 0)], b"abcd", id="two"),
        pytest.param("oob", [(0, b"ab", 9), (2, b"cd", 0)], b"abcd", id="points behind the segment"),
        pytest.param("oob", [(0, b"abX", 0), (0, b"abX", 3), (3, b"d", 0)], b"abXd", id="too late"),
        pytest.param("drop", [(0, b"ab", 0), (2, b"X", 1), (3, b"cd", 0)], b"ab", id="refused"),
    ],
)
@pytest.mark.parametrize("base", [100, 2**32 - 3])
def test_urgent_data(policy: str, segments: list[tuple[int, bytes, int]], got: bytes, base: int) -> None:
    talk = Talk(inline=True, urgent=UrgentPolicy(policy)).open(base)
    for offset, data, pointer in segments:
        seq = base + 1 + offset
        step = urgent(talk, seq, data, pointer) if pointer else talk.say(C, "PA", seq, 501, data)
        assert step.urgent == (policy == "drop" and bool(pointer))
    assert b"".join(data for direction, data in talk.got if direction is C) == got


def test_an_end_behind_urgent_data_is_reached() -> None:
    talk = Talk(urgent=UrgentPolicy.OUT_OF_BAND).open()
    urgent(talk, 101, b"abX", 3)
    talk.say(C, "FA", 104, 501, b"c")
    talk.say(S, "A", 501, 106)
    assert (talk.got, talk.closed) == ([(C, b"abc")], [C])

"""One TCP connection, watched: its states, and which bytes each segment makes final.

Promise: never raises; a segment that does not fit is not part of the stream (``Step.added`` is False) and changes
nothing. Leniency follows Suricata's stream engine: what one stack may have taken is taken.

Theory of operation. A bystander cannot know that a byte arrived until it is acknowledged, so the application layer is
given the bytes of a direction when the *other* side's segment acknowledges them. Exceptions, where waiting makes no
sense: ``inline`` (the segment itself is the proof), an accepted RST or FIN, and the end of the capture. Raw stream
rules see the same bytes in chunks, see :meth:`Session.chunk`.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from engines.packet import (
    ACK,
    FIN,
    RST,
    SEQUENCE_MASK,
    SYN,
    URG,
    Packet,
    tcp_fast_open,
    tcp_timestamps,
    tcp_window_scale,
    urgent_pointer,
)
from engines.verdict import Direction
from engines.watch.segments import OverlapPolicy, Segments

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_BOTH = (TO_SERVER, TO_CLIENT)
# What systems make of timestamps (Suricata: StreamTcpValidateTimestamp).
_TAKE_ZERO_STAMPS = frozenset(
    {
        OverlapPolicy.OLD_LINUX,
        OverlapPolicy.WINDOWS,
        OverlapPolicy.WINDOWS_2K3,
        OverlapPolicy.VISTA,
        OverlapPolicy.SOLARIS,
    }
)
_OFF_BY_ONE_STAMPS = frozenset({OverlapPolicy.LINUX, OverlapPolicy.MACOS})
_PAWS_IDLE = 24 * 86_400.0  # after which the clock may have come round (RFC 7323 section 5.5)
_HALF = 0x80000000


class State(enum.IntEnum):
    """RFC 9293 section 3.3.2, seen from the middle; the order is Suricata's."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    LAST_ACK = 7
    CLOSE_WAIT = 8
    CLOSING = 9
    CLOSED = 10


# As event names call them.
_STATE_NAMES = {
    State.ESTABLISHED: "est",
    State.FIN_WAIT1: "fin1",
    State.FIN_WAIT2: "fin2",
    State.TIME_WAIT: "timewait",
    State.LAST_ACK: "lastack",
    State.CLOSE_WAIT: "closewait",
    State.CLOSING: "closing",
}


class UrgentPolicy(enum.Enum):
    """What becomes of the byte an urgent pointer points behind (Suricata: ``stream.reassembly.urgent.policy``)."""

    INLINE = "inline"  # it is data like any other
    OUT_OF_BAND = "oob"  # the reader gets it apart: it is no part of the stream (RFC 6093 section 2)
    DROP = "drop"  # no segment with urgent data is taken


# Urgent bytes of one side that are kept apart; further ones are data like any other.
MAX_URGENT = 4096


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Suricata's ``stream`` settings; sizes in bytes."""

    inline: bool = False
    midstream: bool = False
    async_oneside: bool = False
    depth: int = 1 << 20  # reassembly.depth; 0: no end
    chunk_to_server: int = 2560  # reassembly.toserver-chunk-size
    chunk_to_client: int = 2560
    urgent: UrgentPolicy = UrgentPolicy.INLINE
    # A window's worth beyond the depth; what lies further ahead cannot be waited for.
    limit: int = 4 << 20


class Delivery(NamedTuple):
    """Bytes the application layer gets. ``gap``: bytes before them are missing for good."""

    direction: Direction
    data: bytes
    gap: bool = False


class Step(NamedTuple):
    """What one segment did. ``added``: its payload is part of the stream. ``deliveries`` are for the parser, in this
    order; ``closed``: directions whose end was reached; ``events``: what was odd, as ``stream-event`` names it;
    ``kept``: the payload as the stream has it, where that is something else (inline only)."""

    added: bool
    deliveries: tuple[Delivery, ...] = ()
    closed: tuple[Direction, ...] = ()
    accepted: bool = True
    events: tuple[str, ...] = ()
    kept: bytes | None = None
    urgent: bool = False  # refused for its urgent data


class _Half:
    """What one side has sent."""

    __slots__ = (
        "app_at",
        "base",
        "ended",
        "fin",
        "isn",
        "last_ack",
        "last_seen",
        "last_stamp",
        "next_seq",
        "raw_at",
        "scale",
        "segments",
        "span",
        "stamped",
        "trigger",
        "urgent",
        "window",
    )

    def __init__(self, policy: OverlapPolicy, limit: int) -> None:
        self.isn: int | None = None
        self.base = 0  # sequence number of offset 0
        self.next_seq = 0  # one behind the highest seen
        self.last_ack = 0  # what the other side has acknowledged of it
        self.window = 0  # what the other side may send to it, scaled
        self.scale = 0
        self.segments = Segments(policy, limit)
        self.app_at = 0
        self.raw_at = 0
        self.trigger = False  # raw bytes are to be inspected now, however few
        self.fin: int | None = None  # offset behind the last byte
        self.ended = False
        self.span: tuple[int, int] | None = None  # where the last segment lies in the stream; inline only
        self.stamped = False  # its SYN had a timestamp
        self.last_stamp = 0  # of the last segment in order
        self.last_seen = 0.0  # when that was
        self.urgent: list[int] = []  # bytes that are no part of the stream: where they are among all bytes, sorted

    def begin(self, seq: int) -> None:
        self.base = self.next_seq = self.last_ack = seq & SEQUENCE_MASK

    def offset(self, seq: int) -> int:
        """Of a sequence number: the offset nearest to what was read last (RFC 9293 section 3.4)."""
        at = self._place(seq)
        return at - bisect_left(self.urgent, at) if self.urgent else at

    def _place(self, seq: int) -> int:
        """As :meth:`offset`, among all bytes, the urgent ones too."""
        read = self.app_at + len(self.urgent)
        distance = (seq - self.base - read) & SEQUENCE_MASK
        return read + (distance - (1 << 32) if distance >= _HALF else distance)

    def without_urgent(self, seq: int, payload: bytes, pointer: int) -> bytes:
        """``payload`` without the bytes that are no part of the stream. ``pointer``: behind one more of them, counted
        from ``seq``; 0: there is none. One that points into what was taken before comes too late to be kept apart."""
        start = self._place(seq)
        at = start + pointer - 1
        if 0 < pointer <= len(payload) and at - len(self.urgent) >= self.segments.end and len(self.urgent) < MAX_URGENT:
            self.urgent.append(at)
        first = bisect_left(self.urgent, start)
        last = bisect_left(self.urgent, start + len(payload))
        for at in reversed(self.urgent[first:last]):
            payload = payload[: at - start] + payload[at - start + 1 :]
        return payload


class Session:
    """``policies`` are of the receivers, by direction."""

    __slots__ = (
        "_async",
        "_before_reset",
        "_events",
        "_four_way",
        "_halves",
        "_options",
        "_reset_by",
        "_stamps",
        "closed_by_reset",
        "midstream",
        "state",
    )

    def __init__(self, options: SessionOptions, policies: tuple[OverlapPolicy, OverlapPolicy]) -> None:
        self._options = options
        self._halves = tuple(_Half(policy, options.limit) for policy in policies)
        self.state = State.NONE
        self.midstream = False
        self.closed_by_reset = False
        self._async = False
        self._four_way = False
        self._stamps = False  # both sides have sent timestamps
        self._reset_by: Direction | None = None
        self._before_reset = State.NONE
        self._events: list[str] = []

    # -- one segment -----------------------------------------------------------------------------------------------

    def segment(self, packet: Packet, direction: Direction, payload: bytes, now: float = 0.0) -> Step:
        """Take one segment of this connection. ``now``: seconds, of the capture."""
        self._events = []
        goes_on = self._reset_by is direction and self.state is State.CLOSED and not packet.tcp_flags & RST
        if goes_on:
            # Whoever has sent a reset sends on as if there had been none: it was somebody else's. (The other side's
            # segments say nothing: it may not have the reset yet.)
            self.state = self._before_reset
        urgent = urgent_pointer(packet) if packet.tcp_flags & URG and payload else 0
        if urgent and self._options.urgent is UrgentPolicy.DROP:
            return Step(False, (), (), False, (), None, True)
        if not self._take(packet, direction, payload, now):
            if goes_on:
                self.state = State.CLOSED
            return Step(False, (), (), False, tuple(self._events))
        if goes_on:
            self._reset_by, self.closed_by_reset = None, False
            self._events.append("suspected_rst_inject")
        if self._options.urgent is UrgentPolicy.OUT_OF_BAND and (urgent or self._halves[direction].urgent):
            sender = self._halves[direction]
            payload = sender.without_urgent(packet.seq, payload, urgent)
            if packet.tcp_flags & FIN and sender.fin is not None:
                sender.fin = min(sender.fin, sender.offset(packet.seq) + len(payload))
        return self._reassemble(packet, direction, payload)

    def _take(self, packet: Packet, direction: Direction, payload: bytes, now: float) -> bool:
        if self._stamps and not packet.tcp_flags & SYN and not self._stamp_fits(packet, direction, now):
            return self._odd("pkt_invalid_timestamp")
        match self.state:
            case State.NONE:
                return self._first(packet, direction, payload)
            case State.SYN_SENT:
                return self._after_syn(packet, direction, payload)
            case State.SYN_RECV:
                return self._after_answer(packet, direction, payload)
        return self._open(packet, direction, payload)

    def _odd(self, event: str) -> bool:
        """A segment is refused for this."""
        self._events.append(event)
        return False

    def _stamp_fits(self, packet: Packet, direction: Direction, now: float) -> bool:
        """Whether the receiver takes the segment for no older than what it has (RFC 7323 section 5, PAWS), each system
        in its own way."""
        stamps = tcp_timestamps(packet)
        if stamps is None:
            return True
        sender = self._halves[direction]
        policy = sender.segments.policy
        stamp, in_order = stamps[0], packet.seq == sender.next_seq
        if stamp == 0 and policy not in _TAKE_ZERO_STAMPS:
            return False
        if policy is OverlapPolicy.HPUX11 and not in_order:
            return True
        ahead = stamp - sender.last_stamp + (policy in _OFF_BY_ONE_STAMPS)
        if ahead & SEQUENCE_MASK >= _HALF and now <= sender.last_seen + _PAWS_IDLE:
            return False
        if in_order:
            sender.last_stamp = stamp
        sender.last_seen = now
        return True

    def _echo_fits(self, packet: Packet) -> bool:
        """A server's first answer echoes the timestamp of the client's SYN, and none if there was none."""
        stamps, client = tcp_timestamps(packet), self._halves[TO_SERVER]
        if stamps is None or stamps[1] == 0:
            return True
        return stamps[1] == client.last_stamp if client.stamped else False

    @property
    def established(self) -> bool:
        """The handshake is over, or was taken for granted."""
        return self.state >= State.ESTABLISHED

    def _first(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        flags = packet.tcp_flags
        sender, receiver = self._halves[direction], self._halves[direction.reply]
        if flags & RST:
            return self._odd("rst_but_no_session")
        if flags & SYN and not flags & ACK:
            sender.isn = packet.seq
            sender.begin(packet.seq + 1)
            sender.scale = tcp_window_scale(packet) or 0
            receiver.window = packet.window
            self._stamp(sender, packet)
            self.state = State.SYN_SENT
            self._async = self._options.async_oneside
            return True
        if not self._options.midstream and not (self._options.async_oneside and flags & (SYN | FIN | RST) == 0):
            return self._odd("fin_but_no_session") if flags & FIN else False
        self.midstream = True
        self._async = self._options.async_oneside
        if flags & SYN:
            sender.isn = packet.seq
            sender.begin(packet.seq + 1)
            receiver.isn = (packet.ack - 1) & SEQUENCE_MASK
            receiver.begin(packet.ack)
            self.state = State.SYN_RECV
        else:
            sender.begin(packet.seq)
            receiver.begin(packet.ack)
            sender.scale = receiver.scale = 14
            self.state = State.FIN_WAIT1 if flags & FIN else State.ESTABLISHED
        return True

    def _after_syn(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        flags, sender, receiver = packet.tcp_flags, self._halves[direction], self._halves[direction.reply]
        if direction is TO_CLIENT and not self._echo_fits(packet):
            return self._odd("pkt_invalid_timestamp")
        if flags & RST:
            if direction is TO_CLIENT:
                if not (flags & ACK and self._acks_handshake(receiver, packet.ack)):
                    return self._odd("rst_invalid_ack")
            elif packet.seq != sender.isn or packet.window:
                # From the client it answers something else: what the server still has of an older connection.
                return True
            self._close(direction)
            return True
        if flags & SYN and flags & ACK:
            if direction is TO_SERVER:
                # The answer to a SYN of the server's: a handshake in four steps.
                if not self._four_way:
                    return self._odd("3whs_synack_in_wrong_direction")
                if not self._acks_handshake(receiver, packet.ack):
                    return self._odd("4whs_synack_with_wrong_ack")
            elif not self._acks_handshake(receiver, packet.ack):
                return self._odd("3whs_synack_with_wrong_ack")
            self._stamp(sender, packet)
            self._stamps = sender.stamped and receiver.stamped
            if sender.isn is None or direction is TO_CLIENT:
                sender.isn = packet.seq
                sender.begin(packet.seq + 1)
            sender.scale = tcp_window_scale(packet) or 0
            if not sender.scale or not receiver.scale:
                sender.scale = receiver.scale = 0
            receiver.last_ack = packet.ack
            receiver.window = packet.window
            self.state = State.SYN_RECV
            return True
        if flags & SYN:
            if direction is TO_CLIENT:
                sender.isn = packet.seq
                sender.begin(packet.seq + 1)
                self._four_way = True
                return True
            if packet.seq != sender.isn:
                sender.isn = packet.seq
                sender.begin(packet.seq + 1)
                sender.segments = Segments(sender.segments.policy, self._options.limit)
            return True
        if direction is TO_SERVER and self._async and packet.seq == sender.next_seq:
            self.state = State.ESTABLISHED
            receiver.begin(packet.ack)
            receiver.scale = 14
            return True
        return False

    @staticmethod
    def _stamp(sender: _Half, packet: Packet) -> None:
        """Of a SYN."""
        stamps = tcp_timestamps(packet)
        sender.stamped = stamps is not None
        sender.last_stamp = stamps[0] if stamps is not None else 0

    def _acks_handshake(self, half: _Half, ack: int) -> bool:
        """``ack`` covers the SYN of ``half`` and no more than what came with it."""
        if half.isn is None:
            return False
        first = (half.isn + 1) & SEQUENCE_MASK
        return (ack - first) & SEQUENCE_MASK <= (half.next_seq - first) & SEQUENCE_MASK

    def _after_answer(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        flags, sender, receiver = packet.tcp_flags, self._halves[direction], self._halves[direction.reply]
        if flags & RST:
            if not self._reset_fits(sender, packet):
                return self._odd("rst_invalid_ack")
            self._close(direction)
            return True
        if flags & SYN and flags & ACK:
            if direction is TO_CLIENT or self._four_way:
                # Repeated, or with another sequence number: the client will tell which one it took.
                if sender.isn != packet.seq and self._acks_handshake(receiver, packet.ack) and not sender.segments.end:
                    sender.isn = packet.seq
                    sender.begin(packet.seq + 1)
                    self._events.append("3whs_synack_resend_with_diff_seq")
                self._stamp(sender, packet)
                return True
            return self._odd("3whs_synack_toserver_on_syn_recv")
        if flags & SYN:
            if direction is TO_CLIENT:
                return self._odd("3whs_syn_toclient_on_syn_recv")
            return packet.seq == sender.isn or self._odd("3whs_syn_resend_diff_seq_on_syn_recv")
        if not flags & ACK:
            return False
        if direction is TO_CLIENT:
            # The server speaks before the client's ACK was seen: that one was lost to us, or the session is midstream.
            one_sided = self._async and self.midstream
            fits = self._acks_handshake(receiver, packet.ack) and packet.seq == sender.next_seq
            if not fits and not one_sided:
                return self._odd("3whs_ack_in_wrong_dir")
            if not payload and not flags & FIN:
                return True
        else:
            acks = self._acks_handshake(receiver, packet.ack) or self._async
            ahead = (packet.seq - sender.next_seq) & SEQUENCE_MASK
            # Beyond what was sent but in the window: segments were lost to us.
            loose = self._async or self.midstream
            far = sender.window < ahead < _HALF and not loose
            if not acks and ahead:
                return self._odd("3whs_wrong_seq_wrong_ack")
            if not acks:
                return self._odd("3whs_right_seq_wrong_ack_evasion")
            if far:
                return self._odd("3whs_wrong_seq_wrong_ack")
        self.state = State.ESTABLISHED
        if flags & FIN:
            return self._open(packet, direction, payload)
        self._account(packet, direction, payload)
        return True

    def _open(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        flags, sender, receiver = packet.tcp_flags, self._halves[direction], self._halves[direction.reply]
        if flags & RST:
            if self.state is State.CLOSED:
                return False
            if not self._reset_fits(sender, packet):
                return self._odd("rst_invalid_ack")
            self._close(direction)
            return True
        if flags & SYN:
            return self._syn_again(packet, direction, payload)
        if self.state is State.CLOSED:
            return False
        if not flags & ACK and not self._async:
            return False
        name = _STATE_NAMES.get(self.state, "est")
        if flags & ACK and not self._ack_fits(receiver, packet.ack):
            return self._odd(f"{name}_invalid_ack")
        length = len(payload)
        if (length or flags & FIN) and not self._in_window(sender, packet.seq, length):
            if flags & FIN:
                return self._odd("fin_out_of_window")
            return self._odd("est_packet_out_of_window" if name == "est" else f"{name}_ack_wrong_seq")
        self._account(packet, direction, payload)
        if flags & FIN:
            end = sender.offset(packet.seq) + length
            if sender.fin is None:
                sender.fin = end
                self._fin_state(direction)
        self._acked_fin(direction)
        return True

    def _syn_again(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        """A SYN in a connection that is open."""
        same = packet.seq == self._halves[direction].isn
        if not packet.tcp_flags & ACK:
            if direction is TO_CLIENT:
                return self._odd("est_syn_toclient")
            return self._odd("est_syn_resend" if same else "est_syn_resend_diff_seq")
        if direction is TO_SERVER:
            return self._odd("est_synack_toserver")
        if not same:
            return self._odd("est_synack_resend_with_diff_seq")
        return not payload

    def _fin_state(self, direction: Direction) -> None:
        other = self._halves[direction.reply]
        if other.fin is None:
            self.state = State.FIN_WAIT1 if direction is TO_SERVER else State.CLOSE_WAIT
        elif self.state is State.FIN_WAIT1:
            self.state = State.CLOSING
        else:
            self.state = State.LAST_ACK

    def _acked_fin(self, direction: Direction) -> None:
        """The sender may have acknowledged the FIN of the other side."""
        mine, other = self._halves[direction], self._halves[direction.reply]
        if other.fin is None or other.offset(other.last_ack) <= other.fin:
            return
        if mine.fin is None:
            if self.state is State.FIN_WAIT1:
                self.state = State.FIN_WAIT2
        elif mine.offset(mine.last_ack) > mine.fin:
            self.state = State.CLOSED
        elif self.state in (State.CLOSING, State.FIN_WAIT1, State.FIN_WAIT2):
            self.state = State.TIME_WAIT

    def _account(self, packet: Packet, direction: Direction, payload: bytes) -> None:
        sender, receiver = self._halves[direction], self._halves[direction.reply]
        flags = packet.tcp_flags
        end = (packet.seq + len(payload) + bool(flags & FIN)) & SEQUENCE_MASK
        if (end - sender.next_seq) & SEQUENCE_MASK < _HALF:
            sender.next_seq = end
        if flags & ACK:
            if (packet.ack - receiver.last_ack) & SEQUENCE_MASK < _HALF:
                receiver.last_ack = packet.ack
            if (packet.ack - receiver.next_seq) & SEQUENCE_MASK < _HALF and packet.ack != receiver.next_seq:
                receiver.next_seq = packet.ack  # of segments that were not captured
        receiver.window = packet.window << sender.scale

    def _ack_fits(self, half: _Half, ack: int) -> bool:
        """``half`` may have sent what is acknowledged."""
        behind = (half.next_seq - ack) & SEQUENCE_MASK
        if behind < _HALF:
            return True
        ahead = (ack - half.next_seq) & SEQUENCE_MASK
        return self._async or self.midstream or ahead <= max(half.window, 65535)

    def _in_window(self, half: _Half, seq: int, length: int) -> bool:
        if self._async or self.midstream:
            return True
        end = (seq + length) & SEQUENCE_MASK
        if (end - half.last_ack) & SEQUENCE_MASK >= _HALF:
            return True  # repeats what is acknowledged; the list says what it is worth
        sent = (half.next_seq - half.last_ack) & SEQUENCE_MASK
        return (seq - half.last_ack) & SEQUENCE_MASK <= max(half.window, sent) or (
            (half.last_ack - seq) & SEQUENCE_MASK < _HALF
        )

    def _reset_fits(self, half: _Half, packet: Packet) -> bool:
        if self._async or self.midstream:
            return True
        sent = (half.next_seq - half.last_ack) & SEQUENCE_MASK
        ahead = (packet.seq - half.last_ack) & SEQUENCE_MASK
        return ahead <= max(half.window, sent) or packet.seq == half.next_seq

    def _close(self, by: Direction) -> None:
        """``by`` has sent a reset."""
        self._before_reset, self._reset_by = self.state, by
        self.state = State.CLOSED
        self.closed_by_reset = True

    # -- reassembly ------------------------------------------------------------------------------------------------

    def _reassemble(self, packet: Packet, direction: Direction, payload: bytes) -> Step:
        sender = self._halves[direction]
        flags = packet.tcp_flags
        if flags & SYN:
            return Step(self._fast_open(packet, sender, payload))
        added, kept = False, None
        deliveries: list[Delivery] = []
        closed: list[Direction] = []
        inline = self._options.inline
        if inline:
            ways: tuple[Direction, ...] = (direction,)
        elif flags & RST:
            ways = (direction,)
        elif flags & FIN and self.state > State.TIME_WAIT:
            ways = _BOTH if flags & ACK else (direction,)
        elif self.state is State.CLOSED:
            ways = _BOTH
        else:
            ways = (direction.reply,)
        if direction.reply in ways:
            self._update(direction.reply, deliveries, closed, end=False)
        if payload and not flags & RST:
            added = self._add(sender, packet.seq, payload)
            if added and inline:
                kept = self._kept(sender, packet.seq, payload)
        if flags & (FIN | RST):
            for half in self._halves:
                half.trigger = True
        if direction in ways:
            self._update(direction, deliveries, closed, end=False)
        return Step(added, tuple(deliveries), tuple(closed), True, tuple(self._events), kept)

    def _kept(self, sender: _Half, seq: int, payload: bytes) -> bytes | None:
        """What the receiver gets instead of ``payload`` where the stream has other bytes already; notes where the
        segment lies, see :meth:`_window`."""
        start = sender.offset(seq)
        end = min(start + len(payload), sender.segments.reach(max(start, sender.segments.start)))
        low = max(start, sender.segments.start)
        sender.span = (low, end)
        if end <= low:
            return None
        mine = payload[: low - start] + sender.segments.get(low, end) + payload[end - start :]
        if mine == payload:
            return None
        self._events.append("reassembly_overlap_different_data")
        return mine

    def _add(self, sender: _Half, seq: int, payload: bytes) -> bool:
        start = sender.offset(seq)
        depth = self._options.depth
        if depth and start + len(payload) > depth:
            if start < depth:
                self._events.append("reassembly_depth_reached")
            payload = payload[: max(depth - start, 0)]
        return sender.segments.add(start, payload)

    def _fast_open(self, packet: Packet, sender: _Half, payload: bytes) -> bool:
        """Data on a SYN is part of the stream when the option for it is there (RFC 7413)."""
        if not payload or packet.tcp_flags & ACK or not tcp_fast_open(packet):
            return False
        sender.next_seq = (packet.seq + 1 + len(payload)) & SEQUENCE_MASK
        return self._add(sender, (packet.seq + 1) & SEQUENCE_MASK, payload)

    def _update(self, direction: Direction, out: list[Delivery], closed: list[Direction], *, end: bool) -> None:
        """Hand out what is final of a direction."""
        half = self._halves[direction]
        segments = half.segments
        everything = self._options.inline or (end and (self.state < State.CLOSED or self.closed_by_reset))
        final = segments.end if everything else min(segments.end, self._acked(half))
        while half.app_at < final:
            reached = min(segments.reach(half.app_at), final)
            if reached > half.app_at:
                out.append(Delivery(direction, segments.get(half.app_at, reached), False))
                half.app_at = reached
                continue
            # A hole. It is one for good when the receiver has acknowledged what lies behind it.
            following = segments.next_from(half.app_at)
            if following is None or following >= final:
                break
            if self._options.inline and not end and self._acked(half) < following:
                break
            out.append(Delivery(direction, b"", True))
            if not end:
                self._events.append("reassembly_seq_gap")
            half.app_at = following
        if (
            not half.ended
            and half.fin is not None
            and half.app_at >= half.fin
            and (self._options.inline or self._acked(half) >= half.fin or end)
        ):
            half.ended = True
            closed.append(direction)

    @staticmethod
    def _acked(half: _Half) -> int:
        return half.offset(half.last_ack)

    def finish(self, direction: Direction) -> Step:
        """The capture or the flow ends: what is there of a direction is all there will be."""
        deliveries: list[Delivery] = []
        closed: list[Direction] = []
        half = self._halves[direction]
        self._update(direction, deliveries, closed, end=True)
        if not half.ended:
            half.ended = True
            closed.append(direction)
        half.trigger = True
        return Step(False, tuple(deliveries), tuple(closed))

    # -- raw stream ------------------------------------------------------------------------------------------------

    def trigger(self, direction: Direction) -> None:
        """The application layer has something complete: raw rules should look now."""
        self._halves[direction].trigger = True

    def chunks(self, direction: Direction, *, end: bool = False) -> list[tuple[bytes, int]]:
        """What stream rules look at with a packet of ``direction``: pieces without a hole and their offsets; none when
        it is too early.

        Each is looked at once. (Suricata: raw reassembly, ``toserver-chunk-size``.) Inline it is the segment itself,
        each time one comes, with as many bytes before it as fill a chunk.
        """
        half = self._halves[direction]
        segments = half.segments
        if self._options.inline:
            return self._window(direction, half)
        everything = end and (self.state < State.CLOSED or self.closed_by_reset)
        final = segments.end if everything else min(segments.end, self._acked(half))
        size = self._options.chunk_to_server if direction is TO_SERVER else self._options.chunk_to_client
        if final <= half.raw_at or not (half.trigger or end or final - half.raw_at >= size):
            return []
        half.trigger = False
        pieces = []
        while half.raw_at < final:
            at = half.raw_at
            if segments.reach(at) == at:
                following = segments.next_from(at)
                if following is None or following >= final:
                    break
                at = following
            half.raw_at = min(segments.reach(at), final)
            pieces.append((segments.get(at, half.raw_at), at))
        return pieces

    def _window(self, direction: Direction, half: _Half) -> list[tuple[bytes, int]]:
        span, half.span = half.span, None
        if span is None or span[0] >= span[1]:
            return []
        segments, (start, end) = half.segments, span
        size = self._options.chunk_to_server if direction is TO_SERVER else self._options.chunk_to_client
        end = segments.reach(start)  # the segment may have filled a hole
        start = max(min(start, end - size), segments.begin(start))
        half.raw_at = max(half.raw_at, min(end, half.app_at))
        return [(segments.get(start, end), start)]

    def unread(self, direction: Direction) -> bool:
        """Bytes are there that nobody was given yet."""
        half = self._halves[direction]
        return half.app_at < half.segments.end or half.raw_at < half.segments.end

    def settle(self) -> None:
        """Forget what every reader has seen and its receiver has acknowledged."""
        for half in self._halves:
            acked = half.segments.end if self._options.inline else self._acked(half)
            keep = self._options.chunk_to_server if self._options.inline else 0
            half.segments.forget(min(half.app_at, half.raw_at - keep, acked))

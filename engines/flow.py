"""Flow table: which conversation a packet belongs to, in which direction, and how far its TCP handshake has come.

Promises: one dict lookup for a packet of a known flow; never more than ``max_flows`` flows, with a named outcome when
full; no clock (``now`` is an argument, seconds, any epoch); the same answers however often :meth:`FlowTable.expire` is
called; never an exception because of packets. Not safe for concurrent use. Left out: reassembly
(:mod:`engines.stateful.stream`), addresses before NAT (packets are seen behind it).

Theory of operation
-------------------
::

    packet.key ──► {key: Tracked} ──► the very answer for an uneventful packet of this flow and direction
                        │                (flow, direction, KNOWN, established), replaced when the flow is established
                        ▼
                      Flow ── to_server, to_client: TcpHalf   what each side has sent and acknowledged
                        └──── in one bucket of the timer wheel, one bucket per second of deadline

*One entry, both directions.* The client is the sender of the first packet. Each flow has two keys, its own and the
reply's, so no packet needs its addresses compared or swapped.

*TCP.* ``TRANSITIONS`` is the state machine of the conversation as seen from its middle, with the names of RFC 9293
section 3.3.2: ``FIN_WAIT_1`` means that one side, whichever, has sent its FIN. Segments become events only after their
sequence or acknowledgment number was found plausible. A flow is *established* once each SYN was acknowledged; the
segment that does so still counts as not established, as in Suricata, whose packets take the state from before them,
unless it has data.

*A closed flow stays* for a short time, so that stragglers find it instead of looking like mid-stream TCP, and so that a
forged RST gains nothing: packets that follow it are still KNOWN and still judged by what the flow's inspector saw.
A SYN finds a CLOSED or TIME_WAIT flow and starts a new one (RFC 9293 section 3.6.1).

*Timers.* A packet only writes ``last_seen``. The wheel is corrected lazily: when a bucket is due, flows that were seen
since move to the bucket of their real deadline. A flow is so looked at once per timeout, not once per packet.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engines.packet import ACK, FIN, ICMP, ICMPV6, PSH, RST, SEQUENCE_MASK, SYN, TCP, UDP, URG, Packet, tcp_window_scale
from engines.packet import quoted as quoted_packet
from engines.verdict import Direction

TO_SERVER = Direction.TO_SERVER
TO_CLIENT = Direction.TO_CLIENT

# --- values -----------------------------------------------------------------------------------------------------------


class TcpState(enum.Enum):
    """State of a TCP conversation; RFC 9293 section 3.3.2, with either side in the role of the one who closes first."""

    NEW = "new"  # no TCP, or nothing seen
    SYN_SENT = "syn_sent"
    SYN_RECEIVED = "syn_received"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin_wait_1"  # one side has sent its FIN
    FIN_WAIT_2 = "fin_wait_2"  # and it was acknowledged; the other side may send on for as long as it likes
    CLOSING = "closing"  # both FINs sent, neither is known to have arrived
    LAST_ACK = "last_ack"  # both FINs sent, the first was acknowledged
    TIME_WAIT = "time_wait"  # both FINs acknowledged
    CLOSED = "closed"  # reset


class TcpEvent(enum.Enum):
    """What a plausible segment tells about the conversation."""

    ANSWER = "answer"  # SYN|ACK to the SYN, or the other SYN of a simultaneous open
    OPENED = "opened"  # both SYNs are acknowledged
    FIRST_FIN = "first_fin"
    FIRST_FIN_ACKED = "first_fin_acked"
    SECOND_FIN = "second_fin"
    ALL_ACKED = "all_acked"  # both FINs are acknowledged
    RESET = "reset"


TRANSITIONS: dict[TcpState, dict[TcpEvent, TcpState]] = {
    TcpState.SYN_SENT: {TcpEvent.ANSWER: TcpState.SYN_RECEIVED, TcpEvent.RESET: TcpState.CLOSED},
    TcpState.SYN_RECEIVED: {
        TcpEvent.OPENED: TcpState.ESTABLISHED,
        TcpEvent.FIRST_FIN: TcpState.FIN_WAIT_1,
        TcpEvent.RESET: TcpState.CLOSED,
    },
    TcpState.ESTABLISHED: {TcpEvent.FIRST_FIN: TcpState.FIN_WAIT_1, TcpEvent.RESET: TcpState.CLOSED},
    TcpState.FIN_WAIT_1: {
        TcpEvent.FIRST_FIN_ACKED: TcpState.FIN_WAIT_2,
        TcpEvent.SECOND_FIN: TcpState.CLOSING,
        TcpEvent.RESET: TcpState.CLOSED,
    },
    TcpState.FIN_WAIT_2: {TcpEvent.SECOND_FIN: TcpState.LAST_ACK, TcpEvent.RESET: TcpState.CLOSED},
    TcpState.CLOSING: {
        TcpEvent.FIRST_FIN_ACKED: TcpState.LAST_ACK,
        TcpEvent.ALL_ACKED: TcpState.TIME_WAIT,
        TcpEvent.RESET: TcpState.CLOSED,
    },
    TcpState.LAST_ACK: {TcpEvent.ALL_ACKED: TcpState.TIME_WAIT, TcpEvent.RESET: TcpState.CLOSED},
    TcpState.TIME_WAIT: {TcpEvent.RESET: TcpState.CLOSED},
    TcpState.CLOSED: {},
}
"""An event missing from a state's row leaves the state as it is."""


class CloseReason(enum.StrEnum):
    """Why a flow is no longer in the table."""

    TIMEOUT = "timeout"  # idle, not closed by its ends
    CLOSED = "closed"  # both FINs seen
    RESET = "reset"
    EVICTED = "evicted"  # the table was full
    FLUSHED = "flushed"  # removed by the operator or a policy swap
    REUSED = "reused"  # the client began anew with the same ports before the flow was over


class Kind(enum.Enum):
    """How a packet relates to the table."""

    NEW = "new"
    KNOWN = "known"
    MIDSTREAM = "midstream"  # TCP whose handshake was not seen
    RELATED = "related"  # ICMP error quoting a packet of a known flow
    REFUSED = "refused"  # would be new, but the table is full
    INVALID = "invalid"  # fits no state; see ``reason``


class Tracked(NamedTuple):
    """Answer of :meth:`FlowTable.track`."""

    flow: Flow | None
    direction: Direction
    kind: Kind
    established: bool
    """Counts as established for this packet, that is: was so before it (UDP: both sides seen, this packet included)."""
    reason: str = ""
    """For INVALID and REFUSED, a short token."""
    ended: Flow | None = None
    """A flow that left the table because of this packet (evicted, timed out or its ports reused); log it, let it go."""


@dataclass(frozen=True, slots=True)
class FlowTimeouts:
    """Seconds without a packet after which a flow is over.

    ``tcp_idle`` and ``udp`` as AWS (``FlowTimeouts.TcpIdleTimeoutSeconds`` 60..6000, default 350; UDP 120). The rest
    follow Linux conntrack's defaults, except that a half-closed connection is given ``tcp_idle``: the side that has not
    closed may take its time. Raises ValueError when out of range.
    """

    tcp_idle: float = 350.0
    tcp_opening: float = 60.0  # until the handshake is over; each retransmitted SYN starts it anew
    tcp_closing: float = 60.0  # TIME_WAIT too
    tcp_closed: float = 10.0  # after RST, for stragglers
    udp: float = 120.0
    icmp: float = 30.0
    other: float = 120.0

    def __post_init__(self) -> None:
        if not 60 <= self.tcp_idle <= 6000:
            raise ValueError(f"tcp_idle is 60 to 6000 seconds, not {self.tcp_idle:g}")
        for name in ("tcp_opening", "tcp_closing", "tcp_closed", "udp", "icmp", "other"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is more than 0 seconds, not {getattr(self, name):g}")


class TcpHalf:
    """What one side of a TCP conversation has sent. All numbers as on the wire, modulo 2**32."""

    __slots__ = ("acked", "fin_end", "isn", "next_seq", "offered_scale", "scale", "stray_syn", "window")

    def __init__(self) -> None:
        self.isn: int | None = None
        """Sequence number of its SYN; None when not seen."""
        self.next_seq = 0
        """One behind the highest sequence number sent."""
        self.acked = 0
        """Highest acknowledgment number sent: what it has received of the other side."""
        self.window = 0
        """Last advertised, scaled, bytes."""
        self.offered_scale: int | None = None
        """Window scale option of its SYN."""
        self.scale = 0
        """In use behind the handshake, if both sides offered one (RFC 7323 section 2.2)."""
        self.fin_end: int | None = None
        """Acknowledgment number that covers its FIN; None before the FIN."""
        self.stray_syn: int | None = None
        """ISN of a SYN sent in the middle of the conversation, whose answer will tell what is true."""


class Flow:
    """Both directions of one conversation. Lists have one item per direction: ``packets[Direction.TO_CLIENT]``."""

    __slots__ = (
        "_bucket",
        "_finisher",
        "_timeout",
        "bytes",
        "client",
        "client_port",
        "close_reason",
        "context",
        "created",
        "established",
        "family",
        "flags",
        "halves",
        "id",
        "inspector",
        "keys",
        "last_seen",
        "midstream",
        "packets",
        "protocol",
        "reason",
        "server",
        "server_port",
        "streams",
        "tcp_state",
        "unseen",
        "verdict",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - the name the log uses
        protocol: int,
        family: int,
        client: bytes,
        server: bytes,
        client_port: int,
        server_port: int,
        now: float,
        keys: tuple[bytes, bytes],
    ) -> None:
        self.id = id
        """Unique within the table, from 1."""
        self.protocol = protocol
        self.family = family
        self.client = client
        """Packed address of the sender of the first packet."""
        self.server = server
        self.client_port = client_port
        self.server_port = server_port
        self.tcp_state = TcpState.NEW
        self.established = False
        """Handshake finished; UDP and others: both sides seen. Holds from the next packet on, see :class:`Tracked`."""
        self.unseen: Direction | None = None
        """A direction most of whose segments no longer come by, nor most bare acknowledgements of the other one."""
        self.midstream = False
        """Adopted without a handshake."""
        self.created = now
        self.last_seen = now
        self.packets = [0, 0]
        self.bytes = [0, 0]
        """IP datagram lengths added up."""
        self.flags = [0, 0]
        """TCP flags seen, OR-ed."""
        self.close_reason: CloseReason | None = None
        """Set when the flow leaves the table."""
        self.keys = keys
        """``Packet.key`` per direction."""
        self.halves: tuple[TcpHalf, TcpHalf] | None = None
        # The worker's; the table never looks at them.
        self.verdict: Any = None
        self.reason: Any = None
        self.inspector: Any = None
        self.streams: Any = None
        self.context: Any = None
        self._timeout = 0.0
        self._bucket = _NO_BUCKET
        self._finisher = TO_SERVER  # direction of the first FIN

    def __repr__(self) -> str:
        return f"<Flow {self.id} proto={self.protocol} {self.tcp_state.value} packets={self.packets}>"


@dataclass(slots=True)
class FlowCounters:
    """What happened since the table was made."""

    created: int = 0
    adopted: int = 0
    midstream: int = 0  # packets
    related: int = 0  # packets
    invalid: int = 0  # packets
    refused: int = 0  # packets that would have made a flow
    evicted: int = 0
    expired: int = 0  # left by timeout, closed ones included
    reused: int = 0
    removed: int = 0


# --- the table --------------------------------------------------------------------------------------------------------

# Flows looked at to find one to evict. Those nearest to their deadline may have been seen since they were filed, and
# filing them anew takes time; this bounds the time one packet can cost.
_EVICTION_LOOKS = 16

_PLAIN_ACK = frozenset({ACK, ACK | PSH})  # most segments of any connection

# RFC 9293 section 3.10: all but SYN and RST carry ACK; SYN, FIN and RST exclude each other. PSH, ECE, CWR are free.
_VALID_FLAGS = frozenset(
    {SYN, SYN | URG, SYN | ACK, SYN | ACK | URG, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG}
)
_FLAG_BITS = FIN | SYN | RST | ACK | URG

_ESTABLISHED = TcpState.ESTABLISHED
_OVER = frozenset({TcpState.TIME_WAIT, TcpState.CLOSED})

_NO_BUCKET = -1  # in no bucket of the timer wheel, that is: not in the table

_REUSE = "reuse"  # internal: the segment is the first of another flow

# A sender's window is unknown when its SYN was not seen: the largest there can be (RFC 7323 section 2.3).
_UNKNOWN_SCALE = 14


class FlowTable:
    """At most ``max_flows`` flows; ``when_full`` says what becomes of one more.

    ``evict_oldest``: the flow nearest to its idle timeout makes room (so unfinished handshakes go before connections in
    use) and is returned in :attr:`Tracked.ended`. ``refuse``: the packet is REFUSED.
    """

    def __init__(
        self,
        max_flows: int = 262_144,  # Linux conntrack's own default on most machines; 0.3 GB here when full
        timeouts: FlowTimeouts | None = None,
        when_full: Literal["evict_oldest", "refuse"] = "evict_oldest",
    ) -> None:
        if max_flows < 1:
            raise ValueError(f"max_flows is at least 1, not {max_flows}")
        if when_full not in ("evict_oldest", "refuse"):
            raise ValueError(f"when_full is evict_oldest or refuse, not {when_full!r}")
        self.max_flows = max_flows
        self.timeouts = timeouts or FlowTimeouts()
        self.when_full = when_full
        self.counters = FlowCounters()
        # Keys of TCP and UDP look alike, so they live apart; keys of other protocols differ from UDP's in length.
        self._tcp: dict[bytes, Tracked] = {}
        self._other: dict[bytes, Tracked] = {}
        self._wheel = _Wheel()
        self._count = 0
        self._last_id = 0
        self._tcp_timeouts = _timeouts_by_state(self.timeouts)

    # -- the packet path --

    def track(self, packet: Packet, now: float, vouched: bool = False) -> Tracked:
        """Find or make the flow of ``packet``, as from :func:`engines.packet.decode`, and account the packet to it.

        ``vouched``: somebody who sees every segment (conntrack) found the numbers of this one plausible. They are
        believed in flows with an ``unseen`` direction, of which this table has lost count.

        INVALID with a flow (an implausible RST, say) is not accounted and leaves the flow as it was.
        """
        if packet.protocol != TCP:
            return self._track_other(packet, now)
        known = self._tcp.get(packet.key)
        if known is None:
            return self._first_segment(packet, now, None)
        flow, direction, _, established, _, _ = known
        assert flow is not None
        assert flow.halves is not None
        if now - flow.last_seen >= flow._timeout:
            return self._first_segment(packet, now, self._drop(flow, CloseReason.TIMEOUT))
        flags = packet.tcp_flags
        if established and flags in _PLAIN_ACK and flow.tcp_state is _ESTABLISHED:
            if direction is TO_SERVER:
                half, peer = flow.halves
            else:
                peer, half = flow.halves
            # _advance(), in line: this is nearly every packet there is.
            end = packet.seq + packet.end - packet.payload_offset & SEQUENCE_MASK
            if end != half.next_seq and end - half.next_seq & SEQUENCE_MASK < 0x80000000:
                half.next_seq = end
            ack = packet.ack
            if flow.unseen is not None and vouched:
                _believe(flow, direction, half, peer, packet)
            elif (
                ack != half.acked
                and ack - half.acked & SEQUENCE_MASK < 0x80000000
                and peer.next_seq - ack & SEQUENCE_MASK < 0x80000000
            ):
                half.acked = ack
            half.window = packet.window << half.scale
        else:
            if flow.unseen is not None and vouched:
                _believe(flow, direction, flow.halves[direction], flow.halves[direction.reply], packet)
            reason = _segment(flow, direction, packet)
            if reason == _REUSE:
                return self._first_segment(packet, now, self._drop(flow, CloseReason.REUSED))
            flow._timeout = self._tcp_timeouts[flow.tcp_state]
            deadline = (flow.last_seen if reason else now) + flow._timeout
            if flow._bucket > deadline:  # the timeout became shorter: the wheel would look too late
                self._wheel.discard(flow)
                self._wheel.add(flow, deadline)
            if reason:
                self.counters.invalid += 1
                return Tracked(flow, direction, Kind.INVALID, established, reason)
            if flow.established and not established:
                self._store(flow)
                if packet.end > packet.payload_offset:  # data with the last step is of the connection it opens
                    known = self._tcp[packet.key]
        flow.last_seen = now
        flow.packets[direction] += 1
        flow.bytes[direction] += packet.end
        flow.flags[direction] |= flags
        return known

    def adopt(self, packet: Packet, now: float, *, established: bool = False) -> Tracked:
        """Make a flow for a TCP packet that :meth:`track` called MIDSTREAM (policy: continue).

        Which side is the client can only be guessed: the sender, unless it sent SYN|ACK or its port is a well-known one
        (below 1024) and the lower. Suricata keeps such flows from ever matching ``flow:established``; so does the
        default here. Kind is MIDSTREAM, or as from :meth:`track` when there is nothing to adopt.
        """
        if packet.protocol != TCP or not packet.key or packet.key in self._tcp:
            return self.track(packet, now)
        flags = packet.tcp_flags
        if flags & _FLAG_BITS not in _VALID_FLAGS or flags & RST or flags & (SYN | ACK) == SYN:
            return self.track(packet, now)
        from_server = flags & SYN != 0 or (packet.sport < 1024 and packet.sport < packet.dport)
        direction = TO_CLIENT if from_server else TO_SERVER
        flow, ended = self._create(packet, now, direction)
        if flow is None:
            self.counters.refused += 1
            return Tracked(None, direction, Kind.REFUSED, False, "flow_table_full")
        self.counters.adopted += 1
        flow.midstream = True
        flow.established = established
        flow.tcp_state = TcpState.ESTABLISHED
        sender, receiver = TcpHalf(), TcpHalf()
        flow.halves = (receiver, sender) if from_server else (sender, receiver)
        sender.scale = receiver.scale = _UNKNOWN_SCALE
        sender.next_seq = receiver.acked = packet.seq
        sender.acked = receiver.next_seq = packet.ack
        receiver.window = 0xFFFF << _UNKNOWN_SCALE
        _segment(flow, direction, packet)
        flow._timeout = self._tcp_timeouts[flow.tcp_state]
        self._admit(flow, direction, packet)
        return Tracked(flow, direction, Kind.MIDSTREAM, False, "", ended)

    def knows(self, packet: Packet, now: float) -> bool:
        """Whether a UDP ``packet`` belongs to a flow of the table; nothing is accounted."""
        known = self._other.get(packet.key)
        return known is not None and known.flow is not None and now - known.flow.last_seen < known.flow._timeout

    def resume(self, packet: Packet, now: float) -> Tracked:
        """Make the flow of a UDP packet that :meth:`knows` denies and that is known to come from the server.

        Whoever knows so has seen the client's packets, so both sides were seen. Otherwise as :meth:`track`.
        """
        ended = None
        known = self._other.get(packet.key)
        if known is not None and known.flow is not None:
            ended = self._drop(known.flow, CloseReason.TIMEOUT)
        flow, made_room = self._create(packet, now, TO_CLIENT)
        if flow is None:
            self.counters.refused += 1
            return Tracked(None, TO_CLIENT, Kind.REFUSED, False, "flow_table_full", ended)
        self.counters.created += 1
        flow.established = True
        flow._timeout = self.timeouts.udp
        self._admit(flow, TO_CLIENT, packet)
        return Tracked(flow, TO_CLIENT, Kind.NEW, True, "", ended or made_room)

    def _track_other(self, packet: Packet, now: float) -> Tracked:
        known = self._other.get(packet.key)
        ended = None
        if known is not None:
            flow, direction, _, established, _, _ = known
            assert flow is not None
            if now - flow.last_seen < flow._timeout:
                flow.last_seen = now
                flow.packets[direction] += 1
                flow.bytes[direction] += packet.end
                if established or direction is TO_SERVER:
                    return known
                flow.established = True
                self._store(flow)
                return self._other[packet.key]
            ended = self._drop(flow, CloseReason.TIMEOUT)
        if not packet.key:
            return self._invalid(packet.problem or "fragment", ended)
        if packet.is_icmp_error:
            return self._related(packet, now)
        if packet.is_icmp_reply:
            return self._invalid("unsolicited_reply", ended)
        return self._new(packet, now, ended)

    def _first_segment(self, packet: Packet, now: float, ended: Flow | None) -> Tracked:
        """A TCP packet of no flow."""
        if not packet.key:
            return self._invalid(packet.problem or "fragment", ended)
        flags = packet.tcp_flags & _FLAG_BITS
        if flags not in _VALID_FLAGS:
            return self._invalid("tcp_flags", ended)
        if flags & (SYN | ACK) == SYN:
            return self._new(packet, now, ended)
        self.counters.midstream += 1
        return Tracked(None, TO_SERVER, Kind.MIDSTREAM, False, "", ended)

    def _related(self, packet: Packet, now: float) -> Tracked:
        """An ICMP error. It neither keeps a flow alive nor counts for it.

        The quoted sequence number is left to the end it is sent to (RFC 5927 section 4.1): to lose a true "packet too
        big" because of a segment that never passed here would be worse.
        """
        inner = quoted_packet(packet)
        if inner is None:
            return self._invalid("bad_quote")
        known = self._table(inner.protocol).get(inner.key)
        if known is None or known.flow is None or now - known.flow.last_seen >= known.flow._timeout:
            return self._invalid("unrelated_icmp")
        if packet.dst != inner.src:  # not to whom the quoted packet came from: it is about somebody else's flow
            return self._invalid("misdirected_icmp")
        self.counters.related += 1
        return Tracked(known.flow, known.direction.reply, Kind.RELATED, known.established)

    def _invalid(self, reason: str, ended: Flow | None = None) -> Tracked:
        self.counters.invalid += 1
        return Tracked(None, TO_SERVER, Kind.INVALID, False, reason, ended)

    # -- coming and going --

    def __len__(self) -> int:
        return self._count

    @property
    def evicted(self) -> int:
        """Flows that had to make room for another."""
        return self.counters.evicted

    def flows(self) -> list[Flow]:
        """All flows in the table. O(n), a copy."""
        tracked = [*self._tcp.values(), *self._other.values()]
        return [t.flow for t in tracked if t.direction is TO_SERVER and t.flow is not None]

    def walk(self) -> Iterator[Flow]:
        """All flows, one at a time, with packets in between: what left meanwhile is left out, and what came too.

        The first step copies pointers, about a millisecond for 100,000 flows.
        """
        for tracked in [*self._tcp.values(), *self._other.values()]:
            flow = tracked.flow
            if tracked.direction is TO_SERVER and flow is not None and flow._bucket != _NO_BUCKET:
                yield flow

    def find(self, protocol: int, key: bytes) -> Flow | None:
        """The flow of packets with this protocol and ``Packet.key``."""
        known = self._table(protocol).get(key)
        return None if known is None else known.flow

    def expire(self, now: float, limit: int | None = None) -> list[Flow]:
        """Remove and return the flows whose idle timeout has passed. O(flows due); call it about once a second.

        ``limit`` bounds the flows looked at, so that packets need not wait; what is left comes with the next call.
        """
        expired: list[Flow] = []
        alive: list[Flow] = []
        for flow in self._wheel.due(now, limit):
            (expired if now - flow.last_seen >= flow._timeout else alive).append(flow)
        for flow in alive:
            self._wheel.add(flow, flow.last_seen + flow._timeout)
        for flow in expired:
            self._forget(flow, CloseReason.TIMEOUT)
        self.counters.expired += len(expired)
        return expired

    def remove(self, flow: Flow, reason: CloseReason = CloseReason.FLUSHED) -> bool:
        """Take ``flow`` out; False when it had left already."""
        if flow._bucket == _NO_BUCKET:
            return False
        self._wheel.discard(flow)
        self._forget(flow, reason)
        self.counters.removed += 1
        return True

    def _new(self, packet: Packet, now: float, ended: Flow | None) -> Tracked:
        flow, made_room = self._create(packet, now, TO_SERVER)
        if flow is None:
            self.counters.refused += 1
            return Tracked(None, TO_SERVER, Kind.REFUSED, False, "flow_table_full", ended)
        self.counters.created += 1
        protocol = packet.protocol
        if protocol == TCP:
            flow.tcp_state = TcpState.SYN_SENT
            flow.halves = _halves_of_syn(packet)
            flow._timeout = self._tcp_timeouts[TcpState.SYN_SENT]
        elif protocol == UDP:
            flow._timeout = self.timeouts.udp
        elif protocol in (ICMP, ICMPV6):
            flow._timeout = self.timeouts.icmp
        else:
            flow._timeout = self.timeouts.other
        self._admit(flow, TO_SERVER, packet)
        # A flow that timed out or was reused has left room for this one, so there is never a second to report.
        return Tracked(flow, TO_SERVER, Kind.NEW, False, "", ended or made_room)

    def _create(self, packet: Packet, now: float, direction: Direction) -> tuple[Flow | None, Flow | None]:
        """A flow not yet in the table, and the one evicted for it; no flow when the table is full and stays so."""
        evicted = None
        if self._count >= self.max_flows:
            if self.when_full == "refuse":
                return None, None
            evicted = self._wheel.take_nearest()
            self._forget(evicted, CloseReason.EVICTED)
            self.counters.evicted += 1
        self._last_id += 1
        family, protocol, key, reply = packet.family, packet.protocol, packet.key, _reply_key(packet)
        if direction is TO_SERVER:
            flow = Flow(
                self._last_id, protocol, family, packet.src, packet.dst, packet.sport, packet.dport, now, (key, reply)
            )
        else:
            flow = Flow(
                self._last_id, protocol, family, packet.dst, packet.src, packet.dport, packet.sport, now, (reply, key)
            )
        return flow, evicted

    def _admit(self, flow: Flow, direction: Direction, packet: Packet) -> None:
        self._count += 1
        self._wheel.add(flow, flow.last_seen + flow._timeout)
        self._store(flow)
        flow.packets[direction] = 1
        flow.bytes[direction] = packet.end
        flow.flags[direction] = packet.tcp_flags

    def _store(self, flow: Flow) -> None:
        table = self._table(flow.protocol)
        # The client last: with source equal to destination both keys are one, and that is the direction to keep.
        table[flow.keys[TO_CLIENT]] = Tracked(flow, TO_CLIENT, Kind.KNOWN, flow.established)
        table[flow.keys[TO_SERVER]] = Tracked(flow, TO_SERVER, Kind.KNOWN, flow.established)

    def _drop(self, flow: Flow, reason: CloseReason) -> Flow:
        """Remove a flow a packet has found to be over."""
        self._wheel.discard(flow)
        self._forget(flow, reason)
        if reason is CloseReason.TIMEOUT:
            self.counters.expired += 1
        else:
            self.counters.reused += 1
        return flow

    def _forget(self, flow: Flow, reason: CloseReason) -> None:
        """Remove a flow that is no longer in the wheel."""
        self._count -= 1
        table = self._table(flow.protocol)
        for key in flow.keys:
            table.pop(key, None)
        # How its ends closed it says more than what made us notice.
        flow.close_reason = flow.close_reason or _CLOSED_BY_ENDS.get(flow.tcp_state, reason)

    def _table(self, protocol: int) -> dict[bytes, Tracked]:
        return self._tcp if protocol == TCP else self._other


_CLOSED_BY_ENDS = {
    TcpState.CLOSING: CloseReason.CLOSED,
    TcpState.LAST_ACK: CloseReason.CLOSED,
    TcpState.TIME_WAIT: CloseReason.CLOSED,
    TcpState.CLOSED: CloseReason.RESET,
}


def _timeouts_by_state(timeouts: FlowTimeouts) -> dict[TcpState, float]:
    return {
        TcpState.SYN_SENT: timeouts.tcp_opening,
        TcpState.SYN_RECEIVED: timeouts.tcp_opening,
        TcpState.ESTABLISHED: timeouts.tcp_idle,
        TcpState.FIN_WAIT_1: timeouts.tcp_closing,
        TcpState.FIN_WAIT_2: timeouts.tcp_idle,
        TcpState.CLOSING: timeouts.tcp_closing,
        TcpState.LAST_ACK: timeouts.tcp_closing,
        TcpState.TIME_WAIT: timeouts.tcp_closing,
        TcpState.CLOSED: timeouts.tcp_closed,
    }


def _reply_key(packet: Packet) -> bytes:
    """``packet.key`` as a packet in the other direction would have it."""
    key = packet.key
    if packet.protocol in (TCP, UDP):
        return packet.dst + packet.src + key[-2:] + key[-4:-2]
    return key[:1] + packet.dst + packet.src + key[1 + 2 * len(packet.src) :]


# --- TCP, segment by segment ------------------------------------------------------------------------------------------


def _halves_of_syn(packet: Packet) -> tuple[TcpHalf, TcpHalf]:
    """Both sides after the first SYN of the client."""
    client, server = TcpHalf(), TcpHalf()
    _take_syn(client, server, packet)
    return client, server


def _segment(flow: Flow, direction: Direction, packet: Packet) -> str:
    """Move ``flow`` by one segment. Returns "" or, when the flow was left as it was, why; or ``_REUSE``."""
    assert flow.halves is not None
    half, peer = flow.halves[direction], flow.halves[direction.reply]
    flags = packet.tcp_flags
    if flags & _FLAG_BITS not in _VALID_FLAGS:
        return "tcp_flags"
    if flags & SYN:
        return _syn(flow, direction, half, peer, packet)
    if flags & RST:
        return _reset(flow, half, peer, packet)
    length = packet.end - packet.payload_offset
    if flow.tcp_state is TcpState.SYN_SENT:
        # Nothing is agreed yet. The bare ACK of a server that still has an older connection open must get through,
        # so that the client can reset that one (RFC 9293 section 3.5.1, figure 9).
        bare = direction is TO_CLIENT and length == 0 and not flags & FIN
        return "" if bare else "before_handshake"
    if flow.tcp_state is TcpState.SYN_RECEIVED and not _acks_syn(peer, packet.ack):
        return "bad_ack"
    fin_end = None
    if flags & FIN:
        fin_end = packet.seq + length + 1 & SEQUENCE_MASK
        if half.fin_end is None:
            if not _expected(half, peer, packet.seq + length):
                return "out_of_window"
        elif half.fin_end != fin_end:
            return "second_fin_elsewhere"
    _advance(half, peer, packet, length + (fin_end is not None))
    _open(flow)
    _acked_fins(flow, direction, half, peer)
    if fin_end is not None and half.fin_end is None:
        half.fin_end = fin_end
        if peer.fin_end is None:
            flow._finisher = direction
            _move(flow, TcpEvent.FIRST_FIN)
        else:
            _move(flow, TcpEvent.SECOND_FIN)
    return ""


def _syn(flow: Flow, direction: Direction, half: TcpHalf, peer: TcpHalf, packet: Packet) -> str:
    state = flow.tcp_state
    answers = packet.tcp_flags & ACK != 0
    bare = packet.end == packet.payload_offset
    if not answers and (
        state in _OVER or (state is TcpState.SYN_SENT and direction is TO_SERVER and packet.seq != half.isn)
    ):
        return _REUSE
    if state is TcpState.SYN_SENT and direction is TO_CLIENT:
        if answers and not _acks_syn(peer, packet.ack):
            # Left over from an older attempt; the client answers it with a RST (RFC 9293 section 3.5, figure 8).
            return "" if bare else "bad_ack"
        _take_syn(half, peer, packet)
        if answers:
            half.acked = packet.ack
        if half.offered_scale is not None and peer.offered_scale is not None:
            half.scale, peer.scale = half.offered_scale, peer.offered_scale
        _move(flow, TcpEvent.ANSWER)
        return ""
    if packet.seq == half.isn and peer.isn is not None:
        # Repeated; or, in a simultaneous open (RFC 9293 figure 7), the SYN again with the ACK of the other's.
        if answers and state is TcpState.SYN_RECEIVED and _acks_syn(peer, packet.ack):
            half.acked = packet.ack
            _open(flow)
        return ""
    if packet.seq == half.isn and not answers:
        return ""  # the client's SYN again, not answered yet
    # A SYN inside a connection. The other end says what it means: an ACK, which the sender of the SYN, if it has lost
    # the connection, resets (RFC 5961 section 4); or SYN|ACK, if it has lost the connection too. Data in such a SYN is
    # never accepted by the other end and so must not be inspected as if it were.
    if not bare:
        return "stray_syn"
    if not answers:
        half.stray_syn = packet.seq
    elif peer.stray_syn is not None and packet.ack == peer.stray_syn + 1 & SEQUENCE_MASK:
        # Both ends have moved on. The SYN, when repeated, finds this flow closed and starts one with a known beginning.
        flow.tcp_state = TcpState.CLOSED
        flow.close_reason = CloseReason.REUSED
        return "reopened"
    return ""


def _reset(flow: Flow, half: TcpHalf, peer: TcpHalf, packet: Packet) -> str:
    """A RST that its receiver would not accept must not end the flow (RFC 9293 section 3.5.3, RFC 5961 section 3)."""
    if flow.tcp_state is TcpState.SYN_SENT:
        if half.isn is None:  # from the server
            if not packet.tcp_flags & ACK or not _acks_syn(peer, packet.ack):
                return "bad_ack"
            _move(flow, TcpEvent.RESET)
        elif packet.seq - half.isn & SEQUENCE_MASK <= half.next_seq - half.isn & SEQUENCE_MASK:
            _move(flow, TcpEvent.RESET)
        # Else the client resets what the server still holds of an older connection: it passes and ends nothing here.
        return ""
    if _expected(half, peer, packet.seq) or flow.tcp_state is TcpState.CLOSED:
        _move(flow, TcpEvent.RESET)
        return ""
    if packet.tcp_flags & ACK and peer.stray_syn is not None and packet.ack == peer.stray_syn + 1 & SEQUENCE_MASK:
        _move(flow, TcpEvent.RESET)
        return ""
    return "out_of_window"


def _take_syn(half: TcpHalf, peer: TcpHalf, packet: Packet) -> None:
    half.isn = packet.seq
    half.next_seq = packet.seq + 1 + packet.end - packet.payload_offset & SEQUENCE_MASK  # data: RFC 7413
    half.window = packet.window  # never scaled in a SYN
    half.offered_scale = tcp_window_scale(packet)
    peer.acked = packet.seq  # that is: nothing yet


def _acks_syn(half: TcpHalf, ack: int) -> bool:
    """Whether ``ack`` acknowledges the SYN of ``half`` and nothing that was not sent."""
    if half.isn is None:
        return False
    first = half.isn + 1
    return ack - first & SEQUENCE_MASK <= half.next_seq - first & SEQUENCE_MASK


def _expected(half: TcpHalf, peer: TcpHalf, seq: int) -> bool:
    """``seq`` lies where the receiver may take it: from what it acknowledged to its window or what was sent."""
    sent = half.next_seq - peer.acked & SEQUENCE_MASK
    return seq - peer.acked & SEQUENCE_MASK <= max(peer.window, sent)


def _advance(half: TcpHalf, peer: TcpHalf, packet: Packet, length: int) -> None:
    """Serial number arithmetic, RFC 9293 section 3.4: later means less than half the number space ahead."""
    end = packet.seq + length & SEQUENCE_MASK
    if end - half.next_seq & SEQUENCE_MASK < 0x80000000:
        half.next_seq = end
    ack = packet.ack
    if ack - half.acked & SEQUENCE_MASK < 0x80000000 and peer.next_seq - ack & SEQUENCE_MASK < 0x80000000:
        half.acked = ack
    half.window = packet.window << half.scale


def _believe(flow: Flow, direction: Direction, half: TcpHalf, peer: TcpHalf, packet: Packet) -> None:
    """Catch up with what passed unseen, by what a vouched segment says of it: any distance, 2**31 and more included."""
    if direction is flow.unseen:
        half.next_seq = packet.seq + packet.end - packet.payload_offset & SEQUENCE_MASK
        if half.fin_end is None:
            peer.acked = packet.seq
    elif peer.fin_end is None:
        peer.next_seq = packet.ack
    if packet.tcp_flags & ACK:
        half.acked = packet.ack


def _open(flow: Flow) -> None:
    if flow.tcp_state is TcpState.SYN_RECEIVED:
        assert flow.halves is not None
        client, server = flow.halves
        if _acks_syn(server, client.acked) and _acks_syn(client, server.acked):
            flow.established = True
            _move(flow, TcpEvent.OPENED)


def _acked_fins(flow: Flow, direction: Direction, half: TcpHalf, peer: TcpHalf) -> None:
    if not _covers_fin(half, peer):
        return
    if _covers_fin(peer, half):
        _move(flow, TcpEvent.ALL_ACKED)
    elif direction is not flow._finisher:
        _move(flow, TcpEvent.FIRST_FIN_ACKED)


def _covers_fin(half: TcpHalf, peer: TcpHalf) -> bool:
    return peer.fin_end is not None and half.acked - peer.fin_end & SEQUENCE_MASK < 0x80000000


def _move(flow: Flow, event: TcpEvent) -> None:
    flow.tcp_state = TRANSITIONS[flow.tcp_state].get(event, flow.tcp_state)


# --- timers -----------------------------------------------------------------------------------------------------------


class _Wheel:
    """Flows by the second in which their idle timeout ends, as far as was known when they were filed.

    Every flow is in exactly one bucket, so a flow that left the table leaves nothing behind. Bounded: at most one
    bucket per second of the longest timeout.
    """

    __slots__ = ("_buckets", "_ticks")

    def __init__(self) -> None:
        self._buckets: dict[int, OrderedDict[Flow, None]] = {}
        self._ticks: list[int] = []  # heap of the keys of _buckets; an emptied bucket stays until its time has come

    def add(self, flow: Flow, deadline: float) -> None:
        tick = int(deadline)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = OrderedDict()
            heapq.heappush(self._ticks, tick)
        bucket[flow] = None
        flow._bucket = tick

    def discard(self, flow: Flow) -> None:
        del self._buckets[flow._bucket][flow]
        flow._bucket = _NO_BUCKET

    def due(self, now: float, limit: int | None) -> Iterator[Flow]:
        """Take out and yield the flows filed under a second that has begun; the caller adds again those still alive.

        Not to be added to while it runs: an added flow may be due in this very second.
        """
        left = -1 if limit is None else limit
        while self._ticks and self._ticks[0] <= now:
            bucket = self._buckets[self._ticks[0]]
            while bucket:
                if left == 0:
                    return
                left -= 1
                flow, _ = bucket.popitem(last=False)
                flow._bucket = _NO_BUCKET
                yield flow
            del self._buckets[heapq.heappop(self._ticks)]

    def take_nearest(self) -> Flow:
        """Take out the flow nearest to its deadline, give or take a second. There must be one.

        Flows found to have been seen since they were filed are filed anew. At most ``_EVICTION_LOOKS`` are, so that
        one packet does not pay for a thousand; then the best of those goes.
        """
        seen: list[Flow] = []
        for _ in range(_EVICTION_LOOKS):
            tick = self._first_tick()
            if tick is None:
                break
            flow, _ = self._buckets[tick].popitem(last=False)
            flow._bucket = _NO_BUCKET
            seen.append(flow)
            if int(_deadline(flow)) <= tick:
                break
        nearest = min(seen, key=_deadline)
        for flow in seen:
            if flow is not nearest:
                self.add(flow, _deadline(flow))
        return nearest

    def _first_tick(self) -> int | None:
        """Of the first bucket that is not empty."""
        while self._ticks:
            if self._buckets[self._ticks[0]]:
                return self._ticks[0]
            del self._buckets[heapq.heappop(self._ticks)]
        return None


def _deadline(flow: Flow) -> float:
    return flow.last_seen + flow._timeout

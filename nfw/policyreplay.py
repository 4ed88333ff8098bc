"""A whole policy over a capture: what ``nfw replay --policy`` does.

The pipeline is the packet worker's own (:mod:`nfw.pipeline`) with the capture's clock. What surrounds it in a live
firewall is played here: the kernel's fragment rules and reassembly, its conntrack marks, by which it forwards or drops
flows without asking again, and the packets that wait for a verdict. Tunnels stay closed and VLAN tags are taken off, as
the kernel hands packets over.

What it leaves out: a TLS session of the past cannot be intercepted, so flows in a TLS scope are reported, and left or,
when asked, inspected as they are on the wire. Addresses are those of the capture: one taken before NAT shows others
than the firewall would see.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.decode.defrag import DefragLimits, Defragmenter, FragmentPolicy, Outcome, read_fragment
from engines.decode.link import IPV4, IPV6, decode_link
from engines.flow import Flow
from engines.packet import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Packet, decode, quoted
from engines.stateful.inspector import Outcome as Judged
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.verdict import Verdict
from nfw import events
from nfw.capture import Captured
from nfw.marks import Disposition
from nfw.pipeline import HOLD_SECONDS, Answer, Context, Effects, Pipeline
from nfw.policy.model import Mode
from nfw.watch import flow_key

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled

GENERATION = 1
_FRAGMENT_HEADER, _AUTHENTICATION = 44, 51
MAX_ENTRIES = 262_144  # of the conntrack table played here; beyond it the one longest without a packet is forgotten
_FRAGMENTS = 30.0  # seconds after which an incomplete datagram is given up (Linux: net.ipv4.ipfrag_time)
# Seconds without a packet after which conntrack forgets (Linux, nf_conntrack_*_timeout).
_TCP_OPEN, _TCP_CLOSED, _TCP_RESET, _UDP, _ICMP, _OTHER = 432_000.0, 120.0, 10.0, 120.0, 30.0, 600.0

_STORED = frozenset(
    {
        Answer.INSPECT,
        Answer.PASS,
        Answer.DROP_FLOW,
        Answer.TLS,
        Answer.INSPECT_TO_CLIENT,
        Answer.INSPECT_TO_SERVER,
        Answer.ENDED,
    }
)
_REFUSED = frozenset({Answer.DROP, Answer.DROP_FLOW, Answer.ENDED})
# What the pipeline counts that is no reason for a verdict.
_REMARKS = frozenset(
    {
        "alert",
        "drop_records_suppressed",
        "half_offloaded",
        "hold_expired",
        "hold_full",
        "offloaded",
        "stream_exception_continue",
    }
)
_FLOW_REASONS = frozenset({"flow_table_full", "icmp_error", "open_flow", "stream_exception"})
_UNDECIDED = "no_match"


class Counted(NamedTuple):
    """Packets of one fate. ``stage``: fragments, stateless, flow, tls, stateful, or kernel: by a flow's mark alone.
    ``verdict``: accept, drop, reject, intercept, or joined: became part of a datagram, which is judged as one more."""

    stage: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """What a policy did to a capture. ``stateless``: each rule with its hits, in order of priority."""

    packets: int
    unread: int  # frames that carry no IP
    verdicts: Mapping[Counted, int]
    stateless: tuple[tuple[StatelessRule, int], ...]
    stateless_default: int
    counters: Mapping[str, int]
    hits: Mapping[str, int]  # of stateful rules, as RuleSet.hit_counts
    intercepted: int  # flows in a TLS scope
    injected: int  # resets and ICMP errors that would have been sent
    incomplete: int  # datagrams of which not every fragment came
    short: int  # packets of which the capture has only a part

    @property
    def dropped(self) -> int:
        """Packets that did not go on."""
        return sum(number for what, number in self.verdicts.items() if what.verdict in ("drop", "reject"))


@dataclass(slots=True)
class _Entry:
    """One conntrack entry."""

    client: tuple[bytes, int]
    last_seen: float
    mark: Disposition = Disposition.NONE
    fins: set[tuple[bytes, int]] = field(default_factory=set)
    reset: bool = False

    def note(self, packet: Packet) -> None:
        """What closes a connection."""
        if packet.protocol == TCP:
            if packet.tcp_flags & FIN:
                self.fins.add((packet.src, packet.sport))
            self.reset = self.reset or bool(packet.tcp_flags & RST)

    def timeout(self, protocol: int) -> float:
        if protocol == TCP:
            return _TCP_RESET if self.reset else _TCP_CLOSED if len(self.fins) == 2 else _TCP_OPEN
        return {UDP: _UDP, ICMP: _ICMP, ICMPV6: _ICMP}.get(protocol, _OTHER)


class Tracing(Pipeline):
    """Remembers why it answered what it answered: ``said`` of the last packet, ``decided`` by the inspector."""

    def __init__(
        self, compiled: Compiled, effects: Effects, in_scope: Callable[[Packet], None], inspect_tls: bool
    ) -> None:
        super().__init__(compiled, GENERATION, effects, 0.0)
        self.said: list[str] = []
        self.decided = _UNDECIDED
        self._tell_in_scope = in_scope
        self._inspect_tls = inspect_tls

    def begin(self) -> None:
        """The next packet's turn."""
        self.said.clear()
        self.decided = _UNDECIDED

    def _count(self, name: str) -> None:
        super()._count(name)
        if name not in _REMARKS:
            self.said.append(name)

    def _in_scope(self, packet: Packet) -> bool:
        if not super()._in_scope(packet):
            return False
        self._tell_in_scope(packet)
        return not self._inspect_tls

    def _outcome(
        self, outcome: Judged, flow: Flow, context: Context, packet: Packet | None, now: float
    ) -> Answer | None:
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            self.decided = "pass_rule" if decision.reason in ("rule", "rate_filter") else decision.reason
        return super()._outcome(outcome, flow, context, packet, now)


class PolicyReplay:
    """Packets in, EVE records and counts out; :func:`replay_policy` is the way to use it.

    Acts for the pipeline (:class:`nfw.pipeline.Effects`). Times are seconds since 1970, from the capture.
    """

    def __init__(
        self,
        compiled: Compiled,
        event: Callable[[dict[str, Any]], None],
        *,
        inspect_tls: bool,
        pipeline: type[Tracing] = Tracing,
    ) -> None:
        self.verdicts: dict[Counted, int] = {}
        self.intercepted = self.injected = 0
        self._event = event
        self._fragments = compiled.policy.stateless.fragments
        if compiled.policy.mode is Mode.MONITOR and self._fragments is StatelessAction.DROP:
            self._fragments = StatelessAction.PASS  # as the live rules let them go, and count them
        self._defragmenter = Defragmenter(lambda _: FragmentPolicy.FIRST, DefragLimits(timeout=_FRAGMENTS))
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._waiting: dict[int, Packet] = {}  # held by the pipeline, which bounds them
        self._number: int | None = None
        self._id = 0
        self._injected_before = 0
        self._due = 0.0
        self.now = 0.0
        self.pipeline = pipeline(compiled, self, self._in_scope, inspect_tls)

    @property
    def incomplete(self) -> int:
        return len(self._defragmenter) + self._defragmenter.expired + self._defragmenter.evicted

    # -- Effects ---------------------------------------------------------------------------------------------------

    def rewrite(self, packet_id: int, packet: bytes) -> None:
        """Nobody receives what a capture holds; the pipeline counts it."""

    def verdict(self, packet_id: int, accept: bool) -> None:
        """A packet that was held is judged."""
        packet = self._waiting.pop(packet_id)
        if accept:
            self._add("stateful", "accept", _UNDECIDED)
            self._store(packet, Disposition.INSPECT, self.now)
        else:
            self._refused(fallback="flow_end")

    def inject(self, packet: bytes) -> None:
        """A reset or an ICMP error that would be sent."""
        self.injected += bool(packet)

    def event(self, event: dict[str, Any]) -> None:
        """One record, with its packet's number when it is about one."""
        if self._number is not None:
            event["pcap_cnt"] = self._number
        self._event(event)

    # -- packets ---------------------------------------------------------------------------------------------------

    def packet(self, number: int, data: bytes, now: float) -> None:
        """One IP packet as it arrived."""
        self._tick(now)
        self._number = number
        packet = decode(data)
        fragment = read_fragment(data)
        # The kernel's rules look for the header: a datagram in a single fragment (RFC 6946) has one, too.
        if fragment is None and not _has_fragment_header(packet):
            self._whole(packet, now)
        elif packet.protocol != UDP:
            self._add("fragments", "drop", "fragments_other")
        elif self._fragments is StatelessAction.DROP:
            self._add("fragments", "drop", "fragments_udp")
        elif fragment is not None:
            self._fragment(data, now)
        elif self._fragments is StatelessAction.PASS:
            self._add("fragments", "accept", "fragment_default")
        else:
            self._whole(packet, now)

    def _fragment(self, data: bytes, now: float) -> None:
        """Linux puts together what does not overlap; what repeats bytes it has, and nothing else, does no harm."""
        pieces = self._defragmenter
        pieces.tick(now)
        held = pieces.held_bytes
        part = pieces.add(data, now)
        overlaps = any(event.endswith("frag_overlap") for event in part.events)
        if overlaps and (part.outcome is Outcome.REBUILT or pieces.held_bytes != held):
            pieces.discard(data)
            self._add("fragments", "drop", "fragment_overlap")
            return
        if part.outcome is Outcome.HELD:
            self._add("fragments", "joined", "fragment")
        elif part.outcome is Outcome.REBUILT:
            self._add("fragments", "joined", "fragment")
            if self._fragments is StatelessAction.PASS:
                self._add("fragments", "accept", "fragment_default")
            else:
                self._whole(decode(part.datagram), now)
        else:
            self._add("fragments", "drop", f"fragment_{part.outcome.value}")

    def finish(self) -> None:
        """The capture is over: what waits is judged, open flows get their records."""
        self._number = None
        self._tick(self.now + HOLD_SECONDS)
        self.pipeline.finish(self.now, "shutdown")

    def _tick(self, now: float) -> None:
        """Let time pass. Holds end at their own time; everything else is looked at once a second."""
        pipeline = self.pipeline
        self._number = None
        while pipeline.holding:
            first: Context = next(iter(pipeline.holding.values())).context
            until = first.held_since + HOLD_SECONDS
            if until > now:
                break
            self._begin()
            self.now = max(self.now, until)
            pipeline.tick(self.now)
        self.now = max(self.now, now)
        if self.now >= self._due:
            self._begin()
            pipeline.tick(self.now)
            self._due = self.now + 1.0

    def _begin(self) -> None:
        self.pipeline.begin()
        self._injected_before = self.injected

    def _whole(self, packet: Packet, now: float) -> None:
        """A packet at the chain that asks for the flow's mark."""
        entry = self._entry(packet, now)
        mark = Disposition.NONE if entry is None else entry.mark
        error = packet.is_icmp_error
        if entry is not None:
            if not error:
                entry.note(packet)
            if self._by_mark(mark, (packet.src, packet.sport) == entry.client, packet.tcp_flags, error):
                return
        self._id += 1
        self._begin()
        generation = 0 if mark is Disposition.NONE else GENERATION
        answer = self.pipeline.packet(self._id, generation, mark, packet.data, now)
        if answer is Answer.HOLD:
            self._waiting[self._id] = packet
            return
        self._answered(answer)
        if answer in _STORED:
            self._store(packet, Disposition(answer), now)
        elif answer not in _REFUSED:
            self._store(packet, None, now)

    def _by_mark(self, mark: Disposition, from_client: bool, flags: int, error: bool) -> bool:
        """What the kernel does by itself; False: the packet is queued."""
        if mark is Disposition.PASS:
            self._add("kernel", "accept", "flow_pass")
        elif mark is Disposition.DROP:
            self._add("kernel", "drop", "flow_drop")
        elif mark is Disposition.TLS:
            self._add("tls", "intercept", "would_be_intercepted")
        elif error or flags & (FIN | SYN | RST):
            return False
        elif mark is (Disposition.INSPECT_TO_CLIENT if from_client else Disposition.INSPECT_TO_SERVER):
            self._add("kernel", "accept", "half_offloaded")
        else:
            return False
        return True

    def _answered(self, answer: Answer) -> None:
        said = self.pipeline.said
        if said and said[-1] == "settled":  # was the kernel's already, but for an entry that never came to be
            self._add("kernel", *(("drop", "flow_drop") if answer in _REFUSED else ("accept", "flow_pass")))
        elif answer in _REFUSED:
            self._refused(fallback="flow_drop")
        elif answer is Answer.TLS:
            self._add("tls", "intercept", "would_be_intercepted")
        elif "stateless_pass" in said:
            self._add("stateless", "accept", "stateless_pass")
        elif said and said[-1] in _FLOW_REASONS:
            self._add("flow", "accept", said[-1])
        elif self.pipeline.inspects:
            self._add("stateful", "accept", self.pipeline.decided)
        else:
            self._add("stateful", "accept", "no_rules")

    def _refused(self, *, fallback: str) -> None:
        reason = self.pipeline.said[-1] if self.pipeline.said else fallback
        if reason.startswith("stateless_"):
            stage = "stateless"
        elif reason in _FLOW_REASONS or reason.startswith("invalid_"):
            stage = "flow"
        else:
            stage = "stateful"
        self._add(stage, "reject" if self.injected > self._injected_before else "drop", reason)

    def _in_scope(self, packet: Packet) -> None:
        self.intercepted += 1
        record = events.base(
            "tls",
            self.now,
            flow_id=0,
            protocol=TCP,
            src=packet.src,
            sport=packet.sport,
            dst=packet.dst,
            dport=packet.dport,
        )
        record["nfw"] = {"reason": "would_be_intercepted"}
        self.event(record)

    def _add(self, stage: str, verdict: str, reason: str) -> None:
        key = Counted(stage, verdict, reason)
        self.verdicts[key] = self.verdicts.get(key, 0) + 1

    # -- conntrack -------------------------------------------------------------------------------------------------

    def _entry(self, packet: Packet, now: float) -> _Entry | None:
        """The entry a packet, or what an ICMP error quotes, belongs to."""
        about: Packet | None = packet
        if packet.is_icmp_error:
            about = quoted(packet)
        if about is None or not about.key:
            return None
        key = flow_key(about, ())
        entry = self._entries.get(key)
        if entry is None:
            return None
        reopened = about is packet and packet.tcp_flags & (SYN | ACK) == SYN and (entry.reset or len(entry.fins) == 2)
        if reopened or now - entry.last_seen > entry.timeout(about.protocol):
            del self._entries[key]
            return None
        if about is packet:
            entry.last_seen = now
            self._entries.move_to_end(key)
        return entry

    def _store(self, packet: Packet, mark: Disposition | None, now: float) -> None:
        """Remember a verdict. An entry exists only once a packet of it was let through."""
        if not packet.key or packet.is_icmp_error:
            return
        key = flow_key(packet, ())
        entry = self._entries.get(key)
        if entry is None:
            if mark is Disposition.DROP or mark is Disposition.ENDED:
                return
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.popitem(last=False)
            entry = self._entries[key] = _Entry((packet.src, packet.sport), now)
            entry.note(packet)
        if mark is not None:
            entry.mark = mark


def _has_fragment_header(packet: Packet) -> bool:
    """An IPv6 fragment header is among the extension headers in front of the transport header."""
    if packet.family != 6 or packet.l4_offset <= 40:
        return False
    data, at, kind = packet.data, 40, packet.data[6]
    while at + 8 <= packet.l4_offset and kind != _FRAGMENT_HEADER:  # each turn moves on by at least 8
        kind, at = data[at], at + (8 * (data[at + 1] + 1) if kind != _AUTHENTICATION else 4 * (data[at + 1] + 2))
    return kind == _FRAGMENT_HEADER and at + 8 <= packet.l4_offset


def replay_policy(
    packets: Iterable[Captured],
    compiled: Compiled,
    event: Callable[[dict[str, Any]], None],
    *,
    inspect_tls: bool = False,
) -> PolicySummary:
    """Run all packets through a policy; ``event`` gets each EVE record. ``inspect_tls``: flows in a TLS scope are
    inspected as they are on the wire instead of being left. What ``packets`` raises ends the capture there and is
    raised again when everything before it has been judged."""
    played = PolicyReplay(compiled, event, inspect_tls=inspect_tls)
    seen = unread = short = 0
    now = 0.0
    try:
        for captured in packets:
            seen, now = captured.number, max(now, captured.time)
            short += captured.wire > len(captured.data)
            frame = decode_link(captured.link_type, captured.data)
            if frame.ethertype in (IPV4, IPV6):
                played.packet(captured.number, frame.payload, now)
            else:
                unread += 1
    finally:
        played.finish()
    stateless = compiled.filter
    return PolicySummary(
        packets=seen,
        unread=unread,
        verdicts=played.verdicts,
        stateless=tuple(zip(stateless.rules, stateless.hits, strict=True)),
        stateless_default=stateless.default_hits,
        counters=stateless.counters,
        hits=compiled.ruleset.hit_counts(),
        intercepted=played.intercepted,
        injected=played.injected,
        incomplete=played.incomplete,
        short=short,
    )

"""What nfw sets in the kernel: one nftables table and a few policy routes. Computed as text, applied by a runner.

The way of a packet through ``table inet nfw`` (hook and priority on the left)::

    prerouting -450 fragments   UDP fragments by policy, others dropped; conntrack reassembles at -400
               -100             destination NAT; masquerading undone: from here both directions show the same addresses
                -95 classify ─► generation_N:  flow known?  pass, drop: done here   TLS, has a socket: deliver here
                                               otherwise ─► queue_N ─► a worker's verdict and mark
                -90 divert   ─► verdict_N:     mark ─► conntrack mark; TLS ─► tproxy
    forward    -150 forward     whatever bears no mark of a judged packet is counted and dropped
    input      -150 arrived     our bits of the mark are taken off
    output     -150 own         connections of nfw itself are remembered as such, so their replies are not queued

The sets are the state: with empty sets and an empty classify chain nothing is forwarded, and that is the closed table.
A switch is three transactions of which only the middle one is felt: *prepare* adds chains and makes the new
generation's marks valid, *flip* replaces the single rule of the classify chain, *retire* takes away what older
generations had. The first can be done while the generation is still being compiled. Between flip and retire packets
that wait in the old queues still leave by the old workers' verdicts.

UDP has a mark of its own kind (``Disposition.INSPECT_UDP`` and so on) because its entries must outlive the generation:
conntrack alone knows which side of an open flow is the client. A datagram of an older generation that comes from the
server is stamped ``REPLY``, so that no worker takes it for the beginning of a flow.

``ct packets`` in a rule switches connection accounting on (net.netfilter.nf_conntrack_acct) for flows that begin from
then on, and needs no right to write sysctls. It stays on: nobody can tell who else counts on it.

Base chains stay as long as the table: the kernel drops every queued packet of the namespace when a hook goes. The
forward chain's policy is to drop although its rules decide everything: a packet that is on its way through the hook
while the table is replaced sees the old chain without its rules.

nft 1.0.6 cannot combine two registers (``ct mark set ct mark & x | meta mark & y``), so each rule that copies a mark
has its constants written out. The queue rule is nft's own statement where the kernel has it, else the compat target.

What it leaves out: NAT, forwarding itself (``net.ipv4.ip_forward``) and the input chain are the operator's; an input
chain that drops by default must accept ``ct mark & <disposition bits> == { TLS, OWN }``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from nfw.conntrack import Conntrack
from nfw.marks import Disposition, MarkLayout

TABLE = "nfw"
ROUTE_TABLE = 5101
ROUTE_PRIORITY = 5100  # and the two after: before main, before what VPN software usually adds
ROUTE_PROTOCOL = 78  # marks our rules and routes as ours, so cleanup finds them whatever their numbers are
COUNTERS = {
    "dropped": "packets of flows whose verdict is drop",
    "unjudged": "packets that would have been forwarded without a verdict",
    "fragments_udp": "UDP fragments dropped by the fragment default",
    "fragments_other": "fragments of anything else",
    "tls_refused": "packets of intercepted flows that nobody listens for",
    "ended": "datagrams of servers whose flows a change of policy has ended",
    "stale": "packets for connections of nfw that are gone",
    "failed_open": "packets forwarded without a verdict because the policy says fail open",
}
_RUN_SECONDS = 20.0
_QUEUE_MAX = 65535


# Chains of a generation; none before what jumps to it, so that they can be deleted in this order.
_CHAINS = ("fragments", "generation", "bare", "acknowledgement", "whole", "queue", "verdict", "own")

# Dispositions of packets that may leave.
_FORWARDED = (
    Disposition.INSPECT,
    Disposition.INSPECT_TO_CLIENT,
    Disposition.INSPECT_TO_SERVER,
    Disposition.PASS,
    Disposition.ONCE,
)


# How a worker's answer about a datagram is remembered.
_OF_UDP = {
    Disposition.INSPECT: Disposition.INSPECT_UDP,
    Disposition.PASS: Disposition.PASS_UDP,
    Disposition.DROP: Disposition.DROP_UDP,
}


class HostNetError(Exception):
    """The kernel or a tool refused; the text says what and why."""


class Fragments(Enum):
    """What the policy says of UDP fragments."""

    DROP = "drop"
    FORWARD = "forward"  # reassembled, then judged like any packet
    PASS = "pass"  # noqa: S105 - reassembled, then forwarded without a look
    WATCH = "watch"  # as pass, but counted as though dropped: mode monitor


class QueueRule(Enum):
    """How a packet is queued on this kernel."""

    STATEMENT = "statement"  # nftables' own, CONFIG_NFT_QUEUE
    TARGET = "target"  # xt_NFQUEUE through CONFIG_NFT_COMPAT


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What a generation needs of the kernel. Raises ValueError for numbers that cannot be.

    ``queue_first`` to ``queue_last`` (inclusive) share the packets by a hash of protocol (IPv4) and both addresses that
    is the same for both directions; an ICMP error may thus come to another queue than the flow it quotes.
    ``tproxy_port`` is the transparent listener's, on any address, both families; None: nothing is intercepted.
    """

    generation: int
    queue_first: int
    queue_last: int
    tproxy_port: int | None = None
    fragments: Fragments | str = Fragments.DROP
    fail_open: bool = False

    def __post_init__(self) -> None:
        """Parse ``fragments`` and check the ranges."""
        object.__setattr__(self, "fragments", Fragments(self.fragments))
        if self.generation < 1:
            raise ValueError(f"generation {self.generation} is not positive")
        if not 0 <= self.queue_first <= self.queue_last <= _QUEUE_MAX:
            raise ValueError(f"queues {self.queue_first}-{self.queue_last} are not a range within 0-{_QUEUE_MAX}")
        if self.tproxy_port is not None and not 0 < self.tproxy_port <= 65535:
            raise ValueError(f"port {self.tproxy_port} is not within 1-65535")

    @property
    def queue_count(self) -> int:
        """How many queues."""
        return self.queue_last - self.queue_first + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Every text nfw ever sends to ``nft -f -`` and ``ip``. Pure; golden tests hold it still."""

    layout: MarkLayout = field(default_factory=MarkLayout)
    table: str = TABLE
    route_table: int = ROUTE_TABLE
    route_priority: int = ROUTE_PRIORITY

    # -- the table -------------------------------------------------------------------------------------------------

    def closed(self) -> str:
        """The whole table, forwarding nothing. Replaces the table if there is one."""
        d = self._hex(self.layout.disposition_mask)
        f, clear = self._hex(self.layout.mask), self._stamp(0)
        counters = "\n".join(f'  counter {name} {{ comment "{what}" }}' for name, what in COUNTERS.items())
        return f"""\
add table inet {self.table}
delete table inet {self.table}
table inet {self.table} {{
{counters}
  set judged {{ type mark; comment "marks of packets that may be forwarded"; }}
  set acknowledged {{ typeof ct id; size 65536; flags dynamic,timeout; timeout 1s; }}
  map verdicts {{ type mark : verdict; comment "by generation"; }}
  map own_marks {{ type mark : verdict; comment "marks of sockets of nfw"; }}
  chain unjudged {{
    counter name unjudged drop
  }}
  chain forward {{
    type filter hook forward priority -150; policy drop;
    meta mark & {f} == @judged {clear} accept
    goto unjudged
  }}
  chain arrived {{
    type filter hook input priority -150; policy accept;
    meta mark & {f} != 0 {clear}
  }}
  chain own {{
    type filter hook output priority -150; policy accept;
    meta mark & {d} == {self._hex(self.layout.compose(0, Disposition.OWN))} meta mark & {f} vmap @own_marks
  }}
  chain divert {{
    type filter hook prerouting priority -90; policy accept;
    meta mark & {self._hex(self.layout.generation_mask)} vmap @verdicts
  }}
  chain classify {{
    type filter hook prerouting priority -95; policy accept;
  }}
  chain fragments {{
    type filter hook prerouting priority -450; policy accept;
  }}
  chain accounting {{
    ct packets 0 return comment "never jumped to: that it is here makes the kernel count what each flow carries"
  }}
}}
"""

    def prepare(self, generation: GenerationPlan, queue: QueueRule) -> str:
        """Chains of a generation, and its marks made valid. ``QueueRule.TARGET``: the queue rule itself comes after."""
        number = generation.generation
        chains = {
            f"fragments_{number}": self._fragments(generation),
            f"queue_{number}": [self.queue_statement(generation)] if queue is QueueRule.STATEMENT else [],
            f"whole_{number}": self._whole(generation),
            f"acknowledgement_{number}": self._acknowledgement(number),
            f"bare_{number}": self._bare(number),
            f"generation_{number}": self._classify(generation),
            f"verdict_{number}": self._verdict(generation),
            f"own_{number}": self._own(number),
        }
        lines = [f"add chain inet {self.table} {name}" for name in chains]
        lines += [f"flush chain inet {self.table} {name}" for name in chains]
        lines += [f"add rule inet {self.table} {name} {rule}" for name, rules in chains.items() for rule in rules]
        lines += [f"add element inet {self.table} {element}" for element in self._elements(number)]
        return _text(lines)

    def flip(self, generation: GenerationPlan) -> str:
        """The switch: from here on packets are classified for this generation."""
        t, number, clear = self.table, generation.generation, self._stamp(0)
        described = f"queues {generation.queue_first}-{generation.queue_last}"
        if generation.tproxy_port is not None:
            described += f" port {generation.tproxy_port}"
        unjudged = f"counter name failed_open {clear} accept" if generation.fail_open else "counter name unjudged drop"
        return _text(
            [
                f"flush chain inet {t} fragments",
                f"add rule inet {t} fragments goto fragments_{number}",
                f"flush chain inet {t} unjudged",
                f"add rule inet {t} unjudged {unjudged}",
                f"flush chain inet {t} classify",
                f'add rule inet {t} classify goto generation_{number} comment "{described}"',
            ]
        )

    def retire(self, generations: Iterable[int]) -> str:
        """Take away the chains and the marks of older generations."""
        lines = []
        for number in generations:
            lines += [f"delete element inet {self.table} {element}" for element in self._elements(number)]
            chains = [f"{kind}_{number}" for kind in _CHAINS]
            lines += [f"flush chain inet {self.table} {chain}" for chain in chains]
            lines += [f"delete chain inet {self.table} {chain}" for chain in chains]
        return _text(lines)

    def cleanup(self) -> str:
        """Remove the table, present or not."""
        return _text([f"add table inet {self.table}", f"delete table inet {self.table}"])

    def probe(self) -> str:
        """Uses nftables' queue statement and leaves nothing behind; the kernel refuses it where it has none."""
        probe = f"{self.table}_probe"
        return _text(
            [
                f"add table inet {probe}",
                f"add chain inet {probe} c",
                f"add rule inet {probe} c queue num 0",
                f"delete table inet {probe}",
            ]
        )

    def queue_statement(self, generation: GenerationPlan) -> str:
        """The queue rule as nftables writes it."""
        numbers = str(generation.queue_first)
        if generation.queue_count > 1:
            numbers += f"-{generation.queue_last}"
        return f"queue num {numbers}{' bypass' if generation.fail_open else ''}"

    # -- policy routing --------------------------------------------------------------------------------------------

    def rules(self, family: int) -> tuple[str, ...]:
        """Arguments of ``ip``, in this order: packets marked TLS are looked up in our table.

        IPv4 asks for the way back to a sender too, with the packet's mark where ``src_valid_mark`` is set (VPN software
        does that), and would find every client to be this machine. Such a question has ``iif lo`` and skips our rule.
        """
        layout, first = self.layout, self.route_priority
        tls = f"fwmark {self._hex(layout.compose(0, Disposition.TLS))}/{self._hex(layout.disposition_mask)}"
        add = f"-{family} rule add priority"
        lookup = f"{add} {first + 1} protocol {ROUTE_PROTOCOL} {tls} lookup {self.route_table}"
        if family == 6:
            return (lookup,)
        return (
            f"{add} {first + 2} protocol {ROUTE_PROTOCOL} nop",
            f"{add} {first} protocol {ROUTE_PROTOCOL} iif lo {tls} goto {first + 2}",
            lookup,
        )

    def route(self, family: int) -> str:
        """Arguments of ``ip route replace``: in our table every address is this machine's."""
        return f"-{family} route replace local default dev lo table {self.route_table} protocol {ROUTE_PROTOCOL}"

    # -- rules of a generation -------------------------------------------------------------------------------------

    def _fragments(self, generation: GenerationPlan) -> list[str]:
        layout = self.layout
        local = self._stamp(layout.compose(0, Disposition.FRAGMENT))
        once = self._stamp(layout.compose(generation.generation, Disposition.ONCE))
        udp = {
            Fragments.DROP: "counter name fragments_udp drop",
            Fragments.FORWARD: "accept",
            Fragments.PASS: f"{once} accept",
            Fragments.WATCH: f"counter name fragments_udp {once} accept",
        }[Fragments(generation.fragments)]
        rules = []
        for fragment, protocol in (
            ("ip frag-off & 0x3fff != 0", "ip protocol udp"),
            ("exthdr frag exists", "frag nexthdr udp"),
        ):
            # Addressed to the router: its own, or a masqueraded reply, which is seen only once the datagram is whole.
            rules.append(f"{fragment} fib daddr type != unicast {local} accept")
            rules.append(f"{fragment} {protocol} {udp}")
            rules.append(f"{fragment} counter name fragments_other drop")
        return rules

    def _classify(self, generation: GenerationPlan) -> list[str]:
        layout, number = self.layout, generation.generation
        f, d = self._hex(layout.mask), self._hex(layout.disposition_mask)
        queue = f"goto queue_{number}"
        inspect, passed, tls = (
            layout.compose(number, disposition)
            for disposition in (Disposition.INSPECT, Disposition.PASS, Disposition.TLS)
        )
        either = {tcp: self._either(number, tcp, udp) for tcp, udp in _OF_UDP.items()}
        ended = self._hex(layout.compose(0, Disposition.ENDED))
        from_server = layout.compose(0, Disposition.REPLY)
        deliver = self._stamp(layout.compose(0, Disposition.TLS))
        any_tls = self._hex(layout.compose(0, Disposition.TLS))
        any_own = self._hex(layout.compose(0, Disposition.OWN))
        rules = [
            # Only what the fragments chain has stamped bears a mark of ours here; see _whole.
            f"meta mark & {f} != 0 jump whole_{number}",
            f"ct mark & {f} == {either[Disposition.INSPECT]} {self._stamp(inspect)} {queue}",
            *self._half_inspected(number, queue),
            f"ct mark & {f} == {either[Disposition.PASS]} {self._stamp(passed)} accept",
            f"ct mark & {f} == {either[Disposition.DROP]} counter name dropped drop",
            # By whatever generation: what has ended does not open again because another policy came.
            f"ct mark & {d} == {ended} ct direction reply counter name ended drop",
            # Also of older generations, and ICMP errors for them: the socket is the proof that the connection goes on.
            f"ct mark & {d} == {{ {any_tls}, {any_own} }} socket transparent 1 socket wildcard 0 {deliver} accept",
            'iif "lo" accept',
        ]
        if generation.tproxy_port is not None:
            rules.append(f"ct mark & {f} == {self._hex(tls)} meta l4proto tcp {self._stamp(tls)} accept")
        rules += [
            "fib daddr type { local, broadcast, anycast, multicast } accept",
            f"ct mark & {d} == {any_own} counter name stale drop",
        ]
        rules += [self._stamp(0), f"ct mark & {f} == 0 {queue}"]
        # A flow of an older generation: the worker shall see which. One rule a bit, see the module's docstring.
        bits = (1 << bit for bit in range(32) if layout.mask >> bit & 1)
        rules += [
            f"ct mark & {self._hex(bit)} == {self._hex(bit)} meta mark set meta mark | {self._hex(bit)}" for bit in bits
        ]
        copied = layout.foreign_mask | layout.generation_mask
        rules.append(
            "meta l4proto udp ct direction reply"
            f" meta mark set meta mark & {self._hex(copied)} | {self._hex(from_server)}"
        )
        rules.append(queue)
        return rules

    def _either(self, number: int, one: Disposition, other: Disposition) -> str:
        """A set of two marks of a generation, as nft writes it."""
        marks = (self._hex(self.layout.compose(number, disposition)) for disposition in (one, other))
        return f"{{ {', '.join(marks)} }}"

    def _whole(self, generation: GenerationPlan) -> list[str]:
        """What was reassembled: passed by the fragment default, or addressed to the router when it came."""
        once = self.layout.compose(generation.generation, Disposition.ONCE)
        udp = {
            Fragments.DROP: ["counter name fragments_udp drop"],
            Fragments.FORWARD: [],
            Fragments.PASS: [f"{self._stamp(once)} accept"],
            Fragments.WATCH: [f"counter name fragments_udp {self._stamp(once)} accept"],
        }[Fragments(generation.fragments)]
        return [
            f"meta mark & {self._hex(self.layout.mask)} == {self._hex(once)} accept",
            "fib daddr type != unicast accept",
            "meta l4proto != udp counter name fragments_other drop",
            *udp,
        ]

    def _half_inspected(self, number: int, queue: str) -> list[str]:
        """Flows of which only one direction can still match a rule. The other one is forwarded here, except for the
        segments that open or end a connection, by which the flow table knows where it stands. So are the bare
        acknowledgements of the inspected direction, see :meth:`_bare`."""
        layout, f = self.layout, self._hex(self.layout.mask)
        once = self._stamp(layout.compose(number, Disposition.ONCE))
        rules = []
        for disposition, passing in (
            (Disposition.INSPECT_TO_CLIENT, "original"),
            (Disposition.INSPECT_TO_SERVER, "reply"),
        ):
            mark = layout.compose(number, disposition)
            ours = f"ct mark & {f} == {self._hex(mark)}"
            rules.append(f"{ours} ct direction {passing} tcp flags & (fin | syn | rst) == 0 {once} accept")
            rules.append(f"{ours} jump bare_{number}")
            rules.append(f"{ours} {self._stamp(mark)} {queue}")
        return rules

    def _bare(self, number: int) -> list[str]:
        """Segments that carry an acknowledgement and nothing else go to :meth:`_acknowledgement`.

        Nothing in nftables adds two header lengths, and nft 1.0.6 aborts when it lists a set of lengths and offsets: so
        a rule for each length of the TCP header, the usual ones first. A datagram as short as that has no IP options.
        """
        rules = ["tcp flags & (fin | syn | rst | ack | urg) != ack return", "ip length > 80 return"]
        rules.append("ip6 length > 60 return")
        for words in (8, 5, 11, 13, 15, 10, 12, 6, 7, 9, 14):  # timestamps, nothing, and both with SACK blocks
            rules.append(f"ip length {20 + 4 * words} tcp doff {words} goto acknowledgement_{number}")
            rules.append(f"ip6 length {4 * words} ip6 nexthdr tcp tcp doff {words} goto acknowledgement_{number}")
        return rules

    def _acknowledgement(self, number: int) -> list[str]:
        """One a second of each connection is queued, by which the flow table knows that it lives; with the set full,
        all are."""
        once = self._stamp(self.layout.compose(number, Disposition.ONCE))
        return [f"ct id @acknowledged {once} accept", "add @acknowledged { ct id timeout 1s }"]

    def _verdict(self, generation: GenerationPlan) -> list[str]:
        layout, number = self.layout, generation.generation
        f = self._hex(layout.mask)

        def saved(disposition: Disposition, of: str = "", stored: Disposition | None = None) -> str:
            said, mark = (layout.compose(number, which) for which in (disposition, stored or disposition))
            return f"meta mark & {f} == {self._hex(said)}{of} ct mark set {self._field('ct', mark)}"

        tls = f"meta mark & {f} == {self._hex(layout.compose(number, Disposition.TLS))}"
        fate = {
            Disposition.INSPECT: "accept",
            Disposition.PASS: "accept",
            Disposition.DROP: "counter name dropped drop",
        }
        rules = [f"{saved(tcp, ' meta l4proto udp', udp)} {fate[tcp]}" for tcp, udp in _OF_UDP.items()]
        rules += [
            f"{saved(Disposition.INSPECT)} accept",
            f"{saved(Disposition.INSPECT_TO_CLIENT)} accept",
            f"{saved(Disposition.INSPECT_TO_SERVER)} accept",
            f"{saved(Disposition.PASS)} accept",
            f"{saved(Disposition.DROP)} counter name dropped drop",
            f"{saved(Disposition.ENDED)} counter name ended drop",
            # The mark of an untracked packet has nowhere to go, so the rules above do not match it; what it says holds.
            f"meta mark & {f} == {self._hex(layout.compose(number, Disposition.DROP))} counter name dropped drop",
        ]
        if generation.tproxy_port is not None:
            rules.append(f"{saved(Disposition.TLS)} meta l4proto tcp tproxy to :{generation.tproxy_port} accept")
        rules.append(f"{tls} counter name tls_refused drop")
        return rules

    def _own(self, number: int) -> list[str]:
        own = self.layout.compose(number, Disposition.OWN)
        return [
            # Only a connection nfw opens: a reset it sends in the name of somebody belongs to that flow.
            f"ct state new ct direction original ct mark set {self._field('ct', own)}",
            self._stamp(0),
        ]

    def _elements(self, number: int) -> list[str]:
        layout = self.layout
        judged = ", ".join(self._hex(layout.compose(number, disposition)) for disposition in _FORWARDED)
        return [
            f"judged {{ {judged} }}",
            f"verdicts {{ {self._hex(layout.compose(number, Disposition.NONE))} : goto verdict_{number} }}",
            f"own_marks {{ {self._hex(layout.compose(number, Disposition.OWN))} : goto own_{number} }}",
        ]

    def _field(self, where: str, mark: int) -> str:
        """``where``'s mark with our field replaced."""
        kept = f"{where} mark & {self._hex(self.layout.foreign_mask)}"
        return f"{kept} | {self._hex(mark)}" if mark else kept

    def _stamp(self, mark: int) -> str:
        return f"meta mark set {self._field('meta', mark)}"

    @staticmethod
    def _hex(mark: int) -> str:
        return f"{mark:#010x}"


class Runner(Protocol):
    """What :class:`HostNet` needs of the machine. Each raises HostNetError with the tool's own words."""

    def nft(self, text: str) -> None:
        """Apply ``text`` in one transaction."""

    def nft_table(self, table: str) -> list[dict[str, Any]]:
        """Objects of ``nft --json list table inet TABLE``; empty when there is no such table."""

    def ip(self, arguments: str) -> str:
        """Run ``ip`` and return its output."""

    def queue_target(self, table: str, chain: str, first: int, count: int, bypass: bool) -> None:
        """Append a rule with the compat NFQUEUE target to a chain."""

    def destroy_sockets(self, mark: int, mask: int) -> None:
        """Destroy every TCP socket whose mark has these bits."""

    def sysctl(self, name: str) -> str | None:
        """A value below /proc/sys, None when there is none."""

    def program(self, name: str) -> bool:
        """Whether a program is installed."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What the kernel runs now. ``generation`` 0: the table is there and closed. ``others`` are not yet retired."""

    generation: int
    others: tuple[int, ...] = ()
    comment: str = ""


class HostNet:
    """Makes the kernel match a plan. Keeps no state: what is installed is read from the kernel."""

    def __init__(
        self,
        layout: MarkLayout | None = None,
        runner: Runner | None = None,
        conntrack: Conntrack | None = None,
        route_table: int = ROUTE_TABLE,
        route_priority: int = ROUTE_PRIORITY,
    ) -> None:
        self.layout = layout or MarkLayout()
        self.plan = Plan(self.layout, route_table=route_table, route_priority=route_priority)
        self._run = runner or SystemRunner()
        self._conntrack = conntrack or Conntrack()
        self._queue_rule: QueueRule | None = None

    def install_closed(self) -> None:
        """The table without a generation: nothing is forwarded. Packets that wait in any queue are dropped."""
        self._run.nft(self.plan.closed())

    def restore(self, generation: GenerationPlan | None) -> None:
        """Somebody has taken the table away, or changed it: put back what was there, closed without a generation. Flows
        that are open keep the marks they have."""
        self.install_closed()
        if generation is not None:
            self._prepare(generation)
            self._flip(generation)

    def fingerprint(self) -> str:
        """Changes whenever somebody changes the table, but not with what the kernel counts; "" without a table."""
        objects = self._run.nft_table(self.plan.table)
        if not objects:
            return ""
        lasting = [_lasting(item) for item in objects if "metainfo" not in item]
        return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()

    def prepare(self, generation: GenerationPlan) -> None:
        """All of a switch that nobody feels: policy routes and the generation's chains. On HostNetError there are none
        of these chains. What has been replaced before the generation that is installed now is retired."""
        installed = self.current()
        if installed is None:
            raise HostNetError(f"table inet {self.plan.table} is gone; something else has removed it")
        number = generation.generation
        if number == installed.generation:
            raise HostNetError(f"generation {number} is installed already")
        if installed.others:
            self._run.nft(self.plan.retire(installed.others))
        # Numbers come round: a flow of the last bearer of this one must not be taken for judged.
        self._conntrack.flush_generation(self.layout, number)
        self._prepare(generation)

    def switch(self, generation: GenerationPlan, *, prepared: bool = False) -> None:
        """Point the kernel at a generation whose workers listen already. On HostNetError nothing has changed.

        ``prepared``: :meth:`prepare` was called with the same plan. What it did may be gone, with a table that somebody
        else took away and nfw put back; then it is done again.
        The generation before stays able to finish what it has queued until :meth:`retire` or the next :meth:`prepare`.
        """
        if prepared:
            with contextlib.suppress(HostNetError):
                self._run.nft(self.plan.flip(generation))
                return
        self.prepare(generation)
        self._flip(generation)

    def _prepare(self, generation: GenerationPlan) -> None:
        rule = self.queue_rule()
        if generation.tproxy_port is not None:
            self._install_routes()
        self._run.nft(self.plan.prepare(generation, rule))
        if rule is not QueueRule.TARGET:
            return
        try:
            self._run.queue_target(
                self.plan.table,
                f"queue_{generation.generation}",
                generation.queue_first,
                generation.queue_count,
                generation.fail_open,
            )
        except HostNetError:
            self._run.nft(self.plan.retire([generation.generation]))
            raise

    def _flip(self, generation: GenerationPlan) -> None:
        try:
            self._run.nft(self.plan.flip(generation))
        except HostNetError:
            self._run.nft(self.plan.retire([generation.generation]))
            raise

    def retire(self, coming: int = 0) -> None:
        """Take away every generation but the current one and, prepared already, the coming one; what they had marked is
        unjudged from here on."""
        installed = self.current()
        others = [number for number in installed.others if number != coming] if installed is not None else []
        if others:
            self._run.nft(self.plan.retire(others))

    def destroy_sockets(self, generation: int | None = None) -> None:
        """End every socket that sessions of a generation (None: of any) have here, TIME_WAIT included. For when its
        processes have ended.

        Such a socket has the addresses of a forwarded connection. Without the rules that divert packets to it, the
        kernel's early demultiplexing still finds it and forwarding then drops the packet.
        """
        if generation is None:
            self._run.destroy_sockets(self.layout.compose(0, Disposition.OWN), self.layout.disposition_mask)
        else:
            self._run.destroy_sockets(self.layout.compose(generation, Disposition.OWN), self.layout.mask)

    def current(self) -> Installed | None:
        """What is installed, None without our table."""
        objects = self._run.nft_table(self.plan.table)
        if not objects:
            return None
        numbers = {
            int(name.removeprefix("generation_"))
            for name in (item["chain"]["name"] for item in objects if "chain" in item)
            if name.startswith("generation_")
        }
        for item in objects:
            rule = item.get("rule")
            if rule is None or rule["chain"] != "classify":
                continue
            for expression in rule["expr"]:
                target = str(expression.get("goto", {}).get("target", ""))
                if target.startswith("generation_"):
                    number = int(target.removeprefix("generation_"))
                    return Installed(number, tuple(sorted(numbers - {number})), rule.get("comment", ""))
        return Installed(0, tuple(sorted(numbers)))

    def counters(self) -> dict[str, int]:
        """Packets counted by the kernel, by the names of ``COUNTERS``."""
        objects = self._run.nft_table(self.plan.table)
        return {item["counter"]["name"]: int(item["counter"]["packets"]) for item in objects if "counter" in item}

    def cleanup(self) -> None:
        """Remove table, rules, routes, conntrack marks and sockets; none need be there. No saved state is used.

        Conntrack entries that bear a mark of ours are deleted: a flow judged by nfw is unknown to whatever comes next.
        """
        self._run.nft(self.plan.cleanup())
        for family in (4, 6):
            for rule in self._rules(family):
                self._run.ip(f"-{family} rule del priority {rule['priority']} protocol {ROUTE_PROTOCOL}")
            for route in self._routes(family):
                self._run.ip(
                    f"-{family} route del local {route['dst']} dev lo table {route['table']} protocol {ROUTE_PROTOCOL}"
                )
        self._conntrack.flush_marked_any(self.layout.mask)
        self.destroy_sockets()

    def queue_rule(self) -> QueueRule:
        """How packets are queued on this kernel, found out by trying."""
        if self._queue_rule is None:
            try:
                self._run.nft(self.plan.probe())
                self._queue_rule = QueueRule.STATEMENT
            except HostNetError:
                self._queue_rule = QueueRule.TARGET
        return self._queue_rule

    def preflight(self) -> list[str]:
        """What would keep nfw from working here, each with its mend. Empty: nothing found."""
        problems = [
            f"the program {name} is missing: apt-get install {package}"
            for name, package in (("nft", "nftables"), ("ip", "iproute2"))
            if not self._run.program(name)
        ]
        if problems:
            return problems
        wanted = {"net.ipv4.ip_forward": "IPv4", "net.ipv6.conf.all.forwarding": "IPv6"}
        problems += [
            f"{family} is not forwarded: sysctl -w {name}=1"
            for name, family in wanted.items()
            if self._run.sysctl(name) == "0"
        ]
        for rule in self._rules(None):
            if (
                int(str(rule.get("fwmark", "0")), 16)
                & int(str(rule.get("fwmask", "0xffffffff")), 16)
                & self.layout.mask
            ):
                problems.append(
                    f"an `ip rule` of other software (priority {rule['priority']}) uses bits of mark mask"
                    f" {self.layout.mask:#x}: choose another --mark-mask"
                )
        return problems

    def _install_routes(self) -> None:
        for family in (4, 6):
            if family == 6 and self._run.sysctl("net.ipv6.conf.lo.disable_ipv6") in (None, "1"):
                continue
            self._run.ip(self.plan.route(family))
            installed = {str(rule["priority"]) for rule in self._rules(family)}
            for rule in self.plan.rules(family):
                if rule.split()[4] not in installed:
                    self._run.ip(rule)

    def _rules(self, family: int | None) -> list[dict[str, Any]]:
        """Our rules of one family; with None everybody else's of both."""
        if family is not None:
            return [rule for rule in self._list(f"-{family} -json -details -N rule show") if _ours(rule)]
        both = self._list("-4 -json -details -N rule show") + self._list("-6 -json -details -N rule show")
        return [rule for rule in both if not _ours(rule) and "fwmark" in rule]

    def _routes(self, family: int) -> list[dict[str, Any]]:
        return self._list(f"-{family} -json -details -N route show table all protocol {ROUTE_PROTOCOL}")

    def _list(self, arguments: str) -> list[dict[str, Any]]:
        try:
            listed: list[dict[str, Any]] = json.loads(self._run.ip(arguments) or "[]")
        except ValueError as error:
            raise HostNetError(f"ip {arguments}: output is not JSON ({error})") from error
        return listed


class SystemRunner:
    """The machine itself, in the network namespace of the calling thread."""

    def nft(self, text: str) -> None:
        """See :class:`Runner`."""
        _command(["nft", "-f", "-"], text)

    def nft_table(self, table: str) -> list[dict[str, Any]]:
        """See :class:`Runner`."""
        tables = json.loads(_command(["nft", "--json", "list", "tables", "inet"]))["nftables"]
        if not any(item.get("table", {}).get("name") == table for item in tables):
            return []
        listed: list[dict[str, Any]] = json.loads(_command(["nft", "--json", "list", "table", "inet", table]))[
            "nftables"
        ]
        return listed

    def ip(self, arguments: str) -> str:
        """See :class:`Runner`."""
        return _command(["ip", *arguments.split()])

    def queue_target(self, table: str, chain: str, first: int, count: int, bypass: bool) -> None:
        """See :class:`Runner`."""
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.nftables.main import NFTables  # not needed where nft has the statement

        info = struct.pack("=HHH2x", first, count, int(bypass))  # struct xt_NFQ_info_v3
        attributes = [("NFTA_TARGET_NAME", "NFQUEUE"), ("NFTA_TARGET_REV", 3), ("NFTA_TARGET_INFO", info)]
        target = {"attrs": [("NFTA_EXPR_NAME", "target"), ("NFTA_EXPR_DATA", {"attrs": attributes})]}
        netlink = NFTables(nfgen_family=1)  # NFPROTO_INET
        try:
            netlink.rule("add", table=table, chain=chain, expressions=[[target]])
        except NetlinkError as error:
            raise HostNetError(
                f"this kernel can queue neither by nftables' statement nor by the NFQUEUE target ({error})"
            ) from error
        finally:
            netlink.close()

    def destroy_sockets(self, mark: int, mask: int) -> None:
        """See :class:`Runner`. A kernel without CONFIG_INET_DIAG_DESTROY lists them and leaves them."""
        _command(["ss", "-K", "-Htan", f"fwmark = {mark:#x}/{mask:#x}"])

    def sysctl(self, name: str) -> str | None:
        """See :class:`Runner`."""
        try:
            return Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:
            return None

    def program(self, name: str) -> bool:
        """See :class:`Runner`."""
        return shutil.which(name) is not None


def _command(arguments: Sequence[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(arguments, input=text, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNetError(f"{arguments[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        if "Operation not permitted" in said:
            said = f"permission denied, CAP_NET_ADMIN is needed ({said.splitlines()[0]})"
        raise HostNetError(f"{' '.join(arguments)}: {said}")
    return done.stdout


def _lasting(item: Any, in_set: bool = False) -> Any:
    """What nft lists, without what changes by itself: counts, handles, the elements packets add to a set and the order
    of the others."""
    if isinstance(item, list):
        return sorted((_lasting(one) for one in item), key=repr) if in_set else [_lasting(one) for one in item]
    if not isinstance(item, dict):
        return item
    passing = {"packets", "bytes", "handle"} | ({"elem"} if "timeout" in item else set())
    return {key: _lasting(value, key == "elem") for key, value in item.items() if key not in passing}


def _ours(rule: dict[str, Any]) -> bool:
    return str(rule.get("protocol", rule.get("proto", ""))) == str(ROUTE_PROTOCOL)


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)

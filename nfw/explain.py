"""Why a policy does to a flow what it does, step by step: what ``nfw explain`` and ``nfw policy test`` are made of.

The flow, described (:mod:`nfw.describe`) or captured, goes through the replay of the packet path
(:mod:`nfw.policyreplay`) with inspectors that take notes (:mod:`engines.stateful.explain`), and a second time with
rules that decide nothing, for what would have matched. A described flow that the TLS engine would terminate goes on in
the clear (:mod:`nfw.explaintls`), as the TLS worker would feed its inspector; of a captured one only ciphertext is
there.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.decode.link import IPV4, IPV6, decode_link
from engines.flow import Flow
from engines.packet import TCP, Packet, decode, quoted
from engines.stateful.explain import Notes, NotingInspector, RuleReport, reports, undecided
from engines.stateful.inspector import Inspector, Outcome
from engines.stateless.explain import misfit
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.tls.bypass import Proof
from engines.tls.explain import misfit as scope_misfit
from engines.verdict import Direction, RuleRef, Verdict
from nfw.capture import Captured
from nfw.dialogue import Dialogue
from nfw.explaintls import Terminated, inbound_of, terminate
from nfw.pipeline import Answer, Context, flow_facts
from nfw.policy.model import Mode, Upstream, WithoutSni
from nfw.policy.places import Place, places
from nfw.policy.values import protocol_name
from nfw.policyreplay import PolicyReplay, Tracing
from nfw.watch import flow_key

if TYPE_CHECKING:
    from engines.stateful.prefilter import DatabaseStore
    from nfw.describe import FlowDescription
    from nfw.policy.compile import Compiled
    from nfw.policy.model import InboundTls, Tls, Trust

MAX_FLOWS = 1000  # of a capture, explained; those beyond are counted
MAX_STEPS = 1000  # packets of a flow that are kept one by one


class Step(NamedTuple):
    """What became of one packet. ``stage``, ``verdict`` and ``reason`` as :class:`nfw.policyreplay.Counted` has them;
    ``rule``: by which it was decided; ``at``: with which packet, a later one where this was held."""

    packet: int
    direction: Direction
    what: str
    stage: str
    verdict: str
    reason: str
    rule: RuleRef | None
    at: int


class StatelessStep(NamedTuple):
    """What the stateless engine says of the first packet of a direction. ``considered``: rules before the one that
    matched, with why they do not. ``rule`` None: the default."""

    packet: int
    direction: Direction
    action: StatelessAction
    rule: StatelessRule | None
    considered: tuple[tuple[StatelessRule, str], ...]


class ScopeStep(NamedTuple):
    """One TLS scope, numbered from 1 as written, of ``tls`` or of the servers of one's own, ``inbound``; ``misfit``
    empty: the flow is in it."""

    number: int
    line: int
    misfit: str
    inbound: bool = False

    def __str__(self) -> str:
        return f"{'inbound ' if self.inbound else ''}scope {self.number}"


@dataclass(frozen=True, slots=True)
class TlsStep:
    """``decision``: terminate, bypass or none; ``why`` in words. ``checks``: what the server would have to pass."""

    decision: str
    why: str
    scopes: tuple[ScopeStep, ...] = ()
    checks: tuple[str, ...] = ()
    ended: Terminated | None = None

    @property
    def certificate(self) -> Path | None:
        """File of the one that the client of a server of one's own is shown; None where it is another, or unknown."""
        given = self.ended.certificate if self.ended is not None else None
        return given.certificate if given is not None else None


@dataclass(frozen=True, slots=True)
class StatefulStep:
    """``asked`` False: the flow did not come that far, ``why`` says why."""

    asked: bool
    why: str = ""
    rules: tuple[RuleReport, ...] = ()
    unusable: tuple[tuple[RuleRef, str], ...] = ()  # rules that can never match here
    defaults: tuple[tuple[str, int], ...] = ()  # default actions with the packet each first applied to, 0: to none
    alerts: tuple[RuleRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Conclusion:
    """``verdict``: pass, alert (it passes, and is logged), drop, reject, or intercept: rules would judge plaintext that
    is not there. ``place``: where the rule, or the setting that decided, is written. ``enforced``: in mode monitor, the
    verdict if the policy did what it says."""

    verdict: str
    stage: str
    reason: str
    rule: RuleRef | None
    place: Place | None
    packet: int = 0
    detail: str = ""
    enforced: str = ""
    besides: str = ""  # packets that were dropped for themselves, while the flow went on


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of it, of one flow."""

    flow: str
    steps: tuple[Step, ...]
    stateless: tuple[StatelessStep, ...]
    tls: TlsStep
    stateful: StatefulStep
    conclusion: Conclusion


@dataclass(slots=True)
class _Seen:
    """A flow as it went by."""

    first: Packet
    steps: list[Step] = field(default_factory=list)
    heads: dict[Direction, tuple[int, Packet]] = field(default_factory=dict)  # the first packet each way
    inspector: NotingInspector | None = None
    decided: tuple[str, str, RuleRef | None] | None = None  # stage, reason, rule: why the kernel does what it does
    more: int = 0  # packets that are not kept one by one


class _Noting(Tracing):
    """The packet path with inspectors that take notes; ``owner`` is told of them."""

    owner: _Played
    rule: RuleRef | None = None

    def begin(self) -> None:
        super().begin()
        self.rule = None

    def _inspector(self, flow: Flow, now: float) -> Inspector:
        made = NotingInspector(self.ruleset, flow_facts(flow), now, reasons=self.owner.reasons)
        self.owner.inspector(made)
        return made

    def _inspect(self, packet_id: int, packet: Packet, flow: Flow, context: Context, *rest: Any) -> Answer:
        if isinstance(context.inspector, NotingInspector):
            context.inspector.notes.packet = self.owner.number
        return super()._inspect(packet_id, packet, flow, context, *rest)

    def _outcome(
        self, outcome: Outcome, flow: Flow, context: Context, packet: Packet | None, now: float
    ) -> Answer | None:
        if outcome.decision.reason != "no_match":
            self.rule = outcome.decision.rule
        return super()._outcome(outcome, flow, context, packet, now)

    def _drop(self, reason: str, packet: Packet, now: float, rule: Any = None, *rest: Any, **more: Any) -> Answer:
        self.rule = rule or self.rule
        return super()._drop(reason, packet, now, rule, *rest, **more)


class _Turn(NamedTuple):
    """The packet whose turn it is."""

    number: int
    seen: _Seen | None
    direction: Direction


class _Played(PolicyReplay):
    """The packet path over packets, remembering what became of each. ``reasons``: with inspectors that also say why
    rules do not match. ``one``: all packets are of one flow."""

    pipeline: _Noting

    def __init__(self, compiled: Compiled, *, inspect_tls: bool, reasons: bool, one: bool) -> None:
        super().__init__(compiled, lambda _: None, inspect_tls=inspect_tls, pipeline=_Noting)
        self.pipeline.owner = self
        self.reasons = reasons
        self.flows: OrderedDict[Hashable, _Seen] = OrderedDict()
        self.left_out: set[Hashable] = set()
        self.names: Mapping[int, tuple[Direction, str]] = {}  # what packets are, where somebody knows
        self._one = one
        self._turn = _Turn(0, None, Direction.TO_SERVER)
        self._held: dict[int, _Turn] = {}
        self._at = 0  # the packet whose turn it is while one that was held is judged

    @property
    def number(self) -> int:
        return self._turn.number

    def inspector(self, made: NotingInspector) -> None:
        seen = self._turn.seen
        if seen is not None and seen.inspector is None:
            seen.inspector = made

    def packet(self, number: int, data: bytes, now: float) -> None:
        self._tick(now)  # what that brings about is not this packet's
        packet = decode(data)
        self._turn = self._turn_of(number, packet)
        super().packet(number, data, now)

    def _turn_of(self, number: int, packet: Packet) -> _Turn:
        about = (quoted(packet) if packet.is_icmp_error else None) or packet
        key = None if self._one else flow_key(about, ())
        seen = self.flows.get(key)
        if seen is None:
            if len(self.flows) >= MAX_FLOWS:
                if len(self.left_out) < 1_000_000:
                    self.left_out.add(key)
                return _Turn(number, None, Direction.TO_SERVER)
            seen = self.flows[key] = _Seen(packet)
        first = seen.first
        back = (packet.src, packet.sport) != (first.src, first.sport) and packet.src in (first.dst, b"")
        direction = Direction.TO_CLIENT if back else Direction.TO_SERVER
        seen.heads.setdefault(direction, (number, packet))
        return _Turn(number, seen, direction)

    def _whole(self, packet: Packet, now: float) -> None:
        following = self._id + 1
        self._held[following] = self._turn
        super()._whole(packet, now)
        if following not in self._waiting:
            self._held.pop(following, None)

    def verdict(self, packet_id: int, accept: bool) -> None:
        turn, self._turn = self._turn, self._held.pop(packet_id)
        self._at = turn.number
        super().verdict(packet_id, accept)
        self._turn, self._at = turn, 0

    def _add(self, stage: str, verdict: str, reason: str) -> None:
        super()._add(stage, verdict, reason)
        number, seen, direction = self._turn
        if seen is None:
            return
        rule = self.pipeline.rule
        if stage == "kernel" and seen.decided is not None:
            rule = seen.decided[2]
        elif verdict in ("drop", "reject") or reason == "pass_rule":
            seen.decided = (stage, reason, rule)
        if len(seen.steps) >= MAX_STEPS and verdict not in ("drop", "reject"):
            seen.more += 1
            return
        what = self.names.get(number, (direction, ""))[1]
        seen.steps.append(Step(number, direction, what, stage, verdict, reason, rule, max(number, self._at)))


class Explainer:
    """Explains flows by one policy, one in mode monitor as if it were enforced. ``store``: where pattern databases may
    be found."""

    def __init__(self, compiled: Compiled, store: DatabaseStore | None = None) -> None:
        self._watches = compiled.policy.mode is Mode.MONITOR
        if self._watches:
            compiled = replace(compiled, policy=replace(compiled.policy, mode=Mode.ENFORCE))
        self._compiled = compiled
        self._places = places(compiled.policy.file)
        self._free: Compiled = replace(compiled, ruleset=undecided(compiled.ruleset, store))

    # -- a described flow ------------------------------------------------------------------------------------------

    def described(self, flow: FlowDescription) -> Explanation:
        """The path of a flow that nobody has sent."""
        dialogue = Dialogue(flow)
        packets = dialogue.packets()
        names = {each.captured.number: (each.direction, each.what) for each in packets}
        captured = [each.captured for each in packets]
        real = self._play(captured, self._compiled, inspect_tls=False, reasons=False, one=True, names=names)
        seen = real.flows[None]
        ended = None
        if any(step.verdict == "intercept" for step in seen.steps):
            ended = terminate(dialogue, self._compiled, reasons=False)
            free = terminate(dialogue, self._free, reasons=True).inspector
        else:
            played = self._play(captured, self._free, inspect_tls=False, reasons=True, one=True, names=names)
            free = played.flows[None].inspector
        found = self._explain(str(flow), seen, free, ended)
        return found if ended is not None or flow.protocol != TCP else _without_rest(found, seen)

    def _play(
        self,
        packets: Iterable[Captured],
        compiled: Compiled,
        *,
        inspect_tls: bool,
        reasons: bool,
        one: bool = False,
        names: Mapping[int, tuple[Direction, str]] | None = None,
    ) -> _Played:
        compiled.ruleset.forget()  # what one run has counted and marked is not the next one's
        played = _Played(compiled, inspect_tls=inspect_tls, reasons=reasons, one=one)
        played.names = names or {}
        now = 0.0
        try:
            for captured in packets:
                now = max(now, captured.time)
                frame = decode_link(captured.link_type, captured.data)
                if frame.ethertype in (IPV4, IPV6):
                    played.packet(captured.number, frame.payload, now)
        finally:
            played.finish()
        return played

    # -- a capture -------------------------------------------------------------------------------------------------

    def captured(
        self, packets: Callable[[], Iterable[Captured]], *, inspect_tls: bool = False
    ) -> tuple[list[Explanation], int]:
        """Each flow of a capture, in order of its first packet, and how many flows beyond MAX_FLOWS are left out.
        ``packets`` is asked twice; what it raises comes through."""
        real = self._play(packets(), self._compiled, inspect_tls=inspect_tls, reasons=False)
        free = self._play(packets(), self._free, inspect_tls=inspect_tls, reasons=True)
        explained = []
        for key, seen in real.flows.items():
            other = free.flows.get(key)
            explained.append(self._explain(_named(seen.first), seen, other.inspector if other else None, None))
        return explained, len(real.left_out)

    # -- putting together ------------------------------------------------------------------------------------------

    def _explain(self, name: str, seen: _Seen, free: NotingInspector | None, ended: Terminated | None) -> Explanation:
        real = ended.inspector if ended is not None else seen.inspector
        stateful = self._stateful(seen, real, free, ended)
        conclusion = replace(self._conclude(seen, real, stateful, ended), besides=_besides(seen))
        if self._watches and conclusion.verdict in ("drop", "reject"):
            conclusion = replace(conclusion, verdict="alert", enforced=conclusion.verdict)
        return Explanation(
            flow=name,
            steps=tuple(seen.steps),
            stateless=tuple(self._stateless(seen)),
            tls=self._tls(seen, ended),
            stateful=stateful,
            conclusion=conclusion,
        )

    def _stateless(self, seen: _Seen) -> Iterator[StatelessStep]:
        engine = self._compiled.filter
        for direction, (number, packet) in sorted(seen.heads.items()):
            if packet.problem is not None or packet.fragment:
                continue
            considered: list[tuple[StatelessRule, str]] = []
            matched = None
            for rule in engine.rules:
                why = misfit(rule, packet)
                if not why:
                    matched = rule
                    break
                considered.append((rule, why))
            action = matched.action if matched is not None else self._compiled.policy.stateless.default
            yield StatelessStep(number, direction, action, matched, tuple(considered))

    def _tls(self, seen: _Seen, ended: Terminated | None) -> TlsStep:
        policy = self._compiled.policy.tls
        if policy is None:
            return TlsStep("none", "the policy inspects no TLS")
        if not any(step.stage in ("tls", "flow", "stateful", "kernel") for step in seen.steps):
            return TlsStep("none", "the flow did not come so far")
        first = seen.first
        scopes = tuple(self._scopes(first))
        # Those of servers of one's own go first.
        inside = next((scope for scope in sorted(scopes, key=_outbound) if not scope.misfit), None)
        if inside is None:
            return TlsStep("none", "in no scope", scopes)
        if not any(step.verdict == "intercept" for step in seen.steps):
            return TlsStep("none", f"in {inside}, but looked at as it is on the wire", scopes)
        if ended is not None and ended.bypassed:
            assert self._compiled.policy.tls is not None
            proofs = " or ".join(_PROOFS[proof] for proof in self._compiled.policy.tls.bypass_proof)
            why = f"in {inside}, and the name is exempt if {proofs}"
            return TlsStep("bypass", why, scopes, ended=ended)
        whole = self._compiled.policy
        assert whole.tls is not None
        inbound = inbound_of(whole, first.src, first.dst, first.sport, first.dport)
        if inbound is None:
            checks = _checks(whole, trust=whole.tls.trust_of(inside.number - 1))
            return TlsStep("terminate", f"in {inside}", scopes, checks, ended)
        shown = "the certificate given for the name asked for"
        why = f"in {inside}, of servers of one's own; clients are shown {shown}"
        return TlsStep("terminate", why, scopes, _checks(whole, inbound=inbound, trust=whole.tls.trust), ended)

    def _scopes(self, first: Packet) -> Iterator[ScopeStep]:
        policy, lines = self._compiled.policy, self._places
        for number, scope in enumerate(policy.tls.scopes if policy.tls is not None else (), 1):
            yield ScopeStep(number, _line(lines.get(f"tls.scopes.{number}")), scope_misfit(scope, first))
        number = 0
        for index, inbound in enumerate(policy.inbound, 1):
            for place, scope in enumerate(inbound.scopes, 1):
                number += 1
                if inbound in policy.inspected_inbound:
                    line = _line(lines.get(f"inbound.{index}.scopes.{place}"))
                    yield ScopeStep(number, line, scope_misfit(scope, first), inbound=True)

    def _stateful(
        self, seen: _Seen, real: NotingInspector | None, free: NotingInspector | None, ended: Terminated | None
    ) -> StatefulStep:
        ruleset, policy = self._compiled.ruleset, self._compiled.policy.stateful
        if real is None or free is None:
            why = "the policy has no stateful rules"
            if policy.signatures or policy.default_actions:
                why = "the flow did not come so far"
                if any(step.verdict == "intercept" for step in seen.steps):
                    why = "rules would judge the plaintext, which is not in the capture"
            return StatefulStep(False, why)
        notes = real.notes
        loaded = {rule.signature.ref for rule in ruleset.rules}
        return StatefulStep(
            True,
            rules=tuple(reports(ruleset, notes, free)),
            unusable=tuple(
                (signature.ref, signature.never_matches or signature.captures_only)
                for signature in policy.signatures
                if signature.ref not in loaded
            ),
            defaults=tuple((action.name, notes.defaults.get(action.name, 0)) for action in ruleset.defaults.all),
            alerts=tuple(notes.alerts),
        )

    def _conclude(
        self, seen: _Seen, real: NotingInspector | None, stateful: StatefulStep, ended: Terminated | None
    ) -> Conclusion:
        notes = real.notes if real is not None else Notes()
        steps = [step for step in seen.steps if not (_goes_on(seen) and _for_itself(step))]
        for step in steps:
            if step.verdict in ("drop", "reject"):
                return self._concluded(step.verdict, step.stage, step.reason, step.rule, step.at)
        intercepted = next((step for step in steps if step.verdict == "intercept"), None)
        if intercepted is not None and ended is None:
            return self._concluded("intercept", "tls", intercepted.reason, None, intercepted.packet)
        if ended is not None and ended.refusal is not None:
            refusal = ended.refusal
            concluded = self._concluded(refusal.verdict, refusal.stage, refusal.reason, refusal.rule, refusal.at)
            return replace(concluded, detail=refusal.detail)
        verdict = "alert" if stateful.alerts else "pass"
        if notes.decision is not None and notes.decision.verdict is Verdict.ACCEPT:
            return self._concluded(verdict, "stateful", "pass_rule", notes.decision.rule, notes.decided_at)
        if steps and all(step.stage == "stateless" for step in steps):
            first = next(iter(self._stateless(seen)), None)
            rule = first.rule if first is not None else None
            return self._concluded("pass", "stateless", "stateless_pass", _ref(rule) if rule else None)
        last = steps[-1] if steps else None
        if last is not None and last.stage in ("fragments", "flow"):
            return self._concluded(verdict, last.stage, last.reason, None)
        for ref, packet in sorted(notes.alerts.items(), key=lambda each: not each[0].file):  # rules before defaults
            return self._concluded("alert", "stateful", "alert", ref, packet)
        return self._concluded(verdict, "stateful", "no_match", None)

    def _concluded(self, verdict: str, stage: str, reason: str, rule: RuleRef | None, packet: int = 0) -> Conclusion:
        place = Place(rule.file, rule.line) if rule is not None and rule.file else None
        if place is None:
            place = self._places.get(_SETTINGS.get(reason.partition(":")[0], ""))
        if place is None and (reason.startswith("default_") or reason == "alert"):
            place = self._places.get("stateful.default_actions")
        return Conclusion(verdict, stage, reason, rule, place, packet)


def _for_itself(step: Step) -> bool:
    """Whether the packet was dropped because it does not fit its connection: repeated while it waited, out of the
    window, other bytes than before, or waiting for bytes that never came."""
    if step.verdict != "drop" or step.reason == "stream_exception":
        return False
    return step.reason in ("held_duplicate", "flow_end") or step.reason.startswith(("stream_", "invalid_"))


def _goes_on(seen: _Seen) -> bool:
    return any(step.verdict not in ("drop", "reject") for step in seen.steps)


def _besides(seen: _Seen) -> str:
    alone = [step for step in seen.steps if _for_itself(step)]
    if not alone or not _goes_on(seen):
        return ""
    reasons = ", ".join(sorted({step.reason for step in alone}))
    which = ", ".join(str(step.packet) for step in alone[:3]) + (", ..." if len(alone) > 3 else "")
    return f"dropped for themselves, not fitting the connection: {len(alone)} of its packets ({which}: {reasons})"


# What in the policy a reason that is no rule comes from.
_PROOFS = {
    Proof.RESOLVER: "the firewall's resolvers give it this address",
    Proof.CERTIFICATE: "the server proves it by its certificate",
}
_SETTINGS = {
    "stateless_default": "stateless.default",
    "stateless_pass": "stateless.default",
    "stream_exception": "stateful.stream_exception",
    "fragments_udp": "stateless.fragments",
    "fragment_default": "stateless.fragments",
    "no_sni": "tls.on_failure",
    "not_tls": "tls.on_failure",
    "quic": "tls.quic",
    "no_certificate": "inbound",
}


def _outbound(scope: ScopeStep) -> bool:
    return not scope.inbound


def _without_rest(explained: Explanation, seen: _Seen) -> Explanation:
    """Without what would be logged of packets after the one that is refused: TCP sends none of them."""
    conclusion, inspector = explained.conclusion, seen.inspector
    if conclusion.verdict not in ("drop", "reject") or not conclusion.packet or inspector is None:
        return explained
    at = inspector.notes.alerts
    alerts = tuple(ref for ref in explained.stateful.alerts if at[ref] <= conclusion.packet)
    return replace(explained, stateful=replace(explained.stateful, alerts=alerts))


def _checks(policy: Any, *, trust: Trust, inbound: InboundTls | None = None) -> tuple[str, ...]:
    tls = policy.tls
    if inbound is not None and tls.inbound_upstream is Upstream.PINNED:
        given = ", ".join(str(one.certificate) for one in inbound.certificates)
        return (f"the server's certificate: one of those given, {given}; else {tls.on_failure.value}", *_holding(tls))
    vouching = [*(["the system's roots"] if trust.system else []), *map(str, trust.files)]
    checks = [f"the server's certificate: issued under {' or '.join(vouching)}, for the name asked for"]
    checks[0] += " or, where none is, for its address" if tls.without_sni is WithoutSni.ADDRESS else ""
    checks[0] += ", with a valid timestamp of certificate transparency" if tls.transparency.require else ""
    checks[0] += f"; else {tls.on_failure.value}"
    if tls.actions:
        checks[0] += f" ({', '.join(f'{status}: {action.value}' for status, action in tls.actions)})"
    if tls.revocation.check:
        revocation = tls.revocation
        checks.append(f"revocation: revoked: {revocation.revoked.value}, unknown: {revocation.unknown.value}")
    return (*checks, *_holding(tls))


def _holding(tls: Tls) -> tuple[str, ...]:
    return ("the TLS rules first, before the server is contacted (session holding)",) if tls.session_holding else ()


def _ref(rule: StatelessRule) -> RuleRef:
    return RuleRef("stateless", rule.priority, rule.name or rule.group, rule.file, rule.line)


def _line(place: Place | None) -> int:
    return place.line if place is not None else 0


def _named(packet: Packet) -> str:
    def end(address: bytes, port: int) -> str:
        if len(address) not in (4, 16):
            return "?"
        text = str(ipaddress.ip_address(address))
        return (f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}") if port else text

    source, destination = end(packet.src, packet.sport), end(packet.dst, packet.dport)
    return f"{protocol_name(packet.protocol)} {source} -> {destination}"

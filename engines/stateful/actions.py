"""Carries out the matches of one packet: thresholds, suppression, the action that counts, the alerts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from engines.stateful.conversation import log_key
from engines.stateful.flowrules import Match
from engines.stateful.ruleset import RuleSet
from engines.stateful.segment import Alert, FlowFacts
from engines.stateful.signature import Action, Signature, Threshold
from engines.stateful.threshold import Effect, track_key
from engines.verdict import Decision, Direction, Scope, Verdict

_VERDICTS = {Action.PASS: Verdict.ACCEPT, Action.DROP: Verdict.DROP, Action.REJECT: Verdict.REJECT}


class CarriedOut(NamedTuple):
    """``decision``: of the first that decides, None when nothing did. ``passed``: the decision on the flow where the
    packet has one of its own. ``alerts``: what is to be logged."""

    decision: Decision | None
    passed: Decision | None
    alerts: list[Alert]


def carry_out(found: Sequence[Match], ruleset: RuleSet, facts: FlowFacts, now: float) -> CarriedOut:
    """What the matches of a packet, sorted, come to; a pass silences everything after it."""
    decision = passed = None
    alerts: list[Alert] = []
    room = ruleset.limits.max_alerts
    for place, match in enumerate(found):
        effect, signature = effect_of(match, ruleset, facts, now)
        if effect is Effect.NONE:
            continue
        action = signature.action
        if action is not Action.ALERT:
            scope = signature.scope or (Scope.FLOW if match.acts_on_flow else Scope.PACKET)
            reason = "rule" if signature is match.rule.signature else "rate_filter"
            made = Decision(_VERDICTS[action], scope, reason, signature.ref)
            if decision is None:
                decision = made
            elif scope is Scope.FLOW and decision.scope is Scope.PACKET:
                # The packet is decided; the first action on the flow still is this one, but that a pass behind a drop
                # of the packet does nothing (Suricata 8: skip_action_set).
                dropped = decision.verdict is not Verdict.ACCEPT
                if action is Action.PASS and not dropped:
                    passed = made
                elif action is not Action.PASS and dropped:
                    decision = made
        wanted = signature.pass_alert if action is Action.PASS else not signature.noalert
        if place >= room:
            ruleset.overflowed += 1
        elif wanted and effect is Effect.FULL:
            alerts.append(_alert(match, signature, now))
        if action is Action.PASS:
            break
    return CarriedOut(decision, passed, alerts)


def effect_of(match: Match, ruleset: RuleSet, facts: FlowFacts, now: float) -> tuple[Effect, Signature]:
    """By thresholds and suppressions: what is left of a match, and the rule, by its rate_filter with another action."""
    signature = match.rule.signature
    source, destination = facts.client, facts.server
    if match.direction is Direction.TO_CLIENT:
        source, destination = destination, source
    if not source:  # no IP: thresholds are not about it (Suricata: PacketAlertHandle)
        return Effect.FULL, signature
    if any(suppression.covers(source, destination) for suppression in signature.suppressions):
        return Effect.SILENT, signature
    if signature.detection_filter is not None:
        effect = _count(match, signature.detection_filter, ruleset, facts, now)
        if effect is Effect.NONE:
            return effect, signature
    if signature.threshold is not None:
        return _count(match, signature.threshold, ruleset, facts, now), signature
    limited = match.rule.limited
    if limited is not None:
        rate = signature.rate_filter
        assert rate is not None
        if ruleset.thresholds.exceeded(match.rank, rate, _tracked(match, rate.track, facts), now):
            return Effect.FULL, limited
    return Effect.FULL, signature


def _count(match: Match, threshold: Threshold, ruleset: RuleSet, facts: FlowFacts, now: float) -> Effect:
    return ruleset.thresholds.count(match.rank, threshold, _tracked(match, threshold.track, facts), now)


def _tracked(match: Match, track: str, facts: FlowFacts) -> Hashable:
    return track_key(track, facts.id, facts.client, facts.server, match.direction is Direction.TO_SERVER)


def _alert(match: Match, signature: Signature, now: float) -> Alert:
    blocked = signature.action in (Action.DROP, Action.REJECT)
    tx: dict[str, object] = {} if match.tx is None else {log_key(match.proto): match.tx.log_fields()}
    return Alert(signature, "blocked" if blocked else "allowed", match.direction, match.proto, tx, now)

"""An explanation for people, in lines, and for programs, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from engines.stateful.explain import Fate, RuleReport, Stage
from engines.stateless.rule import StatelessRule
from engines.verdict import Direction, RuleRef
from nfw.explain import Conclusion, Explanation, StatefulStep, StatelessStep, Step, TlsStep

MAX_BEFORE = 10  # stateless rules shown that were considered before the one that matched
MAX_RULES = 25  # stateful rules shown without --all-rules

_FATES = {
    Fate.DECIDED: "decided",
    Fate.ALERTED: "alerted",
    Fate.SILENT: "matched, silent",
    Fate.LATE: "too late",
    Fate.WOULD_MATCH: "would match",
    Fate.NO_MATCH: "no match",
}
INDENT = 11


def explain_lines(explained: Explanation, *, all_rules: bool, packets: bool) -> Iterator[str]:
    """``all_rules``: all that were considered, not only those that came near. ``packets``: each packet's fate."""
    yield f"{'flow':{INDENT}}{explained.flow}"
    yield from _stateless(explained.stateless, explained.conclusion, all_rules)
    yield from _tls(explained.tls)
    names = _names(explained)
    yield from _stateful(explained.stateful, names, all_rules)
    if packets:
        yield from _packets(explained.steps)
    if explained.conclusion.besides:
        yield f"{'besides':{INDENT}}{explained.conclusion.besides}"
    yield f"{'verdict':{INDENT}}{conclusion_text(explained.conclusion, names)}"


def _names(explained: Explanation) -> dict[int, str]:
    """What the packets are, or, of a flow that is decrypted, what rules saw."""
    if explained.tls.ended is not None:
        return dict(enumerate(explained.tls.ended.said, 1))
    return {step.packet: f"packet {step.packet}" + (f", {step.what}" if step.what else "") for step in explained.steps}


def rule_text(ref: RuleRef) -> str:
    """``stateful 1200010 "allowed site" (allow.rules:6)``."""
    which = (
        f"priority {ref.id}" if ref.engine == "stateless" else f"{ref.gid}:{ref.id}" if ref.gid != 1 else str(ref.id)
    )
    name = f' "{ref.msg}"' if ref.msg else ""
    at = f" ({ref.file}:{ref.line})" if ref.file and ref.line else ""
    return f"{which}{name}{at}"


def conclusion_text(conclusion: Conclusion, names: dict[int, str] | None = None) -> str:
    """``drop by stateful rule 1100001 "denied" (deny.rules:2) at packet 4``."""
    if conclusion.enforced:
        would = replace(conclusion, verdict=conclusion.enforced, enforced="")
        return f"pass, since the policy only watches (mode: monitor); enforced: {conclusion_text(would, names)}"
    text = conclusion.verdict
    reason = conclusion.reason
    if conclusion.verdict == "intercept":
        text += ": the TLS engine terminates the flow; rules judge the plaintext, which is not in the capture"
    elif reason == "alert" and conclusion.rule is not None and not conclusion.rule.file:
        text += f" by default action {default_name(conclusion.rule)}"
    elif reason.startswith("default_"):
        text += f" by default action {reason.removeprefix('default_')}"
    elif conclusion.detail:
        text += f" by the TLS engine: {conclusion.detail}"
    elif conclusion.rule is not None:
        text += f" by {conclusion.stage} rule {rule_text(conclusion.rule)}"
    elif reason in _REASONS:
        text += f": {_REASONS[reason]}"
    else:
        text += f" by the {conclusion.stage} stage: {reason}"
    if conclusion.place is not None and conclusion.place.line and (conclusion.rule is None or not conclusion.rule.file):
        text += f" ({conclusion.place})"
    at = (names or {}).get(conclusion.packet)
    return f"{text} at {at}" if at and conclusion.verdict != "intercept" else text


def default_name(ref: RuleRef) -> str:
    """The name of the default action behind a generated rule."""
    return ref.msg.removeprefix("aws:").removesuffix(" action")


_REASONS = {
    "no_match": "no rule and no default action is against it",
    "no_rules": "the policy has no stateful rules",
    "stateless_pass": "the stateless default",
    "stateless_default": "the stateless default",
    "quic": "QUIC to a TLS scope, which cannot be decrypted",
    "stream_exception": "stream_exception, for TCP of which no handshake was seen",
    "fragments_other": "fragments of anything but UDP are always dropped",
    "fragments_udp": "the policy's fragments setting",
    "fragment_default": "the policy's fragments setting",
}


def _stateless(steps: Sequence[StatelessStep], conclusion: Conclusion, all_rules: bool) -> Iterator[str]:
    if not steps:
        reason = _REASONS.get(conclusion.reason, conclusion.reason)
        yield f"{'stateless':{INDENT}}no rule was tried: {reason}"
        return
    shown: StatelessStep | None = None
    for step in steps:
        if shown is not None and (step.rule, step.action) == (shown.rule, shown.action):
            continue  # the same for answers
        rule = step.rule
        decided = "default" if rule is None else stateless_text(rule)
        answers = "" if step.direction is Direction.TO_SERVER else "answers: "
        yield f"{'stateless' if shown is None else '':{INDENT}}{answers}{step.action.value}, by {decided}"
        shown = step
        before = step.considered if all_rules else step.considered[-MAX_BEFORE:]
        left = len(step.considered) - len(before)
        if left:
            yield f"{'':{INDENT}}  {left} rules before these did not match either (--all-rules)"
        for each, why in before:
            yield f"{'':{INDENT}}  not {stateless_text(each)}: {why}"


def stateless_text(rule: StatelessRule) -> str:
    where = f" ({rule.file}:{rule.line})" if rule.file and rule.line else ""
    group = f"{rule.group} " if rule.group else ""
    name = f' "{rule.name}"' if rule.name else ""
    return f"{group}priority {rule.priority} {rule.action.value}{name}{where}"


def _tls(step: TlsStep) -> Iterator[str]:
    yield f"{'tls':{INDENT}}{step.decision}: {step.why}"
    for scope in step.scopes:
        at = f" (line {scope.line})" if scope.line else ""
        yield f"{'':{INDENT}}  {scope}{at}: {scope.misfit or 'fits'}"
    if step.ended is not None and step.ended.refusal is not None and step.ended.refusal.stage == "tls":
        yield f"{'':{INDENT}}  ended: {step.ended.refusal.detail}"
        return
    if step.certificate is not None:
        yield f"{'':{INDENT}}  the client is shown {step.certificate}"
    for check in step.checks:
        yield f"{'':{INDENT}}  would check {check}"
    if step.ended is not None:
        yield f"{'':{INDENT}}  rules then see {', '.join(step.ended.said)}"


def _stateful(step: StatefulStep, names: dict[int, str], all_rules: bool) -> Iterator[str]:
    if not step.asked:
        yield f"{'stateful':{INDENT}}not asked: {step.why}"
        return
    shown = shown_rules(step.rules, all_rules)
    left = len(step.rules) - len(shown)
    count = f"{len(step.rules)} rule{'s' if len(step.rules) != 1 else ''}"
    yield f"{'stateful':{INDENT}}{count}, in the order they are tried"
    for report in shown:
        yield f"{'':{INDENT}}  {_FATES[report.fate]:16}{report_text(report, names)}"
    if left:
        yield f"{'':{INDENT}}  {left} more did not come near (--all-rules)"
    for ref, why in step.unusable if all_rules else step.unusable[:3]:
        yield f"{'':{INDENT}}  {'never matches':16}{rule_text(ref)}: {why}"
    if len(step.unusable) > 3 and not all_rules:
        yield f"{'':{INDENT}}  {len(step.unusable) - 3} more can never match (--all-rules)"
    for name, packet in step.defaults:
        at = f"applied at {names.get(packet, f'packet {packet}')}" if packet else "did not apply"
        yield f"{'':{INDENT}}  {'default':16}{name}: {at}"


def shown_rules(rules: Sequence[RuleReport], all_rules: bool) -> list[RuleReport]:
    """Those that matched or would have, then those that came nearest, at most MAX_RULES; in their order."""
    if all_rules:
        return list(rules)
    near = [report for report in rules if report.stage > Stage.HEADER]
    near.sort(key=lambda report: -report.stage)
    kept = {report.rule.index for report in near[:MAX_RULES]}
    return [report for report in rules if report.rule.index in kept]


def report_text(report: RuleReport, names: dict[int, str]) -> str:
    signature = report.rule.signature
    text = f"{signature.action.value} {rule_text(signature.ref)}"
    at = names.get(report.packet, "")
    if report.fate is Fate.NO_MATCH:
        return f"{text}: {report.text}" + (f" [{at}]" if at and report.stage >= Stage.PACKET else "")
    if report.fate is Fate.WOULD_MATCH:
        by = f"rule {rule_text(report.by)}" if report.by is not None else "the default action or another stage"
        return f"{text} at {at or 'a later packet'}: the flow was decided before, by {by}"
    if report.fate is Fate.LATE:
        assert report.by is not None
        return f"{text} at {at}: behind rule {rule_text(report.by)}, which decided"
    return f"{text} at {at}" if at else text


def _packets(steps: Sequence[Step]) -> Iterator[str]:
    for number, step in enumerate(steps):
        arrow = "->" if step.direction is Direction.TO_SERVER else "<-"
        by = f" by {rule_text(step.rule)}" if step.rule is not None and step.rule.file else ""
        head = "packets" if not number else ""
        what = f"{step.packet:3} {arrow} {step.what}"
        yield f"{head:{INDENT}}{what:38} {step.verdict:9} {step.stage}, {step.reason}{by}"


# -- plain values ------------------------------------------------------------------------------------------------------


def explain_json(explained: Explanation, *, all_rules: bool) -> dict[str, Any]:
    """The explanation as JSON has it; keys are stable, texts are not."""
    names = _names(explained)
    conclusion = explained.conclusion
    stateful = explained.stateful
    return {
        "flow": explained.flow,
        "verdict": {
            "verdict": conclusion.verdict,
            "enforced": conclusion.enforced or conclusion.verdict,
            "stage": conclusion.stage,
            "reason": conclusion.reason,
            "rule": ref_json(conclusion.rule),
            "file": conclusion.place.file if conclusion.place else None,
            "line": conclusion.place.line if conclusion.place else None,
            "packet": conclusion.packet or None,
            "besides": conclusion.besides,
            "text": conclusion_text(conclusion, names),
        },
        "stateless": [
            {
                "packet": step.packet,
                "direction": _direction(step.direction),
                "action": step.action.value,
                "rule": _stateless_json(step.rule) if step.rule is not None else None,
                "considered": [
                    {**_stateless_json(rule), "why": why}
                    for rule, why in (step.considered if all_rules else step.considered[-MAX_BEFORE:])
                ],
                "considered_total": len(step.considered),
            }
            for step in explained.stateless
        ],
        "tls": {
            "decision": explained.tls.decision,
            "why": explained.tls.why,
            "scopes": [scope._asdict() for scope in explained.tls.scopes],
            "checks": list(explained.tls.checks),
            "certificate": str(explained.tls.certificate) if explained.tls.certificate is not None else None,
        },
        "stateful": {
            "asked": stateful.asked,
            "why": stateful.why,
            "rules_total": len(stateful.rules),
            "rules": [_report_json(report) for report in shown_rules(stateful.rules, all_rules)],
            "never_match": [{"rule": ref_json(ref), "why": why} for ref, why in stateful.unusable],
            "default_actions": [{"name": name, "packet": packet or None} for name, packet in stateful.defaults],
            "alerts": [ref_json(ref) for ref in stateful.alerts],
        },
        "packets": [
            {
                "packet": step.packet,
                "direction": _direction(step.direction),
                "what": step.what,
                "stage": step.stage,
                "verdict": step.verdict,
                "reason": step.reason,
                "rule": ref_json(step.rule),
            }
            for step in explained.steps
        ],
        "plaintext": list(explained.tls.ended.said) if explained.tls.ended is not None else [],
    }


def ref_json(ref: RuleRef | None) -> dict[str, Any] | None:
    if ref is None:
        return None
    named = {"engine": ref.engine, "id": ref.id, "name": ref.msg, "file": ref.file, "line": ref.line}
    return {**named, "gid": ref.gid} if ref.engine == "stateful" else named


def _stateless_json(rule: StatelessRule) -> dict[str, Any]:
    return {
        "priority": rule.priority,
        "action": rule.action.value,
        "name": rule.name,
        "group": rule.group,
        "file": rule.file,
        "line": rule.line,
    }


def _report_json(report: RuleReport) -> dict[str, Any]:
    signature = report.rule.signature
    return {
        "rule": ref_json(signature.ref),
        "action": signature.action.value,
        "fate": report.fate.value,
        "stage": report.stage.name.lower(),
        "why": report.text,
        "packet": report.packet or None,
        "by": ref_json(report.by),
    }


def _direction(direction: Direction) -> str:
    return "to_server" if direction is Direction.TO_SERVER else "to_client"

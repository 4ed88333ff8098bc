"""Stateless rules that no packet reaches or can match, and flows of which only one direction is inspected.

Source of the last: AWS Network Firewall, ``AnalyzeRuleGroup``, STATELESS_RULE_FORWARDING_ASYMMETRICALLY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engines.stateless.filter import StatelessFilter
from engines.stateless.rule import StatelessAction, StatelessRule
from nfw.policy.check.regions import MAX_STEPS, TCP, Box, Lookup, Point, region_of_rule, without
from nfw.policy.errors import Level, PolicyError
from nfw.policy.model import Stateless

Tell = Callable[[PolicyError], None]
_NAMED = 3  # rules named in a message


def check_stateless(stateless: Stateless, tell: Tell) -> None:
    ordered = StatelessFilter(stateless.rules, stateless.default)
    rules = ordered.rules
    regions = [region_of_rule(rule) for rule in rules]
    lookup = Lookup(ordered, regions)
    for index, (rule, region) in enumerate(zip(rules, regions, strict=True)):
        if region.empty:
            tell(
                _warning(
                    rule,
                    f"{_name(rule)} never matches: its sources and destinations are of different address families",
                    "give it both of one family, or one rule for each",
                    "stateless-never",
                )
            )
            continue
        before = lookup.covering(region, index)
        if before is not None:
            tell(_shadowed(rule, [rules[each] for each in sorted(before)]))
    tell_undecided(lookup, "stateless", rules[0].file if rules else "", tell)
    _check_symmetry(stateless, tell)


def tell_undecided(lookup: Lookup, stage: str, file: str, tell: Tell) -> None:
    if lookup.undecided:
        message = f"{lookup.undecided} {stage} rules overlap with too many before them to tell whether they are reached"
        tell(PolicyError(file, 0, 0, message, Level.WARNING, "undecided", "put rules of one action together"))


def _shadowed(rule: StatelessRule, before: list[StatelessRule]) -> PolicyError:
    actions = {each.action for each in before}
    same = actions == {rule.action}
    outcome = "with the same action" if same else "with action " + " or ".join(sorted(each.value for each in actions))
    many = "rules" if len(before) > 1 else "rule"
    return _warning(
        rule,
        f"{_name(rule)} is never reached: every packet it is about is matched before by the {many} {_listed(before)}, "
        + outcome,
        "remove it" if same else "give it a lower priority number than theirs, or remove it",
        "stateless-shadowed",
    )


def _listed(rules: list[StatelessRule]) -> str:
    names = [f"of priority {rule.priority} on line {rule.line}" for rule in rules[:_NAMED]]
    more = f" and {len(rules) - _NAMED} more" if len(rules) > _NAMED else ""
    return ", ".join(names) + more


def _name(rule: StatelessRule) -> str:
    group = f" of group {rule.group}" if rule.group else ""
    return f"stateless rule {rule.name or f'of priority {rule.priority}'}{group}"


def _warning(rule: StatelessRule, message: str, remedy: str, code: str) -> PolicyError:
    return PolicyError(rule.file, rule.line, 0, message, Level.WARNING, code, remedy)


# -- symmetry ------------------------------------------------------------------------------------------------------

_ACK = 16  # the flag all packets of a connection but the first have


def _check_symmetry(stateless: Stateless, tell: Tell) -> None:
    """Rules about flags are left out: packets of one direction meet different ones of them."""
    default = stateless.default
    ordered = StatelessFilter([rule for rule in stateless.rules if not rule.tcp_flags], default)
    rules = ordered.rules
    lookup = Lookup(ordered, [region_of_rule(rule) for rule in rules])
    for index, rule in enumerate(rules):
        # What differs from the default is some other rule's doing. To drop one direction may be meant.
        if rule.action in (default, StatelessAction.DROP):
            continue
        point = _asymmetry(index, lookup, rules, default)
        if point is not None:
            tell(_asymmetric(rule, point, lookup, rules, default))


def _asymmetry(index: int, lookup: Lookup, rules: tuple[StatelessRule, ...], default: StatelessAction) -> Point | None:
    """A packet that the rule decides, and whose answer goes another way; None when there is none, or none is found
    within :data:`MAX_STEPS`."""
    steps = 0
    for box in lookup.regions[index].boxes():
        left = [box._replace(flags=1 << _ACK if box.protocol == TCP else box.flags)]
        while left:
            steps += 1
            if not lookup.spend() or steps > MAX_STEPS:
                return None
            piece = left.pop()
            point = piece.corner()
            mine = lookup.first(point)
            if mine != index:  # an earlier rule decides here
                left += _less(piece, lookup.regions[mine].around(point))
                continue
            answer = lookup.first(point.mirrored())
            action = default if answer < 0 else rules[answer].action
            if _differ(rules[index].action, action):
                return point
            if answer < 0:
                return None
            around = lookup.regions[answer].around(point.mirrored())
            left += _less(piece, around.mirrored() if around is not None else None)
    return None


def _less(piece: Box, taken: Box | None) -> Iterable[Box]:
    return () if taken is None else without(piece, taken)


def _differ(action: StatelessAction, reply: StatelessAction) -> bool:
    """A drop of the answers to what was passed may be meant; to what the stateful engine is to follow, it may not."""
    if action is StatelessAction.PASS:
        return reply is StatelessAction.FORWARD
    return reply is not StatelessAction.FORWARD


def _asymmetric(
    rule: StatelessRule, point: Point, lookup: Lookup, rules: tuple[StatelessRule, ...], default: StatelessAction
) -> PolicyError:
    answer = lookup.first(point.mirrored())
    action = default if answer < 0 else rules[answer].action
    by = "the default" if answer < 0 else f"the rule of priority {rules[answer].priority} on line {rules[answer].line}"
    verbs = {"pass": "passes", "drop": "drops", "forward": "forwards"}
    engine = " to the stateful engine" if rule.action is StatelessAction.FORWARD else ""
    return _warning(
        rule,
        f"{_name(rule)} {verbs[rule.action.value]} one direction{engine}, and {by} {verbs[action.value]} the answers, "
        f"as those to {point}",
        "add a rule with the same action, sources and destinations exchanged",
        "stateless-asymmetric",
    )

"""Which protocols a rule set may decide against: as long as a side's first bytes may begin one of them, they wait.

Of TCP only: a datagram is judged as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from engines.stateful.app.detect import recognised
from engines.verdict import Direction

if TYPE_CHECKING:
    from engines.stateful.ruleset import Rule

_TCP = 6
# Detected name -> the names its flows may get later (DNS over HTTPS) or on other ports.
_BECOMES = {"http": ("http1",), "http2": ("doh2",), "dns": ("mdns", "llmnr")}


class Stakes(NamedTuple):
    """What could be decided against a flow by what one side says first. Of rules with the same header there is one.

    A rule on one side's bytes counts for both: once a side has told the protocol, what both have said is judged by it,
    and a parser that fails on either ends the flow.

    ``until_final``: rules that need the end of detection, whatever it finds. ``on``: those on a protocol, by the name
    it is detected by.
    """

    until_final: tuple[Rule, ...]
    on: Mapping[str, tuple[Rule, ...]]


def make_stakes(
    rules: Iterable[Rule],
    denies: Callable[[Rule], bool],
    has_place: Callable[[Rule, str], bool],
    covered: Callable[[str], frozenset[str]],
) -> tuple[Stakes, Stakes]:
    """One for each side. ``rules``: those that look at application protocols and those that ask for what the
    former leave behind; ``has_place``: whether a rule can match on a flow of a protocol; ``covered``: the detected
    names that a name in a rule stands for."""
    rules = list(rules)
    denying = [rule for rule in rules if denies(rule)]
    aware = [rule for rule in denying if _aware(rule)]
    if aware and any(_asks_state(rule) for rule in denying):
        # What these leave behind may be what a denying rule asks for.
        aware += [rule for rule in rules if rule.changes and _aware(rule) and not denies(rule)]
    names = sorted(recognised(Direction.TO_SERVER) | recognised(Direction.TO_CLIENT))
    known: dict[object, frozenset[str] | None] = {}
    until_final: dict[Direction, dict[tuple[int, bool], Rule]] = {side: {} for side in Direction}
    on: dict[Direction, dict[str, dict[tuple[int, bool], Rule]]] = {side: {} for side in Direction}
    for rule in aware:
        signature = rule.signature
        buffers = frozenset([condition.match.buffer for condition in rule.tx])
        place = (rule.app_protos, buffers, signature.app_events, signature.app_layer_protocols)
        if place not in known:
            known[place] = _protocols(rule, names, has_place, covered)
        about = known[place]
        header = (rule.header, signature.transactional)
        for side in Direction:
            if about is None or about - recognised(side):  # what this side says does not rule these out
                until_final[side].setdefault(header, rule)
            for name in about or ():
                on[side].setdefault(name, {}).setdefault(header, rule)
    to_server, to_client = (
        Stakes(tuple(until_final[side].values()), {name: tuple(found.values()) for name, found in on[side].items()})
        for side in (Direction.TO_SERVER, Direction.TO_CLIENT)
    )
    return to_server, to_client


def _aware(rule: Rule) -> bool:
    """It looks at the application protocols of TCP."""
    signature = rule.signature
    if signature.ip_protocols and _TCP not in signature.ip_protocols:
        return False
    return bool(rule.app_protos or rule.tx or signature.app_layer_protocols or signature.app_events)


def _asks_state(rule: Rule) -> bool:
    signature = rule.signature
    return bool(signature.flowbit_checks or signature.flowints or signature.xbit_checks)


def _protocols(
    rule: Rule, names: Iterable[str], has_place: Callable[[Rule, str], bool], covered: Callable[[str], frozenset[str]]
) -> frozenset[str] | None:
    """Names detection may find that the rule's answer depends on; None: on any.

    A decrypted flow speaks two protocols at once, so a name asked for counts besides the rule's own.
    """
    asked: frozenset[str] = frozenset()
    for test in rule.signature.app_layer_protocols:
        names_asked = test.names
        if test.negated or not {"failed", "unknown"}.isdisjoint(names_asked) or test.mode not in {"final", "exact"}:
            return None
        asked = asked.union(*map(covered, names_asked))
    placed = bool(rule.app_protos or rule.tx or rule.signature.app_events)
    found = set()
    for name in names:
        for one in (name, *_BECOMES.get(name, ())):
            if one in asked or (placed and has_place(rule, one)):
                found.add(name)
    return frozenset(found)

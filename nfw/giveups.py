"""Tells the operator, once a rule, that its regular expression gave up on some traffic.

A search has a limit of backtracking (:mod:`engines.stateful.keywords.regex`), and what is beyond it is no match: cheap
for the firewall, and something the rule's author wants to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.verdict import RuleRef

if TYPE_CHECKING:
    from engines.stateful.ruleset import RuleSet

LOOK_SECONDS = 1.0


class GiveUps:
    """Looks at a rule set's counters now and then. ``say`` gets one line for each rule."""

    def __init__(self, ruleset: RuleSet, say: Callable[[str], None]) -> None:
        self._ruleset = ruleset
        self._say = say
        self._told: set[RuleRef] = set()
        self._due = 0.0

    def look(self, now: float) -> None:
        """``now``: seconds of any clock; more often than every :data:`LOOK_SECONDS` it does nothing."""
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        for ref in self._ruleset.gave_up():
            if ref not in self._told:
                self._told.add(ref)
                self._say(
                    f"{ref.file}:{ref.line}: rule {ref.gid}:{ref.id}: its pcre reached the limit of backtracking; "
                    "traffic that makes it do so does not match it"
                )

    def counts(self) -> dict[str, int]:
        """``gid:sid`` -> how often, for ``nfw status``."""
        return {f"{ref.gid}:{ref.id}": count for ref, count in self._ruleset.gave_up().items()}

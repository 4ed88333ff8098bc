"""Everything of a policy that is counted, as rows of a :class:`nfw.rulecounts.CountTable`: which rule a row is.

In this order: stateless rules, fragments and default; stateful rules and default actions; TLS scopes and statuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engines.counts import RuleCounts
from engines.tls.status import Status
from nfw.rulecounts import CountTable, RuleRow

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled

STATUSES = (*(status.value for status in Status), "ENDED")  # ENDED: by the worker, not by the session
_STATUS_ROWS = {name: row for row, name in enumerate(STATUSES)}
_FRAGMENTS = 2  # rows between the stateless rules and their default
_TEXT_CHARACTERS = 200
# What a hit is, by engine and kind.
PACKETS, MATCHES, SESSIONS = "packets", "matches", "sessions"


class Catalogue:
    """The rows of one compiled policy. Texts are made when they are asked for: the leader is mostly not asked."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        stateless, stateful = len(compiled.filter.counts), len(compiled.ruleset.counts)
        scopes = len(compiled.scopes.counts) if compiled.scopes is not None else 0
        self._bounds = [0, stateless, stateless + stateful, stateless + stateful + scopes]
        self.rows = self._bounds[-1] + (len(STATUSES) if scopes else 0)
        self._made: list[tuple[int, RuleRow]] | None = None

    def attach(self, table: CountTable, slot: int) -> RuleCounts:
        """Let this process count in ``slot``. Answers the counts of TLS statuses, see :func:`status_row`."""
        compiled, bounds = self._compiled, self._bounds
        compiled.filter.counts = table.counts(slot, bounds[0], bounds[1])
        compiled.ruleset.counts = table.counts(slot, bounds[1], bounds[2])
        if compiled.scopes is not None:
            compiled.scopes.counts = table.counts(slot, bounds[2], bounds[3])
        return table.counts(slot, bounds[3], self.rows)

    def told(self) -> list[tuple[int, RuleRow]]:
        """All rows that say something of the policy, and where in the table they are."""
        if self._made is None:
            self._made = [(at, row) for at, row in enumerate(_distinct(self._all())) if row is not None]
        return self._made

    def _all(self) -> Iterator[RuleRow | None]:
        yield from self._stateless()
        yield from self._stateful()
        policy, scopes = self._compiled.policy, self._compiled.scopes
        if scopes is None or policy.tls is None:
            return
        for number, scope in enumerate(scopes.scopes, 1):
            fields = (scope.sources, scope.source_ports, scope.destinations, scope.destination_ports)
            text = " ".join((_listed(fields[0]), _ports(fields[1]), "->", _listed(fields[2]), _ports(fields[3])))
            yield _row("tls", "scope", f"scope {number}", "decrypt", text, str(policy.file), "", SESSIONS, repr(scope))
        for name in STATUSES:
            yield _row("tls", "status", name, "", "", "", "", SESSIONS, name)

    def _stateless(self) -> Iterator[RuleRow | None]:
        stateless, filter_ = self._compiled.policy.stateless, self._compiled.filter
        for rule in filter_.rules:
            at = f"{rule.file}:{rule.line}" if rule.file else ""
            yield _row(
                "stateless", "rule", str(rule.priority), rule.action.value, rule.name or str(rule), at, rule.group,
                PACKETS, f"{rule.name}\0{rule}",
            )  # fmt: skip
        # Fragments are the kernel's (`nfw status`): a worker sees none.
        yield from [None] * _FRAGMENTS
        action = stateless.default.value
        yield _row("stateless", "default", "default", action, "no rule matched", "", "", PACKETS, action)

    def _stateful(self) -> Iterator[RuleRow]:
        ruleset, groups = self._compiled.ruleset, self._compiled.policy.stateful.groups
        for rule in ruleset.rules:
            signature = rule.signature
            ref = signature.ref
            group = groups[ref.gid - 1].name if 0 < ref.gid <= len(groups) else ""
            at = f"{ref.file}:{ref.line}" if ref.file else ""
            said = f"{ref.id}\0{ref.rev}\0{signature.text}"
            action = signature.action.value
            yield _row("stateful", "rule", f"{ref.gid}:{ref.id}", action, ref.msg, at, group, MATCHES, said)
        for default in ruleset.defaults.all:
            action = default.signature.action.value
            yield _row("stateful", "default", default.name, action, "no rule decided", "", "", PACKETS, default.name)


def status_row(status: str) -> int:
    """Row of a session's status within the counts of statuses."""
    return _STATUS_ROWS[status]


def _row(
    engine: str, kind: str, name: str, action: str, text: str, at: str, group: str, unit: str, said: str
) -> RuleRow:
    # Without the name: a group's place is in a rule's, and rules may move.
    all_said = "\0".join((engine, kind, action, group, said)).encode("utf-8", "replace")
    digest = hashlib.blake2b(all_said, digest_size=12).digest()
    return RuleRow(engine, kind, name, action, text[:_TEXT_CHARACTERS], at[-_TEXT_CHARACTERS:], group, unit, digest)


def _distinct(rows: Iterator[RuleRow | None]) -> Iterator[RuleRow | None]:
    seen: dict[bytes, int] = {}
    for row in rows:
        if row is None:
            yield None
            continue
        seen[row.digest] = times = seen.get(row.digest, 0) + 1
        if times > 1:
            again = hashlib.blake2b(row.digest + str(times).encode(), digest_size=12).digest()
            row = row._replace(digest=again)
        yield row


def _listed(networks: tuple[object, ...]) -> str:
    return ",".join(map(str, networks)) or "any"


def _ports(ranges: tuple[tuple[int, int], ...]) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges) or "any"

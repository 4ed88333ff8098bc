"""Counts of every rule: shared by the processes of a generation, kept from one generation and one start to the next.

::

    worker ──► its slot of CountTable ◄── leader: sums ──► supervisor: Book ◄──► state directory
               (memory both have)                          by digest of the rule

A worker adds in place and tells nobody; what a worker that died had counted is still there. A rule is known by a digest
of what it says (:mod:`nfw.rulerows`), so its counts go on where a new policy has the same rule, wherever it stands.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack

from engines.counts import RuleCounts

BOOK_RULES = 100_000  # more rules than a policy has; beyond, those that were in no policy for longest are forgotten
_FILE_BYTES = 64 << 20
_VERSION = 1
_WORD = 8
_COLUMNS = 4


class RuleRow(NamedTuple):
    """``kind``: rule, default, scope or status. ``at``: where it is written, ``file:line``, or empty. ``unit``: what
    its hits are. ``digest``: of all that it says and the group it is in; two that are alike have different ones."""

    engine: str
    kind: str
    id: str
    action: str
    text: str
    at: str
    group: str
    unit: str
    digest: bytes


class Counted(NamedTuple):
    """``last``: when the last hit was, 0.0 never."""

    hits: int
    octets: int
    flows: int
    last: float


class CountTable:
    """``rows`` for each of ``slots`` processes, in memory that children share. One writer for each slot.

    Make it before the processes are forked. ``last`` is of the clock the writers use.
    """

    def __init__(self, rows: int, slots: int) -> None:
        self.rows = rows
        self.slots = slots
        self._memory = memoryview(mmap.mmap(-1, max(1, rows * slots * _COLUMNS * _WORD)))
        self._before: list[Counted] | None = None  # at the last reset

    def counts(self, slot: int, first: int, stop: int) -> RuleCounts:
        """Rows ``first`` to ``stop`` of a slot, to count in."""
        hits, octets, flows, last = (self._column(slot, column, first, stop) for column in range(_COLUMNS))
        return RuleCounts.over(hits.cast("Q"), octets.cast("Q"), flows.cast("Q"), last.cast("d"))

    def sums(self, first: int, stop: int) -> list[Counted]:
        """Over all slots, since the last :meth:`reset`."""
        found = self._sums(first, stop)
        if self._before is None:
            return found
        return [
            Counted(
                now.hits - before.hits,
                now.octets - before.octets,
                now.flows - before.flows,
                now.last if now.last > before.last else 0.0,
            )
            for now, before in zip(found, self._before[first:stop], strict=True)
        ]

    def reset(self) -> None:
        """From here on sums begin at nothing. The writers are not disturbed."""
        self._before = self._sums(0, self.rows)

    def _sums(self, first: int, stop: int) -> list[Counted]:
        slots = [self.counts(slot, first, stop) for slot in range(self.slots)]
        return [
            Counted(sum(hits), sum(octets), sum(flows), max(last))
            for hits, octets, flows, last in zip(
                zip(*(counts.hits for counts in slots), strict=True),
                zip(*(counts.octets for counts in slots), strict=True),
                zip(*(counts.flows for counts in slots), strict=True),
                zip(*(counts.last for counts in slots), strict=True),
                strict=True,
            )
        ]

    def _column(self, slot: int, column: int, first: int, stop: int) -> memoryview:
        at = (slot * _COLUMNS + column) * self.rows
        return self._memory[(at + first) * _WORD : (at + stop) * _WORD]


class Kept(NamedTuple):
    """As :class:`Counted`, times in seconds since the epoch; ``began``: since when the rule is counted."""

    hits: int
    octets: int
    flows: int
    last: float
    began: float


Told = Sequence[Sequence[object]]  # digest, hits, octets, flows, last


class Book:
    """What generations before the current one have counted, by digest. At most ``bound`` rules."""

    def __init__(self, bound: int = BOOK_RULES) -> None:
        self.bound = bound
        self._kept: dict[bytes, Kept] = {}
        self._live: dict[int, dict[bytes, Kept]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, digest: bytes) -> Kept | None:
        """Of the generations that have ended."""
        return self._kept.get(digest)

    def tell(self, generation: int, rows: Told, since: float) -> None:
        """What a generation, which counts since ``since``, has counted so far; in any number of pieces."""
        live = self._live.setdefault(generation, {})
        for digest, hits, octets, flows, last in rows:
            live[bytes(digest)] = Kept(int(hits), int(octets), int(flows), float(last), since)  # type: ignore[arg-type, call-overload]

    def fold(self, generation: int) -> None:
        """The generation has ended: what it told last is kept."""
        live = self._live.pop(generation, {})
        self._kept = _added(self._kept, live, self.bound)

    def reset(self) -> None:
        """Forget everything but what generations that still run will tell."""
        self._kept = {}
        self._live = {}

    # -- across restarts -------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything told so far. The file is whole at any time. Raises OSError."""
        kept = self._kept
        for live in self._live.values():
            kept = _added(kept, live, self.bound)
        body = {"version": _VERSION, "rules": [[digest, *row] for digest, row in kept.items()]}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgpack.packb(body))
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def load(self, path: Path) -> str | None:
        """What an earlier start has saved; why not, when there is a file that is of no use."""
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{path}: {error.strerror}; rules are counted anew"
        try:
            if len(data) > _FILE_BYTES:
                raise ValueError("too large")
            body = msgpack.unpackb(data)
            if body["version"] != _VERSION:
                raise ValueError("another version")
            found = {
                bytes(digest): Kept(int(hits), int(octets), int(flows), float(last), float(began))
                for digest, hits, octets, flows, last, began in body["rules"]
            }
        except Exception:  # noqa: BLE001 - msgpack documents no closed set of what broken input raises
            return f"{path}: not a file of rule counts, or damaged; rules are counted anew"
        self._kept = _added({}, found, self.bound)
        return None


def _added(kept: dict[bytes, Kept], more: dict[bytes, Kept], bound: int) -> dict[bytes, Kept]:
    """Both together, those of ``more`` behind the others; the first go where there are too many."""
    made = {digest: row for digest, row in kept.items() if digest not in more}
    for digest, row in more.items():
        made[digest] = together(kept.get(digest), row)
    surplus = len(made) - bound
    for digest in list(made)[: max(0, surplus)]:
        del made[digest]
    return made


def together(kept: Kept | None, row: Kept) -> Kept:
    """One rule's counts of before and of now."""
    if kept is None:
        return row
    return Kept(
        kept.hits + row.hits,
        kept.octets + row.octets,
        kept.flows + row.flows,
        max(kept.last, row.last),
        min(kept.began, row.began),
    )


def parts(rows: Sequence[object], size: int) -> Iterable[Sequence[object]]:
    """``rows`` in pieces of at most ``size``; one piece when there are none."""
    return (rows[at : at + size] for at in range(0, len(rows) or 1, size))

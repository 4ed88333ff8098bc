"""Multi-pattern search: which rules of many are worth evaluating on these bytes.

One :class:`PatternSet` holds the fast patterns of all rules that look into the same buffer. Few patterns are searched
one by one, many go into a Hyperscan database. Scanning writes only to the database's scratch space, which is ordinary
memory: after a fork each process has its own copy and the database itself stays shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import hyperscan

# Below this many patterns bytes.find is faster than the call into Hyperscan (about 0.35 µs).
_FEW = 4
# A longer literal makes a larger database and rejects no more: its beginning must occur, too.
_MAX_LITERAL = 64


_Literal = tuple[bytes, bool, bool]  # literal, nocase, whether only a buffer that begins with it counts


class DatabaseStore(Protocol):
    """Databases made earlier, as Hyperscan writes them down, for the same Hyperscan on the same kind of CPU."""

    def get(self, key: bytes) -> bytes | None:
        """What was put under ``key``, if it is still there."""

    def put(self, key: bytes, data: bytes) -> None:
        """Keep ``data``; it may be lost."""

    def refuse(self, key: bytes, reason: str) -> None:
        """What came from ``key`` is of no use."""


class PatternSet:
    """Finds which of many literals occur in a buffer.

    ``patterns``: (literal, nocase, value) triples; the values of the literals found come back from ``scan``.
    ``firsts`` the same of literals that count only where the buffer begins with them. ``store``: where to look for the
    database before it is compiled.
    """

    __slots__ = ("_database", "_few", "_values", "longest", "scan", "size")

    scan: Callable[[bytes], list[int]]
    """The values of all literals in the data, each once per literal, in no particular order."""

    def __init__(
        self,
        patterns: Iterable[tuple[bytes, bool, int]],
        store: DatabaseStore | None = None,
        firsts: Iterable[tuple[bytes, bool, int]] = (),
    ) -> None:
        grouped: dict[_Literal, list[int]] = {}
        for first, given in ((False, patterns), (True, firsts)):
            for literal, nocase, value in given:
                if not literal:
                    raise ValueError("an empty literal cannot be searched for")
                cut = literal[:_MAX_LITERAL]
                grouped.setdefault((cut.lower() if nocase else cut, nocase, first), []).append(value)
        self.size = len(grouped)
        self.longest = max((len(literal) for literal, _, _ in grouped), default=0)
        self._values = [tuple(values) for values in grouped.values()]
        self._few: tuple[tuple[bytes, bool, bool, int], ...] = ()
        self._database: Any = None
        if len(grouped) < _FEW:
            self._few = tuple((*literal, index) for index, literal in enumerate(grouped))
            self.scan = self._scan_few
        else:
            self._database = _database(list(grouped), store)
            self.scan = _scanner(self._database.scan, self._values)

    def _scan_few(self, data: bytes) -> list[int]:
        found: list[int] = []
        lowered: bytes | None = None
        for literal, nocase, first, index in self._few:
            if nocase and lowered is None:
                lowered = data.lower()
            text = data if lowered is None or not nocase else lowered
            if text.startswith(literal) if first else literal in text:
                found += self._values[index]
        return found

    def memory(self) -> int:
        """Size of the database in bytes; 0 when there is none."""
        return int(self._database.size()) if self._database is not None else 0


def _scanner(search: Callable[..., None], values: list[tuple[int, ...]]) -> Callable[[bytes], list[int]]:
    """A function of its own: it is called for every packet and has nothing to look up."""

    def scan(data: bytes) -> list[int]:
        found: list[int] = []
        # By position: by keyword the call takes three times as long. 0: flags, of which there are none.
        search(data, _collect, 0, found.append)
        if not found:
            return found
        if len(found) == 1:
            return list(values[found[0]])
        return [value for index in found for value in values[index]]

    return scan


def _collect(pattern: int, _start: int, _end: int, _flags: int, append: Callable[[int], None]) -> None:
    append(pattern)


def _database(literals: list[_Literal], store: DatabaseStore | None) -> Any:
    if store is None:
        return _compile(literals)
    digest = hashlib.sha256()
    for literal, nocase, first in literals:
        digest.update(b"%d %d %d " % (len(literal), nocase, first) + literal)
    key = digest.digest()
    saved = store.get(key)
    if saved is not None:
        try:
            database = hyperscan.loadb(saved, hyperscan.HS_MODE_BLOCK)
            database.scratch = hyperscan.Scratch(database)
        except hyperscan.HyperscanError as problem:
            store.refuse(key, f"Hyperscan says {problem}")
        else:
            return database
    database = _compile(literals)
    store.put(key, hyperscan.dumpb(database))
    return database


def _compile(literals: list[_Literal]) -> Any:
    # Escaped expressions and not the pure literal compiler: the Python binding of that one ends a literal at a NUL.
    expressions = [b"^" * first + b"".join(b"\\x%02x" % byte for byte in literal) for literal, _, first in literals]
    flags = [hyperscan.HS_FLAG_SINGLEMATCH | (hyperscan.HS_FLAG_CASELESS if nocase else 0) for _, nocase, _ in literals]
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=expressions, ids=list(range(len(expressions))), elements=len(expressions), flags=flags)
    return database

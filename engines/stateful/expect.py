"""Flows that another flow has announced, as FTP announces the connection for a file.

Known to the process that saw the announcement. The kernel gives all packets between two hosts to the same queue, so
that is the one that sees the announced flow, too.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 30.0  # Suricata: app-layer-expectation's time-out


@dataclass(frozen=True, slots=True)
class Expected:
    """A connection to ``port`` of either host. ``command``: what it was announced for, in lower case; ``name`` of the
    file as the client wrote it. ``active``: the server of the announcing flow opens it; ``upload``: the client of that
    flow sends."""

    protocol: str
    port: int
    command: str
    name: bytes
    active: bool
    upload: bool


class Expectations:
    """At most ``limit`` of them; beyond it the oldest is forgotten, and its flow is told by its bytes as any other."""

    __slots__ = ("_limit", "_table")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table: dict[tuple[bytes, bytes, int], tuple[float, Expected]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def add(self, one: bytes, other: bytes, expected: Expected, now: float) -> None:
        """A flow between two (packed) addresses is to come."""
        key = (min(one, other), max(one, other), expected.port)
        self._table.pop(key, None)
        while len(self._table) >= self._limit:
            del self._table[next(iter(self._table))]
        self._table[key] = (now + SECONDS, expected)

    def take(self, client: bytes, server: bytes, port: int, now: float) -> Expected | None:
        """What was announced about a flow to ``port``, once."""
        found = self._table.pop((min(client, server), max(client, server), port), None)
        if found is None or found[0] < now:
            return None
        return found[1]

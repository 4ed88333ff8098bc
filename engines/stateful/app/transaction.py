"""What every transaction keeps, and the two states every parser shares."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

from engines.stateful.app import InsideParser, Transaction
from engines.stateful.expect import Expected
from engines.verdict import Direction

# A hostile peer can provoke events for ever; rules ask only whether one of that name is there.
MAX_EVENTS = 32


class BaseTransaction:
    """Identity, events and progress. See :class:`engines.stateful.app.Transaction`."""

    __slots__ = ("_complete", "_progress", "appeared", "events", "id")

    tells = True

    def __init__(self, tx_id: int) -> None:
        self.id = tx_id
        self.events: list[str] = []
        self._progress = [0, 0]
        self.appeared = 0
        self._complete = [False, False]

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        raise NotImplementedError

    def log_fields(self) -> dict[str, object]:
        return {}

    def progress(self, direction: Direction) -> int:
        return self._progress[direction]

    def has_begun(self, direction: Direction) -> bool:
        return self._progress[direction] > 0

    def end_of(self, name: str, direction: Direction, start: int) -> tuple[int, bytes] | None:
        return None

    def is_complete(self, direction: Direction) -> bool:
        return self._complete[direction]

    def add_event(self, event: str) -> None:
        """Note an anomaly once."""
        if event not in self.events and len(self.events) < MAX_EVENTS:
            self.events.append(event)

    def touch(self, direction: Direction) -> None:
        """Something new can be inspected."""
        self._progress[direction] += 1
        self.appeared += 1

    def grow(self, direction: Direction) -> None:
        """A body has more to inspect; every other buffer is as it was."""
        self._progress[direction] += 1

    def skip(self, direction: Direction) -> None:
        """This transaction has no such direction: rules are never judged on it (Suricata: skip inspect)."""
        self._complete[direction] = True

    def finish(self, direction: Direction) -> None:
        """This direction has said everything."""
        if not self._complete[direction]:
            self._complete[direction] = True
            self._progress[direction] += 1
            self.appeared += 1


class BaseParser:
    """The attributes of :class:`engines.stateful.app.AppParser` and how a parser leaves them."""

    name = ""

    def __init__(self) -> None:
        self.transactions: MutableSequence[Transaction] = []
        self.gave_up = False
        self.reason = ""
        self.finished = False
        self.tunnel = False
        self.carries = ""
        self.expects: list[Expected] = []
        self.inside: InsideParser | None = None
        self._next_id = 0

    def begin(self, client: bytes, server: bytes, expected: Expected | None) -> None:
        """Most protocols need not know who speaks."""

    def follow(self, outer: Transaction) -> None:
        """Most protocols begin anew inside another one."""

    def feed(self, direction: Direction, data: bytes) -> None:
        raise NotImplementedError

    def close(self, direction: Direction) -> None:
        """Most protocols need to know only what the bytes say."""

    def held(self, direction: Direction) -> int:
        return 0

    def unparsed(self, direction: Direction) -> bytes:
        return b""

    def give_up(self, reason: str) -> None:
        """No further parsing. The first reason stays."""
        if not self.gave_up:
            self.gave_up, self.reason = True, reason

    def take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

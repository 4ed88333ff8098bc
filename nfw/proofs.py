"""Which destinations have proven to be an exempted name's by their certificate, and who waits to hear it.

A flow proves it with a handshake of its own (:meth:`engines.tls.session.Session.proceed`), and that one counts for all:
those that come meanwhile wait for it, and those that come later need none for as long as it is remembered.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engines.tls.splice import Splice

KEPT_SECONDS = 300.0
"""A server can lose its name with its next certificate, but it has had one for days or months."""
MOST = 8192
"""Proven at the same time; the one not asked for longest goes, and has to prove it again."""

Key = tuple[bytes, int, str, int]  # packed address, port, name; number of those who vouch for it

_W = TypeVar("_W")


class Answer(enum.Enum):
    """To a flow that claims a name."""

    PROVEN = "proven"
    PROVE = "prove"  # find out, and tell
    WAIT = "wait"  # another one does


class Outcome(enum.Enum):
    """What came of finding out."""

    PROVEN = "proven"
    REFUTED = "refuted"
    OPEN = "open"  # the flow ended before


@dataclass(slots=True)
class Claim:
    """Of one flow. ``hello``: what its client has sent; ``why``: what speaks against it so far, a token; ``splice``:
    how the flow goes on if it is true, while a session finds out."""

    key: Key
    hello: bytes
    why: str
    splice: Splice | None = None


@dataclass(slots=True)
class _Open(Generic[_W]):
    prover: _W
    waiting: list[_W] = field(default_factory=list)


class Proofs(Generic[_W]):
    """``_W`` is what waits, a flow. Whoever is told to prove says what came of it, in every case: :meth:`settle`."""

    def __init__(self) -> None:
        self._proven: OrderedDict[Key, float] = OrderedDict()  # until when
        self._open: dict[Key, _Open[_W]] = {}  # as many as there are flows

    def __len__(self) -> int:
        return len(self._proven)

    def ask(self, key: Key, waiting: _W, now: float) -> Answer:
        """Is it proven? With WAIT, a later :meth:`settle` answers ``waiting``."""
        until = self._proven.get(key)
        if until is not None:
            if now < until:
                self._proven.move_to_end(key)
                return Answer.PROVEN
            del self._proven[key]
        open_ = self._open.get(key)
        if open_ is None:
            self._open[key] = _Open(waiting)
            return Answer.PROVE
        open_.waiting.append(waiting)
        return Answer.WAIT

    def settle(self, key: Key, who: _W, outcome: Outcome, now: float) -> list[_W]:
        """What came of it for ``who``. Those to tell, who may have ended since; nobody if another one was to prove."""
        if outcome is Outcome.PROVEN:
            self._proven[key] = now + KEPT_SECONDS
            self._proven.move_to_end(key)
            if len(self._proven) > MOST:
                self._proven.popitem(last=False)
        open_ = self._open.get(key)
        if open_ is None or open_.prover is not who:
            return []
        del self._open[key]
        return open_.waiting

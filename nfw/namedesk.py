"""What a TLS worker asks the resolver: whether a flow goes to an address of the name it claims.

Every question ends: with the resolver's answer, or by itself when that has not come in time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from nfw import resolver

MAX_QUESTIONS = 4096  # open at the same time; more are answered "busy"
PATIENCE = resolver.BUDGET + 0.5

_W = TypeVar("_W")


class NameDesk(Generic[_W]):
    """``_W`` is what waits for an answer, a flow."""

    def __init__(self, side: socket.socket) -> None:
        self._side = side
        self._open: OrderedDict[int, tuple[float, _W]] = OrderedDict()  # by number: until when, who
        self._next = time.monotonic_ns()  # answers to a predecessor's questions are recognised by their number

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, name: str, address: bytes, waiting: _W, now: float) -> str | None:
        """None: :meth:`answers` or :meth:`overdue` will name ``waiting``. Otherwise why there will be no answer."""
        if len(self._open) >= MAX_QUESTIONS:
            return "busy"
        self._next += 1
        try:
            self._side.send(resolver.encode_question(self._next, name, address))
        except OSError:
            return "busy"
        self._open[self._next] = (now + PATIENCE, waiting)
        return None

    def answers(self) -> Iterator[tuple[_W, str]]:
        """Who waited, and "" or why the address is not known to be the name's. Raises EOFError when the leader is
        gone."""
        while True:
            try:
                data = self._side.recv(resolver.MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise EOFError
            with contextlib.suppress(ValueError, KeyError, TypeError):
                number, why = resolver.decode_answer(data)
                asked = self._open.pop(number, None)
                if asked is not None:
                    yield asked[1], why

    def overdue(self, now: float) -> list[_W]:
        """Those who have waited long enough."""
        late = []
        while self._open:
            number, (until, waiting) = next(iter(self._open.items()))
            if until > now:
                break
            del self._open[number]
            late.append(waiting)
        return late

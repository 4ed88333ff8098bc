"""The body of an answer to DNS over HTTPS (RFC 8484, or in JSON), without keys for Encrypted ClientHello and as long as
it was.

It comes in pieces with the protocol's own bytes between them, the sizes of chunks or the heads of frames, which stay
where they are. A body in a content coding cannot be read without its length changing; it is overwritten with zeros,
and clients, who cannot read it then either, ask elsewhere. What may be an answer, for all that its head says, is one if
it begins like one (:mod:`engines.tls.dnsguess`); in a content coding nobody can tell, and it is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from engines.tls.dnsguess import begins_as_answer, begins_as_json
from engines.tls.dnsjson import JsonMask
from engines.tls.ech import MessageMask
from engines.tls.offers import CODED, JSON, MAYBE_JSON, TOLD_MOST, TYPED, WIRE

WAITING_MOST = 32768
"""Bytes, framing included, that wait for the rest of a record, or of an answer in JSON: half of the window HTTP/2
begins with. What is longer is not waited for (:meth:`engines.tls.ech.MessageMask.end`, :class:`JsonMask`)."""
BEGIN_MOST = 300
"""Bytes by which a body is known to be an answer, or none."""


class Content(Protocol):
    """What a body says, in as many bytes as come."""

    @property
    def held(self) -> int:
        """Bytes held back."""

    def feed(self, data: bytes) -> bytes:
        """What may go on now."""

    def end(self) -> bytes:
        """Nobody can wait any longer, or nothing more comes: what was held back."""


class _Coded:
    """Zeros."""

    __slots__ = ()
    held = 0

    def feed(self, data: bytes) -> bytes:
        return bytes(len(data))

    def end(self) -> bytes:
        return b""


class _Guess:
    """``answer``: it is one; None as long as nobody knows."""

    __slots__ = ("_begin", "_begins", "_content", "answer")

    def __init__(self, begins: Callable[[bytes], bool | None], content: Content) -> None:
        self._begins = begins
        self._content = content
        self._begin = b""
        self.answer: bool | None = None

    @property
    def held(self) -> int:
        return len(self._begin) + self._content.held

    def feed(self, data: bytes) -> bytes:
        if self.answer is None:
            data = self._begin + data
            self.answer = self._begins(data)
            self._begin = data if self.answer is None else b""
            if self.answer is None:
                return b""
        return self._content.feed(data) if self.answer else data

    def end(self) -> bytes:
        begin, self._begin = self._begin, b""
        if self.answer is None:
            self.answer = False
        return begin + self._content.end()


def _begins(told: int) -> Callable[[bytes], bool | None] | None:
    if told & (WIRE | JSON | CODED):
        return None
    if told & MAYBE_JSON:
        return begins_as_json
    return None if told & TYPED else begins_as_answer


BEGINS = [_begins(told) for told in range(TOLD_MOST + 1)]
"""For what a head tells: how it is known whether the body is an answer; None where the head told that."""


def answer_body(told: int) -> DohBody:
    """The body behind a head that tells this (:data:`engines.tls.offers.WIRE` and so on), of an answer or what may
    be one."""
    content = MessageMask() if told & WIRE or not told & TYPED else JsonMask()
    begins = BEGINS[told]
    return DohBody(_Guess(begins, content) if begins is not None else _Coded() if told & CODED else content)


class DohBody:
    __slots__ = ("_message", "_order", "_ready", "_waiting")

    def __init__(self, message: Content) -> None:
        self._message = message
        self._order: deque[int | bytes] = deque()  # bytes of content, or framing
        self._ready = bytearray()  # content that may go on
        self._waiting = 0

    @property
    def is_answer(self) -> bool | None:
        """None as long as nobody knows."""
        return self._message.answer if isinstance(self._message, _Guess) else True

    @property
    def waiting(self) -> int:
        """Bytes held back."""
        return self._waiting

    def content(self, data: bytes) -> None:
        if data:
            self._order.append(len(data))
            self._waiting += len(data)
            self._ready += self._message.feed(data)
            self._bound()

    def framing(self, data: bytes) -> None:
        self._order.append(data)
        self._waiting += len(data)
        self._bound()

    def _bound(self) -> None:
        message = self._message
        if message.held and self._waiting - len(self._ready) > WAITING_MOST:
            self._ready += message.end()
            if not isinstance(message, JsonMask) and (not isinstance(message, MessageMask) or message.lost):
                self._message = _Coded()  # hardly a byte between the framing: there is no answer

    @property
    def whole(self) -> bool:
        """Nothing that has come waits for what has not."""
        return not self._message.held

    def taken(self) -> bytes:
        """What may go on, in order."""
        out, used = bytearray(), 0
        while self._order:
            first = self._order[0]
            if isinstance(first, int):
                moved = min(first, len(self._ready) - used)
                out += self._ready[used : used + moved]
                used += moved
                if moved < first:
                    self._order[0] = first - moved
                    break
            else:
                out += first
            self._order.popleft()
        del self._ready[:used]
        self._waiting -= len(out)
        return bytes(out)

    def end(self) -> bytes:
        """Nothing more comes: what was held back."""
        self._ready += self._message.end()
        return self.taken()

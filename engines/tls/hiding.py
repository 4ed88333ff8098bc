"""What of the servers' plaintext is changed on its way to clients, so that they come by ways that can be inspected."""

from __future__ import annotations

from typing import Protocol

from engines.tls.altsvc import AltSvcMask
from engines.tls.dnsguess import begins_as_question
from engines.tls.echstream import AnswerStream
from engines.verdict import Direction

_DOT_PORT, _DOT = 853, "dot"  # RFC 7858


class Mask(Protocol):
    """Between inspection and encryption. Feed both directions in order."""

    @property
    def refused(self) -> str:
        """Why the connection must end, in a word: nothing more goes on. "" while it may."""

    def feed(self, direction: Direction, data: bytes) -> bytes:
        """What may go on now, of as many bytes as came, or fewer that follow later."""

    def rest(self, direction: Direction) -> bytes:
        """That direction has ended: what was held back."""


class _AnswerMask:
    """DNS over TLS."""

    __slots__ = ("_answers",)
    refused = ""  # what is no DNS goes on

    def __init__(self) -> None:
        self._answers = AnswerStream()

    def feed(self, direction: Direction, data: bytes) -> bytes:
        return data if direction is Direction.TO_SERVER else self._answers.feed(data)

    def rest(self, direction: Direction) -> bytes:
        return b"" if direction is Direction.TO_SERVER else self._answers.rest()


class _UnknownMask:
    """Nobody said which protocol it is. DNS over TLS begins with a question; anything else is HTTP, or nothing to hide
    is in it. What clients say goes on before that is known."""

    __slots__ = ("_begin", "_mask", "_offers")

    def __init__(self, offers: bool) -> None:
        self._offers = offers
        self._begin = b""
        self._mask: Mask | None = None

    @property
    def refused(self) -> str:
        return self._mask.refused if self._mask is not None else ""

    def feed(self, direction: Direction, data: bytes) -> bytes:
        if self._mask is not None:
            return self._mask.feed(direction, data)
        if direction is Direction.TO_CLIENT:
            return self._decided(False).feed(direction, data)
        self._begin += data
        if (question := begins_as_question(self._begin)) is not None:
            self._decided(question)
        return data

    def rest(self, direction: Direction) -> bytes:
        return self._mask.rest(direction) if self._mask is not None else b""

    def _decided(self, dns: bool) -> Mask:
        self._mask = _AnswerMask() if dns else AltSvcMask("", offers=self._offers, keys=True)
        self._mask.feed(Direction.TO_SERVER, self._begin)
        self._begin = b""
        return self._mask


def masking(alpn: str, port: int, *, offers: bool, keys: bool) -> Mask | None:
    """Of a session with the protocol ``alpn`` to ``port``: hides offers of HTTP/3, and keys for Encrypted ClientHello
    in DNS answers. None: there is nothing to hide."""
    if keys and (alpn == _DOT or (port == _DOT_PORT and not alpn)):
        return _AnswerMask()
    if keys and not alpn:
        return _UnknownMask(offers)
    if offers or keys:
        return AltSvcMask(alpn, offers=offers, keys=keys)
    return None

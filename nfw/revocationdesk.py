"""What a TLS worker knows of revocation, and the questions the fetcher has yet to answer.

As with leafs (:mod:`nfw.leafs`), a question may be lost with the fetcher or for want of room in the socket, so it is
put once more while somebody waits. The session itself ends the waiting.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engines.tls.revocation import Finding, Question, sha256_of
from nfw import revocationfetcher
from nfw.histogram import Histogram

MAX_QUESTIONS = 4096
MAX_FINDINGS = 8192
MAX_ISSUERS = 512
ASK_AGAIN_SECONDS = 1.0
WAIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)  # seconds; after two the fetcher says UNKNOWN

_W = TypeVar("_W")
_Key = tuple[bytes, bytes]


@dataclass(slots=True)
class _Open(Generic[_W]):
    key: _Key
    message: bytes
    again: float
    waiting: list[tuple[_W, int, float]] = field(default_factory=list)  # who, the depth asked about, since when


class RevocationDesk(Generic[_W]):
    """``_W`` is what waits for an answer, a flow."""

    def __init__(self, fetcher: socket.socket) -> None:
        self._fetcher = fetcher
        self._findings: OrderedDict[_Key, Finding] = OrderedDict()
        self._issuers: OrderedDict[_Key, tuple[bytes, ...]] = OrderedDict()
        self._open: OrderedDict[int, _Open[_W]] = OrderedDict()
        self._numbers: dict[_Key, int] = {}
        self._next = time.monotonic_ns()
        self.hits = self.misses = 0  # of the findings kept here
        self.waits = Histogram(WAIT_BUCKETS)  # of sessions, for the answer to one question about revocation

    def __len__(self) -> int:
        return len(self._findings)

    @property
    def open_questions(self) -> int:
        return len(self._open)

    def ask(self, question: Question, waiting: _W, now: float, unix_time: float) -> Finding | None:
        """The finding if it is there; otherwise None, and :meth:`answers` will name ``waiting``."""
        key = sha256_of(question.certificate), sha256_of(question.issuer)
        finding = self._findings.get(key)
        if finding is not None and finding.until > unix_time:
            self._findings.move_to_end(key)
            self.hits += 1
            return finding
        self.misses += 1
        self._put(
            key,
            (waiting, question.depth, now),
            now,
            lambda number: revocationfetcher.encode_question(
                number,
                question.certificate.public_bytes(serialization.Encoding.DER),
                question.issuer.public_bytes(serialization.Encoding.DER),
            ),
        )
        return None

    def ask_issuers(self, certificate: x509.Certificate, waiting: _W, now: float) -> tuple[bytes, ...] | None:
        """Certificates above ``certificate`` if they are there; otherwise None, and :meth:`answers` names ``waiting``.

        They are kept for good, as what verifies them is their signature and dates."""
        key = sha256_of(certificate), b""
        known = self._issuers.get(key)
        if known is not None:
            self._issuers.move_to_end(key)
            return known
        der = certificate.public_bytes(serialization.Encoding.DER)
        self._put(key, (waiting, 0, now), now, lambda number: revocationfetcher.encode_issuers_question(number, der))
        return None

    def _put(self, key: _Key, waiting: tuple[_W, int, float], now: float, encode: Callable[[int], bytes]) -> None:
        number = self._numbers.get(key)
        if number is None:
            self._next += 1
            number = self._numbers[key] = self._next
            message = encode(number)
            self._open[number] = _Open(key, message, now + ASK_AGAIN_SECONDS)
            self._send(message)
            if len(self._open) > MAX_QUESTIONS:
                _, oldest = self._open.popitem(last=False)
                self._numbers.pop(oldest.key, None)
        self._open[number].waiting.append(waiting)

    def ask_again(self, now: float, still_waits: Callable[[_W], bool]) -> None:
        """Put overdue questions once more, and forget those nobody waits for; ``still_waits(waiting)`` tells."""
        for number, question in list(self._open.items()):
            if now < question.again:
                continue
            question.waiting = [one for one in question.waiting if still_waits(one[0])]
            if not question.waiting:
                del self._open[number]
                del self._numbers[question.key]
                continue
            question.again = now + ASK_AGAIN_SECONDS
            self._send(question.message)

    def answers(self, now: float) -> Iterator[tuple[_W, int, revocationfetcher.Answer]]:
        """Who waited, the depth asked about, and what was found: a finding, or issuers.

        Raises EOFError when the leader is gone.
        """
        while True:
            try:
                data = self._fetcher.recv(revocationfetcher.MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise EOFError
            try:
                number, finding = revocationfetcher.decode_answer(data)
            except (ValueError, KeyError, TypeError):
                continue
            question = self._open.pop(number, None)
            if question is None:
                continue
            del self._numbers[question.key]
            if isinstance(finding, tuple):
                if finding:
                    self._issuers[question.key] = finding
                    if len(self._issuers) > MAX_ISSUERS:
                        self._issuers.popitem(last=False)
            elif finding.settled:
                self._findings[question.key] = finding
                if len(self._findings) > MAX_FINDINGS:
                    self._findings.popitem(last=False)
            for waiting, depth, since in question.waiting:
                if not isinstance(finding, tuple):
                    self.waits.observe(now - since)
                yield waiting, depth, finding

    def stats(self) -> dict[str, Any]:
        """For ``nfw status``."""
        return {"hits": self.hits, "misses": self.misses, "waits": self.waits.values()}

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # full or gone: asked again soon
            self._fetcher.send(message)

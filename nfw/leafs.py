"""What a TLS worker knows of leafs: its cache, its own leaf keys, and the questions the key holder has yet to answer.

The key holder may be killed with a question in its hands, and the socket to it may be full; so a question without an
answer is put again, under the same number, until nobody waits for it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from engines.tls.leaf import LeafCache, LeafKey, LeafRequest, server_context
from nfw import keyholder

MAX_QUESTIONS = 4096  # open at the same time; the oldest is forgotten, and whoever waits for it runs into a timeout
KEY_SECONDS = 86400  # then new leaf keys are made
ASK_AGAIN_SECONDS = 0.5  # doubled every time: a key holder with much to do must not get even more

_W = TypeVar("_W")


@dataclass(slots=True)
class _Question(Generic[_W]):
    key: LeafKey
    request: LeafRequest
    again: float  # when to put it once more
    pause: float
    private: Any  # the leaf key it is for
    waiting: list[_W] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer(Generic[_W]):
    """For everybody in ``waiting``: a context, or why there is none."""

    waiting: list[_W]
    context: SSL.Context | None
    error: str


class LeafDesk(Generic[_W]):
    """``_W`` is what waits for an answer, a flow. ``chain``: certificates (DER) shown behind every leaf.
    ``prepare`` has every new context before it is used.

    Leaf keys are this process's own, and a day old at most when a leaf is made for them; sessions keep theirs.
    """

    def __init__(
        self,
        holder: socket.socket,
        chain: Sequence[bytes] = (),
        prepare: Callable[[SSL.Context], None] = lambda _: None,
    ) -> None:
        self._holder = holder
        self._prepare = prepare
        self._chain = tuple(chain)
        self._keys: dict[str, Any] = {"ecdsa": ec.generate_private_key(ec.SECP256R1())}
        self._since: float | None = None  # Unix time of the first leaf for these keys
        self.cache: LeafCache[SSL.Context] = LeafCache()
        self._questions: OrderedDict[int, _Question[_W]] = OrderedDict()
        self._numbers: dict[LeafKey, int] = {}
        self._next = time.monotonic_ns()  # answers to a predecessor's questions are recognised by their number

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def open_questions(self) -> int:
        return len(self._questions)

    def ask(self, key: LeafKey, request: LeafRequest, waiting: _W, now: float, unix_time: float) -> SSL.Context | None:
        """The context if it is there; otherwise None, and an :class:`Answer` will name ``waiting``."""
        self._renew_keys(unix_time)
        context = self.cache.get(key, unix_time)
        if context is not None:
            return context
        number = self._numbers.get(key)
        if number is None:
            self._next += 1
            number = self._numbers[key] = self._next
            private = self._key(request.key_type)
            self._questions[number] = _Question(key, request, now + ASK_AGAIN_SECONDS, ASK_AGAIN_SECONDS, private)
            self._send(number)
            if len(self._questions) > MAX_QUESTIONS:
                _, oldest = self._questions.popitem(last=False)
                self._numbers.pop(oldest.key, None)
        self._questions[number].waiting.append(waiting)
        return None

    def ask_again(self, now: float, still_waits: Callable[[_W], bool]) -> None:
        """Put overdue questions once more, and forget those nobody waits for; ``still_waits(waiting)`` tells."""
        for number, question in list(self._questions.items()):
            if now < question.again:
                continue
            question.waiting = [one for one in question.waiting if still_waits(one)]
            if not question.waiting:
                del self._questions[number]
                del self._numbers[question.key]
                continue
            question.pause *= 2
            question.again = now + question.pause
            self._send(number)

    def answers(self) -> Iterator[Answer[_W]]:
        """What the key holder has said. Raises EOFError when the leader, who keeps the other end open, is gone."""
        while True:
            try:
                data = self._holder.recv(keyholder.MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise EOFError
            reply = keyholder.decode_reply(data)
            question = self._questions.pop(int(reply.get("id", -1)), None)
            if question is None:
                continue  # asked by a predecessor of this process, or answered twice
            del self._numbers[question.key]
            context = None
            error = str(reply.get("error", "no leaf"))
            if "leaf" in reply:
                try:
                    context = server_context([reply["leaf"], *self._chain], question.private)
                    self._prepare(context)
                    if question.private is self._keys.get(question.key.key_type):
                        self.cache.put(question.key, context, question.request.not_after)
                except (ValueError, TypeError, SSL.Error) as problem:
                    error = f"unusable leaf: {problem}"
            yield Answer(question.waiting, context, error)

    def _send(self, number: int) -> None:
        question = self._questions[number]
        public = question.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with contextlib.suppress(OSError):  # full or gone: asked again soon
            self._holder.send(keyholder.encode_request(number, question.request, public))

    def _key(self, kind: str) -> Any:
        if kind not in self._keys:
            self._keys[kind] = rsa.generate_private_key(65537, 2048)
        return self._keys[kind]

    def _renew_keys(self, unix_time: float) -> None:
        if self._since is None:
            self._since = unix_time
        elif unix_time - self._since >= KEY_SECONDS:
            self._since = unix_time
            self._keys = {"ecdsa": ec.generate_private_key(ec.SECP256R1())}
            self.cache.clear()

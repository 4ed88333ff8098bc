"""Application protocols: from in-order bytes to transactions with named buffers.

A parser is fed the bytes of both directions in order and never raises; what it cannot understand becomes an event on
the transaction and, at worst, ``gave_up``. The inspector reads ``transactions`` and asks each for sticky buffers.

::

    in-order bytes ──detect──► name ──registry──► AppParser ──► Transaction.buffer("http.uri"), ...
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Protocol

from engines.stateful.expect import Expected
from engines.verdict import Direction


class Transaction(Protocol):
    """One request/response pair (HTTP), one message (DNS) or one connection (TLS, SSH)."""

    id: int  # counts from 0 within its flow
    events: list[str]  # app-layer-event names without the protocol prefix
    tells: (
        bool  # something the peers say to each other; False: about the connection only, which nobody logs or waits for
    )
    appeared: int  # as ``progress`` of both sides together, but unchanged when only bodies have grown

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        """Every instance of a sticky buffer that is there so far (empty: not there yet, or never). A buffer appears
        only when it is complete, except bodies, which grow while ``is_complete`` of their direction is False.

        ``direction`` chooses for buffers that both sides have (``http.header``, ``http.cookie``, ``tls.version`` ...);
        None gives the request's instances followed by the response's. An unknown name is empty, not an error."""

    def progress(self, direction: Direction) -> int:
        """Grows whenever buffers of that direction may have appeared or grown; equal means: nothing new to inspect."""

    def has_begun(self, direction: Direction) -> bool:
        """The first thing that direction says is complete: a buffer of it that is not there now never will be."""

    def end_of(self, name: str, direction: Direction, start: int) -> tuple[int, bytes] | None:
        """(size so far, bytes from ``start`` on) of a body with one instance, so that not all of it has to be put
        together to look at its end. None: see ``buffer``."""

    def is_complete(self, direction: Direction) -> bool:
        """Nothing more of this direction will come."""

    def log_fields(self) -> dict[str, object]:
        """The protocol's object of an EVE record (``http``, ``dns``, ``tls`` ...), JSON types only."""


class AppParser(Protocol):
    """Fed by :class:`engines.stateful.inspector.Inspector` once the protocol is known."""

    name: str  # http, http2, dns, tls, ssh ...
    transactions: MutableSequence[Transaction]  # the inspector removes the ones it is done with
    gave_up: bool  # no more parsing is possible; stream rules still see the bytes
    reason: str  # why it gave up: the name of the last event; "" when it did not
    finished: (
        bool  # nothing more to parse, as meant by the protocol: an SSH banner was read, TLS is encrypted from here
    )
    tunnel: bool  # this protocol ended inside the connection (CONNECT, Upgrade); the next one starts at ``unparsed``
    carries: str  # the name of that next one where both sides have said it, otherwise its bytes have to tell

    expects: list[Expected]  # flows it announced; the inspector takes them away
    inside: InsideParser | None  # a protocol on streams within it, if it can carry one

    def begin(self, client: bytes, server: bytes, expected: Expected | None) -> None:
        """Called once before anything is fed: the (packed) addresses of the flow, and what it was announced as."""

    def follow(self, outer: Transaction) -> None:
        """Called before anything is fed when the protocol began inside another one: what led to it."""

    def feed(self, direction: Direction, data: bytes) -> None: ...

    def close(self, direction: Direction) -> None:
        """The direction ended (FIN, close_notify, or truncation)."""

    def held(self, direction: Direction) -> int:
        """How many of the bytes fed last, counted back from the end over as many feeds as it takes, belong to a unit
        whose rules cannot be judged yet (an incomplete request head, ClientHello, DNS-over-TCP message). The inspector
        does not let them out before their verdict. Zero after ``gave_up``: what was held then is the owner's policy."""

    def unparsed(self, direction: Direction) -> bytes:
        """The bytes already fed that belong to what the tunnel carries. Only after ``tunnel``."""


class InsideParser(AppParser, Protocol):
    """Of a protocol that runs on streams of another one, whose parser feeds it: the transactions of all streams."""

    wanted: bool  # set before anything is fed: somebody takes the transactions away
    begun: bool  # there is, or was, such a stream

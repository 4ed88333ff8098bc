"""Application protocols: from in-order bytes to transactions with named buffers.

A parser is fed the bytes of both directions in order and never raises; what it cannot understand becomes an event on
the transaction and, at worst, ``gave_up``. The inspector reads ``transactions`` and asks each for sticky buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engines.verdict import Direction


class Transaction(Protocol):
    """One request/response pair (HTTP), one message (DNS) or one connection (TLS, SSH)."""

    id: int
    events: list[str]  # app-layer-event names without the protocol prefix

    def buffer(self, name: str) -> Sequence[bytes]:
        """Every instance of a sticky buffer that is there so far (empty: not there yet, or never). A buffer appears
        only when it is complete, except bodies, which grow while ``is_complete`` of their direction is False."""

    def progress(self, direction: Direction) -> int:
        """Grows whenever buffers of that direction may have appeared or grown; equal means: nothing new to inspect."""

    def is_complete(self, direction: Direction) -> bool:
        """Nothing more of this direction will come."""


class AppParser(Protocol):
    """Fed by :class:`engines.stateful.inspector.Inspector` once the protocol is known."""

    name: str  # http, http2, dns, tls, ssh ...
    transactions: list[Transaction]  # the inspector removes the ones it is done with
    gave_up: bool  # no more parsing is possible; stream rules still see the bytes

    def feed(self, direction: Direction, data: bytes) -> None: ...

    def close(self, direction: Direction) -> None:
        """The direction ended (FIN, close_notify, or truncation)."""

    def held(self, direction: Direction) -> int:
        """How many of the bytes fed last belong to a unit whose rules cannot be judged yet (an incomplete request
        head, ClientHello, DNS-over-TCP message). The inspector does not let them out before their verdict."""

"""What may spare the next connection to the same server its handshake: TLS 1.3 sessions, each with the verdict on the
server that was reached in the handshake that began it.

A resumed handshake shows no certificate; that the server still knows the secret of the session is the proof that it is
the one that was verified. So whoever offers a session must expect the same server, and the verdict goes with it. A
session is taken out to be offered and offered once (RFC 8446 C.4: who sees it twice knows it again). Sessions of TLS
1.2 are not kept: their traffic is as secret as the key of the server's tickets, which may live for months.

Sources: RFC 8446 2.2, 4.2.11, 4.6.1 and C.4; SSL_get_session(3), SSL_set_session(3).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.tls.verify import ServerChain

MAX_AGE = 3600.0
"""Seconds from the verdict on. RFC 8446 4.6.1 allows seven days; the certificate may be replaced meanwhile."""
KEPT = 1024
"""Sessions, of all servers."""
LARGEST = 12_288
"""Bytes of one as DER: a ticket (200 to 2,000 bytes as a rule) and the server's own certificate."""
_EACH = 2  # of one server: browsers open several connections at once


@dataclass(frozen=True, slots=True)
class Identity:
    """Who offers a session, and whom it expects: a session is never offered where one of these is another.

    ``client`` and ``server`` are addresses; ``name`` is the one that was verified, or the server's address.
    """

    client: str
    server: str
    port: int
    name: str


@dataclass(frozen=True, slots=True)
class Resumable:
    """``verdict`` was reached at ``unix_time``, in a full handshake. ``group`` is the one the server took last."""

    session: Any  # of :func:`engines.tls.openssl.session_to_keep`
    verdict: ServerChain
    unix_time: float
    group: str = ""


class Resumption:
    """Sessions of one verifier, so of one generation: another policy begins with none."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._size = 0
        self._sessions: OrderedDict[Identity, list[Resumable]] = OrderedDict()
        self._shunned: OrderedDict[Identity, float] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    def put(self, identity: Identity, resumable: Resumable) -> None:
        """The oldest of the identity, or of the one that was not heard of for the longest time, makes room."""
        if abs(resumable.unix_time - self._shunned.get(identity, math.inf)) <= MAX_AGE:
            return  # also of a connection that began before
        waiting = self._sessions.setdefault(identity, [])
        self._sessions.move_to_end(identity)
        waiting.append(resumable)
        self._size += 1
        if len(waiting) > _EACH:
            del waiting[0]
            self._size -= 1
        while self._size > self._kept:
            self._size -= len(self._sessions.popitem(last=False)[1])

    def take(self, identity: Identity, unix_time: float) -> Resumable | None:
        """The newest, unless it or its verdict is too old; it is not kept any longer."""
        waiting = self._sessions.get(identity)
        if waiting is None:
            return None
        found = waiting.pop()
        self._size -= 1
        verdict = found.verdict
        if not (0 <= unix_time - found.unix_time <= MAX_AGE and verdict.not_before <= unix_time <= verdict.not_after):
            self.forget(identity)  # the others are older
            return None
        if not waiting:
            del self._sessions[identity]
        return found

    def forget(self, identity: Identity) -> None:
        self._size -= len(self._sessions.pop(identity, ()))

    def shun(self, identity: Identity, unix_time: float) -> None:
        """It does not do to offer this server a session; nothing is kept for it as long as a session would be."""
        self.forget(identity)
        self._shunned[identity] = unix_time
        self._shunned.move_to_end(identity)
        if len(self._shunned) > self._kept:
            self._shunned.popitem(last=False)

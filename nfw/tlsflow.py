"""One connection that TLS inspection has taken over, as its worker keeps it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from engines.stateful.inspector import FlowFacts, Inspector
from engines.tls import events as tls
from engines.tls.hiding import Mask
from engines.tls.session import Session, State
from engines.tls.splice import Splice
from engines.verdict import Decision
from nfw.proofs import Claim
from nfw.sockets import Side, packed

if TYPE_CHECKING:
    from nfw.tlsworker import Inbound


class Flow:
    """One intercepted connection."""

    __slots__ = (
        "alerted",
        "blocked",
        "bytes",
        "claim",
        "client",
        "connecting",
        "cut",
        "decision",
        "destination",
        "facts",
        "finished_at",
        "held_since",
        "inbound",
        "inspector",
        "key",
        "last",
        "logged",
        "mask",
        "pending",
        "pending_end",
        "recheck_at",
        "recorded",
        "scope",
        "session",
        "source",
        "started",
        "told",
        "upstream",
        "would_be",
    )

    def __init__(
        self,
        client: Side,
        facts: FlowFacts,
        source: tuple[Any, ...],
        destination: tuple[Any, ...],
        session: Session,
        now: float,
    ) -> None:
        self.key = facts.id
        self.client = client
        self.upstream: Side | None = None
        self.source = source
        self.destination = destination
        self.session: Session | Splice = session
        self.inspector: Inspector | None = None
        self.facts = facts
        self.pending = [bytearray(), bytearray()]  # plaintext the inspector has seen and not released
        self.pending_end = [False, False]
        self.bytes = [0, 0]
        self.held_since = 0.0
        self.finished_at = 0.0
        self.started = now
        self.last = now  # something was read or sent; of a finished session: something more was delivered
        self.recheck_at = 0.0  # when revocation is looked at again
        self.connecting = False
        self.cut = False  # a peer reset it: what came before is delivered, then the reset is passed on
        self.decision: Decision | None = None
        self.alerted = False
        self.logged = False
        self.would_be: tls.PassOn | None = None  # mode monitor: what the policy would have ended it for
        self.blocked: Decision | None = None  # mode monitor: what rules would have ended it
        self.told: set[str] = set()  # mode monitor: reasons recorded without being acted on
        self.scope: int | None = None  # the first that covers it
        self.inbound: Inbound | None = None  # to a server of one's own
        self.recorded = False  # its keys and plaintext are written to files, as the policy asks
        self.claim: Claim | None = None  # to an exempted name, which its server has yet to prove
        self.mask: Mask | None = None  # between inspection and encryption

    @property
    def family(self) -> int:
        """Of its addresses."""
        return socket.AF_INET if len(self.facts.server) == 4 else socket.AF_INET6

    @property
    def decrypted(self) -> bool:
        return isinstance(self.session, Session)

    @property
    def opening(self) -> bool:
        """Somebody waits for it to begin."""
        return not self.finished_at and self.session.state is not State.RELAY

    @property
    def stage(self) -> str:
        """How far it has got, in a word."""
        if isinstance(self.session, Session):
            return self.session.state.value
        return "bypassed" if self.claim is None else "claiming"

    def sides(self) -> list[Side]:
        """The sockets that are open."""
        return [side for side in (self.client, self.upstream) if side is not None and side.open]


def flow_facts(key: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> FlowFacts:
    """From the two ends of a socket, as Python names them."""
    return FlowFacts(key, socket.IPPROTO_TCP, packed(source[0]), packed(destination[0]), source[1], destination[1])

"""What an inspector is given and what it answers: values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.stateful.signature import Signature
from engines.verdict import ACCEPT, Decision, Direction

BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What is constant about a flow. Addresses are packed, ``protocol`` is the IP protocol number."""

    id: int
    protocol: int
    client: bytes
    server: bytes
    client_port: int
    server_port: int


@dataclass(slots=True)
class Segment:
    """One packet, or one piece of plaintext (``packet`` None).

    ``payload``: of the packet. ``stream``: bytes of this direction that are in order for the first time (for UDP the
    payload). ``established``: the handshake was finished before this packet. ``now``: seconds. Not frozen, because one
    is made for every packet and freezing doubles that cost; nobody changes it.

    For a bystander (``watching``) the bytes go to :meth:`Inspector.absorb` when they are final, and ``stream`` is what
    raw stream rules look at with this packet, from stream offset ``offset`` on; ``added``: the payload is part of the
    stream, so stream rules will see it there.
    """

    direction: Direction
    established: bool
    payload: bytes
    stream: bytes
    packet: Any
    now: float
    offset: int = 0
    added: bool = True
    events: frozenset[str] = frozenset()  # of decoding, as the decode-event keyword names them
    vlans: tuple[int, ...] | None = None  # outermost first; None: not seen
    flow: Any = None  # engines.flow.Flow, whose counts have this packet in them; None: it belongs to none

    @property
    def octets(self) -> int:
        """Length of the packet from the IP header on, of a piece of plaintext its own."""
        return len(self.stream) if self.packet is None else int(self.packet.end)


@dataclass(frozen=True, slots=True)
class Alert:
    """A match to log. ``action`` is ``allowed`` or ``blocked``, as the rule says; ``tx`` holds the EVE object of the
    transaction that matched, under its protocol's name."""

    rule: Signature
    action: str
    direction: Direction
    app_proto: str
    tx: dict[str, object]
    now: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """``decision`` is for this packet, and for the flow if its scope says so."""

    decision: Decision = ACCEPT
    alerts: Sequence[Alert] = field(default=())

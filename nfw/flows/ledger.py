"""What was decided about flows that are the kernel's since: its tracking knows how much they carry, not why.

A flow leaves the flow table when its fate is settled. Its record here is never looked at by a packet, only by whoever
lists flows; those that have ended meanwhile are told apart by the kernel's own list. Bounded: beyond ``bound`` the
oldest is forgotten, which then is listed without name, rule and what it speaks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from engines.verdict import RuleRef

LEDGER_FLOWS = 65_536  # of a worker, about 25 MB


class Settled(NamedTuple):
    """A flow as it was when it left the table; ``id``: its number there, 0 if it never was in it.

    ``rule`` and ``reason`` decided, ``refused`` None if it may go on, else ``drop`` or ``reject``. ``created``: by the
    worker's clock.
    """

    key: bytes
    protocol: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    created: float
    packets: tuple[int, int]
    octets: tuple[int, int]
    refused: str | None
    reason: str
    rule: RuleRef | None
    app_proto: str
    name: str
    id: int = 0


class Ledger:
    """By protocol and key of a packet to the server."""

    def __init__(self, bound: int = LEDGER_FLOWS) -> None:
        self.bound = bound
        self._flows: OrderedDict[tuple[int, bytes], Settled] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: Settled) -> None:
        """A later flow with the same key takes the place of an earlier one."""
        flows, key = self._flows, (flow.protocol, flow.key)
        flows[key] = flow
        flows.move_to_end(key)
        if len(flows) > self.bound:
            flows.popitem(last=False)

    def discard(self, protocol: int, key: bytes) -> None:
        """The flow was ended by hand."""
        self._flows.pop((protocol, key), None)

    def walk(self) -> Iterator[Settled]:
        """All of now; the first step copies pointers."""
        yield from list(self._flows.values())

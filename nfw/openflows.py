"""How many flows a change of policy would end. It looks at conntrack's entries and changes none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from engines.packet import TCP, UDP
from nfw.conntrack import Conntrack, Entry
from nfw.marks import Disposition, MarkLayout
from nfw.pipeline import Endpoints
from nfw.policy.model import Mode, OpenFlowsOf

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled

# Already dropped, ended, or nfw's own second half of an intercepted connection: nobody loses them.
_NO_ONES = (Disposition.DROP, Disposition.DROP_UDP, Disposition.ENDED, Disposition.OWN)


def count_ending(layout: MarkLayout, generation: int, compiled: Compiled) -> dict[str, int]:
    """Flows open under ``generation`` that end when ``compiled`` takes over: ``tls`` (intercepted), ``tcp``, ``udp``
    (whose next datagram begins a new flow), ``other``; and ``open``, all there are. Generation 0: none is. Raises
    OSError."""
    if not generation:
        return count((), layout, compiled)
    entries = Conntrack().entries(layout.compose(generation, 0), layout.generation_mask)
    return count(entries, layout, compiled)


def count(entries: Iterable[Entry], layout: MarkLayout, compiled: Compiled) -> dict[str, int]:
    """As :func:`count_ending`, of these entries of one generation."""
    policy, found = compiled.policy, {"open": 0, "tls": 0, "tcp": 0, "udp": 0, "other": 0}
    which = OpenFlowsOf.NONE if policy.mode is Mode.MONITOR else policy.open_flows.which
    for entry in entries:
        _, disposition = layout.split(entry.mark)
        if disposition in _NO_ONES:
            continue
        found["open"] += 1
        if disposition == Disposition.TLS:
            found["tls"] += 1  # its session lives in a process of the old generation
            continue
        if which is OpenFlowsOf.NONE:
            continue
        if which is OpenFlowsOf.TLS_SCOPE:
            ends = Endpoints(entry.protocol, entry.client, entry.server, entry.client_port, entry.server_port)
            if compiled.scopes is None or not compiled.scopes.covers(ends):
                continue
        found["tcp" if entry.protocol == TCP else "udp" if entry.protocol == UDP else "other"] += 1
    return found

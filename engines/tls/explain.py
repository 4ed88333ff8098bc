"""Why a TLS scope does not cover a connection, in words; agrees with :class:`engines.tls.scope.ScopeSet`."""

from __future__ import annotations

from engines.misfit import address_misfit, port_misfit, protocol_misfit
from engines.tls.scope import PacketLike, TlsScope

_TCP = 6


def misfit(scope: TlsScope, packet: PacketLike) -> str:
    """Empty when the scope covers the packet (client to server), otherwise like ``destination port 80 is not 443``."""
    return (
        protocol_misfit(packet.protocol, [_TCP])
        or address_misfit("source", packet.src, scope.sources)
        or address_misfit("destination", packet.dst, scope.destinations)
        or port_misfit("source port", packet.sport, scope.source_ports)
        or port_misfit("destination port", packet.dport, scope.destination_ports)
    )

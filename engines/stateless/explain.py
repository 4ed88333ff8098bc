"""Why a stateless rule does not match a packet: the first of its attributes that does not hold, in words.

For people and tools, not for the packet path: one rule at a time, one attribute after the other. Agrees with
:class:`engines.stateless.filter.StatelessFilter` on whether a rule matches.
"""

from __future__ import annotations

from engines.misfit import address_misfit, either, port_misfit, protocol_misfit, protocol_name
from engines.packet import TCP, UDP, Packet
from engines.stateless.rule import StatelessRule, flag_names


def misfit(rule: StatelessRule, packet: Packet) -> str:
    """Empty when the rule matches the packet, otherwise like ``destination port 443 is not 23 or 6000-6063``."""
    if packet.fragment:
        return "no rule sees fragments"
    return (
        protocol_misfit(packet.protocol, rule.protocols)
        or address_misfit("source", packet.src, rule.sources)
        or address_misfit("destination", packet.dst, rule.destinations)
        or _ports(rule, packet)
        or _flags(rule, packet)
    )


def _ports(rule: StatelessRule, packet: Packet) -> str:
    if not rule.source_ports and not rule.destination_ports:
        return ""
    if packet.protocol not in (TCP, UDP) or not packet.key:
        return f"it has ports, so it is about TCP and UDP, not {protocol_name(packet.protocol)}"
    return port_misfit("source port", packet.sport, rule.source_ports) or port_misfit(
        "destination port", packet.dport, rule.destination_ports
    )


def _flags(rule: StatelessRule, packet: Packet) -> str:
    if not rule.tcp_flags:
        return ""
    if packet.protocol != TCP or not packet.key:
        return f"it has TCP flags, so it is about TCP, not {protocol_name(packet.protocol)}"
    if any(match.matches(packet.tcp_flags) for match in rule.tcp_flags):
        return ""
    return f"TCP flags {flag_names(packet.tcp_flags) or 'none'} are not {either(map(str, rule.tcp_flags))}"

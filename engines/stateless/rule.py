"""A stateless rule as a value, with the meaning AWS Network Firewall gives it (``MatchAttributes``, ``Actions``).

Different attributes are ANDed, the items of one attribute ORed, an empty attribute matches anything. A prefix matches
its own address family only, so sources that are all IPv4 never match an IPv6 packet.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from engines.address import Network, check_port_range

PortRange = tuple[int, int]

ALL_TCP_FLAGS = 0xFF

# In the order of the bits, RFC 9293 section 3.1; the names AWS uses.
_FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


class StatelessAction(enum.Enum):
    """What a rule or the default does with a packet."""

    PASS = "pass"  # noqa: S105 - lets it through uninspected
    DROP = "drop"
    FORWARD = "forward"  # hands it to the flow table and the stateful engine


@dataclass(frozen=True, slots=True)
class TcpFlagsMatch:
    """Within ``masks``, the bits in ``flags`` must be set and the others clear (AWS ``TCPFlags``; no masks: all eight).

    Bits are FIN=1 SYN=2 RST=4 PSH=8 ACK=16 URG=32 ECE=64 CWR=128. Raises ValueError for flags outside the masks, which
    could never match.
    """

    flags: int
    masks: int = ALL_TCP_FLAGS

    def __post_init__(self) -> None:
        if not 0 <= self.masks <= ALL_TCP_FLAGS or not 0 <= self.flags <= ALL_TCP_FLAGS:
            raise ValueError(f"TCP flags and masks are 0 to 255, not {self.flags} and {self.masks}")
        if self.flags & ~self.masks:
            raise ValueError(f"TCP flags {flag_names(self.flags & ~self.masks)} are not among the masks")

    def matches(self, tcp_flags: int) -> bool:
        return tcp_flags & self.masks == self.flags

    def __str__(self) -> str:
        masks = "" if self.masks == ALL_TCP_FLAGS else f", masks: [{flag_names(self.masks)}]"
        return f"{{flags: [{flag_names(self.flags)}]{masks}}}"


@dataclass(frozen=True, slots=True)
class StatelessRule:
    """One rule. Lowest ``priority`` is tried first, within the ``group`` whose ``group_priority`` is lowest.

    A rule with ports matches TCP and UDP only, and one with ``tcp_flags`` TCP only, whatever ``protocols`` says.
    ``counters`` are names counted in addition to the rule's own hits. Raises ValueError for values that no packet has.
    """

    priority: int
    action: StatelessAction
    protocols: tuple[int, ...] = ()
    """IANA numbers, 0..255."""
    sources: tuple[Network, ...] = ()
    destinations: tuple[Network, ...] = ()
    source_ports: tuple[PortRange, ...] = ()
    """Inclusive ranges."""
    destination_ports: tuple[PortRange, ...] = ()
    tcp_flags: tuple[TcpFlagsMatch, ...] = ()
    counters: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    name: str = ""
    group: str = ""
    group_priority: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """What rules are sorted by."""
        return self.group_priority, self.priority

    def __post_init__(self) -> None:
        for protocol in self.protocols:
            if not 0 <= protocol <= 255:
                raise ValueError(f"protocol numbers are 0 to 255, not {protocol}")
        for low, high in (*self.source_ports, *self.destination_ports):
            check_port_range(low, high)

    def __str__(self) -> str:
        """The rule as a policy file would have it, on one line."""
        parts = [f"priority: {self.priority}", f"action: {self.action.value}"]
        parts += _listed("protocols", [_PROTOCOL_NAMES.get(number, str(number)) for number in self.protocols])
        parts += _listed("sources", [_quoted(str(network)) for network in self.sources])
        parts += _listed("source_ports", [_port_range(ports) for ports in self.source_ports])
        parts += _listed("destinations", [_quoted(str(network)) for network in self.destinations])
        parts += _listed("destination_ports", [_port_range(ports) for ports in self.destination_ports])
        parts += _listed("tcp_flags", [str(match) for match in self.tcp_flags])
        parts += _listed("counters", [_quoted(name) for name in self.counters])
        return "{" + ", ".join(parts) + "}"


def _listed(key: str, items: list[str]) -> list[str]:
    return [f"{key}: [{', '.join(items)}]"] if items else []


def _port_range(ports: PortRange) -> str:
    low, high = ports
    return str(low) if low == high else f'"{low}-{high}"'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def flag_names(bits: int) -> str:
    return ", ".join(name for index, name in enumerate(_FLAG_NAMES) if bits >> index & 1)

"""Why a header field does not hold, in words: "" when it does, otherwise like ``destination port 443 is not 23``.

For people and tools, not for the packet path. The engines' own tests decide; these say the same, one field at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.address import Network, PortSet, PrefixSet
from engines.packet import format_address

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_SHOWN = 4  # items of a list; a rule may have thousands


def protocol_misfit(protocol: int, wanted: Iterable[int]) -> str:
    """Of an IP protocol number; none wanted is any."""
    numbers = sorted(wanted)
    if not numbers or protocol in numbers:
        return ""
    return f"protocol {protocol_name(protocol)} is not {either(map(protocol_name, numbers))}"


def address_misfit(what: str, address: bytes, networks: Sequence[Network]) -> str:
    """Of one packed address; no networks are any."""
    if not networks or (address and PrefixSet(networks).contains(address)):
        return ""
    if not address:
        return f"the {what} cannot be read"
    version = 4 if len(address) == 4 else 6
    if all(network.version != version for network in networks):
        return f"{what} {format_address(address)} is IPv{version}, and only IPv{10 - version} is listed"
    return f"{what} {format_address(address)} is not in {either(map(str, networks))}"


def port_misfit(what: str, port: int, ranges: Sequence[tuple[int, int]]) -> str:
    """Of one port; no ranges (inclusive) are any."""
    if not ranges or PortSet(ranges).contains(port):
        return ""
    return f"{what} {port} is not {either(str(low) if low == high else f'{low}-{high}' for low, high in ranges)}"


def protocol_name(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def either(words: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``; of a long list its beginning and how many more there are."""
    listed = list(words)
    if len(listed) > _SHOWN + 1:
        listed = [*listed[:_SHOWN], f"{len(listed) - _SHOWN} more"]
    return " or ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))

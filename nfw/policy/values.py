"""Words of a policy to values: networks, ports, protocols, sizes, counter names, variables.

Every function takes text and returns the value or raises ``ValueError`` whose text says what is wrong and what was
expected; the caller adds the place.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable

from nfw.policy.errors import shorten

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]

TCP, UDP = 6, 17
MAX_PORT = 65535

# IANA "Assigned Internet Protocol Numbers", the ones a router meets; any other is written as its number.
PROTOCOLS: dict[str, int] = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}
_PROTOCOL_ALIASES = {"icmp6": 58, "ipv6-icmp": 58, "ipencap": 4, "udp-lite": 136}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def parse_network(text: str) -> Network:
    """A prefix or a single address. Host bits are an error that names the network meant.

    >>> str(parse_network("10.1.0.0/16"))
    '10.1.0.0/16'
    """
    address, slash, length = text.partition("/")
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{shorten(text)} is not an address or prefix; {_expected_address(address)}") from None
    if getattr(ip, "scope_id", None):
        raise ValueError(f"{shorten(text)} has a zone; expected an address without %{ip.scope_id}")  # type: ignore[union-attr]
    if not slash:
        return ipaddress.ip_network(ip)
    widest = ip.max_prefixlen
    if not re.fullmatch(r"[0-9]{1,3}", length) or int(length) > widest:
        hint = ""
        if ip.version == 4 and re.fullmatch(r"[0-9.]+", length) and length.count(".") == 3:
            hint = _mask_hint(address, length)
        raise ValueError(f"{shorten(text)}: expected a prefix length from 0 to {widest} after the slash{hint}")
    network = ipaddress.ip_network(f"{ip}/{int(length)}", strict=False)
    if network.network_address != ip:
        raise ValueError(
            f"{shorten(text)} has bits set to the right of its /{int(length)}; the network is {network}, "
            f"the single address is {ip}/{widest}"
        )
    return network


def parse_port_range(value: object) -> PortRange:
    """``443``, ``"6000-6063"`` or, as in rule files, ``"6000:6063"``. Inclusive at both ends."""
    if isinstance(value, bool) or value is None:
        raise ValueError('expected a port or a range such as 443 or "6000-6063"')
    if isinstance(value, int):
        low = high = value
    else:
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:[-:]\s*([0-9]{1,9})\s*)?", str(value))
        if found is None:
            raise ValueError(
                f'{shorten(str(value))} is not a port; expected one such as 443 or a range such as "6000-6063"'
            )
        low = int(found[1])
        high = int(found[2]) if found[2] is not None else low
    for port in (low, high):
        if not 0 <= port <= MAX_PORT:
            raise ValueError(f"port {port} is out of range; expected 0 to {MAX_PORT}")
    if low > high:
        raise ValueError(f'port range "{low}-{high}" runs backwards; expected "{high}-{low}"')
    return low, high


def parse_protocol(value: object) -> int:
    """A name of :data:`PROTOCOLS` or an IP protocol number, 0 to 255."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= 255:
            return value
        raise ValueError(f"protocol number {value} is out of range; expected 0 to 255")
    if not isinstance(value, str):
        raise ValueError("expected a protocol name such as tcp, or its number")
    name = value.strip().lower()
    if name.isascii() and name.isdigit() and len(name) <= 9:
        return parse_protocol(int(name))
    number = PROTOCOLS.get(name, _PROTOCOL_ALIASES.get(name))
    if number is None:
        raise ValueError(f"unknown protocol {shorten(value)}; {_near(name, PROTOCOLS, ', or a number from 0 to 255')}")
    return number


def protocol_name(number: int) -> str:
    """``tcp`` for 6; a number without a name stays a number."""
    return _PROTOCOL_NAMES.get(number, str(number))


# In header order, low bit first (RFC 9293 section 3.1, RFC 3168 for ECE and CWR).
TCP_FLAGS: dict[str, int] = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128}


def parse_tcp_flag(value: object) -> int:
    """The bit of a TCP flag's name."""
    if not isinstance(value, str):
        raise ValueError("expected a TCP flag such as SYN")
    bit = TCP_FLAGS.get(value.strip().upper())
    if bit is None:
        raise ValueError(f"unknown TCP flag {shorten(value)}; {_near(value.upper(), TCP_FLAGS)}")
    return bit


def tcp_flag_names(bits: int) -> list[str]:
    return [name for name, bit in TCP_FLAGS.items() if bits & bit]


# The characters a metric label of AWS allows, plus the dot.
_COUNTER = re.compile(r"[A-Za-z0-9_.-]([A-Za-z0-9_. -]{0,126}[A-Za-z0-9_.-])?\Z")


def parse_counter(value: object) -> str:
    """The name of a custom counter."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _COUNTER.match(text):
        raise ValueError(
            f"{shorten(str(value))} is not a counter name; expected up to 128 letters, digits, spaces, '_', '-' or '.'"
        )
    return text


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20}
_UNITS |= {"g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30}


def parse_size(value: object) -> int:
    """Bytes: a number, or one with a unit: ``64kb``, ``1 MiB``, ``2g`` (all powers of 1024, as Suricata counts)."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 0:
            return value
        raise ValueError(f"size {value} is negative; expected 0 or more bytes")
    found = re.fullmatch(r"\s*([0-9]{1,12})\s*([A-Za-z]{0,3})\s*", value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(
            f'{shorten(str(value))} is not a size; expected bytes or a text such as "64kb", "100mb", "1gb"'
        )
    return int(found[1]) * _UNITS[found[2].lower()]


VARIABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
# A reference to a variable inside a list, possibly negated: $HOME_NET, !$HOME_NET.
VARIABLE_REFERENCE = re.compile(r"(!?)\$([A-Za-z][A-Za-z0-9_]{0,63})\Z")

# A reference to a set kept elsewhere, as AWS's rule groups have: @PARTNERS.
SET_REFERENCE = re.compile(r"@[A-Za-z][A-Za-z0-9_]{0,63}\Z")


def parse_address_item(text: str) -> str:
    """One item of an address variable in Suricata's syntax, canonical: ``10.0.0.0/8``, ``!10.1.0.0/16``, ``any``."""
    negated, rest = ("!", text[1:].strip()) if text.startswith("!") else ("", text)
    if rest.lower() == "any":
        if negated:
            raise ValueError('"!any" matches nothing; expected a prefix')
        return "any"
    if "-" in rest and "/" not in rest:
        return negated + _address_range(rest)
    network = parse_network(rest)
    single = network.prefixlen == network.max_prefixlen
    return negated + str(network.network_address if single else network)


def parse_port_item(value: object) -> str:
    """One item of a port variable in Suricata's syntax, canonical: ``80``, ``1024:65535``, ``!25``, ``any``."""
    text = str(value).strip()
    negated, rest = ("!", text[1:].strip()) if text.startswith("!") else ("", text)
    if rest.lower() == "any" and not negated:
        return "any"
    # Open ends (":1024", "1024:") are Suricata's and mean the rest of the range.
    if re.fullmatch(r"[0-9]{1,9}[:-]", rest):
        rest += str(MAX_PORT)
    elif re.fullmatch(r"[:-][0-9]{1,9}", rest):
        rest = "0" + rest
    low, high = parse_port_range(rest)
    return negated + (str(low) if low == high else f"{low}:{high}")


def _address_range(text: str) -> str:
    first_text, _, last_text = text.partition("-")
    first, last = parse_network(first_text.strip()), parse_network(last_text.strip())
    if first.version != last.version or int(first.network_address) > int(last.network_address):
        raise ValueError(f"{shorten(text)}: expected a range that runs upwards within one address family")
    return f"{first.network_address}-{last.network_address}"


def _expected_address(address: str) -> str:
    digits = address.split(".")
    if len(digits) == 4 and all(part.isascii() and part.isdigit() for part in digits):
        if any(len(part) > 1 and part[0] == "0" for part in digits):
            return "a part of an IPv4 address must not begin with 0"
        return "each part of an IPv4 address is 0 to 255"
    return "expected one such as 192.0.2.0/24, 192.0.2.1 or 2001:db8::/32"


def _mask_hint(address: str, mask: str) -> str:
    try:
        meant = ipaddress.ip_network(f"{address}/{mask}", strict=False)
    except ValueError:
        return ""
    return f"; did you mean {meant}?"


def _near(word: str, known: Iterable[str], tail: str = "") -> str:
    names = list(known)
    near = difflib.get_close_matches(word[:64], names, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(names)}{tail}"

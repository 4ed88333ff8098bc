"""The header of a rule: ``action protocol source port direction destination port``, parsed, checked and compiled.

Addresses and ports become sets of intervals (so lists, nesting, ranges and negation are plain set algebra) and then
predicates: on packed addresses (4 or 16 bytes) and on port numbers. A set that matches everything becomes None, one
that matches nothing is an error, as in Suricata ("Rules format", addresses and ports).
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from engines.nearest import nearest_word
from engines.stateful.signature import Action
from engines.verdict import Direction, Scope

# Variables may refer to variables; deeper than this is a cycle or a joke.
MAX_VARIABLE_DEPTH = 16
# Nested brackets in one address or port expression (Suricata's limit is of this order).
MAX_NESTING = 16

ACTIONS: dict[str, tuple[Action, str]] = {
    "pass": (Action.PASS, ""),
    "drop": (Action.DROP, ""),
    "reject": (Action.REJECT, ""),
    "rejectsrc": (Action.REJECT, "src"),
    "rejectdst": (Action.REJECT, "dst"),
    "rejectboth": (Action.REJECT, "both"),
    "alert": (Action.ALERT, ""),
}

TCP, UDP, ICMP, ICMP6, IGMP, SCTP = 6, 17, 1, 58, 2, 132
NO_IP = -2  # no packet of ours has it
_TCP, _UDP, _BOTH = frozenset({TCP}), frozenset({UDP}), frozenset({TCP, UDP})

# Protocols below the application: name -> IP protocol numbers (empty: every packet).
NETWORK_PROTOCOLS: dict[str, frozenset[int]] = {
    "ip": frozenset(),
    "ipv4": frozenset(),
    "ip4": frozenset(),
    "ipv6": frozenset(),
    "ip6": frozenset(),
    "tcp": _TCP,
    "tcp-pkt": _TCP,
    "tcp-stream": _TCP,
    "udp": _UDP,
    "icmp": frozenset({ICMP, ICMP6}),
    "icmpv4": frozenset({ICMP}),
    "icmpv6": frozenset({ICMP6}),
    "igmp": frozenset({IGMP}),
    "sctp": frozenset({SCTP}),
    "pkthdr": frozenset(),  # every packet, those that cannot be decoded too
    "arp": frozenset({NO_IP}),
    "ether": frozenset({NO_IP}),
}
# Protocols beside IP.
LINK_PROTOCOLS = frozenset({"arp", "ether"})

# Application protocols Suricata knows, with what carries them.
APP_PROTOCOLS: dict[str, frozenset[int]] = {
    "http": _TCP,
    "http1": _TCP,
    "http2": _TCP,
    "doh2": _TCP,
    "tls": _TCP,
    "dns": _BOTH,
    "mdns": _UDP,
    "llmnr": _BOTH,
    "ssh": _TCP,
    "smtp": _TCP,
    "ftp": _TCP,
    "ftp-data": _TCP,
    "imap": _TCP,
    "pop3": _TCP,
    "smb": _TCP,
    "dcerpc": _BOTH,
    "nfs": _BOTH,
    "tftp": _UDP,
    "krb5": _BOTH,
    "ike": _UDP,
    "ikev2": _UDP,
    "quic": _UDP,
    "dhcp": _UDP,
    "ntp": _UDP,
    "snmp": _UDP,
    "sip": _BOTH,
    "rdp": _TCP,
    "rfb": _TCP,
    "mqtt": _TCP,
    "telnet": _TCP,
    "websocket": _TCP,
    "pgsql": _TCP,
    "ldap": _BOTH,
    "modbus": _TCP,
    "dnp3": _TCP,
    "enip": _BOTH,
    "bittorrent-dht": _UDP,
}
# Rule hooks, and the side whose buffers are complete there.
HOOKS: dict[tuple[str, str], Direction] = {
    ("tls", "client_hello"): Direction.TO_SERVER,
    ("tls", "client_hello_done"): Direction.TO_SERVER,
    ("tls", "server_hello"): Direction.TO_CLIENT,
    ("tls", "server_hello_done"): Direction.TO_CLIENT,
    ("http1", "request_started"): Direction.TO_SERVER,
    ("http1", "request_line"): Direction.TO_SERVER,
    ("http1", "request_headers"): Direction.TO_SERVER,
    ("http1", "response_started"): Direction.TO_CLIENT,
    ("http1", "response_line"): Direction.TO_CLIENT,
    ("http1", "response_headers"): Direction.TO_CLIENT,
}
# The hook of the protocols below: the first packet of each direction of a flow.
FLOW_START = "flow_start"
_ALIASES = {"ssl": "tls"}


class HeaderError(ValueError):
    """``index`` is which of the seven header fields is wrong."""

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True, slots=True)
class Variables:
    """``$NAME`` and ``@NAME``: each a rule expression (``"!$HOME_NET"``) or a list of them. ``files``: where the
    content of a ``@NAME`` is read from and may change."""

    addresses: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    ports: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AddressSpec:
    """A compiled address field. ``test`` None: any."""

    text: str
    test: Callable[[bytes], bool] | None
    negated: bool = False  # a negation or a range occurs in it: the rule is like_ip_only, not ip_only


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header. ``arrow``: ``->``, ``<>`` or ``=>``."""

    action: Action
    reject_to: str
    protocol: str
    ip_protocols: frozenset[int]
    app_proto: str
    family: int  # 4 or 6 when the protocol says so, else 0
    source: AddressSpec
    source_port: Callable[[int], bool] | None
    arrow: str
    destination: AddressSpec
    destination_port: Callable[[int], bool] | None
    hook: str = ""
    scope: Scope | None = None


FIELDS = ("action", "protocol", "source address", "source port", "direction", "destination address", "destination port")


class HeaderParser:
    """Parses headers against one set of variables; equal expressions give the identical predicate.
    ``scopes``: an action may say what it is for, as in ``drop:packet``."""

    def __init__(self, variables: Variables, *, scopes: bool = False) -> None:
        self._variables = variables
        self._scopes = scopes
        self._addresses: dict[str, AddressSpec] = {}
        self._ports: dict[str, Callable[[int], bool] | None] = {}

    def parse(self, fields: Sequence[str]) -> Header:
        """``fields``: the seven texts. Raises HeaderError."""
        if len(fields) < len(FIELDS):
            raise HeaderError(f"the rule ends before its {FIELDS[len(fields)]}", max(len(fields) - 1, 0))
        action, protocol, source, source_port, arrow, destination, destination_port = fields
        action, scope = self._scope(action)
        if action not in ACTIONS:
            raise HeaderError(f"unknown action {action!r}{nearest(action, ACTIONS)}; expected {', '.join(ACTIONS)}", 0)
        name = _ALIASES.get(protocol.lower(), protocol.lower())
        name, colon, hook = name.partition(":")
        name = _ALIASES.get(name, name)
        if colon and (name, hook) not in HOOKS and not (hook == FLOW_START and name in NETWORK_PROTOCOLS):
            known = ", ".join([*(":".join(pair) for pair in HOOKS), f"tcp:{FLOW_START}"])
            raise HeaderError(f"the rule hook {protocol} is not supported; expected a protocol name or {known}", 1)
        if name not in NETWORK_PROTOCOLS and name not in APP_PROTOCOLS:
            near = nearest(name, [*NETWORK_PROTOCOLS, *APP_PROTOCOLS])
            hint = near or "; expected a protocol such as ip, tcp, udp, icmp, http, tls or dns"
            raise HeaderError(f"unknown protocol {protocol!r}{hint}", 1)
        if arrow not in {"->", "<>", "=>"}:
            raise HeaderError(f"expected ->, <> or => between source and destination, found {arrow!r}", 4)
        done = 2
        try:
            source_spec = self.address(source)
            done = 3
            source_ports = self.port(source_port)
            done = 5
            destination_spec = self.address(destination)
            done = 6
            destination_ports = self.port(destination_port)
        except ValueError as problem:
            raise HeaderError(f"{FIELDS[done]}: {problem}", done) from None
        reaction, reject_to = ACTIONS[action]
        return Header(
            action=reaction,
            reject_to=reject_to,
            protocol=name,
            ip_protocols=NETWORK_PROTOCOLS[name] if name in NETWORK_PROTOCOLS else APP_PROTOCOLS[name],
            app_proto="" if name in NETWORK_PROTOCOLS else name,
            family={"ipv4": 4, "ip4": 4, "ipv6": 6, "ip6": 6}.get(name, 0),
            source=source_spec,
            source_port=source_ports,
            arrow=arrow,
            destination=destination_spec,
            destination_port=destination_ports,
            hook=hook,
            scope=scope,
        )

    def _scope(self, action: str) -> tuple[str, Scope | None]:
        """An action without its scope, and that."""
        name, colon, scope = action.partition(":")
        if name == "accept" or (colon and not self._scopes):
            raise HeaderError(
                f"{action} is an action of firewall rules, which only `nfw replay --firewall-rules` knows; "
                f"expected {', '.join(ACTIONS)}",
                0,
            )
        if not colon:
            return action, None
        if scope not in {"packet", "flow"} or name == "alert":
            raise HeaderError(f"{action}: the scope is packet or flow, of drop, reject and pass", 0)
        return name, Scope(scope)

    def address(self, text: str) -> AddressSpec:
        """``any``, ``10.0.0.0/8``, ``10.0.0.1-10.0.0.9``, ``$NAME``, ``@NAME``, ``[a, !b]``, ``!x``. ValueError."""
        spec = self._addresses.get(text)
        if spec is None:
            seen: set[str] = set()
            low, high = _evaluate(text, lambda item: _address_item(item, seen), _ADDRESS_SPACE, self._address_variable)
            if not low and not high:
                raise ValueError(f"{text} matches no address at all")
            everything = (low, high) == _ADDRESS_SPACE
            negated = "!" in self._expanded(text) or "range" in seen
            test = None
            if any(name in self._variables.files for name in self.names(text)):
                test = AddressTest(text, low, high, self._variables)
            elif not everything:
                test = AddressTest(text, low, high)
            spec = AddressSpec(text, test, negated and not everything)
            self._addresses[text] = spec
        return spec

    def intervals(self, text: str) -> Space:
        """What an address field stands for, as :meth:`address` reads it; (IPv4, IPv6), either may be empty. ValueError
        for what is no address field."""
        return _evaluate(text, lambda item: _address_item(item, set()), _ADDRESS_SPACE, self._address_variable)

    def port(self, text: str) -> Callable[[int], bool] | None:
        """``any``, ``80``, ``1024:``, ``:1023``, ``8000:8080``, lists, variables, negation. ValueError."""
        if text not in self._ports:
            (ports,) = _evaluate(text, _port_item, _PORT_SPACE, self._port_variable)
            if not ports:
                raise ValueError(f"{text} matches no port at all")
            self._ports[text] = None if (ports,) == _PORT_SPACE else PortTest(text, ports)
        return self._ports[text]

    def _address_variable(self, name: str) -> str:
        return _lookup(name, self._variables.addresses, "address")

    def _port_variable(self, name: str) -> str:
        return _lookup(name, self._variables.ports, "port")

    def _expanded(self, text: str, depth: int = 0) -> str:
        """The expression with its variables written out, to see whether a negation is in it."""
        if depth > MAX_VARIABLE_DEPTH:
            return text
        inner = [self._address_variable(name) for name in _variables_in(text)]
        return text + " ".join(self._expanded(i, depth + 1) for i in inner)

    def names(self, text: str, depth: int = 0) -> set[str]:
        """Every variable it refers to, directly or through others."""
        if depth > MAX_VARIABLE_DEPTH:
            return set()
        found = set(_variables_in(text))
        inner = [self._address_variable(name) for name in found if name[0] == "$"]
        return found.union(*(self.names(each, depth + 1) for each in inner))


def _variables_in(text: str) -> list[str]:
    if "$" not in text and "@" not in text:
        return []
    words = text.replace("[", " ").replace("]", " ").replace(",", " ").replace("!", " ").split()
    return [word for word in words if word[0] in "$@"]


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """`` (did you mean X?)``, or nothing."""
    close = nearest_word(word, tuple(known))
    return f" (did you mean {close}?)" if close else ""


Intervals = tuple[tuple[int, int], ...]  # sorted, disjoint, both ends included
Space = tuple[Intervals, ...]  # one interval set per dimension: (IPv4, IPv6), or (ports,)

_ADDRESS_SPACE: Space = (((0, 2**32 - 1),), ((0, 2**128 - 1),))
_PORT_SPACE: Space = (((0, 65535),),)


class AddressTest:
    """Is a packed address in the set? Two bisections at most; compared as bytes, which sort like the numbers.

    ``variables``: those it was made with, where some of what it stands for may change; None where nothing does.
    """

    __slots__ = ("_ends4", "_ends6", "_starts4", "_starts6", "text", "variables")

    def __init__(self, text: str, four: Intervals, six: Intervals, variables: Variables | None = None) -> None:
        self.text = text
        self.variables = variables
        self._starts4 = [low.to_bytes(4, "big") for low, _ in four]
        self._ends4 = [high.to_bytes(4, "big") for _, high in four]
        self._starts6 = [low.to_bytes(16, "big") for low, _ in six]
        self._ends6 = [high.to_bytes(16, "big") for _, high in six]

    def __call__(self, packed: bytes) -> bool:
        if len(packed) == 4:
            index = bisect_right(self._starts4, packed) - 1
            return index >= 0 and packed <= self._ends4[index]
        index = bisect_right(self._starts6, packed) - 1
        return index >= 0 and packed <= self._ends6[index]

    def become(self, starts4: bytes, ends4: bytes, starts6: bytes, ends6: bytes) -> None:
        """Stand for these intervals from now on: each argument is addresses of one family, one behind the other, as in
        :meth:`intervals`."""
        self._starts4, self._ends4 = _cut(starts4, 4), _cut(ends4, 4)
        self._starts6, self._ends6 = _cut(starts6, 16), _cut(ends6, 16)

    def intervals(self, family: int) -> Intervals:
        """The set's addresses of a family, 4 or 6, as numbers; sorted, disjoint, both ends included."""
        starts, ends = (self._starts4, self._ends4) if family == 4 else (self._starts6, self._ends6)
        return tuple(
            (int.from_bytes(low, "big"), int.from_bytes(high, "big")) for low, high in zip(starts, ends, strict=True)
        )

    def __repr__(self) -> str:
        return f"AddressTest({self.text!r})"


def _cut(packed: bytes, size: int) -> list[bytes]:
    return [packed[at : at + size] for at in range(0, len(packed), size)]


class PortTest:
    """Is a port in the set? ``ranges`` are the intervals, sorted, both ends included."""

    __slots__ = ("_ends", "_starts", "ranges", "text")

    def __init__(self, text: str, ranges: Intervals) -> None:
        self.text = text
        self.ranges = ranges
        self._starts = [low for low, _ in ranges]
        self._ends = [high for _, high in ranges]

    def __call__(self, port: int) -> bool:
        index = bisect_right(self._starts, port) - 1
        return index >= 0 and port <= self._ends[index]

    def __repr__(self) -> str:
        return f"PortTest({self.text!r})"


class FamilyTest:
    """Is a packed address of that family (4 or 6), and in the set of ``inner``?"""

    __slots__ = ("_size", "family", "inner")

    def __init__(self, family: int, inner: Callable[[bytes], bool] | None) -> None:
        self._size = 4 if family == 4 else 16
        self.family = family
        self.inner = inner

    def __call__(self, packed: bytes) -> bool:
        return len(packed) == self._size and (self.inner is None or self.inner(packed))


def _lookup(name: str, known: Mapping[str, str | Sequence[str]], what: str) -> str:
    value = known.get(name, known.get(name[1:]))
    if value is None:
        names = [k.lstrip("$@") for k in known]
        raise ValueError(f"{what} variable {name} is not defined{nearest(name[1:], names)}")
    return value if isinstance(value, str) else "[" + ",".join(value) + "]"


def _evaluate(
    text: str, item: Callable[[str], Space], space: Space, variable: Callable[[str], str], depth: int = 0
) -> Space:
    """The set an expression stands for. In a list: the union of the positive items less the negated ones."""
    text = text.strip()
    if not text:
        raise ValueError("it is empty")
    if depth > MAX_VARIABLE_DEPTH:
        raise ValueError(f"variables or lists are nested more than {MAX_VARIABLE_DEPTH} deep (or in a circle)")
    if "," in text and text[0] != "[" and len(parts := list(_split(text))) > 1:  # a list without its brackets
        return _list(parts, text, item, space, variable, depth)
    if text.startswith("!"):
        if text[1:].strip() == "any":
            raise ValueError("!any matches nothing")
        return _minus(space, _evaluate(text[1:], item, space, variable, depth + 1))
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"{text!r}: the closing ] is missing")
        return _list(list(_split(text[1:-1])), text, item, space, variable, depth)
    if text[0] in "$@":
        return _evaluate(variable(text), item, space, variable, depth + 1)
    if text == "any":
        return space
    return item(text)


def _list(
    parts: Sequence[str],
    text: str,
    item: Callable[[str], Space],
    space: Space,
    variable: Callable[[str], str],
    depth: int,
) -> Space:
    wanted: list[Space] = []
    unwanted: list[Space] = []
    for part in parts:
        if not part:
            raise ValueError(f"{text!r}: an item of the list is empty")
        if part.startswith("!"):
            if part[1:].strip() == "any":
                raise ValueError("!any matches nothing")
            unwanted.append(_evaluate(part[1:], item, space, variable, depth + 1))
        else:
            wanted.append(_evaluate(part, item, space, variable, depth + 1))
    nothing: Space = tuple(() for _ in space)
    return _minus(_plus(nothing, *wanted) if wanted else space, _plus(nothing, *unwanted))


def _split(text: str) -> Iterator[str]:
    """The items of a list, respecting inner brackets."""
    depth = start = 0
    for index, char in enumerate(text):
        if char == "[":
            depth += 1
            if depth > MAX_NESTING:
                raise ValueError(f"lists are nested more than {MAX_NESTING} deep")
        elif char == "]":
            depth -= 1
            if depth < 0:
                raise ValueError("a ] without its [")
        elif char == "," and depth == 0:
            yield text[start:index].strip()
            start = index + 1
    if depth:
        raise ValueError("the closing ] is missing")
    yield text[start:].strip()


def _address_item(text: str, seen: set[str]) -> Space:
    try:
        if "-" in text:
            seen.add("range")
            first, _, last = text.partition("-")
            low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
            if low.version != high.version or int(low) > int(high):
                raise ValueError(f"the range {text} does not go from low to high")
            bounds, version = ((int(low), int(high)),), low.version
        else:
            net = ipaddress.ip_network(text, strict=False)
            bounds, version = ((int(net.network_address), int(net.broadcast_address)),), net.version
    except ValueError as problem:
        if str(problem).startswith("the range"):
            raise
        raise ValueError(f"{text!r} is not an address, network or range") from None
    return (bounds, ()) if version == 4 else ((), bounds)


def _port_item(text: str) -> Space:
    low_text, colon, high_text = text.partition(":")
    low = _port_number(low_text, 0 if colon else None)
    high = _port_number(high_text, 65535) if colon else low
    if low > high:
        raise ValueError(f"the range {text} does not go from low to high")
    return (((low, high),),)


def _port_number(text: str, default: int | None) -> int:
    text = text.strip()
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a port")
    number = int(text)
    if number > 65535:
        raise ValueError(f"port {number} is above 65535")
    return number


def _plus(*spaces: Space) -> Space:
    return tuple(_union(chain.from_iterable(dimension)) for dimension in zip(*spaces, strict=True))


def _minus(left: Space, right: Space) -> Space:
    return tuple(_difference(a, b) for a, b in zip(left, right, strict=True))


def _union(intervals: Iterable[tuple[int, int]]) -> Intervals:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _difference(left: Intervals, right: Intervals) -> Intervals:
    left_over: list[tuple[int, int]] = []
    at = 0  # the first of ``right`` that does not end before ``low``: both are sorted
    for low, high in left:
        while at < len(right) and right[at][1] < low:
            at += 1
        start = low
        for index in range(at, len(right)):
            cut_low, cut_high = right[index]
            if cut_low > high:
                break
            if cut_low > start:
                left_over.append((start, cut_low - 1))
            start = cut_high + 1
        if start <= high:
            left_over.append((start, high))
    return tuple(left_over)

"""A flow described in words (``dst: 198.51.100.7``, ``sni: www.example.org``), for ``nfw explain`` and policy tests.

:data:`KEYS` is all that can be said; what nobody says is filled in with the ordinary. :mod:`nfw.dialogue` makes
packets of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.packet import ICMP, ICMPV6, TCP, UDP
from nfw.policy.errors import shorten, suggest
from nfw.policy.values import parse_port_range, parse_protocol, protocol_name

CLIENT_PORT = 40000  # where nothing else is said; of the dynamic range, which no rule is about
MAX_TEXT = 262_144  # bytes of one payload


class DescriptionError(ValueError):
    """What is wrong with a description. ``problems``: (key, what is wrong and what was expected), all of them."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {message}" for key, message in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that can be said of a flow. ``parse`` raises ValueError; ``many``: given more than once, or a list."""

    name: str
    metavar: str
    help: str
    parse: Callable[[Any], Any]
    many: bool = False
    flag: bool = False


@dataclass(frozen=True)
class FlowDescription:
    """A flow. Addresses are packed; ports 0 where the protocol has none; None and empty: not said."""

    src: bytes
    dst: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    sni: str | None = None  # "": a ClientHello that names nobody
    alpn: tuple[str, ...] = ()
    http_host: str | None = None
    http_method: str | None = None
    http_uri: str | None = None
    http_headers: tuple[tuple[str, str], ...] = ()
    http_body: bytes = b""
    http_status: int = 200
    dns_query: str | None = None
    dns_type: str = "A"
    payload: tuple[bytes, ...] = ()
    reply: tuple[bytes, ...] = ()
    icmp_type: int | None = None
    segment: int = 0  # bytes of payload in a packet; 0: as many as fit
    midstream: bool = False
    fragments: bool = False
    said: frozenset[str] = field(default=frozenset(), compare=False)  # the keys that were given

    @property
    def is_tls(self) -> bool:
        return self.sni is not None

    @property
    def is_http(self) -> bool:
        """HTTP was described; within TLS it is what is there when nothing else is."""
        return any(key.startswith("http_") for key in self.said)

    @property
    def server_name(self) -> str:
        """Whom HTTP is addressed to."""
        return self.http_host if self.http_host is not None else self.sni or str(ipaddress.ip_address(self.dst))

    def __str__(self) -> str:
        src, dst = _host(self.src, self.sport), _host(self.dst, self.dport)
        parts = [f"{protocol_name(self.protocol)} {src} -> {dst}"]
        if self.is_tls:
            parts.append(f'TLS to "{self.sni}"' if self.sni else "TLS without a server name")
            if self.alpn:
                parts.append(f"ALPN {' '.join(self.alpn)}")
        if self.is_http:
            parts.append(f"HTTP {self.http_method or 'GET'} {self.server_name}{self.http_uri or '/'}")
        if self.dns_query is not None:
            parts.append(f"DNS {self.dns_type} {self.dns_query}")
        if self.payload or self.reply:
            parts.append(f"payload of {sum(map(len, self.payload))} and {sum(map(len, self.reply))} bytes")
        parts += [word for word, is_so in (("mid-stream", self.midstream), ("in fragments", self.fragments)) if is_so]
        return ", ".join(parts)


# -- reading -----------------------------------------------------------------------------------------------------------


def _address(value: Any) -> bytes:
    try:
        return ipaddress.ip_address(str(value).strip()).packed
    except ValueError:
        hint = "; one address, not a prefix" if "/" in str(value) else ""
        raise ValueError(f"{shorten(str(value))} is not an address such as 192.0.2.1 or 2001:db8::1{hint}") from None


def _port(value: Any) -> int:
    low, high = parse_port_range(value)
    if low != high:
        raise ValueError(f"{shorten(str(value))} is a range; a flow has one port")
    return low


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z")


def _server_name(value: Any) -> str:
    text = _text(value)
    if text and (len(text) > 253 or not _NAME.match(text)):
        raise ValueError(f"{shorten(text)} is not a host name such as www.example.org")
    return text


def _dns_name(value: Any) -> str:
    name = _server_name(value)
    if not name:
        raise ValueError("expected the name asked for, such as www.example.org")
    return name


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None or not isinstance(value, str | int | float):
        raise ValueError("expected a text")
    text = str(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} bytes")
    if "\r" in text or "\n" in text:
        raise ValueError("expected one line")
    return text


def _word(value: Any) -> str:
    text = _text(value)
    if not text or any(character.isspace() for character in text):
        raise ValueError(f"{shorten(text)}: expected one word, without spaces")
    return text


def _alpn(value: Any) -> str:
    text = _word(value)
    if not text.isascii() or len(text) > 255:
        raise ValueError(f"{shorten(text)} is not a protocol name such as h2 or http/1.1")
    return text


def _header(value: Any) -> tuple[str, str]:
    name, colon, rest = _text(value).partition(":")
    if not colon or not name or any(character.isspace() for character in name):
        raise ValueError(f'{shorten(str(value))} is not a header such as "User-Agent: curl/8.0"')
    return name, rest.strip()


_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|[\\rnt0])")
_ESCAPED = {"\\": b"\\", "r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0"}


def _bytes(value: Any) -> bytes:
    r"""Text in UTF-8, with \r \n \t \0 \\ and \xNN for bytes."""
    if isinstance(value, bool) or value is None or not isinstance(value, str | int | float):
        raise ValueError(r"expected a text, with \r \n \t \0 \\ \xNN for bytes that are none")
    made, at = bytearray(), 0
    text = str(value)
    for found in _ESCAPE.finditer(text):
        made += text[at : found.start()].encode("utf-8", "surrogateescape")
        word = found[1]
        made += bytes([int(word[1:], 16)]) if word[0] == "x" else _ESCAPED[word]
        at = found.end()
    made += text[at:].encode("utf-8", "surrogateescape")
    if len(made) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} bytes")
    return bytes(made)


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{shorten(text)}: expected a number from {low} to {high}")
        return int(text)

    return parse


_DNS_TYPES = ("A", "AAAA", "ANY", "CAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT")


def _dns_type(value: Any) -> str:
    text = _word(value).upper()
    if text not in _DNS_TYPES:
        raise ValueError(f"{shorten(text)}: {suggest(text, _DNS_TYPES, nothing='expected one of {}')}")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {shorten(str(value))}")
    return value


_ALL = (
    Key("src", "ADDRESS", "The client's address.", _address),
    Key("dst", "ADDRESS", "The server's address, of the same family.", _address),
    Key("sport", "PORT", f"The client's port.  [default: {CLIENT_PORT}]", _port),
    Key("dport", "PORT", "The server's port.  [default: 443 with --sni, 80 with --http-*, 53 with --dns-query]", _port),
    Key("proto", "NAME", "A protocol, or its number.  [default: udp with --dns-query, else tcp]", parse_protocol),
    Key("sni", "NAME", "TLS to this server name; '' for a ClientHello without one.", _server_name),
    Key(
        "alpn",
        "NAME",
        "A protocol the ClientHello offers; h2 first makes HTTP HTTP/2. Repeatable.",
        _alpn,
        many=True,
    ),
    Key("http_host", "NAME", "An HTTP request to this host; within TLS together with --sni.", _text),
    Key("http_method", "METHOD", "Its method.  [default: GET]", _word),
    Key("http_uri", "PATH", "Its target.  [default: /]", _word),
    Key("http_header", "'NAME: VALUE'", "A header of it; repeatable.", _header, many=True),
    Key("http_body", "TEXT", r"Its body, with \r \n \t \0 \\ \xNN.", _bytes),
    Key("http_status", "NUMBER", "The answer's status.  [default: 200]", _integer(100, 999)),
    Key("dns_query", "NAME", "A DNS question for this name.", _dns_name),
    Key("dns_type", "TYPE", "Its type.  [default: A]", _dns_type),
    Key("payload", "TEXT", r"What the client sends, with \r \n \t \0 \\ \xNN; repeatable.", _bytes, many=True),
    Key("reply", "TEXT", "What the server sends, after each --payload; repeatable.", _bytes, many=True),
    Key("icmp_type", "NUMBER", "The type of an ICMP message.  [default: an echo and its reply]", _integer(0, 255)),
    Key("segment", "BYTES", "Payload in one TCP packet at most.  [default: as fits]", _integer(1, 65535)),
    Key("midstream", "", "A TCP connection of which no handshake is seen.", _flag, flag=True),
    Key("fragments", "", "Every packet in two fragments.", _flag, flag=True),
)
KEYS: dict[str, Key] = {key.name: key for key in _ALL}
"""Everything a description can say, by name."""

_TLS_KEYS = ("alpn",)
_HTTP_KEYS = ("http_host", "http_method", "http_uri", "http_header", "http_body", "http_status")


def read_description(values: Mapping[str, Any]) -> FlowDescription:
    """A description from ``values``: by key, texts and numbers (lists where ``many``). Raises DescriptionError with
    everything that is wrong."""
    problems: list[tuple[str, str]] = []
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        key = KEYS.get(name)
        if key is None:
            problems.append((name, f"unknown key; {suggest(name, KEYS, nothing='known keys: {}')}"))
            continue
        try:
            if key.many:
                listed = value if isinstance(value, list | tuple) else [value]
                parsed[name] = tuple(key.parse(each) for each in listed)
            elif isinstance(value, list | tuple):
                raise ValueError("expected one value, got a list")
            else:
                parsed[name] = key.parse(value)
        except ValueError as error:
            problems.append((name, str(error)))
    wrong = {name for name, _ in problems}
    problems += [problem for problem in _fits(parsed, wrong, set(values)) if problem[0] not in wrong]
    if problems:
        raise DescriptionError(problems)
    return _described(parsed)


def _described(parsed: dict[str, Any]) -> FlowDescription:
    protocol = _protocol(parsed)
    fields = dict(parsed)
    fields.pop("proto", None)
    if "http_header" in fields:
        fields["http_headers"] = fields.pop("http_header")
    if protocol in (TCP, UDP):
        fields.setdefault("sport", CLIENT_PORT)
        fields.setdefault("dport", _usual_port(parsed))
    return FlowDescription(protocol=protocol, said=frozenset(parsed), **fields)


def _protocol(parsed: Mapping[str, Any]) -> int:
    default = UDP if "dns_query" in parsed else TCP
    if "icmp_type" in parsed and "src" in parsed:
        default = ICMP if len(parsed["src"]) == 4 else ICMPV6
    return int(parsed.get("proto", default))


def _usual_port(parsed: Mapping[str, Any]) -> int:
    if "sni" in parsed:
        return 443
    return 53 if "dns_query" in parsed else 80 if any(key in parsed for key in _HTTP_KEYS) else 0


def _fits(parsed: Mapping[str, Any], wrong: set[str], given: set[str]) -> Iterator[tuple[str, str]]:
    """What does not go together."""
    for name, what in (("src", "the client's address"), ("dst", "the server's address")):
        if name not in given:
            yield name, f"missing; expected {what}, such as {'10.0.0.5' if name == 'src' else '198.51.100.7'}"
    src, dst = parsed.get("src"), parsed.get("dst")
    if src is not None and dst is not None and len(src) != len(dst):
        families = "are of different address families; expected both IPv4 or both IPv6"
        yield "dst", f"{_host(dst, 0)} and the source {_host(src, 0)} {families}"
    if "proto" in wrong:
        return
    protocol = _protocol(parsed)
    name = protocol_name(protocol)
    if protocol in (ICMP, ICMPV6) and src is not None and (len(src) == 4) != (protocol == ICMP):
        yield "proto", f"{name} does not go with {_host(src, 0)}; expected {'icmp' if len(src) == 4 else 'icmpv6'}"
    for key in ("sport", "dport"):
        if key in parsed and protocol not in (TCP, UDP):
            yield key, f"{name} has no ports"
    if protocol in (TCP, UDP) and "dport" not in given and not _usual_port(parsed) and not wrong:
        yield "dport", "missing; expected the server's port, such as 443"
    for key in ("sni", "alpn", *_HTTP_KEYS, "midstream", "segment"):
        if parsed.get(key) not in (None, False, ()) and protocol != TCP and "dns_query" not in given:
            yield key, f"needs proto tcp, not {name}"
    if "alpn" in given and "sni" not in given:
        yield "alpn", "goes with sni: it is part of a ClientHello"
    if "dns_query" in given and ("sni" in given or any(key in given for key in _HTTP_KEYS)):
        yield "dns_query", "does not go with sni or http_*: a flow says one thing"
    if "dns_query" in given and protocol not in (TCP, UDP):
        yield "dns_query", f"needs proto udp or tcp, not {name}"
    if "dns_type" in given and "dns_query" not in given:
        yield "dns_type", "goes with dns_query"
    if "icmp_type" in given and protocol not in (ICMP, ICMPV6):
        yield "icmp_type", f"needs proto icmp or icmpv6, not {name}"
    if parsed.get("payload") and ("dns_query" in given or any(key in given for key in _HTTP_KEYS)):
        yield "payload", "does not go with http_* or dns_query: they say what is sent"


def _host(address: bytes, port: int) -> str:
    text = str(ipaddress.ip_address(address))
    if not port:
        return text
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"

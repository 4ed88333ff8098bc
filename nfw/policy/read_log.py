"""The policy's ``log`` section: the event log's file, and the sinks beside it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.fields import Section, open_section
from nfw.policy.model import LOG_EVENTS, Log, LogFormat, Sink, SinkKind
from nfw.policy.yamlpos import Node

KEYS = ("path", "max_size", "keep", "events", "format", "sinks", "stats_interval", "flow_interval")
MAX_SINKS = 8
MAX_UNIX_PATH = 107  # bytes, sockaddr_un
MAX_STATS_INTERVAL = 86_400
MIN_FLOW_INTERVAL, MAX_FLOW_INTERVAL = 10, 86_400
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "security", "console", "solaris-cron", *(f"local{number}" for number in range(8)),
)  # fmt: skip  # RFC 5424 section 6.2.1; the place in the list is the number
_COMMON = ("type", "events", "format")
_SINK_KEYS = {
    SinkKind.FILE: (*_COMMON, "path", "max_size", "keep"),
    SinkKind.JOURNALD: _COMMON,
    SinkKind.SYSLOG: (*_COMMON, "address", "facility"),
    SinkKind.UNIX_STREAM: (*_COMMON, "path"),
    SinkKind.UNIX_DGRAM: (*_COMMON, "path"),
}
_EXAMPLE = "{type: journald, events: [alert, drop]}"


def read_log(section: Section, base: Path) -> Log:
    """``section`` is the policy; relative paths start from ``base``."""
    part = section.section("log", KEYS, "{path: /var/log/nfw/eve.json, max_size: 100mb}")
    default = Log()
    if part is None:
        return default
    path = part.text("path", "a file name")
    nodes = part.items("sinks", f"[{_EXAMPLE}]", may_be_empty=True)
    if len(nodes) > MAX_SINKS:
        part.error(nodes[MAX_SINKS], f"sinks: expected at most {MAX_SINKS}, got {len(nodes)}")
    sinks = [sink for node in nodes[:MAX_SINKS] if (sink := _read_sink(node, part.problems, base)) is not None]
    return Log(
        path=base / path if path else None,
        max_size=part.size("max_size", default.max_size, 64 << 10, 1 << 40),
        keep=part.integer("keep", 0, 1000, default.keep),
        events=_events(part),
        format=part.choice("format", default.format),
        sinks=tuple(sinks),
        flow_interval=_flow_interval(part),
        stats_interval=part.integer("stats_interval", 1, MAX_STATS_INTERVAL, default.stats_interval),
    )


def _flow_interval(part: Section) -> int:
    value = part.integer("flow_interval", 0, MAX_FLOW_INTERVAL, 0)
    if 0 < value < MIN_FLOW_INTERVAL:
        part.error(
            part.get("flow_interval"),
            f"flow_interval: {value} is out of range; expected 0 (off) or {MIN_FLOW_INTERVAL} to {MAX_FLOW_INTERVAL}",
        )
        return 0
    return value


def read_destination(node: Node, base: Path, problems: Problems) -> Sink | None:
    """A sink that stands for a destination of AWS's: in AWS's format, unless it says another."""
    return _read_sink(node, problems, base, LogFormat.AWS)


def _read_sink(node: Node, problems: Problems, base: Path, default_format: LogFormat = LogFormat.EVE) -> Sink | None:
    every = tuple(dict.fromkeys(key for keys in _SINK_KEYS.values() for key in keys))
    part = open_section(node, "log sink", every, _EXAMPLE, problems)
    if part is None:
        return None
    kind_node = part.require("type", " or ".join(kind.value for kind in SinkKind))
    kind = part.pick(kind_node, "type", SinkKind) if kind_node is not None else None
    if kind is None:
        return None
    for key in every:
        if key in part and key not in _SINK_KEYS[kind]:
            known = ", ".join(_SINK_KEYS[kind])
            part.error(part.key(key), f"{key}: a sink of type {kind.value} has none; its keys: {known}")
    path: Path | None = None
    if "path" in _SINK_KEYS[kind]:
        place = part.require("path", "the path of a file" if kind is SinkKind.FILE else "the path of a Unix socket")
        text = part.text("path", "a path")
        path = base / text if text else None
        if path is not None and kind is not SinkKind.FILE and len(str(path).encode()) > MAX_UNIX_PATH:
            part.error(place, f"path: expected at most {MAX_UNIX_PATH} bytes for a Unix socket")
    address = part.text("address", "udp://ADDRESS:PORT, tcp://ADDRESS:PORT or the path of a socket")
    facility = part.text("facility", "a facility such as local0", "daemon")
    try:
        _check_syslog(address, facility)
    except ValueError as error:
        part.error(part.get("address" if str(error).startswith("address") else "facility"), str(error))
        facility = "daemon"
    default = Log()
    return Sink(
        kind=kind,
        events=_events(part),
        format=part.choice("format", default_format),
        path=path,
        max_size=part.size("max_size", default.max_size, 64 << 10, 1 << 40),
        keep=part.integer("keep", 0, 1000, default.keep),
        address=address,
        facility=facility,
    )


def _check_syslog(address: str, facility: str) -> None:
    if facility not in FACILITIES:
        hint = suggest(facility, FACILITIES, nothing="expected one such as local0")
        raise ValueError(f"facility: unknown {shorten(facility)}; {hint}")
    if address and not address.startswith("/"):
        parse_remote(address)


def parse_remote(address: str) -> tuple[str, str, int]:
    """``udp://192.0.2.1:514`` or ``tcp://[2001:db8::1]:601`` -> (scheme, host, port). Raises ValueError.

    Names are not taken: nothing here may wait for a resolver whose packets may have to pass this very firewall.
    """
    expected = "address: expected udp://ADDRESS:PORT, tcp://ADDRESS:PORT with an IP address, or the path of a socket"
    scheme, found, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if scheme not in ("udp", "tcp") or not found or not colon or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{expected}, got {shorten(address)}")
    if not 0 < int(port[:6]) <= 65535:
        raise ValueError(f"{expected}, got port {shorten(port)}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{expected}, got {shorten(address)}") from None
    return scheme, host, int(port)


def _events(part: Section) -> tuple[str, ...]:
    if "events" not in part:
        return Log().events
    events = part.values("events", "[alert, drop, flow, tls]", _event, may_be_empty=True)
    return tuple(event for event in LOG_EVENTS if event in events)


def _event(text: str) -> str:
    if text not in LOG_EVENTS:
        raise ValueError(f'unknown event "{text[:60]}"; expected {", ".join(LOG_EVENTS)}')
    return text

"""Rules over a capture: what ``nfw replay --rules`` and the conformance runner do.

Settings are named as in Suricata's configuration, so that what people know, and what its test suite asks for, can be
said: see :data:`SETTINGS`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from engines.decode.checksums import tcp_checksum_ok
from engines.decode.defrag import FragmentPolicy
from engines.decode.layers import Layers
from engines.stateful.limits import DEFAULT_LIMITS, StatefulLimits
from engines.stateful.prefilter import DatabaseStore
from engines.stateful.ruleset import compile_ruleset
from engines.stateful.signature import Action, Signature
from engines.watch.segments import OverlapPolicy
from engines.watch.session import SessionOptions, UrgentPolicy
from nfw.capture import Captured
from nfw.giveups import GiveUps
from nfw.watch import DropLog, FlowTimeouts, MidstreamPolicy, Watcher, WatchOptions

# Variables of Suricata's stock configuration that rule sets use; HOME_NET and EXTERNAL_NET can be set.
ADDRESS_VARIABLES: Mapping[str, str] = {
    "HOME_NET": "[192.168.0.0/16,10.0.0.0/8,172.16.0.0/12]",
    "EXTERNAL_NET": "!$HOME_NET",
    **dict.fromkeys(
        (
            "HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "TELNET_SERVERS", "DC_SERVERS", "DNP3_SERVER",
            "DNP3_CLIENT", "MODBUS_CLIENT", "MODBUS_SERVER", "ENIP_CLIENT", "ENIP_SERVER",
        ),
        "$HOME_NET",
    ),
    "AIM_SERVERS": "$EXTERNAL_NET",
}  # fmt: skip
PORT_VARIABLES: Mapping[str, str] = {
    "HTTP_PORTS": "80",
    "SHELLCODE_PORTS": "!80",
    "ORACLE_PORTS": "1521",
    "SSH_PORTS": "22",
    "DNP3_PORTS": "20000",
    "MODBUS_PORTS": "502",
    "FILE_DATA_PORTS": "[$HTTP_PORTS,110,143]",
    "FTP_PORTS": "21",
    "GENEVE_PORTS": "6081",
    "VXLAN_PORTS": "4789",
    "TEREDO_PORTS": "3544",
}


class SettingError(ValueError):
    """A setting that does not exist, or a value that it cannot have; the text says which it could."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a capture is looked at. ``limits`` and ``watch`` are what the settings come to."""

    enforce: bool = False
    action_order: tuple[Action, ...] = tuple(Action)
    limits: StatefulLimits = DEFAULT_LIMITS
    session: SessionOptions = field(default_factory=lambda: SessionOptions(urgent=UrgentPolicy.OUT_OF_BAND))
    os_policy: Callable[[bytes], OverlapPolicy] | None = None
    midstream_policy: str = "auto"
    exception_policy: str = "auto"
    drop_log: DropLog = DropLog.ALL
    timeouts: FlowTimeouts = field(default_factory=FlowTimeouts)
    checksums: bool = False
    """TCP segments with a wrong checksum reach neither the stream nor the application layer."""

    def watch(self) -> WatchOptions:
        """The watcher's own. ``auto``: fail closed in IPS mode when mid-stream sessions are not picked up."""
        policy = self.midstream_policy if self.midstream_policy != "auto" else self.exception_policy
        if policy == "auto":
            policy = "drop-flow" if self.enforce and not self.session.midstream else "ignore"
        options = WatchOptions(
            enforce=self.enforce,
            midstream_policy=MidstreamPolicy(policy),
            drop_log=self.drop_log,
            session=self.session,
            timeouts=self.timeouts,
            checksum_ok=tcp_checksum_ok if self.checksums else None,
        )
        return options if self.os_policy is None else dataclasses.replace(options, os_policy=self.os_policy)


def _bool(text: str) -> bool:
    known = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
    if text.lower() not in known:
        raise SettingError(f"{text!r} is neither yes nor no")
    return known[text.lower()]


def _size(text: str) -> int:
    units = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
    number, unit = text.lower().strip(), 1
    for suffix, factor in units.items():
        if number.endswith(suffix):
            number, unit = number[:-2], factor
    if not number.isdigit():
        raise SettingError(f"{text!r} is no size such as 2560, 40kb or 1mb")
    return int(number) * unit


def _policy(text: str) -> str:
    known = ["auto", *(policy.value for policy in MidstreamPolicy)]
    if text not in known:
        raise SettingError(f"{text!r} is none of {', '.join(known)}")
    return text


def _seconds(text: str) -> float:
    if not text.isdigit():
        raise SettingError(f"{text!r} is no number of seconds")
    return float(text)


def _timeout(name: str) -> Callable[[ReplayOptions, str], ReplayOptions]:
    def apply(options: ReplayOptions, text: str) -> ReplayOptions:
        return dataclasses.replace(options, timeouts=dataclasses.replace(options.timeouts, **{name: _seconds(text)}))

    return apply


def _action_order(text: str) -> tuple[Action, ...]:
    known = [action.value for action in Action]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise SettingError(f"{name!r} is none of {', '.join(known)}")
    return tuple(map(Action, names))


def _session(name: str, read: Callable[[str], Any]) -> Callable[[ReplayOptions, str], ReplayOptions]:
    def apply(options: ReplayOptions, text: str) -> ReplayOptions:
        return dataclasses.replace(options, session=dataclasses.replace(options.session, **{name: read(text)}))

    return apply


def _app(name: str, read: Callable[[str], Any]) -> Callable[[ReplayOptions, str], ReplayOptions]:
    def apply(options: ReplayOptions, text: str) -> ReplayOptions:
        app = dataclasses.replace(options.limits.app, **{name: read(text)})
        return dataclasses.replace(options, limits=dataclasses.replace(options.limits, app=app))

    return apply


def _enabled(name: str) -> Callable[[ReplayOptions, str], ReplayOptions]:
    """Whether a protocol is parsed, or only recognised."""

    def apply(options: ReplayOptions, text: str) -> ReplayOptions:
        if text not in {"yes", "true", "detection-only"}:
            raise SettingError(f"{text!r} is neither yes nor detection-only")
        named = options.limits.app.named_only - {name} | ({name} if text == "detection-only" else frozenset())
        app = dataclasses.replace(options.limits.app, named_only=named)
        return dataclasses.replace(options, limits=dataclasses.replace(options.limits, app=app))

    return apply


def _option(name: str, read: Callable[[str], Any]) -> Callable[[ReplayOptions, str], ReplayOptions]:
    return lambda options, text: dataclasses.replace(options, **{name: read(text)})


def _max_alerts(options: ReplayOptions, text: str) -> ReplayOptions:
    return dataclasses.replace(options, limits=dataclasses.replace(options.limits, max_alerts=_size(text)))


def _os_policy(options: ReplayOptions, text: str) -> ReplayOptions:
    return dataclasses.replace(options, os_policy=host_os_policy(text))


_HTTP = "app-layer.protocols.http.libhtp.default-config."
SETTINGS: Mapping[str, Callable[[ReplayOptions, str], ReplayOptions]] = {
    "exception-policy": _option("exception_policy", _policy),
    "host-os-policy": _os_policy,
    "packet-alert-max": _max_alerts,
    "action-order": _option("action_order", _action_order),
    "drop.flows": _option("drop_log", DropLog),
    "flow-timeouts.new": _timeout("new"),
    "flow-timeouts.established": _timeout("established"),
    "flow-timeouts.closed": _timeout("closed"),
    "stream.checksum-validation": _option("checksums", _bool),
    "stream.inline": _session("inline", _bool),
    "stream.midstream": _session("midstream", _bool),
    "stream.midstream-policy": _option("midstream_policy", _policy),
    "stream.async-oneside": _session("async_oneside", _bool),
    "stream.reassembly.depth": _session("depth", _size),
    "stream.reassembly.toserver-chunk-size": _session("chunk_to_server", _size),
    "stream.reassembly.toclient-chunk-size": _session("chunk_to_client", _size),
    "stream.reassembly.urgent.policy": _session("urgent", UrgentPolicy),
    "app-layer.protocols.mqtt.max-msg-length": _app("mqtt_packet", _size),
    **{f"app-layer.protocols.{name}.enabled": _enabled(name) for name in ("ldap", "pgsql", "snmp", "ike")},
    _HTTP + "lzma-enabled": _app("lzma", _bool),
    _HTTP + "response-body-decompress-layer-limit": _app("decode_layers", _size),
    _HTTP + "request-body-limit": _app("request_body", _size),
    _HTTP + "response-body-limit": _app("response_body", _size),
}


def apply_setting(options: ReplayOptions, name: str, value: str) -> ReplayOptions:
    """``options`` with one setting changed. Raises SettingError, naming the nearest known setting."""
    apply = SETTINGS.get(name)
    if apply is None:
        near = get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(SETTINGS)}"
        raise SettingError(f"unknown setting {name}; {hint}")
    try:
        return apply(options, value)
    except ValueError as error:
        raise SettingError(f"{name}: {error}") from None


def host_os_policy(text: str) -> Callable[[bytes], OverlapPolicy]:
    """``windows``, or ``linux=10.0.0.0/8,bsd=0.0.0.0/0``: the overlap policy of a receiver; the longest prefix decides.
    A single name is of every IPv4 host, as in Suricata's stock configuration; others are ``bsd``."""
    networks = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, prefix = part.partition("=")
        policy = OverlapPolicy.parse(name)
        network = ipaddress.ip_network(prefix if equals else "0.0.0.0/0", strict=False)
        networks.append((network.version, int(network.network_address), network.prefixlen, policy))
    networks.sort(key=lambda item: -item[2])

    def of(address: bytes) -> OverlapPolicy:
        number, version, size = int.from_bytes(address, "big"), 4 if len(address) == 4 else 6, 8 * len(address)
        for family, base, length, policy in networks:
            if family == version and number >> (size - length) == base >> (size - length):
                return policy
        return OverlapPolicy.BSD

    return of


@dataclass(frozen=True, slots=True)
class Summary:
    """What a replay saw. ``last``: time of the last packet."""

    packets: int
    unread: int  # packets that carry no IP, or nothing readable
    counts: Mapping[str, int]
    hits: Mapping[str, int]


def replay(
    packets: Iterable[Captured],
    signatures: Iterable[Signature],
    options: ReplayOptions,
    event: Callable[[dict[str, Any]], None],
    store: DatabaseStore | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Run all packets; ``event`` gets each EVE record. ``store``: pattern databases made earlier; ``say`` is told of
    rules that gave up. What ``packets`` raises ends the capture there and is raised again when everything before it has
    been judged."""
    ruleset = compile_ruleset(signatures, "action", (), options.limits, options.action_order, store, captures=True)
    watching = options.watch()
    watcher = Watcher(ruleset, event, watching)
    # Receivers put fragments together by the same policy as segments.
    layers = Layers(lambda address: FragmentPolicy.parse(watching.os_policy(address).value))
    seen = unread = 0
    now = due = 0.0
    try:
        for captured in packets:
            seen, now = captured.number, max(now, captured.time)
            if now >= due:
                watcher.tick(now)
                due = now + 1.0
            carried = False
            size = len(captured.data)  # Suricata counts the frame for the outermost packet
            for layer in layers.read(captured.link_type, captured.data, now):
                if layer.packet is not None:
                    odd = frozenset(f"decoder.{event}" for event in layer.events)
                    watcher.packet(captured.number, layer.packet, captured.time, layer.vlans, odd, size)
                    carried, size = True, 0
                else:
                    watcher.frame(captured.number, layer.frame, captured.time, captured.link_type, captured.data)
            unread += not carried
    finally:
        watcher.finish(now)
        GiveUps(ruleset, say).look(now)
    if ruleset.overflowed:
        watcher.counts["detect.alert_queue_overflow"] = ruleset.overflowed
    return Summary(seen, unread, watcher.counts, ruleset.hit_counts())

"""Event records in Suricata's EVE shape, built from engine values. Pure: values in, dictionaries out.

Source: Suricata user guide, "Eve JSON Format". Fields of our own are kept under ``nfw`` so that tools reading
``eve.json`` are not surprised. Payload bytes and keys never appear here; names from the network are strings that
``json.dumps`` escapes.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

PROTOCOLS = {
    1: "ICMP", 2: "IGMP", 4: "IP-in-IP", 6: "TCP", 17: "UDP",
    41: "IPv6", 47: "GRE", 50: "ESP", 58: "IPv6-ICMP", 132: "SCTP",
}  # fmt: skip

Event = dict[str, Any]


def address(packed: bytes) -> str:
    """Text of a packed IPv4 or IPv6 address."""
    return str(ipaddress.ip_address(packed))


def timestamp(now: float) -> str:
    """EVE's form of a wall-clock time: ``2025-03-14T15:30:03.633598+0000``."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


def base(
    kind: str, now: float, *, flow_id: int, protocol: int, src: bytes, sport: int, dst: bytes, dport: int
) -> Event:
    """The fields every record has. ``now`` is wall-clock seconds."""
    event: Event = {
        "timestamp": timestamp(now),
        "flow_id": flow_id,
        "event_type": kind,
        "src_ip": address(src),
        "dest_ip": address(dst),
        "proto": PROTOCOLS.get(protocol, str(protocol)),
    }
    if protocol in (6, 17, 132):
        event["src_port"] = sport
        event["dest_port"] = dport
    return event


def alert_fields(signature: Any, action: str) -> Event:
    """The ``alert`` object of a matching :class:`engines.stateful.signature.Signature`."""
    fields: Event = {
        "action": action,
        "gid": signature.ref.gid,
        "signature_id": signature.ref.id,
        "rev": signature.ref.rev,
        "signature": signature.ref.msg,
        "category": signature.category,
        "severity": signature.priority,
    }
    if signature.references:
        fields["references"] = list(signature.references)
    if signature.metadata:
        fields["metadata"] = {key: list(values) for key, values in signature.metadata.items()}
    return fields


def where(rule: Any) -> Event:
    """Our own fields naming a rule: engine, id and ``file:line``."""
    if rule is None:
        return {}
    named: Event = {"rule": f"{rule.engine}:{rule.id}"}
    if rule.file:
        named["rule_at"] = f"{rule.file}:{rule.line}"
    return named


def line(event: Mapping[str, Any]) -> bytes:
    """One JSON line. Bytes that are not text cannot get here, but a bad surrogate must not stop a log."""
    return json.dumps(event, separators=(",", ":"), default=str).encode("utf-8", "backslashreplace") + b"\n"

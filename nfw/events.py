"""Event records in Suricata's EVE shape, built from engine values. Pure: values in, dictionaries out.

Source: Suricata user guide, "Eve JSON Format". Fields of our own are kept under ``nfw`` so that tools reading
``eve.json`` are not surprised. Payload bytes and keys never appear here; names from the network are strings that
``json.dumps`` escapes.
"""

from __future__ import annotations

import functools
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


@functools.lru_cache(4096)
def address(packed: bytes) -> str:
    """Text of a packed IPv4 or IPv6 address."""
    return str(ipaddress.ip_address(packed))


def timestamp(now: float) -> str:
    """EVE's form of a wall-clock time: ``2025-03-14T15:30:03.633598+0000``."""
    second = int(now)
    micros = round((now - second) * 1_000_000)
    if micros == 1_000_000:
        second, micros = second + 1, 0
    return f"{_second(second)}.{micros:06d}+0000"


@functools.lru_cache(16)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()[:19]


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


def verdict(signature: Any, action: str) -> str:
    """EVE ``verdict.action`` of an alert whose ``alert.action`` is ``action``."""
    named = str(signature.action.value)
    if action == "blocked":
        return "reject" if named.startswith("reject") else "drop"
    return "pass" if named == "pass" else "alert"


def only_watched(event: Event) -> Event:
    """``event`` as mode monitor writes it: nothing was blocked, but ``verdict.would_be`` says what would have been."""
    named = event.get("verdict")
    if named is not None and named["action"] in ("drop", "reject"):
        event["verdict"] = {"action": "pass", "would_be": named["action"]}
        if event.get("event_type") == "alert":
            event["alert"]["action"] = "allowed"
    return event


_TCP_FLAGS = (("syn", 0x02), ("fin", 0x01), ("rst", 0x04), ("psh", 0x08), ("ack", 0x10), ("urg", 0x20), ("ecn", 0x40),
              ("cwr", 0x80))  # fmt: skip


def tcp_flags(to_server: int, to_client: int) -> Event:
    """EVE ``tcp`` object of a flow: the flags each side has sent."""
    both = to_server | to_client
    fields: Event = {
        "tcp_flags": f"{both:02x}",
        "tcp_flags_ts": f"{to_server:02x}",
        "tcp_flags_tc": f"{to_client:02x}",
    }
    fields.update((name, True) for name, bit in _TCP_FLAGS if both & bit)
    return fields


def stats(status: Mapping[str, Any], uptime: float, now: float) -> Event:
    """EVE ``stats`` record of the daemon's status. Names are Suricata's; what it has no name for is under ``nfw``."""
    total = {"received": 0, "received_bytes": 0, "dropped": 0}
    sums = dict.fromkeys(
        ("flows", "sessions", "log_dropped", "bugs", "alert", "rejected", "invalid", "pass", "full"), 0
    )
    for process in status.get("processes") or ():
        for name in total:
            total[name] += (process.get("packets") or {}).get(name, 0)
        for name in ("flows", "sessions", "log_dropped", "bugs"):
            sums[name] += process.get(name) or 0
        counts = process.get("counts") or {}
        sums["alert"] += counts.get("alert", 0)
        sums["invalid"] += counts.get("invalid_packet", 0)
        sums["full"] += counts.get("flow_table_full", 0)
        for key, count in (process.get("verdicts") or {}).items():
            if key.startswith(("flow/reject/", "stateful/reject/")):
                sums["rejected"] += count
    queues = ((status.get("kernel") or {}).get("queues") or {}).values()
    dropped = sum(queue.get("dropped", 0) + queue.get("user_dropped", 0) for queue in queues)
    return {
        "timestamp": timestamp(now),
        "event_type": "stats",
        "stats": {
            "uptime": int(uptime),
            "capture": {"kernel_drops": dropped},
            "decoder": {"pkts": total["received"], "bytes": total["received_bytes"], "invalid": sums["invalid"]},
            "flow": {"active": sums["flows"], "memcap": sums["full"]},
            "ips": {
                "accepted": max(0, total["received"] - total["dropped"]),
                "blocked": total["dropped"] - sums["rejected"],
                "rejected": sums["rejected"],
            },
            "detect": {"alert": sums["alert"]},
        },
        "nfw": {
            "generation": status.get("generation", 0),
            "state": status.get("state", ""),
            "tls_sessions": sums["sessions"],
            "log_dropped": sums["log_dropped"],
            "bugs": sums["bugs"],
        },
    }


def line(event: Mapping[str, Any]) -> bytes:
    """One JSON line. Bytes that are not text cannot get here, but a bad surrogate must not stop a log."""
    return _ENCODER.encode(event).encode("utf-8", "backslashreplace") + b"\n"


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str)

"""EVE records as AWS Network Firewall writes them: its ALERT, FLOW and TLS logs. Pure.

Source: AWS Network Firewall Developer Guide, "Contents of a Network Firewall log". A record of ours that is neither an
alert, nor the end of a flow, nor a TLS session that failed is none of theirs. Two things have no counterpart on a
router: ``availability_zone`` is ``-``, and a flow's netflow records have no TTLs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Record = dict[str, Any]

_NO_ERROR = frozenset(("OK", "BYPASSED", "POLICY", "ABORTED", "ENDED"))
_FLAGS = (("fin", 0x01), ("syn", 0x02), ("rst", 0x04), ("psh", 0x08), ("ack", 0x10), ("urg", 0x20), ("ecn", 0x40),
          ("cwr", 0x80))  # fmt: skip
_BASE = ("src_ip", "src_port", "dest_ip", "dest_port", "proto", "app_proto")
# What an ALERT has of the event besides the alert itself.
_OF_ALERT = ("direction", "tx_id", "pkt_src", "verdict", "tls", "http", "dns", "ssh", "smtp", "tls_inspected")


def records(event: Mapping[str, Any], firewall: str) -> list[Record]:
    """What AWS would log of ``event``, an EVE record; empty where it logs nothing. ``firewall``: the policy's name."""
    kind = event.get("event_type")
    if kind == "alert":
        return [_envelope(event, firewall, _alert(event), text=True)]
    if kind == "flow":
        return [_envelope(event, firewall, half, text=True) for half in _netflows(event)]
    if kind == "tls":
        failed = _tls(event)
        return [] if failed is None else [_envelope(event, firewall, failed, text=False)]
    return []


def _envelope(event: Mapping[str, Any], firewall: str, inner: Record, *, text: bool) -> Record:
    at = int(datetime.strptime(str(event["timestamp"]), "%Y-%m-%dT%H:%M:%S.%f%z").timestamp())
    return {
        "firewall_name": firewall,
        "availability_zone": "-",
        "event_timestamp": str(at) if text else at,
        "event": inner,
    }


def _alert(event: Mapping[str, Any]) -> Record:
    inner: Record = {"timestamp": event["timestamp"], "flow_id": event.get("flow_id", 0), "event_type": "alert"}
    inner.update((name, event[name]) for name in (*_BASE, *_OF_ALERT) if name in event)
    inner["alert"] = dict(event["alert"])
    return inner


def _netflows(event: Mapping[str, Any]) -> list[Record]:
    """Two records with one flow_id: what the client sent, and what the server sent."""
    flow, tcp = event["flow"], event.get("tcp") or {}
    halves = []
    for side, flags in (("toserver", "tcp_flags_ts"), ("toclient", "tcp_flags_tc")):
        inner: Record = {"timestamp": event["timestamp"], "flow_id": event.get("flow_id", 0), "event_type": "netflow"}
        inner.update((name, event[name]) for name in _BASE if name in event)
        if side == "toclient":
            inner["src_ip"], inner["dest_ip"] = inner["dest_ip"], inner["src_ip"]
            if "src_port" in inner:
                inner["src_port"], inner["dest_port"] = inner["dest_port"], inner["src_port"]
        if event.get("proto") == "TCP" and flags in tcp:
            value = int(tcp[flags], 16)
            inner["tcp"] = {"tcp_flags": tcp[flags], **{name: True for name, bit in _FLAGS if value & bit}}
        netflow: Record = {name: flow[f"{name}_{side}"] for name in ("pkts", "bytes") if f"{name}_{side}" in flow}
        netflow.update(
            (name, flow[name]) for name in ("start", "end", "age", "state", "reason", "alerted") if name in flow
        )
        inner["netflow"] = netflow
        halves.append(inner)
    return halves


def _tls(event: Mapping[str, Any]) -> Record | None:
    ours, tls = event.get("nfw") or {}, event.get("tls") or {}
    status = str(ours.get("status", ""))
    revocation = event.get("revocation_check") or {}
    revoked = revocation.get("status") in ("REVOKED", "UNKNOWN")
    if status in _NO_ERROR and not revoked:
        return None
    sni = str(tls.get("sni") or "-")
    inner: Record = {
        "timestamp": re.sub(r"\+0000$", "Z", str(event["timestamp"])),
        "src_ip": event["src_ip"],
        "src_port": str(event.get("src_port", "")),
        "dest_ip": event["dest_ip"],
        "dest_port": str(event.get("dest_port", "")),
        "sni": sni,
    }
    if revoked:  # also where the policy lets it pass
        inner["revocation_check"] = {name: revocation.get(name, "") for name in ("leaf_cert_fpr", "status", "action")}
        return inner
    detail = str(ours.get("detail") or ours.get("reason") or status)
    if status == "NO_SNI":
        detail = "Server name is not found in client hello."
    elif status == "NAME_MISMATCH":
        names = "/".join(map(str, tls.get("server_names") or ()))
        detail = f"SNI: {sni} Match Failed to server certificate names: {names} "
    inner["tls_error"] = {"error_message": detail}
    return inner

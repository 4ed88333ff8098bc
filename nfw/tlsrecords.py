"""The log records of the TLS path: per session one ``tls`` and one ``flow`` record, plus alerts and drops.

Plaintext never gets here: what is logged of a request are the fields its parser names.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from engines.stateful.inspector import Alert, FlowFacts
from engines.tls.events import SessionInfo
from engines.tls.revocation import Conclusion
from engines.tls.verify import ServerChain
from engines.verdict import Decision, Direction
from nfw import events


def base(facts: FlowFacts, kind: str, unix_time: float, direction: Direction = Direction.TO_SERVER) -> dict[str, Any]:
    """What every record of a flow has; source is who sent what the record is about."""
    source, destination = (facts.client, facts.client_port), (facts.server, facts.server_port)
    if direction is Direction.TO_CLIENT:
        source, destination = destination, source
    return events.base(
        kind,
        unix_time,
        flow_id=facts.id,
        protocol=socket.IPPROTO_TCP,
        src=source[0],
        sport=source[1],
        dst=destination[0],
        dport=destination[1],
    )


def alert(facts: FlowFacts, found: Alert, decrypted: bool, unix_time: float) -> dict[str, Any]:
    """A rule that matched."""
    event = base(facts, "alert", unix_time, found.direction)
    event["direction"] = "to_server" if found.direction is Direction.TO_SERVER else "to_client"
    event["alert"] = events.alert_fields(found.rule, found.action)
    event["verdict"] = {"action": events.verdict(found.rule, found.action)}
    if found.app_proto:
        event["app_proto"] = found.app_proto
    event.update(found.tx)
    if decrypted:
        event["tls_inspected"] = True
    event["nfw"] = {"stage": "stateful", **events.where(found.rule.ref)}
    return event


def transaction(
    facts: FlowFacts, kind: str, tx_id: int, fields: dict[str, object], decrypted: bool, unix_time: float
) -> dict[str, Any]:
    """A request and its answer, of whatever the session carries."""
    event = base(facts, kind, unix_time)
    event["tx_id"] = tx_id
    event[kind] = fields
    if decrypted:
        event["tls_inspected"] = True
    return event


def drop(facts: FlowFacts, decision: Decision, unix_time: float) -> dict[str, Any]:
    """A decision that ended a session."""
    event = base(facts, "drop", unix_time)
    event["drop"] = {"reason": decision.reason}
    event["verdict"] = {"action": decision.verdict.value}
    event["nfw"] = {"reason": decision.reason, "stage": "stateful", **events.where(decision.rule)}
    return event


def tls(
    facts: FlowFacts,
    status: str,
    action: str,
    reason: str,
    detail: str,
    info: SessionInfo | None,
    decision: Decision | None,
    unix_time: float,
) -> dict[str, Any]:
    """How a session ended and what both legs were. ``action``: pass, drop or reject."""
    event = base(facts, "tls", unix_time)
    event["tls"] = _negotiated(info)
    event["nfw"] = {"status": status, "action": action, "reason": reason}
    if info is not None and info.revocation is not None and info.chain is not None:
        event["revocation_check"] = _revocation_check(info, info.chain, info.revocation)
    if detail:
        event["nfw"]["detail"] = detail
    if info is not None and info.inbound:
        event["nfw"]["inbound"] = True
    if info is not None and info.bypass:
        event["nfw"]["bypass"] = info.bypass
    if info is not None and info.bypass_refused:
        event["nfw"]["bypass_refused"] = info.bypass_refused
    if info is not None and info.remarks:
        event["nfw"]["remarks"] = info.remarks
    if info is not None and info.passed:
        event["nfw"]["passed"] = info.passed
    if info is not None and info.chain is not None and info.chain.completed:
        event["nfw"]["issuers_fetched"] = True
    if info is not None and info.chain is not None and info.chain.timestamps is not None:
        event["nfw"]["sct"] = info.chain.timestamps.value
    if info is not None and info.chain is not None and info.chain.exception not in (None, "passed"):
        event["nfw"]["second_path"] = info.chain.exception
    if decision is not None:
        event["verdict"] = {"action": decision.verdict.value}
        event["nfw"].update(events.where(decision.rule))
    if info is not None and info.would_be:
        event["verdict"] = {"action": info.would_be}
    return event


def flow(
    facts: FlowFacts,
    counted: Sequence[int],
    app_proto: str,
    alerted: bool,
    decrypted: bool,
    reason: str,
    started: float,
    unix_time: float,
) -> dict[str, Any]:
    """The flow as netflow would have it; ``counted`` are bytes by direction, of plaintext where there is any."""
    event = base(facts, "flow", unix_time)
    event["flow"] = {
        "bytes_toserver": counted[Direction.TO_SERVER],
        "bytes_toclient": counted[Direction.TO_CLIENT],
        "start": events.timestamp(started),
        "end": events.timestamp(unix_time),
        "age": int(unix_time - started),
        "reason": reason,
        "alerted": alerted,
    }
    event["app_proto"] = app_proto or "tls"
    if decrypted:
        event["tls_inspected"] = True
    return event


def _revocation_check(info: SessionInfo, chain: ServerChain, found: Conclusion) -> dict[str, Any]:
    """AWS's ``revocation_check`` (leaf_cert_fpr, status, action) and who said so. ``depth`` 0 is the leaf."""
    record: dict[str, Any] = {
        "leaf_cert_fpr": chain.leaf.sha256.hex(),
        "status": found.finding.status.value,
        "action": info.revocation_action.upper(),
        "method": found.finding.method,
        "reason": found.finding.reason,
        "depth": found.depth,
    }
    if found.finding.source:
        record["source"] = found.finding.source
    return record


def _negotiated(info: SessionInfo | None) -> dict[str, Any]:
    """The ``tls`` object of a record: what both legs negotiated and who the server proved to be."""
    record: dict[str, Any] = {"sni": (info.sni if info is not None else None) or "-"}
    if info is None:
        return record
    if info.hello is not None:
        fingerprints = info.hello.fingerprints
        record["ja3"] = {"hash": fingerprints.ja3, "string": fingerprints.ja3_string}
        record["ja4"] = fingerprints.ja4
        if info.hello.has_ech:
            record["ech"] = True  # or GREASE, which looks the same
    for name, leg in (("client", info.client), ("server", info.server)):
        if leg is not None:
            record[name] = {"version": leg.version, "cipher": leg.cipher, "group": leg.group, "alpn": leg.alpn}
    if info.server is not None:
        record["version"] = info.server.version
        if info.resumed:
            record["server"]["resumed"] = True
    if info.server_names:
        record["server_names"] = list(info.server_names)
    if info.chain is not None:
        record["fingerprint"] = info.chain.fingerprints[0]
        record["chain"] = list(info.chain.fingerprints)
    record["bytes_toserver"], record["bytes_toclient"] = info.forwarded
    if any(info.truncated):
        record["truncated"] = [
            name for name, cut in zip(("to_server", "to_client"), info.truncated, strict=True) if cut
        ]
    return record

"""A list of flows as a file: what AWS's flow capture returns, or EVE records.

``aws`` has the fields of AWS Network Firewall's ``DescribeFlowOperation`` and ``ListFlowOperationResults`` in one
document; what AWS has no field for is under ``nfw`` of each flow. ``eve`` is a ``flow`` record a line, each marked as
not the flow's last one (``flow.state`` and ``nfw.final``: false).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nfw import events
from nfw.flows.filter import FlowFilter
from nfw.flows.record import FlowRecord
from nfw.policy.values import protocol_name

MAX_FLOWS = 1_000_000


def write(
    path: Path, form: str, records: Iterable[FlowRecord], wanted: FlowFilter, generation: int, now: float, limit: int
) -> tuple[int, bool]:
    """Write at most ``limit`` flows; how many, and whether there were more. ``form``: ``aws`` or ``eve``; ``now``: Unix
    time. The file appears when it is complete, readable by its owner only. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count, more = 0, False

    def counted() -> Iterator[FlowRecord]:
        nonlocal count, more
        for record in records:
            if count >= limit:
                more = True
                return
            count += 1
            yield record

    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if form == "aws":
                file.write('{"Flows": [')
                for number, record in enumerate(counted()):
                    file.write((",\n" if number else "\n") + json.dumps(aws_flow(record, generation)))
                about = {
                    "FlowOperationType": "FLOW_CAPTURE",
                    "FlowOperationStatus": "COMPLETED_WITH_ERRORS" if more else "COMPLETED",
                    "FlowRequestTimestamp": int(now),
                    "FlowOperation": aws_operation(wanted),
                }
                if more:
                    about["StatusMessage"] = f"there are more than the {limit} flows asked for"
                file.write("\n], " + json.dumps(about)[1:] + "\n")
            else:
                for record in counted():
                    file.write(json.dumps(eve_flow(record, generation, now), separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return count, more


def aws_operation(wanted: FlowFilter) -> dict[str, Any]:
    """The filter as ``FlowOperation``. AWS's has one address and one range a field, so several become several."""
    longest = max(map(len, (wanted.sources, wanted.destinations, wanted.source_ports, wanted.destination_ports)))
    rows: list[Mapping[str, Any]] = []
    for at in range(max(1, longest)):
        row: dict[str, Any] = {}
        for name, values in (("SourceAddress", wanted.sources), ("DestinationAddress", wanted.destinations)):
            if values:
                row[name] = {"AddressDefinition": str(values[min(at, len(values) - 1)])}
        for name, ranges in (("SourcePort", wanted.source_ports), ("DestinationPort", wanted.destination_ports)):
            if ranges:
                low, high = ranges[min(at, len(ranges) - 1)]
                row[name] = str(low) if low == high else f"{low}:{high}"
        if wanted.protocols:
            row["Protocols"] = [protocol_name(number).upper() for number in wanted.protocols]
        rows.append(row)
    return {"MinimumFlowAgeInSeconds": int(wanted.min_age), "FlowFilters": rows if any(rows) else []}


def aws_flow(record: FlowRecord, generation: int) -> dict[str, Any]:
    """One of ``Flows``; packets and bytes of both directions together, as there."""
    return {
        "SourceAddress": {"AddressDefinition": events.address(record.client)},
        "DestinationAddress": {"AddressDefinition": events.address(record.server)},
        "SourcePort": str(record.client_port),
        "DestinationPort": str(record.server_port),
        "Protocol": protocol_name(record.protocol).upper(),
        "Age": int(record.age or 0),
        "PacketCount": sum(record.packets),
        "ByteCount": sum(record.octets),
        "nfw": record.to_json(generation),
    }


def eve_flow(record: FlowRecord, generation: int, now: float) -> dict[str, Any]:
    """An EVE ``flow`` record of a flow that is still open. ``now``: Unix time."""
    event = events.base(
        "flow",
        now,
        flow_id=record.id,
        protocol=record.protocol,
        src=record.client,
        sport=record.client_port,
        dst=record.server,
        dport=record.server_port,
    )
    started = now - (record.age or 0.0)
    event["flow"] = {
        "pkts_toserver": record.packets[0],
        "pkts_toclient": record.packets[1],
        "bytes_toserver": record.octets[0],
        "bytes_toclient": record.octets[1],
        "start": events.timestamp(started),
        "end": events.timestamp(now - (record.idle or 0.0)),
        "age": int(record.age or 0),
        "state": record.state or "established",
        "reason": "active",
        "alerted": False,
    }
    if record.app_proto:
        event["app_proto"] = record.app_proto
    if record.name:
        event["tls"] = {"sni": record.name}
    if record.verdict != "inspect":
        event["verdict"] = {"action": "accept" if record.verdict == "pass" else record.verdict}
    about = {"final": False, "generation": generation, "kept_by": record.kept_by, "reason": record.reason}
    event["nfw"] = about | {key: value for key, value in (("rule", record.rule), ("rule_at", record.rule_at)) if value}
    return event

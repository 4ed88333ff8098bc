"""A worker's flows, told in slices between packets.

A list of a hundred thousand flows takes a worker about a second, and no packet may wait for that: each page is at most
:data:`SLICE_SECONDS` of work and :data:`PAGE_ROWS` rows, and whoever asks comes back for the next. A walk begins with a
copy of pointers (a millisecond for 100,000 flows); what ends meanwhile is left out, what begins may be.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.verdict import Verdict
from nfw.flows.filter import FlowFilter
from nfw.flows.record import DROP, INSPECT, KERNEL, PASS, REJECT, TLS, WORKER, FlowRecord, named, where

if TYPE_CHECKING:
    from engines.flow import Flow
    from engines.verdict import Decision
    from nfw.flows.ledger import Settled
    from nfw.pipeline import Pipeline
    from nfw.tlsflow import Flow as Session

SLICE_SECONDS = 0.001  # a packet of a busy worker waits longer for its turn in the queue
PAGE_ROWS = 400  # at most 800 bytes each, in a message of 1 MiB
WALKS = 4  # at a time; one more ends the one that was not asked for longest
WALK_SECONDS = 30.0  # without being asked for the next page; a walk keeps flows alive that have ended
LATE = "did not answer"  # within an error after which the same page may be asked for again
_LOOKS = 16  # flows between two looks at the clock


@dataclass(slots=True)
class _Walk:
    """``page`` is number ``number``, kept for an asker who has not got it in time."""

    flows: Iterator[FlowRecord]
    wanted: FlowFilter
    asked: float
    number: int = -1
    page: dict[str, Any] = field(default_factory=dict)


class Listings:
    """The walks of one worker, by the asker's token."""

    def __init__(self, walk: Callable[[float], Iterator[FlowRecord]]) -> None:
        self._walk = walk
        self._open: OrderedDict[int, _Walk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def page(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        """The answer to ``{"token": number, "page": number from 0, "filter": with the first}``: ``rows`` and ``done``
        beside ``token`` and ``page``, or ``error``. The last page told may be asked for again."""
        token, number = int(body.get("token", 0)), int(body.get("page", 0))
        walk = self._open.pop(token, None)
        if walk is None and "filter" in body:
            try:
                walk = _Walk(self._walk(now), FlowFilter.from_plain(body["filter"]), now)
            except ValueError as error:
                return {"error": "; ".join(map(str, error.args))}
        if walk is None or number not in (walk.number, walk.number + 1):
            return {"error": "the list was given up: too many were asked for at the same time, or this one too slowly"}
        self._open[token] = walk
        while len(self._open) > WALKS:
            self._open.popitem(last=False)
        walk.asked = now
        if number > walk.number:
            rows, done = _slice(walk.flows, walk.wanted)
            walk.number, walk.page = number, {"token": token, "page": number, "rows": rows, "done": done}
        return walk.page

    def expire(self, now: float) -> None:
        """Give up walks nobody asks for."""
        while self._open:
            token, walk = next(iter(self._open.items()))
            if now - walk.asked < WALK_SECONDS:
                return
            del self._open[token]


def _slice(walk: Iterator[FlowRecord], wanted: FlowFilter) -> tuple[list[FlowRecord], bool]:
    until = time.perf_counter() + SLICE_SECONDS
    rows: list[FlowRecord] = []
    for looked, record in enumerate(walk, 1):
        if wanted.matches(record):
            rows.append(record)
        if len(rows) >= PAGE_ROWS or (looked % _LOOKS == 0 and time.perf_counter() >= until):
            return rows, False
    return rows, True


# -- records -----------------------------------------------------------------------------------------------------------


def pipeline_flows(pipeline: Pipeline, now: float) -> Iterator[FlowRecord]:
    """Of a packet worker: those in its table, then those it has left to the kernel."""
    for flow in pipeline.table.walk():
        yield _tracked(flow, now)
    for settled in pipeline.ledger.walk():
        yield _settled(settled, now)


def session_flows(sessions: Mapping[int, Session], now: float) -> Iterator[FlowRecord]:
    """Of a TLS worker."""
    for session in list(sessions.values()):
        if not session.finished_at:
            yield _session(session, now)


def verdict(decision: Decision | None) -> tuple[str, str]:
    """Verdict and reason as they are listed."""
    if decision is None:
        return INSPECT, ""
    if decision.verdict is Verdict.ACCEPT:
        return PASS, decision.reason
    return (REJECT if decision.verdict is Verdict.REJECT else DROP), decision.reason


def _tracked(flow: Flow, now: float) -> FlowRecord:
    context = flow.context
    said, reason = verdict(context.decision if context is not None else None)
    inspector = context.inspector if context is not None else None
    rule = context.decision.rule if context is not None and context.decision is not None else None
    return FlowRecord(
        flow.id,
        flow.protocol,
        flow.client,
        flow.client_port,
        flow.server,
        flow.server_port,
        now - flow.created,
        now - flow.last_seen,
        (flow.packets[0], flow.packets[1]),
        (flow.bytes[0], flow.bytes[1]),
        inspector.app_proto if inspector is not None else "",
        named(inspector.server_name) if inspector is not None else "",
        said,
        reason,
        *where(rule),
        flow.tcp_state.value if flow.halves is not None else ("established" if flow.established else "new"),
        WORKER,
        key=flow.keys[0],
    )


def _settled(flow: Settled, now: float) -> FlowRecord:
    return FlowRecord(
        flow.id,
        flow.protocol,
        flow.client,
        flow.client_port,
        flow.server,
        flow.server_port,
        now - flow.created,
        None,
        flow.packets,
        flow.octets,
        flow.app_proto,
        named(flow.name),
        flow.refused or PASS,
        flow.reason,
        *where(flow.rule),
        "",
        KERNEL,
        key=flow.key,
    )


def _session(session: Session, now: float) -> FlowRecord:
    facts, inspector = session.facts, session.inspector
    said, reason = verdict(session.decision)
    app_proto = inspector.app_proto if inspector is not None else ""
    return FlowRecord(
        session.key,
        facts.protocol,
        facts.client,
        facts.client_port,
        facts.server,
        facts.server_port,
        now - session.started,
        now - session.last,
        (0, 0),
        (session.bytes[0], session.bytes[1]),
        app_proto or "tls",
        named(session.session.info.sni or ""),
        said,
        reason,
        *where(session.decision.rule if session.decision is not None else None),
        session.stage,
        TLS,
    )

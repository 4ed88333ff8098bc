"""All flows of a running firewall, put together by the process that asks: the workers know names and rules, the kernel
knows how much was carried. The daemon's part is a small page at a time; reading the kernel's list is the asker's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.packet import TCP, UDP
from nfw.control import ControlClient, ControlError, Reply
from nfw.flows import kernel
from nfw.flows.desk import FLUSH_FLOWS
from nfw.flows.filter import FlowFilter
from nfw.flows.kernel import KernelFlow
from nfw.flows.listing import LATE
from nfw.flows.record import DROP, KERNEL, PASS, FlowRecord
from nfw.marks import Disposition, MarkLayout

PATIENCE = 10  # times a page is asked for again

_VERDICTS = {
    Disposition.PASS: PASS,
    Disposition.PASS_UDP: PASS,
    Disposition.DROP: DROP,
    Disposition.DROP_UDP: DROP,
}
_Key = tuple[int, bytes, int, bytes, int]


@dataclass(frozen=True, slots=True)
class Listed:
    """A flow and what the kernel has of it; of protocols without ports, of every flow between the two."""

    record: FlowRecord
    entries: tuple[KernelFlow, ...] = ()


class FlowsError(ControlError):
    """The daemon refused; one line for the operator."""


class _LateError(FlowsError):
    """A process was too busy; it may be asked once more."""


class FlowClient:
    """Lists and flushes. Raises :class:`ControlError` when the daemon does not answer, FlowsError when it refuses."""

    def __init__(self, control: ControlClient) -> None:
        self.control = control
        self.generation = 0
        self.notes: list[str] = []  # what is missing from the list, for the operator

    def flows(self, wanted: FlowFilter) -> Iterator[Listed]:
        """Every flow that is meant, in no order. The daemon is asked anew for each page."""
        told = self._ask("flows")
        self.generation = int(told["generation"])
        entries = self._kernel(MarkLayout(int(told["mark_mask"])))
        for process in told["processes"]:
            for record in self._pages(str(process), wanted):
                listed = entries.join(record)
                if listed is not None and wanted.matches(listed.record):
                    yield listed
        for listed in entries.rest():
            if wanted.matches(listed.record):
                yield listed

    def flush(self, flows: Sequence[Listed]) -> int:
        """End these; how many were still there."""
        ended = 0
        for at in range(0, len(flows), FLUSH_FLOWS):
            batch = [[one.record, one.entries] for one in flows[at : at + FLUSH_FLOWS]]
            ended += int(self._ask("flush", generation=self.generation, flows=batch)["ended"])
        return ended

    def _pages(self, process: str, wanted: FlowFilter) -> Iterator[FlowRecord]:
        token = int.from_bytes(os.urandom(6), "big")
        for number in itertools.count():
            first = {} if number else {"filter": wanted.to_plain()}
            page = self._page(process=process, token=token, page=number, **first)
            if page["generation"] != self.generation:
                raise FlowsError("another policy was applied meanwhile; ask again")
            for row in page["rows"]:
                yield FlowRecord.from_wire(row)._replace(process=process)
            if page["done"]:
                return

    def _page(self, **args: object) -> dict[str, Any]:
        """A worker may be busy for longer than anybody waits for it."""
        for _ in range(PATIENCE):
            with contextlib.suppress(_LateError):
                return self._ask("flows", **args)
        return self._ask("flows", **args)

    def _kernel(self, layout: MarkLayout) -> Entries:
        try:
            return Entries(kernel.dump(layout.compose(self.generation, 0), layout.generation_mask), layout, time.time())
        except PermissionError:
            self.notes.append("flows the kernel forwards by itself are left out: to read them needs CAP_NET_ADMIN")
        except OSError as error:
            self.notes.append(f"flows the kernel forwards by itself are left out: {error.strerror or error}")
        return Entries((), layout, time.time())

    def _ask(self, command: str, **args: object) -> dict[str, Any]:
        reply: Reply = self.control.request(command, **args)
        if not reply.ok or not isinstance(reply.data, dict):
            if reply.errors and LATE in reply.errors[0]:
                raise _LateError("; ".join(reply.errors))
            raise FlowsError("; ".join(reply.errors) or "an answer that cannot be read")
        return reply.data


@dataclass(slots=True)
class Entries:
    """The kernel's entries of one generation. Each is taken once; what is left at the end nobody else has told of."""

    found: Iterator[KernelFlow] | Sequence[KernelFlow]
    layout: MarkLayout
    now: float
    _by_key: dict[_Key, list[KernelFlow]] = field(default_factory=dict)
    _limits: Mapping[str, int] = field(default_factory=kernel.timeouts)

    def __post_init__(self) -> None:
        """Read them all; the kernel's list does not wait."""
        for entry in self.found:
            self._by_key.setdefault(entry.key, []).append(entry)

    def join(self, record: FlowRecord) -> Listed | None:
        """The worker's record with what the kernel counted. None: it was the kernel's and has ended since."""
        key = (record.protocol, record.client, record.client_port, record.server, record.server_port)
        entries = self._by_key.pop(key, None)
        if entries is None and record.kept_by == KERNEL:  # the first packet nfw saw may have been the server's
            back = (record.protocol, record.server, record.server_port, record.client, record.client_port)
            entries = self._by_key.pop(back, None)
            if entries is None:
                return None
        if entries is None:
            return Listed(record)
        entry = entries[0]
        if record.protocol in (TCP, UDP):
            record = self._known(record, entry)
        return Listed(record, tuple(entries))

    def rest(self) -> Iterator[Listed]:
        """What the kernel passes or drops by itself and no worker remembers."""
        for (protocol, *_), entries in self._by_key.items():
            for entry in entries:
                verdict = _VERDICTS.get(self.layout.split(entry.mark)[1])
                if verdict is None:
                    continue
                ends = entry.client, entry.client_port, entry.server, entry.server_port
                nothing = (0, 0)
                bare = FlowRecord(
                    0, protocol, *ends, None, None, nothing, nothing, "", "", verdict, "", "", "", entry.state, KERNEL
                )
                yield Listed(self._known(bare, entry), (entry,))

    def _known(self, record: FlowRecord, entry: KernelFlow) -> FlowRecord:
        if record.kept_by == KERNEL:
            age = record.age
            if age is None and entry.start is not None:
                age = max(0.0, self.now - entry.start)
            record = record._replace(
                client=entry.client,
                client_port=entry.client_port,
                server=entry.server,
                server_port=entry.server_port,
                age=age,
                idle=kernel.idle(entry, self._limits),
                state=entry.state,
            )
        if entry.packets is not None and entry.octets is not None:
            record = record._replace(packets=entry.packets, octets=entry.octets, true_counts=True)
        return record

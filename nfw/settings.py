"""What the supervisor tells a generation leader, and what the leader answers. Plain values, sent as msgpack."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

DEFAULT_CONTROL = "/run/nfw/control.sock"
DEFAULT_LOG = "/var/log/nfw/eve.json"
DEFAULT_STATE = "/var/lib/nfw"
POLICIES = "policies"  # the history's folder within
DEFAULT_QUEUE_BASE = 5100
QUEUE_SPAN = 64  # queues a generation may use; generations that live at the same time never share a span
DEFAULT_LOG_BYTES = 256 << 20
DEFAULT_LOG_EVENTS = ("alert", "drop", "flow", "tls")
# Rules whose hits a worker tells; all workers of a generation must fit in one message of the leader.
RULES_TOLD = 500


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """One generation to be: where its policy is and which numbers in the kernel are its own."""

    number: int
    policy: str
    queue_first: int
    mark_mask: int
    more: tuple[str, ...] = ()  # as in PolicySource
    map_file: str = ""
    name: str = ""
    monitor: bool = False
    files: Mapping[str, str] | None = None
    store: str = ""  # directory of nfw.policystore, "" for none
    instead_of: int | None = None  # only try it: compile, count the flows of this generation that would end, and leave


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where a policy is read from: a file of nfw's own, or AWS documents in ``file`` and ``more`` files and folders,
    with a map file, and ``name`` where several policies are among them. All paths absolute. ``monitor``: run it in mode
    monitor, whatever it says. ``files``: read what was kept of them (path -> hash, see nfw.policystore) instead."""

    file: str
    more: tuple[str, ...] = ()
    map_file: str = ""
    name: str = ""
    monitor: bool = False
    files: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class GenerationReady:
    """What the leader reports when every worker listens; the supervisor then switches the kernel."""

    name: str
    queue_first: int
    queue_last: int
    tproxy_port: int | None
    fragments: str
    fail_open: bool
    open_which: str
    open_action: str
    stream_exception: str
    log_path: str = ""
    log_bytes: int = DEFAULT_LOG_BYTES
    log_keep: int = 1
    log_events: Sequence[str] = DEFAULT_LOG_EVENTS
    log_format: str = "eve"
    log_sinks: Sequence[dict[str, Any]] = ()  # as nfw.sinks.make wants them
    log_stats: int = 0  # seconds between records, 0: none are wanted
    log_flows: int = 0  # the same, of records of flows that are open
    warnings: Sequence[tuple[str, str]] = ()  # level and text
    mode: str = "enforce"
    files: Mapping[str, str] | None = None  # what the policy was read from (path -> hash); None: it was not kept
    lists: Sequence[str] = ()  # those of them whose change is no change of the policy: of IP sets
    not_kept: str = ""  # why there are none
    compiled: float = 0.0  # time.monotonic() when the rules were compiled, before any process was started


def most(hits: Mapping[str, int], bound: int = RULES_TOLD) -> tuple[dict[str, int], int]:
    """The ``bound`` entries that were hit most, and how many with hits are left out."""
    hit = [item for item in hits.items() if item[1]]
    if len(hit) <= bound:
        return dict(hits), 0
    return dict(heapq.nlargest(bound, hit, key=lambda item: item[1])), len(hit) - bound


def pack(kind: str, value: Any) -> bytes:
    """A message of ``kind`` around a dataclass or a plain value."""
    body = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    packed: bytes = msgpack.packb([kind, body])
    return packed


def unpack(data: bytes) -> tuple[str, Any]:
    """(kind, value) of a message made by :func:`pack`."""
    kind, body = msgpack.unpackb(data, strict_map_key=False)
    return str(kind), body

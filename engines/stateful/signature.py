"""The values a rule becomes. Parsed once, frozen, compiled by :mod:`engines.stateful.ruleset`; never text again.

Source: Suricata user guide, "Rules format" and following chapters.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from engines.verdict import Direction, RuleRef, Scope


class Action(enum.Enum):
    """What a rule does when it matches; the order of the members is Suricata's default action order."""

    PASS = "pass"  # noqa: S105
    DROP = "drop"
    REJECT = "reject"
    ALERT = "alert"


class RuleType(enum.Enum):
    """How often a rule can match and what its drop or pass covers (Suricata: signature types)."""

    IP_ONLY = "ip_only"  # once per direction of a flow; acts on the flow
    LIKE_IP_ONLY = "like_ip_only"  # every packet; acts on the flow
    PD_ONLY = "pd_only"  # once per direction, when protocol detection is final; acts on the flow
    PKT = "pkt"  # every packet; acts on that packet only
    PKT_STREAM = "pkt_stream"  # stream chunk first, else packet payload; acts on the flow when matched in the stream
    STREAM = "stream"  # every stream chunk; acts on the flow
    APP_LAYER = "app_layer"  # `alert http (sid)`: every packet once the protocol is known; acts on the flow
    APP_TX = "app_tx"  # once per transaction; acts on the flow


class Matcher(Protocol):
    """One condition on one buffer (content, pcre, byte_test, isdataat, bsize ...), compiled.

    ``match`` looks in ``data`` and returns every cursor from which later *relative* conditions could go on, lazily and
    in order of preference, so the evaluator can backtrack (a content found at 3 and at 40 yields two cursors). A
    condition that does not move the cursor yields ``cursor`` itself, a negated one yields it when nothing was found.
    ``state`` holds byte_extract/byte_math variables of this evaluation.
    """

    negated: bool

    def match(self, data: bytes, cursor: int, state: dict[str, int]) -> Any: ...


@dataclass(frozen=True, slots=True)
class BufferMatch:
    """All conditions of a rule on one buffer, in the order written.

    ``buffer`` is the canonical sticky-buffer name (``http.uri``, ``tls.sni``, ``dns.query`` ...) or ``payload``.
    ``transforms`` are applied to the buffer's bytes before matching, in order.
    """

    buffer: str
    matchers: tuple[Matcher, ...]
    transforms: tuple[Callable[[bytes], bytes], ...] = ()
    transform_names: tuple[str, ...] = ()
    absent: bool = False  # matches when the buffer does not exist (`absent`); when it does, matchers decide
    # Asked of all instances at once, each a number; the matchers are not asked then.
    together: Callable[[Sequence[int]], bool] | None = None
    # The matchers compiled into one chain by engines.stateful.match.compile_program; None: as long as nobody asked.
    program: Callable[[bytes, dict[str, int]], bool] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FastPattern:
    """The literal that must occur for the rule to be worth evaluating; goes into the buffer's Hyperscan database.
    ``end``: it must end at this offset at the latest (None: anywhere); ``first``: it must begin the buffer."""

    buffer: str
    pattern: bytes
    nocase: bool
    transform_names: tuple[str, ...] = ()
    end: int | None = None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Threshold:
    """``threshold`` and ``detection_filter``. ``kind``: limit, threshold, both, backoff, detection_filter.

    ``multiplier`` and a window without end are backoff's.
    """

    kind: str
    track: str  # by_src, by_dst, by_rule, by_both, by_flow
    count: int
    seconds: int
    multiplier: int = 0


@dataclass(frozen=True, slots=True)
class Suppression:
    """``suppress``: matches from or to these addresses are not logged; what they do stays. ``track``: by_src, by_dst,
    by_either, or "" for all; ``test`` None: any address."""

    track: str
    test: Callable[[bytes], bool] | None

    def covers(self, source: bytes, destination: bytes) -> bool:
        """``source`` and ``destination``: the packet's packed addresses."""
        if self.test is None:
            return True
        return (self.track != "by_dst" and self.test(source)) or (self.track != "by_src" and self.test(destination))


@dataclass(frozen=True, slots=True)
class RateFilter:
    """``rate_filter``: above ``count`` matches in ``seconds`` the rule does ``new_action``, for ``timeout`` seconds."""

    track: str  # as in Threshold
    count: int
    seconds: int
    new_action: Action
    timeout: int


PacketTest = Callable[["PacketView"], bool]  # header keywords: ttl, flags, dsize, itype ...


class PacketView(Protocol):
    """What header keywords may look at: the packet that carried the bytes, or the TLS engine's stand-in for it."""

    direction: Direction
    established: bool
    payload: bytes
    packet: Any  # engines.packet.Packet, or None on decrypted flows
    events: frozenset[str]  # "decoder.ipv4.trunc_pkt" and the like; empty where nobody looked
    vlans: tuple[int, ...] | None  # outermost first; None where the link layer was not seen
    flow: Any  # engines.flow.Flow with its counts, or None for a packet that belongs to none
    now: float  # seconds


class AppProtocolTest(NamedTuple):
    """``app-layer-protocol:[!]name,mode``; names joined by ``|``: any of them.

    ``mode``: final (what the flow speaks now), original (what it spoke before that changed), to_server and to_client
    (what one side's bytes say), either (any side's), exact (as final, with no other name standing for it).
    """

    name: str
    negated: bool = False
    mode: str = "final"

    @property
    def names(self) -> tuple[str, ...]:
        return _alternatives(self.name)


@lru_cache(maxsize=1024)
def _alternatives(name: str) -> tuple[str, ...]:
    return tuple(name.split("|"))


@dataclass(frozen=True, slots=True)
class FlowbitOp:
    """``flowbits:set,name`` and its siblings. ``op``: set, unset, toggle, isset, isnotset; names: OR-ed for isset."""

    op: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlowintOp:
    """``flowint:name,op,value``. ``op``: isset, notset (no value), =, +, - (change), ==, !=, <, <=, >, >= (test).

    ``value`` is a number or the name of another flowint. A test of a variable never set does not match.
    """

    op: str
    name: str
    value: int | str = 0

    @property
    def changes(self) -> bool:
        return self.op in {"=", "+", "-"}


@dataclass(frozen=True, slots=True)
class XbitOp:
    """``xbits`` and ``hostbits``. ``op`` as in :class:`FlowbitOp`; ``track``: ip_src, ip_dst, ip_pair, tx, both.

    ``table`` is ``xbits`` or ``hostbits`` (two name spaces); ``expire`` in seconds, 0: never.
    """

    op: str
    name: str
    track: str
    expire: int = 30
    table: str = "xbits"

    @property
    def changes(self) -> bool:
        return self.op in {"set", "unset", "toggle"}


@dataclass(frozen=True, slots=True)
class StreamSize:
    """``stream_size:side,op,bytes``: payload bytes of the TCP flow so far. ``side``: client, server, both, either."""

    side: str
    test: Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """``flow:`` keyword. None means not asked."""

    direction: Direction | None = None
    established: bool | None = None  # True established, False not_established
    stateless: bool = False
    only_stream: bool = False
    no_stream: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """One rule.

    ``source``/``destination`` are predicates on packed addresses (4 or 16 bytes); ports on integers; None is ``any``.
    ``bidirectional`` is ``<>``. ``app_proto`` is the header's application protocol (``http``, ``tls``, ``dns`` ...) or
    "". ``ip_protocols`` the IP protocol numbers the header allows (empty: all).
    """

    action: Action
    ref: RuleRef
    text: str
    protocol: str
    ip_protocols: frozenset[int]
    app_proto: str
    source: Callable[[bytes], bool] | None
    source_port: Callable[[int], bool] | None
    destination: Callable[[bytes], bool] | None
    destination_port: Callable[[int], bool] | None
    bidirectional: bool
    rule_type: RuleType
    flow: FlowSpec = FlowSpec()
    buffers: tuple[BufferMatch, ...] = ()
    packet_tests: tuple[PacketTest, ...] = ()
    fast_pattern: FastPattern | None = None
    flowbit_checks: tuple[FlowbitOp, ...] = ()
    flowbit_sets: tuple[FlowbitOp, ...] = ()
    threshold: Threshold | None = None
    detection_filter: Threshold | None = None
    noalert: bool = False
    pass_alert: bool = False  # `alert;` inside a pass rule
    priority: int = 3
    classtype: str = ""
    category: str = ""  # the class's description; an unknown class's name
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: tuple[str, ...] = ()  # as URLs; "system,text" where the system is not known
    target: str = ""
    # What the rule can match on, from flow: or from buffers that exist in one direction only; None: both.
    direction: Direction | None = None
    transactional: bool = False  # `=>`: request-side and response-side buffers in one rule
    app_events: tuple[tuple[str, str], ...] = ()  # app-layer-event: (protocol, event), all of them must be there
    app_layer_protocols: tuple[AppProtocolTest, ...] = ()
    flowints: tuple[FlowintOp, ...] = ()  # in the order written: tests before the match, changes after it
    xbit_checks: tuple[XbitOp, ...] = ()  # isset, isnotset of xbits and hostbits
    xbit_sets: tuple[XbitOp, ...] = ()
    stream_sizes: tuple[StreamSize, ...] = ()
    packet_events: tuple[str, ...] = ()  # decoder.x.y and stream.x the packet must have; packet_tests ask for them
    suppressions: tuple[Suppression, ...] = ()  # of threshold.config, as rate_filter
    rate_filter: RateFilter | None = None
    countries: Callable[[bytes, bytes], bool] | None = None  # geoip: of the packet's source and destination
    never_matches: str = ""  # why no traffic can match it (a warning says so); left out when rules are compiled
    captures_only: str = ""  # why no traffic matches it though a capture may (a warning says so)
    reject_to: str = ""  # reject's target: "" and "src" the sender, "dst", "both"
    scope: Scope | None = None  # what the action is for, where the rule says so (`drop:packet`); None: by its type

    @property
    def sid(self) -> int:
        return self.ref.id


@dataclass(frozen=True, slots=True)
class RuleError:
    """Why a rule was refused. ``line`` and ``column`` (from 1; 0: the whole rule) say where, in a
    continuation line too."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        at = f"{self.file}:{self.line}" + (f":{self.column}" if self.column else "")
        return f"{at}: {self.message}"

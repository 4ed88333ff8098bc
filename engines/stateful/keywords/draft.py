"""A rule while it is being read: keywords add to a draft; :mod:`engines.stateful.consolidate` makes it a Signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engines.stateful.header import Header
from engines.stateful.keywords.base import KeywordError, integer
from engines.stateful.match import MAX_MATCHERS_PER_BUFFER, Base64Decode, Content, Number, StepMatcher
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig
from engines.stateful.signature import AppProtocolTest, FlowbitOp, FlowintOp, PacketTest, StreamSize, Threshold, XbitOp
from engines.verdict import Direction

PAYLOAD = "payload"
BASE64_DATA = "base64_data"


@dataclass(slots=True)
class ContentDraft:
    """A ``content`` whose modifiers may still follow. ``depth`` counts from ``offset``."""

    pattern: bytes
    negated: bool = False
    nocase: bool = False
    offset: Number | None = None
    depth: Number | None = None
    distance: Number | None = None
    within: Number | None = None
    startswith: bool = False
    endswith: bool = False
    rawbytes: bool = False
    fast: bool = False
    fast_only: bool = False
    chop: tuple[int, int] | None = None

    @property
    def relative(self) -> bool:
        return self.distance is not None or self.within is not None

    @property
    def positioned(self) -> bool:
        """Any modifier that says where: such a content cannot be fast_pattern:only, nor a negated fast pattern."""
        return self.relative or self.startswith or self.offset is not None or self.depth is not None

    def build(self) -> Content:
        depth = len(self.pattern) if self.startswith else self.depth
        return Content(
            pattern=self.pattern.lower() if self.nocase else self.pattern,
            nocase=self.nocase and self.pattern.lower() != self.pattern.upper(),
            negated=self.negated,
            offset=self.offset or 0,
            depth=None if self.relative else depth,
            distance=self.distance,
            within=self.within,
            endswith=self.endswith,
        )


Item = ContentDraft | StepMatcher


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform with its argument bound. ``refuses`` says why a content can never match what it makes, or ""."""

    name: str
    function: Callable[[bytes], bytes]
    refuses: Callable[[ContentDraft], str] | None = None


@dataclass(slots=True)
class BufferDraft:
    """One buffer of the rule with its transforms and conditions, in the order written."""

    name: str
    transforms: list[Transform] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)

    def add(self, item: Item) -> None:
        if len(self.items) >= MAX_MATCHERS_PER_BUFFER:
            raise KeywordError(f"more than {MAX_MATCHERS_PER_BUFFER} conditions on {self.name}", in_value=False)
        self.items.append(item)


@dataclass(slots=True)
class RuleDraft:
    """Everything the options of one rule said so far. ``current`` None: no sticky buffer is active."""

    header: Header
    config: RuleConfig = DEFAULT_CONFIG
    msg: str = ""
    sid: int = 0
    gid: int = 1
    rev: int = 0
    priority: int | None = None
    class_priority: int | None = None
    classtype: str = ""
    category: str = ""
    references: list[str] = field(default_factory=list)
    metadata: dict[str, list[str]] = field(default_factory=dict)
    target: str = ""
    seen: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    buffers: list[BufferDraft] = field(default_factory=list)
    current: BufferDraft | None = None
    last: ContentDraft | None = None  # what modifiers apply to
    last_buffer: BufferDraft | None = None  # where the last condition went
    base64: list[Item] = field(default_factory=list)  # conditions after base64_data
    app_protos: list[tuple[str, frozenset[str]]] = field(default_factory=list)  # (keyword, protocols it needs)

    flow_seen: bool = False
    direction: Direction | None = None
    established: bool | None = None
    stateless: bool = False
    only_stream: bool = False
    no_stream: bool = False
    packet_tests: list[PacketTest] = field(default_factory=list)
    countries: Callable[[bytes, bytes], bool] | None = None  # of source and destination
    needs_packet: list[str] = field(default_factory=list)  # keywords that look at one packet
    packet_events: list[str] = field(default_factory=list)
    ip_protocols: set[int] | None = None
    dsize: tuple[int, int] | None = None  # lowest and highest payload size dsize allows
    flowbit_checks: list[FlowbitOp] = field(default_factory=list)
    flowbit_sets: list[FlowbitOp] = field(default_factory=list)
    flowints: list[FlowintOp] = field(default_factory=list)
    xbit_checks: list[XbitOp] = field(default_factory=list)
    xbit_sets: list[XbitOp] = field(default_factory=list)
    stream_sizes: list[StreamSize] = field(default_factory=list)
    app_layer_protocols: list[AppProtocolTest] = field(default_factory=list)
    app_events: list[tuple[str, str]] = field(default_factory=list)
    threshold: Threshold | None = None
    detection_filter: Threshold | None = None
    noalert: bool = False
    pass_alert: bool = False
    never_matches: str = ""  # why, when something the rule asks for is known never to be there
    captures_only: str = ""

    def never(self, why: str) -> None:
        """The rule loads and can never match; the first reason stays."""
        self.never_matches = self.never_matches or why

    def in_captures(self, why: str) -> None:
        """The rule can match in a capture, and on the packet path never; the first reason stays."""
        self.captures_only = self.captures_only or why

    def once(self, keyword: str) -> None:
        """The keyword may occur only once in a rule."""
        if keyword in self.seen:
            raise KeywordError(f"{keyword} is given twice", in_value=False)
        self.seen.add(keyword)

    def payload(self) -> BufferDraft:
        """Conditions on the packet payload and the stream."""
        return self.find(PAYLOAD) or self.another(PAYLOAD)

    def find(self, name: str) -> BufferDraft | None:
        """The untransformed buffer of that name, if the rule has it already."""
        return next((b for b in self.buffers if b.name == name and not b.transforms), None)

    def buffer(self, name: str) -> BufferDraft:
        """The untransformed buffer of that name, made if needed, without activating it."""
        return self.find(name) or self.another(name)

    def another(self, name: str) -> BufferDraft:
        """A buffer whose conditions are apart from those of others of that name, without activating it."""
        made = BufferDraft(name)
        self.buffers.append(made)
        return made

    def select(self, name: str, *, multiple: bool) -> None:
        """A sticky buffer keyword. ``multiple``: it has instances, and naming it again starts with a new one."""
        self.require_content("another buffer")
        if name == PAYLOAD:
            self.current, self.last, self.last_buffer = None, None, None
            return
        known = None if multiple else self.find(name)
        self.current = known or BufferDraft(name)
        if known is None:
            self.buffers.append(self.current)
        self.last = next((i for i in reversed(self.current.items) if isinstance(i, ContentDraft)), None)
        self.last_buffer = self.current

    def require_content(self, before: str) -> None:
        """A buffer selected and then left without a condition is a mistake (as in Suricata)."""
        if self.current is not None and not self.current.items and self.current.name != BASE64_DATA:
            raise KeywordError(f"{self.current.name} has no condition before {before}", in_value=False)

    def add_transform(self, transform: Transform) -> None:
        if self.current is None:
            raise KeywordError(f"{transform.name} needs a sticky buffer before it", in_value=False)
        if self.current.items:  # conditions before a transform look at the untransformed bytes: this is another buffer
            self.current = BufferDraft(self.current.name)
            self.buffers.append(self.current)
            self.last, self.last_buffer = None, self.current
        self.current.transforms.append(transform)
        for other in self.buffers:
            if (
                other is not self.current
                and other.name == self.current.name
                and other.transforms
                and [t.name for t in other.transforms] == [t.name for t in self.current.transforms]
                and all(
                    t.function is u.function for t, u in zip(other.transforms, self.current.transforms, strict=True)
                )
            ):
                self.buffers.remove(self.current)
                self.current = self.last_buffer = other
                self.last = next((i for i in reversed(other.items) if isinstance(i, ContentDraft)), None)
                break

    def target_buffer(self, *, relative: bool = False) -> BufferDraft:
        """Where a condition goes: the sticky buffer; else, if relative, where the one before went; else the payload."""
        if self.current is not None:
            return self.current
        if relative and self.last_buffer is not None:
            return self.last_buffer
        return self.payload()

    def add(self, item: Item, *, relative: bool = False, to: BufferDraft | None = None) -> None:
        """Appends a condition to its buffer."""
        if to is None:
            to = self.target_buffer(relative=relative)
        to.add(item)
        self.last_buffer = to
        if isinstance(item, ContentDraft):
            self.last = item

    def variable(self, text: str, what: str, low: int, high: int, *, relative: bool = False) -> Number:
        """A number, or the name of a variable extracted earlier from the same buffer."""
        text = text.strip()
        if text[:1].isalpha() or text[:1] == "_":
            target = self.target_buffer(relative=relative)
            # A transaction's buffers share their variables, the payload has its own.
            shared = [b for b in self.buffers if b is target or PAYLOAD not in (b.name, target.name)]
            if not any(text in b.variables for b in shared):
                raise KeywordError(f"{what}: no byte_extract or byte_math before gives {text!r} for this buffer")
            if text not in target.variables:
                self.warnings.append(
                    f"{what}: {text!r} comes from another buffer and is 0 where buffers are judged apart"
                )
            return text
        negative = text.startswith("-")
        number = integer(text[1:] if negative else text, what, 0)
        number = -number if negative else number
        if not low <= number <= high:
            raise KeywordError(f"{what}: {number} is not between {low} and {high}")
        return number

    def last_content(self, keyword: str) -> ContentDraft:
        if self.last is None:
            raise KeywordError(f"{keyword} needs a content before it", in_value=False)
        return self.last

    def move_last(self, keyword: str, name: str) -> None:
        """An old modifier (http_uri ...): moves the content before it into a buffer."""
        if self.current is not None:
            raise KeywordError(
                f"{keyword} while the sticky buffer {self.current.name} is active; put pkt_data before the content",
                in_value=False,
            )
        content = self.last_content(keyword)
        payload = self.find(PAYLOAD)
        if payload is None or not any(i is content for i in payload.items):
            raise KeywordError(f"{keyword}: the content before it is in another buffer already", in_value=False)
        if content.rawbytes:
            raise KeywordError(f"{keyword} cannot be combined with rawbytes", in_value=False)
        payload.items[:] = [i for i in payload.items if i is not content]
        if not payload.items:
            self.buffers.remove(payload)
        self.last_buffer = self.buffer(name)
        self.last_buffer.add(content)

    def require_app(self, keyword: str, protos: frozenset[str]) -> None:
        """The keyword only means something on these application protocols."""
        self.app_protos.append((keyword, protos))

    def packet(self, keyword: str, test: PacketTest) -> None:
        """Adds a condition on the packet."""
        self.packet_tests.append(test)
        self.needs_packet.append(keyword)

    def finish_base64(self) -> None:
        """Binds the conditions after base64_data to the base64_decode they belong to."""
        for buffer in self.buffers:
            if buffer.name == BASE64_DATA:
                self.base64 = buffer.items
        self.buffers[:] = [b for b in self.buffers if b.name != BASE64_DATA]
        if not self.base64:
            return
        inner = tuple(i.build() if isinstance(i, ContentDraft) else i for i in self.base64)
        for buffer in self.buffers:
            for index, item in enumerate(buffer.items):
                if isinstance(item, Base64Decode):
                    buffer.items[index] = Base64Decode(item.size, item.offset, item.relative, inner)

"""From a draft to a Signature: what no single keyword can check, the rule's type, its direction and fast pattern.

Source: Suricata's documentation, "Rule Types and Categorization", and the refusals of its rule loader. A rule that can
never match is refused here rather than carried along.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engines.stateful.app.registry import PARSERS, UDP_PARSERS
from engines.stateful.header import APP_PROTOCOLS, FLOW_START, HOOKS, LINK_PROTOCOLS, FamilyTest
from engines.stateful.keywords import packetbuffers
from engines.stateful.keywords.base import IntTest, KeywordError
from engines.stateful.keywords.buffers import BUFFERS, HTTP, rank
from engines.stateful.keywords.draft import PAYLOAD, BufferDraft, ContentDraft, RuleDraft
from engines.stateful.match import Absent, AllIntegers, ByteJump, OneOf, Regex, Size, match_buffer, transform
from engines.stateful.ruleconfig import DEFAULT_PRIORITY
from engines.stateful.signature import (
    BufferMatch,
    FastPattern,
    FlowSpec,
    PacketTest,
    PacketView,
    RuleType,
    Signature,
)
from engines.verdict import Direction, RuleRef

_TCP = 6
# Application protocols with a parser, by all their names.
PARSED = frozenset({*PARSERS, *UDP_PARSERS, "http1"})


def consolidate(draft: RuleDraft, text: str, file: str, line: int) -> Signature:
    """The finished rule. Raises KeywordError (in_value False) when its parts do not fit together."""
    draft.require_content("the end of the rule")
    draft.finish_base64()
    if not draft.sid:
        raise KeywordError("sid is missing", in_value=False)
    for buffer in draft.buffers:
        _check_buffer(buffer, draft)
    app_proto, ip_protocols = _protocols(draft)
    if draft.header.hook == FLOW_START:
        draft.packet(f"{draft.header.protocol}:{FLOW_START}", _first_packet)
    elif draft.header.hook:
        if draft.direction is None:
            draft.direction = HOOKS[draft.header.app_proto, draft.header.hook]
        if not draft.buffers:
            _bare_hook(draft)
    app_buffers = [b for b in draft.buffers if b.name != PAYLOAD and b.name not in packetbuffers.NAMES]
    if app_buffers and draft.needs_packet:
        raise KeywordError(
            f"{draft.needs_packet[0]} looks at one packet and {app_buffers[0].name} at a transaction; "
            "a rule cannot do both",
            in_value=False,
        )
    if draft.needs_packet and (draft.only_stream or draft.header.protocol == "tcp-stream"):
        raise KeywordError(
            f"{draft.needs_packet[0]} looks at a packet, but the rule at the stream only", in_value=False
        )
    direction = _direction(draft, app_buffers)
    fast = _fast_pattern(draft.buffers)
    matches = {id(b): _build(b) for b in draft.buffers}
    packet_tests = [_header_buffer(matches[id(b)]) for b in draft.buffers if b.name in packetbuffers.NAMES]
    header = draft.header
    if header.protocol in LINK_PROTOCOLS:
        draft.in_captures(f"{header.protocol} packets do not reach a firewall at the IP layer")
    if app_buffers and header.app_proto and header.app_proto not in PARSED:
        draft.never(f"no parser for {header.app_proto}")
    elif header.app_proto == "nfs" and any(b.name.startswith("file.") and b.name != "file.name" for b in app_buffers):
        draft.never("no parser for the contents of files of nfs")
    if header.hook and header.hook != FLOW_START:
        _check_hook(draft, app_buffers)
    if draft.never_matches:
        draft.warnings.append(f"never matches: {draft.never_matches}")
    elif draft.captures_only:
        draft.warnings.append(f"matches in captures only: {draft.captures_only}")
    return Signature(
        action=header.action,
        ref=RuleRef("stateful", draft.sid, draft.msg, file, line, draft.gid, draft.rev),
        text=text,
        protocol=header.protocol,
        ip_protocols=ip_protocols,
        app_proto=app_proto,
        source=FamilyTest(header.family, header.source.test) if header.family else header.source.test,
        source_port=header.source_port,
        destination=header.destination.test,
        destination_port=header.destination_port,
        bidirectional=header.arrow == "<>",
        rule_type=_rule_type(draft, app_proto, ip_protocols, bool(app_buffers)),
        flow=FlowSpec(draft.direction, draft.established, draft.stateless, draft.only_stream, draft.no_stream),
        buffers=tuple(matches[id(b)] for b in draft.buffers if b.name not in packetbuffers.NAMES),
        packet_tests=(*draft.packet_tests, *packet_tests),
        fast_pattern=fast,
        flowbit_checks=tuple(draft.flowbit_checks),
        flowbit_sets=tuple(draft.flowbit_sets),
        threshold=draft.threshold,
        detection_filter=draft.detection_filter,
        noalert=draft.noalert,
        pass_alert=draft.pass_alert,
        priority=_priority(draft),
        classtype=draft.classtype,
        category=draft.category,
        countries=draft.countries,
        metadata={name: tuple(values) for name, values in draft.metadata.items()},
        references=tuple(draft.references),
        target=draft.target,
        direction=direction,
        transactional=header.arrow == "=>",
        app_events=tuple(draft.app_events),
        app_layer_protocols=tuple(draft.app_layer_protocols),
        flowints=tuple(draft.flowints),
        xbit_checks=tuple(draft.xbit_checks),
        xbit_sets=tuple(draft.xbit_sets),
        stream_sizes=tuple(draft.stream_sizes),
        packet_events=tuple(draft.packet_events),
        never_matches=draft.never_matches,
        captures_only=draft.captures_only,
        reject_to=header.reject_to,
        scope=header.scope,
    )


def _priority(draft: RuleDraft) -> int:
    if draft.priority is not None:
        return draft.priority
    return DEFAULT_PRIORITY if draft.class_priority is None else draft.class_priority


def _build(buffer: BufferDraft) -> BufferMatch:
    matchers = tuple(i.build() if isinstance(i, ContentDraft) else i for i in buffer.items)
    together = next((m.holds for m in matchers if isinstance(m, AllIntegers)), None)
    return BufferMatch(
        buffer.name,
        matchers,
        tuple(t.function for t in buffer.transforms),
        tuple(t.name for t in buffer.transforms),
        absent=any(isinstance(m, Absent) for m in matchers) or (together is not None and together(())),
        together=together,
    )


def _header_buffer(bm: BufferMatch) -> PacketTest:
    return packetbuffers.packet_test(bm, lambda made, data: match_buffer(made, transform(made, data), {}))


# --- what a buffer's conditions must fulfil -------------------------------------------------------------------------


def _check_buffer(buffer: BufferDraft, draft: RuleDraft) -> None:
    info = BUFFERS.get(buffer.name)
    for item in buffer.items:
        if not isinstance(item, ContentDraft):
            continue
        problem = info.refuses(item) if info and info.refuses and not buffer.transforms else ""
        for step in buffer.transforms:
            problem = problem or (step.refuses(item) if step.refuses else "")
        if problem:
            raise KeywordError(f"content {_show(item.pattern)}: {problem}", in_value=False)
        if info and info.canonical and not buffer.transforms:
            item.pattern = info.canonical(item.pattern)
    absent = next((item for item in buffer.items if isinstance(item, Absent)), None)
    if absent is not None and absent.or_else != (len(buffer.items) > 1):
        problem = (
            "or_else needs another condition" if absent.or_else else "a buffer that is absent has no other condition"
        )
        raise KeywordError(f"absent: {problem} on {buffer.name}", in_value=False)
    needed = required_size(buffer.items)
    for item in buffer.items:
        if isinstance(item, Size) and isinstance(item.test, IntTest) and item.test.high < needed:
            raise KeywordError(
                f"the contents need {needed} bytes, but the size {item.test.text} allows {item.test.high}",
                in_value=False,
            )
    if buffer.name == PAYLOAD and draft.dsize is not None and draft.dsize[1] < needed:
        raise KeywordError(f"the contents need {needed} bytes, but dsize allows {draft.dsize[1]}", in_value=False)


def required_size(items: Iterable[Any]) -> int:
    """The shortest buffer the positive contents can all be found in, as far as literal positions tell."""
    needed = behind = 0
    for item in items:
        if isinstance(item, ContentDraft):
            if item.negated:
                continue
            start = item.offset if isinstance(item.offset, int) else 0
            if item.relative:
                start = behind + (item.distance if isinstance(item.distance, int) else 0)
            behind = max(start, 0) + len(item.pattern)
            needed = max(needed, behind)
        elif isinstance(item, Regex | ByteJump) or hasattr(item, "name"):
            behind = 0  # the cursor may be anywhere
    return needed


def _show(pattern: bytes) -> str:
    text = pattern[:40].decode("ascii", "backslashreplace")
    return '"' + text + ("..." if len(pattern) > 40 else "") + '"'


# --- protocols and direction ----------------------------------------------------------------------------------------


def _protocols(draft: RuleDraft) -> tuple[str, frozenset[int]]:
    """(application protocol or "", IP protocols) after what the keywords ask for."""
    header = draft.header
    ip_protocols = frozenset(draft.ip_protocols) if draft.ip_protocols is not None else header.ip_protocols
    if not draft.app_protos:
        return header.app_proto, ip_protocols
    keyword, allowed = draft.app_protos[0]
    if header.app_proto:
        for keyword, protos in draft.app_protos:
            if header.app_proto not in protos and not (header.app_proto == "doh2" and "http2" in protos):
                raise KeywordError(f"{keyword} does not exist in {header.app_proto}", in_value=False)
        return header.app_proto, ip_protocols
    if header.protocol in {"tcp-pkt", "tcp-stream"}:
        raise KeywordError(f"{keyword} cannot be used in a rule for {header.protocol}", in_value=False)
    for other, protos in draft.app_protos[1:]:
        if not allowed & protos:
            raise KeywordError(f"{keyword} and {other} belong to different protocols", in_value=False)
        allowed &= protos
    carried = {p for p in allowed if not ip_protocols or APP_PROTOCOLS[p] & ip_protocols}
    if not carried:
        raise KeywordError(f"{keyword} cannot occur in a rule for {header.protocol}", in_value=False)
    carriers = frozenset(n for p in carried for n in APP_PROTOCOLS[p])
    return _one(carried), (ip_protocols & carriers) if ip_protocols else carriers


def _one(protos: set[str]) -> str:
    """The protocol a set of names comes down to; "" when there are several."""
    if protos <= HTTP:
        return "http" if "http" in protos else min(protos)
    if protos <= {"dns", "doh2", "mdns", "llmnr"} and len(protos) > 1:
        return "dns"
    return next(iter(protos)) if len(protos) == 1 else ""


def _direction(draft: RuleDraft, app_buffers: list[BufferDraft]) -> Direction | None:
    sides: dict[Direction, str] = {}
    ambiguous = ""
    for buffer in app_buffers:
        info = BUFFERS.get(buffer.name)
        if info is None or info.direction is None:
            ambiguous = buffer.name
        else:
            sides.setdefault(info.direction, buffer.name)
    server, client = sides.get(Direction.TO_SERVER), sides.get(Direction.TO_CLIENT)
    if draft.header.arrow == "=>":
        if draft.direction is not None:
            raise KeywordError("a => rule looks at both directions: leave out flow's direction", in_value=False)
        if ambiguous:
            raise KeywordError(f"{ambiguous} exists in both directions, so a => rule cannot use it", in_value=False)
        if not server or not client:
            raise KeywordError("a => rule needs a buffer of the request and one of the response", in_value=False)
        return None
    if server and client:
        raise KeywordError(
            f"{server} is in the request and {client} in the response; write => for both", in_value=False
        )
    if draft.direction is Direction.TO_SERVER and client:
        raise KeywordError(f"{client} exists to the client only, but flow says to_server", in_value=False)
    if draft.direction is Direction.TO_CLIENT and server:
        raise KeywordError(f"{server} exists to the server only, but flow says to_client", in_value=False)
    return draft.direction if draft.direction is not None else next(iter(sides), None)


# What is there when a transaction has come as far as a hook.
_THERE = {
    "request_started": "http.request_line",
    "request_line": "http.request_line",
    "request_headers": "http.header_names",
    "response_started": "http.response_line",
    "response_line": "http.response_line",
    "response_headers": "http.header_names",
}


def _bare_hook(draft: RuleDraft) -> None:
    """A rule with a hook and nothing else matches once the handshake, or the message, has come that far."""
    hook = draft.header.hook
    if draft.header.app_proto == "tls":
        state = hook.removesuffix("_done").encode()
        draft.buffer("ssl_state").add(OneOf(frozenset({state})))
    else:
        draft.buffer(_THERE[hook])


def _first_packet(view: PacketView) -> bool:
    """Of its direction of its flow."""
    return view.flow is not None and view.flow.packets[view.direction] == 1


def _check_hook(draft: RuleDraft, app_buffers: list[BufferDraft]) -> None:
    """A hook says when a rule is judged. With buffers that are complete by then it is what happens anyway; with later
    ones the rule would have to match at once, which is not done."""
    header = draft.header
    side = HOOKS[header.app_proto, header.hook]
    both = header.app_proto == "tls" or header.hook.endswith("_headers")  # what both sides have is there as well
    for name in (b.name for b in app_buffers):
        info = BUFFERS.get(name)
        there = info is not None and (info.direction is side or (both and info.direction is None))
        if name != "ssl_state" and (not there or name.startswith("file.")):
            raise KeywordError(
                f"a rule for {header.app_proto}:{header.hook} needs a buffer that is there by then, which {name} "
                "is not",
                in_value=False,
            )


# --- type -----------------------------------------------------------------------------------------------------------


def _rule_type(draft: RuleDraft, app_proto: str, ip_protocols: frozenset[int], has_app_buffer: bool) -> RuleType:
    """How often the rule can match and what it acts on (the table in Suricata's "Rule Types")."""
    payload = draft.find(PAYLOAD)
    has_payload = payload is not None and bool(payload.items)
    only_sets = all(op.op == "set" for op in (*draft.flowbit_checks, *draft.flowbit_sets)) and not draft.flowints
    only_sets = only_sets and not draft.xbit_checks
    packet = bool(draft.needs_packet) or draft.no_stream or draft.header.protocol == "tcp-pkt"
    flow_state = draft.established is not None or draft.stateless or draft.only_stream or draft.no_stream
    light = not (has_payload or has_app_buffer or draft.app_events or app_proto or draft.packet_tests) and not (
        packet or flow_state or draft.stream_sizes
    )
    if light and only_sets and draft.app_layer_protocols:
        return RuleType.PD_ONLY
    if light and only_sets and not draft.app_layer_protocols and not draft.flow_seen:
        negated = draft.header.source.negated or draft.header.destination.negated
        return RuleType.LIKE_IP_ONLY if negated else RuleType.IP_ONLY
    if any(name in packetbuffers.NAMES for name in draft.needs_packet):
        return RuleType.PKT
    if has_app_buffer or draft.app_events:
        return RuleType.APP_TX
    if payload is not None and has_payload:
        tcp = not ip_protocols or _TCP in ip_protocols
        if packet or not tcp:
            return RuleType.PKT
        if draft.only_stream or draft.header.protocol == "tcp-stream":
            return RuleType.STREAM
        bounded = any(
            isinstance(i, ContentDraft) and (i.depth is not None or i.offset is not None or i.startswith)
            for i in payload.items
        )
        return RuleType.PKT_STREAM if bounded or draft.stream_sizes else RuleType.STREAM
    conditions = (
        draft.packet_tests
        or draft.needs_packet
        or flow_state
        or draft.flowbit_checks
        or draft.xbit_checks
        or draft.stream_sizes
        or draft.app_layer_protocols
        or any(not op.changes for op in draft.flowints)
    )
    return RuleType.APP_LAYER if app_proto and not conditions else RuleType.PKT


# --- fast pattern ---------------------------------------------------------------------------------------------------


def _fast_pattern(buffers: list[BufferDraft]) -> FastPattern | None:
    """The content to search for first: what fast_pattern names, else the longest of the best-ranked buffer."""
    best: tuple[tuple[int, int, int], BufferDraft, ContentDraft] | None = None
    for buffer in buffers:
        if buffer.name in packetbuffers.NAMES or any(isinstance(i, Absent) for i in buffer.items):
            continue
        for item in buffer.items:
            if not isinstance(item, ContentDraft):
                continue
            if item.fast:
                # A negated one must be absent: the rule has to be evaluated always.
                return None if item.negated else _pattern(buffer, item)
            if item.negated:
                continue
            worth = (-rank(buffer.name), len(item.pattern), strength(item.pattern))
            if best is None or worth > best[0]:
                best = worth, buffer, item
    return _pattern(best[1], best[2]) if best else None


def _pattern(buffer: BufferDraft, item: ContentDraft) -> FastPattern:
    pattern = item.pattern
    start = 0
    if item.chop:
        start = item.chop[0]
        pattern = pattern[start : start + item.chop[1]]
    if item.nocase:
        pattern = pattern.lower()
    end = _end(item)
    first = start == 0 and end == len(item.pattern)
    return FastPattern(buffer.name, pattern, item.nocase, tuple(t.name for t in buffer.transforms), end, first)


def _end(item: ContentDraft) -> int | None:
    """The offset a content ends at, at the latest; None when that depends on something."""
    offset = item.offset or 0
    depth = len(item.pattern) if item.startswith else item.depth
    if item.relative or not isinstance(offset, int) or not isinstance(depth, int):
        return None
    return offset + depth


def strength(pattern: bytes) -> int:
    """How unusual the bytes are: repeated, zero and common ones say little (Suricata: pattern strength)."""
    score = 0
    seen: set[int] = set()
    for byte in pattern:
        if byte in seen:
            score += 1
            continue
        seen.add(byte)
        if byte in (0x00, 0x01, 0xFF, 0x20):
            score += 1
        elif chr(byte).isalpha() and byte < 0x80:
            score += 3
        elif 0x20 < byte < 0x7F:
            score += 4
        else:
            score += 6
    return score

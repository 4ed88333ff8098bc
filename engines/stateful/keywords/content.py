"""``content`` and what modifies it. Source: Suricata user guide, "Payload keywords" and "Fast pattern"."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, quoted, required, split_list
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import ContentDraft, RuleDraft

# Longest pattern: what fits into the longest rule. How far within and distance may reach: Suricata's bound.
MAX_PATTERN = 8192
MAX_REACH = 1024 * 1024
MAX_OFFSET = 65535

_PAGE = "payload-keywords.html"
_HEX = "0123456789abcdefABCDEF"


def parse_pattern(text: str) -> bytes:
    """``GET |0d 0a|\\;`` -> bytes. Raises KeywordError for bad hexadecimal and for escapes that are none."""
    out = bytearray()
    digit = ""
    in_hex = escaped = False
    for char in text:
        if escaped:
            if char not in '\\;:"':
                raise KeywordError(f'content: \\{char} is no escape; only \\\\ \\; \\: \\" are')
            out += char.encode()
            escaped = False
        elif char == "|":
            if digit:
                raise KeywordError("content: a hexadecimal byte has only one digit")
            in_hex = not in_hex
        elif in_hex:
            if char == " " and not digit:
                continue
            if char not in _HEX:
                problem = "a hexadecimal byte has only one digit" if digit else f"{char!r} is no hexadecimal digit"
                raise KeywordError(f"content: {problem}")
            digit += char
            if len(digit) == 2:
                out.append(int(digit, 16))
                digit = ""
        elif char == "\\":
            escaped = True
        elif char == '"':
            raise KeywordError('content: a " inside the pattern must be written \\" or |22|')
        else:
            out += char.encode("utf-8", "surrogateescape")
    if in_hex:
        raise KeywordError("content: the closing | of a hexadecimal part is missing")
    if escaped:
        raise KeywordError("content: the pattern ends in a backslash")
    if not out:
        raise KeywordError("content: the pattern is empty")
    if len(out) > MAX_PATTERN:
        raise KeywordError(f"content: the pattern has {len(out)} bytes, more than {MAX_PATTERN}")
    return bytes(out)


def _content(draft: RuleDraft, value: str | None) -> None:
    negated, text = quoted(value, "content")
    draft.add(ContentDraft(parse_pattern(text), negated))


def _uricontent(draft: RuleDraft, value: str | None) -> None:
    if draft.current is not None:
        raise KeywordError(f"uricontent while the sticky buffer {draft.current.name} is active", in_value=False)
    negated, text = quoted(value, "uricontent")
    info = BUFFERS["http.uri"]
    draft.require_app("uricontent", info.protos)
    draft.add(ContentDraft(parse_pattern(text), negated), to=draft.buffer(info.name))


def _nocase(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("nocase")
    if content.nocase:
        raise KeywordError("nocase is given twice for one content", in_value=False)
    content.nocase = True


def _offset(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("offset")
    _position(content, "offset")
    if content.startswith:
        raise KeywordError("offset cannot be combined with startswith", in_value=False)
    content.offset = draft.variable(required(value, "a number"), "offset", 0, MAX_OFFSET, relative=True)


def _depth(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("depth")
    _position(content, "depth")
    if content.startswith:
        raise KeywordError("depth cannot be combined with startswith", in_value=False)
    depth = draft.variable(required(value, "a number"), "depth", 0, MAX_OFFSET, relative=True)
    if isinstance(depth, int) and depth < len(content.pattern):
        raise KeywordError(f"depth: {depth} is less than the pattern's {len(content.pattern)} bytes")
    content.depth = depth


def _position(content: ContentDraft, keyword: str) -> None:
    if content.relative:
        raise KeywordError(f"{keyword} cannot be combined with distance or within on one content", in_value=False)
    if getattr(content, keyword) is not None:
        raise KeywordError(f"{keyword} is given twice for one content", in_value=False)
    if content.negated and content.fast:
        raise KeywordError(f"{keyword} cannot be combined with fast_pattern on a negated content", in_value=False)
    if content.fast_only:
        raise KeywordError(f"{keyword} cannot be combined with fast_pattern:only", in_value=False)


def _distance(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("distance")
    _reach(content, "distance")
    content.distance = draft.variable(required(value, "a number"), "distance", -MAX_REACH, MAX_REACH, relative=True)


def _within(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("within")
    _reach(content, "within")
    within = draft.variable(required(value, "a number"), "within", -MAX_REACH, MAX_REACH, relative=True)
    if isinstance(within, int) and within < len(content.pattern):
        raise KeywordError(f"within: {within} is less than the pattern's {len(content.pattern)} bytes")
    content.within = within


def _reach(content: ContentDraft, keyword: str) -> None:
    if content.offset is not None or content.depth is not None or content.startswith:
        raise KeywordError(
            f"{keyword} cannot be combined with offset, depth or startswith on one content", in_value=False
        )
    if getattr(content, keyword) is not None:
        raise KeywordError(f"{keyword} is given twice for one content", in_value=False)
    if content.negated and content.fast:
        raise KeywordError(f"{keyword} cannot be combined with fast_pattern on a negated content", in_value=False)
    if content.fast_only:
        raise KeywordError(f"{keyword} cannot be combined with fast_pattern:only", in_value=False)


def _startswith(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("startswith")
    if content.startswith:
        raise KeywordError("startswith is given twice for one content", in_value=False)
    if content.positioned:
        raise KeywordError("startswith cannot be combined with offset, depth, distance or within", in_value=False)
    content.startswith = True


def _endswith(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("endswith")
    if content.endswith:
        draft.warnings.append("endswith is given twice for one content")
    content.endswith = True


def _rawbytes(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("rawbytes")
    if draft.current is not None:
        raise KeywordError(f"rawbytes while the sticky buffer {draft.current.name} is active", in_value=False)
    if content.rawbytes:
        raise KeywordError("rawbytes is given twice for one content", in_value=False)
    content.rawbytes = True


def _fast_pattern(draft: RuleDraft, value: str | None) -> None:
    content = draft.last_content("fast_pattern")
    draft.once("fast_pattern")
    if draft.current is not None and draft.current.name == "base64_data":
        raise KeywordError("fast_pattern cannot be used after base64_data", in_value=False)
    if content.negated and content.positioned:
        raise KeywordError(
            "fast_pattern on a negated content cannot be combined with offset, depth, distance or within",
            in_value=False,
        )
    content.fast = True
    if not value:
        return
    if value == "only":
        if content.negated or content.positioned:
            raise KeywordError("fast_pattern:only needs a content without negation, offset, depth, distance, within")
        content.fast_only = True
        return
    parts = split_list(value)
    if len(parts) != 2:
        raise KeywordError(f"fast_pattern: expected nothing, only, or offset,length; found {value!r}")
    start = integer(parts[0], "fast_pattern offset", 0, MAX_PATTERN)
    size = integer(parts[1], "fast_pattern length", 1, MAX_PATTERN)
    if start + size > len(content.pattern):
        raise KeywordError(f"fast_pattern: {start}+{size} is behind the pattern's {len(content.pattern)} bytes")
    content.chop = (start, size)


def _row(name: str, summary: str, parse: Callable[[RuleDraft, str | None], None], value: bool | None) -> Keyword:
    return Keyword(name, summary, f"{_PAGE}#{name.replace('_', '-')}", Kind.MODIFIER, parse, value)


KEYWORDS = [
    Keyword("content", "bytes that must (or with ! must not) occur", f"{_PAGE}#content", Kind.CONTENT, _content),
    Keyword("uricontent", "content on http.uri (old form)", "http-keywords.html", Kind.CONTENT, _uricontent),
    _row("nocase", "upper and lower case are equal", _nocase, False),
    _row("offset", "where the search starts", _offset, True),
    _row("depth", "how far from the offset the search goes", _depth, True),
    _row("distance", "where the search starts, from the end of the match before", _distance, True),
    _row("within", "how far from there the search goes", _within, True),
    _row("startswith", "only at the start of the buffer", _startswith, False),
    _row("endswith", "only at the end of the buffer", _endswith, False),
    _row("rawbytes", "accepted; payloads are always raw here", _rawbytes, False),
    _row("fast_pattern", "search for this content first", _fast_pattern, None),
]

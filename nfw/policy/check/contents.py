"""What follows from a rule's contents and expressions without any traffic."""

from __future__ import annotations

from collections.abc import Iterable

from engines.stateful.match import Content, OneOf, Regex
from engines.stateful.signature import BufferMatch

# Texts that have nothing in common. An expression that finds something in each of them finds it everywhere.
_SAMPLES = (b"", b"\x00", b"A", b"z9", b"\xff\xfe", b"\r\n", b" ~", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)))


def contradiction(buffer: BufferMatch) -> str:
    """Why no data can fulfil all conditions on a buffer; "" when nothing says that it cannot."""
    if buffer.absent:
        return ""
    contents = [each for each in buffer.matchers if isinstance(each, Content) and not each.relative]
    wanted = [each for each in contents if not each.negated]
    for unwanted in contents:
        if unwanted.negated and not unwanted.endswith and not unwanted.offset and unwanted.depth is None:
            for each in wanted:
                if _contains(each, unwanted):
                    return f"{buffer.buffer} must hold {_show(each)} and must not hold {_show(unwanted)}"
    placed = [each for each in wanted if _place(each) is not None]
    for index, one in enumerate(placed):
        for other in placed[:index]:
            if not _agree(one, _place(one) or 0, other, _place(other) or 0):
                return f"{buffer.buffer} must have {_show(other)} and {_show(one)} in the same place"
    ends = [each for each in wanted if each.endswith]
    for index, one in enumerate(ends):
        for other in ends[:index]:
            if not _agree(one, -len(one.pattern), other, -len(other.pattern)):
                return f"{buffer.buffer} must end with {_show(other)} and with {_show(one)}"
    values = [each.values for each in buffer.matchers if isinstance(each, OneOf) and not each.negated]
    for index, these in enumerate(values):
        for those in values[:index]:
            if these.isdisjoint(those):
                return f"{buffer.buffer} must have two values at once"
    return ""


def _contains(wanted: Content, unwanted: Content) -> bool:
    """Whether what is wanted always brings along what is unwanted."""
    if unwanted.nocase:
        return unwanted.pattern in wanted.pattern.lower()
    return not wanted.nocase and unwanted.pattern in wanted.pattern


def _place(content: Content) -> int | None:
    """Where the content must begin, when that is one place."""
    if isinstance(content.offset, int) and content.depth == len(content.pattern):
        return content.offset
    return None


def _agree(one: Content, at: int, other: Content, its: int) -> bool:
    """Whether both can be there, beginning at ``at`` and ``its``."""
    start, end = max(at, its), min(at + len(one.pattern), its + len(other.pattern))
    if start >= end:
        return True
    mine, theirs = one.pattern[start - at : end - at], other.pattern[start - its : end - its]
    return mine.lower() == theirs.lower() if one.nocase or other.nocase else mine == theirs


def _show(content: Content) -> str:
    text = content.pattern[:40].decode("ascii", "backslashreplace")
    return '"' + text + ("..." if len(content.pattern) > 40 else "") + '"'


def is_raw_tls(buffer: BufferMatch) -> bool:
    """Whether the payload must begin like a TLS record (RFC 8446 section 5.1): type 20 to 23, major version 3."""
    return buffer.buffer == "payload" and any(
        isinstance(each, Content)
        and not each.negated
        and not each.relative
        and _place(each) == 0
        and len(each.pattern) >= 2
        and 20 <= each.pattern[0] <= 23
        and each.pattern[1] == 3
        for each in buffer.matchers
    )


def regexes(buffers: Iterable[BufferMatch]) -> list[Regex]:
    return [each for buffer in buffers for each in buffer.matchers if isinstance(each, Regex)]


def too_broad(regex: Regex) -> bool:
    """Whether the expression finds something in everything. One that looks away from something is left alone."""
    if "(?!" in regex.text or "(?<!" in regex.text:
        return False
    return all(regex.pattern.search(sample) is not None for sample in _SAMPLES)

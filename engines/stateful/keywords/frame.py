"""``frame``: conditions on a piece of a protocol as it is on the wire. Source: Suricata user guide, "Frames"."""

from __future__ import annotations

from engines.stateful.app.frames import READ, UNREAD, buffer_name
from engines.stateful.header import APP_PROTOCOLS
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, required, unquote
from engines.stateful.keywords.buffers import HTTP1
from engines.stateful.keywords.draft import RuleDraft

# How frames name a protocol that rules name otherwise.
_NAMES = {"http": "http1"}


def _frame(draft: RuleDraft, value: str | None) -> None:
    """``protocol.frame``, or the frame alone in a rule for its protocol."""
    text = unquote(required(value, "the name of a frame")).lower()
    proto = _NAMES.get(draft.header.app_proto, draft.header.app_proto)
    first, dot, rest = text.partition(".")
    frames = {name: (*READ.get(name, ()), *UNREAD.get(name, ())) for name in {*READ, *UNREAD}}
    if text in frames.get(proto, ()):
        frame = text
    elif dot and rest in frames.get(first, ()):
        proto, frame = first, rest
    elif not proto and first not in frames:
        raise KeywordError(f"frame: expected protocol.frame in a rule for {draft.header.protocol}, found {text!r}")
    else:
        named = first if first in frames else proto
        known = ", ".join(frames.get(named, ())) or "none"
        raise KeywordError(f"frame: {text!r} is no frame of {named}; known are {known}")
    draft.require_app("frame", HTTP1 if proto == "http1" else frozenset({proto}))
    if frame not in READ.get(proto, ()):
        draft.never(f"no parser for the frame {proto}.{frame}")
    draft.select(buffer_name(proto, frame), multiple=True)


assert {_NAMES.get(name, name) for name in APP_PROTOCOLS} >= {*READ, *UNREAD}, "a frame of no protocol"
KEYWORDS = [Keyword("frame", "a piece of a protocol as on the wire", "intro.html#frames", Kind.BUFFER, _frame)]

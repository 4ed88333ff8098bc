"""Conditions on the name of a file, in one keyword. Source: Suricata user guide, "File Keywords"."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, required, unquote
from engines.stateful.keywords.buffers import BUFFERS, FILES
from engines.stateful.keywords.content import parse_pattern
from engines.stateful.keywords.draft import BufferDraft, ContentDraft, RuleDraft

_PAGE = "file-keywords.html"


def _name(keyword: str, prefix: bytes, *, ends: bool) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        text = required(value, "a text in double quotes")
        negated = text.startswith("!")
        pattern = parse_pattern(unquote(text.lstrip("! ")))
        if not pattern:
            raise KeywordError(f"{keyword}: the text is empty")
        draft.require_app(keyword, FILES)
        # Each looks at the names for itself: one may match where another does not.
        buffer = BufferDraft(BUFFERS["file.name"].name)
        buffer.add(ContentDraft(prefix + pattern, negated, nocase=True, endswith=ends))
        draft.buffers.append(buffer)

    return parse


KEYWORDS = [
    Keyword("filename", "text in a file's name", f"{_PAGE}#filename", Kind.APP, _name("filename", b"", ends=False)),
    Keyword("fileext", "the end of a file's name", f"{_PAGE}#fileext", Kind.APP, _name("fileext", b".", ends=True)),
]

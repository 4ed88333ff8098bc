"""Conditions on the name and the digest of a file, in one keyword. Source: Suricata user guide, "File Keywords"."""

from __future__ import annotations

import re
from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, required, unquote
from engines.stateful.keywords.buffers import BUFFERS, FILES
from engines.stateful.keywords.content import parse_pattern
from engines.stateful.keywords.draft import BufferDraft, ContentDraft, RuleDraft
from engines.stateful.match import OneOf

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


_DIGEST = re.compile(r"[0-9a-fA-F]+")
# What filestore may say: of which side, and how much.
_STORE = re.compile(r"(?:request|response|both|to_server|to_client)(?:,(?:file|tx|ssn|flow))?")


def _digest(keyword: str, buffer: str, size: int) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        name = unquote(required(value, "the name of a file with digests"))
        negated = name.startswith("!")
        name = name.lstrip("! ")
        if draft.config.read_list is None:
            raise KeywordError(f"{keyword}: lists of digests cannot be read here", in_value=False)
        try:
            text = draft.config.read_list(name).decode("ascii", "replace")
        except OSError as error:
            raise KeywordError(f"{keyword}: the list {name!r} {error.strerror}") from None
        draft.require_app(keyword, FILES)
        made = BufferDraft(BUFFERS[buffer].name)
        made.add(OneOf(_digests(keyword, name, text, size), negated))
        draft.buffers.append(made)

    return parse


def _digests(keyword: str, name: str, text: str, size: int) -> frozenset[bytes]:
    """One a line, in hexadecimal; what follows it on the line is not looked at, nor are lines with a ``#``."""
    found = set()
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words[0]) != 2 * size or not _DIGEST.fullmatch(words[0]):
            raise KeywordError(f"{keyword}: {name}:{number}: expected {2 * size} hexadecimal digits")
        found.add(bytes.fromhex(words[0]))
    if not found:
        raise KeywordError(f"{keyword}: the list {name!r} is empty")
    return frozenset(found)


def _store(draft: RuleDraft, value: str | None) -> None:
    if value and not _STORE.fullmatch(value.replace(" ", "")):
        raise KeywordError(f"filestore: expected a side and a scope, like both,file, found {value!r}")
    draft.require_app("filestore", FILES)
    draft.buffers.append(BufferDraft(BUFFERS["file.data"].name))  # there has to be a file
    draft.warnings.append("filestore: the rule matches, and the file is not stored")


KEYWORDS = [
    Keyword("filename", "text in a file's name", f"{_PAGE}#filename", Kind.APP, _name("filename", b"", ends=False)),
    Keyword("fileext", "the end of a file's name", f"{_PAGE}#fileext", Kind.APP, _name("fileext", b".", ends=True)),
    Keyword(
        "filemd5", "the MD5 of a file is in a list", f"{_PAGE}#filemd5", Kind.APP, _digest("filemd5", "file.md5", 16)
    ),
    Keyword(
        "filesha1",
        "the SHA-1 of a file is in a list",
        f"{_PAGE}#filesha1",
        Kind.APP,
        _digest("filesha1", "file.sha1", 20),
    ),
    Keyword(
        "filesha256",
        "the SHA-256 of a file is in a list",
        f"{_PAGE}#filesha256",
        Kind.APP,
        _digest("filesha256", "file.sha256", 32),
    ),
    Keyword("filestore", "there is a file (which is not stored)", f"{_PAGE}#filestore", Kind.APP, _store, None),
]

"""Conditions on SMB that are no text buffers. Source: Suricata user guide, "SMB Keywords".

``smb.version`` holds one byte: 1, or 2 for every version since.
"""

from __future__ import annotations

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import OneOf


def _version(draft: RuleDraft, value: str | None) -> None:
    text = unquote(value or "").strip()
    if text not in {"1", "2"}:
        raise KeywordError(f"smb.version: expected one of 1, 2, found {value!r}")
    draft.once("smb.version")
    draft.require_app("smb.version", BUFFERS["smb.version"].protos)
    draft.buffer("smb.version").add(OneOf(frozenset({bytes([int(text)])})))


KEYWORDS = [
    Keyword("smb.version", "the version of SMB", "smb-keywords.html#smb-version", Kind.APP, _version),
]

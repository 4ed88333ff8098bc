"""``pcre``: Perl-compatible regular expressions, with Suricata's flags and with limits.

Source: Suricata user guide, "Payload keywords", pcre. The limits are Suricata's defaults (pcre.match-limit and
match-limit-recursion): a pattern that would backtrack forever gives up after a fraction of a millisecond.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pcre2

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, quoted
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import LIMIT_STEPS, LIMIT_STEPS_RAISED, Regex

# Backtracking steps one search may take, and their nesting: Suricata's defaults.
MATCH_LIMIT = 3500
DEPTH_LIMIT = 1500
# With flag O a rule asks for no limit; it gets this one, since a firewall must not hang.
MATCH_LIMIT_RAISED = 100_000
DEPTH_LIMIT_RAISED = 10_000

_POSITION = re.compile(r"position ([0-9]+)")
_DOLLAR_ENDONLY = 0x10  # PCRE2_DOLLAR_ENDONLY, which the package passes on but does not name
_INLINE = {"i": "i", "s": "s", "m": "m", "x": "x", "G": "U"}
_BUFFER_FLAGS = {
    "U": "http.uri",
    "I": "http.uri.raw",
    "P": "http.request_body",
    "Q": "file.data",  # as in Suricata, where http_server_body became file_data
    "H": "http.header",
    "D": "http.header.raw",
    "M": "http.method",
    "C": "http.cookie",
    "S": "http.stat_code",
    "Y": "http.stat_msg",
    "V": "http.user_agent",
    "W": "http.host",
    "Z": "http.host.raw",
}


@lru_cache(maxsize=65536)
def compile_regex(pattern: bytes, flags: str = "") -> Any:
    """A pcre2 pattern on bytes with the limits in it. ``flags``: of ``ismxAEGO``. Raises KeywordError."""
    inline = "".join(_INLINE[f] for f in flags if f in _INLINE)
    match, depth = (MATCH_LIMIT_RAISED, DEPTH_LIMIT_RAISED) if "O" in flags else (MATCH_LIMIT, DEPTH_LIMIT)
    before = b"(*LIMIT_MATCH=%d)(*LIMIT_DEPTH=%d)" % (match, depth)
    behind = b""
    if "A" in flags:
        before, behind = before + rb"\G(?:", b"\n)" if "x" in flags else b")"
    if inline:
        before += b"(?%s)" % inline.encode()
    try:
        return pcre2.compile(before + pattern + behind, _DOLLAR_ENDONLY if "E" in flags else 0)
    except (pcre2.PatternError, pcre2.LibraryError) as problem:
        text = _POSITION.sub(lambda at: f"position {max(0, int(at[1]) - len(before))}", str(problem))
        raise KeywordError(f"pcre: {text}") from None


def _pcre(draft: RuleDraft, value: str | None) -> None:
    bare = (value or "").lstrip("! ")
    if bare.startswith("/"):  # quotes may be left out
        negated, text = (value or "").startswith("!"), bare
    else:
        negated, text = quoted(value, "pcre")
    body, flags, captures = _split(text)
    if captures:
        draft.warnings.append(f"pcre: what is captured into {captures} is not kept")
    if not body:
        raise KeywordError("pcre: the expression is empty")
    buffer, relative = _flags(flags)
    regex = _matcher(text, body, flags, negated, relative)
    if not buffer:
        draft.add(regex, relative=relative)
        return
    active = draft.current
    if active is not None and active.name != buffer and {active.name, buffer} != {"http.response_body", "file.data"}:
        raise KeywordError(f"pcre: flag for {buffer} while the sticky buffer {active.name} is active")
    if buffer == "http.host" and "i" in flags:
        raise KeywordError("pcre: http.host is always lower case: leave out the flag i")
    draft.require_app("pcre", BUFFERS[buffer].protos)
    draft.add(regex, to=active or draft.buffer(buffer))


def regex_matcher(text: str, negated: bool, relative: bool) -> Regex:
    """The matcher of ``/expression/flags``, which was parsed before."""
    body, flags, _ = _split(text)
    return _matcher(text, body, flags, negated, relative)


def _split(text: str) -> tuple[str, str, str]:
    """(expression, flags, names for what is captured)."""
    if not text.startswith("/"):
        raise KeywordError(f'pcre: expected "/expression/flags", found "{text}"')
    end = text.rfind("/")
    while end > 0 and _escaped(text, end):
        end = text.rfind("/", 0, end)
    if end <= 0:
        raise KeywordError(f'pcre: the closing / is missing in "{text}"')
    flags, _, captures = (part.strip() for part in text[end + 1 :].partition(","))
    return text[1:end], flags, captures


def _matcher(text: str, body: str, flags: str, negated: bool, relative: bool) -> Regex:
    pattern = compile_regex(body.encode("utf-8", "surrogateescape"), "".join(f for f in flags if f in "ismxAEGO"))
    return Regex(pattern, negated, relative, text, LIMIT_STEPS_RAISED if "O" in flags else LIMIT_STEPS)


def _flags(flags: str) -> tuple[str, bool]:
    """(buffer or "", relative)."""
    buffer, relative = "", False
    for flag in flags:
        if flag in _BUFFER_FLAGS:
            if buffer:
                raise KeywordError(f"pcre: flag {flag} asks for a second buffer")
            buffer = _BUFFER_FLAGS[flag]
        elif flag == "R":
            relative = True
        elif flag not in "ismxAEGOB":  # B: raw bytes, which payloads always are here
            raise KeywordError(f"pcre: unknown flag {flag!r}")
    if "B" in flags and buffer:
        raise KeywordError(f"pcre: flag B (raw bytes) cannot be combined with the flag for {buffer}")
    return buffer, relative


def _escaped(text: str, index: int) -> bool:
    """An odd number of backslashes stands before that character."""
    count = 0
    while index - count > 0 and text[index - count - 1] == "\\":
        count += 1
    return count % 2 == 1


KEYWORDS = [
    Keyword(
        "pcre",
        "a regular expression",
        "payload-keywords.html#pcre-perl-compatible-regular-expressions",
        Kind.CONTENT,
        _pcre,
    ),
]

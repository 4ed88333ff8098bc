"""How often and how a rule acts: threshold, detection_filter, noalert ... Source: user guide, "Thresholding"."""

from __future__ import annotations

import re

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, required, split_list
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.signature import Action, Threshold

_TRACKS = {"by_src", "by_dst", "by_rule", "by_both", "by_flow"}
_TYPES = {"limit", "threshold", "both"}


def _options(value: str | None, keyword: str, wanted: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in split_list(required(value, ", ".join(wanted))):
        name, _, argument = part.partition(" ")
        if name not in wanted:
            raise KeywordError(f"{keyword}: expected {', '.join(wanted)}; found {part!r}")
        if name in given:
            raise KeywordError(f"{keyword}: {name} is given twice")
        given[name] = argument.strip()
    missing = [name for name in wanted if not given.get(name)]
    if missing:
        raise KeywordError(f"{keyword}: {missing[0]} is missing")
    if given["track"] not in _TRACKS:
        raise KeywordError(f"{keyword}: track is one of {', '.join(sorted(_TRACKS))}, not {given['track']!r}")
    return given


def _threshold(draft: RuleDraft, value: str | None) -> None:
    if draft.threshold is not None:
        raise KeywordError("threshold is given twice", in_value=False)
    if draft.detection_filter is not None:
        raise KeywordError("threshold and detection_filter exclude each other", in_value=False)
    if "backoff" in (value or ""):
        _backoff(draft, value)
        return
    given = _options(value, "threshold", ("type", "track", "count", "seconds"))
    if given["type"] not in _TYPES:
        raise KeywordError(f"threshold: type is limit, threshold or both, not {given['type']!r}")
    draft.threshold = Threshold(
        given["type"],
        given["track"],
        integer(given["count"], "threshold count", 1),
        integer(given["seconds"], "threshold seconds", 1),
    )


def _backoff(draft: RuleDraft, value: str | None) -> None:
    """``type backoff``: an alert at the count-th match, then each time their number has grown by the multiplier."""
    given = _options(value, "threshold", ("type", "track", "count", "multiplier"))
    if given["type"] != "backoff":
        raise KeywordError(f"threshold: type is limit, threshold, both or backoff, not {given['type']!r}")
    draft.threshold = Threshold(
        "backoff",
        given["track"],
        integer(given["count"], "threshold count", 1),
        0,
        integer(given["multiplier"], "threshold multiplier", 2),
    )


def _detection_filter(draft: RuleDraft, value: str | None) -> None:
    if draft.detection_filter is not None:
        raise KeywordError("detection_filter is given twice", in_value=False)
    if draft.threshold is not None:
        raise KeywordError("threshold and detection_filter exclude each other", in_value=False)
    given = _options(value, "detection_filter", ("track", "count", "seconds"))
    draft.detection_filter = Threshold(
        "detection_filter",
        given["track"],
        integer(given["count"], "detection_filter count", 1),
        integer(given["seconds"], "detection_filter seconds", 1),
    )


def _noalert(draft: RuleDraft, value: str | None) -> None:
    draft.noalert = True


def _alert(draft: RuleDraft, value: str | None) -> None:
    if draft.header.action is not Action.PASS:
        draft.warnings.append("alert means something in pass rules only")
    draft.pass_alert = True


def _ignored(what: str) -> str:
    return f"{what}; accepted, has no effect here"


def _nothing(draft: RuleDraft, value: str | None) -> None:
    """For keywords about capturing, speed or logging, which change no verdict."""


_TAG = re.compile(r"\s*(?:host|session)\s*(?:,\s*\d+\s*,\s*(?:packets|bytes|seconds)\s*(?:,\s*(?:src|dst)\s*)?)?")


def _tag(draft: RuleDraft, value: str | None) -> None:
    shape = "host or session, then perhaps a number, packets, bytes or seconds, and src or dst"
    if not _TAG.fullmatch(required(value, shape)):
        raise KeywordError(f"tag: expected {shape}; found {value!r}")


_PAGE = "thresholding.html"
KEYWORDS = [
    Keyword("threshold", "how often a rule alerts", f"{_PAGE}#threshold", Kind.ACTION, _threshold),
    Keyword(
        "detection_filter", "match only from a rate on", f"{_PAGE}#detection-filter", Kind.ACTION, _detection_filter
    ),
    Keyword("noalert", "set state, log nothing", "meta.html", Kind.ACTION, _noalert, False),
    Keyword("alert", "log a pass rule's matches", "meta.html", Kind.ACTION, _alert, False),
    Keyword("tag", _ignored("log packets after a match"), "tag.html", Kind.ACTION, _tag),
    Keyword(
        "prefilter",
        _ignored("a hint which condition to test first"),
        "prefilter-keywords.html",
        Kind.ACTION,
        _nothing,
        False,
    ),
    Keyword(
        "bypass", _ignored("a hint to stop inspecting the flow"), "bypass-keyword.html", Kind.ACTION, _nothing, False
    ),
]

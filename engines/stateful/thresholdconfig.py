"""``threshold.config``: thresholds, suppressions and rate filters for rules that are written elsewhere.

Source: Suricata user guide, "Global thresholds". One entry a line::

    event_filter gen_id 1, sig_id 2000, type limit, track by_src, count 1, seconds 60
    suppress gen_id 1, sig_id 2000, track by_src, ip [10.0.0.0/8,!10.0.0.1]
    rate_filter gen_id 1, sig_id 2000, track by_src, count 5, seconds 60, new_action drop, timeout 30

``threshold`` is an old name of ``event_filter``; ``sig_id 0`` means every rule of the group, ``gen_id 0`` every group.
A line that is wrong is refused with its place; the others still count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engines.stateful.header import HeaderParser, Variables
from engines.stateful.keywords.base import KeywordError, integer
from engines.stateful.signature import Action, RateFilter, RuleError, Signature, Suppression, Threshold

# Longest line, as for a rule.
MAX_LINE = 8192
_TRACKS = {"by_src", "by_dst", "by_both", "by_rule", "by_flow"}
_ACTIONS = {"alert": Action.ALERT, "drop": Action.DROP, "pass": Action.PASS, "reject": Action.REJECT}


@dataclass(frozen=True, slots=True)
class Entry:
    """What one line asks for. ``gid`` or ``sid`` 0: every one."""

    gid: int
    sid: int
    what: Threshold | Suppression | RateFilter

    def covers(self, signature: Signature) -> bool:
        return self.gid in (0, signature.ref.gid) and self.sid in (0, signature.ref.id)

    @property
    def every(self) -> bool:
        return not (self.gid and self.sid)


@dataclass(slots=True)
class ThresholdConfig:
    """``errors``: the lines that were refused, with line and column."""

    entries: list[Entry] = field(default_factory=list)
    errors: list[RuleError] = field(default_factory=list)

    def apply(self, signatures: Iterable[Signature]) -> list[Signature]:
        """The rules with what the file says of them. An event_filter takes the place of the rule's own threshold, but
        not one for every rule; of several, the last counts. Suppressions add up."""
        special = [entry for entry in self.entries if not entry.every]
        general = [entry for entry in self.entries if entry.every]
        return [_applied(signature, general, special) for signature in signatures]


def _applied(signature: Signature, general: list[Entry], special: list[Entry]) -> Signature:
    threshold, rate = signature.threshold, signature.rate_filter
    own = threshold is not None or signature.detection_filter is not None
    suppressions = list(signature.suppressions)
    for entry in (*general, *special):
        if not entry.covers(signature):
            continue
        if isinstance(entry.what, Suppression):
            suppressions.append(entry.what)
        elif isinstance(entry.what, RateFilter):
            rate = entry.what
        elif not (entry.every and own):
            threshold = entry.what
    if (threshold, rate, len(suppressions)) == (
        signature.threshold,
        signature.rate_filter,
        len(signature.suppressions),
    ):
        return signature
    return replace(signature, threshold=threshold, rate_filter=rate, suppressions=tuple(suppressions))


def parse_threshold_config(text: str, file: str, variables: Variables) -> ThresholdConfig:
    """Reads the file's text. Never raises."""
    found = ThresholdConfig()
    headers = HeaderParser(variables)
    for line, column, entry in _lines(text):
        try:
            found.entries.append(_entry(entry, headers))
        except ValueError as problem:
            found.errors.append(RuleError(file, line, column, str(problem)))
    return found


def _lines(text: str) -> Iterable[tuple[int, int, str]]:
    """(line, column, entry) with continuation lines joined, comments and empty lines left out."""
    pieces: list[str] = []
    start = (0, 0)
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip()
        bare = line.lstrip()
        if not pieces:
            if not bare or bare.startswith("#"):
                continue
            start = (number, len(line) - len(bare) + 1)
        pieces.append(bare.removesuffix("\\"))
        if not line.endswith("\\"):
            yield (*start, "".join(pieces))
            pieces = []
    if pieces:
        yield (*start, "".join(pieces))


_SHAPES: dict[str, tuple[str, ...]] = {
    "event_filter": ("gen_id", "sig_id", "type", "track", "count", "seconds"),
    "threshold": ("gen_id", "sig_id", "type", "track", "count", "seconds"),
    "suppress": ("gen_id", "sig_id", "track", "ip"),
    "rate_filter": ("gen_id", "sig_id", "track", "count", "seconds", "new_action", "timeout"),
}
_OPTIONAL = {"suppress": {"track", "ip"}}


def _entry(text: str, headers: HeaderParser) -> Entry:
    if len(text) > MAX_LINE:
        raise KeywordError(f"the line has {len(text)} characters, more than {MAX_LINE}")
    kind, _, rest = text.partition(" ")
    shape = _SHAPES.get(kind)
    if shape is None:
        raise KeywordError(f"expected {', '.join(_SHAPES)}; found {kind!r}")
    given = _given(kind, rest, shape)
    gid, sid = integer(given["gen_id"], "gen_id"), integer(given["sig_id"], "sig_id")
    if kind == "suppress":
        return Entry(gid, sid, _suppression(given, headers))
    if given["track"] not in _TRACKS:
        raise KeywordError(f"track is one of {', '.join(sorted(_TRACKS))}, not {given['track']!r}")
    count, seconds = integer(given["count"], "count", 1), integer(given["seconds"], "seconds", 1)
    if kind == "rate_filter":
        action = _ACTIONS.get(given["new_action"])
        if action is None:
            raise KeywordError(f"new_action is one of {', '.join(_ACTIONS)}, not {given['new_action']!r}")
        return Entry(gid, sid, RateFilter(given["track"], count, seconds, action, integer(given["timeout"], "timeout")))
    if given["type"] not in {"limit", "threshold", "both"}:
        raise KeywordError(f"type is limit, threshold or both, not {given['type']!r}")
    return Entry(gid, sid, Threshold(given["type"], given["track"], count, seconds))


def _given(kind: str, rest: str, shape: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    while rest.strip():
        name, _, value = rest.strip().partition(" ")
        if name == "ip" and kind == "suppress":  # the last: a list has commas of its own
            value, rest = value.strip(), ""
        else:
            value, _, rest = value.partition(",")
        if name not in shape:
            raise KeywordError(f"{kind}: expected {', '.join(shape)}; found {name!r}")
        if name in given:
            raise KeywordError(f"{kind}: {name} is given twice")
        given[name] = value.strip()
    missing = [name for name in shape if not given.get(name) and name not in _OPTIONAL.get(kind, ())]
    if missing:
        raise KeywordError(f"{kind}: {missing[0]} is missing")
    return given


def _suppression(given: dict[str, str], headers: HeaderParser) -> Suppression:
    track, ip = given.get("track", ""), given.get("ip", "")
    if not track and not ip:
        return Suppression("", None)
    if track not in {"by_src", "by_dst", "by_either"}:
        raise KeywordError(f"suppress: track is by_src, by_dst or by_either, not {track!r}")
    if not ip:
        raise KeywordError("suppress: ip is missing")
    return Suppression(track, headers.address(ip).test)

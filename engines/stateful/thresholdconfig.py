"""``threshold.config``: thresholds, suppressions and rate filters for rules that are written elsewhere.

Source: Suricata user guide, "Global thresholds". One entry a line::

    event_filter gen_id 1, sig_id 2000, type limit, track by_src, count 1, seconds 60
    suppress gen_id 1, sig_id 2000, track by_src, ip [10.0.0.0/8,!10.0.0.1]
    rate_filter gen_id 1, sig_id 2000, track by_src, count 5, seconds 60, new_action drop, timeout 30

``threshold`` is an old name of ``event_filter``; ``sig_id 0`` means every rule of the group, ``gen_id 0`` every group.
A line that is wrong is refused with its place; the others still count. Lines are applied in order, as Suricata does: a
rule has one threshold, detection_filter or rate_filter. An event_filter for that very rule takes the place of what it
has; any other entry leaves a rule alone that has one.
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
    """What one line asks for. ``sid`` 0: every rule of the group, ``gid`` 0: of every group."""

    gid: int
    sid: int
    what: Threshold | Suppression | RateFilter
    line: int = field(default=0, compare=False)

    def covers(self, signature: Signature) -> bool:
        return self.gid in (0, signature.ref.gid) and self.sid in (0, signature.ref.id)


@dataclass(slots=True)
class ThresholdConfig:
    """``errors``: the lines that were refused, with line and column."""

    file: str = ""
    entries: list[Entry] = field(default_factory=list)
    errors: list[RuleError] = field(default_factory=list)

    def apply(self, signatures: Iterable[Signature]) -> tuple[list[Signature], list[RuleError]]:
        """The rules with what the file says of them, and warnings: about lines that change no rule."""
        rules = list(signatures)
        at: dict[tuple[int, int], list[int]] = {}
        for index, signature in enumerate(rules):
            at.setdefault((signature.ref.gid, signature.ref.id), []).append(index)
        warnings: list[RuleError] = []
        for entry in self.entries:
            places: Iterable[int] = at.get((entry.gid, entry.sid), ()) if entry.sid else range(len(rules))
            known = kept = 0
            for index in places:
                if entry.covers(rules[index]):
                    known += 1
                    changed = _applied(rules[index], entry)
                    kept += changed is rules[index]
                    rules[index] = changed
            if entry.sid and not known:
                warnings.append(self._warning(entry, f"there is no rule with gid {entry.gid} and sid {entry.sid}"))
            elif entry.sid and kept:
                warnings.append(self._warning(entry, f"rule {entry.sid} has a threshold already, and keeps it"))
        return rules, warnings

    def _warning(self, entry: Entry, message: str) -> RuleError:
        return RuleError(self.file, entry.line, 0, message)


def _applied(signature: Signature, entry: Entry) -> Signature:
    what = entry.what
    if isinstance(what, Suppression):
        return replace(signature, suppressions=(*signature.suppressions, what))
    taken = signature.threshold or signature.detection_filter or signature.rate_filter
    if isinstance(what, RateFilter):
        return signature if taken else replace(signature, rate_filter=what)
    if taken and not entry.sid:
        return signature
    return replace(signature, threshold=what, detection_filter=None, rate_filter=None)


def parse_threshold_config(text: str, file: str, variables: Variables) -> ThresholdConfig:
    """Reads the file's text. Never raises."""
    found = ThresholdConfig(file)
    headers = HeaderParser(variables)
    for line, column, entry in _lines(text):
        try:
            found.entries.append(replace(_entry(entry, headers), line=line))
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
        raise KeywordError(f"expected {', '.join(_SHAPES)}; found {kind[:40]!r}")
    given = _given(kind, rest, shape)
    gid, sid = integer(given["gen_id"], "gen_id"), integer(given["sig_id"], "sig_id")
    if sid and not gid:
        raise KeywordError("gen_id 0 is every group, and goes with sig_id 0 only")
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

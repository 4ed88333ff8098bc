"""What ``nfw top`` shows: the daemon's status and the event log, as lines of a terminal. Pure; the screen is the CLI's.

Rates are differences between two answers to ``status``. Talkers and names are from the log's records, so a flow counts
when it has ended; everything there is of the last :data:`WINDOW_SECONDS`. Text of the network is made harmless
(:func:`nfw.logview.clean`) and cut to the width.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nfw import metrics
from nfw.logview import clean, describe, size

WINDOW_SECONDS = 60.0
REMEMBERED = 20_000  # (time, name, weight) of talkers and of names each; the oldest go first
EVENTS = 500  # records that can be gone through
RULE_NAMES = 5000  # signatures' texts, from the alerts seen

Span = tuple[str, str]  # text, style: "", "bold", "dim", "good", "bad", "chosen"
Line = list[Span]
Table = tuple[str, Sequence[tuple[str, str, str]]]  # title, rows: a figure, a text, the text's style

_SHOWN = ("alert", "drop", "tls", "http", "log_dropped")  # in the list of events
_CUT = "~"
_HELP = "q quit  / filter  up/down choose  Enter open  p pause  c clear"


class Recent:
    """Weights by name over the last minute."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, str, int]] = deque()
        self._sums: Counter[str] = Counter()

    def add(self, now: float, name: str, weight: int) -> None:
        self._items.append((now, name, weight))
        self._sums[name] += weight
        if len(self._items) > REMEMBERED:
            self._forget()

    def expire(self, now: float) -> None:
        while self._items and self._items[0][0] < now - WINDOW_SECONDS:
            self._forget()

    def most(self, text: str = "") -> list[tuple[str, int]]:
        """Heaviest first, of those with ``text`` in them."""
        return [(name, weight) for name, weight in self._sums.most_common() if text in name.lower()]

    def _forget(self) -> None:
        _, name, weight = self._items.popleft()
        self._sums[name] -= weight
        if self._sums[name] <= 0:
            del self._sums[name]


@dataclass(slots=True)
class View:
    """All that is known, and what the person at the terminal asked for."""

    filter: str = ""
    editing: bool = False  # keys go to the filter
    opened: bool = False  # the chosen record fills the screen
    paused: bool = False
    chosen: int = 0  # 0 is the newest event
    quit: bool = False
    status: Mapping[str, Any] | None = None
    problem: str = "waiting for the first answer"
    events: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    talkers: Recent = field(default_factory=Recent)
    names: Recent = field(default_factory=Recent)
    _totals: metrics.Totals = field(default_factory=metrics.Totals)
    _rules: metrics.Rules = field(default_factory=metrics.Rules)
    _first: metrics.Counts | None = None
    _sums: metrics.Counts = field(default_factory=dict)
    _rates: metrics.Counts = field(default_factory=dict)
    _at: float = 0.0
    _signatures: dict[str, str] = field(default_factory=dict)
    _open: Mapping[str, Any] | None = None
    _top: int = 0  # first line shown of an opened record

    # -- what comes in ---------------------------------------------------------------------------------------------

    def answer(self, status: Mapping[str, Any] | None, problem: str, now: float) -> None:
        """An answer of the daemon, or why there is none. ``now``: monotonic seconds."""
        self.talkers.expire(now)
        self.names.expire(now)
        self.problem = problem
        if status is None:
            self.status, self._rates = None, {}
            return
        if self.paused:
            return
        self._totals.update(metrics.sources(status, self._rules))
        sums = self._totals.sums()
        if self._first is None:
            self._first = sums
        elif now > self._at:
            gap = now - self._at
            self._rates = {key: max(0.0, value - self._sums.get(key, value)) / gap for key, value in sums.items()}
        self.status, self._sums, self._at = status, sums, now

    def record(self, event: Mapping[str, Any], now: float) -> None:
        """One record of the log."""
        kind = event.get("event_type")
        ours = event.get("nfw")
        if kind == "flow" and not (isinstance(ours, Mapping) and ours.get("final") is False):  # or it would count twice
            flow = event.get("flow")
            if isinstance(flow, Mapping):
                sides = [flow.get(f"bytes_{side}", 0) for side in ("toserver", "toclient")]
                weight = sum(value for value in sides if isinstance(value, int))
                self.talkers.add(now, f"{clean(event.get('src_ip', '?'))} > {clean(event.get('dest_ip', '?'))}", weight)
        if kind in ("tls", "http"):
            part = event.get(kind)
            name = part.get("sni" if kind == "tls" else "hostname") if isinstance(part, Mapping) else None
            if name:
                self.names.add(now, clean(name), 1)
        alert = event.get("alert")
        if isinstance(alert, Mapping) and len(self._signatures) < RULE_NAMES:
            rule = f"{clean(alert.get('gid', 1))}:{clean(alert.get('signature_id', '?'))}"
            self._signatures[rule] = clean(alert.get("signature", ""))
        if kind in _SHOWN and not self.paused:
            self.events.append(event)
            if self.chosen and self._matches(event):
                self.chosen = min(self.chosen + 1, EVENTS - 1)  # the cursor stays on its record

    def key(self, name: str) -> None:
        """A key: a character, or ``up``, ``down``, ``enter``, ``escape``, ``backspace``."""
        if self.editing:
            self._edit(name)
        elif self.opened and name in ("up", "k", "down", "j"):
            self._top = max(0, self._top + (1 if name in ("down", "j") else -1))
        elif self.opened:
            self.opened = name not in ("escape", "enter", "q", "backspace")
        elif name == "q":
            self.quit = True
        elif name == "/":
            self.editing = True
        elif name == "p":
            self.paused = not self.paused
        elif name in ("c", "escape"):
            self.filter, self.chosen = "", 0
        elif name in ("up", "k"):
            self.chosen = max(0, self.chosen - 1)
        elif name in ("down", "j"):
            self.chosen = min(self.chosen + 1, max(0, len(self._found()) - 1))
        elif name == "enter":
            found = self._found()
            if self.chosen < len(found):
                self._open, self.opened, self._top = found[self.chosen], True, 0

    def _edit(self, name: str) -> None:
        if name in ("enter", "escape"):
            self.editing = False
            self.filter = self.filter if name == "enter" else ""
        elif name == "backspace":
            self.filter = self.filter[:-1]
        elif len(name) == 1 and name.isprintable() and len(self.filter) < 60:
            self.filter += name.lower()
        self.chosen = 0

    def _matches(self, event: Mapping[str, Any]) -> bool:
        return not self.filter or self.filter in describe(event).lower()

    def _found(self) -> list[Mapping[str, Any]]:
        """Events newest first."""
        return [event for event in reversed(self.events) if self._matches(event)]

    # -- what goes out ---------------------------------------------------------------------------------------------

    def render(self, width: int, height: int, clock: str) -> list[Line]:
        """At most ``height`` lines of at most ``width`` columns. ``clock``: the time of day, as text."""
        lines = (
            self._opened(width, height) if self.opened and self._open is not None else self._page(width, height, clock)
        )
        return [_cut(line, width) for line in lines[:height]]

    def _page(self, width: int, height: int, clock: str) -> list[Line]:
        lines = [self._head(width, clock), self._traffic(), self._health()]
        room = max(0, height - len(lines) - 1)
        most = max(2, (room * 3 // 10)) if room >= 8 else 0
        if most:
            half = (width - 2) // 2
            names = [(f"{count}x", text, "") for text, count in self.names.most(self.filter)]
            lines += _tables(
                ("talkers, last minute", self._sized(self.talkers)), ("names, last minute", names), half, most
            )
            lines += _tables(("rules hit", self._hits()), ("refused", self._refused()), half, most)
        left = height - len(lines) - 1
        if left > 1:
            lines.append([(f" events ({len(self._found())}) ".center(width, "-"), "dim")])
            lines += self._listed(left - 1)
        lines += [[] for _ in range(height - 1 - len(lines))]
        return [*lines[: height - 1], self._foot()]

    def _head(self, width: int, clock: str) -> Line:
        status = self.status
        if status is None:
            return [("nfw  ", "bold"), (clean(self.problem), "bad")]
        state = clean(status.get("state", "?"))
        name = f"{clean(status.get('name', ''))}  generation {clean(status.get('generation', '-'))}"
        left = f"nfw {clean(status.get('version', ''))}  {name}  "
        style = "good" if state == "filtering" else "bad"
        if status.get("mode") == "monitor":
            state, style = "MONITOR: NOTHING IS BLOCKED", "bad"
        waiting = status.get("waiting")
        if isinstance(waiting, Mapping):
            state, style = f"{state}, NOT CONFIRMED: {clean(waiting.get('seconds_left', '?'))} s", "bad"
        gap = max(1, width - _columns(left) - len(state) - len(clock) - (9 if self.paused else 0))
        paused: Line = [("  PAUSED ", "bad")] if self.paused else []
        return [(left, "bold"), (state, style), *paused, (" " * gap + clock, "")]

    def _traffic(self) -> Line:
        rate = self._rate
        processes = (self.status or {}).get("processes") or ()
        flows, room = (sum(int(one.get(key) or 0) for one in processes) for key in ("flows", "max_flows"))
        sessions = sum(int(one.get("sessions") or 0) for one in processes)
        refused = rate("nfw_packets", "drop") + rate("nfw_packets", "reject")
        full = f" ({100 * flows // room} %)" if room else ""
        refused += rate("nfw_kernel_packets", "dropped")
        return [
            (f"{count(rate('aws_networkfirewall_received_packets', 'stateless'))} packets/s  ", ""),
            (f"{size(rate('nfw_bytes', 'stateless'))}/s  ", ""),
            (f"{count(refused)} refused/s  ", "bad" if refused >= 1 else ""),
            (f"{count(rate('nfw_alerts'))} alerts/s  ", ""),
            (f"{count(flows)} flows{full}  {count(sessions)} TLS", ""),
        ]

    def _health(self) -> Line:
        if self.status is None:
            return [("health: unknown", "dim")]
        problems = []
        for one in self.status.get("processes") or ():
            name = clean(one.get("name", "?"))
            if not one.get("pid") or (len(one) <= 2 and not name.endswith("keyholder")):
                problems.append(f"{name} does not answer")
        queues = ((self.status.get("kernel") or {}).get("queues") or {}).values()
        waiting = sum(int(one.get("queued", 0)) for one in queues)
        for metric, text in (
            ("nfw_queue_dropped_packets", "dropped by the kernel"),
            ("nfw_bugs", "exceptions"),
            ("nfw_log_dropped_lines", "log lines lost"),
        ):
            total = sum(value for (name, _), value in self._sums.items() if name == metric)
            if total:
                problems.append(f"{count(total)} {text}")
        if waiting > 1000:
            problems.append(f"{count(waiting)} packets wait")
        if problems:
            return [("health: " + ", ".join(problems), "bad")]
        return [("health: good", "good"), (f"  {waiting} packets wait", "dim")]

    def _sized(self, recent: Recent) -> list[tuple[str, str, str]]:
        return [(size(weight), name, "") for name, weight in recent.most(self.filter)]

    def _since(self, metric: str) -> list[tuple[float, tuple[str, ...]]]:
        """What a counter's series have gained since the start, most first."""
        first = self._first or {}
        gained = [
            (value - first.get((name, labels), 0.0), labels)
            for (name, labels), value in self._sums.items()
            if name == metric
        ]
        return sorted((item for item in gained if item[0] > 0), reverse=True)

    def _hits(self) -> list[tuple[str, str, str]]:
        rows = []
        for hits, (engine, rule) in self._since("nfw_rule_hits"):
            text = f"{rule} {self._signatures.get(rule, '')}".rstrip() if engine == "stateful" else f"{engine} {rule}"
            rows.append((count(hits), clean(text), ""))
        return [row for row in rows if self.filter in row[1].lower()]

    def _refused(self) -> list[tuple[str, str, str]]:
        rows = [
            (count(gained), clean(f"{stage} {verdict}: {reason}"), "bad")
            for gained, (stage, verdict, reason) in self._since("nfw_verdicts")
            if verdict.removeprefix("would_") in ("drop", "reject")
        ]
        return [row for row in rows if self.filter in row[1].lower()]

    def _listed(self, room: int) -> list[Line]:
        found = self._found()
        top = max(0, min(self.chosen - room // 2, len(found) - room))
        return [
            [(describe(event, brief=True), "chosen" if number == self.chosen else _style(event))]
            for number, event in enumerate(found[top : top + room], top)
        ]

    def _foot(self) -> Line:
        if self.editing:
            return [("filter: ", "bold"), (self.filter + "_", "")]
        return [(f"{_HELP}" + (f"  [{self.filter}]" if self.filter else ""), "dim")]

    def _opened(self, width: int, height: int) -> list[Line]:
        assert self._open is not None
        text = json.dumps(self._open, indent=1, ensure_ascii=True, default=str)
        flow = self._open.get("flow_id")
        same = [event for event in self.events if flow and event.get("flow_id") == flow]
        lines: list[Line] = [[(f" this flow's records ({len(same)}) ".center(width, "-"), "dim")]] if same else []
        lines += [[(describe(event, brief=True), _style(event))] for event in same[-(height // 3) :]]
        lines.append([(" record ".center(width, "-"), "dim")])
        body: list[Line] = []
        for line in text.splitlines():
            shown = clean(line)
            body += [[(shown[at : at + width], "")] for at in range(0, len(shown), max(1, width))]
        room = max(1, height - 1 - len(lines))
        self._top = min(self._top, max(0, len(body) - room))
        below = len(body) - room - self._top
        foot = "Esc back" + (f"  up/down scroll, {below} lines below" if below > 0 or self._top else "")
        lines = [*lines, *body[self._top : self._top + room]]
        lines += [[] for _ in range(height - 1 - len(lines))]
        return [*lines[: height - 1], [(foot, "dim")]]

    def _rate(self, metric: str, label: str = "") -> float:
        """Of the series of a metric that have ``label`` among their labels; all of them without one."""
        return sum(
            value for (name, labels), value in self._rates.items() if name == metric and (not label or label in labels)
        )


def count(value: float) -> str:
    """``12.3k``; at most five columns."""
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.0f}{unit}" if not unit or value >= 100 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def _style(event: Mapping[str, Any]) -> str:
    kind = event.get("event_type")
    return "bad" if kind in ("drop", "log_dropped") else "bold" if kind == "alert" else ""


def _tables(left: Table, right: Table, width: int, most: int) -> list[Line]:
    """Two side by side, as tall as the longer one needs, at most so tall."""
    tall = min(most, 1 + max(1, len(left[1]), len(right[1])))
    return _beside(_table(*left, width, tall), _table(*right, width, tall), width)


def _table(title: str, rows: Sequence[tuple[str, str, str]], width: int, height: int) -> list[Line]:
    """A title and the first rows: a figure to the right of eight columns, a text, the text's style."""
    lines: list[Line] = [[(f" {title} ".center(width, "-"), "dim")]]
    lines += [[(f"{figure:>8} ", ""), (text, style)] for figure, text, style in rows[: height - 1]]
    return lines + [[] for _ in range(height - len(lines))]


def _beside(left: Iterable[Line], right: Iterable[Line], width: int) -> list[Line]:
    both = []
    for one, other in zip(left, right, strict=True):
        cut = _cut(one, width)
        gap = width - sum(_columns(text) for text, _ in cut) + 2
        both.append([*cut, (" " * gap, ""), *other])
    return both


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters of East Asia take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_column(character) for character in text)


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(line: Line, width: int) -> Line:
    """As much of a line as there is room for, with a mark where it was cut."""
    if sum(_columns(text) for text, _ in line) <= width:
        return line
    made: Line = []
    left = width - len(_CUT)
    for text, style in line:
        kept = ""
        for character in text:
            left -= _column(character)
            if left < 0:
                return [*made, (kept + _CUT, style)] if width >= len(_CUT) else made
            kept += character
        made.append((kept, style))
    return made

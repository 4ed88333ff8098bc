"""A row of the table, and measuring by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WIDTH = 66


@dataclass(frozen=True, slots=True)
class Row:
    """``peer`` and ``measured`` are medians in ``unit``; ``least`` and ``most`` are the ratios that will do, ``cap`` is
    the most that ``measured`` itself may be, each None where nothing is required. ``ratio`` is measured / peer, for
    rates and times alike: what is better stands in ``better``."""

    name: str
    peer_name: str
    peer: float
    measured: float
    unit: str
    better: str = "more"
    least: float | None = None
    note: str = ""
    most: float | None = None
    cap: float | None = None

    @property
    def ratio(self) -> float:
        """Measured / peer; infinite where the peer measured nothing."""
        return self.measured / self.peer if self.peer else float("inf")

    @property
    def missed(self) -> bool:
        """A limit is required and not reached."""
        below = self.least is not None and self.ratio < self.least
        above = self.most is not None and self.ratio > self.most
        return below or above or (self.cap is not None and self.measured > self.cap)

    @property
    def limit(self) -> str:
        """The ratio that is required, "" when none is."""
        limits = (
            f"at least {self.least:.0%}" if self.least is not None else "",
            f"at most {self.most:.0%}" if self.most is not None else "",
            f"at most {figure(self.cap)} {self.unit}" if self.cap is not None else "",
        )
        return ", ".join(filter(None, limits))

    def __str__(self) -> str:
        wanted = ", ".join(filter(None, (f"{self.better} is better", self.limit)))
        figures = f"{figure(self.peer):>8} {figure(self.measured):>8} {self.unit:7} {self.ratio:7.1%}"
        return f"{self.name:{WIDTH}} {self.peer_name:18} {figures}  {'; '.join(filter(None, (wanted, self.note)))}"


HEAD = f"{'':{WIDTH}} {'compared with':18} {'peer':>8} {'measured':>8} {'':7} {'ratio':>7}"


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def by_turns(peer: Callable[[], float], measured: Callable[[], float], turns: int) -> tuple[float, float]:
    """Medians of both, measured in turn so that a machine that gets slower or faster favours neither."""
    pairs = [(peer(), measured()) for _ in range(turns)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


class Processor:
    """How fast it is from row to row. A virtual machine's shares its core and caches with others: in bad hours the same
    work takes half as long again, and of two figures of the table only those of one row can be compared."""

    def __init__(self, work: Callable[[], float] | None = None) -> None:
        """``work``: seconds of processor time a piece of work takes that is always the same."""
        self._work = work or _work
        self._best = float("inf")
        self._medians: list[float] = []

    def sample(self) -> None:
        """Between two rows."""
        times = [self._work() for _ in range(_PIECES)]
        self._best = min(self._best, *times)
        self._medians.append(statistics.median(times))

    def __str__(self) -> str:
        slowest, usual = (figure(pick(self._medians) / self._best) for pick in (max, statistics.median))
        return f"between the rows the same work took {usual} times as long as at its best, once {slowest} times"


_PIECES = 60


def _work() -> float:
    started = time.process_time()
    counts: dict[int, int] = {}
    for number in range(10_000):
        counts[number % 97] = number * 7 & 255
    return time.process_time() - started

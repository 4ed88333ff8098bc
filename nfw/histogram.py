"""How long things take, in buckets of seconds."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any


class Histogram:
    """Counts by upper bound; the last bucket has none."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(self.bounds) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """One that took so long."""
        self.buckets[bisect.bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def values(self) -> dict[str, Any]:
        """As it is told to whoever asks for the status."""
        return {"bounds": list(self.bounds), "buckets": list(self.buckets), "seconds": self.seconds}

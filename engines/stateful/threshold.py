"""``threshold``, ``detection_filter``, ``rate_filter``: how many matches of a rule are logged, and which of them act.

Source: Suricata user guide, "Thresholding keywords" and "Global thresholds". A window starts at the first match and a
match exactly ``seconds`` later still is inside.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable

from engines.stateful.signature import RateFilter, Threshold


class Effect(enum.Enum):
    """What is left of a match."""

    FULL = "full"  # logged and acted upon
    SILENT = "silent"  # acted upon, not logged
    NONE = "none"  # as if it had not matched; flowbits stay set


class ThresholdTable:
    """Counters of all rules of one process, by rule and tracked key.

    Bounded: at ``max_entries`` the least recently used counter is forgotten, its key starts afresh (``forgotten``).
    """

    def __init__(self, max_entries: int) -> None:
        self._max = max_entries
        self._windows: OrderedDict[Hashable, list[float]] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, rule: int, threshold: Threshold, key: Hashable, now: float) -> Effect:
        """Count one match of ``rule`` for ``key`` at ``now`` (seconds) and say what is left of it."""
        window = self._window((rule, threshold.kind, key), threshold.seconds, now)
        window[1] += 1
        seen, wanted = window[1], threshold.count
        match threshold.kind:
            case "limit":
                return Effect.FULL if seen <= wanted else Effect.SILENT
            case "both":
                if seen < wanted:
                    return Effect.NONE
                return Effect.FULL if seen == wanted else Effect.SILENT
            case "backoff":
                while wanted < seen:
                    wanted *= threshold.multiplier
                return Effect.FULL if seen == wanted else Effect.SILENT
            case "detection_filter":
                return Effect.FULL if seen > wanted else Effect.NONE
        if seen < wanted:  # threshold: every wanted-th
            return Effect.NONE
        window[1] = 0
        return Effect.FULL

    def exceeded(self, rule: int, rate: RateFilter, key: Hashable, now: float) -> bool:
        """Count one match and say whether ``rate.new_action`` takes the place of the rule's own action.

        Once the count is exceeded it does for ``timeout`` whole seconds; the first match after that is not counted.
        """
        window = self._window((rule, "rate_filter", key), 0, now)
        if len(window) > 2:
            if int(now) - window[2] <= rate.timeout:
                return True
            del window[2]
            return False
        if now - window[0] > rate.seconds:
            window[:] = now, 0
        window[1] += 1
        if window[1] <= rate.count:
            return False
        window.append(int(now))
        return True

    def _window(self, key: Hashable, seconds: int, now: float) -> list[float]:
        """Start and count; of an exceeded rate_filter also since when."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._max:
                self._windows.popitem(last=False)
                self.forgotten += 1
            window = self._windows[key] = [now, 0]
            return window
        self._windows.move_to_end(key)
        if seconds and now - window[0] > seconds:
            window[:] = now, 0
        return window


def track_key(track: str, flow_id: int, client: bytes, server: bytes, to_server: bool) -> Hashable:
    """What a threshold counts by for a packet of a flow: ``by_src`` and ``by_dst`` are the packet's, not the flow's;
    ``by_both`` is the same for both directions."""
    source, destination = (client, server) if to_server else (server, client)
    match track:
        case "by_src":
            return source
        case "by_dst":
            return destination
        case "by_both":
            return (source, destination) if source <= destination else (destination, source)
        case "by_flow":
            return flow_id
    return None  # by_rule

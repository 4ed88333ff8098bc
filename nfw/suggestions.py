"""Names whose clients did not accept the certificate nfw shows: pinned, or not told of the CA.

They are shown to a person, who may exempt them from decryption; nothing is exempted by itself.
"""

from __future__ import annotations

import heapq

NAMES = 1000
"""Counted at the same time; names beyond are only counted together. They are verified servers' names, so a client
cannot make them up, but a wildcard certificate has many."""

_DISTRUST = frozenset(("unknown ca", "bad certificate", "certificate unknown"))  # RFC 8446 6.2; OpenSSL's names


class Suggestions:
    """Counts refusals by name."""

    __slots__ = ("_counts", "uncounted")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.uncounted = 0

    def refused(self, name: str, alert: str) -> None:
        """A client ended the handshake with this alert after it had seen the leaf."""
        if alert not in _DISTRUST:
            return
        if name in self._counts or len(self._counts) < NAMES:
            self._counts[name] = self._counts.get(name, 0) + 1
        else:
            self.uncounted += 1

    def most(self, bound: int) -> dict[str, int]:
        """The names refused most often, and how often."""
        return dict(heapq.nlargest(bound, self._counts.items(), key=lambda item: item[1]))

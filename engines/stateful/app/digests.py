"""Digests of whole files, made only when rules ask for them (Suricata: filemd5, filesha1, filesha256)."""

from __future__ import annotations

import hashlib

from engines.stateful.app.limits import AppLimits

# The buffers of rules, and the algorithms.
ALGORITHMS = {"file.md5": "md5", "file.sha1": "sha1", "file.sha256": "sha256"}


class Digests:
    """Of one file. ``spent``: it is longer than ``AppLimits.hashed`` and has none."""

    __slots__ = ("_left", "_running", "spent")

    def __init__(self, limits: AppLimits) -> None:
        self._left = limits.hashed
        self._running = {name: hashlib.new(ALGORITHMS[name], usedforsecurity=False) for name in sorted(limits.hashes)}
        self.spent = False

    @property
    def room(self) -> int:
        """How many bytes more would be taken, and one to tell that there are too many."""
        return 0 if self.spent else self._left + 1

    def update(self, data: bytes) -> None:
        """The next bytes."""
        if self.spent:
            return
        self._left -= len(data)
        if self._left < 0:
            self.spent, self._running = True, {}
        for running in self._running.values():
            running.update(data)

    def values(self) -> dict[str, bytes]:
        """By buffer; empty when there are none."""
        return {name: running.digest() for name, running in self._running.items()}


def digests_for(limits: AppLimits) -> Digests | None:
    """None when no rule asks."""
    return Digests(limits) if limits.hashes else None

"""Files carried by a protocol: their names and the part of their bytes that rules may see.

A transaction may carry many (attachments of a mail, parts of a form). Only the newest grows, so what was searched
before need not be searched again; the oldest are let go when there are too many, once they had their turn.
"""

from __future__ import annotations

from engines.stateful.app.limits import AppLimits


class Instances(list[bytes]):
    """The instances of a buffer in the order they began: all but the last are final, and none goes but the first.

    ``gone``: what those that were let go measured, one more than its bytes for each.
    """

    __slots__ = ("gone",)

    def __init__(self, items: list[bytes], gone: int) -> None:
        super().__init__(items)
        self.gone = gone


class File:
    """``name`` as the sender wrote it. ``size`` counts every byte, ``data`` holds the first ones."""

    __slots__ = ("_limit", "_view", "closed", "data", "name", "seen", "size")

    def __init__(self, name: bytes, limit: int) -> None:
        self.name = name
        self.data = bytearray()
        self.size = 0
        self.closed = False
        self.seen = False  # rules had the chance to look at all of it
        self._limit = limit
        self._view = b""

    @property
    def full(self) -> bool:
        """Nothing more will be kept."""
        return len(self.data) >= self._limit

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self.size += len(data)
        room = self._limit - len(self.data)
        if room > 0:
            self.data += data[:room]

    def view(self) -> bytes:
        """What is kept so far."""
        if len(self._view) != len(self.data):
            self._view = bytes(self.data)
        return self._view


class Files:
    """The files of one side of a transaction."""

    __slots__ = ("_gone", "_limits", "files", "names")

    def __init__(self, limits: AppLimits) -> None:
        self._limits = limits
        self._gone = 0
        self.files: list[File] = []
        self.names = Instances([], 0)

    def open(self, name: bytes) -> File:
        """A new file begins; whatever was open ends."""
        self.close()
        self._let_go()
        made = File(name, self._limits.file)
        self.files.append(made)
        if name:
            self.names.append(name)
            if len(self.names) > self._limits.file_names:
                self.names.gone += len(self.names[0]) + 1
                del self.names[0]
        return made

    def close(self) -> None:
        """The newest file is complete."""
        if self.files:
            self.files[-1].closed = True

    def judged(self) -> None:
        """Rules have looked at everything that is here."""
        for file in self.files:
            file.seen = file.closed

    def data(self) -> Instances:
        """The buffer ``file.data``."""
        return Instances([file.view() for file in self.files], self._gone)

    def _let_go(self) -> None:
        kept = sum(len(file.data) for file in self.files)
        while self.files and self.files[0].seen and kept > self._limits.file_total:
            oldest = self.files.pop(0)
            kept -= len(oldest.data)
            self._gone += len(oldest.data) + 1

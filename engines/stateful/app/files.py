"""Files carried by a protocol: their names and the part of their bytes that rules may see.

A transaction may carry many (attachments of a mail, parts of a form). Only the newest grows, so what was searched
before need not be searched again; the oldest are let go when there are too many, once they had their turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.digests import digests_for
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

    __slots__ = ("_limit", "_view", "closed", "data", "digests", "name", "seen", "size")

    def __init__(self, name: bytes, limits: AppLimits) -> None:
        self.name = name
        self.data = bytearray()
        self.size = 0
        self.closed = False
        self.seen = False  # rules had the chance to look at all of it
        self.digests = digests_for(limits)
        self._limit = limits.file
        self._view = b""

    @property
    def filled(self) -> bool:
        """Nothing more will be kept."""
        return len(self.data) >= self._limit

    @property
    def full(self) -> bool:
        """Nothing more is wanted."""
        return self.filled and (self.digests is None or self.digests.spent)

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self.size += len(data)
        room = self._limit - len(self.data)
        if room > 0:
            self.data += data[:room]
        if self.digests is not None:
            self.digests.update(data)

    def view(self) -> bytes:
        """What is kept so far."""
        if len(self._view) != len(self.data):
            self._view = bytes(self.data)
        return self._view


class Files:
    """The files of one side of a transaction."""

    __slots__ = ("_digests", "_gone", "_kept", "_limits", "files", "names")

    def __init__(self, limits: AppLimits) -> None:
        self._limits = limits
        self._gone = 0
        self._kept = 0  # bytes of all files but the newest
        self.files: list[File] = []
        self.names = Instances([], 0)
        self._digests = {name: Instances([], 0) for name in limits.hashes}

    def open(self, name: bytes) -> File:
        """A new file begins; whatever was open ends."""
        self.close()
        if self.files:
            self._kept += len(self.files[-1].data)
        self._let_go()
        made = File(name, self._limits)
        self.files.append(made)
        if name:
            self._add(self.names, name)
        return made

    def close(self, *, complete: bool = True) -> None:
        """The newest file ends; ``complete``: all of it was here."""
        if not self.files or self.files[-1].closed:
            return
        file = self.files[-1]
        file.closed = True
        if file.digests is not None and complete:
            for name, digest in file.digests.values().items():
                self._add(self._digests[name], digest)

    def _add(self, instances: Instances, value: bytes) -> None:
        instances.append(value)
        if len(instances) > self._limits.file_names:
            instances.gone += len(instances[0]) + 1
            del instances[0]

    def judged(self) -> None:
        """Rules have looked at everything that is here."""
        for file in reversed(self.files):
            if file.seen:
                break
            file.seen = file.closed

    def data(self) -> Instances:
        """The buffer ``file.data``."""
        return Instances([file.view() for file in self.files], self._gone)

    def buffer(self, name: str) -> Sequence[bytes]:
        """Any of the buffers of files."""
        if name == "file.data":
            return self.data()
        return self.names if name == "file.name" else self._digests.get(name, ())

    def _let_go(self) -> None:
        """Forget the oldest if they are too many, or too large together."""
        limits = self._limits
        while (
            self.files
            and self.files[0].seen
            and (self._kept > limits.file_total or len(self.files) >= limits.file_count)
        ):
            oldest = self.files.pop(0)
            self._kept -= len(oldest.data)
            self._gone += len(oldest.data) + 1

"""SSH up to its version lines, the only part that is plain text worth a rule; after both, ``finished``.

Source: RFC 4253, section 4.2; Suricata user guide, "SSH Keywords".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

# SSH-protoversion-softwareversion SP comments. Suricata's ssh.software is everything up to the space.
_BANNER = re.compile(rb"SSH-([^-\s]*)-([^ \r]*)")
_NAMES = ("client", "server")


class SshTransaction(BaseTransaction):
    """One connection. ``proto`` and ``software`` by direction, b"" until that side's banner was read."""

    __slots__ = ("proto", "software")

    def __init__(self, tx_id: int) -> None:
        super().__init__(tx_id)
        self.proto = [b"", b""]
        self.software = [b"", b""]

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        values = self.proto if name == "ssh.proto" else self.software if name == "ssh.software" else None
        if values is None:
            return ()
        wanted = values if direction is None else (values[direction],)
        return [value for value in wanted if value]

    def log_fields(self) -> dict[str, object]:
        """EVE ``ssh`` object."""
        return {
            _NAMES[side]: {
                "proto_version": self.proto[side].decode("ascii", "backslashreplace"),
                "software_version": self.software[side].decode("ascii", "backslashreplace"),
            }
            for side in (0, 1)
            if self.proto[side]
        }


class SshParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "ssh"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._tx = SshTransaction(self.take_id())
        self.transactions.append(self._tx)
        self._buffers = (bytearray(), bytearray())
        self._done = [False, False]

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self._done[direction]:
            return
        buffer = self._buffers[direction]
        buffer += data
        while not self._done[direction]:
            end = buffer.find(b"\n")
            if end < 0:
                if len(buffer) > self._limits.ssh_banner:
                    self._tx.add_event("long_banner")
                    self.give_up("long_banner")
                return
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            if line.startswith(b"SSH-"):  # a server may send other lines first
                self._banner(direction, line)

    def close(self, direction: Direction) -> None:
        self._tx.finish(direction)
        self._done[direction] = True
        self.finished = all(self._done)

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self._done[direction] else len(self._buffers[direction])

    def _banner(self, direction: Direction, line: bytes) -> None:
        found = _BANNER.match(line)
        if found is None:
            self._tx.add_event("invalid_banner")
        else:
            self._tx.proto[direction], self._tx.software[direction] = found[1], found[2]
        self._buffers[direction].clear()
        self._tx.finish(direction)
        self._done[direction] = True
        self.finished = all(self._done)

"""SSH while it is plain text: the version lines and each side's KEXINIT, for HASSH; after both, ``finished``. Where
rules ask for frames, the packets up to NEWKEYS, which are plain text too.

Source: RFC 4253, sections 4.2 (versions), 6 (packets) and 7.1 (KEXINIT); HASSH (salesforce/hassh): MD5 over key
exchange, encryption, MAC and compression algorithms of the sender's own direction; Suricata user guide, "SSH Keywords".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

# SSH-protoversion-softwareversion SP comments. Suricata's ssh.software is everything up to the space.
_BANNER = re.compile(rb"SSH-([^-\s]*)-([^ \r]*)")
_NAMES = ("client", "server")
_KEXINIT, _NEWKEYS = 20, 21
_COOKIE = 16
# The lists HASSH is made of, by sender: of ten, number 2, 4 and 6 are the client's way, 3, 5 and 7 the server's.
_HASSH_LISTS = ((0, 2, 4, 6), (0, 3, 5, 7))
_HASSH_BUFFERS = {
    "ssh.hassh": (0, True),
    "ssh.hassh.string": (0, False),
    "ssh.hassh.server": (1, True),
    "ssh.hassh.server.string": (1, False),
}


class SshTransaction(BaseTransaction):
    """One connection. ``proto``, ``software`` and ``hassh`` (the string under the hash) by direction, b"" until that
    side's banner or KEXINIT was read."""

    __slots__ = ("hassh", "proto", "software")

    def __init__(self, tx_id: int) -> None:
        super().__init__(tx_id)
        self.proto = [b"", b""]
        self.software = [b"", b""]
        self.hassh = [b"", b""]

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        entry = _HASSH_BUFFERS.get(name)
        if entry is not None:
            side, hashed = entry
            text = self.hassh[side]
            if not text or direction not in {None, Direction(side)}:
                return ()
            return (_md5(text) if hashed else text,)
        values = self.proto if name == "ssh.proto" else self.software if name == "ssh.software" else None
        if values is None:
            return ()
        wanted = values if direction is None else (values[direction],)
        return [value for value in wanted if value]

    def log_fields(self) -> dict[str, object]:
        """EVE ``ssh`` object."""
        fields: dict[str, object] = {}
        for side in (0, 1):
            if not self.proto[side]:
                continue
            values: dict[str, object] = {
                "proto_version": self.proto[side].decode("ascii", "backslashreplace"),
                "software_version": self.software[side].decode("ascii", "backslashreplace"),
            }
            if self.hassh[side]:
                values["hassh"] = {
                    "hash": _md5(self.hassh[side]).decode(),
                    "string": self.hassh[side].decode("ascii", "backslashreplace"),
                }
            fields[_NAMES[side]] = values
        return fields


def _md5(text: bytes) -> bytes:
    return hashlib.md5(text, usedforsecurity=False).hexdigest().encode()


class SshParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "ssh"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._tx = SshTransaction(self.take_id())
        self.transactions.append(self._tx)
        self._buffers = (bytearray(), bytearray())
        self._greeted = [False, False]
        self._done = [False, False]

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self._done[direction]:
            return
        self._buffers[direction].extend(data)
        if not self._greeted[direction]:
            self._greeting(direction)
        if self._greeted[direction] and not self._done[direction]:
            self._packets(direction)

    def close(self, direction: Direction) -> None:
        self._end(direction)

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self._done[direction] else len(self._buffers[direction])

    def _greeting(self, direction: Direction) -> None:
        buffer = self._buffers[direction]
        while not self._greeted[direction]:
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

    def _banner(self, direction: Direction, line: bytes) -> None:
        self._greeted[direction] = True
        found = _BANNER.match(line)
        if found is None:
            self._tx.add_event("invalid_banner")
            self._end(direction)
            return
        self._tx.proto[direction], self._tx.software[direction] = found[1], found[2]
        self._tx.touch(direction)
        if found[1] not in {b"2.0", b"1.99"}:  # packets of version 1 look different and have no KEXINIT
            self._end(direction)

    def _packets(self, direction: Direction) -> None:
        """Binary packets up to KEXINIT, the first one a side sends unless it has something to ignore."""
        buffer = self._buffers[direction]
        while len(buffer) >= 6:
            size = int.from_bytes(buffer[:4], "big")
            kind = buffer[5]
            if size < 2 or size > self._limits.ssh_packet:
                self._tx.add_event("long_kex_record" if size >= 2 and kind == _KEXINIT else "invalid_record")
                self._end(direction)
                return
            if len(buffer) < 4 + size:
                return
            if kind == _KEXINIT:
                self._kexinit(direction, bytes(buffer[6 : 4 + size]))
            if self._limits.frames:
                self._frame(direction, bytes(buffer[: 4 + size]))
            if kind == _NEWKEYS or (kind == _KEXINIT and not self._limits.frames):
                self._end(direction)
                return
            if kind == _KEXINIT:
                self._tx.finish(direction)
            del buffer[: 4 + size]

    def _frame(self, direction: Direction, packet: bytes) -> None:
        """What rules with ``frame`` see: the header is the lengths and the message's number."""
        pieces = {
            "frame.ssh.record.pdu": packet,
            "frame.ssh.record.hdr": packet[:6],
            "frame.ssh.record.data": packet[6:],
        }
        self.transactions.append(FrameTransaction(self.take_id(), direction, pieces))

    def _kexinit(self, direction: Direction, body: bytes) -> None:
        lists: list[bytes] = []
        at = _COOKIE
        while len(lists) < 8:
            end = at + 4 + int.from_bytes(body[at : at + 4], "big")
            if at + 4 > len(body) or end > len(body):
                self._tx.add_event("invalid_record")
                return
            lists.append(body[at + 4 : end])
            at = end
        self._tx.hassh[direction] = b";".join(lists[number] for number in _HASSH_LISTS[direction])

    def _end(self, direction: Direction) -> None:
        self._buffers[direction].clear()
        self._tx.finish(direction)
        self._done[direction] = True
        self.finished = all(self._done)

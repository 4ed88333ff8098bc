"""For finding faults: session keys and plaintext of chosen TLS sessions, in files for the operator alone.

Off unless the policy has ``tls.debug``, and never for all sessions. The key log has NSS's format (SSLKEYLOGFILE), both
legs. The capture is a pcapng of the plaintext as TCP connections between the real addresses, whole whatever the rules
then did with it. Both files are this user's alone (0600), are appended to by all TLS workers, and end at a size.

Sources: draft-ietf-tls-keylogfile (key log), draft-ietf-opsawg-pcapng sections 4.1 to 4.3 (blocks).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.packet import tcp_packet
from engines.stateful.inspector import FlowFacts
from engines.tls.bypass import BypassList, Exemption
from engines.tls.scope import ScopeSet
from engines.verdict import Direction
from nfw import process

if TYPE_CHECKING:
    from nfw.policy.model import TlsDebug

SEGMENT = 16384  # bytes of plaintext in one packet of the capture
_SYN, _ACK, _FIN, _PSH = 0x02, 0x10, 0x01, 0x08
_RAW_IP = 101  # LINKTYPE_RAW
_HEADER = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28) + struct.pack(
    "<IIHHII", 1, 20, _RAW_IP, 0, 0, 20
)


class SecretFile:
    """A file that grows to ``limit`` bytes and no further. ``header``: what it begins with. Raises OSError."""

    def __init__(self, path: Path, limit: int, header: bytes = b"") -> None:
        self.path = path
        self.limit = limit
        self.full = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(22, "is no ordinary file", str(path))
        os.fchmod(self._fd, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if header and not self.size:
                os.write(self._fd, header)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def add(self, data: bytes) -> None:
        """All of ``data``, or nothing more from now on. One write, so that processes do not mix."""
        if self.full:
            return
        if self.size + len(data) > self.limit:
            self.full = True
            process.tell(f"tls.debug: {self.path} has reached {self.limit} bytes; nothing more is written to it")
            return
        try:
            os.write(self._fd, data)
        except OSError as error:
            self.full = True
            process.tell(f"tls.debug: {self.path}: {error.strerror}; nothing more is written to it")


class TlsRecorder:
    """What one TLS worker writes. Raises OSError when a file cannot be opened."""

    def __init__(self, debug: TlsDebug) -> None:
        self._names = BypassList([Exemption(debug.sni)]) if debug.sni else None
        self._scope = ScopeSet([debug.scope])
        self._keys = SecretFile(debug.key_log, debug.max_size) if debug.key_log is not None else None
        self._capture = SecretFile(debug.capture, debug.max_size, _HEADER) if debug.capture is not None else None
        self._sequence: dict[int, list[int]] = {}  # of open sessions: the next number of each side
        self.sessions = 0

    def wants(self, facts: FlowFacts, name: str) -> bool:
        """Whether a session is one of those to be recorded."""
        client, server = (facts.client, facts.client_port), (facts.server, facts.server_port)
        if self._names is not None and not self._names.covers(name, client, server):
            return False
        wanted = self._scope.covers_tuple(client[0], server[0], client[1], server[1])
        self.sessions += wanted
        return wanted

    def keys(self, line: bytes) -> None:
        """One line of the key log, as OpenSSL makes it."""
        if self._keys is not None:
            self._keys.add(line + b"\n")

    def begin(self, facts: FlowFacts, unix_time: float) -> None:
        """Both handshakes are done."""
        if self._capture is None:
            return
        self._sequence[facts.id] = [1, 1]
        self._packet(facts, Direction.TO_SERVER, 0, 0, _SYN, b"", unix_time)
        self._packet(facts, Direction.TO_CLIENT, 0, 1, _SYN | _ACK, b"", unix_time)
        self._packet(facts, Direction.TO_SERVER, 1, 1, _ACK, b"", unix_time)

    def plaintext(self, facts: FlowFacts, direction: Direction, data: bytes, unix_time: float) -> None:
        numbers = self._sequence.get(facts.id)
        if numbers is None:
            return
        for at in range(0, len(data), SEGMENT):
            piece = data[at : at + SEGMENT]
            self._packet(facts, direction, numbers[direction], numbers[direction.reply], _PSH | _ACK, piece, unix_time)
            numbers[direction] = (numbers[direction] + len(piece)) & 0xFFFFFFFF

    def end(self, facts: FlowFacts, unix_time: float) -> None:
        numbers = self._sequence.pop(facts.id, None)
        if numbers is not None:
            for side in Direction:
                self._packet(facts, side, numbers[side], numbers[side.reply], _FIN | _ACK, b"", unix_time)

    def _packet(
        self, facts: FlowFacts, direction: Direction, seq: int, ack: int, flags: int, data: bytes, unix_time: float
    ) -> None:
        assert self._capture is not None
        ends = ((facts.client, facts.client_port), (facts.server, facts.server_port))
        (src, sport), (dst, dport) = ends if direction is Direction.TO_SERVER else ends[::-1]
        packet = tcp_packet(src, dst, sport, dport, seq, ack, flags, data)
        padded = packet + bytes(-len(packet) % 4)
        length = 32 + len(padded)
        micros = int(unix_time * 1e6)
        head = struct.pack("<IIIIIII", 6, length, 0, micros >> 32, micros & 0xFFFFFFFF, len(packet), len(packet))
        self._capture.add(head + padded + struct.pack("<I", length))

    def stats(self) -> dict[str, Any]:
        """For ``nfw status``: that this is going on, and how far it has come."""
        found: dict[str, Any] = {"sessions": self.sessions}
        for name, file in (("key_log", self._keys), ("capture", self._capture)):
            if file is not None:
                state = " (full)" if file.full else ""
                found[name] = f"{file.path}, {file.size} of {file.limit} bytes{state}"
        return found

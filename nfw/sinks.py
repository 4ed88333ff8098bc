"""Where the log writer puts records: files, journald, syslog, Unix sockets, several at once.

No sink waits, so none can hold up another: sockets are non-blocking, and what a reader does not take is kept up to
:data:`BUFFER_BYTES`, then dropped and counted; without a reader, streams keep as much, datagrams nothing. Linux queues
no more than ``net.unix.max_dgram_qlen`` datagrams (10) at a Unix socket, far fewer than one message of a worker has
lines, so a reader that keeps up well is slow all the time. The first loss is said on standard
error, and so is the end of it, with the number of lines; sinks in EVE format get a ``log_dropped`` record too. Only a
file's disk can make the writer itself wait; then the channel from the workers fills, which they count (``nfw/log.py``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nfw import awslog, events
from nfw.policy.read_log import FACILITIES, parse_remote

BUFFER_BYTES = 4 << 20  # of one sink, waiting for its reader
SEND_BYTES = 256 * 1024
RETRY_SECONDS = 1.0  # between two attempts to reach a reader that is not there
CALM_SECONDS = 2.0  # without a loss, and a sink is said to work again
JOURNAL = "/run/systemd/journal/socket"  # systemd.io, "Native Journal Protocol"
DEV_LOG = "/dev/log"
_COUNTER = struct.Struct("=Q")
COUNTERS_BYTES = 4096
_PRIORITIES = {"alert": 4, "drop": 5}  # syslog severities: warning, notice; the rest informational
_INFO = 6
_KIND = b'"event_type":"'


class Output(Protocol):
    """Takes lines; what it cannot take is lost."""

    def write(self, lines: Sequence[tuple[str, bytes]]) -> int:
        """(event_type, line with its end) -> how many were lost."""

    def tend(self) -> int:
        """Go on with what waits; how many lines that was kept are lost after all."""

    def blocked(self) -> int:
        """The socket that is to be written to as soon as it can be, -1 for none."""

    def reopen(self) -> None:
        """SIGHUP."""

    def close(self) -> int:
        """Give up; never waits. How many lines that was kept are lost."""


class Sink:
    """One destination with its filter, its format and its count of losses."""

    def __init__(self, name: str, output: Output, kinds: Sequence[str], firewall: str | None, everything: bool) -> None:
        """``firewall``: AWS's format, with that name; None: EVE. ``everything``: no kind comes that is not wanted."""
        self.name = name
        self.lost = 0
        self._output = output
        self._kinds = frozenset((*kinds, "log_dropped"))
        self._firewall = firewall
        self._plain = everything and firewall is None
        self._told = 0
        self._failing = False
        self._lost_at = 0.0

    def put(self, lines: Sequence[tuple[str, bytes]]) -> None:
        """Write what is wanted of some records."""
        if not self._plain:
            lines = self._shaped([line for line in lines if line[0] in self._kinds])
        if lines:
            self._noted(self._output.write(lines), wrote=True)

    def tend(self) -> None:
        """At least a few times a second."""
        self._noted(self._output.tend(), wrote=False)

    def blocked(self) -> int:
        """The socket that is to be written to as soon as it can be, -1 for none; :meth:`tend` does it."""
        return self._output.blocked()

    def reopen(self) -> None:
        self._output.reopen()

    def close(self) -> None:
        self._noted(self._output.close(), wrote=False)

    def _shaped(self, lines: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        if self._firewall is None:
            return lines
        made = []
        for kind, line in lines:
            if kind in ("alert", "flow", "tls"):
                made += [(kind, events.line(one)) for one in awslog.records(json.loads(line), self._firewall)]
        return made

    def _noted(self, lost: int, *, wrote: bool) -> None:
        if lost:
            if not self._failing:
                say(f"log sink {self.name} does not take what it should; lines are dropped until it does")
            self._failing = True
            self._lost_at = time.monotonic()
            self.lost += lost
        elif wrote and self._failing and time.monotonic() - self._lost_at >= CALM_SECONDS:
            self._failing = False
            count, self._told = self.lost - self._told, self.lost
            say(f"log sink {self.name} works again; {count} lines were lost")
            if self._firewall is None:
                self._output.write([("log_dropped", dropped(self.name, count))])


def dropped(sink: str, lines: int) -> bytes:
    """The record that says so."""
    return events.line(
        {
            "timestamp": events.timestamp(time.time()),
            "event_type": "log_dropped",
            "nfw": {"sink": sink, "lines": lines},
        }
    )


def split(data: bytes) -> list[tuple[str, bytes]]:
    """(event_type, line) of each line. The type stands before anything that came from the network."""
    found = []
    for line in data.splitlines(keepends=True):
        start = line.find(_KIND) + len(_KIND)
        found.append((line[start : line.find(b'"', start)].decode("ascii", "replace"), line))
    return found


class FileOutput:
    """A size-bounded file; see :class:`nfw.log.LogFile`."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        """Raises OSError when it cannot be opened."""
        from nfw.log import LogFile

        self._file = LogFile(path, max_bytes, keep)

    def write(self, lines: Sequence[tuple[str, bytes]]) -> int:
        return self._file.write(b"".join(line for _, line in lines))

    def tend(self) -> int:
        return 0

    def blocked(self) -> int:
        return -1

    def reopen(self) -> None:
        try:
            self._file.reopen()
        except OSError as error:
            say(f"cannot reopen the event log {self._file.path}: {error.strerror}")

    def close(self) -> int:
        self._file.close()
        return 0


class DatagramOutput:
    """One datagram for each line, to a Unix or UDP socket. ``frame`` makes the datagram."""

    def __init__(self, family: int, address: Any, frame: Any) -> None:
        self._family = family
        self._address = address
        self._frame = frame
        self._sock: socket.socket | None = None
        self._due = 0.0
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def write(self, lines: Sequence[tuple[str, bytes]]) -> int:
        if not self._connected():
            return len(lines)
        lost = 0
        for kind, line in lines:
            data = self._frame(kind, line)
            if self._size + len(data) > BUFFER_BYTES:
                lost += self._flush()
            if self._size + len(data) > BUFFER_BYTES:
                lost += 1
            else:
                self._waiting.append(data)
                self._size += len(data)
        return lost + self._flush()

    def tend(self) -> int:
        return self._flush()

    def blocked(self) -> int:
        return self._sock.fileno() if self._sock is not None and self._waiting else -1

    def reopen(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._due = 0.0

    def close(self) -> int:
        return self._flush() + self._hang_up()

    def _hang_up(self) -> int:
        """Nobody is there; whoever comes gets what is said from then on."""
        self.reopen()
        self._due = time.monotonic() + RETRY_SECONDS
        lost, self._size = len(self._waiting), 0
        self._waiting.clear()
        return lost

    def _flush(self) -> int:
        lost = 0
        while self._waiting and self._connected():
            assert self._sock is not None
            data = self._waiting[0]
            try:
                self._sock.send(data)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    return lost + self._hang_up()
                lost += 1
            self._waiting.popleft()
            self._size -= len(data)
        return lost

    def _connected(self) -> bool:
        if self._sock is not None:
            return True
        if time.monotonic() < self._due:
            return False
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            self._due = time.monotonic() + RETRY_SECONDS
            return False
        self._sock = sock
        return True


class StreamOutput:
    """Lines over a Unix or TCP connection, kept for a while when the reader is slow or away."""

    def __init__(self, family: int, address: Any, frame: Any) -> None:
        self._family = family
        self._address = address
        self._frame = frame
        self._sock: socket.socket | None = None
        self._due = 0.0
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._sent = 0  # bytes of the first one

    def write(self, lines: Sequence[tuple[str, bytes]]) -> int:
        lost = 0
        for kind, line in lines:
            data = self._frame(kind, line)
            if self._size + len(data) > BUFFER_BYTES:
                self._flush()
            if self._size + len(data) > BUFFER_BYTES:
                lost += 1
            else:
                self._waiting.append(data)
                self._size += len(data)
        self._flush()
        return lost

    def tend(self) -> int:
        self._flush()
        return 0

    def blocked(self) -> int:
        return self._sock.fileno() if self._sock is not None and self._waiting else -1

    def reopen(self) -> None:
        self._hang_up()
        self._due = 0.0

    def close(self) -> int:
        self._flush()
        self._hang_up()
        return len(self._waiting)

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._sent = 0  # who comes next gets the whole line
        self._due = time.monotonic() + RETRY_SECONDS

    def _flush(self) -> None:
        while self._waiting and self._connected():
            assert self._sock is not None
            batch, size = [], 0
            for data in self._waiting:
                batch.append(data)
                size += len(data)
                if size >= SEND_BYTES:
                    break
            try:
                sent = self._sock.send(memoryview(b"".join(batch))[self._sent :])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # still connecting
                    self._hang_up()
                return
            sent += self._sent
            while self._waiting and sent >= len(self._waiting[0]):
                first = self._waiting.popleft()
                sent -= len(first)
                self._size -= len(first)
            self._sent = sent

    def _connected(self) -> bool:
        if self._sock is not None:
            return True
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + RETRY_SECONDS
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return False
        self._sock = sock
        return True


# -- frames ------------------------------------------------------------------------------------------------------------


def plain(_: str, line: bytes) -> bytes:
    """The line itself."""
    return line


def journal(kind: str, line: bytes) -> bytes:
    """A record of journald's native protocol. Lines are JSON and so contain no line break."""
    head = f"SYSLOG_IDENTIFIER=nfw\nPRIORITY={_PRIORITIES.get(kind, _INFO)}\nNFW_EVENT_TYPE={kind}\nMESSAGE="
    return head.encode() + line


class Syslog:
    """RFC 3164 as the local daemon takes it, or RFC 5424 for a remote one (RFC 6587 octet counts on TCP)."""

    def __init__(self, facility: str, remote: str = "") -> None:
        """``remote``: ``udp``, ``tcp`` or "" for the local daemon."""
        self._base = FACILITIES.index(facility) * 8
        self._remote = remote
        self._host = socket.gethostname() or "-"

    def __call__(self, kind: str, line: bytes) -> bytes:
        head = f"<{self._base + _PRIORITIES.get(kind, _INFO)}>"
        text = line.rstrip(b"\n")
        if not self._remote:
            return f"{head}nfw[{os.getpid()}]: ".encode() + text
        now = events.timestamp(time.time()).replace("+0000", "Z")
        message = f"{head}1 {now} {self._host} nfw {os.getpid()} {kind} - ".encode() + text
        return message if self._remote == "udp" else str(len(message)).encode() + b" " + message


# -- all of them -------------------------------------------------------------------------------------------------------


def name_of(settings: Mapping[str, Any]) -> str:
    """What a sink is called in messages and counters."""
    kind = str(settings["kind"])
    if kind == "syslog":
        return f"syslog {settings.get('address') or DEV_LOG}"
    return kind if kind == "journald" else str(settings.get("path"))


def make(settings: Mapping[str, Any], wanted: Sequence[str], firewall: str) -> Sink:
    """A sink from its settings (the fields of :class:`nfw.policy.model.Sink`). ``wanted``: every kind that can come.

    Raises OSError when a file cannot be opened.
    """
    kinds, aws = tuple(settings["events"]), settings.get("format") == "aws"
    everything = set(kinds) >= set(wanted)
    return Sink(name_of(settings), _output(settings), kinds, firewall if aws else None, everything)


def _output(settings: Mapping[str, Any]) -> Output:
    path = str(settings.get("path") or "")
    match settings["kind"]:
        case "file":
            return FileOutput(path, int(settings["max_size"]), int(settings["keep"]))
        case "journald":
            return DatagramOutput(socket.AF_UNIX, path or JOURNAL, journal)
        case "syslog":
            address, facility = str(settings.get("address") or DEV_LOG), str(settings["facility"])
            if address.startswith("/"):
                return DatagramOutput(socket.AF_UNIX, address, Syslog(facility))
            scheme, host, port = parse_remote(address)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            made = DatagramOutput if scheme == "udp" else StreamOutput
            return made(family, (host, port), Syslog(facility, scheme))
        case "unix_dgram":
            return DatagramOutput(socket.AF_UNIX, path, plain)
    return StreamOutput(socket.AF_UNIX, path, plain)


class Counters:
    """Lines lost by each sink, shared between the writer, who counts, and the supervisor, who tells."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, COUNTERS_BYTES)

    def put(self, lost: Sequence[int]) -> None:
        for number, value in enumerate(lost[: COUNTERS_BYTES // _COUNTER.size]):
            _COUNTER.pack_into(self._memory, number * _COUNTER.size, value)

    def get(self, count: int) -> list[int]:
        return [int(_COUNTER.unpack_from(self._memory, number * _COUNTER.size)[0]) for number in range(count)]


def say(text: str) -> None:
    """One line for the operator."""
    with contextlib.suppress(OSError):
        print(f"nfw: {text}", file=sys.stderr, flush=True)

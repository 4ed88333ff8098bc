"""The event log: many processes send, one writes. A slow disk never makes a packet wait. Where to: ``nfw/sinks.py``.

Senders hold one end of a sequenced-packet socket and never block: what does not fit is dropped and counted, and the
count is itself logged as soon as there is room (``event_type: log_dropped``). The writer bounds the file by size:
at ``max_bytes`` it is renamed to ``NAME.1``, ``NAME.1`` to ``NAME.2`` and so on, and the one after ``keep`` goes, so at
most ``keep + 1`` times that is on disk. SIGHUP reopens.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nfw import events, process
from nfw.sinks import Counters, Sink, split

MESSAGE_BYTES = 60_000  # one socket message; well under the socket buffer so that several fit
SOCKET_BYTES = 8 << 20  # about a second of heavy logging while the writer is busy rotating
FLUSH_SECONDS = 0.1
WAIT_SECONDS = 0.2
STOP_SECONDS = 1.0  # for what is queued when the writer is told to stop; under a flood there is no end to it


def channel() -> tuple[socket.socket, socket.socket]:
    """(sender, receiver). The sender may be shared by any number of processes."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for side in (sender, receiver):
        with contextlib.suppress(OSError):
            side.setsockopt(socket.SOL_SOCKET, 32, SOCKET_BYTES)  # SO_SNDBUFFORCE
    sender.setblocking(False)
    return sender, receiver


class LogSender:
    """What a worker writes its events to. Buffers for :data:`FLUSH_SECONDS`, then sends whole messages."""

    def __init__(
        self,
        sock: socket.socket | None,
        extra: Mapping[str, Any] | None = None,
        kinds: Collection[str] | None = None,
    ) -> None:
        """``extra`` goes into every event's ``nfw``. ``kinds``: values of ``event_type`` that are wanted, None: all."""
        self._sock = sock
        self._kinds = None if kinds is None else frozenset(kinds)
        self._extra = dict(extra or {})
        self._buffer: list[bytes] = []
        self._size = 0
        self.dropped = 0
        self._told = 0

    def write(self, event: dict[str, Any]) -> None:
        """Queue one event, if its kind is wanted; never blocks, never raises."""
        if self._kinds is not None and event.get("event_type") not in self._kinds:
            return
        if self._extra:
            event.setdefault("nfw", {}).update(self._extra)
        data = events.line(event)
        if len(data) > MESSAGE_BYTES:
            self.dropped += 1
            return
        if self._size + len(data) > MESSAGE_BYTES:
            self.flush()
        self._buffer.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Send what is queued; what does not fit is dropped and counted."""
        if not self._buffer:
            return
        count, message = len(self._buffer), b"".join(self._buffer)
        self._buffer, self._size = [], 0
        if self._sock is None:
            return
        try:
            self._sock.send(message)
        except OSError:
            self.dropped += count
            return
        if self.dropped > self._told:
            lost = {
                "timestamp": events.timestamp(time.time()),
                "event_type": "log_dropped",
                "nfw": {**self._extra, "lines": self.dropped - self._told},
            }
            with contextlib.suppress(OSError):
                self._sock.send(events.line(lost))
                self._told = self.dropped


class LogFile:
    """A size-bounded append-only file with ``keep`` older ones beside it, or standard output for ``-``.

    Raises OSError when the path cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, keep: int = 1) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.keep = keep
        self._torn = False  # the file may end in the middle of a line
        self._failing = False
        self._fd = -1
        self._size = 0
        self._regular = False
        self.errors = 0
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew, so that an external logrotate works. Raises OSError only on first use."""
        if self.path == "-":
            self._fd = sys.stdout.fileno()
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        info = os.fstat(fd)
        self._regular = stat.S_ISREG(info.st_mode)
        self._size = info.st_size

    def write(self, data: bytes) -> int:
        """Append whole lines; a full disk loses them and says so on standard error, once until it works again.

        Returns how many lines were lost, one that was torn included.
        """
        try:
            if self._regular and self._size and self._size + len(data) > self.max_bytes:
                self._rotate()
            if self._torn:
                data = b"\n" + data
            while data:
                written = os.write(self._fd, data)
                self._size += written
                data = data[written:]
                self._torn = bool(data)
            self._failing = False
            return 0
        except OSError as error:
            if not self._failing:
                print(f"nfw: cannot write the event log {self.path}: {error.strerror}", file=sys.stderr, flush=True)
            self._failing = True
            self.errors += 1
            return data.count(b"\n")

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._fd >= 0 and self.path != "-":
            os.close(self._fd)
        self._fd = -1

    def _rotate(self) -> None:
        for number in range(self.keep, 0, -1):
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, f"{self.path}.{number}")
        if self.keep == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self.reopen()
        self._torn = False


def check(path: str) -> str | None:
    """Why no event log can be kept at ``path``; None when it can. Makes the folder and the file where missing."""
    try:
        if path != "-":
            os.makedirs(os.path.dirname(path) or ".", mode=0o750, exist_ok=True)
            LogFile(path, 0).close()
    except OSError as error:
        return f"cannot write the event log {path}: {error.strerror}"
    return None


def run_writer(receiver: socket.socket, sinks: Sequence[Sink], counters: Counters | None = None) -> None:
    """The writer process: until every sender is gone or SIGTERM, after which what is queued is still written."""
    process.name("nfw log")
    stop_at = 0.0
    state = {"reopen": False, "stop": False}
    signal.signal(signal.SIGHUP, lambda *_: state.update(reopen=True))
    signal.signal(signal.SIGTERM, lambda *_: state.update(stop=True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    receiver.setblocking(False)
    while True:
        if state["reopen"]:
            state["reopen"] = False
            for sink in sinks:
                sink.reopen()
        if state["stop"]:
            stop_at = stop_at or time.monotonic() + STOP_SECONDS
            if time.monotonic() >= stop_at:
                break
        _wait(receiver, sinks)
        data = None
        with contextlib.suppress(BlockingIOError):
            data = receiver.recv(MESSAGE_BYTES * 2)
        if data == b"" or (data is None and state["stop"]):
            break
        lines = split(data) if data else []
        for sink in sinks:
            if lines:
                sink.put(lines)
            sink.tend()
        if counters is not None:
            counters.put([sink.lost for sink in sinks])
    for sink in sinks:
        sink.close()
    if counters is not None:
        counters.put([sink.lost for sink in sinks])


def _wait(receiver: socket.socket, sinks: Sequence[Sink]) -> None:
    """Until there is something to read, or a sink takes more of what waits for it, :data:`WAIT_SECONDS` at most."""
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    for sink in sinks:
        socket_of_sink = sink.blocked()
        if socket_of_sink >= 0:
            poll.register(socket_of_sink, select.POLLOUT)
    poll.poll(WAIT_SECONDS * 1000)

"""IP sets that rules name (``@NAME``) and that are kept in files: read again while their policy runs.

::

    file ──► leader: SetWatch ──fork──► reads and works out the address fields that name it
                 │                                    │
                 └── its own memory, from which workers are forked again ◄──┘
                              └──► pieces ──► SetTaker of each worker: all fields at once, between two packets

A field is an :class:`engines.stateful.header.AddressTest`; the leader and its workers have the same ones in the same
order. Flows that were judged by the former content keep their verdict. A file that cannot be read, or holds something
else, changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack

from engines.stateful.header import AddressTest, HeaderParser, Variables
from nfw import process
from nfw.policy.errors import Problems
from nfw.policy.ipsetfile import read_ip_set

PIECE_BYTES = 256 << 10  # of a message to a worker
SETTLE_SECONDS = 1.0  # a file younger than that may still be being written
READ_SECONDS = 120.0  # a hundred thousand blocks take 2 s of CPU time

Signature = tuple[int, int, int, int]  # of a file: when it was changed, size, inode, device
Field = tuple[int, bytes, bytes, bytes, bytes]  # which, then what AddressTest.become takes


@dataclass(slots=True)
class Watched:
    """A file. ``networks``: what it holds, one a line, when that is not what the policy was loaded with."""

    entries: int
    seen: Signature | None = None
    networks: str | None = None
    refreshed: float = 0.0  # Unix seconds, 0.0: never
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a file held when it was read again. ``networks`` None: what it held before, or, with a ``problem``, nothing
    that can be used."""

    seen: Signature | None
    entries: int
    networks: str | None = None
    problem: str = ""


class SetWatch:
    """The leader's. ``tell`` gets a line for the operator; times are of a monotonic clock."""

    def __init__(self, tests: Sequence[AddressTest], every: float, tell: Callable[[str], None], now: float) -> None:
        self.tests = tests
        self.every = every
        self.due = now + every
        self._tell = tell
        self._files: dict[str, Watched] = {}
        for test in tests:
            assert test.variables is not None
            for name, path in test.variables.files.items():
                self._files.setdefault(path, Watched(len(test.variables.addresses[name])))

    def changed(self, now: float, wall: float) -> list[str]:
        """The files that are to be read: those that are not what they were when they were read last. The first time
        all are; what a policy was loaded with may be older."""
        self.due = now + self.every
        found = []
        for path, watched in self._files.items():
            signature = signature_of(path)
            if signature == watched.seen and (signature is not None or watched.problem):
                continue
            if signature is not None and 0 <= wall - signature[0] / 1e9 < SETTLE_SECONDS:
                self.due = min(self.due, now + SETTLE_SECONDS)
            else:
                found.append(path)
        return found

    def read(self, paths: Sequence[str]) -> bytes:
        """In a process of its own: what :meth:`take` wants. Never raises."""
        found = {path: self._read(path) for path in paths}
        fields: list[Field] = []
        if any(one.networks is not None for one in found.values()):
            new = {path: one.networks for path, one in found.items() if one.networks is not None}
            known = {path: watched.networks for path, watched in self._files.items() if watched.networks is not None}
            content = {path: text.split("\n") for path, text in {**known, **new}.items()}
            fields = list(worked_out(self.tests, content, new))
        packed: bytes = msgpack.packb(
            [{path: [one.seen, one.entries, one.networks, one.problem] for path, one in found.items()}, fields],
            unicode_errors="surrogateescape",
        )
        return packed

    def _read(self, path: str) -> Found:
        watched = self._files[path]
        before = signature_of(path)
        problems = Problems(path)
        networks = read_ip_set(Path(path), None, problems)
        if problems.errors:
            more = f" (and {len(problems.errors) - 1} more)" if len(problems.errors) > 1 else ""
            return Found(before, watched.entries, problem=f"{problems.errors[0]}{more}")
        if signature_of(path) != before:
            return Found(None, watched.entries)  # it changes right now: once more at the next look
        text = "\n".join(networks)
        return Found(before, len(networks), text if text != self._held(path) else None)

    def _held(self, path: str) -> str:
        held = self._files[path].networks
        if held is not None:
            return held
        for test in self.tests:
            assert test.variables is not None
            for name, file in test.variables.files.items():
                if file == path:
                    return "\n".join(test.variables.addresses[name])
        raise AssertionError("every file is some test's")

    def take(self, data: bytes, wall: float) -> list[Field]:
        """What :meth:`read` found is the content from now on: the fields that are others. ``data`` may be cut off,
        when its process was."""
        try:
            files, rows = msgpack.unpackb(data, unicode_errors="surrogateescape")
        except ValueError:
            self._tell("warning: IP sets cannot be read again: the process that reads them ended")
            return []
        for path, (seen, entries, networks, problem) in files.items():
            self._take(path, Found(tuple(seen) if seen is not None else None, entries, networks, problem), wall)
        fields: list[Field] = [tuple(row) for row in rows]
        for at, *columns in fields:
            self.tests[at].become(*columns)
        return fields

    def _take(self, path: str, found: Found, wall: float) -> None:
        watched = self._files[path]
        watched.seen = found.seen
        if found.problem:
            if found.problem != watched.problem:
                count = counted(watched.entries)
                self._tell(f"warning: IP set {path} stays what it was, with {count}: {found.problem}")
            watched.problem = found.problem
            return
        if found.networks is not None:
            before, watched.entries = watched.entries, found.entries
            watched.networks, watched.refreshed = found.networks, wall
            self._tell(f"IP set {path} was read again: {counted(watched.entries)}, before {before}")
        elif watched.problem and found.seen is not None:
            self._tell(f"IP set {path} can be read again, and is what it was")
        if found.seen is not None:
            watched.problem = ""

    def gave_up(self) -> None:
        """Reading took too long."""
        self._tell(f"warning: IP sets cannot be read again: it took more than {READ_SECONDS:.0f} s")

    def status(self) -> list[dict[str, Any]]:
        """For ``nfw status``."""
        return [
            {"file": path, "entries": one.entries, "refreshed": one.refreshed, "problem": one.problem}
            for path, one in self._files.items()
        ]


class SetDesk:
    """Has files read and hands out what they hold, in the leader's loop. ``alone`` is called in the process that reads;
    ``hand_out`` tells the workers of these names (none: all) a piece, and answers what each said."""

    def __init__(
        self,
        tests: Sequence[AddressTest],
        every: float,
        alone: Callable[[], None],
        hand_out: Callable[[dict[str, Any], Sequence[str]], dict[str, Any]],
    ) -> None:
        self._watch = SetWatch(tests, every, process.tell, time.monotonic())
        self._alone = alone
        self._hand_out = hand_out
        self._owed: dict[str, dict[int, Field]] = {}  # by worker: what it has not said that it has
        self._source: socket.socket | None = None
        self._data = bytearray()
        self._pid = 0
        self._until = 0.0
        self.status = self._watch.status

    @property
    def due(self) -> float:
        """When :meth:`tend` wants to be called."""
        return self._until if self._source is not None else self._watch.due

    def tend(self, selector: selectors.BaseSelector, now: float) -> None:
        """Look at the files, when it is time; a reader's words come by the selector."""
        if now < self.due:
            return
        if self._source is not None:
            self._watch.gave_up()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._end(selector)
            return
        for title, owed in list(self._owed.items()):
            self._tell_workers(list(owed.values()), [title])
        paths = self._watch.changed(now, time.time())
        if not paths:
            return
        ours, theirs = socket.socketpair()

        def work() -> None:
            ours.close()
            self._alone()
            os.nice(10)
            theirs.sendall(self._watch.read(paths))

        self._pid = process.fork(work, title="nfw ip sets")
        theirs.close()
        ours.setblocking(False)
        self._source, self._data, self._until = ours, bytearray(), now + READ_SECONDS
        selector.register(ours, selectors.EVENT_READ, lambda: self._hear(selector))

    def _hear(self, selector: selectors.BaseSelector) -> None:
        assert self._source is not None
        try:
            piece = self._source.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if piece:
            self._data += piece
            return
        data = bytes(self._data)
        self._end(selector)
        fields = self._watch.take(data, time.time())
        if fields:
            self._tell_workers(fields, [])

    def _end(self, selector: selectors.BaseSelector) -> None:
        assert self._source is not None
        selector.unregister(self._source)
        self._source.close()
        self._source, self._data = None, bytearray()

    def _tell_workers(self, fields: Sequence[Field], titles: Sequence[str]) -> None:
        answers: dict[str, Any] = {}
        for piece in pieces(fields):
            answers = self._hand_out(piece, titles)
        for title, answer in answers.items():
            if answer is True:
                self._owed.pop(title, None)
            else:
                self._owed.setdefault(title, {}).update((field[0], field) for field in fields)


class SetTaker:
    """A worker's side."""

    def __init__(self, tests: Sequence[AddressTest]) -> None:
        self._tests = tests
        self._staged: dict[int, tuple[list[int], bytearray]] = {}

    def take(self, piece: Mapping[str, Any]) -> bool:
        """One of :func:`pieces`. True: the fields are what was sent from now on."""
        if "field" in piece:
            lengths, data = self._staged.setdefault(piece["field"], (piece["lengths"], bytearray()))
            if piece["first"]:
                lengths[:], data[:] = piece["lengths"], b""
            data += piece["data"]
            return False
        for at, (lengths, data) in self._staged.items():
            if len(data) == sum(lengths):
                ends = accumulate(lengths)
                columns = [bytes(data[end - size : end]) for end, size in zip(ends, lengths, strict=True)]
                self._tests[at].become(*columns)
        self._staged = {}
        return True


def pieces(fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    """Messages for a :class:`SetTaker`."""
    for at, *columns in fields:
        data = b"".join(columns)
        for start in range(0, len(data) or 1, PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            yield {"field": at, "lengths": [len(one) for one in columns], "first": start == 0, "data": piece}
    yield {"apply": True}


def worked_out(
    tests: Sequence[AddressTest], content: Mapping[str, Sequence[str]], changed: Mapping[str, object]
) -> Iterator[Field]:
    """The fields that name a set whose file is ``changed``, with ``content`` by file where it is not what the rules
    were loaded with."""
    parsers: dict[int, HeaderParser] = {}
    for at, test in enumerate(tests):
        variables = test.variables
        assert variables is not None
        parser = parsers.get(id(variables))
        if parser is None:
            parser = parsers[id(variables)] = HeaderParser(_with(variables, content))
        if not any(variables.files.get(name) in changed for name in parser.names(test.text)):
            continue
        four, six = parser.intervals(test.text)
        yield (
            at,
            b"".join(low.to_bytes(4, "big") for low, _ in four),
            b"".join(high.to_bytes(4, "big") for _, high in four),
            b"".join(low.to_bytes(16, "big") for low, _ in six),
            b"".join(high.to_bytes(16, "big") for _, high in six),
        )


def _with(variables: Variables, content: Mapping[str, Sequence[str]]) -> Variables:
    new = {name: content[path] for name, path in variables.files.items() if path in content}
    return replace(variables, addresses={**variables.addresses, **new})


def signature_of(path: str) -> Signature | None:
    """None: it is not there, or may not be looked at."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def counted(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"

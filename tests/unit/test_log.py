"""The event log: what is wanted is written whole, within its bounds, and nothing waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfw import log, process, sinks
from nfw.log import LogFile, LogSender

Pair = tuple[socket.socket, socket.socket]


def writing(path: Path) -> list[sinks.Sink]:
    """A file for everything."""
    settings = {"kind": "file", "path": str(path), "max_size": 1 << 30, "keep": 1, "events": ["flow"]}
    return [sinks.make(settings, ["flow"], "")]


@pytest.fixture
def pair() -> Iterator[Pair]:
    sender, receiver = log.channel()
    receiver.settimeout(10)
    with sender, receiver:
        yield sender, receiver


def waiting(receiver: socket.socket) -> list[dict[str, object]]:
    """Every record that has been sent so far."""
    receiver.setblocking(False)
    got = []
    with contextlib.suppress(BlockingIOError):
        while True:
            got += lines(receiver.recv(200_000))
    return got


def lines(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.splitlines()]


def test_only_wanted_kinds_are_sent(pair: Pair) -> None:
    sender, receiver = pair
    sending = LogSender(sender, {"generation": 3}, ["alert", "tls"])
    for kind in ("flow", "alert", "drop"):
        sending.write({"event_type": kind})
    sending.flush()
    assert lines(receiver.recv(100_000)) == [{"event_type": "alert", "nfw": {"generation": 3}}]


def test_a_full_channel_never_blocks_and_the_loss_is_told(pair: Pair) -> None:
    sender, receiver = pair
    sending = LogSender(sender, {}, ["alert"])
    count = 0
    while sending.dropped == 0:
        sending.write({"event_type": "alert", "n": count, "pad": "x" * 1000})
        count += 1
        assert count < 100_000
    sending.flush()
    got = waiting(receiver)
    sending.write({"event_type": "alert", "n": -1})
    sending.flush()
    got += waiting(receiver)
    alerts = [record for record in got if record["event_type"] == "alert"]
    (lost,) = [record for record in got if record["event_type"] == "log_dropped"]
    assert lost["nfw"] == {"lines": sending.dropped}
    assert len(alerts) + sending.dropped == count + 1


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_rotation_keeps_that_many_old_files_and_tears_no_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "eve.json"
    file = LogFile(str(path), 100, keep)
    for number in range(60):
        file.write(b'{"n":%02d}\n' % number)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["eve.json"] + [f"eve.json.{number}" for number in range(1, keep + 1)]
    numbers = []
    for name in reversed(names):
        data = (tmp_path / name).read_bytes()
        assert len(data) <= 100
        numbers += [record["n"] for record in lines(data)]
    assert numbers == list(range(60 - len(numbers), 60))


def test_reopen_follows_an_external_rotation(tmp_path: Path) -> None:
    path = tmp_path / "eve.json"
    file = LogFile(str(path), 1 << 20)
    file.write(b"1\n")
    path.rename(tmp_path / "moved")
    file.write(b"2\n")
    file.reopen()
    file.write(b"3\n")
    assert (tmp_path / "moved").read_bytes() == b"1\n2\n"
    assert path.read_bytes() == b"3\n"


def test_a_full_disk_is_said_once_until_it_works_again(capfd: pytest.CaptureFixture[str]) -> None:
    file = LogFile("/dev/full", 1 << 20)
    for _ in range(3):
        file.write(b"x\n")
    assert file.errors == 3
    assert capfd.readouterr().err.count("cannot write the event log /dev/full") == 1


@pytest.mark.parametrize("where", ["file/eve.json", "folder"])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    problem = log.check(str(tmp_path / where))
    assert problem is not None
    assert str(tmp_path / where) in problem


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    assert log.check(str(tmp_path / "a/b/eve.json")) is None
    assert log.check("-") is None


def test_a_writer_under_a_flood_stops_when_told(tmp_path: Path, pair: Pair) -> None:
    sender, receiver = pair
    path = tmp_path / "eve.json"
    pid = process.fork(lambda: log.run_writer(receiver, writing(path)), title="log test")
    stop = threading.Event()

    def flood() -> None:
        sending = LogSender(sender)
        while not stop.is_set():
            sending.write({"event_type": "flow"})
            sending.flush()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not path.exists() or not path.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "the writer goes on"
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()

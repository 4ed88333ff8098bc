"""A process that hangs is found out and killed; while that does not help, systemd's watchdog hears nothing."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nfw import generation, keyholder, process, supervisor
from nfw.generation import HUNG_BEATS, Child, Leader
from nfw.settings import GenerationSettings, PolicySource, pack, unpack

SETTINGS = GenerationSettings(1, "policy.yaml", queue_first=0, mark_mask=0xFFF00000)


def answering(sock: socket.socket) -> None:
    """A child that tells the leader what it was asked, as workers do."""
    while data := sock.recv(4096):
        sock.send(data)


def late(sock: socket.socket) -> None:
    """A child that answers everything, but never in time."""
    while data := sock.recv(4096):
        time.sleep(0.15)
        sock.send(data)


def hanging(sock: socket.socket) -> None:
    sock.recv(4096)
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Leader, socket.socket]]:
    """One without children, and the supervisor's side."""
    monkeypatch.setattr(generation, "STATUS_SECONDS", 0.1)
    ours, theirs = generation.pair()
    ours.settimeout(10)
    made = Leader(SETTINGS, theirs, theirs)
    yield made, ours
    for child in made.children:
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        if child.control is not None:
            child.control.close()
    ours.close()
    theirs.close()


def add(leader: Leader, work: Any) -> Child:
    child = Child("nfw packet 0", work)
    leader.children.append(child)
    leader._fork(child)
    assert child.control is not None
    child.control.setblocking(False)
    return child


def told(supervisor: socket.socket) -> list[tuple[str, Any]]:
    found = []
    supervisor.setblocking(False)
    while True:
        try:
            found.append(unpack(supervisor.recv(generation.MESSAGE_BYTES)))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("work", [answering, late])
def test_who_answers_lives(leader: tuple[Leader, socket.socket], work: Any) -> None:
    made, supervisor_side = leader
    child = add(made, work)
    for _ in range(HUNG_BEATS + 2):
        made._beat()
        time.sleep(0.1)
    assert child.silent < HUNG_BEATS
    assert [kind for kind, _ in told(supervisor_side)] == ["alive"] * (HUNG_BEATS + 2)
    os.kill(child.pid, 0)


def test_who_hangs_is_killed(leader: tuple[Leader, socket.socket]) -> None:
    made, supervisor_side = leader
    child = add(made, hanging)
    for _ in range(HUNG_BEATS):
        made._beat()
    assert told(supervisor_side)[-2:] == [
        ("died", f"nfw packet 0 (pid {child.pid}) hangs; killing it"),
        ("alive", None),
    ]
    _, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    # As though it could not be killed: the generation no longer says that it lives.
    child.pid = os.fork()
    if child.pid == 0:
        signal.pause()
    made._beat()
    assert told(supervisor_side) == []


def test_an_answer_to_an_older_question_is_passed_over(leader: tuple[Leader, socket.socket]) -> None:
    def confused(sock: socket.socket) -> None:
        while data := sock.recv(4096):
            sock.send(pack("ping", None))
            sock.send(data)

    made, _ = leader
    child = add(made, confused)
    assert made._ask("stats", {"a": 1}, [child]) == {"nfw packet 0": {"a": 1}}


@pytest.mark.parametrize("end", ["leader", "signal"])
def test_the_key_holder_gives_a_sign_of_life_and_ends(tmp_path: Any, end: str) -> None:
    from nfw import ca
    from tests.unit.test_policy import NOW

    ca.create("Test", tmp_path, NOW)
    ours, theirs = generation.pair()
    ours.settimeout(30)

    def hold() -> None:
        ours.close()
        keyholder.run([], str(tmp_path / "ca.pem"), str(tmp_path / "ca.key"), theirs)

    pid = process.fork(hold, title="keyholder")
    theirs.close()
    try:
        assert ours.recv(100) == b"ok"
        ours.send(b"anything")
        assert ours.recv(100) == b"anything"
        if end == "leader":
            ours.close()
        else:
            os.kill(pid, signal.SIGTERM)
        (ended,), _, _ = select.select([os.pidfd_open(pid)], [], [], 10)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        assert status == 0
    finally:
        ours.close()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """A supervisor with a generation whose leader is a process that sleeps."""
    made = supervisor.Supervisor.__new__(supervisor.Supervisor)
    made.selector = selectors.DefaultSelector()
    leader = subprocess.Popen(["sleep", "60"])
    source = PolicySource(SETTINGS.policy)
    made.current = supervisor.Generation(SETTINGS, leader, socket.socket(), 0.0, source, None, alive=100.0)
    made.looked = 100.0
    yield made
    leader.kill()
    leader.wait()
    made.current.sock.close()
    made.selector.close()


def test_a_generation_that_says_nothing_is_killed_and_the_watchdog_hears_nothing(watched: Any, capfd: Any) -> None:
    silent = supervisor.SILENT_SECONDS
    at = 100.0
    while at < 100.0 + silent:
        assert watched._lives(at)
        at += 0.5
    assert watched.current.leader.poll() is None
    assert not watched._lives(at + 0.5)
    assert watched.current.leader.wait(30) == -signal.SIGKILL
    assert not watched._lives(at + 1.0)
    assert capfd.readouterr().err.count("generation 1 hangs; killing it") == 1


def test_time_in_which_nobody_listened_is_no_silence(watched: Any) -> None:
    assert watched._lives(100.0 + 100 * supervisor.SILENT_SECONDS)
    assert watched.current.leader.poll() is None


def test_without_a_generation_the_supervisor_lives(watched: Any) -> None:
    generation_there, watched.current = watched.current, None
    assert watched._lives(1e6)
    watched.current = generation_there

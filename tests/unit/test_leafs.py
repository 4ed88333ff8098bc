"""The TLS worker's questions to the key holder: asked once, asked again when lost, given up when nobody waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from engines.tls.leaf import LeafKey, LeafRequest
from nfw import leafs
from nfw.leafs import ASK_AGAIN_SECONDS, LeafDesk

REQUEST = LeafRequest(("a.test",), (), "a.test", 0, 1 << 31)


def key(number: int = 0) -> LeafKey:
    return LeafKey(number.to_bytes(32, "big"), b"ca", "ecdsa")


@pytest.fixture
def holder_and_desk() -> Iterator[tuple[socket.socket, LeafDesk[str]]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for side in (ours, theirs):
        side.setblocking(False)
    with ours, theirs:
        yield theirs, LeafDesk(ours)


def questions(holder: socket.socket) -> list[dict[str, Any]]:
    found = []
    try:
        while data := holder.recv(1 << 20):
            found.append(msgpack.unpackb(data))
    except BlockingIOError:
        pass
    return found


def test_one_question_for_all_who_wait(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    for name in ("one", "two"):
        assert desk.ask(key(), REQUEST, name, 0.0, 0.0) is None
    (question,) = questions(holder)
    holder.send(msgpack.packb({"id": question["id"], "error": "no"}))
    (answer,) = desk.answers()
    assert (answer.waiting, answer.context, answer.error) == (["one", "two"], None, "no")
    assert desk.open_questions == 0


def test_a_lost_question_is_put_again_ever_more_rarely(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    desk.ask(key(), REQUEST, "flow", 0.0, 0.0)
    (lost,) = questions(holder)
    asked = []
    for tick in range(40):
        now = tick * ASK_AGAIN_SECONDS / 2
        desk.ask_again(now, lambda _: True)
        asked += [(now / ASK_AGAIN_SECONDS, question["id"]) for question in questions(holder)]
    assert asked == [(at, lost["id"]) for at in (1, 3, 7, 15)]
    for _ in range(2):  # the second answer to one question is nobody's
        holder.send(msgpack.packb({"id": lost["id"], "error": "no"}))
    assert len(list(desk.answers())) == 1


def test_nobody_waits_so_nobody_asks(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    desk.ask(key(), REQUEST, "gone", 0.0, 0.0)
    questions(holder)
    desk.ask_again(100.0, lambda _: False)
    assert (questions(holder), desk.open_questions) == ([], 0)
    desk.ask(key(), REQUEST, "new", 0.0, 0.0)
    assert len(questions(holder)) == 1  # a question of its own, not the dead one


def test_a_full_socket_loses_nothing(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    count = 2000
    for number in range(count):
        desk.ask(key(number), REQUEST, str(number), 0.0, 0.0)
    seen = {question["id"] for question in questions(holder)}
    assert len(seen) < count
    for turn in range(1, 20):
        desk.ask_again(turn * 1000.0, lambda _: True)
        seen |= {question["id"] for question in questions(holder)}
        for number in list(seen):
            holder.send(msgpack.packb({"id": number, "error": "no"}))
            list(desk.answers())
    assert (len(seen), desk.open_questions) == (count, 0)


def test_questions_are_bounded(
    holder_and_desk: tuple[socket.socket, LeafDesk[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, desk = holder_and_desk
    monkeypatch.setattr(leafs, "MAX_QUESTIONS", 3)
    for number in range(10):
        desk.ask(key(number), REQUEST, str(number), 0.0, 0.0)
    assert desk.open_questions == 3


@pytest.mark.parametrize("leaf", [b"", b"nonsense", None, 7])
def test_an_unusable_answer_is_an_error(holder_and_desk: tuple[socket.socket, LeafDesk[str]], leaf: object) -> None:
    holder, desk = holder_and_desk
    desk.ask(key(), REQUEST, "flow", 0.0, 0.0)
    (question,) = questions(holder)
    holder.send(msgpack.packb({"id": question["id"], "leaf": leaf}))
    (answer,) = desk.answers()
    assert answer.context is None
    assert "leaf" in answer.error


def test_the_end_of_the_leader_is_told(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    holder.close()
    with pytest.raises(EOFError):
        list(desk.answers())

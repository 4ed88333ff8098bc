"""The TLS worker's questions to the key holder: asked once, asked again when lost, given up when nobody waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from OpenSSL import SSL

from engines.tls.leaf import LeafKey, LeafRequest, presented_chain
from nfw import keyholder, leafs
from nfw.leafs import ASK_AGAIN_SECONDS, KEY_SECONDS, LeafDesk
from tests.unit.tlskit import NOW, Authority, Peer, client_peer

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


def answered(holder: socket.socket, authority: Authority, when: float) -> bytes:
    """Mint what is asked for, as the key holder does; the public key it was asked for."""
    (question,) = questions(holder)
    holder.send(keyholder.answer(msgpack.packb(question), authority.certificate, authority.key, when))
    public: bytes = question["public_key"]
    return public


def test_leaf_keys_are_new_every_day(holder_and_desk: tuple[socket.socket, LeafDesk[str]]) -> None:
    holder, desk = holder_and_desk
    authority = Authority()
    request = LeafRequest(("a.test",), (), "a.test", int(NOW) - 10, int(NOW) + 10**7)
    seen = []
    for when in (NOW, NOW + KEY_SECONDS - 1, NOW + KEY_SECONDS, NOW + KEY_SECONDS + 5):
        context = desk.ask(key(), request, "flow", 0.0, when)
        if context is None:
            seen.append((when, answered(holder, authority, when)))
            (answer,) = desk.answers()
            assert answer.context is not None, answer.error
    assert [when for when, _ in seen] == [NOW, NOW + KEY_SECONDS]
    assert seen[0][1] != seen[1][1]


def test_an_answer_for_yesterdays_key_serves_those_who_wait_alone(
    holder_and_desk: tuple[socket.socket, LeafDesk[str]],
) -> None:
    holder, desk = holder_and_desk
    authority = Authority()
    request = LeafRequest(("a.test",), (), "a.test", int(NOW) - 10, int(NOW) + 10**7)
    assert desk.ask(key(), request, "early", 0.0, NOW) is None
    (question,) = questions(holder)
    assert desk.ask(key(1), request, "late", 0.0, NOW + KEY_SECONDS) is None
    holder.send(keyholder.answer(msgpack.packb(question), authority.certificate, authority.key, NOW))
    (answer,) = desk.answers()
    assert (answer.waiting, answer.context is not None) == (["early"], True)
    assert len(desk) == 0


def test_the_chain_is_shown_behind_every_leaf() -> None:
    """To a client that trusts the root and knows nothing of the CA below it."""
    root = Authority("Root")
    below = Authority("Below", root)
    ours, holder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, holder:
        for side in (ours, holder):
            side.setblocking(False)
        desk: LeafDesk[str] = LeafDesk(ours, presented_chain([below.certificate, root.certificate]))
        request = LeafRequest(("a.test",), (), "a.test", int(NOW) - 10, int(NOW) + 10**7)
        desk.ask(key(), request, "flow", 0.0, NOW)
        answered(holder, below, NOW)
        (answer,) = desk.answers()
    assert answer.context is not None
    connection = SSL.Connection(answer.context)
    connection.set_accept_state()
    connection.set_app_data(b"")
    server, client = Peer(connection), client_peer("a.test", [root.certificate])
    client.start()
    while data := client.take():
        server.feed(data)
        client.feed(server.take())
    assert client.ready, client.failed

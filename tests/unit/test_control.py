"""The control protocol: framing, the server's loop against misbehaving clients, the client's errors."""

from __future__ import annotations

import os
import random
import selectors
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from nfw.control import (
    CLIENT_SECONDS,
    DEFERRED_SECONDS,
    MAX_FRAME,
    MAX_PENDING,
    BusyError,
    ControlClient,
    ControlError,
    ControlServer,
    ControlTimeoutError,
    Deferred,
    DeniedError,
    FrameError,
    FrameReader,
    NotRunningError,
    Reply,
    Request,
    decode_reply,
    decode_request,
    dispatch,
    encode_frame,
    encode_reply,
    encode_request,
)

VALUES: list[Any] = [None, True, 0, -1, "text", b"bytes", [1, [2]], {"a": {"b": "c"}}, {}, "x" * 70_000]


# -- framing -------------------------------------------------------------------------------------------------------


def test_frames_however_they_are_cut() -> None:
    """Whole, byte by byte, and with the beginning of another frame behind."""
    whole = b"".join(encode_frame(value) for value in VALUES[:-1])
    assert FrameReader().feed(whole) == VALUES[:-1]
    reader = FrameReader()
    assert [value for byte in whole for value in reader.feed(bytes([byte]))] == VALUES[:-1]
    assert reader.empty
    reader = FrameReader()
    assert reader.feed(encode_frame("a") + encode_frame("b")[:-1]) == ["a"]
    assert not reader.empty
    assert reader.feed(encode_frame("b")[-1:]) == ["b"]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_frame_round_trip(value: Any) -> None:
    assert FrameReader().feed(encode_frame(value)) == [value]


def test_frame_limit() -> None:
    """A length over the limit is refused before its bytes are awaited."""
    with pytest.raises(FrameError, match="over the limit"):
        FrameReader().feed(struct.pack(">I", MAX_FRAME + 1))
    with pytest.raises(FrameError, match="more than the"):
        encode_frame(b"x" * (MAX_FRAME + 1))


@pytest.mark.parametrize("value", [object(), 1 << 70, {1, 2}])
def test_frame_of_what_msgpack_cannot_hold(value: object) -> None:
    with pytest.raises(FrameError, match="not representable"):
        encode_frame(value)


def test_mangled_frames() -> None:
    """Parse or raise FrameError, never anything else; so do requests and replies."""
    rng = random.Random(3)
    for _ in range(3000):
        body = bytearray(msgpack.packb({"command": "apply", "args": {"policy": "/a", "n": [1, {"x": None}]}}))
        for _ in range(rng.randint(1, 3)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            values = FrameReader().feed(struct.pack(">I", len(body)) + body)
        except FrameError:
            continue
        for decode in (decode_request, decode_reply):
            for value in values:
                try:
                    decode(value)
                except FrameError:
                    continue


def test_deeply_nested_frame() -> None:
    body = b"\x91" * 200_000 + b"\xc0"
    with pytest.raises(FrameError):
        FrameReader().feed(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"command": ""},
        {"command": 1},
        {"command": "a", "args": []},
        {"command": "a", "args": {1: 2}},
        {"command": "a", "more": 1},
    ],
)
def test_bad_requests(value: object) -> None:
    with pytest.raises(FrameError):
        decode_request(value)


def test_values_round_trip() -> None:
    request = Request("apply", {"policy": "/etc/nfw/egress.yaml"})
    assert [decode_request(value) for value in FrameReader().feed(encode_request(request))] == [request]
    reply = Reply(False, {"n": 1}, ("a", "b"))
    assert [decode_reply(value) for value in FrameReader().feed(encode_reply(reply))] == [reply]


def test_reply_too_large_becomes_an_error() -> None:
    (value,) = FrameReader().feed(encode_reply(Reply(True, "x" * (MAX_FRAME + 1))))
    reply = decode_reply(value)
    assert not reply.ok
    assert "cannot be sent" in reply.errors[0]


def test_dispatch_names_the_commands_there_are() -> None:
    handler = dispatch({"status": lambda _: Reply(True), "apply": lambda _: Reply(True)})
    assert handler(Request("status")) == Reply(True)
    assert handler(Request("stats")) == Reply(False, None, ("unknown command 'stats'; known: apply, status",))


# -- server --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


def echo(request: Request) -> Reply:
    return Reply(True, {"command": request.command, "args": dict(request.args)})


@contextmanager
def serving(path: Path, handler: Any = echo, **options: Any) -> Iterator[ControlServer]:
    server = ControlServer(path, handler, **options)
    try:
        yield server
    finally:
        server.close()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


def answer(sock: socket.socket, reader: FrameReader | None = None) -> Reply:
    reader = reader or FrameReader()
    while True:
        data = sock.recv(65536)
        assert data, "closed without a reply"
        for value in reader.feed(data):
            return decode_reply(value)


def test_request_and_reply(path: Path) -> None:
    with serving(path) as server, connected(path) as sock:
        for number in range(3):  # one connection, several requests
            sock.sendall(encode_request(Request("status", {"n": number})))
            server.ready()
            server.ready()
            assert answer(sock) == Reply(True, {"command": "status", "args": {"n": number}})
        assert server.clients == 1
        sock.close()
        server.ready()
        assert server.clients == 0


def test_request_byte_by_byte(path: Path) -> None:
    with serving(path) as server, connected(path) as sock:
        for byte in encode_request(Request("status")):
            sock.sendall(bytes([byte]))
            server.ready()
        server.ready()
        assert answer(sock).ok


def test_socket_is_its_owners(path: Path) -> None:
    old = os.umask(0)
    try:
        with serving(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_close_removes_the_socket(path: Path) -> None:
    with serving(path):
        assert path.exists()
    assert not path.exists()
    server = ControlServer(path, echo)
    server.close(unlink=False)
    assert path.exists()


def test_close_leaves_a_successors_socket(path: Path) -> None:
    first = ControlServer(path, echo)
    path.unlink()
    with serving(path):
        first.close()
        assert path.exists()


def test_stale_socket_is_replaced(path: Path) -> None:
    """What a killed daemon left behind does not keep the next one from starting."""
    ControlServer(path, echo).close(unlink=False)
    with serving(path) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        assert answer(sock).ok


def test_second_daemon_is_refused(path: Path) -> None:
    with serving(path), pytest.raises(ControlError, match="another nfw is running"):
        ControlServer(path, echo)


def test_file_in_the_way(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"):
        ControlServer(path, echo)
    assert path.read_text() == "precious"


def test_path_too_long(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long"):
        ControlServer(tmp_path / ("x" * 120), echo)


def test_too_many_clients_are_told(path: Path) -> None:
    with serving(path, max_clients=2) as server:
        held = [connected(path) for _ in range(3)]
        server.ready()
        assert server.clients == 2
        assert answer(held[2]).errors == ("busy: 2 clients are connected, the limit; try again",)
        for sock in held:
            sock.close()


def test_strangers_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfw.control._peer_uid", lambda _: os.geteuid() + 4242)
    with serving(path) as server, connected(path) as sock:
        server.ready()
        assert answer(sock).errors[0].startswith("permission denied: uid")
        assert server.clients == 0


def test_slow_client_is_ended(path: Path) -> None:
    clock = Clock()
    with serving(path, clock=clock) as server, connected(path) as sock:
        sock.sendall(b"\0\0")
        server.ready()
        server.ready()
        clock.now += CLIENT_SECONDS - 0.1
        server.expire()
        assert server.clients == 1
        clock.now += 0.2
        server.expire()
        assert server.clients == 0


def test_client_that_does_not_read_is_ended(path: Path) -> None:
    """Its reply waits in a bounded buffer until its time is over; nobody else waits."""
    clock = Clock()
    with serving(path, lambda _: Reply(True, "x" * 1_000_000), clock=clock) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        with connected(path) as other:
            other.sendall(encode_request(Request("b")))
            server.ready()
            server.ready()
            assert server.clients == 2
        clock.now += CLIENT_SECONDS + 1
        server.expire()
        assert server.clients == 0


def test_large_reply_arrives_in_pieces(path: Path) -> None:
    with serving(path, lambda _: Reply(True, "x" * 1_000_000)) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        reader = FrameReader()
        replies: list[Any] = []
        while not replies:
            replies = reader.feed(sock.recv(65536))
            server.ready()
        assert decode_reply(replies[0]).data == "x" * 1_000_000


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 1) + b"\xc1", encode_frame([1])])
def test_nonsense_is_answered_and_ended(path: Path, data: bytes) -> None:
    with serving(path) as server, connected(path) as sock:
        sock.sendall(data)
        server.ready()
        server.ready()
        assert answer(sock).errors[0].startswith("bad request: ")
        assert server.clients == 0


def test_too_many_requests_ahead(path: Path) -> None:
    with serving(path, lambda _: Deferred()) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")) * (MAX_PENDING + 1))
        server.ready()
        server.ready()
        assert "more than" in answer(sock).errors[0]


def test_bug_in_a_handler_is_a_reply(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Request) -> Reply:
        raise KeyError("oops")

    with serving(path, broken) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("apply")))
        server.ready()
        server.ready()
        assert answer(sock).errors == ("internal error in 'apply'; the daemon's log has the traceback",)
    assert "KeyError: 'oops'" in capsys.readouterr().err


def test_deferred_reply(path: Path) -> None:
    """The answer to an earlier request comes first, even when the later one was known sooner."""
    waiting: list[Deferred] = []

    def handler(request: Request) -> Reply | Deferred:
        if request.command == "now":
            return Reply(True, "now")
        waiting.append(Deferred())
        return waiting[-1]

    with serving(path, handler) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("later")) + encode_request(Request("now")))
        server.ready()
        server.ready()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        waiting[0].resolve(Reply(True, "later"))
        waiting[0].resolve(Reply(False, "twice"))
        sock.settimeout(10)
        replies = FrameReader().feed(sock.recv(65536))
        assert [decode_reply(value).data for value in replies] == ["later", "now"]


def test_deferred_resolved_at_once(path: Path) -> None:
    def handler(_: Request) -> Deferred:
        deferred = Deferred()
        deferred.resolve(Reply(True, "at once"))
        return deferred

    with serving(path, handler) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        assert answer(sock).data == "at once"


def test_deferred_after_the_client_left(path: Path) -> None:
    deferred = Deferred()
    with serving(path, lambda _: deferred) as server:
        sock = connected(path)
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        sock.close()
        server.ready()
        deferred.resolve(Reply(True))
        assert server.clients == 0


def test_deferred_that_never_comes(path: Path) -> None:
    clock = Clock()
    with serving(path, lambda _: Deferred(), clock=clock) as server, connected(path) as sock:
        sock.sendall(encode_request(Request("a")))
        server.ready()
        server.ready()
        clock.now += CLIENT_SECONDS + 1  # waiting for us is not being slow
        server.expire()
        assert server.clients == 1
        clock.now += DEFERRED_SECONDS
        server.expire()
        assert answer(sock).errors == ("the daemon did not finish in time",)
        assert server.clients == 0


# -- client --------------------------------------------------------------------------------------------------------


@contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, when the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def looping(path: Path, handler: Any = echo, **options: Any) -> Iterator[ControlServer]:
    """A server in a thread, driven as the daemon drives it."""
    stop = threading.Event()
    server = ControlServer(path, handler, **options)
    selector = selectors.DefaultSelector()

    def loop() -> None:
        while not stop.is_set():
            server.attach(selector)
            for key, _ in selector.select(0.02):
                key.data()
            server.expire()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
        server.close()
        selector.close()


def test_client(path: Path) -> None:
    with looping(path):
        client = ControlClient(path, timeout=30.0)
        assert client.request("apply", policy="/a") == Reply(True, {"command": "apply", "args": {"policy": "/a"}})
        assert client.request("status").ok


def test_client_without_daemon(path: Path) -> None:
    with pytest.raises(NotRunningError, match="there is no control socket"):
        ControlClient(path).request("status")
    ControlServer(path, echo).close(unlink=False)
    with pytest.raises(NotRunningError, match="nobody listens"):
        ControlClient(path).request("status")


def test_client_when_busy(path: Path) -> None:
    with looping(path, max_clients=1), connected(path) as held:
        held.sendall(encode_request(Request("a")))
        assert answer(held).ok
        with pytest.raises(BusyError, match="busy: 1 clients"):
            ControlClient(path, timeout=30.0).request("status")


def test_client_when_not_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfw.control._peer_uid", lambda _: os.geteuid() + 4242)
    with looping(path), pytest.raises(DeniedError, match="permission denied"):
        ControlClient(path, timeout=30.0).request("status")


def test_client_without_permission(path: Path) -> None:
    with looping(path):
        path.chmod(0)
        with unprivileged(), pytest.raises(DeniedError, match="only its owner and root"):
            ControlClient(path).request("status")


def test_client_does_not_wait_for_ever(path: Path) -> None:
    with looping(path, lambda _: Deferred()), pytest.raises(ControlTimeoutError, match=r"no answer within 0\.2 s"):
        ControlClient(path, timeout=0.2).request("apply")


def test_client_and_something_else(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve(data: bytes) -> None:
            sock, _ = listener.accept()
            sock.recv(65536)
            sock.sendall(data)
            sock.close()

        for data, message in ((b"HTTP/1.1 200 OK", "does not speak"), (b"", "closed the connection")):
            thread = threading.Thread(target=serve, args=(data,))
            thread.start()
            with pytest.raises(ControlError, match=message):
                ControlClient(path, timeout=30.0).request("status")
            thread.join()

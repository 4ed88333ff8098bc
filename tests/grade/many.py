"""Very many clients, from one thread: hellos by the hundred thousand, and handshakes that are then kept open."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator

from tests.grade.bench import ADDRESS, RESET, Bench

AT_ONCE = 100
SECONDS = 30.0  # for one of them


def flood(
    bench: Bench, port: int, hellos: Iterable[bytes], enough: Callable[[bytes], bool], at_once: int = AT_ONCE
) -> Iterator[bytes]:
    """Send each of ``hellos`` on a connection of its own, ``at_once`` of them open at a time, and yield all that came
    back on it: until ``enough`` says so, or the end. The client then resets what is still open."""
    waiting = iter(hellos)
    poll = select.epoll()
    open_: dict[int, tuple[socket.socket, bytes, bytearray, float]] = {}

    def begin() -> bool:
        hello = next(waiting, None)
        if hello is None:
            return False
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.connect_ex((ADDRESS, port))
        open_[sock.fileno()] = sock, hello, bytearray(), time.monotonic() + SECONDS
        poll.register(sock, select.EPOLLOUT)
        return True

    with bench.lab.in_namespace("client"):
        more = True
        while more or open_:
            while more and len(open_) < at_once:
                more = begin()
            for fd, mask in poll.poll(1):
                sock, hello, got, _ = open_[fd]
                done = False
                try:
                    if mask & select.EPOLLOUT:
                        sock.send(hello)
                        poll.modify(fd, select.EPOLLIN)
                        continue
                    data = sock.recv(65536)
                    got += data
                    done = not data or enough(bytes(got))
                except OSError:
                    done = True
                if done:
                    poll.unregister(fd)
                    open_.pop(fd)[0].close()
                    yield bytes(got)
            now = time.monotonic()
            for fd in [fd for fd, one in open_.items() if one[3] < now]:
                poll.unregister(fd)
                open_.pop(fd)[0].close()
                yield b""
    poll.close()


def keep(
    bench: Bench, port: int, host: str, context: ssl.SSLContext, count: int, at_once: int = AT_ONCE
) -> list[ssl.SSLSocket]:
    """``count`` connections, all handshakes done. Raises AssertionError with what one of them said otherwise."""
    kept: list[ssl.SSLSocket] = []
    poll = select.epoll()
    busy: dict[int, ssl.SSLSocket] = {}
    started = 0
    deadline = time.monotonic() + SECONDS
    with bench.lab.in_namespace("client"):
        while len(kept) < count:
            while started < count and len(busy) < at_once:
                sock = socket.create_connection((ADDRESS, port), SECONDS)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setblocking(False)
                conn = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                busy[conn.fileno()] = conn
                poll.register(conn, select.EPOLLOUT)
                started += 1
            for fd, _ in poll.poll(1):
                conn = busy[fd]
                try:
                    conn.do_handshake()
                except ssl.SSLWantReadError:
                    poll.modify(fd, select.EPOLLIN)
                    continue
                poll.unregister(fd)
                kept.append(busy.pop(fd))
                deadline = time.monotonic() + SECONDS
            assert time.monotonic() < deadline, f"{len(kept)} of {count} handshakes done, then none for {SECONDS} s"
    poll.close()
    return kept


def say(conns: Iterable[ssl.SSLSocket], request: bytes, wanted: bytes) -> int:
    """How many of them are answered with ``wanted`` somewhere; all are closed."""
    alive = 0
    for conn in conns:
        with contextlib.suppress(OSError):
            conn.settimeout(SECONDS)
            conn.sendall(request)
            got = b""
            while wanted not in got and (data := conn.recv(4096)):
                got += data
            alive += wanted in got
        conn.close()
    return alive

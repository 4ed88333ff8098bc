"""The metrics endpoint: an unprivileged process of its own that Prometheus scrapes.

It reads HTTP from whoever can reach its address, so it has no part in anything else: the supervisor opens the listening
socket, hands it over with one end of a socket pair and answers one question there, "how do things stand?". A scrape
costs the workers one message each, at most one per :data:`FRESH_SECONDS` whatever the number of scrapers, and waits
:data:`ANSWER_SECONDS` at most; after that the counters are shown as they were last, with ``nfw_scrape_complete 0``.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import selectors
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nfw import process
from nfw.control import Deferred, Reply
from nfw.settings import pack, unpack

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

MESSAGE_BYTES = 1 << 20
ANSWER_SECONDS = 4.0  # more than the supervisor gives a generation
FRESH_SECONDS = 1.0
SCRAPERS = 8  # connections at a time; one more is closed
SCRAPER_SECONDS = 5.0  # for a request to arrive, and for its answer to be taken
NOBODY = 65534
_RESTART_SECONDS = 1.0
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_SET_NO_NEW_PRIVS = 47, 4, 38  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

Address = tuple[str, int] | str


def parse_address(text: str) -> Address:
    """``HOST:PORT`` (numeric; ``:PORT`` is loopback, ``[::1]:PORT`` IPv6) or the path of a Unix socket.

    Raises ValueError with what was expected.
    """
    if text.startswith(("/", "unix:")):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > 107:
            raise ValueError(f"{text!r} is no absolute path of at most 107 bytes")
        return path
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT such as 127.0.0.1:9469, nor an absolute path")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)), int(port)
    except ValueError:
        raise ValueError(f"{host!r} is no IP address; expected HOST:PORT such as 127.0.0.1:9469") from None


def is_private(address: Address) -> bool:
    """Only this machine can reach it."""
    return isinstance(address, str) or ipaddress.ip_address(address[0]).is_loopback


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises OSError. A Unix socket is for root and its group."""
    if isinstance(address, str):
        os.makedirs(os.path.dirname(address), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(address).st_mode):
                os.unlink(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o660)
            sock.bind(address)
            os.chmod(address, 0o660)
        except OSError:
            sock.close()
            raise
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    sock.listen(SCRAPERS)
    return sock


class Exporter:
    """The supervisor's side: keeps the process running and answers its questions with ``ask``."""

    def __init__(self, address: Address, ask: Callable[[], Reply | Deferred], selector: selectors.BaseSelector) -> None:
        """Raises OSError when the address cannot be had."""
        self._address = address
        self._ask = ask
        self._selector = selector
        self._listener = listen(address)
        self._sock: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def tend(self) -> None:
        """Start the process, and start it again when it ended."""
        if self._child is not None and self._child.poll() is None:
            return
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _RESTART_SECONDS
        self._forget()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, 32, 4 * MESSAGE_BYTES)  # SO_SNDBUFFORCE
        ours.setblocking(False)
        fds = (self._listener.fileno(), theirs.fileno())
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nfw.exporter", *map(str, fds), str(os.getpid())],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._sock = ours
        self._selector.register(ours, selectors.EVENT_READ, self._asked)

    def close(self) -> None:
        """End the process and give the address up."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._forget()
        self._listener.close()
        if isinstance(self._address, str):
            with contextlib.suppress(OSError):
                os.unlink(self._address)

    def _forget(self) -> None:
        if self._sock is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None

    def _asked(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            question = sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            question = b""
        if not question:
            self._forget()
            return

        def answer(reply: Reply) -> None:
            with contextlib.suppress(OSError):  # gone, or it has not read the one before
                sock.send(pack("status", [question, reply.data if reply.ok else None]))

        found = self._ask()
        if isinstance(found, Deferred):
            found.on_resolve(answer)
        else:
            answer(found)


# -- the process -------------------------------------------------------------------------------------------------------


class Asker:
    """What a scrape shows: the daemon's status, asked for when the last one is no longer fresh. A collector."""

    def __init__(self, sock: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        from nfw import metrics

        self._sock = sock
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._at = -FRESH_SECONDS
        self._status: dict[str, Any] | None = None
        self._totals = metrics.Totals()
        self._rules = metrics.Rules()

    def collect(self) -> Iterator[Metric]:
        """The families, for ``prometheus_client``."""
        from nfw import metrics

        with self._lock:
            if self._clock() - self._at >= FRESH_SECONDS:
                self._status = self._ask()
                self._at = self._clock()
                if self._status is not None:
                    self._totals.update(metrics.sources(self._status, self._rules))
            status, sums = self._status, self._totals.sums()
        yield from metrics.families(status, sums)

    def _ask(self) -> dict[str, Any] | None:
        self._number += 1
        question = str(self._number).encode()
        until = self._clock() + ANSWER_SECONDS
        with contextlib.suppress(OSError, ValueError):
            self._sock.settimeout(ANSWER_SECONDS)
            self._sock.send(question)
            while True:
                self._sock.settimeout(max(0.001, until - self._clock()))
                data = self._sock.recv(MESSAGE_BYTES)
                if not data:
                    os._exit(0)  # the supervisor is gone, or replaced us
                _, (number, status) = unpack(data)
                if number == question:  # an older one came too late
                    return status if isinstance(status, dict) else None
        return None


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """HTTP on a socket that listens already, a bounded number of threads."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._room = threading.BoundedSemaphore(SCRAPERS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that left."""


def serve(listener: socket.socket, sock: socket.socket) -> Server:
    """The server, ready for ``serve_forever``."""
    from prometheus_client import CollectorRegistry, MetricsHandler

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Asker(sock))

    class Handler(MetricsHandler):
        timeout = SCRAPER_SECONDS

        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            if self.path.split("?")[0] in ("/", "/metrics"):
                super().do_GET()
            else:
                self.send_error(404)

    Handler.registry = registry
    return Server(listener, Handler)


def drop_capabilities() -> None:
    """Keep none, those included that a service manager gave to every process of the service (ambient ones).

    Raises OSError when the kernel refuses, which it does to nobody (capset(2): giving up is always allowed).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)  # effective, permitted, inheritable, twice
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def main() -> None:
    """``python -m nfw.exporter LISTENER_FD SOCKET_FD PARENT_PID``."""
    process.die_with_parent(int(sys.argv[3]))
    process.name("nfw metrics")
    listener, sock = socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    server = serve(listener, sock)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        process.die_with_parent(int(sys.argv[3]))  # a change of identity clears it
    drop_capabilities()
    process.no_dumps()
    server.serve_forever()


if __name__ == "__main__":
    main()

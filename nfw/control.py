"""The control protocol: one request, one reply, over a Unix socket only its owner and root may use.

Values (:class:`Request`, :class:`Reply`) and framing are pure and tested with bytes; the server is a boring loop around
them, driven by the caller's ``selectors`` loop, single-threaded and never blocking.

A frame is four bytes of length (big endian) and that many bytes of msgpack: ``{"command": text, "args": {...}}`` one
way, ``{"ok": bool, "data": any, "errors": [text...]}`` the other. A connection may carry several requests, one after
the other.

Who may ask is decided twice: the socket file has mode 0600, and the kernel's word on the peer's uid (SO_PEERCRED, see
unix(7)) must be root's or our own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import stat
import struct
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

from nfw.settings import DEFAULT_CONTROL

MAX_FRAME = 1 << 20  # status of a thousand processes is a tenth of it; a larger frame ends the connection
MAX_CLIENTS = 16  # a person and a few scripts; one more is told "busy"
CLIENT_SECONDS = 5.0  # for a client to send its request, and to take its reply
DEFERRED_SECONDS = 300.0  # for the daemon to answer: applying 30,000 rules on a slow router takes a fraction of it
MAX_PENDING = 4  # requests a client may send ahead of their replies; more ends the connection
_HEADER = struct.Struct(">I")
_READ_BYTES = 64 * 1024


class ControlError(Exception):
    """The request did not get its reply; the text is for the operator."""


class NotRunningError(ControlError):
    """Nobody listens on the socket."""


class DeniedError(ControlError):
    """The caller may not use the socket."""


class BusyError(ControlError):
    """The daemon has as many clients as it takes."""


class ControlTimeoutError(ControlError):
    """The daemon did not answer in time."""


class FrameError(ValueError):
    """Bytes that are no frame, or too large a one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: ``command`` by name, ``args`` by keyword. ``uid``: who asks, as the kernel says; -1 where nobody
    was asked yet."""

    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    uid: int = field(default=-1, compare=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: ``data`` (msgpack-able) when ``ok``, otherwise one line per error."""

    ok: bool
    data: Any = None
    errors: tuple[str, ...] = ()


class Deferred:
    """A reply that comes later. A handler returns one at once and calls :meth:`resolve` when it knows.

    Resolving twice, or after the client has gone, does nothing.
    """

    __slots__ = ("_deliver", "reply")

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self._deliver: Callable[[Reply], None] | None = None

    def resolve(self, reply: Reply) -> None:
        if self.reply is None:
            self.reply = reply
            if self._deliver is not None:
                self._deliver(reply)

    def on_resolve(self, deliver: Callable[[Reply], None]) -> None:
        """Call ``deliver`` with the reply, at once or when it comes. The last caller is the one that is told."""
        if self.reply is not None:
            deliver(self.reply)
        else:
            self._deliver = deliver


Handler = Callable[[Request], Reply | Deferred]


def dispatch(commands: Mapping[str, Handler]) -> Handler:
    """A handler that looks the command up in a table; an unknown one is an error naming those there are."""

    def handle(request: Request) -> Reply | Deferred:
        handler = commands.get(request.command)
        if handler is None:
            return Reply(False, None, (f"unknown command {request.command!r}; known: {', '.join(sorted(commands))}",))
        return handler(request)

    return handle


# -- framing -----------------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    return encode_frame({"command": request.command, "args": dict(request.args)})


def encode_reply(reply: Reply) -> bytes:
    """The frame of a reply; one that does not fit becomes an error reply, so the client always hears something."""
    try:
        return encode_frame({"ok": reply.ok, "data": reply.data, "errors": list(reply.errors)})
    except FrameError as error:
        return encode_frame({"ok": False, "data": None, "errors": [f"the reply cannot be sent: {error}"]})


def decode_request(value: Any) -> Request:
    """Raises :class:`FrameError` when the value is no request."""
    if not isinstance(value, dict) or set(value) - {"command", "args"}:
        raise FrameError("a request is a map with command and args")
    command, args = value.get("command"), value.get("args", {})
    if not isinstance(command, str) or not command or not isinstance(args, dict):
        raise FrameError("a request needs a command (text) and args (a map)")
    if not all(isinstance(name, str) for name in args):
        raise FrameError("the names of arguments are texts")
    return Request(command, args)


def decode_reply(value: Any) -> Reply:
    """Raises :class:`FrameError` when the value is no reply."""
    if not isinstance(value, dict) or not isinstance(value.get("ok"), bool):
        raise FrameError("a reply is a map with ok, data and errors")
    errors = value.get("errors", [])
    if not isinstance(errors, list):
        raise FrameError("errors is a list of texts")
    return Reply(value["ok"], value.get("data"), tuple(str(error) for error in errors))


def encode_frame(value: Any) -> bytes:
    """Raises :class:`FrameError` for what msgpack cannot hold or what is over :data:`MAX_FRAME`."""
    try:
        body: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FrameError(f"not representable: {error}") from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"{len(body)} bytes are more than the {MAX_FRAME} a frame may hold")
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Bytes in, values out, however the bytes are cut. Holds at most one frame that is not complete."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._max_frame = max_frame

    @property
    def empty(self) -> bool:
        """Nothing of a next frame has arrived."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Any]:
        """The values completed by ``data``. Raises :class:`FrameError`; the reader is of no use afterwards."""
        self._buffer += data
        values = []
        position = 0
        while len(self._buffer) - position >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, position)
            if length > self._max_frame:
                raise FrameError(f"a frame of {length} bytes is over the limit of {self._max_frame}")
            end = position + _HEADER.size + length
            if len(self._buffer) < end:
                break
            values.append(_unpack(bytes(self._buffer[position + _HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return values


def _unpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:  # msgpack documents no closed set of what broken input raises
        raise FrameError(f"not msgpack: {error}") from error


# -- server ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Client:
    """One connection. ``waiting`` counts requests whose reply is still to come."""

    sock: socket.socket
    deadline: float
    uid: int = -1
    reader: FrameReader = field(default_factory=FrameReader)
    out: bytearray = field(default_factory=bytearray)
    waiting: list[Deferred] = field(default_factory=list)
    writing: bool = False
    closing: bool = False  # close once ``out`` is sent
    closed: bool = False


class ControlServer:
    """Listens on ``path`` and answers requests with ``handler``.

    ::

        server = ControlServer(path, handler)     # ControlError with a readable text when that cannot be
        server.attach(selector)                   # registers server.fd once, with a callable as data
        for key, _ in selector.select(timeout): key.data()
        server.expire()                           # at least every second: ends clients that dawdle

    Everything is behind one descriptor (an epoll of its own), so any loop that can wait for one can drive it with
    :meth:`ready`. ``clock`` returns monotonic seconds.
    """

    def __init__(
        self,
        path: str | Path,
        handler: Handler,
        *,
        max_clients: int = MAX_CLIENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self._handler = handler
        self._max_clients = max_clients
        self._clock = clock
        self._clients: dict[int, _Client] = {}
        self._inner = selectors.EpollSelector()
        self._listener = _listen(self.path)
        self._inode = _inode(self.path)
        self._inner.register(self._listener, selectors.EVENT_READ)
        self._attached: selectors.BaseSelector | None = None

    @property
    def fd(self) -> int:
        """Readable whenever :meth:`ready` has something to do."""
        return self._inner.fileno()

    @property
    def clients(self) -> int:
        return len(self._clients)

    def attach(self, selector: selectors.BaseSelector) -> None:
        """Register with ``selector``; the key's data is the callable to call. Calling it again does nothing."""
        if self._attached is not selector:
            selector.register(self.fd, selectors.EVENT_READ, self.ready)
            self._attached = selector

    def ready(self) -> None:
        """Do what can be done now; never blocks."""
        for key, events in self._inner.select(0):
            if key.fileobj is self._listener:
                self._accept()
                continue
            client: _Client = key.data
            if events & selectors.EVENT_WRITE and not client.closed:
                self._send(client)
            if events & selectors.EVENT_READ and not client.closed:
                self._receive(client)

    def expire(self) -> None:
        """End the clients that took too long, and the requests the daemon never answered."""
        now = self._clock()
        for client in list(self._clients.values()):
            if now < client.deadline:
                continue
            if client.waiting and not client.out:
                client.waiting = []
                client.closing = True
                self._queue(client, Reply(False, None, ("the daemon did not finish in time",)))
            else:
                self._drop(client)

    def close(self, *, unlink: bool = True) -> None:
        """Stop listening. ``unlink=False`` is for a forked child, which must leave the file to its parent."""
        if self._attached is not None:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._attached.unregister(self.fd)
            self._attached = None
        for client in list(self._clients.values()):
            self._drop(client)
        self._inner.close()
        self._listener.close()
        # Only our own file: another daemon may have replaced it meanwhile.
        if unlink and self._inode is not None and _inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _accept(self) -> None:
        for _ in range(self._max_clients + 1):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return  # accepting goes on when descriptors are free again
                continue
            sock.setblocking(False)
            uid = _peer_uid(sock)
            if uid not in (0, os.geteuid()):
                _refuse(sock, f"permission denied: uid {uid} may not control this daemon")
            elif len(self._clients) >= self._max_clients:
                _refuse(sock, f"busy: {len(self._clients)} clients are connected, the limit; try again")
            else:
                client = _Client(sock, self._clock() + CLIENT_SECONDS, uid)
                self._clients[sock.fileno()] = client
                self._inner.register(sock, selectors.EVENT_READ, client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        if client.closing:
            return
        try:
            requests = [decode_request(value) for value in client.reader.feed(data)]
            if len(requests) + len(client.waiting) > MAX_PENDING:
                raise FrameError(f"more than {MAX_PENDING} requests at a time")
        except FrameError as error:
            client.closing = True
            self._queue(client, Reply(False, None, (f"bad request: {error}",)))
            return
        for request in requests:
            self._handle(client, replace(request, uid=client.uid))

    def _handle(self, client: _Client, request: Request) -> None:
        try:
            answer = self._handler(request)
        except Exception:  # noqa: BLE001 - a bug in one command must not end the daemon, nor go unseen
            traceback.print_exc()
            answer = Reply(False, None, (f"internal error in {request.command!r}; the daemon's log has the traceback",))
        if isinstance(answer, Reply):
            answer_later = Deferred()
            answer_later.reply = answer
            answer = answer_later
        client.waiting.append(answer)
        client.deadline = self._clock() + DEFERRED_SECONDS
        answer.on_resolve(lambda _: self._flush(client))

    def _flush(self, client: _Client) -> None:
        """Send the replies that are known, in the order of the requests."""
        while client.waiting and client.waiting[0].reply is not None and not client.closed:
            deferred = client.waiting.pop(0)
            assert deferred.reply is not None
            self._queue(client, deferred.reply)

    def _queue(self, client: _Client, reply: Reply) -> None:
        if client.closed:
            return
        client.out += encode_reply(reply)
        if not client.waiting:
            client.deadline = self._clock() + CLIENT_SECONDS
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.out:
                sent = client.sock.send(client.out)
                del client.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.closing and not client.out:
            self._drop(client)
            return
        writing = bool(client.out)
        if writing != client.writing:
            client.writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self._inner.modify(client.sock, events, client)

    def _drop(self, client: _Client) -> None:
        if client.closed:
            return
        client.closed = True
        client.waiting = []
        self._clients.pop(client.sock.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._inner.unregister(client.sock)
        client.sock.close()


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise ControlError(f"control socket {path}: {_reason(error)}") from error
    try:
        # The file is made with the mode of the socket, so nobody can connect before it is right.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        os.chmod(path, 0o600)
        sock.listen(MAX_CLIENTS)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ControlError(f"control socket {path} is in use; is another nfw running?") from error
        raise ControlError(f"control socket {path}: {_reason(error)}") from error
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that was killed; raise when one still listens or the file is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(
            f"control socket {path}: the file exists and is not a socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: very much alive
    raise ControlError(f"control socket {path} is in use: another nfw is running")


def _refuse(sock: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):
        sock.send(encode_reply(Reply(False, None, (message,))))
    sock.close()


def _peer_uid(sock: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"permission denied (running as uid {os.geteuid()}); nfw run needs root"
    if "too long" in str(error):
        return "the path is too long for a Unix socket (107 bytes)"
    return error.strerror or str(error)


# -- client ------------------------------------------------------------------------------------------------------------


class ControlClient:
    """Asks a running daemon. Raises :class:`ControlError` or one of its kinds when no reply could be had."""

    def __init__(self, path: str | Path = DEFAULT_CONTROL, timeout: float = 10.0) -> None:
        self.path = Path(path)
        self.timeout = timeout

    def request(self, command: str, **args: Any) -> Reply:
        """The daemon's reply, within ``timeout`` seconds all in all."""
        until = time.monotonic() + self.timeout
        try:
            frame = encode_request(Request(command, args))
        except FrameError as error:
            raise ControlError(f"the request cannot be sent: {error}") from None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            self._connect(sock)
            # A daemon that refuses us answers before it has read anything, so a failed send is not the last word.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                sock.settimeout(_left(until))
                sock.sendall(frame)
            reply = self._receive(sock, until)
        if not reply.ok and reply.errors and reply.errors[0].startswith("busy: "):
            raise BusyError(reply.errors[0])
        if not reply.ok and reply.errors and reply.errors[0].startswith("permission denied: "):
            raise DeniedError(reply.errors[0])
        return reply

    def _connect(self, sock: socket.socket) -> None:
        sock.settimeout(self.timeout)
        try:
            sock.connect(os.fspath(self.path))
        except (FileNotFoundError, NotADirectoryError):
            raise NotRunningError(f"not running: there is no control socket {self.path}") from None
        except ConnectionRefusedError:
            if not _is_socket(self.path):
                raise ControlError(f"control socket {self.path}: the file is not a socket; expected nfw's") from None
            raise NotRunningError(f"not running: nobody listens on control socket {self.path}") from None
        except PermissionError:
            raise DeniedError(
                f"permission denied for control socket {self.path}: only its owner and root may use it"
            ) from None
        except (BlockingIOError, TimeoutError):
            raise BusyError(f"busy: control socket {self.path} takes no more clients") from None
        except OSError as error:
            raise ControlError(f"control socket {self.path}: {_reason(error)}") from None

    def _receive(self, sock: socket.socket, until: float) -> Reply:
        reader = FrameReader()
        while True:
            left = _left(until)
            try:
                sock.settimeout(left)
                data = sock.recv(_READ_BYTES)
            except TimeoutError:
                raise ControlTimeoutError(f"no answer within {self.timeout:g} s") from None
            except ConnectionResetError:
                data = b""
            except OSError as error:
                raise ControlError(f"control socket {self.path}: {_reason(error)}") from None
            if not data:
                raise ControlError("the daemon closed the connection without an answer; did it stop or crash?")
            try:
                for value in reader.feed(data):
                    return decode_reply(value)
            except FrameError as error:
                raise ControlError(f"control socket {self.path} does not speak nfw's protocol: {error}") from None


def _is_socket(path: str | Path) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # gone again
        return True


def _left(until: float) -> float:
    return max(0.001, until - time.monotonic())

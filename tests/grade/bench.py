"""The lab of the grade: one firewall, servers on ports of their own, clients that believe all or nothing."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
import json
import os
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from tests.firewall import Firewall, pids_named, wait_for
from tests.grade import pki
from tests.grade.pki import Issued, path
from tests.grade.policies import POLICIES, RULES
from tests.grade.real import ANY_LEVEL, SERVERS, Nginx, RealServer, SServer, start
from tests.grade.trust import Trust
from tests.lab import Lab
from tests.lab.lab import Role

ADDRESS = "203.0.113.10"
SPARE = "203.0.113.12"
ADDRESS6 = "2001:db8:2::10"
HOST = "site.grade.test"
FIRST_PORT, LAST_PORT = 20000, 29999
WEB_PORT = 2560
"""Of the responder: OCSP, CRLs, issuers."""
SECONDS = 12.0
IGNORE_UNEXPECTED_EOF = 0x80
RESET = struct.pack("ii", 1, 0)
Handler = Callable[["ServerSide"], None]
Serving = SSL.Context | Nginx | SServer


class WrongError(AssertionError):
    """A case did not go as it must; the text says what was seen."""


class CannotRunError(Exception):
    """A case needs what this machine does not have; the text says what."""


def check(good: bool, seen: str) -> None:
    """Raise WrongError unless ``good``."""
    if not good:
        raise WrongError(seen)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for it. Raises WrongError where it does not come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, "it did not come about")
        time.sleep(0.02)


# -- the other end -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a client saw of one connection."""

    port: int = 0  # its own
    connected: bool = False
    handshake: bool = False
    raw: bytes = b""  # every byte that came, TLS as it is
    body: bytes = b""
    end: str = ""  # clean (close_notify), cut (FIN without), reset, timeout
    error: str = ""
    certificate: bytes = b""  # DER of the leaf shown
    version: str = ""
    cipher: str = ""
    alpn: str = ""
    seconds: float = 0.0
    session: Any = None
    reused: bool = False

    def outcome(self) -> str:
        """In a word or two."""
        if self.body:
            return "served"
        return f"refused, {self.error}" if self.end == "alert" else self.end or "open"

    def __str__(self) -> str:
        what = f"{len(self.body)} bytes" if self.handshake else "no handshake"
        return f"{what}, {self.end or 'open'}{' ' + self.error if self.error else ''}"


class ServerSide:
    """One accepted connection of a server, TLS or not, for its handler."""

    def __init__(self, sock: socket.socket, tls: SSL.Connection | None) -> None:
        self.sock = sock
        self.tls = tls
        self.got = bytearray()

    def read(self, size: int = 65536) -> bytes:
        """Application bytes; b"" at any end."""
        try:
            data = self.tls.recv(size) if self.tls is not None else self.sock.recv(size)
        except (SSL.Error, OSError):
            data = b""
        self.got += data
        return data

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self.got and self.read():
            pass
        return bytes(self.got)

    def write(self, data: bytes) -> None:
        if self.tls is not None:
            self.tls.sendall(data)
        else:
            self.sock.sendall(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def close(self) -> None:
        """close_notify, then FIN, then whatever the peer has to say."""
        with contextlib.suppress(SSL.Error, OSError):
            if self.tls is not None:
                self.tls.shutdown()
            self.sock.shutdown(socket.SHUT_WR)


def page(side: ServerSide) -> None:
    """Answer one request with a page of a few bytes."""
    if b"\r\n\r\n" in side.read_until(b"\r\n\r\n"):
        side.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nGRADE\n")


REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


class Server:
    """A listener; every connection has a thread. ``got`` is what clients said, in plaintext. What is kept and counted
    came through nfw; of connections made directly, by the server's own side, the handler alone knows."""

    def __init__(
        self,
        bench: Bench,
        port: int = 0,
        *,
        context: SSL.Context | None = None,
        handler: Handler = page,
        address: str = ADDRESS,
    ) -> None:
        self.address, self.handler, self.context = address, handler, context
        self.port = port or bench.port()
        self.sides: list[ServerSide] = []
        self.handshakes = 0
        self.accepted = 0
        self.errors: list[str] = []
        self.names: list[bytes | None] = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with bench.lab.in_namespace("server"):
            self.listener = socket.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, self.port))
        self.listener.listen(1024)
        bench.servers.append(self)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def got(self) -> bytes:
        return b"".join(bytes(side.got) for side in self.sides)

    def forget(self) -> None:
        self.sides, self.handshakes, self.accepted, self.errors, self.names = [], 0, 0, [], []

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = self.listener.accept()
                direct = peer[0] in SERVERS
                self.accepted += not direct
                threading.Thread(target=self._one, args=(sock, direct), daemon=True).start()

    def _one(self, sock: socket.socket, direct: bool) -> None:
        blocking(sock, 30)
        side = ServerSide(sock, None)
        try:
            if self.context is not None:
                side.tls = SSL.Connection(self.context, sock)
                side.tls.set_accept_state()
                side.tls.do_handshake()
                self.handshakes += not direct
                if not direct:
                    self.names.append(side.tls.get_servername())
            if not direct:
                self.sides.append(side)
            self.handler(side)
            side.close()
        except (SSL.Error, OSError, ValueError, InvalidTag) as error:
            self.errors.append(f"{type(error).__name__} {error}")
        finally:
            with contextlib.suppress(OSError):
                sock.close()


def blocking(sock: socket.socket, seconds: float) -> None:
    """Time-outs by the kernel: Python's make a socket non-blocking, which OpenSSL on it does not expect."""
    sock.setblocking(True)
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def server_context(
    chain: Sequence[bytes] | Issued,
    key: pki.Key | None = None,
    *,
    versions: tuple[int, int] = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION),
    ciphers: bytes = b"ALL:@SECLEVEL=0",
    alpn: Sequence[bytes] = (),
    staple: bytes | Callable[[], bytes] = b"",
    configure: Callable[[SSL.Context], None] | None = None,
) -> SSL.Context:
    """A server's Context that refuses nothing. ``chain``: DER, leaf first, or a certificate with all above it."""
    if isinstance(chain, Issued):
        key = key or chain.key
        chain = path(chain)
    assert key is not None
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_cipher_list(ciphers)
    context.set_min_proto_version(versions[0])
    context.set_max_proto_version(versions[1])
    context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, chain[0]))
    for one in chain[1:]:
        context.add_extra_chain_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, one))
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, key.pem))
    if alpn:
        context.set_alpn_select_callback(
            lambda _, offered: next((one for one in alpn if one in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
        )
    if staple:
        context.set_ocsp_server_callback(lambda _connection, _data: staple() if callable(staple) else staple)
    if configure is not None:
        configure(context)
    return context


# -- the responder -----------------------------------------------------------------------------------------------------


class Web:
    """HTTP for whom certificates point to. A page is bytes, or what makes them of the request's body, or a function
    that has the socket. ``hits`` counts requests by path."""

    def __init__(self, bench: Bench) -> None:
        self.pages: dict[str, Any] = {}
        self.hits: dict[str, int] = {}
        self.bodies: dict[str, bytes] = {}
        self.server = Server(bench, WEB_PORT, handler=self._serve)

    def url(self, path: str, host: str = ADDRESS) -> str:
        return f"http://{host}:{WEB_PORT}/{path}"

    def put(self, path: str, page: Any) -> str:
        """Serve ``page``; returns its URL."""
        self.pages["/" + path] = page
        return self.url(path)

    def asked(self, path: str) -> int:
        return self.hits.get("/" + path, 0)

    def _serve(self, side: ServerSide) -> None:
        head, _, body = side.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        length = next((int(one.split(":")[1]) for one in lines if one.lower().startswith("content-length:")), 0)
        while len(body) < length and (more := side.read()):
            body += more
        words = lines[0].split(" ")
        wanted = words[1] if len(words) > 1 else ""
        self.hits[wanted] = self.hits.get(wanted, 0) + 1
        self.bodies[wanted] = body
        found = self.pages.get(wanted)
        if found is None:
            side.write(answer(b"", "404 Not Found"))
        elif isinstance(found, bytes):
            side.write(answer(found))
        elif getattr(found, "has_socket", False):
            found(side)
        else:
            made = found(body)
            side.write(made if made.startswith(b"HTTP/") else answer(made))


def answer(body: bytes, status: str = "200 OK", kind: str = "application/octet-stream", extra: str = "") -> bytes:
    """A whole HTTP response."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode() + body


def with_socket(work: Handler) -> Handler:
    """Mark a page that writes to the socket itself."""
    work.has_socket = True  # type: ignore[attr-defined]
    return work


# -- the log -----------------------------------------------------------------------------------------------------------


class Log:
    """The event log, read once, found by the client's port."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        self._rest = b""
        self._by_port: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def read(self) -> None:
        """Take in what is new."""
        with self._lock:
            for data in self._more():
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()
                for line in lines:
                    self._take(json.loads(line))

    def skip(self) -> None:
        """Forget what is new: of a flood that nobody will ask about, and would fill the memory."""
        with self._lock:
            for data in self._more():
                self._rest = (self._rest + data).rpartition(b"\n")[2]

    def _more(self) -> Iterator[bytes]:
        """The file's new bytes, and those of the one that has its name by now: nfw renames a full one. Who looks away
        while two are filled misses the one between."""
        while self._file is not None or self._path.exists():
            if self._file is None:
                self._file = self._path.open("rb")
            while data := self._file.read(1 << 22):
                yield data
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino:
                    self._file.close()
                    self._file = None
                    continue
            return

    def _take(self, record: dict[str, Any]) -> None:
        if "src_port" in record:
            for one in (record["src_port"], record["dest_port"]), (record["dest_port"], record["src_port"]):
                self._by_port.setdefault(one, []).append(record)

    def about(self, source: int, destination: int, kind: str | None = None) -> list[dict[str, Any]]:
        """What there is of a flow by now."""
        self.read()
        found = self._by_port.get((source, destination), ())
        return [one for one in found if kind in (None, one["event_type"])]

    def wait(self, source: int, destination: int, kind: str = "tls", seconds: float = 8.0) -> dict[str, Any]:
        """The flow's record of that kind. Raises WrongError where none comes."""
        deadline = time.monotonic() + seconds
        while not (found := self.about(source, destination, kind)):
            if time.monotonic() > deadline:
                raise WrongError(f"no {kind} record of {source} -> {destination}")
            time.sleep(0.03)
        return found[-1]


# -- all of it ---------------------------------------------------------------------------------------------------------


class Controls:
    """What was seen without nfw in one case, and by which kinds of client the case was then tried through it."""

    def __init__(self) -> None:
        self._seen: dict[str, collections.Counter[str]] = {}
        self.kinds: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._seen)

    def add(self, who: str, what: str) -> None:
        self._seen.setdefault(who, collections.Counter())[what] += 1

    def __str__(self) -> str:
        def several(what: str, count: int) -> str:
            return f"{count} {what}" if count > 1 else what

        return "; ".join(
            f"{who}: {', '.join(several(*one) for one in seen.items())}" for who, seen in sorted(self._seen.items())
        )


CARELESS, VALIDATING, SCRIPTED = "careless", "validating", "scripted"


@dataclass
class Bench:
    """Lab, firewall, servers, responder, log. Threads may use it at the same time, but for :meth:`use`. ``quick``: what
    takes minutes at its full size is made smaller; ``idle``: seconds that idle flows are left alone; ``controls``: of
    the case this is for."""

    lab: Lab
    firewall: Firewall
    trust: Trust
    servers: list[Server] = field(default_factory=list)
    seconds: float = SECONDS
    quick: bool = False
    idle: float = 60.0
    controls: Controls = field(default_factory=Controls)

    def __post_init__(self) -> None:
        self._policy = [""]
        self._ports = itertools.count(FIRST_PORT)
        self._lock = threading.Lock()
        self.log = Log(self.firewall.log)
        self.web = Web(self)
        (self.firewall.dir / "grade.rules").write_text(RULES)
        own = x509.load_pem_x509_certificate(self.firewall.ca.read_bytes())
        self.trust.extra.append(own.public_bytes(serialization.Encoding.DER))  # as if the system's store had it
        self.trust.extra += self.trust.known_bad().values()
        (self.firewall.dir / "anchors.pem").write_bytes(self.trust.pem())
        store = Path("/etc/netns", self.lab.router.name, "ssl")  # laid over /etc/ssl of what runs in the router
        (store / "certs").mkdir(parents=True)
        (store / "certs" / "ca-certificates.crt").write_bytes(pki.pem(self.trust.public.der))
        (self.firewall.dir / "distrust.pem").write_bytes(pki.pem(self.trust.distrusted.der))
        (self.firewall.dir / "sct-log.pem").write_bytes(self.trust.log_key_pem)

    @property
    def policy(self) -> str:
        """The one that filters."""
        return self._policy[0]

    def of_case(self) -> Bench:
        """The same bench, with controls of its own."""
        made = copy.copy(self)
        made.controls = Controls()
        return made

    def directly(self, who: str, what: Seen | str) -> None:
        """Keep what a client (careless, validating, scripted, or whoever it is) saw without nfw."""
        self.controls.add(who, what if isinstance(what, str) else what.outcome())

    def size(self, full: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else full

    def port(self) -> int:
        """One nobody else has."""
        with self._lock:
            number = next(self._ports)
        assert number <= LAST_PORT
        return number

    def use(self, policy: str, *, again: bool = False) -> None:
        """Have that policy filter, and no worker of the one before be left. ``again``: do it, though it filters
        already: a file it names has changed, or a worker is wanted that does not keep the memory of earlier cases."""
        if policy == self.policy and not again:
            return
        file = self.firewall.policy(f"grade-{policy}", POLICIES[policy])
        if self.policy:
            before = set(pids_named(self.firewall.pid(), "nfw tls"))
            self.firewall.apply(file)
            wait_for(lambda: before.isdisjoint(pids_named(self.firewall.pid(), "nfw tls")), 10)
        else:
            self.firewall.start(file)
        self._policy[0] = policy

    @contextlib.contextmanager
    def serving(self, context: Serving | None = None, *, port: int = 0, address: str = ADDRESS, **how: Any) -> Any:
        """A :class:`Server`, or a real one where ``context`` describes such."""
        server: Server | RealServer
        if isinstance(context, (Nginx, SServer)):
            server = start(self.lab, context, address, port or self.port())
        else:
            server = Server(self, port, context=context, address=address, **how)
        try:
            yield server
        finally:
            server.close()

    @contextlib.contextmanager
    def ears(self, *places: tuple[Role, str, int]) -> Iterator[Callable[[], list[str]]]:
        """Listeners in a namespace, at an address and port, that the router can reach. Yields what tells where anybody
        has connected. Raises OSError where the router cannot."""
        listeners = {}
        try:
            for role, address, port in places:
                with self.lab.in_namespace(role):
                    listener = listeners[f"{address}:{port}"] = socket.create_server((address, port))
                with self.lab.in_namespace("router"):
                    socket.create_connection((address, port), 2.0).close()
                listener.accept()[0].close()
                listener.setblocking(False)

            def heard() -> list[str]:
                found = []
                for where, listener in listeners.items():
                    with contextlib.suppress(BlockingIOError):
                        listener.accept()[0].close()
                        found.append(where)
                return found

            yield heard
        finally:
            for listener in listeners.values():
                listener.close()

    def connect(
        self,
        port: int,
        *,
        address: str = ADDRESS,
        direct: bool = False,
        seconds: float | None = None,
        buffer: int = 0,
        source: str = "",
    ) -> socket.socket:
        """TCP from the client, by an address of its own if ``source`` names one, or, past the router, from the server's
        own side."""
        with self.lab.in_namespace("server" if direct else "client"):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.settimeout(seconds or self.seconds)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            sock.bind((source, 0))
        sock.connect((address, port))
        return sock

    def client_context(self, *, strict: bool, direct: bool = False, weak: bool = True) -> ssl.SSLContext:
        """One that validates (nfw's CA; directly: the root), or one that takes whatever it is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.options &= ~IGNORE_UNEXPECTED_EOF
        if strict:
            if direct:
                context.load_verify_locations(self.firewall.dir / "anchors.pem", cadata=self.trust.public.der)
                context.set_ciphers("DEFAULT:@SECLEVEL=2")  # OpenSSL's; Python's depend on who has built it
            else:
                context.load_verify_locations(self.firewall.ca)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if weak:
                context.set_ciphers("ALL:@SECLEVEL=0")
            if direct:
                context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    context.minimum_version = ssl.TLSVersion.TLSv1
        return context

    def visit(
        self,
        port: int,
        host: str | None = HOST,
        *,
        address: str = ADDRESS,
        strict: bool = True,
        direct: bool = False,
        request: bytes = REQUEST,
        context: ssl.SSLContext | None = None,
        alpn: Sequence[str] = (),
        session: ssl.SSLSession | None = None,
        seconds: float | None = None,
        cut: int = 0,
        pause: float = 0.0,
        first_cut: int = 0,
        source: str = "",
    ) -> Seen:
        """One request as an ordinary client makes it. ``cut``: bytes sent at once during the handshake."""
        context = context or self.client_context(strict=strict, direct=direct)
        if not direct:
            self.controls.kinds.add(CARELESS if context.verify_mode == ssl.CERT_NONE else VALIDATING)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        seen = Seen()
        began = time.monotonic()
        try:
            sock = self.connect(port, address=address, direct=direct, seconds=seconds, source=source)
        except OSError as error:
            seen.end, seen.error = "reset", f"connect: {error}"
            return seen
        seen.connected = True
        seen.port = sock.getsockname()[1]
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=host, session=session)

        def send(data: bytes) -> None:
            step = cut or len(data) or 1
            if first_cut and data:
                sock.sendall(data[:first_cut])
                time.sleep(pause or 0.02)
                data = data[first_cut:]
            for at in range(0, len(data), step):
                sock.sendall(data[at : at + step])
                if pause:
                    time.sleep(pause)

        def receive() -> None:
            data = sock.recv(65536)
            seen.raw += data if len(seen.raw) < 1 << 20 else b""
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()

        try:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    send(outgoing.read())
                    receive()
            cut = first_cut = 0
            pause = 0.0
            seen.handshake = True
            seen.certificate = tls.getpeercert(True) or b""
            seen.version, seen.cipher = tls.version() or "", (tls.cipher() or ("",))[0]
            seen.alpn = tls.selected_alpn_protocol() or ""
            seen.reused = bool(tls.session_reused)
            if request:
                tls.write(request)
            send(outgoing.read())
            while True:
                try:
                    data = tls.read(1 << 17)
                except ssl.SSLWantReadError:
                    send(outgoing.read())
                    receive()
                    continue
                if not data:
                    break
                seen.body += data
            seen.end = "clean"
        except ssl.SSLZeroReturnError:
            seen.end = "clean"
        except ssl.SSLError as error:
            seen.error = error.reason or str(error)
            seen.end = "cut" if "EOF" in seen.error or isinstance(error, ssl.SSLEOFError) else "alert"
            with contextlib.suppress(OSError):
                sock.sendall(outgoing.read())
        except TimeoutError:
            seen.end = "timeout"
        except OSError as error:
            seen.end, seen.error = "reset", str(error)
        seen.session = tls.session if seen.handshake else None
        if seen.end == "alert" and not seen.raw:
            seen.end = "cut"
        seen.seconds = time.monotonic() - began
        sock.close()
        return seen

    def check_resumes(self, port: int, body: bytes, context: ssl.SSLContext | None = None) -> None:
        """The server itself resumes sessions of whoever comes directly. Raises WrongError where it does not."""
        context = context or self.client_context(strict=True, direct=True)
        session = self.visit(port, context=context, direct=True).session
        seen = self.visit(port, context=context, session=session, direct=True)
        check(body in seen.body and seen.reused, f"the server alone does not resume: {seen}")
        self.directly(f"{VALIDATING} client", f"resumed, {seen.version}")

    def control(
        self,
        port: int,
        host: str | None = HOST,
        *,
        served: bool | None = True,
        kinds: Sequence[bool] = (False, True),
        body: bytes = b"",
        **how: Any,
    ) -> list[Seen]:
        """Visits without nfw, by both kinds of client: ``kinds`` as ``strict`` of :meth:`visit`. Raises WrongError
        where they are not ``served`` (with ``body`` in it), or are though they should not; None: only kept."""
        found = []
        for strict in kinds:
            seen = self.visit(port, host, strict=strict, direct=True, **how)
            who = f"{VALIDATING if strict else CARELESS} client"
            if served is not None:
                check((bool(seen.body) and body in seen.body) is served, f"directly, {who}: {seen}")
            self.directly(who, seen)
            found.append(seen)
        return found

    def s_client(self, port: int, host: str | None, *options: str, address: str = ADDRESS) -> Seen:
        """One request made directly by openssl's client, which takes whatever it is shown."""
        (configuration := self.firewall.dir / "any_level.cnf").write_bytes(ANY_LEVEL)
        command = [
            "openssl",
            "s_client",
            "-connect",
            f"{address}:{port}",
            "-servername",
            host or "",
            "-quiet",
            *options,
        ]
        done = self.lab.server.run(
            command, SECONDS, False, input=REQUEST.decode(), env={"OPENSSL_CONF": str(configuration)}
        )
        complaint = done.stderr.strip().rpartition("\n")[2]
        return Seen(body=done.stdout.encode(), end="alert" if done.returncode else "clean", error=complaint)

    def visit_all(self, context: Serving) -> Seen:
        """One visit to a server made for it."""
        with self.serving(context) as server:
            return self.visit(server.port)

    def open(self, port: int, **how: Any) -> Open:
        """A connection on which the handshake is done."""
        return Open(self, port, **how)

    def raw(
        self,
        port: int,
        pieces: bytes | Sequence[bytes],
        *,
        address: str = ADDRESS,
        direct: bool = False,
        pause: float = 0.0,
        seconds: float | None = None,
        fin: bool = False,
    ) -> Seen:
        """Send bytes as they are and collect all that comes."""
        if not direct:
            self.controls.kinds.add(SCRIPTED)
        seen = Seen()
        began = time.monotonic()
        sock = self.connect(port, address=address, direct=direct, seconds=seconds)
        seen.connected, seen.port = True, sock.getsockname()[1]
        try:
            for piece in (pieces,) if isinstance(pieces, bytes) else pieces:
                sock.sendall(piece)
                if pause:
                    time.sleep(pause)
            if fin:
                sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                seen.raw += data
            seen.end = "cut"
        except TimeoutError:
            seen.end = "timeout"
        except OSError as error:
            seen.end, seen.error = "reset", str(error)
        sock.close()
        seen.seconds = time.monotonic() - began
        return seen

    def worker(self) -> int:
        """The process number of the one TLS worker."""
        found: list[int] = []

        def alone() -> bool:
            found[:] = pids_named(self.firewall.pid(), "nfw tls")
            return len(found) == 1

        wait_for(alone, 10)
        return found[0]

    def _workers(self) -> list[int]:
        found = pids_named(self.firewall.pid(), "nfw tls")
        check(bool(found), "there is no TLS worker")
        return found

    def cpu(self) -> float:
        """Seconds of CPU the TLS workers have had."""
        ticks = 0
        for pid in self._workers():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes the TLS workers have in memory."""
        pages = 0
        for pid in self._workers():
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def mints(self) -> int:
        """Leafs the workers have had to ask for so far."""
        return sum(one["leaf_cache"]["misses"] for one in _with_leafs(self.firewall.status()))

    def verdict(self, seen: Seen, port: int, seconds: float = 8.0) -> dict[str, Any]:
        """The log's tls record of what a client saw."""
        return self.log.wait(seen.port, port, "tls", seconds)


def _with_leafs(told: Any) -> list[dict[str, Any]]:
    """Every mapping with counters of leafs in what `nfw status` says."""
    found = []
    if isinstance(told, dict):
        if "leaf_cache" in told:
            found.append(told)
        for value in told.values():
            found += _with_leafs(value)
    elif isinstance(told, list):
        for value in told:
            found += _with_leafs(value)
    return found


class Open:
    """A client's connection that stays open. With a time-out of its own for every read."""

    def __init__(
        self,
        bench: Bench,
        port: int,
        host: str | None = HOST,
        *,
        address: str = ADDRESS,
        buffer: int = 0,
        strict: bool = True,
        direct: bool = False,
    ) -> None:
        self.raw_sock = bench.connect(port, address=address, buffer=buffer, direct=direct)
        self.port: int = self.raw_sock.getsockname()[1]
        if not direct:
            bench.controls.kinds.add(VALIDATING if strict else CARELESS)
        context = bench.client_context(strict=strict, direct=direct)
        self.sock = context.wrap_socket(self.raw_sock, server_hostname=host, suppress_ragged_eofs=False)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly that much, or what there was before the end."""
        got = b""
        while len(got) < size:
            try:
                data = self.sock.recv(size - len(got))
            except OSError:
                break
            if not data:
                break
            got += data
        return got

    def read_end(self, seconds: float) -> str:
        """How it ends: clean, cut, reset, timeout."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(65536):
                pass
        except ssl.SSLError as error:
            if isinstance(error, TimeoutError):
                return "timeout"
            # Python shows a reset as an end of file, too, but not as one that OpenSSL saw.
            return "cut" if error.reason == "UNEXPECTED_EOF_WHILE_READING" else "reset"
        except TimeoutError:
            return "timeout"
        except ConnectionError:
            return "reset"
        return "clean"

    def close(self) -> None:
        self.sock.close()


# -- probes ------------------------------------------------------------------------------------------------------------

OK = "OK"
_ONLY_ASKED = {"REVOKED", "UNKNOWN", "MUST_STAPLE"}  # of good certificates that somebody says something about
_ENDS = {"reject": ("reset", "alert"), "drop": ("cut",)}  # an alert where it says what a plain RST cannot


@dataclass
class Probe:
    """One server and what must become of it. ``expected`` is OK or the statuses of the log that a block may have.

    ``direct``: the careless client must be served without nfw (the server is able to do harm); otherwise it is only
    kept what it sees. ``alone``: what the validating client sees then, "served" or "refused": what no library objects
    to is for nfw to find. Where it is not said, it follows from ``expected``: OpenSSL minds what is wrong with a
    certificate, and does not ask whether it was revoked. ``identity``: certificate and key that the careless client has
    for the server, PEM. ``tool``: options of openssl's ``s_client``, which then is the careless client: of Python's
    nobody can choose the groups. ``reason``: part of the log's reason or detail. ``extra`` looks at
    the log record and at what the validating client saw, and returns what is wrong, or "".
    """

    name: str
    context: Serving | Handler
    expected: str | tuple[str, ...] = OK
    host: str | None = HOST
    address: str = ADDRESS
    direct: bool = True
    reason: str = ""
    method: str = ""
    after: bool = False  # refused after its handshake (revocation)
    extra: Callable[[dict[str, Any], Seen], str] | None = None
    request: bytes = REQUEST
    body: bytes = b"GRADE"
    seconds: float = SECONDS
    port: int = 0
    identity: Path | None = None
    alone: str = ""
    page: str = ""  # of the responder, for this server's certificate
    tool: tuple[str, ...] = ()

    def expected_alone(self) -> str:
        """What the validating client sees without nfw; "" where it may be anything."""
        if self.alone or not self.direct:
            return self.alone
        return "served" if self.expected == OK or set(self.expected) <= _ONLY_ASKED else "refused"


def run_probe(bench: Bench, probe: Probe) -> str:
    """What is wrong, "" if nothing."""
    how: dict[str, Any] = {"address": probe.address, "port": probe.port}
    how["context" if isinstance(probe.context, Serving) else "handler"] = probe.context
    with bench.serving(**how) as server:
        if wrong := _control(bench, probe, server):
            return f"{probe.name}: {wrong}"
        for strict in (True, False):
            server.forget()
            # A lone client's end of file, not its patience, is what ends a server; give it a moment.
            seen = bench.visit(
                server.port,
                probe.host,
                address=probe.address,
                strict=strict,
                request=probe.request,
                seconds=probe.seconds,
            )
            record = bench.verdict(seen, server.port)
            wrong = _judge(bench, probe, seen, server, record)
            if not wrong and strict and probe.extra is not None:
                wrong = probe.extra(record, seen)
            if wrong:
                who = "validating" if strict else "careless"
                return f"{probe.name}: {who} client: {wrong}"
    if probe.page and probe.expected == ("UNKNOWN",) and not bench.web.asked(probe.page):
        return f"{probe.name}: nobody was asked"
    if probe.expected != OK and isinstance(server, RealServer) and (told := server.told()):
        return f"{probe.name}: in the end it had heard {told}"
    return ""


def _control(bench: Bench, probe: Probe, server: Server | RealServer) -> str:
    """What is wrong with what is seen without nfw, "" if nothing."""
    for strict in (False, True):
        context = bench.client_context(strict=strict, direct=True)
        if probe.identity and not strict:
            context.load_cert_chain(probe.identity)
        if probe.tool and not strict:
            seen = bench.s_client(server.port, probe.host, *probe.tool, address=probe.address)
        else:
            seen = bench.visit(
                server.port, probe.host, address=probe.address, direct=True, request=probe.request, context=context
            )
        what = "served" if probe.body in seen.body else "refused"
        if not strict and probe.direct and what != "served":
            return f"the server alone does not serve: {seen} {server.errors}"
        if strict and probe.expected_alone() not in (what, ""):
            return f"the server alone, to a validating client: {what}, {seen} {server.errors}"
        bench.directly(f"{VALIDATING if strict else CARELESS} client", what)
    if isinstance(server, RealServer):
        server.heard_directly()
    return ""


def _judge(bench: Bench, probe: Probe, seen: Seen, server: Server, record: dict[str, Any]) -> str:
    status = record["nfw"]["status"]
    said = f"{status} {record['nfw']['reason']} {record['nfw'].get('detail', '')}; client saw {seen}"
    if probe.reason and probe.reason not in said:
        return f"reason is not {probe.reason}: {said}"
    check = record.get("revocation_check", {})
    if probe.method and check.get("method") != probe.method:
        return f"method is not {probe.method}: {check} {said}"
    if probe.expected == OK:
        return "" if probe.body in seen.body and status == "OK" else f"not served: {said} {server.errors}"
    if seen.body or server.got:
        return f"{len(seen.body)} bytes reached the client, {len(server.got)} the server; {said}"
    if status not in probe.expected:
        return f"wanted {'/'.join(probe.expected)}: {said}"
    action = "drop" if bench.policy == "drop" else "reject"
    wanted = ("clean",) if probe.after and action == "drop" else _ENDS[action]
    if seen.end not in wanted:
        return f"wanted to end by {'/'.join(wanted)}: {said}"
    if seen.handshake is not probe.after:
        return f"{'no ' * probe.after}handshake with the client: {said}"
    return ""


def run_probes(bench: Bench, probes: Sequence[Probe]) -> str:
    """Run them; raises WrongError with all that went wrong."""
    wrong = [text for probe in probes if (text := run_probe(bench, probe))]
    if wrong:
        raise WrongError("; ".join(wrong))
    blocked = sum(probe.expected != OK for probe in probes)
    served = len(probes) - blocked
    return ", ".join([*([f"{blocked} blocked"] if blocked else []), *([f"{served} served"] if served else [])])

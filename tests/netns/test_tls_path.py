"""The TLS worker with difficult peers: slow, vanishing, cutting off, closing early; each end happens once, cleanly."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import select
import signal
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.tls.clienthello import ClientHello, ClientHelloReader
from nfw.events import timestamp
from tests.firewall import PATIENCE, Firewall, children, pids_named, wait_for
from tests.lab import Lab

pytestmark = pytest.mark.netns

POLICY = """\
name: tlspath
workers: 1
stateless: {{default: forward}}
tls:
  ca: {{certificate: ca.pem, private_key: ca.key}}
  trust: [lab-root.pem]
  scopes: [{{destination_ports: [443, "9440-9449"]}}]
open_flows: {{which: all, action: {action}}}
stateful:
  order: action
  stream_exception: drop
  rule_files: [tlspath.rules]
"""

RULES = """\
drop http any any -> any any (msg:"uri"; http.uri; content:"/secret"; startswith; sid:1;)
drop http2 any any -> any any (msg:"uri2"; http.uri; content:"/secret"; startswith; sid:2;)
reject http any any -> any any (msg:"rejected"; http.uri; content:"/reject"; startswith; sid:3;)
drop http any any -> any any (msg:"body"; http.request_body; content:"evil-body"; sid:4;)
"""

ADDRESS = "203.0.113.10"
NAME = "site-a.test"
MARKER = b"PLAINTEXT-MARKER"
RESET = struct.pack("ii", 1, 0)
DELAYED_ACK = 0.03  # seconds the kernel waits for data to acknowledge with, at least: 40 ms less its clock's grain
# Python 3.11.2 sets it on every context, and a FIN without close_notify would look like a clean end.
IGNORE_UNEXPECTED_EOF = 0x80
Handler = Callable[[ssl.SSLSocket], None]


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("tlspath", POLICY.format(action="drop"), RULES))
        yield firewall


class Server:
    """A TLS server of the test's own on ADDRESS; `handler` has every connection in a thread."""

    def __init__(self, lab: Lab, handler: Handler, port: int = 9443, name: str = NAME, plain: bool = False) -> None:
        self.port = port
        self.handler = handler
        self.errors: list[BaseException] = []
        self.plain = plain
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.options &= ~IGNORE_UNEXPECTED_EOF
        certificates = lab.dir / "certificates"
        self.context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        with lab.in_namespace("server"):
            self.listener = socket.create_server((ADDRESS, port), backlog=512)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.threads: list[threading.Thread] = []

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                thread = threading.Thread(target=self._one, args=(sock,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _one(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        conn = sock
        try:
            if not self.plain:
                conn = self.context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            self.handler(conn)  # type: ignore[arg-type]
        except BaseException as error:
            self.errors.append(error)
        finally:
            conn.close()

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)
        for thread in self.threads:
            thread.join(5)


def connect(lab: Lab, port: int = 9443, seconds: float = PATIENCE, buffer: int = 0) -> socket.socket:
    """`buffer`: bytes the client's kernel takes before its program reads; 0 is the system's choice, megabytes."""
    with lab.in_namespace("client"):
        sock = socket.socket()
    sock.settimeout(seconds)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect((ADDRESS, port))
    return sock


def trusting(firewall: Firewall) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~IGNORE_UNEXPECTED_EOF
    context.load_verify_locations(firewall.ca)
    return context


def dial(
    firewall: Firewall, port: int = 9443, name: str = NAME, seconds: float = PATIENCE, buffer: int = 0
) -> ssl.SSLSocket:
    sock = connect(firewall.lab, port, seconds, buffer)
    return trusting(firewall).wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False)


def read_all(conn: ssl.SSLSocket) -> tuple[bytes, str]:
    """Everything, and how it ended: clean, cut (FIN without close_notify) or reset."""
    got = bytearray()
    try:
        while data := conn.recv(1 << 18):
            got += data
    except ssl.SSLError as error:  # Python 3.11.2 does not say SSLEOFError here, later ones do
        # Python shows a reset as an end of file, too, but not as one that OpenSSL saw.
        return bytes(got), "cut" if error.reason == "UNEXPECTED_EOF_WHILE_READING" else "reset"
    except ConnectionError:
        return bytes(got), "reset"
    return bytes(got), "clean"


def until_delivered(sock: socket.socket) -> None:
    def sent() -> bool:
        return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0] == 0

    wait_for(sent, PATIENCE)


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    conn.close()


def worker(firewall: Firewall) -> int:
    """The one TLS worker."""
    return firewall.the_only("nfw tls")


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def at_rest(pid: int) -> None:
    """Wait until the process has done what there was to do: half a second without work."""

    def rests() -> bool:
        busy = cpu(pid)
        time.sleep(0.5)
        return cpu(pid) == busy

    wait_for(rests, PATIENCE)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(autouse=True)
def no_leak(firewall: Firewall) -> Iterator[None]:
    """Every test leaves the worker with the descriptors it had, and without a bug met."""
    pid = worker(firewall)
    before = descriptors(pid)
    test_began[0] = timestamp(time.time())
    yield
    if worker(firewall) == pid:
        wait_for(lambda: descriptors(pid) <= before, 60, lambda: f"{descriptors(pid)} descriptors, {before} before")
    assert "Traceback" not in firewall.output.read_text()


def last_flow(firewall: Firewall, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tls and flow records of this test's connection from that client port; ports come round again."""

    def wanted(event: dict[str, Any]) -> bool:
        return bool(event["src_port"] == port and event["timestamp"] >= test_began[0])

    return firewall.wait_event("tls", wanted), firewall.wait_event("flow", wanted)


test_began = [""]
BLOB = random.Random(1).randbytes(1 << 20)


def test_a_stalled_download_costs_no_memory(firewall: Firewall) -> None:
    pieces = 48

    def send(conn: ssl.SSLSocket) -> None:
        for _ in range(pieces):
            conn.sendall(BLOB)
        conn.unwrap()

    with Server(firewall.lab, send), dial(firewall) as conn:
        pid = worker(firewall)
        conn.recv(1)
        at_rest(pid)
        before, busy = rss(pid), cpu(pid)
        time.sleep(1.0)
        assert rss(pid) - before < 1 << 20
        assert cpu(pid) - busy < 0.1
        got, how = read_all(conn)
        assert rss(pid) - before < 12 << 20
    assert how == "clean"
    assert hashlib.sha256(BLOB[:1] + got).digest() == hashlib.sha256(BLOB * pieces).digest()


def test_a_stalled_upload_costs_no_memory(firewall: Firewall) -> None:
    pieces, go, sums = 48, threading.Event(), []

    def receive(conn: ssl.SSLSocket) -> None:
        go.wait(60)
        sums.append(hashlib.sha256(read_all(conn)[0]).digest())

    with Server(firewall.lab, receive):
        pid = worker(firewall)
        conn = dial(firewall)
        port = conn.getsockname()[1]

        def push() -> None:
            for _ in range(pieces):
                conn.sendall(BLOB)
            with contextlib.suppress(OSError):
                conn.unwrap()

        thread = threading.Thread(target=push)
        thread.start()
        time.sleep(0.7)
        at_rest(pid)
        before, busy = rss(pid), cpu(pid)
        time.sleep(1.0)
        assert rss(pid) - before < 1 << 20
        assert cpu(pid) - busy < 0.1
        go.set()
        thread.join(60)
        conn.close()
    assert sums == [hashlib.sha256(BLOB * pieces).digest()]
    tls, flow = last_flow(firewall, port)
    assert tls["tls"]["bytes_toserver"] == flow["flow"]["bytes_toserver"] == pieces << 20


@pytest.mark.parametrize("pause", [0.0, 6.5])  # more than the worker lingers
def test_a_client_that_closes_its_half_gets_the_answer(firewall: Firewall, pause: float) -> None:
    heard = []

    def answer(conn: ssl.SSLSocket) -> None:
        heard.append(read_all(conn))
        conn.sendall(BLOB)  # the worker can take all of it, so its session is over while the client waits
        with contextlib.suppress(OSError):
            conn.unwrap()

    with Server(firewall.lab, answer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting(firewall).wrap_bio(incoming, outgoing, server_hostname=NAME)
        with connect(firewall.lab, buffer=65536) as sock:
            pump(sock, tls.do_handshake, incoming, outgoing)
            tls.write(b"question")
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            sock.sendall(outgoing.read())
            sock.shutdown(socket.SHUT_WR)
            time.sleep(pause)
            rest = b""
            while data := sock.recv(1 << 18):
                rest += data
        # Python's object reads nothing after its own close_notify, so this counts ciphertext.
        assert len(rest) > len(BLOB)
    assert heard == [(b"question", "clean")]


def pump(
    sock: socket.socket,
    work: Callable[[], object],
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    cut: int = 1 << 20,
) -> None:
    """Do `work` over memory buffers, sending `cut` bytes at a time."""
    while True:
        try:
            work()
        except ssl.SSLWantReadError:
            data = outgoing.read()
            for at in range(0, len(data), cut):
                sock.sendall(data[at : at + cut])
            incoming.write(sock.recv(65536))
            continue
        sock.sendall(outgoing.read())
        return


@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_a_server_that_sends_and_closes_at_once(firewall: Firewall, pause: float) -> None:
    def send(conn: ssl.SSLSocket) -> None:
        conn.sendall(BLOB * 3)
        select.select([], [conn], [], PATIENCE)  # room for the close_notify
        with contextlib.suppress(OSError):
            conn.settimeout(0.01)
            conn.unwrap()

    with Server(firewall.lab, send):
        conn = dial(firewall, buffer=65536)
        time.sleep(pause)
        got, how = read_all(conn)
        conn.close()
    assert (len(got), how) == (3 << 20, "clean")
    assert got == BLOB * 3


def test_a_server_that_obeys_nagle_answers_at_once(firewall: Firewall) -> None:
    """Its tickets and its answer are two segments, and the second waits until the first is acknowledged."""

    def handler(conn: ssl.SSLSocket) -> None:
        conn.sendall(conn.recv(100))
        conn.recv(100)

    took = []
    with Server(firewall.lab, handler):
        for _ in range(10):
            with dial(firewall) as conn:
                began = time.monotonic()
                conn.sendall(b"request\n")
                assert conn.recv(100) == b"request\n"
                took.append(time.monotonic() - began)
    assert min(took) < DELAYED_ACK, took


def test_a_server_that_speaks_first(firewall: Firewall) -> None:
    def handler(conn: ssl.SSLSocket) -> None:
        conn.sendall(b"220 at your service")
        conn.sendall(conn.recv(100))
        conn.unwrap()

    with Server(firewall.lab, handler), dial(firewall) as conn:
        assert conn.recv(100) == b"220 at your service"
        conn.sendall(b"EHLO")
        assert read_all(conn) == (b"EHLO", "clean")


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_a_cut_stream_stays_cut(firewall: Firewall, ending: str) -> None:
    def send(conn: ssl.SSLSocket) -> None:
        conn.sendall(BLOB * 2)
        until_delivered(conn)
        if ending == "reset":
            reset(conn)
        else:
            conn.shutdown(socket.SHUT_RDWR)

    with Server(firewall.lab, send):
        conn = dial(firewall, buffer=65536)
        port = conn.getsockname()[1]
        time.sleep(1.0)
        got, how = read_all(conn)
        conn.close()
    assert how == ending
    assert got == BLOB * 2  # what TCP would have delivered before the end
    tls, _ = last_flow(firewall, port)
    # A cut stream is an error to OpenSSL, and its client says so with an alert.
    assert tls["nfw"]["reason"] == ("upstream_reset" if ending == "reset" else "client_error")
    assert "to_client" in tls["tls"]["truncated"]


def test_a_client_hello_byte_by_byte(firewall: Firewall) -> None:
    with Server(firewall.lab, lambda conn: conn.sendall(b"hello")), connect(firewall.lab) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting(firewall).wrap_bio(incoming, outgoing, server_hostname=NAME)
        pump(sock, tls.do_handshake, incoming, outgoing, 1)
        pump(sock, lambda: tls.read(5), incoming, outgoing)


def test_idle_and_half_open_sessions_cost_no_cpu_and_a_stalled_hello_ends(firewall: Firewall) -> None:
    done = threading.Event()

    def wait(conn: ssl.SSLSocket) -> None:
        match conn.recv(1):
            case b"f":  # FIN, and keep reading
                conn.shutdown(socket.SHUT_WR)
            case b"r":  # FIN, then RST
                conn.shutdown(socket.SHUT_WR)
                time.sleep(0.3)
                reset(conn)
                return
            case b"s":  # more than the client reads, then RST
                with contextlib.suppress(OSError):
                    conn.settimeout(0.3)
                    conn.sendall(BLOB * 20)
                reset(conn)
                return
        done.wait(60)
        reset(conn)

    with Server(firewall.lab, wait):
        stalled = connect(firewall.lab, seconds=60)
        stalled.send(b"\x16")
        began = time.monotonic()
        conns = []
        for kind in b"ffrrss..":
            conn = dial(firewall)
            conn.sendall(bytes([kind]))
            conns.append(conn)
        halves = [connect(firewall.lab) for _ in range(20)]
        for half in halves[:10]:
            half.send(b"\x16\x03\x01")
        shut = dial(firewall)
        shut.shutdown(socket.SHUT_WR)
        time.sleep(1.0)
        pid = worker(firewall)
        at_rest(pid)
        busy = cpu(pid)
        time.sleep(1.0)
        assert cpu(pid) - busy <= 0.05
        done.set()
        with contextlib.suppress(ConnectionError):
            assert stalled.recv(1) == b""
        assert time.monotonic() - began > 8
        port = stalled.getsockname()[1]
        for sock in (*conns, *halves, shut, stalled):
            sock.close()
    tls, _ = last_flow(firewall, port)
    assert (tls["nfw"]["status"], tls["nfw"]["reason"]) == ("NOT_TLS", "hello_timeout")


def test_a_reset_after_the_servers_fin_reaches_an_uploading_client(firewall: Firewall) -> None:
    def answer_early(conn: ssl.SSLSocket) -> None:
        conn.recv(1)
        conn.sendall(b"413")
        conn.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        reset(conn)

    with Server(firewall.lab, answer_early):
        conn = dial(firewall)
        port = conn.getsockname()[1]

        def upload() -> None:
            for _ in range(400):
                conn.sendall(b"x" * 1000)
                time.sleep(0.01)

        with pytest.raises(OSError, match=r"(?i)reset|pipe|EOF"):
            upload()
        conn.close()
    tls, _ = last_flow(firewall, port)
    assert tls["nfw"]["reason"] == "upstream_reset"


def test_three_hundred_sessions_at_once(firewall: Firewall) -> None:
    pid = worker(firewall)
    context = trusting(firewall)
    context.wrap_socket(connect(firewall.lab, 443), server_hostname=NAME).close()
    busy = cpu(pid)
    conns = [context.wrap_socket(connect(firewall.lab, 443), server_hostname=NAME) for _ in range(300)]
    each = (cpu(pid) - busy) / len(conns)
    for conn in conns:
        conn.sendall(b"GET /whoami HTTP/1.1\r\nHost: site-a.test\r\nConnection: close\r\n\r\n")
    for conn in conns:
        assert read_all(conn)[0].startswith(b"HTTP/1.1 200")
        conn.close()
    print(f"\n{each * 1000:.2f} ms of CPU per new connection")
    assert each < 0.05


@pytest.mark.parametrize("way", ["fin", "rst"])
@pytest.mark.parametrize("stage", ["connect", "handshake", "leaf"])
def test_a_client_that_vanishes_early(firewall: Firewall, stage: str, way: str) -> None:
    lab = firewall.lab
    (holder,) = pids_named(firewall.pid(), "nfw keyholder")
    release = threading.Event()
    name = {"rst": "allowed.test", "fin": "evil.test"}[way]

    def silent(conn: socket.socket) -> None:
        release.wait(60)

    with contextlib.ExitStack() as stack:
        if stage == "connect":
            lab.server.run(
                ["nft", "add table inet hush; add chain inet hush in { type filter hook input priority 0; }"]
            )
            stack.callback(lab.server.run, ["nft", "delete", "table", "inet", "hush"])
            lab.server.run(["nft", "add rule inet hush in tcp dport 9443 drop"])
        else:
            stack.enter_context(Server(lab, silent, name=name, plain=stage == "handshake"))
            stack.callback(release.set)
        if stage == "leaf":
            os.kill(holder, signal.SIGSTOP)
            stack.callback(os.kill, holder, signal.SIGCONT)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting(firewall).wrap_bio(incoming, outgoing, server_hostname=name)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        sock = connect(lab)
        port = sock.getsockname()[1]
        sock.sendall(outgoing.read())
        time.sleep(0.3)
        pid = worker(firewall)
        busy = cpu(pid)
        if way == "rst":
            reset(sock)
        else:
            sock.close()
        time.sleep(0.3)
        assert cpu(pid) - busy <= 0.05
        if way == "fin":
            if stage != "connect":
                release.set()
            return  # seen when the session reads again, or when the stage runs out of time
    record, _ = last_flow(firewall, port)
    assert (record["nfw"]["status"], record["nfw"]["reason"]) == ("ABORTED", "client_reset")


def test_a_key_holder_killed_with_a_question_open(firewall: Firewall) -> None:
    (holder,) = pids_named(firewall.pid(), "nfw keyholder")
    os.kill(holder, signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, (holder, signal.SIGKILL))
    timer.start()
    with Server(firewall.lab, lambda conn: conn.sendall(b"hello"), name="rsa.test"):
        conn = dial(firewall, name="rsa.test")
        assert conn.recv(5) == b"hello"
        conn.close()
    timer.join()
    assert holder not in children(firewall.pid())


def test_a_closed_port_is_a_reset_with_a_reason(firewall: Firewall) -> None:
    sock = connect(firewall.lab, 9449)
    port = sock.getsockname()[1]
    with pytest.raises(ConnectionResetError):
        trusting(firewall).wrap_socket(sock, server_hostname=NAME)
    sock.close()
    tls, flow = last_flow(firewall, port)
    assert (tls["nfw"]["status"], tls["nfw"]["reason"]) == ("UNREACHABLE", "connect_failed")
    assert "ECONNREFUSED" in tls["nfw"]["detail"]
    assert flow["flow"]["bytes_toserver"] == 0


def test_a_long_conversation_both_ways(firewall: Firewall) -> None:
    def echo(conn: ssl.SSLSocket) -> None:
        while data := conn.recv(65536):
            conn.sendall(data)
        conn.unwrap()

    chance = random.Random(2)
    sent = [chance.randbytes(chance.choice((60, 100, 5000, 40000))) for _ in range(300)]
    with Server(firewall.lab, echo):
        conn = dial(firewall)
        port = conn.getsockname()[1]
        for message in sent:
            conn.sendall(message)
            got = b""
            while len(got) < len(message):
                got += conn.recv(65536)
            assert got == message
        conn.unwrap()
        conn.close()
    tls, flow = last_flow(firewall, port)
    total = sum(map(len, sent))
    assert (tls["nfw"]["status"], tls["nfw"]["reason"]) == ("OK", "closed")
    assert (flow["flow"]["bytes_toserver"], flow["flow"]["bytes_toclient"]) == (total, total)
    assert (tls["tls"]["bytes_toserver"], tls["tls"]["bytes_toclient"]) == (total, total)


@pytest.mark.parametrize(("uri", "ending"), [("/secret", "cut"), ("/reject", "reset")])
def test_not_a_byte_of_a_second_request_arrives(firewall: Firewall, uri: str, ending: str) -> None:
    seen = bytearray()
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def serve(conn: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := conn.recv(65536):
                seen.extend(data)
                conn.sendall(response)

    first = b"GET /fine HTTP/1.1\r\nHost: site-a.test\r\n\r\n"
    with Server(firewall.lab, serve):
        conn = dial(firewall)
        port = conn.getsockname()[1]
        conn.sendall(first)
        assert conn.recv(1000) == response
        second = first.replace(b"/fine", uri.encode()).replace(b"\r\n\r\n", b"\r\nX: " + MARKER + b"\r\n\r\n")
        for at in range(0, 70, 7):
            conn.sendall(second[at : at + 7])
        conn.sendall(second[70:])
        assert read_all(conn) == (b"", ending)
        conn.close()
    assert bytes(seen) == first
    tls, _ = last_flow(firewall, port)
    assert (tls["nfw"]["status"], tls["nfw"]["reason"]) == ("POLICY", "rule")
    assert tls["nfw"]["rule_at"].endswith(f"tlspath.rules:{1 if uri == '/secret' else 3}")


def test_a_body_is_held_until_it_is_judged(firewall: Firewall) -> None:
    seen: list[bytes] = []

    def serve(conn: ssl.SSLSocket) -> None:
        seen.append(read_all(conn)[0])

    for body, passes in ((b"harmless-body", True), (b"an evil-body", False)):
        seen.clear()
        head = b"POST /form HTTP/1.1\r\nHost: site-a.test\r\nContent-Length: %d\r\n\r\n" % (len(body) + len(MARKER))
        with Server(firewall.lab, serve):
            conn = dial(firewall)
            conn.sendall(head)
            for at in range(0, len(body), 4):
                conn.sendall(body[at : at + 4])
                time.sleep(0.01)
            with contextlib.suppress(OSError):
                conn.sendall(MARKER)
                conn.settimeout(1)
                conn.unwrap()
            conn.close()
        got = b"".join(seen)
        if passes:
            assert got == head + body + MARKER
        else:
            assert b"an e" not in got
            assert MARKER not in got


def test_a_line_that_may_begin_a_request_waits_a_second(firewall: Firewall) -> None:
    """Then it goes on; and if it was a request, it ends before it is whole."""
    seen: list[bytes] = []

    def echo(conn: ssl.SSLSocket) -> None:
        while data := conn.recv(4096):
            seen.append(data)
            conn.sendall(data)

    with Server(firewall.lab, echo):
        with dial(firewall) as conn:
            began = time.monotonic()
            conn.sendall(b"before")
            assert conn.recv(100) == b"before"
            assert 0.5 < time.monotonic() - began < 5
        with dial(firewall) as conn:
            conn.sendall(b"GE")
            assert conn.recv(100) == b"GE"
            conn.sendall(b"T /secret HTTP/1.1\r\nHost: site-a.test\r\n\r\n" + MARKER)
            with pytest.raises(ssl.SSLEOFError):
                conn.recv(100)
    got = b"".join(seen)
    assert got.startswith(b"beforeGE")
    assert MARKER not in got
    assert b"\r\n\r\n" not in got


def test_one_of_two_h2_streams_is_blocked(firewall: Firewall) -> None:
    answer = firewall.lab.curl(
        *("https://site-a.test/whoami", "https://site-a.test/secret/h2", "--http2", "-Z", "-m", "3"),
        cacert=firewall.ca,
        timeout=4.0,
    )
    assert answer.returncode != 0
    assert not [request for request in firewall.lab.requests() if request["uri"].startswith("/secret/h2")]


def test_the_server_resumes_sessions_of_one_policy(firewall: Firewall) -> None:
    """nginx says so, and so does the log; the same client with the same name alone, and anew under another policy."""

    def resumed(host: str = "allowed.test") -> bool:
        said = firewall.lab.curl(f"https://{host}/whoami", "-w", "%{local_port}", cacert=firewall.ca).stdout
        answer, _, port = said.rpartition("\n")
        told = json.loads(answer)
        record, _ = last_flow(firewall, int(port))
        assert record["nfw"]["status"] == "OK", record
        assert len(record["tls"]["chain"]) == 2
        assert (told["resumed"] == "r") is record["tls"]["server"].get("resumed", False)
        return told["resumed"] == "r"

    text = POLICY.format(action="drop")
    for _ in range(2):
        firewall.apply(firewall.policy("tlspath", text, RULES))
        assert [resumed(), resumed(), resumed()] == [False, True, True]
        assert [resumed("http1.test"), resumed("http1.test")] == [False, True]
    firewall.apply(firewall.policy("without", text.replace("tls:\n", "tls:\n  resumption: false\n"), RULES))
    assert [resumed(), resumed()] == [False, False]
    firewall.apply(firewall.policy("tlspath", text, RULES))


def test_a_server_that_cannot_bear_being_offered_a_session(firewall: Firewall) -> None:
    """It is called again, over a new connection, and the client sees nothing of that."""
    offered: list[bool] = []
    certificates = firewall.lab.dir / "certificates"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{NAME}.pem", certificates / f"{NAME}.key")

    def serve(sock: Any) -> None:
        hello = sock.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL)
        hello = sock.recv(5 + int.from_bytes(hello[3:5], "big"), socket.MSG_PEEK | socket.MSG_WAITALL)
        said = ClientHelloReader().feed(hello)
        assert isinstance(said, ClientHello)
        offered.append(said.has_psk)
        if offered[-1]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        with context.wrap_socket(sock, server_side=True) as conn:
            conn.recv(1024)
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def records() -> list[dict[str, Any]]:
        return [record for record in firewall.events("tls") if record["dest_port"] == 9448]

    before = len(records())
    with Server(firewall.lab, serve, port=9448, plain=True):
        for expected in ([False], [False, True, False], [False, True, False, False]):
            there = "--resolve", f"{NAME}:9448:{ADDRESS}"
            answer = firewall.lab.curl(f"https://{NAME}:9448/", *there, cacert=firewall.ca)
            assert answer.stdout == "ok"
            assert offered == expected
    wait_for(lambda: len(records()) == before + 3, PATIENCE)
    remarks = [record["nfw"].get("remarks", []) for record in records()[before:]]
    assert ["resumption_failed" in one for one in remarks] == [False, True, False]


def test_cpu_of_bulk(firewall: Firewall) -> None:
    pid = worker(firewall)
    busy = cpu(pid)
    answer = firewall.lab.client.run(
        ["sh", "-c", f"curl -sS --cacert {firewall.ca} -r 0-268435455 https://site-a.test/shared/big | wc -c"]
    )
    assert answer.stdout.strip() == str(256 << 20)
    print(f"\n{(cpu(pid) - busy) * 4:.2f} s of CPU per GiB")


class Tap:
    """Counts the TCP packets with FIN or RST that arrive in a namespace for or from a port."""

    def __init__(self, lab: Lab, role: str) -> None:
        with lab.in_namespace(role):  # type: ignore[arg-type]
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.sock.setblocking(False)

    def flags(self, port: int) -> list[int]:
        """The FIN and RST bits of what arrived since, of connections with that port on either side."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, about = self.sock.recvfrom(65536)
                header = (data[0] & 15) * 4
                if about[2] == 4 or data[9] != 6:  # PACKET_OUTGOING
                    continue
                if port in struct.unpack_from("!HH", data, header) and data[header + 13] & 5:
                    found.append(data[header + 13] & 5)
        return found


def test_the_end_of_a_generation(firewall: Firewall) -> None:
    """Drop: not a packet to either side; reject: RST to both. Late, since the worker is another after it."""
    done = threading.Event()

    def wait(conn: ssl.SSLSocket) -> None:
        conn.sendall(b"\0" * 60)
        done.wait(60)

    for action, expected in (("drop", set()), ("reject", {4})):
        done.clear()
        with Server(firewall.lab, wait):
            conn = dial(firewall)
            assert conn.recv(60) == b"\0" * 60
            taps = [Tap(firewall.lab, role) for role in ("client", "server")]
            port = conn.getsockname()[1]
            # What happens to open sessions is said by the policy that comes.
            firewall.apply(firewall.policy("tlspath", POLICY.format(action=action)))
            seen: list[set[int]] = [set(), set()]

            def all_seen(taps: list[Tap] = taps, seen: list[set[int]] = seen, expected: set[int] = expected) -> bool:
                for tap, flags in zip(taps, seen, strict=True):
                    flags.update(tap.flags(9443))
                return all(flags >= expected for flags in seen)

            wait_for(all_seen, PATIENCE)
            firewall.settle()
            time.sleep(0.5)
            all_seen()
            assert seen == [expected, expected]
            for tap in taps:
                tap.sock.close()
            reset(conn)
            done.set()
        tls, _ = last_flow(firewall, port)
        assert (tls["nfw"]["status"], tls["nfw"]["reason"]) == ("ENDED", "policy_change")


def test_every_session_was_logged_once_and_no_plaintext(firewall: Firewall) -> None:
    def counted(kind: str) -> dict[int, int]:
        counts: dict[int, int] = {}
        for event in firewall.events(kind):
            if kind == "tls" or event.get("tls_inspected"):
                counts[event["flow_id"]] = counts.get(event["flow_id"], 0) + 1
        return counts

    wait_for(lambda: counted("tls").keys() == counted("flow").keys(), PATIENCE)
    tls = counted("tls")
    assert tls
    assert set(tls.values()) == set(counted("flow").values()) == {1}
    assert all(event["nfw"]["status"] and event["nfw"]["reason"] for event in firewall.events("tls"))
    text = firewall.log.read_bytes()
    assert MARKER not in text
    assert b"evil-body" not in text

"""Fetching from hosts a stranger's certificate names: limits hold, and nothing private is talked to."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nfw import httpfetch
from nfw.httpfetch import FetchError, fetch, permitted

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
LIMIT = 1000
Serve = Callable[[socket.socket, bytes], None]


@pytest.mark.parametrize(
    ("address", "port", "allowed"),
    [
        ("93.184.216.34", 80, True),
        ("2606:2800:220:1::1", 80, True),
        ("93.184.216.34", 8080, False),
        ("93.184.216.34", 22, False),
        ("127.0.0.1", 80, False),
        ("::1", 80, False),
        ("0.0.0.0", 80, False),
        ("10.1.2.3", 80, False),
        ("172.16.0.1", 80, False),
        ("192.168.1.1", 80, False),
        ("100.64.0.1", 80, False),
        ("169.254.169.254", 80, False),
        ("fe80::1", 80, False),
        ("fe80::1%eth0", 80, False),
        ("fd00::1", 80, False),
        ("fec0::1", 80, False),
        ("224.0.0.1", 80, False),
        ("ff02::1", 80, False),
        ("255.255.255.255", 80, False),
        ("240.0.0.1", 80, False),
        ("198.18.0.1", 80, False),
        ("192.0.2.1", 80, False),
        ("::ffff:127.0.0.1", 80, False),
        ("::ffff:93.184.216.34", 80, True),
        ("64:ff9b::7f00:1", 80, False),
        ("64:ff9b::a9fe:a9fe", 80, False),
        ("2002:7f00:1::1", 80, False),
        ("2001:0:1:2::1", 80, False),
        ("not an address", 80, False),
    ],
)
def test_addresses(address: str, port: int, allowed: bool) -> None:
    assert permitted(address, port, ()) is allowed


def test_what_the_policy_allows() -> None:
    allow = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    assert permitted("10.1.2.3", 80, allow)
    assert permitted("10.1.2.3", 2560, allow)
    assert permitted("::ffff:10.1.2.3", 80, allow)
    assert permitted("fd00::5", 80, allow)
    assert not permitted("192.168.1.1", 80, allow)
    assert not permitted("127.0.0.1", 80, allow)


class Server:
    """Accepts until closed; ``serve`` has each connection, with the request's head and body, in a thread."""

    def __init__(self, serve: Serve) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/x"
        self.serve = serve
        self.requests: list[bytes] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                thread = threading.Thread(target=self._one, args=(sock,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    while len(body) < int(line[15:]):
                        body += sock.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + body)
            self.serve(sock, body)

    def close(self) -> None:
        self.stopped.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def served() -> Iterator[Callable[[Serve], Server]]:
    servers: list[Server] = []

    def start(serve: Serve) -> Server:
        servers.append(Server(serve))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answering(head: str, body: bytes = b"") -> Serve:
    return lambda sock, _: sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


OK = "HTTP/1.1 200 OK\nContent-Length: "


def reason(server: Server, seconds: float = 5.0, allow=LOOPBACK, url: str = "") -> str:
    with pytest.raises(FetchError) as caught:
        fetch(url or server.url, None, LIMIT, seconds, allow)
    return caught.value.reason


def test_get_and_post(served) -> None:
    server = served(lambda sock, body: answering(f"{OK}{len(body) + 2}", b"<" + body + b">")(sock, body))
    assert fetch(server.url, None, LIMIT, 5, LOOPBACK) == b"<>"
    assert fetch(server.url, b"question", LIMIT, 5, LOOPBACK) == b"<question>"
    get, post = server.requests
    assert get.startswith(b"GET /x HTTP/1.1\r\n")
    assert post.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"Content-Type: application/ocsp-request\r\n" in post


@pytest.mark.parametrize(
    ("head", "body", "wanted"),
    [
        ("HTTP/1.1 404 Not Found\nContent-Length: 0", b"", "http_404"),
        ("HTTP/1.1 500 Oops\nContent-Length: 0", b"", "http_500"),
        ("HTTP/1.1 204 No Content", b"", "http_204"),
        (f"{OK}{LIMIT + 1}", b"x" * (LIMIT + 1), "too_large"),
        ("HTTP/1.1 200 OK", b"x" * (LIMIT + 1), "too_large"),
        (f"{OK}99999999999999999999", b"x", "too_large"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n", "too_large"),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"zz\r\n", "malformed"),
        (f"{OK}10", b"short", "malformed"),
        ("SSH-2.0-OpenSSH_9.2", b"", "malformed"),
        ("HTTP/1.1 200 OK\n" + "X: y\n" * 200 + "Y: z", b"", "malformed"),
        ("HTTP/1.1 200 OK\nX: " + "y" * 70000, b"", "malformed"),
    ],
)
def test_answers_of_no_use(served, head: str, body: bytes, wanted: str) -> None:
    assert reason(served(answering(head, body))) == wanted


def test_nothing_listens(served) -> None:
    server = served(answering(OK + "0"))
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    with pytest.raises(FetchError, match="unreachable"):
        fetch(server.url, None, LIMIT, 5, LOOPBACK)
    server.listener = socket.create_server(("127.0.0.1", 0))  # for the fixture to close


def _never(sock: socket.socket, _: bytes) -> None:
    sock.settimeout(10)
    sock.recv(1)


def _drip(head: bytes) -> Serve:
    def serve(sock: socket.socket, _: bytes) -> None:
        for byte in head * 1000:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)

    return serve


@pytest.mark.parametrize(
    "serve", [_never, _drip(b"H"), _drip(b"HTTP/1.1 200 OK\r\nX: "), _drip(b"HTTP/1.1 200 OK\r\n\r\n")]
)
def test_the_time_is_for_all_of_it(served, serve: Serve) -> None:
    """A byte now and then buys a server nothing."""
    server = served(serve)
    began = time.monotonic()
    assert reason(server, 0.3) == "timeout"
    assert time.monotonic() - began < 10


def test_redirects(served) -> None:
    target = served(answering(OK + "5", b"there"))
    hops = served(answering(f"HTTP/1.1 301 Moved\nLocation: {target.url}\nContent-Length: 0"))
    assert fetch(hops.url, b"question", LIMIT, 5, LOOPBACK) == b"there"
    assert target.requests[0].startswith(b"POST "), "an OCSP request stays one"
    loop = served(answering("HTTP/1.1 302 Found\nLocation: /again\nContent-Length: 0"))
    assert reason(loop) == "redirects"
    assert len(loop.requests) == httpfetch.REDIRECTS + 1


@pytest.mark.parametrize("where", ["https://127.0.0.1/", "file:///etc/passwd", "ftp://127.0.0.1/", ""])
def test_redirects_elsewhere(served, where: str) -> None:
    server = served(answering(f"HTTP/1.1 301 Moved\nLocation: {where}\nContent-Length: 0"))
    assert reason(server) == ("forbidden_url" if where else "redirects")


def test_redirects_are_judged_like_any_address(served) -> None:
    server = served(answering("HTTP/1.1 301 Moved\nLocation: http://169.254.169.254/latest\nContent-Length: 0"))
    assert reason(server) == "forbidden_address"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1/", "forbidden_address"),
        ("http://localhost/", "forbidden_address"),
        ("http://[::1]/", "forbidden_address"),
        ("http://2130706433/", "forbidden_address"),
        ("http://0x7f.1/", "forbidden_address"),
        ("https://www.example.test/", "forbidden_url"),
        ("ldap://www.example.test/", "forbidden_url"),
        ("http://user:pass@93.184.216.34/", "forbidden_url"),
        ("http:///x", "forbidden_url"),
        ("http://93.184.216.34:99999/", "malformed"),
        ("http://93.184.216.34:22/", "forbidden_address"),
        ("http://" + "a" * 70 + ".test/", "no_address"),
        ("http://a\x00b/", "forbidden_url"),
    ],
)
def test_urls(url: str, wanted: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetch(url, None, LIMIT, 2.0)
    assert caught.value.reason == wanted


def test_a_name_is_connected_to_where_it_was_judged(monkeypatch: pytest.MonkeyPatch, served) -> None:
    """A second look-up could give another address."""
    server = served(answering(OK + "2", b"ok"))
    port = server.listener.getsockname()[1]
    asked = []

    def resolve(host: str, _port: int, **_: object):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetch(f"http://ocsp.example.test:{port}/", None, LIMIT, 5, LOOPBACK) == b"ok"
    assert asked == ["ocsp.example.test"]
    assert f"Host: ocsp.example.test:{port}".encode() in server.requests[0]

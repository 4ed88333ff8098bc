"""What a client does, hostile ones first: nothing it says may get bytes past the inspection."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import resource
import select
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from hpack import Decoder, Encoder
from OpenSSL import SSL

from tests.firewall import children
from tests.grade import pki, tls12, tls13
from tests.grade.bench import (
    ADDRESS,
    HOST,
    OK,
    REQUEST,
    RESET,
    SCRIPTED,
    SPARE,
    Bench,
    CannotRunError,
    Probe,
    Seen,
    Server,
    ServerSide,
    blocking,
    check,
    path,
    run_probes,
    server_context,
    until,
)
from tests.grade.case import case
from tests.grade.certificates import TLS12
from tests.grade.disorder import Disorder
from tests.grade.many import flood, keep, say
from tests.grade.pki import dns, leaf, name, san
from tests.grade.protocol import good
from tests.grade.real import nginx
from tests.grade.tls12 import HANDSHAKE, client_hello, extension, record, vector
from tests.grade.tls13 import AlertError, Client13, ClosedError, Server13, Stream13
from tests.lab.namespace import Namespace

TLS13 = (SSL.TLS1_3_VERSION, SSL.TLS1_3_VERSION)
ALLOW_CLIENT_RENEGOTIATION = 0x100  # SSL_OP_ of a server
PAGE = b"GRADE"
PINNED, UNRESOLVED = "site-b.test", "pinned.grade.test"
"""Exempt where a policy exempts any name: the lab's resolver has the first at ADDRESS, the other nowhere."""
FORBIDDEN = b"GET /forbidden HTTP/1.1\r\nHost: site.grade.test\r\n\r\n"


@contextlib.contextmanager
def plain(bench: Bench, **how: Any) -> Any:
    """A good server."""
    with bench.serving(context=server_context(good(bench), **how)) as server:
        bench.control(server.port, body=PAGE)
        yield server


def dialogue(
    bench: Bench,
    port: int,
    start: Callable[[Client13], None] = Client13.start,
    name: str | bytes | None = HOST,
    **hello: Any,
) -> Client13:
    """Handshake, a request and its answer by the scripted client, first directly. ``start`` sends the ClientHello.
    Raises WrongError where it is not served directly, AlertError or ClosedError where it is refused."""
    bench.controls.kinds.add(SCRIPTED)
    for direct in (True, False):
        client = Client13(bench.connect(port, direct=direct), name, **hello)
        try:
            start(client)
            client.handshake()
        except (AlertError, ClosedError) as end:
            check(not direct, f"directly: {end}")
            raise
        client.write(REQUEST)
        body, end_ = client.read_all()
        check(PAGE in body, f"{'directly: ' * direct}{body[:50]!r} {end_}")
        if direct:
            bench.directly("scripted client", "served")
    check(client.certificate != b"", "no certificate")
    issuer = x509.load_der_x509_certificate(client.certificate).issuer
    check(issuer == _ca(bench).subject, f"the client was shown a certificate of {issuer.rfc4514_string()}")
    return client


def _ca(bench: Bench) -> x509.Certificate:
    return x509.load_pem_x509_certificate(bench.firewall.ca.read_bytes())


def inspected(bench: Bench, seen: Seen) -> str:
    """ "" where the client was served with a leaf of nfw's."""
    if PAGE not in seen.body:
        return str(seen)
    issuer = x509.load_der_x509_certificate(seen.certificate).issuer
    return "" if issuer == _ca(bench).subject else f"shown a certificate of {issuer.rfc4514_string()}"


def all_good(wrong: dict[str, str]) -> None:
    check(not any(wrong.values()), "; ".join(f"{label}: {text}" for label, text in wrong.items() if text))


def refused_hello(
    bench: Bench,
    port: int,
    data: bytes | Sequence[bytes],
    *,
    status: Sequence[str],
    alert: Sequence[int] = (),
    **how: Any,
) -> str:
    """What is wrong when raw first bytes are not refused with this status and, where given, one of these alerts."""
    alone = bench.raw(port, data, direct=True, seconds=0.5)
    said = tls12.alerts(alone.raw)
    bench.directly(
        "these bytes",
        "answered" if alone.raw[:1] == bytes((HANDSHAKE,)) else f"alert {said[-1]}" if said else alone.end,
    )
    seen = bench.raw(port, data, **how)
    record_ = bench.verdict(seen, port)["nfw"]
    if record_["status"] not in status:
        return f"{record_['status']} {record_['reason']}"
    kinds = {seen.raw[at] for at in _records(seen.raw)}
    if kinds - {tls12.ALERT}:
        return f"records {kinds} were sent"
    heard = tls12.alerts(seen.raw)
    if alert and not (heard and heard[-1] in alert):
        return f"alerts {heard} instead of {list(alert)}"
    return ""


def _records(data: bytes) -> list[int]:
    found, at = [], 0
    while at + 5 <= len(data):
        found.append(at)
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    return found


@case("K01", "the first bytes in segments of their own", "inspected as ever")
def _(bench: Bench) -> str:
    wrong = {}
    with plain(bench) as server:
        for size in (1, 2, 3, 5):
            for strict in (True, False):
                seen = bench.visit(server.port, first_cut=size, pause=0.05, strict=strict)
                wrong[f"first {size}, {strict}"] = inspected(bench, seen)
        for strict in (True, False):
            wrong[f"each, {strict}"] = inspected(bench, bench.visit(server.port, cut=1, strict=strict))
            bad = bench.visit(server.port, cut=1, strict=strict, request=FORBIDDEN)
            wrong[f"forbidden, {strict}"] = str(bad) if bad.body else ""
        check(b"/forbidden" not in server.got, "a forbidden request reached the server")
        bench.control(server.port, cut=1, request=FORBIDDEN, body=PAGE)
    all_good(wrong)
    return "10 ways, all inspected; a forbidden request is blocked"


@case("K02", "ClientHello in two segments: within the name, at 1,000 bytes, with pauses", "inspected")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        for place in ("name", "1000"):

            def start(client: Client13, place: str = place) -> None:
                hello = client.hello(**client.options)
                at = hello.index(HOST.encode()) + 8 if place == "name" else 1000

                def send(data: bytes) -> None:
                    client.sock.sendall(data[:at])
                    time.sleep(0.3)
                    client.sock.sendall(data[at:])

                client.start(hello, pieces=send)

            dialogue(bench, server.port, start, extra=[extension(21, bytes(1500))])
        bench.control(server.port, kinds=(True,), body=PAGE, cut=60, pause=0.05)
        check(not inspected(bench, bench.visit(server.port, cut=60, pause=0.05)), "in many segments")
    return "3 ways, all inspected"


@case("K03", "ClientHello over many records, an empty first one", "inspected, or refused; never passed on")
def _(bench: Bench) -> str:
    def empty_first(client: Client13) -> None:
        client.sock.sendall(record(HANDSHAKE, b"", 0x0301))
        client.start()

    found = []
    with plain(bench) as server:
        for label, start in {
            "100 B": lambda client: client.start(size=100),
            "1 B": lambda client: client.start(size=1),
            "empty first": empty_first,
        }.items():
            server.forget()
            try:
                dialogue(bench, server.port, start)
                found.append(f"{label}: inspected")
            except (AlertError, ClosedError) as end:
                check(not server.got, "bytes reached the server")
                found.append(f"{label}: {end}")
        server.forget()
        with contextlib.suppress(OSError):
            wrong = refused_hello(
                bench, server.port, record(HANDSHAKE, b"", 0x0301) * 2000, status=("NOT_TLS",), seconds=12.0
            )
            check(not wrong, f"2,000 empty records: {wrong}")
        check(server.accepted == 0, "the server was called")
    return ", ".join(found)


@case("K04", "a large ClientHello: post-quantum, 8, 20, 60 KB, more than 128 KB", "inspected to 64 KiB, then NOT_TLS")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        for direct in (True, False):
            seen = modern(bench, server.port, direct=direct)
            check(PAGE in seen["body"] and seen["hello"] > 1500, f"post-quantum: {seen}, directly: {direct}")
        last = extension(0, vector(b"\0" + vector(HOST.encode(), 2), 2))
        for size in (8000, 20_000, 60_000):

            def start(client: Client13, size: int = size) -> None:
                hello = client.hello(extra=[extension(21, bytes(size)), last], name=b"")
                # The name comes behind everything else: take the first server_name out again.
                client.start(_without(hello, 0))

            dialogue(bench, server.port, start)
        server.forget()
        before = bench.cpu()
        huge = b"\1" + (140_000).to_bytes(3, "big") + bytes(140_000)
        data = b"".join(record(HANDSHAKE, huge[at : at + 16384], 0x0301) for at in range(0, len(huge), 16384))
        wrong = refused_hello(bench, server.port, data, status=("NOT_TLS",))
        check(not wrong and server.accepted == 0, f"over 128 KB: {wrong}")
        spent = bench.cpu() - before
        check(spent < 1.0, f"{spent:.2f} s of CPU")
    return f"post-quantum of {seen['hello']} B and three large ones inspected; 140 KB refused"


def _without(hello: bytes, kind: int) -> bytes:
    """The message without its first extension of that kind."""
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    head, block = hello[4:at], hello[at + 2 :]
    kept, seen, here = b"", False, 0
    while here < len(block):
        this, size = struct.unpack("!HH", block[here : here + 4])
        if this == kind and not seen:
            seen = True
        else:
            kept += block[here : here + 4 + size]
        here += 4 + size
    return tls12.message(1, head + vector(kept, 2))


def modern(
    bench: Bench, port: int, *, direct: bool = False, versions: tuple[int, int] | None = None, host: str = HOST
) -> dict[str, Any]:
    """A visit by the newest OpenSSL there is here, with all it offers by itself; and what it negotiated."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if versions:
        context.set_min_proto_version(versions[0])
        context.set_max_proto_version(versions[1])
    connection = SSL.Connection(context)
    connection.set_connect_state()
    connection.set_tlsext_host_name(host.encode())
    sock = bench.connect(port, direct=direct)
    sent = 0
    body = b""
    done = False
    try:
        while True:
            try:
                if not done:
                    connection.do_handshake()
                    done = True
                    connection.sendall(REQUEST)
                data = connection.recv(65536)
                body += data
            except SSL.WantReadError:
                with contextlib.suppress(SSL.WantReadError):
                    out = connection.bio_read(1 << 17)
                    sent = sent or len(out)
                    sock.sendall(out)
                incoming = sock.recv(65536)
                if not incoming:
                    break
                connection.bio_write(incoming)
    except (SSL.Error, OSError):
        pass
    sock.close()
    shown = connection.get_peer_certificate() if done else None
    if shown is not None and not direct:
        issuer = shown.to_cryptography().issuer
        check(issuer == _ca(bench).subject, f"shown a certificate of {issuer.rfc4514_string()}")
    return {
        "body": body,
        "hello": sent,
        "version": connection.get_protocol_version_name(),
        "cipher": connection.get_cipher_name(),
        "group": connection.get_group_name() if done else None,
    }


@case("K05", "a ClientHello that contradicts itself", "alert decode_error, never passed on")
def _(bench: Bench) -> str:
    base = client_hello(HOST)
    sni = extension(0, vector(b"\0" + vector(HOST.encode(), 2), 2))
    two = extension(0, vector((b"\0" + vector(HOST.encode(), 2)) * 2, 2))
    zero = extension(0, vector(b"\0" + vector(b"", 2), 2))
    overrun = bytearray(client_hello(None, extra=[sni]))
    overrun[-len(sni) + 2 : -len(sni) + 4] = b"\xff\xff"
    hellos = {
        "16 MB": (b"\1\xff\xff\xff" + base[4:], ("NOT_TLS",), ()),
        "extensions overrun": (bytes(overrun), ("NOT_TLS",), (50,)),
        "two server_name extensions": (client_hello(HOST, extra=[sni]), ("NOT_TLS",), (50, 47)),
        "two names in one": (client_hello(None, extra=[two]), ("NOT_TLS",), (50, 47)),
        "empty name": (client_hello(None, extra=[zero]), ("NOT_TLS",), (50, 47)),
        "trailing bytes": (tls12.message(1, base[4:] + b"xx"), ("NOT_TLS",), (50,)),
        "no ciphers": (client_hello(HOST, ciphers=()), ("NOT_TLS",), (50, 47)),
    }
    with plain(bench) as server:
        wrong = {
            label: refused_hello(bench, server.port, record(HANDSHAKE, data, 0x0301), status=status, alert=alert)
            for label, (data, status, alert) in hellos.items()
        }
        check(server.accepted == 0, "the server was called")
    all_good(wrong)
    return f"{len(hellos)} refused, the server was not called"


@case("K06", "another name in the ClientHello after HelloRetryRequest", "alert illegal_parameter")
def _(bench: Bench) -> str:
    one = leaf(bench.trust.root, HOST, "denied.grade.test", "other.grade.test")
    with bench.serving(context=server_context(one)) as server:
        shares = [(0x9999, os.urandom(32))]
        groups = (0x9999, tls13.X25519)
        for other in (b"other.grade.test", b"denied.grade.test", None):
            server.forget()
            client = Client13(bench.connect(server.port), HOST, shares=shares, groups=groups)

            def second(client: Client13 = client, other: bytes | None = other) -> bytes:
                hello = client.hello(name=other or HOST.encode(), groups=groups)
                return hello if other is not None else _without(hello, 0)

            try:
                client.handshake(second)
                client.write(REQUEST)
                got = client.read_all()
                check(False, f"{other!r}: served {got}")
            except AlertError as alert:
                check(alert.description == 47, f"{other!r}: {alert}")
            check(client.retried and not server.got, f"{other!r}: retried {client.retried}, {len(server.got)} bytes")
        dialogue(bench, server.port, shares=shares, groups=groups)
    return "3 changes refused with illegal_parameter; the same name is served"


@case("K07", "no server name", "NO_SNI; where the policy says so, the address is verified instead", alone=True)
def _(bench: Bench) -> str:
    root = bench.trust.root
    right = leaf(root, subject=name("host"), alternative=san(x509.IPAddress(ipaddress.ip_address(ADDRESS))))
    context = server_context(right)
    bench.use("drop")
    first = run_probes(bench, [Probe("default", context, ("NO_SNI",), ADDRESS, alone="served")])
    bench.use("main")
    named = server_context(good(bench))
    second = run_probes(
        bench,
        [
            Probe("address", context, OK, ADDRESS),
            Probe("no address", named, ("NAME_MISMATCH",), ADDRESS),
        ],
    )
    return f"default: {first}; address: {second}"


@case("K08", "an address as the server name", "as if there were none; never a certificate made of the client's text")
def _(bench: Bench) -> str:
    victim = "203.0.113.99"
    one = leaf(bench.trust.root, subject=name("host"), alternative=san(x509.IPAddress(ipaddress.ip_address(victim))))
    with bench.serving(context=server_context(one)) as server:
        hellos = {
            text: record(HANDSHAKE, client_hello(text), 0x0301) for text in (victim, "2001:db8::1", "[::1]", "1.2")
        }
        wrong = {
            text: refused_hello(bench, server.port, data, status=("NO_SNI", "NAME_MISMATCH"))
            for text, data in hellos.items()
        }
        check(not server.got, "bytes reached the server")
    all_good(wrong)
    right = leaf(bench.trust.root, subject=name("host"), alternative=san(x509.IPAddress(ipaddress.ip_address(ADDRESS))))
    with bench.serving(context=server_context(right)) as server:
        client = dialogue(bench, server.port, name=victim)
        shown = x509.load_der_x509_certificate(client.certificate).extensions
        names = shown.get_extension_for_class(x509.SubjectAlternativeName).value
        check(list(names) == [x509.IPAddress(ipaddress.ip_address(ADDRESS))], f"the leaf names {list(names)}")
        check(server.names == [None], f"the server was asked for {server.names}")
    return f"{len(hellos)} refused; where the server has the address it is reached at, served as that"


@case("K09", "odd server names", "case and one dot are normalised, the rest is NAME_MISMATCH; logged escaped")
def _(bench: Bench) -> str:
    one = leaf(bench.trust.root, "site.grade.test", "under_score.grade.test")
    wrong = {}
    with bench.serving(context=server_context(one)) as server:
        for text in (b"SITE.Grade.TEST", b"site.grade.test.", b"under_score.grade.test"):
            try:
                dialogue(bench, server.port, name=text)
            except (AlertError, ClosedError) as end:
                wrong[repr(text)] = str(end)
        check(set(server.names) <= {b"site.grade.test", b"under_score.grade.test"}, f"upstream saw {server.names}")
        server.forget()
        for text in (
            "bücher.grade.test".encode(),
            b"a" * 64 + b".grade.test",
            b"a." * 130 + b"grade.test",
            b"site.grade.test\0.evil.test",
            b"site grade.test",
            b"site%00.grade.test",
            b".site.grade.test",
            b"site.grade.test..",
            b'x","status":"OK\n{"event_type":"alert"}',
        ):
            data = record(HANDSHAKE, client_hello(text), 0x0301)
            wrong[repr(text[:30])] = refused_hello(bench, server.port, data, status=("NAME_MISMATCH",))
        check(server.accepted == 0, "the server was called")
    all_good(wrong)
    return "3 served under their normal form, 9 refused, the log is whole"


@case("K10", "an allowed name towards an address that is not its own", "the certificate decides")
def _(bench: Bench) -> str:
    return run_probes(
        bench,
        [
            Probe("has the certificate", server_context(good(bench)), OK, HOST, SPARE),
            Probe("has another", server_context(leaf(bench.trust.root, "other.test")), ("NAME_MISMATCH",), HOST, SPARE),
            Probe("made one", server_context(leaf(bench.trust.unknown, HOST)), ("UNTRUSTED",), HOST, SPARE),
        ],
    )


@case("K11", "the request names another host than the server name; a second h2 stream does", "every request is judged")
def _(bench: Bench) -> str:
    hidden = b"GET / HTTP/1.1\r\nHost: hidden.grade.test\r\n\r\n"
    with plain(bench) as server:
        bench.control(server.port, request=hidden, body=PAGE)
        for strict in (True, False):
            seen = bench.visit(server.port, request=hidden, strict=strict)
            check(not seen.body and not server.got, f"fronting: {seen}, {len(server.got)} bytes reached the server")
        server.forget()
        seen = bench.visit(server.port, request=REQUEST.replace(b"\r\n\r\n", b"\r\nX: 1\r\n\r\n") + hidden)
        check(b"hidden" not in server.got, f"pipelined: {server.got!r}")
    with plain(bench, alpn=[b"h2"]) as server:
        server.handler = http2
        with Http2(bench, server.port, direct=True) as client:
            every = [client.get(1, HOST), client.get(3, "hidden.grade.test")]
            check(every == [PAGE, PAGE], f"directly, HTTP/2: {every}")
            bench.directly("validating client, HTTP/2", "both served")
        with Http2(bench, server.port) as client:
            check(client.get(1, HOST) == PAGE, "the first stream is not served")
            check(client.get(3, HOST) == PAGE, "the second stream is not served")
            got = client.get(5, "hidden.grade.test")
            check(got != PAGE, "a coalesced request was served")
        time.sleep(0.2)
        authorities = [bytes(side.got) for side in server.sides]
        check(all(b"hidden" not in one for one in authorities), f"the server saw {authorities}")
    return "HTTP/1.1, pipelined and coalesced requests dropped before the server"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def http2(side: ServerSide) -> None:
    """A server that answers every request of HTTP/2 with a page; ``got`` is what authorities it saw."""
    assert side.tls is not None
    decoder, encoder = Decoder(), Encoder()
    side.write(frame(4, 0, 0))
    data = b""
    seen = b""
    with contextlib.suppress(SSL.Error, OSError):
        while piece := side.tls.recv(65536):
            data += piece
            if data.startswith(b"PRI"):
                if len(data) < 24:
                    continue
                data = data[24:]
            while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
                size, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
                stream, payload = int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
                data = data[9 + size :]
                if kind == 4 and not flags & 1:
                    side.write(frame(4, 1, 0))
                if kind == 1:
                    headers = dict(decoder.decode(payload))
                    seen += str(headers.get(":authority")).encode() + b" "
                    side.got[:] = seen
                    side.write(frame(1, 4, stream, encoder.encode([(":status", "200")])) + frame(0, 1, stream, PAGE))


class Http2:
    """A client of HTTP/2 that asks for one page after the other."""

    def __init__(self, bench: Bench, port: int, *, direct: bool = False) -> None:
        context = bench.client_context(strict=True, direct=direct)
        context.set_alpn_protocols(["h2"])
        self.sock = context.wrap_socket(bench.connect(port, direct=direct), server_hostname=HOST)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.data = b""
        self.sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def get(self, stream: int, authority: str) -> bytes:
        """The body, or what says how it ended."""
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", "/")]
        body = b""
        try:
            self.sock.sendall(frame(1, 5, stream, self.encoder.encode(fields)))
            while True:
                while len(self.data) < 9 or len(self.data) < 9 + int.from_bytes(self.data[:3], "big"):
                    piece = self.sock.recv(65536)
                    if not piece:
                        return b"end of file"
                    self.data += piece
                size, kind, flags = int.from_bytes(self.data[:3], "big"), self.data[3], self.data[4]
                payload, self.data = self.data[9 : 9 + size], self.data[9 + size :]
                if kind == 4 and not flags & 1:
                    self.sock.sendall(frame(4, 1, 0))
                if kind == 1:
                    self.decoder.decode(payload)
                if kind == 0:
                    body += payload
                    if flags & 1:
                        return body
                if kind in (3, 7):
                    return b"refused"
        except OSError as error:
            return str(error).encode()


@case(
    "K12",
    "a name that is passed through, at an attacker's address",
    "refused unless the name resolves to it or its certificate is seen to be right",
    policy="bypass",
    alone=True,
)
def _(bench: Bench) -> str:
    """That the name is passed through at all, and that nothing but the address speaks against the attacker, is shown at
    the name's own address: there the same certificates reach the client as they are, and no request is judged."""
    root = bench.trust.root
    made = leaf(bench.trust.unknown, PINNED, UNRESOLVED)
    other, right = leaf(root, "evil.grade.test"), leaf(root, PINNED)

    def passed(server: Server, one: pki.Issued, proof: str, **how: Any) -> None:
        how = {"strict": False, "request": FORBIDDEN, **how}
        seen = bench.visit(server.port, PINNED, address=server.address, **how)
        said = bench.verdict(seen, server.port)["nfw"]
        check((said["status"], said.get("bypass")) == ("BYPASSED", proof), f"at {server.address}: {said} {seen}")
        check(seen.certificate == one.der and PAGE in seen.body, f"not passed on as it is: {seen}")

    def refused(server: Server, status: str, why: str, host: str = PINNED) -> None:
        for strict in (True, False):
            server.forget()
            seen = bench.visit(server.port, host, address=server.address, strict=strict)
            said = bench.verdict(seen, server.port)["nfw"]
            check((said["status"], said.get("bypass_refused")) == (status, why), f"{host}: {said}")
            check(not seen.body and not seen.handshake and not server.got, f"{host}: {seen}, {len(server.got)} bytes")

    @contextlib.contextmanager
    def at_both(one: pki.Issued, versions: tuple[int, int]) -> Iterator[tuple[Server, Server]]:
        context = server_context(one, versions=versions)
        with bench.serving(context=context) as own, bench.serving(context=context, address=SPARE) as away:
            yield own, away

    for versions in (TLS12, TLS13):
        for one, status in ((made, "UNTRUSTED"), (other, "NAME_MISMATCH")):
            with at_both(one, versions) as (own, away):
                bench.control(away.port, PINNED, address=SPARE, kinds=(False,), body=PAGE)
                bench.control(away.port, PINNED, address=SPARE, kinds=(True,), served=False)
                passed(own, one, "dns")
                refused(away, status, "address")
                refused(own, status, "address", UNRESOLVED)
    with at_both(right, TLS13) as (own, away):
        bench.control(away.port, PINNED, address=SPARE, body=PAGE)
        passed(own, right, "dns", context=bench.client_context(strict=True, direct=True))
        seen = bench.visit(away.port, PINNED, address=SPARE)
        check(not inspected(bench, seen), f"the right certificate elsewhere: {inspected(bench, seen)}")
        away.forget()
        seen = bench.visit(away.port, PINNED, address=SPARE, request=FORBIDDEN)
        check(not seen.body and not away.got, f"elsewhere a forbidden request is not blocked: {seen}")
    bench.use("proof")
    for versions in (TLS12, TLS13):
        for one, status in ((made, "UNTRUSTED"), (other, "NAME_MISMATCH")):
            with at_both(one, versions) as (_own, away):
                refused(away, status, "certificate")
        with at_both(right, versions) as (_own, away):
            passed(away, right, "certificate")
    return "refused in 1.2 and 1.3, by address, without an answer and by certificate; at its own address all passed on"


@case("K13", "one client's odd name in what another client is shown", "no trace")
def _(bench: Bench) -> str:
    one = leaf(bench.trust.root, "*.grade.test")
    with bench.serving(context=server_context(one)) as server:
        bench.control(server.port)
        for odd in ("poison.grade.test", "POISON2.grade.test", "poison3.grade.test."):
            seen = bench.visit(server.port, odd, strict=False)
            check(
                not inspected(bench, seen), f"{odd}: {inspected(bench, seen)} {bench.verdict(seen, server.port)['nfw']}"
            )
        seen = bench.visit(server.port, HOST)
        names = x509.load_der_x509_certificate(seen.certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        found = names.value.get_values_for_type(x509.DNSName)
        check(found == ["*.grade.test"], f"SAN {found}")
    return f"SAN {found[0]}"


@case("K14", "only 1.2, only 1.3, only 1.0, an SSLv2 hello", "mirrored, mirrored, alert protocol_version, alert")
def _(bench: Bench) -> str:
    found = []
    with plain(bench) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = bench.client_context(strict=True)
            context.minimum_version = context.maximum_version = version
            seen = bench.visit(server.port, context=context)
            check(
                not inspected(bench, seen) and seen.version == version.name.replace("_", "."), f"{version.name}: {seen}"
            )
            server_version = bench.verdict(seen, server.port)["tls"]["server"]["version"]
            check(server_version == seen.version, f"upstream {server_version}")
            found.append(seen.version)
        server.forget()
        old = record(HANDSHAKE, client_hello(HOST, version=0x0301, ciphers=(0xC009, 0x002F)), 0x0301)
        wrong = {"1.0": refused_hello(bench, server.port, old, status=("PROTOCOL",), alert=(70,))}
        two = b"\x01\x03\x01\x00\x03\x00\x00\x00\x10\x00\x00\x35" + os.urandom(16)
        two = struct.pack("!H", 0x8000 | len(two)) + two
        wrong["SSLv2"] = refused_hello(bench, server.port, two, status=("NOT_TLS",), alert=(70,))
        all_good(wrong)
        check(server.accepted == 0, "the server was called")
    return f"{', '.join(found)}; 1.0 and SSLv2 refused with protocol_version"


@case("K15", "weak suites alone; a fallback below the best", "handshake_failure; inappropriate_fallback")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        weak = record(HANDSHAKE, client_hello(HOST, ciphers=(0x0004, 0x0005, 0x000A, 0x002F, 0x0035)), 0x0301)
        fallback = record(HANDSHAKE, client_hello(HOST, ciphers=(0xC02B, 0xC02F, 0x5600)), 0x0301)
        all_good(
            {
                "weak": refused_hello(bench, server.port, weak, status=("PROTOCOL",), alert=(40,)),
                "fallback": refused_hello(bench, server.port, fallback, status=("PROTOCOL",), alert=(86,)),
            }
        )
        check(not server.got, "bytes reached the server")
    return "alerts 40 and 86"


@case("K16", "the client's side never better than the server's", "1.2 upstream is 1.2 for the client")
def _(bench: Bench) -> str:
    with plain(bench, versions=TLS12) as server:
        seen = bench.visit(server.port)
        check(seen.version == "TLSv1.2" and PAGE in seen.body, f"{seen.version} {seen}")
        legs = bench.verdict(seen, server.port)["tls"]
        check(legs["client"]["version"] == legs["server"]["version"], str(legs))
    return "TLSv1.2 on both legs"


_GROUPS = ("X25519MLKEM768", "x25519", "secp256r1", "secp384r1")


@case(
    "K17", "the client's side never worse than without nfw", "version, AEAD, forward secrecy, group at least the same"
)
def _(bench: Bench) -> str:
    found = []
    for versions in (None, TLS12):
        how: dict[str, Any] = {"versions": versions} if versions else {}
        with plain(bench, **how) as server:
            direct, through = modern(bench, server.port, direct=True), modern(bench, server.port)
            check(PAGE in direct["body"] and PAGE in through["body"], f"{direct} {through}")
            check(direct["version"] == through["version"], f"{direct['version']} became {through['version']}")
            check("GCM" in through["cipher"] or "POLY1305" in through["cipher"], through["cipher"])
            before, after = str(direct["group"]), str(through["group"])
            check(before == after or ("MLKEM" in after and "MLKEM" not in before), f"{before} became {after}")
            found.append(f"{through['version']} {after}")
    return ", ".join(found)


@case("K19", "post-quantum key share; a share of an unknown group alone", "group kept; HelloRetryRequest")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        seen = modern(bench, server.port)
        check(PAGE in seen["body"] and "MLKEM768" in str(seen["group"]), f"group {seen['group']}")
        client = dialogue(bench, server.port, shares=[(0x9999, os.urandom(32))], groups=(0x9999, tls13.X25519))
        check(client.retried, "no HelloRetryRequest")
    return f"{seen['group']}; HelloRetryRequest answered and served"


@case("K20", "ECH GREASE", "ignored, served")
def _(bench: Bench) -> str:
    inner = b"\0" + struct.pack("!HH", 1, 1) + b"\x42" + vector(os.urandom(32), 2) + vector(os.urandom(144), 2)
    with plain(bench) as server:
        dialogue(bench, server.port, extra=[extension(0xFE0D, inner)])
    return "served"


@case(
    "K22",
    "ALPN: h2, http/1.1, none, unknown, too long",
    "what the server chose; none stays none; no overlap is refused",
)
def _(bench: Bench) -> str:
    wrong = {}
    servers = {"h2 and 1.1": [b"h2", b"http/1.1"], "1.1": [b"http/1.1"], "none": []}
    offers: list[list[str]] = [["h2", "http/1.1"], ["h2"], ["http/1.1"], []]
    for label, chosen in servers.items():
        with plain(bench, alpn=chosen) as server:
            server.handler = lambda side: side.write(PAGE)
            for offer in offers:
                context = bench.client_context(strict=True)
                direct = bench.visit(server.port, strict=False, direct=True, alpn=offer, request=b"")
                through = bench.visit(server.port, context=context, alpn=offer, request=b"")
                bench.directly(f"server of {label}", direct.alpn or direct.end)
                same = (direct.alpn, direct.handshake) == (through.alpn, through.handshake)
                if not same:
                    wrong[f"{label}, {offer}"] = f"{direct.alpn or direct} became {through.alpn or through}"
    with plain(bench, alpn=[b"h2"]) as server:
        hello = record(HANDSHAKE, client_hello(HOST, alpn=[b"strange"]), 0x0301)
        with bench.serving(handler=none_in_common) as strict:
            wrong["unknown"] = refused_hello(bench, strict.port, hello, status=("PROTOCOL",), alert=(120,))
        big = client_hello(HOST, alpn=[b"x" * 255, b"h2"])
        seen = bench.raw(server.port, record(HANDSHAKE, big, 0x0301), seconds=2)
        wrong["255 bytes"] = "" if seen.raw[:1] == bytes((HANDSHAKE,)) else f"{seen}"
        empty = client_hello(HOST, extra=[extension(16, vector(vector(b"", 1), 2))])
        wrong["empty"] = refused_hello(bench, server.port, record(HANDSHAKE, empty, 0x0301), status=("NOT_TLS",))
    all_good(wrong)
    return f"{len(servers) * len(offers)} pairs as without nfw; no overlap refused"


def none_in_common(side: ServerSide) -> None:
    """What a server that insists on ALPN says (RFC 7301 3.2)."""
    tls12.read_hello(side.sock)
    side.write(record(tls12.ALERT, b"\2\x78"))


@case(
    "K24",
    "resumption: same name, another, after a change of policy, after the CA was rotated",
    "a full handshake and a verdict each time, though the server alone would resume",
    alone=True,
)
def _(bench: Bench) -> str:
    one = leaf(bench.trust.root, "*.grade.test")
    folder = bench.firewall.dir / "rotated"
    folder.mkdir(exist_ok=True)
    for file in ("ca.pem", "ca.key"):
        shutil.copy(bench.firewall.dir / file, folder / file)
    attempts = 0
    sessions = []
    with bench.serving(context=server_context(one)) as server:

        def again(context: ssl.SSLContext, session: Any, host: str = HOST) -> None:
            seen = bench.visit(server.port, host, context=context, session=session)
            check(PAGE in seen.body and not seen.reused, f"{host}: reused {seen.reused}, {seen}")

        versions = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        for version in versions:
            direct = bench.client_context(strict=True, direct=True)
            direct.minimum_version = direct.maximum_version = version
            bench.check_resumes(server.port, PAGE, direct)
        server.forget()
        for version in versions:
            context = bench.client_context(strict=True)
            context.minimum_version = context.maximum_version = version
            session = bench.visit(server.port, context=context).session
            sessions.append((context, session))
            for host in (HOST, "other.grade.test"):
                again(context, session, host)
                attempts += 1
        bench.use("drop")
        for context, session in sessions:
            again(context, session)
            attempts += 1
        bench.use("rotated")  # the same CA still, from the folder it is to be rotated in
        bench.firewall.cli("ca", "rotate", "--name", "Next inspection CA", str(folder))
        bench.firewall.cli("ca", "rotate", "--activate", str(folder))
        bench.use("rotated", again=True)
        new = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        for context, session in sessions:
            seen = bench.visit(server.port, context=context, session=session)
            check(not seen.body and not seen.reused, f"who does not know the new CA: {seen}")
            context.load_verify_locations(folder / "ca.pem")
            seen = bench.visit(server.port, context=context, session=session)
            check(PAGE in seen.body and not seen.reused, f"after the rotation: {seen}")
            x509.load_der_x509_certificate(seen.certificate).verify_directly_issued_by(new)
            attempts += 2
        wanted = attempts + len(sessions)
        # Where the client refuses its leaf, the server of TLS 1.3 does not hear that its handshake is done.
        unfinished = sum(context.maximum_version == ssl.TLSVersion.TLSv1_3 for context, _ in sessions)
        check(server.accepted == wanted, f"{server.accepted} connections to the server for {wanted} of clients")
        check(server.handshakes >= wanted - unfinished, f"{server.handshakes} upstream handshakes for {wanted}")
    return f"{attempts} attempts, 0 resumed; the new CA's leafs after the rotation; directly resumed"


@case("K25", "early data", "not taken; the request arrives once, after the handshake")
def _(bench: Bench) -> str:
    def start(client: Client13) -> None:
        identity = vector(vector(os.urandom(100), 2) + bytes(4), 2)
        psk = extension(41, identity + vector(vector(os.urandom(32), 1), 2))
        hello = client.hello(extra=[extension(42, b""), psk])
        client.start(hello)
        for _ in range(3):
            client.sock.sendall(record(tls12.DATA, os.urandom(200)))

    with plain(bench) as server:
        client = dialogue(bench, server.port, start)
        check(not any(map(tls13.allows_early_data, client.tickets)), "a ticket allows early data")
        check(server.got == REQUEST, f"the server got {server.got!r}")
    return "ignored; the request arrived once"


@case("K26", "a client certificate nobody asked for, post-handshake authentication", "not asked for, not taken")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        client = dialogue(bench, server.port, extra=[extension(49, b"")])
        check(49 not in client.server_extensions, "post-handshake authentication was answered")
        server.forget()
        for direct in (True, False):
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.start()

            def send(kind: int, data: bytes, pad: int = 0, normal: Callable[..., None] = client.send) -> None:
                if kind == HANDSHAKE and data[0] == 20:
                    normal(HANDSHAKE, tls12.message(11, b"\0" + vector(vector(good(bench).der, 3) + b"\0\0", 3)))
                normal(kind, data, pad)

            client.send = send  # type: ignore[method-assign]
            client.handshake()
            with contextlib.suppress(OSError):  # when the end has come already
                client.write(REQUEST)
            body, end = client.read_all()
            if direct:
                bench.directly("scripted client, a certificate unasked", end)
            check(not body and not server.got, f"{'directly, ' * direct}{body!r} {end}")
        check(end in ("alert 10", "reset"), f"an unasked certificate: {end}")
    return f"an unasked certificate ends the flow ({end})"


@case("K28", "the leaf nfw makes", "what strict clients ask of one: OpenSSL, Python, Java")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        seen = bench.visit(server.port)
        shown = x509.load_der_x509_certificate(seen.certificate)
        ca = _ca(bench)
        get = shown.extensions.get_extension_for_class
        check(list(get(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH], "EKU")
        check(get(x509.KeyUsage).critical and get(x509.KeyUsage).value.digital_signature, "KU")
        check(get(x509.BasicConstraints).critical and not get(x509.BasicConstraints).value.ca, "BC")
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        check(get(x509.AuthorityKeyIdentifier).value.key_identifier == identifier, "AKI")
        check(get(x509.SubjectAlternativeName).critical is (not shown.subject), "SAN critical")
        check(shown.serial_number.bit_length() >= 64, "serial")
        life = shown.not_valid_after_utc - shown.not_valid_before_utc
        check(life.days <= 199, f"{life.days} days")
        again = bench.visit(server.port)
        check(again.certificate == seen.certificate, "another leaf for the same server")
        roots = verification.Store([ca])
        verifier = verification.PolicyBuilder().store(roots).build_server_verifier(x509.DNSName(HOST))
        verifier.verify(shown, [])
        strict = bench.client_context(strict=True)
        strict.verify_flags |= ssl.VERIFY_X509_STRICT
        check(not inspected(bench, bench.visit(server.port, context=strict)), "Python with VERIFY_X509_STRICT")
        folder = bench.firewall.dir
        (folder / "shown.pem").write_bytes(shown.public_bytes(serialization.Encoding.PEM))
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", HOST]
        done = subprocess.run(
            [*command, "-CAfile", str(bench.firewall.ca), str(folder / "shown.pem")], capture_output=True, text=True
        )
        check(done.returncode == 0, f"openssl verify: {done.stderr}")
        java = _java(bench, server.port)
    return f"OpenSSL, pyca, Python strict{java}; {life.days} days"


_JAVA = """
import java.io.*; import java.net.*; import java.nio.file.*; import java.security.*; import java.security.cert.*;
import javax.net.ssl.*; import java.util.List;
class Visit {
    public static void main(String[] a) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream in = Files.newInputStream(Path.of(a[0]))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        Socket tcp = new Socket(a[1], Integer.parseInt(a[2]));
        SSLSocket tls = (SSLSocket) context.getSocketFactory().createSocket(tcp, a[3], 443, true);
        SSLParameters parameters = tls.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        parameters.setServerNames(List.of(new SNIHostName(a[3])));
        tls.setSSLParameters(parameters);
        tls.getOutputStream().write(("GET / HTTP/1.1\\r\\nHost: " + a[3] + "\\r\\n\\r\\n").getBytes());
        System.out.print(new String(tls.getInputStream().readAllBytes()));
    }
}
"""


def _java(bench: Bench, port: int) -> str:
    if shutil.which("java") is None:
        return ""
    file = bench.firewall.dir / "Visit.java"
    file.write_text(_JAVA)
    command = ["java", "-XX:TieredStopAtLevel=1", str(file), str(bench.firewall.ca), ADDRESS, str(port), HOST]
    done = bench.lab.client.run(command, 60, False)
    check("GRADE" in done.stdout, f"Java: {done.stderr[-300:]}")
    return ", Java"


@case("K29", "a client that knows RSA alone", "gets an RSA leaf; others P-256")
def _(bench: Bench) -> str:
    with plain(bench) as server:
        modern_ = x509.load_der_x509_certificate(bench.visit(server.port).certificate).public_key()
        check(isinstance(modern_, ec.EllipticCurvePublicKey), f"{modern_}")
        context = bench.client_context(strict=True)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
        seen = bench.visit(server.port, context=context)
        check(PAGE in seen.body, f"{seen}")
        old = x509.load_der_x509_certificate(seen.certificate).public_key()
        check(isinstance(old, rsa.RSAPublicKey) and old.key_size >= 2048, f"{old}")
    return "P-256 and RSA"


HEADERS = (
    b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=31536000; includeSubDomains\r\n"
    b'Public-Key-Pins: pin-sha256="x"; max-age=1\r\nExpect-CT: max-age=1\r\n'
    b'Alt-Svc: h3=":443"; ma=86400\r\nContent-Length: 5\r\n\r\nGRADE'
)


@case(
    "K30",
    "HSTS, HPKP, Expect-CT, Alt-Svc",
    "untouched; QUIC does not get through uninspected, so its offers are hidden",
)
def _(bench: Bench) -> str:
    def handler(side: ServerSide) -> None:
        side.read_until(b"\r\n\r\n")
        side.write(sent)

    with bench.serving(context=server_context(good(bench)), handler=handler) as server:
        offer = b'h3=":%d"' % server.port
        sent = HEADERS.replace(b'h3=":443"', offer)
        alone = bench.control(server.port)
        check(all(offer in one.body for one in alone), "the server alone does not offer h3")
        for strict in (False, True):
            body = bench.visit(server.port, strict=strict).body
            check(offer not in body, "an offer of h3 is shown although QUIC does not get through")
    for wanted in (b"Strict-Transport-Security: max-age=31536000; includeSubDomains", b"Public-Key-Pins", b"Expect-CT"):
        check(wanted in body, f"{wanted!r} is gone")
    check(_quic_passes(bench, server.port, direct=True), "directly QUIC does not arrive")
    bench.directly("QUIC", "arrives")
    check(_quic_passes(bench, server.port, b"no QUIC"), "no UDP at all gets through")
    check(not _quic_passes(bench, server.port), "QUIC gets through, which nobody can inspect")
    return "QUIC is dropped and h3 hidden, the rest as sent"


def _quic_passes(bench: Bench, port: int, data: bytes = b"", direct: bool = False) -> bool:
    """Whether the beginning of a QUIC connection (RFC 9000 17.2.2), or ``data``, goes through."""
    initial = data or b"\xc0\0\0\0\1\x08" + os.urandom(8) + b"\0\0\x44\xb0" + os.urandom(1200)
    with bench.lab.in_namespace("server"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((ADDRESS, port))
        listener.settimeout(1)
        place = "server" if direct else "client"
        with bench.lab.in_namespace(place), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(initial, (ADDRESS, port))
        with contextlib.suppress(TimeoutError):
            return bool(listener.recv(2000))
    return False


@case("K31", "first bytes that are no TLS", "NOT_TLS at once")
def _(bench: Bench) -> str:
    starts = {
        "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "SOCKS": b"\5\1\0",
        "random": os.urandom(64).replace(b"\x16", b"\x17"),
        "alert first": record(tls12.ALERT, b"\2\x28"),
        "application data first": record(tls12.DATA, os.urandom(50)),
        "heartbeat first": record(tls12.HEARTBEAT, b"\1\0\1x"),
        "ServerHello first": record(HANDSHAKE, tls12.message(2, bytes(70))),
    }
    with plain(bench) as server:
        wrong = {}
        for label, data in starts.items():
            bench.directly(label, bench.raw(server.port, data, direct=True, seconds=0.5))
            seen = bench.raw(server.port, data)
            status = bench.verdict(seen, server.port)["nfw"]["status"]
            good_ = status == "NOT_TLS" and not seen.raw and seen.end == "reset" and seen.seconds < 1
            wrong[label] = "" if good_ else f"{status} {seen} {len(seen.raw)} bytes after {seen.seconds:.2f} s"
        check(server.accepted == 0, "the server was called")
    all_good(wrong)
    return f"{len(starts)} refused at once"


@case(
    "K32",
    "a client that says nothing, under reject, drop, an action of its own, and mode monitor",
    "NOT_TLS after 10 s by that action, the server not called; mode monitor: the server's greeting then",
    alone=True,
)
def _(bench: Bench) -> str:
    def greet(side: ServerSide) -> None:
        side.write(b"220 mail.grade.test\r\n")

    found = []
    with bench.serving(handler=greet) as server:
        seen = bench.raw(server.port, b"", seconds=2, direct=True, fin=True)
        check(seen.raw.startswith(b"220"), f"the server alone does not greet: {seen}")
        bench.directly("silent client", "greeted")
        for policy, end in (("main", "reset"), ("drop", "cut"), ("quiet", "cut"), ("monitor", "cut")):
            bench.use(policy)
            server.forget()
            seen = bench.raw(server.port, b"", seconds=20)
            record_ = bench.verdict(seen, server.port)["nfw"]
            good_ = record_["status"] == "NOT_TLS" and 8 < seen.seconds < 13 and seen.end == end
            check(good_, f"{policy}: {record_}, {seen} after {seen.seconds:.1f} s")
            watched = policy == "monitor"
            check(seen.raw.startswith(b"220") is watched, f"{policy}: the client was told {seen.raw!r}")
            check(server.accepted == watched, f"{policy}: the server was called {server.accepted} times")
            found.append(f"{policy}: {end} after {seen.seconds:.0f} s{', greeted' * watched}")
    return "; ".join(found)


@case("K34", "TLS within TLS", "carried as plaintext, judged by the rules on plaintext")
def _(bench: Bench) -> str:
    inner = record(HANDSHAKE, client_hello("inner.grade.test"), 0x0301)
    denied = record(HANDSHAKE, client_hello("denied.grade.test"), 0x0301)
    inner_answer = record(tls12.ALERT, b"\2\x28")

    def tunnel(side: ServerSide) -> None:
        side.read_until(b"\r\n\r\n")
        side.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        while not any(hello[-20:] in side.got for hello in (inner, denied)) and side.read():
            pass
        side.write(inner_answer)

    with bench.serving(context=server_context(good(bench)), handler=tunnel) as server:

        def through(hello: bytes, direct: bool) -> bytes:
            client = bench.open(server.port, direct=direct)
            client.send(b"CONNECT inner.grade.test:443 HTTP/1.1\r\nHost: inner.grade.test:443\r\n\r\n")
            check(client.receive(39).endswith(b"\r\n\r\n"), "no answer to CONNECT")
            with contextlib.suppress(OSError):
                client.send(hello)
            got = client.receive(len(inner_answer))
            client.close()
            return got

        for hello in (inner, denied):
            check(through(hello, True) == inner_answer, "directly the inner bytes do not pass")
            bench.directly("validating client", "inner bytes pass")
        check(through(inner, False) == inner_answer, "the inner bytes did not pass")
        check(inner in server.got, "the inner bytes changed")
        server.forget()
        got = through(denied, False)
        check(not got and denied[:20] not in server.got, f"an inner name that a rule denies: {got!r}")
    return "bytes exact; an inner name that a rule denies does not pass"


@case(
    "K35",
    "half-close after the request, RST in the middle, FIN before Finished",
    "answered; reset upstream; no data upstream",
)
def _(bench: Bench) -> str:
    ends: list[str] = []
    heard = bytearray()

    def handler(side: ServerSide) -> None:
        assert side.tls is not None
        try:
            while data := side.tls.recv(65536):
                heard.extend(data)
                if b"\r\n\r\n" in heard:
                    side.write(PAGE)
            ends.append("closed")
        except SSL.ZeroReturnError:
            ends.append("clean")
        except SSL.SysCallError as error:
            ends.append("reset" if error.args[0] == 104 else "cut")
        except (SSL.Error, OSError):
            ends.append("error")

    bench.controls.kinds.add(SCRIPTED)
    with bench.serving(context=server_context(good(bench)), handler=handler) as server:
        for direct in (True, False):
            who = "directly: " * direct
            ends.clear()
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            client.write(REQUEST)
            client.close_notify()
            client.sock.shutdown(socket.SHUT_WR)
            body, _ = client.read_all()
            check(body == PAGE, f"{who}half-close: {body!r}")
            until(lambda: bool(ends))
            check(ends == ["clean"], f"{who}half-close: the server saw {ends}")
            ends.clear()
            heard.clear()
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            client.write(b"POST / HTTP/1.1\r\nHost: site.grade.test\r\nContent-Length: 100\r\n\r\n" + b"x" * 10)
            until(lambda: b"x" * 10 in heard)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.sock.close()
            until(lambda: bool(ends))
            check(ends == ["reset"], f"{who}RST: the server saw {ends}")
            if direct:
                bench.directly("scripted client", "answered, reset seen")
    one = good(bench)
    early: list[bytes] = []

    def hasty(stream: Stream13) -> None:
        with contextlib.suppress(ClosedError, InvalidTag, AlertError):
            while data := stream.read():
                early.append(data)

    # Directly, to a server that reads data of a client that has not finished its handshake, as no library does.
    for direct, finish in ((True, False), (False, True), (False, False)):
        early.clear()
        with bench.serving(handler=Server13(path(one), one.key, hasty, unfinished=direct).handler) as server:
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake(finish=finish)
            with contextlib.suppress(OSError):
                client.write(REQUEST)
                client.sock.shutdown(socket.SHUT_WR)
            time.sleep(0.5)
            client.sock.close()
        check(
            early == [REQUEST] * (direct or finish), f"directly: {direct}, Finished: {finish}, the server got {early}"
        )
    bench.directly("scripted server", "takes data without Finished")
    return "answered; RST passed on; nothing upstream without Finished"


@case("K36", "bytes after close_notify, after a fatal alert", "not passed on")
def _(bench: Bench) -> str:
    """To a server that reads on after an alert, which no library does: directly it gets what comes behind one."""
    one = good(bench)
    heard: list[str] = []

    def after(stream: Stream13) -> None:
        with contextlib.suppress(ClosedError, InvalidTag):
            while True:
                try:
                    kind, body = stream.receive()
                    heard.append(
                        "request" if body == REQUEST else body.decode() if kind == tls12.DATA else f"record {kind}"
                    )
                except AlertError as alert:
                    heard.append(str(alert))

    between = {"close_notify": b"\1\0", "fatal": b"\2\x28", "nothing": b""}
    behind = {"data": lambda client: client.record(tls12.DATA, b"after"), "noise": lambda _: record(99, b"noise")}

    def say(label: str, what: str, direct: bool) -> list[str]:
        heard.clear()
        with bench.serving(handler=Server13(path(one), one.key, after).handler) as server:
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            client.write(REQUEST)
            until(lambda: bool(heard))
            sent = client.record(tls12.ALERT, between[label]) if between[label] else b""
            client.sock.sendall(sent + behind[what](client))
            time.sleep(0.3)
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
            client.sock.close()
        return list(heard)

    alerts = {"close_notify": [f"record {tls12.ALERT}"], "fatal": ["alert 40"], "nothing": []}
    found = []
    for label, alert in alerts.items():
        alone = say(label, "data", True)
        check(alone == ["request", *alert, "after"], f"directly, {label}: the server heard {alone}")
        if alert:
            bench.directly("scripted server", f"hears on after {label}")
        bench.controls.kinds.add(SCRIPTED)
        for what in behind:
            seen = say(label, what, False)
            wanted = {
                "close_notify": [["request", f"record {tls12.ALERT}"]],
                "fatal": [["request"]],  # cut, as the client cut itself off
                "nothing": [["request", "after"]] if what == "data" else [["request"]],
            }[label]
            check(seen in wanted, f"{label}, then {what}: the server heard {seen}")
            found.append(f"{label}, then {what}: {', '.join(seen)}")
    return "; ".join(found)


@case(
    "K37",
    "5,000 clients with a byte of a ClientHello now and one just before 10 s",
    "closed after 10 s, CPU below 5 %, others served as ever (p99)",
    alone=True,
)
def _(bench: Bench) -> str:
    count = bench.size(5000, 500)
    socks: dict[int, socket.socket] = {}
    began: dict[int, float] = {}
    lived: list[float] = []
    context = bench.client_context(strict=True)

    def visit(server: Server) -> float:
        seen = bench.visit(server.port, context=context)
        check(PAGE in seen.body, f"another is not served: {seen}")
        return seen.seconds

    with plain(bench) as server:
        normal = sorted(visit(server) for _ in range(200))
        poll = select.epoll()
        for _ in range(count):
            sock = bench.connect(server.port)
            sock.sendall(b"\x16")
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN | select.EPOLLHUP)
            socks[sock.fileno()], began[sock.fileno()] = sock, time.monotonic()
        alone = [bench.connect(server.port, direct=True, seconds=0.1) for _ in range(20)]
        for sock in alone:
            sock.sendall(b"\x16")
        last, busy = time.monotonic(), bench.cpu()
        time.sleep(4)
        share = (bench.cpu() - busy) / (time.monotonic() - last)
        meanwhile, second = [], False
        while socks and time.monotonic() < last + 15:
            if not second and time.monotonic() > min(began.values()) + 9:
                second = True
                for sock in socks.values():
                    with contextlib.suppress(OSError):
                        sock.send(b"\x03")
            meanwhile.append(visit(server))
            for fd, _ in poll.poll(0):
                lived.append(time.monotonic() - began[fd])
                poll.unregister(fd)
                socks.pop(fd).close()
        for sock in socks.values():
            sock.close()
        check(second and not socks, f"{len(socks)} still open, a second byte sent: {second}")
        for sock in alone:
            with sock, contextlib.suppress(TimeoutError):
                check(False, f"directly closed by itself: {sock.recv(1)!r}")
        bench.directly("slow client", "not closed")
        check(min(lived) > 9.5 and max(lived) < 12, f"closed after {min(lived):.1f} to {max(lived):.1f} s")
        check(share < 0.05, f"{share:.1%} CPU")
        meanwhile.sort()
        slow, was = meanwhile[len(meanwhile) * 99 // 100], normal[len(normal) * 99 // 100]
        check(slow < was * 3 + 0.1, f"others took {slow * 1000:.0f} ms instead of {was * 1000:.0f}")
    return (
        f"{count} closed after {min(lived):.1f} to {max(lived):.1f} s, {share:.1%} CPU; "
        f"p99 of {len(meanwhile)} others {slow * 1000:.0f} ms ({was * 1000:.0f} without)"
    )


@case("K38", "10,000 idle flows, for a minute (--idle: for longer)", "at most 100 KB each, none closed", alone=True)
def _(bench: Bench) -> str:
    count = bench.size(10_000, 400)
    context = bench.client_context(strict=True)
    patient = "keepalive_timeout 3h; client_header_timeout 3h;"
    bench.use("two")  # of whom each has fewer descriptors than many systems allow
    with bench.serving(nginx(good(bench), more=patient)) as server:
        bench.control(server.port, request=REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        for _ in range(8):
            bench.visit(server.port, request=REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        before = bench.memory()
        flows = keep(bench, server.port, HOST, context, count)
        time.sleep(bench.idle)
        each = (bench.memory() - before) / count / 1000
        busy, began = bench.cpu(), time.monotonic()
        time.sleep(5)
        share = (bench.cpu() - busy) / (time.monotonic() - began)
        alive = say(flows, REQUEST, PAGE)
        check(alive == count, f"{alive} of {count} alive")
        check(each <= 100, f"{each:.0f} KB each")
    return f"{count} flows, {each:.0f} KB each, {share:.1%} CPU, all answered after {bench.idle:.0f} s"


@case("K39", "2,000 ClientHellos at once; no descriptors left", "served or refused, then served as before", alone=True)
def _(bench: Bench) -> str:
    with plain(bench) as server:
        alone = _burst(bench, server, 2000, direct=True)
        check(alone["hello"] > 1900, f"directly: {alone}")
        bench.directly("2,000 ClientHellos", f"{alone['hello']} answered")
        answers = _burst(bench, server, 2000)
        check(answers["hello"] + answers["refused"] == 2000, f"{answers}")
        check(answers["hello"] > 1000, f"{answers}")
        check(PAGE in bench.visit(server.port).body, "not served after the burst")
        pid = bench.worker()
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 60, limits[1]))
        few = _burst(bench, server, 300)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        check(few["hello"] < 300, f"descriptors did not run out: {few}")
        deadline = time.monotonic() + 15
        while PAGE not in (seen := bench.visit(server.port)).body:
            check(time.monotonic() < deadline, f"not served after descriptors ran out: {seen}")
        check(bench.worker() == pid, "the worker was lost")
    return (
        f"{answers['hello']} of 2,000 answered, {answers['refused']} refused; without descriptors {few['hello']} of 300"
    )


def _burst(bench: Bench, server: Server, count: int, *, direct: bool = False) -> dict[str, int]:
    """ClientHellos sent at once; what became of them within 30 s."""
    data = record(HANDSHAKE, client_hello(HOST), 0x0301)
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    answers = {"hello": 0, "refused": 0}
    with bench.lab.in_namespace("server" if direct else "client"):
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((ADDRESS, server.port))
            socks[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
    deadline = time.monotonic() + 30
    while socks and time.monotonic() < deadline:
        for fd, mask in poll.poll(1):
            sock = socks[fd]
            try:
                if mask & select.EPOLLOUT:
                    sock.send(data)
                    poll.modify(fd, select.EPOLLIN)
                    continue
                got = sock.recv(5)
            except OSError:
                got = b""
            answers["hello" if got[:1] == b"\x16" else "refused"] += 1
            poll.unregister(fd)
            socks.pop(fd).close()
    for sock in socks.values():
        sock.close()
    return answers


@case("K40", "a reader that stops, in both directions, 10 GB each", "memory flat, the sender waits", alone=True)
def _(bench: Bench) -> str:
    blob = os.urandom(1 << 20)
    twice = memoryview(blob + blob)
    pieces, burst, most = bench.size(10 << 10, 100), bench.size(512 << 20, 32 << 20), 8 << 20
    moved = [0]
    taken: list[int] = []

    def exact(got: int, data: bytes) -> bool:
        """Whether these are the bytes after the first ``got``."""
        at = got % len(blob)
        return twice[at : at + len(data)] == data

    def stutter(read: Callable[[], bytes]) -> int:
        """Read all that comes, a burst at a time; stop at the first wrong byte."""
        got = paused = 0
        while data := read():
            if not exact(got, data):
                break
            got += len(data)
            if got - paused >= burst:
                paused = got
                time.sleep(1)
        return got

    def send(side: ServerSide) -> None:
        side.read(1)
        for _ in range(pieces):
            side.write(blob)
            moved[0] += 1

    def take(side: ServerSide) -> None:
        time.sleep(1.5)

        def read() -> bytes:
            side.got.clear()
            return side.read(1 << 18)

        taken.append(stutter(read))

    class Watch(contextlib.AbstractContextManager["Watch"]):
        """How much the worker grows meanwhile, looked at ten times a second."""

        def __init__(self) -> None:
            self.before = self.most = bench.memory()
            self.done = threading.Event()
            self.thread = threading.Thread(target=self.look)

        def __enter__(self) -> Watch:
            self.thread.start()
            return self

        def look(self) -> None:
            while not self.done.wait(0.1):
                self.most = max(self.most, bench.memory())

        def __exit__(self, *_: object) -> None:
            self.done.set()
            self.thread.join()

        @property
        def grown(self) -> int:
            return self.most - self.before

    found = []
    bench.use("main", again=True)
    check(not inspected_page(bench), "not served")
    with bench.serving(context=server_context(good(bench)), handler=send) as server:
        client = bench.open(server.port, buffer=65536)
        with Watch() as watch:
            client.send(b"x")
            time.sleep(1.5)
            waiting = moved[0]
            time.sleep(0.5)
            check(moved[0] == waiting < pieces, f"{moved[0]} MB were taken of a sender that should wait")

            def read() -> bytes:
                return client.sock.recv(1 << 18)

            got = stutter(read)
        client.close()
        check(got == pieces << 20, f"the download is exact for {got} bytes")
        check(watch.grown < most, f"download: grew by {watch.grown >> 10} KB")
        found.append(watch.grown)
    with bench.serving(context=server_context(good(bench)), handler=take) as server:
        client = bench.open(server.port)
        client.sock.settimeout(60)
        with Watch() as watch:
            for _ in range(pieces):
                client.send(blob)
            client.sock.unwrap()
            until(lambda: bool(taken), 30)
        check(taken == [pieces << 20], f"the upload is exact for {taken} bytes")
        check(watch.grown < most, f"upload: grew by {watch.grown >> 10} KB")
        found.append(watch.grown)
    return f"{pieces} MiB each way, grew by {found[0] >> 10} and {found[1] >> 10} KB at most, all exact"


@case("K41", "key updates by the client, both kinds; 2^24 records", "served, bytes exact", alone=True)
def _(bench: Bench) -> str:
    def echo(side: ServerSide) -> None:
        while data := side.read():
            side.write(data)

    bench.controls.kinds.add(SCRIPTED)
    with bench.serving(context=server_context(good(bench)), handler=echo) as server:
        for direct in (True, False):
            who = "directly: " * direct
            client = Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            for number in range(60):
                client.key_update(number % 2 == 1)
                client.write(b"ping%02d" % number)
                got = b""
                while len(got) < 6:
                    got += client.read()
                check(got == b"ping%02d" % number, f"{who}{got!r}")
            data = os.urandom(20_000)
            got = b""
            writer = threading.Thread(target=lambda: client.write(data, size=1))  # noqa: B023
            writer.start()
            while len(got) < len(data):
                got += client.read()
            writer.join()
            check(got == data, f"{who}bytes differ")
            check(client.updates > 0, f"{who}a requested update was not answered")
            client.sock.close()
            if direct:
                bench.directly("scripted client", f"{client.updates} updates answered")
    records = bench.size(1 << 24, 1 << 16)
    sizes: list[int] = []

    def take(side: ServerSide) -> None:
        got = 0
        while data := side.read(1 << 16):
            got += len(data) if data.count(0) == len(data) else 0
            side.got.clear()
        sizes.append(got)

    with bench.serving(context=server_context(good(bench)), handler=take) as server:
        where = ["-connect", f"{ADDRESS}:{server.port}", "-servername", HOST, "-CAfile", str(bench.firewall.ca)]
        sender = ["openssl", "s_client", *where, "-tls1_3", "-max_send_frag", "512", "-nocommands", "-verify_quiet"]

        def send(place: Namespace, count: int) -> None:
            sizes.clear()
            line = f"head -c {count * 512} /dev/zero | {' '.join(sender)} -quiet -no_ign_eof >/dev/null"
            place.run(["sh", "-c", line], timeout=900, check=False)
            until(lambda: bool(sizes), 60)
            check(sizes == [count * 512], f"{place.name}: {sizes} of {count * 512} bytes in records of 512 arrived")

        send(bench.lab.server, 1 << 16)
        bench.directly("openssl s_client", f"{1 << 16} records")
        busy = bench.cpu()
        send(bench.lab.client, records)
        each = (bench.cpu() - busy) / records
    return (
        f"60 updates ({client.updates} answered), 20,000 records of one byte exact; "
        f"{records} records of 512 under one key, {each * 1e6:.1f} us of CPU each"
    )


@case("K42", "renegotiation by the client", "refused, little CPU")
def _(bench: Bench) -> str:
    def begin(port: int, direct: bool) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        sock = bench.connect(port, direct=direct)
        blocking(sock, 5)
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        connection.set_tlsext_host_name(HOST.encode())
        connection.do_handshake()
        return connection

    with plain(bench, versions=TLS12, configure=lambda one: one.set_options(ALLOW_CLIENT_RENEGOTIATION)) as server:
        connection = begin(server.port, True)
        connection.renegotiate()
        connection.do_handshake()
        connection.sendall(REQUEST)
        check(PAGE in connection.recv(1000), "directly: not served")
        check(connection.total_renegotiations() == 1, "directly: not renegotiated")
        bench.directly("pyOpenSSL", "renegotiated")
        connection.close()
        connection = begin(server.port, False)
        before = bench.cpu()
        outcome = "refused"
        try:
            connection.renegotiate()
            connection.do_handshake()
            connection.sendall(REQUEST)
            check(PAGE in connection.recv(1000), "neither refused nor served")
            outcome = "ignored"
        except (SSL.Error, OSError) as error:
            outcome = f"refused ({str(error)[:60]})"
        check(connection.total_renegotiations() == 0 or outcome.startswith("refused"), "renegotiated")
        check(server.handshakes == 1, f"{server.handshakes} upstream handshakes")
        spent = bench.cpu() - before
        check(spent < 0.25, f"{spent:.2f} s of CPU")
        connection.close()
    return f"{outcome}, {spent * 1000:.0f} ms of CPU"


@case(
    "K43", "a million records of one byte, records of 16,384, with padding", "bytes exact, the work bounded", alone=True
)
def _(bench: Bench) -> str:
    def echo(side: ServerSide) -> None:
        while data := side.read():
            side.write(data)
            side.got.clear()

    found = []
    sizes = ((1, bench.size(1_000_000, 10_000), 0), (16_384, 2_000_000, 0), (10, 20_000, 1000), (0, 3000, 16_000))
    bench.controls.kinds.add(SCRIPTED)
    with bench.serving(context=server_context(good(bench)), handler=echo) as server:
        # A million is for nfw: its server by itself shows with fewer that it takes them.
        for direct, (size, most, pad) in [*((True, one) for one in sizes), *((False, one) for one in sizes)]:
            total = min(most, 100_000) if direct else most
            client = Client13(bench.connect(server.port, direct=direct, seconds=60), HOST)
            client.handshake()
            data = os.urandom(total)
            step = size or 300

            def write(client: Client13 = client, data: bytes = data, step: int = step, pad: int = pad) -> None:
                for at in range(0, len(data), step * 1000):
                    some = range(at, min(at + step * 1000, len(data)), step)
                    client.sock.sendall(
                        b"".join(client.record(tls12.DATA, data[one : one + step], pad) for one in some)
                    )

            busy = bench.cpu()
            writer = threading.Thread(target=write)
            writer.start()
            got = bytearray()
            while len(got) < total:
                piece = client.read()
                check(piece != b"", f"ended after {len(got)} of {total}")
                got += piece
            writer.join()
            check(got == data, f"{'directly, ' * direct}{size} B: bytes differ")
            client.sock.close()
            count = -(-total // step)
            if direct:
                bench.directly("scripted client", f"{count} records of {step} B")
                continue
            each = (bench.cpu() - busy) / count
            check(each * count < 0.1 + 2e-4 * count, f"{step} B: {each * 1e6:.0f} us of CPU for each record")
            shown = f" + {pad} of padding" if pad else ""
            found.append(f"{count} records of {step} B{shown}, {each * 1e6:.0f} us of CPU each")
    return ", ".join(found)


@case("K44", "segments of 88 bytes, lost, reordered, duplicated; an urgent byte", "bytes exact", alone=True)
def _(bench: Bench) -> str:
    """The disorder is on the client's line to the router: there is no way past nfw on which it could be seen. What is
    seen directly are the small segments and the urgent byte, which whoever reads the stream is not given."""
    blob = os.urandom(300_000)
    request = b"POST / HTTP/1.1\r\nHost: site.grade.test\r\nContent-Length: 300000\r\n\r\n" + blob
    back = os.urandom(300_000)

    def handler(side: ServerSide) -> None:
        while len(side.got) < len(request) and side.read():
            pass
        side.write(hashlib.sha256(side.got).digest() + back)

    def visit(port: int, place: Namespace, what: str, seconds: float) -> str:
        with place.entered():
            sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
        sock.settimeout(seconds)
        began = time.monotonic()
        sock.connect((ADDRESS, port))
        with bench.client_context(strict=True, direct=place is bench.lab.server).wrap_socket(
            sock, server_hostname=HOST
        ) as conn:
            conn.sendall(request)
            got = b""
            while len(got) < 32 + len(back) and (data := conn.recv(65536)):
                got += data
        check(got == hashlib.sha256(request).digest() + back, f"{what}: not exact, {len(got)} bytes")
        return f"{what} {time.monotonic() - began:.1f} s"

    with bench.serving(context=server_context(good(bench)), handler=handler) as server:
        bench.directly("validating client", visit(server.port, bench.lab.server, "in order", 20))
        found = [visit(server.port, bench.lab.client, "in order", 20)]
        try:
            line = Disorder(bench.lab)
        except FileNotFoundError as error:
            raise CannotRunError(str(error)) from None
        with line:
            found.append(visit(server.port, line.far, "in disorder", 120))
        check(min(line.counts.values()) > 20, f"too few of them: {line.counts}")
        found.append(", ".join(f"{line.counts[one]} {one}" for one in line.counts))
        check(not inspected_page(bench), "not served after disorder")
    with plain(bench) as server:
        for wanted in (REQUEST, FORBIDDEN):
            for direct in (True, False):
                server.forget()
                client = Client13(bench.connect(server.port, direct=direct), HOST)
                client.handshake()
                client.write(wanted[:10])
                client.sock.send(b"!", socket.MSG_OOB)
                client.write(wanted[10:])
                body, end = client.read_all()
                served = direct or wanted is REQUEST
                check((PAGE in body) is served, f"{'directly, ' * direct}after an urgent byte: {body!r} {end}")
                check(server.got == (b"" if direct or not served else wanted), f"the server got {server.got!r}")
                if direct:
                    bench.directly("scripted client, urgent byte", "served")
        found.append("urgent byte left out, as by the server's kernel")
    return "; ".join(found)


def inspected_page(bench: Bench) -> str:
    with plain(bench) as server:
        return inspected(bench, bench.visit(server.port))


@case("K45", "the same addresses and ports again at once", "verdicts of their own")
def _(bench: Bench) -> str:
    """A flow that was served is ended by the server, so that nfw's socket is in TIME_WAIT when the next one begins; one
    that was not is reset."""
    bad = leaf(bench.trust.unknown, HOST)
    with plain(bench) as server:
        good_context = server.context
        bad_context = server_context(bad)
        server.context = bad_context
        bench.control(server.port, kinds=(False,), body=PAGE)
        bench.control(server.port, kinds=(True,), served=False)
        outcomes, waiting = [], []
        for context in (good_context, bad_context, good_context, bad_context, good_context, good_context):
            server.context = context
            with bench.lab.in_namespace("client"):
                sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(10)
            sock.bind(("10.1.0.2", 9999))
            sock.connect((ADDRESS, server.port))
            body = b""
            with contextlib.suppress(OSError):
                conn = bench.client_context(strict=False).wrap_socket(
                    sock, server_hostname=HOST, do_handshake_on_connect=False
                )
                sock = conn
                conn.do_handshake()
                conn.sendall(REQUEST)
                while data := conn.recv(1000):
                    body += data
                with socket.socket(fileno=os.dup(conn.fileno())) as plain_:
                    plain_.settimeout(10)
                    plain_.recv(1)  # FIN, so that it is not the client who waits
            sock.close()
            time.sleep(0.1)
            outcomes.append(PAGE in body)
            told = bench.lab.router.run(["ss", "-Htan", "state", "time-wait", "dport", "=", ":9999"]).stdout
            waiting.append(bool(told.strip()))
        check(outcomes == [True, False, True, False, True, True], f"{outcomes}")
        check(waiting[0] and waiting[2] and waiting[4], f"nfw's socket in TIME_WAIT: {waiting}")
    return "served, blocked, served, blocked, served, served; in TIME_WAIT after each that was served"


@case(
    "K46",
    "what is inspected is what is forwarded",
    "1,000 random flows equal at client, inspector and server",
    alone=True,
)
def _(bench: Bench) -> str:
    import random

    source = random.Random(7)
    count, mark = 1000, b"GRADE-END-OF-BODY"
    context = bench.client_context(strict=True)
    lock = threading.Lock()
    jobs = iter(range(count))
    wrong: list[str] = []
    ports: list[tuple[int, int, int]] = []

    def handler(side: ServerSide) -> None:
        head = side.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0]
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        while len(side.got) < len(head) + 4 + length and side.read():
            pass
        answer = hashlib.sha256(side.got).digest() * (length % 97 + 1)
        side.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    def ask(server: Server, body: bytes, **how: Any) -> tuple[bytes, Seen, bool]:
        request = b"POST / HTTP/1.1\r\nHost: site.grade.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        seen = bench.visit(server.port, request=request, **how)
        answer = hashlib.sha256(request).digest() * (len(body) % 97 + 1)
        return request, seen, seen.body.partition(b"\r\n\r\n")[2] == answer

    with bench.serving(context=server_context(good(bench)), handler=handler) as server:
        for _ in range(20):
            _, seen, same = ask(server, source.randbytes(source.randrange(60_000)) + mark, direct=True)
            check(same, f"directly: {seen}")
            bench.directly("validating client", "equal")

        def work() -> None:
            while True:
                with lock:
                    if next(jobs, None) is None:
                        return
                    body = source.randbytes(int(source.paretovariate(0.7) * 20) % 60_000) + mark
                request, seen, same = ask(server, body, context=context)
                with lock:
                    ports.append((seen.port, len(request), len(seen.body)))
                    if not same:
                        wrong.append(f"{len(body)} bytes: {seen}")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(not wrong, f"{len(wrong)} differ, {wrong[:2]}")
        wanted: dict[int, list[tuple[int, int]]] = {}  # by port, which may come round again
        for port, sent, received in ports:
            wanted.setdefault(port, []).append((sent, received))
        for port, sizes in wanted.items():
            until(lambda: len(bench.log.about(port, server.port, "tls")) >= len(sizes), 8)  # noqa: B023
            records = [one["tls"] for one in bench.log.about(port, server.port, "tls")]
            counted = sorted((one["bytes_toserver"], one["bytes_toclient"]) for one in records)
            if counted != sorted(sizes):
                wrong.append(f"{port}: inspected {counted} of {sizes}")
            if len(bench.log.about(port, server.port, "alert")) < len(sizes):
                wrong.append(f"{port}: the end of the body was not inspected")
    check(not wrong, f"{len(wrong)} differ, {wrong[:2]}")
    return f"{count} flows, bodies to 60 KB: hashes, counts and the inspector's finds agree"


@case("K47", "a rule that matches within the plaintext", "not a byte of the request forwarded")
def _(bench: Bench) -> str:
    wrong = {}
    with plain(bench) as server:
        for filler in (0, 100, 5000, 20_000):
            for cut in (0, 7):
                request = b"GET /forbidden HTTP/1.1\r\nX: " + b"x" * filler + b"\r\nHost: site.grade.test\r\n\r\n"
                bench.control(server.port, request=request, body=PAGE)
                allowed = request.replace(b"/forbidden", b"/permitted")
                for strict in (True, False):
                    server.forget()
                    seen = bench.visit(server.port, request=allowed, strict=strict)
                    check(PAGE in seen.body and server.got == allowed, f"what no rule forbids, {filler} bytes: {seen}")
                    server.forget()
                    client = bench.open(server.port, strict=strict)
                    pieces = [request[:cut], request[cut:]] if cut else [request]
                    with contextlib.suppress(OSError):
                        for piece in pieces:
                            client.send(piece)
                            time.sleep(0.03)
                    got = client.receive(5)
                    client.close()
                    if got or server.got:
                        wrong[f"{filler} bytes, cut {cut}"] = (
                            f"{len(server.got)} bytes reached the server, {got!r} the client"
                        )
    all_good(wrong)
    return "16 requests, 0 bytes forwarded"


@case("K48", "100,000 names towards a server whose certificate fits none", "no leaf made, caches bounded", alone=True)
def _(bench: Bench) -> str:
    count = bench.size(100_000, 2000)
    bench.use("main", again=True)
    with bench.serving(nginx(leaf(bench.trust.root, "other.test"))) as server:
        bench.control(server.port, kinds=(False,))
        bench.control(server.port, kinds=(True,), served=False)
        # The memory that all which are open at a time take, and full caches, are no growth.
        _names(bench, server, range(count, count + 500))
        before, memory = bench.mints(), bench.memory()
        began = time.monotonic()
        answers = _names(bench, server, range(count))
        rate = count / (time.monotonic() - began)
        grown = bench.memory() - memory
        asked = bench.mints() - before
        check(asked == 0, f"{asked} leafs asked for")
        told = [one for one in answers if one]
        check(not any(one[0] == HANDSHAKE for one in told), "a client was answered with a handshake")
        check(len(answers) == count, f"{len(answers)} of {count} ended")
        check(grown < 32 << 20, f"grew by {grown >> 20} MB")
        bench.log.skip()
        check(not inspected_page(bench), "not served after it")
        check(bench.mints() > before, "leafs are not counted")
    return f"{count} names at {rate:.0f}/s, 0 leafs, memory grew by {grown / 1e6:.1f} MB"


def _names(bench: Bench, server: Any, numbers: Sequence[int]) -> list[bytes]:
    """A ClientHello of TLS 1.2, which shows the certificate in clear, for a name with each of these numbers."""
    hellos = (
        record(HANDSHAKE, client_hello(f"n{number}.grade.test", versions=(0x0303,)), 0x0301) for number in numbers
    )
    return list(flood(bench, server.port, hellos, lambda got: bool(_shown(got))))


def _shown(got: bytes) -> bytes:
    """The leaf in a first flight of TLS 1.2, once it is there."""
    messages = b"".join(got[at + 5 : at + 5 + int.from_bytes(got[at + 3 : at + 5], "big")] for at in _records(got))
    at = 0
    while at + 4 <= len(messages):
        size = int.from_bytes(messages[at + 1 : at + 4], "big")
        if messages[at] == 11 and at + 4 + size <= len(messages):
            return messages[at + 10 : at + 10 + int.from_bytes(messages[at + 7 : at + 10], "big")]
        at += 4 + size
    return b""


@case("K49", "a wildcard server, 100,000 of its names", "one leaf", alone=True)
def _(bench: Bench) -> str:
    count = bench.size(100_000, 500)
    bench.use("main", again=True)
    with bench.serving(nginx(leaf(bench.trust.root, "*.grade.test"))) as server:
        bench.control(server.port)
        _names(bench, server, range(count, count + 500))
        before, memory, began = bench.mints(), bench.memory(), time.monotonic()
        check(before > 0, "leafs are not counted")
        shown = {_shown(got) for got in _names(bench, server, range(count))}
        rate = count / (time.monotonic() - began)
        check(len(shown) == 1 and b"" not in shown, f"{len(shown)} leafs")
        asked, grown = bench.mints() - before, bench.memory() - memory
        check(asked == 0, f"{asked} more leafs asked for")
        check(grown < 32 << 20, f"grew by {grown >> 20} MB")
        check(not inspected(bench, bench.visit(server.port, "last.grade.test")), "not served after it")
        bench.log.skip()
    return f"{count} names at {rate:.0f}/s, 1 leaf, memory grew by {grown / 1e6:.1f} MB"


@case("K50", "the CA's key", "not the leaf's, 0600, not in the worker, no core dumps, unique")
def _(bench: Bench) -> str:
    folder = bench.firewall.dir
    key = folder / "ca.key"
    check(stat.S_IMODE(key.stat().st_mode) == 0o600, f"mode {stat.S_IMODE(key.stat().st_mode):o}")
    with plain(bench) as server:
        shown = x509.load_der_x509_certificate(bench.visit(server.port).certificate)
    encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    mine = _ca(bench).public_key().public_bytes(encoding, layout)
    check(shown.public_key().public_bytes(encoding, layout) != mine, "the leaf carries the CA's key")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    scalar = secret.private_numbers().private_value
    needles = [scalar.to_bytes(32, "big"), scalar.to_bytes(32, "little")]
    named = {title: pid for pid, title in children(bench.firewall.pid()).items()}
    holders = [title for title, pid in named.items() if any(_in_memory(pid, needle) for needle in needles)]
    check(bool(holders), "the key is not found in any memory, not even where it has to be")
    check(all("keyholder" in title for title in holders), f"the key is in the memory of {holders}")
    for title, pid in named.items():
        if "tls" in title or "keyholder" in title:
            limit = Path(f"/proc/{pid}/limits").read_text().partition("Max core file size")[2].split()[0]
            check(limit == "0" or _undumpable(pid), f"{title} may dump core")
    other = folder / "second"
    other.mkdir(exist_ok=True)
    bench.firewall.cli("ca", "create", "--name", "Second", "--out", str(other))
    fresh = x509.load_pem_x509_certificate((other / "ca.pem").read_bytes())
    check(fresh.fingerprint(hashes.SHA256()) != _ca(bench).fingerprint(hashes.SHA256()), "the same CA twice")
    return f"in the memory of {', '.join(holders)} alone"


def _undumpable(pid: int) -> bool:
    """A process that is not dumpable has its /proc files owned by root, and none of them tells its memory map to its
    own user; for root's processes the core_pattern's limit is what remains."""
    try:
        return Path(f"/proc/{pid}/coredump_filter").read_text().strip() == "00000000"
    except OSError:
        return True


def _in_memory(pid: int, needle: bytes) -> bool:
    """Whether a process has these bytes in its writable memory."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            if "w" not in rights:
                continue
            start, end = (int(one, 16) for one in span.split("-"))
            if end - start > 1 << 28:
                continue
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                if needle in memory.read(end - start):
                    return True
    return False


_ = (dns, path, pki, SPARE)

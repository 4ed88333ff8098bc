"""What a server does with the protocol, as far as nfw is its client."""

from __future__ import annotations

import copy
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from tests.grade import pki, tls12, tls13
from tests.grade.bench import (
    HOST,
    Bench,
    Probe,
    Seen,
    ServerSide,
    WrongError,
    blocking,
    check,
    path,
    run_probes,
    server_context,
    until,
)
from tests.grade.case import case
from tests.grade.certificates import TLS12, hear
from tests.grade.pki import Issued, leaf
from tests.grade.real import WWW, SServer, nginx, s_server
from tests.grade.revocation import was_resumed
from tests.grade.tls13 import DATA, HANDSHAKE, Server13, Stream13, page

PROTOCOL = ("PROTOCOL",)
TLS13 = (SSL.TLS1_3_VERSION, SSL.TLS1_3_VERSION)
# Suites of the IANA registry by what is wrong with them.
WEAK_SUITES = {
    "RC4-MD5": 0x0004,
    "RC4-SHA": 0x0005,
    "ECDHE-RC4": 0xC011,
    "DES": 0x0009,
    "3DES": 0x000A,
    "ECDHE-3DES": 0xC012,
    "EXPORT RC4": 0x0003,
    "EXPORT RSA": 0x0008,
    "NULL": 0x0002,
    "ECDHE-NULL": 0xC010,
    "anonymous DH": 0x0034,
    "anonymous ECDH": 0xC018,
}


def legacy(one: Issued, ciphers: str) -> SServer:
    """OpenSSL's own server, of TLS 1.2 with these suites alone."""
    return s_server(one, "-tls1_2", "-cipher", f"{ciphers}:@SECLEVEL=0")


def good(bench: Bench, host: str = HOST, **how: Any) -> Issued:
    return leaf(bench.trust.root, host, **how)


def chooses(bench: Bench, **how: Any) -> tls12.Server12:
    """A server of 1.2 or below that chooses what it likes, whatever was offered, and goes on as if it were good."""
    one = good(bench)
    return tls12.Server12(path(one), one.key, **how)


def _rest(side: ServerSide) -> bytes:
    data = b""
    try:
        while piece := side.sock.recv(65536):
            data += piece
    except OSError:
        pass
    return data


def refused(bench: Bench, servers: dict[str, tls12.Server12], alerts: tuple[int, ...] = ()) -> str:
    """Each of these must be refused as PROTOCOL, though one of them with nothing wrong is served; the alerts they hear
    must be of these, where given."""
    seen = run_probes(bench, [Probe("with nothing wrong", chooses(bench).handler)])
    wrong = []
    for label, scripted in servers.items():
        alone = copy.copy(scripted)
        alone.alerts = []
        with bench.serving(handler=alone.handler) as server:
            bench.directly("careless client", bench.visit(server.port, strict=False, direct=True, seconds=3))
        with bench.serving(handler=scripted.handler) as server:
            for strict in (True, False):
                server.forget()
                scripted.alerts.clear()
                got = bench.visit(server.port, strict=strict)
                record = bench.verdict(got, server.port)["nfw"]
                deadline = time.monotonic() + 2
                while alerts and not scripted.alerts and time.monotonic() < deadline:
                    time.sleep(0.02)
                heard = list(scripted.alerts)
                if record["status"] != "PROTOCOL" or got.body or got.handshake or got.end != "reset":
                    wrong.append(f"{label}: {record}; client saw {got}")
                elif server.got:
                    wrong.append(f"{label}: {len(server.got)} bytes reached the server")
                elif alerts and not (heard and heard[0] in alerts):
                    wrong.append(f"{label}: alerts {heard} instead of one of {alerts}")
    check(not wrong, "; ".join(wrong))
    return f"{len(servers)} refused, {seen} with nothing wrong"


@case(
    "P01",
    "the ClientHello nfw itself sends",
    "1.2 and 1.3, forward secrecy and AEAD alone, post-quantum first, no SHA-1",
)
def _(bench: Bench) -> str:
    hellos: list[tls12.Hello] = []

    def handler(side: ServerSide) -> None:
        hellos.append(tls12.read_hello(side.sock))

    with bench.serving(handler=handler) as server:
        bench.visit(server.port)
        bench.visit(server.port, strict=False)
        check(len(hellos) == 2, f"{len(hellos)} ClientHellos")
        bench.visit(server.port, strict=False, direct=True)
    own = hellos.pop()
    allowed = {0x1301, 0x1302, 0x1303, 0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9, 0x00FF}
    weak = set(own.ciphers) - allowed
    check(bool(weak), "the careless client itself offers nothing that is weak")
    bench.directly("careless client", f"offers {len(weak)} weak suites")
    for hello in hellos:
        check(set(hello.versions) <= {0x0303, 0x0304}, f"versions {hello.versions}")
        check(set(hello.ciphers) <= allowed, f"suites {[hex(one) for one in hello.ciphers]}")
        check(hello.compression == b"\0", "compression")
        algorithms = hello.numbers(13)
        sha1 = [hex(one) for one in algorithms if one >> 8 in (1, 2)]
        check(not sha1, f"signature algorithms {sha1}")
        check(23 in hello.extensions, "no extended master secret")
        check(0xFF01 in hello.extensions or 0x00FF in hello.ciphers, "no renegotiation indication")
        check(hello.numbers(10)[0] == 0x11EC, f"groups {hello.numbers(10)}")
        check(15 not in hello.extensions, "heartbeat")
    return f"{len(hellos[0].ciphers)} suites, groups from {hellos[0].numbers(10)[0]:#x}"


@case("P02", "SSLv2 or SSLv3 alone", "PROTOCOL")
def _(bench: Bench) -> str:
    def two(side: ServerSide) -> None:
        tls12.read_hello(side.sock)
        side.sock.sendall(b"\x80\x0b\x04\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00")
        hear(side)

    seen = refused(bench, {"SSLv3": chooses(bench, version=0x0300)}, (70,))
    return f"{seen}; {run_probes(bench, [Probe('SSLv2', two, PROTOCOL, direct=False)])}"


@case("P03", "TLS 1.0 or 1.1 alone", "PROTOCOL")
def _(bench: Bench) -> str:
    found = []
    for label, version, option in (("1.0", SSL.TLS1_VERSION, "-tls1"), ("1.1", SSL.TLS1_1_VERSION, "-tls1_1")):
        found.append(Probe(label, s_server(good(bench), option), PROTOCOL, body=WWW))
        scripted = chooses(bench, version=int(version)).handler
        found.append(Probe(f"{label}, whatever was offered", scripted, PROTOCOL, direct=False))
    return run_probes(bench, found)


@case(
    "P04", "broken suites: RC4, DES, 3DES, export, NULL, anonymous", "PROTOCOL, illegal_parameter or handshake_failure"
)
def _(bench: Bench) -> str:
    seen = refused(bench, {label: chooses(bench, cipher=suite) for label, suite in WEAK_SUITES.items()}, (47,))
    found = [
        Probe(f"OpenSSL, {suite}", legacy(good(bench), suite), PROTOCOL, body=WWW)
        for suite in ("aNULL", "ECDHE-ECDSA-NULL-SHA")
    ]
    return f"{seen}; {run_probes(bench, found)}"


@case("P05", "a suite, group, version or protocol that was not offered", "alert illegal_parameter, PROTOCOL")
def _(bench: Bench) -> str:
    one = good(bench)
    servers = {
        "suite, 1.2": chooses(bench, cipher=0xC023),
        "version": chooses(bench, version=0x0305),
        "group, 1.2": chooses(bench, exchange=tls12.key_exchange(group=1)),
    }
    seen = refused(bench, servers, (47, 70, 40))
    wrong = []
    cases_ = {
        "suite, 1.3": Server13(path(one), one.key, page, suite=0x1304),
        "group, 1.3": Server13(path(one), one.key, page, group=0x9999),
        "version, 1.3": Server13(path(one), one.key, page, version=0x0305),
        "ALPN": Server13(path(one), one.key, page, alpn=b"strange"),
    }
    for label, scripted in cases_.items():
        with bench.serving(handler=scripted.handler) as server:
            direct = bench.visit(server.port, strict=False, direct=True, alpn=["http/1.1"], seconds=3)
            bench.directly("careless client", direct)
            got = bench.visit(server.port, alpn=["http/1.1"])
            check(not got.body, f"{label}: {got}")
            scripted.alerts.clear()
            got = bench.visit(server.port, strict=False, alpn=["http/1.1"])
            record = bench.verdict(got, server.port)["nfw"]
            deadline = time.monotonic() + 2
            while not scripted.alerts and time.monotonic() < deadline:
                time.sleep(0.02)
            # To OpenSSL a protocol nobody offered is a decode_error; RFC 7301 names no alert for it.
            alerts = {47, 50} if label == "ALPN" else {47, 70}
            if record["status"] != "PROTOCOL" or got.body or not set(scripted.alerts) & alerts:
                wrong.append(f"{label}: {record['status']} {record['reason']}, alerts {scripted.alerts}, {got}")
    check(not wrong, "; ".join(wrong))
    return f"{seen}; {len(cases_)} refused of 1.3"


@case("P06", "finite-field Diffie-Hellman of any size", "never offered, so PROTOCOL")
def _(bench: Bench) -> str:
    def exchange(size: int) -> bytes:
        prime = os.urandom(size // 8 - 1) + b"\xff"
        block = tls12.vector(prime, 2) + tls12.vector(b"\2", 2) + tls12.vector(os.urandom(size // 8 - 1), 2)
        return tls12.message(12, block + b"\4\1" + tls12.vector(bytes(256), 2))

    servers = {
        f"{size} bits": chooses(bench, cipher=0x009E, exchange=exchange(size)) for size in (480, 512, 768, 1024, 2048)
    }
    seen = refused(bench, servers, (47, 40))
    only = legacy(good(bench, key=pki.rsa_key(2048)), "DHE")
    return f"{seen}; {run_probes(bench, [Probe('OpenSSL, DHE alone', only, PROTOCOL, body=WWW, alone='served')])}"


@case("P07", "key exchange by RSA alone", "PROTOCOL")
def _(bench: Bench) -> str:
    one = good(bench, key=pki.rsa_key(2048), usage=("digital_signature", "key_encipherment"))
    return run_probes(bench, [Probe("OpenSSL, kRSA alone", legacy(one, "kRSA"), PROTOCOL, body=WWW, alone="served")])


@case("P08", "CBC suites alone", "PROTOCOL")
def _(bench: Bench) -> str:
    only = legacy(good(bench), "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA")
    return run_probes(bench, [Probe("OpenSSL, CBC alone", only, PROTOCOL, body=WWW, alone="served")])


@case(
    "P11",
    "no secure renegotiation; a server that asks for a new handshake",
    "refused; ignored and the flow lives or ends cleanly",
)
def _(bench: Bench) -> str:
    no_indication = [tls12.extension(23, b""), tls12.extension(11, b"\1\0")]
    seen = refused(bench, {"without": chooses(bench, extensions=no_indication)}, (40,))

    def asks(side: ServerSide) -> None:
        side.read_until(b"\r\n\r\n")
        side.write(b"first ")
        assert side.tls is not None
        finished = side.tls.get_finished()
        side.tls.renegotiate()
        side.tls.do_handshake()
        side.write(b"goes on")
        # The client's hello comes with whatever it says next, and only then is there a second handshake.
        side.read()
        renegotiated.append(side.tls.get_finished() != finished)

    renegotiated: list[bool] = []
    context = server_context(good(bench), versions=TLS12, configure=lambda one: one.set_options(0))
    with bench.serving(context=context, handler=asks) as server:
        got = bench.visit(server.port, direct=True, seconds=2)
        bench.directly("validating client, HelloRequest", "renegotiates")
        got = bench.visit(server.port)
        check(got.body in (b"first ", b"first goes on"), f"after HelloRequest: {got}")
        until(lambda: len(renegotiated) == 2)
        check(renegotiated == [True, False], f"renegotiated by the client directly, and by nfw: {renegotiated}")
        check(got.end in ("clean", "cut", "reset"), f"the flow ended by {got.end}")
    return f"{seen}; HelloRequest declined, the flow {'went on' if b'goes on' in got.body else 'ended'}"


@case("P12", "compression chosen", "PROTOCOL")
def _(bench: Bench) -> str:
    return refused(bench, {"DEFLATE": chooses(bench, compression=1)}, (47,))


@case("P13", "no extended master secret", "served and logged, never resumed")
def _(bench: Bench) -> str:
    def configure(context: SSL.Context) -> None:
        context.set_options(1)  # SSL_OP_NO_EXTENDED_MASTER_SECRET
        context.set_session_id(b"grade")

    def logged(record: dict[str, Any], _seen: Seen) -> str:
        remarks = record["nfw"].get("remarks", ())
        return "" if "no_extended_master_secret" in remarks else f"not logged: {record['nfw']}"

    context = server_context(good(bench), versions=TLS12, configure=configure)
    return run_probes(bench, [Probe("without", context, extra=logged), Probe("again", context, extra=logged)])


@case("P14", "heartbeats", "nothing leaks: alert, the flow ends")
def _(bench: Bench) -> str:
    over = b"\1\x40\0" + b"x" * 16  # a request that says it has 16 KB
    one = good(bench)
    heard: list[bytes] = []
    said: list[bytes] = []

    def after(stream: Stream13) -> None:
        stream.read()
        stream.send(tls12.HEARTBEAT, over)
        got, end = stream.read_all()
        heard.append(got + end.encode())

    def early(side: ServerSide) -> None:
        tls12.read_hello(side.sock)
        side.sock.sendall(tls12.record(tls12.HEARTBEAT, over))
        heard.append(_rest(side))

    found = run_probes(bench, [Probe("without", Server13(path(one), one.key, page).handler)])
    for handler in (Server13(path(one), one.key, after).handler, early):
        with bench.serving(handler=handler) as server:
            directly = bench.visit(server.port, direct=True)
            until(lambda: bool(heard))
            bench.directly("validating client, asked for one", f"says {len(heard.pop())} bytes, {directly.outcome()}")
            seen = bench.visit(server.port)
            check(not seen.body, f"client saw {seen}")
            until(lambda: bool(heard))
            said.append(heard.pop())
    with bench.serving(context=server_context(one)) as server:
        seen = bench.raw(server.port, tls12.record(tls12.HEARTBEAT, over))
        check(len(seen.raw) < 10, f"{len(seen.raw)} bytes came back to the client")
    check(all(len(one) < 40 for one in said), f"the server heard {[len(one) for one in said]} bytes")
    return f"without {found}; no heartbeat answered; the servers heard at most {max(map(len, said))} bytes"


@case("P16", "floods: empty records, warnings, key updates, tickets, change_cipher_spec", "bounded, closed at a cap")
def _(bench: Bench) -> str:
    """A few of each are no flood: with them the page is served as without nfw. Of change_cipher_spec, of which there is
    to be none after the handshake (RFC 8446 5), the client takes none by itself, and nfw may."""
    one = good(bench)
    ends: dict[str, str] = {}
    found: list[str] = []

    def flood(label: str, make: Callable[[Stream13], bytes], count: int) -> Callable[[Stream13], None]:
        def after(stream: Stream13) -> None:
            stream.read()
            stream.sock.settimeout(5)
            try:
                for _ in range(count):
                    stream.sock.sendall(make(stream))
                ends[label] = "all taken"
            except OSError:
                ends[label] = "closed"
            if count == few:
                stream.write(b"GRADE")
                stream.close_notify()

        return after

    def update(stream: Stream13) -> bytes:
        assert stream.seal is not None
        data = stream.record(HANDSHAKE, tls12.message(24, b"\1"))
        stream.seal = stream.seal.next()
        return data

    def ticket(stream: Stream13) -> bytes:
        return stream.record(
            HANDSHAKE, tls12.message(4, bytes(8) + tls12.vector(b"n", 1) + tls12.vector(bytes(64), 2) + b"\0\0")
        )

    floods = {
        "empty records": lambda stream: stream.record(DATA, b""),
        "warnings": lambda stream: stream.record(tls12.ALERT, b"\1\x5a"),
        "key updates": update,
        "tickets": ticket,
        "change_cipher_spec": lambda _: tls12.record(tls12.CHANGE, b"\1"),
    }
    few, many = 3, 20_000
    for label, make in floods.items():
        taken = {}
        handler = Server13(path(one), one.key, flood(label, make, few)).handler
        with bench.serving(handler=handler) as server:
            for direct in (True, False):
                taken[direct] = bench.visit(server.port, direct=direct).body == b"GRADE"
        bench.directly("validating client", f"{few} {label} {'taken' if taken[True] else 'refused'}")
        check(label == "change_cipher_spec" or all(taken.values()), f"{few} {label}: {taken}")
    before = bench.memory()
    for label, make in floods.items():
        handler = Server13(path(one), one.key, flood(label, make, many)).handler
        with bench.serving(handler=handler) as server:
            bench.directly("validating client", f"{label} {bench.visit(server.port, direct=True, seconds=3).outcome()}")
            ends.clear()
            seen = bench.visit(server.port, seconds=20)
            until(lambda label=label: label in ends)
            wanted = "closed"
            check(ends[label] == wanted and not seen.body, f"{label}: {ends[label]}, {seen}")
            record = bench.verdict(seen, server.port)
            found.append(f"{label} {ends[label]}, {record['nfw']['reason']}")
    grown = bench.memory() - before
    check(grown < 32 << 20, f"grew by {grown >> 20} MB")
    return f"{'; '.join(found)}; memory grew by {grown >> 20} MB"


def _ended(bench: Bench, finish: Callable[[ServerSide], None], context: SSL.Context) -> tuple[Seen, dict[str, Any]]:
    def handler(side: ServerSide) -> None:
        side.read_until(b"\r\n\r\n")
        side.write(b"x" * 50_000)
        finish(side)

    with bench.serving(context=context, handler=handler) as server:
        (directly,) = bench.control(server.port, kinds=(True,))
        seen = bench.visit(server.port)
        same = (directly.end, len(directly.body)) == (seen.end, len(seen.body))
        check(same, f"directly {directly}, through nfw {seen}")
        return seen, bench.verdict(seen, server.port)


@case(
    "P17",
    "an end without close_notify: FIN, FIN within a record, RST",
    "the client gets all plaintext and the same kind of end",
)
def _(bench: Bench) -> str:
    def fin(side: ServerSide) -> None:
        side.sock.shutdown(socket.SHUT_RDWR)

    def torn(side: ServerSide) -> None:
        side.sock.sendall(tls12.record(DATA, bytes(400))[:200])
        side.sock.shutdown(socket.SHUT_RDWR)

    def reset(side: ServerSide) -> None:
        time.sleep(0.2)  # what came before must have been read: TCP drops it with the reset
        side.reset()

    found = []
    for versions in (None, TLS12):
        how: dict[str, Any] = {"versions": versions} if versions else {}
        for label, finish in (("FIN", fin), ("torn", torn), ("RST", reset)):
            seen, record = _ended(bench, finish, server_context(good(bench), **how))
            check(len(seen.body) == 50_000, f"{label}: {seen}")
            check(seen.end != "clean", f"{label}: the client saw a clean end; {record['nfw']}")
            check("to_client" in record["tls"].get("truncated", ()), f"{label}: not logged as truncated: {record}")
            found.append(f"{label}: {seen.end}")
    return ", ".join(found)


@case("P18", "data, then the end at once", "every byte arrives")
def _(bench: Bench) -> str:
    blob = os.urandom(3 << 20)

    def handler(side: ServerSide) -> None:
        side.write(blob)

    with bench.serving(context=server_context(good(bench)), handler=handler) as server:
        for direct in (True, *[False] * 5):
            seen = bench.visit(
                server.port, request=b"", direct=direct
            )  # unread, it would make the server's kernel reset
            check(seen.body == blob and seen.end == "clean", f"{seen}")
            if direct:
                bench.directly("validating client", "all bytes")
    return f"5 times {len(blob)} bytes, all exact"


@case("P19", "half-close, by the server and by the client", "the other direction goes on to its end")
def _(bench: Bench) -> str:
    one = good(bench)
    got: list[bytes] = []

    def server_first(stream: Stream13) -> None:
        stream.write(b"done")
        stream.close_notify()
        stream.sock.shutdown(socket.SHUT_WR)
        got.append(stream.read_all()[0])

    for direct in (True, False):
        got.clear()
        with bench.serving(handler=Server13(path(one), one.key, server_first).handler) as server:
            client = tls13.Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            check(client.read() == b"done" and client.read() == b"", "the server's half did not arrive")
            time.sleep(0.2)
            client.write(b"still " * 1000)
            client.close_notify()
            client.sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 5
            while not got and time.monotonic() < deadline:
                time.sleep(0.02)
            whole = got == [b"still " * 1000]
            check(whole, f"after the server's half-close {[len(part) for part in got]} bytes arrived")

    def client_first(stream: Stream13) -> None:
        got.append(stream.read_all()[0])
        time.sleep(0.3)
        stream.write(b"answer")
        stream.close_notify()

    for direct in (True, False):
        with bench.serving(handler=Server13(path(one), one.key, client_first).handler) as server:
            client = tls13.Client13(bench.connect(server.port, direct=direct), HOST)
            client.handshake()
            client.write(b"question")
            client.close_notify()
            client.sock.shutdown(socket.SHUT_WR)
            heard = client.read_all()
            check(heard == (b"answer", "clean"), f"after the client's half-close: {heard}")
            if direct:
                bench.directly("scripted client", "both")
    return "both"


@case(
    "P20",
    "silence after accept, after the ClientHello, a byte now and then",
    "10 s, then closed and the descriptor freed",
)
def _(bench: Bench) -> str:
    one = good(bench)
    left: dict[tuple[str, bool], float] = {}

    def after_hello(side: ServerSide) -> None:
        tls12.read_hello(side.sock)
        hear(side)

    def at_once(side: ServerSide) -> None:
        hear(side)

    def drip(side: ServerSide) -> None:
        hello = tls12.read_hello(side.sock)
        flight = tls12.record(HANDSHAKE, tls12.server_hello(hello) + tls12.certificates(path(one)))
        for at in range(20):
            side.sock.sendall(flight[at : at + 1])
            time.sleep(1)

    servers = {"accept": at_once, "ClientHello": after_hello, "drip": drip}
    found: dict[tuple[str, bool], Seen] = {}

    def visit(label: str, handler: Callable[[ServerSide], None], direct: bool) -> None:
        def timed(side: ServerSide) -> None:
            began = time.monotonic()
            try:
                blocking(side.sock, 20)
                handler(side)
            finally:
                left[label, direct] = time.monotonic() - began

        with bench.serving(handler=timed) as server:
            seen = bench.visit(server.port, direct=direct, seconds=13 if direct else 20)
            found[label, direct] = seen
            if not direct:
                until(lambda: (label, False) in left)
                reason = bench.verdict(seen, server.port)["nfw"]["reason"]
                check(reason == "upstream_timeout", f"{label}: {reason}")

    wrong: list[str] = []

    def visited(*item: Any) -> None:
        try:
            visit(*item)
        except WrongError as error:
            wrong.append(str(error))

    every = [(label, handler, direct) for label, handler in servers.items() for direct in (True, False)]
    threads = [threading.Thread(target=visited, args=item) for item in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not wrong, "; ".join(wrong))
    for (label, direct), seen in found.items():
        if direct:
            bench.directly("validating client", "waits for 12 s and more")
            check(seen.seconds > 12 and not seen.handshake, f"directly, {label}: {seen} after {seen.seconds:.1f} s")
        else:
            check(seen.end == "reset" and 8 < seen.seconds < 14, f"{label}: {seen} after {seen.seconds:.1f} s")
            gone = left[label, False]
            check(8 < gone < 14, f"{label}: the server was left after {gone:.1f} s")
    times = ", ".join(f"{seen.seconds:.0f} s" for (_, direct), seen in found.items() if not direct)
    return f"reset after {times}, on both sides; the client by itself waits on"


@case("P22", "HelloRetryRequest, with a cookie, twice", "served, served, refused")
def _(bench: Bench) -> str:
    one = good(bench)
    group = tls12.extension(51, struct.pack("!H", 23))
    cookie = tls12.extension(44, tls12.vector(b"a cookie of some length", 2))
    # X25519 was offered with a share, so ask for it only by the cookie; P-256 has no share and must be asked for.
    plain = nginx(good(bench), more="keepalive_timeout 0; ssl_ecdh_curve prime256v1;")
    seen = run_probes(bench, [Probe("nginx, P-256", plain)])
    served = Server13(path(one), one.key, page, retry=[[cookie]])
    with bench.serving(handler=served.handler) as server:
        bench.control(server.port)
        served.hellos.clear()
        got = bench.visit(server.port)
        check(b"GRADE" in got.body, f"cookie: {got} {bench.verdict(got, server.port)['nfw']}")
        check(served.hellos[1].extensions.get(44) == cookie[4:], "the cookie did not come back")
    twice = Server13(path(one), one.key, page, retry=[[cookie], [group]])
    with bench.serving(handler=twice.handler) as server:
        bench.directly("careless client, twice", bench.visit(server.port, strict=False, direct=True))
        twice.alerts.clear()
        got = bench.visit(server.port)
        record = bench.verdict(got, server.port)["nfw"]
        until(lambda: bool(twice.alerts))
        check(record["status"] == "PROTOCOL" and not got.body, f"twice: {record} {got}")
        check(bool(twice.alerts), "no alert to the second HelloRetryRequest")
    return f"{seen}; cookie returned; second refused with alert {twice.alerts[0]}"


@case("P23", "the server asks for a client certificate", "optional: served without; required: PROTOCOL mtls_required")
def _(bench: Bench) -> str:
    identity = bench.firewall.dir / "identity.pem"
    mine = good(bench, "client.grade.test", purposes=pki.eku(ExtendedKeyUsageOID.CLIENT_AUTH))
    identity.write_bytes(pki.pem(mine.der) + mine.key.pem)
    (bench.firewall.dir / "clients.pem").write_bytes(pki.pem(bench.trust.root.der))
    optional = (
        f"keepalive_timeout 0; ssl_verify_client optional; ssl_client_certificate {bench.firewall.dir}/clients.pem;"
    )

    def required(option: str, status: Any = PROTOCOL) -> Probe:
        one = s_server(good(bench), option, "-Verify", "1")
        return Probe(f"required, {option}", one, status, reason="mtls_required", body=WWW, identity=identity)

    found = [
        Probe("optional", nginx(good(bench), more=optional)),
        Probe("optional, 1.2", nginx(good(bench), more=optional, protocols="TLSv1.2")),
        required("-tls1_2"),
    ]
    seen = run_probes(bench, found)
    mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    asking = server_context(good(bench), configure=lambda one: one.set_verify(mode, lambda *_: True))
    with bench.serving(asking) as server:
        bench.control(server.port, served=False)
        known = bench.client_context(strict=True, direct=True)
        known.load_cert_chain(identity)
        alone = bench.visit(server.port, context=known, direct=True)
        check(bool(alone.body), f"directly, with a certificate: {alone}")
        bench.directly("client with a certificate", alone)
        for strict in (True, False):
            got = bench.visit(server.port, strict=strict)
            record = bench.verdict(got, server.port)["nfw"]
            check(not got.body and record["reason"] == "mtls_required", f"required, 1.3: {record} {got}")
    one = good(bench)

    def later(stream: Stream13) -> None:
        stream.read()
        request = tls12.vector(b"context", 1) + tls12.vector(tls12.extension(13, tls12.vector(b"\4\3", 2)), 2)
        if asks:
            stream.send(HANDSHAKE, tls12.message(13, request))
        stream.write(b"GRADE")  # whatever the answer is
        stream.close_notify()

    with bench.serving(handler=Server13(path(one), one.key, later).handler) as server:
        for asks in (False, True):
            got = bench.visit(server.port, direct=True)
            bench.directly(f"validating client, {'' if asks else 'not '}asked later", got)
            got = bench.visit(server.port)
            check(got.body == b"GRADE" * (not asks) and got.end != "timeout", f"post-handshake, asked {asks}: {got}")
    return f"{seen}; required of 1.3 and post-handshake end the flow"


@case("P24", "a session another identity began", "resumed for the client that began it alone")
def _(bench: Bench) -> str:
    other = "10.1.0.77"
    bench.lab.client.run(["ip", "address", "add", f"{other}/24", "dev", "eth0"])
    try:
        return _resumed(bench, [(HOST, ""), (HOST, other)])
    finally:
        bench.lab.client.run(["ip", "address", "delete", f"{other}/24", "dev", "eth0"])


@case("P25", "a server that resumes a session of another name", "never resumed for another, all names verified")
def _(bench: Bench) -> str:
    return _resumed(bench, [(HOST, ""), ("other.grade.test", "")])


def _resumed(bench: Bench, visits: list[tuple[str, str]]) -> str:
    """A server that would resume any session, visited by these names and from these addresses, twice."""
    one = leaf(bench.trust.root, *dict.fromkeys(host for host, _ in visits))
    for versions in (TLS12, TLS13):
        reused: list[bool] = []

        def handler(side: ServerSide) -> None:
            reused.append(was_resumed(side))  # noqa: B023
            side.read_until(b"\r\n\r\n")
            side.write(b"GRADE")

        context = server_context(one, versions=versions, configure=lambda made: made.set_session_id(b"grade"))
        with bench.serving(context=context, handler=handler) as server:
            bench.check_resumes(server.port, b"GRADE")
            check(reused == [False, True], f"directly resumed: {reused}")
            reused.clear()
            for strict, (host, source) in zip((True,) * len(visits) + (False,) * len(visits), visits * 2, strict=True):
                seen = bench.visit(server.port, host, source=source, strict=strict)
                check(seen.body == b"GRADE", f"not served: {seen}")
            # Sessions of TLS 1.3 alone, and nobody's but one's own.
            expected = [False] * len(visits) + [versions == TLS13] * len(visits)
            check(reused == expected, f"resumed: {reused}")
            for strict in (True, False):
                seen = bench.visit(server.port, "uncovered.grade.test", strict=strict)
                check(not seen.body, f"served by a name the certificate does not have: {seen}")
    return f"{len(visits)} of {4 * len(visits)} resumed, each for who began it; directly all; another name is refused"


@case("P26", "a server that would take early data", "nfw never sends any")
def _(bench: Bench) -> str:
    one = good(bench)

    def after(stream: Stream13) -> None:
        early = tls12.extension(42, struct.pack("!I", 16384))
        ticket = struct.pack("!II", 7200, 1) + tls12.vector(b"n", 1) + tls12.vector(os.urandom(64), 2)
        stream.send(HANDSHAKE, tls12.message(4, ticket + tls12.vector(early, 2)))
        page(stream)

    scripted = Server13(path(one), one.key, after)
    with bench.serving(handler=scripted.handler) as server:
        bench.control(server.port)
        scripted.hellos.clear()
        for strict in (True, False, False):
            seen = bench.visit(server.port, strict=strict)
            check(b"GRADE" in seen.body, f"not served: {seen}")
    check(all(42 not in hello.extensions for hello in scripted.hellos), "early data was offered")
    offered = [41 in hello.extensions for hello in scripted.hellos]
    check(offered == [False, True, True], f"sessions that allow it were offered: {offered}")
    return "3 ClientHellos, 2 with sessions that allow early data, none with any"


@case("P28", "a compressed certificate, asked for or not, a bomb", "refused, memory flat")
def _(bench: Bench) -> str:
    import zlib

    one = good(bench)

    def packed(size: int) -> Callable[[bytes], bytes]:
        def make(certificate: bytes) -> bytes:
            data = zlib.compress(certificate[4:] + bytes(size))
            return tls12.message(25, b"\0\1" + (len(certificate) - 4 + size).to_bytes(3, "big") + tls12.vector(data, 3))

        return make

    run_probes(bench, [Probe("not compressed", Server13(path(one), one.key, page).handler)])
    before = bench.memory()
    for size in (0, 15 << 20):
        scripted = Server13(path(one), one.key, page, compressed=packed(size))
        with bench.serving(handler=scripted.handler) as server:
            bench.directly("careless client, compressed", bench.visit(server.port, strict=False, direct=True))
            for strict in (True, False):
                scripted.hellos.clear()
                seen = bench.visit(server.port, strict=strict)
                record = bench.verdict(seen, server.port)["nfw"]
                check(27 not in scripted.hellos[0].extensions, "compression is offered")
                check(record["status"] == "PROTOCOL" and not seen.body, f"{record} {seen}")
    grown = bench.memory() - before
    check(grown < 16 << 20, f"grew by {grown >> 20} MB")
    return f"not offered, refused, memory grew by {grown >> 20} MB"

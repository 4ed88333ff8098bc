"""Names exempted from decryption: real resolvers, real certificates at the client, and clients that lie."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from dnslib import DNSRecord
from hyperframe.frame import HeadersFrame, SettingsFrame

from engines.stateful.app.http2 import PREFACE
from tests.firewall import PATIENCE, Firewall, pids_named, wait_for
from tests.lab import Lab
from tests.netns.test_tls_path import Server, connect, dial, read_all, trusting
from tests.unit.test_altsvc import (
    CHUNKED,
    DNS,
    HEAD,
    UNTYPED,
    UNTYPED_PLAIN,
    by_stream,
    chunks,
    over_http1,
    over_http2,
    sized,
    streams,
)
from tests.unit.test_dns_json import JSON, JSON_PLAIN
from tests.unit.test_quic_and_ech import (
    ALPN,
    ECH,
    KEYED,
    LARGE,
    LARGE_PLAIN,
    OTHER,
    PLAIN,
    framed,
    https,
    response,
)
from tests.unit.tlskit import Authority

pytestmark = pytest.mark.netns

POLICY = """\
name: bypass
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443, 9443]}]
  session_holding: true
  bypass:
    - {sni: [site-b.test, blocked.test, "*.wild.test", nowhere.test]}
stateful: {order: action, rule_files: [bypass.rules]}
"""
RULES = """\
drop tls any any -> any any (msg:"sni"; tls.sni; content:"blocked.test"; sid:1;)
alert tls any any -> any any (msg:"seen"; tls.sni; content:"site-b.test"; sid:2;)
drop websocket any any -> any any (msg:"said"; websocket.payload; content:"evil-word"; sid:4;)
drop http any any -> any any (msg:"uri"; http.uri; content:"/secret"; startswith; sid:3;)
"""


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("bypass", POLICY, RULES))
        yield firewall


def issuer(lab: Lab, name: str, to: str = "") -> tuple[str, int]:
    """(who issued the certificate the client sees, the client's port), by a client that accepts whatever comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with lab.in_namespace("client"):
        sock = socket.create_connection((to or lab.sites[name].ipv4, 443), 10)
    port = sock.getsockname()[1]
    with sock, context.wrap_socket(sock, server_hostname=name) as tls:
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).issuer.rfc4514_string(), port


def record(firewall: Firewall, port: int) -> dict[str, Any]:
    return firewall.wait_event("tls", lambda event: event["src_port"] == port)


LAB, OURS = "CN=Lab root", "CN=Lab inspection CA"


def test_an_exempted_name_is_passed_byte_for_byte(firewall: Firewall) -> None:
    who, port = issuer(firewall.lab, "site-b.test")
    assert who != OURS
    seen = record(firewall, port)
    assert (seen["nfw"]["status"], seen["nfw"]["bypass"]) == ("BYPASSED", "dns")
    assert seen["tls"]["sni"] == "site-b.test"
    assert seen["tls"]["bytes_toclient"] > 500
    flow = firewall.wait_event("flow", lambda event: event["src_port"] == port)
    assert "tls_inspected" not in flow
    alert = firewall.wait_event("alert", lambda event: event["src_port"] == port)
    assert alert["alert"]["signature"] == "seen", "rules see the handshake"
    assert "tls_inspected" not in alert


def test_curl_gets_what_nobody_reads(firewall: Firewall) -> None:
    """The client that trusts only the server's own CA, a rule on the URI notwithstanding."""
    for path, version in (("/secret", "--http1.1"), ("/shared/1m", "--http2")):
        answer = firewall.lab.curl(f"https://site-b.test{path}", version, cacert=firewall.lab.root_ca_path)
        assert answer.returncode == 0, answer.stderr


def test_ipv6_and_names_below_a_domain(firewall: Firewall) -> None:
    for name, to in (("site-b.test", firewall.lab.sites["site-b.test"].ipv6), ("a.wild.test", "")):
        who, port = issuer(firewall.lab, name, to)
        assert who != OURS
        assert record(firewall, port)["nfw"]["status"] == "BYPASSED"


def test_other_names_are_decrypted(firewall: Firewall) -> None:
    who, port = issuer(firewall.lab, "site-a.test")
    assert who == OURS
    assert "bypass" not in record(firewall, port)["nfw"]


def test_a_name_is_not_enough(firewall: Firewall) -> None:
    """Its own server elsewhere, and the client's word for it: decrypted, so the server's certificate decides."""
    lab = firewall.lab
    with pytest.raises(ConnectionError):
        issuer(lab, "site-b.test", lab.sites["evil.test"].ipv4)
    refused = firewall.wait_event("tls", lambda event: event["dest_ip"] == lab.sites["evil.test"].ipv4)
    assert refused["nfw"]["bypass_refused"] == "address"
    assert (refused["nfw"]["status"], refused["nfw"]["action"]) == ("NAME_MISMATCH", "reject")
    assert refused["tls"]["server_names"] == ["evil.test"]
    issuer(lab, "site-b.test")
    counts = next(one for one in firewall.status()["processes"] if one["name"].startswith("nfw tls"))["counts"]
    assert counts["bypass_refused"] >= 1
    assert counts["bypassed"] >= 1


def test_a_name_nobody_has(firewall: Firewall) -> None:
    lab = firewall.lab
    with pytest.raises(ConnectionError):
        issuer(lab, "nowhere.test", lab.sites["site-a.test"].ipv4)
    firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "nowhere.test")


def test_the_server_hears_nothing_of_what_a_rule_forbids(firewall: Firewall) -> None:
    lab = firewall.lab
    before = server_accepted(lab)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        issuer(lab, "blocked.test")
    seen = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "blocked.test")
    assert (seen["nfw"]["status"], seen["nfw"]["bypass"]) == ("POLICY", "dns")
    assert server_accepted(lab) == before


def server_accepted(lab: Lab) -> int:
    """TCP connections accepted in the server's namespace so far (proc_net_snmp(5): PassiveOpens)."""
    counters = lab.server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in counters if line.startswith("Tcp:"))
    return int(values[names.index("PassiveOpens")])


def test_the_resolver_has_no_privileges(firewall: Firewall) -> None:
    (pid,) = pids_named(firewall.pid(), "nfw resolver")
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"] == "1"


def test_clients_that_refuse_the_leaf_are_suggested(firewall: Firewall) -> None:
    lab = firewall.lab
    for _ in range(2):
        assert lab.curl("https://site-a.test/", cacert=lab.root_ca_path).returncode == 60
    said: list[str] = []

    def suggested() -> bool:
        said[:] = firewall.cli("tls", "suggestions").stdout.splitlines()
        return said == ["      2  site-a.test"]

    wait_for(suggested, PATIENCE, lambda: str(said))
    assert issuer(lab, "site-a.test")[0] == OURS, "nothing is exempted by itself"


def spare_address(lab: Lab) -> str:
    """One of the server's that no service of the lab listens on."""
    host = "203.0.113.77"
    shown = lab.server.run(["ip", "-o", "-4", "addr", "show", "to", "203.0.113.10"]).stdout.split()
    lab.server.run(["ip", "addr", "replace", f"{host}/24", "dev", shown[1]])
    return host


def udp_exchange(lab: Lab, port: int, send: bytes, reply: bytes, seconds: float = PATIENCE) -> bytes | None:
    """What a client gets from a UDP server that answers with `reply`; None when nothing comes in that time."""
    host = spare_address(lab)
    with lab.in_namespace("server"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.in_namespace("client"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((host, port))
        server.settimeout(seconds)
        client.settimeout(seconds)
        client.connect((host, port))
        try:
            client.send(send)
            server.sendto(reply, server.recvfrom(4096)[1])
            return client.recv(4096)
        except (TimeoutError, ConnectionRefusedError):
            return None


def test_quic_does_not_get_through_and_ech_keys_do_not_arrive(firewall: Firewall) -> None:
    lab = firewall.lab
    assert udp_exchange(lab, 443, b"\xc3\0\0\0\1" + bytes(1245), b"reply", 1.0) is None
    firewall.wait_event("drop", lambda event: event["nfw"]["reason"] == "quic")
    assert udp_exchange(lab, 4433, b"hello", b"reply") == b"reply"
    keyed, plain = response(https(ALPN, ECH)), response(https(ALPN))
    assert udp_exchange(lab, 53, b"question", keyed) == plain
    assert udp_exchange(lab, 53, b"question", plain) == plain


def test_ech_keys_do_not_arrive_over_tcp(firewall: Firewall) -> None:
    """In one segment, and in several; the connection goes on either way."""
    lab = firewall.lab
    sent, expected = framed(KEYED, OTHER, KEYED), framed(PLAIN, OTHER, PLAIN)

    host = spare_address(lab)
    redirect = "add table ip dns; add chain ip dns in { type nat hook prerouting priority -100; }; "
    lab.server.run(
        ["nft", redirect + f"add rule ip dns in ip daddr {host} tcp dport 53 redirect to :5399"]
    )  # the lab's own server has port 53 everywhere
    with lab.in_namespace("server"):
        listener = socket.create_server(("", 5399))
    with lab.in_namespace("client"):
        client = socket.create_connection((host, 53), 10)
    server, _ = listener.accept()
    with listener, client, server:
        client.settimeout(10)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in (1000, 90, 40, 17, 1000):
            client.sendall(framed(DNSRecord.question("a.test", "HTTPS").pack()))
            assert server.recv(1000)
            for at in range(0, len(sent), size):
                server.sendall(sent[at : at + size])
                time.sleep(0.005)
            got = b""
            while len(got) < len(expected):
                got += client.recv(4096)
            assert got == expected
    counts = next(one for one in firewall.status()["processes"] if one["name"].startswith("nfw packet"))["counts"]
    assert counts["ech_stripped"] >= 10


def test_ech_keys_do_not_arrive_over_tls_or_https(firewall: Firewall) -> None:
    def answering(said: bytes) -> Callable[[ssl.SSLSocket], None]:
        def answer(conn: ssl.SSLSocket) -> None:
            conn.recv(65536)
            conn.sendall(said[:50])
            conn.sendall(said[50:])
            conn.recv(65536)

        return answer

    several = b"".join(frame.serialize() for frame in streams(KEYED, 30))
    for alpn, said, expected in (
        ("dot", framed(OTHER, KEYED, LARGE), framed(OTHER, PLAIN, LARGE_PLAIN)),
        ("http/1.1", over_http1(KEYED), over_http1(PLAIN)),
        ("http/1.1", HEAD + DNS + CHUNKED + b"\r\n" + chunks(KEYED, 30), None),
        ("h2", over_http2(KEYED), over_http2(PLAIN)),
        ("h2", several, None),
        ("http/1.1", over_http1(JSON, b"application/dns-json"), over_http1(JSON_PLAIN, b"application/dns-json")),
        ("http/1.1", over_http1(JSON, b"application/json"), over_http1(JSON_PLAIN, b"application/json")),
        ("http/1.1", HEAD + sized(UNTYPED), HEAD + sized(UNTYPED_PLAIN)),
        ("", framed(OTHER, KEYED), framed(OTHER, PLAIN)),
    ):
        server = Server(firewall.lab, answering(said))
        context = trusting(firewall)
        if alpn:
            server.context.set_alpn_protocols([alpn])
            context.set_alpn_protocols([alpn])
        with server, context.wrap_socket(connect(firewall.lab), server_hostname="site-a.test") as conn:
            assert (conn.selected_alpn_protocol() or "") == alpn
            asked = {"h2": PREFACE, "": framed(DNSRecord.question("a.test", "HTTPS").pack())}
            conn.sendall(asked.get(alpn, b"GET / HTTP/1.1\r\nHost: site-a.test\r\n\r\n"))
            got = b""
            while len(got) < len(said):
                got += conn.recv(65536)
            assert len(got) == len(said)
            if alpn == "h2":
                bodies = [b"".join(part[9:] for part in frames if part[3] == 0) for frames in by_stream(got).values()]
                assert bodies.count(PLAIN) == (2 if said is several else 1)
            elif expected is None:
                assert got == HEAD + DNS + CHUNKED + b"\r\n" + chunks(PLAIN, 30)
            else:
                assert got == expected


def test_a_server_whose_headers_cannot_be_read_is_cut_off(firewall: Firewall) -> None:
    """Where no rule needs to read them, too."""
    firewall.apply(firewall.policy("unruled", POLICY.split("stateful:")[0]))
    before = SettingsFrame(0).serialize()

    def answer(conn: ssl.SSLSocket) -> None:
        conn.recv(65536)
        conn.sendall(before)
        conn.recv(65536)
        conn.sendall(HeadersFrame(1, b"\x80", flags=["END_HEADERS"]).serialize() + b"rest")
        conn.recv(65536)

    server = Server(firewall.lab, answer)
    server.context.set_alpn_protocols(["h2"])
    context = trusting(firewall)
    context.set_alpn_protocols(["h2"])
    with server, context.wrap_socket(connect(firewall.lab), server_hostname="site-a.test") as conn:
        port = conn.getsockname()[1]
        conn.sendall(PREFACE)
        assert conn.recv(65536) == before
        conn.sendall(before)
        with contextlib.suppress(OSError):
            assert conn.recv(65536) == b""
    seen = record(firewall, port)["nfw"]
    assert (seen["status"], seen["reason"]) == ("PROTOCOL", "http2_header_block")
    firewall.apply(firewall.policy("bypass", POLICY, RULES))


def test_offers_of_quic_are_hidden(firewall: Firewall) -> None:
    offered = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=9\r\nContent-Length: 2\r\n\r\nok'

    def answer(conn: ssl.SSLSocket) -> None:
        while conn.recv(65536):
            for at in range(0, len(offered), 9):
                conn.sendall(offered[at : at + 9])

    with Server(firewall.lab, answer), dial(firewall) as conn:
        for _ in range(3):
            conn.sendall(b"GET / HTTP/1.1\r\nHost: site-a.test\r\n\r\n")
            got = b""
            while len(got) < len(offered):
                got += conn.recv(65536)
            assert got == offered.replace(b'h3=":443"; ma=9', b"clear          ")


@pytest.mark.parametrize(
    "front",
    [
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        b"http/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 205 Reset\r\nContent-Length: 64\r\n\r\n",
        HEAD + CHUNKED + b"\r\n0x0\r\n\r\n",
    ],
)
def test_what_browsers_forgive_does_not_carry_an_offer(firewall: Firewall, front: bytes) -> None:
    offered = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=9\r\nContent-Length: 2\r\n\r\nok'

    def answer(conn: ssl.SSLSocket) -> None:
        conn.recv(65536)
        conn.sendall(front)
        conn.recv(65536)
        conn.sendall(offered)
        conn.recv(65536)

    with Server(firewall.lab, answer), dial(firewall) as conn:
        got = b""
        for part in (front, offered):
            conn.sendall(b"GET / HTTP/1.1\r\nHost: site-a.test\r\n\r\n")
            end = len(got) + len(part)
            while len(got) < end:
                got += conn.recv(65536)
        assert got == front + offered.replace(b'h3=":443"; ma=9', b" " * 15)


class Demanding(Server):
    """Wants a client certificate, or would like one."""

    def __init__(self, lab: Lab, name: str, mode: ssl.VerifyMode) -> None:
        super().__init__(lab, lambda conn: conn.sendall(b"hello"), name=name)
        self.context.verify_mode = mode
        pem = CLIENTS.certificate.public_bytes(serialization.Encoding.PEM)
        self.context.load_verify_locations(cadata=pem.decode())


CLIENTS = Authority("Clients")


def greeted(firewall: Firewall, name: str, trusted: str) -> tuple[bytes, int]:
    """(what the server says, the client's port); the client has a certificate."""
    certificate, key = CLIENTS.issue("client.test", eku=None, days=(-400, 400))
    file = firewall.lab.dir / "client.pem"
    plain = serialization.NoEncryption()
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    context = ssl.create_default_context(cafile=trusted)
    context.load_cert_chain(file)
    sock = connect(firewall.lab)
    port = sock.getsockname()[1]
    with sock, context.wrap_socket(sock, server_hostname=name) as conn:
        return conn.recv(5), port


def test_client_certificates(firewall: Firewall) -> None:
    lab, ca, root = firewall.lab, str(firewall.ca), str(firewall.lab.root_ca_path)
    with Demanding(lab, "site-a.test", ssl.CERT_OPTIONAL):
        said, port = greeted(firewall, "site-a.test", ca)
        assert said == b"hello", "it goes on without"
    with Demanding(lab, "site-a.test", ssl.CERT_REQUIRED), contextlib.suppress(OSError):
        assert greeted(firewall, "site-a.test", ca)[0] == b""
    seen = firewall.wait_event("tls", lambda event: event["nfw"]["reason"] == "mtls_required")
    assert seen["nfw"]["status"] == "PROTOCOL"
    with Demanding(lab, "site-b.test", ssl.CERT_REQUIRED):
        said, port = greeted(firewall, "site-b.test", root)
        assert said == b"hello", "an exempted name gets the client's own certificate"
    assert record(firewall, port)["nfw"]["status"] == "BYPASSED"


def test_websocket_goes_through_and_is_inspected(firewall: Firewall) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    heard = bytearray()

    def serve(conn: ssl.SSLSocket) -> None:
        conn.recv(65536)
        conn.sendall(switch)
        while data := conn.recv(65536):
            heard.extend(data)
            conn.sendall(b"\x81\x02ok")

    def frame(text: bytes) -> bytes:
        mask = b"\x11\x22\x33\x44"
        return bytes([0x81, 0x80 | len(text)]) + mask + bytes(one ^ mask[at % 4] for at, one in enumerate(text))

    ask = b"GET /chat HTTP/1.1\r\nHost: site-a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with Server(firewall.lab, serve), dial(firewall) as conn:
        conn.sendall(ask + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        assert conn.recv(65536) == switch
        for _ in range(3):
            conn.sendall(frame(b"harmless"))
            assert conn.recv(100) == b"\x81\x02ok"
        before = bytes(heard)
        conn.sendall(frame(b"an evil-word"))
        assert read_all(conn) == (b"", "cut")
        assert bytes(heard) == before, "not a byte of the message went on"
    firewall.wait_event("drop", lambda event: event["nfw"].get("rule", "").startswith("stateful:4"))

"""The visible part of TLS, on real handshakes between two in-memory OpenSSL ends."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engines.stateful.app.certificate import read_certificate
from engines.stateful.app.tls import TlsFacts, TlsParser, TlsTransaction, add_server, known_session
from engines.tls.clienthello import ClientHello, ClientHelloReader
from engines.verdict import Direction
from tests.unit.app_feeding import C, S, every_way, play, survives
from tests.unit.tlskit import Authority

Script = list[tuple[Direction, bytes]]
NAMES = ["tls.sni", "tls.version", "tls.certs", "tls.cert_subject", "ja3.hash", "ja3s.hash", "ja4.hash", "ssl_state"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def chain_file(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    certificate, key = authority.issue("www.example.com", "alt.example.com")
    path = tmp_path_factory.mktemp("tls") / "chain.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
        + authority.certificate.public_bytes(pem)
    )
    return path


def handshake(chain_file: Path, version: ssl.TLSVersion) -> Script:
    """What both sides put on the wire, with one request and one answer after it."""
    ends = []
    for server in (False, True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        if server:
            context.load_cert_chain(chain_file)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else "www.example.com"
        ends.append((context.wrap_bio(incoming, outgoing, server, name), incoming, outgoing))
    (client, client_in, client_out), (server_end, server_in, server_out) = ends
    script: Script = []
    for _ in range(4):
        for end in (client, server_end):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            if data := client_out.read():
                script.append((C, data))
                server_in.write(data)
            if data := server_out.read():
                script.append((S, data))
                client_in.write(data)
    client.write(b"request")
    script.append((C, client_out.read()))
    return script


@pytest.fixture(scope="module")
def tls12(chain_file: Path) -> Script:
    return handshake(chain_file, ssl.TLSVersion.TLSv1_2)


@pytest.fixture(scope="module")
def tls13(chain_file: Path) -> Script:
    return handshake(chain_file, ssl.TLSVersion.TLSv1_3)


def client_hello(script: Script) -> ClientHello:
    hello = ClientHelloReader().feed(script[0][1])
    assert isinstance(hello, ClientHello)
    return hello


def test_tls12(tls12: Script, chain_file: Path) -> None:
    hello = client_hello(tls12)
    pem = chain_file.read_text()
    ders = [ssl.PEM_cert_to_DER_cert("-----BEGIN CERT" + part) for part in pem.split("-----BEGIN CERT")[1:]]
    for parser, (tx,) in every_way(TlsParser, tls12):
        assert not parser.gave_up
        assert list(tx.buffer("tls.sni")) == [b"www.example.com"]
        assert list(tx.buffer("tls.sni", S)) == []
        assert list(tx.buffer("tls.version", S)) == [b"\3\3"]
        assert list(tx.buffer("ja3.string")) == [hello.ja3_string.encode()]
        assert list(tx.buffer("ja3.hash")) == [hello.ja3.encode()]
        assert list(tx.buffer("ja4.hash")) == [hello.ja4.encode()]
        (ja3s,) = tx.buffer("ja3s.string")
        assert ja3s.startswith(b"771,")
        assert list(tx.buffer("ja3s.hash")) == [hashlib.md5(ja3s).hexdigest().encode()]
        assert list(tx.buffer("tls.certs", S)) == ders
        assert list(tx.buffer("tls.cert_subject", S)) == [b"CN=www.example.com"]
        assert list(tx.buffer("tls.cert_issuer", S)) == [b"CN=Lab Root"]
        assert list(tx.buffer("tls.subjectaltname", S)) == [b"www.example.com", b"alt.example.com"]
        assert tx.buffer("tls.cert_fingerprint", S)[0].replace(b":", b"") == hashlib.sha1(ders[0]).hexdigest().encode()
        assert list(tx.buffer("tls.cert_chain_len", S)) == [bytes((0, 0, 0, len(ders)))]
        leaf = x509.load_der_x509_certificate(ders[0])
        times = (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
        for name, time in zip(("tls.cert_notbefore", "tls.cert_notafter"), times, strict=True):
            assert list(tx.buffer(name)) == [int(time.timestamp()).to_bytes(8, "big")]
        assert list(tx.buffer("tls.alpn", C)) == [b"h2", b"http/1.1"]
        assert list(tx.buffer("tls.alpn", S)) == [b"h2"]
        assert [len(value) for value in tx.buffer("tls.random")] == [32, 32]
        assert list(tx.buffer("ssl_state")) == [b"client_hello", b"client_keyx", b"server_hello", b"server_keyx"]
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.events == []
        assert parser.finished
        assert (parser.held(C), parser.held(S)) == (0, 0)
        fields = tx.log_fields()
        assert fields["sni"] == "www.example.com"
        assert fields["version"] == "TLS 1.2"
        assert fields["subject"] == "CN=www.example.com"


def test_tls13(tls13: Script) -> None:
    for parser, (tx,) in every_way(TlsParser, tls13):
        assert list(tx.buffer("tls.sni")) == [b"www.example.com"]
        assert list(tx.buffer("tls.version", S)) == [b"\3\4"]
        assert list(tx.buffer("tls.certs")) == []
        assert list(tx.buffer("ssl_state")) == [b"client_hello", b"server_hello"]
        assert parser.finished
        assert tx.log_fields()["version"] == "TLS 1.3"


def test_client_hello_is_held_until_complete(tls13: Script) -> None:
    parser = TlsParser()
    hello = tls13[0][1]
    for size in range(1, len(hello)):
        parser.feed(C, hello[size - 1 : size])
        assert parser.held(C) == size
        assert parser.transactions[0].progress(C) == 0
    parser.feed(C, hello[-1:])
    assert parser.held(C) == 0
    assert parser.transactions[0].progress(C) > 0


def test_certificates_are_held_until_complete(tls12: Script) -> None:
    parser = TlsParser()
    parser.feed(C, tls12[0][1])
    flight = tls12[1][1]
    parser.feed(S, flight[:600])
    assert 0 < parser.held(S) <= 600
    parser.feed(S, flight[600:])
    assert parser.held(S) == 0


@pytest.mark.parametrize(
    ("direction", "data", "reason"),
    [
        (C, b"GET / HTTP/1.1\r\n", "invalid_client_hello_http"),
        (C, b"\x80\x2e\x02\x03\x01", "invalid_client_hello_sslv2"),
        (C, b"\x80\x05\x01\x03\x01", "invalid_client_hello_sslv2"),
        (S, b"\x99\x03\x03\0\1x", "invalid_record_type"),
        (S, b"\x16\x03\x03\xff\xffx", "invalid_record_type"),
        (S, b"\x16\x03\x03\0\4\x0b\xff\xff\xff", "handshake_message_too_long"),
    ],
)
def test_refused(direction: Direction, data: bytes, reason: str) -> None:
    parser = TlsParser()
    (tx,) = play(parser, [(direction, data)])
    assert (parser.gave_up, parser.reason) == (True, reason)
    assert tx.events == [reason]
    assert parser.held(direction) == 0


@pytest.mark.parametrize(
    ("message", "events"),
    [
        (b"\x02\0\0\3\3\3\0", []),
        (b"\x0b\0\0\4\0\0\5\0", []),
        (b"\x0b\0\0\7\0\0\4\0\0\1x", ["certificate_invalid_length"]),
        (b"\x0b\0\0\x0b\0\0\x08\0\0\5\x30\3\x30\x82\1", ["certificate_invalid_length"]),
        (b"\x0b\0\0\x0c\0\0\x09\0\0\6\x30\4\x30\x82\1\0", ["invalid_certificate"]),
    ],
)
def test_odd_messages(message: bytes, events: list[str]) -> None:
    record = b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message
    for parser, (tx,) in every_way(TlsParser, [(S, record)]):
        assert tx.events == [*events, "invalid_handshake_message"]
        assert not parser.gave_up


def test_hello_of_the_old_format() -> None:
    """RFC 5246, appendix E.2: a record of SSL 2.0 that offers TLS 1.2, then records as usual."""
    hello = b"\x80\x1c\1\3\3\0\3\0\0\0\x10\0\0\x2f" + bytes(16)
    sent = [(C, hello + b"\x16\3\3\0\5\x10\0\0\1x" + b"\x14\3\3\0\1\1")]
    for parser, (tx,) in every_way(TlsParser, sent):
        assert list(tx.buffer("ssl_version", C)) == [b"\3\3"]
        assert list(tx.buffer("ssl_state", C)) == [b"client_hello", b"client_keyx"]
        assert list(tx.buffer("tls.sni")) == []
        assert list(tx.buffer("ja3.hash")) == []
        assert tx.events == []
        assert tx.is_complete(C)
        assert not parser.gave_up
    waiting = TlsParser()
    waiting.feed(C, hello[:-1])
    assert waiting.held(C) == len(hello) - 1


def test_alert_instead_of_a_hello() -> None:
    parser = TlsParser()
    play(parser, [(S, b"\x15\x03\x03\0\2\2\x28")])
    assert not parser.gave_up
    parser.close(S)
    assert parser.transactions[0].is_complete(S)


def test_known_session_looks_like_a_parsed_one(tls12: Script) -> None:
    (parsed,) = play(TlsParser(), tls12)
    assert isinstance(parsed, TlsTransaction)
    facts = TlsFacts.from_hello(client_hello(tls12))
    whole = TlsFacts(
        **{name: getattr(facts, name) for name in ("sni", "client_version", "client_random", "client_alpn", "ja4")},
        ja3_string=facts.ja3_string,
        version=0x0303,
        alpn=b"h2",
        ja3s_string=parsed.ja3s_string,
        server_chain=parsed.chains[S],
    )
    known = known_session(whole)
    for name in NAMES:
        if name != "ssl_state":
            assert list(known.buffer(name)) == list(parsed.buffer(name)), name
    assert known.log_fields() == parsed.log_fields()
    assert known.is_complete(C)
    assert known.is_complete(S)

    later = known_session(facts)
    assert not later.is_complete(S)
    add_server(later, whole)
    assert later.log_fields() == parsed.log_fields()


def test_serial_is_spelled_as_encoded(authority: Authority) -> None:
    certificate, _ = authority.issue("a.example")
    facts = read_certificate(certificate.public_bytes(serialization.Encoding.DER))
    assert facts is not None
    assert int(facts.serial.replace(b":", b""), 16) == certificate.serial_number
    assert facts.serial == facts.serial.upper()
    assert facts.not_before < facts.not_after
    assert read_certificate(b"nonsense") is None


def test_mutations(tls12: Script, tls13: Script) -> None:
    """Parse or refuse, never raise."""
    survives(TlsParser, tls12, NAMES, rounds=200, seed=5)
    survives(TlsParser, tls13, NAMES, rounds=200, seed=6)

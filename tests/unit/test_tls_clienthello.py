"""The ClientHello parser: the same answer however the bytes are cut, refusal for the rest, never an exception."""

from __future__ import annotations

import random
import time

import pytest
from OpenSSL import SSL

from engines.tls.clienthello import (
    HELLO_CAP,
    ClientHello,
    ClientHelloReader,
    NotTls,
    _fingerprints,
    is_grease,
    normalise_host,
)


def u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def vec(data: bytes, size: int = 2) -> bytes:
    return len(data).to_bytes(size, "big") + data


def ext(kind: int, data: bytes) -> bytes:
    return u16(kind) + vec(data)


def sni(name: bytes) -> bytes:
    return ext(0, vec(b"\x00" + vec(name)))


def body(
    extensions: bytes | None = sni(b"example.test"),
    *,
    version: int = 0x0303,
    ciphers: bytes = u16(0x1301, 0xC02B),
    session: bytes = b"",
    compression: bytes = b"\x00",
) -> bytes:
    start = u16(version) + bytes(32) + vec(session, 1) + vec(ciphers) + vec(compression, 1)
    return start if extensions is None else start + vec(extensions)


def handshake(content: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vec(content, 3)


def records(message: bytes, size: int = 16384) -> bytes:
    return b"".join(b"\x16\x03\x01" + vec(message[at : at + size]) for at in range(0, len(message), size))


def hello(extensions: bytes | None = sni(b"example.test"), **fields) -> bytes:
    return records(handshake(body(extensions, **fields)))


def read(data: bytes, step: int = 0, cap: int = HELLO_CAP):
    reader = ClientHelloReader(cap)
    if not step:
        return reader.feed(data)
    result = None
    for at in range(0, len(data), step):
        result = reader.feed(data[at : at + step])
        if result is not None:
            break
    return result


FULL = b"".join(
    (
        ext(0x0A0A, b""),
        sni(b"WWW.Example.Test."),
        ext(10, vec(u16(0x1A1A, 0x11EC, 29, 23))),
        ext(11, vec(b"\x00", 1)),
        ext(13, vec(u16(0x0403, 0x0804))),
        ext(16, vec(vec(b"h2", 1) + vec(b"http/1.1", 1))),
        ext(43, vec(u16(0x2A2A, 0x0304, 0x0303), 1)),
        ext(51, vec(u16(0x11EC) + vec(bytes(1216)) + u16(29) + vec(bytes(32)))),
        ext(0xFE0D, bytes(64)),
        ext(42, b""),
        ext(41, bytes(40)),
    )
)


def test_every_field() -> None:
    data = hello(FULL, ciphers=u16(0x3A3A, 0x1301, 0xC02B))
    assert read(data) == ClientHello(
        raw=data,
        legacy_version=0x0303,
        versions=(0x2A2A, 0x0304, 0x0303),
        ciphers=(0x3A3A, 0x1301, 0xC02B),
        extensions=(0x0A0A, 0, 10, 11, 13, 16, 43, 51, 0xFE0D, 42, 41),
        groups=(0x1A1A, 0x11EC, 29, 23),
        key_shares=(0x11EC, 29),
        point_formats=(0,),
        sig_algs=(0x0403, 0x0804),
        alpn=(b"h2", b"http/1.1"),
        sni="www.example.test",
        sni_raw=b"WWW.Example.Test.",
        sni_problem=None,
    )
    result = read(data)
    assert result.has_ech
    assert result.has_early_data
    assert result.has_psk


@pytest.mark.parametrize("record_size", [1, 2, 5, 100, 16384])
@pytest.mark.parametrize("step", [0, 1, 3, 1000])
def test_cuts_do_not_matter(record_size: int, step: int) -> None:
    data = records(handshake(body(FULL)), record_size)
    whole, cut = read(data), read(data, step)
    assert isinstance(cut, ClientHello)
    assert cut == whole
    assert cut.raw == data


@pytest.mark.parametrize("step", [0, 1])
def test_a_tail_is_kept_and_not_parsed(step: int) -> None:
    reader = ClientHelloReader()
    data = hello()
    assert isinstance(reader.feed(data + b"\x17\x03\x03\xff\xfftail"), ClientHello)
    assert reader.raw == data + b"\x17\x03\x03\xff\xfftail"
    assert isinstance(reader.feed(b"ignored"), ClientHello)


def test_every_prefix_waits() -> None:
    data = hello(FULL)
    for end in range(len(data)):
        assert read(data[:end]) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # what came instead
        (b"G", "not_tls"),
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"PRI * HTTP/2.0\r\n", "http"),
        (b"SSH-2.0-x\r\n", "ssh"),
        (b"\x80\x2e\x01\x00\x02", "sslv2"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "alert"),
        (b"\x17\x03\x03", "application_data"),
        (b"\x14\x03\x03", "change_cipher_spec"),
        (b"\x00", "not_tls"),
        (b"\x16\x02\x00", "bad_record"),
        # records
        (b"\x16\x03\x01\x40\x01", "bad_record"),
        (b"\x16\x03\x01\x00\x00" * 33, "empty_records"),
        (records(handshake(body())[:9]) + b"\x17\x03\x03\x00\x01x", "bad_record"),
        # messages
        (records(handshake(body(), kind=2)), "not_client_hello"),
        (b"\x16\x03\x01\x02\x00\x02", "not_client_hello"),
        (b"\x16\x03\x01\x02\x00\x01\xff\xff\xff", "too_long"),
        (records(handshake(body()) + b"\x0b"), "decode_error"),
        (records(handshake(b"")), "decode_error"),
        (records(handshake(body()[:-1])), "decode_error"),
        (records(handshake(body() + b"x")), "decode_error"),
        (hello(session=bytes(33)), "decode_error"),
        (hello(ciphers=b""), "decode_error"),
        (hello(ciphers=b"\x13"), "decode_error"),
        (hello(compression=b""), "decode_error"),
        # extensions
        (hello(ext(0, b"") + b"\x00"), "decode_error"),
        (hello(u16(5) + u16(9) + b"x"), "decode_error"),
        (hello(ext(5, b"") + ext(5, b"")), "decode_error"),
        (hello(sni(b"a.test") + sni(b"b.test")), "decode_error"),
        (hello(ext(0, vec(b"\x00" + vec(b"a.test") + b"\x00" + vec(b"b.test")))), "decode_error"),
        (hello(ext(0, vec(b"\x00" + vec(b"")))), "decode_error"),
        (hello(ext(0, vec(b"\x01" + vec(b"a.test")))), "decode_error"),
        (hello(ext(0, vec(b"\x00" + vec(b"a.test")) + b"x")), "decode_error"),
        (hello(ext(0, vec(b""))), "decode_error"),
        (hello(ext(16, vec(b""))), "decode_error"),
        (hello(ext(16, vec(vec(b"", 1)))), "decode_error"),
        (hello(ext(16, vec(b"\x09h2"))), "decode_error"),
        (hello(ext(43, vec(b"\x03", 1))), "decode_error"),
        (hello(ext(10, vec(b""))), "decode_error"),
        (hello(ext(51, vec(u16(29) + u16(40) + bytes(32)))), "decode_error"),
    ],
)
@pytest.mark.parametrize("step", [0, 1])
def test_refused(data: bytes, reason: str, step: int) -> None:
    result = read(data, step)
    assert isinstance(result, NotTls)
    if step and reason in ("http", "ssh", "sslv2"):
        assert result.reason == "not_tls"  # decided at the first byte, before there is more to say
    else:
        assert result.reason == reason


def test_few_empty_records_are_forgiven() -> None:
    assert isinstance(read(b"\x16\x03\x01\x00\x00" + hello()), ClientHello)


@pytest.mark.parametrize("size", [8_000, 20_000, 60_000])
def test_large_hello_is_read_up_to_the_cap(size: int) -> None:
    data = hello(sni(b"example.test") + ext(21, bytes(size)))
    assert read(data).sni == "example.test"
    assert read(data, 1000).sni == "example.test"


@pytest.mark.parametrize("step", [0, 1000])
def test_cap(step: int) -> None:
    message = handshake(body(sni(b"example.test") + ext(21, bytes(60_000))))
    assert read(records(message, 10), step) == NotTls("too_long"), "record headers count"
    data = hello()
    assert isinstance(read(data, cap=len(data)), ClientHello)
    assert read(data, cap=len(data) - 1) == NotTls("too_long")
    assert read(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xff" + bytes(15000), cap=9000) == NotTls("too_long")


def test_work_is_linear() -> None:
    """60 KB in one-byte segments of records of 10 bytes: a quadratic reader would need minutes."""
    data = records(handshake(body(sni(b"example.test") + ext(21, bytes(40_000)))), 1000)
    started = time.process_time()
    assert isinstance(read(data, 1), ClientHello)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"example.test", ("example.test", None)),
        (b"EXAMPLE.test.", ("example.test", None)),
        (b"xn--bcher-kva.test", ("xn--bcher-kva.test", None)),
        (b"_dmarc.a-b.r3---sn.test", ("_dmarc.a-b.r3---sn.test", None)),
        (b"localhost", ("localhost", None)),
        (b"a." * 126 + b"t", ("a." * 126 + "t", None)),
        (b"192.0.2.1", (None, "ip_literal")),
        (b"192.0.2.1.", (None, "ip_literal")),
        (b"3221225985", (None, "ip_literal")),
        (b"0xc0.0x0", (None, "ip_literal")),
        (b"2001:db8::1", (None, "ip_literal")),
        (b"[::1]", (None, "ip_literal")),
        (b"", (None, "invalid")),
        (b".", (None, "invalid")),
        (b"a..test", (None, "invalid")),
        (b".a.test", (None, "invalid")),
        (b"a.test..", (None, "invalid")),
        (b"a b.test", (None, "invalid")),
        (b"a\x00.test", (None, "invalid")),
        (b"a%00.test", (None, "invalid")),
        (b"a\n.test", (None, "invalid")),
        (b"*.test", (None, "invalid")),
        ("bücher.test".encode(), (None, "invalid")),
        (b"a" * 64 + b".test", (None, "invalid")),
        (b"a." * 127 + b"tt", (None, "invalid")),
    ],
)
def test_host_names(raw: bytes, expected: tuple) -> None:
    assert normalise_host(raw) == expected
    if raw:
        result = read(hello(sni(raw)))
        assert (result.sni, result.sni_problem) == expected
        assert result.sni_raw == raw


def test_absent_name_and_absent_extensions() -> None:
    for extensions in (None, b"", ext(10, vec(u16(29)))):
        result = read(hello(extensions))
        assert (result.sni, result.sni_raw, result.sni_problem) == (None, None, "absent")
    assert read(hello(None, version=0x0304)).versions == (0x0303,), "1.3 needs supported_versions"
    assert read(hello(None, version=0x0301)).versions == (0x0301,)


def test_grease() -> None:
    assert [value for value in range(65536) if is_grease(value)] == [n << 12 | 0xA00 | n << 4 | 0xA for n in range(16)]


def test_ja3_of_the_published_example() -> None:
    """salesforce/ja3, README."""
    fields = hello(
        ext(0, vec(b"\x00" + vec(b"a.test"))) + ext(10, vec(u16(23, 24, 25))) + ext(11, vec(b"\x00", 1)),
        version=769,
        ciphers=u16(47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4),
    )
    result = read(fields)
    assert result.ja3_string == "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0"
    assert result.ja3 == "ada70206e40642a3e4461f35503241d5"


def test_ja4_of_the_published_example() -> None:
    """FoxIO, technical_details/JA4.md: the Chrome ClientHello it walks through."""
    kinds = (0x1A1A, 0x001B, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002D, 0x000D, 0x0005, 0x0023, 0x0012, 0x002B)
    kinds += (0xFF01, 0x000B, 0x000A, 0x0015)
    contents = {
        0x0000: vec(b"\x00" + vec(b"a.test")),
        0x0010: vec(vec(b"h2", 1) + vec(b"http/1.1", 1)),
        0x000D: vec(u16(0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)),
        0x002B: vec(u16(0x4A4A, 0x0304, 0x0303), 1),
        0x0033: vec(u16(29) + vec(bytes(32))),
        0x000A: vec(u16(29)),
        0x000B: vec(b"\x00", 1),
    }
    ciphers = (0x2A2A, 0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC013, 0xC014, 0x009C)
    ciphers += (0x009D, 0x002F, 0x0035)
    result = read(hello(b"".join(ext(kind, contents.get(kind, b"")) for kind in kinds), ciphers=u16(*ciphers)))
    assert result.ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.parametrize(("suites", "kept"), [(300, 1), (30_000, 0)])
def test_fingerprints_are_kept_of_offers_of_a_usual_size(suites: int, kept: int) -> None:
    _fingerprints.cache_clear()
    for _ in range(2):
        result = read(hello(ciphers=u16(*[0x1301] * suites)))
        assert result.ja3_string.count("-") == suites - 1
        assert result.ja4.startswith("t12d9901")
    assert _fingerprints.cache_info().currsize == kept


@pytest.mark.parametrize(
    ("extensions", "head"),
    [
        (b"", "t12i020000_"),
        (sni(b"a.test"), "t12d020100_"),
        (ext(16, vec(vec(b"http/1.1", 1))), "t12i0201h1_"),
        (ext(16, vec(vec(b"\xab\xcd", 1))), "t12i0201ad_"),
        (ext(16, vec(vec(b"x", 1))), "t12i0201xx_"),
    ],
)
def test_ja4_head(extensions: bytes, head: str) -> None:
    ja4 = read(hello(extensions)).ja4
    assert ja4.startswith(head)
    if extensions == b"":
        assert ja4.endswith("_000000000000")


@pytest.mark.parametrize(
    "versions", [(SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION), (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION)]
)
def test_what_openssl_sends(versions: tuple) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(versions[0])
    context.set_max_proto_version(versions[1])
    connection = SSL.Connection(context)
    connection.set_tlsext_host_name(b"www.example.test")
    connection.set_alpn_protos([b"h2"])
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    result = read(connection.bio_read(65536), 1)
    assert result.sni == "www.example.test"
    assert result.alpn == (b"h2",)
    assert max(result.versions) == versions[1]


def test_mutations_parse_or_are_refused() -> None:
    """Never an exception, never a hang, and the same answer whole and in pieces."""
    rng = random.Random(1)
    seeds = [hello(), hello(FULL), records(handshake(body(FULL)), 50)]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 5))):
            match rng.randrange(4) if len(data) > 1 else 0:
                case 0:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1:
                    del data[rng.randrange(len(data))]
                case 2:
                    at = rng.randrange(len(data))
                    data[at:at] = rng.randbytes(rng.randrange(1, 4))
                case _:
                    del data[rng.randrange(1, len(data)) :]
        mutated = bytes(data)
        whole = read(mutated)
        assert whole is None or isinstance(whole, ClientHello | NotTls)
        pieces = read(mutated, rng.choice((1, 2, 7)))
        if isinstance(whole, ClientHello):
            assert isinstance(pieces, ClientHello)
            assert pieces.ja4 == whole.ja4
            assert whole.ja3
        else:
            assert type(pieces) is type(whole)


def test_random_bytes_are_refused_or_waited_for() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(1, 60))
        assert not isinstance(read(data), ClientHello)
        assert not isinstance(read(b"\x16\x03\x01" + data), ClientHello)

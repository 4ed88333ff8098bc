"""HTTP/1: what rules see of a message, where messages end, what is held, and what is refused."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from engines.stateful.app.http1 import Http1Parser
from engines.stateful.app.http_transaction import BUFFERS
from engines.stateful.app.limits import AppLimits
from tests.unit.app_feeding import C, S, Script, every_way, mutate, play, survives

LIMITS = AppLimits()
ZIPPED = gzip.compress(b"abcd", mtime=0)
GET = (
    b"GET /a/../b%20c?x=%41 HTTP/1.1\r\nHost: WWW.Example.com:8080\r\nUser-Agent: test/1\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip\r\nAccept-Language: en\r\nCookie: a=b\r\nReferer: http://r/\r\nConnection: close\r\n\r\n"
)
OK = (
    b"HTTP/1.1 200 OK then\r\nServer: nginx\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 5\r\n"
    b"Set-Cookie: c=d\r\nLocation: /l\r\n\r\nhello"
)


def test_every_buffer() -> None:
    expected = {
        ("http.method", C): [b"GET"],
        ("http.uri", C): [b"/b c?x=A"],
        ("http.uri.raw", C): [b"/a/../b%20c?x=%41"],
        ("http.protocol", C): [b"HTTP/1.1"],
        ("http.protocol", S): [b"HTTP/1.1"],
        ("http.request_line", C): [b"GET /a/../b%20c?x=%41 HTTP/1.1"],
        ("http.response_line", S): [b"HTTP/1.1 200 OK then"],
        ("http.stat_code", S): [b"200"],
        ("http.stat_msg", S): [b"OK then"],
        ("http.host", C): [b"www.example.com"],
        ("http.host.raw", C): [b"WWW.Example.com:8080"],
        ("http.user_agent", C): [b"test/1"],
        ("http.accept", C): [b"*/*"],
        ("http.accept_enc", C): [b"gzip"],
        ("http.accept_lang", C): [b"en"],
        ("http.referer", C): [b"http://r/"],
        ("http.connection", C): [b"close"],
        ("http.cookie", C): [b"a=b"],
        ("http.cookie", S): [b"c=d"],
        ("http.server", S): [b"nginx"],
        ("http.location", S): [b"/l"],
        ("http.content_type", S): [b"text/html; charset=utf-8"],
        ("http.content_len", S): [b"5"],
        ("http.response_body", S): [b"hello"],
        ("file.data", S): [b"hello"],
        ("file_data", S): [b"hello"],
        ("http.header", S): [
            b"Server: nginx\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 5\r\nLocation: /l\r\n"
        ],
        ("http.header_names", S): [
            b"\r\nServer\r\nContent-Type\r\nContent-Length\r\nSet-Cookie\r\nLocation\r\n\r\n",
        ],
        ("http.header.raw", S): [OK.partition(b"\r\n")[2][:-5]],
        ("http.start", S): [OK[:-5]],
        ("http.start", C): [GET],
        ("http.response_header", S): [
            b"Server: nginx",
            b"Content-Type: text/html; charset=utf-8",
            b"Content-Length: 5",
            b"Set-Cookie: c=d",
            b"Location: /l",
        ],
    }
    for _, (tx,) in every_way(Http1Parser, [(C, GET), (S, OK)]):
        for (name, direction), value in expected.items():
            assert list(tx.buffer(name, direction)) == value, name
        for name, (sides, _, _) in BUFFERS.items():
            for direction in (C, S):
                if direction not in sides:
                    assert tx.buffer(name, direction) == ()
        assert list(tx.buffer("http.cookie")) == [b"a=b", b"c=d"]
        assert tx.buffer("http.no_such_buffer") == ()
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.events == []
        assert tx.log_fields() == {
            "hostname": "www.example.com",
            "url": "/a/../b%20c?x=%41",
            "http_user_agent": "test/1",
            "http_refer": "http://r/",
            "http_method": "GET",
            "protocol": "HTTP/1.1",
            "http_content_type": "text/html",
            "status": 200,
            "length": 5,
        }


def test_request_headers_leave_the_cookie_out() -> None:
    (tx,) = play(Http1Parser(), [(C, GET)])
    (header,) = tx.buffer("http.header", C)
    assert b"Cookie" not in header
    assert header.startswith(b"Host: WWW.Example.com:8080\r\n")
    assert b"Cookie: a=b" in tx.buffer("http.request_header")
    assert b"Cookie" in tx.buffer("http.header_names", C)[0]
    assert tx.buffer("http.header_names", S) == ()


REQUEST_BODIES = [
    # framing, bytes on the wire, body seen
    (b"Content-Length: 4\r\n", b"abcd", b"abcd"),
    (b"Content-Length: 0\r\n", b"", None),
    (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: v\r\n\r\n", b"abcd"),
    (b"Transfer-Encoding: chunked\r\n", b"\r\n 3 \nabc\n001\nd\r\n0\r\n\r\n", b"abcd"),
    (b"Transfer-Encoding: Chunked\r\nContent-Length: 2\r\n", b"4\r\nabcd\r\n0\r\n\r\n", b"abcd"),
    (b"Content-Length: 24\r\nContent-Encoding: deflate\r\n", zlib.compress(b"abcdefghijklmnop"), b"abcdefghijklmnop"),
]


@pytest.mark.parametrize(("framing", "wire", "seen"), REQUEST_BODIES)
def test_request_bodies(framing: bytes, wire: bytes, seen: bytes | None) -> None:
    """Each is followed by another request that must be found."""
    post = b"POST /p HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n" + wire
    for _, txs in every_way(Http1Parser, [(C, post + GET)]):
        first, second = txs
        assert list(first.buffer("http.request_body")) == ([] if seen is None else [seen])
        assert list(first.buffer("file.data", C)) == ([] if seen is None else [seen])
        assert first.is_complete(C)
        assert second.buffer("http.method") == (b"GET",)


RESPONSE_BODIES = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.0 200 OK\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\n\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n4 junk\r\nabcdjunk\r\n0\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nabsolutely", b"absolutely"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabcd", b"xyz\r\nabcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: junk\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\rContent-Length: 4\r\r\nX: y\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200\r\nContent-Length: 4\n \nabcd", b"abcd"),
    (b"junk\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 101 Surprise\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"just bytes, no head at all", b"just bytes, no head at all"),
    (b"bytes\nand a line", b"bytes\nand a line"),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", None),
    # 204 and 304 that have a body all the same
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1\t204 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nHTT--", b"HTT--"),
    (b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nht", b"ht"),
    (b"HTTP/1.1 204 No\r\n\r\nabcd", b"abcd"),
    # where the head ends: lines of stray CRs, LF CR as a line end, one space between bare LFs
    (b"HTTP/1.1 200 OK\r\n\r\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\r\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\rContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\n\r\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\n\r\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\n\rContent-Length: 4\n\rA: b\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\n\t\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\x0b\r\n\r\nabcd", b"abcd"),
    # folding
    (b"HTTP/1.1 200 OK\r\n Content-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n Content-Length: 4\r\n\r\nabcd and more", b"abcd and more"),
    (b"HTTP/1.1 200 OK\r\nContent-Length\r\n \r\n :\r\n 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length:\n\0004\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding:\n\0gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    # codings
    (b"HTTP/1.1 200 OK\r\nContent-Encoding:gz\0ip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding:: gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"HTTP/1.1 200 OK\rContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding:\r deflate\r\n\r\n" + zlib.compress(b"abcd"), b"abcd"),
    (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Encoding: identity\r\n\r\n" + gzip.compress(b"abcd"),
        b"abcd",
    ),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    # status lines
    (b"HTTP\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"\0HTTP/1.1 200\0 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"http/1.10\x0b200\x0bOK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1\n 200 OK\r\nContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1\rContent-Length: 4\r\n\r\nabcd", b"abcd"),
    (b"xyzHTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"vwxyzHTTP/1.1 200 OK\r\n\r\nabcd", b"vwxyzHTTP/1.1 200 OK\r\n\r\nabcd"),
    (b"ICY 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"abcd"), b"abcd"),
    (b"ICYCLE", b"ICYCLE"),
    (b"HTT\n\nabcd", b"HTT\n\nabcd"),
    # chunk sizes
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nabcd\r\n0x\r\n\r\n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n \n\r\n4\0\r\nabcd\r\n\x0b0\n \n", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\nabcd", b"-4\r\nabcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;4\r\nabcd\r\n0", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", b"abcd"),
    # lengths
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 2\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: (4) 2\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\0\r\n\r\nabcd", b"abcd"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999999\r\n\r\nabcd", b"abcd"),
]
# Where clients differ about what the body is, both readings are there: (wire, as libhtp reads it, as on the wire).
CHUNKS = b"1\r\na\r\n3\r\nbcd\r\n0\r\n\r\n"
DOUBTFUL_BODIES = [
    (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\0\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (b"HTTP/1.1 200 OK\r\n\r\rTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcd", CHUNKS),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked x\r\nContent-Encoding: gzip\r\n\r\n"
        + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(ZIPPED), ZIPPED)),
        b"abcd",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(ZIPPED), ZIPPED),
    ),
    # Nobody may skip what follows a chunk and call it nothing.
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na <b>\n2\r\ncd\r\n0\r\n\r\n",
        b"acd",
        b"<b>\n2\r\ncd\r\n0\r\n\r\n",
    ),
]


@pytest.mark.parametrize(("wire", "framed", "plain"), DOUBTFUL_BODIES)
def test_two_readings(wire: bytes, framed: bytes, plain: bytes) -> None:
    for parser, (tx,) in every_way(Http1Parser, [(C, GET), (S, wire)]):
        parser.close(S)
        assert list(tx.buffer("http.response_body")) == [framed, plain]
        assert list(tx.buffer("file.data", S)) == [framed, plain]
        assert tx.is_complete(S)
        assert tx.events


@pytest.mark.parametrize(
    ("value", "cut", "first", "second"),
    [
        (b"4 8", 4, b"abcdefgh", None),  # what a client takes who reads the other number, and nothing is cut apart
        (b"4\r\n 8", 4, b"abcdefgh", None),
        (b"4\r\nContent-Length: 8", 4, b"abcdefgh", None),
        (b"4", 4, b"abcd", b"efgh"),  # no doubt: the response is over, and its rules have had their say
        (b"4", 9, b"abcdefgh", None),
    ],
)
def test_a_length_too_small(value: bytes, cut: int, first: bytes, second: bytes | None) -> None:
    """Transactions that are complete are taken away, as the inspector does after each segment."""
    parser = Http1Parser()
    parser.feed(C, GET)
    seen = []
    head, body = b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\n", b"abcdefgh"
    for data in (head + body[:cut], body[cut:]):
        parser.feed(S, data)
        for tx in list(parser.transactions):
            if tx.is_complete(C) and tx.is_complete(S):
                parser.transactions.remove(tx)
                seen.append(tx)
    parser.close(S)
    seen += parser.transactions
    assert [tx.buffer("file.data", S) for tx in seen] == [(body,) for body in (first, second) if body is not None]


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("script", "end", "event"),
    [
        ([(C, b"GET / HTTP/1.0\r\nA: " + b"x" * LIMITS.field)], b"\r\n\r\n", "request_field_too_long"),
        ([(C, b"GET /" + b"x" * LIMITS.field)], b" HTTP/1.0\r\n\r\n", "request_field_too_long"),
        ([(C, GET), (S, b"HTTP/1.1 200 OK\r\nA: " + b"x" * LIMITS.field)], b"\r\n\r\n", "response_field_too_long"),
        ([(C, b"GET / HTTP/1.0\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(4000)))], b"\r\n", None),
    ],
)
def test_a_long_line(script: Script, end: bytes, event: str | None, complete: bool) -> None:
    """Said as soon as it is clear, and only once."""
    parser, side = Http1Parser(), script[-1][0]
    txs = play(parser, [*script, (side, end)] if complete else script, 1000)
    assert [tx.events for tx in txs] == ([[event]] if event else [[]] if complete else [])
    if not complete:
        before = [tx.progress(side) for tx in txs]
        parser.feed(side, b"x")
        assert [tx.progress(side) for tx in txs] == before


def test_both_readings_are_bounded() -> None:
    parser = Http1Parser()
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    (tx,) = play(parser, [(C, GET), (S, b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 50)])
    assert [len(body) for body in tx.buffer("file.data", S)] == [LIMITS.response_body] * 2


def test_a_response_after_304_is_one() -> None:
    """Content-Length of 304 is the length of what did not change (RFC 9110, section 8.6)."""
    script = [(C, GET + GET), (S, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n" + OK)]
    for _, (first, second) in every_way(Http1Parser, script):
        assert (first.buffer("http.stat_code"), first.buffer("http.response_body")) == ((b"304",), ())
        assert second.buffer("http.response_body") == (b"hello",)


@pytest.mark.parametrize(
    ("head", "event"),
    [
        (b"HTTP/1.1 200 OK\r\nA\0: b\r\nContent-Length: 0\r\n\r\n", "response_header_invalid"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n", "response_header_invalid"),
        (b"HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n", "response_field_missing_colon"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", "invalid_response_field_folding"),
        (b"HTTP/1.1 200 OK\r\nA: b\rB: c\r\nContent-Length: 0\r\n\r\n", "response_bare_cr"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\n", "invalid_content_length_field_in_response"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
            "duplicate_content_length_field_in_response",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nContent-Length: 0\r\n\r\n",
            "invalid_transfer_encoding_value_in_response",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x,chunked\r\n\r\n", "response_abnormal_transfer_encoding"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "response_chunked_old_proto"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "response_smuggling"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\n", "response_chunk_extension"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz", "invalid_response_chunk_len"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "invalid_response_chunk_len"),
        (b"HTTP/x.1 200 OK\r\nContent-Length: 0\r\n\r\n", "response_invalid_protocol"),
        (b"HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n", "response_invalid_status"),
        (b"HTTP/1.1 204 OK\r\nContent-Length: 1\r\n\r\nx", "response_body_unexpected"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: rot13\r\n\r\nx", "abnormal_ce_header"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnonsense", "gzip_decompression_failed"),
        (OK, None),
    ],
)
def test_response_events(head: bytes, event: str | None) -> None:
    for _, (tx,) in every_way(Http1Parser, [(C, GET), (S, head)]):
        assert tx.events == ([event] if event else [])


@pytest.mark.parametrize(("wire", "seen"), RESPONSE_BODIES)
def test_response_bodies(wire: bytes, seen: bytes | None) -> None:
    for parser, (tx,) in every_way(Http1Parser, [(C, GET), (S, wire)]):
        parser.close(S)
        assert list(tx.buffer("http.response_body"))[:1] == ([] if seen is None else [seen])
        assert tx.is_complete(S)
        assert not parser.gave_up


def test_head_has_no_body() -> None:
    head = GET.replace(b"GET", b"HEAD", 1)
    for _, (first, second) in every_way(
        Http1Parser, [(C, head + GET), (S, OK[:-5] + b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx")]
    ):
        assert list(first.buffer("http.stat_code") + first.buffer("http.response_body")) == [b"200"]
        assert second.buffer("http.stat_code") == (b"404",)
        assert second.buffer("http.response_body") == (b"x",)


def test_pipelined_responses_find_their_requests() -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(5))
    responses = b"".join(b"HTTP/1.1 21%d OK\r\nContent-Length: 1\r\n\r\n%d" % (n, n) for n in range(5))
    for _, txs in every_way(Http1Parser, [(C, requests), (S, responses)]):
        seen = [(*tx.buffer("http.uri"), *tx.buffer("http.stat_code"), *tx.buffer("http.response_body")) for tx in txs]
        assert seen == [(b"/%d" % n, b"21%d" % n, b"%d" % n) for n in range(5)]
        assert [tx.id for tx in txs] == [0, 1, 2, 3, 4]


def test_response_without_a_request() -> None:
    for _, (tx,) in every_way(Http1Parser, [(S, OK)]):
        assert tx.events == ["unable_to_match_response_to_request"]
        assert tx.buffer("http.stat_code") == (b"200",)
        assert tx.buffer("http.uri") == ()
        assert tx.log_fields()["status"] == 200


@pytest.mark.parametrize(
    ("line", "method", "uri", "protocol"),
    [
        (b"GET /x HTTP/1.0", b"GET", b"/x", b"HTTP/1.0"),
        (b"GET  /x  HTTP/1.1 ", b"GET", b"/x", b"HTTP/1.1"),
        (b"GET\t/x\tHTTP/1.1", b"GET", b"/x", b"HTTP/1.1"),
        (b"GET /a b c HTTP/1.1", b"GET", b"/a b c", b"HTTP/1.1"),
        (b"  GET /x HTTP/1.1", b"GET", b"/x", b"HTTP/1.1"),
        (b"BREW /pot http/1.1", b"BREW", b"/pot", b"http/1.1"),
        (b"GET http://h/x HTTP/9.9", b"GET", b"http://h/x", b"HTTP/9.9"),
    ],
)
def test_request_lines(line: bytes, method: bytes, uri: bytes, protocol: bytes) -> None:
    for _, (tx,) in every_way(Http1Parser, [(C, line + b"\r\nHost: h\r\n\r\n")]):
        got = [*tx.buffer("http.method"), *tx.buffer("http.uri.raw"), *tx.buffer("http.protocol")]
        assert got == [method, uri, protocol]


def test_http_0_9() -> None:
    for parser, (tx,) in every_way(Http1Parser, [(C, b"GET /old\r\n"), (S, b"<html>old</html>")]):
        parser.close(S)
        assert tx.buffer("http.uri") == (b"/old",)
        assert tx.buffer("http.protocol", C) == ()
        assert tx.buffer("http.response_body") == (b"<html>old</html>",)
        assert tx.events == ["request_line_missing_protocol", "response_without_head"]


def test_fields_after_a_line_without_protocol() -> None:
    (tx,) = play(Http1Parser(), [(C, b"GET /x\r\nHost: h\r\n\r\n")])
    assert tx.buffer("http.host") == (b"h",)
    assert "request_line_missing_protocol" in tx.events


@pytest.mark.parametrize(
    ("block", "names", "event"),
    [
        (b"A: 1\r\n B\r\nC: 2\r\n", {b"A: 1 B", b"C: 2"}, "invalid_request_field_folding"),
        (b"A: 1\r\n B: 2\r\n", {b"A: 1 B: 2"}, "invalid_request_field_folding"),
        (b"A: 1\r\na: 2\r\n", {b"A: 1, 2"}, None),
        (b"A : 1\r\n", {b"A: 1"}, "request_header_invalid"),
        (b"A:\x0b1\r\n", {b"A: 1"}, "request_header_invalid"),
        (b": 1\r\n", {b": 1"}, "request_header_invalid"),
        (b"A\0B: 1\r\n", {b"AB: 1"}, "request_header_invalid"),
        (b"no colon\r\n", {b": no colon"}, "request_field_missing_colon"),
        (b"A:\r\n", {b"A: "}, None),
        (b"A: 1\nB: 2\n", {b"A: 1", b"B: 2"}, None),
    ],
)
def test_odd_fields(block: bytes, names: set[bytes], event: str | None) -> None:
    for _, (tx,) in every_way(Http1Parser, [(C, b"GET / HTTP/1.1\r\nHost: h\r\n" + block + b"\r\n")]):
        assert set(tx.buffer("http.request_header")) == names | {b"Host: h"}
        assert tx.events == ([event] if event else [])


@pytest.mark.parametrize(
    ("request_head", "event"),
    [
        (b"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n", "host_header_ambiguous"),
        (b"GET /%2561 HTTP/1.1\r\nHost: h\r\n\r\n", "double_encoded_uri"),
        (b"GET / HTTP/1.1\r\n\r\n", "missing_host_header"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "request_smuggling"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", None),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "duplicate_content_length_field_in_request",
        ),
        (b"GET / HTTP/1.0\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8]\r\n\r\n", "request_header_host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a..example\r\n\r\n", "request_header_host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: h:99999\r\n\r\n", "request_header_host_invalid"),
        (b"GET http://a!b/ HTTP/1.0\r\n\r\n", "request_uri_host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YTpi\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: NTLM YTpi\r\n\r\n", "request_auth_unrecognized"),
        (b"  GET / HTTP/1.1\r\nHost: h\r\n\r\n", None),  # spaces between messages are passed over
        (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", "method_delim_non_compliant"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
            "request_chunk_extension",
        ),
    ],
)
def test_request_events(request_head: bytes, event: str | None) -> None:
    (tx,) = play(Http1Parser(), [(C, request_head)])
    assert tx.events == ([event] if event else [])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 2\r\n\r\n", "invalid_content_length_field_in_request"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", "invalid_content_length_field_in_request"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "invalid_request_chunk_len"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", "invalid_request_chunk_len"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 9000, "request_line_too_long"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70000, "request_header_too_long"),
        (b"GET /" + b"x" * 70000, "request_line_too_long"),
        (b"GET / HTTP/1.1\r\n\r\n" * 300, "too_many_pipelined_requests"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    for cut in (0, 1000):
        parser = Http1Parser()
        play(parser, [(C, data)], cut)
        assert (parser.gave_up, parser.reason) == (True, reason)
        assert parser.held(C) == 0


def test_a_head_is_held_until_it_is_complete() -> None:
    parser = Http1Parser()
    for size in range(1, len(GET)):
        parser.feed(C, GET[size - 1 : size])
        assert parser.held(C) == size
        assert parser.transactions == []
    parser.feed(C, GET[-1:])
    assert parser.held(C) == 0
    assert len(parser.transactions) == 1


def test_only_the_incomplete_request_is_held() -> None:
    parser = Http1Parser()
    parser.feed(C, GET + GET[:10])
    assert parser.held(C) == 10
    parser.feed(C, GET[10:] + b"\r\nGE")
    assert parser.held(C) == 2


def test_bodies_are_held_when_asked() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n"
    parser = Http1Parser(hold_body=True)
    parser.feed(C, head + b"abc")
    assert parser.held(C) == len(head) + 3
    parser.feed(C, b"de")
    assert parser.held(C) == len(head) + 5
    parser.feed(C, b"f")
    assert parser.held(C) == 0
    plain = Http1Parser()
    plain.feed(C, head + b"abc")
    assert plain.held(C) == 0


def test_a_held_body_is_let_go_at_the_limit() -> None:
    parser = Http1Parser(replace(LIMITS, request_body=4), hold_body=True)
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
    parser.feed(C, head + b"abc")
    assert parser.held(C) == len(head) + 3
    parser.feed(C, b"d")
    assert parser.held(C) == 0
    parser.feed(C, b"e" * 990)
    assert parser.held(C) == 0
    assert list(parser.transactions[0].buffer("http.request_body")) == [b"abcd"]


def test_expect_continue_is_not_held() -> None:
    """The client waits for the server to have seen its head."""
    parser = Http1Parser(hold_body=True)
    parser.feed(C, b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
    assert parser.held(C) == 0


def test_a_large_body_is_counted_and_not_kept() -> None:
    parser = Http1Parser()
    parser.feed(C, GET)
    parser.feed(S, b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
    (tx,) = parser.transactions
    for _ in range(500):
        parser.feed(S, bytes(100_000))
    assert tx.is_complete(S)
    assert len(tx.buffer("http.response_body")[0]) == LIMITS.response_body
    assert tx.log_fields()["length"] == 50_000_000


def test_progress_only_moves_when_there_is_something_new() -> None:
    parser = Http1Parser()
    parser.feed(C, GET)
    (tx,) = parser.transactions
    request = tx.progress(C)
    assert request > 0
    assert tx.progress(S) == 0
    parser.feed(S, OK[:-3])
    body = tx.progress(S)
    assert body > 0
    parser.feed(S, OK[-3:])
    assert tx.progress(S) > body
    assert tx.progress(C) == request


CONNECT = b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:443\r\n\r\n"
HELLO = b"\x16\x03\x01\x00\x05hello"


def test_connect() -> None:
    for cut in (0, 1):
        parser = Http1Parser()
        (tx,) = play(parser, [(C, CONNECT + HELLO)], cut)
        assert tx.buffer("http.host") == (b"h.example",)
        assert not parser.tunnel
        assert parser.held(C) == len(HELLO)
        parser.feed(S, b"HTTP/1.1 200 Connection established\r\n\r\nanswer")
        assert parser.tunnel
        assert (parser.unparsed(C), parser.unparsed(S)) == (HELLO, b"answer")
        assert (parser.held(C), parser.held(S)) == (0, 0)
        assert tx.is_complete(S)


def test_connect_refused() -> None:
    parser = Http1Parser()
    play(parser, [(C, CONNECT + GET), (S, b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno" + OK)])
    assert not parser.tunnel
    assert [list(tx.buffer("http.stat_code")) for tx in parser.transactions] == [[b"407"], [b"200"]]
    assert parser.held(C) == 0


def test_connect_flood() -> None:
    parser = Http1Parser()
    play(parser, [(C, CONNECT + bytes(70000))])
    assert parser.reason == "connect_without_answer"


def test_upgrade() -> None:
    upgrade = b"GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    for parser, (tx,) in every_way(
        Http1Parser, [(C, upgrade), (S, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")]
    ):
        assert parser.tunnel
        assert tx.buffer("http.stat_code") == (b"101",)
        parser.feed(S, b"ignored")
        assert parser.unparsed(S) == b""


def test_trailing_bytes_belong_to_the_last_body() -> None:
    """A Content-Length that is too small does not hide the rest."""
    for parser, (tx,) in every_way(Http1Parser, [(C, GET), (S, OK + b" world")]):
        parser.close(S)
        assert tx.buffer("http.response_body") == (b"hello world",)
        assert "response_body_unexpected" in tx.events


def test_closed_in_the_middle() -> None:
    parser = Http1Parser()
    (tx,) = play(parser, [(C, GET), (S, OK[:-2])])
    parser.close(S)
    assert tx.is_complete(S)
    assert "incomplete_body" in tx.events
    assert tx.buffer("http.response_body") == (b"hel",)


SCRIPTS: Sequence[list[tuple[object, bytes]]] = [
    [(C, GET), (S, OK)],
    [(C, b"POST /p HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n" + wire) for framing, wire, _ in REQUEST_BODIES],
    *([(C, GET), (S, wire)] for wire, _ in RESPONSE_BODIES),
    *([(C, GET), (S, wire)] for wire, _, _ in DOUBTFUL_BODIES),
    [(C, CONNECT), (S, b"HTTP/1.1 200 OK\r\n\r\n"), (C, HELLO)],
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_segments_change_nothing(script: list[tuple[object, bytes]]) -> None:
    """Whatever the bytes are, how they are cut decides nothing: no evasion by segmentation."""
    rng = random.Random(len(script[0][1]))
    for _ in range(20):
        odd = mutate(script, rng)  # type: ignore[arg-type]
        seen = []
        for cut in (0, 1, 5):
            parser = Http1Parser()
            txs = play(parser, odd, cut)
            parser.close(C)
            parser.close(S)
            buffers = [[list(tx.buffer(name, side)) for name in BUFFERS for side in (C, S)] for tx in txs]
            seen.append((buffers, [sorted(tx.events) for tx in txs], parser.reason, parser.tunnel))
        assert seen[0] == seen[1] == seen[2], odd


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_mutations(script: list[tuple[object, bytes]], hold: bool) -> None:
    """Parse or refuse, never raise."""
    survives(lambda: Http1Parser(hold_body=hold), script, list(BUFFERS), rounds=25, seed=len(script[0][1]))  # type: ignore[arg-type]


# --- the request line for itself -------------------------------------------------------------------------------------

LINE, REST = b"GET /a%20b HTTP/1.1\r\n", b"Host: example\r\nReferer: /\r\n\r\n"
OF_LINE = {
    "http.method": [b"GET"],
    "http.uri": [b"/a b"],
    "http.uri.raw": [b"/a%20b"],
    "http.protocol": [b"HTTP/1.1"],
    "http.request_line": [LINE.rstrip()],
}


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_request_line_is_seen_before_its_head_is_complete(cut: int) -> None:
    parser = Http1Parser(replace(LIMITS, lines_alone=True))
    (tx,) = play(parser, [(C, LINE)], cut)
    seen = {name: list(tx.buffer(name, C)) for name in BUFFERS}
    assert {name: value for name, value in seen.items() if value} == OF_LINE
    assert not tx.has_begun(C)
    assert tx.log_fields()["url"] == "/a%20b"
    assert parser.held(C) == len(LINE)
    (tx,) = play(parser, [(C, REST)], cut)
    (whole,) = play(Http1Parser(), [(C, LINE + REST)])
    for name in BUFFERS:
        assert list(tx.buffer(name, C)) == list(whole.buffer(name, C)), name
    assert tx.has_begun(C)
    assert tx.is_complete(C)


def test_a_request_line_waits_for_its_head_where_that_is_judged_live() -> None:
    assert play(Http1Parser(), [(C, LINE)]) == []

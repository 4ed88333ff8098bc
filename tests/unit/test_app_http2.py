"""HTTP/2: the same buffers as HTTP/1, out of frames. Frames are built with hyperframe, header blocks with hpack."""

from __future__ import annotations

import gzip
import struct
from base64 import urlsafe_b64encode
from dataclasses import replace

import pytest
from dnslib import DNSRecord
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from engines.stateful.app import http2_frames
from engines.stateful.app.http2 import PREFACE, Http2Parser
from engines.stateful.app.http_transaction import BUFFERS
from engines.stateful.app.limits import AppLimits
from tests.unit.app_feeding import C, S, every_way, play, survives

LIMITS = AppLimits()
REQUEST = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "WWW.Example.com"),
    (":path", "/a/../b%20c?x=1"),
    ("user-agent", "test/2"),
    ("cookie", "a=b"),
    ("cookie", "c=d"),
]
RESPONSE = [(":status", "200"), ("server", "nginx"), ("content-type", "text/html"), ("set-cookie", "e=f")]


class Peer:
    """One side's encoder: header tables are state."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    def headers(self, stream: int, fields: list[tuple[str, str]], *flags: str, **extra: int) -> bytes:
        frame = HeadersFrame(stream, self.encoder.encode(fields), flags=["END_HEADERS", *flags], **extra)
        return bytes(frame.serialize())

    def split_headers(self, stream: int, fields: list[tuple[str, str]], pieces: int, *flags: str) -> bytes:
        block = self.encoder.encode(fields)
        size = -(-len(block) // pieces)
        parts = [block[at : at + size] for at in range(0, len(block), size)]
        out = HeadersFrame(stream, parts[0], flags=flags).serialize()
        for part in parts[1:-1]:
            out += ContinuationFrame(stream, part).serialize()
        return bytes(out + ContinuationFrame(stream, parts[-1], flags=["END_HEADERS"]).serialize())


def data(stream: int, payload: bytes, *flags: str, pad: int = 0) -> bytes:
    return bytes(DataFrame(stream, payload, flags=flags, pad_length=pad).serialize())


START = PREFACE + SettingsFrame(0, settings={1: 65536}).serialize()
SERVER_START = SettingsFrame(0, settings={3: 100}).serialize()


def exchange() -> list[tuple[object, bytes]]:
    client, server = Peer(), Peer()
    return [
        (C, START + client.headers(1, REQUEST, "END_STREAM")),
        (S, SERVER_START + server.headers(1, RESPONSE) + data(1, b"hel") + data(1, b"lo", "END_STREAM")),
    ]


def test_every_buffer() -> None:
    for parser, (tx,) in every_way(Http2Parser, exchange()):
        assert not parser.gave_up
        expected = {
            ("http.method", C): [b"GET"],
            ("http.uri", C): [b"/b c?x=1"],
            ("http.uri.raw", C): [b"/a/../b%20c?x=1"],
            ("http.protocol", C): [b"HTTP/2"],
            ("http.protocol", S): [b"HTTP/2"],
            ("http.host", C): [b"www.example.com"],
            ("http.host.raw", C): [b"WWW.Example.com"],
            ("http.user_agent", C): [b"test/2"],
            ("http.cookie", C): [b"a=b; c=d"],
            ("http.cookie", S): [b"e=f"],
            ("http.request_line", C): [b"GET /a/../b%20c?x=1 HTTP/2\r\n"],
            ("http.stat_code", S): [b"200"],
            ("http.server", S): [b"nginx"],
            ("http.content_type", S): [b"text/html"],
            ("http.response_body", S): [b"hello"],
            ("file.data", S): [b"hello"],
            ("http.header", S): [b":status: 200\r\nserver: nginx\r\ncontent-type: text/html\r\n"],
        }
        for (name, direction), value in expected.items():
            assert list(tx.buffer(name, direction)) == value, name
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.log_fields()["protocol"] == "HTTP/2"
        assert tx.log_fields()["hostname"] == "www.example.com"
        assert tx.log_fields()["status"] == 200


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_continuation(pieces: int) -> None:
    for _, (tx,) in every_way(Http2Parser, [(C, START + Peer().split_headers(1, REQUEST, pieces, "END_STREAM"))]):
        assert tx.buffer("http.user_agent") == (b"test/2",)
        assert tx.is_complete(C)


def test_padding_and_priority() -> None:
    client = Peer()
    head = client.headers(1, REQUEST, "PADDED", "PRIORITY", pad_length=9, depends_on=0, stream_weight=3)
    wire = START + head + data(1, b"ab", "PADDED", pad=200) + data(1, b"", "PADDED", pad=3)
    wire += data(1, b"cd", "PADDED", "END_STREAM", pad=1)
    for _, (tx,) in every_way(Http2Parser, [(C, wire)]):
        assert list(tx.buffer("http.request_body")) == [b"abcd"]
        assert tx.is_complete(C)


def test_interleaved_streams_and_other_frames() -> None:
    client, server = Peer(), Peer()
    request = START
    for stream in (1, 3, 5):
        request += client.headers(stream, [*REQUEST[:3], (":path", f"/{stream}")], "END_STREAM")
        request += WindowUpdateFrame(stream, window_increment=5).serialize() + PingFrame(0, b"12345678").serialize()
    response = SERVER_START
    for stream in (5, 1, 3):
        response += server.headers(stream, [(":status", "200")])
    for stream in (1, 3, 5):
        response += data(stream, b"body%d" % stream)
    response += data(3, b"!", "END_STREAM") + data(1, b"", "END_STREAM")
    response += RstStreamFrame(5, error_code=8).serialize() + GoAwayFrame(0).serialize()
    for _, txs in every_way(Http2Parser, [(C, request), (S, response)]):
        seen = [(*tx.buffer("http.uri"), *tx.buffer("http.response_body")) for tx in txs]
        assert seen == [(b"/1", b"body1"), (b"/3", b"body3!"), (b"/5", b"body5")]
        assert all(tx.is_complete(S) for tx in txs)


def test_interim_answers_and_trailers() -> None:
    client, server = Peer(), Peer()
    request = START + client.headers(1, REQUEST) + data(1, b"x") + client.headers(1, [("grpc", "0")], "END_STREAM")
    response = SERVER_START + server.headers(1, [(":status", "103"), ("link", "x")]) + server.headers(1, RESPONSE)
    response += data(1, b"y") + server.headers(1, [("grpc-status", "0")], "END_STREAM")
    for _, (tx,) in every_way(Http2Parser, [(C, request), (S, response)]):
        assert tx.buffer("http.stat_code") == (b"200",)
        assert list(tx.buffer("http.request_body") + tx.buffer("http.response_body")) == [b"x", b"y"]
        assert tx.is_complete(C)
        assert tx.is_complete(S)


def test_encoded_body() -> None:
    server = Peer()
    packed = gzip.compress(b"text" * 100)
    wire = SERVER_START + server.headers(1, [*RESPONSE, ("content-encoding", "gzip")])
    wire += data(1, packed[:20]) + data(1, packed[20:], "END_STREAM")
    (tx,) = play(Http2Parser(), [exchange()[0], (S, wire)])  # type: ignore[list-item]
    assert tx.buffer("file.data", S) == (b"text" * 100,)


def test_push_promise_is_a_request() -> None:
    server = Peer()
    promise = PushPromiseFrame(1, promised_stream_id=2, data=server.encoder.encode(REQUEST), flags=["END_HEADERS"])
    wire = SERVER_START + promise.serialize() + server.headers(2, RESPONSE, "END_STREAM")
    for _, txs in every_way(Http2Parser, [exchange()[0], (S, wire)]):  # type: ignore[list-item]
        assert [list(tx.buffer("http.stat_code")) for tx in txs] == [[], [b"200"]]
        assert txs[1].buffer("http.uri") == (b"/b c?x=1",)


def test_authority_and_host_differ() -> None:
    (tx,) = play(Http2Parser(), [(C, START + Peer().headers(1, [*REQUEST, ("host", "other.example")]))])
    assert tx.events == ["authority_host_mismatch"]
    assert tx.buffer("http.host") == (b"www.example.com",)


def test_userinfo_in_authority() -> None:
    fields = [(":method", "GET"), (":path", "/"), (":authority", "user:word@h.example")]
    (tx,) = play(Http2Parser(), [(C, START + Peer().headers(1, fields))])
    assert tx.events == ["userinfo_in_uri"]


def test_connect() -> None:
    fields = [(":method", "CONNECT"), (":authority", "h.example:443")]
    (tx,) = play(Http2Parser(), [(C, START + Peer().headers(1, fields))])
    assert tx.buffer("http.uri") == (b"h.example:443",)
    assert tx.buffer("http.host") == (b"h.example",)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


# One large table entry, referenced again and again.
BOMB = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 1000


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\nSM\r\n\r\n", "no_preface"),
        (PREFACE + frame(9, 4, 1, b""), "continuation_without_headers"),
        (PREFACE + frame(1, 0, 1, b"") + frame(6, 0, 0, bytes(8)), "header_block_interrupted"),
        (PREFACE + frame(1, 0, 1, b"") + frame(9, 0, 3, b""), "header_block_interrupted"),
        (PREFACE + frame(1, 4, 1, b"\xff\xff\xff\xff\xff"), "header_block_not_decodable"),
        (PREFACE + frame(1, 4, 1, b"\x3f\xe1\xff\xff\xff\x0f"), "header_block_not_decodable"),  # a table of 4 GiB
        (PREFACE + frame(1, 12, 1, b"\x09x"), "malformed_headers"),
        (PREFACE + frame(1, 4, 0, b""), "malformed_headers"),
        (PREFACE + frame(0, 0, 0, b"x"), "data_on_stream_0"),
        (PREFACE + frame(0, 8, 1, b"\x09x"), "padding_too_long"),
        (PREFACE + b"\xff\xff\xff\x04\0\0\0\0\0", "frame_too_long"),
        (PREFACE + frame(1, 0, 1, b"x") + frame(9, 0, 1, b"") * 100, "header_block_too_long"),
        (PREFACE + frame(1, 0, 1, bytes(40000)) + frame(9, 0, 1, bytes(40000)), "header_block_too_long"),
        (
            PREFACE + frame(1, 4, 1, b"\x40\x01a\x7f\x81\x1e" + b"x" * 4000 + b"\xbe" * 1000),
            "header_block_not_decodable",
        ),
    ],
)
def test_refused(wire: bytes, reason: str) -> None:
    for cut in (0, 1):
        parser = Http2Parser()
        play(parser, [(C, wire)], cut)
        assert (parser.gave_up, parser.reason) == (True, reason)
        assert parser.held(C) == 0


def test_too_many_streams() -> None:
    client = Peer()
    wire = START + b"".join(client.headers(stream, REQUEST) for stream in range(1, 21, 2))
    parser = Http2Parser(replace(LIMITS, http2_streams=5))
    play(parser, [(C, wire)])
    assert parser.reason == "too_many_streams"


def test_finished_streams_are_forgotten() -> None:
    client, server = Peer(), Peer()
    parser = Http2Parser(replace(LIMITS, http2_streams=2))
    play(parser, [(C, START), (S, SERVER_START)])
    for stream in range(1, 100, 2):
        parser.feed(C, client.headers(stream, REQUEST, "END_STREAM"))
        parser.feed(S, server.headers(stream, RESPONSE, "END_STREAM"))
        parser.transactions.clear()
    assert not parser.gave_up


def test_header_blocks_are_held_until_complete() -> None:
    parser = Http2Parser()
    parser.feed(C, START)
    assert parser.held(C) == 0
    block = Peer().split_headers(1, REQUEST, 3, "END_STREAM")
    for size in range(1, len(block)):
        parser.feed(C, block[size - 1 : size])
        assert parser.held(C) == size
    parser.feed(C, block[-1:])
    assert parser.held(C) == 0
    assert len(parser.transactions) == 1


def test_bodies_are_held_when_asked() -> None:
    client = Peer()
    parser = Http2Parser(hold_body=True)
    parser.feed(C, START)
    head = client.headers(1, REQUEST)
    parser.feed(C, head + data(1, b"abc"))
    assert parser.held(C) == len(head) + 12
    parser.feed(C, data(1, b"d", "END_STREAM"))
    assert parser.held(C) == 0


def test_held_bodies_do_not_starve_flow_control() -> None:
    client = Peer()
    parser = Http2Parser(hold_body=True)
    parser.feed(C, START + client.headers(1, REQUEST))
    for _ in range(10):
        parser.feed(C, data(1, bytes(10_000)))
        assert parser.held(C) <= LIMITS.http2_held
    assert parser.held(C) == 0


def test_a_large_body_is_counted_and_not_kept() -> None:
    parser = Http2Parser()
    server = Peer()
    play(parser, [exchange()[0], (S, SERVER_START + server.headers(1, RESPONSE))])  # type: ignore[list-item]
    for _ in range(2000):
        parser.feed(S, data(1, bytes(16384)))
    (tx,) = parser.transactions
    assert len(tx.buffer("http.response_body")[0]) == LIMITS.response_body
    assert tx.log_fields()["length"] == 2000 * 16384


def test_closed() -> None:
    parser = Http2Parser()
    (tx,) = play(parser, [(C, START + Peer().headers(1, REQUEST))])
    parser.close(C)
    parser.close(S)
    assert tx.is_complete(C)
    assert tx.is_complete(S)


@pytest.mark.parametrize("hold", [False, True])
def test_mutations(hold: bool) -> None:
    """Parse or refuse, never raise."""
    survives(lambda: Http2Parser(hold_body=hold), exchange(), list(BUFFERS), rounds=400, seed=2)  # type: ignore[arg-type]
    client = Peer()
    script = [(C, START + client.split_headers(1, REQUEST, 3) + data(1, b"ab", "PADDED", "END_STREAM", pad=9))]
    survives(lambda: Http2Parser(hold_body=hold), script, list(BUFFERS), rounds=400, seed=3)


# --- DNS inside (RFC 8484) -------------------------------------------------------------------------------------------

DNS_TYPE = ("content-type", "application/dns-message")
QUERY = bytes(DNSRecord.question("Blocked.example", "A").pack())
ANSWER = bytes(DNSRecord.question("Blocked.example", "A").reply().pack())


def doh(*fields: tuple[str, str], body: bytes = b"", answer: bytes = ANSWER) -> list[tuple[object, bytes]]:
    client, server = Peer(), Peer()
    request = [(":method", "POST"), (":scheme", "https"), (":authority", "dns.example"), *fields]
    said = client.headers(1, request, *(() if body else ("END_STREAM",)))
    frames = [body[at : at + 16000] for at in range(0, len(body), 16000)]
    for number, piece in enumerate(frames, 1):
        said += data(1, piece, *(("END_STREAM",) if number == len(frames) else ()))
    return [
        (C, START + said),
        (S, SERVER_START + server.headers(1, [(":status", "200"), DNS_TYPE]) + data(1, answer, "END_STREAM")),
    ]


@pytest.mark.parametrize(
    "steps",
    [
        doh((":path", "/dns-query"), DNS_TYPE, body=QUERY),
        doh((":path", "/q?x=1&dns=" + urlsafe_b64encode(QUERY).decode().rstrip("=")), ("accept", DNS_TYPE[1])),
    ],
    ids=["post", "get"],
)
def test_dns_in_a_request_and_its_answer(steps: list[tuple[object, bytes]]) -> None:
    for parser, (tx,) in every_way(Http2Parser, steps):
        assert parser.name == "doh2"
        assert list(tx.buffer("dns.query", C)) == [b"Blocked.example"]
        assert list(tx.buffer("dns.query")) == [b"Blocked.example"] * 2
        assert list(tx.buffer("dns.rcode", S)) == [b"\0\0"]
        assert list(tx.buffer("http.host", C)) == [b"dns.example"]


@pytest.mark.parametrize(
    ("steps", "names", "events"),
    [
        (doh((":path", "/q?dns=" + urlsafe_b64encode(QUERY).decode()), answer=b""), [], []),  # asks for no DNS
        (doh((":path", "/q?dns=!!"), ("accept", DNS_TYPE[1]), answer=b""), [], []),
        (doh((":path", "/q"), DNS_TYPE, body=QUERY + bytes(70_000), answer=b""), [], ["dns_request_too_long"]),
        (doh((":path", "/q"), DNS_TYPE, body=QUERY[:20], answer=b""), [], []),
    ],
    ids=["not asked for", "no base64", "too long", "cut"],
)
def test_what_is_no_dns(steps: list[tuple[object, bytes]], names: list[bytes], events: list[str]) -> None:
    for _, (tx,) in every_way(Http2Parser, steps):
        assert list(tx.buffer("dns.query", C)) == names
        assert [event for event in tx.events if event.startswith("dns_")] == events


# --- what frames say -------------------------------------------------------------------------------------------------

FRAMES = replace(LIMITS, http2_frames=True)


def resized(client: Peer, *sizes: int) -> bytes:
    """A request whose header block begins with changes of the table's size."""
    for size in sizes:
        client.encoder.header_table_size = size
    return client.headers(1, REQUEST)


@pytest.mark.parametrize(
    ("wire", "name", "values"),
    [
        (SettingsFrame(0, settings={4: 65535}).serialize(), "http2.settings", [b"\0\1\0\1\0\0", b"\0\4\0\0\xff\xff"]),
        (SettingsFrame(0, flags=["ACK"]).serialize(), "http2.frametype", [b"\4"]),  # that of START
        (WindowUpdateFrame(0, window_increment=7).serialize(), "http2.window", [b"\0\0\0\7"]),
        (WindowUpdateFrame(9, window_increment=7).serialize(), "http2.window", [b"\0\0\0\7"]),  # no such stream
        (GoAwayFrame(0, error_code=11).serialize(), "http2.errorcode", [b"\0\0\0\x0b"]),
        (RstStreamFrame(1, error_code=8).serialize(), "http2.errorcode", [b"\0\0\0\x08"]),
        (PriorityFrame(3, stream_weight=200).serialize(), "http2.priority", [b"\xc8"]),
        (PingFrame(0, b"12345678").serialize(), "http2.frametype", [b"\4", b"\6"]),
        (Peer().headers(1, REQUEST, "PRIORITY", depends_on=0, stream_weight=255), "http2.priority", [b"\xff"]),
        (
            Peer().headers(1, REQUEST, "PADDED", "PRIORITY", pad_length=3, depends_on=0, stream_weight=16),
            "http2.priority",
            [b"\x10"],
        ),
        (Peer().headers(1, REQUEST) + data(1, b"a") + data(1, b"b"), "http2.frametype", [b"\4", b"\1", b"\0"]),
        (Peer().split_headers(1, REQUEST, 2), "http2.frametype", [b"\4", b"\1", b"\x09"]),
        (resized(Peer(), 100, 2000), "http2.size_update", [b"\0\0\0\x64", b"\0\0\x07\xd0"]),
        (Peer().headers(1, REQUEST), "http2.header_name", [name.encode() for name, _ in REQUEST[:-1]]),
        (b"\0\0\2\x08\0\0\0\0\0\1\2", "http2.window", []),  # too short
    ],
)
def test_what_frames_say(wire: bytes, name: str, values: list[bytes]) -> None:
    for parser, txs in every_way(lambda: Http2Parser(FRAMES), [(C, START + bytes(wire))]):
        assert not parser.gave_up
        assert [value for tx in txs for value in tx.buffer(name)] == values
        assert [value for tx in txs for value in tx.buffer(name, S)] == []
        assert all(tx.is_complete(side) for tx in txs if not tx.tells for side in (C, S))
    assert not any(tx.buffer("http2.frametype") for tx in play(Http2Parser(), [(C, START + bytes(wire))]))


def test_too_many_frames() -> None:
    updates = b"".join(bytes(WindowUpdateFrame(1, window_increment=n).serialize()) for n in range(1, 300))
    *_, tx = play(Http2Parser(FRAMES), [(C, START + Peer().headers(1, REQUEST) + updates)])
    assert len(tx.buffer("http2.window")) == 256
    assert tx.events == ["too_many_frames"]


def test_any_bytes_with_frames() -> None:
    names = [name for name in BUFFERS if name.startswith("http")] + sorted(http2_frames.NAMES)
    survives(lambda: Http2Parser(FRAMES), exchange(), names, 300, 7)

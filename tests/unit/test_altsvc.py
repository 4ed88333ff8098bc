"""Offers of QUIC are hidden, and nothing else of a response changes."""

from __future__ import annotations

import random
import re

import hpack
import pytest
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from engines.tls.altsvc import BLOCK_MOST, FRAMES_MOST, STREAMS_MOST, AltSvcMask
from engines.tls.hiding import masking
from engines.verdict import Direction
from tests.unit.test_quic_and_ech import KEYED, LARGE, LARGE_PLAIN, OTHER, PLAIN, framed, retyped

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
OFFER = b'h3=":443"; ma=86400, h3-29=":443"; ma=86400'


def cut(data: bytes, chance: random.Random | None) -> list[bytes]:
    if chance is None:
        return [data]
    pieces, at = [], 0
    while at < len(data):
        size = chance.randint(1, 40)
        pieces.append(data[at : at + size])
        at += size
    return pieces


def http1(requests: bytes, responses: bytes, chance: random.Random | None = None) -> bytes:
    mask = AltSvcMask("http/1.1")
    for piece in cut(requests, chance):
        assert mask.feed(TO_SERVER, piece) == piece
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(responses, chance))
    return got + mask.rest(TO_CLIENT)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n"
FAKE = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\n\r\n'  # as a body
ASK = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
HIDDEN = b"clear".ljust(len(OFFER))
FIRST, LAST = b"HTTP/1.1 200 OK\r\nalt-svc: %s\r\nContent-Length: %d\r\n\r\n", b"\r\nALT-SVC: %s\r\n"
CASES = {
    "length": (GET * 2, FIRST + FAKE + b"HTTP/1.1 204 No" + LAST + b"\r\n"),
    "chunked": (
        GET * 2,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nALT-SVC: %s\r\n\r\n%x;x=1\r\n"
        + FAKE
        + b"\r\n0\r\nX: h3=1\r\n\r\nHTTP/1.1 304 No"
        + LAST
        + b"Content-Length: 9\r\n\r\n",
    ),
    "head": (
        b"HEAD / HTTP/1.1\r\n\r\n" + GET,
        FIRST + b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK" + LAST + b"Content-Length: 0\r\n\r\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_heads_and_nothing_but_heads(case: str, seed: int | None) -> None:
    requests, text = CASES[case]
    responses = text % (OFFER, len(FAKE), OFFER)
    expected = text % (HIDDEN, len(FAKE), HIDDEN)
    assert http1(requests, responses, random.Random(seed) if seed else None) == expected


@pytest.mark.parametrize(
    "responses",
    [
        b'HTTP/1.1 200 OK\r\nAlt-Svc: h2="alt.test:443"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nAlt-Svc: clear\r\n\r\nuntil close " + FAKE,
        b'HTTP/1.1 200 OK\r\nX-Alt-Svc: h3=":443"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\nHTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200",
        b"",
    ],
)
def test_what_stays_as_it_is(responses: bytes) -> None:
    assert http1(GET * 2, responses) == responses
    assert http1(GET * 2, responses, random.Random(5)) == responses


@pytest.mark.parametrize(
    ("requests", "responses"),
    [
        (ASK, SWITCH),
        (GET + ASK, HEAD + CHUNKED + b"\r\n0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + SWITCH),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", HEAD + b"\r\n"),
        (b"EHLO a.test\r\n", b"220 mail.test ESMTP\r\n" * 4 + b"\r\n"),
        (b"\x16\x03\x01" + GET, HEAD + b"\r\n\x16\x03\x03\r\n"),
        (b"GET / SIP/2.0\r\n\r\n", HEAD + b"Content-Length: 0\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_what_is_no_http_to_the_client_stays(requests: bytes, responses: bytes, seed: int | None) -> None:
    said = responses + FAKE * 3
    assert http1(requests, said, random.Random(seed) if seed else None) == said


def test_what_is_not_http_is_not_held_up() -> None:
    for said in (b"\x7f", b"220 mail.test", b"HTTP/2"):
        mask = AltSvcMask("")
        assert b"".join(mask.feed(TO_CLIENT, said[at : at + 1]) for at in range(len(said))) == said


def test_a_response_is_not_held_up() -> None:
    mask = AltSvcMask("http/1.1")
    mask.feed(TO_SERVER, GET)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert mask.feed(TO_CLIENT, head) == head
    for piece in (b"5\r\n", b"he", b"llo\r\n", b"0\r\n\r\n", head):
        assert mask.feed(TO_CLIENT, piece) == piece


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.sampled_from(["http/1.1", "h2", "", "imap", "dot"]),
    st.sampled_from([b"", b"\0\x0c\0\0\1", b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\n"]),
)
def test_no_byte_is_lost_or_made_up(pieces: list[bytes], alpn: str, begin: bytes) -> None:
    mask = masking(alpn, 443, offers=True, keys=True)
    assert mask is not None
    pieces = [begin, *pieces]
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT)
    assert len(got) == len(b"".join(pieces)) or mask.refused


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------


def h2(frames: list[Frame], chance: random.Random | None = None) -> bytes:
    mask = AltSvcMask("h2")
    data = b"".join(frame.serialize() for frame in frames)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(data, chance)) + mask.rest(TO_CLIENT)
    assert len(got) == len(data)
    return got


def frames_of(data: bytes) -> list[Frame]:
    found = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        found.append(frame)
        data = data[9 + length :]
    return found


def heads(data: bytes) -> list[list[tuple[str, str]]]:
    """As a client decodes them, with one table for all."""
    decoder, found, block = hpack.Decoder(1 << 20), [], b""
    for frame in frames_of(data):
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                found.append([(str(name), str(value)) for name, value in decoder.decode(block)])
                block = b""
    return found


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_header_blocks(huffman: bool, seed: int | None, padded: bool) -> None:
    encoder = hpack.Encoder()
    plain = [(":status", "200"), ("content-type", "text/html"), ("server", "x")]
    blocks = [
        encoder.encode([*plain, ("alt-svc", OFFER.decode())], huffman),
        encoder.encode([*plain, ("alt-svc", OFFER.decode())], huffman),  # all from the table now
        encoder.encode([*plain, ("alt-svc", 'h3=":8443"; ma=1')], huffman),  # the name from the table
        encoder.encode([*plain, ("alt-svc", 'h2="a.test:443"')], huffman),
        encoder.encode([*plain, ("x-note", 'h3 is "new"')], huffman),
    ]
    frames: list[Frame] = [SettingsFrame(0)]
    for number, block in enumerate(blocks):
        stream = 2 * number + 1
        if padded:
            headers = HeadersFrame(stream, block[:7], flags=["PADDED", "PRIORITY"], pad_length=9)
            more = ContinuationFrame(stream, block[7:], flags=["END_HEADERS"])
            frames += [headers, more]
        else:
            frames.append(HeadersFrame(stream, block, flags=["END_HEADERS"]))
        frames.append(DataFrame(stream, FAKE * 3, flags=["END_STREAM"]))
    got = h2(frames, random.Random(seed) if seed else None)
    values = [dict(head) for head in heads(got)]
    assert [value.get("alt-svc", "").rstrip() for value in values] == ["clear", "clear", "clear", 'h2="a.test:443"', ""]
    assert all([*head][:3] == plain for head in heads(got))
    assert values[4]["x-note"] == 'h3 is "new"'
    assert [frame.data for frame in frames_of(got) if isinstance(frame, DataFrame)] == [FAKE * 3] * 5


@pytest.mark.parametrize("length", range(1, 60))
def test_any_length_of_value(length: int) -> None:
    offer = 'h3=":1"' + "!" * length
    for huffman in (True, False):
        block = hpack.Encoder().encode([("alt-svc", offer)], huffman)
        ((head,),) = heads(h2([HeadersFrame(1, block, flags=["END_HEADERS"])]))
        assert head[0] == "alt-svc"
        assert re.fullmatch("(clear)? *", head[1])


def test_a_frame_of_its_own_is_ignored() -> None:
    frames = [SettingsFrame(0), AltSvcFrame(0, b"https://a.test", OFFER), DataFrame(1, b"data")]
    got = frames_of(h2(frames))
    assert [type(frame).__name__ for frame in got] == ["SettingsFrame", "ExtensionFrame", "DataFrame"]


PLAIN_HEAD = hpack.Encoder().encode([(":status", "200")])


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([HeadersFrame(3, b"\x80", flags=["END_HEADERS"])], "http2_header_block"),  # field 0
        ([HeadersFrame(3, b"\x40\x05ab", flags=["END_HEADERS"])], "http2_header_block"),  # cut off
        ([HeadersFrame(3, b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"])], "http2_header_block"),
        ([ContinuationFrame(3, b"", flags=["END_HEADERS"])], "http2_header_block"),
        ([HeadersFrame(3, b""), DataFrame(3, b"x")], "http2_header_block"),
        ([HeadersFrame(3, b""), ContinuationFrame(5, b"", flags=["END_HEADERS"])], "http2_header_block"),
        ([HeadersFrame(3, bytes(16000))] + [ContinuationFrame(3, bytes(16000))] * 20, "http2_header_block_length"),
    ],
)
def test_nothing_goes_on_behind_what_cannot_be_read(frames: list[Frame], reason: str, size: int) -> None:
    """Whatever is behind it, no client could know what it means."""
    before: list[Frame] = [SettingsFrame(0), HeadersFrame(1, PLAIN_HEAD, flags=["END_HEADERS"])]
    before.append(DataFrame(1, b"x" * 50))
    good = b"".join(frame.serialize() for frame in before)
    data = good + b"".join(frame.serialize() for frame in [*frames, AltSvcFrame(0, b"https://a.test", OFFER)])
    mask = AltSvcMask("h2", keys=True)
    got = b"".join(mask.feed(TO_CLIENT, data[at : at + size]) for at in range(0, len(data), size))
    assert got == good
    assert mask.refused == reason
    assert mask.feed(TO_CLIENT, good) + mask.rest(TO_CLIENT) == b""


def test_any_header_block_is_read_or_refused() -> None:
    chance = random.Random(9)
    for _ in range(500):
        mask = AltSvcMask("h2", keys=True)
        data = HeadersFrame(1, chance.randbytes(chance.randrange(60)), flags=["END_HEADERS"]).serialize()
        data += DataFrame(1, b"x").serialize()
        got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(data, chance)) + mask.rest(TO_CLIENT)
        assert len(got) == (0 if mask.refused else len(data))


def test_a_large_header_block_is_no_reason() -> None:
    encoder = hpack.Encoder()
    block = encoder.encode([("x-a", "y" * 200000), ("alt-svc", OFFER.decode())], huffman=False)
    assert len(block) < BLOCK_MOST
    frames: list[Frame] = [HeadersFrame(1, block[:16000])]
    frames += [ContinuationFrame(1, block[at : at + 16000]) for at in range(16000, len(block), 16000)]
    frames[-1].flags.add("END_HEADERS")
    (head,) = heads(h2(frames))
    assert head[1] == ("alt-svc", "clear".ljust(len(OFFER)))


# --- DNS answers ------------------------------------------------------------------------------------------------------


def hidden(alpn: str, said: bytes, chance: random.Random | None, port: int = 443, *, keys: bool = True) -> bytes:
    mask = masking(alpn, port, offers=False, keys=keys)
    if mask is None:
        return said
    asked = framed(KEYED) if port == 853 or alpn == "dot" else GET * 3
    assert mask.feed(TO_SERVER, asked) == asked
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(said, chance))
    return got + mask.rest(TO_CLIENT)


def over_http1(message: bytes, kind: bytes = b"application/dns-message") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(message)) + message


DNS_TYPE, TEXT = ("content-type", "application/dns-message"), ("content-type", "text/plain")


def over_http2(*messages: bytes, padded: bool = False) -> bytes:
    block = hpack.Encoder().encode([(":status", "200"), DNS_TYPE])
    flags, padding = (["END_STREAM", "PADDED"], 30) if padded else (["END_STREAM"], 0)
    frames: list[Frame] = [SettingsFrame(0)]
    for number, message in enumerate(messages):
        frames.append(HeadersFrame(2 * number + 1, block, flags=["END_HEADERS"]))
        frames.append(DataFrame(2 * number + 1, message, flags=flags, pad_length=padding))
    return b"".join(frame.serialize() for frame in frames)


UNTYPED, UNTYPED_PLAIN = b"\0\0" + KEYED[2:], b"\0\0" + PLAIN[2:]  # as browsers ask over HTTP
SHORT = b"\0\0\x80\0\0\1\0\1"  # begins as an answer does


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("alpn", "port", "said", "expected"),
    [
        ("dot", 443, framed(KEYED, OTHER, KEYED), framed(PLAIN, OTHER, PLAIN)),
        ("", 853, framed(KEYED, OTHER), framed(PLAIN, OTHER)),
        ("", 443, framed(KEYED), framed(KEYED)),
        ("http/1.1", 443, over_http1(OTHER) + over_http1(KEYED) * 2, over_http1(OTHER) + over_http1(PLAIN) * 2),
        ("http/1.1", 853, over_http1(KEYED, b"image/png"), over_http1(KEYED, b"image/png")),
        ("h2", 443, over_http2(OTHER, KEYED, b"x" * 100, KEYED), over_http2(OTHER, PLAIN, b"x" * 100, PLAIN)),
        ("h2", 443, over_http2(KEYED, SHORT, padded=True), over_http2(PLAIN, SHORT, padded=True)),
        ("h2", 443, over_http2(SHORT * 3, SHORT, KEYED[:40]), over_http2(SHORT * 3, SHORT, retyped(KEYED)[:40])),
    ],
)
def test_answers_lose_their_keys(alpn: str, port: int, said: bytes, expected: bytes, seed: int | None) -> None:
    assert hidden(alpn, said, random.Random(seed) if seed else None, port) == expected
    assert hidden(alpn, said, None, port, keys=False) == said


def test_both_are_hidden_together() -> None:
    requests, responses = CASES["length"]
    said = responses % (OFFER, len(FAKE), OFFER) + over_http1(KEYED)
    mask = masking("http/1.1", 443, offers=True, keys=True)
    assert mask is not None
    mask.feed(TO_SERVER, requests + GET)
    assert mask.feed(TO_CLIENT, said) == responses % (HIDDEN, len(FAKE), HIDDEN) + over_http1(PLAIN)


DNS = b"Content-Type: application/dns-message\r\n"


def chunks(message: bytes, size: int, end: bytes = b"0\r\n\r\n", line: bytes = b"\r\n") -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"%x;x=y%s%s%s" % (len(piece), line, piece, line) for piece in pieces) + end


def sized(message: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(message) + message


GZIP = b"\x1f\x8b" + KEYED  # as far as anybody here knows
HTTP1_ANSWERS = {
    **{
        f"chunks of {size}": (HEAD + DNS + CHUNKED + b"\r\n" + chunks(KEYED, size), chunks(PLAIN, size))
        for size in (1, 7, 40, 1000)
    },
    "large": (HEAD + DNS + CHUNKED + b"\r\n" + chunks(LARGE, 1000), chunks(LARGE_PLAIN, 1000)),
    "bare line feeds": (
        HEAD + DNS.replace(b"\r", b"") + CHUNKED.replace(b"\r", b"") + b"\n" + chunks(KEYED, 30, b"0\n\n", b"\n"),
        chunks(PLAIN, 30, b"0\n\n", b"\n"),
    ),
    "until the end": (HEAD + DNS + b"\r\n" + KEYED, PLAIN),
    "a type in other letters": (HEAD + DNS.upper().replace(b"\r", b"; a=b\r") + sized(KEYED), PLAIN),
    "a type on two lines": (HEAD + DNS.replace(b": ", b":\r\n\t") + sized(KEYED), PLAIN),
    "a size on two lines": (HEAD + DNS + sized(KEYED).replace(b": ", b":\r\n ", 1), PLAIN),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + DNS + sized(KEYED), PLAIN),
    "coded": (HEAD + DNS + b"Content-Encoding: gzip\r\n" + sized(GZIP), bytes(len(GZIP))),
    "coded in chunks": (
        HEAD + DNS + b"Content-Encoding: br\r\n" + CHUNKED + b"\r\n" + chunks(GZIP, 9),
        chunks(bytes(len(GZIP)), 9),
    ),
    "coded for the transfer": (
        HEAD + DNS + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks(GZIP, 9),
        chunks(bytes(len(GZIP)), 9),
    ),
    "not coded": (HEAD + DNS + b"Content-Encoding: Identity\r\n" + sized(KEYED), PLAIN),
    "cut off": (HEAD + DNS + CHUNKED + b"\r\n" + chunks(KEYED, 30)[:-12], chunks(retyped(KEYED), 30)[:-12]),
}


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("case", HTTP1_ANSWERS)
def test_answers_over_http1(case: str, seed: int | None) -> None:
    said, body = HTTP1_ANSWERS[case]
    expected = said[: -len(body)] + body
    before = b"" if case == "interim" else over_http1(OTHER)
    mask = masking("http/1.1", 443, offers=True, keys=True)
    assert mask is not None
    mask.feed(TO_SERVER, b"\r\n" + GET + b"post /dns-query a HTTP/1.1\r\n" + sized(KEYED) + GET)
    data = before + said
    pieces = bytewise(data) if seed == 0 else cut(data, random.Random(seed) if seed else None)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT)
    assert got == before + expected


def test_what_is_no_answer_stays() -> None:
    for kind in (b"application/dns-message2", b"application/dns-json", b"x/y; z=application/dns-message"):
        said = over_http1(KEYED, kind)
        assert hidden("http/1.1", said, None) == said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'Alt-Svc:\r\n\th3=":443"\r\n', b"Alt-Svc: clear".ljust(20) + b"\r\n"),
        (b'alt-svc : %68%33=":443"\r\n', b"alt-svc : clear".ljust(23) + b"\r\n"),
        (b'Alt-Svc: h3=":443"\n', b"Alt-Svc: clear    \n"),
    ],
)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_offers_however_they_are_written(said: bytes, expected: bytes, seed: int | None) -> None:
    assert len(said) == len(expected)
    chance = random.Random(seed) if seed else None
    for before, after in ((HEAD, sized(b"x")), (HEAD + CHUNKED + b"\r\n1\r\nx\r\n0\r\n", b"\r\n")):
        assert http1(GET * 2, (before + said + after) * 2, chance) == (before + expected + after) * 2
    interim = b"HTTP/1.1 103 Early Hints\r\n"
    assert http1(GET, interim + said + b"\r\n", chance) == interim + expected + b"\r\n"


def test_more_requests_wait_than_answers_come() -> None:
    assert http1(GET * 1000, (FIRST % (OFFER, 0)) * 1000) == (FIRST % (HIDDEN, 0)) * 1000


# DNS over HTTP/2


def streams(message: bytes, size: int, *, padded: bool = False, coded: str = "") -> list[Frame]:
    """Two answers at once, a frame of one after a frame of the other, between frames of a third stream; the second
    one's type comes from the header table."""
    encoder = hpack.Encoder()
    coding = [("content-encoding", coded)] if coded else []
    frames: list[Frame] = [SettingsFrame(0), HeadersFrame(5, encoder.encode([TEXT]), flags=["END_HEADERS"])]
    for stream in (1, 3):
        block = encoder.encode([(":status", "200"), DNS_TYPE, ("x-number", str(stream)), *coding])
        frames += [HeadersFrame(stream, block[:5]), ContinuationFrame(stream, block[5:], flags=["END_HEADERS"])]
    flags, padding = (["PADDED"], 30) if padded else ([], 0)
    for at in range(0, len(message), size):
        for stream in (1, 3):
            frames.append(DataFrame(stream, message[at : at + size], flags=flags, pad_length=padding))
        frames.append(DataFrame(5, KEYED))
    frames += [DataFrame(1, b"", flags=["END_STREAM"])]
    frames += [HeadersFrame(3, encoder.encode([("grpc-status", "0")]), flags=["END_HEADERS", "END_STREAM"])]
    return frames


def by_stream(data: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for frame in frames_of(data):
        found.setdefault(frame.stream_id, []).append(frame.serialize())
    return found


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("size", [1, 13, 40, 1000])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("coded", ["", "gzip"])
def test_answers_over_http2(size: int, padded: bool, coded: str, seed: int | None) -> None:
    """Each stream's frames are those that came, in order, with another content."""
    mask = masking("h2", 443, offers=True, keys=True)
    assert mask is not None
    data = b"".join(frame.serialize() for frame in streams(KEYED, size, padded=padded, coded=coded))
    pieces = bytewise(data) if seed == 0 else cut(data, random.Random(seed) if seed else None)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces)
    assert len(got) == len(data), "nothing waits at the end"
    other = bytes(len(KEYED)) if coded else PLAIN
    expected = b"".join(frame.serialize() for frame in streams(other, size, padded=padded, coded=coded))
    wanted = by_stream(expected)
    wanted[5] = by_stream(data)[5]
    assert by_stream(got) == wanted
    assert mask.rest(TO_CLIENT) == b""
    assert len(heads(got)) == 4


def test_an_answer_that_is_pushed() -> None:
    encoder = hpack.Encoder()
    promise = PushPromiseFrame(1, 2, data=encoder.encode([(":path", "/dns-query"), DNS_TYPE]), flags=["END_HEADERS"])
    head = HeadersFrame(2, encoder.encode([(":status", "200"), DNS_TYPE]), flags=["END_HEADERS"])
    said, expected = (
        b"".join(frame.serialize() for frame in (promise, head, DataFrame(2, whole[:50]), DataFrame(2, whole[50:])))
        for whole in (LARGE, LARGE_PLAIN)
    )
    assert hidden("h2", said, None) == expected


def test_a_stream_that_is_reset_gives_back_what_waits() -> None:
    head = HeadersFrame(1, hpack.Encoder().encode([DNS_TYPE]), flags=["END_HEADERS"]).serialize()
    part, reset = len(KEYED) - 10, RstStreamFrame(1, 2).serialize()
    mask = AltSvcMask("h2", keys=True)
    assert mask.feed(TO_CLIENT, head + DataFrame(1, KEYED[:part]).serialize()) == head
    assert mask.feed(TO_CLIENT, reset) == DataFrame(1, retyped(KEYED)[:part]).serialize() + reset


def test_what_waits_is_bounded() -> None:
    """A record is not waited for beyond half a window; and all streams together have a bound, too."""
    head = HeadersFrame(1, hpack.Encoder().encode([DNS_TYPE]), flags=["END_HEADERS"]).serialize()
    mask = AltSvcMask("h2", keys=True)
    sent = head + DataFrame(1, KEYED[:-10]).serialize()
    got = mask.feed(TO_CLIENT, sent)
    assert got == head
    padding = DataFrame(1, b"", flags=["PADDED"], pad_length=255).serialize()
    count = 0
    while got == head and count < 200:
        count += 1
        sent += padding
        got += mask.feed(TO_CLIENT, padding)
    assert 32768 < len(sent) < 32768 + 600
    assert got == head + DataFrame(1, retyped(KEYED)[:-10]).serialize() + padding * count

    encoder = hpack.Encoder()
    encoder.encode([DNS_TYPE])
    mask = AltSvcMask("h2", keys=True)
    mask.feed(TO_CLIENT, head)
    for stream in range(3, 2 * STREAMS_MOST + 10, 2):
        mask.feed(TO_CLIENT, HeadersFrame(stream, encoder.encode([DNS_TYPE]), flags=["END_HEADERS"]).serialize())
    assert mask.refused == "http2_dns_streams"

    mask, held = AltSvcMask("h2", keys=True), 0
    encoder = hpack.Encoder()
    for stream in range(1, 2000, 2):
        mask.feed(TO_CLIENT, HeadersFrame(stream, encoder.encode([DNS_TYPE]), flags=["END_HEADERS"]).serialize())
        mask.feed(TO_CLIENT, DataFrame(stream, KEYED[:-10]).serialize())
        for _ in range(100):
            held += 0 if mask.refused else len(padding)
            mask.feed(TO_CLIENT, padding[:5] + stream.to_bytes(4, "big") + padding[9:])
    assert mask.refused == "http2_dns_held"
    assert held < FRAMES_MOST + 1000

    mask = AltSvcMask("h2", keys=True)
    assert mask.feed(TO_CLIENT, head + DataFrame(1, bytes(70000)).serialize()) == head
    assert mask.refused == "http2_dns_frame"


def test_what_is_no_answer_is_not_held_up() -> None:
    """A stream of data goes on as it comes, but for the first bytes of a frame."""
    mask = masking("h2", 443, offers=True, keys=True)
    assert mask is not None
    data = DataFrame(1, bytes(range(256)) * 40).serialize()
    at = 0
    for size in (5, 12, 50, 500, 5000):
        got = mask.feed(TO_CLIENT, data[at : at + size])
        at += size
        assert len(got) == (0 if size == 5 else size if at > 17 else at)

"""Offers of QUIC are hidden, and nothing else of a response changes."""

from __future__ import annotations

import random
import re

import hpack
import pytest
from hyperframe.frame import AltSvcFrame, ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from engines.tls.altsvc import AltSvcMask
from engines.tls.hiding import masking
from engines.verdict import Direction
from tests.unit.test_quic_and_ech import KEYED, OTHER, PLAIN, framed

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


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FAKE = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\n\r\n'  # as a body
HIDDEN = b"clear".ljust(len(OFFER))
FIRST, LAST = b"HTTP/1.1 200 OK\r\nalt-svc: %s\r\nContent-Length: %d\r\n\r\n", b"\r\nALT-SVC: %s\r\n"
CASES = {
    "length": (GET * 2, FIRST + FAKE + b"HTTP/1.1 204 No" + LAST + b"\r\n"),
    "chunked": (
        GET * 2,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nALT-SVC: %s\r\n\r\n%x;x=1\r\n"
        + FAKE
        + b"\r\n0\r\nAlt-Svc: h3=1\r\n\r\nHTTP/1.1 304 No"
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
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n" + FAKE,
        b"220 mail.test ESMTP\r\n" * 4 + b"\r\n" + FAKE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n" + FAKE,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000 + b"\r\n" + FAKE,
        b"HTTP/1.1 200",
        b"",
    ],
)
def test_what_stays_as_it_is(responses: bytes) -> None:
    assert http1(GET, responses) == responses
    assert http1(GET, responses, random.Random(5)) == responses


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
    assert len(got) == len(b"".join(pieces))


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
    decoder, found, block = hpack.Decoder(), [], b""
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


def test_what_is_no_header_block_goes_on() -> None:
    chance = random.Random(9)
    for _ in range(500):
        block = chance.randbytes(chance.randrange(60))
        h2([HeadersFrame(1, block, flags=["END_HEADERS"]), DataFrame(1, b"x")], chance)
    h2([ContinuationFrame(1, b"x", flags=["END_HEADERS"]), DataFrame(1, b"x" * 100)])
    h2([HeadersFrame(1, b"\0" * 60000), ContinuationFrame(1, b"\0" * 60000), DataFrame(1, b"x" * 100)])


# --- DNS answers ------------------------------------------------------------------------------------------------------


def hidden(alpn: str, said: bytes, chance: random.Random | None, port: int = 443, *, keys: bool = True) -> bytes:
    mask = masking(alpn, port, offers=False, keys=keys)
    if mask is None:
        return said
    assert mask.feed(TO_SERVER, KEYED) == KEYED
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(said, chance))
    return got + mask.rest(TO_CLIENT)


def over_http1(message: bytes, kind: bytes = b"application/dns-message") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(message)) + message


def over_http2(*messages: bytes, padded: bool = False) -> bytes:
    block = hpack.Encoder().encode([(":status", "200"), ("alt-svc", OFFER.decode())])
    flags, padding = (["END_STREAM", "PADDED"], 30) if padded else (["END_STREAM"], 0)
    frames: list[Frame] = [SettingsFrame(0)]
    for number, message in enumerate(messages):
        frames.append(HeadersFrame(2 * number + 1, block, flags=["END_HEADERS"]))
        frames.append(DataFrame(2 * number + 1, message, flags=flags, pad_length=padding))
    return b"".join(frame.serialize() for frame in frames)


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
        ("h2", 443, over_http2(SHORT * 3, SHORT, KEYED[:40]), over_http2(SHORT * 3, SHORT, KEYED[:40])),
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


def test_what_is_no_answer_is_not_held_up() -> None:
    """A stream of data goes on as it comes, but for the first bytes of a frame."""
    mask = masking("h2", 443, offers=True, keys=True)
    assert mask is not None
    data = DataFrame(1, bytes(range(256)) * 40).serialize()
    at = 0
    for size in (10, 12, 50, 500, 5000):
        got = mask.feed(TO_CLIENT, data[at : at + size])
        at += size
        assert len(got) == (0 if size == 10 else size if at > 22 else at)

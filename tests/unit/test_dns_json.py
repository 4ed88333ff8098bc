"""DNS answers over HTTPS in JSON, answers and questions nobody names, and what only looks like them."""

from __future__ import annotations

import json
import random
import struct
import time

import hpack
import pytest
from dnslib import DNSRecord
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from engines.tls.altsvc import STREAMS_MOST, AltSvcMask
from engines.tls.dnsjson import json_without_ech
from engines.tls.dohbody import WAITING_MOST
from engines.tls.hiding import masking
from tests.unit.test_altsvc import (
    CHUNKED,
    DNS_TYPE,
    GET,
    HEAD,
    TEXT,
    TO_CLIENT,
    TO_SERVER,
    UNTYPED,
    UNTYPED_PLAIN,
    by_stream,
    bytewise,
    chunks,
    cut,
    frames_of,
    hidden,
    over_http1,
    sized,
)
from tests.unit.test_quic_and_ech import ALPN, ECH, HINT, KEYED, OTHER, PLAIN, framed, https, service

KEY = "AEX+DQBBpQAgACB/RU5hAC5mXe3uOZtNY58Bc8UU1cd4QBxQzqirMlWZeQAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="
GENERIC = service(ALPN, ECH, HINT)
FILLED = service(ALPN, HINT, (65280, bytes(len(ECH[1]))))


def answer(*data: str, kind: object = 65, **more: object) -> bytes:
    """As Google's resolver gives it, written compactly."""
    records = [{"name": "a.test.", "type": kind, "TTL": 300, "data": one} for one in data]
    whole = {"Status": 0, "TC": False, "RD": True, "RA": True, "AD": False, "CD": False}
    question = [{"name": "a.test.", "type": 65}]
    return json.dumps({**whole, "Question": question, "Answer": records, **more}, separators=(",", ":")).encode()


def data(body: bytes) -> list[str]:
    return [" ".join(record["data"].split()) for record in json.loads(body)["Answer"]]


def generic(raw: bytes, every: int = 1) -> str:
    digits = raw.hex()
    return f"\\# {len(raw)} " + " ".join(digits[at : at + 2 * every] for at in range(0, len(digits), 2 * every))


@pytest.mark.parametrize("kind", [65, 64, "65", "HTTPS", "svcb", "TYPE65", 65.0])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"1 . alpn=h2,h3 ech={KEY} ipv4hint=192.0.2.1", "1 . alpn=h2,h3 ipv4hint=192.0.2.1"),
        (f'1 a.test. ech="{KEY}" alpn="h2"', '1 a.test. alpn="h2"'),
        (f"1 . key5={KEY} port=443", "1 . port=443"),
        (f"1 . echconfig={KEY}", "1 ."),
        (f"1 . ECH={KEY}", "1 ."),
        (f'1 . "ech={KEY}" port=443', "1 . port=443"),
        (f"1 . \\101ch={KEY} port=443", "1 . port=443"),
        (f"1 . mandatory=alpn,ech alpn=h2 ech={KEY}", "1 . mandatory=alpn alpn=h2"),
        (f'1 . mandatory="ech,port" ech={KEY} port=1', "1 . mandatory=port port=1"),
        (f"1 . key0=key5 key5={KEY}", "1 ."),
        (f"( 1 . ; \t\n ech={KEY} )", "( 1 . ; )"),
        (generic(GENERIC), generic(FILLED)),
        (generic(GENERIC, 1000), generic(FILLED, 1000)),
        (generic(GENERIC, 3).upper(), generic(FILLED, 3)),
        (generic(GENERIC[:-1]), ""),
        (generic(GENERIC).replace("0", "g", 3), ""),
        (generic(GENERIC).replace("# ", "# 1"), ""),
        ("\\#", ""),
    ],
)
def test_keys_are_hidden(said: str, expected: str, kind: object) -> None:
    body = answer("0 b.test.", said, kind=kind)
    got = json_without_ech(body)
    assert len(got) == len(body)
    assert data(got) == ["0 b.test.", expected.lower() if said.startswith("\\#") else expected]
    assert json_without_ech(got) == got


@pytest.mark.parametrize(
    "said",
    [
        "1 . alpn=h2,h3 ipv4hint=192.0.2.1",
        '1 . alpn="h2 ech=x" port=1',
        "ech=1 ech=2",
        "1 . myech=x xkey5=y ech2",
        generic(FILLED),
        "1",
        "",
        "\\",
        '"',
    ],
)
def test_what_has_no_keys_stays(said: str) -> None:
    for body in (answer(said), answer(f"x . ech={KEY} {said}", generic(GENERIC), kind=16), answer(said, kind="A")):
        assert json_without_ech(body) == body


def test_however_it_is_written() -> None:
    """White space, order and escapes are the writer's."""
    record = f'{{ "data" : "1 . \\u0065c\\u0068=\\"{KEY}\\" p\\u006frt\\u003d1" ,\n"typ\\u0065":\t65 , "TTL": 1}}'
    for body in (
        record,
        f'{{"Answer":[{record}]}}',
        f'[{{"type":1,"more":[{record},{{}}]}}]',
        record[:-1],
        record[:-9],
    ):
        got = json_without_ech(body.encode()).decode()
        hides = '\\u0065":\t65' in body
        assert len(got) == len(body)
        assert ("c\\u0068" in got or KEY in got) is not hides
        assert "p\\u006frt\\u003d1" in got
    nested = f'{{"type":65,"x":{{"type":1,"data":"1 . ech=z"}},"data":"1 . ech={KEY}","type":65}}'
    assert json_without_ech(nested.encode()).decode() == nested.replace(f"ech={KEY}", " " * (4 + len(KEY)))


@given(st.text('{}[]:,"\\ #1.eth=typdau065\n', max_size=300))
def test_any_text_keeps_its_length(text: str) -> None:
    body = b'{"type":65,"data":"' + text.encode()
    assert len(json_without_ech(body)) == len(body)
    assert len(json_without_ech(text.encode())) == len(text)


@pytest.mark.parametrize(
    "piece", ["{", "[", '"', '\\"', '{"data":"', '{"type":65,"data":"1 . ech=x"},', ":", "1 ", "\\u00"]
)
def test_any_answer_takes_as_long(piece: str) -> None:
    body = (b'{"type":65,"data":"' + piece.encode() * WAITING_MOST)[:WAITING_MOST]
    begin = time.thread_time()
    json_without_ech(body)
    assert time.thread_time() - begin < 2


# --- over HTTP --------------------------------------------------------------------------------------------------------

JSON = answer(f"1 . ech={KEY} alpn=h2", generic(GENERIC))
JSON_PLAIN = json_without_ech(JSON)
assert JSON != JSON_PLAIN
# Of an API that has nothing to do with DNS.
API = [b"{}", b"", b'{"Status":"ok","TC":1}', b'{"Status":0,', b'[{"Status":0,"TC":false}]', b" " + JSON]


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("kind", [b"application/dns-json", b"application/json; charset=UTF-8", b"Application/JSON"])
def test_answers_over_http1(kind: bytes, seed: int | None) -> None:
    chunked = b"Content-Type: %s\r\n" % kind + CHUNKED + b"\r\n"
    said = over_http1(JSON, kind) + HEAD + chunked + chunks(JSON, 17) + over_http1(KEYED)
    expected = over_http1(JSON_PLAIN, kind) + HEAD + chunked + chunks(JSON_PLAIN, 17) + over_http1(PLAIN)
    mask = masking("http/1.1", 443, offers=True, keys=True)
    assert mask is not None
    mask.feed(TO_SERVER, GET * 3)
    pieces = bytewise(said) if seed == 0 else cut(said, random.Random(seed) if seed else None)
    assert b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) == expected


@pytest.mark.parametrize("body", API)
def test_other_json_stays(body: bytes) -> None:
    assert (
        hidden("http/1.1", over_http1(body, b"application/json") * 2, None) == over_http1(body, b"application/json") * 2
    )
    assert hidden("http/1.1", over_http1(JSON, b"text/plain"), None) == over_http1(JSON, b"text/plain")
    said = over_http2(("application/json", body), ("", body), ("text/plain", JSON))
    for seed in (None, 1, 2):
        assert hidden("h2", said, random.Random(seed) if seed else None) == said


def test_codings() -> None:
    coded = b"Content-Encoding: gzip\r\n"
    said = over_http1(JSON, b"application/dns-json").replace(b"Content-L", coded + b"Content-L")
    assert hidden("http/1.1", said, None) == said[: -len(JSON)] + bytes(len(JSON))
    said = over_http1(JSON, b"application/json").replace(b"Content-L", coded + b"Content-L")
    assert hidden("http/1.1", said, None) == said, "nobody can tell"


def test_an_answer_that_is_too_long_does_not_read() -> None:
    """What came is without keys, and ends in zeros."""
    long = answer(f"1 . ech={KEY} alpn=h2", *["1 . alpn=h2"] * 1000, generic(GENERIC))
    for seed in (None, 5):
        said = over_http1(long, b"application/dns-json")
        got = hidden("http/1.1", said, random.Random(seed) if seed else None)
        assert len(got) == len(said)
        assert got.startswith(said[: -len(long)])
        body = got[-len(long) :]
        assert b"ech=" not in body
        if seed is not None:
            assert not body[WAITING_MOST + 1000 :].strip(b"\0")
            with pytest.raises(ValueError, match=r"control|delimiter|Extra|char"):
                json.loads(body)


# --- over HTTP/2 ------------------------------------------------------------------------------------------------------


def over_http2(*answers: tuple[str, bytes], size: int = 16000, padded: bool = False) -> bytes:
    """(type, body) each; their frames one after the other of each in turn."""
    encoder = hpack.Encoder()
    frames: list[Frame] = [SettingsFrame(0)]
    for number, (kind, _) in enumerate(answers):
        block = encoder.encode([(":status", "200"), *([("content-type", kind)] if kind else [])])
        frames.append(HeadersFrame(2 * number + 1, block, flags=["END_HEADERS"]))
    for at in range(0, max(len(body) for _, body in answers) + 1, size):
        for number, (_, body) in enumerate(answers):
            if at <= len(body):
                flags = ["END_STREAM"] if at + size > len(body) else []
                padding = ["PADDED"] if padded else []
                pad = 30 if padded else 0
                data = DataFrame(2 * number + 1, body[at : at + size], flags=[*flags, *padding], pad_length=pad)
                frames.append(data)
    return b"".join(frame.serialize() for frame in frames)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("size", [1, 7, 100, 16000])
@pytest.mark.parametrize("padded", [False, True])
def test_answers_over_http2(size: int, padded: bool, seed: int | None) -> None:
    kinds = ("application/dns-json", "application/json", "", "text/html", "application/dns-message")
    bodies = (JSON, JSON, UNTYPED, UNTYPED, KEYED)
    plain = (JSON_PLAIN, JSON_PLAIN, UNTYPED_PLAIN, UNTYPED, PLAIN)
    said, expected = (over_http2(*zip(kinds, one, strict=True), size=size, padded=padded) for one in (bodies, plain))
    mask = masking("h2", 443, offers=True, keys=True)
    assert mask is not None
    pieces = bytewise(said) if seed == 0 else cut(said, random.Random(seed) if seed else None)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces)
    assert len(got) == len(said), "nothing waits at the end"
    assert by_stream(got) == by_stream(expected)


def test_the_reserved_bit_says_nothing() -> None:
    """RFC 9113 section 4.1: clients ignore it."""
    said = over_http2(("application/dns-message", UNTYPED), ("", UNTYPED))
    at = said.index(struct.pack("!BBI", 0, 1, 1))
    marked = said[: at + 2] + b"\x80" + said[at + 3 :]
    got = hidden("h2", marked, None)
    assert got.count(UNTYPED_PLAIN) == 2
    assert UNTYPED not in got


def head(encoder: hpack.Encoder, stream: int, *fields: tuple[str, str], end: bool = False) -> bytes:
    flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
    return HeadersFrame(stream, encoder.encode([(":status", "200"), *fields]), flags=flags).serialize()


def test_an_interim_response_says_nothing_of_the_body() -> None:
    for fields, expected in (((TEXT,), UNTYPED), ((DNS_TYPE,), UNTYPED_PLAIN), ((), UNTYPED_PLAIN)):
        encoder = hpack.Encoder()
        interim = encoder.encode([(":status", "103"), ("link", "x")])
        start = HeadersFrame(1, interim, flags=["END_HEADERS"]).serialize() + head(encoder, 1, *fields)
        assert (
            hidden("h2", start + DataFrame(1, UNTYPED).serialize(), None) == start + DataFrame(1, expected).serialize()
        )


def test_what_may_be_an_answer_is_not_a_reason_to_end() -> None:
    """Heads without a body to come, as many as a server likes, of which the client gives up all."""
    mask = AltSvcMask("h2", keys=True)
    encoder = hpack.Encoder()
    for stream in range(1, 6 * STREAMS_MOST, 2):
        begin = head(encoder, stream, ("content-type", "application/json"))
        assert mask.feed(TO_CLIENT, begin) == begin
    assert not mask.refused
    assert mask._http2 is not None
    assert len(mask._http2._guesses) == STREAMS_MOST
    for stream in range(1, 6 * STREAMS_MOST, 2):
        reset = RstStreamFrame(stream, 8).serialize()
        assert mask.feed(TO_CLIENT, reset) == reset
    assert not mask._http2._guesses
    large = DataFrame(7, bytes(200000)).serialize()
    begin = head(encoder, 7)
    assert mask.feed(TO_CLIENT, begin + large) == begin + large
    assert not mask.refused


@pytest.mark.parametrize("kind", [DNS_TYPE, ("content-type", "application/json"), ("x-a", "b")])
def test_framing_does_not_make_an_answer_unread(kind: tuple[str, str]) -> None:
    """A resolver sends a byte a frame, and padding until nobody can wait for the end of a name."""
    name = b"\x3f" + b"a" * 63
    body = UNTYPED[:12] + name * 3 + UNTYPED[12:] if kind[1] != "application/json" else JSON
    said = head(hpack.Encoder(), 1, kind)
    for at in range(len(body)):
        said += DataFrame(1, body[at : at + 1], flags=["PADDED"], pad_length=255).serialize()
    got = hidden("h2", said, None)
    assert len(got) == len(said)
    content = b"".join(frame.data for frame in frames_of(got) if isinstance(frame, DataFrame))
    assert ECH[1] not in content
    assert KEY.encode() not in content


@pytest.mark.parametrize("beat", [b" ", b"\n", b"1\n", b'{"'])
def test_a_heartbeat_is_not_held_up(beat: bytes) -> None:
    """Some servers send a blank now and then until they have something to say."""
    mask = masking("http/1.1", 443, offers=True, keys=True)
    assert mask is not None
    mask.feed(TO_SERVER, GET * 2)
    for kind in (b"Content-Type: application/json\r\n", b""):
        begin = HEAD + kind + CHUNKED + b"\r\n"
        assert mask.feed(TO_CLIENT, begin) == begin
        if beat != b'{"':
            assert mask.feed(TO_CLIENT, chunks(beat, 9, b"")) == chunks(beat, 9, b"")
        else:
            mask.feed(TO_CLIENT, chunks(beat, 9, b""))
        assert mask.feed(TO_CLIENT, chunks(beat, 9, b"")).endswith(chunks(beat, 9, b""))
        mask.feed(TO_CLIENT, b"0\r\n\r\n")


def test_a_body_that_is_no_answer_is_not_held_up() -> None:
    encoder = hpack.Encoder()
    mask = AltSvcMask("h2", keys=True)
    mask.feed(TO_CLIENT, head(encoder, 1))
    frame = DataFrame(1, b"plain text" * 100).serialize()
    assert mask.feed(TO_CLIENT, frame[:40]) == frame[:40]
    assert mask.feed(TO_CLIENT, frame[40:]) == frame[40:]
    end = head(encoder, 3, end=True) + head(encoder, 5) + DataFrame(5, b"", flags=["END_STREAM"]).serialize()
    assert mask.feed(TO_CLIENT, end) == end
    assert len(frames_of(end)) == 3


# --- over TLS ---------------------------------------------------------------------------------------------------------


def question(kind: str = "A", name: str = "a.test") -> bytes:
    return bytes(DNSRecord.question(name, kind).pack())


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize(
    ("asked", "keyed"),
    [
        (framed(question()), True),
        (framed(question("HTTPS", "x" * 60 + ".test"), question()), True),
        (framed(question("NS", ".")), True),
        (framed(OTHER), False),  # an answer
        (framed(question())[1:], False),
        (struct.pack("!H", 5) + question(), False),
        (framed(question()[:-1] + b"\3"), False),  # CHAOS
        (framed(question()[:6] + b"\0\1" + question()[8:]), False),
        (framed(question()[:4] + b"\0\2" + question()[6:]), False),
        (framed(question()[:12] + b"\xc0\x0c\0\1\0\1"), False),
        (GET, False),
        (b"\0" * 100, False),
        (b"a1 LOGIN x\r\n", False),
        (b"", False),
    ],
)
def test_a_question_makes_it_dns(asked: bytes, keyed: bool, seed: int | None) -> None:
    """On any port, where neither side said what they speak."""
    mask = masking("", 8853, offers=True, keys=True)
    assert mask is not None
    for piece in bytewise(asked) if seed == 0 else cut(asked, random.Random(seed) if seed else None):
        assert mask.feed(TO_SERVER, piece) == piece
    said = framed(KEYED, OTHER)
    pieces = bytewise(said) if seed == 0 else cut(said, random.Random(seed) if seed else None)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT)
    assert got == (framed(PLAIN, OTHER) if keyed else said)
    assert mask.rest(TO_SERVER) == b""
    assert mask.refused == ""


def test_a_long_name_is_no_question() -> None:
    mask = masking("", 8853, offers=True, keys=True)
    assert mask is not None
    long = framed(question()[:12] + b"\x3fa" * 5000)
    assert mask.feed(TO_SERVER, long) == long
    assert mask.feed(TO_CLIENT, framed(KEYED)) == framed(KEYED)


def test_the_server_speaks_first() -> None:
    mask = masking("", 8853, offers=True, keys=True)
    assert mask is not None
    assert mask.rest(TO_CLIENT) == b""
    assert mask.feed(TO_CLIENT, b"220 x\r\n") == b"220 x\r\n"
    mask.feed(TO_SERVER, framed(question()))
    assert mask.feed(TO_CLIENT, framed(KEYED)) == framed(KEYED)


def test_an_answer_to_another_question_is_none() -> None:
    """Without a type, only one to a question for such records is looked into."""
    for kind, hides in (("HTTPS", True), ("SVCB", True), ("ANY", True), ("A", False)):
        reply = DNSRecord.question("a.test", kind if kind != "SVCB" else "HTTPS").reply()
        reply.add_answer(https(ALPN, ECH))
        body = b"\0\0" + bytes(reply.pack())[2:]
        if kind == "SVCB":
            body = body.replace(b"\0\x41\0\1", b"\0\x40\0\1", 1)
        said = HEAD + sized(body)
        got = hidden("http/1.1", said, None)
        assert (got != said) is hides

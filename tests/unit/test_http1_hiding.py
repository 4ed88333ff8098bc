"""A server that wants its offer, or a resolver its keys, to arrive: what nfw does not read as a browser does."""

from __future__ import annotations

import random
import time

import pytest

from engines.tls.altsvc import AltSvcMask
from engines.tls.hiding import Mask, masking
from engines.tls.http1mask import HELD_MOST
from engines.tls.unread import UnreadMask
from tests.unit.test_altsvc import (
    CHUNKED,
    DNS,
    FAKE,
    GET,
    HEAD,
    TO_CLIENT,
    TO_SERVER,
    UNTYPED,
    UNTYPED_PLAIN,
    bytewise,
    chunks,
    cut,
    http1,
    over_http1,
    sized,
)
from tests.unit.test_quic_and_ech import KEYED, PLAIN

ASK_HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
NONE = b"Content-Length: 0\r\n"
LONG = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 90) for number in range(HELD_MOST // 90))
BODY = b"Content-Length: %d\r\n\r\n" % len(FAKE)
# What comes in front of a response with an offer, which a browser reads as one; and the requests when not two GETs.
FRONTS: dict[str, bytes | tuple[bytes, bytes]] = {
    # a browser's first bytes may be junk: Chromium forgives 4, Firefox 11, behind an answer without a body any
    "junk": b"junk",
    "more junk": b"GARBAGE\r\n",
    "0.9": b"<html>\r\n",
    "junk behind no body": (ASK_HEAD + GET, HEAD + BODY + b"a body that should not be" + b" " * 1000),
    # status lines
    "small letters": b"http/1.1 204 No\r\n\r\n",
    "another version": b"HTTP/2.0 204 No\r\n\r\n",
    "no version": b"HTTP 204 No\r\n\r\n",
    "two blanks": b"HTTP/1.1  204 No\r\n\r\n",
    "a long code": b"HTTP/1.1 0204 No\r\n\r\n",
    "code and text": b"HTTP/1.1 204No\r\n\r\n",
    "no code": b"HTTP/1.1\r\n" + NONE + b"\r\n",
    # which responses there are
    "an upgrade nobody asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
    "two upgrades": b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 101 Switching\r\n\r\n",
    "an answer more": (GET, HEAD + NONE + b"\r\n"),
    "interim": b"HTTP/1.1 100 Continue\r\nContent-Length: 99999\r\n\r\n" * 3,
    "reset content": b"HTTP/1.1 205 Reset\r\n" + BODY,
    "reset content until the end": b"HTTP/1.1 205 Reset\r\n\r\n",
    # line ends: to Chromium CR alone is one, and NUL bytes are none
    "a length behind CR": HEAD + b"X: y\r" + NONE + b"\r\n",
    "a length behind CR and a status": b"HTTP/1.1 200 OK\r" + NONE + b"\r\n",
    "a length with NUL": HEAD + b"Content\0-Length: 0\r\n\r\n",
    "leading lines": b"\r\n\n\r\n\n" + HEAD + NONE.replace(b"\r", b"") + b"\n",
    # lengths
    "many zeros": HEAD + b"Content-Length: " + b"0" * 22 + b"\r\n\r\n",
    "text behind": HEAD + b"Content-Length: 0 bytes\r\n\r\n",
    "a sign": HEAD + b"Content-Length: -0\r\n\r\n",
    "a list": HEAD + b"Content-Length: 0, 0\r\n\r\n",
    "two lengths": HEAD + NONE + BODY,
    "two other lengths": HEAD + b"Content-Length: 999\r\n" + NONE + b"\r\n",
    "a blank behind the name": HEAD + b"Content-Length : 0\r\n\r\n",
    "two lines": HEAD + b"Content-Length: 0\r\n\t9\r\n\r\n",
    # codings
    "chunks in 1.0": b"HTTP/1.0 200 OK\r\n" + NONE + CHUNKED + b"\r\n",
    "chunked first": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + CHUNKED * 2 + b"\r\n0\r\n\r\n",
    "nearly chunked": HEAD + NONE + b"Transfer-Encoding: x-chunked\r\n\r\n",
    "not chunked": HEAD + NONE + b"Transfer-Encoding: chunked;q=1\r\n\r\n",
    # chunks
    "a prefix": HEAD + CHUNKED + b"\r\n0x0\r\n\r\n",
    "text behind a size": HEAD + CHUNKED + b"\r\n0 bytes\r\n\r\n",
    "a long extension": HEAD + CHUNKED + b"\r\n0;" + b"x" * 10000 + b"\r\n\r\n",
    "zeros": HEAD + CHUNKED + b"\r\n" + b"0" * 5000 + b"\r\n\r\n",
    "nonsense": HEAD + CHUNKED + b"\r\nnonsense\r\n",
    "no line end": HEAD + CHUNKED + b"\r\n1\r\nxx",
    "a long trailer": HEAD + CHUNKED + b"\r\n0\r\n" + LONG + b"\r\n",
    # what nfw does not keep
    "a long head": HEAD + NONE + LONG + b"\r\n",
    "a long path": (GET.replace(b"/ ", b"/%s " % (b"a" * 200000)) + ASK_HEAD + GET, (HEAD + NONE + b"\r\n") * 2),
    "a long method": (GET.replace(b"GET", b"G" * 40) + ASK_HEAD + GET, HEAD + NONE + b"\r\n" + HEAD + BODY),
    "a longer method": (GET.replace(b"GET", b"G" * 70000) + ASK_HEAD + GET, HEAD + NONE + b"\r\n" + HEAD + BODY),
    "a long field": (
        b"POST / HTTP/1.1\r\n" + LONG + b"X: " + b"y" * 200000 + b"\r\n" + sized(b"x" * 50) + ASK_HEAD + GET,
        HEAD + NONE + b"\r\n" + HEAD + BODY,
    ),
    "an upgrade that is none": (
        GET.replace(b"\r\n\r\n", b"\r\nUpgrade-Insecure-Requests: 1\r\n\r\n") + GET,
        b"HTTP/1.1 101 x\r\n\r\n",
    ),
}


@pytest.mark.parametrize("size", ["whole", "pieces", "bytes"])
@pytest.mark.parametrize("case", FRONTS)
def test_an_offer_does_not_arrive(case: str, size: str) -> None:
    front = FRONTS[case]
    requests, before = front if isinstance(front, tuple) else (GET * 2, front)
    said = before + FAKE
    mask = AltSvcMask("http/1.1")
    for piece in cut(requests, random.Random(3) if size == "pieces" and len(requests) < 10000 else None):
        assert mask.feed(TO_SERVER, piece) == piece
    pieces = bytewise(said) if size == "bytes" else cut(said, random.Random(2) if size == "pieces" else None)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT)
    assert len(got) == len(said)
    assert b"h3=" not in got
    assert got[: len(before)] == before


OFFERS = (
    b"X: y\rAlt-Svc: h3=1\r\n",
    b"Alt\0-Svc: h3=1\r\n",
    b"\0Alt-Svc\0: h\x003=1\r\n",
    b"Alt-Svc: a\r\r\n h3=1\r\n",
    b"Alt-Svc: a\r\th3=1\r\n",
    b"Alt-Svc: a\rX: b\r\n h3=1\r\n",
    b"Alt-Svc: a\n\r\r\n h3=1\r\n",
    b"Alt-Svc: h2=1,\r\n\r h3=1\r\n",
    b'ALT-SVC\t :\t\tH3 = ":443"\r\n',
)


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(
    "status", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early\r\n", b"HTTP/1.1 101 S\r\n", b"http\r\n"]
)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_offer_in_another_form_does_not_arrive(offer: bytes, status: bytes, seed: int | None) -> None:
    chance = random.Random(seed) if seed else None
    requests = GET.replace(b"Host", b"Upgrade: x\r\nHost")
    said = status + offer + b"X: z\r\n\r\nbody"
    mask = AltSvcMask("http/1.1")
    mask.feed(TO_SERVER, requests)
    pieces = bytewise(said) if seed == 0 else cut(said, chance)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT)
    assert len(got) == len(said)
    assert b"3=1" not in got
    assert b"443" not in got
    assert got.endswith(b"\r\nX: z\r\n\r\nbody"), "what is behind an offer stays"


def test_an_answer_before_its_request() -> None:
    """The server guesses that HEAD comes, and nfw sees its answer first."""
    mask = AltSvcMask("http/1.1")
    mask.feed(TO_SERVER, GET)
    assert mask.feed(TO_CLIENT, HEAD + NONE + b"\r\n" + HEAD + BODY) == HEAD + NONE + b"\r\n" + HEAD + BODY
    mask.feed(TO_SERVER, ASK_HEAD + GET)
    assert b"h3" not in mask.feed(TO_CLIENT, FAKE)


def test_a_server_that_speaks_first() -> None:
    """Its greeting goes on at once; what follows is watched only if the client speaks HTTP."""
    for said, hidden in ((b"EHLO a\r\n", False), (GET, True)):
        mask = AltSvcMask("")
        assert mask.feed(TO_CLIENT, b"220 a") == b"220 a"
        mask.feed(TO_SERVER, said)
        assert (b"h3" not in mask.feed(TO_CLIENT, b"\r\n" + FAKE)) is hidden


def test_nothing_overtakes_what_was_held() -> None:
    """The client turns out not to speak HTTP while a head is waited for."""
    mask = AltSvcMask("")
    assert mask.feed(TO_CLIENT, b"HTTP/1.1 20") == b""
    mask.feed(TO_SERVER, b"\x00\x01")
    assert mask.feed(TO_CLIENT, b"0 OK") == b"HTTP/1.1 200 OK"


def test_chunks_that_end_with_a_piece() -> None:
    mask = AltSvcMask("http/1.1")
    mask.feed(TO_SERVER, GET * 2)
    pieces = [HEAD + CHUNKED + b"\r\n5\r\n", b"hello", b"\r\n0\r\n\r\n", FAKE]
    got = [mask.feed(TO_CLIENT, piece) for piece in pieces]
    assert got[:3] == pieces[:3]
    assert got[3] == FAKE.replace(b'h3=":443"', b"clear    ")


def test_more_requests_than_are_counted() -> None:
    mask = AltSvcMask("http/1.1")
    mask.feed(TO_SERVER, GET * 5000)
    said = (HEAD + NONE + b"\r\n") * 4500 + FAKE
    got = mask.feed(TO_CLIENT, said)
    assert len(got) == len(said)
    assert b"h3" not in got


def test_requests_are_not_kept() -> None:
    """Whatever a client sends, for as long as it likes."""
    for begin in (b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: ", b"", b"G"):
        for more in (b"a" * 10000, b"x: y\r\n" * 2000, b"Upgrade: x\r\n" * 1000, b"\r\n" * 5000, b" " * 9999):
            mask = AltSvcMask("http/1.1")
            mask.feed(TO_SERVER, begin)
            for _ in range(50):
                mask.feed(TO_SERVER, more)
            assert mask._http1 is not None
            assert len(mask._http1._requests._buffer) <= 2 * HELD_MOST


# --- keys -------------------------------------------------------------------------------------------------------------


def keys(*requests: bytes) -> Mask:
    mask = masking("http/1.1", 443, offers=False, keys=True)
    assert mask is not None
    mask.feed(TO_SERVER, b"".join(requests))
    return mask


@pytest.mark.parametrize("kind", [b"application/dns-message", b"APPLICATION/DNS-JSON"])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_an_answer_that_is_not_followed_is_none(kind: bytes, seed: int | None) -> None:
    """It gets a type its client did not ask for."""
    said = b"http/1.1 200 OK\r\nContent-Type: %s\r\n\r\n" % kind + KEYED
    mask = keys(GET)
    got = b"".join(mask.feed(TO_CLIENT, piece) for piece in cut(said, random.Random(seed) if seed else None))
    assert got == said.replace(kind, kind[:-1] + b"-")


@pytest.mark.parametrize(
    "types",
    [
        b"Content-Type: text/html, application/dns-message",
        b"Content-Type: text/html\r\nContent-Type: Application/DNS-Message ;x=y",
        b"Content-Type: application/dns-message\r\nContent-Type: text/html",
    ],
)
def test_a_type_among_several(types: bytes) -> None:
    assert keys(GET).feed(TO_CLIENT, HEAD + types + b"\r\n" + sized(KEYED)) == HEAD + types + b"\r\n" + sized(PLAIN)


def test_an_answer_whose_chunks_are_not_read_alike_ends_there() -> None:
    whole = chunks(KEYED, 30)
    said = HEAD + DNS + CHUNKED + b"\r\n" + whole.replace(b";x", b" x")
    mask = keys(GET)
    got = mask.feed(TO_CLIENT, said)
    assert got == HEAD + DNS + CHUNKED + b"\r\n"
    assert mask.refused == "http1_dns_chunk"
    assert mask.feed(TO_CLIENT, said) + mask.rest(TO_CLIENT) == b""


@pytest.mark.parametrize("size", [1, 5, 30, 1000])
def test_an_answer_without_a_type(size: int) -> None:
    """Firefox takes one."""
    for framing in (b"Content-Type:\r\n", b"", b"Content-Encoding: identity\r\n"):
        mask = keys(GET, GET)
        said = HEAD + framing + CHUNKED + b"\r\n" + chunks(UNTYPED, size)
        assert mask.feed(TO_CLIENT, said) == HEAD + framing + CHUNKED + b"\r\n" + chunks(UNTYPED_PLAIN, size)
        assert mask.feed(TO_CLIENT, over_http1(KEYED)) == over_http1(PLAIN)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"text", KEYED[:20], KEYED[:2] + b"\0" + KEYED[3:], bytes(70000), KEYED.replace(b"\0A", b"\0\1")],
)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_body_without_a_type_that_is_no_answer(body: bytes, seed: int | None) -> None:
    mask = keys(GET, GET)
    said = HEAD + sized(body) + HEAD + b"\r\n" + body
    pieces = cut(said, random.Random(seed) if seed else None)
    assert b"".join(mask.feed(TO_CLIENT, piece) for piece in pieces) + mask.rest(TO_CLIENT) == said


# --- what cannot be followed ------------------------------------------------------------------------------------------


def test_watching_holds_nothing_back_and_is_the_same_however_it_is_cut() -> None:
    said = (
        b"xHTTP\r\nAlt-Svc: h3=1\r\n foo\r\n\r\n a\nalt\0-SVC \t: h3\r\nX: y\r\nalt-svc:\r\r\r\n h3=1\n\rfoo\n"
        b"Alt-Svc: x\nAlt-Svc2: h3\nContent-Type: application/dns-message\r\nalt-svc: q"
    )
    expected = (
        b"xHTTP\r\nAlt-Svc:     \r\n    \r\n\r\n a\nalt\0-SVC \t:   \r\nX: y\r\nalt-svc:\r\r\r\n     \n\rfoo\n"
        b"Alt-Svc:  \nAlt-Svc2: h3\nContent-Type: application/dns-messag-\r\nalt-svc:  "
    )
    for seed in range(300):
        mask, got = UnreadMask(True, True), b""
        for piece in cut(said, random.Random(seed) if seed else None):
            out = mask.feed(piece)
            assert len(out) == len(piece)
            got += out
        assert got == expected


@pytest.mark.parametrize(
    "said",
    [
        b"\n" + bytes(60000) + b"x",
        b"\r" * 60000,
        b"\nalt-svc" + b" " * 60000 + b"x",
        b"\nalt-svc:" + b"\r" * 60000 + b"x",
        b"\nalt-svc:" + b"\r\n " * 20000,
        b"\nalt-svc:\n" + b"\r\r\n" * 20000,
        b"application/dns-" * 4000,
        b"a\0" * 30000,
    ],
)
def test_watching_takes_no_longer_for_anything(said: bytes) -> None:
    mask = UnreadMask(True, True)
    begin = time.thread_time()
    for _ in range(10):
        mask.feed(said)
    assert time.thread_time() - begin < 2


def test_other_lines_stay() -> None:
    body = b"Alternative-Service: h3=1\r\nX-Alt-Svc: h3=1\r\n say Alt-Svc: h3=1\r\nAlt-Svc h3=1\r\n"
    assert http1(GET, b"junk" + body) == b"junk" + body

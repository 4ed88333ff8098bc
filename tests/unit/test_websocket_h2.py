"""WebSocket over a stream of HTTP/2 (RFC 8441): goes through at once, and what it says is inspected."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame

from engines.stateful.app.http2 import PREFACE
from engines.verdict import Direction
from tests.unit.test_app_websocket import frame
from tests.unit.test_inspector import DOWN, UP, Flow, compiled

RULES = """\
drop http2 any any -> any any (msg:"up"; http.request_body; content:"evil-word"; sid:1;)
drop http2 any any -> any any (msg:"down"; http.response_body; content:"bad-answer"; sid:2;)
"""
CONNECT = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "https"),
    (":path", "/chat"),
    (":authority", "a.test"),
]


def message(text: bytes, mask: bytes = b"") -> bytes:
    """A text frame, masked as a client must (RFC 6455, section 5.3)."""
    return frame(0x81, text, mask)


def data(payload: bytes) -> bytes:
    return bytes(DataFrame(1, payload).serialize())


def opened() -> Flow:
    flow = Flow(compiled(RULES), decrypted=True, port=443)
    request = HeadersFrame(1, Encoder().encode(CONNECT), flags=["END_HEADERS"])
    response = HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"])
    assert flow.data(UP, PREFACE + request.serialize()) == "accept"
    assert flow.data(DOWN, response.serialize()) == "accept"
    return flow


def test_nothing_is_held_for_an_end_that_does_not_come() -> None:
    flow = opened()
    for number in range(20):
        assert flow.data(UP, data(message(b"hello %d" % number, b"\1\2\3\4"))) == "accept"
        assert flow.held == (0, 0)
        assert flow.data(DOWN, data(message(b"answer"))) == "accept"
        assert flow.held == (0, 0)


@pytest.mark.parametrize("cut", [0, 3, 9, 14])
def test_what_is_said_is_seen(cut: int) -> None:
    flow = opened()
    flow.data(UP, data(message(b"harmless", b"\1\2\3\4")))
    whole = message(b"an evil-word it is", b"\xaa\xbb\xcc\xdd")
    assert b"evil-word" not in whole
    said = [flow.data(UP, data(piece)) for piece in (whole[:cut], whole[cut:]) if piece]
    assert said[-1] == "drop! 1"
    flow = opened()
    assert flow.data(DOWN, data(message(b"a bad-answer"))) == "drop! 2"


# --- websocket.* ------------------------------------------------------------------------------------------------------

KEYWORDS = """\
drop websocket any any -> any any (msg:"payload"; websocket.payload; content:"evil-word"; sid:1;)
alert websocket any any -> any any (msg:"ping"; websocket.opcode:ping; sid:2;)
alert websocket any any -> any any (msg:"mask"; websocket.mask:16909060; websocket.payload; content:"masked"; sid:3;)
alert websocket any any -> any any (msg:"answer"; flow:to_client; websocket.payload; content:"answer"; sid:4;)
"""


def frames(stream: int, *pieces: bytes) -> bytes:
    return b"".join(bytes(DataFrame(stream, piece, flags=["PADDED"], pad_length=5).serialize()) for piece in pieces)


def conversation(rules: str, status: str = "200", method: str = "CONNECT") -> Flow:
    """Streams 1 and 3 are opened and accepted."""
    flow = Flow(compiled(rules), decrypted=True, port=443)
    request, response = Encoder(), Encoder()
    fields = [(name, method if name == ":method" else value) for name, value in CONNECT]
    flow.data(UP, PREFACE)
    for stream in (1, 3):
        flow.data(UP, HeadersFrame(stream, request.encode(fields), flags=["END_HEADERS"]).serialize())
        flow.data(DOWN, HeadersFrame(stream, response.encode([(":status", status)]), flags=["END_HEADERS"]).serialize())
    return flow


def say(flow: Flow, direction: Direction, said: bytes, size: int) -> list[str]:
    return [flow.data(direction, said[at : at + size]) for at in range(0, len(said), size)]


@pytest.mark.parametrize("size", [1, 2, 13, 10_000])
def test_keywords(size: int) -> None:
    """Frames of two streams in turn, over several DATA frames, padded; whole and byte by byte."""
    flow = conversation(KEYWORDS)
    one, other = message(b"this one is masked", b"\1\2\3\4"), message(b"nothing of note", b"\5\6\7\x08")
    ping = b"\x89\x80\1\2\3\4"
    up = frames(1, one[:9]) + frames(3, other[:5]) + frames(1, one[9:] + ping) + frames(3, other[5:])
    sids = [sid for word in say(flow, UP, up, size) for sid in word.split()[1:]]
    assert sorted(sids) == ["2", "3"]
    assert flow.held == (0, 0)
    down = frames(3, message(b"an answer")) + frames(1, message(b"another"), message(b"answer"))
    sids = [sid for word in say(flow, DOWN, down, size) for sid in word.split()[1:]]
    assert sids == ["4", "4"]
    evil = message(b"the evil-word", b"\xaa\xbb\xcc\xdd")
    said = say(flow, UP, frames(3, evil[:4], evil[4:]), size)
    assert next(word for word in said if word != "accept") == "drop! 1"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_frame_is_held_until_it_is_whole(size: int) -> None:
    flow = conversation(KEYWORDS)
    evil = message(b"the evil-word", b"\xaa\xbb\xcc\xdd")
    ahead = frames(1, message(b"harmless", b"\1\2\3\4"), evil[:8])
    say(flow, UP, ahead, size)
    assert flow.held[0] == 8 + 5, "the frame's first bytes, and the padding behind them"
    other = frames(3, message(b"of another stream", b"\1\2\3\4"))
    say(flow, UP, other, size)
    assert flow.held[0] == 8 + 5 + len(other)
    say(flow, UP, frames(1, evil[8:]), size)
    assert flow.inspector.decision is not None
    assert flow.inspector.decision.rule is not None
    assert flow.inspector.decision.rule.id == 1


def test_long_frames_are_let_go() -> None:
    """Beyond what a sender has credit for; rules are judged on all of it nevertheless."""
    flow = conversation(KEYWORDS)
    size = 60_000
    head = b"\x82\xfe" + size.to_bytes(2, "big") + bytes(4)
    sent = head + bytes(size - 9) + b"evil-word"
    held = []
    for at in range(0, len(sent), 10_000):
        said = flow.data(UP, frames(1, sent[at : at + 10_000]))
        held.append(flow.held[0])
    assert max(held) <= 48 << 10
    assert 0 in held[:-1]
    assert said == "drop! 1"


def test_what_only_alerts_is_not_held() -> None:
    flow = conversation(KEYWORDS.replace("drop", "alert"))
    flow.data(UP, frames(1, message(b"the evil-word", b"\1\2\3\4")[:8]))
    assert flow.held == (0, 0)
    assert flow.data(UP, frames(1, message(b"the evil-word", b"\1\2\3\4")[8:])) == "accept 1"


@pytest.mark.parametrize(("status", "method"), [("403", "CONNECT"), ("200", "POST")])
def test_other_bodies_are_none(status: str, method: str) -> None:
    flow = conversation(KEYWORDS, status, method)
    assert flow.data(DOWN, frames(1, message(b"an answer"))) == "accept"
    if method == "POST":
        assert flow.data(UP, frames(1, message(b"evil-word"))) == "accept"


def test_the_protocol_and_its_frames_are_known() -> None:
    rules = (
        'alert tcp any any -> any any (app-layer-protocol:websocket; msg:"it is"; sid:1;)\n'
        'alert websocket any any -> any any (frame:websocket.data; content:"text"; msg:"frame"; sid:2;)\n'
    )
    flow = Flow(compiled(rules), decrypted=True, port=443)
    request = HeadersFrame(1, Encoder().encode(CONNECT), flags=["END_HEADERS"])
    said = [flow.data(UP, PREFACE), flow.data(UP, bytes(request.serialize())), flow.data(UP, data(message(b"text")))]
    assert [word.split()[1:] for word in said] == [[], ["1"], ["2"]]


def test_frames_go_on_beyond_what_is_seen_of_a_body() -> None:
    flow = conversation(KEYWORDS)
    for _ in range(30):
        assert flow.data(UP, data(message(b"x" * 5_000, b"\1\2\3\4"))) == "accept"
    assert flow.data(UP, data(message(b"evil-word", b"\1\2\3\4"))) == "drop! 1"

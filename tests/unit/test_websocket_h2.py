"""WebSocket over a stream of HTTP/2 (RFC 8441): goes through at once, and what it says is inspected."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame

from engines.stateful.app.http2 import PREFACE
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
    if not mask:
        return bytes([0x81, len(text)]) + text
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    return bytes([0x81, 0x80 | len(text)]) + mask + masked


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

"""WebSocket frames: sizes, masks, fragments, compression and their bounds."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.limits import AppLimits
from engines.stateful.app.websocket import WebSocketParser
from tests.unit.app_feeding import C, S, every_way, survives
from tests.unit.corpus import corpus

NAMES = ["websocket.payload", "websocket.opcode", "websocket.flags", "websocket.mask", "x"]


def frame(first: int, payload: bytes, mask: bytes = b"") -> bytes:
    size, bit = len(payload), 0x80 if mask else 0
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 1 << 16:
        head = bytes([first, bit | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, bit | 127]) + size.to_bytes(8, "big")
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)) if mask else payload
    return head + mask + masked


def payloads(parser: WebSocketParser) -> list[bytes]:
    return [tx.buffer("websocket.payload")[0] for tx in parser.transactions]


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 5000])
@pytest.mark.parametrize("mask", [b"", b"\1\2\3\4"])
def test_one_frame(size: int, mask: bytes) -> None:
    text = random.Random(size).randbytes(size)
    for parser, (tx,) in every_way(WebSocketParser, [(C, frame(0x82, text, mask) + b"\x81")]):
        assert list(tx.buffer("websocket.payload")) == [text]
        assert list(tx.buffer("websocket.opcode")) == [b"\2"]
        assert list(tx.buffer("websocket.flags")) == [b"\x80"]
        assert list(tx.buffer("websocket.mask")) == ([mask] if mask else [])
        assert tx.buffer("websocket.payload", S) == ()
        assert (tx.progress(S), tx.is_complete(S), tx.events) == (0, True, [])
        assert parser.held(C) == 1


def test_fragments_with_a_ping_between() -> None:
    sent = (
        frame(0x01, b"MAL", b"abcd")
        + frame(0x89, b"ping")
        + frame(0x00, b"WA")
        + frame(0x80, b"RE")
        + frame(0x81, b"x")
    )
    for parser, _ in every_way(WebSocketParser, [(S, sent)]):
        assert isinstance(parser, WebSocketParser)
        assert payloads(parser) == [b"MAL", b"ping", b"WA", b"MALWARE", b"x"]


def test_compressed_with_context() -> None:
    """Both messages share one window, and the second comes in two frames."""
    deflate = zlib.compressobj(wbits=-15)
    messages = []
    for text in (b"hello hello hello", b"hello hello again"):
        data = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
        assert data.endswith(b"\0\0\xff\xff")
        messages.append(data[:-4])
    sent = frame(0xC1, messages[0]) + frame(0x41, messages[1][:3]) + frame(0x80, messages[1][3:])
    for parser, _ in every_way(WebSocketParser, [(C, sent)]):
        assert isinstance(parser, WebSocketParser)
        assert payloads(parser) == [b"hello hello hello", messages[1][:3], b"hello hello again"]


def test_compressed_nonsense() -> None:
    parser = WebSocketParser()
    parser.feed(C, frame(0xC1, b"\xff\xff\xff") + frame(0xC1, b"\0"))
    assert payloads(parser) == [b"\xff\xff\xff", b"\0"]
    assert [tx.events for tx in parser.transactions] == [["decompress_failed"]] * 2


def test_bomb() -> None:
    limits = AppLimits(websocket_message=1000)
    parser = WebSocketParser(limits)
    deflate = zlib.compressobj(wbits=-15)
    parser.feed(C, frame(0xC1, deflate.compress(bytes(200_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)))
    assert [len(data) for data in payloads(parser)] == [1000]


def test_long_frames_are_seen_in_part() -> None:
    """What comes after them is still found."""
    sent = frame(0x82, b"a" * 70_000, b"wxyz") + frame(0x81, b"after")
    for cut in (0, 1000):
        parser = WebSocketParser(AppLimits(websocket_message=100))
        for at in range(0, len(sent), cut or len(sent)):
            parser.feed(C, sent[at : at + (cut or len(sent))])
            assert parser.held(C) <= 114
        assert payloads(parser) == [b"a" * 100, b"after"]
        assert parser.transactions[0].events == ["skip_end_of_payload"]


def test_long_messages_are_cut() -> None:
    parser = WebSocketParser(AppLimits(websocket_message=100))
    parser.feed(C, frame(0x01, b"a" * 80) + frame(0x80, b"b" * 80))
    assert payloads(parser)[1] == b"a" * 80 + b"b" * 20
    assert parser.transactions[1].events == ["reassembly_limit_reached"]


def test_mutations() -> None:
    script = [(C, frame(0x01, b"one", b"abcd") + frame(0x80, b"two")), (S, frame(0xC1, zlib.compress(b"x" * 90)[2:-4]))]
    survives(WebSocketParser, script, NAMES, rounds=500, seed=6)


@given(st.binary(max_size=300) | st.sampled_from(corpus("websocket")), st.integers(1, 40))
@settings(max_examples=500, deadline=None)
def test_cuts_do_not_matter(data: bytes, cut: int) -> None:
    whole, pieces = WebSocketParser(), WebSocketParser()
    whole.feed(C, data)
    for at in range(0, len(data), cut):
        pieces.feed(C, data[at : at + cut])
    assert payloads(whole) == payloads(pieces)
    assert [tx.events for tx in whole.transactions] == [tx.events for tx in pieces.transactions]

"""Hides offers of HTTP/3 from clients whose QUIC does not get through: without it, each tries and waits. And keys for
Encrypted ClientHello (:mod:`engines.tls.ech`) from clients that ask for DNS answers over HTTP (RFC 8484).

Nothing is encoded anew and no length changes. The value of an ``Alt-Svc`` header that offers QUIC becomes ``clear`` and
blanks, which also takes back what an earlier answer offered; in HPACK that is a Huffman text of the same number of
bytes, put where the old one was, so the client's header table stays that of the server. An ALTSVC frame gets a type
nobody knows, which is ignored (RFC 9113 section 4.1).

An answer is known in HTTP/1 by its type, and has to say its length; in HTTP/2 it is a DATA frame that is one, whatever
its type, so that no table of headers has to be kept.

Held back are only bytes of an unfinished head (HTTP/1) or header block (HTTP/2), or of an answer, 64 KB at most. What
does not read as HTTP, or no longer does, goes on untouched from there: this is a courtesy, dropping QUIC is the
enforcement.

Sources: RFC 7838 sections 3 and 4 (Alt-Svc, ALTSVC), RFC 9112 section 6 (message bodies), RFC 9113 sections 4 and 6
(frames), RFC 7541 sections 5 and 6, appendix B (HPACK).
"""

from __future__ import annotations

import re
from collections import deque

from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

from engines.tls.ech import may_be_answer, without_ech
from engines.verdict import Direction

HELD_MOST = 65536
_METHODS_MOST = 128  # requests that wait for their answer; more of them and heads are no longer looked at
_LINE_MOST = 256  # of a chunk's size

_QUIC_OFFER = re.compile(rb"(?i)\b(?:h3|hq|quic)[\w.-]*=")
# As a whole value, since the name of a header may be no more than a number.
_ANY_OFFER = re.compile(rb'(?i)[ \t]*(?:[\w.%-]+="[^"]*"[^,]*,[ \t]*)*(?:h3|hq|quic)[\w.-]*="')
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_HEADER = re.compile(rb"(?im)^alt-svc[ \t]*:([^\r\n]*)")
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding[ \t]*:[^\r\n]*\bchunked[ \t]*\r?$")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_DNS = re.compile(rb"(?im)^content-type[ \t]*:[ \t]*application/dns-message\b")
_REQUEST = re.compile(rb"([A-Z-]{1,32}) \S+ HTTP/1\.[01]\r?\n")

_CLEAR, _CLEAR_BITS, _BLANK_BITS = b"clear", 27, 6  # RFC 7541 appendix B: 5+6+5+5+6 bits; a blank is 010100
_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_NAME = b"alt-svc"
_NAMES = {(False, _NAME), (True, _HUFFMAN.encode(_NAME))}

_DATA, _DNS_HEADER, _DNS_MOST = 0, 12, 65535
_HEADERS, _PUSH_PROMISE, _CONTINUATION, _ALTSVC = 1, 5, 9, 10
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_UNKNOWN_TYPE = 0xF0
_STATIC_ENTRIES = 61


class AltSvcMask:
    """One per decrypted session; ``alpn`` is what was negotiated, ``offers`` and ``keys`` what is hidden. Feed both
    directions in order."""

    __slots__ = ("_http1", "_http2")

    def __init__(self, alpn: str, *, offers: bool = True, keys: bool = False) -> None:
        self._http1 = _Http1(offers, keys) if alpn in ("http/1.1", "http/1.0", "") else None
        self._http2 = _Http2(offers, keys) if alpn == "h2" else None

    def feed(self, direction: Direction, data: bytes) -> bytes:
        """What may go on now, of as many bytes as came, or fewer that follow later."""
        if self._http1 is not None:
            return self._http1.feed(direction, data)
        if self._http2 is not None and direction is Direction.TO_CLIENT:
            return self._http2.feed(data)
        return data

    def rest(self, direction: Direction) -> bytes:
        """That direction has ended: what was held back."""
        if direction is Direction.TO_SERVER:
            return b""
        side = self._http2 if self._http2 is not None else self._http1.responses if self._http1 is not None else None
        return side.rest() if side is not None else b""


def _blanked(length: int, huffman: bool) -> bytes:
    """``clear`` and blanks, or blanks alone, as exactly ``length`` bytes of a header's value."""
    if not huffman:
        return (_CLEAR if length >= len(_CLEAR) else b"").ljust(length)
    text, used = (_CLEAR, _CLEAR_BITS) if 8 * length >= _CLEAR_BITS else (b"", 0)
    encoded: bytes = _HUFFMAN.encode(text + b" " * ((8 * length - used) // _BLANK_BITS))
    return encoded


# -- HTTP/1 ----------------------------------------------------------------------------------------------------------


class _Http1:
    __slots__ = ("_keys", "_methods", "_off", "_offers", "requests", "responses")

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._methods: deque[bytes] = deque()
        self._off = False
        self.requests = _Messages()
        self.responses = _Messages(b"HTTP/1.")

    def feed(self, direction: Direction, data: bytes) -> bytes:
        if self._off:
            return data
        if direction is Direction.TO_SERVER:
            self._requests(data)
            return data
        return self._responses(data)

    def _requests(self, data: bytes) -> None:
        side = self.requests
        side.add(data)
        while (head := side.head()) is not None:
            line = _REQUEST.match(head)
            if line is None or len(self._methods) >= _METHODS_MOST:
                self._stop()
                return
            self._methods.append(line[1])
            side.go_on(head, head, _body(head, 0))
        if side.lost:
            self._stop()
        side.out.clear()

    def _responses(self, data: bytes) -> bytes:
        side = self.responses
        side.add(data)
        while (head := side.head()) is not None:
            line = _STATUS.match(head)
            if line is None:
                self._stop()
                break
            status = int(line[1])
            interim = 100 <= status < 200
            method = b"" if interim or not self._methods else self._methods.popleft()
            if status == 101 or (method == b"CONNECT" and 200 <= status < 300):
                self._stop()
                break
            bodiless = interim or status in (204, 304) or method == b"HEAD"
            body = 0 if bodiless else _body(head, _UNTIL_CLOSE)
            side.go_on(head, _without_offer(head) if self._offers else head, body)
            side.answer = self._keys and 0 < body <= _DNS_MOST and _DNS.search(head) is not None
        if self._off or side.lost:
            self._stop()
            return side.taken() + side.rest()
        return side.taken()

    def _stop(self) -> None:
        self._off = True
        self._methods.clear()


_CHUNKS, _UNTIL_CLOSE = -1, -2


def _body(head: bytes, otherwise: int) -> int:
    """Bytes of the body behind a head, or :data:`_CHUNKS`, or ``otherwise`` when it does not say."""
    if _CHUNKED.search(head):
        return _CHUNKS
    length = _LENGTH.search(head)
    return int(length[1]) if length else otherwise


def _without_offer(head: bytes) -> bytes:
    changed = head
    for found in _HEADER.finditer(head):
        if _QUIC_OFFER.search(found[1]):
            begin, end = found.span(1)
            changed = changed[:begin] + b" " + _blanked(end - begin - 1, False) + changed[end:]
    return changed


class _Messages:
    """Cuts one direction into heads and bodies. ``out``: what may go on, in order."""

    __slots__ = ("_buffer", "_chunks", "_left", "_start", "_until_close", "answer", "lost", "out")

    def __init__(self, start: bytes = b"") -> None:
        self._start = start  # of every head
        self._buffer = bytearray()
        self._left = 0  # bytes of a body, or of a chunk and the line end behind it, still to come
        self._chunks = False  # then a chunk's size follows, else a head
        self._until_close = False
        self.answer = False  # the body is a DNS message, which is held until it is whole
        self.out: list[bytes] = []
        self.lost = False  # not HTTP, or too long

    def add(self, data: bytes) -> None:
        if self._until_close or (
            self._left >= len(data) and not self._buffer and not self.answer
        ):  # inside a body: the usual case
            self._left -= 0 if self._until_close else len(data)
            self.out.append(data)
        else:
            self._buffer += data

    def head(self) -> bytes | None:
        """The next head, its empty line included; None until there is one."""
        while self._buffer and not self.lost:
            if self._until_close:
                self._move(len(self._buffer))
            elif self.answer:
                if len(self._buffer) < self._left:
                    return None
                self._move(self._left)
                self.out[-1] = without_ech(self.out[-1], keep_length=True) or self.out[-1]
                self._left, self.answer = 0, False
            elif self._left:
                self._left -= self._move(self._left)
            elif not self._chunks:
                return self._whole_head()
            elif not self._chunk():
                return None
        return None

    def go_on(self, head: bytes, instead: bytes, body: int) -> None:
        """The head was looked at, and goes on as ``instead``."""
        del self._buffer[: len(head)]
        self.out.append(instead)
        self._left, self._chunks, self._until_close = max(body, 0), body == _CHUNKS, body == _UNTIL_CLOSE

    def taken(self) -> bytes:
        taken = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        return taken

    def rest(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _move(self, count: int) -> int:
        moved = bytes(self._buffer[:count])
        del self._buffer[:count]
        self.out.append(moved)
        return len(moved)

    def _whole_head(self) -> bytes | None:
        end = self._buffer.find(b"\r\n\r\n") + 4
        seen = self._buffer[: len(self._start)]
        if not self._start.startswith(seen):
            self.lost = True
            return None
        if end < 4:
            self.lost = len(self._buffer) > HELD_MOST
            return None
        return bytes(self._buffer[:end])

    def _chunk(self) -> bool:
        """A chunk's size, or the last one with its trailer. False: more bytes are needed."""
        end = self._buffer.find(b"\n") + 1
        if not end:
            self.lost = len(self._buffer) > _LINE_MOST
            return False
        size = _SIZE.match(self._buffer, 0, end)
        if size is None:
            self.lost = True
            return False
        length = int(size[1], 16)
        if length:
            self._move(end)
            self._left = length + 2
            return True
        end = self._buffer.find(b"\r\n\r\n", max(end - 2, 0)) + 4
        if end < 4:
            self.lost = len(self._buffer) > HELD_MOST
            return False
        self._move(end)
        self._chunks = False
        return True


# -- HTTP/2 ----------------------------------------------------------------------------------------------------------


class _Http2:
    """The frames a server sends."""

    __slots__ = ("_buffer", "_indexed", "_keys", "_left", "_off", "_offers")

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._buffer = bytearray()
        self._left = 0  # bytes of a frame's payload that is not looked at
        self._indexed = False  # the name is in the header table, so it may come as a number
        self._off = False

    def feed(self, data: bytes) -> bytes:
        if self._off or (self._left >= len(data) and not self._buffer):
            self._left -= 0 if self._off else len(data)
            return data
        self._buffer += data
        out = bytearray()
        while len(self._buffer) >= 9 or self._left:
            if self._left:
                moved = self._buffer[: self._left]
                if not moved:
                    break
                self._left -= len(moved)
                del self._buffer[: len(moved)]
                out += moved
                continue
            length, kind = int.from_bytes(self._buffer[:3], "big"), self._buffer[3]
            if kind == _DATA and self._keys and self._answer(length):
                break
            if self._offers and kind in (_HEADERS, _PUSH_PROMISE):
                end = self._block(self._buffer)
                if end is None and len(self._buffer) <= HELD_MOST:
                    break
                if end is None or end < 0:
                    self._off = True
                    return bytes(out) + self.rest()
                out += self._buffer[:end]
                del self._buffer[:end]
                continue
            if kind == _ALTSVC and self._offers:
                self._buffer[3] = _UNKNOWN_TYPE
            self._left = 9 + length
        return bytes(out)

    def rest(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _answer(self, length: int) -> bool:
        """Take the keys out of the DATA frame at hand if it is a DNS answer. True: more bytes are needed."""
        buffer = self._buffer
        padded = bool(buffer[4] & _PADDED)
        begin, end = 9 + padded, 9 + length
        if end - begin < _DNS_HEADER or length > _DNS_MOST:
            return False
        if len(buffer) < begin + _DNS_HEADER:
            return True
        if not may_be_answer(bytes(buffer[begin : begin + _DNS_HEADER])):
            return False
        if len(buffer) < end:
            return True
        end -= buffer[9] if padded else 0
        message = bytes(buffer[begin : max(begin, end)])
        buffer[begin : begin + len(message)] = without_ech(message, keep_length=True) or message
        return False

    def _block(self, buffer: bytearray) -> int | None:
        """Look through the header block whose frames begin ``buffer``: how long they are together, None when more
        bytes are needed, -1 when they are no header block."""
        pieces: list[tuple[int, int]] = []  # where the block's fragments are
        at = 0
        while True:
            if len(buffer) < at + 9:
                return None
            length, kind, flags = int.from_bytes(buffer[at : at + 3], "big"), buffer[at + 3], buffer[at + 4]
            begin, end = at + 9, at + 9 + length
            if len(buffer) < end:
                return None
            if (kind == _CONTINUATION) is (at == 0):
                return -1
            if kind != _CONTINUATION:
                if flags & _PADDED:
                    end -= buffer[begin] if length else 0
                    begin += 1
                begin += 5 if kind == _HEADERS and flags & _PRIORITY else 4 if kind == _PUSH_PROMISE else 0
                if begin > end:
                    return -1
            pieces.append((begin, end))
            at += 9 + length
            if flags & _END_HEADERS:
                break
        block = bytearray().join(buffer[begin:end] for begin, end in pieces)
        if not self._mask(block):
            return -1
        taken = 0
        for begin, end in pieces:
            buffer[begin:end] = block[taken : taken + end - begin]
            taken += end - begin
        return at

    def _mask(self, block: bytearray) -> bool:
        """Overwrite offers in a header block; False when it does not read as one."""
        at = 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    _, at = _integer(block, at, 7)
                elif first & 0xE0 == 0x20:
                    _, at = _integer(block, at, 5)
                else:
                    stored = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if stored else 4)
                    named = False
                    if not index:
                        huffman, begin, at = _text(block, at)
                        named = (huffman, bytes(block[begin:at])) in _NAMES
                        self._indexed = self._indexed or (named and stored)
                    huffman, begin, at = _text(block, at)
                    if (named or (self._indexed and index > _STATIC_ENTRIES)) and _offers(block[begin:at], huffman):
                        block[begin:at] = _blanked(at - begin, huffman)
        except IndexError:
            return False
        return True


def _integer(block: bytearray, at: int, bits: int) -> tuple[int, int]:
    """RFC 7541 5.1: the number, and the offset behind it. IndexError when it is cut off or absurd."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 28, 7):
        value += (block[at] & 0x7F) << shift
        at += 1
        if not block[at - 1] & 0x80:
            return value, at
    raise IndexError


def _text(block: bytearray, at: int) -> tuple[bool, int, int]:
    """RFC 7541 5.2: whether it is in Huffman's code, where it begins and where it ends."""
    huffman = bool(block[at] & 0x80)
    length, at = _integer(block, at, 7)
    if at + length > len(block):
        raise IndexError
    return huffman, at, at + length


def _offers(value: bytearray, huffman: bool) -> bool:
    text = bytes(value)
    if huffman:
        try:
            text = decode_huffman(text)
        except HPACKDecodingError:
            return False
    return _ANY_OFFER.match(text) is not None

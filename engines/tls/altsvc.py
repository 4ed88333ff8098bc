"""Hides offers of HTTP/3 from clients whose QUIC does not get through: without it, each tries and waits. And keys for
Encrypted ClientHello (:mod:`engines.tls.ech`) from clients that ask for DNS answers over HTTP (RFC 8484).

Nothing is encoded anew and no length changes. The value of an ``Alt-Svc`` header that offers QUIC becomes ``clear`` and
blanks, which also takes back what an earlier answer offered; in HPACK that is a Huffman text of the same number of
bytes, put where the old one was, so the client's header table stays that of the server. An ALTSVC frame gets a type
nobody knows, which is ignored (RFC 9113 section 4.1).

An answer is known by its type; its body is :mod:`engines.tls.dohbody`'s. In HTTP/2 names and types are followed through
the header table by what was put into it, newest first: no size has to be known, since nobody names what has fallen out.

Held back are only bytes of an unfinished head (HTTP/1) or header block (HTTP/2), or of an answer. What does not read as
HTTP/1, or no longer does, goes on untouched from there: this is a courtesy, dropping QUIC is the enforcement. A server
that has agreed on HTTP/2 and sends a header block that cannot be read, or more than is kept, is ``refused``: its
client's table would no longer be known either (RFC 9113 section 4.3), and nothing behind it.

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

from engines.tls.dohbody import DohBody
from engines.verdict import Direction

HELD_MOST = 65536
BLOCK_MOST = 1 << 18
"""Bytes of a header block's frames: as many as browsers take headers."""
STREAMS_MOST, FRAMES_MOST = 1024, 1 << 20
"""Answers to DNS that have begun on a connection of HTTP/2 and not ended, and bytes of their frames that wait."""
_METHODS_MOST = 4096  # requests that wait for their answer; more of them and heads are no longer looked at
_LINE_MOST = 256  # of a chunk's size

# Of a protocol in Alt-Svc any byte may be written as %xx.
_QUIC_OFFER = re.compile(rb"(?i)(?:\b(?:h3|hq|quic)|[\w.-]*%)[\w.%-]*=")
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_HEADER = re.compile(rb"(?im)^alt-svc[ \t]*:([^\r\n]*)")
_FOLD = re.compile(rb"\r?\n[ \t]")  # RFC 9112 section 5.2: one line all the same
_HEAD_END = re.compile(rb"\n\r?\n")
_BLANK_LINES = re.compile(rb"(?:\r?\n)+")
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding[ \t]*:[^\r\n]*\bchunked[ \t]*\r?$")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_DNS_TYPE = re.compile(rb"(?i)[ \t]*application/dns-message[ \t]*(?:[;,]|$)")
_DNS = re.compile(rb"(?im)^content-type[ \t]*:[ \t]*application/dns-message[ \t]*(?:[;,\r]|$)")
_PLAIN_CODING = re.compile(rb"(?i)[ \t]*(?:identity)?[ \t]*$")
_CODED = re.compile(
    rb"(?im)^(?:content-encoding[ \t]*:(?![ \t]*(?:identity)?[ \t]*\r?$)"
    rb"|transfer-encoding[ \t]*:(?![ \t]*chunked[ \t]*\r?$))"
)
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) [^\r\n]* HTTP/1\.[01][ \t]*\r?\n")

_CLEAR, _CLEAR_BITS, _BLANK_BITS = b"clear", 27, 6  # RFC 7541 appendix B: 5+6+5+5+6 bits; a blank is 010100
_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_NAME = b"alt-svc"

_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION, _ALTSVC = 0, 1, 3, 5, 9, 10
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_FRAME_MOST = 65535 + 256  # of an answer: a whole message and padding
_UNKNOWN_TYPE = 0xF0
_STATIC_ENTRIES = 61
_TABLE_MOST = 2048  # entries that are remembered: as many as a table of 64 KB can have
# What a field's name is, and that its value makes the body a DNS message, or one in a coding.
_OTHER, _ALT_SVC, _TYPE, _CODING, _TELLS = 0, 1, 2, 3, 4
_STATIC_NAMES = {31: _TYPE, 26: _CODING}  # RFC 7541 appendix A
_LITERAL_NAMES = {
    (huffman, _HUFFMAN.encode(name) if huffman else name): kind
    for name, kind in ((_NAME, _ALT_SVC), (b"content-type", _TYPE), (b"content-encoding", _CODING))
    for huffman in (False, True)
}


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

    @property
    def refused(self) -> str:
        """Why nothing more must go on, in a word; "" while it may."""
        return self._http2.refused if self._http2 is not None else ""


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
        self.responses = _Messages(b"HTTP/1.", offers)

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
            side.go_on(head, head, _body(_unfolded(head), 0))
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
            plain = _unfolded(head)
            body = 0 if bodiless else _body(plain, _UNTIL_CLOSE)
            side.go_on(head, _without_offer(head, plain) if self._offers else head, body)
            if self._keys and body and _DNS.search(plain):
                side.answer = DohBody(_CODED.search(plain) is not None)
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


def _unfolded(head: bytes) -> bytes:
    """As long as it was."""
    return _FOLD.sub(lambda fold: b" " * len(fold[0]), head)


def _without_offer(head: bytes, plain: bytes) -> bytes:
    """``plain``: the head, unfolded."""
    changed = head
    for found in _HEADER.finditer(plain):
        if _QUIC_OFFER.search(found[1]):
            begin, end = found.span(1)
            changed = changed[:begin] + b" " + _blanked(end - begin - 1, False) + changed[end:]
    return changed


class _Messages:
    """Cuts one direction into heads and bodies. ``out``: what may go on, in order. ``offers``: they are taken out of
    trailers."""

    __slots__ = (
        "_buffer",
        "_chunk_end",
        "_chunks",
        "_left",
        "_offers",
        "_searched",
        "_start",
        "_until_close",
        "answer",
        "lost",
        "out",
    )

    def __init__(self, start: bytes = b"", offers: bool = False) -> None:
        self._start = start  # of every head
        self._offers = offers
        self._buffer = bytearray()
        self._searched = 0  # bytes of it with no end of a head in them
        self._left = 0  # bytes of a body, or of a chunk, still to come
        self._chunks = False  # then a chunk's size follows, else a head
        self._chunk_end = False  # but first the line end behind a chunk
        self._until_close = False
        self.answer: DohBody | None = None  # the body is a DNS message
        self.out: list[bytes] = []
        self.lost = False  # not HTTP, or too long

    def add(self, data: bytes) -> None:
        if self.answer is None and not self._buffer and (self._until_close or self._left >= len(data)):
            self._left -= 0 if self._until_close else len(data)  # inside a body: the usual case
            self.out.append(data)
        else:
            self._buffer += data

    def head(self) -> bytes | None:
        """The next head, its empty line included; None until there is one."""
        while not self.lost:
            if self.answer is not None and not (self._left or self._chunks or self._until_close):
                self.out.append(self.answer.end())
                self.answer = None
            if not self._buffer:
                break
            if self._until_close:
                self._content(len(self._buffer))
            elif self._left:
                self._left -= self._content(self._left)
                self._chunk_end = self._chunks and not self._left
            elif not self._chunks:
                return self._whole_head()
            elif not self._chunk():
                break
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
        rest = (self.answer.end() if self.answer is not None else b"") + bytes(self._buffer)
        self.answer = None
        self._buffer.clear()
        return rest

    def _pop(self, count: int) -> bytes:
        popped = bytes(self._buffer[:count])
        del self._buffer[:count]
        return popped

    def _content(self, count: int) -> int:
        """Bytes of a body go on."""
        data = self._pop(count)
        if self.answer is None:
            self.out.append(data)
        else:
            self.answer.content(data)
            self.out.append(self.answer.taken())
        return len(data)

    def _framing(self, data: bytes) -> None:
        if self.answer is None:
            self.out.append(data)
        else:
            self.answer.framing(data)
            self.out.append(self.answer.taken())

    def _whole_head(self) -> bytes | None:
        blank = _BLANK_LINES.match(self._buffer)  # RFC 9112 section 2.2
        if blank is not None:
            self.out.append(self._pop(blank.end()))
        if self._buffer == b"\r":
            return None
        seen = self._buffer[: len(self._start)]
        if not self._start.startswith(seen):
            self.lost = True
            return None
        found = _HEAD_END.search(self._buffer, max(self._searched - 2, 0))
        self._searched = 0 if found else len(self._buffer)
        if found is None:
            self.lost = len(self._buffer) > HELD_MOST
            return None
        return bytes(self._buffer[: found.end()])

    def _chunk(self) -> bool:
        """A chunk's size, or the last one with its trailer. False: more bytes are needed."""
        end = self._buffer.find(b"\n") + 1
        if not end:
            self.lost = len(self._buffer) > _LINE_MOST
            return False
        if self._chunk_end:
            self.lost = bytes(self._buffer[:end]) not in (b"\n", b"\r\n")
            if self.lost:
                return False
            self._framing(self._pop(end))
            self._chunk_end = False
            return True
        size = _SIZE.match(self._buffer, 0, end)
        if size is None:
            self.lost = True
            return False
        length = int(size[1], 16)
        if length:
            self._framing(self._pop(end))
            self._left = length
            return True
        found = _HEAD_END.search(self._buffer, max(end - 1, self._searched - 2))
        self._searched = 0 if found else len(self._buffer)
        if found is None:
            self.lost = len(self._buffer) > HELD_MOST
            return False
        trailer = self._pop(found.end())
        self._framing(_without_offer(trailer, _unfolded(trailer)) if self._offers else trailer)
        self._chunks = False
        return True


# -- HTTP/2 ----------------------------------------------------------------------------------------------------------


class _Http2:
    """The frames a server sends. ``refused``: why nothing more must go on; its bytes up to there have."""

    __slots__ = ("_at", "_buffer", "_keys", "_left", "_offers", "_pieces", "_streams", "_table", "_waiting", "refused")

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._buffer = bytearray()
        self._left = 0  # bytes of a frame's payload that is not looked at
        self._at = 0  # bytes of the buffer that are frames of an unfinished header block
        self._pieces: list[tuple[int, int]] = []  # where in them the block's fragments are
        self._table: deque[int] = deque(maxlen=_TABLE_MOST)  # what was put into the header table, newest first
        self._streams: dict[bytes, DohBody] = {}  # answers to DNS that have not ended
        self._waiting = 0  # bytes of their frames
        self.refused = ""

    def feed(self, data: bytes) -> bytes:
        if self.refused:
            return b""
        if self._left >= len(data) and not self._buffer:
            self._left -= len(data)
            return data
        self._buffer += data
        out = bytearray()
        while not self.refused and (len(self._buffer) >= 9 or (self._left and self._buffer)):
            if self._left:
                moved = self._buffer[: self._left]
                self._left -= len(moved)
                del self._buffer[: len(moved)]
                out += moved
                continue
            length, kind, stream = int.from_bytes(self._buffer[:3], "big"), self._buffer[3], bytes(self._buffer[5:9])
            if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
                if not self._block(out):
                    break
                continue
            if kind == _DATA and stream in self._streams:
                if length > _FRAME_MOST:
                    self.refused = "http2_dns_frame"
                elif len(self._buffer) < 9 + length:
                    break
                else:
                    out += self._answer(stream, length)
                continue
            if kind == _RST_STREAM:
                out += self._ended(stream)
            elif kind == _ALTSVC and self._offers:
                self._buffer[3] = _UNKNOWN_TYPE
            self._left = 9 + length
        return bytes(out)

    def rest(self) -> bytes:
        if self.refused:
            return b""
        rest = b"".join(self._ended(stream) for stream in list(self._streams)) + bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _answer(self, stream: bytes, length: int) -> bytes:
        """The DATA frame at hand, which is whole: what may go on now."""
        frame = bytes(self._buffer[: 9 + length])
        del self._buffer[: 9 + length]
        body, before = self._streams[stream], self._streams[stream].waiting
        padded = bool(frame[4] & _PADDED) and length > 0
        begin = 9 + padded
        end = max(len(frame) - (frame[9] if padded else 0), begin)
        body.framing(frame[:begin])
        body.content(frame[begin:end])
        body.framing(frame[end:])
        self._waiting += body.waiting - before
        if frame[4] & _END_STREAM:
            return self._ended(stream)
        if not body.whole:  # frames go on as they are, whole; those of other streams may overtake them
            self.refused = "http2_dns_held" if self._waiting > FRAMES_MOST else ""
            return b""
        self._waiting -= body.waiting
        return body.taken()

    def _ended(self, stream: bytes) -> bytes:
        body = self._streams.pop(stream, None)
        if body is None:
            return b""
        self._waiting -= body.waiting
        return body.end()

    def _block(self, out: bytearray) -> bool:
        """Take in the header block whose frames begin the buffer. False: more bytes are needed, or it is refused."""
        buffer = self._buffer
        while True:
            at = self._at
            if at + 9 > len(buffer):
                return False
            length, kind, flags = int.from_bytes(buffer[at : at + 3], "big"), buffer[at + 3], buffer[at + 4]
            begin, end = at + 9, at + 9 + length
            if (kind == _CONTINUATION) is not (at > 0) or buffer[at + 5 : at + 9] != buffer[5:9]:
                self.refused = "http2_header_block"
                return False
            if end > BLOCK_MOST:
                self.refused = "http2_header_block_length"
                return False
            if len(buffer) < end:
                return False
            self._at = end
            if kind != _CONTINUATION:
                if flags & _PADDED:
                    end -= buffer[begin] if length else 0
                    begin += 1
                begin += 5 if kind == _HEADERS and flags & _PRIORITY else 4 if kind == _PUSH_PROMISE else 0
                if begin > end:
                    self.refused = "http2_header_block"
                    return False
            self._pieces.append((begin, end))
            if flags & _END_HEADERS:
                break
        block = bytearray().join(buffer[begin:end] for begin, end in self._pieces)
        tells = self._mask(block)
        if tells is None:
            self.refused = "http2_header_block"
            return False
        taken = 0
        for begin, end in self._pieces:
            buffer[begin:end] = block[taken : taken + end - begin]
            taken += end - begin
        self._headers(out, tells)
        out += buffer[: self._at]
        del buffer[: self._at]
        self._at = 0
        self._pieces.clear()
        return True

    def _headers(self, out: bytearray, tells: set[int]) -> None:
        """What the block at the begin of the buffer says about its stream."""
        kind, flags, stream = self._buffer[3], self._buffer[4], bytes(self._buffer[5:9])
        if kind != _HEADERS:
            return
        if flags & _END_STREAM:
            out += self._ended(stream)
        elif self._keys and _TYPE in tells and stream not in self._streams:
            if len(self._streams) >= STREAMS_MOST:
                self.refused = "http2_dns_streams"
            else:
                self._streams[stream] = DohBody(_CODING in tells)

    def _mask(self, block: bytearray) -> set[int] | None:
        """Overwrite offers in a header block. Which of :data:`_TYPE` and :data:`_CODING` tell something of the body;
        None when it does not read as a header block."""
        at, told = 0, set[int]()
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = _integer(block, at, 7)
                    if not index:
                        return None
                    field = self._field(index)
                elif first & 0xE0 == 0x20:
                    _, at = _integer(block, at, 5)
                    continue
                else:
                    stored = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if stored else 4)
                    if index:
                        name = self._field(index) & ~_TELLS
                    else:
                        huffman, begin, at = _text(block, at)
                        name = _LITERAL_NAMES.get((huffman, bytes(block[begin:at])), _OTHER)
                    huffman, begin, at = _text(block, at)
                    field = self._value(block, name, huffman, begin, at)
                    if stored:
                        self._table.appendleft(field)
                if field & _TELLS:
                    told.add(field & ~_TELLS)
        except IndexError:
            return None
        return told

    def _field(self, index: int) -> int:
        """Of an entry of the header table; of one that is not there, its client will say that."""
        if index <= _STATIC_ENTRIES:
            return _STATIC_NAMES.get(index, _OTHER)
        at = index - _STATIC_ENTRIES - 1
        return self._table[at] if at < len(self._table) else _OTHER

    def _value(self, block: bytearray, name: int, huffman: bool, begin: int, end: int) -> int:
        """What a field is whose value stands there; an offer is overwritten."""
        if name == _OTHER or not (self._offers if name == _ALT_SVC else self._keys):
            return name
        text = bytes(block[begin:end])
        if huffman:
            try:
                text = decode_huffman(text)
            except HPACKDecodingError:
                raise IndexError from None
        if name == _ALT_SVC:
            if _QUIC_OFFER.search(text):
                block[begin:end] = _blanked(end - begin, huffman)
            return name
        tells = _DNS_TYPE.match(text) if name == _TYPE else not _PLAIN_CODING.match(text)
        return name | _TELLS if tells else name


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

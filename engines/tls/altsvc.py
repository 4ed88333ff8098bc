"""Hides offers of HTTP/3 from clients whose QUIC does not get through: without it, each tries and waits. And keys for
Encrypted ClientHello (:mod:`engines.tls.ech`) from clients that ask for DNS answers over HTTP (RFC 8484, or in JSON).

Nothing is encoded anew and no length changes. The value of an ``Alt-Svc`` header that offers QUIC becomes ``clear`` and
blanks, which also takes back what an earlier answer offered; in HPACK that is a Huffman text of the same number of
bytes, put where the old one was, so the client's header table stays that of the server. An ALTSVC frame gets a type
nobody knows, which is ignored (RFC 9113 section 4.1).

An answer is known by its type, or where it has none by how it begins; its body is :mod:`engines.tls.dohbody`'s. In
HTTP/2 names and types are followed through the header table by what was put into it, newest first: no size has to be
known, since nobody names what has fallen out.

Held back are only bytes of an unfinished head (HTTP/1) or header block (HTTP/2), or of an answer. What cannot be
followed in HTTP/1, :mod:`engines.tls.http1mask` sees to. A server that has agreed on HTTP/2 and sends a header block
that cannot be read, or more than is kept, is ``refused``: its client's table would no longer be known either (RFC 9113
section 4.3), and nothing behind it.

Sources: RFC 7838 sections 3 and 4 (Alt-Svc, ALTSVC), RFC 9113 sections 4 and 6 (frames), RFC 7541 sections 5 and 6
(HPACK).
"""

from __future__ import annotations

from collections import deque

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman

from engines.tls.dohbody import BEGIN_MOST, BEGINS, DohBody, answer_body
from engines.tls.http1mask import Http1Mask
from engines.tls.offers import HUFFMAN, JSON, QUIC_OFFER, WIRE, blanked, told_by_coding, told_by_type
from engines.verdict import Direction

BLOCK_MOST = 1 << 18
"""Bytes of a header block's frames: as many as browsers take headers."""
STREAMS_MOST, FRAMES_MOST = 1024, 1 << 20
"""Answers to DNS that have begun on a connection of HTTP/2 and not ended, and bytes of their frames that wait. As many
that may be answers are waited for; of more, the oldest are taken for none."""

_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION, _ALTSVC = 0, 1, 3, 5, 9, 10
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_FRAME_MOST = 65535 + 256  # of an answer: a whole message and padding
_UNKNOWN_TYPE = 0xF0
_STATIC_ENTRIES = 61
_TABLE_MOST = 2048  # entries that are remembered: as many as a table of 64 KB can have
# What a field's name is; from the third bit on, what its value tells of the body.
_OTHER, _ALT_SVC, _TYPE, _CODING, _NAME, _TOLD = 0, 1, 2, 3, 3, 2
_STATIC = [{31: _TYPE, 26: _CODING}.get(index, _OTHER) for index in range(_STATIC_ENTRIES + 1)]  # RFC 7541 appendix A
_LITERAL_NAMES = {
    (huffman, HUFFMAN.encode(name) if huffman else name): kind
    for name, kind in ((b"alt-svc", _ALT_SVC), (b"content-type", _TYPE), (b"content-encoding", _CODING))
    for huffman in (False, True)
}


class AltSvcMask:
    """One per decrypted session; ``alpn`` is what was negotiated, ``offers`` and ``keys`` what is hidden. Feed both
    directions in order."""

    __slots__ = ("_http1", "_http2")

    def __init__(self, alpn: str, *, offers: bool = True, keys: bool = False) -> None:
        self._http1 = Http1Mask(offers, keys) if alpn in ("http/1.1", "http/1.0", "") else None
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
        side = self._http2 if self._http2 is not None else self._http1
        return side.rest() if side is not None and direction is Direction.TO_CLIENT else b""

    @property
    def refused(self) -> str:
        """Why nothing more must go on, in a word; "" while it may."""
        side = self._http2 if self._http2 is not None else self._http1
        return side.refused if side is not None else ""


class _Http2:
    """The frames a server sends. ``refused``: why nothing more must go on; its bytes up to there have."""

    __slots__ = (
        "_at",
        "_buffer",
        "_guesses",
        "_keys",
        "_left",
        "_offers",
        "_pieces",
        "_streams",
        "_table",
        "_waiting",
        "refused",
    )

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._buffer = bytearray()
        self._left = 0  # bytes of a frame's payload that is not looked at
        self._at = 0  # bytes of the buffer that are frames of an unfinished header block
        self._pieces: list[tuple[int, int]] = []  # where in them the block's fragments are
        self._table: deque[int] = deque(maxlen=_TABLE_MOST)  # what was put into the header table, newest first
        self._streams: dict[int, DohBody] = {}  # answers to DNS that have not ended
        self._guesses: dict[int, int] = {}  # what the heads told of bodies that may be, and have not begun
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
            length, kind = int.from_bytes(self._buffer[:3], "big"), self._buffer[3]
            if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
                if not self._block(out):
                    break
                continue
            if kind == _DATA and (self._guesses or self._streams):
                stream = _stream(self._buffer)
                if stream in self._guesses and not self._guessed(stream, length):
                    break
                if stream in self._streams:
                    if length > _FRAME_MOST:
                        self.refused = "http2_dns_frame"
                    elif len(self._buffer) < 9 + length:
                        break
                    else:
                        out += self._answer(stream, length)
                    continue
            elif kind == _RST_STREAM:
                out += self._ended(_stream(self._buffer))
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

    def _answer(self, stream: int, length: int) -> bytes:
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
        if frame[4] & _END_STREAM or body.is_answer is False:
            return self._ended(stream)
        if not body.whole:  # frames go on as they are, whole; those of other streams may overtake them
            self.refused = "http2_dns_held" if self._waiting > FRAMES_MOST else ""
            return b""
        self._waiting -= body.waiting
        return body.taken()

    def _ended(self, stream: int) -> bytes:
        self._guesses.pop(stream, None)
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
        told = self._mask(block)
        if told is None:
            self.refused = "http2_header_block"
            return False
        taken = 0
        for begin, end in self._pieces:
            buffer[begin:end] = block[taken : taken + end - begin]
            taken += end - begin
        self._headers(out, told)
        out += buffer[: self._at]
        del buffer[: self._at]
        self._at = 0
        self._pieces.clear()
        return True

    def _headers(self, out: bytearray, told: int) -> None:
        """What the block at the begin of the buffer says about its stream."""
        if self._buffer[3] != _HEADERS or not self._keys:
            return
        stream = _stream(self._buffer)
        if self._buffer[4] & _END_STREAM:
            out += self._ended(stream)
        elif stream not in self._streams:
            self._guesses.pop(stream, None)  # that was of an interim response
            if told & (WIRE | JSON):
                self._follow(stream, told)
            elif BEGINS[told] is not None:
                if len(self._guesses) >= STREAMS_MOST:
                    del self._guesses[next(iter(self._guesses))]
                self._guesses[stream] = told

    def _follow(self, stream: int, told: int) -> None:
        if len(self._streams) >= STREAMS_MOST:
            self.refused = "http2_dns_streams"
        else:
            self._streams[stream] = answer_body(told)

    def _guessed(self, stream: int, length: int) -> bool:
        """By the DATA frame at hand, whether its stream is an answer. False: more bytes are needed."""
        buffer, begin, end = self._buffer, 9, 9 + length
        if buffer[4] & _PADDED and length:
            begin, end = 10, end - (buffer[9] if len(buffer) > 9 else 0)
        begins = BEGINS[self._guesses[stream]]
        answer = begins(bytes(buffer[begin : min(end, begin + BEGIN_MOST)])) if begins is not None else False
        if answer is None and len(buffer) < 9 + length:
            return False
        told = self._guesses.pop(stream)
        if answer is not False:
            self._follow(stream, told)
        return not self.refused

    def _mask(self, block: bytearray) -> int | None:
        """Overwrite offers in a header block. What it tells of the body (:func:`engines.tls.dohbody.answer_body`); None
        when it does not read as a header block."""
        at, told = 0, 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = (first & 0x7F, at + 1) if first != 0xFF else _integer(block, at, 7)
                    if not index:
                        return None
                    field = _STATIC[index] if index <= _STATIC_ENTRIES else self._field(index)
                elif first & 0xE0 == 0x20:
                    _, at = _integer(block, at, 5)
                    continue
                else:
                    stored = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if stored else 4)
                    if index:
                        name = self._field(index) & _NAME
                    else:
                        huffman, begin, at = _text(block, at)
                        name = _LITERAL_NAMES.get((huffman, bytes(block[begin:at])), _OTHER)
                    huffman, begin, at = _text(block, at)
                    field = self._value(block, name, huffman, begin, at)
                    if stored:
                        self._table.appendleft(field)
                told |= field >> _TOLD
        except IndexError:
            return None
        return told

    def _field(self, index: int) -> int:
        """Of an entry of the header table; of one that is not there, its client will say that."""
        if index <= _STATIC_ENTRIES:
            return _STATIC[index]
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
            if QUIC_OFFER.search(text):
                block[begin:end] = blanked(end - begin, huffman)
            return name
        return name | (told_by_type(text) if name == _TYPE else told_by_coding(text)) << _TOLD


def _stream(frame: bytearray) -> int:
    """RFC 9113 section 4.1: the first bit says nothing."""
    return int.from_bytes(frame[5:9], "big") & 0x7FFFFFFF


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

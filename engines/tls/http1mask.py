"""Hides offers of HTTP/3 in HTTP/1, and finds the DNS answers.

Requests are followed for what their answers cannot be read without: HEAD, CONNECT, an upgrade. A response goes on when
its head is whole, with the value of ``Alt-Svc`` overwritten; bodies go on as they come.

A server that wants an offer to arrive can try to be read another way here than by the client: what is a body to one is
a head to the other. So only what all clients read alike is followed. From a response on that they do not (its status
line, line ends, lengths, codings, a status that has a body to some), or that is too long or was not asked for,
everything is :mod:`engines.tls.unread`'s. Only what is no HTTP to the client either goes on untouched: behind an
upgrade it asked for, behind CONNECT, and where what it says is no request.

Sources: RFC 9112 sections 2 to 7 and 9.3; what browsers accept: Chromium's net/http/http_util.cc, http_stream_parser.cc
and http_chunked_decoder.cc, Firefox's netwerk/protocol/http/nsHttpTransaction.cpp and nsHttpChunkedDecoder.cpp.
"""

from __future__ import annotations

import re
from collections import deque

from engines.tls.dohbody import BEGINS, DohBody, answer_body
from engines.tls.offers import JSON, QUIC_OFFER, WIRE, blanked, told_by_coding, told_by_type
from engines.tls.unread import UnreadMask
from engines.verdict import Direction

HELD_MOST = 65536
"""Bytes of a head, or of a trailer, that wait for its end."""
_ASKED_MOST = 4096  # requests that wait for their answer
_LINE_MOST = 256  # of a chunk's size
_LONG_LINE = 8192  # of a request that is too long to be kept whole

_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_FIELD = re.compile(
    rb"\n(alt-svc|content-(?:type|length|encoding)|transfer-encoding|upgrade)([ \t]*):([^\r\n]*)"
)  # of a head in small letters
_FOLD = re.compile(rb"\r?\n[ \t]")  # RFC 9112 section 5.2: one line all the same
_HEAD_END = re.compile(rb"\n\r?\n")
_BLANK_LINES = re.compile(rb"(?:\r?\n)+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNKED = re.compile(rb"(?:(?!chunked)[!-+\--~]+[ \t]*,[ \t]*)*chunked")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})[ \r\n]")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST = re.compile(rb"(" + _TOKEN + rb"+) [^\r\n]* HTTP/1\.([01])[ \t]*\r?\n")
_REQUEST_BEGINS = re.compile(_TOKEN + rb"*+(?:\Z| [^\r\n]*(?:\r?\Z| HTTP/1\.[01][ \t]*\r?\n))")
_KEPT = re.compile(rb"(?i)(?:content-length|transfer-encoding|upgrade)[ \t]*:")

_OTHER, _HEAD, _CONNECT, _UPGRADE = range(4)  # what is asked for
_METHODS = {b"HEAD": _HEAD, b"CONNECT": _CONNECT}
_CHUNKS, _UNTIL_CLOSE = -1, -2


class Http1Mask:
    """One connection. ``offers`` and ``keys`` are what is hidden. Feed both directions in order.

    ``refused``: why nothing more goes on; ``http1_dns_chunk``: in an answer with keys, the size of a chunk that not all
    clients read alike."""

    __slots__ = ("_asked", "_keys", "_off", "_offers", "_requests", "_responses", "_unread", "refused")

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._asked: deque[int] = deque()
        self._off = False  # not HTTP
        self._requests = _Requests()
        self._responses = _Responses(offers)
        self._unread: UnreadMask | None = None
        self.refused = ""

    def feed(self, direction: Direction, data: bytes) -> bytes:
        if direction is Direction.TO_SERVER:
            if not self._off and not self._requests.lost:
                self._listen(data)
            return data
        if self.refused:
            return b""
        if self._off:
            return self._responses.rest() + data
        if self._unread is not None:
            return self._unread.feed(data)
        return self._answer(data)

    def rest(self) -> bytes:
        """The server has nothing more to say: what was held back."""
        if self.refused:
            return b""
        return self._responses.rest()

    def _listen(self, data: bytes) -> None:
        side = self._requests
        side.add(data)
        while (head := side.head()) is not None:
            line = _REQUEST.match(head)
            fields = _Fields(head)
            body = fields.body(line[2]) if line else None
            if line is None or body is None or len(self._asked) >= _ASKED_MOST:
                side.lost = True  # answers to what follows were not asked for, as far as anybody here knows
                break
            self._asked.append(_METHODS.get(line[1], _UPGRADE if fields.upgrade else _OTHER))
            side.known = True
            side.go_on(head, head, 0 if body == _UNTIL_CLOSE else body)
        self._off = side.lost and not side.known
        side.out.clear()

    def _answer(self, data: bytes) -> bytes:
        side = self._responses
        side.add(data)
        while not side.lost and (head := side.head()) is not None:
            self._respond(head)
        out = side.taken()
        if self._off:
            return out + side.rest()
        if not side.lost:
            return out
        if side.answer is not None and side.answer.is_answer:
            self.refused = "http1_dns_chunk"
            return out
        self._unread = UnreadMask(self._offers, self._keys)
        return out + side.given_back() + self._unread.feed(side.rest())

    def _respond(self, head: bytes) -> None:
        side = self._responses
        line = _STATUS.match(head)
        if line is None or b"\0" in head or head.count(b"\r") != head.count(b"\r\n"):
            side.lost = True
            return
        status, fields = int(line[2]), _Fields(head)
        masked = fields.masked(head) if self._offers else head
        if status // 100 == 1 and status != 101:
            side.go_on(head, masked, 0)
            return
        asked = self._asked.popleft() if self._asked else None
        if (status == 101 and asked == _UPGRADE) or (asked == _CONNECT and status // 100 == 2):
            side.go_on(head, masked, 0)
            self._off = side.stopped = True
            return
        bodiless = asked == _HEAD or status in (204, 304)
        body = 0 if bodiless else fields.body(line[1])
        if asked is None or body is None or status == 101 or (status == 205 and body):
            side.lost = True
            return
        side.go_on(head, masked, body)
        if self._keys and body:
            told = fields.told()
            if told & (WIRE | JSON) or BEGINS[told] is not None:
                side.answer = answer_body(told)


class _Fields:
    """Those of a head that say something here."""

    __slots__ = ("_codings", "_found", "_lengths", "_offers", "upgrade")

    def __init__(self, head: bytes) -> None:
        plain = head.lower()
        if b"\n " in plain or b"\n\t" in plain:
            plain = _FOLD.sub(lambda fold: b" " * len(fold[0]), plain)  # as long as it was
        self._lengths: list[bytes] = []
        self._codings: list[bytes] = []
        self._offers: list[tuple[int, int]] = []
        self._found: list[tuple[bytes, bytes]] = []
        self.upgrade = False
        for found in _FIELD.finditer(plain):
            name, blanks, value = found.groups()
            if name == b"alt-svc":
                if QUIC_OFFER.search(value):
                    self._offers.append(found.span(3))
            elif name == b"content-length":
                self._lengths.append(value if not blanks else b"")
            elif name == b"transfer-encoding":
                self._codings.append(value if not blanks else b"")
            elif name == b"upgrade":
                self.upgrade = True
            else:
                self._found.append((name, value))

    def masked(self, head: bytes) -> bytes:
        """Without offers, as long as it was."""
        for begin, end in self._offers:
            head = head[:begin] + b" " + blanked(end - begin - 1, False) + head[end:]
        return head

    def body(self, minor: bytes) -> int | None:
        """The bytes behind the head, or :data:`_CHUNKS` or :data:`_UNTIL_CLOSE`; None: clients do not agree. ``minor``:
        of HTTP's version."""
        codings = [coding.strip(b" \t") for coding in self._codings]
        if codings and codings != [b"identity"]:
            return _CHUNKS if len(codings) == 1 and minor == b"1" and _CHUNKED.fullmatch(codings[0]) else None
        lengths = {length.strip(b" \t") for length in self._lengths}
        if not lengths:
            return _UNTIL_CLOSE
        length = lengths.pop()
        return int(length) if not lengths and _LENGTH.fullmatch(length) else None

    def told(self) -> int:
        """See :func:`engines.tls.dohbody.answer_body`."""
        told = 0
        for name, value in self._found:
            told |= told_by_type(value) if name == b"content-type" else told_by_coding(value)
        for coding in self._codings:
            told |= told_by_coding(b"" if coding.strip(b" \t") == b"chunked" else coding)
        return told


class _Messages:
    """Cuts one direction into heads and bodies. ``out``: what may go on, in order. ``lost``: not HTTP that can be
    followed, from what has not gone on. ``stopped``: no head comes any more."""

    __slots__ = (
        "_buffer",
        "_chunk_end",
        "_chunks",
        "_left",
        "_offers",
        "_searched",
        "_until_close",
        "answer",
        "lost",
        "out",
        "stopped",
    )

    def __init__(self, offers: bool = False) -> None:
        self._offers = offers  # are taken out of trailers
        self._buffer = bytearray()
        self._searched = 0  # bytes of it with no end of a head in them
        self._left = 0  # bytes of a body, or of a chunk, still to come
        self._chunks = False  # then a chunk's size follows, else a head
        self._chunk_end = False  # but first the line end behind a chunk
        self._until_close = False
        self.answer: DohBody | None = None  # the body is a DNS message, or may be
        self.out: list[bytes] = []
        self.lost = self.stopped = False

    def add(self, data: bytes) -> None:
        if self.answer is None and not self._buffer and (self._until_close or self._left >= len(data) > 0):
            self._left -= 0 if self._until_close else len(data)  # inside a body: the usual case
            self._chunk_end = self._chunks and not self._left
            self.out.append(data)
        else:
            self._buffer += data

    def head(self) -> bytes | None:
        """The next head, its empty line included; None until there is one."""
        while not (self.lost or self.stopped):
            if self.answer is not None and not (self._left or self._chunks or self._until_close):
                self.out.append(self.given_back())
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

    def given_back(self) -> bytes:
        """What an answer held back: nothing more of it comes."""
        held = self.answer.end() if self.answer is not None else b""
        self.answer = None
        return held

    def rest(self) -> bytes:
        """What was held back."""
        rest = self.given_back() + bytes(self._buffer)
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
            return len(data)
        self.answer.content(data)
        self.out.append(self.answer.taken())
        if self.answer.is_answer is False:
            self.out.append(self.given_back())
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
        found = _HEAD_END.search(self._buffer, max(self._searched - 2, 0))
        self._searched = 0 if found else len(self._buffer)
        if found is not None:
            return bytes(self._buffer[: found.end()])
        self.lost = not self._begins()
        if len(self._buffer) > HELD_MOST:
            self._shorten()
        return None

    def _begins(self) -> bool:
        """What is there may become a head."""
        raise NotImplementedError

    def _shorten(self) -> None:
        """What is there became too long."""
        self.lost = True

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
        self._framing(_Fields(trailer).masked(trailer) if self._offers else trailer)
        self._chunks = False
        return True


class _Responses(_Messages):
    __slots__ = ()

    def _begins(self) -> bool:
        return b"HTTP/1.".startswith(self._buffer[:7])


class _Requests(_Messages):
    """``known``: there was one."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        super().__init__()
        self.known = False

    def _begins(self) -> bool:
        return _REQUEST_BEGINS.match(self._buffer) is not None

    def _shorten(self) -> None:
        """Pages can make their browser ask with a path, or fields, of any length. Of these the middle is not needed."""
        first, *lines = bytes(self._buffer).split(b"\n")
        kept = [first, *filter(_KEPT.match, lines[:-1]), *lines[-1:]]
        self._buffer[:] = b"\n".join(line if len(line) <= _LONG_LINE else _ends(line) for line in kept)
        self._searched = 0
        self.lost = self.lost or len(self._buffer) > HELD_MOST // 2


def _ends(line: bytes) -> bytes:
    return line[: _LONG_LINE // 4] + line[-_LONG_LINE // 4 :]

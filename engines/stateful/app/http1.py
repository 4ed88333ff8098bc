"""HTTP/1: two half-connections of pipelined messages, read as leniently as libhtp reads them.

Promise: every byte is looked at once; nothing raises; a head is never judged before it is complete. Where messages
disagree with RFC 9112 the reading is the one browsers and libhtp share, and an event says so; where a request would
have to be guessed at the parser gives up, because the server behind might guess otherwise.

Theory of operation. Each side is in one state, and a state is a method that takes (side, data, position) and returns
the position it has read up to::

    line ──► fields ─┬──► body_length ──────────────────────────────────────┬──► line
      ▲              ├──► chunk_size ──► chunk_data ──► chunk_end ──┐        │
      │              │        ▲  └──────► trailer ──────────────────┼───────►│
      │              │        └─────────────────────────────────────┘        │
      │              ├──► until_close ───────────────────────────────────────┤
      │              └──► unlikely_body ──► one of the above, if it comes ───┘
      └── refused ───┴──► connect_wait ──► tunnel

Where clients read the framing of a response in two ways, rules see both bodies: the one of the states above and, in
``Head.other``, the bytes as they are.

Left out: partial content put together from ranges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from engines.stateful.app import http1_syntax as syntax
from engines.stateful.app.bodies import Body
from engines.stateful.app.frames import GrowingFrame
from engines.stateful.app.http_transaction import Head, HttpTransaction, parse_fields
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser
from engines.stateful.app.uri import is_host
from engines.verdict import Direction

_FRAMES = ("frame.http1.request", "frame.http1.response")
_State = Callable[
    ["Http1Parser", "_Side", bytes, int], int
]  # not bound: a parser that held itself would be left to the collector


class _Side:
    """One direction of the connection."""

    __slots__ = (
        "body",
        "buffer",
        "direction",
        "fed",
        "frame",
        "hold",
        "last",
        "left",
        "line",
        "other",
        "skip",
        "state",
        "tx",
    )

    def __init__(self, direction: Direction, state: _State) -> None:
        self.direction = direction
        self.state = state
        self.buffer = bytearray()  # an incomplete line or head, at most AppLimits.head
        self.line = b""  # the start line whose fields are being collected
        self.fed = 0  # bytes seen before the data being parsed
        self.frame: GrowingFrame | None = None  # the message as on the wire, where rules ask
        self.hold = -1  # offset in the stream from which nothing may leave; -1: nothing held
        self.left = 0  # bytes of the current body or chunk still to come
        self.tx: HttpTransaction | None = None
        self.last: HttpTransaction | None = None  # whose response was complete last
        self.body: Body | None = None
        self.other: Body | None = None  # gets the same bytes with their framing, see Head.other
        self.skip = b""  # a line end that still belongs to the head, if it comes


class Http1Parser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`.

    ``hold_body``: hold a message until its inspected body is complete too (or as much of it as rules can see), except
    after ``Expect: 100-continue``, when the client waits for an answer to its head.
    """

    name = "http"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._hold_body = hold_body
        self._sides = (_Side(Direction.TO_SERVER, Http1Parser._line), _Side(Direction.TO_CLIENT, Http1Parser._line))
        self._waiting: deque[HttpTransaction] = deque()  # requests whose response is not complete
        self._unparsed = [b"", b""]

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        size = len(data)
        if side.left > size and not (self.gave_up or side.skip or side.other or side.frame or self._sides[0].line):
            # The middle of a body, as most of what is transferred: no state can change.
            side.left -= size
            if side.body is not None and not side.body.full:
                self._inspect(side, data)
            else:
                self._take_body(side, data, 0, size)
        elif not self.gave_up and not self.tunnel:
            if direction is Direction.TO_CLIENT and self._sides[0].state == Http1Parser._short_line:
                self._short_request(self._sides[0])  # it was answered, so it was complete
            self._run(side, data)
        side.fed += size

    def close(self, direction: Direction) -> None:
        if self.gave_up or self.tunnel:
            return
        side = self._sides[direction]
        if side.state == Http1Parser._line and direction is Direction.TO_CLIENT:
            self._headless_buffer(side)
        elif side.state == Http1Parser._short_line:
            self._short_request(side)
        elif side.state == Http1Parser._junk_line:
            line, side.line = side.line, b""
            self._headless(side, line)
        elif side.state == Http1Parser._fields:
            self._fields(side, b"\n\n", 0)  # what there is of the head counts
        elif side.state == Http1Parser._chunk_size and direction is Direction.TO_CLIENT:
            rest = bytes(side.buffer)
            if rest.strip(syntax.SPACE + b"0123456789abcdefABCDEF"):
                self._inspect(side, rest)
        elif side.state == Http1Parser._unlikely_body and side.tx is not None:
            rest = bytes(side.buffer)
            side.buffer.clear()
            if rest:
                self._unlikely_begins(side, side.tx)
                self._run(side, rest)
            else:
                self._message_end(side)
        if side.tx is not None:
            if side.state != Http1Parser._until_close:
                side.tx.add_event("incomplete_body")
            other = side.other
            self._message_end(side)
            if other is not None:
                self._inspect_other(side, other, b"")
        side.hold = -1
        if direction is Direction.TO_CLIENT:
            for tx in self._waiting:
                tx.finish(direction)
            self._waiting.clear()

    def held(self, direction: Direction) -> int:
        side = self._sides[direction]
        return 0 if side.hold < 0 or self.gave_up or self.tunnel else side.fed - side.hold

    def unparsed(self, direction: Direction) -> bytes:
        return self._unparsed[direction]

    def _run(self, side: _Side, data: bytes) -> None:
        position, size = 0, len(data)
        while position < size:
            if side.skip:
                position = _skip(side, data, position)
                continue
            other, start, frame = side.other, position, side.frame
            position = side.state(self, side, data, position)
            if frame is not None:
                frame.extend(data[start:position])
            if other is not None:
                self._inspect_other(side, other, data[start:position])
            if self.gave_up:
                return
            if self.tunnel:
                self._unparsed[side.direction] += data[position:]
                return

    # --- heads -------------------------------------------------------------------------------------------------------

    def _line(self, side: _Side, data: bytes, position: int) -> int:
        """The start line, or what came instead of one."""
        if not side.buffer:
            blank = syntax.BLANK[side.direction]
            # Empty lines between messages: RFC 9112, section 2.2, and what is left of odd chunk ends.
            while data[position] in blank:
                position += 1
                if position == len(data):
                    return position
            side.hold = side.fed + position
        if side.direction is Direction.TO_CLIENT and not self._waiting and len(side.buffer) < 4:
            known = bytes(side.buffer)
            if not syntax.may_be_status_line((known + data[position : position + 4])[:4]):
                # Nobody waits for a response and this is none: no need to see the whole line.
                side.buffer.clear()
                self._headless(side, known)
                return position
        line, position = self._take_line(side, data, position, self._limits.head)
        if line is None:
            if side.direction is Direction.TO_CLIENT and len(side.buffer) >= syntax.LONG_JUNK:
                self._headless_buffer(side)
            if len(side.buffer) > self._limits.field:
                self._field_too_long(side)
            return position
        if side.direction is Direction.TO_SERVER:
            line = line.rstrip(syntax.LINE_END)
            if syntax.find_protocol(line) is None:
                side.line = line
                side.state = Http1Parser._short_line
                return position
        elif not syntax.is_status_line(line):
            if line.strip(syntax.LINE_END):
                side.line = line
                side.state = Http1Parser._junk_line
            else:
                side.hold = -1  # a line of spaces is passed over (libhtp htp_connp_is_line_ignorable)
            return position
        side.line = line
        side.state = Http1Parser._fields
        if side.direction is Direction.TO_SERVER and self._limits.lines_alone:
            parts = _request_parts(line, [])
            self._expect_request(side).set_line(Head(line.lstrip(syntax.SPACE), parts, {}, b""))
        if position == len(data):
            side.buffer += b"\n"
        return position

    def _short_line(self, side: _Side, data: bytes, position: int) -> int:
        """A request line without protocol: HTTP/0.9, or a protocol forgotten when fields follow (libhtp REQ_PROTOCOL).
        Servers differ about the second, so the line waits for the bytes that tell."""
        buffer = side.buffer
        following = bytes(buffer) + data[position : position + syntax.FIELD_NAME_SIZE]
        if syntax.FIELD_NAME.match(following):
            side.state = Http1Parser._fields
            buffer[:0] = b"\n"
            return position
        if len(following) < syntax.FIELD_NAME_SIZE and syntax.FIELD_NAME_SO_FAR.fullmatch(following):
            buffer += data[position:]
            return len(data)
        waiting = bytes(buffer).lstrip(syntax.BLANK[0])
        self._short_request(side)
        side.buffer += waiting
        if side.buffer:
            side.hold = side.fed + position - len(side.buffer)
        return position

    def _junk_line(self, side: _Side, data: bytes, position: int) -> int:
        """Not a status line. It is skipped when one seems to follow, and is the body otherwise (libhtp RES_LINE)."""
        line, side.line = side.line, b""
        side.state = Http1Parser._line
        if data[position] in b"Hh":
            self._expect_response(side).add_event("response_invalid_protocol")
        else:
            self._headless(side, line)
        return position

    def _fields(self, side: _Side, data: bytes, position: int) -> int:
        """Everything to the empty line. What is searched begins with the line end of the start line, since the empty
        line may follow at once: it is the byte before ``position`` or, after a feed that ended there, in ``buffer``."""
        buffer, limit = side.buffer, self._limits.field
        if buffer:
            known = len(buffer)
            buffer += data[position:]
            end = syntax.find_head_end(side.direction, buffer, 0, max(known - syntax.HEAD_END_SIZE, 0))
            block = b"" if end is None else bytes(buffer[1 : end.end()])
            position -= known
        else:
            end = syntax.find_head_end(side.direction, data, position - 1, position - 1)
            if end is None:
                buffer += data[position - 1 :]
                block = b""
            else:
                block = data[position : end.end()]
                position = 0
        if len(block or buffer) + len(side.line) > self._limits.head:
            self.give_up(f"{_side_name(side)}_header_too_long")
            return len(data)
        if end is None:
            if len(buffer) > limit and buffer.rfind(b"\n", len(buffer) - limit - 1) < 0:
                self._field_too_long(side)
            return len(data)
        if len(block) > limit and any(len(line) > limit for line in block.split(b"\n")):
            self._field_too_long(side)
        position += end.end()
        buffer.clear()
        line, side.line = side.line, b""
        side.state = Http1Parser._line
        if side.direction is Direction.TO_SERVER:
            self._request(side, line, block)
        else:
            if end.start(1) >= 0:
                side.skip = b"\r\n"  # libhtp takes LF CR CR LF CR LF for two line ends
            self._response(side, line, block)
        return position

    def _short_request(self, side: _Side) -> None:
        """HTTP/0.9: the line is all there is."""
        line, side.line = side.line.lstrip(syntax.SPACE), b""
        method, _, target = line.partition(b" ")
        tx = self._new_request(side, Head(line, (method, target.strip(syntax.SPACE), b""), {}, b""))
        tx.add_event("request_line_missing_protocol")
        self._message_end(side)

    def _headless_buffer(self, side: _Side) -> None:
        """An incomplete line, unless it still may become a status line."""
        data = bytes(side.buffer)
        if data and not syntax.is_status_line(data):
            side.buffer.clear()
            self._headless(side, data)

    def _headless(self, side: _Side, data: bytes) -> None:
        """A response without a head: browsers show it as it is, until the connection closes, and so does libhtp."""
        last = side.last
        if not self._waiting and last is not None and last.response is not None and last in self.transactions:
            # Nobody asked for more: the length before it was wrong, and this is the rest of the last body.
            last.add_event("response_body_unexpected")
            side.tx = last
            self._start_body(side, last, Http1Parser._until_close)
            self._until_close(side, data, 0)
            return
        tx = self._expect_response(side)
        tx.add_event("response_without_head")
        tx.set_head(side.direction, Head(b"", (b"", b"", b""), {}, b""))
        self._start_body(side, tx, Http1Parser._until_close)
        self._until_close(side, data, 0)

    def _request(self, side: _Side, line: bytes, block: bytes) -> None:
        events: list[str] = []
        parts = _request_parts(line, events)
        method = parts[0]
        head = Head(line.lstrip(syntax.SPACE), parts, parse_fields(block, events), block)
        tx = self._new_request(side, head)
        self._open_frame(side, line, block)
        for event in events:
            tx.add_event(event)
        if self.gave_up:
            return
        self._check_host(tx, head)
        if method == b"CONNECT":
            self._message_end(side)
            side.state = Http1Parser._connect_wait
            return

        coding = head.value(b"transfer-encoding")
        length = head.value(b"content-length")
        if coding is not None:
            if b"chunked" in coding.lower():
                if length is not None:
                    tx.add_event("request_smuggling")
                self._start_body(side, tx, Http1Parser._chunk_size)
                return
            tx.add_event("invalid_transfer_encoding_value_in_request")
        if length is None:
            self._message_end(side)
            return
        size = _content_length(length, tx, "request")
        if size is None:
            self.give_up("invalid_content_length_field_in_request")
        elif size:
            side.left = size
            self._start_body(side, tx, Http1Parser._body_length)
        else:
            self._message_end(side)

    def _open_frame(self, side: _Side, line: bytes, block: bytes) -> None:
        """A message begins with this head."""
        name = _FRAMES[side.direction]
        if name in self._limits.frames:
            room = self._limits.head + (self._limits.response_body if side.direction else self._limits.request_body)
            side.frame = GrowingFrame(self.take_id(), side.direction, name, room)
            side.frame.extend(line + b"\r\n" + block)
            self.transactions.append(side.frame)

    def _new_request(self, side: _Side, head: Head) -> HttpTransaction:
        tx = self._expect_request(side)
        if len(self._waiting) > self._limits.pipelined:
            self.give_up("too_many_pipelined_requests")
        tx.set_head(side.direction, head)
        return tx

    def _expect_request(self, side: _Side) -> HttpTransaction:
        """The transaction of the request whose head is coming."""
        if side.tx is None:
            side.tx = HttpTransaction(self.take_id())
            self._waiting.append(side.tx)
            self.transactions.append(side.tx)
        return side.tx

    def _field_too_long(self, side: _Side) -> None:
        """Said before the head is complete, because some never are."""
        tx = self._expect_response(side) if side.direction else self._expect_request(side)
        event = f"{_side_name(side)}_field_too_long"
        if event not in tx.events:
            tx.add_event(event)
            tx.touch(side.direction)

    def _check_host(self, tx: HttpTransaction, head: Head) -> None:
        if tx.target.double_encoded:
            tx.add_event("double_encoded_uri")
        if tx.target.host is not None and not is_host(tx.target.host):
            tx.add_event("request_uri_host_invalid")
        authorization = head.value(b"authorization")
        if authorization is not None and not authorization.lower().startswith((b"basic", b"digest", b"bearer")):
            tx.add_event("request_auth_unrecognized")
        field = head.fields.get(b"host")
        if field is not None and not is_host(field[1]):
            tx.add_event("request_header_host_invalid")
        if field is None:
            if tx.target.host is None and not head.third.endswith((b"/1.0", b"/0.9")):
                tx.add_event("missing_host_header")
        elif tx.target.host is not None and tx.target.host.lower() != field[1].lower():
            tx.add_event("host_header_ambiguous")

    def _response(self, side: _Side, line: bytes, block: bytes) -> None:
        events: list[str] = []
        found = syntax.STATUS_LINE.match(line)
        assert found is not None  # the caller looked for it
        line = line[found.start(1) :].rstrip(syntax.LINE_END)
        if b"\r" in line or syntax.BARE_CR.search(block):
            # Browsers end lines at a bare CR as well.
            line, _, more = line.partition(b"\r")
            block = syntax.BARE_CR.sub(b"\r\n", (more + b"\r\n" if more else b"") + block)
            events.append("response_bare_cr")
        parts = syntax.RESPONSE_LINE.fullmatch(line)
        assert parts is not None  # it starts as the other expression found
        protocol, status = parts[1].upper(), parts[2]
        fields = parse_fields(block, events, "response", split_folds=protocol == b"HTTP/1.1")
        head = Head(line, (parts[1], status, parts[3].strip(syntax.SPACE)), fields, block)
        tx = self._expect_response(side)
        if not syntax.PROTOCOL_VERSION.fullmatch(protocol):
            events.append("response_invalid_protocol")
        if not syntax.STATUS.fullmatch(status):
            events.append("response_invalid_status")
        for event in events:
            tx.add_event(event)
        request = tx.request
        if status.startswith(b"1") and len(status) == 3 and not (status == b"101" and _asked_for_upgrade(request)):
            # An interim answer: the one that counts is still to come (RFC 9110, section 15.2).
            if status == b"101":
                tx.add_event("unexpected_switching_protocols")
            side.tx, side.hold = None, -1
            return
        tx.set_head(side.direction, head)
        self._open_frame(side, line, block)
        method = b"" if request is None else request.first
        if status == b"101" or (method == b"CONNECT" and status.startswith(b"2") and len(status) == 3):
            self._message_end(side)
            if status == b"101" and _upgrades_to(head, b"websocket"):
                self.carries = "websocket"
            self._open_tunnel()
            return
        if method == b"CONNECT":
            self._connect_refused()
        framed = head.value(b"transfer-encoding") is not None or head.value(b"content-length") is not None
        if method == b"HEAD" or (status in {b"204", b"304"} and not framed):
            self._message_end(side)
        elif status in {b"204", b"304"}:
            side.hold = -1
            side.state = Http1Parser._unlikely_body
        else:
            self._response_body(side, tx, head, bool(events))

    def _unlikely_body(self, side: _Side, data: bytes, position: int) -> int:
        """After 204 and 304 there is none by the rules (RFC 9112, section 6.3), and yet some browsers show what comes
        as libhtp does; after a length that clients read differently more of it may come. It is body unless a response
        follows, which only its first bytes can tell."""
        tx = side.tx
        assert tx is not None
        known = len(side.buffer)
        side.buffer += data[position : position + 4 - known]
        start = bytes(side.buffer)
        if len(start) < 4 and b"HTTP".startswith(start.upper()):
            return len(data)
        side.buffer.clear()
        if start.upper() == b"HTTP":
            self._message_end(side)
        else:
            self._unlikely_begins(side, tx)
        # What was kept of earlier data comes first.
        if known:
            side.fed -= known
            self._run(side, start[:known])
            side.fed += known
        return position

    def _unlikely_begins(self, side: _Side, tx: HttpTransaction) -> None:
        head = tx.response
        assert head is not None
        tx.add_event("response_body_unexpected")
        if side.body is None:
            self._response_body(side, tx, head, doubt=False)
        else:
            side.state = Http1Parser._until_close

    def _response_body(self, side: _Side, tx: HttpTransaction, head: Head, doubt: bool) -> None:
        """What the fields say about the body. ``doubt``: not every client reads them like that."""
        coding = head.value(b"transfer-encoding")
        length = head.value(b"content-length")
        if coding is not None and b"chunked" in coding.lower():
            if length is not None:
                tx.add_event("response_smuggling")
            if coding.lower() != b"chunked":
                tx.add_event("response_abnormal_transfer_encoding")
                doubt = True
            if head.first.upper() in syntax.OLD_PROTOCOLS:
                tx.add_event("response_chunked_old_proto")
                doubt = True
            self._start_body(side, tx, Http1Parser._chunk_size)
            if doubt:
                self._doubt(side, tx)
            return
        if coding is not None:
            tx.add_event("invalid_transfer_encoding_value_in_response")
        if length is None:
            self._start_body(side, tx, Http1Parser._until_close)
            return
        size = _content_length(length, tx, "response")
        if size is None:
            self._start_body(side, tx, Http1Parser._until_close)
        elif size:
            side.left = size
            sure = syntax.DOUBTFUL_LENGTHS.isdisjoint(tx.events)
            self._start_body(side, tx, Http1Parser._body_length if sure else Http1Parser._doubtful_length)
        else:
            self._message_end(side)

    def _expect_response(self, side: _Side) -> HttpTransaction:
        """The transaction the next response belongs to; made up when nobody asked."""
        if side.tx is None:
            if not self._waiting:
                tx = HttpTransaction(self.take_id())
                tx.add_event("unable_to_match_response_to_request")
                tx.finish(Direction.TO_SERVER)
                self._waiting.append(tx)
                self.transactions.append(tx)
            side.tx = self._waiting[0]
        return side.tx

    # --- bodies ------------------------------------------------------------------------------------------------------

    def _start_body(self, side: _Side, tx: HttpTransaction, state: _State) -> None:
        side.body = tx.open_body(side.direction, self._limits)
        side.state = state
        head = tx.request
        waits = side.direction is Direction.TO_SERVER and head is not None and head.value(b"expect") is not None
        if not self._hold_body or waits or side.body.full:
            side.hold = -1

    def _inspect(self, side: _Side, data: bytes) -> None:
        body, tx = side.body, side.tx
        assert body is not None
        assert tx is not None
        if body.full:
            body.skip(len(data))
            return
        full = body.feed(data)
        tx.body_changed(side.direction, body)
        if full:
            side.hold = -1

    def _doubt(self, side: _Side, tx: HttpTransaction) -> None:
        """From here on some clients may see the bytes as they are, chunk sizes included: keep both readings."""
        if side.other is None:
            side.other = tx.second_reading(self._limits)

    def _inspect_other(self, side: _Side, other: Body, data: bytes) -> None:
        ended = side.other is not other
        tx = side.last if ended else side.tx
        assert tx is not None
        if data and not other.full:
            other.feed(data)
        if ended:
            other.finish()
        tx.body_changed(side.direction, other)

    def _body_length(self, side: _Side, data: bytes, position: int) -> int:
        end = min(position + side.left, len(data))
        side.left -= end - position
        self._take_body(side, data, position, end)
        if not side.left:
            self._message_end(side)
        return end

    def _doubtful_length(self, side: _Side, data: bytes, position: int) -> int:
        end = min(position + side.left, len(data))
        side.left -= end - position
        self._take_body(side, data, position, end)
        if not side.left:
            side.state = Http1Parser._unlikely_body
        return end

    def _until_close(self, side: _Side, data: bytes, position: int) -> int:
        self._take_body(side, data, position, len(data))
        return len(data)

    def _take_body(self, side: _Side, data: bytes, position: int, end: int) -> None:
        # Most bytes of a large transfer pass here: nothing is copied that nobody looks at.
        body = side.body
        assert body is not None
        if body.full:
            body.length += end - position
        elif position or end != len(data):
            self._inspect(side, data[position:end])
        else:
            self._inspect(side, data)

    def _chunk_size(self, side: _Side, data: bytes, position: int) -> int:
        tx = side.tx
        assert tx is not None
        if side.direction is Direction.TO_CLIENT and syntax.NOT_CHUNK.match(
            bytes(side.buffer[:64]) + data[position : position + 64]
        ):
            return self._not_chunked(side, tx, data, position)
        line, position = self._take_line(side, data, position, self._limits.chunk_line)
        if line is None:
            return position
        parts = syntax.CHUNK_SIZE.match(line)
        assert parts is not None
        digits, rest = parts[1], parts[2].strip()
        if not digits and not rest:
            return position  # an empty line where a size should be: go on with the next, as libhtp does
        if rest:
            tx.add_event(f"{_side_name(side)}_chunk_extension")
        size = int(digits, 16) if 0 < len(digits.lstrip(b"0") or b"0") <= 8 and digits else -1
        if 0 <= size <= syntax.MAX_CHUNK:
            side.left = size
            side.state = Http1Parser._chunk_data if size else Http1Parser._trailer
        elif side.direction is Direction.TO_SERVER:
            self.give_up("invalid_request_chunk_len")
        else:
            tx.add_event("invalid_response_chunk_len")
            side.state = Http1Parser._until_close
            self._inspect(side, line)
        return position

    def _not_chunked(self, side: _Side, tx: HttpTransaction, data: bytes, position: int) -> int:
        """Transfer-Encoding lied: the rest is the body as it is, until the connection closes (libhtp)."""
        tx.add_event("invalid_response_chunk_len")
        side.state = Http1Parser._until_close
        empty = syntax.EMPTY_LINES.match(data, position)
        if empty:
            side.buffer.clear()
            return empty.end()
        if side.buffer:
            buffered = bytes(side.buffer)
            side.buffer.clear()
            self._inspect(side, buffered)
        return position

    def _chunk_data(self, side: _Side, data: bytes, position: int) -> int:
        end = min(position + side.left, len(data))
        side.left -= end - position
        self._take_body(side, data, position, end)
        if not side.left:
            side.state = Http1Parser._chunk_end
        return end

    def _chunk_end(self, side: _Side, data: bytes, position: int) -> int:
        """Whatever stands before the line end that should follow a chunk at once is ignored, as libhtp does."""
        tx = side.tx
        assert tx is not None
        if side.other is None and side.direction is Direction.TO_CLIENT:
            junk = syntax.CHUNK_END_SPACE.match(data, position)
            assert junk is not None  # it may be empty
            position = junk.end()
            if position < len(data) and data[position] != 0x0A:
                # Not by everybody: it can be content, or the size of the next chunk.
                self._doubt(side, tx)
                tx.add_event("invalid_response_chunk_len")
                return position
        end = data.find(b"\n", position)
        if end < 0:
            return len(data)
        side.state = Http1Parser._chunk_size
        return end + 1

    def _trailer(self, side: _Side, data: bytes, position: int) -> int:
        line, position = self._take_line(side, data, position, self._limits.chunk_line)
        if line is not None and not line.strip(b"\r\n"):
            self._message_end(side)
        return position

    def _take_line(self, side: _Side, data: bytes, position: int, limit: int) -> tuple[bytes | None, int]:
        """The next line with its end, or None when it is not complete."""
        end = data.find(b"\n", position) + 1
        if not end:
            side.buffer += data[position:]
            if len(side.buffer) > limit:
                self.give_up(f"{_side_name(side)}_line_too_long")
            return None, len(data)
        line = data[position:end]
        if side.buffer:
            line = bytes(side.buffer) + line
            side.buffer.clear()
        return line, end

    def _message_end(self, side: _Side) -> None:
        tx, body = side.tx, side.body
        assert tx is not None
        if body is not None:
            body.finish()
            tx.body_changed(side.direction, body)
        tx.finish(side.direction)
        if side.frame is not None:
            side.frame.end()
            side.frame = None
        side.tx, side.body, side.other, side.hold, side.last = None, None, None, -1, tx
        side.buffer.clear()
        side.state = Http1Parser._line
        if side.direction is Direction.TO_CLIENT and self._waiting and self._waiting[0] is tx:
            self._waiting.popleft()

    # --- tunnels -----------------------------------------------------------------------------------------------------

    def _connect_wait(self, side: _Side, data: bytes, position: int) -> int:
        """After CONNECT nobody knows what the bytes are until the proxy has answered; they wait with the verdict."""
        if side.hold < 0:
            side.hold = side.fed + position
        side.buffer += data[position:]
        if len(side.buffer) > self._limits.head:
            self.give_up("connect_without_answer")
        return len(data)

    def _open_tunnel(self) -> None:
        self.tunnel = True
        for side in self._sides:
            side.hold = -1
        client = self._sides[Direction.TO_SERVER]
        self._unparsed[Direction.TO_SERVER] = client.line + bytes(client.buffer[1 if client.line else 0 :])

    def _connect_refused(self) -> None:
        """The bytes after a refused CONNECT are requests after all."""
        side = self._sides[Direction.TO_SERVER]
        if side.state != Http1Parser._connect_wait:
            return
        waiting = bytes(side.buffer)
        side.buffer.clear()
        side.state, side.hold = Http1Parser._line, -1
        if waiting:
            side.fed -= len(waiting)
            self._run(side, waiting)
            side.fed += len(waiting)


def _side_name(side: _Side) -> str:
    return "response" if side.direction else "request"


def _skip(side: _Side, data: bytes, position: int) -> int:
    if data[position] != side.skip[0]:
        side.skip = b""
        return position
    side.skip = side.skip[1:]
    return position + 1


def _asked_for_upgrade(request: Head | None) -> bool:
    return request is not None and b"upgrade" in request.fields


def _request_parts(line: bytes, events: list[str]) -> tuple[bytes, bytes, bytes]:
    """Method, target and protocol of a request line; ``events`` gets what was odd."""
    if line[:1] in {b" ", b"\t"}:
        events.append("request_line_leading_whitespace")
    line = line.lstrip(syntax.SPACE)
    method, _, rest = line.partition(b" ")
    if b"\t" in method:
        method, _, rest = line.partition(b"\t")
        events.append("method_delim_non_compliant")
    # libhtp with allow_space_uri: the protocol is what follows the last space.
    at = syntax.find_protocol(b" " + rest)
    if at is None:
        events.append("request_line_missing_protocol")
        return method, rest.strip(syntax.SPACE), b""
    return method, rest[: max(at - 1, 0)].strip(syntax.SPACE), rest[at:]


def _upgrades_to(answer: Head, protocol: bytes) -> bool:
    """RFC 9110 section 7.8: the answer names what the connection speaks from here on."""
    value = answer.value(b"upgrade")
    return value is not None and value.strip().lower() == protocol


def _content_length(value: bytes, tx: HttpTransaction, side: str) -> int | None:
    """A number of bytes, or None. Responses as libhtp reads them: the first digits, whatever is around them. Requests
    only when there is nothing to guess: the server behind may read "12, 13", "+12" or "0x12" in its own way."""
    if value.isdigit() and len(value) <= 18:
        return int(value)
    tx.add_event(f"invalid_content_length_field_in_{side}")
    digits = syntax.DIGITS.search(value)
    if side == "request" or digits is None or len(digits[0]) > 18:
        return None
    return int(digits[0])

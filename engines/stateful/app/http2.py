"""HTTP/2: frames into streams, streams into the same transactions and ``http.*`` buffers that HTTP/1 has.

Promise: frames are read in place and DATA is never collected beyond what rules can see; header blocks, streams and the
HPACK tables are bounded; nothing raises. A block that cannot be decoded ends the parsing, because the compression state
of everything after it is lost.

Names are lower-case as on the wire, and the pseudo fields are part of ``http.header`` and its kin (as in Suricata).

What frames say otherwise (``http2.frametype`` and its kin) is kept where rules ask for it: on the stream's transaction
when the side has one, else as a transaction of its own.

WebSocket over a stream (RFC 8441): its frames are transactions of a parser inside this one, and a frame is held until
it is whole, up to ``AppLimits.http2_held`` bytes. What its messages say is also seen as the stream's bodies, unmasked
and decompressed; these are not held, since such a body ends with the conversation.

Left out: flow control and the order of frames, which the end points enforce; other protocols of an extended CONNECT,
whose data is seen as it is.

Source: RFC 9113, sections 4, 6 and 8; RFC 7541 by hpack.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable

from hpack import Decoder
from hpack.exceptions import HPACKError

from engines.stateful.app import Transaction, doh
from engines.stateful.app import http2_frames as frames
from engines.stateful.app.bodies import Body
from engines.stateful.app.http_transaction import Fields, Head, HttpTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser
from engines.stateful.app.websocket import WebSocketParser, WebSocketTransaction
from engines.verdict import Direction

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _RST_STREAM, _SETTINGS = frames.DATA, frames.HEADERS, frames.RST_STREAM, frames.SETTINGS
_PUSH_PROMISE, _CONTINUATION = frames.PUSH_PROMISE, frames.CONTINUATION
_IN_BLOCK = frozenset({_HEADERS, _PUSH_PROMISE, _CONTINUATION})
_END_STREAM, _END_HEADERS = 0x1, 0x4
_ACK, _PADDED, _PRIORITY = frames.FLAG_ACK, frames.FLAG_PADDED, frames.FLAG_PRIORITY
_HEADER_TABLE_SIZE = 1
_DEFAULT_TABLE = 4096  # RFC 9113, section 6.5.2
_MAX_CONTINUATIONS = 64  # a block of AppLimits.head fits in five frames of the default size; more is the 2024 flood
_MAX_CONTROL = 16384 * 2  # SETTINGS and the like are a few dozen bytes
_SETTING = struct.Struct("!HI")


class _Stream:
    """``hold``: by direction, the offset from which its bytes may not leave, or -1. ``frame``: that of an unfinished
    frame of WebSocket."""

    __slots__ = ("bodies", "ended", "frame", "frames", "hold", "tx")

    def __init__(self, tx: HttpTransaction) -> None:
        self.tx = tx
        self.bodies: list[Body | None] = [None, None]
        self.ended = [False, False]
        self.hold = [-1, -1]
        self.frame = [-1, -1]
        self.frames: WebSocketParser | None = None  # its data are frames of WebSocket


class _Side:
    """One direction of the connection: where its frame reader is."""

    __slots__ = (
        "block",
        "block_flags",
        "block_frames",
        "block_start",
        "block_stream",
        "block_values",
        "buffer",
        "data_end",
        "data_left",
        "data_padding",
        "data_stream",
        "decoder",
        "fed",
        "preface",
    )

    def __init__(self, preface: bytes, head: int) -> None:
        self.preface = preface  # what of the client's preface is still to come
        self.buffer = bytearray()  # an incomplete frame other than DATA
        self.fed = 0  # offset of the buffer's end in the stream
        # The DATA frame being read: its stream, bytes left, padding at their end, and whether it ends the stream.
        self.data_stream = 0
        self.data_left = 0
        self.data_padding = 0
        self.data_end = False
        # The header block being collected.
        self.block = bytearray()
        self.block_stream = 0
        self.block_flags = 0
        self.block_frames = 0
        self.block_values: frames.Values = []  # what its frames say, for rules on frames
        self.block_start = -1  # offset in the stream at which it began; -1: none is being collected
        self.decoder = Decoder(max_header_list_size=head)


class WebSocketStreams(BaseParser):
    """WebSocket on all streams of a connection; an :class:`engines.stateful.app.Inside`, and a parser for whoever
    judges. ``holding``: by direction, what :meth:`held` says."""

    name = "websocket"

    def __init__(self) -> None:
        super().__init__()
        self.wanted = False
        self.begun = False
        self.holding = [0, 0]

    def feed(self, direction: Direction, data: bytes) -> None:
        """What is inside comes through the other parser."""

    def add(self, tx: Transaction) -> None:
        """One of a stream, with a number of its own."""
        tx.id = self.take_id()
        self.transactions.append(tx)

    def held(self, direction: Direction) -> int:
        return self.holding[direction]


class Http2Parser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``hold_body`` as in HTTP/1, up to ``AppLimits.http2_held`` bytes."""

    name = "http2"  # doh2 from the first DNS message on

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._hold_body = hold_body
        self._sides = (_Side(PREFACE, limits.head), _Side(b"", limits.head))
        self._streams: dict[int, _Stream] = {}
        self.inside = self._websocket = WebSocketStreams()

    def follow(self, outer: Transaction) -> None:
        """The request that asked HTTP/1 for this protocol is that of stream 1 (RFC 7540, section 3.2). Its fields were
        judged there; here it has the line and the host."""
        if not isinstance(outer, HttpTransaction) or outer.request is None or outer.response is None:
            return
        if outer.response.second != b"101" or (outer.response.value(b"upgrade") or b"").strip().lower() != b"h2c":
            return
        stream = self._stream(1, Direction.TO_SERVER)
        if stream is not None:
            pseudo = [(b":method", outer.request.first), (b":path", outer.request.second)]
            host = outer.raw_host()
            if host is not None:
                pseudo.append((b":authority", host))
            self._head(stream, Direction.TO_SERVER, pseudo, True, 0)
            self._end(stream, Direction.TO_SERVER)
            self._first_settings(stream, outer.request.value(b"http2-settings") or b"")

    def _first_settings(self, stream: _Stream, text: bytes) -> None:
        """The client's SETTINGS in a field of HTTP/1 (RFC 7540, section 3.2.1)."""
        try:
            payload = base64.b64decode(text.strip() + b"=" * (-len(text.strip()) % 4), b"-_", validate=True)
        except ValueError:
            stream.tx.add_event("invalid_http1_settings")
            return
        self._settings(Direction.TO_SERVER, payload)
        if self._limits.http2_frames and payload:
            self._note(Direction.TO_SERVER, 0, frames.values_of(_SETTINGS, 0, payload))

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        position = 0
        if side.preface and not self.gave_up:
            position = min(len(side.preface), len(data))
            if data[:position] != side.preface[:position]:
                self.give_up("no_preface")
            side.preface = side.preface[position:]
        size = len(data)
        start = side.fed
        side.fed += size
        while position < size and not self.gave_up:
            if side.data_stream:
                position = self._data(direction, side, data, position)
            elif side.buffer:
                position = self._buffered(direction, side, data, position, start)
            else:
                position = self._frame(direction, side, data, position, start)
        if self._websocket.begun:
            self._websocket.holding[direction] = self._held_frames(direction)

    def close(self, direction: Direction) -> None:
        for stream in self._streams.values():
            self._end(stream, direction)
        self._streams = {number: stream for number, stream in self._streams.items() if not all(stream.ended)}
        self._websocket.holding[direction] = 0

    def held(self, direction: Direction) -> int:
        side = self._sides[direction]
        if self.gave_up:
            return 0
        starts = [side.block_start] if side.block_start >= 0 else []
        if side.buffer:
            starts.append(side.fed - len(side.buffer))
        if self._hold_body:
            starts += [stream.hold[direction] for stream in self._streams.values() if stream.hold[direction] >= 0]
            held = side.fed - min(starts, default=side.fed)
            if held > self._limits.http2_held:
                for stream in self._streams.values():
                    stream.hold[direction] = -1
                return self.held(direction) if side.block_start < 0 else side.fed - side.block_start
            return held
        return side.fed - min(starts, default=side.fed)

    def _held_frames(self, direction: Direction) -> int:
        """As :meth:`held`, of frames of WebSocket."""
        side = self._sides[direction]
        starts = [stream.frame[direction] for stream in self._streams.values() if stream.frame[direction] >= 0]
        held = side.fed - min(starts, default=side.fed)
        if self.gave_up or held <= self._limits.http2_held:
            return 0 if self.gave_up else held
        for stream in self._streams.values():
            stream.frame[direction] = -1
        return 0

    # --- frames ------------------------------------------------------------------------------------------------------

    def _buffered(self, direction: Direction, side: _Side, data: bytes, position: int, start: int) -> int:
        """Complete the frame that began in an earlier feed, byte for byte no further."""
        buffer = side.buffer
        need = 9 if len(buffer) < 9 or buffer[3] == _DATA else 9 + int.from_bytes(buffer[:3], "big")
        taken = min(need - len(buffer), len(data) - position)
        buffer += data[position : position + taken]
        position += taken
        if len(buffer) >= 9:
            frame = bytes(buffer)
            buffer.clear()
            rest = self._frame(direction, side, frame, 0, start + position - len(frame))
            assert rest == len(frame)
        return position

    def _frame(self, direction: Direction, side: _Side, data: bytes, position: int, start: int) -> int:
        """The frame at ``position``. ``start`` is the offset of ``data`` in the stream."""
        if len(data) - position < 9:
            side.buffer += data[position:]
            return len(data)
        size, kind, flags = int.from_bytes(data[position : position + 3], "big"), data[position + 3], data[position + 4]
        number = int.from_bytes(data[position + 5 : position + 9], "big") & 0x7FFFFFFF
        if side.block_start >= 0 and (kind != _CONTINUATION or number != side.block_stream):
            self.give_up("header_block_interrupted")
            return len(data)
        if kind == _DATA:
            if not number:
                self.give_up("data_on_stream_0")
            elif self._limits.http2_frames:
                self._note(direction, number, frames.values_of(kind, flags, b""))
            side.data_stream, side.data_left = number, size
            side.data_padding = -1 if flags & _PADDED else 0  # -1: its length is the first byte
            side.data_end = bool(flags & _END_STREAM)
            if not size:
                self._data_done(direction, side)
            return position + 9
        if size > (self._limits.head if kind in _IN_BLOCK else _MAX_CONTROL):
            self.give_up("frame_too_long")
            return len(data)
        end = position + 9 + size
        if end > len(data):
            side.buffer += data[position:]
            return len(data)
        payload = data[position + 9 : end]
        if self._limits.http2_frames:
            values = frames.values_of(kind, flags, payload)
            if kind in _IN_BLOCK:
                side.block_values += values
            elif payload or kind != _SETTINGS:  # a mere acknowledgement says nothing (as in Suricata)
                self._note(direction, number, values)
        if kind in {_HEADERS, _PUSH_PROMISE}:
            self._block_begins(direction, side, kind, flags, number, payload, start + position)
        elif kind == _CONTINUATION:
            self._block_goes_on(direction, side, flags, payload)
        elif kind == _RST_STREAM:
            self._reset(number)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(direction, payload)
        return end

    def _note(self, direction: Direction, number: int, values: frames.Values) -> None:
        """A frame was seen, to be judged by rules on frames."""
        stream = self._streams.get(number)
        if stream is not None and (stream.tx.response if direction else stream.tx.request) is not None:
            stream.tx.add_frame(direction, values)
        else:
            self.transactions.append(frames.ConnectionFrame(self.take_id(), direction, values))

    def _settings(self, direction: Direction, payload: bytes) -> None:
        """The sender of SETTINGS limits the table of what is sent to it."""
        for identifier, value in _SETTING.iter_unpack(payload[: len(payload) // 6 * 6]):
            if identifier == _HEADER_TABLE_SIZE:
                decoder = self._sides[direction.reply].decoder
                # A smaller one takes effect with its acknowledgement; until then the default may still be in use.
                decoder.max_allowed_table_size = min(max(value, _DEFAULT_TABLE), self._limits.http2_table)

    def _reset(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            for direction in Direction:
                self._end(stream, direction)

    # --- header blocks -----------------------------------------------------------------------------------------------

    def _block_begins(
        self, direction: Direction, side: _Side, kind: int, flags: int, number: int, payload: bytes, start: int
    ) -> None:
        at, padding = 0, 0
        if flags & _PADDED:
            padding = payload[0] if payload else 0
            at = 1
        if kind == _PUSH_PROMISE:
            # The promised request travels with the answer's direction, but is a request all the same.
            number = int.from_bytes(payload[at : at + 4], "big") & 0x7FFFFFFF
            at += 4
            flags &= ~_END_STREAM
        elif flags & _PRIORITY:
            at += 5
        if at + padding > len(payload) or not number:
            self.give_up("malformed_headers")
            return
        side.block += payload[at : len(payload) - padding]
        side.block_stream = number
        side.block_flags = flags & _END_STREAM | (_PUSH_PROMISE << 8 if kind == _PUSH_PROMISE else 0)
        side.block_frames = 0
        side.block_start = start
        if flags & _END_HEADERS:
            self._block_ends(direction, side)

    def _block_goes_on(self, direction: Direction, side: _Side, flags: int, payload: bytes) -> None:
        if side.block_start < 0:
            self.give_up("continuation_without_headers")
            return
        side.block += payload
        side.block_frames += 1
        if len(side.block) > self._limits.head or side.block_frames > _MAX_CONTINUATIONS:
            self.give_up("header_block_too_long")
        elif flags & _END_HEADERS:
            self._block_ends(direction, side)

    def _block_ends(self, direction: Direction, side: _Side) -> None:
        block = bytes(side.block)
        side.block.clear()
        started, side.block_start = side.block_start, -1
        values, side.block_values = side.block_values, []
        if self._limits.http2_frames:
            values += frames.size_updates(block)
        try:
            fields = [(bytes(name), bytes(value)) for name, value in side.decoder.decode(block, raw=True)]
        except (HPACKError, ValueError, IndexError, UnicodeError):
            self.give_up("header_block_not_decodable")
            return
        promised = bool(side.block_flags >> 8)
        ends = bool(side.block_flags & _END_STREAM)
        # A promise is the client's request as the server imagines it.
        role = Direction.TO_SERVER if promised else direction
        stream = self._stream(side.block_stream, role)
        if stream is None:
            return
        if (stream.tx.response if role else stream.tx.request) is None:
            self._head(stream, role, fields, ends, started)
        else:
            stream.tx.touch(role)  # trailers: nothing rules ask for
        if values:
            self._note(direction, side.block_stream, values)
        if ends:
            self._end(stream, role)
        elif promised:
            self._end(stream, Direction.TO_SERVER)
        self._drop_if_done(side.block_stream, stream)

    def _stream(self, number: int, direction: Direction) -> _Stream | None:
        stream = self._streams.get(number)
        if stream is not None:
            return stream
        if len(self._streams) >= self._limits.http2_streams:
            self.give_up("too_many_streams")
            return None
        tx = HttpTransaction(self.take_id(), version=b"HTTP/2")
        if direction is Direction.TO_CLIENT:
            tx.add_event("unable_to_match_response_to_request")
            tx.finish(Direction.TO_SERVER)
        stream = self._streams[number] = _Stream(tx)
        stream.ended[0] = direction is Direction.TO_CLIENT
        self.transactions.append(tx)
        return stream

    def _head(
        self, stream: _Stream, direction: Direction, fields: list[tuple[bytes, bytes]], ends: bool, started: int
    ) -> None:
        tx = stream.tx
        merged, pseudo = _merge(fields)
        if direction is Direction.TO_CLIENT:
            status = pseudo.get(b":status", b"")
            if status.startswith(b"1") and len(status) == 3:
                return  # interim; the answer that counts follows (RFC 9113, section 8.1)
            if not status.startswith(b"2"):
                stream.frames = None  # refused: what follows is an ordinary body
            parts, line = (b"HTTP/2", status, b""), b"HTTP/2 " + status
        else:
            method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
            authority = pseudo.get(b":authority")
            if authority is not None:
                # http.host is whom the request is for, however it was said (RFC 9113, section 8.3.1).
                host = merged.get(b"host")
                if host is not None and host[1].lower() != authority.lower():
                    tx.add_event("authority_host_mismatch")
                if b"@" in authority:
                    tx.add_event("userinfo_in_uri")  # RFC 9113, section 8.3.1 forbids it
                tx.authority = authority
            if method == b"CONNECT" and not path:
                path = authority or b""
            if method == b"CONNECT" and pseudo.get(b":protocol") == b"websocket":
                stream.frames = WebSocketParser(self._limits)
                self._websocket.begun = True
            parts, line = (method, path, b"HTTP/2"), b"%b %b HTTP/2" % (method, path)
        raw = b"".join([b"%b: %b\r\n" % field for field in fields]) + b"\r\n"
        head = Head(line, parts, merged, raw)
        tx.set_head(direction, head)
        message = doh.message_in_target(head) if direction is Direction.TO_SERVER else None
        if message is not None:
            self._carries_dns(tx, direction, message)
        if not ends:
            body = stream.bodies[direction] = tx.open_body(direction, self._limits)
            endless = b":protocol" in pseudo or stream.frames is not None
            if self._hold_body and not body.full and b"expect" not in merged and not endless:
                stream.hold[direction] = started

    # --- bodies ------------------------------------------------------------------------------------------------------

    def _data(self, direction: Direction, side: _Side, data: bytes, position: int) -> int:
        if side.data_padding < 0:
            side.data_padding = data[position]
            side.data_left -= 1
            position += 1
            if side.data_padding > side.data_left:
                self.give_up("padding_too_long")
                return len(data)
        end = min(position + side.data_left, len(data))
        side.data_left -= end - position
        stream = self._streams.get(side.data_stream)
        body = None if stream is None else stream.bodies[direction]
        if stream is not None and body is not None:
            # What of the bytes at hand is no padding.
            size = max(end - position - max(side.data_padding - side.data_left, 0), 0)
            if stream.frames is not None and size:
                at = side.fed - len(data) + position
                said = self._said(stream, stream.frames, direction, data[position : position + size], at)
            else:
                said = data[position : position + size] if not body.full else b""
            if body.full:
                body.skip(size)
            elif size:
                full = body.feed(said)
                stream.tx.body_changed(direction, body)
                if full:
                    stream.hold[direction] = -1
        if not side.data_left:
            self._data_done(direction, side)
        return end

    def _said(self, stream: _Stream, parser: WebSocketParser, direction: Direction, data: bytes, offset: int) -> bytes:
        """What frames say that end in ``data``, which begins at ``offset``."""
        parser.feed(direction, data)
        said = []
        for tx in parser.transactions:
            if isinstance(tx, WebSocketTransaction):
                said.append(tx.payload)
            if self._websocket.wanted:
                self._websocket.add(tx)
        parser.transactions.clear()
        held = parser.held(direction)
        if held <= len(data):  # else it is the one that began before
            stream.frame[direction] = offset + len(data) - held if held else -1
        return b"".join(said)

    def _data_done(self, direction: Direction, side: _Side) -> None:
        number, side.data_stream = side.data_stream, 0
        stream = self._streams.get(number)
        if stream is not None and side.data_end:
            self._end(stream, direction)
            self._drop_if_done(number, stream)

    def _end(self, stream: _Stream, direction: Direction) -> None:
        if stream.ended[direction]:
            return
        stream.ended[direction] = True
        stream.hold[direction] = stream.frame[direction] = -1
        body = stream.bodies[direction]
        if body is not None:
            body.finish()
            stream.tx.body_changed(direction, body)
            head = stream.tx.response if direction else stream.tx.request
            if head is not None and doh.carries_message(head):
                if body.length > doh.MAX_MESSAGE:
                    stream.tx.add_event(f"dns_{'response' if direction else 'request'}_too_long")
                else:
                    self._carries_dns(stream.tx, direction, body.view())
        stream.tx.finish(direction)

    def _carries_dns(self, tx: HttpTransaction, direction: Direction, message: bytes) -> None:
        tx.inner[direction] = doh.read_message(message, direction, self._limits)
        tx.touch(direction)
        self.name = "doh2"

    def _drop_if_done(self, number: int, stream: _Stream) -> None:
        if all(stream.ended):
            self._streams.pop(number, None)


def _merge(fields: Iterable[tuple[bytes, bytes]]) -> tuple[Fields, dict[bytes, bytes]]:
    """Repeated fields joined as in HTTP/1 (cookies by "; ", RFC 9113, section 8.2.3), and the pseudo fields."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    merged: Fields = {}
    pseudo: dict[bytes, bytes] = {}
    for name, found in values.items():
        merged[name] = (name, (b"; " if name == b"cookie" else b", ").join(found))
        if name.startswith(b":"):
            pseudo[name] = found[0]
    return merged, pseudo

"""PostgreSQL's protocol, version 3: what a client asks is a transaction, with how the server says it ended.

Buffer: ``pgsql.query``, the text of a simple query, and of one that is prepared (Parse), as most drivers send it.

::

    client  startup ──► messages            SSLRequest ──'S'──► tunnel (TLS)     GSSENCRequest ──'G'──► finished
    server             messages up to ReadyForQuery           └─'N'──► startup

Rows and copied data are passed over unread.

Source: PostgreSQL documentation, "Frontend/Backend Protocol"; Suricata user guide, "PGSQL Keywords".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_SSL_REQUEST, _GSS_REQUEST, _CANCEL = b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30", b"\x04\xd2\x16\x2e"
_MAJOR = b"\0\3"
_MAX_STARTUP = 10_000  # MAX_STARTUP_PACKET_LENGTH of the server
_MAX_MESSAGE = 0x40000000 - 1  # what the server can allocate
_C, _S = Direction.TO_SERVER, Direction.TO_CLIENT
_QUERY, _PARSE, _TERMINATE, _SYNC, _FUNCTION = b"QPXSF"
_ERROR, _COMPLETE, _READY = b"ECZ"
_KNOWN = (frozenset(b"BCDEFHPQSXcdfp"), frozenset(b"123ACDEGHIKNRSTVWZcdnstv"))
_READ = (frozenset({_QUERY, _PARSE}), frozenset({_ERROR, _COMPLETE, _READY}))
_MALFORMED = ("malformed_request", "malformed_response")
_MAX_PARAMETERS = 64


class PgsqlTransaction(BaseTransaction):
    """What one message of the client asks."""

    __slots__ = ("_fields", "_query", "_result")

    def __init__(self, tx_id: int, fields: dict[str, object], query: bytes | None = None) -> None:
        super().__init__(tx_id)
        self._fields = fields
        self._query = query
        self._result: dict[str, object] = {}

    def tell(self, key: str, value: bytes) -> None:
        """Something of how it ended."""
        self._result[key] = _text(value)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if name != "pgsql.query" or self._query is None or direction is _S:
            return ()
        return (self._query,)

    def log_fields(self) -> dict[str, object]:
        """EVE ``pgsql`` object."""
        fields: dict[str, object] = {"request": dict(self._fields)}
        if self._query is not None:
            fields["request"] = {**self._fields, "simple_query": _text(self._query)}
        if self._result:
            fields["response"] = dict(self._result)
        return fields


class PgsqlParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "pgsql"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._buffers = (bytearray(), bytearray())
        self._skip = [0, 0]  # bytes that nobody looks at
        self._startup = True  # the client's next message has no type
        self._asked: PgsqlTransaction | None = None  # for encryption; the client waits for one byte
        self._asks_tls = False
        # What ends with the next ReadyForQuery, oldest first; None: the client's Sync.
        self._open: deque[PgsqlTransaction | None] = deque()

    def feed(self, direction: Direction, data: bytes) -> None:
        buffer = self._buffers[direction]
        if self.tunnel:
            buffer += data
        if self.gave_up or self.finished or self.tunnel:
            return
        skipped = min(self._skip[direction], len(data))
        self._skip[direction] -= skipped
        buffer += data[skipped:]
        self._work(direction)
        if direction is _C and self._asked is not None and len(buffer) > self._limits.dialogue_early:
            self.give_up("encryption_without_answer")
        if direction is _S:  # what it says may be what the client's bytes waited for
            self._work(_C)

    def close(self, direction: Direction) -> None:
        if direction is _S:
            for tx in (self._asked, *self._open):
                if tx is not None:
                    tx.finish(_S)
            self._open.clear()

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self.finished or self.tunnel else len(self._buffers[direction])

    def unparsed(self, direction: Direction) -> bytes:
        return bytes(self._buffers[direction])

    def _work(self, direction: Direction) -> None:
        buffer = self._buffers[direction]
        at = 0
        while at < len(buffer) and not (self.gave_up or self.finished or self.tunnel):
            if self._asked is not None:
                end = at if direction is _C else self._encryption(buffer, at)
            elif direction is _C and self._startup:
                end = self._begin(buffer, at)
            else:
                end = self._next(direction, buffer, at)
            if end == at:
                break
            at = end
        del buffer[:at]

    def _begin(self, buffer: bytearray, at: int) -> int:
        """The message without a type at an offset; the offset behind it."""
        if len(buffer) - at < 4:
            return at
        size = int.from_bytes(buffer[at : at + 4], "big")
        if not 8 <= size <= _MAX_STARTUP:
            self._malformed(_C)
            return at
        if len(buffer) - at < size:
            return at
        code, rest = bytes(buffer[at + 4 : at + 8]), bytes(buffer[at + 8 : at + size])
        if code in {_SSL_REQUEST, _GSS_REQUEST}:
            self._asks_tls = code == _SSL_REQUEST
            kind = "SSL Request" if self._asks_tls else "GSSENC Request"
            self._asked = self._new({"message": kind})
        elif code == _CANCEL:
            self._new({"message": "Cancel Request"}).finish(_S)
        elif code[:2] == _MAJOR:
            self._startup = False
            self._wait(self._new({"message": "Startup Message", "startup_parameters": _parameters(rest)}))
        else:  # the server says which versions it has, and closes
            tx = self._new({"protocol_version": f"{code[0] << 8 | code[1]}.{code[2] << 8 | code[3]}"})
            tx.add_event("malformed_request")
            tx.finish(_S)
        return at + size

    def _encryption(self, buffer: bytearray, at: int) -> int:
        """The server's one byte; an old one answers with an error instead."""
        tx, answer = self._asked, bytes(buffer[at : at + 1])
        assert tx is not None
        self._asked = None
        tx.tell("ssl_accepted" if self._asks_tls else "gss_accepted", b"true" if answer in {b"S", b"G"} else b"false")
        tx.finish(_S)
        if answer == b"E":
            return self._next(_S, buffer, at)
        if answer == b"S" and self._asks_tls:
            self.tunnel, self.carries = True, "tls"
        elif answer == b"G" and not self._asks_tls:
            self.finished = True
        elif answer != b"N":
            self._malformed(_S)
        return at + 1

    def _next(self, direction: Direction, buffer: bytearray, at: int) -> int:
        """The message at an offset; the offset behind it."""
        kind = buffer[at]
        if len(buffer) - at < 5:
            if kind not in _KNOWN[direction] and not chr(kind).isalnum():
                self._malformed(direction)
            return at
        size = int.from_bytes(buffer[at + 1 : at + 5], "big")
        if not 4 <= size <= _MAX_MESSAGE:
            self._malformed(direction, "invalid_length")
            return at
        seen = min(size - 4, self._limits.pgsql_message) if kind in _READ[direction] else 0
        start, end = at + 5, at + 1 + size
        if len(buffer) - start < seen:
            return at
        if kind not in _KNOWN[direction]:
            self._odd(direction, _MALFORMED[direction])
        elif direction is _C:
            self._request(kind, bytes(buffer[start : start + seen]))
        else:
            self._response(kind, bytes(buffer[start : start + seen]))
        self._skip[direction] = max(end - len(buffer), 0)
        return min(end, len(buffer))

    def _request(self, kind: int, data: bytes) -> None:
        if kind == _QUERY:
            self._wait(self._new({"message": "Simple Query"}, data.split(b"\0", 1)[0]))
        elif kind == _PARSE:
            _, _, rest = data.partition(b"\0")  # the name of the statement
            self._new({"message": "Parse"}, rest.split(b"\0", 1)[0]).finish(_S)
        elif kind == _FUNCTION:
            self._wait(self._new({"message": "Function Call"}))
        elif kind == _SYNC:
            self._wait(None)
        elif kind == _TERMINATE:
            self._new({"message": "Terminate"}).finish(_S)

    def _response(self, kind: int, data: bytes) -> None:
        tx = self._open[0] if self._open else None
        if kind == _READY and self._open:
            self._open.popleft()
            if tx is not None:
                tx.finish(_S)
        elif tx is not None and kind == _COMPLETE:
            tx.tell("command_completed", data.split(b"\0", 1)[0])
        elif tx is not None and kind == _ERROR:
            for field in data.split(b"\0"):
                key = {b"V": "severity_non_localizable", b"C": "code", b"M": "message"}.get(field[:1])
                if key:
                    tx.tell(key, field[1:])

    def _new(self, fields: dict[str, object], query: bytes | None = None) -> PgsqlTransaction:
        tx = PgsqlTransaction(self.take_id(), fields, query)
        tx.finish(_C)
        self.transactions.append(tx)
        return tx

    def _wait(self, tx: PgsqlTransaction | None) -> None:
        self._open.append(tx)
        if len(self._open) > self._limits.pgsql_open:
            oldest = self._open.popleft()
            if oldest is not None:
                oldest.add_event("too_many_transactions")
                oldest.finish(_S)

    def _odd(self, direction: Direction, event: str) -> None:
        tx = PgsqlTransaction(self.take_id(), {})
        tx.add_event(event)
        tx.finish(direction)
        tx.skip(direction.reply)
        self.transactions.append(tx)

    def _malformed(self, direction: Direction, event: str = "") -> None:
        self._odd(direction, event or _MALFORMED[direction])
        self.give_up(event or _MALFORMED[direction])


def _parameters(data: bytes) -> dict[str, object]:
    """The names and values a client begins with."""
    words = data.split(b"\0", 2 * _MAX_PARAMETERS)[: 2 * _MAX_PARAMETERS]
    pairs = zip(words[::2], words[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs if name}


def _text(data: bytes) -> str:
    return data[:1024].decode("utf-8", "backslashreplace")

"""Takes Encrypted ClientHello out of DNS answers, so that clients go on to say which server they want.

The keys a client encrypts its hello with come from the ``ech`` parameter of HTTPS and SVCB records. A record without it
is what a server without ECH has, so clients need not be told more. Where a message must keep its length, on a byte
stream, the record ends with a parameter nobody knows instead, which clients must ignore; a record that does not read as
one, or is too long to wait for, gets a type nobody asked for. Where the keys arrive another way, the handshake fails:
nfw cannot decrypt the inner hello, answers for the outer name, and the client gives up (RFC 9849 section 6.1.6).

Bytes that are no DNS answer are left as they are. Signatures over changed records (DNSSEC) are no longer right; who
validates them behind nfw sees that.

Sources: RFC 9460 sections 2.2 and 8 (SvcParams), RFC 9848 (``ech``), RFC 1035 section 4.1 (messages, compression).
"""

from __future__ import annotations

import struct

_SVCB, _HTTPS = 64, 65
_MANDATORY, _ECH = 0, 5
_PRIVATE, _INVALID = 65280, 65535  # RFC 9460 section 14.3.2: private use begins; no record has it
_HEADER = 12
_RECORD = struct.Struct("!HHIH")
_ANSWER = 0x8000  # of the flags
_RECORDS_MOST = 512  # of a message that is written anew
_UNASKED = (65280).to_bytes(2, "big")  # RFC 6895 section 3.1: types for private use begin
RECORD_MOST = 8192
"""Bytes of a record's data that are waited for; those with ECH keys have a few hundred. Senders of packets go on for
longer without an acknowledgement of what waits: ten segments (RFC 6928)."""
# Where in the data of a record a compressed name may stand, and how many follow each other (RFC 3597 section 4).
_NAMES_IN_DATA = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 15: (2, 1)}


class _NotDnsError(Exception):
    """Never leaves this module."""


def without_ech(message: bytes) -> bytes | None:
    """The DNS answer without ``ech`` parameters, and shorter; as :class:`MessageMask` leaves it where its records do
    not read well enough to be moved, or are too many. None when there is nothing to take out."""
    try:
        return _without(message)
    except (_NotDnsError, struct.error, IndexError):
        mask = MessageMask()
        other = mask.feed(message) + mask.end()
        return other if mask.changed else None


def data_without_ech(data: bytes) -> bytes | None:
    """The data of an HTTPS or SVCB record without ``ech`` and as long as they were. None: they do not read as such."""
    try:
        kept, cuts, last = _service(data, 0, len(data))
    except (_NotDnsError, struct.error, IndexError):
        return None
    return kept + _filler(len(data) - len(kept), last) if cuts else data


class MessageMask:
    """One DNS message that keeps its length, of which any number of bytes may come at a time.

    Held back are unfinished names and fixed parts, and the data of an HTTPS or SVCB record: :data:`RECORD_MOST` bytes
    and what stands in front of them. ``changed``: records that go on as something else."""

    __slots__ = ("_buffer", "_data", "_lost", "_questions", "_records", "_skip", "changed")

    def __init__(self) -> None:
        self._buffer = bytearray()  # begins with what is to be read next
        self._data = (0, 0)  # where in it the data of a record begins and ends that is waited for
        self._questions = -1  # still to come; -1: so is the header
        self._records = 0
        self._skip = 0  # bytes of a record's data that go on as they come
        self._lost = False  # so does everything
        self.changed = 0

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._buffer)

    @property
    def lost(self) -> bool:
        """Not DNS, or not read any more: the rest goes on as it comes."""
        return self._lost

    def feed(self, data: bytes) -> bytes:
        """What may go on now, of as many bytes as came, or fewer that follow later."""
        if self._lost or (self._skip >= len(data) and not self._buffer):
            self._skip -= 0 if self._lost else len(data)
            return data
        buffer, out, at = self._buffer, bytearray(), 0
        buffer += data
        try:
            while at < len(buffer) and not self._lost:
                end, instead = self._next(buffer, at)
                out += buffer[at:end] if instead is None else instead
                at = end
        except IndexError:  # more bytes are needed
            pass
        except _NotDnsError:
            self._lost = True
        if self._lost:
            out += buffer[at:]
            at = len(buffer)
        del buffer[:at]
        return bytes(out)

    def end(self) -> bytes:
        """Nobody can wait any longer, or nothing more comes: what was held back goes on, a record's data as those of a
        type nobody asked for. More may follow even so; after the beginning of anything else it is not read any more."""
        held = bytes(self._buffer)
        begin, end = self._data
        if begin:
            held = _unasked(held, begin)
            self._skip, self._data = end - len(held), (0, 0)
            self._records -= 1
            self.changed += 1
        elif held:
            self._lost = True
        self._buffer.clear()
        return held

    def _next(self, buffer: bytearray, at: int) -> tuple[int, bytes | None]:
        """Where that ends which begins at ``at``, and what has to go on in its place. IndexError: more bytes are
        needed."""
        if self._skip:
            moved = min(self._skip, len(buffer) - at)
            self._skip -= moved
            return at + moved, None
        if self._questions < 0:
            end = _within(buffer, at + _HEADER)
            _, flags, self._questions, *counts = struct.unpack_from("!6H", buffer, at)
            self._records = sum(counts)
            self._lost = not flags & _ANSWER
            return end, None
        if self._questions:
            end = _within(buffer, _skip_name(buffer, at) + 4)
            self._questions -= 1
            return end, None
        if not self._records:
            self._lost = True
            return at, None
        data = _within(buffer, _skip_name(buffer, at) + _RECORD.size)
        kind, _class, _ttl, length = _RECORD.unpack_from(buffer, data - _RECORD.size)
        end, instead = data, None
        if kind not in (_SVCB, _HTTPS):
            self._skip = length
        elif length > RECORD_MOST:
            self._skip, instead = length, _unasked(bytes(buffer[at:data]), data - at)
        else:
            self._data = (data - at, data - at + length)
            end = _within(buffer, data + length)
            self._data = (0, 0)
            instead = _masked(bytes(buffer[at:end]), data - at)
        self._records -= 1
        self.changed += instead is not None
        return end, instead


def _within(buffer: bytearray, end: int) -> int:
    if end > len(buffer):
        raise IndexError
    return end


def _masked(record: bytes, data: int) -> bytes | None:
    """A record whose data begin at that offset without ``ech``, as long as it was; None when there is none."""
    before = record[data:]
    after = data_without_ech(before)
    if after is None:
        return _unasked(record, data)
    return record[:data] + after if after != before else None


def _unasked(record: bytes, data: int) -> bytes:
    return record[: data - _RECORD.size] + _UNASKED + record[data - _RECORD.size + 2 :]


def _without(message: bytes) -> bytes | None:
    _, flags, questions, *counts = struct.unpack_from("!6H", message)
    records = sum(counts)
    if not flags & _ANSWER:
        return None
    if records > _RECORDS_MOST:
        raise _NotDnsError
    at = _HEADER
    for _ in range(questions):
        at = _skip_name(message, at) + 4
    out = bytearray(message[:at])
    cuts: list[tuple[int, int]] = []  # (offset in the message, length) of what was left out
    changed = False
    for _ in range(records):
        begin = at
        at = _skip_name(message, at)
        kind, _class, _ttl, length = _RECORD.unpack_from(message, at)
        data = at + _RECORD.size
        at = data + length
        if at > len(message):
            raise _NotDnsError
        out += _moved_name(message, begin, cuts)
        if kind in (_SVCB, _HTTPS):
            kept, left_out, _ = _service(message, data, at)
            changed = changed or bool(left_out)
            out += message[data - _RECORD.size : data - 2] + len(kept).to_bytes(2, "big") + kept
            cuts += left_out
        else:
            out += message[data - _RECORD.size : data] + _moved_data(message, kind, data, at, cuts)
    return bytes(out + message[at:]) if changed else None


def _filler(length: int, last: int) -> bytes:
    """A parameter of that length, its key above ``last``: keys ascend (RFC 9460 section 2.2). What is cut out is longer
    than its head."""
    return struct.pack("!HH", min(max(_PRIVATE, last + 1), _INVALID), length - 4) + bytes(length - 4)


def _service(message: bytes, at: int, end: int) -> tuple[bytes, list[tuple[int, int]], int]:
    """The data of an SVCB record without ``ech``, where the cuts are, and the last key."""
    body = _skip_name(message, at + 2)
    if body > end:
        raise _NotDnsError
    kept = bytearray(message[at:body])
    cuts: list[tuple[int, int]] = []
    key = 0
    while body < end:
        key, length = struct.unpack_from("!HH", message, body)
        value = message[body + 4 : body + 4 + length]
        if body + 4 + length > end:
            raise _NotDnsError
        if key == _ECH:
            cuts.append((body, 4 + length))
        elif key == _MANDATORY and _ECH.to_bytes(2, "big") in _pairs(value):
            others = b"".join(pair for pair in _pairs(value) if pair != _ECH.to_bytes(2, "big"))
            whole = struct.pack("!HH", key, len(others)) + others if others else b""
            kept += whole
            cuts.append((body + len(whole), 4 + length - len(whole)))
        else:
            kept += message[body : body + 4 + length]
        body += 4 + length
    return bytes(kept), cuts, key


def _pairs(value: bytes) -> list[bytes]:
    return [value[at : at + 2] for at in range(0, len(value), 2)]


def _skip_name(message: bytes | bytearray, at: int) -> int:
    """The offset behind a name."""
    while True:
        length = message[at]
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise _NotDnsError
        at += 1 + length
        if not length:
            return at


def _moved_name(message: bytes, at: int, cuts: list[tuple[int, int]]) -> bytes:
    """The name at ``at``, its pointer set right."""
    end = _skip_name(message, at)
    name = bytearray(message[at:end])
    if end - at >= 2 and name[-2] >= 0xC0 and cuts:
        target = int.from_bytes(name[-2:], "big") & 0x3FFF
        target -= sum(length for offset, length in cuts if offset < target)
        name[-2:] = (0xC000 | max(target, 0)).to_bytes(2, "big")
    return bytes(name)


def _moved_data(message: bytes, kind: int, at: int, end: int, cuts: list[tuple[int, int]]) -> bytes:
    if kind not in _NAMES_IN_DATA or not cuts:
        return message[at:end]
    before, names = _NAMES_IN_DATA[kind]
    out = bytearray(message[at : at + before])
    at += before
    for _ in range(names):
        out += _moved_name(message, at, cuts)
        at = _skip_name(message, at)
    if at > end:  # the names do not end where the data does
        raise _NotDnsError
    return bytes(out + message[at:end])

"""Takes Encrypted ClientHello out of DNS answers, so that clients go on to say which server they want.

The keys a client encrypts its hello with come from the ``ech`` parameter of HTTPS and SVCB records. A record without it
is what a server without ECH has, so clients need not be told more. Where a message must keep its length, on a TCP
stream, the record ends with a parameter nobody knows instead, which clients must ignore. Where the keys arrive another
way, the handshake fails: nfw cannot decrypt the inner hello, answers for the outer name, and the client gives up
(RFC 9849 section 6.1.6).

Bytes that are no DNS message are left as they are. Signatures over changed records (DNSSEC) are no longer right; who
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
_RECORDS_MOST = 512
_SHAPE, _ANSWER = 0xF840, 0x8000  # of the flags: a response, a standard query, the bit that must be zero
_CODE_MOST = 5
# Where in the data of a record a compressed name may stand, and how many follow each other (RFC 3597 section 4).
_NAMES_IN_DATA = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 15: (2, 1)}


class _NotDnsError(Exception):
    """Never leaves this module."""


def may_be_answer(header: bytes) -> bool:
    """Whether bytes that begin so (12 of them) can be the answer to a question, with records. Of random bytes one in
    millions can."""
    flags, questions = int.from_bytes(header[2:4], "big"), int.from_bytes(header[4:6], "big")
    records = sum(int.from_bytes(header[at : at + 2], "big") for at in (6, 8, 10))
    return flags & _SHAPE == _ANSWER and flags & 0xF <= _CODE_MOST and questions == 1 and 0 < records <= _RECORDS_MOST


def without_ech(message: bytes, *, keep_length: bool = False) -> bytes | None:
    """The DNS answer without ``ech`` parameters; None when there is nothing to take out."""
    try:
        return _without(message, keep_length)
    except (_NotDnsError, struct.error, IndexError):
        return None


def _without(message: bytes, keep_length: bool) -> bytes | None:
    _, flags, questions, *counts = struct.unpack_from("!6H", message)
    records = sum(counts)
    if not flags & 0x8000 or records > _RECORDS_MOST or questions > 16:
        return None
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
            kept, left_out, last = _service(message, data, at)
            changed = changed or bool(left_out)
            if keep_length and left_out:
                kept, left_out = kept + _filler(at - data - len(kept), last), []
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


def _skip_name(message: bytes, at: int) -> int:
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

"""Recognises DNS where nobody says that it is: by a whole question, which nothing else begins with.

Sources: RFC 1035 sections 4.1 and 4.2.2 (messages, their length on a stream), RFC 6895 section 2 (flags),
developers.google.com/speed/public-dns/docs/doh/json (the fields an answer in JSON begins with).
"""

from __future__ import annotations

import re

_SVCB, _HTTPS, _ANY = 64, 65, 255
_IN = _ONE = b"\0\1"
_HEADER, _NAME_MOST = 12, 255
_ANSWER_FLAGS, _ANSWER = 0xF840, 0x8000  # an answer to a query; of the others any may be set
_QUERY_FLAGS = 0xFECF  # not set in a query, which may have RD, AD and CD
_ID = b"\0\0"  # RFC 8484 section 4.1: as browsers ask over HTTP
_JSON = [re.escape('{"Status":'[at]) for at in range(10)] + [" ?", "[0-9]{1,5}", ",", " ?", '"', "T", "C", '"', ":"]
_JSON_BEGINS = re.compile("".join(_JSON).encode())
_JSON_PART = re.compile(("".join(f"(?:{one}" for one in _JSON) + ")?" * len(_JSON)).encode())


def begins_as_answer(body: bytes) -> bool | None:
    """Over HTTP, to a question for records that may have keys. None: more bytes are needed, fewer than 300 in all."""
    if body[:2] != _ID[: len(body)]:
        return False
    asked = _asked(body, _ANSWER_FLAGS, _ANSWER)
    return None if asked is None else asked in (_SVCB, _HTTPS, _ANY)


def begins_as_question(stream: bytes) -> bool | None:
    """On a byte stream, behind its length. None: more bytes are needed, fewer than 300 in all."""
    message = stream[2:]
    if len(message) >= 10 and message[6:10] != b"\0\0\0\0":
        return False
    asked = _asked(message, _QUERY_FLAGS, 0)
    if not asked:
        return None if asked is None else False
    return int.from_bytes(stream[:2], "big") > _HEADER + 4


def begins_as_json(body: bytes) -> bool | None:
    """A DNS answer in JSON, as resolvers write it. None: more bytes are needed, 22 at most."""
    if _JSON_BEGINS.match(body):
        return True
    return None if _JSON_PART.fullmatch(body) else False


def _asked(message: bytes, mask: int, flags: int) -> int | None:
    """The type its only question is for; 0: it is no such message."""
    if len(message) >= 4 and int.from_bytes(message[2:4], "big") & mask != flags:
        return 0
    if message[4:6] != _ONE[: max(len(message) - 4, 0)]:
        return 0
    at = _HEADER
    while at < len(message):
        length = message[at]
        at += 1 + length
        if length > 63 or at > _HEADER + _NAME_MOST:
            return 0
        if not length:
            if len(message) < at + 4:
                return None
            return int.from_bytes(message[at : at + 2], "big") if message[at + 2 : at + 4] == _IN else 0
    return None

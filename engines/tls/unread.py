"""Hides offers of HTTP/3, and answers with keys, in what is HTTP/1 to some clients and cannot be followed.

Clients forgive servers much, and each something else: junk before a status line, line ends that are none, lengths that
contradict each other. Where nfw cannot know which bytes a client takes for a head, every line is one of a head: the
value of a line that begins with ``Alt-Svc:`` becomes blanks, and the type of a DNS answer one that no client asked for,
so clients ask elsewhere. Nothing is held back, no length changes.

A line begins behind CR or LF, a value goes on behind CR, and behind a line end and a blank; NUL bytes are none: each of
these is so for one browser at least.
"""

from __future__ import annotations

import re

_NAME = [re.escape(b"alt-svc"[at : at + 1]) for at in range(7)]
_FIELD = re.compile(rb"(?i)[\r\n]\0*+" + rb"\0*+".join(_NAME) + rb"[ \t\0]*+:")
_FIELD_BEGINS = re.compile(
    rb"(?i)[\r\n]\0*+" + b"".join(rb"(?:%s\0*+" % one for one in _NAME) + b")?" * 7 + rb"[ \t\0]*+"
)
_BLANKS = re.compile(rb"[ \t]+")
# A value goes on behind a line end and a blank, unless the head ends in between. To one browser CR is part of it.
_LINE_END = rb"\n(?:\r\r++\n)*+\r*+"
_VALUE = re.compile(rb"(?:[^\n]++|" + _LINE_END + rb"[ \t\0])*+")
_UNFINISHED = re.compile(rb"(?:" + _LINE_END + rb")?+")
_VISIBLE = re.compile(rb"[^\r\n]")
_TYPE = re.compile(rb"(?i)application/dns-(?:message|json)")
_TYPE_MOST = 23
_NO_TYPE = ord("-")  # in the place of its last letter


class UnreadMask:
    """The direction of the responses, from a line's begin on; ``offers`` and ``keys`` are what is hidden."""

    __slots__ = ("_begun", "_keys", "_offers", "_seen", "_value")

    def __init__(self, offers: bool, keys: bool) -> None:
        self._offers, self._keys = offers, keys
        self._begun = (
            b"\n"  # of what went on: the begin of a line that may become a field, or a line's end in its value
        )
        self._value = False  # within one
        self._seen = b""  # of what went on: the last bytes

    def feed(self, data: bytes) -> bytes:
        """As many bytes as came."""
        if self._offers:
            data = self._without_offers(data)
        if self._keys:
            data = self._without_types(data)
        return data

    def _without_offers(self, data: bytes) -> bytes:
        text, before, at = bytearray(self._begun + data), len(self._begun), 0
        if self._value:
            at = self._blank(text, 0)
        while not self._value and (found := _FIELD.search(text, at)):
            at = self._blank(text, found.end())
        if self._value:
            crs = len(text) - len(text.rstrip(b"\r"))
            self._begun = b"\n" + b"\r" * min(crs, 2) if at < len(text) else b""
        else:
            line = text[max(text.rfind(b"\n"), text.rfind(b"\r"), 0) :]
            begun = _FIELD_BEGINS.fullmatch(line) is not None
            self._begun = _BLANKS.sub(b" ", bytes(line).replace(b"\0", b"")) if begun else b""
        return bytes(text[before:])

    def _blank(self, text: bytearray, at: int) -> int:
        """The value that begins or goes on there; where it ends, or may go on."""
        found = _VALUE.match(text, at)
        end = found.end() if found else at
        text[at:end] = _VISIBLE.sub(b" ", text[at:end])
        self._value = _UNFINISHED.fullmatch(text, end) is not None
        return end

    def _without_types(self, data: bytes) -> bytes:
        text = bytearray(self._seen + data)
        for found in _TYPE.finditer(bytes(text)):
            text[found.end() - 1] = _NO_TYPE
        before = len(self._seen)
        self._seen = bytes(text[-_TYPE_MOST:])
        return bytes(text[before:])

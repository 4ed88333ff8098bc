"""Takes Encrypted ClientHello out of DNS answers in JSON, as Google's and Cloudflare's resolvers give them.

The answer is an object with lists of records, each an object with ``type``, a number, and ``data``, the record as in
a zone file: parameters by name, or the bytes as hex digits (RFC 3597). No length changes: ``ech`` becomes blanks, and
in the second form what it becomes in a message (:func:`engines.tls.ech.data_without_ech`). Such bytes that do not read
as an HTTPS or SVCB record become blanks as a whole, so clients ask elsewhere.

Reading is lenient, so what clients' own readers make of slips matters little: anything that looks like a record is one,
whether or not the rest is JSON. What is no JSON at all stays as it is.

Sources: RFC 8259 (JSON), RFC 9460 section 2.1 and RFC 3597 section 5 (the two forms), RFC 1035 section 5.1 (quoting),
developers.google.com/speed/public-dns/docs/doh/json.
"""

from __future__ import annotations

import re

from engines.tls.ech import data_without_ech

_TOKEN = re.compile(rb'(?s)"(?:[^"\\]++|\\.)*+"?|[{}\[\]:,]|[^\s"{}\[\]:,]++')
_ESCAPE = re.compile(rb"(?s)\\u[0-9A-Fa-f]{4}|\\.?")  # of a text
_MATTERS = re.compile(rb"(?i)ech|key5|\\")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}
_FIELD = re.compile(r'(?s)(?:[^\s"\\]++|\\.?|"(?:[^"\\]++|\\.)*+"?)++')
_QUOTING = re.compile(r'(?s)\\([0-9]{3})|\\(.)|"')
_NAMES = ("HTTPS", "SVCB", "TYPE65", "TYPE64")
_KEYS = ("ech", "echconfig", "key5")  # the second in drafts
_MANDATORY = ("mandatory", "key0")
_WORD_MOST = 128  # bytes of a name or a type, as it is written
_KEY = re.compile(r"[a-z0-9-]+")


class JsonMask:
    """The body of one answer, of which any number of bytes may come at a time. It is held back until its end.

    Where nobody can wait for that any longer, what came is changed as if it were all, and the rest becomes zeros:
    there is no answer that reads."""

    __slots__ = ("_buffer", "_ended")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """What may go on now."""
        if self._ended:
            return bytes(len(data))
        self._buffer += data
        return b""

    def end(self) -> bytes:
        """Nobody can wait any longer, or nothing more comes."""
        held = json_without_ech(bytes(self._buffer))
        self._buffer.clear()
        self._ended = True
        return held


class _Object:
    """``key``: of the value that comes; "" for a key."""

    __slots__ = ("data", "key", "last", "service")

    def __init__(self) -> None:
        self.key = self.last = ""
        self.service = False
        self.data: list[tuple[int, int]] = []  # where such texts are


def json_without_ech(body: bytes) -> bytes:
    """The answer, as long as it was."""
    if not _MATTERS.search(body):
        return body
    out = bytearray(body)
    opened: list[_Object | None] = []  # None: a list
    for token in _TOKEN.finditer(body):
        mark, inner = token[0], opened[-1] if opened else None
        if mark == b"{":
            opened.append(_Object())
        elif mark == b"[":
            opened.append(None)
        elif mark in (b"}", b"]"):
            _close(out, inner)
            del opened[-1:]
        elif inner is not None:
            _take(inner, mark, token.start())
    for left in opened:
        _close(out, left)
    return bytes(out)


def _take(inner: _Object, mark: bytes, at: int) -> None:
    if mark == b":":
        inner.key = inner.last
    elif mark == b",":
        inner.key = ""
    else:
        quoted = mark[:1] == b'"'
        inner.last = _text(mark.strip(b'"')).lower() if len(mark) <= _WORD_MOST else ""
        if inner.key == "type":
            inner.service = inner.service or _is_service(inner.last)
        elif inner.key == "data" and quoted:
            inner.data.append((at + 1, at + len(mark) - (len(mark) > 1 and mark[-1:] == b'"')))
        inner.key = ""


def _is_service(text: str) -> bool:
    try:
        return float(text) in (64, 65)
    except ValueError:
        return text.upper() in _NAMES


def _close(out: bytearray, record: _Object | None) -> None:
    if record is not None and record.service:
        for begin, end in record.data:
            _Record(out, begin, end).hide()


def _text(raw: bytes) -> str:
    return _ESCAPE.sub(_character, raw).decode("latin-1") if b"\\" in raw else raw.decode("latin-1")


def _character(escape: re.Match[bytes]) -> bytes:
    """As one byte: what is not ASCII matters to nobody here."""
    written = escape[0]
    if len(written) == 6:
        code = int(written[2:], 16)
        return bytes([code]) if code < 128 else b"?"
    return _ESCAPED.get(written[1:], written[1:]) or b"\\"


class _Record:
    """The data of a record, a text between those offsets."""

    __slots__ = ("_out", "_starts", "_text")

    def __init__(self, out: bytearray, begin: int, end: int) -> None:
        self._out = out
        text, at = bytearray(), begin
        self._starts: list[int] = []  # of its characters, as they are written; and the end
        for escape in _ESCAPE.finditer(out, begin, end):
            text += out[at : escape.start()] + _character(escape)
            self._starts += range(at, escape.start() + 1)
            at = escape.end()
        text += out[at:end]
        self._starts += range(at, end + 1)
        self._text = text.decode("latin-1")

    def hide(self) -> None:
        fields = [found.span() for found in _FIELD.finditer(self._text)]
        if not fields:
            return
        if self._text[slice(*fields[0])] == "\\#":
            self._generic(fields[2:], self._text[slice(*fields[1])] if len(fields) > 1 else "")
            return
        for begin, end in fields[2:]:  # behind priority and target
            key, _, value = _unquoted(self._text[begin:end]).partition("=")
            key = key.lower()
            if key in _KEYS:
                self._write(begin, end, "")
            elif key in _MANDATORY:
                names = value.lower().split(",")
                if any(name in _KEYS for name in names):
                    others = [name for name in names if _KEY.fullmatch(name) and name not in _KEYS]
                    self._write(begin, end, f"{key}={','.join(others)}" if others else "")

    def _generic(self, fields: list[tuple[int, int]], length: str) -> None:
        places = [at for begin, end in fields for at in range(begin, end)]
        try:
            data = bytes.fromhex("".join(self._text[at] for at in places))
            whole = int(length) == len(data)
        except ValueError:
            whole = False
        other = data_without_ech(data) if whole else None
        if other is None:
            self._write(0, len(self._text), "")
        elif other != data:
            for at, digit in zip(places, other.hex(), strict=True):
                self._write(at, at + 1, digit)

    def _write(self, begin: int, end: int, text: str) -> None:
        """Over these characters, and blanks behind it; it is not longer as they are written."""
        if begin < end:
            first, last = self._starts[begin], self._starts[end]
            self._out[first:last] = text.encode().ljust(last - first)


def _unquoted(field: str) -> str:
    return _QUOTING.sub(lambda found: chr(int(found[1]) % 256) if found[1] else found[2] or "", field)

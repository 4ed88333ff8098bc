"""MIME: header fields with their parameters, and a mail message read as it comes.

Promise: every byte is looked at once, nothing raises, what is kept is bounded. As in Suricata, an entity is a file when
it has a name; the rest is only searched for addresses of the web. An encapsulated message is read as a message.

::

    head ──► body ──┬─ a delimiter line ──► head of the next entity
      ▲             └─ else content: decoded into the open file
      └── of an encapsulated message, at once

Source: RFC 2045, 2046, 2183, 2231; Suricata user guide, "Email Keywords".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from engines.stateful.app.files import File, Files
from engines.stateful.app.limits import AppLimits

_PARAMETER = re.compile(rb';([^=;"]+)=[ \t]*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))', re.DOTALL)
_SPACE = b" \t\r\n"
# Lengths in RFC 2045 and, where it has none, in Suricata.
_LINE, _CODED_LINE, _NAME, _VALUE, _BOUNDARY, _FILE_NAME = 998, 76, 75, 2000, 254, 255
_MAX_SECTIONS = 64


def parameter(value: bytes, name: bytes) -> bytes | None:
    """A parameter of a header field such as Content-Type, by its lower-case name.

    In sections (``name*0``, ``name*1`` ...) and with a character set (``name*``), too: RFC 2231, sections 3 and 4.
    """
    found: dict[bytes, bytes] = {}
    for match in _PARAMETER.finditer(value):
        text = match[3].rstrip(_SPACE) if match[2] is None else match[2]
        found.setdefault(match[1].strip(_SPACE).lower(), text)
    if name in found:
        return found[name]
    if name + b"*" in found:
        return _extended(found[name + b"*"])
    sections = []
    for number in range(_MAX_SECTIONS):
        key = b"%b*%d" % (name, number)
        if key in found:
            sections.append(found[key])
        elif key + b"*" in found:
            text = found[key + b"*"]
            sections.append(unquote_to_bytes(text) if number else _extended(text))
        else:
            break
    return b"".join(sections) if sections else None


def _extended(text: bytes) -> bytes:
    """charset'language'percent-coded."""
    return unquote_to_bytes(text.split(b"'", 2)[-1])


def _longer(data: bytes, limit: int) -> bool:
    """A line is longer, its end not counted."""
    lines = data.split(b"\n")
    return max(map(len, lines)) > limit and any(len(line) - line.endswith(b"\r") > limit for line in lines)


# --- content transfer codings ----------------------------------------------------------------------------------------


class Plain:
    """As it came; the line end before a delimiter belongs to the delimiter (RFC 2046, section 5.1.1)."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = b""

    def feed(self, data: bytes, events: Callable[[str], None]) -> bytes:
        out = self._end + data
        size = 2 if out.endswith(b"\r\n") else int(out.endswith((b"\n", b"\r")))
        self._end = out[len(out) - size :]
        return out[: len(out) - size]

    def finish(self) -> bytes:
        return b""


_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
_BLANK = b" \t\r\n"


class Base64:
    """RFC 2045, section 6.8: other characters are passed over, and said; padding may be followed by more."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, events: Callable[[str], None]) -> bytes:
        if _longer(data, _CODED_LINE):
            events("mime_long_enc_line")
        letters = data.translate(None, _BLANK)
        text = letters.translate(None, _NOT_BASE64)
        if len(text) != len(letters):
            events("mime_invalid_base64")
        *padded, last = (self._rest + text).split(b"=")
        out = [_quads(part) for part in padded if part]
        whole = len(last) & ~3
        out.append(base64.b64decode(last[:whole]))
        self._rest = last[whole:]
        return b"".join(out)

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return _quads(rest)


def _quads(text: bytes) -> bytes:
    """Decode what is followed by padding or nothing; a single letter says nothing."""
    if len(text) % 4 == 1:
        text = text[:-1]
    return base64.b64decode(text + b"=" * (-len(text) % 4))


_BAD_ESCAPE = re.compile(rb"=(?![0-9A-F]{2}|[ \t]*\r?(?:\n|\Z))")
_OPEN_ESCAPE = re.compile(rb"=[ \t\r]*\Z|=[0-9A-Fa-f]\Z")
_SOFT_BREAK = re.compile(rb"=[ \t]*\r?\n")


class QuotedPrintable:
    """RFC 2045, section 6.7."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, events: Callable[[str], None]) -> bytes:
        if _longer(data, _CODED_LINE):
            events("mime_long_enc_line")
        data = self._rest + data
        unfinished = _OPEN_ESCAPE.search(data, max(len(data) - 80, 0))
        at = len(data) if unfinished is None else unfinished.start()
        self._rest = data[at:]
        data = data[:at]
        if b"=" in data:
            if _BAD_ESCAPE.search(data):
                events("mime_invalid_qp")
            data = binascii.a2b_qp(_SOFT_BREAK.sub(b"", data))
        return data

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return b"" if rest.rstrip(b" \t\r") == b"=" else rest


_CODINGS: dict[bytes, Callable[[], Plain | Base64 | QuotedPrintable]] = {
    b"base64": Base64,
    b"quoted-printable": QuotedPrintable,
}

# --- messages --------------------------------------------------------------------------------------------------------

_URL = re.compile(rb"(?i)http://([^ \t\r\n\"'<>\]]{0,2048})")
_SCHEME = b"http://"
_URL_ENDS = re.compile(rb"[ \t\r\n\"'<>\]]")
_URL_SIZE = 2048


class Message:
    """One mail, fed in pieces that end with a line or, if that is too long, anywhere. ``event`` is called with the
    names of anomalies. ``head`` is None until the header of the message itself is complete."""

    __slots__ = (
        "_boundaries",
        "_coding",
        "_delimiter",
        "_event",
        "_fields",
        "_file",
        "_head_size",
        "_in_body",
        "_inner_message",
        "_limits",
        "_mid_line",
        "_searched",
        "_text",
        "files",
        "head",
        "urls",
    )

    def __init__(self, files: Files, limits: AppLimits, event: Callable[[str], None]) -> None:
        self.files = files
        self.head: list[tuple[bytes, bytes]] | None = None
        self.urls: list[bytes] = []
        self._limits = limits
        self._event = event
        self._fields: list[tuple[bytes, bytes]] = []  # of the entity whose head is being read
        self._head_size = 0
        self._in_body = False
        self._inner_message = False  # what follows is a message within, unless it turns out to be coded
        self._mid_line = False  # the last piece did not end with a line
        self._boundaries: list[bytes] = []
        self._delimiter: re.Pattern[bytes] | None = None
        self._file: File | None = None
        self._coding: Plain | Base64 | QuotedPrintable = Plain()
        self._searched = True  # for addresses
        self._text = b""  # the start of an address at the end of what came

    def values(self, name: bytes) -> list[bytes]:
        """The values of a header field of the message, by its lower-case name."""
        return [value for field, value in self.head or () if field == name]

    def feed(self, data: bytes) -> None:
        """The next piece."""
        if _longer(data, _LINE):
            self._event("mime_long_line")
        position = 0
        while position < len(data):
            if self._in_body:
                position = self._body(data, position)
            else:
                end = data.find(b"\n", position) + 1 or len(data)
                self._head_line(data[position:end])
                position = end
            if position:
                self._mid_line = data[position - 1] != 0x0A

    def finish(self) -> None:
        """The message is complete."""
        if not self._in_body and self.head is None:
            self.head = self._fields
        self._close_file()

    # -- heads

    def _head_line(self, line: bytes) -> None:
        if self._mid_line:
            return  # the rest of a line that was too long
        if len(line.rstrip(b"\n")) >= self._limits.dialogue_line:
            self._event("truncated_line")
            line = line[: self._limits.dialogue_line]
        line = line.rstrip(b"\r\n")
        if not line:
            self._head_end()
            return
        if self._at_delimiter(line):
            return
        self._head_size += len(line)
        if self._head_size > self._limits.mail_head:
            self._event("mime_long_header_value")
        elif line[:1] in {b" ", b"\t"}:
            if self._fields:
                name, value = self._fields[-1]
                self._fields[-1] = name, value + line[1:]
                if len(value) + len(line) - 1 > _VALUE:
                    self._event("mime_long_header_value")
        else:
            name, colon, value = line.partition(b":")
            if not colon:
                return
            value = value.lstrip(_SPACE)
            if len(name) > _NAME:
                self._event("mime_long_header_name")
            if len(value) > _VALUE:
                self._event("mime_long_header_value")
            self._fields.append((name.strip().lower(), value))

    def _head_end(self) -> None:
        fields, self._fields, self._head_size = self._fields, [], 0
        if self.head is None:
            self.head = fields
        kind = _first(fields, b"content-type") or b""
        disposition = _first(fields, b"content-disposition") or b""
        coding = (_first(fields, b"content-transfer-encoding") or b"").strip().lower()
        name = parameter(disposition, b"filename") or parameter(kind, b"name")
        media = kind.partition(b";")[0].strip().lower()
        boundary = parameter(kind, b"boundary")
        if boundary:
            self._add_boundary(boundary)
        self._coding = _CODINGS.get(coding, Plain)()
        self._searched = bool(name) or media in {b"", b"text/plain", b"text/html"}
        self._inner_message = media == b"message/rfc822"
        if name and not (self._inner_message and coding != b"base64"):
            if len(name) > _FILE_NAME:
                self._event("mime_long_filename")
            self._file = self.files.open(name[:_FILE_NAME])
        self._in_body = True

    def _add_boundary(self, boundary: bytes) -> None:
        if len(boundary) > _BOUNDARY:
            self._event("mime_long_boundary")
        if len(self._boundaries) >= self._limits.mail_depth:
            self._event("mime_parse_failed")
            return
        if b"--" + boundary not in self._boundaries:
            self._boundaries.append(b"--" + boundary)
        self._compile()

    def _compile(self) -> None:
        # The longest first, because one may begin like another.
        choices = b"|".join(re.escape(text) for text in sorted(self._boundaries, key=len, reverse=True))
        self._delimiter = re.compile(rb"^(" + choices + rb")[^\n]*(?:\n|\Z)", re.MULTILINE)

    def _at_delimiter(self, line: bytes) -> bool:
        found = self._delimiter.match(line) if self._delimiter is not None else None
        if found is not None:
            self._next_entity(found[1])
        return found is not None

    def _next_entity(self, boundary: bytes) -> None:
        self._close_file()
        at = self._boundaries.index(boundary)
        if len(self._boundaries) > at + 1:
            del self._boundaries[at + 1 :]
            self._compile()
        self._in_body = self._inner_message = False
        self._fields, self._head_size = [], 0

    # -- bodies

    def _body(self, data: bytes, position: int) -> int:
        """Content up to the next delimiter; answers where to go on."""
        if self._inner_message:
            self._inner_message = False
            if self._inner(data, position):
                return position
        first = position + int(self._mid_line)
        found = self._delimiter.search(data, first) if self._delimiter is not None else None
        end = len(data) if found is None else found.start()
        if end > position:
            self._content(data[position:end])
        if found is None:
            return end
        self._next_entity(found[1])
        return found.end()

    def _inner(self, data: bytes, position: int) -> bool:
        """Begin with the head of an encapsulated message. RFC 2046, section 5.2.1 forbids to code one, so a coding that
        is announced is believed only when what follows cannot be a head."""
        line = data[position : data.find(b"\n", position) + 1 or len(data)]
        if isinstance(self._coding, Base64) and b":" not in line:
            return False
        self._close_file()
        self._in_body = False
        return True

    def _content(self, data: bytes) -> None:
        file = self._file
        if not self._searched and file is None:
            return
        plain = self._coding.feed(data, self._event)
        if file is not None:
            file.feed(plain)
        self._find_urls(plain)

    def _find_urls(self, text: bytes, *, last: bool = False) -> None:
        if len(self.urls) >= self._limits.mail_urls:
            return
        text = self._text + text
        end = len(text) if last else _address_begins(text)
        self._text = text[end:]
        if b":" in text:
            for found in _URL.finditer(text, 0, end):
                self.urls.append(found[1])
                if len(self.urls) >= self._limits.mail_urls:
                    break

    def _close_file(self) -> None:
        rest = self._coding.finish()
        if self._file is not None:
            self._file.feed(rest)
            self.files.close()
            self._file = None
        self._find_urls(rest, last=True)
        self._coding = Plain()


def _address_begins(text: bytes) -> int:
    """Where the end of the text is the start of an address that may go on, or the length of the text."""
    tail = text[-_URL_SIZE - len(_SCHEME) :].lower()
    start = len(text) - len(tail)
    at = tail.rfind(_SCHEME)
    if at >= 0 and not _URL_ENDS.search(tail, at):
        return start + at
    for size in range(len(_SCHEME) - 1, 0, -1):
        if tail.endswith(_SCHEME[:size]):
            return len(text) - size
    return len(text)


def _first(fields: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for field, value in fields if field == name), None)

"""What the lines of an HTTP/1 message look like to libhtp and to browsers: expressions, and what they answer."""

from __future__ import annotations

import re

from engines.verdict import Direction

_REQUEST_HEAD_END = re.compile(rb"\n\r?\n")
# As libhtp htp_connp_RES_HEADERS: LF CR is a line end too, so LF CR CR LF are two, though CR LF CR CR LF is one and a
# line of its own; a single space or tab between bare LFs also ends the head.
_RESPONSE_HEAD_END = re.compile(rb"\n(?:\r?\n|(?<=[^\r]\n)(\r\r\n)|[ \t]\n(?=[^\n]))")
_HEAD_END = (_REQUEST_HEAD_END, _RESPONSE_HEAD_END)
HEAD_END_SIZE = 6  # the longest of these, to find one that began in an earlier feed
BARE_CR = re.compile(rb"\r(?!\n)")
BLANK = (b"\r\n \t\0", b"\r\n")  # what may stand before a message, by direction
SPACE = b" \t\x0b\x0c\r\0"
LINE_END = SPACE + b"\n"
_PROTOCOL = re.compile(rb"(?i)[ \t]HTTP/\S{0,32}$")
_PROTOCOL_TAIL = 40  # how far from the end of the line the protocol can begin
# Browsers pass over up to four bytes before HTTP, and some read SHOUTcast's ICY like it.
STATUS_LINE = re.compile(rb"(?is)[\s\0]*(?:[^\s\0].{0,3}?)??(HTTP|ICY[ ])")
_STATUS_LINE_BEGINS = (b"HTTP", b"ICY ")
RESPONSE_LINE = re.compile(rb"(?is)((?:HTTP|ICY)[^\s]*)[ \t]*([^\s]*)[ \t]*(.*)")
PROTOCOL_VERSION = re.compile(rb"(?i)HTTP/[0-9]\.[0-9]")
STATUS = re.compile(rb"[1-9][0-9]{2}")
DOUBTFUL_LENGTHS = frozenset({"invalid_content_length_field_in_response", "duplicate_content_length_field_in_response"})
OLD_PROTOCOLS = (b"HTTP/0.9", b"HTTP/1.0")
FIELD_NAME = re.compile(rb"[^\s:]{1,256}[ \t]{0,16}:")
FIELD_NAME_SO_FAR = re.compile(rb"[^\s:]{1,256}[ \t]{0,16}")
FIELD_NAME_SIZE = 256 + 16 + 1
# Some browsers read "0x" as C does.
CHUNK_SIZE = re.compile(rb"[\r\n \t\x0b\x0c]*(?:0[xX](?=[0-9A-Fa-f]))?([0-9A-Fa-f]*)(.*)", re.DOTALL)
CHUNK_END_SPACE = re.compile(rb"[ \t\r]*")
# From here on a first line without an end is a body rather than junk before a status line.
LONG_JUNK = 256
DIGITS = re.compile(rb"[0-9]+")
MAX_CHUNK = (1 << 31) - 1  # libhtp: INT32_MAX
# Bytes that look like neither a chunk size nor space before it: not chunked after all, without waiting for a line end.
EMPTY_LINES = re.compile(rb"[\r\n \t\x0b\x0c]*\n")
NOT_CHUNK = re.compile(rb"[\r\n \t\x0b\x0c]*[^0-9A-Fa-f\r\n \t\x0b\x0c]")


def find_protocol(line: bytes) -> int | None:
    """Where the space before the protocol is, in a line without its end."""
    found = _PROTOCOL.search(line, max(len(line) - _PROTOCOL_TAIL, 0))
    return None if found is None else found.start()


def is_status_line(line: bytes) -> bool:
    """Whether browsers would take this for a status line (libhtp htp_treat_response_line_as_body)."""
    return STATUS_LINE.match(line) is not None


def may_be_status_line(start: bytes) -> bool:
    """Whether a line that begins with up to four bytes like these can be a status line, nothing passed over."""
    return any(begin.startswith(start.upper()) for begin in _STATUS_LINE_BEGINS)


def find_head_end(direction: Direction, data: bytes | bytearray, start: int, first: int) -> re.Match[bytes] | None:
    """The end of a head that has its first line end at ``start``, looked for from ``first``."""
    expression = _HEAD_END[direction]
    end = expression.search(data, first)
    if end is not None and end.start() == start and direction is Direction.TO_CLIENT and end.start(1) >= 0:
        end = expression.search(data, start + 1)  # how the status line ended does not matter
    return end

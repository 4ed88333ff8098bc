"""Forms with files in them: multipart/form-data, read as it comes.

As in Suricata a part is a file when it has a file name, whatever its type says, and a line that is no field is passed
over. Of the body no more is read than rules may see, so nothing here needs a bound of its own.

Source: RFC 7578; RFC 2046, section 5.1.1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from engines.stateful.app.files import File, Files
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.mime import parameter

_MAX_BOUNDARY = 255


class _State(enum.Enum):
    PREAMBLE = enum.auto()
    DELIMITER = enum.auto()  # the rest of its line
    HEAD = enum.auto()
    CONTENT = enum.auto()


class Form:
    """The parts of one body. ``event`` is called with the names of anomalies."""

    __slots__ = ("_buffer", "_delimiter", "_event", "_fields", "_file", "_fresh", "_state", "files")

    def __init__(self, boundary: bytes, limits: AppLimits, event: Callable[[str], None]) -> None:
        self.files = Files(limits)
        self._delimiter = b"--" + boundary
        self._event = event
        self._buffer = b""
        self._state = _State.PREAMBLE
        self._fields: list[tuple[bytes, bytes]] = []
        self._file: File | None = None
        self._fresh = False  # nothing of the content was seen yet

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        data = self._buffer + data
        position = 0
        while position < len(data):
            after = self._content(data, position) if self._state is _State.CONTENT else self._line(data, position)
            if after == position:
                break
            position = after
        self._buffer = data[position:]

    def finish(self) -> None:
        """No more will come: what could have been the start of a delimiter is content."""
        if self._state is _State.CONTENT and self._file is not None:
            self._file.feed(self._buffer)
        self._buffer = b""
        self.files.close(complete=False)  # of a body that is read no further, or was cut
        self._file = None

    def _line(self, data: bytes, position: int) -> int:
        """One line outside of content; the same position when it is not complete."""
        end = data.find(b"\n", position) + 1
        if not end:
            return position
        line = data[position:end].rstrip(b"\r\n")
        if self._state is _State.DELIMITER:
            self._state = _State.HEAD
        elif line.startswith(self._delimiter):
            self._fields = []
            self._state = _State.HEAD
        elif self._state is _State.HEAD:
            self._head_line(line)
        return end

    def _head_line(self, line: bytes) -> None:
        if not line:
            self._open()
        elif line[:1] in {b" ", b"\t"} and self._fields:
            name, value = self._fields[-1]
            self._fields[-1] = name, value + line
        else:
            name, colon, value = line.partition(b":")
            if not colon or not value.strip():
                self._event("multipart_invalid_header")
            self._fields.append((name.strip().lower(), value))

    def _open(self) -> None:
        for name, value in self._fields:
            found = parameter(value, b"filename") if name == b"content-disposition" else None
            if found:
                self._file = self.files.open(found.replace(b"\\", b""))
        self._fields = []
        self._fresh = True
        self._state = _State.CONTENT

    def _content(self, data: bytes, position: int) -> int:
        delimiter = self._delimiter
        if self._fresh:
            start = data[position : position + len(delimiter)]
            if start == delimiter:
                if self._file is not None:
                    self._event("multipart_no_filedata")
                return self._part_end(position + len(delimiter))
            if delimiter.startswith(start):
                return position
            self._fresh = False
        at = data.find(b"\n" + delimiter, position)
        if at < 0:
            end = _could_begin(data, position, b"\n" + delimiter)
            self._take(data[position:end])
            return end
        self._take(data[position : at - (at > position and data[at - 1] == 0x0D)])
        return self._part_end(at + 1 + len(delimiter))

    def _take(self, content: bytes) -> None:
        if content and self._file is not None:
            self._file.feed(content)

    def _part_end(self, position: int) -> int:
        self._close()
        self._state = _State.DELIMITER
        return position

    def _close(self) -> None:
        if self._file is not None:
            self.files.close()
            self._file = None


def _could_begin(data: bytes, position: int, delimiter: bytes) -> int:
    """Where the end of the data could be the start of a delimiter with the line end before it."""
    at = data.rfind(b"\n", position)
    if at < 0 or not delimiter.startswith(data[at:]):
        return len(data) - data.endswith(b"\r")
    return at - (at > position and data[at - 1] == 0x0D)


def boundary_of(content_type: bytes | None) -> bytes | None:
    """The boundary a Content-Type names, when it is one that counts (Suricata: at most 255 bytes)."""
    boundary = parameter(content_type, b"boundary") if content_type else None
    boundary = boundary.replace(b"\\", b"") if boundary else b""
    return boundary if 0 < len(boundary) <= _MAX_BOUNDARY else None

"""The inspected part of a body: content codings undone, bounded in size and in work.

Promise: no more than ``limit`` bytes are kept, no layer produces more than ``AppLimits.decoded_inner``, and what cannot
be decoded is kept as it came, because browsers show it. As lenient as libhtp (http-evader): ``gzip`` may be zlib or raw
deflate and the other way round, checksums and lengths at the end are not looked at, more members may follow.
"""

from __future__ import annotations

import lzma
import zlib
from typing import Protocol

import brotli

from engines.stateful.app.digests import digests_for
from engines.stateful.app.limits import AppLimits

# Input kept until the first output, to start again in another format.
_PROBE = 4096
_GZIP_HEADER = 10  # RFC 1952, section 2.3, without optional fields
_TRAILER = 8  # RFC 1952, section 2.3.1: CRC32 and ISIZE
_LZMA_HEADER = 1 + 4 + 8  # properties, size of the dictionary, size of what comes out
_LZMA_STATE = 256 << 10  # what liblzma needs besides the dictionary


class Body:
    """Bytes of one message body. ``full``: nothing more is wanted, so the owner may :meth:`skip`."""

    __slots__ = (
        "_data",
        "_decoders",
        "_digests",
        "_inner_left",
        "_limit",
        "_view",
        "ended",
        "events",
        "full",
        "length",
    )

    def __init__(self, limit: int, decoders: list[Decoder], limits: AppLimits) -> None:
        self._limit = limit
        self._decoders = decoders
        self._inner_left = [limits.decoded_inner] * max(len(decoders) - 1, 0)
        self._data = bytearray()
        self._view = b""
        self.length = 0  # as sent, codings included
        self.full = limit <= 0
        self.ended = False
        self._digests = None if self.full else digests_for(limits)
        self.events: list[str] = []

    @property
    def size(self) -> int:
        """Decoded bytes kept."""
        return len(self._data)

    def view(self) -> bytes:
        """What is there so far, decoded."""
        if len(self._view) != len(self._data):
            self._view = bytes(self._data)
        return self._view

    def since(self, offset: int) -> bytes:
        """What came after the first bytes, decoded."""
        return bytes(self._data[offset:])

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True when no more will be kept."""
        self.length += len(data)
        if self.full:
            return True
        if not self._decoders and self._digests is None and len(self._data) + len(data) < self._limit:
            self._data += data  # what most bodies come to
        else:
            self._decode(data, 0)
        return self.full or len(self._data) >= self._limit

    def digest(self, name: str) -> bytes | None:
        """Of the whole body by the buffer's name, once it has ended."""
        return self._digests.values().get(name) if self.ended and self._digests is not None else None

    def _room(self) -> int:
        """How many decoded bytes are wanted."""
        return max(self._limit - len(self._data), 0 if self._digests is None else self._digests.room)

    def skip(self, size: int) -> None:
        """Count bytes that nobody will look at."""
        self.length += size

    def finish(self) -> None:
        """The message ended: what decoders still wonder about is plain."""
        self.ended = True
        last = len(self._decoders) - 1
        for index, decoder in enumerate(self._decoders):
            if self.full:
                break
            rest = decoder.finish(self._room() if index == last else self._inner_left[index])
            self._note_failure(decoder)
            if rest:
                self._decode(rest, index + 1)

    def _decode(self, data: bytes, first: int) -> None:
        last = len(self._decoders) - 1
        for index in range(first, last + 1):
            decoder = self._decoders[index]
            if index == last:
                data = decoder.feed(data, self._room())
            else:
                data = decoder.feed(data, self._inner_left[index])
                self._inner_left[index] -= len(data)
                if self._inner_left[index] <= 0:
                    self.events.append("compression_bomb")
                    self.full = True
            self._note_failure(decoder)
        self._data += data[: self._limit - len(self._data)]
        if self._digests is not None:
            self._digests.update(data)
        if len(self._data) >= self._limit and (self._digests is None or self._digests.spent):
            self.full = True
        if self.full:
            self._decoders = []  # gives their windows back
            self._digests = None

    def _note_failure(self, decoder: Decoder) -> None:
        if decoder.failed and "gzip_decompression_failed" not in self.events:
            self.events.append("gzip_decompression_failed")


class Decoder(Protocol):
    """One content coding. Never raises; ``failed`` says the rest could not be decoded."""

    failed: bool

    def feed(self, data: bytes, room: int) -> bytes:
        """At most ``room`` bytes; when that many come out the owner is done with this body."""

    def finish(self, room: int) -> bytes:
        """Input that turned out to be in another format, or not to be coded at all."""


def decoders_for(codings: bytes, limits: AppLimits) -> tuple[list[Decoder], list[str]]:
    """The decoders that undo a Content-Encoding value, last applied first, and events.

    Tokens are matched as loosely as browsers and libhtp do (``x-gzip``, ``xgzipx``, any case). Source: RFC 9110,
    section 8.4; libhtp htp_tx_state_response_headers.
    """
    decoders: list[Decoder] = []
    events: list[str] = []
    for token in reversed(codings.lower().split(b",")):
        token = token.strip()
        decoder: Decoder
        if not token or token in {b"identity", b"none", b"inflate"}:
            continue
        if b"gzip" in token or b"deflate" in token:
            decoder = Inflate()
        elif token == b"br":
            decoder = Brotli()
        elif token == b"lzma" and limits.lzma:
            decoder = Lzma(limits.lzma_memory)
        else:
            events.append("abnormal_ce_header")
            break
        if len(decoders) >= limits.decode_layers:
            events.append("too_many_encoding_layers")
            break
        decoders.append(decoder)
    return decoders, events


class Inflate:
    """gzip, zlib and raw deflate, told apart by their first bytes rather than by the header's word.

    Plain text often decodes for a few bytes as raw deflate, which has no header to tell. When that breaks early both
    readings are given: what was decoded, then everything as it came.
    """

    __slots__ = ("_after", "_candidates", "_done", "_kept", "_plain", "_probe", "_raw", "failed")

    def __init__(self) -> None:
        self.failed = False
        self._after: bytearray | None = None  # what followed the end of a member, until it is clear what it is
        self._probe: bytearray | None = bytearray()  # input so far; None once there was output
        self._candidates: list[int] | None = None  # header sizes to try, best first
        self._kept: bytearray | None = None  # input so far while it may still turn out to be plain
        self._raw = zlib.decompressobj(-15)
        self._plain = False
        self._done = False

    def feed(self, data: bytes, room: int) -> bytes:
        if self._plain:
            return data[:room]
        if self._done or room <= 0:
            return b""
        if self._probe is not None:
            self._probe += data
            if self._candidates is None:
                self._candidates = _header_candidates(bytes(self._probe[:_PROBE]))
                if self._candidates is None:
                    return b""
                return self._try_candidates(room)
        if self._after is not None:
            self._after += data
            return self._next_members(room)
        # The state before, because a call that meets broken bytes loses what came out before them.
        before = self._raw.copy()
        try:
            out = self._raw.decompress(data, room)
        except zlib.error:
            out, used = _up_to_the_break(before, data, room)
            if self._probe is not None and not out:
                return self._try_candidates(room)
            return self._broken(out, used, data, room)
        if self._kept is not None:
            self._kept = self._kept + data if len(self._kept) + len(data) <= _PROBE else None
        return self._collect(out, room)

    def finish(self, room: int) -> bytes:
        out = b""
        while self._probe and not self._plain and not out:
            if self._candidates is None:
                if len(self._probe) < _GZIP_HEADER:
                    return bytes(self._probe[:room])
                self._candidates = [_GZIP_HEADER, 0]  # flags promised fields that are not there
            out = self._try_candidates(room)
        if self._kept and not self._raw.eof:
            out += self._kept  # it never ended
        return out[:room]

    def _try_candidates(self, room: int) -> bytes:
        """Start from the beginning with the next possible format."""
        assert self._probe is not None
        assert self._candidates is not None
        probe = bytes(self._probe)
        while self._candidates:
            header = self._candidates.pop(0)
            self._raw = zlib.decompressobj(-15)
            self._kept = None if header else bytearray()
            try:
                out = self._raw.decompress(probe[header:], room)
            except zlib.error:
                # The first format that gives anything is the one, however the bytes were cut.
                out, used = _up_to_the_break(zlib.decompressobj(-15), probe[header:], room)
                if out:
                    return self._broken(out, used, probe, room)
                continue
            if self._kept is not None:
                self._kept = bytearray(probe) if len(probe) <= _PROBE else None
            return self._collect(out, room)
        self.failed = True
        self._plain, self._probe, self._kept = True, None, None
        return probe[:room]

    def _collect(self, out: bytes, room: int) -> bytes:
        if out:
            self._probe = None
        elif self._probe is not None and len(self._probe) > _PROBE:
            self._probe = None  # a long header or empty blocks: too late for another format
        if self._raw.eof:
            self._probe, self._after = None, bytearray(self._raw.unused_data)
            out += self._next_members(room - len(out))
        return out

    def _next_members(self, room: int) -> bytes:
        """What follows the checksum may be another member (RFC 1952, section 2.2); anything else is ignored."""
        out = b""
        while self._after is not None and len(out) < room:
            rest = bytes(self._after)
            at = rest.find(b"\x1f\x8b\x08", 0, _TRAILER + 3)
            header = gzip_header_size(rest[at : at + _PROBE]) if at >= 0 else None
            if not header:
                self._done = len(rest) >= (_PROBE if at >= 0 else _TRAILER + 3)
                break
            self._raw = zlib.decompressobj(-15)
            try:
                out += self._raw.decompress(rest[at + header :], room - len(out))
            except zlib.error:
                self._break()
                return out + _up_to_the_break(zlib.decompressobj(-15), rest[at + header :], room - len(out))[0]
            self._after = bytearray(self._raw.unused_data) if self._raw.eof else None
        return out

    def _broken(self, out: bytes, used: int, data: bytes, room: int) -> bytes:
        """``out`` came before the break, ``used`` bytes into ``data``, which is what was not kept yet."""
        self._break()
        kept, self._kept = self._kept, None
        if kept is None or len(kept) + used > _PROBE:
            return out
        self._done, self._plain = False, True
        return (out + kept + data)[:room]

    def _break(self) -> None:
        self.failed = self._done = True
        self._probe = self._after = None


def gzip_header_size(data: bytes) -> int | None:
    """Length of the gzip header at the start of ``data`` (RFC 1952, section 2.3); 0: none, None: more is needed."""
    if not b"\x1f\x8b".startswith(data[:2]):
        return 0
    if len(data) < _GZIP_HEADER:
        return None
    flags, at = data[3], _GZIP_HEADER
    if flags & 4:
        if len(data) < 12:
            return None
        at += 2 + int.from_bytes(data[10:12], "little")
    for flag in (8, 16):
        if flags & flag:
            at = data.find(b"\0", at) + 1
            if not at:
                return None
    if flags & 2:
        at += 2
    return at if at <= len(data) else None


def _header_candidates(probe: bytes) -> list[int] | None:
    gzip = gzip_header_size(probe)
    if gzip is None and len(probe) < _PROBE:
        return None
    if gzip:
        # Senders that set flags and leave the fields out exist; so does a body that only looks like gzip.
        return [gzip, _GZIP_HEADER, 0] if gzip != _GZIP_HEADER else [gzip, 0]
    if len(probe) < 2:
        return None
    zlib_header = probe[0] & 15 == 8 and (probe[0] << 8 | probe[1]) % 31 == 0
    return [2, 0] if zlib_header else [0]


def _up_to_the_break(raw: zlib._Decompress, data: bytes, room: int) -> tuple[bytes, int]:
    """What comes out before the first byte that cannot be decoded, found by halving, and where that byte is."""
    out = b""
    size = step = len(data)
    while step and len(out) < room:
        trial = raw.copy()
        try:
            more = trial.decompress(data[:step], room - len(out))
        except zlib.error:
            step //= 2
            continue
        raw, data, out = trial, data[step:], out + more
        step = min(step, len(data))
    return out, size - len(data)


class Brotli:
    """RFC 7932."""

    __slots__ = ("_done", "_inner", "_plain", "_probe", "failed")

    def __init__(self) -> None:
        self.failed = False
        self._inner = brotli.Decompressor()
        self._probe: bytearray | None = bytearray()  # input so far; None once there was output
        self._done = self._plain = False

    def feed(self, data: bytes, room: int) -> bytes:
        if self._plain:
            return data[:room]
        if self._done or room <= 0:
            return b""
        if self._probe is not None:
            self._probe += data
        out = bytearray()
        try:
            out += self._inner.process(data, output_buffer_limit=room)
            while len(out) < room and not self._inner.can_accept_more_data():
                more = self._inner.process(b"", output_buffer_limit=room - len(out))
                if not more:
                    break
                out += more
        except brotli.error:
            self.failed = True
            if self._probe is not None and not out:
                plain, self._plain, self._probe = bytes(self._probe), True, None
                return plain[:room]
            self._done = True
        if out or (self._probe is not None and len(self._probe) > _PROBE):
            self._probe = None
        self._done = self._done or self._inner.is_finished() or len(out) >= room
        return bytes(out[:room])

    def finish(self, room: int) -> bytes:
        return b""


class Lzma:
    """The old .lzma container, which some clients decode (LZMA SDK, lzma-specification). The dictionary is never larger
    than ``memory``, whatever its header asks for: what needs more of it fails (libhtp lzma-memlimit)."""

    __slots__ = ("_done", "_header", "_inner", "_memory", "failed")

    def __init__(self, memory: int) -> None:
        self.failed = False
        self._header: bytearray | None = bytearray()  # as far as it is there; None once the decoder has it
        self._memory = min(max(memory, 0), (1 << 32) - 1)
        self._inner = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=self._memory + _LZMA_STATE)
        self._done = False

    def feed(self, data: bytes, room: int) -> bytes:
        if self._done or room <= 0:
            return b""
        if self._header is not None:
            self._header += data
            if len(self._header) < _LZMA_HEADER:
                return b""
            header = bytes(self._header)
            size = min(int.from_bytes(header[1:5], "little"), self._memory)
            data = header[:1] + size.to_bytes(4, "little") + header[5:]
            self._header = None
        try:
            out = self._inner.decompress(data, room)
        except (lzma.LZMAError, EOFError, MemoryError):
            self.failed = self._done = True
            return b""
        self._done = self._inner.eof or len(out) >= room
        return out

    def finish(self, room: int) -> bytes:
        return bytes(self._header or b"")[:room]

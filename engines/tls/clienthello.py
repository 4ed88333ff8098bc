"""Reads the first flight of a TLS client before any TLS library sees it, and refuses everything that is not one.

Promise: however the bytes are cut (TCP segments, TLS records, one byte each) the same ClientHello comes out; nothing a
peer sends raises; work is linear in the bytes fed; at most ``cap`` bytes are kept while the message is incomplete.
What does not parse is refused, never passed on: "does not look like TLS, so tunnel it" is a bypass.

Left out: whether the offer is acceptable (:mod:`engines.tls.session` decides) and encrypted ClientHello contents.

Sources: RFC 8446 section 4.1.2 (ClientHello) and 5.1 (records), RFC 5246 7.4.1.2, RFC 6066 section 3 (server_name),
RFC 7301 (ALPN), RFC 8701 (GREASE), RFC 9849 (ECH).
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

TLS1_2 = 0x0303
TLS1_3 = 0x0304

HELLO_CAP = 65536
"""Bytes kept for one ClientHello, record headers included. Real ones are 0.2 to 2 KB, with
post-quantum key shares 1.2 KB more."""

_EMPTY_RECORDS_CAP = 32  # RFC 8446 5.1 forbids empty handshake fragments; OpenSSL forgives as many
_RECORD_MAX = 16384  # RFC 8446 5.1: TLSPlaintext.length
_RECORD_HEADER = 5
_HANDSHAKE_HEADER = 4
_CONTENT_HANDSHAKE = 22
_CONTENT_NAMES = {20: "change_cipher_spec", 21: "alert", 23: "application_data", 24: "heartbeat"}
_CLIENT_HELLO = 1

_EXT_SERVER_NAME = 0
_EXT_GROUPS = 10
_EXT_POINT_FORMATS = 11
_EXT_SIGNATURE_ALGORITHMS = 13
_EXT_ALPN = 16
_EXT_PRE_SHARED_KEY = 41
_EXT_EARLY_DATA = 42
_EXT_SUPPORTED_VERSIONS = 43
_EXT_KEY_SHARE = 51
_EXT_ECH = 0xFE0D

_HTTP_METHODS = (
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"TRACE ",
    b"PATCH ",
    b"PRI ",
)

_HOST_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_ADDRESS_CHARACTERS = frozenset(b"0123456789abcdef:.[]%")
_GREASE = frozenset(0x0A0A + 0x1010 * number for number in range(16))  # RFC 8701
_KEPT_HELLOS = 256  # fingerprints of the last different ones
_KEPT_VALUES = 512  # at most in one that is kept; browsers offer about 80
_KEPT_NAMES = 4096
_HOST_MAX = 253  # RFC 1035 2.3.4, in text form without the trailing dot
_LABEL_MAX = 63


@dataclass(frozen=True, slots=True)
class NotTls:
    """The bytes are not a ClientHello nfw accepts. ``reason`` is a short stable token:

    ``http``, ``ssh``, ``sslv2``, ``alert``, ``application_data`` ... (what came instead), ``not_tls``,
    ``not_client_hello``, ``bad_record``, ``empty_records``, ``too_long`` (cap reached), ``decode_error`` (RFC 8446
    alert of that name: a length lies or an extension repeats).
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client offered, in its order; GREASE values (RFC 8701) are still in the tuples.

    ``sni`` is the server name normalised (lower case, one trailing dot removed) if it is a valid host name, else None;
    then ``sni_problem`` says why: ``absent``, ``ip_literal`` (RFC 6066 3: not permitted, taken as absent) or
    ``invalid``. ``sni_raw`` is what was sent. ``versions`` come from supported_versions, or from the legacy field.
    ``raw`` is every byte fed so far, to be replayed into the TLS library; it may extend past the ClientHello.
    """

    raw: bytes
    legacy_version: int
    versions: tuple[int, ...]
    ciphers: tuple[int, ...]
    extensions: tuple[int, ...]
    groups: tuple[int, ...]
    key_shares: tuple[int, ...]
    point_formats: tuple[int, ...]
    sig_algs: tuple[int, ...]
    alpn: tuple[bytes, ...]
    sni: str | None
    sni_raw: bytes | None
    sni_problem: str | None

    @property
    def has_ech(self) -> bool:
        """An encrypted_client_hello extension is there, be it real or GREASE (nobody on the path can tell)."""
        return _EXT_ECH in self.extensions

    @property
    def has_early_data(self) -> bool:
        return _EXT_EARLY_DATA in self.extensions

    @property
    def has_psk(self) -> bool:
        return _EXT_PRE_SHARED_KEY in self.extensions

    @property
    def ja3_string(self) -> str:
        """JA3 (salesforce/ja3): decimal version, ciphers, extensions, groups, point formats, GREASE left out."""
        return self.fingerprints.ja3_string

    @property
    def ja3(self) -> str:
        return self.fingerprints.ja3

    @property
    def ja4(self) -> str:
        """JA4 (FoxIO, technical_details/JA4.md) for TLS over TCP."""
        return self.fingerprints.ja4

    @property
    def fingerprints(self) -> Fingerprints:
        """All of them. Computed once for all hellos that offer the same, as one program's do; not kept of those that
        offer far more than any program does."""
        lists = (self.versions, self.ciphers, self.extensions, self.groups, self.point_formats, self.sig_algs)
        compute = _fingerprints if sum(map(len, lists)) <= _KEPT_VALUES else _fingerprints.__wrapped__
        return compute(self.legacy_version, *lists, _ja4_alpn(self.alpn))


class ClientHelloReader:
    """Collects bytes of the client until the ClientHello is whole. One reader per connection, done after one answer.

    ``cap``: bytes, see :data:`HELLO_CAP`; reaching it with the message still incomplete is ``NotTls("too_long")``.
    """

    __slots__ = ("_cap", "_empty", "_message", "_need", "_next", "_raw", "_result")

    def __init__(self, cap: int = HELLO_CAP) -> None:
        self._cap = cap
        self._raw = bytearray()
        self._next = 0  # offset in _raw of the record being waited for
        self._message = bytearray()  # handshake bytes of the complete records
        self._need: int | None = None  # size of the whole handshake message, once known
        self._empty = 0
        self._result: ClientHello | NotTls | None = None

    @property
    def raw(self) -> bytes:
        """Every byte fed."""
        return bytes(self._raw)

    def feed(self, data: bytes) -> ClientHello | NotTls | None:
        """Take the next bytes; None means more are needed. After an answer the same answer is returned again."""
        if self._result is not None:
            return self._result
        self._raw += data
        self._result = self._advance()
        if self._result is None and len(self._raw) >= self._cap:
            self._result = NotTls("too_long")
        return self._result

    def _advance(self) -> ClientHello | NotTls | None:
        raw = self._raw
        while True:
            at = self._next
            have = len(raw) - at
            if have and raw[at] != _CONTENT_HANDSHAKE:
                return NotTls(_what_instead(raw) if at == 0 else "bad_record")
            if have >= 2 and raw[at + 1] != 3:
                return NotTls("bad_record")
            if have < _RECORD_HEADER:
                return None
            length = int.from_bytes(raw[at + 3 : at + 5], "big")
            if length > _RECORD_MAX:
                return NotTls("bad_record")
            if have < _RECORD_HEADER + length:
                return self._refuse_early(at + _RECORD_HEADER)
            if length == 0:
                self._empty += 1
                if self._empty > _EMPTY_RECORDS_CAP:
                    return NotTls("empty_records")
            self._message += raw[at + _RECORD_HEADER : at + _RECORD_HEADER + length]
            self._next = at + _RECORD_HEADER + length
            problem = self._check_header(self._message)
            if problem is not None:
                return problem
            if self._need is not None and len(self._message) >= self._need:
                return self._finish()

    def _refuse_early(self, body: int) -> NotTls | None:
        """A record that lies need not be waited for: its first bytes already say what message it carries."""
        if self._need is not None:
            return None
        start = self._message + self._raw[body : body + _HANDSHAKE_HEADER]
        return self._check_header(start, keep=False)

    def _check_header(self, message: bytearray, *, keep: bool = True) -> NotTls | None:
        if message and message[0] != _CLIENT_HELLO:
            return NotTls("not_client_hello")
        if self._need is None and len(message) >= _HANDSHAKE_HEADER:
            need = _HANDSHAKE_HEADER + int.from_bytes(message[1:4], "big")
            if need > self._cap:
                return NotTls("too_long")
            if keep:
                self._need = need
        return None

    def _finish(self) -> ClientHello | NotTls:
        if len(self._message) != self._need:
            # RFC 8446 5.1: a message before a key change ends its record; 1.2 clients have nothing more to say either.
            return NotTls("decode_error")
        if self._next > self._cap:
            return NotTls("too_long")
        try:
            return _parse(bytes(self._message[_HANDSHAKE_HEADER:]), bytes(self._raw))
        except _DecodeError:
            return NotTls("decode_error")


def is_grease(value: int) -> bool:
    """RFC 8701: 0x0a0a, 0x1a1a ... 0xfafa."""
    return value in _GREASE


def normalise_host(raw: bytes) -> tuple[str | None, str | None]:
    """``(name, None)`` for a valid host name, else ``(None, problem)``; see :class:`ClientHello` for the problems.

    Letters, digits, hyphen and the underscore real hosts use (not RFC 952, but resolvable); A-labels are plain
    letters. Raw UTF-8 is refused: RFC 6066 3 asks for A-labels.
    """
    if len(raw) > _HOST_MAX + 1:  # that of a trailing dot; too long to be remembered, too
        return None, "invalid"
    return _normalised(raw)


@functools.lru_cache(_KEPT_NAMES)
def _normalised(raw: bytes) -> tuple[str | None, str | None]:
    name = raw.lower()
    if name.endswith(b"."):
        name = name[:-1]
    if not name or len(name) > _HOST_MAX:
        return None, "invalid"
    if (b":" in name or name.startswith(b"[")) and _ADDRESS_CHARACTERS.issuperset(name):
        return None, "ip_literal"
    labels = name.split(b".")
    if any(not label or len(label) > _LABEL_MAX or not _HOST_CHARACTERS.issuperset(label) for label in labels):
        return None, "invalid"
    if labels[-1].isdigit() or labels[-1].startswith(b"0x"):
        # No top-level domain is a number; resolvers read such names as IPv4 (WHATWG URL, "ends in a number").
        return None, "ip_literal"
    return name.decode("ascii"), None


class _DecodeError(Exception):
    """The bytes contradict themselves. Never leaves this module."""


class _Reader:
    """Length-checked reading of one byte string."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._at < self._end

    def take(self, count: int) -> bytes:
        at = self._at
        if count > self._end - at:
            raise _DecodeError
        self._at = at + count
        return self._data[at : self._at]

    def number(self, size: int) -> int:
        at, self._at = self._at, self._at + size
        if self._at > self._end:
            raise _DecodeError
        return int.from_bytes(self._data[at : self._at], "big")

    def vector(self, size: int) -> bytes:
        """A vector with a length of ``size`` bytes in front (RFC 8446 3.4)."""
        start = self._at + size
        end = start + int.from_bytes(self._data[self._at : start], "big")
        if end > self._end:  # also where the length itself is cut
            raise _DecodeError
        self._at = end
        return self._data[start:end]

    def end(self) -> None:
        if self:
            raise _DecodeError


def _parse(body: bytes, raw: bytes) -> ClientHello:
    reader = _Reader(body)
    legacy_version = reader.number(2)
    reader.take(32)  # random
    if len(reader.vector(1)) > 32:  # legacy_session_id
        raise _DecodeError
    ciphers = _numbers(reader.vector(2))
    if not reader.vector(1):  # legacy_compression_methods
        raise _DecodeError
    extensions: dict[int, bytes] = {}
    if reader:  # RFC 5246 7.4.1.2: a hello may end here
        _read_extensions(reader.vector(2), extensions)
        reader.end()
    sni_raw = _server_name(extensions[_EXT_SERVER_NAME]) if _EXT_SERVER_NAME in extensions else None
    sni, problem = normalise_host(sni_raw) if sni_raw is not None else (None, "absent")
    return ClientHello(
        raw=raw,
        legacy_version=legacy_version,
        versions=_versions(extensions.get(_EXT_SUPPORTED_VERSIONS), legacy_version),
        ciphers=ciphers,
        extensions=tuple(extensions),
        groups=_list_of_numbers(extensions.get(_EXT_GROUPS)),
        key_shares=_key_shares(extensions.get(_EXT_KEY_SHARE)),
        point_formats=_point_formats(extensions.get(_EXT_POINT_FORMATS)),
        sig_algs=_list_of_numbers(extensions.get(_EXT_SIGNATURE_ALGORITHMS)),
        alpn=_alpn(extensions.get(_EXT_ALPN)),
        sni=sni,
        sni_raw=sni_raw,
        sni_problem=problem,
    )


def _read_extensions(block: bytes, extensions: dict[int, bytes]) -> None:
    at, end = 0, len(block)
    while at < end:
        if end - at < 4:
            raise _DecodeError
        kind, length = _EXTENSION.unpack_from(block, at)
        start, at = at + 4, at + 4 + length
        if at > end or kind in extensions:  # RFC 8446 4.2: no type twice; two names would let two readers disagree
            raise _DecodeError
        extensions[kind] = block[start:at]


_EXTENSION = struct.Struct(">HH")  # type and length


def _server_name(data: bytes) -> bytes:
    """RFC 6066 3. Exactly one host_name, as OpenSSL demands: other name types were never defined."""
    reader = _Reader(data)
    names = _Reader(reader.vector(2))
    reader.end()
    if names.number(1) != 0:
        raise _DecodeError
    name = names.vector(2)
    names.end()
    if not name:
        raise _DecodeError
    return name


def _versions(data: bytes | None, legacy_version: int) -> tuple[int, ...]:
    if data is None:
        return (min(legacy_version, TLS1_2),)  # RFC 8446 4.2.1: without the extension, 1.2 at most
    if not data or data[0] != len(data) - 1:
        raise _DecodeError
    return _numbers(data[1:])


def _alpn(data: bytes | None) -> tuple[bytes, ...]:
    if data is None:
        return ()
    reader = _Reader(data)
    names = _Reader(reader.vector(2))
    reader.end()
    protocols = []
    while names:
        protocol = names.vector(1)
        if not protocol:  # RFC 7301 3.1: empty strings must not be included
            raise _DecodeError
        protocols.append(protocol)
    if not protocols:
        raise _DecodeError
    return tuple(protocols)


def _key_shares(data: bytes | None) -> tuple[int, ...]:
    if data is None:
        return ()
    reader = _Reader(data)
    shares = _Reader(reader.vector(2))
    reader.end()
    groups = []
    while shares:
        groups.append(shares.number(2))
        shares.vector(2)
    return tuple(groups)


def _point_formats(data: bytes | None) -> tuple[int, ...]:
    if data is None:
        return ()
    reader = _Reader(data)
    formats = reader.vector(1)
    reader.end()
    return tuple(formats)


def _list_of_numbers(data: bytes | None) -> tuple[int, ...]:
    if data is None:
        return ()
    if int.from_bytes(data[:2], "big") != len(data) - 2:
        raise _DecodeError
    return _numbers(data[2:])


def _numbers(data: bytes) -> tuple[int, ...]:
    if not data or len(data) % 2:
        raise _DecodeError
    return struct.unpack(f">{len(data) // 2}H", data)


def _what_instead(raw: bytearray) -> str:
    start = bytes(raw[:8])
    if start[0] in _CONTENT_NAMES and (len(start) < 2 or start[1] == 3):
        return _CONTENT_NAMES[start[0]]
    if (
        start[0] & 0x80 and len(start) > 2 and start[2] == _CLIENT_HELLO
    ):  # RFC 6101 E: 2-byte length with the high bit set
        return "sslv2"
    if start.startswith(_HTTP_METHODS):
        return "http"
    if start.startswith(b"SSH-"):
        return "ssh"
    return "not_tls"


def _no_grease(values: tuple[int, ...]) -> list[int]:
    return [value for value in values if value not in _GREASE]


class Fingerprints(NamedTuple):
    """See :class:`ClientHello`."""

    ja3_string: str
    ja3: str
    ja4: str


@functools.lru_cache(_KEPT_HELLOS)
def _fingerprints(
    legacy_version: int,
    versions: tuple[int, ...],
    ciphers: tuple[int, ...],
    extensions: tuple[int, ...],
    groups: tuple[int, ...],
    point_formats: tuple[int, ...],
    sig_algs: tuple[int, ...],
    alpn: str,
) -> Fingerprints:
    """``alpn`` is JA4's two characters."""
    suites, kinds = _no_grease(ciphers), _no_grease(extensions)
    fields = (suites, kinds, _no_grease(groups), _no_grease(point_formats))
    ja3_string = ",".join((str(legacy_version), *("-".join(map(str, field)) for field in fields)))
    version = _JA4_VERSIONS.get(max(_no_grease(versions), default=0), "00")
    name = "d" if _EXT_SERVER_NAME in kinds else "i"
    head = f"t{version}{name}{min(len(suites), 99):02d}{min(len(kinds), 99):02d}{alpn}"
    hashed = sorted(f"{value:04x}" for value in kinds if value not in (_EXT_SERVER_NAME, _EXT_ALPN))
    tail = ",".join(hashed)
    if sig_algs:
        tail += "_" + ",".join(f"{value:04x}" for value in _no_grease(sig_algs))
    sorted_suites = ",".join(sorted(f"{value:04x}" for value in suites))
    return Fingerprints(
        ja3_string,
        hashlib.md5(ja3_string.encode(), usedforsecurity=False).hexdigest(),
        f"{head}_{_ja4_hash(sorted_suites)}_{_ja4_hash(tail if hashed else '')}",
    )


_JA4_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}


def _ja4_alpn(alpn: tuple[bytes, ...]) -> str:
    if not alpn:
        return "00"
    first, last = alpn[0][:1], alpn[0][-1:]
    if first.isalnum() and last.isalnum():
        return (first + last).decode("ascii")
    return first.hex()[0] + last.hex()[1]


def _ja4_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else "0" * 12

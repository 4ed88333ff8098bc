"""The fields of a certificate whose contents break the rules of their types: found by their place in the DER alone.

A library rightly refuses a PrintableString with a zero byte in it; a rule about that name must still be able to match.
Only the outer structure has to hold. Source: ITU-T X.690 sections 8.1 and 10, RFC 5280 section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_INTEGER, _OID, _UTC_TIME, _TIME, _SEQUENCE, _SET = 0x02, 0x06, 0x17, 0x18, 0x30, 0x31
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_BMP_STRING, _UNIVERSAL_STRING = 0x1E, 0x1C
_MAX_ATTRIBUTES = 64
_MAX_NAMES = 1024
_SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
_MAIL, _DNS, _ADDRESS = 0x81, 0x82, 0x87


class HeaderCutError(ValueError):
    """A value ends inside its tag and length."""


@dataclass(frozen=True, slots=True)
class RawCertificate:
    """``subject`` and ``issuer``: dotted OID and text of each attribute; ``serial`` as encoded; times in seconds since
    the epoch; ``names``: tag (0x82 DNS, 0x81 mail, 0x87 address) and bytes of the subject's alternative names."""

    serial: bytes
    issuer: tuple[tuple[str, bytes], ...]
    subject: tuple[tuple[str, bytes], ...]
    not_before: float
    not_after: float
    names: tuple[tuple[int, bytes], ...]


def read_raw(der: bytes) -> RawCertificate:
    """Raises ValueError when it is not built like a certificate."""
    tag, certificate, _ = read(der, 0)
    inner, body, _ = read(certificate, 0)
    if (tag, inner) != (_SEQUENCE, _SEQUENCE):
        raise ValueError("no certificate")
    fields = list(items(body))
    if fields and fields[0][0] == _VERSION:
        del fields[0]
    if len(fields) < 6 or fields[0][0] != _INTEGER or any(fields[n][0] != _SEQUENCE for n in (2, 3, 4)):
        raise ValueError("no certificate")
    times = list(items(fields[3][1]))
    if len(times) != 2:
        raise ValueError("no validity")
    return RawCertificate(
        serial=fields[0][1],
        issuer=_name(fields[2][1]),
        subject=_name(fields[4][1]),
        not_before=_seconds(*times[0]),
        not_after=_seconds(*times[1]),
        names=tuple(_alternative_names(fields[6:])),
    )


def read(data: bytes, at: int, *, cut: bool = False) -> tuple[int, bytes, int]:
    """Tag, contents and the offset after one value. Raises ValueError when it is cut off or has no definite length.
    ``cut``: of what is known to be cut off, the contents that are there."""
    if at + 2 > len(data):
        raise HeaderCutError("value is cut off")
    tag, size = data[at], data[at + 1]
    start = at + 2
    if size & 0x80:
        more = size & 0x7F
        if not 1 <= more <= 4:
            raise ValueError("length is not in use")
        size = int.from_bytes(data[start : start + more], "big")
        start += more
        if start > len(data):
            raise HeaderCutError("value is cut off")
    end = start + size
    if end > len(data):
        if not cut:
            raise ValueError("value is cut off")
        end = len(data)
    return tag, data[start:end], end


def items(data: bytes, *, cut: bool = False) -> Iterator[tuple[int, bytes]]:
    """The values one after the other."""
    at = 0
    while at < len(data):
        tag, contents, at = read(data, at, cut=cut)
        yield tag, contents


def _name(data: bytes) -> tuple[tuple[str, bytes], ...]:
    found: list[tuple[str, bytes]] = []
    for _, rdn in items(data):
        for _, attribute in items(rdn):
            pair = list(items(attribute))
            if len(pair) != 2 or pair[0][0] != _OID or len(found) >= _MAX_ATTRIBUTES:
                raise ValueError("no attribute of a name")
            found.append((dotted(pair[0][1]), _text(*pair[1])))
    return tuple(found)


def _text(tag: int, data: bytes) -> bytes:
    if tag == _BMP_STRING:
        return data.decode("utf-16-be", "replace").encode("utf-8", "replace")
    if tag == _UNIVERSAL_STRING:
        return data.decode("utf-32-be", "replace").encode("utf-8", "replace")
    return data


def dotted(data: bytes) -> str:
    """An object identifier's contents as text (X.690, section 8.19). Raises ValueError when it is cut off or absurd."""
    if not data or data[-1] & 0x80 or len(data) > 32:
        raise ValueError("object identifier is cut off or too long")
    numbers, value = [], 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _seconds(tag: int, data: bytes) -> float:
    """RFC 5280, section 4.1.2.5. An unreadable time is 0."""
    text = data.decode("ascii", "replace")
    if tag == _UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != _TIME:
        return 0.0
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _alternative_names(fields: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What cannot be read is left out: the names before the extensions matter more."""
    found: list[tuple[int, bytes]] = []
    try:
        for tag, contents in fields:
            if tag != _EXTENSIONS:
                continue
            for _, extension in items(read(contents, 0)[1]):
                parts = list(items(extension))
                if len(parts) > 1 and parts[0][0] == _OID and dotted(parts[0][1]) == _SUBJECT_ALTERNATIVE_NAME:
                    for kind, value in items(read(parts[-1][1], 0)[1]):
                        if kind in {_MAIL, _DNS, _ADDRESS} and len(found) < _MAX_NAMES:
                            found.append((kind, value))
    except ValueError:
        pass
    return found

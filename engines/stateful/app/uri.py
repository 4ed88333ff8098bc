"""Request targets: split and normalised the way rules expect to see them.

As libhtp does with the IDS personality: one round of percent-decoding (``%uXXXX`` too, in paths), backslashes are
slashes, repeated slashes are one, dot segments are removed (RFC 3986, section 5.2.4). Case stays, ``+`` stays, what is
not valid percent-encoding stays as it is.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import NamedTuple

# RFC 3986, appendix B. A target that starts with a slash is a path even when another slash follows.
_ABSOLUTE = re.compile(rb"(?s)([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)(.*)")
_PATH = re.compile(rb"(?s)([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_PERCENT_U = re.compile(rb"%(?:[uU]([0-9A-Fa-f]{4})|([0-9A-Fa-f]{2}))")
_DOUBLE = re.compile(rb"%25[0-9A-Fa-f]{2}")
_SLASHES = re.compile(rb"//+")
# The underscore is common in practice.
_HOST = re.compile(rb"([A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_HOST_SIZE = 255
_HEX = {f"{value:02x}".encode(): bytes([value]) for value in range(256)}


class Target(NamedTuple):
    """A request target: ``host`` as written (port included), None when the target has none; ``path`` of what is
    normalised."""

    host: bytes | None
    normalised: bytes
    double_encoded: bool
    path: bytes


def parse_target(raw: bytes, authority_form: bool = False) -> Target:
    """Split and normalise. ``authority_form``: the target of CONNECT (RFC 9112, section 3.2.3)."""
    if authority_form:
        return Target(raw, raw, False, b"")
    host = None
    rest = raw
    if not raw.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(raw)
        if absolute:
            host, rest = absolute[2].rpartition(b"@")[2], absolute[3]
            if not rest.startswith((b"/", b"\\")):
                rest = b"/" + rest
    if b"%" not in rest and b"\\" not in rest and b"//" not in rest and b"/." not in rest:
        return Target(host, rest, False, rest.partition(b"?")[0].partition(b"#")[0])
    parts = _PATH.fullmatch(rest)
    assert parts is not None  # every byte is allowed somewhere
    path, query, fragment = parts.groups()
    double_encoded = _DOUBLE.search(path) is not None
    normalised = path = normalise_path(path)
    if query is not None:
        normalised += b"?" + _PERCENT.sub(_decode, query)
    if fragment is not None:
        normalised += b"#" + fragment
    return Target(host, normalised, double_encoded, path)


def normalise_path(path: bytes) -> bytes:
    """Decode once, then make one spelling of what is left."""
    if b"%" in path:
        path = _PERCENT_U.sub(_decode_u, path)
    path = path.replace(b"\\", b"/")
    if b"//" in path:
        path = _SLASHES.sub(b"/", path)
    return _remove_dots(path) if b"/." in path or path.startswith(b".") else path


def normalise_host(host: bytes) -> bytes:
    """``http.host``: lower case, without port, user and trailing dots."""
    host = host.strip().lower()
    if host.startswith(b"["):  # an IPv6 literal has colons of its own
        return host[: host.find(b"]") + 1] or host
    return host.partition(b":")[0].rstrip(b".")


def is_host(value: bytes) -> bool:
    """Whether this is a host with or without port, as libhtp htp_validate_hostname sees it (RFC 9110, section 7.2)."""
    found = _HOST.fullmatch(value)
    if found is None or len(found[1]) > _HOST_SIZE or (found[2] is not None and not 0 < int(found[2]) < 65536):
        return False
    return found[1][:1] != b"[" or _is_ipv6(found[1][1:-1])


def _is_ipv6(value: bytes) -> bool:
    try:
        IPv6Address(value.decode("ascii"))
    except ValueError:
        return False
    return True


def _decode(match: re.Match[bytes]) -> bytes:
    return _HEX[match[1].lower()]


def _decode_u(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        return _HEX[match[2].lower()]
    code = int(match[1], 16)
    if 0xFF01 <= code <= 0xFF5E:
        code -= 0xFEE0  # full-width forms, which servers with best-fit mapping read as ASCII
    return bytes([code]) if code < 256 else b"?"


def _remove_dots(path: bytes) -> bytes:
    """RFC 3986, section 5.2.4, for absolute and relative paths."""
    out: list[bytes] = []
    segments = path.split(b"/")
    rooted = not segments[0] and len(segments) > 1
    for segment in segments[1:] if rooted else segments:
        if segment == b"..":
            if out:
                out.pop()
        elif segment != b".":
            out.append(segment)
    # "/a/." and "/a/.." end in a slash.
    if segments[-1] in {b".", b".."}:
        out.append(b"")
    return (b"/" if rooted else b"") + b"/".join(out)

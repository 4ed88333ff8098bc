"""Transforms: each changes a buffer's bytes before its conditions look at them.

Source: Suricata user guide, "Transformations". A transform may also know that a content can never be found in what
it makes; such a rule is refused instead of silently never matching.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import pcre2
from publicsuffixlist import PublicSuffixList

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, required, split_list, unquote
from engines.stateful.keywords.draft import ContentDraft, RuleDraft, Transform
from engines.stateful.keywords.regex import compile_regex
from engines.stateful.match import decode_base64

_PAGE = "transforms.html"
_SPACE = b" \t\n\v\f\r"
_SPACES = re.compile(rb"[ \t\n\v\f\r]+")


def dotprefix(data: bytes) -> bytes:
    """``.`` in front, so that ``.example.com`` with endswith means the domain and all below it."""
    return b"." + data


def strip_whitespace(data: bytes) -> bytes:
    return data.translate(None, _SPACE)


def compress_whitespace(data: bytes) -> bytes:
    """Every run of white space becomes its first character."""
    return _SPACES.sub(lambda found: found.group(0)[:1], data)


def url_decode(data: bytes) -> bytes:
    """``+`` is a space and %XX a byte; anything else stays."""
    return unquote_to_bytes(data.replace(b"+", b" "))


def header_lowercase(data: bytes) -> bytes:
    """Lower case from each line start to its colon (header names; HTTP/2 has them so already)."""
    return _HEADER_NAME.sub(lambda found: found.group(0).lower(), data)


_HEADER_NAME = re.compile(rb"^[^:\r\n]*:", re.MULTILINE)
_PSEUDO_HEADER = re.compile(rb"^:[^\r\n]*\r?\n?", re.MULTILINE)


def strip_pseudo_headers(data: bytes) -> bytes:
    """Without the lines that start with a colon (HTTP/2)."""
    return _PSEUDO_HEADER.sub(b"", data)


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    """Takes 0.1 s to read, so only where a rule asks."""
    return PublicSuffixList()


def _name(data: bytes) -> str:
    """As the list has names: a label in Unicode for one in Punycode. Odd labels in front hide nothing."""
    return ".".join(_label(label) for label in data.strip(b".").lower().rpartition(b"..")[2].split(b"."))


def _label(label: bytes) -> str:
    if label.startswith(b"xn--"):
        with contextlib.suppress(UnicodeError):
            return label[4:].decode("punycode")
    return label.decode("latin-1")


def _last_labels(data: bytes, found: str | None) -> bytes:
    """As many labels of the name as were found; the whole name when none were."""
    if not found:
        return data
    return b".".join(data.rstrip(b".").split(b".")[-(found.count(".") + 1) :])


def domain(data: bytes) -> bytes:
    """The domain that was registered: the public suffix and one label (publicsuffix.org)."""
    return _last_labels(data, _suffixes().privatesuffix(_name(data)))


def tld(data: bytes) -> bytes:
    """The public suffix, ``co.uk`` for instance."""
    return _last_labels(data, _suffixes().publicsuffix(_name(data)))


def to_md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def to_sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()


def to_sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _no_upper(content: ContentDraft) -> str:
    if not content.nocase and content.pattern.lower() != content.pattern:
        return "to_lowercase leaves no upper case letters for this pattern to match"
    return ""


def _no_lower(content: ContentDraft) -> str:
    if not content.nocase and content.pattern.upper() != content.pattern:
        return "to_uppercase leaves no lower case letters for this pattern to match"
    return ""


def _no_space(content: ContentDraft) -> str:
    if any(byte in _SPACE for byte in content.pattern):
        return "strip_whitespace leaves no white space for this pattern to match"
    return ""


def _no_double_space(content: ContentDraft) -> str:
    if any(len(found.group(0)) > 1 for found in _SPACES.finditer(content.pattern)):
        return "compress_whitespace leaves no two spaces in a row for this pattern to match"
    return ""


def _plain(
    name: str, function: Callable[[bytes], bytes], refuses: Callable[[ContentDraft], str] | None = None
) -> Callable[[RuleDraft, str | None], None]:
    made = Transform(name, function, refuses)

    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.add_transform(made)

    return parse


def _xor(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, 'the key in hexadecimal, like xor:"0d0ac8ff", or extract SIZE AT'))
    if "extract" in text:
        _xor_extract(draft, text)
        return
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if not key or re.search(r"\s", text):
        raise KeywordError(f"xor: expected the key as pairs of hexadecimal digits, found {text!r}")
    draft.add_transform(Transform(f"xor:{text.lower()}", _xor_function(key)))


def _xor_extract(draft: RuleDraft, text: str) -> None:
    """``[offset N,]extract SIZE AT``: the key is SIZE bytes at AT of the buffer; what is before ``offset`` stays."""
    offset, extract = 0, None
    for part in split_list(text):
        words = part.split()
        if len(words) == 2 and words[0] == "offset":
            offset = integer(words[1], "xor offset", 0, 65535)
        elif len(words) == 3 and words[0] == "extract":
            extract = integer(words[1], "xor key size", 1, 255), integer(words[2], "xor key position", 0, 65535)
        else:
            raise KeywordError(f"xor: expected offset N or extract SIZE AT, found {part!r}")
    if extract is None:
        raise KeywordError("xor: extract SIZE AT is missing")
    size, at = extract
    draft.add_transform(Transform(f"xor:{offset},{size},{at}", _xor_extract_function(offset, size, at)))


@lru_cache(maxsize=1024)
def _xor_extract_function(offset: int, size: int, at: int) -> Callable[[bytes], bytes]:
    def function(data: bytes) -> bytes:
        """A buffer too short to hold the key stays as it is."""
        key = data[at : at + size]
        if len(key) < size:
            return data
        return data[:offset] + _xor_function(key)(data[offset:])

    return function


def _subslice(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "offset[, size][, truncate]"))
    truncate = len(parts) > 1 and parts[-1] == "truncate"
    if truncate:
        parts.pop()
    if len(parts) > 2:
        raise KeywordError(f"subslice: expected offset[, size][, truncate], found {value!r}")
    numbers = []
    for part in parts:
        minus = part.startswith("-")
        number = integer(part[1:] if minus else part, "subslice", 0, 65535)
        numbers.append(-number if minus else number)
    size = numbers[1] if len(numbers) == 2 else None
    name = f"subslice:{numbers[0]},{size},{truncate}"
    draft.add_transform(Transform(name, _subslice_function(numbers[0], size, truncate)))


@lru_cache(maxsize=1024)
def _subslice_function(offset: int, size: int | None, truncate: bool) -> Callable[[bytes], bytes]:
    def function(data: bytes) -> bytes:
        """A negative offset counts from the end, and so does a negative size. What is not there in full gives nothing,
        or with ``truncate`` as much as there is, taken from the start where the offset lies before it."""
        length = len(data)
        start = offset if offset >= 0 else length + offset
        if start < 0 or start > length:
            if not truncate:
                return b""
            start = min(max(start, 0), length)
        stop = length if size is None else start + size if size >= 0 else length + size
        if stop > length:
            if not truncate:
                return b""
            stop = length
        return data[start:stop] if stop > start else b""

    return function


# What a compressed buffer may grow to; more is cut off.
MAX_INFLATED = 1 << 20


def _inflate(data: bytes, window: int) -> bytes:
    """The bytes inflated as far as they are sound; nothing when they are not compressed at all."""
    try:
        return zlib.decompressobj(window).decompress(data, MAX_INFLATED)
    except zlib.error:
        return b""


def gunzip(data: bytes) -> bytes:
    return _inflate(data, 16 + zlib.MAX_WBITS)


def zlib_deflate(data: bytes) -> bytes:
    return _inflate(data, zlib.MAX_WBITS)


@lru_cache(maxsize=1024)  # equal transforms must be the identical function, see RuleDraft.add_transform
def _xor_function(key: bytes) -> Callable[[bytes], bytes]:
    def function(data: bytes) -> bytes:
        size = len(data)
        stream = (key * (size // len(key) + 1))[:size]
        return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")

    return function


def _pcrexform(draft: RuleDraft, value: str | None) -> None:
    text = required(value, "a regular expression in double quotes")
    if len(text) < 3 or text[0] != '"' or text[-1] != '"':
        raise KeywordError('pcrexform: expected a regular expression in double quotes, like pcrexform:"^GET (.*)$"')
    draft.add_transform(Transform(f"pcrexform:{text}", _pcrexform_function(text[1:-1])))


@lru_cache(maxsize=1024)
def _pcrexform_function(text: str) -> Callable[[bytes], bytes]:
    pattern = compile_regex(text.encode("utf-8", "surrogateescape"))
    if pattern.groups != 1:
        raise KeywordError(f"pcrexform: expected exactly one group ( ) in {text!r}, found {pattern.groups}")

    def function(data: bytes) -> bytes:
        """The first group's text; without a match the buffer stays as it is."""
        try:
            found = pattern.search(data)
        except pcre2.LibraryError:
            return data
        return bytes(found.group(1) or b"") if found else data

    return function


def _from_base64(draft: RuleDraft, value: str | None) -> None:
    size, offset, mode = 0, 0, "rfc4648"
    for part in split_list(value) if value else []:
        name, _, argument = part.partition(" ")
        argument = argument.strip()
        if name == "bytes":
            size = integer(argument, "from_base64 bytes", 1, 65535)
        elif name == "offset":
            offset = integer(argument, "from_base64 offset", 0, 65535)
        elif name == "mode" and argument in {"rfc4648", "rfc2045", "strict"}:
            mode = argument
        else:
            raise KeywordError(
                f"from_base64: expected bytes N, offset N or mode rfc4648|rfc2045|strict, found {part!r}"
            )
    name = f"from_base64:{size},{offset},{mode}"
    draft.add_transform(Transform(name, _from_base64_function(size, offset, mode)))


@lru_cache(maxsize=1024)
def _from_base64_function(size: int, offset: int, mode: str) -> Callable[[bytes], bytes]:
    def function(data: bytes) -> bytes:
        """What is not base64 leaves the buffer as it is."""
        piece = data[offset : offset + size] if size else data[offset:]
        if mode == "rfc2045":
            piece = _NOT_BASE64.sub(b"", piece)
        elif mode == "strict" and not _STRICT.fullmatch(piece):
            return data
        return decode_base64(piece, skip=False) or data

    return function


_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
_STRICT = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def _row(
    name: str,
    summary: str,
    parse: Callable[[RuleDraft, str | None], None],
    value: bool | None = False,
) -> Keyword:
    return Keyword(name, summary, f"{_PAGE}#{name.replace('_', '-')}", Kind.TRANSFORM, parse, value)


KEYWORDS = [
    _row("dotprefix", "puts a dot in front", _plain("dotprefix", dotprefix)),
    _row("to_lowercase", "lower case", _plain("to_lowercase", bytes.lower, _no_upper)),
    _row("to_uppercase", "upper case", _plain("to_uppercase", bytes.upper, _no_lower)),
    _row("url_decode", "decodes %XX and +", _plain("url_decode", url_decode)),
    _row("strip_whitespace", "removes all white space", _plain("strip_whitespace", strip_whitespace, _no_space)),
    _row(
        "compress_whitespace",
        "makes runs of white space one",
        _plain("compress_whitespace", compress_whitespace, _no_double_space),
    ),
    _row("header_lowercase", "header names in lower case", _plain("header_lowercase", header_lowercase)),
    _row(
        "strip_pseudo_headers",
        "removes HTTP/2 pseudo headers",
        _plain("strip_pseudo_headers", strip_pseudo_headers),
    ),
    _row("domain", "the registered domain of a name", _plain("domain", domain)),
    _row("tld", "the public suffix of a name", _plain("tld", tld)),
    _row("to_md5", "the MD5 digest", _plain("to_md5", to_md5)),
    _row("to_sha1", "the SHA-1 digest", _plain("to_sha1", to_sha1)),
    _row("to_sha256", "the SHA-256 digest", _plain("to_sha256", to_sha256)),
    _row("xor", "XOR with a key", _xor, True),
    _row("pcrexform", "what a regular expression captures", _pcrexform, True),
    _row("from_base64", "decodes base64", _from_base64, None),
    _row("subslice", "a part of the buffer", _subslice, True),
    _row("gunzip", "inflates a gzip member", _plain("gunzip", gunzip), None),
    _row("zlib_deflate", "inflates a zlib stream", _plain("zlib_deflate", zlib_deflate), None),
]

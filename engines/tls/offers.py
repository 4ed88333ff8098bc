"""What of a response's fields matters to what is hidden: offers of HTTP/3, and types of bodies that are DNS answers.

Sources: RFC 7838 section 3 (``Alt-Svc``), RFC 8484 section 6 (``application/dns-message``); ``application/dns-json``
and ``application/json`` are what resolvers that answer in JSON call it.
"""

from __future__ import annotations

import re

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

QUIC_OFFER = re.compile(rb"(?i)(?:\b(?:h3|hq|quic)|[\w.-]*%)[\w.%-]*[ \t]*=")
"""Of a protocol in Alt-Svc any byte may be written as %xx."""

HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_CLEAR, _CLEAR_BITS, _BLANK_BITS = b"clear", 27, 6  # RFC 7541 appendix B: 5+6+5+5+6 bits; a blank is 010100

WIRE, JSON, MAYBE_JSON, TYPED, CODED = 1, 2, 4, 8, 16
TOLD_MOST = 31
"""What a head tells of its body: a DNS message; one in JSON; JSON; it has a type at all; it is in a content coding."""
_DNS_TYPE = re.compile(rb"(?i)(?:^|,)[ \t]*application/(dns-message|dns-json|json)[ \t]*(?:[;,]|$)")
_TOLD = {b"dns-message": WIRE | TYPED, b"dns-json": JSON | TYPED, b"json": MAYBE_JSON | TYPED}
_PLAIN_CODING = re.compile(rb"(?i)[ \t]*(?:identity)?[ \t]*$")


def blanked(length: int, huffman: bool) -> bytes:
    """``clear`` and blanks, or blanks alone, as exactly ``length`` bytes of a header's value."""
    if not huffman:
        return (_CLEAR if length >= len(_CLEAR) else b"").ljust(length)
    text, used = (_CLEAR, _CLEAR_BITS) if 8 * length >= _CLEAR_BITS else (b"", 0)
    encoded: bytes = HUFFMAN.encode(text + b" " * ((8 * length - used) // _BLANK_BITS))
    return encoded


def told_by_type(value: bytes) -> int:
    """Of a ``Content-Type``, which may be a list: clients take the last one, or the first. None is no type."""
    told = 0 if not value.strip() else TYPED
    if b"application/" in value.lower():
        for found in _DNS_TYPE.finditer(value):
            told |= _TOLD[found[1].lower()]
    return told


def told_by_coding(value: bytes) -> int:
    """Of a ``Content-Encoding``."""
    return 0 if _PLAIN_CODING.match(value) else CODED

"""Does a certificate cover a host name? RFC 9525 (and RFC 6125 where that is stricter), nothing more lenient.

Only dNSName entries of the subjectAltName count; the subject's common name never does. Both sides are ASCII (A-labels
for internationalised names); an entry with anything else in it (NUL, space, trailing dot, raw UTF-8) matches nothing.
OpenSSL checks the name during the handshake as well; this check is the second, independent one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from publicsuffixlist import PublicSuffixList

from engines.tls.clienthello import normalise_host


def covers(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the dNSName ``patterns`` matches ``name``, a host name as :class:`ClientHello` normalises it."""
    return any(matches(pattern, name) for pattern in patterns)


def matches(pattern: str, name: str) -> bool:
    """Whether one dNSName entry matches ``name``. Case does not matter; ``name`` is refused if it is no host name.

    >>> matches("*.example.test", "www.example.test"), matches("*.example.test", "example.test")
    (True, False)
    """
    host = _host(name)
    if host is None or not is_valid_pattern(pattern):
        return False
    wanted = pattern.lower()
    if not wanted.startswith("*."):
        return wanted == host
    label, dot, parent = host.partition(".")
    return bool(label and dot) and parent == wanted[2:]


def is_valid_pattern(pattern: str) -> bool:
    """Whether a dNSName entry may be used at all: a host name, or ``*.`` in front of one of two labels or more.

    RFC 9525 6.3: the wildcard is the complete left-most label and the only one. ``*.test`` would cover a whole
    top-level domain and ``*.co.uk`` a registry's customers; both are refused. Suffixes of companies, such as
    ``github.io``, are not: their owners have such certificates.
    """
    if pattern.startswith("*."):
        parent = _host(pattern[2:])
        return parent is not None and "." in parent and not _is_registry(parent)
    return _host(pattern) is not None


@functools.lru_cache(4096)
def _is_registry(name: str) -> bool:
    return bool(_suffixes().publicsuffix(name) == name)


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True)


def _host(text: str) -> str | None:
    if text.endswith(".") or not text.isascii():
        return None
    return normalise_host(text.encode("ascii"))[0]

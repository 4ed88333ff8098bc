"""Request targets as rules see them."""

from __future__ import annotations

import random

import pytest

from engines.stateful.app.uri import normalise_host, normalise_path, parse_target


@pytest.mark.parametrize(
    ("raw", "host", "normalised"),
    [
        (b"/", None, b"/"),
        (b"/a/b?c=d", None, b"/a/b?c=d"),
        (b"*", None, b"*"),
        (b"http://h.example:8080/x?y#z", b"h.example:8080", b"/x?y#z"),
        (b"http://user:pw@h.example", b"h.example", b"/"),
        (b"HTTP://H/x", b"H", b"/x"),
        (b"//h.example/x", None, b"/h.example/x"),
        (b"/%61%2e%41", None, b"/a.A"),
        (b"/a%2Fb", None, b"/a/b"),
        (b"/a%2f..%2fb", None, b"/b"),
        (b"/%2561", None, b"/%61"),
        (b"/%u0041%U002e%uff0e%u4e2d", None, b"/A..?"),
        (b"/%zz%1", None, b"/%zz%1"),
        (b"/a\\b", None, b"/a/b"),
        (b"/a//b///c", None, b"/a/b/c"),
        (b"/a/./b/../c/.", None, b"/a/c/"),
        (b"/../../a", None, b"/a"),
        (b"/a/..", None, b"/"),
        (b"/q?a=%2e%2e/%2F&b=c+d", None, b"/q?a=..//&b=c+d"),
        (b"/q?a=//b/./c", None, b"/q?a=//b/./c"),
        (b"/a%00b", None, b"/a\0b"),
        (b"", None, b""),
    ],
)
def test_target(raw: bytes, host: bytes | None, normalised: bytes) -> None:
    target = parse_target(raw)
    assert (target.host, target.normalised) == (host, normalised)


def test_connect_target() -> None:
    assert parse_target(b"h.example:443", authority_form=True).host == b"h.example:443"


def test_double_encoding_is_noticed() -> None:
    assert parse_target(b"/%252e").double_encoded
    assert not parse_target(b"/?a=%252e").double_encoded
    assert not parse_target(b"/%25").double_encoded


@pytest.mark.parametrize(
    ("host", "normalised"),
    [
        (b"WWW.Example.COM", b"www.example.com"),
        (b" h.example:8080 ", b"h.example"),
        (b"h.example.", b"h.example"),
        (b"[2001:DB8::1]:80", b"[2001:db8::1]"),
        (b"[broken", b"[broken"),
        (b"", b""),
    ],
)
def test_host(host: bytes, normalised: bytes) -> None:
    assert normalise_host(host) == normalised


def test_normalised_once_is_normalised() -> None:
    """Without encoded bytes left, doing it again changes nothing."""
    rng = random.Random(1)
    for _ in range(3000):
        path = b"/" + b"".join(rng.choice([b"a", b".", b"/", b"..", b"\\", b"%2e", b"%2f"]) for _ in range(8))
        once = normalise_path(path)
        assert normalise_path(once) == once
        assert b"//" not in once
        assert b".." not in once.split(b"/")

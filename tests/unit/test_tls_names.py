"""RFC 9525 name matching, one row per rule."""

from __future__ import annotations

import pytest

from engines.tls.names import covers, is_valid_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        # exact
        ("example.test", "example.test", True),
        ("EXAMPLE.Test", "example.test", True),
        ("example.test", "EXAMPLE.TEST", True),
        ("example.test", "www.example.test", False),
        ("www.example.test", "example.test", False),
        ("localhost", "localhost", True),
        ("_x.example.test", "_x.example.test", True),
        # RFC 9525 6.3: the wildcard is the whole left-most label and matches exactly one
        ("*.example.test", "www.example.test", True),
        ("*.EXAMPLE.test", "www.example.test", True),
        ("*.example.test", "example.test", False),
        ("*.example.test", "a.b.example.test", False),
        ("*.example.test", ".example.test", False),
        ("*.example.test", "*.example.test", False),
        ("*.b.example.test", "a.b.example.test", True),
        # wildcards nobody may have
        ("*", "test", False),
        ("*", "example.test", False),
        ("*.test", "example.test", False),
        ("*.", "example.", False),
        ("w*.example.test", "www.example.test", False),
        ("*w.example.test", "www.example.test", False),
        ("w*w.example.test", "www.example.test", False),
        ("www.*.test", "www.example.test", False),
        ("*.*.example.test", "a.b.example.test", False),
        ("**.example.test", "www.example.test", False),
        # internationalised names: A-labels only
        ("xn--bcher-kva.test", "xn--bcher-kva.test", True),
        ("bücher.test", "xn--bcher-kva.test", False),
        ("bücher.test", "bücher.test", False),
        ("*.example.test", "xn--bcher-kva.example.test", True),
        ("xn--*.example.test", "xn--bcher-kva.example.test", False),
        # nothing odd in an entry
        ("good.test\x00.evil.test", "good.test", False),
        ("example.test.", "example.test", False),
        ("*.example.test.", "www.example.test", False),
        ("example.test ", "example.test", False),
        (" example.test", "example.test", False),
        ("", "", False),
        ("", "example.test", False),
        # addresses are not names
        ("192.0.2.1", "192.0.2.1", False),
        ("*.0.2.1", "192.0.2.1", False),
        ("2001:db8::1", "2001:db8::1", False),
        # and a name that is none is never covered
        ("example.test", "example.test.", False),
        ("example.test", "example.test\x00", False),
    ],
)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_covers_any_of_them() -> None:
    assert covers(["a.test", "*.b.test"], "x.b.test")
    assert not covers(["a.test", "*.b.test"], "b.test")
    assert not covers([], "a.test")


def test_valid_patterns() -> None:
    assert is_valid_pattern("*.example.test")
    assert is_valid_pattern("example.test")
    for pattern in ("*.test", "*", "a*.b.test", "a b.test", "a.test.", "ü.test", "192.0.2.1", "", "a.test\n"):
        assert not is_valid_pattern(pattern), pattern

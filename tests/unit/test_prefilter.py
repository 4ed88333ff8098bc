"""Pattern sets against the obvious search."""

from __future__ import annotations

import os
import random

import pytest

from engines.stateful.prefilter import PatternSet


def slow(patterns: list[tuple[bytes, bool, int]], data: bytes) -> list[int]:
    lowered = data.lower()
    return sorted(
        value for literal, nocase, value in patterns if (literal.lower() in lowered if nocase else literal in data)
    )


@pytest.mark.parametrize("size", [1, 3, 4, 40])
def test_same_as_searching_one_by_one(size: int) -> None:
    rng = random.Random(size)
    alphabet = b"aAbB\x00\xff.*\\|"
    for _ in range(60):
        patterns = [
            (bytes(rng.choices(alphabet, k=rng.randint(1, 5))), rng.random() < 0.5, value) for value in range(size)
        ]
        found = PatternSet(patterns)
        for _ in range(10):
            data = bytes(rng.choices(alphabet, k=rng.randint(0, 40)))
            assert sorted(found.scan(data)) == slow(patterns, data)


@pytest.mark.parametrize("count", [1, 8], ids=["find", "hyperscan"])
@pytest.mark.parametrize(
    ("literal", "nocase", "data", "hit"),
    [
        (b"a\x00b", False, b"xa\x00bx", True),
        (b"a\x00b", False, b"a\x00c", False),
        (b"\x00", False, b"\x00", True),
        (b"\xe4", True, b"\xc4", False),  # ASCII letters only, as in Suricata
        (b"GeT", True, b"get", True),
        (b"GeT", False, b"get", False),
        (b"(?i)x", False, b"X", False),  # never an expression
        (b"x" * 300, False, b"x" * 300, True),
        (b"\r\n\r\n", False, b"a\r\n\r\n", True),
    ],
)
def test_literals_are_literal(count: int, literal: bytes, nocase: bool, data: bytes, hit: bool) -> None:
    filler = [(b"filler-%d" % number, False, number) for number in range(1, count)]
    assert PatternSet([(literal, nocase, 0), *filler]).scan(data) == ([0] if hit else [])


def test_equal_literals_are_searched_once_and_answer_all() -> None:
    found = PatternSet([(b"abc", True, 1), (b"ABC", True, 2), (b"abc", False, 3)])
    assert found.size == 2
    assert sorted(found.scan(b"..abc..abc")) == [1, 2, 3]
    assert sorted(found.scan(b"..ABC")) == [1, 2]


def test_a_long_literal_is_cut_to_what_must_occur_anyway() -> None:
    found = PatternSet([(b"x" * 200, False, 1)])
    assert found.longest == 64
    assert found.scan(b"x" * 64) == [1]


def test_empty_literal_is_refused() -> None:
    with pytest.raises(ValueError, match="empty literal"):
        PatternSet([(b"", False, 1)])


def test_a_child_process_can_scan_with_the_parents_database() -> None:
    found = PatternSet([(b"word%d" % number, False, number) for number in range(100)])
    assert found.scan(b"word77") == [7, 77]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(found.scan(b"a word77 b") == [7, 77] for _ in range(100)) else 1)
    assert all(found.scan(b"word3") == [3] for _ in range(100))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Overlaps as each operating system decides them, against a byte-by-byte twin."""

from __future__ import annotations

import random

import pytest

from engines.watch import segments as module
from engines.watch.segments import OverlapPolicy, Segments, new_wins

# (policy, first segment, second segment, what the receiver has): Novak and Sturges, table 1, in small.
ROWS = [
    ("first", (0, b"aaaa"), (2, b"bbbb"), b"aaaabb"),
    ("last", (0, b"aaaa"), (2, b"bbbb"), b"aabbbb"),
    ("bsd", (2, b"aaaa"), (0, b"bbbb"), b"bbbbaa"),  # begins before: new
    ("first", (2, b"aaaa"), (0, b"bbbb"), b"bbaaaa"),
    ("linux", (0, b"aa"), (0, b"bbbb"), b"bbbb"),  # same start, longer: new
    ("bsd", (0, b"aa"), (0, b"bbbb"), b"aabb"),
    ("solaris", (1, b"aa"), (1, b"bb"), b"bb"),
    ("windows", (1, b"aa"), (1, b"bb"), b"aa"),
    ("old-linux", (1, b"aa"), (1, b"bb"), b"bb"),
    ("vista", (2, b"aaaa"), (0, b"bbbb"), b"bbaaaa"),
    ("solaris", (0, b"aaaa"), (2, b"bbbb"), b"aabbbb"),
    ("windows", (0, b"aaaa"), (2, b"bbbb"), b"aaaabb"),
]


@pytest.mark.parametrize(("policy", "first", "second", "expected"), ROWS)
def test_two_segments(policy: str, first: tuple[int, bytes], second: tuple[int, bytes], expected: bytes) -> None:
    segments = Segments(OverlapPolicy.parse(policy), 1000)
    assert segments.add(*first)
    assert segments.add(*second)
    start = min(first[0], second[0])
    assert segments.get(start, segments.reach(start)) == expected


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_a_byte_by_byte_twin(seed: int) -> None:
    """The twin keeps every segment and, for each byte, asks again who wins: the pairwise rule decides."""
    rng = random.Random(seed)
    policy = rng.choice(list(OverlapPolicy))
    segments = Segments(policy, 1000)
    seen: list[tuple[int, int]] = []
    bytes_at: dict[int, int] = {}
    for number in range(rng.randint(1, 12)):
        start = rng.randint(0, 20)
        data = bytes([65 + number]) * rng.randint(1, 10)
        end = start + len(data)
        assert segments.add(start, data)
        for offset in range(start, end):
            holders = [old for old in seen if old[0] <= offset < old[1]]
            if all(new_wins(policy, (start, end), old) for old in holders):
                bytes_at[offset] = data[0]
        if (start, end) not in seen:
            seen.append((start, end))
    for offset, value in bytes_at.items():
        assert segments.get(offset, offset + 1) == bytes([value]), (policy, seen)
    assert segments.end == max(bytes_at) + 1
    holes = [offset for offset in range(segments.end) if offset not in bytes_at]
    for hole in holes:
        assert segments.reach(hole) == hole
        following = segments.next_from(hole)
        assert following == min(offset for offset in bytes_at if offset > hole)


def test_what_is_settled_is_forgotten_and_not_taken_again() -> None:
    segments = Segments(OverlapPolicy.LAST, 10)
    assert segments.add(0, b"abcdef")
    segments.forget(4)
    assert not segments.add(0, b"XXXX")  # before what is held
    assert segments.add(2, b"XXYZ")
    assert segments.get(4, 6) == b"YZ"
    assert not segments.add(12, b"toofar")  # beyond the limit
    assert segments.end == 6


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="dos"):
        OverlapPolicy.parse("dos")


def test_a_hole_takes_no_memory() -> None:
    segments = Segments(OverlapPolicy.BSD, 1 << 30)
    assert segments.add((1 << 30) - 1, b"x")
    assert sum(map(len, segments._runs)) == 1
    assert segments.next_from(0) == (1 << 30) - 1


def test_segments_are_bounded_and_settling_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEGMENTS", 3)
    segments = Segments(OverlapPolicy.BSD, 1000)
    assert [segments.add(2 * number, b"x") for number in range(5)] == [True, True, True, False, False]
    segments.forget(3)
    assert segments.add(8, b"y")
    assert (segments.end, segments.reach(4), segments.reach(3)) == (9, 5, 3)


@pytest.mark.parametrize("step", [2, -2, 1, -1], ids=["holes", "holes backwards", "in order", "backwards"])
def test_many_small_segments_in_any_order_make_the_runs_they_should(step: int) -> None:
    segments = Segments(OverlapPolicy.BSD, 1 << 20)
    base = 100_000
    for number in range(4000):
        assert segments.add(base + step * number, b"x")
    assert len(segments._runs) == (4000 if abs(step) == 2 else 1)
    assert segments.end == base + max(0, step * 3999) + 1

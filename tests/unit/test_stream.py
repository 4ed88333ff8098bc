"""Reassembly of one direction: what is delivered, what is refused, and a slow byte-by-byte twin."""

from __future__ import annotations

import random

import pytest

from engines.stateful.stream import Added, HalfStream, Status, StreamLimits

ISN = 1000
FIRST = ISN + 1


def stream(**limits: int) -> HalfStream:
    return HalfStream(StreamLimits(**limits), isn=ISN)


def feed(half: HalfStream, *segments: tuple[int, bytes]) -> list[tuple[bytes, Status]]:
    """Offsets from the first byte, so the cases below read like a picture."""
    return [(added.data, added.status) for added in (half.add(FIRST + at, data) for at, data in segments)]


OK, EARLY, DUP = Status.OK, Status.OUT_OF_ORDER, Status.DUPLICATE
CONFLICT, OUTSIDE = Status.CONFLICT, Status.OUT_OF_WINDOW


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        # in order
        ([(0, b"abc"), (3, b"def")], [(b"abc", OK), (b"def", OK)]),
        # empty segments are pure acknowledgements
        ([(0, b""), (0, b"a"), (0, b"")], [(b"", OK), (b"a", OK), (b"", OK)]),
        # a hole, filled
        ([(3, b"def"), (0, b"abc")], [(b"", EARLY), (b"abcdef", OK)]),
        # two holes, filled in the wrong order
        ([(6, b"ghi"), (3, b"def"), (0, b"abc")], [(b"", EARLY), (b"", EARLY), (b"abcdefghi", OK)]),
        # equal retransmissions: whole, part, and with new bytes at the end
        ([(0, b"abcd"), (0, b"abcd"), (1, b"bc"), (2, b"cdef")], [(b"abcd", OK), (b"", DUP), (b"", DUP), (b"ef", OK)]),
        # other bytes where bytes were delivered
        ([(0, b"abcd"), (1, b"X"), (4, b"ef")], [(b"abcd", OK), (b"", CONFLICT), (b"ef", OK)]),
        # other bytes where bytes are waiting; the first copy stays
        ([(3, b"def"), (4, b"X"), (0, b"abc")], [(b"", EARLY), (b"", CONFLICT), (b"abcdef", OK)]),
        # an in-order segment reaching into waiting bytes, equal and not
        ([(3, b"def"), (0, b"abcdef")], [(b"", EARLY), (b"abcdef", OK)]),
        ([(3, b"def"), (0, b"abcX"), (0, b"abc")], [(b"", EARLY), (b"", CONFLICT), (b"abcdef", OK)]),
        # an early segment around a waiting one fills both gaps
        ([(4, b"e"), (3, b"defg"), (0, b"abc")], [(b"", EARLY), (b"", EARLY), (b"abcdefg", OK)]),
        ([(3, b"def"), (3, b"def")], [(b"", EARLY), (b"", DUP)]),
        # what was sent before the first byte has been received: keep-alives
        ([(-1, b"\0"), (0, b"abc")], [(b"", DUP), (b"abc", OK)]),
        ([(0, b"a"), (1 << 31, b"b"), (1 - (1 << 31), b"c")], [(b"a", OK), (b"", OUTSIDE), (b"", OUTSIDE)]),
    ],
)
def test_segments(segments: list[tuple[int, bytes]], expected: list[tuple[bytes, Status]]) -> None:
    assert feed(stream(), *segments) == expected


def test_conflict_offers_the_first_copy() -> None:
    """Sent instead of the payload, ``forward`` is what was inspected, new bytes included."""
    half = stream()
    feed(half, (0, b"abcd"), (6, b"gh"))
    refused = half.add(FIRST + 2, b"cXefGhij")
    assert (refused.status, refused.forward) == (CONFLICT, b"cdefghij")
    assert half.next_seq == FIRST + 4
    assert half.add(FIRST + 2, refused.forward or b"").data == b"efghij"


def test_retransmission_of_acknowledged_bytes_is_harmless() -> None:
    half = stream()
    feed(half, (0, b"abcdef"))
    assert half.acked(FIRST + 4)
    assert half.add(FIRST, b"XXXX").status is DUP
    assert half.add(FIRST, b"XXXXef").status is DUP
    assert half.add(FIRST, b"XXXXeX").status is CONFLICT
    assert half.add(FIRST, b"XXXXefgh") == Added(b"gh", OK)
    assert half.memory == 4


def test_retransmission_older_than_the_history() -> None:
    half = stream(history_bytes=4)
    feed(half, (0, b"abcdefgh"))
    assert half.add(FIRST, b"abcd").status is Status.UNVERIFIABLE
    assert half.add(FIRST + 3, b"defgh").status is Status.UNVERIFIABLE
    assert half.add(FIRST + 4, b"efgh").status is DUP
    half.acked(FIRST + 4)
    assert half.add(FIRST, b"abcd").status is DUP


def test_acknowledgement_of_what_was_never_seen() -> None:
    half = stream()
    feed(half, (0, b"abc"), (6, b"ghi"))
    assert not half.acked(FIRST + 4)
    assert not half.acked(FIRST + 9)
    assert half.acked(FIRST + 3)
    assert half.acked(FIRST + 1)  # an old one
    assert half.add(FIRST + 3, b"def").data == b"defghi"


def test_fin_with_data() -> None:
    half = stream()
    assert half.add(FIRST, b"abc", fin=True) == Added(b"abc", OK, None, ended=True)
    assert half.ended
    assert half.next_seq == FIRST + 4
    assert half.add(FIRST, b"abc", fin=True).status is DUP
    assert half.acked(FIRST + 4)
    assert half.add(FIRST + 3, b"", fin=True).status is DUP
    assert half.add(FIRST + 3, b"x").status is OUTSIDE
    assert half.add(FIRST + 3, b"").status is OK


def test_fin_before_the_data() -> None:
    half = stream()
    assert half.add(FIRST + 3, b"", fin=True).status is EARLY
    assert not half.ended
    assert half.add(FIRST + 2, b"cd").status is OUTSIDE
    assert half.add(FIRST, b"abc") == Added(b"abc", OK, None, ended=True)


def test_fin_moved() -> None:
    half = stream()
    feed(half, (0, b"abc"), (5, b"fg"))
    assert half.add(FIRST + 1, b"b", fin=True).status is CONFLICT
    assert half.add(FIRST + 5, b"f", fin=True).status is CONFLICT
    assert half.add(FIRST + 5, b"fg", fin=True).status is EARLY
    assert half.add(FIRST + 7, b"", fin=True).status is DUP
    assert half.add(FIRST + 3, b"d", fin=True).status is CONFLICT
    assert half.add(FIRST + 3, b"de") == Added(b"defg", OK, None, ended=True)


def test_sequence_wrap() -> None:
    half = HalfStream(isn=0xFFFFFFFD)
    assert half.add(0xFFFFFFFE, b"ab").data == b"ab"
    assert half.add(2, b"ef").status is EARLY
    assert half.add(0, b"cd", fin=False).data == b"cdef"
    assert half.acked(3)
    assert half.add(0xFFFFFFFE, b"XXXXXf").status is DUP
    assert half.next_seq == 4


def test_more_than_the_sequence_space() -> None:
    """Offsets go on growing when sequence numbers start again."""
    half = HalfStream(StreamLimits(history_bytes=16), isn=0)
    seq, chunk = 1, bytes(1 << 20)
    for _ in range(4200):
        assert half.add(seq, chunk).status is OK
        seq = (seq + len(chunk)) % (1 << 32)
        half.acked(seq)
    assert half.delivered == 4200 << 20
    assert half.memory == 0


def test_picked_up_mid_stream() -> None:
    half = HalfStream()
    assert not half.started
    assert half.add(500, b"").status is OK
    assert not half.started
    assert half.add(500, b"abc").data == b"abc"
    # nothing is known of what went before, until the receiver says it has it
    assert half.add(490, b"0123456789").status is Status.UNVERIFIABLE
    assert half.acked(500)
    assert half.add(490, b"0123456789").status is DUP
    assert half.add(490, b"0123456789abcd").data == b"d"


def test_full_by_bytes_never_refuses_the_next_segment() -> None:
    half = stream(pending_bytes=4)
    assert feed(half, (1, b"bcd"), (5, b"fg")) == [(b"", EARLY), (b"", Status.FULL)]
    assert half.pending_bytes == 3
    assert feed(half, (0, b"a"), (4, b"e" * 100)) == [(b"abcd", OK), (b"e" * 100, OK)]


def test_full_by_segments() -> None:
    half = stream(pending_segments=3)
    assert [status for _, status in feed(half, *((at, b"x") for at in (2, 4, 6, 8)))] == [EARLY] * 3 + [Status.FULL]
    assert half.add(FIRST + 2, b"x").status is DUP
    # a segment that would be kept in more pieces than there is room for
    assert half.add(FIRST + 1, b"xxx").status is Status.FULL


class BitmapStream:
    """The obvious twin: one dictionary entry per byte."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.seen: dict[int, int] = {}
        self.next = 0

    def add(self, at: int, data: bytes) -> tuple[bytes, Status]:
        if any(self.seen.get(at + i, byte) != byte for i, byte in enumerate(data)):
            return b"", CONFLICT
        fresh = [i for i in range(len(data)) if at + i not in self.seen]
        self.seen.update({at + i: byte for i, byte in enumerate(data)})
        before = self.next
        while self.next in self.seen:
            self.next += 1
        out = bytes(self.seen[i] for i in range(before, self.next))
        if out:
            return out, OK
        return b"", (EARLY if fresh else DUP)


@pytest.mark.parametrize("seed", range(40))
def test_random_against_bitmap(seed: int) -> None:
    """Same delivery and same status for any order, overlap and lie; the bytes delivered are never decided twice."""
    rng = random.Random(seed)
    content = rng.randbytes(rng.choice([20, 200, 400]))
    isn = rng.choice([0, 5, (1 << 32) - 1, (1 << 32) - 100, rng.randrange(1 << 32)])
    half, twin = HalfStream(isn=isn), BitmapStream(content)
    received = bytearray()
    for _ in range(400):
        at = rng.randrange(len(content))
        data = bytearray(content[at : at + rng.randrange(1, 40)])
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        added = half.add((isn + 1 + at) % (1 << 32), bytes(data))
        assert (added.data, added.status) == twin.add(at, bytes(data))
        received += added.data
        if added.status is CONFLICT:
            assert added.forward is not None
            assert all(twin.seen.get(at + i, data[i]) == byte for i, byte in enumerate(added.forward))
    assert bytes(received) == bytes(twin.seen[i] for i in range(twin.next))


@pytest.mark.parametrize("seed", range(10))
def test_random_with_acknowledgements(seed: int) -> None:
    """Honest segments are delivered in full under small limits, and memory stays inside them."""
    rng = random.Random(seed)
    content = rng.randbytes(5000)
    isn = rng.randrange(1 << 32)
    limits = StreamLimits(pending_bytes=600, history_bytes=500, pending_segments=8)
    half = HalfStream(limits, isn=isn)
    received = bytearray()
    for _ in range(20000):
        at = max(0, len(received) + rng.randrange(-300, 500))
        data = content[at : at + rng.randrange(1, 200)]
        added = half.add((isn + 1 + at) % (1 << 32), data, fin=at + len(data) == len(content))
        assert added.status in {OK, EARLY, DUP, Status.FULL, Status.UNVERIFIABLE}
        received += added.data
        assert half.memory <= limits.pending_bytes + limits.history_bytes
        if rng.random() < 0.3:
            half.acked((isn + 1 + rng.randrange(len(received) + 1)) % (1 << 32))
        if half.ended:
            break
    assert bytes(received) == content

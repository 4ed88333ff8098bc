"""Feeding parsers the ways a network can: whole, cut at every byte, and mutated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from engines.stateful.app import AppParser, Transaction
from engines.verdict import Direction

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
Script = Sequence[tuple[Direction, bytes]]


def play(parser: AppParser, script: Script, cut: int = 0) -> list[Transaction]:
    """Feed the script, in pieces of ``cut`` bytes (0: whole), and return every transaction."""
    for direction, data in script:
        for at in range(0, len(data), cut or len(data) or 1):
            parser.feed(direction, data[at : at + (cut or len(data))])
    return list(parser.transactions)


def every_way(make: Callable[[], AppParser], script: Script) -> Iterator[tuple[AppParser, list[Transaction]]]:
    """Whole, byte by byte, and in threes."""
    for cut in (0, 1, 3):
        parser = make()
        yield parser, play(parser, script, cut)


def cutting_changes_nothing(
    make: Callable[[], AppParser], before: Script, direction: Direction, data: bytes, cut: int, names: Sequence[str]
) -> tuple[AppParser, AppParser]:
    """``data`` whole and in pieces gives the same transactions and holds back the same; returns both parsers."""
    both = []
    for size in (0, cut):
        parser = make()
        play(parser, before)
        both.append((parser, play(parser, [(direction, data)], size)))
    (whole, first), (pieces, second) = both
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in names:
            assert list(one.buffer(name)) == list(other.buffer(name)), name
        one.log_fields()
    assert whole.held(direction) == pieces.held(direction) <= len(data)
    return whole, pieces


def mutate(script: Script, rng: random.Random) -> list[tuple[Direction, bytes]]:
    """Flip, cut, repeat, insert and reorder bytes."""
    out = []
    for direction, original in script:
        data = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            if not data:
                break
            at = rng.randrange(len(data))
            kind = rng.randrange(6)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 20)]
            elif kind == 2:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            elif kind == 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif kind == 4:
                data[at:at] = rng.choice([b"\r\n", b"\n", b"\0", b":", b" ", b"\xff\xff", b"0\r\n\r\n"])
            else:
                data[at] = rng.randrange(256)
        out.append((direction, bytes(data)))
    if rng.random() < 0.1:
        rng.shuffle(out)
    return out


def survives(make: Callable[[], AppParser], script: Script, names: Sequence[str], rounds: int, seed: int) -> None:
    """Parse or refuse, never raise; what is held was fed; every buffer can be asked for at any time."""
    rng = random.Random(seed)
    for _ in range(rounds):
        parser = make()
        fed = [0, 0]
        for direction, data in mutate(script, rng):
            cut = rng.choice([len(data) or 1, 1, 7, 50])
            for at in range(0, len(data), cut):
                parser.feed(direction, data[at : at + cut])
                fed[direction] += len(data[at : at + cut])
                assert 0 <= parser.held(direction) <= fed[direction]
            for tx in parser.transactions:
                assert tx.progress(direction) >= 0
                for name in names:
                    assert all(isinstance(value, bytes) for value in tx.buffer(name))
                tx.log_fields()
        for direction in Direction:
            parser.close(direction)
            assert parser.held(direction) == 0 or not parser.gave_up
            parser.unparsed(direction)

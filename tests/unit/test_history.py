"""Delivered bytes kept in pieces, against one string."""

from __future__ import annotations

import random

import pytest

from engines.stateful.history import History


@pytest.mark.parametrize("seed", range(20))
def test_same_as_one_string(seed: int) -> None:
    """Whatever the sizes of the pieces and however much of them is forgotten."""
    rng = random.Random(seed)
    history, twin = History(), b""
    sizes = [0, 1, 7, 1448, 4095, 4096, 5000, 20000]
    for _ in range(300):
        data = rng.randbytes(rng.choice(sizes))
        history.append(data)
        twin += data
        assert history.end == len(twin)
        if rng.random() < 0.5:
            history.forget(rng.randrange(max(history.start - 100, 0), history.end + 1))
        low = rng.randrange(history.start, history.end + 1)
        high = rng.randrange(low, history.end + 1)
        assert history.between(low, high) == twin[low:high]
        assert history.between(0, history.end + 5) == twin[history.start :]
        assert len(history) == history.end - history.start


def test_single_bytes_are_gathered() -> None:
    history = History()
    for _ in range(100_000):
        history.append(b"x")
    assert len(history._pieces) <= 100_000 // 4096 + 1


def test_forgotten_pieces_are_let_go() -> None:
    history = History()
    for _ in range(100):
        history.append(bytes(10_000))
        history.forget(history.end - 25_000 if history.end > 25_000 else 0)
    assert len(history._pieces) <= 3
    history.forget(history.end)
    assert (len(history), len(history._pieces)) == (0, 0)
    history.append(b"after")
    assert history.between(history.start, history.end) == b"after"

"""The fuzz targets hold on their seeds and some neighbours of them, and the driver sees what it is there to see."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.run import Watch, mutated, with_hypothesis
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_seeds_and_their_neighbours(target: Target) -> None:
    seeds = target.seeds()
    assert seeds
    chance = random.Random(1)
    for data in (b"", *seeds, *(mutated(seeds, target.words, target.size, chance) for _ in range(60))):
        target.run(data)


def test_mutations_differ_and_stay_within_the_size() -> None:
    chance = random.Random(2)
    made = {mutated([b"abcdef", b"ghi"], (b"WORD",), 50, chance) for _ in range(200)}
    assert len(made) > 100
    assert max(map(len, made)) <= 50
    assert any(b"WORD" in data for data in made)


def _raises(data: bytes) -> None:
    if b"x" in data:
        raise IndexError("x marks the spot")


def _hangs(data: bytes) -> None:
    while b"x" in data:
        pass


def _sleeps(data: bytes) -> None:
    time.sleep(0.01)  # no CPU time: a busy machine is no hang


_kept: list[bytes] = []


def _grows(data: bytes) -> None:
    _kept.append(bytes(200_000))


@pytest.mark.parametrize(
    ("function", "problem"),
    [(_raises, "x marks the spot"), (_hangs, "CPU time"), (_grows, "memory grew"), (_sleeps, "")],
)
def test_what_the_driver_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[[bytes], None], problem: str
) -> None:
    monkeypatch.setattr(run, "INPUT_SECONDS", 0.05)
    monkeypatch.setattr(run, "GROWTH_MB", 20.0)
    monkeypatch.setattr(run, "_LOOK_EVERY", 20)
    watch = Watch("some", function, 0.5 if not problem else 20.0, tmp_path)
    with_hypothesis(watch, [b"aaa", b"x"], (), 20, 1)
    _kept.clear()
    assert problem in watch.figures.problem
    assert bool(watch.figures.problem) == bool(problem)
    assert watch.figures.inputs > 1
    if problem:
        kept = Path(watch.figures.kept).read_bytes()
        assert Path(watch.figures.kept).name.startswith("some-")
        assert function is _grows or b"x" in kept

"""Who is served when."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nfw.rounds import Rounds
from nfw.turns import Deadlines, Turns


def test_turns_are_first_come_first_served_and_each_waits_once() -> None:
    turns: Turns[object] = Turns()
    one, two = object(), object()
    turns.put(7, one, 1, 10.0)
    turns.put(5, two, 1, 11.0)
    turns.put(7, one, 4, 12.0)  # still waits: in its place, with what is new about it
    assert (len(turns), turns.oldest(99.0)) == (2, 10.0)
    assert turns.take() == (7, one, 4)
    assert turns.oldest(99.0) == 11.0
    assert turns.take() == (5, two, 1)
    assert (len(turns), turns.oldest(99.0)) == (0, 99.0)
    with pytest.raises(KeyError):
        turns.take()


def test_one_that_is_served_and_ready_again_waits_behind_the_others() -> None:
    turns: Turns[str] = Turns()
    for number in (1, 2):
        turns.put(number, "x", 1, 0.0)
    assert turns.take()[0] == 1
    turns.put(1, "x", 1, 1.0)
    assert [turns.take()[0] for _ in range(2)] == [2, 1]


def test_a_new_connection_with_the_number_of_an_old_one_does_not_take_its_place() -> None:
    turns: Turns[object] = Turns()
    old, new, other = object(), object(), object()
    turns.put(3, old, 1, 0.0)
    turns.put(4, other, 1, 0.5)
    turns.put(3, new, 1, 1.0)
    assert [turns.take()[1] for _ in range(2)] == [other, new]


def _due(deadlines: Deadlines, now: float) -> list[int]:
    found = []
    while (number := deadlines.due(now)) is not None:
        found.append(number)
    return found


@pytest.mark.parametrize(
    ("planned", "now", "due"),
    [
        ([], 9.0, []),
        ([(1, 5.0)], 4.9, []),
        ([(1, 5.0)], 5.0, [1]),
        ([(1, 5.0), (2, 3.0), (3, 7.0)], 6.0, [2, 1]),
        ([(1, 5.0), (1, 3.0)], 4.0, [1]),  # sooner counts
        ([(1, 5.0), (1, 3.0)], 9.0, [1]),  # once
        ([(1, 3.0), (1, 5.0)], 4.0, [1]),  # later does not: it will say so when it is looked at
    ],
)
def test_deadlines(planned: list[tuple[int, float]], now: float, due: list[int]) -> None:
    deadlines = Deadlines()
    for number, when in planned:
        deadlines.plan(number, when)
    assert _due(deadlines, now) == due
    assert _due(deadlines, now) == []


def test_what_has_ended_is_not_due_and_may_begin_anew() -> None:
    deadlines = Deadlines()
    deadlines.plan(1, 5.0)
    deadlines.forget(1)
    deadlines.forget(2)
    assert _due(deadlines, 9.0) == []
    deadlines.plan(1, 12.0)
    assert (_due(deadlines, 11.0), _due(deadlines, 12.0)) == ([], [1])


def test_the_soonest_is_of_one_that_is_still_planned() -> None:
    deadlines = Deadlines()
    for number, when in ((1, 3.0), (2, 7.0), (2, 4.0)):
        deadlines.plan(number, when)
    assert deadlines.soonest == 3.0
    deadlines.forget(1)
    assert deadlines.soonest == 4.0
    assert deadlines.due(4.0) == 2
    assert deadlines.soonest == math.inf


def test_a_round_waits_no_longer_than_until_something_is_due() -> None:
    flows: dict[int, Any] = {1: SimpleNamespace(key=1, opening=False)}
    checked = []

    def check(flow: Any, served: float, now: float) -> None:
        checked.append(served)
        del flows[flow.key]

    def nothing(*_: object) -> float:
        raise AssertionError

    rounds = Rounds(flows, nothing, check, nothing, nothing)  # type: ignore[arg-type]
    due = time.monotonic() + 0.05
    rounds._deadlines.plan(1, due)
    while not checked:
        rounds.round(30.0)
    assert due <= checked[0] < due + 20


def test_deadlines_of_what_has_ended_take_no_room() -> None:
    deadlines = Deadlines()
    for number in range(50_000):
        deadlines.plan(number, 350.0)
        deadlines.forget(number)
    assert len(deadlines) == 0
    assert len(deadlines._heap) <= 1100

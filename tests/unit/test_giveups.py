"""An expression that would backtrack for ever costs a bounded time, does not match, and is told of once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pcre2
import pytest

from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.match import (
    LIMIT_STEPS,
    LIMIT_STEPS_RAISED,
    MAX_INSPECTION_STEPS,
    Content,
    Regex,
    StepMatcher,
    compile_program,
)
from engines.stateful.ruleset import compile_ruleset
from engines.verdict import Direction
from nfw.capture import Captured
from nfw.giveups import LOOK_SECONDS, GiveUps
from nfw.replay import ReplayOptions, replay
from tests.unit.rulekit import parse

HOSTILE = b"a" * 5000 + b"!"
RULES = r"""
alert tcp any any -> any any (msg:"exponential"; pcre:"/^(a|aa)+$/"; sid:1;)
alert tcp any any -> any any (msg:"no limit asked for"; pcre:"/^(a|aa)+$/O"; sid:2;)
alert tcp any any -> any any (base64_decode:bytes 4000; base64_data; pcre:"/^(.|..)+[^\xa6\x69\x9a]$/s"; sid:3;)
alert tcp any any -> any any (msg:"harmless"; pcre:"/a+!$/"; sid:4;)
"""


class AlwaysOver:
    """An expression whose every search reaches its limit."""

    def __init__(self) -> None:
        self.searches = 0

    def search(self, data: bytes, start: int) -> None:
        self.searches += 1
        raise pcre2.LibraryError(-47)


@pytest.mark.parametrize("steps", [LIMIT_STEPS, LIMIT_STEPS_RAISED])
def test_a_search_that_gives_up_is_not_tried_thousands_of_times(steps: int) -> None:
    """Every ``a`` asks for another search; each may take milliseconds."""
    expression = AlwaysOver()
    regex = Regex(expression, relative=True, limit_steps=steps)
    chain: list[StepMatcher] = [Content(b"a"), regex]
    assert not compile_program(chain)(HOSTILE, {})
    assert 1 < expression.searches <= MAX_INSPECTION_STEPS // steps
    assert regex.gave_up == [expression.searches]


def test_the_rules_that_gave_up_are_counted_and_told_once() -> None:
    ruleset = compile_ruleset(parse(RULES).signatures)
    said: list[str] = []
    give_ups = GiveUps(ruleset, said.append)
    give_ups.look(0.0)
    assert said == []
    now = 0.0
    for _ in range(3):
        inspector = Inspector(ruleset, FlowFacts(1, 6, b"\x0a\0\0\1", b"\x0a\1\0\1", 4000, 80), now)
        outcome = inspector.inspect(Segment(Direction.TO_SERVER, True, HOSTILE, HOSTILE, None, now))
        assert [alert.rule.sid for alert in outcome.alerts] == [4]
        now += LOOK_SECONDS
        give_ups.look(now)
        give_ups.look(now)  # too soon
    assert [line.partition(": its pcre")[0] for line in said] == [f"t.rules:{n + 1}: rule 1:{n}" for n in (1, 2, 3)]
    assert set(give_ups.counts()) == {"1:1", "1:2", "1:3"}
    assert all(count >= 3 for count in give_ups.counts().values())


def test_a_replay_tells_of_them(tmp_path: Path) -> None:
    said: list[str] = []
    header = bytes.fromhex("4500000000000000401100000a0000010a010001") + b"\x0f\xa0\x00\x09"
    size = 28 + len(HOSTILE)
    packet = header[:2] + size.to_bytes(2, "big") + header[4:] + (size - 20).to_bytes(2, "big") + b"\0\0" + HOSTILE
    rules = parse('alert udp any any -> any any (pcre:"/^(a|aa)+$/"; sid:1;)').signatures

    def ignore(event: dict[str, Any]) -> None:
        pass

    replay([Captured(1, 1.0, 101, packet)], rules, ReplayOptions(), ignore, None, said.append)
    assert len(said) == 1
    assert "rule 1:1: its pcre reached the limit" in said[0]

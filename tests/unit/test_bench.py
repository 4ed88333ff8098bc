"""The benchmark's own arithmetic and inputs: a wrong median or a rule that matches would make good-looking figures."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engines.packet import decode
from engines.stateful.app.http1 import Http1Parser
from engines.stateful.parser import Variables, parse_rules
from engines.verdict import Direction
from tests.bench.measure import Processor, Row, by_turns, figure
from tests.bench.rulesets import stateful_rules, stateless_rules
from tests.bench.through_the_lab import apart
from tests.bench.traffic import RawTcp, http_conversations


@pytest.mark.parametrize(
    ("peer", "measured", "least", "missed"),
    [(10.0, 6.0, 0.6, False), (10.0, 5.9, 0.6, True), (10.0, 0.0, 0.6, True), (10.0, 1.0, None, False)],
)
def test_a_row_misses_its_limit(peer: float, measured: float, least: float | None, missed: bool) -> None:
    row = Row("row", "peer", peer, measured, "1/s", least=least)
    assert row.missed is missed
    assert (f"at least {least:.0%}" in str(row)) if least else ("at least" not in str(row))


@pytest.mark.parametrize(("measured", "missed"), [(14.9, False), (15.1, True)])
def test_a_cost_may_have_an_upper_limit(measured: float, missed: bool) -> None:
    row = Row("row", "peer", 10.0, measured, "µs", "less", most=1.5)
    assert row.missed is missed
    assert "at most 150%" in str(row)


@pytest.mark.parametrize(("measured", "missed"), [(2.0, False), (2.1, True)])
def test_the_measured_side_may_have_a_cap_of_its_own(measured: float, missed: bool) -> None:
    row = Row("row", "peer", 9.0, measured, "s", "less", cap=2.0)
    assert row.missed is missed
    assert "at most 2.00 s" in str(row)


def test_a_peer_that_measured_nothing_is_no_division_by_zero() -> None:
    assert Row("row", "peer", 0.0, 1.0, "1/s").ratio == float("inf")


@pytest.mark.parametrize(("value", "text"), [(0.0123, "0.012"), (1.5, "1.50"), (12.34, "12.3"), (651.2, "651")])
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_by_turns_alternates_and_takes_medians() -> None:
    calls: list[str] = []
    values = {"a": iter([1.0, 9.0, 2.0]), "b": iter([30.0, 10.0, 20.0])}

    def side(name: str) -> float:
        calls.append(name)
        return next(values[name])

    assert by_turns(lambda: side("a"), lambda: side("b"), 3) == (2.0, 20.0)
    assert calls == ["a", "b"] * 3


def test_the_rules_load_and_are_the_same_every_time() -> None:
    parsed = parse_rules(stateful_rules(200), "bench.rules", Variables({}, {}))
    assert not parsed.errors
    assert len(parsed.signatures) == 200
    assert stateful_rules(50) == stateful_rules(50)
    assert stateless_rules(50) == stateless_rules(50)


def test_the_http_that_is_inspected_is_http() -> None:
    talk = http_conversations(10)
    assert talk == http_conversations(10)
    for conversation in talk:
        parser = Http1Parser()
        for direction, data in conversation:
            parser.feed(direction, data)
        assert not parser.gave_up
        assert parser.transactions
        assert all(tx.is_complete(side) and not tx.events for tx in parser.transactions for side in Direction)


def test_the_packets_of_an_open_flow_follow_each_other() -> None:
    flow = RawTcp(443)
    syn, answer, ack = (decode(packet) for packet in flow.handshake())
    assert (answer.ack, ack.seq, ack.ack) == (syn.seq + 1, syn.seq + 1, answer.seq + 1)
    sent = [decode(packet) for packet in flow.idle(10, 2, random.Random(1))]
    assert [len(packet.payload) for packet in sent] == [10] * 4
    assert [packet.seq for packet in sent[::2]] == [ack.seq, ack.seq + 10]
    assert sent[3].ack == ack.seq + 20


def test_the_router_has_a_processor_of_its_own() -> None:
    everywhere = os.sched_getaffinity(0)

    @contextmanager
    def router() -> Iterator[set[int]]:
        yield os.sched_getaffinity(0)

    with apart(router()) as own:
        assert own == {min(everywhere)}
        assert os.sched_getaffinity(0) == (everywhere - own or own)
    assert os.sched_getaffinity(0) == everywhere


def test_a_processor_that_gets_slower() -> None:
    pace = iter([1.0, 2.0, 1.5])
    now = 1.0
    processor = Processor(lambda: now)
    for now in pace:  # noqa: B007 - what the work takes from then on
        processor.sample()
    assert str(processor) == "between the rows the same work took 1.50 times as long as at its best, once 2.00 times"

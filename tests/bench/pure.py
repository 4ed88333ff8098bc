"""Rows that need no network: one engine, in a loop."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from functools import partial

from engines.flow import FlowTable
from engines.packet import Packet, decode
from engines.stateless.filter import MEMO_LIMIT, StatelessFilter
from engines.stateless.rule import StatelessAction
from tests.bench.measure import Row, by_turns
from tests.bench.rulesets import FEW, nested_stateless_rules, stateless_rules

MANY = 10_000
# More than the filter remembers, so that every packet is the first of its flow; and so few that it remembers all.
NEW_FLOWS = MEMO_LIMIT + 1024
KNOWN_FLOWS = 64
LOOP_SECONDS = 0.5
STATELESS_MOST = 1.5


def rows(turns: int) -> Iterator[Row]:
    """Packets of flows not seen before, then packets of known ones; the engine alone, then what a packet costs up to
    the stateful engine, which is what a person would notice."""
    for kind, make in (("", stateless_rules), ("nested ", nested_stateless_rules)):
        few, many = (StatelessFilter(make(count), StatelessAction.FORWARD) for count in (FEW, MANY))
        for what, flows, cost, most in (
            ("new flow", NEW_FLOWS, _cost, None),
            ("known flow", KNOWN_FLOWS, _cost, None),
            ("new flow, decoded and tracked", NEW_FLOWS, _packet_cost, STATELESS_MOST),
        ):
            packets = _packets(flows)
            few_us, many_us = by_turns(partial(cost, few, packets), partial(cost, many, packets), turns)
            name = f"stateless, {MANY:,} {kind}rules, {what}"
            yield Row(name, f"{FEW} rules", few_us, many_us, "µs", "less", most=most)


def _cost(engine: StatelessFilter, packets: list[Packet]) -> float:
    """Microseconds of a packet."""
    match, count = engine.match, 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < LOOP_SECONDS:
        for packet in packets:
            match(packet)
        count += len(packets)
    return elapsed / count * 1e6


def _packet_cost(engine: StatelessFilter, packets: list[Packet]) -> float:
    """Microseconds of the first packet of a flow on its way to the stateful engine."""
    started = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - started) < LOOP_SECONDS:
        table = FlowTable()
        for packet in packets:
            again = decode(packet.data)
            engine.match(again)
            table.track(again, 0.0)
        count += len(packets)
    return elapsed / count * 1e6


def _packets(flows: int) -> list[Packet]:
    """A TCP packet of each of so many flows, to addresses and ports the rules speak of."""
    chance = random.Random(3)
    made = []
    for _ in range(flows):
        head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
        addresses = struct.pack("!II", chance.randint(10 << 24, 11 << 24), chance.getrandbits(32))
        ports = struct.pack("!HH", chance.randint(1024, 65535), chance.randint(1, 40_000))
        made.append(decode(head + addresses + ports + struct.pack("!IIBBHHH", 0, 0, 0x50, 0x02, 0, 0, 0)))
    return made

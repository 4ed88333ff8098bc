"""Rows that need no network: one engine, in a loop."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator

from engines.packet import Packet, decode
from engines.stateless.filter import MEMO_LIMIT, StatelessFilter
from engines.stateless.rule import StatelessAction
from tests.bench.measure import Row, by_turns
from tests.bench.rulesets import stateless_rules

FEW, MANY = 10, 10_000
# More than the filter remembers, so that every packet is the first of its flow; and so few that it remembers all.
NEW_FLOWS = MEMO_LIMIT + 1024
KNOWN_FLOWS = 64
LOOP_SECONDS = 0.5


def rows(turns: int) -> Iterator[Row]:
    """Packets of flows not seen before, then packets of known ones."""
    few, many = (StatelessFilter(stateless_rules(count), StatelessAction.FORWARD) for count in (FEW, MANY))
    for what, flows in (("new flow", NEW_FLOWS), ("known flow", KNOWN_FLOWS)):
        packets = _packets(flows)
        few_us, many_us = by_turns(lambda p=packets: _cost(few, p), lambda p=packets: _cost(many, p), turns)  # type: ignore[misc]
        yield Row(f"stateless engine, {MANY:,} rules, {what}", f"{FEW} rules", few_us, many_us, "µs", "less")


def _cost(engine: StatelessFilter, packets: list[Packet]) -> float:
    """Microseconds of a packet."""
    match, count = engine.match, 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < LOOP_SECONDS:
        for packet in packets:
            match(packet)
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

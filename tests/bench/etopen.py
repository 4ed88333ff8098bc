"""Rows on a set that people really load: Emerging Threats Open, read where it lies. None of them needs root.

Loading is measured in processes of their own, as the leader of a generation loads a policy; inspection on HTTP as
browsers and servers speak it, none of which any rule matches, next to what Hyperscan alone needs for the same bytes.
Inspection is measured in CPU time, of which other programs take none.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engines.packet import decode
from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.prefilter import PatternSet
from engines.stateful.ruleset import RuleSet
from engines.verdict import Direction
from nfw.marks import Disposition
from nfw.pipeline import Answer, Pipeline
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from tests.bench.measure import Row, by_turns
from tests.bench.rulesets import FEW, etopen_policy, few_policy
from tests.bench.traffic import Conversation, RawTcp, http_conversations

RULES = Path(__file__).parents[2].parent / "shared" / "rulesets" / "et-open"
# What an operator notices of a start, and what a small router has to spare.
WARM_SECONDS = 2.0
MEMORY_MB = 400.0
SCAN_LEAST = 0.25
IDLE_MOST = 2.0
LOOP_SECONDS = 0.5
SCANS = 4  # for one inspection, so that both take as long and what else the machine does is the same for both
# Below the default stream depth, beyond which nothing is searched.
IDLE_BYTES = 512 << 10
IDLE_PAYLOAD = 100
GENERATION = 5


def rows(folder: Path, turns: int) -> Iterator[Row]:
    """All rows on the rule files in ``folder``. Raises FileNotFoundError when there are none."""
    if not any(folder.glob("*.rules")):
        raise FileNotFoundError(f"{folder}: no rule files")
    with tempfile.TemporaryDirectory(prefix="nfw-bench-") as name:
        where = Path(name)
        large, few = where / "etopen.yaml", where / "few.yaml"
        large.write_text(etopen_policy(folder))
        few.write_text(few_policy(where))
        yield from _loading(large, few, where / "cache", turns)
        compiled = compile_policy(load_policy(large))
        gc.collect()
        gc.freeze()  # as the leader of a generation does
        yield _http(compiled, turns)
        yield from _idle(compiled, compile_policy(load_policy(few)), turns)


# -- loading -----------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """One process that loaded and compiled a policy: wall seconds from its start, peak memory in MB, rules."""

    seconds: float
    memory: float
    rules: int


def _start(policy: Path, cache: Path, *, cold: bool) -> Start:
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "tests.bench.start", str(policy)]
    environment = {**os.environ, "NFW_CACHE": str(cache)}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        line = one.stdout.readline()
        seconds = time.perf_counter() - started  # its end is not part of it: a leader goes on
        _, wrong = one.communicate(timeout=60)
    if one.returncode or wrong:
        raise RuntimeError(wrong.strip())
    said: dict[str, Any] = json.loads(line)
    return Start(seconds, said["peak"] / 1e6, said["rules"])


def _loading(large: Path, few: Path, cache: Path, turns: int) -> Iterator[Row]:
    """Process start included; a warm start finds what the one before it left in the cache."""
    smallest, cold, warm = [], [], []
    for _ in range(turns):
        smallest.append(_start(few, cache, cold=True))
        cold.append(_start(large, cache, cold=True))
        warm.append(_start(large, cache, cold=False))
    rules = f"{cold[0].rules:,} ET Open rules"

    def seconds(starts: list[Start]) -> float:
        return statistics.median(start.seconds for start in starts)

    def memory(starts: list[Start]) -> float:
        return statistics.median(start.memory for start in starts)

    ten = f"{FEW} rules"
    yield Row(f"start, {rules}, nothing cached", ten, seconds(smallest), seconds(cold), "s", "less")
    yield Row(f"start, {rules}, cached", "nothing cached", seconds(cold), seconds(warm), "s", "less", cap=WARM_SECONDS)
    yield Row(f"peak memory, {rules}, nothing cached", ten, memory(smallest), memory(cold), "MB", "less", cap=MEMORY_MB)
    yield Row(f"peak memory, {rules}, cached", ten, memory(smallest), memory(warm), "MB", "less", cap=MEMORY_MB)


# -- HTTP --------------------------------------------------------------------------------------------------------------


def _http(compiled: Compiled, turns: int) -> Row:
    """Every segment of HTTP given to an inspector, against one scan of it for the patterns of all rules."""
    talk = http_conversations()
    size = sum(len(data) for conversation in talk for _, data in conversation)
    ruleset = compiled.ruleset
    everything = PatternSet(
        (fast.pattern, fast.nocase, rule.index)
        for rule in ruleset.rules
        if (fast := rule.signature.fast_pattern) is not None and fast.pattern
    )
    bare, inspected = by_turns(
        lambda: statistics.mean(_scan(everything, talk) for _ in range(SCANS)),
        lambda: _inspect(ruleset, talk),
        turns,
    )
    name = f"HTTP inspected, {len(ruleset.rules):,} ET Open rules"
    return Row(name, "Hyperscan alone", size / bare / 1e6, size / inspected / 1e6, "MB/s", least=SCAN_LEAST)


def _scan(patterns: PatternSet, talk: list[Conversation]) -> float:
    started = time.process_time()
    for conversation in talk:
        for _, data in conversation:
            patterns.scan(data)
    return time.process_time() - started


def _inspect(ruleset: RuleSet, talk: list[Conversation]) -> float:
    packet = decode(RawTcp(80).packet(Direction.TO_SERVER, 0x18))  # what its header says decides nothing here
    started = time.process_time()
    for number, conversation in enumerate(talk):
        facts = FlowFacts(number, 6, b"\x0a\0\0\1", b"\x5d\xb8\xd8\x22", 40000, 80)
        inspector = Inspector(ruleset, facts, 0.0)
        for direction, data in conversation:
            inspector.inspect(Segment(direction, True, data, data, packet, 0.0))
        if inspector.finished:
            raise RuntimeError("the inspector did not look at the whole conversation")
    return time.process_time() - started


# -- a flow that matches nothing ---------------------------------------------------------------------------------------


class _Silent:
    """No effects."""

    def verdict(self, packet_id: int, accept: bool) -> None:
        pass

    def rewrite(self, packet_id: int, packet: bytes) -> None:
        pass

    def inject(self, packet: bytes) -> None:
        pass

    def event(self, event: dict[str, Any]) -> None:
        pass


def _idle(many: Compiled, few: Compiled, turns: int) -> Iterator[Row]:
    rules = f"{len(many.ruleset.rules):,} ET Open rules"
    for what, payload in ((f"{IDLE_PAYLOAD} bytes", IDLE_PAYLOAD), ("a bare acknowledgement", 0)):
        peer, measured = by_turns(partial(_packet_cost, few, payload), partial(_packet_cost, many, payload), turns)
        name = f"packet of an open flow, {what}, {rules}"
        yield Row(name, f"{FEW} rules", peer, measured, "µs", "less", most=IDLE_MOST)


def _packet_cost(compiled: Compiled, size: int) -> float:
    """Microseconds from a packet's bytes to its answer, in an established flow that no rule matches."""
    elapsed = 0.0
    count = 0
    while elapsed < LOOP_SECONDS:
        pipeline = Pipeline(compiled, GENERATION, _Silent(), 0.0)
        flow = RawTcp(port=5999)
        for number, packet in enumerate(flow.handshake()):
            pipeline.packet(number, GENERATION if number else 0, Disposition.INSPECT if number else 0, packet, 0.0)
        packets = flow.idle(size, IDLE_BYTES // IDLE_PAYLOAD // 2, random.Random(6))
        judge = pipeline.packet
        started = time.process_time()
        answers = {judge(9, GENERATION, Disposition.INSPECT, packet, 0.0) for packet in packets}
        elapsed += time.process_time() - started
        count += len(packets)
        if answers != {Answer.ACCEPT}:
            raise RuntimeError(f"the flow was not only inspected: {answers}")
    return elapsed / count * 1e6

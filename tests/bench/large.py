"""Rows on a policy of 10,000 + 10,000 rules, stateless and stateful. None of them needs root."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.measure import Row
from tests.bench.rulesets import FEW, LARGE, few_policy, large_policy

# What a person waits for an answer, a CI job for a check; and what a small router has to spare.
CHECK_SECONDS = 20.0
COMPILE_SECONDS = 20.0
MEMORY_MB = 800.0


class _Run(NamedTuple):
    """One process: wall seconds, its start included, CPU seconds, and peak memory in MB."""

    seconds: float
    cpu: float
    memory: float


def rows(turns: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="nfw-bench-") as name:
        where = Path(name)
        large, few = where / "large.yaml", where / "few.yaml"
        large.write_text(large_policy(where))
        few.write_text(few_policy(where))
        rules = f"{LARGE:,} + {LARGE:,} rules"
        for what, module, cap in (
            ("nfw policy check", "tests.bench.check", CHECK_SECONDS),
            ("load and compile", "tests.bench.start", COMPILE_SECONDS),
        ):
            small, big = [], []
            for _ in range(turns):
                small.append(_run(module, few))
                big.append(_run(module, large))
            peer, note = f"{FEW} rules", f"{statistics.median(run.cpu for run in big):.1f} CPU s"
            one, other = (statistics.median(run.seconds for run in runs) for runs in (small, big))
            yield Row(f"{what}, {rules}, nothing cached", peer, one, other, "s", "less", note=note, cap=cap)
            one, other = (statistics.median(run.memory for run in runs) for runs in (small, big))
            yield Row(f"peak memory, {what}, {rules}", peer, one, other, "MB", "less", cap=MEMORY_MB)


def _run(module: str, policy: Path) -> _Run:
    command = [sys.executable, "-m", module, str(policy)]
    started, spent = time.perf_counter(), _cpu()
    done = subprocess.run(
        command, env={**os.environ, "NFW_CACHE": "off"}, capture_output=True, text=True, check=False, timeout=300
    )
    seconds = time.perf_counter() - started
    lines = done.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines else {}
    if done.returncode or said.get("status", 0):
        raise RuntimeError(done.stderr.strip() or done.stdout[-2000:])
    return _Run(seconds, _cpu() - spent, said["peak"] / 1e6)


def _cpu() -> float:
    """Seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""One target for some time, with atheris (coverage decides what is worth changing) or else with Hypothesis.

The promises: nothing but what the target expects is raised; no input takes longer than :data:`INPUT_SECONDS` of CPU
time; from the first fifth of the time on, when every cache is filled, memory does not grow by more than
:data:`GROWTH_MB`. The first input that breaks one ends the run and is kept as a file.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

INPUT_SECONDS = 2.0
GROWTH_MB = 64.0
_LOOK_EVERY = 500  # inputs


@dataclass(slots=True)
class Figures:
    """What a run came to. ``problem``: "" when every promise held; ``slowest``: CPU seconds of one input."""

    target: str
    engine: str = ""
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    growth_mb: float = 0.0
    problem: str = ""
    kept: str = ""

    def __str__(self) -> str:
        state = f"FAILED: {self.problem}" if self.problem else "ok"
        figures = f"{self.inputs:>9,} inputs {self.seconds:6.0f} s, slowest {self.slowest * 1e3:6.1f} ms"
        return f"{self.target:12} {self.engine:10} {figures}, {self.growth_mb:+6.1f} MB  {state}"


class SlowInputError(Exception):
    """An input took too much CPU time."""


class Watch:
    """Runs inputs and looks at what they cost. ``keep``: where an input that fails is written."""

    def __init__(self, name: str, run: Callable[[bytes], None], seconds: float, keep: Path) -> None:
        self.figures = Figures(name)
        self._run = run
        self._seconds = seconds
        self._keep = keep
        self._started = time.monotonic()
        self._settled: float | None = None  # memory after the first fifth

    def input(self, data: bytes) -> bool:
        """Try one input; False when the run is over."""
        figures = self.figures
        signal.signal(signal.SIGVTALRM, _too_slow)
        signal.setitimer(signal.ITIMER_VIRTUAL, INPUT_SECONDS)
        before = time.process_time()
        try:
            self._run(data)
        except Exception as error:
            self._failed(data, "".join(traceback.format_exception(error)))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        cost = time.process_time() - before
        figures.inputs += 1
        figures.slowest = max(figures.slowest, cost)
        if cost > INPUT_SECONDS and not figures.problem:
            self._failed(data, f"{cost:.1f} s of CPU time for one input")
        figures.seconds = time.monotonic() - self._started
        if figures.inputs % _LOOK_EVERY == 0:
            self._look(data)
        return not figures.problem and figures.seconds < self._seconds

    def _look(self, data: bytes) -> None:
        if self.figures.seconds < self._seconds / 5:
            return
        gc.collect()
        memory = resident_mb()
        if self._settled is None:
            self._settled = memory
        self.figures.growth_mb = memory - self._settled
        if self.figures.growth_mb > GROWTH_MB:
            self._failed(data, f"memory grew by {self.figures.growth_mb:.0f} MB")

    def _failed(self, data: bytes, problem: str) -> None:
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{self.figures.target}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        self.figures.problem, self.figures.kept = problem, str(path)


def _too_slow(number: int, frame: FrameType | None) -> NoReturn:
    raise SlowInputError(f"more than {INPUT_SECONDS:g} s of CPU time for one input")


def resident_mb() -> float:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def mutated(seeds: list[bytes], words: tuple[bytes, ...], size: int, chance: random.Random) -> bytes:
    """A seed with some changes: bits, bytes, numbers, words, stretches taken out, doubled or of another seed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(1 << chance.randrange(5)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = data[at : at + chance.randrange(1, 80)] * chance.choice((1, 1, 2, 30))
        elif kind == 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 5 and words:
            data[at:at] = chance.choice(words)
        elif kind == 6:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + chance.randrange(1, 200)]
        elif kind == 7:
            data[at : at + 2] = chance.choice((0, 1, 255, 256, 0x7FFF, 0xFFFF)).to_bytes(2, "big")
        elif kind == 8 and words and at < len(data):
            word = chance.choice(words)
            data[at : at + len(word)] = word
    return bytes(data[:size])


def with_hypothesis(watch: Watch, seeds: list[bytes], words: tuple[bytes, ...], size: int, seed: int) -> None:
    """Inputs of Hypothesis: any bytes, and seeds changed by :func:`mutated`, until the time is over."""
    import hypothesis
    from hypothesis import strategies as st

    changed = st.randoms(use_true_random=True).map(lambda chance: mutated(seeds, words, size, chance))
    running = all(watch.input(data) for data in seeds)
    while running:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=1000,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.one_of(changed, changed, changed, st.binary(max_size=min(size, 200))))
        def some(data: bytes) -> None:
            nonlocal running
            running = running and watch.input(data)

        some()
        seed += 1


def with_atheris(
    atheris: Any, watch: Watch, seeds: list[bytes], words: tuple[bytes, ...], size: int, seed: int, work: Path
) -> None:
    """Inputs of libFuzzer, which never returns: :func:`finish` is called from inside."""
    corpus, dictionary = work / "corpus", work / "words"
    corpus.mkdir(parents=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
    dictionary.write_text("# words\n" + "".join(f'"{text}"\n' for text in quoted))

    def one(data: bytes) -> None:
        if not watch.input(data):
            finish(watch.figures)

    options = [
        f"-max_len={size}",
        f"-seed={seed % (1 << 32) or 1}",
        f"-dict={dictionary}",
        "-verbosity=0",
        "-timeout=60",
    ]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=2048", "-print_final_stats=0", str(corpus)], one)
    atheris.Fuzz()


def finish(figures: Figures) -> NoReturn:
    """Hand the figures to whoever started this process, and end it."""
    import os

    print(json.dumps(asdict(figures)), flush=True)
    os._exit(1 if figures.problem else 0)

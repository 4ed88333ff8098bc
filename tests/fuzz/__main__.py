"""`python -m tests.fuzz [--seconds N] [--jobs N] [TARGET...]`: fuzz, say the figures; exit status 1 when one failed.

An input that failed is in tests/fuzz/found/; `--replay FILE` runs it again, its target being the start of its name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.fuzz.run import Figures, Watch, finish, with_atheris, with_hypothesis

FOUND = Path(__file__).parent / "found"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Whatever arrives, nothing raises, hangs or grows.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at the same time (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="0, the default: another one every time")
    parser.add_argument("--engine", choices=("auto", "atheris", "hypothesis"), default="auto")
    parser.add_argument("--list", action="store_true", help="print the targets and end")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input that was kept")
    parser.add_argument("--one", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed or int(time.time())
    if options.one:
        _one(options.one, options.seconds, seed, options.engine)
    from tests.fuzz.targets import TARGETS

    if options.list:
        print("\n".join(TARGETS))
        return 0
    if options.replay:
        name = options.replay.name.rpartition("-")[0]
        TARGETS[name].run(options.replay.read_bytes())
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; expected {', '.join(TARGETS)}")

    def start(name: str) -> Figures:
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, f"--seconds={options.seconds}"]
        command += [f"--seed={seed}", f"--engine={options.engine}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            figures = Figures(**json.loads(done.stdout.strip().splitlines()[-1]))
        except (IndexError, ValueError, TypeError):
            figures = Figures(name, problem=f"exit status {done.returncode}\n{done.stderr[-4000:]}")
        print(figures, flush=True)
        return figures

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(start, options.targets or TARGETS))
    for figures in results:
        if figures.problem:
            print(f"\n{figures.target}: {figures.kept}\n{figures.problem}", file=sys.stderr)
    print(f"{sum(one.inputs for one in results):,} inputs, {sum(one.seconds for one in results):.0f} s, seed {seed}")
    return 1 if any(figures.problem for figures in results) else 0


def _one(name: str, seconds: float, seed: int, engine: str) -> None:
    """Fuzz one target in this process; does not return."""
    atheris: Any = None
    if engine != "hypothesis" and (engine == "atheris" or find_spec("atheris")):
        atheris = import_module("atheris")
    if atheris is not None:
        with atheris.instrument_imports(include=["engines"]):
            from tests.fuzz.targets import TARGETS
    else:
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    seeds = target.seeds() or [b"\0"]
    watch = Watch(name, target.run, seconds, FOUND)
    watch.figures.engine = "hypothesis" if atheris is None else "atheris"
    if atheris is None:
        with_hypothesis(watch, seeds, target.words, target.size, seed)
        finish(watch.figures)
    with tempfile.TemporaryDirectory(prefix="nfw-fuzz-") as work:
        with_atheris(atheris, watch, seeds, target.words, target.size, seed, Path(work))


if __name__ == "__main__":
    sys.exit(main())

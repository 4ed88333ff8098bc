"""`python -m tests.bench`: measure every row and print the table. Needs root, but for the rows without a network.

    --check            exit status 1 also when a required ratio is missed
    --quick            two turns instead of five, figures to look at and not to keep
    --engines          only the rows that need no network, and no root
    --etopen FOLDER    where the Emerging Threats Open rule files lie

Exit status 1 when a row cannot be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench import etopen, large, logs, pure
from tests.bench.measure import HEAD, Processor, Row, figure
from tests.bench.through_the_lab import LabRows
from tests.firewall import Firewall
from tests.lab import Lab


def rows(seconds: int, turns: int, etopen_rules: Path, engines_only: bool) -> Iterator[Row | Exception]:
    """Each row, or why there is none."""
    if not engines_only:
        yield from _through_the_lab(seconds, turns)
    yield from pure.rows(turns)
    for measure in (partial(large.rows, turns), partial(etopen.rows, etopen_rules, turns)):
        try:
            yield from measure()
        except Exception as error:
            yield error


def _through_the_lab(seconds: int, turns: int) -> Iterator[Row | Exception]:
    with Lab() as lab, Firewall(lab) as firewall:
        for measure in LabRows(lab, firewall, seconds, turns).all():
            try:
                yield measure()
            except Exception as error:  # the other rows are worth having
                yield error
    try:
        yield logs.row(2 * seconds, turns)
    except Exception as error:
        yield error


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make bench", description="What nfw costs, by turns with a peer.")
    parser.add_argument("--check", action="store_true", help="exit status 1 also when a required ratio is missed")
    parser.add_argument("--quick", action="store_true", help="fewer turns: figures to look at, not to keep")
    parser.add_argument("--engines", action="store_true", help="only the rows that need no network, and no root")
    parser.add_argument("--etopen", type=Path, default=etopen.RULES, metavar="FOLDER", help="rule files of ET Open")
    options = parser.parse_args()
    print(HEAD, flush=True)
    unmeasured, missed = 0, []
    processor = Processor()
    processor.sample()
    for row in rows(1, 2 if options.quick else 5, options.etopen, options.engines):
        if isinstance(row, Exception):
            unmeasured += 1
            print(f"not measured: {row}", file=sys.stderr, flush=True)
            continue
        print(row, flush=True)
        if row.missed:
            missed.append(row)
        processor.sample()
    print(processor)
    for row in missed:
        print(f"not {row.limit}: {row.name}, {figure(row.measured)} {row.unit}, {row.ratio:.1%}")
    return 1 if unmeasured or (options.check and missed) else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.grade [--only CASE|GROUP ...] [--quick] [--idle SECONDS] [--json FILE]``, as root."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.firewall import Firewall, many_files
from tests.grade import GROUPS, load
from tests.grade.bench import Bench
from tests.grade.case import REGISTER, Result, run_all
from tests.grade.trust import Trust
from tests.lab import Lab

_WIDTH = 150


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.grade", description="nfw's TLS grade on real packets")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE|GROUP", help=f"groups: {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--quick", action="store_true", help="smaller numbers where the full ones take minutes")
    parser.add_argument("--idle", type=float, help="seconds that idle flows are left alone; 60, or 10 with --quick")
    parser.add_argument("--verbose", action="store_true", help="a line for each case as it ends")
    chosen = parser.parse_args()
    load()
    known = {one.identifier for one in REGISTER} | set(GROUPS)
    unknown = [one for one in chosen.only if one not in known]
    if unknown:
        parser.error(f"no such case or group: {', '.join(unknown)}")
    cases = [one for one in REGISTER if not chosen.only or one.identifier in chosen.only or one.group in chosen.only]
    many_files()
    began = time.monotonic()
    with Lab() as lab, Firewall(lab) as firewall:
        idle = chosen.idle or (10.0 if chosen.quick else 60.0)
        bench = Bench(lab, firewall, Trust(), quick=chosen.quick, idle=idle)
        results = run_all(bench, cases, _line if chosen.verbose else lambda _: None)
        for server in bench.servers:
            server.close()
        output = firewall.output.read_text()
    _table(results)
    if "Traceback" in output:
        print(output[output.index("Traceback") :][:4000], file=sys.stderr)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([_record(one) for one in results], indent=1) + "\n")
    outcomes = [one.outcome for one in results]
    unrunnable = [one for one in results if one.outcome == "unrunnable"]
    if unrunnable:
        print(f"\ncannot be run here: {'; '.join(f'{one.case.identifier}: {one.seen}' for one in unrunnable)}")
    print(f"\nin {time.monotonic() - began:.0f} s")
    print(f"{outcomes.count('passed')} passed, {outcomes.count('failed')} failed")
    return 1 if "failed" in outcomes or "Traceback" in output else 0


def _line(one: Result) -> None:
    print(f"{one.outcome:8} {one.case.identifier:4} {one.seconds:5.1f} s  {one.seen}", flush=True)


def _table(results: list[Result]) -> None:
    order = {one.identifier: number for number, one in enumerate(REGISTER)}
    for group in GROUPS:
        here = sorted((one for one in results if one.case.group == group), key=lambda one: order[one.case.identifier])
        if not here:
            continue
        passed = sum(one.outcome == "passed" for one in here)
        print(f"\n{group}: {passed} of {len(here)}")
        for one in here:
            mark = {"passed": "pass", "failed": "FAIL", "unrunnable": "n/a"}[one.outcome]
            print(f"  {mark:4} {one.case.identifier:4} {one.case.title}"[:_WIDTH])
            print(f"            expected: {one.case.expected}")
            if one.directly:
                print(f"            directly: {one.directly}")
            print(f"            seen:     {one.seen}")


def _record(one: Result) -> dict[str, object]:
    return {
        "case": one.case.identifier,
        "group": one.case.group,
        "title": one.case.title,
        "expected": one.case.expected,
        "directly": one.directly,
        "seen": one.seen,
        "clients": one.kinds,
        "outcome": one.outcome,
        "seconds": round(one.seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main())

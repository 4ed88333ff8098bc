"""The register of cases and how they are run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.grade.bench import Bench, CannotRunError, Probe, WrongError, run_probes

THREADS = 6


@dataclass(frozen=True)
class Case:
    """``identifier`` is the list's. ``check`` returns what was seen, raises WrongError when that is not what is
    expected, CannotRunError when this machine cannot tell. ``policy`` is the firewall's meanwhile; ``alone``: nothing
    else runs at the same time (it measures, or changes the firewall); ``pending``: what nfw still lacks for it;
    ``undirected``: why nothing can be seen of it without nfw."""

    identifier: str
    group: str
    title: str
    expected: str
    check: Callable[[Bench], str]
    policy: str = "main"
    alone: bool = False
    pending: str = ""
    undirected: str = ""


@dataclass
class Result:
    """``outcome``: passed, failed or unrunnable. ``directly``: what was seen without nfw; ``kinds``: of clients that
    came through it."""

    case: Case
    outcome: str
    seen: str
    seconds: float
    directly: str = ""
    kinds: tuple[str, ...] = ()


REGISTER: list[Case] = []

Check = Callable[[Bench], str]


def case(
    identifier: str,
    title: str,
    expected: str,
    *,
    policy: str = "main",
    alone: bool = False,
    pending: str = "",
    undirected: str = "",
) -> Callable[[Check], Check]:
    """Register a function as the check of a case."""

    def register(function: Check) -> Check:
        group = function.__module__.rpartition(".")[2]
        REGISTER.append(Case(identifier, group, title, expected, function, policy, alone, pending, undirected))
        return function

    return register


def probes(
    identifier: str, title: str, expected: str, *, policy: str = "main"
) -> Callable[[Callable[[Bench], list[Probe]]], Callable[[Bench], list[Probe]]]:
    """Register a function that makes the servers of a case."""

    def register(function: Callable[[Bench], list[Probe]]) -> Callable[[Bench], list[Probe]]:
        group = function.__module__.rpartition(".")[2]

        def run(bench: Bench) -> str:
            return run_probes(bench, function(bench))

        REGISTER.append(Case(identifier, group, title, expected, run, policy))
        return function

    return register


def run_case(bench: Bench, one: Case) -> Result:
    began = time.monotonic()
    bench = bench.of_case()
    try:
        outcome, seen = "passed", one.check(bench)
    except CannotRunError as reason:
        outcome, seen = "unrunnable", str(reason)
    except WrongError as wrong:
        outcome, seen = "failed", str(wrong)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome, seen = (
            "failed",
            f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})",
        )
    if outcome == "failed" and one.pending:
        seen = f"pending ({one.pending}): {seen}"
    directly = str(bench.controls) or one.undirected
    return Result(one, outcome, seen, time.monotonic() - began, directly, tuple(sorted(bench.controls.kinds)))


def run_all(bench: Bench, cases: list[Case], report: Callable[[Result], None]) -> list[Result]:
    """Policy by policy, those that want to be alone last."""
    results = []
    for policy in dict.fromkeys(one.policy for one in cases):
        try:
            bench.use(policy)
        except Exception as error:
            for one in cases:
                if one.policy == policy:
                    why = f"pending ({one.pending})" if one.pending else f"the policy is refused: {error}"
                    results.append(Result(one, "failed", why, 0.0))
                    report(results[-1])
            continue
        here = [one for one in cases if one.policy == policy]
        with ThreadPoolExecutor(THREADS) as pool:
            for result in pool.map(lambda one: run_case(bench, one), [one for one in here if not one.alone]):
                results.append(result)
                report(result)
        for one in here:
            if one.alone:
                bench.use(policy)
                result = run_case(bench, one)
                results.append(result)
                report(result)
    return results

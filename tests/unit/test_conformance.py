"""Nothing that Suricata's own tests say and that held once may stop holding: tests/conformance/passing.txt."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.run import _fits, _score, load_manifest, run

DATA = Path(__file__).parents[2].parent / "shared" / "conformance" / "suricata"
PASSING = Path(__file__).parents[1] / "conformance" / "passing.txt"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the conformance data is not at {DATA}")
def test_what_passed_still_passes() -> None:
    names = set(PASSING.read_text().splitlines())
    entries = [entry for entry in load_manifest(DATA) if entry["name"] in names]
    assert len(entries) == len(names), "the list names entries that are not there"
    failed = {result.name: result.problems for result in run(DATA, entries, 2) if result.problems}
    assert not failed


def test_the_score_fails_what_differs() -> None:
    """The runner's own arithmetic: each kind of expectation, met and missed."""
    alert = {"event_type": "alert", "pcap_cnt": 3, "alert": {"signature_id": 1, "action": "allowed"}}
    for entry, fine in (
        ({"expected": {"1": 1}}, True),
        ({"expected": {"1": 2}}, False),
        ({"expected": {"2": 0}}, True),
        ({"at_least": {"1": 1}}, True),
        ({"at_least": {"1": 2}}, False),
        ({"expected_total": 1}, True),
        ({"expected_total": 0}, False),
        ({"expected_drops": {"total": 0}}, True),
        ({"expected_drops": {"total": 1}}, False),
        ({"expected_stats": {"ips.blocked": 0}}, True),
        ({"expected_stats": {"ips.blocked": 1}}, False),
        ({"checks": [{"event": "alert", "where": {"sid": 1, "pcap_cnt": 3, "action": "allowed"}, "count": 1}]}, True),
        ({"checks": [{"event": "alert", "where": {"sid": 1, "pcap_cnt": 4}, "count": 1}]}, False),
    ):
        assert (not _score(entry, [alert], {})) is fine, entry


@pytest.mark.parametrize(
    ("written", "wanted", "fits"),
    [
        ("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0001", True),
        ("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0002", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("a: b", "c: d", False),
    ],
)
def test_addresses_are_compared_as_such(written: str, wanted: str, fits: bool) -> None:
    assert _fits({"src_ip": written}, {"src_ip": wanted}) is fits


def _misbehave(folder: Path, entry: Mapping[str, Any]) -> list[str]:
    match entry["name"]:
        case "fails":
            return ["differs"]
        case "raises":
            raise RuntimeError("no")
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exits":
            os._exit(3)
        case "memory":
            return [str(len(bytearray(1 << 40)))]
        case "hangs":
            while True:  # and does not let anybody tell it
                with contextlib.suppress(BaseException):
                    time.sleep(1)
        case "deep":
            return _misbehave(folder, entry)
        case "large":
            return ["x" * 1_000_000]
    return []


def test_an_entry_that_crashes_or_hangs_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.run._replay", _misbehave)
    says = {
        "good": "",
        "hangs": "took longer than 1 s",
        "fails": "differs",
        "raises": "RuntimeError: no",
        "segfault": "its process died: SIGSEGV",
        "exits": "its process died: exit code 3",
        "memory": "MemoryError",
        "deep": "RecursionError",
        "large": "xxx",
        "last": "",
    }
    entries = [{"name": name, "tier": "core", "family": "f", "kind": "replay"} for name in says]
    for jobs in (1, 3, 20):
        results = run(Path(), entries, jobs, 1.0)
        assert [result.name for result in results] == list(says)
        for result in results:
            assert bool(result.problems) is bool(says[result.name])
            assert all(problem.startswith(says[result.name]) for problem in result.problems)
    assert not multiprocessing.active_children()

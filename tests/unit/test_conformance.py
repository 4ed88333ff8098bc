"""Nothing that Suricata's own tests say and that held once may stop holding: tests/conformance/passing.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.run import _score, load_manifest, run

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

"""No packet waits for a log: 1,000 flows a second with every sink on, and with every sink broken."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.bench.logs import FLOWS, Latency, Logs, running_logs
from tests.firewall import pids_named

SECONDS = 2.0
# As much as two measurements may differ on a machine that does other things; a worker that waited for a log would stand
# still with all flows behind it.
LOAD_MS, LOAD_FACTOR = 20.0, 3.0


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    with running_logs() as made:
        yield made


@pytest.fixture(scope="module")
def quiet(logs: Logs) -> Latency:
    """Without any log, in the same run."""
    return logs.without(SECONDS)


def as_fast(latency: Latency, quiet: Latency) -> bool:
    return latency.lost <= quiet.lost and latency.median <= quiet.median * LOAD_FACTOR + LOAD_MS


def test_all_sinks(logs: Logs, quiet: Latency) -> None:
    latency, lines = logs.with_readers(SECONDS)
    assert as_fast(latency, quiet), f"{latency}\nwithout a log: {quiet}"
    assert all(count >= FLOWS * SECONDS for count in lines.values()), lines
    assert "does not take" not in logs.firewall.output.read_text()


def test_all_broken(logs: Logs, quiet: Latency) -> None:
    latency, lost = logs.with_broken_sinks(SECONDS)
    assert as_fast(latency, quiet), f"{latency}\nwithout a log: {quiet}"
    assert lost["full disk"] > 0
    assert lost["dead syslog"] >= FLOWS * SECONDS
    # Each says so once; what a stuck reader has not taken is lost when the next policy has no such sink.
    said = logs.firewall.output.read_text()
    for sink in ("disk/aws.json", "broken-syslog", "broken-stream", "broken-dgram"):
        assert said.count(f"{sink} does not take what it should") == 1, said
    assert said.count("No space left on device") == 1


def test_a_writer_that_hangs(logs: Logs, quiet: Latency) -> None:
    """As on a dead network disk: packets go on, and so does the next change of policy, with another writer."""
    supervisor = logs.firewall.pid()
    logs.firewall.apply(logs.broken)
    writer = logs.firewall.the_only("nfw log")
    os.kill(writer, signal.SIGSTOP)
    latency = logs.load(SECONDS)
    assert as_fast(latency, quiet), f"{latency}\nwithout a log: {quiet}"
    logs.firewall.apply(logs.quiet)
    assert list(pids_named(supervisor, "nfw log")) not in ([], [writer])

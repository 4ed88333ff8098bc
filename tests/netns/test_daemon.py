"""`nfw run` as an operator meets it: what it refuses and in which words, and its log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.firewall import PATIENCE, ROOT, Firewall, wait_for
from tests.lab import Lab

POLICY = """\
name: daemon
stateless: {default: forward}
stateful:
  order: action
  rules: 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:1;)'
"""

READER = """\
import time
from nfw.nfqueue import Queue
queue = Queue(5100, lambda *packet: 0)
print("reading", flush=True)
time.sleep(60)
"""


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        yield firewall


def refusal(firewall: Firewall, *options: str) -> str:
    """What `nfw run` says when it does not start."""
    policy = firewall.policy("daemon", POLICY)
    answer = firewall.cli("run", "--policy", str(policy), "--control", str(firewall.control), *options, check=False)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    return answer.stderr


def test_a_queue_somebody_reads(firewall: Firewall) -> None:
    reader = firewall.lab.router.popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, cwd=ROOT)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"reading\n"
    assert "queue 5100 is read by another process" in refusal(firewall, "--log", str(firewall.log))


def test_a_log_that_cannot_be_written(firewall: Firewall) -> None:
    before = firewall.lab.router.run(["nft", "list", "ruleset"]).stdout
    assert "cannot write the event log /proc/nope/eve.json" in refusal(firewall, "--log", "/proc/nope/eve.json")
    assert firewall.lab.router.run(["nft", "list", "ruleset"]).stdout == before


def test_a_policy_that_is_not_there(firewall: Firewall) -> None:
    answer = firewall.cli("run", "--policy", "/no/such.yaml", "--control", str(firewall.control), check=False)
    assert answer.returncode == 1
    assert "/no/such.yaml: policy file does not exist" in answer.stderr


def test_sighup_reopens_the_log(firewall: Firewall) -> None:
    firewall.start(firewall.policy("daemon", POLICY))
    assert firewall.lab.curl("http://site-a.test/").returncode == 0
    wait_for(lambda: bool(firewall.events("flow")), PATIENCE)
    firewall.log.rename(firewall.log.with_suffix(".1"))
    os.kill(firewall.pid(), signal.SIGHUP)
    wait_for(firewall.log.exists, PATIENCE)
    assert firewall.lab.curl("http://site-b.test/").returncode == 0
    wait_for(lambda: bool(firewall.events("flow")), PATIENCE)


def test_status_counts(firewall: Firewall) -> None:
    firewall.start(firewall.policy("daemon", POLICY))
    assert firewall.lab.curl("http://site-a.test/").returncode == 0
    status = firewall.status()
    assert (status["state"], status["name"], status["generation"]) == ("filtering", "daemon", 1)
    assert sum(process.get("stateless_default_hits", 0) for process in status["processes"]) > 0
    assert all(process["bugs"] == 0 for process in status["processes"])
    assert status["pid"] == firewall.pid()  # the daemon's, for whoever wants to stop it


def test_metrics(firewall: Firewall) -> None:
    """Scraped with traffic, over a worker that hangs, and closed with the daemon."""
    sock = firewall.log.with_name("metrics.sock")
    firewall.start(firewall.policy("daemon", POLICY), "--metrics", str(sock))
    assert firewall.lab.curl("http://site-a.test/").returncode == 0

    def scrape() -> str:
        answer = firewall.lab.router.run(["curl", "-sS", "--unix-socket", str(sock), "http://nfw/metrics"])
        return answer.stdout

    def value(text: str, name: str) -> float:
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    received = 'aws_networkfirewall_received_packets_total{engine="stateful"}'
    before = value(scrape(), received)
    assert before >= 1
    worker = next(one for one in firewall.status()["processes"] if one["name"] == "nfw packet 0")
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        time.sleep(1.1)  # what was scraped before is fresh for a second
        text = scrape()
        assert value(text, 'nfw_process_up{process="nfw packet 0"}') == 0
        assert value(text, received) >= before
        assert 'nfw_queue_packets{queue="5100"}' in text
    finally:
        os.kill(worker["pid"], signal.SIGCONT)
    os.kill(worker["pid"], signal.SIGKILL)
    time.sleep(1.1)  # as above
    assert value(scrape(), received) >= before
    firewall.stop()
    assert not sock.exists()


def test_sinks_and_a_stuck_one(firewall: Firewall) -> None:
    """Records of every kind in several places at once; a reader that never reads holds up nobody."""
    stuck = socket.socket(socket.AF_UNIX)
    with stuck:
        path = firewall.log.with_name("stuck.sock")
        stuck.bind(str(path))
        stuck.listen()
        text = f"""\
log:
  events: [flow, http, stats]
  stats_interval: 1
  sinks:
    - {{type: unix_stream, path: {path}}}
    - {{type: file, path: aws.json, format: aws}}
    - {{type: file, path: /dev/full}}
"""
        firewall.start(firewall.policy("daemon", POLICY + text))
        for _ in range(5):
            assert firewall.lab.curl("http://site-a.test/").returncode == 0
        wait_for(lambda: bool(firewall.events("http")) and bool(firewall.events("stats")), PATIENCE)
        (stats, *_) = firewall.events("stats")
        assert stats["stats"]["decoder"]["pkts"] >= 0
        assert firewall.events("http")[0]["http"]["hostname"] == "site-a.test"
        aws = firewall.dir / "aws.json"
        wait_for(lambda: "netflow" in aws.read_text(), PATIENCE)
        wait_for(lambda: firewall.status()["log_writer"]["dropped"]["/dev/full"] > 0, PATIENCE)
        assert firewall.lab.curl("http://site-b.test/").returncode == 0


def test_what_tls_carries_is_logged_and_counted(firewall: Firewall) -> None:
    (firewall.dir / "lab-root.pem").write_bytes(firewall.lab.root_ca_pem)
    text = """\
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
log: {events: [http, tls]}
"""
    sock = firewall.log.with_name("metrics.sock")
    firewall.start(firewall.policy("daemon", POLICY + text), "--metrics", str(sock))
    for version in ("--http1.1", "--http2"):
        assert firewall.lab.curl("https://site-a.test/x", version, cacert=firewall.ca).returncode == 0
    wait_for(lambda: len(firewall.events("http")) == 2, PATIENCE)
    for record in firewall.events("http"):
        assert (record["http"]["hostname"], record["http"]["url"]) == ("site-a.test", "/x")
        assert record["tls_inspected"] is True
    wait_for(lambda: len(firewall.events("tls")) == 2, PATIENCE)
    shown = firewall.lab.router.run(["curl", "-sS", "--unix-socket", str(sock), "http://nfw/metrics"]).stdout
    assert 'nfw_tls_sessions_total{status="ok"} 2.0' in shown
    assert "nfw_tls_handshake_seconds_count 2.0" in shown

"""Metrics: what the workers count comes out under its name, never goes back, and no scrape waits for long."""

from __future__ import annotations

import json
import re
import selectors
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from nfw import exporter, metrics
from nfw.control import Deferred, Reply
from nfw.settings import most

ROOT = Path(__file__).parents[2]


def status(**more: Any) -> dict[str, Any]:
    """What a daemon with one worker of each kind answers."""
    return {
        "version": "1",
        "state": "filtering",
        "name": "egress",
        "generation": 3,
        "since": 1000.0,
        "restarts": 2,
        "kernel": {
            "queues": {"5100": {"queued": 7, "dropped": 5, "user_dropped": 1}},
            "counters": {"dropped": 40, "unjudged": 2, "fragments_other": 3},
        },
        "processes": [
            {"name": "nfw keyholder", "pid": 9},
            {
                "name": "nfw packet 0",
                "pid": 10,
                "packets": {
                    "received": 100,
                    "received_bytes": 9000,
                    "forwarded": 80,
                    "forwarded_bytes": 8000,
                    "dropped": 22,
                    "tls": 6,
                },
                "verdicts": {
                    "stateless/pass/stateless_rule": 8,
                    "stateless/drop/stateless_default": 10,
                    "flow/drop/invalid_packet": 2,
                    "flow/drop/invalid_checksum": 1,
                    "flow/drop/flow_table_full": 3,
                    "flow/reject/stream_exception": 1,
                    "flow/tls/tls_scope": 6,
                    "stateful/drop/rule": 2,
                    "stateful/reject/rule": 3,
                },
                "flows": 12,
                "max_flows": 100,
                "held_packets": 4,
                "counts": {"alert": 9, "offloaded": 2, "half_offloaded": 1},
                "rule_hits": {"1:7": 5, "drop_established": 0},
                "stateless_hits": {"10": 8},
                "counters": {"telnet": 6},
                "pcre_gave_up": {"1:7": 2, "1:8": 1},
                "bugs": 0,
                "log_dropped": 11,
            },
            {
                "name": "nfw tls 0",
                "pid": 11,
                "sessions": 2,
                "max_sessions": 20000,
                "bytes": [100, 200],
                "counts": {"tls_ok": 5, "tls_expired": 2, "timed_out": 1, "alert": 1},
                "verdicts": {"tls/reject/expired": 2},
                "handshakes": {"bounds": [0.1, 1.0], "buckets": [3, 1, 1], "seconds": 4.5},
                "leafs": 4,
                "leaf_cache": {"hits": 3, "misses": 4},
                "revocations": 6,
                "revocation": {
                    "hits": 8,
                    "misses": 3,
                    "waits": {"bounds": [0.01, 2.0], "buckets": [1, 2, 0], "seconds": 0.5},
                },
                "rule_hits": {"1:7": 2},
                "bugs": 1,
                "log_dropped": 0,
            },
            {"name": "nfw fetcher", "pid": 12, "counts": {"ocsp_good": 2, "timeout": 1}},
        ],
        **more,
    }


def exposed(value: dict[str, Any] | None, totals: metrics.Totals, rules: metrics.Rules) -> dict[str, float]:
    """Samples as Prometheus names them, by parsing what is exposed."""
    if value is not None:
        totals.update(metrics.sources(value, rules))
    return {
        sample.name + "".join(f" {key}={label}" for key, label in sorted(sample.labels.items())): float(sample.value)
        for family in metrics.families(value, totals.sums())
        for sample in family.samples
    }


EXPECTED = {
    "nfw_packets_total stage=stateless verdict=pass": 8,
    "nfw_packets_total stage=stateless verdict=drop": 10,
    "nfw_packets_total stage=stateless verdict=forward": 80,
    "nfw_packets_total stage=stateful verdict=drop": 8,
    "nfw_packets_total stage=stateful verdict=reject": 4,
    "nfw_packets_total stage=stateful verdict=tls": 6,
    "nfw_packets_total stage=stateful verdict=pass": 60,  # 80 - 6 TLS - 10 dropped of the 22 - 4 held
    "nfw_verdicts_total reason=rule stage=stateful verdict=reject": 3,
    "nfw_verdicts_total reason=expired stage=tls verdict=reject": 2,
    "nfw_alerts_total": 10,
    "nfw_rule_hits_total engine=stateful rule=1:7": 7,
    "nfw_rule_hits_total engine=stateless rule=10": 8,
    "nfw_flows_offloaded_total": 3,
    "nfw_queue_packets queue=5100": 7,
    "nfw_queue_dropped_packets_total cause=queue_full queue=5100": 5,
    "nfw_kernel_packets_total counter=unjudged": 2,
    "nfw_tls_sessions_total status=expired": 2,
    "nfw_tls_open_sessions": 2,
    "nfw_tls_handshake_seconds_bucket le=1.0": 4,
    "nfw_tls_handshake_seconds_bucket le=+Inf": 5,
    "nfw_tls_handshake_seconds_sum": 4.5,
    "nfw_tls_handshake_seconds_count": 5,
    "nfw_leaf_cache_requests_total result=hit": 3,
    "nfw_revocation_requests_total result=hit": 8,
    "nfw_revocation_requests_total result=miss": 3,
    "nfw_revocation_answers_total answer=ocsp_good": 2,
    "nfw_revocation_answers_total answer=timeout": 1,
    "nfw_revocation_seconds_bucket le=0.01": 1,
    "nfw_revocation_seconds_bucket le=2.0": 3,
    "nfw_revocation_seconds_count": 3,
    "nfw_revocation_seconds_sum": 0.5,
    "nfw_revocations_known": 6,
    "nfw_log_dropped_lines_total cause=writer_busy": 11,
    "nfw_process_restarts_total": 2,
    "nfw_process_up process=nfw keyholder": 1,
    "nfw_bugs_total": 1,
    "nfw_regex_gave_up_total": 3,
    "nfw_flows": 12,
    "nfw_generation": 3,
    "nfw_filtering": 1,
    "nfw_info policy=egress version=1": 1,
    "aws_networkfirewall_received_packets_total engine=stateless": 100,
    "aws_networkfirewall_received_packets_total engine=stateful": 74,
    "aws_networkfirewall_passed_packets_total engine=stateful": 60,
    "aws_networkfirewall_dropped_packets_total engine=stateless": 10,
    "aws_networkfirewall_dropped_packets_total engine=stateful": 42,  # the kernel's 40 too
    "aws_networkfirewall_rejected_packets_total engine=stateful": 4,
    "aws_networkfirewall_invalid_dropped_packets_total engine=stateless": 5,
    "aws_networkfirewall_invalid_dropped_packets_total engine=stateful": 1,
    "aws_networkfirewall_other_dropped_packets_total engine=stateful": 3,
    "aws_networkfirewall_stream_exception_policy_packets_total engine=stateful": 1,
    "aws_networkfirewall_packets_total custom_action=telnet": 6,
    "aws_networkfirewall_tls_errors_total": 2,
    "aws_networkfirewall_tls_timed_out_connections_total": 1,
}


def test_what_is_counted_is_exposed() -> None:
    found = exposed(status(), metrics.Totals(), metrics.Rules())
    assert {name: found.get(name) for name in EXPECTED} == EXPECTED


def test_counters_survive_a_dead_worker_a_swap_and_a_closed_path() -> None:
    totals, rules = metrics.Totals(), metrics.Rules()
    name = "aws_networkfirewall_received_packets_total engine=stateless"
    assert exposed(status(), totals, rules)[name] == 100
    silent = status()
    silent["processes"][1] = {"name": "nfw packet 0", "pid": 10}  # stopped: it did not answer in time
    found = exposed(silent, totals, rules)
    assert (found[name], found["nfw_process_up process=nfw packet 0"]) == (100, 0)
    assert exposed({"state": "closed"}, totals, rules)[name] == 100
    again = status(generation=4)
    again["processes"][1]["pid"] = 12
    assert exposed(again, totals, rules)[name] == 200
    without_kernel = status(generation=4, kernel={})  # nft did not answer
    without_kernel["processes"][1]["pid"] = 12
    exposed(without_kernel, totals, rules)
    found = exposed(again, totals, rules)
    assert found["nfw_kernel_packets_total counter=unjudged"] == 2
    assert exposed(None, totals, rules)["nfw_scrape_complete"] == 0
    assert exposed(None, totals, rules)[name] == 200


def test_rules_and_series_are_bounded() -> None:
    totals, rules = metrics.Totals(), metrics.Rules(bound=2)
    value = status()
    value["processes"][1]["rule_hits"] = {"1:1": 1, "1:2": 2, "1:3": 3, "1:4": 4}
    value["processes"][1]["stateless_hits"] = {}
    found = exposed(value, totals, rules)
    assert found["nfw_rule_hits_total engine=stateful rule=1:1"] == 1
    assert found["nfw_rule_hits_total engine=stateful rule=other"] == 3 + 4 + 2  # the TLS worker's 1:7 too
    small = metrics.Totals(bound=3)
    for number in range(10):
        small.update({(metrics.PROCESS, number): {(f"m{number}", ()): 1.0}})
    assert len(small.sums()) == 3
    assert small.refused > 0


def test_defaults_and_scopes_are_rules_too() -> None:
    value = status()
    value["processes"][1]["stateless_default_hits"] = 3
    value["processes"][2]["scope_hits"] = {"scope 1": 4, "scope 2": 0}
    found = exposed(value, metrics.Totals(), metrics.Rules())
    assert found["nfw_rule_hits_total engine=stateless rule=default"] == 3
    assert found["nfw_rule_hits_total engine=tls rule=scope 1"] == 4
    assert "nfw_rule_hits_total engine=tls rule=scope 2" not in found


@pytest.mark.parametrize(
    ("hits", "bound", "kept", "omitted"),
    [
        ({}, 2, {}, 0),
        ({"a": 1, "b": 0}, 2, {"a": 1, "b": 0}, 0),
        ({"a": 1, "b": 3, "c": 2, "d": 0}, 2, {"b": 3, "c": 2}, 1),
    ],
)
def test_a_worker_tells_the_rules_hit_most(
    hits: dict[str, int], bound: int, kept: dict[str, int], omitted: int
) -> None:
    assert most(hits, bound) == (kept, omitted)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=3), max_size=12))
def test_no_sum_ever_decreases(steps: list[dict[str, int]]) -> None:
    totals, last = metrics.Totals(), 0.0
    for step in steps:
        totals.update({(metrics.PROCESS, name): {("m", ()): float(value)} for name, value in step.items()})
        now = totals.sums().get(("m", ()), 0.0)
        assert now >= last
        last = now


# -- the endpoint ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "private"),
    [
        ("127.0.0.1:9469", ("127.0.0.1", 9469), True),
        (":9469", ("127.0.0.1", 9469), True),
        ("localhost:1", ("127.0.0.1", 1), True),
        ("[::1]:9469", ("::1", 9469), True),
        ("10.1.0.1:9469", ("10.1.0.1", 9469), False),
        ("/run/nfw/m.sock", "/run/nfw/m.sock", True),
        ("unix:/run/nfw/m.sock", "/run/nfw/m.sock", True),
    ],
)
def test_addresses(text: str, address: exporter.Address, private: bool) -> None:
    assert exporter.parse_address(text) == address
    assert exporter.is_private(address) is private


@pytest.mark.parametrize("text", ["", "9469", ":0", ":65536", ":x", "host:1", "unix:m.sock", "/" + "x" * 107, "::1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|is no|is not"):
        exporter.parse_address(text)


class Daemon:
    """The supervisor's side of an endpoint, in a thread."""

    def __init__(self, path: Path) -> None:
        self.asked = 0
        self.answer: Reply | Deferred = Reply(True, status())
        self.selector = selectors.DefaultSelector()
        self.exporter = exporter.Exporter(str(path), self.ask, self.selector)
        self.stop = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def ask(self) -> Reply | Deferred:
        self.asked += 1
        return self.answer

    def run(self) -> None:
        while not self.stop:
            self.exporter.tend()
            for key, _ in self.selector.select(0.05):
                key.data()

    def close(self) -> None:
        self.stop = True
        self.thread.join()
        self.exporter.close()
        self.selector.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    tmp_path.chmod(0o755)
    running = Daemon(tmp_path / "metrics.sock")
    yield running
    running.close()


def scrape(path: Path, what: str = "/metrics") -> tuple[int, str]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(f"GET {what} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def test_a_unix_socket_is_scraped(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    code, body = scrape(path)
    assert code == 200
    parsed = {sample.name for family in text_string_to_metric_families(body) for sample in family.samples}
    assert "nfw_packets_total" in parsed
    assert scrape(path, "/else")[0] == 404
    # Many scrapers at once: the daemon hears of about one a second, and each gets an answer or is closed at once.
    started, asked = time.monotonic(), daemon.asked
    for _ in range(20):
        assert scrape(path)[0] == 200
    assert daemon.asked - asked <= time.monotonic() - started + 1
    child = daemon.exporter._child
    assert child is not None
    child.kill()
    assert scrape(path)[0] == 200  # it was started again; who came meanwhile waits in the listener


def test_the_endpoint_has_no_privileges(daemon: Daemon, tmp_path: Path) -> None:
    scrape(tmp_path / "metrics.sock")
    child = daemon.exporter._child
    assert child is not None
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    assert {fields[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"].strip() == "1"
    assert set(fields["Uid"].split()) != {"0"}


def test_a_daemon_that_does_not_answer_blocks_nobody_for_long(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    scrape(path)
    daemon.answer = Deferred()
    time.sleep(exporter.FRESH_SECONDS + 0.1)
    started = time.monotonic()
    code, body = scrape(path)
    assert exporter.ANSWER_SECONDS - 0.5 < time.monotonic() - started < exporter.ANSWER_SECONDS + 20
    assert (code, "nfw_scrape_complete 0.0" in body) == (200, True)
    assert 'aws_networkfirewall_received_packets_total{engine="stateless"} 100.0' in body


def test_scrapers_that_say_nothing_are_bounded(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    scrape(path)
    idle = []
    for _ in range(exporter.SCRAPERS):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        idle.append(sock)
    with socket.socket(socket.AF_UNIX) as more:
        more.settimeout(5)
        more.connect(str(path))
        assert more.recv(1) == b""
    for sock in idle:
        sock.close()


def test_tcp(unused_tcp: int) -> None:
    listener = exporter.listen(("127.0.0.1", unused_tcp))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = exporter.serve(listener, theirs)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer() -> None:
        question = ours.recv(64)
        ours.send(exporter.pack("status", ["old", None]))
        ours.send(exporter.pack("status", [question, status()]))

    thread = threading.Thread(target=answer)
    thread.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp}/metrics", timeout=10) as response:
        assert b"nfw_flows 12.0" in response.read()
    thread.join()
    server.shutdown()
    server.server_close()
    ours.close()
    theirs.close()


@pytest.fixture
def unused_tcp() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# -- what ships --------------------------------------------------------------------------------------------------------


def expressions() -> Iterator[str]:
    rules = YAML(typ="safe").load((ROOT / "monitoring/nfw.rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
    board = json.loads((ROOT / "monitoring/nfw.dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus has promtool")
def test_prometheus_own_tool_takes_the_rules_and_the_metrics() -> None:
    rules = subprocess.run(
        ["promtool", "check", "rules", str(ROOT / "monitoring/nfw.rules.yml")], capture_output=True, text=True
    )
    assert rules.returncode == 0, rules.stdout + rules.stderr
    totals = metrics.Totals()
    totals.update(metrics.sources(status(), metrics.Rules()))

    class Collector:
        def collect(self) -> Iterator[Any]:
            return metrics.families(status(), totals.sums())

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())  # type: ignore[arg-type]
    checked = subprocess.run(["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    found = exposed(status(), metrics.Totals(), metrics.Rules())
    known = {name.split(" ")[0] for name in found}
    asked = {name for text in expressions() for name in re.findall(r"\b(?:nfw|aws_networkfirewall)_\w+", text)}
    assert len(asked) > 15
    assert asked - known - {"nfw_policy_packets_total"} == set()

"""Real traffic, and what `nfw flows` and `nfw rules hits` say of it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.firewall import PATIENCE, Firewall, pids_named, wait_for
from tests.lab import Lab
from tests.netns.test_tls_path import Server, dial, trusting

ADDRESS = "203.0.113.10"

# Discard (9) is dropped by the stateless engine, port 81 has nobody who listens.
POLICY = """\
name: counted
stateless:
  default: forward
  rules:
    - {priority: 1, action: drop, protocols: [udp], destination_ports: [9]}
    - {priority: 2, action: forward, protocols: [udp], destination_ports: [7]}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful:
  order: strict
  default_actions: [drop_strict]
  rules: |
    pass http any any -> any 80 (msg:"good"; http.uri; content:"/"; sid:1;)
    pass tcp any any <> any 80 (msg:"handshake"; flow:not_established; sid:2;)
    pass tcp any any <> any 443 (msg:"TLS in scope"; sid:3;)
    drop tcp any any -> any 7 (msg:"no echo"; flow:not_established; sid:4;)
    alert udp any any -> any 7 (msg:"MARK"; content:"MARK"; sid:5;)
open_flows: {which: all, action: drop}
"""


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        yield firewall


def flows(firewall: Firewall, *options: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(firewall.cli("flows", "list", "--json", *options).stdout)["flows"]
    return listed


def counts(firewall: Firewall) -> dict[str, dict[str, Any]]:
    rows = json.loads(firewall.cli("rules", "hits", "--json").stdout)
    return {f"{row['engine']} {row['id']}": row for row in rows}


def counted(firewall: Firewall) -> dict[str, tuple[int, int]]:
    """Hits and flows of what was hit."""
    return {name: (row["hits"], row["flows"]) for name, row in counts(firewall).items() if row["hits"]}


def datagrams(lab: Lab, port: int, *payloads: bytes) -> None:
    with lab.in_namespace("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for payload in payloads:
            sock.sendto(payload, (ADDRESS, port))


def refused_syn(lab: Lab) -> None:
    """One SYN: the kernel repeats it after a second, and drops that one itself."""
    with lab.in_namespace("client"), socket.socket() as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.connect((ADDRESS, 7))


def traffic(firewall: Firewall) -> None:
    lab = firewall.lab
    datagrams(lab, 9, *[b"discard"] * 5)
    datagrams(lab, 7, b"MARK", b"MARK again", b"other")
    for _ in range(3):
        refused_syn(lab)
    for _ in range(2):
        assert lab.curl("http://allowed.test/").returncode == 0
    assert lab.curl("https://allowed.test/", cacert=firewall.ca).returncode == 0


def test_counts_are_exact_and_kept_where_a_rule_is_the_same(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", POLICY), "--state", str(firewall.dir))
    assert counted(firewall) == {}
    traffic(firewall)
    wait_for(lambda: "tls OK" in counted(firewall), PATIENCE)  # the session ends after the client has everything
    found = counted(firewall)
    assert found["stateless 1"] == (5, 1)
    assert found["stateless 2"] == (3, 1)
    assert found["stateful 1:1"] == (2, 2), "one request each"
    assert found["stateful 1:4"] == (3, 3), "one SYN each"
    assert found["stateful 1:5"] == (2, 1), "two datagrams of one flow"
    assert found["stateful drop_strict"] == (3, 1), "all three datagrams: an alert decides nothing"
    assert found["tls scope 1"] == (1, 1)
    assert found["tls OK"] == (1, 1)
    octets = {name: row["bytes"] for name, row in counts(firewall).items()}
    assert octets["stateless 1"] == 5 * (28 + len("discard"))
    assert octets["stateful drop_strict"] == 3 * 28 + len("MARK" + "MARK again" + "other")
    assert octets["tls scope 1"] > 0
    unused = firewall.cli("rules", "hits", "--unused").stdout
    assert "1:5" not in unused
    (victim, *_) = pids_named(firewall.pid(), "nfw packet")
    os.kill(victim, signal.SIGKILL)
    assert counted(firewall) == found, "what a worker has counted is not its own"

    # Rule 4 says something else now, rule 2 of the stateless engine has another action; all others stay.
    changed = POLICY.replace("no echo", "still no echo").replace(
        "action: forward, protocols", "action: drop, protocols"
    )
    firewall.apply(firewall.policy("two", changed))
    kept = {name: one for name, one in found.items() if name not in ("stateful 1:4", "stateless 2")}
    assert counted(firewall) == kept
    rows = counts(firewall)
    assert rows["stateful 1:4"]["counted_since"] > rows["stateful 1:1"]["counted_since"]
    refused_syn(firewall.lab)
    datagrams(firewall.lab, 9, b"discard")
    assert counted(firewall) == kept | {"stateful 1:4": (1, 1), "stateless 1": (6, 2)} | {
        "stateless default": (kept["stateless default"][0] + 1, kept["stateless default"][1] + 1)
    }

    before = counted(firewall)
    firewall.stop(cleanup=False)
    firewall.start(firewall.policy("two", changed), "--state", str(firewall.dir))
    assert counted(firewall) == before, "and over a restart"
    firewall.cli("rules", "hits", "--reset")
    assert counted(firewall) == {}
    datagrams(firewall.lab, 9, b"discard")
    wait_for(lambda: counted(firewall) == {"stateless 1": (1, 1)}, PATIENCE, lambda: str(counted(firewall)))


def slow(firewall: Firewall, url: str) -> subprocess.Popen[Any]:
    return firewall.lab.client.popen(
        ["curl", "-sS", "--noproxy", "*", "--cacert", str(firewall.ca), "-o", "/dev/null", "--max-time", "90", url]
    )


def stalls(firewall: Firewall, *options: str) -> bool:
    """No flow that the options mean is left."""
    return flows(firewall, *options) == []


def test_running_flows_are_listed_captured_and_flushed(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", POLICY))
    secret, plain = slow(firewall, "https://allowed.test/slow/big"), slow(firewall, "http://allowed.test/slow/big")
    try:
        wait_for(lambda: len(flows(firewall, "--protocol", "tcp")) == 2, PATIENCE, lambda: str(flows(firewall)))
        more = ["--destination-port", "80"]
        # By then the kernel has forwarded some by itself.
        wait_for(lambda: flows(firewall, *more)[0]["bytes_toclient"] > 50_000, PATIENCE)
        wait_for(lambda: flows(firewall, "--sni", "*.test", "--min-age", "0.5") != [], PATIENCE)
        (tls,) = flows(firewall, "--sni", "*.test", "--min-age", "0.5")
        assert (tls["sni"], tls["kept_by"], tls["rule"], tls["dest_port"]) == ("allowed.test", "tls", "stateful:3", 443)
        (http,) = flows(firewall, "--destination-port", "80", "--source", "10.0.0.0/8")
        assert (http["app_proto"], http["verdict"], http["rule"], http["kept_by"]) == (
            "http", "pass", "stateful:1", "kernel",
        )  # fmt: skip
        assert http["rule_at"].endswith("one.yaml:15")
        assert http["true_counts"]
        wait_for(lambda: flows(firewall, *more)[0]["bytes_toclient"] > http["bytes_toclient"], PATIENCE)
        assert flows(firewall, "--source", "192.0.2.0/24") == []
        shown = firewall.cli("flows", "--app", "http").stdout.splitlines()
        assert len(shown) == 2
        assert "stateful:1" in shown[1]

        out = firewall.dir / "capture.json"
        firewall.cli("flows", "capture", "--out", str(out), "--destination-port", "443")
        document = json.loads(out.read_text())
        assert document["FlowOperationStatus"] == "COMPLETED"
        assert document["FlowOperation"]["FlowFilters"] == [{"DestinationPort": "443"}]
        (row,) = document["Flows"]
        assert (row["DestinationPort"], row["Protocol"], row["nfw"]["sni"]) == ("443", "TCP", "allowed.test")
        assert row["PacketCount"] > 10
        firewall.cli("flows", "capture", "--out", str(out), "--format", "eve")
        assert {json.loads(line)["event_type"] for line in out.read_text().splitlines()} == {"flow"}

        for demanded in ([], ["--destination-port", "80"]):
            refused = firewall.cli("flows", "flush", *demanded, check=False)
            assert refused.returncode == 2
        assert len(flows(firewall, "--protocol", "tcp")) == 2
        answer = firewall.cli("flows", "flush", "--destination-port", "80", "--yes")
        assert answer.stdout == "1 flow ended\n"
        assert [flow["dest_port"] for flow in flows(firewall, "--protocol", "tcp")] == [443]
        assert (
            json.loads(firewall.cli("flows", "flush", "--sni", "allowed.test", "--yes", "--json").stdout)["ended"] == 1
        )
        assert stalls(firewall, "--protocol", "tcp")
        firewall.wait_event("drop", lambda event: event["drop"]["reason"] == "flushed" and 80 in ports(event))
        firewall.wait_event("flow", lambda event: event["flow"]["reason"] == "flushed" and 443 in ports(event))
        # Neither end has heard anything, and neither gets anything through.
        sent = server_bytes(firewall.lab)
        time.sleep(1.0)
        assert (secret.poll(), plain.poll()) == (None, None)
        assert server_bytes(firewall.lab) == sent
        assert firewall.lab.curl("http://allowed.test/").returncode == 0, "a new connection is not meant"
    finally:
        for process in (secret, plain):
            process.kill()
            process.wait()


def test_flows_that_stay_open_are_recorded(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", POLICY + "log: {events: [flow], flow_interval: 10}\n"))
    download = slow(firewall, "http://allowed.test/slow/big")
    try:
        wait_for(lambda: len(open_records(firewall)) >= 2, 60, lambda: str(firewall.events()[-5:]))
        first, second = open_records(firewall)[:2]
        assert first["flow"]["age"] >= 10
        assert second["flow"]["age"] >= first["flow"]["age"] + 9
        assert second["flow"]["bytes_toclient"] > first["flow"]["bytes_toclient"] > 100_000
        assert (first["app_proto"], first["nfw"]["rule"], first["flow"]["reason"]) == ("http", "stateful:1", "active")
        assert first["flow_id"] == second["flow_id"] == firewall.events("flow")[0]["flow_id"]
    finally:
        download.kill()
        download.wait()


def open_records(firewall: Firewall) -> list[dict[str, Any]]:
    return [event for event in firewall.events("flow") if event["nfw"].get("final") is False]


def ports(event: dict[str, Any]) -> tuple[int, int]:
    return event["src_port"], event["dest_port"]


def server_bytes(lab: Lab) -> list[str]:
    """What clients have acknowledged of each connection the server has, by its port and theirs."""
    listed = lab.server.run(["ss", "-Htin", "state", "established"]).stdout.split()
    return [word for word in listed if word.startswith("bytes_acked:")]


@pytest.mark.parametrize("action", ["drop", "reject"])
def test_a_flushed_connection_ends_as_the_policy_says(firewall: Firewall, action: str) -> None:
    """Inspected by a worker to its end; UDP goes on only when the client begins anew."""
    rule = 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:1;)'
    text = f"name: x\nstateful: {{order: action, rules: '{rule}'}}\nopen_flows: {{which: none, action: {action}}}\n"
    firewall.start(firewall.policy("x", text))
    with firewall.lab.in_namespace("client"):
        sock = socket.create_connection((ADDRESS, 7), timeout=PATIENCE)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, udp:
        udp.settimeout(PATIENCE)
        udp.connect((ADDRESS, 7))
        sock.sendall(b"ping")
        assert sock.recv(10) == b"ping"
        udp.send(b"ping")
        assert udp.recv(10) == b"ping"
        kept = {flow["proto"]: flow["kept_by"] for flow in flows(firewall)}
        assert kept == {"TCP": "worker", "UDP": "kernel"}
        assert firewall.cli("flows", "flush", "--all", "--yes").stdout == "2 flows ended\n"
        if action == "reject":
            sock.sendall(b"ping")
            with pytest.raises(ConnectionResetError):
                sock.recv(10)
        else:
            sock.settimeout(0.5)
            sock.sendall(b"ping")
            with pytest.raises(TimeoutError):
                sock.recv(10)
        udp.send(b"again")
        assert udp.recv(10) == b"again"
        assert firewall.status()["kernel"]["counters"]["unjudged"] == 0


def test_many_sessions_are_flushed_in_slices(firewall: Firewall) -> None:
    """More than a slice of a worker's time; whoever asks hears how many they were, and another session goes on."""
    text = POLICY.replace("[443]", "[443, 9443]").partition("stateful:")[0] + "workers: 1\n"
    firewall.start(firewall.policy("many", text))
    context, sessions = trusting(firewall), []

    def echo(conn: ssl.SSLSocket) -> None:
        while data := conn.recv(100):
            conn.sendall(data)

    with Server(firewall.lab, echo), dial(firewall) as other:
        for _ in range(150):
            with firewall.lab.in_namespace("client"):
                sock = socket.create_connection((ADDRESS, 443), timeout=PATIENCE)
            sessions.append(context.wrap_socket(sock, server_hostname="site-a.test"))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            flush = pool.submit(firewall.cli, "flows", "flush", "--destination-port", "443", "--yes")
            while not flush.done():
                other.sendall(b"ping")
                assert other.recv(100) == b"ping"
            assert flush.result().stdout == "150 flows ended\n"
        for session in sessions:
            session.close()
    wait_for(lambda: [flow["flow"]["reason"] for flow in firewall.events("flow")].count("flushed") == 150, PATIENCE)

"""The rows of tests/awsrows.py that a client can act out, on a real kernel: what becomes of them is what AWS documents.

One firewall, and a hot swap for each group of rows; the rows of a group run at once, each on a port of its own.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.verdict import Direction
from nfw.describe import FlowDescription, read_description
from nfw.dialogue import Dialogue
from tests.awsrows import GROUPS, MAP, Group, Row
from tests.firewall import PATIENCE, Firewall, wait_for
from tests.lab import Lab
from tests.unit.awskit import write

pytestmark = pytest.mark.netns

LIVE = [group for group in GROUPS if any(row.live for row in group.rows)]
SILENCE = 0.8  # seconds without an answer after which something counts as dropped, where that is expected
SETTINGS = "settings: {tls: {trust: [lab-root.pem]}}\n"
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8  # include/net/tcp_states.h
START = "name: start\nstateful: {order: strict}\n"


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("start", START))
        yield firewall


def apply(firewall: Firewall, number: int, group: Group) -> None:
    """Switch to the group's documents."""
    directory = firewall.dir / f"group{number}"
    directory.mkdir()
    options = []
    if group.tls:
        for name in ("ca.pem", "ca.key", "lab-root.pem"):
            shutil.copy(firewall.dir / name, directory)
        (directory / "map.yaml").write_text(MAP + SETTINGS)
        options = ["--map", str(directory / "map.yaml")]
    documents = directory / "documents"
    documents.mkdir()
    firewall.cli("policy", "apply", *options, *map(str, write(documents, *group.documents)))


def act(firewall: Firewall, row: Row, sport: int) -> str:
    """Be the client of the row's flow: pass, drop or reject, by what comes back."""
    flow = read_description({**row.flow, "sport": sport} if row.flow.get("proto") != "icmp" else row.flow)
    if flow.protocol == 1:
        done = firewall.lab.client.run(
            ["ping", "-c1", "-W1" if row.verdict == "drop" else f"-W{PATIENCE:.0f}", row.flow["dst"]], check=False
        )
        return "pass" if done.returncode == 0 else "drop"
    kind = socket.SOCK_DGRAM if flow.protocol == 17 else socket.SOCK_STREAM
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET, kind)
    with sock:
        sock.settimeout(SILENCE if row.verdict == "drop" else PATIENCE)
        sock.bind((row.flow["src"], sport))
        try:
            sock.connect((row.flow["dst"], flow.dport))
            return decrypted(firewall, sock, flow) if flow.is_tls and "http_uri" in flow.said else said(sock, flow)
        except TimeoutError:
            return "drop"
        except OSError:
            return "reject"


def said(sock: socket.socket, flow: FlowDescription) -> str:
    """Say what the client says until the server's first bytes come back, in the segments described."""
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for direction, data, _ in Dialogue(flow).wire():
        if direction is Direction.TO_CLIENT:
            break
        size = flow.segment or len(data)
        for at in range(0, len(data), size):
            sock.send(data[at : at + size])
            if flow.segment:
                time.sleep(0.002)
    return "pass" if sock.recv(100) else "drop"


def decrypted(firewall: Firewall, sock: socket.socket, flow: FlowDescription) -> str:
    """A request through the TLS engine, by a client that trusts it."""
    context = ssl.create_default_context(cafile=str(firewall.ca))
    sock.settimeout(PATIENCE)
    with context.wrap_socket(sock, server_hostname=flow.sni, do_handshake_on_connect=False) as wrapped:
        try:
            wrapped.do_handshake()
            wrapped.sendall(Dialogue(flow).plaintext()[0].data)
            if wrapped.recv(100):
                return "pass"
        except (ssl.SSLError, ConnectionResetError):
            pass
        # OpenSSL calls both an end; the kernel knows which: closed by a reset, or half closed by the other side's FIN.
        state = wrapped.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return {TCP_CLOSE: "reject", TCP_CLOSE_WAIT: "drop"}[state]


@pytest.mark.parametrize("number", range(len(LIVE)), ids=[group.name for group in LIVE])
def test_group(firewall: Firewall, number: int, tmp_path: Path) -> None:
    group = LIVE[number]
    apply(firewall, number, group)
    rows = [row for row in group.rows if row.live]
    ports = [20_000 + number * 100 + at for at in range(len(rows))]
    with ThreadPoolExecutor(len(rows)) as pool:
        seen = list(pool.map(lambda one: act(firewall, *one), zip(rows, ports, strict=True)))
    assert {row.says: verdict for row, verdict in zip(rows, seen, strict=True)} == {
        row.says: row.verdict for row in rows
    }
    for row, port in zip(rows, ports, strict=True):
        if row.flow.get("proto") == "icmp":
            continue

        def sids(port: int = port) -> set[int]:
            return {
                event["alert"]["signature_id"]
                for event in firewall.events("alert")
                if port in (event.get("src_port"), event.get("dest_port"))
            }

        wanted = set(row.alerts)
        wait_for(lambda wanted=wanted, sids=sids: wanted <= sids(), PATIENCE, sids)  # type: ignore[misc]
        assert sids() == wanted, row.says


def test_explain_by_the_running_policy(firewall: Firewall) -> None:
    """The firewall knows where its policy is from, and explaining by that gives what was seen above."""
    row = next(row for row in LIVE[-1].rows if row.alerts)
    options = [part for key, value in row.flow.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    told = json.loads(firewall.cli("explain", "--running", "--json", *options).stdout)
    assert (told["verdict"]["verdict"], told["verdict"]["rule"]["id"]) == (row.verdict, row.alerts[0])
    assert str(firewall.dir) in told["verdict"]["file"]

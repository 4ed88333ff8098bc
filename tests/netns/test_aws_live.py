"""The rows of tests/awsrows.py acted out on a real kernel: what becomes of them is what AWS documents.

One firewall, and a hot swap for each group of rows; the rows of a group run at once, each on a port of its own. Those
that wait for minutes do so in a lab of their own, beside the others.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile

import pytest

from engines.verdict import Direction
from nfw.describe import FlowDescription, read_description
from nfw.dialogue import Dialogue
from tests.awsrows import CLIENT, GROUPS, Group, Row
from tests.firewall import PATIENCE, Firewall, wait_for
from tests.lab import Lab
from tests.unit.awskit import write

pytestmark = pytest.mark.netns

LIVE = [group for group in GROUPS if any(not row.not_live for row in group.rows)]
AT_ONCE = [group for group in LIVE if not any(row.pause for row in group.rows)]
WAITING = [group for group in LIVE if group not in AT_ONCE]
SILENCE = 0.8  # seconds without an answer after which something counts as dropped, where that is expected
# Connections that are older than a policy are left, so that it meets them in their middle.
SETTINGS = "settings: {open_flows: {which: none}, tls: {trust: [lab-root.pem]}}\n"
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
    for name in ("ca.pem", "ca.key", "lab-root.pem"):
        shutil.copy(firewall.dir / name, directory)
    map_file = directory / "map.yaml"
    map_file.write_text(group.map + SETTINGS)
    documents = directory / "documents"
    documents.mkdir()
    firewall.cli("policy", "apply", "--map", str(map_file), *map(str, write(documents, *group.documents)))


def described(row: Row, sport: int) -> FlowDescription:
    return read_description({**row.flow, "sport": sport} if row.flow.get("proto") != "icmp" else row.flow)


def patience(row: Row) -> float:
    return SILENCE if row.verdict == "drop" and not row.heard and not row.pause else PATIENCE


def client_socket(firewall: Firewall, flow: FlowDescription, kind: int = 0) -> socket.socket:
    """A client's socket; ``kind``: of another type than the flow's protocol has, of that protocol."""
    types = {6: socket.SOCK_STREAM, 17: socket.SOCK_DGRAM}
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET, kind or types[flow.protocol], flow.protocol if kind else 0)
    sock.settimeout(PATIENCE)
    sock.bind((socket.inet_ntoa(flow.src), 0 if kind else flow.sport))
    return sock


def middle_of(firewall: Firewall, flow: FlowDescription) -> socket.socket:
    """A connection that is there before the policy that is to meet it."""
    sock = client_socket(firewall, flow)
    sock.connect((socket.inet_ntoa(flow.dst), flow.dport))
    return sock


def act(firewall: Firewall, row: Row, sport: int, connected: socket.socket | None = None) -> str:
    """Be the client of the row's flow: pass, drop or reject, by what comes back."""
    flow = described(row, sport)
    if flow.fragments:
        return in_pieces(firewall, flow, patience(row))
    if flow.protocol == 1:
        done = firewall.lab.client.run(["ping", "-c1", f"-W{max(1, patience(row)):.0f}", row.flow["dst"]], check=False)
        return "pass" if done.returncode == 0 else "drop"
    with connected or client_socket(firewall, flow) as sock:
        sock.settimeout(patience(row))
        try:
            if connected is None:
                sock.connect((row.flow["dst"], flow.dport))
            if flow.is_tls and "http_uri" in flow.said:
                return decrypted(firewall, sock, flow)
            return paused(sock, flow, row) if row.pause else said(sock, flow)
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


def paused(sock: socket.socket, flow: FlowDescription, row: Row) -> str:
    """The first payload and its echo, and after the pause the second."""
    first, second = flow.payload
    sock.send(first)
    assert sock.recv(100) == first
    time.sleep(row.pause)
    if row.verdict == "drop":
        sock.settimeout(SILENCE)
    sock.send(second)
    return "pass" if sock.recv(100) == second else "drop"


def in_pieces(firewall: Firewall, flow: FlowDescription, patience: float) -> str:
    """The client's first packet, as the fragments described; any answer is one."""
    pieces = takewhile(lambda each: each.direction is Direction.TO_SERVER, Dialogue(flow).packets())
    dst = socket.inet_ntoa(flow.dst)
    with firewall.lab.in_namespace("client"):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    listening = client_socket(firewall, flow, 0 if flow.protocol == 17 else socket.SOCK_RAW)
    with raw, listening:
        for piece in pieces:
            raw.sendto(piece.captured.data, (dst, 0))
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            listening.settimeout(left)
            try:
                data, (peer, _) = listening.recvfrom(65535)
            except TimeoutError:
                break
            if peer == dst and (flow.protocol == 17 or of_flow(data[20:], flow)):
                return "pass"
    return "drop"


def of_flow(data: bytes, flow: FlowDescription) -> bool:
    """Whether a TCP or ICMP message answers what the flow's client said: by its ports, or as an echo reply."""
    if flow.protocol == 1:
        return data[0] == 0 and data[4:6] == b"\0\7"  # the id that Dialogue gives
    return data[:4] == flow.dport.to_bytes(2, "big") + flow.sport.to_bytes(2, "big")


def decrypted(firewall: Firewall, sock: socket.socket, flow: FlowDescription) -> str:
    """A request through the TLS engine, by a client that trusts it."""
    context = ssl.create_default_context(cafile=str(firewall.ca))
    context.load_verify_locations(str(firewall.lab.root_ca_path))  # of servers in no scope
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


def run(firewall: Firewall, number: int, group: Group) -> None:
    """Act out the group's rows under its policy, and look at what is logged of each."""
    rows = [row for row in group.rows if not row.not_live]
    ports = [20_000 + number * 100 + at for at in range(len(rows))]
    flows = [described(row, port) for row, port in zip(rows, ports, strict=True)]
    connected = [middle_of(firewall, flow) if flow.midstream else None for flow in flows]
    began = len(firewall.events("alert"))
    apply(firewall, number, group)
    if any(connected):
        firewall.lab.router.run(["conntrack", "-D", "-p", "tcp", "-s", "10.1.0.2"])
    with ThreadPoolExecutor(len(rows)) as pool:
        jobs = [pool.submit(act, firewall, *one) for one in zip(rows, ports, connected, strict=True)]
        seen = [job.result() for job in jobs]
    assert {row.says: verdict for row, verdict in zip(rows, seen, strict=True)} == {
        row.says: "pass" if row.heard else row.verdict for row in rows
    }
    pings = [row for row in rows if row.flow.get("proto") == "icmp"]
    check_records(firewall, began, [sid for row in pings for sid in row.alerts], 0, "of all pings", None)
    for row, port in zip(rows, ports, strict=True):
        if row not in pings:
            sids = check_records(firewall, began, row.alerts, row.records or 0, row.says, port)
            assert not row.in_order or sids == list(row.alerts), row.says
            assert row.records in (None, len(sids)), row.says


def check_records(
    firewall: Firewall, began: int, wanted: Sequence[int], count: int, says: str, port: int | None
) -> list[int]:
    """The sids logged of the flow of a client's port, None: of ICMP; they have to be the ``wanted`` ones. ``count``:
    how many records there are at least."""

    def logged() -> list[int]:
        return [
            event["alert"]["signature_id"]
            for event in firewall.events("alert")[began:]
            if (event["proto"] == "ICMP" if port is None else port in (event.get("src_port"), event.get("dest_port")))
        ]

    def complete() -> bool:
        return set(logged()) >= set(wanted) and len(logged()) >= count

    wait_for(complete, PATIENCE, lambda: f"{says}: {logged()}, wanted {wanted}")
    found = logged()
    assert set(found) == set(wanted), says
    return found


@pytest.fixture(scope="module", autouse=True)
def waiting(request: pytest.FixtureRequest) -> Iterator[list[Future[None]]]:
    """The groups that wait, each in a lab of its own, from the beginning of the module on."""
    wanted = any(item.originalname == "test_group_that_waits" for item in request.session.items)  # type: ignore[attr-defined]

    def alone(number: int) -> None:
        with Lab() as lab, Firewall(lab) as firewall:
            (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
            firewall.start(firewall.policy("start", START))
            run(firewall, number, WAITING[number])

    with ThreadPoolExecutor(len(WAITING)) as pool:
        yield [pool.submit(alone, number) for number in range(len(WAITING))] if wanted else []


@pytest.mark.parametrize("number", range(len(AT_ONCE)), ids=[group.name for group in AT_ONCE])
def test_group(firewall: Firewall, number: int) -> None:
    run(firewall, number, AT_ONCE[number])


def test_explain_by_the_running_policy(firewall: Firewall) -> None:
    """The firewall knows where its policy is from, and explaining by that gives what was seen above."""
    apply(firewall, len(GROUPS) + 1, AT_ONCE[-1])
    row = next(row for row in AT_ONCE[-1].rows if row.alerts)
    options = [part for key, value in row.flow.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    told = json.loads(firewall.cli("explain", "--running", "--json", *options).stdout)
    assert (told["verdict"]["verdict"], told["verdict"]["rule"]["id"]) == (row.verdict, row.alerts[0])
    assert str(firewall.dir) in told["verdict"]["file"]


def test_servers_that_are_not_who_was_asked_for(firewall: Firewall) -> None:
    """H: the SNI is not in the server's certificate: dropped, and in the TLS log. Explain cannot know."""
    group = next(group for group in AT_ONCE if group.name == "TLS inspection")
    apply(firewall, len(GROUPS), group)
    row = Row("", {"src": CLIENT, "dst": "203.0.113.13", "sni": "wrongname.test", "http_uri": "/"}, "drop")
    assert act(firewall, row, 19_999) == "drop"
    seen = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "wrongname.test")
    assert seen["nfw"]["status"] == "NAME_MISMATCH"


@pytest.mark.parametrize("number", range(len(WAITING)), ids=[group.name for group in WAITING])
def test_group_that_waits(waiting: list[Future[None]], number: int) -> None:
    """Last, since the others take part of the time."""
    waiting[number].result()

"""Hot swap and crashes: open flows end, new ones succeed, nothing leaks, and the path is never open by accident."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.firewall import PATIENCE, Firewall, children, pids_named, wait_for
from tests.lab import Lab
from tests.netns.test_packet_path import outcome

pytestmark = pytest.mark.netns

ADDRESS = "203.0.113.10"
TCP_CLOSE_WAIT = 8

OPEN = """\
name: {name}
stateless: {{default: forward}}
stateful:
  order: action
  stream_exception: {exception}
  rules: 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:1;)'
open_flows: {{which: {which}, action: {action}}}
"""

TLS = """\
name: {name}
stateless: {{default: forward}}
tls:
  ca: {{certificate: ca.pem, private_key: ca.key}}
  trust: [lab-root.pem]
  scopes: [{{destination_ports: [443]}}]
open_flows: {{which: all, action: {action}}}
stateful:
  order: action
  stream_exception: drop
"""


# A rule that keeps flows in the queue; a flow nothing can match any more is the kernel's, reader or not.
INSPECTED = """  rules: 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:1;)'
"""


def simple(name: str, which: str = "all", action: str = "drop", exception: str = "drop") -> str:
    return OPEN.format(name=name, which=which, action=action, exception=exception)


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        yield firewall


def connect(lab: Lab, port: int = 7, seconds: float = PATIENCE) -> socket.socket:
    with lab.in_namespace("client"):
        sock = socket.create_connection((ADDRESS, port), timeout=seconds)
    opened.append(sock)
    return sock


opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def echoes(sock: socket.socket) -> bool:
    return outcome(sock) == "echo"


def silent(sock: socket.socket) -> bool:
    """Nothing comes back, not even a reset, for as long as one can wait for that."""
    sock.settimeout(0.7)
    return outcome(sock) == "silence"


def answers(lab: Lab) -> bool:
    """A new connection works."""
    with connect(lab) as sock:
        return echoes(sock)


@pytest.mark.parametrize(
    ("which", "action", "exception", "becomes"),
    [
        ("all", "drop", "drop", "silence"),
        ("all", "reject", "drop", "reset"),
        ("all", "drop", "continue", "silence"),
        ("tls_scope", "drop", "continue", "echo"),
        ("none", "drop", "drop", "echo"),
    ],
)
def test_open_tcp_flows(firewall: Firewall, which: str, action: str, exception: str, becomes: str) -> None:
    firewall.start(firewall.policy("one", simple("one")))
    sock = connect(firewall.lab)
    assert echoes(sock)
    firewall.apply(firewall.policy("two", simple("two", which, action, exception)))
    sock.settimeout(0.7 if becomes == "silence" else PATIENCE)
    assert outcome(sock) == becomes
    assert answers(firewall.lab)


def test_open_udp_flow_is_judged_anew(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", simple("one")))
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.append(sock)
    sock.settimeout(PATIENCE)
    sock.connect((ADDRESS, 7))
    assert echoes(sock)
    deny = "name: deny\nstateless: {default: forward, rules: [{priority: 1, action: drop, protocols: [udp]}]}\n"
    firewall.apply(firewall.policy("deny", deny))
    assert silent(sock)
    firewall.apply(firewall.policy("one", simple("one")))
    sock.settimeout(PATIENCE)
    assert echoes(sock)


class Datagrams:
    """An open UDP flow: a client and a server, each connected to what it sees of the other."""

    def __init__(self, lab: Lab, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with lab.in_namespace("client"):
            self.client = socket.socket(family, socket.SOCK_DGRAM)
        with lab.in_namespace("server"):
            self.server = socket.socket(family, socket.SOCK_DGRAM)
        opened.extend((self.client, self.server))
        self.server.settimeout(PATIENCE)
        self.client.settimeout(PATIENCE)
        self.server.bind((address, port))
        self.client.connect((address, port))
        self.client.send(b"open")
        data, peer = self.server.recvfrom(100)
        self.server.connect(peer)
        assert data == b"open"
        assert self.works()

    def works(self) -> bool:
        """Both ways, the client first."""
        self.client.send(b"ask")
        asked = self.server.recv(100)
        self.server.send(b"answer")
        return (asked, self.client.recv(100)) == (b"ask", b"answer")

    def name(self) -> str:
        """The client's address as event records write it."""
        return str(self.client.getsockname()[0])


def hear_nothing(flows: list[Datagrams], seconds: float = 0.5) -> bool:
    """Neither a datagram nor an error comes to any of their ends within the time."""
    return select.select([sock for flow in flows for sock in (flow.client, flow.server)], [], [], seconds)[0] == []


# Port 9998 is the kernel's after the first packet.
UDP_INSPECTED = """\
name: inspected
stateless: {default: forward}
stateful: {order: action, rules: 'alert udp any any -> any 9999 (msg:"x"; content:"zzz"; sid:1;)'}
"""


def four_flows(lab: Lab) -> list[Datagrams]:
    """Both families, inspected and left to the kernel."""
    return [Datagrams(lab, address, port) for address in (ADDRESS, "2001:db8:2::10") for port in (9998, 9999)]


@pytest.mark.parametrize("action", ["drop", "reject"])
@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
def test_open_udp_flows_end(action: str, first: str, masquerade: bool) -> None:
    """What the server sends belongs to what has ended; what the client sends begins anew, once it knows."""
    with Lab(masquerade) as lab, Firewall(lab) as firewall:
        firewall.start(firewall.policy("one", UDP_INSPECTED))
        flows = four_flows(lab)
        firewall.apply(firewall.policy("two", simple("two", "all", action)))
        generation = firewall.status()["generation"]
        for flow in flows:
            sender, other = (flow.client, flow.server) if first == "client" else (flow.server, flow.client)
            if action == "reject":
                sender.send(b"lost")
                for sock in (sender, other):
                    with pytest.raises(ConnectionRefusedError):
                        sock.recv(100)
            if action == "reject" or first == "server":
                for _ in range(3):
                    flow.server.send(b"late")
        assert hear_nothing(flows)
        assert all(flow.works() for flow in flows)
        firewall.stop()
        events = [event for event in firewall.events() if event["nfw"]["generation"] == generation]
        names = sorted(flow.name() for flow in flows)
        begun = [event for event in events if event["event_type"] == "flow" and event["flow"]["reason"] == "offloaded"]
        assert sorted(event["src_ip"] for event in begun) == names
        assert sorted(event["dest_port"] for event in begun) == [9998, 9998, 9999, 9999]
        dropped = [event["drop"]["reason"] for event in events if event["event_type"] == "drop"]
        told = action == "reject" or first == "server"
        assert dropped == ["open_flow"] * (4 if told else 0)


@pytest.mark.parametrize("masquerade", [False, True], ids=["plain", "masquerade"])
def test_an_open_udp_flow_that_goes_on_keeps_its_client(masquerade: bool) -> None:
    with Lab(masquerade) as lab, Firewall(lab) as firewall:
        firewall.start(firewall.policy("one", UDP_INSPECTED))
        flows = four_flows(lab)
        firewall.apply(firewall.policy("two", simple("two", which="none")))
        generation = firewall.status()["generation"]
        for flow in flows:
            flow.server.send(b"more")
            assert flow.client.recv(100) == b"more"
            assert flow.works()
        firewall.stop()
        records = [event for event in firewall.events("flow") if event["nfw"]["generation"] == generation]
        offloaded = [event for event in records if event["flow"]["reason"] == "offloaded"]
        assert sorted(event["src_ip"] for event in offloaded) == sorted(flow.name() for flow in flows)
        assert [event["flow"]["pkts_toclient"] for event in offloaded] == [1, 1, 1, 1]


def test_kernel_passed_flows_are_dropped_too(firewall: Firewall) -> None:
    """A flow the kernel passes without asking is opened under the old generation as well."""
    firewall.start(firewall.policy("pass", "name: pass\nstateless: {default: pass}\n"))
    sock = connect(firewall.lab)
    assert echoes(sock)
    firewall.apply(firewall.policy("one", simple("one")))
    assert silent(sock)


@pytest.mark.parametrize("action", ["drop", "reject"])
def test_open_tls_sessions_end_on_both_sides(firewall: Firewall, action: str) -> None:
    lab = firewall.lab
    firewall.start(firewall.policy("tls", TLS.format(name="tls", action=action)))
    slow = ["curl", "-sS", "--noproxy", "*", "--cacert", str(firewall.ca), "-o", "/dev/null", "--max-time", "60"]
    download = lab.client.popen(
        [*slow, "--speed-time", "2", "--speed-limit", "1", "https://allowed.test/slow/big"], stderr=subprocess.PIPE
    )
    wait_for(lambda: established(lab) > 0, PATIENCE)
    time.sleep(0.5)
    assert download.poll() is None
    firewall.apply(firewall.policy("again", TLS.format(name="again", action=action)))
    assert download.wait(PATIENCE) != 0
    assert lab.curl("https://allowed.test/", cacert=firewall.ca).returncode == 0


def established(lab: Lab) -> int:
    listed = lab.server.run(["ss", "-Htn", "state", "established", "sport", "=", ":443"]).stdout
    return len(listed.splitlines())


def test_new_connections_during_swaps_succeed(firewall: Firewall) -> None:
    one, two = (firewall.policy(name, simple(name, which="none")) for name in ("one", "two"))
    firewall.start(one)
    failed: list[str] = []
    count = [0]
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            try:
                with connect(firewall.lab) as sock:
                    if not echoes(sock):
                        failed.append("no echo")
            except OSError as error:
                failed.append(str(error))
            count[0] += 1

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for policy in (two, one, two, one, two):
            firewall.apply(policy)
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert count[0] > 20


def test_a_policy_that_does_not_load_changes_nothing(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", simple("one")))
    sock = connect(firewall.lab)
    before = firewall.status()["generation"]
    rules = ruleset(firewall)
    bad = firewall.policy("bad", "name: bad\nstateless: {defalt: pass}\nstateful: {rules: 'drop tcp any'}\n")
    answer = firewall.cli("policy", "apply", str(bad), check=False)
    assert answer.returncode == 1
    assert "bad.yaml:2" in answer.stderr
    assert "bad.yaml:3" in answer.stderr
    assert echoes(sock)
    assert firewall.status()["generation"] == before
    assert ruleset(firewall) == rules


def test_a_policy_that_fails_when_the_kernel_is_ready_for_it_leaves_nothing(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", simple("one")))
    sock = connect(firewall.lab)
    before = firewall.status()["generation"]
    rules = ruleset(firewall)
    firewall.cli("ca", "create", "--name", "Another CA", "--out", str(firewall.dir / "another"))
    text = TLS.format(name="bad", action="drop").replace("ca.key", "another/ca.key")
    answer = firewall.cli("policy", "apply", str(firewall.policy("bad", text)), check=False)
    assert answer.returncode == 1
    assert "does not belong to" in answer.stderr
    assert echoes(sock)
    assert firewall.status()["generation"] == before
    wait_for(lambda: ruleset(firewall) == rules, PATIENCE, lambda: ruleset(firewall))
    assert "by somebody else" not in firewall.output.read_text()


def ruleset(firewall: Firewall) -> str:
    return firewall.lab.router.run(["nft", "-s", "list", "ruleset"]).stdout


def kernel_state(lab: Lab) -> tuple[str, ...]:
    commands = (
        ["nft", "-s", "list", "ruleset"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
    )
    return tuple(lab.router.run(command).stdout for command in commands)


def test_fifty_swaps_leak_nothing(firewall: Firewall) -> None:
    policies = [firewall.policy(name, TLS.format(name=name, action="drop")) for name in ("one", "two")]
    firewall.start(policies[0])

    def swap(times: int) -> None:
        for turn in range(times):
            firewall.apply(policies[turn % 2])
            assert firewall.lab.curl("https://allowed.test/", cacert=firewall.ca).returncode == 0

    def measure() -> dict[str, int]:
        pid = firewall.pid()
        wait_for(lambda: sum("leader" in name for name in children(pid).values()) == 1, PATIENCE)
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4
        return {
            "processes": len(children(pid)),
            "descriptors": fds,
            "rules": len(ruleset(firewall).splitlines()),
            "routes": len("".join(kernel_state(firewall.lab)[1:]).splitlines()),
            "memory": memory,
        }

    swap(6)
    firewall.settle()
    time.sleep(2)
    before = measure()
    swap(50)
    memory = before.pop("memory")

    def unchanged() -> bool:
        return {**measure(), "memory": 0} == {**before, "memory": 0}

    wait_for(unchanged, PATIENCE, lambda: f"before {before}, now {measure()}")
    assert measure()["memory"] - memory < 2048, (memory, measure())
    current = firewall.status()["generation"]
    marks = conntrack_generations(firewall.lab)
    assert marks <= {current}, (marks, current)


def conntrack_generations(lab: Lab) -> set[int]:
    """Generations that any conntrack entry of the router carries."""
    listed = lab.router.run(["conntrack", "-L"], check=False).stdout
    found = set()
    for line in listed.splitlines():
        for word in line.split():
            if word.startswith("mark="):
                generation = int(word[5:]) >> 24
                if generation:
                    found.add(generation)
    return found


@pytest.mark.parametrize("victim", ["nfw packet", "nfw tls", "nfw keyholder", "nfw leader"])
def test_a_killed_process_comes_back(firewall: Firewall, victim: str) -> None:
    lab = firewall.lab
    firewall.start(firewall.policy("tls", TLS.format(name="tls", action="drop")))
    assert lab.curl("https://allowed.test/", cacert=firewall.ca).returncode == 0
    before = set(children(firewall.pid()))
    victims = list(pids_named(firewall.pid(), victim[:15]))
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: bool(set(children(firewall.pid())) - before), PATIENCE)
    wait_for(lambda: lab.curl("https://allowed.test/", cacert=firewall.ca).returncode == 0, PATIENCE)


def test_killed_supervisor_closes_and_restart_recovers(firewall: Firewall) -> None:
    lab = firewall.lab
    before = kernel_state(lab)
    policy = firewall.policy("tls", TLS.format(name="tls", action="drop") + INSPECTED)
    firewall.start(policy)
    open_flow = connect(lab)
    assert echoes(open_flow)
    daemon = firewall.pid()
    family = set(children(daemon))
    os.kill(daemon, signal.SIGKILL)
    assert firewall.process is not None
    firewall.process.wait(PATIENCE)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), PATIENCE)
    assert silent(open_flow)
    with pytest.raises(TimeoutError):
        connect(lab, seconds=0.7)
    assert lab.curl("https://allowed.test/", "-m", "1", cacert=firewall.ca).returncode != 0
    firewall.start(policy)
    assert answers(lab)
    os.kill(firewall.pid(), signal.SIGKILL)
    firewall.process.wait(PATIENCE)
    firewall.cli("cleanup")
    assert kernel_state(lab) == before
    assert conntrack_generations(lab) == set()
    assert answers(lab)
    assert lab.curl("https://allowed.test/").returncode == 0


def test_stop_leaves_it_closed_and_cleanup_opens(firewall: Firewall) -> None:
    firewall.start(firewall.policy("one", simple("one")))
    assert firewall.process is not None
    firewall.process.send_signal(signal.SIGINT)
    assert firewall.process.wait(PATIENCE) == 0
    with pytest.raises(TimeoutError):
        connect(firewall.lab, seconds=0.5)
    firewall.cli("cleanup")
    assert answers(firewall.lab)


def test_a_second_daemon_is_refused(firewall: Firewall) -> None:
    policy = firewall.policy("one", simple("one"))
    firewall.start(policy)
    answer = firewall.cli("run", "--policy", str(policy), "--control", str(firewall.control), check=False)
    assert answer.returncode == 1
    assert "running" in answer.stderr
    assert answers(firewall.lab)


def https_closed_by_server(lab: Lab, address: str, port: int, ca: Path) -> None:
    """One HTTPS request from that client port; the server ends it first, so its side lingers in TIME_WAIT."""
    context = ssl.create_default_context(cafile=str(ca))
    with from_port(lab, address, port) as raw, context.wrap_socket(raw, server_hostname="site-a.test") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: site-a.test\r\nConnection: close\r\n\r\n")
        while sock.recv(65536):
            pass
        wait_for(lambda: state(sock) == TCP_CLOSE_WAIT, PATIENCE)  # the end of TLS came first, that of TCP comes now


def state(sock: socket.socket) -> int:
    """Of a TCP connection, as include/net/tcp_states.h numbers them."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def from_port(lab: Lab, address: str, port: int) -> socket.socket:
    with lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(PATIENCE)
        try:
            sock.bind(("", port))
            sock.connect((address, 443))
        except BaseException:
            sock.close()
            raise
    return sock


@pytest.mark.parametrize("address", [ADDRESS, "2001:db8:2::10"])
@pytest.mark.parametrize("ended_by", ["swap", "stop", "kill"])
def test_a_client_port_can_be_used_again_after_inspection(firewall: Firewall, ended_by: str, address: str) -> None:
    """A socket left in TIME_WAIT on the router would swallow the packets it should forward."""
    lab = firewall.lab
    firewall.start(firewall.policy("tls", TLS.format(name="tls", action="drop")))
    https_closed_by_server(lab, address, 40001, firewall.ca)
    listed = ["ss", "-Htan", "state", "time-wait"]
    wait_for(lambda: ":40001" in lab.router.run(listed).stdout, PATIENCE, lambda: lab.router.run(["ss", "-tan"]).stdout)
    if ended_by == "swap":
        firewall.apply(firewall.policy("plain", "name: plain\nstateless: {default: pass}\n"))
    elif ended_by == "stop":
        firewall.stop()
    else:
        os.kill(firewall.pid(), signal.SIGKILL)
        assert firewall.process is not None
        firewall.process.wait(PATIENCE)
        firewall.stop()
    wait_for(lambda: lab.router.run(listed).stdout == "", PATIENCE, lambda: lab.router.run(["ss", "-tan"]).stdout)
    from_port(lab, address, 40001).close()

"""The kernel side on a real kernel: queue, marks, switch, fragments, TPROXY, conntrack, raw packets, both families.

    client 10.77.1.2 ── 10.77.1.1 router 10.77.2.1 ── 10.77.2.2 server         fd77:1::/64, fd77:2::/64 likewise

A socket belongs to the namespace its thread was in when it was made, so one process plays all three machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfw.conntrack import Conntrack
from nfw.hostnet import GenerationPlan, HostNet
from nfw.marks import Disposition, MarkLayout
from nfw.nfqueue import ACCEPT_BATCH, DONE, HELD, Queue, QueueBusyError
from nfw.rawsend import RawSender

pytestmark = pytest.mark.netns

LAYOUT = MarkLayout()
HOSTS = {4: {"client": "10.77.1.2", "server": "10.77.2.2"}, 6: {"client": "fd77:1::2", "server": "fd77:2::2"}}
ROUTER_OUTSIDE = {4: "10.77.2.1", 6: "fd77:2::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PATIENCE = 10.0  # seconds to wait for what must come
SILENCE = 0.4  # seconds after which something counts as not coming, where that is expected
IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK = 19, 75, 36
LIBC = ctypes.CDLL(None, use_errno=True)


class Net:
    """Three namespaces; ``inside`` moves the calling thread into one."""

    def __init__(self, masquerade: bool = False) -> None:
        tag = f"nfwk{os.getpid()}"
        self.names = {who: f"{tag}{who[0]}" for who in ("client", "router", "server")}
        self.masquerade = masquerade
        self.flows: set[frozenset[bytes]] = set()  # TCP connections of the running test, by ports
        for name in self.names.values():
            sh(f"ip netns add {name}")
            sh(f"ip -n {name} link set lo up")
            for scope in ("all", "default"):  # or link-local addresses come late
                sh(f"ip netns exec {name} sysctl -qw net.ipv6.conf.{scope}.accept_dad=0")
        for side, host in ((1, "client"), (2, "server")):
            r, h = self.names["router"], self.names[host]
            sh(f"ip link add {host[0]}0 netns {r} type veth peer name e0 netns {h}")
            for name, link, last in ((r, f"{host[0]}0", 1), (h, "e0", 2)):
                sh(f"ip -n {name} addr add 10.77.{side}.{last}/24 dev {link}")
                sh(f"ip -n {name} addr add fd77:{side}::{last}/64 dev {link} nodad")
                sh(f"ip -n {name} link set {link} up")
            sh(f"ip -n {h} route add default via 10.77.{side}.1")
            sh(f"ip -n {h} -6 route add default via fd77:{side}::1")
        self.sysctl("router", "net.ipv4.ip_forward", 1)
        self.sysctl("router", "net.ipv6.conf.all.forwarding", 1)
        if masquerade:
            self.run("router", "nft add table inet nat")
            self.run("router", "nft add chain inet nat post { type nat hook postrouting priority 100; }")
            self.run("router", "nft add rule inet nat post oifname s0 masquerade")
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)

    def close(self) -> None:
        os.close(self.home)
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    @contextlib.contextmanager
    def inside(self, who: str) -> Iterator[None]:
        fd = os.open(f"/run/netns/{self.names[who]}", os.O_RDONLY)
        try:
            assert LIBC.setns(fd, 0) == 0
            yield
        finally:
            assert LIBC.setns(self.home, 0) == 0
            os.close(fd)

    def run(self, who: str, command: str) -> str:
        return sh(f"ip netns exec {self.names[who]} {command}")

    def sysctl(self, who: str, name: str, value: object) -> None:
        self.run(who, f"sysctl -qw {name}={value}")

    def socket(self, who: str, family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        with self.inside(who):
            sock = socket.socket(FAMILY[family], kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(PATIENCE)
        return sock

    def state(self) -> str:
        """Everything nfw could have left behind in the router."""
        commands = "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all"
        shell = ["ip", "netns", "exec", self.names["router"], "sh", "-c", commands]
        return subprocess.run(shell, capture_output=True, text=True, check=True).stdout


# Processes of their own: one to be killed, one without rights.
KILLED_READER = """
import select
from nfw.marks import Disposition, MarkLayout
from nfw.nfqueue import DONE, Queue
mark = MarkLayout().compose(1, Disposition.INSPECT)
def handler(packet_id, _mark, _payload):
    queue.verdict(packet_id, True, mark)
    return DONE
queue = Queue(70, handler)
while select.select([queue.fd], [], []):
    queue.drain(64)
"""
UNPRIVILEGED = """
import os
from nfw.nfqueue import Queue
os.setuid(65534)
try:
    Queue(70, print)
except PermissionError as error:
    print(error)
"""


def python(net: Net, who: str, code: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", net.names[who], sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def sh(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Reader:
    """A worker: judges by ``decide(mark, payload)`` -> disposition, None for drop; the default inspects everything."""

    def __init__(
        self, net: Net, number: int, generation: int, decide: Callable[[int, bytes], int | None] | None = None
    ) -> None:
        self.generation = generation
        self.flows = net.flows
        self.seen: list[tuple[int, bytes]] = []
        self.decide = decide or (lambda _mark, _payload: Disposition.INSPECT)
        with net.inside("router"):
            self.queue = Queue(number, self.on_packet)
        self.stop = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def on_packet(self, packet_id: int, mark: int, payload: bytes) -> int:
        if self.is_late(payload):
            self.queue.verdict(packet_id, False)
            return DONE
        self.seen.append((mark, payload))
        disposition = self.decide(mark, payload)
        if disposition is None:
            self.queue.verdict(packet_id, False)
            return DONE
        new = LAYOUT.compose(self.generation, disposition)
        if mark & LAYOUT.mask == new:
            return ACCEPT_BATCH
        self.queue.verdict(packet_id, True, LAYOUT.merge(mark, new))
        return DONE

    def is_late(self, payload: bytes) -> bool:
        """Whether a connection of an earlier test is still trying."""
        start = 20 if payload[0] >> 4 == 4 else 40
        if payload[9 if start == 20 else 6] != socket.IPPROTO_TCP:
            return False
        ports = frozenset((payload[start : start + 2], payload[start + 2 : start + 4]))
        if payload[start + 13] & 0x02:
            self.flows.add(ports)
        return ports not in self.flows

    def run(self) -> None:
        while not self.stop:
            if select.select([self.queue.fd], [], [], 0.05)[0]:
                self.queue.drain(256)
        self.queue.close()

    def close(self) -> None:
        self.stop = True
        self.thread.join()


class Echo:
    """UDP and TCP echo in the server, both families, port 7; remembers who spoke."""

    def __init__(self, net: Net) -> None:
        self.peers: list[tuple[Any, ...]] = []
        self.stop = False
        self.sockets: list[socket.socket] = []
        for family in (4, 6):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = net.socket("server", family, kind)
                sock.bind((HOSTS[family]["server"], 7))
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
                sock.setblocking(False)
                self.sockets.append(sock)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        connections: list[socket.socket] = []
        while not self.stop:
            for sock in select.select([*self.sockets, *connections], [], [], 0.05)[0]:
                if sock in connections:
                    data = b""
                    with contextlib.suppress(OSError):
                        data = sock.recv(65536)
                    if data:
                        sock.sendall(data)
                    else:
                        connections.remove(sock)
                        sock.close()
                elif sock.type == socket.SOCK_STREAM:
                    connection, peer = sock.accept()
                    self.peers.append(peer)
                    connections.append(connection)
                else:
                    data, peer = sock.recvfrom(65536)
                    self.peers.append(peer)
                    with contextlib.suppress(OSError):
                        sock.sendto(data, peer)
        for sock in [*self.sockets, *connections]:
            sock.close()

    def close(self) -> None:
        self.stop = True
        self.thread.join()


def udp(
    net: Net, family: int, data: bytes = b"hello", sock: socket.socket | None = None, seconds: float = PATIENCE
) -> bytes | None:
    """One datagram to the echo service and what comes back within that time."""
    own = sock or net.socket("client", family)
    try:
        own.settimeout(seconds)
        own.sendto(data, (HOSTS[family]["server"], 7))
        return own.recv(65536)
    except TimeoutError:
        return None
    finally:
        if sock is None:
            own.close()


def connect(net: Net, family: int, seconds: float = PATIENCE) -> socket.socket | None:
    sock = net.socket("client", family, socket.SOCK_STREAM)
    sock.settimeout(seconds)
    try:
        sock.connect((HOSTS[family]["server"], 7))
    except OSError:
        sock.close()
        return None
    sock.settimeout(PATIENCE)
    return sock


def tcp(net: Net, family: int, data: bytes = b"hello", seconds: float = PATIENCE) -> bytes | None:
    """Some bytes to the echo service over a connection, if there is one within that time, and what comes back."""
    sock = connect(net, family, seconds)
    if sock is None:
        return None
    with sock:
        sock.sendall(data)
        got = b""
        while len(got) < len(data):
            part = sock.recv(65536)
            if not part:
                break
            got += part
        return got


def ping(net: Net, who: str, target: str, size: int = 8, seconds: float = PATIENCE) -> bool:
    """An echo request of ``size`` bytes of data and its reply within that time."""
    family = 6 if ":" in target else 4
    with net.inside(who):
        sock = socket.socket(
            FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
        )
    sock.settimeout(seconds)
    data = os.urandom(size)
    body = struct.pack("!BBHHH", 128 if family == 6 else 8, 0, 0, 77, 1) + data
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    with sock, contextlib.suppress(TimeoutError):
        sock.sendto(body, (target, 0))
        while True:
            got = sock.recv(65536)
            if got.endswith(data) and got[-len(body)] in (0, 129):
                return True
    return False


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "masquerade"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    built = Net(masquerade=request.param)
    try:
        yield built
    finally:
        built.close()


@pytest.fixture(scope="module")
def echo(net: Net) -> Iterator[Echo]:
    service = Echo(net)
    yield service
    service.close()


@pytest.fixture
def host(net: Net, echo: Echo) -> Iterator[HostNet]:
    """Closed table before, cleaned up after; whatever a test adds besides is its own to remove."""
    before = net.state()
    net.flows.clear()
    hostnet = HostNet(LAYOUT)
    with net.inside("router"):
        hostnet.install_closed()
    yield hostnet
    with net.inside("router"):
        hostnet.cleanup()
        hostnet.cleanup()
    assert net.state() == before
    net.run("router", "conntrack -F")


@pytest.fixture
def reader(net: Net) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(number: int, generation: int, decide: Callable[[int, bytes], int | None] | None = None) -> Reader:
        made.append(Reader(net, number, generation, decide))
        return made[-1]

    yield make
    for one in made:
        one.close()


def switch(net: Net, host: HostNet, *arguments: Any, **options: Any) -> None:
    with net.inside("router"):
        host.switch(GenerationPlan(*arguments, **options))


def counters(net: Net, host: HostNet) -> dict[str, int]:
    with net.inside("router"):
        return host.counters()


both = pytest.mark.parametrize("family", [4, 6])

# -- closed and open ---------------------------------------------------------------------------------------------------


@both
def test_closed_until_somebody_reads_and_after(net: Net, host: HostNet, family: int) -> None:
    assert udp(net, family, seconds=SILENCE) is None
    assert tcp(net, family, seconds=SILENCE) is None
    assert counters(net, host)["unjudged"] >= 2
    switch(net, host, 1, 70, 70)
    assert udp(net, family, seconds=SILENCE) is None  # nobody reads yet

    child = python(net, "router", KILLED_READER)
    try:
        wait_for(lambda: udp(net, family, seconds=SILENCE) == b"hello")
        sock = connect(net, family)
        assert sock is not None
        sock.sendall(b"one")
        assert sock.recv(10) == b"one"
    finally:
        child.kill()
        child.communicate()
    sock.settimeout(0.6)
    sock.sendall(b"two")
    with pytest.raises(TimeoutError):
        sock.recv(10)
    sock.close()
    assert udp(net, family, seconds=SILENCE) is None
    assert tcp(net, family, seconds=SILENCE) is None


def test_fail_open_is_open_without_a_reader(net: Net, host: HostNet) -> None:
    switch(net, host, 1, 70, 70, fail_open=True)
    assert (udp(net, 4), tcp(net, 6)) == (b"hello", b"hello")
    assert counters(net, host)["failed_open"] > 0
    switch(net, host, 2, 71, 71)
    assert udp(net, 4, seconds=SILENCE) is None


def test_the_routers_own_traffic_is_not_the_firewalls(net: Net, host: HostNet) -> None:
    assert ping(net, "client", "10.77.1.1")
    assert ping(net, "client", "fd77:1::1")
    assert ping(net, "router", "10.77.2.2")


def test_ping_and_both_protocols_pass_when_judged(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    reader(70, 1)
    switch(net, host, 1, 70, 70)
    assert ping(net, "client", "10.77.2.2")
    assert ping(net, "client", "fd77:2::2")
    for family in (4, 6):
        assert udp(net, family) == b"hello"
        assert tcp(net, family, os.urandom(300_000)) is not None


def test_both_directions_show_the_same_addresses(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    seen = reader(70, 1).seen
    switch(net, host, 1, 70, 70)
    assert udp(net, 4) == b"hello"
    # Only UDP over IPv4: a connection of an earlier test may still be trying.
    datagrams = [payload for _, payload in seen if payload[0] >> 4 == 4 and payload[9] == socket.IPPROTO_UDP]
    pairs = {frozenset((payload[12:16], payload[16:20])) for payload in datagrams}
    assert pairs == {frozenset((socket.inet_aton("10.77.1.2"), socket.inet_aton("10.77.2.2")))}


def test_untracked_packets_are_judged_too(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    if net.masquerade:
        pytest.skip("what is not tracked cannot be masqueraded")
    net.run("router", "nft add table inet raw")
    net.run("router", "nft add chain inet raw pre { type filter hook prerouting priority -300; }")
    net.run("router", "nft add rule inet raw pre notrack")
    try:
        assert udp(net, 4, seconds=SILENCE) is None
        switch(net, host, 1, 70, 70)
        assert udp(net, 4, seconds=SILENCE) is None
        one = reader(70, 1)
        assert udp(net, 4) == b"hello"
        one.decide = lambda _mark, _payload: Disposition.DROP
        assert udp(net, 4, seconds=SILENCE) is None
    finally:
        net.run("router", "nft delete table inet raw")


# -- marks -------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("disposition", [Disposition.PASS, Disposition.INSPECT, Disposition.ONCE])
def test_what_a_flow_was_judged_decides_what_is_queued(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int, disposition: Disposition
) -> None:
    one = reader(70, 5, lambda _mark, _payload: disposition)
    switch(net, host, 5, 70, 70)
    with net.socket("client", family) as sock:
        for _ in range(4):
            assert udp(net, family, sock=sock) == b"hello"
        with net.inside("router"):
            entries = [entry for entry in Conntrack().entries() if entry.server_port == 7]
    expected = {
        Disposition.PASS: ([0], LAYOUT.compose(5, Disposition.PASS_UDP)),
        Disposition.INSPECT: (
            [0] + [LAYOUT.compose(5, Disposition.INSPECT)] * 7,
            LAYOUT.compose(5, Disposition.INSPECT_UDP),
        ),
        Disposition.ONCE: ([0] * 8, 0),
    }[disposition]
    assert ([mark for mark, _ in one.seen], entries[0].mark) == expected


@both
@pytest.mark.parametrize(
    ("disposition", "bare"),
    [(Disposition.INSPECT, range(20, 10_000)), (Disposition.INSPECT_TO_CLIENT, range(1, 8))],
)
def test_bare_acknowledgements_of_a_half_inspected_flow_are_the_kernels_but_for_one_a_second(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int, disposition: Disposition, bare: range
) -> None:
    """A server that takes 4 MB in, says a word now and then, and closes: every word and the end come by."""
    one = reader(70, 5, lambda _mark, _payload: disposition)
    switch(net, host, 5, 70, 70)
    with net.socket("server", family, socket.SOCK_STREAM) as listener:
        listener.bind((HOSTS[family]["server"], 8))
        listener.listen()
        with net.socket("client", family, socket.SOCK_STREAM) as sock:
            sock.connect((HOSTS[family]["server"], 8))
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE)
            with peer:
                for word in (b"one", b"two", b"three"):
                    for _ in range(32):
                        sock.sendall(bytes(40_000))
                        left = 40_000
                        while left:
                            left -= len(peer.recv(left))
                    peer.sendall(word)
                    assert sock.recv(10) == word
            assert sock.recv(10) == b""
    start = 20 if family == 4 else 40
    from_server = [packet[start:] for _, packet in one.seen if packet[start : start + 2] == struct.pack("!H", 8)]
    words = [data for data in (segment[(segment[12] >> 4) * 4 :] for segment in from_server) if data]
    assert words == [b"one", b"two", b"three"]
    assert [segment[13] & 0x01 for segment in from_server].count(1) == 1  # the FIN
    acknowledgements = [segment for segment in from_server if segment[13] == 0x10 and len(segment) == segment[12] >> 2]
    assert len(acknowledgements) in bare
    assert "set acknowledged" in net.run("router", "nft list table inet nfw")  # nft 1.0.6 aborts on some sets


@both
def test_a_flow_to_be_dropped_is_dropped_by_the_kernel(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int
) -> None:
    one = reader(70, 5)
    switch(net, host, 5, 70, 70)
    with net.socket("client", family) as sock:
        assert udp(net, family, sock=sock) == b"hello"
        one.decide = lambda _mark, _payload: Disposition.DROP
        assert udp(net, family, sock=sock, seconds=SILENCE) is None
        seen = len(one.seen)
        assert udp(net, family, sock=sock, seconds=SILENCE) is None
    assert len(one.seen) == seen
    assert counters(net, host)["dropped"] == 2


def test_marks_of_others_stay(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    net.run("router", "nft add table inet other")
    net.run("router", "nft add chain inet other pre { type filter hook prerouting priority -150; }")
    net.run("router", "nft add rule inet other pre meta mark set 0x00012345 ct mark set ct mark | 0x00000077")
    net.run("router", "nft add chain inet other post { type filter hook postrouting priority 0; }")
    net.run("router", "nft add rule inet other post meta mark 0x00012345 counter")
    try:
        one = reader(70, 5)
        switch(net, host, 5, 70, 70)
        with net.socket("client", 4) as sock:
            for _ in range(3):
                assert udp(net, 4, sock=sock) == b"hello"
        assert [mark for mark, _ in one.seen] == [0x00012345] + [LAYOUT.compose(5, Disposition.INSPECT) | 0x12345] * 5
        with net.inside("router"):
            marks = {entry.mark for entry in Conntrack().entries() if entry.server_port == 7}
        assert marks == {LAYOUT.compose(5, Disposition.INSPECT_UDP) | 0x77}
        assert "counter packets 6 " in net.run("router", "nft list chain inet other post")
    finally:
        net.run("router", "nft delete table inet other")


def test_the_field_may_be_elsewhere(net: Net, echo: Echo) -> None:
    layout = MarkLayout(0x0000FF00)
    hostnet = HostNet(layout)
    seen: list[int] = []

    def on_packet(packet_id: int, mark: int, _payload: bytes) -> int:
        seen.append(mark)
        queue.verdict(packet_id, True, layout.merge(mark, layout.compose(layout.max_generation, Disposition.INSPECT)))
        return DONE

    with net.inside("router"):
        hostnet.install_closed()
        queue = Queue(70, on_packet)
        hostnet.switch(GenerationPlan(layout.max_generation, 70, 70))
    stop = threading.Event()
    thread = threading.Thread(target=drain_until, args=(queue, stop))
    thread.start()
    try:
        assert udp(net, 4) == b"hello"
        assert seen == [0, layout.compose(layout.max_generation, Disposition.INSPECT)]
    finally:
        stop.set()
        thread.join()
        queue.close()
        with net.inside("router"):
            hostnet.cleanup()


# -- switching ---------------------------------------------------------------------------------------------------------


@both
def test_the_new_generation_sees_under_which_a_flow_was_opened(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int
) -> None:
    reader(70, 85, lambda _mark, _payload: Disposition.PASS)
    switch(net, host, 85, 70, 70)
    with net.socket("client", family) as sock:
        assert udp(net, family, sock=sock) == b"hello"
        two = reader(71, 170)
        switch(net, host, 170, 71, 71)
        assert udp(net, family, sock=sock) == b"hello"
    assert [mark for mark, _ in two.seen] == [
        LAYOUT.compose(85, Disposition.PASS_UDP),
        LAYOUT.compose(170, Disposition.INSPECT),
    ]


@both
def test_the_new_generation_sees_that_an_old_datagram_comes_from_the_server(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int
) -> None:
    reader(70, 85, lambda _mark, _payload: Disposition.PASS)
    switch(net, host, 85, 70, 70)
    with net.socket("client", family) as client, net.socket("server", family) as server:
        server.bind((HOSTS[family]["server"], 96))
        client.connect((HOSTS[family]["server"], 96))
        client.send(b"hello")
        server.connect(server.recvfrom(100)[1])
        two = reader(71, 170, lambda _mark, _payload: Disposition.ENDED)
        switch(net, host, 170, 71, 71)
        for _ in range(3):
            server.send(b"more")  # the first ends the flow, the others are the kernel's
            client.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                client.recv(100)
        two.decide = lambda _mark, _payload: Disposition.INSPECT
        client.settimeout(PATIENCE)
        client.send(b"again")
        assert server.recv(100) == b"again"
        server.send(b"welcome")
        assert client.recv(100) == b"welcome"
    assert [mark for mark, _ in two.seen] == [
        LAYOUT.compose(85, Disposition.REPLY),
        LAYOUT.compose(170, Disposition.ENDED),
        LAYOUT.compose(170, Disposition.INSPECT),
    ]
    assert counters(net, host)["ended"] == 3


def test_an_old_mark_alone_lets_nothing_through(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    reader(70, 1, lambda _mark, _payload: Disposition.PASS)
    switch(net, host, 1, 70, 70)
    with net.socket("client", 4) as sock:
        assert udp(net, 4, sock=sock) == b"hello"
        switch(net, host, 2, 71, 71)
        assert udp(net, 4, sock=sock, seconds=SILENCE) is None  # nobody reads 71
        with net.inside("router"):
            host.retire()
            installed = host.current()
        assert installed is not None
        assert (installed.generation, installed.others) == (2, ())
        switch(net, host, 3, 72, 72)
        switch(net, host, 1, 73, 73)  # the number comes round: what it vouched for is forgotten
        one = reader(73, 1)
        assert udp(net, 4, sock=sock) == b"hello"
        assert one.seen[0][0] == 0


def test_switching_under_traffic_loses_nothing(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    """Two readers are alive all the time, as old and new workers are; nobody repeats UDP, so a loss shows."""
    generations = {1: reader(70, 1), 2: reader(71, 2)}
    switch(net, host, 1, 70, 70)
    stop = threading.Event()
    lost: list[Any] = []
    rounds = [0]

    def ping_pong(family: int) -> None:
        """New flows and an old one, many datagrams in flight."""
        with net.socket("client", family) as sock:
            sock.settimeout(PATIENCE)
            for number in itertools.count():
                if stop.is_set():
                    return
                wanted = {b"%d.%d" % (number, part) for part in range(20)}
                for data in wanted:
                    sock.sendto(data, (HOSTS[family]["server"], 7))
                try:
                    while wanted:
                        wanted.discard(sock.recv(100))
                except TimeoutError:
                    lost.append((family, len(wanted)))
                rounds[0] += 1

    def connections() -> None:
        while not stop.is_set():
            sock = connect(net, 4)
            if sock is None:
                lost.append("tcp")
                continue
            with sock:
                repeated = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
                sock.sendall(b"hello")
                if sock.recv(100) != b"hello" or repeated:
                    lost.append(f"tcp, {repeated} SYN repeated")  # as it was lost

    threads = [threading.Thread(target=ping_pong, args=(family,)) for family in (4, 6)]
    threads.append(threading.Thread(target=connections))
    for thread in threads:
        thread.start()
    numbers = itertools.cycle([2, 1])
    for number in itertools.islice(numbers, 30):
        generations[number].generation = number
        switch(net, host, number, 69 + number, 69 + number)
    stop.set()
    for thread in threads:
        thread.join()
    assert not lost
    assert rounds[0] > 30
    assert all(len(one.seen) > 20 for one in generations.values())


def test_switching_back_and_forth_leaves_nothing(net: Net, host: HostNet) -> None:
    def objects() -> int:
        return net.run("router", "nft list ruleset").count("\n") + net.run("router", "ip rule").count("\n")

    switch(net, host, 1, 70, 70, 9000)
    switch(net, host, 2, 71, 71, 9001)
    before = objects()
    for number in range(3, 23):
        switch(net, host, number, 70, 73, 9000 + number)
    with net.inside("router"):
        installed = host.current()
    assert installed is not None
    assert (installed.generation, installed.others, installed.comment) == (22, (21,), "queues 70-73 port 9022")
    assert objects() == before


def test_several_queues_keep_a_flow_together(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    readers = [reader(number, 1) for number in range(70, 74)]
    switch(net, host, 1, 70, 73)
    for family in (4, 6):
        assert tcp(net, family, os.urandom(100_000)) is not None
    used = [{bytes([payload[0] >> 4]) for _, payload in one.seen} for one in readers]
    assert sum(b"\x04" in one for one in used) == 1
    assert sum(b"\x06" in one for one in used) == 1


# -- fragments ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("fragments", ["drop", "forward", "pass"])
def test_udp_fragments(net: Net, host: HostNet, reader: Callable[..., Reader], family: int, fragments: str) -> None:
    one = reader(70, 1)
    switch(net, host, 1, 70, 70, fragments=fragments)
    data = os.urandom(5000)
    with net.socket("client", family) as sock:
        got = udp(net, family, data, sock, SILENCE if fragments == "drop" else PATIENCE)
        # A connection of an earlier test may still be trying.
        whole = [len(payload) for _, payload in one.seen if payload[9 if family == 4 else 6] == socket.IPPROTO_UDP]
        with net.inside("router"):
            marks = [e.mark for e in Conntrack().entries() if (e.protocol, e.server_port) == (socket.IPPROTO_UDP, 7)]
    header = 28 if family == 4 else 48
    if fragments == "drop":
        assert (got, whole, marks) == (None, [], [])
        assert counters(net, host)["fragments_udp"] == 4
    elif fragments == "forward":
        assert (got, whole) == (data, [5000 + header] * 2)
        assert marks == [LAYOUT.compose(1, Disposition.INSPECT_UDP)]
    else:
        assert (got, whole) == (data, [])  # the mark survives reassembly, the queue is skipped
        assert marks == [0]  # and nothing is remembered about the flow


@both
def test_replies_in_fragments_are_dropped_too(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int
) -> None:
    """With masquerading they are addressed to the router itself and recognised only once they are whole."""
    reader(70, 1)
    switch(net, host, 1, 70, 70)
    server = net.socket("server", family)
    server.bind((HOSTS[family]["server"], 99))
    client = net.socket("client", family)
    with server, client:
        client.sendto(b"?", (HOSTS[family]["server"], 99))
        _, peer = server.recvfrom(10)
        server.sendto(bytes(4000), peer)
        client.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            client.recv(5000)
        client.settimeout(PATIENCE)
        server.sendto(b"small", peer)
        assert client.recv(5000) == b"small"
    assert counters(net, host)["fragments_udp"] >= 1


@both
def test_other_fragments_are_dropped_and_counted(
    net: Net, host: HostNet, reader: Callable[..., Reader], family: int
) -> None:
    reader(70, 1)
    switch(net, host, 1, 70, 70, fragments="pass")
    assert not ping(net, "client", HOSTS[family]["server"], 4000, SILENCE)
    assert counters(net, host)["fragments_other"] == 3


def test_fragments_to_the_router_itself_are_its_own(net: Net, host: HostNet) -> None:
    switch(net, host, 1, 70, 70)
    assert ping(net, "client", "10.77.1.1", 4000)
    assert ping(net, "client", "fd77:1::1", 4000)


# -- TPROXY ------------------------------------------------------------------------------------------------------------


class Interceptor:
    """A transparent listener that connects on from the client's own address and copies both ways."""

    def __init__(self, net: Net, generation: int) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.stop = False
        self.mark = LAYOUT.compose(generation, Disposition.OWN)
        self.net = net
        self.listeners = []
        port = 0
        for family, anywhere in ((4, "0.0.0.0"), (6, "::")):
            sock = net.socket("router", family, socket.SOCK_STREAM)
            self.transparent(sock, family)
            if family == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((anywhere, port))
            port = sock.getsockname()[1]
            sock.listen(64)
            self.listeners.append(sock)
        self.port = port
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def transparent(self, sock: socket.socket, family: int) -> None:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.mark)

    def run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while not self.stop:
            for sock in select.select([*self.listeners, *pairs], [], [], 0.05)[0]:
                if sock in self.listeners:
                    accepted, peer = sock.accept()
                    target = accepted.getsockname()
                    self.asked.append(target[:2])
                    family = 4 if accepted.family == socket.AF_INET else 6
                    upstream = self.net.socket("router", family, socket.SOCK_STREAM)
                    self.transparent(upstream, family)
                    upstream.bind((peer[0], 0))
                    try:
                        upstream.connect(target[:2])
                    except OSError:
                        accepted.close()
                        upstream.close()
                        continue
                    pairs[accepted], pairs[upstream] = upstream, accepted
                elif sock in pairs:
                    data = b""
                    with contextlib.suppress(OSError):
                        data = sock.recv(65536)
                    if data:
                        pairs[sock].settimeout(PATIENCE)
                        pairs[sock].sendall(data)
                    else:
                        other = pairs.pop(sock)
                        pairs.pop(other, None)
                        sock.close()
                        other.close()
        for sock in [*self.listeners, *pairs]:
            sock.close()

    def close(self) -> None:
        self.stop = True
        self.thread.join()


@pytest.fixture
def interceptor(net: Net) -> Iterator[Callable[[int], Interceptor]]:
    made: list[Interceptor] = []

    def make(generation: int) -> Interceptor:
        made.append(Interceptor(net, generation))
        return made[-1]

    yield make
    for one in made:
        one.close()


def to_tls(_mark: int, payload: bytes) -> int:
    protocol = payload[9] if payload[0] >> 4 == 4 else payload[6]
    return Disposition.TLS if protocol == socket.IPPROTO_TCP else Disposition.INSPECT


@both
@pytest.mark.parametrize("rp_filter", [0, 1])
def test_tproxy_end_to_end(
    net: Net,
    host: HostNet,
    echo: Echo,
    reader: Callable[..., Reader],
    interceptor: Callable[[int], Interceptor],
    family: int,
    rp_filter: int,
) -> None:
    net.sysctl("router", "net.ipv4.conf.all.rp_filter", rp_filter)
    one, proxy = reader(70, 3, to_tls), interceptor(3)
    switch(net, host, 3, 70, 70, proxy.port)
    echo.peers.clear()
    data = os.urandom(400_000)
    sock = connect(net, family)
    assert sock is not None
    with sock:
        sending = threading.Thread(target=sock.sendall, args=(data,))
        sending.start()
        got = b""
        while len(got) < len(data):
            got += sock.recv(65536)
        sending.join()
        own = sock.getsockname()
        assert got == data
        assert proxy.asked == [(HOSTS[family]["server"], 7)]
        with net.inside("router"):
            marks = sorted(entry.mark for entry in Conntrack().entries() if entry.server_port == 7)
    assert marks == [LAYOUT.compose(3, Disposition.TLS), LAYOUT.compose(3, Disposition.OWN)]
    assert len(one.seen) == 1  # the SYN; nothing of either side afterwards
    expected = ROUTER_OUTSIDE[family] if net.masquerade else HOSTS[family]["client"]
    assert echo.peers[0][0] == expected
    assert echo.peers[0][1] != own[1]
    net.sysctl("router", "net.ipv4.conf.all.rp_filter", 0)


@both
def test_an_intercepted_connection_outlives_its_generation(
    net: Net, host: HostNet, reader: Callable[..., Reader], interceptor: Callable[[int], Interceptor], family: int
) -> None:
    """As long as its sockets do: whether they do is for the policy, that is for the TLS worker, to say."""
    reader(70, 3, to_tls)
    proxy = interceptor(3)
    switch(net, host, 3, 70, 70, proxy.port)
    sock = connect(net, family)
    assert sock is not None
    with sock:
        sock.sendall(b"one")
        assert sock.recv(10) == b"one"
        two, other = reader(71, 4, to_tls), interceptor(4)
        switch(net, host, 4, 71, 71, other.port)
        with net.inside("router"):
            host.retire()
        sock.sendall(b"two")
        assert sock.recv(10) == b"two"
        assert not two.seen
        assert tcp(net, family) == b"hello"
        assert len(other.asked) == 1
        proxy.close()  # the sockets go without a word where data was unread; either way the flow is unknown now
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            sock.sendall(b"three")
            assert sock.recv(10) in (b"",)


@both
def test_nobody_listens(net: Net, host: HostNet, reader: Callable[..., Reader], family: int) -> None:
    reader(70, 3, to_tls)
    switch(net, host, 3, 70, 70, 9999)
    assert tcp(net, family, seconds=SILENCE) is None
    assert counters(net, host)["tls_refused"] >= 1


def test_icmp_errors_reach_the_interceptors_sockets(
    net: Net, host: HostNet, reader: Callable[..., Reader], interceptor: Callable[[int], Interceptor]
) -> None:
    """An unreachable for the upstream connection is for the router's socket, though it is sent to the client."""
    one, proxy = reader(70, 3, to_tls), interceptor(3)
    switch(net, host, 3, 70, 70, proxy.port)
    sock = connect(net, 4)
    assert sock is not None
    with sock:
        sock.sendall(b"one")
        assert sock.recv(10) == b"one"
        with net.inside("router"):
            own = next(e for e in Conntrack().entries() if e.mark == LAYOUT.compose(3, Disposition.OWN))
        with net.inside("server"):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        # What a router near the server would say about a packet of the upstream connection as it looks out there.
        outside = ROUTER_OUTSIDE[4] if net.masquerade else "10.77.1.2"
        port = outside_port(net, own) if net.masquerade else own.client_port
        quoted = ip4(socket.IPPROTO_TCP, outside, "10.77.2.2", struct.pack("!HHII", port, 7, 0, 0) + bytes(8))
        body = struct.pack("!BBHHH", 3, 1, 0, 0, 0) + quoted[:28]  # host unreachable: a soft error
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        before = counters(net, host)["unjudged"]  # what an earlier test left behind came while the table was closed
        raw.sendto(body, (outside, 0))
        raw.close()
        time.sleep(0.1)
        sock.sendall(b"two")
        assert sock.recv(10) == b"two"
    assert len(one.seen) == 1  # the error was not queued
    assert counters(net, host)["unjudged"] == before


def outside_port(net: Net, entry: Any) -> int:
    """Source port a masqueraded connection has outside, from the conntrack table's text."""
    listed = net.run("router", "conntrack -L -p tcp")
    line = next(one for one in listed.splitlines() if f"sport={entry.client_port} " in one)
    return int([word for word in line.split() if word.startswith("dport=")][1].removeprefix("dport="))


@pytest.mark.parametrize("rp_filter", [0, 1])
def test_src_valid_mark_does_not_make_clients_look_spoofed(
    net: Net, host: HostNet, reader: Callable[..., Reader], interceptor: Callable[[int], Interceptor], rp_filter: int
) -> None:
    """wg-quick sets it; without the rule that is skipped for ``iif lo`` IPv4 interception stops here."""
    net.sysctl("router", "net.ipv4.conf.all.src_valid_mark", 1)
    net.sysctl("router", "net.ipv4.conf.all.rp_filter", rp_filter)
    try:
        reader(70, 3, to_tls)
        proxy = interceptor(3)
        switch(net, host, 3, 70, 70, proxy.port)
        assert (tcp(net, 4), tcp(net, 6)) == (b"hello", b"hello")
    finally:
        net.sysctl("router", "net.ipv4.conf.all.src_valid_mark", 0)
        net.sysctl("router", "net.ipv4.conf.all.rp_filter", 0)


def test_reflected_marks_do_no_harm(
    net: Net, host: HostNet, reader: Callable[..., Reader], interceptor: Callable[[int], Interceptor]
) -> None:
    for name in ("net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
        net.sysctl("router", name, 1)
    try:
        reader(70, 3, to_tls)
        proxy = interceptor(3)
        switch(net, host, 3, 70, 70, proxy.port)
        assert (tcp(net, 4), tcp(net, 6)) == (b"hello", b"hello")
    finally:
        for name in ("net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"):
            net.sysctl("router", name, 0)


# -- cleanup and preflight ---------------------------------------------------------------------------------------------


def test_cleanup_needs_no_state_and_leaves_what_is_not_ours(
    net: Net, echo: Echo, reader: Callable[..., Reader]
) -> None:
    net.run("router", "ip rule add fwmark 0x1 lookup 100 priority 5101")
    net.run("router", "nft add table inet mine")
    net.run("router", "ip route add local default dev lo table 100")
    try:
        before = net.state()
        with net.inside("router"):
            elsewhere = HostNet(LAYOUT, route_table=4711, route_priority=4712)
            elsewhere.install_closed()
            elsewhere.switch(GenerationPlan(1, 70, 70, 9000))
            reader(70, 1)
        assert udp(net, 4) == b"hello"
        assert net.state() != before
        with net.inside("router"):
            HostNet(LAYOUT).cleanup()
            assert HostNet(LAYOUT).current() is None
            assert all(not entry.mark & LAYOUT.mask for entry in Conntrack().entries())
        assert net.state() == before
    finally:
        net.run("router", "ip rule del fwmark 0x1 lookup 100 priority 5101")
        net.run("router", "ip route del local default dev lo table 100")
        net.run("router", "nft delete table inet mine")


def test_preflight(net: Net) -> None:
    with net.inside("router"):
        assert HostNet(LAYOUT).preflight() == []
    with net.inside("server"):
        assert HostNet(LAYOUT).preflight() == [
            "IPv4 is not forwarded: sysctl -w net.ipv4.ip_forward=1",
            "IPv6 is not forwarded: sysctl -w net.ipv6.conf.all.forwarding=1",
        ]
    net.run("router", "ip rule add fwmark 0x100000 lookup 100 priority 77")
    try:
        with net.inside("router"):
            (problem,) = HostNet(LAYOUT).preflight()
        assert "(priority 77) uses bits of mark mask 0xfff00000" in problem
    finally:
        net.run("router", "ip rule del priority 77")


# -- conntrack ---------------------------------------------------------------------------------------------------------


def test_flushing_by_mark_spares_the_rest(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    def decide(_mark: int, payload: bytes) -> int:
        return Disposition.PASS if payload[0] >> 4 == 4 else Disposition.INSPECT

    reader(70, 9, decide)
    switch(net, host, 9, 70, 70)
    for family in (4, 6):
        assert udp(net, family) == b"hello"
    assert ping(net, "client", "10.77.1.1")  # an entry without a mark
    table = Conntrack()
    with net.inside("router"):
        passed, inspected = LAYOUT.compose(9, Disposition.PASS_UDP), LAYOUT.compose(9, Disposition.INSPECT_UDP)

        def marks() -> dict[int, int]:
            found: dict[int, int] = {}
            for entry in table.entries():
                found[entry.mark] = found.get(entry.mark, 0) + 1
            return found

        before = marks()
        assert before[passed] == 1
        assert before[inspected] == 1
        assert before[0] >= 1
        assert table.count() == sum(before.values())
        (entry,) = table.entries(inspected, LAYOUT.mask)
        assert (entry.protocol, entry.client, entry.server, entry.server_port) == (
            17,
            socket.inet_pton(socket.AF_INET6, "fd77:1::2"),
            socket.inet_pton(socket.AF_INET6, "fd77:2::2"),
            7,
        )
        assert 0 < entry.timeout <= 120
        table.flush_marked(passed, LAYOUT.mask)
        assert marks() == {mark: count for mark, count in before.items() if mark != passed}
        table.flush_generation(LAYOUT, 8)
        assert inspected in marks()
        assert table.delete(entry) is True
        assert table.delete(entry) is False
        assert marks() == {0: before[0]}
        with pytest.raises(ValueError, match="does not select"):
            table.flush_marked(0, 0)


# -- raw packets -------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ip4(protocol: int, source: str, destination: str, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(destination) + payload


def reset_for(payload: bytes, back: bool) -> bytes:
    """A reset that follows (or, ``back``, answers) the data segment ``payload``."""
    six = payload[0] >> 4 == 6
    start = 40 if six else (payload[0] & 15) * 4
    src, dst = (payload[8:24], payload[24:40]) if six else (payload[12:16], payload[16:20])
    sport, dport, seq, ack = struct.unpack_from("!HHII", payload, start)
    size = len(payload) - start - (payload[start + 12] >> 4) * 4
    if back:
        src, dst, sport, dport, seq, ack = dst, src, dport, sport, ack, seq + size
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, 0x14, 0, 0, 0)
    pseudo = src + dst + (struct.pack("!II", 20, 6) if six else struct.pack("!HH", 6, 20))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    if six:
        return struct.pack("!IHBB", 6 << 28, 20, 6, 64) + src + dst + segment
    return ip4(6, socket.inet_ntoa(src), socket.inet_ntoa(dst), segment)


@both
def test_resets_reach_both_ends(net: Net, host: HostNet, reader: Callable[..., Reader], family: int) -> None:
    server = net.socket("server", family, socket.SOCK_STREAM)
    server.bind((HOSTS[family]["server"], 98))
    server.listen()
    with net.inside("router"):
        sender = RawSender(LAYOUT.compose(1, Disposition.OWN))

    def decide(_mark: int, payload: bytes) -> int | None:
        if b"EVIL" not in payload:
            return Disposition.INSPECT
        sender.send(reset_for(payload, back=True))
        sender.send(reset_for(payload, back=False))
        return None

    one = reader(70, 1, decide)
    switch(net, host, 1, 70, 70)
    client = net.socket("client", family, socket.SOCK_STREAM)
    with client, server:
        client.connect((HOSTS[family]["server"], 98))
        accepted, _ = server.accept()
        accepted.settimeout(PATIENCE)
        with accepted:
            client.sendall(b"EVIL")
            with pytest.raises(ConnectionResetError):
                client.recv(10)
            with pytest.raises(ConnectionResetError):
                accepted.recv(10)
    sender.close()
    flags = [payload[(40 if family == 6 else 20) + 13] for _, payload in one.seen]
    assert not any(flag & 4 for flag in flags)  # our resets were not queued
    with net.inside("router"):
        marks = {entry.mark for entry in Conntrack().entries() if entry.server_port == 98}
    assert marks == {LAYOUT.compose(1, Disposition.INSPECT)}  # and did not make the flow ours


# -- the queue ---------------------------------------------------------------------------------------------------------


def drain_until(queue: Queue, stop: threading.Event) -> None:
    while not stop.is_set():
        if select.select([queue.fd], [], [], 0.02)[0]:
            queue.drain(64)


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"


class Lot:
    """Datagrams 0, 1, 2 ... wait in a queue whose handler answers each with its letter of ``fates``."""

    def __init__(self, net: Net, host: HostNet, fates: str) -> None:
        self.fates = fates
        self.ids: dict[int, int] = {}
        self.mark = LAYOUT.compose(1, Disposition.ONCE)
        with net.inside("router"):
            self.queue = Queue(70, self.on_packet)
            host.switch(GenerationPlan(1, 70, 70))
        self.sink = net.socket("server", 4)
        self.sink.bind(("10.77.2.2", 97))
        self.arrived: list[int] = []
        with net.socket("client", 4) as sock:
            # The flow is known as inspected, so a batch accept is enough.
            sock.sendto(b"first", ("10.77.2.2", 97))
            wait_for(lambda: self.queue.drain(1) == 1)
            assert self.sink.recv(10) == b"first"
            for index in range(len(fates)):
                sock.sendto(b"%d" % index, ("10.77.2.2", 97))
        read = 0
        while read < len(fates):
            assert select.select([self.queue.fd], [], [], PATIENCE)[0], f"{read} of {len(fates)} packets came"
            read += self.queue.drain(1000)

    def on_packet(self, packet_id: int, mark: int, payload: bytes) -> int:
        if payload.endswith(b"first"):
            self.queue.verdict(packet_id, True, LAYOUT.compose(1, Disposition.INSPECT))
            return DONE
        index = int(payload[28:])
        fate = self.fates[index]
        self.ids[index] = packet_id
        if fate == "a":
            return ACCEPT_BATCH
        if fate == "h":
            return HELD
        if fate == "x":
            raise RuntimeError("a bug")
        if fate == "r":
            held = [i for i in self.ids if self.fates[i] == "h"]
            for i in held:
                self.queue.verdict(self.ids.pop(i), True, self.mark)
            return ACCEPT_BATCH
        self.queue.verdict(packet_id, fate == "m", self.mark if fate == "m" else None)
        return DONE

    def read(self, wanted: int) -> list[int]:
        """What has arrived so far: waits for that many, and a little for one too many."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.sink.settimeout(PATIENCE if len(self.arrived) < wanted else 0.2)
                self.arrived.append(int(self.sink.recv(10)))
        return self.arrived

    def close(self) -> None:
        self.sink.close()
        self.queue.close()


@pytest.mark.parametrize(
    ("fates", "arrive"),
    [
        ("aaaa", [0, 1, 2, 3]),
        ("amam", [0, 1, 2, 3]),  # order is kept across marks
        ("adad", [0, 2]),  # a drop is not swept along by a later batch
        ("dddd", []),
        ("haaa", [1, 2, 3]),  # nor is a held packet
        ("aahaam", [0, 1, 3, 4, 5]),
        ("aahaadhaa", [0, 1, 3, 4, 7, 8]),
        ("ahahra", [0, 2, 1, 3, 4, 5]),  # released by a later packet, then batches again
        ("axa", [0, 2]),  # a bug costs its packet only
        ("a" * 100, list(range(100))),
        ("ad" * 100, list(range(0, 200, 2))),
        ("a" * 31 + "h" + "a" * 40, [*range(31), *range(32, 72)]),
        ("a" * 32 + "h" + "a" * 40, [*range(32), *range(33, 73)]),
    ],
)
def test_verdicts(net: Net, host: HostNet, fates: str, arrive: list[int], caplog: pytest.LogCaptureFixture) -> None:
    lot = Lot(net, host, fates)
    try:
        assert lot.read(len(arrive)) == arrive
        held = {index for index, fate in enumerate(fates) if fate == "h"} if "r" not in fates else set()
        with net.inside("router"):
            stats = lot.queue.stats()
            # Fewer: a held packet was swept along. More: the network sent one of its own, which nobody has read yet.
            assert stats.pop("queued") >= len(held)
            assert stats == {
                "dropped": 0,
                "user_dropped": 0,
                "errors": fates.count("x"),
                "truncated": 0,
                "held": len(held),
            }
        for index in sorted(held):
            lot.queue.verdict(lot.ids[index], True, lot.mark)
        assert lot.read(len(arrive) + len(held)) == arrive + sorted(held)
        assert lot.queue.held == 0
        assert len(caplog.records) == fates.count("x")
    finally:
        lot.close()


def test_a_verdict_may_replace_the_packet(net: Net, host: HostNet) -> None:
    lot = Lot(net, host, "h")
    try:
        packet = ip4(17, HOSTS[4]["client"], HOSTS[4]["server"], struct.pack("!HHHH", 1, 97, 11, 0) + b"777")
        packet = packet[:10] + struct.pack("!H", checksum(packet[:20])) + packet[12:]
        lot.queue.verdict(lot.ids[0], True, lot.mark, packet)
        assert lot.read(1) == [777]
    finally:
        lot.close()


def test_a_verdict_for_a_packet_that_is_gone_is_ignored(net: Net, host: HostNet) -> None:
    lot = Lot(net, host, "a")
    try:
        lot.queue.verdict(99_999, True)
        lot.queue.verdict(99_999, False)
        assert lot.queue.drain(10) == 0
    finally:
        lot.close()


def test_the_budget_is_kept(net: Net, host: HostNet) -> None:
    reads: list[int] = []
    lot = Lot(net, host, "")
    try:
        with net.socket("client", 4) as sock:
            for _ in range(10):
                sock.sendto(b"first", ("10.77.2.2", 97))
            with net.inside("router"):
                wait_for(lambda: lot.queue.stats()["queued"] >= 10)
            reads += [lot.queue.drain(4) for _ in range(3)]
        assert reads == [4, 4, 2]
    finally:
        lot.close()


def test_packets_with_offload_arrive_whole(net: Net, host: HostNet, reader: Callable[..., Reader]) -> None:
    one = reader(70, 1)
    switch(net, host, 1, 70, 70)
    data = os.urandom(2_000_000)
    assert tcp(net, 4, data[:1000]) == data[:1000]
    sock = connect(net, 4)
    assert sock is not None
    with sock:
        sending = threading.Thread(target=sock.sendall, args=(data,))
        sending.start()
        got = bytearray()
        while len(got) < len(data):
            got += sock.recv(1 << 20)
        sending.join()
    assert got == data
    assert max(len(payload) for _, payload in one.seen) > 20_000
    assert one.queue.truncated == 0


def test_a_queue_has_one_reader(net: Net) -> None:
    with net.inside("router"):
        queue = Queue(70, lambda *_: ACCEPT_BATCH)
        with pytest.raises(QueueBusyError, match="netfilter queue 70 is read by another process already"):
            Queue(70, lambda *_: ACCEPT_BATCH)
        queue.close()
        queue.close()
        Queue(70, lambda *_: ACCEPT_BATCH).close()


def test_without_the_right(net: Net) -> None:
    child = python(net, "router", UNPRIVILEGED)
    said, _ = child.communicate()
    assert said.strip() == "[Errno 1] netfilter queue 70: permission denied, CAP_NET_ADMIN is needed"


def test_nothing_is_left_open(net: Net) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> None:
        with net.inside("router"):
            Queue(70, lambda *_: ACCEPT_BATCH).close()
            RawSender(1).close()
            Conntrack().entries()
            Conntrack().flush_marked(1, 1)

    once()
    gc.collect()
    before = descriptors()
    for _ in range(5):
        once()
    gc.collect()
    # What an earlier test has left may go meanwhile; one descriptor a turn would be five.
    assert descriptors() <= before

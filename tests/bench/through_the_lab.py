"""Rows measured on `nfw run` in the lab's router, against the same router without it."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from tests.bench import sslsplit
from tests.bench.measure import Row, by_turns
from tests.bench.rulesets import CHECKED, LARGE, PACKETS, RULES, TLS, WHOLE, large_policy, stateful_rules
from tests.firewall import Firewall, pids_named, wait_for
from tests.lab import Lab

SITE = "site-a.test"
LISTED = "listed.test"  # whose certificate names a revocation list
PORT = 5999  # nothing else in the lab's server listens there
BULK_LEAST = 0.6
GIB_MOST = 1.0  # of the CPU time sslsplit takes for the same bytes
CONNECTION_MS = 2.0  # CPU time of a new inspected connection
WARM_SECONDS = 2.0  # of connections before one is measured: a process that has just been forked copies its pages first
CLIENTS = 8  # at a time, where the cost of a connection is measured under load
CONNECTIONS_SECONDS = 3  # of them are measured for each second of the other rows
NO_NFW = "router without nfw"
_THEIR_PORTS, _OUR_PORTS = "20000 39999", "40000 59999"  # of the client; see connect()
_TICKS = os.sysconf("SC_CLK_TCK")
_GIB = 1 << 30
T = TypeVar("T")
SWITCH_MS = 100.0
_SWITCHED = re.compile(r"; switched (\d+) ms after it was compiled")

# One client that opens a connection, asks, closes and does it again; no session is resumed.
_CONNECT = """\
import socket, ssl, sys, time
cafile, address, name, seconds = sys.argv[1:]
context = ssl.create_default_context(cafile=cafile)
started, count = time.monotonic(), 0
while not count or time.monotonic() - started < float(seconds):
    with context.wrap_socket(socket.create_connection((address, 443), 5), server_hostname=name) as sock:
        sock.sendall(f"HEAD / HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 200"), "no good answer"
    count += 1
print(count / (time.monotonic() - started))
"""


class LabRows:
    """The rows, sharing one lab. ``seconds`` each measurement takes, ``turns`` how often each side is measured."""

    def __init__(self, lab: Lab, firewall: Firewall, seconds: int, turns: int) -> None:
        self.lab, self.firewall, self.seconds, self.turns = lab, firewall, seconds, turns
        self.address = lab.sites[SITE].ipv4
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        (firewall.dir / "bench.rules").write_text(stateful_rules())
        self.packets = firewall.policy("packets", PACKETS)
        self.whole = firewall.policy("whole", WHOLE)
        self.tls = firewall.policy("tls", TLS)
        self.checked = firewall.policy("checked", CHECKED)
        self.large = firewall.policy("large", large_policy(firewall.dir))

    def all(self) -> list[Callable[[], Row]]:
        """Every row, to be called in this order."""
        up, down = (), ("-R",)
        rules = f"{RULES:,} rules"
        return [
            lambda: self.bulk(f"TCP up, 1 stream, {rules}", self.packets, 1, up, BULK_LEAST),
            lambda: self.bulk(f"TCP up, 4 streams, {rules}", self.packets, 4, up, BULK_LEAST),
            lambda: self.bulk(f"TCP down, 1 stream, {rules}", self.packets, 1, down),
            lambda: self.bulk(f"TCP up, 1 stream, {rules}, every byte searched", self.whole, 1, up),
            lambda: self.bulk(f"TCP up, 4 streams, {rules}, every byte searched", self.whole, 4, up),
            self.download,
            self.connections,
            self.download_cost,
            self.connection_cost,
            self.apply,
            self.switch,
        ]

    # -- rows ------------------------------------------------------------------------------------------------------

    def bulk(self, name: str, policy: Path, streams: int, way: tuple[str, ...], least: float | None = None) -> Row:
        """Bytes that arrived in the seconds, TCP with iperf3. Both its ends on one processor get a third of what they
        get on two, and where they are put changes within a second: each has its own."""
        cost: list[float] = []
        processors = sorted(os.sched_getaffinity(0))
        placed = ("-A", f"{processors[0]},{processors[-1]}")

        def transfer() -> tuple[float, float]:
            command = ["iperf3", "-c", self.address, "-p", str(PORT), "-t", str(self.seconds), "-P", str(streams)]
            command += [*placed, "-J", *way]
            received = json.loads(self.lab.client.run(command, timeout=60).stdout)["end"]["sum_received"]
            return received["bits_per_second"] / 1e9, received["bytes"]

        def through() -> float:
            with self.running(policy):
                before = self.cpu("nfw packet")
                speed, size = transfer()
                cost.append((self.cpu("nfw packet") - before) / size * _GIB)
                return speed

        with self.iperf():
            peer, measured = by_turns(lambda: transfer()[0], through, self.turns)
        note = f"{statistics.median(cost):.2f} CPU s/GiB"
        return Row(name, NO_NFW, peer, measured, "Gbit/s", "more", least, note)

    def download(self) -> Row:
        """A GiB over HTTPS, one connection."""
        cost: list[float] = []

        def through() -> float:
            with self.running(self.tls):
                before = self.cpu("nfw tls")
                speed = self.fetch(self.firewall.ca)
                cost.append(self.cpu("nfw tls") - before)
                return speed

        peer, measured = by_turns(lambda: self.fetch(self.lab.root_ca_path), through, self.turns)
        note = f"TLS worker {statistics.median(cost):.2f} CPU s/GiB"
        return Row("HTTPS download, 1 GiB, TLS inspected", NO_NFW, peer, measured, "MB/s", note=note)

    def connections(self) -> Row:
        """New HTTPS connections, one after the other, full handshakes of the client, one small request
        each."""
        cost: list[float] = []

        def through() -> float:
            with self.running(self.tls):
                before = self.cpu("nfw tls")
                rate = self.connect(self.firewall.ca, _OUR_PORTS)
                cost.append((self.cpu("nfw tls") - before) / (rate * self.seconds) * 1e3)
                return rate

        peer, measured = by_turns(lambda: self.connect(self.lab.root_ca_path, _THEIR_PORTS), through, self.turns)
        note = f"TLS worker {statistics.median(cost):.2f} CPU ms each"
        return Row("new HTTPS connections, one client, TLS inspected", NO_NFW, peer, measured, "1/s", note=note)

    def download_cost(self) -> Row:
        """CPU time of the process that decrypts, for the same GiB."""

        def fetch() -> float:
            self.fetch(self.firewall.ca)
            return 1.0

        peer, measured = by_turns(
            lambda: self.split(fetch, SITE), lambda: self.inspected(fetch, self.tls, SITE), self.turns
        )
        name = "CPU of the HTTPS download, TLS worker"
        return Row(name, "sslsplit", peer, measured, "s/GiB", "less", most=GIB_MOST)

    def connection_cost(self) -> Row:
        """CPU time of the process that decrypts, for one of the new connections, every check on and every cache
        warm: under load, on a router of one processor. The note has that of clients that come one after the other: what
        sleeps in between finds its caches used by others, above all in a virtual machine."""
        alone: list[float] = []

        def ours() -> float:
            with apart(self.running(self.checked)):
                costs = [
                    self.cost_each(clients, self.firewall.ca, _OUR_PORTS, lambda: self.cpu("nfw tls"))
                    for clients in (1, CLIENTS)
                ]
                alone.append(costs[0])
                return costs[1]

        def theirs() -> float:
            with apart(sslsplit.intercepting(self.lab, self.firewall)) as pids:
                return self.cost_each(CLIENTS, self.firewall.ca, _THEIR_PORTS, lambda: _cpu_of(pids))

        peer, measured = by_turns(theirs, ours, self.turns)
        name = f"CPU of a new HTTPS connection, TLS worker, {CLIENTS} clients"
        note = f"{statistics.median(alone):.2f} ms with one client"
        return Row(name, "sslsplit", peer, measured, "ms", "less", note=note, cap=CONNECTION_MS)

    def cost_each(self, clients: int, ca: Path, ports: str, cpu: Callable[[], float]) -> float:
        """Milliseconds of CPU time, as ``cpu`` tells its seconds, for each connection of so many clients."""
        seconds = CONNECTIONS_SECONDS * self.seconds
        with ThreadPoolExecutor(clients) as pool:

            def connect(each: float) -> float:
                return sum(pool.map(lambda _: self.connect(ca, ports, each, LISTED), range(clients)))

            connect(WARM_SECONDS)
            before = cpu()
            rate = connect(seconds)
            return (cpu() - before) / (rate * seconds) * 1e3

    def apply(self) -> Row:
        """`nfw policy apply` to its end, against `nfw policy check`, which loads and compiles the same and acts not."""
        switched: list[float] = []

        def apply() -> float:
            seconds, until_switch = self.timed_apply()
            switched.append(until_switch)
            return seconds

        with self.running(self.packets):
            check, applied = by_turns(lambda: self.timed("policy", "check", str(self.packets)), apply, self.turns)
        note = f"switched after {statistics.median(switched):.2f} s"
        return Row(f"nfw policy apply, {RULES:,} rules", "nfw policy check", check, applied, "s", "less", note=note)

    def switch(self) -> Row:
        """From the moment a big policy is compiled until the kernel asks its processes, as the daemon says it."""

        def measured(policy: Path) -> float:
            with self.running(policy):
                seen = self.firewall.output.stat().st_size
                self.firewall.apply(policy)
                return float(_SWITCHED.findall(self.firewall.output.read_text()[seen:])[-1])

        self.firewall.cli("policy", "check", str(self.large), timeout=300)  # what it has parsed, a start need not
        small, large = by_turns(lambda: measured(self.packets), lambda: measured(self.large), self.turns)
        name = f"switch after compiling, {LARGE:,} + {LARGE:,} rules"
        return Row(name, f"{RULES:,} rules", small, large, "ms", "less", cap=SWITCH_MS)

    # -- tools -----------------------------------------------------------------------------------------------------

    def fetch(self, ca: Path) -> float:
        """MB/s of a GiB over HTTPS."""
        answer = self.lab.curl(
            f"https://{SITE}/shared/big", "-4", "--http1.1", "-o", "/dev/null", "-w", "%{speed_download}",
            cacert=ca, timeout=120.0,
        )  # fmt: skip
        if answer.returncode:
            raise RuntimeError(answer.stderr.strip())
        return float(answer.stdout) / 1e6

    def connect(self, ca: Path, ports: str, seconds: float | None = None, site: str = SITE) -> float:
        """New connections per second, at least one, from these ports. Each side has ports of its own: a router that was
        a client's TLS server a moment ago still has that connection in TIME_WAIT, and its kernel does not forward a
        packet that looks like one of it."""
        self.lab.client.sysctl("ipv4/ip_local_port_range", ports)
        command = [sys.executable, "-c", _CONNECT, str(ca), self.lab.sites[site].ipv4, site]
        command.append(str(self.seconds if seconds is None else seconds))
        return float(self.lab.client.run(command, timeout=60).stdout)

    def inspected(self, work: Callable[[], float], policy: Path, site: str) -> float:
        """CPU seconds of the TLS workers for each unit of work, after one connection to the site; ``work`` returns how
        many units there were."""
        with self.running(policy):
            self.connect(self.firewall.ca, _OUR_PORTS, 0.0, site)
            before = self.cpu("nfw tls")
            units = work()
            return (self.cpu("nfw tls") - before) / units

    def split(self, work: Callable[[], float], site: str) -> float:
        """As ``inspected``, of sslsplit."""
        with sslsplit.intercepting(self.lab, self.firewall) as pids:
            self.connect(self.firewall.ca, _THEIR_PORTS, 0.0, site)
            before = _cpu_of(pids)
            units = work()
            return (_cpu_of(pids) - before) / units

    @contextmanager
    def running(self, policy: Path) -> Iterator[None]:
        """nfw in the router, and afterwards none."""
        try:
            self.firewall.start(policy)
            yield
        finally:
            self.firewall.stop()

    @contextmanager
    def iperf(self) -> Iterator[None]:
        """An iperf3 server that can be connected to."""
        server = self.lab.server.popen(
            ["iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        listening = ["ss", "-Hltn", f"sport = :{PORT}"]
        try:
            wait_for(lambda: bool(self.lab.server.run(listening).stdout.strip()), 5.0, lambda: "iperf3 does not listen")
            yield
        finally:
            server.terminate()
            server.wait(5)

    def timed(self, *command: str) -> float:
        """Seconds one `nfw` command takes."""
        started = time.monotonic()
        self.firewall.cli(*command)
        return time.monotonic() - started

    def timed_apply(self) -> tuple[float, float]:
        """Seconds `nfw policy apply` takes, and from its start until the daemon says that the new policy filters."""
        output = self.firewall.output
        switched: list[float] = []
        seen = output.stat().st_size
        started = time.monotonic()

        def watch() -> None:
            while not ended.wait(0.005):
                if " filters: " in output.read_text()[seen:]:
                    switched.append(time.monotonic() - started)
                    return

        ended = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            self.firewall.apply(self.packets)
            seconds = time.monotonic() - started
        finally:
            ended.set()
            watcher.join()
        # Said, but not seen before the command ended.
        return seconds, switched[0] if switched else seconds

    def cpu(self, name: str) -> float:
        """CPU seconds so far of the daemon's processes whose name starts so."""
        pids = pids_named(self.firewall.pid(), name)
        return _cpu_of(pids)


@contextmanager
def apart(router: AbstractContextManager[T]) -> Iterator[T]:
    """What ``router`` starts has one processor to itself, as a router's processes do not share theirs with clients and
    servers; nginx and what is started meanwhile have the others."""
    processors = os.sched_getaffinity(0)
    own = {min(processors)}
    others = processors - own or own
    servers = pids_named(os.getpid(), "nginx")
    os.sched_setaffinity(0, own)
    try:
        with router as started:
            for pid in (0, *servers):
                os.sched_setaffinity(pid, others)
            yield started
    finally:
        for pid in (0, *servers):
            os.sched_setaffinity(pid, processors)


def _cpu_of(pids: Iterable[int]) -> float:
    return sum(_cpu_seconds(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)


def _cpu_seconds(stat: str) -> float:
    """utime + stime of proc_pid_stat(5), fields 14 and 15; the name before them may contain anything."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

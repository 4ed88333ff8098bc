"""Whether packets wait for a log: the same flows with every sink on, with sinks that take nothing, and with none.

``python -m tests.bench.logs --seconds 60`` (root) opens 1,000 UDP flows a second, each with an alert and a flow record,
and prints what a datagram and its answer took. By turns: no log at all, all sinks with somebody who reads, all of them
broken: a full disk, a syslog that is gone, two readers that never read.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Row, by_turns
from tests.firewall import Firewall
from tests.lab import Lab

FLOWS = 1000  # a second
ECHO = 7
DISK_BYTES = 256 * 1024

# Opens flows at a steady rate, each from a socket of its own, to several servers by turns and from every port in order,
# so that the kernel has forgotten a flow before another has its addresses and ports. Prints milliseconds from sending
# to the kernel's time stamp on the answer, and how many had none.
_LOAD = """\
import json, selectors, socket, struct, sys, time
addresses, port, rate, seconds = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
selector, sent, took = selectors.DefaultSelector(), {}, []
started = time.monotonic()
due, end = 0, int(rate * seconds)
def answers(wait):
    for key, _ in selector.select(wait):
        sock = key.fileobj
        _, extra, _, _ = sock.recvmsg(64, 64)
        whole, parts = struct.unpack("qq", extra[0][2])
        took.append((whole * 10**9 + parts - sent.pop(sock)) / 1e6)
        selector.unregister(sock)
        sock.close()
while due < end:
    behind = int((time.monotonic() - started) * rate) - due
    for _ in range(min(behind, 20)):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        sock.bind(("", 2000 + due // len(addresses) % 60000))
        sock.connect((addresses[due % len(addresses)], port))
        selector.register(sock, selectors.EVENT_READ)
        sent[sock] = time.time_ns()
        sock.send(b"probe")
        due += 1
    answers(0.0005)
rate = due / (time.monotonic() - started)
until = time.monotonic() + 2
while sent and time.monotonic() < until:
    answers(0.05)
print(json.dumps({"rate": rate, "took": took, "lost": len(sent)}))
"""

# Reads whatever comes to the sockets named; prints the lines each has got when it is told to end.
_READER = """\
import json, os, selectors, signal, socket, sys
selector, lines, over = selectors.DefaultSelector(), {}, []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
for path in sys.argv[1:]:
    stream = path.endswith("stream")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(path)
    if stream:
        sock.listen()
    lines[path] = 0
    selector.register(sock, selectors.EVENT_READ, (path, stream))
print("ready", flush=True)
while not over:
    for key, _ in selector.select(0.2):
        path, listens = key.data
        if listens:
            selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, (path, False))
            continue
        data = key.fileobj.recv(1 << 18)
        if not data:
            selector.unregister(key.fileobj)
        lines[path] += data.count(b"\\n") or (1 if data else 0)
print(json.dumps(lines))
"""

_POLICY = """\
name: {name}
stateful:
  order: action
  rules: 'alert udp any any -> any {echo} (msg:"one of many"; sid:1;)'
flows: {{udp: 1}}
log: {log}
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a datagram to its answer, over all flows of a run."""

    flows: int
    per_second: float
    lost: int
    median: float
    p99: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.flows:6} flows at {self.per_second:.0f}/s: median {self.median:.2f} ms, 99 % {self.p99:.2f} ms,"
            f" worst {self.worst:.1f} ms, {self.lost} without an answer"
        )


class Logs:
    """Policies that differ in their log alone, in one running firewall."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall
        self.dir = firewall.dir
        self.disk = self.dir / "disk"
        self.quiet = self._policy("quiet", "{events: []}")
        self.heard = self._policy("heard", self._sinks("heard", self.dir / "aws.json"))
        self.broken = self._policy("broken", self._sinks("broken", self.disk / "aws.json"))

    def _sinks(self, name: str, file: Path) -> str:
        return (
            "{events: [alert, drop, flow], sinks: ["
            f"{{type: file, path: {file}, format: aws}}, "
            f"{{type: syslog, address: {self.dir}/{name}-syslog}}, "
            f"{{type: unix_stream, path: {self.dir}/{name}-stream}}, "
            f"{{type: unix_dgram, path: {self.dir}/{name}-dgram}}]}}"
        )

    def _policy(self, name: str, log: str) -> Path:
        return self.firewall.policy(name, _POLICY.format(name=name, echo=ECHO, log=log))

    def load(self, seconds: float) -> Latency:
        """Open flows for that long."""
        servers = ",".join(sorted({site.ipv4 for site in self.firewall.lab.sites.values()}))
        command = [sys.executable, "-c", _LOAD, servers, str(ECHO), str(FLOWS), str(seconds)]
        found = json.loads(self.firewall.lab.client.run(command, timeout=seconds + 60).stdout)
        took = sorted(found["took"]) or [float("inf")]
        return Latency(
            flows=len(found["took"]) + found["lost"],
            per_second=found["rate"],
            lost=found["lost"],
            median=took[len(took) // 2],
            p99=took[len(took) * 99 // 100],
            worst=took[-1],
        )

    def without(self, seconds: float) -> Latency:
        """No event is logged."""
        self.firewall.apply(self.quiet)
        return self.load(seconds)

    def with_readers(self, seconds: float) -> tuple[Latency, dict[str, int]]:
        """Every sink has a reader; also the lines each of them got."""
        paths = {name: self.dir / f"heard-{name}" for name in ("syslog", "stream", "dgram")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        reader = subprocess.Popen(
            [sys.executable, "-c", _READER, *map(str, paths.values())], stdout=subprocess.PIPE, text=True
        )
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            self.firewall.apply(self.heard)
            latency = self.load(seconds)
            self.firewall.apply(self.quiet)  # flushes what is open
        finally:
            reader.terminate()
            said, _ = reader.communicate(timeout=10)
        counts = json.loads(said)
        found = {name: int(counts[str(path)]) for name, path in paths.items()}
        found["file"] = len((self.dir / "aws.json").read_bytes().splitlines())
        return latency, found

    def with_broken_sinks(self, seconds: float) -> tuple[Latency, dict[str, int]]:
        """A full disk, a syslog nobody listens at, two readers that never read; also the lines each sink lost, in the
        order of the sinks."""
        paths = {name: self.dir / f"broken-{name}" for name in ("syslog", "stream", "dgram")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX) as stream,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        ):
            stream.bind(str(paths["stream"]))
            stream.listen()
            datagrams.bind(str(paths["dgram"]))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
                gone.bind(str(paths["syslog"]))
            self.firewall.apply(self.broken)
            latency = self.load(seconds)
            lost = list(self.firewall.status()["log_writer"]["dropped"].values())[1:]  # the first is the event log
            self.firewall.apply(self.quiet)
        return latency, dict(zip(("full disk", "dead syslog", "stuck stream", "stuck dgram"), lost, strict=True))


@contextmanager
def running_logs() -> Iterator[Logs]:
    """A firewall in a lab of its own, no event logged yet; a small disk for the events that will be.

    Everything in it runs ahead of what else the machine does (sched(7)), whose waiting would hide that for a log.
    """
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield from _running_logs()
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


def _running_logs() -> Iterator[Logs]:
    with Lab() as lab:
        disk = lab.dir / "nfw/disk"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
        try:
            with Firewall(lab) as firewall:
                logs = Logs(firewall)
                firewall.start(logs.quiet)
                yield logs
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def row(seconds: float, turns: int) -> Row:
    """For the table: every sink with a reader, against no log."""
    worst: list[float] = []
    with running_logs() as logs:

        def heard() -> float:
            latency, _ = logs.with_readers(seconds)
            worst.append(latency.p99)
            return latency.median

        peer, measured = by_turns(lambda: logs.without(seconds).median, heard, turns)
    note = f"99 % within {statistics.median(worst):.2f} ms"
    return Row(
        f"answer to a datagram, {FLOWS:,} flows/s, every log sink on", "no log", peer, measured, "ms", "less", note=note
    )


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.logs", description="Whether packets wait for a log.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (60)")
    seconds = parser.parse_args().seconds
    with running_logs() as logs:
        print(f"no log       {logs.without(seconds)}", flush=True)
        latency, lines = logs.with_readers(seconds)
        print(f"all sinks    {latency}; lines: {lines}", flush=True)
        latency, lost = logs.with_broken_sinks(seconds)
        print(f"all broken   {latency}; lost: {lost}", flush=True)
        print(f"no log       {logs.without(seconds)}", flush=True)
        dropped = sum(process.get("log_dropped", 0) for process in logs.firewall.status()["processes"])
        print(f"lines that did not reach the log writer: {dropped}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

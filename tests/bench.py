"""`make bench`: what nfw costs, each row a ratio to a named peer measured in the same run, by turns, medians.

    --check   exit status 1 when a row misses its limit
    --quick   shorter transfers

Needs root; everything happens between network namespaces.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.firewall import Firewall, pids_named
from tests.lab import Lab

SERVER = "203.0.113.10"
PORT = "5999"
RULES = 1000

PACKETS = """\
name: packets
stateless: {default: forward}
stateful: {order: action, rule_files: [bench.rules]}
"""

TLS = """\
name: tls
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful: {order: action, rule_files: [bench.rules]}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``limit`` is the least ratio that is good enough, None where none is required."""

    name: str
    peer: float
    nfw: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.nfw / self.peer

    def __str__(self) -> str:
        needed = f" (needed {self.limit:.0%})" if self.limit is not None else ""
        return f"{self.name:44} {self.peer:9.2f} {self.nfw:9.2f} {self.unit:8} {self.ratio:6.1%}{needed} {self.note}"


def rules(count: int) -> str:
    """Stream rules as real sets have them, two contents each, none of which occurs in the traffic."""
    chance = random.Random(1)
    return "".join(
        f'alert tcp any any -> any any (msg:"bench {sid}"; flow:established; content:"{chance.randbytes(6).hex()}"; '
        f'content:"{chance.randbytes(4).hex()}"; distance:0; sid:{sid};)\n'
        for sid in range(1, count + 1)
    )


def by_turns(direct: Callable[[], float], through: Callable[[], float], turns: int) -> tuple[float, float]:
    """Medians of both, measured in turn so that a drifting machine favours neither."""
    pairs = [(direct(), through()) for _ in range(turns)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


class Bench:
    """The rows, sharing one lab."""

    def __init__(self, lab: Lab, firewall: Firewall, seconds: int, turns: int) -> None:
        self.lab, self.firewall, self.seconds, self.turns = lab, firewall, seconds, turns
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        (firewall.dir / "bench.rules").write_text(rules(RULES))
        self.packets = firewall.policy("packets", PACKETS)
        self.tls = firewall.policy("tls", TLS)

    @contextmanager
    def running(self, policy: Path) -> Iterator[None]:
        """nfw in the router, and afterwards none."""
        self.firewall.start(policy)
        try:
            yield
        finally:
            self.firewall.stop()

    def rows(self) -> Iterator[Row]:
        """Measure one row after the other."""
        server = self.lab.server.popen(["iperf3", "-s", "-p", PORT], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        for streams, way in ((1, []), (4, []), (1, ["-R"])):
            yield self.bulk(streams, way)
        server.terminate()
        yield self.download()
        yield self.handshakes()
        yield self.swap()

    def bulk(self, streams: int, way: list[str]) -> Row:
        def transfer() -> float:
            command = ["iperf3", "-c", SERVER, "-p", PORT, "-t", str(self.seconds), "-J", "-P", str(streams), *way]
            report = json.loads(self.lab.client.run(command, timeout=60).stdout)
            return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9

        def through() -> float:
            with self.running(self.packets):
                return transfer()

        direct, nfw = by_turns(transfer, through, self.turns)
        direction = "down" if way else "up"
        limit = 0.6 if streams == 1 and not way else None
        return Row(f"bulk TCP {direction}, {streams} stream(s), {RULES} rules", direct, nfw, "Gbit/s", limit)

    def download(self) -> Row:
        cost: list[float] = []

        def fetch(ca: Path) -> float:
            command = ["curl", "-sS", "--http1.1", "--cacert", str(ca), "-o", "/dev/null", "-w", "%{speed_download}"]
            answer = self.lab.client.run([*command, "https://site-a.test/shared/big"], timeout=120)
            return float(answer.stdout) / 1e6

        def through() -> float:
            with self.running(self.tls):
                before = self.cpu("nfw tls")
                speed = fetch(self.firewall.ca)
                cost.append(self.cpu("nfw tls") - before)
                return speed

        direct, nfw = by_turns(lambda: fetch(self.lab.root_ca_path), through, 2)
        return Row("HTTPS download, 1 GiB", direct, nfw, "MB/s", None, f"{statistics.median(cost):.2f} CPU s/GiB")

    def handshakes(self) -> Row:
        cost: list[float] = []
        program = (
            "import ssl,socket,sys,time\n"
            "context=ssl.create_default_context(cafile=sys.argv[1]);end=time.monotonic()+float(sys.argv[2]);count=0\n"
            "while time.monotonic()<end:\n"
            "    raw=socket.create_connection((sys.argv[3],443),5)\n"
            "    with context.wrap_socket(raw,server_hostname='site-a.test') as sock:\n"
            "        sock.sendall(b'HEAD / HTTP/1.0\\r\\nHost: site-a.test\\r\\n\\r\\n');sock.recv(4096)\n"
            "    count+=1\n"
            "print(count/float(sys.argv[2]))"
        )

        def connect(ca: Path) -> float:
            command = [sys.executable, "-c", program, str(ca), str(self.seconds), SERVER]
            return float(self.lab.client.run(command, timeout=60).stdout)

        def through() -> float:
            with self.running(self.tls):
                before = self.cpu("nfw tls")
                rate = connect(self.firewall.ca)
                cost.append((self.cpu("nfw tls") - before) / (rate * self.seconds) * 1e3)
                return rate

        direct, nfw = by_turns(lambda: connect(self.lab.root_ca_path), through, self.turns)
        note = f"{statistics.median(cost):.2f} CPU ms each"
        return Row("new HTTPS connections, one client", direct, nfw, "1/s", None, note)

    def swap(self) -> Row:
        """Against `nfw --version`, the cost of starting the same program to do nothing."""
        with self.running(self.packets):

            def timed(*command: str) -> float:
                started = time.monotonic()
                self.firewall.cli(*command)
                return time.monotonic() - started

            direct, nfw = by_turns(
                lambda: timed("--version"), lambda: timed("policy", "apply", str(self.packets)), self.turns
            )
        return Row(f"hot swap, {RULES} rules, against `nfw --version`", direct, nfw, "s")

    def cpu(self, name: str) -> float:
        """CPU seconds of the processes whose name starts so."""
        total = 0
        for pid in pids_named(self.firewall.pid(), name):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / 100


def main() -> int:
    """Print the table; the exit status says whether every required ratio was reached."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    missed = []
    with Lab() as lab, Firewall(lab) as firewall:
        bench = Bench(lab, firewall, 2 if options.quick else 4, 2 if options.quick else 3)
        print(f"{'':44} {'direct':>9} {'nfw':>9}")
        for row in bench.rows():
            print(row, flush=True)
            if row.limit is not None and row.ratio < row.limit:
                missed.append(row.name)
    for name in missed:
        print(f"below its limit: {name}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

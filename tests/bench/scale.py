"""Many TLS clients at once: bursts of handshakes, idle sessions, mass closing, slow hellos, stalled readers. Root only.

``python -m tests.bench.scale [--burst N] [--idle N] [--closing N] [--slow N] [--stalled SECONDS]`` builds a lab, runs
`nfw run` in its router and prints a line for each measurement; 0 leaves one out. Client and server share the machine
with nfw, so times are upper bounds; memory is not.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.firewall import Firewall, pids_named
from tests.lab import Lab

POLICY = """\
name: scale
workers: 2
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443, "9443:9445"]}]
stateful: {order: action, rules: ['drop http any any -> any any (msg:"x"; http.uri; content:"/never"; sid:1;)']}
"""
ADDRESS, NAME = "203.0.113.10", "site-a.test"
PORT, OTHER, FLOOD = 9443, 9444, 9445  # of the servers: everybody's, a bystander's, one that never stops sending
STALLED = 20  # readers

# Greets each client and keeps it (nginx would close what is idle), or sends for ever.
_SERVER = """\
import asyncio, ssl, sys
async def greet(reader, writer):
    writer.write(b"hello, here is a server\\r\\n")
    try:
        while len(sys.argv) > 5:
            writer.write(bytes(65536))
            await writer.drain()
        await reader.read()
    except OSError:
        pass
    writer.close()
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(greet, sys.argv[3], int(sys.argv[4]), ssl=context, backlog=4096,
                                        ssl_handshake_timeout=300)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Client:
    """A TLS client that does not wait."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)
        self.began = time.monotonic()
        self.took = 0.0
        self.failed = ""

    def step(self, data: bytes = b"") -> bool:
        """True: the greeting is there, or it has failed."""
        try:
            if data:
                self.incoming.write(data)
            self.tls.do_handshake()
            if self.tls.read(100):
                self.took = time.monotonic() - self.began
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.failed = str(error)
        if pending := self.outgoing.read():
            try:
                self.sock.sendall(pending)
            except OSError as error:
                self.failed = self.failed or str(error)
        return bool(self.took or self.failed)


class Scale:
    """One lab, one nfw, one server of our own."""

    def __init__(self, lab: Lab, firewall: Firewall) -> None:
        self.lab, self.firewall = lab, firewall
        self.context = ssl.create_default_context(cafile=str(firewall.ca))

    def sockets(self, count: int, port: int = PORT) -> list[socket.socket]:
        """Connected to a server, through nfw."""
        made = []
        with self.lab.in_namespace("client"):
            for _ in range(count):
                sock = socket.socket()
                sock.settimeout(60)
                sock.connect((ADDRESS, port))
                made.append(sock)
        return made

    def handshakes(self, count: int, port: int = PORT) -> tuple[list[Client], float]:
        """Each begins as soon as it can, none waits for another: (clients, seconds until the last is done)."""
        poll = select.epoll()
        began = time.monotonic()
        clients: dict[int, Client] = {}
        for _ in range(count):
            (sock,) = self.sockets(1, port)
            client = clients[sock.fileno()] = Client(sock, self.context)
            client.step()
            poll.register(sock.fileno(), select.EPOLLIN)
        waiting = set(clients)
        while waiting and time.monotonic() - began < 300:
            for descriptor, _ in poll.poll(1.0):
                client = clients[descriptor]
                try:
                    data = client.sock.recv(65536)
                except OSError as error:
                    data, client.failed = b"", str(error)
                if not data:
                    client.failed = client.failed or "closed"
                if client.failed or client.step(data):
                    waiting.discard(descriptor)
                    poll.unregister(descriptor)
        poll.close()
        for descriptor in waiting:
            clients[descriptor].failed = "too late"
        return list(clients.values()), time.monotonic() - began

    def memory(self) -> int:
        """Bytes of the TLS workers that are theirs alone (proc(5), smaps_rollup: Private)."""
        total = 0
        for pid in pids_named(self.firewall.pid(), "nfw tls"):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1]) << 10
        return total

    def cpu(self) -> float:
        total = 0.0
        for pid in pids_named(self.firewall.pid(), "nfw tls"):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def files(self) -> int:
        """Descriptors the TLS workers have open: two for each session, and a few."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids_named(self.firewall.pid(), "nfw tls"))

    def burst(self, count: int) -> str:
        busy = self.cpu()
        clients, seconds = self.handshakes(count)
        busy = self.cpu() - busy
        failed = [client.failed for client in clients if client.failed]
        took = sorted(client.took for client in clients if not client.failed)
        for client in clients:
            client.sock.close()
        last = f"{took[-1]:.1f} s the last" if took else "none"
        ends = Counter(record["nfw"]["reason"] for record in self.firewall.events("tls"))
        why = f" ({max(set(failed), key=failed.count)}; sessions ended as {dict(ends)})" if failed else ""
        done = f"{len(took)} done, {len(failed)} failed{why}"
        rate = f"{count / seconds:.0f}/s, {busy / count * 1000:.1f} ms of CPU each"
        return f"{count} handshakes at once: {done}, {last}, {rate}"

    def idle(self, count: int) -> str:
        before = self.memory()
        kept: list[Client] = []
        while len(kept) < count:
            clients, _ = self.handshakes(min(500, count - len(kept)))
            kept += clients
        time.sleep(8)  # buffers that have grown are given back after five
        failed = sum(bool(client.failed) for client in kept)
        each = (self.memory() - before) / max(count - failed, 1) / 1024
        busy = self.cpu()
        time.sleep(5)
        busy = (self.cpu() - busy) / 5
        for client in kept:
            client.sock.close()
        return f"{count} idle sessions: {failed} failed, {each:.0f} KB each, {busy:.0%} of a core while idle"

    def slow(self, count: int) -> str:
        """Hellos that never end, a byte at a time, and what an ordinary client notices."""
        alone = self._others(3.0)
        sockets = self.sockets(count)
        for sock in sockets:
            sock.send(b"\x16")
        busy, began = self.cpu(), time.monotonic()
        beside = self._others(3.0)
        seconds = time.monotonic() - began
        busy = (self.cpu() - busy) / seconds
        time.sleep(max(0.0, 16 - seconds))
        ended = 0
        for sock in sockets:
            sock.settimeout(0.001)
            try:
                ended += sock.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                ended += 1
            sock.close()
        times = f"{alone * 1000:.0f} ms alone, {beside * 1000:.0f} ms beside them"
        return f"{count} slow hellos: {ended} ended in time; {busy:.0%} of a core; median of other handshakes {times}"

    def closing(self, count: int) -> str:
        """All sessions are closed by their clients at the same moment: what a bystander, with a server of its own,
        notices, and how long it takes until they are gone."""
        few = self.files()
        kept: list[Client] = []
        while len(kept) < count:
            kept += self.handshakes(min(500, count - len(kept)))[0]
        time.sleep(2)
        alone = self._others(2.0, OTHER)
        busy, began = self.cpu(), time.monotonic()
        for client in kept:
            client.sock.close()
        took: list[float] = []
        while self.files() > few + 100 and time.monotonic() - began < 60:
            (client,), _ = self.handshakes(1, OTHER)
            took.append(client.took or 60.0)
            client.sock.close()
        seconds = time.monotonic() - began
        busy = self.cpu() - busy
        failed = sum(bool(client.failed) for client in kept)
        took.sort()
        times = f"{alone * 1000:.0f} ms alone, {took[len(took) // 2] * 1000:.0f} ms beside them"
        return (
            f"{count} sessions closed at once: {failed} failed before, gone after {seconds:.1f} s "
            f"and {busy:.1f} s of CPU; median of {len(took)} other handshakes {times}, "
            f"{took[-1] * 1000:.0f} ms the longest"
        )

    def stalled(self, seconds: int) -> str:
        """A server that never stops sending, and clients that never read: memory stays what it is."""
        before = self.memory()
        sockets = self.sockets(STALLED, FLOOD)
        clients = [Client(sock, self.context) for sock in sockets]
        for client in clients:
            done = client.step()
            while not done:
                done = client.step(client.sock.recv(4096))
        readings = []
        for _ in range(seconds):
            time.sleep(1)
            readings.append((self.memory() - before) / STALLED / 1024)
        busy = self.cpu()
        time.sleep(2)
        busy = (self.cpu() - busy) / 2
        for client in clients:
            client.sock.close()
        flat = readings[min(5, len(readings) - 1) :]
        each = f"{min(flat):.0f} to {max(flat):.0f} KB each in {seconds} s"
        return f"{STALLED} stalled readers of an endless answer: {each}, {busy:.0%} of a core"

    def _others(self, seconds: float, port: int = PORT) -> float:
        took = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            (client,), _ = self.handshakes(1, port)
            took.append(client.took or 60.0)
            client.sock.close()
        return sorted(took)[len(took) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--burst", type=int, default=2000)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--closing", type=int, default=4000)
    parser.add_argument("--slow", type=int, default=5000)
    parser.add_argument("--stalled", type=int, default=60)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("scale", POLICY))
        pair = [str(lab.dir / "certificates" / f"{NAME}.{ending}") for ending in ("pem", "key")]
        servers = []
        for arguments in ([PORT], [OTHER], [FLOOD, "flood"]):
            command = [sys.executable, "-c", _SERVER, *pair, ADDRESS, *map(str, arguments)]
            server = lab.server.popen(command, stdout=subprocess.PIPE)
            assert server.stdout is not None
            server.stdout.readline()
            servers.append(server)
        scale = Scale(lab, firewall)
        scale.handshakes(5)
        for measure, count in (
            (scale.burst, options.burst),
            (scale.idle, options.idle),
            (scale.closing, options.closing),
            (scale.slow, options.slow),
            (scale.stalled, options.stalled),
        ):
            if count:
                print(measure(count), flush=True)
        for server in servers:
            server.kill()


if __name__ == "__main__":
    main()

"""Many TLS clients at once, and few that take much: bursts of handshakes, idle sessions, mass closing, slow hellos,
stalled readers, 10 GB to and from one that stutters. Root only.

``python -m tests.bench.scale [--burst N] [--idle N] [--closing N] [--slow N] [--stalled SECONDS] [--gigabytes N]``
builds a lab, runs `nfw run` in its router and prints a line for each measurement; 0 leaves one out. Client and server
share the machine with nfw, so times are upper bounds; memory is not. Slow hellos begin while the sessions that are
closed are still being cleared away. The exit status is 1 where something failed, came late or grew.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.firewall import Firewall, many_files, pids_named
from tests.lab import Lab

POLICY = """\
name: scale
workers: 2
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443, "9443:9446"]}]
stateful: {order: action, rules: ['drop http any any -> any any (msg:"x"; http.uri; content:"/never"; sid:1;)']}
"""
ADDRESS, NAME = "203.0.113.10", "site-a.test"
PORT, OTHER, FLOOD = 9443, 9444, 9445  # of the servers: everybody's, a bystander's, one that never stops sending
SINK = 9446  # one that takes an upload, and stutters
STALLED = 20  # readers
HELLO_SECONDS = 16.0  # for a hello that never ends: 10, and what a busy machine adds
BURST, PAUSE = 256 << 20, 2.0  # who stutters takes that many bytes, then nothing for so many seconds
IDLE_KB = 100  # of an idle session
FLAT = 8 << 20  # bytes that all TLS workers may grow by for one session that waits; its buffers are 1 MiB a direction

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


# Takes a request with a body, in bursts, and says how long the body was.
_SINK = """\
import socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server((sys.argv[3], int(sys.argv[4])))
print("ready", flush=True)
while True:
    sock, _ = listener.accept()
    with context.wrap_socket(sock, server_side=True) as conn:
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += conn.recv(1)
        length = int(head.partition(b"Content-Length: ")[2].split(b"\\r\\n")[0])
        buffer, got, burst = bytearray(1 << 20), 0, 0
        while got < length and (size := conn.recv_into(buffer)):
            got, burst = got + size, burst + size
            if burst >= int(sys.argv[5]):
                burst = 0
                time.sleep(float(sys.argv[6]))
        body = str(got).encode()
        conn.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
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
        self.missed = False  # something failed, came late or grew

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
        self.missed = self.missed or bool(failed)
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
        self.missed = self.missed or failed > 0 or each > IDLE_KB
        busy = self.cpu()
        time.sleep(5)
        busy = (self.cpu() - busy) / 5
        for client in kept:
            client.sock.close()
        return f"{count} idle sessions: {failed} failed, {each:.0f} KB each, {busy:.0%} of a core while idle"

    def resident(self) -> int:
        """Bytes the TLS workers have in memory, what they share included (proc(5), statm)."""
        pages = 0
        for pid in pids_named(self.firewall.pid(), "nfw tls"):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def slow(self, count: int) -> str:
        """Hellos that never end, a byte at a time, and what an ordinary client notices."""
        alone = self._others(3.0)
        busy, began = self.cpu(), time.monotonic()
        took, others, open_ = self._slow(count)
        busy = (self.cpu() - busy) / (time.monotonic() - began)
        times = f"{_median(alone)} alone; beside them {_spread(others)}"
        ended = f"{len(took)} ended after {min(took, default=0):.1f} to {max(took, default=0):.1f} s, {open_} did not"
        return f"{count} slow hellos: {ended}; {busy:.0%} of a core, others included; other handshakes {times}"

    def _slow(self, count: int) -> tuple[list[float], list[float], int]:
        """Seconds each lived until it was ended, by its own clock; seconds the handshakes of others took meanwhile;
        how many were not ended in time."""
        poll = select.epoll()
        slow: dict[int, tuple[socket.socket, float]] = {}
        took: list[float] = []
        others: list[float] = []

        def ended(seconds: float) -> None:
            for descriptor, _ in poll.poll(seconds):
                sock, began = slow.pop(descriptor)
                took.append(time.monotonic() - began)
                poll.unregister(descriptor)
                sock.close()

        for number in range(count):
            began = time.monotonic()
            (sock,) = self.sockets(1)
            sock.send(b"\x16")
            slow[sock.fileno()] = sock, began
            poll.register(sock.fileno(), select.EPOLLIN)
            if number % 100 == 0:
                others.append(self._other(OTHER))
                ended(0)
        last = time.monotonic()
        while slow and time.monotonic() - last < HELLO_SECONDS:
            others.append(self._other(OTHER))
            ended(0.01)
        poll.close()
        late = len(slow) + sum(seconds > HELLO_SECONDS for seconds in took)
        for sock, _ in slow.values():
            sock.close()
        self.missed = self.missed or late > 0
        return took, others, late

    def closing(self, count: int, slow: int) -> str:
        """All sessions are closed by their clients at the same moment, and slow hellos begin at once: what a
        bystander, with a server of its own, notices, and how long it takes until they are gone."""
        few = self.files()
        kept: list[Client] = []
        while len(kept) < count:
            kept += self.handshakes(min(500, count - len(kept)))[0]
        failed = sum(bool(client.failed) for client in kept)
        time.sleep(2)
        alone = self._others(2.0, OTHER)
        gone: list[float] = []
        busy, began = self.cpu(), time.monotonic()

        def watch(most: int) -> None:
            while self.files() > most and time.monotonic() - began < 120:
                time.sleep(0.2)
            gone.append(time.monotonic() - began)

        for client in kept:
            client.sock.close()
        watcher = threading.Thread(target=watch, args=(few + 100 + slow,))
        watcher.start()
        took, others, open_ = self._slow(slow)
        while watcher.is_alive():
            others.append(self._other(OTHER))
        watcher.join()
        busy = self.cpu() - busy
        self.missed = self.missed or failed > 0
        ended = ""
        if slow:
            ended = f"; {slow} slow hellos at once: {len(took)} ended after {min(took, default=0):.1f} to "
            ended += f"{max(took, default=0):.1f} s, {open_} did not"
        return (
            f"{count} sessions closed at once: {failed} failed before, gone after {gone[0]:.1f} s{ended}; "
            f"{busy:.1f} s of CPU; other handshakes {_median(alone)} alone; beside all that {_spread(others)}"
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
        self.missed = self.missed or max(flat) > FLAT / 1024
        each = f"{min(flat):.0f} to {max(flat):.0f} KB each in {seconds} s"
        return f"{STALLED} stalled readers of an endless answer: {each}, {busy:.0%} of a core"

    def download(self, gigabytes: int) -> str:
        """nginx has a file that takes no room; the client reads it by fits and starts."""
        size = gigabytes << 30
        with (self.lab.dir / "www" / "shared" / "huge").open("wb") as file:
            file.truncate(size)

        def move() -> int:
            (sock,) = self.sockets(1, 443)
            sock.settimeout(60)
            with self.context.wrap_socket(sock, server_hostname=NAME) as conn:
                conn.sendall(f"GET /shared/huge HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
                buffer, head = bytearray(1 << 20), b""
                while b"\r\n\r\n" not in head:
                    head += conn.recv(1)
                got = burst = 0
                while taken := conn.recv_into(buffer):
                    got, burst = got + taken, burst + taken
                    if burst >= BURST:
                        burst = 0
                        time.sleep(PAUSE)
            return got

        return f"{gigabytes} GiB to a client that {self._stutter(size, move)}"

    def upload(self, gigabytes: int) -> str:
        """The other way: the server reads by fits and starts."""
        size, zeros = gigabytes << 30, bytes(1 << 20)

        def move() -> int:
            (sock,) = self.sockets(1, SINK)
            sock.settimeout(60)
            with self.context.wrap_socket(sock, server_hostname=NAME) as conn:
                conn.sendall(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {size}\r\n\r\n".encode())
                for _ in range(size // len(zeros)):
                    conn.sendall(zeros)
                return int(conn.recv(4096).partition(b"\r\n\r\n")[2])

        return f"{gigabytes} GiB to a server that {self._stutter(size, move)}"

    def _stutter(self, size: int, move: Callable[[], int]) -> str:
        """Memory while ``move`` moves that many bytes."""
        readings = [self.resident()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.1):
                readings.append(self.resident())

        sampler = threading.Thread(target=sample)
        sampler.start()
        busy, began = self.cpu(), time.monotonic()
        try:
            moved = move()
        finally:
            done.set()
            sampler.join()
        seconds, busy = time.monotonic() - began, self.cpu() - busy
        grown = max(readings) - readings[0]
        self.missed = self.missed or moved != size or grown > FLAT
        arrived = "all of it arrived" if moved == size else f"{moved} BYTES ARRIVED"
        flat = "flat" if grown <= FLAT else "NOT FLAT"
        low, middle, high = (value / 1e6 for value in (min(readings), statistics.median(readings), max(readings)))
        return (
            f"takes {BURST >> 20} MiB, then nothing for {PAUSE:g} s: {arrived} in {seconds:.0f} s, "
            f"{busy / (size / 1e9):.1f} s of CPU per GB; memory of the TLS workers {flat}, {low:.1f} MB at least, "
            f"{middle:.1f} in the middle, {high:.1f} at most ({len(readings)} readings), {readings[0] / 1e6:.1f} before"
        )

    def _other(self, port: int) -> float:
        """Seconds of one handshake of somebody else's."""
        (client,), _ = self.handshakes(1, port)
        client.sock.close()
        self.missed = self.missed or bool(client.failed)
        return client.took or 60.0

    def _others(self, seconds: float, port: int = PORT) -> list[float]:
        took = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            took.append(self._other(port))
        return took


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms"


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    late = ordered[len(ordered) * 99 // 100]
    return f"{_median(ordered)} in the middle, p99 {late * 1000:.0f} ms, {ordered[-1] * 1000:.0f} ms the longest"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--burst", type=int, default=2000)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--closing", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=5000)
    parser.add_argument("--stalled", type=int, default=60)
    parser.add_argument("--gigabytes", type=int, default=10)
    options = parser.parse_args()
    many_files()
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
        command = [sys.executable, "-c", _SINK, *pair, ADDRESS, str(SINK), str(BURST), str(PAUSE)]
        sink = lab.server.popen(command, stdout=subprocess.PIPE)
        assert sink.stdout is not None
        sink.stdout.readline()
        servers.append(sink)
        scale = Scale(lab, firewall)
        scale.handshakes(5)
        for measure, count in (
            (scale.burst, options.burst),
            (scale.idle, options.idle),
            (lambda count: scale.closing(count, options.slow), options.closing),
            (scale.slow, options.slow),
            (scale.stalled, options.stalled),
            (scale.download, options.gigabytes),
            (scale.upload, options.gigabytes),
        ):
            if count:
                print(measure(count), flush=True)
        for server in servers:
            server.kill()
    if scale.missed:
        print("something failed, came late or grew", flush=True)
    return 1 if scale.missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The small servers of the lab, one process: TCP and UDP echo, TCP discard and chargen, DNS for the lab's names.

Run by path with the standard library alone, so that it is up in a few milliseconds: ``services.py SETTINGS.json``.
Prints ``ready`` when every port is bound. Each TCP connection is one JSON line in the log when it ends: service, port,
peer, how many bytes came, the first of them, and how it ended, so that a test can say what did NOT get through.
"""

import ipaddress
import json
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

_CHUNK = 1 << 18
# Enough to show a whole request head in the log.
_HEAD = 4096
# More at once than any test opens; beyond it the kernel's backlog makes connections wait.
_BACKLOG = 4096
_PATTERN = bytes(range(32, 127)) * (_CHUNK // 95)

Serve = Callable[[socket.socket, "Seen"], None]


class Seen:
    """What came in on one connection."""

    def __init__(self) -> None:
        self.count = 0
        self.head = b""

    def add(self, data: bytes | memoryview) -> None:
        self.count += len(data)
        if len(self.head) < _HEAD:
            self.head += bytes(data[: _HEAD - len(self.head)])


def echo(connection: socket.socket, seen: Seen) -> None:
    """Send back what comes until the peer closes its half (RFC 862)."""
    while data := connection.recv(_CHUNK):
        seen.add(data)
        connection.sendall(data)


def discard(connection: socket.socket, seen: Seen) -> None:
    """Read and forget (RFC 863)."""
    buffer = memoryview(bytearray(4 * _CHUNK))
    while count := connection.recv_into(buffer):
        seen.add(buffer[:count])


def chargen(connection: socket.socket, _seen: Seen) -> None:
    """Send without end (RFC 864); over when the peer closes or resets."""
    while True:
        connection.sendall(_PATTERN)


class Dns:
    """Answers A and AAAA for the names it was given (RFC 1035); other names do not exist."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names

    def answer(self, query: bytes) -> bytes:
        """The reply to `query`; empty where it is no query with one question."""
        if len(query) < 12 or struct.unpack("!H", query[4:6])[0] != 1 or query[2] & 0x80:
            return b""
        labels, position = [], 12
        while position < len(query) and query[position]:
            labels.append(query[position + 1 : position + 1 + query[position]])
            position += 1 + query[position]
        question = query[12 : position + 5]
        if len(question) < 5 or position + 5 > len(query):
            return b""
        known = self._names.get(b".".join(labels).decode("ascii", "replace").lower())
        kind = struct.unpack("!H", question[-4:-2])[0]
        wanted = {1: 4, 28: 16}.get(kind, 0)
        packed = [ipaddress.ip_address(address).packed for address in known or ()]
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, 60, wanted) + address for address in packed if len(address) == wanted
        ]
        # QR, AA, RD as asked, RA; NXDOMAIN for a name nobody has.
        flags = 0x8480 | (query[2] & 1) << 8 | (0 if known is not None else 3)
        return query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records)

    def serve(self, connection: socket.socket, seen: Seen) -> None:
        """DNS over TCP: each message behind its length."""
        buffer = b""
        while data := connection.recv(_CHUNK):
            seen.add(data)
            buffer += data
            while len(buffer) >= 2 and len(buffer) >= 2 + (length := struct.unpack("!H", buffer[:2])[0]):
                reply = self.answer(buffer[2 : 2 + length])
                buffer = buffer[2 + length :]
                connection.sendall(struct.pack("!H", len(reply)) + reply)


def listen(port: int, name: str, serve: Serve, log: int) -> None:
    """Serve TCP `port` on every address, both families, a thread for each connection."""
    listener = socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG, reuse_port=False
    )

    def accept() -> None:
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=one, args=(connection, peer), daemon=True).start()

    def one(connection: socket.socket, peer: tuple[str, int]) -> None:
        seen, end = Seen(), "closed"
        with connection:
            try:
                serve(connection, seen)
                connection.shutdown(socket.SHUT_WR)
            except ConnectionResetError:
                end = "reset"
            except OSError as error:
                end = os.strerror(error.errno or 0)
        record = {
            "service": name,
            "port": port,
            "peer": peer[0].removeprefix("::ffff:"),
            "peer_port": peer[1],
            "bytes": seen.count,
            "head": seen.head.decode("latin-1"),
            "end": end,
        }
        os.write(log, (json.dumps(record) + "\n").encode())

    threading.Thread(target=accept, daemon=True).start()


def bind_udp(address: str, port: int) -> socket.socket:
    """A UDP socket on one address, so that replies come from the address that was asked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    bound.bind((address, port))
    return bound


def answer_datagrams(selector: selectors.BaseSelector) -> None:
    """Echo, or answer as the key's function says, whatever arrives on the sockets of `selector`."""
    while True:
        for key, _ in selector.select():
            bound: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                data, peer = bound.recvfrom(65535)
                if reply := key.data(data):
                    bound.sendto(reply, peer)
            except OSError:
                continue  # an ICMP error of an earlier reply, say; the next datagram is another matter


def main() -> None:
    """Bind everything, say so, and serve until killed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings: dict[str, Any] = json.load(file)
    log = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    dns = Dns(settings["names"])
    for port in settings["echo_ports"]:
        listen(port, "echo", echo, log)
    listen(settings["discard_port"], "discard", discard, log)
    listen(settings["chargen_port"], "chargen", chargen, log)
    listen(settings["dns_port"], "dns", dns.serve, log)
    with selectors.DefaultSelector() as selector:
        for address in settings["addresses"]:
            for port in settings["echo_ports"]:
                selector.register(bind_udp(address, port), selectors.EVENT_READ, lambda data: data)
            selector.register(bind_udp(address, settings["dns_port"]), selectors.EVENT_READ, dns.answer)
        print("ready", flush=True)
        answer_datagrams(selector)


if __name__ == "__main__":
    main()

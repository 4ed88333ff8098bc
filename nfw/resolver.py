"""The resolver: the one process that asks what the names in ``tls.bypass`` resolve to.

A client says which server it wants, and a client may lie; what its own DNS answers said may be a lie agreed with
somebody outside. So nfw asks itself, the resolvers the policy names or else those of ``/etc/resolv.conf``, and exempts
a flow only when its destination is among the addresses they gave.

It runs without privileges and holds no key. All resolvers are asked at once, each from a port of its own, and again
while they are silent; however many flows wait for a name, it is asked for once. Names are not looked up in
``/etc/hosts``.

Messages are msgpack maps, one per sequenced packet: ``{id, name, address}`` -> ``{id, why}``; ``why`` is "" when the
address (packed) is the name's, else a token: ``address``, ``no_answer``, ``busy``, ``no_resolver``.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from engines.tls.nameanswers import AAAA, A, NameTable, addresses, query
from nfw import process
from nfw.revocationfetcher import become, user
from nfw.settings import pack, unpack

BUDGET = 2.0
"""Seconds a flow waits at most; then it is decrypted as any other."""
RESEND = (0.4, 1.0)  # seconds after the first query at which resolvers that are silent are asked once more
FRESH_SECONDS = 2.0  # an address that an answer as young as this has not given is not asked for again
MAX_LOOKUPS = 256  # open at the same time
MAX_WAITING = 4096
MAX_RESOLVERS = 3  # resolv.conf(5): MAXNS
PORT = 53
MESSAGE_BYTES = 4096
RESOLV_CONF = Path("/etc/resolv.conf")

Reply = Callable[[str], None]
_Key = tuple[str, int]


def encode_question(number: int, name: str, address: bytes) -> bytes:
    packed: bytes = msgpack.packb({"id": number, "name": name, "address": address})
    return packed


def decode_question(data: bytes) -> tuple[int, str, bytes]:
    """Raises ValueError, KeyError or TypeError for what is none."""
    question = msgpack.unpackb(data)
    return int(question["id"]), str(question["name"]), bytes(question["address"])


def encode_answer(number: int, why: str) -> bytes:
    packed: bytes = msgpack.packb({"id": number, "why": why})
    return packed


def decode_answer(data: bytes) -> tuple[int, str]:
    """Raises ValueError, KeyError or TypeError for what is none."""
    answer = msgpack.unpackb(data)
    return int(answer["id"]), str(answer["why"])


@dataclass(slots=True)
class _Asked:
    """One resolver, one query."""

    server: str
    number: int
    sock: socket.socket


@dataclass(slots=True)
class _Lookup:
    name: str
    kind: int
    deadline: float
    resend: list[float]
    asked: list[_Asked] = field(default_factory=list)
    waiting: list[tuple[bytes, Reply]] = field(default_factory=list)
    answered: bool = False


class Resolver:
    """Questions in, replies out; the owner polls :attr:`sockets` and calls :meth:`readable` and :meth:`tick`.

    ``servers``: addresses as text; None reads :data:`RESOLV_CONF`, again when it changes.
    """

    def __init__(self, servers: Sequence[str] = (), port: int = PORT, resolv_conf: Path = RESOLV_CONF) -> None:
        self._configured = tuple(servers)
        self._port = port
        self._resolv_conf = resolv_conf
        self._read: tuple[float, tuple[str, ...]] = (0.0, ())
        self.table = NameTable()
        self._lookups: dict[_Key, _Lookup] = {}
        self._answered: dict[_Key, float] = {}  # when the name was last answered for; as many as there are names
        self.sockets: dict[int, tuple[_Lookup, _Asked]] = {}
        self._waiting = 0
        self.counts: dict[str, int] = {}

    def ask(self, name: str, address: bytes, reply: Reply, now: float) -> None:
        """Whether ``address`` (packed) is one of ``name``: ``reply`` is called now or within :data:`BUDGET`."""
        if self.table.holds(name, address, now):
            self._say(reply, "")
            return
        key = name, A if len(address) == 4 else AAAA
        lookup = self._lookups.get(key)
        if lookup is None and now - self._answered.get(key, -FRESH_SECONDS) < FRESH_SECONDS:
            self._say(reply, "address")
            return
        servers = self.servers()
        if not servers:
            self._say(reply, "no_resolver")
            return
        if self._waiting >= MAX_WAITING or (lookup is None and len(self._lookups) >= MAX_LOOKUPS):
            self._say(reply, "busy")
            return
        if lookup is None:
            lookup = self._lookups[key] = _Lookup(*key, now + BUDGET, [now + after for after in RESEND])
            for server in servers:
                self._send(lookup, server)
        lookup.waiting.append((address, reply))
        self._waiting += 1

    def servers(self) -> tuple[str, ...]:
        """Who is asked, as text addresses."""
        if self._configured:
            return self._configured
        with contextlib.suppress(OSError):
            changed = self._resolv_conf.stat().st_mtime
            if changed != self._read[0]:
                self._read = changed, nameservers(self._resolv_conf.read_text("utf-8", "replace"))
        return self._read[1]

    def readable(self, descriptor: int, now: float) -> None:
        """A socket of :attr:`sockets` has something: what is no answer to its query is ignored."""
        lookup, asked = self.sockets[descriptor]
        try:
            data = asked.sock.recv(MESSAGE_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:  # refused: asked again with the others
            return
        found = addresses(data, asked.number, lookup.name, lookup.kind)
        if found is None:
            self._count("bad_answer")
            return
        self._count("answer")
        self._forget(asked)
        lookup.asked.remove(asked)
        lookup.answered = True
        self.table.learn(lookup.name, found, now)
        for address, reply in list(lookup.waiting):
            if address in found:
                lookup.waiting.remove((address, reply))
                self._waiting -= 1
                self._say(reply, "")
        if not lookup.asked:
            self._end(lookup, now)

    def tick(self, now: float) -> None:
        """Ask silent resolvers again, give up on them in the end."""
        for lookup in list(self._lookups.values()):
            if now >= lookup.deadline:
                self._end(lookup, now)
            elif lookup.resend and now >= lookup.resend[0]:
                lookup.resend.pop(0)
                for asked in lookup.asked:
                    with contextlib.suppress(OSError):
                        asked.sock.send(query(asked.number, lookup.name, lookup.kind))

    def next_deadline(self) -> float | None:
        """When :meth:`tick` has something to do."""
        return min((min(lookup.deadline, *lookup.resend) for lookup in self._lookups.values()), default=None)

    def close(self) -> None:
        for lookup in list(self._lookups.values()):
            self._end(lookup, lookup.deadline)

    def _send(self, lookup: _Lookup, server: str) -> None:
        """From a port the kernel picks, and only ``server`` is heard there (RFC 5452 9.1)."""
        sock = socket.socket(
            socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        asked = _Asked(server, secrets.randbelow(1 << 16), sock)
        try:
            sock.connect((server, self._port))
            sock.send(query(asked.number, lookup.name, lookup.kind))
        except OSError:
            sock.close()
            self._count("unreachable")
            return
        lookup.asked.append(asked)
        self.sockets[sock.fileno()] = (lookup, asked)
        self._count("query")

    def _end(self, lookup: _Lookup, now: float) -> None:
        key = lookup.name, lookup.kind
        self._lookups.pop(key, None)
        for asked in lookup.asked:
            self._forget(asked)
        if lookup.answered:
            self._answered[key] = now
            if len(self._answered) > MAX_WAITING:
                self._answered = {one: at for one, at in self._answered.items() if now - at < FRESH_SECONDS}
        self._waiting -= len(lookup.waiting)
        for _, reply in lookup.waiting:
            self._say(reply, "address" if lookup.answered else "no_answer")

    def _forget(self, asked: _Asked) -> None:
        self.sockets.pop(asked.sock.fileno(), None)
        asked.sock.close()

    def _say(self, reply: Reply, why: str) -> None:
        self._count(why or "bound")
        reply(why)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def nameservers(text: str) -> tuple[str, ...]:
    """The addresses of a resolv.conf(5)."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(words[1])
                found.append(words[1])
    return tuple(dict.fromkeys(found))[:MAX_RESOLVERS]


# -- the process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """``python -m nfw.resolver PARENT_PID SERVERS LEADER_FD SIDE_FD...``, as :func:`run` executes it."""
    parent, servers, leader, *sides = sys.argv[1:]
    process.die_with_parent(int(parent))
    process.name("nfw resolver")
    run(
        [socket.socket(fileno=int(side)) for side in sides],
        tuple(filter(None, servers.split(","))),
        socket.socket(fileno=int(leader)),
    )


def run(sides: Sequence[socket.socket], servers: Iterable[str], leader: socket.socket) -> None:
    """The process. Tells the leader ``ok`` or ``error: text``, then serves until SIGTERM or the leader's end."""
    servers = tuple(servers)
    process.begin_anew("nfw.resolver", [",".join(servers)], (leader, *sides))
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    resolver = Resolver(servers)
    resolver.table.learn("warm.invalid", {}, 0.0)
    addresses(query(0, "warm.invalid", A), 0, "warm.invalid", A)  # loads what only root may be able to read later
    try:
        become(*user())
    except OSError as error:
        leader.sendall(f"error: the resolver cannot give up its privileges: {error.strerror}".encode())
        sys.exit(1)
    leader.sendall(b"ok")
    by_fd = {side.fileno(): side for side in sides}
    while not stopping:
        poll = select.poll()
        for fd in (*by_fd, leader.fileno(), *resolver.sockets):
            poll.register(fd, select.POLLIN)
        due = resolver.next_deadline()
        wait = 1.0 if due is None else max(0.0, min(1.0, due - time.monotonic()))
        for fd, _ in poll.poll(wait * 1000 + 1):
            now = time.monotonic()
            if fd in by_fd:
                _hear(resolver, by_fd[fd], now)
            elif fd in resolver.sockets:
                resolver.readable(fd, now)
            elif fd == leader.fileno() and not _command(resolver, leader):
                stopping.append(0)
        resolver.tick(time.monotonic())
    resolver.close()


def _hear(resolver: Resolver, side: socket.socket, now: float) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        data = side.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        if data:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                number, name, address = decode_question(data)
                resolver.ask(name, address, functools.partial(_reply, side, number), now)


def _reply(side: socket.socket, number: int, why: str) -> None:
    with contextlib.suppress(OSError):  # full: the flow is decrypted as any other
        side.send(encode_answer(number, why), socket.MSG_DONTWAIT)


def _command(resolver: Resolver, leader: socket.socket) -> bool:
    """False: the generation ends."""
    try:
        data = leader.recv(MESSAGE_BYTES)
    except OSError:
        data = b""
    if not data:
        return False
    kind, _ = unpack(data)
    stats: Any = {"names": len(resolver.table), "counts": dict(resolver.counts)} if kind == "stats" else None
    with contextlib.suppress(OSError):
        leader.send(pack(kind, stats))
    return kind != "end"


if __name__ == "__main__":
    main()

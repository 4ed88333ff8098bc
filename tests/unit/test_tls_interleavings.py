"""A session between two peers, in whatever order things happen: what one side says arrives at the other, in order,
and each end is passed on. The model is two byte strings."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from engines.tls.events import (
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Finished,
    Hello,
    NeedLeaf,
    Plaintext,
    SendClient,
    SendUpstream,
)
from engines.tls.session import Session, State
from engines.tls.status import Status
from engines.verdict import Direction
from tests.unit.tlskit import NOW, TO_CLIENT, TO_SERVER, Peer, World, another, client_peer, server_peer

NAME = "www.example.test"
ENDS = ("203.0.113.1", "10.0.0.2", 443)
TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


class Side:
    """One peer, its wire towards the session, and what it has said. ``way`` is the direction of that."""

    def __init__(self, peer: Peer, way: Direction) -> None:
        self.peer = peer
        self.way = way
        self.said = b""
        self.wire = b""  # on its way to the session
        self.closing = False  # it says no more
        self.notified = False  # and has said so
        self.fin = False  # to be delivered behind what is on the wire
        self.fin_delivered = False
        self.held: deque[bytes | None] = deque()  # plaintext of this way the owner has not forwarded; None: its end

    def say(self, data: bytes) -> None:
        if not self.closing:
            self.said += data
            self.peer.send(data)

    def take(self) -> None:
        self.wire += self.peer.take()


class Owner:
    """Does what the TLS worker does, but for holding plaintext as long as it is told to."""

    def __init__(self, world: World, client: Peer, server: Peer) -> None:
        self.world = world
        self.session = Session(world.settings, 0.0, NOW, *ENDS)
        self.client, self.server = Side(client, TO_SERVER), Side(server, TO_CLIENT)
        self.now = 0.0
        self.connected = False
        self.holding = False
        self.leaf: NeedLeaf | None = None
        self.finished: Finished | None = None
        client.start()

    def sides(self) -> tuple[Side, Side]:
        return self.client, self.server

    def drain(self) -> None:
        while batch := self.session.events():
            for event in batch:
                assert self.finished is None, event
                self.act(event)

    def act(self, event: object) -> None:
        session = self.session
        match event:
            case Hello():
                session.proceed(self.now)
            case ConnectUpstream():
                assert not self.connected
                self.connected = True
                session.upstream_connected(self.now)
            case NeedLeaf():
                self.leaf = event
            case Plaintext(direction, data):
                self.hold(direction, data)
            case Eof(direction):
                self.hold(direction, None)
            case SendClient(data):
                self.deliver(self.client, data)
            case SendUpstream(data):
                self.deliver(self.server, data)
            case CloseClient(how, last):
                self.deliver(self.client, last)
                self.client.peer.fin = how.value
            case CloseUpstream(how, last):
                self.deliver(self.server, last)
                self.server.peer.fin = how.value
            case Finished():
                self.finished = event

    def deliver(self, side: Side, data: bytes) -> None:
        if data:
            assert side.peer.fin is None, "sent after the FIN"
            side.peer.feed(data)

    def hold(self, way: Direction, data: bytes | None) -> None:
        side = self.sides()[way]
        side.held.append(data)
        if not self.holding:
            self.release(side)

    def release(self, side: Side) -> None:
        while side.held:
            data = side.held.popleft()
            if data is None:
                self.session.forward_eof(side.way)
            else:
                self.session.forward(side.way, data)

    def move(self, side: Side, most: int) -> bool:
        """What is on the wire, or the FIN behind it, to the session. False: it cannot, or there is nothing."""
        if side is self.server and not self.connected:
            return False
        side.take()
        if self.finished is not None or not self.session.wants(side.way):
            return False
        client = side is self.client
        if side.wire:
            data, side.wire = side.wire[:most], side.wire[most:]
            (self.session.client_data if client else self.session.upstream_data)(data, self.now)
        elif side.fin and not side.fin_delivered:
            side.fin_delivered = True
            (self.session.client_eof if client else self.session.upstream_eof)(self.now)
        else:
            return False
        self.drain()
        return True

    def step(self, what: str, which: int, size: int) -> None:
        side = self.sides()[which]
        session = self.session
        match what:
            case "say":
                side.say(bytes(at * 7 + size & 255 for at in range(size)))
            case "move":
                self.move(side, size)
            case "bulk":
                self.move(side, 1 << 20)
            case "notify" if side.peer.ready and not side.closing:
                side.closing = side.notified = True
                side.peer.close_notify()
            case "end" if session.state is State.RELAY and (side.peer.ready or not side.said):
                side.closing = True
                side.fin = True
            case "pause":
                session.pause(side.way)
            case "resume":
                session.resume(side.way, self.now)
            case "hold":
                self.holding = True
            case "release":
                self.holding = False
                for one in self.sides():
                    self.release(one)
            case "leaf" if self.leaf is not None:
                need, self.leaf = self.leaf, None
                session.leaf_ready(self.world.context(need), self.now)
            case "wait":
                self.now += size / 10_000
                session.tick(self.now)
        self.drain()

    def rest(self) -> None:
        """Nobody holds anything back any more."""
        for what in ("release", "leaf"):
            self.step(what, 0, 0)
        for which in (0, 1):
            self.step("resume", which, 0)
        moving = True
        while moving:
            self.step("leaf", 0, 0)
            moving = any(self.move(side, 1 << 20) for side in self.sides())
            deadline = self.session.deadline
            if not moving and self.session.state is State.RELAY and deadline is not None:
                self.now = max(self.now, deadline)
                self.session.tick(self.now)
                self.drain()
                moving = True


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("say", "move", "move", "bulk", "notify", "end", "pause", "resume", "hold", "release", "leaf", "wait")
        ),
        st.sampled_from((0, 1)),
        st.sampled_from((1, 5, 100, 1000, 9000, 40_000)),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def worlds() -> dict[int, tuple[World, Peer]]:
    """With servers that know sessions, so that most are resumed."""
    found = {}
    for version in (TLS12, TLS13):
        world = World(resume=True, client_timeout=1e9, leaf_timeout=1e9, upstream_timeout=1e9, hello_timeout=1e9)
        found[version] = world, server_peer(*world.root.issue(NAME), versions=(TLS12, version))
    return found


@given(version=st.sampled_from((TLS13, TLS13, TLS12)), far=st.booleans(), steps=STEPS)
@settings(max_examples=60)
def test_whatever_the_order(
    worlds: dict[int, tuple[World, Peer]], version: int, far: bool, steps: list[tuple[str, int, int]]
) -> None:
    world, server = worlds[version]
    owner = Owner(world, client_peer(NAME, [world.ca]), another(server))
    if far:  # both handshakes are done before anything else happens
        for _ in range(20):
            owner.step("leaf", 0, 0)
            for side in owner.sides():
                owner.move(side, 1 << 20)
        assert owner.session.state is State.RELAY
    for what, which, size in steps:
        owner.step(what, which, size)
        for side, other in (owner.sides(), owner.sides()[::-1]):
            assert other.said.startswith(side.peer.received)
    owner.rest()
    client, server_side = owner.sides()
    assert owner.connected
    for side, other in ((client, server_side), (server_side, client)):
        assert side.peer.failed is None
        assert side.peer.ready
        assert side.peer.received == other.said
        assert side.peer.closed is other.notified
        assert (side.peer.fin == "fin") is (other.fin or owner.finished is not None)
    both_over = all(side.notified or side.fin for side in owner.sides())
    assert (owner.finished is not None) is both_over
    if owner.finished is not None:
        cut = any(not side.notified for side in owner.sides())
        expected = (Status.OK, "truncated" if cut else "closed")
        assert (owner.finished.status, owner.finished.reason) == expected

"""A session that only watches (mode monitor): what the policy would have ended is handed on, byte for byte as it came,
and the client never hears a word of ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.stateful.inspector import FlowFacts
from engines.tls.events import CloseClient, ConnectUpstream, Finished, PassOn, Plaintext, SendClient
from engines.tls.revocation import Revocation
from engines.tls.session import Session, State
from engines.tls.splice import Splice
from engines.tls.status import FailAction, Status
from engines.verdict import Direction
from nfw import events, tlsrecords
from tests.unit.test_tls_revocation import produced_when_judged  # noqa: F401 - a fixture used by itself
from tests.unit.test_tls_session_revocation import checking, found, meet
from tests.unit.tlskit import NOW, Authority, Wire, World, client_peer, server_peer

NAME = "www.example.test"


def watching(world: World, **settings: object) -> World:
    world.settings = replace(world.settings, watch=True, **settings)  # type: ignore[arg-type]
    return world


def passed_on(wire: Wire) -> PassOn:
    """The one event; nothing was said to the client, and the session is over."""
    told = [event for event in wire.log if isinstance(event, PassOn)]
    assert len(told) == 1
    assert wire.log[-1] is told[0]
    assert not any(isinstance(event, SendClient | CloseClient | Finished) for event in wire.log)
    assert wire.session.state is State.DONE
    assert wire.session.deadline is None
    return told[0]


@pytest.mark.parametrize("action", list(FailAction))
@pytest.mark.parametrize("what", ["expired", "untrusted", "name"])
def test_a_server_that_is_not_accepted(what: str, action: FailAction) -> None:
    world = watching(World(), on_failure=action)
    issued = {
        "expired": lambda: world.root.issue(NAME, days=(-60, -1)),
        "untrusted": lambda: Authority().issue(NAME),
        "name": lambda: world.root.issue("other.example.test"),
    }[what]()
    client = client_peer(NAME, [world.root.certificate])
    client.start()
    hello = client.take()
    wire = Wire(world, client, server_peer(*issued))
    wire.feed_client(hello)
    while wire.carry():
        pass
    event = passed_on(wire)
    status = {"expired": Status.EXPIRED, "untrusted": Status.UNTRUSTED, "name": Status.NAME_MISMATCH}[what]
    assert (event.status, event.action, event.data) == (status, action, hello)
    # Late bytes of the server, or of the client, mean nothing any more.
    wire.session.upstream_data(b"x", 1.0)
    wire.session.client_data(b"x", 1.0)
    wire.session.upstream_reset(1.0)
    wire.session.tick(1e9)
    assert wire.session.events() == []


@pytest.mark.parametrize("status", [Revocation.REVOKED, Revocation.UNKNOWN])
def test_a_revoked_server(status: Revocation) -> None:
    wire = meet(watching(checking(revoked="reject", unknown="drop")), findings={0: found(status)})
    event = passed_on(wire)
    assert event.status.value == status.value
    assert event.action is (FailAction.REJECT if status is Revocation.REVOKED else FailAction.DROP)
    assert wire.session.info.revocation_action == "pass"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"])
def test_bytes_that_are_no_hello(data: bytes) -> None:
    session = Session(watching(World()).settings, 0.0, NOW)
    session.client_data(data, 0.0)
    (event,) = session.events()
    assert isinstance(event, PassOn)
    assert (event.status, event.data) == (Status.NOT_TLS, data)


def test_a_client_that_waits_for_the_server_to_speak() -> None:
    session = Session(watching(World()).settings, 0.0, NOW)
    session.tick(100.0)
    (event,) = session.events()
    assert isinstance(event, PassOn)
    assert (event.status, event.reason, event.data) == (Status.NOT_TLS, "hello_timeout", b"")
    splice = Splice(session.info, event.data, 10.0, 100.0)
    assert splice.events() == [ConnectUpstream("")]
    splice.upstream_connected(101.0)
    splice.upstream_data(b"220 ready\r\n", 101.0)
    assert splice.events() == [Plaintext(Direction.TO_CLIENT, b"220 ready\r\n")]


def test_our_own_faults_end_a_connection_all_the_same() -> None:
    world = watching(World())
    session = Session(world.settings, 0.0, NOW)
    client = client_peer(NAME, [world.ca])
    client.start()
    session.client_data(client.take(), 0.0)
    session.tick(100.0)  # nobody has decided on the hello
    finished = session.events()[-1]
    assert isinstance(finished, Finished)
    assert finished.status is Status.INTERNAL


def test_a_server_that_is_accepted_is_intercepted() -> None:
    world = watching(World())
    client = client_peer(NAME, [world.ca])
    client.send(b"ping")
    server = server_peer(*world.root.issue(NAME))
    wire = Wire(world, client, server).run()
    assert wire.client.ready
    assert wire.plaintext[Direction.TO_SERVER] == b"ping"


def test_a_server_that_is_revoked_while_the_session_is_open() -> None:
    """The client has been answered, so the session cannot be handed on: it goes on, and its record says so."""
    wire = meet(watching(checking(revoked="reject")), findings={0: found(Revocation.GOOD)})
    assert wire.session.state is State.RELAY
    wire.session.revocation_found(0, found(Revocation.REVOKED), 1.0)
    assert wire.session.events() == []
    assert wire.session.state is State.RELAY
    info = wire.session.info
    assert (info.would_be, info.passed) == ("reject", ["REVOKED"])
    facts = FlowFacts(1, 6, b"\x0a\x01\x00\x02", b"\xcb\x00\x71\x0a", 40000, 443)
    record = events.only_watched(tlsrecords.tls(facts, "OK", "pass", "closed", "", info, None, 1e9))
    assert record["verdict"] == {"action": "pass", "would_be": "reject"}

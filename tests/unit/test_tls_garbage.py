"""What an ended session leaves to the garbage collector: nothing of ours, since a TLS worker makes no full collections
while many sessions are open."""

from __future__ import annotations

import gc
import socket
from collections import Counter
from collections.abc import Callable

import pytest

from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleset import compile_ruleset
from engines.tls.events import Finished, Hello, NeedLeaf
from engines.tls.session import State
from engines.tls.splice import Splice
from engines.tls.status import FailAction
from engines.verdict import Direction
from nfw.sockets import Side
from nfw.tlsflow import Flow, flow_facts
from tests.unit.tlskit import NOW, TO_CLIENT, TO_SERVER, Authority, Wire, World, client_peer, server_peer

NAME = "www.example.test"
OURS = ("engines.", "nfw.", "OpenSSL.")
WORLD = World()
CERTIFICATE, KEY = WORLD.root.issue(NAME)
STRANGER = Authority("Stranger").issue(NAME)
RULES = compile_ruleset(
    parse_rules('drop http any any -> any any (http.uri; content:"/never"; sid:1;)', "t.rules", Variables()).signatures,
    "action",
    (),
)
GET = b"GET /index.html HTTP/1.1\r\nHost: www.example.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def _wire(**options: object) -> Wire:
    certificate, key = options.pop("server", None) or (CERTIFICATE, KEY)  # type: ignore[misc]
    return Wire(WORLD, client_peer(NAME, [WORLD.ca]), server_peer(certificate, key), **options)  # type: ignore[arg-type]


def closed() -> Wire:
    wire = _wire().run()
    wire.session.client_eof(1.0)
    wire.session.upstream_eof(1.0)
    wire.answer()
    assert wire.finished is not None
    return wire


def reset() -> Wire:
    wire = _wire().run()
    wire.session.client_reset(1.0)
    wire.answer()
    assert isinstance(wire.finished, Finished)
    return wire


def refused() -> Wire:
    wire = _wire(server=STRANGER).run()
    assert wire.finished is not None
    assert wire.finished.status.value == "UNTRUSTED"
    return wire


def decided() -> Wire:
    wire = _wire().run()
    wire.session.end(FailAction.REJECT, "drop", "1:1")
    wire.answer()
    return wire


def abandoned_open() -> Wire:
    """As an idle or flushed session is: nobody tells it."""
    wire = _wire().run()
    assert wire.session.state is State.RELAY
    return wire


def abandoned_waiting() -> Wire:
    wire = _wire(hold=(NeedLeaf,)).run()
    assert wire.session.state is State.LEAF
    return wire


def too_slow() -> Wire:
    wire = _wire(hold=(Hello,)).run()
    wire.session.tick(99.0)
    wire.answer()
    assert wire.finished is not None
    return wire


def left_alone() -> Wire:
    wire = _wire(hold=(Hello,)).run()
    Splice(wire.session.info, wire.session.release(), 10.0, 1.0).client_reset(1.0)
    return wire


def inspected() -> Flow:
    """The worker's own part of it, with the inspector and what it has parsed."""
    near, far = socket.socketpair()
    wire = _wire().run()
    ends = ("10.0.0.1", 40000), ("198.51.100.7", 443)
    flow = Flow(Side(near), flow_facts(1, *ends), *ends, wire.session, NOW)
    flow.upstream = Side(far)
    facts = FlowFacts(1, 6, b"\x0a\x00\x00\x01", b"\xc6\x33\x64\x07", 40000, 443)
    flow.inspector = Inspector(RULES, facts, NOW, decrypted=True)
    flow.inspector.inspect(Segment(Direction.TO_SERVER, False, b"", b"", None, NOW))
    for direction, data in ((TO_SERVER, GET), (TO_CLIENT, OK)):
        outcome = flow.inspector.inspect(Segment(direction, True, data, data, None, NOW))
        assert not outcome.alerts
    assert flow.inspector.app_proto == "http"
    for side in flow.sides():
        side.close("close")
    return flow


@pytest.mark.parametrize(
    "life",
    [closed, reset, refused, decided, abandoned_open, abandoned_waiting, too_slow, left_alone, inspected],
)
def test_an_ended_session_leaves_nothing_to_the_collector(life: Callable[[], object]) -> None:
    life()  # what is made once, and kept
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        life()
        gc.collect()
        left = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert not {name: count for name, count in left.items() if name.startswith(OURS)}

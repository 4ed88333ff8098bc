"""The TLS worker's clock: time a session's bytes spend in this process is not its peer's fault."""

from __future__ import annotations

import datetime
import gc
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from engines.tls.session import Session, State
from nfw import ca, rounds, tlsworker
from nfw.log import channel
from nfw.policy.compile import compile_policy
from nfw.policy.loader import load_policy_text
from nfw.settings import GenerationSettings
from nfw.sockets import Side
from nfw.tlsflow import Flow, flow_facts
from nfw.tlsworker import Helpers, TlsWorker, tls_settings
from tests.unit.tlskit import Authority

POLICY = """\
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [root.pem]
  scopes: [{destination_ports: [443]}]
"""
SECONDS = 10.0  # for a hello


class Clock:
    """Stands in for the module ``time`` of the worker."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class Bench:
    """A worker whose loop is turned by hand."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        policy = load_policy_text(POLICY.encode(), folder / "policy.yaml", now=clock.time())
        self.sockets = [*socket.socketpair(), *socket.socketpair(), *channel()]
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.sockets += listeners
        assert policy.tls is not None
        self.worker = TlsWorker(
            compile_policy(policy),
            tls_settings(policy.tls),
            GenerationSettings(1, "policy.yaml", 5100, 0xFF000000),
            (listeners[0], listeners[1]),
            1,
            Helpers(self.sockets[0]),
            self.sockets[2],
            self.sockets[4],
        )

    def flow(self) -> tuple[Flow, socket.socket]:
        """What was accepted just now, and the client's end of it."""
        worker, now = self.worker, self.clock.now
        client, ours = socket.socketpair()
        ours.setblocking(False)
        self.sockets += [client, ours]
        worker.next_flow += 1
        session = Session(worker.settings, now, self.clock.time(), "203.0.113.1")
        ends = (("10.1.0.2", 40000), ("203.0.113.1", 443))
        flow = Flow(Side(ours), flow_facts(worker.next_flow, *ends), *ends, session, now)
        worker.flows[flow.key] = flow
        worker.rounds.guard(flow, worker._open, flow, now)
        return flow, client

    def poll(self) -> None:
        """What is ready into the queues, where it stays."""
        turned = self.worker.rounds
        ready = turned._epoll.poll(0.0, rounds.EVENTS)
        since, turned.polled = turned.polled, self.clock.now
        assert turned._queue(ready, since) == []

    def dial(self, *_: object) -> tuple[Side, int]:
        """No socket here is a connection of the kernel's, so what is dialled goes nowhere."""
        pair = socket.socketpair()
        self.sockets += pair
        return Side(pair[0]), 0

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.worker.rounds._epoll.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("worker")
    ca.create("CA", made, datetime.datetime.fromtimestamp(1_800_000_000, datetime.UTC))
    (made / "root.pem").write_bytes(Authority("Root").certificate.public_bytes(serialization.Encoding.PEM))
    return made


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    thresholds = gc.get_threshold()  # which a worker sets for itself
    clock = Clock()
    for module in (tlsworker, rounds):
        monkeypatch.setattr(module, "time", clock)
    made = Bench(folder, clock)
    monkeypatch.setattr(tlsworker, "dial", made.dial)
    yield made
    made.close()
    gc.set_threshold(*thresholds)


def _client_hello() -> bytes:
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@pytest.mark.parametrize(
    ("late", "said", "state"),
    [
        (False, "whole", State.CONNECTING),
        (True, "whole", State.CONNECTING),  # it had come in time, and waited here
        (True, "half", None),  # all there was has been served
        (True, "", None),
    ],
)
def test_a_deadline_waits_for_what_is_queued(bench: Bench, late: bool, said: str, state: State | None) -> None:
    worker, rounds, clock = bench.worker, bench.worker.rounds, bench.clock
    flow, client = bench.flow()
    whole = _client_hello()
    client.send({"whole": whole, "half": whole[:50], "": b""}[said] or b"")
    clock.now += 1.0
    bench.poll()
    assert len(rounds._opening) == (1 if said else 0)
    if late:
        clock.now += SECONDS + 5.0  # spent on others
        bench.poll()
    rounds._look_at_overdue()
    if said:
        assert worker.flows[flow.key].session.state is State.HELLO
        assert not flow.finished_at
    rounds._serve(rounds._opening)
    clock.now += 0.1
    bench.poll()
    rounds._look_at_overdue()
    if state is None:
        assert flow.finished_at
        assert worker.counts["timed_out"] == 1
    else:
        assert flow.session.state is state
        assert "timed_out" not in worker.counts


def test_a_deadline_waits_for_no_other_queue(bench: Bench) -> None:
    """Ends by the thousand do not keep a hello that never comes."""
    rounds, clock = bench.worker.rounds, bench.clock
    ended, _ = bench.flow()
    clock.now += 0.5
    flow, _ = bench.flow()
    bench.poll()
    rounds._ending.put(99, (ended, ended.client), 0, clock.now)
    clock.now += SECONDS + 5.0
    bench.poll()
    rounds._look_at_overdue()
    assert flow.finished_at


@pytest.mark.parametrize("queue", ["opening", "answers"])
def test_a_deadline_waits_for_an_answer_that_is_here(bench: Bench, queue: str) -> None:
    """What a helper has said counts from when it was read, and what others wait for with it."""
    rounds, clock = bench.worker.rounds, bench.clock
    flow, _ = bench.flow()
    other, _ = bench.flow()
    clock.now += 1.0
    bench.poll()
    if queue == "answers":
        rounds.answer(other, lambda *_: None, (), clock.now)
    else:
        rounds._opening.put(99, (other, other.client), 0, clock.now)
    clock.now += SECONDS + 5.0
    bench.poll()
    rounds._look_at_overdue()
    assert not flow.finished_at
    rounds._tell_answers()
    rounds._serve(rounds._opening)
    rounds._look_at_overdue()
    clock.now += 0.2
    bench.poll()
    rounds._look_at_overdue()
    assert flow.finished_at

"""The packet worker: one netfilter queue, one pipeline, one process.

Loop: wait for packets, for the leader, or for the next deadline; drain the queue in batches; act on what was decided.
A bug met in one packet is logged with its traceback and that packet is dropped; the worker goes on.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from nfw import process
from nfw.collector import SpareCollector
from nfw.flows.listing import Listings, pipeline_flows
from nfw.giveups import GiveUps
from nfw.ipsets import SetTaker
from nfw.log import LogSender
from nfw.marks import Disposition, MarkLayout
from nfw.nfqueue import ACCEPT_BATCH, DONE, HELD, Queue, QueueBusyError
from nfw.pipeline import Answer, Pipeline
from nfw.rawsend import RawSender
from nfw.settings import GenerationSettings, most, pack, unpack

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled

MESSAGE_BYTES = 1 << 20
BUGS_SHOWN = 20  # tracebacks; the rest is only counted
DRAIN_PACKETS = 256  # between two looks at the clock and the leader


class Worker:
    """Owns the queue's socket and acts for its pipeline (:class:`nfw.pipeline.Effects`)."""

    def __init__(
        self, compiled: Compiled, settings: GenerationSettings, queue: int, leader: socket.socket, log: socket.socket
    ) -> None:
        self.layout = MarkLayout(settings.mark_mask)
        self.generation = settings.number
        self.leader = leader
        self.log = LogSender(log, {"generation": settings.number}, compiled.policy.log.wanted)
        self.raw = RawSender(self.layout.compose(settings.number, Disposition.OWN))
        self.pipeline = Pipeline(compiled, settings.number, self, time.time() - time.monotonic())
        self.marks = {
            answer: self.layout.compose(settings.number, Disposition(answer)) for answer in Answer if answer > 0
        }
        self.listings = Listings(lambda now: pipeline_flows(self.pipeline, now))
        self.give_ups = GiveUps(self.pipeline.ruleset, process.tell)
        self.collector = SpareCollector(time.monotonic())
        self.sets = SetTaker(compiled.changing)
        self.bugs = 0
        self.answers = [0] * (max(Answer) + 3)  # packets by answer, from HOLD on
        self.released = [0, 0]  # held packets by what became of them: dropped, accepted
        self.rewritten: dict[int, bytes] = {}  # packet id -> what goes on in its place
        self.held: dict[int, int] = {}  # packet id -> its mark; as many as the pipeline holds
        self.queue = Queue(queue, self.on_packet, fail_open=compiled.policy.fail_open)
        self.stopping = False

    # -- Effects ---------------------------------------------------------------------------------------------------

    def verdict(self, packet_id: int, accept: bool) -> None:
        """Verdict of a packet held earlier. The mark says INSPECT, as for every packet of an inspected flow."""
        mark = self.layout.merge(self.held.pop(packet_id, 0), self.marks[Answer.INSPECT])
        self.released[accept] += 1
        instead = self.rewritten.pop(packet_id, None)
        self.queue.verdict(packet_id, accept, mark if accept else None, instead if accept else None)

    def rewrite(self, packet_id: int, packet: bytes) -> None:
        """Remembered until the verdict."""
        self.rewritten[packet_id] = packet

    def inject(self, packet: bytes) -> None:
        """A reset or unreachable of our own; what cannot be sent is only counted, the drop stands anyway."""
        if packet:  # empty: an answer that must not be sent, to a broadcast address for example
            with contextlib.suppress(OSError, ValueError):
                self.raw.send(packet)

    def event(self, event: dict[str, Any]) -> None:
        """One record to the log writer."""
        self.log.write(event)

    # -- packets ---------------------------------------------------------------------------------------------------

    def on_packet(self, packet_id: int, mark: int, payload: bytes) -> int:
        """Handler of the queue: see :mod:`nfw.nfqueue` for the returned constants."""
        try:
            generation, disposition = self.layout.split(mark)
            answer = self.pipeline.packet(packet_id, generation, disposition, payload, time.monotonic())
        except Exception:  # noqa: BLE001 - our bug must cost one packet, not the worker
            self._bug()
            answer = Answer.DROP
        self.answers[answer + 2] += 1
        if answer is Answer.HOLD:
            self.held[packet_id] = mark
            return HELD
        instead = self.rewritten.pop(packet_id, None) if self.rewritten else None
        if answer is Answer.ACCEPT:
            if instead is None:
                return ACCEPT_BATCH
            self.queue.verdict(packet_id, True, payload=instead)
        elif answer is Answer.DROP:
            self.queue.verdict(packet_id, False)
        else:
            self.queue.verdict(packet_id, True, self.layout.merge(mark, self.marks[answer]), instead)
        return DONE

    def _bug(self) -> None:
        self.bugs += 1
        if self.bugs <= BUGS_SHOWN:
            traceback.print_exc()

    def _tick(self, now: float) -> float:
        """What is judged because its time is up comes from the network too."""
        self.give_ups.look(now)
        self.collector.look(len(self.pipeline.table), now)
        self.listings.expire(now)
        try:
            return self.pipeline.tick(now)
        except Exception:  # noqa: BLE001 - as in on_packet
            self._bug()
            return 0.1

    def run(self) -> None:
        """Until SIGTERM or the leader's end."""
        poll = select.poll()
        poll.register(self.queue.fd, select.POLLIN)
        poll.register(self.leader.fileno(), select.POLLIN)
        wait = 1.0
        next_tick = 0.0
        while not self.stopping:
            ready = poll.poll(wait * 1000)
            for fd, _ in ready:
                if fd == self.leader.fileno():
                    self._command()
                else:
                    self.queue.drain(DRAIN_PACKETS)
            now = time.monotonic()
            if now >= next_tick or not ready or self.pipeline.holding:
                wait = self._tick(now)
                next_tick = now + min(wait, 0.1)
                self.log.flush()
                wait = min(wait, 0.1) if ready else wait
        self.pipeline.finish(time.monotonic())
        self.log.flush()

    def _command(self) -> None:
        try:
            data = self.leader.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            self.stopping = True
            return
        kind, body = unpack(data)
        reply: Any = None
        if kind == "stats":
            reply = self.stats()
        elif kind == "old_flows":
            self.pipeline.remember_old_flows(body)
        elif kind == "flows":
            reply = self.listings.page(body, time.monotonic())
        elif kind == "flush":
            reply = self.pipeline.flush(body, time.monotonic())
        elif kind == "sets":
            reply = self.sets.take(body)
        elif kind == "end":
            self.stopping = True
        with contextlib.suppress(OSError):
            self.leader.send(pack(kind, reply))

    def stats(self) -> dict[str, Any]:
        """Counters for ``nfw status``."""
        pipeline = self.pipeline
        refused = sum(self.answers[answer + 2] for answer in (Answer.DROP, Answer.DROP_FLOW, Answer.ENDED))
        hits, omitted = most(pipeline.ruleset.hit_counts() if pipeline.ruleset is not None else {})
        return {
            "queue": self.queue.stats(),
            "packets": {
                "received": pipeline.packets,
                "received_bytes": pipeline.bytes,
                "forwarded": pipeline.forwarded,
                "forwarded_bytes": pipeline.forwarded_bytes,
                "dropped": refused + self.released[0],
                "tls": self.answers[Answer.TLS + 2],
            },
            "verdicts": {"/".join(key): count for key, count in pipeline.verdicts.items()},
            "flows": len(pipeline.table),
            "max_flows": pipeline.policy.flows.max_flows,
            "held_packets": pipeline.held_packets,
            "counts": dict(pipeline.counts),
            "stateless_hits": {
                (f"{rule.group}:" if rule.group else "") + str(rule.priority): hits
                for rule, hits in zip(pipeline.filter.rules, pipeline.filter.hits, strict=True)
                if hits
            },
            "stateless_default_hits": pipeline.filter.default_hits,
            "counters": pipeline.filter.counters,
            "rule_hits": hits,
            "rules_omitted": omitted,
            "pcre_gave_up": self.give_ups.counts(),
            "bugs": self.bugs,
            "log_dropped": self.log.dropped,
        }


def run(
    compiled: Compiled, settings: GenerationSettings, queue: int, leader: socket.socket, log: socket.socket
) -> None:
    """The worker process. Tells the leader ``ok`` or ``error: text``, then reads its queue."""
    process.no_dumps()
    try:
        worker = Worker(compiled, settings, queue, leader, log)
    except (QueueBusyError, PermissionError, OSError) as error:
        leader.sendall(f"error: {error}".encode())
        sys.exit(1)

    def stop(*_: object) -> None:
        worker.stopping = True

    signal.signal(signal.SIGTERM, stop)
    leader.sendall(b"ok")
    worker.run()

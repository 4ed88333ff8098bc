"""The TLS worker: sockets around :class:`engines.tls.session.Session`, plaintext through the inspector.

One process per core, one epoll loop, no threads. Accepts what the kernel's TPROXY hands over, dials the original
destination from the client's own address, and moves bytes between sockets, session and inspector::

    client socket ─► session.client_data ─► Plaintext ─► inspector ─► session.forward ─► SendUpstream ─► server socket

Nothing leaves before its verdict: plaintext the inspector still holds stays in this process. Who is served when is the
business of :mod:`nfw.rounds`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import select
import signal
import socket
import ssl
import sys
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from engines.counts import RuleCounts
from engines.stateful.inspector import FlowFacts, Inspector, Outcome, Segment, TlsFacts
from engines.tls import events as tls
from engines.tls.bypass import BypassList, Proof
from engines.tls.hiding import masking
from engines.tls.knownbad import KNOWN_BAD
from engines.tls.leaf import presented_chain
from engines.tls.names import covers
from engines.tls.revocation import Question
from engines.tls.scope import ScopeSet
from engines.tls.session import Session, State, TlsSettings
from engines.tls.splice import Splice
from engines.tls.status import FailAction, Status
from engines.tls.transparency import Logs
from engines.tls.verify import UpstreamVerifier, certificate_facts, parse_anchors, spki_sha256
from engines.verdict import Decision, Direction, Scope, Verdict
from nfw import events, process, tlsrecords
from nfw.claims import Claims
from nfw.collector import SpareCollector, SpareMemory
from nfw.flows.listing import Listings, session_flows
from nfw.giveups import GiveUps
from nfw.histogram import Histogram
from nfw.ipsets import SetTaker
from nfw.keyholder import RemoteKeys
from nfw.leafs import Answer, LeafDesk
from nfw.log import LogSender
from nfw.marks import Disposition, MarkLayout
from nfw.namedesk import NameDesk
from nfw.nativetls import NativeContext, NativeTlsError
from nfw.policy.model import Mode, Refusal, TlsAction, TlsKeywords, Upstream, WithoutSni
from nfw.policy.read_tls import public_keys
from nfw.proofs import Outcome as Proven
from nfw.revocationdesk import RevocationDesk
from nfw.revocationfetcher import Answer as FetcherAnswer
from nfw.rounds import SLICE_SECONDS, Rounds
from nfw.rulerows import STATUSES, status_row
from nfw.settings import GenerationSettings, most, pack, unpack
from nfw.sockets import READ_BYTES, SO_MARK, Side, dial
from nfw.suggestions import Suggestions
from nfw.tlsdebug import TlsRecorder
from nfw.tlsflow import Flow, flow_facts

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled
    from nfw.policy.model import Policy, Tls, Trust

HIGH_WATER = 1 << 20  # bytes waiting for a socket before the other side is no longer read
LOW_WATER = 256 * 1024
MAX_SESSIONS = 20_000  # per worker, about 100 KB each; more are reset (counted as ``session_table_full``)
LINGER_SECONDS = 5.0  # for the peers of a finished session to close, once everything was delivered
TICK_SECONDS = 0.1  # how late the log and what is held or about to be reset may be
SWEEP_SECONDS = 1.0  # between two looks at an ended session that is still delivering, and at unanswered questions
# Upper bounds in seconds of the handshake histogram's buckets; the last one has none.
HANDSHAKE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECHECK_SECONDS = 2.0  # at least, between two questions about the certificates of an open session
ACCEPTS = 64  # between two looks at the other sockets; one where nothing else happens
MESSAGE_BYTES = 1 << 20
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
SUGGESTIONS_TOLD = 100  # names; all workers of a generation must fit in one message of the leader


@dataclass(frozen=True, slots=True)
class Helpers:
    """Sockets to the processes a TLS worker asks. All but the first are there when the policy needs them."""

    holder: socket.socket
    fetcher: socket.socket | None = None
    resolver: socket.socket | None = None
    signer: socket.socket | None = None  # the key holder, too; there the worker waits for an answer


@dataclass(frozen=True, slots=True)
class Inbound:
    """Servers of one's own, as a worker knows them."""

    scope: ScopeSet
    settings: TlsSettings
    certificates: tuple[tuple[tuple[str, ...], NativeContext], ...]  # by the names they are for

    def certificate(self, name: str) -> NativeContext | None:
        return next((context for covered, context in self.certificates if covers(covered, name)), None)


class TlsWorker:
    """Accepts, dials, relays. All decisions come from the session, the inspector and the policy."""

    def __init__(
        self,
        compiled: Compiled,
        sessions: TlsSettings,
        settings: GenerationSettings,
        listeners: tuple[socket.socket, socket.socket],
        port: int,
        helpers: Helpers,
        leader: socket.socket,
        log: socket.socket,
        statuses: RuleCounts | None = None,
    ) -> None:
        self.policy = compiled.policy
        self.scopes = compiled.scopes
        self.statuses = RuleCounts(len(STATUSES)) if statuses is None else statuses
        self.ruleset = compiled.ruleset
        self.give_ups = GiveUps(compiled.ruleset, process.tell)
        self.sets = SetTaker(compiled.changing)
        self.port = port
        self.leader = leader
        self.holder = holder = helpers.holder
        holder.setblocking(False)
        layout = MarkLayout(settings.mark_mask)
        self.mark = layout.compose(settings.number, Disposition.OWN)
        self.log = LogSender(log, {"generation": settings.number}, compiled.policy.log.wanted)
        assert self.policy.tls is not None
        self.monitor = self.policy.mode is Mode.MONITOR
        self.settings = sessions
        self.scope_settings = scope_settings(self.policy.tls, self.settings)
        self.hides_quic = self.policy.tls.quic is not TlsAction.PASS and not self.monitor
        self.hides_ech = self.policy.tls.strip_ech and not self.monitor
        self.recheck = self.policy.tls.revocation.check and self.policy.tls.revocation.recheck
        self.session_holding = self.policy.tls.session_holding
        self.all_keywords = self.policy.tls.keywords is TlsKeywords.ALL
        self.idle_seconds = float(self.policy.flows.tcp_idle)
        self.inbound = inbound_servers(self.policy, sessions, helpers.signer)
        self.recorder: TlsRecorder | None = None
        if self.policy.tls.debug is not None:
            self.recorder = TlsRecorder(self.policy.tls.debug)
            for each in {id(one): one for one in (self.settings, *self.scope_settings)}.values():
                each.verifier.log_keys(self._log_keys)
            process.tell("tls.debug: SECRETS OF CHOSEN TLS SESSIONS ARE WRITTEN TO FILES")
        chain = presented_chain(parse_anchors(self.policy.tls.ca.certificate_pem)[0])
        self.desk: LeafDesk[Flow] = LeafDesk(holder, chain, self._prepare)
        self.fetcher = fetcher = helpers.fetcher
        self.resolver = helpers.resolver
        self.names: NameDesk[Flow] | None = None
        self.bypass = BypassList(self.policy.tls.bypass)
        self.suggestions = Suggestions()
        self.revocations: RevocationDesk[Flow] | None = None
        self.wall = time.time() - time.monotonic()
        self.flows: OrderedDict[int, Flow] = OrderedDict()
        self.listings = Listings(lambda now: session_flows(self.flows, now))
        self.rounds = Rounds(self.flows, self._io, self._check, self._due, self._bug)
        self.claims: Claims | None = None
        if Proof.CERTIFICATE in self.policy.tls.bypass_proof:
            timeout = sessions.connect_timeout
            self.claims = Claims(self._new_session, self._dial, self._drain, self.rounds.answer, self._count, timeout)
        for listener in listeners:
            self.rounds.hear(listener.fileno(), functools.partial(self._accept, listener))
        self.rounds.hear(leader.fileno(), self._command)
        self.rounds.hear(holder.fileno(), self._leafs)
        if fetcher is not None:
            fetcher.setblocking(False)
            self.revocations = RevocationDesk(fetcher)
            self.rounds.hear(fetcher.fileno(), self._revocations)
        if self.resolver is not None:
            self.resolver.setblocking(False)
            self.names = NameDesk(self.resolver)
            self.rounds.hear(self.resolver.fileno(), self._resolved)
        self.flushing: deque[tuple[deque[int], int]] = deque()  # of one request each: who is left, how many have ended
        self.next_flow = (settings.number << 40) + (time.time_ns() & 0xFFFFFFFF) * 256
        self.next_sweep = 0.0
        self.collector = SpareCollector(time.monotonic())
        self.memory = SpareMemory()
        self.counts: dict[str, int] = {}
        self.verdicts: dict[tuple[str, str, str], int] = {}  # (stage, verdict, reason) -> sessions so ended
        self.handshakes = Histogram(HANDSHAKE_BUCKETS)  # of sessions, from accept to both handshakes done
        self.bytes = [0, 0]  # plaintext, by direction
        self.stopping = False
        self.bugs = 0

    # -- loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM or the leader's end."""
        next_tick = 0.0
        worked = False
        while not self.stopping:
            patience = TICK_SECONDS if self.flows or worked else 1.0
            worked = self.rounds.round(0.0 if self.flushing else patience)
            self._flush()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self._tick(now)
                self.memory.look(len(self.flows), calm=not worked)
                self.log.flush()
        self.log.flush()

    def _bug(self, flow: Flow) -> None:
        """One met by one flow."""
        self.bugs += 1
        if self.bugs <= 20:
            traceback.print_exc()
        self._count("bug")
        self._destroy(flow, "reset", time.monotonic(), "internal_error")

    def _due(self, flow: Flow) -> float:
        """When something may be due, but not at every round."""
        soon = self.rounds.polled + TICK_SECONDS
        if flow.finished_at:
            resetting = any(side.resetting for side in flow.sides())
            return soon if resetting else soon - TICK_SECONDS + SWEEP_SECONDS
        when, deadline = flow.last + self.idle_seconds, flow.session.deadline
        if deadline is not None and deadline < when:
            when = deadline
        if flow.held_since and flow.inspector is not None:
            when = min(when, flow.held_since + flow.inspector.hold_seconds)
        if self.recheck and self._rests_on_revocation(flow):
            when = min(when, flow.recheck_at)
        if when == deadline and flow.session.state is State.RELAY:
            return when  # a server waits for the end of its handshake; met once, and gone
        return when if when > soon else soon

    def _prepare(self, context: SSL.Context) -> None:
        if self.recorder is not None:
            context.set_keylog_callback(self._log_keys)

    def _log_keys(self, _: SSL.Connection, line: bytes) -> None:
        """OpenSSL has new keys, while something is done for the flow they are of."""
        if self.recorder is not None and self.rounds.current is not None and self.rounds.current.recorded:
            self.recorder.keys(line)

    def _tick(self, now: float) -> None:
        self.wall = time.time() - time.monotonic()  # the clock may have been set
        self.give_ups.look(now)
        if now < self.next_sweep:
            return
        self.next_sweep = now + SWEEP_SECONDS
        self.listings.expire(now)
        self.collector.look(len(self.flows), now)
        if self.names is not None:
            for flow in self.names.overdue(now):
                if flow.key in self.flows:
                    self.rounds.guard(flow, self._placed, flow, "no_answer", now)
        self.desk.ask_again(now, lambda flow: flow.key in self.flows and flow.session.state is State.LEAF)
        if self.revocations is not None:
            self.revocations.ask_again(
                now, lambda flow: flow.key in self.flows and flow.session.state in (State.ISSUERS, State.REVOCATION)
            )

    def _rests_on_revocation(self, flow: Flow) -> bool:
        """An open session whose server is good until an answer ends."""
        if not flow.decrypted or flow.session.state is not State.RELAY:
            return False
        found = flow.session.info.revocation
        return found is not None and found.finding.settled

    def _recheck(self, flow: Flow, now: float) -> None:
        """The answer an open session rests on has ended: ask again. It goes on unless somebody says REVOKED."""
        found = flow.session.info.revocation
        assert found is not None
        unix = now + self.wall
        if not flow.recheck_at or unix < found.finding.until:
            flow.recheck_at = now + max(RECHECK_SECONDS, found.finding.until - unix)
            return
        flow.recheck_at = now + RECHECK_SECONDS
        for question in flow.session.info.questions:
            self._ask_revocation(flow, question, now)
        self._drain(flow, now)

    def _check(self, flow: Flow, served: float, now: float) -> None:
        """What time alone brings about; ``served``: everything that was ready by then has been seen to."""
        if not flow.finished_at and self.recheck and served >= flow.recheck_at and self._rests_on_revocation(flow):
            self._recheck(flow, now)
            if flow.key not in self.flows:
                return
        deadline = flow.session.deadline
        if flow.finished_at:
            self._settle(flow, now)
        elif served - flow.last > self.idle_seconds:
            self._count("idle")
            self._destroy(flow, "reset", now, "idle_timeout")
        elif deadline is not None and served >= deadline:
            flow.session.tick(now)
            self._drain(flow, now)
        elif flow.held_since and flow.inspector is not None and served - flow.held_since > flow.inspector.hold_seconds:
            flow.held_since = 0.0
            if not self._judged(flow, flow.inspector.hold_expired(now), now):
                self._release(flow, now, everything=True)
            self._drain(flow, now)

    # -- sockets ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, _: float) -> None:
        if self.rounds.crowded:
            return
        for _ in range(1 if self.rounds.calm else ACCEPTS):
            now = time.monotonic()
            try:
                sock, source = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._count("out_of_files")
                    time.sleep(0.01)  # nothing can be accepted before something closes; spinning would not help
                    return
                continue
            destination = sock.getsockname()
            if destination[1] == self.port or len(self.flows) >= MAX_SESSIONS:
                # The first is somebody talking to the listener itself: dialling on would come back here for ever.
                self._count("listener_addressed" if destination[1] == self.port else "session_table_full")
                Side(sock).close("reset")
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.mark)  # by which what it leaves behind is found
            self.next_flow += 1
            facts = flow_facts(self.next_flow, source, destination)
            inbound = self._inbound(facts) if self.inbound else None
            scope = self._scope(facts)
            settings = inbound.settings if inbound else self._settings_of(scope)
            session = self._session_of(settings, source, destination, now)
            flow = Flow(Side(sock), facts, source, destination, session, now)
            flow.inbound, flow.scope = inbound, scope
            session.info.inbound = inbound is not None
            self.flows[flow.key] = flow
            self.rounds.guard(flow, self._open, flow, now)

    def _inbound(self, facts: FlowFacts) -> Inbound | None:
        ends = facts.client, facts.server, facts.client_port, facts.server_port
        return next((one for one in self.inbound if one.scope.covers_tuple(*ends)), None)

    def _scope(self, facts: FlowFacts) -> int | None:
        if self.scopes is None:
            return None
        return self.scopes.first(facts.client, facts.server, facts.client_port, facts.server_port)

    def _settings_of(self, scope: int | None) -> TlsSettings:
        """Those behind the policy's own are scopes of inspected servers."""
        return self.settings if scope is None or scope >= len(self.scope_settings) else self.scope_settings[scope]

    def _open(self, flow: Flow, now: float) -> None:
        if self.scopes is not None and flow.scope is not None:
            self.scopes.counts.add(flow.scope, 0, now, flow=True)
        self._begin_inspection(flow, now)

    def _begin_inspection(self, flow: Flow, now: float) -> None:
        if self.ruleset is not None:
            flow.inspector = Inspector(self.ruleset, flow.facts, now, decrypted=True)
            syn = Segment(Direction.TO_SERVER, False, b"", b"", None, now)
            self._judged(flow, flow.inspector.inspect(syn), now)

    def _connect_upstream(self, flow: Flow, _: tls.ConnectUpstream, now: float) -> None:
        self._leave_upstream(flow, "close")  # where the server is called once more
        if flow.claim is None or flow.decrypted:
            self._dial(flow, now)
        else:
            assert self.claims is not None
            self.claims.decide(flow, now)

    def _dial(self, flow: Flow, now: float) -> None:
        try:
            side, result = dial(flow.family, flow.source[0], flow.destination[:2], self.mark)
        except OSError as error:  # no descriptor left
            self._count("out_of_files")
            flow.session.upstream_failed(f"connect: {error.strerror}", now)
            return
        flow.upstream = side
        flow.connecting = True
        if result not in (0, errno.EINPROGRESS):
            self._dial_failed(flow, side, result, now)

    def _dial_failed(self, flow: Flow, side: Side, code: int, now: float) -> None:
        flow.connecting = False
        self._close_side(side, "close")
        flow.session.upstream_failed(f"connect: {errno.errorcode.get(code, code)}", now)

    def _dialled(self, flow: Flow, side: Side, now: float) -> None:
        code = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dial_failed(flow, side, code, now)
        else:
            flow.connecting = False
            flow.session.upstream_connected(now)
        self._drain(flow, now)

    def _io(self, flow: Flow, side: Side, mask: int, now: float) -> None:
        if not flow.finished_at:
            flow.last = now
        if flow.connecting and side is flow.upstream:
            self._dialled(flow, side, now)
            return
        if mask & select.EPOLLOUT and side.out:
            self._send(flow, side, now)
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and side.open:
            self._read(flow, side, mask, now)

    def _read(self, flow: Flow, side: Side, mask: int, now: float) -> None:
        if side.ended:  # FIN was read before, so this can only be a reset after it
            if mask & (select.EPOLLHUP | select.EPOLLERR):
                self._was_reset(flow, side, now)
            return
        is_client = side is flow.client
        way = _TO_SERVER if is_client else _TO_CLIENT
        if not side.discarding and not mask & select.EPOLLERR and (side.paused or not flow.session.wants(way)):
            side.unwanted = True
            if mask & select.EPOLLHUP:
                side.hung_up = True
                self.rounds.unwatch(side)
            return
        try:
            data = side.receive()
        except OSError:
            self._was_reset(flow, side, now)
            return
        if data is None:
            return
        side.ended = not data
        if flow.finished_at:
            if side.ended:
                self._settle(flow, now)
            return
        side.answered = False
        if data:
            (flow.session.client_data if is_client else flow.session.upstream_data)(data, now)
        else:
            (flow.session.client_eof if is_client else flow.session.upstream_eof)(now)
        self._drain(flow, now)
        if data and not side.answered and side.open and _only_ended_its_handshake(flow, way):
            side.acknowledge()
        if data and mask & select.EPOLLRDHUP and len(data) < READ_BYTES and side.open and flow.key in self.flows:
            self._read(flow, side, mask & ~select.EPOLLRDHUP, now)  # the end came with it

    def _was_reset(self, flow: Flow, side: Side, now: float) -> None:
        side.ended = side.broken = True
        side.forget()
        self.rounds.unwatch(side)
        if flow.finished_at:
            self._settle(flow, now)
            return
        side.hung_up = True
        flow.cut = True
        (flow.session.client_reset if side is flow.client else flow.session.upstream_reset)(now)
        self._drain(flow, now)

    def _queue(self, flow: Flow, side: Side | None, data: bytes, now: float) -> None:
        if side is not None and side.open and data:
            side.write(data)
            self._sent(flow, side, now)

    def _send(self, flow: Flow, side: Side, now: float) -> None:
        side.send()
        self._sent(flow, side, now)

    def _sent(self, flow: Flow, side: Side, now: float) -> None:
        """A slow reader stops its sender: nothing is read while HIGH_WATER bytes wait."""
        if flow.finished_at:
            self._settle(flow, now)
            return
        if side.broken and side.ended:
            self._was_reset(flow, side, now)  # nobody reads here any more, who would find out
            return
        source = flow.upstream if side is flow.client else flow.client
        if source is None or not source.open:
            return
        if source.paused:
            source.paused = side.waiting >= LOW_WATER
        elif side.waiting > HIGH_WATER:
            source.paused = True

    def _close_side(self, side: Side, how: str) -> None:
        self.rounds.unwatch(side, closing=True)
        side.close(how)

    # -- session events --------------------------------------------------------------------------------------------

    def _drain(self, flow: Flow, now: float) -> None:
        """Carry out what the session asks until it asks nothing more."""
        flows, key = self.flows, flow.key
        while key in flows and (batch := flow.session.events()):
            for event in batch:
                HANDLERS[type(event)](self, flow, event, now)
                if key not in flows:
                    return

    def _send_client(self, flow: Flow, event: tls.SendClient, now: float) -> None:
        self._queue(flow, flow.client, event.data, now)

    def _send_upstream(self, flow: Flow, event: tls.SendUpstream, now: float) -> None:
        self._queue(flow, flow.upstream, event.data, now)

    def _need_issuers(self, flow: Flow, event: tls.NeedIssuers, now: float) -> None:
        assert self.revocations is not None
        issuers = self.revocations.ask_issuers(event.certificate, flow, now)
        if issuers is not None:
            _session(flow).issuers_found(issuers, now)

    def _need_revocation(self, flow: Flow, event: tls.NeedRevocation, now: float) -> None:
        for question in event.questions:
            self._ask_revocation(flow, question, now)

    def _need_leaf(self, flow: Flow, event: tls.NeedLeaf, now: float) -> None:
        if (flow.claim is not None and self._refuted(flow, now)) or self._verified(flow, now):
            return
        if flow.inbound is not None:
            self._own_certificate(flow, flow.inbound, now)
            return
        context = self.desk.ask(event.key, event.request, flow, now, now + self.wall)
        if context is not None:
            _session(flow).leaf_ready(context, now)

    def _close_client(self, flow: Flow, event: tls.CloseClient, now: float) -> None:
        self._close(flow, flow.client, event.how, event.last, now)

    def _close_upstream(self, flow: Flow, event: tls.CloseUpstream, now: float) -> None:
        self._close(flow, flow.upstream, event.how, event.last, now)

    def _established(self, flow: Flow, event: tls.Established, now: float) -> None:
        if flow.recorded and self.recorder is not None:
            self.recorder.begin(flow.facts, now + self.wall)
        if event.info.client is not None:
            port = flow.facts.server_port
            flow.mask = masking(event.info.client.alpn, port, offers=self.hides_quic, keys=self.hides_ech)
        self.handshakes.observe(now - flow.started)

    def _hello(self, flow: Flow, event: tls.Hello, now: float) -> None:
        facts, hello = flow.facts, event.hello
        if flow.claim is not None:
            _session(flow).proceed(now, proving=True)
            return
        flow.recorded = self.recorder is not None and self.recorder.wants(facts, hello.sni or "")
        client, server = (facts.client, facts.client_port), (facts.server, facts.server_port)
        if flow.inbound is not None:
            if flow.inbound.certificate(hello.sni or "") is None:
                self._count("no_certificate")
                if self.monitor:
                    self._splice(flow, "monitor", now)
                    return
                detail = f"no certificate for {hello.sni} is given for these servers"
                flow.session.end(self.settings.on_failure, "no_certificate", detail)
            else:
                self._decrypt(flow, hello, now)
            return
        if hello.sni is not None and self.bypass.covers(hello.sni, client, server):
            why = "not_asked" if self.names is None else self.names.ask(hello.sni, facts.server, flow, now)
            if why is not None:
                self._placed(flow, why, now)
        else:
            self._decrypt(flow, hello, now)

    def _own_certificate(self, flow: Flow, inbound: Inbound, now: float) -> None:
        context = inbound.certificate(flow.session.info.sni or "")
        try:
            assert context is not None
            _session(flow).leaf_ready(context, now)
        except NativeTlsError as error:
            _session(flow).leaf_failed(str(error), now)

    def _pass_on(self, flow: Flow, event: tls.PassOn, now: float) -> None:
        """Mode monitor: the client and the server are left to themselves, so that the client is shown what the server
        is. What would have ended the connection is recorded at once."""
        info, status = flow.session.info, event.status.value
        self._leave_upstream(flow, "reset")
        if flow.inspector is not None and self.ruleset.logs:
            flow.inspector.log_rest()
            self._transactions(flow, flow.inspector, now)
        flow.inspector = None  # it would not have got any further
        if flow.claim is not None and self.claims is not None:
            self.claims.settle(flow, Proven.REFUTED, now)
        info.bypass = "monitor"
        flow.would_be = event
        self._count(f"tls_{status.lower()}")
        self._verdict("tls", f"would_{event.action.value}", event.reason)
        record = tlsrecords.tls(flow.facts, status, "pass", event.reason, event.detail, info, None, now + self.wall)
        record["verdict"] = {"action": event.action.value}
        self._write(record)
        flow.session = Splice(info, event.data, self.settings.connect_timeout, now)

    def _resolved(self, since: float) -> None:
        assert self.names is not None
        try:
            for flow, why in self.names.answers():
                self.rounds.answer(flow, self._placed, (why,), since)
        except (OSError, EOFError):
            self.stopping = True

    def _placed(self, flow: Flow, why: str, now: float) -> None:
        """Whether the destination is one of the exempted name's addresses: ``why`` is "" or why nobody can say so."""
        session, hello = flow.session, flow.session.info.hello
        if not isinstance(session, Session) or session.state is not State.HELD or hello is None:
            return  # the client has left meanwhile
        if not why:
            self._splice(flow, "dns", now)
        elif self.claims is not None:
            self.claims.begin(flow, hello, why, id(self._settings_of(flow.scope)))
            self._splice(flow, "", now)
        else:
            session.info.bypass_refused = why
            self._count("bypass_refused")
            self._decrypt(flow, hello, now)
        self._drain(flow, now)

    def _splice(self, flow: Flow, why: str, now: float) -> None:
        """The flow goes on as it is, from the hello on; with "" it has yet to be proven that it may."""
        session = _session(flow)
        session.info.bypass = why
        if why:
            self._count("bypassed")
        if flow.inspector is not None:
            flow.inspector.not_decrypted()
        flow.session = Splice(session.info, session.release(), self.settings.connect_timeout, now)

    def _new_session(self, flow: Flow, now: float) -> Session:
        return self._session_of(self._settings_of(flow.scope), flow.source, flow.destination, now)

    def _session_of(
        self, settings: TlsSettings, source: tuple[Any, ...], destination: tuple[Any, ...], now: float
    ) -> Session:
        client, server = source[0].partition("%")[0], destination[0].partition("%")[0]
        return Session(settings, now, now + self.wall, server, client, destination[1])

    def _leave_upstream(self, flow: Flow, how: str) -> None:
        """The server may be called anew."""
        if flow.upstream is not None:
            self._close_side(flow.upstream, how)
        flow.upstream, flow.connecting, flow.cut = None, False, False

    def _proven(self, flow: Flow, _: tls.Proven, now: float) -> None:
        assert self.claims is not None
        self._leave_upstream(flow, "close")
        self.claims.proven(flow, now)

    def _refuted(self, flow: Flow, now: float) -> bool:
        """The server may be spoken to, but has not proven to be the exempted name's: the flow is decrypted as any
        other. True: that was its end."""
        assert self.claims is not None
        assert flow.session.info.hello is not None
        self.claims.settle(flow, Proven.REFUTED, now)
        flow.bytes = [0, 0]
        self._begin_inspection(flow, now)
        self._decrypt(flow, flow.session.info.hello, now)
        return flow.session.state is not State.LEAF

    def _decrypt(self, flow: Flow, hello: Any, now: float) -> None:
        if flow.inspector is not None:
            facts = TlsFacts.from_hello(hello)
            if not self.all_keywords:
                facts = facts.name_only()
            outcome = flow.inspector.tls_hello(facts, now, self.session_holding, self.all_keywords)
            if self._judged(flow, outcome, now):
                return
        _session(flow).proceed(now)

    def _ask_revocation(self, flow: Flow, question: Question, now: float) -> None:
        assert self.revocations is not None
        finding = self.revocations.ask(question, flow, now, now + self.wall)
        if finding is not None:
            _session(flow).revocation_found(question.depth, finding, now)

    def _revocations(self, since: float) -> None:
        assert self.revocations is not None
        try:
            for flow, depth, finding in self.revocations.answers(self.rounds.polled):
                self.rounds.answer(flow, self._revocation, (depth, finding), since)
        except (OSError, EOFError):
            self.stopping = True

    def _revocation(self, flow: Flow, depth: int, finding: FetcherAnswer, now: float) -> None:
        session = flow.session
        if not isinstance(session, Session):
            return  # it was handed on undecrypted meanwhile
        if isinstance(finding, tuple):
            session.issuers_found(finding, now)
        else:
            session.revocation_found(depth, finding, now)
        self._drain(flow, now)

    def _verified(self, flow: Flow, now: float) -> bool:
        """The server has shown who it is: what rules say about that, before the client sees a certificate. True: the
        flow is over."""
        chain = flow.session.info.chain
        if flow.inspector is None or not self.all_keywords or chain is None:
            return False
        # The trust anchor comes from our store, whether or not the server has sent it, too.
        shown = chain.certificates if chain.unverified else chain.certificates[:-1] or chain.certificates
        certificates = [certificate.der for certificate in shown]
        return self._judged(flow, flow.inspector.tls_server(certificates, now), now)

    def _leafs(self, since: float) -> None:
        try:
            for answer in self.desk.answers():
                for flow in answer.waiting:
                    self.rounds.answer(flow, self._leaf, (answer,), since)
        except (OSError, EOFError):
            self.stopping = True  # the leader, who keeps the other end open, is gone

    def _leaf(self, flow: Flow, answer: Answer[Flow], now: float) -> None:
        session = flow.session
        if not isinstance(session, Session):
            return  # as above
        if answer.context is not None:
            session.leaf_ready(answer.context, now)
        else:
            session.leaf_failed(answer.error, now)
        self._drain(flow, now)

    # -- plaintext -------------------------------------------------------------------------------------------------

    def _plaintext(self, flow: Flow, event: tls.Plaintext, now: float) -> None:
        inspector, direction, data = flow.inspector, event.direction, event.data
        if flow.finished_at:
            return
        flow.bytes[direction] += len(data)
        if flow.recorded and self.recorder is not None:
            self.recorder.plaintext(flow.facts, direction, data, now + self.wall)
        if flow.decrypted:
            self.bytes[direction] += len(data)
        if inspector is None or (inspector.finished and not flow.pending[direction]):
            self._forward(flow, direction, data)
            return
        if self._judged(flow, inspector.inspect(Segment(direction, True, data, data, None, now)), now):
            return
        if not any(flow.pending) and not any(inspector.held):
            self._forward(flow, direction, data)
            return
        flow.pending[direction] += data
        self._release(flow, now)

    def _forward(self, flow: Flow, direction: Direction, data: bytes) -> None:
        """Judged bytes go on, offers of QUIC hidden."""
        session = flow.session if flow.claim is None else flow.claim.splice or flow.session
        if flow.mask is None:
            session.forward(direction, data)
            return
        session.forward(direction, flow.mask.feed(direction, data))
        if flow.mask.refused and isinstance(session, Session):
            session.violated(flow.mask.refused, "what the server sends cannot be read, nor kept until it can")

    def _plaintext_end(self, flow: Flow, event: tls.Eof, now: float) -> None:
        direction = event.direction
        flow.pending_end[direction] = True
        if flow.inspector is not None and self._judged(flow, flow.inspector.close(direction, now), now):
            return
        self._release(flow, now, ended=direction)

    def _release(self, flow: Flow, now: float, *, everything: bool = False, ended: Direction | None = None) -> None:
        """Hand on what has been judged, in both directions: a response may settle what a request left open."""
        held_any = moved = False
        for direction in (_TO_SERVER, _TO_CLIENT):
            pending = flow.pending[direction]
            held = 0
            if flow.inspector is not None and not everything and direction is not ended:
                held = min(flow.inspector.held[direction], len(pending))
            free = len(pending) - held
            if free:
                data = bytes(memoryview(pending)[:free])
                del pending[:free]
                self._forward(flow, direction, data)
            if held:
                held_any = True
                moved = moved or free > 0  # what is held now is not what was held before
            if flow.pending_end[direction] and not pending:
                flow.pending_end[direction] = False
                if flow.mask is not None:
                    flow.session.forward(direction, flow.mask.rest(direction))
                flow.session.forward_eof(direction)
        if not held_any:
            flow.held_since = 0.0
        elif moved or not flow.held_since:
            flow.held_since = now

    def _judged(self, flow: Flow, outcome: Outcome, now: float) -> bool:
        """Log alerts; end the flow when the decision is against it. True: it has ended."""
        if flow.inspector is not None and flow.inspector.transactions:
            self._transactions(flow, flow.inspector, now)
        for alert in outcome.alerts:
            flow.alerted = True
            self._count("alert")
            self._write(tlsrecords.alert(flow.facts, alert, flow.decrypted, now + self.wall))
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            if decision.scope is Scope.FLOW:
                flow.decision = decision
            return False
        if self.monitor:
            self._would_end(flow, decision, now)
            return False
        flow.decision = decision
        self._count(decision.reason)
        self._verdict("decrypted", decision.verdict.value, decision.reason)
        self._write(tlsrecords.drop(flow.facts, decision, now + self.wall))
        for pending in flow.pending:
            pending.clear()
        how = FailAction.REJECT if decision.verdict is Verdict.REJECT else FailAction.DROP
        flow.session.end(how, decision.reason, str(decision.rule or ""))
        self._drain(flow, now)
        return True

    def _would_end(self, flow: Flow, decision: Decision, now: float) -> None:
        """Mode monitor: record what would have been. The inspector has decided about the flow and lets the rest go."""
        key = f"{decision.reason}:{decision.rule}"
        if decision.reason == "flow_drop" or key in flow.told or len(flow.told) >= 32:
            return
        flow.told.add(key)
        flow.blocked = flow.blocked or decision
        self._count(decision.reason)
        self._verdict("decrypted", f"would_{decision.verdict.value}", decision.reason)
        self._write(tlsrecords.drop(flow.facts, decision, now + self.wall))

    def _write(self, event: dict[str, Any]) -> None:
        self.log.write(events.only_watched(event) if self.monitor else event)

    def _transactions(self, flow: Flow, inspector: Inspector, now: float) -> None:
        for kind, tx_id, fields in inspector.transactions:
            at = now + self.wall
            self._write(tlsrecords.transaction(flow.facts, kind, tx_id, fields, flow.decrypted, at))
        inspector.transactions.clear()

    # -- end -------------------------------------------------------------------------------------------------------

    def _close(self, flow: Flow, side: Side | None, how: tls.Close, last: bytes, now: float) -> None:
        if side is None or not side.open:
            return
        if how is tls.Close.RESET:
            if flow.cut and side.undelivered():
                side.resetting = True  # TCP would have delivered what was sent before the reset, so do we
            else:
                self._close_side(side, "reset")
            return
        if how is tls.Close.SILENT:
            side.forget()
            side.discarding = True
        side.closing = True
        if last:
            side.queue(last)
        self._send(flow, side, now)

    def _finished(self, flow: Flow, event: tls.Finished, now: float) -> None:
        """The session is over. Its sockets stay until what is queued was delivered and the peers have closed."""
        if flow.claim is not None and self.claims is not None:
            over = event.status in (Status.ABORTED, Status.POLICY) or not flow.decrypted
            self.claims.settle(flow, Proven.OPEN if over else Proven.REFUTED, now)
        if event.reason == "client_refused" and event.info.sni is not None:
            self.suggestions.refused(event.info.sni, event.info.client_alert)
        app_proto = flow.inspector.app_proto if flow.inspector is not None else ""
        self._log_end(flow, event.status.value, event.reason, event.detail, app_proto, now)
        flow.finished_at = flow.last = now
        flow.inspector = None
        flow.held_since = 0.0
        for side in flow.sides():
            side.discarding = True
            if side is flow.upstream and flow.connecting:
                self._close_side(side, "close")
            elif not side.resetting:
                side.closing = True
                side.send()
        flow.connecting = False
        self._settle(flow, now)

    def _settle(self, flow: Flow, now: float) -> None:
        """Close what a finished session no longer needs, and forget it with the last of its sockets.

        A peer that reads slowly gets all the time it needs, one that stopped reading as long as an idle session.
        """
        for side in flow.sides():
            undelivered = side.undelivered()
            if undelivered < side.unacked:
                flow.last = now
            side.unacked = undelivered
            patience = self.idle_seconds if undelivered else LINGER_SECONDS
            if side.resetting and not undelivered:
                self._close_side(side, "reset")
            elif side.ended and not side.out and not side.resetting:
                self._close_side(side, "close")  # the kernel delivers the rest
            elif now - flow.last > patience:
                self._close_side(side, "reset" if undelivered else "close")
        if not flow.sides():
            self._destroy(flow, "close", now, "")

    def _destroy(self, flow: Flow, how: str, now: float, reason: str) -> None:
        """Close what is open and forget the flow."""
        if self.flows.pop(flow.key, None) is None:
            return
        self.rounds.forget(flow.key)
        if flow.claim is not None and self.claims is not None:
            self.claims.settle(flow, Proven.OPEN, now)
        for side in flow.sides():
            self._close_side(side, how)
        if isinstance(flow.session, Session):
            flow.session.abandon(now)
        app_proto = flow.inspector.app_proto if flow.inspector is not None else ""
        self._log_end(flow, "ENDED", reason, "", app_proto, now)

    def end_all(self, action: str) -> None:
        """The generation ends: every session is dropped (nothing is sent) or rejected (RST to both sides). At once,
        however many there are: nobody is left who would have a turn."""
        now = time.monotonic()
        for flow in list(self.flows.values()):
            self._destroy(flow, "reset" if action == "reject" else "silent", now, "policy_change")
        self.stopping = True

    def _flush(self) -> None:
        """A slice of the sessions to be ended by hand, as ``open_flows`` says. Whoever asked hears in the end how many
        of them were open."""
        until = time.monotonic() + SLICE_SECONDS
        how = "reset" if self.policy.open_flows.action is Refusal.REJECT else "silent"
        while self.flushing:
            numbers, ended = self.flushing[0]
            while numbers:
                flow, now = self.flows.get(numbers.popleft()), time.monotonic()
                if flow is not None and not flow.finished_at:
                    self._destroy(flow, how, now, "flushed")
                    ended += 1
                    self.flushing[0] = numbers, ended
                if now >= until:
                    return
            self.flushing.popleft()
            self._reply("flush", ended)

    def _command(self, _: float) -> None:
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
        elif kind == "flows":
            reply = self.listings.page(body, time.monotonic())
        elif kind == "flush":
            self.flushing.append((deque(body), 0))
            return
        elif kind == "sets":
            reply = self.sets.take(body)
        elif kind == "end":
            self.end_all(str(body.get("action", "drop")))
        self._reply(kind, reply)

    def _reply(self, kind: str, reply: Any) -> None:
        with contextlib.suppress(OSError):
            self.leader.send(pack(kind, reply))

    def stats(self) -> dict[str, Any]:
        """Counters for ``nfw status``."""
        hits, omitted = most(self.ruleset.hit_counts() if self.ruleset is not None else {})
        return {
            "sessions": len(self.flows),
            "max_sessions": MAX_SESSIONS,
            "bytes": list(self.bytes),
            "counts": dict(self.counts),
            "verdicts": {"/".join(key): count for key, count in self.verdicts.items()},
            "handshakes": self.handshakes.values(),
            "leafs": len(self.desk),
            "revocations": len(self.revocations) if self.revocations is not None else 0,
            "revocation": self.revocations.stats() if self.revocations is not None else {},
            "leaf_cache": {"hits": self.desk.cache.hits, "misses": self.desk.cache.misses},
            "rule_hits": hits,
            "scope_hits": {
                f"scope {number}": hits
                for number, hits in enumerate(self.scopes.counts.own_hits() if self.scopes is not None else (), 1)
            },
            "rules_omitted": omitted,
            "pcre_gave_up": self.give_ups.counts(),
            **({"tls_debug": self.recorder.stats()} if self.recorder is not None else {}),
            "bypass_suggestions": self.suggestions.most(SUGGESTIONS_TOLD),
            "bugs": self.bugs,
            "log_dropped": self.log.dropped,
        }

    def _verdict(self, stage: str, verdict: str, reason: str) -> None:
        key = (stage, verdict, reason)
        self.verdicts[key] = self.verdicts.get(key, 0) + 1

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _action(self, flow: Flow, status: str) -> str:
        """What became of a session that ended like this: pass, drop or reject."""
        if status in ("OK", "BYPASSED", "ABORTED", "ENDED"):
            return "pass"
        if status == "POLICY" and flow.decision is not None:
            return flow.decision.verdict.value
        return self.settings.actions.get(Status(status), self.settings.on_failure).value

    def _log_end(self, flow: Flow, status: str, reason: str, detail: str, app_proto: str, now: float) -> None:
        """The two records every session has, once."""
        if flow.logged:
            return
        flow.logged = True
        if flow.recorded and self.recorder is not None:
            self.recorder.end(flow.facts, now + self.wall)
        carried = sum(flow.bytes)
        told = status if flow.would_be is None else flow.would_be.status.value
        self.statuses.add(status_row(told), carried, now, flow=True)
        if self.scopes is not None and flow.scope is not None:
            self.scopes.counts.octets[flow.scope] += carried
        if reason.endswith("_timeout"):
            self._count("timed_out")
        passed_on = flow.would_be is not None
        if not passed_on:
            self._count(f"tls_{status.lower()}")
        if not passed_on and status not in ("OK", "BYPASSED", "POLICY", "ABORTED", "ENDED"):
            self._verdict("tls", self._action(flow, status), reason)
        if flow.inspector is not None and self.ruleset is not None and self.ruleset.logs:
            flow.inspector.log_rest()
            self._transactions(flow, flow.inspector, now)
        at = now + self.wall
        if not passed_on:
            action, decision = self._action(flow, status), flow.blocked or flow.decision
            self._write(tlsrecords.tls(flow.facts, status, action, reason, detail, flow.session.info, decision, at))
        started = flow.started + self.wall
        self._write(
            tlsrecords.flow(flow.facts, flow.bytes, app_proto, flow.alerted, flow.decrypted, reason, started, at)
        )


HANDLERS: dict[type, Callable[..., None]] = {
    tls.SendClient: TlsWorker._send_client,
    tls.SendUpstream: TlsWorker._send_upstream,
    tls.Plaintext: TlsWorker._plaintext,
    tls.Hello: TlsWorker._hello,
    tls.PassOn: TlsWorker._pass_on,
    tls.ConnectUpstream: TlsWorker._connect_upstream,
    tls.Proven: TlsWorker._proven,
    tls.NeedIssuers: TlsWorker._need_issuers,
    tls.NeedRevocation: TlsWorker._need_revocation,
    tls.NeedLeaf: TlsWorker._need_leaf,
    tls.Eof: TlsWorker._plaintext_end,
    tls.CloseClient: TlsWorker._close_client,
    tls.CloseUpstream: TlsWorker._close_upstream,
    tls.Finished: TlsWorker._finished,
    tls.Established: TlsWorker._established,
}
"""What a worker does about each event of a session."""


def _session(flow: Flow) -> Session:
    """The session of a flow that is being decrypted; no other asks for a leaf or for revocation."""
    assert isinstance(flow.session, Session)
    return flow.session


def _only_ended_its_handshake(flow: Flow, way: Direction) -> bool:
    """The sender has said nothing yet but what ends its handshake: a client's Finished, or a server's tickets, which
    come right before its answer since it has got our Finished with the request."""
    session = flow.session
    return isinstance(session, Session) and session.state is State.RELAY and not session.info.plaintext[way]


def server_files(policy: Policy) -> list[tuple[Path, Path]]:
    """Certificate and key of every server that is inspected, in the order its key is numbered."""
    return [files for inbound in policy.inspected_inbound for files in inbound.files or ()]


def inbound_servers(policy: Policy, sessions: TlsSettings, signer: socket.socket | None) -> tuple[Inbound, ...]:
    """``sessions``: the settings of all others. Raises ValueError for a certificate that cannot be used."""
    found: list[Inbound] = []
    number = 0
    for inbound in policy.inspected_inbound:
        assert policy.tls is not None
        assert signer is not None
        keys = RemoteKeys(signer)
        certificates = []
        leafs = []
        for one in inbound.certificates:
            chain = x509.load_pem_x509_certificates(one.certificate_pem)
            try:
                context = NativeContext(chain, functools.partial(keys.sign, number))
            except NativeTlsError as error:
                raise ValueError(f"{one.certificate}: {error}") from error
            certificates.append((certificate_facts(chain[0]).dns_names, context))
            leafs.append(chain[0])
            number += 1
        settings = sessions
        if policy.tls.inbound_upstream is Upstream.PINNED:
            pinned = UpstreamVerifier(leafs, partial_chain=True)
            settings = dataclasses.replace(settings, verifier=pinned, revocation=False)
        found.append(Inbound(ScopeSet(inbound.scopes), settings, tuple(certificates)))
    return tuple(found)


def scope_settings(policy: Tls, default: TlsSettings) -> tuple[TlsSettings, ...]:
    """As ``default``, for each scope of the policy; the same object for those that trust the same. Raises ValueError
    when no trusted root of one can be read."""
    made = {policy.trust: default}
    for number in range(len(policy.scopes)):
        trust = policy.trust_of(number)
        if trust not in made:
            made[trust] = tls_settings(policy, watch=default.watch, trust=trust)
    return tuple(made[policy.trust_of(number)] for number in range(len(policy.scopes)))


def tls_settings(policy: Tls, *, watch: bool = False, trust: Trust | None = None) -> TlsSettings:
    """The session settings of a policy; ``watch``: it is in mode monitor; ``trust``: who may vouch for servers, where
    that is not the policy's. Raises ValueError when no trusted root can be read."""
    trust = trust or policy.trust
    public = parse_anchors(system_roots())[0] if trust.system else []
    anchors = parse_anchors(trust.pem)[0] + public
    if not anchors:
        raise ValueError("no trusted root certificate could be read")
    own = x509.load_pem_x509_certificate(policy.ca.certificate_pem)
    refused = {spki_sha256(own), *KNOWN_BAD, *map(bytes.fromhex, policy.distrust.keys)}
    refused.update(spki_sha256(certificate) for certificate in parse_anchors(policy.distrust.pem)[0])
    chosen = {Status[name.upper()]: action for name, action in policy.actions}
    check = policy.revocation.check
    if check:
        chosen[Status.REVOKED] = policy.revocation.revoked
        chosen[Status.UNKNOWN] = policy.revocation.unknown
    passed = frozenset(status for status, action in chosen.items() if action is TlsAction.PASS)
    return TlsSettings(
        UpstreamVerifier(
            anchors,
            refused_keys=frozenset(refused),
            passed=passed,
            stapling=check,
            fetch_issuers=policy.fetch_issuers,
            public=frozenset(anchor.fingerprint(hashes.SHA256()) for anchor in public),
            logs=Logs(public_keys(policy.transparency.pem)),
            require_timestamps=policy.transparency.require,
            resume=policy.resumption,
        ),
        ca_id=own.fingerprint(hashes.SHA256()),
        on_failure=FailAction(policy.on_failure.value),
        actions={status: FailAction(action.value) for status, action in chosen.items() if status not in passed},
        revocation=check,
        watch=watch,
        verify_address=policy.without_sni is WithoutSni.ADDRESS,
    )


def system_roots() -> bytes:
    """The system's trusted roots as PEM, wherever this distribution keeps them; empty when there are none."""
    path = ssl.get_default_verify_paths().openssl_cafile
    for candidate in ("/etc/ssl/certs/ca-certificates.crt", path):
        with contextlib.suppress(OSError):
            return Path(candidate).read_bytes()
    return b""


def run(
    compiled: Compiled,
    sessions: TlsSettings,
    settings: GenerationSettings,
    listeners: tuple[socket.socket, socket.socket],
    port: int,
    helpers: Helpers,
    leader: socket.socket,
    log: socket.socket,
    statuses: RuleCounts | None = None,
) -> None:
    """The TLS worker process. ``sessions``: the settings (:func:`tls_settings`) of all whose scope has none of its own.
    Tells the leader ``ok`` or ``error: text``, then serves."""
    process.no_dumps()
    try:
        worker = TlsWorker(compiled, sessions, settings, listeners, port, helpers, leader, log, statuses)
    except (OSError, ValueError) as error:
        leader.sendall(f"error: {error}".encode())
        sys.exit(1)

    def stop(*_: object) -> None:
        worker.stopping = True

    signal.signal(signal.SIGTERM, stop)
    leader.sendall(b"ok")
    worker.run()

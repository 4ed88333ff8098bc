"""The TLS worker: sockets around :class:`engines.tls.session.Session`, plaintext through the inspector.

One process per core, one epoll loop, no threads. Accepts what the kernel's TPROXY hands over, dials the original
destination from the client's own address, and moves bytes between sockets, session and inspector::

    client socket ─► session.client_data ─► Plaintext ─► inspector ─► session.forward ─► SendUpstream ─► server socket

Nothing leaves before its verdict: plaintext the inspector still holds stays in this process.
"""

from __future__ import annotations

import contextlib
import errno
import select
import signal
import socket
import ssl
import struct
import sys
import time
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from engines.stateful.inspector import FlowFacts, Inspector, Outcome, Segment, TlsFacts
from engines.tls import events as tls
from engines.tls.leaf import LeafCache, LeafKey, server_context
from engines.tls.session import Session, TlsSettings
from engines.tls.status import FailAction
from engines.tls.verify import UpstreamVerifier, parse_anchors, spki_sha256
from engines.verdict import Decision, Direction, Scope, Verdict
from nfw import events, keyholder, process
from nfw.log import LogSender
from nfw.marks import Disposition, MarkLayout
from nfw.settings import GenerationSettings, pack, unpack

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled
    from nfw.policy.model import Tls

READ_BYTES = 256 * 1024  # measured: larger reads gain nothing, smaller ones cost
HIGH_WATER = 1 << 20  # bytes waiting for a socket before the other side is no longer read
LOW_WATER = 256 * 1024
MAX_SESSIONS = 20_000  # per worker, about 100 KB each; more are reset (logged as ``session_table_full``)
IDLE_SECONDS = 350.0  # AWS's default for TCP; sessions without a byte for this long are ended
MAX_QUESTIONS = 4096  # leafs asked for at the same time
LINGER_SECONDS = 5.0  # for a finished session to get rid of what is queued and to see the peer's FIN
ACCEPTS = 64  # between two looks at the other sockets
MESSAGE_BYTES = 1 << 20
IP_TRANSPARENT, IPV6_TRANSPARENT, IP_BIND_ADDRESS_NO_PORT, TCP_REPAIR, SO_MARK = 19, 75, 24, 19, 36
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, no time: close sends RST


class Side:
    """One socket of a session with what waits to be sent on it."""

    __slots__ = ("closing", "discarding", "ended", "events", "hung_up", "out", "paused", "sock", "waiting")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out: list[bytes] = []
        self.waiting = 0
        self.events = 0
        self.paused = False
        self.ended = False  # its peer will send nothing more
        self.closing = False  # our sending side is shut down once `out` is empty
        self.hung_up = False  # both directions are over; epoll says so for ever, so it is not asked until we read
        self.discarding = False  # what still arrives is read and thrown away


class Flow:
    """One intercepted connection."""

    __slots__ = (
        "alerted",
        "bytes",
        "client",
        "connecting",
        "decision",
        "destination",
        "facts",
        "finished_at",
        "held_since",
        "inspector",
        "key",
        "last",
        "logged",
        "pending",
        "pending_end",
        "session",
        "source",
        "started",
        "upstream",
    )

    def __init__(self, key: int, client: Side, source: tuple[Any, ...], destination: tuple[Any, ...]) -> None:
        self.key = key
        self.client = client
        self.upstream: Side | None = None
        self.source = source
        self.destination = destination
        self.session: Session | None = None
        self.inspector: Inspector | None = None
        self.facts: FlowFacts | None = None
        self.pending = [bytearray(), bytearray()]  # plaintext the inspector has seen and not released
        self.pending_end = [False, False]
        self.bytes = [0, 0]
        self.held_since = 0.0
        self.finished_at = 0.0
        self.started = 0.0
        self.last = 0.0
        self.connecting = False
        self.decision: Decision | None = None
        self.alerted = False
        self.logged = False


class TlsWorker:
    """Accepts, dials, relays. All decisions come from the session, the inspector and the policy."""

    def __init__(
        self,
        compiled: Compiled,
        settings: GenerationSettings,
        listeners: tuple[socket.socket, socket.socket],
        port: int,
        holder: socket.socket,
        leader: socket.socket,
        log: socket.socket,
    ) -> None:
        self.policy = compiled.policy
        self.ruleset = compiled.ruleset
        self.generation = settings.number
        self.port = port
        self.leader = leader
        self.holder = holder
        holder.setblocking(False)
        layout = MarkLayout(settings.mark_mask)
        self.mark = layout.compose(settings.number, Disposition.OWN)
        self.log = LogSender(log, {"generation": settings.number})
        assert self.policy.tls is not None
        self.settings = tls_settings(self.policy.tls)
        self.session_holding = self.policy.tls.session_holding
        self.leaf_keys: dict[str, Any] = {"ecdsa": ec.generate_private_key(ec.SECP256R1())}
        self.leafs: LeafCache[SSL.Context] = LeafCache()
        # Question number -> what was asked for, until when the leaf holds, and who waits.
        self.asked: OrderedDict[int, tuple[LeafKey, int, list[Flow]]] = OrderedDict()
        self.asking: dict[LeafKey, int] = {}
        self.question = time.monotonic_ns()  # answers to a predecessor's questions are recognised by their number
        self.wall = time.time() - time.monotonic()
        self.epoll = select.epoll()
        self.listeners = {sock.fileno(): sock for sock in listeners}
        for fd in self.listeners:
            self.epoll.register(fd, select.EPOLLIN)
        self.epoll.register(leader.fileno(), select.EPOLLIN)
        self.epoll.register(holder.fileno(), select.EPOLLIN)
        self.sides: dict[int, tuple[Flow, Side]] = {}
        self.flows: OrderedDict[int, Flow] = OrderedDict()
        self.next_flow = (settings.number << 40) + (time.time_ns() & 0xFFFFFFFF) * 256
        self.counts: dict[str, int] = {}
        self.stopping = False
        self.bugs = 0

    # -- loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM or the leader's end."""
        next_tick = 0.0
        while not self.stopping:
            ready = self.epoll.poll(0.1 if self.flows else 1.0)
            now = time.monotonic()
            for fd, mask in ready:
                if fd in self.listeners:
                    self._accept(self.listeners[fd], now)
                elif fd == self.leader.fileno():
                    self._command()
                elif fd == self.holder.fileno():
                    self._leafs(now)
                else:
                    entry = self.sides.get(fd)
                    if entry is not None:
                        self._guard(entry[0], self._io, entry[0], entry[1], mask, now)
            if now >= next_tick:
                next_tick = now + 0.1
                self._tick(now)
                self.log.flush()
        self.log.flush()

    def _guard(self, flow: Flow, work: Any, *args: Any) -> None:
        """A bug met by one flow ends that flow, not the worker."""
        try:
            work(*args)
        except Exception:  # noqa: BLE001 - see above; the traceback is the report
            self.bugs += 1
            if self.bugs <= 20:
                traceback.print_exc()
            self._count("bug")
            self._destroy(flow, "reset", time.monotonic(), "internal_error")

    def _tick(self, now: float) -> None:
        for flow in list(self.flows.values()):
            session = flow.session
            if session is None:
                continue
            if flow.finished_at:
                if now - flow.finished_at > LINGER_SECONDS and now - flow.last > LINGER_SECONDS:
                    self._destroy(flow, "reset", now, "")
            elif now - flow.last > IDLE_SECONDS:
                self._count("idle")
                self._destroy(flow, "reset", now, "idle_timeout")
            elif session.deadline is not None and now >= session.deadline:
                self._guard(flow, self._deadline, flow, now)
            elif flow.held_since and now - flow.held_since > self.hold_seconds(flow):
                self._guard(flow, self._hold_expired, flow, now)

    def _deadline(self, flow: Flow, now: float) -> None:
        assert flow.session is not None
        flow.session.tick(now)
        self._drain(flow, now)

    def hold_seconds(self, flow: Flow) -> float:
        """How long an unfinished request may be kept back."""
        return self.ruleset.limits.hold_seconds if self.ruleset is not None else 10.0

    def _hold_expired(self, flow: Flow, now: float) -> None:
        assert flow.inspector is not None
        flow.held_since = 0.0
        if not self._judged(flow, flow.inspector.hold_expired(now), now):
            self._release(flow, now, everything=True)
        self._drain(flow, now)

    # -- sockets ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, now: float) -> None:
        for _ in range(ACCEPTS):
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
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.next_flow += 1
            flow = Flow(self.next_flow, Side(sock), source, destination)
            flow.started = flow.last = now
            self.flows[flow.key] = flow
            self._watch(flow, flow.client, select.EPOLLIN)
            self._guard(flow, self._open, flow, now)

    def _open(self, flow: Flow, now: float) -> None:
        source, destination = flow.source, flow.destination
        flow.facts = FlowFacts(
            flow.key, socket.IPPROTO_TCP, packed(source[0]), packed(destination[0]), source[1], destination[1]
        )
        flow.session = Session(self.settings, now, now + self.wall)
        if self.ruleset is not None:
            flow.inspector = Inspector(self.ruleset, flow.facts, now, decrypted=True)
            syn = Segment(Direction.TO_SERVER, False, b"", b"", None, now)
            self._judged(flow, flow.inspector.inspect(syn), now)
        self._drain(flow, now)

    def _dial(self, flow: Flow, now: float) -> None:
        family = flow.client.sock.family
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        side = Side(sock)
        flow.upstream = side
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.mark)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((flow.source[0], 0))
            result = sock.connect_ex(flow.destination[:2])
        except OSError as error:
            result = error.errno or errno.EIO
        if result not in (0, errno.EINPROGRESS):
            self._dial_failed(flow, result, now)
            return
        flow.connecting = True
        self._watch(flow, side, select.EPOLLIN | select.EPOLLOUT)

    def _dial_failed(self, flow: Flow, code: int, now: float) -> None:
        flow.connecting = False
        assert flow.session is not None
        flow.session.upstream_failed(f"connect: {errno.errorcode.get(code, code)}", now)

    def _watch(self, flow: Flow, side: Side, mask: int) -> None:
        fd = side.sock.fileno()
        if fd < 0 or side.events == mask:
            return
        if fd not in self.sides:
            self.sides[fd] = (flow, side)
            self.epoll.register(fd, mask)
        else:
            self.epoll.modify(fd, mask)
        side.events = mask

    def _interest(self, flow: Flow, side: Side) -> None:
        if side.sock.fileno() < 0:
            return
        mask = 0
        if not side.ended and (side.discarding or (not side.paused and self._wanted(flow, side))):
            mask |= select.EPOLLIN
        if side.out or (side is flow.upstream and flow.connecting):
            mask |= select.EPOLLOUT
        if mask or not side.hung_up:
            self._watch(flow, side, mask)

    def _wanted(self, flow: Flow, side: Side) -> bool:
        direction = Direction.TO_SERVER if side is flow.client else Direction.TO_CLIENT
        return flow.session is not None and flow.session.wants(direction)

    def _io(self, flow: Flow, side: Side, mask: int, now: float) -> None:
        flow.last = now
        session = flow.session
        if session is None:
            return
        is_client = side is flow.client
        if not is_client and flow.connecting and mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
            code = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            flow.connecting = False
            if code:
                self._dial_failed(flow, code, now)
                self._drain(flow, now)
                return
            session.upstream_connected(now)
            self._drain(flow, now)
            if flow.key not in self.flows:
                return
        if mask & select.EPOLLOUT and side.out:
            self._send(flow, side, now)
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not side.ended and side.sock.fileno() >= 0:
            self._read(flow, session, side, mask, now)
        self._refresh(flow)

    def _read(self, flow: Flow, session: Session, side: Side, mask: int, now: float) -> None:
        is_client = side is flow.client
        if not side.discarding and not mask & select.EPOLLERR and (side.paused or not self._wanted(flow, side)):
            if mask & select.EPOLLHUP:
                side.hung_up = True
                self._unwatch(side)
            return
        try:
            data = side.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            side.ended = True
            self._unwatch(side)
            (session.client_reset if is_client else session.upstream_reset)(now)
            self._drain(flow, now)
            return
        if side.discarding:
            if not data:
                side.ended = True
                self._close_when_done(flow, side, now)
        elif data:
            (session.client_data if is_client else session.upstream_data)(data, now)
            self._drain(flow, now)
        else:
            side.ended = True
            (session.client_eof if is_client else session.upstream_eof)(now)
            self._drain(flow, now)

    def _refresh(self, flow: Flow) -> None:
        """What either side is waited for may have changed with the session's state."""
        if flow.key in self.flows:
            self._interest(flow, flow.client)
            if flow.upstream is not None:
                self._interest(flow, flow.upstream)

    def _queue(self, flow: Flow, side: Side | None, data: bytes, now: float) -> None:
        if side is None or side.sock.fileno() < 0 or not data:
            return
        side.out.append(data)
        side.waiting += len(data)
        self._send(flow, side, now)

    def _send(self, flow: Flow, side: Side, now: float) -> None:
        out = side.out
        while out:
            try:
                sent = side.sock.send(out[0])
            except BlockingIOError:
                break
            except OSError:
                out.clear()
                side.waiting = 0
                break
            side.waiting -= sent
            if sent < len(out[0]):
                out[0] = out[0][sent:]
                break
            out.pop(0)
        if not out and side.closing:
            with contextlib.suppress(OSError):
                side.sock.shutdown(socket.SHUT_WR)
            side.closing = False
        if not out and flow.finished_at:
            self._close_when_done(flow, side, now)
            return
        self._pressure(flow, side)
        self._interest(flow, side)

    def _close_when_done(self, flow: Flow, side: Side, now: float) -> None:
        """After the session: a side closes when nothing is queued for it and its peer has finished too."""
        if flow.finished_at and not side.out and side.ended:
            self._close_side(side, "close")
            both = (flow.client, flow.upstream)
            if all(one is None or one.sock.fileno() < 0 for one in both):
                self._destroy(flow, "close", now, "")

    def _pressure(self, flow: Flow, side: Side) -> None:
        """A slow reader stops its sender: nothing is read while HIGH_WATER bytes wait."""
        source = flow.upstream if side is flow.client else flow.client
        if source is None or source.sock.fileno() < 0:
            return
        if not source.paused and side.waiting > HIGH_WATER:
            source.paused = True
            self._interest(flow, source)
        elif source.paused and side.waiting < LOW_WATER:
            source.paused = False
            self._interest(flow, source)

    def _close_side(self, side: Side, how: str) -> None:
        """Close a socket: ``close`` as usual, ``reset`` with RST, ``silent`` without sending anything."""
        sock = side.sock
        if sock.fileno() < 0:
            return
        self._unwatch(side)
        with contextlib.suppress(OSError):
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif how == "silent":
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closing a socket under repair sends nothing
        sock.close()

    def _unwatch(self, side: Side) -> None:
        fd = side.sock.fileno()
        side.events = -1
        if self.sides.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self.epoll.unregister(fd)

    # -- session events --------------------------------------------------------------------------------------------

    def _drain(self, flow: Flow, now: float) -> None:
        """Carry out what the session asks until it asks nothing more."""
        session = flow.session
        assert session is not None
        while flow.key in self.flows:
            batch = list(session.events())
            if not batch:
                return
            for event in batch:
                self._event(flow, session, event, now)
                if flow.key not in self.flows:
                    return

    def _event(self, flow: Flow, session: Session, event: Any, now: float) -> None:
        if isinstance(event, tls.SendClient):
            self._queue(flow, flow.client, event.data, now)
        elif isinstance(event, tls.SendUpstream):
            self._queue(flow, flow.upstream, event.data, now)
        elif isinstance(event, tls.Plaintext):
            self._plaintext(flow, event.direction, event.data, now)
        elif isinstance(event, tls.Hello):
            self._hello(flow, session, event.hello, now)
        elif isinstance(event, tls.ConnectUpstream):
            self._dial(flow, now)
        elif isinstance(event, tls.NeedLeaf):
            self._need_leaf(flow, event, now)
        elif isinstance(event, tls.Eof):
            self._plaintext_end(flow, event.direction, now)
        elif isinstance(event, tls.CloseClient):
            self._close(flow, flow.client, event.how)
        elif isinstance(event, tls.CloseUpstream):
            self._close(flow, flow.upstream, event.how)
        elif isinstance(event, tls.Finished):
            self._finished(flow, event, now)

    def _close(self, flow: Flow, side: Side | None, how: tls.Close) -> None:
        if side is None or side.sock.fileno() < 0:
            return
        if how is tls.Close.RESET:
            side.out.clear()
            self._close_side(side, "reset")
        else:
            if how is tls.Close.SILENT:
                side.out.clear()
                side.discarding = True
            side.closing = True
            self._send(flow, side, flow.last)

    def _hello(self, flow: Flow, session: Session, hello: Any, now: float) -> None:
        if flow.inspector is not None:
            facts = TlsFacts.from_hello(hello)
            outcome = flow.inspector.tls_hello(facts, now, self.session_holding)
            if self._judged(flow, outcome, now):
                return
        session.proceed(now)

    # -- plaintext -------------------------------------------------------------------------------------------------

    def _plaintext(self, flow: Flow, direction: Direction, data: bytes, now: float) -> None:
        flow.bytes[direction] += len(data)
        inspector = flow.inspector
        assert flow.session is not None
        if inspector is None:
            flow.session.forward(direction, data)
            return
        if inspector.finished and not flow.pending[direction]:
            flow.session.forward(direction, data)
            return
        outcome = inspector.inspect(Segment(direction, True, data, data, None, now))
        flow.pending[direction] += data
        if not self._judged(flow, outcome, now):
            self._release(flow, now)

    def _plaintext_end(self, flow: Flow, direction: Direction, now: float) -> None:
        assert flow.session is not None
        flow.pending_end[direction] = True
        if flow.inspector is not None and self._judged(flow, flow.inspector.close(direction, now), now):
            return
        self._release(flow, now, ended=direction)

    def _release(self, flow: Flow, now: float, *, everything: bool = False, ended: Direction | None = None) -> None:
        """Hand on what has been judged, in both directions: a response may settle what a request left open."""
        assert flow.session is not None
        held_any = False
        for direction in Direction:
            pending = flow.pending[direction]
            held = 0
            if flow.inspector is not None and not everything and direction is not ended:
                held = min(flow.inspector.held[direction], len(pending))
            free = len(pending) - held
            if free:
                data = bytes(pending[:free])
                del pending[:free]
                flow.session.forward(direction, data)
            held_any = held_any or held > 0
            if flow.pending_end[direction] and not pending:
                flow.pending_end[direction] = False
                flow.session.forward_eof(direction)
        flow.held_since = (flow.held_since or now) if held_any else 0.0

    def _judged(self, flow: Flow, outcome: Outcome, now: float) -> bool:
        """Log alerts; end the flow when the decision is against it. True: it has ended."""
        for alert in outcome.alerts:
            flow.alerted = True
            self._alert(flow, alert, now)
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            if decision.scope is Scope.FLOW:
                flow.decision = decision
            return False
        flow.decision = decision
        self._count(decision.reason)
        event = self._base(flow, "drop", now)
        event["drop"] = {"reason": decision.reason}
        event["verdict"] = {"action": decision.verdict.value}
        event["nfw"] = {"reason": decision.reason, "stage": "stateful", **events.where(decision.rule)}
        self.log.write(event)
        for pending in flow.pending:
            pending.clear()
        assert flow.session is not None
        how = FailAction.REJECT if decision.verdict is Verdict.REJECT else FailAction.DROP
        flow.session.end(how, decision.reason, str(decision.rule or ""))
        self._drain(flow, now)
        return True

    # -- leafs -----------------------------------------------------------------------------------------------------

    def _leaf_key(self, kind: str) -> Any:
        if kind not in self.leaf_keys:
            self.leaf_keys[kind] = rsa.generate_private_key(65537, 2048)
        return self.leaf_keys[kind]

    def _need_leaf(self, flow: Flow, event: tls.NeedLeaf, now: float) -> None:
        assert flow.session is not None
        context = self.leafs.get(event.key, now + self.wall)
        if context is not None:
            flow.session.leaf_ready(context, now)
            return
        number = self.asking.get(event.key)
        if number is not None:
            self.asked[number][2].append(flow)
            return
        self.question += 1
        public = self._leaf_key(event.request.key_type).public_key()
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        try:
            self.holder.send(keyholder.encode_request(self.question, event.request, der))
        except OSError as error:
            flow.session.leaf_failed(f"key holder: {error.strerror}", now)
            return
        self.asked[self.question] = (event.key, event.request.not_after, [flow])
        self.asking[event.key] = self.question
        if len(self.asked) > MAX_QUESTIONS:  # answers that never came: their sessions have timed out long ago
            _, (key, _, _) = self.asked.popitem(last=False)
            self.asking.pop(key, None)

    def _leafs(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self.holder.recv(keyholder.MESSAGE_BYTES)
                if not data:
                    self.stopping = True  # the leader is gone
                    return
                self._leaf(keyholder.decode_reply(data), now)

    def _leaf(self, reply: dict[str, Any], now: float) -> None:
        asked = self.asked.pop(int(reply.get("id", -1)), None)
        if asked is None:
            return  # asked by a predecessor of this process
        key, not_after, waiting = asked
        self.asking.pop(key, None)
        context = None
        if "leaf" in reply:
            context = server_context([reply["leaf"]], self._leaf_key(key.key_type))
            self.leafs.put(key, context, not_after)
        for flow in waiting:
            if flow.key not in self.flows or flow.session is None:
                continue
            if context is not None:
                flow.session.leaf_ready(context, now)
            else:
                flow.session.leaf_failed(str(reply.get("error", "no leaf")), now)
            self._guard(flow, self._drain, flow, now)
            self._refresh(flow)

    # -- end -------------------------------------------------------------------------------------------------------

    def _finished(self, flow: Flow, event: tls.Finished, now: float) -> None:
        """The session is over; its sockets stay until what is queued was sent and the peers have closed, or for
        LINGER_SECONDS."""
        self._log_tls(flow, event.status.value, event.reason, event.detail, event.info, now)
        self._log_flow(flow, event.reason, now)
        flow.finished_at = flow.last = now
        flow.inspector = None
        for side in (flow.client, flow.upstream):
            if side is None or side.sock.fileno() < 0:
                continue
            side.discarding = True
            if side is flow.upstream and flow.connecting:
                self._close_side(side, "close")
            else:
                side.closing = True
                self._send(flow, side, now)
        if all(side is None or side.sock.fileno() < 0 for side in (flow.client, flow.upstream)):
            self._destroy(flow, "close", now, "")

    def _destroy(self, flow: Flow, how: str, now: float, reason: str) -> None:
        """Close what is open and forget the flow."""
        if self.flows.pop(flow.key, None) is None:
            return
        for side in (flow.client, flow.upstream):
            if side is not None:
                self._close_side(side, how)
        if not flow.logged:
            info = flow.session.info if flow.session is not None else None
            self._log_tls(flow, "ENDED", reason, "", info, now)
            self._log_flow(flow, reason, now)

    def end_all(self, action: str) -> None:
        """The generation ends: every session is dropped (nothing is sent) or rejected (RST to both sides)."""
        now = time.monotonic()
        for flow in list(self.flows.values()):
            self._destroy(flow, "reset" if action == "reject" else "silent", now, "policy_change")
        self.stopping = True

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
        elif kind == "end":
            self.end_all(str(body.get("action", "drop")))
        with contextlib.suppress(OSError):
            self.leader.send(pack(kind, reply))

    def stats(self) -> dict[str, Any]:
        """Counters for ``nfw status``."""
        return {
            "sessions": len(self.flows),
            "counts": dict(self.counts),
            "leafs": len(self.leafs),
            "rule_hits": self.ruleset.hit_counts() if self.ruleset is not None else {},
            "bugs": self.bugs,
            "log_dropped": self.log.dropped,
        }

    # -- records ---------------------------------------------------------------------------------------------------

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _base(self, flow: Flow, kind: str, now: float, direction: Direction = Direction.TO_SERVER) -> dict[str, Any]:
        source, destination = flow.source, flow.destination
        if direction is Direction.TO_CLIENT:
            source, destination = destination, source
        return events.base(
            kind,
            now + self.wall,
            flow_id=flow.key,
            protocol=socket.IPPROTO_TCP,
            src=packed(source[0]),
            sport=source[1],
            dst=packed(destination[0]),
            dport=destination[1],
        )

    def _alert(self, flow: Flow, alert: Any, now: float) -> None:
        event = self._base(flow, "alert", now, alert.direction)
        event["direction"] = "to_server" if alert.direction is Direction.TO_SERVER else "to_client"
        event["alert"] = events.alert_fields(alert.rule, alert.action)
        if alert.app_proto:
            event["app_proto"] = alert.app_proto
        event.update(alert.tx)
        event["tls_inspected"] = True
        event["nfw"] = {"stage": "stateful", **events.where(alert.rule.ref)}
        self._count("alert")
        self.log.write(event)

    def _log_tls(
        self, flow: Flow, status: str, reason: str, detail: str, info: tls.SessionInfo | None, now: float
    ) -> None:
        if flow.logged:
            return
        flow.logged = True
        self._count(f"tls_{status.lower()}")
        event = self._base(flow, "tls", now)
        event["tls"] = tls_record(info)
        event["nfw"] = {"status": status, "reason": reason}
        if detail:
            event["nfw"]["detail"] = detail
        if flow.decision is not None:
            event["verdict"] = {"action": flow.decision.verdict.value}
            event["nfw"].update(events.where(flow.decision.rule))
        self.log.write(event)

    def _log_flow(self, flow: Flow, reason: str, now: float) -> None:
        event = self._base(flow, "flow", now)
        event["flow"] = {
            "bytes_toserver": flow.bytes[0],
            "bytes_toclient": flow.bytes[1],
            "start": events.timestamp(flow.started + self.wall),
            "end": events.timestamp(now + self.wall),
            "age": int(now - flow.started),
            "reason": reason,
            "alerted": flow.alerted,
        }
        event["app_proto"] = (flow.inspector.app_proto if flow.inspector is not None else "") or "tls"
        event["tls_inspected"] = True
        self.log.write(event)


def tls_settings(policy: Tls) -> TlsSettings:
    """The session settings of a policy. Raises ValueError when no trusted root can be read."""
    pem = policy.trust.pem
    if policy.trust.system:
        pem += system_roots()
    anchors, _ = parse_anchors(pem)
    if not anchors:
        raise ValueError("no trusted root certificate could be read")
    own = x509.load_pem_x509_certificate(policy.ca.certificate_pem)
    return TlsSettings(
        UpstreamVerifier(anchors, refused_keys=frozenset((spki_sha256(own),))),
        ca_id=own.fingerprint(hashes.SHA256()),
        on_failure=FailAction(policy.on_failure.value),
    )


def system_roots() -> bytes:
    """The system's trusted roots as PEM, wherever this distribution keeps them; empty when there are none."""
    path = ssl.get_default_verify_paths().openssl_cafile
    for candidate in ("/etc/ssl/certs/ca-certificates.crt", path):
        with contextlib.suppress(OSError):
            return Path(candidate).read_bytes()
    return b""


def tls_record(info: tls.SessionInfo | None) -> dict[str, Any]:
    """The ``tls`` object of a record: what both legs negotiated and who the server proved to be."""
    record: dict[str, Any] = {"sni": (info.sni if info is not None else None) or "-"}
    if info is None:
        return record
    if info.hello is not None:
        record["ja3"] = {"hash": info.hello.ja3, "string": info.hello.ja3_string}
        record["ja4"] = info.hello.ja4
    for name, leg in (("client", info.client), ("server", info.server)):
        if leg is not None:
            record[name] = {"version": leg.version, "cipher": leg.cipher, "group": leg.group, "alpn": leg.alpn}
    if info.server is not None:
        record["version"] = info.server.version
    if info.chain is not None:
        record["fingerprint"] = info.chain.fingerprints[0]
        record["chain"] = list(info.chain.fingerprints)
    record["bytes_toserver"], record["bytes_toclient"] = info.forwarded
    if any(info.truncated):
        record["truncated"] = [
            name for name, cut in zip(("to_server", "to_client"), info.truncated, strict=True) if cut
        ]
    return record


def packed(address: str) -> bytes:
    """Packed bytes of a textual address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.split("%")[0])


def run(
    compiled: Compiled,
    settings: GenerationSettings,
    listeners: tuple[socket.socket, socket.socket],
    port: int,
    holder: socket.socket,
    leader: socket.socket,
    log: socket.socket,
) -> None:
    """The TLS worker process. Tells the leader ``ok`` or ``error: text``, then serves."""
    process.no_dumps()
    try:
        worker = TlsWorker(compiled, settings, listeners, port, holder, leader, log)
    except (OSError, ValueError) as error:
        leader.sendall(f"error: {error}".encode())
        sys.exit(1)

    def stop(*_: object) -> None:
        worker.stopping = True

    signal.signal(signal.SIGTERM, stop)
    leader.sendall(b"ok")
    worker.run()

"""One intercepted connection, from the first byte of the client to the last of either side.

Theory of operation. The session is told what happened (bytes, ends, answers of the owner) and queues events; it owns
no socket and reads no clock. Order is the whole point: the server is verified before the client hears one byte, the
leaf is minted after that, and application bytes move only when both handshakes are done.

::

    state               waiting for                      on the way there
    HELLO               the whole ClientHello            bytes collected by ClientHelloReader
    HELD                proceed()                        rules on SNI, ALPN, JA3 may end it here
    CONNECTING          upstream_connected()
    UPSTREAM_HANDSHAKE  the server's handshake           chain, dates, name judged (engines.tls.verify)
    ISSUERS             issuers_found()                  only where the server left out intermediates
    REVOCATION          revocation_found()               staple judged; only where the policy checks revocation
    LEAF                leaf_ready()
    CLIENT_HANDSHAKE    the client's handshake           with the server's ALPN, never a better version
    REFUSING            the client's first bytes         only after REVOKED and UNKNOWN, see below
    RELAY               the end of both ways             Plaintext out, forward() in
    DONE                nothing                          Finished was queued; every input is ignored

Each state has one handler for client bytes and one for upstream bytes; bytes a state cannot use yet are parked, within
a bound, and read later. ``wants()`` tells the owner when to leave bytes in the kernel instead.

A server that is who it says it is but whose certificate is revoked, or nobody knows, is refused as AWS does: the client
gets its handshake, and with its request close_notify (drop) or a reset (reject). All else ends before ServerHello.

Left out: sockets, inspection, fetching what revocation is judged by, resumption by clients.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from OpenSSL import SSL

from engines.tls import openssl
from engines.tls.clienthello import HELLO_CAP, TLS1_2, TLS1_3, ClientHello, ClientHelloReader, NotTls, is_grease
from engines.tls.events import (
    Close,
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Established,
    Event,
    Finished,
    Hello,
    NeedIssuers,
    NeedLeaf,
    NeedRevocation,
    PassOn,
    Plaintext,
    Proven,
    SendClient,
    SendUpstream,
    SessionInfo,
)
from engines.tls.half import UNNAMED_ALERT, TlsError, TlsHalf
from engines.tls.leaf import LeafKey, LeafRequest, leaf_key_type
from engines.tls.resumption import Identity
from engines.tls.revocation import Conclusion, Finding, Revocation, begin, conclude, fresher
from engines.tls.status import FailAction, Status
from engines.tls.verify import HandshakeNotes, Incomplete, Refusal, ServerChain, UpstreamVerifier, limit_versions
from engines.verdict import Direction

PARKED_MAX = 1 << 20
"""Bytes of one way kept while nobody may read them. A reader that obeys ``wants()`` never has more than one read
(256 KB) here; more means the owner ignores it, and the session ends as INTERNAL."""

BULK = 8192
"""A read of this size or more may have grown OpenSSL's buffers."""

TRIM_AFTER = 5.0
"""Seconds after which grown buffers are given back; idle flows then keep about 90 KB, all of it OpenSSL's state."""

CONTROL_MAX = 65536
"""Bytes OpenSSL may answer by itself (key updates, tickets) with no application byte sent in between: some 2,500 key
updates. A peer that asks for more is flooding (and may not be reading)."""

SILENT_MAX = 1 << 18
"""Bytes of records in a row without an application byte (tickets above all): four of the largest tickets there can be.
A peer that sends more is flooding."""

HTTP1 = b"http/1.1"

_SMALL = 1024  # bytes that are worth a copy to be sent with others

FINISHED_AFTER = 0.02
"""Seconds our Finished waits for the client's first bytes, to go to the server in their packet. What the server answers
comes in one packet, too. Clients send the two together; where it is the server who speaks first, as in mail and in each
transfer of FTP, that is how much later it does."""

REFUSE_AFTER = 1.0
"""Seconds a client that is refused after its handshake has for its request."""

_CHANGE_CIPHER_SPEC, _CHANGE_BYTES = b"\x14", 6  # of its record
_FALLBACK = 0x5600  # TLS_FALLBACK_SCSV

# Alerts (RFC 8446 6.2) that say what a plain RST cannot, by our reason; only ``reject`` says anything.
_ALERTS = {
    "decode_error": 50,
    "sslv2": 70,
    "client_version": 70,
    "inappropriate_fallback": 86,
    "alpn_not_allowed": 120,
    "sni_changed": 47,
}
# Alerts of the server that mean its client and not us.
_SERVER_ALERTS = {"protocol version": 70, "inappropriate fallback": 86, "no application protocol": 120}
_RETRY_REQUEST = hashlib.sha256(b"HelloRetryRequest").digest()  # RFC 8446 4.1.3: a ServerHello with this random

_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

# What OpenSSL says of a server's certificates before it verifies them: they do not parse, are more than 100 KB, may not
# sign a handshake (RFC 8422 5.3), or are not what the handshake was signed with.
_CERTIFICATE_FAULTS = frozenset(("ASN1 lib", "excessive message size", "bad ecc cert", "bad signature"))

# Alerts a server that wants a client certificate sends when it gets none (RFC 8446 6.2, RFC 5246 7.4.6).
_NO_CERTIFICATE_ALERTS = frozenset(
    (
        "certificate required",
        "handshake failure",
        "bad certificate",
        "certificate unknown",
        "access denied",
        "no certificate",
    )
)


class State(enum.Enum):
    HELLO = "hello"
    HELD = "held"
    CONNECTING = "connecting"
    UPSTREAM_HANDSHAKE = "upstream_handshake"
    ISSUERS = "issuers"
    REVOCATION = "revocation"
    LEAF = "leaf"
    CLIENT_HANDSHAKE = "client_handshake"
    REFUSING = "refusing"
    RELAY = "relay"
    DONE = "done"


# States in which the client has not been answered yet.
_UNANSWERED = frozenset(
    (
        State.HELLO,
        State.HELD,
        State.CONNECTING,
        State.UPSTREAM_HANDSHAKE,
        State.ISSUERS,
        State.REVOCATION,
        State.LEAF,
    )
)
# Passed by the policy or not, a server with one of these has not proven who it is. That nobody can say whether its
# certificate is revoked is for the policy alone to judge.
_PROVES_NOTHING = frozenset(status.value for status in Status if status is not Status.UNKNOWN)
_NOT_THE_POLICY = frozenset((Status.UNREACHABLE, Status.INTERNAL))

# What running out of time in a state means.
_TIMEOUTS = {
    State.HELLO: (Status.NOT_TLS, "hello_timeout", "no complete ClientHello in time"),
    State.HELD: (Status.INTERNAL, "hold_timeout", "no decision on the ClientHello in time"),
    State.CONNECTING: (Status.UNREACHABLE, "connect_timeout", "the server did not accept the connection in time"),
    State.UPSTREAM_HANDSHAKE: (Status.PROTOCOL, "upstream_timeout", "the server did not finish its handshake in time"),
    State.LEAF: (Status.INTERNAL, "leaf_timeout", "no leaf certificate in time"),
    State.CLIENT_HANDSHAKE: (Status.PROTOCOL, "client_timeout", "the client did not finish its handshake in time"),
}


class HalfMaker(Protocol):
    """Makes the half that faces the client, which shows a certificate of its own."""

    def half(self, alpn: bytes, only_tls12: bool) -> TlsHalf: ...


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What all sessions of a policy share.

    ``ca_id`` tells CAs apart in leaf cache keys (SHA-256 of the certificate, say). ``on_failure`` is the action for
    every status that ``actions`` does not name. ``verify_address``: a client that names no server may go on, and the
    server's address is verified. ``alpn``: protocols that may be offered upstream; None mirrors the client's list.
    ``revocation``: check it; what is passed then is the verifier's to know. ``watch``: what the policy would end is
    handed on undecrypted (PassOn), as long as the client has not been answered. Timeouts in seconds, each
    for one state; whoever is asked about revocation answers within its own, shorter, budget.
    """

    verifier: UpstreamVerifier
    ca_id: bytes
    on_failure: FailAction = FailAction.REJECT
    actions: Mapping[Status, FailAction] = field(default_factory=dict)
    alpn: frozenset[bytes] | None = None
    revocation: bool = False
    watch: bool = False
    verify_address: bool = False
    hello_timeout: float = 10.0
    connect_timeout: float = 10.0
    upstream_timeout: float = 10.0
    issuers_timeout: float = 4.0
    revocation_timeout: float = 4.0
    leaf_timeout: float = 10.0
    client_timeout: float = 10.0
    hello_cap: int = HELLO_CAP


class Session:
    """See the module's text. ``now`` is seconds of any steady clock, for deadlines; ``unix_time`` is the time
    certificates are judged at. Methods named after what happened take it in; :meth:`events` drains what follows.
    """

    __slots__ = (
        "_before_second",
        "_client_handler",
        "_connection_open",
        "_deadline",
        "_ends",
        "_events",
        "_findings",
        "_half",
        "_identity",
        "_lost",
        "_open_questions",
        "_proving",
        "_reader",
        "_refused",
        "_second",
        "_server",
        "_settings",
        "_state",
        "_unix_time",
        "_upstream_handler",
        "_ways",
        "_withheld",
        "info",
    )

    def __init__(
        self, settings: TlsSettings, now: float, unix_time: float, address: str = "", client: str = "", port: int = 0
    ) -> None:
        """``address`` and ``port`` are those the client, at the address ``client``, wants to talk to. A session the
        server may resume is kept for these three and the name; without ``client`` none is."""
        self._settings = settings
        self._ends = client, address, port
        self._identity: Identity | None = None  # for which the session of the connection to the server is to be kept
        self._unix_time = unix_time
        self._events: list[Event] = []
        self._ways = (_Way(), _Way())
        self._half: list[TlsHalf | None] = [None, None]  # by the direction of what the half receives: client, upstream
        self._reader: ClientHelloReader | None = ClientHelloReader(settings.hello_cap)
        self._findings: dict[int, Finding] = {}  # on the server's chain, by depth
        self._open_questions: set[int] = set()
        self._refused: Refusal | None = None  # said to the client once it has had its handshake
        self._server = address  # what it has to prove to be: the name asked for, or the address
        self._second: ClientHelloReader | None = None  # of the ClientHello after our HelloRetryRequest
        self._before_second = b""
        self._proving = False  # the owner wants to know who the server is, and nothing else
        self._lost: Refusal | None = None  # the server ended the connection, after it had proven who it is
        self._connection_open = False  # the owner has, or is making, an upstream connection
        self._withheld = False  # our Finished, which ends the server's handshake, has not been taken from OpenSSL
        self.info = SessionInfo()
        self._state = State.HELLO
        self._deadline: float | None = now + settings.hello_timeout
        # Functions, not bound methods: those would be cycles, and an ended session would wait for the collector.
        self._client_handler: Callable[[Session, bytes, float], None] = Session._read_hello
        self._upstream_handler: Callable[[Session, bytes, float], None] = Session._park_upstream

    # What the owner looks at.

    @property
    def state(self) -> State:
        return self._state

    @property
    def deadline(self) -> float | None:
        """When to call :meth:`tick`, or None. While relaying it is housekeeping: idle limits are the owner's."""
        return self._deadline

    def wants(self, direction: Direction) -> bool:
        """Whether bytes of this way should be read from the socket now: TO_SERVER from the client's, TO_CLIENT from
        the upstream one. While False, leave them in the kernel, but do report a reset."""
        if self._state is State.RELAY:
            way = self._ways[direction]
            return not (way.paused or way.source_fin)  # also after close_notify: its FIN must be seen
        if direction is _TO_SERVER:
            return self._state in (State.HELLO, State.CLIENT_HANDSHAKE, State.REFUSING)
        return self._state is State.UPSTREAM_HANDSHAKE

    def pending(self, direction: Direction) -> int:
        """Bytes of ciphertext of this way read but not yet decrypted."""
        return self._ways[direction].parked_bytes

    def events(self) -> list[Event]:
        """What was queued since the last call, oldest first."""
        drained, self._events = self._events, []
        return drained

    # What the owner answers.

    def proceed(self, now: float, *, proving: bool = False) -> None:
        """The ClientHello may go on: asks for the upstream connection. ``proving``: the session ends with
        :class:`engines.tls.events.Proven` if the server is the one asked for and the policy had to let nothing pass;
        otherwise it goes on as any other."""
        if self._state is State.HELD:
            self._proving = proving
            self._connection_open = True
            self._enter(State.CONNECTING, now + self._settings.connect_timeout)
            self._events.append(ConnectUpstream(self._server))

    def release(self) -> bytes:
        """The flow is not to be decrypted after all: the bytes the client has sent. Only while the hello is held; the
        session is over then and says nothing more."""
        assert self._state is State.HELD
        data = self._ways[_TO_SERVER].unpark()
        self._enter(State.DONE, None)
        self._client_handler = self._upstream_handler = Session._ignore
        return data

    def issuers_found(self, issuers: Sequence[bytes], now: float) -> None:
        """The answer to NeedIssuers: certificates (DER) that may complete the chain, none if there are none."""
        if self._state is not State.ISSUERS:
            return
        half = self._half[_TO_CLIENT]
        assert half is not None
        verdict = self._settings.verifier.complete(half.connection, self._server, self._unix_time, issuers)
        if isinstance(verdict, Refusal):
            self._fail(verdict.status, verdict.reason, verdict.detail)
        else:
            self._accept(verdict, now)

    def revocation_found(self, depth: int, finding: Finding, now: float) -> None:
        """An answer to NeedRevocation; ``depth`` is the question's. REVOKED of any certificate ends the waiting, and
        an open session whose owner has asked again."""
        if self._state is State.RELAY:
            self._revoked_since(depth, finding)
            return
        if self._state is not State.REVOCATION or depth not in self._open_questions:
            return
        self._open_questions.discard(depth)
        self._findings[depth] = fresher(self._findings.get(depth), finding)
        if not self._open_questions or self._findings[depth].status is Revocation.REVOKED:
            self._conclude_revocation(now)

    def leaf_ready(self, context: SSL.Context | HalfMaker, now: float) -> None:
        """The leaf asked for by NeedLeaf, as :func:`engines.tls.leaf.server_context` prepares it, or whoever makes
        the client's half without one."""
        if self._state is not State.LEAF:
            return
        assert self.info.server is not None
        alpn = self.info.server.alpn.encode("latin-1")
        if self._refused is not None and alpn and self.info.hello is not None and HTTP1 in self.info.hello.alpn:
            alpn = HTTP1  # the protocol in which an end without an answer is said and understood most plainly
        # Never show the client a better version than the server gave.
        only_tls12 = self.info.server.version != "TLSv1.3"
        if isinstance(context, SSL.Context):
            connection = SSL.Connection(context)
            connection.set_app_data(alpn)
            connection.set_accept_state()
            if only_tls12:
                limit_versions(connection, (TLS1_2,))
            self._half[_TO_SERVER] = TlsHalf(connection)
        else:
            self._half[_TO_SERVER] = context.half(alpn, only_tls12)
        self._enter(State.CLIENT_HANDSHAKE, now + self._settings.client_timeout)
        self._client_handler = Session._handshake_client
        self._handshake_client(self._ways[_TO_SERVER].unpark(), now)

    def leaf_failed(self, reason: str, now: float) -> None:
        """No leaf can be had; ``reason`` is for people."""
        if self._state is State.LEAF:
            self._fail(Status.INTERNAL, "leaf_failed", reason)

    def forward(self, direction: Direction, plaintext: bytes) -> None:
        """Inspected plaintext may go on: encrypts it for the other side. Ignored after the end of the session."""
        if self._state is not State.RELAY or self._ways[direction].forwarded_eof:
            return
        half = self._half[direction.reply]
        assert half is not None
        if self._withheld and direction is _TO_SERVER and plaintext:
            self._withheld = False  # what is encrypted comes after it
            if len(plaintext) < BULK:  # of more, the deadline gives the buffers back
                self._deadline = None
        self._send(direction, half.encrypt(plaintext))
        self.info.forwarded[direction] += len(plaintext)
        self._ways[direction.reply].control = 0
        if half.error is not None:
            self._broken(half.error, direction.reply)

    def forward_eof(self, direction: Direction) -> None:
        """All that may go on this way was forwarded; the answer to Eof. Passes on the end as it came."""
        way = self._ways[direction]
        if self._state is not State.RELAY or not way.ended or way.forwarded_eof:
            return
        way.forwarded_eof = True
        source, target = self._half[direction], self._half[direction.reply]
        assert source is not None
        assert target is not None
        if source.error is not None:
            self._broken(source.error, direction)
            return
        if direction is _TO_SERVER:
            self._end_handshake()
        if source.closed:
            self._send(direction, target.close_notify())
        if self._ways[direction.reply].forwarded_eof:
            self._complete()
        elif way.source_fin:
            self._close(direction, Close.FIN)

    def end(self, how: FailAction, reason: str, detail: str = "") -> None:
        """The owner's decision, at any time: nothing more goes to either side."""
        if self._state is not State.DONE:
            self._finish(Status.POLICY, reason, detail, _CLOSE_OF[how])

    def abandon(self, now: float) -> None:
        """The owner ends the connections by itself, and nothing is said any more. What the server has given to resume
        this session by stays good."""
        self._leave()
        self._end_silently()

    def violated(self, reason: str, detail: str) -> None:
        """The server does not keep to the protocol that was agreed on inside: ends as the policy says of PROTOCOL."""
        if self._state is not State.DONE:
            self._fail(Status.PROTOCOL, reason, detail)

    def pause(self, direction: Direction) -> None:
        """Decrypt nothing more of this way: its receiver is not keeping up."""
        self._ways[direction].paused = True

    def resume(self, direction: Direction, now: float) -> None:
        """Go on, beginning with what was parked."""
        self._ways[direction].paused = False
        if self._state is State.RELAY:
            self._unpark(direction)

    def tick(self, now: float) -> None:
        """The deadline may have passed: ends a handshake that takes too long, gives memory back in the relay."""
        if self._deadline is None or now < self._deadline:
            return
        if self._state is State.RELAY:
            self._deadline = None
            self._end_handshake()
            for way, half in zip(self._ways, self._half, strict=True):
                assert half is not None
                if (
                    not way.paused
                ):  # paused since before the relay, OpenSSL may still hold bytes of the handshake's reads
                    half.trim()
        elif self._state is State.ISSUERS:
            self.issuers_found((), now)
        elif self._state is State.REVOCATION:
            for depth in tuple(self._open_questions):
                self.revocation_found(depth, Finding(Revocation.UNKNOWN, "none", "timeout"), now)
        elif self._state is State.REFUSING:
            self._refuse()
        else:
            self._shun()
            status, reason, detail = _TIMEOUTS[self._state]
            self._fail(status, reason, detail)

    # What happened at the client.

    def client_data(self, data: bytes, now: float) -> None:
        if data:
            self._client_handler(self, data, now)

    def client_eof(self, now: float) -> None:
        """The client sent FIN: it will send no more, it may still read."""
        if self._state is State.RELAY:
            self._source_fin(_TO_SERVER)
        elif self._state is State.REFUSING:
            self._refuse()
        elif self._state is not State.DONE:
            self._finish(
                Status.ABORTED, "client_closed", "the client closed before the session was established", Close.FIN
            )

    def client_reset(self, now: float) -> None:
        if self._state is State.RELAY:
            self.info.truncated[_TO_SERVER] = True
            self._finish(Status.OK, "client_reset", "the client reset the connection", Close.RESET)
        elif self._state is State.REFUSING:
            self._refuse()
        elif self._state is not State.DONE:
            self._finish(
                Status.ABORTED, "client_reset", "the client reset before the session was established", Close.RESET
            )

    # What happened upstream.

    def upstream_connected(self, now: float) -> None:
        if self._state is not State.CONNECTING:
            return
        hello = self.info.hello
        assert hello is not None
        # Who is asked for proof gives all of it.
        identity = Identity(*self._ends, self._server) if self._ends[0] and not self._proving else None
        connection = self._settings.verifier.connection(
            self._server, self._unix_time, self._alpn_to_offer(hello), hello.versions, identity
        )
        self._identity = identity
        self._half[_TO_CLIENT] = TlsHalf(connection)
        self._enter(State.UPSTREAM_HANDSHAKE, now + self._settings.upstream_timeout)
        self._upstream_handler = Session._handshake_upstream
        self._handshake_upstream(self._ways[_TO_CLIENT].unpark(), now)

    def upstream_failed(self, reason: str, now: float) -> None:
        """The TCP connection could not be made; ``reason`` is for people."""
        if self._state is State.CONNECTING:
            self._connection_open = False
            # Not TLS's fault, so not the policy's action: the client sees what it would have seen without us.
            self._finish(Status.UNREACHABLE, "connect_failed", reason, Close.RESET)

    def upstream_data(self, data: bytes, now: float) -> None:
        if data:
            self._upstream_handler(self, data, now)

    def upstream_eof(self, now: float) -> None:
        """The server sent FIN: it will send no more, it may still read."""
        if self._state is State.RELAY:
            self._source_fin(_TO_CLIENT)
        elif self._state in (State.ISSUERS, State.REVOCATION, State.LEAF, State.CLIENT_HANDSHAKE):
            self._ways[_TO_CLIENT].source_fin = True  # what it said before is still the client's to read
        elif self._state is not State.DONE and self._refused is None and not self._without_session(now):
            self._fail(Status.PROTOCOL, "upstream_closed", "the server closed the connection during the handshake")

    def upstream_reset(self, now: float) -> None:
        if self._state is State.RELAY:
            self.info.truncated[_TO_CLIENT] = True
            self._finish(Status.OK, "upstream_reset", "the server reset the connection", Close.RESET)
        elif self._state is not State.DONE and self._refused is None:
            half = self._half[_TO_CLIENT]
            if self._proving and self._state in (State.ISSUERS, State.REVOCATION):
                detail = "the server reset the connection during the handshake"
                self._lost = Refusal(Status.PROTOCOL, "upstream_reset", detail)
                return
            if half is not None and self.info.server is not None:
                half.decrypt(self._ways[_TO_CLIENT].unpark())  # in TLS 1.3 the alert that says why comes this late
                if half.error is not None and half.error.alert:
                    refusal = self._upstream_fault(half.error)
                    self._fail(refusal.status, refusal.reason, refusal.detail)
                    return
            if not self._without_session(now):
                self._fail(Status.PROTOCOL, "upstream_reset", "the server reset the connection during the handshake")

    # States, in order.

    def _read_hello(self, data: bytes, now: float) -> None:
        assert self._reader is not None
        result = self._reader.feed(data)
        if result is None:
            return
        if isinstance(result, NotTls):
            self._fail(
                Status.NOT_TLS, result.reason, f"the client's first bytes are no TLS ClientHello: {result.reason}"
            )
            return
        self.info.hello = result
        self.info.sni = result.sni
        self._server = result.sni or self._server
        by_address = self._settings.verify_address and bool(self._server)
        refusal = _offer_problem(result, by_address) or self._alpn_problem(result)
        if refusal is not None:
            self._fail(refusal.status, refusal.reason, refusal.detail)
            return
        self._reader = None  # its copy of the bytes is in the result
        self._enter(State.HELD, now + self._settings.connect_timeout)
        self._client_handler = Session._park_client
        self._park_client(result.raw, now)
        self._events.append(Hello(result))

    def _handshake_upstream(self, data: bytes, now: float) -> None:
        half = self._half[_TO_CLIENT]
        assert half is not None
        notes: HandshakeNotes = half.connection.get_app_data()
        try:
            taken = half.handshake(data)
        except TlsError as error:
            self.info.certificate_requested = notes.certificate_requested
            self._send(_TO_SERVER, half.output())
            fault = self._settings.verifier.refusal(half.connection)
            asks_the_client = notes.certificate_requested or error.alert in _SERVER_ALERTS
            if fault is None and not asks_the_client and self._without_session(now):
                return
            refusal = fault or self._upstream_fault(error)
            if not self._proving or refusal.reason != "mtls_required":
                self._fail(refusal.status, refusal.reason, refusal.detail, _SERVER_ALERTS.get(error.alert))
                return
            # OpenSSL looks for a certificate of ours once the server's key exchange, which is signed, has been verified
            # (RFC 5246 7.4.3): the server has proven what it had to.
            self._lost, taken = refusal, len(data)
        # With our Finished we also say that we have no certificate, to which the answer may be no. And a server that is
        # only asked for proof sees a handshake that ends, not one that is broken off.
        self._withheld = taken is not None and not notes.certificate_requested and not self._proving
        if not self._withheld:
            self._send(_TO_SERVER, half.output())
        if taken is None:
            return
        self.info.certificate_requested = notes.certificate_requested
        verdict = self._settings.verifier.judge(half.connection, self._server, self._unix_time)
        if isinstance(verdict, Refusal):
            self._fail(verdict.status, verdict.reason, verdict.detail)
            return
        self.info.server = half.leg()
        self.info.resumed = openssl.resumed(half.connection)
        if self.info.server.version != "TLSv1.3":
            self._identity, self._withheld = None, False
        if self.info.server.version == "TLSv1.2" and not openssl.has_extended_master_secret(half.connection):
            self.info.remarks.append("no_extended_master_secret")
        self._upstream_handler = Session._park_upstream
        if taken < len(data):
            self._park_upstream(data[taken:], now)
        if isinstance(verdict, Incomplete):
            self._enter(State.ISSUERS, now + self._settings.issuers_timeout)
            self._events.append(NeedIssuers(verdict.tip))
        else:
            self._accept(verdict, now)

    def _without_session(self, now: float) -> bool:
        """The server broke off. If it was offered a session, which a program that resumes none would not have done, it
        is called once more and offered none. False: there is nothing to be done differently."""
        if not self._shun():
            return False
        self._identity, self._ends = None, ("", *self._ends[1:])
        self._half[_TO_CLIENT] = None
        self._upstream_handler = Session._park_upstream
        self._enter(State.CONNECTING, now + self._settings.connect_timeout)
        self._events.append(ConnectUpstream(self._server))
        return True

    def _shun(self) -> bool:
        """A server that has not finished its handshake is offered no more sessions, if it was offered one."""
        half = self._half[_TO_CLIENT]
        if self._state is not State.UPSTREAM_HANDSHAKE or self._identity is None or half is None:
            return False
        notes: HandshakeNotes = half.connection.get_app_data()
        if notes.offered is None:
            return False
        self._settings.verifier.shun(self._identity, self._unix_time)
        self.info.remarks.append("resumption_failed")
        return True

    def _accept(self, verdict: ServerChain, now: float) -> None:
        self.info.chain = verdict
        self.info.passed = [fault.status.value for fault in verdict.passed]
        self.info.remarks += verdict.leaf.remarks
        if self._settings.revocation and not verdict.unverified:
            self._check_revocation(now)
        else:
            self._ask_for_leaf(now)

    def _check_revocation(self, now: float) -> None:
        chain = self.info.chain
        assert chain is not None
        path = [one.certificate for one in chain.certificates if one.certificate is not None]
        self._findings, questions, unstapled = begin(
            path, chain.staple, self._unix_time, self._settings.verifier.staples
        )
        if unstapled:
            detail = "the certificate demands a stapled OCSP response (RFC 7633), and no good one came"
            if Status.MUST_STAPLE not in self._settings.verifier.passed:
                self._fail(Status.MUST_STAPLE, "must_staple", detail)
                return
            self.info.passed.append(Status.MUST_STAPLE.value)
        if not questions:
            self._conclude_revocation(now)
            return
        self.info.questions = tuple(questions)
        self._open_questions = {question.depth for question in questions}
        self._enter(State.REVOCATION, now + self._settings.revocation_timeout)
        self._events.append(NeedRevocation(tuple(questions)))

    def _revoked_since(self, depth: int, finding: Finding) -> None:
        passes = Status.REVOKED in self._settings.verifier.passed
        if finding.status is Revocation.REVOKED and not passes:
            self.info.revocation = Conclusion(finding, depth)
            action = self._settings.actions.get(Status.REVOKED, self._settings.on_failure)
            if self._settings.watch:
                self.info.would_be = action.value
                self.info.passed = [*dict.fromkeys((*self.info.passed, Status.REVOKED.value))]
                return
            self.info.revocation_action = action.value
            detail = f"while the session was open: {finding.reason} by {finding.method} {finding.source}".rstrip()
            self._fail(Status.REVOKED, "revoked", detail)
        elif self.info.revocation is not None and depth == self.info.revocation.depth and finding.settled:
            self.info.revocation = Conclusion(finding, depth)

    def _conclude_revocation(self, now: float) -> None:
        self._open_questions.clear()
        self.info.revocation = conclude(self._findings)
        finding, depth = self.info.revocation.finding, self.info.revocation.depth
        status = {Revocation.REVOKED: Status.REVOKED, Revocation.UNKNOWN: Status.UNKNOWN}.get(finding.status)
        self.info.revocation_action = "pass"
        if status is not None:
            assert self.info.chain is not None
            if status in self._settings.verifier.passed:
                self.info.passed.append(status.value)
            else:
                action = self._settings.actions.get(status, self._settings.on_failure)
                who = self.info.chain.certificates[depth].subject
                detail = f"{who}: {finding.reason} by {finding.method} {finding.source}".rstrip()
                if self.info.resumed and self._identity is not None:
                    self._settings.verifier.forget(self._identity)  # it may have another certificate by now
                if self._settings.watch:
                    self._fail(status, finding.reason, detail)
                    return
                self.info.revocation_action = action.value
                self._refused = Refusal(status, finding.reason, detail)
                # Nothing the server could still say would reach anybody.
                self._close(_TO_SERVER, _CLOSE_OF[action])
                self._connection_open = False
                self._upstream_handler = Session._ignore
                self._half[_TO_CLIENT] = None
                self._ways[_TO_CLIENT].unpark()
        self._ask_for_leaf(now)

    def _ask_for_leaf(self, now: float) -> None:
        hello, chain, server = self.info.hello, self.info.chain, self.info.server
        assert hello is not None
        assert chain is not None
        assert server is not None
        if self._proving and self._refused is None and _PROVES_NOTHING.isdisjoint(self.info.passed):
            self._events.append(Proven())
            self._end_silently()
            return
        if self._lost is not None and self._refused is None:
            self._fail(self._lost.status, self._lost.reason, self._lost.detail)
            return
        key_type = leaf_key_type(hello, TLS1_3 if server.version == "TLSv1.3" else TLS1_2)
        request = LeafRequest.copy_of(chain.leaf, self._unix_time, key_type)
        self.info.leaf = request
        self._enter(State.LEAF, now + self._settings.leaf_timeout)
        self._events.append(NeedLeaf(request, LeafKey(chain.leaf.sha256, self._settings.ca_id, key_type)))

    def _handshake_client(self, data: bytes, now: float) -> None:
        half = self._half[_TO_SERVER]
        assert half is not None
        if self._second is not None:
            again = self._second_hello(data)
            if again is None:
                return
            data = again
        try:
            taken = half.handshake(data)
        except TlsError as error:
            if self._settings.on_failure is FailAction.REJECT:
                self._send(_TO_CLIENT, half.output())  # the alert says what a plain RST cannot
            reason = "client_refused" if error.alert else "client_handshake"
            if error.alert == UNNAMED_ALERT and self.info.hello is not None and self.info.hello.has_ech:
                reason = "ech_refused"  # it had the keys for an inner hello, and wants nobody but their owner
            self.info.client_alert = error.alert
            if self._refused is not None:
                self._fail(self._refused.status, self._refused.reason, self._refused.detail)
                return
            self._fail(Status.PROTOCOL, reason, f"handshake with the client failed: {error.detail}")
            return
        answer = half.output()  # to a client's Finished, too: one that obeys Nagle waits for it with its request
        self._send(_TO_CLIENT, answer)
        if taken is None:
            if answer[11:43] == _RETRY_REQUEST:
                self._second = ClientHelloReader(self._settings.hello_cap)
            return
        hello = self.info.hello
        assert hello is not None
        if half.servername() != hello.sni_raw:
            self._fail(Status.PROTOCOL, "sni_changed", "the server name changed between two ClientHellos")
            return
        self.info.client = half.leg()
        if self._refused is not None:
            self._enter(State.REFUSING, now + REFUSE_AFTER)
            self._client_handler = Session._hear_request
            self._hear_request(data[taken:], now)
            return
        self.info.established = True
        self._enter(State.RELAY, now + FINISHED_AFTER if self._withheld else None)
        self._client_handler = Session._relay_client
        self._upstream_handler = Session._relay_upstream
        self._events.append(Established(self.info))
        if taken < len(data):
            self._ways[_TO_SERVER].park(data[taken:])
        self._unpark(_TO_SERVER)
        self._unpark(_TO_CLIENT)

    def _second_hello(self, data: bytes) -> bytes | None:
        """What the client sends after a HelloRetryRequest, once its ClientHello is whole and names the same server:
        RFC 8446 4.1.2, it must repeat the first, which is the one that was judged."""
        half = self._half[_TO_SERVER]
        assert self._second is not None
        assert self.info.hello is not None
        assert half is not None
        if not self._second.raw:
            data = self._before_second + data
            self._before_second = b""
            while data[:1] == _CHANGE_CIPHER_SPEC:  # for middleboxes; OpenSSL counts them
                if len(data) < _CHANGE_BYTES:
                    self._before_second = data
                    return None
                half.connection.bio_write(data[:_CHANGE_BYTES])
                data = data[_CHANGE_BYTES:]
            if not data:
                return None
        result = self._second.feed(data)
        if result is None:
            return None
        self._second = None
        if isinstance(result, NotTls):
            self._half[_TO_SERVER] = None
            self._fail(
                Status.PROTOCOL, "second_hello", f"no second ClientHello: {result.reason}", _ALERTS["decode_error"]
            )
            return None
        if result.sni_raw != self.info.hello.sni_raw:
            self._half[_TO_SERVER] = None  # nothing is encrypted yet, so the alert is not either
            self._fail(Status.PROTOCOL, "sni_changed", "the server name changed between two ClientHellos")
            return None
        return result.raw

    def _hear_request(self, data: bytes, now: float) -> None:
        """A client that is refused while it writes would report that, not what happened."""
        half = self._half[_TO_SERVER]
        assert half is not None
        heard = half.decrypt(data)
        self._send(_TO_CLIENT, half.output())
        if heard or half.closed or half.error is not None:
            self._refuse()

    def _refuse(self) -> None:
        half, refused = self._half[_TO_SERVER], self._refused
        assert half is not None
        assert refused is not None
        if self._settings.actions.get(refused.status, self._settings.on_failure) is FailAction.DROP:
            self._send(_TO_CLIENT, half.close_notify())
            self._finish(refused.status, refused.reason, refused.detail, Close.FIN)
        else:
            self._finish(refused.status, refused.reason, refused.detail, Close.RESET)

    def _relay_client(self, data: bytes, now: float) -> None:
        self._relay(_TO_SERVER, data, now)

    def _relay_upstream(self, data: bytes, now: float) -> None:
        self._relay(_TO_CLIENT, data, now)

    def _relay(self, direction: Direction, data: bytes, now: float) -> None:
        if self._deadline is None and len(data) >= BULK:
            self._deadline = now + TRIM_AFTER
        if self._ways[direction].paused:
            self._park(direction, data)
        else:
            self._decrypt(direction, data)

    def _ignore(self, data: bytes, now: float) -> None:
        """DONE."""

    # One way of the relay.

    def _decrypt(self, direction: Direction, data: bytes) -> None:
        way, half = self._ways[direction], self._half[direction]
        assert half is not None
        plaintext = half.decrypt(data)
        if direction is _TO_CLIENT and self._withheld and not data and half.error is None:
            answer = b""
        else:
            answer = half.output()
        if answer:
            if direction is _TO_CLIENT:
                self._withheld = False
            self._send(direction.reply, answer)
            way.control += len(answer)
        if plaintext:
            if direction is _TO_CLIENT and not self.info.plaintext[direction]:
                self._keep()
            self.info.plaintext[direction] += len(plaintext)
            self._events.append(Plaintext(direction, plaintext))
            way.silent = 0
        else:
            way.silent += len(data)
        if way.control > CONTROL_MAX:
            self._finish(Status.PROTOCOL, "control_flood", "too many key updates without data", Close.RESET)
        elif way.silent > SILENT_MAX:
            self._finish(Status.PROTOCOL, "control_flood", "too many records without data", Close.RESET)
        elif half.closed or half.error is not None:
            self._end_of(direction, clean=half.closed)

    def _keep(self) -> None:
        """The session, if the server has sent what lets it be resumed: with its first bytes, as a rule, or later."""
        identity, half, chain = self._identity, self._half[_TO_CLIENT], self.info.chain
        if identity is None or half is None or half.error is not None or chain is None:
            return
        if self._settings.verifier.keep(half.connection, identity, chain, self._unix_time):
            self._identity = None

    def _unpark(self, direction: Direction) -> None:
        """Read what waited, records OpenSSL kept from the handshake included, then the end if it waited too."""
        way = self._ways[direction]
        if not way.paused:
            self._decrypt(direction, way.unpark())
            if way.source_fin and self._state is State.RELAY:
                self._end_of(direction, clean=False)

    def _source_fin(self, direction: Direction) -> None:
        way = self._ways[direction]
        way.source_fin = True
        if way.forwarded_eof:  # close_notify went on earlier, now its FIN does
            self._close(direction, Close.FIN)
        elif not (way.paused and way.parked):
            self._end_of(direction, clean=False)

    def _end_of(self, direction: Direction, *, clean: bool) -> None:
        way = self._ways[direction]
        if not way.ended:
            way.ended = True
            self.info.truncated[direction] = not clean
            self._events.append(Eof(direction, clean))

    # Parking.

    def _park_client(self, data: bytes, now: float) -> None:
        self._park(_TO_SERVER, data)

    def _park_upstream(self, data: bytes, now: float) -> None:
        self._park(_TO_CLIENT, data)

    def _end_handshake(self) -> None:
        """The server has waited long enough for our Finished."""
        half = self._half[_TO_CLIENT]
        if self._withheld and half is not None:
            self._withheld = False
            self._send(_TO_SERVER, half.output())

    def _park(self, direction: Direction, data: bytes) -> None:
        if not self._ways[direction].park(data):
            self._finish(Status.INTERNAL, "parked_full", "bytes kept arriving while none were wanted", Close.RESET)

    # What is acceptable, and what to do when it is not.

    def _alpn_to_offer(self, hello: ClientHello) -> list[bytes]:
        allowed = self._settings.alpn
        return [
            protocol
            for protocol in hello.alpn
            if not (len(protocol) == 2 and is_grease(int.from_bytes(protocol, "big")))
            and (allowed is None or protocol in allowed)
        ]

    def _alpn_problem(self, hello: ClientHello) -> Refusal | None:
        if hello.alpn and not self._alpn_to_offer(hello):
            return Refusal(Status.PROTOCOL, "alpn_not_allowed", "none of the client's ALPN protocols is allowed")
        return None

    def _upstream_fault(self, error: TlsError) -> Refusal:
        if self.info.certificate_requested and error.alert in _NO_CERTIFICATE_ALERTS:
            return Refusal(
                Status.PROTOCOL, "mtls_required", f"the server requires a client certificate: {error.detail}"
            )
        status = Status.INVALID if error.detail in _CERTIFICATE_FAULTS else Status.PROTOCOL
        return Refusal(status, "upstream_handshake", f"handshake with the server failed: {error.detail}")

    def _broken(self, error: TlsError, direction: Direction) -> None:
        """The half that receives ``direction`` failed while relaying: the other side is cut, not closed."""
        self.info.truncated[direction] = True
        half = self._half[direction]
        assert half is not None
        self._send(direction.reply, half.output())
        if direction is _TO_CLIENT:
            refusal = self._upstream_fault(error)
            reason = refusal.reason if refusal.reason == "mtls_required" else "upstream_error"
            self._finish(Status.PROTOCOL, reason, f"TLS error from the server: {error.detail}", Close.RESET)
        else:
            self._finish(Status.PROTOCOL, "client_error", f"TLS error from the client: {error.detail}", Close.RESET)

    def _fail(self, status: Status, reason: str, detail: str, alert: int | None = None) -> None:
        upstream = self._half[_TO_CLIENT]
        if status is Status.NAME_MISMATCH and upstream is not None:
            self.info.server_names = self._settings.verifier.shown_names(upstream.connection)
        action = self._settings.actions.get(status, self._settings.on_failure)
        if self._settings.watch and self._state in _UNANSWERED and status not in _NOT_THE_POLICY:
            self._pass_on(status, reason, detail, action)
            return
        alert = _ALERTS.get(reason, alert)
        if alert is not None and action is FailAction.REJECT and self._half[_TO_SERVER] is None:
            self._send(_TO_CLIENT, bytes((21, 3, 3, 0, 2, 2, alert)))
        self._finish(status, reason, detail, _CLOSE_OF[action])

    def _pass_on(self, status: Status, reason: str, detail: str, action: FailAction) -> None:
        data = self._reader.raw if self._reader is not None else self._ways[_TO_SERVER].unpark()
        self._events.append(PassOn(status, reason, detail, action, data))
        self._end_silently()

    def _end_silently(self) -> None:
        """Nothing is said to either side."""
        self._enter(State.DONE, None)
        self._client_handler = self._upstream_handler = Session._ignore
        self._half = [None, None]
        for way in self._ways:
            way.unpark()

    def _complete(self) -> None:
        self._keep()
        truncated = self.info.truncated
        if truncated[_TO_SERVER] or truncated[_TO_CLIENT]:
            self._finish(Status.OK, "truncated", "a side ended without close_notify", Close.FIN)
        else:
            self._finish(Status.OK, "closed", "", Close.FIN)

    def _finish(self, status: Status, reason: str, detail: str, how: Close) -> None:
        self._close(_TO_CLIENT, how)
        if self._connection_open:
            self._close(_TO_SERVER, how)
        self._events.append(Finished(status, reason, detail, self.info))
        self._enter(State.DONE, None)
        self._client_handler = self._upstream_handler = Session._ignore
        self._leave()
        self._half = [None, None]  # frees OpenSSL's state now, not when the log line is written
        for way in self._ways:
            way.unpark()

    def _leave(self) -> None:
        upstream = self._half[_TO_CLIENT]
        if upstream is not None and self.info.established and upstream.error is None:
            openssl.leave(upstream.connection)

    def _enter(self, state: State, deadline: float | None) -> None:
        self._state = state
        self._deadline = deadline

    def _send(self, direction: Direction, data: bytes) -> None:
        if not data:
            return
        kind = SendUpstream if direction is _TO_SERVER else SendClient
        last = self._events[-1] if self._events and len(data) <= _SMALL else None
        if isinstance(last, kind):
            self._events[-1] = kind(last.data + data)  # one packet on the wire, too
        else:
            self._events.append(kind(data))

    def _close(self, direction: Direction, how: Close) -> None:
        """Close the connection this way leads to; a FIN is said once."""
        way = self._ways[direction]
        if how is Close.FIN and way.fin_sent:
            return
        way.fin_sent = how is Close.FIN
        kind = CloseUpstream if direction is _TO_SERVER else CloseClient
        self._events.append(kind(how, self._unsent(direction) if how is Close.FIN else b""))

    def _unsent(self, direction: Direction) -> bytes:
        """What the owner was to send this way last, and has not been told yet."""
        kind = SendUpstream if direction is _TO_SERVER else SendClient
        for at in range(len(self._events) - 1, -1, -1):
            event = self._events[at]
            if isinstance(event, kind):
                del self._events[at]
                return event.data
        return b""


class _Way:
    """One direction of the relay, from the half that decrypts it to the half that encrypts it."""

    __slots__ = (
        "control",
        "ended",
        "fin_sent",
        "forwarded_eof",
        "parked",
        "parked_bytes",
        "paused",
        "silent",
        "source_fin",
    )

    def __init__(self) -> None:
        self.parked: list[bytes] = []
        self.parked_bytes = 0
        self.paused = False
        self.ended = False  # Eof was said
        self.forwarded_eof = False  # and answered
        self.source_fin = False  # the sender's TCP FIN arrived
        self.fin_sent = False  # and was passed on
        self.silent = 0  # bytes received since the last application byte
        self.control = 0  # bytes answered by OpenSSL itself since the last application byte towards the sender

    def park(self, data: bytes) -> bool:
        """False: over the bound."""
        self.parked.append(data)
        self.parked_bytes += len(data)
        return self.parked_bytes <= PARKED_MAX

    def unpark(self) -> bytes:
        data = b"".join(self.parked)
        self.parked.clear()
        self.parked_bytes = 0
        return data


_CLOSE_OF = {FailAction.DROP: Close.SILENT, FailAction.REJECT: Close.RESET}


def _offer_problem(hello: ClientHello, by_address: bool) -> Refusal | None:
    if hello.sni_problem == "invalid":
        return Refusal(Status.NAME_MISMATCH, "sni_invalid", "the server name asked for is not a host name")
    if hello.sni is None and not by_address:
        detail = (
            "the server name asked for is an address" if hello.sni_problem == "ip_literal" else "no server name (SNI)"
        )
        return Refusal(Status.NO_SNI, "no_sni", detail)
    if TLS1_2 not in hello.versions and TLS1_3 not in hello.versions:
        return Refusal(Status.PROTOCOL, "client_version", "the client offers neither TLS 1.2 nor 1.3")
    if _FALLBACK in hello.ciphers and TLS1_3 not in hello.versions:
        detail = "the client fell back below TLS 1.3 (RFC 7507)"
        return Refusal(Status.PROTOCOL, "inappropriate_fallback", detail)
    return None

"""Sessions servers may resume: for whom, for how long, and that the verdict is the one that was reached before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.x509.ocsp import OCSPCertStatus
from OpenSSL import SSL

from engines.tls import openssl
from engines.tls.events import ConnectUpstream, SendUpstream
from engines.tls.openssl import _lib
from engines.tls.resumption import LARGEST, MAX_AGE, Identity, Resumable, Resumption
from engines.tls.revocation import Finding, Revocation
from engines.tls.session import State
from engines.tls.status import FailAction, Status
from engines.tls.verify import Refusal, UpstreamVerifier
from nfw import tlsrecords
from tests.unit.revocationkit import ocsp_response, pointing
from tests.unit.tlskit import DAY, NOW, TO_CLIENT, Authority, Peer, Wire, World, another, client_peer, server_peer

NAME, OTHER = "a.example.test", "b.example.test"
ENDS = ("10.0.0.2", "203.0.113.1", 443)
TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


# -- what is kept ------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What :class:`Resumption` looks at."""

    not_before: float = NOW - DAY
    not_after: float = NOW + DAY


ONE = Identity(*ENDS, NAME)


def resumable(mark: object, at: float = NOW, **verdict: float) -> Resumable:
    return Resumable(mark, Verdict(**verdict), at)  # type: ignore[arg-type]


def test_the_newest_is_taken_and_once() -> None:
    kept = Resumption()
    for mark in range(4):
        kept.put(ONE, resumable(mark))
    assert len(kept) == 2
    assert [getattr(kept.take(ONE, NOW), "session", None) for _ in range(3)] == [3, 2, None]
    assert len(kept) == 0


@pytest.mark.parametrize(
    "other",
    [{"client": "10.0.0.3"}, {"server": "203.0.113.2"}, {"port": 8443}, {"name": OTHER}],
    ids=lambda other: next(iter(other)),
)
def test_nobody_else_gets_it(other: dict[str, Any]) -> None:
    kept = Resumption()
    kept.put(ONE, resumable(1))
    assert kept.take(replace(ONE, **other), NOW) is None
    assert kept.take(ONE, NOW) is not None


@pytest.mark.parametrize(
    ("kept_at", "verdict", "taken_at", "good"),
    [
        (NOW, {}, NOW + MAX_AGE, True),
        (NOW, {}, NOW + MAX_AGE + 1, False),
        (NOW, {}, NOW - 1, False),
        (NOW, {"not_after": NOW + 60}, NOW + 60, True),
        (NOW, {"not_after": NOW + 60}, NOW + 61, False),
        (NOW, {"not_before": NOW + 5}, NOW + 4, False),
    ],
)
def test_age(kept_at: float, verdict: dict[str, float], taken_at: float, good: bool) -> None:
    kept = Resumption()
    kept.put(ONE, resumable(0, kept_at - 1, **verdict))
    kept.put(ONE, resumable(1, kept_at, **verdict))
    assert (kept.take(ONE, taken_at) is not None) is good
    assert len(kept) == (1 if good else 0), "what is older goes with it"


def test_bound() -> None:
    """Whoever was not heard of for the longest time makes room."""
    kept = Resumption(kept=6)
    many = [replace(ONE, port=port) for port in range(5)]
    for mark in range(2):
        for identity in many[:3]:
            kept.put(identity, resumable(mark))
    kept.put(many[0], resumable(2))
    kept.put(many[3], resumable(0))
    assert len(kept) == 5
    assert [kept.take(identity, NOW) is not None for identity in many] == [True, False, True, True, False]
    kept.forget(many[0])
    kept.forget(many[4])
    assert len(kept) == 1
    assert kept.take(many[2], NOW) is not None


@pytest.mark.parametrize(
    ("verdict_at", "kept"),
    [(-MAX_AGE - 1, True), (-MAX_AGE, False), (-5, False), (0, False), (MAX_AGE, False), (MAX_AGE + 1, True)],
)
def test_nothing_is_kept_for_one_that_cannot_bear_it(verdict_at: float, kept: bool) -> None:
    """Nor of a connection that is older than what went wrong: it may have bytes to say only now."""
    resumption = Resumption()
    resumption.put(ONE, resumable(0))
    resumption.shun(ONE, NOW)
    assert len(resumption) == 0
    resumption.put(ONE, resumable(1, NOW + verdict_at))
    assert len(resumption) == (1 if kept else 0)


# -- on the wire -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return World(resume=True)


def visit(
    world: World,
    server: Peer,
    name: str = NAME,
    *,
    ends: tuple[str, str, int] = ENDS,
    late: float = 0.0,
    findings: dict[int, Finding] | None = None,
    **how: Any,
) -> Wire:
    """To its end, with close_notify of both sides."""
    client = client_peer(name, [world.ca], **how)
    client.send(b"request")
    server.send(b"answer")
    wire = Wire(world, client, server, ends=ends, late=late)
    wire.findings = findings or {}
    wire.run()
    if wire.finished is None:
        server.close_notify()
        client.close_notify()
        wire.run()
    return wire


def resumed(wire: Wire) -> bool:
    """Both sides say so, or neither; and bytes went both ways."""
    assert wire.server is not None
    assert (wire.client.received, wire.server.received) == (b"answer", b"request"), wire.finished
    assert wire.session.info.resumed is openssl.resumed(wire.server.connection)
    assert not openssl.resumed(wire.client.connection)
    return wire.session.info.resumed


@pytest.mark.parametrize("chunk", [1, 1 << 18])
def test_a_server_resumes(chunk: int) -> None:
    """The verdict, the leaf and what is logged are those of the first handshake."""
    world = World(resume=True)
    server = server_peer(*world.root.issue(NAME))
    first = visit(world, server)
    assert not resumed(first)
    for _ in range(3):
        server = another(server)
        client = client_peer(NAME, [world.ca])
        client.send(b"request")
        server.send(b"answer")
        wire = Wire(world, client, server, ends=ENDS, chunk=chunk).run()
        assert resumed(wire)
        info = wire.session.info
        assert info.chain is first.session.info.chain
        assert info.server == first.session.info.server
        record = tlsrecords._negotiated(info)
        assert record["server"]["resumed"] is True
        assert record["chain"] == tlsrecords._negotiated(first.session.info)["chain"]
    assert world.mints == 1
    assert len(world.verifier.resumption or ()) == 1


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        (OTHER, ENDS),
        (NAME, ("10.0.0.3", *ENDS[1:])),
        (NAME, (ENDS[0], "203.0.113.2", 443)),
        (NAME, (*ENDS[:2], 8443)),
        (NAME, ("", *ENDS[1:])),
    ],
)
def test_only_for_the_same_client_and_server(world: World, name: str, ends: tuple[str, str, int]) -> None:
    """Though the server would."""
    server = server_peer(*world.root.issue(NAME, OTHER))
    visit(world, server)
    server = another(server)
    assert not resumed(visit(world, server, name, ends=ends))
    assert resumed(visit(world, another(server)))


def test_a_name_the_certificate_does_not_have(world: World) -> None:
    """A server that would resume is asked for another name: it has to show a certificate, and that is judged."""
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    wire = visit(world, another(server), OTHER)
    assert wire.finished is not None
    assert wire.finished.status is Status.NAME_MISMATCH


def test_another_server_at_the_address_proves_itself(world: World) -> None:
    """It does not know the session; one with a bad certificate gets nowhere by having been preceded by a good one."""
    good = server_peer(*world.root.issue(NAME))
    visit(world, good)
    stranger = World()
    wire = visit(world, server_peer(*stranger.root.issue(NAME)))
    assert wire.finished is not None
    assert wire.finished.status is Status.UNTRUSTED
    visit(world, another(good))
    assert not resumed(visit(world, server_peer(*world.root.issue(NAME))))


def test_the_key_share_is_of_the_group_the_server_took(world: World) -> None:
    """One that has learnt a post-quantum group since is given its share when it asks."""

    def groups(wire: Wire) -> tuple[str, int]:
        assert resumed(wire) or wire.session.info.resumed is False
        assert wire.session.info.server is not None
        first = next(event.data for event in wire.log if isinstance(event, SendUpstream))
        return wire.session.info.server.group, len(first)

    def only(peer: Peer, groups: bytes) -> Peer:
        assert _lib.SSL_set1_curves_list(peer.connection._ssl, groups) == 1
        return peer

    server = server_peer(*world.root.issue(NAME))
    old, hello = groups(visit(world, only(server, b"X25519")))
    assert (old, hello > 1400) == ("x25519", True)
    server = another(server)
    again, shorter = groups(visit(world, only(server, b"X25519")))
    assert (again, shorter < 700) == ("x25519", True)
    assert groups(visit(world, another(server)))[0] == "X25519MLKEM768"


def test_a_policy_without() -> None:
    world = World(resume=False)
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    assert not resumed(visit(world, another(server)))


def test_tls12_is_not_resumed(world: World) -> None:
    server = server_peer(*world.root.issue(NAME), versions=(TLS12, TLS12))
    visit(world, server)
    assert not resumed(visit(world, another(server)))


def test_a_client_without_tls13_is_not_offered_a_session_of_it(world: World) -> None:
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    wire = visit(world, another(server), versions=(TLS12, TLS12))
    assert not resumed(wire)
    assert wire.session.info.server is not None
    assert wire.session.info.server.version == "TLSv1.2"


def test_a_certificate_that_has_expired_since(world: World) -> None:
    server = server_peer(*world.root.issue(NAME, days=(-1, 0.01)))
    visit(world, server)
    wire = visit(world, another(server), late=0.02 * DAY)
    assert wire.finished is not None
    assert wire.finished.status is Status.EXPIRED


def test_an_hour_counts_from_the_full_handshake(world: World) -> None:
    server = server_peer(*world.root.issue(NAME))
    seen = []
    for hours in (0, 0.6, 1.2, 1.3):
        seen.append(resumed(visit(world, server, late=hours * MAX_AGE)))
        server = another(server)
    assert seen == [False, True, False, True]


def test_a_server_that_asked_for_a_certificate(world: World) -> None:
    """What it thinks of us is not taken along."""
    server = server_peer(*world.root.issue(NAME), client_certificate="optional")
    visit(world, server)
    assert not resumed(visit(world, another(server)))


def test_what_the_policy_let_pass_is_judged_again() -> None:
    world = World()
    expired = frozenset([Status.EXPIRED])
    world.verifier = UpstreamVerifier([world.root.certificate], passed=expired, resume=True)
    world.settings = replace(world.settings, verifier=world.verifier)
    server = server_peer(*world.root.issue(NAME, days=(-9, -1)))
    visit(world, server)
    wire = visit(world, another(server))
    assert not resumed(wire)
    assert wire.session.info.passed == ["EXPIRED"]


@pytest.mark.parametrize(
    ("first", "second"),
    [((b"h2", b"http/1.1"), (b"http/1.1",)), ((b"http/1.1",), (b"h2", b"http/1.1")), ((b"h2",), ())],
)
def test_alpn_is_agreed_anew(world: World, first: tuple[bytes, ...], second: tuple[bytes, ...]) -> None:
    server = server_peer(*world.root.issue(NAME), alpn=(b"h2", b"http/1.1"))
    for offered in first, second:
        wire = visit(world, server, alpn=offered)
        assert resumed(wire) is (offered is second)
        assert wire.session.info.server is not None
        assert wire.session.info.client is not None
        expected = offered[0].decode() if offered else ""
        assert (wire.session.info.server.alpn, wire.session.info.client.alpn) == (expected, expected)
        server = another(server)


class Moody(Peer):
    """Answers a ClientHello that offers a session with ``answer``; its other connections are those of ``good``."""

    def __init__(self, good: Peer, answer: bytes) -> None:
        super().__init__(another(good).connection)
        self.answer = answer
        self.hellos: list[bool] = []  # whether a session was offered
        self.out = b""

    def feed(self, data: bytes) -> None:
        self.hellos.append(bytes((0, 41)) in data[-400:])
        if self.hellos[-1]:
            self.out += self.answer
        else:
            super().feed(data)

    def take(self) -> bytes:
        out, self.out = self.out, b""
        return out + super().take()


INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))


@pytest.mark.parametrize(
    "answer",
    [INTERNAL_ERROR, b"HTTP/1.0 400 Bad Request\r\n\r\n", bytes((21, 3, 3, 0, 2, 1, 0)), b"reset", b"end"],
)
@pytest.mark.parametrize("watch", [False, True])
def test_a_server_that_cannot_bear_being_offered_a_session(answer: bytes, watch: bool) -> None:
    """The client hears nothing of it, and no more are offered for as long as they would be kept."""
    world = World(resume=True, watch=watch)
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    client = client_peer(NAME, [world.ca])
    moody = Moody(server, b"" if answer in (b"reset", b"end") else answer)
    client.send(b"request")
    wire = Wire(world, client, moody, ends=ENDS)
    wire.run()
    if not moody.answer:
        assert wire.session.state is State.UPSTREAM_HANDSHAKE
        happened = wire.session.upstream_reset if answer == b"reset" else wire.session.upstream_eof
        happened(0.0)
        wire.answer()
        wire.run()
    assert moody.hellos == [True]
    assert wire.server is not None
    assert wire.server is not moody
    wire.server.send(b"answer")
    wire.run()
    assert not resumed(wire)
    assert wire.names.count("ConnectUpstream") == 2
    assert wire.session.info.remarks == ["resumption_failed"]
    seen = [resumed(visit(world, another(server), late=late)) for late in (1.0, MAX_AGE - 1, MAX_AGE + 1, MAX_AGE + 2)]
    assert seen == [False, False, False, True]


@pytest.mark.parametrize("alert", [70, 86, 120])
def test_an_alert_that_means_the_client(alert: int) -> None:
    """It has nothing to do with the session."""
    world = World(resume=True)
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    wire = visit(world, Moody(server, bytes((21, 3, 3, 0, 2, 2, alert))))
    assert wire.finished is not None
    assert wire.finished.reason == "upstream_handshake"
    assert wire.names.count("ConnectUpstream") == 1
    assert wire.session.info.remarks == []


def test_called_once_more_and_no_oftener() -> None:
    world = World(resume=True)
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    wire = Wire(world, client_peer(NAME, [world.ca]), Moody(server, INTERNAL_ERROR), ends=ENDS, hold=(ConnectUpstream,))
    wire.run()
    for _ in range(2):
        wire.connected = True
        wire.session.upstream_connected(0.0)
        wire.answer()
        wire.feed_upstream(INTERNAL_ERROR)
    assert wire.names.count("ConnectUpstream") == 2
    assert wire.finished is not None
    assert wire.finished.reason == "upstream_handshake"


def test_a_server_that_says_nothing_to_a_session() -> None:
    """The client has waited long enough; the next is not made to."""
    world = World(resume=True)
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    client, moody = client_peer(NAME, [world.ca]), Moody(server, b"")
    wire = Wire(world, client, moody, ends=ENDS).run()
    assert wire.session.deadline is not None
    wire.session.tick(wire.session.deadline)
    wire.answer()
    assert wire.finished is not None
    assert wire.finished.reason == "upstream_timeout"
    assert not resumed(visit(world, another(server)))
    assert not resumed(visit(world, another(server)))


def test_there_is_nothing_to_keep_before_a_ticket_has_come(world: World) -> None:
    """It would push out what can be resumed."""
    server = server_peer(*world.root.issue(NAME))
    client = world.verifier.connection(NAME, NOW)
    while not openssl.handshake(client):
        server.feed(openssl.take(client))
        openssl.feed(client, server.take())
    assert openssl.session_to_keep(client, LARGEST) is None
    server.feed(openssl.take(client))
    openssl.feed(client, server.take())
    assert openssl.read(client) is None
    assert openssl.session_to_keep(client, LARGEST) is not None
    assert openssl.session_to_keep(client, 200) is None


def test_a_server_that_had_nothing_to_say(world: World) -> None:
    """Its ticket is kept in the end."""
    server = server_peer(*world.root.issue("silent.test"))
    for again in (False, True):
        client = client_peer("silent.test", [world.ca])
        client.send(b"request")
        wire = Wire(world, client, server, ends=ENDS).run()
        server.close_notify()
        client.close_notify()
        wire.run()
        assert wire.finished is not None
        assert wire.finished.status is Status.OK
        assert wire.session.info.resumed is again
        server = another(server)


def test_a_session_too_large_to_keep(world: World) -> None:
    """The server's certificate is part of it."""
    many = [f"{number}.{'x' * 60}.example.test" for number in range(200)]
    server = server_peer(*world.root.issue(NAME, *many))
    visit(world, server)
    assert not resumed(visit(world, another(server)))


def test_the_chain_is_not_kept_with_the_session(world: World) -> None:
    between = Authority("Between", world.root)
    server = server_peer(*between.issue(NAME), [between.certificate])
    first = visit(world, server)
    second = visit(world, another(server))
    assert resumed(second)
    assert second.session.info.chain is first.session.info.chain
    assert len(first.session.info.chain.certificates) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("end", ["client_reset", "client_eof", "upstream_reset", "abandon"])
def test_a_connection_that_is_cut_spoils_no_session(world: World, end: str) -> None:
    """Its own, which comes of one that was resumed, is no copy; OpenSSL forbids what was not closed by close_notify."""
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    for _ in range(3):
        server = another(server)
        client = client_peer(NAME, [world.ca])
        client.send(b"request")
        server.send(b"answer")
        wire = Wire(world, client, server, ends=ENDS).run()
        assert resumed(wire)
        getattr(wire.session, end)(0.0)
        wire.answer()
        if end == "client_eof":
            wire.session.upstream_eof(0.0)
            wire.answer()
        assert (wire.finished is None) is (end == "abandon")
        assert not wire.client.closed
        assert not wire.server.closed


def test_connections_that_share_a_session_live_side_by_side(world: World) -> None:
    """That of one that was resumed is offered to the next while the first is still in use."""
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    open_ones = []
    for _ in range(4):
        server, client = another(server), client_peer(NAME, [world.ca])
        client.send(b"request")
        server.send(b"answer")
        wire = Wire(world, client, server, ends=ENDS).run()
        assert resumed(wire)
        open_ones.append(wire)
    for wire in (open_ones[0], open_ones[2]):
        wire.session.client_reset(0.0)
        wire.answer()
    open_ones[1].feed_upstream(b"no record of TLS")
    assert open_ones[1].finished is not None
    assert open_ones[1].finished.reason == "upstream_error"
    open_ones[3].server.send(b"more")  # type: ignore[union-attr]
    open_ones[3].run()
    assert open_ones[3].client.received == b"answermore"
    assert resumed(visit(world, another(server)))


def test_what_ended_in_an_alert_is_not_resumed(world: World) -> None:
    """RFC 5246 7.2.2 says so, RFC 8446 6.2 no longer does; the next handshake is a full one, and succeeds."""
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    server, client = another(server), client_peer(NAME, [world.ca])
    client.send(b"request")
    server.send(b"answer")
    wire = Wire(world, client, server, ends=ENDS).run()
    assert resumed(wire)
    wire.feed_upstream(b"no record of TLS")
    assert wire.finished is not None
    seen = []
    for _ in range(2):
        server = another(server)
        seen.append(resumed(visit(world, server)))
    assert seen == [False, True]


def test_a_session_nobody_was_offered(world: World) -> None:
    """OpenSSL refuses such a server long before. Should it not, there is no verdict to go by."""
    server = server_peer(*world.root.issue(NAME))
    visit(world, server)
    client, server = client_peer(NAME, [world.ca]), another(server)
    wire = Wire(world, client, server, ends=ENDS).run()
    half = wire.session._half[TO_CLIENT]
    assert half is not None
    connection = half.connection
    assert openssl.resumed(connection)
    connection.get_app_data().offered = None
    verdict = world.verifier.judge(connection, NAME, NOW)
    assert isinstance(verdict, Refusal)
    assert verdict.status is Status.PROTOCOL


# -- revocation --------------------------------------------------------------------------------------------------------


def checking() -> World:
    world = World()
    world.verifier = UpstreamVerifier([world.root.certificate], stapling=True, resume=True)
    world.settings = replace(world.settings, verifier=world.verifier, revocation=True, on_failure=FailAction.DROP)
    return world


def answer(status: Revocation) -> dict[int, Finding]:
    return {0: Finding(status, "ocsp", status.value.lower(), int(NOW), int(NOW) + 60, "http://a.test/")}


def test_revocation_is_judged_every_time() -> None:
    """The server is refused, and has to show a certificate next time, which may be a new one."""
    world = checking()
    server = server_peer(*pointing(world.root, NAME))
    seen = []
    for _ in range(2):
        seen.append(resumed(visit(world, server, findings=answer(Revocation.GOOD))))
        server = another(server)
    assert seen == [False, True]
    wire = visit(world, server, findings=answer(Revocation.REVOKED))
    assert wire.finished is not None
    assert wire.finished.status is Status.REVOKED
    assert wire.session.info.resumed
    assert (wire.client.received, server.received) == (b"", b"")
    assert not resumed(visit(world, another(server), findings=answer(Revocation.GOOD)))


def test_a_server_that_staples_is_to_staple_anew() -> None:
    world = checking()
    certificate, key = pointing(world.root, NAME)
    server = server_peer(certificate, key, staple=ocsp_response(certificate, world.root, OCSPCertStatus.GOOD))
    visit(world, server, findings=answer(Revocation.GOOD))
    wire = visit(world, another(server), findings=answer(Revocation.GOOD))
    assert not resumed(wire)
    assert wire.session.info.chain is not None
    assert wire.session.info.chain.staple

"""A server proves to be an exempted name's by its certificate: the session that finds out, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from OpenSSL import SSL

from engines.tls.events import (
    CloseClient,
    ConnectUpstream,
    Finished,
    Hello,
    NeedLeaf,
    NeedRevocation,
    Proven,
    SendClient,
    SendUpstream,
)
from engines.tls.revocation import Revocation
from engines.tls.session import State
from engines.tls.status import Status
from engines.tls.verify import UpstreamVerifier
from nfw.proofs import KEPT_SECONDS, MOST, Answer, Outcome, Proofs
from tests.unit.revocationkit import pointing
from tests.unit.test_tls_revocation import produced_when_judged  # noqa: F401 - a fixture used by itself
from tests.unit.test_tls_session_revocation import checking, found
from tests.unit.tlskit import Authority, Peer, Wire, World, client_peer, server_peer

NAME = "www.example.test"
TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


class Recorded(Peer):
    """Keeps what it says."""

    said = b""

    def take(self) -> bytes:
        data = super().take()
        self.said += data
        return data


def prove(world: World, issued=None, hold: tuple[type, ...] = (), **server) -> Wire:
    """A client that wants NAME, and what a session finds out about the server before it says a word to the client."""
    client = client_peer(NAME, [world.root.certificate])
    peer = server_peer(*(issued or world.root.issue(NAME)), **server)
    wire = Wire(world, client, Recorded(peer.connection), hold=(Hello, *hold))
    wire.findings = {0: found(Revocation.GOOD)}
    wire.run()
    wire.session.proceed(0.0, proving=True)
    wire.answer()
    return wire.run()


def proven(wire: Wire) -> bool:
    """It says so, and has said nothing else to anybody."""
    assert not any(isinstance(event, SendClient) for event in wire.log)
    assert wire.server is not None
    assert wire.server.received == b""
    if not isinstance(wire.log[-1], Proven):
        return False
    assert not any(isinstance(event, CloseClient | Finished | NeedLeaf) for event in wire.log)
    assert (wire.session.state, wire.session.deadline) == (State.DONE, None)
    wire.session.upstream_data(b"late", 1.0)
    wire.session.upstream_reset(1.0)
    assert wire.session.events() == []
    return True


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("wants", [False, "optional", True])
def test_a_good_certificate_proves_it(wants: bool | str, tls: int) -> None:
    """Also where the server wants one of the client, which a name is exempted for more than anything else. One that
    insists on none has seen a handshake from beginning to end."""
    wire = prove(World(), versions=(TLS12, tls), client_certificate=wants)
    assert proven(wire)
    assert wire.server is not None
    assert wire.server.ready is (wants is not True)


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize(
    ("issue", "status"),
    [
        (lambda root: root.issue("other.example.test"), Status.NAME_MISMATCH),
        (lambda root: root.issue(NAME, days=(-60, -1)), Status.EXPIRED),
        (lambda root: Authority().issue(NAME), Status.UNTRUSTED),
    ],
)
@pytest.mark.parametrize("wants", [False, True])
def test_another_does_not(issue: Callable, status: Status, tls: int, wants: bool) -> None:
    world = World()
    wire = prove(world, issue(world.root), versions=(TLS12, tls), client_certificate=wants)
    assert not proven(wire)
    assert wire.finished is not None
    assert wire.finished.status is status


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("wants", [False, True])
def test_a_recording_does_not(tls: int, wants: bool) -> None:
    """Who has the certificate but not the key can only repeat what the server once said to somebody else."""
    world = World()
    good = prove(world, versions=(TLS12, tls), client_certificate=wants)
    assert proven(good)
    assert isinstance(good.server, Recorded)
    client = client_peer(NAME, [world.root.certificate])
    wire = Wire(world, client, None, hold=(Hello, ConnectUpstream, SendUpstream))
    wire.run()
    wire.session.proceed(0.0, proving=True)
    wire.session.upstream_connected(0.0)
    wire.feed_upstream(good.server.said)
    assert wire.finished is not None
    # In TLS 1.2 it is the signature by the certificate's key that is wrong, in 1.3 nothing can be decrypted.
    assert wire.finished.status is (Status.INVALID if tls == TLS12 else Status.PROTOCOL)
    assert "Proven" not in wire.names


@pytest.mark.parametrize("wants", [False, True])
def test_what_the_policy_lets_pass_proves_nothing(wants: bool) -> None:
    """The session goes on as any that is decrypted; where the server has left meanwhile, it ends."""
    world = World()
    verifier = UpstreamVerifier([world.root.certificate], passed=frozenset([Status.EXPIRED]))
    world.settings = type(world.settings)(verifier=verifier, ca_id=b"ca")
    issued = world.root.issue(NAME, days=(-60, -1))
    wire = prove(world, issued, (NeedLeaf,), versions=(TLS12, TLS12), client_certificate=wants)
    assert wire.session.info.passed == ["EXPIRED"]
    assert not proven(wire)
    if wants:
        assert wire.finished is not None
        assert wire.finished.reason == "mtls_required"
    else:
        assert isinstance(wire.log[-1], NeedLeaf)


@pytest.mark.parametrize(
    ("said", "action", "last"),
    [
        (Revocation.GOOD, "reject", Proven),
        (Revocation.UNKNOWN, "pass", Proven),
        (Revocation.UNKNOWN, "reject", NeedLeaf),  # who is told, as AWS tells, with a leaf
        (Revocation.REVOKED, "reject", NeedLeaf),
        (Revocation.REVOKED, "pass", NeedLeaf),
    ],
)
def test_revocation(said: Revocation, action: str, last: type) -> None:
    world = checking(**({said.value: action} if said is not Revocation.GOOD else {}))
    wire = prove(world, pointing(world.root, NAME), (NeedRevocation, NeedLeaf))
    wire.session.revocation_found(0, found(said), 0.0)
    wire.answer()
    assert isinstance(wire.log[-1], last)


def test_a_server_that_resets_while_others_are_asked() -> None:
    """It misses the client's certificate, which in TLS 1.3 it says after it has proven itself."""
    world = checking()
    wire = prove(world, pointing(world.root, NAME), (NeedRevocation,), client_certificate=True)
    wire.session.upstream_reset(0.0)
    wire.session.revocation_found(0, found(Revocation.GOOD), 0.0)
    wire.answer()
    assert proven(wire)


# --- who waits --------------------------------------------------------------------------------------------------------

KEY = (bytes([203, 0, 113, 10]), 443, "a.test", 1)


def test_one_proves_it_for_all() -> None:
    proofs: Proofs[str] = Proofs()
    assert proofs.ask(KEY, "first", 0.0) is Answer.PROVE
    assert [proofs.ask(KEY, who, 0.0) for who in ("second", "third")] == [Answer.WAIT] * 2
    for other in ((KEY[0], 8443, *KEY[2:]), (KEY[0], 443, "b.test", 1), (bytes(16), *KEY[1:]), (*KEY[:3], 2)):
        assert proofs.ask(other, "other", 0.0) is Answer.PROVE
    assert proofs.settle(KEY, "second", Outcome.OPEN, 1.0) == [], "not the one who was asked"
    assert proofs.settle(KEY, "first", Outcome.PROVEN, 1.0) == ["second", "third"]
    assert proofs.settle(KEY, "first", Outcome.PROVEN, 1.0) == []
    assert proofs.ask(KEY, "later", KEPT_SECONDS) is Answer.PROVEN
    assert proofs.ask(KEY, "too late", 2 + KEPT_SECONDS) is Answer.PROVE


@pytest.mark.parametrize("outcome", [Outcome.REFUTED, Outcome.OPEN])
def test_what_is_not_proven_is_not_remembered(outcome: Outcome) -> None:
    proofs: Proofs[str] = Proofs()
    proofs.ask(KEY, "first", 0.0)
    proofs.ask(KEY, "second", 0.0)
    assert proofs.settle(KEY, "first", outcome, 1.0) == ["second"]
    assert len(proofs) == 0
    assert proofs.ask(KEY, "second", 1.0) is Answer.PROVE


def test_what_is_remembered_is_bounded() -> None:
    proofs: Proofs[int] = Proofs()
    for number in range(MOST + 10):
        key = (number.to_bytes(4), 443, "a.test", 1)
        assert proofs.ask(key, number, 0.0) is Answer.PROVE
        proofs.settle(key, number, Outcome.PROVEN, 0.0)
        assert proofs.ask((bytes(4), 443, "a.test", 1), -1, 0.0) is Answer.PROVEN, "in use"
    assert len(proofs) == MOST
    assert proofs.ask(((1).to_bytes(4), 443, "a.test", 1), -1, 0.0) is Answer.PROVE

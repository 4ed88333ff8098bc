"""What a session does about revocation: when it asks, what the client sees, and that no byte of either side passes."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from engines.tls import revocation
from engines.tls.events import NeedIssuers, NeedLeaf, NeedRevocation
from engines.tls.revocation import Finding, Revocation
from engines.tls.session import REFUSE_AFTER, State, TlsSettings
from engines.tls.status import FailAction, Status
from engines.tls.verify import UpstreamVerifier, spki_sha256
from nfw import tlsrecords
from tests.unit.revocationkit import ocsp_response, pointing
from tests.unit.test_tls_revocation import GOOD, REVOKED, produced_when_judged  # noqa: F401 - a fixture used by itself
from tests.unit.tlskit import NOW, Authority, Peer, Wire, World, client_peer, server_peer

NAME = "www.example.test"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


def checking(**actions: str) -> World:
    """A world that checks revocation; ``actions`` by status, in small letters."""
    world = World()
    chosen = {Status[name.upper()]: action for name, action in actions.items()}
    passed = frozenset(status for status, action in chosen.items() if action == "pass")
    refused = frozenset([spki_sha256(world.ca)])
    world.verifier = UpstreamVerifier([world.root.certificate], refused_keys=refused, passed=passed, stapling=True)
    world.settings = TlsSettings(
        verifier=world.verifier,
        ca_id=b"ca",
        revocation=True,
        actions={status: FailAction(action) for status, action in chosen.items() if action != "pass"},
    )
    return world


def found(status: Revocation) -> Finding:
    return Finding(status, "ocsp", status.value.lower(), int(NOW), int(NOW) + 60, "http://ocsp.example.test/")


def meet(
    world: World,
    *,
    findings: dict[int, Finding] | None = None,
    staple: bytes = b"",
    issued=None,
    client: Peer | None = None,
    tls: int = TLS13,
    hold: tuple[type, ...] = (),
    chain: tuple = (),
) -> Wire:
    certificate, key = issued or pointing(world.root, NAME)
    client = client or client_peer(NAME, [world.ca], versions=(TLS12, tls))
    if not client._to_send:
        client.send(REQUEST)
    server = server_peer(certificate, key, chain, staple=staple, versions=(TLS12, tls))
    server.send(b"the server's answer")
    wire = Wire(world, client, server, hold=hold)
    wire.findings = findings or {}
    return wire.run()


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("status", [Revocation.REVOKED, Revocation.UNKNOWN])
@pytest.mark.parametrize("action", ["pass", "drop", "reject"])
def test_action(status: Revocation, action: str, tls: int) -> None:
    """The client gets a handshake with a leaf it trusts; then close_notify, a reset, or what it wanted."""
    world = checking(**{status.value: action})
    wire = meet(world, findings={0: found(status)}, tls=tls)
    assert wire.client.ready
    assert wire.server is not None
    check = tlsrecords._revocation_check(wire.session.info, wire.session.info.chain, wire.session.info.revocation)
    assert (check["status"], check["action"], check["depth"]) == (status.value, action.upper(), 0)
    if action == "pass":
        assert wire.client.received == b"the server's answer"
        assert wire.server.received == REQUEST
        assert wire.session.info.passed == [status.value]
        return
    assert wire.finished is not None
    assert wire.finished.status is Status[status.value]
    assert (wire.client.received, wire.server.received) == (b"", b"")
    assert wire.client.closed is (action == "drop"), "close_notify"
    assert wire.client.fin == ("fin" if action == "drop" else "reset")
    assert wire.server.fin == ("silent" if action == "drop" else "reset")
    assert "Established" not in wire.names


@pytest.mark.parametrize("status", [Revocation.GOOD, Revocation.NOT_REQUIRED])
def test_good_goes_on(status: Revocation) -> None:
    wire = meet(checking(), findings={0: found(status)})
    assert wire.client.received == b"the server's answer"
    assert wire.session.info.passed == []


def test_nothing_is_asked_unless_the_policy_checks() -> None:
    wire = meet(World(), findings={0: found(Revocation.REVOKED)})
    assert "NeedRevocation" not in wire.names
    assert wire.client.received == b"the server's answer"


@pytest.mark.parametrize("action", ["pass", "drop", "reject"])
def test_revoked_while_the_session_is_open(action: str) -> None:
    """The owner asks again; REVOKED ends the session as the policy says, anything else does not."""
    wire = meet(checking(revoked=action), findings={0: found(Revocation.GOOD)})
    session = wire.session
    assert session.state is State.RELAY
    assert [question.depth for question in session.info.questions] == [0]
    for harmless in (Revocation.UNKNOWN, Revocation.GOOD):
        session.revocation_found(0, found(harmless), 1.0)
        assert session.state is State.RELAY
        assert session.info.revocation.finding.status is Revocation.GOOD
    session.revocation_found(0, found(Revocation.REVOKED), 2.0)
    wire.answer()
    if action == "pass":
        assert session.state is State.RELAY
        return
    assert wire.finished.status is Status.REVOKED
    assert wire.client.fin == ("reset" if action == "reject" else "silent")
    assert session.info.revocation_action == action


def test_a_revoked_intermediate_counts() -> None:
    world = checking()
    middle = Authority("Middle", world.root, extra=pointing_extra())
    wire = meet(
        world,
        issued=pointing(middle, NAME),
        chain=(middle.certificate,),
        findings={0: found(Revocation.GOOD), 1: found(Revocation.REVOKED)},
    )
    assert wire.finished is not None
    assert wire.finished.status is Status.REVOKED
    assert "CN=Middle" in wire.finished.detail
    assert wire.session.info.revocation is not None
    assert wire.session.info.revocation.depth == 1


def pointing_extra():
    certificate, _ = pointing(Authority(), NAME)
    from cryptography import x509

    return ((certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value, False),)


def test_a_revoked_staple_needs_no_question() -> None:
    world = checking(revoked="drop")
    issued = pointing(world.root, NAME)
    wire = meet(world, issued=issued, staple=ocsp_response(issued[0], world.root, REVOKED))
    assert "NeedRevocation" not in wire.names
    assert wire.finished is not None
    assert wire.finished.status is Status.REVOKED
    assert wire.session.info.revocation is not None
    assert wire.session.info.revocation.finding.method == "staple"
    assert wire.client.closed


@pytest.mark.parametrize(("later", "status"), [(1, Status.REVOKED), (-9999, None)])
def test_the_fresher_of_staple_and_answer_counts(later: int, status: Status | None) -> None:
    world = checking()
    issued = pointing(world.root, NAME)
    staple = ocsp_response(issued[0], world.root, GOOD)
    at = revocation.judge_ocsp(staple, issued[0], world.root.certificate, NOW).this_update + later
    answer = Finding(Revocation.REVOKED, "ocsp", "revoked", at)
    wire = meet(world, issued=issued, staple=staple, findings={0: answer})
    assert "NeedRevocation" in wire.names
    assert (wire.finished.status if wire.finished else None) is status


def test_a_good_staple_does_without_the_responder() -> None:
    world = checking()
    issued = pointing(world.root, NAME)
    wire = meet(
        world,
        issued=issued,
        staple=ocsp_response(issued[0], world.root, GOOD),
        findings={0: found(Revocation.UNKNOWN)},
    )
    assert wire.client.received == b"the server's answer"


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("stapled", ["good", "bad", "none"])
@pytest.mark.parametrize("action", ["pass", "drop", "reject"])
def test_must_staple(stapled: str, action: str, tls: int) -> None:
    """Ends before ServerHello, as every fault does but revocation itself."""
    world = checking(must_staple=action)
    issued = pointing(world.root, NAME, must_staple=True)
    staple = {"good": ocsp_response(issued[0], world.root, GOOD), "bad": b"rubbish", "none": b""}[stapled]
    wire = meet(world, issued=issued, staple=staple, findings={0: found(Revocation.GOOD)}, tls=tls)
    if stapled == "good" or action == "pass":
        assert wire.client.received == b"the server's answer"
        assert wire.session.info.passed == ([] if stapled == "good" else ["MUST_STAPLE"])
        return
    assert wire.finished is not None
    assert wire.finished.status is Status.MUST_STAPLE
    assert (wire.client.raw_in, wire.client.fin) == (0, "silent" if action == "drop" else "reset")


def test_no_answer_in_time_is_unknown() -> None:
    wire = meet(checking(), hold=(NeedRevocation,))
    assert wire.session.state is State.REVOCATION
    assert wire.client.raw_in == 0, "nothing is said before the verdict"
    deadline = wire.session.deadline
    assert deadline is not None
    wire.session.tick(deadline)
    wire.answer()
    wire.run()
    assert wire.finished is not None
    assert (wire.finished.status, wire.finished.reason) == (Status.UNKNOWN, "timeout")


def test_a_silent_client_is_refused_too() -> None:
    world = checking(revoked="drop")
    client = client_peer(NAME, [world.ca])
    client._to_send.append(b"")
    wire = meet(world, client=client, findings={0: found(Revocation.REVOKED)})
    assert wire.session.state is State.REFUSING
    assert wire.session.deadline == REFUSE_AFTER
    wire.session.tick(REFUSE_AFTER)
    wire.answer()
    assert wire.finished is not None
    assert wire.finished.status is Status.REVOKED
    assert wire.client.closed


@pytest.mark.parametrize("how", ["client_eof", "client_reset", "upstream_eof", "upstream_reset"])
@pytest.mark.parametrize("hold", [(), (NeedLeaf,)])
def test_ends_while_being_refused(how: str, hold: tuple) -> None:
    """Whatever else happens, the session ends once."""
    world = checking()
    client = client_peer(NAME, [world.ca])
    client._to_send.append(b"")
    wire = meet(world, client=client, findings={0: found(Revocation.REVOKED)}, hold=hold)
    assert wire.session.state is (State.LEAF if hold else State.REFUSING)
    getattr(wire.session, how)(0.0)
    wire.answer()
    if how.startswith("upstream"):
        assert wire.finished is None, "the server is out of it"
    else:
        assert wire.finished is not None
        assert wire.finished.status is (Status.ABORTED if hold else Status.REVOKED)


def test_client_that_refuses_the_leaf_does_not_hide_the_verdict() -> None:
    wire = meet(checking(), client=client_peer(NAME, []), findings={0: found(Revocation.REVOKED)})
    assert wire.finished is not None
    assert wire.finished.status is Status.REVOKED


@pytest.mark.parametrize(
    ("offered", "spoken"),
    [((b"h2", b"http/1.1"), b"http/1.1"), ((b"h2",), b"h2"), ((b"http/1.1",), b"http/1.1"), ((), b"")],
)
@pytest.mark.parametrize("status", [Revocation.GOOD, Revocation.REVOKED])
def test_a_refusal_is_said_in_http1(offered: tuple, spoken: bytes, status: Revocation) -> None:
    """curl says "Empty reply from server" of an end without an answer only there."""
    world = checking()
    certificate, key = pointing(world.root, NAME)
    client = client_peer(NAME, [world.ca], alpn=offered)
    wire = Wire(world, client, server_peer(certificate, key, alpn=(b"h2", b"http/1.1")))
    wire.findings = {0: found(status)}
    wire.run()
    assert client.alpn == (offered[0] if offered and status is Revocation.GOOD else spoken)


def incomplete(passed: frozenset[Status] = frozenset(), fetch: bool = True) -> tuple[World, Authority]:
    world = World()
    world.verifier = UpstreamVerifier(
        [world.root.certificate],
        refused_keys=frozenset([spki_sha256(world.ca)]),
        passed=passed,
        fetch_issuers=fetch,
    )
    world.settings = TlsSettings(verifier=world.verifier, ca_id=b"ca", on_failure=FailAction.DROP)
    return world, Authority("Middle", world.root)


def der(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(revocation.serialization.Encoding.DER)


def leave_out(world: World, issued: tuple, issuers: tuple[bytes, ...], chain: tuple = ()) -> Wire:
    client = client_peer(NAME, [world.ca])
    client.send(REQUEST)
    server = server_peer(*issued, chain)
    server.send(b"the server's answer")
    wire = Wire(world, client, server)
    wire.issuers = issuers
    return wire.run()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_missing_issuers_are_fetched(levels: int) -> None:
    world, above = incomplete()
    missing = [der(above)]
    for number in range(levels - 1):
        above = Authority(f"Below {number}", above)
        missing.append(der(above))
    wire = leave_out(world, above.issue(NAME), tuple(missing))
    assert "NeedIssuers" in wire.names
    assert wire.client.received == b"the server's answer"
    chain = wire.session.info.chain
    assert chain is not None
    assert (chain.completed, chain.exception, len(chain.certificates)) == (True, None, levels + 2)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("none", Status.UNTRUSTED),
        ("rubbish", Status.UNTRUSTED),
        ("of another root", Status.UNTRUSTED),
        ("of the same name", Status.UNTRUSTED),
        ("expired", Status.EXPIRED),
        ("no CA", Status.INVALID),
        ("leaf of another name", Status.NAME_MISMATCH),
        ("leaf expired", Status.EXPIRED),
    ],
)
def test_what_is_fetched_is_no_more_trusted_than_what_is_sent(how: str, status: Status) -> None:
    world, middle = incomplete()
    issued = middle.issue(NAME)
    issuers: tuple[bytes, ...] = (der(middle),)
    if how == "none":
        issuers = ()
    elif how == "rubbish":
        issuers = (b"rubbish", b"")
    elif how == "of another root":
        stranger = Authority("Stranger")
        middle = Authority("Middle", stranger)
        issued, issuers = middle.issue(NAME), (der(middle), der(stranger))
    elif how == "of the same name":
        issuers = (der(Authority("Middle", world.root)),)
    elif how in ("expired", "no CA"):
        profile: dict = {"days": (-90, -1)} if how == "expired" else {}
        middle.certificate = world.root.sign(
            subject=middle.name, key=middle.key, ca=how == "expired", eku=None, **profile
        )
        issuers = (der(middle),)
    elif how == "leaf of another name":
        issued = middle.issue("other.test")
    elif how == "leaf expired":
        issued = middle.issue(NAME, days=(-60, -1))
    wire = leave_out(world, issued, issuers)
    assert wire.finished is not None
    assert wire.finished.status is status
    assert wire.server is not None
    assert (wire.client.raw_in, wire.server.received) == (0, b"")


def test_no_issuers_are_fetched_unless_the_policy_says_so() -> None:
    world, middle = incomplete(fetch=False)
    wire = leave_out(world, middle.issue(NAME), (der(middle),))
    assert "NeedIssuers" not in wire.names
    assert wire.finished is not None
    assert wire.finished.status is Status.UNTRUSTED


def test_untrusted_that_is_passed_is_passed_incomplete_too() -> None:
    world, middle = incomplete(frozenset([Status.UNTRUSTED]))
    wire = leave_out(world, middle.issue(NAME), ())
    assert wire.session.info.passed == ["UNTRUSTED"]
    assert wire.client.received == b"the server's answer"


def test_issuers_that_do_not_come_in_time() -> None:
    world, middle = incomplete()
    certificate, key = middle.issue(NAME)
    wire = Wire(world, client_peer(NAME, [world.ca]), server_peer(certificate, key), hold=(NeedIssuers,)).run()
    assert wire.session.state is State.ISSUERS
    assert wire.client.raw_in == 0
    deadline = wire.session.deadline
    assert deadline is not None
    wire.session.tick(deadline)
    wire.answer()
    assert wire.finished is not None
    assert wire.finished.status is Status.UNTRUSTED


def test_answers_nobody_asked_for_are_ignored() -> None:
    wire = meet(checking(), hold=(NeedRevocation,))
    wire.session.revocation_found(7, found(Revocation.REVOKED), 0.0)
    assert wire.session.state is State.REVOCATION
    wire.session.revocation_found(0, found(Revocation.GOOD), 0.0)
    wire.session.revocation_found(0, found(Revocation.REVOKED), 0.0)
    wire.answer()
    wire.run()
    assert wire.client.received == b"the server's answer"

"""What of a policy reaches the TLS engine."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import get_args

import pytest
from cryptography.hazmat.primitives import serialization

from engines.tls.bypass import Proof
from engines.tls.events import Event
from engines.tls.status import FailAction, Status
from engines.tls.verify import spki_sha256
from nfw import ca
from nfw.policy.errors import PolicyErrors
from nfw.policy.loader import load_policy_text
from nfw.tlsworker import HANDLERS, scope_settings, tls_settings
from tests.unit.tlskit import Authority

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
ROOT, BAD = Authority("Root"), Authority("Bad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls")
    ca.create("CA", made, NOW)
    for name, authority in (("root", ROOT), ("bad", BAD)):
        (made / f"{name}.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    return made


TEXT = (
    "tls:\n"
    "  ca: {certificate: ca.pem, private_key: ca.key}\n"
    "  trust: [root.pem, bad.pem]\n"
    "  scopes: [{destination_ports: [443]}]\n"
)


def settings(folder: Path, more: str = ""):
    policy = load_policy_text((TEXT + more).encode(), folder / "policy.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    return tls_settings(policy.tls)


def test_without_a_word_on_it_nothing_is_checked_or_passed(folder: Path) -> None:
    found = settings(folder)
    assert (found.revocation, found.on_failure, found.actions) == (False, FailAction.REJECT, {})
    assert (found.verifier.passed, found.verifier.anchors) == (frozenset(), 2)


@pytest.mark.parametrize(
    ("revocation", "passed", "actions"),
    [
        ("{}", set(), {Status.REVOKED: FailAction.REJECT, Status.UNKNOWN: FailAction.REJECT}),
        ("{revoked: drop, unknown: pass}", {Status.UNKNOWN}, {Status.REVOKED: FailAction.DROP}),
        ("{revoked: pass, unknown: drop}", {Status.REVOKED}, {Status.UNKNOWN: FailAction.DROP}),
    ],
)
def test_revocation(folder: Path, revocation: str, passed: set, actions: dict) -> None:
    found = settings(folder, f"  revocation: {revocation}\n")
    assert found.revocation
    assert (found.verifier.passed, found.actions) == (frozenset(passed), actions)


def test_revocation_that_is_off_does_nothing(folder: Path) -> None:
    found = settings(folder, "  revocation: {check: false, revoked: pass}\n")
    assert (found.revocation, found.actions, found.verifier.passed) == (False, {}, frozenset())


def test_actions(folder: Path) -> None:
    found = settings(folder, "  on_failure: drop\n  actions: {expired: pass, not_yet_valid: reject, not_tls: drop}\n")
    assert found.on_failure is FailAction.DROP
    assert found.verifier.passed == {Status.EXPIRED}
    assert found.actions == {Status.NOT_YET_VALID: FailAction.REJECT, Status.NOT_TLS: FailAction.DROP}


@pytest.mark.parametrize("named", ["bad.pem", spki_sha256(BAD.certificate).hex()])
def test_distrusted_anchors_are_none(folder: Path, named: str) -> None:
    found = settings(folder, f"  distrust: [{named}]\n")
    assert found.verifier.anchors == 1
    assert spki_sha256(BAD.certificate) in found.verifier._refused


def test_scopes_have_roots_of_their_own(folder: Path) -> None:
    scopes = "[{destination_ports: [443]}, {destination_ports: [1], trust: [bad.pem]}, {trust: [bad.pem]}, {}]"
    text = TEXT.replace("[{destination_ports: [443]}]", scopes)
    policy = load_policy_text(text.encode(), folder / "policy.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    default = tls_settings(policy.tls)
    found = scope_settings(policy.tls, default)
    assert [one.verifier.anchors for one in found] == [2, 1, 1, 2]
    assert found[0] is found[3] is default
    assert found[1] is found[2]
    assert [policy.tls.trust_of(scope).files for scope in (0, 1, None, 7)] == [
        policy.tls.trust.files,
        (folder / "bad.pem",),
        policy.tls.trust.files,
        policy.tls.trust.files,
    ]


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("{trust: [missing.pem]}", "trust file .*missing.pem does not exist"),
        ("{trust: []}", "the list is empty"),
        ("{trust: [policy.yaml]}", "holds no certificate"),
        ("{roots: [bad.pem]}", "roots"),
    ],
)
def test_what_is_wrong_with_a_scopes_roots_is_said(folder: Path, scope: str, said: str) -> None:
    (folder / "policy.yaml").write_text("no certificate")
    text = TEXT.replace("[{destination_ports: [443]}]", f"[{scope}]")
    with pytest.raises(PolicyErrors, match=said):
        load_policy_text(text.encode(), folder / "policy.yaml", now=NOW.timestamp())


def test_names_that_are_not_decrypted(folder: Path) -> None:
    more = '  bypass: [{sni: ["*.Bank.example", a.test], destination_ports: ["443-444"]}]\n  resolvers: [192.0.2.53]\n'
    policy = load_policy_text((TEXT + more).encode(), folder / "policy.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    (one,) = policy.tls.bypass
    assert (one.names, one.scope.destination_ports) == (("*.bank.example", "a.test"), ((443, 444),))
    assert policy.tls.resolvers == ("192.0.2.53",)
    assert policy.tls.bypass_proof == (Proof.RESOLVER,)
    assert policy.tls.asks_resolvers


@pytest.mark.parametrize(
    ("written", "proofs"),
    [
        ("[certificate]", (Proof.CERTIFICATE,)),
        ("[certificate, resolver]", (Proof.RESOLVER, Proof.CERTIFICATE)),
        ("[resolver, resolver]", (Proof.RESOLVER,)),
    ],
)
def test_what_proves_an_exempted_name(folder: Path, written: str, proofs: tuple[Proof, ...]) -> None:
    more = f"  bypass: [{{sni: [a.test]}}]\n  bypass_proof: {written}\n"
    policy = load_policy_text((TEXT + more).encode(), folder / "policy.yaml", now=NOW.timestamp())
    assert policy.tls is not None
    assert policy.tls.bypass_proof == proofs
    assert policy.tls.asks_resolvers is (Proof.RESOLVER in proofs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("bypass: [{sni: []}]", "sni"),
        ("bypass: [{}]", "sni"),
        ('bypass: [{sni: ["*.com"]}]', "would cover everybody's names below com"),
        ("bypass: [{sni: [192.0.2.1]}]", "is no host name"),
        ("bypass: [{sni: [a.test], ports: [443]}]", "ports"),
        ("debug: {sni: [a.test]}", "expected key_log, capture, or both"),
        ("debug: {capture: x.pcapng}", "whose sessions are written down"),
        ("debug: {capture: x.pcapng, sni: ['*.com']}", "would cover"),
        ("quic: maybe", "quic"),
        ("bypass_proof: [dns]", "bypass_proof: expected resolver or certificate, got"),
        ("bypass_proof: []", "the list is empty"),
        ("bypass_proof: certificate", "expected a list"),
        ("resolvers: [dns.test]", "expected addresses"),
        ("resolvers: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4]", "at most 3"),
    ],
)
def test_what_is_wrong_with_an_exemption_is_said(folder: Path, more: str, said: str) -> None:
    with pytest.raises(PolicyErrors) as raised:
        load_policy_text(f"{TEXT}  {more}\n".encode(), folder / "policy.yaml", now=NOW.timestamp())
    assert said in str(raised.value)
    assert "policy.yaml:5:" in str(raised.value)


def test_a_worker_knows_what_to_do_about_each_event_of_a_session() -> None:
    assert set(HANDLERS) == set(get_args(Event))

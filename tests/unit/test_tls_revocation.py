"""Revocation judged on bytes: who may say it, whether it is fresh, and whether it is about this certificate."""

from __future__ import annotations

import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.tls import revocation
from engines.tls.revocation import CrlIndex, Finding, Revocation, begin, conclude, fresher, judge_crl, judge_ocsp
from tests.unit.revocationkit import CRL_URL, HOUR, OCSP_URL, crl, ocsp_response, pointing
from tests.unit.tlskit import DAY, NOW, Authority

GOOD, REVOKED, UNKNOWN = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
ROOT = Authority()
LEAF, _ = pointing(ROOT, "www.example.test", crl_urls=(CRL_URL,))
OTHER, _ = pointing(ROOT, "other.example.test")


def judged(der: bytes) -> tuple[str, str]:
    finding = judge_ocsp(der, LEAF, ROOT.certificate, NOW)
    return finding.status.value, finding.reason


def delegate(by: Authority = ROOT, eku: object = ExtendedKeyUsageOID.OCSP_SIGNING, **profile):
    return by.issue("responder", eku=eku, **profile)


NOCHECK = ((x509.OCSPNoCheck(), False),)
LEAF_SIGNER = Authority("www.example.test")
SAME_NAME = Authority("Lab Root")

OCSP_CASES = {
    "good": (lambda: ocsp_response(LEAF, ROOT), "GOOD", "good"),
    "good, responder by name": (lambda: ocsp_response(LEAF, ROOT, by_name=True), "GOOD", "good"),
    "good, SHA-256 names": (lambda: ocsp_response(LEAF, ROOT, algorithm=hashes.SHA256()), "GOOD", "good"),
    "revoked": (lambda: ocsp_response(LEAF, ROOT, REVOKED), "REVOKED", "revoked"),
    "unknown": (lambda: ocsp_response(LEAF, ROOT, UNKNOWN), "UNKNOWN", "responder_unknown"),
    "delegate": (lambda: ocsp_response(LEAF, ROOT, signer=delegate()), "GOOD", "good"),
    "delegate, nocheck": (lambda: ocsp_response(LEAF, ROOT, signer=delegate(extra=NOCHECK)), "GOOD", "good"),
    "delegate by name": (lambda: ocsp_response(LEAF, ROOT, signer=delegate(), by_name=True), "GOOD", "good"),
    "RSA delegate": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(key=rsa.generate_private_key(65537, 2048))),
        "GOOD",
        "good",
    ),
    "delegate not included": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(), include=False),
        "UNKNOWN",
        "unknown_responder",
    ),
    "delegate without the usage": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(eku=ExtendedKeyUsageOID.SERVER_AUTH)),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "delegate with no usage at all": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(eku=None)),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "delegate of another CA": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(Authority("Other CA"))),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "delegate of a CA of the same name": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(SAME_NAME)),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "delegate of an intermediate": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(Authority("Below", ROOT))),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "delegate expired": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(days=(-60, -1))),
        "UNKNOWN",
        "responder_expired",
    ),
    "delegate not yet valid": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(days=(1, 60))),
        "UNKNOWN",
        "responder_expired",
    ),
    "delegate that may not sign": (
        lambda: ocsp_response(LEAF, ROOT, signer=delegate(digital_signature=False)),
        "UNKNOWN",
        "responder_not_authorised",
    ),
    "unrelated CA": (
        lambda: ocsp_response(LEAF, Authority("Other CA"), issuer=ROOT.certificate),
        "UNKNOWN",
        "unknown_responder",
    ),
    "CA of the same name": (
        lambda: ocsp_response(LEAF, SAME_NAME, issuer=ROOT.certificate, by_name=True),
        "UNKNOWN",
        "bad_signature",
    ),
    "another issuer's hash": (
        lambda: ocsp_response(LEAF, ROOT, issuer=SAME_NAME.certificate),
        "UNKNOWN",
        "other_certificate",
    ),
    "an answer to somebody else": (lambda: ocsp_response(LEAF, ROOT, nonce=b"n" * 16), "UNKNOWN", "other_nonce"),
    "another serial": (lambda: ocsp_response(OTHER, ROOT), "UNKNOWN", "other_certificate"),
    "stale": (lambda: ocsp_response(LEAF, ROOT, this_update=-2 * DAY, next_update=-1), "UNKNOWN", "stale"),
    "stale revocation": (
        lambda: ocsp_response(LEAF, ROOT, REVOKED, this_update=-2 * DAY, next_update=-1),
        "UNKNOWN",
        "stale",
    ),
    "no end, of today": (lambda: ocsp_response(LEAF, ROOT, next_update=None), "GOOD", "good"),
    "no end, of yesterday": (
        lambda: ocsp_response(LEAF, ROOT, this_update=-25 * HOUR, next_update=None),
        "UNKNOWN",
        "stale",
    ),
    "from the near future": (lambda: ocsp_response(LEAF, ROOT, this_update=299), "GOOD", "good"),
    "from the future": (lambda: ocsp_response(LEAF, ROOT, this_update=301), "UNKNOWN", "not_yet_valid"),
    "responder busy": (
        lambda: ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
            revocation.serialization.Encoding.DER
        ),
        "UNKNOWN",
        "responder_try_later",
    ),
    "nothing": (lambda: b"", "UNKNOWN", "malformed"),
    "a page": (lambda: b"<html>it works</html>", "UNKNOWN", "malformed"),
}


@pytest.fixture(autouse=True)
def produced_when_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """cryptography stamps producedAt with the clock's time; the tests live in another year."""
    real = revocation._unix

    def shifted(moment):
        at = real(moment)
        return int(NOW) if abs(at - time.time()) < HOUR else at

    monkeypatch.setattr(revocation, "_unix", shifted)


@pytest.mark.parametrize("case", OCSP_CASES)
def test_ocsp(case: str) -> None:
    make, status, reason = OCSP_CASES[case]
    assert judged(make()) == (status, reason)


@pytest.mark.parametrize(("produced", "reason"), [(301, "not_yet_valid"), (-26 * HOUR, "produced_early"), (0, "good")])
def test_time_of_production(monkeypatch: pytest.MonkeyPatch, produced: int, reason: str) -> None:
    shifted = revocation._unix
    at = time.time()

    def stamped(moment):
        real = int(moment.timestamp()) if moment is not None else 0
        return int(NOW) + produced if abs(real - at) < HOUR else shifted(moment)

    monkeypatch.setattr(revocation, "_unix", stamped)
    assert judged(ocsp_response(LEAF, ROOT))[1] == reason


def test_a_flipped_bit_is_no_answer() -> None:
    der = ocsp_response(LEAF, ROOT)
    place = der.index(b"\x80\x00", 40) if b"\x80\x00" in der[40:] else len(der) - 5
    for at in (place, len(der) - 1, len(der) - 20):
        broken = bytearray(der)
        broken[at] ^= 1
        assert judged(bytes(broken))[0] == "UNKNOWN"


def test_an_answer_is_used_for_a_day_at_most() -> None:
    finding = judge_ocsp(ocsp_response(LEAF, ROOT, next_update=7 * DAY), LEAF, ROOT.certificate, NOW)
    assert (finding.this_update, finding.until) == (int(NOW - HOUR), int(NOW + DAY))
    finding = judge_ocsp(ocsp_response(LEAF, ROOT, next_update=HOUR), LEAF, ROOT.certificate, NOW)
    assert finding.until == int(NOW + HOUR)


def point(**chosen: object) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    fields: dict = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
        **chosen,
    }
    return ((x509.IssuingDistributionPoint(**fields), True),)


def uri(url: str) -> list[x509.UniformResourceIdentifier]:
    return [x509.UniformResourceIdentifier(url)]


NO_CRL_SIGN = Authority("No CRL sign")
NO_CRL_SIGN.certificate = NO_CRL_SIGN.sign(
    subject=NO_CRL_SIGN.name, key=NO_CRL_SIGN.key, ca=True, days=(-900, 900), eku=None, crl_sign=False
)
BELOW = Authority("Below", ROOT)
CRITICAL = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),)
ORDINARY = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False),)

CRL_CASES = {
    "not on it": (lambda: crl(ROOT, OTHER), "GOOD", "good"),
    "on it": (lambda: crl(ROOT, OTHER, LEAF), "REVOKED", "revoked"),
    "empty": (lambda: crl(ROOT), "GOOD", "good"),
    "in PEM": (
        lambda: x509.load_der_x509_crl(crl(ROOT, LEAF)).public_bytes(revocation.serialization.Encoding.PEM),
        "REVOKED",
        "revoked",
    ),
    "stale": (lambda: crl(ROOT, LEAF, this_update=-2 * DAY, next_update=-1), "UNKNOWN", "stale"),
    "from the future": (lambda: crl(ROOT, this_update=301), "UNKNOWN", "not_yet_valid"),
    "another issuer": (lambda: crl(Authority("Other CA"), LEAF), "UNKNOWN", "other_issuer"),
    "another issuer of the same name": (lambda: crl(SAME_NAME, LEAF), "UNKNOWN", "bad_signature"),
    "another key": (
        lambda: crl(ROOT, LEAF, key=ec.generate_private_key(ec.SECP256R1())),
        "UNKNOWN",
        "bad_signature",
    ),
    "no number": (lambda: crl(ROOT, number=False), "UNKNOWN", "no_number"),
    "unknown critical extension": (lambda: crl(ROOT, extra=CRITICAL), "UNKNOWN", "critical_extension"),
    "unknown extension": (lambda: crl(ROOT, extra=ORDINARY), "GOOD", "good"),
    "delta": (lambda: crl(ROOT, extra=((x509.DeltaCRLIndicator(3), True),)), "UNKNOWN", "delta"),
    "indirect": (lambda: crl(ROOT, extra=point(indirect_crl=True)), "UNKNOWN", "indirect"),
    "for users": (lambda: crl(ROOT, LEAF, extra=point(only_contains_user_certs=True)), "REVOKED", "revoked"),
    "for authorities": (lambda: crl(ROOT, extra=point(only_contains_ca_certs=True)), "UNKNOWN", "out_of_scope"),
    "for attributes": (
        lambda: crl(ROOT, extra=point(only_contains_attribute_certs=True)),
        "UNKNOWN",
        "out_of_scope",
    ),
    "for some reasons": (
        lambda: crl(ROOT, extra=point(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise]))),
        "UNKNOWN",
        "out_of_scope",
    ),
    "of this point": (lambda: crl(ROOT, LEAF, extra=point(full_name=uri(CRL_URL))), "REVOKED", "revoked"),
    "of another point": (
        lambda: crl(ROOT, extra=point(full_name=uri("http://crl.example.test/2.crl"))),
        "UNKNOWN",
        "other_distribution_point",
    ),
    "nothing": (lambda: b"", "UNKNOWN", "malformed"),
    "a page": (lambda: b"<html>it works</html>", "UNKNOWN", "malformed"),
}


def judged_crl(der: bytes, certificate: x509.Certificate = LEAF, issuer: Authority = ROOT) -> tuple[str, str]:
    index = revocation.read_crl(der, issuer.certificate, NOW)
    if isinstance(index, CrlIndex):
        index = judge_crl(index, certificate, issuer.certificate, revocation.pointers(certificate).crl, NOW)
    return index.status.value, index.reason


@pytest.mark.parametrize("case", CRL_CASES)
def test_crl(case: str) -> None:
    make, status, reason = CRL_CASES[case]
    assert judged_crl(make()) == (status, reason)


def test_crl_of_an_issuer_that_may_not_sign_any() -> None:
    certificate, _ = pointing(NO_CRL_SIGN, "www.example.test", crl_urls=(CRL_URL,))
    assert judged_crl(crl(NO_CRL_SIGN), certificate, NO_CRL_SIGN) == ("UNKNOWN", "issuer_may_not_sign_crls")


def test_crl_for_users_says_nothing_of_an_authority() -> None:
    der = crl(ROOT, extra=point(only_contains_user_certs=True))
    assert judged_crl(der, BELOW.certificate) == ("UNKNOWN", "out_of_scope")
    der = crl(ROOT, BELOW.certificate, extra=point(only_contains_ca_certs=True))
    assert judged_crl(der, BELOW.certificate) == ("REVOKED", "revoked")


def test_an_index_is_asked_later_too() -> None:
    index = revocation.read_crl(crl(ROOT), ROOT.certificate, NOW)
    assert isinstance(index, CrlIndex)
    assert judge_crl(index, LEAF, ROOT.certificate, (), NOW + DAY + 1).reason == "stale"
    assert judge_crl(index, LEAF, SAME_NAME.certificate, (), NOW).reason == "other_issuer"


# -- certificates ----------------------------------------------------------------------------------------------------


def test_pointers() -> None:
    urls = ("ldap://x/", "https://a.test/", "http://a.test/1", "HTTP://a.test/2", "http://a.test/1", "http://a b/")
    certificate, _ = pointing(ROOT, "a.test", ocsp_urls=urls, crl_urls=("file:///etc/passwd",), must_staple=True)
    found = revocation.pointers(certificate)
    assert found.ocsp == ("http://a.test/1", "HTTP://a.test/2")
    assert (found.crl, found.must_staple, found.short_lived) == ((), True, False)
    many = tuple(f"http://a.test/{number}" for number in range(50))
    assert len(revocation.pointers(pointing(ROOT, "a.test", ocsp_urls=many)[0]).ocsp) == 4


@pytest.mark.parametrize(("days", "short"), [((-1, 6), True), ((-1, 6.01), False), ((-30, 60), False)])
def test_short_lived(days: tuple[float, float], short: bool) -> None:
    certificate, _ = pointing(ROOT, "a.test", days=days)
    assert revocation.pointers(certificate).short_lived is short
    findings, questions, _ = begin([certificate, ROOT.certificate], b"", NOW)
    assert bool(questions) is not short
    assert findings == ({0: Finding(Revocation.NOT_REQUIRED, "none", "short_lived")} if short else {})


def test_what_is_asked() -> None:
    silent, _ = BELOW.issue("a.test")
    findings, questions, unstapled = begin([silent, BELOW.certificate, ROOT.certificate], b"", NOW)
    assert (conclude(findings).finding.reason, questions, unstapled) == ("no_pointer", [], False)
    findings, questions, _ = begin([LEAF, ROOT.certificate], b"", NOW)
    assert (findings, [question.depth for question in questions]) == ({}, [0])
    assert conclude(begin([ROOT.certificate], b"", NOW)[0]).finding.status is Revocation.NOT_REQUIRED


MUST, _ = pointing(ROOT, "must.example.test", must_staple=True)


@pytest.mark.parametrize(
    ("staple", "status", "asked", "unstapled"),
    [
        (lambda: b"", None, True, True),
        (lambda: b"rubbish", "UNKNOWN", True, True),
        (lambda: ocsp_response(OTHER, ROOT), "UNKNOWN", True, True),
        (lambda: ocsp_response(MUST, ROOT, UNKNOWN), "UNKNOWN", True, True),
        (lambda: ocsp_response(MUST, ROOT), "GOOD", True, False),
        (lambda: ocsp_response(MUST, ROOT, REVOKED), "REVOKED", False, False),
    ],
)
def test_staples(staple, status: str | None, asked: bool, unstapled: bool) -> None:
    findings, questions, missing = begin([MUST, ROOT.certificate], staple(), NOW)
    assert (findings[0].status.value if findings else None) == status
    assert (bool(questions), missing) == (asked, unstapled)
    assert all(finding.method == "staple" for finding in findings.values())


def test_a_staple_is_judged_once_while_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    staples, judgements = revocation.Staples(2), []

    def judge(*args):
        judgements.append(args)
        return judge_ocsp(*args)

    monkeypatch.setattr(revocation, "judge_ocsp", judge)
    staple = ocsp_response(MUST, ROOT, next_update=HOUR)
    for _ in range(3):
        assert staples.judge(staple, MUST, ROOT.certificate, NOW).status is Revocation.GOOD
    assert len(judgements) == 1
    assert staples.judge(staple, MUST, ROOT.certificate, NOW + HOUR + 1).reason == "stale"
    assert staples.judge(staple, LEAF, ROOT.certificate, NOW).reason == "other_certificate"
    assert staples.judge(staple, MUST, SAME_NAME.certificate, NOW).status is Revocation.UNKNOWN
    for seconds in (1, 2, 3):
        staples.judge(ocsp_response(MUST, ROOT, next_update=HOUR + seconds), MUST, ROOT.certificate, NOW)
    assert len(staples._found) == 2


def finding(status: Revocation, at: int = 0) -> Finding:
    return Finding(status, "ocsp", "x", at)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((Revocation.GOOD, 5), (Revocation.REVOKED, 6), Revocation.REVOKED),
        ((Revocation.GOOD, 7), (Revocation.REVOKED, 6), Revocation.GOOD),
        ((Revocation.GOOD, 5), (Revocation.REVOKED, 5), Revocation.REVOKED),
        ((Revocation.GOOD, 5), (Revocation.UNKNOWN, 6), Revocation.GOOD),
        ((Revocation.UNKNOWN, 9), (Revocation.REVOKED, 5), Revocation.REVOKED),
    ],
)
def test_the_fresher_answer_counts(one: tuple, other: tuple, wanted: Revocation) -> None:
    assert fresher(finding(*one), finding(*other)).status is wanted
    assert fresher(finding(*other), finding(*one)).status is wanted
    assert fresher(None, finding(*one)).status is one[0]


@pytest.mark.parametrize(
    ("statuses", "wanted", "depth"),
    [
        (("GOOD", "GOOD"), "GOOD", 0),
        (("GOOD", "REVOKED"), "REVOKED", 1),
        (("UNKNOWN", "REVOKED"), "REVOKED", 1),
        (("NOT_REQUIRED", "UNKNOWN"), "UNKNOWN", 1),
        (("NOT_REQUIRED", "GOOD"), "NOT_REQUIRED", 0),
    ],
)
def test_the_gravest_finding_of_a_path(statuses: tuple[str, ...], wanted: str, depth: int) -> None:
    conclusion = conclude({at: finding(Revocation[status]) for at, status in enumerate(statuses)})
    assert (conclusion.finding.status.value, conclusion.depth) == (wanted, depth)


def test_request_names_the_certificate() -> None:
    request = ocsp.load_der_ocsp_request(revocation.ocsp_request(LEAF, ROOT.certificate))
    assert request.serial_number == LEAF.serial_number
    assert len(request.extensions) == 0
    assert revocation.pointers(LEAF).ocsp == (OCSP_URL,)


# -- any bytes -------------------------------------------------------------------------------------------------------

RESPONSE, LIST = ocsp_response(LEAF, ROOT, signer=delegate()), crl(ROOT, OTHER)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_bytes_never_raise_and_never_revoke(data: st.DataObject) -> None:
    for der, judge in ((RESPONSE, judged), (LIST, judged_crl)):
        broken = bytearray(der)
        for _ in range(data.draw(st.integers(1, 4))):
            broken[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(broken[: data.draw(st.integers(0, len(broken)))])
        for mutated in (cut, bytes(broken)):
            assert judge(mutated)[0] in ("UNKNOWN", "GOOD")  # good where what was changed is not signed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(noise: bytes) -> None:
    assert judged(noise)[0] == judged_crl(noise)[0] == "UNKNOWN"

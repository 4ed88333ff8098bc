"""Signed certificate timestamps: whose they are, what they cover, and what a policy makes of them."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from engines.tls.status import Status
from engines.tls.transparency import Logs, Timestamps
from engines.tls.verify import Refusal, ServerChain, UpstreamVerifier
from tests.grade import pki
from tests.unit.tlskit import NOW, Authority, server_peer

LOG, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
KEY = ec.generate_private_key(ec.SECP256R1())


def vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, layout)


def with_list(root: Authority, content: bytes) -> x509.Certificate:
    return root.issue("a.test", key=KEY, extra=[(x509.UnrecognizedExtension(LIST, content), False)])[0]


def stamped(root: Authority, *logs: ec.EllipticCurvePrivateKey, flip: bool = False) -> x509.Certificate:
    """A certificate with a timestamp of each log (RFC 6962 3.2 and 3.3)."""
    serial = x509.random_serial_number
    x509.random_serial_number = lambda: 77  # type: ignore[assignment]
    try:
        bare = root.issue("a.test", key=KEY)[0]
        stamps = b""
        for log in logs:
            when = int(NOW * 1000 - 1234).to_bytes(8, "big")
            entry = hashlib.sha256(spki(root.key)).digest() + vector(bare.tbs_certificate_bytes, 3)
            signature = log.sign(b"\0\0" + when + b"\0\1" + entry + b"\0\0", ec.ECDSA(hashes.SHA256()))
            if flip:
                signature = signature[:-1] + bytes((signature[-1] ^ 1,))
            stamp = b"\0" + hashlib.sha256(spki(log)).digest() + when + b"\0\0\4\3" + vector(signature, 2)
            stamps += vector(stamp, 2)
        content = vector(stamps, 2)
        return with_list(root, pki.tlv(4, content))
    finally:
        x509.random_serial_number = serial


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority()


@pytest.mark.parametrize(
    ("logs", "flip", "found"),
    [
        ((), False, Timestamps.ABSENT),
        ((LOG,), False, Timestamps.VALID),
        ((OTHER,), False, Timestamps.INVALID),
        ((OTHER, LOG), False, Timestamps.VALID),
        ((LOG,), True, Timestamps.INVALID),
    ],
)
def test_judgement(root: Authority, logs: tuple, flip: bool, found: Timestamps) -> None:
    certificate = stamped(root, *logs, flip=flip) if logs else root.issue("a.test")[0]
    assert Logs([LOG.public_key()]).judge(certificate, root.certificate) is found
    assert Logs().judge(certificate, root.certificate) is (Timestamps.PRESENT if logs else Timestamps.ABSENT)


def test_of_another_issuer_or_certificate(root: Authority) -> None:
    logs = Logs([LOG.public_key()])
    certificate = stamped(root, LOG)
    assert logs.judge(certificate, Authority("Other").certificate) is Timestamps.INVALID
    moved = certificate.extensions.get_extension_for_oid(LIST).value.public_bytes()
    other = root.issue("b.test", extra=[(x509.UnrecognizedExtension(LIST, moved), False)])[0]
    assert logs.judge(other, root.certificate) is Timestamps.INVALID


@pytest.mark.parametrize("content", [b"", b"\4\0", b"\4\2\0\0", b"\4\4\0\2\0\0", b"\4\x05\0\3\0\1x", b"x" * 40])
def test_any_bytes(root: Authority, content: bytes) -> None:
    found = Logs([LOG.public_key()]).judge(with_list(root, content), root.certificate)
    assert found in (Timestamps.ABSENT, Timestamps.INVALID)


@pytest.mark.parametrize(
    ("public", "require", "logs", "status"),
    [
        (True, True, (), Status.INVALID),
        (True, True, (OTHER,), Status.INVALID),
        (True, True, (LOG,), None),
        (True, False, (), None),
        (False, True, (), None),
    ],
)
def test_only_public_roots_have_to(
    root: Authority, public: bool, require: bool, logs: tuple, status: Status | None
) -> None:
    certificate = stamped(root, *logs) if logs else root.issue("a.test", key=KEY)[0]
    anchors = frozenset([root.certificate.fingerprint(hashes.SHA256())]) if public else frozenset()
    verifier = UpstreamVerifier(
        [root.certificate], public=anchors, logs=Logs([LOG.public_key()]), require_timestamps=require
    )
    server, connection = server_peer(certificate, KEY), verifier.connection("a.test", NOW)
    while True:
        try:
            connection.do_handshake()
            break
        except SSL.WantReadError:
            server.feed(connection.bio_read(65536))
            connection.bio_write(server.take())
    found = verifier.judge(connection, "a.test", NOW)
    if status is None:
        assert isinstance(found, ServerChain)
        assert (found.timestamps is not None) is public
    else:
        assert isinstance(found, Refusal)
        assert (found.status, found.reason[:4]) == (status, "sct_")

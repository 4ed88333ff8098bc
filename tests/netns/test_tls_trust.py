"""Scopes with roots of their own: each server is judged by those of the scope it is reached in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization

from tests.firewall import Firewall
from tests.lab import Lab
from tests.netns.test_tls_path import Server, connect, trusting
from tests.unit.tlskit import Authority

pytestmark = pytest.mark.netns

POLICY = """\
name: trust
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes:
    - {destination_ports: [9443], trust: [company.pem]}
    - {destination_ports: [9444], trust: [company.pem, lab-root.pem]}
    - {destination_ports: ["9443-9445"]}
"""
NAME = "site-a.test"
COMPANY = Authority("Company")


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        pem = COMPANY.certificate.public_bytes(serialization.Encoding.PEM)
        (firewall.dir / "company.pem").write_bytes(pem)
        certificate, key = COMPANY.issue(NAME, days=(-400, 400))
        plain = serialization.NoEncryption()
        certificates = lab.dir / "certificates"
        (certificates / "company.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (certificates / "company.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        firewall.start(firewall.policy("trust", POLICY))
        yield firewall


@pytest.mark.parametrize(
    ("port", "shown", "trusted"),
    [
        (9443, "company", True),
        (9443, NAME, False),
        (9444, "company", True),
        (9444, NAME, True),
        (9445, "company", False),
        (9445, NAME, True),
    ],
)
def test_each_scope_has_its_roots(firewall: Firewall, port: int, shown: str, trusted: bool) -> None:
    """Twice: what one session found out about a server is not what the next one of another scope takes for granted."""
    with Server(firewall.lab, lambda conn: conn.sendall(b"hello"), port=port, name=shown):
        for _ in range(2):
            sock = connect(firewall.lab, port)
            client = sock.getsockname()[1]
            try:
                with sock, trusting(firewall).wrap_socket(sock, server_hostname=NAME) as conn:
                    said = conn.recv(5)
            except OSError:
                said = b""
            assert said == (b"hello" if trusted else b"")
            found = firewall.wait_event("tls", lambda event, client=client: event["src_port"] == client)
            assert found["nfw"]["status"] == ("OK" if trusted else "UNTRUSTED")

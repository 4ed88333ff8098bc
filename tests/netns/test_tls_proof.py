"""Names exempted from decryption that resolve to other addresses at the firewall: their certificate proves them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.firewall import PATIENCE, Firewall, wait_for
from tests.lab import Lab
from tests.netns.test_tls_bypass import CLIENTS, Demanding, greeted
from tests.netns.test_tls_path import Server, connect, read_all

pytestmark = pytest.mark.netns

POLICY = """\
name: proof
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443, 9443]}]
  bypass: [{sni: [allowed.test, evil.test, "*.wild.test", expired.test]}]
  bypass_proof: [resolver, certificate]
stateful: {order: action, rule_files: [proof.rules]}
"""
RULES = """\
drop tls any any -> any any (msg:"sni"; tls.sni; content:"secret.wild.test"; sid:1;)
alert tls any any -> any any (msg:"seen"; tls.sni; content:"allowed.test"; sid:2;)
"""


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("proof", POLICY, RULES))
        yield firewall


class Counting(Server):
    """Greets, and counts the connections it was made; the first handshake waits."""

    def __init__(self, lab: Lab, name: str, patience: float = 0.0) -> None:
        super().__init__(lab, lambda conn: conn.sendall(b"hello"), name=name)
        self.patience = patience
        self.connections = 0

    def _one(self, sock: socket.socket) -> None:
        self.connections += 1
        if self.connections == 1:
            time.sleep(self.patience)
        super()._one(sock)


def ask(firewall: Firewall, name: str) -> tuple[str, int]:
    """(what becomes of a client that trusts the server's own CA, or everybody; the client's port)."""
    context = ssl.create_default_context(cafile=str(firewall.lab.root_ca_path))
    sock = connect(firewall.lab)
    port = sock.getsockname()[1]
    try:
        with sock, context.wrap_socket(sock, server_hostname=name) as conn:
            return read_all(conn)[0].decode(), port
    except ssl.SSLCertVerificationError:
        return "decrypted", port
    except OSError:
        return "closed", port


def record(firewall: Firewall, port: int) -> dict[str, Any]:
    found = firewall.wait_event("tls", lambda event: event["src_port"] == port)
    return found["nfw"]


def test_one_handshake_proves_it_for_all(firewall: Firewall) -> None:
    """The resolver has another address for the name, and the server a certificate."""
    with Counting(firewall.lab, "allowed.test", patience=1.0) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda _: ask(firewall, "allowed.test"), range(4)))
        assert [one for one, _ in said] == ["hello"] * 4
        assert server.connections == 4 + 1
        assert ask(firewall, "allowed.test")[0] == "hello"
        assert server.connections == 4 + 1 + 1, "remembered"
    for _, port in said:
        seen = record(firewall, port)
        assert (seen["status"], seen["bypass"]) == ("BYPASSED", "certificate")
        assert "bypass_refused" not in seen
        alerts = [event for event in firewall.events("alert") if event["src_port"] == port]
        assert len(alerts) == 1, "rules have seen the hello once"


def test_what_proves_it_is_logged(firewall: Firewall) -> None:
    with Counting(firewall.lab, "a.wild.test") as server:
        said, port = ask(firewall, "a.wild.test")
        assert (said, server.connections) == ("hello", 2)
    event = firewall.wait_event("tls", lambda event: event["src_port"] == port)
    assert len(event["tls"]["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("name", "shown", "status"),
    [("evil.test", "site-a.test", "NAME_MISMATCH"), ("expired.test", "expired.test", "EXPIRED")],
)
def test_another_certificate_does_not(firewall: Firewall, name: str, shown: str, status: str) -> None:
    with Counting(firewall.lab, shown) as server:
        for _ in range(2):
            said, port = ask(firewall, name)
            assert said == "closed"
            seen = record(firewall, port)
            assert (seen["status"], seen["action"], seen["bypass_refused"]) == (status, "reject", "certificate")
            assert "bypass" not in seen
        assert server.connections == 2, "the handshake that refutes it is the session's own"


def test_the_server_hears_nothing_of_what_a_rule_forbids(firewall: Firewall) -> None:
    with Counting(firewall.lab, "a.wild.test") as server:
        said, port = ask(firewall, "secret.wild.test")
        assert (said, server.connections) == ("closed", 0)
    assert record(firewall, port)["status"] == "POLICY"


def test_clients_that_leave_do_not_keep_others_waiting(firewall: Firewall) -> None:
    """The one whose handshake was to prove it is gone: the next one proves it."""
    with Counting(firewall.lab, "a.wild.test", patience=3.0) as server:
        context = ssl.create_default_context(cafile=str(firewall.lab.root_ca_path))
        outgoing = ssl.MemoryBIO()
        tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="b.wild.test")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        with connect(firewall.lab) as sock:
            sock.sendall(outgoing.read())
            wait_for(lambda: server.connections == 1, PATIENCE)
        assert ask(firewall, "b.wild.test")[0] == "hello"
        assert server.connections >= 3


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_servers_that_want_a_client_certificate(firewall: Firewall, version: ssl.TLSVersion) -> None:
    lab = firewall.lab
    assert CLIENTS.certificate is not None
    with Demanding(lab, "a.wild.test", ssl.CERT_REQUIRED) as server:
        server.context.minimum_version = server.context.maximum_version = version
        said, port = greeted(firewall, f"{version.name[-1]}.wild.test".lower(), str(lab.root_ca_path))
        assert said == b"hello"
    assert record(firewall, port)["bypass"] == "certificate"

"""Mode monitor with real traffic: what one policy blocks passes, and the records say what would have been."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.firewall import PATIENCE, Firewall
from tests.lab import Lab
from tests.netns.test_tls_bypass import udp_exchange
from tests.netns.test_tls_path import Server, connect
from tests.unit.test_quic_and_ech import KEYED

pytestmark = pytest.mark.netns

POLICY = """\
name: {mode}
mode: {mode}
workers: 1
stateless:
  default: forward
  rules: [{{priority: 1, action: drop, protocols: [tcp], destinations: [203.0.113.12], destination_ports: [80]}}]
tls:
  ca: {{certificate: ca.pem, private_key: ca.key}}
  trust: [lab-root.pem]
  scopes: [{{destination_ports: [443, 9443]}}]
  on_failure: reject
open_flows: {{which: all, action: reject}}
stateful:
  order: strict
  default_actions: [drop_established_app_layer, alert_established_app_layer]
  stream_exception: reject
  rules: |
    drop http any any -> any any (msg:"no b"; http.host; content:"site-b.test"; sid:1;)
    reject tls any any -> any any (msg:"no blocked"; tls.sni; content:"blocked.test"; sid:2;)
    drop http any any -> any any (msg:"no secrets"; http.uri; content:"/secret"; startswith; sid:3;)
    reject udp any any -> any 9 (msg:"no discard"; sid:4;)
    pass http any any -> any any (http.host; content:"site-a.test"; sid:5;)
    pass tcp any any -> any 7 (msg:"echo"; sid:6;)
    pass tls any any -> any any (tls.sni; content:"allowed.test"; sid:7;)
"""

# URL, options of curl, its exit code in mode monitor; the record: event type, reason or status, what would have been.
CASES: list[tuple[str, tuple[str, ...], int, tuple[str, str, str]]] = [
    ("http://evil.test/", (), 0, ("drop", "stateless_rule", "drop")),
    ("http://site-b.test/", (), 0, ("drop", "rule", "drop")),
    ("http://rsa.test/", (), 0, ("drop", "default_drop_established_app_layer", "drop")),
    ("https://blocked.test/", ("--http1.1",), 0, ("drop", "rule", "reject")),
    ("https://allowed.test/secret", ("--http1.1",), 0, ("drop", "rule", "drop")),
    # The client judges such a server itself: 60 is curl's word for a certificate it does not accept.
    ("https://expired.test/", (), 60, ("tls", "EXPIRED", "reject")),
    ("https://unknownca.test/", ("-k",), 0, ("tls", "UNTRUSTED", "reject")),
    ("https://203.0.113.10/", ("-k",), 0, ("tls", "NO_SNI", "reject")),
    ("http://203.0.113.10:443/", (), 0, ("tls", "NOT_TLS", "reject")),
]


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("monitor", POLICY.format(mode="monitor")))
        # curl trusts the lab's root and the inspecting CA, as a client of this router would.
        both = firewall.dir / "both.pem"
        both.write_bytes(lab.root_ca_pem + firewall.ca.read_bytes())
        yield firewall


def curl(firewall: Firewall, url: str, *options: str, seconds: float = PATIENCE) -> int:
    return firewall.lab.curl(url, *options, timeout=seconds, cacert=firewall.dir / "both.pem").returncode


def said(event: dict[str, Any]) -> str:
    return str(event["nfw"].get("status") or event["nfw"].get("reason"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_what_would_be_blocked_passes_and_is_recorded(firewall: Firewall, case: Any) -> None:
    url, options, code, (kind, reason, would_be) = case
    seen = len(firewall.events())
    assert curl(firewall, url, *options) == code
    wanted = {"action": "pass", "would_be": would_be}

    def fits(event: dict[str, Any]) -> bool:
        return event in firewall.events()[seen:] and said(event) == reason and event.get("verdict") == wanted

    firewall.wait_event(kind, fits)
    blocked = [event for event in firewall.events() if event.get("verdict", {}).get("action") in ("drop", "reject")]
    assert blocked == []


def test_a_server_that_is_not_trusted_is_shown_as_it_is(firewall: Firewall) -> None:
    """Never under the CA the client trusts."""
    for name in ("expired.test", "selfsigned.test"):
        shown = firewall.lab.peer_certificate("203.0.113.13", name)
        assert shown is not None
        assert "Lab inspection CA" not in shown.issuer.rfc4514_string()
    shown = firewall.lab.peer_certificate("203.0.113.11", "allowed.test")
    assert shown is not None
    assert "Lab inspection CA" in shown.issuer.rfc4514_string()


def test_datagrams_alerts_and_status(firewall: Firewall) -> None:
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with firewall.lab.in_namespace("server"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, server:
        server.bind(("203.0.113.10", 9))
        server.settimeout(PATIENCE)
        sock.connect(("203.0.113.10", 9))
        sock.send(b"hello")
        assert server.recv(100) == b"hello"
        sock.send(b"again")
        assert server.recv(100) == b"again"
    alert = firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 4)
    assert alert["alert"]["action"] == "allowed"
    assert alert["verdict"] == {"action": "pass", "would_be": "reject"}
    status = firewall.status()
    assert status["mode"] == "monitor"
    verdicts = [key for process in status["processes"] for key in process.get("verdicts", {})]
    assert "stateful/would_reject/rule" in verdicts
    assert not [key for key in verdicts if key.split("/")[1] in ("drop", "reject")]
    assert "MODE MONITOR: NOTHING IS BLOCKED" in firewall.cli("status").stdout.splitlines()[0]
    assert "would reject: rule" in firewall.cli("logs", "--type", "drop", str(firewall.log)).stdout


def test_quic_and_its_offers_and_ech_keys_stay(firewall: Firewall) -> None:
    """What would have been dropped is recorded; what would have been hidden is not a block, and is not told."""
    lab = firewall.lab
    initial = b"\xc3\0\0\0\1" + bytes(1245)
    assert udp_exchange(lab, 443, initial, b"reply") == b"reply"
    assert udp_exchange(lab, 443, initial, b"again") == b"again"
    event = firewall.wait_event("drop", lambda event: event["nfw"]["reason"] == "quic")
    assert event["verdict"] == {"action": "pass", "would_be": "drop"}
    assert udp_exchange(lab, 53, b"question", KEYED) == KEYED
    offered = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=9\r\nContent-Length: 2\r\n\r\nok'

    def answer(conn: ssl.SSLSocket) -> None:
        conn.recv(65536)
        conn.sendall(offered)

    context = ssl.create_default_context(cafile=str(firewall.ca))
    server = Server(lab, answer, port=9443, name="allowed.test")
    with server, context.wrap_socket(connect(lab, 9443), server_hostname="allowed.test") as conn:
        conn.sendall(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
        got = b""
        while len(got) < len(offered):
            got += conn.recv(65536)
        assert got == offered


def test_the_same_policy_enforced_and_monitored_again(firewall: Firewall) -> None:
    """Switching into mode monitor ends no flow; switching out of it does as the policy says."""
    lab = firewall.lab

    def echo() -> socket.socket:
        with lab.in_namespace("client"):
            return socket.create_connection(("203.0.113.10", 7), timeout=PATIENCE)

    def echoes(sock: socket.socket) -> bool:
        try:
            sock.sendall(b"ping")
            return sock.recv(100) == b"ping"
        except (TimeoutError, ConnectionError):
            return False

    enforce = firewall.policy("enforce", POLICY.format(mode="enforce"))
    with echo() as sock:
        assert echoes(sock)
        firewall.apply(enforce)
        assert not echoes(sock)
    for url, options, _, _ in CASES:
        assert curl(firewall, url, *options, seconds=2.0) not in (0, 60), url
    with echo() as sock:
        assert echoes(sock)
        told = firewall.cli("policy", "apply", str(enforce), "--monitor")
        assert "MODE MONITOR" in told.stderr
        assert firewall.status()["mode"] == "monitor"
        assert echoes(sock)
    assert curl(firewall, "http://site-b.test/") == 0
    difference = firewall.cli("policy", "diff", str(enforce)).stdout
    assert "  mode: monitor -> enforce" in difference.splitlines()

"""Servers of one's own, decrypted with their certificates: clients that know nothing of nfw, keys in one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.firewall import PATIENCE, Firewall, children, pids_named, wait_for
from tests.lab import Lab
from tests.netns.test_ca_key import in_memory, open_files

pytestmark = pytest.mark.netns

POLICY = """\
name: inbound
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [9999]}]
inbound:
  - certificates:
      - {certificate: site-a.test.pem, private_key: site-a.test.key}
      - {certificate: rsa.test.pem, private_key: rsa.test.key}
      - {certificate: evil.test.pem, private_key: evil.test.key}
      - {certificate: tls12.test.pem, private_key: tls12.test.key}
    scopes: [{destinations: [203.0.113.0/24, "2001:db8:2::/64"], destination_ports: [443]}]
stateful: {order: action, rule_files: [inbound.rules]}
"""
RULES = 'drop http any any -> any any (msg:"uri"; http.uri; content:"/secret"; startswith; sid:1;)\n'
NAMES = ("site-a.test", "rsa.test", "evil.test", "tls12.test")


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        for name in NAMES:
            for ending in ("pem", "key"):
                shutil.copy(lab.dir / "certificates" / f"{name}.{ending}", firewall.dir)
        firewall.start(firewall.policy("inbound", POLICY, RULES))
        yield firewall


def shown(lab: Lab, name: str, to: str = "") -> x509.Certificate:
    """The certificate a client that trusts the servers' own CA sees."""
    context = ssl.create_default_context(cafile=str(lab.root_ca_path))
    with lab.in_namespace("client"):
        sock = socket.create_connection((to or lab.sites[name].ipv4, 443), PATIENCE)
    with sock, context.wrap_socket(sock, server_hostname=name) as conn:
        der = conn.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize("name", ["site-a.test", "rsa.test", "tls12.test"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_clients_see_the_servers_certificate_and_rules_the_plaintext(
    firewall: Firewall, name: str, version: str
) -> None:
    lab = firewall.lab
    mine = x509.load_pem_x509_certificate((firewall.dir / f"{name}.pem").read_bytes())
    assert shown(lab, name) == mine
    answer = lab.curl(f"https://{name}/whoami", version, cacert=lab.root_ca_path)
    assert answer.returncode == 0, answer.stderr
    began = len(firewall.events("drop"))
    answer = lab.curl(f"https://{name}/secret", "--http1.1", cacert=lab.root_ca_path)
    assert answer.returncode != 0
    wait_for(lambda: len(firewall.events("drop")) > began, PATIENCE)
    seen = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == name and event["nfw"]["status"] == "OK")
    assert seen["nfw"]["inbound"] is True
    assert seen["tls"]["client"]["group"]


def test_a_client_that_obeys_nagle_need_not_wait(firewall: Firewall) -> None:
    """It keeps its request back until its Finished is acknowledged, which no ticket of ours is sent for."""
    lab = firewall.lab
    context = ssl.create_default_context(cafile=str(lab.root_ca_path))
    took = []
    for _ in range(10):
        with lab.in_namespace("client"):
            sock = socket.create_connection((lab.sites["site-a.test"].ipv4, 443), PATIENCE)
        with sock, context.wrap_socket(sock, server_hostname="site-a.test") as conn:
            began = time.monotonic()
            conn.sendall(b"GET /whoami HTTP/1.1\r\nHost: site-a.test\r\n\r\n")
            assert conn.recv(100)
            took.append(time.monotonic() - began)
    assert min(took) < 0.03, took  # the kernel delays an acknowledgement by 40 ms, less the grain of its clock


def test_bulk_and_ipv6(firewall: Firewall) -> None:
    lab = firewall.lab
    assert shown(lab, "site-a.test", lab.sites["site-a.test"].ipv6)
    command = f"curl -sS --cacert {lab.root_ca_path} -r 0-16777215 https://site-a.test/shared/big | wc -c"
    assert lab.client.run(["sh", "-c", command]).stdout.strip() == str(16 << 20)


def test_a_name_without_a_certificate_and_a_server_with_another(firewall: Firewall) -> None:
    lab = firewall.lab
    with pytest.raises(ConnectionError):
        shown(lab, "allowed.test")
    seen = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "allowed.test")
    assert (seen["nfw"]["status"], seen["nfw"]["reason"]) == ("POLICY", "no_certificate")
    with pytest.raises(ConnectionError):
        shown(lab, "evil.test", lab.sites["site-a.test"].ipv4)
    seen = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "evil.test")
    assert seen["nfw"]["status"] in ("UNTRUSTED", "NAME_MISMATCH"), "it does not show what is given here"


@pytest.mark.parametrize(
    ("name", "shown", "verdict", "reason"),
    [("site-a.test", "site-a.test.pem", "drop", "rule"), ("allowed.test", None, "reject", "no_certificate")],
)
def test_explain_says_what_was_seen_above(
    firewall: Firewall, name: str, shown: str | None, verdict: str, reason: str
) -> None:
    flow = ["--src", "10.1.0.2", "--dst", firewall.lab.sites[name].ipv4, "--sni", name, "--http-uri", "/secret"]
    told = json.loads(firewall.cli("explain", "--running", "--json", *flow).stdout)
    assert told["tls"]["certificate"] == (str(firewall.dir / shown) if shown else None)
    assert (told["tls"]["decision"], told["verdict"]["verdict"]) == ("terminate", verdict)
    assert told["verdict"]["reason"] == reason
    assert told["tls"]["scopes"][-1]["inbound"] is True


def test_the_keys_are_in_the_key_holder_alone(firewall: Firewall) -> None:
    needles = []
    for name in ("site-a.test", "rsa.test"):
        key = serialization.load_pem_private_key((firewall.dir / f"{name}.key").read_bytes(), None)
        numbers = key.private_numbers()  # type: ignore[union-attr]
        secret = getattr(numbers, "private_value", 0) or numbers.p  # type: ignore[union-attr]
        size = (secret.bit_length() + 7) // 8
        needles += [secret.to_bytes(size, "big"), secret.to_bytes(size, "little")]
    processes = children(firewall.pid())
    having = {name for pid, name in processes.items() if in_memory(pid, *needles)}
    assert having == {"nfw keyholder"}
    for pid in processes:
        assert not [target for target in open_files(pid) if target.endswith(".key")]


def test_a_key_holder_killed_and_started_again(firewall: Firewall) -> None:
    (holder,) = pids_named(firewall.pid(), "nfw keyholder")
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: [pid for pid in pids_named(firewall.pid(), "nfw keyholder") if pid != holder] != [], PATIENCE)
    assert shown(firewall.lab, "site-a.test")


def test_verified_servers(firewall: Firewall) -> None:
    """Known by name and chain instead; a certificate that is given here only lets the client be answered."""
    lab = firewall.lab
    firewall.apply(firewall.policy("inbound", POLICY.replace("tls:\n", "tls:\n  inbound_upstream: verified\n", 1)))
    assert shown(lab, "site-a.test")
    with pytest.raises(ConnectionError):
        shown(lab, "evil.test", lab.sites["site-a.test"].ipv4)

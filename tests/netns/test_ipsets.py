"""An IP set's file changes while its policy runs: new flows are judged by it, those that are open go on."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.firewall import PATIENCE, Firewall, pids_named, wait_for
from tests.lab import Lab

ADDRESS = "203.0.113.10"
SITE = "site-a.test"
POLICY = """\
name: sets
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful:
  order: action
  refresh: 1
  groups:
    - name: partners
      references: {REFUSED: {file: refused.txt}}
      rules: |
        drop tcp any any -> @REFUSED 7 (msg:"refused"; sid:1;)
        drop http any any -> @REFUSED any (msg:"refused"; http.uri; content:"/"; sid:2;)
        alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:3;)
"""


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        yield firewall


def echoes(firewall: Firewall, sock: socket.socket | None = None) -> bool:
    """Over a connection, or a new one."""
    if sock is None:
        with connect(firewall) as sock:
            return echoes(firewall, sock)
    sock.sendall(b"ping")
    return sock.recv(100) == b"ping"


def refused(firewall: Firewall) -> bool:
    """A new connection does not come about."""
    try:
        connect(firewall, 1.0).close()
    except TimeoutError:
        return True
    return False


def connect(firewall: Firewall, seconds: float = PATIENCE) -> socket.socket:
    with firewall.lab.in_namespace("client"):
        return socket.create_connection((ADDRESS, 7), timeout=seconds)


def fetches(firewall: Firewall, seconds: float = PATIENCE) -> bool:
    """HTTPS, decrypted, within that time."""
    return firewall.lab.curl(f"https://{SITE}/", "-4", timeout=seconds, cacert=firewall.ca).returncode == 0


def told(firewall: Firewall, text: str) -> None:
    wait_for(lambda: text in firewall.output.read_text(), PATIENCE, lambda: firewall.output.read_text())


def test_a_set_that_changes_is_the_content_for_new_flows(firewall: Firewall) -> None:
    file = firewall.dir / "refused.txt"
    file.write_text("192.0.2.1\n")
    firewall.start(firewall.policy("sets", POLICY))
    generation = firewall.status()["generation"]
    with connect(firewall) as sock:
        assert echoes(firewall, sock)
        assert fetches(firewall)

        replaced = firewall.dir / "refused.new"
        replaced.write_text("192.0.2.1\n203.0.113.0/24\n")
        replaced.rename(file)
        told(firewall, f"IP set {file} was read again: 2 entries, before 1")
        wait_for(lambda: refused(firewall), PATIENCE)
        wait_for(lambda: not fetches(firewall, 3.0), PATIENCE)
        assert echoes(firewall, sock)  # it was judged by the former content

        (status,) = firewall.status()["ip_sets"]
        assert (status["entries"], status["problem"]) == (2, "")
        assert f"IP set {file}: 2 entries, read again" in firewall.cli("status").stdout

    for name in ("nfw packet", "nfw tls"):
        for pid in pids_named(firewall.pid(), name):
            os.kill(pid, signal.SIGKILL)
    told(firewall, "starting it again")
    wait_for(lambda: all(one["pid"] for one in firewall.status()["processes"]), PATIENCE)
    assert refused(firewall)  # forked from a leader that has it, too
    assert not fetches(firewall, 3.0)

    file.write_text("198.51.100.0/33\n")
    told(firewall, f"warning: IP set {file} stays what it was, with 2 entries: {file}:1:1: ")
    assert refused(firewall)
    assert "NOT READ ANEW" in firewall.cli("status").stdout

    file.write_text("192.0.2.1\n")
    told(firewall, f"IP set {file} was read again: 1 entry, before 2")
    wait_for(lambda: not refused(firewall), PATIENCE)
    assert echoes(firewall)
    wait_for(lambda: fetches(firewall, 10.0), PATIENCE)
    assert firewall.status()["generation"] == generation

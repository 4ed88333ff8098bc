"""Key log and capture of chosen sessions, as an operator who looks for a fault uses them."""

from __future__ import annotations

import stat

import pytest

from tests.firewall import PATIENCE, Firewall, wait_for
from tests.lab import Lab

pytestmark = pytest.mark.netns

POLICY = """\
name: debug
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
  debug: {key_log: keys.txt, capture: plain.pcapng, sni: [site-a.test]}
"""
RULES = 'alert http any any -> any any (msg:"seen"; http.uri; content:"/whoami"; sid:1;)\n'


def test_chosen_sessions_are_written_down_and_it_is_loud() -> None:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        policy = firewall.policy("debug", POLICY)
        assert "SECRETS OF TLS SESSIONS ARE WRITTEN" in firewall.cli("policy", "check", str(policy)).stderr
        firewall.start(policy)
        assert "SECRETS OF CHOSEN TLS SESSIONS" in firewall.output.read_text()
        for name in ("site-a.test", "site-b.test"):
            answer = lab.curl(f"https://{name}/whoami?{name}", "--http1.1", cacert=firewall.ca)
            assert answer.returncode == 0, answer.stderr
        keys, capture = firewall.dir / "keys.txt", firewall.dir / "plain.pcapng"
        wait_for(lambda: b"/whoami?site-a.test" in capture.read_bytes(), PATIENCE)
        assert [stat.S_IMODE(file.stat().st_mode) for file in (keys, capture)] == [0o600, 0o600]
        lines = [line.split() for line in keys.read_text().splitlines()]
        assert {len(line) for line in lines} == {3}
        randoms = {line[1] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0"}
        assert len(randoms) == 2, "both legs of the one session, and of no other"
        said = firewall.cli("status").stdout
        assert "tls_debug" in said
        assert "plain.pcapng" in said
        rules = firewall.dir / "look.rules"
        rules.write_text(RULES)
        seen = firewall.cli("replay", str(capture), "--rules", str(rules), "--eve", "-").stdout
        assert "/whoami?site-a.test" in seen
        assert "site-b.test" not in seen

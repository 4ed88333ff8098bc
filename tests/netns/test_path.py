"""The whole path on a real kernel: stateless, flow table, TLS, stateful, TLS, egress; both families; both routers."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.firewall import PATIENCE, Firewall
from tests.lab import Lab

pytestmark = pytest.mark.netns

POLICY = """\
name: path
variables: {HOME_NET: [10.1.0.0/16, "fd00:1::/64"]}
stateless:
  default: forward
  rules:
    - {priority: 10, action: drop, protocols: [tcp], destination_ports: [23, "6000-6063"], counters: [legacy]}
    - {priority: 20, action: pass, protocols: [icmp, icmpv6]}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful:
  order: action
  stream_exception: drop
  rule_files: [path.rules]
"""

RULES = """\
drop http any any -> any any (msg:"blocked uri"; http.uri; content:"/secret"; startswith; sid:1; rev:1;)
reject http any any -> any any (msg:"rejected agent"; http.user_agent; content:"badbot"; nocase; sid:2; rev:1;)
alert http any any -> any any (msg:"watched"; http.host; content:"site-b.test"; sid:3; rev:1;)
drop tls any any -> any any (msg:"blocked name"; tls.sni; content:"blocked.test"; sid:4; rev:1;)
drop tcp any any -> any 7 (msg:"echo of evil"; flow:to_server,established; content:"EVIL"; sid:5; rev:1;)
drop udp any any -> any 7 (msg:"udp evil"; content:"EVIL"; sid:6; rev:1;)
drop dns any any -> any any (msg:"bad name"; dns.query; content:"evil.test"; sid:7; rev:1;)
alert tcp any any -> any 7 (msg:"pcre"; flow:to_server,established; content:"num"; pcre:"/num=[0-9]{3}/"; sid:8; rev:1;)
alert tls any any -> any any (msg:"issuer"; flow:to_client; tls.cert_issuer; content:"CN="; tls.certs; content:"site-b.test"; sid:9; rev:1;)
"""  # noqa: E501 - rules are lines


@pytest.fixture(scope="module", params=["plain", "masquerade"])
def firewall(request: pytest.FixtureRequest) -> Iterator[Firewall]:
    with Lab(masquerade=request.param == "masquerade") as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("path", POLICY, RULES))
        yield firewall


def curl(firewall: Firewall, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return firewall.lab.curl(url, *options, cacert=firewall.ca, timeout=PATIENCE)


def requests_seen(lab: Lab, uri: str) -> int:
    return sum(request["uri"].startswith(uri) for request in lab.requests())


def exchange(lab: Lab, address: str, port: int, chunks: list[bytes], seconds: float = PATIENCE) -> bytes:
    """Send the chunks on one TCP connection, each in its own segment, and return what came back.

    `seconds` is how long to wait for more: little where nothing is expected.
    """
    with lab.in_namespace("client"):
        sock = socket.create_connection((address, port), timeout=PATIENCE)
    with sock:
        sock.settimeout(seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got = b""
        try:
            for chunk in chunks:
                sock.sendall(chunk)
                time.sleep(0.02)
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                got += data
        except OSError:
            return got + b"<cut>"
        return got


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_https_passes_with_the_operators_certificate(firewall: Firewall, family: str, version: str) -> None:
    answer = curl(firewall, "https://site-a.test/", family, version, "-w", " %{http_version}")
    assert (answer.returncode, answer.stdout) == (0, f"this is site-a.test\n {'2' if '2' in version else '1.1'}")


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_clear_http_passes(firewall: Firewall, family: str) -> None:
    answer = curl(firewall, "http://site-a.test/", family)
    assert (answer.returncode, answer.stdout) == (0, "this is site-a.test\n")


def test_the_client_address_is_kept_upstream(firewall: Firewall) -> None:
    answer = curl(firewall, "https://site-a.test/whoami", "-4")
    peer = '"peer":"203.0.113.1"' if firewall.lab.masquerade else '"peer":"10.1.0.2"'
    assert peer in answer.stdout


def test_who_does_not_trust_the_ca_refuses(firewall: Firewall) -> None:
    assert firewall.lab.curl("https://site-a.test/").returncode == 60


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_not_a_byte_of_a_blocked_request_arrives(firewall: Firewall, scheme: str, family: str) -> None:
    uri = f"/secret/{scheme}{family}"
    answer = curl(firewall, f"{scheme}://site-a.test{uri}", family, "-m", "2")
    assert answer.returncode != 0
    assert answer.stdout == ""
    assert requests_seen(firewall.lab, uri) == 0
    firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 1 and "http" in event)


def test_a_request_in_many_segments_is_held_until_judged(firewall: Firewall) -> None:
    request = b"GET /secret/split HTTP/1.1\r\nHost: site-a.test\r\nConnection: close\r\n\r\n"
    address = firewall.lab.sites["site-a.test"].ipv4
    got = exchange(firewall.lab, address, 80, [request[at : at + 9] for at in range(0, len(request), 9)], 2.0)
    assert got == b"<cut>"
    good = request.replace(b"/secret/split", b"/whoami")
    assert b'"uri":"/whoami"' in exchange(
        firewall.lab, address, 80, [good[at : at + 9] for at in range(0, len(good), 9)]
    )
    assert requests_seen(firewall.lab, "/secret/split") == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_reject_resets(firewall: Firewall, scheme: str) -> None:
    answer = curl(firewall, f"{scheme}://site-a.test/", "-A", "BadBot/1.0")
    assert "reset" in answer.stderr.lower(), answer.stderr


def test_alert_lets_pass_and_is_logged(firewall: Firewall) -> None:
    answer = curl(firewall, "https://site-b.test/watched")
    assert answer.returncode == 0
    alert = firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 3)
    assert alert["alert"]["action"] == "allowed"
    assert alert["http"]["hostname"] == "site-b.test"
    assert alert["nfw"]["rule_at"].endswith("path.rules:3")


def test_rules_see_the_certificate_the_server_has_shown(firewall: Firewall) -> None:
    assert curl(firewall, "https://site-b.test/").returncode == 0
    alert = firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 9)
    assert alert["tls"]["subject"] == "CN=site-b.test"
    assert alert["tls"]["issuerdn"] == "CN=nfw lab root"  # not that of the certificate made for the client
    assert alert["tls"]["sni"] == "site-b.test"


def test_sni_rule_blocks(firewall: Firewall) -> None:
    assert curl(firewall, "https://blocked.test/").returncode != 0
    assert not firewall.lab.requests("blocked.test")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("expired.test", "EXPIRED"),
        ("future.test", "NOT_YET_VALID"),
        ("selfsigned.test", "UNTRUSTED"),
        ("unknownca.test", "UNTRUSTED"),
        ("wrongname.test", "NAME_MISMATCH"),
        ("halfchain.test", "UNTRUSTED"),
    ],
)
def test_bad_upstream_certificates_are_refused_even_for_careless_clients(
    firewall: Firewall, name: str, status: str
) -> None:
    for option in ("-k", "-s"):
        assert curl(firewall, f"https://{name}/", option).returncode != 0
    assert not firewall.lab.requests(name)
    firewall.wait_event("tls", lambda event: event["nfw"]["status"] == status and event["tls"]["sni"] == name)


def test_spoofed_sni_is_refused(firewall: Firewall) -> None:
    evil = firewall.lab.sites["evil.test"].ipv4
    answer = curl(firewall, "https://allowed.test/", "-k", "--connect-to", f"::{evil}:443")
    assert answer.returncode != 0
    assert not firewall.lab.requests("evil.test")
    firewall.wait_event("tls", lambda event: event["nfw"]["status"] == "NAME_MISMATCH")


@pytest.mark.parametrize(
    ("first", "status"), [(b"GET / HTTP/1.1\r\nHost: site-a.test\r\n\r\n", "NOT_TLS"), (b"SSH-2.0-x\r\n", "NOT_TLS")]
)
def test_what_is_not_tls_is_refused(firewall: Firewall, first: bytes, status: str) -> None:
    got = exchange(firewall.lab, firewall.lab.sites["site-a.test"].ipv4, 443, [first], 2.0)
    assert got in (b"", b"<cut>")
    firewall.wait_event("tls", lambda event: event["nfw"]["status"] == status)


def test_no_sni_is_refused(firewall: Firewall) -> None:
    assert firewall.lab.peer_certificate(firewall.lab.sites["site-a.test"].ipv4, None) is None
    firewall.wait_event("tls", lambda event: event["nfw"]["status"] == "NO_SNI")


def test_alpn_is_the_servers_choice(firewall: Firewall) -> None:
    answer = curl(firewall, "https://http1.test/", "--http2", "-w", " %{http_version}")
    assert (answer.returncode, answer.stdout) == (0, "this is http1.test\n 1.1")


def test_tls12_server(firewall: Firewall) -> None:
    assert curl(firewall, "https://tls12.test/").stdout == "this is tls12.test\n"
    record = firewall.wait_event("tls", lambda event: event["tls"]["sni"] == "tls12.test")
    assert record["nfw"]["status"] == "OK"
    assert (record["tls"]["server"]["version"], record["tls"]["client"]["version"]) == ("TLSv1.2", "TLSv1.2")


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:2::10"])
def test_stateless_drop_and_pass(firewall: Firewall, address: str) -> None:
    with firewall.lab.in_namespace("client"), pytest.raises(TimeoutError):
        socket.create_connection((address, 23), timeout=0.5)
    assert firewall.lab.client.run(["ping", "-c1", f"-W{PATIENCE:.0f}", address], check=False).returncode == 0
    status = firewall.status()
    hits = [process.get("stateless_hits", {}) for process in status["processes"]]
    assert sum(hit.get("10", 0) for hit in hits) > 0
    assert sum(hit.get("20", 0) for hit in hits) > 0
    assert sum(process.get("counters", {}).get("legacy", 0) for process in status["processes"]) > 0


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:2::10"])
def test_stream_content_over_tcp(firewall: Firewall, address: str) -> None:
    assert exchange(firewall.lab, address, 7, [b"hello ", b"num=123 ", b"world"]) == b"hello num=123 world"
    assert exchange(firewall.lab, address, 7, [b"hello ", b"EV", b"IL", b"more"], 2.0).endswith(b"<cut>")
    firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 8)


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:2::10"])
def test_udp(firewall: Firewall, address: str) -> None:
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(PATIENCE)
        sock.connect((address, 7))
        sock.send(b"fine")
        assert sock.recv(100) == b"fine"
        sock.settimeout(1.0)
        sock.send(b"EVIL")
        with pytest.raises(TimeoutError):
            sock.recv(100)


def test_dns_query_rule(firewall: Firewall) -> None:
    server = str(firewall.lab.sites["site-a.test"].ipv4)
    program = (
        "import socket,sys\n"
        "q=b'\\x12\\x34\\x01\\x00\\x00\\x01'+bytes(6)\n"
        "for l in sys.argv[2].split('.'): q+=bytes([len(l)])+l.encode()\n"
        "q+=b'\\0\\0\\1\\0\\1'\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(float(sys.argv[3]));s.sendto(q,(sys.argv[1],53));print(len(s.recv(512)))"
    )
    run = firewall.lab.client.run
    assert run([sys.executable, "-c", program, server, "site-a.test", str(PATIENCE)], check=False).returncode == 0
    assert run([sys.executable, "-c", program, server, "evil.test", "1"], check=False).returncode != 0


def test_git_clone(firewall: Firewall, tmp_path: Path) -> None:
    command = ["git", "-c", f"http.sslCAInfo={firewall.ca}", "clone", "-q"]
    firewall.lab.client.run([*command, "https://site-a.test/shared/repo.git", str(tmp_path / "clone")])
    assert (tmp_path / "clone/README").read_text() == "served again by nginx"
    untrusted = ["git", "-c", f"http.sslCAInfo={firewall.lab.root_ca_path}", "clone", "-q"]
    failed = firewall.lab.client.run(
        [*untrusted, "https://site-a.test/shared/repo.git", str(tmp_path / "no")], check=False
    )
    assert failed.returncode != 0


def test_python_requests(firewall: Firewall) -> None:
    program = "import requests,sys; print(requests.get('https://site-a.test/',verify=sys.argv[1],timeout=20).text)"
    run = firewall.lab.client.run
    assert run([sys.executable, "-c", program, str(firewall.ca)]).stdout == "this is site-a.test\n\n"
    assert run([sys.executable, "-c", program, str(firewall.lab.root_ca_path)], check=False).returncode != 0


def test_node_fetch(firewall: Firewall) -> None:
    program = "fetch('https://site-a.test/').then(r=>r.text()).then(t=>{process.stdout.write(t);process.exit(0)},e=>process.exit(9))"
    run = firewall.lab.client.run
    trusted = run(["node", "-e", program], env={"NODE_EXTRA_CA_CERTS": str(firewall.ca)}, check=False)
    assert (trusted.returncode, trusted.stdout) == (0, "this is site-a.test\n")
    assert run(["node", "-e", program], check=False).returncode == 9


def test_openssl_s_client_verifies_strictly(firewall: Firewall) -> None:
    address = firewall.lab.sites["site-a.test"].ipv4
    command = ["openssl", "s_client", "-connect", f"{address}:443", "-servername", "site-a.test", "-x509_strict"]
    command += ["-verify_hostname", "site-a.test", "-verify_return_error", "-CAfile", str(firewall.ca)]
    answer = firewall.lab.client.run(command, check=False)
    assert "Verify return code: 0 (ok)" in answer.stdout, answer.stdout + answer.stderr


def test_a_gigabyte_each_way(firewall: Firewall, tmp_path: Path) -> None:
    lab = firewall.lab
    pipe = f"curl -sS --cacert {firewall.ca} https://site-a.test/shared/big | sha256sum"
    down = lab.client.run(["sh", "-c", pipe], timeout=300)
    assert down.stdout.split()[0] == lab.big_sha256
    up = lab.client.run(
        [
            *("curl", "-sS", "--cacert", str(firewall.ca), "-T", str(lab.www / "shared/big"), "-o", "/dev/null"),
            *("-w", "%{http_code}", "https://site-a.test/upload/up"),
        ],
        timeout=300,
    )
    assert up.stdout in ("201", "204")
    with (lab.www / "shared/upload/up").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == lab.big_sha256
    (lab.www / "shared/upload/up").unlink()

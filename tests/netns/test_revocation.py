"""Revocation on the wire: real responders, lists, nginx and curl, and what the client sees of each answer."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import ocsp

from tests.firewall import PATIENCE, Firewall, pids_named, wait_for
from tests.lab import Lab
from tests.unit.revocationkit import crl, ocsp_response, pointing
from tests.unit.tlskit import DAY, NOW, Authority, Key

pytestmark = pytest.mark.netns

ADDRESS = "203.0.113.10"
PORT = 9443
OCSP_PORT = 2560
OCSP = f"http://{ADDRESS}:{OCSP_PORT}/"
DEAD = f"http://{ADDRESS}:2561/"
CRL = f"http://{ADDRESS}/lab.crl"

POLICY = """\
name: revocation-{action}
workers: 1
stateless: {{default: forward}}
tls:
  ca: {{certificate: ca.pem, private_key: ca.key}}
  trust: [revocation-root.pem]
  fetch_issuers: true
  scopes: [{{destination_ports: [9443]}}]
  on_failure: {other}
  actions: {{must_staple: {action}}}
  revocation: {{revoked: {action}, unknown: {action}, allow: [{allow}], cache: answers}}
stateful: {{order: action}}
"""

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{servers}
}}
"""

SERVER = """\
    server {{
        listen {address}:{port} ssl http2;
        server_name {name};
        ssl_certificate {folder}/{name}.pem;
        ssl_certificate_key {folder}/{name}.key;
        ssl_protocols {protocols};
        {staple}
        return 200 "hello from {name}\\n";
    }}
"""

# What each site's certificate is, and what becomes of it: the verdict, and by which method.
SITES = {
    "good.test": ("GOOD", "ocsp"),
    "revoked.test": ("REVOKED", "ocsp"),
    "nobody.test": ("UNKNOWN", "ocsp"),
    "listed.test": ("REVOKED", "crl"),
    "unlisted.test": ("GOOD", "crl"),
    "fallback.test": ("REVOKED", "crl"),
    "dead.test": ("UNKNOWN", "ocsp"),
    "silent.test": ("UNKNOWN", "none"),
    "short.test": ("NOT_REQUIRED", "none"),
    "stapled.test": ("GOOD", "staple"),
    "stapled-revoked.test": ("REVOKED", "staple"),
    "below.test": ("REVOKED", "crl"),
}


class Servers:
    """A CA, its sites on nginx, its responder, and its CRL on the lab's own nginx."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.dir / "revocation"
        self.folder.mkdir()
        self.now = time.time()
        self.root = Authority("Revocation Root")
        self.processes: list[subprocess.Popen[Any]] = []
        self.issued: dict[str, tuple[x509.Certificate, Key]] = {}
        self.staples: dict[str, bytes] = {}
        self.issue()
        self.start_responder()
        self.start_nginx()

    def days(self, life: float = 60.0) -> tuple[float, float]:
        """Validity for Authority.sign, which counts from another day."""
        offset = (self.now - NOW) / DAY
        return offset - 1, offset + life

    def issue(self) -> None:
        def leaf(name: str, by: Authority | None = None, life: float = 60.0, **how: Any) -> x509.Certificate:
            self.issued[name] = pointing(by or self.root, name, days=self.days(life), **how)
            return self.issued[name][0]

        for name in ("good.test", "revoked.test", "nobody.test"):
            leaf(name, ocsp_urls=(OCSP,))
        listed = leaf("listed.test", ocsp_urls=(), crl_urls=(CRL,))
        leaf("unlisted.test", ocsp_urls=(), crl_urls=(CRL,))
        fallback = leaf("fallback.test", ocsp_urls=(DEAD,), crl_urls=(CRL,))
        leaf("dead.test", ocsp_urls=(DEAD,))
        leaf("silent.test", ocsp_urls=())
        leaf("short.test", life=5.0, ocsp_urls=())
        leaf("must.test", ocsp_urls=(OCSP,), must_staple=True)
        stapled = leaf("stapled.test", ocsp_urls=(DEAD,), must_staple=True)
        self.staples["stapled.test"] = ocsp_response(stapled, self.root, at=self.now)
        stapled = leaf("stapled-revoked.test", ocsp_urls=(DEAD,))
        self.staples["stapled-revoked.test"] = ocsp_response(
            stapled, self.root, ocsp.OCSPCertStatus.REVOKED, at=self.now
        )
        pointer, _ = pointing(self.root, "x", ocsp_urls=(), crl_urls=(CRL,))
        found = pointer.extensions.get_extension_for_class(x509.CRLDistributionPoints)
        self.middle = Authority("Revoked intermediate", self.root, extra=((found.value, False),))
        leaf("below.test", self.middle, life=5.0, ocsp_urls=())
        hidden = Authority("Hidden intermediate", self.root, extra=((found.value, False),))
        leaf("hidden.test", hidden, life=5.0, ocsp_urls=(), issuer_urls=(f"http://{ADDRESS}/hidden.cer",))
        leaf("lost.test", hidden, life=5.0, ocsp_urls=(), issuer_urls=(f"http://{ADDRESS}/lost.cer",))
        (self.lab.www / "site-a.test" / "hidden.cer").write_bytes(
            hidden.certificate.public_bytes(serialization.Encoding.DER)
        )
        lists = crl(self.root, listed, fallback, self.middle.certificate, at=self.now)
        (self.lab.www / "site-a.test" / "lab.crl").write_bytes(lists)

    def start_responder(self) -> None:
        def line(name: str, status: str) -> str:
            certificate = self.issued[name][0]
            serial = f"{certificate.serial_number:X}"
            serial = serial.zfill(len(serial) + len(serial) % 2)
            end = certificate.not_valid_after_utc.strftime("%y%m%d%H%M%SZ")
            revoked = time.strftime("%y%m%d%H%M%SZ", time.gmtime(self.now - 3600)) if status == "R" else ""
            return f"{status}\t{end}\t{revoked}\t{serial}\tunknown\t/CN={name}\n"

        index = line("good.test", "V") + line("revoked.test", "R") + line("must.test", "V")
        (self.folder / "index.txt").write_text(index)
        self._write("root", self.root.certificate, self.root.key)
        command = ["openssl", "ocsp", "-port", str(OCSP_PORT), "-index", "index.txt", "-CA", "root.pem"]
        command += ["-rsigner", "root.pem", "-rkey", "root.key", "-nmin", "60"]
        self._start(command, "ocsp")

    def start_nginx(self) -> None:
        servers = []
        for name, (certificate, key) in self.issued.items():
            self._write(name, certificate, key, *([self.middle.certificate] if name == "below.test" else []))
            staple, protocols = "", "TLSv1.2 TLSv1.3"
            if name in self.staples:
                (self.folder / f"{name}.staple").write_bytes(self.staples[name])
                staple = f"ssl_stapling on; ssl_stapling_file {self.folder}/{name}.staple;"
            servers.append(
                SERVER.format(
                    address=ADDRESS, port=PORT, name=name, folder=self.folder, staple=staple, protocols=protocols
                )
            )
        (self.folder / "nginx.conf").write_text(NGINX.format(folder=self.folder, servers="".join(servers)))
        self._start(["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")], "nginx")

    def await_listening(self) -> None:
        # Asked of the kernel: the responder serves one after the other, and would wait for what a mere probe says.
        def listening() -> bool:
            shown = self.lab.server.run(["ss", "-Hltn"]).stdout
            return all(f":{port} " in shown for port in (PORT, OCSP_PORT))

        wait_for(listening, PATIENCE)

    def asked(self) -> int:
        """OCSP requests the responder has had."""
        return (self.folder / "ocsp.out").read_text(errors="replace").count("Received request")

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def _write(self, name: str, certificate: x509.Certificate, key: Key, *chain: x509.Certificate) -> None:
        pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (certificate, *chain))
        (self.folder / f"{name}.pem").write_bytes(pem)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / f"{name}.key").write_bytes(secret)

    def _start(self, command: list[str], name: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            self.processes.append(
                self.lab.server.popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                    death_signal="TERM",
                )
            )


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Lab() as lab:
        made = Servers(lab)
        try:
            made.await_listening()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def firewall(servers: Servers) -> Iterator[Firewall]:
    with Firewall(servers.lab) as firewall:
        (firewall.dir / "revocation-root.pem").write_bytes((servers.folder / "root.pem").read_bytes())
        firewall.start(policy(firewall, "drop"))
        yield firewall


def policy(firewall: Firewall, action: str, allow: str = "203.0.113.0/24") -> Path:
    other = "drop" if action == "reject" else "reject"  # what must not be taken instead
    return firewall.policy(f"revocation-{action}", POLICY.format(action=action, other=other, allow=allow))


def get(firewall: Firewall, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    resolve = ["--resolve", f"{name}:{PORT}:{ADDRESS}"]
    return firewall.lab.curl(f"https://{name}:{PORT}/", *resolve, *options, cacert=firewall.ca)


def judged(firewall: Firewall, name: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What curl says and the record, once there is an answer: on a busy machine none may come in the time there is."""
    until = time.monotonic() + PATIENCE
    while True:
        since = len(firewall.events("tls"))
        done = get(firewall, name, *options)
        event = record(firewall, name, since)
        if event.get("revocation_check", {}).get("reason") != "timeout" or time.monotonic() > until:
            return done, event


def record(firewall: Firewall, name: str, since: int) -> dict[str, Any]:
    def there() -> list[dict[str, Any]]:
        return [one for one in firewall.events("tls")[since:] if one["tls"]["sni"] == name]

    wait_for(lambda: bool(there()), PATIENCE)
    return there()[-1]


@pytest.mark.parametrize("action", ["drop", "reject", "pass"])
@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
def test_what_curl_sees(firewall: Firewall, action: str, http: str) -> None:
    """The handshake succeeds with a certificate curl trusts; then 52 (drop), 56 (reject), or the page (pass)."""
    firewall.apply(policy(firewall, action))
    for name, (status, method) in SITES.items():
        done, event = judged(firewall, name, http, "-v")
        blocked = status in ("REVOKED", "UNKNOWN") and action != "pass"
        told = f"{name} {action} {http}: {event} {done.stderr} {firewall.output.read_text()[-2000:]}"
        assert "SSL certificate verify ok" in done.stderr, told
        if not blocked:
            assert (done.returncode, done.stdout) == (0, f"hello from {name}\n"), told
        elif action == "drop":
            assert done.returncode == 52, told
            assert "Empty reply from server" in done.stderr, told
        else:
            assert done.returncode == 56, told
            assert "Connection reset by peer" in done.stderr, told
        check = event["revocation_check"]
        assert (check["status"], check["method"]) == (status, method), event
        wanted = action if status in ("REVOKED", "UNKNOWN") else "pass"
        assert check["action"] == wanted.upper()
        assert event["nfw"]["status"] == (status if blocked else "OK")
        assert check["depth"] == (1 if name == "below.test" else 0)


@pytest.mark.parametrize(("action", "code"), [("drop", (35,)), ("reject", (35,)), ("pass", (0,))])
def test_other_statuses_end_before_server_hello(firewall: Firewall, action: str, code: tuple[int, ...]) -> None:
    firewall.apply(policy(firewall, action))
    since = len(firewall.events("tls"))
    done = get(firewall, "must.test", "-v")
    assert done.returncode in code, done.stderr
    assert ("Server hello" in done.stderr) is (action == "pass"), done.stderr
    assert ("reset by peer" in done.stderr) is (action == "reject"), done.stderr
    event = record(firewall, "must.test", since)
    assert event["nfw"]["status"] == ("OK" if action == "pass" else "MUST_STAPLE")


def test_intermediates_a_server_leaves_out(firewall: Firewall) -> None:
    firewall.apply(policy(firewall, "drop"))
    since = len(firewall.events("tls"))
    for _ in range(2):
        done = get(firewall, "hidden.test")
        assert (done.returncode, done.stdout) == (0, "hello from hidden.test\n"), done.stderr
    assert record(firewall, "hidden.test", since)["nfw"]["issuers_fetched"]
    assert get(firewall, "lost.test").returncode == 35
    assert record(firewall, "lost.test", since)["nfw"]["status"] == "UNTRUSTED"


def test_the_fetcher_has_no_privileges(firewall: Firewall) -> None:
    pid = firewall.the_only("nfw fetcher")
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    keyholder = firewall.the_only("nfw keyholder")
    sockets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    held = {os.readlink(f"/proc/{keyholder}/fd/{fd}") for fd in os.listdir(f"/proc/{keyholder}/fd")}
    assert sum(one.startswith("socket:") for one in sockets) == 2, "the worker's and the leader's"
    assert held, "there is something to share"


def test_answers_survive_a_restart(firewall: Firewall, servers: Servers) -> None:
    firewall.apply(policy(firewall, "drop"))
    assert judged(firewall, "good.test")[0].returncode == 0
    answers = firewall.dir / "answers"
    assert answers.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in answers.iterdir()} == {".ocsp", ".crl"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in answers.iterdir())
    asked = servers.asked()
    assert asked > 0
    firewall.stop(cleanup=False)
    firewall.start(policy(firewall, "drop"))
    assert get(firewall, "good.test").returncode == 0
    assert get(firewall, "revoked.test").returncode == 52
    assert servers.asked() == asked


def test_private_addresses_are_not_asked_unless_allowed(firewall: Firewall, servers: Servers) -> None:
    for path in (firewall.dir / "answers").iterdir():
        path.unlink()
    asked = servers.asked()
    firewall.apply(policy(firewall, "drop", "198.51.100.0/24"))
    since = len(firewall.events("tls"))
    assert get(firewall, "good.test").returncode == 52
    assert record(firewall, "good.test", since)["revocation_check"]["reason"] == "forbidden_address"
    assert servers.asked() == asked


def test_many_wait_for_one_answer(firewall: Firewall, servers: Servers) -> None:
    """A certificate nobody has seen yet, asked for by 100 clients at once: one request, and all are served."""
    for path in (firewall.dir / "answers").iterdir():
        path.unlink()
    firewall.apply(policy(firewall, "drop"))
    asked = servers.asked()
    context = ssl.create_default_context(cafile=str(firewall.ca))
    got: list[bytes] = []

    def client() -> None:
        with servers.lab.in_namespace("client"):
            sock = socket.create_connection((ADDRESS, PORT), timeout=60)
        with context.wrap_socket(sock, server_hostname="good.test") as conn:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n")
            got.append(conn.recv(1000)[:12])

    threads = [threading.Thread(target=client) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [b"HTTP/1.1 200"] * 100
    assert servers.asked() == asked + 1


def test_a_killed_fetcher_is_started_again(firewall: Firewall) -> None:
    firewall.apply(policy(firewall, "drop"))
    pid = firewall.the_only("nfw fetcher")
    os.kill(pid, 9)
    wait_for(lambda: [one for one in pids_named(firewall.pid(), "nfw fetcher") if one != pid] != [], PATIENCE)
    assert get(firewall, "good.test").returncode == 0
    assert get(firewall, "listed.test").returncode == 52

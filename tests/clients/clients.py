"""Real clients behind nfw, with the CA installed as each of them wants it, over HTTP/1.1 and HTTP/2.

Not among the ordinary tests, since the clients are big: ``make clients`` runs this file by name. A client that is not
installed is skipped, and the line says which Debian package has it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.firewall import Firewall
from tests.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.clients]

POLICY = """\
name: clients
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
"""
NAME = "site-a.test"
URL = f"https://{NAME}/whoami"
VERSIONS = ("HTTP/1.1", "HTTP/2.0")


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("clients", POLICY))
        yield firewall


def needs(command: str, package: str) -> str:
    found = shutil.which(command)
    if found is None:
        pytest.skip(f"no {command}: apt-get install {package}")
    return found


def run(firewall: Firewall, *command: str, seconds: float = 120.0, **environment: str) -> str:
    answer = firewall.lab.client.run(list(command), seconds, False, env=environment, cwd=firewall.dir)
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def expect(text: str, version: str) -> dict[str, Any]:
    """The server saw this version, and the client got its whole answer."""
    said: dict[str, Any] = json.loads(text[text.index("{") : text.index("}") + 1])
    assert (said["protocol"], said["sni"]) == (version, NAME)
    return said


def refuses(firewall: Firewall, *command: str, **environment: str) -> None:
    """The same without the CA: what went well before did so because of it."""
    answer = firewall.lab.client.run(list(command), 120.0, False, env=environment, cwd=firewall.dir)
    assert answer.returncode != 0, answer.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_curl(firewall: Firewall, version: str) -> None:
    flag = "--http1.1" if version == "HTTP/1.1" else "--http2"
    expect(run(firewall, "curl", "-sS", flag, "--cacert", str(firewall.ca), URL), version)
    refuses(firewall, "curl", "-sS", flag, URL)


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
@pytest.mark.parametrize("tls", ["-tls1_2", "-tls1_3"])
def test_openssl_strict(firewall: Firewall, alpn: str, tls: str) -> None:
    said = run(
        firewall,
        *("openssl", "s_client", "-connect", f"{firewall.lab.sites[NAME].ipv4}:443", "-servername", NAME),
        *("-x509_strict", "-verify_return_error", "-verify_hostname", NAME, "-CAfile", str(firewall.ca)),
        *("-alpn", alpn, tls, "-ign_eof", "-no_ign_eof"),
    )
    assert "Verify return code: 0 (ok)" in said
    assert f"ALPN protocol: {alpn}" in said


PYTHON = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
context.set_alpn_protocols([sys.argv[2]])
with context.wrap_socket(socket.create_connection((sys.argv[3], 443)), server_hostname=sys.argv[3]) as conn:
    assert conn.selected_alpn_protocol() == sys.argv[2]
    if sys.argv[2] == "http/1.1":
        conn.sendall(b"GET /whoami HTTP/1.1\\r\\nHost: %b\\r\\nConnection: close\\r\\n\\r\\n" % sys.argv[3].encode())
        while data := conn.recv(65536):
            print(data.decode())
    else:
        print("handshake")
"""


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_python_strict(firewall: Firewall, alpn: str) -> None:
    said = run(firewall, sys.executable, "-c", PYTHON, str(firewall.ca), alpn, NAME)
    if alpn == "http/1.1":
        expect(said, "HTTP/1.1")


NODE = """
const tls = require('https'), http2 = require('http2'), fs = require('fs');
const [ca, version, url] = process.argv.slice(2);
const options = ca === 'none' ? {} : {ca: fs.readFileSync(ca)};
const fail = error => { console.error(error.code || error); process.exit(1); };
if (version === 'HTTP/1.1') {
  tls.get(url, options, answer => answer.pipe(process.stdout)).on('error', fail);
} else {
  const session = http2.connect(new URL(url).origin, options).on('error', fail);
  const request = session.request({':path': new URL(url).pathname}).on('error', fail);
  request.on('data', data => process.stdout.write(data)).on('end', () => session.close());
}
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_node(firewall: Firewall, version: str) -> None:
    node = needs("node", "nodejs")
    script = firewall.dir / "client.js"
    script.write_text(NODE)
    expect(run(firewall, node, str(script), str(firewall.ca), version, URL), version)
    refuses(firewall, node, str(script), "none", version, URL)


JAVA = """
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient.Builder client = HttpClient.newBuilder()
            .version(arguments[1].equals("HTTP/1.1") ? HttpClient.Version.HTTP_1_1 : HttpClient.Version.HTTP_2);
        if (!arguments[0].equals("none")) {
            KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
            store.load(null, null);
            store.setCertificateEntry("nfw", CertificateFactory.getInstance("X.509")
                .generateCertificate(new FileInputStream(arguments[0])));
            TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
            trust.init(store);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(null, trust.getTrustManagers(), null);
            client.sslContext(context);
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[2])).build();
        System.out.println(client.build().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_java(firewall: Firewall, version: str) -> None:
    java = needs("java", "openjdk-17-jdk-headless")
    needs("javac", "openjdk-17-jdk-headless")
    source = firewall.dir / "Client.java"
    source.write_text(JAVA)
    expect(run(firewall, java, str(source), str(firewall.ca), version, URL), version)
    refuses(firewall, java, str(source), "none", version, URL)


GO = """
package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
)

func main() {
	config := &tls.Config{}
	if os.Args[1] != "none" {
		pem, err := os.ReadFile(os.Args[1])
		if err != nil {
			panic(err)
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: os.Args[2] != "HTTP/1.1"}
	answer, err := (&http.Client{Transport: transport}).Get(os.Args[3])
	if err != nil {
		panic(err)
	}
	io.Copy(os.Stdout, answer.Body)
}
"""


@pytest.fixture(scope="module")
def go_client(firewall: Firewall) -> Path:
    go = needs("go", "golang-go")
    source, program = firewall.dir / "client.go", firewall.dir / "client-go"
    source.write_text(GO)
    environment = {"HOME": str(firewall.dir), "GO111MODULE": "off", "PATH": "/usr/bin:/bin"}
    subprocess.run([go, "build", "-o", str(program), str(source)], env=environment, check=True, timeout=300)
    return program


@pytest.mark.parametrize("version", VERSIONS)
def test_go(firewall: Firewall, go_client: Path, version: str) -> None:
    expect(run(firewall, str(go_client), str(firewall.ca), version, URL), version)
    refuses(firewall, str(go_client), "none", version, URL)


@pytest.mark.parametrize("version", VERSIONS)
def test_chromium(firewall: Firewall, version: str) -> None:
    """It also sends GREASE in the place of ECH, and would like QUIC."""
    chromium = needs("chromium", "chromium")
    certutil = needs("certutil", "libnss3-tools")
    home = firewall.dir / f"chromium-{version[-1]}"
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    browser = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *(f"--user-data-dir={home / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"),
        *(["--disable-http2"] if version == "HTTP/1.1" else []),
        URL,
    ]
    without = home / "without"  # one that was told of no CA
    without.mkdir()
    untrusting = firewall.lab.client.run(
        [part.replace("/profile", "/without/profile") for part in browser], 60.0, False, env={"HOME": str(without)}
    )
    assert '"sni"' not in untrusting.stdout, "it does not show what it does not trust"
    run(firewall, certutil, "-d", f"sql:{database}", "-N", "--empty-password")
    run(firewall, certutil, "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "nfw", "-i", str(firewall.ca))
    said = run(firewall, *browser, HOME=str(home))
    seen = expect(said, version)
    assert "Chrome" in seen["user_agent"]
    firewall.wait_event("tls", lambda event: event["tls"].get("ech") is True and event["nfw"]["status"] == "OK")

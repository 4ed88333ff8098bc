"""`make demo`: the story of egress TLS inspection, with a real kernel, nginx, OpenSSL and curl, in about ten seconds.

Each step prints what was done and what was seen, and counts only when that is what should be seen.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.x509.oid import NameOID

from tests.firewall import Firewall
from tests.lab import Lab

PLAIN = """\
name: no inspection
stateless: {default: pass}
"""

INSPECT = """\
name: egress TLS inspection
variables: {HOME_NET: [10.1.0.0/16, "fd00:1::/64"]}
stateless:
  default: forward
  rules:
    - {priority: 20, action: pass, protocols: [icmp, icmpv6]}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
stateful:
  order: strict
  rule_files: [demo.rules]
open_flows: {which: all, action: drop}
"""

RULES = """\
drop http $HOME_NET any -> any any (msg:"no secrets"; http.uri; content:"/secret"; startswith; sid:1001; rev:1;)
"""


class Demo:
    """The steps, counted."""

    def __init__(self, lab: Lab, firewall: Firewall) -> None:
        self.lab = lab
        self.firewall = firewall
        self.done = 0
        self.good = 0

    def step(self, title: str, work: Callable[[], tuple[bool, str]]) -> None:
        """Run one step and print what it saw."""
        self.done += 1
        try:
            good, seen = work()
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            good, seen = False, f"{type(error).__name__}: {error}"
        self.good += good
        print(f"{self.done:2}. {title}\n    {'ok' if good else 'NOT AS EXPECTED'}: {seen}", flush=True)

    def issuer(self, name: str = "allowed.test") -> str:
        """Common name of who issued the certificate that the client is shown."""
        certificate = self.lab.peer_certificate(self.lab.sites[name].ipv4, name)
        if certificate is None:
            return "(no certificate)"
        return str(certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def curl(self, url: str, *options: str, cacert: Path | None = None) -> subprocess.CompletedProcess[str]:
        """curl as a client that trusts the lab's root or the operator's CA."""
        return self.lab.curl(url, *options, cacert=cacert, timeout=8.0)

    def run(self) -> int:
        """All steps; the exit status."""
        firewall, ca = self.firewall, self.firewall.ca
        (firewall.dir / "lab-root.pem").write_bytes(self.lab.root_ca_pem)
        plain = firewall.policy("plain", PLAIN)
        inspect = firewall.policy("inspect", INSPECT)
        (firewall.dir / "demo.rules").write_text(RULES)
        firewall.start(plain)
        before = self.issuer()
        self.step(
            "policy without inspection: who issued the site's certificate?",
            lambda: (before == "nfw lab root", f"issuer {before!r}"),
        )
        slow: list[subprocess.Popen[Any]] = []

        def open_connection() -> tuple[bool, str]:
            command = ["curl", "-sS", "--noproxy", "*", "--cacert", str(self.lab.root_ca_path), "-o", "/dev/null"]
            command += ["--max-time", "20", "--speed-time", "3", "--speed-limit", "1", "https://allowed.test/slow/big"]
            slow.append(self.lab.client.popen(command, stderr=subprocess.PIPE))
            time.sleep(0.7)
            return slow[0].poll() is None, "a slow download runs"

        self.step("a connection is open", open_connection)

        def swap() -> tuple[bool, str]:
            firewall.apply(inspect)
            return True, "nfw policy apply inspect.yaml: switched"

        self.step("the policy with TLS inspection is applied while it runs", swap)

        def dies() -> tuple[bool, str]:
            code = slow[0].wait(15)
            return code != 0, f"the open download ended with curl exit {code}"

        self.step("that connection dies", dies)

        def reissued() -> tuple[bool, str]:
            after = self.issuer()
            return after == "Lab inspection CA" and after != before, f"issuer {after!r}"

        self.step("new connections show a certificate of the operator's CA", reissued)

        def allowed() -> tuple[bool, str]:
            seen = []
            for options in (("--http1.1",), ("--http2",), ("-6",)):
                answer = self.curl("https://allowed.test/", "-w", " %{http_version}", *options, cacert=ca)
                seen.append((answer.returncode, answer.stdout.replace("\n", "")))
            good = all(code == 0 and text.startswith("this is allowed.test") for code, text in seen)
            return good, "; ".join(f"exit {code} {text!r}" for code, text in seen)

        self.step("a client that trusts the CA gets the page (h1, h2, IPv6)", allowed)

        def untrusted() -> tuple[bool, str]:
            answer = self.curl("https://allowed.test/")
            return answer.returncode == 60, f"curl exit {answer.returncode}: {answer.stderr.splitlines()[0]}"

        self.step("a client that does not trust the CA refuses", untrusted)

        def blocked() -> tuple[bool, str]:
            answer = self.curl("https://allowed.test/secret/plan", cacert=ca)
            alert = firewall.wait_event("alert", lambda event: event["alert"]["signature_id"] == 1001)
            reached = [one for one in self.lab.requests("allowed.test") if one["uri"].startswith("/secret")]
            good = answer.returncode != 0 and not reached
            return good, (
                f"curl exit {answer.returncode}; the server saw {len(reached)} such requests; "
                f"logged: {alert['alert']['signature']!r} by {alert['nfw']['rule_at'].rsplit('/', 1)[-1]}"
            )

        self.step("a request inside TLS is blocked by an http.uri rule", blocked)

        def spoofed() -> tuple[bool, str]:
            site = self.lab.sites["evil.test"]
            answer = self.curl("https://allowed.test/", "--connect-to", f"::{site.ipv4}:443", "-k", cacert=ca)
            record = firewall.wait_event("tls", lambda event: event["nfw"]["status"] == "NAME_MISMATCH")
            reached = self.lab.requests("evil.test")
            return answer.returncode != 0 and not reached, (
                f"curl -k exit {answer.returncode}; the other server saw {len(reached)} requests; "
                f"logged: {record['nfw']['reason']}"
            )

        self.step("SNI allowed.test sent to evil.test's address is dropped, even for curl -k", spoofed)

        def back() -> tuple[bool, str]:
            firewall.apply(plain)
            after = self.issuer()
            return after == before, f"issuer {after!r}"

        self.step("swap back: the site's own certificate again", back)
        print(f"demo: {self.good} of {self.done} steps as expected")
        return 0 if self.good == self.done else 1


def main() -> int:
    """Build the lab, run the story, take everything down."""
    started = time.monotonic()
    with Lab() as lab, Firewall(lab) as firewall:
        print(f"lab: client 10.1.0.2 -- router with nfw -- server 203.0.113.10-15 ({time.monotonic() - started:.1f} s)")
        status = Demo(lab, firewall).run()
        if status:
            print(firewall.output.read_text(), file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())

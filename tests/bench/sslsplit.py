"""sslsplit in the lab's router, where nfw would be: the peer of the rows on what TLS inspection costs.

It verifies no server, inspects nothing and logs nothing here, has a leaf key of nfw's kind, and speaks TLS 1.2 at most.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.firewall import Firewall, children, wait_for
from tests.lab import Lab

PORT = 10443
_TABLE = "sslsplit_bench"
_REDIRECT = f"""\
table ip {_TABLE} {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname "lan" tcp dport 443 redirect to :{PORT}
    }}
}}
"""


@contextmanager
def intercepting(lab: Lab, firewall: Firewall) -> Iterator[list[int]]:
    """sslsplit takes the client's HTTPS connections meanwhile, with nfw's CA; its processes. Raises RuntimeError where
    it is not installed."""
    program = shutil.which("sslsplit")
    if program is None:
        raise RuntimeError("CPU of TLS inspection against sslsplit: it is not installed (apt-get install sslsplit)")
    key = firewall.dir / "sslsplit-leaf.key"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    command = [program, "-k", str(firewall.dir / "ca.key"), "-c", str(firewall.ca), "-K", str(key), "-u", "root"]
    command += ["-e", "netfilter", "ssl", "0.0.0.0", str(PORT)]
    output = firewall.dir / "sslsplit.txt"
    with output.open("ab") as stream:
        process = lab.router.popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        listening = ["ss", "-Hltn", f"sport = :{PORT}"]
        wait_for(lambda: bool(lab.router.run(listening).stdout.strip()), 5.0, lambda: output.read_text()[-2000:])
        lab.router.run(["nft", "-f", "-"], input=_REDIRECT)
        yield [process.pid, *children(process.pid)]
    finally:
        lab.router.run(["nft", "delete", "table", "ip", _TABLE], check=False)
        process.terminate()
        process.wait(5)

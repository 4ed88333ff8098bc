"""Where the CA's key is while nfw runs: in one process, and on no way out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.firewall import Firewall, children, pids_named
from tests.lab import Lab

pytestmark = pytest.mark.netns

POLICY = """\
name: key
workers: 1
stateless: {default: forward}
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [lab-root.pem]
  scopes: [{destination_ports: [443]}]
  bypass: [{sni: [site-b.test]}]
"""


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        (firewall.dir / "lab-root.pem").write_bytes(lab.root_ca_pem)
        firewall.start(firewall.policy("key", POLICY))
        assert lab.curl("https://site-a.test/whoami", cacert=firewall.ca).returncode == 0, "a leaf was signed"
        yield firewall


def in_memory(pid: int, *needles: bytes) -> bool:
    """Whether any of the process's memory holds one of them (proc(5): maps, mem).

    One that has ended, as the supervisor's commands do after a moment, has none.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        return _in_memory(pid, needles)
    return False


def open_files(pid: int) -> list[str]:
    """What the process has open; of one that has ended, nothing."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
    return found


def _in_memory(pid: int, needles: tuple[bytes, ...]) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, allowed, *_ = line.split()
            low, high = (int(part, 16) for part in span.split("-"))
            if allowed[0] != "r" or high - low > 1 << 30:
                continue
            try:
                memory.seek(low)
                content = memory.read(high - low)
            except (OSError, ValueError, OverflowError):  # vsyscall, vvar
                continue
            if any(needle in content for needle in needles):
                return True
    return False


def test_only_the_key_holder_has_it(firewall: Firewall) -> None:
    pem = (firewall.dir / "ca.key").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value
    needles = (secret.to_bytes(32, "big"), secret.to_bytes(32, "little"), pem.splitlines()[1])
    having = {name for pid, name in children(firewall.pid()).items() if in_memory(pid, *needles)}
    assert having == {"nfw keyholder"}
    assert not in_memory(firewall.pid(), *needles)


def test_no_process_has_its_file_open_or_leaves_a_core(firewall: Firewall) -> None:
    processes = children(firewall.pid())
    names = set(processes.values())
    assert {"nfw keyholder", "nfw tls 0", "nfw packet 0", "nfw resolver"} <= names
    for pid in processes:
        assert not [target for target in open_files(pid) if "ca.key" in target]
    for name in ("nfw keyholder", "nfw tls", "nfw packet", "nfw resolver"):
        (pid,) = pids_named(firewall.pid(), name)
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"], (name, core)


def test_the_key_is_not_the_leafs(firewall: Firewall) -> None:
    lab = firewall.lab
    asked = "openssl s_client -connect 203.0.113.10:443 -servername site-a.test </dev/null | openssl x509 -pubkey"
    shown = lab.client.run(["sh", "-c", asked]).stdout
    leaf = shown[shown.index("-----BEGIN PUBLIC KEY") : shown.index("-----END PUBLIC KEY")]
    authority = serialization.load_pem_private_key((firewall.dir / "ca.key").read_bytes(), None).public_key()
    pem = authority.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert leaf.split() != pem.decode().split("-----END")[0].split()
    mode = (firewall.dir / "ca.key").stat().st_mode
    assert mode & 0o077 == 0

"""What nfw takes from systemd and from its installation: credentials, and the Python of the next generation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nfw import ca, keyholder, process, supervisor
from nfw.policy import load_policy
from tests.unit.test_policy import NOW


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of credentials as systemd makes one for a service."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def test_a_key_that_can_be_read_is_read_where_the_policy_says(tmp_path: Path, credentials: Path) -> None:
    (tmp_path / "ca.key").write_text("key")
    (credentials / "ca.key").write_text("another")
    assert keyholder.key_file(str(tmp_path / "ca.key")) == str(tmp_path / "ca.key")


@pytest.mark.parametrize(("content", "found"), [("-----BEGIN PRIVATE KEY-----", True), ("none", False), (None, False)])
def test_a_key_that_cannot_be_read_is_the_credential_of_that_name(
    tmp_path: Path, credentials: Path, content: str | None, found: bool
) -> None:
    if content is not None:
        (credentials / "ca.key").write_text(content)
    named = str(tmp_path / "ca.key")
    assert keyholder.key_file(named) == (str(credentials / "ca.key") if found else named)


def test_no_core_file_and_no_tracing() -> None:
    """What every process with keys or plaintext begins with: prctl(2), getrlimit(2)."""
    asked = """
import ctypes, resource
from nfw import process
process.no_dumps()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0", "0", "0"]


def test_no_credentials_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert keyholder.key_file(str(tmp_path / "ca.key")) == str(tmp_path / "ca.key")


def test_a_credential_that_is_not_the_certificates_key(tmp_path: Path, credentials: Path) -> None:
    ca.create("One", tmp_path / "one", NOW)
    ca.create("Two", tmp_path / "two", NOW)
    (tmp_path / "two" / "ca.key").rename(credentials / "ca.key")
    with pytest.raises(keyholder.CaError, match="as it was when the service started"):
        keyholder.load_ca(str(tmp_path / "one/ca.pem"), str(tmp_path / "gone/ca.key"), NOW.timestamp())


def test_a_key_encrypted_for_the_service_is_not_checked(tmp_path: Path) -> None:
    ca.create("One", tmp_path, NOW)
    (tmp_path / "ca.key").rename(tmp_path / "ca.key.cred")
    policy = tmp_path / "policy.yaml"
    policy.write_text("tls: {ca: {certificate: ca.pem, private_key: ca.key}, scopes: [{destination_ports: [443]}]}")
    warnings = load_policy(policy, check_key=True, now=NOW.timestamp()).warnings
    assert "encrypted for the service" in " ".join(map(str, warnings))


def test_the_next_generation_runs_what_is_installed_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = tmp_path / "current"
    monkeypatch.setenv("NFW_PYTHON", str(current / "bin/python"))
    assert supervisor._interpreter() == sys.executable  # nothing there yet
    for release in ("1", "2"):
        folder = tmp_path / release / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
        current.unlink(missing_ok=True)
        current.symlink_to(release)
        assert supervisor._interpreter() == str(folder / "python")
    monkeypatch.delenv("NFW_PYTHON")
    assert supervisor._interpreter() == sys.executable


def test_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "Name:\tx\nCapEff:\t0000000000003000\n")
    assert process.may(process.CAP_NET_ADMIN, process.CAP_NET_RAW)
    assert not process.may(process.CAP_NET_ADMIN, 21)
    monkeypatch.setattr(Path, "read_text", lambda _: "Name:\tx\n")
    assert not process.may(process.CAP_NET_ADMIN)

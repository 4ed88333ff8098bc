"""The policies in rules/ load without a complaint and decide what their comments promise."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import pytest

from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.verdict import Decision, Direction, Verdict
from nfw import ca
from nfw.policy import dump_policy, load_policy
from nfw.policy.compile import Compiled, compile_policy

RULES = Path(__file__).parent.parent.parent / "rules"
NAMES = sorted(path.stem for path in RULES.glob("*.yaml"))
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
CLIENT, SERVER = bytes([10, 0, 0, 5]), bytes([198, 51, 100, 7])
TCP, UDP = 6, 17


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rules/ as a user would have it: copied, with a CA beside."""
    directory = tmp_path_factory.mktemp("rules")
    shutil.copytree(RULES, directory, dirs_exist_ok=True)
    ca.create("Example Corp Firewall", directory, NOW)
    return directory


def compiled(directory: Path, name: str) -> Compiled:
    return compile_policy(load_policy(directory / f"{name}.yaml", check_key=True, now=NOW.timestamp()))


def first_denial(
    policy: Compiled, *requests: bytes, port: int = 80, protocol: int = TCP
) -> tuple[int, Decision] | None:
    """(index, decision) of the first request that is not let through on one connection."""
    facts = FlowFacts(1, protocol, CLIENT, SERVER, 40000, port)
    inspector = Inspector(policy.ruleset, facts, 0.0, decrypted=port == 443)
    for index, request in enumerate(requests):
        outcome = inspector.inspect(Segment(Direction.TO_SERVER, True, request, request, None, float(index)))
        if outcome.decision.verdict is not Verdict.ACCEPT:
            return index, outcome.decision
    return None


def get(host: str, uri: str = "/", method: str = "GET") -> bytes:
    return f"{method} {uri} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: test\r\n\r\n".encode()


QUESTION = bytes.fromhex("123401000001000000000000") + b"\x03www\x06debian\x03org\x00\x00\x01\x00\x01"
DENIED_QUESTION = bytes.fromhex("123401000001000000000000") + b"\x01a\x06denied\x07example\x00\x00\x01\x00\x01"


@pytest.mark.parametrize("name", NAMES)
def test_loads_without_warnings(ready: Path, name: str) -> None:
    policy = load_policy(ready / f"{name}.yaml", check_key=True, now=NOW.timestamp())
    assert policy.warnings == ()
    assert policy.name == name
    assert dump_policy(policy)


def test_there_are_some() -> None:
    assert NAMES == ["allow-list", "deny-list", "monitor-only", "strict-outbound-tls"]


@pytest.mark.parametrize(
    ("requests", "port", "denied"),
    [
        ([get("www.allowed.example")], 443, None),
        ([get("deb.debian.org"), get("security.debian.org", "/a.deb")], 80, None),
        ([get("debian.org")], 443, None),
        ([get("evil.example")], 443, 0),
        ([get("notdebian.org")], 443, 0),
        ([get("debian.org.evil.example")], 443, 0),
        ([get("www.allowed.example"), get("evil.example")], 443, 1),  # the second request of a connection too
        ([get("www.allowed.example", "/x", "POST")], 443, 0),
        ([get("www.allowed.example", "/setup.EXE?a=1")], 443, 0),
        ([b"GET / HTTP/1.0\r\nAccept: *\r\n\r\n"], 443, 0),
        ([b"GET / HTTP/1.0\r\n\r\n"], 443, 0),
        ([b"GET / HTTP/1.1\r\nHost:\r\n\r\n"], 443, 0),
        ([b"GET http://evil.example/ HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n"], 80, 0),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], 443, 0),
        ([QUESTION], 53, None),
    ],
)
def test_strict(ready: Path, requests: list[bytes], port: int, denied: int | None) -> None:
    protocol = UDP if port == 53 else TCP
    found = first_denial(compiled(ready, "strict-outbound-tls"), *requests, port=port, protocol=protocol)
    assert (found[0] if found else None) == denied


@pytest.mark.parametrize(
    ("request_", "port", "allowed"),
    [
        (get("www.allowed.example"), 80, True),
        (get("deb.debian.org"), 80, True),
        (get("evil.example"), 80, False),
        (get("www.allowed.example.evil.example"), 80, False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 22, False),
        (QUESTION, 53, True),
        (b"\xc3" * 1200, 443, False),
    ],
)
def test_allow_list(ready: Path, request_: bytes, port: int, allowed: bool) -> None:
    protocol = UDP if request_ == QUESTION or request_[0] == 0xC3 else TCP
    policy = compiled(ready, "allow-list")
    facts = FlowFacts(1, protocol, CLIENT, SERVER, 40000, port)
    outcome = Inspector(policy.ruleset, facts, 0.0).inspect(
        Segment(Direction.TO_SERVER, True, request_, request_, None, 0.0)
    )
    assert (outcome.decision.verdict is Verdict.ACCEPT) == allowed


def test_deny_list(ready: Path) -> None:
    policy = compiled(ready, "deny-list")
    assert first_denial(policy, get("www.example.org")) is None
    assert first_denial(policy, get("www.denied.example")) is not None
    assert first_denial(policy, QUESTION, port=53, protocol=UDP) is None
    assert first_denial(policy, DENIED_QUESTION, port=53, protocol=UDP) is not None
    assert first_denial(policy, b"\xc3" * 1200, port=443, protocol=UDP) is not None


def test_monitor_only_blocks_nothing(ready: Path) -> None:
    policy = compiled(ready, "monitor-only")
    assert first_denial(policy, get("evil.example")) is None
    assert first_denial(policy, b"SSH-2.0-OpenSSH_9.2\r\n", port=22) is None
    assert first_denial(policy, DENIED_QUESTION, port=53, protocol=UDP) is None
    assert policy.policy.fail_open

"""SSH version lines."""

from __future__ import annotations

import pytest

from engines.stateful.app.ssh import SshParser
from tests.unit.app_feeding import C, S, every_way, survives

SCRIPT = [
    (S, b"Welcome\r\nto this host\r\nSSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\0\0\1\x2c"),
    (C, b"SSH-2.0-libssh2_1.10\r\n\0\0\1\x2c"),
]


def test_banners() -> None:
    for parser, (tx,) in every_way(SshParser, SCRIPT):
        assert list(tx.buffer("ssh.software", S)) == [b"OpenSSH_9.2p1"]
        assert list(tx.buffer("ssh.software", C)) == [b"libssh2_1.10"]
        assert list(tx.buffer("ssh.proto")) == [b"2.0", b"2.0"]
        assert tx.buffer("ssh.hassh") == ()
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert parser.finished
        assert parser.held(S) == 0
        assert tx.log_fields()["server"] == {"proto_version": "2.0", "software_version": "OpenSSH_9.2p1"}


def test_banner_is_held_until_complete() -> None:
    parser = SshParser()
    parser.feed(C, b"SSH-2.0-")
    assert parser.held(C) == 8
    assert not parser.finished
    parser.feed(C, b"x\n")
    assert parser.held(C) == 0


@pytest.mark.parametrize("line", [b"SSH-\r\n", b"SSH-nothing\r\n"])
def test_odd_banner(line: bytes) -> None:
    for _, (tx,) in every_way(SshParser, [(C, line)]):
        assert tx.events == ["invalid_banner"]
        assert list(tx.buffer("ssh.proto")) == []
        assert tx.is_complete(C)


def test_endless_banner() -> None:
    for _ in every_way(SshParser, [(C, b"SSH-2.0-" + b"x" * 100)]):
        pass
    parser = SshParser()
    parser.feed(C, b"SSH-2.0-" + b"x" * 5000)
    assert parser.gave_up
    assert parser.held(C) == 0


def test_closed_without_a_banner() -> None:
    parser = SshParser()
    parser.close(C)
    parser.close(S)
    assert parser.finished
    assert parser.transactions[0].is_complete(S)


def test_mutations() -> None:
    """Parse or refuse, never raise."""
    survives(SshParser, SCRIPT, ["ssh.proto", "ssh.software"], rounds=1000, seed=4)

"""SSH version lines."""

from __future__ import annotations

import hashlib
import struct

import pytest

from engines.stateful.app.ssh import SshParser
from tests.unit.app_feeding import C, S, every_way, survives

LISTS = [b"kex1,kex2", b"rsa", b"enc-cs", b"enc-sc", b"mac-cs", b"mac-sc", b"zip-cs", b"zip-sc", b"", b""]


def packet(kind: int, body: bytes) -> bytes:
    """RFC 4253, section 6: length, length of the padding, payload, padding."""
    return struct.pack("!IBB", len(body) + 6, 4, kind) + body + bytes(4)


def kexinit(lists: list[bytes] = LISTS) -> bytes:
    names = b"".join(struct.pack("!I", len(text)) + text for text in lists)
    return packet(20, bytes(16) + names + bytes(5))


SCRIPT = [
    (S, b"Welcome\r\nto this host\r\nSSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" + kexinit() + b"tail"),
    (C, b"SSH-2.0-libssh2_1.10\r\n" + packet(2, b"ignored") + kexinit() + b"tail"),
]


def test_banners() -> None:
    for parser, (tx,) in every_way(SshParser, SCRIPT):
        assert list(tx.buffer("ssh.software", S)) == [b"OpenSSH_9.2p1"]
        assert list(tx.buffer("ssh.software", C)) == [b"libssh2_1.10"]
        assert list(tx.buffer("ssh.proto")) == [b"2.0", b"2.0"]
        assert list(tx.buffer("ssh.hassh.string")) == [b"kex1,kex2;enc-cs;mac-cs;zip-cs"]
        assert list(tx.buffer("ssh.hassh")) == [hashlib.md5(b"kex1,kex2;enc-cs;mac-cs;zip-cs").hexdigest().encode()]
        assert list(tx.buffer("ssh.hassh.server.string", S)) == [b"kex1,kex2;enc-sc;mac-sc;zip-sc"]
        assert tx.buffer("ssh.hassh.server", C) == ()
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert parser.finished
        assert parser.held(S) == 0
        text = "kex1,kex2;enc-sc;mac-sc;zip-sc"
        assert tx.log_fields()["server"] == {
            "proto_version": "2.0",
            "software_version": "OpenSSH_9.2p1",
            "hassh": {"hash": hashlib.md5(text.encode()).hexdigest(), "string": text},
        }


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
    survives(
        SshParser, SCRIPT, ["ssh.proto", "ssh.software", "ssh.hassh", "ssh.hassh.server.string"], rounds=1000, seed=4
    )


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"SSH-2.0-x\r\n" + struct.pack("!IBB", 35_001, 4, 20), ["long_kex_record"]),
        (b"SSH-2.0-x\r\n" + struct.pack("!IBB", 1, 0, 20), ["invalid_record"]),
        (b"SSH-2.0-x\r\n" + packet(20, bytes(16) + b"\0\0\xff\xff"), ["invalid_record"]),
        (b"SSH-2.0-x\r\n" + kexinit(LISTS[:3]), ["invalid_record"]),
        (b"SSH-2.0-x\r\n" + packet(21, b""), []),
        (b"SSH-1.5-x\r\n" + kexinit(), []),
    ],
)
def test_no_hassh(sent: bytes, events: list[str]) -> None:
    """What cannot be read says so; the version counts all the same and nothing stays held."""
    for parser, (tx,) in every_way(SshParser, [(C, sent)]):
        assert tx.events == events
        assert list(tx.buffer("ssh.software")) == [b"x"]
        assert tx.buffer("ssh.hassh") == ()
        assert tx.is_complete(C)
        assert parser.held(C) == 0


def test_kexinit_is_held_until_complete() -> None:
    parser = SshParser()
    parser.feed(C, b"SSH-2.0-x\r\n" + kexinit()[:-1])
    assert parser.held(C) == len(kexinit()) - 1
    parser.feed(C, kexinit()[-1:])
    assert parser.held(C) == 0

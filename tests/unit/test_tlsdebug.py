"""Key log and plaintext capture: what is in the files, who may read them, and that they end."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path

import pytest
from scapy.layers.inet import TCP
from scapy.utils import PcapNgReader

from engines.packet import decode
from engines.stateful.inspector import FlowFacts
from engines.tls.scope import TlsScope
from engines.verdict import Direction
from nfw.policy.model import TlsDebug
from nfw.tlsdebug import SEGMENT, SecretFile, TlsRecorder

V4 = FlowFacts(7, 6, bytes([10, 1, 0, 2]), bytes([203, 0, 113, 10]), 40000, 443)
V6 = FlowFacts(8, 6, bytes(15) + b"\1", bytes(15) + b"\2", 40001, 443)
UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT


def packets(path: Path) -> list[bytes]:
    with PcapNgReader(str(path)) as reader:
        return [bytes(packet) for packet in reader]


@pytest.mark.parametrize("facts", [V4, V6])
def test_plaintext_as_a_tcp_connection(tmp_path: Path, facts: FlowFacts) -> None:
    path = tmp_path / "plain.pcapng"
    recorder = TlsRecorder(TlsDebug(capture=path, sni=("a.test",)))
    assert recorder.wants(facts, "a.test")
    recorder.begin(facts, 1000.0)
    big = bytes(range(256)) * 256
    recorder.plaintext(facts, UP, b"question", 1000.5)
    recorder.plaintext(facts, DOWN, big, 1001.0)
    recorder.end(facts, 1002.0)
    recorder.end(facts, 1003.0)
    recorder.plaintext(facts, UP, b"late", 1004.0)
    found = [decode(data) for data in packets(path)]
    assert all(packet.problem is None for packet in found)
    flags = [str(TCP(flags=packet.tcp_flags).flags) for packet in found]
    assert flags == ["S", "SA", "A", "PA", *["PA"] * 4, "FA", "FA"]
    said = [b"".join(packet.payload for packet in found if packet.sport == port) for port in (facts.client_port, 443)]
    assert said == [b"question", big]
    numbers = [packet.seq for packet in found if packet.sport == 443]
    assert numbers == [0, *(1 + SEGMENT * n for n in range(4)), 1 + len(big)]
    assert found[4].ack == 1 + len(b"question")


def test_whose_sessions(tmp_path: Path) -> None:
    scope = TlsScope(sources=(ipaddress.ip_network("10.1.0.0/24"),))
    recorder = TlsRecorder(TlsDebug(key_log=tmp_path / "keys", sni=("*.a.test",), scope=scope))
    assert recorder.wants(V4, "x.a.test")
    assert not recorder.wants(V4, "a.test")
    assert not recorder.wants(V6, "x.a.test")
    anybody = TlsRecorder(TlsDebug(key_log=tmp_path / "keys", scope=scope))
    assert anybody.wants(V4, "")
    assert not anybody.wants(V6, "")
    assert recorder.stats()["sessions"] == 1


def test_the_files_are_the_operators_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old = os.umask(0)
    try:
        recorder = TlsRecorder(TlsDebug(key_log=tmp_path / "keys", capture=tmp_path / "plain", sni=("a.test",)))
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("keys", "plain")] == [0o600, 0o600]
    recorder.keys(b"CLIENT_RANDOM 00 11")
    assert (tmp_path / "keys").read_bytes() == b"CLIENT_RANDOM 00 11\n"
    (tmp_path / "loose").write_text("")
    (tmp_path / "loose").chmod(0o644)
    SecretFile(tmp_path / "loose", 10)
    assert stat.S_IMODE((tmp_path / "loose").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        SecretFile(tmp_path / "link", 10)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_ends_and_says_so_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = SecretFile(tmp_path / "keys", 10)
    for _ in range(5):
        file.add(b"1234")
    assert (tmp_path / "keys").read_bytes() == b"12341234"
    assert file.full
    assert capfd.readouterr().err.count("has reached 10 bytes") == 1


def test_two_workers_write_one_capture(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    first, second = (TlsRecorder(TlsDebug(capture=path, sni=("a.test",))) for _ in range(2))
    first.begin(V4, 1.0)
    second.begin(V6, 1.0)
    first.plaintext(V4, UP, b"one", 2.0)
    assert len(packets(path)) == 7

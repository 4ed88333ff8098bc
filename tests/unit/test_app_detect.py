"""Protocols by content."""

from __future__ import annotations

import random
import struct

import pytest
from dnslib import DNSRecord

from engines.stateful.app.detect import FAILED, LOCAL_NAMES, MAX_ONE_SIDED, Detector
from engines.stateful.app.registry import PARSERS, UDP_PARSERS
from engines.verdict import Direction

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
QUERY = DNSRecord.question("www.example.com").pack()
ANSWER = DNSRecord.parse(QUERY).reply().pack()


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


FIRST_BYTES = [
    (C, b"\0\0\0\x0aj\x08\x30\x06" + bytes(6), "krb5"),
    (C, b"\0\0\0\x0bj\x08\x30\x06" + bytes(6), None),
    (C, b"GET / HTTP/1.1\r\n", "http"),
    (C, b"\r\nPOST /", "http"),
    (C, b"GET /old\n", "http"),
    (C, b"BREW /pot HTTP/1.1\r\n", "http"),
    (C, b"GE%54 /pot HTTP/1.1\r\n", None),
    (C, b"OPTIONS * HTTP/1.1\r\n", "http"),
    (C, b"OPTIONS sip:a@b SIP/2.0\r\n", "sip"),
    (C, b"OPTIONS rtsp://h/ RTSP/1.0\r\n", None),
    (C, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"),
    (C, b"\x16\x03\x01\x02\x00\x01", "tls"),
    (C, b"\x80\x2e\x01\x03\x01", "tls"),
    (C, b"\x16\x03\x09\x02\x80\x01" + bytes(20), None),
    (C, b"SSH-2.0-OpenSSH_9.2\r\n", "ssh"),
    (C, b"EHLO host\r\n", "smtp"),
    (C, b"helo host\r\n", "smtp"),
    (C, b"USER anonymous\r\n", "ftp"),
    (C, b"port 10,0,0,1,4,1\r\n", "ftp"),
    (C, b"capa\r\n", "pop3"),
    (C, b"\xff\xfd\x03", "telnet"),
    (C, b"\0\0\0\x54\xffSMBr", "smb"),
    (C, b"\x05\0\x0b\x03\x10\0\0\0\x48\0", "dcerpc"),
    (S, b"\x05\0\x0c\x03\x10\0\0\0\x44\0", "dcerpc"),
    (C, framed(QUERY), "dns"),
    (C, b"\x10\x0c\0\x04MQTT\x04\x02", "mqtt"),
    (C, b"\0\0\0\x08\x04\xd2\x16\x2f", "pgsql"),
    (C, b"\x30\x0c\2\1\1\x60\7\2\1\3\4\0\x80\0", "ldap"),
    (S, b"\x30\x0c\2\1\1\x61\7\x0a\1\0\4\0\4\0", "ldap"),
    (C, b"\x80\0\0\x28\0\0\0\1\0\0\0\0\0\0\0\2\0\1\x86\xa3\0\0\0\3", "nfs"),
    (C, b"hello world, this is nothing\r\n", None),
    (C, bytes(range(1, 60)), None),
    (S, b"HTTP/1.1 200 OK\r\n", "http"),
    (S, b"\x16\x03\x03\x00\x5a\x02", "tls"),
    (S, b"\x15\x03\x03\x00\x02\x02\x28", "tls"),
    (S, b"SSH-2.0-x\r\n", "ssh"),
    (S, b"220 mail.example ESMTP ready\r\n", "smtp"),
    (S, b"220 Welcome to FTP\r\n", "ftp"),
    (S, b"220 (vsFTPd 3.0.3)\r\n", "ftp"),
    (S, b"220 ftp-1.example.com ready\r\n", None),
    (S, b"220 smtp.example.com ready\r\n", None),
    (S, b"220 hello\r\n", None),
    (S, b"+OK POP3 ready\r\n", "pop3"),
    (S, b"-ERR busy\r\n", "pop3"),
    (S, b"* OK IMAP4rev1\r\n", "imap"),
    (S, b"* BYE busy\r\n", "imap"),
    (S, b"\xff\xfb\x01", "telnet"),
    (S, b"RFB 003.008\n", "rfb"),
    (S, framed(ANSWER), "dns"),
    (S, b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", "http2"),
]


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize(("direction", "data", "name"), FIRST_BYTES)
def test_tcp(direction: Direction, data: bytes, name: str | None, cut: int) -> None:
    detector = Detector()
    for at in range(0, len(data), cut or len(data)):
        found = detector.feed(direction, data[at : at + (cut or len(data))])
        if found:
            break
    assert detector.name == name
    assert detector.final == (name is not None)
    assert detector.final_for(direction)
    if name:
        assert data.startswith(detector.take(direction))
        assert detector.feed(direction, b"GET / HTTP/1.1\r\n") == name


FIRST_DATAGRAMS = [
    (C, b"j\x08\x30\x06" + bytes(6), "krb5"),
    (S, b"\x7e\x82\0\x02\x30\0", "krb5"),
    (S, b"\x7e\x82\0\x03\x30\0", None),
    (C, QUERY, "dns"),
    (S, ANSWER, "dns"),
    (C, b"NOTIFY sip:a@b SIP/2.0\r\n\r\n", "sip"),
    (S, b"\r\nBYE sips:a@b SIP/2.0\r\n\r\n", "sip"),
    (S, b"SIP/2.0 200 OK\r\n\r\n", "sip"),
    (C, b"\0\1boot.img\0octet\0", "tftp"),
    (C, b"\0\1boot.img\0else\0", None),
    (C, QUERY[:-1], None),
    (C, b"\xc0" + bytes(47), None),
    (C, b"\x23" + bytes(47), "ntp"),
    (C, b"0\x06\2\1\1\4\1p", "snmp"),
    (S, b"0\x06\2\1\3\x30\1p", "snmp"),
    (C, b"0\x06\2\1\2\4\1p", None),
    (C, b"\xc3\0\0\0\1" + bytes(1195), "quic"),
    (C, bytes(236) + b"\x63\x82\x53\x63\x35", "dhcp"),
    (C, b"\x30\x0c\2\1\1\x60\7\2\1\3\4\0\x80\0", "ldap"),
    (C, b"\x30\x0d\2\1\1\4\6public\xa0\0", "snmp"),
    (C, b"\1" * 8 + bytes(8) + b"\x21\x20\x22\x08" + bytes(4) + b"\0\0\0\x1c", "ike"),
    (C, b"\0\0\0\1\0\0\0\0\0\0\0\2\0\1\x86\xa3\0\0\0\3", "nfs"),
    (C, b"x", None),
]


@pytest.mark.parametrize(("direction", "data", "name"), FIRST_DATAGRAMS)
def test_udp(direction: Direction, data: bytes, name: str | None) -> None:
    assert Detector("udp").feed(direction, data) == name


def test_failed_needs_both_sides() -> None:
    detector = Detector()
    assert detector.feed(C, b"nothing known\r\n") is None
    assert detector.final_for(C)
    assert not detector.final_for(S)
    assert detector.feed(S, b"SSH-2.0-surprise\r\n") == "ssh"
    detector = Detector()
    detector.feed(C, b"nothing known\r\n")
    assert detector.feed(S, b"neither\r\n") == FAILED
    assert detector.final


def test_failed_by_one_side_in_the_end() -> None:
    detector = Detector()
    for _ in range(MAX_ONE_SIDED // 1000 + 1):
        detector.feed(C, b"x" * 1000)
    assert detector.name == FAILED


def test_failed_when_both_sides_close() -> None:
    detector = Detector()
    assert detector.close(C) is None
    assert detector.close(S) == FAILED


def test_a_greeting_without_a_name_is_decided_by_the_client() -> None:
    detector = Detector()
    assert detector.feed(S, b"220 hello\r\n") is None
    assert detector.feed(C, b"EHLO me\r\n") == "smtp"


def test_endless_line_is_no_http() -> None:
    detector = Detector()
    for _ in range(100):
        detector.feed(C, b"X" + b" y" * 50)
    assert detector.final_for(C)


def test_random_bytes() -> None:
    """A name or none, never an exception; and what is taken is what was fed."""
    rng = random.Random(5)
    seeds = [data for _, data, _ in FIRST_BYTES]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        data[rng.randrange(len(data))] = rng.randrange(256)
        detector = Detector(rng.choice(["tcp", "udp"]))
        direction = rng.choice([C, S])
        fed = b""
        for at in range(0, len(data), 5):
            fed += data[at : at + 5]
            if detector.feed(direction, bytes(data[at : at + 5])):
                break
        assert detector.take(direction) == fed


def test_every_parser_goes_by_a_name_that_is_detected() -> None:
    names = {name for _, _, name in FIRST_BYTES}
    # WebSocket begins inside HTTP, by name; a transfer of FTP is announced.
    assert set(PARSERS) - {"websocket", "ftp-data"} - set(LOCAL_NAMES.values()) <= names
    assert set(UDP_PARSERS) - set(LOCAL_NAMES.values()) <= {name for _, _, name in FIRST_DATAGRAMS}

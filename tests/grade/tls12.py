"""TLS records and messages of version 1.2 and below as bytes, for servers that say what no library says."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

HANDSHAKE, ALERT, CHANGE, DATA, HEARTBEAT = 22, 21, 20, 23, 24
ECDHE_ECDSA_AES128 = 0xC02B
ECDHE_RSA_AES128 = 0xC02F


def record(kind: int, body: bytes, version: int = 0x0303) -> bytes:
    return struct.pack("!BHH", kind, version, len(body)) + body


def message(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(body, 2)


def alerts(data: bytes) -> list[int]:
    """The descriptions of plaintext alerts in a stream of records."""
    found, at = [], 0
    while at + 5 <= len(data):
        kind, _, length = struct.unpack("!BHH", data[at : at + 5])
        if kind == ALERT and length == 2:
            found.append(data[at + 6])
        at += 5 + length
    return found


@dataclass
class Hello:
    """What a ClientHello offers."""

    random: bytes = b""
    session: bytes = b""
    legacy: int = 0
    ciphers: tuple[int, ...] = ()
    compression: bytes = b""
    extensions: dict[int, bytes] = field(default_factory=dict)
    raw: bytes = b""  # the handshake message

    @property
    def versions(self) -> list[int]:
        body = self.extensions.get(43, b"")
        return list(struct.unpack(f"!{body[0] // 2}H", body[1 : 1 + body[0]])) if body else [self.legacy]

    @property
    def shares(self) -> dict[int, bytes]:
        body, at, found = self.extensions.get(51, b"\0\0"), 2, {}
        while at < len(body):
            group, size = struct.unpack("!HH", body[at : at + 4])
            found[group] = body[at + 4 : at + 4 + size]
            at += 4 + size
        return found

    def numbers(self, kind: int) -> list[int]:
        """groups (10), signature algorithms (13)."""
        body = self.extensions.get(kind, b"\0\0")
        return list(struct.unpack(f"!{(len(body) - 2) // 2}H", body[2:]))

    @property
    def alpn(self) -> list[bytes]:
        body, at, found = self.extensions.get(16, b"\0\0"), 2, []
        while at < len(body):
            found.append(body[at + 1 : at + 1 + body[at]])
            at += 1 + body[at]
        return found


def read_record(sock: socket.socket) -> tuple[int, bytes]:
    """(kind, body); kind -1 at the end."""
    head = _exactly(sock, 5)
    if len(head) < 5:
        return -1, b""
    kind, _, length = struct.unpack("!BHH", head)
    return kind, _exactly(sock, length)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def read_hello(sock: socket.socket) -> Hello:
    """The ClientHello. Raises OSError at an end before it."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[1:4], "big"):
        kind, body = read_record(sock)
        if kind != HANDSHAKE:
            raise OSError(f"record {kind} instead of a ClientHello")
        data += body
    return parse_hello(data)


def parse_hello(data: bytes) -> Hello:
    hello = Hello(raw=data, legacy=int.from_bytes(data[4:6], "big"), random=data[6:38])
    at = 38
    size = data[at]
    hello.session = data[at + 1 : at + 1 + size]
    at += 1 + size
    size = int.from_bytes(data[at : at + 2], "big")
    hello.ciphers = struct.unpack(f"!{size // 2}H", data[at + 2 : at + 2 + size])
    at += 2 + size
    size = data[at]
    hello.compression = data[at + 1 : at + 1 + size]
    at += 1 + size + 2
    while at < len(data):
        kind, size = struct.unpack("!HH", data[at : at + 4])
        hello.extensions[kind] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return hello


def server_hello(
    hello: Hello,
    *,
    cipher: int = ECDHE_ECDSA_AES128,
    version: int = 0x0303,
    compression: int = 0,
    extensions: Sequence[bytes] | None = None,
) -> bytes:
    """The message."""
    if extensions is None:
        extensions = [extension(0xFF01, b"\0"), extension(23, b""), extension(11, b"\1\0")]
    body = struct.pack("!H", version) + os.urandom(32) + vector(b"", 1) + struct.pack("!HB", cipher, compression)
    block = b"".join(extensions)
    return message(2, body + (vector(block, 2) if extensions else b""))


def certificates(chain: Sequence[bytes]) -> bytes:
    """The Certificate message of 1.2."""
    return message(11, vector(b"".join(vector(one, 3) for one in chain), 3))


def key_exchange(signature: bytes = b"\0" * 70, group: int = 23, algorithm: int = 0x0403) -> bytes:
    """ServerKeyExchange with some point of P-256 (its generator) and any signature."""
    point = bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    return message(
        12, b"\3" + struct.pack("!H", group) + vector(point, 1) + struct.pack("!H", algorithm) + vector(signature, 2)
    )


DONE = message(14, b"")


def client_hello(
    name: str | bytes | None = "site.grade.test",
    *,
    version: int = 0x0303,
    ciphers: Sequence[int] = (0xC02B, 0xC02F, 0xC02C, 0xC030),
    versions: Sequence[int] = (),
    extra: Sequence[bytes] = (),
    groups: Sequence[int] = (29, 23),
    algorithms: Sequence[int] = (0x0403, 0x0804, 0x0401),
    alpn: Sequence[bytes] = (),
    session: bytes = b"",
    random: bytes | None = None,
    compression: bytes = b"\0",
    first: Sequence[bytes] = (),
) -> bytes:
    """The message. ``name`` as bytes is sent as it is; ``first`` and ``extra`` are whole extensions."""
    extensions = list(first)
    if name is not None:
        host = name.encode() if isinstance(name, str) else name
        extensions.append(extension(0, vector(b"\0" + vector(host, 2), 2)))
    extensions += [
        extension(10, vector(struct.pack(f"!{len(groups)}H", *groups), 2)),
        extension(11, b"\1\0"),
        extension(13, vector(struct.pack(f"!{len(algorithms)}H", *algorithms), 2)),
        extension(23, b""),
    ]
    if alpn:
        extensions.append(extension(16, vector(b"".join(vector(one, 1) for one in alpn), 2)))
    if versions:
        extensions.append(extension(43, vector(struct.pack(f"!{len(versions)}H", *versions), 1)))
    extensions += extra
    body = struct.pack("!H", version) + (random or os.urandom(32)) + vector(session, 1)
    body += vector(struct.pack(f"!{len(ciphers)}H", *ciphers), 2) + vector(compression, 1)
    return message(1, body + vector(b"".join(extensions), 2))

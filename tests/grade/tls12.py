"""TLS records and messages of version 1.2 and below as bytes, for servers that say what no library says."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.grade import pki

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
        extensions = [extension(0xFF01, b"\0"), extension(11, b"\1\0")]
        extensions += [extension(23, b"")] if 23 in hello.extensions else []
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


def _prf(secret: bytes, label: bytes, seed: bytes, size: int) -> bytes:
    """RFC 5246 5, with SHA-256."""
    made, at = b"", label + seed
    while len(made) < size:
        at = hmac.digest(secret, at, "sha256")
        made += hmac.digest(secret, at + label + seed, "sha256")
    return made[:size]


class _Sealer:
    """One direction of AES-GCM (RFC 5288)."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self.aead, self.salt, self.number = AESGCM(key), salt, 0

    def _about(self, kind: int, size: int) -> bytes:
        self.number += 1
        return struct.pack("!QBHH", self.number - 1, kind, 0x0303, size)

    def seal(self, kind: int, data: bytes) -> bytes:
        explicit = self.number.to_bytes(8, "big")
        return record(kind, explicit + self.aead.encrypt(self.salt + explicit, data, self._about(kind, len(data))))

    def open(self, kind: int, body: bytes) -> bytes:
        return self.aead.decrypt(self.salt + body[:8], body[8:], self._about(kind, len(body) - 24))


class Server12:
    """A server of TLS 1.2 with ECDHE on P-256, ECDSA and AES-128-GCM; ``handler`` serves one connection of
    :class:`tests.grade.bench.Server` and answers a request with a page.

    The options replace single fields of what it says first, ``certificate`` and ``exchange`` whole messages; it then
    goes on as if that were right. ``alerts`` are those it heard before anything was encrypted.
    """

    def __init__(
        self,
        chain: Sequence[bytes],
        key: pki.Key,
        *,
        cipher: int = ECDHE_ECDSA_AES128,
        version: int = 0x0303,
        compression: int = 0,
        extensions: Sequence[bytes] | None = None,
        group: int = 23,
        certificate: bytes | None = None,
        exchange: bytes | None = None,
    ) -> None:
        self.key, self.group, self.exchange = key, group, exchange
        self.certificate = certificates(chain) if certificate is None else certificate
        self.hello = {"cipher": cipher, "version": version, "compression": compression, "extensions": extensions}
        self.alerts: list[int] = []

    def handler(self, side: Any) -> None:
        hello = read_hello(side.sock)
        share = ec.generate_private_key(ec.SECP256R1())
        greeting = server_hello(hello, **self.hello)
        random = greeting[6:38]
        flight = greeting + self.certificate + self._exchange(hello.random + random, share) + DONE
        version = min(self.hello["version"], 0x0303)
        for at in range(0, len(flight), 16000):
            side.sock.sendall(record(HANDSHAKE, flight[at : at + 16000], version))
        transcript, shared = hello.raw + flight, b""
        while (piece := read_record(side.sock))[0] != CHANGE:
            kind, body = piece
            if kind == ALERT:
                self.alerts.append(body[1])
            if kind != HANDSHAKE:
                return
            transcript += body
            if body[0] == 16:
                point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), body[5:])
                shared = share.exchange(ec.ECDH(), point)
        if 23 in hello.extensions and self.hello["extensions"] is None:
            master = _prf(shared, b"extended master secret", hashlib.sha256(transcript).digest(), 48)
        else:
            master = _prf(shared, b"master secret", hello.random + random, 48)
        keys = _prf(master, b"key expansion", random + hello.random, 40)
        theirs, mine = _Sealer(keys[:16], keys[32:36]), _Sealer(keys[16:32], keys[36:])
        transcript += theirs.open(*read_record(side.sock))
        done = _prf(master, b"server finished", hashlib.sha256(transcript).digest(), 12)
        side.sock.sendall(record(CHANGE, b"\1") + mine.seal(HANDSHAKE, message(20, done)))
        while (piece := read_record(side.sock))[0] == DATA:
            side.got += theirs.open(*piece)
            if b"\r\n\r\n" in side.got:
                side.sock.sendall(mine.seal(DATA, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nGRADE\n"))
                side.sock.sendall(mine.seal(ALERT, b"\1\0"))
                side.sock.shutdown(socket.SHUT_WR)

    def _exchange(self, randoms: bytes, share: ec.EllipticCurvePrivateKey) -> bytes:
        if self.exchange is not None:
            return self.exchange
        layout = serialization.PublicFormat.UncompressedPoint
        point = share.public_key().public_bytes(serialization.Encoding.X962, layout)
        what = b"\3" + struct.pack("!H", self.group) + vector(point, 1)
        return message(12, what + b"\4\3" + vector(self.key.sign(randoms + what, "sha256"), 2))


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

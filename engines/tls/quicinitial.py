"""The protection of QUIC's Initial packets, whose keys everybody on the path can derive.

Source: RFC 9001 sections 5.2 to 5.4, RFC 9369 section 3.3.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

V1, V2 = 0x00000001, 0x6B3343CF
_SALT_V1 = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")  # RFC 9001, section 5.2; also drafts 33 and 34
_SALT_V2 = bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9")  # RFC 9369, section 3.3.1
_SALT_DRAFT_29 = bytes.fromhex("afbfec289993d24c9e9786f19c6111e04390a899")  # drafts 29 to 32
_SALT_DRAFT_23 = bytes.fromhex("c3eef712c72ebb5a11a7d2432bb46365bef9f502")  # drafts 23 to 28


@dataclass(frozen=True, slots=True)
class InitialKeys:
    """One side's protection: AES-128-GCM key and nonce base, AES-128 key of the header's mask."""

    key: bytes
    iv: bytes
    hp: bytes


def initial_keys(version: int, connection_id: bytes) -> tuple[InitialKeys, InitialKeys] | None:
    """Client's and server's keys from the first destination connection id; None for a version without known salt."""
    salt = _salt(version)
    if salt is None:
        return None
    secret = hmac.digest(salt, connection_id, "sha256")
    prefix = "quicv2" if version == V2 else "quic"

    def side(label: str) -> InitialKeys:
        own = _expand(secret, label, 32)
        return InitialKeys(
            *(_expand(own, f"{prefix} {name}", size) for name, size in (("key", 16), ("iv", 12), ("hp", 16)))
        )

    return side("client in"), side("server in")


def has_salt(version: int) -> bool:
    """The keys of this version can be derived."""
    return _salt(version) is not None


def _salt(version: int) -> bytes | None:
    if version == V1:
        return _SALT_V1
    if version == V2:
        return _SALT_V2
    draft = version & 0xFF if version >> 8 == 0xFF0000 else 0
    if draft > 34 or draft < 23:
        return None
    return _SALT_V1 if draft >= 33 else _SALT_DRAFT_29 if draft >= 29 else _SALT_DRAFT_23


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1) with an empty context."""
    name = b"tls13 " + label.encode()
    info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return HKDFExpand(SHA256(), size, info).derive(secret)


def open_packet(keys: InitialKeys, packet: bytes, number_at: int) -> bytes | None:
    """The payload of one protected packet whose packet number stands at an offset, or None if these are not its keys.

    The number is taken as sent: a hello is among the first packets, whose numbers are not shortened.
    """
    sample = packet[number_at + 4 : number_at + 20]
    if len(sample) < 16:
        return None
    mask = Cipher(algorithms.AES(keys.hp), modes.ECB()).encryptor().update(sample)  # noqa: S305 - RFC 9001, 5.4.3
    first = packet[0] ^ (mask[0] & 0x0F)
    size = (first & 3) + 1
    number = bytes(a ^ b for a, b in zip(packet[number_at : number_at + size], mask[1:], strict=False))
    header = bytes([first]) + packet[1:number_at] + number
    nonce = (int.from_bytes(keys.iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
    try:
        return AESGCM(keys.key).decrypt(nonce, packet[number_at + size :], header)
    except InvalidTag:
        return None

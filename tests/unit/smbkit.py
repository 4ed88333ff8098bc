"""Makes SMB messages, each with its length before it."""

from __future__ import annotations

import struct

SESSION, TREE_CONNECT, CREATE, CLOSE, READ, WRITE, IOCTL, ECHO = 1, 3, 5, 6, 8, 9, 11, 13
RESPONSE = 1
PIPE = 0x0011C017


def framed(*messages: bytes) -> bytes:
    """Compounded, when there are several: all but the last are padded to 8 bytes and say where the next is."""
    out = b""
    for number, message in enumerate(messages):
        if number < len(messages) - 1:
            message += bytes(-len(message) % 8)
            message = message[:20] + struct.pack("<I", len(message)) + message[24:]
        out += message
    return struct.pack(">I", len(out)) + out


def smb2(
    command: int, body: bytes, number: int = 1, *, response: bool = False, status: int = 0, tree: int = 5
) -> bytes:
    """[MS-SMB2], section 2.2.1.2."""
    header = struct.pack("<4sHHIHHIIQIIQ", b"\xfeSMB", 64, 0, status, command, 1, int(response), 0, number, 0, 5, 9)
    return header + bytes(16) + body


def tree_connect(path: str, number: int = 1) -> bytes:
    name = path.encode("utf-16-le")
    return smb2(TREE_CONNECT, struct.pack("<HHHH", 9, 0, 72, len(name)) + name, number)


def tree_connected(kind: int, number: int = 1, status: int = 0) -> bytes:
    return smb2(TREE_CONNECT, struct.pack("<HBB12x", 16, kind, 0), number, response=True, status=status)


def create(name: str, number: int = 2) -> bytes:
    text = name.encode("utf-16-le")
    return smb2(CREATE, bytes(44) + struct.pack("<HH8x", 120, len(text)) + text, number)


def created(file: bytes, number: int = 2) -> bytes:
    return smb2(CREATE, bytes(64) + file + bytes(8), number, response=True)


def write(file: bytes, data: bytes, offset: int = 0, number: int = 3) -> bytes:
    body = struct.pack("<HHIQ", 49, 112, len(data), offset) + file + bytes(16)
    return smb2(WRITE, body + data, number)


def read(file: bytes, offset: int = 0, number: int = 3) -> bytes:
    return smb2(READ, struct.pack("<HBBIQ", 49, 0, 0, 65536, offset) + file + bytes(17), number)


def done(command: int, number: int, status: int = 0) -> bytes:
    return smb2(command, bytes(9), number, response=True, status=status)


def was_read(data: bytes, number: int = 3, status: int = 0) -> bytes:
    return smb2(READ, struct.pack("<HBBI8x", 17, 80, 0, len(data)) + data, number, response=True, status=status)


def close(file: bytes, number: int = 9) -> bytes:
    return smb2(CLOSE, bytes(8) + file, number)


def ioctl(file: bytes, data: bytes, number: int = 3) -> bytes:
    body = struct.pack("<HHI", 57, 0, PIPE) + file + struct.pack("<II", 120, len(data)) + bytes(24)
    return smb2(IOCTL, body + data, number)


def ioctl_done(data: bytes, number: int = 3) -> bytes:
    body = struct.pack("<HHI", 49, 0, PIPE) + bytes(16) + struct.pack("<IIII8x", 112, 0, 112, len(data))
    return smb2(IOCTL, body + data, number, response=True)


def session_setup(user: str, domain: str, number: int = 1) -> bytes:
    token = b"wrapped" + authenticate(user, domain)
    return smb2(SESSION, struct.pack("<HBBIIHHQ", 25, 0, 0, 0, 0, 88, len(token), 0) + token, number)


def authenticate(user: str, domain: str) -> bytes:
    """[MS-NLMP], section 2.2.1.3."""
    one, other = domain.encode("utf-16-le"), user.encode("utf-16-le")
    fields = struct.pack("<HHI", len(one), len(one), 64) + struct.pack("<HHI", len(other), len(other), 64 + len(one))
    return b"NTLMSSP\0\x03\0\0\0" + bytes(16) + fields + bytes(20) + one + other


def smb1(
    command: int, words: bytes, data: bytes = b"", number: int = 1, *, response: bool = False, wide: bool = True
) -> bytes:
    """[MS-CIFS], section 2.2.3."""
    flags = 0x8000 if wide else 0
    header = struct.pack("<4sBIBH12xHHHH", b"\xffSMB", command, 0, 0x80 if response else 0, flags, 7, 1, 3, number)
    return header + bytes([len(words) // 2]) + words + struct.pack("<H", len(data)) + data


def andx(words: bytes, command: int = 0xFF, offset: int = 0) -> bytes:
    return struct.pack("<BBH", command, 0, offset) + words

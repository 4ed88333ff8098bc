"""The key holder: the one process that has the CA's private key (relayd's design).

It never sees a byte from the network. Over one socket per TLS worker it is asked to mint a leaf for names a worker has
verified, builds that certificate itself (so nothing but a server leaf can ever be signed) and answers with its DER.
The key is read here and nowhere else (:func:`key_file`); core dumps and ptrace are off.

Messages are msgpack maps, one per sequenced packet: ``{id, request: {...}, public_key: DER}`` ->
``{id, leaf: DER}`` or ``{id, error: text}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engines.tls.leaf import LeafRequest, check_ca, mint
from nfw import process

MESSAGE_BYTES = 256 * 1024  # a server certificate's names fit; OpenSSL refuses chains over 100 KB
SOCKET_BYTES = 1 << 20


class CaError(Exception):
    """The CA cannot be used; the text says why, with the file's name."""


def channel() -> tuple[socket.socket, socket.socket]:
    """(worker side, key-holder side) for one TLS worker."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for side in pair:
        with contextlib.suppress(OSError):
            side.setsockopt(socket.SOL_SOCKET, 32, SOCKET_BYTES)  # SO_SNDBUFFORCE
    return pair


def encode_request(number: int, request: LeafRequest, public_key: bytes) -> bytes:
    """One question; ``public_key`` is the worker's leaf key as SubjectPublicKeyInfo DER."""
    packed: bytes = msgpack.packb({"id": number, "request": dataclasses.asdict(request), "public_key": public_key})
    return packed


def decode_reply(data: bytes) -> dict[str, Any]:
    """One answer, see the module's docstring."""
    reply = msgpack.unpackb(data)
    if not isinstance(reply, dict):
        raise TypeError("key holder reply is not a map")
    return reply


def load_ca(certificate: str, private_key: str, now: float) -> tuple[x509.Certificate, Any]:
    """Read and check both files. Raises :class:`CaError` naming the file and what is wrong with it."""
    private_key = key_file(private_key)
    try:
        cert = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except (OSError, ValueError) as error:
        raise CaError(f"{certificate}: cannot read the CA certificate: {error}") from error
    try:
        key = serialization.load_pem_private_key(Path(private_key).read_bytes(), password=None)
    except TypeError as error:
        raise CaError(f"{private_key}: the CA key is encrypted; nfw needs it without a passphrase") from error
    except (OSError, ValueError) as error:
        raise CaError(f"{private_key}: cannot read the CA private key: {error}") from error
    problems = check_ca(cert, key, now)
    if problems:
        of = f" (key: {private_key}, as it was when the service started)" if _credentials() in private_key else ""
        raise CaError(f"{certificate}: " + "; ".join(problems) + of)
    return cert, key


def key_file(private_key: str) -> str:
    """Where to read the key the policy names: there, or, when this process may not, the credential of that file name.

    systemd reads credentials before it gives up root (``LoadCredential=``, systemd.exec(5)); where there is no file, it
    hands out a text that is no key.
    """
    if os.access(private_key, os.R_OK):
        return private_key
    credential = Path(_credentials(), Path(private_key).name)
    with contextlib.suppress(OSError):
        if b"-----BEGIN" in credential.read_bytes():
            return str(credential)
    return private_key


def _credentials() -> str:
    return os.environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent"


def answer(data: bytes, certificate: x509.Certificate, key: Any, now: float) -> bytes:
    """The reply to one message; bad messages get an error, never an exception."""
    number = -1
    try:
        message = msgpack.unpackb(data)
        number = int(message["id"])
        fields = {
            name: tuple(tuple(item) if isinstance(item, list) else item for item in value)
            if isinstance(value, list)
            else value
            for name, value in message["request"].items()
        }
        public_key = serialization.load_der_public_key(message["public_key"])
        leaf = mint(certificate, key, public_key, LeafRequest(**fields), now)  # type: ignore[arg-type]
        reply: dict[str, Any] = {"id": number, "leaf": leaf}
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one certificate, the next one must be signed
        reply = {"id": number, "error": f"{type(error).__name__}: {error}"}
    packed: bytes = msgpack.packb(reply)
    return packed


def run(sides: Sequence[socket.socket], certificate: str, private_key: str, ready: socket.socket) -> None:
    """Serve until SIGTERM or until the leader goes. ``ready`` gets ``ok`` or ``error: text``, and from then on what the
    leader sends there comes back, as a sign of life."""
    process.no_dumps()
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    try:
        cert, key = load_ca(certificate, private_key, time.time())
    except CaError as error:
        ready.sendall(f"error: {error}".encode())
        return
    ready.sendall(b"ok")
    poll = select.poll()
    by_fd = {side.fileno(): side for side in sides}
    for fd in (*by_fd, ready.fileno()):
        poll.register(fd, select.POLLIN)
    while not stopping:
        for fd, _ in poll.poll(1000):
            if fd == ready.fileno():
                if not _sign_of_life(ready):
                    return
                continue
            with contextlib.suppress(BlockingIOError, ConnectionError):
                data = by_fd[fd].recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
                if data:
                    by_fd[fd].send(answer(data, cert, key, time.time()), socket.MSG_DONTWAIT)


def _sign_of_life(leader: socket.socket) -> bool:
    """Answer the leader with its own words, unread. False: it is gone."""
    try:
        data = leader.recv(MESSAGE_BYTES)
    except OSError:
        return False
    if data:
        with contextlib.suppress(OSError):  # full: the leader hangs
            leader.send(data, socket.MSG_DONTWAIT)
    return bool(data)

"""The key holder: the one process that has the CA's private key (relayd's design).

It never sees a byte from the network. Over one socket per TLS worker it is asked to mint a leaf for names a worker has
verified, builds that certificate itself (so nothing but a server leaf can ever be signed) and answers with its DER.
The key is read here and nowhere else (:func:`key_file`); core dumps and ptrace are off.

Messages are msgpack maps, one per sequenced packet: ``{id, request: {...}, public_key: DER}`` ->
``{id, leaf: DER}`` or ``{id, error: text}``.

For inbound inspection it holds the servers' own keys, too, and signs the handshakes of a worker with them:
``{id, sign: number of the key, data: bytes}`` -> ``{id, signature: bytes}``. ``data`` is a digest for elliptic curves,
a padded block for RSA.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils

from engines.tls.leaf import LeafRequest, check_ca, mint
from engines.tls.malformed import MALFORMED
from nfw import process

MESSAGE_BYTES = 256 * 1024  # a server certificate's names fit; OpenSSL refuses chains over 100 KB
SOCKET_BYTES = 1 << 20
SIGN_SECONDS = 1.0  # a worker waits for a signature; all its sessions wait with it


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
    except (OSError, *MALFORMED) as error:
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


def load_server(certificate: str, private_key: str) -> tuple[list[x509.Certificate], Any]:
    """A server's certificate, its issuers behind it, and its key. Raises :class:`CaError` naming file and fault."""
    private_key = key_file(private_key)
    try:
        chain = x509.load_pem_x509_certificates(Path(certificate).read_bytes())
    except (OSError, *MALFORMED) as error:
        raise CaError(f"{certificate}: cannot read the server's certificate: {error}") from error
    try:
        key = serialization.load_pem_private_key(Path(private_key).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CaError(f"{private_key}: cannot read the server's private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CaError(f"{private_key}: the server's key is neither RSA nor elliptic curve")
    if key.public_key() != chain[0].public_key():
        raise CaError(f"{private_key}: the key does not belong to {certificate}")
    return chain, key


def sign(key: Any, data: bytes) -> bytes:
    """The signature TLS asks a private key for. Raises ValueError when ``data`` is nothing it could be asked for."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        digest = _DIGESTS.get(len(data))
        if digest is None:
            raise ValueError(f"no digest has {len(data)} bytes")
        return key.sign(data, ec.ECDSA(utils.Prehashed(digest)))
    numbers = key.private_numbers()
    public = numbers.public_numbers
    block = int.from_bytes(data, "big")
    if len(data) != key.key_size // 8 or block >= public.n:
        raise ValueError("not a block of the key's size")
    # Blinded, so that the time it takes says nothing of the key; checked, so that a fault does not, either.
    blind = secrets.randbelow(public.n - 2) + 2
    blinded = block * pow(blind, public.e, public.n) % public.n
    one = pow(blinded, numbers.dmp1, numbers.p)
    two = pow(blinded, numbers.dmq1, numbers.q)
    result = (two + (one - two) * numbers.iqmp % numbers.p * numbers.q) * pow(blind, -1, public.n) % public.n
    if pow(result, public.e, public.n) != block:
        raise ValueError("the signature does not verify")
    signature: bytes = result.to_bytes(len(data), "big")
    return signature


_DIGESTS: dict[int, hashes.HashAlgorithm] = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}


class RemoteKeys:
    """A worker's side of the servers' keys: waits for each signature, as OpenSSL has to."""

    def __init__(self, side: socket.socket) -> None:
        self._side = side
        self._next = time.monotonic_ns()

    def sign(self, number: int, data: bytes) -> bytes | None:
        """None when the key holder does not give one within :data:`SIGN_SECONDS`."""
        self._next += 1
        message = msgpack.packb({"id": self._next, "sign": number, "data": data})
        deadline = time.monotonic() + SIGN_SECONDS
        try:
            self._side.settimeout(SIGN_SECONDS)
            self._side.send(message)
            while (left := deadline - time.monotonic()) > 0:
                self._side.settimeout(left)
                reply = decode_reply(self._side.recv(MESSAGE_BYTES))
                if reply.get("id") == self._next:
                    signature = reply.get("signature")
                    return bytes(signature) if signature is not None else None
        except (OSError, ValueError, TypeError):
            pass
        return None


def answer(data: bytes, certificate: x509.Certificate, key: Any, now: float, server_keys: Sequence[Any] = ()) -> bytes:
    """The reply to one message; bad messages get an error, never an exception."""
    number = -1
    try:
        message = msgpack.unpackb(data)
        number = int(message["id"])
        if "sign" in message:
            index = int(message["sign"])
            if not 0 <= index < len(server_keys):
                raise ValueError("no such key")
            signed: bytes = msgpack.packb({"id": number, "signature": sign(server_keys[index], message["data"])})
            return signed
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


def run(
    sides: Sequence[socket.socket],
    certificate: str,
    private_key: str,
    ready: socket.socket,
    servers: Sequence[tuple[str, str]] = (),
) -> None:
    """Serve until SIGTERM or until the leader goes. ``ready`` gets ``ok`` or ``error: text``, and from then on what the
    leader sends there comes back, as a sign of life. ``servers``: files of certificate and key, in the order workers
    number them."""
    process.no_dumps()
    told_to_end, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)  # a signal alone does not end the wait in poll (PEP 475)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        cert, key = load_ca(certificate, private_key, time.time())
        server_keys = [load_server(*files)[1] for files in servers]
    except CaError as error:
        ready.sendall(f"error: {error}".encode())
        return
    ready.sendall(b"ok")
    poll = select.poll()
    by_fd = {side.fileno(): side for side in sides}
    for fd in (*by_fd, ready.fileno(), told_to_end):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == told_to_end:
                return
            if fd == ready.fileno():
                if not _sign_of_life(ready):
                    return
                continue
            with contextlib.suppress(BlockingIOError, ConnectionError):
                data = by_fd[fd].recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
                if data:
                    by_fd[fd].send(answer(data, cert, key, time.time(), server_keys), socket.MSG_DONTWAIT)


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

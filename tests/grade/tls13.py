"""Both ends of TLS 1.3 in a few hundred lines that trust everything and will say anything (RFC 8446).

One suite (AES-128-GCM with SHA-256) and one group (X25519). No certificate is verified: what is tested is what the peer
does. ``Client13`` and ``Server13`` have a method for each thing a well-behaved library would refuse to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.grade import pki, tls12
from tests.grade.tls12 import ALERT, CHANGE, DATA, HANDSHAKE, extension, message, vector

SUITE, X25519 = 0x1301, 29
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def _extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), secret, "sha256")


def _label(secret: bytes, label: str, context: bytes, size: int = 32) -> bytes:
    info = struct.pack("!H", size) + vector(b"tls13 " + label.encode(), 1) + vector(context, 1)
    return hmac.digest(secret, info + b"\1", "sha256")[:size]


class _Sealer:
    """One direction's keys."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.aead = AESGCM(_label(secret, "key", b"", 16))
        self.iv = _label(secret, "iv", b"", 12)
        self.number = 0

    def nonce(self) -> bytes:
        value = int.from_bytes(self.iv, "big") ^ self.number
        self.number += 1
        return value.to_bytes(12, "big")

    def next(self) -> _Sealer:
        return _Sealer(_label(self.secret, "traffic upd", b""))


class AlertError(Exception):
    """The peer sent a fatal alert; ``description`` is its number."""

    def __init__(self, description: int) -> None:
        super().__init__(f"alert {description}")
        self.description = description


class ClosedError(Exception):
    """The connection ended without one."""


class Stream13:
    """Records of one connection; ``seal`` and ``open`` are None while they are not encrypted."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.seal: _Sealer | None = None
        self.open: _Sealer | None = None
        self.transcript = b""
        self.pending = b""  # handshake bytes of a message not yet whole
        self.raw: list[bytes] = []
        self.application: list[bytes] = []
        self.tickets: list[bytes] = []
        self.updates = 0

    def send(self, kind: int, data: bytes, pad: int = 0) -> None:
        self.sock.sendall(self.record(kind, data, pad))

    def record(self, kind: int, data: bytes, pad: int = 0) -> bytes:
        if self.seal is None:
            return tls12.record(kind, data)
        inner = data + bytes((kind,)) + bytes(pad)
        head = struct.pack("!BHH", DATA, 0x0303, len(inner) + 16)
        return head + self.seal.aead.encrypt(self.seal.nonce(), inner, head)

    def receive(self) -> tuple[int, bytes]:
        """The next record; change_cipher_spec is skipped. Raises AlertError or ClosedError."""
        while True:
            try:
                kind, body = tls12.read_record(self.sock)
            except ConnectionError:
                raise ClosedError("reset") from None
            if kind < 0:
                raise ClosedError("end of file")
            if kind == CHANGE:
                continue
            if kind == DATA and self.open is not None:
                head = struct.pack("!BHH", DATA, 0x0303, len(body))
                body = self.open.aead.decrypt(self.open.nonce(), body, head).rstrip(b"\0")
                kind, body = body[-1], body[:-1]
            if kind == ALERT and body[1:2] != b"\0":
                raise AlertError(body[1])
            return kind, body

    def next_message(self) -> tuple[int, bytes]:
        """(type, whole message) of a handshake message."""
        while len(self.pending) < 4 or len(self.pending) < 4 + int.from_bytes(self.pending[1:4], "big"):
            kind, body = self.receive()
            if kind == ALERT:
                raise ClosedError("close_notify")
            if kind != HANDSHAKE:
                raise ClosedError(f"record {kind} instead of a handshake message")
            self.pending += body
        size = 4 + int.from_bytes(self.pending[1:4], "big")
        whole, self.pending = self.pending[:size], self.pending[size:]
        return whole[0], whole

    def write(self, data: bytes, pad: int = 0, size: int = 16384) -> None:
        for at in range(0, len(data), size):
            self.send(DATA, data[at : at + size], pad)

    def read(self) -> bytes:
        """The next application bytes; b"" at close_notify. Answers key updates."""
        while True:
            kind, body = self.receive()
            if kind == DATA:
                return body
            if kind == ALERT:
                return b""
            if kind == HANDSHAKE and body[0] == 4:
                self.tickets.append(body)
            elif kind == HANDSHAKE and body[0] == 24:
                assert self.open is not None
                self.open = self.open.next()
                self.updates += 1
                if body[4]:
                    self.key_update(False)

    def read_all(self) -> tuple[bytes, str]:
        """Everything, and the end: clean, alert N, or what ClosedError says."""
        got = b""
        try:
            while data := self.read():
                got += data
        except (AlertError, ClosedError) as end:
            return got, str(end)
        except TimeoutError:
            return got, "timeout"
        except InvalidTag:
            return got, "bad record"
        return got, "clean"

    def key_update(self, request: bool) -> None:
        assert self.seal is not None
        self.send(HANDSHAKE, message(24, bytes((request,))))
        self.seal = self.seal.next()

    def close_notify(self) -> None:
        self.send(ALERT, b"\1\0")

    def _hash(self) -> bytes:
        return hashlib.sha256(self.transcript).digest()

    def _handshake_keys(self, shared: bytes, early: bytes) -> tuple[bytes, bytes, bytes]:
        """Secrets of client, server, and the one all later ones come from."""
        empty = hashlib.sha256().digest()
        secret = _extract(_label(early, "derived", empty), shared)
        master = _extract(_label(secret, "derived", empty), bytes(32))
        context = self._hash()
        return _label(secret, "c hs traffic", context), _label(secret, "s hs traffic", context), master

    def _finished(self, secret: bytes) -> bytes:
        return hmac.digest(_label(secret, "finished", b""), self._hash(), "sha256")


class Client13(Stream13):
    """A client over a connected socket."""

    def __init__(self, sock: socket.socket, name: str | bytes | None = "site.grade.test", **hello: Any) -> None:
        super().__init__(sock)
        self.key = X25519PrivateKey.generate()
        self.name = name
        self.options = hello
        self.random, self.session = os.urandom(32), os.urandom(32)
        self.retried = False
        self.chosen_alpn = b""
        self.server_extensions: dict[int, bytes] = {}
        self.certificate = b""

    def hello(
        self,
        *,
        name: str | bytes | None = None,
        shares: Sequence[tuple[int, bytes]] | None = None,
        groups: Sequence[int] = (X25519, 23),
        versions: Sequence[int] = (0x0304,),
        extra: Sequence[bytes] = (),
        **how: Any,
    ) -> bytes:
        """The ClientHello message."""
        if shares is None:
            shares = [(X25519, self.key.public_key().public_bytes_raw())]
        block = b"".join(struct.pack("!H", group) + vector(share, 2) for group, share in shares)
        more = [extension(51, vector(block, 2)), extension(45, b"\1\1"), *extra]
        return tls12.client_hello(
            self.name if name is None else name,
            ciphers=how.pop("ciphers", (SUITE,)),
            versions=versions,
            groups=groups,
            session=self.session,
            random=self.random,
            extra=more,
            **how,
        )

    def start(
        self, message_: bytes | None = None, size: int = 16384, pieces: Callable[[bytes], None] | None = None
    ) -> None:
        """Send the ClientHello, in records of ``size`` bytes, by ``pieces`` where given."""
        message_ = message_ or self.hello(**self.options)
        self.transcript += message_
        records = [tls12.record(HANDSHAKE, message_[at : at + size], 0x0301) for at in range(0, len(message_), size)]
        (pieces or self.sock.sendall)(b"".join(records))

    def handshake(self, second: Callable[[], bytes] | None = None, *, finish: bool = True) -> None:
        """Finish it. ``second`` makes the answer to a HelloRetryRequest; without ``finish`` the client's Finished is
        left out. Raises AlertError or ClosedError."""
        if not self.transcript:
            self.start()
        kind, whole = self.next_message()
        if whole[6:38] == RETRY:
            self.retried = True
            self.transcript = message(254, self._hash()) + whole
            cookie = _server_extensions(whole).get(44)
            options = dict(self.options)
            options.pop("shares", None)
            if cookie is not None:
                options["extra"] = [*options.get("extra", ()), extension(44, cookie)]
            self.start(second() if second is not None else self.hello(**options))
            kind, whole = self.next_message()
        if kind != 2:
            raise ClosedError(f"message {kind} instead of ServerHello")
        self.transcript += whole
        self.server_extensions = _server_extensions(whole)
        share = self.server_extensions[51]
        shared = self.key.exchange(X25519PublicKey.from_public_bytes(share[4:36]))
        mine, theirs, master = self._handshake_keys(shared, _extract(b"", bytes(32)))
        self.open = _Sealer(theirs)
        while True:
            kind, whole = self.next_message()
            if kind == 11:
                self.certificate = whole[11 : 11 + int.from_bytes(whole[8:11], "big")]
            if kind == 20:
                break
            self.transcript += whole
            if kind == 8:
                self.chosen_alpn = _encrypted_extensions(whole).get(16, b"")[3:]
        self.transcript += whole
        empty = self._hash()
        self.sock.sendall(tls12.record(CHANGE, b"\1"))
        self.seal = _Sealer(mine)
        if finish:
            self.send(HANDSHAKE, message(20, self._finished(mine)))
        self.seal = _Sealer(_label(master, "c ap traffic", empty))
        self.open = _Sealer(_label(master, "s ap traffic", empty))


def _extensions(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(data):
        kind, size = struct.unpack("!HH", data[at : at + 4])
        found[kind] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def allows_early_data(ticket: bytes) -> bool:
    """Of a NewSessionTicket (RFC 8446 4.6.1)."""
    at = 4 + 8
    at += 1 + ticket[at]
    at += 2 + int.from_bytes(ticket[at : at + 2], "big")
    return 42 in _extensions(ticket[at + 2 :])


def _server_extensions(whole: bytes) -> dict[int, bytes]:
    at = 38 + 1 + whole[38] + 3
    return _extensions(whole[at + 2 :])


def _encrypted_extensions(whole: bytes) -> dict[int, bytes]:
    return _extensions(whole[6:])


class Server13:
    """What a server says; ``handler`` serves one connection of :class:`tests.grade.bench.Server`.

    ``after`` gets the stream when the handshake is done. ``retry``: HelloRetryRequests to send first, each a list of
    extensions. ``unfinished``: take the client's Finished for sent. The other options replace single fields with what
    the client did not offer.
    """

    def __init__(
        self,
        chain: Sequence[bytes],
        key: pki.EcKey,
        after: Callable[[Stream13], None] | None = None,
        *,
        retry: Sequence[Sequence[bytes]] = (),
        suite: int = SUITE,
        group: int = X25519,
        version: int = 0x0304,
        alpn: bytes = b"",
        request: bytes | None = None,
        compressed: Callable[[bytes], bytes] | None = None,
        before: Callable[[Stream13], None] | None = None,
        final: Callable[[Stream13], None] | None = None,
        unfinished: bool = False,
    ) -> None:
        self.chain, self.key, self.after = chain, key, after
        self.retry, self.suite, self.group, self.version, self.alpn = retry, suite, group, version, alpn
        self.request, self.compressed, self.before, self.final = request, compressed, before, final
        self.unfinished = unfinished
        self.hellos: list[tls12.Hello] = []
        self.alerts: list[int] = []

    def handler(self, side: Any) -> None:
        stream = Stream13(side.sock)
        try:
            self.serve(stream)
        except AlertError as alert:
            self.alerts.append(alert.description)
        except OSError:  # reset while we wrote; the alert before it is still to be read
            with contextlib.suppress(ClosedError, OSError, InvalidTag):
                try:
                    while True:
                        stream.receive()
                except AlertError as alert:
                    self.alerts.append(alert.description)
        except (ClosedError, InvalidTag):
            pass
        side.got += b"".join(stream.application)

    def serve(self, stream: Stream13) -> None:
        hello = self._hello(stream)
        first = True
        for extensions in self.retry:
            transcript = hello.raw if first else stream.transcript
            body = struct.pack("!H", 0x0303) + RETRY + vector(hello.session, 1) + struct.pack("!HB", self.suite, 0)
            block = extension(43, struct.pack("!H", 0x0304)) + b"".join(extensions)
            whole = message(2, body + vector(block, 2))
            stream.transcript = message(254, hashlib.sha256(transcript).digest()) + whole
            stream.send(HANDSHAKE, whole)
            hello = self._hello(stream)
            first = False
        stream.transcript += hello.raw
        share = hello.shares.get(X25519)
        key = X25519PrivateKey.generate()
        shared = key.exchange(X25519PublicKey.from_public_bytes(share)) if share else bytes(32)
        block = extension(43, struct.pack("!H", self.version))
        block += extension(51, struct.pack("!H", self.group) + vector(key.public_key().public_bytes_raw(), 2))
        body = struct.pack("!H", 0x0303) + os.urandom(32) + vector(hello.session, 1) + struct.pack("!HB", self.suite, 0)
        whole = message(2, body + vector(block, 2))
        stream.transcript += whole
        stream.send(HANDSHAKE, whole)
        client, server, master = stream._handshake_keys(shared, _extract(b"", bytes(32)))
        stream.seal = _Sealer(server)
        if self.before is not None:
            self.before(stream)
        block = extension(16, vector(vector(self.alpn, 1), 2)) if self.alpn else b""
        flight = [message(8, vector(block, 2))]
        if self.request is not None:
            flight.append(message(13, vector(self.request, 1) + vector(extension(13, vector(b"\4\3\x08\4", 2)), 2)))
        entries = b"".join(vector(one, 3) + b"\0\0" for one in self.chain)
        certificate = message(11, vector(b"", 1) + vector(entries, 3))
        flight.append(self.compressed(certificate) if self.compressed is not None else certificate)
        stream.transcript += b"".join(flight)
        signed = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + stream._hash()
        verify = message(15, b"\4\3" + vector(self.key.sign(signed, "sha256"), 2))
        stream.transcript += verify
        flight.append(verify)
        done = message(20, stream._finished(server))
        stream.transcript += done
        flight.append(done)
        everything = b"".join(flight)
        for at in range(0, len(everything), 16000):
            stream.send(HANDSHAKE, everything[at : at + 16000])
        context = stream._hash()
        stream.open = _Sealer(client)
        while not self.unfinished and stream.next_message()[0] != 20:
            pass
        stream.open = _Sealer(_label(master, "c ap traffic", context))
        stream.seal = _Sealer(_label(master, "s ap traffic", context))
        if self.after is not None:
            self.after(stream)

    def _hello(self, stream: Stream13) -> tls12.Hello:
        kind, whole = stream.next_message()
        if kind != 1:
            raise ClosedError(f"message {kind} instead of ClientHello")
        hello = tls12.parse_hello(whole)
        self.hellos.append(hello)
        return hello


def page(stream: Stream13) -> None:
    """Answer one request."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = stream.read()
        if not data:
            return
        got += data
        stream.application.append(data)
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nGRADE\n")
    stream.close_notify()

"""One TLS endpoint over memory buffers: ciphertext in, plaintext out, and back. Used twice per session.

Promise: no peer byte raises anything but :class:`TlsError`, and that only from :meth:`TlsHalf.handshake`; a failure
while relaying is a value (``error``), so that plaintext decrypted before it is not lost.
"""

from __future__ import annotations

from OpenSSL import SSL

from engines.tls import openssl
from engines.tls.events import Leg

_SLICE = 65536
"""Bytes handed to OpenSSL at once. Its memory buffers grow to what they once held: 256 KB would cost 340 KB per busy
buffer and gain nothing; with 16 KB a gigabyte takes 60 % more CPU."""


UNNAMED_ALERT = "unnamed"  # one OpenSSL is not told about, such as ech_required (RFC 9849)


class TlsError(Exception):
    """TLS failed. ``alert`` is the name of the alert the peer sent (``unknown ca``), "" if we found the fault."""

    def __init__(self, detail: str, alert: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.alert = alert


class TlsHalf:
    """Wraps a Connection that has no socket and whose role (connect or accept state) is set."""

    __slots__ = ("closed", "connection", "error")

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection
        self.closed = False
        """The peer sent close_notify; RFC 8446 6.1: whatever it sends after is ignored."""
        self.error: TlsError | None = None
        """Set once, when a record fails or a fatal alert arrives; the half decrypts nothing any more."""

    def handshake(self, data: bytes = b"") -> int | None:
        """Advance with the peer's next bytes. None: more are needed. Done: how many of ``data`` were taken; the rest
        belongs to :meth:`decrypt`. Collect :meth:`output` either way, also after an error (it may hold an alert).
        """
        connection, at, size = self.connection, 0, len(data)
        while True:
            if size:
                openssl.feed(connection, data if size <= _SLICE else data[at : at + _SLICE])
                at = min(at + _SLICE, size)
            try:
                if openssl.handshake(connection):
                    return at
            except SSL.Error as error:
                raise _tls_error(error) from None
            if at >= size:
                return None

    def decrypt(self, data: bytes) -> bytes:
        """Plaintext of as many whole records as ``data`` completes; then look at ``closed`` and ``error``."""
        if self.closed or self.error is not None:
            return b""
        connection = self.connection
        pieces: list[bytes] = []
        at, size = 0, len(data)
        try:
            while True:
                if at < size:
                    openssl.feed(connection, data if size <= _SLICE else data[at : at + _SLICE])
                    at += _SLICE
                while (piece := openssl.read(connection)) is not None:
                    pieces.append(piece)
                if at >= size:
                    break
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            self.error = _tls_error(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Records for the peer. Nothing, once the half has failed or said close_notify."""
        if self.error is not None or not plaintext:
            return b""
        connection = self.connection
        pieces = []
        try:
            for at in range(0, len(plaintext), _SLICE):
                openssl.write(connection, plaintext[at : at + _SLICE])
                pieces.append(openssl.take(connection))
        except SSL.Error as error:
            self.error = _tls_error(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close_notify(self) -> bytes:
        """The alert that says our side is complete (RFC 8446 6.1). Only for a stream that really ended so."""
        if self.error is None:
            try:
                self.connection.shutdown()
            except SSL.Error as error:
                self.error = _tls_error(error)
        return self.output()

    def output(self) -> bytes:
        """What OpenSSL itself wants sent: handshake messages, tickets, key updates, alerts."""
        return openssl.take(self.connection)

    def trim(self) -> None:
        """Give back memory that bulk data needed (up to 90 KB per buffer). Collect :meth:`output` before."""
        if self.error is None and not self.closed:
            openssl.renew_buffers(self.connection)

    def servername(self) -> bytes | None:
        """The name in the last ClientHello this side, a server, was sent."""
        return self.connection.get_servername()

    def leg(self) -> Leg:
        """What was negotiated; after the handshake."""
        return Leg(*openssl.negotiated(self.connection))


def _tls_error(error: SSL.Error) -> TlsError:
    """OpenSSL's error queue as one sentence; the last entry is the one closest to the wire protocol."""
    if isinstance(error, SSL.ZeroReturnError):
        return TlsError("the peer closed during the handshake", "close notify")
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reason = next((entry[2] for entry in reversed(entries) if len(entry) > 2 and entry[2]), "")
    if entries and not reason:
        return TlsError("received an alert that OpenSSL has no name for", UNNAMED_ALERT)
    if not reason:
        reason = " ".join(str(argument) for argument in error.args) or type(error).__name__
    _, alert, name = reason.partition(" alert ")
    return TlsError(f"received alert {name}" if alert else reason, name)

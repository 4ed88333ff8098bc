"""The visible part of a TLS connection: both hellos and, up to TLS 1.2, the certificates. One transaction.

For flows outside every TLS scope. A decrypted flow knows the same things from its TLS session; :func:`known_session`
makes the transaction from them, so rules cannot tell the difference.

Source: RFC 8446 sections 4.1 and 5.1, RFC 5246 section 7.4; Suricata user guide, "SSL/TLS Keywords", "JA3 Keywords".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.stateful.app.certificate import CertificateFacts, certificate_problem, read_certificate
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.tls.clienthello import ClientHello, ClientHelloReader, NotTls
from engines.verdict import Direction

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _APPLICATION_DATA = 20, 21, 22, 23
_SERVER_HELLO, _CERTIFICATE, _SERVER_KEY_EXCHANGE, _CLIENT_KEY_EXCHANGE = 2, 11, 12, 16
_OLD_HELLO = 11  # the fixed fields of a hello in the format of SSL 2.0
_MAX_RECORD = 16384 + 2048  # RFC 5246, section 6.2.3
_EXT_ALPN, _EXT_SUPPORTED_VERSIONS = 16, 43
_TLS1_3 = 0x0304
_VERSIONS = {0x0002: "2.0", 0x0300: "3.0", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
_MAX_CERTIFICATES = 32  # a chain is three or four; rules look at the first and the number


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What a TLS session knows about itself. ``version`` is the negotiated one on the wire (0x0304 = TLS 1.3);
    ``server_chain`` DER, leaf first."""

    sni: bytes | None = None
    version: int = 0
    client_version: int = 0  # the best one offered
    client_random: bytes = b""
    client_alpn: tuple[bytes, ...] = ()
    alpn: bytes = b""
    ja3_string: str = ""
    ja4: str = ""
    ja3s_string: str = ""
    server_chain: tuple[bytes, ...] = ()
    client_chain: tuple[bytes, ...] = ()

    @classmethod
    def from_hello(cls, hello: ClientHello) -> TlsFacts:
        """The client's half."""
        return cls(
            sni=hello.sni_raw,
            # GREASE values (RFC 8701) have two equal bytes.
            client_version=max((v for v in hello.versions if v >> 8 != v & 0xFF), default=hello.legacy_version),
            # Record and message headers and the version come before it; records this short are not worth more.
            client_random=hello.raw[11:43] if int.from_bytes(hello.raw[3:5], "big") >= 38 else b"",
            client_alpn=hello.alpn,
            ja3_string=hello.ja3_string,
            ja4=hello.ja4,
        )


class TlsTransaction(BaseTransaction):
    """One connection. ``states``: what of the handshake was seen by direction, in ``ssl_state``'s words."""

    __slots__ = (
        "_certificates",
        "alpn",
        "chains",
        "client_alpn",
        "ja3_string",
        "ja3s_string",
        "ja4",
        "randoms",
        "sni",
        "states",
        "versions",
    )

    def __init__(self, tx_id: int) -> None:
        super().__init__(tx_id)
        self.sni: bytes | None = None
        self.versions = [0, 0]  # the best one offered, the negotiated one
        self.randoms = [b"", b""]
        self.client_alpn: tuple[bytes, ...] = ()
        self.alpn = b""
        self.ja3_string = self.ja4 = self.ja3s_string = ""
        self.chains: list[tuple[bytes, ...]] = [(), ()]  # by the direction they travel
        self.states: list[list[str]] = [[], []]
        self._certificates: list[CertificateFacts | None] = [None, None]

    def certificate(self, direction: Direction) -> CertificateFacts | None:
        """The leaf that travelled this way."""
        return self._certificates[direction]

    def saw(self, state: str, direction: Direction) -> None:
        """A step of the handshake, taken by the sender of that direction."""
        if state not in self.states[direction]:
            self.states[direction].append(state)
        self.touch(direction)

    def set_client(self, facts: TlsFacts) -> None:
        self.sni, self.client_alpn = facts.sni, facts.client_alpn
        self.versions[0], self.randoms[0] = facts.client_version, facts.client_random
        self.ja3_string, self.ja4 = facts.ja3_string, facts.ja4
        self.saw("client_hello", Direction.TO_SERVER)

    def set_server(self, version: int, alpn: bytes, ja3s_string: str) -> None:
        self.versions[1], self.alpn, self.ja3s_string = version, alpn, ja3s_string
        self.saw("server_hello", Direction.TO_CLIENT)

    def set_chain(self, direction: Direction, chain: Sequence[bytes]) -> None:
        """Certificates in DER, leaf first."""
        self.chains[direction] = tuple(chain[:_MAX_CERTIFICATES])
        if chain:
            self._certificates[direction] = read_certificate(chain[0])
            if self._certificates[direction] is None:
                self.add_event(certificate_problem(chain[0]))
        self.touch(direction)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        entry = _BUFFERS.get(name)
        if entry is None:
            return ()
        sides, getter = entry
        found: list[bytes] = []
        for side in sides if direction is None else [direction] if direction in sides else ():
            found += getter(self, side)
        return found

    def log_fields(self) -> dict[str, object]:
        """EVE ``tls`` object."""
        fields: dict[str, object] = {}
        if self.sni:
            fields["sni"] = self.sni.decode("ascii", "backslashreplace")
        version = self.versions[1] or self.versions[0]
        if version:
            fields["version"] = f"TLS {version_name(version)}"
        leaf = self._certificates[Direction.TO_CLIENT]
        if leaf is not None:
            fields["subject"] = leaf.subject.decode("utf-8", "backslashreplace")
            fields["issuerdn"] = leaf.issuer.decode("utf-8", "backslashreplace")
            fields["serial"] = leaf.serial.decode()
            fields["fingerprint"] = leaf.fingerprint.decode()
        if self.ja3_string:
            fields["ja3"] = {"hash": _md5(self.ja3_string), "string": self.ja3_string}
        if self.ja3s_string:
            fields["ja3s"] = {"hash": _md5(self.ja3s_string), "string": self.ja3s_string}
        if self.ja4:
            fields["ja4"] = self.ja4
        return fields


def version_name(version: int) -> str:
    """``1.3`` for 0x0304; hexadecimal for what is not assigned."""
    return _VERSIONS.get(version) or f"0x{version:04x}"


def known_session(facts: TlsFacts, tx_id: int = 0) -> TlsTransaction:
    """The transaction of a decrypted flow; complete unless the server's half is still missing (version 0)."""
    tx = TlsTransaction(tx_id)
    tx.set_client(facts)
    if facts.client_chain:
        tx.set_chain(Direction.TO_SERVER, facts.client_chain)
    tx.finish(Direction.TO_SERVER)
    if facts.version:
        add_server(tx, facts)
    return tx


def add_server(tx: TlsTransaction, facts: TlsFacts) -> None:
    """The server's half of a decrypted flow, when it became known after the client's."""
    tx.set_server(facts.version, facts.alpn, facts.ja3s_string)
    if facts.server_chain:
        tx.set_chain(Direction.TO_CLIENT, facts.server_chain)
    tx.finish(Direction.TO_CLIENT)


class _Side:
    """One direction: records into handshake messages, until it is encrypted."""

    __slots__ = ("encrypted", "fed", "hold", "messages", "records")

    def __init__(self) -> None:
        self.records = bytearray()  # an incomplete record
        self.messages = bytearray()  # an incomplete handshake message
        self.encrypted = False
        self.fed = 0
        self.hold = -1  # offset of the record in which the incomplete message began


class TlsParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "tls"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._tx = TlsTransaction(self.take_id())
        self.transactions.append(self._tx)
        self._hello: ClientHelloReader | None = ClientHelloReader(min(limits.tls_handshake, 65536))
        self._sides = (_Side(), _Side())
        self._old = bytearray()  # an incomplete hello of the old format, at most 32 KiB

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        side.fed += len(data)
        if self.gave_up or side.encrypted or not data:
            return
        if direction is Direction.TO_SERVER and self._hello is not None and self._old_format(side, data):
            data = self._old_hello(side, data)
            if not data:
                return
        elif direction is Direction.TO_SERVER and self._hello is not None:
            answer = self._hello.feed(data)
            if isinstance(answer, NotTls):
                self._fail(f"invalid_client_hello_{answer.reason}")
                return
            if isinstance(answer, ClientHello):
                self._hello = None
                self._tx.set_client(TlsFacts.from_hello(answer))
        self._records(direction, side, data)

    def close(self, direction: Direction) -> None:
        self._end(direction)

    def held(self, direction: Direction) -> int:
        side = self._sides[direction]
        return 0 if self.gave_up or side.encrypted or side.hold < 0 else side.fed - side.hold

    def _old_format(self, side: _Side, data: bytes) -> bool:
        """The client's first byte is that of an SSL 2.0 record."""
        return bool(self._old) or (side.fed == len(data) and data[0] & 0x80 != 0)

    def _old_hello(self, side: _Side, data: bytes) -> bytes:
        """A hello in the format of SSL 2.0 that offers 3.0 or later (RFC 5246, appendix E.2); answers what follows."""
        old = self._old
        old += data
        side.hold = 0
        size = 2 + ((old[0] & 0x7F) << 8 | old[1]) if len(old) > 1 else 0
        if size and (size < _OLD_HELLO or (len(old) > 2 and old[2] != 1)):
            self._fail("invalid_client_hello_sslv2")
            return b""
        if not size or len(old) < size:
            return b""
        self._tx.versions[0] = int.from_bytes(old[3:5], "big")
        self._tx.saw("client_hello", Direction.TO_SERVER)
        rest = bytes(old[size:])
        self._hello, side.hold = None, -1
        old.clear()
        return rest

    def _records(self, direction: Direction, side: _Side, data: bytes) -> None:
        buffer = side.records
        buffer += data
        start = side.fed - len(buffer)
        at, size = 0, len(buffer)
        while size - at >= 5 and not side.encrypted and not self.gave_up:
            kind, length = buffer[at], buffer[at + 3] << 8 | buffer[at + 4]
            if kind in {_CHANGE_CIPHER_SPEC, _APPLICATION_DATA}:
                self._end(direction)
                return
            if kind not in {_HANDSHAKE, _ALERT} or buffer[at + 1] != 3 or length > _MAX_RECORD:
                self._fail("invalid_record_type")
                return
            end = at + 5 + length
            if end > size:
                break
            if kind == _HANDSHAKE:
                if side.hold < 0:
                    side.hold = start + at
                side.messages += buffer[at + 5 : end]
                self._messages(direction, side)
            elif not side.messages:
                side.hold = -1  # an alert that came in pieces
            at = end
        del buffer[:at]
        if buffer and side.hold < 0:
            side.hold = start + at

    def _messages(self, direction: Direction, side: _Side) -> None:
        buffer = side.messages
        at, size = 0, len(buffer)
        while size - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at + 1 : at + 4], "big")
            if end - at > self._limits.tls_handshake:
                self._fail("handshake_message_too_long")
                return
            if end > size:
                break
            handler = _HANDLERS.get((direction, buffer[at]))
            if handler is not None:
                try:
                    handler(self._tx, direction, _Reader(bytes(buffer[at + 4 : end])))
                except ValueError:
                    self._tx.add_event("invalid_handshake_message")
            at = end
        del buffer[:at]
        if not buffer:
            side.hold = -1

    def _end(self, direction: Direction) -> None:
        side = self._sides[direction]
        side.encrypted, side.hold = True, -1
        side.records.clear()
        side.messages.clear()
        self._tx.finish(direction)
        self.finished = all(side.encrypted for side in self._sides)

    def _fail(self, reason: str) -> None:
        self._tx.add_event(reason)
        for direction in Direction:
            self._tx.finish(direction)
        self.give_up(reason)


# --- handshake messages ----------------------------------------------------------------------------------------------


class _Reader:
    """Vectors of the presentation language (RFC 8446, section 3.4). Raises ValueError when bytes are missing."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ValueError("message is cut off")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def _server_hello(tx: TlsTransaction, _direction: Direction, reader: _Reader) -> None:
    version = legacy = reader.number(2)
    tx.randoms[Direction.TO_CLIENT] = reader.take(32)
    reader.vector(1)
    cipher = reader.number(2)
    reader.take(1)
    extensions: list[int] = []
    alpn = b""
    rest = _Reader(reader.vector(2)) if reader else reader
    while rest:
        kind = rest.number(2)
        value = rest.vector(2)
        extensions.append(kind)
        if kind == _EXT_SUPPORTED_VERSIONS and len(value) == 2:
            version = int.from_bytes(value, "big")
        elif kind == _EXT_ALPN and len(value) > 3:
            alpn = value[3:]
    tx.set_server(version, alpn, f"{legacy},{cipher},{'-'.join(map(str, extensions))}")


def read_server_hello(tx: TlsTransaction, body: bytes) -> bool:
    """Fill in a ServerHello's message body; False when it is cut off."""
    try:
        _server_hello(tx, Direction.TO_CLIENT, _Reader(body))
    except ValueError:
        return False
    return True


def _certificates(tx: TlsTransaction, direction: Direction, reader: _Reader) -> None:
    """RFC 5246, section 7.4.2. TLS 1.3 encrypts this message, so it does not get here."""
    chain: list[bytes] = []
    rest = _Reader(reader.vector(3))
    while rest and len(chain) < _MAX_CERTIFICATES:
        chain.append(rest.vector(3))
    tx.set_chain(direction, chain)
    if chain and tx.certificate(direction) is None:
        raise ValueError("no certificate")


def _key_exchange(state: str) -> _Handler:
    def handle(tx: TlsTransaction, direction: Direction, _reader: _Reader) -> None:
        tx.saw(state, direction)

    return handle


_Handler = Callable[[TlsTransaction, Direction, _Reader], None]
_HANDLERS: dict[tuple[Direction, int], _Handler] = {
    (Direction.TO_CLIENT, _SERVER_HELLO): _server_hello,
    (Direction.TO_CLIENT, _CERTIFICATE): _certificates,
    (Direction.TO_SERVER, _CERTIFICATE): _certificates,
    (Direction.TO_CLIENT, _SERVER_KEY_EXCHANGE): _key_exchange("server_keyx"),
    (Direction.TO_SERVER, _CLIENT_KEY_EXCHANGE): _key_exchange("client_keyx"),
}


# --- buffers ---------------------------------------------------------------------------------------------------------

_Getter = Callable[[TlsTransaction, Direction], Sequence[bytes]]
_CLIENT = (Direction.TO_SERVER,)
_SERVER = (Direction.TO_CLIENT,)
_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)


def _text(value: str) -> Sequence[bytes]:
    return (value.encode(),) if value else ()


def _hash(value: str) -> Sequence[bytes]:
    return (_md5(value).encode(),) if value else ()


def _md5(value: str) -> str:
    return hashlib.md5(value.encode(), usedforsecurity=False).hexdigest()


def _version(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
    """Two bytes as on the wire."""
    version = tx.versions[direction]
    return (version.to_bytes(2, "big"),) if version else ()


def _random(first: int, last: int) -> _Getter:
    def get(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
        random = tx.randoms[direction]
        return (random[first:last],) if random else ()

    return get


def _leaf(attribute: str) -> _Getter:
    def get(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
        leaf = tx.certificate(direction)
        return () if leaf is None else (getattr(leaf, attribute),)

    return get


def _leaf_time(attribute: str) -> _Getter:
    """Eight bytes, seconds since the epoch; a time before it is 0."""

    def get(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
        leaf = tx.certificate(direction)
        return () if leaf is None else (max(int(getattr(leaf, attribute)), 0).to_bytes(8, "big"),)

    return get


def _chain_length(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
    """Four bytes; nothing before a certificate was seen."""
    chain = tx.chains[direction]
    return (len(chain).to_bytes(4, "big"),) if chain else ()


def _leaf_names(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
    leaf = tx.certificate(direction)
    return () if leaf is None else leaf.names


def _alpn(tx: TlsTransaction, direction: Direction) -> Sequence[bytes]:
    if direction is Direction.TO_SERVER:
        return tx.client_alpn
    return (tx.alpn,) if tx.alpn else ()


_BUFFERS: dict[str, tuple[tuple[Direction, ...], _Getter]] = {
    "tls.sni": (_CLIENT, lambda tx, _: () if tx.sni is None else (tx.sni,)),
    "tls.version": (_BOTH, _version),
    "ssl_version": (_BOTH, _version),
    "tls.random": (_BOTH, _random(0, 32)),
    "tls.random_time": (_BOTH, _random(0, 4)),
    "tls.random_bytes": (_BOTH, _random(4, 32)),
    "tls.alpn": (_BOTH, _alpn),
    "tls.certs": (_BOTH, lambda tx, direction: tx.chains[direction]),
    "tls.cert_subject": (_BOTH, _leaf("subject")),
    "tls.cert_issuer": (_BOTH, _leaf("issuer")),
    "tls.cert_serial": (_BOTH, _leaf("serial")),
    "tls.cert_fingerprint": (_BOTH, _leaf("fingerprint")),
    "tls.subjectaltname": (_BOTH, _leaf_names),
    "tls.cert_notbefore": (_BOTH, _leaf_time("not_before")),
    "tls.cert_notafter": (_BOTH, _leaf_time("not_after")),
    "tls.cert_chain_len": (_BOTH, _chain_length),
    "ja3.hash": (_CLIENT, lambda tx, _: _hash(tx.ja3_string)),
    "ja3.string": (_CLIENT, lambda tx, _: _text(tx.ja3_string)),
    "ja3s.hash": (_SERVER, lambda tx, _: _hash(tx.ja3s_string)),
    "ja3s.string": (_SERVER, lambda tx, _: _text(tx.ja3s_string)),
    "ja4.hash": (_CLIENT, lambda tx, _: _text(tx.ja4)),
    "ssl_state": (_BOTH, lambda tx, direction: [state.encode() for state in tx.states[direction]]),
}

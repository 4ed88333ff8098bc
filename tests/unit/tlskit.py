"""A client, a server and everything between them in memory, for tests of the TLS engine.

``Authority`` makes certificates, ``Peer`` is an OpenSSL endpoint without a socket, ``Wire`` owns one Session as the
TLS worker does and carries bytes between the three until nothing moves any more. What happened is in ``Wire.log``,
one event per entry, payloads left out.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from engines.tls import leaf, openssl
from engines.tls.events import (
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Established,
    Event,
    Finished,
    Hello,
    NeedIssuers,
    NeedLeaf,
    NeedRevocation,
    Plaintext,
    SendClient,
    SendUpstream,
)
from engines.tls.revocation import Finding
from engines.tls.session import FINISHED_AFTER, Session, State, TlsSettings
from engines.tls.verify import UpstreamVerifier, spki_sha256
from engines.verdict import Direction

NOW = 1_800_000_000.0
DAY = 86400

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Authority:
    """A certificate authority; ``parent`` None makes it a root."""

    def __init__(self, name: str = "Lab Root", parent: Authority | None = None, **profile: Any) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (parent or self).sign(
            subject=self.name, key=self.key, ca=True, days=(-3650, 3650), eku=None, **profile
        )

    def issue(self, *dns: str, key: Key | None = None, **profile: Any) -> tuple[x509.Certificate, Key]:
        """A server certificate for ``dns`` and its key. See :meth:`sign` for the rest."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        profile.setdefault("san", [x509.DNSName(name) for name in dns])
        profile.setdefault("subject", x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (dns or ("leaf",))[0][:64])]))
        return self.sign(key=key, **profile), key

    def sign(
        self,
        *,
        subject: x509.Name,
        key: Key,
        san: Sequence[x509.GeneralName] = (),
        ca: bool = False,
        path_length: int | None = None,
        days: tuple[float, float] = (-30, 60),
        eku: object = ExtendedKeyUsageOID.SERVER_AUTH,
        digital_signature: bool = True,
        public_key: object = None,
        crl_sign: bool | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key or key.public_key())  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(NOW + days[0] * DAY))
            .not_valid_after(_moment(NOW + days[1] * DAY))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
            .add_extension(_usage(digital_signature, ca, crl_sign), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
        if eku:
            builder = builder.add_extension(x509.ExtendedKeyUsage([eku]), critical=False)  # type: ignore[list-item]
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


class Peer:
    """One end of a TLS connection. ``sent_out`` collects ciphertext to deliver, ``received`` the plaintext."""

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection
        self.received = b""
        self.failed: str | None = None
        self.closed = False  # close_notify arrived
        self.raw_in = 0  # bytes fed, TLS or not
        self.ready = False
        self.fin: str | None = None  # how the session closed towards us
        self._to_send: list[bytes] = []

    def start(self) -> None:
        self._step()

    def feed(self, data: bytes) -> None:
        self.raw_in += len(data)
        if self.failed is None:
            self.connection.bio_write(data)
            self._step()

    def send(self, data: bytes) -> None:
        """At once, or when the handshake is done."""
        self._to_send.append(data)
        self._step()

    def close_notify(self) -> None:
        self.connection.shutdown()

    def take(self) -> bytes:
        """Ciphertext to put on the wire."""
        pieces = []
        try:
            while True:
                pieces.append(self.connection.bio_read(1 << 16))
        except SSL.Error:
            return b"".join(pieces)

    @property
    def alpn(self) -> bytes:
        return self.connection.get_alpn_proto_negotiated()

    def _step(self) -> None:
        try:
            if not self.ready:
                self.connection.do_handshake()
                self.ready = True
            for data in self._to_send:
                self.connection.sendall(data)
            self._to_send.clear()
            pieces = []
            try:
                while True:
                    pieces.append(self.connection.recv(1 << 14))
            finally:
                self.received += b"".join(pieces)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            self.failed = str(error)


def client_peer(
    sni: str | None,
    roots: Sequence[x509.Certificate] = (),
    *,
    alpn: Sequence[bytes] = (),
    versions: tuple[int, int] = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION),
    verify: bool = True,
    ciphers: bytes | None = None,
) -> Peer:
    """A client that checks what it is shown against ``roots`` (host name included), unless ``verify`` is off."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(versions[0])
    context.set_max_proto_version(versions[1])
    if ciphers:
        context.set_cipher_list(ciphers)
    if verify:
        context.set_verify(SSL.VERIFY_PEER)
        store = context.get_cert_store()
        assert store is not None
        for root in roots:
            store.add_cert(crypto.X509.from_cryptography(root))
    connection = SSL.Connection(context)
    connection.set_connect_state()
    if alpn:
        connection.set_alpn_protos(list(alpn))
    if sni is not None:
        connection.set_tlsext_host_name(sni.encode())
        if verify:
            openssl.expect_server(connection, sni.rstrip("."), NOW)
    return Peer(connection)


def server_peer(
    certificate: x509.Certificate,
    key: Key,
    chain: Sequence[x509.Certificate] = (),
    *,
    alpn: Sequence[bytes] = (),
    versions: tuple[int, int] = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION),
    client_certificate: bool | str = False,
    ciphers: bytes = b"DEFAULT:@SECLEVEL=0",
    staple: bytes = b"",
) -> Peer:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_session_id(b"lab")  # without, one that asks for certificates resumes nothing
    if staple:
        context.set_ocsp_server_callback(lambda _connection, _data: staple)
    context.set_cipher_list(ciphers)
    context.set_min_proto_version(versions[0])
    context.set_max_proto_version(versions[1])
    context.use_certificate(certificate)
    for extra in chain:
        context.add_extra_chain_cert(extra)
    context.use_privatekey(key)
    if alpn:
        context.set_alpn_select_callback(
            lambda _, offered: next((p for p in alpn if p in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
        )
    if client_certificate:
        must = 0 if client_certificate == "optional" else SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(SSL.VERIFY_PEER | must)
    connection = SSL.Connection(context)
    connection.set_accept_state()
    return Peer(connection)


def another(peer: Peer) -> Peer:
    """A new connection to the same server, which knows the sessions of the one before."""
    connection = SSL.Connection(peer.connection.get_context())
    connection.set_accept_state()
    return Peer(connection)


class World:
    """Root, operator CA and settings shared by the sessions of one test."""

    def __init__(self, *, resume: bool = False, **settings: object) -> None:
        self.root = Authority()
        ca_pem, ca_key_pem = leaf.create_ca("nfw test CA", NOW, 365)
        self.ca = x509.load_pem_x509_certificate(ca_pem)
        self.ca_key = serialization.load_pem_private_key(ca_key_pem, None)
        self.leaf_keys: dict[str, Key] = {
            "ecdsa": ec.generate_private_key(ec.SECP256R1()),
            "rsa": rsa.generate_private_key(65537, 2048),
        }
        refused = frozenset([spki_sha256(self.ca)])
        self.verifier = UpstreamVerifier([self.root.certificate], refused_keys=refused, resume=resume)
        self.settings = TlsSettings(verifier=self.verifier, ca_id=b"ca", **settings)  # type: ignore[arg-type]
        self.cache: leaf.LeafCache[SSL.Context] = leaf.LeafCache()
        self.mints = 0

    def context(self, need: NeedLeaf) -> SSL.Context:
        context = self.cache.get(need.key, NOW)
        if context is None:
            key = self.leaf_keys[need.request.key_type]
            self.mints += 1
            der = leaf.mint(self.ca, self.ca_key, key.public_key(), need.request, NOW)  # type: ignore[arg-type]
            context = leaf.server_context([der], key)
            self.cache.put(need.key, context, need.request.not_after)
        return context


class Wire:
    """Carries bytes and answers events as the TLS worker does. ``hold`` names event classes to leave unanswered;
    ``ends`` are the addresses of client and server and the server's port; ``late`` seconds after NOW."""

    def __init__(
        self,
        world: World,
        client: Peer,
        server: Peer | None,
        *,
        chunk: int = 1 << 18,
        hold: tuple[type, ...] = (),
        ends: tuple[str, str, int] = ("", "", 0),
        late: float = 0.0,
    ) -> None:
        self.world = world
        self.session = Session(world.settings, 0.0, NOW + late, ends[1], ends[0], ends[2])
        self.client = client
        self.server = server
        self.chunk = chunk
        self.hold = hold
        self.issuers: tuple[bytes, ...] = ()  # the answer to NeedIssuers
        self.findings: dict[int, Finding] = {}  # answers to NeedRevocation, by depth
        self.log: list[Event] = []
        self.plaintext = [b"", b""]
        self.finished: Finished | None = None
        self.connected = False

    def run(self) -> Wire:
        """Until nothing moves, nor would after a moment."""
        self.client.start()
        while self.carry() or self._wait():
            pass
        return self

    def feed_client(self, data: bytes) -> None:
        for at in range(0, len(data), self.chunk):
            self.session.client_data(data[at : at + self.chunk], 0.0)
            self.answer()

    def feed_upstream(self, data: bytes) -> None:
        for at in range(0, len(data), self.chunk):
            self.session.upstream_data(data[at : at + self.chunk], 0.0)
            self.answer()

    def answer(self) -> None:
        while events := self.session.events():
            for event in events:
                self.log.append(event)
                if not isinstance(event, self.hold):
                    self._act(event)

    @property
    def names(self) -> list[str]:
        """The event names, sends left out."""
        return [type(e).__name__ for e in self.log if not isinstance(e, SendClient | SendUpstream)]

    def carry(self) -> bool:
        """What both have said. False: nothing."""
        moved = False
        data = self.client.take()
        if data:
            moved = True
            self.feed_client(data)
        if self.server is not None and self.connected:
            data = self.server.take()
            if data:
                moved = True
                self.feed_upstream(data)
        return moved

    def _wait(self) -> bool:
        """For what the session says if the client says nothing."""
        if self.session.state is not State.RELAY or self.session.deadline != FINISHED_AFTER:
            return False
        self.session.tick(FINISHED_AFTER)
        self.answer()
        return True

    def _act(self, event: Event) -> None:
        session = self.session
        match event:
            case Hello():
                session.proceed(0.0)
            case ConnectUpstream():
                if self.server is None:
                    session.upstream_failed("connection refused", 0.0)
                else:
                    if self.connected:
                        self.server = another(self.server)  # called once more
                    self.connected = True
                    session.upstream_connected(0.0)
            case NeedIssuers():
                session.issuers_found(self.issuers, 0.0)
            case NeedRevocation(questions):
                for question in questions:
                    session.revocation_found(question.depth, self.findings[question.depth], 0.0)
            case NeedLeaf():
                session.leaf_ready(self.world.context(event), 0.0)
            case Plaintext(direction, data):
                self.plaintext[direction] += data
                session.forward(direction, data)
            case Eof(direction):
                session.forward_eof(direction)
            case SendClient(data):
                self.client.feed(data)
            case SendUpstream(data):
                assert self.server is not None
                self.server.feed(data)
            case CloseClient(how, last):
                if last:
                    self.client.feed(last)
                self.client.fin = how.value
            case CloseUpstream(how, last):
                if self.server is not None:
                    if last:
                        self.server.feed(last)
                    self.server.fin = how.value
            case Finished():
                assert self.finished is None, "Finished twice"
                self.finished = event
            case Established():
                pass


TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def _usage(digital_signature: bool, ca: bool, crl_sign: bool | None = None) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not digital_signature and not ca,
        key_cert_sign=ca,
        crl_sign=ca if crl_sign is None else crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix), datetime.UTC)


def with_extension(hello: bytes, extension: bytes) -> bytes:
    """A ClientHello, one record, with one more extension at its end."""
    body = bytearray(hello)
    at = 5 + 4 + 2 + 32  # record, handshake header, version, random
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    body[at : at + 2] = (int.from_bytes(body[at : at + 2], "big") + len(extension)).to_bytes(2, "big")
    body += extension
    body[3:5] = (len(body) - 5).to_bytes(2, "big")
    body[6:9] = (len(body) - 9).to_bytes(3, "big")
    return bytes(body)

"""The packets of a described flow (:mod:`nfw.describe`), both sides of it, as they would be on the wire.

TCP's handshake and its end, a ClientHello made by OpenSSL and the answer of a server made up for the name it asks for,
HTTP, DNS, and whatever payload is given. Nothing is random but the keys of TLS.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

from engines.packet import ICMP, ICMPV6, TCP, UDP
from engines.verdict import Direction
from nfw.capture import Captured
from nfw.describe import FlowDescription

RAW_IP = 101  # link type: a packet starts with its IP header
_BEGINNING = 1_000_000.0  # seconds since 1970; of the first packet, and how far packets are apart
_APART = 0.001
_MTU = 1500
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Piece(NamedTuple):
    """What one side says at once; ``what`` names it."""

    direction: Direction
    data: bytes
    what: str


class Described(NamedTuple):
    """A packet and what it is."""

    captured: Captured
    direction: Direction
    what: str


class Dialogue:
    """What is said on a described flow."""

    def __init__(self, flow: FlowDescription) -> None:
        self.flow = flow

    def plaintext(self) -> list[Piece]:
        """What client and server say, inside TLS where there is TLS. Within TLS, a request where nothing is said."""
        if self.flow.dns_query is not None:
            return list(self._dns())
        spoken: list[Piece] = []
        if self.flow.is_http or (self.flow.is_tls and not self.flow.payload and not self.flow.reply):
            spoken += self._http()
        for client, server in zip_longest(self.flow.payload, self.flow.reply):
            if client is not None:
                spoken.append(Piece(_TO_SERVER, client, "payload"))
            if server is not None:
                spoken.append(Piece(_TO_CLIENT, server, "reply"))
        return spoken

    def wire(self) -> list[Piece]:
        """As it is on the wire: with TLS around it."""
        return self._tls.spoken if self.flow.is_tls else self.plaintext()

    @property
    def certificate(self) -> bytes:
        """What the server behind TLS shows (DER): made up, for the name asked for."""
        certificate: bytes = self._tls.certificate
        return certificate

    @cached_property
    def _tls(self) -> _TlsTalk:
        return _TlsTalk(self.flow.sni or "", self.flow.alpn, self.plaintext())

    def _http(self) -> Iterator[Piece]:
        """One request and its answer, as the protocol has it that the server chooses: the first one offered."""
        return self._http2() if self.flow.alpn[:1] == ("h2",) else self._http1()

    def _http2(self) -> Iterator[Piece]:
        """RFC 9113: the preface and both sides' settings, then the stream of the request."""
        flow = self.flow
        fields = {name.lower(): value for name, value in flow.http_headers if name.lower() != "host"}
        fields = {"user-agent": "nfw-explain", "accept": "*/*"} | fields
        request = [
            (":method", flow.http_method or "GET"),
            (":scheme", "https"),
            (":authority", flow.server_name),
            (":path", flow.http_uri or "/"),
            *fields.items(),
        ]
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
        yield Piece(_TO_SERVER, opening + _message(request, flow.http_body), "HTTP/2 request")
        answer = [(":status", str(flow.http_status)), ("content-type", "text/html")]
        body = b"" if flow.http_method == "HEAD" else b"<html></html>\n"
        yield Piece(_TO_CLIENT, _frame(_SETTINGS, 0, 0, b"") + _message(answer, body), "HTTP/2 response")

    def _http1(self) -> Iterator[Piece]:
        head = [f"{self.flow.http_method or 'GET'} {self.flow.http_uri or '/'} HTTP/1.1"]
        given = {name.lower() for name, _ in self.flow.http_headers}
        if "host" not in given:
            head.append(f"Host: {self.flow.server_name}")
        if "user-agent" not in given:
            head.append("User-Agent: nfw-explain")
        if "accept" not in given:
            head.append("Accept: */*")
        head += [f"{name}: {value}" for name, value in self.flow.http_headers]
        if self.flow.http_body and not given & {"content-length", "transfer-encoding"}:
            head.append(f"Content-Length: {len(self.flow.http_body)}")
        request = "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + self.flow.http_body
        yield Piece(_TO_SERVER, request, "HTTP request")
        body = b"" if self.flow.http_method == "HEAD" else b"<html></html>\n"
        answer = (
            f"HTTP/1.1 {self.flow.http_status} Status\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield Piece(_TO_CLIENT, answer.encode() + body, "HTTP response")

    def _dns(self) -> Iterator[Piece]:
        import dnslib

        assert self.flow.dns_query is not None
        question = dnslib.DNSRecord.question(self.flow.dns_query, self.flow.dns_type)
        question.header.id = 0x4E46
        answer = question.reply()
        for kind, data in (("A", dnslib.A("192.0.2.1")), ("AAAA", dnslib.AAAA("2001:db8::1"))):
            if self.flow.dns_type == kind:
                answer.add_answer(dnslib.RR(self.flow.dns_query, getattr(dnslib.QTYPE, kind), rdata=data, ttl=300))
        for direction, record, what in ((_TO_SERVER, question, "DNS query"), (_TO_CLIENT, answer, "DNS answer")):
            data = bytes(record.pack())
            yield Piece(direction, data if self.flow.protocol == UDP else len(data).to_bytes(2, "big") + data, what)

    # -- packets ---------------------------------------------------------------------------------------------------

    def packets(self) -> list[Described]:
        """The flow from its first packet to its last."""
        if self.flow.protocol == TCP:
            made = list(self._tcp())
        elif self.flow.protocol == UDP:
            spoken = self.wire() or [Piece(_TO_SERVER, b"", "empty datagram")]
            made = [(piece.direction, self._udp(piece), piece.what) for piece in spoken]
        elif self.flow.protocol in (ICMP, ICMPV6):
            made = list(self._icmp())
        else:
            spoken = self.wire() or [Piece(_TO_SERVER, b"", "empty packet")]
            made = [(each.direction, self._ip(each.direction) / each.data, each.what) for each in spoken]
        whole = [(direction, packet, what) for direction, packet, what in made]
        if self.flow.fragments:
            whole = [
                (direction, piece, f"{what}, fragment {number}")
                for direction, packet, what in whole
                for number, piece in enumerate(self._in_fragments(packet), 1)
            ]
        return [
            Described(Captured(number, _BEGINNING + number * _APART, RAW_IP, bytes(packet)), direction, what)
            for number, (direction, packet, what) in enumerate(whole, 1)
        ]

    def _ip(self, direction: Direction) -> Any:
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6

        source, destination = (
            (self.flow.src, self.flow.dst) if direction is _TO_SERVER else (self.flow.dst, self.flow.src)
        )
        ends = {"src": str(ipaddress.ip_address(source)), "dst": str(ipaddress.ip_address(destination))}
        if len(self.flow.src) == 16:
            return IPv6(nh=self.flow.protocol, **ends)
        return IP(proto=self.flow.protocol, id=0 if not self.flow.fragments else 7, **ends)

    def _ports(self, direction: Direction) -> dict[str, int]:
        ports = (self.flow.sport, self.flow.dport) if direction is _TO_SERVER else (self.flow.dport, self.flow.sport)
        return dict(zip(("sport", "dport"), ports, strict=True))

    def _udp(self, piece: Piece) -> Any:
        from scapy.layers import inet

        return self._ip(piece.direction) / inet.UDP(**self._ports(piece.direction)) / piece.data

    def _icmp(self) -> Iterator[tuple[Direction, Any, str]]:
        from scapy.layers import inet
        from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6Unknown

        data = self.flow.payload[0] if self.flow.payload else b"nfw-explain"
        if self.flow.icmp_type is not None:
            message = (
                inet.ICMP(type=self.flow.icmp_type)
                if self.flow.protocol == ICMP
                else ICMPv6Unknown(type=self.flow.icmp_type)
            )
            yield _TO_SERVER, self._ip(_TO_SERVER) / message / data, f"type {self.flow.icmp_type}"
            return
        v6 = self.flow.protocol == ICMPV6
        request, reply = (
            (ICMPv6EchoRequest(id=7), ICMPv6EchoReply(id=7)) if v6 else (inet.ICMP(id=7), inet.ICMP(0, id=7))
        )
        yield _TO_SERVER, self._ip(_TO_SERVER) / request / data, "echo request"
        yield _TO_CLIENT, self._ip(_TO_CLIENT) / reply / data, "echo reply"

    def _tcp(self) -> Iterator[tuple[Direction, Any, str]]:
        from scapy.layers import inet

        following = [1000, 5000]  # sequence numbers
        headers = 40 if len(self.flow.src) == 4 else 60
        room = self.flow.segment or _MTU - headers

        def segment(direction: Direction, flags: str, data: bytes = b"") -> Any:
            packet = self._ip(direction) / inet.TCP(
                **self._ports(direction),
                flags=flags,
                seq=following[direction],
                ack=following[direction.reply] if "A" in flags else 0,
                window=64240,
            )
            following[direction] += len(data) + ("S" in flags) + ("F" in flags)
            return packet / data if data else packet

        if not self.flow.midstream:
            yield _TO_SERVER, segment(_TO_SERVER, "S"), "SYN"
            yield _TO_CLIENT, segment(_TO_CLIENT, "SA"), "SYN+ACK"
            yield _TO_SERVER, segment(_TO_SERVER, "A"), "ACK"
        for piece in self.wire() or ([Piece(_TO_SERVER, b"\0", "a byte")] if self.flow.midstream else []):
            size = len(piece.data)
            parts = [piece.data[at : at + room] for at in range(0, size, room)]
            for number, part in enumerate(parts, 1):
                what = piece.what if len(parts) == 1 else f"{piece.what}, part {number} of {len(parts)}"
                yield piece.direction, segment(piece.direction, "PA" if number == len(parts) else "A", part), what
            if parts:
                yield piece.direction.reply, segment(piece.direction.reply, "A"), "ACK"
        yield _TO_SERVER, segment(_TO_SERVER, "FA"), "FIN"
        yield _TO_CLIENT, segment(_TO_CLIENT, "FA"), "FIN"
        yield _TO_SERVER, segment(_TO_SERVER, "A"), "ACK"

    def _in_fragments(self, packet: Any) -> list[bytes]:
        """Two of them, cut in the middle of what the IP header carries."""
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

        v6 = len(self.flow.src) == 16
        header = 40 if v6 else 20
        whole = bytes(packet)
        body = whole[header:]
        middle = max(len(body) // 16, 1) * 8
        made = []
        for start, part, more in ((0, body[:middle], 1), (middle, body[middle:], 0)):
            if v6:
                head = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(
                    nh=self.flow.protocol, id=7, offset=start // 8, m=more
                )
            else:
                head = IP(src=packet.src, dst=packet.dst, proto=self.flow.protocol, id=7, frag=start // 8, flags=more)
            made.append(bytes(head / part))
        return made


_DATA, _HEADERS, _SETTINGS = 0, 1, 4  # RFC 9113 section 6
_END_STREAM, _END_HEADERS = 1, 4
_FRAME_BYTES = 16_384


def _message(fields: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """Stream 1 in one direction."""
    from hpack import Encoder

    block: bytes = Encoder().encode([(name, value.encode("utf-8", "surrogateescape")) for name, value in fields])
    made = _frame(_HEADERS, _END_HEADERS | (0 if body else _END_STREAM), 1, block)
    for at in range(0, len(body), _FRAME_BYTES):
        last = at + _FRAME_BYTES >= len(body)
        made += _frame(_DATA, _END_STREAM if last else 0, 1, body[at : at + _FRAME_BYTES])
    return made


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class _TlsTalk:
    """A TLS session with a server made up on the spot: what goes over the wire, and the certificate shown."""

    def __init__(self, name: str, alpn: Sequence[str], plaintext: Sequence[Piece]) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding
        from OpenSSL import SSL

        from engines.tls.half import TlsHalf

        certificate, key = _self_signed(name or "server.invalid")
        self.certificate = certificate.public_bytes(Encoding.DER)
        ours, theirs = SSL.Context(SSL.TLS_CLIENT_METHOD), SSL.Context(SSL.TLS_SERVER_METHOD)
        theirs.use_certificate(certificate)
        theirs.use_privatekey(key)
        protocols = [each.encode("latin-1") for each in alpn]
        if protocols:
            ours.set_alpn_protos(protocols)
            theirs.set_alpn_select_callback(lambda _, offered: offered[0])
        client, server = SSL.Connection(ours), SSL.Connection(theirs)
        client.set_connect_state()
        server.set_accept_state()
        if name:
            client.set_tlsext_host_name(name.encode("idna") if not name.isascii() else name.encode())
        sides = (TlsHalf(client), TlsHalf(server))
        self.spoken: list[Piece] = []
        sides[0].handshake()
        self._said(_TO_SERVER, sides[0].output(), "ClientHello")
        sides[1].handshake(self.spoken[0].data)
        self._said(_TO_CLIENT, sides[1].output(), "TLS handshake")
        sides[0].handshake(self.spoken[1].data)
        finished = sides[0].output()
        self._said(_TO_SERVER, finished, "TLS handshake")
        sides[1].handshake(finished)
        self._said(_TO_CLIENT, sides[1].output(), "TLS handshake")
        for piece in plaintext:
            self._said(piece.direction, sides[piece.direction].encrypt(piece.data), "TLS data")
        for direction in (_TO_SERVER, _TO_CLIENT):
            self._said(direction, sides[direction].close_notify(), "TLS close")

    def _said(self, direction: Direction, data: bytes, what: str) -> None:
        if data:
            self.spoken.append(Piece(direction, data, what))


def _self_signed(name: str) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at)
        .not_valid_after(at + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(key, SHA256()), key

"""What the TLS engine knows of an intercepted session, as a transaction rules on ``tls`` can look at.

On a decrypted flow the inspector sees plaintext only; without this ``tls.sni`` and JA3 would never match there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.stateful.app.certificate import CertificateFacts, read_certificate
from engines.stateful.app.transaction import BaseTransaction
from engines.verdict import Direction

# What rules can look at in an intercepted session: the name alone, or all that is known of both sides.
NAME_BUFFERS = frozenset({"tls.sni", "ssl_state"})
SESSION_BUFFERS = NAME_BUFFERS | {
    "tls.version", "ssl_version", "tls.alpn", "ja3.hash", "ja3.string", "ja4.hash", "tls.certs", "tls.cert_chain_len",
    "tls.cert_subject", "tls.cert_issuer", "tls.cert_serial", "tls.cert_fingerprint", "tls.subjectaltname",
    "tls.cert_notbefore", "tls.cert_notafter",
}  # fmt: skip

_VERSION_NAMES = {0x0300: "SSLv3", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """From the client's hello. ``version`` is a wire value (0x0304: TLS 1.3); empty strings mean not there."""

    sni: str = ""
    alpn: tuple[bytes, ...] = ()
    version: int = 0
    ja3: str = ""
    ja3_string: str = ""
    ja4: str = ""

    def name_only(self) -> TlsFacts:
        """As much as AWS Network Firewall lets rules see of a session it decrypts."""
        return TlsFacts(sni=self.sni)

    @classmethod
    def from_hello(cls, hello: Any) -> TlsFacts:
        """From an :class:`engines.tls.clienthello.ClientHello`."""
        # GREASE values (RFC 8701) are above every real version and have equal bytes.
        versions = [value for value in hello.versions if value >> 8 != value & 0xFF]
        fingerprints = hello.fingerprints
        return cls(
            sni=hello.sni or "",
            alpn=hello.alpn,
            version=max(versions, default=hello.legacy_version),
            ja3=fingerprints.ja3,
            ja3_string=fingerprints.ja3_string,
            ja4=fingerprints.ja4,
        )


class TlsTransaction(BaseTransaction):
    """The one transaction of an intercepted session. ``server_follows``: :meth:`saw_server` will be called, and before
    that nothing is said about what the server has not shown."""

    __slots__ = ("_buffers", "_server", "certificate", "facts")

    def __init__(self, facts: TlsFacts, server_follows: bool = False) -> None:
        super().__init__(0)
        self.facts = facts
        self.certificate: CertificateFacts | None = None
        self._server: dict[str, Sequence[bytes]] = {}
        version = facts.version.to_bytes(2, "big") if facts.version else b""
        single = {
            "tls.sni": facts.sni.encode("utf-8", "backslashreplace"),
            "tls.version": version,
            "ssl_version": version,
            "ssl_state": b"client_hello",
            "ja3.hash": facts.ja3.encode(),
            "ja3.string": facts.ja3_string.encode(),
            "ja4.hash": facts.ja4.encode(),
        }
        self._buffers: dict[str, Sequence[bytes]] = {name: (value,) for name, value in single.items() if value}
        if facts.alpn:
            self._buffers["tls.alpn"] = facts.alpn
        self.finish(Direction.TO_SERVER)
        if not server_follows:
            self.finish(Direction.TO_CLIENT)

    def saw_server(self, chain: Sequence[bytes]) -> None:
        """The certificates (DER, leaf first) of the server itself, not those shown to the client in its place."""
        leaf = self.certificate = read_certificate(chain[0]) if chain else None
        self._server["tls.certs"] = tuple(chain)
        self._server["tls.cert_chain_len"] = (len(chain).to_bytes(4, "big"),)
        if leaf is not None:
            self._server |= {
                "tls.cert_subject": (leaf.subject,),
                "tls.cert_issuer": (leaf.issuer,),
                "tls.cert_serial": (leaf.serial,),
                "tls.cert_fingerprint": (leaf.fingerprint,),
                "tls.subjectaltname": leaf.names,
                "tls.cert_notbefore": (max(int(leaf.not_before), 0).to_bytes(8, "big"),),
                "tls.cert_notafter": (max(int(leaf.not_after), 0).to_bytes(8, "big"),),
            }
        self.touch(Direction.TO_CLIENT)
        self.finish(Direction.TO_CLIENT)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is Direction.TO_CLIENT:
            return self._server.get(name, ())
        if direction is Direction.TO_SERVER:
            return self._buffers.get(name, ())
        return (*self._buffers.get(name, ()), *self._server.get(name, ()))

    def log_fields(self) -> dict[str, object]:
        """EVE ``tls`` object."""
        fields: dict[str, object] = {}
        if self.facts.sni:
            fields["sni"] = self.facts.sni
        if self.facts.version:
            fields["version"] = _VERSION_NAMES.get(self.facts.version, f"0x{self.facts.version:04x}")
        if self.facts.ja3:
            fields["ja3"] = {"hash": self.facts.ja3, "string": self.facts.ja3_string}
        if self.facts.ja4:
            fields["ja4"] = self.facts.ja4
        leaf = self.certificate
        if leaf is not None:
            fields["subject"] = leaf.subject.decode("utf-8", "backslashreplace")
            fields["issuerdn"] = leaf.issuer.decode("utf-8", "backslashreplace")
            fields["serial"] = leaf.serial.decode("ascii")
            fields["fingerprint"] = leaf.fingerprint.decode("ascii")
        return fields

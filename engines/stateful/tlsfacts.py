"""What the TLS engine knows of an intercepted session, as a transaction rules on ``tls`` can look at.

On a decrypted flow the inspector sees plaintext only; without this ``tls.sni`` and JA3 would never match there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.stateful.app.transaction import BaseTransaction
from engines.verdict import Direction

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

    @classmethod
    def from_hello(cls, hello: Any) -> TlsFacts:
        """From an :class:`engines.tls.clienthello.ClientHello`."""
        # GREASE values (RFC 8701) are above every real version and have equal bytes.
        versions = [value for value in hello.versions if value >> 8 != value & 0xFF]
        return cls(
            sni=hello.sni or "",
            alpn=hello.alpn,
            version=max(versions, default=hello.legacy_version),
            ja3=hello.ja3,
            ja3_string=hello.ja3_string,
            ja4=hello.ja4,
        )


class TlsTransaction(BaseTransaction):
    """The one transaction of an intercepted session: complete as soon as the hello is known."""

    __slots__ = ("_buffers", "facts")

    def __init__(self, facts: TlsFacts) -> None:
        super().__init__(0)
        self.facts = facts
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
        self.finish(Direction.TO_CLIENT)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        return () if direction is Direction.TO_CLIENT else self._buffers.get(name, ())

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
        return fields

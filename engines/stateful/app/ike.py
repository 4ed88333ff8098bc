"""IKE, versions 1 and 2: every datagram is a transaction of its direction.

Buffers: ``ike.init_spi`` (of the client) and ``ike.resp_spi`` (of the server) as 16 hexadecimal digits; ``ike.vendor``,
an identification of the client in hexadecimal digits; ``ike.key_exchange_payload`` and ``ike.nonce_payload``, and the
length of each as a number of two bytes; ``ike.exchtype``, one byte; ``ike.chosen_sa_attribute``, what a server chose,
as ``alg_enc=7``. What follows the first messages is encrypted.

Source: RFC 2408 and RFC 2409 (version 1), RFC 7296 (version 2), RFC 8247 (what is weak), RFC 3948 section 2.2; Suricata
user guide, "IKE Keywords".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_C, _S = Direction.TO_SERVER, Direction.TO_CLIENT
_HEADER = 28
_ENCRYPTED = 1  # flag of version 1
_NON_ESP = bytes(4)  # before messages on the port that they share with ESP
_MAX_PAYLOADS = 64
_MAX_TRANSFORMS = 256
# Numbers of payloads in version 1, then in version 2.
_SA, _KEY_EXCHANGE, _NONCE, _VENDOR = {1: 1, 2: 33}, {1: 4, 2: 34}, {1: 10, 2: 40}, {1: 13, 2: 43}
_SEALED = {46, 53}  # encrypted, and fragments of that (RFC 7383)
# RFC 2409, appendix A: the class of an attribute -> its name in rules.
ATTRIBUTES = {
    1: "alg_enc", 2: "alg_hash", 3: "alg_auth", 4: "alg_dh", 5: "sa_group_type", 11: "sa_life_type",
    12: "sa_life_duration", 13: "alg_prf", 14: "sa_key_length", 15: "sa_field_size",
}  # fmt: skip
# RFC 7296, section 3.3.2: the type of a transform.
_ENCRYPTION, _PRF, _INTEGRITY, _GROUP, _SEQUENCE_NUMBERS = range(1, 6)
TRANSFORMS = {_ENCRYPTION: "alg_enc", _PRF: "alg_prf", _INTEGRITY: "alg_auth", _GROUP: "alg_dh"}
# RFC 8247, sections 2.1 to 2.4, and what it does not mention any more.
_WEAK = {
    _ENCRYPTION: ("weak_crypto_enc", frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 11})),
    _PRF: ("weak_crypto_prf", frozenset({1, 2})),
    _INTEGRITY: ("weak_crypto_auth", frozenset({1, 2, 3, 4, 5, 6, 7})),
    _GROUP: ("weak_crypto_dh", frozenset({1, 2, 5, 22})),
}
_SEALS_AND_SIGNS = frozenset({14, 15, 16, 18, 19, 20, 25, 26, 27, 28})  # encryption that needs no other integrity
_AUTHENTICATION_HEADER = 2


class IkeTransaction(BaseTransaction):
    """One datagram. ``version``: 0 when it is none of IKE."""

    __slots__ = ("_direction", "_exchange", "_values", "version")

    def __init__(self, tx_id: int, direction: Direction, message: bytes) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._values: dict[str, list[bytes]] = {}
        self.version = self._exchange = 0
        try:
            self._read(message)
        except (ValueError, LookupError):
            self.add_event("malformed_data")
        self.finish(direction)
        self.skip(direction.reply)

    def _read(self, message: bytes) -> None:
        """Raises ValueError or LookupError where it is not built like a message."""
        version = message[17] >> 4
        size = _number(message[24:28])
        if len(message) < _HEADER or version not in (1, 2):
            raise ValueError("no message")
        self.version, self._exchange = version, message[18]
        values = self._values
        values["ike.exchtype"] = [message[18:19]]
        if self._direction is _C:
            values["ike.init_spi"] = [message[:8].hex().encode()]
        else:
            values["ike.resp_spi"] = [message[8:16].hex().encode()]
        if not _HEADER <= size <= len(message):
            raise ValueError("cut off")
        if version == 1 and message[19] & _ENCRYPTED:
            return
        for kind, data in _payloads(message[_HEADER:size], message[16]):
            if version == 2 and kind in _SEALED:
                return
            if kind == _SA[version]:
                (self._first_version if version == 1 else self._second_version)(data)
            elif kind == _KEY_EXCHANGE[version]:
                self._measured("ike.key_exchange_payload", data if version == 1 else data[4:])
            elif kind == _NONCE[version]:
                self._measured("ike.nonce_payload", data)
            elif kind == _VENDOR[version] and self._direction is _C:
                values.setdefault("ike.vendor", []).append(data.hex().encode())

    def _measured(self, name: str, data: bytes) -> None:
        self._values[name] = [data]
        self._values[f"{name}_length"] = [len(data).to_bytes(2, "big")]

    def _first_version(self, data: bytes) -> None:
        """The attributes of what was chosen, the first of a server that offers several."""
        if self._direction is _C:
            return
        proposals = [contents for _, contents in _payloads(data[8:], 2)]
        transforms = []
        for proposal in proposals:
            transforms += [contents for _, contents in _payloads(proposal[4 + proposal[2] :], 3)]
        if len(proposals) > 1 or len(transforms) > 1:
            self.add_event("multiple_server_proposal")
        for transform in transforms[:1]:
            for kind, value in _attributes(transform[4:]):
                if kind in ATTRIBUTES and len(value) <= 4:
                    self._chose(ATTRIBUTES[kind], _number(value))

    def _second_version(self, data: bytes) -> None:
        proposals = [contents for _, contents in _payloads(data, 2)]
        if len(proposals) > 1 and self._direction is _S:
            self.add_event("multiple_server_proposal")
        for proposal in proposals:
            transforms = [
                (contents[0], _number(contents[2:4])) for _, contents in _payloads(proposal[4 + proposal[2] :], 3)
            ]
            self._judge(proposal[1], transforms)
            if self._direction is _S and proposal is proposals[0]:
                for kind, value in transforms:
                    if kind in TRANSFORMS:
                        self._chose(TRANSFORMS[kind], value)

    def _judge(self, protocol: int, transforms: Sequence[tuple[int, int]]) -> None:
        """What is weak or missing in a proposal."""
        for kind, value in transforms:
            event, weak = _WEAK.get(kind, ("", frozenset()))
            if value in weak:
                self.add_event(event)
            elif kind in (_PRF, _GROUP) and not value:
                self.add_event("invalid_proposal")
            elif not 1 <= kind <= _SEQUENCE_NUMBERS:
                self.add_event("unknown_proposal")
        if all(kind != _GROUP for kind, _ in transforms):
            self._lacks("weak_crypto_no", "dh")
        if protocol == _AUTHENTICATION_HEADER:
            self.add_event("no_encryption")
        signed = any(kind == _INTEGRITY and value for kind, value in transforms)
        if not signed and not any(kind == _ENCRYPTION and value in _SEALS_AND_SIGNS for kind, value in transforms):
            self._lacks("weak_crypto_no", "auth")

    def _lacks(self, event: str, what: str) -> None:
        """Suricata has called these events both ways."""
        self.add_event(event + what)
        self.add_event(f"{event}_{what}")

    def _chose(self, name: str, value: int) -> None:
        self._values.setdefault("ike.chosen_sa_attribute", []).append(f"{name}={value}".encode())

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self._direction:
            return ()
        return self._values.get(name, ())

    def log_fields(self) -> dict[str, object]:
        """EVE ``ike`` object."""
        fields: dict[str, object] = {"version_major": self.version, "exchange_type": self._exchange}
        for name in ("init_spi", "resp_spi"):
            for value in self._values.get(f"ike.{name}", ()):
                fields[name] = value.decode()
        for chosen in self._values.get("ike.chosen_sa_attribute", ()):
            key, _, number = chosen.decode().partition("=")
            fields[f"{key}_raw"] = int(number)
        return fields


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _payloads(data: bytes, kind: int) -> Iterator[tuple[int, bytes]]:
    """Payloads, proposals or transforms one behind the other, each of which names the next; ``kind``: of the first.
    Raises ValueError where one is cut off."""
    at = 0
    for _ in range(_MAX_TRANSFORMS if kind in (2, 3) else _MAX_PAYLOADS):
        if not kind:
            return
        size = _number(data[at + 2 : at + 4])
        if size < 4 or at + size > len(data):
            raise ValueError("cut off")
        yield kind, data[at + 4 : at + size]
        kind, at = data[at], at + size


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a transform (RFC 2408, section 3.3)."""
    at = 0
    while at + 4 <= len(data):
        kind = _number(data[at : at + 2])
        if kind & 0x8000:
            yield kind & 0x7FFF, data[at + 2 : at + 4]
            at += 4
        else:
            size = _number(data[at + 2 : at + 4])
            yield kind, data[at + 4 : at + 4 + size]
            at += 4 + size


def looks_like_message(data: bytes, response: bool) -> bool:
    """Whether a datagram is a message of IKE: as long as it says, of a version and an exchange in use, and with the
    identifier of who sends it."""
    data = data.removeprefix(_NON_ESP)
    if len(data) < _HEADER or _number(data[24:28]) != len(data) or not any(data[:8]):
        return False
    if response and not any(data[8:16]) and data[17] >> 4 == 2:
        return False
    version, exchange = data[17], data[18]
    if version == 0x10:  # RFC 2408 section 3.1, RFC 2409 section 9
        return exchange <= 6 or exchange in (32, 33)
    return version == 0x20 and 34 <= exchange <= 44


class IkeParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`; one feed is one datagram."""

    name = "ike"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._shared = False  # with ESP, whose datagrams do not begin with four zeros

    def feed(self, direction: Direction, data: bytes) -> None:
        self._shared = self._shared or data.startswith(_NON_ESP)
        if self._shared:
            if not data.startswith(_NON_ESP):
                return
            data = data[len(_NON_ESP) :]
        if data != b"\xff":  # keeps a translation alive (RFC 3948, section 2.3)
            self.transactions.append(IkeTransaction(self.take_id(), direction, data))

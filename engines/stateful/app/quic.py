"""QUIC up to both hellos: Initial packets are decrypted with the keys everybody on the path can derive.

Every Initial packet of a side is a transaction of that direction until its hello is complete; packets that carry a part
of an unfinished hello wait for the rest and belong to the one that completes it (as in Suricata). What follows the
hellos is encrypted with keys nobody else has.

Source: RFC 9000 sections 12, 16, 17 and 19, RFC 9001 section 5, RFC 9369 section 3; Suricata user guide, "QUIC
Keywords".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.tls import TlsFacts, TlsTransaction, read_server_hello
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.tls.clienthello import ClientHello, ClientHelloReader
from engines.tls.quicinitial import V1, V2, InitialKeys, has_salt, initial_keys, open_packet
from engines.verdict import Direction

_INITIAL, _RETRY = 0, 3
_MAX_ID = 20  # RFC 9000, section 17.2
_MAX_KEYS = 4  # a Retry changes the keys once; the rest is slack for reordering
_MAX_HELLO = 65535
_MAX_FRAGMENTS = 256
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C
_ZEROS = re.compile(rb"\0+")
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_RECORD = 16384


class QuicTransaction(BaseTransaction):
    """One packet. ``hello`` is there when it completed one."""

    __slots__ = ("direction", "hello", "version")

    def __init__(self, tx_id: int, direction: Direction, version: int) -> None:
        super().__init__(tx_id)
        self.direction = direction
        self.version = version
        self.hello: TlsTransaction | None = None

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self.direction:
            return ()
        if name == "quic.version":
            return (self.version.to_bytes(4, "big"),)
        if self.hello is None:
            return ()
        return self.hello.buffer("tls.sni" if name == "quic.sni" else name, direction)

    def log_fields(self) -> dict[str, object]:
        """EVE ``quic`` object."""
        fields: dict[str, object] = {"version": _VERSION_NAMES.get(self.version, f"{self.version:08x}")}
        if self.hello is not None:
            tls = self.hello.log_fields()
            fields.update((name, tls[name]) for name in ("sni", "ja3", "ja3s", "ja4") if name in tls)
        return fields


_VERSION_NAMES = {V1: "1", V2: "2"}


class _Side:
    """One direction: the CRYPTO stream up to its first message."""

    __slots__ = ("done", "fragments", "message", "packets")

    def __init__(self) -> None:
        self.fragments: dict[int, bytes] = {}  # by offset, those beyond what is in order
        self.message = bytearray()  # in order from offset 0
        self.done = False
        self.packets = 0

    def add(self, offset: int, data: bytes) -> bool:
        """False when it is too far out or there are too many pieces. The first copy of a byte counts."""
        if offset + len(data) > _MAX_HELLO + 4 or len(self.fragments) >= _MAX_FRAGMENTS:
            return False
        if len(data) > len(self.fragments.get(offset, b"")):
            self.fragments[offset] = self.fragments.get(offset, b"") + data[len(self.fragments.get(offset, b"")) :]
        for at in sorted(self.fragments):
            if at > len(self.message):
                break
            self.message += self.fragments.pop(at)[len(self.message) - at :]
        return True

    def first_message(self) -> bytes | None:
        size = 4 + int.from_bytes(self.message[1:4], "big")
        return bytes(self.message[:size]) if 4 <= size <= len(self.message) and len(self.message) >= 4 else None


class QuicParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`; every feed is one datagram."""

    name = "quic"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._keys: dict[tuple[int, bytes], tuple[InitialKeys, InitialKeys]] = {}
        self._sides = (_Side(), _Side())

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        if self.gave_up or side.done or not data:
            return
        while data and data[0] & 0x80 and not side.done and not self.gave_up:
            side.packets += 1
            if side.packets > self._limits.quic_packets:
                self._event(direction, 0, "crypto_frag_too_long")
                self.give_up("crypto_frag_too_long")
                return
            data = self._packet(direction, side, data)

    def _packet(self, direction: Direction, side: _Side, data: bytes) -> bytes:
        """One packet with a long header; answers the rest of the datagram."""
        version = int.from_bytes(data[1:5], "big")
        try:
            kind, dcid, number_at, end = _header(data, version)
        except ValueError:
            self._event(direction, version, "error_on_header")
            return b""
        if kind == _RETRY or not version:
            self._transaction(direction, version)
            return b""
        packet, rest = data[:end], data[end:]
        if kind != _INITIAL or not has_salt(version):
            self._transaction(direction, version)
            return rest
        payload = self._open(direction, version, dcid, packet, number_at)
        if payload is None:
            self._event(direction, version, "failed_decrypt")
            return rest
        self._frames(direction, side, version, payload)
        return rest

    def _open(self, direction: Direction, version: int, dcid: bytes, packet: bytes, number_at: int) -> bytes | None:
        if direction is Direction.TO_SERVER and len(self._keys) < _MAX_KEYS and (version, dcid) not in self._keys:
            keys = initial_keys(version, dcid)
            if keys is None:
                return None
            payload = open_packet(keys[0], packet, number_at)
            if payload is not None:
                self._keys[version, dcid] = keys
                return payload
        for known in reversed(self._keys.values()):
            payload = open_packet(known[direction], packet, number_at)
            if payload is not None:
                return payload
        return None

    def _frames(self, direction: Direction, side: _Side, version: int, payload: bytes) -> None:
        carried = False
        try:
            for offset, data in crypto_frames(payload):
                carried = True
                if not side.add(offset, data):
                    self._event(direction, version, "crypto_frag_too_long")
                    self.give_up("crypto_frag_too_long")
                    return
        except ValueError:
            self._event(direction, version, "error_on_header")
            return
        message = side.first_message()
        if message is None:
            if not carried:
                self._transaction(direction, version)
            return
        side.done = True
        self.finished = all(side.done for side in self._sides)
        self._transaction(direction, version, message)

    def _transaction(self, direction: Direction, version: int, message: bytes = b"", event: str = "") -> None:
        tx = QuicTransaction(self.take_id(), direction, version)
        if message:
            tx.hello = _hello(direction, message)
            if tx.hello is None:
                event = "error_on_header"
        if event:
            tx.add_event(event)
        tx.finish(direction)
        tx.skip(Direction.TO_CLIENT if direction is Direction.TO_SERVER else Direction.TO_SERVER)
        self.transactions.append(tx)

    def _event(self, direction: Direction, version: int, event: str) -> None:
        self._transaction(direction, version, event=event)


def _hello(direction: Direction, message: bytes) -> TlsTransaction | None:
    tx = TlsTransaction(0)
    if direction is Direction.TO_CLIENT:
        return tx if message[0] == _SERVER_HELLO and read_server_hello(tx, message[4:]) else None
    reader = ClientHelloReader(2 * _MAX_HELLO)
    answer = None
    # The reader wants records, which QUIC does without.
    for at in range(0, len(message), _RECORD):
        piece = message[at : at + _RECORD]
        answer = reader.feed(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece)
    if not isinstance(answer, ClientHello):
        return None
    facts = TlsFacts.from_hello(answer)
    tx.set_client(replace(facts, ja4="q" + facts.ja4[1:]))  # JA4 names the transport first
    return tx


def _header(data: bytes, version: int) -> tuple[int, bytes, int, int]:
    """Type (as version 1 counts them), destination connection id, offsets of the packet number and of the packet's end.
    Raises ValueError when it is cut off or no QUIC (RFC 9000, section 17.2)."""
    at = 5
    ids = []
    for _ in range(2):
        if at >= len(data):
            raise ValueError("header is cut off")
        size = data[at]
        at += 1 + size
        if at > len(data) or (size > _MAX_ID and version):
            raise ValueError("connection id is cut off or too long")
        ids.append(data[at - size : at])
    kind = data[0] >> 4 & 3
    if version == V2:
        kind = (kind - 1) & 3  # RFC 9369, section 3.2
    if kind == _RETRY or not version:
        return kind, ids[0], at, len(data)
    if kind == _INITIAL:
        size, at = read_varint(data, at)
        at += size  # the token
    size, at = read_varint(data, at)
    if at + size > len(data):
        raise ValueError("packet is cut off")
    return kind, ids[0], at, at + size


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at an offset and the offset after it (RFC 9000, section 16). Raises ValueError when it is cut off."""
    if at >= len(data):
        raise ValueError("number is cut off")
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise ValueError("number is cut off")
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


def crypto_frames(payload: bytes) -> list[tuple[int, bytes]]:
    """Offset and data of the CRYPTO frames among those an Initial packet may hold (RFC 9000, section 12.4). Raises
    ValueError for any other frame and for one that is cut off."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(payload):
        kind = payload[at]
        if kind == _PADDING:
            zeros = _ZEROS.match(payload, at)
            assert zeros is not None
            at = zeros.end()
            continue
        at += 1
        if kind == _PING:
            continue
        if kind == _CRYPTO:
            offset, at = read_varint(payload, at)
            size, at = read_varint(payload, at)
            if at + size > len(payload):
                raise ValueError("frame is cut off")
            found.append((offset, payload[at : at + size]))
            at += size
        elif kind in {_ACK, _ACK_ECN}:
            _largest, at = read_varint(payload, at)
            _delay, at = read_varint(payload, at)
            count, at = read_varint(payload, at)
            for _ in range(min(2 * count + 1 + (3 if kind == _ACK_ECN else 0), len(payload))):
                _number, at = read_varint(payload, at)
        elif kind == _CLOSE:
            break  # nothing after it is worth reading
        else:
            raise ValueError("no frame of an Initial packet")
    return found

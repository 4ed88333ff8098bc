"""MQTT 3.1, 3.1.1 and 5: control packets, a request together with what answers it as one transaction.

Promise: nothing raises; a packet is held until it is complete or as long as rules can see; what is malformed becomes an
event. Every packet is judged when it comes, not when its transaction is complete, because nothing may leave before.

A transaction belongs to the side that began it, and its buffers hold the values of all its packets. Numbers are bytes:
``mqtt.type``, ``mqtt.flags`` (the lower half of a packet's first byte), ``mqtt.qos``, ``mqtt.reason_code``,
``mqtt.protocol_version``, ``mqtt.connect.flags`` and ``mqtt.connack.session_present`` one each.

Source: OASIS MQTT 5.0, sections 2 and 3; MQTT 3.1.1; Suricata user guide, "MQTT Keywords".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

TYPES = (
    "UNASSIGNED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
    "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
)  # fmt: skip
(
    _UNASSIGNED, _CONNECT, _CONNACK, _PUBLISH, _PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _SUBSCRIBE, _SUBACK, _UNSUBSCRIBE,
    _UNSUBACK, _PINGREQ, _PINGRESP, _DISCONNECT, _AUTH,
) = range(16)  # fmt: skip
_MAX_LENGTH_BYTES = 4
# Values of one kind kept of a transaction. -> the rest is not seen
_MAX_VALUES = 256
_USERNAME, _PASSWORD, _WILL = 0x80, 0x40, 0x04
# What an answer answers, and the event when that was never seen.
_ANSWERS = {
    _PUBACK: (_PUBLISH, "missing_publish"),
    _PUBREC: (_PUBLISH, "missing_publish"),
    _PUBREL: (_PUBLISH, "missing_publish"),
    _PUBCOMP: (_PUBLISH, "missing_publish"),
    _SUBACK: (_SUBSCRIBE, "missing_subscribe"),
    _UNSUBACK: (_UNSUBSCRIBE, "missing_unsubscribe"),
}
_NOT_THE_END = frozenset({_PUBREC, _PUBREL})


class MqttTransaction(BaseTransaction):
    """One exchange. ``first``: the type of the packet that began it."""

    __slots__ = ("_values", "direction", "first")

    def __init__(self, tx_id: int, direction: Direction, first: int) -> None:
        super().__init__(tx_id)
        self.direction = direction
        self.first = first
        self._values: dict[str, list[bytes]] = {}
        self.skip(direction.reply)

    def add(self, name: str, value: bytes) -> None:
        """One more value of a buffer."""
        values = self._values.setdefault(name, [])
        if len(values) < _MAX_VALUES:
            values.append(value)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self.direction:
            return ()
        return self._values.get(name, ())

    def log_fields(self) -> dict[str, object]:
        """EVE ``mqtt`` object."""
        fields: dict[str, object] = {"type": TYPES[self.first].lower()}
        for key, name in (("client_id", "mqtt.connect.clientid"), ("topic", "mqtt.publish.topic")):
            for value in self._values.get(name, ())[:1]:
                fields[key] = value[:1024].decode("utf-8", "backslashreplace")
        return fields


class _MalformedError(Exception):
    """A packet is not what its type says."""


class _Reader:
    """The contents of one packet."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise _MalformedError
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self.take(self.left)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self) -> bytes:
        return self.take(self.number(2))

    def properties(self) -> None:
        """Version 5; nothing in them is asked for."""
        size = shift = 0
        for _ in range(_MAX_LENGTH_BYTES):
            byte = self.number(1)
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                self.take(size)
                return
        raise _MalformedError


class MqttParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "mqtt"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._buffers = (bytearray(), bytearray())
        self._skip = [0, 0]  # bytes of a long packet that nobody looks at
        self._version = 0
        self._connect: MqttTransaction | None = None  # waits for its answer
        self._introduced = False
        # (type, packet identifier, side that began) of what waits for an answer, oldest first
        self._open: OrderedDict[tuple[int, int, Direction], MqttTransaction] = OrderedDict()

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        skipped = min(self._skip[direction], len(data))
        self._skip[direction] -= skipped
        buffer = self._buffers[direction]
        buffer += data[skipped:]
        at = 0
        while not self.gave_up and not self._skip[direction] and (end := self._packet(direction, buffer, at)):
            at = end
        del buffer[:at]

    def close(self, direction: Direction) -> None:
        for tx in (self._connect, *self._open.values()):
            if tx is not None and tx.direction is direction:
                tx.finish(direction)

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._buffers[direction])

    def _packet(self, direction: Direction, buffer: bytearray, at: int) -> int:
        """The packet at an offset; the offset behind it, 0 when it is not complete."""
        size = shift = 0
        start = at + 1
        while True:
            if start >= len(buffer):
                return 0
            byte = buffer[start]
            start += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= 7 * _MAX_LENGTH_BYTES:
                self._event(direction, "malformed_traffic")
                self.give_up("malformed_traffic")
                return 0
        seen = min(size, self._limits.mqtt_packet)
        if len(buffer) - start < seen:
            return 0
        data = bytes(buffer[start : start + seen])
        if self._limits.frames:
            header = bytes(buffer[at:start])
            pieces = {"frame.mqtt.pdu": header + data, "frame.mqtt.header": header, "frame.mqtt.data": data}
            self.transactions.append(FrameTransaction(self.take_id(), direction, pieces))
        self._read(direction, buffer[at], data, seen < size)
        end = start + size
        self._skip[direction] = max(end - len(buffer), 0)
        return min(end, len(buffer))

    # -- packets ---------------------------------------------------------------------------------------------------

    def _read(self, direction: Direction, first: int, data: bytes, cut: bool) -> None:
        kind, qos = first >> 4, first >> 1 & 3
        values: list[tuple[str, bytes]] = [
            ("mqtt.type", bytes((kind,))),
            ("mqtt.flags", bytes((first & 0x0F,))),
            ("mqtt.qos", bytes((qos,))),
        ]
        events = []
        identifier = -1
        try:
            identifier = self._contents(kind, qos, _Reader(data), values)
        except _MalformedError:
            if not cut:
                events.append("malformed_traffic")
        if kind == _UNASSIGNED:
            events.append("unassigned_msg_type")
        if qos == 3:
            events.append("invalid_qos_level")
        elif identifier == 0:
            events.append("missing_msg_id")
        tx = self._transaction(direction, kind, qos, identifier, events)
        for name, value in values:
            tx.add(name, value)
        if self._version:
            tx.add("mqtt.protocol_version", bytes((self._version,)))
        for event in events:
            tx.add_event(event)
        tx.touch(tx.direction)

    def _transaction(
        self, direction: Direction, kind: int, qos: int, identifier: int, events: list[str]
    ) -> MqttTransaction:
        """The transaction a packet belongs to, complete if it ends with that."""
        if kind == _CONNACK:
            tx, self._connect = self._connect, None
            self._introduced = True
            if tx is not None:
                tx.finish(tx.direction)
                return tx
            events.append("missing_connect")
            return self._new(direction, kind)
        if kind == _CONNECT:
            if self._connect is not None or self._introduced:
                events.append("double_connect")
            if self._connect is not None:
                self._connect.finish(self._connect.direction)
            self._connect = self._new(direction, kind, complete=False)
            return self._connect
        if not self._introduced and kind != _UNASSIGNED:
            events.append("unintroduced_message")
        answered, missing = _ANSWERS.get(kind, (0, ""))
        if answered:
            # Of the four packets of QoS 2 the third comes from the side that began.
            key = (answered, identifier, direction if kind == _PUBREL else direction.reply)
            tx = self._open.get(key)
            if tx is None:
                events.append(missing)
                return self._new(direction, kind)
            if kind not in _NOT_THE_END:
                del self._open[key]
                tx.finish(tx.direction)
            return tx
        waits = kind in {_SUBSCRIBE, _UNSUBSCRIBE} or (kind == _PUBLISH and qos in {1, 2})
        tx = self._new(direction, kind, complete=not waits or bool(events))
        if waits and not events:
            self._open[kind, identifier, direction] = tx
            if len(self._open) > self._limits.mqtt_open:
                _, oldest = self._open.popitem(last=False)
                oldest.add_event("too_many_transactions")
                oldest.finish(oldest.direction)
        return tx

    def _new(self, direction: Direction, kind: int, *, complete: bool = True) -> MqttTransaction:
        tx = MqttTransaction(self.take_id(), direction, kind)
        if complete:
            tx.finish(direction)
        self.transactions.append(tx)
        return tx

    def _event(self, direction: Direction, event: str) -> None:
        self._new(direction, _UNASSIGNED).add_event(event)

    def _contents(self, kind: int, qos: int, reader: _Reader, values: list[tuple[str, bytes]]) -> int:
        """Adds what the packet holds; answers its identifier, -1 for none. Raises _MalformedError."""
        identifier = -1
        if kind == _CONNECT:
            self._read_connect(reader, values)
        elif kind == _CONNACK:
            values.append(("mqtt.connack.session_present", bytes((reader.number(1) & 1,))))
            values.append(("mqtt.reason_code", reader.take(1)))
            self._properties(reader)
        elif kind == _PUBLISH:
            values.append(("mqtt.publish.topic", reader.text()))
            if qos:
                identifier = reader.number(2)
            self._properties(reader)
            values.append(("mqtt.publish.message", reader.rest()))
        elif kind in {_PUBACK, _PUBREC, _PUBREL, _PUBCOMP}:
            identifier = reader.number(2)
            if self._version == 5:
                values.append(("mqtt.reason_code", reader.take(1) if reader.left else b"\0"))
                if reader.left:
                    reader.properties()
        elif kind in {_SUBSCRIBE, _UNSUBSCRIBE}:
            identifier = reader.number(2)
            self._properties(reader)
            name = "mqtt.subscribe.topic" if kind == _SUBSCRIBE else "mqtt.unsubscribe.topic"
            while reader.left:
                values.append((name, reader.text()))
                if kind == _SUBSCRIBE:
                    reader.take(1)
        elif kind in {_SUBACK, _UNSUBACK}:
            identifier = reader.number(2)
            self._properties(reader)
            values += [("mqtt.reason_code", bytes((code,))) for code in reader.rest()]
        elif kind in {_DISCONNECT, _AUTH} and self._version == 5:
            values.append(("mqtt.reason_code", reader.take(1) if reader.left else b"\0"))
            if reader.left:
                reader.properties()
        return identifier

    def _properties(self, reader: _Reader) -> None:
        if self._version == 5:
            reader.properties()

    def _read_connect(self, reader: _Reader, values: list[tuple[str, bytes]]) -> None:
        values.append(("mqtt.connect.protocol_string", reader.text()))
        self._version = reader.number(1)
        flags = reader.number(1)
        values.append(("mqtt.connect.flags", bytes((flags,))))
        reader.take(2)  # keep alive
        self._properties(reader)
        values.append(("mqtt.connect.clientid", reader.text()))
        if flags & _WILL:
            self._properties(reader)
            values.append(("mqtt.connect.willtopic", reader.text()))
            values.append(("mqtt.connect.willmessage", reader.text()))
        if flags & _USERNAME:
            values.append(("mqtt.connect.username", reader.text()))
        if flags & _PASSWORD:
            values.append(("mqtt.connect.password", reader.text()))

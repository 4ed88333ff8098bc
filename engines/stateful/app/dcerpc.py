"""DCERPC over TCP, connection-oriented: one transaction per call; the parts that SMB's pipes share.

Promise: nothing raises, what is kept is bounded. A call's interface is what its context was bound to and the server
accepted.

Source: DCE 1.1: Remote Procedure Call (The Open Group, C706), chapter 12; [MS-RPCE]; Suricata user guide, "DCERPC
Keywords".
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.stateful.match import LittleEndian
from engines.verdict import Direction

HEADER = 16
REQUEST, RESPONSE, FAULT = 0, 2, 3
BIND, BIND_ACK, BIND_NAK, ALTER, ALTER_ACK = 11, 12, 13, 14, 15
_LAST_TYPE = 20
_FIRST_FRAGMENT, _LAST_FRAGMENT = 0x01, 0x02
_MAX_CONTEXTS = 256
_SYNTAX = 20  # a UUID and a version


class Pdu(NamedTuple):
    """``body`` is what follows the common header."""

    kind: int
    flags: int
    little: bool
    call: int
    body: bytes

    @property
    def first(self) -> bool:
        return bool(self.flags & _FIRST_FRAGMENT)

    @property
    def last(self) -> bool:
        return bool(self.flags & _LAST_FRAGMENT)

    def number(self, at: int, size: int) -> int:
        """A number in the body; 0 beyond its end."""
        return int.from_bytes(self.body[at : at + size], "little" if self.little else "big")


def looks_like_pdu(data: bytes) -> bool | None:
    """Whether these bytes can begin a PDU (Suricata: probe); None: too few to say."""
    if data[:1] != b"\x05" or (len(data) > 1 and data[1] > 1) or (len(data) > 2 and data[2] >= _LAST_TYPE):
        return False
    if len(data) < 10:
        return None
    return data[4] & 0xEE == 0 and data[5] <= 3 and pdu_size(data) >= HEADER


def pdu_size(data: bytes) -> int:
    """The whole length of the PDU with this header (at least 10 bytes)."""
    return int.from_bytes(data[8:10], "little" if data[4] & 0x10 else "big")


def read_pdu(data: bytes) -> Pdu:
    """A PDU, header included."""
    little = bool(data[4] & 0x10)
    return Pdu(data[2], data[3], little, int.from_bytes(data[12:16], "little" if little else "big"), data[HEADER:])


class _Interface(NamedTuple):
    uuid: bytes
    version: int
    first: bool  # bound in the first fragment


class Contexts:
    """What the contexts of a connection or pipe are bound to."""

    __slots__ = ("_asked", "_bound")

    def __init__(self) -> None:
        self._asked: list[tuple[int, _Interface]] = []
        self._bound: dict[int, _Interface] = {}

    def bind(self, pdu: Pdu) -> None:
        """The client asks for interfaces (C706, section 12.6.4.3)."""
        self._asked = []
        at = 12
        for _ in range(pdu.body[8] if len(pdu.body) > 8 else 0):
            if at + 4 + _SYNTAX > len(pdu.body):
                break
            raw = pdu.body[at + 4 : at + 20]
            name = uuid.UUID(bytes_le=raw).bytes if pdu.little else raw
            self._asked.append((pdu.number(at, 2), _Interface(name, pdu.number(at + 20, 2), pdu.first)))
            at += 4 + _SYNTAX + pdu.body[at + 2] * _SYNTAX

    def ack(self, pdu: Pdu) -> None:
        """The server answers for each (section 12.6.4.4): 0 accepts."""
        at = 10 + pdu.number(8, 2)
        at += -(at + HEADER) % 4
        for number in range(pdu.body[at] if at < len(pdu.body) else 0):
            result = at + 4 + number * (4 + _SYNTAX)
            if number >= len(self._asked) or result + 2 > len(pdu.body):
                break
            context, interface = self._asked[number]
            if pdu.number(result, 2) == 0 and (context in self._bound or len(self._bound) < _MAX_CONTEXTS):
                self._bound[context] = interface

    def interface(self, context: int) -> bytes | None:
        """The buffer ``dcerpc.iface``: UUID, version (two bytes, big endian), 1 for one bound in a first fragment."""
        found = self._bound.get(context)
        return None if found is None else found.uuid + found.version.to_bytes(2, "big") + bytes([found.first])


class Call:
    """One call, or a bind."""

    __slots__ = ("_contexts", "_limit", "_stubs", "_views", "call", "context", "kind", "little", "opnum")

    def __init__(self, contexts: Contexts, pdu: Pdu, limits: AppLimits) -> None:
        self._contexts = contexts
        self._limit = limits.dcerpc_stub
        self.kind = pdu.kind
        self.call = pdu.call
        self.little = pdu.little
        self.opnum = 0
        self.context = 0
        self._stubs = (bytearray(), bytearray())
        self._views = [b"", b""]

    def request(self, pdu: Pdu) -> None:
        """A fragment of the request (section 12.6.4.9)."""
        if pdu.first or self.kind != REQUEST:
            self.kind, self.context, self.opnum = REQUEST, pdu.number(4, 2), pdu.number(6, 2)
        self._take(Direction.TO_SERVER, pdu.body[8:])

    def response(self, pdu: Pdu, skip: int) -> None:
        """A fragment of the response (section 12.6.4.10). Its own 8 bytes of header are part of the buffer in Suricata
        over TCP and not over SMB, so the caller says."""
        self._take(Direction.TO_CLIENT, pdu.body[skip:])

    def _take(self, side: Direction, data: bytes) -> None:
        stub = self._stubs[side]
        stub += data[: max(self._limit - len(stub), 0)]

    def buffer(self, name: str, direction: Direction | None) -> Sequence[bytes]:
        if name == "dcerpc.stub_data":
            sides = tuple(Direction) if direction is None else (direction,)
            return [self._view(side) for side in sides if self._stubs[side]]
        if self.kind != REQUEST:
            return ()
        if name == "dcerpc.opnum":
            return (self.opnum.to_bytes(2, "big"),)
        if name == "dcerpc.iface":
            found = self._contexts.interface(self.context)
            return () if found is None else (found,)
        return ()

    def _view(self, side: Direction) -> bytes:
        stub = self._stubs[side]
        if len(self._views[side]) != len(stub):
            self._views[side] = LittleEndian(stub) if self.little else bytes(stub)
        return self._views[side]

    def log_fields(self) -> dict[str, object]:
        """EVE ``dcerpc`` object."""
        fields: dict[str, object] = {"call_id": self.call}
        if self.kind == REQUEST:
            fields["request"] = "REQUEST"
            fields["req"] = {"opnum": self.opnum, "stub_data_size": len(self._stubs[0])}
            fields["res"] = {"stub_data_size": len(self._stubs[1])}
            found = self._contexts.interface(self.context)
            if found is not None:
                fields["interfaces"] = [{"uuid": str(uuid.UUID(bytes=found[:16])), "ack_result": 0}]
        return fields


class CallTransaction(BaseTransaction):
    """Whatever carries a call."""

    __slots__ = ("call",)

    def __init__(self, tx_id: int, call: Call | None) -> None:
        super().__init__(tx_id)
        self.call = call

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        return () if self.call is None else self.call.buffer(name, direction)

    def log_fields(self) -> dict[str, object]:
        return {} if self.call is None else self.call.log_fields()


_Begin = Callable[[Call], CallTransaction]


class Dialogue:
    """The PDUs of one connection or pipe. ``skip``: how much of a response's
    body is header. ``problem``: why reading on is impossible, "" while it is not."""

    __slots__ = ("_buffers", "_contexts", "_limits", "_lost", "_open", "_skip", "problem")

    def __init__(self, limits: AppLimits, skip: int) -> None:
        self._limits = limits
        self._skip = skip
        self._contexts = Contexts()
        self._buffers = (bytearray(), bytearray())
        self._lost = [False, False]  # bytes were lost: look for the start of a PDU
        self._open: dict[int, CallTransaction] = {}  # by call id, oldest first
        self.problem = ""

    def feed(self, direction: Direction, data: bytes, begin: _Begin) -> None:
        """The next bytes of a direction. ``begin`` makes the transaction of a call."""
        if self.problem:
            return
        buffer = self._buffers[direction]
        buffer += data
        at = 0
        if self._lost[direction]:
            at = max(buffer.find(b"\x05\0"), 0)
            self._lost[direction] = buffer[at : at + 2] != b"\x05\0"
            if self._lost[direction]:
                del buffer[:-1]
                return
        while len(buffer) - at >= HEADER and not self.problem:
            header = bytes(buffer[at : at + HEADER])
            if not looks_like_pdu(header):
                self.problem = "invalid_header"
                break
            end = at + pdu_size(header)
            if end > len(buffer):
                break
            pdu = read_pdu(bytes(buffer[at:end]))
            if direction is Direction.TO_SERVER:
                self._to_server(pdu, begin)
            else:
                self._to_client(pdu, begin)
            at = end
        del buffer[:at]
        if self.problem:
            buffer.clear()

    def lost(self, direction: Direction) -> None:
        """What comes next does not follow what came."""
        self._buffers[direction].clear()
        self._lost[direction] = True

    def end(self) -> None:
        """No more will come: calls without a response stay without."""
        for tx in self._open.values():
            tx.finish(Direction.TO_SERVER)
            tx.finish(Direction.TO_CLIENT)
        self._open.clear()

    def unfinished(self, direction: Direction) -> int:
        """Bytes of an incomplete PDU."""
        return len(self._buffers[direction])

    def _to_server(self, pdu: Pdu, begin: _Begin) -> None:
        if pdu.kind not in {REQUEST, BIND, ALTER}:
            return
        tx = self._open.get(pdu.call)
        if tx is None or (pdu.first and tx.is_complete(Direction.TO_SERVER)):
            tx = self._new(pdu, begin)
        if pdu.kind == REQUEST:
            assert tx.call is not None
            tx.call.request(pdu)
        else:
            self._contexts.bind(pdu)
        for side in Direction:  # what is known of a request is judged on both sides
            tx.touch(side)
        if pdu.last or pdu.kind != REQUEST:
            tx.finish(Direction.TO_SERVER)

    def _to_client(self, pdu: Pdu, begin: _Begin) -> None:
        if pdu.kind not in {RESPONSE, FAULT, BIND_ACK, BIND_NAK, ALTER_ACK}:
            return
        if pdu.kind in {BIND_ACK, ALTER_ACK}:
            self._contexts.ack(pdu)
        tx = self._open.get(pdu.call)
        if tx is None:
            tx = self._new(pdu, begin)
            tx.skip(Direction.TO_SERVER)
        if pdu.kind == RESPONSE:
            assert tx.call is not None
            tx.call.response(pdu, self._skip)
        for side in Direction:
            tx.touch(side)
        if pdu.last or pdu.kind != RESPONSE:
            tx.finish(Direction.TO_SERVER)
            tx.finish(Direction.TO_CLIENT)
            del self._open[pdu.call]

    def _new(self, pdu: Pdu, begin: _Begin) -> CallTransaction:
        old = self._open.pop(pdu.call, None)
        if old is not None:
            old.finish(Direction.TO_CLIENT)
        tx = begin(Call(self._contexts, pdu, self._limits))
        self._open[pdu.call] = tx
        if len(self._open) > self._limits.dialogue_pipelined:
            self.problem = "too_many_calls"
        return tx


class DcerpcParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "dcerpc"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._dialogue = Dialogue(limits, 0)

    def feed(self, direction: Direction, data: bytes) -> None:
        if not self.gave_up:
            self._dialogue.feed(direction, data, self._begin)
            if self._dialogue.problem:
                self.give_up(self._dialogue.problem)

    def close(self, direction: Direction) -> None:
        self._dialogue.lost(direction)
        if direction is Direction.TO_CLIENT:
            self._dialogue.end()

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else self._dialogue.unfinished(direction)

    def _begin(self, call: Call) -> CallTransaction:
        tx = CallTransaction(self.take_id(), call)
        self.transactions.append(tx)
        return tx

"""LDAP: a request and all that answers it is a transaction, over UDP (CLDAP) as over TCP.

Buffers of a request are its direction's, those of responses have an instance for each response, or for each of its
attributes: ``ldap.request.dn``, ``ldap.request.attribute_type``, ``ldap.request.attributes`` (``type=value``) and the
same of ``ldap.responses``; ``ldap.responses.message``. Numbers, big endian: ``ldap.request.operation``,
``ldap.responses.operation`` and ``ldap.responses.count`` one byte (of the last, the instances are what counts),
``ldap.responses.result_code`` four.

A response without a name or a message has an empty one. What follows a successful StartTLS is TLS; what is signed or
sealed after a SASL bind cannot be read.

Source: RFC 4511; Suricata user guide, "LDAP Keywords".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from engines.stateful.app.der import HeaderCutError, items, read
from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

BIND_REQUEST, BIND_RESPONSE, UNBIND_REQUEST, SEARCH_REQUEST, SEARCH_ENTRY, SEARCH_DONE = range(6)
MODIFY_REQUEST, ADD_REQUEST, DEL_REQUEST, MOD_DN_REQUEST, COMPARE_REQUEST, ABANDON_REQUEST = 6, 8, 10, 12, 14, 16
EXTENDED_REQUEST, EXTENDED_RESPONSE = 23, 24
OPERATIONS = {
    "bind_request": BIND_REQUEST, "bind_response": BIND_RESPONSE, "unbind_request": UNBIND_REQUEST,
    "search_request": SEARCH_REQUEST, "search_result_entry": SEARCH_ENTRY, "search_result_done": SEARCH_DONE,
    "modify_request": MODIFY_REQUEST, "modify_response": 7, "add_request": ADD_REQUEST, "add_response": 9,
    "del_request": DEL_REQUEST, "del_response": 11, "mod_dn_request": MOD_DN_REQUEST, "mod_dn_response": 13,
    "compare_request": COMPARE_REQUEST, "compare_response": 15, "abandon_request": ABANDON_REQUEST,
    "search_result_reference": 19, "extended_request": EXTENDED_REQUEST, "extended_response": EXTENDED_RESPONSE,
    "intermediate_response": 25,
}  # fmt: skip
_NAMES = {number: name for name, number in OPERATIONS.items()}
_REQUESTS = frozenset({BIND_REQUEST, UNBIND_REQUEST, ABANDON_REQUEST, EXTENDED_REQUEST}) | frozenset(
    {SEARCH_REQUEST, MODIFY_REQUEST, ADD_REQUEST, DEL_REQUEST, MOD_DN_REQUEST, COMPARE_REQUEST}
)
# The answers that are the last, all with a result; others may follow the rest.
_RESULTS = frozenset({BIND_RESPONSE, SEARCH_DONE, 7, 9, 11, 13, 15, EXTENDED_RESPONSE})
_UNANSWERED = frozenset({UNBIND_REQUEST, ABANDON_REQUEST})
# Tags of operations (RFC 4511, section 4.2 and following): application class, some of them without an inner structure.
_PRIMITIVE = frozenset({UNBIND_REQUEST, DEL_REQUEST, ABANDON_REQUEST})
_OPERATION = {(0x40 if op in _PRIMITIVE else 0x60) | op: op for op in OPERATIONS.values()}
REQUEST_TAGS, RESPONSE_TAGS = (
    frozenset(tag for tag, op in _OPERATION.items() if (op in _REQUESTS) == request) for request in (True, False)
)
_SEQUENCE, _INTEGER, _SASL, _NAME_OF_EXTENDED = 0x30, 0x02, 0xA3, 0x80
_START_TLS = b"1.3.6.1.4.1.1466.20037"
_MAX_VALUES = 1024  # of one kind in one message
_SUCCESS = 0
# A transaction of more goes on in another one, so that a long answer is seen whole and not kept.
_MAX_RESPONSES = 256
_MAX_RESPONSE_BYTES = 256 << 10


class LdapTransaction(BaseTransaction):
    """A request with its responses, or a response nobody asked for. ``operation``: of the request, -1 for none."""

    __slots__ = ("_requested", "_responded", "bytes", "message_id", "operation", "responses", "sasl", "start_tls")

    def __init__(self, tx_id: int, message_id: int) -> None:
        super().__init__(tx_id)
        self._requested: dict[str, list[bytes]] = {}
        self._responded: dict[str, list[bytes]] = {}
        self.message_id = message_id
        self.operation = -1
        self.responses = self.bytes = 0
        self.sasl = self.start_tls = False

    def request(self, operation: int, body: bytes, cut: bool) -> None:
        """What was asked. Raises ValueError or LookupError where it is not built like that."""
        self.operation = operation
        values = self._requested
        values["ldap.request.operation"] = [bytes((operation,))]
        if operation == DEL_REQUEST:
            values["ldap.request.dn"] = [body]
            return
        if operation in _UNANSWERED:
            return
        fields = list(items(body, cut=cut))
        if operation == EXTENDED_REQUEST:
            self.start_tls = fields[0] == (_NAME_OF_EXTENDED, _START_TLS)
            return
        if operation == BIND_REQUEST:
            values["ldap.request.dn"] = [fields[1][1]]
            self.sasl = fields[2][0] == _SASL
            return
        values["ldap.request.dn"] = [fields[0][1]]
        types = values["ldap.request.attribute_type"] = []
        pairs = values["ldap.request.attributes"] = []
        if operation == SEARCH_REQUEST:
            types += [name for _, name in items(fields[7][1], cut=cut)][:_MAX_VALUES]
        elif operation == ADD_REQUEST:
            _attributes(fields[1][1], cut, types, pairs)
        elif operation == MODIFY_REQUEST:
            for _, change in items(fields[1][1], cut=cut):
                modification = list(items(change, cut=cut))[1:2]
                for _, attribute in modification:
                    _attribute(attribute, cut, types, pairs)
        elif operation == COMPARE_REQUEST:
            (_, name), (_, value) = list(items(fields[1][1], cut=cut))[:2]
            types.append(name)
            pairs.append(name + b"=" + value)

    def respond(self, operation: int, body: bytes, cut: bool) -> int:
        """One more response; its result code, -1 for none. Raises ValueError or LookupError as above."""
        self.responses += 1
        self.bytes += len(body)
        self._add("ldap.responses.operation", bytes((operation,)))
        self._add("ldap.responses.count", bytes((operation,)))
        name = message = b""
        code = -1
        try:
            if operation in _RESULTS:
                fields = list(items(body, cut=cut))
                code = int.from_bytes(fields[0][1][:4], "big")
                self._add("ldap.responses.result_code", code.to_bytes(4, "big"))
                name, message = fields[1][1], fields[2][1]
            elif operation == SEARCH_ENTRY:
                fields = list(items(body, cut=cut))
                name = fields[0][1]
                types = self._responded.setdefault("ldap.responses.attribute_type", [])
                pairs = self._responded.setdefault("ldap.responses.attributes", [])
                _attributes(fields[1][1], cut, types, pairs)
        finally:
            self._add("ldap.responses.dn", name)
            self._add("ldap.responses.message", message)
        return code

    def is_full(self) -> bool:
        """More responses belong into another transaction."""
        return self.responses >= _MAX_RESPONSES or self.bytes >= _MAX_RESPONSE_BYTES

    def continued(self, tx_id: int) -> LdapTransaction:
        """The same request, for more responses; the request itself was judged."""
        other = LdapTransaction(tx_id, self.message_id)
        other._requested = self._requested
        other.operation, other.sasl, other.start_tls = self.operation, self.sasl, self.start_tls
        other.skip(Direction.TO_SERVER)
        return other

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if name.startswith("ldap.request."):
            return self._requested.get(name, ()) if direction is not Direction.TO_CLIENT else ()
        return self._responded.get(name, ()) if direction is not Direction.TO_SERVER else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``ldap`` object."""
        fields: dict[str, object] = {}
        if self.operation >= 0:
            request: dict[str, object] = {"operation": _NAMES[self.operation], "message_id": self.message_id}
            for dn in self._requested.get("ldap.request.dn", ()):
                request["dn"] = dn[:1024].decode("utf-8", "backslashreplace")
            fields["request"] = request
        answers = self._responded.get("ldap.responses.operation", [])[:64]
        fields["responses"] = [{"operation": _NAMES[operation[0]]} for operation in answers]
        return fields

    def _add(self, name: str, value: bytes) -> None:
        self._responded.setdefault(name, []).append(value)


def _attributes(data: bytes, cut: bool, types: list[bytes], pairs: list[bytes]) -> None:
    """A list of attributes with their values."""
    for _, attribute in items(data, cut=cut):
        _attribute(attribute, cut, types, pairs)


def _attribute(data: bytes, cut: bool, types: list[bytes], pairs: list[bytes]) -> None:
    parts = [contents for _, contents in items(data, cut=cut)]
    if len(types) < _MAX_VALUES:
        types.append(parts[0])
    for values in parts[1:2]:
        for _, value in items(values, cut=cut):
            if len(pairs) < _MAX_VALUES:
                pairs.append(parts[0] + b"=" + value)


class _NotLdapError(Exception):
    """These bytes do not begin a message."""


def _size(data: bytes | bytearray, at: int) -> int:
    """How long the message at an offset is, 0 while that cannot be said. Raises _NotLdapError."""
    if data[at] != _SEQUENCE:
        raise _NotLdapError
    try:
        read(bytes(data[at : at + 6]), 0, cut=True)
    except HeaderCutError:
        return 0
    except ValueError:
        raise _NotLdapError from None
    size = data[at + 1]
    if not size & 0x80:
        return 2 + size
    more = size & 0x7F
    return 2 + more + int.from_bytes(data[at + 2 : at + 2 + more], "big")


def looks_like_message(data: bytes, tags: frozenset[int], whole: bool = False) -> bool | None:
    """Whether these bytes begin a message whose operation has one of the tags. ``whole``: no more bytes will come."""
    try:
        size = _size(data, 0)
    except _NotLdapError:
        return False
    if not size:
        return False if whole else None
    start = 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
    head = data[start : start + 7]
    if head[:1] not in {b"\x02", b""} or (len(head) > 1 and not 1 <= head[1] <= 4):
        return False
    at = 2 + head[1] if len(head) > 1 else 7
    if at >= len(head):
        return False if whole or size <= len(data) else None
    return head[at] in tags and (not whole or size <= len(data))


class LdapParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``udp``: one feed is one datagram."""

    name = "ldap"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False, udp: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._udp = udp
        self._buffers = (bytearray(), bytearray())
        self._skip = [0, 0]  # bytes of a long message that nobody looks at
        self._secured = False  # a bind succeeded after which messages may be sealed
        # message identifier -> what waits for answers, oldest first
        self._open: OrderedDict[int, LdapTransaction] = OrderedDict()

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self.finished or self.tunnel:
            if self.tunnel:
                self._buffers[direction].extend(data)
            return
        if self._udp:
            self._datagram(direction, data)
            return
        skipped = min(self._skip[direction], len(data))
        self._skip[direction] -= skipped
        buffer = self._buffers[direction]
        buffer += data[skipped:]
        at = 0
        while at < len(buffer) and not (self.gave_up or self.finished or self.tunnel):
            end = self._next(direction, buffer, at)
            if not end:
                break
            at = end
        del buffer[:at]

    def close(self, direction: Direction) -> None:
        if direction is Direction.TO_CLIENT:
            for tx in self._open.values():
                tx.finish(direction)
            self._open.clear()

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self.finished or self.tunnel else len(self._buffers[direction])

    def unparsed(self, direction: Direction) -> bytes:
        return bytes(self._buffers[direction])

    def _datagram(self, direction: Direction, data: bytes) -> None:
        """CLDAP: a server answers with several messages at once."""
        at = 0
        while at < len(data):
            try:
                size = _size(data, at)
            except _NotLdapError:
                size = 0
            if not size or at + size > len(data):
                self._broken(direction)
                return
            self._message(direction, data[at : at + size], False)
            at += size

    def _next(self, direction: Direction, buffer: bytearray, at: int) -> int:
        """The message at an offset; the offset behind it, 0 when it is not complete."""
        try:
            size = _size(buffer, at)
        except _NotLdapError:
            if self._secured:
                self.finished = True
            else:
                self._broken(direction)
                self.give_up("invalid_data")
            return 0
        seen = min(size, self._limits.ldap_message)
        if not size or len(buffer) - at < seen:
            return 0
        self._message(direction, bytes(buffer[at : at + seen]), seen < size)
        self._skip[direction] = max(at + size - len(buffer), 0)
        return min(at + size, len(buffer))

    def _broken(self, direction: Direction) -> None:
        tx = LdapTransaction(self.take_id(), 0)
        tx.add_event("invalid_data")
        tx.finish(direction)
        tx.skip(direction.reply)
        self.transactions.append(tx)

    def _message(self, direction: Direction, data: bytes, cut: bool) -> None:
        if self._limits.frames:
            self.transactions.append(FrameTransaction(self.take_id(), direction, {"frame.ldap.pdu": data}))
        try:
            fields: Iterator[tuple[int, bytes]] = items(read(data, 0, cut=cut)[1], cut=cut)
            tag, number = next(fields)
            kind, body = next(fields)
        except (ValueError, StopIteration):
            self._broken(direction)
            return
        operation = _OPERATION.get(kind, -1)
        if tag != _INTEGER or operation < 0 or (operation in _REQUESTS) != (direction is Direction.TO_SERVER):
            self._broken(direction)
            return
        message_id = int.from_bytes(number[:4], "big")
        if direction is Direction.TO_SERVER:
            self._request(message_id, operation, body, cut)
        else:
            self._response(message_id, operation, body, cut)

    def _request(self, message_id: int, operation: int, body: bytes, cut: bool) -> None:
        tx = LdapTransaction(self.take_id(), message_id)
        try:
            tx.request(operation, body, cut)
        except (ValueError, LookupError):
            if not cut:
                tx.add_event("invalid_data")
        tx.finish(Direction.TO_SERVER)
        self.transactions.append(tx)
        if operation in _UNANSWERED:
            tx.finish(Direction.TO_CLIENT)
            return
        before = self._open.pop(message_id, None)
        if before is not None:
            before.finish(Direction.TO_CLIENT)
        self._open[message_id] = tx
        if len(self._open) > self._limits.ldap_open:
            _, oldest = self._open.popitem(last=False)
            oldest.add_event("too_many_transactions")
            oldest.finish(Direction.TO_CLIENT)

    def _response(self, message_id: int, operation: int, body: bytes, cut: bool) -> None:
        tx = self._open.get(message_id)
        if tx is None:
            tx = LdapTransaction(self.take_id(), message_id)
            tx.skip(Direction.TO_SERVER)
            if operation != EXTENDED_RESPONSE:  # which a server may send by itself (section 4.4)
                tx.add_event("request_not_found")
            self.transactions.append(tx)
        elif tx.is_full():
            tx.finish(Direction.TO_CLIENT)
            tx = self._open[message_id] = tx.continued(self.take_id())
            self.transactions.append(tx)
        code = -1
        try:
            code = tx.respond(operation, body, cut)
        except (ValueError, LookupError):
            if not cut:
                tx.add_event("invalid_data")
        if tx.operation < 0 or operation in _RESULTS:
            self._open.pop(message_id, None)
            tx.finish(Direction.TO_CLIENT)
            if code == _SUCCESS:
                self._secured = self._secured or tx.sasl
                if tx.start_tls and not self._udp:
                    self.tunnel, self.carries = True, "tls"
        else:
            tx.touch(Direction.TO_CLIENT)

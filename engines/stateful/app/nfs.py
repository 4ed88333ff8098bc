"""NFS 2 to 4 over ONC RPC: a call and its reply are a transaction, over UDP a datagram each, over TCP a record.

Buffers: ``nfs_procedure``, eight bytes: the version and the procedure, of version 4 an instance for each operation of
the compound; ``nfs_version``, one byte; ``file.name``, of what is read (to the client) or written (to the server) in
versions 2 and 3, where the client looked it up or created it on the same connection.

How much of a record is read is bounded: data that is read and written is passed over.

Source: RFC 5531 (RPC), RFC 1094, RFC 1813, RFC 7530 section 16, RFC 8881 section 18; Suricata user guide, "NFS
Keywords".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_C, _S = Direction.TO_SERVER, Direction.TO_CLIENT
PROGRAM = 100003
_CALL, _REPLY = 0, 1
_RPC_VERSION = 2
_MAX_AUTH = 400  # RFC 5531, section 8.2
_MAX_OPERATIONS = 256
_LAST = 0x80000000  # flag of a fragment of a record
PROCEDURES: dict[int, tuple[str, ...]] = {
    2: (
        "null", "getattr", "setattr", "root", "lookup", "readlink", "read", "writecache", "write", "create", "remove",
        "rename", "link", "symlink", "mkdir", "rmdir", "readdir", "statfs",
    ),
    3: (
        "null", "getattr", "setattr", "lookup", "access", "readlink", "read", "write", "create", "mkdir", "symlink",
        "mknod", "remove", "rmdir", "rename", "link", "readdir", "readdirplus", "fsstat", "fsinfo", "pathconf",
        "commit",
    ),
    4: (
        "null", "compound", "", "access", "close", "commit", "create", "delegpurge", "delegreturn", "getattr", "getfh",
        "link", "lock", "lockt", "locku", "lookup", "lookupp", "nverify", "open", "openattr", "open_confirm",
        "open_downgrade", "putfh", "putpubfh", "putrootfh", "read", "readdir", "readlink", "remove", "rename", "renew",
        "restorefh", "savefh", "secinfo", "setattr", "setclientid", "setclientid_confirm", "verify", "write",
        "release_lockowner", "backchannel_ctl", "bind_conn_to_session", "exchange_id", "create_session",
        "destroy_session", "free_stateid", "get_dir_delegation", "getdeviceinfo", "getdevicelist", "layoutcommit",
        "layoutget", "layoutreturn", "secinfo_no_name", "sequence", "set_ssv", "test_stateid", "want_delegation",
        "destroy_clientid", "reclaim_complete", "allocate", "copy", "copy_notify", "deallocate", "io_advise",
        "layouterror", "layoutstats", "offload_cancel", "offload_status", "read_plus", "seek", "write_same", "clone",
    ),
}  # fmt: skip
_COMPOUND = 1
# Arguments of operations of version 4: a number of bytes, o an opaque of any length, b a list of words (a bitmap);
# those that are missing are not read, nor what follows them.
_ARGUMENTS: dict[int, tuple[int | str, ...]] = {
    3: (4,), 4: (20,), 5: (12,), 7: (8,), 8: (16,), 9: ("b",), 10: (), 11: ("o",), 13: (28, "o"), 14: (40,),
    15: ("o",), 16: (), 17: ("b", "o"), 19: (4,), 20: (20,), 21: (28,), 22: ("o",), 23: (), 24: (), 25: (28,),
    26: (24, "b"), 27: (), 28: ("o",), 29: ("o", "o"), 30: (8,), 31: (), 32: (), 33: ("o",), 34: (16, "b", "o"),
    35: (8, "o", 4, "o", "o", 4), 36: (16,), 37: ("b", "o"), 38: (28, "o"), 39: (8, "o"), 44: (16,), 45: (16,),
    52: (4,), 53: (32,), 57: (8,), 58: (4,), 59: (32,), 62: (32,), 68: (28,), 69: (28,),
}  # fmt: skip
_CREATE, _LOCK, _OPEN = 6, 12, 18


class NfsTransaction(BaseTransaction):
    """A call. ``version``: of NFS; ``procedure``: in it; ``name``: of the file that is looked up, read or written."""

    __slots__ = ("_operations", "handles", "name", "procedure", "version")

    def __init__(self, tx_id: int, version: int, procedure: int) -> None:
        super().__init__(tx_id)
        self.version = version
        self.procedure = procedure
        self._operations = [procedure]
        self.name = b""
        self.handles = False  # the reply gives the handle of ``name``

    def compound(self, operations: Sequence[int]) -> None:
        """What a call of version 4 consists of."""
        self._operations += operations

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if not self.version:
            return ()
        if name == "file.name":
            kind = _name_of(self.version, self.procedure)
            side = {"read": _S, "write": _C}.get(kind)
            return (self.name,) if self.name and side is not None and direction in (None, side) else ()
        if direction is _S:
            return ()
        if name == "nfs_version":
            return (bytes((self.version & 0xFF,)),)
        if name != "nfs_procedure":
            return ()
        return [(self.version << 32 | operation).to_bytes(8, "big") for operation in self._operations]

    def log_fields(self) -> dict[str, object]:
        """EVE ``nfs`` object."""
        names = [_name_of(self.version, operation) or str(operation) for operation in self._operations[:64]]
        fields: dict[str, object] = {"version": self.version, "procedure": names[0].upper()}
        if len(names) > 1:
            fields["operations"] = [name.upper() for name in names[1:]]
        if self.name:
            fields["filename"] = self.name[:1024].decode("utf-8", "backslashreplace")
        return fields


def _name_of(version: int, procedure: int) -> str:
    names = PROCEDURES.get(version, ())
    return names[procedure] if procedure < len(names) else ""


class _CutError(Exception):
    """The bytes end before the value."""


class _Reader:
    """XDR (RFC 4506) of one message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise _CutError

    def take(self, size: int) -> bytes:
        self.skip(size)
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def opaque(self) -> bytes:
        size = self.number()
        value = self.take(size)
        self.skip(-size % 4)
        return value

    def words(self) -> None:
        self.skip(4 * self.number())


def _operations(reader: _Reader) -> list[int]:
    """The operations of a compound, as far as they can be told apart."""
    found: list[int] = []
    try:
        reader.opaque()  # tag
        reader.skip(4)  # minor version
        for _ in range(min(reader.number(), _MAX_OPERATIONS)):
            operation = reader.number()
            found.append(operation)
            special = _SPECIAL.get(operation)
            if special is not None:
                special(reader)
                continue
            if operation not in _ARGUMENTS:
                break
            for argument in _ARGUMENTS[operation]:
                if isinstance(argument, int):
                    reader.skip(argument)
                elif argument == "b":
                    reader.words()
                else:
                    reader.opaque()
    except _CutError:
        pass
    return found


def _create(reader: _Reader) -> None:
    kind = reader.number()
    if kind == 5:  # a link
        reader.opaque()
    elif kind in (3, 4):  # a device
        reader.skip(8)
    reader.opaque()
    reader.words()
    reader.opaque()


def _lock(reader: _Reader) -> None:
    reader.skip(24)
    if reader.number():  # of a new owner
        reader.skip(32)
        reader.opaque()
    else:
        reader.skip(20)


def _open(reader: _Reader) -> None:
    reader.skip(20)
    reader.opaque()
    if reader.number() == 1:  # to be created
        mode = reader.number()
        if mode in (2, 3):
            reader.skip(8)
        if mode != 2:
            reader.words()
            reader.opaque()
    claim = reader.number()
    reader.skip({1: 4, 2: 16, 5: 16}.get(claim, 0))
    if claim in (0, 2, 3):
        reader.opaque()


_SPECIAL: dict[int, Callable[[_Reader], None]] = {_CREATE: _create, _LOCK: _lock, _OPEN: _open}


def looks_like_call(data: bytes) -> bool | None:
    """Whether these bytes begin a call of NFS (RFC 5531, section 9)."""
    expected = _CALL.to_bytes(4, "big") + _RPC_VERSION.to_bytes(4, "big") + PROGRAM.to_bytes(4, "big")
    head = data[4:16]
    if not expected.startswith(head):
        return False
    if len(data) < 20:
        return None
    return 2 <= int.from_bytes(data[16:20], "big") <= 4


class NfsParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``udp``: one feed is one datagram."""

    name = "nfs"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False, udp: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._udp = udp
        self._buffers = (bytearray(), bytearray())
        self._skip = [0, 0]  # bytes of a fragment that nobody looks at
        self._records = (bytearray(), bytearray())  # what is there of a record of several fragments
        # identifier of a call -> what waits for its reply; handle -> name of a file; oldest first
        self._open: OrderedDict[bytes, NfsTransaction] = OrderedDict()
        self._handles: OrderedDict[bytes, bytes] = OrderedDict()

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        if self._udp:
            self._message(direction, data, False)
            return
        skipped = min(self._skip[direction], len(data))
        self._skip[direction] -= skipped
        buffer = self._buffers[direction]
        buffer += data[skipped:]
        at = 0
        while len(buffer) - at >= 4 and not self._skip[direction]:
            mark = int.from_bytes(buffer[at : at + 4], "big")
            size = mark & ~_LAST
            record = self._records[direction]
            seen = min(size, max(self._limits.nfs_message - len(record), 0))
            start, end = at + 4, at + 4 + size
            if len(buffer) - start < seen:
                break
            record += buffer[start : start + seen]
            if mark & _LAST:
                self._message(direction, bytes(record), seen < size)
                record.clear()
            self._skip[direction] = max(end - len(buffer), 0)
            at = min(end, len(buffer))
        del buffer[:at]

    def close(self, direction: Direction) -> None:
        if direction is _S:
            for tx in self._open.values():
                tx.finish(_S)
            self._open.clear()

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._buffers[direction])

    def _message(self, direction: Direction, data: bytes, cut: bool) -> None:
        reader = _Reader(data)
        try:
            identifier, kind = reader.take(4), reader.number()
            if kind == _CALL and direction is _C:
                self._call(identifier, reader)
            elif kind == _REPLY and direction is _S:
                self._reply(identifier, reader)
            elif kind not in (_CALL, _REPLY):  # a server calls back on the same connection (RFC 8881, section 2.10.3.1)
                self._malformed(direction)
        except _CutError:
            if not cut:
                self._malformed(direction)

    def _call(self, identifier: bytes, reader: _Reader) -> None:
        if reader.number() != _RPC_VERSION:
            self._malformed(_C)
            return
        program, version, procedure = reader.number(), reader.number(), reader.number()
        if program != PROGRAM:
            return
        tx = NfsTransaction(self.take_id(), version, procedure)
        try:
            for _ in range(2):  # credential and verifier
                reader.skip(4)
                if len(reader.opaque()) > _MAX_AUTH:
                    tx.add_event("malformed_data")
            if version == 4 and procedure == _COMPOUND:
                tx.compound(_operations(reader))
            else:
                self._file(tx, reader)
        except _CutError:
            tx.add_event("malformed_data")
        tx.finish(_C)
        self.transactions.append(tx)
        before = self._open.pop(identifier, None)
        if before is not None:
            before.finish(_S)
        self._open[identifier] = tx
        if len(self._open) > self._limits.nfs_open:
            _, oldest = self._open.popitem(last=False)
            oldest.add_event("too_many_transactions")
            oldest.finish(_S)

    def _file(self, tx: NfsTransaction, reader: _Reader) -> None:
        """What a call of version 2 or 3 is about."""
        kind = _name_of(tx.version, tx.procedure)
        if kind not in {"lookup", "create", "read", "write"}:
            return
        handle = reader.take(32) if tx.version == 2 else reader.opaque()
        if kind in {"read", "write"}:
            tx.name = self._handles.get(handle, b"")
        else:
            tx.name, tx.handles = reader.opaque(), True

    def _reply(self, identifier: bytes, reader: _Reader) -> None:
        tx = self._open.pop(identifier, None)
        if tx is None:
            return
        tx.finish(_S)
        accepted = not reader.number()
        if not accepted or not tx.handles:
            return
        reader.skip(4)
        reader.opaque()  # verifier
        if reader.number() or reader.number():  # of the call, of what it asked for
            return
        if tx.version == 3 and _name_of(3, tx.procedure) == "create" and not reader.number():
            return
        handle = reader.take(32) if tx.version == 2 else reader.opaque()
        self._handles[handle] = tx.name
        if len(self._handles) > self._limits.nfs_open:
            self._handles.popitem(last=False)

    def _malformed(self, direction: Direction) -> None:
        tx = NfsTransaction(self.take_id(), 0, 0)
        tx.add_event("malformed_data")
        tx.finish(direction)
        tx.skip(direction.reply)
        self.transactions.append(tx)

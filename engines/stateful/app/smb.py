"""SMB 1, 2 and 3: one transaction per command, per file and direction, and per DCERPC call on a pipe.

Promise: nothing raises, every table is bounded, and no more of a record is kept than ``AppLimits.smb_record``. Data of
files is not waited for; of other records what is beyond that is passed over. Encrypted and compressed records are
passed over.

::

    length-framed records ──► messages (compounded, AndX) ─┬─ tree connect ──► share or pipe
                                                           ├─ create / close ──► names of files
                                                           ├─ read / write ─┬─ pipe ──► DCERPC
                                                           │                └─ file ──► file.data
                                                           └─ pipe transceive ──► DCERPC

Source: [MS-CIFS], [MS-SMB2], [MS-NLMP]; Suricata user guide, "SMB Keywords", and smb-events.rules.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from engines.stateful.app.dcerpc import Call, CallTransaction, Dialogue, looks_like_pdu
from engines.stateful.app.files import File, Files
from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser
from engines.verdict import Direction

_V = TypeVar("_V")
_UP, _DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
_HEADER1, _HEADER2, _HEADER3 = 32, 64, 52
_RECORD = re.compile(rb"\0[\s\S]{3}[\xfe\xff]SMB")
_PIPE_TRANSCEIVE = 0x0011C017
_PENDING = 0x103
_NO_DATA = frozenset({0xC0000011})  # end of file
_SUCCESS = frozenset({0, 0x80000005})  # and: more of the message follows
_NTLM_AUTHENTICATE = b"NTLMSSP\0\x03\0\0\0"
_MAX_CHAIN = 32  # messages of one record
_OVERHEAD = 64  # of a piece of a file that waits, besides its bytes
_ENOUGH = 256  # bytes of a record by which it is clear what the rest is


class _Commands2:
    SESSION_SETUP, TREE_CONNECT, CREATE, CLOSE, READ, WRITE, IOCTL = 1, 3, 5, 6, 8, 9, 11


class _Commands1:
    CLOSE, TRANS, READ, WRITE, TRANS2, NEGOTIATE = 0x04, 0x25, 0x2E, 0x2F, 0x32, 0x72
    SESSION_SETUP, TREE_CONNECT, CREATE = 0x73, 0x75, 0xA2


# Commands without a transaction of their own (Suricata: smb1_create_new_tx, smb2_create_new_tx).
_SILENT1 = frozenset({_Commands1.READ, _Commands1.WRITE, _Commands1.TRANS, _Commands1.TRANS2})
_SILENT2 = frozenset({_Commands2.READ, _Commands2.WRITE, 16, 17})
# Commands another may follow in the same message; the last three: locking, opening, logoff.
_ANDX = frozenset({0x2E, 0x2F, 0x73, 0x75, 0xA2, 0x24, 0x2D, 0x74})


class SmbTransaction(CallTransaction):
    """``version`` is 1, or 2 for everything since."""

    __slots__ = ("command", "domain", "files", "is_pipe", "share", "side", "user", "version")

    def __init__(self, tx_id: int, version: int, command: int, call: Call | None = None) -> None:
        super().__init__(tx_id, call)
        self.version = version
        self.command = command
        self.share = b""
        self.is_pipe = False
        self.user = b""
        self.domain = b""
        self.files: Files | None = None
        self.side = _UP  # the way the file goes

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if name == "smb.version":
            return (bytes([self.version]),)
        if name.startswith("file."):
            return () if self.files is None or direction is self.side.reply else self.files.buffer(name)
        if name.startswith("dcerpc."):
            return super().buffer(name, direction)
        if direction is _DOWN:
            return ()
        value = b""
        if name == "smb.share":
            value = b"" if self.is_pipe else self.share
        elif name == "smb.named_pipe":
            value = self.share if self.is_pipe else b""
        elif name == "smb.ntlmssp_user":
            value = self.user
        elif name == "smb.ntlmssp_domain":
            value = self.domain
        return (value,) if value else ()

    def add_event(self, event: str) -> None:
        if event not in self.events:
            super().add_event(event)
            for side in Direction:
                self.touch(side)

    def log_fields(self) -> dict[str, object]:
        """EVE ``smb`` object."""
        fields: dict[str, object] = {"id": self.id + 1, "version": self.version, "command": self.command}
        if self.share:
            fields["named_pipe" if self.is_pipe else "share"] = _text(self.share)
        if self.user or self.domain:
            fields["ntlmssp"] = {"domain": _text(self.domain), "user": _text(self.user)}
        if self.files is not None and self.files.names:
            fields["filename"] = _text(self.files.names[0])
        if self.call is not None:
            fields["dcerpc"] = super().log_fields()
        return fields


def _text(value: bytes) -> str:
    return value[:1024].decode("utf-8", "backslashreplace")


class _Transfer:
    """A file on its way, from offsets to a stream; what comes early waits, as much as rules may see."""

    __slots__ = ("_early", "_early_size", "_file", "_limit", "_next", "_number", "tx")

    def __init__(self, tx: SmbTransaction, file: File, limits: AppLimits) -> None:
        self.tx = tx
        self._file = file
        self._limit = limits.file
        self._next = 0
        self._early: list[tuple[int, int, bytes]] = []  # a heap: offset, which came when, bytes
        self._early_size = 0
        self._number = 0

    def data(self, offset: int, data: bytes) -> None:
        if offset < self._next:
            self.tx.add_event("file_overlap")
            data = data[self._next - offset :]
            offset = self._next
        if not data:
            return
        if offset > self._next and not self._file.full:
            self._number += 1
            heapq.heappush(self._early, (offset, self._number, data))
            self._early_size += len(data) + _OVERHEAD
            if self._early_size <= self._limit:
                return
            self._rest()
        else:
            self._take(offset, data)
            while self._early and self._early[0][0] <= self._next:
                self._first_early()
        self.tx.touch(self.tx.side)

    def end(self) -> None:
        self._rest()
        if self.tx.files is not None:
            self.tx.files.close()
        for side in Direction:
            self.tx.finish(side)

    def _take(self, offset: int, data: bytes) -> None:
        self._file.feed(data)
        self._next = offset + len(data)

    def _first_early(self) -> None:
        offset, _, data = heapq.heappop(self._early)
        self._early_size -= len(data) + _OVERHEAD
        data = data[max(self._next - offset, 0) :]
        if data:
            self._take(max(offset, self._next), data)

    def _rest(self) -> None:
        """What lies before was never sent."""
        while self._early:
            self._first_early()


class _Sent(NamedTuple):
    """What the response to a request needs to know."""

    tx: SmbTransaction | None
    command: int
    tree: bytes
    file: bytes = b""
    name: bytes = b""
    offset: int = 0


class _Side:
    __slots__ = ("buffer", "file_at", "file_left", "lost", "skip", "transfer")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.skip = 0  # bytes to come of a record whose messages were read
        self.transfer: _Transfer | None = None  # takes the first of them, at that offset
        self.file_at = 0
        self.file_left = 0
        self.lost = False


class SmbParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "smb"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._sides = (_Side(), _Side())
        # All keyed by bytes of the wire, oldest first, at most AppLimits.smb_table of each.
        self._sent: dict[tuple[int, bytes], _Sent] = {}
        self._trees: dict[bytes, bool] = {}  # whether it is for pipes
        self._names: dict[bytes, bytes] = {}
        self._transfers: dict[tuple[bytes, Direction], _Transfer] = {}
        self._pipes: dict[bytes, Dialogue] = {}
        self._last: SmbTransaction | None = None
        self._call: tuple[int, int] = (2, 0)  # version and command of the record being read

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        if side.skip:
            skipped = min(side.skip, len(data))
            self._more(side, data[:skipped])
            data = data[skipped:]
        buffer = side.buffer
        buffer += data
        at = 0
        while not side.skip:
            after = self._record(direction, side, at)
            if after == at:
                break
            at = after
        del buffer[:at]

    def close(self, direction: Direction) -> None:
        side = self._sides[direction]
        side.buffer.clear()
        side.skip, side.transfer, side.lost = 0, None, True
        for pipe in self._pipes.values():
            pipe.lost(direction)
        for key in [key for key in self._transfers if key[1] is direction]:
            self._transfers.pop(key).end()
        if direction is _DOWN:
            for pipe in self._pipes.values():
                pipe.end()
            for sent in self._sent.values():
                if sent.tx is not None:
                    sent.tx.finish(_UP)
                    sent.tx.finish(_DOWN)
            self._sent.clear()

    def held(self, direction: Direction) -> int:
        return len(self._sides[direction].buffer)

    # -- framing ---------------------------------------------------------------------------------------------------

    def _record(self, direction: Direction, side: _Side, at: int) -> int:
        """One record with its length before it ([MS-SMB2], section 2.1); the same offset when it is not complete."""
        buffer = side.buffer
        if side.lost:
            found = _RECORD.search(buffer, at)
            if found is None:
                return max(at, len(buffer) - 7)
            side.lost, at = False, found.start()
        if len(buffer) - at < 4:
            return at
        size = int.from_bytes(buffer[at + 1 : at + 4], "big")
        seen = min(size, self._limits.smb_record)
        start = at + 4
        if len(buffer) - start < seen:
            message = bytes(buffer[start : start + _ENOUGH])
            if len(message) < _ENOUGH or self._limits.frames or not self._is_file_data(direction, message):
                return at
            message = bytes(buffer[start:])
            self._messages(direction, message)
            side.skip = size - len(message)
            return len(buffer)
        if not buffer[at]:
            message = bytes(buffer[start : start + seen])
            self._messages(direction, message)
            if self._limits.frames:
                self._frames(direction, bytes(buffer[at:start]), message)
        side.skip = max(size - (len(buffer) - start), 0)
        if not side.skip:
            side.transfer = None
        return min(start + size, len(buffer))

    def _more(self, side: _Side, data: bytes) -> None:
        """The next bytes of a record whose messages were read: of a file, if it carries one."""
        side.skip -= len(data)
        if side.transfer is None:
            return
        taken = data[: side.file_left]
        side.transfer.data(side.file_at, taken)
        side.file_at += len(taken)
        side.file_left -= len(taken)
        if not side.file_left or not side.skip:
            side.transfer = None

    def _is_file_data(self, direction: Direction, message: bytes) -> bool:
        """The rest of this record is data of a file, which need not be waited for: nothing is written or read before
        the record is complete, and every piece is judged."""
        if message[:4] == b"\xfeSMB":
            command, body = _number(message, 12, 2), message[_HEADER2:]
            if _number(message, 20, 4):
                return False
            if direction is _UP and command == _Commands2.WRITE:
                tree, file, at = message[36:40] + message[40:48], body[16:32], _number(body, 2, 2)
            elif direction is _DOWN and command == _Commands2.READ:
                sent = self._sent.get((2, message[24:32]))
                if sent is None or sent.command != command:
                    return False
                tree, file, at = sent.tree, sent.file, body[2]
            else:
                return False
        elif message[:4] == b"\xffSMB":
            tree, words = _tree1(message), message[_HEADER1 + 1 :]
            if words[0] != 0xFF:
                return False
            if direction is _UP and message[4] == _Commands1.WRITE:
                file, at = tree + words[4:6], _number(words, 22, 2)
            elif direction is _DOWN and message[4] == _Commands1.READ:
                sent = self._sent.get(_key1(message, message[4]))
                if sent is None:
                    return False
                file, at = sent.file, _number(words, 12, 2)
            else:
                return False
        else:
            return False
        known = self._trees.get(tree)
        return (
            file not in self._pipes
            and not known
            and at <= _ENOUGH - 16
            and (known is False or looks_like_pdu(message[at : at + 16]) is False)
        )

    def _frames(self, direction: Direction, head: bytes, record: bytes) -> None:
        """The pieces of a record that rules on frames ask for."""

        def add(kind: str, hdr: bytes, data: bytes) -> None:
            made = {f"frame.smb.{kind}.pdu": hdr + data, f"frame.smb.{kind}.hdr": hdr, f"frame.smb.{kind}.data": data}
            self.transactions.append(FrameTransaction(self.take_id(), direction, made))

        add("nbss", head, record)
        if record[:4] == b"\xffSMB":
            add("smb1", record[:_HEADER1], record[_HEADER1:])
        elif record[:4] == b"\xfdSMB":
            add("smb3", record[:_HEADER3], record[_HEADER3:])
        for _ in range(_MAX_CHAIN):
            if len(record) < _HEADER2 or record[:4] != b"\xfeSMB":
                break
            following = _number(record, 20, 4)
            message = record[:following] if following else record
            add("smb2", message[:_HEADER2], message[_HEADER2:])
            if following < _HEADER2:
                break
            record = record[following:]

    def _messages(self, direction: Direction, record: bytes) -> None:
        kind = record[:4]
        if kind == b"\xffSMB" and len(record) > _HEADER1:
            self._message1(direction, record)
        elif kind == b"\xfeSMB":
            for _ in range(_MAX_CHAIN):
                if len(record) < _HEADER2 or record[:4] != b"\xfeSMB":
                    break
                following = _number(record, 20, 4)
                self._message2(direction, record[:following] if following else record)
                if following < _HEADER2:
                    break
                record = record[following:]

    # -- version 2 -------------------------------------------------------------------------------------------------

    def _message2(self, direction: Direction, message: bytes) -> None:
        command, status = _number(message, 12, 2), _number(message, 8, 4)
        key = (2, message[24:32])  # message id
        tree = message[36:40] + message[40:48]  # tree and session
        self._call = (2, command)
        response = bool(_number(message, 16, 4) & 1)
        if response != (direction is _DOWN):
            return
        if not response:
            self._remember(key, self._request2(message, command, tree))
        elif status != _PENDING:
            self._response2(message, command, status, tree, self._sent.pop(key, None))

    def _request2(self, message: bytes, command: int, tree: bytes) -> _Sent:
        body = message[_HEADER2:]
        if command == _Commands2.WRITE:
            file = body[16:32]
            data = _slice(message, _number(body, 2, 2), _number(body, 4, 4))
            self._carried(_UP, tree, file, _number(body, 8, 8), data, _number(body, 4, 4))
            return _Sent(None, command, tree, file)
        if command == _Commands2.READ:
            return _Sent(None, command, tree, body[16:32], b"", _number(body, 8, 8))
        if command == _Commands2.IOCTL and _number(body, 4, 4) == _PIPE_TRANSCEIVE:
            file = body[8:24]
            self._pipe(file).feed(_UP, _slice(message, _number(body, 24, 4), _number(body, 28, 4)), self._begin)
            return _Sent(None, command, tree, file)
        tx = None if command in _SILENT2 else self._begin()
        sent = _Sent(tx, command, tree)
        if command == _Commands2.CREATE:
            sent = _Sent(tx, command, tree, b"", _plain(_slice(message, _number(body, 44, 2), _number(body, 46, 2))))
        elif command == _Commands2.CLOSE:
            self._closed(body[8:24])
        elif tx is not None and command == _Commands2.TREE_CONNECT:
            tx.share = _share(_slice(message, _number(body, 4, 2), _number(body, 6, 2)))
        elif tx is not None and command == _Commands2.SESSION_SETUP:
            _authenticate(tx, _slice(message, _number(body, 12, 2), _number(body, 14, 2)))
        self._asked(tx)
        return sent

    def _response2(self, message: bytes, command: int, status: int, tree: bytes, sent: _Sent | None) -> None:
        body = message[_HEADER2:]
        if sent is None:
            if command == 0:
                self._negotiated()
            return
        tx = sent.tx
        if command == _Commands2.READ:
            if status in _NO_DATA:
                self._ended(sent.file, _DOWN)
            elif status in _SUCCESS:
                size = _number(body, 4, 4)
                data = _slice(message, body[2] if len(body) > 2 else 0, size)
                self._carried(_DOWN, sent.tree, sent.file, sent.offset, data, size)
        elif command == _Commands2.IOCTL and tx is None:
            self._pipe(sent.file).feed(_DOWN, _slice(message, _number(body, 32, 4), _number(body, 36, 4)), self._begin)
        elif command == _Commands2.CREATE and not status:
            self._put(self._names, body[64:80], sent.name)
        elif command == _Commands2.TREE_CONNECT and tx is not None and not status:
            tx.is_pipe = body[2:3] == b"\x02"
            self._put(self._trees, tree, tx.is_pipe)
        self._answered(tx)

    # -- version 1 -------------------------------------------------------------------------------------------------

    def _message1(self, direction: Direction, message: bytes) -> None:
        response = bool(message[9] & 0x80)
        if response != (direction is _DOWN):
            return
        command, at = message[4], _HEADER1
        tree = _tree1(message)
        for _ in range(_MAX_CHAIN):
            key = _key1(message, command)
            self._call = (1, command)
            size = 2 * message[at] if at < len(message) else 0
            words = message[at + 1 : at + 1 + size]
            data = at + 3 + size
            if response:
                sent = self._sent.pop(key, None)
                self._response1(message, command, words, data, tree, sent)
            else:
                self._remember(key, self._request1(message, command, words, data, tree))
            following = _number(words, 2, 2)
            if command not in _ANDX or len(words) < 4 or words[0] == 0xFF or following <= at:
                break
            command, at = words[0], following

    def _request1(self, message: bytes, command: int, words: bytes, at: int, tree: bytes) -> _Sent:
        wide = bool(_number(message, 10, 2) & 0x8000)
        if command == _Commands1.WRITE:
            file = tree + words[4:6]
            size = _number(words, 20, 2) | _number(words, 18, 2) << 16
            offset = _number(words, 6, 4) | _number(words, 24, 4) << 32
            self._carried(_UP, tree, file, offset, _slice(message, _number(words, 22, 2), size), size)
            return _Sent(None, command, tree, file)
        if command == _Commands1.READ:
            offset = _number(words, 6, 4) | _number(words, 20, 4) << 32
            return _Sent(None, command, tree, tree + words[4:6], b"", offset)
        if command == _Commands1.TRANS:
            if _number(words, 28, 2) != 0x26:
                return _Sent(None, command, tree)
            file = tree + words[30:32]
            self._pipe(file).feed(_UP, _slice(message, _number(words, 24, 2), _number(words, 22, 2)), self._begin)
            return _Sent(None, command, tree, file)
        tx = None if command in _SILENT1 else self._begin()
        sent = _Sent(tx, command, tree)
        if command == _Commands1.CREATE:
            at += wide and at % 2
            sent = _Sent(tx, command, tree, b"", _plain(_slice(message, at, _number(words, 5, 2))))
        elif command == _Commands1.CLOSE:
            self._closed(tree + words[:2])
        elif tx is not None and command == _Commands1.TREE_CONNECT:
            at += _number(words, 6, 2)
            name, service = _path(message, at, wide)
            tx.share = _share(name)
            tx.is_pipe = service == b"IPC"
        elif tx is not None and command == _Commands1.SESSION_SETUP:
            _authenticate(tx, _slice(message, at, _number(words, 14, 2)))
        self._asked(tx)
        return sent

    def _response1(self, message: bytes, command: int, words: bytes, at: int, tree: bytes, sent: _Sent | None) -> None:
        if sent is None:
            return
        tx, status = sent.tx, _number(message, 5, 4)
        if command == _Commands1.READ and status in _SUCCESS:
            size = _number(words, 10, 2) | _number(words, 14, 2) << 16
            data = _slice(message, _number(words, 12, 2), size)
            self._carried(_DOWN, sent.tree, sent.file, sent.offset, data, size)
        elif command == _Commands1.TRANS and sent.file:
            self._pipe(sent.file).feed(
                _DOWN, _slice(message, _number(words, 14, 2), _number(words, 12, 2)), self._begin
            )
        elif command == _Commands1.CREATE and not status:
            self._put(self._names, sent.tree + words[5:7], sent.name)
        elif command == _Commands1.TREE_CONNECT and tx is not None and not status:
            tx.is_pipe = tx.is_pipe or message[at : at + 3] == b"IPC"
            self._put(self._trees, tree, tx.is_pipe)
        self._answered(tx)

    def _negotiated(self) -> None:
        """A first request of version 1 that offered more was answered in version 2 ([MS-SMB2], section 3.3.5.3)."""
        for key, sent in self._sent.items():
            if sent.command == _Commands1.NEGOTIATE and key[0] == _Commands1.NEGOTIATE << 8:
                del self._sent[key]
                self._answered(sent.tx)
                return

    # -- transactions ----------------------------------------------------------------------------------------------

    def _begin(self, call: Call | None = None) -> SmbTransaction:
        version, command = self._call
        tx = self._last = SmbTransaction(self.take_id(), version, command, call)
        self.transactions.append(tx)
        return tx

    def _asked(self, tx: SmbTransaction | None) -> None:
        if tx is not None:
            tx.finish(_UP)

    def _answered(self, tx: SmbTransaction | None) -> None:
        if tx is not None:
            tx.touch(_UP)  # what the response says about the request
            tx.finish(_DOWN)

    def _remember(self, key: tuple[int, bytes], sent: _Sent) -> None:
        self._sent.pop(key, None)
        if len(self._sent) >= self._limits.smb_table:
            oldest = self._sent.pop(next(iter(self._sent)))
            if oldest.tx is not None:
                oldest.tx.finish(_DOWN)
        self._sent[key] = sent

    def _put(self, table: dict[bytes, _V], key: bytes, value: _V) -> None:
        table.pop(key, None)
        if len(table) >= self._limits.smb_table:
            del table[next(iter(table))]
        table[key] = value

    # -- files and pipes -------------------------------------------------------------------------------------------

    def _carried(self, direction: Direction, tree: bytes, file: bytes, offset: int, data: bytes, size: int) -> None:
        """Bytes read or written, ``size`` of them, the last of which may still come."""
        known = self._trees.get(tree)
        if file in self._pipes:
            self._pipes[file].feed(direction, data, self._begin)
        elif known or (known is None and looks_like_pdu(data[:16])):
            if looks_like_pdu(data[:16]) is not False:
                self._pipe(file).feed(direction, data, self._begin)
        else:
            transfer = self._transfer(file, direction)
            transfer.data(offset, data)
            side = self._sides[direction]
            side.transfer, side.file_at, side.file_left = transfer, offset + len(data), size - len(data)

    def _pipe(self, file: bytes) -> Dialogue:
        pipe = self._pipes.get(file)
        if pipe is None:
            if len(self._pipes) >= self._limits.smb_pipes:
                self._pipes.pop(next(iter(self._pipes))).end()
            pipe = self._pipes[file] = Dialogue(self._limits, 8)
        return pipe

    def _transfer(self, file: bytes, direction: Direction) -> _Transfer:
        transfer = self._transfers.get((file, direction))
        if transfer is None:
            if len(self._transfers) >= self._limits.smb_files:
                self._transfers.pop(next(iter(self._transfers))).end()
            tx = self._begin()
            tx.side = direction
            tx.files = Files(self._limits)
            opened = tx.files.open(self._names.get(file, b""))
            transfer = self._transfers[file, direction] = _Transfer(tx, opened, self._limits)
        return transfer

    def _ended(self, file: bytes, direction: Direction) -> None:
        transfer = self._transfers.pop((file, direction), None)
        if transfer is not None:
            transfer.end()

    def _closed(self, file: bytes) -> None:
        for direction in Direction:
            self._ended(file, direction)
        self._names.pop(file, None)
        pipe = self._pipes.pop(file, None)
        if pipe is not None:
            pipe.end()


def _tree1(message: bytes) -> bytes:
    """Tree and user of a message of version 1."""
    return b"1" + message[24:26] + message[28:30]


def _key1(message: bytes, command: int) -> tuple[int, bytes]:
    """Command, process and multiplex id of a message of version 1."""
    return command << 8, message[26:28] + message[30:32]


def _number(data: bytes, at: int, size: int) -> int:
    """Little endian; what is beyond the end counts as zero."""
    return int.from_bytes(data[at : at + size], "little")


def _slice(message: bytes, at: int, size: int) -> bytes:
    return message[at : at + size] if at else b""


def _plain(name: bytes) -> bytes:
    """As Suricata shows UTF-16: without its zeros."""
    return name.replace(b"\0", b"")


def _share(path: bytes) -> bytes:
    """As Suricata shows it: without the first of the two backslashes."""
    name = _plain(path)
    return name[1:] if len(name) > 1 else name


def _path(message: bytes, at: int, wide: bool) -> tuple[bytes, bytes]:
    """Path and service of a tree connect ([MS-CIFS], section 2.2.4.55.1)."""
    if not wide:
        path, _, rest = message[at:].partition(b"\0")
        return path, rest.partition(b"\0")[0]
    at += at % 2
    end = at
    while message[end : end + 2] not in {b"\0\0", b""}:
        end += 2
    return message[at:end], message[end + 2 :].partition(b"\0")[0]


def _authenticate(tx: SmbTransaction, token: bytes) -> None:
    """User and domain of an NTLM AUTHENTICATE_MESSAGE ([MS-NLMP], section 2.2.1.3), wherever it is wrapped."""
    at = token.find(_NTLM_AUTHENTICATE)
    if at < 0:
        return
    message = token[at:]
    tx.domain = _plain(_slice(message, _number(message, 32, 4), _number(message, 28, 2)))
    tx.user = _plain(_slice(message, _number(message, 40, 4), _number(message, 36, 2)))

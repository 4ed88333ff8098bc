"""FTP: commands and replies in lines, one transaction per command; and the connections for files it announces.

Promise: nothing raises, what is kept is bounded. Replies are matched to commands in their order; a reply of several
lines is one, and a preliminary one (1xx) leaves its command open. What a client sends after AUTH waits for the reply
that says whether it is TLS.

Source: RFC 959, 2228, 2428, 3659; Suricata user guide, "FTP/FTP-DATA Keywords", and ftp-events.rules.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from engines.stateful.app.files import Files
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.stateful.expect import Expected
from engines.verdict import Direction

COMMANDS = frozenset(
    b"ABOR ACCT ALLO APPE CDUP CHMOD CWD DELE EPRT EPSV HELP IDLE LIST MAIL MDTM MKD MLFL MLSD MODE MRCP MRSQ MSAM "
    b"MSND MSOM NLST NOOP PASS PASV PORT PWD QUIT REIN REST RETR RMD RNFR RNTO SITE SIZE SMNT STAT STOR STOU STRU SYST "
    b"TYPE UMASK USER".split()
)
_AUTH_TLS = b"AUTH TLS"
# Commands that use a connection of their own: whether the client sends, and whether it carries a file.
TRANSFERS = {
    b"RETR": (False, True),
    b"STOR": (True, True),
    b"APPE": (True, True),
    b"STOU": (True, True),
    b"LIST": (False, False),
    b"NLST": (False, False),
    b"MLSD": (False, False),
}
_ADDRESS = re.compile(rb"(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3})")
_PORT_ONLY = re.compile(rb"\(([!-~])\1\1(\d{1,5})\1\)")  # EPSV: RFC 2428, section 3
_EXTENDED = re.compile(rb"([!-~])[12]\1([^|]*?)\1(\d{1,5})\1")  # EPRT: section 2
_REPLY = re.compile(rb"(\d{3})([ -]|\Z)")


class FtpTransaction(BaseTransaction):
    """A command and its replies. ``command`` is upper case, b"" one that is not known (or none: the greeting)."""

    __slots__ = ("active", "argument", "bounce", "command", "done", "port", "replies", "reply_size", "unanswered")

    def __init__(self, tx_id: int, command: bytes, argument: bytes) -> None:
        super().__init__(tx_id)
        self.command = command
        self.argument = argument
        self.replies: list[tuple[bytes, bytes]] = []
        self.reply_size = 0
        self.port = 0  # announced for a connection
        self.active = False
        self.bounce = False  # to another host than the client
        self.done = False
        self.unanswered = False

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if not self.command:
            return ()
        if direction is not Direction.TO_CLIENT:
            if name == "ftp.command":
                return (self.command,)
            if name == "ftp.command_data":
                return (self.argument,) if self.argument else ()
            if name == "ftpbounce":
                return (b"1",) if self.bounce else ()
        if name == "ftp.dynamic_port":
            return (self.port.to_bytes(2, "big"),) if self.done else ()
        if name == "ftp.mode":
            return (b"active" if self.active else b"passive",) if self.port else ()
        if direction is not Direction.TO_SERVER:
            if name == "ftp.reply":
                return [text for _, text in self.replies if text]
            if name == "ftp.completion_code":
                return [code for code, _ in self.replies if code]
            if name == "ftp.reply_received":
                return (b"1",) if self.done else (b"0",) if self.unanswered else ()
        return ()

    def add_event(self, event: str) -> None:
        if event not in self.events:
            super().add_event(event)
            for side in Direction:
                self.touch(side)

    def log_fields(self) -> dict[str, object]:
        """EVE ``ftp`` object."""
        fields: dict[str, object] = {}
        if self.command:
            fields["command"] = self.command.decode()
        if self.argument:
            fields["command_data"] = _text(self.argument)
        if self.replies:
            fields["reply"] = [_text(text) for _, text in self.replies[:64]]
            fields["completion_code"] = [code.decode() for code, _ in self.replies[:64] if code]
        if self.port:
            fields["dynamic_port"] = self.port
            fields["mode"] = "active" if self.active else "passive"
        fields["reply_received"] = "yes" if self.done else "no"
        return fields


def _text(value: bytes) -> str:
    return value[:1024].decode("utf-8", "backslashreplace")


class FtpParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`."""

    name = "ftp"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._client = b""
        self._buffers = (bytearray(), bytearray())  # an incomplete line, or what waits for the reply to AUTH
        self._skipping = [False, False]  # the rest of a line that was too long
        self._open: deque[FtpTransaction] = deque()  # without their last reply
        self._last: FtpTransaction | None = None
        self._more = b""  # the code of a reply of several lines
        self._port, self._active = 0, False  # announced for the next transfer

    def begin(self, client: bytes, server: bytes, expected: Expected | None) -> None:
        self._client = client

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self.tunnel:
            return
        buffer = self._buffers[direction]
        if direction is Direction.TO_SERVER and self._waits():
            buffer += data
            if len(buffer) > self._limits.dialogue_early:
                self.give_up("auth_without_answer")
            return
        self._lines(direction, data)

    def close(self, direction: Direction) -> None:
        if direction is not Direction.TO_CLIENT or self.tunnel:
            return
        while self._open:
            tx = self._open.popleft()
            tx.unanswered = True
            tx.finish(Direction.TO_SERVER)
            tx.finish(Direction.TO_CLIENT)

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self.tunnel else len(self._buffers[direction])

    def unparsed(self, direction: Direction) -> bytes:
        return bytes(self._buffers[direction])

    def _waits(self) -> bool:
        return bool(self._open) and self._open[-1].command.startswith(b"AUTH")

    def _lines(self, direction: Direction, data: bytes) -> None:
        buffer = self._buffers[direction]
        if buffer:
            data = bytes(buffer) + data
            buffer.clear()
        limit, position = self._limits.dialogue_line, 0
        while position < len(data) and not self.gave_up and not self.tunnel:
            if direction is Direction.TO_SERVER and self._waits():
                break
            end = data.find(b"\n", position) + 1
            if self._skipping[direction]:
                self._skipping[direction] = not end
                position = end or len(data)
                continue
            too_long = (end or len(data)) - position > limit - int(not end)
            if not end and not too_long:
                break
            self._skipping[direction] = not end
            line = data[position : end or len(data)]
            position = end or len(data)
            if too_long:
                line = line[:limit]
            if direction is Direction.TO_SERVER:
                self._request(line.rstrip(b" \t\r\n"), too_long)
            else:
                self._reply(line.rstrip(b" \t\r\n"), too_long)
        buffer += data[position:]

    # -- requests --------------------------------------------------------------------------------------------------

    def _request(self, line: bytes, too_long: bool) -> None:
        if not line:
            return
        word, _, argument = line.partition(b" ")
        command = word.upper()
        if line[: len(_AUTH_TLS)].upper() == _AUTH_TLS:
            command, argument = _AUTH_TLS, line[len(_AUTH_TLS) + 1 :]
        elif command not in COMMANDS and command != b"AUTH":
            command, argument = b"", b""
        tx = FtpTransaction(self.take_id(), command, argument)
        self.transactions.append(tx)
        self._open.append(tx)
        self._last = tx
        if len(self._open) > self._limits.dialogue_pipelined:
            self.give_up("too_many_pipelined_commands")
        if command == b"PORT":
            found = _ADDRESS.match(argument.strip())
            if found is not None and len(self._client) == 4:
                numbers = [int(number) for number in found.groups()[:4]]
                tx.bounce = max(numbers) < 256 and bytes(numbers) != self._client
        elif command in TRANSFERS and self._port:
            upload, _ = TRANSFERS[command]
            self.expects.append(
                Expected("ftp-data", self._port, command.decode().lower(), argument, self._active, upload)
            )
            self._port = 0
        if too_long:
            tx.add_event("request_command_too_long")
        tx.touch(Direction.TO_SERVER)

    # -- replies ---------------------------------------------------------------------------------------------------

    def _reply(self, line: bytes, too_long: bool) -> None:
        found = _REPLY.match(line)
        code = b"" if found is None else found[1]
        tx = self._open[0] if self._open else self._last
        if tx is None:
            tx = self._last = FtpTransaction(self.take_id(), b"", b"")
            self.transactions.append(tx)
            for side in Direction:  # rules have nothing to look at in a greeting
                tx.skip(side)
        if line and tx.reply_size + len(line) <= self._limits.ftp_reply and not (tx.done and not self._more):
            tx.reply_size += len(line)
            # Only the last line of a reply has a code of its own (RFC 959, section 4.2).
            plain = found is not None and found[2] == b" "
            tx.replies.append((code, line[4:]) if plain else (b"", line))
        if too_long:
            tx.add_event("response_command_too_long")
        self._port_of(tx, code, line)
        if found is not None and found[2] == b"-" and not self._more:
            self._more = code
        elif self._more and (code != self._more or found is None or found[2] == b"-"):
            pass  # a line in the middle
        else:
            self._more = b""
            if found is not None and not code.startswith(b"1"):
                self._answered(tx, code)
                return
        if not tx.is_complete(Direction.TO_CLIENT):
            tx.touch(Direction.TO_CLIENT)

    def _answered(self, tx: FtpTransaction, code: bytes) -> None:
        if self._open:
            self._open.popleft()
        tx.done = True
        for side in Direction:
            tx.finish(side)
        if tx.command.startswith(b"AUTH"):
            if code == b"234":
                self.tunnel = True
            elif self._buffers[Direction.TO_SERVER]:
                self._lines(Direction.TO_SERVER, b"")

    def _port_of(self, tx: FtpTransaction, code: bytes, line: bytes) -> None:
        """The port for the next transfer: the client's when its command was answered, the server's in its reply."""
        port, active = 0, False
        if tx.command == b"PORT":
            port, active = _numbers(tx.argument), True
        elif tx.command == b"EPRT":
            found = _EXTENDED.search(tx.argument)
            port, active = int(found[3]) if found is not None else 0, True
        elif tx.command == b"PASV" and code == b"227":
            port = _numbers(line[3:])
        elif tx.command == b"EPSV" and code == b"229":
            found = _PORT_ONLY.search(line)
            port = int(found[2]) if found is not None else 0
        if 0 < port < 1 << 16:
            tx.port, tx.active = port, active
            self._port, self._active = port, active


def _numbers(text: bytes) -> int:
    """The port of six numbers with commas between them; 0 when there are none."""
    found = _ADDRESS.search(text)
    if found is None:
        return 0
    high, low = int(found[5]), int(found[6])
    return high << 8 | low if high < 256 and low < 256 else 0


# --- the connection for a file ---------------------------------------------------------------------------------------


class FtpDataTransaction(BaseTransaction):
    """The whole connection. ``side`` is the way the bytes go."""

    __slots__ = ("command", "files", "side")

    def __init__(self, tx_id: int, limits: AppLimits) -> None:
        super().__init__(tx_id)
        self.files = Files(limits)
        self.command = ""
        self.side = Direction.TO_CLIENT

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        files = direction is None or direction is self.side
        if name.startswith("file."):
            return self.files.buffer(name) if files else ()
        if name == "ftpdata_command" and self.command and (files or self.command not in {"retr", "stor"}):
            return (self.command.encode(),)
        return ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``ftp_data`` object."""
        fields: dict[str, object] = {"command": self.command.upper()}
        if self.files.names:
            fields["filename"] = _text(self.files.names[0])
        return fields


class FtpDataParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``hold_body``: the part of a file that rules can see does not leave
    before all of it is there."""

    name = "ftp-data"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._hold = hold_body
        self._tx = FtpDataTransaction(self.take_id(), limits)
        self.transactions.append(self._tx)
        self._size = 0

    def begin(self, client: bytes, server: bytes, expected: Expected | None) -> None:
        if expected is None:
            return
        tx = self._tx
        tx.command = expected.command
        # The client of an active connection is the server of the dialogue.
        tx.side = Direction.TO_SERVER if expected.upload != expected.active else Direction.TO_CLIENT
        if TRANSFERS[expected.command.upper().encode()][1]:
            tx.files.open(expected.name)
        for side in Direction:
            tx.touch(side)

    def feed(self, direction: Direction, data: bytes) -> None:
        tx = self._tx
        if direction is not tx.side or self.finished:
            return
        self._size += len(data)
        file = tx.files.files[0] if tx.files.files else None
        if file is not None:
            file.feed(data)
            tx.touch(direction)
        if file is None or file.full:
            self._end()  # there is nothing more that rules may see

    def close(self, direction: Direction) -> None:
        if direction is self._tx.side:
            self._end()

    def held(self, direction: Direction) -> int:
        if not self._hold or direction is not self._tx.side or self.finished:
            return 0
        files = self._tx.files.files
        return 0 if files and files[0].filled else self._size

    def _end(self) -> None:
        self._tx.files.close()
        self.finished = True
        for side in Direction:
            self._tx.finish(side)

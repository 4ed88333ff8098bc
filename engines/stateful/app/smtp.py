"""SMTP: a dialogue of lines, with a message in it now and then; one transaction per mail.

Promise: nothing raises, what is kept is bounded, and a line of the dialogue is never taken for one of a message or the
other way round: what a client sends after DATA or STARTTLS waits for the reply that says what it is.

::

    commands ──DATA──► waiting ──354──► message ──"."──► commands
        │ ▲               └─ else ──────────────────────────▲
        │ └── chunk ◄──BDAT                                 │
        └──STARTTLS──► waiting ──220──► tunnel   else ──────┘

Source: RFC 5321, 2920, 3030, 3207; Suricata user guide, "SMTP Keywords" and "Email Keywords", and smtp-events.rules.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Sequence

from engines.stateful.app.files import Files
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.mime import Message
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_CODES = frozenset(
    b"211 214 220 221 235 250 251 252 334 354 421 450 451 452 454 455 500 501 502 503 504 530 534 535 538 550 551 552 "
    b"553 554 555".split()
)
# The buffers of rules and the header fields they hold.
_FIELDS = {
    "email.from": b"from",
    "email.to": b"to",
    "email.cc": b"cc",
    "email.subject": b"subject",
    "email.date": b"date",
    "email.message_id": b"message-id",
    "email.x_mailer": b"x-mailer",
}
_END = re.compile(rb"^\.\r?\n", re.MULTILINE)
_DOT = re.compile(rb"^\.", re.MULTILINE)


class _Command(enum.Enum):
    """What a reply is the reply to."""

    DATA = enum.auto()
    STARTTLS = enum.auto()
    RSET = enum.auto()
    OTHER = enum.auto()


class _State(enum.Enum):
    """What the client's next bytes are."""

    COMMANDS = enum.auto()
    WAITING = enum.auto()
    MESSAGE = enum.auto()
    CHUNK = enum.auto()


class _Session:
    """What all transactions of a connection share."""

    __slots__ = ("helo",)

    def __init__(self) -> None:
        self.helo = b""


class SmtpTransaction(BaseTransaction):
    """From the first command after a mail to the end of the next."""

    __slots__ = ("_session", "anomalies", "files", "mail_from", "message", "rcpt_to", "sending")

    def __init__(self, tx_id: int, session: _Session, limits: AppLimits) -> None:
        super().__init__(tx_id)
        self._session = session
        self.files = Files(limits)
        self.mail_from: bytes | None = None
        self.rcpt_to: list[bytes] = []
        self.message: Message | None = None
        self.sending = False  # the client has said that a message comes
        self.anomalies: list[str] = []  # the message's, not told yet

    @property
    def done(self) -> bool:
        return self.is_complete(Direction.TO_SERVER)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is Direction.TO_CLIENT:
            return ()
        if name.startswith("file."):
            return self.files.buffer(name)
        if name == "smtp.helo":
            return (self._session.helo,) if self._session.helo else ()
        if name == "smtp.mail_from":
            return (self.mail_from,) if self.mail_from else ()
        if name == "smtp.rcpt_to":
            return self.rcpt_to
        message = self.message
        if message is None:
            return ()
        if name == "email.url":
            return message.urls
        if name == "email.received":
            return message.values(b"received")
        field = _FIELDS.get(name)
        return message.values(field)[:1] if field is not None else ()

    def add_event(self, event: str) -> None:
        if event not in self.events:
            super().add_event(event)
            for side in Direction:
                self.touch(side)

    def begin_message(self, limits: AppLimits) -> None:
        """What comes now is a message."""
        self.message = Message(self.files, limits, self.anomalies.append)

    def feed(self, text: bytes) -> None:
        """The next piece of the message."""
        assert self.message is not None
        self.message.feed(text)
        self._tell()

    def _tell(self) -> None:
        for event in self.anomalies:
            self.add_event(event)
        self.anomalies.clear()

    def end(self) -> None:
        """The mail is complete, or given up."""
        if self.message is not None:
            self.message.finish()
            self._tell()
        for side in Direction:
            self.finish(side)

    def log_fields(self) -> dict[str, object]:
        """EVE ``smtp`` object."""
        fields: dict[str, object] = {}
        if self._session.helo:
            fields["helo"] = _text(self._session.helo)
        if self.mail_from:
            fields["mail_from"] = _text(self.mail_from)
        if self.rcpt_to:
            fields["rcpt_to"] = [_text(address) for address in self.rcpt_to[:64]]
        return fields


def _text(value: bytes) -> str:
    return value[:1024].decode("utf-8", "backslashreplace")


class SmtpParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. A message is not held while it comes: no server delivers what does
    not end with its last line, and that one is judged with everything before it."""

    name = "smtp"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._session = _Session()
        self._tx: SmtpTransaction | None = None
        self._buffers = (bytearray(), bytearray())  # an incomplete line, or what waits for a reply
        self._skipping = [False, False]  # the rest of a line that was too long
        self._state = _State.COMMANDS
        self._sent: deque[_Command] = deque()  # commands without a reply
        self._greeted = False
        self._pipelining = False  # the server says it takes commands in groups
        self._mid_line = False  # the message so far does not end with a line
        self._chunk = 0  # bytes of a BDAT chunk to come
        self._last_chunk = False

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self.tunnel:
            return
        if direction is Direction.TO_SERVER:
            if self._tx is not None:
                self._tx.files.judged()
            self._client(data)
        else:
            self._server(data)

    def close(self, direction: Direction) -> None:
        tx = self._tx
        if self.gave_up or self.tunnel or direction is Direction.TO_CLIENT:
            return
        if self._state in (_State.MESSAGE, _State.CHUNK) and self._buffers[0]:
            self._message_bytes(bytes(self._buffers[0]))
            self._buffers[0].clear()
        if tx is not None and not tx.done:
            tx.end()

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self.tunnel else len(self._buffers[direction])

    def unparsed(self, direction: Direction) -> bytes:
        return bytes(self._buffers[direction])

    def _waits(self) -> bool:
        return self._state is _State.WAITING

    # -- the client ------------------------------------------------------------------------------------------------

    def _client(self, data: bytes) -> None:
        buffer = self._buffers[Direction.TO_SERVER]
        if self._waits():
            buffer += data
            self._too_early()
            if len(buffer) > self._limits.dialogue_early:
                self._reply_to_wait(go_ahead=self._sent[-1] is _Command.DATA)
            return
        if buffer:
            data = bytes(buffer) + data
            buffer.clear()
        position = 0
        while position < len(data) and not self.gave_up:
            if self._waits():
                break
            if self._state is _State.COMMANDS:
                after = self._command_line(data, position)
            elif self._state is _State.CHUNK:
                after = self._chunk_bytes(data, position)
            else:
                after = self._message_lines(data, position)
            if after == position:
                break
            position = after
        buffer += data[position:]
        if buffer and self._waits():
            self._too_early()

    def _too_early(self) -> None:
        """The client did not wait for the reply to a command that must be the last of a group (RFC 2920, 3.1)."""
        if not (self._pipelining and self._sent[-1] is _Command.DATA):
            self._event("invalid_pipelined_sequence")

    def _command_line(self, data: bytes, position: int) -> int:
        """One line; the same position when it is not complete."""
        end = data.find(b"\n", position) + 1
        limit = self._limits.dialogue_line
        if self._skipping[0]:
            self._skipping[0] = not end
            return end or len(data)
        if not end:
            if len(data) - position < limit:
                return position
            self._event("truncated_line")
            self._skipping[0] = True
            return len(data)
        line = data[position:end]
        if len(line) > limit:
            self._event("truncated_line")
        else:
            self._command(line.rstrip(b"\r\n"))
        return end

    def _command(self, line: bytes) -> None:
        word = line[:4].upper()
        tx = self._tx
        if tx is None or (tx.done and word not in {b"RSET", b"QUIT"}):
            tx = self._begin()
        if not self._greeted:
            tx.add_event("no_server_welcome_message")
        command = _Command.OTHER
        upper = line[:9].upper()
        if upper.startswith(b"STARTTLS"):
            command = _Command.STARTTLS
        elif word == b"DATA":
            command = _Command.DATA
            tx.sending = True
        elif word == b"BDAT":
            tx.sending = True
            self._bdat(tx, line)
        elif word in {b"HELO", b"EHLO", b"LHLO"}:
            if self._session.helo:
                tx.add_event("duplicate_fields")
            else:
                self._session.helo = _argument(line, 4)
        elif upper == b"MAIL FROM":
            if tx.mail_from is not None:
                tx.add_event("duplicate_fields")
            else:
                tx.mail_from = _argument(line, 9)
        elif upper.startswith(b"RCPT TO"):
            if len(tx.rcpt_to) >= self._limits.mail_recipients:
                self.give_up("too_many_recipients")
            tx.rcpt_to.append(_argument(line, 7))
        elif word == b"RSET":
            command = _Command.RSET
        self._sent.append(command)
        if len(self._sent) > self._limits.dialogue_pipelined:
            self.give_up("too_many_pipelined_commands")
        if command in (_Command.DATA, _Command.STARTTLS):
            self._state = _State.WAITING
        tx.touch(Direction.TO_SERVER)

    def _begin(self) -> SmtpTransaction:
        self._tx = SmtpTransaction(self.take_id(), self._session, self._limits)
        self.transactions.append(self._tx)
        return self._tx

    def _event(self, event: str) -> None:
        if self._tx is not None:
            self._tx.add_event(event)

    # -- messages

    def _message_begins(self) -> None:
        tx = self._tx
        if tx is None or tx.done:
            tx = self._begin()
        elif tx.message is not None:
            # The end of the message before was not seen (Suricata: unparsable_content, a transaction of its own).
            tx.add_event("unparsable_content")
            tx.end()
            tx = self._begin()
        tx.begin_message(self._limits)
        self._mid_line = False

    def _message_lines(self, data: bytes, position: int) -> int:
        """Complete lines up to the one that ends the message; of a line that is too long a piece."""
        tx = self._tx
        assert tx is not None
        whole = data.rfind(b"\n", position) + 1
        rest = len(data) - max(whole, position)
        size = self._limits.dialogue_line
        end = max(whole, position) + rest // size * size
        if end <= position:
            return position
        block = data[position:end]
        found = _END.search(block, int(self._mid_line))
        text = block if found is None else block[: found.start()]
        if b"." in text:
            # RFC 5321, section 4.5.2; a dot in the middle of a line is only a dot.
            text = _DOT.sub(b"", b"x" + text)[1:] if self._mid_line else _DOT.sub(b"", text)
        self._message_bytes(text)
        tx.touch(Direction.TO_SERVER)
        if found is None:
            return end
        self._state = _State.COMMANDS
        self._sent.append(_Command.OTHER)
        tx.end()
        return position + found.end()

    def _message_bytes(self, text: bytes) -> None:
        tx = self._tx
        if text and tx is not None and tx.message is not None:
            tx.feed(text)
            self._mid_line = text[-1] != 0x0A

    def _bdat(self, tx: SmtpTransaction, line: bytes) -> None:
        """RFC 3030: ``BDAT size [LAST]``, and the chunk follows without waiting for a reply."""
        parts = line.split()
        if len(parts) < 2 or not parts[1].isdigit() or len(parts[1]) > 18:
            self.give_up("unparsable_content")
            return
        self._chunk = int(parts[1])
        self._last_chunk = len(parts) > 2 and parts[2].upper() == b"LAST"
        if tx.message is None:
            tx.begin_message(self._limits)
            self._mid_line = False
        self._state = _State.CHUNK
        if not self._chunk:
            self._chunk_end(tx)

    def _chunk_bytes(self, data: bytes, position: int) -> int:
        tx = self._tx
        assert tx is not None
        available = min(len(data) - position, self._chunk)
        end = position + available
        if available < self._chunk:
            # Whole lines only, as in a message that comes line by line.
            whole = max(data.rfind(b"\n", position, end) + 1, position)
            end = whole + (end - whole) // self._limits.dialogue_line * self._limits.dialogue_line
        self._message_bytes(data[position:end])
        self._chunk -= end - position
        tx.touch(Direction.TO_SERVER)
        if not self._chunk:
            if data[end - 1] != 0x0A and end < len(data):  # as a reader of lines sees it
                tx.add_event("bdat_chunk_len_exceeded")
            self._chunk_end(tx)
        return end

    def _chunk_end(self, tx: SmtpTransaction) -> None:
        self._state = _State.COMMANDS
        if self._last_chunk:
            tx.end()

    # -- the server ------------------------------------------------------------------------------------------------

    def _server(self, data: bytes) -> None:
        buffer = self._buffers[Direction.TO_CLIENT]
        if buffer:
            data = bytes(buffer) + data
            buffer.clear()
        position = 0
        while position < len(data) and not self.gave_up:
            end = data.find(b"\n", position) + 1
            if self._skipping[1]:
                self._skipping[1] = not end
                position = end or len(data)
                continue
            if not end:
                if len(data) - position >= self._limits.dialogue_line:
                    self._event("truncated_line")
                    self._skipping[1] = True
                    position = len(data)
                break
            line = data[position:end]
            position = end
            if len(line) > self._limits.dialogue_line:
                self._event("truncated_line")
            elif line.strip(b"\r\n"):
                self._reply(line.rstrip(b"\r\n"))
                if self.tunnel:
                    break
        buffer += data[position:]

    def _reply(self, line: bytes) -> None:
        code, more = line[:3], line[3:4] == b"-"
        if code not in _CODES:
            self._event("invalid_reply")
        if more:
            self._pipelining = self._pipelining or line[4:].strip().upper() == b"PIPELINING"
            return
        if not self._sent:
            if not self._greeted and code != b"220":
                self._event("invalid_reply")
            self._greeted = True
            return
        self._greeted = True
        command = self._sent.popleft()
        if command is _Command.DATA:
            if code != b"354":
                self._event("data_command_rejected")
            if not self._sent and self._waits():
                self._reply_to_wait(go_ahead=code == b"354")
        elif command is _Command.STARTTLS:
            if code == b"220":
                self._start_tls()
                return
            self._event("tls_rejected")
            if not self._sent and self._waits():
                self._reply_to_wait(go_ahead=False)
        elif command is _Command.RSET and code == b"250" and self._tx is not None and not self._tx.done:
            self._tx.end()

    def _reply_to_wait(self, *, go_ahead: bool) -> None:
        """The bytes that waited are a message, or commands after all."""
        self._state = _State.COMMANDS
        if go_ahead:
            self._state = _State.MESSAGE
            self._message_begins()
            if self._sent and self._sent[-1] is _Command.DATA:
                self._sent.pop()
        waiting = bytes(self._buffers[Direction.TO_SERVER])
        self._buffers[Direction.TO_SERVER].clear()
        if waiting:
            self._client(waiting)

    def _start_tls(self) -> None:
        if self._tx is not None and not self._tx.done:
            self._tx.end()
        self.tunnel = True


def _argument(line: bytes, size: int) -> bytes:
    """What follows a command of that size and a separator, up to the next space (options: RFC 1870)."""
    return line[size + 1 :].lstrip(b" ").partition(b" ")[0]

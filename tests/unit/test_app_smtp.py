"""SMTP dialogues: whole, cut anywhere, pipelined, in chunks, refused, and broken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.limits import AppLimits
from engines.stateful.app.smtp import SmtpParser
from tests.unit.app_feeding import C, S, Script, cutting_changes_nothing, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_app_mime import MIXED

NAMES = [
    "smtp.helo",
    "smtp.mail_from",
    "smtp.rcpt_to",
    "email.from",
    "email.to",
    "email.subject",
    "email.url",
    "email.received",
    "file.data",
    "file.name",
]
MAIL = [
    (S, b"220 mx.example.com ESMTP\r\n"),
    (C, b"EHLO client.example.com\r\n"),
    (S, b"250-mx.example.com\r\n250-SIZE 1000\r\n250 HELP\r\n"),
    (C, b"MAIL FROM:<a@example.com> SIZE=10\r\n"),
    (S, b"250 OK\r\n"),
    (C, b"rcpt to: <b@example.com>\r\n"),
    (S, b"250 OK\r\n"),
    (C, b"RCPT TO:<c@example.com>\r\n"),
    (S, b"250 OK\r\n"),
    (C, b"DATA\r\n"),
    (S, b"354 go on\r\n"),
    (C, b"Received: by one\r\nReceived: by two\r\n" + MIXED + b"..dot\r\n.\r\n"),
    (S, b"250 queued\r\n"),
    (C, b"MAIL FROM:<second@example.com>\r\n"),
    (S, b"250 OK\r\n"),
    (C, b"QUIT\r\n"),
    (S, b"221 bye\r\n"),
]


def test_mail() -> None:
    for parser, transactions in every_way(SmtpParser, MAIL):
        first, second = transactions
        assert first.events == second.events == []
        assert list(first.buffer("smtp.helo")) == [b"client.example.com"]
        assert list(first.buffer("smtp.mail_from", C)) == [b"<a@example.com>"]
        assert list(first.buffer("smtp.rcpt_to")) == [b"<b@example.com>", b"<c@example.com>"]
        assert list(first.buffer("email.from")) == [b"a@example.com"]
        assert list(first.buffer("email.subject")) == [b"oneand two"]
        assert list(first.buffer("email.received")) == [b"by one", b"by two"]
        assert list(first.buffer("email.url")) == [b"example.com/one", b"example.com/two."]
        assert list(first.buffer("email.to")) == []
        assert list(first.buffer("file.name")) == [b"b.exe", b"c.txt", b"d.txt"]
        assert first.buffer("file.data")[1:] == [b"caf\xe9!\r\n", b"one\r\ntwo"]
        assert list(first.buffer("file.data", S)) == []
        assert first.is_complete(C)
        assert first.is_complete(S)
        assert list(second.buffer("smtp.mail_from")) == [b"<second@example.com>"]
        assert list(second.buffer("smtp.helo")) == [b"client.example.com"]
        assert not second.is_complete(C)
        assert parser.held(C) == parser.held(S) == 0
        assert first.log_fields() == {
            "helo": "client.example.com",
            "mail_from": "<a@example.com>",
            "rcpt_to": ["<b@example.com>", "<c@example.com>"],
        }
        parser.close(C)
        assert second.is_complete(C)


def text(body: bytes) -> Script:
    """A mail with that message, up to the reply to its end."""
    return [
        (S, b"220 x\r\n"),
        (C, b"HELO a\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n"),
        (S, b"250 x\r\n250 x\r\n250 x\r\n"),
        (C, b"DATA\r\n"),
        (S, b"354 x\r\n"),
        (C, body),
    ]


ATTACHED = b"Content-Disposition: attachment; filename=f\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (ATTACHED + b"a\r\n.\r\n", b"a"),
        (ATTACHED + b"a\n.\n", b"a"),
        (ATTACHED + b"..a\r\n...\r\n.\r\n", b".a\r\n.."),
        (ATTACHED + b".a\r\n.\r\n", b"a"),
        (ATTACHED + b"a.\r\n.\r\n", b"a."),
        # A dot that begins a piece of a long line begins no line.
        (ATTACHED + b"x" * 4096 + b".\r\n.\r\n", b"x" * 4096 + b"."),
        (ATTACHED + b"x" * 4096 + b"..y\r\n.\r\n", b"x" * 4096 + b"..y"),
        (ATTACHED + b"x" * 9000 + b"\r\n.\r\n", b"x" * 9000),
    ],
)
def test_end_and_dots(sent: bytes, expected: bytes) -> None:
    for _, (tx,) in every_way(SmtpParser, text(sent)):
        assert list(tx.buffer("file.data")) == [expected]
        assert tx.is_complete(C)


def test_the_reply_says_what_follows_data() -> None:
    """Commands after a refused DATA are commands, whenever they were sent; a message is one after 354."""
    start = [(S, b"220 x\r\n"), (C, b"EHLO a\r\n"), (S, b"250 x\r\n")]
    early = b"DATA\r\n" + ATTACHED + b"x\r\n.\r\nMAIL FROM:<late>\r\n"
    for parser, transactions in every_way(SmtpParser, [*start, (C, early)]):
        assert parser.held(C) == len(early) - 6
        parser.feed(S, b"354 go\r\n")
        assert parser.held(C) == 0
        assert list(transactions[0].buffer("file.data")) == [b"x"]
        assert list(parser.transactions[1].buffer("smtp.mail_from")) == [b"<late>"]
        assert transactions[0].events == ["invalid_pipelined_sequence"]
    for parser, (tx,) in every_way(SmtpParser, [*start, (C, b"DATA\r\nMAIL FROM:<late>\r\n")]):
        parser.feed(S, b"503 no\r\n")
        assert list(tx.buffer("smtp.mail_from")) == [b"<late>"]
        assert "data_command_rejected" in tx.events


def test_a_group_of_commands() -> None:
    script = [
        (S, b"220 x\r\n"),
        (C, b"EHLO a\r\n"),
        (S, b"250-x\r\n250-PIPELINING\r\n250 y\r\n"),
        (C, b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n" + ATTACHED + b"x\r\n.\r\n"),
        (S, b"250 a\r\n250 b\r\n354 c\r\n250 d\r\n"),
    ]
    for _, (tx,) in every_way(SmtpParser, script):
        assert tx.events == []
        assert list(tx.buffer("file.data")) == [b"x"]
        assert tx.is_complete(C)


def test_chunks() -> None:
    script = [
        (S, b"220 x\r\n"),
        (C, b"EHLO a\r\n"),
        (S, b"250 x\r\n"),
        (C, b"BDAT %d\r\n" % len(ATTACHED) + ATTACHED),
        (S, b"250 x\r\n"),
        (C, b"BDAT 3\r\n.\r\nBDAT 4 LAST\r\n.abcMAIL FROM:<next>\r\n"),
        (S, b"250 x\r\n250 x\r\n"),
    ]
    for _, (tx, following) in every_way(SmtpParser, script):
        assert list(tx.buffer("file.data")) == [b".\r\n.abc"]
        assert tx.is_complete(C)
        assert list(following.buffer("smtp.mail_from")) == [b"<next>"]
    parser = SmtpParser()
    play(parser, script)
    assert "bdat_chunk_len_exceeded" in parser.transactions[0].events


@pytest.mark.parametrize("line", [b"BDAT\r\n", b"BDAT x\r\n", b"BDAT 9999999999999999999\r\n"])
def test_a_chunk_of_no_size(line: bytes) -> None:
    for parser, _ in every_way(SmtpParser, [(C, b"EHLO a\r\n" + line)]):
        assert parser.gave_up
        assert parser.held(C) == 0


def test_starttls() -> None:
    start = [(S, b"220 x\r\n"), (C, b"EHLO a\r\n"), (S, b"250-x\r\n250 STARTTLS\r\n"), (C, b"STARTTLS\r\n")]
    for parser, (tx,) in every_way(SmtpParser, start):
        assert not parser.tunnel
        parser.feed(S, b"220 go\r\n\x16\x03")
        assert parser.tunnel
        assert parser.unparsed(S) == b"\x16\x03"
        assert parser.unparsed(C) == b""
        assert tx.is_complete(C)
    for parser, (tx,) in every_way(SmtpParser, start):
        parser.feed(S, b"454 no\r\n")
        parser.feed(C, b"MAIL FROM:<a>\r\n")
        assert not parser.tunnel
        assert tx.events == ["tls_rejected"]
        assert list(tx.buffer("smtp.mail_from")) == [b"<a>"]


def test_reset_ends_a_mail() -> None:
    script = [
        (S, b"220 x\r\n"),
        (C, b"EHLO a\r\nMAIL FROM:<a>\r\nRSET\r\n"),
        (S, b"250 x\r\n250 x\r\n250 x\r\n"),
        (C, b"QUIT\r\n"),
        (C, b"MAIL FROM:<b>\r\n"),
    ]
    for _, (first, second) in every_way(SmtpParser, script):
        assert first.is_complete(C)
        assert list(second.buffer("smtp.mail_from")) == [b"<b>"]


@pytest.mark.parametrize(
    ("script", "event"),
    [
        ([(C, b"EHLO a\r\n")], "no_server_welcome_message"),
        ([(S, b"220 x\r\n"), (C, b"EHLO a\r\nEHLO b\r\n")], "duplicate_fields"),
        ([(S, b"220 x\r\n"), (C, b"MAIL FROM:<a>\r\nMAIL FROM:<b>\r\n")], "duplicate_fields"),
        ([(S, b"220 x\r\n"), (C, b"EHLO a\r\n"), (S, b"999 x\r\n")], "invalid_reply"),
        ([(S, b"220 x\r\n"), (C, b"EHLO a\r\n"), (S, b"ok\r\n")], "invalid_reply"),
        ([(S, b"220 x\r\n"), (C, b"NOOP\r\n" + b"x" * 5000 + b"\r\n")], "truncated_line"),
        ([(S, b"220 x\r\n"), (C, b"NOOP\r\n"), (S, b"250 " + b"x" * 5000 + b"\r\n")], "truncated_line"),
        (
            [*text(ATTACHED + b"x\r\n"), (C, b".\r\n"), (S, b"250 x\r\n"), (C, b"NOOP\r\n"), (S, b"0\r\n")],
            "invalid_reply",
        ),
    ],
)
def test_events(script: Script, event: str) -> None:
    for parser, transactions in every_way(SmtpParser, script):
        assert event in transactions[-1].events
        assert not parser.gave_up


def test_bounds() -> None:
    limits = AppLimits(mail_recipients=2, dialogue_pipelined=3, dialogue_early=10)
    parser = SmtpParser(limits)
    play(parser, [(S, b"220 x\r\n"), (C, b"NOOP\r\n" * 4)])
    assert parser.gave_up
    assert parser.reason == "too_many_pipelined_commands"
    parser = SmtpParser(limits)
    play(parser, [(S, b"220 x\r\n"), *[(C, b"RCPT TO:<a>\r\n"), (S, b"250 x\r\n")] * 3])
    assert parser.reason == "too_many_recipients"
    # More than may wait is taken for a message.
    parser = SmtpParser(limits)
    (tx,) = play(parser, [(S, b"220 x\r\n"), (C, b"DATA\r\n" + ATTACHED), (C, b"x\r\n.\r\n")])
    assert list(tx.buffer("file.data")) == [b"x"]


def test_an_end_without_its_line() -> None:
    for parser, (tx,) in every_way(SmtpParser, text(ATTACHED + b"one\r\ntwo")):
        parser.close(C)
        assert list(tx.buffer("file.data")) == [b"one\r\ntwo"]
        assert tx.is_complete(C)


def test_mutations() -> None:
    survives(SmtpParser, MAIL, NAMES, rounds=600, seed=11)


@pytest.mark.parametrize("opened", [False, True])
def test_any_bytes(opened: bool) -> None:
    """As commands, as replies, as a message: cutting changes nothing."""
    seeds = corpus("smtp") + corpus("mime")

    @given(st.binary(max_size=200) | st.sampled_from(seeds), st.sampled_from([C, S]), st.integers(1, 30))
    @settings(max_examples=300)
    def check(data: bytes, side: int, cut: int) -> None:
        direction = C if side == C else S
        before = text(b"") if opened else [(S, b"220 x\r\n")]
        cutting_changes_nothing(SmtpParser, before, direction, data, cut, NAMES)

    check()

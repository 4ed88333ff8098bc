"""FTP: commands and their replies, the connections they announce, and those connections."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.ftp import FtpDataParser, FtpParser
from engines.stateful.app.limits import AppLimits
from engines.stateful.expect import SECONDS, Expectations, Expected
from tests.unit.app_feeding import C, S, Script, cutting_changes_nothing, every_way, play, survives
from tests.unit.corpus import corpus

CLIENT, SERVER = b"\x0a\0\0\1", b"\xc0\0\2\1"
NAMES = [
    "ftp.command",
    "ftp.command_data",
    "ftp.reply",
    "ftp.completion_code",
    "ftp.dynamic_port",
    "ftp.mode",
    "ftp.reply_received",
    "ftpbounce",
]
SESSION = [
    (S, b"220-Welcome\r\n220 to here\r\n"),
    (C, b"user anonymous\r\n"),
    (S, b"331 Password please\r\n"),
    (C, b"PASS me@\r\n"),
    (S, b"230-Hello\r\n 230 is not the end\r\n230 Logged in\r\n"),
    (C, b"XYZZY\r\n"),
    (S, b"500 what\r\n"),
    (C, b"PASV\r\n"),
    (S, b"227 Entering Passive Mode (192,0,2,1,185,13).\r\n"),
    (C, b"RETR dir/a file.txt\r\n"),
    (S, b"150 Here it comes\r\n"),
    (S, b"226 Done\r\n"),
    (C, b"QUIT\r\n"),
    (S, b"221 Bye\r\n"),
]


def make() -> FtpParser:
    parser = FtpParser()
    parser.begin(CLIENT, SERVER, None)
    return parser


def test_session() -> None:
    for parser, transactions in every_way(make, SESSION):
        _, user, password, unknown, passive, retrieve, leave = transactions
        assert list(user.buffer("ftp.command")) == [b"USER"]
        assert list(user.buffer("ftp.command_data", C)) == [b"anonymous"]
        assert list(user.buffer("ftp.command", S)) == []
        assert list(user.buffer("ftp.reply", S)) == [b"Password please"]
        assert list(user.buffer("ftp.completion_code", S)) == [b"331"]
        assert list(user.buffer("ftp.reply_received")) == [b"1"]
        assert list(password.buffer("ftp.reply")) == [b"230-Hello", b" 230 is not the end", b"Logged in"]
        assert list(password.buffer("ftp.completion_code")) == [b"230"]
        assert not any(unknown.buffer(name) for name in NAMES)
        assert list(passive.buffer("ftp.dynamic_port")) == [(185 << 8 | 13).to_bytes(2, "big")]
        assert list(passive.buffer("ftp.mode")) == [b"passive"]
        assert list(passive.buffer("ftp.command_data")) == []
        assert list(retrieve.buffer("ftp.command_data")) == [b"dir/a file.txt"]
        assert list(retrieve.buffer("ftp.reply")) == [b"Here it comes", b"Done"]
        assert list(leave.buffer("ftp.completion_code")) == [b"221"]
        assert all(tx.is_complete(C) and tx.is_complete(S) and not tx.events for tx in transactions)
        assert parser.expects == [Expected("ftp-data", 185 << 8 | 13, "retr", b"dir/a file.txt", False, False)]
        assert parser.held(C) == parser.held(S) == 0
        assert passive.log_fields() == {
            "command": "PASV",
            "reply": ["Entering Passive Mode (192,0,2,1,185,13)."],
            "completion_code": ["227"],
            "dynamic_port": 47373,
            "mode": "passive",
            "reply_received": "yes",
        }


@pytest.mark.parametrize(
    ("command", "reply", "port", "mode"),
    [
        (b"PORT 10,0,0,1,4,1", b"200 ok", 1025, b"active"),
        (b"EPRT |1|10.0.0.1|1025|", b"200 ok", 1025, b"active"),
        (b"EPRT !2!fd00::1!1025!", b"200 ok", 1025, b"active"),
        (b"PASV", b"227 ok 10,0,0,2,4,1", 1025, b"passive"),
        (b"EPSV", b"229 ok (|||1025|)", 1025, b"passive"),
        (b"EPSV", b"229 ok (!!!1025!)", 1025, b"passive"),
        (b"PORT 10,0,0,1,256,1", b"200 ok", 0, None),
        (b"PORT nonsense", b"501 no", 0, None),
        (b"EPRT |1|10.0.0.1|65536|", b"200 ok", 0, None),
        (b"PASV", b"227 no numbers", 0, None),
        (b"PASV", b"500 ok (10,0,0,2,4,1)", 0, None),
        (b"EPSV", b"229 ok (|||99999|)", 0, None),
        (b"NOOP", b"227 ok (10,0,0,2,4,1)", 0, None),
    ],
)
def test_announced_ports(command: bytes, reply: bytes, port: int, mode: bytes | None) -> None:
    script = [(C, command + b"\r\n"), (S, reply + b"\r\n"), (C, b"STOR f\r\nSTOR g\r\n")]
    for parser, (tx, *_) in every_way(make, script):
        assert list(tx.buffer("ftp.dynamic_port")) == [port.to_bytes(2, "big")]
        assert list(tx.buffer("ftp.mode")) == ([] if mode is None else [mode])
        wanted = [Expected("ftp-data", port, "stor", b"f", mode == b"active", True)] if port else []
        assert parser.expects == wanted  # for the first transfer only


@pytest.mark.parametrize(
    ("argument", "bounce"),
    [
        (b"10,0,0,1,0,80", False),
        (b"10,0,0,2,0,80", True),
        (b"10, 0,0,2,0,80", False),
        (b"256,0,0,2,0,80", False),
        (b"", False),
    ],
)
def test_bounce(argument: bytes, bounce: bool) -> None:
    for _, (tx,) in every_way(make, [(C, b"PORT " + argument + b"\r\n")]):
        assert list(tx.buffer("ftpbounce", C)) == ([b"1"] if bounce else [])


def test_commands_sent_together() -> None:
    script = [(C, b"USER a\r\nPASS b\r\nNOOP\r\n"), (S, b"331 x\r\n230-y\r\n230 y\r\n200 z\r\n")]
    for _, transactions in every_way(make, script):
        assert [list(tx.buffer("ftp.completion_code")) for tx in transactions] == [[b"331"], [b"230"], [b"200"]]


def test_no_reply() -> None:
    for parser, (tx,) in every_way(make, [(C, b"NOOP\r\n")]):
        assert list(tx.buffer("ftp.reply_received")) == []
        assert not tx.is_complete(C)
        parser.close(S)
        assert list(tx.buffer("ftp.reply_received")) == [b"0"]
        assert tx.is_complete(C)


def test_tls() -> None:
    for parser, (tx,) in every_way(make, [(C, b"auth tls\r\n\x16\x03")]):
        assert parser.held(C) == 2
        assert list(tx.buffer("ftp.command")) == [b"AUTH TLS"]
        parser.feed(S, b"234 go\r\n\x15")
        assert parser.tunnel
        assert parser.unparsed(C) == b"\x16\x03"
        assert parser.unparsed(S) == b"\x15"
    for parser, _ in every_way(make, [(C, b"AUTH TLS\r\nUSER a\r\n")]):
        parser.feed(S, b"502 no\r\n")
        assert not parser.tunnel
        assert list(parser.transactions[1].buffer("ftp.command")) == [b"USER"]
    parser = FtpParser(AppLimits(dialogue_early=3))
    play(parser, [(C, b"AUTH TLS\r\n"), (C, b"1234")])
    assert parser.reason == "auth_without_answer"
    assert parser.held(C) == 0


@pytest.mark.parametrize("size", [4095, 4096, 5000])
def test_long_lines(size: int) -> None:
    script = [(C, b"RETR " + b"a" * (size - 5) + b"\r\nNOOP\r\n"), (S, b"550 " + b"b" * (size - 4) + b"\r\n200 ok\r\n")]
    for parser, (first, second) in every_way(make, script):
        assert ("request_command_too_long" in first.events) == (size + 2 > 4096)
        assert ("response_command_too_long" in first.events) == (size + 2 > 4096)
        assert list(second.buffer("ftp.command")) == [b"NOOP"]
        assert second.events == []
        assert len(first.buffer("ftp.command_data")[0]) <= 4096
        assert parser.held(C) == 0


def test_bounds() -> None:
    parser = FtpParser(AppLimits(dialogue_pipelined=2, ftp_reply=10))
    play(parser, [(C, b"HELP\r\n"), (S, b"211-aa\r\nbbbbbbbb\r\ncc\r\n211 d\r\n")])
    assert list(parser.transactions[0].buffer("ftp.reply")) == [b"211-aa", b"cc"]
    assert parser.transactions[0].is_complete(S)
    play(parser, [(C, b"NOOP\r\n" * 3)])
    assert parser.reason == "too_many_pipelined_commands"


def test_mutations() -> None:
    survives(make, SESSION, NAMES, rounds=600, seed=12)


@given(st.binary(max_size=200) | st.sampled_from(corpus("ftp")), st.sampled_from([C, S]), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, side: int, cut: int) -> None:
    """Cutting changes nothing."""
    direction = C if side == C else S
    before: Script = [(C, b"PASV\r\nEPSV\r\nPORT 10,0,0,1,4,1\r\n")] if direction is S else []
    whole, pieces = cutting_changes_nothing(make, before, direction, data, cut, NAMES)
    assert whole.expects == pieces.expects


# --- transfers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "active", "upload", "side"),
    [
        ("retr", False, False, S),
        ("retr", True, False, C),
        ("stor", False, True, C),
        ("stor", True, True, S),
    ],
)
def test_transfer(command: str, active: bool, upload: bool, side: int) -> None:
    there, back = (C, S) if side == C else (S, C)
    for hold in (False, True):
        parser = FtpDataParser(hold_body=hold)
        parser.begin(CLIENT, SERVER, Expected("ftp-data", 1025, command, b"f.txt", active, upload))
        (tx,) = parser.transactions
        parser.feed(there, b"abc")
        parser.feed(back, b"not the file")
        assert list(tx.buffer("file.data", there)) == [b"abc"]
        assert list(tx.buffer("file.name", there)) == [b"f.txt"]
        assert list(tx.buffer("file.name", back)) == []
        assert list(tx.buffer("ftpdata_command", there)) == [command.encode()]
        assert list(tx.buffer("ftpdata_command", back)) == []
        assert parser.held(there) == (3 if hold else 0)
        assert not tx.is_complete(there)
        parser.close(there)
        assert parser.finished
        assert parser.held(there) == 0
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.log_fields() == {"command": command.upper(), "filename": "f.txt"}


def test_a_large_transfer_needs_no_more_looking_at() -> None:
    parser = FtpDataParser(AppLimits(file=5), hold_body=True)
    parser.begin(CLIENT, SERVER, Expected("ftp-data", 1025, "retr", b"f", False, False))
    parser.feed(S, b"abcd")
    assert not parser.finished
    parser.feed(S, b"efgh")
    assert parser.finished
    assert parser.held(S) == 0
    assert list(parser.transactions[0].buffer("file.data")) == [b"abcde"]


def test_a_listing_is_no_file() -> None:
    parser = FtpDataParser()
    parser.begin(CLIENT, SERVER, Expected("ftp-data", 1025, "nlst", b"", False, False))
    parser.feed(S, b"a\r\n")
    (tx,) = parser.transactions
    assert list(tx.buffer("file.data")) == []
    assert [list(tx.buffer("ftpdata_command", side)) for side in (C, S)] == [[b"nlst"]] * 2


def test_expectations() -> None:
    table = Expectations(2)
    expected = [Expected("ftp-data", port, "retr", b"", False, False) for port in (1, 2, 3)]
    for one in expected:
        table.add(CLIENT, SERVER, one, 10.0)
    assert len(table) == 2
    assert table.take(CLIENT, SERVER, 1, 10.0) is None  # the oldest was forgotten
    assert table.take(SERVER, CLIENT, 2, 10.0) is expected[1]
    assert table.take(SERVER, CLIENT, 2, 10.0) is None  # once
    assert table.take(CLIENT, CLIENT, 3, 10.0) is None
    assert table.take(CLIENT, SERVER, 3, 10.1 + SECONDS) is None
    assert not table

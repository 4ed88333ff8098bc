"""Rules on FTP and on the connections it announces, through the inspector."""

from __future__ import annotations

import pytest

from engines.stateful.inspector import FlowFacts, Inspector
from tests.unit.rulekit import refusal, rule
from tests.unit.test_inspector import ANY, CLIENT, DOWN, SERVER, TCP, UP, Flow, compiled

TRANSFER = f"""
    alert ftp {ANY} (ftp.command; content:"RETR"; ftp.command_data; content:".exe"; endswith; sid:1;)
    alert ftp {ANY} (flow:to_server; ftp.dynamic_port:1025; ftp.mode:passive; sid:2;)
    alert ftp {ANY} (ftp.reply_received:yes; ftp.completion_code; content:"226"; sid:3;)
    alert ftp-data {ANY} (ftpdata_command:retr; sid:4;)
    alert ftp-data {ANY} (filename:"a.exe"; file.data; content:"MZ"; sid:5;)
    drop tcp {ANY} (file_data; content:"evil"; sid:6;)
"""


def announced(passive: bool) -> Flow:
    """A dialogue up to the command that uses the connection."""
    flow = Flow(compiled(TRANSFER), port=21).handshake()
    flow.data(DOWN, b"220 here\r\n")
    flow.data(UP, b"USER a\r\n")
    flow.data(DOWN, b"230 in\r\n")
    flow.data(UP, b"PASV\r\n" if passive else b"PORT 10,0,0,1,4,1\r\n")
    said = flow.data(DOWN, b"227 ok (198,51,100,7,4,1)\r\n" if passive else b"200 ok\r\n")
    assert said == ("accept 2" if passive else "accept")
    assert flow.data(UP, b"RETR x/a.exe\r\n") == "accept 1"
    flow.data(DOWN, b"150 comes\r\n")
    return flow


def data_flow(rules: Flow, client: bytes, server: bytes, now: float = 1.0) -> Flow:
    flow = Flow(rules.rules, port=1025, now=now)
    flow.inspector = Inspector(rules.rules, FlowFacts(2, TCP, client, server, 20, 1025), now)
    return flow.handshake()


@pytest.mark.parametrize("passive", [True, False])
def test_a_transfer(passive: bool) -> None:
    dialogue = announced(passive)
    ends, side = ((CLIENT, SERVER), DOWN) if passive else ((SERVER, CLIENT), UP)
    flow = data_flow(dialogue, *ends)
    assert flow.data(side, b"MZ...ev") == "accept 4 5"
    assert flow.inspector.app_proto == "ftp-data"
    assert flow.held == ((0, 7) if passive else (7, 0))
    assert flow.data(side, b"il") == "drop! 6"
    assert dialogue.data(DOWN, b"226 done\r\n") == "accept 3"


def test_what_was_not_announced() -> None:
    """Another port, another host, too late, a second time: told by its bytes."""
    for ends, now in (((CLIENT, b"\x01\x02\x03\x04"), 1.0), ((CLIENT, SERVER), 40.0)):
        flow = data_flow(announced(passive=True), *ends, now)
        assert flow.data(DOWN, b"MZ evil") == "accept"
    dialogue = announced(passive=True)
    assert data_flow(dialogue, CLIENT, SERVER).data(DOWN, b"MZ") == "accept 4 5"
    assert data_flow(dialogue, CLIENT, SERVER).data(DOWN, b"MZ") == "accept"


def test_the_greeting_decides_nothing() -> None:
    """A default action for what is left waits for the first command, which a rule may pass."""
    rules = f'pass ftp {ANY} (ftp.command; content:"USER"; ftp.command_data; content:"joe"; sid:1;)'
    for user, said in ((b"joe", "accept!"), (b"eve", "drop!")):
        flow = Flow(compiled(rules, "strict", ["drop_established_app_layer"]), port=21).handshake()
        assert flow.data(DOWN, b"220-Welcome to\r\n220 FTP\r\n") == "accept"
        assert flow.data(UP, b"USER " + user + b"\r\n").split()[0] == said


def test_a_bounce() -> None:
    flow = Flow(compiled(f"drop tcp {ANY} (ftpbounce; sid:1;)"), port=21).handshake()
    flow.data(UP, b"USER a\r\n")
    assert flow.data(UP, b"PORT 10,0,0,1,4,1\r\n") == "accept"
    assert flow.data(UP, b"PORT 10,0,0,9,4,1\r\n") == "drop! 1"


@pytest.mark.parametrize(
    ("options", "buffer"),
    [
        ("ftp.dynamic_port:>1024;", "ftp.dynamic_port"),
        ("ftp.mode:active;", "ftp.mode"),
        ("ftp.reply_received:no;", "ftp.reply_received"),
        ("ftpdata_command:stor;", "ftpdata_command"),
        ("ftpbounce;", "ftpbounce"),
    ],
)
def test_keywords(options: str, buffer: str) -> None:
    signature = rule(options)
    assert [match.buffer for match in signature.buffers] == [buffer]
    assert not signature.never_matches


@pytest.mark.parametrize(
    ("options", "header", "why"),
    [
        ("ftp.dynamic_port:65536;", "alert ftp any any -> any any", "65536"),
        ("ftp.mode:other;", "alert ftp any any -> any any", "expected one of active, passive"),
        ("ftpdata_command:xxx;", "alert ftp-data any any -> any any", "retr"),
        ("ftp.reply_received:yes; ftp.reply_received:yes;", "alert ftp any any -> any any", "twice"),
        ("ftp.mode:active;", "alert ftp-data any any -> any any", "does not exist in ftp-data"),
        ('ftp.command; content:"A"; ftp.reply; content:"b";', "alert ftp any any -> any any", "write =>"),
    ],
)
def test_refused(options: str, header: str, why: str) -> None:
    assert why in refusal(options, header)

"""Rules on mails, through the inspector: when they match, how often, and what they let out."""

from __future__ import annotations

import pytest

from engines.packet import TCP
from tests.unit.rulekit import refusal, rule
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

PART = b"--b\r\nContent-Disposition: attachment; filename=%b\r\n\r\n%b\r\n"
HEAD = b"Subject: hello\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"


def dialogue(flow: Flow, recipients: int = 1) -> list[str]:
    """Up to DATA and its reply."""
    said = [flow.data(DOWN, b"220 mx.example.com\r\n"), flow.data(UP, b"EHLO client\r\n")]
    said += [flow.data(DOWN, b"250 mx\r\n"), flow.data(UP, b"MAIL FROM:<a@example.com>\r\n")]
    said.append(flow.data(DOWN, b"250 ok\r\n"))
    for number in range(recipients):
        said.append(flow.data(UP, b"RCPT TO:<r%d@example.com>\r\n" % number))
        said.append(flow.data(DOWN, b"250 ok\r\n"))
    return [*said, flow.data(UP, b"DATA\r\n"), flow.data(DOWN, b"354 go\r\n")]


def alerts(rules: str, pieces: list[bytes]) -> list[list[int]]:
    """The sids at each piece of a message."""
    flow = Flow(compiled(rules), port=25).handshake()
    dialogue(flow)
    out = []
    for piece in pieces:
        flow.data(UP, piece)
        out.append(flow.sids)
    return out


def test_the_dialogue() -> None:
    rules = f"""
        alert smtp {ANY} (smtp.helo; content:"client"; sid:1;)
        alert smtp {ANY} (smtp.mail_from; content:"<a@"; smtp.rcpt_to; content:"<r2@"; sid:2;)
        alert smtp {ANY} (smtp.mail_from; content:"<a@"; smtp.rcpt_to; pcre:"/r[12]/"; sid:3;)
        alert smtp {ANY} (smtp.helo; content:"other"; sid:4;)
        drop smtp {ANY} (smtp.rcpt_to; content:"<r3@"; sid:5;)
    """
    flow = Flow(compiled(rules), port=25).handshake()
    said = dialogue(flow, recipients=4)
    assert said[1:11] == ["accept 1"] + ["accept"] * 5 + ["accept 3", "accept", "accept 2", "accept"]
    assert said[11].startswith("drop! 5")


def test_files_of_one_mail() -> None:
    """Each condition on a file may be fulfilled by another one; those of one buffer keyword by the same."""
    rules = f"""
        alert smtp {ANY} (file.data; content:"boat"; file.name; content:"one.txt"; sid:1;)
        alert smtp {ANY} (file.data; content:"boat"; file.name; content:"two.txt"; sid:2;)
        alert smtp {ANY} (file.data; content:"boat"; file.data; content:"cat"; sid:3;)
        alert smtp {ANY} (file.data; content:"boat"; content:"cat"; sid:4;)
        alert smtp {ANY} (filename:"ONE"; fileext:"txt"; sid:5;)
        alert smtp {ANY} (fileext:"xt"; sid:6;)
        alert smtp {ANY} (file.data; content:!"a"; sid:7;)
        alert tcp {ANY} (file_data; content:"cat"; fast_pattern; sid:8;)
    """
    pieces = [HEAD, PART % (b"one.txt", b"a boat"), PART % (b"two.txt", b"a c"), b"at\r\n--b--\r\n.\r\n"]
    assert alerts(rules, pieces) == [[], [1, 5], [2], []]
    pieces = [HEAD, PART % (b"one.txt", b"a boat"), PART % (b"two.txt", b"a cat"), b"--b--\r\n.\r\n"]
    assert alerts(rules, pieces) == [[], [1, 5], [2, 3, 8], []]
    assert alerts(rules, [HEAD + PART % (b"x", b"zz"), b"--b--\r\n.\r\n"])[-1] == [7]


def test_a_pattern_across_packets() -> None:
    rules = f'alert smtp {ANY} (file.data; content:"0123456789"; sid:1;)'
    mail = HEAD + PART % (b"a", b"xx") + PART % (b"b", b"..0123456789..") + b"--b--\r\n.\r\n"
    for cut in (1, 3, 7):
        found = alerts(rules, [mail[at : at + cut] for at in range(0, len(mail), cut)])
        assert sum(map(len, found)) == 1


def test_header_fields_and_a_drop_before_the_end() -> None:
    rules = f"""
        alert smtp {ANY} (email.subject; content:"hello"; bsize:5; sid:1;)
        drop smtp {ANY} (file.data; content:"bad"; sid:2;)
    """
    flow = Flow(compiled(rules), port=25).handshake()
    assert "drop" not in "".join(dialogue(flow))
    assert flow.data(UP, HEAD) == "accept 1"
    assert flow.data(UP, PART % (b"x", b"good")) == "accept"
    assert flow.held == (0, 0)
    assert flow.data(UP, b"--b\r\nContent-Disposition: a; filename=y\r\n\r\nba") == "accept"
    assert flow.held == (2, 0)  # the line is not complete
    assert flow.data(UP, b"d\r\n") == "drop! 2"


def test_tls_begins_within() -> None:
    """The name of the server is judged though the connection began as SMTP, and nothing else asks for SMTP."""
    rules = compiled(f'drop tls {ANY} (tls.sni; content:"bad.example.com"; sid:1;)')
    sni = b"bad.example.com"
    name = b"\0" + len(sni).to_bytes(2, "big") + sni
    names = len(name).to_bytes(2, "big") + name
    extension = b"\0\0" + len(names).to_bytes(2, "big") + names
    hello = (
        b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(extension).to_bytes(2, "big") + extension
    )
    body = b"\x01" + len(hello).to_bytes(3, "big") + hello
    record = b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body
    flow = Flow(rules, port=25).handshake()
    flow.data(DOWN, b"220 mx\r\n")
    flow.data(UP, b"EHLO client\r\n")
    flow.data(DOWN, b"250-mx\r\n250 STARTTLS\r\n")
    flow.data(UP, b"STARTTLS\r\n")
    flow.data(DOWN, b"220 go\r\n")
    assert flow.data(UP, record) == "drop! 1"


def test_the_greeting_comes_before_what_it_answers() -> None:
    """A greeting that names no protocol waits for the client's first line, and is still read first."""
    flow = Flow(compiled(f"alert smtp {ANY} (app-layer-event:smtp.no_server_welcome_message; sid:1;)"), port=25)
    flow.handshake()
    flow.data(DOWN, b"220 mx.example.com\r\n")
    assert flow.data(UP, b"EHLO client\r\n") == "accept"
    assert flow.inspector.app_proto == "smtp"


@pytest.mark.parametrize(
    ("options", "buffers"),
    [
        ('filename:"a";', ["file.name"]),
        ('filename:!"a"; fileext:"b";', ["file.name", "file.name"]),
        ('file.name; content:"a"; fileext:jpg;', ["file.name", "file.name"]),
    ],
)
def test_names_of_files(options: str, buffers: list[str]) -> None:
    signature = rule(options)
    assert [match.buffer for match in signature.buffers] == buffers
    assert signature.ip_protocols == frozenset({TCP})
    assert not signature.never_matches


@pytest.mark.parametrize(
    ("options", "header", "why"),
    [
        ('filename:"";', "alert tcp any any -> any any", "empty"),
        ("fileext;", "alert tcp any any -> any any", "fileext"),
        ('filename:"a";', "alert dns any any -> any any", "does not exist in dns"),
        ('email.from; content:"a";', "alert http any any -> any any", "does not exist in http"),
        ('smtp.helo; content:"a"; flow:to_client;', "alert smtp any any -> any any", "to the server only"),
    ],
)
def test_refused(options: str, header: str, why: str) -> None:
    assert why in refusal(options, header)

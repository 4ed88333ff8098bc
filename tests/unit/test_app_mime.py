"""MIME: parameters of header fields, content transfer codings, and messages read as they come."""

from __future__ import annotations

import base64
import email.message
import quopri
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.files import Files
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.mime import Base64, Message, Plain, QuotedPrintable, parameter
from tests.unit.corpus import corpus


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (b"attachment; filename=a.exe", b"filename", b"a.exe"),
        (b'attachment; FileName="a b;c.exe"; size=3', b"filename", b"a b;c.exe"),
        (b"attachment ;\r\n\tfilename = a.exe ; x=y", b"filename", b"a.exe"),
        (b'attachment; filename="a\\"b"', b"filename", b'a\\"b'),
        (b'attachment; filename="never closed', b"filename", b"never closed"),
        (b'attachment; filename*0="a."; filename*1=exe', b"filename", b"a.exe"),
        (b"attachment; filename*=utf-8''a%20b.exe", b"filename", b"a b.exe"),
        (b"attachment; filename*1*=%2e; filename*0*=utf-8''a; filename*2=exe", b"filename", b"a.exe"),
        (b"attachment; filename*1=exe", b"filename", None),
        (b"attachment; name=a", b"filename", None),
        (b'attachment; x="; filename=no"; filename=yes', b"filename", b"yes"),
        (b"attachment; filename=first; filename=second", b"filename", b"first"),
        (b"filename=a", b"filename", None),
        (b"", b"filename", None),
    ],
)
def test_parameter(value: bytes, name: bytes, expected: bytes | None) -> None:
    assert parameter(value, name) == expected


@pytest.mark.parametrize("piece", [b" ", b";", b"a", b'"', b"=", b";a", b'="', b"\\", b'=";'])
def test_a_hostile_field_costs_no_more_than_its_size(piece: bytes) -> None:
    started = time.process_time()
    parameter(b"a/b;" + piece * (200_000 // len(piece)), b"boundary")
    assert time.process_time() - started < 2


@given(st.binary(max_size=300))
def test_codings_read_what_the_library_writes(data: bytes) -> None:
    """However it is cut."""
    events: list[str] = []
    coded = base64.encodebytes(data)
    quoted = quopri.encodestring(data.replace(b"\r", b"").replace(b"\n", b""))
    for cut in (1, 2, 3, 7, len(coded) + len(quoted) + 1):
        decoder, other, plain = Base64(), QuotedPrintable(), Plain()
        out = [decoder.feed(coded[at : at + cut], events.append) for at in range(0, len(coded), cut)]
        assert b"".join([*out, decoder.finish()]) == data
        out = [other.feed(quoted[at : at + cut], events.append) for at in range(0, len(quoted), cut)]
        assert b"".join([*out, other.finish()]) == data.replace(b"\r", b"").replace(b"\n", b"")
        out = [plain.feed(data[at : at + cut], events.append) for at in range(0, len(data), cut)]
        whole = b"".join(out)
        assert data.startswith(whole)
        assert data[len(whole) :] in {b"", b"\n", b"\r\n", b"\r"}
    assert not events


@pytest.mark.parametrize(
    ("coded", "plain", "events"),
    [
        (b"QUJD\r\nREVG", b"ABCDEF", []),
        (b"QUI=QUI=", b"ABAB", []),
        (b"QQ==\r\nQg", b"AB", []),
        (b"QU#JD", b"ABC", ["mime_invalid_base64"]),
        (b"Q", b"", []),
        (b"====", b"", []),
        (b"QUJD" * 20, b"ABC" * 20, ["mime_long_enc_line"]),
    ],
)
def test_odd_base64(coded: bytes, plain: bytes, events: list[str]) -> None:
    for cut in (1, 4, len(coded)):
        seen: list[str] = []
        decoder = Base64()
        out = [decoder.feed(coded[at : at + cut], seen.append) for at in range(0, len(coded), cut)]
        assert b"".join([*out, decoder.finish()]) == plain
        if cut == len(coded):
            assert seen == events


@pytest.mark.parametrize(
    ("coded", "plain", "events"),
    [
        (b"a=3Db=\r\nc", b"a=bc", []),
        (b"a=3db", b"a=b", ["mime_invalid_qp"]),
        (b"a=ZZb", b"a=ZZb", ["mime_invalid_qp"]),
        (b"a=", b"a", []),
        (b"a=4", b"a=4", []),
        (b"a= \t\r\nb", b"ab", []),
        (b"a\r\nb", b"a\r\nb", []),
    ],
)
def test_odd_quoted_printable(coded: bytes, plain: bytes, events: list[str]) -> None:
    for cut in (1, 2, len(coded)):
        seen: list[str] = []
        decoder = QuotedPrintable()
        out = [decoder.feed(coded[at : at + cut], seen.append) for at in range(0, len(coded), cut)]
        assert b"".join([*out, decoder.finish()]) == plain
        assert set(seen) == set(events)


def read(mail: bytes, limits: AppLimits | None = None) -> tuple[Message, list[str]]:
    """The message, whole and line by line, which must be the same."""
    both = []
    for pieces in ([mail], [line + b"\n" for line in mail.split(b"\n")[:-1]] + [mail.rpartition(b"\n")[2]]):
        limits = limits or AppLimits()
        events: list[str] = []
        message = Message(Files(limits), limits, events.append)
        for piece in pieces:
            message.feed(piece)
        message.finish()
        both.append((message, events))
    (first, events), (second, others) = both
    assert contents(first) == contents(second)
    assert first.head == second.head
    assert first.urls == second.urls
    assert set(events) == set(others)
    return first, sorted(set(events))


def contents(message: Message) -> list[tuple[bytes, bytes]]:
    return [(file.name, file.view()) for file in message.files.files]


MIXED = b"""\
From: a@example.com\r
Subject: one\r
 and two\r
Content-Type: multipart/mixed; boundary="out"\r
\r
preamble\r
--out\r
Content-Type: text/plain\r
\r
See http://example.com/one and HTTP://example.com/two.\r
--out\r
Content-Type: application/x-dosexec; name=b.exe\r
Content-Transfer-Encoding: base64\r
\r
TVqQAAMA\r
AAAEAA==\r
--out\r
Content-Type: multipart/alternative; boundary=outer\r
\r
--outer\r
Content-Disposition: attachment; filename="c.txt"\r
Content-Transfer-Encoding: quoted-printable\r
\r
caf=E9=\r
!\r
--outer--\r
--out\r
Content-Disposition: attachment; filename=d.txt\r
\r
one\r
two\r
--out--\r
epilogue\r
"""


def test_message() -> None:
    message, events = read(MIXED)
    assert contents(message) == [
        (b"b.exe", base64.b64decode(b"TVqQAAMAAAAEAA==")),
        (b"c.txt", b"caf\xe9!\r\n"),
        (b"d.txt", b"one\r\ntwo"),
    ]
    assert message.values(b"subject") == [b"oneand two"]
    assert message.values(b"content-type") == [b'multipart/mixed; boundary="out"']
    assert message.urls == [b"example.com/one", b"example.com/two."]
    assert events == []


def test_message_of_the_library() -> None:
    """What Python's own mail package writes."""
    made = email.message.EmailMessage()
    made["Subject"] = "s"
    made.set_content("hello")
    made.add_attachment(b"\0\1\2" * 100, maintype="application", subtype="octet-stream", filename="x.bin")
    made.add_attachment("caf\u00e9\n", filename="y.txt")
    message, events = read(made.as_bytes())
    assert contents(message) == [(b"x.bin", b"\0\1\2" * 100), (b"y.txt", "caf\u00e9\n".encode())]
    assert events == []


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        (b"7bit", b"Subject: in\r\nContent-Disposition: x; filename=in.exe\r\n\r\nMZ\r\n", [(b"in.exe", b"MZ")]),
        # A coding is not allowed here; it is not believed when the head can be read, and is when it cannot.
        (b"base64", b"Subject: in\r\nContent-Disposition: x; filename=in.exe\r\n\r\nMZ\r\n", None),
        (b"base64", b"TVo=\r\n", [(b"out.eml", b"MZ")]),
    ],
)
def test_message_within_a_message(coding: bytes, body: bytes, expected: list[tuple[bytes, bytes]] | None) -> None:
    head = b"Content-Type: message/rfc822; name=out.eml\r\nContent-Transfer-Encoding: " + coding + b"\r\n\r\n"
    message, _ = read(head + body)
    if expected is None:
        assert contents(message)[-1] == (b"in.exe", b"MZ")
    else:
        assert contents(message) == expected


@pytest.mark.parametrize(
    ("mail", "event"),
    [
        (b"A: b\r\n\r\n" + b"x" * 999 + b"\r\n", "mime_long_line"),
        (b"x" * 76 + b": b\r\n\r\n", "mime_long_header_name"),
        (b"A: " + b"b" * 2001 + b"\r\n\r\n", "mime_long_header_value"),
        (b"A: b\r\n" + b" cccccccc\r\n" * 250 + b"\r\n", "mime_long_header_value"),
        (b"A: " + b"b" * 5000 + b"\r\n\r\n", "truncated_line"),
        (b"Content-Type: a/b; boundary=" + b"c" * 255 + b"\r\n\r\n", "mime_long_boundary"),
        (b"Content-Disposition: a; filename=" + b"c" * 256 + b"\r\n\r\n", "mime_long_filename"),
    ],
)
def test_events(mail: bytes, event: str) -> None:
    _, events = read(mail)
    assert event in events


def test_bounds() -> None:
    limits = AppLimits(file=10, file_total=25, file_names=2, mail_head=200, mail_depth=2, mail_urls=1)
    part = b"--b\r\nContent-Disposition: a; filename=f%d\r\n\r\n0123456789abc\r\n"
    files = Files(limits)
    message = Message(files, limits, lambda event: None)
    message.feed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n")
    for number in range(6):
        files.judged()
        message.feed(part % number)
    message.finish()
    assert [file.name for file in files.files] == [b"f3", b"f4", b"f5"]
    assert list(files.names) == [b"f4", b"f5"]
    assert files.data() == [b"0123456789"] * 3
    assert files.data().gone == 3 * 11
    assert files.files[0].size == 13

    many, events = read(b"X: y\r\n" * 100 + b"\r\nhttp://a http://b\r\n", limits)
    assert len(many.values(b"x")) == 200 // len(b"X: y")
    assert "mime_long_header_value" in events
    assert many.urls == [b"a"]

    deep = b"".join(b"Content-Type: multipart/x; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(3))
    _, events = read(deep, limits)
    assert events == ["mime_parse_failed"]


@given(st.binary(max_size=400) | st.sampled_from(corpus("mime")), st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_any_message(mail: bytes, cut: int) -> None:
    """Lines of any bytes: never raises, and says the same of blocks of lines as of single ones."""
    message, _ = read(mail + b"\n")
    for file in message.files.files:
        assert file.closed
        assert len(file.data) <= AppLimits().file
    pieces = Message(Files(AppLimits()), AppLimits(), lambda event: None)
    for at in range(0, len(mail), cut):  # pieces of lines, as of lines that are too long
        pieces.feed(mail[at : at + cut])
    pieces.finish()

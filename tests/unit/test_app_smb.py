"""SMB 1 and 2: trees, names, files in pieces, DCERPC on pipes, compounded and broken messages, and rules on them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.limits import AppLimits
from engines.stateful.app.smb import SmbParser
from tests.unit.app_feeding import C, S, Script, cutting_changes_nothing, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.dcekit import FIRST, LAST, bind, bind_ack, request, response
from tests.unit.rulekit import refusal
from tests.unit.smbkit import (
    CLOSE,
    ECHO,
    READ,
    SESSION,
    WRITE,
    andx,
    close,
    create,
    created,
    done,
    framed,
    ioctl,
    ioctl_done,
    read,
    session_setup,
    smb1,
    smb2,
    tree_connect,
    tree_connected,
    was_read,
    write,
)
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

NAMES = [
    "smb.version",
    "smb.share",
    "smb.named_pipe",
    "smb.ntlmssp_user",
    "smb.ntlmssp_domain",
    "file.data",
    "file.name",
    "dcerpc.iface",
    "dcerpc.opnum",
    "dcerpc.stub_data",
]
FILE, OTHER = b"0123456789abcdef", b"fedcba9876543210"
UUID = "12345678-1234-abcd-ef00-0123456789ab"


def opened(path: str = "\\\\server\\share", kind: int = 1, name: str = "dir\\a.exe") -> Script:
    return [
        (C, framed(tree_connect(path))),
        (S, framed(tree_connected(kind))),
        (C, framed(create(name))),
        (S, framed(created(FILE))),
    ]


def test_session_and_trees() -> None:
    script = [
        (C, framed(session_setup("joe", "CORP"))),
        (S, framed(done(SESSION, 1))),
        (C, framed(tree_connect("\\\\server\\share", 2))),
        (S, framed(tree_connected(1, 2))),
        (C, framed(tree_connect("\\\\server\\IPC$", 3))),
        (S, framed(tree_connected(2, 3))),
    ]
    for parser, (session, disk, pipe) in every_way(SmbParser, script):
        assert list(session.buffer("smb.ntlmssp_user", C)) == [b"joe"]
        assert list(session.buffer("smb.ntlmssp_domain", C)) == [b"CORP"]
        assert list(disk.buffer("smb.share", C)) == [b"\\server\\share"]
        assert list(disk.buffer("smb.share", S)) == []
        assert list(disk.buffer("smb.named_pipe")) == []
        assert list(pipe.buffer("smb.named_pipe", C)) == [b"\\server\\IPC$"]
        assert list(pipe.buffer("smb.share")) == []
        assert list(pipe.buffer("smb.version")) == [b"\2"]
        assert all(tx.is_complete(C) and tx.is_complete(S) for tx in (session, disk, pipe))
        assert parser.held(C) == parser.held(S) == 0
        assert pipe.log_fields()["named_pipe"] == "\\server\\IPC$"


def test_a_file_written() -> None:
    """In order, compounded, early, and twice."""
    script = [
        *opened(),
        (C, framed(write(FILE, b"one ", 0, 3), write(FILE, b"two ", 4, 4))),
        (C, framed(write(FILE, b"four", 14, 5))),
        (C, framed(write(FILE, b"three ", 8, 6))),
        (S, framed(done(WRITE, 3), done(WRITE, 4))),
        (C, framed(close(FILE))),
        (S, framed(done(CLOSE, 9))),
    ]
    for _, transactions in every_way(SmbParser, script):
        (tx,) = [tx for tx in transactions if tx.buffer("file.data")]
        assert list(tx.buffer("file.data", C)) == [b"one two three four"]
        assert list(tx.buffer("file.name", C)) == [b"dir\\a.exe"]
        assert list(tx.buffer("file.data", S)) == []
        assert tx.events == []
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.log_fields()["filename"] == "dir\\a.exe"


def test_a_file_read() -> None:
    script = [
        *opened(),
        (C, framed(read(FILE, 0, 3)) + framed(read(FILE, 3, 4)) + framed(read(FILE, 6, 5))),
        (S, framed(smb2(READ, bytes(9), 3, response=True, status=0x103))),  # wait
        (S, framed(was_read(b"abc", 3)) + framed(was_read(b"def", 4))),
        (S, framed(was_read(b"", 5, 0xC0000011))),
    ]
    for _, transactions in every_way(SmbParser, script):
        (tx,) = [tx for tx in transactions if tx.buffer("file.data")]
        assert list(tx.buffer("file.data", S)) == [b"abcdef"]
        assert list(tx.buffer("file.name", S)) == [b"dir\\a.exe"]
        assert tx.is_complete(S)


@pytest.mark.parametrize("version", [1, 2])
def test_data_of_files_is_not_waited_for(version: int) -> None:
    """Neither kept nor held until the record is complete; of a pipe it is."""
    content = bytes(range(256)) * 8
    fid = b"\x34\x12"
    if version == 2:
        there = [*opened(), (C, framed(write(FILE, content)))]
        back = [*opened(), (C, framed(read(FILE))), (S, framed(was_read(content)))]
    else:
        tree = b"\0\\\\s\\a\0A:\0"
        start = [
            (C, framed(smb1(0x75, andx(struct.pack("<HH", 0, 1)), tree, wide=False))),
            (S, framed(smb1(0x75, andx(bytes(2)), b"A:\0", response=True))),
        ]
        words = andx(fid + struct.pack("<IIHHHHHI", 0, 0, 0, 0, 0, len(content), 64, 0))
        there = [*start, (C, framed(smb1(0x2F, words, b"\0" + content, 3)))]
        words = andx(struct.pack("<HHHHHH8x", 0, 0, 0, len(content), 60, 0))
        asked = (C, framed(smb1(0x2E, andx(fid + bytes(18)), b"", 6)))
        back = [*start, asked, (S, framed(smb1(0x2E, words, b"\0" + content, 6, response=True)))]
    for script, side in ((there, C), (back, S)):
        for _, transactions in every_way(SmbParser, script):
            assert [list(tx.buffer("file.data", side)) for tx in transactions if tx.files] == [[content]]
        parser = SmbParser()
        play(parser, script[:-1])
        parser.feed(side, script[-1][1][:400])
        assert parser.held(side) == 0
        (data,) = parser.transactions[-1].buffer("file.data", side)
        assert 250 < len(data) < 400
        assert content.startswith(data)
    parser = SmbParser()
    play(parser, opened("\\\\server\\IPC$", 2, "spoolss"))
    parser.feed(C, framed(write(FILE, request(1, content)))[:400])
    assert parser.held(C) == 400


def test_overlapping_writes() -> None:
    script = [*opened(), (C, framed(write(FILE, b"abcdef", 0)) + framed(write(FILE, b"XXXXghi", 2, 4)))]
    for _, transactions in every_way(SmbParser, script):
        tx = transactions[-1]
        assert list(tx.buffer("file.data")) == [b"abcdefghi"]
        assert tx.events == ["file_overlap"]


def test_a_hole_that_is_never_filled() -> None:
    script = [*opened(), (C, framed(write(FILE, b"late", 100))), (C, framed(close(FILE)))]
    for _, transactions in every_way(SmbParser, script):
        assert [list(tx.buffer("file.data")) for tx in transactions if tx.buffer("file.data")] == [[b"late"]]
    parser = SmbParser(AppLimits(file=10))
    play(parser, [*opened(), (C, framed(write(FILE, b"123456", 100)) + framed(write(FILE, b"789012", 106, 4)))])
    assert list(parser.transactions[-1].buffer("file.data")) == [b"1234567890"]


def test_a_record_longer_than_what_is_read() -> None:
    limits = AppLimits(smb_record=200, file=50)
    script = [*opened(), (C, framed(write(FILE, b"x" * 500)) + framed(smb2(ECHO, b"\4\0\0\0", 8)))]
    for cut in (0, 1, 7):
        parser = SmbParser(limits)
        *_, file, echo = play(parser, script, cut)
        assert list(file.buffer("file.data")) == [b"x" * 50]
        assert list(echo.buffer("smb.version")) == [b"\2"]
        assert parser.held(C) == 0


@pytest.mark.parametrize("known", [True, False])
def test_dcerpc_on_a_pipe(known: bool) -> None:
    """Told by the tree, or by what is written when the capture begins later; in pieces, too."""
    call = request(7, b"stub data")
    script = [
        *(opened("\\\\server\\IPC$", 2, "spoolss") if known else []),
        (C, framed(write(FILE, bind([(0, UUID, 1)]), 0, 3))),
        (S, framed(done(WRITE, 3))),
        (C, framed(read(FILE, 0, 4))),
        (S, framed(was_read(bind_ack([0])[:20], 4, 0x80000005))),
        (C, framed(read(FILE, 0, 5))),
        (S, framed(was_read(bind_ack([0])[20:], 5))),
        (C, framed(ioctl(FILE, call[:30], 6)) + framed(ioctl(FILE, call[30:], 7))),
        (S, framed(ioctl_done(response(b"answer"), 7))),
    ]
    for _, transactions in every_way(SmbParser, script):
        bound, tx = [tx for tx in transactions if tx.call is not None]
        assert bound.is_complete(S)
        assert list(tx.buffer("dcerpc.opnum")) == [b"\0\7"]
        assert len(tx.buffer("dcerpc.iface")) == 1
        assert list(tx.buffer("dcerpc.stub_data", C)) == [b"stub data"]
        assert list(tx.buffer("dcerpc.stub_data", S)) == [b"answer"]
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert not any(other.buffer("file.data") for other in transactions)
        assert tx.log_fields()["dcerpc"]["call_id"] == 2


def test_a_pipe_of_something_else() -> None:
    script = [*opened("\\\\server\\IPC$", 2, "other"), (C, framed(write(FILE, b"hello")))]
    for _, transactions in every_way(SmbParser, script):
        assert not any(tx.buffer("file.data") or tx.call for tx in transactions)


def test_version_1() -> None:
    path = bytes(1) + "\\\\server\\share".encode("utf-16-le") + b"\0\0" + b"A:\0"
    name = bytes(1) + "a.exe".encode("utf-16-le")
    fid = b"\x34\x12"
    script = [
        (C, framed(smb1(0x75, andx(struct.pack("<HH", 0, 0)), path))),
        (S, framed(smb1(0x75, andx(bytes(2)), b"A:\0", response=True))),
        (C, framed(smb1(0xA2, andx(struct.pack("<BH", 0, 10) + bytes(41)), name, 2))),
        (S, framed(smb1(0xA2, andx(bytes(1) + fid + bytes(61)), b"", 2, response=True))),
        (C, framed(smb1(0x2F, andx(fid + struct.pack("<IIHHHHHI", 0, 0, 0, 0, 0, 5, 64, 0)), b"\0hello", 3))),
        (C, framed(smb1(0x04, fid + bytes(4), b"", 4))),
    ]
    for parser, transactions in every_way(SmbParser, script):
        assert [list(tx.buffer("smb.share")) for tx in transactions if tx.buffer("smb.share")] == [[b"\\server\\share"]]
        (tx,) = [tx for tx in transactions if tx.buffer("file.data")]
        assert list(tx.buffer("file.data", C)) == [b"hello"]
        assert list(tx.buffer("file.name", C)) == [b"a.exe"]
        assert list(tx.buffer("smb.version")) == [b"\1"]
        assert tx.is_complete(C)
        assert parser.held(C) == 0


def test_version_1_reads_pipes_and_chains() -> None:
    fid = b"\x34\x12"
    call = request(3, b"stub")
    session = andx(bytes(20), 0x75, 32 + 1 + 24 + 2 + 2)
    tree = bytes([4]) + andx(struct.pack("<HH", 0, 1)) + struct.pack("<H", 30) + b"\0\\\\server\\IPC$\0IPC\0"
    chained = smb1(0x73, session, b"xx" + tree, wide=False)
    trans = struct.pack("<HHHHBBHIHHHHHBBHH", 0, len(call), 0, 0, 0, 0, 0, 0, 0, 0, 0, len(call), 76, 2, 0, 0x26, 0)
    trans = trans[:30] + fid
    answer = response(b"answer")
    answered = struct.pack("<HHHHHHHHHBB", 0, 0, 0, 0, 0, 0, len(answer), 56, 0, 0, 0)
    script = [
        (C, framed(chained)),
        (C, framed(smb1(0x25, trans, bytes(9) + call, 5))),
        (S, framed(smb1(0x25, answered, b"\0" + answer, 5, response=True))),
        (C, framed(smb1(0x2E, andx(OTHER[:2] + bytes(18)), b"", 6))),
        (S, framed(smb1(0x2E, andx(struct.pack("<HHHHHH8x", 0, 0, 0, 3, 60, 0)), b"\0abc", 6, response=True))),
    ]
    for _, transactions in every_way(SmbParser, script):
        assert [list(tx.buffer("smb.named_pipe")) for tx in transactions if tx.share] == [[b"\\server\\IPC$"]]
        (tx,) = [tx for tx in transactions if tx.call is not None]
        assert list(tx.buffer("dcerpc.stub_data", C)) == [b"stub"]
        assert list(tx.buffer("dcerpc.stub_data", S)) == [b"answer"]
        (file,) = [tx for tx in transactions if tx.files is not None]
        assert list(file.buffer("file.data", S)) == [b"abc"]


def test_negotiation_of_a_newer_version() -> None:
    script = [(C, framed(smb1(0x72, b"", b"\2SMB 2.002\0"))), (S, framed(smb2(0, bytes(64), 0, response=True)))]
    for _, (tx,) in every_way(SmbParser, script):
        assert list(tx.buffer("smb.version")) == [b"\1"]
        assert tx.is_complete(S)


def test_what_is_passed_over() -> None:
    """Session requests, encrypted records, responses from clients, records of something else."""
    script = [
        (C, b"\x81\0\0\4abcd" + framed(b"\xfdSMB" + bytes(60)) + framed(b"junk") + framed(b"") + framed(done(ECHO, 1))),
        (C, framed(smb2(ECHO, b"\4\0\0\0", 2))),
    ]
    for parser, transactions in every_way(SmbParser, script):
        assert len(transactions) == 1
        assert parser.held(C) == 0


def test_after_lost_bytes() -> None:
    parser = SmbParser()
    play(parser, [*opened(), (C, framed(write(FILE, b"abc"))[:50])])
    parser.close(C)
    parser.feed(C, b"x" * 30 + framed(smb2(ECHO, b"\4\0\0\0", 8))[:9])
    parser.feed(C, framed(smb2(ECHO, b"\4\0\0\0", 8))[9:])
    assert parser.transactions[-1].command == ECHO


def test_bounds() -> None:
    limits = AppLimits(smb_table=2, smb_files=2, smb_pipes=2)
    parser = SmbParser(limits)
    files = [bytes([number]) * 16 for number in range(4)]
    play(parser, [(C, framed(write(file, b"x", 0, number))) for number, file in enumerate(files)])
    assert [tx.is_complete(C) for tx in parser.transactions] == [True, True, False, False]
    parser = SmbParser(limits)
    play(parser, [(C, framed(ioctl(file, request(1, b""), number))) for number, file in enumerate(files)])
    assert [tx.is_complete(S) for tx in parser.transactions] == [True, True, False, False]
    parser = SmbParser(limits)
    play(parser, [(C, framed(smb2(ECHO, b"\4\0\0\0", number))) for number in range(4)])
    assert [tx.is_complete(S) for tx in parser.transactions] == [True, True, False, False]


SCRIPT = [
    *opened(),
    (C, framed(write(FILE, b"one ", 0, 3), write(FILE, b"two ", 4, 4))),
    (C, framed(ioctl(OTHER, bind([(0, UUID, 1)]), 5))),
    (S, framed(ioctl_done(bind_ack([0]), 5))),
    (C, framed(ioctl(OTHER, request(1, b"x", flags=FIRST), 6)) + framed(ioctl(OTHER, request(1, b"x", flags=LAST), 7))),
    (C, framed(session_setup("joe", "CORP"))),
    (C, framed(write(FILE, bytes(400), 8, 8))),
    (C, framed(smb1(0x75, andx(struct.pack("<HH", 0, 0)), b"\0\\\0\\\0a\0\0\0A:\0"))),
]


def test_mutations() -> None:
    survives(SmbParser, SCRIPT, NAMES, rounds=600, seed=14)


@given(st.binary(max_size=200) | st.sampled_from(corpus("smb")), st.sampled_from([C, S]), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, side: int, cut: int) -> None:
    direction = C if side == C else S
    cutting_changes_nothing(SmbParser, [*opened(), (C, framed(read(FILE, 0, 3)))], direction, data, cut, NAMES)


def test_rules() -> None:
    rules = f"""
        alert smb {ANY} (smb.share; content:"share"; sid:1;)
        alert smb {ANY} (smb_named_pipe; content:"IPC$"; sid:2;)
        alert smb {ANY} (flow:to_server; smb.version:2; smb.ntlmssp_user; content:"joe"; sid:3;)
        alert smb {ANY} (file.name; content:".exe"; endswith; file.data; content:"MZ"; startswith; sid:4;)
        alert smb {ANY} (flow:to_server; dcerpc.opnum:7; dcerpc.iface:{UUID}; sid:5;)
        drop tcp {ANY} (file_data; content:"evil"; sid:6;)
    """
    flow = Flow(compiled(rules), port=445).handshake()
    assert flow.data(UP, framed(session_setup("joe", "CORP"))) == "accept 3"
    for direction, data in opened():
        flow.data(UP if direction is C else DOWN, data)
    assert flow.inspector.app_proto == "smb"
    assert flow.data(UP, framed(write(FILE, b"MZ ev"))) == "accept 4"
    flow.data(UP, framed(ioctl(OTHER, bind([(0, UUID, 1)]), 5)))
    flow.data(DOWN, framed(ioctl_done(bind_ack([0]), 5)))
    assert flow.data(UP, framed(ioctl(OTHER, request(7, b""), 6))) == "accept 5"
    record = framed(write(FILE, b"il", 5, 7))
    assert flow.data(UP, record[:50]) == "accept"
    assert flow.held == (50, 0)
    assert flow.data(UP, record[50:]) == "drop! 6"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("smb.version:3;", "expected one of 1, 2"),
        ("smb.version:2; smb.version:1;", "twice"),
        ('smb.share; content:"a"; flow:to_client;', "to the server only"),
    ],
)
def test_refused(options: str, why: str) -> None:
    assert why in refusal(options, "alert smb any any -> any any")

"""Digests of whole files, however they come, and the keywords that ask for them."""

from __future__ import annotations

import gzip
import hashlib
import random
from pathlib import Path

import pytest

from engines.stateful.app.bodies import Body, decoders_for
from engines.stateful.app.ftp import FtpDataParser
from engines.stateful.app.limits import AppLimits
from engines.stateful.expect import Expected
from engines.stateful.parser import ParsedRules, Variables, parse_rules
from engines.stateful.ruleconfig import RuleConfig
from engines.stateful.ruleset import compile_ruleset
from nfw.policy.files import list_reader
from tests.unit.app_feeding import C, S
from tests.unit.test_inspector import ANY, DOWN, GET, UP, Flow
from tests.unit.test_rule_mail import HEAD, PART, dialogue

CONTENT = random.Random(5).randbytes(300_000)
ALL = frozenset({"file.md5", "file.sha1", "file.sha256"})


def parsed(options: str, lists: dict[str, bytes], action: str = "drop") -> ParsedRules:
    def read(name: str) -> bytes:
        if name not in lists:
            raise OSError(0, "does not exist")
        return lists[name]

    return parse_rules(
        f"{action} tcp {ANY} ({options} sid:1;)", "t.rules", Variables(), config=RuleConfig(read_list=read)
    )


def flow(options: str, content: bytes = CONTENT, port: int = 80) -> Flow:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest().encode()
    found = parsed(options, {"list": b"# a comment\n\n" + digest + b"  name of it\n"})
    assert not found.errors, [str(error) for error in found.errors]
    return Flow(compile_ruleset(found.signatures), port=port).handshake()


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("size", [1460, 65536])
def test_a_body_longer_than_what_rules_see(coded: bool, size: int) -> None:
    """Dropped with its last piece; nothing is held once what can be seen has been."""
    body = gzip.compress(CONTENT) if coded else CONTENT
    inspected = flow("filemd5:list;")
    inspected.data(UP, GET)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body) + b"Content-Encoding: gzip\r\n" * coded
    message = head + b"\r\n" + body
    said = [inspected.data(DOWN, message[at : at + size]) for at in range(0, len(message) - size, size)]
    assert set(said) == {"accept"}
    assert inspected.held == (0, 0)
    assert inspected.data(DOWN, message[(len(message) - 1) // size * size :]) == "drop! 1"


def test_another_body() -> None:
    for options, said in (("filemd5:list;", "accept"), ("filemd5:!list;", "drop! 1")):
        inspected = flow(options, b"something else")
        inspected.data(UP, GET)
        assert inspected.data(DOWN, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") == said


def test_an_attachment() -> None:
    inspected = flow("filemd5:list; filename:two;", b"hello", 25)
    dialogue(inspected)
    assert inspected.data(UP, HEAD + PART % (b"one", b"other") + PART % (b"two", b"hel")) == "accept"
    assert inspected.data(UP, PART % (b"two", b"hello") + b"--b\r\n") == "drop! 1"


def test_a_transfer() -> None:
    limits = AppLimits(file=10, hashes=ALL)
    parser = FtpDataParser(limits, hold_body=True)
    parser.begin(b"", b"", Expected("ftp-data", 1025, "retr", b"f", False, False))
    parser.feed(S, CONTENT[:8])
    assert parser.held(S) == 8
    parser.feed(S, CONTENT[8:])
    assert parser.held(S) == 0
    assert not parser.finished
    (tx,) = parser.transactions
    assert list(tx.buffer("file.sha256", S)) == []
    parser.close(S)
    assert list(tx.buffer("file.sha256", S)) == [hashlib.sha256(CONTENT).digest()]
    assert list(tx.buffer("file.sha1", S)) == [hashlib.sha1(CONTENT, usedforsecurity=False).digest()]
    assert list(tx.buffer("file.md5", C)) == []
    assert list(tx.buffer("file.data")) == [CONTENT[:10]]


@pytest.mark.parametrize(("limit", "there"), [(len(CONTENT), True), (len(CONTENT) - 1, False)])
def test_a_file_too_long_has_no_digest(limit: int, there: bool) -> None:
    for coding, body in ((b"", CONTENT), (b"gzip", gzip.compress(CONTENT))):
        limits = AppLimits(hashes=ALL, hashed=limit)
        made = Body(100, decoders_for(coding, limits)[0], limits)
        for at in range(0, len(body), 5000):
            made.feed(body[at : at + 5000])
        assert made.digest("file.md5") is None  # it may go on
        made.finish()
        assert (made.digest("file.md5") == hashlib.md5(CONTENT, usedforsecurity=False).digest()) == there
        assert made.full != there
        assert made.view() == CONTENT[:100]


def test_nobody_asks() -> None:
    body = Body(100, [], AppLimits())
    assert body.feed(CONTENT)
    body.finish()
    assert body.digest("file.md5") is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("filemd5:missing;", "the list 'missing' does not exist"),
        ("filemd5:empty;", "is empty"),
        ("filesha1:md5;", "md5:1: expected 40 hexadecimal digits"),
        ("filesha256:words;", "words:2: expected 64 hexadecimal digits"),
        ("filemd5;", "filemd5"),
        ("filestore:everything;", "expected a side and a scope"),
    ],
)
def test_refused(options: str, why: str) -> None:
    lists = {"empty": b"# nothing\n", "md5": b"0" * 32, "words": b"0" * 64 + b"\nno digest\n"}
    found = parsed(options, lists)
    assert not found.signatures
    assert why in found.errors[0].message


def test_where_no_list_can_be_read() -> None:
    found = parse_rules(f"alert tcp {ANY} (filemd5:list; sid:1;)", "t.rules", Variables())
    assert "cannot be read here" in found.errors[0].message


@pytest.mark.parametrize("options", ["filestore;", "filestore:request,file;", "filestore:both, tx;"])
def test_filestore_matches_and_says_that_nothing_is_stored(options: str) -> None:
    found = parsed(options, {}, "alert")
    assert "not stored" in found.warnings[0].message
    inspected = Flow(compile_ruleset(found.signatures)).handshake()
    assert inspected.data(UP, GET) == "accept"
    assert inspected.data(DOWN, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") == "accept 1"
    assert inspected.data(UP, GET) == "accept"
    assert inspected.data(DOWN, b"HTTP/1.1 204 No Content\r\n\r\n") == "accept"


def test_lists_are_beside_the_rules(tmp_path: Path) -> None:
    (tmp_path / "bad.md5").write_bytes(b"0" * 32)
    read = list_reader(str(tmp_path / "t.rules"))
    assert read("bad.md5") == b"0" * 32
    with pytest.raises(OSError) as caught:
        read("other.md5")
    assert caught.value.strerror

"""Evaluation of conditions on bytes: positions, backtracking, numbers in the data, limits."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from engines.stateful.match import (
    MAX_INSPECTION_STEPS,
    Content,
    Extraction,
    StepMatcher,
    compile_program,
    decode_base64,
    match_buffer,
)
from engines.stateful.signature import BufferMatch
from tests.unit.rulekit import rule


def matches(options: str, data: bytes) -> bool:
    """The payload conditions of a rule with these options, on ``data``."""
    (buffer,) = rule(options).buffers
    return match_buffer(buffer, data, {})


@pytest.mark.parametrize(
    ("options", "yes", "no"),
    [
        ('content:"abc";', [b"abc", b"xabcx"], [b"", b"ab", b"aBc"]),
        ('content:"aBc"; nocase;', [b"ABC", b"xabc"], [b"ab"]),
        ('content:"|00 ff|a|3b|";', [b"\0\xffa;"], [b"a"]),
        ('content:!"abc";', [b"", b"ab"], [b"abc"]),
        ('content:!"abc"; nocase;', [b"ab"], [b"xABC"]),
        ('content:"b"; offset:1;', [b"ab", b"bb"], [b"ba", b"b"]),
        ('content:"b"; depth:2;', [b"ab", b"b"], [b"aab"]),
        ('content:"b"; offset:1; depth:2;', [b"ab", b"aab"], [b"baa", b"aaab"]),
        ('content:"b"; depth:2; offset:1;', [b"ab", b"aab"], [b"baa", b"aaab"]),
        ('content:!"b"; offset:1; depth:1;', [b"baa", b"b", b"", b"aab"], [b"ab"]),
        ('content:"ab"; startswith;', [b"ab", b"abc"], [b"xab", b"a"]),
        ('content:"ab"; endswith;', [b"ab", b"abcab"], [b"abx", b"b"]),
        ('content:"ab"; startswith; endswith;', [b"ab"], [b"abab", b"xab"]),
        ('content:!"ab"; endswith;', [b"abx", b"b", b""], [b"ab", b"abab"]),
        ('content:!"ab"; startswith;', [b"xab", b""], [b"ab"]),
        ('content:"a"; content:"b"; distance:1;', [b"axb", b"axxb"], [b"ab", b"bxa"]),
        ('content:"a"; content:"b"; within:2;', [b"ab", b"axb"], [b"axxb", b"ba"]),
        ('content:"a"; content:"b"; distance:1; within:1;', [b"axb"], [b"ab", b"axxb"]),
        ('content:"b"; content:"a"; distance:-2; within:1;', [b"ab"], [b"ba"]),
        ('content:"a"; content:"c"; distance:-9;', [b"ca"], [b"a"]),
        # another occurrence of the first content is tried when the second depends on it
        ('content:"a"; content:"b"; within:1;', [b"axab", b"aab"], [b"axaxb"]),
        ('content:"a"; content:"b"; within:1; content:"c"; within:1;', [b"ab abc", b"aababc"], [b"ab bc"]),
        ('content:"a"; content:!"b"; within:1;', [b"a", b"ac", b"abac"], [b"ab", b"abab"]),
        # distance alone gives the earlier content no second chance (as in Suricata)
        ('content:"a"; content:!"b"; distance:0;', [b"ba"], [b"aba"]),
        ('content:"a"; content:"bc"; distance:0; endswith;', [b"abcbc"], [b"abcd"]),
        # a condition between does not move the cursor when it is negated
        ('content:"a"; content:!"x"; content:"b"; distance:0;', [b"ab"], [b"axb", b"ba"]),
        ("isdataat:3;", [b"abcd"], [b"abc", b""]),
        ("isdataat:!3;", [b"abc", b""], [b"abcd"]),
        ('content:"a"; isdataat:2,relative;', [b"abc", b"xabcd"], [b"ab", b"cba"]),
        ('content:"a"; isdataat:!1,relative;', [b"ba", b"aba"], [b"ab"]),
        ('pcre:"/a.c/";', [b"abc", b"xa\xffc"], [b"a\nc", b"ac"]),
        ('pcre:"/A.C/is";', [b"a\nc"], [b"ac"]),
        ('pcre:"/^b$/m";', [b"a\nb\nc"], [b"ab"]),
        ('pcre:"/a b/x";', [b"ab"], [b"a b"]),
        ('pcre:"/b/A";', [b"ba"], [b"ab"]),
        ('pcre:"/b$/E";', [b"ab"], [b"ab\n"]),
        ('pcre:"/b$/";', [b"ab", b"ab\n"], [b"abc"]),
        ('pcre:!"/ab/";', [b"ba"], [b"ab"]),
        ("pcre:/ab\\/c/;", [b"ab/c"], [b"abc"]),
        ('content:"a"; pcre:"/^b/R";', [b"ab", b"acab"], [b"acb"]),
        ('pcre:"/a[bc]/"; content:"d"; within:1;', [b"abd", b"ab acd"], [b"ab d"]),
        ('pcre:"/a/"; pcre:!"/b/R";', [b"ba"], [b"ab"]),
    ],
)
def test_positions(options: str, yes: list[bytes], no: list[bytes]) -> None:
    for data in yes:
        assert matches(options, data), data
    for data in no:
        assert not matches(options, data), data


@pytest.mark.parametrize(
    ("options", "yes", "no"),
    [
        ("byte_test:2,>,256,0;", [b"\x01\x01"], [b"\x01\x00", b"\x09"]),
        ("byte_test:2,=,256,0,little;", [b"\x00\x01"], [b"\x01\x00"]),
        ("byte_test:1,!=,3,1;", [b"\0\2"], [b"\0\3", b"\0"]),
        ("byte_test:1,!>,3,0;", [b"\3"], [b"\4", b""]),
        ("byte_test:1,&,0x81,0;", [b"\x80", b"\x01"], [b"\x7e"]),
        ("byte_test:1,!&,128,0;", [b"\x7f"], [b"\x80"]),
        ("byte_test:1,^,5,0;", [b"\4"], [b"\5"]),
        ("byte_test:4,=,1234,0,string,dec;", [b"1234x", b" 123 1234"[5:]], [b"1235", b"123"]),
        ("byte_test:4,=,0xbeef,0,string,hex;", [b"beef", b"BEEF"], [b"bee "]),
        ("byte_test:0,>,1000,0,string,dec;", [b"4096 bytes", b"1001"], [b"999", b"x", b""]),
        ("byte_test:2,=,1,0,bitmask 0x0f00;", [b"\xf1\xff"], [b"\x02\xff"]),
        ('content:"L"; byte_test:1,=,7,1,relative;', [b"L\0\7"], [b"L\7", b"L"]),
        ('content:"L"; byte_test:1,=,7,-2,relative;', [b"\7L"], [b"\6L", b"L"]),
        ('content:"L"; byte_test:1,=,7,0,relative;', [b"L\1L\7"], [b"L\1"]),
        ('byte_jump:1,0; content:"x"; within:1;', [b"\2abx"], [b"\2axb", b"\1abx"]),
        ('byte_jump:1,0,relative; content:"x"; within:1;', [b"\2abx"], [b"\2axb"]),
        ('byte_jump:1,0,multiplier 2; content:"x"; within:1;', [b"\1abx"], [b"\2abx"]),
        ('byte_jump:1,0,align; content:"x"; within:1;', [b"\3abcdx"], [b"\3abcx"]),
        ('byte_jump:1,0,from_beginning; content:"x"; within:1;', [b"\2ax"], [b"\2xa", b"\x09ax"]),
        ('byte_jump:1,0,post_offset -1; content:"x"; within:1;', [b"\2ax"], [b"\2xa"]),
        ('byte_jump:2,0,string,dec; content:"x"; within:1;', [b"02abx"], [b"02axb"]),
        ("byte_jump:1,0; isdataat:!2,relative;", [b"\1ab"], [b"\1abcd"]),
        ('byte_extract:1,0,n; content:"x"; offset:n;', [b"\2ax"], [b"\2xa"]),
        ('byte_extract:1,0,n; content:"x"; depth:n;', [b"\2x"], [b"\2ax"]),
        ('byte_extract:1,0,n; content:"x"; distance:n; within:1;', [b"\2abx"], [b"\2abbx"]),
        ('byte_extract:1,0,n; content:"x"; distance:0; within:n;', [b"\2ax"], [b"\2aax"]),
        ("byte_extract:1,0,n; byte_test:1,=,n,1;", [b"\5\5"], [b"\5\6"]),
        ("byte_extract:1,0,n,multiplier 3; byte_test:1,=,n,1;", [b"\2\6"], [b"\2\2"]),
        ("byte_extract:1,0,n,align 4; byte_test:1,=,n,1;", [b"\3\4"], [b"\3\3"]),
        ("byte_extract:1,0,n; isdataat:n;", [b"\2ab"], [b"\3ab"]),
        ("byte_extract:1,0,n; isdataat:!n,relative;", [b"\2a"], [b"\2ab"]),
        ("byte_math:bytes 1, offset 0, oper +, rvalue 3, result r; byte_test:1,=,r,1;", [b"\1\4"], [b"\1\3"]),
        ("byte_math:bytes 1, offset 0, oper *, rvalue 3, result r; byte_test:1,=,r,1;", [b"\2\6"], [b"\2\5"]),
        ("byte_math:bytes 1, offset 0, oper <<, rvalue 1, result r; byte_test:1,=,r,1;", [b"\2\4"], [b"\2\2"]),
        (
            "byte_extract:1,0,d; byte_math:bytes 1, offset 1, oper /, rvalue d, result r; byte_test:1,=,r,2;",
            [b"\2\6\3"],
            [b"\0\6\3", b"\2\6\2"],
        ),
        (
            'base64_decode:bytes 8, offset 1; base64_data; content:"hello"; startswith;',
            [b"xaGVsbG8="],
            [b"xaGVsbA==", b"x", b""],
        ),
        (
            'content:"="; base64_decode:relative; base64_data; content:"a"; content:"b"; within:1;',
            [b"=YWI="],
            [b"=YWE="],
        ),
    ],
)
def test_numbers_in_the_data(options: str, yes: list[bytes], no: list[bytes]) -> None:
    for data in yes:
        assert matches(options, data), data
    for data in no:
        assert not matches(options, data), data


def slow(items: Sequence[Content], data: bytes, cursor: int = 0) -> bool:
    """The definition: try every place for the first content, then the rest from there."""
    if not items:
        return True
    item = items[0]
    text = data.lower() if item.nocase else data
    places = []
    for at in range(len(data) - len(item.pattern) + 1):
        end = at + len(item.pattern)
        if text[at:end] != item.pattern:
            continue
        if item.distance is None and item.within is None:
            good = at >= int(item.offset) and (item.depth is None or end <= int(item.offset) + int(item.depth))
        else:
            gap = int(item.distance or 0)
            good = at >= cursor + gap and (item.within is None or end <= cursor + gap + int(item.within))
        if good and (not item.endswith or end == len(data)):
            places.append(end)
    if item.negated:
        return not places and slow(items[1:], data, cursor)
    return any(slow(items[1:], data, end) for end in places)


def test_backtracking_against_a_slow_twin() -> None:
    """Positive contents in any relation, then perhaps a negated one, on text of three letters."""
    dice = random.Random(3)
    outcomes = [0, 0]
    for _ in range(6000):
        items: list[Content] = []
        for index in range(dice.randint(1, 4)):
            options: dict[str, Any] = {"pattern": bytes(dice.choices(b"abc", k=dice.randint(1, 2)))}
            options["nocase"] = dice.random() < 0.2
            options["endswith"] = dice.random() < 0.1
            if index and dice.random() < 0.7:
                if dice.random() < 0.7:
                    options["within"] = dice.randint(len(options["pattern"]), 5)
                if dice.random() < 0.6 or "within" not in options:
                    options["distance"] = dice.randint(-3, 3)
            else:
                options["offset"] = dice.choice([0, 0, 1, 3])
                options["depth"] = dice.choice([None, None, 3, 6])
            items.append(Content(**options))
        if dice.random() < 0.3:
            items.append(Content(b"c", negated=True, within=dice.randint(1, 3)))
        data = bytes(dice.choices(b"abcABC" if dice.random() < 0.3 else b"abc", k=dice.randint(0, 14)))
        expected = slow(items, data)
        outcomes[expected] += 1
        chain: list[Any] = list(items)
        assert compile_program(chain)(data, {}) is expected, (items, data)
    assert min(outcomes) > 500


def test_a_matcher_lists_its_cursors() -> None:
    assert list(Content(b"a").match(b"xaxa", 0, {})) == [2, 4]
    assert list(Content(b"b", negated=True).match(b"xaxa", 3, {})) == [3]


def test_backtracking_is_bounded() -> None:
    """Every pair of a's is a try; the bound ends it, without a match and soon."""
    (buffer,) = rule('content:"a"; content:"a"; within:5000; content:"a"; within:5000; content:"b"; within:1;').buffers
    started = time.process_time()
    assert not match_buffer(buffer, b"a" * (MAX_INSPECTION_STEPS * 2), {})
    assert time.process_time() - started < 1


def test_a_regex_that_would_backtrack_forever_gives_up() -> None:
    started = time.process_time()
    assert not matches('pcre:"/(a+)+$/";', b"a" * 5000 + b"b")
    assert not matches('pcre:!"/(a+)+$/";', b"a" * 5000 + b"b")
    assert time.process_time() - started < 1


def test_a_relative_regex_on_a_long_buffer_is_bounded_by_time_not_only_tries() -> None:
    started = time.process_time()
    assert not matches('content:"/"; pcre:"/[\\w]{8}/R";', b"/abc " * 13000)
    assert time.process_time() - started < 0.2


def test_no_bytes_make_a_matcher_raise() -> None:
    """Match or not, never raise: every kind of matcher on random bytes."""
    dice = random.Random(5)
    programs = [
        rule(options).buffers[0]
        for options in (
            'content:"a"; byte_extract:2,-3,n,relative; content:"b"; distance:n; within:n; isdataat:!n;',
            "byte_test:8,>,1,-5,relative,little; byte_jump:4,2,relative,multiplier 60000,post_offset -9;",
            'byte_jump:3,0,string,oct,from_end,align; pcre:"/a|\\d+/R"; byte_test:0,!=,3,-1,relative,string,hex;',
            "byte_math:bytes 4, offset 0, oper -, rvalue 9, result r; byte_jump:1,r; isdataat:r,relative;",
            "byte_math:bytes 2, offset 0, oper <<, rvalue 70, result r, bitmask 0xff00; byte_test:1,<,r,0;",
            'base64_decode:offset 1; base64_data; pcre:"/./s"; content:"a"; endswith;',
        )
    ]
    for _ in range(3000):
        data = dice.randbytes(dice.randint(0, 20)) if dice.random() < 0.5 else bytes(dice.choices(b"ab01 =", k=9))
        for program in programs:
            match_buffer(program, data, {})


def test_a_buffer_without_a_program_is_compiled_when_asked() -> None:
    content: StepMatcher = Content(b"a")
    assert match_buffer(BufferMatch("payload", (content,)), b"ba", {})
    assert match_buffer(BufferMatch("payload", ()), b"", {})


def test_variables_are_left_in_the_state() -> None:
    state: dict[str, int] = {}
    (buffer,) = rule("byte_extract:2,0,len; byte_math:bytes 1, offset 0, oper +, rvalue 1, result sum;").buffers
    assert match_buffer(buffer, b"\1\2", state)
    assert state == {"len": 258, "sum": 2}


@pytest.mark.parametrize(
    ("data", "value", "after"),
    [(b"12ab", 12, 2), (b"  7", 7, 3), (b"-1", 2**64 - 1, 2), (b"99999999999999999999", None, 0), (b"x1", None, 0)],
)
def test_digits_are_read_as_strtoull_does(data: bytes, value: int | None, after: int) -> None:
    found = Extraction(len(data), 0, base=10).read(data, 0, {})
    assert found == (None if value is None else (value, after))


@pytest.mark.parametrize(
    ("data", "decoded"),
    [(b"aGVsbG8=", b"hello"), (b"aGVs\r\nbG8", b"hello"), (b"aGVsb!", b"hel"), (b"", b""), (b"!", b""), (b"a", b"")],
)
def test_base64(data: bytes, decoded: bytes) -> None:
    assert decode_base64(data) == decoded


def test_a_jump_over_a_number_of_no_bytes_stays() -> None:
    made = rule('content:"|00 00 00|"; byte_extract:1,4,size,relative; byte_jump:size,0,relative; isdataat:1,relative;')
    (buffer,) = made.buffers
    assert match_buffer(buffer, bytes.fromhex("00000005342306 00 210a"), {})
    assert not match_buffer(buffer, bytes.fromhex("00000005342306 00 "), {})

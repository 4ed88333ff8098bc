"""Cutting rule text into options, where errors point, and that no text makes the parser raise."""

from __future__ import annotations

import random

import pytest

from engines.stateful.keywords import KEYWORDS, UNSUPPORTED
from engines.stateful.parser import rule_texts
from tests.unit.rulekit import parse, refusal, rule

HEAD = "alert tcp any any -> any any "


def test_a_whole_rule() -> None:
    text = 'drop http $HOME_NET any -> $EXTERNAL_NET $HTTP_PORTS (msg:"a \\"b\\" \\; c"; sid:7; gid:2; rev:3; \
classtype:trojan-activity; reference:url,example.com/a; reference:cve,2024-1; metadata:created 2024, tag a, tag b; \
http.uri; content:"/x"; target:dest_ip; priority:2;)'
    (signature,) = parse(text).signatures
    assert signature.ref.msg == 'a "b" ; c'
    assert (signature.ref.id, signature.ref.gid, signature.ref.rev, signature.ref.line) == (7, 2, 3, 1)
    assert (signature.priority, signature.classtype, signature.target) == (2, "trojan-activity", "dest_ip")
    assert signature.references == (
        "https://example.com/a",
        "https://cve.mitre.org/cgi-bin/cvename.cgi?name=2024-1",
    )
    assert signature.metadata == {"created": ("2024",), "tag": ("a", "b")}
    assert signature.app_proto == "http"
    assert signature.source is not None
    assert signature.source(bytes([10, 0, 0, 1]))
    assert signature.destination is not None
    assert not signature.destination(bytes([10, 0, 0, 1]))


def test_continuation_lines_comments_and_line_ends() -> None:
    text = (
        "# no rule\r\n\r\n" + HEAD + '( \\\r\n  msg:"x"; \\\n  sid:1;)\r\n#' + HEAD + "(sid:2;)\n  " + HEAD + "(sid:3;)"
    )
    found = parse(text)
    assert [(s.sid, s.ref.line) for s in found.signatures] == [(1, 3), (3, 7)]
    assert not found.errors


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        (HEAD + '(msg:"x"; contnet:"a"; sid:1;)', 1, 40, "did you mean content?"),
        (HEAD + '(msg:"x"; content:a; sid:1;)', 1, 48, "double quotes"),
        (HEAD + '(msg:"x"; \\\n  content:"|1|"; sid:1;)', 2, 11, "only one digit"),
        ("alrt tcp any any -> any any (sid:1;)", 1, 1, "did you mean alert?"),
        ("alert tpc any any -> any any (sid:1;)", 1, 7, "did you mean tcp?"),
        ("alert tcp any any -> any 65536 (sid:1;)", 1, 26, "port 65536 is above 65535"),
        ("alert tcp $HOM_NET any -> any any (sid:1;)", 1, 11, "did you mean HOME_NET?"),
        ("alert tcp any any <- any any (sid:1;)", 1, 19, "expected ->"),
        ("alert tcp any any -> any (sid:1;)", 1, 22, "destination port"),
        ("alert tcp any any -> any any any (sid:1;)", 1, 30, "expected ("),
        (HEAD, 1, 29, "expected ("),
        (HEAD + "(sid:1;", 1, 36, "expected )"),
        (HEAD + "(sid:1)", 1, 31, "expected ;"),
        (HEAD + "(sid:1;;)", 1, 37, "an option is empty"),
        (HEAD + "(sid:x;)", 1, 35, "expected a number"),
        (HEAD + '(msg:"x";)', 1, 30, "sid is missing"),
        (HEAD + "(lua:x.lua; sid:1;)", 1, 31, "lua is not supported"),
        (HEAD + "(nocase:1; sid:1;)", 1, 38, "takes no value"),
        (HEAD + "(content; sid:1;)", 1, 31, "needs a value"),
    ],
)
def test_errors_say_where(text: str, line: int, column: int, says: str) -> None:
    found = parse("\n" + text)
    (error,) = found.errors
    assert says in error.message
    assert (error.line - 1, error.column) == (line, column), str(error)
    assert str(error).startswith(f"t.rules:{line + 1}:{column}: ")


def test_one_bad_rule_does_not_stop_the_rest() -> None:
    found = parse("\n".join([HEAD + "(sid:1;)", "nonsense", HEAD + '(content:"; sid:2;)', HEAD + "(sid:3;)"]))
    assert [s.sid for s in found.signatures] == [1, 3]
    assert [e.line for e in found.errors] == [2, 3]


def test_a_sid_is_taken_once_per_gid() -> None:
    found = parse("\n".join([HEAD + "(sid:1;)", HEAD + "(sid:1; gid:2;)", HEAD + "(sid:1; rev:2;)"]))
    assert [(s.sid, s.ref.gid) for s in found.signatures] == [(1, 1), (1, 2)]
    assert [e.line for e in found.errors] == [3]


@pytest.mark.parametrize(
    ("requires", "loads"),
    [
        ("version >= 7.0.0", True),
        ("version >= 7.0.4 < 8 | >= 8.0.0", True),
        ("version < 7", False),
        ("keyword content", True),
        ("keyword nonsense", False),
        ("feature geoip", False),
        ("foo bar", False),
    ],
)
def test_requires_skips_without_error(requires: str, loads: bool) -> None:
    found = parse(HEAD + f"(requires:{requires}; sid:1;)")
    assert not found.errors
    assert bool(found.signatures) is loads
    assert bool(found.skipped) is not loads


def test_options_end_at_an_unescaped_semicolon_only() -> None:
    assert rule('pcre:"/a\\;b/"; content:"c\\;d";').buffers[0].matchers[1].pattern == b"c;d"  # type: ignore[attr-defined]
    assert "double quotes" in refusal('content:"a;b";')


def test_bytes_that_are_no_utf8_survive() -> None:
    text = (HEAD + '(content:"').encode() + b"\xff\xe9" + b'"; sid:1;)'
    (signature,) = parse(text.decode("utf-8", "surrogateescape")).signatures
    assert signature.fast_pattern is not None
    assert signature.fast_pattern.pattern == b"\xff\xe9"


def test_the_keyword_table_is_complete() -> None:
    for name, row in KEYWORDS.items():
        assert row.name == name
        assert row.summary
        assert row.doc.startswith("https://docs.suricata.io/")
    assert not KEYWORDS.keys() & UNSUPPORTED.keys()


SEEDS = [
    HEAD + '(msg:"x"; content:"|41 42|c"; depth:9; offset:2; nocase; pcre:"/a(b|c)+/Ri"; flowbits:isset,a|b; sid:1;)',
    'drop http [$HOME_NET,!10.0.0.1] !80 <> any [1:5,!3] (http.uri; dotprefix; content:"a"; endswith; bsize:>2;sid:2;)',
    'pass tls any any -> any any (tls.sni; content:".x.com"; endswith; ssl_state:client_hello; tls.version:1.2;sid:3;)',
    HEAD + "(byte_extract:2,0,n; byte_test:4,!&,0x10,n,relative,little; byte_jump:1,0,relative,align; sid:4;)",
    HEAD + "(threshold:type limit,track by_src,count 1,seconds 60; xbits:set,a,track ip_src; flowint:a,+,1; sid:5;)",
    'alert ip any any -> any any (ip_proto:!6; flags:S,12; ttl:<5; fragbits:+M; ipopts:rr; itype:8; xor:"0a"; sid:6;)',
    HEAD
    + "(byte_math:bytes 1, offset 0, oper +, rvalue 3, result r; isdataat:!r,relative; stream_size:both,>,3; sid:7;)",
    "\n".join(["# c", HEAD + "(\\", ' msg:"y"; \\', " sid:8;)"]),
]


def test_any_text_is_parsed_or_refused_and_never_raises() -> None:
    """Parse or refuse, never raise: rules cut, spliced and with characters changed."""
    dice = random.Random(7)
    alphabet = ' ;:,"|\\()[]!<>=$@/.-aA01\n\x00é'
    for _ in range(6000):
        text = dice.choice(SEEDS)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(text))
            kind = dice.random()
            if kind < 0.4:
                text = text[:at] + dice.choice(alphabet) + text[at + 1 :]
            elif kind < 0.6:
                text = text[:at] + text[at + dice.randint(1, 9) :]
            elif kind < 0.8:
                other = dice.choice(SEEDS)
                start = dice.randrange(len(other))
                text = text[:at] + other[start : start + dice.randint(1, 30)] + text[at:]
            else:
                text = text[:at]
            text = text or "x"
        found = parse(text)
        assert len(found.signatures) + len(found.errors) + len(found.skipped) == len(rule_texts(text))


def test_seeds_are_good_apart_from_what_is_missing() -> None:
    found = parse("\n".join(s for i, s in enumerate(SEEDS) if i != 5))
    assert not found.errors, [str(e) for e in found.errors]

"""Rules written down as plain values and read again are the rules they were."""
# ruff: noqa: E501  rules are as long as they are

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.header import AddressTest, FamilyTest, PortTest
from engines.stateful.match import compile_program
from engines.stateful.parser import ParsedRules, Variables, parse_rules
from engines.stateful.saved import load_rules, save_rules
from engines.stateful.signature import BufferMatch

CORPUS = Path(__file__).parents[1] / "corpus" / "rules"
ETOPEN = Path(__file__).parents[2].parent / "shared" / "rulesets" / "et-open"
VARIABLES = Variables(
    {
        "HOME_NET": "[10.0.0.0/8,!10.9.0.0/16]",
        "EXTERNAL_NET": "!$HOME_NET",
        **dict.fromkeys(("HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "DC_SERVERS"), "$HOME_NET"),
        "AIM_SERVERS": "any",
    },
    {"HTTP_PORTS": "80", "SHELLCODE_PORTS": "!80", "ORACLE_PORTS": "1521", "SSH_PORTS": "22", "FTP_PORTS": "21",
     "FILE_DATA_PORTS": "[$HTTP_PORTS,110,143]"},
)  # fmt: skip
# One of each kind of condition, header and option, some with a plain form and some without.
RULES = r"""
alert tcp any any -> any any (msg:"plain"; content:"abc"; nocase; offset:2; depth:9; content:!"d"; within:5; sid:1;)
drop ip6 [2001:db8::/32,!2001:db8::1] any <> any any (msg:"family"; content:"x|00 ff|"; sid:2; rev:3;)
alert http $HOME_NET [80,8080:8090] -> $EXTERNAL_NET any (msg:"bsize"; http.uri; bsize:5<>9; content:"/a"; startswith; sid:3;)
alert http any any -> any any (msg:"urilen"; http.uri; content:"/"; urilen:>10; pcre:"/^\/[a-z]+/Ri"; sid:4;)
alert http any any -> any any (msg:"not a size"; http.host; bsize:!7; content:"b"; endswith; sid:5;)
alert http any any -> any any (msg:"mask"; http.host; bsize:&0x3=0x1; content:"b"; sid:6;)
alert dns any any -> any any (msg:"dots"; dns.query; dotprefix; content:".evil.example"; endswith; nocase; sid:7;)
alert http any any -> any any (msg:"xor"; http.request_body; xor:"0d0a"; content:"q"; sid:8;)
pass tcp any any -> any 22 (msg:"flags"; flags:S,12; flow:stateless; sid:9;)
alert tcp any any -> any any (msg:"bytes"; content:"len"; byte_extract:2,1,size,relative; byte_jump:1,0,relative; isdataat:size,relative; content:"z"; distance:1; sid:10;)
alert tcp any any -> any any (msg:"tests"; byte_test:2,>,5,0; byte_math:bytes 1,offset 0,oper +,rvalue 3,result sum; sid:11;)
alert tcp any any -> any any (msg:"bits"; flowbits:set,a; flowbits:isset,c|d; flowbits:noalert; content:"e"; sid:12;)
reject tcp any any -> any any (msg:"often"; content:"g"; threshold:type limit, track by_src, count 1, seconds 60; sid:13;)
alert tcp any any -> any any (msg:"seldom"; content:"g"; detection_filter:track by_dst, count 5, seconds 9; sid:14;)
alert tcp any any -> any any (msg:"sized"; stream_size:server,<,100; dsize:>5; content:"h"; sid:15;)
alert tcp any any -> any any (msg:"x"; xbits:set,bad,track ip_src,expire 10; flowint:n,+,1; content:"i"; sid:16;)
alert tls any any -> any any (msg:"absent"; tls.sni; absent; sid:17;)
alert tcp any any -> any any (msg:"meta"; app-layer-protocol:!http; metadata:a b, a c, d e; reference:url,example.org; classtype:trojan-activity; priority:2; target:src_ip; content:"j"; sid:18; gid:7;)
alert http any any => any any (msg:"both"; http.uri; content:"/a"; http.stat_code; content:"200"; sid:19;)
alert modbus any any -> any any (msg:"never"; modbus: function 8; sid:20;)
alert tcp any any -> any any (msg:"over \
    two lines"; content:"k"; base64_decode:bytes 8; base64_data; content:"l"; sid:21;)
alert tcp any any -> any any (msg:"wrong"; contents:"k"; sid:22;)
alert tcp any any -> any any (msg:"later"; requires:version >= 99; content:"m"; sid:23;)
alert icmp any any -> any any (msg:"icmp"; itype:8; icode:0; sid:24;)
alert http any any -> any any (msg:"event"; app-layer-event:http.missing_host_header; sid:25;)
alert tcp any any -> any any (msg:"ü \udc80"; content:"ü"; fast_pattern:0,1; sid:26;)
"""


def plain(value: Any) -> Any:
    """Everything a value consists of, functions and what they are closed over included, to be compared."""
    if isinstance(value, partial):
        return ("partial", value.func, plain(value.args))
    if isinstance(value, AddressTest | PortTest | FamilyTest):
        slots = type(value).__slots__
        return (type(value).__name__, [plain(getattr(value, name)) for name in slots])
    if isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType):
        return (value.__name__, plain(value.__self__))
    if isinstance(value, types.MethodType):
        return (value.__func__, plain(value.__self__))
    if isinstance(value, types.MethodWrapperType):
        return (value.__name__, plain(value.__self__))
    if isinstance(value, types.FunctionType):
        cells = [plain(cell.cell_contents) for cell in value.__closure__ or ()]
        return (value.__qualname__, cells, plain(value.__defaults__))
    if isinstance(value, BufferMatch):  # compiled when first asked for
        value = dataclasses.replace(value, program=compile_program(value.matchers))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value), [(f.name, plain(getattr(value, f.name))) for f in dataclasses.fields(value)])
    if isinstance(value, Mapping):
        return [(plain(key), plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return (type(value), [plain(item) for item in value])
    if type(value).__module__.startswith("pcre2"):
        return ("pattern", value.pattern)
    return value


def through_bytes(parsed: ParsedRules, text: str) -> Any:
    packed = msgpack.packb(save_rules(parsed, text), unicode_errors="surrogateescape")
    return msgpack.unpackb(packed, unicode_errors="surrogateescape")


def assert_same(text: str, file: str) -> ParsedRules:
    parsed = parse_rules(text, file, VARIABLES)
    again = load_rules(through_bytes(parsed, text), text, file, VARIABLES)
    assert (again.errors, again.warnings, again.skipped) == (parsed.errors, parsed.warnings, parsed.skipped)
    assert len(again.signatures) == len(parsed.signatures)
    for one, other in zip(again.signatures, parsed.signatures, strict=True):
        assert plain(one) == plain(other), other.text
    return parsed


def test_every_kind_of_rule() -> None:
    parsed = assert_same(RULES, "kinds.rules")
    assert [error.line for error in parsed.errors] == [24]
    assert len(parsed.skipped) == 1
    assert len(parsed.signatures) == 24


def test_most_of_them_have_a_plain_form() -> None:
    """Or nothing would be won."""
    parsed = parse_rules(RULES, "kinds.rules", VARIABLES)
    _, _, rules, _ = save_rules(parsed, RULES)
    again = [signature.sid for signature, row in zip(parsed.signatures, rules, strict=True) if row[2] == 0]
    assert again == [6, 8, 9, 11, 15, 16, 21, 24, 25]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.rules")), ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    assert_same(path.read_text("utf-8"), str(path))


@pytest.mark.skipif(not ETOPEN.is_dir(), reason=f"ET Open is not at {ETOPEN}")
@pytest.mark.parametrize("name", ["emerging-web_server.rules", "emerging-policy.rules", "emerging-rpc.rules"])
def test_what_people_load(name: str) -> None:
    parsed = assert_same((ETOPEN / name).read_text("utf-8"), name)
    assert parsed.signatures
    assert not parsed.errors


def test_equal_headers_stay_one() -> None:
    """Flows ask each distinct header once; they are told apart by identity."""
    text = "".join(f'alert tcp $HOME_NET any -> any 80 (content:"a{n}"; sid:{n};)\n' for n in range(1, 4))
    parsed = load_rules(save_rules(parse_rules(text, "f", VARIABLES), text), text, "f", VARIABLES)
    assert len({id(signature.source) for signature in parsed.signatures}) == 1
    assert len({id(signature.destination_port) for signature in parsed.signatures}) == 1


_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_anything)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="rules"):
        load_rules(value, RULES, "f", VARIABLES)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever stands in for any part of it: ValueError at worst."""
    saved = through_bytes(parse_rules(RULES, "f", VARIABLES), RULES)
    place = saved
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], list | dict) or not place[key] or data.draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    place[key] = data.draw(_anything)
    try:
        load_rules(saved, RULES, "f", VARIABLES)
    except ValueError:
        return

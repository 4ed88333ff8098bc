"""What keywords become, and what they refuse."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from engines.packet import decode
from engines.stateful.match import match_buffer, transform
from engines.stateful.ruleset import covered_protocols
from engines.stateful.signature import Action, AppProtocolTest, RuleType, Signature, Threshold
from engines.stateful.threshold import Effect, ThresholdTable
from engines.verdict import Direction
from tests.unit.rulekit import parse, refusal, rule


@dataclass
class View:
    """A packet as header keywords see it."""

    packet: Any
    payload: bytes = b""
    direction: Direction = Direction.TO_SERVER
    established: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("depth:5;", "needs a content"),
        ("tag:session,5,rounds;", "tag: expected"),
        ("tag:flow;", "tag: expected"),
        ('flow:only_stream; dsize:5; content:"a";', "the stream only"),
        ('http.uri; absent; content:"a";', "no other condition"),
        ("http.uri; absent:or_else;", "needs another condition"),
        ('ja3.hash; content:"abc";', "32 hexadecimal digits"),
        ('content:"AA"; depth:5; depth:6;', "given twice"),
        ('content:"AA"; offset:5; offset:6;', "given twice"),
        ('content:"AA"; nocase; nocase;', "given twice"),
        ('content:"A"; content:"B"; within:3; within:3;', "given twice"),
        ('content:"A"; content:"B"; distance:3; distance:3;', "given twice"),
        ('content:"A"; content:"B"; offset:9; within:5;', "cannot be combined"),
        ('content:"A"; content:"B"; distance:9; depth:5;', "cannot be combined"),
        ('content:"A"; content:"B"; within:9; startswith;', "cannot be combined"),
        ('content:"AAAA"; depth:3;', "less than the pattern"),
        ('content:"A"; content:"BBBB"; within:3;', "less than the pattern"),
        ('content:"A"; content:"B"; within:1048577;', "not between"),
        ('content:"A"; content:"B"; distance:-1048577;', "not between"),
        ('content:"A"; offset:n;', "no byte_extract"),
        ('content:"|4|";', "only one digit"),
        ('content:"|4";', "hexadecimal"),
        ('content:"|22 2 22|";', "only one digit"),
        ('content:"|zz|";', "no hexadecimal digit"),
        ('content:"|41";', "closing |"),
        ('content:"a\\b";', "no escape"),
        ('content:"";', "empty"),
        ("content:AA;", "double quotes"),
        ('content:"a"; fast_pattern; content:"b"; fast_pattern;', "given twice"),
        ('content:"a"; content:!"b"; fast_pattern; offset:6;', "negated"),
        ('content:"a"; content:!"b"; offset:6; fast_pattern;', "negated"),
        ('content:"a"; content:"b"; distance:1; fast_pattern:only;', "fast_pattern:only"),
        ('content:"a"; fast_pattern:only; depth:5;', "fast_pattern:only"),
        ('content:"abc"; fast_pattern:2,2;', "behind"),
        ('pcre:"/a";', "closing /"),
        ('pcre:"/(a/";', "pcre"),
        ('pcre:"/a/Q8";', "unknown flag"),
        ('pcre:"/a/UH";', "second buffer"),
        ('http.uri; content:"x"; pcre:"/a/H";', "sticky buffer"),
        ('http.uri; content:"x"; http_header;', "sticky buffer"),
        ('http.uri; content:"x"; rawbytes;', "sticky buffer"),
        ('content:"x"; rawbytes; http_uri;', "rawbytes"),
        ("http.uri;", "no condition"),
        ('http.uri; http.host; content:"x";', "no condition"),
        ('http.host; content:"Example.com";', "lower case"),
        ('http.host; content:"example.com"; nocase;', "lower case"),
        ('http.method; content:"GET ";', "spaces"),
        ('http.uri; to_lowercase; content:"A";', "upper case"),
        ('http.uri; to_uppercase; content:"a";', "lower case"),
        ('http.uri; strip_whitespace; content:"a b";', "white space"),
        ('http.uri; strip_whitespace; content:"|0d|";', "white space"),
        ('http.uri; compress_whitespace; content:"a  b";', "two spaces"),
        ('to_lowercase; content:"a";', "sticky buffer"),
        ('http.uri; xor:"0g"; content:"a";', "hexadecimal"),
        ('http.uri; xor:""; content:"a";', "hexadecimal"),
        ('http.uri; pcrexform:abc; content:"a";', "double quotes"),
        ('http.uri; pcrexform:"abc"; content:"a";', "one group"),
        ("bsize:3;", "sticky buffer"),
        ('http.uri; content:"abcdef"; bsize:3;', "need 6 bytes"),
        ('http.uri; content:"abcdef"; bsize:<6;', "need 6 bytes"),
        ('http.uri; content:"abc"; content:"d"; distance:5; bsize:8;', "need 9 bytes"),
        ('http.uri; content:"abcdef"; urilen:5;', "need 6 bytes"),
        ('dsize:5<>10; content:"AAAA"; offset:8;', "need 12 bytes"),
        ("dsize:5; dsize:6;", "given twice"),
        ("dsize:<0;", "never match"),
        ("dsize:9<>3;", "range"),
        ("flowbits:isset,a; flowbits:isnotset,a;", "never both"),
        ("flowbits:set;", "needs a name"),
        ("flowbits:set,a b;", "spaces"),
        ("flowbits:foo,a;", "expected set"),
        ("flow:established,not_established;", "exclude"),
        ("flow:to_server,to_client;", "second direction"),
        ("flow:to_server; flow:established;", "given twice"),
        ("flow:sideways;", "unknown option 'sideways'; expected to_server, from_client,"),
        ("flow:to_sever;", "unknown option 'to_sever' (did you mean to_server?)"),
        ('pcre:"/a(/";', "pcre: compilation failed at position 2; missing closing parenthesis"),
        ('pcre:"/a(/Ai";', "pcre: compilation failed at position"),
        ("byte_test:1,>,n,0;", "no byte_extract"),
        ("byte_test:1,?,1,0;", "expected one of"),
        ("byte_test:9,>,1,0;", "not between"),
        ("byte_test:1,>,1;", "expected bytes"),
        ("byte_test:1,>,1,0,nonsense;", "unknown option"),
        ("byte_jump:n,0;", "no byte_extract"),
        ("byte_jump:1,0,from_beginning,from_end;", "exclude"),
        ("byte_math:bytes 1, offset 0, oper %, rvalue 1, result r;", "expected one of"),
        ("byte_math:bytes 1, offset 0, oper +, result r;", "rvalue is missing"),
        ("byte_math:bytes 1, offset 0, oper +, rvalue 1, result r, relative;", "no condition before"),
        ("byte_extract:1,0,9x;", "variable name"),
        ('content:"x"; byte_extract:1,0,v; http.connection; byte_jump:v,0; isdataat:1;', "no byte_extract"),
        ('base64_data; content:"a";', "base64_decode"),
        ('base64_decode; base64_data; content:"a"; fast_pattern;', "fast_pattern"),
        ("isdataat:70000;", "not between"),
        ("threshold:type limit,track by_src,count 1;", "seconds is missing"),
        ("threshold:type often,track by_src,count 1,seconds 1;", "limit, threshold or both"),
        (
            "threshold:type limit,track by_src,count 1,seconds 1; threshold:type limit,track by_src,count 1,seconds 1;",
            "given twice",
        ),
        ("detection_filter:track by_x,count 1,seconds 1;", "track is one of"),
        ("app-layer-protocol:htpt;", "did you mean http?"),
        ("app-layer-protocol:http; app-layer-protocol:tls;", "cannot be combined"),
        ("app-layer-event:nope.x;", "not known"),
        ("target:me;", "src_ip"),
        ("flags:X;", "flags"),
        ("flags:SS;", "twice"),
        ("ipopts:none;", "ipopts"),
        ("ttl:300;", "not between"),
        ("ip_proto:6;", "rule for ip"),
        ("tls.version:1.9;", "tls.version"),
        ("tls_cert_notafter:>soon;", "expected a date like"),
        ("tls_cert_notafter:2025<>2024;", "is not after"),
        ("ssl_state:hello;", "ssl_state"),
        ("xbits:set,a;", "xbits"),
        ("flowint:a,%,1;", "expected one of"),
        ("stream_size:server,>;", "stream_size"),
        ('http.uri; content:"a"; tls.sni; content:"b";', "different protocols"),
        ('http.uri; content:"a"; http.stat_code; content:"2";', "write =>"),
        ('flow:to_client; http.uri; content:"a";', "flow says to_client"),
        ('http.uri; content:"a"; dsize:5;', "cannot do both"),
        ("sid:2;", "twice"),
        ("sid:99999999999999999999;", "not between"),
        ('msg:"a"; msg:"b";', "twice"),
        ("rev:-1;", "not between"),
        ("priority:999;", "not between"),
        ("reference:nothing;", "kind,text"),
        ('file_data; content:"abc"; rawbytes;', "sticky buffer"),
    ],
)
def test_refused(options: str, says: str) -> None:
    assert says in refusal(options)


@pytest.mark.parametrize(
    ("header", "options", "says"),
    [
        ("alert udp any any -> any any", 'http.uri; content:"a";', "rule for udp"),
        ("alert dns any any -> any any", 'http.uri; content:"a";', "does not exist in dns"),
        ("alert tcp-pkt any any -> any any", 'http.uri; content:"a";', "tcp-pkt"),
        ("alert http any any -> any any", "app-layer-protocol:http;", "is for http already"),
        ("alert http any any => any any", 'http.uri; content:"a";', "of the response"),
        ("alert http any any => any any", 'content:"a"; content:"b";', "of the request and one of the response"),
        ("alert http any any => any any", 'flow:to_server; http.uri; content:"a";', "flow's direction"),
        (
            "alert http any any => any any",
            'http.uri; content:"a"; http.stat_code; content:"2"; http.connection; content:"x";',
            "http.connection exists in both",
        ),
    ],
)
def test_refused_for_the_protocol(header: str, options: str, says: str) -> None:
    assert says in refusal(options, header)


# --- buffers --------------------------------------------------------------------------------------------------------


def buffers(signature: Signature) -> list[tuple[str, tuple[str, ...], int]]:
    return [(b.buffer, b.transform_names, len(b.matchers)) for b in signature.buffers]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('content:"a"; http.uri; content:"b"; content:"c"; pkt_data; content:"d";', [("payload", 2), ("http.uri", 2)]),
        (
            'content:"a"; http_uri; content:"b"; http_header; content:"c"; http_uri;',
            [("http.uri", 2), ("http.header", 1)],
        ),
        ('uricontent:"a"; nocase; content:"b";', [("http.uri", 1), ("payload", 1)]),
        (
            'http.uri; content:"a"; http.method; content:"GET"; http.uri; content:"b";',
            [("http.uri", 2), ("http.method", 1)],
        ),
        ('pcre:"/a/U"; pcre:"/b/Hi";', [("http.uri", 1), ("http.header", 1)]),
        ('content:"a"; http_uri; pcre:"/b/R"; isdataat:1,relative;', [("http.uri", 3)]),
        ('content:"a"; urilen:>9; urilen:<99,raw;', [("payload", 1), ("http.uri", 1), ("http.uri.raw", 1)]),
        ('file_data; content:"a"; file.data; content:"b";', [("file.data", 1), ("file.data", 1)]),
        ('dns.query; content:"a"; dns.query; content:"b";', [("dns.query", 1), ("dns.query", 1)]),
        ('http.uri; content:"a"; to_lowercase; content:"b";', [("http.uri", 1), ("http.uri", 1)]),
        (
            'http.uri; to_md5; content:"a"; http.uri; content:"b"; http.uri; to_md5; content:"c";',
            [("http.uri", 2), ("http.uri", 1)],
        ),
        ('tls.subject:"CN=a"; tls_sni; content:"b";', [("tls.cert_subject", 1), ("tls.sni", 1)]),
        ('http_content_type; content:"a"; http_accept; bsize:3;', [("http.content_type", 1), ("http.accept", 1)]),
    ],
)
def test_conditions_go_to_their_buffer(options: str, expected: list[tuple[str, int]]) -> None:
    assert [(name, count) for name, _, count in buffers(rule(options))] == expected


def test_a_modifier_applies_to_the_content_it_moved() -> None:
    signature = rule('content:"Abc"; http_uri; nocase; depth:3;')
    assert match_buffer(signature.buffers[0], b"aBC", {})
    assert not match_buffer(signature.buffers[0], b"xaBC", {})


def test_absent() -> None:
    signature = rule('file.data; absent; http.stat_code; content:"500";')
    assert [b.absent for b in signature.buffers] == [True, False]
    assert not match_buffer(signature.buffers[0], b"x", {})
    signature = rule('file.data; absent: or_else; content:!"abc"; content:"longer than abc";')
    assert signature.buffers[0].absent
    assert signature.fast_pattern is None
    assert match_buffer(signature.buffers[0], b"x", {}) is False


@pytest.mark.parametrize(
    ("transforms", "data", "result"),
    [
        ("dotprefix", b"a.b", b".a.b"),
        ("to_lowercase", b"aB", b"ab"),
        ("to_uppercase", b"aB", b"AB"),
        ("strip_whitespace", b" a\tb\r\n", b"ab"),
        ("compress_whitespace", b"a \t b  c", b"a b c"),
        ("url_decode", b"a%20b+c%zz%4", b"a b c%zz%4"),
        ("header_lowercase", b"Host: A\r\nX-Y: B\r\n", b"host: A\r\nx-y: B\r\n"),
        ("domain", b"www.BBC.co.uk", b"BBC.co.uk"),
        ("domain", b"a.b.example.com.", b"example.com"),
        ("domain", b"\xff..example.com", b"example.com"),
        ("domain", b"www.xn--85x722f.xn--55qx5d.cn", b"xn--85x722f.xn--55qx5d.cn"),
        ("domain", b"co.uk", b"co.uk"),
        ("domain", b"", b""),
        ("tld", b"www.bbc.co.uk", b"co.uk"),
        ("tld", b"a.b.example.com.", b"com"),
        ("tld", b"localhost", b"localhost"),
        ("strip_pseudo_headers", b":method: GET\r\nhost: a\r\n", b"host: a\r\n"),
        ("to_md5", b"a", hashlib.md5(b"a").digest()),
        ("to_sha1", b"a", hashlib.sha1(b"a").digest()),
        ("to_sha256", b"a", hashlib.sha256(b"a").digest()),
        ('xor:"01ff"', b"\0\0\1\1\2", b"\1\xff\0\xfe\3"),
        ('xor:"01"', b"", b""),
        ('pcrexform:"[a-z]+ (.*) x"', b"get /uri x", b"/uri"),
        ('pcrexform:"(z)"', b"abc", b"abc"),
        ("from_base64", b"aGVsbG8=", b"hello"),
        ("from_base64:offset 1, bytes 4", b"xaGVsbG8", b"hel"),
        ("from_base64:mode rfc2045", b"aGV sbG!8", b"hello"),
        ("from_base64:mode strict", b"aGV sbG8", b"aGV sbG8"),
        ("strip_whitespace; to_uppercase; dotprefix", b"a b", b".AB"),
    ],
)
def test_transforms(transforms: str, data: bytes, result: bytes) -> None:
    (buffer,) = rule(f'http.uri; {transforms}; content:"|80|";').buffers
    assert transform(buffer, data) == result


# --- rule-wide keywords ---------------------------------------------------------------------------------------------


def test_flow() -> None:
    flow = rule("flow:established,from_client,only_stream;").flow
    assert (flow.direction, flow.established, flow.only_stream) == (Direction.TO_SERVER, True, True)
    assert rule("flow:not_established;").flow.established is False
    assert rule("flow:stateless,to_client;").flow.stateless


def test_flowbits_and_siblings() -> None:
    signature = rule(
        "flowbits:isset,a|b; flowbits:set,c; flowbits:noalert; flowint:n,+,1; flowint:n,>,m; flowint:x,notset; "
        "xbits:set,d,track ip_pair,expire 9; hostbits:isset,e,dst; stream_size:server,<,6;"
    )
    assert [(o.op, o.names) for o in signature.flowbit_checks] == [("isset", ("a", "b"))]
    assert [(o.op, o.names) for o in signature.flowbit_sets] == [("set", ("c",))]
    assert signature.noalert
    assert [(o.name, o.op, o.value, o.changes) for o in signature.flowints] == [
        ("n", "+", 1, True),
        ("n", ">", "m", False),
        ("x", "notset", 0, False),
    ]
    assert [(o.name, o.track, o.expire, o.table) for o in signature.xbit_sets] == [("d", "ip_pair", 9, "xbits")]
    assert [(o.name, o.track, o.table) for o in signature.xbit_checks] == [("e", "ip_dst", "hostbits")]
    (size,) = signature.stream_sizes
    assert (size.side, size.test(5), size.test(6)) == ("server", True, False)


def test_threshold_and_actions() -> None:
    assert rule("threshold: type both, track by_dst, count 2, seconds 60;").threshold == Threshold(
        "both", "by_dst", 2, 60
    )
    made = rule("detection_filter: track by_src, seconds 5, count 3;")
    assert made.detection_filter == Threshold("detection_filter", "by_src", 3, 5)
    assert rule("alert;", "pass tcp any any -> any any").pass_alert
    assert rule("noalert;", "rejectdst tcp any any -> any any").action is Action.REJECT


def test_application_conditions() -> None:
    signature = rule("app-layer-protocol:!http; app-layer-protocol:!tls;", "drop tcp any any -> any 443")
    assert signature.app_layer_protocols == (AppProtocolTest("http", True), AppProtocolTest("tls", True))
    assert rule("app-layer-event:http.missing_host_header;").app_events == (("http", "missing_host_header"),)
    (buffer,) = rule("ssl_version:tls1.0,tls1.1;").buffers
    assert (buffer.buffer, match_buffer(buffer, b"\3\1", {}), match_buffer(buffer, b"\3\3", {})) == (
        "ssl_version", True, False,
    )  # fmt: skip
    (buffer,) = rule("ssl_version:!tls1.3,tls1.2;").buffers
    assert [match_buffer(buffer, bytes((3, minor)), {}) for minor in (1, 3, 4)] == [True, True, False]
    (buffer,) = rule("dns.rrtype:AAAA; ").buffers
    assert match_buffer(buffer, b"\0\x1c", {})
    assert not match_buffer(buffer, b"\0\1", {})
    assert not match_buffer(buffer, b"", {})


def test_warnings_do_not_refuse() -> None:
    found = parse("alert tcp any any -> any any (classtype:no-such-class; sid:1;)")
    assert found.signatures[0].priority == 3
    assert "no-such-class" in found.warnings[0].message


def test_an_unknown_reference_system_is_told_and_kept() -> None:
    found = parse("alert tcp any any -> any any (reference:nobody,17; sid:1;)")
    assert found.signatures[0].references == ("nobody,17",)
    assert "'nobody' is not known" in found.warnings[0].message


# --- header keywords ------------------------------------------------------------------------------------------------


def ipv4(protocol: int, body: bytes, *, ttl: int = 64, tos: int = 0, ident: int = 7, options: bytes = b"") -> Any:
    length = 20 + len(options) + len(body)
    head = bytes([0x45 + len(options) // 4, tos]) + length.to_bytes(2, "big") + ident.to_bytes(2, "big") + b"\x40\0"
    return decode(head + bytes([ttl, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]) + options + body)


TCP = (
    bytes.fromhex("04d2 0050 00000064 000000c8 7002 03e8 0000 0000") + bytes.fromhex("020405b4 01010101") + b"hi"
)  # SYN, seq 100, ack 200, window 1000, MSS 1460
ICMP = bytes.fromhex("0800 0000 0102 0304") + b"x"


@pytest.mark.parametrize(
    ("option", "packet", "expected"),
    [
        ("ttl:64", ipv4(6, TCP), True),
        ("ttl:<64", ipv4(6, TCP), False),
        ("ttl:60-70", ipv4(6, TCP), True),
        ("tos:!4", ipv4(6, TCP, tos=4), False),
        ("id:7", ipv4(6, TCP), True),
        ("fragbits:D", ipv4(6, TCP), True),
        ("fragbits:!D", ipv4(6, TCP), False),
        ("fragbits:+M", ipv4(6, TCP), False),
        ("fragoffset:0", ipv4(6, TCP), True),
        ("ipopts:rr", ipv4(6, TCP, options=bytes.fromhex("0703040000000000")), True),
        ("ipopts:any", ipv4(6, TCP), False),
        ("ipopts:lsrr", ipv4(6, TCP, options=bytes.fromhex("01010100")), False),
        ("sameip", ipv4(6, TCP), False),
        ("flags:S", ipv4(6, TCP), True),
        ("tcp.flags:SA", ipv4(6, TCP), False),
        ("flags:*SA", ipv4(6, TCP), True),
        ("flags:+SA", ipv4(6, TCP), False),
        ("flags:!S", ipv4(6, TCP), False),
        ("flags:S,CE", ipv4(6, TCP), True),
        ("flags:0", ipv4(6, TCP), False),
        ("seq:100", ipv4(6, TCP), True),
        ("ack:!200", ipv4(6, TCP), False),
        ("window:1000", ipv4(6, TCP), True),
        ("tcp.mss:>1459", ipv4(6, TCP), True),
        ("tcp.mss:<100", ipv4(6, TCP), False),
        ("itype:8", ipv4(1, ICMP), True),
        ("itype:8", ipv4(6, TCP), False),
        ("icode:>0", ipv4(1, ICMP), False),
        ("icmp_id:258", ipv4(1, ICMP), True),
        ("icmp_seq:772", ipv4(1, ICMP), True),
        ("icmp_id:258", ipv4(1, b"\3" + ICMP[1:]), False),
        ("icmpv6.mtu:1", ipv4(1, ICMP), False),
        ("dsize:2", ipv4(6, TCP), True),
        ("dsize:>2", ipv4(6, TCP), False),
        ('ipv4.hdr; content:"|40 06|"; offset:8', ipv4(6, TCP), True),
        ('tcp.hdr; content:"|02 04 05 b4|"; offset:20', ipv4(6, TCP), True),
        ('udp.hdr; content:"|00|"', ipv4(6, TCP), False),
        ("flow:no_frag", ipv4(6, TCP), True),
        ("flow:only_frag", ipv4(6, TCP), False),
    ],
)
def test_packet_tests(option: str, packet: Any, expected: bool) -> None:
    signature = rule(option + ";", "alert ip any any -> any any")
    assert signature.packet_tests
    view: Any = View(packet, bytes(packet.payload))
    assert all(test(view) for test in signature.packet_tests) is expected
    # Without a packet nothing about headers is known, so nothing matches.
    if "frag" not in option or ":" not in option or option.startswith("fragbits"):
        bare: Any = View(None)
        assert not all(test(bare) for test in signature.packet_tests)


def test_packet_tests_never_raise() -> None:
    options = "ttl:1; tos:1; id:1; ipopts:rr; fragbits:M; fragoffset:1; flags:S; seq:1; ack:1; window:1; tcp.mss:1;"
    tests = rule(options, "alert ip any any -> any any").packet_tests
    tests += rule(
        "itype:1; icode:1; icmp_id:1; icmp_seq:1; sameip; icmpv6.mtu:1;", "alert ip any any -> any any"
    ).packet_tests
    for name in ("ipv4.hdr", "ipv6.hdr", "tcp.hdr", "udp.hdr", "icmpv4.hdr"):
        tests += rule(f'{name}; content:"a";', "alert ip any any -> any any").packet_tests
    whole = [ipv4(6, TCP, options=b"\7\0\0\0").data, ipv4(1, ICMP).data, b"\x60" + bytes(5) + b"\x3a\x40" + bytes(60)]
    for data in whole:
        for end in range(len(data) + 1):
            view: Any = View(decode(bytes(data[:end])))
            for test in tests:
                assert test(view) in (True, False)


# --- younger transforms, entropy, hooks -------------------------------------------------------------------------------

AGENT = b"curl/7.64.1"


@pytest.mark.parametrize(
    ("step", "data", "made"),
    [
        ("subslice:2,3", AGENT, b"rl/"),
        ("subslice:-4", AGENT, b"64.1"),
        ("subslice:-20", AGENT, b""),
        ("subslice:-20,truncate", AGENT, AGENT),
        ("subslice:-20,5,truncate", AGENT, b"curl/"),
        ("subslice:-100,3,truncate", AGENT, b"cur"),
        ("subslice:8,9", AGENT, b""),
        ("subslice:8,9,truncate", AGENT, b"4.1"),
        ("subslice:0,0", AGENT, b""),
        ("subslice:5,-2", AGENT, b"7.64"),
        ("xor:extract 1 0", b"\x03" + bytes(b ^ 3 for b in b"pass"), b"\0pass"),
        ("xor:offset 1,extract 1 0", b"\x03" + bytes(b ^ 3 for b in b"pass"), b"\x03pass"),
        ("xor:extract 4 9", AGENT, AGENT),  # too short to hold the key
        ("gunzip", gzip.compress(b"inner"), b"inner"),
        ("zlib_deflate", zlib.compress(b"inner"), b"inner"),
        ("gunzip", b"plain", b""),
    ],
)
def test_younger_transforms(step: str, data: bytes, made: bytes) -> None:
    (buffer,) = rule(f'http.user_agent; {step}; content:"a";').buffers
    assert transform(buffer, data) == made


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("subslice:;", "value"),
        ("subslice:1,2,3;", "expected offset"),
        ("xor:extract 0 0;", "not between"),
        ("xor:extract 1;", "expected offset"),
        ("xor:offset 1, extract;", "expected offset"),
        ("entropy:value > 9;", "0 to 8"),
        ("entropy:value 5-4;", "0 to 8"),
        ("entropy:offset 3;", "value is missing"),
        ("entropy:3;", "expected bytes"),
    ],
)
def test_their_refusals(options: str, says: str) -> None:
    assert says in refusal(f'http.user_agent; {options} content:"a";')


@pytest.mark.parametrize(
    ("test", "matches"),
    [
        ("value > 1.9", True),
        ("value = 2", True),
        ("value != 2", False),
        ("value !2", False),
        ("value 1-3", True),
        ("value 2-3", False),
        ("value !2-3", True),
        ("value <= 2", True),
        ("value < 2", False),
        ("bytes 2, value = 1", True),
        ("offset 3, value = 0", True),
        ("offset 9, value >= 0", False),  # nothing there
    ],
)
def test_entropy(test: str, matches: bool) -> None:
    (buffer,) = rule(f"http.user_agent; entropy:{test};").buffers
    assert match_buffer(buffer, b"abcd", {}) is matches


def test_backoff() -> None:
    made = rule("threshold:type backoff, track by_flow, count 1, multiplier 10;").threshold
    assert made == Threshold("backoff", "by_flow", 1, 0, 10)
    table = ThresholdTable(9)
    logged = [n for n in range(1, 200) if table.count(0, made, "key", n * 1e6) is Effect.FULL]
    assert logged == [1, 10, 100]
    assert "multiplier is missing" in refusal("threshold:type backoff, track by_flow, count 1;")


def test_hooks() -> None:
    made = rule('tls.sni; content:"a";', "drop tls:client_hello_done any any -> any any")
    assert (made.app_proto, made.direction) == ("tls", Direction.TO_SERVER)
    bare = rule("", "drop tls:client_hello_done any any -> any any")
    assert [b.buffer for b in bare.buffers] == ["ssl_state"]
    assert bare.direction is Direction.TO_SERVER
    assert match_buffer(bare.buffers[0], b"client_hello", {})
    assert "is not supported" in refusal("", "drop tls:nonsense any any -> any any")
    assert "is not" in refusal('file.data; content:"a";', "drop http1:request_line any any -> any any")


@pytest.mark.parametrize(
    ("hook", "buffer", "direction"),
    [
        ("tls:client_hello", "ssl_state", Direction.TO_SERVER),
        ("tls:server_hello_done", "ssl_state", Direction.TO_CLIENT),
        ("http1:request_started", "http.request_line", Direction.TO_SERVER),
        ("http1:request_headers", "http.header_names", Direction.TO_SERVER),
        ("http1:response_line", "http.response_line", Direction.TO_CLIENT),
        ("http1:response_headers", "http.header_names", Direction.TO_CLIENT),
    ],
)
def test_bare_hooks(hook: str, buffer: str, direction: Direction) -> None:
    made = rule("", f"alert {hook} any any -> any any")
    assert ([b.buffer for b in made.buffers], made.direction) == ([buffer], direction)
    assert made.rule_type is RuleType.APP_TX
    if "headers" in hook:
        assert rule('http.header; content:"a";', f"alert {hook} any any -> any any").direction is direction


@pytest.mark.parametrize("protocol", ["tcp", "udp", "ip", "icmp"])
def test_the_start_of_a_flow(protocol: str) -> None:
    made = rule("", f"alert {protocol}:flow_start any any -> any any")
    assert made.rule_type is RuleType.PKT
    (test,) = made.packet_tests
    view: Any = SimpleNamespace(flow=SimpleNamespace(packets=[1, 0]), direction=Direction.TO_SERVER)
    assert test(view)
    view.flow.packets = [2, 1]
    assert not test(view)
    view.direction = Direction.TO_CLIENT
    assert test(view)
    view.flow = None
    assert not test(view)
    assert "not supported" in refusal("", "alert http1:flow_start any any -> any any")


def test_app_layer_protocol_exact() -> None:
    assert rule("app-layer-protocol:http,exact;").app_layer_protocols == (AppProtocolTest("http", False, "exact"),)
    assert covered_protocols("http") > {"http"}
    assert rule("app-layer-protocol:!tls | ssh;").app_layer_protocols == (AppProtocolTest("tls|ssh", True, "final"),)
    assert "said already" in refusal("app-layer-protocol:!tls|http; app-layer-protocol:!http;")
    assert "given twice" in refusal("app-layer-protocol:tls|tls;")
    assert "'tsl' is not known" in refusal("app-layer-protocol:ssh|tsl;")


@pytest.mark.parametrize(
    ("value", "matches"),
    [
        ("2025", [False, True, False]),
        (">2025-01-01", [False, True, True]),
        ("<2025-01-01T00:00:00", [True, True, False]),
        ("2024-12<>2025-01-01 00:00", [False, True, False]),
    ],
)
def test_certificate_dates(value: str, matches: list[bool]) -> None:
    """Against 2024-01-01, 2025-01-01 and 2026-01-01 00:00:00 UTC; the ends of a range count in."""
    (buffer,) = rule(f"tls_cert_notbefore:{value};").buffers
    times = (1704067200, 1735689600, 1767225600)
    assert [match_buffer(buffer, time.to_bytes(8, "big"), {}) for time in times] == matches


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        # Of numbers, those above 5: which of the six lists below match.
        ("", [(9,), (9, 1), (1, 9, 9)]),
        (",any", [(9,), (9, 1), (1, 9, 9)]),
        (",all", [(), (9,)]),
        (",all1", [(9,)]),
        (",or_absent", [(), (9,), (9, 1), (1, 9, 9)]),
        (",0", [(9,), (9, 1)]),
        (",-1", [(9,), (1, 9, 9)]),
        (",oob_or 1", [(), (9,), (1,), (1, 9, 9)]),
        (",nb>1", [(1, 9, 9)]),
        (",nb=1", [(9,), (9, 1)]),
        (", nb>=1, 1:3", [(1, 9, 9)]),
        (",all,1:-1", [(), (9,), (1,), (9, 1), (1, 9, 9), (1, 1)]),
    ],
)
def test_conditions_on_several_numbers(which: str, numbers: list[tuple[int, ...]]) -> None:
    (buffer,) = rule(f"http2.window:>5{which};", "alert http2 any any -> any any").buffers

    def matches(values: tuple[int, ...]) -> bool:
        if buffer.together is not None:
            assert buffer.absent == buffer.together(())
            return buffer.together(values)
        return any(match_buffer(buffer, value.to_bytes(4, "big"), {}) for value in values)

    assert [values for values in ((), (9,), (1,), (9, 1), (1, 9, 9), (1, 1)) if matches(values)] == numbers


@pytest.mark.parametrize("which", ["every", "nb", "oob_or", "1.5", "any,1", "any,1:2:3", "nb>x"])
def test_which_of_several_numbers_is_no_riddle(which: str) -> None:
    assert refusal(f"dns.rrtype:1,{which};", "alert dns any any -> any any").startswith("dns.rrtype")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("flow.age:12", True),  # of full seconds: 30.9 to 42.1
        ("flow.age:<12", False),
        ("flow.pkts:toserver,4", True),
        ("flow.pkts:toclient,>2", False),
        ("flow.pkts:either,2", True),
        ("flow.pkts:either,3", False),
        ("flow.pkts_toserver:>3", True),
        ("flow.pkts_toclient:>3", False),
        ("flow.bytes:toclient,>=5000000000", True),
        ("flow.bytes_toserver:100-200", True),
    ],
)
def test_what_a_flow_has_carried(option: str, expected: bool) -> None:
    flow = SimpleNamespace(created=30.9, packets=[4, 2], bytes=[150, 5_000_000_000])
    signature = rule(f"{option};", "alert ip any any -> any any")
    assert signature.rule_type is RuleType.PKT
    (test,) = signature.packet_tests
    view: Any = SimpleNamespace(packet=None, flow=flow, now=42.1)
    assert test(view) is expected
    view.flow = None
    assert not test(view)


@pytest.mark.parametrize("option", ["flow.pkts:10", "flow.pkts:sideways,10", "flow.pkts:toserver"])
def test_what_a_flow_has_carried_needs_a_side(option: str) -> None:
    assert "expected" in refusal(f"{option};")


def test_old_certificate_keywords() -> None:
    digest = ":".join(["AB"] * 20)
    (buffer,) = rule(f'tls.fingerprint:"{digest}";', "alert tls any any -> any any").buffers
    assert buffer.buffer == "tls.cert_fingerprint"
    assert match_buffer(buffer, digest.lower().encode(), {})
    assert "20 hexadecimal bytes" in refusal('tls.fingerprint:"AB:CD";', "alert tls any any -> any any")
    stored = parse('alert tls any any -> any any (tls.sni; content:"a"; tls.store; sid:1;)')
    assert [b.buffer for b in stored.signatures[0].buffers] == ["tls.sni"]
    assert "not stored" in stored.warnings[0].message


def test_requires_what_is_here() -> None:
    skipped = parse(
        "alert tls any any -> any any (requires: feature ja3; sid:1;)\n"
        "alert tls any any -> any any (requires: version >= 8.0.1; sid:2;)\n"
        "alert tls any any -> any any (requires: version >= 9; sid:3;)\n"
        "alert tls any any -> any any (requires: feature lua; sid:4;)\n"
    )
    assert [signature.sid for signature in skipped.signatures] == [1, 2]

"""A rule's type, direction, protocols and fast pattern: what the engine decides by before it looks at bytes."""

from __future__ import annotations

import pytest

from engines.stateful.signature import RuleType
from engines.verdict import Direction
from tests.unit.rulekit import parse, rule


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        # only addresses, protocol, ports, and state that is set
        ("ip 10.0.0.1 any -> any any", "", RuleType.IP_ONLY),
        ("tcp any any -> any 80", 'msg:"x";', RuleType.IP_ONLY),
        ("ip any any -> any any", "flowbits:set,a;", RuleType.IP_ONLY),
        (
            "ip any any -> any any",
            "xbits:set,a,track ip_src; threshold:type limit,track by_src,count 1,seconds 9;",
            RuleType.IP_ONLY,
        ),
        ("ip any any -> any any", "ip_proto:!6;", RuleType.IP_ONLY),
        ("ip !10.0.0.1 any -> any any", "", RuleType.LIKE_IP_ONLY),
        ("ip any any -> $EXTERNAL_NET any", "", RuleType.LIKE_IP_ONLY),
        ("ip 10.0.0.1-10.0.0.9 any -> any any", "", RuleType.LIKE_IP_ONLY),
        # a condition on the flow or the packet
        ("ip any any -> any any", "flow:to_server;", RuleType.PKT),
        ("ip any any -> any any", "flow:stateless;", RuleType.PKT),
        ("tcp any any -> !10.0.0.1 any", "flow:established;", RuleType.PKT),
        ("tcp any any -> any any", "flowbits:isset,a;", RuleType.PKT),
        ("tcp any any -> any any", "flowbits:unset,a;", RuleType.PKT),
        ("tcp any any -> any any", "flags:S;", RuleType.PKT),
        ("tcp any any -> any any", "stream_size:both,>,3;", RuleType.PKT),
        ("http any any -> any any", "dsize:0;", RuleType.PKT),
        ("http any any -> any any", "flow:established;", RuleType.PKT),
        ("tcp any any -> any any", 'ipv4.hdr; content:"a";', RuleType.PKT),
        # protocol detection
        ("tcp any any -> any 443", "app-layer-protocol:!tls;", RuleType.PD_ONLY),
        ("tcp any any -> any 443", "flow:to_server; app-layer-protocol:!tls;", RuleType.PD_ONLY),
        ("tcp any any -> any 443", "flow:to_server,established; app-layer-protocol:!tls;", RuleType.PKT),
        ("tcp any any -> any 443", 'app-layer-protocol:!tls; content:"a";', RuleType.STREAM),
        # payload
        ("tcp any any -> any any", 'content:"a";', RuleType.STREAM),
        ("tcp any any -> any any", 'pcre:"/a/";', RuleType.STREAM),
        ("ip any any -> any any", 'content:"a";', RuleType.STREAM),
        ("http any any -> any any", 'content:"a";', RuleType.STREAM),
        ("tcp any any -> any any", 'content:"a"; content:"b"; distance:1;', RuleType.STREAM),
        ("tcp any any -> any any", 'content:"a"; depth:4;', RuleType.PKT_STREAM),
        ("tcp any any -> any any", 'content:"a"; offset:4;', RuleType.PKT_STREAM),
        ("tcp any any -> any any", 'content:"a"; startswith;', RuleType.PKT_STREAM),
        ("tcp any any -> any any", 'content:"a"; stream_size:both,>,3;', RuleType.PKT_STREAM),
        ("tcp-stream any any -> any any", 'content:"a"; depth:4;', RuleType.STREAM),
        ("tcp any any -> any any", 'flow:only_stream; content:"a"; depth:4;', RuleType.STREAM),
        ("tcp-pkt any any -> any any", 'content:"a";', RuleType.PKT),
        ("tcp any any -> any any", 'flow:no_stream; content:"a";', RuleType.PKT),
        ("tcp any any -> any any", 'content:"a"; dsize:>3;', RuleType.PKT),
        ("tcp any any -> any any", 'content:"a"; flags:A;', RuleType.PKT),
        ("udp any any -> any any", 'content:"a";', RuleType.PKT),
        # application
        ("http any any -> any any", "", RuleType.APP_LAYER),
        ("http any any -> any any", "flow:to_server;", RuleType.APP_LAYER),
        ("http any any -> any any", "flowbits:set,a;", RuleType.APP_LAYER),
        ("http any any -> any any", 'http.uri; content:"a";', RuleType.APP_TX),
        ("tcp any any -> any any", 'http.uri; content:"a"; pkt_data; content:"b";', RuleType.APP_TX),
        ("tcp any any -> any any", 'file_data; content:"a";', RuleType.APP_TX),
        ("tcp any any -> any any", "ssl_version:tls1.2;", RuleType.APP_TX),
        ("ip any any -> any any", "app-layer-event:http.missing_host_header;", RuleType.APP_TX),
    ],
)
def test_rule_type(header: str, options: str, expected: RuleType) -> None:
    assert rule(options, "alert " + header).rule_type is expected


@pytest.mark.parametrize(
    ("header", "options", "app_proto", "ip_protocols"),
    [
        ("tcp", 'content:"a";', "", {6}),
        ("ip", "", "", set()),
        ("ip", "ip_proto:47;", "", {47}),
        ("ip", "ip_proto:1; ip_proto:58;", "", {1, 58}),
        ("tcp", 'http.uri; content:"a";', "http", {6}),
        ("ip", 'tls.sni; content:"a";', "tls", {6}),
        ("udp", 'dns.query; content:"a";', "dns", {17}),
        ("ip", 'dns.query; content:"a";', "dns", {6, 17}),
        ("tcp", 'file_data; content:"a";', "", {6}),
        ("tcp", 'file_data; content:"a"; http.stat_code; content:"2";', "http", {6}),
        ("http2", 'http.uri; content:"a";', "http2", {6}),
        ("smtp", 'file_data; content:"a";', "smtp", {6}),
    ],
)
def test_protocols(header: str, options: str, app_proto: str, ip_protocols: set[int]) -> None:
    signature = rule(options, f"alert {header} any any -> any any")
    assert (signature.app_proto, set(signature.ip_protocols)) == (app_proto, ip_protocols)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('content:"a";', None),
        ("flow:to_client;", Direction.TO_CLIENT),
        ('http.uri; content:"a";', Direction.TO_SERVER),
        ('http.stat_code; content:"a"; http.header; content:"b";', Direction.TO_CLIENT),
        ('http.header; content:"b";', None),
    ],
)
def test_direction(options: str, expected: Direction | None) -> None:
    assert rule(options).direction is expected


def test_both_directions_in_one_rule() -> None:
    signature = rule('http.uri; content:"a"; http.stat_code; content:"200";', "alert http any any => any any")
    assert signature.transactional
    assert signature.direction is None
    assert not signature.bidirectional
    assert rule("", "alert ip any any <> any any").bidirectional


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('content:"abc"; content:"abcd";', ("payload", b"abcd", False)),
        ('content:"abcdefgh"; http.uri; content:"ab";', ("http.uri", b"ab", False)),
        ('http.method; content:"OPTIONS"; http.uri; content:"ab";', ("http.uri", b"ab", False)),
        ('http.method; content:"GET"; content:!"POSTPOST";', ("http.method", b"GET", False)),
        ('content:"ABC"; nocase; content:"zz"; fast_pattern;', ("payload", b"zz", False)),
        ('content:"ABC"; nocase;', ("payload", b"abc", True)),
        ('content:"abcdef"; fast_pattern:2,3;', ("payload", b"cde", False)),
        ('content:"abcdef"; fast_pattern:only; http.uri; content:"xyzxyz";', ("payload", b"abcdef", False)),
        ('content:"aaaa"; content:"a#b!";', ("payload", b"a#b!", False)),
        ('content:!"abc";', None),
        ('content:"abc"; content:!"x"; fast_pattern;', None),
        ('pcre:"/abc/";', None),
        ('ipv4.hdr; content:"abc";', None),
    ],
)
def test_fast_pattern(options: str, expected: tuple[str, bytes, bool] | None) -> None:
    found = rule(options).fast_pattern
    assert (found and (found.buffer, found.pattern, found.nocase)) == expected


def test_fast_pattern_knows_its_transforms() -> None:
    found = rule('dns.query; dotprefix; to_lowercase; content:".example.com"; endswith;').fast_pattern
    assert found is not None
    assert found.transform_names == ("dotprefix", "to_lowercase")


def test_certificate_patterns_take_the_case_of_the_buffer() -> None:
    text = ":".join(["AB"] * 20)
    found = rule(f'tls.cert_fingerprint; content:"{text}";').fast_pattern
    assert found is not None
    assert found.pattern == text.lower().encode()


def test_the_family_of_ipv6_rules_is_checked() -> None:
    signature = rule("", "alert ipv6 any any -> any any")
    assert signature.source is not None
    assert signature.source(bytes(16))
    assert not signature.source(bytes(4))


def test_a_thousand_rules_parse_quickly_enough_to_reload() -> None:
    text = "\n".join(
        f'alert http any any -> any any (msg:"m"; http.uri; content:"/a{n}"; pcre:"/b{n}/"; sid:{n};)'
        for n in range(1, 1001)
    )
    assert len(parse(text).signatures) == 1000

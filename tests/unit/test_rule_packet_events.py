"""Decoder and stream events, checksums, VLAN tags and IGMP as rules ask for them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

from engines.decode import anomalies
from engines.packet import decode
from engines.stateful import app
from engines.stateful.keywords.eventnames import APP_EVENTS, DECODE_EVENTS, STREAM_EVENTS
from engines.stateful.keywords.packetevents import internet_checksum
from engines.stateful.ruleset import compile_ruleset
from engines.stateful.signature import RuleType
from engines.verdict import Direction
from engines.watch import session
from tests.unit.rulekit import parse, refusal, rule


@dataclass
class View:
    packet: Any = None
    payload: bytes = b""
    direction: Direction = Direction.TO_SERVER
    established: bool = True
    events: frozenset[str] = frozenset()
    vlans: tuple[int, ...] | None = None


def holds(options: str, view: Any, header: str = "alert ip any any -> any any") -> bool:
    return all(test(view) for test in rule(options, header).packet_tests)


@pytest.mark.parametrize(
    ("option", "event"),
    [
        ("decode-event:ipv4.trunc_pkt", "decoder.ipv4.trunc_pkt"),
        ("stream-event:pkt_invalid_ack", "stream.pkt_invalid_ack"),
        ("engine-event:stream.pkt_invalid_ack", "stream.pkt_invalid_ack"),
        ("engine-event:decoder.ipv4.trunc_pkt", "decoder.ipv4.trunc_pkt"),
        ("decode-event:too_many_layers", "decoder.too_many_layers"),
    ],
)
def test_events(option: str, event: str) -> None:
    made = rule(f"{option};", "alert pkthdr any any -> any any")
    assert made.packet_events == (event,)
    assert made.rule_type is RuleType.PKT
    assert holds(f"{option};", View(events=frozenset({event, "other"})))
    assert not holds(f"{option};", View(events=frozenset({"other"})))
    assert not holds(f"{option};", View())  # nobody looked for events


@pytest.mark.parametrize(
    "option", ["decode-event:ipv9.x", "decode-event:ipv4", "stream-event:A B", "decode-event:ipv4."]
)
def test_event_names_have_a_form(option: str) -> None:
    assert "expected" in refusal(f"{option};")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("stream-event:pkt_invalid_akc", "did you mean pkt_invalid_ack?"),
        ("decode-event:ipv4.trunk_pkt", "did you mean ipv4.trunc_pkt?"),
        ("engine-event:stream.pkt_brokenack", "did you mean pkt_broken_ack?"),
        ("app-layer-event:http.missing_host", "did you mean http.missing_host_header?"),
        ("app-layer-event:http1.missing_host", "did you mean http1.missing_host_header?"),
        ("app-layer-event:tls.xyz", "there is no event 'tls.xyz'"),
        ("app-layer-event:applayer_unexpected_proto", "did you mean applayer_unexpected_protocol?"),
    ],
)
def test_unknown_events_are_told(option: str, hint: str) -> None:
    header = "alert tcp any any -> any any" if option.startswith("app") else "alert pkthdr any any -> any any"
    told = parse(f"{header} ({option}; sid:1;)").warnings
    (warning,) = [one.message for one in told if "there is no event" in one.message]
    assert hint in warning
    assert warning.endswith(", so the rule never matches")


@pytest.mark.parametrize("option", ["decode-event:sll2.x", "app-layer-event:nfs.x"])
def test_where_no_event_is_known_any_name_loads(option: str) -> None:
    assert rule(
        f"{option};", "alert pkthdr any any -> any any" if "decode" in option else "alert tcp any any -> any any"
    )


def test_what_parsers_report_can_be_asked_for() -> None:
    """A name that a parser spells unlike the table could be in no rule."""
    modules = {"bodies": "http", "http1": "http", "http_transaction": "http", "multipart": "http", "mime": "smtp"}
    seen = 0
    for path in sorted(Path(app.__file__).parent.glob("*.py")):
        proto = modules.get(path.stem, path.stem)
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("_event", ".event", "events.append")):
                constants = (one for one in ast.walk(call.args[-1]) if isinstance(one, ast.Constant) and one.value)
                for each in constants:
                    if isinstance(each.value, str) and not isinstance(call.args[-1], ast.JoinedStr):
                        assert each.value in APP_EVENTS.get(proto, (each.value,)), f"{path.name}:{each.lineno}"
                        seen += 1
    assert seen > 60
    for path in (Path(anomalies.__file__), Path(session.__file__)):
        for name in re.findall(r'found\["([a-z0-9_.]+)"\]', path.read_text()):
            decoder, _, event = name.partition(".")
            assert event in DECODE_EVENTS[decoder], name
        for name in re.findall(r'(?:_odd|_events\.append)\("([a-z0-9_]+)"\)', path.read_text()):
            assert name in STREAM_EVENTS


PACKETS = {
    "ipv4-csum": IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / b"x",
    "tcpv4-csum": IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / b"odd",
    "tcpv6-csum": IPv6(src="fd00::1", dst="fd00::2") / TCP() / b"even",
    "udpv4-csum": IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / b"abc",
    "udpv6-csum": IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"abc",
    "icmpv4-csum": IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / b"abc",
    "icmpv6-csum": IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(data=b"abc"),
}


@pytest.mark.parametrize("name", PACKETS)
def test_checksums(name: str) -> None:
    good = bytes(PACKETS[name])
    bad = bytearray(good)
    bad[8 if name == "ipv4-csum" else -1] ^= 1  # the TTL, or the last payload byte
    for data, valid in ((good, True), (bytes(bad), False)):
        view = View(decode(data))
        assert holds(f"{name}:valid;", view) is valid
        assert holds(f"{name}:invalid;", view) is not valid
    other = View(decode(bytes(IP(proto=47) / b"gre") if name != "ipv4-csum" else bytes(PACKETS["tcpv6-csum"])))
    assert not holds(f"{name}:valid;", other)
    assert not holds(f"{name}:invalid;", other)
    assert not holds(f"{name}:invalid;", View())
    assert "valid or invalid" in refusal(f"{name}:wrong;")


def slow_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    data += b"\0" * (len(data) % 2)
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0" * 8, b"\xff\xff", b"\xff\xff\0\0", b"\x01", b"abcdefg", b"\xff" * 9]
)
def test_the_checksum_is_that_of_the_rfc(data: bytes) -> None:
    assert internet_checksum(data) == slow_checksum(data)


def test_an_absent_udp_checksum_is_neither() -> None:
    view = View(decode(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(chksum=0) / b"abc")))
    assert not holds("udpv4-csum:valid;", view)
    assert not holds("udpv4-csum:invalid;", view)


@pytest.mark.parametrize(
    ("option", "vlans", "matches"),
    [
        ("vlan.layers:2", (1, 2), True),
        ("vlan.layers:!1", (1,), False),
        ("vlan.layers:0", (), True),
        ("vlan.layers:0", None, False),  # the link layer was not seen
        ("vlan.id:7", (6, 7), True),
        ("vlan.id:>6,all", (6, 7), False),
        ("vlan.id:7,0", (6, 7), False),
        ("vlan.id:7,-1", (6, 7), True),
        ("vlan.id:7,2", (6, 7), False),
        ("vlan.id:7", None, False),
    ],
)
def test_vlans(option: str, vlans: tuple[int, ...] | None, matches: bool) -> None:
    assert holds(f"{option};", View(vlans=vlans)) is matches


def test_igmp() -> None:
    report = bytes.fromhex("1600e9faef010203")  # version 2 membership report of 239.1.2.3
    view = View(decode(bytes(IP(src="10.0.0.1", dst="239.1.2.3", proto=2, ttl=1) / report)))
    header = "alert igmp any any -> any any"
    assert holds("igmp.type:0x16;", view, header)
    assert holds("dsize:0;", View(view.packet, report), header)  # all of it is header
    assert not holds("igmp.type:0x11;", view, header)
    assert holds('igmp.hdr; content:"|ef 01 02 03|"; endswith;', view, header)
    assert not holds('igmp.hdr; content:"|45|"; startswith;', view, header)
    assert holds(f"igmp-csum:{'valid' if slow_checksum(report) == 0 else 'invalid'};", view, header)


# --- rules that can never match ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "options", "why"),
    [
        ("alert enip any any -> any any", "enip.status:1;", "no parser for enip.status"),
        ("alert tcp any any -> any any", 'dnp3_data; content:"a";', "no parser for dnp3_data"),
        ("alert nfs any any -> any any", 'file_data; content:"a";', "no parser for the contents of files of nfs"),
        ("alert modbus any any -> any any", "modbus:function 1;", "no parser for modbus"),
    ],
)
def test_what_never_matches_says_so_and_is_not_compiled(header: str, options: str, why: str) -> None:
    found = parse(f"{header} ({options} sid:1;)\nalert tcp any any -> any any (sid:2;)")
    assert not found.errors
    assert why in found.signatures[0].never_matches
    assert [w.message.startswith("never matches: ") for w in found.warnings] == [True]
    assert why in found.warnings[0].message
    assert [r.signature.sid for r in compile_ruleset(found.signatures).rules] == [2]


@pytest.mark.parametrize(
    ("header", "options", "why"),
    [
        ("alert tcp any any -> any any", "stream-event:pkt_invalid_ack;", "with a stream-event is dropped"),
        ("alert tcp any any -> any any", "engine-event:stream.pkt_invalid_ack;", "with a stream-event is dropped"),
        ("alert ip any any -> any any", "vlan.id:100;", "VLAN tags"),
        ("alert arp any any -> any any", "", "arp packets do not reach"),
    ],
)
def test_what_matches_in_captures_only_says_so_and_is_compiled_for_them(header: str, options: str, why: str) -> None:
    found = parse(f"{header} ({options} sid:1;)\nalert tcp any any -> any any (sid:2;)")
    assert not found.errors
    assert why in found.warnings[0].message
    assert found.warnings[0].message.startswith("matches in captures only: ")
    assert [r.signature.sid for r in compile_ruleset(found.signatures).rules] == [2]
    assert {r.signature.sid for r in compile_ruleset(found.signatures, captures=True).rules} == {1, 2}


@pytest.mark.parametrize(
    ("header", "options", "says"),
    [
        ("alert smb any any -> any any", "smb.version:1; smb.version:2;", "twice"),
        ("alert ftp any any -> any any", "ftp.reply_received:perhaps;", "expected one of"),
        ("alert tls any any -> any any", "snmp.version:1;", "does not exist in tls"),
        ("alert snmp any any -> any any", "snmp.community;", "no condition"),
    ],
)
def test_their_mistakes_are_refused_all_the_same(header: str, options: str, says: str) -> None:
    assert says in refusal(options, header)

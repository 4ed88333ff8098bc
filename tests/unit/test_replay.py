"""Captures, settings, and the whole of ``nfw replay`` without a network."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord
from scapy.compat import raw
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, fragment

from engines.decode.link import ARP, IPV4, IPV6, decode_link
from engines.stateful.parser import Variables, parse_rules
from engines.watch.segments import OverlapPolicy
from nfw.capture import Captured, CaptureError, FilterError, filtered, read_capture
from nfw.cli.app import call
from nfw.replay import SETTINGS, ReplayOptions, SettingError, apply_setting, host_os_policy, replay
from tests.unit.pcapfile import ETHERNET, pcap, pcapng
from tests.unit.test_watch_session import C, S, segment

REQUEST = b"GET /secret HTTP/1.1\r\nHost: a.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def conversation() -> list[bytes]:
    """A whole HTTP exchange, as IP packets: numbers 1 to 8."""
    end, back = 101 + len(REQUEST), 501 + len(ANSWER)
    return [
        each.data
        for each in (
            segment(C, "S", 100, 0),
            segment(S, "SA", 500, 101),
            segment(C, "A", 101, 501),
            segment(C, "PA", 101, 501, REQUEST),
            segment(S, "PA", 501, end, ANSWER),
            segment(C, "A", end, back),
            segment(C, "FA", end, back),
            segment(S, "FA", back, end + 1),
        )
    ]


def run(rules: str, packets: list[bytes], tmp_path: Path, **settings: str) -> list[dict[str, Any]]:
    (tmp_path / "x.pcap").write_bytes(pcap(packets))
    parsed = parse_rules(rules, "t.rules", Variables({}, {}))
    assert not parsed.errors, parsed.errors
    options = ReplayOptions(enforce="mode" in settings)
    settings.pop("mode", None)
    for name, value in settings.items():
        options = apply_setting(options, name.replace("__", ".").replace("_", "-"), value)
    records: list[dict[str, Any]] = []
    replay(read_capture(tmp_path / "x.pcap"), parsed.signatures, options, records.append)
    return records


def alerts(records: list[dict[str, Any]]) -> list[tuple[int, int | None]]:
    return [(r["alert"]["signature_id"], r.get("pcap_cnt")) for r in records if r["event_type"] == "alert"]


def test_a_request_rule_fires_on_the_packet_after_its_acknowledgement(tmp_path: Path) -> None:
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    assert alerts(run(rule, conversation(), tmp_path)) == [(1, 6)]
    assert alerts(run(rule, conversation(), tmp_path, stream__inline="yes")) == [(1, 4)]


def test_what_was_never_acknowledged_is_judged_at_the_end_without_a_packet_number(tmp_path: Path) -> None:
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    assert alerts(run(rule, conversation()[:4], tmp_path)) == [(1, None)]


def test_arp_meets_its_own_rules_and_no_others(tmp_path: Path) -> None:
    rules = "alert arp any any -> any any (sid:1;)\nalert ip any any -> any any (sid:2;)\n"
    rules += "alert pkthdr any any -> any any (decode-event:arp.unsupported_opcode; sid:3;)"
    frame = b"\xff" * 6 + bytes(6) + b"\x08\x06" + b"\0\1\x08\0\6\4\0\x63" + bytes(20)
    (tmp_path / "x.pcap").write_bytes(pcap([frame], 1))
    parsed = parse_rules(rules, "t.rules", Variables({}, {}))
    records: list[dict[str, Any]] = []
    replay(read_capture(tmp_path / "x.pcap"), parsed.signatures, ReplayOptions(), records.append)
    assert alerts(records) == [(1, 1), (3, 1)]


def test_data_with_the_last_step_of_the_handshake_is_of_an_established_flow(tmp_path: Path) -> None:
    packets = conversation()
    del packets[2]
    rule = 'alert tcp any any -> any any (flow:established,to_server; content:"secret"; sid:1;)'
    assert alerts(run(rule, packets, tmp_path, stream__inline="yes")) == [(1, 3)]


@pytest.mark.parametrize(("setting", "dropped"), [("no", []), ("yes", [(2, "stream error")])])
def test_a_segment_that_fits_nowhere_is_dropped_on_request(
    setting: str, dropped: list[tuple[int, str]], tmp_path: Path
) -> None:
    packets = [segment(C, "S", 100, 0).data, segment(C, "PA", 101, 501, b"early").data]
    records = run("", packets, tmp_path, mode="ips", stream__drop_invalid=setting)
    assert [(r["pcap_cnt"], r["drop"]["reason"]) for r in records if r["event_type"] == "drop"] == dropped


@pytest.mark.parametrize(("setting", "alerted"), [("yes", [(1, 4)]), ("detection-only", [])])
def test_a_protocol_may_be_recognised_and_not_parsed(
    setting: str, alerted: list[tuple[int, int]], tmp_path: Path
) -> None:
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    settings = {"stream__inline": "yes", "app_layer__protocols__http__enabled": setting}
    records = run(rule, conversation(), tmp_path, **settings)
    assert alerts(records) == alerted
    assert [r["app_proto"] for r in records if r["event_type"] == "flow"] == ["http"]


@pytest.mark.parametrize(
    ("data", "client"),
    [(REQUEST, "10.0.0.1"), (ANSWER, "10.0.0.2"), (b"SSH-2.0-x\r\n", "10.0.0.1"), (b"\xff\xff", "10.0.0.1")],
)
def test_a_connection_picked_up_with_an_answer_is_turned_round(data: bytes, client: str, tmp_path: Path) -> None:
    """The first sender is the client unless it says what only a server says."""
    rule = "alert tcp any any -> any any (sid:1;)"
    packets = [segment(C, "PA", 101, 501, data).data]
    (record,) = [r for r in run(rule, packets, tmp_path, stream__midstream="yes") if r["event_type"] == "flow"]
    assert record["src_ip"] == client


def test_a_dns_answer_without_its_question_comes_from_the_server(tmp_path: Path) -> None:
    answer = DNSRecord.question("a.test").reply().pack()
    packet = raw(IP(src="10.0.0.9", dst="10.0.0.1") / UDP(sport=53, dport=4000) / answer)
    (record,) = run("alert udp any any -> any 1 (sid:1;)", [packet], tmp_path)
    assert (record["src_ip"], record["dest_ip"]) == ("10.0.0.1", "10.0.0.9")


def test_ip_rules_once_a_direction_packet_rules_each_packet(tmp_path: Path) -> None:
    rules = "alert ip any any -> any any (sid:1;)\nalert tcp any any -> any any (flow:to_client; sid:2;)"
    seen = Counter(sid for sid, _ in alerts(run(rules, conversation(), tmp_path)))
    assert seen == {1: 2, 2: 3}


def test_thresholds_are_not_about_packets_without_addresses(tmp_path: Path) -> None:
    rule = (
        "alert pkthdr any any -> any any (decode-event:ipv4.pkt_too_small;"
        " threshold:type limit, track by_src, count 1, seconds 60; sid:1;)"
    )
    assert alerts(run(rule, [b"\x45", b"\x45"], tmp_path)) == [(1, 1), (1, 2)]


def test_a_drop_in_ips_mode_takes_the_rest_of_the_flow_along(tmp_path: Path) -> None:
    rule = 'drop http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    records = run(rule, conversation(), tmp_path, mode="ips", stream__inline="yes")
    drops = [(r["pcap_cnt"], r["drop"]["reason"]) for r in records if r["event_type"] == "drop"]
    assert drops == [(4, "rules"), *((number, "flow drop") for number in range(5, 9))]
    assert alerts(records) == [(1, 4)]
    assert [r["flow"].get("action") for r in records if r["event_type"] == "flow"] == ["drop"]
    records = run(rule, conversation(), tmp_path)  # a bystander drops nothing
    assert [r["alert"]["action"] for r in records if r["event_type"] == "alert"] == ["allowed"]
    assert not [r for r in records if r["event_type"] == "drop"]


def test_midstream_is_dropped_in_ips_mode_unless_told_otherwise(tmp_path: Path) -> None:
    rule = 'alert tcp any any -> any any (content:"secret"; sid:1;)'
    late = conversation()[3:]
    records = run(rule, late, tmp_path, mode="ips", stream__inline="yes")
    assert [r["drop"]["reason"] for r in records if r["event_type"] == "drop"] == ["stream midstream"] + 4 * [
        "exception policy flow drop"
    ]
    assert alerts(records) == []
    records = run(rule, late, tmp_path, mode="ips", stream__inline="yes", stream__midstream="yes")
    assert alerts(records) == [(1, 1)]


@pytest.mark.parametrize(("settings", "dropped"), [({}, ["stream midstream"]), ({"flow_timeouts__closed": "60"}, [])])
def test_a_connection_that_has_ended_is_forgotten_soon(
    settings: dict[str, str], dropped: list[str], tmp_path: Path
) -> None:
    """What comes then belongs to none, and meets the policy for that."""
    talk = conversation()
    other = bytes(IP(src="10.9.9.9", dst="10.9.9.8") / UDP(sport=1, dport=2))
    last = segment(C, "A", 102 + len(REQUEST), 502 + len(ANSWER)).data
    packets = [*talk, last, *(other,) * 12, talk[-1]]
    records = run("pass tcp any any -> any any (flow:stateless; sid:1;)", packets, tmp_path, mode="ips", **settings)
    assert [r["drop"]["reason"] for r in records if r["event_type"] == "drop"] == dropped


# --- captures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        pcap([b"\x45one", b"\x45two"]),
        pcap([b"\x45one", b"\x45two"], order=">"),
        pcap([b"\x45one", b"\x45two"], nano=True),
        pcapng([b"\x45one", b"\x45two"]),
        gzip.compress(pcap([b"\x45one", b"\x45two"])),
        gzip.compress(pcapng([b"\x45one", b"\x45two"])),
    ],
    ids=["little", "big", "nano", "ng", "gzip", "ng gzip"],
)
def test_every_form_of_capture(made: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(made)
    assert [(p.number, p.time, p.link_type, p.data) for p in read_capture(path)] == [
        (1, 1000.5, 101, b"\x45one"),
        (2, 1001.5, 101, b"\x45two"),
    ]


@pytest.mark.parametrize(
    ("made", "readable", "says"),
    [
        (b"", 0, "is empty; expected a pcap or pcapng file"),
        (b"hello, this is text", 0, "not a pcap or pcapng file"),
        (gzip.compress(b"hello, this is text"), 0, "not a pcap or pcapng file"),
        (gzip.compress(gzip.compress(pcap([b"one"]))), 0, "not a pcap or pcapng file: it is compressed twice"),
        (gzip.compress(pcap([b"one", b"two"]))[:-12], 1, "damaged after packet 1"),
        (gzip.compress(pcap([b"one"]))[:9], 0, "not a pcap or pcapng file"),
        (gzip.compress(pcap([b"one", b"two"])[:-1]), 1, "cut off after packet 1"),
        (pcapng([b"one", b"two"])[:-1], 1, "cut off after packet 1"),
        (pcapng([b"one", b"two"])[:-4], 1, "cut off after packet 1"),
        (pcapng([b"one", b"two"])[:-30], 1, "cut off after packet 1"),
        (pcapng([b"one"]) + b"\6\0\0\0\xff\xff\xff\xff", 1, "damaged after packet 1"),
        (pcap([b"one"]) + bytes(8) + b"\0\0\x08\0" * 2 + bytes(1 << 20), 1, "damaged after packet 1"),
        (pcap([b"one", b"two"])[:-1], 1, "cut off after packet 1"),
        (pcap([b"one", b"two"])[:-10], 1, "cut off after packet 1"),
        (pcap([b"one"], link_type=147), 0, "link type 147, which is not supported"),
    ],
)
def test_a_damaged_capture_gives_what_is_there_and_then_says_so(
    made: bytes, readable: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(made)
    seen: list[Captured] = []
    with pytest.raises(CaptureError, match=says) as caught:
        seen.extend(read_capture(path))
    assert len(seen) == readable
    assert str(path) in str(caught.value)


def test_a_packet_that_was_captured_in_part_says_how_long_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([b"\x45one"])[:-8] + struct.pack("<I", 1500) + b"\x45one")
    assert [packet.wire for packet in read_capture(path)] == [1500]


@pytest.mark.parametrize("link_type", [1, 101])
@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ("port 80", list(range(1, 9))),
        ("src host 10.0.0.1", [1, 3, 4, 6, 7]),
        ("tcp[tcpflags] & tcp-push != 0", [4, 5]),
        ("udp or port 81", []),
    ],
)
def test_a_filter_lets_through_what_it_says_numbered_anew(link_type: int, expression: str, numbers: list[int]) -> None:
    front = ETHERNET if link_type == 1 else b""
    packets = [Captured(n, float(n), link_type, front + data) for n, data in enumerate(conversation(), 1)]
    passed = list(filtered(packets, expression))
    assert [packet.time for packet in passed] == numbers
    assert [packet.number for packet in passed] == list(range(1, len(numbers) + 1))


def test_a_filter_looks_at_the_length_on_the_wire() -> None:
    packets = [Captured(1, 0.0, 101, conversation()[0], 1500), Captured(2, 0.0, 101, conversation()[0])]
    assert [packet.wire for packet in filtered(packets, "greater 1000")] == [1500]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("prt 80", "syntax error"),
        ("port 99999", "illegal port number"),
        ("udp and tcp", "expression rejects all packets"),
        ("wlan", "is no filter"),
    ],
)
def test_what_is_no_filter(expression: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        next(filtered([Captured(1, 0.0, 101, conversation()[0])], expression))


@pytest.mark.parametrize(
    ("link_type", "data", "vlan", "packet"),
    [
        (1, ETHERNET + b"\x45x", (), b"\x45x"),
        (1, bytes(12) + b"\x81\x00\x00\x05\x08\x00\x45x", (5,), b"\x45x"),
        (1, bytes(12) + b"\x88\xa8\xf0\x07\x81\x00\x00\x05\x86\xdd\x60x", (7, 5), b"\x60x"),
        (101, b"\x45x", (), b"\x45x"),
        (0, b"\x02\0\0\0\x45x", (), b"\x45x"),
        (9, b"\xff\x03\x00\x21\x45x", (), b"\x45x"),
        (113, bytes(14) + b"\x08\x00\x45x", (), b"\x45x"),
        (276, b"\x08\x00" + bytes(18) + b"\x45x", (), b"\x45x"),
    ],
)
def test_link_layers(link_type: int, data: bytes, vlan: tuple[int, ...], packet: bytes) -> None:
    frame = decode_link(link_type, data)
    assert (frame.vlans, frame.payload) == (vlan, packet)
    assert frame.ethertype in (IPV4, IPV6)


def test_arp_is_no_ip() -> None:
    assert decode_link(1, bytes(12) + b"\x08\x06" + bytes(28)).ethertype == ARP


def test_fragments_and_tunnels_of_a_capture_are_seen_through(tmp_path: Path) -> None:
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    pieces = [raw(piece) for packet in conversation() for piece in fragment(IP(packet), fragsize=24)]
    assert len(pieces) > len(conversation())
    assert [sid for sid, _ in alerts(run(rule, pieces, tmp_path))] == [1]
    assert alerts(run(rule, [raw(IP() / GRE() / IP(packet)) for packet in conversation()], tmp_path)) == [(1, 6)]


def test_a_wrong_checksum_keeps_a_segment_out_of_the_stream_when_asked(tmp_path: Path) -> None:
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    packets = conversation()
    fixed = [_with_checksum(packet) for packet in packets]
    setting = {"stream__checksum_validation": "yes"}
    assert alerts(run(rule, fixed, tmp_path, **setting)) == [(1, 6)]
    wrong = [*fixed[:3], fixed[3].replace(b"a.test", b"b.test"), *fixed[4:]]
    assert alerts(run(rule, wrong, tmp_path, **setting)) == []
    assert alerts(run(rule, wrong, tmp_path)) == [(1, 6)]


def _with_checksum(packet: bytes) -> bytes:
    parsed = IP(packet)
    del parsed[TCP].chksum
    return raw(parsed)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_change_what_they_name() -> None:
    options = ReplayOptions()
    for name, value in (
        ("stream.midstream", "yes"),
        ("stream.reassembly.depth", "2mb"),
        ("packet-alert-max", "3"),
        ("exception-policy", "ignore"),
    ):
        options = apply_setting(options, name, value)
    assert options.session.midstream
    assert options.session.depth == 2 << 20
    assert options.limits.max_alerts == 3
    assert options.watch().midstream_policy.value == "ignore"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("stream.midstrem", "yes", "did you mean stream.midstream"),
        ("zzz", "1", "known are"),
        ("stream.midstream", "perhaps", "neither yes nor no"),
        ("stream.reassembly.depth", "big", "is no size"),
        ("exception-policy", "panic", "none of auto"),
        ("host-os-policy", "beos", "beos"),
        ("drop.flows", "some", "some"),
    ],
)
def test_a_wrong_setting_says_what_would_do(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        apply_setting(ReplayOptions(), name, value)
    assert all(callable(setting) for setting in SETTINGS.values())


def test_the_longest_prefix_decides_the_policy_of_a_host() -> None:
    policy = host_os_policy("windows, linux=10.0.0.0/8, first=10.1.0.0/16")
    assert policy(bytes([192, 0, 2, 1])) is OverlapPolicy.WINDOWS
    assert policy(bytes([10, 9, 0, 1])) is OverlapPolicy.LINUX
    assert policy(bytes([10, 1, 0, 1])) is OverlapPolicy.FIRST
    assert policy(bytes(16)) is OverlapPolicy.BSD


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    capture, rules = tmp_path / "x.pcap", tmp_path / "x.rules"
    capture.write_bytes(pcap(conversation()))
    rules.write_text('alert http any any -> any any (msg:"found it"; http.uri; content:"/secret"; sid:7;)\n')
    return str(capture), str(rules)


def test_the_summary(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    assert call(["replay", capture, "--rules", rules]) == 0
    out = capsys.readouterr().out
    assert "8 packets, 1 flow, 1 alert, 0 dropped packets" in out
    assert "1 × 7  found it" in out


def test_eve_on_standard_output_is_json_lines_only(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    assert call(["replay", capture, "--rules", rules, "--eve", "-"]) == 0
    kinds = [json.loads(line)["event_type"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["alert", "flow"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda c, r: [c + "x", "--rules", r], 1, "No such file"),
        (lambda c, r: [c, "--rules", r + "x"], 1, "rule file does not exist"),
        (lambda c, r: [c], 2, "--rules"),
        (lambda c, r: [c, "--rules", r, "--mode", "idps"], 2, "idps"),
        (lambda c, r: [c, "--rules", r, "--set", "stream.midstream"], 2, "is not NAME=VALUE"),
        (lambda c, r: [c, "--rules", r, "--filter", "prt 1"], 2, "syntax error"),
        (lambda c, r: [c, "--rules", r, "--set", "stream.midstreem=1"], 2, "did you mean stream.midstream"),
    ],
)
def test_wrong_calls(
    files: tuple[str, str], change: Any, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["replay", *change(*files)]) == code
    assert says in capsys.readouterr().err


def test_refused_rules_are_told_and_the_rest_is_used(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, rules = files
    with Path(rules).open("a") as file:
        file.write("alert tcp any any -> any any (nonsense; sid:8;)\n")
    assert call(["replay", capture, "--rules", rules]) == 0
    told = capsys.readouterr()
    assert f"{rules}:2:" in told.err
    assert "1 rules are refused, 1 are used" in told.err
    assert "found it" in told.out
    assert call(["replay", capture, "--rules", rules, "--strict"]) == 1


def test_a_capture_that_is_cut_off_is_shown_as_far_as_it_goes(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    capture, rules = files
    Path(capture).write_bytes(Path(capture).read_bytes()[:-5])
    assert call(["replay", capture, "--rules", rules]) == 1
    told = capsys.readouterr()
    assert "7 packets" in told.out
    assert "cut off after packet 7" in told.err


def test_an_interrupt_shows_what_was_found_so_far(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, rules = files
    real = read_capture

    def interrupted(path: Path) -> Iterator[Captured]:
        for packet in real(path):
            if packet.number == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield packet

    monkeypatch.setattr("nfw.capture.read_capture", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert call(["replay", capture, "--rules", rules]) == 130
    told = capsys.readouterr()
    assert "found it" in told.out
    assert f"{capture}: stopped after packet 6" in told.err
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_replayed_when_no_rule_is_left(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    Path(rules).write_text("alert tcp any any -> any any (nonsense; sid:8;)\n")
    assert call(["replay", capture, "--rules", rules]) == 1
    told = capsys.readouterr()
    assert "no rule is left" in told.err
    assert "packets" not in told.out


def test_idle_flows_end_during_the_capture(tmp_path: Path) -> None:
    """Their memory must not be kept to the end, and they are judged then: before what comes later."""
    late = IP(src="10.9.9.9", dst="10.9.9.8") / UDP(sport=1, dport=2)
    path = tmp_path / "x.pcap"
    quiet = 400  # packets, a second each: longer than a UDP flow may be idle
    path.write_bytes(pcap([bytes(late), *(bytes(IP(src="10.1.1.1", dst="10.1.1.2") / UDP(sport=3, dport=4)),) * quiet]))
    records: list[dict[str, Any]] = []
    replay(read_capture(path), [], ReplayOptions(), records.append)
    assert [(r["src_ip"], r["flow"]["reason"]) for r in records] == [("10.9.9.9", "timeout"), ("10.1.1.1", "shutdown")]


def test_scapy_is_not_loaded_by_other_commands() -> None:
    code = "import sys; from nfw.cli.app import call; call(['--version']); sys.exit('scapy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_threshold_config_for_the_rules(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    config = Path(rules).with_name("t.config")
    config.write_text("suppress gen_id 1, sig_id 7, track by_dst, ip $SERVERS\nsuppress gen_id 1, sig_id 8\nnonsense\n")
    ordered = ["replay", capture, "--rules", rules, "--threshold", str(config), "--var"]
    assert call([*ordered, "SERVERS=10.0.0.2"]) == 0
    told = capsys.readouterr()
    assert "0 alerts" in told.out
    assert f"{config}:3:1: expected event_filter" in told.err
    assert f"{config}:2: there is no rule with gid 1 and sid 8 [warning]" in told.err
    assert call([*ordered, "SERVERS=10.0.0.9"]) == 0
    assert "1 alert," in capsys.readouterr().out
    assert call([*ordered, "SERVERS=10.0.0.9", "--strict"]) == 1
    assert "1 lines of" in capsys.readouterr().err
    assert call([*ordered[:-2], str(config) + "x"]) == 1
    assert "threshold file does not exist" in capsys.readouterr().err


def test_classes_and_references_of_ones_own(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    Path(rules).write_text("alert tcp any any -> any any (classtype:ours; reference:wiki,x; sid:7;)\n")
    classes, references = Path(rules).with_name("c.config"), Path(rules).with_name("r.config")
    classes.write_text("config classification: ours,Our own,1\nnonsense\n")
    references.write_text("config reference: wiki https://wiki.example/\n")
    told = ["replay", capture, "--rules", rules, "--classification", str(classes), "--reference", str(references)]
    assert call([*told, "--eve", "-"]) == 0
    written = capsys.readouterr()
    alert = json.loads(written.out.splitlines()[0])["alert"]
    assert (alert["severity"], alert["category"], alert["references"]) == (1, "Our own", ["https://wiki.example/x"])
    assert f"{classes}:2:1: expected config classification" in written.err
    assert call([*told, "--strict"]) == 1
    assert f"1 lines of {classes} are refused" in capsys.readouterr().err


def test_a_filter_for_the_command(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capture, rules = files
    Path(capture).write_bytes(gzip.compress(Path(capture).read_bytes()))
    assert call(["replay", capture, "--rules", rules, "--filter", "src host 10.0.0.1"]) == 0
    assert "5 packets, 1 flow" in capsys.readouterr().out


def test_a_time_that_goes_back_ends_no_flow(tmp_path: Path) -> None:
    """Suricata never moves back the time a flow was last seen."""
    rule = 'alert http any any -> any any (http.uri; content:"/secret"; sid:1;)'
    parsed = parse_rules(rule, "t.rules", Variables({}, {}))
    times = [5_000.0, 1.0, *(5_000.0 + n for n in range(2, 8))]
    packets = [Captured(n, now, 101, data) for n, (now, data) in enumerate(zip(times, conversation(), strict=True), 1)]
    records: list[dict[str, Any]] = []
    replay(packets, parsed.signatures, ReplayOptions(), records.append)
    assert alerts(records) == [(1, 6)]
    (flow,) = [record["flow"] for record in records if record["event_type"] == "flow"]
    assert flow["age"] == 7


@pytest.mark.parametrize("how", ["--rules", "--policy"])
def test_a_time_without_a_date_is_taken_for_the_last_one(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pcapng").write_bytes(pcapng(conversation(), start=18_000_000_000_000))
    (tmp_path / "r.rules").write_text("alert tcp any any -> any any (flags:S; sid:1;)\n")
    (tmp_path / "p.yaml").write_text("stateful: {order: action, rule_files: [r.rules]}\n")
    times = [packet.time for packet in read_capture(tmp_path / "x.pcapng")]
    assert set(times) == {253_000_000_000.0}
    file = "r.rules" if how == "--rules" else "p.yaml"
    assert call(["replay", str(tmp_path / "x.pcapng"), how, str(tmp_path / file), "--eve", "-"]) == 0
    assert '"timestamp":"9987-' in capsys.readouterr().out


def test_data_of_a_reset_is_in_the_packet_only(tmp_path: Path) -> None:
    any_tcp = "alert tcp any any -> any any"
    rules = (
        f'{any_tcp} (flow:only_stream; content:"denied"; sid:1;)\n'
        f'{any_tcp} (content:"denied"; sid:2;)\n'
        f'alert tcp-pkt any any -> any any (content:"denied"; sid:3;)\n'
    )
    packets = [*conversation()[:3], segment(C, "RA", 101, 501, b"denied").data]
    assert sorted(alerts(run(rules, packets, tmp_path))) == [(2, 4), (3, 4)]


def test_urgent_data_is_refused_where_the_setting_says_so(tmp_path: Path) -> None:
    packets = conversation()
    loud = bytearray(packets[3])
    loud[33] |= 0x20  # the URG flag
    loud[38:40] = struct.pack("!H", 1)
    packets[3] = bytes(loud)
    rules = 'alert tcp any any -> any any (content:"GET"; sid:1;)\nalert tcp any any -> any any (content:"ET"; sid:2;)'
    setting = {"stream__reassembly__urgent__policy": "oob", "stream__inline": "yes"}
    assert [sid for sid, _ in alerts(run(rules, packets, tmp_path, **setting))] == [2]
    records = run(rules, packets, tmp_path, mode="ips", **{**setting, "stream__reassembly__urgent__policy": "drop"})
    assert not alerts(records)
    assert next(r["drop"]["reason"] for r in records if r["event_type"] == "drop") == "stream urgent"


@pytest.mark.parametrize(
    ("packet", "fields"),
    [
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=137, dport=137) / raw(DNSRecord.question("x").pack()),
            "failed",
        ),
        (IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=137, dport=53) / raw(DNSRecord.question("x").pack()), "dns"),
        (IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=9) / b"nothing known", "failed"),
        (IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8), None),
    ],
)
def test_flow_records_say_what_was_not_recognised(packet: Any, fields: str | None, tmp_path: Path) -> None:
    (flow,) = [r for r in run("", [raw(packet)], tmp_path) if r["event_type"] == "flow"]
    assert flow.get("app_proto") == fields
    assert (flow.get("icmp_type"), flow.get("icmp_code")) == ((8, 0) if fields is None else (None, None))

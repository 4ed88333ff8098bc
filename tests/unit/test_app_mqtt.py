"""MQTT: what rules see of a packet, which packets are one transaction, what is odd, and what is held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.mqtt import MqttParser
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.parser import Variables, parse_rules
from tests.unit.app_feeding import C, S, Script, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

NAMES = [name for name in BUFFERS if name.startswith("mqtt.")]


def packet(first: int, contents: bytes = b"") -> bytes:
    size, length = len(contents), b""
    while True:
        length += bytes((size & 0x7F | (0x80 if size > 0x7F else 0),))
        size >>= 7
        if not size:
            return bytes((first,)) + length + contents


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def connect(version: int, flags: int = 0xC2, more: bytes = b"") -> bytes:
    properties = b"\x03\x21\x00\x14" if version == 5 else b""
    name = text(b"MQIsdp" if version == 3 else b"MQTT")
    rest = text(b"me") + more + text(b"user") + text(b"pass")
    return packet(0x10, name + bytes((version, flags, 0, 60)) + properties + rest)


CONNACK, CONNACK5 = packet(0x20, b"\1\0"), packet(0x20, b"\0\x86\0")
PUBLISH = packet(0x30, text(b"topic") + b"message")
OPEN: Script = [(C, connect(4)), (S, CONNACK)]


def test_every_buffer() -> None:
    will = b"\0" + text(b"willtopic") + text(b"gone")
    script = [
        (C, connect(5, 0xE6, will)),
        (S, CONNACK5),
        (C, packet(0x3B, text(b"a/b") + b"\0\7" + b"\0" + b"payload")),
        (S, packet(0x40, b"\0\7\x10")),
        (C, packet(0x82, b"\0\x08\0" + text(b"x") + b"\1" + text(b"y") + b"\0")),
        (S, packet(0x90, b"\0\x08\0\1\x80")),
        (C, packet(0xA2, b"\0\x09\0" + text(b"x"))),
        (S, packet(0xB0, b"\0\x09\0\x11")),
        (C, packet(0xC0)),
        (S, packet(0xD0)),
        (S, packet(0xE0, b"\x8b\0")),
    ]
    five = ("mqtt.protocol_version", [b"\5"])
    expected = [
        {
            "mqtt.type": [b"\1", b"\2"],
            "mqtt.connect.protocol_string": [b"MQTT"],
            "mqtt.connect.flags": [b"\xe6"],
            "mqtt.connect.clientid": [b"me"],
            "mqtt.connect.willtopic": [b"willtopic"],
            "mqtt.connect.willmessage": [b"gone"],
            "mqtt.connect.username": [b"user"],
            "mqtt.connect.password": [b"pass"],
            "mqtt.connack.session_present": [b"\0"],
            "mqtt.reason_code": [b"\x86"],
        },
        {
            "mqtt.type": [b"\3", b"\4"],
            "mqtt.flags": [b"\x0b", b"\0"],
            "mqtt.qos": [b"\1", b"\0"],
            "mqtt.publish.topic": [b"a/b"],
            "mqtt.publish.message": [b"payload"],
            "mqtt.reason_code": [b"\x10"],
        },
        {"mqtt.type": [b"\x08", b"\x09"], "mqtt.subscribe.topic": [b"x", b"y"], "mqtt.reason_code": [b"\1", b"\x80"]},
        {"mqtt.type": [b"\x0a", b"\x0b"], "mqtt.unsubscribe.topic": [b"x"], "mqtt.reason_code": [b"\x11"]},
        {"mqtt.type": [b"\x0c"]},
        {"mqtt.type": [b"\x0d"]},
        {"mqtt.type": [b"\x0e"], "mqtt.reason_code": [b"\x8b"]},
    ]
    for parser, txs in every_way(MqttParser, script):
        assert not parser.gave_up
        assert [tx.events for tx in txs] == [[]] * len(expected)
        for tx, values in zip(txs, expected, strict=True):
            found = {name: list(tx.buffer(name)) for name in NAMES if tx.buffer(name)}
            assert found.items() >= values.items()
            assert found[five[0]][:1] == five[1]
            assert tx.is_complete(C)
            assert tx.is_complete(S)
            assert tx.log_fields()["type"]


@pytest.mark.parametrize(
    ("script", "events"),
    [
        ([(S, CONNACK)], ["missing_connect"]),
        ([(C, connect(4) * 2)], ["double_connect"]),
        ([(C, connect(3) + PUBLISH)], ["unintroduced_message"]),
        ([*OPEN, (S, packet(0x40, b"\0\7"))], ["missing_publish"]),
        ([*OPEN, (S, packet(0x90, b"\0\7\0"))], ["missing_subscribe"]),
        ([*OPEN, (S, packet(0xB0, b"\0\7"))], ["missing_unsubscribe"]),
        ([*OPEN, (C, packet(0x36, text(b"a") + b"\0\1"))], ["invalid_qos_level"]),
        ([*OPEN, (C, packet(0x32, text(b"a") + b"\0\0"))], ["missing_msg_id"]),
        ([*OPEN, (C, packet(0x00, b"ab"))], ["unassigned_msg_type"]),
        ([*OPEN, (C, packet(0x30, b"\0\x09a"))], ["malformed_traffic"]),
        ([(C, packet(0x10, b"\0\4MQTT\5\0\0\0\xff\xff\xff\xff\0"))], ["malformed_traffic"]),
        ([*OPEN, (C, b"\x30\xff\xff\xff\xff\1")], ["malformed_traffic"]),
        ([*OPEN, (C, packet(0x34, text(b"a") + b"\0\7")), (S, packet(0x50, b"\0\7")), (C, packet(0x62, b"\0\7"))], []),
    ],
)
def test_what_is_odd(script: Script, events: list[str]) -> None:
    for parser, txs in every_way(MqttParser, script):
        assert [event for tx in txs for event in tx.events] == events
        assert parser.gave_up == (script[-1][1][1:5] == b"\xff" * 4)


def test_the_four_packets_of_one_delivery() -> None:
    script = [*OPEN, (C, packet(0x34, text(b"a") + b"\0\7"))]
    script += [(S, packet(0x50, b"\0\7")), (C, packet(0x62, b"\0\7")), (S, packet(0x70, b"\0\7"))]
    for _, (_, tx) in every_way(MqttParser, script):
        assert list(tx.buffer("mqtt.type")) == [b"\3", b"\5", b"\6", b"\7"]
        assert tx.is_complete(C)


def test_bounds() -> None:
    small = replace(AppLimits(), mqtt_packet=12, mqtt_open=2)
    long = packet(0x30, text(b"topic") + bytes(5000))
    for _, txs in every_way(lambda: MqttParser(small), [*OPEN, (C, long + PUBLISH)]):
        assert [list(tx.buffer("mqtt.publish.message")) for tx in txs[1:]] == [[bytes(5)], [b"messa"]]
    asks = b"".join(packet(0x82, number.to_bytes(2, "big") + text(b"x") + b"\0") for number in range(1, 5))
    txs = play(MqttParser(small), [*OPEN, (C, asks)])
    assert [tx.events for tx in txs[1:]] == [["too_many_transactions"]] * 2 + [[]] * 2
    assert [tx.is_complete(C) for tx in txs[1:]] == [True, True, False, False]


def test_any_bytes() -> None:
    survives(MqttParser, [(C, data) for data in corpus("mqtt")], NAMES, 300, 3)


@pytest.mark.parametrize(("side", "data"), [(C, connect(4)), (C, connect(3)), (S, CONNACK), (S, CONNACK5)])
def test_detection(side: object, data: bytes) -> None:
    detector = Detector()
    names = [detector.feed(side, data[at : at + 1]) for at in range(len(data))]  # type: ignore[arg-type]
    assert names[-1] == "mqtt"


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_packet_is_judged_before_it_leaves(size: int) -> None:
    rules = f"""
        drop mqtt {ANY} (mqtt.type:PUBLISH; mqtt.publish.topic; content:"secret"; sid:1;)
        alert mqtt {ANY} (mqtt.type:CONNECT; mqtt.connect.flags:username,!will; mqtt.protocol_version:4; sid:2;)
        alert mqtt {ANY} (mqtt.type:CONNACK; mqtt.reason_code:0; mqtt.connack.session_present:yes; sid:3;)
        alert mqtt {ANY} (mqtt.flags:!retain,!dup; mqtt.qos:1; sid:4;)
    """
    flow = Flow(compiled(rules)).handshake()
    got: list[int] = []
    secret = packet(0x32, text(b"secret") + b"\0\1")
    for direction, data in ((UP, connect(4)), (DOWN, CONNACK), (UP, PUBLISH)):
        for at in range(0, len(data), size):
            flow.data(direction, data[at : at + size])
            got += flow.sids
    assert sorted(got) == [2, 3]
    said = ""
    for at in range(0, len(secret), size):
        said = flow.data(UP, secret[at : at + size])
        if at + size < len(secret):
            assert (said, flow.held) == ("accept", (at + size, 0))
    assert said == "drop! 1 4"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("mqtt.type:NOTHING", "expected a number or one of"),
        ("mqtt.type:16", "not between"),
        ("mqtt.qos:3", "not between"),
        ("mqtt.flags:dupe", "expected flags of dup, retain"),
        ("mqtt.connect.flags:will,nothing", "found 'nothing'"),
        ("mqtt.connack.session_present:maybe", "expected a number or one of"),
    ],
)
def test_values(condition: str, message: str) -> None:
    (error,) = parse_rules(f"alert mqtt {ANY} ({condition}; sid:1;)", "t.rules", Variables()).errors
    assert message in error.message

"""SNMP, IKE and NFS: what rules see of a message, what is odd; any bytes."""

from __future__ import annotations

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.app.ike import IkeParser
from engines.stateful.app.nfs import NfsParser
from engines.stateful.app.snmp import SnmpParser
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.parser import Variables, parse_rules
from tests.unit.app_feeding import C, S, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_app_krb5 import value
from tests.unit.test_inspector import ANY, UDP, UP, Flow, compiled


def names(prefix: str) -> list[str]:
    return [name for name in BUFFERS if name.startswith(prefix)]


# -- SNMP --------------------------------------------------------------------------------------------------------------


def number(n: int) -> bytes:
    return value(2, bytes((n,)))


def community(version: int, pdu: int, body: bytes = b"") -> bytes:
    return value(0x30, number(version) + value(4, b"public") + value(0xA0 + pdu, body or number(1)))


TRAP = community(0, 4, value(6, b"\x2b") + value(0x40, bytes(4)) + number(3) + number(0))
USM = value(4, value(0x30, value(4, b"e") + number(1) + number(2) + value(4, b"admin") + value(4, b"") * 2))


def third(data: bytes, model: int = 3) -> bytes:
    header = value(0x30, number(1) + number(9) + value(4, b"\3") + number(model))
    return value(0x30, number(3) + header + USM + data)


PLAIN = value(0x30, value(4, b"e") + value(4, b"") + value(0xA8, number(1)))


@pytest.mark.parametrize(
    ("data", "version", "who", "pdu", "events"),
    [
        (community(0, 0), 1, b"public", 0, []),
        (community(1, 5), 2, b"public", 5, []),
        (TRAP, 1, b"public", 4, []),
        (third(PLAIN), 3, b"admin", 8, []),
        (third(value(4, b"sealed")), 3, b"admin", None, []),
        (third(PLAIN, 2), 3, None, 8, ["unknown_security_model"]),
        (value(0x30, number(7)), None, None, None, ["malformed_data"]),
        (b"", None, None, None, ["malformed_data"]),
    ],
)
def test_snmp(data: bytes, version: int | None, who: bytes | None, pdu: int | None, events: list[str]) -> None:
    parser = SnmpParser()
    parser.feed(C, data)
    (tx,) = parser.transactions
    wanted = [[] if number is None else [bytes((number,))] for number in (version, pdu)]
    assert [list(tx.buffer(name, C)) for name in ("snmp.version", "snmp.pdu_type")] == wanted
    assert [*tx.buffer("snmp.community"), *tx.buffer("snmp.usm")] == ([] if who is None else [who])
    assert tx.events == events
    if version is not None:
        assert Detector("udp").feed(S, data) == "snmp"
        assert Detector("udp").feed(C, data + b"x") != "snmp"


def test_snmp_rules() -> None:
    rules = f"alert snmp {ANY} (snmp.trap_type:linkup; sid:1;) alert snmp {ANY} (snmp.version:<2; sid:2;)"
    assert Flow(compiled(rules.replace(") alert", ")\nalert")), UDP, port=162).data(UP, TRAP) == "accept 1 2"
    parser = SnmpParser()
    assert [tx.events for tx in play(parser, [(C, TRAP), (C, community(1, 0))])] == [[], ["version_mismatch"]]


# -- IKE ---------------------------------------------------------------------------------------------------------------


def payload(following: int, data: bytes) -> bytes:
    return bytes((following, 0)) + (4 + len(data)).to_bytes(2, "big") + data


def ike(version: int, exchange: int, first: int, payloads: bytes, responder: bytes = bytes(8), flags: int = 0) -> bytes:
    size = (28 + len(payloads)).to_bytes(4, "big")
    return b"\1" * 8 + responder + bytes((first, version << 4, exchange, flags)) + bytes(4) + size + payloads


def transform(following: int, kind: int, identifier: int) -> bytes:
    return payload(following, bytes((kind, 0)) + identifier.to_bytes(2, "big"))


CHOSEN = payload(
    34,
    payload(
        0, bytes((1, 1, 0, 3)) + transform(3, 1, 3) + transform(3, 2, 5) + transform(3, 3, 12) + transform(0, 4, 2)
    ),
)
SECOND = ike(2, 34, 33, CHOSEN + payload(40, bytes(4) + b"key") + payload(0, b"nonce"), b"\2" * 8)


def test_ike() -> None:
    proposal, chosen, key, _, sealed = (corpus("ike")[index] for index in (3, 1, 2, 0, 4))  # by the names of the files
    (tx,) = play(IkeParser(), [(C, proposal)])
    assert list(tx.buffer("ike.init_spi")) == [b"e47a591fd057587f"]
    assert b"4a131c81070358455c5728f20e95452f" in tx.buffer("ike.vendor")
    assert not tx.buffer("ike.chosen_sa_attribute")
    (tx,) = play(IkeParser(), [(S, chosen)])
    assert list(tx.buffer("ike.resp_spi")) == [b"a00b8ef0902bb8ec"]
    assert b"sa_life_duration=86400" in tx.buffer("ike.chosen_sa_attribute")
    (tx,) = play(IkeParser(), [(C, key)])
    assert tx.buffer("ike.key_exchange_payload_length")[0] == b"\0\x80"
    (tx,) = play(IkeParser(), [(C, sealed)])
    assert list(tx.buffer("ike.exchtype")) == [b"\2"]
    assert not tx.events
    (tx,) = play(IkeParser(), [(S, SECOND)])
    assert list(tx.buffer("ike.chosen_sa_attribute")) == [b"alg_enc=3", b"alg_prf=5", b"alg_auth=12", b"alg_dh=2"]
    assert [tx.buffer(f"ike.{name}")[0] for name in ("key_exchange_payload", "nonce_payload")] == [b"key", b"nonce"]
    assert tx.events == ["weak_crypto_enc", "weak_crypto_dh"]


def test_ike_beside_esp_and_broken() -> None:
    parser = IkeParser()
    marked = bytes(4) + SECOND
    assert len(play(parser, [(S, marked), (C, b"\1\2\3\4esp"), (C, b"\xff")])) == 1
    assert [tx.events for tx in play(IkeParser(), [(C, SECOND[:-1]), (C, b"x")])] == [["malformed_data"]] * 2
    assert Detector("udp").feed(S, marked) == "ike"
    assert Detector("udp").feed(S, SECOND) == "ike"
    assert Detector("udp").feed(S, SECOND[:-1]) != "ike"


def test_ike_attributes_are_checked() -> None:
    text = f"alert ike {ANY} (ike.chosen_sa_attribute:alg_x=1; sid:1;)"
    (error,) = parse_rules(text, "t.rules", Variables()).errors
    assert "expected one of alg_enc" in error.message


# -- NFS ---------------------------------------------------------------------------------------------------------------


def word(n: int) -> bytes:
    return n.to_bytes(4, "big")


def opaque(data: bytes) -> bytes:
    return word(len(data)) + data + bytes(-len(data) % 4)


def call(version: int, procedure: int, arguments: bytes = b"", identifier: int = 1, program: int = 100003) -> bytes:
    return b"".join(map(word, (identifier, 0, 2, program, version, procedure, 0, 0, 0, 0))) + arguments


def reply(body: bytes = b"", identifier: int = 1) -> bytes:
    return b"".join(map(word, (identifier, 1, 0, 0, 0, 0))) + body


def record(data: bytes) -> bytes:
    return word(0x80000000 | len(data)) + data


COMPOUND = call(
    4,
    1,
    opaque(b"tag") + word(0) + word(3) + word(22) + opaque(b"handle") + word(38) + bytes(28) + opaque(bytes(9))
    + word(9) + word(1) + word(5),
)  # fmt: skip


def test_nfs() -> None:
    look = call(3, 3, opaque(b"dir") + opaque(b"file.txt"))
    write = call(3, 7, opaque(b"fh") + bytes(16) + opaque(bytes(50)), 2)
    found = reply(word(0) + opaque(b"fh"))
    halves = word(20) + look[:20] + record(look[20:])
    script = [(C, halves), (S, record(found)), (C, record(write) + record(COMPOUND)), (S, record(reply(word(0), 2)))]
    for parser, txs in every_way(NfsParser, script):
        assert not parser.gave_up
        calls = [[(value[3], value[7]) for value in tx.buffer("nfs_procedure")] for tx in txs]
        assert calls == [[(3, 3)], [(3, 7)], [(4, 1), (4, 22), (4, 38), (4, 9)]]
        assert [list(tx.buffer("file.name", C)) for tx in txs] == [[], [b"file.txt"], []]
        assert not txs[1].buffer("file.name", S)
        assert [tx.is_complete(S) for tx in txs] == [True, True, False]
        assert not any(tx.events for tx in txs)


@pytest.mark.parametrize(
    ("condition", "data", "matches"),
    [
        ("nfs_procedure:WRITE;", COMPOUND, True),
        ("nfs_procedure:write; nfs_version:3;", COMPOUND, False),
        ("nfs_procedure:!write;", call(3, 7), False),
        ("nfs_procedure:6-7; nfs.version:2-3;", call(3, 7), True),
        ("nfs_procedure:read;", call(2, 6), True),
        ("nfs_procedure:7;", call(3, 7, program=100005), False),
    ],
)
def test_nfs_rules(condition: str, data: bytes, matches: bool) -> None:
    flow = Flow(compiled(f"alert nfs {ANY} ({condition} sid:1;)"), UDP, port=2049)
    assert flow.data(UP, data) == ("accept 1" if matches else "accept")


def test_nfs_detection() -> None:
    assert Detector("udp").feed(C, COMPOUND) == "nfs"
    assert Detector("udp").feed(C, call(3, 0, program=100005)) != "nfs"
    detector, wire = Detector(), record(COMPOUND)
    assert "nfs" in [detector.feed(C, wire[at : at + 1]) for at in range(len(wire))]


def test_any_bytes() -> None:
    survives(SnmpParser, [(C, TRAP), (S, third(PLAIN))], names("snmp."), 400, 11)
    survives(IkeParser, [(C, SECOND), (S, SECOND), *((C, data) for data in corpus("ike"))], names("ike."), 200, 12)
    script = [(C, record(COMPOUND) + record(call(3, 3, opaque(b"d") + opaque(b"f")))), (S, record(reply()))]
    survives(NfsParser, script, [*names("nfs"), "file.name"], 400, 13)
    survives(lambda: NfsParser(udp=True), [(C, COMPOUND)], names("nfs"), 200, 14)

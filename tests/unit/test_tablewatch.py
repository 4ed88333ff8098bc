"""Whose table a message of nftables is about, whatever bytes come."""

from __future__ import annotations

import random
import struct

import pytest

from nfw.hostnet import HostNet
from nfw.tablewatch import tables
from tests.unit.test_hostnet import FakeRunner


def message(kind: int, *attributes: tuple[int, bytes], subsystem: int = 10) -> bytes:
    body = b"\x01\x00\x00\x00"
    for number, value in attributes:
        size = 4 + len(value)
        body += struct.pack("=HH", size, number) + value + b"\0" * (-size % 4)
    size = 16 + len(body)
    return struct.pack("=IHHII", size, subsystem << 8 | kind, 0, 0, 0) + body + b"\0" * (-size % 4)


DELTABLE, DELRULE, NEWGEN = 2, 8, 15


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", []),
        (message(DELTABLE, (1, b"nfw\0")), [b"nfw"]),
        (message(DELRULE, (3, b"\0" * 8), (1, b"nfw\0")), [b"nfw"]),
        (message(DELTABLE, (1, b"filter\0")) + message(DELTABLE, (0x8001, b"nfw\0")), [b"filter", b"nfw"]),
        (message(NEWGEN, (1, b"\0\0\0\7")), []),
        (message(DELTABLE, (1, b"nfw\0"), subsystem=1), []),
        (message(DELTABLE), []),
        (message(DELTABLE, (1, b"nfw\0"))[:-3], []),
        (b"\x00" * 64, []),
        (struct.pack("=IHHII", 24, 10 << 8 | 2, 0, 0, 0) + b"\0" * 4 + struct.pack("=HH", 0, 1), []),
        (struct.pack("=IHHII", 24, 10 << 8 | 2, 0, 0, 0) + b"\0" * 4 + struct.pack("=HH", 500, 1), []),
    ],
)
def test_tables(data: bytes, names: list[bytes]) -> None:
    assert list(tables(data)) == names


def test_any_bytes() -> None:
    chance = random.Random(1)
    whole = message(DELRULE, (1, b"nfw\0"), (2, b"chain\0"), (3, b"\0" * 8))
    for _ in range(2000):
        data = bytearray(whole * chance.randint(1, 3))
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        list(tables(bytes(data[: chance.randint(0, len(data))])))


def listing(rule: str, packets: int, elements: list[str], handle: int, marks: list[int]) -> list[dict[str, object]]:
    return [
        {"metainfo": {"version": "1"}},
        {"table": {"family": "inet", "name": "nfw", "handle": handle}},
        {"counter": {"name": "dropped", "packets": packets, "bytes": packets, "handle": 3}},
        {"set": {"name": "acknowledged", "timeout": 1, "elem": elements}},
        {"set": {"name": "judged", "elem": marks}},
        {"rule": {"chain": "forward", "expr": [{"goto": {"target": rule}}], "handle": handle}},
    ]


def test_a_fingerprint_is_of_what_was_written() -> None:
    runner = FakeRunner()

    def fingerprint(objects: list[dict[str, object]]) -> str:
        runner.nft_table = lambda table: objects  # type: ignore[method-assign,assignment]
        return HostNet(runner=runner).fingerprint()

    first = fingerprint(listing("unjudged", 1, [], 7, [1, 2]))
    assert fingerprint(listing("unjudged", 9, ["5"], 8, [2, 1])) == first
    assert fingerprint(listing("other", 1, [], 7, [1, 2])) != first
    assert fingerprint(listing("unjudged", 1, [], 7, [1])) != first
    assert fingerprint([]) == ""

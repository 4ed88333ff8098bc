"""NTP: what rules see of a datagram."""

from __future__ import annotations

import pytest

from engines.stateful.app.ntp import NtpParser
from tests.unit.app_feeding import C, S, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_inspector import ANY, DOWN, UDP, UP, Flow, compiled

NAMES = ["ntp.version", "ntp.mode", "ntp.stratum", "ntp.reference_id"]
ASKS, ANSWERS = b"\x23\0" + bytes(46), b"\x1c\2" + bytes(10) + b"LOCL" + bytes(32)


@pytest.mark.parametrize(
    ("data", "values", "events"),
    [
        (ASKS, [b"\4", b"\3", b"\0", bytes(4)], []),
        (ANSWERS, [b"\3", b"\4", b"\2", b"LOCL"], []),
        (ANSWERS + bytes(20), [b"\3", b"\4", b"\2", b"LOCL"], []),
        (b"\x16\2" + bytes(10), [b"\2", b"\6"], []),  # control: a header of its own
        (ASKS[:47], [], ["malformed_data"]),
        (b"", [], ["malformed_data"]),
    ],
)
def test_what_rules_see(data: bytes, values: list[bytes], events: list[str]) -> None:
    parser = NtpParser()
    parser.feed(C, data)
    (tx,) = parser.transactions
    assert [value for name in NAMES for value in tx.buffer(name, C)] == values
    assert [value for name in NAMES for value in tx.buffer(name, S)] == []
    assert tx.events == events
    assert tx.is_complete(C)
    assert tx.is_complete(S)
    assert bool(tx.log_fields()) == (not events)


def test_any_bytes() -> None:
    survives(NtpParser, [(C, data) for data in corpus("ntp")], NAMES, 200, 4)
    assert len(play(NtpParser(), [(C, ASKS), (S, ANSWERS)])) == 2


def test_rules() -> None:
    rules = f"""
        alert ntp {ANY} (ntp.mode:client; ntp.version:>3; sid:1;)
        drop ntp {ANY} (flow:to_client; ntp.stratum:1-9; ntp.reference_id; content:"LOCL"; sid:2;)
        alert ntp {ANY} (ntp.mode:!server; ntp.stratum:2; sid:3;)
    """
    flow = Flow(compiled(rules), UDP, port=123)
    assert [flow.data(UP, ASKS), flow.data(DOWN, ANSWERS)] == ["accept 1", "drop! 2"]

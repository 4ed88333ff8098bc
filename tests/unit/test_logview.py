"""The log as a person reads it: every kind says what matters, nothing the network sent reaches the terminal as is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfw import logview
from nfw.cli import app
from nfw.logview import Tail, clean, describe, wanted

BASE = {
    "timestamp": "2025-03-14T15:30:03.633598+0000",
    "src_ip": "10.0.0.1",
    "src_port": 4000,
    "dest_ip": "2001:db8::1",
    "dest_port": 443,
    "proto": "TCP",
}
WHO = "15:30:03.633  {:<6}  TCP 10.0.0.1:4000 > [2001:db8::1]:443  "

LINES: list[tuple[dict[str, Any], str]] = [
    (
        {
            "event_type": "alert",
            "alert": {"gid": 1, "signature_id": 5, "signature": "bad", "action": "blocked"},
            "verdict": {"action": "drop"},
            "tls": {"sni": "a.test"},
        },
        "[1:5] bad  drop  a.test",
    ),
    (
        {"event_type": "drop", "verdict": {"action": "reject"}, "nfw": {"reason": "rule", "rule": "stateful:5"}},
        "reject: rule  stateful:5",
    ),
    (
        {
            "event_type": "flow",
            "app_proto": "http",
            "flow": {"bytes_toserver": 900, "bytes_toclient": 1_234_567, "age": 3, "reason": "closed"},
        },
        "900 B out, 1.2 MB in  3 s  closed  http",
    ),
    (
        {"event_type": "tls", "tls": {"sni": "a.test"}, "nfw": {"status": "EXPIRED", "detail": "it is old"}},
        "EXPIRED  it is old  a.test",
    ),
    ({"event_type": "tls", "tls": {"sni": "a.test"}, "nfw": {"status": "OK", "reason": "closed"}}, "OK  a.test"),
    (
        {"event_type": "http", "http": {"http_method": "GET", "hostname": "a.test", "url": "/x", "status": 200}},
        "GET a.test/x 200",
    ),
    (
        {
            "event_type": "dns",
            "dns": {
                "queries": [{"rrname": "a.test", "rrtype": "A"}],
                "rcode": "NOERROR",
                "answers": [{"rdata": "192.0.2.1"}, {}],
            },
        },
        "a.test A NOERROR 192.0.2.1",
    ),
]


@pytest.mark.parametrize(("event", "expected"), LINES)
def test_each_kind(event: dict[str, Any], expected: str) -> None:
    line = describe({**BASE, **event})
    assert line == WHO.format(event["event_type"]) + expected
    assert wanted({**BASE, **event}, [event["event_type"]], expected[:4].upper())
    assert not wanted({**BASE, **event}, ["stats"], "")


def test_brief() -> None:
    shown = describe({**BASE, "event_type": "tls", "nfw": {"status": "OK"}}, brief=True)
    assert shown == "15:30:03  tls     TCP 10.0.0.1 > [2001:db8::1]:443  OK"


def test_records_without_a_flow() -> None:
    lost = {"timestamp": BASE["timestamp"], "event_type": "log_dropped", "nfw": {"lines": 7, "sink": "journald"}}
    assert describe(lost) == "15:30:03.633  log_dropped  7 lines lost by journald"
    assert describe({}) == "-  ?     "
    assert describe(lost, colour=True) == "\x1b[31m" + describe(lost) + "\x1b[0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("bücher", "bücher"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_nothing_a_terminal_obeys(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "event_type",
                        "alert",
                        "drop",
                        "flow",
                        "tls",
                        "http",
                        "dns",
                        "nfw",
                        "queries",
                        "answers",
                        "signature",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["alert", "drop", "flow", "tls", "http", "dns", "stats", "log_dropped"]),
)
def test_any_record_can_be_shown(value: object, kind: str) -> None:
    event = logview.parse(json.dumps(value).encode())
    line = describe({**(event or {}), "event_type": kind})
    assert line.isprintable()


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_record(line: bytes) -> None:
    assert logview.parse(line) is None


@pytest.mark.parametrize(("ask", "first"), [(0, None), (1, 9), (3, 7), (10, 0), (50, 0)])
def test_a_tail_begins_near_the_end(tmp_path: Path, ask: int, first: int | None) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{number}\n" for number in range(10)))
    tail = Tail(str(path), ask)
    assert tail.read() == [str(number).encode() for number in range(10 if first is None else first, 10)]
    tail.close()


def test_a_tail_over_many_chunks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{number:0200d}\n" for number in range(3000)))
    tail = Tail(str(path), 1500)
    assert [int(line) for line in tail.read()] == list(range(1500, 3000))
    tail.close()


def test_a_tail_goes_through_rotation_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("1\n")
    tail = Tail(str(path), 5)
    assert tail.read() == [b"1"]
    with path.open("a") as file:
        file.write("2\nhal")
        file.flush()
        assert tail.read() == [b"2"]
        file.write("f\n3\n")
    os.rename(path, tmp_path / "log.1")
    assert tail.read() == [b"half", b"3"]
    assert tail.read() == []
    path.write_text("4\n5\n")
    assert tail.read() == [b"4", b"5"]
    path.write_text("6\n")
    assert tail.read() == [b"6"]
    path.unlink()
    assert tail.read() == []
    tail.close()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "eve.json"
    path.write_text("".join(json.dumps({**BASE, **event}) + "\n" for event, _ in LINES) + "torn\n")
    assert app.call(["logs", str(path), "-t", "http", "-t", "dns", "-n", "100"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out] == ["http", "dns"]
    assert app.call(["logs", str(path), "--json", "--grep", "EXPIRED"]) == 0
    assert json.loads(capsys.readouterr().out)["nfw"]["status"] == "EXPIRED"
    assert app.call(["logs", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err

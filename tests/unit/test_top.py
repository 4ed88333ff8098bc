"""`nfw top`: what is shown, that it fits whatever the terminal, what the keys do, and once the real screen."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pty
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfw.cli import app
from nfw.control import ControlServer, Reply
from nfw.top import Recent, View, _columns, count
from tests.unit.test_logview import BASE
from tests.unit.test_metrics import status

ROOT = Path(__file__).parents[2]


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {**BASE, "event_type": kind, **more}


ALERT = event(
    "alert",
    alert={"gid": 1, "signature_id": 7, "signature": "something bad", "action": "blocked"},
    verdict={"action": "drop"},
)
RECORDS = [
    event("flow", flow={"bytes_toserver": 1000, "bytes_toclient": 2_000_000}),
    event("tls", tls={"sni": "a.test"}, nfw={"status": "OK"}),
    event("http", http={"hostname": "b.test", "url": "/x", "http_method": "GET"}),
    ALERT,
    event("drop", verdict={"action": "drop"}, nfw={"reason": "stream_exception"}),
]


def filled() -> View:
    """Two answers two seconds apart, and a few records."""
    view = View()
    view.answer(status(), "", 100.0)
    later = copy.deepcopy(status())
    packets = later["processes"][1]["packets"]
    packets["received"] += 2000
    packets["received_bytes"] += 3_000_000
    later["processes"][1]["rule_hits"]["1:7"] += 4
    later["processes"][1]["verdicts"]["stateful/drop/rule"] += 6
    for record in RECORDS:
        view.record(record, 101.0)
    view.answer(later, "", 102.0)
    return view


def text(view: View, width: int = 80, height: int = 24) -> list[str]:
    return ["".join(part for part, _ in line).rstrip() for line in view.render(width, height, "12:00:01")]


def test_a_page_of_80_by_24() -> None:
    lines = text(filled())
    assert len(lines) == 24
    assert re.fullmatch(r"nfw 1  egress  generation 3  filtering +12:00:01", lines[0])
    assert lines[1].startswith("1.0k packets/s  1.5 MB/s  3 refused/s  0 alerts/s  12 flows (12 %)  2 TLS")
    assert lines[2] == "health: 6 dropped by the kernel, 1 exceptions, 11 log lines lost"
    page = "\n".join(lines)
    assert re.search(r"2\.0 MB 10\.0\.0\.1 > 2001:db8::1 +1x (a|b)\.test", page)
    assert re.search(r"^ +4 1:7 something bad +6 stateful drop: rule$", page, re.MULTILINE)
    events = lines[lines.index(next(line for line in lines if "events (4)" in line)) + 1 :]
    assert [line.split()[1] for line in events[:4]] == ["drop", "alert", "http", "tls"]
    assert lines[23].startswith("q quit  / filter")


def test_no_answer_is_said() -> None:
    view = filled()
    view.answer(None, "not running: there is no control socket /x", 103.0)
    lines = text(view)
    assert lines[0] == "nfw  not running: there is no control socket /x"
    assert lines[2] == "health: unknown"
    assert any("something bad" in line for line in lines)  # what was known stays


def test_a_worker_that_does_not_answer_is_said() -> None:
    view = View()
    value = status()
    value["processes"][1] = {"name": "nfw packet 0", "pid": 10}
    view.answer(value, "", 1.0)
    assert "nfw packet 0 does not answer" in text(view)[2]


def press(view: View, *keys: str) -> View:
    for key in keys:
        view.key(key)
    return view


def test_the_filter() -> None:
    view = press(filled(), "/", *"BAD", "x", "backspace")
    assert text(view)[-1] == "filter: bad_"
    press(view, "enter")
    lines = text(view)
    assert lines[-1].endswith("[bad]")
    assert any("events (1)" in line for line in lines)
    assert any("1:7 something bad" in line for line in lines)
    assert not any("a.test" in line or "stateful drop" in line for line in lines)
    press(view, "c")
    assert any("events (4)" in line for line in text(view))
    press(view, "/", *"zz", "escape")
    assert view.filter == ""
    press(view, "/", "q", "escape")
    assert not view.quit


def test_a_record_is_chosen_and_opened() -> None:
    view = press(filled(), "down", "enter")
    lines = text(view)
    assert '  "signature": "something bad",' in lines
    assert lines[-1] == "Esc back"
    view.record(event("drop"), 104.0)
    assert '  "signature": "something bad",' in text(view)  # what is open stays open
    press(view, "escape")
    chosen = [line for line in view.render(80, 24, "") if any(style == "chosen" for _, style in line)]
    assert "something bad" in chosen[0][0][0]  # and the cursor on its record
    press(view, *["down"] * 50)
    assert view.chosen == 4
    press(view, *["up"] * 50)
    assert view.chosen == 0
    assert press(view, "q").quit


def test_an_opened_record_is_scrolled() -> None:
    view = filled()
    view.record(event("tls", tls={"sni": "last.test", **{f"field{number}": number for number in range(30)}}), 101.0)
    lines = text(press(view, "enter"))
    assert re.fullmatch(r"Esc back  up/down scroll, \d+ lines below", lines[-1])
    assert '  "field29": 29' not in lines
    lines = text(press(view, *["down"] * 100))
    assert '  "field29": 29' in lines
    assert lines[-1] == "Esc back  up/down scroll, 0 lines below"
    lines = text(press(view, *["up"] * 100))
    assert '  "sni": "last.test",' in lines


def test_tables_are_as_tall_as_what_is_in_them_and_cut_texts_are_marked() -> None:
    view = filled()
    few = text(view)
    assert "rules hit" in few[few.index(next(line for line in few if "talkers" in line)) + 3]
    for number in range(30):
        view.record(event("tls", tls={"sni": f"{number:02}-" + "long" * 20}, nfw={"status": "OK"}), 101.0)
    lines = text(view)
    row = next(line for line in lines if "02-longlong" in line and "1x" in line)
    assert row.endswith("lo~")
    assert len(row) == 80
    assert sum("1x " in line for line in lines) == 5  # with the title three tenths of what there is


def test_an_opened_record_shows_its_flow() -> None:
    view = filled()
    for kind in ("alert", "tls", "drop"):
        view.record({**ALERT, "event_type": kind, "flow_id": 5}, 101.0)
    lines = text(press(view, "enter"))
    assert "this flow's records (3)" in lines[0]
    assert [line.split()[1] for line in lines[1:4]] == ["alert", "tls", "drop"]
    assert ' "flow_id": 5' in "\n".join(lines)


def test_pause_stops_the_page() -> None:
    view = press(filled(), "p")
    before = text(view)
    view.record(event("drop"), 105.0)
    view.answer(status(generation=9), "", 106.0)
    assert text(view) == before
    assert "PAUSED" in before[0]


def test_a_minute_is_remembered() -> None:
    recent = Recent()
    recent.add(0.0, "a", 5)
    recent.add(30.0, "b", 1)
    recent.add(50.0, "a", 2)
    recent.expire(59.0)
    assert recent.most() == [("a", 7), ("b", 1)]
    recent.expire(61.0)
    assert recent.most() == [("a", 2), ("b", 1)]
    for number in range(30_000):
        recent.add(61.0, f"{number}", 1)
    assert len(recent.most()) <= 20_000


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (999, "999"), (1000, "1.0k"), (12_345, "12.3k"), (999_999, "1000k"), (5e9, "5.0G")]
)
def test_counts_are_short(value: float, shown: str) -> None:
    assert count(value) == shown


@given(
    st.integers(1, 200),
    st.integers(1, 60),
    st.lists(st.text(max_size=40), max_size=8),
    st.lists(
        st.sampled_from(["up", "down", "enter", "escape", "backspace", "/", "p", "c", "x", "é", "世"]), max_size=8
    ),
)
def test_it_always_fits(width: int, height: int, names: list[str], keys: list[str]) -> None:
    view = filled()
    for name in names:
        view.record(event("tls", tls={"sni": name}), 101.0)
        view.record({**ALERT, "alert": {"signature": name, "signature_id": name}}, 101.0)
    press(view, *keys)
    lines = view.render(width, height, "12:00:01")
    assert len(lines) <= height
    for line in lines:
        joined = "".join(part for part, _ in line)
        assert _columns(joined) <= width
        assert joined.isprintable()


# -- the screen --------------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """Something that answers `status`."""
    path = str(tmp_path / "control.sock")
    log = tmp_path / "eve.json"
    log.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    server = ControlServer(path, lambda _: Reply(True, status(log=str(log))))
    stop = threading.Event()

    def serve() -> None:
        with selectors.DefaultSelector() as selector:
            server.attach(selector)
            while not stop.is_set():
                for key, _ in selector.select(0.05):
                    key.data()
            server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield path
    stop.set()
    thread.join()


def test_one_page(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.call(["top", "--control", daemon, "--once", "--interval", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "generation 3  filtering" in out
    assert "something bad" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_without_a_terminal(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.call(["top", "--control", daemon]) == 1
    assert capsys.readouterr().err == "nfw: top needs a terminal; --once prints one page\n"


def test_a_real_screen(daemon: str) -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "nfw", "top", "--control", daemon, "--interval", "0.5"],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80"},
        cwd=ROOT,
    )
    os.close(slave)
    seen = b""

    def until(what: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while what not in seen:
            assert time.monotonic() < deadline, seen
            with selectors.DefaultSelector() as selector:
                selector.register(master, selectors.EVENT_READ)
                if selector.select(0.2):
                    seen += os.read(master, 65536)

    try:
        until(b"something bad")
        os.write(master, b"/bad\r")
        until(b"[bad]")
        os.write(master, b"\r")
        until(b"Esc back")
        os.write(master, b"q")
        time.sleep(0.3)
        os.write(master, b"q")
        deadline = time.monotonic() + 30
        while child.poll() is None and time.monotonic() < deadline:
            with selectors.DefaultSelector() as selector:
                selector.register(master, selectors.EVENT_READ)
                if selector.select(0.1):
                    with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
                        os.read(master, 65536)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        _, err = child.communicate()
        os.close(master)
    assert (child.returncode, err) == (0, b"")

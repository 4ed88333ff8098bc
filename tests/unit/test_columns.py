"""Tables are as wide as the terminal, and whole where there is none."""

from __future__ import annotations

import os
import pty
import struct
import sys
import termios
from fcntl import ioctl

import pytest

from nfw.cli import columns

HEAD = ("RULE", "HITS", "TEXT")
ROWS = [("1:7", "5", "a rule with a long text behind it, longer than forty columns"), ("2:8", "12345", "short")]


def test_without_a_terminal_nothing_is_cut() -> None:
    assert columns.table(HEAD, ROWS, numbers=frozenset({"HITS"}), width=0) == [
        "RULE   HITS  TEXT",
        f"1:7       5  {ROWS[0][2]}",
        "2:8   12345  short",
    ]


def test_the_last_field_is_cut() -> None:
    lines = columns.table(HEAD, ROWS, width=40)
    assert max(map(len, lines)) == 40
    assert lines[1].endswith("…")
    assert lines[2] == "2:8   12345  short"


@pytest.mark.parametrize("width", [10, 20, 24])
def test_where_a_row_cannot_fit_each_field_has_a_line(width: int) -> None:
    lines = columns.table(HEAD, ROWS, width=width)
    assert lines[0] == "RULE  1:7"
    assert "".join(line[6:] for line in lines[2 : lines.index("")]) == ROWS[0][2]
    assert max(map(len, lines)) <= max(width, 6 + columns.LEAST)


def test_short_tables_stay_tables() -> None:
    assert columns.table(("A", "B"), [("1", "2")], width=10) == ["A  B", "1  2"]
    assert columns.table(("A", "B"), [], width=40) == ["A  B"]


TEXT = "ok       nftables: no other table takes packets away from nfw"


@pytest.mark.parametrize(
    ("line", "hang", "width", "lines"),
    [
        (TEXT, None, 0, [TEXT]),
        (TEXT, None, 80, [TEXT]),
        (TEXT, 11, 40, [TEXT[:39], "           packets away from nfw"]),
        ("  a: one two three", None, 12, ["  a: one two", "      three"]),
        ("a: /etc/nfw/policy.yaml is wrong", 2, 12, ["a:", "  /etc/nfw/policy.yaml", "  is wrong"]),
        ("one two three", 30, 6, ["one", "   two", "   three"]),  # at most half of it is indented
        ("", None, 10, [""]),
    ],
)
def test_lines_are_broken_between_words(line: str, hang: int | None, width: int, lines: list[str]) -> None:
    assert columns.wrapped(line, hang, width=width) == lines


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        assert columns.terminal_width() == 40
    os.close(controller)
    with open(os.devnull, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert columns.terminal_width() == 0

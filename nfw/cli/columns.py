"""Tables and lines for a person, as wide as the terminal: a line a row where they fit, else a field a line.

What goes to a pipe or a file is never shortened nor broken.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence

LEAST = 16  # columns the last field needs, or a row goes over several lines


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 0 where it is none."""
    if not sys.stdout.isatty():
        return 0
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return 0


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: frozenset[str] = frozenset(),
    width: int | None = None,
) -> list[str]:
    """Lines with ``head`` above; fields of ``numbers`` are aligned to the right. ``width`` 0: without bound, None: the
    terminal's. Where only the last field is too long it is cut."""
    limit = terminal_width() if width is None else width
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    room = limit - sum(widths[:-1]) - 2 * (len(head) - 1)
    if limit and room < min(widths[-1], LEAST):
        return _blocks(head, rows, limit)
    lines = []
    for row in cells:
        last = row[-1] if not limit or len(row[-1]) <= room else row[-1][: room - 1] + "…"
        fields = [
            cell.rjust(size) if name in numbers else cell.ljust(size)
            for name, cell, size in zip(head, (*row[:-1], last), (*widths[:-1], 0), strict=True)
        ]
        lines.append("  ".join(fields).rstrip())
    return lines


def wrapped(line: str, hang: int | None = None, *, width: int | None = None) -> list[str]:
    """``line`` broken between words. ``hang``: how far what follows is indented, four more than the line when None;
    ``width`` as :func:`table` has it. A word that is too long stays whole: names and paths are for copying."""
    limit = terminal_width() if width is None else width
    if not limit or len(line) <= limit:
        return [line]
    indent = len(line) - len(line.lstrip()) + 4 if hang is None else hang
    following = " " * min(indent, limit // 2)
    return textwrap.wrap(line, limit, subsequent_indent=following, break_long_words=False, break_on_hyphens=False)


def _blocks(head: Sequence[str], rows: Sequence[Sequence[str]], limit: int) -> list[str]:
    size = max(map(len, head))
    lines: list[str] = []
    for row in rows:
        if lines:
            lines.append("")
        for name, cell in zip(head, row, strict=True):
            room = max(LEAST, limit - size - 2)
            parts = [cell[at : at + room] for at in range(0, len(cell), room)] or ["-"]
            lines += [f"{name if not at else '':<{size}}  {part}" for at, part in enumerate(parts)]
    return lines

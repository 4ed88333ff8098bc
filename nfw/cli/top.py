"""``nfw top``: a screen around :class:`nfw.top.View`."""

from __future__ import annotations

import contextlib
import curses
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure
from nfw.cli.options import Seconds, control_option
from nfw.control import ControlClient, ControlError

if TYPE_CHECKING:
    from nfw.logview import Tail
    from nfw.top import Line, View

KEY_SECONDS = 0.1  # how late a record may be shown
_KEYS = {
    curses.KEY_UP: "up", curses.KEY_DOWN: "down", curses.KEY_ENTER: "enter", 10: "enter", 13: "enter",
    27: "escape", curses.KEY_BACKSPACE: "backspace", 127: "backspace", 8: "backspace",
}  # fmt: skip


@click.command()
@control_option
@click.option("--log", "log_file", metavar="FILE", help="Event log.  [default: the running firewall's]")
@click.option(
    "--interval",
    type=Seconds(0.5, 60),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the firewall is asked.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Print one page after one interval, without a terminal's tricks, and end: 1 when no firewall answers.",
)
def top(control: str, log_file: str | None, interval: float, once: bool) -> int:
    """Watch the running firewall live.

    Rates, talkers, names, rules hit, refusals by reason and the newest events. Talkers and names come from the event
    log's flow, tls and http records. Keys: / filter, up and down choose an event, Enter opens it, p pauses, q quits.
    """
    from nfw.cli.logs import current_log
    from nfw.top import View

    view = View()
    source = Source(control, log_file or current_log(control), interval)
    if once:
        return _page(view, source, interval)
    if not sys.stdout.isatty() or not sys.stdin.isatty():
        raise Failure("nfw: top needs a terminal; --once prints one page")
    terminal = f"nfw: the terminal {os.environ.get('TERM', '')!r}"
    try:
        curses.setupterm()
    except curses.error as error:
        raise Failure(f"{terminal}: {error}; --once prints one page") from None
    if not curses.tigetstr("cup"):
        raise Failure(f"{terminal} cannot move its cursor; --once prints one page")
    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(_screen, view, source)
    return 0


class Source:
    """Feeds a view from the daemon and the log. What is missing is said in the view, and tried again."""

    def __init__(self, control: str, log_file: str, interval: float) -> None:
        self._client = ControlClient(control, 2.0)
        self._log_file = log_file
        self._interval = interval
        self._tail: Tail | None = None
        self._due = 0.0
        self.answered = False  # the firewall, when it was asked last

    def feed(self, view: View, now: float) -> bool:
        """True when there was anything new."""
        new = False
        for event in self._records():
            view.record(event, now)
            new = True
        if now >= self._due:
            self._due = now + self._interval
            self._ask(view, now)
            new = True
        return new

    def _ask(self, view: View, now: float) -> None:
        self.answered = False
        try:
            reply = self._client.request("status")
        except ControlError as error:
            view.answer(None, str(error), now)
            return
        if reply.ok and isinstance(reply.data, dict):
            self.answered = True
            view.answer(reply.data, "", now)
        else:
            view.answer(None, "; ".join(reply.errors) or "an answer that cannot be read", now)

    def _records(self) -> list[dict[str, Any]]:
        from nfw import logview

        try:
            if self._tail is None:
                self._tail = logview.Tail(self._log_file, 50)
            return [event for line in self._tail.read() if (event := logview.parse(line)) is not None]
        except OSError:
            return []  # no log yet, or not for us; the rest can be shown without


def _page(view: View, source: Source, interval: float) -> int:
    source.feed(view, time.monotonic())
    time.sleep(interval)
    source.feed(view, time.monotonic())
    for line in view.render(80, 24, time.strftime("%H:%M:%S")):
        click.echo("".join(text for text, _ in line).rstrip())
    return 0 if source.answered else 1


def _screen(screen: Any, view: View, source: Source) -> None:
    styles = _styles()
    curses.set_escdelay(25)  # milliseconds; Escape alone is a key here
    with contextlib.suppress(curses.error):
        curses.curs_set(0)
    screen.timeout(int(KEY_SECONDS * 1000))
    drawn = ""
    while not view.quit:
        new = source.feed(view, time.monotonic())
        clock = time.strftime("%H:%M:%S")
        if new or clock != drawn:
            drawn = clock
            _draw(screen, view, clock, styles)
        key = _key(screen)
        if key:
            view.key(key)
            _draw(screen, view, clock, styles)


def _key(screen: Any) -> str:
    try:
        pressed = screen.get_wch()
    except curses.error:  # none in time
        return ""
    code = ord(pressed) if isinstance(pressed, str) and len(pressed) == 1 else pressed
    return _KEYS.get(code) or (pressed if isinstance(pressed, str) else "")


def _draw(screen: Any, view: View, clock: str, styles: dict[str, int]) -> None:
    height, width = screen.getmaxyx()
    screen.erase()
    for row, line in enumerate(view.render(width, height, clock)):
        _write(screen, row, line, styles)
    screen.refresh()


def _write(screen: Any, row: int, line: Line, styles: dict[str, int]) -> None:
    with contextlib.suppress(curses.error):  # the last cell of the screen cannot be written, and it may have shrunk
        screen.move(row, 0)
        for text, style in line:
            screen.addstr(text, styles.get(style, 0))


def _styles() -> dict[str, int]:
    styles = {"bold": curses.A_BOLD, "dim": curses.A_DIM, "chosen": curses.A_REVERSE, "bad": curses.A_BOLD}
    if curses.has_colors():
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_RED, -1)
        curses.init_pair(2, curses.COLOR_GREEN, -1)
        styles |= {"bad": curses.color_pair(1), "good": curses.color_pair(2)}
    return styles

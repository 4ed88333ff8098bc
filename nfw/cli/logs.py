"""``nfw logs``."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator

import click

from nfw.cli.app import Failure, colourful, emit, tell
from nfw.cli.options import control_option, json_option_as, named
from nfw.control import ControlClient, ControlError
from nfw.settings import DEFAULT_LOG

POLL_SECONDS = 0.25
TYPES = ("alert", "drop", "flow", "tls", "http", "dns", "stats", "netflow", "log_dropped")


@click.command()
@click.argument("file", required=False, callback=named)
@control_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, through rotation.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 1_000_000),
    default=20,
    show_default=True,
    metavar="N",
    help="How many of the last records to begin with.",
)
@click.option("-t", "--type", "kinds", multiple=True, metavar="TYPE", help="Only alert, drop, ...; may be repeated.")
@click.option("--grep", "text", default="", metavar="TEXT", help="Only lines with this text, whatever the case.")
@json_option_as("The records as they are.")
@click.option("--colour/--no-colour", default=None, help="Default: on a terminal, unless NO_COLOR is set.")
def logs(
    file: str | None,
    control: str,
    follow: bool,
    lines: int,
    kinds: tuple[str, ...],
    text: str,
    as_json: bool,
    colour: bool | None,
) -> None:
    """Show the event log, one line for each record.

    FILE is the log of the running firewall unless it is named. Filters apply to the last N records too.
    """
    from nfw import logview
    from nfw.policy.errors import suggest

    for kind in kinds:
        if kind not in TYPES:  # a log of elsewhere may have others, so it is no error
            tell(f'nfw: nfw writes no records of type "{kind}"; {suggest(kind, TYPES, nothing="known: {}")}')
    path = file or current_log(control)
    try:
        tail = logview.Tail(path, lines)
    except OSError as error:
        raise Failure(*_unreadable(path, error)) from None
    painted = colourful() if colour is None else colour
    read = records = 0
    while True:
        new = tail.read()
        for line in new:
            event = logview.parse(line)
            read, records = read + 1, records + (event is not None)
            if event is not None and logview.wanted(event, kinds, text):
                emit(line.decode("utf-8", "replace") if as_json else logview.describe(event, colour=painted))
        if not new and not follow:
            if read and not records:
                raise Failure(f"nfw: {path}: no line of it is a record; expected EVE, a JSON object each line")
            return
        sys.stdout.flush()
        if not new:
            time.sleep(POLL_SECONDS)


def current_log(control: str) -> str:
    """Where the running firewall logs to; the default, which is said, when none runs, or when it logs to no file."""
    try:
        reply = ControlClient(control, 3.0).request("status")
    except ControlError as error:
        tell(f"nfw: {error}; this is {DEFAULT_LOG}")
        return DEFAULT_LOG
    data = reply.data if reply.ok and isinstance(reply.data, dict) else {}
    return str(data.get("log") or DEFAULT_LOG)


def _unreadable(path: str, error: OSError) -> Iterator[str]:
    reason = "is not a regular file" if error.errno == errno.ESPIPE else error.strerror
    yield f"nfw: {path}: {reason}"
    if isinstance(error, PermissionError):
        yield "nfw: run the command as root (sudo)"

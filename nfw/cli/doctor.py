"""``nfw doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import colourful, emit, emit_json
from nfw.cli.columns import wrapped
from nfw.cli.options import control_option, json_option
from nfw.control import ControlClient, ControlError, DeniedError, NotRunningError

if TYPE_CHECKING:
    from nfw.doctor import Finding

DEFAULT_CA = "/etc/nfw/ca.pem"
_COLOURS = {"ok": "green", "note": None, "warning": "yellow", "error": "red"}


@click.command()
@control_option
@click.option(
    "--ca",
    metavar="FILE",
    help=f"Certificate of the inspection CA, to see whether this machine trusts it.  [default: {DEFAULT_CA} if there]",
)
@json_option
def doctor(control: str, ca: str | None, as_json: bool) -> int:
    """Check this machine, and say how to mend what is wrong.

    On a router: kernel features, sysctls, other nftables tables, routes, offloads, clock, the running firewall. On a
    client: whether it trusts the inspection CA. Nothing is changed. Exit code 1 when there is an error.
    """
    from nfw import doctor as examination

    status: dict[str, Any] | None = None
    try:
        reply = ControlClient(control, 5.0).request("status")
        status = {"unasked": "; ".join(reply.errors) or "it gives an answer that cannot be read"}
        if reply.ok and isinstance(reply.data, dict):
            status = reply.data
    except NotRunningError:
        pass
    except ControlError as error:
        status = {"unasked": str(error), "denied": isinstance(error, DeniedError)}
    if ca is None and Path(DEFAULT_CA).exists():
        ca = DEFAULT_CA
    findings = examination.examine(examination.gather(ca, status))
    if as_json:
        emit_json([{"level": f.level, "topic": f.topic, "text": f.text, "mend": f.mend} for f in findings])
    else:
        for finding in findings:
            for line in _lines(finding, colourful()):
                emit(line)
    return int(examination.failed(findings))


def _lines(finding: Finding, colour: bool) -> Iterator[str]:
    word = f"{finding.level:<8}"
    first, *more = wrapped(f"{word} {finding.topic}: {finding.text}", len(word) + 3)
    yield click.style(word, fg=_COLOURS[finding.level]) + first[len(word) :] if colour else first
    yield from more
    if finding.mend:
        yield from wrapped(f"{'':{len(word)}}   mend: {finding.mend}", len(word) + 5)

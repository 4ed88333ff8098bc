"""``nfw doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from nfw.cli.app import colourful, emit, emit_json
from nfw.cli.options import control_option, json_option
from nfw.control import ControlClient, ControlError

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

    status = None
    try:
        reply = ControlClient(control, 5.0).request("status")
        status = reply.data if reply.ok and isinstance(reply.data, dict) else {"state": "does not answer"}
    except ControlError:
        pass
    if ca is None and Path(DEFAULT_CA).exists():
        ca = DEFAULT_CA
    findings = examination.examine(examination.gather(ca, status))
    if as_json:
        emit_json([{"level": f.level, "topic": f.topic, "text": f.text, "mend": f.mend} for f in findings])
    else:
        for finding in findings:
            word = f"{finding.level:<8}"
            shown = click.style(word, fg=_COLOURS[finding.level]) if colourful() else word
            emit(f"{shown} {finding.topic}: {finding.text}")
            if finding.mend:
                emit(f"{'':<8}   mend: {finding.mend}")
    return int(examination.failed(findings))

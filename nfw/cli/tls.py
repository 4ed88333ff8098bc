"""``nfw tls suggestions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json
from nfw.cli.options import control_option, json_option, timeout_option
from nfw.control import ControlClient


@click.group(cls=NearestGroup)
def tls() -> None:
    """Show which names TLS inspection does not suit."""


@tls.command()
@control_option
@timeout_option(10.0)
@json_option
def suggestions(control: str, timeout: float, as_json: bool) -> None:
    """Show names whose clients refused nfw's certificate, and how often.

    They pin a certificate, or were not told of the CA. Put those you trust into `tls.bypass`; nothing is exempted by
    itself. Counted since the policy was applied.
    """
    reply = ControlClient(control, timeout).request("status")
    if not reply.ok:
        raise Failure(*(f"nfw: {line}" for line in reply.errors))
    found = counted(reply.data)
    if as_json:
        emit_json({"suggestions": found})
        return
    for name, times in found.items():
        emit(f"{times:>7}  {name}")
    if not found:
        emit("no client has refused a certificate")


def counted(status: Any) -> dict[str, int]:
    """Refusals by name, most first, of all TLS workers in a status."""
    total: dict[str, int] = {}
    processes = status.get("processes") if isinstance(status, Mapping) else None
    for process in processes or ():
        for name, times in (process.get("bypass_suggestions") or {}).items():
            total[name] = total.get(name, 0) + times
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

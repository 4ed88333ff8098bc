"""``nfw run``, ``nfw status`` and ``nfw cleanup``."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from nfw import process
from nfw.cli.app import Failure, emit, emit_json, tell
from nfw.cli.columns import wrapped
from nfw.cli.options import control_option, json_option, named, policy_options, timeout_option
from nfw.control import ControlClient
from nfw.settings import DEFAULT_LOG, DEFAULT_QUEUE_BASE, DEFAULT_STATE, QUEUE_SPAN

DEFAULT_MARK_MASK = 0xFFF00000
MIN_MASK_BITS = 4  # three for the disposition, and generations need at least one


def parse_mark_mask(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Hexadecimal mask of adjacent bits within the 32 of a packet mark."""
    try:
        mask = int(value, 16)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a hexadecimal number such as 0xfff00000", ctx, param) from None
    if not 0 < mask <= 0xFFFFFFFF:
        raise click.BadParameter(f"{value} is not within the 32 bits of a packet mark", ctx, param)
    field = mask >> ((mask & -mask).bit_length() - 1)
    if field & (field + 1):
        raise click.BadParameter(f"{value} has gaps; the bits must be adjacent, as in 0xfff00000", ctx, param)
    if field.bit_count() < MIN_MASK_BITS:
        raise click.BadParameter(f"{value} is too narrow; at least {MIN_MASK_BITS} bits are needed", ctx, param)
    return mask


def parse_metrics(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Address of the metrics endpoint, see :func:`nfw.exporter.parse_address`."""
    from nfw.exporter import parse_address

    try:
        return None if value is None else parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def mark_mask_option(function: Any) -> Any:
    return click.option(
        "--mark-mask",
        callback=parse_mark_mask,
        default=f"{DEFAULT_MARK_MASK:#x}",
        show_default=True,
        metavar="HEX",
        help="Bits of the packet mark that are nfw's; others are left alone.",
    )(function)


@click.command()
@click.option(
    "--policy",
    "policy_files",
    required=True,
    multiple=True,
    metavar="FILE",
    callback=named,
    help="Policy to start with; AWS documents may be several, or folders.",
)
@policy_options
@control_option
@mark_mask_option
@click.option(
    "--queue-base",
    type=click.IntRange(0, 65536 - 4 * QUEUE_SPAN),
    default=DEFAULT_QUEUE_BASE,
    show_default=True,
    metavar="N",
    help=f"First netfilter queue; {4 * QUEUE_SPAN} numbers from it are nfw's.",
)
@click.option("--log", "log_file", metavar="FILE", help=f"Event log.  [default: {DEFAULT_LOG}]")
@click.option(
    "--metrics",
    callback=parse_metrics,
    metavar="ADDRESS",
    help="Serve metrics to Prometheus on HOST:PORT (:9469 is loopback) or on a Unix socket.  [default: off]",
)
@click.option(
    "--state",
    envvar=["NFW_STATE", "STATE_DIRECTORY"],
    metavar="FOLDER",
    show_envvar=True,
    help="Keep applied policies there, for going back, and counts of rules; off: nowhere.  [default: /var/lib/nfw]",
)
@click.option(
    "--on-exit",
    type=click.Choice(["closed", "cleanup"]),
    default="closed",
    show_default=True,
    help="What stopping leaves behind: traffic blocked, or the kernel as it was.",
)
def run(
    policy_files: tuple[str, ...],
    map_file: str | None,
    name: str,
    control: str,
    mark_mask: int,
    queue_base: int,
    log_file: str | None,
    metrics: Any,
    state: str | None,
    on_exit: str,
) -> int:
    """Run the firewall in the foreground until SIGTERM or Ctrl-C."""
    if not process.may(process.CAP_NET_ADMIN, process.CAP_NET_RAW):
        raise Failure("nfw: permission denied: `nfw run` needs root, or CAP_NET_ADMIN and CAP_NET_RAW")
    for policy_file in policy_files:
        if not os.path.exists(policy_file):
            raise Failure(f"{policy_file}: policy file does not exist")
    from nfw import supervisor
    from nfw.hostnet import HostNetError
    from nfw.settings import PolicySource

    first, *more = (os.path.abspath(file) for file in policy_files)
    options = supervisor.Options(
        policy=PolicySource(first, tuple(more), os.path.abspath(map_file) if map_file else "", name),
        control=os.path.abspath(control),
        mark_mask=mark_mask,
        queue_base=queue_base,
        log=log_file,
        metrics=metrics,
        state=_folder(state),
        on_exit=on_exit,
    )
    try:
        return supervisor.run(options)
    except HostNetError as error:
        raise Failure(*(f"nfw: {line}" for line in str(error).splitlines())) from error


def _folder(chosen: str | None) -> str:
    """Where state is kept; "" for nowhere."""
    if chosen is None:
        return DEFAULT_STATE if os.geteuid() == 0 else ""
    first = chosen.partition(":")[0]  # systemd: StateDirectory= may name several
    return os.path.abspath(first) if first not in ("", "off") else ""


@click.command()
@control_option
@timeout_option(10.0)
@json_option
def status(control: str, timeout: float, as_json: bool) -> None:
    """Show what the running firewall does. Exit code 1 when none is running."""
    reply = ControlClient(control, timeout).request("status")
    if not reply.ok:
        raise Failure(*(f"nfw: {line}" for line in reply.errors))
    if as_json:
        emit_json(reply.data)
    else:
        for line in format_status(reply.data, time.time()):
            for part in wrapped(line):
                emit(part)


@click.command()
@mark_mask_option
@control_option
@click.option(
    "--if-fail-open",
    "policy_file",
    metavar="FILE",
    help="Only if the policy in FILE says fail_open: true; whatever else is the case, traffic stays as it is.",
)
def cleanup(mark_mask: int, control: str, policy_file: str | None) -> None:
    """Remove every rule, route and mark nfw has set in the kernel.

    Needs no saved state and does no harm where nothing was set. While nfw runs, stop it first.
    """
    if not process.may(process.CAP_NET_ADMIN):
        raise Failure("nfw: permission denied: `nfw cleanup` needs root, or CAP_NET_ADMIN")
    if policy_file is not None and not _fails_open(policy_file):
        tell(f"nfw: {policy_file} does not say fail_open: traffic stays blocked (`nfw cleanup` opens it)")
        return
    from nfw.hostnet import HostNet, HostNetError
    from nfw.marks import MarkLayout

    _warn_if_running(control)
    try:
        HostNet(MarkLayout(mark_mask)).cleanup()
    except HostNetError as error:
        raise Failure(*(f"nfw: {line}" for line in str(error).splitlines())) from error
    if policy_file is not None:
        tell(f"nfw: {policy_file} says fail_open: TRAFFIC PASSES UNFILTERED until nfw runs again")


def _warn_if_running(control: str) -> None:
    from nfw.control import ControlError

    try:
        answer = ControlClient(control, 2.0).request("ping").data
    except ControlError:
        return
    tell(f"nfw: WARNING: nfw is running (pid {answer.get('pid', '?')}) and will put its table back; stop it first")


def _fails_open(policy_file: str) -> bool:
    """A policy that does not load has not said so."""
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy

    try:
        return load_policy(policy_file).fail_open
    except PolicyErrors as errors:
        for error in errors:
            tell(str(error))
        return False


def format_status(data: Any, now: float) -> list[str]:
    """The daemon's status as lines for a person; what is not known to this program is shown as it came."""
    if not isinstance(data, dict):
        return [str(data)]
    state = data.get("state", "?")
    if state == "closed":
        state = "closed: no policy filters yet, and nothing new is forwarded"
    if data.get("mode") == "monitor":
        state = f"{state} in MODE MONITOR: NOTHING IS BLOCKED, what would be is recorded"
    lines = [f"nfw {data.get('version', '?')}, pid {data.get('pid', '?')}: {state}"]
    waiting = data.get("waiting")
    if isinstance(waiting, dict):
        lines.append(
            f"  NOT CONFIRMED: in {waiting.get('seconds_left', '?')} s policy {waiting.get('back_to_name', '?')!r}"
            f" (entry {waiting.get('back_to', '?')}) comes back unless `nfw policy confirm`"
        )
        if waiting.get("overdue"):
            lines.append(f"  CANNOT GO BACK: {waiting['overdue']}; tried again")
    for key, value in data.items():
        if key in ("version", "pid", "state", "processes", "waiting"):
            continue
        if key == "ip_sets" and isinstance(value, list):
            lines += [_ip_set(one) for one in value if isinstance(one, dict)]
            continue
        if key == "since" and isinstance(value, (int, float)):
            value = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value))} ({_duration(now - value)})"
        lines += _item(key, value, 1)
    for one in data.get("processes") or ():
        if isinstance(one, dict):
            lines.append(f"{one.get('name', '?')}, pid {one.get('pid', '?')}")
            for key, value in one.items():
                if key not in ("name", "pid"):
                    lines += _item(key, value, 1)
    return lines


def _ip_set(one: dict[str, Any]) -> str:
    line = f"  IP set {one.get('file', '?')}: {one.get('entries', '?')} entries"
    if isinstance(one.get("refreshed"), (int, float)) and one["refreshed"]:
        line += f", read again {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one['refreshed']))}"
    return f"{line}; NOT READ ANEW: {one['problem']}" if one.get("problem") else line


def _item(key: str, value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    if isinstance(value, dict):
        if not value:
            return []
        return [f"{indent}{key}:"] + [
            line for name, item in value.items() for line in _item(str(name), item, depth + 1)
        ]
    if isinstance(value, list):
        return [f"{indent}{key}: {', '.join(str(item) for item in value)}"] if value else []
    return [f"{indent}{key}: {value}"] if value != "" else []


def _duration(seconds: float) -> str:
    left = max(0, int(seconds))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"

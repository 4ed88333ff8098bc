"""``nfw flows``: list, capture, flush."""

from __future__ import annotations

import contextlib
import heapq
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli import columns
from nfw.cli.app import Failure, NearestGroup, emit, emit_json, tell
from nfw.cli.options import Decorated, Seconds, control_option, json_option, timeout_option
from nfw.control import ControlClient

if TYPE_CHECKING:
    from nfw.flows.client import FlowClient, Listed
    from nfw.flows.filter import FlowFilter
    from nfw.flows.record import FlowRecord

FLUSH_MOST = 1_000_000
_NICE = 10  # reading the kernel's list takes seconds of a processor, which packets may want
_SORTS: dict[str, Callable[[FlowRecord], Any]] = {
    "bytes": lambda record: sum(record.octets),
    "packets": lambda record: sum(record.packets),
    "age": lambda record: record.age or 0.0,
    "idle": lambda record: record.idle or 0.0,
    "source": lambda record: (len(record.client), record.client, record.client_port),
    "destination": lambda record: (len(record.server), record.server, record.server_port),
}
_FIELDS = {
    "source": "sources",
    "destination": "destinations",
    "source_port": "source_ports",
    "destination_port": "destination_ports",
    "protocol": "protocols",
    "app": "apps",
    "sni": "names",
    "verdict": "verdicts",
}


def filter_options(function: Decorated) -> Decorated:
    """The flows that are meant: options of one name are ORed, of different names ANDed."""
    for option in reversed(
        (
            click.option("--source", multiple=True, metavar="ADDRESS[/LENGTH]", help="Of the client."),
            click.option("--destination", multiple=True, metavar="ADDRESS[/LENGTH]", help="Of the server."),
            click.option("--source-port", multiple=True, metavar="PORT[-PORT]"),
            click.option("--destination-port", multiple=True, metavar="PORT[-PORT]"),
            click.option("--protocol", multiple=True, metavar="NAME|NUMBER", help="tcp, udp, icmp ..."),
            click.option("--min-age", type=Seconds(0, 1e9), default=0.0, metavar="SECONDS", help="Open for as long."),
            click.option("--app", multiple=True, metavar="NAME", help="What the flow speaks: http, tls, dns ..."),
            click.option("--sni", multiple=True, metavar="NAME", help="Server's name; * is any text, *.example.com."),
            click.option("--verdict", multiple=True, metavar="NAME", help="inspect (undecided), pass, drop, reject."),
            click.option("--tls/--no-tls", default=None, help="Decrypted here, or not."),
        )
    ):
        function = option(function)
    return function


class ListedGroup(NearestGroup):
    """``nfw flows --app tls`` is ``nfw flows list --app tls``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ListedGroup)
def flows() -> None:
    """List, capture or flush the flows of the running firewall.

    Without a subcommand: list. Filters of one name are ORed, of different names ANDed.
    """


@flows.command(name="list")
@filter_options
@click.option("--sort", type=click.Choice(list(_SORTS)), default="bytes", show_default=True)
@click.option(
    "--limit",
    type=click.IntRange(0, 1_000_000),
    default=100,
    show_default=True,
    metavar="N",
    help="How many to show; 0: all.",
)
@json_option
@control_option
@timeout_option(10.0)
def listed(
    control: str, timeout: float, sort: str, limit: int, as_json: bool, min_age: float, tls: bool | None, **given: Any
) -> None:
    """Flows that are open, most bytes first."""
    wanted = _filter(min_age, tls, given)
    client = _client(control, timeout)
    total = 0

    def records() -> Iterator[FlowRecord]:
        nonlocal total
        for flow in client.flows(wanted):
            total += 1
            yield flow.record

    order = _SORTS[sort]
    if sort in ("source", "destination"):
        shown = heapq.nsmallest(limit, records(), key=order) if limit else sorted(records(), key=order)
    else:
        shown = heapq.nlargest(limit, records(), key=order) if limit else sorted(records(), key=order, reverse=True)
    for note in client.notes:
        tell(f"nfw: {note}")
    if as_json:
        rows = [record.to_json(client.generation) for record in shown]
        emit_json({"generation": client.generation, "total": total, "flows": rows})
        return
    for line in table(shown, client.generation):
        emit(line)
    left = total - len(shown)
    tell(f"{total} flow{'' if total == 1 else 's'}" + (f", {left} not shown (--limit)" if left else ""))


@flows.command()
@filter_options
@click.option("--out", required=True, metavar="FILE", help="Where to; a file that exists is replaced.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["aws", "eve"]),
    default="aws",
    show_default=True,
    help="A document with the fields of AWS's flow capture, or an EVE flow record a line.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=100_000,
    show_default=True,
    metavar="N",
    help="At most as many.",
)
@control_option
@timeout_option(10.0)
def capture(
    control: str, timeout: float, out: str, form: str, limit: int, min_age: float, tls: bool | None, **given: Any
) -> int:
    """Write the flows that are open to a file. Exit code 1 when there were more than --limit."""
    from nfw.flows import capture as writer

    wanted = _filter(min_age, tls, given)
    client = _client(control, timeout)
    flows = client.flows(wanted)
    first = next(flows, None)  # asks the daemon, which says what generation this is

    def records() -> Iterator[FlowRecord]:
        if first is not None:
            yield first.record
        for flow in flows:
            yield flow.record

    count, more = writer.write(Path(out), form, records(), wanted, client.generation, time.time(), limit)
    for note in client.notes:
        tell(f"nfw: {note}")
    emit(f"{out}: {count} flow{'' if count == 1 else 's'}")
    if more:
        tell(f"nfw: there are more than --limit {limit} flows")
    return 1 if more else 0


@flows.command()
@filter_options
@click.option("--all", "everything", is_flag=True, help="Every flow; a filter or this is demanded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@control_option
@timeout_option(10.0)
def flush(
    control: str,
    timeout: float,
    everything: bool,
    yes: bool,
    as_json: bool,
    min_age: float,
    tls: bool | None,
    **given: Any,
) -> None:
    """End flows.

    TCP: what follows is dropped, or rejected where open_flows.action says so, until the client connects anew. UDP: the
    client's next datagram begins a new flow. TLS sessions end on both sides.
    """
    wanted = _filter(min_age, tls, given)
    if not wanted and not everything:
        raise click.UsageError("which flows? Give a filter, or --all")
    client = _client(control, timeout)
    found: list[Listed] = list(_bounded(client.flows(wanted)))
    if found and not yes:
        _confirm(len(found))
    ended = client.flush(found)
    for note in client.notes:
        tell(f"nfw: {note}")
    if as_json:
        emit_json({"generation": client.generation, "matched": len(found), "ended": ended})
    else:
        emit(f"{ended} flow{'' if ended == 1 else 's'} ended")


def _confirm(count: int) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"{count} flows would end; --yes says that they shall")
    click.confirm(f"End {count} flow{'' if count == 1 else 's'}?", abort=True, err=True)


def _bounded(flows: Iterable[Listed]) -> Iterator[Listed]:
    for number, flow in enumerate(flows):
        if number >= FLUSH_MOST:
            raise Failure(f"nfw: more than {FLUSH_MOST} flows match; none was ended")
        yield flow


def _client(control: str, timeout: float) -> FlowClient:
    from nfw.flows.client import FlowClient

    with contextlib.suppress(OSError):
        os.nice(_NICE)
    return FlowClient(ControlClient(control, timeout))


def _filter(min_age: float, tls: bool | None, given: dict[str, Any]) -> FlowFilter:
    from nfw.flows.filter import FlowFilter

    plain: dict[str, Any] = {_FIELDS[name]: list(values) for name, values in given.items() if values}
    if tls is not None:
        plain["tls"] = tls
    try:
        return FlowFilter.from_plain({**plain, "min_age": min_age})
    except ValueError as error:
        options = {field: f"--{name.replace('_', '-')}" for name, field in _FIELDS.items()}
        lines = []
        for text in map(str, error.args):
            field, _, rest = text.partition(": ")
            lines.append(f"{options.get(field, field)}: {rest}")
        raise click.UsageError("; ".join(lines)) from None


# -- for a person ------------------------------------------------------------------------------------------------------

_HEAD = (
    "PROTO", "SOURCE", "DESTINATION", "AGE", "IDLE", "PKTS OUT/IN", "BYTES OUT/IN", "APP", "SNI", "VERDICT", "RULE",
    "GEN",
)  # fmt: skip


def table(records: Iterable[FlowRecord], generation: int) -> list[str]:
    """A line a flow under a heading. Out is towards the server; ``~``: counted by a worker, which may not see all."""
    return columns.table(_HEAD, [_row(record, generation) for record in records])


def _row(record: FlowRecord, generation: int) -> tuple[str, ...]:
    from nfw.logview import clean
    from nfw.policy.values import protocol_name

    mark = "" if record.true_counts else "~"
    verdict = record.verdict + (" (tls)" if record.tls_scope else "")
    why = record.rule or record.reason
    return (
        protocol_name(record.protocol),
        _end(record.client, record.client_port),
        _end(record.server, record.server_port),
        _seconds(record.age),
        _seconds(record.idle),
        f"{mark}{_count(record.packets[0])}/{_count(record.packets[1])}",
        f"{mark}{_count(record.octets[0])}/{_count(record.octets[1])}",
        clean(record.app_proto) or "-",
        clean(record.name) or "-",
        verdict,
        why + (f" {record.rule_at}" if record.rule_at else "") or "-",
        str(generation),
    )


def _end(address: bytes, port: int) -> str:
    from nfw.events import address as text

    written = text(address)
    return f"[{written}]:{port}" if len(address) == 16 else f"{written}:{port}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    if value < 100:
        return f"{value:.0f}s"
    if value < 6000:
        return f"{value / 60:.0f}m"
    return f"{value / 3600:.0f}h" if value < 100 * 3600 else f"{value / 86400:.0f}d"


def _count(value: int) -> str:
    from nfw.top import count

    return count(float(value))

"""``nfw rules check``, ``nfw rules keywords`` and ``nfw rules hits``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json, tell
from nfw.cli.columns import table
from nfw.cli.options import control_option, json_option, named, timeout_option
from nfw.control import ControlClient

if TYPE_CHECKING:
    from nfw.policy.model import Variables


@click.group(cls=NearestGroup)
def rules() -> None:
    """Check rule files, list what rules can say, show which were hit."""


@rules.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=named)
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=ITEM[,ITEM...]",
    help="Define a variable the rules use, as a policy would.  [default: HOME_NET, EXTERNAL_NET]",
)
@json_option
def check(files: tuple[str, ...], variables: tuple[str, ...], as_json: bool) -> int:
    """Parse rule files and say everything that is wrong with them."""
    from nfw.policy.errors import Level, Problems
    from nfw.policy.files import read_bounded
    from nfw.policy.loader import is_policy_file
    from nfw.policy.model import RuleSource
    from nfw.policy.read_stateful import MAX_RULE_FILE_BYTES, decode_rules, parse_sources

    problems = Problems(files[0])
    known = _variables(variables)
    sources = []
    for file in files:
        try:
            data = read_bounded(Path(file), MAX_RULE_FILE_BYTES)
        except OSError as error:
            raise Failure(f"{file}: rule file {error.strerror}") from None
        if is_policy_file(Path(file), data):
            raise Failure(f"{file}: this is a policy, not a file of rules; expected `nfw policy check {file}`")
        text = decode_rules(data, file, problems)
        if text is not None:
            sources.append(RuleSource(file, text))
    signatures = parse_sources(sources, known, problems)
    actions: dict[str, int] = {}
    for signature in signatures:
        actions[signature.action.value] = actions.get(signature.action.value, 0) + 1
    errors, warnings = problems.errors, problems.warnings
    if as_json:
        told = [error.to_json() for error in errors] + [warning.to_json(Level.WARNING) for warning in warnings]
        emit_json(
            {"ok": not errors, "files": list(files), "rules": len(signatures), "actions": actions, "problems": told}
        )
        return 1 if errors else 0
    for warning in warnings:
        tell(f"{warning} [warning]")
    for found in errors:
        tell(str(found))
    if problems.untold:
        tell(f"and {problems.untold} more errors")
    counts = ", ".join(f"{number} {action}" for action, number in sorted(actions.items()))
    (tell if errors else emit)(
        f"{len(signatures)} good rule{'' if len(signatures) == 1 else 's'}{f' ({counts})' if counts else ''}"
        + (f", {len(errors) + problems.untold} wrong" if errors else "")
    )
    return 1 if errors else 0


@rules.command()
@click.option("--markdown", is_flag=True, help="Print a reference page.")
@json_option
def keywords(markdown: bool, as_json: bool) -> int:
    """List the keywords of the rule language."""
    from engines.stateful.keywords.reference import keyword_rows, markdown_page

    rows = keyword_rows()
    if as_json:
        emit_json([row.to_json() for row in rows])
    elif markdown:
        emit(markdown_page(rows))
    else:
        width = max(len(row.name) for row in rows)
        for row in rows:
            note = "" if row.status == "works" else f"  [{row.status}]"
            emit(f"{row.name:<{width}}  {row.kind:<9}  {row.summary}{note}")
    return 0


_ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "hits": lambda row: -row["hits"],
    "bytes": lambda row: -row["octets"],
    "last": lambda row: -row["last"],
    "policy": lambda row: 0,
}
_RULES = ("rule", "scope")  # what a policy can do without when it is never hit
_HEAD = ("ENGINE", "RULE", "ACTION", "HITS", "UNIT", "BYTES", "FLOWS", "LAST HIT", "WHERE", "TEXT")


@rules.command()
@click.option("--unused", is_flag=True, help="Only rules and TLS scopes that were never hit, and since when.")
@click.option(
    "--sort",
    type=click.Choice(list(_ORDERS)),
    default="policy",
    show_default=True,
    help="policy: in the order they are tried.",
)
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Only rules of this group; may be repeated.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["stateless", "stateful", "tls"]),
    help="Only rules of this engine; may be repeated.",
)
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="Only the first N.  [default: all]")
@click.option("--reset", is_flag=True, help="Count anew from here on; shows nothing.")
@json_option
@control_option
@timeout_option(10.0)
def hits(
    control: str,
    timeout: float,
    unused: bool,
    sort: str,
    groups: tuple[str, ...],
    engines: tuple[str, ...],
    limit: int,
    reset: bool,
    as_json: bool,
) -> None:
    """Show how often each rule of the running policy was hit.

    Hits are packets for stateless rules and default actions, matches for stateful rules, sessions for TLS scopes and
    statuses. Bytes are those of the packets that hit. What the kernel forwards by itself after a verdict is not among
    them, since its entries end without telling nfw what they carried: while a flow is open, `nfw flows --json` has its
    bytes with the rule that decided, and when it has ended they are in no count of a rule. Counts go on when a policy
    is applied that has the same rule.
    """
    client = ControlClient(control, timeout)
    if reset:
        since = _asked(client, "rules_reset")["since"]
        tell(f"nfw: counted anew since {_time(since)}")
        return
    rows: list[dict[str, Any]] = []
    while True:
        page = _asked(client, "rules", start=len(rows))
        rows += page["rows"]
        if len(rows) >= page["total"] or not page["rows"]:
            break
    rows = [row for row in rows if not engines or row["engine"] in engines]
    if groups:
        unknown = sorted(set(groups) - {row["group"] for row in rows})
        if unknown:
            raise Failure(f"nfw: the running policy has no rules in group {', '.join(unknown)}")
        rows = [row for row in rows if row["group"] in groups]
    counted = sum(row["kind"] in _RULES for row in rows)
    if unused:
        rows = [row for row in rows if row["kind"] in _RULES and not row["hits"]]
    elif not as_json:
        rows = [row for row in rows if row["kind"] != "status" or row["hits"]]
    rows.sort(key=_ORDERS[sort])
    shown = rows[:limit] if limit else rows
    if as_json:
        emit_json([_plain(row) for row in shown])
        return
    for line in (_unused if unused else _hit_table)(shown):
        emit(line)
    if unused:
        tell(f"{len(rows)} of {counted} rules were not hit")


def _asked(client: ControlClient, command: str, **args: Any) -> dict[str, Any]:
    reply = client.request(command, **args)
    if not reply.ok or not isinstance(reply.data, dict):
        raise Failure(*(f"nfw: {line}" for line in reply.errors or ("an answer that cannot be read",)))
    return reply.data


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row for ``--json``: times as in the event log, null for never."""
    from nfw.events import timestamp

    made = {name: value for name, value in row.items() if name not in ("octets", "last", "began")}
    made["bytes"] = row["octets"]
    made["last_hit"] = timestamp(row["last"]) if row["last"] else None
    made["counted_since"] = timestamp(row["began"])
    return made


def _hit_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    return _table(
        _HEAD,
        [
            (
                row["engine"],
                _name(row),
                row["action"] or "-",
                str(row["hits"]),
                row["unit"],
                str(row["octets"]),
                str(row["flows"]),
                _time(row["last"]) if row["last"] else "never",
                row["at"] or "-",
                row["text"],
            )
            for row in rows
        ],
    )


def _unused(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ("ENGINE", "RULE", "ACTION", "NOT HIT SINCE", "WHERE", "TEXT")
    return _table(
        head,
        [
            (row["engine"], _name(row), row["action"], _time(row["began"]), row["at"] or "-", row["text"])
            for row in rows
        ],
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['group']}:{row['id']}" if row["group"] else str(row["id"])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    from nfw.logview import clean

    return table(head, [tuple(map(clean, row)) for row in rows], numbers=frozenset({"HITS", "BYTES", "FLOWS"}))


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _variables(written: tuple[str, ...]) -> Variables:
    """The values of ``--var`` over the defaults, read as a policy's ``variables`` are."""
    from nfw.policy.errors import Problems
    from nfw.policy.variables import read_variables
    from nfw.policy.yamlpos import Mapping, Scalar, Sequence

    entries = []
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise click.BadParameter(f"{text!r} is not NAME=ITEM[,ITEM...]", param_hint="--var")
        items = tuple(Scalar(item.strip(), item.strip(), 0, 0) for item in value.strip("[]").split(","))
        entries.append((Scalar(name, name, 0, 0), Sequence(items, 0, 0)))
    problems = Problems("--var")
    variables = read_variables(Mapping(tuple(entries), 0, 0) if entries else None, problems)
    if problems.errors:
        raise click.BadParameter("; ".join(error.message for error in problems.errors), param_hint="--var")
    return variables

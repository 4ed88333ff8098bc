"""``nfw rules check`` and ``nfw rules keywords``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json, tell
from nfw.cli.options import json_option

if TYPE_CHECKING:
    from nfw.policy.model import Variables


@click.group(cls=NearestGroup)
def rules() -> None:
    """Check rule files, list what rules can say."""


@rules.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
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
    from nfw.policy.model import RuleSource
    from nfw.policy.read_stateful import MAX_RULE_FILE_BYTES, decode_rules, parse_sources

    problems = Problems(files[0])
    known = _variables(variables)
    sources = []
    for file in files:
        try:
            text = decode_rules(read_bounded(Path(file), MAX_RULE_FILE_BYTES), file, problems)
        except OSError as error:
            raise Failure(f"{file}: rule file {error.strerror}") from None
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

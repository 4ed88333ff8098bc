"""The list of keywords, made from the table the parser uses, so that it cannot say anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from engines.stateful.keywords import KEYWORDS, UNSUPPORTED, unparsed
from engines.stateful.keywords.base import Kind


@dataclass(frozen=True, slots=True)
class KeywordRow:
    """``status``: works, never matches (loads with a warning), refused. ``value``: required, none, optional or ""."""

    name: str
    kind: str
    summary: str
    value: str
    status: str
    doc: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


_VALUES = {True: "required", False: "none", None: "optional"}


def keyword_rows() -> list[KeywordRow]:
    """All keywords known, by kind and then in the table's order; the refused ones last, by name."""
    kinds = list(Kind)
    rows = [
        KeywordRow(
            name,
            keyword.kind.value,
            keyword.summary,
            _VALUES[keyword.value],
            "never matches" if name in unparsed.NAMES else "works",
            keyword.doc,
        )
        for name, keyword in sorted(KEYWORDS.items(), key=lambda item: kinds.index(item[1].kind))
    ]
    return rows + [KeywordRow(name, "", why, "", "refused", "") for name, why in sorted(UNSUPPORTED.items())]


_TITLES = {
    Kind.META: "About the rule",
    Kind.BUFFER: "Buffers",
    Kind.TRANSFORM: "Transforms",
    Kind.CONTENT: "Conditions on the bytes of a buffer",
    Kind.MODIFIER: "Modifiers of a content",
    Kind.PACKET: "Conditions on one packet",
    Kind.FLOW: "Conditions on the flow and on what is remembered",
    Kind.APP: "Conditions on application protocols",
    Kind.ACTION: "What happens at a match, and how often",
}


def markdown_page(rows: Sequence[KeywordRow]) -> str:
    """A reference page in Markdown: a table for every kind, one for what loads and never matches, one for the rest."""
    lines = ["# Keywords of the rule language", "", "Printed by `nfw rules keywords --markdown`.", ""]
    for kind, title in _TITLES.items():
        works = [row for row in rows if row.kind == kind.value and row.status == "works"]
        lines += [f"## {title}", "", "| keyword | value | what it does |", "|---|---|---|"]
        lines += [f"| [`{row.name}`]({row.doc}) | {row.value} | {_cell(row.summary)} |" for row in works]
        lines.append("")
    never = [row for row in rows if row.status == "never matches"]
    lines += ["## Loaded, but never matching", "", "`nfw rules check` warns of rules that use one.", ""]
    lines += ["| keyword | why |", "|---|---|", *(f"| `{row.name}` | {_cell(row.summary)} |" for row in never), ""]
    lines += ["## Refused", "", "| keyword | why |", "|---|---|"]
    lines += [f"| `{row.name}` | {_cell(row.summary)} |" for row in rows if row.status == "refused"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

"""Conditions on NFS. Source: Suricata user guide, "NFS Keywords". Ranges of both include their ends, as there."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.app.nfs import PROCEDURES
from engines.stateful.keywords.base import Keyword, Kind, int_test, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition
from engines.stateful.match import IntegerValue

_PAGE = "nfs-keywords.html"
_NONE = 0xFFFFFFFF


def _procedure(draft: RuleDraft, value: str | None) -> None:
    """A number of any version; or a name, which is the number it has in each version."""
    text = unquote(required(value, "the name or number of a procedure"))
    negated = text.startswith("!")
    name = text.lstrip("! ").lower()
    wanted = {version << 32 | names.index(name) for version, names in PROCEDURES.items() if name and name in names}
    if wanted:
        add_condition(draft, "nfs_procedure", IntegerValue(lambda call: (call in wanted) != negated))
        return
    test = int_test(text, "nfs_procedure", inclusive=True).test
    add_condition(draft, "nfs_procedure", IntegerValue(lambda call: test(call & _NONE)))


def _version(draft: RuleDraft, value: str | None) -> None:
    test = int_test(required(value, "2 to 4"), "nfs_version", inclusive=True).test
    add_condition(draft, "nfs_version", IntegerValue(test))


def _keyword(name: str, summary: str, parse: Callable[[RuleDraft, str | None], None]) -> Keyword:
    return Keyword(name, summary, f"{_PAGE}#{name.replace('.', '-').replace('_', '-')}", Kind.APP, parse)


KEYWORDS = [
    _keyword("nfs_procedure", "what is asked, in version 4 any of what is", _procedure),
    _keyword("nfs_version", "2 to 4", _version),
    _keyword("nfs.version", "2 to 4 (other name)", _version),
]

"""What a rule says about itself: msg, sid, rev, classtype ... Source: Suricata user guide, "Meta keywords"."""

from __future__ import annotations

import re

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, required, split_list, unquote
from engines.stateful.keywords.draft import RuleDraft

# The version rules may ask for with `requires`: the one whose semantics are followed.
SURICATA_VERSION = (8, 0, 5)
_PAGE = "meta.html"
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")


def _msg(draft: RuleDraft, value: str | None) -> None:
    draft.once("msg")
    text = unquote(required(value, "a text in double quotes"))
    draft.msg = re.sub(r'\\([\\";:])', r"\1", text)


def _sid(draft: RuleDraft, value: str | None) -> None:
    draft.once("sid")
    draft.sid = integer(unquote(required(value, "a number")), "sid", 1)


def _gid(draft: RuleDraft, value: str | None) -> None:
    draft.once("gid")
    draft.gid = integer(unquote(required(value, "a number")), "gid")


def _rev(draft: RuleDraft, value: str | None) -> None:
    draft.once("rev")
    draft.rev = integer(unquote(required(value, "a number")), "rev")


def _priority(draft: RuleDraft, value: str | None) -> None:
    number = integer(required(value, "a number from 1 to 255"), "priority", 0, 255)
    if draft.priority is not None:
        draft.warnings.append("priority is given twice; the last one counts")
    draft.priority = number


def _classtype(draft: RuleDraft, value: str | None) -> None:
    name = unquote(required(value, "the name of a class")).strip()
    if draft.classtype:
        draft.warnings.append("classtype is given twice; the class with the higher priority counts")
    known = draft.config.classes.get(name.lower())
    priority = known.priority if known is not None else None
    if known is None:
        draft.warnings.append(f"classtype {name!r} is not known; the rule keeps the default priority")
    if draft.class_priority is None or (priority is not None and priority < draft.class_priority):
        draft.classtype, draft.class_priority = name, priority
        draft.category = known.description if known is not None else name


def _reference(draft: RuleDraft, value: str | None) -> None:
    kind, comma, rest = required(value, "kind,text").strip('"').partition(",")
    if not comma or not kind.strip() or not rest.strip():
        raise KeywordError(f"reference: expected kind,text like url,example.com; found {value!r}")
    kind, rest = kind.strip(), rest.strip()
    prefix = draft.config.references.get(kind.lower())
    if prefix is None:
        draft.warnings.append(f"reference system {kind!r} is not known; its references get no URL")
        prefix = f"{kind},"
    elif prefix.endswith("://") and _SCHEME.match(rest):
        prefix = ""
    draft.references.append(prefix + rest)


def _metadata(draft: RuleDraft, value: str | None) -> None:
    for part in split_list(unquote(value or "")):
        name, _, text = part.partition(" ")
        if name:
            draft.metadata.setdefault(name, []).append(text.strip())


def _target(draft: RuleDraft, value: str | None) -> None:
    text = unquote(required(value, "src_ip or dest_ip"))
    if text not in {"src_ip", "dest_ip"}:
        raise KeywordError(f"target: expected src_ip or dest_ip, found {text!r}")
    draft.target = text


def _requires(draft: RuleDraft, value: str | None) -> None:
    """Judged before all other options, by :func:`unmet`."""


# Optional features a rule may ask for, of those that are here.
FEATURES: frozenset[str] = frozenset({"ja3", "ja4"})
_VERSION = re.compile(r"(<=|>=|<|>)\s*(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-\S*)?$")


def unmet(value: str, known_keywords: frozenset[str] | set[str]) -> str:
    """What a ``requires`` asks for that is not there; "" when all is. Raises KeywordError when it cannot be read."""
    for part in split_list(value):
        name, _, argument = part.partition(" ")
        argument = argument.strip()
        if name == "feature" and argument:
            if argument not in FEATURES:
                return f"feature {argument}"
        elif name == "keyword" and argument:
            if argument not in known_keywords:
                return f"keyword {argument}"
        elif name == "version" and argument:
            if not any(all(_version_holds(c) for c in choice.split()) for choice in _choices(argument)):
                return f"version {argument}"
        elif not name:
            raise KeywordError("requires: expected version, feature or keyword")
        else:
            return f"{name} (not known)"
    return ""


def _choices(argument: str) -> list[str]:
    """``>= 7.0.4 < 8 | >= 8.0.3``: alternatives, each with its comparisons joined without spaces inside."""
    return [re.sub(r"(<=|>=|<|>)\s+", r"\1", choice).strip() for choice in argument.split("|")]


def _version_holds(text: str) -> bool:
    found = _VERSION.match(text)
    if not found:
        raise KeywordError(f"requires: expected a version like >= 7.0.0, found {text!r}")
    op = found.group(1)
    wanted = tuple(int(g or 0) for g in found.groups()[1:])
    if op == "<":
        return wanted > SURICATA_VERSION
    if op == "<=":
        return wanted >= SURICATA_VERSION
    if op == ">":
        return wanted < SURICATA_VERSION
    return wanted <= SURICATA_VERSION


KEYWORDS = [
    Keyword("msg", "the text of the alert", f"{_PAGE}#msg-message", Kind.META, _msg),
    Keyword("sid", "the rule's number", f"{_PAGE}#sid-signature-id", Kind.META, _sid),
    Keyword("gid", "the group the number belongs to", f"{_PAGE}#gid-group-id", Kind.META, _gid),
    Keyword("rev", "the rule's revision", f"{_PAGE}#rev-revision", Kind.META, _rev),
    Keyword("priority", "1 is the most important", f"{_PAGE}#priority", Kind.META, _priority),
    Keyword("classtype", "the class, which gives the priority", f"{_PAGE}#classtype", Kind.META, _classtype),
    Keyword("reference", "where to read more", f"{_PAGE}#reference", Kind.META, _reference),
    Keyword("metadata", "names with values", f"{_PAGE}#metadata", Kind.META, _metadata, None),
    Keyword("target", "which side is attacked", f"{_PAGE}#target", Kind.META, _target),
    Keyword("requires", "skip the rule where this is not there", f"{_PAGE}#requires", Kind.META, _requires),
]

"""Rules that work here and that AWS Network Firewall would not take.

Source: AWS Network Firewall developer guide, "Limitations and caveats for stateful rules", and the service's answers.
"""

from __future__ import annotations

from collections.abc import Iterator

from engines.stateful.parser import RuleSyntaxError, RuleText, rule_texts, split_options
from nfw.policy.aws.fields import clip
from nfw.policy.errors import Level, PolicyError, Problems
from nfw.policy.model import RuleOrder, RuleSource

ACTIONS = frozenset({"pass", "drop", "reject", "alert"})
UNSUPPORTED = frozenset({"dataset", "datarep", "iprep", "lua", "luaxform", "enip_command", "cip_service"}) | {
    *("filestore", "filemagic", "filemd5", "filesha1", "filesha256", "filesize", "filename", "fileext"),
    *("file.name", "file.magic"),
}
PCRE_COMPANIONS = ("tls.sni", "http.host", "dns.query", "http.uri", "content")
MAX_LENGTH = 8192
ADDED = 17  # a gid option, by which AWS lengthens each rule before it measures it
_WORTH_A_LOOK = (*UNSUPPORTED, "pcre", "priority", "classtype")


def lint(source: RuleSource, order: RuleOrder, problems: Problems) -> None:
    """Tell, at the level of what AWS refuses, what in ``source`` it would."""
    for rule in rule_texts(source.text):
        for reason in _reasons(rule, order):
            line, column = _place(source, *rule.where(0))
            message = f"stateful rule is invalid, rule: {clip(rule.text)}, reason: {reason}"
            problems.add_warning(PolicyError(source.file, line, column, message, Level.AWS_REFUSES))


def _reasons(rule: RuleText, order: RuleOrder) -> Iterator[str]:
    text = rule.text
    if len(text) + ADDED > MAX_LENGTH:
        yield f"Rule exceeds max length ({MAX_LENGTH})"
    if len(rule.starts) > 1:
        yield "Illegal option syntax: \\"
    action = text.split(None, 1)[0]
    if action not in ACTIONS:
        yield f"Action {clip(action)} is not supported"
    if not any(word in text for word in _WORTH_A_LOOK):
        return
    try:
        names = [option.name for option in split_options(text, text.find("("))]
    except RuleSyntaxError:
        return  # an error, which the parser tells
    for name in sorted(UNSUPPORTED.intersection(names)):
        yield f"RuleOptions {name} is not supported"
    if "pcre" in names and not set(names).intersection(PCRE_COMPANIONS):
        companions = ", ".join(PCRE_COMPANIONS)
        yield f"Using pcre without one of the following options is not allowed: [{companions}]."
    if order is RuleOrder.STRICT and not {"priority", "classtype"}.isdisjoint(names):
        yield (
            "RulesString has invalid keywords. Rule groups that use strict order can't have rules that contain the "
            "keywords `priority` or `classtype`"
        )


def _place(source: RuleSource, line: int, column: int) -> tuple[int, int]:
    if source.place is not None:
        return source.place(line, column)
    return source.line + line - 1, source.column + column - 1

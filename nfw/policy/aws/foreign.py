"""Files that come from the same tools as a policy and hold none: what they are, and which to give instead.

Only for messages: a file is looked at here after nothing in it was found to be a policy, or before it is parsed as one
for lack of a better idea.
"""

from __future__ import annotations

import re

from nfw.policy.yamlpos import Mapping, Node

_DESCRIBE = "aws network-firewall describe-firewall-policy and describe-rule-group"
_LISTS = {
    "RuleGroups": ("list-rule-groups", "describe-rule-group for each"),
    "FirewallPolicies": ("list-firewall-policies", "describe-firewall-policy"),
    "TLSInspectionConfigurations": ("list-tls-inspection-configurations", "describe-tls-inspection-configuration"),
    "Firewalls": ("list-firewalls", "describe-firewall"),
}
_HCL = re.compile(
    r'(?:resource|data)\s+"[^"\n]+"\s+"|(?:terraform|locals)\s*\{|(?:module|variable|provider)\s+"[^"\n]+"'
)
_RULE = re.compile(r"(?:alert|pass|drop|reject(?:src|dst|both)?)\s+[a-z0-9-]+\s+\S+\s+\S+\s+(?:->|<>|=>)\s")
_COMMENTS = re.compile(r"(?:\s+|(?:#|//)[^\n]*|/\*.*?\*/)*", re.DOTALL)
_PRINTED = re.compile(r"[A-Z]{6,}\t|-{20,}\r?\n\|")


def foreign_text(text: str) -> str:
    """What ``text`` is that is neither JSON nor YAML, and what was expected; "" where it may be one of them."""
    at = _COMMENTS.match(text)
    start = at.end() if at is not None else 0
    if _HCL.match(text, start):
        return f"this is Terraform's own language; expected AWS's documents: {_DESCRIBE} print them once it is applied"
    if _RULE.match(text, start):
        return (
            "these are stateful rules, not a policy; expected a policy that names the file in rule_files "
            "(rules alone: nfw rules check)"
        )
    if _PRINTED.match(text, start):
        return "this is what the AWS CLI prints as text or a table; expected --output json or yaml"
    return ""


def foreign_document(root: Node) -> str:
    """What the document is that is no policy and no part of one, and what was expected; "" where that is not known."""
    if not isinstance(root, Mapping):
        return ""
    keys = {key.text for key, _ in root.entries}
    if "terraform_version" in keys:
        return f"this is a plan or state of Terraform; expected AWS's documents: {_DESCRIBE} print them"
    for key, (command, other) in _LISTS.items():
        if key in keys:
            return f"this is what {command} prints, names alone; expected what {other} prints"
    return ""

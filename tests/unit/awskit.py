"""AWS Network Firewall documents to load: the golden ones, and small ones made up on the spot."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from nfw import ca
from nfw.policy import Policy, load_policy
from nfw.policy.errors import PolicyErrors
from nfw.policy.model import RuleSource

GOLDEN = Path(__file__).parent.parent / "golden" / "aws"
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
ARN = "arn:aws:network-firewall:us-east-1:123456789012:"
RULE = 'pass tcp $HOME_NET any -> any 443 (msg:"ok"; sid:1;)'


def golden_folder(directory: Path) -> Path:
    """The golden documents with the CA they name."""
    shutil.copytree(GOLDEN, directory, dirs_exist_ok=True)
    ca.create("Test CA", directory, NOW)
    return directory


def stateful(rules: str = RULE, order: str = "STRICT_ORDER", **more: Any) -> dict[str, Any]:
    return {"RulesSource": {"RulesString": rules}, "StatefulRuleOptions": {"RuleOrder": order}, **more}


def stateless(*rules: dict[str, Any], actions: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "RulesSource": {
            "StatelessRulesAndCustomActions": {"StatelessRules": list(rules), "CustomActions": list(actions)}
        }
    }


def stateless_rule(priority: int = 1, action: str = "aws:drop", **match: Any) -> dict[str, Any]:
    match.setdefault("Sources", [{"AddressDefinition": "10.0.0.0/8"}])
    return {"Priority": priority, "RuleDefinition": {"MatchAttributes": match, "Actions": [action]}}


def counting(name: str = "Count", value: str = "count") -> dict[str, Any]:
    return {"ActionName": name, "ActionDefinition": {"PublishMetricAction": {"Dimensions": [{"Value": value}]}}}


def group(name: str, body: dict[str, Any] | None, kind: str = "STATEFUL", capacity: int = 1000) -> dict[str, Any]:
    response = {
        "RuleGroupName": name,
        "RuleGroupArn": f"{ARN}{kind.lower()}-rulegroup/{name}",
        "RuleGroupId": "id",
        "Type": kind,
        "Capacity": capacity,
    }
    described = {"UpdateToken": "token", "RuleGroupResponse": response}
    return described if body is None else {**described, "RuleGroup": body}


def policy(order: str = "STRICT_ORDER", groups: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """``groups``: names of stateful ones."""
    references: list[dict[str, Any]] = [{"ResourceArn": f"{ARN}stateful-rulegroup/{name}"} for name in groups]
    for priority, reference in enumerate(references, 1):
        if order == "STRICT_ORDER":
            reference["Priority"] = priority
    body = {
        "StatelessDefaultActions": ["aws:forward_to_sfe"],
        "StatelessFragmentDefaultActions": ["aws:drop"],
        "StatefulEngineOptions": {"RuleOrder": order},
        "StatefulRuleGroupReferences": references,
        "PolicyVariables": {"RuleVariables": {"HOME_NET": {"Definition": ["10.0.0.0/8"]}}},
    }
    body.update(more)
    return {"FirewallPolicyResponse": {"FirewallPolicyName": "p"}, "FirewallPolicy": copy.deepcopy(body)}


def meaning(policy: Policy) -> Policy:
    """The policy without where it was written."""

    def plain(sources: tuple[RuleSource, ...]) -> tuple[RuleSource, ...]:
        return tuple(replace(source, file="") if source.inline else source for source in sources)

    groups = tuple(replace(group, sources=plain(group.sources)) for group in policy.stateful.groups)
    rules = tuple(replace(rule, file="", line=0) for rule in policy.stateless.rules)
    return replace(
        policy,
        stateless=replace(policy.stateless, rules=rules),
        stateful=replace(policy.stateful, sources=plain(policy.stateful.sources), groups=groups),
    )


def write(directory: Path, *documents: Any, indent: int | None = 1) -> list[Path]:
    """One file a document; the first is ``0.json``."""
    paths = []
    for index, document in enumerate(documents):
        path = directory / f"{index}.json"
        path.write_text(json.dumps(document, indent=indent))
        paths.append(path)
    return paths


def load(directory: Path, *documents: Any, known: str | None = None, name: str = "") -> Policy:
    """``known``: the text of the map file."""
    paths = write(directory, *documents)
    map_file = None
    if known is not None:
        map_file = directory / "map.yaml"
        map_file.write_text(known)
    return load_policy(*paths, map_file=map_file, name=name, now=NOW.timestamp())


def refusal(directory: Path, *documents: Any, known: str | None = None, name: str = "") -> list[str]:
    """What the documents are refused with, file names without their folder."""
    try:
        load(directory, *documents, known=known, name=name)
    except PolicyErrors as refused:
        return [str(error).replace(f"{directory}/", "") for error in refused]
    return []

"""There and back: a policy as YAML, as a template of AWS and as YAML again is the same policy."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.stateful.signature import Signature
from engines.stateless.rule import StatelessRule, TcpFlagsMatch
from engines.tls.bypass import Exemption
from engines.tls.scope import TlsScope
from nfw import ca
from nfw.policy import Policy, dump_policy, load_policy, model
from nfw.policy.aws.labels import lost
from nfw.policy.aws.write import write_template
from nfw.policy.loader import load_policy_text
from nfw.policy.model import PolicyError, RuleOrder
from tests.unit import awskit
from tests.unit.awskit import NOW, golden_folder, meaning
from tests.unit.test_geoip import database

READY = Path(__file__).parents[2] / "rules"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, rule files and the golden documents."""
    directory = golden_folder(tmp_path_factory.mktemp("convert"))
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    (directory / "logs.pem").write_bytes(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    ca.create("Other CA", directory / "certs", NOW)
    database(directory / "countries.mmdb")
    (directory / "t.config").write_text("suppress gen_id 0, sig_id 0, track by_src, ip 192.0.2.1\n")
    (directory / "c.config").write_text("config classification: ours,Our own,1\n")
    (directory / "r.config").write_text("config reference: wiki https://wiki.example/\n")
    (directory / "one.rules").write_text("# first\npass tcp any any -> any 1 (sid:101;)\n\n")
    (directory / "two.rules").write_text("drop tcp $HOME_NET any -> any [2,3] (sid:102;)")
    return directory


def from_yaml(text: str, folder: Path) -> Policy:
    return load_policy_text(text.encode(), folder / "policy.yaml", now=NOW.timestamp())


def from_aws(text: str, folder: Path) -> Policy:
    path = folder / "policy.template"
    path.write_text(text)
    try:
        return load_policy(path, now=NOW.timestamp())
    finally:
        path.unlink()


def there_and_back(policy: Policy, folder: Path) -> None:
    template = write_template(policy)
    found = from_aws(template, folder)
    assert meaning(found) == meaning(policy)
    assert [(each.ref.gid, each.sid, each.action) for each in found.stateful.signatures] == [
        (each.ref.gid, each.sid, each.action) for each in policy.stateful.signatures
    ]
    text = dump_policy(found)
    assert text == dump_policy(policy)
    again = from_yaml(text, folder)
    assert meaning(again) == meaning(policy)
    assert json.loads(write_template(again)) == json.loads(template)


def test_the_golden_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    documents = ["policy.json", "edge.json", "egress.json", "names.json", "desktop.json", "tls.json", "logging.json"]
    loaded = load_policy(*(folder / name for name in documents), map_file=folder / "map.yaml", now=NOW.timestamp())
    there_and_back(loaded, folder)
    resources = json.loads(write_template(loaded))["Resources"]
    bodies = [each["Properties"].get("RuleGroup", {}).get("RulesSource", {}) for each in resources.values()]
    assert sorted(key for body in bodies for key in body) == [
        "RulesSourceList",
        "RulesString",
        "StatefulRules",
        "StatelessRulesAndCustomActions",
    ]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "rules").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_ready_policies(path: Path, folder: Path) -> None:
    for file in path.parent.glob("*.rules"):
        (folder / file.name).write_text(file.read_text())
    there_and_back(from_yaml(path.read_text(), folder), folder)


def test_a_template_has_only_what_aws_knows(folder: Path) -> None:
    """But for Metadata, which AWS keeps and does not read."""
    text = (
        "name: an odd name\nfail_open: true\nvariables: {WEB: [80], HOME_NET: [10.0.0.0/8]}\n"
        "stateful: {rules: ['pass tcp any any -> any $WEB (sid:1;)']}\n"
    )
    template = json.loads(write_template(from_yaml(text, folder)))
    group, policy = template["Resources"].values()
    assert policy["Properties"]["FirewallPolicyName"] == "an-odd-name"
    assert policy["Metadata"] == {"nfw": {"name": "an odd name"}}
    assert group["Properties"]["RuleGroup"]["RuleVariables"] == {"PortSets": {"WEB": {"Definition": ["80"]}}}
    assert group["Properties"]["Capacity"] == 1
    assert template["Metadata"]["nfw"]["settings"]["fail_open"] is True


# -- any policy ----------------------------------------------------------------------------------------------------

names = st.text("abcAB01-_. é'\"#:{", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
variable_names = st.from_regex(r"[A-Z][A-Z0-9_]{0,9}\Z", fullmatch=True)
networks4 = st.builds(lambda a, b, c: f"{a}.{b & (0xFF << max(0, 16 - c)) & 0xFF}.0.0/{max(c, 8)}", st.integers(1, 223),
                      st.integers(0, 255), st.integers(8, 16))  # fmt: skip
networks = networks4 | st.sampled_from(["2001:db8::/32", "192.0.2.7/32", "::/0", "0.0.0.0/0"])
ports = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: f"{min(pair)}-{max(pair)}")
address_items = networks4 | st.sampled_from(
    ["!198.51.100.0/24", "10.0.0.1-10.0.0.9", "any", "2001:db8::/32", "192.0.2.1"]
)
port_items = st.sampled_from(["80", "1024:65535", "!25", "8443", "0:65535"])
counters = st.from_regex(r"[A-Za-z0-9_-]([A-Za-z0-9_. -]{0,10}[A-Za-z0-9_-])?\Z", fullmatch=True)
arns = st.sampled_from(["", "arn:aws:network-firewall:us-east-1:123456789012:x/y"])
capacities = st.none() | st.integers(2000, 30_000)


def some(strategy: st.SearchStrategy[Any], most: int = 3, unique: bool = False) -> st.SearchStrategy[list[Any]]:
    return st.lists(strategy, min_size=1, max_size=most, unique=unique)


@st.composite
def endpoints(draw: st.DrawFn) -> dict[str, Any]:
    choices = {
        "sources": some(networks),
        "destinations": some(networks),
        "source_ports": some(ports),
        "destination_ports": some(ports),
    }
    return {key: draw(strategy) for key, strategy in choices.items() if draw(st.booleans())}


@st.composite
def stateless_rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    rules = []
    for priority in draw(st.lists(st.integers(1, 65535), max_size=3, unique=True)):
        rule = {"priority": priority, "action": draw(st.sampled_from(["pass", "drop", "forward"])), **draw(endpoints())}
        with_ports = "source_ports" in rule or "destination_ports" in rule
        if draw(st.booleans()):
            rule["protocols"] = draw(some(st.sampled_from([6, 17] if with_ports else [1, 6, 17, 58, 99]), 3, True))
        if draw(st.booleans()) and rule.get("protocols", [6]) == [6]:
            flags = draw(st.sets(st.sampled_from(["SYN", "ACK", "FIN"])))
            rule["tcp_flags"] = [{"flags": sorted(flags)}, {"flags": sorted(flags), "masks": ["SYN", "ACK", "FIN"]}]
        if draw(st.booleans()):
            rule["counters"] = draw(some(counters))
        if draw(st.booleans()):
            rule["name"] = draw(names)
        rules.append(rule)
    return rules


HEADERS = ["tcp any any -> any 443", "udp $HOME_NET any <> $EXTERNAL_NET any", "ip any any -> any any"]
OPTIONS = ["", r'msg:"a\; \"b\" é"; ', "flow:to_server; ", 'msg:"x";  ']


@st.composite
def rule_texts(draw: st.DrawFn, first: int, order: str) -> str:
    lines = []
    for sid in range(first, first + draw(st.integers(1, 3))):
        action = draw(st.sampled_from(["pass", "drop", "alert", "reject"]))
        header, options = draw(st.sampled_from(HEADERS)), draw(st.sampled_from(OPTIONS))
        priority = "priority:2; " if order == "action" and draw(st.booleans()) else ""
        lines.append(f"{action} {header} ({options}{priority}sid:{sid};)")
        lines += draw(st.sampled_from([[], [""], ["# remark"]]))
    return "\n".join(lines)


@st.composite
def variables(draw: st.DrawFn, most: int = 2) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in draw(st.lists(variable_names, max_size=most, unique=True)):
        if name not in ("HOME_NET", "EXTERNAL_NET"):
            found[name] = draw(some(draw(st.sampled_from([address_items, port_items]))))
    if draw(st.booleans()):
        found["HOME_NET"] = draw(some(networks4))
    return found


@st.composite
def stateful_groups(draw: st.DrawFn, order: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    priorities = draw(st.lists(st.integers(1, 65535), min_size=4, max_size=4, unique=True))
    for index, name in enumerate(draw(st.lists(names, min_size=1, max_size=3, unique=True))):
        group: dict[str, Any] = {"name": name, "arn": draw(arns)}
        if order == "strict":
            group["priority"] = priorities[index]
        kind = draw(st.sampled_from(["rules", "files", "both", "domains", "five_tuple", "managed"]))
        if kind == "managed":
            group["name"] = f"Managed{index}"
            group["arn"] = f"arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/Managed{index}"
            group |= {"rule_files": ["one.rules"]} if draw(st.booleans()) else {}
        elif draw(st.booleans()):
            group["capacity"] = draw(st.integers(2000, 30_000))
            group["variables"] = draw(variables())
            group["references"] = {
                name: {"arn": f"arn:aws:ec2:r:1:prefix-list/pl-{name}", "networks": draw(some(address_items))}
                for name in draw(some(st.sampled_from(["SET", "OTHER"]), 2, True))
            }
        if draw(st.booleans()):
            group["drop_to_alert"] = True
        if kind in ("rules", "both"):
            group["rules"] = [draw(rule_texts(1, order)), draw(rule_texts(11, order))]
        if kind in ("files", "both"):
            group["rule_files"] = ["one.rules", "two.rules"]
        if kind == "five_tuple":
            group["five_tuple"] = [draw(rule_texts(1, order))]
        if kind == "domains":
            targets = draw(some(st.sampled_from([".example.com", "a.example", "B.example"]), 4, True))
            group["domains"] = {
                "action": draw(st.sampled_from(["allow", "deny", "reject", "alert"])),
                "targets": targets,
                "types": draw(some(st.sampled_from(["tls_sni", "http_host"]), 2, True)),
            }
        groups.append(group)
    return groups


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Any policy, as what its YAML says."""
    order = draw(st.sampled_from(["strict", "action"]))
    stateless: dict[str, Any] = {
        "default": draw(st.sampled_from(["pass", "drop", "forward"])),
        "fragments": draw(st.sampled_from(["pass", "drop", "forward"])),
    }
    if draw(st.booleans()):
        stateless |= {"default_counters": draw(some(counters)), "fragments_counters": draw(some(counters))}
    if draw(st.booleans()):
        stateless["rules"] = draw(stateless_rules())
    else:
        ranks = draw(st.lists(st.integers(1, 65535), max_size=3, unique=True))
        stateless["groups"] = [
            {
                "name": f"{draw(names)}{rank}",
                "priority": rank,
                "rules": draw(stateless_rules()),
                "arn": draw(arns),
                **draw(st.sampled_from([{}, {"capacity": 900}])),
            }
            for rank in ranks
        ]
    stateful: dict[str, Any] = {
        "order": order,
        "stream_exception": draw(st.sampled_from(["drop", "reject", "continue"])),
        "stream_depth": draw(st.sampled_from([0, 1000, 1 << 20])),
        "refresh": draw(st.sampled_from([0, 10, 60])),
    }
    if draw(st.booleans()):
        stateful |= {"threshold_file": "t.config", "classification_file": "c.config", "reference_file": "r.config"}
    if draw(st.booleans()):
        stateful["geoip"] = "countries.mmdb"
    if order == "strict":
        stateful["default_actions"] = draw(
            st.sampled_from([[], ["drop_strict"], ["drop_established", "alert_established"], ["alert_strict"]])
        )
    if draw(st.booleans()):
        stateful |= {"rule_files": ["two.rules", "one.rules"], "rules": draw(rule_texts(1, order))}
    else:
        stateful["groups"] = draw(stateful_groups(order))
    policy: dict[str, Any] = {
        "name": draw(names),
        "arn": draw(arns),
        "variables": draw(variables(4)),
        "stateless": stateless,
        "stateful": stateful,
    }
    if draw(st.booleans()):
        policy["tls"] = {
            "ca": draw(st.sampled_from(AUTHORITIES)),
            "arn": draw(arns),
            "scopes": [
                {**scope, **draw(st.sampled_from([{}, {"trust": ["system", "certs/ca.pem"]}, {"trust": ["ca.pem"]}]))}
                for scope in draw(some(endpoints()))
            ],
            "on_failure": draw(st.sampled_from(["drop", "reject"])),
            "session_holding": draw(st.booleans()),
            "keywords": draw(st.sampled_from(["all", "sni"])),
            "trust": draw(st.sampled_from([["system"], ["ca.pem"], ["system", "certs/ca.pem"]])),
            "revocation": {
                "check": draw(st.booleans()),
                "revoked": draw(st.sampled_from(["pass", "drop", "reject"])),
                "unknown": draw(st.sampled_from(["pass", "drop", "reject"])),
                **draw(
                    st.sampled_from([{}, {"allow": ["10.0.0.0/8", "fd00::/8"], "cache": "answers", "recheck": True}])
                ),
            },
            "actions": draw(st.sampled_from([{"weak": "pass"}, {"expired": "drop", "not_tls": "drop"}])),
            "distrust": draw(st.sampled_from([["ab" * 32], ["ca.pem"], ["cd" * 32, "certs/ca.pem"]])),
            "fetch_issuers": draw(st.booleans()),
            "resumption": draw(st.booleans()),
            "bypass": draw(
                st.sampled_from(
                    [
                        [{"sni": ["*.a.test", "b.test"], "sources": ["10.0.0.0/8"]}, {"sni": ["c.test"]}],
                        [{"sni": ["d.test"]}],
                    ]
                )
            ),
            "debug": draw(
                st.sampled_from(
                    [
                        {"key_log": "keys.txt", "sni": ["*.a.test"]},
                        {"capture": "plain.pcapng", "sources": ["10.0.0.0/8"], "max_size": 1 << 20},
                    ]
                )
            ),
            "inbound_upstream": draw(st.sampled_from(["pinned", "verified"])),
            "quic": draw(st.sampled_from(["pass", "drop", "reject"])),
            "strip_ech": draw(st.booleans()),
            "bypass_proof": draw(st.sampled_from([["certificate"], ["resolver", "certificate"], ["resolver"]])),
            "resolvers": draw(st.sampled_from([["192.0.2.53"], ["192.0.2.53", "2001:db8::53"]])),
            "without_sni": draw(st.sampled_from(["refuse", "address"])),
            **draw(st.sampled_from([{}, {"transparency": {"logs": ["logs.pem"], "require": True}}])),
        }
    if draw(st.booleans()):
        certificates = some(st.sampled_from([*AUTHORITIES, {"arn": "arn:aws:acm:x"}]), 3, False)
        policy["inbound"] = [
            {"certificates": draw(certificates), "scopes": draw(some(endpoints()))}
            for _ in range(draw(st.integers(1, 2)))
        ]
    if draw(st.booleans()):
        policy |= {
            "open_flows": {"which": draw(st.sampled_from(["all", "tls_scope", "none"])), "action": "reject"},
            "flows": {
                "max_flows": draw(st.integers(1024, 1 << 20)),
                "tcp_idle": draw(st.integers(60, 6000)),
                **{key: draw(st.integers(1, 900)) for key in ("tcp_opening", "udp", "icmp", "other")},
                "when_full": "refuse",
            },
            "mode": draw(st.sampled_from(["enforce", "monitor"])),
            "fail_open": draw(st.booleans()),
            "workers": draw(st.integers(1, 8)),
            "log": {
                "path": "eve.json",
                "events": draw(st.lists(st.sampled_from(["alert", "flow", "http"]), unique=True)),
                "keep": 9,
                "max_size": draw(st.sampled_from([1 << 20, 5 << 30])),
                "flow_interval": draw(st.sampled_from([0, 10, 86_400])),
                "stats_interval": draw(st.integers(1, 600)),
                "format": draw(st.sampled_from(["eve", "aws"])),
                "sinks": draw(st.lists(st.sampled_from(SINKS), max_size=3)),
            },
        }
    return without_nothing(policy)


AUTHORITIES = [
    {"certificate": "certs/ca.pem", "private_key": "certs/ca.key"},
    {"certificate": "ca.pem", "private_key": "ca.key", "arn": "arn:aws:acm:us-east-1:123456789012:certificate/1"},
]
SINKS = [
    {"type": "journald", "events": ["alert", "drop"]},
    {"type": "syslog", "address": "udp://192.0.2.9:514", "facility": "local3", "events": ["alert"]},
    {"type": "file", "path": "aws.json", "format": "aws", "keep": 2, "max_size": 1 << 20},
    {"type": "unix_stream", "path": "/run/collector.sock"},
]


def without_nothing(value: Any) -> Any:
    """Empty texts are not written."""
    if isinstance(value, dict):
        return {key: without_nothing(item) for key, item in value.items() if item != ""}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(policies())
def test_any_policy(folder: Path, content: dict[str, Any]) -> None:
    policy = from_yaml(json.dumps(content), folder)
    there_and_back(policy, folder)


def values(value: Any, found: dict[tuple[str, str], set[str]]) -> None:
    """Adds every field of every dataclass in ``value`` with what it holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            if each.compare:
                inner = getattr(value, each.name)
                found.setdefault((type(value).__name__, each.name), set()).add(repr(inner))
                values(inner, found)
    elif isinstance(value, (tuple, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            values(inner, found)


def test_the_strategy_makes_what_it_should(folder: Path) -> None:
    """Every field of the model has several values, both orders, groups and none, and each form of rules come up."""
    forms: set[str] = set()
    found: dict[tuple[str, str], set[str]] = {}
    wanted = {"domains", "five_tuple", "managed", "ungrouped", "stateless groups", "inbound"} | set(RuleOrder)
    fields = {
        (kind.__name__, each.name)
        for kind in (*vars(model).values(), StatelessRule, TcpFlagsMatch, TlsScope, Exemption)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in (PolicyError, Signature)
        for each in dataclasses.fields(kind)
        if each.compare
    } - {("StatelessRule", "file"), ("StatelessRule", "line")}  # where it is written

    def lacking() -> set[tuple[str, str]]:
        return {each for each in fields if len(found.get(each, ())) < 2}

    # Which examples come depends on the folder the sources are in, so there are many more than it takes.
    @settings(max_examples=600, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(policies())
    def note(content: dict[str, Any]) -> None:
        if forms >= wanted and not lacking():
            return
        policy = from_yaml(json.dumps(content), folder)
        values(policy, found)
        forms.add(policy.stateful.order)
        forms.update("domains" for group in policy.stateful.groups if group.domains)
        forms.update("five_tuple" for group in policy.stateful.groups if group.five_tuple)
        forms.update("managed" for group in policy.stateful.groups if group.managed)
        forms.update("ungrouped" for _ in policy.stateful.sources)
        forms.update("stateless groups" for _ in policy.stateless.groups)
        forms.update("inbound" for _ in policy.inbound)

    note()
    assert forms == wanted
    assert lacking() == set()


def test_output_elsewhere_names_the_same_files(folder: Path, tmp_path: Path) -> None:
    """Paths are relative to where the text is to stand, absolute where that is another tree."""
    policy = from_yaml("stateful: {rule_files: [one.rules]}", folder)
    template = write_template(policy)
    assert '"file": "one.rules"' in template
    from dataclasses import replace

    elsewhere = write_template(replace(policy, file=tmp_path / "x.template"))
    assert f'"file": "{os.fspath(folder)}/one.rules"' in elsewhere


def test_what_documents_say_beside_stays_or_is_told(tmp_path: Path) -> None:
    key = {"Type": "CUSTOMER_KMS", "KeyId": "arn:aws:kms:us-east-1:123456789012:key/1"}
    said = {"Description": "the web", "Tags": [{"Key": "team", "Value": "net"}]}
    web = awskit.group("web", awskit.stateful("pass tcp any any -> any 443 (sid:1;)"))
    web["RuleGroupResponse"] |= {**said, "EncryptionConfiguration": key}
    policy = awskit.policy(groups=("web",))
    policy["FirewallPolicyResponse"] = {
        **policy.get("FirewallPolicyResponse", {"FirewallPolicyName": "p"}),
        "Description": "egress",
        "Tags": [],
        "EncryptionConfiguration": {"Type": "AWS_OWNED_KMS_KEY", "KeyId": "AWS_OWNED_KMS_KEY"},
    }
    loaded = awskit.load(tmp_path, policy, web)
    resources = json.loads(write_template(loaded))["Resources"].values()
    (group,) = (one["Properties"] for one in resources if one["Type"].endswith("RuleGroup"))
    assert {key: group[key] for key in said} == said
    (whole,) = (one["Properties"] for one in resources if one["Type"].endswith("FirewallPolicy"))
    assert whole["Description"] == "egress"
    assert "Tags" not in whole
    assert [str(one).partition(": ")[2] for one in lost(loaded, "aws")] == [
        "EncryptionConfiguration of the rule group web left out: a template has no field for it"
    ]
    told = [str(one) for one in lost(loaded, "yaml")]
    assert len(told) == 2
    assert "Description and Tags and EncryptionConfiguration of the rule group web left out" in told[1]
    again = from_aws(write_template(loaded), tmp_path)  # the template has them, and gives them again
    assert {key: again.labels["STATEFUL", "web"].values[key] for key in said} == said


def test_labels_that_cannot_be_computed_are_no_error(tmp_path: Path) -> None:
    template = json.loads(write_template(from_yaml("name: p\n", tmp_path)))
    template["Resources"]["Policy"]["Properties"]["Description"] = {"Fn::ImportValue": "nobody-knows"}
    assert from_aws(json.dumps(template), tmp_path).labels == {}

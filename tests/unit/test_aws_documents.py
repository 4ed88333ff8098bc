"""AWS Network Firewall documents load unmodified, alone, together, from a folder; what is wrong is said all at once."""

from __future__ import annotations

import gc
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from engines.stateful.signature import Action
from nfw.generation import load_compiled
from nfw.policy import dump_policy, load_policy
from nfw.policy.compile import compile_policy
from nfw.policy.errors import Level, PolicyErrors
from nfw.policy.model import RuleOrder
from nfw.settings import GenerationSettings, pack, unpack
from tests.unit.awskit import (
    ARN,
    GOLDEN,
    NOW,
    RULE,
    counting,
    golden_folder,
    group,
    load,
    meaning,
    policy,
    refusal,
    stateful,
    stateless,
    stateless_rule,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_folder(tmp_path_factory.mktemp("aws"))


def test_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the golden documents arrives: ``policy.ok`` says what, ``policy.warnings`` what is told."""
    monkeypatch.chdir(folder)
    loaded = load_policy(".", map_file="map.yaml", check_key=True, now=NOW.timestamp())
    assert dump_policy(loaded) == (GOLDEN / "policy.ok").read_text()
    told = [f"{warning} [{warning.level.value}]\n" for warning in loaded.warnings]
    assert "".join(told) == (GOLDEN / "policy.warnings").read_text()
    compiled = compile_policy(loaded)
    assert len(compiled.ruleset.rules) == 11
    assert compiled.scopes is not None
    found = {(s.ref.gid, s.ref.id): s.action for s in loaded.stateful.signatures}
    assert found[3, 1000001] is Action.ALERT  # a drop, overridden
    assert found[3, 2] is Action.REJECT


def test_the_same_from_files_in_any_order(folder: Path) -> None:
    names = ["tls.json", "names.json", "egress.json", "policy.json", "edge.json", "desktop.json", "logging.json"]
    files = [folder / name for name in names]
    one = load_policy(*files, map_file=folder / "map.yaml", now=NOW.timestamp())
    other = load_policy(folder, map_file=folder / "map.yaml", now=NOW.timestamp())
    assert one == other


def test_one_file_with_everything(folder: Path, tmp_path: Path) -> None:
    """As a JSON list, one after the other, and as YAML."""
    files = sorted(folder.glob("*.json"))
    expected = load_policy(folder, map_file=folder / "map.yaml", now=NOW.timestamp())
    documents = [json.loads(file.read_text()) for file in files]
    for document, file in zip(documents, files, strict=True):
        if "RulesSource" in document:  # a bare body is called as its file
            document["RuleGroupName"] = file.stem
    for document in documents:
        if set(document) == {"RulesSource", "StatefulRuleOptions", "RuleGroupName"}:
            name = document.pop("RuleGroupName")
            document.update({"RuleGroup": dict(document), "RuleGroupName": name})
            del document["RulesSource"], document["StatefulRuleOptions"]
    texts = {
        "list.json": json.dumps(documents),
        "lines.json": "\n".join(json.dumps(document, indent="\t") for document in documents),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        loaded = load_policy(tmp_path / name, map_file=folder / "map.yaml", now=NOW.timestamp())
        assert meaning(loaded) == meaning(expected)


def test_yaml_documents(tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text(
        "RuleGroupName: web\nRuleGroup:\n  RulesSource:\n    RulesString: |\n"
        '      pass tcp any any -> any 443 (msg:"a"; sid:1;)\n      drop tcp any any -> any 80 (sid:x;)\n'
    )
    with pytest.raises(PolicyErrors) as caught:
        load_policy(tmp_path / "group.yaml")
    (error,) = caught.value
    assert (error.line, error.column) == (6, 39)
    assert error.message.startswith("stateful rule is invalid, rule: drop tcp any any -> any 80 (sid:x;), reason: ")


def test_rules_beside_the_name(tmp_path: Path) -> None:
    """``--rules`` of create-rule-group: the text is not in a RuleGroup."""
    loaded = load(tmp_path, {"RuleGroupName": "g", "Type": "STATEFUL", "Capacity": 5, "Rules": RULE})
    assert [s.sid for s in loaded.stateful.signatures] == [1]
    assert loaded.stateful.order is RuleOrder.ACTION


def test_groups_alone_are_checked_as_those_of_one_policy(tmp_path: Path) -> None:
    loaded = load(tmp_path, group("a", stateful()), group("b", stateless(stateless_rule()), "STATELESS"))
    assert [found.name for found in loaded.stateful.groups] == ["a"]
    assert [found.name for found in loaded.stateless.groups] == ["b"]
    assert "no FirewallPolicy among the documents" in str(loaded.warnings[0])


# -- what is refused, and how --------------------------------------------------------------------------------------

LIST = {"Targets": ["a.example"], "TargetTypes": ["TLS_SNI"], "GeneratedRulesType": "DENYLIST"}
HEADER = {
    "Protocol": "TCP",
    "Source": "ANY",
    "SourcePort": "ANY",
    "Direction": "FORWARD",
    "Destination": "ANY",
    "DestinationPort": "ANY",
}
TUPLE = {"Action": "PASS", "Header": HEADER, "RuleOptions": [{"Keyword": "sid", "Settings": ["1"]}]}


def source(**kinds: Any) -> dict[str, Any]:
    return {"RulesSource": kinds, "StatefulRuleOptions": {"RuleOrder": "STRICT_ORDER"}}


def tuple_(**changes: Any) -> dict[str, Any]:
    return source(StatefulRules=[{**TUPLE, **changes}])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (source(), "RulesString, RulesSourceList, StatefulRules must set exactly one of them, context: RulesSource"),
        (source(RulesString=RULE, RulesSourceList=LIST), "must set exactly one of them, context: RulesSource"),
        ({}, "RulesSource cannot be null or empty, context: RuleGroup"),
        (stateless(stateless_rule()), "StatelessRulesAndCustomActions is invalid, context: RulesSource"),
        (source(RulesString=5), "RuleGroup.RulesSource.RulesString: expected a string, got 5"),
        (source(RulesString=["a"]), "RuleGroup.RulesSource.RulesString: expected a string, got a list"),
        (source(RulesString="x" * 2_000_001), "Member must have length less than or equal to 2000000"),
        (
            stateful("pass tcp any any -> any any (sid:1;)", "STRICT"),
            "failed to satisfy constraint: Member must satisfy",
        ),
        (
            stateful("pass tcp any any -> any any (sid:1;)", "DEFAULT_ACTION_ORDER"),
            "ResourceArn has invalid rule order",
        ),
        (
            stateful("pass tcp any any -> any any (msg:1;)"),
            "stateful rule is invalid, rule: pass tcp any any -> any any",
        ),
        (stateful(f"{RULE}\n{RULE}"), "sid 1"),
        (stateful("pass tcp $NOPE any -> any any (sid:1;)"), "variable $NOPE is not defined"),
        (stateful("pass tcp @NOPE any -> any any (sid:1;)"), "variable @NOPE is not defined"),
        (
            stateful(RuleVariables={"IPSets": {"A": {"Definition": ["10.0.0.0/40"]}}}),
            "Definition is invalid, parameter",
        ),
        (
            stateful(RuleVariables={"IPSets": {"A": {"Definition": []}}}),
            "A cannot be null or empty, context: RuleGroup",
        ),
        (stateful(RuleVariables={"IPSets": {"1A": {"Definition": ["::/0"]}}}), "Map keys must satisfy constraint"),
        (stateful(RuleVariables={"PortSets": {"P": {"Definition": ["70000"]}}}), "Definition is invalid, parameter"),
        (
            stateful(RuleVariables={"IPSets": {"A": {"Definition": ["$B"]}, "B": {"Definition": ["$A"]}}}),
            "A is invalid, context: RuleGroup.RuleVariables; it refers to itself",
        ),
        (stateful(RuleVariables={"IPSets": {"A": {"Definition": ["$C"]}}}), "C cannot be null or empty, context:"),
        (
            stateful(ReferenceSets={"IPSetReferences": {"A": {"ReferenceArn": "arn:aws:ec2:x:1:prefix-list/pl-1"}}}),
            "ReferenceArn is invalid, parameter: [arn:aws:ec2:x:1:prefix-list/pl-1]",
        ),
        (source(RulesSourceList={}), "Targets cannot be null or empty, context: RuleGroup.RulesSource.RulesSourceList"),
        (source(RulesSourceList={**LIST, "Targets": ["*.a.example"]}), 'did you mean ".a.example"?'),
        (
            source(RulesSourceList={**LIST, "Targets": ["http://a/"]}),
            "Targets has invalid format, parameter: [http://a/]",
        ),
        (
            source(RulesSourceList={**LIST, "TargetTypes": ["SNI"]}),
            "Member must satisfy enum value set: [TLS_SNI, HTTP",
        ),
        (source(RulesSourceList={**LIST, "GeneratedRulesType": "DENY"}), 'did you mean "DENYLIST"?'),
        (source(StatefulRules=[]), "StatefulRules cannot be null or empty"),
        (tuple_(Action="BLOCK"), "Value 'BLOCK' at 'ruleGroup.rulesSource.statefulRules.1.member.action' failed"),
        (tuple_(Header={**HEADER, "Protocol": "SCTP"}), "Member must satisfy enum value set: [IP, TCP,"),
        (tuple_(Header={**HEADER, "Direction": "BACK"}), "Member must satisfy enum value set: [FORWARD, ANY]"),
        (tuple_(Header={"Protocol": "TCP"}), "DestinationPort cannot be null or empty"),
        (
            tuple_(Header={**HEADER, "Source": "x"}),
            "stateful rule is invalid, rule: pass tcp x any -> any any (sid:1;)",
        ),
        (tuple_(RuleOptions=[{"Keyword": "msg", "Settings": ['"a"']}]), "reason: sid not assigned"),
        (tuple_(RuleOptions=[{"Keyword": "sid", "Settings": ["1;) x"]}]), "stateful rule is invalid"),
        ([], "RuleGroup: expected an object, got a list"),
        ("x", 'RuleGroup: expected an object, got "x"'),
    ],
)
def test_stateful_groups(tmp_path: Path, body: Any, message: str) -> None:
    found = refusal(tmp_path, policy(groups=("g",)), group("g", body))
    assert any(message in line for line in found), found


HOSTS = [{"AddressDefinition": f"10.0.{n // 250}.{n % 250}"} for n in range(501)]
MANY = stateless_rule(Protocols=[6, 17], Destinations=HOSTS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (stateless(stateless_rule(), stateless_rule()), "Priority has duplicate values, parameter: [1], context: Stat"),
        (stateless(stateless_rule(0)), "Value '0' at 'ruleGroup.rulesSource.statelessRulesAndCustomActions.statelessR"),
        (stateless(stateless_rule(65536)), "Member must have value less than or equal to 65535"),
        (stateless({"Priority": 1}), "RuleDefinition cannot be null or empty"),
        (stateless(stateless_rule(action="aws:block")), "Actions is invalid, parameter: [aws:block], context: Statele"),
        (stateless(stateless_rule(action="Count"), actions=(counting(),)), "Actions cannot be null or empty, context"),
        (stateless(stateless_rule(Protocols=[1], SourcePorts=[{"FromPort": 1, "ToPort": 2}])), "SourcePorts, Protocol"),
        (stateless(stateless_rule(Protocols=[17], TCPFlags=[{"Flags": ["SYN"]}])), "TCPFlags, Protocols cannot exist"),
        (stateless(stateless_rule(Protocols=[6], TCPFlags=[{"Flags": ["SYN"], "Masks": ["ACK"]}])), "Flags is invalid"),
        (stateless(stateless_rule(TCPFlags=[{"Flags": ["XYZ"]}])), "enum value set: [FIN, SYN, RST, PSH, ACK, URG, EC"),
        (stateless(stateless_rule(DestinationPorts=[{"FromPort": 9, "ToPort": 2}])), "FromPort, ToPort is not within"),
        (stateless(stateless_rule(DestinationPorts=[{"FromPort": 9}])), "ToPort cannot be null or empty"),
        (stateless(stateless_rule(Sources=[{"AddressDefinition": "10.0.0.0/33"}])), "AddressDefinition is invalid, pa"),
        (stateless(stateless_rule(Sources=["10.0.0.0/8"])), "Sources[0]: expected an object"),
        (stateless(stateless_rule(Protocols=[256])), "Member must have value between 0 and 255"),
        (stateless(stateless_rule(Protocols=["tcp"])), "expected protocol numbers"),
        (stateless(stateless_rule(), actions=(counting("Count-1"),)), "regular expression pattern: ^[a-zA-Z0-9]+$"),
        (stateless(stateless_rule(), actions=(counting(value="a/b"),)), "regular expression pattern: ^[a-zA-Z0-9-_ ]+"),
        (stateless(stateless_rule(), actions=(counting(), counting())), "ActionName has duplicate values, parameter"),
        (stateful(), "RulesString is invalid, context: RulesSource.StatelessRulesAndCustomActions"),
        ({**stateless(stateless_rule()), "RuleVariables": {}}, "RuleVariables cannot be provided, context: RuleVariab"),
        (
            stateless(MANY),
            "StatelessRules capacity exceeded, parameter: [1002], context: StatelessRulesAndCustomActions.StatelessRul",
        ),
    ],
)  # fmt: skip
def test_stateless_groups(tmp_path: Path, body: Any, message: str) -> None:
    reference = {"ResourceArn": f"{ARN}stateless-rulegroup/g", "Priority": 1}
    found = refusal(tmp_path, policy(StatelessRuleGroupReferences=[reference]), group("g", body, "STATELESS"))
    assert any(message in line for line in found), found


def reference(name: str = "g", **more: Any) -> dict[str, Any]:
    return {"ResourceArn": f"{ARN}stateful-rulegroup/{name}", "Priority": 1, **more}


LESS = f"{ARN}stateless-rulegroup/less"
MANAGED = "arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"StatelessDefaultActions": []},
            "StatelessDefaultActions cannot be null or empty, context: StatelessDefaultAct",
        ),
        ({"StatelessDefaultActions": ["aws:pass", "aws:drop"]}, "StatelessDefaultActions cannot exist together"),
        (
            {"StatelessFragmentDefaultActions": ["Count"]},
            "StatelessFragmentDefaultActions is invalid, parameter: [Count]",
        ),
        ({"StatefulDefaultActions": ["aws:drop"]}, "StatefulDefaultActions is invalid, parameter: [aws:drop]"),
        (
            {"StatefulDefaultActions": ["aws:drop_strict", "aws:drop_established"]},
            "StatefulDefaultActions cannot exist together, parameter: [aws:drop_strict, aws:drop_established], context",
        ),
        (
            {"StatefulDefaultActions": ["drop_strict", "aws:drop_strict", "aws:drop_established"]},
            "StatefulDefaultActions cannot exist together, parameter: [aws:drop_strict, aws:drop_established], context",
        ),
        (
            {"StatefulDefaultActions": ["aws:drop_established", "aws:alert_established_app_layer"]},
            "StatefulDefaultActions cannot exist together",
        ),
        (
            {"StatefulEngineOptions": {}, "StatefulDefaultActions": ["aws:drop_strict"]},
            "StatefulDefaultActions has invalid rule order, parameter: [DEFAULT_ACTION_ORDER]",
        ),
        ({"StatefulEngineOptions": {"RuleOrder": "STRICT"}}, 'did you mean "STRICT_ORDER"?'),
        ({"StatefulEngineOptions": {"StreamExceptionPolicy": "PASS"}}, "enum value set: [DROP, REJECT, CONTINUE]"),
        (
            {"StatefulEngineOptions": {"RuleOrder": "STRICT_ORDER", "FlowTimeouts": {"TcpIdleTimeoutSeconds": 59}}},
            "Value '59' at 'firewallPolicy.statefulEngineOptions.flowTimeouts.tcpIdleTimeoutSeconds' failed to satisfy",
        ),
        (
            {"StatefulRuleGroupReferences": [reference("x")]},
            f"rule group ARN does not exist, parameter: [{ARN}stateful",
        ),
        (
            {"StatefulRuleGroupReferences": [{"ResourceArn": f"{ARN}stateful-rulegroup/g"}]},
            "Priority cannot be null, con",
        ),
        (
            {"StatefulRuleGroupReferences": [reference(), reference("h")]},
            "Priority has duplicate values, parameter: [1]",
        ),
        ({"StatefulRuleGroupReferences": [reference(), reference(Priority=2)]}, "ResourceArn has duplicate values"),
        ({"StatefulRuleGroupReferences": [{**reference(), "ResourceArn": LESS}]}, "rule group ARN is of incorrect ent"),
        (
            {"StatefulEngineOptions": {}, "StatefulRuleGroupReferences": [reference("h")]},
            "Priority cannot be provided, context: StatefulRuleGroupReferences[0]",
        ),
        (
            {"StatefulRuleGroupReferences": [{"ResourceArn": f"{MANAGED}BotNetStrictOrder", "Priority": 1}]},
            "the rules of the managed rule group BotNetStrictOrder are not in the documents",
        ),
        (
            {"StatefulRuleGroupReferences": [{"ResourceArn": f"{MANAGED}BotNetActionOrder", "Priority": 1}]},
            "expected BotNetStrictOrder",
        ),
        (
            {"StatefulRuleGroupReferences": [reference(Override={"Action": "DROP"})]},
            "Member must satisfy enum value set: [DROP_TO_ALERT]",
        ),
        (
            {"PolicyVariables": {"RuleVariables": {"EXTERNAL_NET": {"Definition": ["0.0.0.0/0"]}}}},
            "RuleVariables is invalid, parameter: [EXTERNAL_NET], context: PolicyVariables.RuleVariables.IPSet.EXTERNA",
        ),
        (
            {"PolicyVariables": {"RuleVariables": {"HOME_NET": {"Definition": ["$HOME_NET"]}}}},
            "HOME_NET is invalid",
        ),
        (
            {"TLSInspectionConfigurationArn": f"{ARN}tls-configuration/t"},
            "TLS inspection configuration ARN does not exist",
        ),
        (
            {"EnableTLSSessionHolding": True},
            "TLSInspectionConfigurationArn value is required when EnableTLSSessionHolding",
        ),
        ({"EnableTLSSessionHolding": "yes"}, "expected true or false"),
        ({"StatelessRuleGroupReferences": "edge"}, "expected a list"),
        (
            {"StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/less"}]},
            "Priority cannot be null",
        ),
    ],
)
def test_policies(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    groups = (
        group("g", stateful()),
        group("h", stateful(order="DEFAULT_ACTION_ORDER" if "StatefulEngineOptions" in changes else "STRICT_ORDER")),
        group("less", stateless(stateless_rule()), "STATELESS"),
    )
    found = refusal(tmp_path, policy(**changes), *groups)
    assert any(message in line for line in found), found


CA, SERVER = "arn:aws:acm:us-east-1:123456789012:certificate/1", "arn:aws:acm:us-east-1:123456789012:certificate/2"
SCOPE: dict[str, Any] = {"DestinationPorts": [{"FromPort": 443, "ToPort": 443}], "Protocols": [6]}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"Scopes": [SCOPE]}, "ServerCertificates or CertificateAuthorityArn is required."),
        ({"CertificateAuthorityArn": CA}, "Scopes cannot be null or empty"),
        (
            {"CertificateAuthorityArn": "arn:x", "Scopes": [SCOPE]},
            "CertificateAuthorityArn is invalid, parameter: [arn:x]",
        ),
        (
            {"CertificateAuthorityArn": CA, "Scopes": [{**SCOPE, "Protocols": [17]}]},
            "Protocols is unsupported, parameter",
        ),
        ({"CertificateAuthorityArn": CA, "Scopes": [{**SCOPE, "DecryptionAction": "BYPASS"}]}, "are not supported"),
        (
            {
                "ServerCertificates": [{"ResourceArn": SERVER}],
                "Scopes": [SCOPE],
                "CheckCertificateRevocationStatus": {"RevokedStatusAction": "DROP"},
            },
            "CertificateAuthorityArn is required when enabling CheckCertificateRevocationStatus.",
        ),
        (
            {
                "CertificateAuthorityArn": CA,
                "Scopes": [SCOPE],
                "CheckCertificateRevocationStatus": {"RevokedStatusAction": "ALLOW"},
            },
            "Member must satisfy enum value set: [PASS, DROP, REJECT]",
        ),
    ],
)
def test_tls(folder: Path, tmp_path: Path, configuration: dict[str, Any], message: str) -> None:
    known = f"certificates: {{'{CA}': {{certificate: {folder}/ca.pem, private_key: {folder}/ca.key}}}}"
    tls = {
        "TLSInspectionConfiguration": {"ServerCertificateConfigurations": [configuration]},
        "TLSInspectionConfigurationName": "t",
    }
    arn = f"{ARN}tls-configuration/t"
    found = refusal(tmp_path, policy(TLSInspectionConfigurationArn=arn), tls, known=known)
    assert any(message in line for line in found), found


def test_every_error_at_once(tmp_path: Path) -> None:
    body = stateless(
        stateless_rule(5, Protocols=[300]), stateless_rule(5), stateless_rule(6, action="aws:x"), stateless_rule(70000)
    )
    reference = {"ResourceArn": f"{ARN}stateless-rulegroup/g", "Priority": 1}
    changes = {"StatelessRuleGroupReferences": [reference], "StatefulDefaultActions": ["aws:drop"]}
    found = refusal(tmp_path, policy(groups=("missing",), **changes), group("g", body, "STATELESS"))
    assert len(found) == 6, found
    assert [line.split(":")[0] for line in found] == ["0.json", "0.json", "1.json", "1.json", "1.json", "1.json"]


def test_a_rule_in_a_json_string_has_its_place(tmp_path: Path) -> None:
    """Line and column are those of the file, not of the string's value."""
    rules = 'pass tcp any any -> any 443 (msg:"a\\;b"; sid:1;)\ndrop tcp any any -> any 80 (msg:"x"; nonsense; sid:2;)'
    (found,) = refusal(tmp_path, policy(groups=("g",)), group("g", stateful(rules)))
    line, column = (int(part) for part in found.split(":")[1:3])
    text = (tmp_path / "1.json").read_text().split("\n")[line - 1]
    assert text[column - 1 :].startswith("nonsense; sid:2;")


def test_unknown_fields_are_warnings_that_name_the_nearest(tmp_path: Path) -> None:
    body = stateful(RuleVariable={})
    loaded = load(tmp_path, policy(groups=("g",), StatefulDefaultAction=["aws:drop_strict"]), group("g", body))
    told = [str(warning) for warning in loaded.warnings]
    assert any(
        'unknown field "RuleVariable" in RuleGroup, ignored; did you mean "RuleVariables"?' in line for line in told
    )
    assert any('did you mean "StatefulDefaultActions"?' in line for line in told)


def test_what_only_aws_refuses_loads(tmp_path: Path) -> None:
    """Its limits are not this machine's."""
    groups = [group(f"g{number}", stateful()) for number in range(21)]
    loaded = load(tmp_path, policy(groups=tuple(f"g{number}" for number in range(21))), *groups)
    (told,) = loaded.warnings
    assert told.level is Level.AWS_REFUSES
    assert "StatefulRuleGroupReferences limit exceeded, parameter: [21], context: StatefulRuleGroupReferences" in str(
        told
    )
    assert len(loaded.stateful.signatures) == 21


GROUP = group("g", stateful())
BARE = {"RuleGroupName": "g", "RuleGroup": stateful()}


@pytest.mark.parametrize(
    ("documents", "name", "message"),
    [
        ([{"LoggingConfiguration": {"LogDestinationConfigs": []}}], "", "no FirewallPolicy among the documents"),
        ([policy(), policy()], "", "2 policies among the documents: p, p; expected --name"),
        ([policy()], "q", "no policy q among the documents; given: p"),
        ([group("g", stateful())], "q", "no policy q among the documents; there is none: leave --name out"),
        ([policy(), policy()], "p", "2 policies among the documents: p, p; expected --name"),
        ([policy(groups=("g",)), GROUP, GROUP], "", f"RuleGroup {ARN}stateful-rulegroup/g is already in 1.json:"),
        ([policy(groups=("g",)), {**BARE}, {**BARE}], "", "rule group ARN is ambiguous, parameter: ["),
        ([{"FirewallPolicyV2": {}}], "", "policies of the Next Generation are not supported"),
        ([{"RuleGroup": {}, "RuleGroupResponse": []}], "", "RulesSource cannot be null or empty"),
        ([[1, 2], policy(StatelessDefaultActions=1)], "", "expected a list, got 1"),
    ],
)
def test_what_is_among_the_documents(tmp_path: Path, documents: list[Any], name: str, message: str) -> None:
    found = refusal(tmp_path, *documents, name=name)
    assert any(message in line for line in found), found


def test_a_policy_is_chosen_by_name_or_by_its_firewall(tmp_path: Path) -> None:
    first, second = policy(), policy(StatefulEngineOptions={"StreamExceptionPolicy": "CONTINUE"})
    second["FirewallPolicyResponse"] = {"FirewallPolicyName": "q", "FirewallPolicyArn": f"{ARN}firewall-policy/q"}
    firewall = {"Firewall": {"FirewallName": "gate", "FirewallPolicyArn": f"{ARN}firewall-policy/q", "VpcId": "vpc-1"}}
    assert load(tmp_path, first, second, name="q").name == "q"
    assert load(tmp_path, first, second, name="p").name == "p"
    assert load(tmp_path, first, second, firewall, name="gate").name == "q"
    assert load(tmp_path, first, second, firewall).name == "q"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"RuleGroup": {"RulesSource": {"RulesString": "a', "not valid JSON: unterminated string"),
        ('{"RuleGroup": 1,}', "not valid JSON: expected a key in double quotes"),
        ('{"RuleGroup": {}} trailing', 'not valid JSON: expected a value, found "trailing"'),
        ('{"RuleGroup": {}, "RuleGroup": {}}', 'duplicate key "RuleGroup"; it is already on line 1'),
        ("[" * 100, "nested more than 32 levels deep"),
        (b'{"RuleGroup": "\xff"}', "byte 0xff is not valid UTF-8"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "group.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PolicyErrors, match=r"group\.json:1:\d+: ") as caught:
        load_policy(path)
    assert message in str(caught.value)


TERRAFORM = 'resource "aws_networkfirewall_rule_group" "g" {\n  capacity = 100\n}\n'
PRINTED = "RULEGROUPRESPONSE\t100\t2\tx\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "plan.json",
            '{"format_version": "1.2", "terraform_version": "1.9", "planned_values": {}}',
            "plan or state of T",
        ),
        ("main.tf", f"# egress\n/* a\n b */ {TERRAFORM}", "this is Terraform's own language; expected AWS's documents"),
        (
            "list.json",
            '{"RuleGroups": [{"Name": "g", "Arn": "x"}]}',
            "this is what list-rule-groups prints, names alone",
        ),
        ("group.txt", PRINTED, "expected --output json or yaml"),
        ("group.txt", "-" * 40 + "\n|   DescribeRuleGroup  |\n", "expected --output json or yaml"),
        ("egress.rules", f"# mine\n{RULE}\n", "these are stateful rules, not a policy; expected a policy that names"),
        ("group.json", '{"RuleGruop": {}}', 'unknown key "RuleGruop"; did you mean "RuleGroup"?'),
        (
            "group.json",
            '{"FirewallPolcy": {}, "Tags": []}',
            'unknown key "FirewallPolcy"; did you mean "FirewallPolicy"?',
        ),
        ("group.json", '{"RuleGroup": {}}'.encode("utf-16"), "the file is UTF-16, as Windows PowerShell's > writes it"),
        ("group.json", '{"RuleGroup": {}}'.encode("utf-16-be"), "the file is UTF-16"),
        ("group.json", gzip.compress(b"{}"), "the file is compressed; expected UTF-8 text"),
    ],
)
def test_files_of_the_same_tools_that_hold_no_policy(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PolicyErrors) as caught:
        load_policy(path)
    (error,) = caught.value
    assert message in error.message
    assert (error.line, error.column) != (0, 0)


def test_a_list_of_names_beside_the_documents_is_left_aside(tmp_path: Path) -> None:
    loaded = load(tmp_path, policy(), {"RuleGroups": [{"Name": "g", "Arn": "x"}]})
    (told,) = loaded.warnings
    assert "ignored; this is what list-rule-groups prints" in told.message


def test_one_mistake_is_told_once(tmp_path: Path) -> None:
    """What follows from a value of the wrong kind is not told besides it."""
    header = {**HEADER, "SourcePort": 80, "Destination": ["10.0.0.0/8"]}
    lists = source(RulesSourceList={**LIST, "TargetTypes": "TLS_SNI"})
    changes = {"StatelessDefaultActions": "aws:pass", "StatelessFragmentDefaultActions": None}
    groups = (
        group("g", tuple_(Header=header)),
        group("h", lists),
        group("i", "{}"),
        group("k", stateful(order="STRICT")),
    )
    found = refusal(tmp_path, policy(groups=("g", "h", "i", "k"), **changes), *groups)
    places = [":".join(line.split(":")[:3]) for line in found]
    assert len(set(places)) == len(places) == 7, found
    assert [place.split(":")[0] for place in places] == ["0.json"] * 2 + ["1.json"] * 2 + ["2.json", "3.json", "4.json"]


def test_wrong_rules_are_told_with_wrong_variables(tmp_path: Path) -> None:
    """But not that a variable is missing which was refused."""
    rules = "pass tcp $A any -> any any (sid:1;)\npass tcp any any > any any (sid:2;)"
    variables = {
        "IPSets": {"A": {"Definition": ["10.0.0.0/40"]}, "B": {"Definition": ["$C"]}, "C": {"Definition": ["$B"]}}
    }
    found = refusal(tmp_path, policy(groups=("g",)), group("g", stateful(rules, RuleVariables=variables)))
    assert len(found) == 4, found
    text = (tmp_path / "1.json").read_text().split("\n")
    for line in found:
        at, message = int(line.split(":")[1]), line.partition(" ")[2]
        if "refers to itself" in message:
            assert f'"{message[0]}": {{' in text[at - 1]
    assert any("expected ->, <> or => between source and destination, found '>'" in line for line in found)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (path,) = write(tmp_path, policy())
    with pytest.raises(PolicyErrors, match="map file does not exist"):
        load_policy(path, map_file=tmp_path / "none.yaml")
    with pytest.raises(PolicyErrors, match="policy file does not exist"):
        load_policy(path, tmp_path / "none.json")
    (tmp_path / "own.yaml").write_text("name: own")
    with pytest.raises(PolicyErrors, match="are policies of nfw's own, loaded one at a time"):
        load_policy(tmp_path / "own.yaml", tmp_path / "own.yaml")
    with pytest.raises(PolicyErrors, match="a map file goes with AWS documents"):
        load_policy(tmp_path / "own.yaml", map_file=tmp_path / "own.yaml")


def test_a_policy_of_ones_own_as_json_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": "own", "stateful": {"rules": [RULE, 'drop tcp any any -> any 1 (\t"sid:2;)']}}))
    with pytest.raises(PolicyErrors) as caught:
        load_policy(path)
    (error,) = caught.value
    assert path.read_text()[error.column - 1 :].startswith('\\"sid:2;)')
    path.write_text(json.dumps({"name": "own", "stateful": {"rules": [RULE]}}))
    assert load_policy(path, name="own").name == "own"
    with pytest.raises(PolicyErrors, match="no policy other here; given: own"):
        load_policy(path, name="other")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ("certificate: {}", 'unknown key "certificate" in map; did you mean "certificates"?'),
        ("ip_sets: {'arn:x': [x]}", '"x" is not an address or prefix'),
        ("ip_sets: {'arn:x': []}", "the list is empty"),
        ("ip_sets: {'arn:x': 192.0.2.0/24}", "for an address write a list, [192.0.2.0/24]"),
        ("rule_groups: {A: []}", 'rule_groups: expected rule files or "skip"'),
        ("home_net: 10.0.0.0/8", "home_net: expected a list"),
        ("settings: {open_flows: {which: some}}", "which: expected all, tls_scope or none"),
        ("settings: {tls: {scope_trust: [{scope: 1, trust: [system]}]}}", "there is no scope 1; the documents have 0"),
        ("settings: {tls: {scope_trust: [{scope: 0, trust: [system]}]}}", "scope: 0 is out of range"),
        ("settings: {tls: {scope_trust: [{scope: 1}]}}", "trust"),
        ("settings: {name: x}", 'unknown key "name" in settings'),
        ("certificates: {a: {certificate: x}}", 'certificates lacks "private_key"'),
        ("[]", "map: expected a mapping"),
    ],
)
def test_wrong_map_files(tmp_path: Path, known: str, message: str) -> None:
    found = refusal(tmp_path, policy(), known=known)
    assert any(message in line for line in found), found
    assert all(line.startswith("map.yaml:1:") for line in found)


def test_what_a_generation_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings reach the leader as msgpack, and it loads what they name: twice, the second time from the cache."""
    monkeypatch.setenv("NFW_CACHE", str(tmp_path / "cache"))
    other = policy()
    other["FirewallPolicyResponse"] = {"FirewallPolicyName": "other"}
    reference = {"ResourceArn": f"{MANAGED}BotNetStrictOrder", "Priority": 2}
    wanted = policy(groups=("g",))
    wanted["FirewallPolicy"]["StatefulRuleGroupReferences"].append(reference)
    first, *more = map(str, write(tmp_path, wanted, group("g", stateful()), other))
    (tmp_path / "bot.rules").write_text("drop tcp any any -> any 6667 (sid:1;)\n")
    (tmp_path / "map.yaml").write_text("rule_groups: {BotNetStrictOrder: bot.rules}\n")
    sent = GenerationSettings(1, first, 5100, 0xFFF00000, tuple(more), str(tmp_path / "map.yaml"), "p")
    _, body = unpack(pack("start", sent))
    told = GenerationSettings(**body)
    try:
        for _ in range(2):
            compiled = load_compiled(told.policy, *told.more, map_file=told.map_file, name=told.name)
            found = [(rule.signature.ref.gid, rule.signature.sid) for rule in compiled.ruleset.rules]
            assert (compiled.policy.name, found) == ("p", [(1, 1), (2, 1)])
    finally:
        gc.unfreeze()

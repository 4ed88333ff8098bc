"""CloudFormation templates: resources, what refers within the template, and what leads out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nfw.policy import Policy, load_policy
from nfw.policy.errors import PolicyErrors
from tests.unit.awskit import NOW, stateful, stateless, stateless_rule

YAML = """\
AWSTemplateFormatVersion: "2010-09-09"
Parameters:
  Environment: {Type: String, Default: test}
  Partner: {Type: String}
  Denied: {Type: CommaDelimitedList, Default: "bad.example, .worse.example"}
  Units: {Type: Number, Default: 20}
Mappings:
  Ports: {test: {tls: "8443"}, prod: {tls: "443"}}
Conditions:
  IsProd: !Equals [!Ref Environment, prod]
  Logs: !Or [!Condition IsProd, !Not [!Equals [!Ref "AWS::Region", nowhere]]]
Resources:
  Vpc:
    Type: AWS::EC2::VPC
    Properties: {CidrBlock: 10.0.0.0/16}
  Egress:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: !Sub "egress-${Environment}"
      Type: STATEFUL
      Capacity: !Ref Units
      RuleGroup:
        RuleVariables:
          IPSets: {PARTNER: {Definition: [!Ref Partner]}}
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource:
          RulesString: !Sub
            - |
              pass tcp $HOME_NET any -> $PARTNER ${Port} (msg:"to ${!partner}"; sid:1;)
              drop tcp any any -> any any (msg:"${AWS::StackName}"; sid:2;)
            - Port: !FindInMap [Ports, !Ref Environment, tls]
  Names:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: names
      Type: STATEFUL
      Capacity: "10"
      RuleGroup:
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource:
          RulesSourceList:
            Targets: !Ref Denied
            TargetTypes: [TLS_SNI]
            GeneratedRulesType: !If [IsProd, DENYLIST, ALERTLIST]
  OnlyInProd:
    Type: AWS::NetworkFirewall::RuleGroup
    Condition: IsProd
    Properties:
      RuleGroupName: prod
      Type: STATEFUL
      Capacity: 1
      RuleGroup:
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource: {RulesString: !Join ["", ["drop ip any any -> any any (", "sid:3;)"]]}
  Edge:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: edge
      Type: STATELESS
      Capacity: 2
      RuleGroup:
        RulesSource:
          StatelessRulesAndCustomActions:
            StatelessRules:
              - Priority: "7"
                RuleDefinition:
                  MatchAttributes:
                    Sources: [{AddressDefinition: !Select [0, !Split [",", "10.9.0.0/16,10.8.0.0/16"]]}]
                    Protocols: ["6"]
                    DestinationPorts: [{FromPort: "80", ToPort: !FindInMap [Ports, prod, tls]}]
                  Actions: [aws:drop]
  Policy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    Properties:
      FirewallPolicyName: !Join ["-", [egress, !Ref Environment]]
      FirewallPolicy:
        StatelessDefaultActions: ["aws:forward_to_sfe"]
        StatelessFragmentDefaultActions: ["aws:drop"]
        StatelessRuleGroupReferences: [{ResourceArn: !GetAtt Edge.RuleGroupArn, Priority: 1}]
        StatefulEngineOptions: {RuleOrder: STRICT_ORDER}
        StatefulRuleGroupReferences:
          - {ResourceArn: !Ref Egress, Priority: 1}
          - ResourceArn: !Sub "arn:${AWS::Partition}:network-firewall:${AWS::Region}:1:stateful-rulegroup/names"
            Priority: 2
          - !If [IsProd, {ResourceArn: !Ref OnlyInProd, Priority: 3}, !Ref "AWS::NoValue"]
        PolicyVariables: {RuleVariables: {HOME_NET: {Definition: ["10.0.0.0/16"]}}}
  Firewall:
    Type: AWS::NetworkFirewall::Firewall
    Properties:
      FirewallName: gate
      FirewallPolicyArn: !Ref Policy
      VpcId: !Ref Vpc
      SubnetMappings: []
"""


def load(directory: Path, text: str, known: str = "parameters: {Partner: 203.0.113.0/24}") -> Policy:
    (directory / "template.yaml").write_text(text)
    (directory / "map.yaml").write_text(known)
    return load_policy(directory / "template.yaml", map_file=directory / "map.yaml", now=NOW.timestamp())


def refusal(directory: Path, text: str, known: str = "parameters: {Partner: 203.0.113.0/24}") -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        load(directory, text, known)
    return [str(error).replace(f"{directory}/", "") for error in caught.value]


def test_everything_within_the_template(tmp_path: Path) -> None:
    loaded = load(tmp_path, YAML)
    assert loaded.name == "egress-test"
    first, second = loaded.stateful.groups
    assert (first.name, first.capacity, second.name) == ("egress-test", 20, "names")
    assert first.variables.addresses == {"PARTNER": ("203.0.113.0/24",)}
    assert first.sources[0].text == (
        'pass tcp $HOME_NET any -> $PARTNER 8443 (msg:"to ${partner}"; sid:1;)\n'
        'drop tcp any any -> any any (msg:"stack"; sid:2;)\n'
    )
    assert second.domains is not None
    assert second.domains.targets == ("bad.example", ".worse.example")
    assert second.domains.action.value == "alert"
    (rule,) = loaded.stateless.rules
    assert (rule.priority, rule.protocols, rule.destination_ports) == (7, (6,), ((80, 443),))
    assert str(rule.sources[0]) == "10.9.0.0/16"


def test_numbers_for_texts_and_options_in_one_word(tmp_path: Path) -> None:
    """As templates are written, and CloudFormation takes them."""
    text = """\
Resources:
  Web:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: web
      Type: STATEFUL
      Capacity: 10
      RuleGroup:
        RuleVariables: {PortSets: {ALT: {Definition: [8080, 8443]}}}
        RulesSource:
          StatefulRules:
            - Action: PASS
              Header:
                {Protocol: TCP, Source: ANY, SourcePort: $ALT,
                 Direction: FORWARD, Destination: ANY, DestinationPort: 443}
              RuleOptions:
                - Keyword: 'msg:"a\\; b"'
                - {Keyword: sid, Settings: [7]}
                - Keyword: rev:1
"""
    (group,) = load(tmp_path, text).stateful.groups
    assert group.sources[0].text == 'pass tcp any $ALT -> any 443 (msg:"a\\; b"; sid:7; rev:1;)'
    assert group.variables.ports == {"ALT": ("8080", "8443")}


def test_parameters_of_the_map_file_choose(tmp_path: Path) -> None:
    loaded = load(tmp_path, YAML, "parameters: {Partner: 203.0.113.0/24, Environment: prod, Denied: [x.example]}")
    assert [group.name for group in loaded.stateful.groups] == ["egress-prod", "names", "prod"]
    assert loaded.stateful.groups[1].domains is not None
    assert loaded.stateful.groups[1].domains.targets == ("x.example",)
    assert loaded.stateful.groups[1].domains.action.value == "deny"
    assert [each.sid for each in loaded.stateful.signatures] == [1, 2, 1, 3]


def test_json_and_its_long_forms(tmp_path: Path) -> None:
    template: dict[str, Any] = {
        "Resources": {
            "Edge": {
                "Type": "AWS::NetworkFirewall::RuleGroup",
                "Properties": {
                    "RuleGroupName": "edge",
                    "Type": "STATELESS",
                    "Capacity": 5,
                    "RuleGroup": stateless(stateless_rule()),
                },
            },
            "Egress": {
                "Type": "AWS::NetworkFirewall::RuleGroup",
                "Properties": {"RuleGroupName": "g", "Type": "STATEFUL", "Capacity": 5, "RuleGroup": stateful()},
            },
            "Policy": {
                "Type": "AWS::NetworkFirewall::FirewallPolicy",
                "Properties": {
                    "FirewallPolicyName": "p",
                    "FirewallPolicy": {
                        "StatelessDefaultActions": ["aws:pass"],
                        "StatelessFragmentDefaultActions": ["aws:pass"],
                        "StatelessRuleGroupReferences": [{"ResourceArn": {"Ref": "Edge"}, "Priority": 1}],
                        "StatefulEngineOptions": {"RuleOrder": "STRICT_ORDER"},
                        "StatefulRuleGroupReferences": [
                            {"ResourceArn": {"Fn::GetAtt": ["Egress", "RuleGroupArn"]}, "Priority": 1}
                        ],
                    },
                },
            },
        }
    }
    path = tmp_path / "stack.template"
    path.write_text(json.dumps(template))
    loaded = load_policy(path)
    assert [rule.group for rule in loaded.stateless.rules] == ["edge"]
    assert [each.sid for each in loaded.stateful.signatures] == [1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("!Ref Egress,", "!Ref Egres,", '"Egres" is no resource or parameter of the template; did you mean "Egress"?'),
        ("!GetAtt Edge.RuleGroupArn", "!GetAtt Edgy.RuleGroupArn", '"Edgy" is not a resource of the template; did you'),
        ("!Ref Egress,", "!ImportValue Egress,", "Fn::ImportValue leads out of the template"),
        ("!Ref Egress,", "!GetAZs x,", "Fn::GetAZs leads out of the template"),
        ("Ports, prod, tls", "Ports, prod, ssh", "Fn::FindInMap: the template's Mappings hold no such key"),
        ("Select [0,", "Select [9,", "Fn::Select: wrong arguments"),
        (
            "!If [IsProd, DENYLIST",
            "!If [IsProt, DENYLIST",
            'condition "IsProt" is not defined in the template; did you',
        ),
        ("!Equals [!Ref Environment, prod]", "!Condition IsProd", 'condition "IsProd" refers to itself'),
        ("!Equals [!Ref Environment, prod]", "!Equals [a]", "Fn::Equals: expected Fn::Equals, Fn::And"),
        ("!Equals [!Ref Environment, prod]", "prod", "expected Fn::Equals, Fn::And, Fn::Or, Fn::Not or the name of a"),
        ("Port: !Find", "Prt: !Find", '"Port" is no resource or parameter'),
        (
            "RuleOrder: STRICT_ORDER}\n        Rules",
            "RuleOrder: !Ref Vpc}\n        Rules",
            "Value 'Vpc' at 'ruleGroup.stat",
        ),
        ("!Ref Egress,", "[a],", "FirewallPolicy.StatefulRuleGroupReferences[0].ResourceArn: expected a string, got a"),
        ("    Properties:\n      FirewallName", "    Props:\n      FirewallName", "resource Firewall lacks Properties"),
        ("sid:2;)", "sid:2; nonsense;)", "unknown keyword 'nonsense'"),
    ],
)
def test_what_does_not_resolve(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in YAML
    found = refusal(tmp_path, YAML.replace(old, new))
    assert any(message in line for line in found), found
    assert all(line.startswith("template.yaml:") for line in found)


def test_a_parameter_without_a_value(tmp_path: Path) -> None:
    found = refusal(tmp_path, YAML, "parameters: {}")
    assert any("parameter Partner has no default; expected its value in the map file" in line for line in found)


def test_places_are_those_of_the_template(tmp_path: Path) -> None:
    """A rule in a block below !Sub, by line and column."""
    (found,) = refusal(tmp_path, YAML.replace("sid:2;)", "sid:two;)"))
    line, column = (int(part) for part in found.split(":")[1:3])
    text = (tmp_path / "template.yaml").read_text().split("\n")[line - 1]
    assert text.lstrip().startswith("drop tcp any any")
    assert column > 20


def test_conditions_that_double_each_other_end(tmp_path: Path) -> None:
    chain = "".join(f"  C{n}: !And [!Condition C{n + 1}, !Condition C{n + 1}]\n" for n in range(40))
    text = YAML.replace("Conditions:\n", f"Conditions:\n{chain}  C40: !Equals [a, a]\n").replace(
        "Condition: IsProd", "Condition: C0"
    )
    assert load(tmp_path, text).stateful.groups


def test_what_surrounds_a_policy_may_lead_out_of_the_template(tmp_path: Path) -> None:
    """A firewall's VPC is often another stack's; where logs go changes no verdict."""
    text = (
        YAML.replace("VpcId: !Ref Vpc", "VpcId: !ImportValue network-Vpc")
        + """\
  Logging:
    Type: AWS::NetworkFirewall::LoggingConfiguration
    Properties:
      FirewallArn: !ImportValue gate
      LoggingConfiguration:
        LogDestinationConfigs:
          - {LogType: ALERT, LogDestinationType: S3, LogDestination: {bucketName: !ImportValue logs}}
"""
    )
    loaded = load(tmp_path, text)
    assert loaded.log.events == ("alert", "drop")
    assert any("Fn::ImportValue leads out of the template" in str(warning) for warning in loaded.warnings)


def test_texts_put_together_are_bounded(tmp_path: Path) -> None:
    bomb = "${Environment}" * 2000
    text = YAML.replace('!Sub "egress-${Environment}"', f'!Sub "{bomb}"').replace(
        "Default: test", f"Default: {'x' * 9000}"
    )
    assert any("characters are put together" in line for line in refusal(tmp_path, text))


def test_tags_are_no_part_of_a_policy_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: !Ref Egress\n")
    with pytest.raises(PolicyErrors, match='"!Ref" needs quotes'):
        load_policy(tmp_path / "own.yaml")

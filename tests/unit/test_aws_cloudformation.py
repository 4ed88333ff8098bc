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
        (
            "!Ref Egress,",
            "!ImportValue Egress,",
            '"Fn::ImportValue Egress" is kept outside of the template; expected its value in the map file: parameters',
        ),
        (
            '"10.0.0.0/16"',
            '"{{resolve:ssm:/net/home:3}}"',
            '"{{resolve:ssm:/net/home:3}}" is kept outside of the templ',
        ),
        ("!Ref Egress,", "!Transform {Name: x},", "Fn::Transform leads out of the template"),
        ('"10.0.0.0/16"', "!Select [0, !Cidr [10.0.0.0/8, 0, 8]]", "Fn::Cidr: expected [block, count up to 256, host"),
        ('"10.0.0.0/16"', "!Select [0, !Cidr [any, 1, 8]]", "Fn::Cidr: expected [block, count up to 256, host bits]"),
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
    assert any('"Fn::ImportValue logs" is kept outside' in str(warning) for warning in loaded.warnings)


# -- what published templates hold ---------------------------------------------------------------------------------

PUBLISHED = """AWSTemplateFormatVersion: "2010-09-09"
Metadata:
  AWS::CloudFormation::Interface: {ParameterGroups: [{Label: {default: Network}, Parameters: [VpcCidr, ImageId]}]}
Parameters:
  VpcCidr: {Type: String, Default: 10.2.0.0/16, AllowedPattern: '^[0-9./]+$', ConstraintDescription: a block}
  ImageId: {Type: 'AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>', Default: /aws/service/ami/latest}
  Allowed: {Type: 'AWS::SSM::Parameter::Value<CommaDelimitedList>', Default: /firewall/names}
  Capacity: {Type: Number, Default: 100, MinValue: 1, MaxValue: 30000}
  Zone: {Type: AWS::EC2::AvailabilityZone::Name, Default: us-east-1a}
Resources:
  Vpc:
    Type: AWS::EC2::VPC
    DeletionPolicy: Retain
    Properties: {CidrBlock: !Ref VpcCidr, Tags: [{Key: Name, Value: !Sub "${AWS::StackName}"}]}
  Partners:
    Type: AWS::EC2::PrefixList
    Properties:
      PrefixListName: partners
      AddressFamily: IPv4
      MaxEntries: 5
      Entries: [{Cidr: 203.0.113.0/24, Description: one}, {Cidr: 198.51.100.0/25}]
  Server:
    Type: AWS::EC2::Instance
    DependsOn: [IngressFirewall, EgressFirewall]
    Properties:
      ImageId: !Ref ImageId
      UserData: {'Fn::Base64': !Sub "#!/bin/bash\necho ${AWS::StackName}\n"}
  Route:
    Type: AWS::EC2::Route
    Properties: {VpcEndpointId: !Select [1, !Split [":", !Select [0, !GetAtt EgressFirewall.EndpointIds]]]}
  Lambda:
    Type: AWS::Lambda::Function
    Properties: {Code: {ZipFile: !Sub 'arn = "${Names.RuleGroupArn}"'}, Role: !GetAtt LambdaRole.Arn}
  Custom:
    Type: AWS::CloudFormation::CustomResource
    Version: "1.0"
    Properties: {ServiceToken: !GetAtt Lambda.Arn}
  Names:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: !Sub "${AWS::StackName}-names"
      Type: STATEFUL
      Capacity: !Ref Capacity
      Description: >-
        folded over
        two lines
      EncryptionConfiguration: {Type: AWS_OWNED_KMS_KEY}
      SummaryConfiguration: {RuleOptions: [SID, MSG]}
      Tags: [{Key: Name, Value: !Sub "${AWS::StackName}-names"}]
      RuleGroup:
        RuleVariables: {IPSets: {HOME_NET: {Definition: [!GetAtt Vpc.CidrBlock, !ImportValue shared-cidr]}}}
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource:
          RulesSourceList: {TargetTypes: [HTTP_HOST, TLS_SNI], Targets: !Ref Allowed, GeneratedRulesType: ALLOWLIST}
  Later:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: later
      Type: STATEFUL
      Capacity: 10
      RuleGroup:
        ReferenceSets: {IPSetReferences: {PARTNERS: {ReferenceArn: !GetAtt Partners.Arn}}}
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource: {RulesString: "# filled by a function\ndrop ip @PARTNERS any -> any any (sid:1;)"}
  Empty:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: empty
      Type: STATEFUL
      Capacity: 10
      RuleGroup: {RulesSource: {RulesString: "#will be updated"}, StatefulRuleOptions: {RuleOrder: STRICT_ORDER}}
  EgressPolicy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    Properties:
      FirewallPolicyName: egress
      FirewallPolicy:
        StatelessDefaultActions: ['aws:forward_to_sfe']
        StatelessFragmentDefaultActions: ['aws:forward_to_sfe']
        StatefulDefaultActions: ['aws:drop_established_app_layer_to_server']
        StatefulEngineOptions:
          RuleOrder: STRICT_ORDER
          StreamExceptionPolicy: REJECT
          FlowTimeouts: {TcpIdleTimeoutSeconds: 600}
        StatefulRuleGroupReferences:
          - {ResourceArn: !Ref Names, Priority: 100}
          - {ResourceArn: !GetAtt Later.RuleGroupArn, Priority: 200}
          - {ResourceArn: !Ref Empty, Priority: 250}
          - ResourceArn: !Sub >-
              arn:${AWS::Partition}:network-firewall:${AWS::Region}:aws-managed:stateful-rulegroup/AbusedLegitStrictOrder
            Priority: 300
            Override: {Action: DROP_TO_ALERT}
        PolicyVariables:
          RuleVariables:
            HOME_NET: {Definition: [!Select [1, !Cidr [!GetAtt Vpc.CidrBlock, 2, 8]], "{{resolve:ssm:/net/home}}"]}
  IngressPolicy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    Properties:
      FirewallPolicyName: ingress
      FirewallPolicy: {StatelessDefaultActions: ['aws:pass'], StatelessFragmentDefaultActions: ['aws:pass']}
  EgressFirewall:
    Type: AWS::NetworkFirewall::Firewall
    Properties:
      FirewallName: egress-gate
      FirewallPolicyArn: !Ref EgressPolicy
      VpcId: !Ref Vpc
      SubnetMappings: [{SubnetId: !Ref Subnet, IPAddressType: DUALSTACK}]
      DeleteProtection: false
      EnabledAnalysisTypes: [TLS_SNI]
  IngressFirewall:
    Type: AWS::NetworkFirewall::Firewall
    Properties: {FirewallName: ingress-gate, FirewallPolicyArn: !GetAtt IngressPolicy.FirewallPolicyArn}
  Second:
    Type: AWS::NetworkFirewall::VpcEndpointAssociation
    Properties: {FirewallArn: !Ref EgressFirewall, VpcId: !Ref Vpc}
  EgressLogging:
    Type: AWS::NetworkFirewall::LoggingConfiguration
    Properties:
      FirewallArn: !Ref EgressFirewall
      LoggingConfiguration:
        LogDestinationConfigs:
          - LogType: ALERT
            LogDestinationType: CloudWatchLogs
            LogDestination: {logGroup: !Sub "/${AWS::StackName}/alert"}
          - {LogType: TLS, LogDestinationType: S3, LogDestination: {bucketName: !Ref Bucket, prefix: tls}}
  IngressLogging:
    Type: AWS::NetworkFirewall::LoggingConfiguration
    Properties:
      FirewallArn: !Ref IngressFirewall
      LoggingConfiguration:
        LogDestinationConfigs:
          - {LogType: FLOW, LogDestinationType: KinesisDataFirehose, LogDestination: {deliveryStream: flows}}
Outputs:
  Arn: {Value: !GetAtt Names.RuleGroupArn, Export: {Name: !Sub "${AWS::StackName}-arn"}}
"""
MAPPED = """\
parameters: {shared-cidr: 10.3.0.0/16, /firewall/names: [.example.com, api.example.net], /net/home: 10.4.0.0/16}
rule_groups: {AbusedLegitStrictOrder: skip}
log_destinations:
  /stack/alert: {type: journald}
  S3: {type: file, path: tls.json, format: eve}
"""


def test_what_published_templates_hold(tmp_path: Path) -> None:
    (tmp_path / "template.yaml").write_text(PUBLISHED)
    (tmp_path / "map.yaml").write_text(MAPPED)
    files = {"map_file": tmp_path / "map.yaml", "now": NOW.timestamp()}
    loaded = load_policy(tmp_path / "template.yaml", name="egress-gate", **files)
    names, later, empty, managed = loaded.stateful.groups
    assert (names.name, names.capacity, managed.drop_to_alert) == ("stack-names", 100, True)
    assert names.domains is not None
    assert names.domains.targets == (".example.com", "api.example.net")
    assert names.variables.addresses == {"HOME_NET": ("10.2.0.0/16", "10.3.0.0/16")}
    assert later.references["PARTNERS"].networks == ("203.0.113.0/24", "198.51.100.0/25")
    assert loaded.variables.addresses["HOME_NET"] == ("10.2.1.0/24", "10.4.0.0/16")
    assert loaded.flows.tcp_idle == 600
    assert (loaded.log.events, len(empty.sources)) == ((), 1)
    assert [(sink.kind.value, sink.events, sink.format.value) for sink in loaded.log.sinks] == [
        ("journald", ("alert", "drop"), "aws"),
        ("file", ("tls",), "eve"),
    ]
    assert [warning.message.partition(";")[0] for warning in loaded.warnings] == [
        'resource Second: type "AWS::NetworkFirewall::VpcEndpointAssociation" is ignored',
        '"Bucket" is no resource or parameter of the template',
        "managed rule group AbusedLegitStrictOrder is skipped: it has no rules",
    ]
    ingress = load_policy(tmp_path / "template.yaml", name="ingress", **files)
    assert (ingress.log.events, ingress.log.sinks) == (("flow",), ())


def test_what_is_kept_elsewhere_is_asked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "template.yaml").write_text(PUBLISHED)
    with pytest.raises(PolicyErrors) as caught:
        load_policy(tmp_path / "template.yaml", name="egress")
    asked = [error.message for error in caught.value if "expected its value in the map file" in error.message]
    assert len(asked) == 3
    for name in ("shared-cidr", "/net/home", "Allowed"):
        assert any(f'{{"{name}": ...}}' in message for message in asked)


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

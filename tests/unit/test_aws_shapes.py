"""The shapes in which AWS documents are published: each loads as it is, and converts to both forms and back.

Templates with functions, output of ``cdk synth``, input of ``aws --cli-input-json``, Security Hub's findings, what
editors leave in files. The documents are made up; what is in them has been seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nfw import ca
from nfw.policy import Policy, load_policy
from nfw.policy.aws.write import write_template
from nfw.policy.dump import dump_policy
from nfw.policy.errors import Level, PolicyErrors
from tests.unit.awskit import ARN, NOW, meaning, refusal

CA_ARN = "arn:aws:acm:us-west-2:123456789012:certificate/ca"
STRICT = {"StatefulRuleOptions": {"RuleOrder": "STRICT_ORDER"}}
FORWARD: dict[str, Any] = {
    "StatelessDefaultActions": ["aws:forward_to_sfe"],
    "StatelessFragmentDefaultActions": ["aws:forward_to_sfe"],
}

FUNCTIONS = """\
AWSTemplateFormatVersion: 2010-09-09
Parameters:
  Stage: {Type: String, Default: prod, AllowedValues: [dev, prod]}
  Domains: {Type: CommaDelimitedList, Default: ".aws.example, .code.example,.packages.example"}
  Cidr: {Type: String, Default: 10.0.0.0/16}
  Inspect: {Type: String, Default: "false"}
  Sid: {Type: String, Default: 7}
Mappings:
  Stages:
    dev: {Capacity: 50, Default: "aws:alert_established"}
    prod: {Capacity: 500, Default: "aws:drop_established_app_layer"}
Conditions:
  IsProd: !Equals [!Ref Stage, prod]
  Inspected: !And [!Condition IsProd, !Not [!Equals [!Ref Inspect, "false"]]]
Resources:
  Names:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      Capacity: !FindInMap [Stages, !Ref Stage, Capacity]
      RuleGroupName: !Join ["-", [!Ref "AWS::StackName", names]]
      Type: STATEFUL
      RuleGroup:
        RuleVariables: {IPSets: {HOME_NET: {Definition: [!Ref Cidr, !Select [0, !Cidr ["10.9.0.0/16", 4, 8]]]}}}
        RulesSource:
          RulesSourceList: {GeneratedRulesType: ALLOWLIST, TargetTypes: [TLS_SNI], Targets: !Ref Domains}
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
      Tags: [{Key: Name, Value: !Sub "${AWS::StackName}-names"}]
  Text:
    Type: AWS::NetworkFirewall::RuleGroup
    Condition: IsProd
    Properties:
      Capacity: 100
      RuleGroupName: !Sub ["${Stack}-text", {Stack: !Ref "AWS::StackName"}]
      Type: STATEFUL
      RuleGroup:
        RulesSource:
          RulesString:
            Fn::Join:
              - "\\n"
              - - !Sub 'pass tcp $HOME_NET any -> any 443 (msg:"${AWS::Region} ok"; flow:not_established; sid:${Sid};)'
                - Fn::Sub: 'drop ip ${Cidr} any -> any any (msg:"${!literal}"; sid:2;)'
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
  Policy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    DeletionPolicy: Retain
    Properties:
      FirewallPolicyName: !Sub "${AWS::StackName}-policy"
      FirewallPolicy:
        StatelessDefaultActions: ["aws:forward_to_sfe"]
        StatelessFragmentDefaultActions: ["aws:drop"]
        StatefulEngineOptions:
          RuleOrder: STRICT_ORDER
          StreamExceptionPolicy: !If [IsProd, REJECT, CONTINUE]
          FlowTimeouts: {TcpIdleTimeoutSeconds: 600}
        StatefulDefaultActions: [!FindInMap [Stages, !Ref Stage, Default]]
        StatefulRuleGroupReferences:
          - {ResourceArn: !GetAtt Names.RuleGroupArn, Priority: 1}
          - !If [IsProd, {ResourceArn: !Ref Text, Priority: 2}, !Ref "AWS::NoValue"]
        TLSInspectionConfigurationArn: !If [Inspected, !Ref Tls, !Ref AWS::NoValue]
        PolicyVariables: {RuleVariables: {HOME_NET: {Definition: !Split [",", "10.0.0.0/8,192.168.0.0/16"]}}}
  Tls:
    Type: AWS::NetworkFirewall::TLSInspectionConfiguration
    Condition: Inspected
    Properties: {TLSInspectionConfigurationName: t, TLSInspectionConfiguration: {ServerCertificateConfigurations: []}}
"""

IMPORTS = """\
Resources:
  Policy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    UpdateReplacePolicy: Retain
    Properties:
      FirewallPolicyName: central
      FirewallPolicy:
        StatelessDefaultActions: [aws:forward_to_sfe]
        StatelessFragmentDefaultActions: [aws:forward_to_sfe]
        StatefulEngineOptions: {RuleOrder: STRICT_ORDER}
        StatefulDefaultActions: [aws:drop_strict, aws:alert_strict]
        StatefulRuleGroupReferences: [{ResourceArn: !Ref Rules, Priority: 1}]
        PolicyVariables: {RuleVariables: {HOME_NET: {Definition: [!ImportValue vpc, "{{resolve:ssm:/net/cidr}}"]}}}
  Rules:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      RuleGroupName: rules
      Type: STATEFUL
      Capacity: "100"
      RuleGroup:
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
        RulesSource:
          RulesString: "pass tcp any any <> $EXTERNAL_NET 443 (flow:not_established; sid:1;)\\n\
                        pass tls any any -> any any (tls.sni; content:\\".aws\\"; endswith; sid:2;)"
"""

ANCHORS = """\
Resources:
  One:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties:
      Capacity: 100
      RuleGroupName: one
      Type: STATEFUL
      RuleGroup: &rules
        RulesSource:
          RulesString: |
            # ü
            pass tls $HOME_NET any -> $EXTERNAL_NET any (tls.sni; dotprefix; content:".a.example"; endswith; sid:1;)
        StatefulRuleOptions: {RuleOrder: STRICT_ORDER}
  Two:
    Type: AWS::NetworkFirewall::RuleGroup
    Properties: {Capacity: 100, RuleGroupName: two, Type: STATEFUL, RuleGroup: *rules}
  Policy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    Properties:
      FirewallPolicyName: p
      FirewallPolicy:
        StatelessDefaultActions: &forward ["aws:forward_to_sfe"]
        StatelessFragmentDefaultActions: *forward
        StatefulEngineOptions: {RuleOrder: STRICT_ORDER}
        StatefulRuleGroupReferences: [{ResourceArn: !Ref One, Priority: 1}, {ResourceArn: !Ref Two, Priority: 2}]
"""

TLS_BOTH = f"""\
Resources:
  Tls:
    Type: AWS::NetworkFirewall::TLSInspectionConfiguration
    Properties:
      TLSInspectionConfigurationName: both
      TLSInspectionConfiguration:
        ServerCertificateConfigurations:
          - CertificateAuthorityArn: {CA_ARN}
            CheckCertificateRevocationStatus: {{RevokedStatusAction: DROP, UnknownStatusAction: PASS}}
            ServerCertificates: [{{ResourceArn: {CA_ARN}}}]
            Scopes:
              - DestinationPorts: [{{FromPort: 443, ToPort: 443}}]
                Destinations: [{{AddressDefinition: 10.0.0.0/8}}]
              - {{DestinationPorts: [{{FromPort: 8443, ToPort: 8443}}], Protocols: [6]}}
  Policy:
    Type: AWS::NetworkFirewall::FirewallPolicy
    Properties:
      FirewallPolicyName: tls
      FirewallPolicy:
        StatelessDefaultActions: [aws:forward_to_sfe]
        StatelessFragmentDefaultActions: [aws:forward_to_sfe]
        StatefulDefaultActions: [aws:drop_established_app_layer]
        StatefulEngineOptions: {{RuleOrder: STRICT_ORDER}}
        TLSInspectionConfigurationArn: !GetAtt Tls.TLSInspectionConfigurationArn
"""


def synthesized(kind: str, name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}E35C4D46": {
            "Type": f"AWS::NetworkFirewall::{kind}",
            "Properties": properties,
            "Metadata": {"aws:cdk:path": f"stack/{name}/Resource"},
        }
    }


def group(name: str, body: dict[str, Any], kind: str = "STATEFUL", capacity: int = 100) -> dict[str, Any]:
    """As the input of ``create-rule-group``, or a resource's properties."""
    return {"RuleGroupName": name, "Type": kind, "Capacity": capacity, "RuleGroup": body}


HEADER = {"Protocol": "TCP", "Source": "10.1.0.0/16", "SourcePort": "any", "Direction": "FORWARD"}
FIVE_TUPLE = {
    "Action": "DROP",
    "Header": {**HEADER, "Destination": "$HOME_NET", "DestinationPort": "$WEB"},
    "RuleOptions": [{"Keyword": "sid", "Settings": ["1234"]}],
}
CDK = {
    "Resources": {
        "Bucket1D27D527": {"Type": "AWS::S3::Bucket", "UpdateReplacePolicy": "Retain"},
        **synthesized(
            "RuleGroup",
            "Five",
            group(
                "Five",
                {
                    "RuleVariables": {
                        "IPSets": {"HOME_NET": {"Definition": ["10.0.0.0/16"]}},
                        "PortSets": {"WEB": {"Definition": ["443", "80"]}},
                    },
                    "RulesSource": {"StatefulRules": [FIVE_TUPLE]},
                    **STRICT,
                },
            ),
        ),
        **synthesized(
            "FirewallPolicy",
            "Policy",
            {
                "FirewallPolicyName": "Policy",
                "FirewallPolicy": {
                    **FORWARD,
                    "StatefulDefaultActions": [],
                    "StatefulEngineOptions": {"RuleOrder": "STRICT_ORDER"},
                    "StatefulRuleGroupReferences": [
                        {"Priority": 1, "ResourceArn": {"Fn::GetAtt": ["FiveE35C4D46", "RuleGroupArn"]}}
                    ],
                },
            },
        ),
        **synthesized(
            "Firewall",
            "Firewall",
            {
                "FirewallName": "f",
                "FirewallPolicyArn": {"Fn::GetAtt": ["PolicyE35C4D46", "FirewallPolicyArn"]},
                "SubnetMappings": [{"SubnetId": {"Ref": "Subnet"}}],
            },
        ),
        **synthesized(
            "VpcEndpointAssociation",
            "Second",
            {"FirewallArn": {"Ref": "FirewallE35C4D46"}, "SubnetMapping": {"SubnetId": {"Ref": "Subnet"}}},
        ),
        **synthesized(
            "LoggingConfiguration",
            "Logging",
            {
                "FirewallArn": {"Ref": "FirewallE35C4D46"},
                "LoggingConfiguration": {
                    "LogDestinationConfigs": [
                        {
                            "LogType": "ALERT",
                            "LogDestinationType": "S3",
                            "LogDestination": {"bucketName": {"Ref": "Bucket1D27D527"}, "prefix": "alerts"},
                        },
                        {
                            "LogType": "FLOW",
                            "LogDestinationType": "CloudWatchLogs",
                            "LogDestination": {"logGroup": "/firewall/flow"},
                        },
                    ]
                },
            },
        ),
        "CDKMetadata": {"Type": "AWS::CDK::Metadata", "Properties": {}, "Condition": "CDKMetadataAvailable"},
    },
    "Conditions": {"CDKMetadataAvailable": {"Fn::Or": [{"Fn::Equals": [{"Ref": "AWS::Region"}, "af-south-1"]}]}},
    "Parameters": {"BootstrapVersion": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": "/cdk/version"}},
    "Rules": {"Check": {"Assertions": [{"Assert": {"Fn::Not": [{"Fn::Contains": [["1"], {"Ref": "Bootstrap"}]}]}}]}},
}
LIST = {
    "RulesSourceList": {"Targets": [".pay.example", "A.example"], "TargetTypes": ["TLS_SNI", "HTTP_HOST"]}
    | {"GeneratedRulesType": "ALLOWLIST"}
}
CLI_INPUT = {
    **group("finance", {"RulesSource": LIST}),
    "Description": "x",
    "DryRun": False,
    "AnalyzeRuleGroup": True,
    "Tags": [{"Key": "a", "Value": "b"}],
    "EncryptionConfiguration": {"Type": "AWS_OWNED_KMS_KEY"},
    "SummaryConfiguration": {"RuleOptions": ["SID", "MSG", "METADATA"]},
    "SourceMetadata": {"SourceArn": f"{ARN}stateful-rulegroup/x", "SourceUpdateToken": "11111111"},
}
CLI_RULES = {
    "RuleGroupName": "text",
    "Type": "STATEFUL",
    "Capacity": 10,
    "Rules": 'drop tcp any any -> any 22 (msg:"ssh"; sid:1;)\r\npass tcp any any -> any 443 (sid:2;)\r\n',
}
CLI_POLICY = {
    "FirewallPolicyName": "made",
    "DryRun": False,
    "EncryptionConfiguration": {"KeyId": "arn:aws:kms:us-east-1:123456789012:key/1", "Type": "CUSTOMER_KMS"},
    "Tags": [],
    "FirewallPolicy": {
        **FORWARD,
        "StatefulRuleGroupReferences": [
            {"ResourceArn": f"{ARN}stateful-rulegroup/finance"},
            {"ResourceArn": f"{ARN}stateful-rulegroup/text"},
        ],
    },
}
CONTAINERS = group(
    "containers",
    {
        "RulesSource": {"RulesString": "alert tcp @TASKS any -> any any (sid:1; rev:1;)"},
        "ReferenceSets": {"IPSetReferences": {"TASKS": {"ReferenceArn": f"{ARN}container-association/tasks"}}},
    },
)
FINDING = (
    {
        "FirewallPolicy": {
            **FORWARD,
            "StatefulRuleGroupReferences": [{"ResourceArn": f"{ARN}stateful-rulegroup/patches"}],
        },
        "FirewallPolicyArn": f"{ARN}firewall-policy/initial",
        "FirewallPolicyId": "9ceeda22",
        "FirewallPolicyName": "initial",
        "Description": "first",
    },
    {
        **group("patches", {"RulesSource": LIST}),
        "RuleGroupArn": f"{ARN}stateful-rulegroup/patches",
        "RuleGroupId": "7a8b",
    },
)
MANAGED = "arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/"
WITH_MANAGED = {
    "UpdateToken": "1",
    "FirewallPolicyResponse": {
        "FirewallPolicyName": "managed",
        "FirewallPolicyArn": f"{ARN}firewall-policy/managed",
        "LastModifiedTime": "2026-06-01T00:00:00.000Z",
        "EncryptionConfiguration": {"KeyId": "AWS_OWNED_KMS_KEY", "Type": "AWS_OWNED_KMS_KEY"},
    },
    "FirewallPolicy": {
        **FORWARD,
        "StatefulEngineOptions": {"RuleOrder": "STRICT_ORDER", "StreamExceptionPolicy": "REJECT"},
        "StatefulRuleGroupReferences": [
            {"ResourceArn": f"{MANAGED}BotNetStrictOrder", "Priority": 1, "DeepThreatInspection": True},
            {
                "ResourceArn": f"{MANAGED}MalwareStrictOrder",
                "Priority": 2,
                "Override": {"Action": "DROP_TO_ALERT"},
            },
        ],
    },
}
OPTIONS = group(
    "options",
    {
        "RulesSource": {
            "StatefulRules": [
                {
                    "Action": "PASS",
                    "Header": {
                        "Protocol": "TLS",
                        "Source": "10.0.0.0/8",
                        "SourcePort": "[1024:65535]",
                        "Direction": "FORWARD",
                        "Destination": "!192.0.2.0/24",
                        "DestinationPort": "443",
                    },
                    "RuleOptions": [
                        {"Keyword": "tls.sni", "Settings": []},
                        {"Keyword": "content", "Settings": ['"a.example"']},
                        {"Keyword": "endswith"},
                        {"Keyword": "flow", "Settings": ["to_server", "established"]},
                        {"Keyword": "sid", "Settings": ["2"]},
                    ],
                },
                {**FIVE_TUPLE, "Header": {**HEADER, "Destination": "ANY", "DestinationPort": "22"}}
                | {"RuleOptions": [{"Keyword": "sid:3"}]},
            ]
        }
    },
)

Check = Callable[[Policy], object]


@pytest.mark.parametrize(
    ("documents", "known", "expected", "check"),
    [
        (
            (FUNCTIONS,),
            "",
            "stack-policy",
            lambda policy: (
                (
                    [group.name for group in policy.stateful.groups],
                    policy.stateful.groups[0].variables.addresses["HOME_NET"],
                    policy.stateful.groups[0].capacity,
                    [signature.sid for signature in policy.stateful.signatures],
                    policy.stateful.default_actions,
                    (policy.flows.tcp_idle, policy.tls),
                )
                == (
                    ["stack-names", "stack-text"],
                    ("10.0.0.0/16", "10.9.0.0/24"),
                    500,
                    [1, 2, 3, 4, 7, 2],
                    ("drop_established_app_layer",),
                    (600, None),
                )
            ),
        ),
        (
            (IMPORTS,),
            "parameters: {vpc: 10.1.0.0/16, /net/cidr: 10.2.0.0/16}\n",
            "central",
            lambda policy: policy.variables.addresses["HOME_NET"] == ("10.1.0.0/16", "10.2.0.0/16"),
        ),
        ((ANCHORS,), "", "p", lambda policy: [group.name for group in policy.stateful.groups] == ["one", "two"]),
        (
            (b"\xef\xbb\xbf" + ANCHORS.replace("\n", "\r\n").encode(),),
            "",
            "p",
            lambda policy: len(policy.stateful.signatures) == 2,
        ),
        (
            (TLS_BOTH,),
            f"certificates: {{'{CA_ARN}': {{certificate: ca.pem, private_key: ca.key}}}}\n",
            "tls",
            lambda policy: (len(policy.tls.scopes), len(policy.inspected_inbound)) == (2, 1),
        ),
        (
            (CDK,),
            "log_destinations: {S3: {type: journald}}\n",
            "Policy",
            lambda policy: (
                (policy.log.events, [sink.events for sink in policy.log.sinks]) == (("flow",), [("alert", "drop")])
            ),
        ),
        ((CLI_INPUT,), "", "finance", lambda policy: len(policy.stateful.signatures) == 6),
        ((CLI_RULES,), "", "text", lambda policy: [each.sid for each in policy.stateful.signatures] == [1, 2]),
        ((CLI_POLICY, CLI_INPUT, CLI_RULES), "", "made", lambda policy: len(policy.stateful.signatures) == 8),
        (
            (CONTAINERS,),
            f"ip_sets: {{'{ARN}container-association/tasks': [10.0.5.0/24]}}\n",
            "containers",
            lambda policy: policy.stateful.groups[0].references["TASKS"].networks == ("10.0.5.0/24",),
        ),
        (FINDING, "", "initial", lambda policy: policy.stateful.groups[0].domains is not None),
        (
            (WITH_MANAGED,),
            "rule_groups: {BotNetStrictOrder: skip, MalwareStrictOrder: skip}\n",
            "managed",
            lambda policy: [group.drop_to_alert for group in policy.stateful.groups] == [False, True],
        ),
        ((OPTIONS,), "", "options", lambda policy: [each.sid for each in policy.stateful.signatures] == [2, 3]),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_a_published_shape(tmp_path: Path, documents: tuple[Any, ...], known: str, expected: str, check: Check) -> None:
    ca.create("Test CA", tmp_path, NOW)
    map_file = tmp_path / "map.yml"
    map_file.write_text(known or "{}\n")
    loaded = load_policy(*written(tmp_path, documents), map_file=map_file, now=NOW.timestamp())
    assert loaded.name == expected
    assert check(loaded)
    assert not [warning for warning in loaded.warnings if "unknown field" in warning.message]
    for text, name in ((write_template(loaded), "again.json"), (dump_policy(loaded), "again.yaml")):
        (tmp_path / name).write_text(text)
        assert meaning(load_policy(tmp_path / name, now=NOW.timestamp())) == meaning(loaded), name


def written(folder: Path, documents: tuple[Any, ...]) -> list[Path]:
    paths = []
    for number, document in enumerate(documents):
        path = folder / f"{number}.{'json' if isinstance(document, dict) else 'yaml'}"
        text = json.dumps(document) if isinstance(document, dict) else document
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        paths.append(path)
    return paths


def test_orders_that_differ_are_refused_as_aws_does(tmp_path: Path) -> None:
    """A published stack has STRICT_ORDER groups in a policy without RuleOrder, which AWS does not deploy."""
    stack = json.loads(json.dumps(CDK))
    del stack["Resources"]["PolicyE35C4D46"]["Properties"]["FirewallPolicy"]["StatefulEngineOptions"]
    assert any("ResourceArn has invalid rule order" in each for each in refusal(tmp_path, stack))


def test_resources_there_is_nothing_of_here(tmp_path: Path) -> None:
    loaded = load_policy(*written(tmp_path, (CDK,)), now=NOW.timestamp())
    (told,) = [each.message for each in loaded.warnings if "VpcEndpointAssociation" in each.message]
    assert told.endswith("is ignored; which traffic comes here is a matter of routes")


def test_merge_keys(tmp_path: Path) -> None:
    """YAML 1.1's, which CloudFormation does not read either."""
    text = ANCHORS.replace("RuleGroup: *rules}", "RuleGroup: *rules, <<: {Description: x}}")
    (path,) = written(tmp_path, (text,))
    with pytest.raises(PolicyErrors) as refused:
        load_policy(path, now=NOW.timestamp())
    (error,) = [each for each in refused.value if "merge keys" in each.message]
    assert (error.line, error.code, error.level) == (16, "syntax", Level.ERROR)
    assert "write out what they stand for" in error.advice

"""The documents AWS's own tools print, one of each kind, load as they are and convert back to equal documents."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from nfw import ca
from nfw.policy import Policy, load_policy
from nfw.policy.aws.write import write_template
from tests.unit.awskit import NOW

ARN = "arn:aws:network-firewall:us-east-1:123456789012:"
TOKEN = "11111111-2222-3333-4444-555555555555"
CA_ARN = "arn:aws:acm:us-east-1:123456789012:certificate/0a0a0a0a-0000-0000-0000-000000000001"
SERVER_ARN = "arn:aws:acm:us-east-1:123456789012:certificate/0a0a0a0a-0000-0000-0000-000000000002"
PREFIX_LIST = "arn:aws:ec2:us-east-1:123456789012:prefix-list/pl-0abc"
MANAGED = "ThreatSignaturesMalwareStrictOrder"

STATELESS = """\
{"UpdateToken":"11111111-2222-3333-4444-555555555555",
 "RuleGroup":{"RulesSource":{"StatelessRulesAndCustomActions":{
   "StatelessRules":[
     {"Priority":10,"RuleDefinition":{"MatchAttributes":{
        "Sources":[{"AddressDefinition":"10.20.0.0/16"}],"Destinations":[{"AddressDefinition":"0.0.0.0/0"}],
        "SourcePorts":[{"FromPort":1024,"ToPort":65535}],"DestinationPorts":[{"FromPort":23,"ToPort":23}],
        "Protocols":[6],"TCPFlags":[{"Flags":["SYN"],"Masks":["SYN","ACK"]}]},
        "Actions":["aws:drop","CountTelnet"]}},
     {"Priority":20,"RuleDefinition":{"MatchAttributes":{"Protocols":[6,17]},"Actions":["aws:forward_to_sfe"]}}],
   "CustomActions":[
     {"ActionName":"CountTelnet","ActionDefinition":{"PublishMetricAction":{"Dimensions":[{"Value":"telnet"}]}}}]}}},
 "RuleGroupResponse":{"RuleGroupArn":"arn:aws:network-firewall:us-east-1:123456789012:stateless-rulegroup/edge",
   "RuleGroupName":"edge","RuleGroupId":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee","Type":"STATELESS","Capacity":100,
   "ConsumedCapacity":3,"RuleGroupStatus":"ACTIVE","NumberOfAssociations":1}}
"""
TEXT: dict[str, Any] = {
    "UpdateToken": TOKEN,
    "RuleGroup": {
        "RuleVariables": {
            "IPSets": {"WEB": {"Definition": ["10.20.1.0/24", "10.20.2.7"]}},
            "PortSets": {"ALT_TLS": {"Definition": ["8443", "[9443:9450]"]}},
        },
        "ReferenceSets": {"IPSetReferences": {"PARTNERS": {"ReferenceArn": PREFIX_LIST}}},
        "RulesSource": {
            "RulesString": (
                'pass tls $HOME_NET any -> $EXTERNAL_NET any (tls.sni; dotprefix; content:".example.com"; nocase; '
                'endswith; alert; msg:"ok"; flow:to_server; sid:1000001; rev:1;)\n'
                'drop ip @PARTNERS any -> $WEB any (msg:"partner"; sid:1000002; rev:1;)'
            )
        },
        "StatefulRuleOptions": {"RuleOrder": "STRICT_ORDER"},
    },
    "RuleGroupResponse": {
        "RuleGroupArn": f"{ARN}stateful-rulegroup/egress",
        "RuleGroupName": "egress",
        "RuleGroupId": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeef",
        "Type": "STATEFUL",
        "Capacity": 200,
    },
}
DOMAINS: dict[str, Any] = {
    "RulesSource": {
        "RulesSourceList": {
            "Targets": [".example.com", "api.example.net"],
            "TargetTypes": ["TLS_SNI", "HTTP_HOST"],
            "GeneratedRulesType": "ALLOWLIST",
        }
    },
    "StatefulRuleOptions": {"RuleOrder": "STRICT_ORDER"},
}
FIVE_TUPLE: dict[str, Any] = {
    "RulesSource": {
        "StatefulRules": [
            {
                "Action": "REJECT",
                "Header": {
                    "Protocol": "TCP",
                    "Source": "$HOME_NET",
                    "SourcePort": "ANY",
                    "Direction": "FORWARD",
                    "Destination": "ANY",
                    "DestinationPort": "3389",
                },
                "RuleOptions": [
                    {"Keyword": "msg", "Settings": ['"no rdp"']},
                    {"Keyword": "flow", "Settings": ["to_server"]},
                    {"Keyword": "sid", "Settings": ["7"]},
                ],
            }
        ]
    }
}
POLICY: dict[str, Any] = {
    "UpdateToken": TOKEN,
    "FirewallPolicyResponse": {
        "FirewallPolicyName": "egress-policy",
        "FirewallPolicyArn": f"{ARN}firewall-policy/egress-policy",
        "FirewallPolicyId": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "FirewallPolicyStatus": "ACTIVE",
        "ConsumedStatelessRuleCapacity": 3,
        "ConsumedStatefulRuleCapacity": 202,
        "NumberOfAssociations": 1,
    },
    "FirewallPolicy": {
        "StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/edge", "Priority": 10}],
        "StatelessDefaultActions": ["aws:forward_to_sfe"],
        "StatelessFragmentDefaultActions": ["aws:drop", "CountFrag"],
        "StatelessCustomActions": [
            {
                "ActionName": "CountFrag",
                "ActionDefinition": {"PublishMetricAction": {"Dimensions": [{"Value": "frag"}]}},
            }
        ],
        "StatefulRuleGroupReferences": [
            {"ResourceArn": f"{ARN}stateful-rulegroup/egress", "Priority": 100},
            {
                "ResourceArn": f"arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/{MANAGED}",
                "Priority": 200,
                "Override": {"Action": "DROP_TO_ALERT"},
            },
        ],
        "StatefulDefaultActions": ["aws:drop_established", "aws:alert_established"],
        "StatefulEngineOptions": {
            "RuleOrder": "STRICT_ORDER",
            "StreamExceptionPolicy": "REJECT",
            "FlowTimeouts": {"TcpIdleTimeoutSeconds": 350},
        },
        "TLSInspectionConfigurationArn": f"{ARN}tls-configuration/egress-tls",
        "EnableTLSSessionHolding": True,
        "PolicyVariables": {
            "RuleVariables": {"HOME_NET": {"Definition": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]}}
        },
    },
}
TLS: dict[str, Any] = {
    "UpdateToken": TOKEN,
    "TLSInspectionConfiguration": {
        "ServerCertificateConfigurations": [
            {
                "CertificateAuthorityArn": CA_ARN,
                "CheckCertificateRevocationStatus": {"RevokedStatusAction": "REJECT", "UnknownStatusAction": "PASS"},
                "Scopes": [
                    {
                        "Sources": [{"AddressDefinition": "10.20.0.0/16"}],
                        "Destinations": [{"AddressDefinition": "0.0.0.0/0"}],
                        "SourcePorts": [{"FromPort": 0, "ToPort": 65535}],
                        "DestinationPorts": [{"FromPort": 443, "ToPort": 443}],
                        "Protocols": [6],
                    }
                ],
            },
            {
                "ServerCertificates": [{"ResourceArn": SERVER_ARN}],
                "Scopes": [
                    {
                        "Destinations": [{"AddressDefinition": "10.20.9.0/24"}],
                        "DestinationPorts": [{"FromPort": 443, "ToPort": 443}],
                        "Protocols": [6],
                    }
                ],
            },
        ]
    },
    "TLSInspectionConfigurationResponse": {
        "TLSInspectionConfigurationArn": f"{ARN}tls-configuration/egress-tls",
        "TLSInspectionConfigurationName": "egress-tls",
        "TLSInspectionConfigurationId": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "TLSInspectionConfigurationStatus": "ACTIVE",
        "NumberOfAssociations": 1,
        "CertificateAuthority": {"CertificateArn": CA_ARN, "CertificateSerial": "01", "Status": "ACTIVE"},
        "Certificates": [],
    },
}
MAP = f"""\
certificates:
  {CA_ARN}: {{certificate: ca.pem, private_key: ca.key}}
  {SERVER_ARN}: {{certificate: server.pem, private_key: server.key}}
ip_sets: {{'{PREFIX_LIST}': [203.0.113.0/24]}}
rule_groups: {{{MANAGED}: skip}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("samples")
    ca.create("Test CA", directory, NOW)
    server = directory / "server"
    ca.create("Server", server, NOW)
    for name in ("pem", "key"):
        (server / f"ca.{name}").rename(directory / f"server.{name}")
    (directory / "map.yaml").write_text(MAP)
    return directory


def converted(folder: Path, *documents: Any) -> tuple[Policy, dict[str, dict[str, Any]]]:
    """The policy the documents load to, and what it is written as: {name: properties}."""
    paths = []
    for number, document in enumerate(documents):
        path = folder / f"{number}.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        paths.append(path)
    loaded = load_policy(*paths, map_file=folder / "map.yaml", now=NOW.timestamp())
    resources = json.loads(write_template(loaded))["Resources"]
    ids = {key: _arn(each) for key, each in resources.items()}
    found = {}
    for each in resources.values():
        properties = _named(each["Properties"], ids)
        name = next(value for key, value in properties.items() if key.endswith("Name"))
        found[properties.get("Type", "") + name if len(documents) == 1 else name] = properties
    return loaded, found


def _arn(resource: dict[str, Any]) -> str:
    properties = resource["Properties"]
    kind = {
        "RuleGroup": f"{properties.get('Type', '').lower()}-rulegroup",
        "TLSInspectionConfiguration": "tls-configuration",
        "FirewallPolicy": "firewall-policy",
    }[resource["Type"].rpartition("::")[2]]
    name = next(value for key, value in properties.items() if key.endswith("Name"))
    return f"{ARN}{kind}/{name}"


def _named(value: Any, ids: dict[str, str]) -> Any:
    """``Ref`` and ``Fn::GetAtt`` as the ARN they stand for."""
    if isinstance(value, dict):
        if list(value) == ["Ref"]:
            return ids[value["Ref"]]
        if list(value) == ["Fn::GetAtt"]:
            return ids[value["Fn::GetAtt"][0]]
        return {key: _named(item, ids) for key, item in value.items()}
    return [_named(item, ids) for item in value] if isinstance(value, list) else value


def test_a_policy_with_all_it_refers_to(folder: Path) -> None:
    loaded, found = converted(folder, POLICY, STATELESS, TEXT, TLS)
    assert found["edge"]["RuleGroup"] == json.loads(STATELESS)["RuleGroup"]
    assert (found["edge"]["Capacity"], found["egress"]["Capacity"]) == (100, 200)
    # Of one item a list need not be one.
    text = json.dumps(TEXT["RuleGroup"]).replace("[9443:9450]", "9443:9450")
    assert found["egress"]["RuleGroup"] == json.loads(text)
    assert found["egress-policy"]["FirewallPolicy"] == POLICY["FirewallPolicy"]
    assert found["egress-tls"]["TLSInspectionConfiguration"] == TLS["TLSInspectionConfiguration"]
    assert loaded.name == "egress-policy"


@pytest.mark.parametrize(
    "body",
    [DOMAINS, FIVE_TUPLE, json.loads(STATELESS)["RuleGroup"]],
    ids=lambda each: str(next(iter(each["RulesSource"]))),
)
def test_a_body_alone(folder: Path, body: dict[str, Any]) -> None:
    _, found = converted(folder, body)
    (group,) = [each for each in found.values() if "RuleGroup" in each]
    assert (
        group["RuleGroup"] == {"StatefulRuleOptions": {"RuleOrder": "DEFAULT_ACTION_ORDER"}, **body}
        or group["RuleGroup"] == body
    )


def test_what_analysis_and_other_answers_add_is_ignored(folder: Path) -> None:
    """As of AnalyzeRuleGroup; and timestamps as numbers or texts, empty tags."""
    document = json.loads(STATELESS)
    document["RuleGroupResponse"] |= {
        "LastModifiedTime": 1700000000.5,
        "Tags": [],
        "EncryptionConfiguration": {"KeyId": "AWS_OWNED_KMS_KEY", "Type": "AWS_OWNED_KMS_KEY"},
        "AnalysisResults": [
            {
                "IdentifiedRuleIds": ["10"],
                "IdentifiedType": "STATELESS_RULE_CONTAINS_TCP_FLAGS",
                "AnalysisDetail": "TCP flags",
            }
        ],
    }
    text = datetime.datetime.fromtimestamp(1700000000, datetime.UTC).isoformat()
    response = TEXT["RuleGroupResponse"] | {"LastModifiedTime": text, "SnsTopic": "arn:aws:sns:us-east-1:1:x"}
    other = {**TEXT, "RuleGroupResponse": response, "AnalysisResults": []}
    loaded, found = converted(folder, POLICY, document, other, TLS)
    assert found["edge"]["RuleGroup"] == document["RuleGroup"]
    assert not [warning for warning in loaded.warnings if "unknown field" in warning.message]

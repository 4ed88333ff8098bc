"""What AWS documents come to mean: the rules generated, variables, overrides, order, capacity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.stateful.signature import Action
from engines.stateless.rule import StatelessAction
from nfw.policy.compile import compile_policy
from nfw.policy.domains import domain_rules
from nfw.policy.errors import Level, PolicyErrors
from nfw.policy.model import DomainAction, DomainList, DomainType, RuleOrder
from tests.unit.awskit import ARN, counting, group, load, policy, refusal, stateful, stateless, stateless_rule

# -- domain lists: word for word as in the developer guide ---------------------------------------------------------

TO = "$HOME_NET any -> $EXTERNAL_NET any"
HTTP_ALLOW = f"""\
pass http {TO} (http.host; dotprefix; content:".amazon.com"; endswith; msg:"matching HTTP allowlisted FQDNs"; \
priority:1; flow:to_server, established; sid:1; rev:1;)
pass http {TO} (http.host; content:"example.com"; startswith; endswith; msg:"matching HTTP allowlisted FQDNs"; \
priority:1; flow:to_server, established; sid:2; rev:1;)
drop http {TO} (http.header_names; content:"|0d 0a|"; startswith; msg:"not matching any HTTP allowlisted FQDNs"; \
priority:1; flow:to_server, established; sid:3; rev:1;)"""
TLS_ALLOW = f"""\
pass tls {TO} (ssl_state:client_hello; tls.sni; dotprefix; content:".amazon.com"; nocase; endswith; \
msg:"matching TLS allowlisted FQDNs"; priority:1; flow:to_server, established; sid:1; rev:1;)
pass tls {TO} (ssl_state:client_hello; tls.sni; content:"example.com"; startswith; nocase; endswith; \
msg:"matching TLS allowlisted FQDNs"; priority:1; flow:to_server, established; sid:2; rev:1;)
drop tls {TO} (msg:"not matching any TLS allowlisted FQDNs"; priority:1; ssl_state:client_hello; \
flow:to_server, established; sid:3; rev:1;)"""
DENY = f"""\
drop tls {TO} (ssl_state:client_hello; tls.sni; content:"evil.com"; startswith; nocase; endswith; \
msg:"matching TLS denylisted FQDNs"; priority:1; flow:to_server, established; sid:1; rev:1;)
drop http {TO} (http.host; content:"evil.com"; startswith; endswith; msg:"matching HTTP denylisted FQDNs"; priority:1; \
flow:to_server, established; sid:2; rev:1;)"""
SNI, HOST = DomainType.TLS_SNI, DomainType.HTTP_HOST


@pytest.mark.parametrize(
    ("action", "targets", "types", "rules"),
    [
        (DomainAction.ALLOW, (".amazon.com", "example.com"), (HOST,), HTTP_ALLOW),
        (DomainAction.ALLOW, (".amazon.com", "example.com"), (SNI,), TLS_ALLOW),
        (DomainAction.DENY, ("evil.com",), (SNI, HOST), DENY),
        (DomainAction.DENY, ("evil.com",), (HOST, SNI), DENY),
        (DomainAction.REJECT, ("evil.com",), (SNI, HOST), DENY.replace("drop", "reject").replace("deny", "reject")),
        (DomainAction.ALERT, ("evil.com",), (SNI, HOST), DENY.replace("drop", "alert").replace("deny", "alert")),
    ],
)
def test_generated_rules(
    action: DomainAction, targets: tuple[str, ...], types: tuple[DomainType, ...], rules: str
) -> None:
    domains = DomainList(action, targets, types)
    assert "\n".join(domain_rules(domains, RuleOrder.ACTION)) == rules
    assert "\n".join(domain_rules(domains, RuleOrder.STRICT)) == rules.replace(" priority:1;", "")


def test_host_names_are_compared_in_lower_case() -> None:
    tls, http = domain_rules(DomainList(DomainAction.DENY, ("Evil.COM",), (SNI, HOST)), RuleOrder.STRICT)
    assert 'content:"Evil.COM"; startswith; nocase;' in tls
    assert 'content:"evil.com"; startswith; endswith;' in http


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("pass tcp any any -> any any (sid:1; priority:2;)", "keywords `priority` or `classtype`"),
        ("pass tcp any any -> any any (sid:1; classtype:misc-activity;)", "keywords `priority` or `classtype`"),
        ("rejectboth tcp any any -> any any (sid:1;)", "Action rejectboth is not supported"),
        ('pass tcp any any -> any any (pcre:"/a/"; sid:1;)', "Using pcre without one of the following options"),
        ('pass tcp any any -> any any (content:"a"; pcre:"/a/"; sid:1;)', ""),
        ("pass tcp any any -> any any (\\\nsid:1;)", "Illegal option syntax"),
        ('pass tcp any any -> any any (msg:"' + "x" * 8130 + '"; sid:1;)', ""),
        ('pass tcp any any -> any any (msg:"' + "x" * 8140 + '"; sid:1;)', "Rule exceeds max length (8192)"),
        ('pass tcp any any -> any any (msg:"priority"; sid:1;)', ""),
    ],
)
def test_rules_only_aws_refuses(tmp_path: Path, rule: str, reason: str) -> None:
    loaded = load(tmp_path, policy(groups=("g",)), group("g", stateful(rule)))
    told = [str(warning) for warning in loaded.warnings if warning.level is Level.AWS_REFUSES]
    assert len(told) == (1 if reason else 0)
    assert all(reason in line for line in told)


def test_an_allow_list_of_both_types_ends_each_with_its_drop() -> None:
    rules = domain_rules(DomainList(DomainAction.ALLOW, ("a.example",), (SNI, HOST)), RuleOrder.STRICT)
    assert [rule.split(" $")[0] for rule in rules] == ["pass tls", "drop tls", "pass http", "drop http"]
    assert [rule.rpartition("sid:")[2] for rule in rules] == [f"{sid}; rev:1;)" for sid in (1, 2, 3, 4)]


# -- 5-tuple rules -------------------------------------------------------------------------------------------------


def test_stateful_rules_become_rules_of_suricata(tmp_path: Path) -> None:
    """The example of the developer guide, and the forms of options that are in use."""
    header = {
        "Protocol": "HTTP",
        "Source": "$HOME_NET",
        "SourcePort": "ANY",
        "Direction": "ANY",
        "Destination": "$EXTERNAL_NET",
        "DestinationPort": "ANY",
    }
    rules = [
        {
            "Action": "DROP",
            "Header": header,
            "RuleOptions": [
                {"Keyword": "msg", "Settings": ['"this is a stateful drop rule"']},
                {"Keyword": "sid", "Settings": ["1234"]},
            ],
        },
        {
            "Action": "ALERT",
            "Header": {**header, "Protocol": "TCP", "Direction": "FORWARD", "DestinationPort": "[80,81]"},
            "RuleOptions": [
                {"Keyword": "flow", "Settings": ["to_server", "established"]},
                {"Keyword": "content", "Settings": ['"a"']},
                {"Keyword": "nocase"},
                {"Keyword": "sid:1"},
            ],
        },
    ]
    body = {"RulesSource": {"StatefulRules": rules}}
    loaded = load(tmp_path, policy("DEFAULT_ACTION_ORDER", ("g",)), group("g", body))
    (found,) = loaded.stateful.groups
    assert found.five_tuple
    assert found.sources[0].text.split("\n") == [
        'drop http $HOME_NET any <> $EXTERNAL_NET any (msg:"this is a stateful drop rule"; sid:1234;)',
        'alert tcp $HOME_NET any -> $EXTERNAL_NET [80,81] (flow:to_server,established; content:"a"; nocase; sid:1;)',
    ]
    assert [signature.sid for signature in loaded.stateful.signatures] == [1234, 1]


# -- variables -----------------------------------------------------------------------------------------------------

INSIDE, GROUPS_OWN, OUTSIDE = bytes([10, 1, 1, 1]), bytes([172, 16, 1, 1]), bytes([203, 0, 113, 1])


def covered(loaded: Any, sid: int) -> tuple[list[bytes], list[bytes]]:
    """Which of the three addresses a rule's source and destination take."""
    (signature,) = [each for each in loaded.stateful.signatures if each.sid == sid]
    addresses = (INSIDE, GROUPS_OWN, OUTSIDE)
    return tuple(  # type: ignore[return-value]
        [address for address in addresses if test is None or test(address)]
        for test in (signature.source, signature.destination)
    )


@pytest.mark.parametrize(
    ("variables", "home", "external"),
    [
        ({}, [INSIDE], [GROUPS_OWN, OUTSIDE]),
        # A group's HOME_NET does not change EXTERNAL_NET, which stays the negation of the policy's.
        ({"HOME_NET": ["172.16.0.0/12"]}, [GROUPS_OWN], [GROUPS_OWN, OUTSIDE]),
        ({"HOME_NET": ["172.16.0.0/12"], "EXTERNAL_NET": ["!$HOME_NET"]}, [GROUPS_OWN], [INSIDE, OUTSIDE]),
        ({"EXTERNAL_NET": ["0.0.0.0/0"]}, [INSIDE], [INSIDE, GROUPS_OWN, OUTSIDE]),
    ],
)
def test_home_and_external_net(
    tmp_path: Path, variables: dict[str, list[str]], home: list[bytes], external: list[bytes]
) -> None:
    sets = {"IPSets": {name: {"Definition": items} for name, items in variables.items()}}
    rule = "pass tcp $HOME_NET any -> $EXTERNAL_NET any (sid:9;)"
    loaded = load(tmp_path, policy(groups=("g",)), group("g", stateful(rule, RuleVariables=sets)))
    assert covered(loaded, 9) == (home, external)


def test_home_net_is_the_vpcs_unless_the_policy_says_otherwise(tmp_path: Path) -> None:
    rule = group("g", stateful("pass tcp $HOME_NET any -> $EXTERNAL_NET any (sid:9;)"))
    known = "home_net: [172.16.0.0/12]"
    assert covered(load(tmp_path, policy(groups=("g",)), rule, known=known), 9)[0] == [INSIDE]
    silent = policy(groups=("g",), PolicyVariables={})
    assert covered(load(tmp_path, silent, rule, known=known), 9) == ([GROUPS_OWN], [INSIDE, OUTSIDE])
    loaded = load(tmp_path, silent, rule)
    assert covered(loaded, 9) == ([INSIDE, GROUPS_OWN], [OUTSIDE])
    assert "HOME_NET is not set" in str(loaded.warnings[0])


def test_variables_belong_to_their_group(tmp_path: Path) -> None:
    def definition(address: str) -> dict[str, Any]:
        return {"RuleVariables": {"IPSets": {"WEB": {"Definition": [address]}}}}

    loaded = load(
        tmp_path,
        policy(groups=("a", "b")),
        group("a", stateful("pass tcp $WEB any -> any any (sid:1;)", **definition("10.1.1.1"))),
        group("b", stateful("pass tcp $WEB any -> any any (sid:2;)", **definition("203.0.113.0/24"))),
    )
    assert covered(loaded, 1)[0] == [INSIDE]
    assert covered(loaded, 2)[0] == [OUTSIDE]
    (error,) = refusal(
        tmp_path,
        policy(groups=("a", "b")),
        group("a", stateful("pass tcp any any -> any any (sid:1;)", **definition("10.1.1.1"))),
        group("b", stateful("pass tcp $WEB any -> any any (sid:2;)")),
    )
    assert "WEB is not defined" in error


def test_ip_set_references(tmp_path: Path) -> None:
    arn = "arn:aws:ec2:us-east-1:123456789012:prefix-list/pl-1"
    body = stateful(
        "drop ip @PARTNERS any -> $BOTH any (sid:1;)",
        ReferenceSets={"IPSetReferences": {"PARTNERS": {"ReferenceArn": arn}}},
        RuleVariables={"IPSets": {"BOTH": {"Definition": ["@PARTNERS", "10.0.0.0/8"]}}},
    )
    loaded = load(tmp_path, policy(groups=("g",)), group("g", body), known=f"ip_sets: {{'{arn}': [203.0.113.0/24]}}")
    assert covered(loaded, 1) == ([OUTSIDE], [INSIDE, OUTSIDE])


def test_a_set_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    body = stateful(
        "drop ip @PARTNERS any -> any any (sid:1;)",
        ReferenceSets={"IPSetReferences": {"PARTNERS": {"ReferenceArn": PREFIX_LIST}}},
    )
    for known in (None, f"ip_sets: {{'{PREFIX_LIST}': absent.txt}}"):
        with pytest.raises(PolicyErrors) as caught:
            load(tmp_path, policy(groups=("g",)), group("g", body), known=known)
        assert len(caught.value.errors) == 1, caught.value.errors


PREFIX_LIST = "arn:aws:ec2:us-east-1:123456789012:prefix-list/pl-1"


@pytest.mark.parametrize(
    ("content", "networks"),
    [
        ("203.0.113.0/24\n", ("203.0.113.0/24",)),
        ("# partners\n\n203.0.113.0/24  # one\n2001:db8::/32\n198.51.100.7", None),
        ('{"Entries": [{"Cidr": "203.0.113.0/24", "Description": "one"}, {"Cidr": "2001:db8::/32"}]}', None),
    ],
)
def test_ip_sets_in_files_are_read_anew_each_time(
    tmp_path: Path, content: str, networks: tuple[str, ...] | None
) -> None:
    """As AWS refreshes what is referred to: with every load, so with every apply."""
    body = stateful(
        "drop ip @PARTNERS any -> any any (sid:1;)",
        ReferenceSets={"IPSetReferences": {"PARTNERS": {"ReferenceArn": PREFIX_LIST}}},
    )
    for text, expected in ((content, networks), ("192.0.2.0/24", ("192.0.2.0/24",))):
        (tmp_path / "partners.txt").write_text(text)
        known = f"ip_sets: {{'{PREFIX_LIST}': partners.txt}}"
        loaded = load(tmp_path, policy(groups=("g",)), group("g", body), known=known)
        found = loaded.stateful.groups[0].references["PARTNERS"].networks
        assert found == expected or (expected is None and {"2001:db8::/32"} < set(found))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "map.yaml:1:"),
        ("", "partners.txt: no address in this file; expected one address or block a line"),
        ("10.0.0.0/8\nten\n", "partners.txt:2:1:"),
        ('{"Entries": [', "partners.txt:1:14: not valid JSON"),
        ("\udcff", "partners.txt:1:1: byte 0xff is not valid UTF-8"),
    ],
)
def test_wrong_files_of_ip_sets(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "partners.txt").write_bytes(content.encode("utf-8", "surrogateescape"))
    found = refusal(tmp_path, policy(), known=f"ip_sets: {{'{PREFIX_LIST}': partners.txt}}")
    assert any(line.startswith(message) for line in found), found


LOGGING = {
    "FirewallArn": "arn:aws:network-firewall:us-east-1:123456789012:firewall/gate",
    "LoggingConfiguration": {
        "LogDestinationConfigs": [
            {"LogType": "ALERT", "LogDestinationType": "S3", "LogDestination": {"bucketName": "logs", "prefix": "a"}},
            {"LogType": "TLS", "LogDestinationType": "S3", "LogDestination": {"bucketName": "logs", "prefix": "t"}},
            {"LogType": "FLOW", "LogDestinationType": "CloudWatchLogs", "LogDestination": {"logGroup": "/flow"}},
        ]
    },
}


@pytest.mark.parametrize(
    ("known", "events", "sinks"),
    [
        ("", ("alert", "drop", "flow", "tls"), []),
        ("logs: {type: journald}", ("flow",), [("journald", ("alert", "drop", "tls"), "aws")]),
        (
            "{S3: {type: file, path: s3.json}, CloudWatchLogs: {type: syslog, format: eve}}",
            (),
            [("file", ("alert", "drop", "tls"), "aws"), ("syslog", ("flow",), "eve")],
        ),
        (
            "{/flow: {type: unix_dgram, path: flow.sock}, S3: {type: journald}, CloudWatchLogs: {type: syslog}}",
            (),
            [("journald", ("alert", "drop", "tls"), "aws"), ("unix_dgram", ("flow",), "aws")],
        ),
    ],
)
def test_destinations_of_logs(tmp_path: Path, known: str, events: tuple[str, ...], sinks: list[object]) -> None:
    mapped = f"log_destinations: {known if known.startswith('{') else '{' + known + '}'}"
    loaded = load(tmp_path, policy(), LOGGING, known=mapped)
    assert loaded.log.events == events
    assert [(sink.kind.value, sink.events, sink.format.value) for sink in loaded.log.sinks] == sinks
    assert len(loaded.warnings) == 3 - sum({"S3": 2}.get(name, 1) for name in _mapped(known))
    assert "log_destinations" in "".join(map(str, loaded.warnings)) or not loaded.warnings


def _mapped(known: str) -> list[str]:
    """Destinations of LOGGING that the map file has a sink for."""
    return (["S3"] if "S3:" in known or "logs:" in known else []) + (
        ["flow"] if "/flow" in known or "Watch" in known else []
    )


def test_logging_of_another_firewall_is_left_alone(tmp_path: Path) -> None:
    gate = {
        "Firewall": {"FirewallName": "gate", "FirewallArn": LOGGING["FirewallArn"], "FirewallPolicyArn": f"{ARN}other"}
    }
    loaded = load(tmp_path, policy(FirewallPolicyArn=f"{ARN}mine"), LOGGING, gate)
    assert loaded.log.events == ("alert", "drop", "flow", "tls")  # the default: nothing was asked for
    assert not any("LogDestination" in str(warning) for warning in loaded.warnings)


def test_a_wrong_destination(tmp_path: Path) -> None:
    found = refusal(tmp_path, policy(), LOGGING, known="log_destinations: {S3: {type: bucket}}")
    assert found == ['map.yaml:1:31: type: expected file, journald, syslog, unix_stream or unix_dgram, got "bucket"']


# -- order and overrides -------------------------------------------------------------------------------------------


def test_strict_groups_go_by_priority_and_rules_as_written(tmp_path: Path) -> None:
    document = policy(groups=("a", "b"))
    for reference, priority in zip(document["FirewallPolicy"]["StatefulRuleGroupReferences"], (9, 4), strict=True):
        reference["Priority"] = priority
    two = "drop tcp any any -> any 2 (sid:2;)\npass tcp any any -> any 1 (sid:1;)"
    loaded = load(tmp_path, document, group("a", stateful(two)), group("b", stateful(two.replace(":1", ":3"))))
    rules = compile_policy(loaded).ruleset.rules
    assert [(rule.signature.ref.gid, rule.signature.sid) for rule in rules] == [(1, 2), (1, 3), (2, 2), (2, 1)]


def test_action_order_is_by_action_over_all_groups(tmp_path: Path) -> None:
    first = "alert tcp any any -> any any (sid:1;)\nreject tcp any any -> any any (sid:2;)"
    second = "drop tcp any any -> any any (sid:3; priority:2;)\npass tcp any any -> any any (sid:4;)"
    second += "\ndrop tcp any any -> any any (sid:5; priority:1;)"
    bodies = [stateful(text, "DEFAULT_ACTION_ORDER") for text in (first, second)]
    documents = [group(name, body) for name, body in zip("ab", bodies, strict=True)]
    loaded = load(tmp_path, policy("DEFAULT_ACTION_ORDER", ("a", "b")), *documents)
    assert [rule.signature.sid for rule in compile_policy(loaded).ruleset.rules] == [4, 5, 3, 2, 1]


def test_drop_to_alert_leaves_other_actions(tmp_path: Path) -> None:
    (tmp_path / "bot.rules").write_text(
        "".join(
            f"{verb} tcp any any -> any any (sid:{sid};)\n" for sid, verb in enumerate(("drop", "reject", "pass"), 1)
        )
    )
    managed = "arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/BotNetStrictOrder"
    reference = {"ResourceArn": managed, "Priority": 1, "Override": {"Action": "DROP_TO_ALERT"}}
    document = policy(StatefulRuleGroupReferences=[reference])
    loaded = load(tmp_path, document, known="rule_groups: {BotNetStrictOrder: bot.rules}")
    assert [each.action for each in loaded.stateful.signatures] == [Action.ALERT, Action.REJECT, Action.PASS]
    skipped = load(tmp_path, document, known="rule_groups: {BotNetStrictOrder: skip}")
    assert skipped.stateful.signatures == ()
    assert "managed rule group BotNetStrictOrder is skipped" in str(skipped.warnings[0])


def test_stateless_groups_go_by_priority_then_their_rules(tmp_path: Path) -> None:
    references = [
        {"ResourceArn": f"{ARN}stateless-rulegroup/late", "Priority": 20},
        {"ResourceArn": f"{ARN}stateless-rulegroup/early", "Priority": 10},
    ]
    late = stateless(stateless_rule(1, "aws:pass"))
    early = stateless(stateless_rule(100, "aws:forward_to_sfe"), stateless_rule(50))
    loaded = load(
        tmp_path,
        policy(StatelessRuleGroupReferences=references),
        group("late", late, "STATELESS"),
        group("early", early, "STATELESS"),
    )
    rules = compile_policy(loaded).filter.rules
    assert [(rule.group, rule.priority) for rule in rules] == [("early", 50), ("early", 100), ("late", 1)]
    assert rules[0].action is StatelessAction.DROP


def test_custom_actions_are_counters(tmp_path: Path) -> None:
    rule = stateless_rule()
    rule["RuleDefinition"]["Actions"] = ["aws:pass", "One", "Two"]
    body = stateless(rule, actions=(counting("One", "first metric"), counting("Two", "second")))
    changes = {
        "StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/g", "Priority": 1}],
        "StatelessCustomActions": [counting("Mine", "default")],
        "StatelessDefaultActions": ["Mine", "aws:drop"],
    }
    loaded = load(tmp_path, policy(**changes), group("g", body, "STATELESS"))
    assert loaded.stateless.rules[0].counters == ("first metric", "second")
    assert loaded.stateless.default_counters == ("default",)
    assert loaded.stateless.default is StatelessAction.DROP


# -- capacity ------------------------------------------------------------------------------------------------------

PORTS = [{"FromPort": port, "ToPort": port} for port in (1, 2, 3)]
NETS = [{"AddressDefinition": f"10.{number}.0.0/16"} for number in (1, 2)]


@pytest.mark.parametrize(
    ("body", "kind", "units"),
    [
        (stateless(stateless_rule()), "STATELESS", 1),
        (stateless(stateless_rule(Sources=NETS, DestinationPorts=PORTS, Protocols=[6, 17])), "STATELESS", 12),
        (stateless(stateless_rule(Sources=NETS), stateless_rule(2, Destinations=NETS)), "STATELESS", 4),
        (stateless(stateless_rule(Protocols=[6], TCPFlags=[{"Flags": ["SYN"]}, {"Flags": ["ACK"]}])), "STATELESS", 1),
        (stateful("\n".join(f"pass tcp any any -> any any (sid:{sid};)" for sid in range(1, 8))), "STATEFUL", 7),
        (stateful("# text\n\npass tcp any any -> any any (sid:1;)\n"), "STATEFUL", 1),
        (
            {
                "RulesSource": {
                    "RulesSourceList": {
                        "Targets": ["a.example", "b.example"],
                        "TargetTypes": ["TLS_SNI", "HTTP_HOST"],
                        "GeneratedRulesType": "ALLOWLIST",
                    }
                },
                "StatefulRuleOptions": {"RuleOrder": "STRICT_ORDER"},
            },
            "STATEFUL",
            6,
        ),
    ],
)
def test_capacity(tmp_path: Path, body: dict[str, Any], kind: str, units: int) -> None:
    """Exactly enough loads; one less is refused with what is needed."""
    key = "StatelessRuleGroupReferences" if kind == "STATELESS" else "StatefulRuleGroupReferences"
    reference = {"ResourceArn": f"{ARN}{kind.lower()}-rulegroup/g", "Priority": 1}
    document = policy(**{key: [reference]})
    load(tmp_path, document, group("g", body, kind, units))
    (error,) = refusal(tmp_path, document, group("g", body, kind, units - 1))
    what = "StatelessRules" if kind == "STATELESS" else "StatefulRules"
    assert f"{what} capacity exceeded, parameter: [{units}], context: " in error
    (error,) = refusal(tmp_path, document, group("g", body, kind, 30_001))
    assert "Capacity capacity exceeded, parameter: [30001], context: Capacity" in error

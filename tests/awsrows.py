"""What AWS Network Firewall's documentation says, a row a sentence, as flows that can be replayed, explained and sent.

``tests/unit/test_aws_conformance.py`` takes every row to replay and to explain, ``tests/netns/test_aws_live.py`` sends
it through the lab. Addresses and ports are the lab's, where 7, 23, 6001 and 8443 answer with an echo and 19 speaks
first.

Sources: service model (M), developer guide on evaluation order and default actions (E), rule actions (A), domain lists
(D), limitations (L), TLS inspection and session holding (H), stream exception policy (S), best practices guide (B).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from tests.unit.awskit import ARN, counting, group, policy, stateful, stateless, stateless_rule

CLIENT, SERVER = "10.1.0.2", "203.0.113.10"
STRICT, ACTION = "STRICT_ORDER", "DEFAULT_ACTION_ORDER"
CERTIFICATE = "arn:aws:acm:us-east-1:123456789012:certificate/0a0a0a0a-0000-0000-0000-000000000001"


@dataclass(frozen=True)
class Row:
    """``flow``: keys of a description. ``verdict``: pass, drop or reject. ``alerts``: sids logged; ``in_order``: they
    are in this order. ``heard``: what the server says first arrives, whatever becomes of the flow. ``pause``: seconds
    before the client's second payload; ``records``: how many alerts there are by then. ``not_live``: why the lab cannot
    show it."""

    says: str
    flow: dict[str, Any]
    verdict: str
    alerts: tuple[int, ...] = ()
    in_order: bool = False
    heard: bool = False
    pause: float = 0.0
    records: int | None = None
    not_live: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under one policy. ``tls``: with TLS inspection of port 443. ``known``: more of the map file."""

    name: str
    documents: tuple[Any, ...]
    rows: tuple[Row, ...] = field(default=())
    tls: bool = False
    known: str = ""

    @property
    def map(self) -> str:
        """The map file; empty: none."""
        return (MAP if self.tls else "") + self.known


def tcp(port: int = 7, **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "dport": port, "payload": "x", "reply": "x", **more}


def http(host: str, uri: str = "/", **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "dport": 80, "http_host": host, "http_uri": uri, **more}


def tls(name: str, **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "sni": name, **more}


def udp(**more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "proto": "udp", "dport": 7, "payload": "x", "reply": "x", **more}


def dns(name: str) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "dns_query": name}


BLOCKED = tls("blocked.test", http_uri="/", dst="203.0.113.11")  # where the lab has a certificate for it
PING = {"src": CLIENT, "dst": SERVER, "proto": "icmp"}
BANNER = tcp(19, payload=[], reply='!"#$%&')
SPLIT = {"segment": 20}  # a request head in several packets
SPLIT_HELLO = {"segment": 500}  # and a ClientHello


def documents(rules: str, order: str = STRICT, defaults: tuple[str, ...] = (), **changes: Any) -> tuple[Any, ...]:
    changes["StatefulDefaultActions"] = [f"aws:{name}" for name in defaults]
    return policy(order, ("g",), **changes), group("g", stateful(rules, order))


# -- rule order and actions --------------------------------------------------------------------------------------------

_ORDER = """\
pass tcp any any -> any 7 (sid:1;)
drop tcp any any -> any 7 (sid:2;)
drop tcp any any -> any 23 (sid:3;)
pass tcp any any -> any 23 (sid:4;)
alert tcp any any -> any 6001 (sid:5;)
reject tcp any any -> any 6001 (sid:6;)
reject tcp any any -> any 8443 (sid:7;)
drop tcp any any -> any 8443 (sid:8;)
drop http any any -> any any (http.uri; content:"/secret"; sid:9;)
pass tls any any -> any any (tls.sni; content:"site-a.test"; sid:10;)
alert tcp any any -> any 443 (flow:established,to_server; content:"|16 03|"; startswith; sid:11;)
drop udp any any -> any 7 (content:"bad"; sid:12;)
"""

_PRIORITY = """\
alert tcp any any -> any 7 (priority:2; sid:1;)
alert tcp any any -> any 7 (priority:1; sid:2;)
drop tcp any any -> any 23 (priority:1; sid:3;)
pass tcp any any -> any 23 (priority:9; sid:4;)
"""
_EARLY = "pass tcp any any -> any 7 (sid:1;)\ndrop tcp any any -> any 23 (sid:2;)"
_ACTIONS = """\
pass tcp any any -> any 7 (alert; sid:1;)
drop tcp any any -> any 23 (noalert; sid:2;)
drop tcp any 6001 -> any any (sid:3;)
alert tcp any 8443 <> any any (sid:4;)
drop http any any -> any any (http.uri; content:"/secret"; sid:5;)
drop icmp any any -> any any (sid:6;)
drop dns any any -> any any (dns.query; content:"site-b.test"; sid:7;)
"""
ELSEWHERE = tcp(8443, payload="GET /secret HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n")


def _two_groups(*groups: tuple[str, int, str]) -> tuple[Any, ...]:
    """Name, priority of the reference, rules."""
    references = [{"ResourceArn": f"{ARN}stateful-rulegroup/{name}", "Priority": at} for name, at, _ in groups]
    changes = {"StatefulRuleGroupReferences": references}
    return policy(STRICT, **changes), *(group(name, stateful(rules)) for name, _, rules in groups)


def _override(rules: str) -> tuple[Any, ...]:
    made, *more = documents(rules)
    made["FirewallPolicy"]["StatefulRuleGroupReferences"][0]["Override"] = {"Action": "DROP_TO_ALERT"}
    return made, *more


ORDER = (
    Group(
        "strict order",
        documents(_ORDER),
        (
            Row("E: strict order is as written: the pass above the drop", tcp(7), "pass"),
            Row("E: ... the drop above the pass", tcp(23), "drop", (3,)),
            Row("A: alert logs and goes on to the next rule", tcp(6001), "reject", (5, 6)),
            Row("A: reject is a drop that tells the sender", tcp(8443), "reject", (7, 8)),
            Row("A: a rule on HTTP looks at requests", http("site-a.test", "/secret"), "drop", (9,)),
            Row("E: what no rule matches passes without default actions", http("site-a.test"), "pass"),
            Row("A: an alert above is not ended by a pass below", tls("site-a.test", **SPLIT_HELLO), "pass", (11,)),
            Row("A: drop on a datagram's content", udp(payload="bad"), "drop", (12,)),
            Row("A: ... other datagrams pass", udp(payload="good"), "pass"),
        ),
    ),
    Group(
        "action order",
        documents(_ORDER, ACTION),
        (
            Row("E: action order tries pass first", tcp(23), "pass"),
            Row("E: ... then drop, then reject", tcp(8443), "drop", (7, 8)),
            Row("E: ... then alert", tcp(6001), "reject", (5, 6)),
            Row("E: ... a pass wherever it is written", tcp(7), "pass"),
            Row("A: a pass by SNI is the flow's", tls("site-a.test", **SPLIT_HELLO), "pass", (11,)),
            Row("A: drop on a datagram's content", udp(payload="bad"), "drop", (12,)),
            Row("E: what no rule matches passes", http("site-a.test"), "pass"),
        ),
    ),
    Group(
        "priority in action order",
        documents(_PRIORITY, ACTION),
        (
            Row("E: rules of one action go by priority, low first", tcp(7), "pass", (2, 1), in_order=True),
            Row("E: ... which is never before their action", tcp(23), "pass"),
        ),
    ),
    Group(
        "priority of groups",
        _two_groups(("late", 200, "drop tcp any any -> any 7 (sid:1;)"), ("early", 100, _EARLY)),
        (
            Row("E: groups go by the Priority of their reference, low first", tcp(7), "pass"),
            Row("E: ... also against a drop", tcp(23), "drop", (2,)),
        ),
    ),
    Group(
        "actions",
        documents(_ACTIONS),
        (
            Row("B: alert inside a pass rule logs it", tcp(7), "pass", (1,)),
            Row("B: noalert silences", tcp(23), "drop"),
            Row("M: Direction FORWARD is one direction: of the answers", tcp(6001), "drop", (3,)),
            Row("M: Direction ANY is both", tcp(8443, payload="GET /a HTTP/1.1\\r\\n\\r\\n"), "pass", (4,)),
            Row("A: rules on HTTP go by what is spoken, not by the port", ELSEWHERE, "drop", (4, 5)),
            Row("A: a rule on ICMP", PING, "drop", (6,)),
            Row("A: a rule on DNS", dns("site-b.test"), "drop", (7,)),
            Row("A: ... other questions pass", dns("site-a.test"), "pass"),
        ),
    ),
    Group(
        "DROP_TO_ALERT",
        _override("drop tcp any any -> any 7 (sid:1;)"),
        (Row("M: Override DROP_TO_ALERT makes alerts of drops", tcp(7), "pass", (1,)),),
    ),
)

# -- domain lists ------------------------------------------------------------------------------------------------------


def _listed(
    kind: str, *targets: str, types: tuple[str, ...] = ("TLS_SNI", "HTTP_HOST"), order: str = STRICT, **more: Any
) -> tuple[Any, ...]:
    names = {"Targets": list(targets), "TargetTypes": list(types), "GeneratedRulesType": kind}
    changes = more.pop("policy", {})
    body = {"RulesSource": {"RulesSourceList": names}, "StatefulRuleOptions": {"RuleOrder": order}, **more}
    return policy(order, ("g",), **changes), group("g", body)


_WIDER = {"IPSets": {"HOME_NET": {"Definition": ["10.1.0.0/16"]}}}
_ABROAD = {"PolicyVariables": {"RuleVariables": {"HOME_NET": {"Definition": ["192.168.0.0/16"]}}}}


def _allow(order: str) -> Group:
    return Group(
        f"ALLOWLIST, {order}",
        _listed("ALLOWLIST", ".site-a.test", "allowed.test", order=order),
        (
            Row("D: an allow list passes its names: TLS", tls("site-a.test"), "pass"),
            Row("D: ... HTTP", http("site-a.test"), "pass"),
            Row("D: a leading dot is all names below it, too", tls("a.b.site-a.test"), "pass"),
            Row("D: ... not what merely ends so", http("notsite-a.test"), "drop", (6,)),
            Row("D: a name without a dot is that name alone", http("www.allowed.test"), "drop", (6,)),
            Row("D: case does not matter: TLS", tls("Site-A.test"), "pass"),
            Row("D: ... of HTTP", http("SITE-A.test"), "pass"),
            Row("D: others are dropped; sids count from 1, TLS first", tls("site-b.test"), "drop", (3,)),
            Row("D: ... those of HTTP", http("site-b.test"), "drop", (6,)),
            Row("D: a ClientHello in several packets is waited for", tls("site-a.test", **SPLIT_HELLO), "pass"),
            Row("D: ... also to be dropped", tls("site-b.test", **SPLIT_HELLO), "drop", (3,)),
            Row("D: only traffic of the listed protocols is denied", tcp(7), "pass"),
            Row("D: ... UDP passes", udp(), "pass"),
        ),
    )


LISTS = (
    _allow(STRICT),
    _allow(ACTION),
    Group(
        "ALLOWLIST of SNI",
        _listed("ALLOWLIST", "site-a.test", types=("TLS_SNI",)),
        (
            Row("D: a list is about its TargetTypes alone", http("site-b.test"), "pass"),
            Row("D: ... and denies in these", tls("site-b.test"), "drop", (2,)),
        ),
    ),
    Group(
        "DENYLIST",
        _listed("DENYLIST", "site-b.test"),
        (
            Row("D: a deny list drops its names: TLS", tls("site-b.test"), "drop", (1,)),
            Row("D: ... HTTP", http("site-b.test"), "drop", (2,)),
            Row("D: ... and lets others be", tls("site-a.test"), "pass"),
            Row("D: ... a segmented hello, too", tls("site-b.test", **SPLIT_HELLO), "drop", (1,)),
        ),
    ),
    Group(
        "REJECTLIST",
        _listed("REJECTLIST", "site-b.test"),
        (
            Row("M: a reject list rejects its names", tls("site-b.test"), "reject", (1,)),
            Row("M: ... HTTP", http("site-b.test"), "reject", (2,)),
            Row("M: ... and lets others be", http("site-a.test"), "pass"),
        ),
    ),
    Group(
        "ALERTLIST",
        _listed("ALERTLIST", "site-b.test"),
        (
            Row("M: an alert list logs its names", tls("site-b.test"), "pass", (1,)),
            Row("M: ... not others", http("site-a.test"), "pass"),
        ),
    ),
    Group(
        "sources outside HOME_NET",
        _listed("ALLOWLIST", "site-a.test", policy=_ABROAD),
        (Row("D: only sources in HOME_NET are inspected", http("site-b.test"), "pass"),),
    ),
    Group(
        "HOME_NET of the group",
        _listed("ALLOWLIST", "site-a.test", policy=_ABROAD, RuleVariables=_WIDER),
        (Row("D: a group's own HOME_NET extends that", http("site-b.test"), "drop", (4,)),),
    ),
)

# -- variables ---------------------------------------------------------------------------------------------------------

_VARIABLES = """\
drop tcp $HOME_NET any -> $EXTERNAL_NET 7 (sid:1;)
drop tcp $EXTERNAL_NET any -> any 23 (sid:2;)
drop tcp any any -> $SERVERS $PORTS (sid:3;)
"""
_OWN_HOME = """\
drop tcp any any -> $HOME_NET 7 (sid:1;)
drop tcp any any -> $EXTERNAL_NET 23 (sid:2;)
"""
_SETS = {
    "IPSets": {"SERVERS": {"Definition": ["203.0.113.0/24", "!203.0.113.11"]}},
    "PortSets": {"PORTS": {"Definition": ["6001", "[8000:9000]"]}},
}
_SERVERS_HOME = {"IPSets": {"HOME_NET": {"Definition": ["203.0.113.0/24"]}}}
_PREFIX_LIST = "arn:aws:ec2:us-east-1:123456789012:prefix-list/pl-0abc"
_REFERENCE = {"IPSetReferences": {"PARTNERS": {"ReferenceArn": _PREFIX_LIST}}}


def _with_variables(rules: str, policy_changes: dict[str, Any] | None = None, **group_changes: Any) -> tuple[Any, ...]:
    return policy(STRICT, ("g",), **policy_changes or {}), group("g", stateful(rules, STRICT, **group_changes))


VARIABLES = (
    Group(
        "variables",
        _with_variables(_VARIABLES, RuleVariables=_SETS),
        (
            Row("L: HOME_NET is the policy's, EXTERNAL_NET all else", tcp(7), "drop", (1,)),
            Row("L: ... so the client is not in EXTERNAL_NET", tcp(23), "pass"),
            Row("M: IPSets and PortSets", tcp(6001), "drop", (3,)),
            Row("M: ... ranges of ports", tcp(8443), "drop", (3,)),
            Row("M: ... what is negated is not in the set", tcp(6001, dst="203.0.113.11"), "pass"),
        ),
    ),
    Group(
        "HOME_NET by rule variables of the group",
        _with_variables(_OWN_HOME, RuleVariables=_SERVERS_HOME),
        (
            Row("L: a group's HOME_NET is for its rules", tcp(7), "drop", (1,)),
            Row("L: ... and does not change EXTERNAL_NET", tcp(23), "drop", (2,)),
        ),
    ),
    Group(
        "HOME_NET of the VPC",
        _with_variables(_VARIABLES, {"PolicyVariables": {}}, RuleVariables=_SETS),
        (Row("M: HOME_NET is the VPC's where the policy has none", tcp(7), "drop", (1,)),),
        known="home_net: [10.1.0.0/16]\n",
    ),
    Group(
        "IP set references",
        _with_variables("drop tcp any any -> @PARTNERS 7 (sid:1;)", ReferenceSets=_REFERENCE),
        (
            Row("M: @NAME is what the reference holds", tcp(7), "drop", (1,)),
            Row("M: ... and nothing else", tcp(7, dst="203.0.113.11"), "pass"),
        ),
        known=f"ip_sets: {{'{_PREFIX_LIST}': [203.0.113.10/32]}}\n",
    ),
)

# -- default actions ---------------------------------------------------------------------------------------------------

_GOOD = """\
pass tls any any -> any any (tls.sni; content:"site-a.test"; endswith; sid:101;)
pass http any any -> any any (http.host; content:"site-a.test"; sid:102;)
pass tcp any any -> any 6001 (sid:103;)
"""


def _twin(condition: str, *more: str) -> tuple[Any, ...]:
    return documents(_GOOD, STRICT, (f"drop_{condition}", f"alert_{condition}", *more))


def _alert(condition: str) -> tuple[Any, ...]:
    return documents(_GOOD, STRICT, (f"alert_{condition}",))


# Default actions, what they do to TCP, and what they log of TCP and UDP.
_COMBINED: tuple[tuple[tuple[str, ...], str, tuple[int, ...], tuple[int, ...]], ...] = (
    (("drop_established", "alert_strict"), "drop", (2,), (2,)),
    (("drop_established", "alert_strict", "alert_established"), "drop", (2, 4), (2, 4)),
    (("drop_strict", "alert_established"), "drop", (), (4,)),
    (("drop_strict", "alert_strict", "alert_established"), "drop", (2,), (2, 4)),
    (("drop_established_app_layer", "alert_strict"), "drop", (2,), (2,)),
    (("drop_established_app_layer", "alert_strict", "alert_established_app_layer"), "drop", (2, 6), (2, 6)),
    (("drop_established_app_layer_to_server", "alert_established_app_layer"), "drop", (6,), (6,)),
    (("alert_strict", "alert_established"), "pass", (2, 4), (2, 4)),
    (("alert_strict", "alert_established_app_layer_to_server"), "pass", (2, 8), (2, 8)),
)
DEFAULTS = (
    Group(
        "drop_strict",
        _twin("strict"),
        (
            Row("E: drop_strict drops every packet, handshakes too; its alert is sid 2", tcp(7), "drop", (2,)),
            Row("E: ... a rule on an application never gets to see it", http("site-a.test"), "drop", (2,)),
            Row("E: ... only what a rule passes from its first packet on", tcp(6001), "pass"),
            Row("E: ... UDP too", udp(), "drop", (2,)),
            Row("E: ... ICMP too", PING, "drop", (2,)),
        ),
    ),
    Group(
        "drop_established",
        _twin("established"),
        (
            Row("E: drop_established lets handshakes be and drops what follows; sid 4", tcp(7), "drop", (4,)),
            Row("E: ... a rule that passes goes before it", http("site-a.test"), "pass"),
            Row("E: ... and another host is dropped", http("site-b.test"), "drop", (4,)),
            Row(
                "B: ... a request in several packets is dropped at its first",
                http("site-a.test", **SPLIT),
                "drop",
                (4,),
            ),
            Row("B: ... so is a ClientHello", tls("site-a.test", **SPLIT_HELLO), "drop", (4,)),
            Row("E: ... not what a server says first, but the answer to it", BANNER, "drop", (4,), heard=True),
            Row("E: ... UDP is taken for established", udp(), "drop", (4,)),
            Row("E: ... ICMP as well", PING, "drop", (4,)),
            Row("E: ... a flow that a rule passes is not the default's", tcp(6001), "pass"),
        ),
    ),
    Group(
        "drop_established_app_layer",
        _twin("established_app_layer"),
        (
            Row("E: app_layer waits for a request in several packets", http("site-a.test", **SPLIT), "pass"),
            Row("E: ... and for a ClientHello", tls("site-a.test", **SPLIT_HELLO), "pass"),
            Row("E: ... then drops what no rule passes; sid 6", http("site-b.test", **SPLIT), "drop", (6,)),
            Row("E: ... the same of a ClientHello", tls("site-b.test", **SPLIT_HELLO), "drop", (6,)),
            Row("E: ... UDP", udp(), "drop", (6,)),
            Row("E: ... ICMP", PING, "drop", (6,)),
            Row("E: ... what is no application it knows, at once", tcp(7), "drop", (6,)),
            Row("E: ... and the server's banner", BANNER, "drop", (6,)),
        ),
    ),
    Group(
        "drop_established_app_layer_to_server",
        _twin("established_app_layer_to_server"),
        (
            Row("E: ..._to_server waits as well", http("site-a.test", **SPLIT), "pass"),
            Row("E: ... and for a ClientHello", tls("site-a.test", **SPLIT_HELLO), "pass"),
            Row("E: ... then drops; sid 8", http("site-b.test", **SPLIT), "drop", (8,)),
            Row("E: ... the same of a ClientHello", tls("site-b.test", **SPLIT_HELLO), "drop", (8,)),
            Row("E: ... not the server's banner, but the answer to it", BANNER, "drop", (8,), heard=True),
            Row("E: ... UDP", udp(), "drop", (8,)),
            Row("E: ... ICMP", PING, "drop", (8,)),
        ),
    ),
    Group(
        "alert_strict",
        _alert("strict"),
        (
            Row("E: alert_strict logs and lets pass; sid 2", tcp(7), "pass", (2,)),
            Row("E: ... UDP", udp(), "pass", (2,)),
            Row("E: ... not what a rule has passed from the first packet on", tcp(6001), "pass"),
        ),
    ),
    Group(
        "alert_established",
        _alert("established"),
        (
            Row("E: alert_established; sid 4", tcp(7), "pass", (4,)),
            Row("E: ... UDP", udp(), "pass", (4,)),
        ),
    ),
    Group(
        "alert_established_app_layer",
        _alert("established_app_layer"),
        (
            Row("E: alert_established_app_layer; sid 6", http("site-b.test"), "pass", (6,)),
            Row("E: ... not what a rule passes", http("site-a.test", **SPLIT), "pass"),
            Row("E: ... the server's banner, too", BANNER, "pass", (6,)),
            Row("E: ... UDP", udp(), "pass", (6,)),
        ),
    ),
    Group(
        "alert_established_app_layer_to_server",
        _alert("established_app_layer_to_server"),
        (
            Row("E: alert_..._to_server; sid 8", http("site-b.test"), "pass", (8,)),
            Row("E: ... not what a rule passes", http("site-a.test", **SPLIT), "pass"),
            Row("E: ... the answer to the server's banner, too", BANNER, "pass", (8,)),
            Row("E: ... UDP", udp(), "pass", (8,)),
        ),
    ),
    *(
        Group(
            f"drop_{condition} without its twin",
            documents(_GOOD, STRICT, (f"drop_{condition}",)),
            (
                Row("B: a drop without its alert twin is silent", tcp(7), "drop"),
                Row("B: ... UDP", udp(), "drop"),
                Row("B: ... what a rule passes passes", tcp(6001), "pass"),
            ),
        )
        for condition in ("strict", "established", "established_app_layer", "established_app_layer_to_server")
    ),
    *(
        Group(
            " with ".join(names),
            documents(_GOOD, STRICT, names),
            (
                Row("E: default actions that go together", tcp(7), verdict, of_tcp),
                Row("E: ... UDP", udp(), verdict, of_udp),
                Row("E: ... not what a rule passes from its first packet on", tcp(6001), "pass"),
            ),
        )
        for names, verdict, of_tcp, of_udp in _COMBINED
    ),
)

# -- IP-only rules -----------------------------------------------------------------------------------------------------

_IP_ONLY = """\
alert ip any any -> 203.0.113.0/24 any (sid:1;)
alert ip any any -> !192.0.2.0/24 23 (sid:2;)
pass tcp any any -> any 7 (sid:3;)
drop tcp any any -> any 7 (flow:to_server,established; content:"bad"; sid:4;)
drop ip any any -> any 6001 (sid:5;)
drop tcp any any -> any 8443 (flow:to_server,established; sid:6;)
"""
IP_ONLY = (
    Group(
        "IP-only rules",
        documents(_IP_ONLY),
        (
            Row("L: a rule without flow state is tried on a direction's first packet", tcp(23), "pass", (1, 2)),
            Row("L: ... and its pass is the flow's: no later rule sees it", tcp(7, payload="bad"), "pass", (1,)),
            Row("L: ... its drop meets the SYN", tcp(6001), "drop", (1, 5)),
            Row("L: a rule with flow:established lets the handshake be", tcp(8443), "drop", (1, 6)),
        ),
    ),
)

# -- stateless engine --------------------------------------------------------------------------------------------------


EVERYWHERE = [{"AddressDefinition": "0.0.0.0/0"}]


def _ports(port: int) -> list[dict[str, int]]:
    return [{"FromPort": port, "ToPort": port}]


def _with_stateless(
    fragments: str, rules: str = "drop ip any any -> any any (sid:1;)", default: str = "aws:forward_to_sfe"
) -> tuple[Any, ...]:
    tcp_flags = [{"Flags": ["SYN"], "Masks": ["SYN", "ACK"]}]
    body = stateless(
        stateless_rule(10, "aws:pass", Protocols=[6], DestinationPorts=_ports(7)),
        stateless_rule(20, "aws:drop", Protocols=[6], DestinationPorts=_ports(7)),
        stateless_rule(30, "aws:drop", Protocols=[6], DestinationPorts=_ports(23), TCPFlags=tcp_flags),
        stateless_rule(40, "aws:forward_to_sfe", Protocols=[6], DestinationPorts=_ports(6001)),
        stateless_rule(50, "aws:pass", Sources=EVERYWHERE, SourcePorts=_ports(7), Protocols=[6]),
    )
    changes = {
        "StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/edge", "Priority": 1}],
        "StatelessDefaultActions": [default],
        "StatelessFragmentDefaultActions": [fragments],
    }
    return *documents(rules, **changes), group("edge", body, "STATELESS")


def _both_ways(priority: int, action: str, port: int, **match: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A rule for TCP to a port of the servers, and one for what comes back."""
    return (
        stateless_rule(priority, action, Protocols=[6], DestinationPorts=_ports(port), **match),
        stateless_rule(priority + 1, action, Protocols=[6], Sources=EVERYWHERE, SourcePorts=_ports(port)),
    )


def _stateless_groups() -> tuple[Any, ...]:
    counted = stateless_rule(1, "aws:drop", Protocols=[6], DestinationPorts=_ports(23))
    counted["RuleDefinition"]["Actions"].append("Count")
    some = [{"AddressDefinition": "192.0.2.0/24"}, {"AddressDefinition": "10.1.0.0/16"}]
    elsewhere = [{"AddressDefinition": "192.0.2.0/24"}]
    first = stateless(*_both_ways(10, "aws:pass", 7), counted, actions=(counting(),))
    second = stateless(
        *_both_ways(1, "aws:drop", 7),
        stateless_rule(3, "aws:drop", Protocols=[6], DestinationPorts=_ports(6001), Sources=some),
        stateless_rule(4, "aws:drop", Protocols=[6], DestinationPorts=_ports(8443), Destinations=elsewhere),
        stateless_rule(5, "aws:drop", Protocols=[6], DestinationPorts=_ports(80), TCPFlags=[{"Flags": ["SYN"]}]),
        stateless_rule(6, "aws:drop", Protocols=[6], DestinationPorts=_ports(8443), TCPFlags=[{"Flags": ["PSH"]}]),
        stateless_rule(7, "aws:drop", Protocols=[1, 17]),
    )
    changes = {
        "StatelessRuleGroupReferences": [
            {"ResourceArn": f"{ARN}stateless-rulegroup/second", "Priority": 20},
            {"ResourceArn": f"{ARN}stateless-rulegroup/first", "Priority": 10},
        ]
    }
    groups = (group("second", second, "STATELESS"), group("first", first, "STATELESS"))
    return *documents("alert tcp any any -> any any (sid:1;)", **changes), *groups


_PIECES = {"payload": "0123456789" * 8, "fragments": True}
STATELESS = (
    Group(
        "stateless rules",
        _with_stateless("aws:drop"),
        (
            Row("M: the lowest priority that matches ends the search: pass", tcp(7), "pass"),
            Row("M: TCP flags within their masks", tcp(23), "drop"),
            Row("M: forward_to_sfe hands the packet to the stateful engine", tcp(6001), "drop", (1,)),
            Row("M: so does the default", udp(), "drop", (1,)),
            Row("M: ... of ICMP", PING, "drop", (1,)),
            Row("M: the fragment default drops fragments of UDP", udp(**_PIECES), "drop"),
            Row("M: those of other protocols are always dropped", {**PING, "fragments": True}, "drop"),
        ),
    ),
    Group(
        "stateless groups",
        _stateless_groups(),
        (
            Row("M: groups go by Priority; what is passed is not the stateful engine's", tcp(7), "pass"),
            Row("M: a custom action is beside what the rule does", tcp(23), "drop"),
            Row("M: a list of sources is any of them", tcp(6001), "drop"),
            Row("M: attributes are all to match; without Masks all flags are looked at", tcp(8443), "pass", (1,)),
            Row("M: ... SYN and nothing else", http("site-a.test"), "drop"),
            Row("M: Protocols are IANA numbers: 17", udp(), "drop"),
            Row("M: ... and 1", PING, "drop"),
        ),
    ),
    Group(
        "stateless default pass",
        _with_stateless("aws:drop", default="aws:pass"),
        (
            Row("M: the default passes what no rule matches, past the stateful engine", udp(), "pass"),
            Row("M: ... ICMP", PING, "pass"),
            Row("M: ... what a rule forwards is the stateful engine's", tcp(6001), "drop", (1,)),
        ),
    ),
    Group(
        "stateless default drop",
        _with_stateless("aws:pass", default="aws:drop"),
        (
            Row("M: the default drops what no rule matches", udp(), "drop"),
            Row("M: ... ICMP", PING, "drop"),
            Row("M: ... what a rule passes passes", tcp(7), "pass"),
        ),
    ),
    Group(
        "fragments passed",
        _with_stateless("aws:pass", "drop udp any any -> any 7 (sid:1;)"),
        (
            Row("M: the fragment default lets fragments of UDP pass", udp(**_PIECES), "pass"),
            Row("M: ... which are not the stateful engine's, as whole datagrams are", udp(), "drop", (1,)),
            Row("M: ... not those of other protocols", {**PING, "fragments": True}, "drop"),
            Row("M: ... which pass as a whole", PING, "pass"),
            Row("M: ... nor of TCP", tcp(7, fragments=True), "drop"),
        ),
    ),
    Group(
        "fragments forwarded",
        _with_stateless("aws:forward_to_sfe", 'drop udp any any -> any any (content:"789012"; sid:1;)'),
        (
            Row("M: forwarded, a datagram is judged as a whole", udp(**_PIECES), "drop", (1,)),
            Row("M: ... and passes as a whole", udp(payload="abcdefghij" * 8, fragments=True), "pass"),
            Row("M: ... those of other protocols are dropped", {**PING, "fragments": True}, "drop"),
        ),
    ),
)

# -- stream exception policy -------------------------------------------------------------------------------------------

MIDSTREAM = tcp(7, midstream=True, payload="midway", reply="midway")
_STATELESS_FLOW = """\
alert tcp any any -> any any (flow:stateless; content:"midway"; sid:1;)
drop http any any -> any any (sid:2;)
"""


_REQUEST = "GET / HTTP/1.1\\r\\nHost: site-a.test\\r\\n\\r\\n"


def _exception(name: str | None, *defaults: str) -> tuple[Any, ...]:
    options = {"RuleOrder": STRICT, **({"StreamExceptionPolicy": name} if name else {})}
    return documents(_STATELESS_FLOW, STRICT, defaults, StatefulEngineOptions=options)


STREAMS = (
    Group(
        "no stream exception",
        _exception(None),
        (
            Row("S: DROP is the default", MIDSTREAM, "drop"),
            Row("S: ... connections from their beginning pass", tcp(7, payload="y", reply="y"), "pass"),
        ),
    ),
    Group(
        "DROP",
        _exception("DROP"),
        (
            Row("S: DROP drops midstream TCP", MIDSTREAM, "drop"),
            Row("S: ... there is nothing of it with UDP", udp(), "pass"),
        ),
    ),
    Group("REJECT", _exception("REJECT"), (Row("S: REJECT resets it", MIDSTREAM, "reject"),)),
    Group(
        "CONTINUE",
        _exception("CONTINUE"),
        (
            Row("S: CONTINUE goes on, rules on flow:stateless match", MIDSTREAM, "pass", (1,)),
            Row(
                "S: ... rules on an application do not",
                tcp(80, midstream=True, payload=_REQUEST, reply="HTTP/1.1 404 Not Found\\r\\n\\r\\n"),
                "pass",
            ),
            Row("S: ... on connections from their beginning they do", http("site-a.test"), "drop", (2,)),
        ),
    ),
    Group(
        "CONTINUE with drop_strict",
        _exception("CONTINUE", "drop_strict"),
        (Row("S: ... drop_strict still applies", MIDSTREAM, "drop", (1,)),),
    ),
)

# -- idle flows --------------------------------------------------------------------------------------------------------

_WATCHED = """\
alert tcp any any -> any any (flow:established; content:"never there"; sid:1;)
alert udp any any -> any 7 (sid:2;)
alert udp any any -> any any (content:"never there"; sid:3;)
"""
_AGAIN = {"payload": ["x", "y"], "reply": ["x", "y"]}
_AS_OF_60 = "minutes of waiting, by the same clock and table as the rows of 60 s"


def _idle(seconds: int | None = None) -> tuple[Any, ...]:
    timeouts = {"FlowTimeouts": {"TcpIdleTimeoutSeconds": seconds}} if seconds is not None else {}
    return documents(_WATCHED, StatefulEngineOptions={"RuleOrder": STRICT, **timeouts})


IDLE = (
    Group(
        "TcpIdleTimeoutSeconds 60",
        _idle(60),
        (
            Row("M: a TCP flow is known while it is idle no longer than this", tcp(**_AGAIN), "pass", pause=57.0),
            Row("M: ... what comes then is midstream", tcp(**_AGAIN), "drop", pause=63.0),
            Row("M: UDP is known for 120 s", udp(**_AGAIN), "pass", (2,), pause=114.0, records=1),
            Row("M: ... what comes then begins a flow", udp(**_AGAIN), "pass", (2,), pause=123.0, records=2),
        ),
    ),
    Group(
        "no TcpIdleTimeoutSeconds",
        _idle(),
        (
            Row("M: 350 s are the default", tcp(**_AGAIN), "pass", pause=349.0, not_live=_AS_OF_60),
            Row("M: ... and no more", tcp(**_AGAIN), "drop", pause=351.0, not_live=_AS_OF_60),
        ),
    ),
    Group(
        "TcpIdleTimeoutSeconds 6000",
        _idle(6000),
        (Row("M: 6000 s at most", tcp(**_AGAIN), "pass", pause=5999.0, not_live=_AS_OF_60),),
    ),
)

# -- TLS inspection and session holding --------------------------------------------------------------------------------

_TLS_CONFIGURATION: dict[str, Any] = {
    "TLSInspectionConfiguration": {
        "ServerCertificateConfigurations": [
            {
                "CertificateAuthorityArn": CERTIFICATE,
                "Scopes": [{"DestinationPorts": [*_ports(443), *_ports(8443)], "Protocols": [6]}],
            }
        ]
    },
    "TLSInspectionConfigurationResponse": {
        "TLSInspectionConfigurationArn": f"{ARN}tls-configuration/t",
        "TLSInspectionConfigurationName": "t",
        "TLSInspectionConfigurationId": "id",
    },
}
# As a domain list generates them (D: suricata-examples).
_LISTED = """\
pass tls $HOME_NET any -> $EXTERNAL_NET any (tls.sni; content:"site-a.test"; startswith; nocase; endswith; \\
flow:to_server, established; sid:1;)
drop tls $HOME_NET any -> $EXTERNAL_NET any (ssl_state:client_hello; flow:to_server, established; sid:2;)
"""
LISTED = tls("site-a.test", http_uri="/")
_INSIDE = """\
pass tls any any -> any any (tls.sni; content:"site-a.test"; sid:1;)
drop http any any -> any any (http.uri; content:"/secret"; sid:2;)
drop tls any any -> any any (tls.sni; content:"blocked.test"; sid:3;)
reject http any any -> any any (http.uri; content:"/reset"; sid:4;)
drop tls any any -> any any (flow:to_client; tls.cert_subject; content:"CN="; sid:5;)
drop udp any any -> any 6001 (sid:6;)
"""


_QUIC = {"payload": "\\xc3\\x00\\x00\\x00\\x01\\x08" + "x" * 1194}
UNTOUCHED = tls("tls12.test", http_uri="/secret", dst="203.0.113.14")


def _scoped() -> tuple[Any, ...]:
    """TLS inspection of .10, .14 and .15; the stateless engine passes .14 and drops .15."""
    inspected = [{"AddressDefinition": f"203.0.113.{host}/32"} for host in (10, 14, 15)]
    configuration = copy.deepcopy(_TLS_CONFIGURATION)
    (entry,) = configuration["TLSInspectionConfiguration"]["ServerCertificateConfigurations"]
    entry["Scopes"] = [{"Destinations": inspected, "DestinationPorts": _ports(443), "Protocols": [6]}]
    passed, dropped = ([{"AddressDefinition": f"203.0.113.{host}/32"}] for host in (14, 15))
    body = stateless(
        stateless_rule(1, "aws:pass", Destinations=passed),
        stateless_rule(2, "aws:pass", Sources=passed),
        stateless_rule(3, "aws:drop", Destinations=dropped),
    )
    changes = {
        "TLSInspectionConfigurationArn": f"{ARN}tls-configuration/t",
        "StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/edge", "Priority": 1}],
    }
    return *documents(_INSIDE.split("\n", 1)[1], **changes), group("edge", body, "STATELESS"), configuration


def _inspected(holding: bool, rules: str = _INSIDE, *defaults: str) -> tuple[Any, ...]:
    changes: dict[str, Any] = {"TLSInspectionConfigurationArn": f"{ARN}tls-configuration/t"}
    if holding:
        changes["EnableTLSSessionHolding"] = True
    return *documents(rules, STRICT, defaults, **changes), _TLS_CONFIGURATION


INSPECTION = (
    Group(
        "TLS inspection",
        _inspected(False, _INSIDE.split("\n", 1)[1]),
        (
            Row("H: rules on HTTP see what is decrypted", tls("site-a.test", http_uri="/secret"), "drop", (2,)),
            Row("H: ... and reject", tls("site-a.test", http_uri="/reset"), "reject", (4,)),
            Row("H: what no rule is against passes; of TLS keywords only tls.sni matches", LISTED, "pass"),
            Row("H: rules on the SNI", BLOCKED, "drop", (3,)),
            Row("H: a ClientHello without SNI is reset", tls(""), "reject"),
            Row("H: what is not TLS in scope is dropped", tcp(443, payload="SSH-2.0-x\\r\\n", reply=[]), "drop"),
            Row("H: QUIC in scope is not decrypted, nor refused", udp(dport=8443, **_QUIC), "pass"),
            Row("H: ... rules may refuse it", udp(dport=6001, **_QUIC), "drop", (6,)),
            Row("H: outside of the scope nothing is decrypted", http("site-a.test", "/secret"), "drop", (2,)),
        ),
        tls=True,
    ),
    Group(
        "session holding off",
        _inspected(False),
        (Row("H: off, SNI and HTTP are judged together", tls("site-a.test", http_uri="/secret"), "pass"),),
        tls=True,
    ),
    Group(
        "TLS scopes",
        _scoped(),
        (
            Row("H: a scope is of destinations", tls("evil.test", http_uri="/secret", dst="203.0.113.12"), "pass"),
            Row("H: ... those in it are decrypted", tls("site-a.test", http_uri="/secret"), "drop", (2,)),
            Row("S: what the stateless engine passes is not decrypted", UNTOUCHED, "pass"),
            Row("S: ... what it drops does not come so far", tls("http1.test", dst="203.0.113.15"), "drop"),
        ),
        tls=True,
    ),
    Group(
        "session holding with drop_established",
        _inspected(True, _LISTED.partition("drop")[0], "drop_established"),
        (
            Row("H: on, the ClientHello is judged before the connection counts as established", LISTED, "pass"),
            Row("H: ... what no rule passes is the default's", tls("site-b.test", http_uri="/"), "drop"),
        ),
        tls=True,
    ),
    Group(
        "session holding with a domain list",
        _inspected(True, _LISTED),
        (
            Row("H: on, generated rules for the SNI decide, although they say flow:established", LISTED, "pass"),
            Row("H: ... and refuse the names that are not listed", tls("site-b.test"), "drop", (2,)),
        ),
        tls=True,
    ),
    Group(
        "session holding on",
        _inspected(True),
        (
            Row("H: on, a pass by SNI stops the rules on HTTP", tls("site-a.test", http_uri="/secret"), "pass"),
            Row("H: ... another name's requests are judged", tls("site-b.test", http_uri="/secret"), "drop", (2,)),
            Row(
                "H: ... and a name can be refused at once",
                tls("blocked.test", http_uri="/", dst="203.0.113.11"),
                "drop",
                (3,),
            ),
        ),
        tls=True,
    ),
)

GROUPS = (*ORDER, *LISTS, *VARIABLES, *DEFAULTS, *IP_ONLY, *STATELESS, *STREAMS, *IDLE, *INSPECTION)
MAP = f"certificates: {{'{CERTIFICATE}': {{certificate: ca.pem, private_key: ca.key}}}}\n"

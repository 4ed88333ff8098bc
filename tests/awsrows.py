"""What AWS Network Firewall's documentation says, a row a sentence, as flows that can be replayed, explained and sent.

``tests/unit/test_aws_conformance.py`` takes every row to replay and to explain, ``tests/netns/test_aws_live.py`` those
that can be sent through the lab. Addresses and ports are the lab's, where 7, 23, 6001 and 8443 answer with an echo.

Sources: service model (M), developer guide on evaluation order and default actions (E), rule actions (A), limitations
(L), TLS session holding (H), stream exception policy (S), best practices guide (B).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.unit.awskit import ARN, group, policy, stateful, stateless, stateless_rule

CLIENT, SERVER = "10.1.0.2", "203.0.113.10"
STRICT, ACTION = "STRICT_ORDER", "DEFAULT_ACTION_ORDER"
CERTIFICATE = "arn:aws:acm:us-east-1:123456789012:certificate/0a0a0a0a-0000-0000-0000-000000000001"


@dataclass(frozen=True)
class Row:
    """``flow``: keys of a description. ``verdict``: pass, drop or reject. ``alerts``: sids logged, in any order.
    ``live`` False: the lab cannot send it, or what it would show takes too long."""

    says: str
    flow: dict[str, Any]
    verdict: str
    alerts: tuple[int, ...] = ()
    live: bool = True


@dataclass(frozen=True)
class Group:
    """Rows under one policy. ``tls``: with TLS inspection of port 443."""

    name: str
    documents: tuple[Any, ...]
    rows: tuple[Row, ...] = field(default=())
    tls: bool = False


def tcp(port: int = 7, **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "dport": port, "payload": "x", "reply": "x", **more}


def http(host: str, uri: str = "/", **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "dport": 80, "http_host": host, "http_uri": uri, **more}


def tls(name: str, **more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "sni": name, **more}


def udp(**more: Any) -> dict[str, Any]:
    return {"src": CLIENT, "dst": SERVER, "proto": "udp", "dport": 7, "payload": "x", "reply": "x", **more}


BLOCKED = tls("blocked.test", http_uri="/", dst="203.0.113.11")  # where the lab has a certificate for it
PING = {"src": CLIENT, "dst": SERVER, "proto": "icmp"}
BANNER = {"payload": [], "reply": "SSH-2.0-x\\r\\n"}
SPLIT = {"segment": 20}  # a request head in several packets
SPLIT_HELLO = {"segment": 500}  # and a ClientHello


def documents(rules: str, order: str = STRICT, defaults: tuple[str, ...] = (), **changes: Any) -> tuple[Any, ...]:
    changes["StatefulDefaultActions"] = [f"aws:{name}" for name in defaults]
    return policy(order, ("g",), **changes), group("g", stateful(rules, order))


# -- rule order --------------------------------------------------------------------------------------------------------

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
        ),
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
            Row("E: ... UDP is taken for established", udp(), "drop", (4,)),
            Row("E: ... ICMP as well", PING, "drop", (4,)),
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
            Row("E: ... and the server's banner", tcp(7, **BANNER), "drop", (6,), live=False),
        ),
    ),
    Group(
        "drop_established_app_layer_to_server",
        _twin("established_app_layer_to_server"),
        (
            Row("E: ..._to_server waits as well", http("site-a.test", **SPLIT), "pass"),
            Row("E: ... and for a ClientHello", tls("site-a.test", **SPLIT_HELLO), "pass"),
            Row("E: ... then drops; sid 8", http("site-b.test", **SPLIT), "drop", (8,)),
            Row("E: ... UDP", udp(), "drop", (8,)),
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
            Row("E: ... UDP", udp(), "pass", (6,)),
        ),
    ),
    Group(
        "alert_established_app_layer_to_server",
        _alert("established_app_layer_to_server"),
        (
            Row("E: alert_..._to_server; sid 8", http("site-b.test"), "pass", (8,)),
            Row("E: ... UDP", udp(), "pass", (8,)),
        ),
    ),
    Group(
        "no alert twin",
        documents(_GOOD, STRICT, ("drop_established",)),
        (Row("B: a drop without its alert twin is silent", tcp(7), "drop", live=False),),
    ),
    Group(
        "drop_established with alert_strict",
        documents(_GOOD, STRICT, ("drop_established", "alert_strict")),
        (Row("E: alert_strict goes with any drop", tcp(7), "drop", (2,), live=False),),
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


def _with_stateless(fragments: str, rules: str = "drop ip any any -> any any (sid:1;)") -> tuple[Any, ...]:
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
        "StatelessDefaultActions": ["aws:forward_to_sfe"],
        "StatelessFragmentDefaultActions": [fragments],
    }
    return *documents(rules, **changes), group("edge", body, "STATELESS")


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
            Row("M: the fragment default drops fragments of UDP", udp(**_PIECES), "drop", live=False),
            Row("M: those of other protocols are always dropped", {**PING, "fragments": True}, "drop", live=False),
        ),
    ),
    Group(
        "fragments passed",
        _with_stateless("aws:pass"),
        (
            Row("M: the fragment default lets fragments of UDP pass", udp(**_PIECES), "pass", live=False),
            Row("M: ... not those of other protocols", {**PING, "fragments": True}, "drop", live=False),
            Row("M: ... nor of TCP", tcp(7, fragments=True), "drop", live=False),
        ),
    ),
    Group(
        "fragments forwarded",
        _with_stateless("aws:forward_to_sfe", 'drop udp any any -> any any (content:"789012"; sid:1;)'),
        (Row("M: forwarded, a datagram is judged as a whole", udp(**_PIECES), "drop", (1,), live=False),),
    ),
)

# -- stream exception policy -------------------------------------------------------------------------------------------

MIDSTREAM = tcp(7, midstream=True)
_STATELESS_FLOW = """\
alert tcp any any -> any any (flow:stateless; content:"x"; sid:1;)
drop http any any -> any any (sid:2;)
"""


def _exception(name: str | None, *defaults: str) -> tuple[Any, ...]:
    options = {"RuleOrder": STRICT, **({"StreamExceptionPolicy": name} if name else {})}
    return documents(_STATELESS_FLOW, STRICT, defaults, StatefulEngineOptions=options)


STREAMS = (
    Group(
        "no stream exception",
        _exception(None),
        (Row("S: DROP is the default", MIDSTREAM, "drop", live=False),),
    ),
    Group("DROP", _exception("DROP"), (Row("S: DROP drops midstream TCP", MIDSTREAM, "drop", live=False),)),
    Group("REJECT", _exception("REJECT"), (Row("S: REJECT resets it", MIDSTREAM, "reject", live=False),)),
    Group(
        "CONTINUE",
        _exception("CONTINUE"),
        (
            Row("S: CONTINUE goes on, rules on flow:stateless match", MIDSTREAM, "pass", (1,), live=False),
            Row(
                "S: ... rules on an application do not",
                tcp(80, midstream=True, payload="y\\r\\nGET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n", reply=[]),
                "pass",
                live=False,
            ),
        ),
    ),
    Group(
        "CONTINUE with drop_strict",
        _exception("CONTINUE", "drop_strict"),
        (Row("S: ... drop_strict still applies", MIDSTREAM, "drop", (1,), live=False),),
    ),
)

# -- TLS inspection and session holding --------------------------------------------------------------------------------

_TLS_CONFIGURATION = {
    "TLSInspectionConfiguration": {
        "ServerCertificateConfigurations": [
            {"CertificateAuthorityArn": CERTIFICATE, "Scopes": [{"DestinationPorts": _ports(443), "Protocols": [6]}]}
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
"""


def _inspected(holding: bool, rules: str = _INSIDE) -> tuple[Any, ...]:
    changes: dict[str, Any] = {"TLSInspectionConfigurationArn": f"{ARN}tls-configuration/t"}
    if holding:
        changes["EnableTLSSessionHolding"] = True
    return *documents(rules, **changes), _TLS_CONFIGURATION


INSPECTION = (
    Group(
        "TLS inspection",
        _inspected(False, _INSIDE.split("\n", 1)[1]),
        (
            Row("H: rules on HTTP see what is decrypted", tls("site-a.test", http_uri="/secret"), "drop", (2,)),
            Row("H: ... and reject", tls("site-a.test", http_uri="/reset"), "reject", (4,)),
            Row("H: what no rule is against passes", tls("site-a.test", http_uri="/"), "pass"),
            Row("H: rules on the SNI", BLOCKED, "drop", (3,)),
            Row("H: a ClientHello without SNI is reset", tls(""), "reject"),
            Row("H: what is not TLS in scope is refused", tcp(443, payload="SSH-2.0-x\\r\\n", reply=[]), "reject"),
            Row("H: outside of the scope nothing is decrypted", http("site-a.test", "/secret"), "drop", (2,)),
        ),
        tls=True,
    ),
    Group(
        "session holding off",
        _inspected(False),
        (Row("H: off, SNI and HTTP are judged together", tls("site-a.test", http_uri="/secret"), "pass", live=False),),
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

GROUPS = (*ORDER, *DEFAULTS, *IP_ONLY, *STATELESS, *STREAMS, *INSPECTION)
MAP = f"certificates: {{'{CERTIFICATE}': {{certificate: ca.pem, private_key: ca.key}}}}\n"

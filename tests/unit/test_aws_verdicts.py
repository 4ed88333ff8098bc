"""What AWS's documentation says becomes of packets: a row a sentence, documents in, packets through the pipeline.

Each row is also replayed as a capture and explained, and both have to say the same of every packet.

Sources, by the word in front of each row: service model (M), developer guide on rule actions (A), evaluation order and
default actions (E), limitations (L), domain lists (D), stream exception policy (S), best practices guide (B).
"""

from __future__ import annotations

import contextlib
import copy
import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfw.capture import Captured
from nfw.explain import Explainer
from nfw.marks import Disposition
from nfw.pipeline import Answer, Pipeline
from nfw.policy.compile import compile_policy
from nfw.policy.loader import load_policy
from nfw.policyreplay import replay_policy
from tests.unit.awskit import ARN, counting, group, policy, stateful, stateless, stateless_rule, write
from tests.unit.test_pipeline import Recorder

CLIENT, OUTSIDER, SERVER = "10.1.0.2", "198.51.100.9", "203.0.113.10"
DROPS = {Answer.DROP, Answer.DROP_FLOW}


class Line:
    """One conversation through one policy; the kernel's part is played: a flow it was told to drop or pass is."""

    def __init__(self, directory: Path, documents: list[Any], port: int = 80, client: str = CLIENT) -> None:
        self.effects = Recorder()
        compiled = compile_policy(load_policy(*write(directory, *documents), now=0.0))
        self.compiled = replace(compiled, filter=copy.deepcopy(compiled.filter))  # for others: it counts
        self.pipeline = Pipeline(compiled, 5, self.effects, 0.0)
        self.sent: list[Captured] = []
        self.client, self.port = client, port
        self.seq, self.ack = 1000, 5000
        self.number = 0
        self.settled = ""

    def send(self, packet: Scapy) -> str:
        """``.`` let through, ``x`` dropped, ``h`` held for now."""
        self.sent.append(Captured(len(self.sent) + 1, 1000.0, 101, bytes(packet)))
        if self.settled:
            return self.settled
        self.number += 1
        known = (5, Disposition.INSPECT) if self.number > 1 else (0, 0)
        answer = self.pipeline.packet(self.number, *known, bytes(packet), 1000.0)
        if answer is Answer.DROP_FLOW:
            self.settled = "x"
        elif answer is Answer.PASS:
            self.settled = "."
        return "x" if answer in DROPS else "h" if answer is Answer.HOLD else "."

    def step(self, step: str | bytes) -> str:
        """``S`` SYN, ``s`` SYN+ACK, ``a`` the client's ACK; ``>text`` from the client, ``<text`` from the server,
        ``u>`` and ``u<`` by UDP; ``F17`` and ``F1`` fragments; bytes: the client's."""
        if isinstance(step, bytes):
            return self.send(self.tcp("PA", step))
        if step in ("S", "a"):
            return self.send(self.tcp(step.upper()))
        if step == "s":
            return self.send(self.tcp("SA", to_client=True))
        if step.startswith("u"):
            ports = {"sport": 40000, "dport": self.port}
            if step[1] == "<":
                packet = IP(src=SERVER, dst=self.client) / UDP(sport=self.port, dport=40000)
            else:
                packet = IP(src=self.client, dst=SERVER) / UDP(**ports)
            return self.send(packet / Raw(step[2:].encode()))
        if step.startswith("F"):
            head = UDP(sport=40000, dport=self.port) / Raw(b"x" * 56) if step == "F17" else Raw(b"x" * 64)
            return self.send(IP(src=self.client, dst=SERVER, proto=int(step[1:]), flags="MF") / head)
        if step == "ping":
            return self.send(IP(src=self.client, dst=SERVER) / ICMP())
        return self.send(self.tcp("PA", step[1:].encode(), to_client=step[0] == "<"))

    def tcp(self, flags: str, data: bytes = b"", to_client: bool = False) -> Scapy:
        size = len(data) + ("S" in flags)
        if to_client:
            head = IP(src=SERVER, dst=self.client) / TCP(
                sport=self.port, dport=40000, flags=flags, seq=self.ack, ack=self.seq
            )
            self.ack += size
        else:
            head = IP(src=self.client, dst=SERVER) / TCP(
                sport=40000, dport=self.port, flags=flags, seq=self.seq, ack=self.ack
            )
            self.seq += size
        return head / Raw(data) if data else head

    @property
    def alerts(self) -> list[int]:
        return [event["alert"]["signature_id"] for event in self.effects.events if "alert" in event]


def client_hello(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def get(host: str) -> str:
    return f">GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"


OPEN = ["S", "s", "a"]


def walk(line: Line, steps: list[Any]) -> str:
    """What becomes of each packet; ``,`` was held and then let through, ``X`` held and then dropped."""
    answers = [line.step(step) for step in steps]
    line.pipeline.tick(1001.0)  # no packet is held as long as that
    later = dict(line.effects.verdicts)
    fates = "".join(
        answer if answer != "h" else "," if later[number] else "X" for number, answer in enumerate(answers, 1)
    )
    says_the_same_elsewhere(line, fates.replace(",", ".").replace("X", "x"))
    return fates


def says_the_same_elsewhere(line: Line, fates: str) -> None:
    """The same packets as a capture, replayed and explained. Replay says only how many were refused."""
    line.compiled.ruleset.forget()
    assert replay_policy(line.sent, line.compiled, lambda _: None).dropped == fates.count("x")
    explained, _ = Explainer(line.compiled).captured(lambda: line.sent)
    steps = sorted((step.packet, step.verdict in ("drop", "reject")) for each in explained for step in each.steps)
    assert "".join("x" if refused else "." for _, refused in steps) == fates


# -- stateless -----------------------------------------------------------------------------------------------------

HTTP_PORT = [{"FromPort": 80, "ToPort": 80}]
ELSE = [{"AddressDefinition": "192.0.2.0/24"}]
BOTH = [*ELSE, {"AddressDefinition": "10.0.0.0/8"}]


@pytest.mark.parametrize(
    ("says", "rules", "changes", "steps", "expected"),
    [
        ("M: lowest Priority first", [stateless_rule(2, "aws:pass"), stateless_rule(1)], {}, ["S"], "x"),
        ("M: the first match ends", [stateless_rule(1, "aws:pass"), stateless_rule(2)], {}, ["S"], "."),
        ("M: an absent attribute is any", [stateless_rule(Sources=None)], {}, ["S"], "x"),
        ("M: attributes are ANDed", [stateless_rule(Destinations=ELSE)], {}, ["S"], "."),
        ("M: items of one are ORed", [stateless_rule(Sources=BOTH)], {}, ["S"], "x"),
        ("M: ports are inclusive ranges", [stateless_rule(DestinationPorts=HTTP_PORT, Protocols=[6])], {}, ["S"], "x"),
        ("M: ... of the protocol named", [stateless_rule(DestinationPorts=HTTP_PORT, Protocols=[17])], {}, ["S"], "."),
        ("M: Protocols are IANA numbers", [stateless_rule(Protocols=[1])], {}, ["ping"], "x"),
        (
            "M: flags in Flags set, the others of Masks clear",
            [stateless_rule(Protocols=[6], TCPFlags=[{"Flags": ["SYN"], "Masks": ["SYN", "ACK"]}], Sources=None)],
            {},
            ["s"],
            ".",
        ),
        (
            "M: ... so SYN alone matches",
            [stateless_rule(Protocols=[6], TCPFlags=[{"Flags": ["SYN"], "Masks": ["SYN", "ACK"]}])],
            {},
            ["S"],
            "x",
        ),
        ("M: no Masks examines all flags", [stateless_rule(TCPFlags=[{"Flags": ["ACK"]}])], {}, [b"data"], "."),
        ("M: default drop", [], {"StatelessDefaultActions": ["aws:drop"]}, ["S"], "x"),
        ("M: default pass skips the stateful engine", [], {"StatelessDefaultActions": ["aws:pass"]}, ["S"], "."),
        ("M: default forward does not", [], {}, ["S"], "x"),
        ("M: fragment default is for UDP", [], {"StatelessFragmentDefaultActions": ["aws:pass"]}, ["F17"], "."),
        ("M: ... which can drop", [], {"StatelessFragmentDefaultActions": ["aws:drop"]}, ["F17"], "x"),
        ("M: other fragments are dropped", [], {"StatelessFragmentDefaultActions": ["aws:pass"]}, ["F1"], "x"),
        ("M: ... of TCP, too", [], {"StatelessFragmentDefaultActions": ["aws:pass"]}, ["F6"], "x"),
    ],
)
def test_stateless(
    tmp_path: Path, says: str, rules: list[dict[str, Any]], changes: dict[str, Any], steps: list[Any], expected: str
) -> None:
    """Where the default forwards, a stateful rule drops what comes: but for rows about stateless rules alone."""
    for rule in rules:
        match = rule["RuleDefinition"]["MatchAttributes"]
        if match["Sources"] is None:
            del match["Sources"]
    documents = [group("edge", stateless(*rules), "STATELESS")] if rules else []
    if rules:
        changes["StatelessRuleGroupReferences"] = [{"ResourceArn": f"{ARN}stateless-rulegroup/edge", "Priority": 1}]
        changes.setdefault("StatelessDefaultActions", ["aws:pass"])
    blocking = stateful("drop ip any any -> any any (sid:1;)")
    line = Line(tmp_path, [policy(groups=("all",), **changes), group("all", blocking), *documents])
    assert walk(line, steps) == expected, says


def test_custom_actions_count(tmp_path: Path) -> None:
    """M: a custom action publishes its dimension beside what the standard action does."""
    rule = stateless_rule()
    rule["RuleDefinition"]["Actions"] = ["Count", "aws:drop"]
    changes = {
        "StatelessRuleGroupReferences": [{"ResourceArn": f"{ARN}stateless-rulegroup/g", "Priority": 1}],
        "StatelessCustomActions": [counting("Rest", "rest")],
        "StatelessDefaultActions": ["aws:drop", "Rest"],
    }
    documents = [policy(**changes), group("g", stateless(rule, actions=(counting(),)), "STATELESS")]
    line = Line(tmp_path, documents)
    assert walk(line, ["S", "s", "S"]) == "xxx"
    assert line.pipeline.filter.counters == {"count": 2, "rest": 1}


# -- stateful: rule order and actions ------------------------------------------------------------------------------

PASS_80 = "pass tcp any any -> any 80 (sid:1;)"
DROP_80 = "drop tcp any any -> any 80 (sid:2;)"
REJECT_80 = "reject tcp any any -> any 80 (sid:3;)"
ALERT_80 = "alert tcp any any -> any 80 (sid:4;)"
DROP_DATA = 'drop tcp any any -> any any (flow:established; content:"bad"; sid:5;)'
DROP_HTTP = "drop http any any -> any any (sid:6;)"
IP_ONLY = "alert ip any any -> any any (sid:2;)"
NEGATED = "alert ip ![192.0.2.0/24] any -> any any (sid:2;)"
FLOW = "alert tcp any any -> any any (flow:to_server; sid:2;)"
STRICT, ACTION = "STRICT_ORDER", "DEFAULT_ACTION_ORDER"


@pytest.mark.parametrize(
    ("says", "order", "rules", "steps", "expected", "alerts"),
    [
        ("E: strict order is as written", STRICT, [PASS_80, DROP_80], [*OPEN, ">x"], "....", []),
        ("E: ... the first wins", STRICT, [DROP_80, PASS_80], ["S"], "x", [2]),
        ("E: action order: pass before drop", ACTION, [DROP_80, PASS_80], [*OPEN, ">x"], "....", []),
        ("E: drop before reject", ACTION, [REJECT_80, DROP_80], ["S"], "x", [2, 3]),
        ("E: reject before alert", ACTION, [ALERT_80, REJECT_80], ["S"], "x", [3, 4]),
        (
            "E: then by priority, low first",
            ACTION,
            [DROP_80.replace("sid:2;", "sid:2; priority:2;"), DROP_80.replace("sid:2;", "sid:6; priority:1;")],
            ["S"],
            "x",
            [6, 2],
        ),
        ("E: what no rule matches is passed", ACTION, [DROP_80.replace("80", "81")], [*OPEN, ">x"], "....", []),
        ("E: ... in strict order without defaults", STRICT, [DROP_80.replace("80", "81")], [*OPEN, ">x"], "....", []),
        ("A: alert logs and goes on", STRICT, [ALERT_80, DROP_80], ["S"], "x", [4, 2]),
        ("A: pass ends the flow's inspection", STRICT, [PASS_80, DROP_DATA], [*OPEN, ">bad"], "....", []),
        ("A: pass is not logged", STRICT, [PASS_80], [*OPEN, ">x"], "....", []),
        ("B: alert inside pass logs it", STRICT, [PASS_80.replace("sid", "alert; sid")], [*OPEN, ">x"], "....", [1]),
        ("B: noalert silences", STRICT, [DROP_80.replace("sid", "noalert; sid")], ["S"], "x", []),
        ("A: drop is silent and logged", STRICT, [DROP_DATA], [*OPEN, ">bad", "<x"], "...xx", [5]),
        ("L: a rule without flow meets the first packet", STRICT, [DROP_80], ["S"], "x", [2]),
        (
            "L: ... with flow:established it lets the handshake be",
            STRICT,
            ["drop tcp any any -> any 80 (flow:established; sid:2;)"],
            [*OPEN, ">x"],
            "...x",
            [2],
        ),
        ("L: IP-only rules are tried once a direction", STRICT, [IP_ONLY], [*OPEN, ">x", "<y"], ".....", [2, 2]),
        ("L: ... unless an address is negated", STRICT, [NEGATED], [*OPEN, ">x"], "....", [2, 2, 2, 2]),
        ("L: ... or flow is asked for", STRICT, [FLOW], [*OPEN, ">x"], "....", [2, 2, 2]),
        ("L: an IP-only pass is for the flow", STRICT, [PASS_80, DROP_HTTP], [*OPEN, get("a.example")], "....", []),
        ("M: FORWARD is one direction", STRICT, ["drop tcp any 80 -> any any (sid:2;)"], ["S", "s"], ".x", [2]),
        ("M: ANY is both", STRICT, ["drop tcp any 80 <> any any (sid:2;)"], ["S"], "x", [2]),
        ("A: HTTP rules match the protocol, not the port", STRICT, ["drop http any any -> any any (sid:2;)"],
         [*OPEN, get("a.example")], "...x", [2]),
    ],
)  # fmt: skip
def test_rules(
    tmp_path: Path, says: str, order: str, rules: list[str], steps: list[Any], expected: str, alerts: list[int]
) -> None:
    line = Line(tmp_path, [policy(order, ("g",)), group("g", stateful("\n".join(rules), order))])
    assert (walk(line, steps), line.alerts) == (expected, alerts), says


def test_reject_resets(tmp_path: Path) -> None:
    """A: reject is a drop and a TCP reset."""
    line = Line(tmp_path, [policy(groups=("g",)), group("g", stateful(REJECT_80))])
    assert walk(line, ["S"]) == "x"
    assert line.effects.injected
    assert all(TCP in IP(packet) and "R" in str(IP(packet)[TCP].flags) for packet in line.effects.injected)


def test_drop_to_alert(tmp_path: Path) -> None:
    """M: DROP_TO_ALERT makes drops of the group alerts."""
    document = policy(groups=("g",))
    document["FirewallPolicy"]["StatefulRuleGroupReferences"][0]["Override"] = {"Action": "DROP_TO_ALERT"}
    line = Line(tmp_path, [document, group("g", stateful(DROP_80))])
    assert (walk(line, [*OPEN, ">x"]), line.alerts) == ("....", [2])


# -- default actions -----------------------------------------------------------------------------------------------

BANNER, UNKNOWN = "<SSH-2.0-OpenSSH_9.2\r\n", b"\x99\x98\x97\x96nobody's protocol"
NOTHING = "pass tcp any any -> any 9999 (sid:1;)"
PASS_GOOD = (
    'pass tls any any -> any any (tls.sni; content:"good.example"; endswith; sid:1;)\n'
    'pass http any any -> any any (http.host; content:"good.example"; sid:2;)'
)
GOOD, EVIL = client_hello("good.example"), client_hello("evil.example")


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("says", "rules", "defaults", "steps", "expected", "alerts"),
    [
        ("E: drop_strict drops every packet", NOTHING, ["drop_strict"], ["S"], "x", []),
        ("E: drop_established lets handshakes be", NOTHING, ["drop_established"], OPEN, "...", []),
        ("E: ... and drops what the client sends", NOTHING, ["drop_established"], [*OPEN, ">x"], "...x", []),
        ("E: ... not what the server sends first", NOTHING, ["drop_established"], [*OPEN, BANNER], "....", []),
        ("E: ... of UDP everything", NOTHING, ["drop_established"], ["u>x"], "x", []),
        ("E: ... of ICMP everything", NOTHING, ["drop_established"], ["ping"], "x", []),
        (
            "E: app_layer drops in both directions",
            NOTHING,
            ["drop_established_app_layer"],
            [*OPEN, BANNER],
            "...x",
            [],
        ),
        (
            "E: app_layer_to_server only to the server",
            NOTHING,
            ["drop_established_app_layer_to_server"],
            [*OPEN, BANNER, "<more\r\n"],
            ".....",
            [],
        ),
        ("E: a rule goes before the default", PASS_GOOD, ["drop_established"], [*OPEN, GOOD], "....", []),
        ("E: ... another name does not pass", PASS_GOOD, ["drop_established"], [*OPEN, EVIL], "...x", []),
        (
            "B: drop_established drops a segmented hello",
            PASS_GOOD,
            ["drop_established"],
            [*OPEN, *pieces(GOOD, 200)[:1]],
            "...x",
            [],
        ),
        (
            "E: app_layer waits until the name is known",
            PASS_GOOD,
            ["drop_established_app_layer"],
            [*OPEN, GOOD[:200], GOOD[200:]],
            "...,.",
            [],
        ),
        (
            "E: ... and then drops another",
            PASS_GOOD,
            ["drop_established_app_layer_to_server"],
            [*OPEN, EVIL[:200], EVIL[200:]],
            "...Xx",
            [],
        ),
        (
            "E: segmented HTTP waits until Host is known",
            PASS_GOOD,
            ["drop_established_app_layer"],
            [*OPEN, b"GET / HTTP/1.1\r\n", b"Host: good.example\r\n\r\n"],
            "...,.",
            [],
        ),
        ("B: alert_strict is sid 2", NOTHING, ["alert_strict"], ["S"], ".", [2]),
        ("B: alert_established is sid 4", NOTHING, ["alert_established"], [*OPEN, ">x"], "....", [4]),
        (
            "B: alert_established_app_layer is sid 6",
            NOTHING,
            ["alert_established_app_layer"],
            [*OPEN, BANNER],
            "....",
            [6],
        ),
        (
            "B: ..._to_server is sid 8",
            NOTHING,
            ["alert_established_app_layer_to_server"],
            [*OPEN, UNKNOWN],
            "....",
            [8],
        ),
        ("E: both twins drop and log", NOTHING, ["drop_established", "alert_established"], [*OPEN, ">x"], "...x", [4]),
        ("E: alert_strict goes with any", NOTHING, ["drop_established", "alert_strict"], ["S"], ".", [2]),
    ],
)
def test_default_actions(
    tmp_path: Path, says: str, rules: str, defaults: list[str], steps: list[Any], expected: str, alerts: list[int]
) -> None:
    document = policy(groups=("g",), StatefulDefaultActions=[f"aws:{name}" for name in defaults])
    line = Line(tmp_path, [document, group("g", stateful(rules))])
    assert (walk(line, steps), line.alerts) == (expected, alerts), says


@pytest.mark.parametrize(("name", "sid"), [("alert_strict", 2), ("alert_established", 4)])
def test_records_of_default_actions(tmp_path: Path, name: str, sid: int) -> None:
    """B: rev 0, and a signature like "aws:alert_established action"."""
    document = policy(groups=("g",), StatefulDefaultActions=[f"aws:{name}"])
    line = Line(tmp_path, [document, group("g", stateful(NOTHING))])
    walk(line, [*OPEN, ">x"])
    alert = next(event["alert"] for event in line.effects.events if "alert" in event)
    assert (alert["signature_id"], alert["rev"], alert["signature"]) == (sid, 0, f"aws:{name} action")


# -- stream exceptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "exception", "rules", "defaults", "steps", "expected", "resets"),
    [
        ("S: DROP is the default", None, NOTHING, [], [b"mid"], "x", False),
        ("S: DROP drops midstream TCP", "DROP", NOTHING, [], [b"mid"], "x", False),
        ("S: REJECT resets it", "REJECT", NOTHING, [], [b"mid"], "x", True),
        ("S: CONTINUE goes on", "CONTINUE", NOTHING, [], [b"mid", b"more"], "..", False),
        ("S: ... drop_strict still applies", "CONTINUE", NOTHING, ["aws:drop_strict"], [b"mid"], "x", False),
        (
            "S: ... flow:stateless rules match",
            "CONTINUE",
            'drop tcp any any -> any any (flow:stateless; content:"mid"; sid:1;)',
            [],
            [b"mid"],
            "x",
            False,
        ),
        (
            "S: ... application rules do not, the beginning being unknown",
            "CONTINUE",
            "drop http any any -> any any (sid:1;)",
            [],
            [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "<HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
            "..",
            False,
        ),
        (
            "S: ... nor those on what it is not",
            "CONTINUE",
            "drop tcp any any -> any any (app-layer-protocol:!tls; sid:1;)",
            [],
            [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
            ".",
            False,
        ),
        ("S: a handshake is no exception", "DROP", NOTHING, [], [*OPEN, ">x"], "....", False),
        ("S: UDP has none", "DROP", NOTHING, [], ["u>x"], ".", False),
    ],
)
def test_stream_exceptions(
    tmp_path: Path,
    says: str,
    exception: str | None,
    rules: str,
    defaults: list[str],
    steps: list[Any],
    expected: str,
    resets: bool,
) -> None:
    options = {"RuleOrder": STRICT, **({"StreamExceptionPolicy": exception} if exception else {})}
    document = policy(groups=("g",), StatefulEngineOptions=options, StatefulDefaultActions=defaults)
    line = Line(tmp_path, [document, group("g", stateful(rules))])
    assert (walk(line, steps), bool(line.effects.injected)) == (expected, resets), says


# -- domain lists --------------------------------------------------------------------------------------------------


def listed(kind: str, *targets: str, order: str = STRICT, **more: Any) -> dict[str, Any]:
    names = {"Targets": list(targets), "TargetTypes": ["TLS_SNI", "HTTP_HOST"], "GeneratedRulesType": kind}
    return {"RulesSource": {"RulesSourceList": names}, "StatefulRuleOptions": {"RuleOrder": order}, **more}


@pytest.mark.parametrize("order", [STRICT, ACTION])
@pytest.mark.parametrize("protocol", ["http", "tls"])
@pytest.mark.parametrize(
    ("says", "kind", "targets", "host", "client", "expected"),
    [
        ("D: an allow list passes its names", "ALLOWLIST", ["good.example"], "good.example", CLIENT, "."),
        ("D: ... and denies all others", "ALLOWLIST", ["good.example"], "evil.example", CLIENT, "x"),
        ("D: an explicit name is that name only", "ALLOWLIST", ["good.example"], "www.good.example", CLIENT, "x"),
        ("D: a leading dot is the name ...", "ALLOWLIST", [".good.example"], "good.example", CLIENT, "."),
        ("D: ... and all below it", "ALLOWLIST", [".good.example"], "a.b.good.example", CLIENT, "."),
        ("D: ... not what merely ends so", "ALLOWLIST", [".good.example"], "notgood.example", CLIENT, "x"),
        ("D: a deny list drops its names", "DENYLIST", [".evil.example"], "www.evil.example", CLIENT, "x"),
        ("D: ... and lets others be", "DENYLIST", ["evil.example"], "good.example", CLIENT, "."),
        ("D: case does not matter", "DENYLIST", ["Evil.Example"], "EVIL.example", CLIENT, "x"),
        ("D: only sources in HOME_NET are inspected", "DENYLIST", ["evil.example"], "evil.example", OUTSIDER, "."),
        ("D: ... by an allow list, too", "ALLOWLIST", ["good.example"], "evil.example", OUTSIDER, "."),
        ("D: REJECTLIST rejects", "REJECTLIST", ["evil.example"], "evil.example", CLIENT, "x"),
        ("D: ALERTLIST only logs", "ALERTLIST", ["evil.example"], "evil.example", CLIENT, "."),
    ],
)
def test_domain_lists(
    tmp_path: Path,
    order: str,
    protocol: str,
    says: str,
    kind: str,
    targets: list[str],
    host: str,
    client: str,
    expected: str,
) -> None:
    documents = [policy(order, ("g",)), group("g", listed(kind, *targets, order=order))]
    line = Line(tmp_path, documents, 443 if protocol == "tls" else 80, client)
    first = client_hello(host) if protocol == "tls" else get(host)
    assert walk(line, [*OPEN, first]) == "..." + expected, says


def test_a_group_may_widen_home_net(tmp_path: Path) -> None:
    """D: HOME_NET of the rule group extends inspection to sources outside the VPC."""
    variables = {"IPSets": {"HOME_NET": {"Definition": ["10.0.0.0/8", "198.51.100.0/24"]}}}
    documents = [policy(groups=("g",)), group("g", listed("DENYLIST", "evil.example", RuleVariables=variables))]
    assert walk(Line(tmp_path, documents, client=OUTSIDER), [*OPEN, get("evil.example")]) == "...x"


def test_everything_else_passes_an_allow_list(tmp_path: Path) -> None:
    """D: only traffic of the listed protocols is denied."""
    line = Line(tmp_path, [policy(groups=("g",)), group("g", listed("ALLOWLIST", "good.example"))], port=22)
    assert walk(line, [*OPEN, ">SSH-2.0-x\r\n"]) == "...."


def test_documents_are_plain_json(tmp_path: Path) -> None:
    """What the rows load is what `--rule-group file://` takes."""
    assert json.loads(json.dumps(listed("DENYLIST", "a.example")))["RulesSource"]["RulesSourceList"]["Targets"] == [
        "a.example"
    ]

"""Why a policy does what it does to a flow: each step, each rule's reason, and that none contradicts the engine."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.stateful.explain import Fate, RuleReport, Stage
from nfw import ca
from nfw.capture import Captured, read_capture
from nfw.describe import KEYS, DescriptionError, read_description
from nfw.dialogue import Dialogue
from nfw.explain import Explainer, Explanation
from nfw.explaintext import MAX_BEFORE, MAX_RULES, explain_json, explain_lines
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from nfw.policyreplay import replay_policy
from tests.unit.tlskit import Authority

CLIENT, SERVER = "10.0.0.5", "198.51.100.7"
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def compiled(directory: Path, policy: str) -> Compiled:
    (directory / "p.yaml").write_text("name: t\n" + policy)
    return compile_policy(load_policy(directory / "p.yaml", now=NOW.timestamp()))


def explained(directory: Path, policy: str, **flow: Any) -> Explanation:
    description = read_description({"src": CLIENT, "dst": SERVER, **flow})
    return Explainer(compiled(directory, policy)).described(description)


def strict(*rules: str, more: str = "") -> str:
    return f"stateful:\n  order: strict\n{more}  rules: |\n" + "".join(f"    {rule}\n" for rule in rules)


def report(directory: Path, rule: str, *others: str, **flow: Any) -> RuleReport:
    found = explained(directory, strict(rule, *others), **flow).stateful.rules
    return next(each for each in found if each.rule.signature.text == rule)


WEB: dict[str, Any] = {"http_host": "www.example.org", "http_uri": "/a?b=c", "http_method": "POST", "http_body": "data"}
TLS: dict[str, Any] = {"sni": "www.example.org"}
DNS: dict[str, Any] = {"dns_query": "www.example.org"}


@pytest.mark.parametrize(
    ("rule", "flow", "stage", "text"),
    [
        ("drop udp any any -> any any (sid:1;)", WEB, Stage.HEADER, "protocol tcp is not udp"),
        ("drop tcp any any -> any [1:79] (sid:1;)", WEB, Stage.HEADER, "destination port 80 is not in [1:79]"),
        ("drop tcp any 1 -> any any (sid:1;)", WEB, Stage.HEADER, "source port 40000 is not 1"),
        ("drop tcp $EXTERNAL_NET any -> any any (flow:to_server; sid:1;)", WEB, Stage.HEADER, "is not in $EXTERN"),
        ("drop tcp any any -> 10.0.0.0/8 any (flow:to_server; sid:1;)", WEB, Stage.HEADER, "is not in 10.0.0."),
        ("drop ip6 any any -> any any (sid:1;)", WEB, Stage.HEADER, "source 10.0.0.5 is not of ip6"),
        ("drop tls any any -> any any (sid:1;)", WEB, Stage.PROTOCOL, "the flow speaks http, not tls"),
        (
            "drop tcp any any -> any any (app-layer-protocol:!http; sid:1;)",
            WEB,
            Stage.PROTOCOL,
            "app-layer-protocol:!http does not hold: the flow speaks http",
        ),
        ("drop tcp any any -> any any (dsize:>9000; sid:1;)", WEB, Stage.PACKET, "dsize:>9000 does not hold"),
        ("drop tcp any any -> any any (flags:R; sid:1;)", WEB, Stage.PACKET, "flags:R does not hold"),
        ("drop tcp any any -> any any (ttl:1; flags:R; sid:1;)", WEB, Stage.PACKET, "ttl:1 does not hold"),
        ('drop tcp any any -> any any (tcp.hdr; content:"|ff ff ff|"; sid:1;)', WEB, Stage.PACKET, "on tcp.hdr do"),
        ("drop tcp any any -> any any (flowbits:isset,a|b; sid:1;)", WEB, Stage.MARKS, "flowbit a or b is not set"),
        ("drop tcp any any -> any any (flowint:n,>,1; sid:1;)", WEB, Stage.MARKS, "it is not set"),
        ("drop tcp any any -> any any (xbits:isset,x,track ip_src; sid:1;)", WEB, Stage.MARKS, "xbit x is not set"),
        ("drop tcp any any -> any any (stream_size:client,>,9999; sid:1;)", WEB, Stage.MARKS, "stream_size does"),
        (
            'drop http any any -> any any (http.host; content:"evil"; sid:1;)',
            WEB,
            Stage.BUFFER,
            'http.host "www.example.org": content:"evil" does not hold',
        ),
        (
            'drop http any any -> any any (http.uri; content:"/a"; startswith; content:"c"; within:2; sid:1;)',
            WEB,
            Stage.BUFFER,
            'http.uri "/a?b=c": content:"c"; within:2 does not hold',
        ),
        (
            'drop http any any -> any any (http.method; content:"POST"; http.uri; pcre:"/^x/"; sid:1;)',
            WEB,
            Stage.BUFFER,
            'http.uri "/a?b=c": pcre:/^x/ does not hold',
        ),
        (
            'drop http any any -> any any (http.host; content:!"example"; sid:1;)',
            WEB,
            Stage.BUFFER,
            'content:!"example" does not hold',
        ),
        ("drop http any any -> any any (http.host; bsize:<3; sid:1;)", WEB, Stage.BUFFER, "bsize:<3 does not hold"),
        (
            'drop http any any -> any any (http.cookie; content:"a"; sid:1;)',
            WEB,
            Stage.BUFFER,
            "there is no http.cookie",
        ),
        ("drop http any any -> any any (http.host; absent; sid:1;)", WEB, Stage.BUFFER, "absent does not hold"),
        (
            'drop http any any -> any any (http.request_body; content:"other"; sid:1;)',
            WEB,
            Stage.BUFFER,
            'http.request_body "data": content:"other" does not hold',
        ),
        (
            'drop tls any any -> any any (tls.sni; dotprefix; content:".example.com"; endswith; sid:1;)',
            TLS,
            Stage.BUFFER,
            'tls.sni.dotprefix ".www.example.org": content:".example.com"; endswith does not hold',
        ),
        (
            'drop dns any any -> any any (dns.query; content:"evil"; nocase; sid:1;)',
            DNS,
            Stage.BUFFER,
            'dns.query "www.example.org": content:"evil"; nocase does not hold',
        ),
        (
            'drop tcp any any -> any any (content:"nowhere"; sid:1;)',
            {"dport": 9, "payload": "some text"},
            Stage.BUFFER,
            'the payload "some text": content:"nowhere" does not hold',
        ),
        ("drop udp any any -> any any (flow:to_client; sid:1;)", {**DNS}, None, ""),
        (
            'drop http any any -> any any (app-layer-event:http.missing_host_header; sid:1;)',
            WEB,
            Stage.BUFFER,
            "app-layer-event missing_host_header did not happen",
        ),
    ],
)  # fmt: skip
def test_why_not(tmp_path: Path, rule: str, flow: dict[str, Any], stage: Stage | None, text: str) -> None:
    found = report(tmp_path, rule, **flow)
    if stage is None:  # the counterpart: it does match
        assert found.fate is Fate.DECIDED
        return
    assert (found.fate, found.stage) == (Fate.NO_MATCH, stage)
    assert text in found.text
    assert found.packet or stage is Stage.HEADER


GOOD = 'pass tls any any -> any any (tls.sni; content:"example.org"; endswith; sid:1;)'
BEHIND = 'drop tls any any -> any any (tls.sni; content:"www"; sid:2;)'
SYN = "alert tcp any any -> any any (flags:S; flowbits:set,syn; noalert; sid:3;)"
LATER = "alert tls any any -> any any (flow:to_client; tls.version:1.3; sid:4;)"
FIFTH = "type threshold,track by_src,count 5,seconds 9"
EARLY = "drop tcp any any -> any 443 (sid:5;)"


@pytest.mark.parametrize(
    ("rules", "fates", "by"),
    [
        ([GOOD, BEHIND], [Fate.DECIDED, Fate.LATE], 1),
        ([BEHIND, GOOD], [Fate.DECIDED, Fate.LATE], 2),
        ([SYN, GOOD], [Fate.SILENT, Fate.DECIDED], None),
        ([EARLY, GOOD], [Fate.DECIDED, Fate.WOULD_MATCH], 5),
        (["alert tls any any -> any any (tls.sni; bsize:>0; sid:9;)"], [Fate.ALERTED], None),
        (["pass tls any any -> any any (tls.sni; bsize:>0; alert; sid:9;)"], [Fate.DECIDED], None),
        (
            [f"alert tls any any -> any any (tls.sni; bsize:>0; threshold:{FIFTH}; sid:9;)"],
            [Fate.SILENT],
            None,
        ),
    ],
)  # fmt: skip
def test_what_became_of_rules(tmp_path: Path, rules: list[str], fates: list[Fate], by: int | None) -> None:
    found = explained(tmp_path, strict(*rules), **TLS).stateful.rules
    assert [each.fate for each in found] == fates
    assert [each.by.id for each in found if each.by is not None] == ([by] if by else [])
    assert all(each.packet for each in found)


def test_a_flowbit_of_the_same_flow_counts(tmp_path: Path) -> None:
    reader = "drop tcp any any -> any any (flowbits:isset,syn; dsize:>0; sid:6;)"
    found = explained(tmp_path, strict(SYN, reader), **WEB)
    assert [each.fate for each in found.stateful.rules] == [Fate.SILENT, Fate.DECIDED]
    alone = report(tmp_path, reader, **WEB)
    assert (alone.stage, alone.text) == (Stage.MARKS, "flowbit syn is not set")


# Everything said at once: what the notes say has to be what the engine did, and every reason a condition of the rule.
RULES = (Path(__file__).parent.parent / "corpus/rules").glob("*.rules")
FLOWS: list[dict[str, Any]] = [
    WEB,
    TLS,
    DNS,
    {"sni": "", "alpn": ["h2"]},
    {"dport": 22, "payload": "SSH-2.0-a\\r\\n", "reply": "SSH-2.0-b\\r\\n"},
    {"dport": 25, "payload": [], "reply": ["220 a\\r\\n"]},
    {"dport": 9, "payload": "x" * 3000},
    {"proto": "udp", "dport": 9, "payload": "a\\x00b"},
    {"proto": "icmp"},
    {"http_host": "a.example", "segment": 7},
]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    text = "".join(path.read_text() for path in sorted(RULES))
    numbers = itertools.count(1)
    rules = re.sub(r"\bsid: *[0-9]+", lambda _: f"sid:{next(numbers)}", text)  # each file counts from 1
    directory = tmp_path_factory.mktemp("all")
    (directory / "all.rules").write_text(rules)
    policy = compiled(directory, "stateful: {order: strict, rule_files: [all.rules]}\n")
    assert len(policy.ruleset.rules) > 20
    return policy


@pytest.mark.parametrize("flow", FLOWS)
def test_nothing_is_said_that_the_engine_did_not_do(everything: Compiled, flow: dict[str, Any]) -> None:
    description = read_description({"src": CLIENT, "dst": SERVER, **flow})
    ruleset = everything.ruleset
    ruleset.forget()
    before = ruleset.counts.own_hits()
    captured = [each.captured for each in Dialogue(description).packets()]
    summary = replay_policy(captured, everything, lambda _: None)
    hit = {
        number for number, hits in enumerate(ruleset.counts.own_hits()[: len(ruleset.rules)]) if hits > before[number]
    }
    explanation = Explainer(everything).described(description)
    reports = explanation.stateful.rules
    really = {each.rule.index for each in reports if each.fate not in (Fate.NO_MATCH, Fate.WOULD_MATCH)}
    assert really == hit
    assert all(each.text for each in reports if each.fate is Fate.NO_MATCH)
    unexplained = [each.text for each in reports if each.text.startswith(("it is about where", "it waits"))]
    assert not unexplained
    seen: dict[tuple[str, str, str], int] = {}
    for step in explanation.steps:
        key = (step.stage, step.verdict, step.reason)
        seen[key] = seen.get(key, 0) + 1
    assert seen == {tuple(what): number for what, number in summary.verdicts.items()}


CAPTURES = sorted((Path(__file__).parents[2].parent / "shared/conformance/suricata").rglob("*.pcap"))


@pytest.mark.skipif(not CAPTURES, reason="Suricata's captures are not beside the checkout")
def test_captures_are_explained_as_they_are_replayed(everything: Compiled) -> None:
    explainer = Explainer(everything)
    small = [path for path in CAPTURES if path.stat().st_size < 20_000][::20]
    for path in small:
        packets = list(read_capture(path))
        everything.ruleset.forget()
        summary = replay_policy(packets, everything, lambda _: None)
        explanations, left = explainer.captured(lambda packets=packets: packets)
        seen: dict[tuple[str, ...], int] = {}
        for step in (step for each in explanations for step in each.steps):
            key = (step.stage, step.verdict, step.reason)
            seen[key] = seen.get(key, 0) + 1
        assert (seen, left) == ({tuple(what): number for what, number in summary.verdicts.items()}, 0), path


BODIES = {
    "action": "stateful: {order: action, stream_exception: continue, rules: %s}\n",
    "strict": "stateful: {order: strict, default_actions: [drop_strict, alert_strict], rules: %s}\n",
    "established": "stateful: {order: strict, default_actions: [drop_established, alert_established],"
    " stream_exception: reject, rules: %s}\n",
    "app_layer": "stateful: {order: strict, default_actions: [drop_established_app_layer],"
    " stream_exception: continue, rules: %s}\n",
    "to_server": "stateful: {order: strict, default_actions: [drop_established_app_layer_to_server,"
    " alert_established_app_layer_to_server], rules: %s}\nstateless: {fragments: forward}\n",
    "stateless": "stateful: {order: strict, default_actions: [alert_established], stream_exception: continue,"
    " rules: %s}\nstateless: {fragments: pass, rules: [{priority: 1, action: pass, protocols: [icmp]},"
    " {priority: 2, action: drop, protocols: [tcp], tcp_flags: [{flags: [RST], masks: [RST]}]}]}\n",
}
MIXED = [
    'pass dns any any -> any 53 (dns.query; content:"google"; nocase; sid:1;)',
    'alert http any any -> any any (http.method; content:"GET"; sid:2;)',
    'drop http any any -> any any (http.method; content:"POST"; sid:3;)',
    'reject tls any any -> any any (tls.sni; content:"a"; sid:4;)',
    "alert tcp any any -> any any (flow:established,to_client; dsize:>100; sid:5;)",
    "drop smb any any -> any any (sid:6;)",
    "reject udp any any -> any any (dsize:>900; sid:7;)",
    "pass ssh any any -> any any (sid:8;)",
    "alert icmp any any -> any any (itype:8; sid:9;)",
    "alert tcp any any -> any any (flow:stateless; flags:R; sid:10;)",
    'drop http any any -> any any (http.response_body; content:"<html"; nocase; sid:11;)',
]


@pytest.mark.skipif(not CAPTURES, reason="Suricata's captures are not beside the checkout")
@pytest.mark.parametrize("body", BODIES)
def test_verdicts_on_captures_are_what_was_done(tmp_path: Path, body: str) -> None:
    """By policies of both orders and each kind of default action: packets, alerts, and what is said of the flow."""
    policy = compiled(tmp_path, BODIES[body] % json.dumps(MIXED))
    for path in [path for path in CAPTURES if path.stat().st_size < 20_000][7::60]:
        packets = list(read_capture(path))
        policy.ruleset.forget()
        records: list[dict[str, Any]] = []
        summary = replay_policy(packets, policy, records.append)
        found, _ = Explainer(policy).captured(lambda packets=packets: packets)
        steps = Counter((step.stage, step.verdict, step.reason) for each in found for step in each.steps)
        assert dict(steps) == {tuple(what): number for what, number in summary.verdicts.items()}, path
        logged = {record["alert"]["signature_id"] for record in records if record["event_type"] == "alert"}
        assert {ref.id for each in found for ref in each.stateful.alerts} == logged, path
        for each in found:
            refused = [step for step in each.steps if step.verdict in ("drop", "reject")]
            verdict = each.conclusion.verdict
            if verdict in ("drop", "reject"):
                assert (verdict, each.conclusion.reason) in {(step.verdict, step.reason) for step in refused}, path
            else:
                assert bool(refused) is bool(each.conclusion.besides), path
                assert (verdict == "alert") is bool(each.stateful.alerts), path


def test_a_packet_that_does_not_fit_is_not_the_flows_verdict(tmp_path: Path) -> None:
    """A segment that is sent again while it waits is dropped, and the flow goes on."""
    policy = compiled(tmp_path, strict('drop http any any -> any any (http.host; content:"evil"; sid:1;)'))
    description = read_description({"src": CLIENT, "dst": SERVER, "http_host": "good.example", "segment": 20})
    said = Dialogue(description).packets()
    data = next(number for number, each in enumerate(said) if each.what.startswith("HTTP request"))
    packets = [each.captured for each in said]
    packets.insert(data + 1, packets[data])
    packets = [each._replace(number=number) for number, each in enumerate(packets, 1)]
    ((found,), _) = Explainer(policy).captured(lambda: packets)
    assert [step.reason for step in found.steps if step.verdict == "drop"] == ["held_duplicate"]
    assert found.conclusion.verdict == "pass"
    lines = list(explain_lines(found, all_rules=False, packets=False))
    assert lines[-2].startswith(
        f"besides    dropped for themselves, not fitting the connection: 1 of its packets ({data + 2}"
    )
    # A flow of nothing else is dropped.
    ((found,), _) = Explainer(policy).captured(lambda: [packets[0]._replace(data=packets[0].data[:30])])
    assert (found.conclusion.verdict, found.conclusion.reason) == ("drop", "invalid_packet")


VALUES: dict[str, Any] = {
    "src": st.sampled_from(["10.0.0.5", "fd00::5", "224.0.0.1"]),
    "dst": st.sampled_from(["198.51.100.7", "2001:db8::7", "255.255.255.255"]),
    "sport": st.sampled_from([0, 1, 65535]),
    "dport": st.sampled_from([0, 53, 80, 443]),
    "proto": st.sampled_from(["tcp", "udp", "icmp", "icmpv6", "sctp", 0, 44, 255]),
    "sni": st.sampled_from(["", "a.example", "xn--a", "a" * 63]),
    "alpn": st.sampled_from([["h2"], ["http/1.1", "h2"]]),
    "http_host": st.sampled_from(["", "a.example", "\xe9"]),
    "http_method": st.sampled_from(["GET", "HEAD", "X"]),
    "http_header": st.sampled_from([["A: b"], ["Transfer-Encoding: chunked"], ["Content-Length: 9"]]),
    "http_body": st.sampled_from(["", "x" * 3000]),
    "dns_query": st.sampled_from(["a.example", "a" * 63 + ".b"]),
    "dns_type": st.sampled_from(["A", "AAAA", "HTTPS", "ANY"]),
    "payload": st.sampled_from(["", "x", ["a", "b"], "\\x16\\x03\\x01"]),
    "reply": st.sampled_from(["", "y", ["a", "b", "c"]]),
    "icmp_type": st.integers(0, 255),
    "segment": st.sampled_from([1, 700, 65535]),
    "midstream": st.booleans(),
    "fragments": st.booleans(),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.fixed_dictionaries({}, optional=VALUES))
def test_whatever_is_described_is_refused_or_explained(everything: Compiled, said: dict[str, Any]) -> None:
    assert set(VALUES) | {"http_uri", "http_status"} == set(KEYS)
    try:
        flow = read_description({"src": CLIENT, "dst": SERVER, **said})
    except DescriptionError:
        return
    found = EXPLAINERS.setdefault(id(everything), Explainer(everything)).described(flow)
    assert found.conclusion.verdict in ("pass", "alert", "drop", "reject")
    assert found.steps
    assert all(list(explain_lines(found, all_rules=every, packets=True)) for every in (False, True))
    json.dumps(explain_json(found, all_rules=True))


EXPLAINERS: dict[int, Explainer] = {}


# -- the other steps -------------------------------------------------------------------------------------------------


def test_stateless_rules_before_the_one_that_matched(tmp_path: Path) -> None:
    policy = """\
stateless:
  rules:
    - {priority: 1, action: drop, protocols: [udp]}
    - {priority: 2, action: drop, destinations: [192.0.2.0/24, 203.0.113.0/24]}
    - {priority: 3, action: drop, tcp_flags: [{flags: [ACK], masks: [ACK]}], name: late}
    - {priority: 4, action: pass, protocols: [tcp], destination_ports: [80]}
    - {priority: 5, action: drop}
"""
    found = explained(tmp_path, policy, dport=80)
    step, answers = found.stateless
    assert step.rule is not None
    assert (step.rule.priority, step.rule.line) == (4, 7)
    assert [why for _, why in step.considered] == [
        "protocol tcp is not udp",
        "destination 198.51.100.7 is not in 192.0.2.0/24 or 203.0.113.0/24",
        "TCP flags SYN are not {flags: [ACK], masks: [ACK]}",
    ]
    assert answers.rule is not None
    assert answers.rule.priority == 3
    conclusion = found.conclusion
    assert (conclusion.verdict, conclusion.stage, conclusion.packet) == ("drop", "stateless", 2)
    assert conclusion.rule is not None
    assert conclusion.rule.msg == "late"
    assert str(conclusion.place).endswith("p.yaml:6")


FRAGMENTS: dict[str, Any] = {"proto": "udp", "dport": 1, "payload": "x" * 40, "fragments": True}


@pytest.mark.parametrize(
    ("policy", "flow", "verdict", "setting"),
    [
        ("stateless: {default: drop}\n", {"dport": 1}, "drop", 2),
        ("stateless:\n  fragments: drop\n", FRAGMENTS, "drop", 3),
        ("stateful:\n  order: strict\n  default_actions: [drop_strict]\n", {"dport": 1}, "drop", 4),
        ("stateful:\n  stream_exception: reject\n  rules: |\n    pass udp any any -> any any (sid:1;)\n",
         {"dport": 1, "midstream": True}, "reject", 3),
        ("stateful:\n  order: strict\n  default_actions: [alert_strict]\n", {"dport": 1}, "alert", 4),
    ],
)  # fmt: skip
def test_settings_have_places(tmp_path: Path, policy: str, flow: dict[str, Any], verdict: str, setting: int) -> None:
    conclusion = explained(tmp_path, policy, **flow).conclusion
    assert conclusion.verdict == verdict
    assert conclusion.place is not None
    assert (Path(conclusion.place.file).name, conclusion.place.line) == ("p.yaml", setting)


INSPECT = """\
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [ca.pem]
  scopes:
    - {destination_ports: [8443]}
    - {sources: [10.0.0.0/8], destination_ports: [443]}
  on_failure: drop
"""
INSIDE = [
    'drop http any any -> any any (http.uri; content:"/secret"; sid:1;)',
    'drop tls any any -> any any (tls.sni; content:"blocked"; sid:2;)',
    'drop tls any any -> any any (flow:to_client; tls.cert_subject; content:"CN=shown"; sid:3;)',
    "drop tcp any any -> any any (flags:S; sid:4;)",
]


@pytest.mark.parametrize(
    ("flow", "decision", "verdict", "by"),
    [
        ({"sni": "www.example.org"}, "terminate", "pass", None),
        ({"sni": "www.example.org", "http_uri": "/secret"}, "terminate", "drop", 1),
        ({"sni": "blocked.example"}, "terminate", "drop", 2),
        ({"sni": "shown.example"}, "terminate", "drop", 3),
        ({"sni": "www.example.org", "alpn": ["h2"], "http_uri": "/secret"}, "terminate", "drop", 1),
        ({"sni": "www.example.org", "alpn": ["h2"]}, "terminate", "pass", None),
        ({"sni": ""}, "terminate", "drop", "no_sni"),
        ({"dport": 443, "payload": "SSH-2.0-x\\r\\n"}, "terminate", "drop", "not_tls"),
        ({"dport": 443}, "terminate", "drop", "not_tls"),
        ({"sni": "blocked.example", "dport": 444}, "none", "drop", 4),
    ],
)
def test_tls(tmp_path: Path, flow: dict[str, Any], decision: str, verdict: str, by: int | str | None) -> None:
    ca.create("Test CA", tmp_path, NOW)
    found = explained(tmp_path, INSPECT + strict(*INSIDE), **flow)
    assert (found.tls.decision, found.conclusion.verdict) == (decision, verdict)
    rule = found.conclusion.rule
    assert by == (rule.id if rule is not None else found.conclusion.reason if verdict == "drop" else None)
    assert [bool(scope.misfit) for scope in found.tls.scopes] == [True, decision == "none"]
    assert [scope.line for scope in found.tls.scopes] == [6, 7]
    if decision == "terminate" and isinstance(by, int):
        packet_rule = next(each for each in found.stateful.rules if each.rule.signature.sid == 4)
        assert "there are no packets in a decrypted flow" in packet_rule.text


@pytest.mark.parametrize("holding", ["true", "false"])
@pytest.mark.parametrize(
    ("rule", "flow", "stage", "text"),
    [
        ('drop tls any any -> any any (tls.sni; content:"z"; sid:1;)', TLS, Stage.BUFFER, 'tls.sni "www.example.org"'),
        ('drop tls any any -> any any (tls.sni; content:"z"; sid:1;)', TLS | {"payload": "a"}, Stage.BUFFER, "tls.sni"),
        (
            'drop tls any any -> any any (tls.cert_subject; content:"x.y"; sid:1;)',
            TLS,
            Stage.BUFFER,
            'tls.cert_subject "CN=www.example.org": content:"x.y" does not hold',
        ),
        (
            'drop http any any -> any any (http.uri; content:"/x"; sid:1;)',
            TLS | {"payload": "a"},
            Stage.PROTOCOL,
            "the flow speaks tls, not http",
        ),
        (
            'drop tls any any -> any any (tls.sni; content:"x.y"; sid:1;)',
            {"sni": ""},
            Stage.PROTOCOL,
            "nothing has shown yet that the flow speaks tls",
        ),
    ],
)  # fmt: skip
def test_why_not_in_a_scope(
    tmp_path: Path, holding: str, rule: str, flow: dict[str, Any], stage: Stage, text: str
) -> None:
    """The ClientHello waits for the first plaintext unless the session is held: rules were near all the same."""
    ca.create("Test CA", tmp_path, NOW)
    policy = INSPECT + f"  session_holding: {holding}\n" + strict(rule)
    (found,) = explained(tmp_path, policy, **flow).stateful.rules
    assert (found.fate, found.stage) == (Fate.NO_MATCH, stage)
    assert text in found.text


def test_tls_without_a_name_where_the_policy_takes_the_address(tmp_path: Path) -> None:
    ca.create("Test CA", tmp_path, NOW)
    policy = INSPECT + "  without_sni: address\n" + strict(*INSIDE[:1])
    found = explained(tmp_path, policy, sni="", http_uri="/secret")
    assert found.conclusion.rule is not None
    assert (found.conclusion.verdict, found.conclusion.rule.id) == ("drop", 1)
    assert "where none is, for its address" in found.tls.checks[0]


INBOUND = """\
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  trust: [ca.pem]
  scopes: [{destination_ports: [443]}]
  bypass: [{sni: ["*.wild.example", shop.example]}]
  inbound_upstream: UPSTREAM
  revocation: {check: true}
inbound:
  - certificates:
      - {certificate: shop.pem, private_key: shop.key}
      - {certificate: wild.pem, private_key: wild.key}
    scopes:
      - {destinations: [192.0.2.0/24]}
      - {destinations: [198.51.100.0/24], destination_ports: [443]}
"""


@pytest.mark.parametrize("upstream", ["pinned", "verified"])
@pytest.mark.parametrize(
    ("flow", "shown", "verdict", "by"),
    [
        ({"sni": "shop.example"}, "shop.pem", "pass", None),
        ({"sni": "shop.example", "http_uri": "/secret"}, "shop.pem", "drop", 1),
        ({"sni": "blocked.wild.example"}, "wild.pem", "drop", 2),
        ({"sni": "a.wild.example"}, "wild.pem", "pass", None),
        ({"sni": "wild.example"}, None, "reject", "no_certificate"),
        ({"sni": ""}, None, "reject", "no_sni"),
        ({"dport": 443, "payload": "SSH-2.0-x\\r\\n"}, None, "reject", "not_tls"),
    ],
)
def test_servers_of_ones_own(
    tmp_path: Path, upstream: str, flow: dict[str, Any], shown: str | None, verdict: str, by: int | str | None
) -> None:
    """Inbound scopes go before the others and before names that are exempt; the name chooses the certificate."""
    inbound_files(tmp_path)
    policy = INBOUND.replace("UPSTREAM", upstream) + strict(*INSIDE)
    found = explained(tmp_path, policy, **flow)
    assert (found.tls.decision, found.conclusion.verdict) == ("terminate", verdict)
    rule = found.conclusion.rule
    assert by == (rule.id if rule is not None else found.conclusion.reason if verdict == "reject" else None)
    assert (found.tls.certificate and found.tls.certificate.name) == shown
    assert [(str(each), bool(each.misfit), each.line) for each in found.tls.scopes] == [
        ("scope 1", False, 5),
        ("inbound scope 1", True, 14),
        ("inbound scope 2", False, 15),
    ]
    assert found.tls.why.startswith("in inbound scope 2")
    assert ("revocation" in " ".join(found.tls.checks)) is (upstream == "verified")
    assert ("one of those given" in found.tls.checks[0]) is (upstream == "pinned")
    text = "\n".join(explain_lines(found, all_rules=False, packets=False))
    assert (f"the client is shown {tmp_path / shown}" in text) if shown else "the client is shown" not in text
    value = explain_json(found, all_rules=False)["tls"]["certificate"]
    assert value == (str(tmp_path / shown) if shown else None)


def test_rules_on_the_certificate_of_a_server_of_ones_own(tmp_path: Path) -> None:
    """Pinned, the server shows what is given; verified, it shows what it has."""
    inbound_files(tmp_path)
    rule = 'drop tls any any -> any any (flow:to_client; tls.cert_issuer; content:"Test PKI"; sid:1;)'
    for upstream, verdict in (("pinned", "drop"), ("verified", "pass")):
        policy = INBOUND.replace("UPSTREAM", upstream) + strict(rule)
        assert explained(tmp_path, policy, sni="shop.example").conclusion.verdict == verdict


def test_elsewhere_nothing_of_ones_own_is_shown(tmp_path: Path) -> None:
    inbound_files(tmp_path)
    policy = INBOUND.replace("UPSTREAM", "pinned") + strict(*INSIDE)
    found = explained(tmp_path, policy, sni="shop.test", dst="203.0.113.1")
    assert (found.tls.decision, found.tls.why, found.tls.certificate) == ("terminate", "in scope 1", None)


def inbound_files(directory: Path) -> None:
    ca.create("Test CA", directory, NOW)
    issuer = Authority("Test PKI")
    for name, *names in (("shop", "shop.example"), ("wild", "*.wild.example")):
        certificate, key = issuer.issue(*names)
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (directory / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("name", "decision", "verdict"), [("a.bank.example", "bypass", "drop"), ("www.example.org", "terminate", "pass")]
)
def test_names_that_are_not_decrypted(tmp_path: Path, name: str, decision: str, verdict: str) -> None:
    """Rules see what is on the wire of an exempt flow: the hello, and no request."""
    ca.create("Test CA", tmp_path, NOW)
    rules = [
        'drop tls any any -> any any (tls.sni; content:"bank"; sid:1;)',
        "alert http any any -> any any (http.host; bsize:>0; sid:2;)",
    ]
    found = explained(tmp_path, INSPECT + '  bypass: [{sni: ["*.bank.example"]}]\n' + strict(*rules), sni=name)
    assert (found.tls.decision, found.conclusion.verdict) == (decision, verdict if decision == "bypass" else "alert")
    assert [ref.id for ref in found.stateful.alerts] == ([1] if decision == "bypass" else [2])


def test_quic_to_a_scope(tmp_path: Path) -> None:
    ca.create("Test CA", tmp_path, NOW)
    found = explained(tmp_path, INSPECT + "  quic: reject\n", proto="udp", dport=443, payload="x")
    assert (found.conclusion.verdict, found.conclusion.reason) == ("reject", "quic")
    assert found.conclusion.place is not None
    assert found.conclusion.place.line == 9


def test_a_captured_flow_in_scope_is_left(tmp_path: Path) -> None:
    ca.create("Test CA", tmp_path, NOW)
    policy = compiled(tmp_path, INSPECT + strict(*INSIDE[:3]))
    description = read_description({"src": CLIENT, "dst": SERVER, "sni": "blocked.example"})
    packets = [each.captured for each in Dialogue(description).packets()]
    (left,), _ = Explainer(policy).captured(lambda: packets)
    assert (left.conclusion.verdict, left.stateful.asked, left.tls.decision) == ("intercept", False, "terminate")
    (wire,), _ = Explainer(policy).captured(lambda: packets, inspect_tls=True)
    assert wire.conclusion.rule is not None
    assert (wire.conclusion.verdict, wire.conclusion.rule.id) == ("drop", 2)


@pytest.mark.parametrize(
    ("flow", "verdict", "enforced"),
    [({"dport": 23}, "alert", "drop"), ({"http_host": "evil"}, "alert", "reject"), ({"http_host": "a"}, "pass", "")],
)
def test_mode_monitor(tmp_path: Path, flow: dict[str, Any], verdict: str, enforced: str) -> None:
    """What replay lets pass is explained as what would have become of it."""
    policy = """\
mode: monitor
stateless:
  rules:
    - {priority: 1, action: drop, protocols: [tcp], destination_ports: [23]}
"""
    text = policy + strict('reject http any any -> any any (http.host; content:"evil"; sid:1;)')
    found = explained(tmp_path, text, **flow)
    assert (found.conclusion.verdict, found.conclusion.enforced) == (verdict, enforced)
    description = read_description({"src": CLIENT, "dst": SERVER, **flow})
    packets = [each.captured for each in Dialogue(description).packets()]
    assert replay_policy(packets, compiled(tmp_path, text), lambda _: None).dropped == 0
    last = list(explain_lines(found, all_rules=False, packets=False))[-1]
    assert ("mode: monitor" in last) is bool(enforced)


def test_flows_of_a_capture_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = compiled(tmp_path, strict('drop http any any -> any any (http.host; content:"b.example"; sid:1;)'))
    packets: list[Captured] = []
    for sport, host in ((1001, "a.example"), (1002, "b.example"), (1003, "c.example")):
        flow = read_description({"src": CLIENT, "dst": SERVER, "sport": sport, "http_host": host})
        packets += [each.captured for each in Dialogue(flow).packets()]
    packets = [each._replace(number=number) for number, each in enumerate(packets, 1)]
    found, left = Explainer(policy).captured(lambda: packets)
    assert ([each.conclusion.verdict for each in found], left) == (["pass", "drop", "pass"], 0)
    assert found[1].conclusion.packet == len(packets) // 3 + 4
    monkeypatch.setattr("nfw.explain.MAX_FLOWS", 2)
    found, left = Explainer(policy).captured(lambda: packets)
    assert (len(found), left) == (2, 1)


def test_what_is_shown_is_bounded(tmp_path: Path) -> None:
    many = [f'drop http any any -> any any (http.host; content:"x{sid}"; sid:{sid};)' for sid in range(1, 200)]
    far = [f"drop tcp any any -> any {port} (sid:{port};)" for port in range(1000, 1050)]
    before = "".join(f"    - {{priority: {n}, action: drop, destination_ports: [{n}]}}\n" for n in range(1, 80))
    found = explained(tmp_path, f"stateless:\n  rules:\n{before}" + strict(*many, *far), **WEB, dport=8080)
    short = list(explain_lines(found, all_rules=False, packets=False))
    assert len(short) < MAX_RULES + 2 * MAX_BEFORE + 12
    assert any(f"{len(many) + len(far) - MAX_RULES} more did not come near" in line for line in short)
    assert len(list(explain_lines(found, all_rules=True, packets=False))) > len(many) + len(far) + 79
    values = explain_json(found, all_rules=False)
    assert (len(values["stateful"]["rules"]), values["stateful"]["rules_total"]) == (MAX_RULES, 249)
    assert (len(values["stateless"][0]["considered"]), values["stateless"][0]["considered_total"]) == (MAX_BEFORE, 79)


def test_rules_that_never_match_are_named(tmp_path: Path) -> None:
    found = explained(tmp_path, strict("alert tcp any any -> any any (vlan.id:7; sid:7;)"), **WEB)
    ((ref, why),) = found.stateful.unusable
    assert (ref.id, why) == (7, "a router has taken VLAN tags off before a packet comes to the IP layer")
    assert any("never matches" in line for line in explain_lines(found, all_rules=False, packets=False))

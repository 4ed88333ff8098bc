"""What is wrong with a policy is said with its place, a code for programs, and what to do; whatever the policy is."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.nearest import nearest_word
from engines.stateful.keywords import KEYWORDS
from engines.stateful.parser import Variables, parse_rules
from nfw import ca
from nfw.policy import load_policy
from nfw.policy.check import check_policy
from nfw.policy.errors import CODES, Level, PolicyError, PolicyErrors, Problems, suggest
from nfw.policy.yamlpos import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml
from tests.grade import pki
from tests.unit import awskit
from tests.unit.test_aws_cloudformation import YAML as TEMPLATE

NATIVE = """\
name: egress
variables: &lists {HOME_NET: [10.0.0.0/8], WEB: [80, 443]}
stateless:
  default: forward
  rules:
    - {priority: 10, action: drop, protocols: [tcp], destination_ports: [23]}
    - {priority: 20, action: pass, protocols: [icmp], sources: ["$HOME_NET"]}
stateful:
  order: strict
  default_actions: [drop_established, alert_established]
  groups:
    - name: names
      priority: 1
      domains: {action: allow, targets: [.example.com], types: [tls_sni, http_host]}
    - name: more
      priority: 2
      variables: {SERVERS: [192.0.2.0/24, "!192.0.2.1"]}
      rules: |
        pass tcp $HOME_NET any -> $SERVERS $WEB (msg:"to servers"; sid:1;)
        alert tls any any -> any any (tls.sni; content:"x"; sid:2;)
log: {events: [alert], sinks: [{type: journald}]}
"""


def problems_of(*paths: Path, map_file: Path | None = None) -> list[PolicyError]:
    """Everything said of files, errors and warnings; what only the check says, too."""
    try:
        loaded = load_policy(*paths, map_file=map_file, now=awskit.NOW.timestamp())
    except PolicyErrors as refused:
        return [*refused.errors, *refused.warnings]
    return [*loaded.warnings, *check_policy(loaded)]


def written(folder: Path, *documents: Any, known: str = "") -> list[PolicyError]:
    paths = awskit.write(folder, *documents)
    (folder / "map.yaml").write_text(known or "home_net: [10.0.0.0/8]\n")
    return problems_of(*paths, map_file=folder / "map.yaml")


def yaml(folder: Path, text: str | bytes) -> list[PolicyError]:
    path = folder / "p.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return problems_of(path)


def group(rules: str = awskit.RULE, order: str = "STRICT_ORDER", capacity: int = 100, **more: Any) -> dict[str, Any]:
    return awskit.group("g", awskit.stateful(rules, order, **more), capacity=capacity)


Case = Callable[[Path], list[PolicyError]]
STATELESS = [{"ResourceArn": f"{awskit.ARN}stateless-rulegroup/s", "Priority": 1}]
TWO = [
    {"ResourceArn": f"{awskit.ARN}stateful-rulegroup/g", "Priority": 1},
    {"ResourceArn": f"{awskit.ARN}stateful-rulegroup/h", "Priority": 1},
]
RULES = "stateful:\n  order: strict\n  rules: |\n    {}\n"
CERTIFICATE = "arn:aws:acm:us-east-1:123456789012:certificate/1"
TLS_SCOPE = {"Scopes": [{"DestinationPorts": [{"FromPort": 443, "ToPort": 443}], "Protocols": [6]}]}
AUTHORITY = {"CertificateAuthorityArn": CERTIFICATE, **TLS_SCOPE}
KNOWN = f"certificates: {{'{CERTIFICATE}': {{certificate: ca.pem, private_key: ca.key}}}}\n"
_ODD = base64.encodebytes(pki.authority("Odd", version=7).der).decode()
ODD_VERSION = f"-----BEGIN CERTIFICATE-----\n{_ODD}-----END CERTIFICATE-----\n"
ROOT = "tls: {{ca: {{certificate: ca.pem, private_key: ca.key}}, scopes: [{{destination_ports: [443]}}], {}}}\n"


def tls(folder: Path, *configurations: dict[str, Any], known: str = KNOWN) -> list[PolicyError]:
    """A policy with a TLS inspection configuration of AWS's."""
    ca.create("Test CA", folder, awskit.NOW)
    described = {
        "TLSInspectionConfiguration": {"ServerCertificateConfigurations": list(configurations)},
        "TLSInspectionConfigurationResponse": {
            "TLSInspectionConfigurationArn": f"{awskit.ARN}tls-configuration/t",
            "TLSInspectionConfigurationName": "t",
        },
    }
    arn = f"{awskit.ARN}tls-configuration/t"
    return written(folder, awskit.policy(TLSInspectionConfigurationArn=arn), described, known=known)


def with_ca(folder: Path, text: str, **files: str) -> list[PolicyError]:
    """A policy of nfw's own beside a CA and ``files``, by name without their ending."""
    ca.create("Test CA", folder, awskit.NOW)
    for name, content in files.items():
        (folder / f"{name}.pem").write_text(content)
    return yaml(folder, text)


ONE = "{priority: 1, action: drop, protocols: [tcp]}"


@pytest.mark.parametrize(
    ("code", "case"),
    [
        # wrong kind
        (
            "wrong-kind",
            lambda folder: written(
                folder,
                awskit.policy(StatelessRuleGroupReferences=[STATELESS[0] | {"ResourceArn": TWO[0]["ResourceArn"]}]),
                group(),
            ),
        ),
        (
            "wrong-kind",
            lambda folder: written(
                folder,
                awskit.policy(StatelessRuleGroupReferences=STATELESS),
                awskit.group("s", awskit.stateful(), "STATELESS"),
            ),
        ),
        ("wrong-kind", lambda folder: written(folder, {"FirewallPolicyV2": {}})),
        ("wrong-kind", lambda folder: yaml(folder, "variables: {A: [80, 10.0.0.1], HOME_NET: [80]}")),
        ("wrong-kind", lambda folder: yaml(folder, "variables: {A: [80], B: [10.0.0.1, $A]}")),
        ("invalid", lambda folder: written(folder, {"FirewallPolicy": []})),
        ("invalid", lambda folder: yaml(folder, "stateful: [a]")),
        ("invalid", lambda folder: yaml(folder, "stateful: {rules: [a.rules]}")),
        ("invalid", lambda folder: yaml(folder, "stateful: {rules: a.rules}")),
        # missing reference
        ("missing-reference", lambda folder: written(folder, awskit.policy(groups=("g",)))),
        ("missing-reference", lambda folder: written(folder, awskit.policy(TLSInspectionConfigurationArn="arn:x"))),
        (
            "missing-reference",
            lambda folder: written(
                folder,
                awskit.policy(groups=("g",)),
                group(ReferenceSets={"IPSetReferences": {"A": {"ReferenceArn": "arn:aws:ec2:r:1:prefix-list/pl-1"}}}),
            ),
        ),
        (
            "missing-reference",
            lambda folder: written(
                folder,
                awskit.policy(
                    StatefulRuleGroupReferences=[
                        {"ResourceArn": "arn:aws:network-firewall:r:aws-managed:stateful-rulegroup/X", "Priority": 1}
                    ]
                ),
            ),
        ),
        ("missing-reference", lambda folder: yaml(folder, "variables: {A: [$B, 10.0.0.1]}")),
        ("missing-reference", lambda folder: yaml(folder, "stateful: {rule_files: [nope.rules]}")),
        ("missing-reference", lambda folder: problems_of(folder / "nope.yaml")),
        # clashing priorities, names, keys, sids
        (
            "duplicate",
            lambda folder: written(
                folder,
                awskit.policy(StatefulRuleGroupReferences=TWO),
                group(),
                awskit.group("h", awskit.stateful()),
            ),
        ),
        (
            "duplicate",
            lambda folder: written(
                folder,
                awskit.policy(StatelessRuleGroupReferences=STATELESS),
                awskit.group("s", awskit.stateless(awskit.stateless_rule(), awskit.stateless_rule()), "STATELESS"),
            ),
        ),
        ("duplicate", lambda folder: written(folder, awskit.policy(groups=("g",)), group(f"{awskit.RULE}\n" * 2))),
        ("duplicate", lambda folder: yaml(folder, f"stateless: {{rules: [{ONE}, {ONE}]}}")),
        ("duplicate", lambda folder: yaml(folder, "name: a\nname: b")),
        ("duplicate", lambda folder: yaml(folder, RULES.format("pass tcp any any -> any any (sid:1;)\n    " * 2))),
        # clashing orders
        (
            "order-clash",
            lambda folder: written(folder, awskit.policy(groups=("g",)), group(order="DEFAULT_ACTION_ORDER")),
        ),
        ("order-clash", lambda folder: written(folder, awskit.policy("DEFAULT_ACTION_ORDER", groups=("g",)), group())),
        (
            "order-clash",
            lambda folder: written(
                folder,
                awskit.policy("DEFAULT_ACTION_ORDER", StatefulRuleGroupReferences=TWO[:1]),
                group(order="DEFAULT_ACTION_ORDER"),
            ),
        ),
        (
            "order-clash",
            lambda folder: written(
                folder, awskit.policy("DEFAULT_ACTION_ORDER", StatefulDefaultActions=["aws:drop_strict"])
            ),
        ),
        ("order-clash", lambda folder: yaml(folder, "stateful: {order: action, default_actions: [drop_strict]}")),
        (
            "order-clash",
            lambda folder: yaml(folder, "stateful: {order: action, groups: [{name: a, priority: 1, rules: []}]}"),
        ),
        # default actions
        (
            "default-actions",
            lambda folder: written(
                folder, awskit.policy(StatefulDefaultActions=["aws:drop_strict", "aws:drop_established"])
            ),
        ),
        (
            "default-actions",
            lambda folder: yaml(folder, "stateful: {default_actions: [drop_established, alert_established_app_layer]}"),
        ),
        # capacity
        ("over-capacity", lambda folder: written(folder, awskit.policy(groups=("g",)), group(capacity=0))),
        ("over-capacity", lambda folder: written(folder, awskit.policy(groups=("g",)), group(capacity=30_001))),
        (
            "over-capacity",
            lambda folder: written(
                folder,
                awskit.policy(StatelessRuleGroupReferences=STATELESS),
                awskit.group("s", awskit.stateless(awskit.stateless_rule(Protocols=[6, 17])), "STATELESS", 1),
            ),
        ),
        (
            "over-capacity",
            lambda folder: yaml(
                folder, f"stateless: {{groups: [{{name: a, priority: 1, capacity: 0, rules: [{ONE}]}}]}}"
            ),
        ),
        # variables in a circle
        ("cyclic-variable", lambda folder: yaml(folder, "variables: {A: [$B], B: [$A]}")),
        (
            "cyclic-variable",
            lambda folder: written(
                folder,
                awskit.policy(groups=("g",)),
                group(RuleVariables={"IPSets": {"A": {"Definition": ["$B"]}, "B": {"Definition": ["$A"]}}}),
            ),
        ),
        # size, encoding, form
        ("rules-too-long", lambda folder: written(folder, awskit.policy(groups=("g",)), group("#" * 2_000_001))),
        ("encoding", lambda folder: yaml(folder, b"name: caf\xe9")),
        ("encoding", lambda folder: yaml(folder, b'{"FirewallPolicy": "\xff"}')),
        ("syntax", lambda folder: yaml(folder, "name: [a")),
        ("syntax", lambda folder: yaml(folder, '{"FirewallPolicy": {')),
        ("syntax", lambda folder: yaml(folder, "name: \x00")),
        ("syntax", lambda folder: yaml(folder, "")),
        ("rule", lambda folder: yaml(folder, RULES.format("pass tcp any any -> any any (contnet:x; sid:1;)"))),
        # TLS: of AWS's
        ("missing-reference", lambda folder: tls(folder, AUTHORITY, known="{}")),
        ("missing-reference", lambda folder: tls(folder, TLS_SCOPE)),
        (
            "missing-reference",
            lambda folder: tls(folder, {**TLS_SCOPE, "ServerCertificates": [{"ResourceArn": CERTIFICATE}],
                                        "CheckCertificateRevocationStatus": {"RevokedStatusAction": "DROP"}}),
        ),
        ("missing-reference", lambda folder: tls(folder, AUTHORITY, known=KNOWN.replace("ca.pem", "none.pem"))),
        ("certificate", lambda folder: tls(folder, AUTHORITY, known=KNOWN.replace("ca.pem", "ca.key"))),
        (
            "certificate",
            lambda folder: tls(
                folder,
                {**TLS_SCOPE, "ServerCertificates": [{"ResourceArn": CERTIFICATE}]},
                known=KNOWN.replace("ca.pem", "ca.key"),
            ),
        ),
        (
            "conflict",
            lambda folder: tls(
                folder,
                AUTHORITY,
                {**AUTHORITY, "CertificateAuthorityArn": f"{CERTIFICATE}2"},
                known=f"{KNOWN.rstrip()[:-1]}, '{CERTIFICATE}2': {{certificate: ca.pem, private_key: ca.key}}}}\n",
            ),
        ),
        (
            "conflict",
            lambda folder: tls(
                folder,
                {**AUTHORITY, "CheckCertificateRevocationStatus": {"RevokedStatusAction": "DROP"}},
                {**AUTHORITY, "CheckCertificateRevocationStatus": {"RevokedStatusAction": "PASS"}},
            ),
        ),
        ("invalid", lambda folder: tls(folder, {**AUTHORITY, "Scopes": [{"Protocols": [17]}]})),
        ("invalid", lambda folder: tls(folder, {**AUTHORITY, "Scopes": [{"DecryptionAction": "BYPASS"}]})),
        # TLS: of nfw's own
        ("missing-reference", lambda folder: yaml(folder, ROOT.format("keywords: sni"))),
        ("missing-reference", lambda folder: with_ca(folder, ROOT.format("trust: [none.pem]"))),
        ("missing-reference", lambda folder: with_ca(folder, ROOT.format("transparency: {require: true}"))),
        ("missing-reference", lambda folder: with_ca(folder, ROOT.format("debug: {sni: [a.example]}"))),
        ("certificate", lambda folder: with_ca(folder, ROOT.format("trust: [x.pem]"), x="nothing")),
        ("certificate", lambda folder: with_ca(folder, ROOT.format("trust: [x.pem]"), x=ODD_VERSION)),
        ("certificate", lambda folder: with_ca(folder, ROOT.format("distrust: [x.pem]"), x="nothing")),
        ("certificate", lambda folder: with_ca(folder, ROOT.format("transparency: {logs: [x.pem]}"), x="nothing")),
        ("certificate", lambda folder: with_ca(folder, ROOT.format("").replace("ca.pem", "x.pem"), x="nothing")),
        ("conflict", lambda folder: with_ca(folder, ROOT.format("actions: {revoked: drop}"))),
        (
            "certificate",
            lambda folder: with_ca(
                folder, "inbound: [{certificates: [{certificate: x.pem, private_key: ca.key}], scopes: [{}]}]", x="-"
            ),
        ),
        (
            "missing-reference",
            lambda folder: yaml(folder, "inbound: [{certificates: [{certificate: x.pem}], scopes: [{}]}]"),
        ),
    ],
)  # fmt: skip
def test_every_error_has_place_code_and_remedy(tmp_path: Path, code: str, case: Case) -> None:
    errors = [problem for problem in case(tmp_path) if problem.level is Level.ERROR]
    assert code in [error.code or "invalid" for error in errors], [str(error) for error in errors]
    for error in errors:
        assert error.file.startswith(str(tmp_path))
        assert error.line > 0 or error.code in ("missing-reference", "syntax"), str(error)
        assert error.advice, str(error)
        assert error.to_json()["code"] in CODES


# -- anything at all -----------------------------------------------------------------------------------------------

PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "- ",
        "\n",
        "  ",
        "\t",
        '"',
        "'",
        "|\n",
        ">\n",
        "#",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
    ),
    *(
        "&a ",
        "*a",
        "<<: ",
        "!!python/object:os.system ",
        "!Ref ",
        "!Sub ",
        "? ",
        "\x00",
        "\ufeff",
        "\x85",
        "\u2028",
        "\xff",
    ),
    *(".nan", "-.inf", "1e999", "9" * 400, "0x" + "f" * 40, "0o7", "~", "yes", "2001-01-01", "1_000"),
    *("any", "10.0.0.0/99", "::/0", "$HOME_NET", "!$A", "@A", "aws:pass", "STRICT_ORDER", "[" * 60, "{a: " * 40),
]


@st.composite
def cut_up(draw: st.DrawFn, text: str) -> bytes:
    """``text`` with pieces taken out, doubled, moved and put in; perhaps cut off, perhaps behind a byte order mark."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        size = draw(st.sampled_from([0, 0, 1, 3, 20, 200]))
        kind = draw(st.sampled_from(["put", "put", "take", "double", "move"]))
        piece = draw(st.sampled_from(PIECES)) if kind == "put" else text[at : at + size] * (kind != "take")
        to = draw(st.integers(0, len(text))) if kind == "move" else at
        text = text[:to] + piece + text[to + (size if kind in ("take", "put") else 0) :]
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + data


def aws_text() -> str:
    return json.dumps([awskit.policy(groups=("g",)), group()], indent=1)


def answers(folder: Path, data: bytes, name: str) -> None:
    """The loader and the check say of a file what they have to say, and nothing else happens."""
    path = folder / name
    path.write_bytes(data)
    started = time.monotonic()
    for problem in problems_of(path):
        assert problem.file.startswith(str(folder)), str(problem)
        assert str(problem).isprintable()
        assert len(str(problem)) < 3000
        assert problem.to_json()["code"] in CODES
        assert problem.level is not Level.ERROR or problem.advice
    assert time.monotonic() - started < 20


ANY_EXAMPLE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@ANY_EXAMPLE
@given(cut_up(NATIVE))
def test_any_policy_file(tmp_path: Path, data: bytes) -> None:
    answers(tmp_path, data, "p.yaml")


@ANY_EXAMPLE
@given(cut_up(aws_text()))
def test_any_aws_document(tmp_path: Path, data: bytes) -> None:
    answers(tmp_path, data, "p.json")


@ANY_EXAMPLE
@given(cut_up(TEMPLATE))
def test_any_template(tmp_path: Path, data: bytes) -> None:
    answers(tmp_path, data, "p.template")


@ANY_EXAMPLE
@given(st.data())
def test_any_value_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    """Keys renamed, types exchanged, numbers out of all bounds, in a document that is well formed."""
    documents = json.loads(aws_text())
    for _ in range(data.draw(st.integers(1, 3))):
        places = [(container, key) for container, key in _places(documents)]
        container, key = data.draw(st.sampled_from(places))
        value = data.draw(STRANGE)
        if isinstance(container, dict) and data.draw(st.booleans()):
            container[data.draw(st.sampled_from([key + "s", key[:-1], key.lower(), "", "\x00"]))] = container.pop(key)
        else:
            container[key] = copy.deepcopy(value)
    answers(tmp_path, json.dumps(documents).encode(), "p.json")


STRANGE: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([10**400, "", "any", "\ufeff", "\x00", "\ud800", "é" * 9000, "aws:pass", "$HOME_NET", "[[[["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Ref", "Fn::Sub", "a"]), inner),
    max_leaves=6,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in list(pairs) for place in [(value, key), *_places(item)]]


# -- bounds --------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(12)
)
_MEASURE = """\
import resource, sys
from nfw import ca
from nfw.policy import load_policy
from nfw.policy.errors import PolicyErrors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_policy(sys.argv[1])
except PolicyErrors as refused:
    print(refused.errors[0].message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("laughs.yaml", LAUGHS, f"more than {MAX_NODES} values"),
        ("deep.yaml", "[" * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
        ("deep.yaml", "".join(" " * level + "a:\n" for level in range(300)), f"nested more than {MAX_DEPTH} levels"),
        ("deep.json", '{"a":' * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
        ("long.json", '{"a": "' + "x" * MAX_BYTES + '"}', "the limit for this kind of file"),
        ("long.yaml", "a: " + "x" * MAX_BYTES, "the limit for this kind of file"),
        ("digits.json", '{"FirewallPolicy": ' + "9" * 2_000_000 + "}", "expected an object"),
        ("digits.yaml", "workers: " + "9" * 2_000_000, "expected auto or a number"),
    ],
)
def test_bounds_of_time_and_memory(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Named in the message; reached in seconds, with less than half a GiB."""
    path = tmp_path / name
    path.write_text(text)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    assert message in said[0]
    assert time.monotonic() - started < 60
    assert int(grown) < 512 << 10  # KiB


def test_an_alias_of_an_alias_is_counted_whole() -> None:
    problems = Problems("f")
    assert parse_yaml(LAUGHS.encode(), problems) is None
    assert len(problems.errors) == 1


# -- the nearest word ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "near"),
    [("contnet", "content"), ("CONTENT", ""), ("http.urii", "http.uri"), ("x", ""), ("", ""), ("y" * 10_000, "")],
)
def test_nearest_word(word: str, near: str) -> None:
    assert nearest_word(word, tuple(KEYWORDS)) == near


def test_suggestions_keep_their_case() -> None:
    assert suggest("priorty", ["Priority", "Actions"]) == 'did you mean "Priority"?'


def test_files_of_unknown_keywords_load_fast() -> None:
    """Each misses a known word by a letter: 5 s for ten thousand where comparing with all words took 14."""
    rules = "\n".join(f"alert tcp any any -> any any (contnet{sid}:1; sid:{sid};)" for sid in range(1, 2001))
    same = "\n".join(f"alert tcp any any -> any any (contnet:1; sid:{sid};)" for sid in range(1, 20_001))
    for text, count in ((rules, 2000), (same, 20_000)):
        started = time.monotonic()
        found = parse_rules(text, "f", Variables())
        assert len(found.errors) == count
        assert found.errors[0].message.endswith("(did you mean content?)")
        assert time.monotonic() - started < 10

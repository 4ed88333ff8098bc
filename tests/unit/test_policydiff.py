"""What is different between two policies: rules by what they are about, settings by name, places where they matter."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from nfw.policy.aws.write import write_template
from nfw.policy.diff import PolicyDiff, SettingChange, _flat, _tls, diff_policies
from nfw.policy.dump import dump_policy
from nfw.policy.errors import PolicyErrors
from nfw.policy.loader import load_policy
from nfw.policy.model import CertificateAuthority, Policy, Stateful, Tls
from tests.unit import awskit
from tests.unit.test_aws_convert import folder as sources  # noqa: F401
from tests.unit.test_aws_convert import from_aws, from_yaml, policies

_CA = CertificateAuthority(Path("ca.pem"), Path("ca.key"))


def load(folder: Path, text: str, name: str = "p") -> Policy:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return load_policy(path)


def difference(folder: Path, old: str, new: str) -> PolicyDiff:
    return diff_policies(load(folder, old, "old"), load(folder, new, "new"))


def stateless(*rules: str) -> str:
    return "stateless:\n  rules:\n" + "".join(
        f"    - {{priority: {number}, {rule}}}\n" for number, rule in enumerate(rules, 1)
    )


def stateful(*rules: str, order: str = "strict") -> str:
    return f"stateful:\n  order: {order}\n  rules: |\n" + "".join(f"    {rule}\n" for rule in rules)


WEB, TELNET = "protocols: [tcp], destination_ports: [80, 443]", "protocols: [tcp], destination_ports: [23]"
DNS = "protocols: [udp], destination_ports: [53]"


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ([], [f"action: drop, {WEB}"], [("added", "")]),
        ([f"action: drop, {WEB}"], [], [("removed", "")]),
        ([f"action: drop, {WEB}"], [f"action: pass, {WEB}"], [("changed", "action drop -> pass")]),
        ([f"action: drop, {WEB}"], [f"action: drop, {TELNET}"], [("changed", "what it matches")]),
        ([f"action: drop, {WEB}"], [f"action: drop, counters: [C], {WEB}"], [("changed", "counters")]),
        # The same rules in lists of another order, and with names.
        (
            ["action: pass, protocols: [tcp, udp]"],
            ["name: all, action: pass, protocols: [udp, tcp]"],
            [],
        ),
        # Other places: no matter where both do the same, or never meet; a matter where they decide otherwise.
        ([f"action: drop, {WEB}", f"action: drop, {TELNET}"], [f"action: drop, {TELNET}", f"action: drop, {WEB}"], []),
        ([f"action: drop, {WEB}", f"action: pass, {TELNET}"], [f"action: pass, {TELNET}", f"action: drop, {WEB}"], []),
        ([f"action: drop, {WEB}", f"action: pass, {DNS}"], [f"action: pass, {DNS}", f"action: drop, {WEB}"], []),
        (
            [f"action: drop, {WEB}", "action: pass, protocols: [tcp]"],
            ["action: pass, protocols: [tcp]", f"action: drop, {WEB}"],
            [("moved", "place 2 -> 1")],
        ),
        (
            [f"action: drop, sources: [10.0.0.0/8], {WEB}", f"action: pass, sources: [192.0.2.0/24], {WEB}"],
            [f"action: pass, sources: [192.0.2.0/24], {WEB}", f"action: drop, sources: [10.0.0.0/8], {WEB}"],
            [],
        ),
        # A rule written twice.
        ([f"action: drop, {WEB}"] * 2, [f"action: drop, {WEB}"], [("removed", "")]),
    ],
)
def test_stateless(tmp_path: Path, old: list[str], new: list[str], changes: list[tuple[str, str]]) -> None:
    found = difference(tmp_path, stateless(*old) if old else "name: p\n", stateless(*new) if new else "name: p\n")
    assert [(one.kind, one.what) for one in found.stateless] == changes
    assert not found.stateful
    assert not found.settings


A = 'drop tcp any any -> any 80 (msg:"a"; content:"a"; sid:1;)'
B = 'pass tcp any any -> any 80 (msg:"b"; content:"b"; sid:2;)'
C = 'drop tcp any any -> any 81 (msg:"c"; content:"c"; sid:3;)'
D = 'alert udp any any -> any 53 (msg:"d"; content:"d"; sid:4;)'


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ([A], [A, B], [("added", "")]),
        ([A, B], [B], [("removed", "")]),
        ([A], [A.replace("drop", "alert")], [("changed", "action drop -> alert")]),
        ([A], [A.replace('content:"a"', 'content:"z"')], [("changed", "what it matches")]),
        ([A], [A.replace("any 80", "any 8080")], [("changed", "what it matches")]),
        (
            [A],
            [A.replace('msg:"a"', r'msg:"other\; (words)"').replace("sid:1;", "sid:1; rev:2;")],
            [("changed", "description")],
        ),
        ([A], [A.replace("; ", ";  ")], []),
        ([A, B, C], [B, A, C], [("moved", "place 2 -> 1")]),
        ([A, C], [C, A], []),
        ([A, D], [D, A], []),
        ([A, B, D], [D, A, B], []),
        ([A], [A.replace("sid:1;", "priority:1; sid:1;")], [("changed", "what it matches, priority 3 -> 1")]),
    ],
)
def test_stateful(tmp_path: Path, old: list[str], new: list[str], changes: list[tuple[str, str]]) -> None:
    found = difference(tmp_path, stateful(*old), stateful(*new))
    assert [(one.kind, one.what) for one in found.stateful] == changes
    assert not found.stateless
    assert not found.settings


USING = "stateful: {rules: 'alert tcp $HOME_NET any -> any 1 (sid:1;)'}\n"


def test_places_do_not_matter_in_action_order(tmp_path: Path) -> None:
    assert not difference(tmp_path, stateful(A, B, order="action"), stateful(B, A, order="action"))


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("name: a\n", "name: b\n", []),
        ("name: a\n", "mode: monitor\n", ["mode: enforce -> monitor"]),
        (
            "variables: {HOME_NET: [10.0.0.0/8]}\n" + USING,
            "variables: {HOME_NET: [10.0.0.0/8, 192.0.2.0/24]}\n" + USING,
            ["variables.HOME_NET (used by 1 rule)", "  + 192.0.2.0/24"],
        ),
        (
            "variables: {WEB: [10.0.0.1, 10.0.0.2]}\n",
            "variables: {WEB: [10.0.0.2, 10.0.0.1], PORTS: ['80']}\n",
            ["variables.PORTS (used by 0 rules)", "  + 80"],
        ),
        ("stateless: {default: pass}\n", "stateless: {default: drop}\n", ["stateless.default: pass -> drop"]),
        (
            "stateful: {default_actions: [drop_established]}\n",
            "stateful: {default_actions: [drop_strict]}\n",
            ["stateful.default_actions", "  + drop_strict", "  - drop_established"],
        ),
        ("flows: {tcp_idle: 350}\n", "flows: {tcp_idle: 100}\n", ["flows.tcp_idle: 350 -> 100"]),
        (
            "open_flows: {which: none, action: drop}\n",
            "open_flows: {which: all, action: reject}\n",
            ["open_flows.which: none -> all", "open_flows.action: drop -> reject"],
        ),
    ],
)
def test_settings(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    found = difference(tmp_path, old, new)
    assert found.lines() == (["settings", *(f"  {line}" for line in lines)] if lines else [])
    assert bool(found) is bool(lines)


def test_tls(tmp_path: Path) -> None:
    from nfw import ca

    ca.create("Test CA", tmp_path, awskit.NOW)
    head = "tls:\n  ca: {certificate: ca.pem, private_key: ca.key}\n"
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(head + "  scopes: [{destination_ports: [443]}]\n")
    new.write_text(head + "  scopes: [{destination_ports: [8443]}]\n  actions: {expired: pass}\n  trust: [ca.pem]\n")
    now = awskit.NOW.timestamp()
    before, after = (load_policy(path, now=now) for path in (old, new))
    found = {one.name: one for one in diff_policies(before, after).settings}
    assert found.keys() == {"tls.scopes", "tls.actions", "tls.trust"}
    assert found["tls.scopes"].added == ("{destination_ports: [8443]}",)
    assert found["tls.scopes"].removed == ("{destination_ports: [443]}",)
    assert found["tls.actions"].added == ("expired: pass",)
    assert found["tls.trust"].removed == ("system",)
    assert found["tls.trust"].added[0].startswith("sha256:")
    own = load(tmp_path, f"name: p\n{head}  scopes: [{{destination_ports: [443], trust: [ca.pem]}}]\n")
    (scopes,) = diff_policies(before, own).settings
    assert scopes.added[0].startswith("{destination_ports: [443], trust: [sha256:")
    off = diff_policies(before, load(tmp_path, "name: p\n")).settings
    assert off[0].name == "tls"
    assert (off[0].old, off[0].new) == ("on", "off")


def test_every_field_of_a_policy_is_compared() -> None:
    """A field that is new in the model has to be said here, or in ``_flat``."""
    said = {name.partition(".")[2].partition(".")[0] for name in _tls(Tls(_CA, ())) if name.startswith("tls.")}
    assert {field.name for field in dataclasses.fields(Tls)} - said == {"arn", "scope_trust"}  # said with the scopes
    flat = {name.partition(".")[0] for name in _flat(Policy("p", Path("p.yaml")))}
    assert {field.name for field in dataclasses.fields(Policy)} - flat == {"name", "file", "arn", "warnings", "labels"}
    stateful = {name.partition(".")[2] for name in _flat(Policy("p", Path("p.yaml"))) if name.startswith("stateful.")}
    assert {field.name for field in dataclasses.fields(Stateful)} - stateful == {"sources", "groups", "signatures"}


def _mirrored(one: SettingChange) -> tuple[object, ...]:
    return one.name, one.new, one.old, one.removed, one.added


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), policies(), policies())
def test_the_way_back_is_the_way_there_mirrored(
    sources: Path,  # noqa: F811
    data: st.DataObject,
    content: dict[str, Any],
    other: dict[str, Any],
) -> None:
    """And from a policy to itself, in whatever form, there is none. Some sections are exchanged, some stay."""
    keys = data.draw(st.sets(st.sampled_from(sorted({*content, *other}))))
    changed = {key: value for key, value in content.items() if key not in keys}
    changed |= {key: value for key, value in other.items() if key in keys}
    try:
        new = from_yaml(json.dumps(changed), sources)
    except PolicyErrors:  # rules of one with the variables of the other
        reject()
    old = from_yaml(json.dumps(content), sources)
    assert not diff_policies(old, from_yaml(dump_policy(old), sources))
    assert not diff_policies(new, from_aws(write_template(new), sources))
    there, back = diff_policies(old, new), diff_policies(new, old)
    assert sorted(map(_mirrored, there.settings)) == sorted(
        (one.name, one.old, one.new, one.added, one.removed) for one in back.settings
    )
    for one, two in ((there.stateless, back.stateless), (there.stateful, back.stateful)):
        assert sorted(each.rule for each in one if each.kind == "added") == sorted(
            each.rule for each in two if each.kind == "removed"
        )
        assert sorted(each.rule for each in one if each.kind == "removed") == sorted(
            each.rule for each in two if each.kind == "added"
        )
        assert sorted((each.rule, each.was) for each in one if each.kind == "changed") == sorted(
            (each.was, each.rule) for each in two if each.kind == "changed"
        )
        assert any(each.kind == "moved" for each in one) is any(each.kind == "moved" for each in two)


def test_the_form_does_not_matter(tmp_path: Path) -> None:
    """AWS documents and the YAML made of them are one policy; rules that came into a group are where they were."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, found in enumerate((awskit.policy(groups=("g",)), awskit.group("g", awskit.stateful()))):
        (folder / f"{number}.json").write_text(json.dumps(found))
    documents = load_policy(folder)
    assert not diff_policies(documents, load(folder, dump_policy(documents), "converted"))
    changes = diff_policies(load(tmp_path, stateful(awskit.RULE)), documents)
    assert not changes.stateful


def test_json_and_content_of_other_files(tmp_path: Path) -> None:
    policy = load(tmp_path, "name: p\n")
    found = diff_policies(
        policy,
        policy,
        {"/etc/hashes": "1", "/etc/p.yaml": "1", "/etc/same": "1"},
        {"/etc/hashes": "2", "/etc/p.yaml": "2", "/etc/same": "1"},
    )
    assert found.lines() == ["settings", "  content of a file: /etc/hashes"]
    assert found.to_json() == {
        "equal": False,
        "settings": [{"name": "content of a file", "old": "/etc/hashes", "new": "/etc/hashes"}],
        "stateless": [],
        "stateful": [],
    }
    both = difference(tmp_path, stateful(A, B), stateful(B, A.replace("drop", "reject")))
    assert both.to_json()["stateful"] == [
        {"change": "moved", "rule": B, "at": f"{tmp_path}/new.yaml:4", "what": "place 2 -> 1"},
        {
            "change": "changed",
            "rule": A.replace("drop", "reject"),
            "at": f"{tmp_path}/new.yaml:5",
            "what": "action drop -> reject",
            "was": A,
        },
    ]


def test_large_rule_sets_in_linear_time(tmp_path: Path) -> None:
    """The worst there is: every rule somewhere else, and none equal in action to its neighbours."""
    times = []
    for count in (2000, 8000):
        rules = [
            f'{("drop", "pass")[n % 2]} tcp any any -> any {n + 1} (content:"c{n}"; sid:{n + 1};)' for n in range(count)
        ]
        before, after = load(tmp_path, stateful(*rules), "old"), load(tmp_path, stateful(*reversed(rules)), "new")
        started = time.process_time()
        assert len(diff_policies(before, after).stateful) == count - 1
        times.append(time.process_time() - started)
    assert times[1] < 5.0

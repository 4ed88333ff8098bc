"""Each sentence of AWS's documentation in tests/awsrows.py: replay and explain say what it says."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfw import ca
from nfw.capture import Captured
from nfw.describe import read_description
from nfw.dialogue import Dialogue
from nfw.explain import Explainer
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from nfw.policyreplay import replay_policy
from tests.awsrows import GROUPS, MAP, Group, Row, documents
from tests.unit.awskit import NOW, write
from tests.unit.test_policyreplay import Talk

CASES = [pytest.param(group, row, id=f"{group.name}: {row.says}") for group in GROUPS for row in group.rows]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A group's policy, compiled once."""
    authority = tmp_path_factory.mktemp("ca")
    ca.create("Test CA", authority, NOW)

    @functools.cache
    def of(number: int) -> tuple[Compiled, Explainer]:
        group, directory = GROUPS[number], tmp_path_factory.mktemp("policy")
        shutil.copytree(authority, directory, dirs_exist_ok=True)
        map_file = directory / "map.yaml"
        map_file.write_text(MAP)
        paths = write(directory, *group.documents)
        loaded = load_policy(*paths, map_file=map_file if group.tls else None, now=NOW.timestamp())
        made = compile_policy(loaded)
        return made, Explainer(made)

    return lambda group: of(GROUPS.index(group))


@pytest.mark.parametrize(("group", "row"), CASES)
def test_row(compiled: Any, group: Group, row: Row) -> None:
    policy, explainer = compiled(group)
    flow = read_description(row.flow)
    explained = explainer.described(flow)
    verdict = explained.conclusion.verdict
    assert ("pass" if verdict == "alert" else verdict) == row.verdict, row.says
    assert sorted(ref.id for ref in explained.stateful.alerts) == sorted(row.alerts), row.says
    intercepted = [step for step in explained.steps if step.verdict == "intercept"]
    records: list[dict[str, Any]] = []
    policy.ruleset.forget()
    summary = replay_policy([each.captured for each in Dialogue(flow).packets()], policy, records.append)
    assert bool(summary.intercepted) == bool(intercepted) == (explained.tls.decision == "terminate")
    if intercepted:  # replay has the ciphertext only
        return
    kinds = {what.verdict for what in summary.verdicts}
    assert ("reject" if "reject" in kinds else "drop" if "drop" in kinds else "pass") == row.verdict
    sids = {record["alert"]["signature_id"] for record in records if record["event_type"] == "alert"}
    assert sids == set(row.alerts)


def test_every_default_action_has_rows() -> None:
    from engines.stateful.defaults import NAMES

    assert set(NAMES) <= {group.name for group in GROUPS}


@pytest.mark.parametrize(
    ("says", "timeouts", "pause", "verdict"),
    [
        ("M: a TCP flow is forgotten after 350 s by default", {}, 349.0, "pass"),
        ("M: ... and what comes then is midstream", {}, 351.0, "drop"),
        ("M: TcpIdleTimeoutSeconds", {"TcpIdleTimeoutSeconds": 60}, 61.0, "drop"),
        ("M: ... up to 6000", {"TcpIdleTimeoutSeconds": 6000}, 5999.0, "pass"),
    ],
)
def test_flow_timeouts(tmp_path: Path, says: str, timeouts: dict[str, int], pause: float, verdict: str) -> None:
    options = {"RuleOrder": "STRICT_ORDER", **({"FlowTimeouts": timeouts} if timeouts else {})}
    rules = 'alert tcp any any -> any any (flow:established; content:"never there"; sid:1;)'
    paths = write(tmp_path, *documents(rules, StatefulEngineOptions=options))
    compiled = compile_policy(load_policy(*paths, now=NOW.timestamp()))
    talk = Talk(7).open().say(0, "PA", b"x" * 40).say(1, "A").say(0, "PA", b"late", after=pause)
    packets = [Captured(number, now, 101, bytes(data)) for number, (now, data) in enumerate(talk.packets, 1)]
    (explained,), _ = Explainer(compiled).captured(lambda: packets)
    assert explained.conclusion.verdict == verdict, says
    assert (replay_policy(packets, compiled, lambda _: None).dropped > 0) == (verdict == "drop")
    if verdict == "drop":
        assert explained.conclusion.reason == "stream_exception"
        assert explained.conclusion.packet == len(packets)


def test_udp_is_forgotten_after_two_minutes(tmp_path: Path) -> None:
    """M: 120 s, fixed; then a datagram begins a new flow, on which address rules are tried again."""
    from scapy.layers.inet import IP, UDP

    paths = write(tmp_path, *documents("alert udp any any -> any 7 (sid:1;)"))
    compiled = compile_policy(load_policy(*paths, now=NOW.timestamp()))
    for pause, alerts in ((119.0, 1), (121.0, 2)):
        datagram = bytes(IP(src="10.1.0.2", dst="203.0.113.10") / UDP(sport=40000, dport=7) / b"x")
        packets = [Captured(number, 1000.0 + number * pause, 101, datagram) for number in (1, 2)]
        seen: list[str] = []
        compiled.ruleset.forget()
        fresh = replace(compiled)
        replay_policy(packets, fresh, lambda record, seen=seen: seen.append(record["event_type"]))
        assert seen.count("alert") == alerts

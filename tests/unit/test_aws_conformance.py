"""Each sentence of AWS's documentation in tests/awsrows.py: replay and explain say what it says."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import pytest

from engines.packet import TCP
from engines.stateful.explain import Fate
from nfw import ca
from nfw.capture import Captured
from nfw.describe import read_description
from nfw.dialogue import Dialogue
from nfw.explain import Explainer
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from nfw.policyreplay import replay_policy
from tests.awsrows import GROUPS, Group, Row
from tests.unit.awskit import NOW, write

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
        map_file.write_text(group.map)
        paths = write(directory, *group.documents)
        loaded = load_policy(*paths, map_file=map_file if group.map else None, now=NOW.timestamp())
        made = compile_policy(loaded)
        return made, Explainer(made)

    return lambda group: of(GROUPS.index(group))


@pytest.mark.parametrize(("group", "row"), CASES)
def test_row(compiled: Any, group: Group, row: Row) -> None:
    policy, explainer = compiled(group)
    flow = read_description(row.flow)
    packets = paused(Dialogue(flow), row.pause)
    explained = explainer.captured(lambda: packets)[0][0] if row.pause else explainer.described(flow)
    verdict = explained.conclusion.verdict
    assert ("pass" if verdict == "alert" else verdict) == row.verdict, row.says
    logged = [ref.id for ref in explained.stateful.alerts]
    assert sorted(logged) == sorted(row.alerts), row.says
    matched = [rule.rule.signature.sid for rule in explained.stateful.rules if rule.fate is Fate.ALERTED]
    assert not row.in_order or matched == list(row.alerts), row.says
    if row.heard:
        assert next(step.verdict for step in explained.steps if step.what == "reply") == "accept", row.says
    intercepted = [step for step in explained.steps if step.verdict == "intercept"]
    if verdict == "drop" and flow.protocol == TCP:  # nobody says more than can be said
        packets = packets[: explained.conclusion.packet]
    records: list[dict[str, Any]] = []
    policy.ruleset.forget()
    summary = replay_policy(packets, policy, records.append)
    assert bool(summary.intercepted) == bool(intercepted) == (explained.tls.decision == "terminate")
    if intercepted:  # replay has the ciphertext only
        return
    kinds = {what.verdict for what in summary.verdicts}
    assert ("reject" if "reject" in kinds else "drop" if "drop" in kinds else "pass") == row.verdict
    sids = [record["alert"]["signature_id"] for record in records if record["event_type"] == "alert"]
    assert set(sids) == set(row.alerts)
    assert not row.in_order or sids == list(row.alerts)
    assert row.records in (None, len(sids))


def paused(dialogue: Dialogue, pause: float) -> list[Captured]:
    """The packets, the client's second payload and all after it so much later."""
    made: list[Captured] = []
    said, later = 0, 0.0
    for each in dialogue.packets():
        said += each.what == "payload"
        later = pause if said > 1 else 0.0
        made.append(each.captured._replace(time=each.captured.time + later))
    return made


def test_rows_that_are_not_live_say_why() -> None:
    """Waiting for minutes is all that the lab leaves out."""
    left_out = [row for group in GROUPS for row in group.rows if row.not_live]
    assert len(left_out) == 3
    assert all(row.pause > 300 and "minutes of waiting" in row.not_live for row in left_out)


def test_rows_of_a_group_have_names_of_their_own() -> None:
    assert len({group.name for group in GROUPS}) == len(GROUPS)
    for group in GROUPS:
        assert len({row.says for row in group.rows}) == len(group.rows), group.name


def test_every_default_action_has_rows() -> None:
    from engines.stateful.defaults import NAMES

    assert set(NAMES) <= {group.name for group in GROUPS}

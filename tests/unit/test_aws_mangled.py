"""Whatever is done to documents, the loader answers with a policy or with messages: no exception, no long wait."""

from __future__ import annotations

import copy
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfw.policy import dump_policy, load_policy
from nfw.policy.aws.write import write_template
from nfw.policy.errors import PolicyErrors
from nfw.policy.loader import load_policy_text
from tests.unit.awskit import NOW, golden_folder, group, load, meaning, policy, refusal, stateful
from tests.unit.test_aws_cloudformation import YAML

PLACED = re.compile(r"[^\n]+?(:\d+)?(:\d+)?: [^\n]+\Z")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_folder(tmp_path_factory.mktemp("mangled"))


def answers(*paths: Path, map_file: Path | None = None) -> bool:
    """Whether the files load. What is said of them is one line each, placed, printable and of readable length."""
    started = time.monotonic()
    try:
        loaded = load_policy(*paths, map_file=map_file, now=NOW.timestamp())
    except PolicyErrors as refused:
        told = [*refused.errors, *refused.warnings]
        good = not refused.errors
    else:
        told = list(loaded.warnings)
        again = load_policy_text(dump_policy(loaded).encode(), loaded.file.parent / "again.yaml", now=NOW.timestamp())
        assert meaning(again) == meaning(loaded)
        write_template(loaded)
        good = True
    assert time.monotonic() - started < 20
    names = {str(path) for path in paths} | ({str(map_file)} if map_file else set())
    for problem in told:
        assert PLACED.match(str(problem)), str(problem)
        assert any(problem.file.startswith(name.rpartition("/")[0]) for name in names)
        assert str(problem).isprintable()
        assert len(problem.message) < 1500
    return good


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a document."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in pairs:
        yield value, key
        yield from nodes(item)


STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    65536,
    10**40,
    1.5,
    "",
    " ",
    "any",
    "ANY",
    "!any",
    "$HOME_NET",
    "$$",
    "@",
    "é\u2028\x00",
    "10.0.0.0/8",
    "::/0",
    "[",
    "[]",
    "![10.0.0.0/8,]",
    "aws:pass",
    "STRICT_ORDER",
    "x" * 5000,
    "arn:aws:network-firewall:us-east-1:aws-managed:stateful-rulegroup/x",
    "pass tcp any any -> any any (sid:1;)",
    "\n\n(((;;;\\",
    [],
    {},
    [[]],
    [{}],
    {"Ref": "Edge"},
    {"Fn::Sub": "${Edge}"},
]


def mangle(documents: list[Any], rng: random.Random) -> None:
    """One change somewhere."""
    container, key = rng.choice([pair for document in documents for pair in nodes(document)])
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(rng.choice(container)))
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice([key + "s", key[:-1], key.lower(), "Name"])] = container.pop(key)
    elif kind == 3 and isinstance(container[key], str) and container[key]:
        text = container[key]
        at = rng.randrange(len(text))
        container[key] = text[:at] + rng.choice(['"', "\n", "\x00", "é", "/", "-", "", ";", "9"]) + text[at + 1 :]
    elif kind == 4:
        other, its = rng.choice([pair for document in documents for pair in nodes(document)])
        container[key] = copy.deepcopy(other[its])
    else:
        container[key] = copy.deepcopy(rng.choice(STRANGE))


@pytest.mark.parametrize("seed", range(4))
def test_mangled_documents(folder: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(folder.glob("*.json"))
    documents = [json.loads(file.read_text()) for file in files]
    outcomes: list[bool] = []
    for _ in range(50):
        changed = copy.deepcopy(documents)
        for _ in range(rng.choice([1, 1, 2, 5])):
            mangle(changed, rng)
        paths = []
        for file, document in zip(files, changed, strict=True):
            path = tmp_path / file.name
            path.write_text(json.dumps(document))
            paths.append(path)
        outcomes.append(answers(*paths, map_file=folder / "map.yaml"))
    assert True in outcomes
    assert False in outcomes


@pytest.mark.parametrize("seed", range(4))
def test_mangled_bytes(folder: Path, tmp_path: Path, seed: int) -> None:
    """Of JSON, of a YAML template and of a map file."""
    rng = random.Random(seed)
    texts = {
        "policy.json": (folder / "policy.json").read_bytes(),
        "template.yaml": YAML.encode(),
        "names.json": (folder / "names.json").read_bytes(),
    }
    known = (folder / "map.yaml").read_bytes()
    for _ in range(25):
        name, text = rng.choice(list(texts.items()))
        data, map_data = bytearray(text), bytearray(known)
        changed = rng.choice([data, data, data, map_data])
        for _ in range(rng.choice([1, 3])):
            at = rng.randrange(len(changed))
            change = rng.randrange(4)
            if change == 0:
                del changed[at : at + rng.randrange(1, 40)]
            elif change == 1:
                changed[at] = rng.randrange(256)
            elif change == 2:
                changed[at:at] = changed[rng.randrange(len(changed)) :][:30]
            else:
                changed[at:at] = rng.choice(
                    [b"!Ref x", b"&a *a", b"{", b"]", b"\xff", b"\t", b'"', b"---\n", b"!Sub [", b": "]
                )
        (tmp_path / name).write_bytes(bytes(data))
        (tmp_path / "map.yaml").write_bytes(bytes(map_data))
        answers(tmp_path / name, map_file=tmp_path / "map.yaml")


strange = st.sampled_from(STRANGE)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | strange,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["RulesSource", "RulesString", "StatefulRules", "RuleGroup", "Sources", "Targets", "Ref", "Fn::If", "Type", "x"]
    ), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["RuleGroup", "FirewallPolicy", "TLSInspectionConfiguration", "LoggingConfiguration", "Resources"]),
    values,
)
def test_anything_as_a_body(folder: Path, kind: str, value: Any) -> None:
    path = folder / "any.json"
    path.write_text(json.dumps({kind: value}))
    try:
        answers(path)
    finally:
        path.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.text('{}[]":,tfn1e.-\\u \n!&*#', max_size=40).map(str.encode))
def test_anything_as_a_file(folder: Path, data: bytes) -> None:
    for name in ("any.json", "any.yaml"):
        path = folder / name
        path.write_bytes(data)
        try:
            answers(path)
        finally:
            path.unlink()


def test_a_rule_string_as_long_as_aws_takes(tmp_path: Path) -> None:
    """Two megabytes, all wrong: a thousand messages, each with its place, in a time a person waits."""
    line = "alert tcp any any -> any any (content:some text without quotes around; sid:%d;)"
    rules = "\n".join(line % sid for sid in range(1, 24_000))[:2_000_000]
    started = time.monotonic()
    found = refusal(tmp_path, policy(groups=("g",)), group("g", stateful(rules), capacity=30_000))
    assert time.monotonic() - started < 30
    assert len(found) == 1001
    assert found[-1].endswith("more errors")
    columns = [int(line.split(":")[2]) for line in found[:1000]]
    assert columns == sorted(columns)
    assert len(set(columns)) == 1000


def test_messages_quote_a_bounded_piece(tmp_path: Path) -> None:
    long = "x" * 100_000
    found = refusal(tmp_path, policy(StatefulDefaultActions=[long]), known=f"home_net: [{long}]")
    assert len(found) == 2
    assert all(len(line) < 400 for line in found)


def test_nothing_of_a_refused_policy_is_used(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors):
        load(tmp_path, policy(groups=("g", "h")), group("g", stateful()))

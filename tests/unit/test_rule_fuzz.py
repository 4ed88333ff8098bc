"""Whatever the text, the parsers answer with rules and errors that name their place, and never raise.

The seeds in ``tests/corpus/rules`` hold every form the language has; Hypothesis cuts, splices and changes them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.parser import rule_texts
from engines.stateful.ruleconfig import read_classifications, read_references
from engines.stateful.ruleset import compile_ruleset
from engines.stateful.signature import RuleError, Signature
from engines.stateful.thresholdconfig import parse_threshold_config
from tests.unit.rulekit import VARIABLES, parse

CORPUS = Path(__file__).parent.parent / "corpus" / "rules"
FILES = sorted(CORPUS.glob("*.rules"))
SEEDS = [rule.text for file in FILES for rule in rule_texts(file.read_text())]
THRESHOLDS = [
    "event_filter gen_id 1, sig_id 2, type limit, track by_src, count 1, seconds 60",
    "suppress gen_id 1, sig_id 2, track by_either, ip [$HOME_NET,!10.0.0.1]",
    "rate_filter gen_id 1, sig_id 2, track by_src, count 5, seconds 60, new_action drop, timeout 30",
]

CONFIGS = [
    "config classification: web-application-attack,Web Application Attack,1",
    "# a comment\n  config classification: a, b, c, 255\n",
    "config reference: cve   https://cve.example/?name=",
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_seeds_are_good_rules(file: Path) -> None:
    found = parse(file.read_text())
    assert not found.errors, [str(e) for e in found.errors]
    assert len(found.signatures) == len(rule_texts(file.read_text()))
    compile_ruleset(found.signatures)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[str]) -> str:
    """One seed with up to four changes: characters replaced, a stretch removed, a stretch of another put in, an end."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        match draw(st.sampled_from(("replace", "remove", "splice", "end"))):
            case "replace":
                put = draw(st.text(st.sampled_from(' ;:,"|\\()[]!<>=$@/.-+aA0129\n\t\0\u00e9\udcff'), max_size=3))
                text = text[:at] + put + text[at + len(put) :]
            case "remove":
                text = text[:at] + text[at + draw(st.integers(1, 12)) :]
            case "splice":
                other = draw(st.sampled_from(seeds))
                start = draw(st.integers(0, len(other)))
                text = text[:at] + other[start : start + draw(st.integers(1, 40))] + text[at:]
            case _:
                text = text[:at]
    return text


@settings(max_examples=600, deadline=None)
@given(mutated(SEEDS))
def test_rules(text: str) -> None:
    found = parse(text)
    assert len(found.signatures) + len(found.errors) + len(found.skipped) == len(rule_texts(text))
    assert all(type(signature) is Signature for signature in found.signatures)
    lines = text.count("\n") + 1
    for error in (*found.errors, *found.warnings, *found.skipped):
        assert type(error) is RuleError
        assert 1 <= error.line <= lines
        assert error.message


@settings(max_examples=200, deadline=None)
@given(mutated(THRESHOLDS))
def test_threshold_config(text: str) -> None:
    found = parse_threshold_config(text, "t.config", VARIABLES)
    lines = text.count("\n") + 1
    assert all(1 <= error.line <= lines and error.message for error in found.errors)


@settings(max_examples=200, deadline=None)
@given(mutated(CONFIGS))
def test_classes_and_references(text: str) -> None:
    lines = text.count("\n") + 1
    for read in (read_classifications, read_references):
        _, errors = read(text, "c.config")
        assert all(1 <= error.line <= lines and error.column and error.message for error in errors)

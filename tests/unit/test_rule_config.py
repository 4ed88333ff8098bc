"""classification.config and reference.config. Source: Suricata user guide, "Meta keywords"."""

from __future__ import annotations

import pytest

from engines.stateful.parser import parse_rules
from engines.stateful.ruleconfig import (
    CLASSES,
    REFERENCES,
    RuleClass,
    RuleConfig,
    read_classifications,
    read_references,
)
from engines.stateful.signature import Signature
from nfw import events
from tests.unit.rulekit import VARIABLES

CLASS_FILE = """\
# what we call things
config classification: our-own,Our own, and dear,5
   config classification: Trojan-Activity , Worse than usual , 1
config classification: our-own,twice,9
"""
REFERENCE_FILE = """\
#config reference: url http://not.this/
config reference: wiki   https://wiki.example/page?id=
config reference: WIKI https://second.example/
config reference: plain http://
"""


def rule(options: str, config: RuleConfig) -> Signature:
    found = parse_rules(f"alert tcp any any -> any any ({options} sid:1;)", "t.rules", VARIABLES, config=config)
    assert not found.errors
    return found.signatures[0]


def test_classes_of_a_file() -> None:
    classes, errors = read_classifications(CLASS_FILE, "c.config")
    assert errors == []
    assert classes == {
        "our-own": RuleClass("Our own, and dear", 5),
        "trojan-activity": RuleClass("Worse than usual", 1),
    }


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ("nonsense", 1, "expected config classification"),
        ("config classification: a,b", 1, "expected config classification"),
        ("config classification: 1a,b,1", 1, "expected config classification"),
        ("config classification: a, ,1", 1, "expected config classification"),
        ("config classification: a," + " " * 9000 + ",1", 1, "expected config classification"),
        ("config classification: a,b,0", 28, "priority is 1 to 255, not 0"),
        ("config classification: a,b,256", 28, "priority is 1 to 255, not 256"),
    ],
)
def test_a_line_that_is_no_class(line: str, column: int, says: str) -> None:
    classes, (error,) = read_classifications(f"{CLASS_FILE}{line}\n", "c.config")
    assert len(classes) == 2
    assert (error.file, error.line, error.column) == ("c.config", 5, column)
    assert says in error.message


def test_references_of_a_file() -> None:
    references, errors = read_references(REFERENCE_FILE, "r.config")
    assert errors == []
    assert references == {"wiki": "https://wiki.example/page?id=", "plain": "http://"}
    _, (error, other) = read_references("config reference: wiki\nconfig reference: a b c\n", "r.config")
    assert (str(error), other.line) == ("r.config:1:1: expected config reference: system URL", 2)


@pytest.mark.parametrize(
    ("options", "severity", "category"),
    [
        ("classtype:our-own;", 5, "Our own, and dear"),
        ("classtype:TROJAN-activity;", 1, "Worse than usual"),
        ("classtype:our-own; priority:2;", 2, "Our own, and dear"),
        ("priority:2; classtype:our-own;", 2, "Our own, and dear"),
        ("classtype:misc-attack;", 3, "misc-attack"),  # not in that file: told, and no more
        ("", 3, ""),
    ],
)
def test_a_class_gives_severity_and_category(options: str, severity: int, category: str) -> None:
    config = RuleConfig(classes=read_classifications(CLASS_FILE, "")[0])
    fields = events.alert_fields(rule(options, config), "allowed")
    assert (fields["severity"], fields["category"]) == (severity, category)


def test_references_are_written_as_urls() -> None:
    config = RuleConfig(references=read_references(REFERENCE_FILE, "")[0])
    options = "reference:Wiki,17; reference:plain,a.example; reference:plain,ftp://b.example; reference:cve,1;"
    fields = events.alert_fields(rule(options, config), "allowed")
    assert fields["references"] == [
        "https://wiki.example/page?id=17",
        "http://a.example",
        "ftp://b.example",
        "cve,1",
    ]
    assert "references" not in events.alert_fields(rule("", config), "allowed")


def test_what_holds_without_files() -> None:
    assert CLASSES["trojan-activity"] == ("A Network Trojan was detected", 1)
    assert len(CLASSES) == 42
    assert REFERENCES["url"] == "https://"

"""What threshold.config may say, and what becomes of the rules. Source: user guide, "Global thresholds"."""

from __future__ import annotations

import pytest

from engines.stateful.signature import Action, RateFilter, Signature, Threshold
from engines.stateful.threshold import ThresholdTable
from engines.stateful.thresholdconfig import parse_threshold_config
from tests.unit.rulekit import VARIABLES, parse

RULES = """
alert tcp any any -> any any (sid:1;)
alert tcp any any -> any any (threshold:type both, track by_src, count 9, seconds 9; sid:2;)
alert tcp any any -> any any (gid:7; sid:3;)
"""
OWN = Threshold("both", "by_src", 9, 9)
ONE_AND_ALL = """
event_filter gen_id 1, sig_id 1, type both, track by_src, count 9, seconds 9
event_filter gen_id 0, sig_id 0, type limit, track by_dst, count 2, seconds 30
"""
LIMIT = Threshold("limit", "by_dst", 2, 30)
SEVERAL = """
event_filter gen_id 1, sig_id 0, type both, track by_dst, count 2, seconds 30
event_filter gen_id 1, sig_id 1, type threshold, track by_dst, count 2, seconds 30
event_filter gen_id 1, sig_id 1, type limit, track by_dst, count 2, seconds 30
event_filter gen_id 1, sig_id 0, type both, track by_dst, count 2, seconds 30
"""


def applied(text: str) -> list[Signature]:
    found = parse_threshold_config(text, "threshold.config", VARIABLES)
    assert not found.errors, [str(e) for e in found.errors]
    rules, warnings = found.apply(parse(RULES).signatures)
    assert not warnings
    return rules


@pytest.mark.parametrize(
    ("text", "thresholds"),
    [
        ("# nothing\n\n", [None, OWN, None]),
        ("threshold gen_id 1, sig_id 1, type limit, track by_dst, count 2, seconds 30", [LIMIT, OWN, None]),
        ("event_filter gen_id 1,sig_id 2,type limit,track by_dst,count 2,seconds 30", [None, LIMIT, None]),
        ("event_filter gen_id 1, sig_id 0, type limit, track by_dst, count 2, seconds 30", [LIMIT, OWN, None]),
        ("event_filter gen_id 0, sig_id 0, type limit, \\\n track by_dst, count 2, seconds 30", [LIMIT, OWN, LIMIT]),
        (ONE_AND_ALL, [OWN, OWN, LIMIT]),
        # In the order of the file: the last one for the very rule counts, one for all comes too late.
        (SEVERAL, [LIMIT, OWN, None]),
    ],
)
def test_thresholds(text: str, thresholds: list[Threshold | None]) -> None:
    assert [s.threshold for s in applied(text)] == thresholds


A, B, SERVER = bytes((10, 0, 0, 1)), bytes((192, 0, 2, 1)), bytes((10, 1, 0, 1))


@pytest.mark.parametrize(
    ("entry", "source", "destination", "covered"),
    [
        ("", A, B, True),
        (", track by_src, ip 10.0.0.1", A, B, True),
        (", track by_src, ip 10.0.0.1", B, A, False),
        (", track by_dst, ip 10.0.0.1", B, A, True),
        (", track by_dst, ip 10.0.0.1", A, B, False),
        (", track by_either, ip 10.0.0.0/24", B, A, True),
        (", track by_either, ip [10.0.0.0/8, !10.0.0.1]", A, B, False),
        (", track by_src, ip $SERVERS", SERVER, B, True),
    ],
)
def test_suppress(entry: str, source: bytes, destination: bytes, covered: bool) -> None:
    first, second, _ = applied(f"suppress gen_id 1, sig_id 1{entry}")
    assert not second.suppressions
    assert [s.covers(source, destination) for s in first.suppressions] == [covered]


def test_suppressions_add_up() -> None:
    text = "suppress gen_id 1, sig_id 1, track by_src, ip 10.0.0.1\nsuppress gen_id 1, sig_id 0"
    assert [len(s.suppressions) for s in applied(text)] == [2, 1, 0]


def test_rate_filter() -> None:
    text = "rate_filter gen_id 1, sig_id 1, track by_rule, count 2, seconds 10, new_action drop, timeout 30"
    rate = applied(text)[0].rate_filter
    assert rate == RateFilter("by_rule", 2, 10, Action.DROP, 30)
    table = ThresholdTable(10)
    times = [0.0, 1.0, 12.0, 13.0, 14.0, 40.0, 44.0, 45.0, 46.0, 47.0]
    # Two within ten seconds are allowed, the third switches the action over, for thirty seconds. The match that finds
    # them over is not counted; the next one begins anew.
    assert [table.exceeded(1, rate, None, now) for now in times] == [
        *(False, False, False, False),
        *(True, True, True),
        *(False, False, False),
    ]
    short = RateFilter("by_rule", 1, 10, Action.DROP, 0)
    assert [table.exceeded(2, short, None, now) for now in (0.0, 1.0, 1.5, 2.0, 3.0)] == [
        *(False, True, True),
        *(False, True),
    ]


RATE = "rate_filter gen_id 1, sig_id {}, track by_rule, count 1, seconds 10, new_action drop, timeout 30"
LIMITED = "event_filter gen_id 1, sig_id {}, type limit, track by_dst, count 2, seconds 30"


@pytest.mark.parametrize(
    ("lines", "expected", "warns"),
    [
        ([RATE.format(2)], (OWN, False), "line 1: rule 2 has a threshold already, and keeps it"),
        ([RATE.format(1), LIMITED.format(1)], (LIMIT, False), ""),
        ([LIMITED.format(1), RATE.format(1)], (LIMIT, False), "line 2: rule 1 has a threshold already"),
        ([RATE.format(1), LIMITED.format(0)], (None, True), ""),
        ([RATE.format(1), RATE.format(1)], (None, True), "line 2: rule 1 has a threshold already"),
        ([LIMITED.format(99)], (None, False), "line 1: there is no rule with gid 1 and sid 99"),
    ],
)
def test_a_rule_has_one_of_them(lines: list[str], expected: tuple[Threshold | None, bool], warns: str) -> None:
    found = parse_threshold_config("\n".join(lines), "t.config", VARIABLES)
    rules, warnings = found.apply(parse(RULES).signatures)
    changed = rules[1] if "sig_id 2" in lines[0] else rules[0]
    assert (changed.threshold, changed.rate_filter is not None) == expected
    told = [f"line {warning.line}: {warning.message}" for warning in warnings]
    assert [text.startswith(warns) for text in told] == ([True] if warns else [])


def test_an_event_filter_takes_the_place_of_a_detection_filter() -> None:
    filtered = parse("alert tcp any any -> any any (detection_filter:track by_src, count 5, seconds 5; sid:1;)")
    config = parse_threshold_config(LIMITED.format(1), "t.config", VARIABLES)
    ((signature,), warnings) = config.apply(filtered.signatures)
    assert (signature.threshold, signature.detection_filter, warnings) == (LIMIT, None, [])


GOOD = "suppress gen_id 1, sig_id 1"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "found 'nonsense'"),
        ("suppress gen_id 1", "sig_id is missing"),
        ("suppress gen_id 1, sig_id x", "expected a number"),
        ("suppress gen_id 0, sig_id 1", "gen_id 0 is every group"),
        ("suppress gen_id 1, gen_id 1, sig_id 1", "given twice"),
        ("suppress gen_id 1, sig_id 1, track by_rule, ip 10.0.0.1", "by_either"),
        ("suppress gen_id 1, sig_id 1, track by_src", "ip is missing"),
        ("suppress gen_id 1, sig_id 1, track by_src, ip 10.0.0", "not an address"),
        ("suppress gen_id 1, sig_id 1, track by_src, ip $NOPE", "not defined"),
        ("event_filter gen_id 1, sig_id 1, type odd, track by_src, count 1, seconds 1", "type is"),
        ("event_filter gen_id 1, sig_id 1, type both, track by_x, count 1, seconds 1", "track is"),
        ("event_filter gen_id 1, sig_id 1, type both, track by_src, count 0, seconds 1", "not between"),
        ("event_filter gen_id 1, sig_id 1, type both, track by_src, count 1", "seconds is missing"),
        ("event_filter gen_id 1, sig_id 1, ip 10.0.0.1", "found 'ip'"),
        ("rate_filter gen_id 1, sig_id 1, track by_src, count 1, seconds 1, new_action x, timeout 1", "new_action is"),
        ("suppress " + "x" * 9000, "more than 8192"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place_and_the_rest_counts(line: str, says: str) -> None:
    found = parse_threshold_config(f"{GOOD}\n  {line}\n{GOOD}\n", "t.config", VARIABLES)
    assert len(found.entries) == 2
    (error,) = found.errors
    assert (error.line, error.column) == (2, 3)
    assert says in error.message

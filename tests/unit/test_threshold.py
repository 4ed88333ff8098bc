"""Which matches of a rule are logged and which act. Source: Suricata user guide, "Thresholding keywords"."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from engines.stateful.signature import Threshold
from engines.stateful.threshold import Effect, ThresholdTable, track_key

LETTERS = {Effect.FULL: "F", Effect.SILENT: "s", Effect.NONE: "-"}


@pytest.mark.parametrize(
    ("kind", "count", "seconds", "times", "expected"),
    [
        ("limit", 1, 60, [0, 1, 2, 60, 61], "FsssF"),  # exactly 60 seconds later is inside the window
        ("limit", 3, 60, [0, 0, 0, 0, 100], "FFFsF"),
        ("threshold", 3, 60, [0, 1, 2, 3, 4, 5, 6], "--F--F-"),
        ("threshold", 2, 10, [0, 11, 12], "--F"),
        ("both", 2, 60, [0, 1, 2, 3, 70, 71], "-Fss-F"),
        ("detection_filter", 1, 60, [0, 1, 2, 3], "-FFF"),
        ("detection_filter", 2, 10, [0, 1, 2, 20, 21], "--F--"),
    ],
)
def test_kinds(kind: str, count: int, seconds: int, times: list[float], expected: str) -> None:
    table = ThresholdTable(10)
    threshold = Threshold(kind, "by_src", count, seconds)
    assert "".join(LETTERS[table.count(1, threshold, b"a", now)] for now in times) == expected


def test_rules_and_keys_count_apart() -> None:
    table = ThresholdTable(10)
    limit = Threshold("limit", "by_src", 1, 60)
    assert [table.count(rule, limit, key, 0) for rule, key in ((1, b"a"), (1, b"b"), (2, b"a"))] == [Effect.FULL] * 3
    assert table.count(1, limit, b"a", 1) is Effect.SILENT


def test_full_table_forgets_the_one_not_seen_for_longest() -> None:
    table = ThresholdTable(2)
    limit = Threshold("limit", "by_src", 1, 60)
    for key in (b"a", b"b", b"a", b"c"):
        table.count(1, limit, key, 0)
    assert (len(table), table.forgotten) == (2, 1)
    assert table.count(1, limit, b"a", 0) is Effect.SILENT
    assert table.count(1, limit, b"b", 0) is Effect.FULL


@pytest.mark.parametrize(
    ("track", "to_server", "expected"),
    [
        ("by_src", True, b"c"),
        ("by_src", False, b"s"),
        ("by_dst", True, b"s"),
        ("by_dst", False, b"c"),
        ("by_both", True, (b"c", b"s")),
        ("by_both", False, (b"c", b"s")),
        ("by_flow", True, 7),
        ("by_rule", True, None),
    ],
)
def test_track_key(track: str, to_server: bool, expected: Hashable) -> None:
    assert track_key(track, 7, b"c", b"s", to_server) == expected

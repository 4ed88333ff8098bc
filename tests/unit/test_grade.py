"""The grade has every case of its list, once."""

from __future__ import annotations

import re

from tests.grade import GROUPS, load
from tests.grade.case import REGISTER


def numbered(letter: str, *spans: tuple[int, int]) -> list[str]:
    return [f"{letter}{number:02d}" for first, last in spans for number in range(first, last + 1)]


# By group, as the list numbers them; some numbers were never used.
IDENTIFIERS = {
    "certificates": numbered("C", (1, 35), (37, 49), (52, 53)),
    "revocation": numbered("R", (1, 13), (15, 22), (24, 25), (27, 32), (34, 34)),
    "protocol": numbered("P", (1, 8), (11, 14), (16, 20), (22, 26), (28, 28)),
    "client": numbered("K", (1, 17), (19, 20), (22, 22), (24, 26), (28, 32), (34, 50)),
}


def test_every_case_is_there_once() -> None:
    load()
    assert tuple(IDENTIFIERS) == GROUPS
    for group, wanted in IDENTIFIERS.items():
        assert sorted(one.identifier for one in REGISTER if one.group == group) == sorted(wanted)
    assert len(REGISTER) == sum(map(len, IDENTIFIERS.values())) == 148


def test_every_case_says_what_it_expects() -> None:
    load()
    for one in REGISTER:
        assert one.title, one.identifier
        assert one.expected, one.identifier
        assert re.fullmatch(r"[a-z]+", one.policy), one.identifier

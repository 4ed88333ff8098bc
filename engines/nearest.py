"""The known word nearest to one that is not known, for messages. Fast enough for files of nothing but wrong words."""

from __future__ import annotations

import difflib
from functools import lru_cache

CUTOFF = 0.6  # of difflib's ratio
FEW = 100  # known words, with all of which a word is compared
SHORT = 5  # so is a word of no more letters: two exchanged leave it no pair
MAX_WORD = 64  # characters of a word that are looked at


@lru_cache(maxsize=4096)
def nearest_word(word: str, known: tuple[str, ...], cutoff: float = CUTOFF) -> str:
    """ "" when none is near. Where many are known, a long word is compared only with those that have two successive
    letters of it.

    >>> nearest_word("contnet", ("content", "pcre"))
    'content'
    """
    word = word[:MAX_WORD]
    index = _by_pairs(known)
    candidates = (
        set(known)
        if len(known) <= FEW or len(word) <= SHORT
        else {name for pair in _pairs(word) for name in index.get(pair, ())}
    )
    # As difflib breaks ties: by the ratio, then the greater word; so in any order.
    close = difflib.get_close_matches(word, candidates, 1, cutoff)
    return close[0] if close else ""


@lru_cache(maxsize=64)
def _by_pairs(known: tuple[str, ...]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for name in known:
        for pair in _pairs(name):
            index.setdefault(pair, []).append(name)
    return index


def _pairs(word: str) -> set[str]:
    return {word[at : at + 2] for at in range(max(len(word) - 1, 1))}

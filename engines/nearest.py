"""The known word nearest to one that is not known, for messages. Fast enough for files of nothing but wrong words."""

from __future__ import annotations

import difflib
from functools import lru_cache

CUTOFF = 0.6  # of difflib's ratio
MAX_WORD = 64  # characters of a word that are looked at


@lru_cache(maxsize=4096)
def nearest_word(word: str, known: tuple[str, ...], cutoff: float = CUTOFF) -> str:
    """ "" when none is near. Words without two successive letters in common are not compared.

    >>> nearest_word("contnet", ("content", "pcre"))
    'content'
    """
    word = word[:MAX_WORD]
    index = _by_pairs(known)
    candidates = {name for pair in _pairs(word) for name in index.get(pair, ())}
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

"""Conditions on IKE. Source: Suricata user guide, "IKE Keywords"."""

from __future__ import annotations

import re

from engines.stateful.app.ike import ATTRIBUTES
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, integer, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition, number
from engines.stateful.match import OneOf

_PAGE = "ike-keywords.html"
_CHOSEN = "ike.chosen_sa_attribute"
_NAMES = tuple(ATTRIBUTES.values())


def _chosen(draft: RuleDraft, value: str | None) -> None:
    """``name=number``."""
    text = unquote(required(value, "an attribute and its value, like alg_enc=7"))
    found = re.fullmatch(r"(\w+)\s*=\s*(\w+)", text)
    if found is None or found[1] not in _NAMES:
        raise KeywordError(f"{_CHOSEN}: expected one of {', '.join(_NAMES)}, then = and a number; found {text!r}")
    wanted = f"{found[1]}={integer(found[2], _CHOSEN)}".encode()
    add_condition(draft, _CHOSEN, OneOf(frozenset({wanted})))


KEYWORDS = [
    Keyword(_CHOSEN, "what the server chose, like alg_enc=7", f"{_PAGE}#ike-chosen-sa-attribute", Kind.APP, _chosen),
    Keyword("ike.exchtype", "the type of an exchange", f"{_PAGE}#ike-exchtype", Kind.APP, number("ike.exchtype", 255)),
    *(
        Keyword(
            name, f"the size of {what}", f"{_PAGE}#{name.replace('.', '-').replace('_', '-')}", Kind.APP, number(name)
        )
        for name, what in (
            ("ike.key_exchange_payload_length", "a public key"),
            ("ike.nonce_payload_length", "a nonce"),
        )
    ),
]

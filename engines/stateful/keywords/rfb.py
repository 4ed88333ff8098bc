"""Conditions on RFB. Source: Suricata user guide, "RFB Keywords"."""

from __future__ import annotations

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, unquote
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.integers import add_condition, number
from engines.stateful.match import IntegerValue

_PAGE = "rfb-keywords.html"
_RESULTS = {"ok": 0, "fail": 1, "toomany": 2}


def _secresult(draft: RuleDraft, value: str | None) -> None:
    """``ok``, ``fail``, ``toomany``, or ``unknown`` for any other; or a number."""
    text = unquote(required(value, "ok, fail, toomany, unknown or a number")).lower()
    if text == "unknown":
        matcher = IntegerValue(lambda result: result > max(_RESULTS.values()))
    elif text.isidentifier() and text not in _RESULTS:
        raise KeywordError(f"rfb.secresult: expected ok, fail, toomany, unknown or a number, found {text!r}")
    else:
        matcher = IntegerValue(int_test(text, "rfb.secresult", names=_RESULTS).test)
    add_condition(draft, "rfb.secresult", matcher)


KEYWORDS = [
    Keyword("rfb.sectype", "the security type chosen", f"{_PAGE}#rfb-sectype", Kind.APP, number("rfb.sectype")),
    Keyword("rfb.secresult", "how the authentication ended", f"{_PAGE}#rfb-secresult", Kind.APP, _secresult),
]

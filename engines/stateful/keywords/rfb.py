"""Conditions on RFB. Source: Suricata user guide, "RFB Keywords"."""

from __future__ import annotations

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import IntegerValue

_PAGE = "rfb-keywords.html"
_RESULTS = {"ok": 0, "fail": 1, "toomany": 2}


def _sectype(draft: RuleDraft, value: str | None) -> None:
    test = int_test(unquote(required(value, "a number")), "rfb.sectype")
    draft.require_app("rfb.sectype", BUFFERS["rfb.sectype"].protos)
    draft.buffer("rfb.sectype").add(IntegerValue(test.test))


def _secresult(draft: RuleDraft, value: str | None) -> None:
    """``ok``, ``fail``, ``toomany``, or ``unknown`` for any other; or a number."""
    text = unquote(required(value, "ok, fail, toomany, unknown or a number")).lower()
    if text == "unknown":
        matcher = IntegerValue(lambda result: result > max(_RESULTS.values()))
    elif text.isidentifier() and text not in _RESULTS:
        raise KeywordError(f"rfb.secresult: expected ok, fail, toomany, unknown or a number, found {text!r}")
    else:
        matcher = IntegerValue(int_test(text, "rfb.secresult", names=_RESULTS).test)
    draft.require_app("rfb.secresult", BUFFERS["rfb.secresult"].protos)
    draft.buffer("rfb.secresult").add(matcher)


KEYWORDS = [
    Keyword("rfb.sectype", "the security type chosen", f"{_PAGE}#rfb-sectype", Kind.APP, _sectype),
    Keyword("rfb.secresult", "how the authentication ended", f"{_PAGE}#rfb-secresult", Kind.APP, _secresult),
]

"""Conditions on DCERPC that are no text buffers. Source: Suricata user guide, "DCERPC Keywords".

The bytes the buffers behind them must hold (what the application parsers produce): ``dcerpc.opnum`` two bytes, big
endian; ``dcerpc.iface`` the 16 bytes of the UUID as it is written, the version in two, and 1 when it was bound in the
first fragment, else 0.
"""

from __future__ import annotations

import uuid

from engines.stateful.keywords.base import IntTest, Keyword, KeywordError, Kind, int_test, required, split_list
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import DceInterface, IntegerValue, StepMatcher

_PAGE = "dcerpc-keywords.html"


def _into(draft: RuleDraft, buffer: str, matcher: StepMatcher) -> None:
    draft.require_app(buffer, BUFFERS[buffer].protos)
    draft.buffer(buffer).add(matcher)


def _iface(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "the UUID of an interface"))
    try:
        name = uuid.UUID(parts[0]).bytes
    except ValueError:
        raise KeywordError(f"dcerpc.iface: {parts[0]!r} is no UUID") from None
    any_fragment = parts[-1] == "any_frag"
    rest = parts[1 : len(parts) - any_fragment]
    if len(rest) > 1:
        raise KeywordError("dcerpc.iface: expected uuid[,version][,any_frag]")
    version: IntTest | None = None
    if rest:
        version = int_test(rest[0], "dcerpc.iface version", 65535)
    _into(draft, "dcerpc.iface", DceInterface(name, version, any_fragment))


def _opnum(draft: RuleDraft, value: str | None) -> None:
    tests = [_number(part) for part in split_list(required(value, "a number, or several"))]
    _into(draft, "dcerpc.opnum", IntegerValue(lambda number: any(test(number) for test in tests)))


def _number(text: str) -> IntTest:
    low, dash, _ = text.partition("-")
    return int_test(text, "dcerpc.opnum", 65535, inclusive=bool(dash) and low.strip().isdigit())


KEYWORDS = [
    *(
        Keyword(name, "the interface of a call", f"{_PAGE}#dcerpc-iface", Kind.APP, _iface)
        for name in ("dcerpc.iface", "dce_iface")
    ),
    *(
        Keyword(name, "the operation called", f"{_PAGE}#dcerpc-opnum", Kind.APP, _opnum)
        for name in ("dcerpc.opnum", "dce_opnum")
    ),
]

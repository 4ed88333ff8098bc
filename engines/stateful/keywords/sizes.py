"""Conditions on lengths: isdataat, bsize, urilen, dsize. Source: Suricata user guide, "Payload keywords"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, integer, required, split_list
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import Absent, Entropy, IsDataAt, Size
from engines.stateful.signature import PacketView

_PAGE = "payload-keywords.html"
_IGMP = 2


def _isdataat(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "a number of bytes"))
    position = parts[0]
    negated = position.startswith("!")
    if negated:
        position = position[1:]
    relative = False
    for part in parts[1:]:
        if part == "relative":
            relative = True
        elif part != "rawbytes":
            raise KeywordError(f"isdataat: expected relative or rawbytes, found {part!r}")
    number = draft.variable(position, "isdataat", 0, 65535, relative=relative)
    draft.add(IsDataAt(number, negated, relative), relative=relative)


def _bsize(draft: RuleDraft, value: str | None) -> None:
    if draft.current is None:
        raise KeywordError("bsize needs a sticky buffer before it", in_value=False)
    draft.add(Size(int_test(required(value, "a size"), "bsize", 2**63)))


def _urilen(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "a size"))
    which = parts[1].lower() if len(parts) > 1 else "norm"
    if len(parts) > 2 or which not in {"norm", "raw"}:
        raise KeywordError(f"urilen: expected size or size,norm or size,raw, found {value!r}")
    info = BUFFERS["http.uri" if which == "norm" else "http.uri.raw"]
    draft.require_app("urilen", info.protos)
    draft.buffer(info.name).add(Size(int_test(parts[0], "urilen", 65535), cap=65535))


def _dsize(draft: RuleDraft, value: str | None) -> None:
    draft.once("dsize")
    test = int_test(required(value, "a size"), "dsize", 65535)
    draft.dsize = (test.low, test.high)

    def dsize(view: PacketView) -> bool:
        if view.packet is None:
            return False
        # All of an IGMP message is header.
        return test.test(0 if view.packet.protocol == _IGMP else len(view.payload))

    draft.packet("dsize", dsize)


def _absent(draft: RuleDraft, value: str | None) -> None:
    if draft.current is None or draft.current.name not in BUFFERS:
        raise KeywordError("absent needs a sticky buffer of an application protocol before it", in_value=False)
    if draft.current.items:
        raise KeywordError("absent must directly follow the sticky buffer", in_value=False)
    if value not in {None, "", "or_else"}:
        raise KeywordError(f"absent: expected nothing or or_else, found {value!r}")
    draft.add(Absent(value == "or_else"))


_ENTROPY = re.compile(r"(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)$|(\d+(?:\.\d+)?)$")
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip


def _entropy(draft: RuleDraft, value: str | None) -> None:
    """``[bytes N,] [offset N,] value TEST``, TEST like ``>4.5``, ``4-5`` (ends excluded) or ``!4-5``."""
    size = offset = 0
    test: Callable[[float], bool] | None = None
    for part in split_list(required(value, "value with a comparison, like value > 4")):
        name, _, argument = part.partition(" ")
        if name == "bytes":
            size = integer(argument, "entropy bytes", 0, 65535)
        elif name == "offset":
            offset = integer(argument, "entropy offset", 0, 65535)
        elif name == "value" and test is None:
            test = _entropy_test(argument.strip())
        else:
            raise KeywordError(f"entropy: expected bytes N, offset N or value TEST, found {part!r}")
    if test is None:
        raise KeywordError("entropy: value is missing")
    if draft.current is None:
        raise KeywordError("entropy needs a sticky buffer before it", in_value=False)
    draft.add(Entropy(test, size, offset))


def _entropy_test(text: str) -> Callable[[float], bool]:
    relation = next((op for op in _RELATIONS if text.startswith(op)), "")
    negated = text.startswith("!") and not relation
    found = _ENTROPY.match(text[len(relation) or int(negated) :].strip())
    numbers = [float(g) for g in found.groups() if g is not None] if found else []
    if not numbers or any(n > 8 for n in numbers) or (len(numbers) == 2 and (relation or numbers[0] >= numbers[1])):
        raise KeywordError(f"entropy: expected a comparison with numbers from 0 to 8, like >4.5 or 4-5, found {text!r}")
    if len(numbers) == 2:
        low, high = numbers
        return lambda number: (low < number < high) != negated
    compare, limit = _RELATIONS["!=" if negated else relation or "="], numbers[0]
    return lambda number: compare(number, limit)


KEYWORDS = [
    Keyword("entropy", "how random the buffer's bytes are", f"{_PAGE}#entropy", Kind.CONTENT, _entropy),
    Keyword("isdataat", "is there data at a position", f"{_PAGE}#isdataat", Kind.CONTENT, _isdataat),
    Keyword("bsize", "the size of the buffer", f"{_PAGE}#bsize", Kind.CONTENT, _bsize),
    Keyword("urilen", "the size of the URI", "http-keywords.html#urilen", Kind.CONTENT, _urilen),
    Keyword("absent", "the buffer does not exist", f"{_PAGE}#absent", Kind.CONTENT, _absent, None),
    Keyword("dsize", "the size of the packet's payload", f"{_PAGE}#dsize", Kind.PACKET, _dsize),
]

"""Conditions on lengths: isdataat, bsize, urilen, dsize. Source: Suricata user guide, "Payload keywords"."""

from __future__ import annotations

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, required, split_list
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import Absent, IsDataAt, Size
from engines.stateful.signature import PacketView

_PAGE = "payload-keywords.html"


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
        return view.packet is not None and test.test(len(view.payload))

    draft.packet("dsize", dsize)


def _absent(draft: RuleDraft, value: str | None) -> None:
    if draft.current is None or draft.current.name not in BUFFERS:
        raise KeywordError("absent needs a sticky buffer of an application protocol before it", in_value=False)
    if draft.current.items:
        raise KeywordError("absent must directly follow the sticky buffer", in_value=False)
    if value not in {None, "", "or_else"}:
        raise KeywordError(f"absent: expected nothing or or_else, found {value!r}")
    draft.add(Absent(value == "or_else"))


KEYWORDS = [
    Keyword("isdataat", "is there data at a position", f"{_PAGE}#isdataat", Kind.CONTENT, _isdataat),
    Keyword("bsize", "the size of the buffer", f"{_PAGE}#bsize", Kind.CONTENT, _bsize),
    Keyword("urilen", "the size of the URI", "http-keywords.html#urilen", Kind.CONTENT, _urilen),
    Keyword("absent", "the buffer does not exist", f"{_PAGE}#absent", Kind.CONTENT, _absent, None),
    Keyword("dsize", "the size of the packet's payload", f"{_PAGE}#dsize", Kind.PACKET, _dsize),
]

"""flow, flowbits, flowint, xbits, hostbits, stream_size, and what a flow has carried.

Source: Suricata user guide, "Flow keywords", "Xbits".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from engines.stateful.header import nearest
from engines.stateful.keywords.base import Keyword, KeywordError, Kind, compare, int_test, integer, required, split_list
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.signature import FlowbitOp, FlowintOp, PacketView, StreamSize, XbitOp
from engines.verdict import Direction

_TCP = 6
_DIRECTIONS = {
    "to_server": Direction.TO_SERVER,
    "from_client": Direction.TO_SERVER,
    "to_client": Direction.TO_CLIENT,
    "from_server": Direction.TO_CLIENT,
}
_FLOW_WORDS = (
    *_DIRECTIONS,
    "established",
    "not_established",
    "stateless",
    "only_stream",
    "no_stream",
    "only_frag",
    "no_frag",
)


def _flow(draft: RuleDraft, value: str | None) -> None:
    if draft.flow_seen:
        raise KeywordError("flow is given twice", in_value=False)
    draft.flow_seen = True
    for word in split_list(required(value, "to_server, to_client, established ...")):
        name = word.lower()
        if name in _DIRECTIONS:
            if draft.direction is not None:
                raise KeywordError(f"flow: a second direction, {word}")
            draft.direction = _DIRECTIONS[name]
        elif name in {"established", "not_established", "stateless"}:
            if draft.established is not None or draft.stateless:
                raise KeywordError("flow: established, not_established and stateless exclude each other")
            if name == "stateless":
                draft.stateless = True
            else:
                draft.established = name == "established"
        elif name in {"only_stream", "no_stream"}:
            if draft.only_stream or draft.no_stream:
                raise KeywordError("flow: only_stream and no_stream exclude each other")
            draft.only_stream, draft.no_stream = name == "only_stream", name == "no_stream"
        elif name in {"only_frag", "no_frag"}:
            draft.packet_tests.append(_fragment(name == "only_frag"))
        else:
            raise KeywordError(
                f"flow: unknown option {word!r}{nearest(name, _FLOW_WORDS)}; expected {', '.join(_FLOW_WORDS)}"
            )


def _tcp_session(draft: RuleDraft, value: str | None) -> None:
    """``setup``: the handshake is not over; ``established``: it is, or the connection has ended."""
    words = split_list(required(value, "setup, established, or both"))
    unknown = [word for word in words if word not in {"setup", "established"}]
    if unknown or len(set(words)) != len(words):
        raise KeywordError(f"tcp.session: expected setup, established, or both; found {value!r}")
    if draft.header.ip_protocols != {_TCP}:
        raise KeywordError("tcp.session is for rules on TCP", in_value=False)
    draft.flow_seen = True
    if len(words) == 1:
        if draft.established is not None or draft.stateless:
            raise KeywordError("tcp.session and flow both say what state the connection is in", in_value=False)
        draft.established = words[0] == "established"
    draft.needs_packet.append("tcp.session")


def _fragment(wanted: bool) -> Callable[[PacketView], bool]:
    def fragment(view: PacketView) -> bool:
        return (view.packet is not None and bool(view.packet.fragment)) == wanted

    return fragment


def _flowbits(draft: RuleDraft, value: str | None) -> None:
    op, _, names_text = required(value, "set, unset, toggle, isset, isnotset with a name, or noalert").partition(",")
    op, names_text = op.strip(), names_text.strip()
    if op == "noalert":
        if names_text:
            raise KeywordError("flowbits: noalert has no name")
        draft.noalert = True
        return
    if op not in {"set", "unset", "toggle", "isset", "isnotset"}:
        raise KeywordError(f"flowbits: expected set, unset, toggle, isset, isnotset or noalert, found {op!r}")
    names = tuple(n.strip() for n in names_text.split("|"))
    if not all(names):
        raise KeywordError(f"flowbits: {op} needs a name")
    if any(" " in n or "," in n for n in names):
        raise KeywordError(f"flowbits: a name cannot contain spaces or commas: {names_text!r}")
    check = op in {"isset", "isnotset"}
    if len(names) > 1 and not check:
        raise KeywordError(f"flowbits: {op} takes one name")
    for other in (*draft.flowbit_checks, *draft.flowbit_sets):
        pair = {op, other.op}
        if names != other.names:
            continue
        if pair == {"isset", "isnotset"}:
            raise KeywordError(f"flowbits: isset and isnotset of {names_text} in one rule can never both hold")
        if pair in ({"set", "unset"}, {"set", "isset"}, {"unset", "isnotset"}):
            draft.warnings.append(f"flowbits: {op} after {other.op} of {names_text} in one rule has no effect")
    (draft.flowbit_checks if check else draft.flowbit_sets).append(FlowbitOp(op, names))


def _flowint(draft: RuleDraft, value: str | None) -> None:
    shape = "name, operator, value; or name, isset"
    words = split_list(required(value, shape))
    if len(words) == 2 and words[1] in {"isset", "notset", "isnotset"}:
        draft.flowints.append(FlowintOp("isset" if words[1] == "isset" else "notset", words[0]))
        return
    if len(words) != 3 or not all(words):
        raise KeywordError(f"flowint: expected {shape}")
    name, op, operand = words
    if op not in {"=", "+", "-"}:
        compare(op)
    number: int | str = integer(operand, "flowint value") if operand[:1].isdigit() else operand
    draft.flowints.append(FlowintOp(op, name, number))


def _xbits(draft: RuleDraft, value: str | None) -> None:
    shape = "set|unset|toggle|isset|isnotset, name, track ip_src|ip_dst|ip_pair[, expire seconds]"
    words = split_list(required(value, shape))
    if words == ["noalert"]:
        draft.noalert = True
        return
    if len(words) < 3 or words[0] not in {"set", "unset", "toggle", "isset", "isnotset"} or not words[1]:
        raise KeywordError(f"xbits: expected {shape}")
    op, name = words[:2]
    track, expire = "", 30  # Suricata's default lifetime
    for word in words[2:]:
        option, _, argument = word.partition(" ")
        argument = argument.strip()
        if option == "track" and argument in {"ip_src", "ip_dst", "ip_pair", "tx"}:
            track = argument
        elif option == "expire":  # accepted, and without meaning, for the other operations too
            expire = integer(argument, "xbits expire", 1)
        else:
            raise KeywordError(f"xbits: expected {shape}, found {word!r}")
    if not track:
        raise KeywordError(f"xbits: track is missing; expected {shape}")
    _add_xbit(draft, XbitOp(op, name, track, expire))


def _hostbits(draft: RuleDraft, value: str | None) -> None:
    shape = "set|unset|toggle|isset|isnotset, name[, src|dst|both]"
    words = split_list(required(value, shape))
    if words == ["noalert"]:
        draft.noalert = True
        return
    if not 2 <= len(words) <= 3 or words[0] not in {"set", "unset", "toggle", "isset", "isnotset"} or not words[1]:
        raise KeywordError(f"hostbits: expected {shape}")
    side = words[2] if len(words) == 3 else "src"
    if side not in {"src", "dst", "both"}:
        raise KeywordError(f"hostbits: expected src, dst or both, found {side!r}")
    track = "both" if side == "both" else f"ip_{side}"
    _add_xbit(draft, XbitOp(words[0], words[1], track, 300, "hostbits"))  # Suricata: five minutes


def _add_xbit(draft: RuleDraft, made: XbitOp) -> None:
    (draft.xbit_sets if made.changes else draft.xbit_checks).append(made)


def _stream_size(draft: RuleDraft, value: str | None) -> None:
    shape = "client|server|both|either, operator, bytes"
    words = split_list(required(value, shape))
    if len(words) == 2:  # stream_size:server,>100
        side, test = words[0], int_test(words[1], "stream_size")
    elif len(words) == 3:
        side, operator = words[0], "=" if words[1] == "==" else words[1]
        compare(operator)
        test = int_test(operator + words[2], "stream_size")
    else:
        raise KeywordError(f"stream_size: expected {shape}")
    if side not in {"client", "server", "both", "either"}:
        raise KeywordError(f"stream_size: expected client, server, both or either, found {side!r}")
    draft.stream_sizes.append(StreamSize(side, test.test))


def _flow_age(draft: RuleDraft, value: str | None) -> None:
    """Full seconds from the flow's first packet to this one."""
    test = int_test(required(value, "a number of seconds"), "flow.age").test

    def age(view: PacketView) -> bool:
        return view.flow is not None and test(int(view.now) - int(view.flow.created))

    draft.packet("flow.age", age)


_SIDES = {"toserver": (Direction.TO_SERVER,), "toclient": (Direction.TO_CLIENT,), "either": tuple(Direction)}


def _flow_count(
    keyword: str, read: Callable[[Any], Sequence[int]], high: int, side: str = ""
) -> Callable[[RuleDraft, str | None], None]:
    """``toserver|toclient|either,test``, or the test alone where the keyword's name has the side; of what the flow has
    carried so far, this packet included."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text, which = required(value, f"a number{'' if side else ' after toserver, toclient or either'}"), side
        if not side:
            which, _, text = (part.strip() for part in text.partition(","))
        if which not in _SIDES or not text:
            raise KeywordError(f"{keyword}: expected toserver, toclient or either, and a number; found {value!r}")
        directions, test = _SIDES[which], int_test(text, keyword, high).test

        def count(view: PacketView) -> bool:
            return view.flow is not None and any(test(read(view.flow)[direction]) for direction in directions)

        draft.packet(keyword, count)

    return parse


_PACKETS: Callable[[Any], Sequence[int]] = attrgetter("packets")
_BYTES: Callable[[Any], Sequence[int]] = attrgetter("bytes")


def _counts(name: str, summary: str, read: Callable[[Any], Sequence[int]], high: int) -> list[Keyword]:
    """The keyword, and its older names of one direction each."""
    page = f"flow-keywords.html#{name.replace('.', '-')}"
    old = [
        Keyword(
            f"{name}_{side}",
            f"{summary} (old name)",
            page,
            Kind.PACKET,
            _flow_count(f"{name}_{side}", read, high, side),
        )
        for side in ("toserver", "toclient")
    ]
    return [Keyword(name, summary, page, Kind.PACKET, _flow_count(name, read, high)), *old]


KEYWORDS = [
    Keyword(
        "tcp.session", "state of the TCP connection", "header-keywords.html#tcp-session", Kind.PACKET, _tcp_session
    ),
    Keyword("flow.age", "how long the flow has been there", "flow-keywords.html#flow-age", Kind.PACKET, _flow_age),
    *_counts("flow.pkts", "packets the flow has carried", _PACKETS, 0xFFFFFFFF),
    *_counts("flow.bytes", "bytes the flow has carried", _BYTES, 0xFFFFFFFFFFFFFFFF),
    Keyword("flow", "direction and state of the flow", "flow-keywords.html#flow", Kind.FLOW, _flow),
    Keyword("flowbits", "flags kept with the flow", "flow-keywords.html#flowbits", Kind.FLOW, _flowbits),
    Keyword("flowint", "numbers kept with the flow", "flow-keywords.html#flowint", Kind.FLOW, _flowint),
    Keyword("xbits", "flags kept with addresses", "xbits.html", Kind.FLOW, _xbits),
    Keyword("hostbits", "flags kept with a host", "xbits.html", Kind.FLOW, _hostbits),
    Keyword("stream_size", "bytes the stream has carried", "flow-keywords.html#stream-size", Kind.FLOW, _stream_size),
]

"""Why one condition of a rule does not hold, in words: "" when it does.

For people and tools, not for matching: each function asks what the engine asks, one condition at a time, and says which
it was that failed. Values from the network are quoted, printable and short.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from engines.misfit import protocol_misfit
from engines.packet import format_address
from engines.stateful.flowbits import AddressBits, FlowBits, FlowInts
from engines.stateful.header import HeaderParser, Variables
from engines.stateful.keywords import KEYWORDS, packetbuffers
from engines.stateful.keywords.base import IntTest, KeywordError, Kind
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import (
    Absent,
    Base64Decode,
    ByteExtract,
    ByteJump,
    ByteMath,
    ByteTest,
    Content,
    IsDataAt,
    OneOf,
    Regex,
    Size,
    compile_program,
)
from engines.stateful.parser import Option, RuleSyntaxError, split_header, split_options
from engines.stateful.signature import BufferMatch, Matcher, PacketTest, PacketView, Signature

MAX_QUOTED = 60  # characters of a value from the network, or of a pattern


class Ends(NamedTuple):
    """Addresses (packed) and ports of a packet."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


def quoted(data: bytes) -> str:
    """Bytes as a pattern of the rule language shows them, cut off when they are long."""
    text = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"|\\;' else f"|{byte:02x}|" for byte in data[:200])
    text = text.replace("||", " ")
    return f'"{text}"' if len(text) <= MAX_QUOTED else f'"{text[: MAX_QUOTED - 3]}..."'


# -- header ------------------------------------------------------------------------------------------------------------


def header_misfit(signature: Signature, protocol: int, ends: Ends) -> str:
    """Of a packet's IP protocol number, addresses and ports."""
    wrong = protocol_misfit(protocol, signature.ip_protocols)
    if wrong:
        return wrong
    forward = _one_way(signature, ends)
    if not forward or not signature.bidirectional:
        return forward or _countries(signature, ends)
    back = Ends(ends.destination, ends.destination_port, ends.source, ends.source_port)
    return forward if _one_way(signature, back) else _countries(signature, ends)


def _one_way(signature: Signature, ends: Ends) -> str:
    words = _header_words(signature.text)
    for test, value, what, word in (
        (signature.source, ends.source, "source", words[2]),
        (signature.destination, ends.destination, "destination", words[5]),
    ):
        if test is not None and not test(value):
            if word == "any":  # the protocol is that of one family: ip4, icmpv6
                return f"{what} {format_address(value)} is not of {words[1]}"
            return f"{what} {format_address(value)} is not {_within(word)}"
    for port_test, port, what, word in (
        (signature.source_port, ends.source_port, "source port", words[3]),
        (signature.destination_port, ends.destination_port, "destination port", words[6]),
    ):
        if port_test is not None and not port_test(port):
            return f"{what} {port} is not {_within(word)}"
    return ""


def _within(word: str) -> str:
    shown = word if len(word) <= MAX_QUOTED else f"{word[: MAX_QUOTED - 3]}..."
    return f"in {shown}" if word[:1] in "$@[!" or "/" in word else shown


def _countries(signature: Signature, ends: Ends) -> str:
    if signature.countries is None or signature.countries(ends.source, ends.destination):
        return ""
    return f"geoip:{_value(signature.text, 'geoip')} does not hold for these addresses"


@lru_cache(maxsize=4096)
def _header_words(text: str) -> tuple[str, ...]:
    words = [word for word, _ in split_header(text[: text.find("(")])]
    return tuple(words[:7]) if len(words) >= 7 else ("", "", "any", "any", "", "any", "any")


@lru_cache(maxsize=4096)
def _options(text: str) -> tuple[Option, ...]:
    try:
        return tuple(split_options(text, text.find("(")))
    except RuleSyntaxError:
        return ()


def _value(text: str, name: str) -> str:
    return next((option.value or "" for option in _options(text) if option.name == name), "")


# -- packet and flow ---------------------------------------------------------------------------------------------------


def packet_misfit(signature: Signature, view: PacketView) -> str:
    """Which keyword about one packet does not hold (``flags:S``), if any does not."""
    if all(test(view) for test in signature.packet_tests):
        return ""
    for word, tests in _packet_conditions(signature.text):
        if not all(test(view) for test in tests):
            return f"{word} does not hold" + (" (there are no packets in a decrypted flow)" if not view.packet else "")
    names = [option.name for option in _options(signature.text) if option.name in packetbuffers.NAMES]
    return f"the conditions on {' and '.join(names) or 'the packet'} do not hold"


@lru_cache(maxsize=1024)
def _packet_conditions(text: str) -> tuple[tuple[str, tuple[PacketTest, ...]], ...]:
    """The rule's conditions on a packet, each read again by itself."""
    header = HeaderParser(Variables()).parse(["alert", "ip", "any", "any", "->", "any", "any"])
    found: list[tuple[str, tuple[PacketTest, ...]]] = []
    for option in _options(text):
        keyword = KEYWORDS.get(option.name)
        if keyword is None or (keyword.kind is not Kind.PACKET and option.name != "flow"):
            continue
        draft = RuleDraft(header)
        try:
            keyword.parse(draft, option.value)
        except KeywordError:  # needs what came before it; then the rule is named as a whole
            continue
        if draft.packet_tests:
            found.append((_written(option), tuple(draft.packet_tests)))
    return tuple(found)


def _written(option: Option) -> str:
    return option.name if option.value is None else f"{option.name}:{option.value}"


def bits_misfit(signature: Signature, bits: FlowBits, numbers: FlowInts) -> str:
    """Of the flow's own marks."""
    for check in signature.flowbit_checks:
        if not bits.check([check]):
            isset = check.op == "isset"
            return f"flowbit {(' or ' if isset else ' and ').join(check.names)} is {'not ' if isset else ''}set"
    for test in signature.flowints:
        if not test.changes and not numbers.check([test]):
            value = numbers.values.get(test.name)
            return f"flowint:{test.name},{test.op} does not hold: it is {'not set' if value is None else value}"
    return ""


def xbits_misfit(signature: Signature, bits: AddressBits, source: bytes, destination: bytes, now: float) -> str:
    """Of the marks on the packet's addresses."""
    for check in signature.xbit_checks:
        if not bits.check([check], source, destination, now):
            return f"{check.table.removesuffix('s')} {check.name} is {'not ' if check.op == 'isset' else ''}set"
    return ""


# -- buffers -----------------------------------------------------------------------------------------------------------


def buffer_misfit(match: BufferMatch, instances: Sequence[bytes], name: str = "") -> tuple[int, str]:
    """(conditions that held, what the next one says), of the instance that comes furthest; (all, "") when one matches,
    -1 where there is none.

    ``name``: what to call the buffer, its own name when empty.
    """
    name = name or ".".join([match.buffer, *match.transform_names])
    if not instances:
        if match.absent:
            return len(match.matchers), ""
        return -1, f"there is no {name}"
    if match.together is not None:
        numbers = [int.from_bytes(data, "big") for data in instances]
        if match.together(numbers):
            return len(match.matchers), ""
        return 0, f"{name} {', '.join(map(str, numbers))}: the condition on its values does not hold"
    best = (-1, "")
    for data in instances:
        for function in match.transforms:
            data = function(data)
        held = _held(match.matchers, data)
        if held == len(match.matchers):
            return held, ""
        if held > best[0]:
            best = (held, f"{name} {quoted(data)}: {matcher_text(match.matchers[held])} does not hold")
    return best


def _held(matchers: Sequence[Matcher], data: bytes) -> int:
    """How many of the conditions hold together, from the first on."""
    for number in range(len(matchers)):
        if not compile_program(matchers[: number + 1])(data, {}):
            return number
    return len(matchers)


def matcher_text(matcher: Matcher) -> str:
    """A condition as a rule would have it."""
    sign = "!" if matcher.negated else ""
    match matcher:
        case Content():
            return f"content:{sign}{quoted(matcher.pattern)}" + "".join(_modifiers(matcher))
        case Regex():
            text = matcher.text if len(matcher.text) <= MAX_QUOTED else f"{matcher.text[: MAX_QUOTED - 3]}..."
            return f"pcre:{sign}{text}" if text else "pcre"
        case Size():
            return f"bsize:{matcher.test.text}" if isinstance(matcher.test, IntTest) else "bsize"
        case IsDataAt():
            return f"isdataat:{sign}{matcher.position}{',relative' if matcher.relative else ''}"
        case Absent():
            return "absent"
        case OneOf():
            return f"one of {', '.join(sorted(map(quoted, matcher.values)))}" if not sign else "the negated value"
        case ByteTest() | ByteJump() | ByteExtract() | ByteMath() | Base64Decode():
            return _KEYWORD_OF[type(matcher)]
    return "the condition on its value"


_KEYWORD_OF: dict[type, str] = {
    ByteTest: "byte_test",
    ByteJump: "byte_jump",
    ByteExtract: "byte_extract",
    ByteMath: "byte_math",
    Base64Decode: "base64_decode",
}


def _modifiers(content: Content) -> list[str]:
    words: list[str] = []
    if content.depth is not None and content.depth == len(content.pattern) and not content.offset:
        words.append("startswith")
    else:
        words += [f"offset:{content.offset}"] if content.offset else []
        words += [f"depth:{content.depth}"] if content.depth is not None else []
    words += [f"distance:{content.distance}"] if content.distance is not None else []
    words += [f"within:{content.within}"] if content.within is not None else []
    words += ["endswith"] if content.endswith else []
    words += ["nocase"] if content.nocase else []
    return [f"; {word}" for word in words]

"""Evaluates a rule's conditions on one buffer.

Theory of operation. The matchers of a buffer form a chain. Each is compiled to a *step* that looks at the data from a
cursor (the end of what the matcher before it found) and calls the step after it, so the whole chain is nested calls
with no interpretation in between. A step answers

    MATCH  this and everything after it matched
    MISS   not from this cursor; an earlier matcher may try its next occurrence
    STOP   no earlier occurrence can help; give up on the buffer

A content or pcre looks for a further occurrence only when the condition after it depends on where it was found
(``within``, relative isdataat, byte_* and pcre; ``distance`` alone cannot profit from a later start). That and STOP
are Suricata's rules (detect-engine-content-inspection); together with MAX_INSPECTION_STEPS they bound the work.

One deviation, on purpose: a negated content with ``endswith`` matches exactly when the buffer does not end with it.
Suricata looks at the first occurrence only, so that ``!"evil.com"; endswith`` accepts ``evil.com.evil.com``.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pcre2

from engines.stateful.signature import BufferMatch, Matcher

# Occurrences tried per buffer and evaluation before giving up without a match: Suricata's inspection-recursion-limit.
MAX_INSPECTION_STEPS = 3000
# A regular expression that searched 2**12 bytes in vain has used up one more of them: on long buffers the time of one
# search counts, not only their number (3,000 searches of 64 KiB would take half a second).
REGEX_STEP_SHIFT = 12
# What a search that gave up at its limit has used up of the steps, so that an expression that always does so costs some
# 20 ms of one evaluation at most; and one that asked for the higher limit.
LIMIT_STEPS = 5
LIMIT_STEPS_RAISED = 150
# Longest chain of conditions on one buffer; each costs one Python stack frame, of 1,000 there are by default.
MAX_MATCHERS_PER_BUFFER = 200
# isdataat with an extracted distance from here on counts as "not there" (Suricata's bound).
MAX_ISDATAAT_VALUE = 100_000_000
# Digits read at most: the longest octal 64-bit number (Suricata's bound).
MAX_DIGITS = 23
_U64 = 0xFFFFFFFFFFFFFFFF

MATCH, MISS, STOP = 1, 0, -1

Program = Callable[[bytes, dict[str, int]], bool]
# What one evaluation carries along: [occurrences left, the data in lower case or None].
Run = list[Any]
Step = Callable[[bytes, int, dict[str, int], Run], int]


def match_buffer(bm: BufferMatch, data: bytes, state: dict[str, int]) -> bool:
    """True if all conditions of ``bm`` hold on ``data`` (already transformed). ``state`` receives the variables."""
    program = bm.program
    if program is None:
        program = compile_program(bm.matchers)
        object.__setattr__(bm, "program", program)  # the same value, found sooner
    return program(data, state)


def transform(bm: BufferMatch, data: bytes) -> bytes:
    """``data`` after the buffer's transforms, in order."""
    for function in bm.transforms:
        data = function(data)
    return data


def compile_program(matchers: Sequence[Matcher]) -> Program:
    """Chains the matchers. No matchers: True for any data (the buffer need only exist)."""
    step: Step = _accept
    for index in range(len(matchers) - 1, -1, -1):
        matcher = matchers[index]
        assert isinstance(matcher, StepMatcher)
        step = matcher.compile(step, _retries(matchers, index))
    first = step

    def program(data: bytes, state: dict[str, int]) -> bool:
        return first(data, 0, state, [MAX_INSPECTION_STEPS, None]) == MATCH

    return program


def _accept(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
    return MATCH


def _retries(matchers: Sequence[Matcher], index: int) -> bool:
    """Whether a later condition depends on which occurrence of this content or pcre was taken."""
    if not isinstance(matchers[index], Content | Regex):
        return False
    for later in matchers[index + 1 :]:
        if getattr(later, "relative", False) and not (
            isinstance(later, Content) and later.within is None and isinstance(matchers[index], Content)
        ):
            return True
        if isinstance(later, Content | Regex):  # from here on conditions depend on this one
            return False
    return False


class StepMatcher:
    """Base of all matchers: a value that compiles to a step."""

    __slots__ = ()
    negated: bool

    def compile(self, following: Step, retry: bool) -> Step:
        """The step for this matcher, calling ``following``. ``retry``: a MISS of ``following`` asks for another try."""
        raise NotImplementedError

    def match(self, data: bytes, cursor: int, state: dict[str, int]) -> Iterator[int]:
        """Every cursor this matcher can leave, in order of preference. For tests and tools; not the hot path."""
        cursors: list[int] = []

        def record(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            cursors.append(cursor)
            return MISS

        self.compile(record, True)(data, cursor, state, [MAX_INSPECTION_STEPS, None])
        return iter(cursors)


Number = int | str  # a literal, or the name of a byte_extract/byte_math variable


@dataclass(frozen=True, slots=True)
class Content(StepMatcher):
    """``content`` with its modifiers. ``pattern`` is lower case when ``nocase``. ``depth`` counts from ``offset``."""

    pattern: bytes
    nocase: bool = False
    negated: bool = False
    offset: Number = 0
    depth: Number | None = None
    distance: Number | None = None
    within: Number | None = None
    endswith: bool = False

    @property
    def relative(self) -> bool:
        return self.distance is not None or self.within is not None

    def compile(self, following: Step, retry: bool) -> Step:
        if self.negated:
            return self._negated(following)
        if self.endswith:
            return self._endswith(following)
        if self.relative or isinstance(self.offset, str) or isinstance(self.depth, str):
            return self._windowed(following, retry)
        return self._fixed(following, retry)

    def _fixed(self, following: Step, retry: bool) -> Step:
        """Absolute position, literal bounds: the common case."""
        pattern, size, nocase = self.pattern, len(self.pattern), self.nocase
        assert isinstance(self.offset, int)
        offset = self.offset
        end = None if self.depth is None else offset + int(self.depth)

        if retry:

            def step_retry(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
                text = (run[1] or _lowered(data, run)) if nocase else data
                at = text.find(pattern, offset, end)
                while at >= 0:
                    result = following(data, at + size, state, run)
                    if result:
                        return result
                    run[0] -= 1
                    if run[0] < 0:
                        return STOP
                    at = text.find(pattern, at + 1, end)
                return STOP

            return step_retry
        if following is _accept:

            def step_last(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
                text = (run[1] or _lowered(data, run)) if nocase else data
                return STOP if text.find(pattern, offset, end) < 0 else MATCH

            return step_last

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            text = (run[1] or _lowered(data, run)) if nocase else data
            at = text.find(pattern, offset, end)
            if at < 0:
                return STOP
            return following(data, at + size, state, run) or STOP

        return step

    def _windowed(self, following: Step, retry: bool) -> Step:
        pattern, size, nocase, window = self.pattern, len(self.pattern), self.nocase, self._window()
        exhausted = MISS if self.relative else STOP

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            start, end = window(len(data), cursor, state)
            if start > end or not end:
                return MISS
            text = (run[1] or _lowered(data, run)) if nocase else data
            at = text.find(pattern, start, end)
            while at >= 0:
                result = following(data, at + size, state, run)
                if result:
                    return result
                if not retry:
                    return STOP
                run[0] -= 1
                if run[0] < 0:
                    return STOP
                at = text.find(pattern, at + 1, end)
            return exhausted

        return step

    def _endswith(self, following: Step, retry: bool = False) -> Step:
        pattern, size, nocase, window = self.pattern, len(self.pattern), self.nocase, self._window()
        exhausted = MISS if self.relative else STOP

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            start, end = window(len(data), cursor, state)
            if end < len(data) or len(data) - size < start or not end:
                return exhausted
            text = (run[1] or _lowered(data, run)) if nocase else data
            if not text.endswith(pattern):
                return exhausted
            return following(data, len(data), state, run) or exhausted

        return step

    def _negated(self, following: Step) -> Step:
        pattern, size, nocase, window = self.pattern, len(self.pattern), self.nocase, self._window()
        ends = self.endswith
        alone = not self.relative and self.depth is None and not self.offset
        found = STOP if alone else MISS

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            start, end = window(len(data), cursor, state)
            if start <= end and end:
                text = (run[1] or _lowered(data, run)) if nocase else data
                if ends:
                    if end >= len(data) and len(data) - size >= start and text.endswith(pattern):
                        return found
                elif text.find(pattern, start, end) >= 0:
                    return found
            return following(data, cursor, state, run)

        return step

    def _window(self) -> Callable[[int, int, dict[str, int]], tuple[int, int]]:
        """(buffer length, cursor, variables) -> where the pattern must lie, end excluded and not past the buffer."""
        offset, depth, distance, within = self.offset, self.depth, self.distance, self.within

        if self.relative:

            def relative(length: int, cursor: int, state: dict[str, int]) -> tuple[int, int]:
                gap = state.get(distance, 0) if isinstance(distance, str) else (distance or 0)
                start, end = cursor + gap, length
                if within is not None:
                    reach = state.get(within, 0) if isinstance(within, str) else within
                    end = min(end, cursor + reach + gap)
                return (start if start > 0 else 0), (end if end > 0 else 0)

            return relative

        def absolute(length: int, cursor: int, state: dict[str, int]) -> tuple[int, int]:
            start = state.get(offset, 0) if isinstance(offset, str) else offset
            if depth is None:
                return start, length
            reach = state.get(depth, 0) if isinstance(depth, str) else depth
            return start, min(length, start + reach)

        return absolute


def _lowered(data: bytes, run: Run) -> bytes:
    lowered = data.lower()
    run[1] = lowered
    return lowered


@dataclass(frozen=True, slots=True)
class Regex(StepMatcher):
    """``pcre``. ``pattern`` is a compiled pcre2 pattern with its match limits inside; a relative one sees only the
    bytes from the cursor on, so ``^`` and look-behind stop there (as in Suricata). Over the limit is no match, and
    counted in ``gave_up[0]``; ``limit_steps``: what that costs of MAX_INSPECTION_STEPS."""

    pattern: Any
    negated: bool = False
    relative: bool = False
    text: str = ""
    limit_steps: int = LIMIT_STEPS
    gave_up: list[int] = field(default_factory=lambda: [0], compare=False, repr=False)

    def compile(self, following: Step, retry: bool) -> Step:
        search, negated, relative = self.pattern.search, self.negated, self.relative
        gave_up, limit_steps = self.gave_up, self.limit_steps

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            base = cursor if relative else 0
            subject = data[base:] if base else data
            start = 0
            while run[0] >= 0:
                try:
                    found = search(subject, start)
                except pcre2.LibraryError:
                    gave_up[0] += 1
                    run[0] -= limit_steps
                    return MISS
                if not found:
                    run[0] -= (len(subject) - start) >> REGEX_STEP_SHIFT
                    return following(data, cursor, state, run) if negated else MISS
                if negated:
                    return MISS
                first, last = found.span()
                result = following(data, base + last, state, run)
                if result or not retry:
                    return result
                run[0] -= 1 + ((last - start) >> REGEX_STEP_SHIFT)
                start = first + 1
                if start > len(subject):
                    return MISS
            return STOP

        return step


@dataclass(frozen=True, slots=True)
class IsDataAt(StepMatcher):
    """``isdataat``: is there data ``position`` bytes from the start (or, relative, from the cursor)?"""

    position: Number
    negated: bool = False
    relative: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        position, negated, relative = self.position, self.negated, self.relative
        variable = isinstance(position, str)
        miss = MISS if variable else STOP

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            at = state.get(position, 0) if isinstance(position, str) else position
            if variable and at >= MAX_ISDATAAT_VALUE:
                there = False
            elif relative:
                there = cursor + at <= len(data)
                # A relative negative can become true at a later occurrence; a relative positive cannot.
                if there and negated:
                    return MISS
            else:
                there = at < len(data)
            if there == negated:
                return miss
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class Size(StepMatcher):
    """``bsize`` and ``urilen``: the buffer's length. ``cap``: longer buffers count as that long (urilen: 65535)."""

    test: Callable[[int], bool]
    cap: int = 0
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        test, cap = self.test, self.cap

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            size = len(data)
            if not test(min(size, cap) if cap else size):
                return STOP
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class Entropy(StepMatcher):
    """``entropy``: Shannon entropy in bits a byte (0 to 8) of ``size`` bytes (0: all) from ``offset`` on."""

    test: Callable[[float], bool]
    size: int = 0
    offset: int = 0
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        test, size, offset = self.test, self.size, self.offset

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            piece = data[offset : offset + size] if size else data[offset:]
            if not piece or not test(shannon(piece)):
                return STOP
            return following(data, cursor, state, run)

        return step


def shannon(data: bytes) -> float:
    """Bits a byte the data carries, by how often each byte value occurs in it."""
    total = len(data)
    return sum(-count / total * math.log2(count / total) for count in Counter(data).values())


@dataclass(frozen=True, slots=True)
class IntegerValue(StepMatcher):
    """A buffer that is one big-endian number (dns.opcode, dns.rrtype, dns.rcode)."""

    test: Callable[[int], bool]
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        test = self.test

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            if not data or not test(int.from_bytes(data, "big")):
                return STOP
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class AllIntegers(StepMatcher):
    """A question about all of a buffer's instances at once, each one big-endian number: how many fit, which of them.

    ``holds`` is asked of the numbers, in order, by whoever has the instances (BufferMatch.together); one instance by
    itself is asked as if it were the only one.
    """

    holds: Callable[[Sequence[int]], bool]
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        holds = self.holds

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            if not holds((int.from_bytes(data, "big"),)):
                return STOP
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class OneOf(StepMatcher):
    """The whole buffer is (or, negated, is not) one of a few values (tls.version, ssl_version, ssl_state)."""

    values: frozenset[bytes]
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        values, negated = self.values, self.negated

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            if (data in values) == negated:
                return STOP
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class DceInterface(StepMatcher):
    """``dcerpc.iface``: the UUID, its version, and whether it was bound in a first fragment (or may be in any)."""

    uuid: bytes
    version: Callable[[int], bool] | None
    any_fragment: bool
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        uuid, version, any_fragment = self.uuid, self.version, self.any_fragment

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            if (
                data[:16] != uuid
                or not (any_fragment or data[18])
                or not (version is None or version(int.from_bytes(data[16:18], "big")))
            ):
                return STOP
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class Absent(StepMatcher):
    """``absent``: the buffer must not be there (which BufferMatch.absent says); ``or_else``: what follows must hold."""

    or_else: bool = False
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        return following if self.or_else else _refuse


def _refuse(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
    return STOP


class LittleEndian(bytes):
    """Data of a DCERPC call whose numbers are little endian: what ``dce`` means in byte_test and its like."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Extraction:
    """Where byte_test, byte_jump, byte_extract and byte_math read their number, and how.

    ``base`` 0: binary, ``little`` or big endian; 8, 10, 16: digits. ``size`` in bytes (digits, 0: all there
    are). ``mask`` is applied and the result shifted right until the mask's lowest bit is bit 0. ``dce``: as the DCERPC
    call says; binary only.
    """

    size: Number
    offset: Number
    relative: bool = False
    base: int = 0
    little: bool = False
    mask: int = 0
    dce: bool = False

    def read(self, data: bytes, cursor: int, state: dict[str, int]) -> tuple[int, int] | None:
        """(value, position after it), or None when the bytes are not there or are no digits."""
        size = state.get(self.size, 0) if isinstance(self.size, str) else self.size
        at = state.get(self.offset, 0) if isinstance(self.offset, str) else self.offset
        if self.relative:
            at += cursor
        if at < 0 or at + size > len(data) or at >= len(data):
            return None
        piece = data[at : at + (size or MAX_DIGITS)]
        if self.base:
            digits = _DIGITS[self.base].match(piece)
            if not digits:
                return None
            value = int(digits.group(1), self.base)
            if value > _U64:
                return None
            if digits.group(0).lstrip()[:1] == b"-":
                value = -value & _U64
            at += digits.end()
        else:
            if size > 8:
                return None
            little = self.little or (self.dce and isinstance(data, LittleEndian))
            value = int.from_bytes(piece, "little" if little else "big")
            at += size
        if self.mask:
            value = (value & self.mask) >> ((self.mask & -self.mask).bit_length() - 1)
        return value, at


# What strtoull() would read at the start of the bytes.
_DIGITS = {
    8: re.compile(rb"[ \t-\r]*[+-]?([0-7]+)"),
    10: re.compile(rb"[ \t-\r]*[+-]?([0-9]+)"),
    16: re.compile(rb"[ \t-\r]*[+-]?(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]+)"),
}


@dataclass(frozen=True, slots=True)
class ByteTest(StepMatcher):
    """``byte_test``. ``test(value, operand)``; bytes that are not there never match, negated or not."""

    extraction: Extraction
    test: Callable[[int, int], bool]
    operand: Number
    negated: bool = False

    @property
    def relative(self) -> bool:
        return self.extraction.relative

    def compile(self, following: Step, retry: bool) -> Step:
        read, test, operand, negated = self.extraction.read, self.test, self.operand, self.negated

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            found = read(data, cursor, state)
            if found is None:
                return MISS
            if test(found[0], state.get(operand, 0) if isinstance(operand, str) else operand) == negated:
                return MISS
            return following(data, cursor, state, run)

        return step


@dataclass(frozen=True, slots=True)
class ByteJump(StepMatcher):
    """``byte_jump``: moves the cursor. ``origin``: "" (from behind the number), "beginning", "end"."""

    extraction: Extraction
    multiplier: int = 1
    align: bool = False
    origin: str = ""
    post_offset: Number = 0
    negated: bool = False

    @property
    def relative(self) -> bool:
        return self.extraction.relative

    def compile(self, following: Step, retry: bool) -> Step:
        read, multiplier, align = self.extraction.read, self.multiplier, self.align
        origin, post_offset, size = self.origin, self.post_offset, self.extraction.size

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            # A number of no bytes, written or extracted, is 0 and moves nothing.
            nothing = not (state.get(size, 0) if isinstance(size, str) else size)
            found = (0, cursor) if nothing else read(data, cursor, state)
            if found is None:
                return MISS
            value, after = found
            value *= multiplier
            if align and value % 4:
                value += 4 - value % 4
            value += state.get(post_offset, 0) if isinstance(post_offset, str) else post_offset
            target = value if origin == "beginning" else len(data) + value if origin == "end" else after + value
            if not 0 <= target < len(data):
                return MISS
            return following(data, target, state, run)

        return step


@dataclass(frozen=True, slots=True)
class ByteExtract(StepMatcher):
    """``byte_extract``: stores a number as variable ``name``; the cursor goes behind it. ``align``: 0, 2 or 4."""

    extraction: Extraction
    name: str
    multiplier: int = 1
    align: int = 0
    negated: bool = False

    @property
    def relative(self) -> bool:
        return self.extraction.relative

    def compile(self, following: Step, retry: bool) -> Step:
        read, name, multiplier, align = self.extraction.read, self.name, self.multiplier, self.align

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            found = read(data, cursor, state)
            if found is None:
                return MISS
            value = found[0] * multiplier
            if align and value % align:
                value += align - value % align
            state[name] = value & _U64
            return following(data, found[1], state, run)

        return step


@dataclass(frozen=True, slots=True)
class ByteMath(StepMatcher):
    """``byte_math``: number ``op`` operand, modulo 2**64, as variable ``name``; division by zero is no match."""

    extraction: Extraction
    name: str
    op: str
    operand: Number
    negated: bool = False

    @property
    def relative(self) -> bool:
        return self.extraction.relative

    def compile(self, following: Step, retry: bool) -> Step:
        # The mask applies to the result here, not to what was read.
        source = self.extraction
        plain = Extraction(source.size, source.offset, source.relative, source.base, source.little, 0, source.dce)
        read, name, op, operand, mask = plain.read, self.name, self.op, self.operand, source.mask

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            found = read(data, cursor, state)
            if found is None:
                return MISS
            other = state.get(operand, 0) if isinstance(operand, str) else operand
            value = _calculate(op, found[0], other)
            if value is None:
                return MISS
            if mask:
                value = (value & mask) >> ((mask & -mask).bit_length() - 1)
            state[name] = value
            return following(data, found[1], state, run)

        return step


def _calculate(op: str, left: int, right: int) -> int | None:
    if op == "+":
        value = left + right
    elif op == "-":
        value = left - right
    elif op == "*":
        value = left * right
    elif op == "/":
        if right == 0:
            return None
        value = left // right
    elif op == "<<":
        value = left << right if right < 64 else 0
    else:
        value = left >> right if right < 64 else 0
    return value & _U64


@dataclass(frozen=True, slots=True)
class Base64Decode(StepMatcher):
    """``base64_decode`` with what follows ``base64_data``: decodes, then judges the result as a buffer of its own.

    ``size`` 0: to the end. Without ``inner`` it matches when something can be decoded.
    """

    size: int = 0
    offset: int = 0
    relative: bool = False
    inner: tuple[Matcher, ...] = ()
    negated: bool = False

    def compile(self, following: Step, retry: bool) -> Step:
        size, offset, relative = self.size, self.offset, self.relative
        program = compile_program(self.inner)

        def step(data: bytes, cursor: int, state: dict[str, int], run: Run) -> int:
            start = offset + (cursor if relative else 0)
            decoded = decode_base64(data[start : start + size] if size else data[start:])
            if not decoded or not program(decoded, state):
                return MISS
            return following(data, cursor, state, run)

        return step


_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/]*")
_WHITE = bytes(range(9, 14)) + b" "


def decode_base64(data: bytes, *, skip: bool = True) -> bytes:
    """Decodes as far as the bytes are base64; whitespace is skipped when ``skip``; an incomplete tail is dropped."""
    if skip:
        data = data.translate(None, _WHITE)
    found = _BASE64_RUN.match(data)
    text = found.group(0) if found else b""
    if len(text) % 4 == 1:
        text = text[:-1]
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return b""

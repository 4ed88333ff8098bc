"""One application protocol on a flow: its transactions, and which rules were judged on each so far.

A decrypted flow has two layers (TLS and what it carries), a connection that changes its protocol gets another one.

For each transaction and direction a rule is in one of four states: not considered (its pattern has not been found),
*pending* (some of its buffers matched, others are not there yet), *done* (it matched and never will again here), or
ruled out, which needs no memory because a buffer, once there, is considered once. Bodies are the exception: they grow,
and are considered again with what is new.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence

from engines.stateful.app import AppParser, Transaction
from engines.stateful.app.files import Instances
from engines.stateful.match import Content, match_buffer
from engines.stateful.ruleset import AppGroup, BufferGroup, Rule
from engines.verdict import Direction

_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)
_ANSWER = Direction.TO_CLIENT  # complete last, so asked first


# Which way a stream goes and an offset in it.
_Place = tuple[Direction, int] | None


class _State:
    """What was judged on one transaction; lists have one entry per direction."""

    __slots__ = ("appeared", "done", "hopeless", "pending", "progress", "searched", "seen")

    def __init__(self) -> None:
        self.progress = [-1, -1]
        self.appeared = [-1, -1]  # Transaction.appeared when that direction was judged
        self.pending: tuple[dict[int, int], dict[int, int]] = ({}, {})  # rule index -> bits of the buffers that matched
        self.done: tuple[set[int], set[int]] = (set(), set())
        self.hopeless: tuple[set[int], set[int]] = (set(), set())  # cannot match unless another buffer appears
        self.searched: list[_Place] = [None, None]  # how far, and in which stream, the payload was
        self.seen: tuple[dict[int, int], dict[int, int]] = ({}, {})  # buffer group -> instances, or bytes if it grows


class Layer:
    """``parser`` is None when no rule needs the protocol parsed, or its transactions are given instead."""

    __slots__ = ("_mine", "_rules", "_states", "group", "known", "log", "log_only", "name", "parser")

    def __init__(
        self,
        name: str,
        group: AppGroup,
        rules: Sequence[Rule],
        parser: AppParser | None,
        transactions: Sequence[Transaction] = (),
    ) -> None:
        self.name = name
        self.group = group
        self.parser = parser
        self._mine: list[Transaction] = list(transactions)
        self.known = False  # the protocol has said something a rule can look at
        self.log: Callable[[str, Transaction], None] | None = None  # is told of each transaction that is over
        self.log_only = False  # parsed for the log alone: what it says or fails at decides nothing
        self._rules = rules
        self._states: dict[int, _State] = {}

    @property
    def transactions(self) -> MutableSequence[Transaction]:
        """Those that are not over and judged yet."""
        return self._mine if self.parser is None else self.parser.transactions

    def inspect(
        self,
        applies: Callable[[Rule, Direction], bool],
        found: Callable[[Rule, Transaction, Direction, str], None],
        payload: bytes,
        place: _Place,
        directions: Sequence[Direction] = _BOTH,
    ) -> None:
        """Judge what is new in all transactions. ``applies`` answers for header and state of the flow, ``found`` is
        told of each match and the protocol's name, ``payload`` is what rules see that also have conditions on the
        payload, and ``place`` which way and where in the stream that begins, None when it is no part of one;
        ``directions``: the sides to judge now."""
        transactions = self.transactions
        if not transactions:
            return
        states = self._states
        finished = 0
        for tx in transactions:
            state = states.get(tx.id)
            if state is None:
                state = states[tx.id] = _State()
            seen = state.progress
            for direction in directions:
                progress = tx.progress(direction)
                if progress > 0 and progress != seen[direction]:
                    self.known = self.known or tx.tells
                    seen[direction] = progress
                    self._inspect(tx, state, direction, applies, found, payload, place)
            if tx.is_complete(_ANSWER) and self._settled(tx):
                finished += 1
        if finished:
            self._prune(transactions)

    def pending(self, direction: Direction) -> bool:
        """Something of that side was not judged yet."""
        for tx in self.transactions:
            progress = tx.progress(direction)
            state = self._states.get(tx.id)
            if progress > 0 and (state is None or state.progress[direction] != progress):
                return True
        return False

    def rename(self, name: str, group: AppGroup) -> None:
        """The protocol turned out to carry another one: other rules are about it. What has matched stays matched."""
        self.name, self.group = name, group
        for state in self._states.values():
            state.progress = [-1, -1]
            state.appeared = [-1, -1]
            state.seen = ({}, {})

    def log_rest(self) -> None:
        """The flow has ended: transactions that were not over are logged as they are."""
        if self.log is not None and self.parser is not None:
            for tx in self.parser.transactions:
                if tx.progress(Direction.TO_SERVER) > 0 or tx.progress(Direction.TO_CLIENT) > 0:
                    self.log(self.name, tx)
            self.log = None

    def give_up_oldest(self, limit: int) -> None:
        """Forget transactions beyond ``limit``."""
        if self.parser is not None:
            for tx in self.parser.transactions[:-limit]:
                self._states.pop(tx.id, None)
            del self.parser.transactions[:-limit]

    def _prune(self, transactions: MutableSequence[Transaction]) -> None:
        keep = []
        for tx in transactions:
            if self._settled(tx):
                self._states.pop(tx.id, None)
                if self.log is not None:
                    self.log(self.name, tx)
            else:
                keep.append(tx)
        transactions[:] = keep

    def _settled(self, tx: Transaction) -> bool:
        """Both sides have said everything, and all of it was judged."""
        state = self._states[tx.id]
        for side in _BOTH:
            if not tx.is_complete(side):
                return False
            progress = tx.progress(side)
            if state.progress[side] != (progress or -1):
                return False
        return True

    def _inspect(
        self,
        tx: Transaction,
        state: _State,
        direction: Direction,
        applies: Callable[[Rule, Direction], bool],
        found: Callable[[Rule, Transaction, Direction, str], None],
        payload: bytes,
        place: _Place,
    ) -> None:
        group = self.group
        pending = state.pending[direction]
        candidates = set(pending) if pending else set()
        seen = state.seen[direction]
        fetched: dict[tuple[str, Direction], Sequence[bytes]] = {}
        appeared = tx.appeared
        if appeared != state.appeared[direction]:
            state.appeared[direction] = appeared
            state.hopeless[direction].clear()
            for buffer, name, side, key, index in group.settled[direction]:
                instances = fetched[key] = tx.buffer(name, side)
                if len(instances) != 1 or buffer.transforms:
                    if instances:
                        self._search(buffer, instances, seen, candidates)
                elif index not in seen:
                    # What _search() does, without asking all that it has to ask.
                    seen[index] = 1
                    candidates.update(buffer.always)
                    if buffer.patterns is not None and instances[0]:
                        candidates.update(buffer.patterns.scan(instances[0]))
        for buffer in group.growing[direction]:
            if not _search_end(buffer, tx, seen, candidates):
                instances = fetched[buffer.key] = tx.buffer(buffer.name, buffer.side)
                if instances:
                    self._search(buffer, instances, seen, candidates)
        unbuffered = group.unbuffered[direction]
        if unbuffered:
            candidates.update(unbuffered)
        patterns = group.payload[direction]
        if patterns is not None and payload:
            candidates.update(patterns.scan(_unsearched(state, direction, payload, place, patterns.longest)))
        if not candidates:
            return
        done, hopeless = state.done[direction], state.hopeless[direction]
        for index in sorted(candidates.difference(done, hopeless)):
            rule = self._rules[index]
            if not applies(rule, direction):
                pending.pop(index, None)
                continue
            bits = judge_rule(rule, tx, direction, pending.get(index, 0), payload, fetched)
            if bits is None:
                pending.pop(index, None)
            elif bits == _HOPELESS:
                pending.setdefault(index, 0)
                hopeless.add(index)
            elif bits >= 0:
                pending[index] = bits
            else:
                pending.pop(index, None)
                done.add(index)
                found(rule, tx, direction, self.name)

    @staticmethod
    def _search(buffer: BufferGroup, instances: Sequence[bytes], seen: dict[int, int], candidates: set[int]) -> None:
        """Add the rules worth judging because of what is new in a buffer."""
        before = seen.get(buffer.index, 0)
        size = len(instances)
        if buffer.grows:
            size += sum(map(len, instances)) + (instances.gone if isinstance(instances, Instances) else 0)
        if size == before:
            return
        seen[buffer.index] = size
        candidates.update(buffer.always)
        patterns = buffer.patterns
        if patterns is None:
            return
        if buffer.grows and before and not buffer.transforms:
            in_order = isinstance(instances, Instances)
            if in_order or len(instances) == 1:
                # Only the new end, and as much before it as a pattern across the border can need.
                at = instances.gone if isinstance(instances, Instances) else 0
                for data in instances:
                    if at + len(data) + 1 > before:
                        candidates.update(patterns.scan(data[max(before - at - 1 - patterns.longest, 0) :]))
                    at += len(data) + 1
                return
        for data in instances if buffer.grows else instances[before:]:
            for function in buffer.transforms:
                data = function(data)
            if data:
                candidates.update(patterns.scan(data))


def _unsearched(state: _State, direction: Direction, payload: bytes, place: _Place, longest: int) -> bytes:
    """What of the payload was not searched yet for this transaction, with as much before it as a pattern across the
    border can need."""
    before = state.searched[direction]
    if place is None:
        return payload
    side, start = place
    state.searched[direction] = (side, start + len(payload))
    if before is None or before[0] is not side or before[1] < start:
        return payload
    return payload[max(before[1] - start - longest + 1, 0) :]


def _search_end(buffer: BufferGroup, tx: Transaction, seen: dict[int, int], candidates: set[int]) -> bool:
    """As ``Layer._search`` in a body, of which no more is put together than a pattern across the border can need. False
    when that cannot be done."""
    patterns = buffer.patterns
    if patterns is None or buffer.transforms:
        return False
    before = seen.get(buffer.index, 0)
    start = max(before - 1 - patterns.longest, 0)
    found = tx.end_of(buffer.name, buffer.side, start)
    if found is None:
        return False
    size, data = found
    if size + 1 != before:
        seen[buffer.index] = size + 1
        candidates.update(buffer.always)
        found_now = patterns.scan(data)
        if found_now:
            ends = buffer.ends
            candidates.update([index for index in found_now if index not in ends or start < ends[index]])
    return True


def _hopeless(must: Sequence[Content], instances: Sequence[bytes]) -> bool:
    """A content is not at the place it has to be at, and that place is there: what is still to come is behind it."""
    for content in must:
        assert isinstance(content.offset, int)
        assert isinstance(content.depth, int)
        end = content.offset + content.depth
        for data in instances:
            piece = data[content.offset : end]
            if len(data) < end or content.pattern in (piece.lower() if content.nocase else piece):
                break
        else:
            if instances:
                return True
    return False


MATCHED = -1
_HOPELESS = -2


def judge_rule(
    rule: Rule,
    tx: Transaction,
    direction: Direction,
    bits: int,
    payload: bytes,
    fetched: dict[tuple[str, Direction], Sequence[bytes]],
) -> int | None:
    """-1: it matches. None: it cannot any more. -2: not with these buffers, though they may still grow. Otherwise the
    bits of the buffers that matched; others may follow.

    ``fetched`` remembers the buffers asked for during this inspection.
    """
    waiting = False
    for number, condition in enumerate(rule.tx):
        bit = 1 << number
        if bits & bit:
            continue
        match = condition.match
        side = direction if condition.side is None else condition.side
        key = (match.buffer, side)
        instances = fetched.get(key)
        if instances is None:
            instances = fetched[key] = tx.buffer(match.buffer, side)
        open_ended = (not instances or condition.grows) and not tx.is_complete(side)
        if not instances and match.absent and (not open_ended or (condition.early and tx.has_begun(side))):
            bits |= bit
            continue
        if open_ended and condition.must and _hopeless(condition.must, instances):
            return _HOPELESS
        if open_ended and condition.waits:
            waiting = True
            continue
        if match.together is not None and instances:
            if match.together([int.from_bytes(data, "big") for data in instances]):
                bits |= bit
                continue
            instances = ()
        for data in instances:
            for function in match.transforms:
                data = function(data)
            if match_buffer(match, data, {}):
                bits |= bit
                break
        else:
            if not open_ended:
                return None
            waiting = True
    if not waiting:
        # These depend on more than the transaction's buffers, so another try with more of it may succeed.
        waiting = any(event not in tx.events for _, event in rule.signature.app_events) or not all(
            match_buffer(match, payload, {}) for match in rule.payload
        )
        if waiting and tx.is_complete(direction):
            return None
    return bits if waiting else MATCHED

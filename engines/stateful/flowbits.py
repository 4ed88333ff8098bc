"""What rules remember for one another: flowbits and flowints on a flow, xbits and hostbits on addresses.

Source: Suricata user guide, "Flow keywords", "Flowint" and "Xbits". Everything is bounded; what does not fit is not
remembered and counted in ``refused`` (marks of a flow) or replaces the oldest (marks of addresses, ``forgotten``).
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable

from engines.stateful.signature import FlowbitOp, FlowintOp, XbitOp


class FlowBits:
    """The marks of one flow. ``limit``: how many can be set at a time."""

    __slots__ = ("_limit", "names", "refused")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.names: set[str] = set()
        self.refused = 0

    def check(self, operations: Iterable[FlowbitOp]) -> bool:
        """All of a rule's ``isset`` and ``isnotset`` hold. Names joined with ``|`` in the rule are alternatives."""
        for operation in operations:
            if operation.op == "isset":
                if self.names.isdisjoint(operation.names):
                    return False
            elif all(name in self.names for name in operation.names):
                return False
        return True

    def apply(self, operations: Iterable[FlowbitOp]) -> None:
        """Do a matched rule's ``set``, ``unset`` and ``toggle``."""
        for operation in operations:
            for name in operation.names:
                present = name in self.names
                if operation.op == "unset" or (operation.op == "toggle" and present):
                    self.names.discard(name)
                elif not present:
                    if len(self.names) >= self._limit:
                        self.refused += 1
                    else:
                        self.names.add(name)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MAX_INT = 0xFFFFFFFF


class FlowInts:
    """The counters of one flow: unsigned 32-bit numbers by name."""

    __slots__ = ("_limit", "refused", "values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.values: dict[str, int] = {}
        self.refused = 0

    def check(self, operations: Iterable[FlowintOp]) -> bool:
        """All tests among the operations hold; a comparison with a counter never set does not."""
        for operation in operations:
            if operation.changes:
                continue
            value = self.values.get(operation.name)
            if operation.op in {"isset", "notset"}:
                if (value is None) == (operation.op == "isset"):
                    return False
                continue
            wanted = self._value(operation)
            if value is None or wanted is None or not _COMPARE[operation.op](value, wanted):
                return False
        return True

    def apply(self, operations: Iterable[FlowintOp]) -> None:
        """Do the changes among the operations. Counters saturate at 0 and 2**32-1; a new one starts at 0."""
        for operation in operations:
            if not operation.changes:
                continue
            wanted = self._value(operation)
            if wanted is None:
                continue
            if operation.name not in self.values and len(self.values) >= self._limit:
                self.refused += 1
                continue
            value = self.values.get(operation.name, 0)
            changed = {"=": wanted, "+": value + wanted, "-": value - wanted}[operation.op]
            self.values[operation.name] = min(max(changed, 0), _MAX_INT)

    def _value(self, operation: FlowintOp) -> int | None:
        return operation.value if isinstance(operation.value, int) else self.values.get(operation.value)


class AddressBits:
    """``xbits`` and ``hostbits`` of one process: marks on an address or a pair of addresses that may expire.

    A flow stays with one process because the kernel spreads flows by address pair; marks tracked by a single address
    are therefore only seen by flows of the same process.
    """

    def __init__(self, max_entries: int) -> None:
        self._max = max_entries
        self._until: OrderedDict[tuple[str, str, object], float] = OrderedDict()
        self.forgotten = 0

    def check(self, operations: Iterable[XbitOp], source: bytes, destination: bytes, now: float) -> bool:
        """All ``isset`` and ``isnotset`` hold for a packet from ``source`` to ``destination``."""
        for operation in operations:
            until = self._until.get((operation.table, operation.name, _tracked(operation, source, destination)))
            if (until is not None and now <= until) != (operation.op == "isset"):
                return False
        return True

    def apply(self, operations: Iterable[XbitOp], source: bytes, destination: bytes, now: float) -> None:
        """Do a matched rule's ``set``, ``unset`` and ``toggle``."""
        for operation in operations:
            key = (operation.table, operation.name, _tracked(operation, source, destination))
            until = self._until.pop(key, None)
            present = until is not None and now <= until
            if operation.op == "unset" or (operation.op == "toggle" and present):
                continue
            if len(self._until) >= self._max:
                self._until.popitem(last=False)
                self.forgotten += 1
            self._until[key] = now + operation.expire if operation.expire else float("inf")


def _tracked(operation: XbitOp, source: bytes, destination: bytes) -> object:
    match operation.track:
        case "ip_src":
            return source
        case "ip_dst":
            return destination
    return frozenset((source, destination))

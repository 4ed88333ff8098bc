"""How nfw's bits of a packet mark and of a conntrack mark are laid out.

Marks are shared with everything else on the router (policy routing, containers, VPNs), so nfw owns a contiguous run of
bits, the *field*, and leaves every other bit alone::

    mask 0xfff00000:   gggggggg dddd xxxxxxxxxxxxxxxxxxxx
                       generation │   not ours
                            disposition

A generation is one compiled policy; 0 means none. A disposition of a generation that is no longer current is worth
nothing, which is what makes a hot swap one change of a number.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

DEFAULT_MASK = 0xFFF00000
DISPOSITION_BITS = 4
_DISPOSITION = (1 << DISPOSITION_BITS) - 1
_WORD = 0xFFFFFFFF
_LEAST_GENERATION_BITS = 2  # three generations: current, the one being drained, the one being prepared


class Disposition(enum.IntEnum):
    """What was decided about a flow, or, for ``ONCE`` and ``FRAGMENT``, about one packet only."""

    NONE = 0  # not judged yet
    INSPECT = 1  # forwarded, but every packet is seen by a worker
    PASS = 2  # forwarded by the kernel alone
    DROP = 3  # dropped by the kernel alone
    TLS = 4  # delivered to the TLS worker: the client's side of an intercepted connection
    OWN = 5  # nfw's own packets and the connections it opens
    ONCE = 6  # this packet is forwarded; nothing is remembered about its flow
    INSPECT_TO_CLIENT = 8  # as INSPECT, but packets of the original direction are forwarded by the kernel alone
    INSPECT_TO_SERVER = 9  # as INSPECT, but packets of the reply direction are forwarded by the kernel alone
    # As above, of UDP flows, in ct marks only. A swap keeps these entries: nothing in a datagram says who began.
    INSPECT_UDP = 10
    PASS_UDP = 11
    DROP_UDP = 12
    ENDED = 13  # UDP that a swap has ended: the server's datagrams are dropped, the client's begin a new flow
    REPLY = 14  # packet marks only: UDP of an older generation, from the server
    FRAGMENT = 7  # kernel rules only, generation 0: was reassembled from fragments addressed to the router itself


# Values nothing uses read as NONE: such a mark is not ours to trust.
_DISPOSITIONS = tuple(
    Disposition(value) if value in Disposition._value2member_map_ else Disposition.NONE
    for value in range(1 << DISPOSITION_BITS)
)


@dataclass(frozen=True, slots=True)
class MarkLayout:
    """Where the field is in a 32-bit mark. Raises ValueError when ``mask`` is not one run of at least 6 bits."""

    mask: int = DEFAULT_MASK

    def __post_init__(self) -> None:
        """Refuse what cannot hold a disposition and three generations."""
        run = self.mask >> self.shift if 0 < self.mask <= _WORD else 0
        if not run or run & (run + 1):
            raise ValueError(f"mark mask {self.mask:#x} is not one contiguous run of bits of a 32-bit mark")
        if run.bit_length() < DISPOSITION_BITS + _LEAST_GENERATION_BITS:
            raise ValueError(f"mark mask {self.mask:#x} has {run.bit_length()} bits; at least 6 are needed")

    @property
    def shift(self) -> int:
        """Position of the lowest bit of the field."""
        return (self.mask & -self.mask).bit_length() - 1

    @property
    def disposition_mask(self) -> int:
        """The bits of the disposition, in place."""
        return _DISPOSITION << self.shift

    @property
    def generation_mask(self) -> int:
        """The bits of the generation, in place."""
        return self.mask & ~self.disposition_mask

    @property
    def foreign_mask(self) -> int:
        """Every bit that is not ours."""
        return ~self.mask & _WORD

    @property
    def max_generation(self) -> int:
        """Highest generation number."""
        return self.mask >> self.shift + DISPOSITION_BITS

    def next_generation(self, generation: int) -> int:
        """The number after ``generation``: 1, 2 ... ``max_generation``, 1 ..."""
        return generation % self.max_generation + 1

    def compose(self, generation: int, disposition: int) -> int:
        """The field with every foreign bit zero. Raises ValueError for a number that does not fit."""
        if not 0 <= generation <= self.max_generation:
            raise ValueError(f"generation {generation} is not within 0-{self.max_generation}")
        return (generation << DISPOSITION_BITS | Disposition(disposition)) << self.shift

    def merge(self, old_mark: int, new: int) -> int:
        """``old_mark`` with our field taken from ``new``."""
        return old_mark & self.foreign_mask | new & self.mask

    def split(self, mark: int) -> tuple[int, Disposition]:
        """Generation and disposition of a mark; foreign bits are ignored."""
        field = (mark & self.mask) >> self.shift
        return field >> DISPOSITION_BITS, _DISPOSITIONS[field & _DISPOSITION]

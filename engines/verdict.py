"""What an engine answers: a verdict, what it applies to, why, and by which rule."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Direction(enum.IntEnum):
    """Side of a flow a packet or a byte travels to. Usable as a list index: ``streams[direction]``."""

    TO_SERVER = 0
    TO_CLIENT = 1

    @property
    def reply(self) -> Direction:
        """The other one. Looked up, because making a member of a number costs a microsecond and every packet asks."""
        return _REPLIES[self]


_REPLIES = (Direction.TO_CLIENT, Direction.TO_SERVER)


class Verdict(enum.Enum):
    """Fate of a packet or of a piece of plaintext."""

    ACCEPT = "accept"
    DROP = "drop"  # silently
    REJECT = "reject"  # drop, and tell the sender: TCP RST, ICMP unreachable otherwise


class Scope(enum.Enum):
    """What a decision applies to."""

    PACKET = "packet"
    FLOW = "flow"  # this packet and the rest of its flow, both directions


@dataclass(frozen=True, slots=True)
class RuleRef:
    """Names the rule that decided, in a way a person can find it.

    ``engine`` is ``stateless`` or ``stateful``; ``id`` the priority or the Suricata sid; ``file``/``line`` are where
    the rule was written (line 0 when it was generated, as default actions are).
    """

    engine: str
    id: int
    msg: str = ""
    file: str = ""
    line: int = 0
    gid: int = 1
    rev: int = 0

    def __str__(self) -> str:
        where = f" ({self.file}:{self.line})" if self.file else ""
        return f"{self.engine}:{self.id}{where}"


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` is a short stable token (``rule``, ``default_drop_established``, ``stream_exception`` ...)."""

    verdict: Verdict
    scope: Scope
    reason: str
    rule: RuleRef | None = None


ACCEPT = Decision(Verdict.ACCEPT, Scope.PACKET, "no_match")

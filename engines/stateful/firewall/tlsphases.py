"""How far a TLS connection is, record by record, for rules with hooks: the ordinary parser stops at what is encrypted.

Source: Suricata's states of the two sides (``tls:client_in_progress`` ...) and when its parser changes them.
"""

from __future__ import annotations

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.tls import TlsParser, TlsTransaction
from engines.verdict import Direction

_CLIENT, _SERVER = Direction.TO_SERVER, Direction.TO_CLIENT
# Places in the protocol's hooks.
_CLIENT_HELLO, _CLIENT_CERT, _CLIENT_HANDSHAKE, _CLIENT_FINISHED = 1, 2, 3, 4
_SERVER_HELLO, _SERVER_CERT, _SERVER_HANDSHAKE, _SERVER_FINISHED = 1, 2, 4, 5


class PhasedTransaction(TlsTransaction):
    """``phases``: the place of the hook each side has reached."""

    __slots__ = ("phases",)

    def __init__(self, tx_id: int) -> None:
        super().__init__(tx_id)
        self.phases = [0, 0]

    def reach(self, direction: Direction, phase: int) -> None:
        """A side is that far, if it was not before."""
        self.phases[direction] = max(self.phases[direction], phase)


class PhasedTlsParser(TlsParser):
    """``moved``: the bytes fed last to that side were looked at. Those that only bring a record nearer to its end are
    not: nothing is judged before it is there."""

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__(limits, hold_body)
        self._phased = PhasedTransaction(self._tx.id)
        self._tx = self._phased
        self.transactions[:] = [self._tx]
        self._waiting = [False, False]
        self.moved = [False, False]
        self._ended = False

    def feed(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        buffered = len(side.records)
        super().feed(direction, data)
        left = len(side.records)
        waits = bool(left) and not side.encrypted
        self.moved[direction] = not (waits and self._waiting[direction] and left == buffered + len(data))
        self._waiting[direction] = waits
        self._follow(direction)

    def close(self, direction: Direction) -> None:
        super().close(direction)
        # The end of the second side is not told to the application layer by a packet.
        self.moved[direction] = not self._ended
        if not self._ended:
            self._phased.reach(direction, _SERVER_FINISHED if direction else _CLIENT_FINISHED)
        self._ended = True

    def _follow(self, direction: Direction) -> None:
        tx, encrypted = self._phased, self._sides[direction].encrypted
        if direction is _CLIENT:
            phase = _CLIENT_HELLO if "client_hello" in tx.states[_CLIENT] else 0
            phase = _CLIENT_CERT if tx.chains[_CLIENT] else phase
            phase = _CLIENT_HANDSHAKE if encrypted else phase
        else:
            phase = _SERVER_HELLO if "server_hello" in tx.states[_SERVER] else 0
            phase = _SERVER_CERT if tx.chains[_SERVER] else phase
            # With a certificate that could be read nothing of interest is to come (as in Suricata).
            phase = _SERVER_HANDSHAKE if encrypted or tx.certificate(_SERVER) is not None else phase
        tx.reach(direction, phase)

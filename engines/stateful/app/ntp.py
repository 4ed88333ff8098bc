"""NTP: every datagram is a transaction of its direction.

Numbers are bytes: ``ntp.version``, ``ntp.mode`` and ``ntp.stratum`` one each; ``ntp.reference_id`` is four.

Source: RFC 5905, section 7.3; Suricata user guide, "NTP Keywords".
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

MODES = (
    "reserved", "symmetric_active", "symmetric_passive", "client", "server", "broadcast", "control", "private",
)  # fmt: skip
_HEADER = 48
_CONTROL = 6  # this mode and the next have a header of their own


class NtpTransaction(BaseTransaction):
    """One datagram; ``header``: its first bytes."""

    __slots__ = ("_direction", "_header")

    def __init__(self, tx_id: int, direction: Direction, header: bytes) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._header = header
        self.finish(direction)
        self.skip(direction.reply)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        header = self._header
        if not header or (direction is not None and direction is not self._direction):
            return ()
        if name == "ntp.version":
            return (bytes((header[0] >> 3 & 7,)),)
        if name == "ntp.mode":
            return (bytes((header[0] & 7,)),)
        if header[0] & 7 >= _CONTROL:
            return ()
        if name == "ntp.stratum":
            return (header[1:2],)
        return (header[12:16],) if name == "ntp.reference_id" else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``ntp`` object."""
        if not self._header:
            return {}
        return {"version": self._header[0] >> 3 & 7, "mode": MODES[self._header[0] & 7], "stratum": self._header[1]}


class NtpParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`; one feed is one datagram."""

    name = "ntp"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()

    def feed(self, direction: Direction, data: bytes) -> None:
        whole = len(data) >= _HEADER or (len(data) >= 12 and data[0] & 7 >= _CONTROL)
        tx = NtpTransaction(self.take_id(), direction, data[:_HEADER] if whole else b"")
        if not whole:
            tx.add_event("malformed_data")
        self.transactions.append(tx)

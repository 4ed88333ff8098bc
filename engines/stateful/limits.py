"""Every bound of the stateful engine in one value, so the memory of a flow can be added up and a test can shrink it.

Bounds of reassembly are in :class:`engines.stateful.stream.StreamLimits`: they belong to the owner of the packets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.stateful.app.detect import MAX_ONE_SIDED
from engines.stateful.app.limits import AppLimits


@dataclass(frozen=True, slots=True)
class StatefulLimits:
    """Bounds of one flow unless said otherwise; sizes in bytes, times in seconds.

    What happens at each bound is named with it. A bound that somebody could reach on purpose to get past a rule ends
    the flow when the rule set could still have dropped it (``Decision.reason``), and is otherwise only counted.
    """

    # Suricata: stream.reassembly.depth. Beyond it raw stream rules see nothing more of that direction.
    stream_depth: int = 1 << 20
    # Suricata: stream.reassembly.toserver-chunk-size. Bytes before a new chunk that are searched again with it, so a
    # pattern across the border of two chunks is found.
    stream_window: int = 2560
    # Bytes of one direction kept for the parser while detection has no answer; then it has failed, as detection itself
    # says at this size.
    detect_bytes: int = MAX_ONE_SIDED
    # Bytes of an unfinished unit (request head, ClientHello, DNS message, body) kept back until it can be judged. Above
    # the parsers' own bounds on heads (64 KiB) and on inspected bodies (100 KiB) together, so those act first.
    # More than that: ``hold_overflow``.
    hold_bytes: int = 256 << 10
    # How long the owner should keep them back before it calls ``hold_expired``.
    hold_seconds: float = 10.0
    # The same while nobody knows what the first bytes begin: whoever waits for the answer to a short line of a protocol
    # unknown here should not wait long. Detection goes on, and what follows is judged.
    detect_seconds: float = 1.0
    # Transactions in progress; above the parsers' own bounds (256 pipelined requests, 1,024 streams), so those act
    # first. More than that: ``transaction_overflow``, the oldest is given up.
    max_transactions: int = 2048
    # Suricata: packet-alert-max. Matches of a packet that may be logged, the first in the rules' order; the others are
    # counted (``RuleSet.overflowed``), and their actions still apply.
    max_alerts: int = 15
    # Flowbits set, and flowints, at the same time. Rules bound them in practice; more are not set.
    max_flowbits: int = 1024
    # Of the whole rule set: (rule, address) pairs with a threshold in progress. Beyond it the oldest starts afresh.
    max_thresholds: int = 65536
    # Of the whole rule set: xbits and hostbits set on addresses. Beyond it the oldest is forgotten.
    max_address_bits: int = 65536
    # Of the whole rule set: flows that others have announced (FTP). Beyond it the oldest is forgotten.
    max_expectations: int = 4096
    # Bounds of the application parsers.
    app: AppLimits = field(default_factory=AppLimits)


DEFAULT_LIMITS = StatefulLimits()

"""One flow as the operator sees it, whoever in nfw or the kernel has it. Plain values, as they go over the sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nfw import events

INSPECT, PASS, DROP, REJECT = VERDICTS = ("inspect", "pass", "drop", "reject")
WORKER, KERNEL, TLS = "worker", "kernel", "tls"  # who has the rest of the flow

_NAME_CHARACTERS = 255  # of a name from the network; a longer one is none (RFC 1035 section 2.3.4)
_AT_CHARACTERS = 200


class FlowRecord(NamedTuple):
    """Addresses are packed, times in seconds (None: not known), pairs are ``(to server, to client)``.

    ``verdict``: one of :data:`VERDICTS`, ``inspect`` as long as nothing decided about the whole flow. ``kept_by``: who
    sees its packets now. ``rule`` is ``engine:id`` of what decided and ``rule_at`` where it is written. ``key``: of a
    packet to the server, by which the worker finds the flow. ``true_counts``: packets and octets (bytes) are the
    kernel's, which sees all of them; a worker's are those it saw, of a terminated session the plaintext.
    """

    id: int
    protocol: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    age: float | None
    idle: float | None
    packets: tuple[int, int]
    octets: tuple[int, int]
    app_proto: str
    name: str
    verdict: str
    reason: str
    rule: str
    rule_at: str
    state: str
    kept_by: str
    process: str = ""
    key: bytes = b""
    true_counts: bool = False

    @classmethod
    def from_wire(cls, row: Sequence[Any]) -> FlowRecord:
        """A row as msgpack gives it back. Raises TypeError for one of another shape."""
        return cls(*row)._replace(packets=tuple(row[8]), octets=tuple(row[9]))

    @property
    def tls_scope(self) -> bool:
        """A TLS worker terminates it."""
        return self.kept_by == TLS

    def to_json(self, generation: int) -> dict[str, Any]:
        """For ``--json``; what is not known is null or empty."""
        return {
            "proto": events.PROTOCOLS.get(self.protocol, str(self.protocol)),
            "src_ip": events.address(self.client),
            "src_port": self.client_port,
            "dest_ip": events.address(self.server),
            "dest_port": self.server_port,
            "age": None if self.age is None else round(self.age, 1),
            "idle": None if self.idle is None else round(self.idle, 1),
            "pkts_toserver": self.packets[0],
            "pkts_toclient": self.packets[1],
            "bytes_toserver": self.octets[0],
            "bytes_toclient": self.octets[1],
            "true_counts": self.true_counts,
            "app_proto": self.app_proto,
            "sni": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "rule": self.rule,
            "rule_at": self.rule_at,
            "state": self.state,
            "kept_by": self.kept_by,
            "generation": generation,
        }


def named(text: str) -> str:
    """A name from the network, bounded."""
    return text[:_NAME_CHARACTERS]


def where(rule: Any) -> tuple[str, str]:
    """``rule`` and ``rule_at`` of a :class:`engines.verdict.RuleRef` or None."""
    if rule is None:
        return "", ""
    at = f"{rule.file}:{rule.line}" if rule.file else ""
    return f"{rule.engine}:{rule.id}", at[-_AT_CHARACTERS:]

"""The hooks of application protocols, and which of them a transaction has reached.

A side of a transaction goes through its hooks from the first to the last, and each is judged at least once. A hook is
reached when what its rules ask for is complete: ``http1:request_line`` with the end of the line.

Source: Suricata user guide, "Firewall Mode Design", rule hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engines.stateful.app import Transaction
from engines.stateful.app.http_transaction import HttpTransaction
from engines.stateful.app.smtp import SmtpTransaction
from engines.stateful.app.ssh import SshTransaction
from engines.stateful.consolidate import PARSED
from engines.stateful.firewall.tlsphases import PhasedTransaction
from engines.verdict import Direction

_MESSAGE = ("started", "line", "headers", "body", "trailer", "complete")
_STREAM = ("started", "headers", "data", "closed", "complete")
_SSH = ("started", "banner_wait_eol", "banner_done", "finished")


def _both(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(f"request_{name}" for name in names), tuple(f"response_{name}" for name in names)


_ENDS = _both(("started", "complete"))
_OWN: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "http1": _both(_MESSAGE),
    "tls": (
        ("client_in_progress", "client_hello_done", "client_cert_done", "client_handshake_done", "client_finished"),
        (
            "server_in_progress",
            "server_hello",
            "server_cert_done",
            "server_hello_done",
            "server_handshake_done",
            "server_finished",
        ),
    ),
    "ssh": _both(_SSH),
    "smtp": _both(("started", "data", "complete")),
    "http2:stream": _both(_STREAM),
    "http2:global": _ENDS,
    "doh2:stream": _both(_STREAM),
    "doh2:global": _ENDS,
}
_GROUPED = frozenset({"http", "http2", "doh2"})
# Protocol -> its hooks, by direction and in order.
HOOKS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(sorted(PARSED - _GROUPED), _ENDS),
    **_OWN,
}


def find_hook(protocol: str, name: str) -> tuple[Direction, int] | None:
    """Side and place of a hook; the first and the last one of a side go by their general names, too."""
    for side in Direction:
        names = HOOKS[protocol][side]
        if name in names:
            return side, names.index(name)
        for general, place in zip(_ENDS[side], (0, len(names) - 1), strict=True):
            if name == general:
                return side, place
    return None


def table_of(protocol: str, tx: Transaction | None) -> str:
    """The protocol under which :data:`HOOKS` has the hooks of a transaction; ``protocol`` as detected. None: it is not
    parsed."""
    if protocol == "http":
        return "http1"
    if protocol in {"http2", "doh2"}:
        return f"{protocol}:{'stream' if tx is None or tx.tells else 'global'}"
    return protocol


def reached(table: str, tx: Transaction, direction: Direction) -> int:
    """The place of the hook at which that side of a transaction is."""
    known = _REACHED.get(type(tx))
    if known is not None:
        return known(tx, direction)
    return len(hooks_of(table)[direction]) - 1 if tx.is_complete(direction) else 0


def hooks_of(table: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of a protocol; the general ones where it has none of its own."""
    return HOOKS.get(table, _ENDS)


def _http(tx: HttpTransaction, direction: Direction) -> int:
    stream = tx.version == b"HTTP/2"
    if tx.is_complete(direction):
        return len(_STREAM if stream else _MESSAGE) - 1
    if tx.has_begun(direction):
        return _STREAM.index("data") if stream else _MESSAGE.index("body")
    early = direction is Direction.TO_SERVER and tx.line is not None and not stream
    return _MESSAGE.index("line") if early else 0


def _smtp(tx: SmtpTransaction, direction: Direction) -> int:
    return 2 if tx.is_complete(direction) else int(tx.sending)


def _ssh(tx: SshTransaction, direction: Direction) -> int:
    if tx.is_complete(direction):
        return len(_SSH) - 1
    return _SSH.index("banner_done") if tx.proto[direction] else 0


def _tls(tx: PhasedTransaction, direction: Direction) -> int:
    return tx.phases[direction]


_REACHED: Mapping[type, Callable[[Any, Direction], int]] = {
    HttpTransaction: _http,
    SmtpTransaction: _smtp,
    SshTransaction: _ssh,
    PhasedTransaction: _tls,
}

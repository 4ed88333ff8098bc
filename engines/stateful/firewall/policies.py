"""What happens where no firewall rule matched: a policy for each hook.

Source: Suricata user guide, "Firewall Mode Design", default policies (``firewall.policies`` of ``suricata.yaml``). The
most specific one that is set wins: ``app.tls.client-hello-done``, ``app.tls.default-policy``, ``app.default-policy``,
``default-policy``; of packets ``packet.filter``, ``packet.default-policy``, ``default-policy``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from engines.stateful.firewall.hooks import HOOKS, find_hook
from engines.stateful.header import nearest
from engines.verdict import Direction, Verdict


class ActionScope(enum.Enum):
    """What an action of a firewall rule or a default policy is for."""

    HOOK = "hook"  # what comes next is judged by its own rules
    TX = "tx"
    PACKET = "packet"
    FLOW = "flow"


PRE_FLOW, PRE_STREAM, FILTER = "pre_flow", "pre_stream", "filter"
PACKET_TABLES = (PRE_FLOW, PRE_STREAM, FILTER)
# The scopes an action may have, by table; "app" is each hook of an application protocol.
SCOPES: Mapping[str, Mapping[Verdict, frozenset[ActionScope]]] = {
    PRE_FLOW: {
        Verdict.ACCEPT: frozenset({ActionScope.HOOK}),
        Verdict.DROP: frozenset({ActionScope.PACKET}),
        Verdict.REJECT: frozenset({ActionScope.PACKET}),
    },
    PRE_STREAM: {
        Verdict.ACCEPT: frozenset({ActionScope.HOOK}),
        Verdict.DROP: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
        Verdict.REJECT: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
    },
    FILTER: {
        Verdict.ACCEPT: frozenset({ActionScope.HOOK, ActionScope.PACKET, ActionScope.FLOW}),
        Verdict.DROP: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
        Verdict.REJECT: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
    },
    "app": {
        Verdict.ACCEPT: frozenset(ActionScope),
        Verdict.DROP: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
        Verdict.REJECT: frozenset({ActionScope.PACKET, ActionScope.FLOW}),
    },
}


class FirewallAction(NamedTuple):
    """A primary action and what follows it. ``passes``: the ordinary rules are not asked, ``packet`` or ``flow``."""

    verdict: Verdict
    scope: ActionScope
    alert: bool = False
    passes: str = ""


class ActionError(ValueError):
    """Why words are no action of a firewall rule, and what was expected."""


def read_action(text: str, table: str) -> FirewallAction:
    """``accept:hook``, ``drop:flow,alert``, ``accept:flow,pass:flow``: an action in a table. Raises ActionError."""
    first, *others = [word.strip() for word in text.split(",")]
    name, colon, scope = first.partition(":")
    if name not in {verdict.value for verdict in Verdict}:
        raise ActionError(f"unknown firewall action {name!r}; expected accept, drop or reject")
    verdict = Verdict(name)
    allowed = SCOPES[table][verdict]
    known = ", ".join(f"{name}:{each.value}" for each in ActionScope if each in allowed)
    if not colon:
        raise ActionError(f"{name} has no scope; expected {known}")
    if scope not in {each.value for each in allowed}:
        raise ActionError(f"{first} is no action in this place; expected {known}")
    alert, passes = False, ""
    for word in others:
        if word == "alert":
            alert = True
        elif word in {"pass:packet", "pass:flow"}:
            if verdict is not Verdict.ACCEPT:
                raise ActionError(f"{word} follows accept only: what is dropped is not judged any more")
            passes = word.partition(":")[2]
        else:
            raise ActionError(f"unknown second action {word!r}; expected alert, pass:packet or pass:flow")
    return FirewallAction(verdict, ActionScope(scope), alert, passes)


_ACCEPT_HOOK = FirewallAction(Verdict.ACCEPT, ActionScope.HOOK)
_BUILT_IN = {
    PRE_FLOW: _ACCEPT_HOOK,
    PRE_STREAM: _ACCEPT_HOOK,
    FILTER: FirewallAction(Verdict.DROP, ActionScope.PACKET),
    "app": FirewallAction(Verdict.DROP, ActionScope.FLOW),
}
_DEFAULT = "default-policy"


class Policies:
    """``written``: what was set, by name. Raises ActionError for a name that does not exist and an action that does not
    fit its hook."""

    def __init__(self, written: Mapping[str, str] | None = None) -> None:
        written = written or {}
        known = self._names()
        for name in written:
            if name not in known:
                what = f"{name}: there is no such policy{nearest(name, sorted(known))}"
                raise ActionError(f"{what}; expected packet.HOOK, app.PROTOCOL.HOOK or {_DEFAULT}")
        self.packet = {table: self._packet(table, written) for table in PACKET_TABLES}
        self._written = written
        self._app: dict[tuple[str, Direction, int], FirewallAction] = {}
        for protocol in HOOKS:
            for side in Direction:
                for place in range(len(HOOKS[protocol][side])):
                    self.app(protocol, side, place)  # what does not fit is said now

    @staticmethod
    def _names() -> frozenset[str]:
        names = {_DEFAULT, f"packet.{_DEFAULT}", f"app.{_DEFAULT}"}
        names.update(f"packet.{_dashed(table)}" for table in PACKET_TABLES)
        general = ("request_started", "request_complete", "response_started", "response_complete")
        for protocol, sides in HOOKS.items():
            path = "app." + protocol.replace(":", ".")
            names.update({f"{path}.{_DEFAULT}", f"app.{protocol.partition(':')[0]}.{_DEFAULT}"})
            names.update(f"{path}.{_dashed(hook)}" for side in (*sides, general) for hook in side)
        return frozenset(names)

    @staticmethod
    def _packet(table: str, written: Mapping[str, str]) -> FirewallAction:
        for name in (f"packet.{_dashed(table)}", f"packet.{_DEFAULT}", _DEFAULT):
            if name in written:
                return _read(name, written[name], table)
        return _BUILT_IN[table]

    def app(self, protocol: str, side: Direction, place: int) -> FirewallAction:
        """Of a hook by its place; ``protocol`` as in :data:`engines.stateful.firewall.hooks.HOOKS`, or any other."""
        key = (protocol, side, place)
        known = self._app.get(key)
        if known is None:
            known = self._app[key] = self._find(protocol, side, place)
        return known

    def _find(self, protocol: str, side: Direction, place: int) -> FirewallAction:
        written = self._written
        path = "app." + protocol.replace(":", ".")
        for name, text in written.items():
            parent, _, hook = name.rpartition(".")
            if parent == path and protocol in HOOKS and find_hook(protocol, hook.replace("-", "_")) == (side, place):
                return _read(name, text, "app")
        outer = "app." + protocol.partition(":")[0]
        for name in (f"{path}.{_DEFAULT}", f"{outer}.{_DEFAULT}", f"app.{_DEFAULT}", _DEFAULT):
            if name in written:
                return _read(name, written[name], "app")
        return _BUILT_IN["app"]


def _read(name: str, text: str, table: str) -> FirewallAction:
    try:
        return read_action(text, table)
    except ActionError as problem:
        raise ActionError(f"{name}: {problem}") from None


def _dashed(hook: str) -> str:
    return hook.replace("_", "-")

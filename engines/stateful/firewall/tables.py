"""Firewall rules in the order in which they are tried: by table of packets, by hook of an application protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from engines.stateful.defaults import default_signature
from engines.stateful.firewall.policies import PACKET_TABLES, FirewallAction, Policies
from engines.stateful.firewall.rules import FirewallRule
from engines.stateful.firewall.tlsphases import PhasedTlsParser
from engines.stateful.limits import DEFAULT_LIMITS, StatefulLimits
from engines.stateful.prefilter import DatabaseStore
from engines.stateful.ruleset import Rule, RuleSet, compile_ruleset
from engines.stateful.signature import Action, Signature
from engines.verdict import Direction, RuleRef, Verdict


class Entry(NamedTuple):
    """A rule and what matching needs of it."""

    rule: FirewallRule
    compiled: Rule


_ACTIONS = {Verdict.ACCEPT: Action.PASS, Verdict.DROP: Action.DROP, Verdict.REJECT: Action.REJECT}
# What the alerts of default policies are logged as (Suricata: its built-in rules).
_PACKET_SID, _APP_SID = 2201000, 2201001


class FirewallTables:
    """Compiled once, shared by all flows. ``ruleset``: the rules' conditions. ``packet``: rules by table;
    ``app``: by protocol, side and place of the hook."""

    __slots__ = ("app", "packet", "policies", "ruleset")

    def __init__(
        self,
        rules: Iterable[FirewallRule],
        policies: Policies,
        limits: StatefulLimits = DEFAULT_LIMITS,
        store: DatabaseStore | None = None,
    ) -> None:
        self.policies = policies
        ours = [rule for rule in rules if not rule.signature.never_matches]
        self.ruleset: RuleSet = compile_ruleset(
            [rule.signature for rule in ours], "strict", limits=limits, store=store, captures=True
        )
        # Each application protocol has a policy, so each is parsed, and each side of a flow is asked what it speaks.
        self.ruleset.parses_all = True
        self.ruleset.needs_sides = True
        self.ruleset.own_parsers = {"tls": PhasedTlsParser}
        self.packet: Mapping[str, list[Entry]] = {table: [] for table in PACKET_TABLES}
        self.app: dict[tuple[str, Direction, int], list[Entry]] = {}
        for rule, compiled in zip(ours, self.ruleset.rules, strict=True):
            entry = Entry(rule, compiled)
            if rule.hook is None:
                self.packet[rule.table].append(entry)
                continue
            protocol, side, last, before = rule.hook.protocol, rule.hook.side, rule.hook.place, rule.hook.before
            for place in range(0 if before else last, last + 1):
                self.app.setdefault((protocol, side, place), []).append(entry)


def policy_signature(action: FirewallAction, *, app: bool) -> Signature:
    """What the alert of a default policy names as its rule."""
    what = "app" if app else "packet"
    ref = RuleRef("stateful", _APP_SID if app else _PACKET_SID, f"firewall default {what} policy")
    return default_signature(ref, _ACTIONS[action.verdict])

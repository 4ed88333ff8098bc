"""A loaded policy to the structures packets meet. The expensive half of applying one: databases are built here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.flow import FlowTimeouts
from engines.stateful.header import AddressTest, FamilyTest
from engines.stateless.filter import StatelessFilter
from engines.tls.scope import ScopeSet
from nfw.policy.errors import PolicyError, PolicyErrors
from nfw.policy.loader import paused_gc
from nfw.policy.model import Flows, Policy

if TYPE_CHECKING:
    from engines.stateful.limits import StatefulLimits
    from engines.stateful.ruleset import Header, RuleSet
    from nfw.cache import Cache


_LOGGED = {"http": ("http", "http2"), "dns": ("dns",)}  # by EVE's event_type


@dataclass(frozen=True, slots=True)
class Compiled:
    """One policy ready to judge. ``scopes`` is None without TLS inspection. ``changing``: address fields of stateful
    rules whose content may become another (:mod:`nfw.ipsets`)."""

    filter: StatelessFilter
    scopes: ScopeSet | None
    ruleset: RuleSet
    timeouts: FlowTimeouts
    limits: StatefulLimits
    policy: Policy
    changing: tuple[AddressTest, ...] = ()


def compile_policy(policy: Policy, cache: Cache | None = None) -> Compiled:
    """``cache``: where pattern databases built earlier may be found. Raises :class:`PolicyErrors` when one cannot be
    built, naming the policy file."""
    from engines.stateful.limits import DEFAULT_LIMITS
    from engines.stateful.ruleset import compile_ruleset  # loads Hyperscan

    depth = policy.stateful.stream_depth or sys.maxsize  # 0: without end
    limits = dataclasses.replace(DEFAULT_LIMITS, stream_depth=depth)
    try:
        with paused_gc():
            ruleset = compile_ruleset(
                policy.stateful.signatures,
                policy.stateful.order.value,
                policy.stateful.default_actions,
                limits,
                store=cache,
            )
    except ValueError as error:
        raise PolicyErrors([PolicyError(str(policy.file), 0, 0, f"stateful rules do not compile: {error}")]) from error
    ruleset.logs = logged_protocols(policy.log.wanted)
    stateless = policy.stateless
    return Compiled(
        filter=StatelessFilter(
            stateless.rules,
            stateless.default,
            stateless.default_counters,
            fragments=stateless.fragments,
            fragments_counters=stateless.fragments_counters,
        ),
        scopes=ScopeSet(
            [*policy.tls.scopes, *(scope for inbound in policy.inspected_inbound for scope in inbound.scopes)]
        )
        if policy.tls is not None
        else None,
        ruleset=ruleset,
        timeouts=flow_timeouts(policy.flows),
        limits=limits,
        policy=policy,
        changing=_changing(ruleset.headers),
    )


def _changing(headers: Iterable[Header]) -> tuple[AddressTest, ...]:
    found: dict[AddressTest, None] = {}
    for header in headers:
        for test in (header.source, header.destination):
            inner = test.inner if isinstance(test, FamilyTest) else test
            if isinstance(inner, AddressTest) and inner.variables is not None:
                found[inner] = None
    return tuple(found)


def logged_protocols(events: Collection[str]) -> frozenset[str]:
    """Application protocols whose transactions the log wants."""
    return frozenset(name for event, names in _LOGGED.items() if event in events for name in names)


def flow_timeouts(flows: Flows) -> FlowTimeouts:
    return FlowTimeouts(
        tcp_idle=flows.tcp_idle, tcp_opening=flows.tcp_opening, udp=flows.udp, icmp=flows.icmp, other=flows.other
    )

"""The part of a policy that concerns this machine alone, for which AWS has no fields.

Beside AWS documents it comes from the ``settings`` of a map file, with the keys it has in a policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nfw.policy.errors import Problems
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.model import (
    DEFAULT_VARIABLES,
    LOG_EVENTS,
    Distrust,
    Flows,
    Log,
    Mode,
    OpenFlows,
    OpenFlowsOf,
    Policy,
    Refusal,
    Revocation,
    Stateful,
    TlsAction,
    TlsKeywords,
    Transparency,
    Trust,
    Variables,
    WhenFull,
    WithoutSni,
)
from nfw.policy.read_log import read_log
from nfw.policy.read_stateful import FILE_KEYS, RuleFiles, read_refresh, read_rule_files
from nfw.policy.read_tls import (
    FETCHING_KEYS,
    PASSING_KEYS,
    read_actions,
    read_distrust,
    read_fetching,
    read_passing,
    read_scope_trust,
    read_transparency,
    read_trust,
)
from nfw.policy.variables import read_own_variables
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar

if TYPE_CHECKING:
    from nfw.policy.aws.firewall_policy import Logging

KEYS = ("mode", "variables", "tls", "stateful", "open_flows", "flows", "fail_open", "workers", "log")
FLOWS_KEYS = ("max_flows", "tcp_idle", "tcp_opening", "udp", "icmp", "other", "when_full")
TLS_KEYS = (
    "trust",
    "scope_trust",
    "on_failure",
    "keywords",
    "actions",
    "distrust",
    "fetch_issuers",
    "resumption",
    "revocation",
    "without_sni",
    "transparency",
    *PASSING_KEYS,
)
MAX_WORKERS = 64  # queues of one generation; a router with more cores than that is not this program's
MAX_FLOWS = 1 << 24
MAX_TIMEOUT = 86_400  # seconds; a longer idle flow is better forgotten


@dataclass(frozen=True, slots=True)
class Settings:
    """None where nothing was said."""

    variables: Variables | None = None
    trust: Trust | None = None
    scope_trust: tuple[tuple[Node, int, Trust], ...] = ()  # by number of the scope, from 1
    on_failure: Refusal | None = None
    keywords: TlsKeywords | None = None
    actions: tuple[tuple[str, TlsAction], ...] | None = None
    distrust: Distrust = field(default_factory=Distrust)
    fetch_issuers: bool = False
    resumption: bool = True
    passing: dict[str, Any] = field(default_factory=dict)  # fields of Tls: what is not decrypted
    without_sni: WithoutSni = WithoutSni.REFUSE
    transparency: Transparency = field(default_factory=Transparency)
    revocation: Revocation = field(default_factory=Revocation)  # AWS has what to do, not how it is found out
    stream_depth: int | None = None
    refresh: int = Stateful().refresh
    rule_files: RuleFiles = field(default_factory=RuleFiles)
    open_flows: OpenFlows = field(default_factory=OpenFlows)
    flows: Flows = field(default_factory=Flows)
    mode: Mode = Mode.ENFORCE
    fail_open: bool = False
    workers: int | Literal["auto"] = "auto"
    log: Log = field(default_factory=Log)
    log_events: bool = False  # whether the log's events were chosen

    def applied(self, policy: Policy, tcp_idle: int | None, logging: Logging | None) -> Policy:
        """``policy`` with these settings. What AWS documents say of idle time and events goes before; their log
        destinations come to the sinks."""
        tls, stateful = policy.tls, policy.stateful
        if tls is not None:
            own = {number: trust for _, number, trust in self.scope_trust}
            tls = replace(
                tls,
                trust=self.trust or tls.trust,
                scope_trust=tuple(own.get(number) for number in range(1, len(tls.scopes) + 1)) if own else (),
                on_failure=self.on_failure or tls.on_failure,
                keywords=self.keywords or tls.keywords,
                actions=tls.actions if self.actions is None else self.actions,
                distrust=self.distrust,
                fetch_issuers=self.fetch_issuers,
                resumption=self.resumption,
                **self.passing,
                without_sni=self.without_sni,
                transparency=self.transparency,
                revocation=replace(
                    tls.revocation,
                    allow=self.revocation.allow,
                    cache=self.revocation.cache,
                    recheck=self.revocation.recheck,
                ),
            )
        if self.stream_depth is not None:
            stateful = replace(stateful, stream_depth=self.stream_depth)
        stateful = replace(stateful, refresh=self.refresh)
        flows = self.flows if tcp_idle is None else replace(self.flows, tcp_idle=tcp_idle)
        log = self.log
        if logging is not None:
            if not self.log_events:
                log = replace(log, events=tuple(event for event in LOG_EVENTS if event in logging.events))
            log = replace(log, sinks=(*log.sinks, *(sink for sink in logging.sinks if sink not in log.sinks)))
        return replace(
            policy,
            tls=tls,
            stateful=stateful,
            open_flows=self.open_flows,
            flows=flows,
            mode=self.mode,
            fail_open=self.fail_open,
            workers=self.workers,
            log=log,
        )


def read_settings(node: Node | None, base: Path, problems: Problems) -> Settings:
    """``base``: where relative paths start."""
    if node is None:
        return Settings()
    section = open_section(node, "settings", KEYS, "{open_flows: {which: all, action: drop}}", problems)
    if section is None:
        return Settings()
    section.where = ""
    tls = section.section("tls", TLS_KEYS, "{on_failure: reject}")
    revocation = tls.section("revocation", FETCHING_KEYS, "{allow: [10.0.0.0/8]}") if tls is not None else None
    stateful = section.section("stateful", ("stream_depth", "refresh", *FILE_KEYS), "{stream_depth: 1mb}")
    log = section.get("log")
    return Settings(
        variables=_read_variables(section) if "variables" in section else None,
        trust=read_trust(tls, base) if tls is not None and "trust" in tls else None,
        scope_trust=read_scope_trust(tls, base) if tls is not None else (),
        on_failure=tls.choice("on_failure", Refusal.REJECT) if tls is not None and "on_failure" in tls else None,
        keywords=tls.choice("keywords", TlsKeywords.ALL) if tls is not None and "keywords" in tls else None,
        actions=read_actions(tls) if tls is not None and "actions" in tls else None,
        distrust=read_distrust(tls, base) if tls is not None else Distrust(),
        fetch_issuers=tls.flag("fetch_issuers", False) if tls is not None else False,
        resumption=tls.flag("resumption", True) if tls is not None else True,
        passing=_read_passing(tls, base) if tls is not None else {},
        without_sni=tls.choice("without_sni", WithoutSni.REFUSE) if tls is not None else WithoutSni.REFUSE,
        transparency=read_transparency(tls, base) if tls is not None else Transparency(),
        revocation=Revocation(**read_fetching(revocation, DEFAULT_VARIABLES, base))
        if revocation is not None
        else Revocation(),
        rule_files=read_rule_files(stateful, base) if stateful is not None else RuleFiles(),
        stream_depth=stateful.size("stream_depth", Stateful().stream_depth, 0, 1 << 32)
        if stateful is not None
        else None,
        refresh=read_refresh(stateful) if stateful is not None else Stateful().refresh,
        open_flows=read_open_flows(section),
        flows=read_flows(section),
        mode=section.choice("mode", Mode.ENFORCE),
        fail_open=section.flag("fail_open", False),
        workers=read_workers(section),
        log=read_log(section, base),
        log_events=isinstance(log, MappingNode) and any(key.text == "events" for key, _ in log.entries),
    )


def _read_variables(section: Section) -> Variables:
    return read_own_variables(section.get("variables"), DEFAULT_VARIABLES, section.problems)


def _read_passing(tls: Section, base: Path) -> dict[str, Any]:
    found = read_passing(tls, DEFAULT_VARIABLES, base)
    if "quic" not in tls:  # is as the documents have it
        del found["quic"]
    return found


def read_open_flows(section: Section) -> OpenFlows:
    part = section.section("open_flows", ("which", "action"), "{which: all, action: drop}")
    if part is None:
        return OpenFlows()
    return OpenFlows(part.choice("which", OpenFlowsOf.ALL), part.choice("action", Refusal.DROP))


def read_flows(section: Section) -> Flows:
    part = section.section("flows", FLOWS_KEYS, "{max_flows: 100000, tcp_idle: 350}")
    default = Flows()
    if part is None:
        return default
    return Flows(
        max_flows=part.integer("max_flows", 16, MAX_FLOWS, default.max_flows),
        tcp_idle=part.integer("tcp_idle", 60, 6000, default.tcp_idle),
        tcp_opening=part.integer("tcp_opening", 1, MAX_TIMEOUT, default.tcp_opening),
        udp=part.integer("udp", 1, MAX_TIMEOUT, default.udp),
        icmp=part.integer("icmp", 1, MAX_TIMEOUT, default.icmp),
        other=part.integer("other", 1, MAX_TIMEOUT, default.other),
        when_full=part.choice("when_full", WhenFull.EVICT_OLDEST),
    )


def read_workers(section: Section) -> int | Literal["auto"]:
    node = section.get("workers")
    if node is None or (isinstance(node, Scalar) and node.value == "auto"):
        return "auto"
    if isinstance(node, Scalar) and type(node.value) is int and 1 <= node.value <= MAX_WORKERS:
        return node.value
    section.error(node, f"workers: expected auto or a number from 1 to {MAX_WORKERS}, got {describe(node)}")
    return "auto"

"""The text of firewall rules -> values, or errors that say where and what was expected.

A rule is an ordinary one with an action that has a scope and a protocol that has a hook::

    accept:hook,alert tls:client_hello_done $HOME_NET any -> any any (tls.sni; content:"example.com"; sid:1;)

It becomes a :class:`Signature` for its conditions, and beside it what to do and where. Source: Suricata user guide,
"Firewall Mode Design".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engines.stateful.consolidate import consolidate
from engines.stateful.firewall.hooks import HOOKS, find_hook
from engines.stateful.firewall.policies import (
    FILTER,
    PRE_FLOW,
    PRE_STREAM,
    ActionError,
    FirewallAction,
    read_action,
)
from engines.stateful.header import (
    APP_PROTOCOLS,
    FLOW_START,
    NETWORK_PROTOCOLS,
    HeaderError,
    HeaderParser,
    Variables,
    nearest,
)
from engines.stateful.keywords.base import KeywordError
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.parser import (
    MAX_RULE_SIZE,
    RuleSyntaxError,
    RuleText,
    apply_option,
    check_requires,
    parse_each,
    split_header,
    split_options,
)
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig
from engines.stateful.signature import AppProtocolTest, RuleError, Signature, XbitOp
from engines.verdict import Direction, Verdict

_PACKET_HOOKS = {"all": FILTER, FLOW_START: FILTER, PRE_FLOW: PRE_FLOW, PRE_STREAM: PRE_STREAM}
# The ordinary action whose rules have the keywords that the rules with a firewall action may have.
_ORDINARY = {Verdict.ACCEPT: "pass", Verdict.DROP: "drop", Verdict.REJECT: "reject"}
# What a packet before its flow does not have.
_NEEDS_FLOW = ("flow", "flowbits", "flowint", "app-layer-protocol", "stream_size", "tcp.session")


@dataclass(frozen=True, slots=True)
class AppHook:
    """``protocol``: as in :data:`HOOKS`; ``place``: of the hook on that side; ``before``: the hooks before it are
    accepted, too (``tls:<client_hello_done``)."""

    protocol: str
    side: Direction
    place: int
    before: bool


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """``table``: of packets; ``hook``: of an application protocol, then there is no table. ``speaks``: what the side
    of the packet must speak. ``bypass``: nothing looks at the flow after a match. The bits are on the transaction."""

    signature: Signature
    action: FirewallAction
    table: str
    hook: AppHook | None
    speaks: tuple[AppProtocolTest, ...] = ()
    bypass: bool = False
    bit_checks: tuple[XbitOp, ...] = ()
    bit_sets: tuple[XbitOp, ...] = ()


@dataclass(slots=True)
class ParsedFirewallRules:
    """``skipped``: rules whose ``requires`` is not met; no errors."""

    rules: list[FirewallRule] = field(default_factory=list)
    errors: list[RuleError] = field(default_factory=list)
    warnings: list[RuleError] = field(default_factory=list)
    skipped: list[RuleError] = field(default_factory=list)


def parse_firewall_rules(
    text: str,
    file: str,
    variables: Variables,
    *,
    config: RuleConfig = DEFAULT_CONFIG,
    known_sids: set[tuple[int, int]] | None = None,
) -> ParsedFirewallRules:
    """Parses a file of firewall rules. ``known_sids`` holds (gid, sid) of what was read before and is added to. Never
    raises; one bad rule never stops the others."""
    found = ParsedFirewallRules()
    headers = HeaderParser(variables)
    known = known_sids if known_sids is not None else set()
    parse = functools.partial(_parse_rule, file=file, headers=headers, config=config)
    found.rules.extend(parse_each(text, file, parse, lambda made: made.signature.ref, known, found))
    return found


def _parse_rule(
    rule: RuleText, file: str, headers: HeaderParser, config: RuleConfig
) -> tuple[FirewallRule, Sequence[str]]:
    text, warnings = rule.text, []
    if len(text) > MAX_RULE_SIZE:
        raise RuleSyntaxError(f"the rule has {len(text)} characters, more than {MAX_RULE_SIZE}", 0)
    opening = text.find("(")
    if opening < 0:
        raise RuleSyntaxError("expected ( and the options after the header", len(text))
    if text.rstrip().endswith(";"):
        # Suricata takes such a rule; an accept that is missing would be noticed, a drop that is missing not.
        text = text.rstrip() + ")"
        warnings.append("the ) at the end of the rule is missing")
    options = split_options(text, opening)
    for option in options:
        if option.name == "requires":
            check_requires(option)
    fields = split_header(text[:opening])
    if len(fields) > 7:
        raise RuleSyntaxError(f"expected ( after the destination port, found {fields[7][0]!r}", fields[7][1])
    words = [word for word, _ in fields]
    if len(words) < 2:
        raise RuleSyntaxError("expected an action with its scope and a protocol with its hook", 0)
    table, hook, protocol = _place(words[1], fields[1][1])
    try:
        action = read_action(words[0], table if hook is None else "app")
    except ActionError as problem:
        raise RuleSyntaxError(str(problem), fields[0][1]) from None
    try:
        header = headers.parse([_ORDINARY[action.verdict], protocol, *words[2:]])
    except HeaderError as problem:
        at = fields[problem.index][1] if problem.index < len(fields) else 0
        raise RuleSyntaxError(str(problem), at) from None
    draft = RuleDraft(header, config)
    names = {option.name for option in options}
    for option in options:
        if option.name == "replace":
            raise RuleSyntaxError("replace has no place in firewall mode", option.name_at)
        if table == PRE_FLOW and option.name in _NEEDS_FLOW:
            raise RuleSyntaxError(f"{option.name}: a packet has no flow at {PRE_FLOW}", option.name_at)
        if option.name != "alert":  # ours, see below; an ordinary drop warns of it
            apply_option(option, draft)
    if hook is not None and draft.direction is None:
        draft.direction = hook.side
    if hook is not None and draft.direction is not hook.side:
        raise RuleSyntaxError(f"{words[1]} is not on the side that flow asks for", fields[1][1])
    try:
        signature = consolidate(draft, rule.text, file, rule.line)
    except KeywordError as problem:
        raise RuleSyntaxError(str(problem), opening) from None
    if hook is None and signature.buffers and any(match.buffer != "payload" for match in signature.buffers):
        raise RuleSyntaxError(
            f"{words[1]} sees packets; {signature.buffers[0].buffer} needs the hook of an application protocol",
            fields[1][1],
        )
    made = FirewallRule(
        signature=replace(
            signature,
            app_layer_protocols=(),
            xbit_checks=tuple(op for op in signature.xbit_checks if op.track != "tx"),
            xbit_sets=tuple(op for op in signature.xbit_sets if op.track != "tx"),
        ),
        action=action._replace(alert=(action.alert or "alert" in names) and not draft.noalert),
        table=table,
        hook=hook,
        speaks=signature.app_layer_protocols,
        bypass="bypass" in names,
        bit_checks=tuple(op for op in signature.xbit_checks if op.track == "tx"),
        bit_sets=tuple(op for op in signature.xbit_sets if op.track == "tx"),
    )
    if hook is None and (made.bit_checks or made.bit_sets):
        raise RuleSyntaxError("xbits: a packet has no transaction to keep them on", opening)
    return made, [*warnings, *draft.warnings]


def _place(text: str, at: int) -> tuple[str, AppHook | None, str]:
    """(table of packets or "", hook, the protocol as an ordinary rule has it) of a protocol with its hook."""
    name, colon, hook = text.partition(":")
    name = name.lower()
    if name in NETWORK_PROTOCOLS:
        if not colon:
            raise RuleSyntaxError(f"{name} has no hook; expected {', '.join(f'{name}:{h}' for h in _PACKET_HOOKS)}", at)
        if hook not in _PACKET_HOOKS:
            known = ", ".join(f"{name}:{h}" for h in _PACKET_HOOKS)
            raise RuleSyntaxError(f"unknown hook {text}{nearest(hook, tuple(_PACKET_HOOKS))}; expected {known}", at)
        return _PACKET_HOOKS[hook], None, f"{name}:{hook}" if hook == FLOW_START else name
    group, _, rest = hook.partition(":")
    protocol = f"{name}:{group}" if rest else name
    hook = rest or hook
    before = hook.startswith("<")
    hook = hook.removeprefix("<")
    if protocol not in HOOKS:
        raise RuleSyntaxError(_no_hooks(name, protocol), at)
    found = find_hook(protocol, hook) if hook else None
    if found is None:
        known = ", ".join(each for side in HOOKS[protocol] for each in side)
        what = f"unknown hook {hook} of {protocol}" if hook else f"{protocol} has no hook"
        raise RuleSyntaxError(f"{what}; expected one of {known}", at)
    return "", AppHook(protocol, *found, before), name


def _no_hooks(name: str, protocol: str) -> str:
    groups = [known for known in HOOKS if known.startswith(f"{name}:")]
    if groups:
        return f"{protocol} has no hooks; expected {' or '.join(groups)}, each followed by a hook"
    if name == "http":
        return "http has no hooks; expected http1 or http2:stream"
    if name in APP_PROTOCOLS:
        return f"there is no parser for {name}, so it has no hooks"
    known = (*NETWORK_PROTOCOLS, *(each for each in HOOKS if ":" not in each))
    return f"unknown protocol {name!r}{nearest(name, known)}"

"""Stateful rules that never decide, never match, or end what they are not meant to end."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Sequence

from engines.stateful.header import LINK_PROTOCOLS
from engines.stateful.ruleset import covered_protocols, in_order
from engines.stateful.signature import Action, RuleType, Signature
from engines.stateful.tlsfacts import NAME_BUFFERS, SESSION_BUFFERS
from engines.verdict import Direction
from nfw.policy.check.contents import contradiction, is_raw_tls, regexes, too_broad
from nfw.policy.check.regions import TCP, UDP, Lookup, Region, lookup_of, region_of_scope, regions_of_signature
from nfw.policy.check.stateless import tell_undecided
from nfw.policy.errors import Level, PolicyError
from nfw.policy.model import Policy, TlsKeywords

Tell = Callable[[PolicyError], None]
_DENIES = frozenset({Action.DROP, Action.REJECT})
_NAMED = 3  # rules named in a message
# Registered for protocols within TLS (IANA): what is on them is not in the clear.
_TLS_PORTS = frozenset({443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 8443, 8883})
# Protocols a TLS session may carry and a rule can only see in the clear.
_INSIDE_TLS = frozenset({"http", "http1", "http2", "smtp", "ftp", "sip"})


def check_stateful(policy: Policy, tell: Tell) -> None:
    rules = in_order(policy.stateful.signatures, policy.stateful.order.value)
    regions = {id(rule): regions_of_signature(rule) for rule in rules}
    impossible = _check_possible(policy, rules, regions, tell)
    rules = [rule for rule in rules if id(rule) not in impossible]
    _check_flowbits(rules, tell)
    _check_reached(rules, regions, tell)
    _check_hellos(policy, rules, regions, tell)
    _check_scopes(policy, rules, regions, tell)
    for rule in rules:
        _check_regexes(rule, tell)
    _check_sids(policy, tell)


def _warning(rule: Signature, message: str, remedy: str, code: str) -> PolicyError:
    message = f"rule with sid {rule.sid} {message}"
    return PolicyError(rule.ref.file, rule.ref.line, 0, message, Level.WARNING, code, remedy)


# -- rules that cannot match ---------------------------------------------------------------------------------------


def _check_possible(
    policy: Policy, rules: Sequence[Signature], regions: dict[int, tuple[Region, ...]], tell: Tell
) -> set[int]:
    """The ``id`` of those that no traffic can match."""
    holding = policy.tls is not None and policy.tls.session_holding
    found: set[int] = set()
    for rule in rules:
        reason, remedy = "", ""
        if rule.protocol in LINK_PROTOCOLS:
            continue
        if not regions[id(rule)]:
            if (rule.source_port or rule.destination_port) and {TCP, UDP}.isdisjoint(rule.ip_protocols or {TCP}):
                reason, remedy = f"{rule.protocol} has no ports", "write any for the ports"
            else:
                reason = "its source and its destination have no address family in common"
                remedy = "give both addresses of the same family"
        elif rule.flow.established is False and rule.rule_type is RuleType.APP_TX and rule.ip_protocols == {TCP}:
            if not holding:  # then the hello is judged before the connection to the server is there
                message = (
                    f"matches nothing of {rule.app_proto or 'an application'} but what comes before the connection is "
                    "established, with the SYN (TCP Fast Open)"
                )
                tell(_warning(rule, message, "leave out flow:not_established", "stateful-never"))
        else:
            reason = next(filter(None, map(contradiction, rule.buffers)), "")
            remedy = "leave out one of the two"
        if reason:
            found.add(id(rule))
            tell(_warning(rule, f"never matches: {reason}", remedy, "stateful-never"))
    return found


def _check_flowbits(rules: Sequence[Signature], tell: Tell) -> None:
    known = {name for rule in rules for op in rule.flowbit_sets if op.op in ("set", "toggle") for name in op.names}
    for rule in rules:
        for op in rule.flowbit_checks:
            if op.op == "isset" and known.isdisjoint(op.names):
                bits = " or ".join(op.names)
                message = f"never matches: no rule of the policy sets the flowbit {bits} it waits for"
                tell(_warning(rule, message, "load the rules that set it too, or remove this one", "flowbit-never-set"))
                break


# -- rules that are never reached ----------------------------------------------------------------------------------

# What of a flow a covering rule is about: direction, established, application protocol.
_Key = tuple[Direction | None, bool | None, str]


class _Covers:
    """Rules that decide by their header and the state of the flow alone, by that state, each with its place in the
    order of all rules."""

    def __init__(self, rules: Sequence[Signature], regions: dict[int, tuple[Region, ...]]) -> None:
        self._by_key: dict[_Key, list[int]] = {}
        self._rules, self._regions = rules, regions
        self._lookups: dict[tuple[frozenset[_Key], _Ending], tuple[Lookup, list[int]]] = {}
        for place, rule in enumerate(rules):
            if _decides_by_header(rule):
                key = (rule.flow.direction, rule.flow.established, rule.app_proto)
                self._by_key.setdefault(key, []).append(place)

    def of(self, place: int) -> list[int] | None:
        """Places of the rules that together decide, before the rule at ``place``, all it could decide."""
        rule = self._rules[place]
        keys = frozenset(key for key in self._by_key if _implied(key, rule))
        if not keys:
            return None
        lookup, places = self._lookup(keys, _what_ends(rule))
        before = bisect_left(places, place)
        if not before:
            return None
        used: set[int] = set()
        for region in self._regions[id(rule)]:
            covering = lookup.covering(region, before)
            if covering is None:
                return None
            used |= covering
        return sorted({places[each] for each in used})

    def lookups(self) -> list[Lookup]:
        return [lookup for lookup, _ in self._lookups.values()]

    def _lookup(self, keys: frozenset[_Key], ending: _Ending) -> tuple[Lookup, list[int]]:
        known = self._lookups.get((keys, ending))
        if known is None:
            regions: list[Region] = []
            places: list[int] = []
            for place in sorted(place for key in keys for place in self._by_key[key]):
                rule = self._rules[place]
                if rule.action is not Action.PASS:
                    of_packets = rule.rule_type is RuleType.PKT
                    if ending is _Ending.PASS or (of_packets and ending is _Ending.FLOW):
                        continue
                for region in self._regions[id(rule)]:
                    regions.append(region)
                    places.append(place)
            known = self._lookups[keys, ending] = lookup_of(regions), places
        return known


class _Ending(enum.Enum):
    """Which decisions leave nothing to a later rule."""

    ANY = enum.auto()
    FLOW = enum.auto()  # a pass, or an end of the whole flow
    PASS = enum.auto()


def _what_ends(rule: Signature) -> _Ending:
    """After a drop other rules may still log, and one that ends the flow counts behind one that drops a packet."""
    if rule.action is Action.ALERT:
        return _Ending.PASS
    return _Ending.ANY if rule.action is Action.PASS or rule.rule_type is RuleType.PKT else _Ending.FLOW


def _check_reached(rules: Sequence[Signature], regions: dict[int, tuple[Region, ...]], tell: Tell) -> None:
    covers = _Covers(rules, regions)
    for place, rule in enumerate(rules):
        if rule.packet_events or rule.flow.stateless or rule.protocol in LINK_PROTOCOLS:
            continue
        before = covers.of(place)
        if before is None:
            continue
        others = [rules[each] for each in before]
        same = {other.action for other in others} == {rule.action}
        what = "matches" if rule.action is Action.ALERT else "decides"
        if rule.flow.established is None and any(other.flow.established for other in others):
            what += ", but for data sent before the connection is established (TCP Fast Open)"
        listed = ", ".join(_place(other, rule) for other in others[:_NAMED])
        listed += f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        does = " or ".join(sorted({other.action.value for other in others}))
        tell(
            _warning(
                rule,
                f"never {what}: what it is about is decided before, by {does} of {listed}",
                "remove it" if same else "move it before, or make the other one narrower",
                "stateful-shadowed",
            )
        )
    for lookup in covers.lookups():
        tell_undecided(lookup, "stateful", rules[0].ref.file, tell)


def _place(other: Signature, rule: Signature) -> str:
    at = f"line {other.ref.line}" if other.ref.file == rule.ref.file else f"{other.ref.file}:{other.ref.line}"
    return f"sid {other.sid} ({at})"


def _decides_by_header(rule: Signature) -> bool:
    """Whether the rule decides about every packet of its header, protocol and state of the flow."""
    conditions = (
        rule.buffers,
        rule.packet_tests,
        rule.flowbit_checks,
        rule.app_events,
        rule.app_layer_protocols,
        rule.xbit_checks,
        rule.stream_sizes,
        rule.packet_events,
        [op for op in rule.flowints if not op.changes],
    )
    return (
        rule.action is not Action.ALERT
        and not any(conditions)
        and rule.countries is None
        and rule.threshold is None
        and rule.detection_filter is None
        and rule.rate_filter is None
        and not (rule.flow.stateless or rule.flow.only_stream or rule.flow.no_stream or rule.transactional)
        and rule.rule_type in (RuleType.IP_ONLY, RuleType.LIKE_IP_ONLY, RuleType.APP_LAYER, RuleType.PKT)
        and rule.protocol not in {"tcp-pkt", "tcp-stream"} | LINK_PROTOCOLS
    )


def _implied(key: _Key, rule: Signature) -> bool:
    """Whether all that ``rule`` can match is of flows in that state."""
    direction, established, app_proto = key
    if app_proto and not (rule.app_proto and covered_protocols(rule.app_proto) <= covered_protocols(app_proto)):
        return False
    if direction is not None and direction is not rule.direction:
        return False
    if established is None or established is rule.flow.established:
        return True
    data = rule.rule_type in (RuleType.APP_TX, RuleType.STREAM, RuleType.APP_LAYER)
    return established and rule.flow.established is None and data and rule.ip_protocols == {TCP}


# -- ClientHellos in several packets -------------------------------------------------------------------------------


def _check_hellos(
    policy: Policy, rules: Sequence[Signature], regions: dict[int, tuple[Region, ...]], tell: Tell
) -> None:
    """A drop that is judged before the ClientHello is complete ends the flow whatever rules on the name would say.

    Post-quantum key shares made hellos longer than a packet. AWS Network Firewall's generated rules carry
    ``ssl_state:client_hello`` for that.
    """
    passes: dict[tuple[int, ...], Region] = {}  # one for each header: there are thousands of names on few of them
    first: Signature | None = None
    for rule in rules:
        if rule.action is Action.PASS and rule.app_proto == "tls" and rule.buffers:
            first = first or rule
            header = (rule.source, rule.source_port, rule.destination, rule.destination_port)
            for number, region in enumerate(regions[id(rule)]):
                passes[(number, *map(id, header))] = region
        elif passes and _ends_unfinished(rule):
            if not any(mine.overlaps(theirs) for mine in regions[id(rule)] for theirs in passes.values()):
                continue
            assert first is not None
            tell(
                _warning(
                    rule,
                    "drops TLS before its ClientHello is complete: one that comes in several packets is dropped "
                    f"before sid {first.sid} (line {first.ref.line}), or another rule on its content, can pass it",
                    "add ssl_state:client_hello to this rule",
                    "tls-split-hello",
                )
            )
    if first is not None and "drop_established" in policy.stateful.default_actions:
        tell(
            PolicyError(
                str(policy.file),
                0,
                0,
                "the default action drop_established drops a TLS ClientHello that is not complete in time, "
                f"before sid {first.sid} or another rule on its content can pass it",
                Level.WARNING,
                "tls-split-hello",
                "use drop_established_app_layer_to_server, which waits",
            )
        )


def _ends_unfinished(rule: Signature) -> bool:
    if rule.action not in _DENIES or rule.direction is Direction.TO_CLIENT or rule.buffers or rule.app_events:
        return False
    if rule.packet_tests or rule.flowbit_checks or rule.detection_filter is not None or rule.countries is not None:
        return False
    if any("tls" in test.names and not test.negated for test in rule.app_layer_protocols):
        return True
    if rule.app_layer_protocols or (rule.ip_protocols and TCP not in rule.ip_protocols):
        return False
    if rule.app_proto == "tls":
        return rule.flow.established is not False
    return not rule.app_proto and rule.flow.established is True


# -- TLS scopes ----------------------------------------------------------------------------------------------------


def _check_scopes(
    policy: Policy, rules: Sequence[Signature], regions: dict[int, tuple[Region, ...]], tell: Tell
) -> None:
    tls = policy.tls
    scopes = [region_of_scope(scope) for scope in tls.scopes] if tls is not None else []
    within = [*scopes, *(region_of_scope(scope) for inbound in policy.inbound for scope in inbound.scopes)]
    if tls is not None and tls.bypass:
        scopes = []  # some of what is in a scope stays as it is: nothing can be said of all of it
    lookup = lookup_of(scopes)
    seen = SESSION_BUFFERS if tls is None or tls.keywords is TlsKeywords.ALL else NAME_BUFFERS

    def decrypted(rule: Signature) -> bool:
        return all(lookup.covering(region, len(scopes)) is not None for region in regions[id(rule)])

    for rule in rules:
        if not regions[id(rule)]:
            continue
        unseen = [bm.buffer for bm in rule.buffers if not bm.absent and bm.buffer not in seen]
        if scopes and rule.app_proto == "tls" and unseen and decrypted(rule):
            remedy = "narrow the scope, or look at what is inside"
            if tls is not None and tls.keywords is TlsKeywords.SNI and SESSION_BUFFERS.issuperset(unseen):
                remedy = "set tls.keywords: all"
            message = f"never matches: a TLS scope decrypts all its traffic, and rules see no {unseen[0]} there"
            tell(_warning(rule, message, remedy, "tls-scope-hides"))
        elif scopes and any(map(is_raw_tls, rule.buffers)) and not rule.app_proto and decrypted(rule):
            message = "never matches: it looks for a TLS record, and a TLS scope decrypts all its traffic"
            tell(_warning(rule, message, "look at what is inside, or narrow the scope", "tls-scope-hides"))
        elif rule.app_proto in _INSIDE_TLS and _on_tls_ports(rule):
            if any(mine.overlaps(scope) for mine in regions[id(rule)] for scope in within):
                continue
            message = (
                f"looks at {rule.app_proto} on ports of TLS that no TLS scope decrypts: it sees what is not encrypted"
            )
            tell(_warning(rule, message, "add a TLS scope, or use tls.sni", "tls-scope-hides"))


def _on_tls_ports(rule: Signature) -> bool:
    ports = getattr(rule.destination_port, "ranges", ())
    numbers = [number for low, high in ports for number in range(low, min(high, low + len(_TLS_PORTS)) + 1)]
    return bool(numbers) and _TLS_PORTS.issuperset(numbers)


# -- expressions and sids ------------------------------------------------------------------------------------------


def _check_regexes(rule: Signature, tell: Tell) -> None:
    for regex in regexes(rule.buffers):
        if not regex.negated and too_broad(regex):
            message = f"has a pcre that matches everything: {_short(regex.text)}"
            tell(_warning(rule, message, "say what it must find, or leave it out", "broad-regex"))
            return
    if rule.fast_pattern is None and any(bm.buffer == "payload" for bm in rule.buffers) and regexes(rule.buffers):
        message = "has a pcre and no content to be found first: it is tried on all data"
        tell(_warning(rule, message, "add a content the data must hold", "broad-regex"))


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _check_sids(policy: Policy, tell: Tell) -> None:
    """Within a group that is an error; in two, as AWS has it, log records do not tell one rule from the other."""
    written = {number for number, group in enumerate(policy.stateful.groups, 1) if group.domains is None}
    names = [group.name for group in policy.stateful.groups]
    first: dict[int, Signature] = {}
    told: dict[tuple[int, int], tuple[Signature, Signature, int]] = {}
    for rule in policy.stateful.signatures:
        if rule.ref.gid not in written:
            continue
        other = first.setdefault(rule.sid, rule)
        if other is not rule and other.ref.gid != rule.ref.gid:
            pair = other.ref.gid, rule.ref.gid
            known = told.get(pair)
            told[pair] = (known[0], known[1], known[2] + 1) if known is not None else (rule, other, 0)
    for (one, two), (rule, other, more) in told.items():
        others = f", and {more} more of its rules the same way" if more else ""
        message = f"of group {names[two - 1]} has the sid of {_place(other, rule)} of group {names[one - 1]}{others}"
        tell(
            _warning(rule, message, "give every rule a sid of its own, for records to tell them apart", "duplicate-sid")
        )

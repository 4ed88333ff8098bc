"""What changes for which traffic when one policy takes another's place. Both may be written in any form.

Rules are paired by what they are about, not by where they stand: stateless ones by what they match, stateful ones by
group and sid. A rule that only stands elsewhere is no change, unless it has passed one that would have decided
otherwise about the same traffic. The time taken grows with the number of rules (sorting aside).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, TypeVar

from engines.stateful.signature import Action, Signature
from engines.stateless.rule import StatelessRule
from engines.tls.scope import TlsScope
from nfw.policy.dump import format_rule, format_scope
from nfw.policy.model import Flows, InboundTls, Log, Policy, RuleOrder, RuleSource, Tls, Trust, Variables

Value = str | tuple[str, ...]  # one, or a set of them
Rule = TypeVar("Rule", StatelessRule, Signature)

# Comparisons of a moved rule with those it has passed. Beyond them it counts as one that matters.
_MOVES_COMPARED: Final = 2_000_000
_NETWORKS_COMPARED: Final = 4096
_NAME = re.compile(r"[$@]([A-Za-z_][A-Za-z0-9_]*)")
# What a rule says to people: none of it decides about traffic.
_WORDS = re.compile(r'(?:msg|rev|metadata|reference|classtype)\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^;"])*;\s*')
_CERTIFICATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----.*?-----END [A-Z0-9 ]*CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RuleChange:
    """``kind``: added, removed, changed or moved. ``rule``: as it is in the new policy (removed: was in the old one);
    ``was``: before it was changed; ``at``: ``file:line``; ``what``: what is different, in words."""

    kind: str
    rule: str
    at: str
    what: str = ""
    was: str = ""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """``old`` and ``new``: values, None where the policy has none; sets of values have ``added`` and ``removed``
    instead. ``rules``: how many of the new policy's stateful rules use the variable."""

    name: str
    old: str | None = None
    new: str | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rules: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    settings: tuple[SettingChange, ...] = ()
    stateless: tuple[RuleChange, ...] = ()
    stateful: tuple[RuleChange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.settings or self.stateless or self.stateful)

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": not self,
            "settings": [
                {
                    "name": one.name,
                    **({"old": one.old, "new": one.new} if not (one.added or one.removed) else {}),
                    **({"added": list(one.added), "removed": list(one.removed)} if one.added or one.removed else {}),
                    **({"rules": one.rules} if one.rules is not None else {}),
                }
                for one in self.settings
            ],
            **{
                name: _rules_json(found) for name, found in (("stateless", self.stateless), ("stateful", self.stateful))
            },
        }

    def lines(self) -> list[str]:
        """For people; nothing when the policies are equal in effect."""
        found = []
        if self.settings:
            found.append("settings")
            for one in self.settings:
                found += [f"  {line}" for line in _setting_lines(one)]
        for name, changes in (("stateless rules", self.stateless), ("stateful rules", self.stateful)):
            if changes:
                counts = Counter(change.kind for change in changes)
                kinds = ", ".join(f"{counts[kind]} {kind}" for kind in _SIGNS if counts[kind])
                found.append(f"{name}: {kinds}")
                for change in changes:
                    found += [f"  {line}" for line in _rule_lines(change)]
        return found


_SIGNS = {"added": "+", "removed": "-", "changed": "~", "moved": ">"}


def diff_policies(
    old: Policy, new: Policy, old_files: Mapping[str, str] | None = None, new_files: Mapping[str, str] | None = None
) -> PolicyDiff:
    """What is different in ``new``. The files are those the policies were read from (path -> hash), for what rules take
    from files without naming it (lists of hashes, countries)."""
    return PolicyDiff(
        settings=(*_settings(old, new), *_files(old, new, old_files or {}, new_files or {})),
        stateless=tuple(_stateless(old, new)),
        stateful=tuple(_stateful(old, new)),
    )


# -- rules -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Paired(Generic[Rule]):
    """``pairs``: (place in the old policy, place in the new one), by the new one."""

    pairs: list[tuple[int, int]]
    removed: list[int]
    added: list[int]


def _pair(old: Sequence[Rule], new: Sequence[Rule], keys: Sequence[Callable[[bool, Rule], Hashable]]) -> _Paired[Rule]:
    """Pair rules whose first key is equal, then the others by the second, and so on; in order where several are. A key
    is made of (whether the rule is the new policy's, the rule); None: it has none."""
    pairs: list[tuple[int, int]] = []
    removed, added = list(range(len(old))), list(range(len(new)))
    for key in keys:
        waiting: dict[Hashable, deque[int]] = {}
        for index in removed:
            waiting.setdefault(key(False, old[index]), deque()).append(index)
        waiting.pop(None, None)
        left = []
        for index in added:
            found = waiting.get(key(True, new[index]))
            if found:
                pairs.append((found.popleft(), index))
            else:
                left.append(index)
        taken = {before for before, _ in pairs}
        removed, added = [index for index in removed if index not in taken], left
    pairs.sort(key=lambda pair: pair[1])
    return _Paired(pairs, removed, added)


def _moved(paired: _Paired[Rule], rules: Sequence[Rule], matters: Callable[[Rule, Rule], bool]) -> set[int]:
    """Places in the new policy of those that have passed one they matter to."""
    places = [before for before, _ in paired.pairs]
    kept = _longest_rise(places)
    moved: set[int] = set()
    budget = _MOVES_COMPARED
    for at, (before, after) in enumerate(paired.pairs):
        if at in kept:
            continue
        for other, (other_before, other_after) in enumerate(paired.pairs):
            budget -= 1
            if budget < 0:
                moved.add(after)
                break
            passed = (other_before < before) != (other < at) and other != at
            if passed and matters(rules[after], rules[other_after]):
                moved.add(after)
                break
    return moved


def _longest_rise(numbers: Sequence[int]) -> set[int]:
    """Indexes of a longest subsequence that rises: what can be said to have stayed where it was."""
    if all(first < second for first, second in itertools.pairwise(numbers)):
        return set(range(len(numbers)))
    tails: list[int] = []  # the smallest number that ends a rise of each length
    ends: list[int] = []  # and where it is
    before: list[int] = []
    for index, number in enumerate(numbers):
        length = bisect_left(tails, number)
        if length == len(tails):
            tails.append(number)
            ends.append(index)
        else:
            tails[length], ends[length] = number, index
        before.append(ends[length - 1] if length else -1)
    rise = set()
    index = ends[-1] if ends else -1
    while index >= 0:
        rise.add(index)
        index = before[index]
    return rise


def _stateless(old: Policy, new: Policy) -> list[RuleChange]:
    before, after = old.stateless.rules, new.stateless.rules

    def full(_: bool, rule: StatelessRule) -> Hashable:
        return _match(rule), rule.action, rule.counters

    def match(_: bool, rule: StatelessRule) -> Hashable:
        return _match(rule)

    def place(_: bool, rule: StatelessRule) -> Hashable:
        return rule.name or (rule.group, rule.priority)

    paired = _pair(before, after, (full, match, place))
    moved = _moved(paired, after, _stateless_matters)
    was = {b: a for a, b in paired.pairs}
    found: list[RuleChange] = []
    for index, rule in enumerate(after):
        at = f"{rule.file}:{rule.line}" if rule.file else ""
        if index not in was:
            found.append(RuleChange("added", format_rule(rule), at))
            continue
        former = before[was[index]]
        what = []
        if former.action is not rule.action:
            what.append(f"action {former.action.value} -> {rule.action.value}")
        if _match(former) != _match(rule):
            what.append("what it matches")
        if former.counters != rule.counters:
            what.append("counters")
        if index in moved:
            what.append(f"place {was[index] + 1} -> {index + 1}")
        if what:
            kind = "moved" if what[0].startswith("place") else "changed"
            written = format_rule(former) if kind == "changed" else ""
            found.append(RuleChange(kind, format_rule(rule), at, ", ".join(what), written))
    for index in paired.removed:
        rule = before[index]
        found.append(RuleChange("removed", format_rule(rule), f"{rule.file}:{rule.line}" if rule.file else ""))
    return found


def _match(rule: StatelessRule) -> Hashable:
    parts = (rule.protocols, rule.sources, rule.destinations, rule.source_ports, rule.destination_ports, rule.tcp_flags)
    return tuple(frozenset(part) for part in parts)


def _stateless_matters(one: StatelessRule, other: StatelessRule) -> bool:
    return (
        one.action is not other.action
        and (not one.protocols or not other.protocols or not set(one.protocols).isdisjoint(other.protocols))
        and _ports_meet(one.source_ports, other.source_ports)
        and _ports_meet(one.destination_ports, other.destination_ports)
        and _networks_meet(one.sources, other.sources)
        and _networks_meet(one.destinations, other.destinations)
    )


def _ports_meet(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    if not one or not other:
        return True
    return any(low <= high2 and low2 <= high for low, high in one for low2, high2 in other)


def _networks_meet(one: Sequence[Any], other: Sequence[Any]) -> bool:
    if not one or not other or len(one) * len(other) > _NETWORKS_COMPARED:
        return True
    return any(a.version == b.version and a.overlaps(b) for a in one for b in other)


def _stateful(old: Policy, new: Policy) -> list[RuleChange]:
    before, after = old.stateful.signatures, new.stateful.signatures

    def named(is_new: bool, rule: Signature) -> Hashable:
        return (
            _group_of(new if is_new else old, rule),
            rule.ref.gid if not _groups(new if is_new else old) else 0,
            rule.sid,
        )

    def written(_: bool, rule: Signature) -> Hashable:
        return _normal(rule.text)

    paired = _pair(before, after, (named, written))
    ordered = old.stateful.order is new.stateful.order is RuleOrder.STRICT
    moved = _moved(paired, after, _stateful_matters) if ordered else set()
    was = {b: a for a, b in paired.pairs}
    found: list[RuleChange] = []
    for index, rule in enumerate(after):
        at = f"{rule.ref.file}:{rule.ref.line}" if rule.ref.file else ""
        if index not in was:
            found.append(RuleChange("added", rule.text, at))
            continue
        former = before[was[index]]
        what = _changed(former, rule)
        if index in moved:
            what.append(f"place {was[index] + 1} -> {index + 1}")
        if what:
            kind = "moved" if what[0].startswith("place") else "changed"
            found.append(RuleChange(kind, rule.text, at, ", ".join(what), former.text if kind == "changed" else ""))
    for index in paired.removed:
        rule = before[index]
        found.append(RuleChange("removed", rule.text, f"{rule.ref.file}:{rule.ref.line}" if rule.ref.file else ""))
    return found


def _groups(policy: Policy) -> bool:
    return bool(policy.stateful.groups)


def _group_of(policy: Policy, rule: Signature) -> str:
    """The group's place is the gid of its rules (:func:`nfw.policy.read_stateful.parse_groups`)."""
    groups = policy.stateful.groups
    return groups[rule.ref.gid - 1].name if 0 < rule.ref.gid <= len(groups) else ""


def _changed(old: Signature, new: Signature) -> list[str]:
    what = []
    if old.action is not new.action:
        what.append(f"action {old.action.value} -> {new.action.value}")
    if old.text != new.text:
        one, two = (_body(rule.text) for rule in (old, new))
        if _WORDS.sub("", one).replace("; )", ";)") != _WORDS.sub("", two).replace("; )", ";)"):
            what.append("what it matches")
        elif one != two:
            what.append("description")
    if old.priority != new.priority:
        what.append(f"priority {old.priority} -> {new.priority}")
    return what


def _normal(text: str) -> str:
    return " ".join(text.split())


def _body(text: str) -> str:
    """A rule without its action."""
    return _normal(text).partition(" ")[2]


def _stateful_matters(one: Signature, other: Signature) -> bool:
    if one.action is other.action:
        return False
    # Alerts in front of or behind a drop are written either way; a pass silences what is behind it.
    if Action.ALERT in (one.action, other.action) and Action.PASS not in (one.action, other.action):
        return False
    return not one.ip_protocols or not other.ip_protocols or not one.ip_protocols.isdisjoint(other.ip_protocols)


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(old: Policy, new: Policy) -> list[SettingChange]:
    before, after = _flat(old), _flat(new)
    used: Counter[str] | None = None
    found = []
    for name in dict.fromkeys((*before, *after)):
        one, two = before.get(name), after.get(name)
        if one == two or (isinstance(one, tuple) and isinstance(two, tuple) and set(one) == set(two)):
            continue
        rules = None
        if name.startswith("variables."):
            used = used if used is not None else _uses(new.stateful.signatures)
            rules = used[name.removeprefix("variables.").rpartition(":")[2]]
        if isinstance(one, str) or isinstance(two, str):
            found.append(SettingChange(name, _one(one), _one(two), rules=rules))
        else:
            gone, come = one or (), two or ()
            added = tuple(item for item in come if item not in set(gone))
            removed = tuple(item for item in gone if item not in set(come))
            found.append(SettingChange(name, added=added, removed=removed, rules=rules))
    return found


def _one(value: Value | None) -> str | None:
    return ", ".join(value) if isinstance(value, tuple) else value


def _flat(policy: Policy) -> dict[str, Value]:
    """Every setting by its name in a policy."""
    stateless, stateful = policy.stateless, policy.stateful
    found: dict[str, Value] = {"mode": policy.mode.value}
    found |= _variables("variables.", policy.variables)
    for group in stateful.groups:
        found |= _variables(f"variables.{group.name}:", group.variables)
        found |= {f"variables.{group.name}:@{name}": one.networks for name, one in group.references.items()}
    found |= {
        "stateless.default": stateless.default.value,
        "stateless.default_counters": stateless.default_counters,
        "stateless.fragments": stateless.fragments.value,
        "stateless.fragments_counters": stateless.fragments_counters,
        "stateful.order": stateful.order.value,
        "stateful.default_actions": stateful.default_actions,
        "stateful.stream_exception": stateful.stream_exception.value,
        "stateful.stream_depth": str(stateful.stream_depth),
        "stateful.refresh": str(stateful.refresh),
        "stateful.geoip": str(stateful.geoip or "none"),
        "stateful.threshold_file": _entries(stateful.threshold_file),
        "stateful.classification_file": _entries(stateful.classification_file),
        "stateful.reference_file": _entries(stateful.reference_file),
        "tls": "off" if policy.tls is None else "on",
    }
    found |= _tls(policy.tls) if policy.tls is not None else {}
    found["inbound"] = tuple(_inbound(part, scope) for part in policy.inbound for scope in part.scopes)
    found |= {
        "open_flows.which": policy.open_flows.which.value,
        "open_flows.action": policy.open_flows.action.value,
        **{f"flows.{one.name}": str(getattr(policy.flows, one.name)) for one in fields(Flows)},
        "fail_open": str(policy.fail_open).lower(),
        "workers": str(policy.workers),
    }
    for one in fields(Log):
        value = getattr(policy.log, one.name)
        found[f"log.{one.name}"] = tuple(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


def _variables(prefix: str, variables: Variables) -> dict[str, Value]:
    return {f"{prefix}{name}": items for part in (variables.addresses, variables.ports) for name, items in part.items()}


def _uses(signatures: Iterable[Signature]) -> Counter[str]:
    """How many rules name each variable (with its ``@`` where it is a reference's)."""
    found: Counter[str] = Counter()
    for signature in signatures:
        header = signature.text.partition("(")[0]
        found.update({match[1] if match[0][0] == "$" else match[0] for match in _NAME.finditer(header)})
    return found


def _roots(trust: Trust) -> tuple[str, ...]:
    return (*(("system",) if trust.system else ()), *_certificates(trust.pem))


def _tls(tls: Tls) -> dict[str, Value]:
    revocation = tls.revocation
    return {
        "tls.ca": _fingerprint(tls.ca.certificate_pem),
        "tls.trust": _roots(tls.trust),
        "tls.distrust": (*tls.distrust.keys, *_certificates(tls.distrust.pem)),
        "tls.scopes": tuple(
            format_scope(scope, *(f"trust: [{', '.join(_roots(own))}]" for own in (trust,) if own is not None))
            for scope, trust in zip(tls.scopes, tls.scope_trust or (None,) * len(tls.scopes), strict=True)
        ),
        "tls.on_failure": tls.on_failure.value,
        "tls.actions": tuple(f"{name}: {action.value}" for name, action in tls.actions),
        "tls.bypass": tuple(f"{', '.join(one.names)} {format_scope(one.scope)}" for one in tls.bypass),
        "tls.bypass_proof": tuple(proof.value for proof in tls.bypass_proof),
        "tls.resolvers": tls.resolvers,
        "tls.keywords": tls.keywords.value,
        "tls.session_holding": str(tls.session_holding).lower(),
        "tls.fetch_issuers": str(tls.fetch_issuers).lower(),
        "tls.resumption": str(tls.resumption).lower(),
        "tls.revocation.check": str(revocation.check).lower(),
        "tls.revocation.revoked": revocation.revoked.value,
        "tls.revocation.unknown": revocation.unknown.value,
        "tls.revocation.recheck": str(revocation.recheck).lower(),
        "tls.quic": tls.quic.value,
        "tls.strip_ech": str(tls.strip_ech).lower(),
        "tls.inbound_upstream": tls.inbound_upstream.value,
        "tls.debug": str(tls.debug or "off"),
        "tls.without_sni": tls.without_sni.value,
        "tls.transparency.require": str(tls.transparency.require).lower(),
        "tls.transparency.logs": tuple(map(str, tls.transparency.logs)),
        "tls.revocation.allow": tuple(map(str, revocation.allow)),
    }


def _inbound(part: InboundTls, scope: TlsScope) -> str:
    shown = (_fingerprint(one.certificate_pem) if one.certificate_pem else one.arn for one in part.certificates)
    return f"{', '.join(shown)} for {format_scope(scope)}"


def _certificates(pem: bytes) -> tuple[str, ...]:
    return tuple(map(_fingerprint, _CERTIFICATE.findall(pem)))


def _fingerprint(pem: bytes) -> str:
    """Of a certificate, as other tools write it; of the text where it is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from engines.tls.malformed import MALFORMED

    try:
        return "sha256:" + x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    except MALFORMED:
        return "text:" + hashlib.sha256(pem).hexdigest()


def _entries(source: RuleSource | None) -> tuple[str, ...]:
    """Lines of a configuration file that say something."""
    if source is None:
        return ()
    lines = (_normal(line) for line in source.text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _files(old: Policy, new: Policy, before: Mapping[str, str], after: Mapping[str, str]) -> list[SettingChange]:
    """Files that both were read from, with another content, of which the policy itself has no trace."""
    if not before or not after:
        return []
    known = {source.file for policy in (old, new) for source in _sources(policy)}
    return [
        SettingChange("content of a file", path, path)
        for path in sorted(set(before) & set(after))
        if before[path] != after[path]
        and path not in known
        and not path.endswith(("/", ".pem", ".crt", ".json", ".yaml", ".yml", ".template"))
    ]


def _sources(policy: Policy) -> list[RuleSource]:
    stateful = policy.stateful
    beside = (stateful.threshold_file, stateful.classification_file, stateful.reference_file)
    groups = (source for group in stateful.groups for source in group.sources)
    return [*stateful.sources, *groups, *(source for source in beside if source is not None)]


# -- text --------------------------------------------------------------------------------------------------------------


def _rules_json(changes: Iterable[RuleChange]) -> list[dict[str, str]]:
    return [
        {
            "change": one.kind,
            "rule": one.rule,
            "at": one.at,
            **({"what": one.what} if one.what else {}),
            **({"was": one.was} if one.was else {}),
        }
        for one in changes
    ]


def _setting_lines(one: SettingChange) -> list[str]:
    used = f" (used by {one.rules} rule{'s' if one.rules != 1 else ''})" if one.rules is not None else ""
    if not one.added and not one.removed:
        if one.old == one.new:
            return [f"{one.name}: {one.new}"]
        return [f"{one.name}: {one.old or 'none'} -> {one.new or 'none'}{used}"]
    return [
        f"{one.name}{used}",
        *(f"  + {_normal(item)}" for item in one.added),
        *(f"  - {_normal(item)}" for item in one.removed),
    ]


def _rule_lines(change: RuleChange) -> list[str]:
    at = f"  [{change.at}]" if change.at else ""
    if change.kind in ("added", "removed"):
        return [f"{_SIGNS[change.kind]} {_normal(change.rule)}{at}"]
    head = f"{_SIGNS[change.kind]} {change.what}{at}"
    if change.kind == "moved" or change.was == change.rule:
        return [head, f"    {_normal(change.rule)}"]
    return [head, f"    - {_normal(change.was)}", f"    + {_normal(change.rule)}"]

"""``FirewallPolicy`` with everything it refers to, to a :class:`nfw.policy.model.Policy`'s parts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engines.stateless.rule import StatelessAction, StatelessRule
from nfw.cache import Cache
from nfw.policy.aws.documents import FIREWALL, LOGGING, RULE_GROUP, TLS, Document, entry, text_of
from nfw.policy.aws.fields import Fields, clip, open_fields
from nfw.policy.aws.mapfile import MapFile
from nfw.policy.aws.metadata import read_own
from nfw.policy.aws.rule_group import (
    ORDER_NAMES,
    ORDERS,
    Reference,
    group_order,
    is_stateless,
    read_actions,
    read_custom_actions,
    read_definition,
    read_stateful_group,
    read_stateless_group,
    report_cycles,
)
from nfw.policy.aws.tls import read_tls_configuration
from nfw.policy.capacity import MAX_CAPACITY
from nfw.policy.errors import PolicyError, Problems, suggest
from nfw.policy.files import read_bounded
from nfw.policy.model import (
    DEFAULT_VARIABLES,
    LOG_EVENTS,
    InboundTls,
    RuleOrder,
    RuleSource,
    Sink,
    Stateful,
    StatefulGroup,
    Stateless,
    StatelessGroup,
    StreamException,
    Tls,
    Variables,
)
from nfw.policy.read_stateful import MAX_RULE_FILE_BYTES, decode_rules, with_signatures
from nfw.policy.settings import Settings
from nfw.policy.values import parse_address_item
from nfw.policy.yamlpos import Scalar

POLICY_FIELDS = (
    "StatelessRuleGroupReferences",
    "StatelessDefaultActions",
    "StatelessFragmentDefaultActions",
    "StatelessCustomActions",
    "StatefulRuleGroupReferences",
    "StatefulDefaultActions",
    "StatefulEngineOptions",
    "TLSInspectionConfigurationArn",
    "PolicyVariables",
    "EnableTLSSessionHolding",
)
STREAM_EXCEPTIONS = {
    "DROP": StreamException.DROP,
    "REJECT": StreamException.REJECT,
    "CONTINUE": StreamException.CONTINUE,
}
MAX_REFERENCES = 20  # of each kind
MAX_PRIORITY = 65535
# Type of destination -> what its name is called.
DESTINATIONS = {"S3": "bucketName", "CloudWatchLogs": "logGroup", "KinesisDataFirehose": "deliveryStream"}
# What a rule is refused for when a variable is not what it should be.
_OF_VARIABLES = re.compile(r" variable [$@]\w+ is not defined|variables or lists are nested")
LOG_TYPES: dict[str, tuple[str, ...]] = {"ALERT": ("alert", "drop"), "FLOW": ("flow",), "TLS": ("tls",)}


@dataclass(slots=True)
class Parts:
    """What the documents say; the rest of a policy has no field in AWS."""

    name: str
    arn: str = ""
    variables: Variables = DEFAULT_VARIABLES
    stateless: Stateless = field(default_factory=Stateless)
    tls: Tls | None = None
    inbound: tuple[InboundTls, ...] = ()
    stateful: Stateful = field(default_factory=Stateful)
    tcp_idle: int | None = None
    events: tuple[str, ...] | None = None


class PolicyReader:
    """One policy among ``documents``."""

    def __init__(
        self,
        document: Document,
        documents: Iterable[Document],
        known: MapFile,
        settings: Settings,
        problems: Problems,
        *,
        check_key: bool,
        now: float,
    ) -> None:
        self.document = document
        self.documents = list(documents)
        self.known = known
        self.settings = settings
        self.problems = problems  # for what stands in files that are no documents
        self.check_key, self.now = check_key, now
        self.ungrouped: set[str] = set()  # names of groups that stand for rules in none

    def read(self) -> Parts:
        own = read_own(self.document)
        parts = Parts(own.name or self.document.name, own.arn or self.document.arn)
        if self.document.body is None:
            self.document.problems.error(
                self.document.place,
                "FirewallPolicy: only its description is here; expected the object of that name too",
            )
            return parts
        policy = open_fields(self.document.body, "FirewallPolicy", POLICY_FIELDS, self.document.problems)
        if policy is None:
            return parts
        parts.variables = self._variables(policy)
        parts.stateless = self._stateless(policy)
        parts.stateful, parts.tcp_idle = self._stateful(policy, parts.variables)
        parts.tls, parts.inbound = self._tls(policy, parts.stateful)
        return parts

    # -- references ------------------------------------------------------------------------------------------------

    def _find(self, fields: Fields, kind: str) -> Document | None:
        """The document a ResourceArn means; None after saying that there is none."""
        arn = fields.string("ResourceArn")
        if not arn:
            fields.missing("ResourceArn", "the ARN of a rule group")
            return None
        found = [each for each in self.documents if each.kind == RULE_GROUP and each.is_named(arn)]
        exact = [each for each in found if arn in (each.arn, each.logical_id)]
        segment = arn.rpartition(":")[2].partition("/")[0]
        if not exact and segment in ("stateless-rulegroup", "stateful-rulegroup"):
            found = [each for each in found if is_stateless(each) == (segment == "stateless-rulegroup")]
        chosen = next(iter(exact or found), None)
        if len(exact or found) > 1:
            files = " and ".join(f"{each.file}:{each.place.line}" for each in (exact or found)[:2])
            fields.error(
                fields.get("ResourceArn"),
                f"rule group ARN is ambiguous, parameter: [{arn}]; it means both {files}",
                code="duplicate",
            )
            return None
        wrong = f"{'stateful' if kind == 'Stateless' else 'stateless'}-rulegroup"
        if segment == wrong or (chosen is not None and is_stateless(chosen) != (kind == "Stateless")):
            fields.error(
                fields.get("ResourceArn"),
                f"rule group ARN is of incorrect entity type, parameter: [{arn}]; expected a {kind.lower()} rule group",
                code="wrong-kind",
            )
            return None
        return chosen

    def _absent(self, fields: Fields, arn: str) -> None:
        near = [each.arn or each.logical_id or each.name for each in self.documents if each.kind == RULE_GROUP]
        hint = suggest(arn, near, nothing="given: {}" if near else "no rule group is given")
        fields.error(
            fields.get("ResourceArn"),
            f"rule group ARN does not exist, parameter: [{arn}]; expected its RuleGroup among the documents ({hint})",
            code="missing-reference",
        )

    def _references(self, policy: Fields, key: str, known: tuple[str, ...]) -> list[Fields]:
        entries = policy.objects(key, known)
        if len(entries) > MAX_REFERENCES:
            policy.problems.aws_refuses(
                policy.key(key), f"{key} limit exceeded, parameter: [{len(entries)}], context: {key}"
            )
        priorities: dict[int, int] = {}
        arns: dict[str, int] = {}
        for fields in entries:
            node, priority = fields.get("Priority"), fields.number("Priority", 1, MAX_PRIORITY)
            if priority is not None and node is not None:
                if priority in priorities:
                    fields.error(
                        node,
                        f"Priority has duplicate values, parameter: [{priority}], context: {key}[Priority={priority}]; "
                        f"expected one that the reference on line {priorities[priority]} does not have",
                        code="duplicate",
                    )
                priorities.setdefault(priority, node.line)
            arn_node = fields.get("ResourceArn")
            if isinstance(arn_node, Scalar):
                if arn_node.text in arns:
                    fields.error(
                        arn_node,
                        f"ResourceArn has duplicate values, parameter: [{clip(arn_node.text)}], context: {key}; "
                        f"it is already on line {arns[arn_node.text]}",
                        code="duplicate",
                    )
                arns.setdefault(arn_node.text, arn_node.line)
        return entries

    def _note(self, document: Document, name: str) -> None:
        if read_own(document).ungrouped:
            self.ungrouped.add(name)

    # -- stateless -------------------------------------------------------------------------------------------------

    def _stateless(self, policy: Fields) -> Stateless:
        groups: list[StatelessGroup] = []
        rules: list[StatelessRule] = []
        key = "StatelessRuleGroupReferences"
        for fields in self._references(policy, key, ("ResourceArn", "Priority")):
            if "Priority" not in fields:
                fields.error(
                    None, f"Priority cannot be null, context: {key}; expected a number from 1 to {MAX_PRIORITY}"
                )
            document = self._find(fields, "Stateless")
            arn = fields.string("ResourceArn")
            if document is None:
                if arn and not _complained(fields):
                    self._absent(fields, arn)
                continue
            if document.body is None:
                self._absent(fields, arn)
                continue
            node = fields.get("Priority")
            priority = node.value if isinstance(node, Scalar) and isinstance(node.value, int) else 0
            found = read_stateless_group(document, Reference(priority, arn=document.arn))
            if found is not None:
                groups.append(found[0])
                rules += found[1]
                self._note(document, found[0].name)
        total = sum(group.capacity or 0 for group in groups)
        if total > MAX_CAPACITY:
            policy.problems.aws_refuses(
                policy.key(key), f"{key} capacity exceeded, parameter: [{total}], context: {key}"
            )
        if groups and all(name in self.ungrouped for name in (group.name for group in groups)):
            groups = []
            rules = [replace(rule, group="", group_priority=0) for rule in rules]
        counters = read_custom_actions(policy, "StatelessCustomActions", "StatelessCustomActions")
        default, default_counters = self._default(policy, "StatelessDefaultActions", counters)
        fragments, fragments_counters = self._default(policy, "StatelessFragmentDefaultActions", counters)
        return Stateless(
            rules=tuple(sorted(rules, key=lambda rule: rule.rank)),
            groups=tuple(sorted(groups, key=lambda group: group.priority)),
            default=default,
            default_counters=default_counters,
            fragments=fragments,
            fragments_counters=fragments_counters,
        )

    def _default(self, policy: Fields, key: str, counters: dict[str, str]) -> tuple[StatelessAction, tuple[str, ...]]:
        action, counted = read_actions(policy, key, counters, key)
        return action or StatelessAction.DROP, counted

    # -- stateful --------------------------------------------------------------------------------------------------

    def _stateful(self, policy: Fields, variables: Variables) -> tuple[Stateful, int | None]:
        options = policy.object_of("StatefulEngineOptions", ("RuleOrder", "StreamExceptionPolicy", "FlowTimeouts"))
        order, exception, idle = RuleOrder.ACTION, StreamException.DROP, None
        if options is not None:
            order = options.enumerated("RuleOrder", ORDERS, RuleOrder.ACTION)
            exception = options.enumerated("StreamExceptionPolicy", STREAM_EXCEPTIONS, StreamException.DROP)
            timeouts = options.object_of("FlowTimeouts", ("TcpIdleTimeoutSeconds",))
            idle = timeouts.number("TcpIdleTimeoutSeconds", 60, 6000) if timeouts is not None else None
        groups: list[StatefulGroup] = []
        key = "StatefulRuleGroupReferences"
        known = ("ResourceArn", "Priority", "Override", "DeepThreatInspection")
        for index, fields in enumerate(self._references(policy, key, known)):
            group = self._stateful_group(fields, f"{key}[{index}]", order, variables)
            if group is not None:
                groups.append(group)
        if order is RuleOrder.STRICT:
            groups.sort(key=lambda group: group.priority)
        sources: tuple[RuleSource, ...] = ()
        if groups and all(group.name in self.ungrouped for group in groups):
            sources = tuple(source for group in groups for source in group.sources)
            groups = []
        stateful = Stateful(
            order=order,
            default_actions=self._default_actions(policy, order),
            stream_exception=exception,
            sources=sources,
            groups=tuple(groups),
        )
        return stateful, idle

    def parse(self, stateful: Stateful, variables: Variables, cache: Cache | None, *, whole: bool) -> Stateful:
        """``stateful`` with its rules parsed. Unless what surrounds them is ``whole``, a variable that they lack may be
        one that was refused, and how it was is enough."""
        found = Problems(self.problems.file)
        parsed = with_signatures(stateful, self.settings.rule_files, variables, found, cache, _in_words_of_aws)
        if not whole:
            found.errors[:] = [error for error in found.errors if not _OF_VARIABLES.search(error.message)]
            found.warnings.clear()
        self.problems.merge(found)
        return parsed

    def _stateful_group(
        self, fields: Fields, context: str, order: RuleOrder, variables: Variables
    ) -> StatefulGroup | None:
        if order is RuleOrder.STRICT and "Priority" not in fields:
            fields.error(
                None,
                f"Priority cannot be null, context: {context}; expected one in each reference of a STRICT_ORDER policy",
            )
        if order is RuleOrder.ACTION and "Priority" in fields:
            fields.error(
                fields.key("Priority"),
                f"Priority cannot be provided, context: {context}; expected it in STRICT_ORDER policies only",
                code="order-clash",
            )
        arn = fields.string("ResourceArn")
        managed = ":aws-managed:" in arn
        override = fields.object_of("Override", ("Action",))
        to_alert = False
        if override is not None:
            to_alert = override.enumerated("Action", {"DROP_TO_ALERT": True}, False)
            if not managed:
                fields.problems.aws_refuses(
                    fields.key("Override"), f"rule group must be a managed resource, context: {context}.Override"
                )
        node = fields.get("Priority")
        strict = order is RuleOrder.STRICT
        priority = node.value if strict and isinstance(node, Scalar) and isinstance(node.value, int) else 0
        before = len(fields.problems.errors)
        document = self._find(fields, "Stateful")
        if len(fields.problems.errors) != before:
            return None
        if document is None or document.body is None:
            if managed or (document is not None and ":aws-managed:" in document.arn):
                return self._managed(fields, document.arn if document else arn, priority, to_alert, order)
            self._absent(fields, arn)
            return None
        if group_order(document) not in (order, None):
            fields.error(
                fields.get("ResourceArn"),
                f"ResourceArn has invalid rule order, context: {context}.ResourceArn; the policy is "
                f"{ORDER_NAMES[order]}, the group {document.name} is not: expected the same in StatefulRuleOptions",
                code="order-clash",
            )
        reference = Reference(priority, to_alert, document.arn or (arn if managed else ""))
        group = read_stateful_group(document, reference, order, variables, self.known)
        if group is not None:
            self._note(document, group.name)
        return group

    def _managed(
        self, fields: Fields, arn: str, priority: int, to_alert: bool, order: RuleOrder
    ) -> StatefulGroup | None:
        """A group whose rules AWS keeps to itself: those of the map file, or none."""
        name = arn.rpartition("/")[2]
        other = "ActionOrder" if order is RuleOrder.STRICT else "StrictOrder"
        if name.endswith(other):
            fields.error(
                fields.get("ResourceArn"),
                f"ResourceArn has invalid rule order, parameter: [{name}]; the policy has {ORDER_NAMES[order]}: "
                f"expected {name.removesuffix(other)}{'StrictOrder' if other == 'ActionOrder' else 'ActionOrder'}",
                code="order-clash",
            )
        files = self.known.rule_groups.get(arn, self.known.rule_groups.get(name))
        if files is None:
            fields.error(
                fields.get("ResourceArn"),
                f"the rules of the managed rule group {name} are not in the documents; expected them in the map file "
                f"(--map), rule_groups: {{{name}: [{name}.rules]}}, or {{{name}: skip}} to do without",
                code="missing-reference",
            )
            return None
        if not files:
            fields.problems.warning(fields.get("ResourceArn"), f"managed rule group {name} is skipped: it has no rules")
        sources = []
        for path in files:
            try:
                text = decode_rules(read_bounded(path, MAX_RULE_FILE_BYTES), str(path), self.problems)
            except OSError as error:
                self.problems.add(PolicyError(str(path), 0, 0, f"rule file {error.strerror}", code="missing-reference"))
                continue
            if text is not None:
                sources.append(RuleSource(str(path), text))
        return StatefulGroup(name=name, priority=priority, arn=arn, drop_to_alert=to_alert, sources=tuple(sources))

    def _default_actions(self, policy: Fields, order: RuleOrder) -> tuple[str, ...]:
        from engines.stateful.defaults import NAMES, check_default_actions

        key = "StatefulDefaultActions"
        nodes = policy.strings(key)
        known = [f"aws:{name}" for name in NAMES]
        for node in nodes:
            if node.text not in known:
                policy.error(
                    node,
                    f"{key} is invalid, parameter: [{clip(node.text)}], context: {key}; {suggest(node.text, known)}",
                )
        nodes = [node for node in nodes if node.text in known]
        if nodes and order is RuleOrder.ACTION:
            policy.error(
                policy.key(key),
                f"{key} has invalid rule order, parameter: [DEFAULT_ACTION_ORDER], context: {key}; "
                "expected RuleOrder STRICT_ORDER in StatefulEngineOptions",
                code="order-clash",
            )
        names = [node.text.removeprefix("aws:") for node in nodes]
        for complaint in check_default_actions(names):
            given = ", ".join(node.text for node in nodes)
            policy.error(
                policy.key(key),
                f"{key} cannot exist together, parameter: [{given}], context: {key}; {complaint}",
                code="default-actions",
            )
        return tuple(names)

    # -- variables, TLS --------------------------------------------------------------------------------------------

    def _variables(self, policy: Fields) -> Variables:
        addresses = dict(DEFAULT_VARIABLES.addresses)
        ports: dict[str, tuple[str, ...]] = {}
        if self.settings.variables is not None:
            addresses |= self.settings.variables.addresses
            ports |= self.settings.variables.ports
        if self.known.home_net:
            addresses["HOME_NET"] = self.known.home_net
        part = policy.object_of("PolicyVariables", ("RuleVariables",))
        written = False
        for name, node in part.members("RuleVariables") if part is not None else ():
            assert part is not None
            if name.text != "HOME_NET":
                part.error(
                    name,
                    f"RuleVariables is invalid, parameter: [{clip(name.text)}], context: "
                    f"PolicyVariables.RuleVariables.IPSet.{clip(name.text)}; expected HOME_NET alone",
                )
                continue
            fields = open_fields(node, part.at("RuleVariables.HOME_NET"), ("Definition",), part.problems)
            if fields is not None:
                items = read_definition(fields, name.text, parse_address_item)
                report_cycles(fields, {"HOME_NET": items}, {*addresses, *ports})
                addresses["HOME_NET"] = items or addresses["HOME_NET"]
                written = True
        if not written and not self.known.home_net and policy.list_of("StatefulRuleGroupReferences"):
            policy.problems.warning(
                policy.node,
                "HOME_NET is not set: AWS takes the VPC's CIDR, here it is the private networks; "
                "expected PolicyVariables, or home_net in the map file",
            )
        return Variables(addresses, ports)

    def _tls(self, policy: Fields, stateful: Stateful) -> tuple[Tls | None, tuple[InboundTls, ...]]:
        key = "TLSInspectionConfigurationArn"
        holding = policy.boolean("EnableTLSSessionHolding")
        arn = policy.string(key)
        if not arn:
            if holding:
                policy.error(
                    policy.key("EnableTLSSessionHolding"),
                    f"{key} value is required when EnableTLSSessionHolding is true.; expected both, or neither",
                )
            return None, ()
        found = [document for document in self.documents if document.kind == TLS and document.is_named(arn)]
        if not found:
            policy.error(
                policy.get(key),
                f"TLS inspection configuration ARN does not exist, parameter: [{arn}]; expected its "
                "TLSInspectionConfiguration among the documents",
                code="missing-reference",
            )
            return None, ()
        if holding and any("app_layer" in name and name.startswith("drop") for name in stateful.default_actions):
            policy.problems.aws_refuses(
                policy.key("EnableTLSSessionHolding"),
                "EnableTLSSessionHolding is incompatible with the application layer drop default actions",
            )
        tls, inbound = read_tls_configuration(found[0], self.known, check_key=self.check_key, now=self.now)
        return replace(tls, session_holding=holding) if tls is not None else None, inbound


@dataclass(frozen=True, slots=True)
class Logging:
    """What a LoggingConfiguration comes to: the events that go to the event log, and sinks for the others."""

    events: tuple[str, ...] = ()
    sinks: tuple[Sink, ...] = ()


def read_logging(documents: Iterable[Document], policy: Document, known: MapFile) -> Logging | None:
    """What the LoggingConfiguration of the policy's firewall asks for; None where there is no such document.

    Where a destination is, the map file's ``log_destinations`` says, by its name or its type; what it does not name
    goes to the event log.
    """
    given = list(documents)
    events: list[str] = []
    sinks: dict[str, Sink] = {}
    found = [
        each for each in given if each.kind == LOGGING and each.body is not None and _of_policy(each, policy, given)
    ]
    for document in found:
        assert document.body is not None
        root = open_fields(document.body, "LoggingConfiguration", ("LogDestinationConfigs",), document.problems)
        names = ("LogType", "LogDestinationType", "LogDestination")
        for fields in root.objects("LogDestinationConfigs", names) if root is not None else ():
            for name in names:
                if name not in fields:
                    fields.missing(name, "all of " + ", ".join(names))
            wanted = fields.enumerated("LogType", LOG_TYPES, ())
            kind = fields.enumerated("LogDestinationType", {name: name for name in DESTINATIONS}, "")
            members = {key.text: node for key, node in fields.members("LogDestination")}
            node = members.get(DESTINATIONS.get(kind, ""))
            called = node.text if isinstance(node, Scalar) else ""
            at = next((name for name in (called, kind) if name and name in known.log_destinations), "")
            if not at:
                events += wanted
                named = clip(called) or kind
                fields.problems.warning(
                    fields.key("LogDestination"),
                    f"LogDestination {named}: its records go to the event log of this machine; expected a sink in the "
                    f"map file, log_destinations: {{{named}: {{type: journald}}}}",
                )
                continue
            sink = sinks.get(at, replace(known.log_destinations[at], events=()))
            both = {*sink.events, *wanted}
            sinks[at] = replace(sink, events=tuple(event for event in LOG_EVENTS if event in both))
    return Logging(tuple(events), tuple(sinks.values())) if found else None


def _of_policy(logging: Document, policy: Document, documents: Iterable[Document]) -> bool:
    """Whether a LoggingConfiguration is that of the firewall that has the policy; where that is not given, it is."""
    firewalls = [each for each in documents if each.kind == FIREWALL]
    mine = [each for each in firewalls if logging.firewall in (each.arn, each.name, each.logical_id)]
    arns = [text_of(entry(each.body, "FirewallPolicyArn")) for each in mine if logging.firewall]
    return not any(arns) or any(arn and policy.is_named(arn) for arn in arns)


def _complained(fields: Fields) -> bool:
    """Whether something is already wrong with the ARN of a reference."""
    node = fields.get("ResourceArn")
    return node is not None and any(
        (error.line, error.column) == (node.line, node.column) for error in fields.problems.errors
    )


def _in_words_of_aws(message: str, rule: str) -> str:
    return f"stateful rule is invalid, rule: {clip(rule.strip())}, reason: {message}"

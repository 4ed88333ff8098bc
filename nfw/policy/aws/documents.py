"""Files to documents: which of AWS's resources each holds, under which name and ARN."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nfw.policy.aws.foreign import foreign_document, foreign_text
from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.files import files_in, is_folder, read_bounded
from nfw.policy.jsonpos import parse_json
from nfw.policy.yamlpos import MAX_BYTES, Mapping, Mark, Node, Scalar, parse_yaml
from nfw.policy.yamlpos import Sequence as SequenceNode

SUFFIXES = (".json", ".yaml", ".yml", ".template")
MAX_FILES = 1000  # of one folder

RULE_GROUP, POLICY, TLS, LOGGING, FIREWALL = (
    "RuleGroup",
    "FirewallPolicy",
    "TLSInspectionConfiguration",
    "Logging",
    "Firewall",
)

# Kind -> (key of the body, key of the description beside it, keys of a bare body, prefix of name and ARN fields)
_SHAPES: dict[str, tuple[str, str, frozenset[str], str]] = {
    RULE_GROUP: ("RuleGroup", "RuleGroupResponse", frozenset({"RulesSource"}), "RuleGroup"),
    POLICY: (
        "FirewallPolicy",
        "FirewallPolicyResponse",
        frozenset({"StatelessDefaultActions", "StatelessFragmentDefaultActions"}),
        "FirewallPolicy",
    ),
    TLS: (
        "TLSInspectionConfiguration",
        "TLSInspectionConfigurationResponse",
        frozenset({"ServerCertificateConfigurations"}),
        "TLSInspectionConfiguration",
    ),
    LOGGING: ("LoggingConfiguration", "", frozenset({"LogDestinationConfigs"}), "Firewall"),
    FIREWALL: ("Firewall", "FirewallStatus", frozenset({"FirewallPolicyArn", "SubnetMappings"}), "Firewall"),
}
NEXT_GENERATION = ("FirewallPolicyV2", "FirewallRuleGroup", "IpsRuleGroup", "FirewallRuleGroupEntries")
# What is said of a resource and changes no verdict; nfw.policy.aws.labels.
LABELS = ("Description", "Tags", "EncryptionConfiguration")
# What else stands beside a body: in output of describe, and in input of create and update.
_BESIDE = (
    "UpdateToken",
    "Type",
    "Capacity",
    "Description",
    "DryRun",
    "Tags",
    "EncryptionConfiguration",
    "SourceMetadata",
    "AnalyzeRuleGroup",
    "AnalysisResults",
    "SummaryConfiguration",
    "EnableMonitoringDashboard",
    "Rules",
)
TEMPLATE = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*["']?(AWSTemplateFormatVersion|Resources)["']?\s*:""", re.MULTILINE)


@dataclass(slots=True)
class Document:
    """One resource. ``body`` None: only its description is at hand. ``own``: what a template's Metadata says to nfw."""

    kind: str
    name: str
    arn: str
    body: Node | None
    place: Node
    problems: Problems
    text: str
    logical_id: str = ""
    group_type: str = ""
    capacity: Node | None = None
    own: Node | None = None
    labels: dict[str, Node] = field(default_factory=dict)  # of LABELS, those that are there
    firewall: str = ""  # of a LoggingConfiguration: the ARN, name or logical id of its firewall

    def is_named(self, reference: str) -> bool:
        """Whether a reference means this one: by ARN, by logical id, or by name where it has no ARN of its own."""
        if reference in (self.arn, self.logical_id):
            return bool(reference)
        return not self.arn and reference.rpartition("/")[2] == self.name

    @property
    def file(self) -> str:
        return self.problems.file


@dataclass(slots=True)
class Loaded:
    """One file's content."""

    path: Path
    roots: list[Node]
    text: str
    problems: Problems
    template: bool = False
    documents: list[Document] = field(default_factory=list)
    prefix_lists: dict[str, Node | None] = field(default_factory=dict)  # of a template, by logical id


def expand(paths: Iterable[Path], problems: Problems, map_file: Path | None) -> list[Path]:
    """Files as they are, a folder as the files in it that can hold documents."""
    found: list[Path] = []
    for path in paths:
        if not is_folder(path):
            found.append(path)
            continue
        try:
            inside = [entry for entry in files_in(path) if entry.suffix.lower() in SUFFIXES]
        except OSError as error:
            where = "" if str(path) == problems.file else f"{path}/: "
            problems.error(None, f"{where}folder cannot be read: {error.strerror}", code="missing-reference")
            continue
        if map_file is not None:
            inside = [entry for entry in inside if entry.resolve() != map_file.resolve()]
        if not inside:
            where = "this folder" if str(path) == problems.file else f"{path}/"
            problems.error(None, f"no document in {where}; expected files named {', '.join(SUFFIXES)}")
        if len(inside) > MAX_FILES:
            problems.error(None, f"{path}: {len(inside)} files in this folder; the limit is {MAX_FILES}")
        found += inside[:MAX_FILES]
    return found


def read_file(path: Path) -> Loaded:
    """Parse one file. What is wrong is in ``problems``; ``roots`` is empty then."""
    problems = Problems(str(path))
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        problems.error(None, f"policy file {error.strerror}", code="missing-reference")
        return Loaded(path, [], "", problems)
    return parse_file(path, data, problems)


def parse_file(path: Path, data: bytes, problems: Problems) -> Loaded:
    template = TEMPLATE.search(data) is not None
    text = data.decode("utf-8-sig", "replace")
    start = text.lstrip()[:1]
    foreign = foreign_text(text)
    if foreign:
        problems.error(Mark(1, 1), foreign, code="wrong-kind")
        return Loaded(path, [], text, problems)
    tried = Problems(str(path))
    if start in ("{", "["):
        roots = parse_json(data, tried)
        if roots or path.suffix.lower() in (".json", ".template"):
            problems.merge(tried)
            return Loaded(path, roots, text, problems, template)
    root = parse_yaml(data, problems, local_tags=template)
    if problems.errors and start in ("{", "[") and text.lstrip()[1:].lstrip()[:1] in ('"', "{"):
        problems.errors[:] = tried.errors  # meant as JSON: say what is wrong with it as such
    return Loaded(path, [root] if root is not None else [], text, problems, template)


def is_aws(loaded: Loaded) -> bool:
    """Whether a file holds AWS documents (rather than a policy of nfw's own)."""
    return any(_kinds(root) or _is_template(root) or _next_generation(root) for root in _flat(loaded.roots))


def no_document(root: Node) -> str:
    """What was expected in place of ``root``, which is no document of AWS."""
    found = foreign_document(root)
    return found or f"expected a key such as {', '.join(body for body, _, _, _ in _SHAPES.values())}"


def is_policy(root: Node, known: Iterable[str], problems: Problems) -> bool:
    """Whether ``root`` may be meant as a policy of nfw's own, whose keys are ``known``; says so where plainly not."""
    foreign = foreign_document(root)
    if foreign:
        problems.error(root, foreign, code="wrong-kind")
        return False
    entries = root.entries if isinstance(root, Mapping) else ()
    if {key.text for key, _ in entries}.intersection(known):
        return True
    nearly = [(key, suggest(key.text, [body for body, _, _, _ in _SHAPES.values()], nothing="")) for key, _ in entries]
    for key, hint in nearly:
        if hint:
            problems.error(key, f"unknown key {shorten(key.text)}; {hint}")
    return not any(hint for _, hint in nearly)


def find_documents(loaded: Loaded) -> None:
    """Fill ``loaded.documents`` from everything but templates, and complain about what is none."""
    for root in _flat(loaded.roots):
        if _is_template(root):
            continue
        newer = _next_generation(root)
        kinds = _kinds(root)
        if newer is not None:
            loaded.problems.error(
                newer,
                f"{newer.text}: policies of the Next Generation are not supported; expected a FirewallPolicy",
                code="wrong-kind",
            )
        elif not kinds:
            loaded.problems.warning(root, f"not a document of AWS Network Firewall, ignored; {no_document(root)}")
        for kind in kinds:
            assert isinstance(root, Mapping)
            loaded.documents.append(_document(kind, root, loaded))


def templates(loaded: Loaded) -> list[Mapping]:
    return [root for root in _flat(loaded.roots) if isinstance(root, Mapping) and _is_template(root)]


def entry(node: Node | None, key: str) -> Node | None:
    """The value of ``key`` where ``node`` is an object that has it."""
    if not isinstance(node, Mapping):
        return None
    return next((value for name, value in node.entries if name.text == key), None)


def text_of(node: Node | None) -> str:
    return node.value if isinstance(node, Scalar) and isinstance(node.value, str) else ""


def _document(kind: str, root: Mapping, loaded: Loaded) -> Document:
    body_key, beside_key, bare, prefix = _SHAPES[kind]
    body = entry(root, body_key)
    beside = entry(root, beside_key) if beside_key else None
    keys = {key.text for key, _ in root.entries}
    if body is None and keys & bare and not (kind == FIREWALL and "FirewallPolicy" in keys):
        body = root
    elif kind in (RULE_GROUP, POLICY, TLS):
        known = {body_key, beside_key, *_BESIDE, *(f"{prefix}{end}" for end in ("Name", "Arn", "Id"))}
        for key, _ in root.entries:
            if key.text not in known and not any(key.text in shape[:2] for shape in _SHAPES.values()):
                _warn_beside(key, known, loaded.problems)
    described = body if kind == FIREWALL else beside
    name = text_of(entry(described, f"{prefix}Name")) or text_of(entry(root, f"{prefix}Name"))
    arn = text_of(entry(described, f"{prefix}Arn")) or text_of(entry(root, f"{prefix}Arn"))
    if kind == RULE_GROUP and body is None and entry(root, "Rules") is not None:
        body = _from_rules(root)
    return Document(
        kind=kind,
        name=name or arn.rpartition("/")[2] or loaded.path.stem,
        arn=arn,
        body=body,
        place=body or beside or root,
        problems=loaded.problems,
        text=loaded.text,
        group_type=text_of(entry(beside, "Type")) or text_of(entry(root, "Type")),
        capacity=entry(beside, "Capacity") or entry(root, "Capacity"),
        labels={
            key: node
            for key in LABELS
            if body is not root and (node := entry(beside, key) or entry(root, key)) is not None
        },
        firewall=(arn or name) if kind == LOGGING else "",
    )


def _warn_beside(key: Scalar, known: Iterable[str], problems: Problems) -> None:
    hint = suggest(key.text, sorted(known), nothing="known fields: {}")
    problems.warning(key, f"unknown field {shorten(key.text)}, ignored; {hint}")


def _from_rules(root: Mapping) -> Node:
    """``Rules``, the text of a group beside its name, as the body it stands for."""
    rules = entry(root, "Rules")
    assert rules is not None
    line, column = rules.line, rules.column

    def key(name: str) -> Scalar:
        return Scalar(name, name, line, column)

    source = Mapping(((key("RulesString"), rules),), line, column)
    return Mapping(((key("RulesSource"), source),), line, column)


def _kinds(root: Node) -> list[str]:
    if not isinstance(root, Mapping):
        return []
    keys = {key.text for key, _ in root.entries}
    found = [
        kind
        for kind, (body, beside, bare, _) in _SHAPES.items()
        if (body in keys and isinstance(entry(root, body), Mapping)) or (beside and beside in keys) or keys & bare
    ]
    if not found and "Rules" in keys and keys & {"RuleGroupName", "RuleGroupArn"}:
        found.append(RULE_GROUP)
    if not found:  # a body of a wrong kind, which its reader says
        found = [kind for kind, (body, _, _, _) in _SHAPES.items() if body in keys]
    return found


def _is_template(root: Node) -> bool:
    return isinstance(entry(root, "Resources"), Mapping) or entry(root, "AWSTemplateFormatVersion") is not None


def _next_generation(root: Node) -> Scalar | None:
    if not isinstance(root, Mapping):
        return None
    return next((key for key, _ in root.entries if key.text in NEXT_GENERATION), None)


def _flat(roots: Sequence[Node]) -> list[Node]:
    """Lists of documents opened."""
    found: list[Node] = []
    for root in roots:
        found += root.items if isinstance(root, SequenceNode) else [root]
    return found

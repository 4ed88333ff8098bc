"""The map file: what AWS documents refer to but do not hold.

::

    home_net: [10.0.0.0/16]                       # the VPC's CIDR, HOME_NET where the policy sets none
    certificates:
      arn:aws:acm:...:certificate/1: {certificate: ca.pem, private_key: ca.key}
    ip_sets:                                      # lists, or files of one block a line (or of EC2's JSON)
      arn:aws:ec2:...:prefix-list/pl-1: [198.51.100.0/24]
      arn:aws:ec2:...:prefix-list/pl-2: partners.txt
    rule_groups:                                  # managed ones, by name or ARN: rule files, or skip
      ThreatSignaturesMalwareStrictOrder: [malware.rules]
    parameters: {Environment: prod, AWS::Region: eu-west-1}     # of a CloudFormation template, exports, SSM
    log_destinations:                             # by name of log group, bucket or stream, or by type of destination
      /firewall/alert: {type: journald}
      S3: {type: file, path: s3.json}
    settings: {open_flows: {which: all, action: drop}}          # keys of a policy that AWS has no fields for

A template may hold the same under ``Metadata: {nfw: ...}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nfw.policy.errors import Problems
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.files import read_bounded
from nfw.policy.ipsetfile import read_ip_set
from nfw.policy.model import Sink
from nfw.policy.read_log import read_destination
from nfw.policy.values import parse_address_item
from nfw.policy.yamlpos import MAX_BYTES, Mapping, Node, Scalar, Sequence, parse_yaml

KEYS = ("home_net", "certificates", "ip_sets", "rule_groups", "parameters", "log_destinations", "settings")
SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate and its key are; ``section`` is where that is written."""

    certificate: Path
    private_key: Path
    section: Section


@dataclass(slots=True)
class MapFile:
    home_net: tuple[str, ...] = ()
    certificates: dict[str, CertificateFiles] = field(default_factory=dict)
    ip_sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ip_set_files: dict[str, Path] = field(default_factory=dict)  # where those are read from that are in files
    rule_groups: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # empty: to be skipped
    parameters: dict[str, str] = field(default_factory=dict)
    log_destinations: dict[str, Sink] = field(default_factory=dict)  # without events: they are the document's
    settings: Node | None = None
    settings_base: Path = Path()
    settings_problems: Problems | None = None

    def update(self, other: MapFile) -> None:
        """Take over what ``other`` says, which goes before."""
        self.home_net = other.home_net or self.home_net
        self.certificates |= other.certificates
        self.ip_sets |= other.ip_sets
        self.ip_set_files = {arn: file for arn, file in self.ip_set_files.items() if arn not in other.ip_sets}
        self.ip_set_files |= other.ip_set_files
        self.rule_groups |= other.rule_groups
        self.parameters |= other.parameters
        self.log_destinations |= other.log_destinations
        if other.settings is not None:
            self.settings = other.settings
            self.settings_base, self.settings_problems = other.settings_base, other.settings_problems


def read_map_file(path: Path, problems: Problems) -> MapFile:
    """``problems`` names the map file."""
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        problems.error(None, f"map file {error.strerror}", code="missing-reference")
        return MapFile()
    root = parse_yaml(data, problems)
    return read_map(root, path.parent, problems) if root is not None else MapFile()


def read_map(node: Node, base: Path, problems: Problems) -> MapFile:
    section = open_section(node, "map", KEYS, "{certificates: {arn:...: {certificate: ca.pem, ...}}}", problems)
    found = MapFile()
    if section is None:
        return found
    found.home_net = section.values("home_net", "[10.0.0.0/16]", parse_address_item)
    example = "{certificate: ca.pem, private_key: ca.key}"
    for key, value in _entries(section, "certificates", example):
        entry = open_section(value, "certificates", ("certificate", "private_key"), example, problems)
        if entry is None:
            continue
        entry.require("certificate", "a PEM file")
        entry.require("private_key", "a PEM file")
        files = entry.text("certificate", "a file name"), entry.text("private_key", "a file name")
        found.certificates[key.text] = CertificateFiles(base / files[0], base / files[1], entry)
    for key, value in _entries(section, "ip_sets", "[198.51.100.0/24]"):
        if isinstance(value, Scalar) and isinstance(value.value, str) and value.value:
            found.ip_set_files[key.text] = base / value.value
            found.ip_sets[key.text] = read_ip_set(base / value.value, value, problems)
            continue
        wrapped = Section(Mapping(((key, value),), key.line, key.column), "ip_sets", (key.text,), problems)
        found.ip_sets[key.text] = wrapped.values(key.text, "[198.51.100.0/24]", parse_address_item)
    for key, value in _entries(section, "rule_groups", "[malware.rules]"):
        found.rule_groups[key.text] = tuple(base / name for name in _files(value, problems))
    for key, value in _entries(section, "parameters", "value"):
        if isinstance(value, Scalar) and value.value is not None:
            found.parameters[key.text] = value.text
        elif isinstance(value, Sequence) and all(isinstance(item, Scalar) for item in value.items):
            found.parameters[key.text] = ",".join(item.text for item in value.items if isinstance(item, Scalar))
        else:
            problems.error(value, f"parameters: expected a text, got {describe(value)}")
    for key, value in _entries(section, "log_destinations", "{type: journald}"):
        sink = read_destination(value, base, problems)
        if sink is not None:
            found.log_destinations[key.text] = sink
    found.settings = section.get("settings")
    found.settings_base, found.settings_problems = base, problems
    return found


def _files(value: Node, problems: Problems) -> list[str]:
    if isinstance(value, Scalar) and value.value == SKIP:
        return []
    nodes = value.items if isinstance(value, Sequence) else (value,)
    names = [node.value for node in nodes if isinstance(node, Scalar) and isinstance(node.value, str) and node.value]
    if not nodes or len(names) < len(nodes):
        problems.error(value, f'rule_groups: expected rule files or "{SKIP}", got {describe(value)}')
    return names


def _entries(section: Section, key: str, example: str) -> tuple[tuple[Scalar, Node], ...]:
    node = section.get(key)
    if node is None:
        return ()
    if isinstance(node, Mapping):
        return node.entries
    section.error(node, f"{key}: expected a mapping such as {{name: {example}}}, got {describe(node)}")
    return ()

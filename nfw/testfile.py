"""Expectations of a policy in YAML: what ``nfw policy test`` reads, and :mod:`nfw.policytest` runs.

::

    policy: egress.yaml              # or AWS documents, with map: and name: as the command line has them
    defaults: {src: 10.0.0.5}        # of every flow that does not say otherwise
    tests:
      - name: the package mirror
        flow: {dst: 198.51.100.7, sni: deb.debian.org}
        expect: {verdict: pass, rule: 1200020, tls: none}
      - name: what was seen on Monday
        capture: monday.pcap
        filter: tcp port 443         # every flow it lets through has to meet the expectation
        expect: {verdict: drop}

A flow is described by the keys of :data:`nfw.describe.KEYS`. Paths start from the file's directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nfw.describe import KEYS, DescriptionError, FlowDescription, read_description
from nfw.policy.errors import PolicyError, PolicyErrors, Problems, shorten, suggest
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.files import read_bounded
from nfw.policy.yamlpos import MAX_BYTES, Node, Scalar, Sequence, parse_yaml
from nfw.policy.yamlpos import Mapping as MappingNode

VERDICTS = ("pass", "alert", "drop", "reject", "intercept")
TLS = ("terminate", "bypass", "none")
_FILE_KEYS = ("policy", "map", "name", "defaults", "tests")
_TEST_KEYS = ("name", "flow", "capture", "filter", "tls", "expect")
_EXPECT_KEYS = ("verdict", "rule", "tls", "certificate", "alerts")


@dataclass(frozen=True, slots=True)
class Expected:
    """None: whatever it is. ``rule``: sid, ``gid:sid``, ``stateless:PRIORITY``, a rule's message or name, the name of a
    default action, or ``none``. ``certificate``: file of the one that clients of a server of one's own are shown.
    ``alerts``: rules that are to be logged, each as ``rule``."""

    verdict: str | None = None
    rule: str | None = None
    tls: str | None = None
    certificate: str | None = None
    alerts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """One expectation: of a described flow, or of every flow of a capture."""

    name: str
    file: str
    line: int
    expected: Expected
    flow: FlowDescription | None = None
    capture: Path | None = None
    filter: str | None = None
    inspect_tls: bool = False


@dataclass(frozen=True, slots=True)
class TestFile:
    """``policies``: files and folders of the policy, absolute or from the working directory."""

    __test__ = False  # not one of pytest's

    path: str
    policies: tuple[str, ...]
    map_file: str | None
    name: str
    tests: tuple[PolicyTest, ...]


def load_tests(paths: tuple[str, ...]) -> list[TestFile]:
    """All test files. Raises PolicyErrors with everything that is wrong in any of them."""
    found: list[TestFile] = []
    errors: list[PolicyError] = []
    for path in paths:
        try:
            found.append(read_tests(path))
        except PolicyErrors as refused:
            errors += refused.errors
    if errors:
        raise PolicyErrors(errors)
    return found


def read_tests(path: str) -> TestFile:
    """The tests in a file. Raises PolicyErrors with everything that is wrong in it."""
    problems = Problems(path)
    try:
        data = read_bounded(Path(path), MAX_BYTES)
    except OSError as error:
        problems.error(None, f"test file {error.strerror}", code="missing-reference")
        data = b""
    example = "{policy: egress.yaml, tests: [...]}"
    if not problems.errors and not data.strip():
        problems.error(None, f"file is empty; expected a mapping such as {example}", code="syntax")
    root = parse_yaml(data, problems) if not problems.errors else None
    section = open_section(root, "the test file", _FILE_KEYS, example, problems) if root is not None else None
    if section is None:
        problems.raise_if_any()
        raise AssertionError("a file without tests yields an error")
    section.where = ""
    found = _file(section, path, problems)
    problems.raise_if_any()
    return found


def _file(section: Section, path: str, problems: Problems) -> TestFile:
    directory = os.path.dirname(path)
    node = section.get("policy")
    if node is None:
        problems.error(section.node, 'the test file lacks "policy"; expected the file of the policy under test')
    texts = _texts(section, "policy", "egress.yaml")
    policies = tuple(os.path.normpath(os.path.join(directory, text)) for text in texts)
    for policy in policies:
        if not os.path.exists(policy):
            problems.error(node, f"policy: {policy} does not exist")
    map_file = section.text("map", "the path of a map file")
    defaults = _values(section.get("defaults"), "defaults", problems)
    tests = section.get("tests")
    found: list[PolicyTest] = []
    if tests is None or (isinstance(tests, Sequence) and not tests.items):
        problems.error(tests or section.node, 'the test file has no "tests"; expected a list of them')
    for item in section.items("tests", "[{name: ..., flow: {...}, expect: {...}}]", may_be_empty=True):
        test = _test(item, path, defaults, problems)
        if test is not None:
            found.append(test)
    names: dict[str, PolicyTest] = {}
    for test in found:
        first = names.setdefault(test.name, test)
        if first is not test:
            again = f"name {shorten(test.name)} is already that of the test on line {first.line}"
            problems.error(_At(test.line, 1), again)
    map_path = os.path.normpath(os.path.join(directory, map_file)) if map_file else None
    return TestFile(path, policies, map_path, section.text("name", "a name"), tuple(found))


class _At(NamedTuple):
    line: int
    column: int


def _texts(section: Section, key: str, example: str) -> list[str]:
    node = section.get(key)
    if isinstance(node, Sequence):
        return list(section.values(key, f"[{example}]", str))
    text = section.text(key, f"a path such as {example}")
    return [text] if text else []


_Places = dict[str, tuple[Scalar, Any]]  # key -> where it is written, value


def _values(node: Node | None, where: str, problems: Problems) -> _Places:
    """The keys of a flow with their plain values; unknown ones are reported."""
    if node is None:
        return {}
    section = open_section(node, where, KEYS, "{src: 10.0.0.5, dst: 198.51.100.7, sni: www.example.org}", problems)
    if section is None or not isinstance(node, MappingNode):
        return {}
    return {key.text: (key, _plain(value)) for key, value in node.entries if key.text in KEYS}


def _plain(node: Node) -> Any:
    if isinstance(node, Sequence):
        return [_plain(item) for item in node.items]
    return node.value if isinstance(node, Scalar) else {}


def _test(node: Node, path: str, defaults: _Places, problems: Problems) -> PolicyTest | None:
    section = open_section(node, "test", _TEST_KEYS, "{name: ..., flow: {...}, expect: {verdict: drop}}", problems)
    if section is None:
        return None
    before = len(problems.errors)
    name = section.text("name", "a name for the test")
    if not name:
        section.require("name", "a name that says what is tested")
    expected = _expected(section, problems)
    flow = None
    flow_node, capture = section.get("flow"), section.text("capture", "the path of a capture")
    file = os.path.normpath(os.path.join(os.path.dirname(path), capture)) if capture else None
    if (flow_node is None) == (section.get("capture") is None):
        problems.error(node, 'test: expected either "flow" or "capture"')
    elif flow_node is not None:
        flow = _flow(flow_node, defaults, problems)
        for key in ("filter", "tls"):
            if key in section:
                problems.error(section.key(key), f'{key}: goes with "capture"')
    elif file is not None and not os.path.exists(file):
        problems.error(section.get("capture"), f"capture: {file} does not exist")
    inspect_tls = _one_of(section, "tls", ("stop", "inspect")) == "inspect"
    if len(problems.errors) > before:
        return None
    return PolicyTest(
        name,
        path,
        node.line,
        expected,
        flow,
        Path(file) if file else None,
        section.text("filter", "a pcap filter such as tcp port 443") or None,
        inspect_tls,
    )


def _flow(node: Node, defaults: _Places, problems: Problems) -> FlowDescription | None:
    said = _values(node, "flow", problems)
    merged = {**defaults, **said}
    try:
        return read_description({key: value for key, (_, value) in merged.items()})
    except DescriptionError as wrong:
        for key, message in wrong.problems:
            place: Any = merged[key][0] if key in merged else node
            problems.error(place, f"{key}: {message}")
    return None


def _expected(section: Section, problems: Problems) -> Expected:
    node = section.get("expect")
    if isinstance(node, Scalar):  # short for {verdict: ...}
        return Expected(_word(node, "expect", VERDICTS, problems))
    if node is None:
        section.require("expect", "what should become of the flow, such as {verdict: drop}")
        return Expected()
    inner = open_section(node, "expect", _EXPECT_KEYS, "{verdict: drop, rule: 1100001}", problems)
    if inner is None:
        return Expected()
    if not any(key in inner for key in _EXPECT_KEYS):
        problems.error(node, f"expect: nothing is expected; known keys: {', '.join(_EXPECT_KEYS)}")
    return Expected(
        _one_of(inner, "verdict", VERDICTS),
        inner.text("rule", "a sid, a rule's name, or stateless:PRIORITY") or None,
        _one_of(inner, "tls", TLS),
        inner.text("certificate", "the file of a certificate of the policy's") or None,
        inner.values("alerts", "[1100001]", str, may_be_empty=True) if "alerts" in inner else None,
    )


def _one_of(section: Section, key: str, words: tuple[str, ...]) -> str | None:
    node = section.get(key)
    return None if node is None else _word(node, key, words, section.problems)


def _word(node: Node, key: str, words: tuple[str, ...], problems: Problems) -> str | None:
    text = node.text if isinstance(node, Scalar) else ""
    if text in words:
        return text
    hint = suggest(text, words, nothing="") if text else ""
    expected = f"{', '.join(words[:-1])} or {words[-1]}"
    problems.error(node, f"{key}: expected {expected}, got {describe(node)}" + (f"; {hint}" if hint else ""))
    return None

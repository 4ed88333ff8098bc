"""Expectations of a policy in YAML, and whether it meets them: what ``nfw policy test`` runs.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.verdict import RuleRef
from nfw.capture import Captured, CaptureError, FilterError, filtered, read_capture
from nfw.describe import KEYS, DescriptionError, FlowDescription, read_description
from nfw.explaintext import conclusion_text, default_name, rule_text
from nfw.policy.errors import PolicyError, PolicyErrors, Problems, shorten, suggest
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar, Sequence, parse_yaml

if TYPE_CHECKING:
    from nfw.explain import Explainer, Explanation

VERDICTS = ("pass", "alert", "drop", "reject", "intercept")
TLS = ("terminate", "bypass", "none")
_FILE_KEYS = ("policy", "map", "name", "defaults", "tests")
_TEST_KEYS = ("name", "flow", "capture", "filter", "tls", "expect")
_EXPECT_KEYS = ("verdict", "rule", "tls", "alerts")


@dataclass(frozen=True, slots=True)
class Expected:
    """None: whatever it is. ``rule``: sid, ``gid:sid``, ``stateless:PRIORITY``, a rule's message or name, the name of a
    default action, or ``none``. ``alerts``: rules that are to be logged, each as ``rule``."""

    verdict: str | None = None
    rule: str | None = None
    tls: str | None = None
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


class Difference(NamedTuple):
    what: str
    expected: str
    seen: str


@dataclass(frozen=True, slots=True)
class Result:
    """``seen``: the verdict in words. ``differences`` empty and no ``error``: it passed."""

    test: PolicyTest
    seen: str
    differences: tuple[Difference, ...] = ()
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.differences and not self.error


# -- reading -----------------------------------------------------------------------------------------------------------


def read_tests(path: str) -> TestFile:
    """The tests in a file. Raises PolicyErrors with everything that is wrong in it."""
    problems = Problems(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        problems.error(None, f"cannot read the test file: {error.strerror}")
        data = b""
    root = parse_yaml(data, problems) if not problems.errors else None
    example = "{policy: egress.yaml, tests: [...]}"
    section = open_section(root, "", _FILE_KEYS, example, problems) if root is not None else None
    if section is None:
        problems.raise_if_any()
        raise AssertionError("a file without tests yields an error")
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


# -- running -----------------------------------------------------------------------------------------------------------


def run_tests(tests: TestFile, explainer: Explainer) -> Iterator[Result]:
    """Each test's result, in the order written."""
    for test in tests.tests:
        yield _run(test, explainer)


def _run(test: PolicyTest, explainer: Explainer) -> Result:
    if test.flow is not None:
        return _judge(test, explainer.described(test.flow))
    path = test.capture
    assert path is not None

    def packets() -> Iterator[Captured]:
        found = read_capture(path)
        return found if test.filter is None else filtered(found, test.filter)

    try:
        explained, left = explainer.captured(packets, inspect_tls=test.inspect_tls)
    except (CaptureError, FilterError) as error:
        return Result(test, "", error=str(error))
    if not explained:
        which = " that the filter lets through" if test.filter else ""
        return Result(test, "", error=f"{path} holds no flow{which}")
    if left:
        return Result(test, "", error=f"{path} holds {len(explained) + left} flows; choose some with filter")
    results = [(each, _judge(test, each)) for each in explained]
    for each, result in results:
        if not result.passed:
            return Result(test, f"{each.flow}: {result.seen}", result.differences)
    count = len(explained)
    return Result(test, results[0][1].seen if count == 1 else f"{count} flows, each as expected")


def _judge(test: PolicyTest, explained: Explanation) -> Result:
    conclusion, expected = explained.conclusion, test.expected
    seen = conclusion_text(conclusion)
    differences: list[Difference] = []
    if expected.verdict is not None and not _same_verdict(expected.verdict, conclusion.verdict):
        differences.append(Difference("verdict", expected.verdict, seen))
    if expected.rule is not None:
        found = _deciding(explained)
        if not any(expected.rule in each for each in found) and not (expected.rule == "none" and not found):
            differences.append(Difference("rule", expected.rule, " and ".join(each[-1] for each in found) or "none"))
    if expected.tls is not None and expected.tls != explained.tls.decision:
        differences.append(Difference("tls", expected.tls, f"{explained.tls.decision}: {explained.tls.why}"))
    if expected.alerts is not None:
        logged = [_called(ref) for ref in explained.stateful.alerts]
        missing = [wanted for wanted in expected.alerts if not any(wanted in each for each in logged)]
        more = [each[-1] for each in logged if not any(wanted in each for wanted in expected.alerts)]
        if missing or more:
            listed = ", ".join(expected.alerts) or "none"
            differences.append(Difference("alerts", listed, ", ".join(each[-1] for each in logged) or "none"))
    return Result(test, seen, tuple(differences))


def _same_verdict(expected: str, seen: str) -> bool:
    """What is logged and let through passes, too."""
    return expected == seen or (expected == "pass" and seen == "alert")


def _deciding(explained: Explanation) -> list[tuple[str, ...]]:
    """What the rule that decided may be called; where none did, those that logged."""
    conclusion = explained.conclusion
    if conclusion.reason == "alert":
        return [_called(ref) for ref in explained.stateful.alerts]
    if conclusion.reason.startswith("default_"):
        assert conclusion.rule is not None
        return [(*_called(conclusion.rule)[:-1], conclusion.reason.removeprefix("default_"))]
    if conclusion.rule is not None:
        return [_called(conclusion.rule)]
    if conclusion.reason.startswith("stateless_"):
        return [("stateless:default", "the stateless default")]
    return []


def _called(ref: RuleRef) -> tuple[str, ...]:
    """The last is the one to show."""
    if ref.engine == "stateless":
        names = (f"stateless:{ref.id}", *([ref.msg] if ref.msg else []))
        return (*names, f"stateless:{ref.id}" + (f' "{ref.msg}"' if ref.msg else ""))
    default = "" if ref.file else default_name(ref)
    names = (str(ref.id), f"{ref.gid}:{ref.id}", *([ref.msg] if ref.msg else []), *([default] if default else []))
    return (*names, default or rule_text(ref))


# -- reports -----------------------------------------------------------------------------------------------------------


def result_json(result: Result) -> Mapping[str, Any]:
    """A result as JSON has it."""
    return {
        "name": result.test.name,
        "file": result.test.file,
        "line": result.test.line,
        "passed": result.passed,
        "seen": result.seen,
        "error": result.error,
        "differences": [each._asdict() for each in result.differences],
    }


def junit(files: Mapping[str, list[Result]]) -> bytes:
    """The results as the XML that CI systems read (JUnit's), a suite for each file."""
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites")
    for file, results in files.items():
        failed = sum(not result.passed for result in results)
        suite = ElementTree.SubElement(root, "testsuite", name=file, tests=str(len(results)), failures=str(failed))
        for result in results:
            at = {"name": result.test.name, "classname": file, "file": file, "line": str(result.test.line)}
            case = ElementTree.SubElement(suite, "testcase", at)
            if not result.passed:
                message = "; ".join(difference_lines(result))
                ElementTree.SubElement(case, "failure", message=message).text = "\n".join(difference_lines(result))
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def difference_lines(result: Result) -> list[str]:
    """What differs, a line each."""
    if result.error:
        return [result.error]
    return [f"{each.what}: expected {each.expected}, seen {each.seen}" for each in result.differences]


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

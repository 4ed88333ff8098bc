"""Whether a policy meets the expectations of a test file (:mod:`nfw.testfile`), and how that is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.verdict import RuleRef
from nfw.capture import Captured, CaptureError, FilterError, filtered, not_twice, read_capture
from nfw.explaintext import conclusion_text, default_name, rule_text
from nfw.testfile import PolicyTest, TestFile

if TYPE_CHECKING:
    from nfw.explain import Explainer, Explanation


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
        not_twice(path)
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
    if expected.certificate is not None:
        shown = explained.tls.certificate
        if shown is None or not shown.match(expected.certificate):
            differences.append(Difference("certificate", expected.certificate, str(shown or "none of the policy's")))
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

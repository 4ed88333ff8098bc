"""``nfw policy check``, ``convert`` and ``test``; what deals with the running policy is in :mod:`nfw.cli.change`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json, tell
from nfw.cli.change import apply, confirm, diff, history, rollback, show
from nfw.cli.explain import tell_missed
from nfw.cli.options import json_option, named, policy_options
from nfw.cli.problems import counted, tell_problems

if TYPE_CHECKING:
    from nfw.explain import Explainer
    from nfw.policy import Policy
    from nfw.policytest import Result
    from nfw.testfile import TestFile


@click.group(cls=NearestGroup)
def policy() -> None:
    """Check, test, compare, apply, confirm, take back, show or convert a policy."""


@policy.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=named)
@policy_options
@click.option(
    "--fail-on",
    "fail_on",
    type=click.Choice(["error", "aws-refuses", "warning"]),
    default="error",
    show_default=True,
    help="The least level that makes the exit status 1.",
)
@json_option
def check(files: tuple[str, ...], map_file: str | None, name: str, fail_on: str, as_json: bool) -> int:
    """Load and compile the policy in FILE as the firewall would, and say everything that is wrong with it.

    FILE is nfw's own YAML, or documents of AWS Network Firewall: output of `aws network-firewall describe-*`, bare
    bodies, a CloudFormation template; several files, or a folder. Nothing is changed; the firewall need not run.

    Three levels: errors, with which a policy cannot be applied; aws-refuses, what works here and not at AWS; warnings,
    such as rules that are never reached. The exit status is 0 for a policy without errors (see --fail-on), 1 for any
    other, 2 for a wrong command line. With --json each problem has level, file, line, column, code, message and remedy.
    """
    from nfw.cache import default_cache
    from nfw.policy.check import check_policy
    from nfw.policy.compile import compile_policy
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy

    file = files[0]
    errors: tuple[Any, ...] = ()
    loaded = None
    cache = default_cache(tell)
    try:
        loaded = load_policy(*files, map_file=map_file, name=name, check_key=True, cache=cache)
        warnings = loaded.warnings
        compile_policy(loaded, cache)
        warnings = (*warnings, *check_policy(loaded))
    except PolicyErrors as failed:
        errors = failed.errors
        warnings = failed.warnings or (loaded.warnings if loaded else ())
    levels = {problem.level.value for problem in (*errors, *warnings)}
    refused = {"error", "aws-refuses", "warning"} if fail_on == "warning" else {"error", fail_on}
    status = 1 if levels & refused else 0
    if as_json:
        found = [problem.to_json() for problem in (*errors, *warnings)]
        summary = summarize(loaded) if loaded is not None and not errors else None
        emit_json({"ok": not errors, "file": file, "problems": found, "policy": summary})
        return status
    tell_problems([(problem.level.value, str(problem)) for problem in (*warnings, *errors)])
    if errors:
        tell(f"{file}: this policy cannot be applied")
        return 1
    assert loaded is not None
    emit(f"{file}: ok, {describe(summarize(loaded))}")
    return status


@policy.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=named)
@click.option(
    "--to", "form", type=click.Choice(["aws", "yaml"]), required=True, help="A CloudFormation template, or nfw's YAML."
)
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    callback=named,
    help="Where to write it; paths in it start from there.  [default: -]",
)
@policy_options
def convert(files: tuple[str, ...], form: str, output: str | None, map_file: str | None, name: str) -> None:
    """Write the policy in FILE in the other form, so that it loads to an equal policy.

    What a form has no place for is kept beside it: AWS's names in keys of the YAML, this machine's settings and the
    files of certificates in the template's Metadata. Description and Tags go from documents to a template; what is left
    out is told. Paths are relative to the file given first, or to --output.
    """
    from nfw.policy.aws.labels import lost
    from nfw.policy.aws.write import write_template
    from nfw.policy.dump import dump_policy

    first, *more = (os.path.abspath(file) for file in files)
    loaded = _load((first, *more), os.path.abspath(map_file) if map_file else None, name)
    if output == "-":
        output = None
    if output is not None:
        loaded = dataclasses.replace(loaded, file=Path(os.path.abspath(output)))
    tell_problems([(warning.level.value, str(warning)) for warning in (*loaded.warnings, *lost(loaded, form))])
    text = write_template(loaded) if form == "aws" else dump_policy(loaded)
    if output is None:
        emit(text.rstrip("\n"))
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{output}: {error.strerror}") from None


for command in (apply, confirm, rollback, history, diff, show):
    policy.add_command(command)


def _load(files: tuple[str, ...], map_file: str | None, name: str) -> Policy:
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy

    try:
        return load_policy(*files, map_file=map_file, name=name)
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused)) from None


def summarize(policy: Policy) -> dict[str, Any]:
    """What is in a policy, in numbers."""
    return {
        "name": policy.name,
        "stateless_rules": len(policy.stateless.rules),
        "stateful_rules": len(policy.stateful.signatures),
        "stateful_order": policy.stateful.order.value,
        "default_actions": list(policy.stateful.default_actions),
        "tls_scopes": len(policy.tls.scopes) if policy.tls is not None else 0,
    }


def describe(summary: dict[str, Any]) -> str:
    """A summary as half a sentence."""

    scopes = summary["tls_scopes"]
    return ", ".join(
        [
            f"policy {summary['name']}: " + counted(summary["stateless_rules"], "stateless rule"),
            counted(summary["stateful_rules"], "stateful rule"),
            f"TLS inspection of {counted(scopes, 'scope')}" if scopes else "no TLS inspection",
        ]
    )


@policy.command("test")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=named)
@click.option("--junit", "report", metavar="FILE", callback=named, help="Also write the results as JUnit XML.")
@json_option
def run_policy_tests(files: tuple[str, ...], report: str | None, as_json: bool) -> int:
    """Check that policies do what test FILEs expect of them: flows described in YAML, or captures.

    \b
    policy: egress.yaml
    defaults: {src: 10.0.0.5}
    tests:
      - name: the package mirror
        flow: {dst: 198.51.100.7, sni: deb.debian.org}     # keys: the options of `nfw explain`, with _ for -
        expect: {verdict: pass, rule: 1200020}             # also tls: terminate | bypass | none, alerts: [SID, ...],
                                                           # certificate: FILE, of a server of one's own

    Verdicts are pass, alert (passes and is logged), drop and reject. The firewall need not run, nor the CA be there.
    """
    from nfw.policy.errors import PolicyErrors
    from nfw.policytest import Result, junit, result_json, run_tests
    from nfw.testfile import load_tests

    try:
        loaded = load_tests(files)
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused), "nothing was tested") from None
    explainers = _explainers(loaded)
    results: dict[str, list[Result]] = {}
    for each in loaded:
        explainer = explainers.get(each.path)
        if explainer is None:
            results[each.path] = [Result(test, "", error="not judged: its policy has errors") for test in each.tests]
        else:
            results[each.path] = list(run_tests(each, explainer))
        if not as_json:
            _show_results(each.path, results[each.path])
    failed = sum(not result.passed for found in results.values() for result in found)
    passed = sum(map(len, results.values())) - failed
    if not as_json:
        emit(f"{passed} passed, {failed} failed")
    if report is not None:
        try:
            Path(report).write_bytes(junit(results))
        except OSError as error:
            raise Failure(f"{report}: the report cannot be written: {error.strerror}") from None
    if as_json:
        listed = [result_json(result) for found in results.values() for result in found]
        emit_json({"passed": passed, "failed": failed, "tests": listed})
    return 1 if failed else 0


def _explainers(loaded: Sequence[TestFile]) -> dict[str, Explainer]:
    """By test file, those whose policy loads; a policy that several name is compiled once. Every error of every policy
    is told. Raises Failure when none loads."""
    from nfw.cache import default_cache
    from nfw.explain import Explainer
    from nfw.policy.compile import compile_policy
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy
    from nfw.policy.standin import without_ca

    cache = default_cache(tell)
    made: dict[Any, Explainer] = {}
    found: dict[str, Explainer] = {}
    errors: dict[str, None] = {}
    for each in loaded:
        key = (each.policies, each.map_file, each.name)
        try:
            if key not in made:
                with without_ca() as missed:
                    policy = load_policy(*each.policies, map_file=each.map_file, name=each.name, cache=cache)
                tell_missed(missed)
                made[key] = Explainer(compile_policy(policy, cache), cache)
            found[each.path] = made[key]
        except PolicyErrors as refused:
            errors.update(dict.fromkeys(str(error) for error in refused))
    if not found:
        raise Failure(*errors, "nothing was tested")
    tell_problems(("error", error) for error in errors)
    return found


def _show_results(path: str, results: Sequence[Result]) -> None:
    from nfw.policytest import difference_lines

    emit(path)
    for result in results:
        if result.passed:
            emit(f"  ok    {result.test.name}: {result.seen}")
            continue
        emit(f"  FAIL  {result.test.name} ({path}:{result.test.line})")
        for line in difference_lines(result):
            emit(f"        {line}")

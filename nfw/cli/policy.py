"""``nfw policy check``, ``show`` and ``apply``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, NearestGroup, emit, emit_json, tell
from nfw.cli.options import control_option, json_option, timeout_option
from nfw.control import ControlClient

if TYPE_CHECKING:
    from nfw.policy import Policy

APPLY_SECONDS = 180.0  # the daemon gives a policy 120 s to start


@click.group(cls=NearestGroup)
def policy() -> None:
    """Check, show or apply a policy."""


@policy.command()
@click.argument("file")
@json_option
def check(file: str, as_json: bool) -> int:
    """Load and compile the policy in FILE as the firewall would, and say everything that is wrong with it.

    Nothing is changed; the firewall need not run.
    """
    from nfw.cache import default_cache
    from nfw.policy.compile import compile_policy
    from nfw.policy.errors import Level, PolicyErrors
    from nfw.policy.loader import load_policy

    errors: tuple[Any, ...] = ()
    loaded = None
    cache = default_cache(tell)
    try:
        loaded = load_policy(file, check_key=True, cache=cache)
        warnings = loaded.warnings
        compile_policy(loaded, cache)
    except PolicyErrors as refused:
        errors = refused.errors
        warnings = refused.warnings or (loaded.warnings if loaded else ())
    if as_json:
        found = [error.to_json() for error in errors] + [warning.to_json(Level.WARNING) for warning in warnings]
        summary = summarize(loaded) if loaded is not None and not errors else None
        emit_json({"ok": not errors, "file": file, "problems": found, "policy": summary})
        return 1 if errors else 0
    for warning in warnings:
        tell(f"{warning} [warning]")
    for error in errors:
        tell(str(error))
    if errors:
        count = f"{len(errors)} error{'s' if len(errors) != 1 else ''}"
        tell(f"{file}: {count}; this policy cannot be applied")
        return 1
    assert loaded is not None
    emit(f"{file}: ok, {describe(summarize(loaded))}")
    return 0


@policy.command()
@click.argument("file")
def show(file: str) -> None:
    """Print the policy in FILE in canonical form: sorted, defaults left out, comments gone."""
    from nfw.policy.dump import dump_policy
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy

    try:
        loaded = load_policy(file)
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused)) from None
    emit(dump_policy(loaded).rstrip("\n"))


@policy.command()
@click.argument("file")
@control_option
@timeout_option(APPLY_SECONDS)
@json_option
def apply(file: str, control: str, timeout: float, as_json: bool) -> int:
    """Make the running firewall switch to the policy in FILE.

    All or nothing: a policy with errors changes nothing.
    """
    path = os.path.abspath(file)
    if not os.path.exists(path):
        raise Failure(f"{file}: policy file does not exist")
    reply = ControlClient(control, timeout).request("apply", policy=path)
    data = reply.data if isinstance(reply.data, dict) else {}
    if as_json:
        emit_json({"ok": reply.ok, "errors": list(reply.errors), **data})
        return 0 if reply.ok else 1
    if not reply.ok:
        raise Failure(*reply.errors, f"{file}: not applied; the running policy is unchanged")
    for warning in data.get("warnings", ()):
        tell(f"{warning} [warning]")
    emit(f"{file}: applied as generation {data.get('generation', '?')}")
    return 0


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

    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    scopes = summary["tls_scopes"]
    return ", ".join(
        [
            f"policy {summary['name']}: " + count(summary["stateless_rules"], "stateless rule"),
            count(summary["stateful_rules"], "stateful rule"),
            f"TLS inspection of {count(scopes, 'scope')}" if scopes else "no TLS inspection",
        ]
    )

"""``nfw explain``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, emit, emit_json, tell
from nfw.cli.change import from_history
from nfw.cli.columns import wrapped
from nfw.cli.options import control_option, json_option, named, policy_options
from nfw.describe import KEYS, DescriptionError, read_description

if TYPE_CHECKING:
    from nfw.capture import Captured
    from nfw.explain import Explainer, Explanation
    from nfw.policy import Policy

_MANY = 20  # flows of a capture shown where nobody says how many


def _flow_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for key in reversed(KEYS.values()):
        option = "--" + key.name.replace("_", "-")
        more: dict[str, Any] = {"is_flag": True, "default": None} if key.flag else {"metavar": key.metavar}
        function = click.option(option, key.name, help=key.help, multiple=key.many, **more)(function)
    return function


@click.command()
@click.argument("files", nargs=-1, metavar="POLICY...", callback=named)
@_flow_options
@click.option(
    "--capture", metavar="FILE", callback=named, help="Instead of a described flow: every flow of a pcap or pcapng."
)
@click.option("--filter", "expression", metavar="EXPR", help="With --capture: only what this pcap filter lets through.")
@click.option(
    "--flows", type=click.IntRange(1, 1000), default=_MANY, show_default=True, help="With --capture: how many."
)
@click.option(
    "--tls",
    type=click.Choice(["stop", "inspect"]),
    help="With --capture: flows in a TLS scope are left, or inspected as they are on the wire.  [default: stop]",
)
@click.option("--running", is_flag=True, help="By the policy the running firewall filters by, instead of POLICY.")
@click.option("--all-rules", is_flag=True, help="Every rule, not only those that came near.")
@click.option("--packets", is_flag=True, help="Also what becomes of each packet.")
@policy_options
@control_option
@json_option
def explain(
    files: tuple[str, ...],
    capture: str | None,
    expression: str | None,
    flows: int,
    tls: str | None,
    running: bool,
    all_rules: bool,
    packets: bool,
    map_file: str | None,
    name: str,
    control: str,
    as_json: bool,
    **said: Any,
) -> int:
    """Say what POLICY does with a flow, and why: every step, every rule that came near, the verdict and its line.

    The flow is described by --src, --dst and what is said on it, or taken from a capture. Nothing is sent, and the
    firewall need not run; the packets go through the engines it uses. POLICY is all that `nfw policy check` takes.

    \b
    nfw explain egress.yaml --src 10.0.0.5 --dst 198.51.100.7 --sni www.example.org
    nfw explain egress.yaml --src 10.0.0.5 --dst 198.51.100.7 --http-host example.org --http-uri /setup.exe
    nfw explain egress.yaml --src 10.0.0.5 --dst 192.0.2.53 --dns-query www.example.org
    """
    described = {key: value for key, value in said.items() if value not in (None, ())}
    if running and (files or map_file or name):
        raise click.UsageError("--running takes the policy from the firewall: leave POLICY, --map and --name out")
    if not running and not files:
        raise click.UsageError("missing POLICY: a policy file, or --running for that of the running firewall")
    if capture is not None and described:
        options = ", ".join(map(_option, described))
        raise click.UsageError(f"--capture does not go with {options}: one flow or the other")
    if capture is None and (expression is not None or tls is not None):
        raise click.UsageError(f"{'--filter' if expression is not None else '--tls'} goes with --capture")
    flow = None
    if capture is None:
        try:
            flow = read_description(described)
        except DescriptionError as wrong:
            problems = "; ".join(f"{_option(key)}: {message}" for key, message in wrong.problems)
            raise click.UsageError(problems) from None
    policy = _running(control) if running else load(files, map_file, name)
    explainer = explainer_of(policy)
    if flow is not None:
        explained, left = [explainer.described(flow)], 0
    else:
        assert capture is not None
        explained, left = _captured(explainer, Path(capture), expression, tls == "inspect")
    _show(explained, left, flows, as_json=as_json, all_rules=all_rules, packets=packets, many=flow is None)
    return 0


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _show(
    explained: list[Explanation],
    left: int,
    flows: int,
    *,
    as_json: bool,
    all_rules: bool,
    packets: bool,
    many: bool,
) -> None:
    from nfw.explaintext import INDENT, explain_json, explain_lines

    shown = explained[:flows]
    if as_json:
        values = [explain_json(each, all_rules=all_rules) for each in shown]
        emit_json({"flows": values, "flows_total": len(explained) + left} if many else values[0])
        return
    for number, each in enumerate(shown):
        if number:
            emit("")
        for line in explain_lines(each, all_rules=all_rules, packets=packets):
            for part in wrapped(line, INDENT + 4 if line.startswith(" ") else INDENT):
                emit(part)
    if len(explained) + left > len(shown):
        tell(f"{len(explained) + left - len(shown)} more flows are not shown; --filter chooses, --flows shows more")
    elif not shown:
        tell("no flow: the capture holds no packet of IP that the filter lets through")


def load(files: tuple[str, ...], map_file: str | None, name: str) -> Policy:
    """The policy, its warnings told. Raises Failure with everything that is wrong."""
    from nfw.cache import default_cache
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy
    from nfw.policy.standin import without_ca

    try:
        with without_ca() as missed:
            loaded = load_policy(*files, map_file=map_file, name=name, cache=default_cache(tell))
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused)) from None
    tell_missed(missed)
    for warning in loaded.warnings:
        tell(f"{warning} [{warning.level.value}]")
    return loaded


def tell_missed(certificates: Iterable[Path]) -> None:
    """CAs that another one stood in for."""
    for path in certificates:
        tell(f"CA certificate {path} does not exist: flows are judged as with any other CA (`nfw ca create` makes one)")


def explainer_of(policy: Policy) -> Explainer:
    """Compiles the policy. Raises Failure."""
    from nfw.cache import default_cache
    from nfw.explain import Explainer
    from nfw.policy.compile import compile_policy
    from nfw.policy.errors import PolicyErrors

    cache = default_cache(tell)
    try:
        return Explainer(compile_policy(policy, cache), cache)
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused)) from None


def _captured(
    explainer: Explainer, path: Path, expression: str | None, inspect_tls: bool
) -> tuple[list[Explanation], int]:
    from nfw.capture import CaptureError, FilterError, filtered, not_twice, read_capture

    def packets() -> Iterator[Captured]:
        found = read_capture(path)
        return found if expression is None else filtered(found, expression)

    try:
        not_twice(path)
        return explainer.captured(packets, inspect_tls=inspect_tls)
    except CaptureError as error:
        raise Failure(str(error)) from None
    except FilterError as error:
        raise click.BadParameter(str(error), param_hint="--filter") from None


def _running(control: str) -> Policy:
    """What the running firewall filters by: as it was kept, else what its files say now."""
    from nfw.control import ControlClient

    client = ControlClient(control, 10.0)
    if client.request("policy").ok:
        return from_history(client, None).policy
    reply = client.request("status")
    source = (reply.data or {}).get("policy_source") if isinstance(reply.data, dict) else None
    if not reply.ok or not isinstance(source, dict):
        raise Failure(*(reply.errors or ("nfw: no policy filters yet: see `nfw status`",)))
    tell("the running policy was not kept: this is what its files say now")
    files = (source["file"], *source["more"])
    policy = load(files, source["map"] or None, source["name"])
    _tell_changed(policy, files, float(reply.data.get("since", 0.0)))
    return policy


def _tell_changed(policy: Policy, files: tuple[str, ...], since: float) -> None:
    """Say which files are not what the firewall has read."""
    stateful = policy.stateful
    sources = [*stateful.sources, *(source for group in stateful.groups for source in group.sources)]
    for file in dict.fromkeys([*files, *(source.file for source in sources)]):
        with contextlib.suppress(OSError):
            if os.stat(file).st_mtime > since:
                tell(f"{file}: changed since the firewall has read it; this is what it says now")

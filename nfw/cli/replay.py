"""``nfw replay``."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nfw.cli.app import Failure, emit, tell
from nfw.cli.options import named, policy_options
from nfw.cli.problems import counted

if TYPE_CHECKING:
    from engines.stateful.firewall.rules import FirewallRule
    from engines.stateful.parser import Variables
    from engines.stateful.ruleconfig import RuleConfig
    from engines.stateful.signature import RuleError, Signature
    from nfw.cache import Cache
    from nfw.capture import Captured
    from nfw.policyreplay import PolicySummary
    from nfw.replay import ReplayOptions, Summary

_LONG = 20_000_000  # bytes of capture from which on a progress bar is worth its lines
# Runs packets and gives what to print below the alerts; records go to the second argument.
_Runner = Callable[[Iterator["Captured"], Callable[[dict[str, Any]], None]], Any]


@click.command()
@click.argument("capture", callback=named)
@click.option("--rules", "rule_files", multiple=True, metavar="FILE", callback=named, help="A rule file; repeatable.")
@click.option(
    "--firewall-rules",
    "firewall_files",
    multiple=True,
    metavar="FILE",
    help="Rules of Suricata's firewall mode: what they do not accept is dropped; repeatable. --rules see the rest.",
)
@click.option(
    "--policy",
    metavar="FILE",
    callback=named,
    help="A whole policy, as the firewall would apply it (AWS documents: a file or folder).",
)
@policy_options
@click.option(
    "--tls",
    type=click.Choice(["stop", "inspect"]),
    help="With --policy: flows in a TLS scope are left, or inspected as they are on the wire.  [default: stop]",
)
@click.option("--mode", type=click.Choice(["ids", "ips"]), help="ips: drops act, inline.  [default: ids]")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting, named as Suricata's; repeatable."
)
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the rules; repeatable.")
@click.option("--threshold", metavar="FILE", help="A threshold.config: suppress, threshold, event_filter, rate_filter.")
@click.option("--classification", metavar="FILE", help="A classification.config, instead of Suricata's own.")
@click.option("--reference", metavar="FILE", help="A reference.config, instead of Suricata's own.")
@click.option("--geoip", metavar="FILE", help="A MaxMind database of countries, for rules with geoip.")
@click.option("--filter", "expression", metavar="EXPR", help="Only the packets this pcap filter lets through.")
@click.option(
    "--eve", metavar="FILE", callback=named, help="Write the EVE records there, one line each; - is standard output."
)
@click.option("--strict", is_flag=True, help="Stop when a rule is refused instead of going on without it.")
def replay(
    capture: str,
    rule_files: tuple[str, ...],
    firewall_files: tuple[str, ...],
    policy: str | None,
    map_file: str | None,
    name: str,
    tls: str | None,
    mode: str | None,
    settings: tuple[str, ...],
    variables: tuple[str, ...],
    threshold: str | None,
    classification: str | None,
    reference: str | None,
    geoip: str | None,
    expression: str | None,
    eve: str | None,
    strict: bool,
) -> int:
    """Run rules over a CAPTURE (pcap, pcapng, also gzip; - is standard input) as Suricata would, or a policy as the
    firewall would, and say what they find.

    Settings: exception-policy, host-os-policy, packet-alert-max, stream.midstream, stream.inline and others of
    Suricata's configuration; a wrong name prints the nearest. With --firewall-rules also the default policies, as in
    --set firewall.policies.app.dns.request-started=accept:hook.
    """
    from nfw.cache import default_cache

    if policy is None:
        if not rule_files and not firewall_files:
            expected = "expected --rules FILE, --firewall-rules FILE or --policy FILE"
            raise click.UsageError(f"nothing to run over the capture: {expected}")
        if firewall_files and mode == "ids":
            raise click.UsageError("--firewall-rules drop what they do not accept: --mode ids does not go with them")
        if tls is not None:
            raise click.UsageError("--tls is for --policy: rules alone intercept nothing")
        if map_file is not None or name:
            raise click.UsageError("--map and --name are for --policy")
        options = _options("ips" if firewall_files else mode or "ids", settings)
        if options.policies and not firewall_files:
            raise click.UsageError("firewall.policies are for --firewall-rules")
        files = _Files(rule_files, threshold, classification, reference, geoip)
        cache, values = default_cache(tell), _variables(variables)
        known: set[tuple[int, int]] = set()
        firewall = _firewall_rules(firewall_files, files, values, strict, known) if firewall_files else None
        signatures = _rules(files, values, strict, cache, known, scopes=firewall is not None)
        runner = _rules_runner(options, signatures, cache, firewall)
    else:
        given = {
            "--rules": rule_files,
            "--firewall-rules": firewall_files,
            "--mode": mode,
            "--set": settings,
            "--var": variables,
            "--threshold": threshold,
            "--classification": classification,
            "--reference": reference,
            "--geoip": geoip,
            "--strict": strict,
        }
        for option, value in given.items():
            if value:
                raise click.UsageError(f"{option} does not go with --policy: the policy says all that")
        runner = _policy_runner(policy, map_file, name, tls == "inspect", default_cache(tell))
    return _run(Path("/dev/stdin" if capture == "-" else capture), expression, runner, eve)


def _run(path: Path, expression: str | None, runner: _Runner, eve: str | None) -> int:
    from nfw.capture import CaptureError, FilterError, filtered, read_capture

    packets_of = _progress(path, read_capture(path))
    if expression is not None:
        packets_of = filtered(packets_of, expression)
    try:
        first = next(packets_of, None)  # what cannot be read at all is said before anything is written
    except CaptureError as error:
        raise Failure(str(error)) from None
    except FilterError as error:
        raise click.BadParameter(str(error), param_hint="--filter") from None
    tally = _Tally(_output(eve))
    wrong = None
    stopped = False
    read = 0

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)  # the second one ends the program as usual

    def watched() -> Iterator[Captured]:
        nonlocal wrong, read
        packet = first
        try:
            while packet is not None and not stopped:
                yield packet
                read, packet = packet.number, next(packets_of, None)
        except CaptureError as error:
            wrong = str(error)
        if stopped:
            wrong = f"{path}: stopped after packet {read}"

    before = signal.signal(signal.SIGINT, stop)
    try:
        summary = runner(watched(), tally.event)
    finally:
        signal.signal(signal.SIGINT, before)
        tally.close()
    if eve != "-":
        tally.show(summary)
    if wrong is not None:
        tell(wrong)
        return 130 if stopped else 1
    return 0


class _Tally:
    """Counts the records that go by and writes them where they are wanted."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._alerts: dict[int, list[Any]] = {}
        self._drops: dict[str, int] = {}
        self._flows = 0

    def event(self, record: dict[str, Any]) -> None:
        kind = record["event_type"]
        if kind == "alert":
            alert = record["alert"]
            self._alerts.setdefault(alert["signature_id"], [0, alert["signature"]])[0] += 1
        elif kind == "drop":
            reason = record["drop"]["reason"]
            self._drops[reason] = self._drops.get(reason, 0) + 1
        elif kind == "flow":
            self._flows += 1
        if self._out is not None:
            try:
                self._out.write(json.dumps(record, separators=(",", ":")) + "\n")
            except OSError as error:
                raise self._unwritten(error) from None

    def close(self) -> None:
        if self._out is not None and self._out is not sys.stdout:
            try:
                self._out.close()
            except OSError as error:
                raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> Exception:
        """With the name of the file; a reader of standard output that leaves is nobody's failure."""
        return error if isinstance(error, BrokenPipeError) else Failure(f"{self._out.name}: {error.strerror}")

    def show(self, summary: Summary | PolicySummary) -> None:
        from nfw.replay import Summary

        alerts = sum(number for number, _ in self._alerts.values())
        policy = None if isinstance(summary, Summary) else summary
        dropped = sum(self._drops.values()) if policy is None else policy.dropped
        counts = ((summary.packets, "packet"), (self._flows, "flow"), (alerts, "alert"), (dropped, "dropped packet"))
        emit(", ".join(counted(*each) for each in counts))
        if summary.unread:
            emit(f"{counted(summary.unread, 'packet')} without IP, not looked at")
        for sid, (number, text) in sorted(self._alerts.items()):
            emit(f"{number:8} × {sid}  {text}")
        if policy is not None:
            _show_policy(policy)
            return
        for reason, number in sorted(self._drops.items()):
            emit(f"{number:8} dropped: {reason}")


def _show_policy(summary: PolicySummary) -> None:
    if summary.short:
        emit(f"{counted(summary.short, 'packet')} cut short by the capture: the firewall would have seen more")
    if summary.intercepted:
        emit(f"{counted(summary.intercepted, 'flow')} in a TLS scope, which would be intercepted")
    if summary.injected:
        emit(f"{summary.injected} resets and ICMP errors would be sent")
    if summary.incomplete:
        emit(f"{summary.incomplete} datagrams were never complete: not every fragment came")
    emit("verdicts by stage and reason:")
    for what, number in sorted(summary.verdicts.items()):
        emit(f"{number:8} {what.stage:9} {what.verdict:9} {what.reason}")
    emit("stateless rules:")
    for rule, hits in summary.stateless:
        named = rule.name or rule.group
        name = f" ({named})" if named else ""
        emit(f"{hits:8} × priority {rule.priority}: {rule.action.value}{name}")
    emit(f"{summary.stateless_default:8} × default")
    for name, hits in summary.counters.items():
        emit(f"{hits:8} × counter {name}")
    if summary.hits:
        emit("stateful rules and default actions:")
        for name, hits in sorted(summary.hits.items()):
            emit(f"{hits:8} × {name}")


def _rules_runner(
    options: ReplayOptions, signatures: list[Signature], cache: Cache | None, firewall: list[FirewallRule] | None
) -> _Runner:
    from nfw.replay import replay as run

    return lambda packets, event: run(packets, signatures, options, event, cache, tell, firewall)


def _policy_runner(file: str, map_file: str | None, name: str, inspect_tls: bool, cache: Cache | None) -> _Runner:
    from nfw.policy.compile import compile_policy
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy
    from nfw.policyreplay import replay_policy

    try:
        loaded = load_policy(file, map_file=map_file, name=name, cache=cache)
        compiled = compile_policy(loaded, cache)
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused), f"{file}: nothing was replayed") from None
    for warning in loaded.warnings:
        tell(f"{warning} [{warning.level.value}]")
    return lambda packets, event: replay_policy(packets, compiled, event, inspect_tls=inspect_tls)


def _options(mode: str, settings: tuple[str, ...]) -> ReplayOptions:
    from nfw.replay import ReplayOptions, SettingError, apply_setting, check_policies

    options = ReplayOptions(enforce=mode == "ips")
    if mode == "ips":
        options = apply_setting(options, "stream.inline", "yes")
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
        try:
            options = apply_setting(options, name, value)
        except SettingError as error:
            raise click.BadParameter(str(error), param_hint="--set") from None
    try:
        check_policies(options)
    except SettingError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    return options


def _variables(written: tuple[str, ...]) -> Variables:
    from engines.stateful.parser import Variables
    from nfw.replay import ADDRESS_VARIABLES, PORT_VARIABLES

    addresses, ports = dict(ADDRESS_VARIABLES), dict(PORT_VARIABLES)
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--var")
        (ports if name in ports or "PORT" in name else addresses)[name.lstrip("$")] = value
    return Variables(addresses=addresses, ports=ports)


class _Files(NamedTuple):
    """What a set of rules is written in."""

    rules: tuple[str, ...]
    threshold: str | None
    classification: str | None
    reference: str | None
    geoip: str | None


def _firewall_rules(
    paths: tuple[str, ...], files: _Files, variables: Variables, strict: bool, known: set[tuple[int, int]]
) -> list[FirewallRule]:
    """None is left out: traffic is let through, or stopped, by the others in its place."""
    from engines.stateful.firewall.rules import parse_firewall_rules
    from nfw.policy.files import list_reader

    config = _rule_config(files, strict)
    rules: list[FirewallRule] = []
    refused = 0
    for file in paths:
        with_lists = dataclasses.replace(config, read_list=list_reader(file))
        text = _read(file, "file of firewall rules")
        parsed = parse_firewall_rules(text, file, variables, config=with_lists, known_sids=known)
        for problem in parsed.errors:
            tell(str(problem))
        for note in (*parsed.warnings, *parsed.skipped):
            tell(f"{note} [warning]")
        refused += len(parsed.errors)
        rules += parsed.rules
    if refused:
        raise Failure(f"{counted(refused, 'firewall rule')} refused; nothing was replayed")
    return rules


def _rules(
    files: _Files,
    variables: Variables,
    strict: bool,
    cache: Cache | None,
    known: set[tuple[int, int]],
    *,
    scopes: bool,
) -> list[Signature]:
    """``scopes``: actions may say what they are for, as in firewall mode."""
    from nfw.cache import parse_rules_cached
    from nfw.policy.files import list_reader

    config = dataclasses.replace(_rule_config(files, strict), action_scopes=scopes)
    signatures: list[Signature] = []
    refused = 0
    for file in files.rules:
        with_lists = dataclasses.replace(config, read_list=list_reader(file))
        text = _read(file, "rule file")
        parsed = parse_rules_cached(cache, text, file, variables, config=with_lists, known_sids=known)
        for problem in parsed.errors:
            tell(str(problem))
        refused += len(parsed.errors)
        signatures += parsed.signatures
    if refused and strict:
        raise Failure(f"{refused} rules are refused; nothing was replayed")
    if refused and not signatures:
        raise Failure("no rule is left; nothing was replayed")
    if refused:
        tell(f"{refused} rules are refused, {len(signatures)} are used")
    return signatures if files.threshold is None else _thresholds(files.threshold, signatures, variables, strict)


def _rule_config(files: _Files, strict: bool) -> RuleConfig:
    from engines.stateful.ruleconfig import DEFAULT_CONFIG, read_classifications, read_references
    from nfw.geoip import GeoIpError, open_countries

    config = DEFAULT_CONFIG
    if files.classification is not None:
        text = _read(files.classification, "classification file")
        classes, errors = read_classifications(text, files.classification)
        config = dataclasses.replace(config, classes=classes)
        _refused_lines(files.classification, errors, strict)
    if files.reference is not None:
        references, errors = read_references(_read(files.reference, "reference file"), files.reference)
        config = dataclasses.replace(config, references=references)
        _refused_lines(files.reference, errors, strict)
    if files.geoip is not None:
        try:
            config = dataclasses.replace(config, country=open_countries(Path(files.geoip)))
        except GeoIpError as error:
            raise Failure(f"--geoip: {error}") from None
    return config


def _thresholds(file: str, signatures: list[Signature], variables: Variables, strict: bool) -> list[Signature]:
    from engines.stateful.thresholdconfig import parse_threshold_config

    config = parse_threshold_config(_read(file, "threshold file"), file, variables)
    changed, warnings = config.apply(signatures)
    _refused_lines(file, config.errors, strict)
    for warning in warnings:
        tell(f"{warning} [warning]")
    return changed


def _refused_lines(file: str, errors: list[RuleError], strict: bool) -> None:
    for error in errors:
        tell(str(error))
    if errors and strict:
        raise Failure(f"{len(errors)} lines of {file} are refused; nothing was replayed")


def _read(file: str, what: str) -> str:
    from nfw.policy.files import read_bounded
    from nfw.policy.read_stateful import MAX_RULE_FILE_BYTES

    try:
        return read_bounded(Path(file), MAX_RULE_FILE_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise Failure(f"{file}: {what} {error.strerror}") from None


def _output(eve: str | None) -> Any:
    if eve is None:
        return None
    return sys.stdout if eve == "-" else open(eve, "w", encoding="utf-8")


def _progress(path: Path, packets: Iterator[Captured]) -> Iterator[Captured]:
    """A bar on standard error where somebody can see it and would wait."""
    size = path.stat().st_size if path.exists() else 0
    if size < _LONG or not sys.stderr.isatty():
        yield from packets
        return
    with click.progressbar(length=size, label=path.name, file=sys.stderr) as bar:
        pending = 0
        for packet in packets:
            pending += len(packet.data) + 16
            if pending >= size // 200:
                bar.update(pending)
                pending = 0
            yield packet

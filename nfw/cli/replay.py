"""``nfw replay``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, emit, tell

if TYPE_CHECKING:
    from nfw.cache import Cache
    from nfw.capture import Captured

_LONG = 20_000_000  # bytes of capture from which on a progress bar is worth its lines


@click.command()
@click.argument("capture")
@click.option("--rules", "rule_files", multiple=True, required=True, metavar="FILE", help="A rule file; repeatable.")
@click.option(
    "--mode", type=click.Choice(["ids", "ips"]), default="ids", show_default=True, help="ips: drops act, inline."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting, named as Suricata's; repeatable."
)
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the rules; repeatable.")
@click.option("--eve", metavar="FILE", help="Write the EVE records there, one line each; - is standard output.")
@click.option("--strict", is_flag=True, help="Stop when a rule is refused instead of going on without it.")
def replay(
    capture: str,
    rule_files: tuple[str, ...],
    mode: str,
    settings: tuple[str, ...],
    variables: tuple[str, ...],
    eve: str | None,
    strict: bool,
) -> int:
    """Run rules over a CAPTURE (pcap, pcapng) as Suricata would, and say what they find.

    Settings: exception-policy, host-os-policy, packet-alert-max, stream.midstream, stream.inline and others of
    Suricata's configuration; a wrong name prints the nearest.
    """
    from nfw.cache import default_cache
    from nfw.capture import CaptureError, read_capture
    from nfw.replay import replay as run

    options = _options(mode, settings)
    cache = default_cache(tell)
    signatures = _rules(rule_files, variables, strict, cache)
    path = Path(capture)
    packets_of = iter(_progress(path, read_capture(path)))
    try:
        first = next(packets_of, None)  # what cannot be read at all is said before anything is written
    except CaptureError as error:
        raise Failure(str(error)) from None
    counted: dict[int, list[Any]] = {}
    drops: dict[str, int] = {}
    flows = 0
    out = _output(eve)

    def event(record: dict[str, Any]) -> None:
        nonlocal flows
        kind = record["event_type"]
        if kind == "alert":
            alert = record["alert"]
            counted.setdefault(alert["signature_id"], [0, alert["signature"]])[0] += 1
        elif kind == "drop":
            reason = record["drop"]["reason"]
            drops[reason] = drops.get(reason, 0) + 1
        elif kind == "flow":
            flows += 1
        if out is not None:
            out.write(json.dumps(record, separators=(",", ":")) + "\n")

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
        summary = run(watched(), signatures, options, event, cache, tell)
    finally:
        signal.signal(signal.SIGINT, before)
        if out is not None and out is not sys.stdout:
            out.close()
    if eve != "-":
        alerts = sum(number for number, _ in counted.values())
        emit(f"{summary.packets} packets, {flows} flows, {alerts} alerts, {sum(drops.values())} dropped packets")
        if summary.unread:
            emit(f"{summary.unread} packets carry no IP and were not looked at")
        for sid, (number, text) in sorted(counted.items()):
            emit(f"{number:8} × {sid}  {text}")
        for reason, number in sorted(drops.items()):
            emit(f"{number:8} dropped: {reason}")
    if wrong is not None:
        tell(wrong)
        return 130 if stopped else 1
    return 0


def _options(mode: str, settings: tuple[str, ...]) -> Any:
    from nfw.replay import ReplayOptions, SettingError, apply_setting

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
    return options


def _rules(files: tuple[str, ...], written: tuple[str, ...], strict: bool, cache: Cache | None) -> list[Any]:
    from engines.stateful.parser import Variables
    from nfw.cache import parse_rules_cached
    from nfw.policy.files import read_bounded
    from nfw.policy.read_stateful import MAX_RULE_FILE_BYTES
    from nfw.replay import ADDRESS_VARIABLES, PORT_VARIABLES

    addresses, ports = dict(ADDRESS_VARIABLES), dict(PORT_VARIABLES)
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--var")
        (ports if name in ports or "PORT" in name else addresses)[name.lstrip("$")] = value
    variables = Variables(addresses=addresses, ports=ports)
    signatures: list[Any] = []
    refused = 0
    known: set[tuple[int, int]] = set()
    for file in files:
        try:
            text = read_bounded(Path(file), MAX_RULE_FILE_BYTES).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise Failure(f"{file}: rule file {error.strerror}") from None
        parsed = parse_rules_cached(cache, text, file, variables, known_sids=known)
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
    return signatures


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

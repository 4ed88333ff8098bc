"""Runs a folder of Suricata conformance data: captures and rules in, counts compared with the expected ones.

    python tests/conformance/run.py DIR [--only NAME ...] [--tier T] [--family F] [--jobs N] [--seconds S] [-v]
        [--record FILE] [--check FILE]

The folder has a ``manifest.json``; its README says what each field means. Prints what differs for each entry that
fails, a table by tier and family, and last ``N passed, N failed``. ``--record`` writes the names that pass to a file,
``--check`` fails when one of the names in a file does not pass any more. Entries run in processes bounded in time and
memory: one that crashes or hangs is one failure, and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fnmatch
import io
import json
import multiprocessing
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from engines.stateful.firewall.rules import ParsedFirewallRules, parse_firewall_rules
from engines.stateful.parser import ParsedRules, Variables, parse_rules
from engines.stateful.ruleconfig import RuleConfig
from engines.stateful.thresholdconfig import parse_threshold_config
from nfw.capture import Captured, CaptureError, filtered, read_capture
from nfw.policy.files import list_reader
from nfw.replay import ADDRESS_VARIABLES, PORT_VARIABLES, ReplayOptions, SettingError, apply_setting, replay

ENTRY_SECONDS = 30.0
ENTRY_MEMORY = 4 << 30  # bytes of address space
# Names of fields in the data -> where they are in an EVE record.
_FIELDS = {"sid": "alert.signature_id", "action": "alert.action"}


@dataclass(frozen=True, slots=True)
class Result:
    """``problems`` is empty when the entry passes."""

    name: str
    tier: str
    family: str
    kind: str
    problems: tuple[str, ...]


def run_entry(folder: Path, entry: Mapping[str, Any]) -> Result:
    """Run and score one entry; no exception of the program is one here."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            problems = _load(folder, entry) if entry["kind"] == "load" else _replay(folder, entry)
    except Exception as error:  # an entry that makes the program fail has failed
        problems = [f"{type(error).__name__}: {error}"]
    return _result(entry, problems)


def _result(entry: Mapping[str, Any], problems: Iterable[str]) -> Result:
    return Result(entry["name"], entry["tier"], entry["family"], entry["kind"], tuple(problems))


def _variables(entry: Mapping[str, Any]) -> Variables:
    given = (entry.get("options") or {}).get("vars") or {}
    addresses, ports = dict(ADDRESS_VARIABLES), dict(PORT_VARIABLES)
    for name, value in given.items():
        (ports if name in ports or "PORT" in name else addresses)[name] = value
    return Variables(addresses=addresses, ports=ports)


def _parse_firewall(folder: Path, entry: Mapping[str, Any]) -> ParsedFirewallRules | None:
    """The rules of an entry in firewall mode."""
    if (entry.get("options") or {}).get("mode") != "firewall":
        return None
    path = folder / entry["dir"] / "firewall.rules"
    text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    config = RuleConfig(read_list=list_reader(str(path)))
    return parse_firewall_rules(text, "firewall.rules", _variables(entry), config=config)


def _parse(folder: Path, entry: Mapping[str, Any]) -> Any:
    variables = _variables(entry)
    if not entry.get("rules"):  # firewall mode, and nothing behind it
        return ParsedRules()
    text = (folder / entry["dir"] / entry["rules"]).read_bytes().decode("utf-8", "surrogateescape")
    firewall = (entry.get("options") or {}).get("mode") == "firewall"
    reader = list_reader(str(folder / entry["dir"] / entry["rules"]))
    config = RuleConfig(read_list=reader, action_scopes=firewall)
    parsed = parse_rules(text, entry["rules"], variables, config=config)
    if "threshold.config" in (entry.get("aux") or ()):
        changes = (folder / entry["dir"] / "threshold.config").read_text("utf-8", "surrogateescape")
        parsed.signatures, _ = parse_threshold_config(changes, "threshold.config", variables).apply(parsed.signatures)
    return parsed


def _load(folder: Path, entry: Mapping[str, Any]) -> list[str]:
    wanted = entry["expected_load"]
    parsed = _parse(folder, entry)
    problems = []
    failed = len(parsed.errors)
    if (wanted["result"] == "reject") != bool(failed):
        problems.append(f"expected the file to be {wanted['result']}ed, {failed} rules are refused")
    for name, seen in (("loaded", len(parsed.signatures)), ("failed", failed)):
        if wanted.get(name) is not None and wanted[name] != seen:
            problems.append(f"{name}: expected {wanted[name]}, seen {seen}")
    if failed < (wanted.get("failed_min") or 0):
        problems.append(f"failed: expected at least {wanted['failed_min']}, seen {failed}")
    loaded = {signature.ref.id for signature in parsed.signatures}
    problems += [f"sid {sid} should be refused" for sid in wanted.get("failed_sids") or () if sid in loaded]
    return problems


def _options(entry: Mapping[str, Any]) -> ReplayOptions:
    given = entry["options"]
    options = ReplayOptions(enforce=given["mode"] == "ips")
    config = {
        str(name): ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in (given.get("config") or {}).items()
    }
    os_policy = given["os_policy"]
    if isinstance(os_policy, dict):
        os_policy = ",".join(f"{name}={net}" for name, nets in os_policy.items() for net in nets)
    settings: dict[str, Any] = {
        "stream.inline": given["stream_inline"],
        "exception-policy": given["exception_policy"],
        "host-os-policy": os_policy,
        "drop.flows": (given.get("drop_log") or {}).get("flows", "all"),
        "stream.checksum-validation": given["checksums"] == "on",
        "action-order": ",".join(given.get("action_order") or ("pass", "drop", "reject", "alert")),
        **config,
    }
    for name, value in settings.items():
        with contextlib.suppress(SettingError):  # what cannot be set shows in what is seen
            options = apply_setting(options, name, str(value))
    return options


def _replay(folder: Path, entry: Mapping[str, Any]) -> list[str]:
    parsed, firewall = _parse(folder, entry), _parse_firewall(folder, entry)
    records: list[dict[str, Any]] = []
    broken: list[str] = []

    def packets() -> Iterable[Captured]:
        try:
            read = read_capture(folder / entry["dir"] / entry["pcap"])
            expression = entry["options"].get("bpf")
            yield from read if expression is None else filtered(read, expression)
        except CaptureError as error:
            broken.append(str(error))

    rules = firewall.rules if firewall is not None else None
    summary = replay(packets(), parsed.signatures, _options(entry), records.append, firewall=rules)
    problems = _score(entry, records, summary.counts)
    refused = [*parsed.errors, *(firewall.errors if firewall is not None else ())]
    loaded = len(parsed.signatures) + (len(firewall.rules) if firewall is not None else 0)
    for name, seen in (("loaded", loaded), ("failed", len(refused))):
        wanted = (entry.get("expected_load") or {}).get(name)
        if firewall is not None and wanted is not None and wanted != seen:
            problems.append(f"{name}: expected {wanted}, seen {seen}")
    if problems:
        problems += [f"refused: {error}" for error in refused[:3]] + broken
    return problems


def _score(entry: Mapping[str, Any], records: list[dict[str, Any]], counts: Mapping[str, int]) -> list[str]:
    """What differs from the expected, a line each."""
    alerts = Counter(r["alert"]["signature_id"] for r in records if r["event_type"] == "alert")
    drops = [r for r in records if r["event_type"] == "drop"]
    problems = []
    for sid, wanted in (entry.get("expected") or {}).items():
        if alerts[int(sid)] != wanted:
            problems.append(f"sid {sid}: expected {wanted}, seen {alerts[int(sid)]}")
    for sid, wanted in (entry.get("at_least") or {}).items():
        if alerts[int(sid)] < wanted:
            problems.append(f"sid {sid}: expected at least {wanted}, seen {alerts[int(sid)]}")
    total = entry.get("expected_total")
    if total is not None and alerts.total() != total:
        problems.append(f"alerts: expected {total}, seen {alerts.total()}")
    wanted_drops = entry.get("expected_drops") or {}
    if wanted_drops.get("total") is not None and len(drops) != wanted_drops["total"]:
        problems.append(f"drops: expected {wanted_drops['total']}, seen {len(drops)}")
    by_sid = Counter(r["alert"]["signature_id"] for r in drops if "alert" in r)
    for sid, wanted in (wanted_drops.get("by_sid") or {}).items():
        if by_sid[int(sid)] != wanted:
            problems.append(f"drops by sid {sid}: expected {wanted}, seen {by_sid[int(sid)]}")
    for name, wanted in (entry.get("expected_stats") or {}).items():
        if counts.get(name, 0) != wanted:
            problems.append(f"{name}: expected {wanted}, seen {counts.get(name, 0)}")
    for check in entry.get("checks") or ():
        seen = sum(r["event_type"] == check["event"] and _fits(r, check["where"]) for r in records)
        if seen != check["count"]:
            problems.append(f"{check['event']} where {check['where']}: expected {check['count']}, seen {seen}")
    return problems


def _fits(record: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    for name, wanted in where.items():
        value: Any = record
        for part in _FIELDS.get(name, name).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != wanted and not _same_address(value, wanted):
            return False
    return True


def _same_address(value: object, wanted: object) -> bool:
    """IPv6 addresses have more than one text; Suricata writes all the zeros."""
    if not (isinstance(value, str) and isinstance(wanted, str) and ":" in value and ":" in wanted):
        return False
    try:
        return ip_address(value) == ip_address(wanted)
    except ValueError:
        return False


@dataclass(slots=True)
class _Worker:
    """A process that runs entries one after the other. ``index``: the one at work; ``until``: monotonic seconds."""

    process: Any
    pipe: Any
    index: int
    until: float

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()

    def take(self, index: int) -> bool:
        """Begin with an entry; False: the process is gone."""
        self.index = index
        try:
            self.pipe.send(index)
        except OSError:
            self.end()
            return False
        return True

    def answer(self) -> list[str]:
        """The problems of the entry."""
        try:
            return list(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            return [f"its process died: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"]


def run(folder: Path, entries: Sequence[Mapping[str, Any]], jobs: int, seconds: float = ENTRY_SECONDS) -> list[Result]:
    """All entries, in order, over so many processes, each entry for so long at most."""
    found: dict[int, Sequence[str]] = {}
    workers: dict[Any, _Worker] = {}
    waiting = iter(range(len(entries)))

    def begin(worker: _Worker | None = None) -> None:
        index = next(waiting, None)
        if index is None:
            if worker is not None:
                worker.end()
            return
        if worker is None or not worker.take(index):
            worker = _start(folder, entries)
            worker.take(index)
        worker.until = time.monotonic() + seconds
        workers[worker.pipe] = worker

    try:
        for _ in range(jobs):
            begin()
        while workers:
            next_end = min(worker.until for worker in workers.values())
            ready = wait(list(workers), max(0.0, next_end - time.monotonic()))
            for pipe in ready:
                worker = workers.pop(pipe)
                found[worker.index] = worker.answer()
                if worker.process.exitcode is None:
                    begin(worker)
                else:
                    worker.end()
                    begin()
            now = time.monotonic()
            for worker in [worker for worker in workers.values() if worker.until <= now and not worker.pipe.poll()]:
                del workers[worker.pipe]
                worker.end()
                found[worker.index] = [f"took longer than {seconds:g} s"]
                begin()
    finally:
        for worker in workers.values():
            worker.end()
    return [_result(entry, found[index]) for index, entry in enumerate(entries)]


def _start(folder: Path, entries: Sequence[Mapping[str, Any]]) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(ours, theirs, folder, entries))
    process.start()
    theirs.close()  # the child's is the only one, and its death is the end of the pipe
    return _Worker(process, ours, 0, 0.0)


def _work(parents: Any, pipe: Any, folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    parents.close()
    resource.setrlimit(resource.RLIMIT_AS, (ENTRY_MEMORY, ENTRY_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pipe.send(run_entry(folder, entries[pipe.recv()]).problems)


def main() -> int:
    """The exit status: 0 when all passed, or with ``--check`` none of the recorded names failed."""
    parser = argparse.ArgumentParser(description="Run a folder of Suricata conformance data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", metavar="NAME", help="entries by name, with * and ?; repeatable")
    parser.add_argument("--tier", choices=["core", "extended", "stretch"])
    parser.add_argument("--family")
    parser.add_argument("--jobs", type=_positive, default=multiprocessing.cpu_count(), help="entries at a time")
    parser.add_argument("--seconds", type=_positive, default=int(ENTRY_SECONDS), help="for one entry")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the names that pass")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail when a name in FILE does not pass")
    parser.add_argument("-v", "--verbose", action="store_true", help="every difference, not only the first three")
    options = parser.parse_args()
    entries = load_manifest(options.folder)
    recorded = set(options.check.read_text().split("\n")) - {""} if options.check else set()
    if options.check:
        entries = [entry for entry in entries if entry["name"] in recorded]
    entries = [
        entry
        for entry in entries
        if (options.only is None or any(fnmatch.fnmatch(entry["name"], pattern) for pattern in options.only))
        and options.tier in (None, entry["tier"])
        and options.family in (None, entry["family"])
    ]
    results = run(options.folder, entries, options.jobs, options.seconds)
    for result in results:
        if result.problems:
            shown = result.problems if options.verbose else result.problems[:3]
            print(f"{result.name} ({result.tier}, {result.family})")
            for problem in shown:
                print(f"    {problem}")
    _table(results)
    if options.record:
        options.record.write_text("".join(f"{result.name}\n" for result in results if not result.problems))
    failed = sum(bool(result.problems) for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def load_manifest(folder: Path) -> list[Mapping[str, Any]]:
    """The entries of a folder."""
    entries: list[Mapping[str, Any]] = json.loads((folder / "manifest.json").read_text())["entries"]
    return entries


def _table(results: list[Result]) -> None:
    rows: dict[tuple[str, str], list[int]] = {}
    for result in results:
        for key in ((result.tier, f"{result.family} ({result.kind})"), (result.tier, "all")):
            row = rows.setdefault(key, [0, 0])
            row[0] += not result.problems
            row[1] += 1
    print()
    for (tier, family), (passed, total) in sorted(rows.items()):
        print(f"{tier:9} {family:32} {passed:4} of {total:4}  {passed / total:7.1%}")


if __name__ == "__main__":
    sys.exit(main())

"""``nfw policy apply``, ``confirm``, ``rollback``, ``history``, ``diff`` and ``show``: dealing with the running one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nfw.cli.app import Failure, emit, emit_json, tell
from nfw.cli.columns import table
from nfw.cli.options import ENTRY, Seconds, control_option, json_option, named, policy_options, timeout_option
from nfw.cli.problems import counted, tell_problems
from nfw.control import ControlClient, NotRunningError, Reply
from nfw.settings import DEFAULT_STATE, POLICIES

if TYPE_CHECKING:
    from nfw.policy import Policy

RESULT_COLUMNS = 70  # of the history's table; --json has it whole
APPLY_SECONDS = 180.0  # the daemon gives a policy 120 s to start


@dataclass(frozen=True, slots=True)
class Source:
    """A policy and what to call it; ``files`` as in :class:`nfw.settings.PolicySource`."""

    policy: Policy
    label: str
    files: Mapping[str, str] = field(default_factory=dict)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", callback=named)
@policy_options
@click.option(
    "--confirm",
    "seconds",
    type=Seconds(1, 86_400),
    metavar="SECONDS",
    help="The former policy comes back by itself unless `nfw policy confirm` is said in time.",
)
@click.option("--dry-run", is_flag=True, help="Compile it and say what would change; switch nothing.")
@click.option("--monitor", is_flag=True, help="Run it in mode monitor: block nothing, record what would be.")
@control_option
@timeout_option(APPLY_SECONDS)
@json_option
def apply(
    files: tuple[str, ...],
    map_file: str | None,
    name: str,
    seconds: float | None,
    dry_run: bool,
    monitor: bool,
    control: str,
    timeout: float,
    as_json: bool,
) -> int:
    """Make the running firewall switch to the policy in FILE, which is all that `nfw policy check` takes.

    All or nothing: a policy with errors changes nothing.
    """
    file = files[0]
    for each in (*files, *([map_file] if map_file else [])):
        if not os.path.exists(each):
            raise Failure(f"{each}: policy file does not exist")
    path, *more = (os.path.abspath(each) for each in files)
    asked: dict[str, Any] = {"policy": path}
    asked |= {"more": more} if more else {}
    asked |= {"map": os.path.abspath(map_file)} if map_file else {}
    asked |= {"name": name} if name else {}
    asked |= {"confirm": seconds} if seconds else {}
    asked |= {"monitor": True} if monitor else {}
    asked |= {"dry_run": True} if dry_run else {}
    client = ControlClient(control, timeout)
    with _going_on():
        reply = client.request("apply", **asked)
    data = reply.data if isinstance(reply.data, dict) else {}
    if as_json and not (dry_run and reply.ok):
        emit_json({"ok": reply.ok, "errors": list(reply.errors), **data})
        return 0 if reply.ok else 1
    if not reply.ok:
        tell_problems([("error", line) for line in reply.errors])
        raise Failure(f"{file}: not applied; the running policy is unchanged")
    if dry_run:
        return _dry_run(client, files, map_file, name, monitor, data, as_json)
    _tell_warnings(data)
    emit(f"{file}: applied as generation {data.get('generation', '?')}")
    if data.get("mode") == "monitor":
        tell(f"{file}: MODE MONITOR: nothing is blocked; what would be is recorded")
    waiting = data.get("waiting")
    if waiting:
        tell(f"{file}: NOT CONFIRMED: {_comes_back(waiting)} unless `nfw policy confirm`")
    return 0


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Ctrl-C ends the command, not what it asked for."""
    try:
        yield
    except KeyboardInterrupt:
        tell("nfw: interrupted; the firewall goes on with it: `nfw policy history` says what came of it")
        raise


def _dry_run(
    client: ControlClient,
    files: tuple[str, ...],
    map_file: str | None,
    name: str,
    monitor: bool,
    data: dict[str, Any],
    as_json: bool,
) -> int:
    """What applying would have done, as the daemon and the files say."""
    from nfw.policy.check import check_policy
    from nfw.policy.diff import diff_policies

    new = _from_files(files, map_file, name, monitor=monitor, check_key=True)
    noticed = (*new.policy.warnings, *check_policy(new.policy))
    data = {**data, "warnings": [{"level": one.level.value, "message": str(one)} for one in noticed]}
    running, problem = None, ""
    try:
        running = from_history(client, None)
    except Failure as failure:
        problem = "; ".join(failure.lines)
    found = diff_policies(running.policy, new.policy, running.files, new.files) if running is not None else None
    refusal = data.get("refusal") or ""
    if as_json:
        difference = found.to_json() if found is not None else {"problem": problem}
        emit_json({"ok": not refusal, "dry_run": True, **data, "difference": difference})
        return 1 if refusal else 0
    _tell_warnings(data)
    if found is None:
        emit(f"what would change is not known: {problem}")
    else:
        for line in found.lines() or ["nothing would change"]:
            emit(line)
    emit(_ending(data.get("open_flows") or {}, str(data.get("action", "drop"))))
    if refusal:
        raise Failure(f"{files[0]}: would load, but not be applied now: {refusal}")
    emit(f"{files[0]}: would be applied; nothing was changed")
    return 0


def _ending(flows: Mapping[str, int], action: str) -> str:
    kinds = {
        "tls": "decrypted TLS session",
        "tcp": "TCP flow",
        "udp": "UDP flow",
        "other": "other flow",
    }
    parts = [counted(flows[kind], word) for kind, word in kinds.items() if flows.get(kind)]
    total = sum(flows.get(kind, 0) for kind in kinds)
    said = f" ({', '.join(parts)}; {action})" if parts else ""
    return f"open flows that would end: {total} of {flows.get('open', 0)}{said}"


def _tell_warnings(data: Mapping[str, Any]) -> None:
    tell_problems([(str(one["level"]), str(one["message"])) for one in data.get("warnings") or ()])


def _comes_back(waiting: Mapping[str, Any]) -> str:
    return (
        f"policy {waiting.get('back_to_name', '?')!r} (entry {waiting.get('back_to', '?')}) comes back in"
        f" {waiting.get('seconds_left', '?')} s"
    )


@click.command()
@control_option
@timeout_option(10.0)
@json_option
def confirm(control: str, timeout: float, as_json: bool) -> int:
    """Keep the policy that was applied with --confirm."""
    reply = ControlClient(control, timeout).request("confirm")
    return _answered(reply, as_json, lambda data: f"policy {data['name']!r} (entry {data['entry']}) stays")


@click.command()
@click.argument("number", required=False, type=ENTRY)
@control_option
@timeout_option(APPLY_SECONDS)
@json_option
def rollback(number: int | None, control: str, timeout: float, as_json: bool) -> int:
    """Go back to the policy before the running one, or to entry NUMBER of the history.

    It is applied as it was, whatever has become of its files, and stays over restarts until the files that `nfw run`
    was given are changed or another policy is applied. A policy that waits for confirmation is taken back at once.
    """
    with _going_on():
        reply = ControlClient(control, timeout).request("rollback", **({"number": number} if number else {}))
    return _answered(
        reply,
        as_json,
        lambda data: f"policy {data['name']!r} is back as generation {data['generation']} (entry {data['entry']})",
    )


def _answered(reply: Reply, as_json: bool, text: Any) -> int:
    if as_json:
        data = reply.data if isinstance(reply.data, dict) else {}
        emit_json({"ok": reply.ok, "errors": list(reply.errors), **data})
        return 0 if reply.ok else 1
    if not reply.ok:
        raise Failure(*(f"nfw: {line}" for line in reply.errors))
    emit(text(reply.data))
    return 0


@click.command()
@control_option
@timeout_option(10.0)
@json_option
def history(control: str, timeout: float, as_json: bool) -> int:
    """Show the policies that were applied, newest last: when, by whom, from which files, and what came of it.

    Where the firewall does not run, what it has kept is read from its state (NFW_STATE, else /var/lib/nfw).
    """
    data = _history(control, timeout)
    if as_json:
        emit_json(data)
        return 0
    for problem in data["problems"]:
        tell(f"nfw: {problem}")
    rows = [_row(entry, data["current"]) for entry in data["entries"]]
    for line in table(("#", "when", "by", "policy", "digest", "result", "from"), rows):
        emit(line)
    return 0


def _history(control: str, timeout: float) -> dict[str, Any]:
    """As the daemon tells it; where none runs and the history is readable, what is kept of it."""
    try:
        reply = ControlClient(control, timeout).request("history")
    except NotRunningError:
        folder = os.environ.get("NFW_STATE") or DEFAULT_STATE
        kept = _stored(Path(folder) / POLICIES)
        if kept is None:
            raise
        tell(f"nfw: not running: this is what {folder} has kept")
        return kept
    if not reply.ok:
        raise Failure(*(f"nfw: {line}" for line in reply.errors))
    data: dict[str, Any] = reply.data
    return data


def _stored(directory: Path) -> dict[str, Any] | None:
    """None where there is no history or it may not be read."""
    from nfw.policystore import PolicyStore, StoreError

    try:
        listing = PolicyStore(directory).listing()
    except StoreError:
        return None
    if not listing.entries and not listing.problems:
        return None
    entries = [entry.to_json() for entry in listing.entries]
    return {"directory": str(directory), "current": 0, "entries": entries, "problems": list(listing.problems)}


def _row(entry: Mapping[str, Any], current: int) -> tuple[str, ...]:
    result = str(entry["result"])
    if entry["action"] == "rollback":
        result = f"back to {entry['of']}" if result == "applied" else f"back to {entry['of']}: {result}"
    if entry["detail"]:
        result += f": {entry['detail']}"
    if len(result) > RESULT_COLUMNS:
        result = result[: RESULT_COLUMNS - 3] + "..."
    mode = f" ({entry['mode']})" if entry["mode"] == "monitor" else ""
    return (
        f"{'*' if entry['number'] == current else ' '}{entry['number']}",
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"])),
        _user(int(entry["uid"])),
        f"{entry['name'] or '-'}{mode}",
        str(entry["digest"])[:12] or "-",
        result,
        " ".join([str(entry["file"]), *map(str, entry["more"]), *([str(entry["map"])] if entry["map"] else [])]),
    )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@click.command()
@click.argument("first", metavar="A", callback=named)
@click.argument("second", required=False, metavar="[B]", callback=named)
@policy_options
@control_option
@timeout_option(10.0)
@json_option
def diff(
    first: str, second: str | None, map_file: str | None, name: str, control: str, timeout: float, as_json: bool
) -> int:
    """Show what changes from the running policy to A, or from A to B.

    Each is a file or folder as for `nfw policy check`, or the number of an entry in `nfw policy history`. Rules that
    only stand elsewhere are not shown unless their order matters.
    """
    from nfw.policy.diff import diff_policies
    from nfw.policy.loader import is_own

    client = ControlClient(control, timeout)
    both = [what for what in (first, second) if what is not None]
    own = {what for what in both if map_file is not None and is_own(Path(what))}
    mapped = [what for what in both if what not in own] or both

    def load(what: str) -> Source:
        if what.isdigit() and not os.path.exists(what):
            return from_history(client, int(what))
        return _from_files((what,), map_file if what in mapped else None, name)

    old = load(first) if second is not None else from_history(client, None)
    new = load(second if second is not None else first)
    found = diff_policies(old.policy, new.policy, old.files, new.files)
    if as_json:
        emit_json({"from": old.label, "to": new.label, **found.to_json()})
        return 0
    emit(f"from {old.label} to {new.label}:")
    for line in found.lines() or ["no difference in effect"]:
        emit(line)
    return 0


@click.command()
@click.argument("files", nargs=-1, metavar="[NUMBER | FILE...]", callback=named)
@policy_options
@click.option(
    "--out", metavar="DIRECTORY", help="Write the files it was read from, as they were then, below DIRECTORY."
)
@click.option("--rules", is_flag=True, help="Also print its rule files, as they were then.")
@control_option
@timeout_option(10.0)
def show(
    files: tuple[str, ...],
    map_file: str | None,
    name: str,
    out: str | None,
    rules: bool,
    control: str,
    timeout: float,
) -> None:
    """Print the running policy, entry NUMBER of the history, or the policy in FILE.

    In canonical form: sorted, defaults left out, comments gone. Rule files are named; --rules prints them behind it,
    --out writes all that it was read from.
    """

    client = ControlClient(control, timeout)
    if files and not (len(files) == 1 and files[0].isdigit() and not os.path.exists(files[0])):
        if out is not None:
            raise click.UsageError("--out goes with the running policy or a NUMBER of the history")
        _emit_policy(_from_files(files, map_file, name).policy, rules)
        return
    number = int(files[0]) if files else None
    if out is not None:
        _write_out(_kept(client, number), Path(out))
        return
    found = from_history(client, number)
    emit(f"# {found.label}")
    _emit_policy(found.policy, rules)


def _emit_policy(policy: Policy, rules: bool) -> None:
    from nfw.policy.dump import dump_policy

    emit(dump_policy(policy).rstrip("\n"))
    if not rules:
        return
    stateful = policy.stateful
    sources = [*stateful.sources, *(source for group in stateful.groups for source in group.sources)]
    for file, text in {source.file: source.text for source in sources if not source.inline}.items():
        emit(f"\n# {file}\n{text.rstrip()}")


def _write_out(kept: Mapping[str, Any], out: Path) -> None:
    from nfw.policystore import PolicyStore

    read = PolicyStore(kept["directory"]).reader(kept["files"])
    for path in kept["files"]:
        if path.endswith("/"):
            continue
        target = out / path.lstrip("/")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read(path))
        except OSError as error:
            raise Failure(f"{error.filename or path}: {error.strerror}") from None
        emit(str(target))


def _kept(client: ControlClient, number: int | None) -> dict[str, Any]:
    reply = client.request("policy", **({"number": number} if number else {}))
    if not reply.ok:
        raise Failure(*(f"nfw: {line}" for line in reply.errors))
    kept: dict[str, Any] = reply.data
    return kept


def from_history(client: ControlClient, number: int | None) -> Source:
    """An entry of the history; None: the running policy. Raises :class:`Failure`."""
    from nfw.policy.files import as_kept
    from nfw.policystore import PolicyStore

    kept = _kept(client, number)
    with as_kept(PolicyStore(kept["directory"]).reader(kept["files"])):
        policy = _load([kept["file"], *kept["more"]], kept["map"] or None, kept["select"], kept["monitor"])
    what = "the running policy" if number is None else f"entry {number}"
    where = f", entry {kept['number']}" if number is None and kept["number"] else ""
    return Source(policy, f"{what} ({policy.name}{where}, from {kept['file']})", kept["files"])


def _from_files(
    files: tuple[str, ...], map_file: str | None, name: str, *, monitor: bool = False, check_key: bool = False
) -> Source:
    import hashlib

    from nfw.policy.files import noting

    found: dict[str, str] = {}

    def note(path: str, data: bytes) -> None:
        found[path] = hashlib.sha256(data).hexdigest()

    with noting(note):
        policy = _load(list(files), map_file, name, monitor, check_key=check_key)
    return Source(policy, f"{files[0]} ({policy.name})", found)


def _load(files: list[str], map_file: str | None, name: str, monitor: bool, *, check_key: bool = False) -> Policy:
    import dataclasses

    from nfw.cache import default_cache
    from nfw.policy.errors import PolicyErrors
    from nfw.policy.loader import load_policy
    from nfw.policy.model import Mode

    try:
        policy = load_policy(*files, map_file=map_file, name=name, check_key=check_key, cache=default_cache(_unheard))
    except PolicyErrors as refused:
        raise Failure(*(str(error) for error in refused)) from None
    return dataclasses.replace(policy, mode=Mode.MONITOR) if monitor else policy


def _unheard(problem: str) -> None:
    """The daemon's cache may be another user's; then it is not used, which `nfw policy check` says."""

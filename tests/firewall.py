"""nfw in the lab's router, as an operator would run it: `nfw run` in the namespace, everything else by the CLI."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import Lab

START_SECONDS = 60.0
# How long a test waits for what must come: no measure of how fast it is, only of when it will not come any more.
PATIENCE = 40.0
_CA: list[bytes] = []  # certificate and key
ROOT = Path(__file__).resolve().parent.parent


class Firewall:
    """One `nfw run`. Files are under `lab.dir / "nfw"`: policies, rules, CA, event log, the daemon's own output."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.dir = lab.dir / "nfw"
        self.dir.mkdir(exist_ok=True)
        self.control = self.dir / "control.sock"
        self.log = self.dir / "eve.json"
        self.output = self.dir / "output.txt"
        self.places = {"NFW_CACHE": str(self.dir / "cache"), "NFW_STATE": str(self.dir / "state")}
        self.process: subprocess.Popen[Any] | None = None
        self.ca = self.dir / "ca.pem"
        if not self.ca.exists():
            self._have_ca()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(cleanup=False)  # the lab is about to go, and the router's rules with it

    # -- commands --------------------------------------------------------------------------------------------------

    def cli(self, *args: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One `nfw` command in the router."""
        return self.lab.router.run(
            [sys.executable, "-m", "nfw", *args],
            timeout,
            check,
            env={"NFW_CONTROL": str(self.control), **self.places},
            cwd=ROOT,
        )

    def _have_ca(self) -> None:
        """One inspecting CA for all labs of this process."""
        key = self.dir / "ca.key"
        if not _CA:
            self.cli("ca", "create", "--name", "Lab inspection CA", "--out", str(self.dir))
            _CA.extend((self.ca.read_bytes(), key.read_bytes()))
            return
        self.ca.write_bytes(_CA[0])
        key.touch(0o600)
        key.write_bytes(_CA[1])

    def policy(self, name: str, text: str, rules: str = "") -> Path:
        """Write a policy and, where given, the rule file it names as NAME.rules."""
        if rules:
            (self.dir / f"{name}.rules").write_text(rules)
        path = self.dir / f"{name}.yaml"
        path.write_text(text)
        return path

    def start(self, policy: Path, *options: str) -> None:
        """Start the daemon and return when the policy filters. Raises AssertionError with its output otherwise."""
        command = [sys.executable, "-m", "nfw", "run", "--policy", str(policy), "--control", str(self.control)]
        command += ["--log", str(self.log), *options]
        with self.output.open("ab") as output:
            self.process = self.lab.router.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.places,
                cwd=ROOT,
            )
        seen = self.output.stat().st_size
        wait_for(lambda: self._filters(seen), START_SECONDS, lambda: self.output.read_text())

    def _filters(self, seen: int) -> bool:
        assert self.process is not None
        text = self.output.read_text()[seen:]
        assert self.process.poll() is None, f"nfw ended with status {self.process.returncode}:\n{text}"
        return " filters: " in text

    def apply(self, policy: Path) -> None:
        """Hot-swap; returns when the new policy filters."""
        self.cli("policy", "apply", str(policy))

    def status(self) -> dict[str, Any]:
        """`nfw status --json`."""
        value: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return value

    def stop(self, *, cleanup: bool = True) -> None:
        """SIGTERM, then `nfw cleanup`."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)
        self.process = None
        if cleanup:
            self.cli("cleanup")

    def settle(self) -> None:
        """Wait until the generations before the one that filters have ended."""
        self.the_only("nfw leader")

    def the_only(self, name: str) -> int:
        """The process of that name, once those of the generations before have ended."""
        found: list[int] = []

        def alone() -> bool:
            found[:] = pids_named(self.pid(), name)
            return len(found) == 1

        wait_for(alone, PATIENCE, lambda: f"{name}: {found}")
        return found[0]

    def pid(self) -> int:
        """The supervisor's process number (`ip netns exec` execs, so it is the child's own)."""
        assert self.process is not None
        return self.process.pid

    # -- what it said ----------------------------------------------------------------------------------------------

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The records of the event log so far."""
        if not self.log.exists():
            return []
        written, _, _ = self.log.read_bytes().rpartition(b"\n")  # the last line may be half there
        records = [json.loads(line) for line in written.splitlines()]
        return [record for record in records if kind in (None, record["event_type"])]

    def wait_event(
        self, kind: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE
    ) -> dict[str, Any]:
        """The first record of that kind that fits, waiting for it; AssertionError with what there was instead."""
        wait_for(
            lambda: any(wanted(event) for event in self.events(kind)),
            seconds,
            lambda: (
                f"no such {kind} event among:\n" + "\n".join(map(str, self.events()[-20:])) + self.output.read_text()
            ),
        )
        return next(event for event in self.events(kind) if wanted(event))


def many_files() -> None:
    """As many descriptors as there may be for this process, and for the nfw it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def wait_for(condition: Callable[[], bool], seconds: float, said: Callable[[], str] = lambda: "") -> None:
    """Poll until true; AssertionError with `said()` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {said()}"
        time.sleep(0.02)


def children(pid: int) -> dict[int, str]:
    """Descendants of a process: pid -> name."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            parents[int(entry.name)] = (int(rest.split()[1]), name)
    found: dict[int, str] = {}

    def add(of: int) -> None:
        for child, (parent, name) in parents.items():
            if parent == of and child not in found:
                found[child] = name
                add(child)

    add(pid)
    return found


def pids_named(pid: int, start: str) -> Iterable[int]:
    """Descendants of `pid` whose name starts with `start`."""
    return [child for child, name in children(pid).items() if name.startswith(start)]

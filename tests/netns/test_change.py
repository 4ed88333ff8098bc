"""Changing the policy safely: confirmation that does not come, going back, what would change, a table that is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nfw.control import ControlClient
from tests.firewall import PATIENCE, ROOT, Firewall, pids_named, wait_for
from tests.lab import Lab

pytestmark = pytest.mark.netns

# Rules in a file of their own, so that a policy is more than one file.
POLICY = """\
name: {name}
stateful:
  order: strict
  default_actions: []
  rule_files: [change.rules]
"""
CURL_TIMED_OUT = 28
OPEN = 'alert http any any -> any any (msg:"seen"; sid:1;)\n'
BLOCKED = 'drop http any any -> any any (msg:"no web"; sid:1;)\n'


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        yield firewall


def write(firewall: Firewall, name: str, rules: str) -> Path:
    """The one policy file, whose content and rules are what was applied last."""
    (firewall.dir / "change.rules").write_text(rules)
    return firewall.policy("change", POLICY.format(name=name))


def passes(firewall: Firewall) -> bool:
    return firewall.lab.curl("http://site-a.test/").returncode == 0


def blocked(firewall: Firewall) -> bool:
    """A request gets no answer."""
    return firewall.lab.curl("http://site-a.test/", timeout=1.0).returncode == CURL_TIMED_OUT


def history(firewall: Firewall) -> list[tuple[int, str, str, str]]:
    entries = json.loads(firewall.cli("policy", "history", "--json").stdout)["entries"]
    return [(one["number"], one["action"], one["name"], one["result"]) for one in entries]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that answers nobody, and is gone afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill(firewall: Firewall) -> None:
    os.kill(firewall.pid(), signal.SIGKILL)
    assert firewall.process is not None
    firewall.process.wait(PATIENCE)


def test_the_status_is_told_although_who_was_asked_is_replaced(firewall: Firewall) -> None:
    policy = write(firewall, "open", OPEN)
    firewall.start(policy)
    (leader,) = pids_named(firewall.pid(), "nfw leader")
    with ThreadPoolExecutor(2) as pool, stopped(leader):
        applied = pool.submit(firewall.apply, policy)
        # Just before it takes over: an answer is waited for 3 s, and a busy machine takes longer to compile.
        wait_for(lambda: len(list(pids_named(firewall.pid(), "nfw packet 0"))) == 2, PATIENCE)
        reply = ControlClient(firewall.control, 20.0).request("status")
        applied.result()
    assert (reply.errors, reply.data["state"], reply.data["generation"]) == ((), "filtering", 2)


def test_the_status_is_told_although_who_was_asked_dies(firewall: Firewall) -> None:
    firewall.start(write(firewall, "open", OPEN))
    (leader,) = pids_named(firewall.pid(), "nfw leader")
    with ThreadPoolExecutor(1) as pool, stopped(leader):
        asked = pool.submit(ControlClient(firewall.control, 20.0).request, "status")
        time.sleep(0.5)  # asked later, the answer is the same
        os.kill(leader, signal.SIGKILL)
        reply = asked.result()
    assert (reply.errors, reply.data["state"]) == ((), "closed")


def test_without_confirmation_the_former_policy_comes_back(firewall: Firewall) -> None:
    """Although its files were overwritten, and although the command that asked was killed."""
    policy = write(firewall, "open", OPEN)
    firewall.start(policy)
    assert passes(firewall)
    write(firewall, "blocked", BLOCKED)
    command = [sys.executable, "-m", "nfw", "policy", "apply", str(policy), "--confirm", "10"]
    asking = firewall.lab.router.popen(
        command,
        env={"NFW_CONTROL": str(firewall.control), **firewall.places},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: bool(list(pids_named(firewall.pid(), "nfw leader"))[1:]), PATIENCE)
    asking.kill()
    asking.wait()
    wait_for(lambda: firewall.status()["name"] == "blocked", PATIENCE)
    waiting = firewall.status()["waiting"]
    assert (waiting["back_to"], waiting["back_to_name"]) == (1, "open")
    assert 0 <= waiting["seconds_left"] <= 10
    assert "NOT CONFIRMED: in " in firewall.cli("status").stdout
    assert blocked(firewall)
    second = firewall.cli("policy", "apply", str(policy), check=False)
    assert second.returncode == 1
    assert "waits for confirmation" in second.stderr
    wait_for(lambda: firewall.status()["name"] == "open", PATIENCE)
    assert passes(firewall)
    assert "waiting" not in firewall.status()
    assert history(firewall) == [
        (1, "start", "open", "applied"),
        (2, "apply", "blocked", "not confirmed"),
        (3, "rollback", "open", "applied"),
    ]
    late = firewall.cli("policy", "confirm", check=False)
    assert (late.returncode, late.stderr) == (1, "nfw: no policy waits for confirmation\n")
    # The file still says what nobody confirmed: a restart must not bring it in by the back door.
    kill(firewall)
    firewall.start(policy)
    assert firewall.status()["name"] == "open"
    assert passes(firewall)
    assert "is what was gone back from" in firewall.output.read_text()
    # Until somebody means it.
    firewall.apply(policy)
    kill(firewall)
    firewall.start(policy)
    assert firewall.status()["name"] == "blocked"


def test_what_is_confirmed_stays(firewall: Firewall) -> None:
    policy = write(firewall, "open", OPEN)
    firewall.start(policy)
    write(firewall, "blocked", BLOCKED)
    told = firewall.cli("policy", "apply", str(policy), "--confirm", "6")
    assert "NOT CONFIRMED: policy 'open' (entry 1) comes back in 6 s unless" in told.stderr
    assert firewall.cli("policy", "confirm").stdout == "policy 'blocked' (entry 2) stays\n"
    time.sleep(7)
    assert firewall.status()["name"] == "blocked"
    assert blocked(firewall)
    assert history(firewall)[-1] == (2, "apply", "blocked", "confirmed")
    kill(firewall)
    firewall.start(policy)
    assert firewall.status()["name"] == "blocked"


@pytest.mark.parametrize("ended", ["crash", "stop", "leader"])
def test_an_end_before_the_confirmation(firewall: Firewall, ended: str) -> None:
    policy = write(firewall, "open", OPEN)
    firewall.start(policy)
    write(firewall, "blocked", BLOCKED)
    firewall.cli("policy", "apply", str(policy), "--confirm", "600")
    assert blocked(firewall)
    if ended == "leader":
        os.kill(firewall.the_only("nfw leader"), signal.SIGKILL)
        wait_for(lambda: firewall.status().get("name") == "open", PATIENCE)
    else:
        if ended == "crash":
            kill(firewall)
        else:
            firewall.stop(cleanup=False)
        firewall.start(policy)
        assert firewall.status()["name"] == "open"
    assert passes(firewall)
    assert (2, "apply", "blocked", "not confirmed") in history(firewall)
    assert "waiting" not in firewall.status()


def test_rollback(firewall: Firewall) -> None:
    policy = write(firewall, "one", OPEN)
    firewall.start(policy)
    for name, rules in (("two", BLOCKED), ("three", OPEN)):
        write(firewall, name, rules)
        firewall.apply(policy)
    (firewall.dir / "change.rules").write_text("no rule at all\n")
    bad = firewall.cli("policy", "apply", str(policy), check=False)
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[0] == "1 error:"
    assert "policy 'two' is back as generation" in firewall.cli("policy", "rollback").stdout
    assert blocked(firewall)
    assert "policy 'one' is back" in firewall.cli("policy", "rollback").stdout
    assert passes(firewall)
    none = firewall.cli("policy", "rollback", check=False)
    assert none.stderr == "nfw: the history has no policy before the running one\n"
    firewall.cli("policy", "rollback", "3")
    assert firewall.status()["name"] == "three"
    assert [result for _, _, _, result in history(firewall)] == [*["applied"] * 3, "failed", *["applied"] * 3]
    # A leader that dies is started again with what it had, whatever the files say.
    os.kill(firewall.the_only("nfw leader"), signal.SIGKILL)
    wait_for(lambda: firewall.status().get("name") == "three" and passes(firewall), PATIENCE)
    shown = firewall.cli("policy", "show", "2").stdout
    assert shown.startswith("# entry 2 (two, from ")
    assert "name: two\n" in shown
    rules = firewall.cli("policy", "show", "2", "--rules").stdout
    assert rules == f"{shown}\n# {firewall.dir / 'change.rules'}\n{BLOCKED.rstrip()}\n"
    out = firewall.dir / "out"
    firewall.cli("policy", "show", "2", "--out", str(out))
    assert (out / str(firewall.dir / "change.rules").lstrip("/")).read_text() == BLOCKED
    assert firewall.cli("policy", "show", "99", check=False).stderr.startswith("nfw: no entry 99 in the history; ")
    table = firewall.cli("policy", "history").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["#", "1", "2", "3", "4", "5", "6", "*7"]
    assert " root " in table[1]
    assert firewall.dir.joinpath("state/policies").stat().st_mode & 0o077 == 0
    assert all(found.stat().st_mode & 0o077 == 0 for found in firewall.dir.joinpath("state/policies").rglob("*"))


def test_taking_back_before_the_time_is_over(firewall: Firewall) -> None:
    policy = write(firewall, "open", OPEN)
    firewall.start(policy)
    write(firewall, "blocked", BLOCKED)
    firewall.cli("policy", "apply", str(policy), "--confirm", "600")
    firewall.cli("policy", "rollback")
    assert firewall.status()["name"] == "open"
    assert history(firewall)[1:] == [(2, "apply", "blocked", "not confirmed"), (3, "rollback", "open", "applied")]


def test_dry_run_and_diff(firewall: Firewall) -> None:
    policy = write(firewall, "open", 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:7;)\n' + OPEN)
    firewall.start(policy)
    write(firewall, "blocked", 'alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:7;)\n' + BLOCKED)
    with firewall.lab.in_namespace("client"):
        sock = socket.create_connection(("203.0.113.10", 7), timeout=PATIENCE)
    with sock:
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"
        before = firewall.status()["generation"]
        tried = firewall.cli("policy", "apply", str(policy), "--dry-run").stdout.splitlines()
        assert "stateful rules: 1 changed" in tried
        assert any("action alert -> drop" in line for line in tried)
        assert "open flows that would end: 1 of 1 (1 TCP flow; drop)" in tried
        assert tried[-1] == f"{policy}: would be applied; nothing was changed"
        sock.sendall(b"more")
        assert sock.recv(4) == b"more"
    assert firewall.status()["generation"] == before
    assert (
        firewall.cli("policy", "diff", str(policy)).stdout.splitlines()[0].startswith("from the running policy (open")
    )
    found: dict[str, Any] = json.loads(firewall.cli("policy", "diff", str(policy), "--json").stdout)
    assert [one["change"] for one in found["stateful"]] == ["changed"]
    firewall.apply(policy)
    assert "no difference in effect" in firewall.cli("policy", "diff", str(policy)).stdout
    backwards = json.loads(firewall.cli("policy", "diff", "2", "1", "--json").stdout)
    assert backwards["stateful"][0]["what"].startswith("action drop -> alert")
    assert len(history(firewall)) == 2


def test_no_going_back_is_promised_where_it_cannot_be_kept(firewall: Firewall) -> None:
    policy = write(firewall, "open", OPEN)
    (firewall.dir / "state").write_text("a file, not a directory")
    firewall.start(policy)
    refused = firewall.cli("policy", "apply", str(policy), "--confirm", "60", check=False)
    assert refused.returncode == 1
    assert "cannot promise to go back: policies are not kept" in refused.stderr
    firewall.apply(policy)
    assert firewall.status()["generation"] == 2


# -- the table ---------------------------------------------------------------------------------------------------------

INSPECTED = """\
name: inspected
stateful:
  order: action
  rules: |
    alert tcp any any -> any 7 (msg:"x"; content:"zzz"; sid:1;)
    drop http any any -> any any (msg:"no web"; sid:2;)
"""


def rules(firewall: Firewall) -> str:
    """The table as nft writes it, without counts and what packets add."""
    return firewall.lab.router.run(["nft", "-s", "-t", "list", "table", "inet", "nfw"], check=False).stdout


@pytest.mark.parametrize(
    "command",
    ["flush ruleset", "delete table inet nfw", "flush table inet nfw", "delete chain inet nfw unjudged", "nfw cleanup"],
)
def test_a_table_that_somebody_else_changes_is_restored(firewall: Firewall, command: str) -> None:
    """Closed or open as it was; flows that are open go on."""
    firewall.start(firewall.policy("inspected", INSPECTED))
    with firewall.lab.in_namespace("client"):
        sock = socket.create_connection(("203.0.113.10", 7), timeout=PATIENCE)
    with sock:
        sock.sendall(b"ping")
        assert sock.recv(100) == b"ping"
        before = rules(firewall)
        if command == "nfw cleanup":
            assert "nfw is running" in firewall.cli("cleanup").stderr
        else:
            done = firewall.lab.router.run(["nft", *command.split()], check=False)
            if command.startswith("delete chain"):
                assert done.returncode != 0, "the kernel does not let a chain go that is in use"
                firewall.lab.router.run(["nft", "flush", "chain", "inet", "nfw", "unjudged"])
        wait_for(lambda: firewall.status().get("table_restored", 0) >= 1, PATIENCE)
        assert rules(firewall) == before
        sock.sendall(b"more")
        assert sock.recv(100) == b"more"
    assert blocked(firewall)
    assert firewall.status()["state"] == "filtering"
    assert "WARNING: table inet nfw is restored" in firewall.output.read_text()
    assert firewall.status()["table_restored"] == 1


def test_how_long_the_path_is_open(firewall: Firewall) -> None:
    """Measured by the daemon's own words, from the flush to the restored table; more where the machine is busy."""
    firewall.start(firewall.policy("inspected", INSPECTED))
    gaps = []
    for _ in range(3):
        seen = firewall.output.read_text().count("is restored")
        firewall.lab.router.run(["nft", "flush", "ruleset"])
        started = time.monotonic()
        wait_for(lambda seen=seen: firewall.output.read_text().count("is restored") > seen, PATIENCE)  # type: ignore[misc]
        gaps.append(time.monotonic() - started)
    assert min(gaps) < 1.5, gaps


def test_other_tables_are_nobodys_business(firewall: Firewall) -> None:
    firewall.start(firewall.policy("inspected", INSPECTED))
    for command in ("add table inet other", "add chain inet other c", "add rule inet other c accept"):
        firewall.lab.router.run(["nft", *command.split()])
    firewall.apply(firewall.policy("inspected", INSPECTED))
    time.sleep(1)
    assert firewall.status()["table_restored"] == 0

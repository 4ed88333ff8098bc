"""nfw as a service, from the first installation to the last: one machine's story, so the order of the tests matters.

All the while somebody sends datagrams nfw's policies allow and such as they forbid. None of the latter may ever arrive,
except where a test is marked `opens`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.service.machine import ALLOWED, FORBIDDEN, KEPT_RELEASES, Machine, wait_for

POLICY = f"""\
name: NAME
stateless:
  rules:
    - {{priority: 100, action: pass, protocols: [icmp, icmpv6]}}
stateful:
  order: strict
  stream_exception: continue
  rules: 'drop udp any any -> any {FORBIDDEN} (msg:"forbidden"; sid:1; rev:1;)'
"""
TLS = """\
tls:
  ca: {certificate: ca.pem, private_key: ca.key}
  scopes: [{destination_ports: [443]}]
  revocation: {check: true}
"""
JOURNALD = "log: {sinks: [{type: journald, events: [alert, drop, flow]}]}\n"
FAIL_OPEN = "fail_open: true\n"
PAUSE_SECONDS = 2.0  # a restart takes longer; less would be the load of the machine
BOTH, NEITHER = (True, True), (False, False)
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


@pytest.fixture(autouse=True)
def never_open(request: pytest.FixtureRequest, machine: Machine) -> Iterator[None]:
    before = machine.arrived(FORBIDDEN)
    yield
    if request.node.get_closest_marker("opens") is None:
        assert machine.arrived(FORBIDDEN) == before, "forbidden datagrams got through"


def write_policy(machine: Machine, name: str, extra: str = "", file: str = "policy") -> None:
    machine.path(f"/etc/nfw/{file}.yaml").write_text(POLICY.replace("NAME", name) + extra)


def filters(machine: Machine, name: str) -> bool:
    """That policy does, now; and what it allows passes, as soon as the neighbours have found each other."""
    status = machine.status()
    wait_for(lambda: machine.passes(ALLOWED) == BOTH, 10, machine.journal)
    return (status["state"], status.get("name")) == ("filtering", name)


def drop_in(machine: Machine, settings: str) -> None:
    """Settings on top of the unit's, until the next call."""
    folder = machine.path("/run/systemd/system/nfw.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(f"[Service]\n{settings}")
    machine.systemctl("daemon-reload")


def processes(machine: Machine) -> dict[str, int]:
    """nfw's processes by their names; the last of a name."""
    listed = machine.run("ps", "-o", "pid=,comm=", "-U", "nfw", check=False).stdout.splitlines()
    return {name.strip(): int(pid) for pid, name in (line.split(maxsplit=1) for line in listed)}


@contextmanager
def longest_pause(machine: Machine) -> Iterator[list[float]]:
    """Meanwhile, the seconds between two looks at which something allowed had arrived."""
    pauses, over = [0.0], threading.Event()

    def look() -> None:
        seen, at = machine.arrived(ALLOWED), time.monotonic()
        while not over.wait(0.1):
            now = machine.arrived(ALLOWED)
            pauses.append(time.monotonic() - at)
            if all(one > other for one, other in zip(now, seen, strict=True)):
                seen, at = now, time.monotonic()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield pauses
    finally:
        over.set()
        thread.join()


# -- before ------------------------------------------------------------------------------------------------------------


@pytest.mark.opens
def test_without_nfw_a_forwarding_router_lets_everything_through(machine: Machine) -> None:
    """Otherwise none of what follows would show anything."""
    assert machine.passes(FORBIDDEN) == NEITHER
    machine.run("sysctl", "-qw", *(f"{name}=1" for name in FORWARDING))
    wait_for(lambda: machine.passes(FORBIDDEN) == BOTH, 10)
    machine.run("sysctl", "-qw", *(f"{name}=0" for name in FORWARDING))


# -- install -----------------------------------------------------------------------------------------------------------


def test_install(machine: Machine) -> None:
    said = machine.make("install").stdout
    assert "systemctl enable --now nfw" in said
    assert machine.run("nfw", "--version").stdout.startswith("nfw ")
    assert machine.systemctl("is-enabled", "nfw", check=False) == "disabled"
    assert machine.run("sysctl", "-n", *FORWARDING).stdout.split() == ["0", "0"]
    assert machine.run("nft", "list", "ruleset").stdout == ""
    machine.run("cp", "-al", "/opt/nfw/releases", KEPT_RELEASES)
    left_in_clone = machine.run("find", str(machine.clone), "-name", "*.egg-info", "-o", "-name", "build").stdout
    assert left_in_clone == ""


def test_installing_again_changes_nothing(machine: Machine) -> None:
    def everything() -> str:
        return machine.run("find", "/opt/nfw", "/etc/nfw", "/etc/systemd/system", "-printf", "%p %m %U %l\\n").stdout

    sysctl = machine.path("/etc/nfw/sysctl.conf")
    sysctl.write_text(sysctl.read_text() + "# the operator's\n")
    before = everything()
    said = machine.make("install").stdout
    assert "is built already" in said
    assert everything() == before
    assert sysctl.read_text().endswith("# the operator's\n")


def test_the_units_are_in_order(machine: Machine) -> None:
    units = ["/etc/systemd/system/nfw.service", "/etc/systemd/system/nfw-closed.service"]
    done = machine.run("systemd-analyze", "verify", *units)
    assert done.stdout + done.stderr == ""
    said = machine.run("systemd-analyze", "security", "nfw.service", "--no-pager").stdout
    level = re.search(r"exposure level for nfw\.service: ([\d.]+)", said)
    assert level is not None
    assert float(level[1]) <= 2.5, said


# -- run ---------------------------------------------------------------------------------------------------------------


def test_start(machine: Machine) -> None:
    write_policy(machine, "one")
    machine.systemctl("enable", "--now", "nfw")
    # Filtering when systemctl returns.
    assert machine.status()["state"] == "filtering"
    assert filters(machine, "one")
    assert machine.run("sysctl", "-n", *FORWARDING).stdout.split() == ["1", "1"]
    assert "Filtering: policy 'one'" in machine.shows("StatusText")
    assert machine.path("/var/log/nfw/eve.json").stat().st_size > 0


def test_least_privilege(machine: Machine) -> None:
    pid = int(machine.shows("MainPID"))
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    uid = machine.run("id", "-u", "nfw").stdout.strip()
    assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE)
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t0000000000003000" in status
    assert len(processes(machine)) >= 4
    # The kernel's numbers of the queues are not lost with root.
    packet_worker = next(one for one in machine.status()["processes"] if one["name"] == "nfw packet 0")
    assert packet_worker["pid"]
    assert machine.run("nfw", "cleanup", "--if-fail-open", "/etc/nfw/policy.yaml").stderr.count("stays blocked") == 1
    assert filters(machine, "one")


def test_a_second_nfw_is_refused(machine: Machine) -> None:
    command = ["nfw", "run", "--policy", "/etc/nfw/policy.yaml", "--control", "/run/another.sock"]
    refused = machine.run(*command, check=False)
    assert refused.returncode == 1
    assert "is read by another process already" in refused.stderr
    assert filters(machine, "one")


def test_tls_with_the_key_as_a_credential(machine: Machine) -> None:
    machine.run("nfw", "ca", "create", "--name", "Test CA", "--out", "/etc/nfw")
    key = machine.path("/etc/nfw/ca.key").stat()
    assert (key.st_uid, key.st_mode & 0o777) == (0, 0o600)
    write_policy(machine, "tls", TLS)
    # Credentials are read at the start, so a reload cannot know the new key; nothing changes.
    assert machine.run("systemctl", "reload", "nfw", check=False).returncode != 0
    assert filters(machine, "one")
    machine.systemctl("restart", "nfw")
    assert filters(machine, "tls")
    assert {"nfw keyholder", "nfw tls 0", "nfw packet 0", "nfw leader", "nfw log", "nfw"} <= set(processes(machine))


def test_tls_with_an_encrypted_key(machine: Machine) -> None:
    if machine.run("which", "systemd-creds", check=False).returncode:
        pytest.skip("systemd encrypts credentials from 250 on")
    key = machine.path("/etc/nfw/ca.key")
    content = key.read_bytes()
    encrypt = ["systemd-creds", "encrypt", "--with-key=host", "--name=ca.key"]
    machine.run(*encrypt, "/etc/nfw/ca.key", "/etc/nfw/ca.key.cred")
    key.unlink()
    credential = "LoadCredential=\nSetCredential=\nLoadCredentialEncrypted=ca.key:/etc/nfw/ca.key.cred\n"
    drop_in(machine, credential)
    machine.systemctl("restart", "nfw")
    assert filters(machine, "tls")
    assert "is encrypted for the service" in machine.run("nfw", "policy", "check", "/etc/nfw/policy.yaml").stderr
    key.write_bytes(content)
    key.chmod(0o600)
    machine.path("/etc/nfw/ca.key.cred").unlink()
    drop_in(machine, "")
    machine.systemctl("restart", "nfw")


def test_reload(machine: Machine) -> None:
    pid = machine.shows("MainPID")
    write_policy(machine, "two", TLS)
    machine.systemctl("reload", "nfw")
    assert filters(machine, "two")
    machine.path("/etc/nfw/policy.yaml").write_text("name: [broken")
    assert machine.run("systemctl", "reload", "nfw", check=False).returncode != 0
    assert filters(machine, "two")
    assert machine.shows("MainPID") == pid
    assert "policy.yaml:1:" in machine.journal()
    write_policy(machine, "two", TLS)


def test_swap_by_the_command_line(machine: Machine) -> None:
    write_policy(machine, "other", TLS, file="other")
    machine.run("nfw", "policy", "apply", "/etc/nfw/other.yaml")
    assert filters(machine, "other")
    machine.systemctl("reload", "nfw")
    assert filters(machine, "two")


@pytest.mark.parametrize(
    "name",
    ["nfw packet 0", "nfw tls 0", "nfw keyholder", "nfw fetcher", "nfw log", "nfw leader", "nfw"],
    ids=lambda name: name[4:] or "nfw",
)
def test_a_killed_process_comes_back(machine: Machine, name: str) -> None:
    killed = processes(machine)[name]
    machine.run("kill", "-KILL", str(killed))
    wait_for(lambda: processes(machine).get(name, killed) != killed, 20, machine.journal)
    wait_for(lambda: machine.systemctl("is-active", "nfw", check=False) == "active", 20, machine.journal)
    wait_for(lambda: machine.passes(ALLOWED) == BOTH, 10, machine.journal)
    assert machine.status()["name"] == "two"


def test_a_worker_that_hangs_is_killed_and_comes_back(machine: Machine) -> None:
    supervisor, hanging = machine.shows("MainPID"), processes(machine)["nfw packet 0"]
    machine.run("kill", "-STOP", str(hanging))
    wait_for(lambda: processes(machine).get("nfw packet 0", hanging) != hanging, 30, machine.journal)
    assert f"nfw packet 0 (pid {hanging}) hangs; killing it" in machine.journal()
    assert filters(machine, "two")
    assert machine.shows("MainPID") == supervisor


def test_watchdog(machine: Machine) -> None:
    drop_in(machine, "WatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=0\n")
    machine.systemctl("restart", "nfw")
    assert filters(machine, "two")
    stopped = int(machine.shows("MainPID"))
    machine.run("kill", "-STOP", str(stopped))
    wait_for(lambda: int(machine.shows("MainPID")) not in (0, stopped), 20, machine.journal)
    wait_for(lambda: machine.systemctl("is-active", "nfw", check=False) == "active", 20, machine.journal)
    assert "Watchdog timeout" in machine.journal()
    assert filters(machine, "two")
    drop_in(machine, "")


def test_restart_never_opens(machine: Machine) -> None:
    for _ in range(2):
        machine.systemctl("restart", "nfw")
        assert filters(machine, "two")


def test_journald(machine: Machine) -> None:
    """What was forbidden, as fields of the journal; `journalctl` finds it by kind."""
    write_policy(machine, "journal", TLS + JOURNALD)
    machine.systemctl("reload", "nfw")
    found: list[dict[str, Any]] = []

    def logged() -> bool:
        told = machine.run("journalctl", "NFW_EVENT_TYPE=drop", "-o", "json", "-n", "1", "--no-pager").stdout
        found[:] = [json.loads(line) for line in told.splitlines()]
        return bool(found)

    wait_for(logged, 10, machine.journal)
    (entry,) = found
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"], entry["_SYSTEMD_UNIT"]) == ("nfw", "5", "nfw.service")
    record = json.loads(entry["MESSAGE"])
    assert (record["event_type"], record["dest_port"]) == ("drop", FORBIDDEN)
    assert machine.status()["log_writer"]["dropped"]["journald"] == 0
    write_policy(machine, "two", TLS)
    machine.systemctl("reload", "nfw")


def test_logrotate(machine: Machine) -> None:
    log = machine.path("/var/log/nfw/eve.json")
    before = log.stat().st_ino
    machine.run("logrotate", "--force", "/etc/logrotate.d/nfw")
    wait_for(lambda: log.exists() and log.stat().st_ino != before, 20, machine.journal)
    assert list(log.parent.glob("eve.json-*"))


# -- stop --------------------------------------------------------------------------------------------------------------


def test_stop_closes(machine: Machine) -> None:
    machine.systemctl("stop", "nfw")
    assert machine.passes(ALLOWED) == NEITHER
    assert processes(machine) == {}
    assert "traffic stays blocked" in machine.journal()
    machine.systemctl("start", "nfw")
    assert filters(machine, "two")


@pytest.mark.opens
def test_fail_open_is_a_choice_and_is_told(machine: Machine) -> None:
    write_policy(machine, "open", TLS + FAIL_OPEN)
    machine.systemctl("reload", "nfw")
    before = machine.arrived(FORBIDDEN)
    assert filters(machine, "open")
    assert machine.arrived(FORBIDDEN) == before
    machine.systemctl("stop", "nfw")
    wait_for(lambda: machine.passes(FORBIDDEN) == BOTH, 10, machine.journal)
    assert machine.run("nft", "list", "ruleset").stdout == ""
    assert "TRAFFIC PASSES UNFILTERED" in machine.journal()
    write_policy(machine, "two", TLS)
    machine.systemctl("start", "nfw")
    assert machine.passes(FORBIDDEN) == NEITHER


# -- upgrade -----------------------------------------------------------------------------------------------------------


def new_version(machine: Machine, version: str, more: str = "") -> None:
    setup = machine.path(str(machine.clone / "setup.cfg"))
    setup.write_text(re.sub(r"(?m)^version = .*", f"version = {version}", setup.read_text()))
    program = machine.path(str(machine.clone / "nfw/__init__.py"))
    program.write_text(program.read_text() + f"\nUPGRADED = {version!r}\n{more}")


def test_upgrade_of_a_running_firewall(machine: Machine) -> None:
    before = machine.status()
    supervisor = machine.shows("MainPID")
    machine.path("/var/lib/nfw/state").write_text("kept")
    new_version(machine, "9.1")
    with longest_pause(machine) as pauses:
        said = machine.make("install").stdout
    assert max(pauses) < PAUSE_SECONDS, "what is allowed was blocked meanwhile"
    assert "upgraded by a generation swap" in said
    after = machine.status()
    assert after["program"].startswith("/opt/nfw/releases/9.1-")
    assert after["program"] != before["program"]
    assert machine.shows("MainPID") == supervisor
    assert filters(machine, "two")
    assert machine.path("/var/lib/nfw/state").read_text() == "kept"
    # What the supervisor still runs is not taken from under it, and its children come back as what is installed now.
    assert machine.path(before["program"]).is_dir()
    machine.run("kill", "-KILL", str(processes(machine)["nfw leader"]))
    wait_for(lambda: machine.status().get("name") == "two", 20, machine.journal)
    assert machine.status()["program"] == after["program"]


def test_an_upgrade_that_cannot_be_leaves_the_old_one(machine: Machine) -> None:
    before = machine.status()
    new_version(machine, "9.2", "raise RuntimeError('a broken release')\n")
    refused = machine.make("install", check=False)
    assert refused.returncode != 0
    assert "does not run" in refused.stderr
    assert machine.status()["program"] == before["program"]
    assert sorted(path.name for path in machine.path("/opt/nfw/releases").glob("9.2-*")) == []
    assert filters(machine, "two")
    machine.copy_program()


def test_back_to_the_release_before(machine: Machine) -> None:
    said = machine.make("install").stdout
    assert "is built already" in said
    assert "upgraded by a generation swap" in said
    assert "/0.1.0-" in machine.status()["program"]
    assert filters(machine, "two")


# -- boot --------------------------------------------------------------------------------------------------------------


def test_boot_with_packets_waiting(machine: Machine) -> None:
    machine.power_off()
    machine.boot()
    wait_for(lambda: machine.systemctl("is-active", "nfw", check=False) == "active", 30, machine.journal)
    assert filters(machine, "two")


def test_boot_with_a_service_that_fails(machine: Machine) -> None:
    machine.path("/etc/nfw/policy.yaml").write_text("name: [broken")
    machine.power_off()
    before = machine.arrived(ALLOWED)
    machine.boot()
    wait_for(lambda: "policy.yaml:1:" in machine.journal(), 30, machine.journal)
    assert machine.run("sysctl", "-n", *FORWARDING).stdout.split() == ["1", "1"]
    assert machine.passes(ALLOWED, 2.5) == NEITHER
    assert machine.arrived(ALLOWED) == before
    write_policy(machine, "two", TLS)
    wait_for(lambda: machine.passes(ALLOWED) == BOTH, 20, machine.journal)


def test_boot_without_a_program(machine: Machine) -> None:
    """The same when there is nothing to run."""
    machine.path("/opt/nfw/current").rename(machine.path("/opt/nfw/away"))
    machine.power_off()
    before = machine.arrived(ALLOWED)
    machine.boot()
    assert machine.passes(ALLOWED, 2.5) == NEITHER
    assert machine.arrived(ALLOWED) == before
    machine.path("/opt/nfw/away").rename(machine.path("/opt/nfw/current"))
    wait_for(lambda: machine.passes(ALLOWED) == BOTH, 20, machine.journal)


# -- uninstall ---------------------------------------------------------------------------------------------------------


def nothing_runs(machine: Machine) -> None:
    assert machine.run("nft", "list", "ruleset").stdout == ""
    assert "fwmark" not in machine.run("ip", "rule").stdout + machine.run("ip", "-6", "rule").stdout
    assert machine.run("pgrep", "-a", "nfw", check=False).stdout == ""
    units = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "nfw*").stdout
    assert units == ""


def test_uninstall_keeps_what_is_the_operators(machine: Machine) -> None:
    machine.make("uninstall")
    nothing_runs(machine)
    assert machine.passes(ALLOWED) == NEITHER  # forwarding, which the service had switched on, is off
    assert not machine.path("/opt/nfw").exists()
    assert machine.path("/etc/nfw/ca.key").exists()
    assert machine.path("/var/lib/nfw/state").exists()
    machine.make("uninstall")


def test_purge_leaves_nothing(machine: Machine) -> None:
    machine.make("uninstall", "PURGE=1")
    found = machine.run("find", "/etc", "/opt", "/usr", "/var", "/run", "-xdev", "-name", "*nfw*").stdout.split()
    # systemd 249 does not take these empty folders of its own away.
    assert [path for path in found if not path.startswith("/run/systemd/propagate/")] == []
    assert machine.run("getent", "passwd", "nfw", check=False).stdout == ""

"""A router that boots systemd in a container, between a client's and a server's network namespace.

::

    client 10.1.0.2, fd00:1::2 ── router, a container ── 203.0.113.10, 2001:db8:2::10 server

All of it lives in the mount, process and network namespaces `run` has made, and ends with them. The links are there and
up before the container boots, and somebody sends all the time: a window, however short, lets something through.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CLONE = Path(__file__).resolve().parent.parent.parent
ALLOWED, FORBIDDEN = 9001, 9002  # UDP ports at the server; no policy of these tests lets the second one pass
WHEELS = "/srv/wheels"  # in the container
KEPT_RELEASES = "/srv/releases"  # in the container: what has been built, so that nothing is built twice
BOOT_SECONDS = 60.0
PROGRAM = ("engines", "nfw", "rules", "systemd", "vagrant")
PROGRAM_FILES = ("setup.cfg", "pyproject.toml", "requirements.txt", "Makefile", "README.md")

# Sends a datagram to both ports over IPv4 and IPv6 every 5 ms, each from a port of its own: always a new flow.
SENDER = f"""\
import itertools, socket, time
for number in itertools.count():
    for family, host in ((socket.AF_INET, "203.0.113.10"), (socket.AF_INET6, "2001:db8:2::10")):
        for port in ({ALLOWED}, {FORBIDDEN}):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                try:
                    sock.sendto(b"probe", (host, port))
                except OSError:
                    pass
    time.sleep(0.005)
"""

# Counts what arrives at the server, ahead of everything there.
COUNTERS = "\n".join(
    ["add table inet probe", "add chain inet probe arrived { type filter hook prerouting priority -300; }"]
    + [
        line
        for port in (ALLOWED, FORBIDDEN)
        for family, protocol in ((4, "ipv4"), (6, "ipv6"))
        for line in (
            f"add counter inet probe p{port}v{family}",
            f"add rule inet probe arrived meta nfproto {protocol} udp dport {port} counter name p{port}v{family} drop",
        )
    ]
)


class Namespace:
    """A network namespace without a name, kept by a process that sleeps in it."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{self._keeper.pid}/ns/net") != ours, 5)
        self.path = f"/proc/{self._keeper.pid}/ns/net"
        self.pid = self._keeper.pid
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str, text: str | None = None, check: bool = True) -> str:
        return execute(self.command(*command), text=text, check=check).stdout

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()


class Machine:
    """The router, its neighbours and the sender. ``clone`` is where the program lies in the container."""

    clone = Path("/srv/nfw")

    def __init__(self, root: Path, wheels: Path, scratch: Path) -> None:
        self.scratch = scratch
        self.root = scratch / "root"
        self.console = scratch / "console.log"
        _command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(scratch))
        for name in ("upper", "work", "root"):
            (scratch / name).mkdir()
        layers = f"lowerdir={root},upperdir={scratch}/upper,workdir={scratch}/work"
        _command("mount", "-t", "overlay", "-o", layers, "overlay", str(self.root))
        shutil.copytree(wheels, self.root / WHEELS.lstrip("/"))
        # Without one systemd takes it for a first boot and switches on whatever can be switched on.
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        self.copy_program()
        self.client, self.server = Namespace(), Namespace()
        self.router: Namespace | None = None
        self._container: subprocess.Popen[Any] | None = None
        self._sender: subprocess.Popen[Any] | None = None
        self.init = 0

    def __enter__(self) -> Self:
        self.server.run("nft", "-f", "-", text=COUNTERS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.power_off()
        finally:
            if self._sender is not None:
                self._sender.kill()
                self._sender.wait()
            for namespace in (self.client, self.server):
                namespace.close()

    def copy_program(self) -> None:
        """The program of this clone, with what is needed to install it."""
        target = self.root / str(self.clone).lstrip("/")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in (*PROGRAM, *PROGRAM_FILES):
            source = CLONE / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target / name)

    # -- power -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Into a kernel that knows nothing of nfw, with both links up and somebody sending; returns afterwards."""
        self.router = Namespace()
        self._wire("lan", self.client, ("10.1.0.1", "fd00:1::1"), ("10.1.0.2", "fd00:1::2"))
        self._wire("wan", self.server, ("203.0.113.1", "2001:db8:2::1"), ("203.0.113.10", "2001:db8:2::10"))
        if self._sender is None:
            self._sender = subprocess.Popen(self.client.command(sys.executable, "-c", SENDER))
        nspawn = (
            f"exec systemd-nspawn -q -D {self.root} --boot --network-namespace-path={self.router.path} --register=no"
            " --keep-unit --console=interactive --capability=all --hostname=router"
        )
        self._container = subprocess.Popen(
            ["script", "-qfc", nspawn, str(self.console)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                "SHELL": "/bin/sh",  # script's; which shell calls, and whether it has one at all, is not to matter
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            },
        )
        wait_for(self._booted, BOOT_SECONDS, self._what_keeps_it)

    def _booted(self) -> bool:
        assert self._container is not None
        assert self._container.poll() is None, self.console.read_text(errors="replace")[-3000:]
        self.init = self.init or _init_below(self._container.pid)
        if not self.init:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _what_keeps_it(self) -> str:
        """What there is of a container that does not finish to boot; the most telling last."""
        assert self._container is not None
        said = [self.console.read_text(errors="replace")[-1500:], _below(self._container.pid)]
        if self.init:
            for question in ("is-system-running", "--failed --no-legend --plain", "list-jobs --no-pager"):
                done = self.run("systemctl", *question.split(), check=False)
                said.append(f"systemctl {question}: {done.returncode} {done.stdout}{done.stderr}")
        return "\n".join([*said, f"first process: {self.init}"])

    def power_off(self) -> None:
        """As by the switch. The cables first: a namespace that goes loses its rules before its links, and both when the
        kernel comes to it, which is seconds later where many go."""
        if self.router is not None:
            for link in ("lan", "wan"):
                self.router.run("ip", "link", "delete", link, check=False)  # not there if booting failed
        if self._container is not None:
            if self.init:
                with suppress(ProcessLookupError):
                    os.kill(self.init, signal.SIGKILL)
                wait_for(lambda: _is_gone(self.init), 30)
            else:
                self._container.terminate()
            self._container.wait(30)
        self._container, self.init = None, 0
        if self.router is not None:
            self.router.close()
        self.router = None

    def _wire(self, name: str, other: Namespace, ours: Sequence[str], theirs: Sequence[str]) -> None:
        assert self.router is not None
        self.router.run("ip", "link", "add", name, "type", "veth", "peer", "name", "router", "netns", str(other.pid))
        for namespace, link, addresses in ((self.router, name, ours), (other, "router", theirs)):
            for address in addresses:
                length = "64" if ":" in address else "24"
                namespace.run("ip", "address", "add", f"{address}/{length}", "dev", link, *nodad(address))
            namespace.run("ip", "link", "set", link, "up")
        for address in ours:
            other.run("ip", "route", "replace", "default", "via", address)

    # -- commands --------------------------------------------------------------------------------------------------

    def command(self, *command: str, network: Namespace | None = None) -> list[str]:
        """A command in the container; with ``network``, in that network instead of the router's."""
        net = f"--net={network.path}" if network is not None else f"--net=/proc/{self.init}/ns/net"
        enter = ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--pid", net, "--root", "--wd"]
        return [*enter, "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", *command]

    def run(
        self, *command: str, check: bool = True, text: str | None = None, network: Namespace | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; AssertionError with what it said when it fails and ``check``."""
        return execute(self.command(*command, network=network), text=text, check=check)

    def make(self, target: str, *settings: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`make TARGET` in the clone, without a network."""
        return self.run("make", "-C", str(self.clone), target, f"WHEELS={WHEELS}", *settings, check=check)

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", *arguments, check=check).stdout.strip()

    def shows(self, what: str) -> str:
        """A property of the service."""
        return self.systemctl("show", "--value", f"--property={what}", "nfw.service")

    def path(self, name: str) -> Path:
        """A file of the container, seen from outside."""
        return Path(f"/proc/{self.init}/root{name}")

    def status(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.run("nfw", "status", "--json").stdout)
        return value

    def journal(self) -> str:
        return self.run("journalctl", "-u", "nfw", "-u", "nfw-closed", "-o", "cat", "--no-pager").stdout

    # -- what arrives ----------------------------------------------------------------------------------------------

    def arrived(self, port: int) -> tuple[int, int]:
        """Datagrams that reached the server so far: IPv4, IPv6."""
        listed = json.loads(self.server.run("nft", "--json", "list", "counters", "table", "inet", "probe"))["nftables"]
        counts = {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}
        return counts[f"p{port}v4"], counts[f"p{port}v6"]

    def passes(self, port: int, seconds: float = 0.5) -> tuple[bool, bool]:
        """Whether datagrams to that port arrive now, over IPv4 and IPv6."""
        before = self.arrived(port)
        time.sleep(seconds)
        return tuple(now > then for now, then in zip(self.arrived(port), before, strict=True))  # type: ignore[return-value]


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


def execute(command: Sequence[str], *, text: str | None, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=180,
        check=False,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def _command(*command: str) -> None:
    execute(command, text=None, check=True)


def _init_below(script: int) -> int:
    """The container's first process, below systemd-nspawn below script; 0: not yet."""
    for nspawn in children(script):
        for child in children(nspawn):
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
    return 0


def _is_gone(pid: int) -> bool:
    """Nothing of it is left but, perhaps, what nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _below(pid: int, depth: int = 0) -> str:
    """The tree of processes, a line each."""
    try:
        line = f"{'  ' * depth}{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"
    except OSError:
        return ""
    return "\n".join([line, *(_below(child, depth + 1) for child in children(pid))])


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_for(true: Callable[[], bool], seconds: float, what: Callable[[], str] = lambda: "") -> None:
    """Until it is so; AssertionError with ``what`` there was instead."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what()}"
        time.sleep(0.05)

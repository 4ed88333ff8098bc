"""One network namespace: entered by a thread of this process, or by commands run in it.

Commands go through ``ip netns exec``, which also lays /etc/netns/NAME over /etc for the command alone, so names resolve
inside the lab without touching the machine. They die with the thread that started them (PR_SET_PDEATHSIG), are run
with a home directory of the lab's own and without the caller's proxy and trust settings.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pyroute2 import netns

RUN_NETNS: Final = Path("/run/netns")
ETC_NETNS: Final = Path("/etc/netns")

# Settings of the person or machine running the tests that would change what a client in the lab does.
_UNWANTED_ENVIRONMENT: Final = (
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NODE_EXTRA_CA_CERTS",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)
# How long a process may take to end by itself when asked to. More than nfw needs to undo its rules and routes.
_PATIENCE_SECONDS: Final = 5.0
# The kernel ends what is killed at once, but a busy machine may take its time.
_KILLED_SECONDS: Final = 30.0


class CommandFailed(subprocess.CalledProcessError):
    """A command run in a namespace ended with an error; the text has what it printed."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout or ''}{self.stderr or ''}"


class Namespace:
    """A named network namespace and the processes this program started in it."""

    def __init__(self, name: str, home: Path) -> None:
        """Create the namespace. `home` becomes HOME of every command run in it."""
        self.name = name
        self._home = home
        self._children: list[subprocess.Popen[Any]] = []
        netns.create(name)
        self.fd = os.open(RUN_NETNS / name, os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into the namespace; sockets and processes made meanwhile belong to it for good.

        Names are still resolved as outside: use addresses.
        """
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(self.fd)
            try:
                yield
            finally:
                netns.setns(outside)
        finally:
            os.close(outside)

    def sysctl(self, key: str, value: int | str) -> None:
        """Set net.`key`, written with slashes as below /proc/sys/net, in this namespace."""
        with self.entered():
            Path("/proc/sys/net", key).write_text(f"{value}\n")

    def run(
        self,
        command: Sequence[str],
        timeout: float = 30.0,
        check: bool = True,
        *,
        input: str | None = None,  # noqa: A002  the name subprocess.run gives it
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end, with its output captured as text.

        Raises CommandFailed on a non-zero exit unless `check` is false, and subprocess.TimeoutExpired after `timeout`
        seconds, when the command and everything it started in its session is killed. `env` is added to the usual one.
        """
        process = subprocess.Popen(
            self._command_line(command),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment(env),
            cwd=cwd,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if check and process.returncode:
            raise CommandFailed(process.returncode, list(command), stdout, stderr)
        return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        death_signal: str = "KILL",
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start `command` and return; `options` are those of subprocess.Popen.

        The process gets `death_signal` should this program die, and is ended, at the latest, when the lab closes:
        SIGTERM first, SIGKILL when that does not help.
        """
        process = subprocess.Popen(self._command_line(command, death_signal), env=self._environment(env), **options)
        self._children.append(process)
        return process

    def pids(self) -> list[int]:
        """The processes that live in this namespace."""
        return pids_in(RUN_NETNS / self.name)

    def stop(self) -> None:
        """End every process in the namespace, those started here and those that they started."""
        for process in self._children:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in reversed(self._children):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        self._children.clear()
        kill_all(self.pids)

    def remove(self) -> None:
        """Stop everything and remove the namespace and its /etc/netns folder."""
        self.stop()
        os.close(self.fd)
        remove_by_name(self.name)

    def _command_line(self, command: Sequence[str], death_signal: str = "KILL") -> list[str]:
        return ["setpriv", "--pdeathsig", death_signal, "ip", "netns", "exec", self.name, *command]

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key.upper() not in _UNWANTED_ENVIRONMENT}
        return kept | {"HOME": str(self._home), "GIT_TERMINAL_PROMPT": "0"} | dict(extra or {})


def write_etc(name: str, files: Mapping[str, str]) -> None:
    """Give commands run in namespace `name` their own /etc/FILE for each of `files`."""
    folder = ETC_NETNS / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)


def remove_by_name(name: str) -> None:
    """Kill what lives in the namespace `name` and remove it; nothing happens where it does not exist."""
    path = RUN_NETNS / name
    kill_all(lambda: pids_in(path))
    with suppress(OSError):
        netns.remove(name)
    shutil.rmtree(ETC_NETNS / name, ignore_errors=True)
    with suppress(OSError):
        ETC_NETNS.rmdir()


def pids_in(path: Path) -> list[int]:
    """The processes, other than this one, whose network namespace is the one mounted on `path`."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it may end while we look
            status = (entry / "ns/net").stat()
            if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def kill_all(pids: Callable[[], list[int]]) -> None:
    """SIGKILL what `pids` returns until it returns nothing; raises TimeoutError when that does not come about."""
    deadline = time.monotonic() + _KILLED_SECONDS
    while found := pids():
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {found} survive SIGKILL")
        time.sleep(0.005)

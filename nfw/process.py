"""Small process manners shared by every nfw process: names, dying with the parent, no core dumps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
CAP_NET_ADMIN = 12  # linux/capability.h
CAP_NET_RAW = 13

_libc = ctypes.CDLL(None, use_errno=True)


def tell(text: str) -> None:
    """A line for the operator: the journal, under systemd."""
    print(f"nfw: {text}", file=sys.stderr, flush=True)


def name(title: str) -> None:
    """Show ``title`` (15 bytes at most are kept) in ps and top."""
    _libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent ends. ``parent`` closes the race in which it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def may(*capabilities: int) -> bool:
    """Whether this thread has these capabilities in effect (``CapEff`` of proc(5))."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> capability & 1 for capability in capabilities)
    return False


def no_dumps() -> None:
    """No core file and no ptrace by others of the same user: this process holds keys or plaintext."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prctl(option: int, value: int) -> None:
    """prctl(2) of one argument. Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def capabilities() -> int:
    """Those this process may use, as a bit mask (capabilities(7), CapPrm)."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0


_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 47, 4


def begin_anew(module: str, arguments: Sequence[str], sockets: Sequence[socket.socket]) -> None:
    """Execute ``python -m MODULE PARENT_PID ARGUMENTS... FD...``, where that is how capabilities are lost: a service's
    own user has them by inheritance (ambient), and may not call capset(2). Elsewhere nothing happens."""
    if os.geteuid() == 0 or not capabilities():
        return
    prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    for sock in sockets:
        sock.set_inheritable(True)
    numbers = [str(sock.fileno()) for sock in sockets]
    os.execv(sys.executable, [sys.executable, "-m", module, str(os.getppid()), *arguments, *numbers])  # noqa: S606


def more_files() -> None:
    """Raise the soft limit of open files to the hard one: a TLS flow needs two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fork(work: Callable[[], None], *, title: str) -> int:
    """Run ``work`` in a child that dies with this process; returns its pid.

    The child's exit status is 0 when ``work`` returned and 70 (EX_SOFTWARE) after an exception, whose traceback goes to
    standard error. It never returns into the caller's stack.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(parent, title, work)
    return pid


def _child(parent: int, title: str, work: Callable[[], None]) -> NoReturn:
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; only the supervisor answers it
        die_with_parent(parent)
        name(title)
        gc.enable()  # the leader has it off while it compiles
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 70
    except BaseException:  # noqa: BLE001 - the process ends here; its traceback is all that is left of the bug
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)

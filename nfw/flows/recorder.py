"""Records of flows while they are open, for who counts bytes by the minute: EVE ``flow`` records that are not final.

A process of its own asks the daemon as ``nfw flows`` does, a page of a worker at a time, and takes the counts from the
kernel. It hands its records to the log writer little by little, so that a hundred thousand of them are spread over
seconds instead of filling the writer's socket, and runs at low priority.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from nfw import process
from nfw.control import ControlClient, ControlError
from nfw.flows.capture import eve_flow
from nfw.flows.client import FlowClient
from nfw.flows.filter import FlowFilter
from nfw.log import LogSender

BATCH = 200  # records handed over in one go: a tenth of a megabyte, of the eight that the writer's socket holds
PAUSE_SECONDS = 0.02
_RESTART_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_NICE = 10


class Recorder:
    """The supervisor's side: keeps the process running."""

    def __init__(self, control: str, log: socket.socket) -> None:
        self._control = control
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._interval = 0
        self._due = 0.0

    def tend(self, interval: int, now: float) -> None:
        """Records every ``interval`` seconds; 0: none, and no process."""
        if interval != self._interval:
            self.close()
            self._interval, self._due = interval, now
        if not interval or now < self._due or (self._child is not None and self._child.poll() is None):
            return
        self._due = now + _RESTART_SECONDS
        fd = self._log.fileno()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nfw.flows.recorder", str(fd), str(os.getpid()), self._control, str(interval)],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def record(client: FlowClient, log: LogSender, interval: float, now: Callable[[], float]) -> int:
    """One round: a record of each flow that is open for ``interval`` seconds or longer; how many. Raises
    :class:`ControlError`."""
    count = 0
    for count, flow in enumerate(client.flows(FlowFilter(min_age=interval)), 1):
        log.write(eve_flow(flow.record, client.generation, now()))
        if count % BATCH == 0:
            log.flush()
            time.sleep(PAUSE_SECONDS)
    log.flush()
    return count


def main() -> None:
    """``python -m nfw.flows.recorder LOG_FD PARENT_PID CONTROL INTERVAL``."""
    process.die_with_parent(int(sys.argv[2]))
    process.name("nfw flow log")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    log = LogSender(socket.socket(fileno=int(sys.argv[1])), None, ("flow",))
    interval = float(sys.argv[4])
    due = time.monotonic() + interval
    failed = False
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due + interval, time.monotonic())
        client = FlowClient(ControlClient(sys.argv[3], _ANSWER_SECONDS))
        try:
            record(client, log, interval, time.time)
            failed = False
        except ControlError as error:
            if not failed:  # a swap in between ends a round; the next one says the same of flows that are still open
                process.tell(f"flow records: {error}")
            failed = True


if __name__ == "__main__":
    main()

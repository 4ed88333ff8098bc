"""The supervisor: control socket, generations, the switch. It parses no policy and sees no packet.

Order of a hot swap (``ARCHITECTURE.md``): start the new generation; while it compiles, make the kernel ready for it;
wait until all of it listens; point the kernel at it in one transaction; tell it which flows are older than itself;
delete their conntrack entries (UDP's stay, see ``hostnet``); end the old generation. Any failure before the switch
leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nfw import __version__, events, log, process, sinks
from nfw.change import Changes, Wish
from nfw.conntrack import Conntrack
from nfw.control import ControlServer, Deferred, Reply, Request
from nfw.exporter import Address, Exporter, is_private
from nfw.flows.desk import FlowDesk
from nfw.flows.recorder import Recorder
from nfw.generation import MESSAGE_BYTES, describe
from nfw.hostnet import TABLE, GenerationPlan, HostNet, HostNetError
from nfw.marks import Disposition, MarkLayout
from nfw.policystore import Entry, StoreError
from nfw.rulecounts import Book, Kept, RuleRow, together
from nfw.settings import (
    DEFAULT_CONTROL,
    DEFAULT_LOG,
    DEFAULT_QUEUE_BASE,
    POLICIES,
    QUEUE_SPAN,
    GenerationReady,
    GenerationSettings,
    PolicySource,
    pack,
    unpack,
)
from nfw.tablewatch import TableWatch
from nfw.tuples import flow_tuple

START_SECONDS = 120.0  # compiling 30,000 rules cold takes a fraction of it; a leader that hangs must not block applies
SILENT_SECONDS = 15.0  # without a word that all of the generation lives; its leader kills what hangs sooner than that
END_SECONDS = 13.0  # for the old generation to end its sessions and write its last records
OLD_FLOWS_PER_MESSAGE = 8000
STATUS_SECONDS = 3.0
COUNTS_SECONDS = 60.0  # between two looks at what the rules have counted; a leader that is killed takes as much along
COUNTS_FILE = "rule-counts"
RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)  # waits before the n-th start within a minute
QUEUE_SPANS = 4  # current, coming and two that are still ending
MONITOR = "monitor"  # value of nfw.policy.model.Mode
TABLE_SECONDS = 0.02  # between the first word of a change of the table and a look at it
BUSY_SECONDS = 2.0  # for the processes of a killed supervisor to be gone


class NotStartedError(HostNetError):
    """``nfw run`` cannot begin. Nothing in the kernel was changed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``nfw run`` was told."""

    policy: PolicySource
    control: str = DEFAULT_CONTROL
    mark_mask: int = 0xFFF00000
    queue_base: int = DEFAULT_QUEUE_BASE
    log: str | None = None
    metrics: Address | None = None  # where Prometheus may scrape
    state: str = ""  # folder that keeps policies, and counts of rules from one start to the next; empty: nothing is
    on_exit: str = "closed"  # closed: traffic stays blocked until the next start; cleanup: the kernel as it was


@dataclass(slots=True)
class Generation:
    """A leader as the supervisor sees it."""

    settings: GenerationSettings
    leader: subprocess.Popen[bytes]
    sock: socket.socket
    started: float
    source: PolicySource
    wish: Wish | None  # None: a generation that was lost comes again
    prepared: GenerationPlan | None = None  # what the kernel is ready for
    ready: GenerationReady | None = None
    alive: float = 0.0  # when it said so last
    hangs: bool = False
    answer: Callable[[Reply], None] | None = None
    waiting_status: list[tuple[Callable[[Reply], None], float]] = field(default_factory=list)  # and until when
    asked: dict[int, tuple[Callable[[Any], None], float]] = field(default_factory=dict)  # by number, and until when


class Supervisor:
    """One per machine (or network namespace)."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.layout = MarkLayout(options.mark_mask)
        self.hostnet = HostNet(self.layout)
        self.conntrack = Conntrack()
        self.selector = selectors.DefaultSelector()
        self.current: Generation | None = None
        self.coming: Generation | None = None
        self.ending: list[tuple[Generation, float]] = []
        self.number = 0
        self.questions = 0  # put to leaders
        self.book = Book()
        self.save_failed = False
        self.counts_due = time.monotonic() + COUNTS_SECONDS
        self.after_ending: list[Callable[[], None]] = []  # for whoever needs the last word of older generations
        self.retiring: list[int] = []  # numbers of generations that have been replaced but have not ended
        self.stopping = False
        self.exit_status = 0
        self.restart_at: float | None = None
        self.losses: list[float] = []  # when a generation was lost or did not come back, within the last minute
        self.log_path = ""  # not known before the first policy is
        self.log_sinks: list[dict[str, Any]] = []
        self.log_name = ""  # of the policy, for AWS's format
        self.log_counters = sinks.Counters()
        self.stats_due: float | None = None
        self.stats_every = 0
        self.started = self.looked = time.monotonic()
        self.log_started = 0.0
        self.log_due: float | None = None
        self.log_sender, self.log_receiver = log.channel()
        self.log_pid = 0
        self.control: ControlServer | None = None
        self.recorder = Recorder(options.control, self.log_sender)
        self.exporter: Exporter | None = None
        self.table: TableWatch | None = None
        self.table_due: float | None = None  # when the table is looked at: somebody may have changed it
        self.table_restored = 0  # times
        self.table_print = ""  # what it was when nfw changed it last
        self.changes: Changes  # made by run(), once nobody else can be running

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit status. Raises as :func:`run`."""
        if self.options.log is not None:
            problem = log.check(self.options.log)
            if problem is not None:
                raise NotStartedError(problem)
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        self.selector.register(wake_in, selectors.EVENT_READ, lambda: _drain(wake_in))
        self.control = ControlServer(self.options.control, self.handle)
        try:
            self._open_metrics()
            self._refuse_bound_queues()
            for problem in self.hostnet.preflight():
                say(f"warning: {problem}")
            self.conntrack.flush_marked_any(self.layout.mask)
            self.hostnet.install_closed()
            self.hostnet.destroy_sockets()
            self._watch_table()
        except BaseException:
            self.control.close()
            if self.exporter is not None:
                self.exporter.close()
            raise
        if self.options.state:
            problem = self.book.load(Path(self.options.state, COUNTS_FILE))
            if problem is not None:
                say(problem)
        say("closed: nothing is forwarded until the first policy runs")
        self.changes = Changes(Path(self.options.state, POLICIES) if self.options.state else None, say)
        policy = self.changes.at_start(self.options.policy)
        self._begin(policy, self._first, Wish(os.geteuid(), "start"))
        try:
            while not self.stopping:
                self._once()
        finally:
            self._shutdown()
        return self.exit_status

    def _watch_table(self) -> None:
        try:
            self.table = TableWatch(TABLE)
        except OSError as error:
            say(f"warning: cannot notice when somebody else changes table inet {TABLE}: {error.strerror}")
            return
        self.selector.register(self.table, selectors.EVENT_READ, self._table_told)
        self._table_is_ours()

    def _table_told(self) -> None:
        assert self.table is not None
        if self.table.changed() and self.table_due is None:
            self.table_due = time.monotonic() + TABLE_SECONDS

    def _table_is_ours(self) -> None:
        """nfw has changed the table. It never takes it away: one that is gone is somebody else's doing."""
        if self.table is not None:
            with contextlib.suppress(HostNetError):
                self.table_print = self.hostnet.fingerprint() or self.table_print

    def _look_at_table(self) -> None:
        """Put the table back where somebody else has changed or removed it."""
        self.table_due = None
        try:
            found = self.hostnet.fingerprint()
            if found == self.table_print:
                return
            what = "changed" if found else "REMOVED"
            say(f"WARNING: table inet {TABLE} was {what} by somebody else: traffic may have passed unfiltered")
            current = self.current
            self.hostnet.restore(_plan(current) if current is not None else None)
            self._table_is_ours()
        except HostNetError as error:
            self.table_due = time.monotonic() + 1.0
            say(f"WARNING: table inet {TABLE} cannot be restored, tried again in a second: {error}")
            return
        self.table_restored += 1
        say(f"WARNING: table inet {TABLE} is restored" + ("" if current is not None else ", closed"))

    def _open_metrics(self) -> None:
        address = self.options.metrics
        if address is None:
            return
        shown = address if isinstance(address, str) else f"{address[0]} port {address[1]}"
        try:
            self.exporter = Exporter(address, self._ask_status, self.selector)
        except OSError as error:
            raise NotStartedError(f"cannot listen for metrics on {shown}: {error.strerror}") from error
        if not is_private(address):
            say(f"warning: metrics on {shown}: whoever reaches that address can read policy, rule and counter names")

    def _refuse_bound_queues(self) -> None:
        """Another nfw, or whoever reads our queues, must not find its rules replaced by a daemon that cannot run."""
        from nfw.nfqueue import read_stats

        first = self.options.queue_base
        until = time.monotonic() + BUSY_SECONDS
        while True:
            bound = sorted(number for number in read_stats() if first <= number < first + QUEUE_SPANS * QUEUE_SPAN)
            if not bound:
                return
            if time.monotonic() >= until:
                raise NotStartedError(
                    f"netfilter queue {bound[0]} is read by another process already; is another nfw running?"
                    " (otherwise choose another --queue-base)"
                )
            time.sleep(0.05)

    def _once(self) -> None:
        assert self.control is not None
        self.control.attach(self.selector)
        for key, _ in self.selector.select(self._wait()):
            if callable(key.data):
                key.data()
        self.control.expire()
        self._reap()
        self._deadlines()

    def _wait(self) -> float:
        waits = self.coming or self.ending or self.restart_at is not None or self.log_due is not None
        waits = waits or self.changes.waiting is not None
        if self.table_due is not None:
            return max(0.0, min(0.2, self.table_due - time.monotonic()))
        asked = self.current is not None and (self.current.waiting_status or self.current.asked)
        return 0.2 if waits or asked else 1.0

    def _on_signal(self, number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stopping = True
        elif number == signal.SIGHUP and self.log_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.log_pid, signal.SIGHUP)

    def _shutdown(self) -> None:
        if self.table is not None:
            self.selector.unregister(self.table)
            self.table.close()
        notify("STOPPING=1")
        if self.coming is not None:
            self.coming.leader.kill()  # it filters nothing yet, and while it compiles it does not listen
        for generation in [one for one in (self.coming, self.current) if one is not None]:
            self._end(generation, "drop")
        for generation, _ in self.ending:
            generation.sock.settimeout(END_SECONDS)
            while self._hear_last(generation):
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):
                generation.leader.wait(END_SECONDS)
            generation.leader.kill()
            generation.leader.wait()
            self._last_words(generation)
        self._save_counts()
        self.recorder.close()
        self.log_sender.close()
        self._end_log()
        if self.exporter is not None:
            self.exporter.close()
        if self.control is not None:
            self.control.close()
        if self.options.on_exit == "cleanup":
            self.hostnet.cleanup()
            say("stopped; the kernel is as it was before nfw")
        else:
            with contextlib.suppress(HostNetError):
                self.hostnet.install_closed()
            say("stopped; traffic stays closed (`nfw cleanup` opens it)")

    def _start_log(self) -> None:
        settings, firewall, counters = self.log_sinks, self.log_name, self.log_counters
        receiver, sender = self.log_receiver, self.log_sender
        self.log_started, self.log_due = time.monotonic(), None
        problem = _unwritable(settings)
        if problem is not None:
            say(problem)
            self.log_due = self.log_started + RESTART_SECONDS[-1]
            return

        def write() -> None:
            sender.close()
            wanted = {kind for one in settings for kind in one["events"]}
            made = [sinks.make(one, tuple(wanted), firewall) for one in settings]
            log.run_writer(receiver, made, counters)

        self.log_pid = process.fork(write, title="nfw log")

    def _end_log(self) -> None:
        """What it has it writes; one that hangs, as on a dead network disk, is not waited for."""
        for number, seconds in ((signal.SIGTERM, log.STOP_SECONDS + 1.0), (signal.SIGKILL, 1.0)):
            until = time.monotonic() + seconds
            try:
                if self.log_pid:
                    os.kill(self.log_pid, number)
                while self.log_pid and time.monotonic() < until:
                    if os.waitpid(self.log_pid, os.WNOHANG)[0]:
                        self.log_pid = 0
                    else:
                        time.sleep(0.005)
            except (ProcessLookupError, ChildProcessError):
                self.log_pid = 0
        if self.log_pid:
            say("the log writer cannot be ended; another takes its place")
            self.log_pid = 0

    def _log_of(self, ready: GenerationReady) -> str:
        """The policy names the log unless the command line did."""
        return self.options.log or ready.log_path or DEFAULT_LOG

    def _sinks_of(self, ready: GenerationReady) -> list[dict[str, Any]]:
        """Every sink of a policy. The file is left out when no events are to go there."""
        main = {
            "kind": "file",
            "path": self._log_of(ready),
            "max_size": ready.log_bytes,
            "keep": ready.log_keep,
            "events": list(ready.log_events),
            "format": ready.log_format,
        }
        return [*([main] if ready.log_events or not ready.log_sinks else []), *ready.log_sinks]

    def _move_log(self, ready: GenerationReady) -> None:
        """A new writer takes over the same channel."""
        wanted = self._sinks_of(ready)
        if ready.log_stats != self.stats_every:
            self.stats_every = ready.log_stats
            self.stats_due = time.monotonic() + ready.log_stats if ready.log_stats else None
        if (wanted, ready.name) == (self.log_sinks, self.log_name):
            return
        self.log_sinks, self.log_name = wanted, ready.name
        self.log_path = str(wanted[0]["path"]) if wanted[0]["kind"] == "file" else ""
        self._end_log()
        self._start_log()

    # -- generations -----------------------------------------------------------------------------------------------

    def _begin(
        self, policy: PolicySource, answer: Callable[[Reply], None], wish: Wish | None, *, only_try: bool = False
    ) -> None:
        self.number = self.number % self.layout.max_generation + 1
        if self.current is not None and self.number == self.current.settings.number:
            self.number = self.number % self.layout.max_generation + 1
        settings = GenerationSettings(
            number=self.number,
            policy=policy.file,
            more=policy.more,
            map_file=policy.map_file,
            name=policy.name,
            monitor=policy.monitor,
            files=policy.files,
            store=str(self.changes.directory) if self.changes.store is not None else "",
            instead_of=(self.current.settings.number if self.current is not None else 0) if only_try else None,
            queue_first=self._free_span(),
            mark_mask=self.options.mark_mask,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            theirs.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)
            ours.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)
        leader = subprocess.Popen(
            [
                _interpreter(),
                "-m",
                "nfw.generation",
                str(theirs.fileno()),
                str(self.log_sender.fileno()),
                str(os.getpid()),
            ],
            pass_fds=(theirs.fileno(), self.log_sender.fileno()),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.send(pack("settings", settings))
        ours.setblocking(False)
        generation = Generation(settings, leader, ours, time.monotonic(), policy, wish, answer=answer)
        self.coming = generation
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(generation))

    def _free_span(self) -> int:
        """First queue of a span that no living generation may have bound."""
        living = [one for one in (self.current, self.coming) if one is not None] + [one for one, _ in self.ending]
        taken = {generation.settings.queue_first for generation in living}
        spans = [self.options.queue_base + index * QUEUE_SPAN for index in range(QUEUE_SPANS)]
        return next((first for first in spans if first not in taken), spans[0])

    def _hear(self, generation: Generation) -> None:
        try:
            data = generation.sock.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(generation)
            return
        kind, body = unpack(data)
        if kind == "alive":
            generation.alive = time.monotonic()
        elif kind == "needs":
            self._prepare(generation, body)
        elif kind == "ready":
            generation.ready = GenerationReady(**body)
            self._switch(generation)
        elif kind == "failed":
            self._failed(generation, [str(line) for line in body])
        elif kind == "tried":
            answer, generation.answer = generation.answer, None
            self._end(generation, "drop")
            if answer is not None:
                answer(Reply(True, body, ()))
        elif kind == "died":
            say(f"generation {generation.settings.number}: {body}")
        elif kind == "status":
            for answer, _ in generation.waiting_status:
                answer(Reply(True, self._status(generation, body), ()))
            generation.waiting_status = []
        elif kind == "counts":
            self._told_counts(generation, body)
        elif kind == "answer":
            number, value = body
            taken = generation.asked.pop(number, None)
            if taken is not None:
                taken[0](value)

    def _prepare(self, generation: Generation, needs: Mapping[str, Any]) -> None:
        """While a generation is compiled, the kernel is made ready for it. What it refuses is tried again, and told,
        when all is compiled."""
        plan = GenerationPlan(generation.settings.number, **needs)
        with contextlib.suppress(HostNetError, OSError):
            self.hostnet.prepare(plan)
            generation.prepared = plan
        self._table_is_ours()

    def _switch(self, generation: Generation) -> None:
        ready = generation.ready
        assert ready is not None
        number = generation.settings.number
        old = self.current
        problem = _unwritable([one for one in self._sinks_of(ready) if one not in self.log_sinks])
        if problem is not None:
            self._failed(generation, [problem])
            return
        entry: Entry | None = None
        try:
            if generation.wish is not None:
                entry = self.changes.prepare(generation.wish, generation.source, ready)
            plan = _plan(generation)
            self.hostnet.switch(plan, prepared=plan == generation.prepared)
        except (HostNetError, StoreError, OSError) as error:
            if entry is not None:
                self.changes.abandoned(entry)
            self._table_is_ours()
            self._failed(generation, [str(error)])
            return
        took = time.monotonic() - ready.compiled
        self._table_is_ours()
        self.current, self.coming = generation, None
        generation.alive = time.monotonic()
        self.restart_at = None
        # Started again, it is the same policy, whatever has become of its files.
        policy = replace(generation.source, files=ready.files)
        self.options = Options(**{**_fields(self.options), "policy": policy})
        if generation.wish is not None and entry is not None:
            self.changes.took_effect(generation.wish, entry)
        if old is not None:
            self._retire_flows(generation, old, ready)
            self._end(old, ready.open_action)
        self._move_log(ready)
        for level, text in ready.warnings:
            say(f"{level}: {text}")
        say(
            f"generation {number} filters: policy {ready.name!r}, queues {ready.queue_first}-{ready.queue_last}"
            + (f", TLS port {ready.tproxy_port}" if ready.tproxy_port else "")
            + f"; switched {took * 1e3:.0f} ms after it was compiled"
        )
        if ready.mode == MONITOR:
            say(f"WARNING: policy {ready.name!r} is in mode monitor: NOTHING IS BLOCKED, what would be is recorded")
        doing = "Monitoring, NOTHING IS BLOCKED" if ready.mode == MONITOR else "Filtering"
        notify(f"READY=1\nSTATUS={doing}: policy {ready.name!r}, generation {number}")
        if generation.answer is not None:
            generation.answer(
                Reply(
                    True,
                    {
                        "generation": number,
                        "name": ready.name,
                        "mode": ready.mode,
                        "warnings": [{"level": level, "message": text} for level, text in ready.warnings],
                        **self.changes.status(),
                    },
                    (),
                )
            )
            generation.answer = None

    def _retire_flows(self, new: Generation, old: Generation, ready: GenerationReady) -> None:
        """Flows of the old generation: remembered where the policy must still recognise them, then forgotten."""
        number = old.settings.number
        dispositions = _forgotten(ready.open_which)
        self.retiring.append(number)
        if ready.open_action == "reject" or ready.stream_exception == "continue":
            tuples: list[bytes] = []
            for disposition in dispositions:
                if disposition is Disposition.OWN:
                    continue
                mark = self.layout.compose(number, disposition)
                tuples += [
                    flow_tuple(6, entry.client, entry.client_port, entry.server, entry.server_port)
                    for entry in self.conntrack.entries(mark, self.layout.mask)
                    if entry.protocol == 6
                ]
            for start in range(0, len(tuples), OLD_FLOWS_PER_MESSAGE):
                self._ask(new, "old_flows", tuples[start : start + OLD_FLOWS_PER_MESSAGE], "flows_known")
        for disposition in dispositions:
            self.conntrack.flush_marked(self.layout.compose(number, disposition), self.layout.mask)

    def _retire(self) -> None:
        """Every older generation has ended: its chains go, and what its last verdicts left in conntrack."""
        ready = self.current.ready if self.current is not None else None
        try:
            for number in self.retiring:
                for disposition in _forgotten(ready.open_which) if ready is not None else ():
                    self.conntrack.flush_marked(self.layout.compose(number, disposition), self.layout.mask)
                self.hostnet.destroy_sockets(number)
            self.retiring = []
            self.hostnet.retire(self.coming.settings.number if self.coming is not None else 0)
            self._table_is_ours()
        except HostNetError as error:
            say(f"cannot retire the old generation: {error}")

    def _ask(self, generation: Generation, kind: str, body: Any, answer: str) -> None:
        """Send and wait briefly; other messages that come meanwhile are handled as usual."""
        generation.sock.setblocking(True)
        generation.sock.settimeout(2.0)
        try:
            generation.sock.send(pack(kind, body))
            while True:
                data = generation.sock.recv(MESSAGE_BYTES)
                if not data:
                    return  # it is gone, which the selector is told as well
                heard, value = unpack(data)
                if heard == answer:
                    return
                if heard == "died":
                    say(f"generation {generation.settings.number}: {value}")
        except OSError as error:
            say(f"generation {generation.settings.number} did not answer {kind}: {error}")
        finally:
            generation.sock.setblocking(False)

    def _end(self, generation: Generation, action: str) -> None:
        with contextlib.suppress(OSError):
            generation.sock.send(pack("end", {"action": action}))
        self._forget(generation)
        self.ending.append((generation, time.monotonic() + END_SECONDS))
        self.selector.register(generation.sock, selectors.EVENT_READ, lambda: self._hear_last(generation))

    def _hear_last(self, generation: Generation) -> bool:
        """What a generation that has been told to end still says: what its rules have counted. False: nothing more."""
        try:
            data = generation.sock.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(generation.sock)
            return False
        kind, body = unpack(data)
        if kind == "counts":
            self._told_counts(generation, body)
        return True

    def _told_counts(self, generation: Generation, body: Mapping[str, Any]) -> None:
        number = generation.settings.number
        self.book.tell(number, body["rows"], float(body["since"]))
        if body["last"] and generation is self.current:
            self._save_counts()

    def _save_counts(self) -> None:
        if not self.options.state:
            return
        try:
            self.book.save(Path(self.options.state, COUNTS_FILE))
        except OSError as error:
            if not self.save_failed:
                say(f"counts of rules cannot be kept: {error}")
            self.save_failed = True
        else:
            self.save_failed = False

    def _forget(self, generation: Generation) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(generation.sock)
        if generation is self.coming:
            self.coming = None
        if generation is self.current:
            self.current = None
        # Who asked for the status asked about the firewall: the generation that took over says it.
        waiting, generation.waiting_status = generation.waiting_status, []
        for answer, until in waiting:
            self._status_to(answer, until)
        self._unanswered(generation, "another policy took effect, or its processes ended, while this was asked", None)

    def _failed(self, generation: Generation, lines: list[str]) -> None:
        """A generation that did not come up: everything stays as it was."""
        answer = generation.answer
        self._end(generation, "drop")
        if answer is not None:
            answer(Reply(False, None, tuple(lines)))

    def _lost(self, generation: Generation) -> None:
        """The leader is gone without being told to go."""
        current = generation is self.current
        coming = generation is self.coming
        self._forget(generation)
        generation.sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            generation.leader.wait(1.0)
        generation.leader.kill()
        code = generation.leader.wait()
        self.book.fold(generation.settings.number)
        text = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        if coming and generation.answer is not None:
            generation.answer(Reply(False, None, (f"the generation ended while it started: {text}",)))
        if current:
            self.retiring.append(generation.settings.number)  # what its sessions left goes with the next old generation
            say(f"generation {generation.settings.number} ended: {text}; traffic is closed; starting it again")
            notify("STATUS=Closed: the policy's processes ended and are being started again")
            if self.changes.waiting is not None:
                self.changes.hurry("its processes ended")
            else:
                self._start_again()

    def _start_again(self) -> None:
        """Soon, but not so fast that a policy which cannot live takes the machine."""
        now = time.monotonic()
        self.losses = [at for at in self.losses if now - at < 60.0] + [now]
        self.restart_at = now + RESTART_SECONDS[min(len(self.losses), len(RESTART_SECONDS)) - 1]

    def _first(self, reply: Reply) -> None:
        """The policy given on the command line did not load: there is nothing to run."""
        if not reply.ok:
            for line in reply.errors:
                print(line, file=sys.stderr, flush=True)
            self.exit_status = 1
            self.stopping = True

    def _again(self, reply: Reply) -> None:
        if not reply.ok:
            for line in reply.errors:
                say(line)
            self._start_again()

    def _reap(self) -> None:
        still = []
        for generation, until in self.ending:
            if generation.leader.poll() is None:
                if time.monotonic() < until:
                    still.append((generation, until))
                    continue
                generation.leader.kill()
                generation.leader.wait()
            self._last_words(generation)
        if self.ending and not still:
            self._retire()
        self.ending = still
        if not still:
            waiting, self.after_ending = self.after_ending, []
            for work in waiting:
                work()
        if self.log_pid:
            pid, status = os.waitpid(self.log_pid, os.WNOHANG)
            if pid:
                say(f"the log writer ended: {describe(status)}; starting it again")
                self.log_pid, self.log_due = 0, self.log_started + 1.0

    def _last_words(self, generation: Generation) -> None:
        """The leader is gone: what it said last is read, what it counted is kept."""
        generation.sock.setblocking(False)
        while self._hear_last(generation):
            pass
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(generation.sock)
        generation.sock.close()
        self.book.fold(generation.settings.number)

    def _deadlines(self) -> None:
        now = time.monotonic()
        if now >= self.counts_due:
            self.counts_due = now + COUNTS_SECONDS
            if self.current is not None:
                with contextlib.suppress(OSError):
                    self.current.sock.send(pack("count", None))
        if self.coming is not None and now - self.coming.started > START_SECONDS:
            self._failed(self.coming, [f"the policy did not load within {START_SECONDS:.0f} s"])
        if self.restart_at is not None and now >= self.restart_at and self.coming is None:
            self.restart_at = None
            self._begin(self.options.policy, self._again, None)
        if self.changes.due():
            if self.coming is not None and self.coming.settings.instead_of is not None:
                self._failed(self.coming, ["the former policy is coming back; try again when it is there"])
            if self.coming is None:
                source, wish = self.changes.back()
                say(f"WARNING: policy not confirmed: going back to {source.file}")
                self._begin(source, self._gone_back, wish)
        if self.table_due is not None and now >= self.table_due:
            self._look_at_table()
        if self.log_due is not None and now >= self.log_due:
            self._start_log()
        if self.current is not None:
            waiting = self.current.waiting_status
            self.current.waiting_status = [item for item in waiting if item[1] > now]
            for answer, until in waiting:
                if until <= now:
                    answer(Reply(False, None, (f"the generation did not answer within {STATUS_SECONDS:.0f} s",)))
            self._unanswered(self.current, f"the generation did not answer within {STATUS_SECONDS:.0f} s", now)
        if self.stats_due is not None and now >= self.stats_due:
            self.stats_due = now + self.stats_every
            self._write_stats()
        if self.exporter is not None:
            self.exporter.tend()
        ready = self.current.ready if self.current is not None else None
        self.recorder.tend(ready.log_flows if ready is not None else 0, now)
        if self._lives(now):
            notify("WATCHDOG=1")

    def _lives(self, now: float) -> bool:
        """Whether the generation does, as far as is known. One that hangs is killed, and then started again; systemd's
        watchdog is for when that does not help."""
        away, self.looked = now - self.looked - 1.0, now
        generation = self.current
        if generation is None:
            return True
        generation.alive += max(0.0, away)  # silence while nobody listened is none
        if not generation.hangs and now - generation.alive > SILENT_SECONDS:
            say(f"generation {generation.settings.number} hangs; killing it")
            generation.hangs = True
            generation.leader.kill()
        return not generation.hangs

    # -- control ---------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Reply | Deferred:
        """One request of the CLI."""
        if request.command == "apply":
            return self._apply(request)
        if request.command in _OF_CHANGES:
            try:
                return _OF_CHANGES[request.command](self, request)
            except StoreError as error:
                return Reply(False, None, (str(error),))
        if request.command == "status":
            return self._ask_status()
        if request.command in ("rules", "rules_reset"):
            return self._rules(request)
        if request.command in ("flows", "flush"):
            return self._flows(request)
        if request.command == "ping":
            return Reply(True, {"version": __version__, "pid": os.getpid()}, ())
        return Reply(False, None, (f"unknown command {request.command!r}",))

    def _apply(self, request: Request) -> Reply | Deferred:
        policy = policy_source(request.args)
        if policy is None:
            return Reply(False, None, ("apply needs the absolute path of a policy file",))
        if self.coming is not None:
            return Reply(False, None, ("another policy is being applied; try again when it is done",))
        wish = Wish(request.uid, "apply", float(request.args.get("confirm") or 0))
        refusal = self.changes.refusal(wish)
        if request.args.get("dry_run"):
            return self._try(policy, refusal)
        return Reply(False, None, (refusal,)) if refusal is not None else self._change(policy, wish)

    def _try(self, policy: PolicySource, refusal: str | None) -> Deferred:
        """All but the change itself."""
        deferred = Deferred()

        def done(reply: Reply) -> None:
            if reply.ok:
                warnings = [{"level": level, "message": text} for level, text in reply.data["warnings"]]
                reply = Reply(True, {**reply.data, "warnings": warnings, "refusal": refusal}, ())
            deferred.resolve(reply)

        self._begin(policy, done, None, only_try=True)
        return deferred

    def _change(self, policy: PolicySource, wish: Wish) -> Deferred:
        deferred = Deferred()

        def done(reply: Reply) -> None:
            if not reply.ok:
                self.changes.failed(wish, policy, reply.errors)
                if self.current is None and not self.stopping:
                    self._start_again()  # what ran before is gone too, and this was tried instead of it
            deferred.resolve(reply)

        self.restart_at = None
        self._begin(policy, done, wish)
        return deferred

    def _gone_back(self, reply: Reply) -> None:
        if not reply.ok:
            self.changes.not_back(reply.errors)

    def _confirm(self, request: Request) -> Reply:
        return Reply(True, self.changes.confirm(request.uid), ())

    def _rollback(self, request: Request) -> Reply | Deferred:
        number = _number(request)
        if self.coming is not None:
            return Reply(False, None, ("another policy is being applied; try again when it is done",))
        if self.changes.waiting is None:
            entry = self.changes.target(number)
            return self._change(entry.source, Wish(request.uid, "rollback", of=entry.origin))
        if number not in (None, self.changes.waiting.former.number):
            raise StoreError(
                "a policy waits for confirmation: `nfw policy rollback` without a number takes it back first"
            )
        deferred = Deferred()

        def done(reply: Reply) -> None:
            self._gone_back(reply)
            deferred.resolve(reply)

        wish = Wish(request.uid, "rollback", why=f"taken back by uid {request.uid}")
        source, wish = self.changes.back(wish)
        self._begin(source, done, wish)
        return deferred

    def _history(self, request: Request) -> Reply:
        return Reply(True, self.changes.history(), ())

    def _kept(self, request: Request) -> Reply:
        return Reply(True, self.changes.kept(_number(request)), ())

    def _ask_status(self) -> Deferred:
        deferred = Deferred()
        self._status_to(deferred.resolve, time.monotonic() + STATUS_SECONDS)
        return deferred

    def _status_to(self, answer: Callable[[Reply], None], until: float) -> None:
        """The status to ``answer``, before ``until`` (monotonic)."""
        generation = self.current
        if generation is None:
            answer(Reply(True, {"version": __version__, "pid": os.getpid(), "state": "closed"}, ()))
            return
        generation.waiting_status.append((answer, until))
        with contextlib.suppress(OSError):
            generation.sock.send(pack("status", None))

    def _put(self, generation: Generation, what: str, body: Any, answer: Callable[[Any], None]) -> None:
        """Ask a leader; ``answer`` gets what it says, or ``{"error": text}``."""
        self.questions += 1
        generation.asked[self.questions] = (answer, time.monotonic() + STATUS_SECONDS)
        with contextlib.suppress(OSError):
            generation.sock.send(pack("ask", [self.questions, what, body]))

    def _unanswered(self, generation: Generation, why: str, now: float | None) -> None:
        for number, (answer, until) in list(generation.asked.items()):
            if now is None or until <= now:
                del generation.asked[number]
                answer({"error": why})

    def _rules(self, request: Request) -> Reply | Deferred:
        """Counts of rules: a page from number ``start`` on, or ``rules_reset``. Waits for the last word of generations
        that are ending."""
        start = request.args.get("start", 0)
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            return Reply(False, None, ("start is the number of a rule, from 0",))
        deferred = Deferred()

        def ask() -> None:
            generation = self.current
            if generation is None:
                deferred.resolve(Reply(False, None, ("no policy filters: there are no rules",)))
            elif request.command == "rules":
                self._put(generation, "rules", {"start": start}, answer)
            else:
                self._put(generation, "reset", None, reset)

        def answer(value: Any) -> None:
            if not isinstance(value, dict) or "rows" not in value:
                deferred.resolve(_unreadable(value))
                return
            rows = [self._with_kept(row, value["since"]) for row in value["rows"]]
            deferred.resolve(Reply(True, {"total": value["total"], "rows": rows}, ()))

        def reset(value: Any) -> None:
            if not isinstance(value, dict) or "since" not in value:
                deferred.resolve(_unreadable(value))
                return
            self.book.reset()
            self._save_counts()
            deferred.resolve(Reply(True, {"since": value["since"]}, ()))

        if self.ending:
            self.after_ending.append(ask)
        else:
            ask()
        return deferred

    def _with_kept(self, row: list[Any], since: float) -> dict[str, Any]:
        """A rule of the leader's answer with what earlier generations counted."""
        named = RuleRow(*row[: len(RuleRow._fields)])
        hits, octets, flows, last = row[len(RuleRow._fields) :]
        counted = together(self.book.kept(named.digest), Kept(hits, octets, flows, last, since))
        fields = {**named._asdict(), **counted._asdict()}
        del fields["digest"]
        return fields

    def _flows(self, request: Request) -> Reply | Deferred:
        """See :mod:`nfw.flows.desk`."""
        generation = self.current
        if generation is None:
            return Reply(False, None, ("no policy filters: there are no flows",))
        number = generation.settings.number
        desk = FlowDesk(self.layout, number, lambda what, body, answer: self._put(generation, what, body, answer))
        return desk.page(request.args) if request.command == "flows" else desk.flush(request.args)

    def _status(self, generation: Generation, body: dict[str, Any]) -> dict[str, Any]:
        ready, settings = generation.ready, generation.settings
        kernel = self._kernel()
        # Somebody may have flushed the rule set, or run `nfw cleanup`: processes alone do not filter.
        gone = kernel.get("counters") == {}
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "not filtering: table inet nfw is gone; it is being restored" if gone else "filtering",
            "table_restored": self.table_restored,
            "name": ready.name if ready else "",
            "mode": ready.mode if ready else "",
            **self.changes.status(),
            "policy_source": {
                "file": settings.policy,
                "more": list(settings.more),
                "map": settings.map_file,
                "name": settings.name,
            },
            "log": self.log_path,
            "log_writer": self._log_status(),
            "kernel": kernel,
            **body,
        }

    def _write_stats(self) -> None:
        """One EVE ``stats`` record, when the generation has answered."""

        def write(reply: Reply) -> None:
            if reply.ok:
                sender = log.LogSender(self.log_sender)
                sender.write(events.stats(reply.data, time.monotonic() - self.started, time.time()))
                sender.flush()

        self._ask_status().on_resolve(write)

    def _log_status(self) -> dict[str, Any]:
        names = [sinks.name_of(one) for one in self.log_sinks]
        lost = self.log_counters.get(len(names))
        return {"pid": self.log_pid, "dropped": dict(zip(names, lost, strict=True))}

    def _kernel(self) -> dict[str, Any]:
        """What the kernel counts: packets by rule of ours, and for each queue those waiting and those dropped."""
        from nfw.nfqueue import read_stats

        first = self.options.queue_base
        spans = range(first, first + QUEUE_SPANS * QUEUE_SPAN)
        found: dict[str, Any] = {
            "queues": {str(number): row for number, row in read_stats().items() if number in spans}
        }
        with contextlib.suppress(HostNetError, OSError):
            found["counters"] = self.hostnet.counters()
        return found


_OF_CHANGES: dict[str, Callable[[Supervisor, Request], Reply | Deferred]] = {
    "confirm": Supervisor._confirm,
    "rollback": Supervisor._rollback,
    "history": Supervisor._history,
    "policy": Supervisor._kept,
}


def _number(request: Request) -> int | None:
    """Of an entry in the history. Raises StoreError."""
    number = request.args.get("number")
    if number is not None and (type(number) is not int or number < 1):
        raise StoreError(f"expected the number of an entry, got {number!r}")
    return number


def _plan(generation: Generation) -> GenerationPlan:
    """What a generation needs of the kernel."""
    ready = generation.ready
    assert ready is not None
    return GenerationPlan(
        generation=generation.settings.number,
        queue_first=ready.queue_first,
        queue_last=ready.queue_last,
        tproxy_port=ready.tproxy_port,
        fragments=ready.fragments,
        fail_open=ready.fail_open,
    )


def _forgotten(which: str) -> tuple[Disposition, ...]:
    """Whose conntrack entries go at a switch, by ``open_flows.which``. Those of UDP stay, to say who is the client."""
    tls = (Disposition.TLS, Disposition.OWN)
    if which == "all":
        return (
            Disposition.INSPECT,
            Disposition.INSPECT_TO_CLIENT,
            Disposition.INSPECT_TO_SERVER,
            Disposition.PASS,
            Disposition.DROP,
            *tls,
        )
    return tls if which == "tls_scope" else ()


def policy_source(args: Mapping[str, Any]) -> PolicySource | None:
    """What ``apply`` asks for; None when it is not absolute paths and a name."""
    more, map_file, name = args.get("more") or (), args.get("map") or "", args.get("name") or ""
    if not isinstance(more, (list, tuple)) or not isinstance(name, str):
        return None
    if not isinstance(args.get("confirm") or 0, (int, float)):
        return None
    paths = [args.get("policy"), *more, *([map_file] if map_file else [])]
    if not all(isinstance(path, str) and path.startswith("/") for path in paths):
        return None
    return PolicySource(str(paths[0]), tuple(map(str, more)), str(map_file), name, bool(args.get("monitor")))


def _unwritable(settings: Sequence[dict[str, Any]]) -> str | None:
    """Why one of the files among these sinks cannot be written."""
    problems = (log.check(str(one["path"])) for one in settings if one["kind"] == "file")
    return next((problem for problem in problems if problem is not None), None)


def _fields(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in Options.__slots__}


def _interpreter() -> str:
    """The Python a new generation runs on: where the installation says which that is (NFW_PYTHON, whose folder may be a
    link to the release installed now), that one, so that an upgrade needs no new supervisor; otherwise this one.

    The link is followed here, once: a leader that imports something later must find it in its own release.
    """
    named = os.environ.get("NFW_PYTHON")
    if named:
        program = os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))
        if os.access(program, os.X_OK):
            return program
    return sys.executable


def _unreadable(value: Any) -> Reply:
    text = value.get("error") if isinstance(value, dict) else None
    return Reply(False, None, (str(text or "the generation gave an answer that cannot be read"),))


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 512)


def say(text: str) -> None:
    """One line for the operator; systemd's journal keeps it."""
    print(f"nfw: {text}", file=sys.stderr, flush=True)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens where nobody listens."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + target[1:] if target.startswith("@") else target)
        sock.sendall(state.encode())


def run(options: Options) -> int:
    """``nfw run``. Raises PermissionError, HostNetError or control errors before anything was changed."""
    process.name("nfw")
    return Supervisor(options).run()

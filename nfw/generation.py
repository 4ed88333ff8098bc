"""A generation: one compiled policy and the processes that hold it.

The leader is exec'ed afresh by the supervisor (``python -m nfw.generation``), so a new generation runs the program that
is installed now. It loads the policy, starts the helpers, which need no rules, compiles, then forks the workers: they
share the compiled rules copy-on-write, and one that dies is forked again from the same memory. Everything in it dies
with it, and it with the supervisor.

One that hangs is found out too: the leader asks each of them every :data:`BEAT_SECONDS`, kills one that has left
:data:`HUNG_BEATS` questions in a row unanswered, and tells the supervisor ``alive`` as long as there is no such one.

Leader -> supervisor: ``failed`` [errors], ``tried`` {...} (a policy that is not to be started), ``needs`` {...} (before
it compiles: what of :class:`nfw.hostnet.GenerationPlan` is for the leader to say), ``ready`` GenerationReady,
``status`` {...}, ``flows_known``, ``died`` text, ``alive``, ``answer`` [number, value], ``counts`` {"rows", "since",
"last"}.
Supervisor -> leader: ``status``, ``old_flows`` [...], ``ask`` [number, kind, body], ``count``, ``end`` {"action":
drop|reject}. What may be asked: ``flows`` and ``flush`` of :mod:`nfw.flows`, ``rules`` {"start"} and ``reset``. The
answer to ``count``, and the last thing a leader says, are the counts of all rules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nfw import process
from nfw.marks import MarkLayout
from nfw.rulecounts import Counted, CountTable, RuleRow, parts
from nfw.settings import QUEUE_SPAN, GenerationReady, GenerationSettings, pack, unpack

if TYPE_CHECKING:
    from engines.counts import RuleCounts
    from engines.tls.session import TlsSettings
    from nfw.ipsets import SetDesk
    from nfw.policy.compile import Compiled
    from nfw.policy.model import Policy, Sink, Tls
    from nfw.rulerows import Catalogue

MESSAGE_BYTES = 1 << 20
READY_SECONDS = 30.0  # a worker that has not bound its queue by then never will
READY_AGAIN_SECONDS = 10.0  # one of a generation that runs; meanwhile nobody hears of the others
STATUS_SECONDS = 1.0
FLUSH_SECONDS = 2.0  # for the sessions of one request to be ended by hand, between what others are served
ENDING_SECONDS = 10.0  # for a full worker to end its 20,000 sessions, each takes 0.3 ms
RULE_ROWS = 1000  # described in an answer: at most 700 bytes each
COUNT_ROWS = 5000  # without words, in a message
ERRORS_TOLD = 1000  # of a policy; a message has to hold them all
RESTART_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # waits before the n-th restart within a minute
BEAT_SECONDS = 2.0  # between two questions whether the processes live
HUNG_BEATS = 5  # no worker is busy for that long; not in seconds: they pass as well while the whole machine is halted


def pair() -> tuple[socket.socket, socket.socket]:
    """A sequenced-packet socket pair for whole messages of up to :data:`MESSAGE_BYTES`."""
    sides = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for side in sides:
        with contextlib.suppress(OSError):  # the usual limit, 208 KiB, is less than the counters of a large rule set
            side.setsockopt(socket.SOL_SOCKET, 32, 4 * MESSAGE_BYTES)  # SO_SNDBUFFORCE
    return sides


class StartError(Exception):
    """The generation cannot start; each argument is one line for the user."""


@dataclass(slots=True)
class Child:
    """One forked process of the generation and how to fork it again."""

    title: str
    start: Callable[[socket.socket], None]
    pid: int = 0
    control: socket.socket | None = None
    deaths: list[float] = field(default_factory=list)
    due: float = 0.0
    silent: int = 0  # questions in a row without an answer


Channel = tuple[socket.socket, socket.socket]


@dataclass(frozen=True, slots=True)
class TlsSide:
    """What TLS workers are given. Channels (worker's side, helper's side) are one per worker where there is the
    helper; ``signer`` is the key holder, too."""

    port: int
    sockets: list[Channel]  # listeners, IPv4 and IPv6
    settings: TlsSettings
    holder: list[Channel]
    fetcher: list[Channel]
    resolver: list[Channel]
    signer: list[Channel]


def listeners(count: int) -> tuple[int, list[Channel]]:
    """(port, one IPv4 and one IPv6 transparent listener per TLS worker, all on that port).

    The leader keeps them open, so a connection that arrives while its worker is being restarted waits instead of being
    refused.
    """
    for _ in range(20):
        port = 0
        made: list[Channel] = []
        try:
            for _ in range(count):
                both = []
                for family in (socket.AF_INET, socket.AF_INET6):
                    sock = socket.socket(family, socket.SOCK_STREAM)
                    both.append(sock)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                        sock.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
                    else:
                        sock.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
                    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
                    port = sock.getsockname()[1]
                    sock.listen(4096)
                    sock.setblocking(False)
                made.append((both[0], both[1]))
        except PermissionError as error:
            raise StartError(
                f"cannot open a transparent listener: {error.strerror} (CAP_NET_ADMIN is needed)"
            ) from error
        except OSError:
            for one in made:
                for sock in one:
                    sock.close()
            continue
        return port, made
    raise StartError("cannot find a TCP port that is free for IPv4 and IPv6 alike")


def load_compiled(
    policy: str,
    *more: str,
    map_file: str = "",
    name: str = "",
    monitor: bool = False,
    loaded: Callable[[Policy], None] = lambda _: None,
) -> Compiled:
    """The policy :func:`nfw.policy.loader.load_policy` finds there, compiled, with what the cache has of it; the
    process's heap is frozen afterwards. ``monitor``: in mode monitor, whatever it says. ``loaded`` is called with it
    before it is compiled."""
    from nfw.cache import default_cache
    from nfw.policy.compile import compile_policy
    from nfw.policy.loader import load_policy, paused_gc
    from nfw.policy.model import Mode

    cache = default_cache(process.tell)
    with paused_gc():
        found = load_policy(policy, *more, map_file=map_file or None, name=name, check_key=False, cache=cache)
        if monitor:
            found = dataclasses.replace(found, mode=Mode.MONITOR)
        _import_workers(found)
        loaded(found)
        compiled = compile_policy(found, cache)
        gc.collect()
        gc.freeze()  # the compiled rules stay shared: no collector ever writes to their pages
    return compiled


def _import_workers(policy: Policy) -> None:
    """What the processes run, before the rules are compiled: then a switch does not wait for it, and its objects are
    frozen with all others."""
    from nfw import worker  # noqa: F401

    if policy.tls is not None:
        from nfw import keyholder, revocationfetcher, tlsworker  # noqa: F401


class Leader:
    """Starts, watches and ends the processes of one generation."""

    def __init__(self, settings: GenerationSettings, supervisor: socket.socket, log: socket.socket) -> None:
        self.settings = settings
        self.supervisor = supervisor
        self.log = log
        self.children: list[Child] = []
        self.stopping = False
        self.flows_known = 0
        self.restarts = 0
        self.started = time.time()
        self.catalogue: Catalogue | None = None
        self.table: CountTable | None = None
        self.workers = 0
        self.tls: TlsSide | None = None
        self.needs: dict[str, Any] = {}
        self.sets: SetDesk | None = None
        self.counted_since = self.started

    def run(self) -> None:
        """Until told to end or the supervisor is gone."""
        try:
            if self.settings.instead_of is not None:
                self._say("tried", self._try())
                return
            ready = self._start()
        except StartError as failed:
            self._stop_children()
            lines = [str(line) for line in failed.args]
            if len(lines) > ERRORS_TOLD:
                lines = [*lines[:ERRORS_TOLD], f"... and {len(lines) - ERRORS_TOLD} errors more"]
            self._say("failed", lines)
            return
        self._say("ready", ready)
        self._watch()
        self._stop_children()
        self._tell_counts()

    # -- start -----------------------------------------------------------------------------------------------------

    def _start(self) -> GenerationReady:
        from nfw.ipsets import SetDesk
        from nfw.policy.model import Mode
        from nfw.rulerows import Catalogue

        compiled, files, not_kept = self._load(self._foresee)
        compiled_at = time.monotonic()
        policy = compiled.policy
        self.catalogue = Catalogue(compiled)
        self.table = CountTable(self.catalogue.rows, self.workers * (1 if self.tls is None else 2))
        if self.tls is not None:
            self._add_tls_workers(self.tls, compiled)
        self._add_packet_workers(compiled)
        self._wait_ready()
        if compiled.changing and policy.stateful.refresh:
            self.sets = SetDesk(compiled.changing, policy.stateful.refresh, self._alone, self._hand_out)
        return GenerationReady(
            **self.needs,
            name=policy.name,
            mode=policy.mode.value,
            open_which="none" if policy.mode is Mode.MONITOR else policy.open_flows.which.value,
            open_action=policy.open_flows.action.value,
            stream_exception=policy.stateful.stream_exception.value,
            log_path=str(policy.log.path) if policy.log.path is not None else "",
            log_bytes=policy.log.max_size,
            log_keep=policy.log.keep,
            log_events=policy.log.events,
            log_format=policy.log.format.value,
            log_sinks=[sink_settings(sink) for sink in policy.log.sinks],
            log_flows=policy.log.flow_interval if "flow" in policy.log.wanted else 0,
            log_stats=policy.log.stats_interval if "stats" in policy.log.wanted else 0,
            warnings=told_warnings(policy),
            files=files,
            lists=list_files(policy),
            not_kept=not_kept,
            compiled=compiled_at,
        )

    def _foresee(self, policy: Policy) -> None:
        """What need not wait for the rules to be compiled: helpers start and the supervisor readies the kernel, both
        beside it."""
        from engines.stateless.rule import StatelessAction
        from nfw.policy.model import Mode

        workers = policy.workers if isinstance(policy.workers, int) else len(os.sched_getaffinity(0))
        self.workers = max(1, min(workers, QUEUE_SPAN))
        port, sockets = listeners(self.workers) if policy.tls is not None else (None, [])
        monitor, fragments = policy.mode is Mode.MONITOR, policy.stateless.fragments
        self.needs = {
            "queue_first": self.settings.queue_first,
            "queue_last": self.settings.queue_first + self.workers - 1,
            "tproxy_port": port,
            "fragments": "watch" if monitor and fragments is StatelessAction.DROP else fragments.value,
            "fail_open": policy.fail_open,
        }
        self._say("needs", self.needs)
        if policy.tls is not None and port is not None:
            self.tls = self._start_helpers(policy, policy.tls, port, sockets)

    def _load(
        self, loaded: Callable[[Policy], None] = lambda _: None
    ) -> tuple[Compiled, Mapping[str, str] | None, str]:
        """The policy; what it was read from as the store has it, or None and why it has not."""
        from nfw.policy.errors import PolicyErrors
        from nfw.policy.files import as_kept, noting
        from nfw.policystore import PolicyStore, StoreError

        settings = self.settings
        store = PolicyStore(settings.store)
        noted: dict[str, str] = {}
        problems: list[str] = []

        def note(path: str, data: bytes) -> None:
            try:
                if not problems:
                    noted[path] = store.put(data)
            except StoreError as problem:
                problems.append(str(problem))

        with contextlib.ExitStack() as reading:
            if settings.files is not None:
                reading.enter_context(as_kept(store.reader(settings.files)))
            elif settings.store and settings.instead_of is None:
                reading.enter_context(noting(note))
            try:
                compiled = load_compiled(
                    settings.policy,
                    *settings.more,
                    map_file=settings.map_file,
                    name=settings.name,
                    monitor=settings.monitor,
                    loaded=loaded,
                )
            except PolicyErrors as errors:
                raise StartError(*[str(error) for error in errors.errors]) from errors
        if settings.files is not None or not settings.store:
            return compiled, settings.files, ""
        return (compiled, None, problems[0]) if problems else (compiled, noted, "")

    def _try(self) -> dict[str, Any]:
        """What starting the policy would do, without starting anything."""
        from nfw import openflows

        assert self.settings.instead_of is not None
        compiled, _, _ = self._load()
        layout = MarkLayout(self.settings.mark_mask)
        return {
            "name": compiled.policy.name,
            "mode": compiled.policy.mode.value,
            "warnings": told_warnings(compiled.policy),
            "open_flows": openflows.count_ending(layout, self.settings.instead_of, compiled),
            "action": compiled.policy.open_flows.action.value,
        }

    def _add_packet_workers(self, compiled: Compiled) -> None:
        from nfw import worker

        for index in range(self.workers):

            def start(control: socket.socket, index: int = index) -> None:
                self._count_in(index)
                worker.run(compiled, self.settings, self.settings.queue_first + index, control, self.log)

            self.children.append(Child(f"nfw packet {index}", start))

    def _start_helpers(self, policy: Policy, tls: Tls, port: int, sockets: list[Channel]) -> TlsSide:
        from nfw import keyholder, resolver, revocationfetcher, tlsworker
        from nfw.policy.model import Mode

        def channels(wanted: bool) -> list[Channel]:
            return [keyholder.channel() for _ in range(self.workers)] if wanted else []

        try:
            settings = tlsworker.tls_settings(tls, watch=policy.mode is Mode.MONITOR)
        except ValueError as error:
            raise StartError(f"{policy.file}: tls.trust: {error}") from error
        servers = [(str(certificate), str(key)) for certificate, key in tlsworker.server_files(policy)]
        asks = tls.revocation.check or tls.fetch_issuers
        side = TlsSide(
            port,
            sockets,
            settings,
            channels(True),
            channels(asks),
            channels(tls.asks_resolvers),
            channels(bool(servers)),
        )

        def hold(control: socket.socket) -> None:
            sides = [theirs for _, theirs in (*side.holder, *side.signer)]
            keyholder.run(sides, str(tls.ca.certificate), str(tls.ca.private_key), control, servers)

        def alone_with(own: list[Channel]) -> list[socket.socket]:
            # They talk to strangers: nothing of the others may be within their reach.
            self.log.close()
            for both in (*side.sockets, *side.holder, *side.fetcher, *side.resolver, *side.signer):
                for sock in both[: 1 if both in own else 2]:
                    sock.close()
            return [theirs for _, theirs in own]

        def fetch(control: socket.socket) -> None:
            sides = alone_with(side.fetcher)
            revocationfetcher.run(sides, tls.revocation.cache, tls.revocation.allow, control)

        def resolve(control: socket.socket) -> None:
            resolver.run(alone_with(side.resolver), tls.resolvers, control)

        self.children.append(Child("nfw keyholder", hold))
        if side.fetcher:
            self.children.append(Child("nfw fetcher", fetch))
        if side.resolver:
            self.children.append(Child("nfw resolver", resolve))
        for child in self.children:
            self._fork(child)
        return side

    def _add_tls_workers(self, side: TlsSide, compiled: Compiled) -> None:
        from nfw import tlsworker

        for index in range(self.workers):

            def start(control: socket.socket, index: int = index) -> None:
                for _, theirs in (*side.holder, *side.fetcher, *side.resolver, *side.signer):
                    theirs.close()
                helpers = tlsworker.Helpers(
                    holder=side.holder[index][0],
                    fetcher=side.fetcher[index][0] if side.fetcher else None,
                    resolver=side.resolver[index][0] if side.resolver else None,
                    signer=side.signer[index][0] if side.signer else None,
                )
                sockets, counts = side.sockets[index], self._count_in(self.workers + index)
                tlsworker.run(
                    compiled, side.settings, self.settings, sockets, side.port, helpers, control, self.log, counts
                )

            self.children.append(Child(f"nfw tls {index}", start))

    def _count_in(self, slot: int) -> RuleCounts:
        """In a child: its slot of the counts; answers those of TLS statuses."""
        assert self.catalogue is not None
        assert self.table is not None
        return self.catalogue.attach(self.table, slot)

    def _wait_ready(self) -> None:
        for child in self.children:
            if not child.pid:
                self._fork(child)
        errors: list[str] = []
        for child in self.children:
            assert child.control is not None
            child.control.settimeout(READY_SECONDS)
            try:
                answer = child.control.recv(MESSAGE_BYTES)
            except TimeoutError:
                answer = b"error: did not start in time"
            child.control.setblocking(False)
            if answer != b"ok":
                text = answer.decode(errors="replace").removeprefix("error: ") or "ended while starting"
                errors.append(text if child.title == "nfw keyholder" else f"{child.title}: {text}")
        if errors:
            raise StartError(*dict.fromkeys(errors))

    def _fork(self, child: Child) -> None:
        ours, theirs = pair()
        if child.control is not None:
            child.control.close()

        def work() -> None:
            ours.close()
            self._alone()
            child.start(theirs)

        child.control = None
        child.pid = process.fork(work, title=child.title)
        child.control, child.silent = ours, 0
        theirs.close()

    def _alone(self) -> None:
        """In a child: what only the leader talks through is closed."""
        self.supervisor.close()
        for child in self.children:
            if child.control is not None:
                child.control.close()

    # -- run -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        selector = selectors.DefaultSelector()
        selector.register(wake_in, selectors.EVENT_READ)
        selector.register(self.supervisor, selectors.EVENT_READ)
        self._reap()
        beat = 0.0
        while not self.stopping:
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT_SECONDS
                self._beat()
            if self.sets is not None:
                self.sets.tend(selector, time.monotonic())
            due = min([beat, *(child.due for child in self.children if child.pid == 0)])
            if self.sets is not None:
                due = min(due, self.sets.due)
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj is self.supervisor:
                    self._command()
                elif callable(key.data):
                    key.data()
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_in, 512)
            self._reap()
            self._restart()

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGTERM:
            self.stopping = True

    def _beat(self) -> None:
        """Ask every process for a sign of life. Killing one that hangs closes no more than its death would."""
        for child in self.children:
            child.silent += 1 if child.pid else 0
        self._ask("ping", None, self.children)
        for child in self.children:
            if child.silent == HUNG_BEATS:
                self._say("died", f"{child.title} (pid {child.pid}) hangs; killing it")
                with contextlib.suppress(ProcessLookupError, PermissionError):  # the fetcher is another user's
                    os.kill(child.pid, signal.SIGKILL)
        if all(child.silent <= HUNG_BEATS for child in self.children):
            self._say("alive", None)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self.children:
                if child.pid == pid:
                    now = time.monotonic()
                    child.deaths = [at for at in child.deaths if now - at < 60.0] + [now]
                    child.pid = 0
                    child.due = now + RESTART_SECONDS[min(len(child.deaths), len(RESTART_SECONDS)) - 1]
                    self._say("died", f"{child.title} (pid {pid}) ended: {describe(status)}; starting it again")

    def _restart(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.pid == 0 and child.due <= now and not self.stopping:
                self.restarts += 1
                self._fork(child)
                assert child.control is not None
                child.control.settimeout(READY_AGAIN_SECONDS)
                with contextlib.suppress(OSError):
                    answer = child.control.recv(MESSAGE_BYTES)
                    if answer != b"ok":
                        self._say("died", f"{child.title}: {answer.decode(errors='replace')}")
                child.control.setblocking(False)

    def _command(self) -> None:
        try:
            data = self.supervisor.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            self.stopping = True
            return
        kind, body = unpack(data)
        if kind == "status":
            self._say("status", self._status())
        elif kind == "old_flows":
            self._ask("old_flows", body, [child for child in self.children if child.title.startswith("nfw packet")])
            self._say("flows_known", None)
        elif kind == "count":
            self._tell_counts()
        elif kind == "ask":
            number, what, asked = body
            self._say("answer", [number, self._told_of(what, asked)])
        elif kind == "end":
            self._ask("end", body, self.children, ENDING_SECONDS)
            self.stopping = True

    def _hand_out(self, piece: dict[str, Any], titles: Sequence[str]) -> dict[str, Any]:
        """Tell the processes of these names, or all that have rules, of IP sets; what each answers."""
        children = [child for child in self.children if _has_flows(child) and (not titles or child.title in titles)]
        return {**dict.fromkeys((child.title for child in children), None), **self._ask("sets", piece, children)}

    def _status(self) -> dict[str, Any]:
        asked = [child for child in self.children if not child.title.endswith("keyholder")]
        answers = self._ask("stats", None, asked)
        return {
            "generation": self.settings.number,
            "policy": self.settings.policy,
            "leader": os.getpid(),
            "program": sys.prefix,
            "since": self.started,
            "restarts": self.restarts,
            "ip_sets": self.sets.status() if self.sets is not None else [],
            "processes": [
                {"name": child.title, "pid": child.pid, **answers.get(child.title, {})} for child in self.children
            ],
        }

    def _told_of(self, what: str, asked: Any) -> Any:
        if what == "flows":
            return self._flows(asked)
        if what == "flush":
            return self._flush(asked)
        if what == "rules":
            return self._rules(int(asked["start"]))
        if what == "reset" and self.table is not None:
            self.table.reset()
            self.counted_since = time.time()
            return {"since": self.counted_since}
        return {"error": f"this generation does not know {what!r}"}

    def _counted(self, start: int, count: int | None = None) -> list[tuple[RuleRow, Counted]]:
        """``count`` rules from number ``start`` on, or all, with their counts; times are since the epoch."""
        if self.catalogue is None or self.table is None:
            return []
        rows = self.catalogue.told()[start:][:count]
        if not rows:
            return []
        first, stop = rows[0][0], rows[-1][0] + 1
        sums = self.table.sums(first, stop)
        wall = time.time() - time.monotonic()
        found = ((row, sums[at - first]) for at, row in rows)
        return [(row, one._replace(last=one.last + wall if one.last else 0.0)) for row, one in found]

    def _rules(self, start: int) -> dict[str, Any]:
        """:data:`RULE_ROWS` rules from number ``start`` on."""
        page = [[*row, *one] for row, one in self._counted(start, RULE_ROWS)]
        total = len(self.catalogue.told()) if self.catalogue is not None else 0
        return {"total": total, "rows": page, "since": self.counted_since}

    def _tell_counts(self) -> None:
        rows = [[row.digest, *one] for row, one in self._counted(0)]
        pieces = list(parts(rows, COUNT_ROWS))
        for number, piece in enumerate(pieces, 1):
            self._say("counts", {"rows": piece, "since": self.counted_since, "last": number == len(pieces)})

    def _flows(self, asked: dict[str, Any]) -> Any:
        """One page of one process's flows; without a process, which there are."""
        title = asked.get("process")
        if not title:
            return {"processes": [child.title for child in self.children if _has_flows(child)]}
        children = [child for child in self.children if child.title == title and _has_flows(child)]
        page = self._ask("flows", asked, children).get(str(title))
        # What is about another page is the answer to an older question, too late.
        if page is None or any(page.get(key, asked.get(key)) != asked.get(key) for key in ("token", "page")):
            return {"error": f"{title} did not answer in time"}
        return page

    def _flush(self, asked: dict[str, Any]) -> int:
        """``flows``: [process, :data:`nfw.pipeline.FlowName`] each. ``sessions``: of TLS workers, after the rest."""
        ended = 0
        for child in self.children:
            body: Any = []
            if asked["sessions"] and child.title.startswith("nfw tls"):
                body = [name[5] for process, name in asked["flows"] if process == child.title]
            elif not asked["sessions"] and child.title.startswith("nfw packet"):
                # Whatever worker's it was: packets that follow may be any one's to judge.
                body = [
                    [*name[:5], name[5] if process == child.title else 0, name[6]] for process, name in asked["flows"]
                ]
            if body:
                ended += self._ask("flush", body, [child], FLUSH_SECONDS).get(child.title) or 0
        return ended

    def _ask(self, kind: str, body: Any, children: list[Child], seconds: float = STATUS_SECONDS) -> dict[str, Any]:
        """Send to all, then collect what each answers within ``seconds``."""
        message = pack(kind, body)
        answers: dict[str, Any] = {}
        waiting = []
        for child in children:
            if child.pid and child.control is not None:
                with contextlib.suppress(OSError):
                    while child.control.recv(MESSAGE_BYTES):
                        child.silent = 0  # an answer that came too late last time
                with contextlib.suppress(OSError):
                    child.control.send(message)
                    waiting.append(child)
        until = time.monotonic() + seconds
        for child in waiting:
            with contextlib.suppress(OSError, ValueError):
                answers[child.title] = _answer(child, kind, until)
        return answers

    # -- end -------------------------------------------------------------------------------------------------------

    def _stop_children(self) -> None:
        for child in self.children:
            if child.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # the fetcher is another user's
                    os.kill(child.pid, signal.SIGTERM)
        until = time.monotonic() + 2.0
        for child in self.children:
            while child.pid and time.monotonic() < until:
                pid, _ = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid = 0
                else:
                    time.sleep(0.005)
            if child.pid:
                with contextlib.suppress(ProcessLookupError, ChildProcessError, PermissionError):
                    os.kill(child.pid, signal.SIGKILL)
                    os.waitpid(child.pid, 0)

    def _say(self, kind: str, value: Any) -> None:
        with contextlib.suppress(OSError):
            self.supervisor.send(pack(kind, value))


def told_warnings(policy: Policy) -> tuple[tuple[str, str], ...]:
    """(level, text) of each; as many as a message has room for."""
    return tuple((warning.level.value, str(warning)) for warning in policy.warnings[:ERRORS_TOLD])


def list_files(policy: Policy) -> list[str]:
    """Files that are read again while the policy runs, by the names they are kept under."""
    stateful = policy.stateful
    references = (reference for group in stateful.groups for reference in group.references.values())
    files = {os.path.abspath(reference.file) for reference in references if reference.file is not None}
    return sorted(files) if stateful.refresh else []


def _has_flows(child: Child) -> bool:
    return child.title.startswith(("nfw packet", "nfw tls"))


def _answer(child: Child, kind: str, until: float) -> Any:
    """What ``child`` says to a question of that kind; what it says to older ones is passed over. Raises OSError when it
    is gone or says nothing until then, ValueError when that cannot be read.
    """
    sock = child.control
    assert sock is not None
    try:
        while True:
            sock.settimeout(max(0.01, until - time.monotonic()))
            data = sock.recv(MESSAGE_BYTES)
            if not data:
                raise ConnectionResetError
            child.silent = 0
            answered, value = unpack(data)
            if answered == kind:
                return value
    finally:
        sock.setblocking(False)


def sink_settings(sink: Sink) -> dict[str, Any]:
    """A sink as plain values, for :func:`nfw.sinks.make`."""
    values = {name: getattr(sink, name) for name in ("max_size", "keep", "address", "facility")}
    path = str(sink.path) if sink.path is not None else ""
    return {**values, "kind": sink.kind.value, "format": sink.format.value, "path": path, "events": list(sink.events)}


def describe(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def main() -> None:
    """``python -m nfw.generation SUPERVISOR_FD LOG_FD PARENT_PID``; the settings are the first message."""
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    log = socket.socket(fileno=int(sys.argv[2]))
    process.die_with_parent(int(sys.argv[3]))
    process.name("nfw leader")
    process.no_dumps()
    process.more_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, body = unpack(supervisor.recv(MESSAGE_BYTES))
    Leader(GenerationSettings(**body), supervisor, log).run()


if __name__ == "__main__":
    main()

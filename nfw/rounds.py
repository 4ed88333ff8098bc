"""The event loop of a TLS worker: what is ready, in turns, and what is due.

Thousands of sessions may want something at the same time, so nothing is done for all of them at once: what is ready
waits in three queues (sessions being opened, bytes to relay, ends), and each is served for a slice of time in every
round. Clients are accepted only while the first is short. A deadline has passed when everything that was ready by then
has been served: time in these queues is not the peer's fault.

A worker with little to do is always in the same state: nobody waits, one or two descriptors are ready. They are served
as they are told, within the slice they would have had.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from engines.verdict import Direction
from nfw.sockets import Side
from nfw.tlsflow import Flow
from nfw.turns import Deadlines, Turns

SLICE_SECONDS = 0.01  # of one kind of work before the next has its turn
EVENTS = 8192  # of ready descriptors at a time; the kernel begins with the others the next time
FEW = 8  # ready descriptors that are served at once when nobody waits
CROWD = 64  # that wait for the next step of being opened; meanwhile nobody is accepted

_READ = select.EPOLLIN | select.EPOLLRDHUP
_WRITE = select.EPOLLOUT
_OVER = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_Entry = tuple[Flow, Side]


class Rounds:
    """Of ``flows``, by key, whose owner says what is done for one.

    ``serve(flow, side, mask, now)``: a socket is ready. ``check(flow, served, now)``: it is to be looked at;
    everything that was ready by ``served`` has been served. ``due(flow)``: when that is next. ``bug(flow)``: something
    done for it has raised. All times are seconds of the monotonic clock.
    """

    def __init__(
        self,
        flows: Mapping[int, Flow],
        serve: Callable[[Flow, Side, int, float], None],
        check: Callable[[Flow, float, float], None],
        due: Callable[[Flow], float],
        bug: Callable[[Flow], None],
    ) -> None:
        self._flows = flows
        self._do_serve = serve
        self._do_check = check
        self._due = due
        self._bug = bug
        self._epoll = select.epoll()
        self._hears: dict[int, Callable[[float], None]] = {}
        self._sides: dict[int, _Entry] = {}
        self._deadlines = Deadlines()  # of flows, by key
        self._opening: Turns[_Entry] = Turns()
        self._relaying: Turns[_Entry] = Turns()
        self._ending: Turns[_Entry] = Turns()
        # Of the helpers, to be told to the flows that asked: what to do, with what, and since when it waits. No more
        # than flows have asked for.
        self._answers: deque[tuple[Flow, Callable[..., None], tuple[Any, ...], float]] = deque()
        self._overdue = False  # more of them than there was time for
        self.calm = True  # one thing happened and nobody waits
        self.polled = time.monotonic()
        self.current: Flow | None = None  # the one something is done for right now

    def hear(self, fd: int, work: Callable[[float], None]) -> None:
        """``work(since)`` when it is readable; what it finds there has not waited since before ``since``."""
        self._hears[fd] = work
        self._epoll.register(fd, select.EPOLLIN)

    def answer(self, flow: Flow, work: Callable[..., None], args: tuple[Any, ...], since: float) -> None:
        """``work(flow, *args, now)`` in its turn, if there is still a flow by then."""
        self._answers.append((flow, work, args, since))

    @property
    def crowded(self) -> bool:
        """Nobody is to be accepted now."""
        return len(self._opening) + len(self._answers) >= CROWD

    def round(self, patience: float) -> bool:
        """One. ``patience``: seconds it may wait for something to do. False: there was nothing."""
        busy = self._overdue or bool(self._opening or self._relaying or self._ending or self._answers)
        ready = self._epoll.poll(0.0 if busy else patience, EVENTS)
        since, self.polled = self.polled, time.monotonic()  # what was not ready then has not waited longer
        self.calm = len(ready) == 1 and not busy
        if self.calm:
            fd, mask = ready[0]
            entry = self._sides.get(fd)
            if entry is not None:
                self._serve_one(fd, entry, mask, self.polled)
            else:
                self._hears[fd](since)
        elif ready:
            others = (self._queue if busy or len(ready) > FEW else self._serve_now)(ready, since)
            for fd in others:
                self._hears[fd](since)
        if self._answers:
            self._tell_answers()
        for turns in (self._opening, self._relaying, self._ending):
            if turns:
                self._serve(turns)
        self._overdue = self._look_at_overdue()
        return bool(ready)

    def guard(self, flow: Flow, work: Callable[..., None], *args: Any) -> None:
        """A bug met by one flow ends that flow, not the worker."""
        self.current = flow
        try:
            work(*args)
            self._settle(flow)
        except Exception:  # noqa: BLE001 - see above; the traceback is the report
            self._bug(flow)

    def unwatch(self, side: Side, *, closing: bool = False) -> None:
        """Hear no more of this socket. ``closing``: it is closed next, by which epoll forgets it, too."""
        if side.events >= 0 and side.open:
            fd = side.sock.fileno()
            self._sides.pop(fd, None)
            if not closing:
                self._epoll.unregister(fd)
        side.events = -1

    def forget(self, key: int) -> None:
        """This flow has ended."""
        self._deadlines.forget(key)

    # -- turns -----------------------------------------------------------------------------------------------------

    def _queue(self, ready: list[tuple[int, int]], since: float) -> list[int]:
        """Into the queues; the descriptors that are nobody's sockets."""
        others = []
        for fd, mask in ready:
            entry = self._sides.get(fd)
            if entry is None:
                others.append(fd)
            else:
                self._turns(entry[0], mask).put(fd, entry, mask, since)
        return others

    def _serve_now(self, ready: list[tuple[int, int]], since: float) -> list[int]:
        """As long as a slice lasts, the rest into the queues; the descriptors that are nobody's sockets."""
        now = self.polled
        until = now + SLICE_SECONDS
        entries = [(fd, self._sides.get(fd), mask) for fd, mask in ready]
        others = []
        for fd, entry, mask in entries:
            if entry is None:
                others.append(fd)
            elif now >= until:
                self._turns(entry[0], mask).put(fd, entry, mask, since)
            else:
                self._serve_one(fd, entry, mask, now)
                now = time.monotonic()
        return others

    def _turns(self, flow: Flow, mask: int) -> Turns[_Entry]:
        """Where it waits. Ends by the thousand must not delay what others relay."""
        if flow.opening:
            return self._opening
        if flow.finished_at or mask & _OVER:
            return self._ending
        return self._relaying

    def _serve(self, turns: Turns[_Entry]) -> None:
        """A slice of what waits there."""
        until = time.monotonic() + SLICE_SECONDS
        while turns:
            fd, entry, mask = turns.take()
            now = time.monotonic()
            self._serve_one(fd, entry, mask, now)
            if now >= until:
                return

    def _serve_one(self, fd: int, entry: _Entry, mask: int, now: float) -> None:
        # The descriptor may have been closed since, and even be another connection's.
        if self._sides.get(fd) is not entry:
            return
        self.current = flow = entry[0]
        try:
            self._do_serve(flow, entry[1], mask, now)
            self._settle(flow)
        except Exception:  # noqa: BLE001 - as in guard()
            self._bug(flow)

    def _tell_answers(self) -> None:
        """A slice of them."""
        until = time.monotonic() + SLICE_SECONDS
        while self._answers:
            flow, work, args, _ = self._answers.popleft()
            now = time.monotonic()
            if flow.key in self._flows:
                self.guard(flow, work, flow, *args, now)
            if now >= until:
                return

    def _look_at_overdue(self) -> bool:
        """A slice of what time alone brings about. True: there is more."""
        if self._deadlines.soonest > self.polled:
            return False
        # Everything that was ready by then has been served: of those being opened, of all others.
        opening = min(self._opening.oldest(self.polled), self._answers[0][3] if self._answers else self.polled)
        others = min(self._relaying.oldest(self.polled), self._ending.oldest(self.polled))
        until = time.monotonic() + SLICE_SECONDS
        while (key := self._deadlines.due(max(opening, others))) is not None:
            flow, now = self._flows[key], time.monotonic()
            self.guard(flow, self._do_check, flow, opening if flow.opening else others, now)
            if now >= until:
                return True
        return False

    # -- what is waited for ----------------------------------------------------------------------------------------

    def _settle(self, flow: Flow) -> None:
        """What epoll is asked for and when the flow is looked at: once, after all that was done for it."""
        if flow.key not in self._flows:
            return
        client, upstream, session = flow.client, flow.upstream, flow.session
        if client.open:
            reads = not client.ended and (client.discarding or (not client.paused and session.wants(_TO_SERVER)))
            mask = (_READ if reads else 0) | (_WRITE if client.out else 0)
            if mask != client.events and not _may_wait(client, mask):
                self._ask(flow, client, mask)
        if upstream is not None and upstream.open:
            reads = not upstream.ended and (upstream.discarding or (not upstream.paused and session.wants(_TO_CLIENT)))
            mask = (_READ if reads else 0) | (_WRITE if upstream.out or flow.connecting else 0)
            if mask != upstream.events and not _may_wait(upstream, mask):
                self._ask(flow, upstream, mask)
        self._deadlines.plan(flow.key, self._due(flow))

    def _ask(self, flow: Flow, side: Side, mask: int) -> None:
        """Of epoll; errors and the end of both directions it always tells."""
        if side.hung_up and not mask:
            return
        fd = side.sock.fileno()
        if side.events < 0:
            self._sides[fd] = (flow, side)
            self._epoll.register(fd, mask)
        else:
            self._epoll.modify(fd, mask)
        side.events, side.unwanted = mask, False


def _may_wait(side: Side, mask: int) -> bool:
    """All that differs from ``mask`` is that nothing is to be read for now, and by the time something comes it may be
    again: as a rule so while one side waits for the other's handshake."""
    return side.events == mask | _READ and not (side.unwanted or side.ended)

"""Changes of policy as the supervisor remembers them: what was applied, what waits for confirmation, what comes back.

The supervisor starts and switches generations; this module says which policy is meant and writes down what came of it.
What must survive a crash is on disk before the kernel is switched: a daemon that starts and finds a policy which was
still waiting for confirmation starts with the former one.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nfw.policystore import Entry, PolicyStore, State, StoreError, digest_of, unchanged, without_files
from nfw.settings import GenerationReady, PolicySource

MAX_CONFIRM = 86_400.0  # seconds; who needs longer needs another way of testing
AGAIN_SECONDS = 5.0  # between two attempts to go back
MAX_WITHDRAWN = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """Why a generation is to come. ``confirm``: seconds after which the former policy comes back, 0 for none; ``of``:
    the entry that is gone back to; ``why``: for the record of the policy that goes."""

    uid: int
    action: str  # start, apply, rollback
    confirm: float = 0.0
    of: int = 0
    why: str = ""


@dataclass(slots=True)
class Waiting:
    """A policy that filters but is not confirmed. ``deadline``: monotonic; ``until``: Unix seconds."""

    entry: Entry
    former: Entry
    seconds: float
    deadline: float = math.inf
    until: float = 0.0
    overdue: str = ""  # why the former policy has not come back


class Changes:
    """One per daemon. ``say`` has a line for the operator."""

    def __init__(
        self,
        directory: Path | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._say = say
        self._clock = clock
        self._wall = wall
        self.current: Entry | None = None
        self.waiting: Waiting | None = None
        self.directory = directory
        self.store: PolicyStore | None = None
        self.problem = "there is no folder for state (nfw run --state)"
        if directory is not None:
            store = PolicyStore(directory)
            try:
                store.prepare()
            except StoreError as error:
                self.problem = str(error)
                say(f"warning: policies are not kept, so there is no going back: {error}")
            else:
                self.store = store

    # -- start -----------------------------------------------------------------------------------------------------

    def at_start(self, asked: PolicySource) -> PolicySource:
        """The policy to start with: the one asked for, unless that was gone back from or never confirmed."""
        if self.store is None:
            return asked
        try:
            state = self.store.state()
            if state.waiting:
                return self._unconfirmed(self.store, state) or asked
            if state.standing and any(self._is(self.store, number, asked) for number in state.withdrawn):
                entry = self.store.entry(state.standing)
                if entry.source.files is not None:
                    self._say(
                        f"WARNING: {asked.file} is what was gone back from; starting with entry {entry.number} of the"
                        f" history, policy {entry.name!r} (`nfw policy apply {asked.file}` makes it the policy)"
                    )
                    return entry.source
        except StoreError as error:
            self._say(f"WARNING: cannot tell whether a policy was gone back from: {error}; starting with {asked.file}")
        return asked

    def _unconfirmed(self, store: PolicyStore, state: State) -> PolicySource | None:
        former = store.entry(state.former)
        with contextlib.suppress(StoreError):
            entry = store.entry(state.waiting)
            if entry.result == "waiting":
                detail = "the daemon ended before it was confirmed"
                store.write(replace(entry, result="not confirmed", detail=detail))
        withdrawn = (*state.withdrawn, state.waiting)[-MAX_WITHDRAWN:]
        store.write_state(State(withdrawn=withdrawn, standing=former.number))
        if former.source.files is None:
            raise StoreError(f"entry {former.number} was not kept")
        self._say(
            f"WARNING: entry {state.waiting} of the history was never confirmed; starting with the former policy"
            f" {former.name!r}, entry {former.number}"
        )
        return former.source

    def _is(self, store: PolicyStore, number: int, asked: PolicySource) -> bool:
        with contextlib.suppress(StoreError):
            entry = store.entry(number)
            files = entry.source.files
            return files is not None and without_files(entry.source) == asked and unchanged(entry.fixed)
        return False

    # -- a change --------------------------------------------------------------------------------------------------

    def refusal(self, wish: Wish) -> str | None:
        """Why there cannot be such a change now."""
        waiting = self.waiting
        if waiting is not None and wish.action == "apply":
            return (
                f"policy {waiting.entry.name!r} (entry {waiting.entry.number}) waits for confirmation, {self._left()};"
                " first `nfw policy confirm` it or go back with `nfw policy rollback`"
            )
        if not wish.confirm:
            return None
        if not 1 <= wish.confirm <= MAX_CONFIRM:
            return f"expected 1 to {MAX_CONFIRM:.0f} seconds for the confirmation"
        if self.store is None:
            return f"cannot promise to go back: policies are not kept: {self.problem}"
        if self.current is None or self.current.source.files is None or not self.current.number:
            return "cannot promise to go back: the running policy was not kept"
        return None

    def prepare(self, wish: Wish, source: PolicySource, ready: GenerationReady) -> Entry:
        """The change's entry, before the kernel is switched. Raises :class:`StoreError` when going back could not be
        promised after a crash."""
        source = replace(source, files=ready.files)
        entry = Entry(
            number=0,
            at=self._wall(),
            uid=wish.uid,
            action=wish.action,
            source=source,
            lists=tuple(ready.lists),
            name=ready.name,
            mode=ready.mode,
            of=wish.of,
        )
        if ready.files is not None:
            entry = replace(entry, digest=digest_of(source, entry.fixed))
        if ready.not_kept and wish.action != "rollback":
            if wish.confirm:
                raise StoreError(f"cannot promise to go back: {ready.not_kept}")
            self._say(f"warning: this policy is not kept, so there is no going back to it: {ready.not_kept}")
        if not wish.confirm:
            return entry
        assert self.store is not None
        assert self.current is not None
        entry = replace(entry, number=self.store.next_number(), result="waiting")
        self.store.write(entry)
        state = self.store.state()
        self.store.write_state(replace(state, waiting=entry.number, former=self.current.number))
        self.waiting = Waiting(entry, self.current, wish.confirm)
        return entry

    def abandoned(self, entry: Entry) -> None:
        """The kernel was not switched after all: as if it had not been prepared. :meth:`failed` tells the history."""
        if self.waiting is None or entry is not self.waiting.entry:
            return
        self.waiting = None
        assert self.store is not None
        try:
            self.store.write_state(replace(self.store.state(), waiting=0, former=0))
            self.store.remove(entry.number)
        except StoreError as error:
            self._say(f"WARNING: the history cannot be written: {error}")

    def took_effect(self, wish: Wish, entry: Entry) -> None:
        """The kernel was switched."""
        former, self.current = self.current, entry
        waiting = self.waiting
        if waiting is not None and entry is waiting.entry:
            waiting.deadline = self._clock() + waiting.seconds
            waiting.until = self._wall() + waiting.seconds
            self._say(
                f"WARNING: policy {entry.name!r} waits {waiting.seconds:.0f} s for `nfw policy confirm`; without it the"
                f" former one, {waiting.former.name!r}, comes back"
            )
        if self.store is None:
            return
        try:
            self._write(self.store, wish, entry, former)
        except StoreError as error:
            self._say(f"WARNING: the history of policies cannot be written: {error}")

    def _write(self, store: PolicyStore, wish: Wish, entry: Entry, former: Entry | None) -> None:
        state = store.state()
        if wish.action == "start":
            last = [one for one in store.listing().entries if one.took_effect][-1:]
            if last and last[0].digest == entry.digest and last[0].result in ("applied", "confirmed"):
                self.current = last[0]
                return
        if not entry.number:
            entry = replace(entry, number=store.next_number())
            store.write(entry)
            self.current = entry  # what is not written down has no number
        if wish.action == "rollback":
            if self.waiting is not None:
                former = self.waiting.entry
                store.write(replace(former, result="not confirmed", detail=wish.why))
                self.waiting = None
            gone = (former.number,) if former is not None and former.number not in (0, entry.of) else ()
            withdrawn = tuple(number for number in state.withdrawn if number != entry.of)
            state = State(withdrawn=(*withdrawn, *gone)[-MAX_WITHDRAWN:], standing=entry.number)
        elif wish.action == "apply":
            asked = without_files(entry.source)
            kept = tuple(number for number in state.withdrawn if self._asked(store, number) != asked)
            state = replace(state, withdrawn=kept, standing=state.standing if kept else 0)
        store.write_state(state)
        needed = [entry.number, state.waiting, state.former, state.standing, *state.withdrawn]
        store.prune(needed)

    def _asked(self, store: PolicyStore, number: int) -> PolicySource | None:
        with contextlib.suppress(StoreError):
            return without_files(store.entry(number).source)
        return None

    def failed(self, wish: Wish, source: PolicySource, errors: Sequence[str]) -> None:
        """A policy was refused."""
        if self.store is None:
            return
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        try:
            number = self.store.next_number()
            detail = (errors[0] if errors else "") + more
            asked = without_files(source)
            self.store.write(Entry(number, self._wall(), wish.uid, wish.action, asked, result="failed", detail=detail))
            self.store.prune([self.current.number] if self.current is not None else [])
        except StoreError as error:
            self._say(f"WARNING: the history of policies cannot be written: {error}")

    # -- confirmation ----------------------------------------------------------------------------------------------

    def confirm(self, uid: int) -> dict[str, Any]:
        """Raises :class:`StoreError` when nothing waits, or that cannot be written down."""
        waiting = self.waiting
        if waiting is None or self.store is None:
            raise StoreError("no policy waits for confirmation")
        if self.due():
            raise StoreError(f"too late: the time is over and policy {waiting.former.name!r} is coming back")
        entry = replace(waiting.entry, result="confirmed", detail=f"by uid {uid}, {self._left()}")
        state = self.store.state()
        asked = without_files(entry.source)
        kept = tuple(number for number in state.withdrawn if self._asked(self.store, number) != asked)
        # First what a start looks at: whatever happens then, what was confirmed stays.
        self.store.write_state(State(withdrawn=kept, standing=state.standing if kept else 0))
        self.waiting = None
        self.current = entry
        try:
            self.store.write(entry)
        except StoreError as error:
            self._say(f"WARNING: the history of policies cannot be written: {error}")
        self._say(f"policy {entry.name!r} is confirmed by uid {uid}")
        return {"entry": entry.number, "name": entry.name}

    def due(self) -> bool:
        """The former policy has to come back now."""
        return self.waiting is not None and self._clock() >= self.waiting.deadline

    def hurry(self, why: str) -> None:
        """Do not wait any longer."""
        if self.waiting is not None:
            self.waiting.deadline = self._clock()
            self._say(f"WARNING: policy {self.waiting.entry.name!r} is not confirmed: {why}; going back")

    def back(self, wish: Wish | None = None) -> tuple[PolicySource, Wish]:
        """What comes back, and on whose wish (None: the time is over)."""
        waiting = self.waiting
        assert waiting is not None
        wish = wish or Wish(os.geteuid(), "rollback", why=f"not confirmed within {waiting.seconds:.0f} s")
        return waiting.former.source, replace(wish, of=waiting.former.origin)

    def not_back(self, errors: Sequence[str]) -> None:
        """The former policy did not start."""
        if self.waiting is None:
            return
        self.waiting.overdue = errors[0] if errors else "it did not start"
        self.waiting.deadline = self._clock() + AGAIN_SECONDS
        for line in errors:
            self._say(f"WARNING: cannot go back: {line}")
        self._say(f"WARNING: going back is tried again in {AGAIN_SECONDS:.0f} s")

    def _left(self) -> str:
        assert self.waiting is not None
        return f"{max(0.0, self.waiting.deadline - self._clock()):.0f} s left"

    # -- history ---------------------------------------------------------------------------------------------------

    def target(self, number: int | None) -> Entry:
        """What a rollback goes to; None: the policy before the running one. Raises :class:`StoreError`."""
        store = self.opened()
        if number is not None:
            entry = store.entry(number)
            if entry.source.files is None:
                raise StoreError(f"entry {number} of the history was not kept: {entry.detail or 'no content'}")
            return entry
        current = self.current
        if current is None or not current.number:
            raise StoreError("the running policy is not in the history; say which entry is meant")
        for entry in reversed(store.listing().entries):
            earlier = entry.number < current.origin and entry.digest != current.digest
            if earlier and entry.source.files is not None and entry.result in ("applied", "confirmed"):
                return entry
        raise StoreError("the history has no policy before the running one")

    def opened(self) -> PolicyStore:
        if self.store is None:
            raise StoreError(f"policies are not kept: {self.problem}")
        return self.store

    def history(self) -> dict[str, Any]:
        """Raises :class:`StoreError`."""
        listing = self.opened().listing()
        return {
            "directory": str(self.directory),
            "current": self.current.number if self.current is not None else 0,
            "entries": [entry.to_json() for entry in listing.entries],
            "problems": list(listing.problems),
        }

    def kept(self, number: int | None) -> dict[str, Any]:
        """Where an entry's content is; None: the running policy's. Raises :class:`StoreError`."""
        store = self.opened()
        entry = self.current if number is None else store.entry(number)
        if entry is None:
            raise StoreError("no policy filters yet")
        if entry.source.files is None:
            raise StoreError("the running policy was not kept" if number is None else f"entry {number} was not kept")
        return {
            "directory": str(self.directory),
            **entry.to_json(),
            "select": entry.source.name,
            "monitor": entry.source.monitor,
            "files": dict(entry.source.files),
        }

    def status(self) -> dict[str, Any]:
        """For ``nfw status``."""
        found: dict[str, Any] = {"entry": self.current.number if self.current is not None else 0}
        waiting = self.waiting
        if waiting is not None and waiting.deadline is not math.inf:
            found["waiting"] = {
                "entry": waiting.entry.number,
                "seconds_left": max(0, math.ceil(waiting.deadline - self._clock())),
                "until": waiting.until,
                "back_to": waiting.former.number,
                "back_to_name": waiting.former.name,
                **({"overdue": waiting.overdue} if waiting.overdue else {}),
            }
        return found

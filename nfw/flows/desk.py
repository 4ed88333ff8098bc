"""The daemon's side of ``nfw flows``: a page of a list, or the end of some flows, for each request.

``flows`` without a process tells what there is to ask: ``{"generation", "mark_mask", "processes"}``. With ``process``,
``token``, ``page`` and, on the first one, ``filter``: ``{"rows", "done"}``, see :class:`nfw.flows.listing.Listings`.

``flush`` ends up to :data:`FLUSH_FLOWS` flows, each ``[record, entries]`` as :class:`FlowRecord` and
:class:`nfw.flows.kernel.KernelFlow`. In this order, so that nothing slips through between:

1. the packet workers forget them, and remember to drop what follows
2. the kernel's entries go: what follows comes to the workers. UDP's stay and are marked as ended, since conntrack alone
   knows who is the client
3. the TLS workers end their sessions, whose clients' packets no longer reach them; the entries of their connections to
   the servers stay, so that the kernel drops what those still send
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engines.packet import UDP
from nfw.control import Deferred, Reply
from nfw.flows import kernel
from nfw.flows.kernel import KernelFlow
from nfw.flows.record import KERNEL, TLS, FlowRecord
from nfw.marks import Disposition, MarkLayout

FLUSH_FLOWS = 400

Ask = Callable[[str, Any, Callable[[Any], None]], None]


class FlowDesk:
    """``ask(what, body, answer)`` asks the leader of the generation that filters."""

    def __init__(self, layout: MarkLayout, generation: int, ask: Ask) -> None:
        self.layout = layout
        self.generation = generation
        self._ask = ask

    def page(self, args: Mapping[str, Any]) -> Reply | Deferred:
        """One page."""
        reply = Deferred()

        def answer(value: Any) -> None:
            if not isinstance(value, dict) or "error" in value:
                reply.resolve(_refused(value))
            elif "processes" in value:
                told = {"generation": self.generation, "mark_mask": self.layout.mask, **value}
                reply.resolve(Reply(True, told, ()))
            else:
                reply.resolve(Reply(True, {"generation": self.generation, **value}, ()))

        self._ask("flows", dict(args), answer)
        return reply

    def flush(self, args: Mapping[str, Any]) -> Reply | Deferred:
        """Answers how many flows ended: known to a worker, or to the kernel alone."""
        try:
            if int(args.get("generation", 0)) != self.generation:
                return Reply(
                    False, None, ("another policy filters by now: its change has ended flows; list them anew",)
                )
            flows = [(FlowRecord.from_wire(row), [_entry(one) for one in rows]) for row, rows in args.get("flows", ())]
        except (TypeError, ValueError, IndexError):
            return Reply(False, None, ("flush needs flows as they were listed",))
        if len(flows) > FLUSH_FLOWS:
            return Reply(False, None, (f"{len(flows)} flows are more than the {FLUSH_FLOWS} flushed at a time",))
        reply = Deferred()
        named = [[record.process, [*record[1:6], record.id, record.key]] for record, _ in flows]
        sessions = [[record.process, [*record[1:6], record.id]] for record, _ in flows if record.kept_by == TLS]
        ended = 0

        def workers(value: Any) -> None:
            nonlocal ended
            if not isinstance(value, int):
                reply.resolve(_refused(value))
                return
            try:
                forgotten = self._forget(
                    [entry for record, entries in flows if record.kept_by == KERNEL for entry in entries]
                )
                self._forget([entry for record, entries in flows if record.kept_by != KERNEL for entry in entries])
            except OSError as error:
                reply.resolve(Reply(False, None, (f"the kernel's connection tracking: {error.strerror or error}",)))
                return
            ended = value + forgotten
            if sessions:
                self._ask("flush", {"flows": sessions, "sessions": True}, tls)
            else:
                reply.resolve(Reply(True, {"ended": ended}, ()))

        def tls(value: Any) -> None:
            if isinstance(value, int):
                reply.resolve(Reply(True, {"ended": ended + value}, ()))
            else:
                reply.resolve(_refused(value))

        self._ask("flush", {"flows": named, "sessions": False}, workers)
        return reply

    def _forget(self, entries: list[KernelFlow]) -> int:
        """Only entries that bear the mark of this generation: nobody else's are touched."""
        ours = [entry for entry in entries if self.layout.split(entry.mark)[0] == self.generation]
        ended = self.layout.compose(self.generation, Disposition.ENDED)
        marked = kernel.mark([entry for entry in ours if entry.protocol == UDP], ended, self.layout.mask)
        return marked + kernel.delete([entry for entry in ours if entry.protocol != UDP])


def _entry(value: Any) -> KernelFlow:
    entry = KernelFlow(*value)
    return entry._replace(icmp=None if entry.icmp is None else (entry.icmp[0], entry.icmp[1], entry.icmp[2]))


def _refused(value: Any) -> Reply:
    text = value.get("error") if isinstance(value, dict) else None
    return Reply(False, None, (str(text or "the generation gave an answer that cannot be read"),))

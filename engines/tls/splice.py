"""A connection that is not decrypted: passed on byte for byte, from its ClientHello on, after inspection.

Takes the place of :class:`engines.tls.session.Session` when the owner lets a name bypass decryption, or only watches
what a policy would have ended (:class:`engines.tls.events.PassOn`), and speaks to the
owner in the same events: bytes as they are on the wire come as Plaintext, and nothing goes on that was not forwarded.
So the rules see what they would see of a flow outside every scope, and the server is not called before the hello's
bytes have been released.

Left out: who may bypass (:mod:`engines.tls.bypass`, and whoever knows what names resolve to).
"""

from __future__ import annotations

from engines.tls.events import (
    Close,
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Event,
    Finished,
    Plaintext,
    SendClient,
    SendUpstream,
    SessionInfo,
)
from engines.tls.session import State
from engines.tls.status import FailAction, Status
from engines.verdict import Direction

_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Splice:
    """``hello``: what the client has sent so far. ``now`` and ``connect_timeout`` in seconds, for the deadline."""

    __slots__ = (
        "_connect_timeout",
        "_connected",
        "_dialling",
        "_done",
        "_ended",
        "_events",
        "_fin",
        "_first",
        "deadline",
        "info",
    )

    def __init__(self, info: SessionInfo, hello: bytes, connect_timeout: float, now: float) -> None:
        self.info = info
        self.deadline: float | None = now + connect_timeout
        self._connect_timeout = connect_timeout
        self._events: list[Event] = []
        self._first: list[bytes] = []  # forwarded before there was a connection
        self._dialling = self._connected = self._done = False
        self._ended = [False, False]  # the sender's FIN came
        self._fin = [False, False]  # and went on
        if hello:
            self._arrived(_TO_SERVER, hello)
        else:  # the server may be the one who speaks first
            self._dial()

    @property
    def state(self) -> State:
        """As far as a session has that, too."""
        if self._done:
            return State.DONE
        if self._connected:
            return State.RELAY
        return State.CONNECTING if self._dialling else State.HELD

    def wants(self, direction: Direction) -> bool:
        """As :meth:`engines.tls.session.Session.wants`."""
        return self._connected and not self._done and not self._ended[direction]

    def events(self) -> list[Event]:
        """What was queued since the last call, oldest first."""
        drained, self._events = self._events, []
        return drained

    def tick(self, now: float) -> None:
        """The deadline may have passed."""
        if self.deadline is not None and now >= self.deadline and not self._done:
            if self._dialling:
                self._finish(
                    Status.UNREACHABLE,
                    "connect_timeout",
                    "the server did not accept the connection in time",
                    Close.RESET,
                )
            else:
                self._finish(Status.INTERNAL, "hold_timeout", "no decision on the ClientHello in time", Close.RESET)

    # What the owner answers.

    def forward(self, direction: Direction, data: bytes) -> None:
        """Inspected bytes may go on. The first of them ask for the connection to the server."""
        if self._done or not data:
            return
        self.info.forwarded[direction] += len(data)
        if self._connected:
            self._events.append(SendUpstream(data) if direction is _TO_SERVER else SendClient(data))
            return
        self._first.append(data)
        if not self._dialling:
            self._dial()

    def _dial(self) -> None:
        self._dialling = True
        assert self.deadline is not None
        self.deadline += self._connect_timeout
        self._events.append(ConnectUpstream(self.info.sni or ""))

    def forward_eof(self, direction: Direction) -> None:
        """All that may go on this way was forwarded; the answer to Eof."""
        if self._done or not self._ended[direction] or self._fin[direction]:
            return
        self._fin[direction] = True
        if all(self._fin):
            self._finish(Status.BYPASSED, "closed", "", Close.FIN)
        else:
            self._events.append(CloseUpstream(Close.FIN) if direction is _TO_SERVER else CloseClient(Close.FIN))

    def end(self, how: FailAction, reason: str, detail: str = "") -> None:
        """The owner's decision, at any time: nothing more goes to either side."""
        if not self._done:
            close = Close.SILENT if how is FailAction.DROP else Close.RESET
            self._finish(Status.POLICY, reason, detail, close)

    # What happened.

    def client_data(self, data: bytes, now: float) -> None:
        if self._connected:
            self._arrived(_TO_SERVER, data)

    def upstream_data(self, data: bytes, now: float) -> None:
        self._arrived(_TO_CLIENT, data)

    def client_eof(self, now: float) -> None:
        if self._connected:
            self._eof(_TO_SERVER)
        elif not self._done:
            self._finish(Status.ABORTED, "client_closed", "the client closed before the server was reached", Close.FIN)

    def upstream_eof(self, now: float) -> None:
        self._eof(_TO_CLIENT)

    def client_reset(self, now: float) -> None:
        if not self._done:
            status = Status.BYPASSED if self._connected else Status.ABORTED
            self._finish(status, "client_reset", "the client reset the connection", Close.RESET)

    def upstream_reset(self, now: float) -> None:
        if not self._done:
            self._finish(Status.BYPASSED, "upstream_reset", "the server reset the connection", Close.RESET)

    def upstream_connected(self, now: float) -> None:
        if self._done or not self._dialling:
            return
        self._connected = True
        self.deadline = None
        if self._first:
            self._events.append(SendUpstream(b"".join(self._first)))
        self._first.clear()

    def upstream_failed(self, reason: str, now: float) -> None:
        """The TCP connection could not be made; ``reason`` is for people."""
        if not self._done:
            self._dialling = False
            self._finish(Status.UNREACHABLE, "connect_failed", reason, Close.RESET)

    def _arrived(self, direction: Direction, data: bytes) -> None:
        if data and not self._done:
            self._events.append(Plaintext(direction, data))

    def _eof(self, direction: Direction) -> None:
        if not self._done and not self._ended[direction]:
            self._ended[direction] = True
            self._events.append(Eof(direction, True))

    def _finish(self, status: Status, reason: str, detail: str, how: Close) -> None:
        self._done = True
        self.deadline = None
        self._events.append(CloseClient(how))
        if self._dialling:
            self._events.append(CloseUpstream(how))
        self._events.append(Finished(status, reason, detail, self.info))

"""Flows that claim an exempted name which no resolver confirmed: their server has to prove it.

Such a flow is a splice (:mod:`engines.tls.splice`) that is not allowed to dial. One of those with the same claim
becomes a session, up to where the server has shown who it is, and then a splice again, or stays a session and is
decrypted; the others wait for it (:mod:`nfw.proofs`). Rules have judged the hello before, as of any splice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.tls.clienthello import ClientHello
from engines.tls.session import Session
from engines.tls.splice import Splice
from nfw.proofs import Answer, Claim, Outcome, Proofs
from nfw.tlsflow import Flow


class Claims:
    """Of one worker, which says what is done for a flow.

    ``session(flow, now)``: a new one, as of any flow that is decrypted. ``dial(flow, now)``: call the server.
    ``drain(flow, now)``: carry out what the session asks. ``answer(flow, work, args, since)``: ``work(flow, *args,
    now)`` in its turn. ``count(name)``. ``patience``: seconds a server may take to accept a connection.
    """

    def __init__(
        self,
        session: Callable[[Flow, float], Session],
        dial: Callable[[Flow, float], None],
        drain: Callable[[Flow, float], None],
        answer: Callable[[Flow, Callable[..., None], tuple[Any, ...], float], None],
        count: Callable[[str], None],
        patience: float,
    ) -> None:
        self._session = session
        self._dial = dial
        self._drain = drain
        self._answer = answer
        self._count = count
        self._patience = patience
        self._proofs: Proofs[Flow] = Proofs()

    def begin(self, flow: Flow, hello: ClientHello, why: str, trust: int) -> None:
        """``why`` it is not known to be true, a token; ``trust``: a number of those who may vouch for the server."""
        assert hello.sni is not None
        flow.claim = Claim((flow.facts.server, flow.facts.server_port, hello.sni, trust), hello.raw, why)

    def decide(self, flow: Flow, now: float) -> None:
        """The splice wants to dial."""
        assert flow.claim is not None
        match self._proofs.ask(flow.claim.key, flow, now):
            case Answer.PROVEN:
                self._let_go(flow, now)
            case Answer.PROVE:
                self._prove(flow, now)

    def proven(self, flow: Flow, now: float) -> None:
        """By its session, whose connection to the server is closed."""
        claim, info = flow.claim, flow.session.info
        assert claim is not None
        assert claim.splice is not None
        flow.session = claim.splice
        shown = claim.splice.info
        shown.chain, shown.revocation, shown.revocation_action = info.chain, info.revocation, info.revocation_action
        self.settle(flow, Outcome.PROVEN, now)
        self._let_go(flow, now)

    def settle(self, flow: Flow, outcome: Outcome, now: float) -> None:
        """The flow's claim ends here: tell those who wait what came of it."""
        claim, flow.claim = flow.claim, None
        assert claim is not None
        if outcome is Outcome.REFUTED:
            flow.session.info.bypass_refused = "certificate"
            self._count("bypass_refused")
        for waiting in self._proofs.settle(claim.key, flow, outcome, now):
            self._answer(waiting, self._settled, (outcome,), now)

    def _settled(self, flow: Flow, outcome: Outcome, now: float) -> None:
        """For one that waited."""
        if flow.claim is None or flow.finished_at:
            return
        if outcome is Outcome.REFUTED:
            self._prove(flow, now)  # as any that is decrypted, it has to see for itself
        else:
            self.decide(flow, now)
        self._drain(flow, now)

    def _prove(self, flow: Flow, now: float) -> None:
        splice, claim = flow.session, flow.claim
        assert claim is not None
        assert isinstance(splice, Splice)
        claim.splice = splice
        session = self._session(flow, now)
        session.info.bypass_refused = claim.why
        flow.session = session
        session.client_data(claim.hello, now)

    def _let_go(self, flow: Flow, now: float) -> None:
        assert isinstance(flow.session, Splice)
        flow.claim = None
        flow.session.info.bypass = "certificate"
        flow.session.deadline = now + self._patience
        self._count("bypassed")
        self._dial(flow, now)

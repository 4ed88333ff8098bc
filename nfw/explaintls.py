"""A described flow behind the TLS engine: its ClientHello through the engine's session, its plaintext through rules.

What the server's certificate is worth, and which addresses belong to a name that is exempt from decryption, cannot be
known here: it is supposed that the one is accepted and that the address is among the others. Order and calls are the
TLS worker's (:mod:`nfw.tlsworker`). A server of one's own shows the certificate given for the name asked for.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from engines.packet import TCP
from engines.stateful.explain import NotingInspector
from engines.stateful.inspector import FlowFacts, Outcome, Segment
from engines.stateful.tlsfacts import TlsFacts
from engines.tls import events as tls
from engines.tls.bypass import BypassList
from engines.tls.clienthello import ClientHello
from engines.tls.names import covers
from engines.tls.scope import ScopeSet
from engines.tls.session import Session
from engines.tls.verify import certificate_facts
from engines.verdict import Direction, RuleRef, Verdict
from nfw.policy.model import TlsKeywords, Trust, Upstream
from nfw.tlsworker import tls_settings

if TYPE_CHECKING:
    from nfw.dialogue import Dialogue, Piece
    from nfw.policy.compile import Compiled
    from nfw.policy.model import InboundTls, Policy, ServerCertificate

_BEGINNING = 1_000_000.0
_SYN, _HELLO, _CERTIFICATE = "connection", "ClientHello", "server's certificate"


class Refused(NamedTuple):
    """How the session ends. ``stage``: tls or stateful; ``at``: number of what was said last."""

    verdict: str
    stage: str
    reason: str
    detail: str
    rule: RuleRef | None
    at: int


@dataclass(slots=True)
class Terminated:
    """``said``: what rules saw, numbered from 1 on. ``inspector`` is None when the policy has no stateful rules.
    ``bypassed``: the name is exempt from decryption, and rules saw what is on the wire."""

    inspector: NotingInspector | None = None
    refusal: Refused | None = None
    said: list[str] = field(default_factory=list)
    bypassed: bool = False
    certificate: ServerCertificate | None = None  # of a server of one's own, which the client is shown


def inbound_of(policy: Policy, source: bytes, destination: bytes, sport: int, dport: int) -> InboundTls | None:
    """The servers of one's own that a connection is to, which go before the scopes of ``tls``."""
    ends = source, destination, sport, dport
    return next((one for one in policy.inspected_inbound if ScopeSet(one.scopes).covers_tuple(*ends)), None)


def terminate(dialogue: Dialogue, compiled: Compiled, *, reasons: bool) -> Terminated:
    """The session of a flow in a TLS scope. ``reasons``: as :class:`NotingInspector` has it."""
    return _Session(dialogue, compiled, reasons).run()


class _Session:
    def __init__(self, dialogue: Dialogue, compiled: Compiled, reasons: bool) -> None:
        flow, policy = dialogue.flow, compiled.policy
        assert policy.tls is not None
        self._tls = policy.tls
        self._inbound = inbound_of(policy, flow.src, flow.dst, flow.sport, flow.dport)
        self._dialogue = dialogue
        self._now = _BEGINNING
        self._result = Terminated()
        if policy.stateful.signatures or policy.stateful.default_actions or compiled.ruleset.logs:
            facts = FlowFacts(1, TCP, flow.src, flow.dst, flow.sport, flow.dport)
            self._result.inspector = NotingInspector(
                compiled.ruleset, facts, self._now, decrypted=True, reasons=reasons
            )

    def run(self) -> Terminated:
        result, inspector = self._result, self._result.inspector
        self._say(_SYN)
        if inspector is not None:
            syn = Segment(Direction.TO_SERVER, False, b"", b"", None, self._now)
            if self._judged(inspector.inspect(syn)):
                return result
        self._say(_HELLO)
        hello = self._hello()
        if hello is None:
            return result
        flow = self._dialogue.flow
        if self._inbound is not None:
            if not self._known(self._inbound, hello.sni or ""):
                return result
        else:
            exempt = BypassList(self._tls.bypass)
            result.bypassed = exempt.covers(hello.sni or "", (flow.src, flow.sport), (flow.dst, flow.dport))
        if inspector is None:
            return result
        if result.bypassed:
            inspector.not_decrypted()
            self._judge(inspector, self._dialogue.wire())
            return result
        everything = self._tls.keywords is TlsKeywords.ALL
        facts = TlsFacts.from_hello(hello)
        if not everything:
            facts = facts.name_only()
        if self._judged(inspector.tls_hello(facts, self._now, self._tls.session_holding, everything)):
            return result
        if everything:
            self._say(_CERTIFICATE)
            if self._judged(inspector.tls_server([self._certificate()], self._now)):
                return result
        self._judge(inspector, self._dialogue.plaintext())
        return result

    def _known(self, inbound: InboundTls, name: str) -> bool:
        """Whether a certificate is given for the name; it is what the client is shown."""
        for one in inbound.certificates:
            (leaf, *_) = x509.load_pem_x509_certificates(one.certificate_pem)
            if covers(certificate_facts(leaf).dns_names, name):
                self._result.certificate = one
                return True
        detail = f"no certificate for {name or 'a client that names nobody'} is given for these servers"
        at = len(self._result.said)
        self._result.refusal = Refused(self._tls.on_failure.value, "tls", "no_certificate", detail, None, at)
        return False

    def _certificate(self) -> bytes:
        """The server's. One that is pinned shows what is given here."""
        given = self._result.certificate
        if given is None or self._tls.inbound_upstream is not Upstream.PINNED:
            return self._dialogue.certificate
        (leaf, *_) = x509.load_pem_x509_certificates(given.certificate_pem)
        return leaf.public_bytes(Encoding.DER)

    def _judge(self, inspector: NotingInspector, pieces: list[Piece]) -> None:
        for direction, data, what in pieces:
            self._say(what)
            segment = Segment(direction, True, data, data, None, self._now)
            if self._judged(inspector.inspect(segment)):
                return
        if any(inspector.held) and self._judged(inspector.hold_expired(self._now)):
            return
        for direction in Direction:
            if self._judged(inspector.close(direction, self._now)):
                return

    def _hello(self) -> ClientHello | None:
        """What the session makes of the client's first bytes; None: it has ended, and ``refusal`` says how."""
        # Nobody looks at a server's certificate here, so the roots it would be looked for in need not be loaded.
        trust = Trust(system=False, pem=self._tls.ca.certificate_pem)
        server = str(ipaddress.ip_address(self._dialogue.flow.dst))
        session = Session(tls_settings(replace(self._tls, trust=trust)), self._now, self._now, server)
        for direction, data, _ in self._dialogue.wire():
            if direction is Direction.TO_SERVER:
                session.client_data(data, self._now)
                break
        events = session.events()
        if not events and session.deadline is not None:  # the client has said too little, and says no more
            session.tick(session.deadline)
            events = session.events()
        how = tls.Close.RESET
        for event in events:
            match event:
                case tls.Hello(hello):
                    return hello
                case tls.CloseClient(close):
                    how = close
                case tls.Finished(status, reason, detail):
                    verdict = "reject" if how is tls.Close.RESET else "drop"
                    token = status.value.lower()
                    text = detail or reason
                    self._result.refusal = Refused(verdict, "tls", token, text, None, len(self._result.said))
        if self._result.refusal is None:  # the engine wants another hello, which nobody described
            action = self._tls.on_failure.value
            detail = "the ClientHello offers no key exchange that the engine takes"
            self._result.refusal = Refused(action, "tls", "protocol", detail, None, len(self._result.said))
        return None

    def _say(self, what: str) -> None:
        self._now += 0.01
        self._result.said.append(what)
        if self._result.inspector is not None:
            self._result.inspector.notes.packet = len(self._result.said)

    def _judged(self, outcome: Outcome) -> bool:
        """True: the decision is against the flow, which has ended."""
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            return False
        at = len(self._result.said)
        self._result.refusal = Refused(decision.verdict.value, "stateful", decision.reason, "", decision.rule, at)
        return True

"""Which names the policy exempts from decryption.

The name in a ClientHello is the client's word, so alone it exempts nothing. Two things can prove it:

* the firewall's own resolvers give the destination's address for the name (:mod:`engines.tls.nameanswers`)
* the destination shows the firewall itself, in a handshake of its own, a certificate for the name that is good by every
  check of an inspected session, and uses its key (:meth:`engines.tls.session.Session.proceed`)

The second is for names that resolve to other addresses at the client than at the firewall. It is weaker, and no policy
has it unasked: a destination agreed with the client can hand the firewall's handshake on to the name's real server, and
keep the client's for itself. It cannot be told apart: all that differs are encrypted bytes. What the destination shows
the client proves even less: the certificate of TLS 1.2, which can be seen, may be a recording.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.tls.names import is_valid_pattern
from engines.tls.scope import ScopeSet, TlsScope


class Proof(enum.StrEnum):
    """By what a destination is known to be the exempted name's; see the module's text."""

    RESOLVER = "resolver"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Exemption:
    """``names``: a host name, or ``*.`` and a domain for every name below it. ``scope``: whose flows, and where to."""

    names: tuple[str, ...]
    scope: TlsScope = field(default_factory=TlsScope)


def name_problem(name: str) -> str | None:
    """Why ``name`` cannot be exempted; None when it can."""
    if is_valid_pattern(name):
        return None
    if name.startswith("*.") and is_valid_pattern(name[2:]):
        return f"{name} would cover everybody's names below {name[2:]}"
    return f"{name!r} is no host name; expected one, or *. and a domain"


class BypassList:
    """All exemptions of a policy, compiled."""

    __slots__ = ("_entries",)

    def __init__(self, exemptions: Iterable[Exemption]) -> None:
        self._entries = [
            (
                frozenset(name.lower() for name in one.names if not name.startswith("*.")),
                frozenset(name[2:].lower() for name in one.names if name.startswith("*.")),
                ScopeSet([one.scope]),
            )
            for one in exemptions
        ]

    def covers(self, name: str, client: tuple[bytes, int], server: tuple[bytes, int]) -> bool:
        """``name`` as :class:`engines.tls.clienthello.ClientHello` normalises it; packed addresses and ports."""
        parents: set[str] | None = None
        for exact, below, scope in self._entries:
            if name not in exact:
                if not below:
                    continue
                if parents is None:
                    labels = name.split(".")
                    parents = {".".join(labels[at:]) for at in range(1, len(labels))}
                if below.isdisjoint(parents):
                    continue
            if scope.covers_tuple(client[0], server[0], client[1], server[1]):
                return True
        return False

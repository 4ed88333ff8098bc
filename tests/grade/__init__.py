"""nfw's TLS grade: every case of a published list of ways to attack or break an inspecting proxy, run on real packets.

::

    client namespace ──► router: nfw ──► server namespace: TLS servers of each case, OCSP responder, CRLs, issuers

``python -m tests.grade`` runs all and prints a table. Each case that needs a server has it on an address and port of
its own, and is tried directly first, from the server's side of the router, by both kinds of client: a case whose defect
a careless client would not even see proves nothing, and what a validating one takes is for nfw to find. The table shows
what was seen directly. What must be blocked is tried with a client that validates and one that does not; neither
may get a byte of the server's, nor the server one of theirs. A server that only shows what it was given is an nginx or
openssl's; one that breaks the protocol is scripted, and what a library says to it directly is shown, too; where
nothing is wrong with it, the same script is served.

``pki`` makes certificates with any defect, ``real`` runs nginx and ``s_server``, ``tls12`` and ``tls13`` speak TLS byte
by byte, ``bench`` has the lab, the firewall, servers and clients, ``many`` clients by the thousand, ``disorder`` a line
that loses packets, ``case`` the register; the other modules are the cases, one module for each group.
"""

import importlib

GROUPS = ("certificates", "revocation", "protocol", "client")


def load() -> None:
    """Import the modules of all groups, which fills the register."""
    for group in GROUPS:
        importlib.import_module(f"tests.grade.{group}")

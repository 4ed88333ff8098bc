"""A small internet in three network namespaces: what the tests, the demo and the benchmarks send real packets through.

::

    namespace client            namespace router             namespace server
   ┌──────────────────┐  veth  ┌──────────────────┐  veth   ┌──────────────────────────────────┐
   │ eth0 ────────────┼────────┼─ lan        wan ─┼─────────┼─ eth0                            │
   │ 10.1.0.2         │        │ 10.1.0.1         │         │ 203.0.113.10 … .15               │
   │ fd00:1::2        │        │ fd00:1::1        │         │ 2001:db8:2::10 … ::15            │
   │                  │        │   203.0.113.1    │         │ nginx: 80, 443 (h1, h2), *.test  │
   │ curl, git, ...   │        │   2001:db8:2::1  │         │ echo 7, discard 9, chargen 19,   │
   │                  │        │ forwards; plain  │         │ DNS 53 (TCP and UDP)             │
   └──────────────────┘        │ or masquerading  │         └──────────────────────────────────┘
                               └──────────────────┘

A plain router leaves the client's addresses alone and the server routes back to them; a masquerading one replaces
them by its own, and the server then has no route to the client's networks at all.

The machine's own interfaces, routes, firewall, /etc/hosts and nginx are not touched. What is made carries the maker's
process id in its name (``nfw-<pid>-<n>-client``) and is removed when the `Lab` closes; what a killed process left
behind is removed by `Lab.sweep`, which every new lab runs first. Needs root.

    with Lab(masquerade=True) as lab:
        lab.client.run(["curl", "--cacert", str(lab.root_ca_path), "https://site-a.test/whoami"])
"""

from tests.lab.lab import Lab
from tests.lab.namespace import CommandFailed, Namespace
from tests.lab.sites import SITES, Site

__all__ = ["SITES", "CommandFailed", "Lab", "Namespace", "Site"]

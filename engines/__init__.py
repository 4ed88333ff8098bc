"""engines decides: bytes and values in, decisions out. It never acts.

Nothing below this package opens a file or a socket, reads a clock (``now`` is always an argument, in seconds),
starts a process or imports ``nfw``; ``tests/unit/test_imports.py`` keeps that true.

Vocabulary, in the order a packet meets it:

packet      the bytes of one IP packet and the header fields read from them (:mod:`engines.packet`)
flow        both directions of one conversation; the client is the sender of the first packet (:mod:`engines.flow`)
direction   ``TO_SERVER`` or ``TO_CLIENT`` within a flow (:mod:`engines.verdict`)
decision    a verdict, what it applies to (packet or flow), why, and by which rule (:mod:`engines.verdict`)
stateless   5-tuple rules, first match decides: pass, drop or forward (:mod:`engines.stateless`)
tls         one intercepted session: client half, server half, plaintext in between (:mod:`engines.tls`)
stateful    Suricata signatures over packets, streams and application transactions (:mod:`engines.stateful`)

Imports point one way: ``stateful``, ``tls``, ``stateless`` -> ``flow`` -> ``packet``, ``address`` -> ``verdict``.
"""

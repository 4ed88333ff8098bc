"""The stateful engine: Suricata's rule language over packets, streams and application transactions.

::

    rule text ──parser──► Signature ──ruleset──► RuleSet (grouped, Hyperscan databases)
                                                   │
    packets ──stream──► in-order bytes ┐           ▼
                                       ├──► Inspector.inspect(Segment) ──► Outcome (decision, alerts, hold)
    TLS plaintext ─────────────────────┘           │
                                                   └─ app/: protocol by content, parsers, transactions with buffers

One :class:`engines.stateful.inspector.Inspector` per flow, fed by either source; it never knows which.
"""

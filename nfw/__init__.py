"""nfw acts: queue, sockets, kernel, files, clock, processes. What to do is decided in :mod:`engines`.

The processes, and what each may touch::

    nfw run ── supervisor: control socket, nftables switch, restarts      (parses no policy, reads no packet)
       ├── log writer: the only process that writes the event log         (log.py)
       └── generation leader: loads and compiles one policy               (generation.py, exec'ed afresh)
             ├── key holder: alone has the CA key; mints leafs            (keyholder.py)
             ├── packet worker, one per queue                             (worker.py ── pipeline.py)
             └── TLS worker, one per core                                 (tlsworker.py)

The path of a packet::

    kernel ─► nfqueue.py ─► pipeline.py: stateless ─► flow table ─┬─► stateful ─► verdict + mark ─► kernel
                                                                  └─► mark TLS ─► kernel TPROXY
    TPROXY ─► tlsworker.py: engines.tls.Session ─► plaintext ─► stateful ─► re-encrypt ─► server
"""

__version__ = "0.1.0"

"""The TLS engine: one intercepted connection as bytes in, decisions and bytes out.

::

    client ══► ClientHelloReader ─► Hello ─► (owner: proceed) ─► ConnectUpstream
                                                                    │
        server ◄══ upstream half: handshake, chain and name verified ◄
                                                                    │
                         NeedLeaf ─► (key holder: mint) ─► leaf_ready
                                                                    │
    client ◄══ client half: handshake with the leaf ◄───────────────┘
    client ══► decrypt ─► Plaintext ─► (inspector) ─► forward ─► encrypt ══► server      and the same the other way

======================  ==========================================================================
:mod:`.clienthello`     reads the ClientHello, refuses what is none
:mod:`.scope`           which connections are terminated
:mod:`.names`           does a certificate cover a name
:mod:`.verify`          is the server who it says it is; contexts for the upstream half
:mod:`.leaf`            the certificates shown to clients, and the CA that signs them
:mod:`.half`            one TLS endpoint over memory buffers; used twice per session
:mod:`.session`         decides what happens when; :mod:`.events` is what it says
:mod:`.status`          the closed set of verdicts
:mod:`.openssl`         every reach below pyOpenSSL's public interface, in one place
======================  ==========================================================================

leaf: the certificate nfw shows the client, minted only after the server's own was verified. Leg: one of the two TLS
connections of a session. Sessions never do I/O and never read a clock.
"""

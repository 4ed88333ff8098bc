"""TCP as a bystander sees it: for captures, where nothing can be held back or refused.

Inline, :mod:`engines.stateful.stream` decides every byte once and lets nothing else pass. A bystander cannot: the
receiver keeps which copy of a byte its operating system keeps, and takes a byte when it acknowledges it. This package
follows both, as Suricata's IDS mode does, so that rules find offline what they would have found there.

::

    segment ──► session.py   handshake, windows, states; what the acknowledgement makes final
                   └──► segments.py   bytes of one direction; who wins where segments overlap
"""

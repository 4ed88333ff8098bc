"""What is no plain whole IP packet: link layers, fragments, tunnels, and what is odd about a packet.

For captures. The packets of the kernel's queue need none of it (no link layer, defragmented by conntrack) and go
straight to :mod:`engines.packet`, which this package leaves as it is.

::

    frame ──► link.py       link header, VLAN tags, MPLS, PPP  ──► ethertype and payload
      └─► layers.py         all of it: each IP packet of a frame, outermost first
            ├─► defrag.py   fragments ──► datagrams
            └─► tunnels.py  what a packet carries: GRE, IP in IP, Teredo, VXLAN, Geneve
    packet ──► anomalies.py what Suricata's decode-event keyword names
           └─► checksums.py
"""

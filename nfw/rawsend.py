"""Sends complete IP packets that claim to come from somebody else: resets and unreachables towards both ends of a flow.

The packets leave through the output hook with nfw's OWN mark, so they are neither queued nor mistaken for a connection.
NAT is applied by conntrack as for any packet of the flow, so send before the flow's conntrack entry is deleted. The
kernel fills the IPv4 header checksum; every checksum above that is the caller's. What it leaves out: fragmentation, a
packet larger than the route's MTU fails with EMSGSIZE.
"""

from __future__ import annotations

import contextlib
import os
import socket

SO_MARK = 36
IPV6_HDRINCL = 36
_IPV4_HEADER = 20
_IPV6_HEADER = 40


class RawSender:
    """One raw socket for each family, opened at once so that privileges can be dropped afterwards.

    ``mark``: packet mark of everything sent. Raises PermissionError without CAP_NET_RAW and CAP_NET_ADMIN.
    """

    def __init__(self, mark: int) -> None:
        self._v4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._v6: socket.socket | None = None
        self._v4.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        self._v4.setblocking(False)
        with contextlib.suppress(OSError):  # a kernel booted with ipv6.disable=1 has nothing to send to either
            self._v6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._v6.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
            self._v6.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            self._v6.setblocking(False)

    def send(self, packet: bytes) -> None:
        """Send one packet that starts at its IP header. Raises OSError: no route, too big, ValueError: not IP."""
        version = packet[0] >> 4 if packet else 0
        if version == 4 and len(packet) >= _IPV4_HEADER:
            self._v4.sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
        elif version == 6 and len(packet) >= _IPV6_HEADER:
            if self._v6 is None:
                raise OSError(97, os.strerror(97))  # EAFNOSUPPORT
            self._v6.sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0, 0, 0))
        else:
            raise ValueError(f"not an IP packet: {packet[:4].hex()}...")

    def close(self) -> None:
        """Close both sockets; sending afterwards raises OSError."""
        self._v4.close()
        if self._v6 is not None:
            self._v6.close()

"""A client behind a bad line: what it sends and what it is sent is lost, late and doubled.

::

    far namespace: FAR, tun ──► thread of this program ──► tun, client namespace: forwards, answers ARP ──► router

netem would do it in the kernel, but not every kernel has that. There is no offload on the way: a segment is a packet.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from types import TracebackType
from typing import Self

from tests.lab import Lab
from tests.lab.namespace import Namespace

FAR = "10.1.0.77"
LOST, LATE, DOUBLED = 0.02, 0.3, 0.2
LATE_SECONDS = 0.002, 0.02
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000


class Disorder:
    """Make sockets within ``far.entered()``. ``counts``: packets, and of them lost, late, doubled, both ways."""

    def __init__(self, lab: Lab, seed: int = 7) -> None:
        self.counts = {"packets": 0, "lost": 0, "late": 0, "doubled": 0}
        self._chance = random.Random(seed)
        self._lab = lab
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        client = self._lab.client
        self.far = Namespace(self._lab.name, self._lab.dir)
        self._ends = _tun(self.far), _tun(client)
        for command in (
            "link set lo up",
            f"addr add {FAR}/32 dev tun0",
            "link set tun0 up",
            "route add default dev tun0",
        ):
            self.far.run(["ip", *command.split()])
        for command in ("link set tun0 up", f"route add {FAR} dev tun0"):
            client.run(["ip", *command.split()])
        client.sysctl("ipv4/conf/all/forwarding", 1)
        client.sysctl("ipv4/conf/eth0/proxy_arp", 1)
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)  # which is the end of its interface, too
        self._lab.client.sysctl("ipv4/conf/eth0/proxy_arp", 0)
        self._lab.client.sysctl("ipv4/conf/all/forwarding", 0)
        self.far.remove()

    def _carry(self) -> None:
        late: list[tuple[float, int, int, bytes]] = []
        poll = select.epoll()
        other = dict(zip(self._ends, reversed(self._ends), strict=True))
        for end in self._ends:
            poll.register(end, select.EPOLLIN)
        while not self._stop.is_set():
            for end, _ in poll.poll(max(0.0, late[0][0] - time.monotonic()) if late else 0.1):
                packet = os.read(end, 65536)
                self.counts["packets"] += 1
                if self._chance.random() < DOUBLED:
                    self.counts["doubled"] += 1
                    os.write(other[end], packet)
                drawn = self._chance.random()
                if drawn < LOST:
                    self.counts["lost"] += 1
                elif drawn < LOST + LATE:
                    self.counts["late"] += 1
                    when = time.monotonic() + self._chance.uniform(*LATE_SECONDS)
                    heapq.heappush(late, (when, self.counts["packets"], other[end], packet))
                else:
                    os.write(other[end], packet)
            while late and late[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(late)
                os.write(end, packet)
        poll.close()


def _tun(namespace: Namespace) -> int:
    """The descriptor of a new interface tun0 there, for whole IP packets."""
    with namespace.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return descriptor

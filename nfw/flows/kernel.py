"""The kernel's connection tracking, a hundred thousand entries at a time.

:mod:`nfw.conntrack` asks for single entries and whole generations through pyroute2, which takes ten times as long as
this for an entry it reads: half a minute and more for a list of this size. Layouts are those of linux/netlink.h,
linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engines.packet import ICMP, ICMPV6, TCP, UDP

_NETLINK_NETFILTER = 12
_CTNETLINK, _NEW, _GET, _DELETE = 1 << 8, 0, 1, 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TYPE = 0x3FFF
# CTA_*
_ORIGINAL, _REPLY, _PROTOINFO, _TIMEOUT, _MARK = 1, 2, 4, 7, 8
_COUNTED, _COUNTED_REPLY, _TIMESTAMP, _MARK_MASK = 9, 10, 20, 21
_RECEIVE_BYTES = 1 << 18
_BUFFER_BYTES = 4 << 20
_SECONDS = 5.0  # the kernel answers at once; this is for one that has no connection tracking at all
MAX_BATCH = 1000  # changes in one message to the kernel

_TCP_STATES = (
    "", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent",
)  # fmt: skip
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BE16, _BE32, _BE64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class KernelFlow(NamedTuple):
    """One entry, its addresses as the queues show them: ``server`` behind destination NAT, ``sent_to`` before it.

    ``timeout`` in seconds. ``packets`` and ``octets`` are ``(to server, to client)``, None where the kernel does not
    count (``net.netfilter.nf_conntrack_acct``); ``start`` in seconds since the epoch, None without
    ``nf_conntrack_timestamp``. ``icmp``: id, type, code.
    """

    protocol: int
    client: bytes
    client_port: int
    server: bytes
    server_port: int
    sent_to: bytes
    sent_to_port: int
    mark: int
    timeout: int
    state: str
    icmp: tuple[int, int, int] | None
    packets: tuple[int, int] | None
    octets: tuple[int, int] | None
    start: float | None

    @property
    def key(self) -> tuple[int, bytes, int, bytes, int]:
        """The 5-tuple a worker knows the flow by; of protocols without ports several flows may share one."""
        return self[:5]


def dump(mark: int, mask: int) -> Iterator[KernelFlow]:
    """Entries with ``entry.mark & mask == mark``, of both families. Needs CAP_NET_ADMIN. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = _attribute(_MARK, _BE32.pack(mark)) + _attribute(_MARK_MASK, _BE32.pack(mask))
        with _open() as sock:
            sock.send(_message(_GET, _REQUEST | _DUMP, 1, family, wanted))
            for kind, body in _answers(sock):
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                flow = _flow(body)
                if flow is not None and flow.mark & mask == mark:
                    yield flow


def delete(flows: Sequence[KernelFlow]) -> int:
    """Forget these; how many were still there. At most :data:`MAX_BATCH`. Raises OSError."""
    return _change(flows, _DELETE, b"")


def mark(flows: Sequence[KernelFlow], value: int, mask: int) -> int:
    """Set the bits of ``mask`` to ``value`` in the marks of these; how many were still there. Raises OSError."""
    return _change(flows, _NEW, _attribute(_MARK, _BE32.pack(value)) + _attribute(_MARK_MASK, _BE32.pack(mask)))


def idle(flow: KernelFlow, limits: Mapping[str, int]) -> float | None:
    """Seconds since its last packet, by what is left of its time-out; None when that says nothing.

    ``limits`` as from :func:`timeouts`. A TCP connection with data that is not acknowledged has a shorter time-out.
    """
    if flow.protocol == TCP:
        full = limits.get(f"tcp_timeout_{flow.state}")
        waiting = limits.get("tcp_timeout_unacknowledged")
        if flow.state == "established" and waiting is not None and flow.timeout <= waiting:
            full = waiting
    elif flow.protocol == UDP:
        full, stream = limits.get("udp_timeout"), limits.get("udp_timeout_stream")
        if stream is not None and full is not None and (flow.timeout > full or (flow.packets and flow.packets[1])):
            full = stream
    elif flow.protocol in (ICMP, ICMPV6):
        full = limits.get("icmp_timeout" if flow.protocol == ICMP else "icmpv6_timeout")
    else:
        full = limits.get("generic_timeout")
    return None if full is None or full < flow.timeout else float(full - flow.timeout)


def timeouts() -> dict[str, int]:
    """The kernel's time-outs in seconds, by the names of sysctl without ``nf_conntrack_``."""
    found = {}
    for path in Path("/proc/sys/net/netfilter").glob("nf_conntrack_*timeout*"):
        try:
            found[path.name.removeprefix("nf_conntrack_")] = int(path.read_text())
        except (OSError, ValueError):
            continue
    return found


# -- messages ----------------------------------------------------------------------------------------------------------


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    sock.settimeout(_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    sock.bind((0, 0))
    return sock


def _message(kind: int, flags: int, sequence: int, family: int, body: bytes) -> bytes:
    payload = struct.pack("=BBH", family, 0, 0) + body
    return _HEADER.pack(_HEADER.size + len(payload), _CTNETLINK | kind, flags, sequence, 0) + payload


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _answers(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(type, what follows the header) of each message until the kernel says it is done."""
    while True:
        data = sock.recv(_RECEIVE_BYTES)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                return
            if kind == _DONE:
                return
            yield kind, data[at + _HEADER.size : at + length]
            at += length + 3 & ~3


def _change(flows: Sequence[KernelFlow], kind: int, more: bytes) -> int:
    if len(flows) > MAX_BATCH:
        raise ValueError(f"{len(flows)} entries are more than the {MAX_BATCH} changed at a time")
    if not flows:
        return 0
    messages = [
        _message(kind, _REQUEST | _ACK, number, _family(flow), _original(flow) + more)
        for number, flow in enumerate(flows, 1)
    ]
    done = answered = 0
    with _open() as sock:
        sock.send(b"".join(messages))
        for answer, body in _answers(sock):
            if answer != _ERROR:
                continue
            code = -struct.unpack_from("=i", body)[0]
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            done += code == 0
            answered += 1
            if answered == len(flows):
                break
    return done


def _family(flow: KernelFlow) -> int:
    return socket.AF_INET if len(flow.client) == 4 else socket.AF_INET6


def _original(flow: KernelFlow) -> bytes:
    """CTA_TUPLE_ORIG."""
    first = 1 if len(flow.client) == 4 else 3
    addresses = _attribute(first, flow.client) + _attribute(first + 1, flow.sent_to)
    proto = _attribute(1, bytes((flow.protocol,)))
    if flow.icmp is not None:
        number, kind, code = flow.icmp
        first = 4 if flow.protocol == ICMP else 7
        proto += _attribute(first, _BE16.pack(number))
        proto += _attribute(first + 1, bytes((kind,))) + _attribute(first + 2, bytes((code,)))
    else:
        proto += _attribute(2, _BE16.pack(flow.client_port)) + _attribute(3, _BE16.pack(flow.sent_to_port))
    return _attribute(_ORIGINAL | _NESTED, _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, proto))


def _attributes(data: bytes, at: int, end: int) -> dict[int, tuple[int, int]]:
    """Attribute -> where its value begins and ends."""
    found = {}
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE] = (at + 4, at + length)
        at += length + 3 & ~3
    return found


def _flow(data: bytes) -> KernelFlow | None:
    """From the message of one entry, behind the netlink header."""
    attributes = _attributes(data, 4, len(data))
    if _ORIGINAL not in attributes or _REPLY not in attributes:
        return None
    client, sent_to, protocol, client_port, sent_to_port, icmp = _tuple(data, *attributes[_ORIGINAL])
    server, _, _, server_port, _, _ = _tuple(data, *attributes[_REPLY])
    to_server = _counters(data, attributes.get(_COUNTED))
    to_client = _counters(data, attributes.get(_COUNTED_REPLY))
    counted = to_server is not None and to_client is not None
    start = None
    if _TIMESTAMP in attributes:
        inner = _attributes(data, *attributes[_TIMESTAMP])
        if 1 in inner:
            start = _BE64.unpack_from(data, inner[1][0])[0] / 1e9
    return KernelFlow(
        protocol,
        client,
        client_port,
        server,
        server_port,
        sent_to,
        sent_to_port,
        _number(data, attributes.get(_MARK)),
        _number(data, attributes.get(_TIMEOUT)),
        _tcp_state(data, attributes.get(_PROTOINFO)),
        icmp,
        (to_server[0], to_client[0]) if counted and to_server and to_client else None,
        (to_server[1], to_client[1]) if counted and to_server and to_client else None,
        start,
    )


def _tuple(data: bytes, at: int, end: int) -> tuple[bytes, bytes, int, int, int, tuple[int, int, int] | None]:
    inner = _attributes(data, at, end)
    addresses = _attributes(data, *inner[1]) if 1 in inner else {}
    proto = _attributes(data, *inner[2]) if 2 in inner else {}

    def address(four: int, six: int) -> bytes:
        place = addresses.get(four) or addresses.get(six)
        return data[place[0] : place[1]] if place else b""

    def number(kind: int) -> int:
        place = proto.get(kind)
        return int.from_bytes(data[place[0] : place[1]], "big") if place else 0

    protocol = number(1)
    icmp = None
    if protocol in (ICMP, ICMPV6):
        first = 4 if protocol == ICMP else 7
        icmp = (number(first), number(first + 1), number(first + 2))
    return address(1, 3), address(2, 4), protocol, number(2), number(3), icmp


def _counters(data: bytes, place: tuple[int, int] | None) -> tuple[int, int] | None:
    if place is None:
        return None
    inner = _attributes(data, *place)
    if 1 not in inner or 2 not in inner:
        return None
    return _BE64.unpack_from(data, inner[1][0])[0], _BE64.unpack_from(data, inner[2][0])[0]


def _number(data: bytes, place: tuple[int, int] | None) -> int:
    return int(_BE32.unpack_from(data, place[0])[0]) if place else 0


def _tcp_state(data: bytes, place: tuple[int, int] | None) -> str:
    if place is None:
        return ""
    tcp = _attributes(data, *place).get(1)
    state = _attributes(data, *tcp).get(1) if tcp else None
    value = data[state[0]] if state else 0
    return _TCP_STATES[value] if value < len(_TCP_STATES) else ""

"""Reads one netfilter queue and gives verdicts: the only importer of netfilterqueue.

What costs time in a queue is system calls, so packets are read without waiting until the socket is dry, segmentation
offload is left on (one packet of up to 64 KB instead of 45 small ones), and verdicts leave together.

Theory of operation. The library binds the queue and parses packets: parsing them here instead was measured and is no
faster (2.0 against 1.6 µs of Python for a small packet, 4.5 against 4.7 for one of 40 KB). Configuration and verdicts
are netlink messages of our own on its socket (linux/netfilter/nfnetlink_queue.h), because the library knows neither
batch verdicts nor offload. A *batch verdict* accepts every packet still queued whose id is at most the one it names,
with its mark unchanged. Three rules keep that from accepting anything that was not meant:

1. before a packet is held, and before one is accepted on its own, the accepts collected so far are put into the
   outgoing messages, so the order of packets is kept and the next batch begins after it;
2. as long as any packet is held, accepts are written one by one: a batch would sweep the held packet along;
3. a drop goes out before the batch that names a later packet, so the dropped packet is no longer there to be swept.

All of these messages share a datagram, so a drop or a mark costs no system call of its own either.

Without a reader, with a full queue or a full socket buffer the kernel drops (fail closed), unless ``fail_open`` was
asked for. The kernel hands over at most 65,531 bytes; the four longest sizes an IPv4 packet can have are dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netfilterqueue import COPY_PACKET, NetfilterQueue, Packet

from nfw import process

# What a handler answers.
ACCEPT_BATCH: Final = 0  # accept with the mark unchanged; the verdict may leave a little later
HELD: Final = 1  # no verdict yet: whoever holds the packet calls `verdict` some time
DONE: Final = 2  # the handler called `verdict` itself

Handler = Callable[[int, int, bytes], int]

QUEUE_PACKETS = 8192  # waiting for a verdict, held ones included; of at most 64 KB each
RECEIVE_BUFFER = 16 << 20  # bytes of packets copied but not read: a burst of a few ms at 20 Gbit/s
BATCH = 32  # verdicts in one datagram; beyond that the gain is in the noise and latency is not
_MESSAGE = 128 << 10  # longer than any packet with its attributes
_LIBRARY_BUFFER = 64 << 10  # what the library may ask for without a warning; replaced at once
_LOGGED_ERRORS = 20

_SOL_NETLINK, _NETLINK_NO_ENOBUFS, _SO_RCVBUFFORCE = 270, 5, 33
_NLMSG_ERROR, _NLM_F_REQUEST, _NLM_F_ACK = 2, 1, 4
_VERDICT, _CONFIG, _VERDICT_BATCH = 0x301, 0x302, 0x303  # NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_*
_CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 2, 3, 4, 5
_F_FAIL_OPEN, _F_GSO = 1, 4
_COPY_RANGE = 0xFFFF - 4  # NFQNL_MAX_COPY_RANGE; a longer packet is cut there
_A_VERDICT, _A_MARK, _A_PAYLOAD = 2, 3, 10
_NF_DROP, _NF_ACCEPT = 0, 1

_HEAD = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_ID = struct.Struct("!I")
_ID_OFFSET = _HEAD.size + _ATTRIBUTE.size  # the kernel puts NFQA_PACKET_HDR first
_PLAIN = struct.Struct("=IHHIIBBHHHII")  # head and NFQA_VERDICT_HDR; the two last words in network order
_PLAIN_MARK = struct.Struct("=IHHIIBBHHHIIHHI")

_log = logging.getLogger(__name__)


class QueueBusyError(OSError):
    """Another process reads this queue already."""


class Queue:
    """Queue ``number`` bound to this process.

    ``handler(packet_id, mark, payload)`` is called for every packet from within :meth:`drain`; ``payload`` starts at
    the IP header, ``mark`` is the packet mark. A handler that raises costs its packet: dropped, counted in ``errors``,
    and logged the first few times.

    Raises QueueBusyError, PermissionError (CAP_NET_ADMIN) or OSError, with readable text.
    """

    def __init__(
        self,
        number: int,
        handler: Handler,
        fail_open: bool = False,
        max_length: int = QUEUE_PACKETS,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.number = number
        self.errors = 0  # packets dropped because the handler raised
        self.truncated = 0  # packets dropped because the kernel did not hand over all of them
        self._handler = handler
        self._library = _bind(number, self._on_packet)
        self._socket = socket.socket(fileno=os.dup(self._library.get_fd()))
        self._source = _Source(self._receive)
        self._left = 0  # packets that drain may still read
        self._out: list[bytes] = []
        self._accept_upto = -1  # id of the last packet of the batch being collected, -1: none
        self._collected = 0
        self._held: set[int] = set()
        self._draining = False
        try:
            self._configure(fail_open, max_length, receive_buffer)
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        """Readable when packets wait."""
        return self._socket.fileno()

    @property
    def held(self) -> int:
        """How many packets were answered with HELD and have no verdict yet."""
        return len(self._held)

    def drain(self, budget: int) -> int:
        """Read up to ``budget`` packets without waiting and send the verdicts collected. Returns how many were read."""
        self._left = budget
        self._draining = True
        try:
            self._library.run_socket(self._source)
        finally:
            self._draining = False
            self._flush()
        return budget - self._left

    def verdict(self, packet_id: int, accept: bool, mark: int | None = None, payload: bytes | None = None) -> None:
        """Verdict of one packet: the one being handled, or one held earlier.

        ``mark`` replaces the whole packet mark, ``payload`` the packet from its IP header on. From within a handler it
        leaves with the batch, otherwise at once.
        """
        if accept:
            self._close_batch()
        code = _NF_ACCEPT if accept else _NF_DROP
        if payload is not None:
            self._out.append(_with_payload(self.number, code, packet_id, mark, payload))
        elif mark is not None:
            self._out.append(_marked(self.number, code, packet_id, mark))
        else:
            self._out.append(_plain(self.number, code, packet_id))
        self._held.discard(packet_id)
        self._collected += 1
        if not self._draining:
            self._flush()

    def stats(self) -> dict[str, int]:
        """Packets: in the kernel ``queued`` now, ``dropped`` (queue full), ``user_dropped`` (socket full); here
        ``errors``, ``truncated`` and ``held``.
        """
        kernel = read_stats().get(self.number, {"queued": 0, "dropped": 0, "user_dropped": 0})
        return {**kernel, "errors": self.errors, "truncated": self.truncated, "held": len(self._held)}

    def close(self) -> None:
        """Give the queue up; the kernel drops what waits in it.

        The socket is closed under the library, which would otherwise read all that is left before it lets go.
        """
        if self._library is None:
            return
        self._socket.close()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, self._library.get_fd(), inheritable=False)
        os.close(null)
        self._library = None

    def _configure(self, fail_open: bool, max_length: int, receive_buffer: int) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # in a user namespace; the system's limit applies then
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(2.0)
        self._ask(_attribute(_CFG_PARAMS, struct.pack("!IBxxx", _COPY_RANGE, COPY_PACKET)[:5]))
        self._ask(_attribute(_CFG_QUEUE_MAXLEN, _ID.pack(max_length)))
        flags = _F_GSO | (_F_FAIL_OPEN if fail_open else 0)
        self._ask(_attribute(_CFG_FLAGS, _ID.pack(flags)) + _attribute(_CFG_MASK, _ID.pack(_F_GSO | _F_FAIL_OPEN)))
        self._socket.setblocking(False)

    def _ask(self, attributes: bytes) -> None:
        """One configuration message and its acknowledgement."""
        size = _HEAD.size + len(attributes)
        head = _HEAD.pack(size, _CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 0, 0, 0, 0, socket.htons(self.number))
        self._socket.send(head + attributes)
        while True:
            data = self._socket.recv(_MESSAGE)
            if struct.unpack_from("=H", data, 4)[0] == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, 16)[0]
                if code:
                    raise OSError(code, f"netfilter queue {self.number}: {os.strerror(code)}")
                return
            # A packet that came too early may have been cut at the library's 4 KB.
            self._drop_truncated(_ID.unpack_from(data, _ID_OFFSET)[0])

    def _receive(self, _: int) -> bytes:
        """What the library reads from, instead of the socket. BlockingIOError makes it return."""
        if self._collected >= BATCH:
            self._flush()
        if self._left <= 0:
            raise BlockingIOError(errno.EAGAIN, "budget used up")
        return self._socket.recv(_MESSAGE)

    def _on_packet(self, packet: Packet) -> None:
        """The library's callback."""
        self._left -= 1
        packet_id, payload = packet.id, packet.get_payload()
        if len(payload) >= _COPY_RANGE:
            self._drop_truncated(packet_id)
            return
        try:
            answer = self._handler(packet_id, packet.mark, payload)
        except Exception:  # noqa: BLE001 - a bug must cost one packet, not the queue
            self._drop_error(packet_id)
            return
        if answer == ACCEPT_BATCH:
            if self._held:
                self._out.append(_plain(self.number, _NF_ACCEPT, packet_id))
            else:
                self._accept_upto = packet_id
            self._collected += 1
        elif answer == HELD:
            self._close_batch()
            self._held.add(packet_id)

    def _drop_truncated(self, packet_id: int) -> None:
        self.truncated += 1
        self.verdict(packet_id, False)

    def _drop_error(self, packet_id: int) -> None:
        self.errors += 1
        if self.errors <= _LOGGED_ERRORS:
            _log.exception("queue %d: packet dropped because its handler failed", self.number)
        self.verdict(packet_id, False)

    def _close_batch(self) -> None:
        if self._accept_upto >= 0:
            self._out.append(_batch(self.number, self._accept_upto))
            self._accept_upto = -1

    def _flush(self) -> None:
        self._close_batch()
        if self._out:
            out, self._out, self._collected = b"".join(self._out), [], 0
            self._socket.send(out)


@dataclass(frozen=True, slots=True)
class _Source:
    """What ``run_socket`` takes for a socket."""

    recv: Callable[[int], bytes]


def read_stats() -> dict[int, dict[str, int]]:
    """Every bound queue of this network namespace: packets ``queued`` now, ``dropped`` and ``user_dropped`` so far."""
    try:
        text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    except OSError:
        return {}
    rows = (line.split() for line in text.splitlines())
    return {
        int(row[0]): {"queued": int(row[2]), "dropped": int(row[5]), "user_dropped": int(row[6])}
        for row in rows
        if len(row) >= 7
    }


def _bind(number: int, callback: Callable[[Packet], None]) -> NetfilterQueue:
    try:
        library = NetfilterQueue()
    except OSError as error:
        if not process.may(process.CAP_NET_ADMIN):
            raise PermissionError(
                errno.EPERM, f"netfilter queue {number}: permission denied, CAP_NET_ADMIN is needed"
            ) from error
        raise OSError(
            errno.ENOSYS, f"netfilter queue {number}: this kernel has no nfnetlink_queue ({error})"
        ) from error
    try:
        library.bind(number, callback, mode=COPY_PACKET, sock_len=_LIBRARY_BUFFER)
    except OSError as error:
        if number in read_stats():
            raise QueueBusyError(errno.EBUSY, f"netfilter queue {number} is read by another process already") from error
        raise OSError(errno.EIO, f"netfilter queue {number}: {error}") from error
    return library


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _plain(queue: int, code: int, packet_id: int, kind: int = _VERDICT) -> bytes:
    return _PLAIN.pack(
        32,
        kind,
        _NLM_F_REQUEST,
        0,
        0,
        0,
        0,
        socket.htons(queue),
        12,
        _A_VERDICT,
        socket.htonl(code),
        socket.htonl(packet_id),
    )


def _batch(queue: int, packet_id: int) -> bytes:
    return _plain(queue, _NF_ACCEPT, packet_id, _VERDICT_BATCH)


def _marked(queue: int, code: int, packet_id: int, mark: int) -> bytes:
    return _PLAIN_MARK.pack(
        40, _VERDICT, _NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(queue),
        12, _A_VERDICT, socket.htonl(code), socket.htonl(packet_id),
        8, _A_MARK, socket.htonl(mark),
    )  # fmt: skip


def _with_payload(queue: int, code: int, packet_id: int, mark: int | None, payload: bytes) -> bytes:
    body = _attribute(_A_VERDICT, _ID.pack(code) + _ID.pack(packet_id))
    if mark is not None:
        body += _attribute(_A_MARK, _ID.pack(mark))
    body += _attribute(_A_PAYLOAD, payload)
    return _HEAD.pack(_HEAD.size + len(body), _VERDICT, _NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(queue)) + body

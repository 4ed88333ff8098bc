"""The TCP sockets of a TLS session: one :class:`Side` each, with what waits to be sent and how it is to end.

Nothing here knows TLS or the session; errors of a socket become flags, never exceptions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import random
import socket
import struct
import termios

READ_BYTES = 256 * 1024  # of bulk; measured: larger reads gain nothing, smaller ones cost
_FIRST_BYTES = 64 * 1024  # of all else; for more malloc(3) asks the kernel, which takes longer than the read
IP_TRANSPARENT, IPV6_TRANSPARENT, IP_BIND_ADDRESS_NO_PORT, TCP_REPAIR, SO_MARK = 19, 75, 24, 19, 36
OUR_PORTS = (10_000, 32_767)
"""Where our connections with clients' addresses come from. Clients themselves use higher ports (Linux from 32768,
others from 49152): were one port both, the client's next connection from it would be taken for ours, and lost."""
_ATTEMPTS = 64  # to find a port that is free: with 10,000 sessions of one client with one server nearly half are not
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, no time: close sends RST


class Side:
    """One socket of a session."""

    __slots__ = (
        "at_once",
        "broken",
        "closing",
        "discarding",
        "ended",
        "events",
        "finished",
        "hung_up",
        "open",
        "out",
        "paused",
        "resetting",
        "sock",
        "unacked",
        "unwanted",
        "waiting",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = True  # until :meth:`close`
        self.out: list[bytes] = []
        self.waiting = 0  # bytes in `out`
        self.at_once = _FIRST_BYTES  # bytes that are read
        self.unacked = 0  # bytes in the kernel when last asked
        self.events = -1  # what epoll is asked for; -1: not registered
        self.paused = False
        self.ended = False  # its peer will send nothing more
        self.closing = False  # our sending side is shut down once `out` is empty
        self.finished = False  # it is
        self.resetting = False  # RST once everything before it was delivered
        self.broken = False  # sending failed: the connection is gone, though the kernel may still have bytes to read
        self.hung_up = False  # both directions are over; epoll says so for ever, so it is not asked until we read
        self.unwanted = False  # it came while nothing was to be read
        self.discarding = False  # what still arrives is read and thrown away

    def write(self, data: bytes) -> None:
        """Send it, or as much as the kernel takes; the rest is queued for :meth:`send`."""
        if not self.out:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.broken = True
                return
            if sent == len(data):
                return
            data = data[sent:]
        self.queue(data)
        if len(self.out) > 1:
            self.send()

    def queue(self, data: bytes) -> None:
        """For :meth:`send`."""
        self.out.append(data)
        self.waiting += len(data)

    def forget(self) -> None:
        """What is queued is not sent."""
        self.out.clear()
        self.waiting = 0

    def send(self) -> None:
        """Send what the kernel takes of the queue; then, if asked for, our FIN."""
        out = self.out
        done = 0
        while done < len(out):
            piece = out[done]
            try:
                # With what is sent last goes our FIN; a packet is most of what sending costs.
                sent = self.sock.send(piece, socket.MSG_MORE if self.closing and done == len(out) - 1 else 0)
            except BlockingIOError:
                break
            except OSError:
                self.broken = True
                self.forget()
                break
            self.waiting -= sent
            if sent < len(piece):
                out[done] = piece[sent:]
                break
            done += 1
        del out[:done]
        if self.closing and not out:
            self.closing = False
            if not self.finished:
                self.finished = True
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes | None:
        """What arrived, ``b""`` at the peer's FIN, None when there is nothing yet. Raises OSError after a reset."""
        try:
            data = self.sock.recv(self.at_once)
        except BlockingIOError:
            return None
        self.at_once = _FIRST_BYTES if len(data) < _FIRST_BYTES else READ_BYTES
        if not data and self.broken:
            # The failed send took the socket's error with it; without it the kernel reports an ordinary end.
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return data

    def undelivered(self) -> int:
        """Bytes that were sent here and that the peer has not acknowledged."""
        if self.broken or not self.open:
            return 0
        try:
            answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return 0
        return self.waiting + int(struct.unpack("i", answer)[0])

    def close(self, how: str) -> None:
        """``close`` as usual, ``reset`` with RST, ``silent`` without sending anything."""
        self.forget()
        if not self.open:
            return
        self.open = False
        with contextlib.suppress(OSError):
            if how == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            elif how == "silent":
                self.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closing a socket under repair sends nothing
        self.sock.close()


def dial(family: int, source: str, destination: tuple[str, int], mark: int) -> tuple[Side, int]:
    """Start connecting to ``destination`` from the foreign address ``source``: the socket, and 0 or EINPROGRESS, or
    the errno of what went wrong. Raises OSError when there is no descriptor left for a socket."""
    first, last = OUR_PORTS
    for _ in range(_ATTEMPTS):
        port = first + int(random.random() * (last + 1 - first))
        side, result = _dial(family, source, port, destination, mark)
        if result not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            return side, result
        side.close("close")
    return _dial(family, source, 0, destination, mark)


def _dial(family: int, source: str, port: int, destination: tuple[str, int], mark: int) -> tuple[Side, int]:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        if not port:
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        # One port may serve several destinations at the same time.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, port))
        return Side(sock), sock.connect_ex(destination)
    except OSError as error:
        return Side(sock), error.errno or errno.EIO


def packed(address: str) -> bytes:
    """Packed bytes of a textual address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.split("%")[0])

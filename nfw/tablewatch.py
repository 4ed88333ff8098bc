"""Notices that somebody else changes nfw's nftables table: the kernel tells every change to whoever listens.

A notification says which table it is about, not who is behind it, so it is only a reason to look
(:meth:`nfw.hostnet.HostNet.fingerprint`). Sources: nfnetlink(7), linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM_NFTABLES = 10
_NEW_GENERATION, _GET_GENERATION = 15, 16  # NFT_MSG_NEWGEN: the end of a transaction, about no table
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_GENERIC_BYTES = 4  # nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE ...: the same number in every message
_READ_BYTES = 1 << 16
_READS = 256  # at a time; whoever writes faster is looked at again


class TableWatch:
    """One listening socket, in the network namespace of whoever makes it. Raises OSError when it cannot be had."""

    def __init__(self, table: str) -> None:
        self._table = table.encode()
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._sock.setblocking(False)
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """Readable when something was changed."""
        return self._sock.fileno()

    def changed(self) -> bool:
        """Take in what there is; True when something of it may be about the table. Never blocks."""
        found = False
        for _ in range(_READS):
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return True
                found = True  # more was told than there was room for
                continue
            found = found or any(name == self._table for name in tables(data))
        return True

    def close(self) -> None:
        self._sock.close()


def tables(data: bytes) -> Iterator[bytes]:
    """Names of the tables that the nftables messages in ``data`` are about. Never raises: bytes that are no messages
    end it."""
    with contextlib.suppress(struct.error):
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size or at + length > len(data):
                return
            about_tables = kind & 0xFF not in (_NEW_GENERATION, _GET_GENERATION)
            if kind >> 8 == _SUBSYSTEM_NFTABLES and about_tables:
                name = _attribute(data[at + _HEADER.size + _GENERIC_BYTES : at + length], _TABLE_NAME)
                if name is not None:
                    yield name.rstrip(b"\0")
            at += (length + 3) & ~3


def _attribute(data: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return None
        if kind & 0x3FFF == wanted:  # without the flags for nesting and byte order
            return data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return None

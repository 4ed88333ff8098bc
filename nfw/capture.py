"""Reads capture files: pcap and pcapng, by scapy's readers.

A damaged file gives every packet before the damage and then one :class:`CaptureError`.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engines.decode.link import LINK_TYPES

_FILE_HEADER, _PACKET_HEADER = 24, 16  # of pcap, bytes


class CaptureError(Exception):
    """Why a capture cannot be read, or not any further; the text names the file."""


class Captured(NamedTuple):
    """``number`` counts from 1, ``time`` is in seconds since 1970, ``link_type`` as in :mod:`engines.decode.link`."""

    number: int
    time: float
    link_type: int
    data: bytes


def read_capture(path: Path) -> Iterator[Captured]:
    """The packets of ``path`` in order. Raises CaptureError before the first or behind the last readable one."""
    logging.getLogger("scapy").setLevel(logging.ERROR)  # before the import: it configures itself then
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    broken = (Scapy_Exception, struct.error, EOFError, ValueError, KeyError, IndexError, OverflowError)
    number = 0
    read = _FILE_HEADER
    try:
        size = path.stat().st_size
        with path.open("rb") as file:  # scapy would leave it open when it does not like the header
            reader = RawPcapReader(file)
            is_ng = isinstance(reader, RawPcapNgReader)
            while True:
                try:
                    data, meta = reader._read_packet()
                except EOFError:
                    break
                number += 1
                if is_ng:
                    link_type = meta.linktype
                    ticks = ((meta.tshigh or 0) << 32) + (meta.tslow or 0)
                    time = ticks / (meta.tsresol or 1_000_000)
                else:
                    link_type = reader.linktype
                    time = meta.sec + meta.usec / (1e9 if reader.nano else 1e6)
                    read += _PACKET_HEADER + meta.caplen
                    if len(data) < meta.caplen:
                        number -= 1  # a piece of a packet is none
                        break
                if link_type not in LINK_TYPES:
                    raise CaptureError(f"{path}: packet {number} has link type {link_type}, which is not supported")
                yield Captured(number, time, link_type, data)
            if not is_ng and read != size:
                raise CaptureError(f"{path}: cut off after packet {number}")
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror or error}") from None
    except broken as error:
        if number:
            raise CaptureError(f"{path}: damaged after packet {number}: {error}") from None
        raise CaptureError(f"{path}: not a pcap or pcapng file: {error}") from None

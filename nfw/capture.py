"""Reads capture files: pcap and pcapng, by scapy's readers, also compressed by gzip.

A damaged file gives every packet before the damage and then one :class:`CaptureError`. As with libpcap, a packet that
is cut off by the end of the file is none.
"""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from engines.decode.link import LINK_TYPES, RAW

MAX_PACKET = 262_144
"""Bytes; what claims to be larger is damage (libpcap: ``MAXIMUM_SNAPLEN``)."""
_MAX_READ = 64 * MAX_PACKET  # of a block of pcapng, which has more than a packet in it
_LATEST = 253_000_000_000.0  # seconds; a later time, in the year 9988, is damage, and no date can be made of it
_GZIP = b"\x1f\x8b"
_DLT_RAW = 12  # what libpcap calls RAW in memory; tcpdump.org/linktypes.html


class CaptureError(Exception):
    """Why a capture cannot be read, or not any further; the text names the file."""


class FilterError(Exception):
    """Why an expression is no filter."""


class Captured(NamedTuple):
    """``number`` counts from 1, ``time`` is in seconds since 1970, ``link_type`` as in :mod:`engines.decode.link`;
    ``wire``: bytes the packet had, 0: those of ``data``."""

    number: int
    time: float
    link_type: int
    data: bytes
    wire: int = 0


class _File:
    """What scapy reads from; knows whether the end came where a record begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._asked: list[tuple[int, int]] = [(0, 0), (0, 0)]  # asked for and got, of the last two reads

    def read(self, size: int = -1) -> bytes:
        """Raises OSError for what no sound file asks for, and where the compressed data is cut off or damaged."""
        if not 0 <= size <= _MAX_READ:
            raise OSError("a length in it is impossible")
        try:
            data = self._file.read(size)
        except (EOFError, zlib.error) as error:
            raise OSError(f"the compressed data is damaged: {error}") from None
        self._asked = [self._asked[1], (size, len(data))]
        return data

    @property
    def ended(self) -> bool:
        """There was less than was asked for."""
        asked, got = self._asked[1]
        return got < asked

    def ended_between(self, header: int) -> bool:
        """The file is over, and nothing of the next record's first ``header`` bytes is there. A block of pcapng ends
        with its length, so what was read before is 4 bytes, too."""
        before, last = self._asked
        return last == (header, 0) and (header != 4 or before == (4, 4))


def read_capture(path: Path) -> Iterator[Captured]:
    """The packets of ``path`` in order. Raises CaptureError before the first or behind the last readable one."""
    logging.getLogger("scapy").setLevel(logging.ERROR)  # before the import: it configures itself then
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    broken = (Scapy_Exception, struct.error, zlib.error, EOFError, ValueError, KeyError, IndexError, OverflowError)
    number = 0
    try:
        with path.open("rb") as raw:  # scapy would leave it open when it does not like the header
            magic = raw.peek(2)[:2]  # a pipe cannot be read twice
            if not magic:
                raise CaptureError(f"{path}: is empty; expected a pcap or pcapng file")
            file = _File(_unpacked(raw) if magic == _GZIP else raw)
            reader = RawPcapReader(file)
            is_ng = isinstance(reader, RawPcapNgReader)
            while True:
                try:
                    data, meta = reader._read_packet(MAX_PACKET)
                except EOFError:
                    break
                if is_ng:
                    link_type = meta.linktype
                    ticks = ((meta.tshigh or 0) << 32) + (meta.tslow or 0)
                    time = ticks / (meta.tsresol or 1_000_000)
                else:
                    link_type = reader.linktype
                    time = meta.sec + meta.usec / (1e9 if reader.nano else 1e6)
                    if len(data) < meta.caplen:
                        break  # a piece of a packet is none
                number += 1
                if link_type not in LINK_TYPES:
                    raise CaptureError(f"{path}: packet {number} has link type {link_type}, which is not supported")
                yield Captured(number, min(time, _LATEST), link_type, data, meta.wirelen or 0)
            if not file.ended_between(4 if is_ng else 16):
                raise CaptureError(f"{path}: {'cut off' if file.ended else 'damaged'} after packet {number}")
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror or error}") from None
    except broken as error:
        if number:
            raise CaptureError(f"{path}: damaged after packet {number}: {error}") from None
        raise CaptureError(f"{path}: not a pcap or pcapng file: {error}") from None


def not_twice(path: Path) -> None:
    """Raises CaptureError for what can only be read once, as pipes."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CaptureError(f"{path}: is not a regular file; expected one, as it is read twice")


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    unpacked = gzip.GzipFile(fileobj=raw)
    if unpacked.peek(2)[:2] == _GZIP:  # scapy would unpack that, too, and without end
        raise ValueError("it is compressed twice")
    return unpacked  # type: ignore[return-value] # all of it that is used


def filtered(packets: Iterable[Captured], expression: str) -> Iterator[Captured]:
    """The packets that a filter (``man pcap-filter``) lets through, numbered anew, as Suricata numbers them.

    Raises FilterError before the first.
    """
    try:
        import cypcap
    except ImportError:
        raise FilterError('filters need the Python package cypcap (pip install "nfw[filter]")') from None
    programs: dict[int, Any] = {}
    number = 0
    for packet in packets:
        program = programs.get(packet.link_type)
        if program is None:
            kind = _DLT_RAW if packet.link_type == RAW else packet.link_type
            try:
                program = cypcap.compile(kind, MAX_PACKET, expression, True, cypcap.NETMASK_UNKNOWN)
            except (cypcap.Error, ValueError) as error:
                raise FilterError(f"{expression!r} is no filter: {error.args[-1]}") from None
            programs[packet.link_type] = program
        header = cypcap.Pkthdr(caplen=len(packet.data), len=packet.wire or len(packet.data))
        if program.offline_filter(header, packet.data):
            number += 1
            yield packet._replace(number=number)

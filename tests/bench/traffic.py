"""Traffic that the rows on rules inspect. Seeded: the same in every run."""

from __future__ import annotations

import random
import string
import struct
from collections.abc import Iterator

from engines.verdict import Direction

# (direction, bytes of one TCP segment) in the order they were sent.
Conversation = list[tuple[Direction, bytes]]
# Payload of a full Ethernet frame with TCP timestamps.
SEGMENT = 1448
# Sizes of responses, log-normal: median 13 kB, mean 35 kB. A page has about 70 and 2.5 MB (HTTP Archive, 2024).
_MEDIAN_LOG, _SPREAD = 9.47, 1.4
_LARGEST = 1 << 20
_REQUEST = """\
GET {path} HTTP/1.1\r
Host: {host}\r
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r
Accept-Language: en-US,en;q=0.5\r
Accept-Encoding: gzip, deflate\r
Referer: http://{host}/\r
Cookie: session={session:032x}\r
Connection: keep-alive\r
\r
"""
_RESPONSE = """\
HTTP/1.1 200 OK\r
Date: Mon, 01 Sep 2025 10:00:00 GMT\r
Server: nginx\r
Content-Type: {kind}\r
Content-Length: {length}\r
Connection: keep-alive\r
\r
"""


def http_conversations(count: int = 150) -> list[Conversation]:
    """Connections of one to eight requests; half of the bodies are text, half look compressed. Full-sized segments."""
    chance = random.Random(5)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 11))) for _ in range(3000)]
    return [list(_connection(chance, words)) for _ in range(count)]


def _connection(chance: random.Random, words: list[str]) -> Iterator[tuple[Direction, bytes]]:
    host = f"www.{chance.choice(words)}.example"
    for _ in range(chance.randint(1, 8)):
        path = "/" + "/".join(chance.choices(words, k=chance.randint(1, 4)))
        path += chance.choice(["", ".html", ".js", ".css", ".png", f"?id={chance.randint(1, 9999)}&lang=en"])
        request = _REQUEST.format(path=path, host=host, session=chance.getrandbits(128))
        yield Direction.TO_SERVER, request.encode()
        size = min(int(chance.lognormvariate(_MEDIAN_LOG, _SPREAD)), _LARGEST)
        if chance.random() < 0.5:
            kind, body = "text/html", " ".join(chance.choices(words, k=size // 4)).encode()[:size]
        else:
            kind, body = "image/png", chance.randbytes(size)
        response = _RESPONSE.format(kind=kind, length=len(body)).encode() + body
        for at in range(0, len(response), SEGMENT):
            yield Direction.TO_CLIENT, response[at : at + SEGMENT]


class RawTcp:
    """The packets of one IPv4 TCP connection, without checksums: the pipeline leaves those to the kernel."""

    def __init__(self, port: int) -> None:
        self._client = (0x0A000001, 40000)
        self._server = (0x5DB8D822, port)
        self._next = [1000, 5000]

    def packet(self, direction: Direction, flags: int, payload: bytes = b"") -> bytes:
        """The next packet that way."""
        (source, sport), (destination, dport) = (
            (self._server, self._client) if direction else (self._client, self._server)
        )
        head = struct.pack("!BBHHHBBHII", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, source, destination)
        seq, ack = self._next[direction], self._next[1 - direction]
        tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, ack if flags & 0x10 else 0, 0x50, flags, 65535, 0, 0)
        self._next[direction] += len(payload) + bool(flags & 0x03)
        return head + tcp + payload

    def handshake(self) -> list[bytes]:
        """SYN, SYN and ACK, ACK."""
        return [
            self.packet(Direction.TO_SERVER, 0x02),
            self.packet(Direction.TO_CLIENT, 0x12),
            self.packet(Direction.TO_SERVER, 0x10),
        ]

    def idle(self, size: int, count: int, chance: random.Random) -> list[bytes]:
        """So many packets from each side in turn, of ``size`` random bytes."""
        sides = (Direction.TO_SERVER, Direction.TO_CLIENT)
        return [
            self.packet(side, 0x18 if size else 0x10, chance.randbytes(size)) for _ in range(count) for side in sides
        ]

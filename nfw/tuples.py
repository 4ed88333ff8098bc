"""One spelling of a 5-tuple that is the same for both directions, shared by supervisor and workers."""

from __future__ import annotations


def flow_tuple(protocol: int, src: bytes, sport: int, dst: bytes, dport: int) -> bytes:
    """``protocol``, then the two endpoints (packed address and port) in byte order."""
    one, two = src + sport.to_bytes(2, "big"), dst + dport.to_bytes(2, "big")
    return bytes([protocol]) + (one + two if one < two else two + one)

"""RSA keys that have a prime in common with another server's: whoever has both can compute both private keys.

Devices that make their key before they have gathered randomness do that (Heninger, Durumeric, Wustrow, Halderman,
"Mining Your Ps and Qs", 2012). The greatest common divisor of a modulus and the product of all others finds it.
"""

from __future__ import annotations

import math

_GENERATION = 128
"""Moduli in one product; two are kept. To compare a modulus of 2,048 bits with a full one takes 0.8 ms."""

_BITS_MAX = 4096  # of a modulus that is looked at


class Moduli:
    """The last 128 to 256 different ones."""

    __slots__ = ("_newer", "_older")

    def __init__(self) -> None:
        self._older, self._newer = _Generation(), _Generation()

    def share_a_prime(self, modulus: int) -> bool:
        """Whether one that was asked about before has a prime of ``modulus``, but is not the same; remembers it."""
        if modulus < 2 or modulus.bit_length() > _BITS_MAX:
            return False
        kept = self._older, self._newer
        found = any(math.gcd(one.product_of_others(modulus) % modulus, modulus) > 1 for one in kept)
        if all(modulus not in one.moduli for one in kept):
            if len(self._newer.moduli) == _GENERATION:
                self._older, self._newer = self._newer, _Generation()
            self._newer.add(modulus)
        return found


class _Generation:
    __slots__ = ("_product", "moduli")

    def __init__(self) -> None:
        self.moduli: set[int] = set()
        self._product = 1

    def add(self, modulus: int) -> None:
        self.moduli.add(modulus)
        self._product *= modulus

    def product_of_others(self, modulus: int) -> int:
        return self._product // modulus if modulus in self.moduli else self._product

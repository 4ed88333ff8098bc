"""Which moduli have a prime in common, and how many are remembered."""

from __future__ import annotations

import pytest

from engines.tls import commonprimes
from engines.tls.commonprimes import Moduli

P, Q, R, S = 1000003, 1000033, 1000037, 1000039


@pytest.mark.parametrize(
    ("moduli", "found"),
    [
        ((P * Q, R * S), (False, False)),
        ((P * Q, P * R), (False, True)),
        ((P * Q, R * S, Q * S), (False, False, True)),
        ((P * Q, P * Q, P * Q), (False, False, False)),
        ((P * Q, P * R, P * Q), (False, True, True)),
        ((P * Q, R * S, P * S, P * Q), (False, False, True, True)),
        ((P * R, Q * S, P * Q), (False, False, True)),  # both of its primes, in two others
        ((0, 1, 1, P * Q), (False, False, False, False)),
        ((1 << 4096, 1 << 4097), (False, False)),  # too long to be looked at
    ],
)
def test_a_prime_in_common(moduli: tuple[int, ...], found: tuple[bool, ...]) -> None:
    known = Moduli()
    assert tuple(known.share_a_prime(modulus) for modulus in moduli) == found


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commonprimes, "_GENERATION", 2)
    known = Moduli()
    assert not known.share_a_prime(P * Q)
    others = [(10**6 + 2 * number + 1) ** 2 for number in range(100, 104)]
    for count, other in enumerate(others):
        assert known.share_a_prime(P * R) is (count < 3), count
        known.share_a_prime(other)

"""A policy may be judged where its CA is not: in CI, on the machine it is written on.

Who explains what a policy does with a flow signs nothing. Within :func:`without_ca` a CA whose certificate is not there
is no error; another one stands in for it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_missing: ContextVar[list[Path] | None] = ContextVar("missing", default=None)


@contextmanager
def without_ca() -> Iterator[list[Path]]:
    """The certificates that were missed within."""
    missed: list[Path] = []
    token = _missing.set(missed)
    try:
        yield missed
    finally:
        _missing.reset(token)


def ca_instead_of(certificate: Path, now: float) -> bytes | None:
    """The certificate (PEM) of another CA, where that file is missing and need not be there. ``now``: Unix seconds."""
    missed = _missing.get()
    if missed is None or certificate.exists():
        return None
    from nfw.ca import stand_in  # loads OpenSSL

    if certificate not in missed:
        missed.append(certificate)
    return stand_in(datetime.datetime.fromtimestamp(now, datetime.UTC))

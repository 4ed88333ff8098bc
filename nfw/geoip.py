"""A country database (MaxMind DB) for rules with ``geoip``.

The file is copied into memory when it is read: it may be exchanged while rules use it, and the processes of a
generation share one copy. Databases of countries and of cities both do.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

from nfw.policy.files import read_bounded

MAX_BYTES = 1 << 30  # the largest database of cities is a tenth of that
REMEMBERED = 65_536  # addresses; each is looked up once as long as it is among them


class GeoIpError(ValueError):
    """Why a database cannot be used; the text names the file."""


def open_countries(path: Path) -> Callable[[bytes], str]:
    """What gives the country of a packed address: two letters, "" when the database has none.

    Raises :class:`GeoIpError`.
    """
    import maxminddb

    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise GeoIpError(f"{path} {error.strerror}") from None
    try:
        held = os.memfd_create("nfw-geoip", os.MFD_CLOEXEC)
        with open(held, "wb") as copy:
            copy.write(data)
            copy.flush()
            reader = maxminddb.open_database(f"/proc/self/fd/{held}")  # mapped, so it outlives the descriptor
    except (maxminddb.InvalidDatabaseError, ValueError):
        raise GeoIpError(f"{path} is no MaxMind database") from None
    except OSError as error:
        raise GeoIpError(f"{path} cannot be held in memory: {error.strerror or error}") from None
    mixed = reader.metadata().ip_version == 6

    @functools.lru_cache(REMEMBERED)
    def country(address: bytes) -> str:
        if len(address) != 4 and not (len(address) == 16 and mixed):
            return ""
        try:
            found = reader.get(ipaddress.ip_address(address))
        except (maxminddb.InvalidDatabaseError, ValueError):  # damaged just there
            return ""
        place = found.get("country") if isinstance(found, dict) else None
        code = place.get("iso_code") if isinstance(place, dict) else None
        return code if isinstance(code, str) else ""

    return country

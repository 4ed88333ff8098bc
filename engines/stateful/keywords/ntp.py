"""Conditions on NTP. Source: Suricata user guide, "NTP Keywords"."""

from __future__ import annotations

from engines.stateful.app.ntp import MODES
from engines.stateful.keywords.base import Keyword, Kind
from engines.stateful.keywords.integers import number

_PAGE = "ntp-keywords.html"
_MODES = {name: number for number, name in enumerate(MODES)}


KEYWORDS = [
    Keyword("ntp.version", "1 to 4", f"{_PAGE}#ntp-version", Kind.APP, number("ntp.version", 255)),
    Keyword("ntp.mode", "client, server and others", f"{_PAGE}#ntp-mode", Kind.APP, number("ntp.mode", 255, _MODES)),
    Keyword("ntp.stratum", "how far the clock is", f"{_PAGE}#ntp-stratum", Kind.APP, number("ntp.stratum", 255)),
]

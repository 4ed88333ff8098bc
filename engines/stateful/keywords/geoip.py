"""``geoip``: the country of an address. Source: Suricata user guide, "IP Keywords", geoip; of both families, as in AWS.

The countries come from a database that the owner of the rules has (:class:`engines.stateful.ruleconfig.RuleConfig`).
An address that is not in it matches nothing, also not what is negated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, required, split_list
from engines.stateful.keywords.draft import RuleDraft

_SIDES = frozenset({"src", "dst", "both", "any"})
_COUNTRY = re.compile(r"[A-Za-z]{2}\Z")
MAX_COUNTRIES = 64  # Suricata: GEOOPTION_MAXLOCATIONS


@dataclass(frozen=True, slots=True)
class Countries:
    """``side``: src, dst, both (each must match) or any."""

    country: Callable[[bytes], str]
    side: str
    codes: frozenset[str]
    negated: bool

    def covers(self, source: bytes, destination: bytes) -> bool:
        """Whether a packet with these packed addresses is meant."""
        match self.side:
            case "src":
                return self._is_meant(source)
            case "dst":
                return self._is_meant(destination)
            case "both":
                return self._is_meant(source) and self._is_meant(destination)
        return self._is_meant(source) or self._is_meant(destination)

    def _is_meant(self, address: bytes) -> bool:
        code = self.country(address)
        return bool(code) and (code in self.codes) != self.negated


def _geoip(draft: RuleDraft, value: str | None) -> None:
    draft.once("geoip")
    parts = [part.strip() for part in split_list(required(value, "src, dst, both or any, and countries").strip('"'))]
    side = parts.pop(0) if parts and parts[0] in _SIDES else "any"
    codes = [part.removeprefix("!").strip() for part in parts]
    if not codes:
        raise KeywordError("geoip: expected at least one country such as DE")
    if len(codes) > MAX_COUNTRIES:
        raise KeywordError(f"geoip: {len(codes)} countries, more than {MAX_COUNTRIES}")
    for code in codes:
        if not _COUNTRY.match(code):
            raise KeywordError(f"geoip: expected the two letters of a country, found {code!r}")
    negations = sum(part.startswith("!") for part in parts)
    if 0 < negations < len(parts):
        draft.warnings.append("geoip: one ! negates the whole list")
    draft.needs_packet.append("geoip")
    if draft.config.country is None:
        draft.never("geoip needs a database of countries, and none is configured")
        return
    names = frozenset(code.upper() for code in codes)
    draft.countries = Countries(draft.config.country, side, names, negations > 0).covers


KEYWORDS = [
    Keyword("geoip", "the country of an address", "header-keywords.html#geoip", Kind.PACKET, _geoip),
]

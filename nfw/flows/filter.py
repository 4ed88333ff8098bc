"""Which flows are meant: the filters of AWS's flow operations, and what nfw knows of a flow besides.

Source: AWS Network Firewall API, ``FlowFilter`` (SourceAddress, DestinationAddress, SourcePort, DestinationPort,
Protocols) and ``MinimumFlowAgeInSeconds``. Here every field may have several values: values of one field are ORed,
fields ANDed, and an empty field is any.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engines.address import Network, PortSet, PrefixSet, parse_prefix
from nfw.flows.record import VERDICTS, FlowRecord
from nfw.policy.values import parse_port_range, parse_protocol

MAX_VALUES = 100  # of a field; AWS: 20 filters


@dataclass(frozen=True)
class FlowFilter:
    """``names``: of TLS (SNI), in lower case, ``*`` is any text. ``tls``: terminated here or not; None: either.

    ``min_age`` in seconds; a flow whose age is not known is no older than any. Port ranges are inclusive.
    """

    sources: tuple[Network, ...] = ()
    destinations: tuple[Network, ...] = ()
    source_ports: tuple[tuple[int, int], ...] = ()
    destination_ports: tuple[tuple[int, int], ...] = ()
    protocols: tuple[int, ...] = ()
    min_age: float = 0.0
    apps: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    tls: bool | None = None

    def __bool__(self) -> bool:
        """Anything is asked for."""
        return self != FlowFilter()

    def matches(self, record: FlowRecord) -> bool:
        """Whether the flow is one of those meant."""
        if self.protocols and record.protocol not in self.protocols:
            return False
        if self.verdicts and record.verdict not in self.verdicts:
            return False
        if self.tls is not None and record.tls_scope is not self.tls:
            return False
        if self.min_age and (record.age is None or record.age < self.min_age):
            return False
        if self.apps and record.app_proto not in self.apps:
            return False
        if self.destination_ports and not self._destination_ports.contains(record.server_port):
            return False
        if self.source_ports and not self._source_ports.contains(record.client_port):
            return False
        if self.sources and not self._sources.contains(record.client):
            return False
        if self.destinations and not self._destinations.contains(record.server):
            return False
        return not self.names or any(name.match(record.name.lower()) for name in self._names)

    @cached_property
    def _sources(self) -> PrefixSet:
        return PrefixSet(self.sources)

    @cached_property
    def _destinations(self) -> PrefixSet:
        return PrefixSet(self.destinations)

    @cached_property
    def _source_ports(self) -> PortSet:
        return PortSet(self.source_ports)

    @cached_property
    def _destination_ports(self) -> PortSet:
        return PortSet(self.destination_ports)

    @cached_property
    def _names(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(fnmatch.translate(name)) for name in self.names)

    def to_plain(self) -> dict[str, Any]:
        """Texts and numbers only, for :meth:`from_plain`; fields that ask for nothing are left out."""
        plain: dict[str, Any] = {
            "sources": [str(network) for network in self.sources],
            "destinations": [str(network) for network in self.destinations],
            "source_ports": [f"{low}-{high}" for low, high in self.source_ports],
            "destination_ports": [f"{low}-{high}" for low, high in self.destination_ports],
            "protocols": list(self.protocols),
            "min_age": self.min_age,
            "apps": list(self.apps),
            "names": list(self.names),
            "verdicts": list(self.verdicts),
        }
        if self.tls is not None:
            plain["tls"] = self.tls
        return {key: value for key, value in plain.items() if value or key == "tls"}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> FlowFilter:
        """Raises ValueError, whose arguments say everything that is wrong, one sentence each."""
        errors: list[str] = []

        def items(name: str) -> Sequence[Any]:
            value = plain.get(name, ())
            if not isinstance(value, (list, tuple)):
                errors.append(f"{name}: expected a list")
                return ()
            if len(value) > MAX_VALUES:
                errors.append(f"{name}: {len(value)} values are more than the {MAX_VALUES} a filter may have")
                return ()
            return value

        def parsed(name: str, parse: Any) -> tuple[Any, ...]:
            found = []
            for item in items(name):
                try:
                    found.append(parse(item))
                except ValueError as error:
                    errors.append(f"{name}: {error}")
            return tuple(found)

        unknown = set(plain) - set(cls.__dataclass_fields__)
        errors += [f"unknown field {name!r} of a flow filter" for name in sorted(map(str, unknown))]
        age, tls = plain.get("min_age", 0.0), plain.get("tls")
        if isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 <= age < 1e9:
            errors.append(f"min_age: expected seconds, not {age!r}")
        if tls not in (None, True, False):
            errors.append(f"tls: expected true or false, not {tls!r}")
        made = {
            "sources": parsed("sources", lambda item: parse_prefix(str(item), strict=False)),
            "destinations": parsed("destinations", lambda item: parse_prefix(str(item), strict=False)),
            "source_ports": parsed("source_ports", parse_port_range),
            "destination_ports": parsed("destination_ports", parse_port_range),
            "protocols": parsed("protocols", parse_protocol),
            "apps": parsed("apps", lambda item: str(item).lower()),
            "names": parsed("names", lambda item: str(item).lower().rstrip(".")),
            "verdicts": parsed("verdicts", _verdict),
        }
        if errors:
            raise ValueError(*errors)
        return cls(**made, min_age=float(age), tls=tls)


def _verdict(item: Any) -> str:
    if item not in VERDICTS:
        raise ValueError(f"{item!r} is none of {', '.join(VERDICTS)}")
    return str(item)

"""What the two sides of a flow speak: protocol detection, the layers of protocols found, and their parsers.

A flow begins with a detector and no layer. When detection has an answer there is a layer, with a parser if a rule or
the log asks for one; where another protocol begins inside it (CONNECT, Upgrade, STARTTLS) there is another layer on
top. The bytes that come go to the detector or to the top layer's parser.
"""

from __future__ import annotations

from collections.abc import Iterable

from engines.stateful.app import AppParser, Transaction
from engines.stateful.app.detect import FAILED, Detector, recognised
from engines.stateful.app.registry import PARSERS, UDP_PARSERS
from engines.stateful.expect import Expected
from engines.stateful.layer import Layer
from engines.stateful.ruleset import RuleSet, covered_protocols
from engines.stateful.segment import BOTH, FlowFacts
from engines.stateful.signature import AppProtocolTest
from engines.verdict import Direction

_TCP = 6
_UDP = 17
_TO_SERVER = Direction.TO_SERVER
_TO_CLIENT = Direction.TO_CLIENT
# Protocols another one may start inside of (CONNECT, Upgrade, STARTTLS) or be found in (DNS): parsed even if rules ask
# only for the name of what a flow speaks.
_CARRIERS = frozenset({"http", "http2", "smtp", "ftp"})
# Protocols whose client names the server it wants.
_NAMING = frozenset({"tls", "quic"})
# The key of the EVE object for a protocol whose name differs from it.
_LOG_KEYS = {"http2": "http", "doh2": "http", "http1": "http", "mdns": "dns", "llmnr": "dns"}


def log_key(protocol: str) -> str:
    """The key of the EVE object a transaction of ``protocol`` is logged under."""
    return _LOG_KEYS.get(protocol, protocol)


class Conversation:
    """One per flow; lists have one entry per direction.

    ``protocols``: the names rules may ask for. ``named``: the rules that ask only for the protocol were judged.
    ``early``: bytes before detection had an answer. ``transactions``: (EVE object's name, transaction id, fields) of
    what is to be logged; whoever takes them empties the list. ``server_name``: SNI, if the protocol was parsed.
    """

    __slots__ = (
        "_facts",
        "_first",
        "_original",
        "_other_side",
        "_outer",
        "_pd_rules",
        "_ruleset",
        "_spoken",
        "_unseen",
        "app_proto",
        "detector",
        "early",
        "inside",
        "layers",
        "named",
        "protocols",
        "server_name",
        "transactions",
    )

    def __init__(self, ruleset: RuleSet, facts: FlowFacts) -> None:
        self._ruleset = ruleset
        self._facts = facts
        self._pd_rules = bool(ruleset.packet_group(facts.protocol).pd_only)
        self.app_proto = ""  # of the bytes: on a decrypted flow what TLS carries
        self.protocols: frozenset[str] = frozenset()
        self.detector = _detector(facts)
        self.early = (bytearray(), bytearray())
        self.layers: list[Layer] = []
        self.inside: Layer | None = None  # a protocol on streams of the top layer's
        self.named = [False, False]
        self.server_name = ""
        self.transactions: list[tuple[str, int, dict[str, object]]] = []
        self._outer: Transaction | None = None  # the exchange after which that was
        self._original = ""  # what it was before another protocol began inside it
        self._spoken = ["", ""]  # what the bytes of each side say, where rules ask
        self._other_side: Detector | None = None
        self._first = _TO_SERVER  # who spoke first
        self._unseen = False  # how it began, so that nothing says what it is, or is not

    # -- bytes in --------------------------------------------------------------------------------------------------

    def feed(self, direction: Direction, data: bytes, now: float) -> None:
        """The next bytes of a direction, in order."""
        if self.detector is not None:
            self._detect(direction, data, now)
            return
        if self._other_side is not None:
            self._listen(direction, data)
        layer = self.layers[-1] if self.layers else None
        if layer is not None and layer.parser is not None and not layer.parser.tunnel:
            self._parse(layer, direction, data, now)

    def name_only(self, direction: Direction, data: bytes) -> None:
        """The next bytes of a flow that nobody looks into: only the protocol's name is of interest."""
        if self.detector is None or self.app_proto:
            return
        name = self.detector.feed(direction, data)
        if name is not None:
            self.detector = None
            self.app_proto = "" if name == FAILED else name

    def gap(self, direction: Direction) -> None:
        """Bytes are missing: detection and most parsers cannot go on behind them."""
        if self.detector is not None:
            self._detection_failed()
        for layer in self.layers:
            if layer.parser is not None and not layer.parser.finished:
                layer.parser.close(direction)

    def close(self, direction: Direction) -> None:
        """That direction has ended."""
        for layer in self.layers:
            if layer.parser is not None:
                layer.parser.close(direction)
        if self.detector is not None and self.detector.close(direction) == FAILED:
            self._detection_failed()

    def began_unseen(self) -> None:
        """The flow is taken up in its middle: what it speaks stays unknown."""
        self.detector = None
        self._unseen = True
        self.named[:] = (True, True)

    def forget(self, *, detect_on: bool) -> None:
        """Nothing is looked at again: let go of what was kept for that. ``detect_on``: the protocol's name is still
        wanted."""
        if not detect_on:
            self.detector = None
        self.log_rest()
        self.layers.clear()
        self.inside = None
        self.early = (bytearray(), bytearray())

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def top(self) -> Layer | None:
        """The layer the bytes belong to."""
        return self.layers[-1] if self.layers else None

    @property
    def unrecognised(self) -> bool:
        """Detection has come to an end without a name; of datagrams that of one side is enough."""
        if self.app_proto or self._facts.protocol not in (_TCP, _UDP):
            return False
        if self._facts.protocol == _TCP:
            return self.detector is None
        return self._final(_TO_SERVER) or self._final(_TO_CLIENT)

    def complete(self, direction: Direction) -> int:
        """Grows with every transaction of the top layer whose side is complete."""
        layer = self.top
        if layer is None or layer.parser is None:
            return 0
        return sum(tx.id + 1 for tx in layer.parser.transactions if tx.is_complete(direction))

    def pending(self, direction: Direction) -> bool:
        """A transaction has something of that side that was not judged."""
        return any(layer.pending(direction) for layer in self.layers)

    def parsing(self) -> bool:
        """Bytes to come may still become transactions."""
        for layer in self.layers:
            parser = layer.parser
            if parser is not None and not (parser.finished or parser.gave_up or parser.tunnel):
                return True
        return False

    def spoken_by(self, direction: Direction) -> str:
        """What that side's own bytes have said so far; "" when it is not known. Only where rules ask for sides."""
        return self._spoken[direction]

    def side_final(self, direction: Direction) -> bool:
        """What that side itself speaks will not change any more."""
        if self.detector is not None or self._other_side is None:
            return self._final(direction)
        return bool(self._spoken[direction])

    def _final(self, direction: Direction) -> bool:
        """Nothing that direction may say changes the protocol any more."""
        return not self._unseen and (self.detector is None or self.detector.final_for(direction))

    def speaks(self, asked: AppProtocolTest, direction: Direction) -> bool:
        """``app-layer-protocol``. What a flow is not is known when detection has come to an end."""
        mode = asked.mode
        known: Iterable[str] = self.protocols
        final = self._final(direction)
        if mode == "original":
            known = (self._original,)
        elif mode == "either":
            known, final = self._spoken, self.side_final(_TO_SERVER) and self.side_final(_TO_CLIENT)
        elif mode in {"to_server", "to_client"}:
            side = _TO_CLIENT if mode == "to_client" else _TO_SERVER
            known, final = (self._spoken[side],), self.side_final(side)
        for name in asked.names:
            if name in {"failed", "unknown"}:
                found = final and not any(known)
            else:
                found = not (frozenset({name}) if mode == "exact" else covered_protocols(name)).isdisjoint(known)
            if found:
                return not asked.negated
        return asked.negated and final

    # -- the log ---------------------------------------------------------------------------------------------------

    def log_rest(self) -> None:
        """The flow has ended: whatever was not logged is in ``transactions`` now."""
        for layer in self.layers:
            layer.log_rest()

    def _log(self, name: str, tx: Transaction) -> None:
        if tx.tells and len(self.transactions) < self._ruleset.limits.max_transactions:
            self.transactions.append((log_key(name), tx.id, tx.log_fields()))

    # -- detection -------------------------------------------------------------------------------------------------

    def _detect(self, direction: Direction, data: bytes, now: float) -> None:
        assert self.detector is not None
        early = self.early[direction]
        if self._facts.protocol == _UDP:
            early.clear()  # every datagram is a message of its own
        if not early and not self.early[direction.reply]:
            self._first = direction
        early += data
        expected = self._announced(now)
        if expected is not None:
            self._protocol_known(expected.protocol, now, expected=expected)
            return
        name = self.detector.feed(direction, data)
        if name == FAILED:
            self._detection_failed()
        elif name is not None:
            self._protocol_known(name, now, direction)
        elif len(early) >= self._ruleset.limits.detect_bytes:
            self._detection_failed()

    def _announced(self, now: float) -> Expected | None:
        """What another flow said this one would be."""
        expectations, facts = self._ruleset.expectations, self._facts
        if not expectations or facts.protocol != _TCP:
            return None
        return expectations.take(facts.client, facts.server, facts.server_port, now)

    def _detection_failed(self) -> None:
        self.detector = None
        for early in self.early:
            early.clear()

    def _protocol_known(
        self, name: str, now: float, by: Direction | None = None, expected: Expected | None = None
    ) -> None:
        """``by``: the side whose bytes told; None: both have agreed on it."""
        ruleset, facts = self._ruleset, self._facts
        self.detector = None
        self._spoken = [name, name] if by is None else [name if side is by else "" for side in BOTH]
        if by is not None and (ruleset.needs_sides or self._pd_rules):
            self._other_side = _detector(facts)
            self._listen(by.reply, bytes(self.early[by.reply]))
        self.app_proto = name
        self.protocols |= {name}
        group = ruleset.app_group(name)
        make = ruleset.own_parsers.get(name) or (UDP_PARSERS if facts.protocol == _UDP else PARSERS).get(name)
        if name in ruleset.limits.app.detection_only:
            make = None
        wanted = group.has_transactions or (name in _CARRIERS and ruleset.needs_protocol) or ruleset.parses_all
        logs = self._logs(name)
        # In a capture every protocol is parsed: raw stream rules wait for complete messages (Suricata: raw reassembly).
        parsed = make is not None and (wanted or logs or ruleset.limits.app.lines_alone)
        parser = make(ruleset.limits.app, group.body_denies) if parsed and make is not None else None
        if parser is not None:
            if parser.inside is not None:
                parser.inside.wanted = self._judges(parser.inside.name) or self._logs(parser.inside.name)
            parser.begin(facts.client, facts.server, expected)
            if self._outer is not None:
                parser.follow(self._outer)
        layer = Layer(name, group, ruleset.rules, parser)
        layer.log_only = not wanted
        if logs:
            layer.log = self._log
        self.layers.append(layer)
        for side in (self._first, self._first.reply):
            early = bytes(self.early[side])
            self.early[side].clear()
            if early and parser is not None:
                self._parse(layer, side, early, now)

    def _judges(self, name: str) -> bool:
        return self._ruleset.app_group(name).has_transactions

    def _logs(self, name: str) -> bool:
        return name in self._ruleset.logs or log_key(name) in self._ruleset.logs

    def _begins_inside(self, parser: AppParser) -> None:
        """The first stream of another protocol."""
        name = parser.name
        self.inside = Layer(name, self._ruleset.app_group(name), self._ruleset.rules, parser)
        if self._logs(name):
            self.inside.log, self.inside.log_only = self._log, not self._judges(name)
        self.layers.insert(len(self.layers) - 1, self.inside)
        self.protocols |= {name}
        self.named[:] = (False, False)

    def _listen(self, direction: Direction, data: bytes) -> None:
        """What the side speaks that has not told what the flow is."""
        if self._other_side is None or self._spoken[direction] or not data:
            return
        name = self._other_side.feed(direction, data)
        if name is None and not self._other_side.final_for(direction):
            return
        failed = name is None or name == FAILED
        self._spoken[direction] = self.app_proto if failed or name is None else name
        self._other_side = None
        if failed and self.app_proto in recognised(direction, self._facts.protocol == _UDP):
            # Nothing was found out about this side, so there is nothing to judge (Suricata: only one direction).
            self.named[direction] = True

    # -- parsing ---------------------------------------------------------------------------------------------------

    def _parse(self, layer: Layer, direction: Direction, data: bytes, now: float) -> None:
        parser = layer.parser
        assert parser is not None
        parser.feed(direction, data)
        if parser.name != layer.name:
            self._renamed(layer, parser.name)
        if self.inside is None and parser.inside is not None and parser.inside.wanted and parser.inside.begun:
            self._begins_inside(parser.inside)
        if not self.server_name and layer.name in _NAMING and parser.transactions:
            names = parser.transactions[0].buffer("tls.sni", _TO_SERVER)
            self.server_name = names[0].decode("ascii", "backslashreplace") if names else ""
        if parser.expects:
            for expected in parser.expects:
                self._ruleset.expectations.add(self._facts.client, self._facts.server, expected, now)
            parser.expects.clear()
        if parser.tunnel and not layer.log_only:
            # CONNECT or Upgrade: another protocol starts inside the connection.
            self._original = layer.name
            self._outer = parser.transactions[-1] if parser.transactions else None
            self.named[:] = (False, False)
            if parser.carries:
                self._protocol_known(parser.carries, now)
            else:
                self.detector = Detector()
            for side in BOTH:
                rest = parser.unparsed(side)
                if rest:
                    self.feed(side, rest, now)

    def _renamed(self, layer: Layer, name: str) -> None:
        """The layer's protocol turned out to carry another one."""
        self.protocols = self.protocols - {layer.name} | {name}
        self.app_proto = name
        layer.rename(name, self._ruleset.app_group(name))
        if self._other_side is not None:
            # Both sides have it from here on, so the other one's bytes are asked no more (as in Suricata).
            self._other_side = None
            for side in BOTH:
                self.named[side] = self.named[side] or not self._spoken[side]
        self._spoken = [name, name]


def _detector(facts: FlowFacts) -> Detector | None:
    if facts.protocol == _TCP:
        return Detector("tcp", facts.server_port)
    return Detector("udp", facts.server_port) if facts.protocol == _UDP else None

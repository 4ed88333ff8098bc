"""engines.stateless: one row, one rule list, one packet, one outcome; and the compiled filter against a plain loop."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest

from engines.packet import Packet, decode
from engines.stateless import filter as module
from engines.stateless.explain import misfit
from engines.stateless.filter import StatelessFilter
from engines.stateless.rule import StatelessAction, StatelessRule, TcpFlagsMatch

PASS, DROP, FORWARD = StatelessAction.PASS, StatelessAction.DROP, StatelessAction.FORWARD
SYN, ACK, FIN, RST = 2, 16, 1, 4


def packet(
    src: str = "10.0.0.1",
    dst: str = "192.0.2.1",
    protocol: int = 6,
    sport: int = 1000,
    dport: int = 80,
    flags: int = SYN,
    fragment: int = 0,
) -> Packet:
    if protocol == 6:
        body = struct.pack("!HHIIBBHI", sport, dport, 0, 0, 0x50, flags, 0, 0)
    elif protocol == 17:
        body = struct.pack("!HHHH", sport, dport, 8, 0)
    else:
        body = bytes([8]) + bytes(19)
    a, b = ip_address(src).packed, ip_address(dst).packed
    if len(a) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, protocol, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return decode(head + a + b + body)


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


def rule(priority: int = 10, action: StatelessAction = DROP, **fields: Any) -> StatelessRule:
    for name in ("sources", "destinations"):
        if name in fields:
            fields[name] = nets(*fields[name])
    return StatelessRule(priority, action, **fields)


def match_slow(rules: list[StatelessRule], packet: Packet) -> StatelessRule | None:
    """The twin: the rules one after the other, each field asked in words."""
    for candidate in sorted(rules, key=lambda each: each.priority):
        readable = packet.problem is None
        has_ports = readable and packet.protocol in (6, 17)
        if candidate.protocols and packet.protocol not in candidate.protocols:
            continue
        if candidate.sources and not within(packet.src, candidate.sources):
            continue
        if candidate.destinations and not within(packet.dst, candidate.destinations):
            continue
        for ranges, port in (
            (candidate.source_ports, packet.sport),
            (candidate.destination_ports, packet.dport),
        ):
            if ranges and not (has_ports and any(low <= port <= high for low, high in ranges)):
                break
        else:
            if not candidate.tcp_flags:
                return candidate
            if readable and packet.protocol == 6 and any(m.matches(packet.tcp_flags) for m in candidate.tcp_flags):
                return candidate
    return None


def within(address: bytes, networks: tuple[Any, ...]) -> bool:
    return bool(address) and any(ip_address(address) in network for network in networks)


# Each row: the fields of one drop rule, a packet, whether the rule matches it.
ROWS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # no attribute at all: anything
    ({}, {}, True),
    ({}, {"protocol": 50}, True),
    ({}, {"src": "fd00::1", "dst": "fd00::2", "protocol": 58}, True),
    # protocols: OR
    ({"protocols": (6,)}, {}, True),
    ({"protocols": (6, 17)}, {"protocol": 17}, True),
    ({"protocols": (6,)}, {"protocol": 17}, False),
    ({"protocols": (0, 255)}, {"protocol": 255}, True),
    # sources and destinations: OR within, AND between
    ({"sources": ["10.0.0.0/8"]}, {}, True),
    ({"sources": ["10.0.0.0/8"]}, {"src": "11.0.0.0"}, False),
    ({"sources": ["10.0.0.0/8"]}, {"src": "9.255.255.255"}, False),
    ({"sources": ["11.0.0.0/8", "10.0.0.1/32"]}, {}, True),
    ({"sources": ["10.0.0.0/8"], "destinations": ["192.0.2.0/24"]}, {}, True),
    ({"sources": ["10.0.0.0/8"], "destinations": ["192.0.3.0/24"]}, {}, False),
    ({"destinations": ["0.0.0.0/0"]}, {"dst": "255.255.255.255"}, True),
    ({"destinations": ["255.255.255.255/32"]}, {"dst": "255.255.255.255"}, True),
    # address families do not mix
    ({"sources": ["0.0.0.0/0"]}, {"src": "fd00::1", "dst": "fd00::2"}, False),
    ({"sources": ["::/0"]}, {}, False),
    ({"sources": ["::/0"]}, {"src": "fd00::1", "dst": "fd00::2"}, True),
    ({"sources": ["10.0.0.0/8", "fd00::/8"]}, {"src": "fd00::1", "dst": "fd00::2"}, True),
    ({"sources": ["10.0.0.0/8"], "destinations": ["fd00::/8"]}, {}, False),
    ({"sources": ["::ffff:0:0/96"]}, {}, False),
    # ports: TCP and UDP only
    ({"destination_ports": ((80, 80),)}, {}, True),
    ({"destination_ports": ((80, 80),)}, {"protocol": 17}, True),
    ({"destination_ports": ((80, 80),)}, {"dport": 81}, False),
    ({"destination_ports": ((1, 79), (81, 90))}, {}, False),
    ({"destination_ports": ((1, 79), (80, 90))}, {"dport": 90}, True),
    ({"source_ports": ((1000, 1000),), "destination_ports": ((80, 80),)}, {}, True),
    ({"source_ports": ((1001, 1001),), "destination_ports": ((80, 80),)}, {}, False),
    ({"destination_ports": ((0, 65535),)}, {"protocol": 1}, False),
    ({"source_ports": ((0, 65535),)}, {"protocol": 1}, False),
    ({"destination_ports": ((0, 0), (65535, 65535))}, {"dport": 0}, True),
    ({"destination_ports": ((0, 0), (65535, 65535))}, {"dport": 65535}, True),
    ({"protocols": (1,), "destination_ports": ((0, 65535),)}, {"protocol": 1}, False),
    # TCP flags: within the masks these and no others
    ({"tcp_flags": (TcpFlagsMatch(SYN, SYN | ACK),)}, {"flags": SYN}, True),
    ({"tcp_flags": (TcpFlagsMatch(SYN, SYN | ACK),)}, {"flags": SYN | ACK}, False),
    ({"tcp_flags": (TcpFlagsMatch(SYN, SYN | ACK),)}, {"flags": SYN | FIN}, True),
    ({"tcp_flags": (TcpFlagsMatch(SYN),)}, {"flags": SYN | FIN}, False),
    ({"tcp_flags": (TcpFlagsMatch(SYN),)}, {"flags": SYN}, True),
    ({"tcp_flags": (TcpFlagsMatch(0, SYN),)}, {"flags": ACK}, True),
    ({"tcp_flags": (TcpFlagsMatch(SYN), TcpFlagsMatch(RST))}, {"flags": RST}, True),
    ({"tcp_flags": (TcpFlagsMatch(SYN),)}, {"protocol": 17}, False),
    ({"tcp_flags": (TcpFlagsMatch(0, SYN),)}, {"protocol": 1}, False),
]


@pytest.mark.parametrize(("fields", "header", "matches"), ROWS)
def test_one_rule_one_packet(fields: dict[str, Any], header: dict[str, Any], matches: bool) -> None:
    one = rule(**fields)
    subject = packet(**header)
    engine = StatelessFilter([one], FORWARD)
    for _ in range(2):  # the second time from the memo
        found = engine.match(subject)
        assert (found.action, found.rule) == ((DROP, one) if matches else (FORWARD, None))
    assert (engine.hits, engine.default_hits) == (([2], 0) if matches else ([0], 2))
    assert (match_slow([one], subject) is one) == matches
    assert (misfit(one, subject) == "") == matches


def test_the_lowest_priority_number_decides() -> None:
    rules = [
        rule(30, PASS, protocols=(6,)),
        rule(10, DROP, destinations=["192.0.2.0/24"], destination_ports=((23, 23),)),
        rule(20, FORWARD, destinations=["192.0.2.0/24"]),
    ]
    engine = StatelessFilter(rules, DROP)
    assert [each.priority for each in engine.rules] == [10, 20, 30]
    assert engine.match(packet(dport=23)).action is DROP
    assert engine.match(packet(dport=24)).action is FORWARD
    assert engine.match(packet(dst="198.51.100.1")).action is PASS
    assert engine.match(packet(dst="198.51.100.1", protocol=17)).reason == "default"
    assert (engine.hits, engine.default_hits) == ([1, 1, 1], 1)


def test_equal_priorities_keep_their_order() -> None:
    first, second = rule(10, PASS), rule(10, DROP)
    assert StatelessFilter([first, second], FORWARD).match(packet()).rule is first


def test_no_rules() -> None:
    engine = StatelessFilter([], PASS)
    assert engine.match(packet()).action is PASS
    assert engine.match(decode(b"")).action is PASS
    assert engine.default_hits == 2


def test_named_counters() -> None:
    rules = [
        rule(1, DROP, destination_ports=((23, 23),), counters=("telnet", "seen")),
        rule(2, PASS, destination_ports=((80, 80),), counters=("seen",)),
        rule(3, PASS, destination_ports=((81, 81),)),
    ]
    engine = StatelessFilter(rules, FORWARD, ("rest",), fragments=PASS, fragments_counters=("pieces", "seen"))
    assert engine.counters == {"telnet": 0, "seen": 0, "rest": 0, "pieces": 0}
    for port in (23, 80, 80, 81, 82):
        engine.match(packet(dport=port))
    assert engine.match(packet(dport=23)).counters == ("telnet", "seen")
    engine.match(packet(protocol=17, fragment=9))
    assert engine.counters == {"telnet": 2, "seen": 5, "rest": 1, "pieces": 1}
    assert engine.match(packet(dport=9)).counters == ("rest",)


def test_fragments_meet_no_rule() -> None:
    """AWS: the fragment default is for UDP; fragments of all other protocols are dropped."""
    engine = StatelessFilter([rule(1, PASS)], PASS, fragments=FORWARD)
    udp = engine.match(packet(protocol=17, fragment=9))
    tcp = engine.match(packet(protocol=6, fragment=0x2000))
    assert (udp.action, udp.reason, udp.rule) == (FORWARD, "fragment_default", None)
    assert (tcp.action, tcp.reason, tcp.rule) == (DROP, "fragment", None)
    assert engine.counts.hits == [0, 1, 1, 0]
    assert engine.action_of_reply(packet(protocol=17, fragment=9)) is FORWARD
    assert engine.action_of_reply(packet(protocol=1, fragment=9)) is DROP


def test_a_packet_that_cannot_be_read_meets_no_rule_that_needs_what_is_missing() -> None:
    cut = decode(packet().data[:-1])
    assert cut.problem is not None
    assert StatelessFilter([rule(sources=["10.0.0.0/8"], protocols=(6,))], PASS).match(cut).action is DROP
    assert StatelessFilter([rule(destination_ports=((0, 65535),))], PASS).match(cut).action is PASS
    assert StatelessFilter([rule(tcp_flags=(TcpFlagsMatch(0, 1),))], PASS).match(cut).action is PASS
    assert StatelessFilter([rule(sources=["0.0.0.0/0", "::/0"])], PASS).match(decode(b"")).action is PASS


def test_action_of_reply() -> None:
    engine = StatelessFilter([rule(1, PASS, sources=["192.0.2.0/24"], source_ports=((80, 80),))], DROP)
    assert engine.match(packet()).action is DROP
    assert engine.action_of_reply(packet()) is PASS
    assert engine.action_of_reply(packet(dport=81)) is DROP
    assert (engine.hits, engine.default_hits) == ([0], 1)  # it counts nothing


def test_tcp_and_udp_with_equal_ports_are_remembered_apart() -> None:
    engine = StatelessFilter([rule(1, DROP, protocols=(17,)), rule(2, PASS, tcp_flags=(TcpFlagsMatch(SYN),))], FORWARD)
    for _ in range(2):
        assert engine.match(packet(protocol=17)).action is DROP
        assert engine.match(packet(flags=SYN)).action is PASS
        assert engine.match(packet(flags=ACK)).action is FORWARD


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMO_LIMIT", 10)
    engine = StatelessFilter([rule(1, DROP, destination_ports=((0, 99),), tcp_flags=(TcpFlagsMatch(SYN),))], PASS)
    for port in range(200):
        for flags in (SYN, ACK):
            expected = DROP if port < 100 and flags == SYN else PASS
            assert engine.match(packet(dport=port, flags=flags)).action is expected
            assert sum(len(memo) for memo in engine._memos) <= 10


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_slow_twin(seed: int) -> None:
    rng = random.Random(seed)
    rules = [random_rule(rng, priority) for priority in rng.sample(range(1, 65536), rng.choice([1, 3, 20, 70]))]
    default = rng.choice(list(StatelessAction))
    engine = StatelessFilter(rules, default)
    total = 0
    for _ in range(150):
        subject = random_packet(rng)
        slow = match_slow(rules, subject)
        assert next((each for each in engine.rules if not misfit(each, subject)), None) is slow
        for _ in range(rng.choice([1, 2])):
            found = engine.match(subject)
            total += 1
            assert found.rule is slow, (str(subject), str(slow))
        back = packet(
            str(ip_address(subject.dst)),
            str(ip_address(subject.src)),
            subject.protocol,
            subject.dport,
            subject.sport,
            subject.tcp_flags,
        )
        reply = match_slow(rules, back)
        assert engine.action_of_reply(subject) is (default if reply is None else reply.action)
    assert sum(engine.hits) + engine.default_hits == total


# Few values, close together, so that prefixes nest, ranges touch, and packets fall on every edge.
ADDRESSES4 = ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.0", "10.255.255.255", "0.0.0.0", "255.255.255.255"]
ADDRESSES6 = ["::", "::1", "2001:db8::", "2001:db8::1", "2001:db8:ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
PORTS = [0, 1, 79, 80, 81, 443, 65534, 65535]


def random_network(rng: random.Random) -> IPv4Network | IPv6Network:
    if rng.random() < 0.6:
        return IPv4Network((rng.choice(ADDRESSES4), rng.choice([0, 1, 8, 23, 24, 31, 32])), strict=False)
    return IPv6Network((rng.choice(ADDRESSES6), rng.choice([0, 1, 32, 48, 127, 128])), strict=False)


def random_rule(rng: random.Random, priority: int) -> StatelessRule:
    def some(make: Any) -> tuple[Any, ...]:
        return tuple(make() for _ in range(rng.choice([0, 0, 0, 1, 2, 4])))

    def ports() -> tuple[int, int]:
        low, high = sorted(rng.choices(PORTS, k=2))
        return low, high

    def flags() -> TcpFlagsMatch:
        masks = rng.choice([0xFF, SYN | ACK, SYN, rng.randrange(256)])
        return TcpFlagsMatch(rng.randrange(256) & masks, masks)

    return StatelessRule(
        priority,
        rng.choice(list(StatelessAction)),
        protocols=some(lambda: rng.choice([1, 6, 17, 58, 47])),
        sources=some(lambda: random_network(rng)),
        destinations=some(lambda: random_network(rng)),
        source_ports=some(ports),
        destination_ports=some(ports),
        tcp_flags=some(flags) if rng.random() < 0.4 else (),
    )


def random_packet(rng: random.Random) -> Packet:
    addresses = rng.choice([ADDRESSES4, ADDRESSES6])
    protocol = rng.choice([6, 6, 6, 17, 17, 1, 58, 47])
    return packet(
        rng.choice(addresses),
        rng.choice(addresses),
        protocol,
        rng.choice(PORTS),
        rng.choice(PORTS),
        rng.choice([SYN, SYN | ACK, ACK, rng.randrange(256)]) if protocol == 6 else 0,
    )


def test_ten_thousand_rules_stay_small() -> None:
    """Ten thousand rules, each with its own prefix: equal integers are shared and memory stays in the tens of MB."""
    rules = [rule(i + 1, destinations=[f"10.{i >> 8}.{i & 255}.0/24"], protocols=(6,)) for i in range(10_000)]
    engine = StatelessFilter(rules, FORWARD)
    for i in (0, 77, 9_999):
        assert engine.match(packet(dst=f"10.{i >> 8}.{i & 255}.9")).rule is rules[i]
    assert engine.match(packet(dst="11.0.0.1")).rule is None
    table = engine._addresses[4][1]
    assert table is not None
    distinct = {id(value): value for value in table.field.values}
    assert sum(value.bits.__sizeof__() + value.chunks.__sizeof__() for value in distinct.values()) < 20_000_000


def wide_rule(rng: random.Random, priority: int, kind: str) -> StatelessRule:
    """One of many: enough boundaries for the first step of a search, enough rules for many chunks."""
    four = IPv4Network((rng.choice([10 << 24, 0]) | rng.getrandbits(24), rng.randint(9, 32)), strict=False)
    six = IPv6Network((0x20010DB8 << 96 | rng.getrandbits(96), rng.randint(33, 128)), strict=False)
    low = rng.randint(0, 65_000)
    ports = ((low, low + rng.randint(0, 300)),)
    fields: dict[str, Any] = {
        "nested": {"sources": (four, six)},
        "ports": {"source_ports": ports, "destination_ports": ((low // 2, low // 2 + 9),)},
        "destinations": {"destinations": (six if rng.random() < 0.5 else four,)},
        # Every chunk has rules for every value of each field, and hardly any rule allows two of them.
        "defeating": {"sources": (four,)} if rng.random() < 0.5 else {"destination_ports": ports, "protocols": (17,)},
        "mixed": rng.choice([{"sources": (four,)}, {"destination_ports": ports}, {"destinations": (six, four)}, {}]),
    }[kind]
    return StatelessRule(priority, rng.choice(list(StatelessAction)), **fields)


@pytest.mark.parametrize("kind", ["nested", "ports", "destinations", "defeating", "mixed"])
def test_many_rules_agree_with_the_slow_twin(kind: str) -> None:
    rng = random.Random(kind)
    rules = [wide_rule(rng, priority, kind) for priority in range(1, 1 + rng.choice([300, 1500]))]
    if kind == "mixed":  # a rule without conditions ends the list; here only the last may be one
        rules = [each for each in rules if each.sources or each.destinations or each.destination_ports]
    engine = StatelessFilter(rules, FORWARD)
    edges4 = [int(net.network_address) for each in rules for net in each.sources if net.version == 4]
    edges6 = [int(net.network_address) for each in rules for net in each.destinations if net.version == 6]
    for _ in range(250):
        version, pool = rng.choice([(IPv4Address, edges4), (IPv6Address, edges6)])
        top = (1 << version(0).max_prefixlen) - 1

        def address(version: Any = version, pool: list[int] = pool, top: int = top) -> str:
            edge = (
                rng.choice(pool) + rng.choice([-1, 0, 1, 255]) if pool and rng.random() < 0.8 else rng.randint(0, top)
            )
            return str(version(max(0, min(edge, top))))

        source, destination = address(), address()
        subject = packet(source, destination, rng.choice([6, 17, 1]), rng.randint(0, 65535), rng.randint(0, 65535))
        assert engine.match(subject).rule is match_slow(rules, subject), str(subject)


def test_rules_made_to_defeat_the_summary_are_found_by_the_whole_integers() -> None:
    """Each chunk allows the source in one rule and the port in another; only the very last rule allows both."""
    rules = []
    for number in range(20 * module.CHUNK):
        fields: dict[str, Any] = {"sources": ["10.0.0.0/8"], "destination_ports": ((1, 1),)}
        if number % 2:
            fields = {"sources": ["192.0.2.0/24"], "destination_ports": ((80, 80),)}
        rules.append(rule(number + 1, **fields))
    rules.append(rule(len(rules) + 1, sources=["10.0.0.0/8"], destination_ports=((80, 80),)))
    engine = StatelessFilter(rules, FORWARD)
    assert engine.match(packet(src="10.0.0.1", dport=80)).rule is rules[-1]
    assert StatelessFilter(rules[:-1], FORWARD).match(packet(src="10.0.0.1", dport=80)).rule is None


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TcpFlagsMatch(SYN | ACK, SYN), "ACK are not among the masks"),
        (lambda: TcpFlagsMatch(256), "0 to 255"),
        (lambda: TcpFlagsMatch(0, 256), "0 to 255"),
        (lambda: rule(protocols=(256,)), "0 to 255"),
        (lambda: rule(source_ports=((5, 4),)), "not within"),
        (lambda: rule(destination_ports=((0, 65536),)), "not within"),
    ],
)
def test_values_no_packet_has_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_prints_as_the_policy_has_it() -> None:
    full = rule(
        10,
        DROP,
        protocols=(6, 47),
        sources=["10.0.0.0/8", "fd00::/8"],
        source_ports=((1024, 65535),),
        destinations=["192.0.2.1/32"],
        destination_ports=((23, 23), (6000, 6063)),
        tcp_flags=(TcpFlagsMatch(SYN, SYN | ACK), TcpFlagsMatch(RST)),
        counters=("telnet",),
    )
    assert str(full) == (
        '{priority: 10, action: drop, protocols: [tcp, 47], sources: ["10.0.0.0/8", "fd00::/8"], '
        'source_ports: ["1024-65535"], destinations: ["192.0.2.1/32"], destination_ports: [23, "6000-6063"], '
        'tcp_flags: [{flags: [SYN], masks: [SYN, ACK]}, {flags: [RST]}], counters: ["telnet"]}'
    )
    assert str(rule(5, PASS)) == "{priority: 5, action: pass}"

"""What flows leave behind goes at once: nothing of theirs waits for Python's cycle collector, which packet workers keep
from looking at all that is alive (:mod:`nfw.collector`)."""

import gc
from collections import Counter

import pytest

from nfw.collector import FEW, INTERVAL, MANY, NEVER, SpareCollector, SpareMemory
from tests.fuzz.targets import TARGETS

WHOLE_FLOWS = ("flow-tcp", "flow-udp", "stream")
TCP = (
    "http",
    "http2",
    "dns",
    "tls",
    "ssh",
    "sip",
    "smb",
    "smtp",
    "dcerpc",
    "ftp",
    "ftp-data",
    "websocket",
    "mqtt",
    "ldap",
    "nfs",
    "pgsql",
)
UDP = ("dns-udp", "ntp-udp", "quic-udp", "sip-udp", "krb5-udp", "ldap-udp", "nfs-udp", "snmp-udp", "ike-udp")


@pytest.mark.parametrize("name", [*TCP, "krb5", "rfb", *UDP, *WHOLE_FLOWS])
def test_nothing_is_left_to_the_collector(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    target.run(seeds[0])  # what is made once: caches, tables
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for seed in seeds:
            for first in (b"\0", b"\1"):  # whole, and cut into pieces
                target.run(first + seed[1:])
        gc.collect()
        left = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith("engines."))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def test_full_collections_wait_for_few_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    before, done = gc.get_threshold(), []
    monkeypatch.setattr(gc, "collect", lambda: done.append(1))
    try:
        collector = SpareCollector(100.0)
        assert gc.get_threshold() == (*before[:2], NEVER)
        for flows, now, expected in (
            (0, 100.0 + INTERVAL - 1, 0),
            (FEW + 1, 100.0 + INTERVAL, 0),
            (FEW, 101.0 + INTERVAL, 1),
            (0, 102.0 + INTERVAL, 1),
            (0, 101.0 + 2 * INTERVAL, 2),
        ):
            collector.look(flows, now)
            assert len(done) == expected
    finally:
        gc.set_threshold(*before)


def test_memory_is_given_back_once_after_many() -> None:
    memory = SpareMemory()
    steps = [
        (MANY - 1, True, False),
        (0, True, False),  # there have never been many
        (MANY, True, False),
        (FEW + 1, True, False),
        (FEW, False, False),  # somebody waits
        (FEW, True, True),
        (0, True, False),
        (MANY, False, False),
        (0, True, True),
    ]
    assert [memory.look(flows, calm=calm) for flows, calm, _ in steps] == [given for _, _, given in steps]

"""`nfw doctor`: a good router is called good, each broken one is told what is wrong and how to mend it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

import pytest

from nfw import doctor
from nfw.cli import app
from nfw.control import ControlClient, ControlTimeoutError, DeniedError, NotRunningError
from nfw.doctor import Certificate, Facts, examine, failed

CA = Certificate("/etc/nfw/ca.pem", "", "CN=Example", 1000, True)
GOOD = Facts(
    kernel="6.1.0-18-amd64",
    programs={"nft": True, "ip": True},
    features=dict.fromkeys(doctor.FEATURES, True),
    sysctls={
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.netfilter.nf_conntrack_count": "100",
        "net.netfilter.nf_conntrack_max": "262144",
    },
    rp_filters={"eth0": "1", "eth1": "1"},
    ruleset=[
        {"metainfo": {}},
        {"chain": {"family": "inet", "table": "nfw", "name": "forward", "hook": "forward", "policy": "drop"}},
        {"rule": {"family": "inet", "table": "nfw", "chain": "queue_1", "expr": [{"queue": {"num": 5100}}]}},
        {"chain": {"family": "inet", "table": "filter", "name": "input", "hook": "input", "policy": "accept"}},
    ],
    default_routes={4: ["192.0.2.1 dev eth0"], 6: ["fe80::1 dev eth0"]},
    clock_synchronised=True,
    now=datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC),
    roots=140,
    ca=CA,
    status={
        "state": "filtering",
        "name": "egress",
        "generation": 1,
        "processes": [{"name": "nfw keyholder", "pid": 1}, {"name": "nfw packet 0", "pid": 2, "bugs": 0}],
        "kernel": {"queues": {"5100": {"queued": 0, "dropped": 0, "user_dropped": 0}}},
        "log_writer": {"pid": 3, "dropped": {"journald": 0}},
    },
)


def broken(**changes: Any) -> list[tuple[str, str]]:
    """(level, topic) of what is not good; every one says how to mend it."""
    found = [one for one in examine(dataclasses.replace(GOOD, **changes)) if one.level != "ok"]
    assert all(one.mend for one in found if one.level != "note")
    return [(one.level, one.topic) for one in found]


def test_a_good_router() -> None:
    found = examine(GOOD)
    assert {one.level for one in found} == {"ok"}
    assert not failed(found)
    assert {one.topic for one in found} >= {"kernel", "forwarding", "nftables", "clock", "trust", "CA", "daemon"}


def chain(hook: str, policy: str = "drop") -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "filter", "name": hook, "hook": hook, "policy": policy}}


def rule(*expression: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "ips", "chain": "c", "handle": 7, "expr": list(expression)}}


STATUS = dict(GOOD.status or {})
BROKEN: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("no nft", {"programs": {"nft": False, "ip": True}}, [("error", "programs")]),
    ("no tproxy", {"features": {**GOOD.features, "tproxy": False}}, [("error", "kernel")]),
    ("no queue statement", {"features": {**GOOD.features, "queue": False}}, [("note", "kernel")]),
    ("old kernel", {"kernel": "4.19.0"}, [("warning", "kernel")]),
    ("not forwarding", {"sysctls": {**GOOD.sysctls, "net.ipv4.ip_forward": "0"}}, [("error", "forwarding")]),
    ("no IPv6", {"sysctls": {**GOOD.sysctls, "net.ipv6.conf.all.forwarding": "0"}}, [("warning", "forwarding")]),
    (
        "conntrack",
        {"sysctls": {**GOOD.sysctls, "net.netfilter.nf_conntrack_count": "250000"}},
        [("warning", "conntrack")],
    ),
    ("bridge", {"sysctls": {**GOOD.sysctls, "net.bridge.bridge-nf-call-iptables": "1"}}, [("warning", "bridge")]),
    ("another queue", {"ruleset": [rule({"queue": {"num": 0}}), rule({"queue": {"num": 0}})]}, [("error", "nftables")]),
    ("another proxy", {"ruleset": [rule({"match": {}}, {"tproxy": {"port": 1}})]}, [("error", "nftables")]),
    (
        "flowtable",
        {"ruleset": [{"flowtable": {"family": "inet", "table": "filter", "name": "f"}}]},
        [("error", "nftables")],
    ),
    ("input drops", {"ruleset": [chain("input")]}, [("warning", "nftables")]),
    ("forward drops", {"ruleset": [chain("forward")]}, [("note", "nftables")]),
    ("legacy", {"legacy_tables": ["mangle"]}, [("warning", "iptables")]),
    (
        "marks",
        {"problems": ["an `ip rule` of other software uses bits: choose another --mark-mask"]},
        [("error", "marks")],
    ),
    (
        "two uplinks, strict",
        {"default_routes": {4: ["a dev eth0", "b dev eth1"], 6: []}},
        [("warning", "routes"), ("error", "rp_filter")],
    ),
    (
        "two uplinks, loose",
        {
            "default_routes": {4: ["a dev eth0", "b dev eth1"]},
            "sysctls": {**GOOD.sysctls, "net.ipv4.conf.all.rp_filter": "2"},
        },
        [("warning", "routes")],
    ),
    ("LRO", {"lro": ["eth0"]}, [("warning", "offload")]),
    ("clock unset", {"now": datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)}, [("error", "clock")]),
    ("clock adrift", {"clock_synchronised": False}, [("warning", "clock")]),
    ("no roots", {"roots": 0}, [("error", "trust")]),
    ("untrusted CA", {"ca": dataclasses.replace(CA, trusted=False)}, [("warning", "CA")]),
    ("CA runs out", {"ca": dataclasses.replace(CA, days_left=3)}, [("warning", "CA")]),
    ("CA has expired", {"ca": dataclasses.replace(CA, days_left=-1)}, [("error", "CA")]),
    ("no CA", {"ca": Certificate("/x", "cannot be read")}, [("error", "CA")]),
    ("not running", {"status": None}, [("note", "daemon")]),
    ("closed", {"status": {"state": "closed"}}, [("error", "daemon")]),
    ("flushed", {"status": {"state": "not filtering: table inet nfw is gone"}}, [("error", "daemon")]),
    ("monitor", {"status": {**STATUS, "mode": "monitor"}}, [("warning", "daemon")]),
    (
        "a worker hangs",
        {"status": {**STATUS, "processes": [{"name": "nfw packet 0", "pid": 2}]}},
        [("error", "daemon")],
    ),
    (
        "drops",
        {"status": {**STATUS, "kernel": {"queues": {"5100": {"dropped": 2}}}}},
        [("warning", "queue")],
    ),
    ("log", {"status": {**STATUS, "log_writer": {"dropped": {"journald": 5}}}}, [("warning", "log")]),
    (
        "bugs",
        {"status": {**STATUS, "processes": [{"name": "nfw packet 0", "pid": 2, "bugs": 1}]}},
        [("warning", "daemon")],
    ),
    ("denied", {"status": {"unasked": "permission denied", "denied": True}}, [("note", "daemon")]),
    ("mute", {"status": {"unasked": "no answer within 5 s", "denied": False}}, [("error", "daemon")]),
    ("not root", {"root": False, "ruleset": None, "features": {}}, [("note", "rights")]),
]


@pytest.mark.parametrize(("name", "changes", "expected"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_ones(name: str, changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert broken(**changes) == expected
    assert failed(examine(dataclasses.replace(GOOD, **changes))) is ("error" in [level for level, _ in expected])


def test_gathering_raises_nothing_where_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = doctor.gather(str(tmp_path / "none.pem"))
    assert facts.programs == {"nft": False, "ip": False}
    assert facts.ca is not None
    assert facts.ca.problem == "does not exist"
    examine(facts)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    control = str(tmp_path / "none")
    monkeypatch.setattr(doctor, "gather", lambda ca, status: dataclasses.replace(GOOD, status=status))
    assert app.call(["doctor", "--control", control]) == 0
    out = capsys.readouterr().out
    assert "note     daemon: nfw is not running here\n           mend: systemctl start nfw\n" in out
    monkeypatch.setattr(doctor, "gather", lambda ca, status: dataclasses.replace(GOOD, roots=0))
    assert app.call(["doctor", "--control", control, "--json"]) == 1
    (trust,) = [one for one in json.loads(capsys.readouterr().out) if one["topic"] == "trust"]
    assert (trust["level"], trust["mend"]) == ("error", "apt-get install ca-certificates")


@pytest.mark.parametrize(
    ("raised", "level", "told"),
    [
        (NotRunningError("not running"), "note", "nfw is not running here"),
        (DeniedError("permission denied for control socket x"), "note", "permission denied for control socket x"),
        (ControlTimeoutError("no answer within 5 s"), "error", "no answer within 5 s"),
    ],
)
def test_what_is_not_known_of_the_firewall_is_not_guessed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception, level: str, told: str
) -> None:
    def request(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(ControlClient, "request", request)
    monkeypatch.setattr(doctor, "gather", lambda ca, status: dataclasses.replace(GOOD, status=status))
    assert app.call(["doctor"]) == (level == "error")
    assert f"{level:8} daemon: {told}\n" in capsys.readouterr().out

"""``geoip`` with a database made here. Source: Suricata user guide, "IP Keywords", geoip; AWS for IPv6."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.parser import parse_rules
from engines.stateful.ruleconfig import RuleConfig
from engines.stateful.ruleset import compile_ruleset
from engines.stateful.signature import RuleType, Signature
from engines.verdict import Direction
from nfw.cli.app import call
from nfw.geoip import GeoIpError, open_countries
from nfw.policy.dump import dump_policy
from nfw.policy.errors import PolicyErrors
from nfw.policy.loader import load_policy
from tests.unit.pcapfile import pcap
from tests.unit.rulekit import VARIABLES
from tests.unit.test_replay import conversation

PLACES = {"DE": ["10.0.0.1/32", "2001:db8:1::/48"], "FR": ["10.0.0.2/32"], "JP": ["192.0.2.0/24"]}


def database(path: Path, version: int = 6) -> Path:
    writer = MMDBWriter(ip_version=version, ipv4_compatible=version == 6, database_type="Test-Country")
    for code, networks in PLACES.items():
        chosen = [network for network in networks if version == 6 or ":" not in network]
        writer.insert_network(IPSet(chosen), {"country": {"iso_code": code, "names": {"en": code}}})
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"registered_country": {"iso_code": "DE"}})
    writer.insert_network(IPSet(["203.0.113.0/24"]), "text")
    writer.to_db_file(str(path))
    return path


@pytest.fixture(scope="module")
def countries(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_countries(database(tmp_path_factory.mktemp("geoip") / "c.mmdb"))


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.0.0.1", "DE"),
        ("10.0.0.2", "FR"),
        ("10.0.0.3", ""),
        ("192.0.2.77", "JP"),
        ("2001:db8:1::5", "DE"),
        ("2001:db8:2::5", ""),
        ("198.51.100.1", ""),  # known, but not where it is
        ("203.0.113.1", ""),
    ],
)
def test_countries_of_addresses(countries: Any, address: str, code: str) -> None:
    assert countries(packed(address)) == code
    assert countries(b"") == countries(b"abc") == ""


def test_a_database_of_ipv4_only(tmp_path: Path) -> None:
    country = open_countries(database(tmp_path / "c.mmdb", 4))
    assert [country(packed("10.0.0.1")), country(packed("2001:db8:1::5"))] == ["DE", ""]


def test_the_file_may_be_exchanged_and_damaged(tmp_path: Path) -> None:
    path = database(tmp_path / "c.mmdb")
    data = path.read_bytes()
    country = open_countries(path)
    path.write_bytes(b"")
    assert country(packed("192.0.2.1")) == "JP"
    for cut in range(len(data) // 4, len(data), 41):  # whatever is there: an error or an answer
        path.write_bytes(data[:cut] + data[-cut:])
        with contextlib.suppress(GeoIpError):
            assert isinstance(open_countries(path)(packed("192.0.2.1")), str)


def rule(value: str, country: Any, header: str = "alert ip any any -> any any", more: str = "") -> Signature:
    config = RuleConfig(country=country)
    found = parse_rules(f"{header} (geoip:{value}; {more}sid:1;)", "t.rules", VARIABLES, config=config)
    assert not found.errors, [str(error) for error in found.errors]
    return found.signatures[0]


DE, FR, JP, NOWHERE, DE6 = (packed(a) for a in ("10.0.0.1", "10.0.0.2", "192.0.2.1", "10.9.9.9", "2001:db8:1::1"))


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ("src,DE", {(DE, FR): True, (FR, DE): False, (DE6, NOWHERE): True}),
        ("dst, de", {(DE, FR): False, (FR, DE): True}),
        ("any,DE", {(DE, FR): True, (FR, DE): True, (FR, JP): False}),
        ("DE,JP", {(DE, NOWHERE): True, (NOWHERE, JP): True, (FR, NOWHERE): False}),
        ("both,DE,FR", {(DE, FR): True, (DE, JP): False, (DE, NOWHERE): False}),
        ('"src,!DE"', {(FR, DE): True, (DE, FR): False, (NOWHERE, FR): False}),
        ("both,!DE,!FR", {(JP, JP): True, (JP, DE): False, (JP, NOWHERE): False}),
        ("any,!DE,!FR", {(JP, DE): True, (FR, DE): False}),
    ],
)
def test_which_packets_are_meant(countries: Any, value: str, pairs: dict[tuple[bytes, bytes], bool]) -> None:
    test = rule(value, countries).countries
    assert test is not None
    assert {pair: test(*pair) for pair in pairs} == pairs


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("src", "at least one country"),
        ("src,Germany", "two letters of a country"),
        ("src,", "two letters of a country"),
        ("DE,src", "two letters of a country"),
        ("src," + "DE," * 64 + "DE", "65 countries, more than 64"),
    ],
)
def test_refusals(value: str, says: str) -> None:
    found = parse_rules(f"alert ip any any -> any any (geoip:{value}; sid:1;)", "t.rules", VARIABLES)
    assert [says in error.message for error in found.errors] == [True]


def test_it_looks_at_packets(countries: Any) -> None:
    assert rule("src,DE", countries).rule_type is RuleType.PKT
    assert rule("src,DE", countries, more='content:"x"; ').rule_type is RuleType.PKT
    found = parse_rules('alert http any any -> any any (geoip:DE; http.uri; content:"x"; sid:1;)', "t", VARIABLES)
    assert "looks at one packet" in found.errors[0].message


def test_one_negation_is_for_all_and_told(countries: Any) -> None:
    config = RuleConfig(country=countries)
    found = parse_rules("alert ip any any -> any any (geoip:src,!DE,FR; sid:1;)", "t.rules", VARIABLES, config=config)
    test = found.signatures[0].countries
    assert test is not None
    assert [test(address, NOWHERE) for address in (DE, FR, JP)] == [False, False, True]
    assert "one ! negates the whole list" in found.warnings[0].message


def test_without_a_database_it_never_matches_and_says_so() -> None:
    found = parse_rules("drop ip any any -> any any (geoip:src,DE; sid:1;)", "t.rules", VARIABLES)
    assert [warning.message for warning in found.warnings] == [
        "never matches: geoip needs a database of countries, and none is configured"
    ]
    assert compile_ruleset(found.signatures).rules == ()


@pytest.mark.parametrize(
    ("header", "value", "up", "down"),
    [
        ("drop tcp any any -> any any", "dst,FR", "drop", "accept"),
        ("drop tcp any any -> any any", "any,FR", "drop", "drop"),
        ("drop tcp any any -> any any", "dst,JP", "accept", "accept"),
        ("drop tcp any any <> any 80", "src,FR", "accept", "drop"),
        ("drop tcp any any -> any 81", "any,FR", "accept", "accept"),
        ("drop tls any any -> any any", "dst,FR", "accept", "accept"),
    ],
)
@pytest.mark.parametrize("decrypted", [False, True])
def test_rules_act_on_packets_of_those_flows(
    countries: Any, header: str, value: str, up: str, down: str, decrypted: bool
) -> None:
    rules = compile_ruleset([rule(value, countries, header)])
    inspector = Inspector(rules, FlowFacts(1, 6, DE, FR, 4000, 80), 0.0, decrypted)
    steps = [
        inspector.inspect(Segment(direction, True, b"\xff", b"\xff", None, 0.0)).decision.verdict.value
        for direction in (Direction.TO_SERVER, Direction.TO_CLIENT, Direction.TO_SERVER)
    ]
    assert steps == [up, down, up]


def test_policy_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database(tmp_path / "c.mmdb")
    (tmp_path / "p.yaml").write_text(
        "name: t\nstateful: {order: action, geoip: c.mmdb,"
        " rules: ['drop tcp any any -> any any (geoip:dst,FR; sid:1;)']}\n"
    )
    policy = load_policy(tmp_path / "p.yaml")
    assert policy.warnings == ()
    assert "  geoip: c.mmdb\n" in dump_policy(policy)
    (tmp_path / "x.pcap").write_bytes(pcap(conversation()))
    assert call(["replay", str(tmp_path / "x.pcap"), "--policy", str(tmp_path / "p.yaml")]) == 0
    assert "stateful  drop      rule" in capsys.readouterr().out
    (tmp_path / "x.rules").write_text("alert tcp any any -> any any (geoip:dst,FR; sid:1;)\n")
    ordered = ["replay", str(tmp_path / "x.pcap"), "--rules", str(tmp_path / "x.rules"), "--geoip"]
    assert call([*ordered, str(tmp_path / "c.mmdb")]) == 0
    assert "5 × 1" in capsys.readouterr().out
    assert call([*ordered, str(tmp_path / "x.pcap")]) == 1
    assert "x.pcap is no MaxMind database" in capsys.readouterr().err
    (tmp_path / "c.mmdb").unlink()
    with pytest.raises(PolicyErrors, match=r"p\.yaml:2:34: geoip: .*c\.mmdb does not exist"):
        load_policy(tmp_path / "p.yaml")

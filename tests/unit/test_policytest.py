"""``nfw policy test`` and ``nfw explain`` as a person meets them: results, errors, the ready policies' own tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nfw import ca
from nfw.describe import read_description
from nfw.dialogue import Dialogue
from tests.unit.awskit import NOW
from tests.unit.pcapfile import pcap
from tests.unit.test_cli import Nfw, nfw, serve  # noqa: F401 - a fixture
from tests.unit.test_explain import INBOUND, inbound_files

from nfw.control import Reply  # isort: skip

RULES = Path(__file__).parent.parent.parent / "rules"
POLICY = """\
name: t
stateless:
  rules:
    - {priority: 7, action: drop, protocols: [tcp], destination_ports: [23], name: telnet}
stateful:
  order: strict
  default_actions: [drop_established_app_layer, alert_established_app_layer]
  rules: |
    pass tls any any -> any any (msg:"good site"; tls.sni; content:"good.example"; endswith; sid:10;)
    reject http any any -> any any (msg:"bad path"; http.uri; content:"/bad"; sid:11;)
    alert http any any -> any any (msg:"seen"; http.host; content:"seen"; sid:12;)
    pass http any any -> any any (http.host; bsize:>0; sid:13;)
"""
TESTS = """\
policy: p.yaml
defaults: {src: 10.0.0.5, dst: 198.51.100.7}
tests:
  - {name: by sid, flow: {sni: good.example}, expect: {verdict: pass, rule: 10, tls: none}}
  - {name: by gid and sid, flow: {sni: good.example}, expect: {rule: "1:10"}}
  - {name: by name, flow: {http_host: a, http_uri: /bad}, expect: {verdict: reject, rule: bad path}}
  - {name: stateless, flow: {dport: 23}, expect: {verdict: drop, rule: "stateless:7"}}
  - {name: stateless by name, flow: {dport: 23}, expect: {rule: telnet}}
  - {name: default, flow: {sni: other}, expect: {verdict: drop, rule: drop_established_app_layer}}
  - {name: logged, flow: {http_host: seen}, expect: {verdict: alert, alerts: [12]}}
  - {name: logged passes too, flow: {http_host: seen}, expect: pass}
  - {name: a capture, capture: c.pcap, expect: reject}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(POLICY)
    (tmp_path / "t.yaml").write_text(TESTS)
    flow = read_description({"src": "10.0.0.5", "dst": "198.51.100.7", "http_host": "a", "http_uri": "/bad"})
    (tmp_path / "c.pcap").write_bytes(pcap([each.captured.data for each in Dialogue(flow).packets()]))
    return tmp_path


def test_expectations_that_are_met(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    done = nfw("policy", "test", "t.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "9 passed, 0 failed"
    assert '  ok    by sid: pass by stateful rule 10 "good site" (p.yaml:9)' in done.out


@pytest.mark.parametrize(
    ("flow", "expect", "says"),
    [
        (
            "{sni: other}",
            "{verdict: pass}",
            "verdict: expected pass, seen drop by default action drop_est",
        ),
        ("{sni: good.example}", "{verdict: alert}", "verdict: expected alert, seen pass by stateful rule 10"),
        ("{sni: good.example}", "{rule: 11}", 'rule: expected 11, seen 10 "good site" (p.yaml:9)'),
        ("{sni: good.example}", "{rule: none}", "rule: expected none, seen 10"),
        ("{dport: 23}", "{rule: 7}", 'rule: expected 7, seen stateless:7 "telnet"'),
        ("{sni: good.example}", "{tls: terminate}", "tls: expected terminate, seen none: the policy inspects no TLS"),
        ("{http_host: seen}", "{alerts: []}", 'alerts: expected none, seen 12 "seen"'),
        ("{http_host: a}", "{alerts: [12]}", "alerts: expected 12, seen none"),
    ],
)
def test_expectations_that_are_not(nfw: Nfw, folder: Path, flow: str, expect: str, says: str) -> None:  # noqa: F811
    defaults = "defaults: {src: 10.0.0.5, dst: 198.51.100.7}"
    text = f"policy: p.yaml\n{defaults}\ntests:\n  - {{name: x, flow: {flow}, expect: {expect}}}\n"
    (folder / "f.yaml").write_text(text)
    done = nfw("policy", "test", "t.yaml", "f.yaml")
    assert done.code == 1
    assert "  FAIL  x (f.yaml:4)" in done.out
    assert says in done.out
    assert done.out.splitlines()[-1] == "9 passed, 1 failed"
    found = json.loads(nfw("policy", "test", "f.yaml", "--json", "--junit", "r.xml").out)
    assert (found["passed"], found["failed"], found["tests"][0]["line"]) == (0, 1, 4)
    suite = ElementTree.fromstring((folder / "r.xml").read_text())[0]
    assert suite.attrib == {"name": "f.yaml", "tests": "1", "failures": "1"}
    assert says in str(suite[0][0].text)


BAD = """\
policy: missing.yaml
tets: []
defaults: {src: 10.0.0.5, colour: red}
tests:
  - {name: a, flow: {dst: "2001:db8::1", dport: 80}, expect: {verdict: dropp}}
  - {name: a, flow: {dst: 198.51.100.7, snii: x, dport: 99999}, expect: drop}
  - {flow: {dst: 198.51.100.7, dport: 1}, expect: {}}
  - {name: c, expect: drop}
  - {name: d, capture: none.pcap, expect: drop}
  - {name: e, flow: {dst: 198.51.100.7, dport: 1}, filter: tcp, expect: 7}
  - just text
"""
BAD_SAYS = """\
t.yaml:1:9: policy: missing.yaml does not exist
t.yaml:2:1: unknown key "tets" in the test file; did you mean "tests"?
t.yaml:3:27: unknown key "colour" in defaults; known keys: src, dst
t.yaml:5:22: dst: 2001:db8::1 and the source 10.0.0.5 are of different address families
t.yaml:5:72: verdict: expected pass, alert, drop, reject or intercept, got "dropp"; did you mean "drop"?
t.yaml:6:41: unknown key "snii" in flow; did you mean "sni"?
t.yaml:6:50: dport: port 99999 is out of range
t.yaml:7:5: test lacks "name"
t.yaml:7:51: expect: nothing is expected; known keys: verdict, rule, tls, certificate, alerts
t.yaml:8:5: test: expected either "flow" or "capture"
t.yaml:9:24: capture: none.pcap does not exist
t.yaml:10:52: filter: goes with "capture"
t.yaml:10:73: expect: expected pass, alert, drop, reject or intercept, got 7
t.yaml:11:5: test: expected a mapping such as
"""


def test_every_error_at_once(nfw: Nfw, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "t.yaml").write_text(BAD)
    done = nfw("policy", "test", "t.yaml", "nowhere.yaml")
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    for said, expected in zip(lines, BAD_SAYS.splitlines(), strict=False):
        assert said.startswith(expected)
    assert lines[len(BAD_SAYS.splitlines()) :] == [
        "nowhere.yaml: test file does not exist",
        "nothing was tested",
    ]


def test_a_policy_that_does_not_load_does_not_keep_others_from_being_tested(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    (folder / "bad.yaml").write_text(POLICY.replace("sid:11;", "sid:10;"))
    (folder / "bad-tests.yaml").write_text(TESTS.replace("p.yaml", "bad.yaml"))
    done = nfw("policy", "test", "bad-tests.yaml", "t.yaml", "--junit", "r.xml")
    assert done.code == 1
    assert done.out.endswith("9 passed, 9 failed\n")
    assert "  FAIL  by sid (bad-tests.yaml:4)\n        not judged: its policy has errors\n" in done.out
    assert "  ok    by sid: " in done.out
    assert done.err.splitlines()[0] == "1 error:"
    assert done.err.splitlines()[1].startswith("bad.yaml:10:")
    assert len(ElementTree.parse(folder / "r.xml").findall(".//failure")) == 9


def test_the_ca_need_not_be_there(nfw: Nfw, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(RULES, tmp_path / "rules", ignore=shutil.ignore_patterns("*.pem", "*.key"))
    done = nfw("policy", "test", "rules/tests/strict-outbound-tls.yaml")
    assert (done.code, done.out.splitlines()[-1].rpartition(" passed, ")[2]) == (0, "0 failed")
    path = "rules/ca.pem"
    said = f"CA certificate {path} does not exist: flows are judged as with any other CA (`nfw ca create` makes one)\n"
    assert done.err == said
    flow = ("--src", "10.0.0.5", "--dst", "198.51.100.7", "--sni", "evil.example")
    explained = nfw("explain", "rules/strict-outbound-tls.yaml", *flow)
    assert (explained.code, explained.err) == (0, said)
    check = nfw("policy", "check", "rules/strict-outbound-tls.yaml")
    assert check.code == 1
    assert "CA certificate" in check.err


def test_a_policy_that_does_not_load_is_no_failed_test(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    (folder / "p.yaml").write_text(POLICY.replace("sid:11;", "sid:10;").replace("content:", "contnt:", 1))
    done = nfw("policy", "test", "t.yaml")
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 2
    assert done.err.startswith("p.yaml:9:")


def test_the_certificate_of_a_server_of_ones_own(nfw: Nfw, tmp_path: Path) -> None:  # noqa: F811
    inbound_files(tmp_path)
    (tmp_path / "p.yaml").write_text("name: t\n" + INBOUND.replace("UPSTREAM", "pinned"))
    case = "- {{name: {0}, flow: {{src: 192.0.2.1, dst: 198.51.100.7, sni: {0}.example}}, expect: {{{1}}}}}"
    lines = [
        case.format("shop", "tls: terminate, certificate: shop.pem, verdict: pass"),
        case.format("a.wild", "certificate: wild.pem"),
        case.format("other", "certificate: shop.pem"),
        case.format("b.wild", "certificate: shop.pem"),
    ]
    (tmp_path / "t.yaml").write_text("\n".join(["policy: p.yaml", "tests:", *lines, ""]))
    done = nfw("policy", "test", str(tmp_path / "t.yaml"))
    assert done.code == 1
    assert "certificate: expected shop.pem, seen none of the policy's" in done.out
    assert f"certificate: expected shop.pem, seen {tmp_path / 'wild.pem'}" in done.out
    assert "2 passed" in done.out
    assert "2 failed" in done.out


def test_a_name_is_used_once(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    (folder / "t.yaml").write_text(TESTS.replace("name: stateless by name", "name: by sid"))
    assert 't.yaml:8:1: name "by sid" is already that of the test on line 4' in nfw("policy", "test", "t.yaml").err


def test_captures(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    one = "policy: p.yaml\ntests:\n  - {name: x, capture: c.pcap, filter: FILTER, expect: reject}\n"
    for expression, says in (
        ("udp", "c.pcap holds no flow that the filter lets through"),
        ("tcp prot 80", "is no filter"),
        ("tcp port 80", "1 passed, 0 failed"),
    ):
        (folder / "t.yaml").write_text(one.replace("FILTER", expression))
        assert says in nfw("policy", "test", "t.yaml").out
    (folder / "c.pcap").write_bytes(b"no capture at all, is it")
    assert "not a pcap or pcapng file" in nfw("policy", "test", "t.yaml").out


@pytest.mark.parametrize("name", sorted(path.stem for path in (RULES / "tests").glob("*.yaml")))
def test_the_ready_policies(nfw: Nfw, tmp_path: Path, name: str) -> None:  # noqa: F811
    shutil.copytree(RULES, tmp_path / "rules")
    ca.create("Example Corp Firewall", tmp_path / "rules", NOW)
    done = nfw("policy", "test", f"rules/tests/{name}.yaml")
    assert done.code == 0, done.out + done.err
    assert int(done.out.splitlines()[-1].split()[0]) >= 10


def test_every_ready_policy_has_tests() -> None:
    assert {path.name for path in RULES.glob("*.yaml")} == {path.name for path in (RULES / "tests").glob("*.yaml")}


# -- explain ---------------------------------------------------------------------------------------------------------

ENDS = ("--src", "10.0.0.5", "--dst", "198.51.100.7")


def test_explain(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    done = nfw("explain", "p.yaml", *ENDS, "--http-host", "a", "--http-uri", "/bad", "--packets")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "flow       tcp 10.0.0.5:40000 -> 198.51.100.7:80, HTTP GET a/bad"
    assert '             not priority 7 drop "telnet" (p.yaml:4): destination port 80 is not 23' in lines
    assert '             decided         reject 11 "bad path" (p.yaml:10) at packet 4, HTTP request' in lines
    assert any(line.startswith("             too late        pass 13 (p.yaml:12)") for line in lines)
    assert lines[-1] == 'verdict    reject by stateful rule 11 "bad path" (p.yaml:10) at packet 4, HTTP request'
    values = json.loads(nfw("explain", "p.yaml", *ENDS, "--http-host", "a", "--http-uri", "/bad", "--json").out)
    assert (values["verdict"]["verdict"], values["verdict"]["file"], values["verdict"]["line"]) == (
        "reject",
        "p.yaml",
        10,
    )


def test_explain_a_capture(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    done = nfw("explain", "p.yaml", "--capture", "c.pcap")
    assert done.out.splitlines()[-1].startswith("verdict    reject by stateful rule 11")
    values = json.loads(nfw("explain", "p.yaml", "--capture", "c.pcap", "--json").out)
    assert (values["flows_total"], values["flows"][0]["verdict"]["rule"]["id"]) == (1, 11)
    assert "no flow: " in nfw("explain", "p.yaml", "--capture", "c.pcap", "--filter", "udp").err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "missing POLICY"),
        (("p.yaml",), 2, "--src: missing; expected the client's address, such as 10.0.0.5"),
        (("p.yml", *ENDS, "--dport", "1"), 1, "p.yml: "),
        (("p.yaml", *ENDS, "--dport", "x"), 2, '--dport: "x" is not a port'),
        (("p.yaml", *ENDS), 2, "--dport: missing"),
        (("p.yaml", *ENDS, "--dst", "::1", "--dport", "1"), 2, "--dst: ::1 and the source 10.0.0.5"),
        (("p.yaml", *ENDS, "--sni", "a..b"), 2, '--sni: "a..b" is not a host name'),
        (("p.yaml", *ENDS, "--snii", "a"), 2, "--sni"),
        (("p.yaml", "--capture", "x", "--sni", "a"), 2, "--capture does not go with --sni"),
        (("p.yaml", *ENDS, "--dport", "1", "--filter", "tcp"), 2, "--filter goes with --capture"),
        (("p.yaml", "--capture", "no.pcap"), 1, "no.pcap: No such file or directory"),
        (("p.yaml", "--capture", "c.pcap", "--filter", "tcp prot"), 2, "is no filter"),
        (("--running", "p.yaml"), 2, "leave POLICY, --map and --name out"),
        (("--running", "--control", "no.sock", *ENDS, "--dport", "1"), 1, "no.sock"),
    ],
)
def test_explain_says_what_is_wrong(nfw: Nfw, folder: Path, args: tuple[str, ...], code: int, says: str) -> None:  # noqa: F811
    done = nfw("explain", *args)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert "Traceback" not in done.err


def test_explain_by_the_running_policy(nfw: Nfw, folder: Path) -> None:  # noqa: F811
    """Where it was not kept, its files are read."""
    source = {"file": str(folder / "p.yaml"), "more": [], "map": "", "name": ""}
    untold = "the running policy was not kept: this is what its files say now\n"
    for since, told in ((4e9, ""), (1.0, "p.yaml: changed since the firewall has read it; this is what it says now\n")):
        status = Reply(True, {"policy_source": source, "since": since})
        not_kept = Reply(False, None, ("the running policy was not kept",))
        answers = {"status": status, "policy": not_kept}
        end = serve(folder / "c.sock", lambda request, answers=answers: answers[request.command])
        try:
            done = nfw("explain", "--running", "--control", "c.sock", *ENDS, "--dport", "23")
        finally:
            end()
        assert done.out.splitlines()[-1].startswith('verdict    drop by stateless rule priority 7 "telnet"')
        assert done.err.startswith(untold)
        assert done.err.endswith(told)
        assert (done.err == untold) is not bool(told)

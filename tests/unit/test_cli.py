"""The command line: exit codes, what goes where, and that trouble is told in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nfw import hostnet, process
from nfw.cli import columns
from nfw.cli.app import COMMANDS, call, colourful
from nfw.cli.daemon import format_status
from nfw.cli.logs import TYPES
from nfw.control import ControlServer, Reply, Request
from nfw.policy.model import LOG_EVENTS
from nfw.policystore import Entry, PolicyStore
from nfw.settings import PolicySource
from nfw.supervisor import policy_source
from tests.unit import awskit, pcapfile

GOOD = """\
name: good
stateless:
  rules:
    - {priority: 1, action: drop, protocols: [tcp], destination_ports: [23]}
stateful:
  rules: |
    pass tcp any any -> any 443 (msg:"web"; sid:1;)
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Nfw = Callable[..., Outcome]


@pytest.fixture
def nfw(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nfw:
    """Runs a command line in ``tmp_path``, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NFW_CONTROL", raising=False)

    def run(*args: str) -> Outcome:
        code = call(args)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


def serve(path: Path, handler: Callable[[Request], Reply]) -> Callable[[], None]:
    """A daemon's control socket in a thread; returns what stops it."""
    server = ControlServer(path, handler)
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.005):
            server.ready()

    thread = threading.Thread(target=loop)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()
        server.close()

    return end


# -- manners -------------------------------------------------------------------------------------------------------


def test_version(nfw: Nfw) -> None:
    code, out, err = nfw("--version")
    assert (code, err) == (0, "")
    assert out.startswith("nfw ")


def test_help_lists_every_command(nfw: Nfw) -> None:
    code, out, _ = nfw("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out
        assert nfw(name, "--help").code == 0


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["polcy"], 'no such command "polcy"; did you mean "policy"?'),
        (["policy", "chekc"], 'no such command "chekc"; did you mean "check"?'),
        (
            ["policy", "zzz"],
            'no such command "zzz"; known: apply, check, confirm, convert, diff, history, rollback, show, test',
        ),
        (["policy", "check"], "Missing argument"),
        (["policy"], "Usage: nfw policy"),
        ([], "Usage: nfw"),
        (["status", "--jsn"], "--jsn"),
        (["run"], "--policy"),
        (["run", "--policy", "x", "--mark-mask", "zz"], "not a hexadecimal number"),
        (["run", "--policy", "x", "--mark-mask", "0xf0f0"], "has gaps"),
        (["run", "--policy", "x", "--mark-mask", "0x7"], "too narrow"),
        (["run", "--policy", "x", "--mark-mask", "0x1ffffffff"], "32 bits"),
        (["run", "--policy", "x", "--queue-base", "65530"], "queue-base"),
        (["run", "--policy", "x", "--on-exit", "open"], "on-exit"),
        (["completion", "tcsh"], "tcsh"),
        (["ca", "create", "--name", "x"], "--out"),
        (["rules", "check", "--var", "X", "f"], "is not NAME=ITEM"),
        (["status", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["top", "--once", "--interval", "nan"], "'nan' is not a number of seconds"),
        (["flows", "--min-age", "nan"], "'nan' is not a number of seconds"),
        (["policy", "apply", "x", "--confirm", "nan"], "'nan' is not a number of seconds"),
        (["policy", "rollback", "999999999999999999999"], "is not in the range"),
        (["logs", "--lines"], "nfw: Option '--lines' requires an argument."),
        (
            ["replay", "x", "--rules", "y", "--set", "host-os-policy=beos"],
            "'beos' is no policy of a host; expected one",
        ),
    ],
)
def test_usage_errors(nfw: Nfw, args: list[str], hint: str) -> None:
    """Exit code 2, nothing on standard output, the way out on standard error."""
    code, out, err = nfw(*args)
    assert (code, out) == (2, "")
    assert hint in err
    assert "Traceback" not in err


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    """`nfw --help` loads neither OpenSSL nor Hyperscan, and no engine."""
    program = (
        "import sys, nfw.cli.app as app; app.call(['--help']); app.call(['status', '--control', '/nowhere/x']);"
        "heavy = {'hyperscan', 'cryptography', 'OpenSSL', 'pyroute2', 'ruamel', 'engines'} & set(sys.modules);"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("nfw: not running: there is no control socket /nowhere/x\nnfw: `systemctl start nfw`")
    assert done.returncode == 0


def test_reader_that_leaves(tmp_path: Path) -> None:
    """`nfw ... | head -1` says nothing about the pipe."""
    (tmp_path / "big.yaml").write_text(
        "stateless:\n  rules:\n" + "".join(f"    - {{priority: {n}, action: drop}}\n" for n in range(1, 4000))
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "nfw", "policy", "show", str(tmp_path / "big.yaml")],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def test_interrupt_is_quiet(nfw: Nfw, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Reply:
        raise KeyboardInterrupt

    monkeypatch.setattr("nfw.control.ControlClient.request", interrupted)
    code, out, err = nfw("status")
    assert (code, out.strip(), err.strip()) == (130, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(nfw: Nfw, shell: str) -> None:
    code, out, err = nfw("completion", shell)
    assert (code, err) == (0, "")
    assert "_NFW_COMPLETE" in out


def test_interrupted_while_its_modules_are_imported() -> None:
    code = """
import importlib.abc, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from nfw.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_completion_that_no_shell_asks_for() -> None:
    environment = {**os.environ, "_NFW_COMPLETE": "bash_complete"}
    command = [sys.executable, "-m", "nfw", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nfw ")


def test_completion_knows_the_commands() -> None:
    environment = {**os.environ, "_NFW_COMPLETE": "bash_complete", "COMP_WORDS": "nfw policy ", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-m", "nfw"], env=environment, capture_output=True, text=True, check=False)
    assert [line.split(",")[1] for line in done.stdout.split()] == [
        *("apply", "check", "confirm", "convert", "diff", "history", "rollback", "show", "test"),
    ]


# -- policy --------------------------------------------------------------------------------------------------------


def test_policy_check(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    code, out, err = nfw("policy", "check", "good.yaml")
    assert (code, err) == (0, "")
    assert out == "good.yaml: ok, policy good: 1 stateless rule, 1 stateful rule, no TLS inspection\n"
    code, out, _ = nfw("policy", "check", "--json", "good.yaml")
    assert code == 0
    found = json.loads(out)
    assert (found["ok"], found["problems"], found["policy"]["stateful_rules"]) == (True, [], 1)


def test_policy_check_of_a_wrong_one(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("stateles: {}\nworkers: 0\n")
    code, out, err = nfw("policy", "check", "bad.yaml")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "2 errors:",
        'bad.yaml:1:1: unknown key "stateles" in policy; did you mean "stateless"?',
        "bad.yaml:2:10: workers: expected auto or a number from 1 to 64, got 0",
        "bad.yaml: this policy cannot be applied",
    ]
    code, out, err = nfw("policy", "check", "bad.yaml", "--json")
    assert (code, err) == (1, "")
    problems = json.loads(out)["problems"]
    assert [(problem["line"], problem["column"], problem["level"]) for problem in problems] == [
        (1, 1, "error"),
        (2, 10, "error"),
    ]
    assert nfw("policy", "check", "nope.yaml").err.startswith("1 error:\nnope.yaml: policy file does not exist\n")


def test_policy_show(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    code, out, err = nfw("policy", "show", "good.yaml")
    assert (code, err) == (0, "")
    (tmp_path / "again.yaml").write_text(out)
    assert nfw("policy", "show", "again.yaml").out == out
    assert nfw("policy", "show", "nope.yaml").code == 1
    assert nfw("policy", "show", "good.yaml", "--rules").out == out  # none of its rules are in files
    (tmp_path / "a.rules").write_text("# mine\npass ip any any -> any any (sid:1;)\n\n")
    (tmp_path / "files.yaml").write_text("name: files\nstateful: {rule_files: [a.rules]}\n")
    shown = nfw("policy", "show", "files.yaml").out
    rules = nfw("policy", "show", "files.yaml", "--rules").out
    assert rules == f"{shown}\n# a.rules\n# mine\npass ip any any -> any any (sid:1;)\n"


def test_policy_apply(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    asked: list[Request] = []
    beware = {"level": "warning", "message": "good.yaml:1:1: beware"}

    def handler(request: Request) -> Reply:
        asked.append(request)
        if len(asked) < 3:
            return Reply(True, {"generation": 7, "name": "good", "warnings": [beware]})
        return Reply(False, None, ("good.yaml:1:1: wrong", "good.yaml:2:1: wrong too"))

    end = serve(tmp_path / "control", handler)
    try:
        code, out, err = nfw("policy", "apply", "good.yaml", "--control", "control")
        assert (code, out) == (0, "good.yaml: applied as generation 7\n")
        assert err == "1 warning:\ngood.yaml:1:1: beware\n"
        code, out, err = nfw("policy", "apply", "good.yaml", "--control", "control", "--json")
        assert (code, json.loads(out)["generation"], err) == (0, 7, "")
        code, out, err = nfw("policy", "apply", "good.yaml", "--control", "control")
        assert (code, out) == (1, "")
        assert err.splitlines() == [
            "2 errors:",
            "good.yaml:1:1: wrong",
            "good.yaml:2:1: wrong too",
            "good.yaml: not applied; the running policy is unchanged",
        ]
    finally:
        end()
    assert asked[0] == Request("apply", {"policy": str(tmp_path / "good.yaml")})
    assert nfw("policy", "apply", "nope.yaml").err == "nope.yaml: policy file does not exist\n"


def aws_policy(tmp_path: Path, **changes: object) -> Path:
    """Two documents in a folder; the rules of their group are ``changes['rules']``."""
    folder = tmp_path / "docs"
    folder.mkdir(exist_ok=True)
    for number, document in enumerate((awskit.policy(groups=("g",)), awskit.group("g", awskit.stateful(**changes)))):
        (folder / f"{number}.json").write_text(json.dumps(document))
    return folder


def test_policy_check_of_aws_documents(nfw: Nfw, tmp_path: Path) -> None:
    aws_policy(tmp_path)
    summary = "ok, policy p: 0 stateless rules, 1 stateful rule, no TLS inspection\n"
    assert nfw("policy", "check", "docs") == Outcome(0, f"docs: {summary}", "")
    assert nfw("policy", "check", "docs/1.json", "docs/0.json", "--name", "p").out == f"docs/1.json: {summary}"
    code, out, err = nfw("policy", "check", "docs", "--name", "q", "--map", "nope.yaml")
    assert (code, out) == (1, "")
    assert "nope.yaml: map file does not exist" in err
    assert "no policy q among the documents; given: p" in err


def test_policy_check_tells_levels(nfw: Nfw, tmp_path: Path) -> None:
    """What is wrong, what AWS alone would refuse, and what is only to be known."""
    aws_policy(tmp_path, rules="pass tcp any any -> any any (sid:1; classtype:misc-activity;)", Variables={})
    code, out, _ = nfw("policy", "check", "docs", "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (0, True)
    assert sorted(problem["level"] for problem in found["problems"]) == ["aws-refuses", "warning"]
    code, out, err = nfw("policy", "check", "docs")
    assert code == 0
    assert [line for line in err.splitlines() if line.endswith(":")] == [
        "1 warning:",
        "1 aws-refuses (loads here, but AWS would not take it):",
    ]


SHADOWED = "    drop ip any any -> any any (sid:1;)\n    pass tcp any any -> any 80 (sid:2;)\n"
REFUSED = "pass tcp any any -> any any (sid:1; classtype:misc-activity;)"


@pytest.mark.parametrize(
    ("least", "documents", "status"),
    [
        ("error", False, 0),
        ("aws-refuses", False, 0),
        ("warning", False, 1),
        ("error", True, 0),
        ("aws-refuses", True, 1),
        ("warning", True, 1),
    ],
)
def test_policy_check_fails_on_what_is_asked(
    nfw: Nfw, tmp_path: Path, least: str, documents: bool, status: int
) -> None:
    """``documents``: what AWS refuses; else a rule that is never reached."""
    aws_policy(tmp_path, rules=REFUSED)
    (tmp_path / "p.yaml").write_text("stateful:\n  order: strict\n  rules: |\n" + SHADOWED)
    code, out, err = nfw("policy", "check", "docs" if documents else "p.yaml", "--fail-on", least)
    assert (code, ": ok, " in out) == (status, True)
    heading = "1 aws-refuses (loads here, but AWS would not take it):" if documents else "1 warning:"
    assert heading in err.splitlines()
    assert documents or err.endswith("make the other one narrower\n")
    code, out, _ = nfw("policy", "check", "docs" if documents else "p.yaml", "--fail-on", least, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (status, True)
    (problem,) = found["problems"]
    assert problem["code"] == ("aws-refuses" if documents else "stateful-shadowed")
    assert (problem["line"] > 0, bool(problem["message"])) == (True, True)
    wanted = (
        "change it if AWS is to take the policy too" if documents else "move it before, or make the other one narrower"
    )
    assert problem["remedy"] == wanted


def test_policy_convert(nfw: Nfw, tmp_path: Path) -> None:
    aws_policy(tmp_path)
    code, out, err = nfw("policy", "convert", "docs", "--to", "yaml")
    assert (code, err) == (0, "")
    (tmp_path / "docs" / "p.yaml").write_text(out)
    code, template, _ = nfw("policy", "convert", "docs/p.yaml", "--to", "aws")
    assert code == 0
    assert json.loads(template)["Resources"]["Policy"]["Type"] == "AWS::NetworkFirewall::FirewallPolicy"
    assert nfw("policy", "convert", "docs/p.yaml", "--to", "aws", "-o", "p.template") == Outcome(0, "", "")
    assert json.loads((tmp_path / "p.template").read_text()) == json.loads(template)
    assert nfw("policy", "convert", "p.template", "--to", "yaml").out == out
    assert nfw("policy", "convert", "docs/p.yaml", "--to", "aws", "-o", "no/where").code == 1
    assert nfw("policy", "convert", "nope.yaml", "--to", "aws").code == 1


def test_policy_diff_of_documents_and_what_was_made_of_them(nfw: Nfw, tmp_path: Path) -> None:
    """The map is the documents'; where there are none it is in the wrong place."""
    aws_policy(tmp_path)
    (tmp_path / "map.yaml").write_text("home_net: [10.0.0.0/8]\n")
    nfw("policy", "convert", "docs", "--map", "map.yaml", "--to", "yaml", "-o", "p.yaml")
    for sides in (("p.yaml", "docs"), ("docs", "p.yaml")):
        code, out, _ = nfw("policy", "diff", *sides, "--map", "map.yaml")
        assert (code, out.splitlines()[1:]) == (0, ["no difference in effect"])
    code, _, err = nfw("policy", "diff", "p.yaml", "p.yaml", "--map", "map.yaml")
    assert code == 1
    assert "a map file goes with AWS documents; leave the map out" in err


def test_policy_apply_of_aws_documents(nfw: Nfw, tmp_path: Path) -> None:
    """The daemon gets absolute paths, the map and the name."""
    aws_policy(tmp_path)
    (tmp_path / "map.yaml").write_text("home_net: [10.0.0.0/8]\n")
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return Reply(True, {"generation": 2})

    end = serve(tmp_path / "control", handler)
    try:
        options = ["--map", "map.yaml", "--name", "p", "--control", "control"]
        assert nfw("policy", "apply", "docs/0.json", "docs/1.json", *options).code == 0
        assert nfw("policy", "apply", "docs", "--map", "nope.yaml", "--control", "control").code == 1
    finally:
        end()
    (request,) = asked
    expected = {
        "policy": str(tmp_path / "docs/0.json"),
        "more": [str(tmp_path / "docs/1.json")],
        "map": str(tmp_path / "map.yaml"),
        "name": "p",
    }
    assert request == Request("apply", expected)
    source = policy_source(request.args)
    assert source == PolicySource(expected["policy"], (expected["more"][0],), expected["map"], "p")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"policy": "relative"},
        {"policy": "/a", "more": ["b"]},
        {"policy": "/a", "more": "/b"},
        {"policy": "/a", "map": "m"},
        {"policy": "/a", "name": 5},
        {"policy": "/a", "map": 5},
    ],
)
def test_the_daemon_takes_absolute_paths_only(args: dict[str, object]) -> None:
    assert policy_source(args) is None


# -- daemon --------------------------------------------------------------------------------------------------------


def test_status(nfw: Nfw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"version": "0.1.0", "pid": 7, "state": "filtering", "processes": [{"name": "nfw packet 0", "pid": 8}]}
    end = serve(tmp_path / "control", lambda _: Reply(True, data))
    monkeypatch.setenv("NFW_CONTROL", str(tmp_path / "control"))
    try:
        assert json.loads(nfw("status", "--json").out) == data
        assert nfw("status").out.splitlines() == ["nfw 0.1.0, pid 7: filtering", "nfw packet 0, pid 8"]
    finally:
        end()
    code, out, err = nfw("status")
    assert (code, out) == (1, "")
    assert err.startswith(f"nfw: not running: there is no control socket {tmp_path / 'control'}\nnfw: `systemctl start")


WIDE = {
    "version": "1", "pid": 3, "state": "running", "policy": "/etc/nfw/policy.yaml",
    "kernel": {"features": ["queue", "tproxy", "socket", "conntrack marks", "fib", "notrack"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("args", "widest"),
    [
        (("status",), 40),
        (("doctor",), 60),  # names of sysctls stay whole
        (("explain", "p.yaml", "--src", "10.0.0.5", "--dst", "192.0.2.1", "--sni", "a.example"), 40),
    ],
)
def test_a_narrow_terminal(
    nfw: Nfw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], widest: int
) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    monkeypatch.setenv("NFW_CONTROL", str(tmp_path / "control"))
    end = serve(tmp_path / "control", lambda request: Reply(True, WIDE))
    try:
        whole = nfw(*args).out
        monkeypatch.setattr(columns, "terminal_width", lambda: 40)
        narrow = nfw(*args).out
    finally:
        end()
    assert max(map(len, whole.splitlines())) > widest
    assert max(map(len, narrow.splitlines())) <= widest
    assert narrow.split() == whole.split()


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("flows",),
        ("flows", "flush", "--all", "--yes"),
        ("rules", "hits"),
        ("policy", "history"),
        ("policy", "rollback"),
        ("policy", "confirm"),
        ("policy", "diff", "1"),
        ("policy", "diff", "no.yaml", "no.yaml"),
        ("policy", "test", "no.yaml"),
        ("policy", "apply", "no.yaml"),
        ("explain", "no.yaml", "--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", "80"),
        ("explain", "--running", "--src", "10.0.0.1", "--dst", "10.0.0.2", "--dport", "80"),
        ("tls", "suggestions"),
        ("ca", "show", "no.pem"),
        ("logs", "no.log"),
    ],
)
def test_a_failure_is_json_where_json_was_asked_for(nfw: Nfw, tmp_path: Path, args: tuple[str, ...]) -> None:
    control = () if args[0] == "ca" or args[:2] == ("policy", "test") else ("--control", str(tmp_path / "none"))
    code, out, err = nfw(*args, "--json", *control)
    told = json.loads(out)
    assert (code, err) == (1, "")
    assert told["ok"] is False
    assert told["errors"]
    code, out, err = nfw(*args, *control)
    assert (code, out) == (1, "")
    assert err.splitlines() == told["errors"]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("explain", "p.yaml", "--json", "--src", "10.0.0.1", "--dst", "10.0.0.2"), "--dport: missing; expected the"),
        (("explain", "--json", "--dport", "80"), "missing POLICY"),
        (("explain", "--jsonn", "--json"), "--jsonn"),  # said before --json is reached
        (("status", "--timeout", "soon", "--json"), "soon"),
        (("flows", "list", "--json", "--sort", "colour"), "colour"),
        (("policy", "check", "--json"), "Missing argument"),
        (("logs", "-n", "many", "--json"), "many"),
        (("statsu", "--json"), 'did you mean "status"?'),
        (("policy", "--json", "check"), "--json goes behind the command: nfw policy COMMAND --json"),
        (("--json", "status"), "--json goes behind the command: nfw COMMAND --json"),
    ],
)
def test_wrong_usage_is_json_where_json_was_asked_for(nfw: Nfw, args: tuple[str, ...], hint: str) -> None:
    code, out, err = nfw(*args)
    assert (code, err) == (2, "")
    told = json.loads(out)
    assert told["ok"] is False
    assert hint in " ".join(told["errors"])


def test_behind_two_dashes_json_is_no_option(nfw: Nfw) -> None:
    code, out, err = nfw("status", "--", "--json")
    assert (code, out) == (2, "")
    assert "unexpected extra argument" in err


SYN = bytes.fromhex("450000280001000040060000 0a000005 0a000001 9c400050 00000001 00000000 5002ffff 00000000")
TROUBLE = [
    ("policy check ca.yaml", 1, "ca.yaml:1:25: CA certificate ca.pem does not exist; `nfw ca create` makes one"),
    ("policy show 999999999999999999999", 1, "the request cannot be sent: not representable"),
    ("replay syn.pcap --rules r.rules --eve /dev/full", 1, "/dev/full: No space left on device"),
    ("policy check -", 1, "-: policy file does not exist (standard input is not read; expected a file)"),
    ("policy check {empty}", 2, "the name is empty; expected the name of a file"),
    ("policy convert {empty} --to aws", 2, "the name is empty"),
    ("policy diff p.yaml {empty}", 2, "the name is empty"),
    ("policy apply {empty}", 2, "the name is empty"),
    ("policy test {empty}", 2, "the name is empty"),
    ("explain {empty} --src 10.0.0.1 --dst 10.0.0.2 --dport 1", 2, "the name is empty"),
    ("replay {empty} --rules r.rules", 2, "the name is empty"),
    ("rules check {empty}", 2, "the name is empty"),
    ("ca create --name X --out {empty}", 2, "the name is empty; expected the name of a file or folder"),
    ("ca show {empty}", 2, "the name is empty"),
    ("ca create --name {empty} --out x", 1, "the name of a CA has 1 to 64 printable characters"),
    ("policy convert p.yaml --to yaml -o {empty}", 2, "the name is empty"),
    ("policy test t.yaml --junit {empty}", 2, "the name is empty"),
    ("replay syn.pcap --rules r.rules --eve {empty}", 2, "the name is empty"),
    ("explain p.yaml --capture {empty}", 2, "the name is empty"),
    ("logs {empty}", 2, "the name is empty"),
    ("rules check p.yaml", 1, "p.yaml: this is a policy, not a file of rules; expected `nfw policy check p.yaml`"),
    ("rules check aws.json", 1, "aws.json: this is a policy, not a file of rules"),
    ("policy test pipe", 1, "pipe: test file is not a regular file"),
    ("policy test blank", 1, "blank: file is empty; expected a mapping such as {policy: egress.yaml, tests: [...]}"),
    ("policy test list.yaml", 1, "list.yaml:1:1: the test file: expected a mapping such as"),
    ("policy test t.yaml --junit none/r.xml", 1, "none/r.xml: the report cannot be written: No such file or directory"),
    ("explain p.yaml --capture pipe", 1, "pipe: is not a regular file; expected one, as it is read twice"),
    ("explain p.yaml --capture blank", 1, "blank: is empty; expected a pcap or pcapng file"),
    ("logs text", 1, "text: no line of it is a record; expected EVE, a JSON object each line"),
    ("logs pipe", 1, "pipe: is not a regular file"),
    ("status --control text", 1, "control socket text: the file is not a socket; expected nfw's"),
    ("top --once --interval 0.5 --control none --log text", 1, ""),
    ("ca create --name X --out text", 1, "cannot write to text: it is not a directory"),
    ("ca show text", 1, "text: not a certificate in PEM form"),
    ("doctor --ca pipe --control none", 1, "CA: pipe: is not a regular file"),
]


@pytest.mark.parametrize(("line", "code", "told"), TROUBLE)
def test_trouble_says_what_and_what_was_expected(nfw: Nfw, tmp_path: Path, line: str, code: int, told: str) -> None:
    """Nothing hangs, either."""
    os.mkfifo(tmp_path / "pipe")
    files = {"p.yaml": GOOD, "aws.json": '{"RuleGroup": {}}', "blank": "", "list.yaml": "- a", "text": "some text\n"}
    test = "{name: a, flow: {src: 10.0.0.1, dst: 10.0.0.2, dport: 80}, expect: pass}"
    files["t.yaml"] = f"policy: p.yaml\ntests: [{test}]\n"
    files["ca.yaml"] = "tls: {ca: {certificate: ca.pem, private_key: ca.key}, scopes: [{}]}"
    files["r.rules"] = "alert tcp any any -> any any (sid:1;)\n"
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "syn.pcap").write_bytes(pcapfile.pcap([SYN]))
    outcome = nfw(*("" if word == "{empty}" else word for word in line.split()))
    assert outcome.code == code
    assert told in outcome.err + outcome.out


def test_standard_output_and_input_as_files(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    assert nfw("policy", "convert", "p.yaml", "--to", "yaml", "-o", "-").out.startswith("name: good\n")
    assert not (tmp_path / "-").exists()
    (tmp_path / "r.rules").write_text("alert tcp any any -> any any (sid:1;)\n")
    program = [sys.executable, "-m", "nfw", "replay", "-", "--rules", str(tmp_path / "r.rules")]
    done = subprocess.run(program, input=pcapfile.pcap([]), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 packets, 0 flows, 0 alerts, 0 dropped packets\n", b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_locale_ends_a_command(tmp_path: Path, encoding: str) -> None:
    """Data is UTF-8; a name that is no text at all is shown with escapes."""
    policy = tmp_path / "p\udcff.yaml"
    policy.write_text("name: grün→\n")
    env = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "NFW_CACHE": "off",
    }
    for args, told in (("check", r"p\udcff.yaml: ok, policy grün→: "), ("show", 'name: "grün→"')):
        program = [sys.executable, "-m", "nfw", "policy", args, os.fsencode(policy)]
        done = subprocess.run(program, capture_output=True, env=env, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert told in done.stdout.decode()


@pytest.mark.parametrize("args", [("policy", "apply", "p.yaml"), ("policy", "rollback")])
def test_an_interrupt_leaves_what_was_asked_for(
    nfw: Nfw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Reply:
        raise KeyboardInterrupt

    (tmp_path / "p.yaml").write_text("name: p\n")
    monkeypatch.setattr("nfw.control.ControlClient.request", interrupted)
    code, _, err = nfw(*args)
    assert code == 130
    assert "the firewall goes on with it: `nfw policy history`" in err


def test_a_closed_standard_output() -> None:
    """``>&-``."""
    program = f'exec "{sys.executable}" -m nfw rules keywords >&-'
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("value", "kind", "terminal", "painted"),
    [
        ("", "xterm", True, True),
        ("1", "xterm", True, False),
        ("", "xterm", False, False),
        ("", "dumb", True, False),
    ],
)
def test_colours(monkeypatch: pytest.MonkeyPatch, value: str, kind: str, terminal: bool, painted: bool) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", value)
    assert colourful() is painted


def test_explain_by_what_filters_not_by_what_its_files_have_become(nfw: Nfw, tmp_path: Path) -> None:
    """After a rollback the files are those of the policy that went."""
    policy = tmp_path / "p.yaml"
    kept = b"name: p\nstateless: {default: drop}\n"
    policy.write_text("name: p\nstateless: {default: pass}\n")
    store = PolicyStore(tmp_path / "policies")
    store.prepare()
    entry = {"file": str(policy), "more": [], "map": "", "select": "", "monitor": False, "name": "p", "number": 1}
    entry |= {"directory": str(tmp_path / "policies"), "files": {str(policy): store.put(kept)}}
    source = {"file": str(policy), "more": [], "map": "", "name": ""}
    flow = ("--src", "10.0.0.1", "--dst", "192.0.2.1", "--dport", "80", "--control", str(tmp_path / "control"))

    def answer(request: Request) -> Reply:
        if request.command == "policy":
            return Reply(bool(entry), entry, () if entry else ("the running policy was not kept",))
        return Reply(True, {"policy_source": source, "since": 0.0})

    end = serve(tmp_path / "control", answer)
    try:
        assert "\nverdict    drop" in nfw("explain", "--running", *flow).out
        entry.clear()
        code, out, err = nfw("explain", "--running", *flow)
    finally:
        end()
    assert code == 0
    assert "\nverdict    pass" in out
    assert "the running policy was not kept: this is what its files say now" in err


def test_status_shows_what_it_does_not_know() -> None:
    lines = format_status(
        {"state": "filtering", "since": 1000.0, "counts": {"drop": 3}, "queues": [1, 2], "new": {}}, 4661.0
    )
    assert lines[0] == "nfw ?, pid ?: filtering"
    assert lines[1].endswith("(1 h 1 min)")
    assert lines[2:] == ["  counts:", "    drop: 3", "  queues: 1, 2"]


@pytest.mark.parametrize("args", [["run", "--policy", "x.yaml"], ["cleanup"]])
def test_root_is_needed(nfw: Nfw, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setattr(process, "may", lambda *_: False)
    code, out, err = nfw(*args)
    assert (code, out) == (1, "")
    assert "permission denied" in err
    assert "needs root" in err


def test_run_without_its_policy(nfw: Nfw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "may", lambda *_: True)
    assert nfw("run", "--policy", "nope.yaml") == (1, "", "nope.yaml: policy file does not exist\n")


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("{fail_open: true}", True),
        ("{fail_open: false}", False),
        ("{name: silent}", False),
        ("{fail_open: true, workers: many}", False),  # what does not load has not said so
        (None, False),
    ],
)
def test_cleanup_if_fail_open(
    nfw: Nfw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, opens: bool
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(process, "may", lambda *_: True)
    monkeypatch.setattr(hostnet.HostNet, "cleanup", lambda self: opened.append(self))
    policy = tmp_path / "policy.yaml"
    if text is not None:
        policy.write_text(text)
    code, out, err = nfw("cleanup", "--if-fail-open", str(policy))
    assert (code, out, bool(opened)) == (0, "", opens)
    assert ("TRAFFIC PASSES UNFILTERED" if opens else "traffic stays blocked") in err


def test_rules_keywords(nfw: Nfw) -> None:
    code, out, err = nfw("rules", "keywords")
    assert (code, err) == (0, "")
    assert "\nbsize " in out
    code, out, err = nfw("rules", "keywords", "--json")
    assert {"content", "lua"} <= {row["name"] for row in json.loads(out)}
    code, out, err = nfw("rules", "keywords", "--markdown")
    assert out.startswith("# Keywords of the rule language\n")


# -- rules and ca --------------------------------------------------------------------------------------------------


def test_rules_check(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "a.rules").write_text("# fine\npass tcp $HOME_NET any -> $EXTERNAL_NET 443 (sid:1;)\n")
    (tmp_path / "b.rules").write_text("drop tcp any any -> $DMZ $WEB (sid:2;)\n")
    assert nfw("rules", "check", "a.rules") == (0, "1 good rule (1 pass)\n", "")
    code, out, err = nfw("rules", "check", "a.rules", "b.rules")
    assert (code, out) == (1, "")
    assert err.startswith("b.rules:1:21: ")
    assert err.endswith("1 good rule (1 pass), 1 wrong\n")
    code, out, err = nfw(
        "rules", "check", "a.rules", "b.rules", "--var", "DMZ=192.0.2.0/24", "--var", "WEB=80,443", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["actions"] == {"pass": 1, "drop": 1}
    assert nfw("rules", "check", "nope.rules") == (1, "", "nope.rules: rule file does not exist\n")


def test_ca(nfw: Nfw, tmp_path: Path) -> None:
    code, out, err = nfw("ca", "create", "--name", "Example", "--out", "ca")
    assert (code, err) == (0, "")
    assert "ca/ca.pem" in out
    assert "CN=Example" in out
    code, out, err = nfw("ca", "create", "--name", "Example", "--out", "ca")
    assert (code, out) == (1, "")
    assert "is not overwritten" in err
    shown = json.loads(nfw("ca", "show", "ca/ca.pem", "--json").out)
    assert (shown["subject"], shown["is_ca"], shown["problems"]) == ("CN=Example", True, [])
    assert nfw("ca", "import", "ca/ca.pem", "ca/ca.key", "--out", "copy").code == 0
    code, out, err = nfw("ca", "import", "ca/ca.key", "ca/ca.pem", "--out", "copy2")
    assert (code, out, err) == (1, "", "ca/ca.key: this is a private key; expected a certificate\n")
    assert nfw("ca", "show", "nope.pem") == (1, "", "nope.pem: certificate does not exist\n")
    assert "usable       yes" in nfw("ca", "show", "ca/ca.pem").out
    code, out, err = nfw("ca", "rotate", "ca")
    assert (code, err) == (0, "")
    assert "ca/next/ca.pem" in out
    assert "--activate" in out
    code, out, err = nfw("ca", "rotate", "ca", "--activate")
    assert (code, err) == (0, "")
    assert "retired" in out
    assert "nfw policy apply" in out
    assert nfw("ca", "rotate", "ca", "--activate").code == 1
    assert nfw("ca", "export", "ca/ca.pem").out == (tmp_path / "ca/ca.pem").read_text()
    assert nfw("ca", "export", "ca/ca.pem", "--format", "der", "--out", "ca.der").code == 0
    assert (tmp_path / "ca.der").read_bytes()[0] == 0x30
    assert nfw("ca", "export", "ca/ca.key").code == 1


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("--timeout 3 status", "--timeout goes behind the command: nfw COMMAND --timeout"),
        ("policy --fail-on error check x", "--fail-on goes behind the command: nfw policy COMMAND --fail-on"),
        ("help", 'expected "nfw --help"'),
        ("policy help", 'expected "nfw policy --help"'),
        ("version", 'expected "nfw --version"'),
        ("--bogus", "No such option '--bogus'"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_where_to_go(nfw: Nfw, line: str, hint: str) -> None:
    outcome = nfw(*line.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert hint in outcome.err


def test_summaries_in_help_are_whole(nfw: Nfw) -> None:
    assert "..." not in nfw("policy", "--help").out.partition("Commands:")[2]


def test_a_folder_without_documents_is_named_once(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no document in this folder;" in nfw("policy", "check", "empty").err


def test_the_history_is_read_where_no_daemon_runs(nfw: Nfw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFW_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NFW_CONTROL", str(tmp_path / "absent"))
    assert nfw("policy", "history").code == 1  # nothing is kept
    store = PolicyStore(tmp_path / "state" / "policies")
    store.prepare()
    store.write(Entry(1, 1000.0, 0, "start", PolicySource("/etc/nfw/policy.yaml", files={}), name="first"))
    outcome = nfw("policy", "history")
    assert outcome.code == 0
    assert "first" in outcome.out
    assert f"not running: this is what {tmp_path / 'state'} has kept" in outcome.err
    listed = json.loads(nfw("policy", "history", "--json").out)
    assert [entry["number"] for entry in listed["entries"]] == [1]
    (tmp_path / "state" / "policies" / "entries" / "2.json").write_text("{")
    assert "entry 2 of the history is damaged" in nfw("policy", "history").err


def test_a_type_nobody_writes_is_told(nfw: Nfw, tmp_path: Path) -> None:
    (tmp_path / "eve.json").write_text("")
    outcome = nfw("logs", "eve.json", "--type", "alrt", "--type", "tls")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == 'nfw: nfw writes no records of type "alrt"; did you mean "alert"?\n'
    assert set(LOG_EVENTS) < set(TYPES)

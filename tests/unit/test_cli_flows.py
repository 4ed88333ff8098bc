"""``nfw flows`` and ``nfw rules hits`` against a control socket that answers what a test wants."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfw.cli.app import call
from nfw.control import Reply, Request
from nfw.flows import kernel
from tests.unit.test_cli import Outcome, serve
from tests.unit.test_flows import LAYOUT, entry, record


class Daemon:
    """Pages of a few flows and rules; what was flushed and asked."""

    def __init__(self) -> None:
        self.flows = [record(client_port=port, octets=(port, 0)) for port in (1, 3, 2)]
        self.rules = [rule("stateless", "10", 5), rule("stateful", "1:7", 0), rule("stateful", "2:8", 9, "extra")]
        self.rules += [rule("tls", "scope 1", 0, kind="scope"), rule("tls", "EXPIRED", 0, kind="status")]
        self.flushed: list[Any] = []
        self.reset = 0

    def answer(self, request: Request) -> Reply:
        args = request.args
        if request.command == "flows" and "process" not in args:
            return Reply(True, {"generation": 5, "mark_mask": LAYOUT.mask, "processes": ["nfw packet 0"]})
        if request.command == "flows":
            return Reply(True, {"generation": 5, "rows": [list(one) for one in self.flows], "done": True})
        if request.command == "flush":
            self.flushed += args["flows"]
            return Reply(True, {"ended": len(args["flows"])})
        if request.command == "rules":
            start = args["start"]
            return Reply(True, {"total": len(self.rules), "rows": self.rules[start : start + 2]})
        self.reset += request.command == "rules_reset"
        return Reply(True, {"since": 1000.0})


def rule(engine: str, name: str, hits: int, group: str = "", kind: str = "rule") -> dict[str, Any]:
    return {
        "engine": engine, "kind": kind, "id": name, "action": "pass", "text": f"text of {name}", "at": "r.rules:3",
        "group": group, "unit": "packets", "hits": hits, "octets": 100 - hits, "flows": 1, "last": hits * 10.0,
        "began": 1000.0,
    }  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon()
    monkeypatch.setattr(kernel, "dump", lambda *_: iter([entry(client_port=3, octets=(7_000_000, 1))]))
    monkeypatch.setenv("NFW_CONTROL", str(tmp_path / "control"))
    end = serve(tmp_path / "control", made.answer)
    yield made
    end()


Nfw = Callable[..., Outcome]


@pytest.fixture
def nfw(capsys: pytest.CaptureFixture[str]) -> Nfw:
    def run(*args: str) -> Outcome:
        return Outcome(call(args), *capsys.readouterr())

    return run


def test_flows_are_listed_with_most_bytes_first(daemon: Daemon, nfw: Nfw) -> None:
    code, out, err = nfw("flows", "--app", "tls", "--limit", "2")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[0].split()[:3] == ["PROTO", "SOURCE", "DESTINATION"]
    assert "10.1.0.2:3 " in lines[1]
    assert "7.0M/1" in lines[1]
    assert "stateful:7 r.rules:1" in lines[1]
    assert "~2/0" in lines[2], "not the kernel's count"
    assert err == "3 flows, 1 not shown (--limit)\n"
    listed = json.loads(nfw("flows", "list", "--json", "--sort", "source").out)
    assert [flow["src_port"] for flow in listed["flows"]] == [1, 2, 3]
    assert (listed["total"], listed["generation"]) == (3, 5)


def test_no_flow_matches(daemon: Daemon, nfw: Nfw) -> None:
    daemon.flows = []
    code, out, err = nfw("flows", "list", "--source-port", "9")
    assert (code, len(out.splitlines()), err) == (0, 1, "0 flows\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--source", "10.1"], "--source: "),
        (["--destination-port", "x"], "--destination-port: "),
        (["--verdict", "maybe", "--protocol", "tpc"], "--protocol: "),
        (["--sort", "name"], "--sort"),
    ],
)
def test_a_filter_that_cannot_be(daemon: Daemon, nfw: Nfw, args: list[str], said: str) -> None:
    code, out, err = nfw("flows", *args)
    assert (code, out) == (2, "")
    assert said in err


def test_a_flush_wants_to_be_told_what_and_that(daemon: Daemon, nfw: Nfw, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a filter, or --all" in nfw("flows", "flush", "--yes").err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, _, err = nfw("flows", "flush", "--all")
    assert (code, daemon.flushed) == (2, [])
    assert "3 flows would end; --yes" in err
    assert nfw("flows", "flush", "--app", "tls", "--yes").out == "3 flows ended\n"
    assert [row[3] for row, _ in daemon.flushed] == [1, 3, 2]
    assert [len(entries) for _, entries in daemon.flushed] == [0, 1, 0]
    answer = json.loads(nfw("flows", "flush", "--source-port", "3", "--yes", "--json").out)
    assert (answer["matched"], answer["ended"]) == (1, 1)


def test_a_capture_says_that_there_was_more(daemon: Daemon, nfw: Nfw, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    code, out, err = nfw("flows", "capture", "--out", str(path), "--limit", "2")
    assert (code, out) == (1, f"{path}: 2 flows\n")
    assert "more than --limit 2" in err
    assert len(json.loads(path.read_text())["Flows"]) == 2


def test_hits_page_by_page(daemon: Daemon, nfw: Nfw) -> None:
    lines = nfw("rules", "hits").out.splitlines()
    assert [line.split()[1] for line in lines] == ["RULE", "10", "1:7", "extra:2:8", "scope"], "no status without hits"
    assert "never" in lines[2]
    rows = json.loads(nfw("rules", "hits", "--json").out)
    assert [row["id"] for row in rows] == ["10", "1:7", "2:8", "scope 1", "EXPIRED"]
    assert rows[1] == {
        "engine": "stateful", "kind": "rule", "id": "1:7", "action": "pass", "text": "text of 1:7", "at": "r.rules:3",
        "group": "", "unit": "packets", "hits": 0, "flows": 1, "bytes": 100, "last_hit": None,
        "counted_since": "1970-01-01T00:16:40.000000+0000",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        (["--sort", "hits"], ["2:8", "10", "1:7", "scope 1", "EXPIRED"]),
        (["--sort", "bytes"], ["1:7", "scope 1", "EXPIRED", "10", "2:8"]),
        (["--sort", "last", "--limit", "1"], ["2:8"]),
        (["--unused"], ["1:7", "scope 1"]),
        (["--group", "extra"], ["2:8"]),
        (["--engine", "tls", "--engine", "stateless"], ["10", "scope 1", "EXPIRED"]),
    ],
)
def test_which_rules_are_shown(daemon: Daemon, nfw: Nfw, args: list[str], ids: list[str]) -> None:
    assert [row["id"] for row in json.loads(nfw("rules", "hits", "--json", *args).out)] == ids


def test_unused_rules_and_since_when(daemon: Daemon, nfw: Nfw) -> None:
    code, out, err = nfw("rules", "hits", "--unused")
    assert code == 0
    assert out.splitlines()[0].split()[3:6] == ["NOT", "HIT", "SINCE"]
    assert "1970-01-01" in out.splitlines()[1]
    assert err == "2 of 4 rules were not hit\n"
    assert nfw("rules", "hits", "--group", "nope").err == "nfw: the running policy has no rules in group nope\n"


def test_a_reset(daemon: Daemon, nfw: Nfw) -> None:
    code, out, err = nfw("rules", "hits", "--reset")
    assert (code, out, daemon.reset) == (0, "", 1)
    assert "counted anew since 1970-01-01" in err

"""Counts of rules: exact in the engines, added up over processes, kept over swaps and starts for rules that stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP

from engines.counts import RuleCounts
from nfw.pipeline import Answer
from nfw.policy.compile import Compiled, compile_policy
from nfw.policy.loader import load_policy
from nfw.rulecounts import Book, Counted, CountTable, Kept, parts
from nfw.rulerows import STATUSES, Catalogue, status_row
from tests.unit.test_pipeline import CLIENT, SERVER, Bench, Talk

POLICY = """\
stateless:
  default: forward
  rules:
    - {priority: 1, action: drop, protocols: [udp], destination_ports: [9]}
    - {priority: 2, action: pass, protocols: [udp], destination_ports: [53]}
    - {priority: 3, action: forward, protocols: [tcp], destination_ports: [7]}
stateful:
  order: strict
  default_actions: [drop_established, alert_established]
  rules: |
    pass http any any -> any any (msg:"good"; http.host; content:"good"; sid:1;)
    drop http any any -> any any (msg:"bad"; http.host; content:"bad"; sid:2;)
    alert tcp any any -> any 7 (msg:"look"; content:"LOOK"; sid:3;)
"""


def rows(compiled: Compiled, table: CountTable) -> dict[str, tuple[int, int, int]]:
    """Of everything that was hit: hits, bytes, flows."""
    catalogue = Catalogue(compiled)
    sums = table.sums(0, table.rows)
    return {f"{row.engine} {row.id}": sums[at][:3] for at, row in catalogue.told() if sums[at].hits}


def request(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def test_counts_are_exact(tmp_path: Path) -> None:
    """Stateless rules, pass, drop and alert rules, defaults; what a flow is counted for once and what more often."""
    bench = Bench(tmp_path, POLICY)
    pipeline = bench.pipeline
    compiled = compile_policy(load_policy(tmp_path / "p.yaml", check_key=False))
    catalogue = Catalogue(compiled)
    table = CountTable(catalogue.rows, 1)
    catalogue.attach(table, 0)
    pipeline.filter, pipeline.ruleset = compiled.filter, compiled.ruleset

    discard, ask = UDP(sport=5000, dport=9) / b"12345678", UDP(sport=5000, dport=53) / b"ask"
    for _ in range(3):
        assert bench.send(IP(src=CLIENT, dst=SERVER) / discard) is Answer.DROP
    bench.send(IP(src=CLIENT, dst=SERVER) / UDP(sport=5001, dport=9))
    bench.send(IP(src=CLIENT, dst=SERVER) / ask)
    assert rows(compiled, table) == {"stateless 1": (4, 3 * 36 + 28, 2), "stateless 2": (1, 31, 1)}

    bench.now = 2000.0
    sent = {}
    for port, host in ((40001, "good"), (40002, "good"), (40003, "bad"), (40004, "other")):
        talk = Talk(bench, sport=port)
        talk.open()
        sent[port] = talk.client(data=request(host))
        bench.known(sent[port])
    echo = Talk(bench, 7, 40005)
    echo.open()
    pieces = [echo.client(data=b"LOOK1"), echo.client(data=b"LOOK2")]
    for piece in pieces:
        bench.known(piece)
    size = {port: len(bytes(packet)) for port, packet in sent.items()}
    found = rows(compiled, table)
    assert found["stateful 1:1"] == (2, size[40001] + size[40002], 2)
    assert found["stateful 1:2"] == (1, size[40003], 1)
    assert found["stateful 1:3"] == (1, len(bytes(pieces[0])), 1), "the flow is dropped with its first piece"
    # The unfinished echo, and the other host. That a flow is alerted about is counted in its place.
    assert found["stateful drop_established"][0::2] == (2, 2)
    assert found["stateful alert_established"][0::2] == (2, 2)
    assert found["stateless 3"][0::2] == (4, 1), "SYN, ACK, both pieces; the server's way is another flow"
    last = table.sums(0, table.rows)
    assert {one.last for one in last if one.hits} == {1000.0, 2000.0}


def test_a_flow_counts_once_for_a_rule_that_matches_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateful: {order: action, rule_files: [r.rules]}\n")
    talk = Talk(bench, 7)
    talk.open()
    for _ in range(3):
        bench.known(talk.client(data=b"LOOK" + b"." * 600))
    counts, rule = bench.pipeline.ruleset.counts, bench.pipeline.ruleset.rules
    index = next(one.index for one in rule if one.signature.ref.id == 4)
    assert counts.hits[index] > 1
    assert counts.flows[index] == 1


# -- shared by processes -----------------------------------------------------------------------------------------------


def test_slots_are_added_up_by_another_process() -> None:
    table = CountTable(5, 2)
    for slot in range(2):
        pid = os.fork()
        if pid == 0:
            counts = table.counts(slot, 1, 4)
            counts.add(0, 100, 5.0 + slot, flow=True)
            counts.add(2, 1 << 40, 9.0, flow=False)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert table.sums(0, 5) == [
        Counted(0, 0, 0, 0.0),
        Counted(2, 200, 2, 6.0),
        Counted(0, 0, 0, 0.0),
        Counted(2, 2 << 40, 0, 9.0),
        Counted(0, 0, 0, 0.0),
    ]
    assert table.sums(1, 2) == [Counted(2, 200, 2, 6.0)]


def test_a_process_started_again_goes_on_in_its_slot() -> None:
    table = CountTable(2, 1)
    table.counts(0, 0, 2).add(1, 10, 1.0, flow=True)
    again = table.counts(0, 0, 2)
    again.add(1, 10, 2.0, flow=True)
    assert table.sums(0, 2)[1] == Counted(2, 20, 2, 2.0)
    assert again.own_hits() == [0, 1], "what it tells for metrics is its own: the one before has told the rest"


def test_a_reset_does_not_disturb_who_counts() -> None:
    table = CountTable(2, 1)
    counts = table.counts(0, 0, 2)
    counts.add(0, 10, 1.0, flow=True)
    table.reset()
    assert table.sums(0, 2) == [Counted(0, 0, 0, 0.0)] * 2
    counts.add(0, 10, 3.0, flow=False)
    assert table.sums(0, 2)[0] == Counted(1, 10, 0, 3.0)


def test_columns_that_are_lists() -> None:
    counts = RuleCounts(2)
    counts.add(1, 7, 2.5, flow=True)
    assert (counts.hits, counts.octets, counts.flows, counts.last) == ([0, 1], [0, 7], [0, 1], [0.0, 2.5])
    assert counts.own_hits() == [0, 1]


# -- which rule is which -----------------------------------------------------------------------------------------------


def digests(tmp_path: Path, text: str) -> dict[str, bytes]:
    (tmp_path / "p.yaml").write_text("name: t\n" + text)
    told = Catalogue(compile_policy(load_policy(tmp_path / "p.yaml", check_key=False))).told()
    return {f"{row.engine} {row.id}": row.digest for _, row in told}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("name: t", "name: t\n# moved", set()),
        ('sid:1;)', 'sid:1; rev:2;)', {"stateful 1:1"}),
        ('"bad"', '"worse"', {"stateful 1:2"}),
        ("action: drop, protocols", "action: pass, protocols", {"stateless 1"}),
        ("destination_ports: [53]", "destination_ports: [54]", {"stateless 2"}),
        ("default: forward\n  rules", "default: drop\n  rules", {"stateless default"}),
        ("drop_established, alert_established", "drop_established, alert_strict",
         {"stateful alert_established", "stateful alert_strict"}),
    ],
)  # fmt: skip
def test_a_rule_is_the_same_if_it_says_the_same(tmp_path: Path, old: str, new: str, changed: set[str]) -> None:
    before = digests(tmp_path, POLICY)
    after = digests(tmp_path, ("# name: t\n" + POLICY).replace(old, new))
    assert {name for name, digest in (before.items() ^ after.items())} == changed
    assert len(set(after.values())) == len(after)


def test_rules_that_are_alike_are_counted_apart(tmp_path: Path) -> None:
    same = "stateless: {default: drop, rules: [{priority: 1, action: pass}]}\n"
    assert len(set(digests(tmp_path, same).values())) == 2
    assert [status_row(name) for name in STATUSES] == list(range(len(STATUSES)))


# -- over generations and starts ---------------------------------------------------------------------------------------


def told(*hits: int, last: float = 50.0) -> list[list[Any]]:
    return [[bytes([number]), one, one * 10, 1, last] for number, one in enumerate(hits)]


def test_counts_go_on_over_a_swap() -> None:
    book = Book()
    book.tell(1, told(5, 0), 100.0)
    assert book.kept(b"\0") is None, "while its generation runs it is told by its leader"
    book.tell(1, told(7, 1, last=60.0), 100.0)
    book.fold(1)
    assert book.kept(b"\0") == Kept(7, 70, 1, 60.0, 100.0)
    book.tell(2, told(1, last=70.0), 200.0)
    book.fold(2)
    assert book.kept(b"\0") == Kept(8, 80, 2, 70.0, 100.0)
    assert book.kept(b"\1") == Kept(1, 10, 1, 60.0, 100.0)
    book.fold(9)
    book.reset()
    assert book.kept(b"\0") is None


def test_the_book_is_bounded() -> None:
    """What was in no policy for longest goes first."""
    book = Book(bound=3)
    book.tell(1, told(1, 1, 1), 1.0)
    book.fold(1)
    book.tell(2, [[b"\1", 1, 1, 1, 1.0], [b"x", 1, 1, 1, 1.0]], 2.0)
    book.fold(2)
    assert [book.kept(name) is not None for name in (b"\0", b"\1", b"\2", b"x")] == [False, True, True, True]


def test_counts_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rule-counts"
    book = Book()
    book.tell(1, told(5), 100.0)
    book.fold(1)
    book.tell(2, told(2, 3), 200.0)
    book.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Book()
    assert again.load(path) is None
    assert again.kept(b"\0") == Kept(7, 70, 2, 50.0, 100.0)
    assert again.kept(b"\1") == Kept(3, 30, 1, 50.0, 200.0)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa1a\x01", b"not msgpack", b"\x82\xa7version\x02\xa5rules\x90"])
def test_a_damaged_file_is_said_and_replaced(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rule-counts"
    path.write_bytes(data)
    book = Book()
    said = book.load(path)
    assert said is not None
    assert said.startswith(f"{path}: ")
    assert len(book) == 0
    book.save(path)
    assert Book().load(path) is None
    assert Book().load(tmp_path / "none") is None


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Book().save(tmp_path / "none" / "rule-counts")
    (tmp_path / "dir").mkdir()
    with pytest.raises(OSError):
        Book().save(tmp_path / "dir")
    assert [path.name for path in tmp_path.iterdir()] == ["dir"]


def test_pieces() -> None:
    assert list(parts([1, 2, 3], 2)) == [[1, 2], [3]]
    assert list(parts([], 2)) == [[]]


def test_tcp_without_a_flow_is_counted_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateless: {default: drop}\n")
    bench.send(IP(src=CLIENT, dst=SERVER) / TCP(sport=1, dport=2, flags="S"))
    assert bench.pipeline.filter.default_hits == 1

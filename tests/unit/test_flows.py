"""Listing and flushing flows: the filter, a worker's slices, the kernel's messages, the daemon's order, the files."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from nfw.control import Reply
from nfw.flows import capture, kernel, listing, recorder
from nfw.flows.client import Entries, FlowClient, FlowsError
from nfw.flows.desk import FlowDesk
from nfw.flows.filter import FlowFilter
from nfw.flows.kernel import KernelFlow
from nfw.flows.ledger import Ledger, Settled
from nfw.flows.listing import PAGE_ROWS, WALK_SECONDS, WALKS, Listings, pipeline_flows
from nfw.flows.record import FlowRecord
from nfw.log import LogSender
from nfw.marks import Disposition, MarkLayout
from nfw.pipeline import Answer
from nfw.top import View
from tests.unit.test_pipeline import CLIENT, INSPECT, SERVER, Bench, Talk

A, B = socket.inet_aton(CLIENT), socket.inet_aton(SERVER)
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
LAYOUT = MarkLayout()


def record(**changes: Any) -> FlowRecord:
    plain = FlowRecord(
        3, 6, A, 40000, B, 443, 61.0, 2.0, (5, 4), (500, 400), "tls", "www.Example.com", "pass", "rule",
        "stateful:7", "r.rules:1", "established", "worker", "nfw packet 0", A + B + bytes.fromhex("9c4001bb"),
    )  # fmt: skip
    return plain._replace(**changes)


def entry(**changes: Any) -> KernelFlow:
    mark = LAYOUT.compose(5, Disposition.PASS)
    plain = KernelFlow(
        6, A, 40000, B, 443, B, 443, mark, 431990, "established", None, (50, 40), (5000, 4000), None
    )  # fmt: skip
    return plain._replace(**changes)


# -- filter ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "matches"),
    [
        ({}, True),
        ({"sources": ["10.1.0.0/16"]}, True),
        ({"sources": ["10.2.0.0/16", "10.1.0.2"]}, True),
        ({"sources": ["10.2.0.0/16"]}, False),
        ({"sources": ["2001:db8::/32"]}, False),
        ({"destinations": ["203.0.113.10"]}, True),
        ({"destinations": ["203.0.113.11"]}, False),
        ({"source_ports": ["30000-50000"]}, True),
        ({"source_ports": ["1-1024"]}, False),
        ({"destination_ports": [443]}, True),
        ({"destination_ports": [80, "8000-9000"]}, False),
        ({"protocols": ["tcp"]}, True),
        ({"protocols": ["udp", 1]}, False),
        ({"min_age": 61}, True),
        ({"min_age": 61.5}, False),
        ({"apps": ["TLS"]}, True),
        ({"apps": ["http"]}, False),
        ({"names": ["*.example.com"]}, True),
        ({"names": ["example.com"]}, False),
        ({"names": ["www.example.*", "x"]}, True),
        ({"verdicts": ["pass", "inspect"]}, True),
        ({"verdicts": ["drop"]}, False),
        ({"tls": False}, True),
        ({"tls": True}, False),
        ({"protocols": ["tcp"], "apps": ["http"]}, False),
    ],
)
def test_a_filter(plain: dict[str, Any], matches: bool) -> None:
    made = FlowFilter.from_plain(plain)
    assert made.matches(record()) is matches
    assert FlowFilter.from_plain(msgpack.unpackb(msgpack.packb(made.to_plain()))) == made
    assert bool(made) is bool(plain)


def test_a_flow_of_unknown_age_is_no_older_than_any() -> None:
    assert not FlowFilter(min_age=0.1).matches(record(age=None))
    assert FlowFilter().matches(record(age=None))


def test_every_error_of_a_filter_at_once() -> None:
    wrong = {"sources": ["10.1"], "source_ports": ["9-1"], "protocols": ["tpc"], "verdicts": ["block"], "min_age": "x",
             "tls": 3, "nmes": [], "apps": "tls"}  # fmt: skip
    with pytest.raises(ValueError) as caught:
        FlowFilter.from_plain(wrong)
    assert sorted(str(text).split(":")[0].split(" ")[0] for text in caught.value.args) == [
        "apps", "min_age", "protocols", "source_ports", "sources", "tls", "unknown", "verdicts",
    ]  # fmt: skip


# -- a worker ----------------------------------------------------------------------------------------------------------


def walk_all(listings: Listings, wanted: dict[str, Any], now: float) -> tuple[list[FlowRecord], int]:
    rows, pages = [], 1
    page = listings.page({"token": 1, "filter": wanted}, now)
    while True:
        rows += page["rows"]
        if page["done"]:
            assert listings.page({"token": 1, "page": pages - 1}, now) == page, "an answer that came too late"
            return rows, pages
        page = listings.page({"token": 1, "page": pages}, now)
        pages += 1


def test_a_hundred_thousand_flows_come_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many match, a page is bounded in rows and by the clock."""
    many = [record(id=number, client_port=number % 60000) for number in range(100_000)]
    listings = Listings(lambda _: iter(many))
    rows, pages = walk_all(listings, {}, 0.0)
    assert [row.id for row in rows] == list(range(100_000))
    assert pages >= 100_000 // PAGE_ROWS
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(listing.time, "perf_counter", lambda: next(ticks) * listing.SLICE_SECONDS / 4)
    page = listings.page({"token": 2, "filter": {"protocols": [99]}}, 0.0)
    assert page == {"token": 2, "page": 0, "rows": [], "done": False}, "nothing matches, and still the slice ends"


def test_a_walk_is_given_up() -> None:
    many = [record(id=number) for number in range(PAGE_ROWS + 1)]
    listings = Listings(lambda _: iter(many))
    for token in range(WALKS + 1):
        assert not listings.page({"token": token, "filter": {}}, 0.0)["done"]
    assert "given up" in listings.page({"token": 0}, 0.0)["error"]
    assert "given up" in listings.page({"token": 1, "page": 2}, 0.0)["error"], "a page was left out"
    assert listings.page({"token": 2, "page": 1}, 1.0)["done"]
    listings.expire(WALK_SECONDS)
    assert len(listings) == 1, "the others were not asked for"
    listings.expire(WALK_SECONDS + 1.0)
    assert len(listings) == 0
    assert "none of" in listings.page({"token": 9, "filter": {"verdicts": ["x"]}}, 0.0)["error"]


def test_flows_of_a_pipeline(tmp_path: Path) -> None:
    rules = 'pass http any any -> any 81 (msg:"p"; sid:20;)\n'
    bench = Bench(tmp_path, INSPECT, rules)
    open_one, passed, refused = Talk(bench), Talk(bench, 81, 40001), Talk(bench, 7, 40002)
    for talk in (open_one, refused):
        talk.open()
    bench.send(passed.client("S"))
    bench.known(passed.server("SA"))
    bench.known(passed.client("A"))
    assert bench.known(passed.client(data=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) is Answer.PASS
    assert bench.known(refused.client(data=b"EVIL")) is Answer.DROP_FLOW
    bench.now += 7
    rows, _ = walk_all(Listings(lambda now: pipeline_flows(bench.pipeline, now)), {}, bench.now)
    told = {row.client_port: row for row in map(FlowRecord.from_wire, msgpack.unpackb(msgpack.packb(rows)))}
    assert [(port, one.verdict, one.rule, one.kept_by) for port, one in sorted(told.items())] == [
        (40000, "inspect", "", "worker"),
        (40001, "pass", "stateful:20", "kernel"),
        (40002, "reject", "stateful:2", "kernel"),
    ]
    assert told[40000].packets == (2, 1)
    assert (told[40000].age, told[40000].idle, told[40000].state) == (7.0, 7.0, "established")
    assert told[40001].rule_at.endswith("r.rules:5")


def names(bench: Bench) -> list[list[Any]]:
    return [[*row[1:6], row.id, row.key] for row in pipeline_flows(bench.pipeline, bench.now)]


@pytest.mark.parametrize("how", ["drop", "reject"])
@pytest.mark.parametrize("which", ["all", "none"])
def test_flushed_tcp_is_over_until_the_client_begins_anew(tmp_path: Path, how: str, which: str) -> None:
    bench = Bench(tmp_path, INSPECT + f"open_flows: {{which: {which}, action: {how}}}\n")
    talk = Talk(bench)
    talk.open()
    assert bench.pipeline.flush(names(bench), bench.now) == 1
    assert len(bench.pipeline.table) == 0
    records = [event for event in bench.effects.events if event["event_type"] == "flow"]
    assert [event["flow"]["reason"] for event in records] == ["flushed"]
    for packet in (talk.client(data=b"GET / HTTP/1.1\r\n"), talk.server(data=b"x"), talk.server("FA")):
        assert bench.known(packet) is Answer.DROP
        assert bench.send(packet) is Answer.DROP
    assert len(bench.effects.injected) == (12 if how == "reject" else 0)
    assert bench.pipeline.counts["flushed"] == 6
    Talk(bench).open()
    assert bench.pipeline.flush([[6, A, 40000, B, 80, 99, A + B + bytes.fromhex("9c400050")]], bench.now) == 0
    assert len(bench.pipeline.table) == 1, "another flow with the same ports is not meant"


def test_flushed_flow_of_the_kernel_does_not_come_back(tmp_path: Path) -> None:
    """Packets that were queued before the mark was set must not be answered with it once more."""
    bench = Bench(tmp_path, "stateful: {order: action}\n")
    talk = Talk(bench)
    talk_open = [bench.send(talk.client("S")), bench.known(talk.server("SA")), bench.known(talk.client("A"))]
    assert talk_open[-1] is Answer.PASS
    assert bench.known(talk.client(data=b"queued")) is Answer.PASS
    (name,) = names(bench)
    assert bench.pipeline.flush([name], bench.now) == 0
    assert names(bench) == []
    assert bench.known(talk.client(data=b"queued")) is Answer.DROP


def test_flushed_udp_goes_on_only_from_the_client(tmp_path: Path) -> None:
    bench = Bench(tmp_path, INSPECT)
    ask, answer = (
        IP(src=CLIENT, dst=SERVER) / UDP(sport=5000, dport=53) / b"ask",
        IP(src=SERVER, dst=CLIENT) / UDP(sport=53, dport=5000) / b"answer",
    )
    bench.send(ask)
    bench.known(answer)
    assert bench.pipeline.flush(names(bench), bench.now) == 1
    assert bench.known(answer) is Answer.ENDED
    assert len(bench.pipeline.table) == 0
    assert bench.send(ask) is Answer.INSPECT
    assert bench.known(answer) is Answer.ACCEPT


def test_a_flow_passed_by_a_stateless_rule_is_remembered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "stateless: {default: drop, rules: [{priority: 9, action: pass, protocols: [udp]}]}\n")
    assert bench.send(IP(src=CLIENT, dst=SERVER) / UDP(sport=5000, dport=53) / b"ask") is Answer.PASS
    bench.send(IP(src=CLIENT, dst=SERVER) / ICMP())
    (row,) = pipeline_flows(bench.pipeline, bench.now)
    assert (row.verdict, row.rule, row.kept_by, row.octets) == ("pass", "stateless:9", "kernel", (31, 0))
    assert row.rule_at.endswith("p.yaml:2")


def test_the_ledger_is_bounded() -> None:
    ledger = Ledger(2)
    for number in range(4):
        flow = Settled(bytes([number]), 6, A, 1, B, 2, 0.0, (0, 0), (0, 0), None, "", None, "", "")
        ledger.add(flow)
    assert [flow.key for flow in ledger.walk()] == [b"\2", b"\3"]
    ledger.discard(6, b"\2")
    ledger.discard(17, b"\3")
    assert len(ledger) == 1


# -- the kernel's messages ---------------------------------------------------------------------------------------------


def nested(kind: int, *inner: bytes) -> bytes:
    return kernel._attribute(kind | 0x8000, b"".join(inner))


def message(flow: KernelFlow, *more: bytes) -> bytes:
    reply = flow._replace(
        client=flow.server, client_port=flow.server_port, sent_to=flow.client, sent_to_port=flow.client_port
    )
    back = bytearray(kernel._original(reply))
    struct.pack_into("=H", back, 2, 2 | 0x8000)
    mark = kernel._attribute(8, struct.pack(">I", flow.mark))
    timeout = kernel._attribute(7, struct.pack(">I", flow.timeout))
    return b"\2\0\0\0" + kernel._original(flow) + bytes(back) + mark + timeout + b"".join(more)


@pytest.mark.parametrize(
    "flow",
    [
        entry(state="", packets=None, octets=None),
        entry(sent_to=socket.inet_aton("192.0.2.1"), sent_to_port=8443, state="", packets=None, octets=None),
        entry(protocol=17, client=SIX, server=SIX[::-1], sent_to=SIX[::-1], state="", packets=None, octets=None),
        entry(protocol=1, client_port=0, server_port=0, sent_to_port=0, icmp=(7, 8, 0), state="", packets=None,
              octets=None),
    ],
)  # fmt: skip
def test_an_entry_is_read_as_it_is_written(flow: KernelFlow) -> None:
    assert kernel._flow(message(flow)) == flow


def test_counters_start_and_state_of_an_entry() -> None:
    def counted(kind: int, packets: int, octets: int) -> bytes:
        values = (kernel._attribute(1, struct.pack(">Q", packets)), kernel._attribute(2, struct.pack(">Q", octets)))
        return nested(kind, *values)

    more = (
        counted(9, 50, 5000),
        counted(10, 1 << 40, 4000),
        nested(20, kernel._attribute(1, struct.pack(">Q", 1_500_000_000))),
        nested(4, nested(1, kernel._attribute(1, b"\3"))),
    )
    assert kernel._flow(message(entry(), *more)) == entry(packets=(50, 1 << 40), start=1.5)


@pytest.mark.parametrize(
    ("flow", "seconds"),
    [
        (entry(timeout=431990), 10.0),
        (entry(timeout=290), 10.0),  # data is waiting for its acknowledgement
        (entry(state="time_wait", timeout=100), 20.0),
        (entry(state="close", timeout=11), None),
        (entry(protocol=17, timeout=25, packets=(3, 0)), 5.0),
        (entry(protocol=17, timeout=25, packets=(3, 3)), 95.0),
        (entry(protocol=17, timeout=100, packets=None), 20.0),
        (entry(protocol=47, timeout=500), 100.0),
        (entry(protocol=47, timeout=700), None),
    ],
)
def test_idle_time_is_what_is_gone_of_the_timeout(flow: KernelFlow, seconds: float | None) -> None:
    limits = {
        "tcp_timeout_established": 432000, "tcp_timeout_unacknowledged": 300, "tcp_timeout_time_wait": 120,
        "tcp_timeout_close": 10, "udp_timeout": 30, "udp_timeout_stream": 120, "generic_timeout": 600,
    }  # fmt: skip
    assert kernel.idle(flow, limits) == seconds


# -- put together ------------------------------------------------------------------------------------------------------


def test_records_and_entries_are_joined() -> None:
    other = entry(client_port=40009, mark=LAYOUT.compose(5, Disposition.DROP), start=100.0)
    inspected = entry(client_port=40010, mark=LAYOUT.compose(5, Disposition.INSPECT))
    entries = Entries([entry(), other, inspected], LAYOUT, 160.0, _limits={})
    joined = entries.join(record())
    assert joined is not None
    assert (joined.record.packets, joined.record.octets, joined.record.true_counts) == ((50, 40), (5000, 4000), True)
    assert (joined.record.age, joined.record.state, joined.entries) == (61.0, "established", (entry(),))
    assert entries.join(record(kept_by="kernel")) is None, "the kernel's flow has ended"
    alone = entries.join(record())
    assert alone is not None
    assert alone.record == record(), "a worker's own flow need not be in the kernel's list yet"
    (rest,) = entries.rest()
    assert (rest.record.client_port, rest.record.verdict, rest.record.age) == (40009, "drop", 60.0)


def test_a_flow_whose_server_spoke_first_has_the_kernels_client() -> None:
    entries = Entries([entry(protocol=17)], LAYOUT, 0.0, _limits={})
    back = record(protocol=17, client=B, client_port=443, server=A, server_port=40000, kept_by="kernel")
    joined = entries.join(back)
    assert joined is not None
    assert joined.record[2:6] == (A, 40000, B, 443)


class Leader:
    """What a generation answers, and the order of what it was asked and of what the kernel was told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers: dict[tuple[str, bool], Any] = {("flush", False): 1, ("flush", True): 1}

    def ask(self, what: str, body: Any, answer: Callable[[Any], None]) -> None:
        self.asked.append((what, body))
        answer(self.answers[what, bool(body.get("sessions"))])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Leader:
    leader = Leader()

    def note(name: str) -> Any:
        def changed(flows: list[KernelFlow], *more: int) -> int:
            if flows:
                leader.asked.append((name, [flow.client_port for flow in flows], *more))
            return len(flows)

        return changed

    monkeypatch.setattr(kernel, "delete", note("delete"))
    monkeypatch.setattr(kernel, "mark", note("mark"))
    return leader


def test_the_order_of_a_flush(told: Leader) -> None:
    desk = FlowDesk(LAYOUT, 5, told.ask)
    udp = record(protocol=17, kept_by="kernel", client_port=1)
    session = record(kept_by="tls", process="nfw tls 0", client_port=2, id=77)
    foreign = entry(client_port=3, mark=LAYOUT.compose(4, Disposition.PASS))
    flows = [
        [record(), [entry()]],
        [udp, [entry(protocol=17, client_port=1)]],
        [session, [entry(client_port=2)]],
        [record(client_port=3, kept_by="kernel"), [foreign]],
    ]
    plain = msgpack.unpackb(msgpack.packb({"generation": 5, "flows": flows}))
    reply = desk.flush(plain)
    assert getattr(reply, "reply", None) == Reply(True, {"ended": 3}, ())
    assert [asked[0] for asked in told.asked] == ["flush", "mark", "delete", "flush"]
    assert told.asked[1][1:] == ([1], LAYOUT.compose(5, Disposition.ENDED), LAYOUT.mask)
    assert told.asked[2][1] == [40000, 2]
    assert told.asked[3][1] == {"flows": [["nfw tls 0", [6, A, 2, B, 443, 77]]], "sessions": True}


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"generation": 4, "flows": []},
        {"generation": 5, "flows": [[1]]},
        {"generation": 5, "flows": [[record()] * 2] * 500},
    ],
)
def test_a_flush_that_is_refused(told: Leader, args: dict[str, Any]) -> None:
    reply = FlowDesk(LAYOUT, 5, told.ask).flush(args)
    assert isinstance(reply, Reply)
    assert not reply.ok
    assert told.asked == []


def test_a_generation_that_does_not_answer_is_an_error(told: Leader) -> None:
    told.answers["flows", False] = {"error": "too late"}
    told.answers["flush", False] = {"error": "too late"}
    desk = FlowDesk(LAYOUT, 5, told.ask)
    for reply in (desk.page({}), desk.flush({"generation": 5, "flows": [[record(), []]]})):
        assert getattr(reply, "reply", None) == Reply(False, None, ("too late",))


class Control:
    """A control socket's answers."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def request(self, command: str, **args: Any) -> Reply:
        self.requests.append((command, args))
        return self.replies.pop(0)


def test_a_client_asks_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "dump", lambda *_: iter([entry()]))
    first = Reply(True, {"generation": 5, "mark_mask": LAYOUT.mask, "processes": ["nfw packet 0"]}, ())
    pages = [
        Reply(True, {"generation": 5, "rows": [list(record())], "done": False}, ()),
        Reply(True, {"generation": 5, "rows": [list(record(client_port=2))], "done": True}, ()),
    ]
    control = Control(first, *pages)
    found = list(FlowClient(control).flows(FlowFilter(protocols=(6,))))  # type: ignore[arg-type]
    assert [one.record.client_port for one in found] == [40000, 2]
    assert "filter" in control.requests[1][1]
    assert "filter" not in control.requests[2][1]
    with pytest.raises(FlowsError, match="gone"):
        list(FlowClient(Control(first, Reply(False, None, ("gone",)))).flows(FlowFilter()))  # type: ignore[arg-type]


def test_a_page_that_comes_too_late_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "dump", lambda *_: iter(()))
    first = Reply(True, {"generation": 5, "mark_mask": LAYOUT.mask, "processes": ["nfw packet 0"]}, ())
    late = Reply(False, None, ("nfw packet 0 did not answer in time",))
    page = Reply(True, {"generation": 5, "rows": [list(record())], "done": True}, ())
    control = Control(first, late, late, page)
    assert len(list(FlowClient(control).flows(FlowFilter()))) == 1  # type: ignore[arg-type]
    assert control.requests[1] == control.requests[2] == control.requests[3]
    with pytest.raises(FlowsError, match="in time"):
        list(FlowClient(Control(first, *[late] * 11)).flows(FlowFilter()))  # type: ignore[arg-type]


def test_without_the_kernels_list_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")
        yield

    monkeypatch.setattr(kernel, "dump", refused)
    first = Reply(True, {"generation": 5, "mark_mask": LAYOUT.mask, "processes": ["nfw packet 0"]}, ())
    page = Reply(True, {"generation": 5, "rows": [list(record())], "done": True}, ())
    client = FlowClient(Control(first, page))  # type: ignore[arg-type]
    assert [one.record.true_counts for one in client.flows(FlowFilter())] == [False]
    assert "CAP_NET_ADMIN" in client.notes[0]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_capture_as_aws_has_it(tmp_path: Path) -> None:
    wanted = FlowFilter.from_plain({"sources": ["10.1.0.0/16"], "destination_ports": [443, "8000-8999"], "min_age": 60})
    path = tmp_path / "flows.json"
    rows = [record(), record(client_port=2)]
    assert capture.write(path, "aws", rows, wanted, 5, 1000.0, 100) == (2, False)
    document = json.loads(path.read_text())
    assert document["FlowOperationStatus"] == "COMPLETED"
    assert document["FlowOperation"] == {
        "MinimumFlowAgeInSeconds": 60,
        "FlowFilters": [
            {"SourceAddress": {"AddressDefinition": "10.1.0.0/16"}, "DestinationPort": "443"},
            {"SourceAddress": {"AddressDefinition": "10.1.0.0/16"}, "DestinationPort": "8000:8999"},
        ],
    }
    flow = document["Flows"][0]
    flow.pop("nfw")
    assert flow == {
        "SourceAddress": {"AddressDefinition": CLIENT},
        "DestinationAddress": {"AddressDefinition": SERVER},
        "SourcePort": "40000",
        "DestinationPort": "443",
        "Protocol": "TCP",
        "Age": 61,
        "PacketCount": 9,
        "ByteCount": 900,
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert capture.write(path, "aws", rows, wanted, 5, 1000.0, 1) == (1, True)
    assert json.loads(path.read_text())["FlowOperationStatus"] == "COMPLETED_WITH_ERRORS"
    assert capture.write(path, "aws", [], FlowFilter(), 5, 1000.0, 1) == (0, False)
    assert json.loads(path.read_text())["Flows"] == []


def test_a_capture_as_records(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    capture.write(path, "eve", [record(), record(verdict="inspect", rule="")], FlowFilter(), 5, 1000.0, 100)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["event_type"], first["flow"]["bytes_toserver"], first["flow"]["age"]) == ("flow", 500, 61)
    assert (first["nfw"]["final"], first["nfw"]["rule"], first["verdict"]["action"]) == (False, "stateful:7", "accept")
    assert "verdict" not in second


def test_a_capture_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text("before")

    def broken() -> Any:
        yield record()
        raise FlowsError("the daemon has gone")

    with pytest.raises(FlowsError):
        capture.write(path, "aws", broken(), FlowFilter(), 5, time.time(), 100)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


class Lines(LogSender):
    """What would go to the log writer."""

    def __init__(self) -> None:
        super().__init__(None, None, ("flow",))
        self.events: list[dict[str, Any]] = []
        self.flushed: list[int] = []

    def write(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def flush(self) -> None:
        self.flushed.append(len(self.events))


def test_records_of_open_flows_are_handed_over_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "dump", lambda *_: iter([entry()]))
    monkeypatch.setattr(recorder, "PAUSE_SECONDS", 0.0)
    first = Reply(True, {"generation": 5, "mark_mask": LAYOUT.mask, "processes": ["nfw packet 0"]}, ())
    many = [list(record(client_port=40000 + number, age=61.0 - number % 2)) for number in range(500)]
    log = Lines()
    client = FlowClient(Control(first, Reply(True, {"generation": 5, "rows": many, "done": True}, ())))  # type: ignore[arg-type]
    assert recorder.record(client, log, 60.5, lambda: 1000.0) == 250, "the younger half is left for the next round"
    assert log.flushed == [200, 250]
    assert log.events[0]["flow"]["bytes_toserver"] == 5000, "the kernel's count"
    assert {event["nfw"]["final"] for event in log.events} == {False}
    view = View()
    for event in log.events:
        view.record(event, 1.0)
    assert view.talkers.most("") == [], "the last record of a flow has all its bytes"


def test_tcp_is_what_scapy_made() -> None:
    """The client's SYN of these tests has ports where the key of a record says."""
    assert bytes(IP(src=CLIENT, dst=SERVER) / TCP(sport=40000, dport=443))[12:24] == record().key

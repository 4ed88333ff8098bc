"""Where records go: each sink gets what it asked for in its shape, none waits, and what is lost is counted and said."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfw import awslog, events, log, process, sinks
from nfw.log import LogSender
from nfw.sinks import Counters, Sink, StreamOutput, make, split

KINDS = ("alert", "drop", "flow", "tls", "http", "dns", "stats")
WHEN = "2025-03-14T15:30:03.633598+0000"
BASE = {
    "timestamp": WHEN,
    "flow_id": 77,
    "src_ip": "10.0.0.1",
    "src_port": 40000,
    "dest_ip": "192.0.2.1",
    "dest_port": 443,
    "proto": "TCP",
}


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": WHEN, "flow_id": 77, "event_type": kind, **BASE, **more}


def settings(kind: str, **more: Any) -> dict[str, Any]:
    """What a generation tells of a sink."""
    default = {"path": "", "max_size": 1 << 20, "keep": 1, "address": "", "facility": "daemon", "format": "eve"}
    return {"kind": kind, "events": list(KINDS), **default, **more}


def batch(*made: dict[str, Any]) -> list[tuple[str, bytes]]:
    return split(b"".join(events.line(one) for one in made))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "sock"))
        sock.settimeout(10)
        yield sock


# -- filters and shapes ------------------------------------------------------------------------------------------------


def test_the_kind_is_read_before_what_the_network_said() -> None:
    sni = '","event_type":"flow'
    ((kind, line),) = batch(event("tls", tls={"sni": sni}))
    assert kind == "tls"
    assert json.loads(line)["tls"]["sni"] == sni


def test_each_sink_gets_what_it_asked_for(tmp_path: Path) -> None:
    some = make(settings("file", path=str(tmp_path / "some"), events=["alert", "stats"]), KINDS, "p")
    every = make(settings("file", path=str(tmp_path / "all")), KINDS, "p")
    lines = batch(*(event(kind) for kind in KINDS), {"timestamp": WHEN, "event_type": "log_dropped"})
    for sink in (some, every):
        sink.put(lines)
        sink.close()
    kinds = {
        name: [json.loads(line)["event_type"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("some", "all")
    }
    assert kinds == {"some": ["alert", "stats", "log_dropped"], "all": [*KINDS, "log_dropped"]}


ALERT = event(
    "alert",
    app_proto="http",
    direction="to_server",
    tx_id=0,
    alert={"action": "blocked", "signature_id": 5, "rev": 1, "signature": "s", "category": "", "severity": 3, "gid": 1},
    verdict={"action": "drop"},
    http={"hostname": "a.test", "url": "/"},
    nfw={"rule": "stateful:5"},
)


def test_aws_alert() -> None:
    (record,) = awslog.records(ALERT, "egress")
    assert (record["firewall_name"], record["event_timestamp"]) == ("egress", "1741966203")
    inner = record["event"]
    assert "nfw" not in inner
    assert inner == {name: value for name, value in ALERT.items() if name != "nfw"}


def test_aws_flow_is_two_records() -> None:
    flow = {
        "pkts_toserver": 5,
        "pkts_toclient": 4,
        "bytes_toserver": 500,
        "bytes_toclient": 4000,
        "start": WHEN,
        "end": WHEN,
        "age": 0,
        "state": "established",
        "reason": "closed",
        "alerted": False,
    }
    there, back = awslog.records(event("flow", flow=flow, tcp=events.tcp_flags(0x1B, 0x13)), "egress")
    assert {there["event"]["event_type"], back["event"]["event_type"]} == {"netflow"}
    assert there["event"]["flow_id"] == back["event"]["flow_id"] == 77
    assert there["event"]["netflow"]["bytes"] == 500
    assert back["event"]["netflow"]["pkts"] == 4
    assert (back["event"]["src_ip"], back["event"]["src_port"]) == ("192.0.2.1", 443)
    assert there["event"]["tcp"] == {"tcp_flags": "1b", "fin": True, "syn": True, "psh": True, "ack": True}
    assert back["event"]["tcp"] == {"tcp_flags": "13", "fin": True, "syn": True, "ack": True}


@pytest.mark.parametrize(
    ("status", "sni", "more", "expected"),
    [
        ("OK", "a.test", {}, None),
        ("POLICY", "a.test", {}, None),
        ("NO_SNI", "-", {}, {"tls_error": {"error_message": "Server name is not found in client hello."}}),
        ("EXPIRED", "a.test", {"detail": "it is old"}, {"tls_error": {"error_message": "it is old"}}),
        (
            "NAME_MISMATCH",
            "a.test",
            {"server_names": ["b.test", "*.c.test"]},
            {"tls_error": {"error_message": "SNI: a.test Match Failed to server certificate names: b.test/*.c.test "}},
        ),
        *(
            (
                status,
                "a.test",
                {"revocation_check": {"leaf_cert_fpr": "ff", "status": said, "action": action, "method": "crl"}},
                {"revocation_check": {"leaf_cert_fpr": "ff", "status": said, "action": action}},
            )
            for status, said, action in (
                ("REVOKED", "REVOKED", "DROP"),
                ("UNKNOWN", "UNKNOWN", "REJECT"),
                ("OK", "REVOKED", "PASS"),
            )
        ),
        ("OK", "a.test", {"revocation_check": {"leaf_cert_fpr": "ff", "status": "GOOD", "action": "PASS"}}, None),
    ],
)
def test_aws_tls_is_failures_only(status: str, sni: str, more: dict[str, Any], expected: dict[str, Any] | None) -> None:
    ours = {key: value for key, value in more.items() if key == "detail"}
    tls = {key: value for key, value in more.items() if key == "server_names"}
    rest = {key: value for key, value in more.items() if key == "revocation_check"}
    found = awslog.records(event("tls", tls={"sni": sni, **tls}, nfw={"status": status, **ours}, **rest), "egress")
    if expected is None:
        assert found == []
        return
    (record,) = found
    assert record["event_timestamp"] == 1741966203
    assert record["event"] == {
        "timestamp": "2025-03-14T15:30:03.633598Z",
        "src_ip": "10.0.0.1",
        "src_port": "40000",
        "dest_ip": "192.0.2.1",
        "dest_port": "443",
        "sni": sni,
        **expected,
    }


@pytest.mark.parametrize("kind", ["drop", "http", "dns", "stats", "log_dropped"])
def test_aws_has_no_such_log(kind: str) -> None:
    assert awslog.records(event(kind), "egress") == []


def test_aws_format_in_a_sink(tmp_path: Path) -> None:
    sink = make(settings("file", path=str(tmp_path / "aws"), format="aws"), KINDS, "egress")
    sink.put(batch(ALERT, event("http")))
    sink.close()
    (line,) = (tmp_path / "aws").read_text().splitlines()
    assert json.loads(line)["firewall_name"] == "egress"


# -- transports --------------------------------------------------------------------------------------------------------


def test_journald_gets_its_native_protocol(reader: socket.socket, tmp_path: Path) -> None:
    sink = make(settings("journald", path=str(tmp_path / "sock")), KINDS, "p")
    sink.put(batch(ALERT, event("flow", note="a\nb")))
    fields = dict(line.split("=", 1) for line in reader.recv(65536).decode().splitlines())
    assert json.loads(fields.pop("MESSAGE")) == ALERT
    assert fields == {"SYSLOG_IDENTIFIER": "nfw", "PRIORITY": "4", "NFW_EVENT_TYPE": "alert"}
    assert b"\nPRIORITY=6\n" in reader.recv(65536)
    sink.close()


def test_the_local_syslog(reader: socket.socket, tmp_path: Path) -> None:
    sink = make(settings("syslog", address=str(tmp_path / "sock"), facility="local3"), KINDS, "p")
    sink.put(batch(ALERT))
    head, _, text = reader.recv(65536).decode().partition(": ")
    assert head == f"<{19 * 8 + 4}>nfw[{os.getpid()}]"
    assert json.loads(text) == ALERT
    sink.close()


def test_a_remote_syslog_over_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        address = f"udp://127.0.0.1:{server.getsockname()[1]}"
        sink = make(settings("syslog", address=address), KINDS, "p")
        sink.put(batch(ALERT))
        words = server.recv(65536).decode().split(" ", 7)
        assert words[0] == f"<{3 * 8 + 4}>1"
        assert words[3:7] == ["nfw", str(os.getpid()), "alert", "-"]
        assert json.loads(words[7]) == ALERT
        sink.close()


def test_a_remote_syslog_over_tcp_counts_octets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = make(settings("syslog", address=f"tcp://127.0.0.1:{server.getsockname()[1]}"), KINDS, "p")
        sink.put(batch(ALERT, ALERT))
        peer, _ = server.accept()
        with peer:
            sink.tend()
            peer.settimeout(10)
            data = peer.recv(65536)
            size, _, rest = data.partition(b" ")
            first = rest[: int(size)]
            assert first.startswith(b"<28>1 ")
            assert rest[int(size) :].partition(b" ")[0] == str(len(first)).encode()
        sink.close()


def test_a_unix_stream_that_comes_and_goes_and_comes(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    output = StreamOutput(socket.AF_UNIX, path, sinks.plain)
    sink = Sink("s", output, KINDS, None, True)
    sink.put(batch(event("alert", n=1)))  # nobody listens: kept
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        output.reopen()
        sink.tend()
        first, _ = server.accept()
        first.settimeout(10)
        assert json.loads(first.recv(65536))["n"] == 1
        first.close()
        sink.put(batch(event("alert", n=2)))  # the connection has ended, which is found out here
        output.reopen()
        sink.put(batch(event("alert", n=3)))
        second, _ = server.accept()
        with second:
            second.settimeout(10)
            assert [json.loads(line)["n"] for line in second.recv(65536).splitlines()][-1] == 3
    assert sink.lost == 0
    sink.close()


# -- nobody waits ------------------------------------------------------------------------------------------------------


def flood(sink: Sink, seconds: float = 0.5) -> int:
    """Give a sink far more than it can keep; the longest it took for one message, in milliseconds."""
    lines = batch(*(event("alert", pad="x" * 900) for _ in range(50)))
    longest, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.monotonic()
        sink.put(lines)
        sink.tend()
        longest = max(longest, time.monotonic() - started)
    return int(longest * 1000)


def test_a_stuck_reader(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "BUFFER_BYTES", 200_000)
    monkeypatch.setattr(sinks, "CALM_SECONDS", 0.0)
    path = str(tmp_path / "s")
    sink = make(settings("unix_stream", path=path), KINDS, "p")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert flood(sink) < 5000
        peer, _ = server.accept()
        lost = sink.lost
        assert lost > 100
        assert (
            capfd.readouterr().err
            == f"nfw: log sink {path} does not take what it should; lines are dropped until it does\n"
        )
        got = b""
        peer.settimeout(0.2)
        until = time.monotonic() + 10
        while b"log_dropped" not in got:  # it reads again
            assert time.monotonic() < until
            try:
                got += peer.recv(1 << 20)
            except TimeoutError:
                sink.put(batch(event("flow")))
            sink.tend()
        told = [json.loads(line) for line in got.splitlines() if b"log_dropped" in line]
        assert told[0]["nfw"] == {"sink": path, "lines": lost}
        assert f"works again; {lost} lines were lost" in capfd.readouterr().err
        for line in got.splitlines()[:-1]:
            json.loads(line)  # none is torn
        peer.close()
    sink.close()


@pytest.mark.parametrize("kind", ["syslog", "journald", "unix_dgram"])
def test_a_dead_and_a_stuck_datagram_reader(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "BUFFER_BYTES", 20_000)
    path = str(tmp_path / "sock")
    sink = make(settings(kind, path=path, address=path), KINDS, "p")
    assert flood(sink, 0.2) < 5000
    assert sink.lost > 0  # nobody is there
    sink._output.reopen()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        before = sink.lost
        assert flood(sink, 0.2) < 5000
        assert sink.lost > before  # somebody is there and does not read
        assert b'"flow_id":77' in server.recv(65536)
    assert capfd.readouterr().err.count("does not take") == 1
    sink.close()


def test_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sink = make(settings("file", path="/dev/full"), KINDS, "p")
    other = make(settings("file", path=str(tmp_path / "good")), KINDS, "p")
    for one in (sink, other):
        one.put(batch(ALERT, ALERT))
        one.put(batch(ALERT))
    assert (sink.lost, other.lost) == (3, 0)
    assert capfd.readouterr().err.count("No space left on device") == 1
    assert len((tmp_path / "good").read_text().splitlines()) == 3
    for one in (sink, other):
        one.close()


def test_a_line_too_long_for_a_datagram_costs_itself_only(reader: socket.socket, tmp_path: Path) -> None:
    sink = make(settings("unix_dgram", path=str(tmp_path / "sock")), KINDS, "p")
    sink.put(batch(event("alert", pad="x" * 1_000_000), event("flow", n=2)))
    assert json.loads(reader.recv(65536))["n"] == 2
    assert sink.lost == 1
    sink.close()


def test_the_writer_feeds_all_and_counts_for_the_supervisor(tmp_path: Path) -> None:
    sender, receiver = log.channel()
    counters = Counters()
    chosen = [
        settings("file", path=str(tmp_path / "all")),
        settings("file", path="/dev/full"),
        settings("file", path=str(tmp_path / "alerts"), events=["alert"]),
        settings("unix_stream", path=str(tmp_path / "nobody")),
    ]

    def write() -> None:
        sender.close()
        log.run_writer(receiver, [make(one, KINDS, "p") for one in chosen], counters)

    pid = process.fork(write, title="log test")
    receiver.close()
    sending = LogSender(sender, None, KINDS)
    started, longest = time.monotonic(), 0.0
    for number in range(3000):
        before = time.monotonic()
        sending.write(event("flow" if number % 3 else "alert", n=number))
        if number % 50 == 49:
            sending.flush()
        longest = max(longest, time.monotonic() - before)
    sending.flush()
    sender.close()
    os.waitpid(pid, 0)
    assert time.monotonic() - started < 60
    assert longest < 10
    assert sending.dropped == 0
    assert len((tmp_path / "all").read_text().splitlines()) == 3000
    assert len((tmp_path / "alerts").read_text().splitlines()) == 1000
    assert counters.get(4) == [0, 3000, 0, 3000]


@pytest.mark.parametrize("kind", ["syslog", "journald", "unix_dgram"])
def test_a_reader_of_datagrams_that_keeps_up_loses_none(tmp_path: Path, kind: str) -> None:
    """Although the kernel holds no more than ten of the hundreds of lines that come at once."""
    sender, receiver = log.channel()
    path = str(tmp_path / "sock")
    counters = Counters()
    with sender, receiver, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(10)

        def write() -> None:
            sender.close()
            made = make(settings(kind, path=path, address=path), KINDS, "p")
            log.run_writer(receiver, [made], counters)

        pid = process.fork(write, title="log test")
        try:
            sending = LogSender(sender, None, KINDS)
            for number in range(1000):
                sending.write(event("flow", n=number))
            sending.flush()
            for number in range(1000):
                assert f'"n":{number}}}'.encode() in server.recv(65536)
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
    assert counters.get(1) == [0]


def test_what_waits_when_the_writer_ends_is_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    sink = make(settings("unix_dgram", path=path), KINDS, "p")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        sink.put(batch(*(event("flow", n=number) for number in range(1000))))
        assert sink.lost == 0
        sink.close()
        taken = 0
        server.setblocking(False)
        while True:
            try:
                server.recv(65536)
            except BlockingIOError:
                break
            taken += 1
    assert 0 < taken < 1000
    assert sink.lost == 1000 - taken


def test_counters_are_shared_between_processes() -> None:
    counters = Counters()
    pid = process.fork(lambda: counters.put([1, 1 << 40]), title="count")
    os.waitpid(pid, 0)
    assert counters.get(3) == [1, 1 << 40, 0]


def test_a_slow_sink_does_not_hold_up_another(tmp_path: Path) -> None:
    stuck = make(settings("unix_stream", path=str(tmp_path / "s")), KINDS, "p")
    good = make(settings("file", path=str(tmp_path / "good"), max_size=1 << 40), KINDS, "p")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        lines = batch(*(event("alert", pad="x" * 900) for _ in range(100)))
        thread = threading.Thread(target=lambda: [one.put(lines) for _ in range(200) for one in (stuck, good)])
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert stuck.lost > 0
    assert good.lost == 0
    assert len((tmp_path / "good").read_text().splitlines()) == 20_000
    for one in (stuck, good):
        one.close()


def test_stats_have_suricatas_names() -> None:
    status = {
        "state": "filtering",
        "generation": 2,
        "kernel": {"queues": {"5100": {"dropped": 3, "user_dropped": 1}}},
        "processes": [
            {
                "packets": {"received": 100, "received_bytes": 5000, "dropped": 12},
                "verdicts": {"stateful/reject/rule": 2, "flow/reject/stream_exception": 1, "stateful/drop/rule": 9},
                "counts": {"alert": 4, "invalid_packet": 1},
                "flows": 7,
            },
            {"sessions": 3, "counts": {"alert": 1}, "bugs": 0},
        ],
    }
    record = events.stats(status, 60.7, 1741966203.0)
    assert record["event_type"] == "stats"
    assert record["stats"] == {
        "uptime": 60,
        "capture": {"kernel_drops": 4},
        "decoder": {"pkts": 100, "bytes": 5000, "invalid": 1},
        "flow": {"active": 7, "memcap": 0},
        "ips": {"accepted": 88, "blocked": 9, "rejected": 3},
        "detect": {"alert": 5},
    }
    assert record["nfw"]["tls_sessions"] == 3

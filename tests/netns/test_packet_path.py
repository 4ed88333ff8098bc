"""Hard cases of the packet path and of the supervisor, on a real kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from tests.firewall import PATIENCE, ROOT, Firewall, children, pids_named, wait_for
from tests.lab import Lab

pytestmark = pytest.mark.netns

V4, V6 = "203.0.113.10", "2001:db8:2::10"
CLIENT = {V4: "10.1.0.2", V6: "fd00:1::2"}
ADDRESSES = [V4, V6]

ECHO_RULE = 'alert tcp any any -> any 7 (msg:"keeps the flow in the queue"; content:"zzz"; sid:1;)'


def policy(name: str, *, exception: str = "drop", extra: str = "", rules: str = ECHO_RULE, stateless: str = "") -> str:
    return (
        f"name: {name}\nstateless: {{default: forward{stateless}}}\nopen_flows: {{which: all, action: drop}}\n{extra}"
        f"stateful:\n  order: action\n  stream_exception: {exception}\n  rules: |\n    {rules}\n"
    )


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        firewall.start(firewall.policy("first", policy("first")))
        yield firewall


opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def connect(lab: Lab, address: str = V4, port: int = 7) -> socket.socket:
    with lab.in_namespace("client"):
        sock = socket.create_connection((address, port), timeout=PATIENCE)
    opened.append(sock)
    return sock


def talks(sock: socket.socket) -> bool:
    return outcome(sock) == "echo"


def outcome(sock: socket.socket) -> str:
    """What comes of some bytes: echo, reset or silence; anything else as it came."""
    try:
        sock.sendall(b"ping")
        answer = sock.recv(100)
    except TimeoutError:
        return "silence"
    except ConnectionError:
        return "reset"
    return "echo" if answer == b"ping" else repr(answer)


def send_raw(lab: Lab, role: str, packets: list[Packet]) -> None:
    """Send whole IP packets from a namespace."""
    with lab.in_namespace(role):  # type: ignore[arg-type]
        for packet in packets:
            version = 4 if IP in packet and not isinstance(packet, IPv6) else 6
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                if version == 6:
                    sock.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
                sock.sendto(bytes(packet), (packet.dst, 0) if version == 4 else (packet.dst, 0, 0, 0))


# -- mid-stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(("exception", "becomes"), [("drop", "silence"), ("reject", "reset"), ("continue", "echo")])
def test_stream_exception(firewall: Firewall, exception: str, becomes: str, address: str) -> None:
    lab = firewall.lab
    sock = connect(lab, address)
    port = sock.getsockname()[1]
    assert talks(sock)
    text = policy("mid", exception=exception).replace("which: all", "which: none")
    before = len(lab.connections(7))
    firewall.apply(firewall.policy("mid", text))
    lab.router.run(["conntrack", "-D", "-p", "tcp", "--dport", "7", "-f", "ipv6" if ":" in address else "ipv4"])
    sock.settimeout(1.0 if becomes == "silence" else PATIENCE)
    assert outcome(sock) == becomes
    if exception == "reject":
        wait_for(lambda: any(one["peer_port"] == port for one in lab.connections(7)[before:]), PATIENCE)
        assert next(one for one in lab.connections(7)[before:] if one["peer_port"] == port)["end"] == "reset"
    assert talks(connect(lab, address))


# -- fragments, extension headers, ICMP --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("fragments", ["drop", "forward", "pass"])
def test_udp_fragments(firewall: Firewall, fragments: str, address: str) -> None:
    rules = 'drop udp any any -> any 7 (msg:"udp"; content:"EVIL"; sid:6;)'
    text = policy("frag", rules=rules, stateless=f", fragments: {fragments}")
    firewall.apply(firewall.policy("frag", text))
    with firewall.lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    opened.append(sock)
    sock.connect((address, 7))

    def arrives(data: bytes, may: bool = True) -> bool:
        sock.settimeout(PATIENCE if may else 0.4)
        sock.send(data)
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535) == data
        return False

    assert arrives(b"whole")
    for data, may in ((b"x" * 4000, fragments != "drop"), (b"x" * 3000 + b"EVIL", fragments == "pass")):
        assert arrives(data, may) is may


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("workers", [1, 2])
def test_path_mtu_discovery(firewall: Firewall, address: str, workers: int) -> None:
    """A router beyond the server's side says "too big"; it must come through, to whatever queue it comes."""
    lab = firewall.lab
    firewall.apply(firewall.policy("mtu", policy("mtu", extra=f"workers: {workers}\n")))
    lab.client.run(["ip", "-6" if ":" in address else "-4", "route", "flush", "cache"])
    sock = connect(lab, address)
    assert talks(sock)
    client, port = CLIENT[address], sock.getsockname()[1]
    shown = lab.client.run(["ss", "-tnHi", "dport", "=", ":7", "and", "sport", "=", f":{port}"]).stdout
    assert shown
    errors: list[Packet] = []
    for host in range(20, 28):  # of many, so that some go to another queue
        if ":" in address:
            inner = IPv6(src=client, dst=address) / TCP(sport=port, dport=7, flags="A") / Raw(bytes(100))
            errors.append(IPv6(src=f"2001:db8:2::{host}", dst=client) / ICMPv6PacketTooBig(mtu=1290 + host) / inner)
        else:
            inner = IP(src=client, dst=address) / TCP(sport=port, dport=7, flags="A") / Raw(bytes(100))
            errors.append(
                IP(src=f"203.0.113.{host}", dst=client) / ICMP(type=3, code=4, nexthopmtu=1290 + host) / inner
            )
    before = seen_errors(lab, address)
    send_raw(lab, "server", errors)
    wait_for(lambda: seen_errors(lab, address) - before >= len(errors), PATIENCE, lambda: str(firewall.status()))
    assert talks(sock)


def seen_errors(lab: Lab, address: str) -> int:
    """How many "too big" errors the client's kernel has received."""
    shown = lab.client.run(["cat", "/proc/net/snmp6" if ":" in address else "/proc/net/snmp"]).stdout
    if ":" in address:
        return next(int(line.split()[1]) for line in shown.splitlines() if line.startswith("Icmp6InPktTooBigs"))
    names, values = (line.split() for line in shown.splitlines() if line.startswith("Icmp:"))
    return int(values[names.index("InDestUnreachs")])


def test_forged_icmp_error_is_dropped(firewall: Firewall) -> None:
    lab = firewall.lab
    inner = IP(src=CLIENT[V4], dst=V4) / TCP(sport=1, dport=7, flags="A")
    before = seen_errors(lab, V4)
    send_raw(lab, "server", [IP(src="203.0.113.66", dst=CLIENT[V4]) / ICMP(type=3, code=4, nexthopmtu=600) / inner])
    time.sleep(0.3)
    assert seen_errors(lab, V4) == before


@pytest.mark.parametrize("verdict", [True, False])
def test_ipv6_extension_headers_hide_nothing(firewall: Firewall, verdict: bool) -> None:
    rules = 'drop udp any any -> any 7 (msg:"udp"; content:"EVIL"; sid:6;)'
    firewall.apply(firewall.policy("ext", policy("ext", rules=rules)))
    lab = firewall.lab
    word = b"fine" if verdict else b"EVIL"
    with lab.in_namespace("client"):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    opened.append(sock)
    sock.bind((CLIENT[V6], 0))
    sock.settimeout(PATIENCE if verdict else 0.5)
    packet = IPv6(src=CLIENT[V6], dst=V6) / IPv6ExtHdrDestOpt() / UDP(sport=sock.getsockname()[1], dport=7) / Raw(word)
    send_raw(lab, "client", [packet])
    if verdict:
        assert sock.recv(100) == word
    else:
        with pytest.raises(TimeoutError):
            sock.recv(100)


def test_other_protocols_pass_and_are_dropped_by_rule(firewall: Firewall) -> None:
    """GRE, which has no ports: counted as it arrives at the server."""
    lab = firewall.lab
    with lab.in_namespace("server"):
        listening = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
    opened.append(listening)
    listening.settimeout(PATIENCE)
    packet = IP(src=CLIENT[V4], dst=V4, proto=47) / Raw(b"\0\0\x08\0hello")
    firewall.apply(firewall.policy("gre", policy("gre")))
    send_raw(lab, "client", [packet])
    assert listening.recv(100).endswith(b"hello")
    deny = policy("nogre", stateless=", rules: [{priority: 1, action: drop, protocols: [gre]}]")
    firewall.apply(firewall.policy("nogre", deny))
    send_raw(lab, "client", [packet])
    listening.settimeout(0.5)
    with pytest.raises(TimeoutError):
        listening.recv(100)


# -- allow-lists -------------------------------------------------------------------------------------------------------

ALLOW = """\
name: allow
stateless: {{default: forward}}
open_flows: {{which: all, action: drop}}
stateful:
  order: strict
  default_actions: [{default}]
  rules: |
    pass http any any -> any any (msg:"host"; http.host; content:"site-a.test"; sid:1;)
    pass tls any any -> any any (msg:"name"; tls.sni; content:"site-a.test"; sid:2;)
{more}"""
HANDSHAKE = """\
    pass tcp any any <> any any (msg:"handshake"; flow:not_established; sid:3;)
"""


@pytest.mark.parametrize(
    ("default", "more"),
    [
        ("drop_established_app_layer, alert_established_app_layer", ""),
        ("drop_established, alert_established", ""),
        ("drop_strict, alert_strict", HANDSHAKE),
    ],
)
def test_allow_list(firewall: Firewall, default: str, more: str) -> None:
    lab = firewall.lab
    firewall.apply(firewall.policy("allow", ALLOW.format(default=default, more=more)))
    for scheme in ("http", "https"):
        good = lab.curl(f"{scheme}://site-a.test/")
        assert (good.returncode, good.stdout) == (0, "this is site-a.test\n"), (scheme, good.stderr)
        assert lab.curl(f"{scheme}://site-b.test/allowlist", timeout=1.0).returncode != 0
    assert not [request for request in lab.requests("site-b.test") if request["uri"] == "/allowlist"]


def test_segmented_client_hello(firewall: Firewall) -> None:
    lab = firewall.lab
    default = "drop_established_app_layer, alert_established_app_layer"
    firewall.apply(firewall.policy("allow", ALLOW.format(default=default, more="")))
    program = (
        "import socket,ssl,sys,time\n"
        "name,address,seconds=sys.argv[1],sys.argv[2],float(sys.argv[4])\n"
        "c=ssl.create_default_context(cafile=sys.argv[3]);i,o=ssl.MemoryBIO(),ssl.MemoryBIO()\n"
        "t=c.wrap_bio(i,o,server_hostname=name);s=socket.create_connection((address,443),seconds)\n"
        "s.setsockopt(6,1,1)\n"
        "while True:\n"
        "    try: t.do_handshake();break\n"
        "    except ssl.SSLWantReadError: pass\n"
        "    d=o.read()\n"
        "    for k in range(0,len(d),100): s.sendall(d[k:k+100]);time.sleep(.005)\n"
        "    r=s.recv(65536)\n"
        "    if not r: sys.exit(3)\n"
        "    i.write(r)\n"
    )
    for name, works, seconds in (("site-a.test", True, PATIENCE), ("site-b.test", False, 2.0)):
        address = str(lab.sites[name].ipv4)
        command = [sys.executable, "-c", program, name, address, str(lab.root_ca_path), str(seconds)]
        assert (lab.client.run(command, check=False).returncode == 0) is works, name


# -- supervisor --------------------------------------------------------------------------------------------------------


def test_applies_one_after_the_other_do_not_meet(firewall: Firewall) -> None:
    for turn in range(4):
        firewall.apply(firewall.policy(f"fast{turn}", policy(f"fast{turn}")))
    assert talks(connect(firewall.lab))


def test_apply_while_applying_and_of_a_missing_file(firewall: Firewall) -> None:
    path = firewall.policy("one", policy("one"))
    command = [sys.executable, "-m", "nfw", "policy", "apply", str(path), "--control", str(firewall.control)]
    both = [
        firewall.lab.router.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=20)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0
    assert codes == [0, 0] or any("another policy is being applied" in text for text in said), said
    missing = firewall.cli("policy", "apply", str(firewall.dir / "none.yaml"), check=False)
    assert missing.returncode != 0
    assert "none.yaml" in missing.stderr
    assert talks(connect(firewall.lab))


def test_a_daemon_elsewhere_does_not_close_the_one_that_runs(firewall: Firewall) -> None:
    path = firewall.policy("two", policy("two"))
    second = firewall.cli("run", "--policy", str(path), "--control", str(firewall.dir / "second.sock"), check=False)
    assert second.returncode == 1
    assert "is another nfw running" in second.stderr
    assert talks(connect(firewall.lab))


@pytest.mark.parametrize(
    ("option", "said"),
    [("--control", "control socket"), ("--log", "cannot write the event log")],
)
def test_a_path_that_cannot_be_written_is_said_before_anything_changes(
    firewall: Firewall, option: str, said: str
) -> None:
    (firewall.dir / "file").write_text("")
    path = firewall.policy("two", policy("two"))
    wrong = ["--control", str(firewall.dir / "other.sock"), option, str(firewall.dir / "file/below")]
    answer = firewall.cli("run", "--policy", str(path), *wrong, check=False)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert talks(connect(firewall.lab))


def test_log_is_reopened_and_its_writer_restarted(firewall: Firewall) -> None:
    lab = firewall.lab
    firewall.apply(firewall.policy("log", policy("log")))
    moved = firewall.log.with_name("moved.json")
    firewall.log.rename(moved)
    os.kill(firewall.pid(), signal.SIGHUP)
    wait_for(firewall.log.exists, PATIENCE)
    with connect(lab) as sock:
        assert talks(sock)
    firewall.wait_event("flow", lambda event: event.get("dest_port") == 7)
    writer = firewall.the_only("nfw log")
    os.kill(writer, signal.SIGKILL)
    wait_for(lambda: list(pids_named(firewall.pid(), "nfw log")) not in ([], [writer]), PATIENCE)
    count = len(firewall.events("flow"))
    with connect(lab) as sock:
        assert talks(sock)
    wait_for(lambda: len(firewall.events("flow")) > count, PATIENCE)


def test_unwanted_events_are_not_logged(firewall: Firewall) -> None:
    text = policy("quiet", extra="log: {events: [alert]}\n")
    firewall.apply(firewall.policy("quiet", text))
    generation = firewall.status()["generation"]
    sock = connect(firewall.lab)
    sock.sendall(b"zzz")
    sock.close()
    firewall.wait_event(
        "alert", lambda event: event["nfw"]["generation"] == generation and event["alert"]["signature_id"] == 1
    )
    time.sleep(0.3)
    assert [event for event in firewall.events("flow") if event["nfw"]["generation"] == generation] == []


def test_a_bound_queue_fails_the_apply_and_changes_nothing(firewall: Firewall) -> None:
    lab = firewall.lab
    program = (
        "import sys,time\nfrom nfw.nfqueue import Queue\n"
        "from nfw.settings import DEFAULT_QUEUE_BASE as b, QUEUE_SPAN as s\n"
        "from nfw.nfqueue import read_stats\n"
        "free=[b+i*s for i in range(4) if b+i*s not in read_stats()]\n"
        "q=[Queue(n,lambda *a:0) for n in free]\nprint('bound',flush=True)\ntime.sleep(60)"
    )
    firewall.settle()  # or a queue comes free while the others are taken
    taker = lab.router.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert taker.stdout is not None
    assert taker.stdout.readline() == "bound\n"
    sock = connect(lab)
    answer = firewall.cli("policy", "apply", str(firewall.policy("two", policy("two"))), check=False)
    taker.kill()
    assert answer.returncode == 1
    assert "is read by another process already" in answer.stderr
    assert talks(sock)


def test_a_leader_that_hangs_does_not_block_status(firewall: Firewall) -> None:
    leader = firewall.the_only("nfw leader")
    os.kill(leader, signal.SIGSTOP)
    try:
        answer = firewall.cli("status", check=False)
    finally:
        os.kill(leader, signal.SIGCONT)
    assert answer.returncode == 1
    assert "did not answer" in answer.stderr
    assert firewall.status()["state"] == "filtering"


def test_stop_while_starting(firewall: Firewall) -> None:
    """Last: it ends the module's daemon."""
    assert firewall.process is not None
    family = set(children(firewall.pid()))
    firewall.process.terminate()
    assert firewall.process.wait(PATIENCE) == 0
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family), PATIENCE)
    command = [sys.executable, "-m", "nfw", "run", "--policy", str(firewall.policy("one", policy("one")))]
    command += ["--control", str(firewall.control), "--log", str(firewall.log)]
    with firewall.output.open("ab") as output:
        seen = firewall.output.stat().st_size
        process = firewall.lab.router.popen(command, stdout=output, stderr=output, env=firewall.places, cwd=ROOT)
    wait_for(lambda: "closed: nothing is forwarded" in firewall.output.read_text()[seen:], PATIENCE)
    process.terminate()
    assert process.wait(PATIENCE) == 0

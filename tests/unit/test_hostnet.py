"""What is sent to nft and ip, as text, and in which order, without a kernel. ``tests/netns`` tries the same on one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nfw.hostnet import Fragments, GenerationPlan, HostNet, HostNetError, Installed, Plan, QueueRule
from nfw.marks import MarkLayout

CLOSED = """\
add table inet nfw
delete table inet nfw
table inet nfw {
  counter dropped { comment "packets of flows whose verdict is drop" }
  counter unjudged { comment "packets that would have been forwarded without a verdict" }
  counter fragments_udp { comment "UDP fragments dropped by the fragment default" }
  counter fragments_other { comment "fragments of anything else" }
  counter tls_refused { comment "packets of intercepted flows that nobody listens for" }
  counter ended { comment "datagrams of servers whose flows a change of policy has ended" }
  counter stale { comment "packets for connections of nfw that are gone" }
  counter failed_open { comment "packets forwarded without a verdict because the policy says fail open" }
  set judged { type mark; comment "marks of packets that may be forwarded"; }
  set acknowledged { typeof ct id; size 65536; flags dynamic,timeout; timeout 1s; }
  map verdicts { type mark : verdict; comment "by generation"; }
  map own_marks { type mark : verdict; comment "marks of sockets of nfw"; }
  chain unjudged {
    counter name unjudged drop
  }
  chain forward {
    type filter hook forward priority -150; policy drop;
    meta mark & 0xfff00000 == @judged meta mark set meta mark & 0x000fffff accept
    goto unjudged
  }
  chain arrived {
    type filter hook input priority -150; policy accept;
    meta mark & 0xfff00000 != 0 meta mark set meta mark & 0x000fffff
  }
  chain own {
    type filter hook output priority -150; policy accept;
    meta mark & 0x00f00000 == 0x00500000 meta mark & 0xfff00000 vmap @own_marks
  }
  chain divert {
    type filter hook prerouting priority -90; policy accept;
    meta mark & 0xff000000 vmap @verdicts
  }
  chain classify {
    type filter hook prerouting priority -95; policy accept;
  }
  chain fragments {
    type filter hook prerouting priority -450; policy accept;
  }
  chain accounting {
    ct packets 0 return comment "never jumped to: that it is here makes the kernel count what each flow carries"
  }
}
"""

PREPARED = """\
add chain inet nfw fragments_3
add chain inet nfw queue_3
add chain inet nfw whole_3
add chain inet nfw acknowledgement_3
add chain inet nfw bare_3
add chain inet nfw generation_3
add chain inet nfw verdict_3
add chain inet nfw own_3
flush chain inet nfw fragments_3
flush chain inet nfw queue_3
flush chain inet nfw whole_3
flush chain inet nfw acknowledgement_3
flush chain inet nfw bare_3
flush chain inet nfw generation_3
flush chain inet nfw verdict_3
flush chain inet nfw own_3
add rule inet nfw fragments_3 ip frag-off & 0x3fff != 0 fib daddr type != unicast meta mark set meta mark & 0x000fffff | 0x00700000 accept
add rule inet nfw fragments_3 ip frag-off & 0x3fff != 0 ip protocol udp meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw fragments_3 ip frag-off & 0x3fff != 0 counter name fragments_other drop
add rule inet nfw fragments_3 exthdr frag exists fib daddr type != unicast meta mark set meta mark & 0x000fffff | 0x00700000 accept
add rule inet nfw fragments_3 exthdr frag exists frag nexthdr udp meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw fragments_3 exthdr frag exists counter name fragments_other drop
add rule inet nfw queue_3 queue num 10-13
add rule inet nfw whole_3 meta mark & 0xfff00000 == 0x03600000 accept
add rule inet nfw whole_3 fib daddr type != unicast accept
add rule inet nfw whole_3 meta l4proto != udp counter name fragments_other drop
add rule inet nfw whole_3 meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw acknowledgement_3 ct id @acknowledged meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw acknowledgement_3 add @acknowledged { ct id timeout 1s }
add rule inet nfw bare_3 tcp flags & (fin | syn | rst | ack | urg) != ack return
add rule inet nfw bare_3 ip length > 80 return
add rule inet nfw bare_3 ip6 length > 60 return
add rule inet nfw bare_3 ip length 52 tcp doff 8 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 32 ip6 nexthdr tcp tcp doff 8 goto acknowledgement_3
add rule inet nfw bare_3 ip length 40 tcp doff 5 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 20 ip6 nexthdr tcp tcp doff 5 goto acknowledgement_3
add rule inet nfw bare_3 ip length 64 tcp doff 11 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 44 ip6 nexthdr tcp tcp doff 11 goto acknowledgement_3
add rule inet nfw bare_3 ip length 72 tcp doff 13 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 52 ip6 nexthdr tcp tcp doff 13 goto acknowledgement_3
add rule inet nfw bare_3 ip length 80 tcp doff 15 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 60 ip6 nexthdr tcp tcp doff 15 goto acknowledgement_3
add rule inet nfw bare_3 ip length 60 tcp doff 10 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 40 ip6 nexthdr tcp tcp doff 10 goto acknowledgement_3
add rule inet nfw bare_3 ip length 68 tcp doff 12 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 48 ip6 nexthdr tcp tcp doff 12 goto acknowledgement_3
add rule inet nfw bare_3 ip length 44 tcp doff 6 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 24 ip6 nexthdr tcp tcp doff 6 goto acknowledgement_3
add rule inet nfw bare_3 ip length 48 tcp doff 7 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 28 ip6 nexthdr tcp tcp doff 7 goto acknowledgement_3
add rule inet nfw bare_3 ip length 56 tcp doff 9 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 36 ip6 nexthdr tcp tcp doff 9 goto acknowledgement_3
add rule inet nfw bare_3 ip length 76 tcp doff 14 goto acknowledgement_3
add rule inet nfw bare_3 ip6 length 56 ip6 nexthdr tcp tcp doff 14 goto acknowledgement_3
add rule inet nfw generation_3 meta mark & 0xfff00000 != 0 jump whole_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == { 0x03100000, 0x03a00000 } meta mark set meta mark & 0x000fffff | 0x03100000 goto queue_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03800000 ct direction original tcp flags & (fin | syn | rst) == 0 meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03800000 jump bare_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03800000 meta mark set meta mark & 0x000fffff | 0x03800000 goto queue_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03900000 ct direction reply tcp flags & (fin | syn | rst) == 0 meta mark set meta mark & 0x000fffff | 0x03600000 accept
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03900000 jump bare_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03900000 meta mark set meta mark & 0x000fffff | 0x03900000 goto queue_3
add rule inet nfw generation_3 ct mark & 0xfff00000 == { 0x03200000, 0x03b00000 } meta mark set meta mark & 0x000fffff | 0x03200000 accept
add rule inet nfw generation_3 ct mark & 0xfff00000 == { 0x03300000, 0x03c00000 } counter name dropped drop
add rule inet nfw generation_3 ct mark & 0x00f00000 == 0x00d00000 ct direction reply counter name ended drop
add rule inet nfw generation_3 ct mark & 0x00f00000 == { 0x00400000, 0x00500000 } socket transparent 1 socket wildcard 0 meta mark set meta mark & 0x000fffff | 0x00400000 accept
add rule inet nfw generation_3 iif "lo" accept
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0x03400000 meta l4proto tcp meta mark set meta mark & 0x000fffff | 0x03400000 accept
add rule inet nfw generation_3 fib daddr type { local, broadcast, anycast, multicast } accept
add rule inet nfw generation_3 ct mark & 0x00f00000 == 0x00500000 counter name stale drop
add rule inet nfw generation_3 meta mark set meta mark & 0x000fffff
add rule inet nfw generation_3 ct mark & 0xfff00000 == 0 goto queue_3
add rule inet nfw generation_3 ct mark & 0x00100000 == 0x00100000 meta mark set meta mark | 0x00100000
add rule inet nfw generation_3 ct mark & 0x00200000 == 0x00200000 meta mark set meta mark | 0x00200000
add rule inet nfw generation_3 ct mark & 0x00400000 == 0x00400000 meta mark set meta mark | 0x00400000
add rule inet nfw generation_3 ct mark & 0x00800000 == 0x00800000 meta mark set meta mark | 0x00800000
add rule inet nfw generation_3 ct mark & 0x01000000 == 0x01000000 meta mark set meta mark | 0x01000000
add rule inet nfw generation_3 ct mark & 0x02000000 == 0x02000000 meta mark set meta mark | 0x02000000
add rule inet nfw generation_3 ct mark & 0x04000000 == 0x04000000 meta mark set meta mark | 0x04000000
add rule inet nfw generation_3 ct mark & 0x08000000 == 0x08000000 meta mark set meta mark | 0x08000000
add rule inet nfw generation_3 ct mark & 0x10000000 == 0x10000000 meta mark set meta mark | 0x10000000
add rule inet nfw generation_3 ct mark & 0x20000000 == 0x20000000 meta mark set meta mark | 0x20000000
add rule inet nfw generation_3 ct mark & 0x40000000 == 0x40000000 meta mark set meta mark | 0x40000000
add rule inet nfw generation_3 ct mark & 0x80000000 == 0x80000000 meta mark set meta mark | 0x80000000
add rule inet nfw generation_3 meta l4proto udp ct direction reply meta mark set meta mark & 0xff0fffff | 0x00e00000
add rule inet nfw generation_3 goto queue_3
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03100000 meta l4proto udp ct mark set ct mark & 0x000fffff | 0x03a00000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03200000 meta l4proto udp ct mark set ct mark & 0x000fffff | 0x03b00000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03300000 meta l4proto udp ct mark set ct mark & 0x000fffff | 0x03c00000 counter name dropped drop
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03100000 ct mark set ct mark & 0x000fffff | 0x03100000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03800000 ct mark set ct mark & 0x000fffff | 0x03800000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03900000 ct mark set ct mark & 0x000fffff | 0x03900000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03200000 ct mark set ct mark & 0x000fffff | 0x03200000 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03300000 ct mark set ct mark & 0x000fffff | 0x03300000 counter name dropped drop
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03d00000 ct mark set ct mark & 0x000fffff | 0x03d00000 counter name ended drop
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03300000 counter name dropped drop
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03400000 ct mark set ct mark & 0x000fffff | 0x03400000 meta l4proto tcp tproxy to :1234 accept
add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03400000 counter name tls_refused drop
add rule inet nfw own_3 ct state new ct direction original ct mark set ct mark & 0x000fffff | 0x03500000
add rule inet nfw own_3 meta mark set meta mark & 0x000fffff
add element inet nfw judged { 0x03100000, 0x03800000, 0x03900000, 0x03200000, 0x03600000 }
add element inet nfw verdicts { 0x03000000 : goto verdict_3 }
add element inet nfw own_marks { 0x03500000 : goto own_3 }
"""  # noqa: E501 - the lines are nft's

FLIPPED = """\
flush chain inet nfw fragments
add rule inet nfw fragments goto fragments_3
flush chain inet nfw unjudged
add rule inet nfw unjudged counter name unjudged drop
flush chain inet nfw classify
add rule inet nfw classify goto generation_3 comment "queues 10-13 port 1234"
"""

RETIRED = """\
delete element inet nfw judged { 0x02100000, 0x02800000, 0x02900000, 0x02200000, 0x02600000 }
delete element inet nfw verdicts { 0x02000000 : goto verdict_2 }
delete element inet nfw own_marks { 0x02500000 : goto own_2 }
flush chain inet nfw fragments_2
flush chain inet nfw generation_2
flush chain inet nfw bare_2
flush chain inet nfw acknowledgement_2
flush chain inet nfw whole_2
flush chain inet nfw queue_2
flush chain inet nfw verdict_2
flush chain inet nfw own_2
delete chain inet nfw fragments_2
delete chain inet nfw generation_2
delete chain inet nfw bare_2
delete chain inet nfw acknowledgement_2
delete chain inet nfw whole_2
delete chain inet nfw queue_2
delete chain inet nfw verdict_2
delete chain inet nfw own_2
"""

GENERATION = GenerationPlan(3, 10, 13, 1234, "pass")


# -- texts -------------------------------------------------------------------------------------------------------------


def test_the_texts_of_a_switch() -> None:
    plan = Plan()
    assert plan.closed() == CLOSED
    assert plan.prepare(GENERATION, QueueRule.STATEMENT) == PREPARED
    assert plan.flip(GENERATION) == FLIPPED
    assert plan.retire([2]) == RETIRED
    assert plan.cleanup() == "add table inet nfw\ndelete table inet nfw\n"


def test_with_the_target_the_queue_chain_is_left_empty() -> None:
    without = PREPARED.replace("add rule inet nfw queue_3 queue num 10-13\n", "")
    assert Plan().prepare(GENERATION, QueueRule.TARGET) == without


@pytest.mark.parametrize(
    ("generation", "statement"),
    [
        (GenerationPlan(1, 7, 7), "queue num 7"),
        (GenerationPlan(1, 7, 8), "queue num 7-8"),
        (GenerationPlan(1, 0, 63, fail_open=True), "queue num 0-63 bypass"),
    ],
)
def test_queue_statement(generation: GenerationPlan, statement: str) -> None:
    assert Plan().queue_statement(generation) == statement


def test_without_interception_nothing_is_diverted() -> None:
    text = Plan().prepare(GenerationPlan(3, 10, 10), QueueRule.STATEMENT)
    assert "tproxy" not in text
    assert "add rule inet nfw verdict_3 meta mark & 0xfff00000 == 0x03400000 counter name tls_refused drop" in text


@pytest.mark.parametrize(
    ("fragments", "udp", "whole"),
    [
        (Fragments.DROP, "counter name fragments_udp drop", "counter name fragments_udp drop"),
        (Fragments.FORWARD, "accept", None),
        (
            Fragments.WATCH,
            "counter name fragments_udp meta mark set meta mark & 0x000fffff | 0x03600000 accept",
            "counter name fragments_udp meta mark set meta mark & 0x000fffff | 0x03600000 accept",
        ),
    ],
)
def test_fragment_defaults(fragments: Fragments, udp: str, whole: str | None) -> None:
    lines = Plan().prepare(GenerationPlan(3, 10, 10, fragments=fragments), QueueRule.STATEMENT).splitlines()
    assert f"add rule inet nfw fragments_3 ip frag-off & 0x3fff != 0 ip protocol udp {udp}" in lines
    assert f"add rule inet nfw fragments_3 exthdr frag exists frag nexthdr udp {udp}" in lines
    assert (f"add rule inet nfw whole_3 {whole}" in lines) is (whole is not None)


def test_fail_open_says_so() -> None:
    text = Plan().flip(GenerationPlan(3, 10, 10, fail_open=True))
    assert "unjudged counter name failed_open meta mark set meta mark & 0x000fffff accept" in text
    assert "drop" not in text


def test_another_mask_appears_everywhere() -> None:
    plan = Plan(MarkLayout(0x0000FF00), route_table=200, route_priority=300)
    text = plan.closed() + plan.prepare(GENERATION, QueueRule.STATEMENT) + "".join(plan.rules(4) + plan.rules(6))
    assert "0xfff00000" not in text
    assert "0x000fffff" not in text
    assert "meta mark & 0x0000ff00 == @judged meta mark set meta mark & 0xffff00ff accept" in text
    assert plan.rules(6) == ("-6 rule add priority 301 protocol 78 fwmark 0x00000400/0x00000f00 lookup 200",)


def test_policy_routing() -> None:
    plan = Plan()
    assert plan.rules(4) == (
        "-4 rule add priority 5102 protocol 78 nop",
        "-4 rule add priority 5100 protocol 78 iif lo fwmark 0x00400000/0x00f00000 goto 5102",
        "-4 rule add priority 5101 protocol 78 fwmark 0x00400000/0x00f00000 lookup 5101",
    )
    assert plan.rules(6) == ("-6 rule add priority 5101 protocol 78 fwmark 0x00400000/0x00f00000 lookup 5101",)
    assert plan.route(4) == "-4 route replace local default dev lo table 5101 protocol 78"
    assert plan.route(6) == "-6 route replace local default dev lo table 5101 protocol 78"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "generation 0 is not positive"),
        ((1, 2, 1), "queues 2-1 are not a range within 0-65535"),
        ((1, 0, 65536), "queues 0-65536 are not a range within 0-65535"),
        ((1, 1, 1, 0), "port 0 is not within 1-65535"),
        ((1, 1, 1, 1, "maybe"), "'maybe' is not a valid Fragments"),
    ],
)
def test_numbers_that_cannot_be(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationPlan(*arguments)


# -- order, with a machine made of lists -------------------------------------------------------------------------------


class FakeRunner:
    """Records what is run; knows chains, the classify rule, ip rules and routes well enough to be read back."""

    def __init__(self, statement: bool = False) -> None:
        self.statement = statement
        self.log: list[str] = []
        self.refuse = ""
        self.chains: list[str] | None = None
        self.classify: tuple[str, str] | None = None
        self.ip_state: dict[str, list[dict[str, Any]]] = {
            "-4 rule": [{"priority": 32766, "table": "254", "protocol": "2"}],
            "-6 rule": [],
            "-4 route": [],
            "-6 route": [],
        }
        self.sysctls: dict[str, str | None] = {"net.ipv6.conf.lo.disable_ipv6": "0"}
        self.programs = {"nft", "ip"}

    def destroy_sockets(self, mark: int, mask: int) -> None:
        self.log.append(f"destroy sockets {mark:#010x}/{mask:#010x}")

    def nft(self, text: str) -> None:
        if "queue num 0\n" in text and not self.statement:
            raise HostNetError("nft -f -: No such file or directory")
        name = text.splitlines()[0]
        self.log.append(f"nft {name}")
        if self.refuse and self.refuse in name:
            raise HostNetError(f"refused: {name}")
        for line in text.splitlines():
            words = line.split()
            if line == "delete table inet nfw":
                self.chains, self.classify = None, None
            elif line == "table inet nfw {":
                self.chains = []
            elif words[:2] == ["add", "chain"] and words[3] == "nfw":
                assert self.chains is not None
                self.chains.append(words[4])
            elif words[:2] == ["delete", "chain"]:
                assert self.chains is not None
                self.chains.remove(words[4])
            elif words[:5] == ["add", "rule", "inet", "nfw", "classify"]:
                assert self.chains is not None
                if words[6] not in self.chains:
                    raise HostNetError(f"{line}: No such file or directory")
                self.classify = (words[6], line.partition("comment ")[2].strip('"'))

    def nft_table(self, table: str) -> list[dict[str, Any]]:
        if self.chains is None:
            return []
        objects: list[dict[str, Any]] = [{"table": {"name": table}}]
        objects += [{"chain": {"name": chain}} for chain in self.chains]
        objects.append({"counter": {"name": "unjudged", "packets": 3}})
        if self.classify is not None:
            target, comment = self.classify
            rule = {"chain": "classify", "comment": comment, "expr": [{"goto": {"target": target}}]}
            objects.append({"rule": rule})
        return objects

    def ip(self, arguments: str) -> str:
        words = arguments.split()
        if "-json" in words:
            known = self.ip_state[f"{words[0]} {words[4]}"]
            return json.dumps([one for one in known if "protocol 78" not in arguments or one["protocol"] == "78"])
        self.log.append(f"ip {arguments}")
        state = self.ip_state[f"{words[0]} {words[1]}"]
        if words[2] == "add":
            state.append({"priority": int(words[4]), "protocol": words[6], "table": words[-1]})
        elif words[2] == "replace":
            state[:] = [{"dst": "default", "table": words[8], "protocol": words[10]}]
        elif words[1] == "rule":
            state[:] = [one for one in state if str(one["priority"]) != words[4]]
        else:
            state.clear()
        return ""

    def queue_target(self, table: str, chain: str, first: int, count: int, bypass: bool) -> None:
        self.log.append(f"target {table} {chain} {first} {count} {bypass}")
        if self.refuse == "target":
            raise HostNetError("refused: target")

    def sysctl(self, name: str) -> str | None:
        return self.sysctls.get(name, "1")

    def program(self, name: str) -> bool:
        return name in self.programs


class FakeConntrack:
    """Records what is flushed."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def flush_generation(self, layout: MarkLayout, generation: int) -> None:
        self.log.append(f"flush generation {generation}")

    def flush_marked_any(self, mask: int) -> None:
        self.log.append(f"flush any {mask:#010x}")


def hostnet(runner: FakeRunner) -> HostNet:
    return HostNet(runner=runner, conntrack=FakeConntrack(runner.log))  # type: ignore[arg-type]


def test_a_switch_step_by_step() -> None:
    runner = FakeRunner()
    host = hostnet(runner)
    host.install_closed()
    assert host.current() == Installed(0)
    runner.log.clear()
    host.switch(GenerationPlan(1, 10, 13, 1234))
    assert runner.log == [
        "flush generation 1",
        "ip -4 route replace local default dev lo table 5101 protocol 78",
        "ip -4 rule add priority 5102 protocol 78 nop",
        "ip -4 rule add priority 5100 protocol 78 iif lo fwmark 0x00400000/0x00f00000 goto 5102",
        "ip -4 rule add priority 5101 protocol 78 fwmark 0x00400000/0x00f00000 lookup 5101",
        "ip -6 route replace local default dev lo table 5101 protocol 78",
        "ip -6 rule add priority 5101 protocol 78 fwmark 0x00400000/0x00f00000 lookup 5101",
        "nft add chain inet nfw fragments_1",
        "target nfw queue_1 10 4 False",
        "nft flush chain inet nfw fragments",
    ]
    assert host.current() == Installed(1, (), "queues 10-13 port 1234")
    runner.log.clear()
    host.switch(GenerationPlan(2, 14, 14, 1235, fail_open=True))
    assert runner.log == [
        "flush generation 2",
        "ip -4 route replace local default dev lo table 5101 protocol 78",
        "ip -6 route replace local default dev lo table 5101 protocol 78",
        "nft add chain inet nfw fragments_2",
        "target nfw queue_2 14 1 True",
        "nft flush chain inet nfw fragments",
    ]
    assert host.current() == Installed(2, (1,), "queues 14-14 port 1235")
    host.retire()
    host.retire()
    assert host.current() == Installed(2, (), "queues 14-14 port 1235")
    assert host.counters() == {"unjudged": 3}


def test_the_generation_before_last_is_retired_by_the_next_switch() -> None:
    runner = FakeRunner(statement=True)
    host = hostnet(runner)
    host.install_closed()
    for number in (1, 2, 3):
        host.switch(GenerationPlan(number, 10, 10))
    assert host.current() == Installed(3, (2,), "queues 10-10")
    assert not any(line.startswith(("target", "ip")) for line in runner.log)


def test_of_a_prepared_switch_one_transaction_is_left() -> None:
    runner = FakeRunner()
    host = hostnet(runner)
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 13))
    host.prepare(GenerationPlan(2, 14, 14, 1235))
    assert host.current() == Installed(1, (2,), "queues 10-13")
    host.retire(coming=2)
    runner.log.clear()
    host.switch(GenerationPlan(2, 14, 14, 1235), prepared=True)
    assert runner.log == ["nft flush chain inet nfw fragments"]
    assert host.current() == Installed(2, (1,), "queues 14-14 port 1235")


def test_what_was_prepared_for_a_switch_and_is_gone_is_done_again() -> None:
    runner = FakeRunner()
    host = hostnet(runner)
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 13))
    host.prepare(GenerationPlan(2, 14, 14))
    host.restore(GenerationPlan(1, 10, 13))
    assert host.current() == Installed(1, (), "queues 10-13")
    host.switch(GenerationPlan(2, 14, 14), prepared=True)
    assert host.current() == Installed(2, (1,), "queues 14-14")
    host.retire()
    assert host.current() == Installed(2, (), "queues 14-14")


def test_putting_the_table_back_forgets_no_flow() -> None:
    runner = FakeRunner()
    host = hostnet(runner)
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 13))
    runner.log.clear()
    host.restore(GenerationPlan(1, 10, 13))
    assert not any(line.startswith("flush") for line in runner.log)


@pytest.mark.parametrize("refuse", ["target", "flush chain inet nfw fragments"])
def test_a_switch_that_fails_changes_nothing(refuse: str) -> None:
    runner = FakeRunner()
    host = hostnet(runner)
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 10))
    before = host.current()
    runner.refuse = refuse
    with pytest.raises(HostNetError, match="refused"):
        host.switch(GenerationPlan(2, 11, 11))
    assert host.current() == before


def test_a_switch_needs_the_table_and_a_new_number() -> None:
    host = hostnet(FakeRunner())
    with pytest.raises(HostNetError, match="table inet nfw is gone"):
        host.switch(GenerationPlan(1, 10, 10))
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 10))
    with pytest.raises(HostNetError, match="generation 1 is installed already"):
        host.switch(GenerationPlan(1, 11, 11))


def test_cleanup_takes_only_what_is_ours_and_can_be_repeated() -> None:
    runner = FakeRunner()
    hostnet(runner).install_closed()
    hostnet(runner).switch(GenerationPlan(1, 10, 10, 1234))
    hostnet(runner).cleanup()
    assert runner.ip_state == {
        "-4 rule": [{"priority": 32766, "table": "254", "protocol": "2"}],
        "-6 rule": [],
        "-4 route": [],
        "-6 route": [],
    }
    assert hostnet(runner).current() is None
    runner.log.clear()
    hostnet(runner).cleanup()
    sockets = "destroy sockets 0x00500000/0x00f00000"
    assert runner.log == ["nft add table inet nfw", "flush any 0xfff00000", sockets]


def test_a_machine_without_ipv6_gets_no_ipv6_routes() -> None:
    runner = FakeRunner()
    runner.sysctls["net.ipv6.conf.lo.disable_ipv6"] = None
    host = hostnet(runner)
    host.install_closed()
    host.switch(GenerationPlan(1, 10, 10, 1234))
    assert not any(line.startswith("ip -6") for line in runner.log)


def test_preflight() -> None:
    runner = FakeRunner()
    assert hostnet(runner).preflight() == []
    runner.sysctls["net.ipv4.ip_forward"] = "0"
    runner.ip_state["-6 rule"].append({"priority": 9, "table": "1", "fwmark": "0x80000000", "fwmask": "0x80000000"})
    runner.ip_state["-4 rule"].append({"priority": 8, "table": "1", "fwmark": "0x1", "fwmask": "0xff"})
    assert hostnet(runner).preflight() == [
        "IPv4 is not forwarded: sysctl -w net.ipv4.ip_forward=1",
        "an `ip rule` of other software (priority 9) uses bits of mark mask 0xfff00000: choose another --mark-mask",
    ]
    runner.programs.clear()
    assert hostnet(runner).preflight() == [
        "the program nft is missing: apt-get install nftables",
        "the program ip is missing: apt-get install iproute2",
    ]

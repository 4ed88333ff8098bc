"""`nfw doctor` on a router that is fit and filters, and on the same router with one thing wrong at a time."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.firewall import PATIENCE, Firewall, pids_named, wait_for
from tests.lab import Lab

POLICY = "name: fit\nstateless: {default: forward}\n"


@pytest.fixture(scope="module")
def firewall() -> Iterator[Firewall]:
    with Lab() as lab, Firewall(lab) as firewall:
        firewall.start(firewall.policy("fit", POLICY))
        yield firewall


def examine(firewall: Firewall, ca: str = "ca.pem") -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings."""
    said = firewall.cli(
        "doctor", "--control", str(firewall.control), "--ca", str(firewall.dir / ca), "--json", check=False
    )
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return said.returncode, found


def errors(found: list[dict[str, Any]]) -> list[str]:
    return [f"{one['topic']}: {one['text']}" for one in found if one["level"] == "error"]


def test_a_fit_router(firewall: Firewall) -> None:
    status, found = examine(firewall)
    assert (errors(found), status) == ([], 0)
    assert {"kernel", "forwarding", "nftables", "daemon"} <= {one["topic"] for one in found if one["level"] == "ok"}
    assert all(one["mend"] for one in found if one["level"] == "warning")


@contextmanager
def no_forwarding(firewall: Firewall) -> Iterator[None]:
    firewall.lab.router.sysctl("ipv4/ip_forward", 0)
    yield
    firewall.lab.router.sysctl("ipv4/ip_forward", 1)


@contextmanager
def another_proxy(firewall: Firewall) -> Iterator[None]:
    rules = "table inet ips { chain c { type filter hook prerouting priority -50; meta l4proto tcp tproxy to :9; }; }"
    firewall.lab.router.run(["nft", "-f", "-"], input=rules)
    yield
    firewall.lab.router.run(["nft", "delete", "table", "inet", "ips"])


@contextmanager
def two_uplinks(firewall: Firewall) -> Iterator[None]:
    """With strict reverse path filtering."""
    router = firewall.lab.router
    links = ["all", *(link["ifname"] for link in json.loads(router.run(["ip", "-json", "link"]).stdout))]
    before = {name: router.run(["cat", f"/proc/sys/net/ipv4/conf/{name}/rp_filter"]).stdout.strip() for name in links}
    for name in links:
        router.sysctl(f"ipv4/conf/{name}/rp_filter", 1)
    for metric, hop in ((10, "203.0.113.10"), (20, "10.1.0.2")):
        router.run(["ip", "route", "add", "default", "via", hop, "metric", str(metric)])
    yield
    for metric in (10, 20):
        router.run(["ip", "route", "del", "default", "metric", str(metric)])
    for name, value in before.items():
        router.sysctl(f"ipv4/conf/{name}/rp_filter", value)


@contextmanager
def no_ca(firewall: Firewall) -> Iterator[None]:
    firewall.ca.rename(firewall.dir / "away.pem")
    yield
    (firewall.dir / "away.pem").rename(firewall.ca)


@contextmanager
def a_worker_that_hangs(firewall: Firewall) -> Iterator[None]:
    (worker,) = pids_named(firewall.pid(), "nfw packet 0")
    os.kill(worker, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):  # nfw itself does so after a while
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: pids_named(firewall.pid(), "nfw packet 0") not in ([], [worker]), PATIENCE)


@pytest.mark.parametrize(
    ("broken", "topic", "text", "mend"),
    [
        (no_forwarding, "forwarding", "IPv4 is not forwarded", "sysctl -w net.ipv4.ip_forward=1"),
        (another_proxy, "nftables", "chain inet ips c has a rule with tproxy", "nft delete rule inet ips c handle"),
        (two_uplinks, "rp_filter", "strict reverse path filtering", "sysctl -w net.ipv4.conf.all.rp_filter=2"),
        (no_ca, "CA", "ca.pem: does not exist", "nfw ca create"),
        (a_worker_that_hangs, "daemon", "no answer from nfw packet 0", "journalctl -u nfw"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_one(firewall: Firewall, broken: Callable[[Firewall], Any], topic: str, text: str, mend: str) -> None:
    with broken(firewall):
        status, found = examine(firewall)
    told = [one for one in found if one["level"] == "error"]
    assert (status, [one["topic"] for one in told]) == (1, [topic]), told
    assert text in told[0]["text"]
    assert mend in told[0]["mend"]


def test_mended(firewall: Firewall) -> None:
    status, found = examine(firewall)
    assert (errors(found), status) == ([], 0)

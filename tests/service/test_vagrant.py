"""The scripts that provision the machines of `vagrant/`, run in the container and in its neighbours' networks.

One file system serves all three machines here, and packages are there already; the rest is as on three machines.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.machine import KEPT_RELEASES, WHEELS, Machine, Namespace


def script(machine: Machine, name: str, *arguments: str, network: Namespace | None = None) -> str:
    command = ["env", f"WHEELS={WHEELS}", "sh", f"{machine.clone}/vagrant/{name}.sh", *arguments]
    return machine.run(*command, network=network).stdout


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[Machine]:
    """Provisioned in the order of the Vagrantfile."""
    if machine.path(KEPT_RELEASES).exists():
        machine.run("mkdir", "/opt/nfw")
        machine.run("mv", KEPT_RELEASES, "/opt/nfw/releases")
    for name, network in (("server", machine.server), ("router", None), ("client", machine.client)):
        script(machine, "network", name, network=network)
        script(machine, name, network=network)
        if name == "server":  # the service has started it, but in the router's network
            machine.systemctl("disable", "--now", "nginx")
            machine.run("nginx", network=machine.server)
    yield machine
    machine.run("nginx", "-s", "stop", network=machine.server)
    machine.make("uninstall", "PURGE=1")


def look(machine: Machine, policy: str) -> str:
    """The demo with one of the policies: what the client sees."""
    machine.run("nfw", "policy", "apply", f"/etc/nfw/{policy}.yaml")
    return script(machine, "demo", "look", network=machine.client).replace("CN = ", "CN=")  # OpenSSL 3.0 and 3.5


def test_the_demo(lab: Machine) -> None:
    plain, inspected = look(lab, "plain"), look(lab, "policy")
    for family in ("IPv4", "IPv6"):
        assert f"{family}  issuer=CN=nfw lab root" in plain
        assert f"{family}  issuer=CN=nfw Vagrant lab" in inspected
    assert plain.count("hello from www.lab.test") == inspected.count("hello from www.lab.test") == 2
    assert plain.count("nobody behind nfw reads this") == 2
    assert "nobody behind nfw reads this" not in inspected


def test_provisioning_again_keeps_what_is_edited(lab: Machine) -> None:
    key = lab.path("/etc/nfw/ca.key").read_bytes()
    rules = lab.path("/etc/nfw/lab.rules")
    rules.write_text(rules.read_text() + "# edited\n")
    script(lab, "router")
    assert lab.path("/etc/nfw/ca.key").read_bytes() == key
    assert rules.read_text().endswith("# edited\n")
    assert "hello from www.lab.test" in script(lab, "demo", "look", network=lab.client)

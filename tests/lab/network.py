"""Cables, addresses, routes and forwarding between the lab's namespaces, and the router's masquerading."""

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from socket import AF_INET, AF_INET6
from typing import Final

from pyroute2 import IPRoute

from tests.lab import addresses
from tests.lab.namespace import Namespace

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# An address that is usable at once instead of after duplicate address detection (linux/if_addr.h).
_IFA_F_NODAD: Final = 0x02

_MASQUERADE: Final = """\
table inet lab {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "wan" masquerade
    }
}
"""


def connect(client: Namespace, router: Namespace, server: Namespace, masquerade: bool) -> None:
    """Build the picture in the package's docstring out of three empty namespaces."""
    for namespace in (client, router, server):
        _prepare(namespace)
    for family in ("ipv4", "ipv6"):
        router.sysctl(f"{family}/conf/all/forwarding", 1)
    # Loose reverse path filtering, as systemd sets it on Debian: what a router out there most likely has.
    for name in ("all", "default"):
        router.sysctl(f"ipv4/conf/{name}/rp_filter", 2)

    with router.entered(), IPRoute() as netlink:
        for inner, peer in (("lan", client), ("wan", server)):
            netlink.link("add", ifname=inner, kind="veth", peer={"ifname": "eth0", "net_ns_fd": peer.fd})
    server_side: list[Interface] = []
    for host in addresses.SERVER_HOSTS:
        server_side.append(IPv4Interface(f"{addresses.server_v4(host)}/24"))
        server_side.append(IPv6Interface(f"{addresses.server_v6(host)}/64"))
    _configure(router, "lan", addresses.ROUTER_LAN)
    _configure(router, "wan", addresses.ROUTER_WAN)
    _configure(client, "eth0", addresses.CLIENT)
    _configure(server, "eth0", server_side)
    default_routes = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    _route(client, default_routes, addresses.ROUTER_LAN)
    if masquerade:
        router.run(["nft", "-f", "-"], input=_MASQUERADE)
    else:
        _route(server, addresses.CLIENT_NETWORKS, addresses.ROUTER_WAN)


def _prepare(namespace: Namespace) -> None:
    for name in ("all", "default"):
        namespace.sysctl(f"ipv6/conf/{name}/disable_ipv6", 0)
        namespace.sysctl(f"ipv6/conf/{name}/accept_dad", 0)
        namespace.sysctl(f"ipv6/conf/{name}/accept_ra", 0)
    with namespace.entered(), IPRoute() as netlink:
        netlink.link("set", index=1, state="up")  # lo


def _configure(namespace: Namespace, name: str, interfaces: Iterable[Interface]) -> None:
    """Bring link `name` up with `interfaces` as its addresses. Offloads stay as the kernel sets them: on."""
    with namespace.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        netlink.link("set", index=index, state="up")
        for interface in interfaces:
            flags = _IFA_F_NODAD if interface.version == 6 else 0
            netlink.addr(
                "add",
                index=index,
                address=str(interface.ip),
                prefixlen=interface.network.prefixlen,
                family=_family(interface),
                flags=flags,
            )


def _route(namespace: Namespace, networks: Iterable[Network], gateways: Iterable[Interface]) -> None:
    """Reach each of `networks` through the gateway of the same place in `gateways`."""
    with namespace.entered(), IPRoute() as netlink:
        for network, gateway in zip(networks, gateways, strict=True):
            netlink.route("add", dst=str(network), gateway=str(gateway.ip), family=_family(gateway))


def _family(interface: Interface) -> int:
    return AF_INET if interface.version == 4 else AF_INET6

"""The lab's addresses and ports, as values. Documentation and private ranges only (RFC 5737, 3849, 1918, 4193)."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

CLIENT_NETWORKS: Final = (IPv4Network("10.1.0.0/24"), IPv6Network("fd00:1::/64"))
SERVER_NETWORKS: Final = (IPv4Network("203.0.113.0/24"), IPv6Network("2001:db8:2::/64"))

CLIENT: Final = (IPv4Interface("10.1.0.2/24"), IPv6Interface("fd00:1::2/64"))
ROUTER_LAN: Final = (IPv4Interface("10.1.0.1/24"), IPv6Interface("fd00:1::1/64"))
ROUTER_WAN: Final = (IPv4Interface("203.0.113.1/24"), IPv6Interface("2001:db8:2::1/64"))

# One address pair per group of sites that must not share an address; see sites.py for who lives where.
SERVER_HOSTS: Final = (10, 11, 12, 13, 14, 15, 16)


def server_v4(host: int) -> IPv4Address:
    """The server's IPv4 address number `host`: 10 is 203.0.113.10."""
    return SERVER_NETWORKS[0][host]


def server_v6(host: int) -> IPv6Address:
    """The server's IPv6 address number `host`, its digits read as in IPv4: 10 is 2001:db8:2::10."""
    return SERVER_NETWORKS[1][int(str(host), 16)]


# The classic small services (RFC 862, 863, 864) on TCP; echo also on UDP. Echo answers on more ports for port rules:
# 23 and 6001 as in the example policy, 8443 for bytes that are not TLS where TLS may be expected.
ECHO_PORTS: Final = (7, 23, 6001, 8443)
DISCARD_PORT: Final = 9
CHARGEN_PORT: Final = 19
DNS_PORT: Final = 53

#!/bin/sh
# What Vagrant does not set: IPv6 addresses, and the routes through the router. Usage: network.sh server|router|client
set -eu

# The interface that has an IPv4 address.
interface_of() {
    found=$(ip -o -4 address show | awk -v address="$1" '{ split($4, part, "/"); if (part[1] == address) print $2 }')
    if [ -z "$found" ]; then
        echo "network.sh: no interface has $1" >&2
        exit 1
    fi
    echo "$found"
}

address() {
    ip -6 address replace "$2" dev "$(interface_of "$1")" nodad
}

case "$1" in
server)
    address 203.0.113.10 2001:db8:2::10/64
    ip route replace 10.1.0.0/24 via 203.0.113.1
    ip -6 route replace fd00:1::/64 via 2001:db8:2::1
    ;;
router)
    address 10.1.0.1 fd00:1::1/64
    address 203.0.113.1 2001:db8:2::1/64
    ;;
client)
    address 10.1.0.2 fd00:1::2/64
    ip route replace 203.0.113.0/24 via 10.1.0.1
    ip -6 route replace 2001:db8:2::/64 via fd00:1::1
    ;;
*)
    echo "usage: network.sh server|router|client" >&2
    exit 2
    ;;
esac

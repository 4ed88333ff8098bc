#!/bin/sh
# The client: curl and openssl, the server's name, and trust in the lab's root and in the router's inspection CA.
set -eu

# shellcheck source=vagrant/packages.sh
. /srv/nfw/vagrant/packages.sh

anchors=/usr/local/share/ca-certificates

main() {
    install_packages ca-certificates curl openssl
    if ! grep -q 'www\.lab\.test' /etc/hosts; then
        printf '%s\n' '203.0.113.10 www.lab.test' '2001:db8:2::10 www.lab.test' >>/etc/hosts
    fi
    fetch http://203.0.113.10/lab-root.pem "$anchors/nfw-lab-root.crt"
    fetch http://10.1.0.1:8000/ca.pem "$anchors/nfw-inspection.crt"
    update-ca-certificates
}

fetch() {
    curl -fsS --retry 10 --retry-connrefused --max-time 10 -o "$2" "$1"
}

main

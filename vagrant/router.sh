#!/bin/sh
# The router: nfw from the copied checkout, installed as by `make install`, with a CA of its own and the lab's policies.
# When run again (`vagrant rsync router; vagrant provision router`), it is upgraded; CA and policies are kept.
set -eu

# shellcheck source=vagrant/packages.sh
. /srv/nfw/vagrant/packages.sh

source=/srv/nfw
server=http://203.0.113.10

main() {
    install_packages ca-certificates curl
    "$source/systemd/install"
    configure
    offer_ca
    systemctl enable -q nfw
    # A CA's key is read when the service starts.
    systemctl restart nfw
    nfw status
}

configure() {
    # Who may vouch for the server.
    curl -fsS --retry 10 --retry-connrefused --max-time 10 -o /etc/nfw/lab-root.pem "$server/lab-root.pem"
    if [ ! -e /etc/nfw/ca.pem ]; then
        nfw ca create --name "nfw Vagrant lab" --out /etc/nfw
    fi
    # The first time in place of what the installation put there; afterwards they are yours to edit.
    if [ ! -e /etc/nfw/lab.rules ]; then
        install -m 644 "$source"/vagrant/policy/* /etc/nfw/
    fi
    nfw policy check /etc/nfw/policy.yaml
    nfw policy check /etc/nfw/plain.yaml
}

# The client fetches the CA's certificate from here; a fleet gets it by its own management.
offer_ca() {
    mkdir -p /srv/nfw-ca
    install -m 644 /etc/nfw/ca.pem /srv/nfw-ca/ca.pem
    cat >/etc/systemd/system/nfw-lab-ca.service <<'END'
[Unit]
Description=The lab's inspection CA, for the client to fetch

[Service]
ExecStart=/usr/bin/python3 -m http.server --bind 10.1.0.1 --directory /srv/nfw-ca 8000
DynamicUser=yes
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable -q nfw-lab-ca
    systemctl restart nfw-lab-ca
}

main

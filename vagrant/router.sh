#!/bin/sh
# The router: nfw from the copied checkout in /opt/nfw, as a service, with a CA of its own. When run again (`vagrant rsync
# router; vagrant provision router`), the program and the unit are replaced; CA and policies are kept.
set -eu

source=/srv/nfw
server=http://203.0.113.10

main() {
    # NetfilterQueue comes as source and is built.
    install_packages ca-certificates curl gcc iproute2 libc6-dev libnetfilter-queue-dev nftables python3-dev python3-venv
    install_nfw
    configure
    offer_ca
    install -m 644 "$source/systemd/90-nfw.conf" /etc/sysctl.d/90-nfw.conf
    install -m 644 "$source/systemd/nfw.service" /etc/systemd/system/nfw.service
    systemctl daemon-reload
    systemctl enable -q nfw
    # Closed first, forwarding second: as at boot.
    systemctl restart nfw
    sysctl -q -p /etc/sysctl.d/90-nfw.conf
    /opt/nfw/bin/nfw status
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "$@"
}

# At the versions nfw is tested with. Of requirements.txt only what nfw itself needs, and the tools to build it.
install_nfw() {
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    if [ ! -x /opt/nfw/bin/pip ]; then
        python3 -m venv /opt/nfw
    fi
    # shellcheck disable=SC2046  # a list of names
    /opt/nfw/bin/pip install -q $(grep -E '^(Cython|setuptools|wheel)==' "$source/requirements.txt")
    /opt/nfw/bin/pip install -q --no-build-isolation --constraint "$source/requirements.txt" "$source"
    # Once more without what it needs: the version is the same, the program may not be.
    /opt/nfw/bin/pip install -q --no-build-isolation --no-deps --force-reinstall "$source"
}

configure() {
    mkdir -p /etc/nfw
    for file in policy.yaml plain.yaml lab.rules; do
        if [ ! -e "/etc/nfw/$file" ]; then
            install -m 644 "$source/vagrant/policy/$file" "/etc/nfw/$file"
        fi
    done
    if [ ! -e /etc/nfw/ca.pem ]; then
        /opt/nfw/bin/nfw ca create --name "nfw Vagrant lab" --out /etc/nfw
    fi
    # Who may vouch for the server.
    curl -fsS --retry 10 --retry-connrefused --max-time 10 -o /etc/nfw/lab-root.pem "$server/lab-root.pem"
    /opt/nfw/bin/nfw policy check /etc/nfw/policy.yaml
    /opt/nfw/bin/nfw policy check /etc/nfw/plain.yaml
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

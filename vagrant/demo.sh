#!/bin/sh
# Who vouches for www.lab.test, before and after the router looks into TLS. For the host, when the machines are up;
# `demo.sh look` on the client shows what the client sees now.
set -eu

name=www.lab.test
here=$(dirname "$0")

main() {
    if [ "${1:-}" = look ]; then
        look
        return
    fi
    cd "$here"
    say "The router filters, and leaves TLS alone"
    on router 'sudo nfw policy apply /etc/nfw/plain.yaml'
    on client '/srv/nfw/vagrant/demo.sh look'
    say "The same router, now with TLS inspection"
    on router 'sudo nfw policy apply /etc/nfw/policy.yaml'
    on client '/srv/nfw/vagrant/demo.sh look'
    say "What the router says"
    on router 'sudo nfw status | head -8'
    on router "sudo grep -E '\"event_type\":\"(tls|alert|drop)\"' /var/log/nfw/eve.json | tail -n 4"
}

say() {
    printf '\n== %s\n' "$*"
}

on() {
    vagrant ssh "$1" -c "$2" -- -q
}

# Run on the client.
look() {
    for family in 4 6; do
        printf 'IPv%s  %s\n' "$family" "$(issuer "$family")"
        printf '      /           %s\n' "$(get "$family" /)"
        printf '      /forbidden/ %s\n' "$(get "$family" /forbidden/)"
    done
}

issuer() {
    openssl s_client "-$1" -connect "$name:443" -servername "$name" </dev/null 2>/dev/null |
        openssl x509 -noout -issuer 2>/dev/null || echo "no certificate"
}

get() {
    curl "-$1" -sS --max-time 5 "https://$name$2" 2>&1 || :
}

main "$@"

# Sourced by the provisioning scripts.
# shellcheck shell=sh

# Debian packages, those of them that are not there yet.
install_packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086  # a list of names
    apt-get install -q -y --no-install-recommends $missing
}

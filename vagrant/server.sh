#!/bin/sh
# The server: nginx for www.lab.test, with a certificate of a root that is made here and kept when run again.
set -eu

# shellcheck source=vagrant/packages.sh
. /srv/nfw/vagrant/packages.sh

certificates=/etc/nfw-lab
site=/var/www/lab

main() {
    install_packages nginx-light openssl
    if [ ! -e "$certificates/www.crt" ]; then
        make_certificates
    fi
    make_site
    nginx -q -t
    systemctl enable -q nginx
    systemctl restart nginx
}

make_certificates() {
    mkdir -p "$certificates"
    cd "$certificates"
    umask 077
    openssl ecparam -name prime256v1 -genkey -noout -out root.key
    openssl req -new -x509 -key root.key -out root.pem -days 3650 -subj "/CN=nfw lab root" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
    openssl ecparam -name prime256v1 -genkey -noout -out www.key
    cat >www.ext <<'END'
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:www.lab.test
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    openssl req -new -key www.key -subj "/CN=www.lab.test" |
        openssl x509 -req -CA root.pem -CAkey root.key -set_serial "0x$(openssl rand -hex 8)" -days 365 \
            -extfile www.ext -out www.crt
    umask 022
    cd /
}

make_site() {
    mkdir -p "$site/forbidden"
    echo "hello from www.lab.test" >"$site/index.html"
    echo "nobody behind nfw reads this" >"$site/forbidden/index.html"
    # What router and client are to trust. Over plain HTTP, since they trust nothing yet; fit for a lab only.
    install -m 644 "$certificates/root.pem" "$site/lab-root.pem"
    rm -f /etc/nginx/sites-enabled/default
    cat >/etc/nginx/sites-available/lab <<END
server {
    listen 80 default_server;
    listen [::]:80 default_server;
    listen 443 ssl http2 default_server;
    listen [::]:443 ssl http2 default_server;
    server_name www.lab.test;
    ssl_certificate $certificates/www.crt;
    ssl_certificate_key $certificates/www.key;
    root $site;
}
END
    ln -sf ../sites-available/lab /etc/nginx/sites-enabled/lab
}

main

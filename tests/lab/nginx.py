"""The real nginx of the server namespace: its configuration as text, and its start."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.lab.sites import Site

_HEAD: Final = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 4096; }}
http {{
    log_format lab escape=json '{{"time":"$msec","site":"$server_name","peer":"$remote_addr",'
        '"peer_port":"$remote_port","scheme":"$scheme","protocol":"$server_protocol","sni":"$ssl_server_name","tls":"$ssl_protocol",'
        '"host":"$host","method":"$request_method","uri":"$request_uri","status":"$status",'
        '"received":"$request_length","sent":"$bytes_sent","user_agent":"$http_user_agent"}}';
    access_log {folder}/access.log lab;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    server_tokens off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 120s;
    keepalive_requests 100000;
    default_type application/octet-stream;
    types {{ text/html html; }}
"""

_SERVER: Final = """\
    server {{
{listen}
        server_name {names};
        ssl_certificate {certificates}/{name}.pem;
        ssl_certificate_key {certificates}/{name}.key;
        ssl_protocols {tls_versions};
        ssl_session_cache shared:{name}:1m;
        root {www}/{name};
        include {folder}/locations.conf;
    }}
"""

_LOCATIONS: Final = """\
location = /whoami {{
    default_type application/json;
    return 200 '{{"site":"$server_name","host":"$host","peer":"$remote_addr","peer_port":"$remote_port",\
"protocol":"$server_protocol","method":"$request_method","uri":"$request_uri","tls":"$ssl_protocol",\
"resumed":"$ssl_session_reused",\
"sni":"$ssl_server_name","user_agent":"$http_user_agent"}}\\n';
}}
location /shared/ {{ root {www}; }}
location /slow/ {{ alias {www}/shared/; limit_rate 64k; }}
location /upload/ {{
    alias {www}/shared/upload/;
    dav_methods PUT DELETE;
}}
location /status/ {{
    location = /status/204 {{ return 204; }}
    location = /status/301 {{ return 301 /; }}
    location = /status/403 {{ return 403; }}
    location = /status/500 {{ return 500; }}
}}
"""


def write_configuration(sites: Iterable[Site], folder: Path, certificates: Path, www: Path) -> Path:
    """Write nginx.conf and what it includes into `folder` and return its path."""
    folder.mkdir()
    parts = [_HEAD.format(folder=folder)]
    defaults: set[int] = set()
    for site in sites:
        # `http2` on listen is the spelling that all of nginx 1.9 to 1.28 take; newer ones only mention `http2 on`.
        default = "" if site.host in defaults else " default_server"
        http2 = " http2" if site.http2 else ""
        defaults.add(site.host)
        listen = [
            line
            for address in (site.ipv4, f"[{site.ipv6}]")
            for line in (
                f"        listen {address}:80{default};",
                f"        listen {address}:443 ssl{http2}{default};",
            )
        ]
        parts.append(
            _SERVER.format(
                listen="\n".join(listen),
                names=" ".join(dict.fromkeys((site.name, *site.names))),
                name=site.name,
                certificates=certificates,
                tls_versions=" ".join(site.tls_versions),
                www=www,
                folder=folder,
            )
        )
    (folder / "locations.conf").write_text(_LOCATIONS.format(www=www))
    path = folder / "nginx.conf"
    path.write_text("".join(parts) + "}\n")
    return path


def command(configuration: Path) -> list[str]:
    """The command line that runs nginx in the foreground with `configuration` and no file of the machine's own."""
    folder = configuration.parent
    return ["nginx", "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]

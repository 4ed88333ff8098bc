"""One HTTP request to a host an unverified certificate names: bounded in size, time, redirects and where it may go.

http.client speaks HTTP. What is here is the caution: plain ``http`` only, every address is judged after it was
resolved and then connected to as such, and the deadline is for the whole, not for each read.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REDIRECTS = 3
ADDRESSES = 3  # of a host that are tried
PORT = 80
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_READ = 65536


class FetchError(Exception):
    """``reason`` is a short stable token: ``timeout``, ``unreachable``, ``no_address``, ``forbidden_address``,
    ``forbidden_url``, ``http_404``, ``too_large``, ``redirects``, ``malformed``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def permitted(address: str, port: int, allow: Sequence[Network]) -> bool:
    """Whether ``address`` may be talked to: a public one on port 80, or one in ``allow`` on any port.

    Addresses that carry another (IPv4-mapped, 6to4, NAT64) are judged by both.
    """
    try:
        outer = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    addresses: list[Address] = [outer]
    if isinstance(outer, ipaddress.IPv6Address):
        inner = outer.ipv4_mapped or outer.sixtofour
        if inner is None and outer in _NAT64:
            inner = ipaddress.IPv4Address(int(outer) & 0xFFFFFFFF)
        if inner is not None:
            addresses = [inner] if outer.ipv4_mapped else [outer, inner]
        if outer.teredo is not None:
            return False
    if any(one in network for network in allow for one in addresses if one.version == network.version):
        return True
    return port == PORT and all(_public(one) for one in addresses)


def _public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast
        or address.is_loopback
        or address.is_link_local
        or address.is_private
        or address.is_reserved
        or address.is_unspecified
        or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)
    )


def fetch(url: str, body: bytes | None, limit: int, seconds: float, allow: Sequence[Network] = ()) -> bytes:
    """The body of the answer to a GET, or to a POST of an OCSP request. ``limit`` in bytes, ``seconds`` for all of it.

    Raises :class:`FetchError` and nothing else.
    """
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        try:
            answer = _once(url, body, limit, deadline, allow)
        except TimeoutError:
            raise FetchError("timeout") from None
        except FetchError:
            raise
        except OSError as error:
            raise FetchError("unreachable") from error
        except (http.client.HTTPException, ValueError) as error:
            raise FetchError("malformed") from error
        if isinstance(answer, bytes):
            return answer
        url = urllib.parse.urljoin(url, answer.location)
    raise FetchError("redirects")


class _Moved:
    __slots__ = ("location",)

    def __init__(self, location: str) -> None:
        self.location = location


def _once(url: str, body: bytes | None, limit: int, deadline: float, allow: Sequence[Network]) -> bytes | _Moved:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() != "http" or not parts.hostname or parts.username is not None or not url.isprintable():
        raise FetchError("forbidden_url")
    host, port = parts.hostname, parts.port or PORT
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "nfw"}
    if body is not None:
        headers["Content-Type"] = "application/ocsp-request"
    connection = _Connection(host, port, deadline, allow)
    try:
        connection.request("GET" if body is None else "POST", target, body, headers)
        with contextlib.closing(connection.getresponse()) as response:
            if response.status in (301, 302, 303, 307, 308):
                return _Moved(response.getheader("Location") or "")
            if response.status != 200:
                raise FetchError(f"http_{response.status}")
            if (response.length or 0) > limit:
                raise FetchError("too_large")
            pieces, size = [], 0
            while piece := response.read(_READ):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise FetchError("too_large")
            if response.length:
                raise FetchError("malformed")  # the connection ended before the body did
            return b"".join(pieces)
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was judged, and to no other."""

    def __init__(self, host: str, port: int, deadline: float, allow: Sequence[Network]) -> None:
        super().__init__(host, port)
        self._deadline = deadline
        self._allow = allow

    def connect(self) -> None:
        found = _resolve(self.host, self.port)
        chosen = [one for one in found if permitted(str(one[1][0]), self.port, self._allow)]
        if not chosen:
            raise FetchError("forbidden_address" if found else "no_address")
        failure: OSError = TimeoutError()
        for number, (family, address) in enumerate(chosen[:ADDRESSES]):
            sock = _DeadlineSocket(family, socket.SOCK_STREAM)
            sock.deadline = self._deadline
            try:
                # A dead address must leave time for the next one.
                left = self._deadline - time.monotonic()
                sock.settimeout(max(0.001, left / (min(len(chosen), ADDRESSES) - number)))
                sock.connect(address)
            except OSError as error:
                sock.close()
                failure = error
                continue
            self.sock = sock
            return
        raise failure


def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError("no_address") from None
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


class _DeadlineSocket(socket.socket):
    """Every read and write gets what is left of the time, so that a byte now and then does not prolong it."""

    deadline = 0.0

    def _left(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)

    def recv_into(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._left()
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._left()
        return super().sendall(*args, **kwargs)

"""Every reach below pyOpenSSL's public interface, so that an upgrade has one file to check.

pyOpenSSL has no public call for the expected host name, the time of verification, the reason a verification failed,
or for being told that the server asked for a client certificate; the bindings underneath have.

What every connection does a dozen times (feed, take, handshake, read, write) goes around it because of what it costs:
a new buffer for each call, an exception each time that more bytes are needed. Errors are still raised by pyOpenSSL.
"""

from __future__ import annotations

import re
from typing import Any

from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib  # type: ignore[attr-defined,unused-ignore]

_ffi: Any = ffi
_lib: Any = lib

MODE_RELEASE_BUFFERS: int = _lib.SSL_MODE_RELEASE_BUFFERS
"""SSL_CTX_set_mode(3): give the record buffers (17 KB each) back while idle."""


def expect_server(connection: SSL.Connection, host: str, unix_time: float, address: bytes = b"") -> None:
    """Have the handshake verify ``host`` (dNSName only, no partial wildcards) as of ``unix_time``; or the iPAddress
    ``address`` (packed) where there is one. With neither, the time alone.

    X509_VERIFY_PARAM_set1_host(3), X509_check_host(3).
    """
    parameters = _lib.SSL_get0_param(connection._ssl)
    _lib.X509_VERIFY_PARAM_set_time(parameters, int(unix_time))
    if address:
        if _lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address)) != 1:
            raise ValueError(f"not an address: {address!r}")
        return
    _lib.X509_VERIFY_PARAM_set_hostflags(
        parameters, _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    )
    if not host:
        return
    name = host.encode("ascii")
    if _lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name)) != 1:
        raise ValueError(f"not a host name: {host!r}")


def for_servers(store: crypto.X509Store) -> None:
    """Have what is verified with this store alone be fit for a TLS server, as in a handshake.

    X509_STORE_set_purpose(3).
    """
    _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_SERVER)


def has_extended_master_secret(connection: SSL.Connection) -> bool:
    """RFC 7627; of a TLS 1.2 connection. SSL_get_extms_support(3)."""
    return bool(_lib.SSL_get_extms_support(connection._ssl) == 1)


def resumed(connection: SSL.Connection) -> bool:
    """After the handshake: the peer has resumed the session it was offered. SSL_session_reused(3)."""
    return bool(_lib.SSL_session_reused(connection._ssl) == 1)


# By the group a server took: OpenSSL's default list with a key share for that group alone ("*"; by default there are
# two, one of them post-quantum). The hybrid group stays on offer, and who has learnt it meanwhile asks for its share.
_SHARE_OF = {"x25519": b"?*X25519:?X25519MLKEM768:?secp256r1:?X448:?secp384r1:?secp521r1"}


def share_only(connection: SSL.Connection, group: str) -> None:
    """The server has taken ``group`` before, so shares of others are work for nothing: 90 µs, and 1,200 bytes of a
    ClientHello. SSL_set1_groups_list(3)."""
    groups = _SHARE_OF.get(group.lower())
    if groups is not None and _lib.SSL_set1_curves_list(connection._ssl, groups) != 1:
        _lib.ERR_clear_error()  # the next call would be taken to have failed; all shares are sent then


# How a session's DER begins, behind its header: structure version, TLS 1.3, a cipher suite, and the session ID, which
# on a client is a hash of the ticket, and empty as long as there is none. SSL_SESSION_ASN1 in ssl/ssl_asn1.c.
_HAS_TICKET = re.compile(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)\x02\x01\x01\x02\x02\x03\x04\x04\x02..\x04\x20", re.DOTALL)


def session_to_keep(connection: SSL.Connection, most: int, offered: Any = None) -> Any:
    """The session of a connection, to be offered by another; None where the server has sent no ticket yet, and where it
    would take more than ``most`` bytes as DER. ``offered``: what this connection was.

    Of a full handshake it is a copy without the chain the server has shown, which is most of its size; what comes of
    one that was resumed has none, and needs no copy. i2d_SSL_SESSION(3), SSL_get1_session(3).
    """
    session = _lib.SSL_get_session(connection._ssl)
    size = 0 if session == _ffi.NULL else _lib.i2d_SSL_SESSION(session, _ffi.NULL)
    if not 0 < size <= most:
        return None
    if offered is not None and resumed(connection):
        if session == offered:  # each ticket makes a new one
            return None
        return _ffi.gc(_lib.SSL_get1_session(connection._ssl), _lib.SSL_SESSION_free)
    der = _ffi.new("unsigned char[]", size)
    _lib.i2d_SSL_SESSION(session, _ffi.new("unsigned char **", der))
    copy = _ffi.NULL
    if _HAS_TICKET.match(_ffi.buffer(der)):
        copy = _lib.d2i_SSL_SESSION(_ffi.NULL, _ffi.new("unsigned char **", der), size)
        _lib.ERR_clear_error()
    _ffi.memmove(der, bytes(size), size)  # it has the secret
    if copy == _ffi.NULL:
        return None
    return _ffi.gc(copy, _lib.SSL_SESSION_free)  # which overwrites the secret, too


def leave(connection: SSL.Connection) -> None:
    """The connection is over, however it ended: OpenSSL lets nobody resume the session of one that is freed without
    close_notify, which TLS 1.1 gave up (RFC 4346 7.2.1). SSL_set_shutdown(3)."""
    _lib.SSL_set_shutdown(connection._ssl, _lib.SSL_SENT_SHUTDOWN)


def offer_session(connection: SSL.Connection, session: Any) -> None:
    """Before the handshake: let the server resume what :func:`session_to_keep` of the same context returned.
    SSL_set_session(3)."""
    if _lib.SSL_set_session(connection._ssl, session) != 1:
        _lib.ERR_clear_error()  # nothing is offered then


def verify_result(connection: SSL.Connection) -> int:
    """X509_V_* code of the last verification; 0 is good. SSL_get_verify_result(3)."""
    return int(_lib.SSL_get_verify_result(connection._ssl))


def verify_error_text(code: int) -> str:
    """OpenSSL's own words for an X509_V_* code."""
    text: bytes = _ffi.string(_lib.X509_verify_cert_error_string(code))
    return text.decode("ascii", "replace")


def negotiated(connection: SSL.Connection) -> tuple[str, str, str, str]:
    """Version, cipher suite, group and ALPN protocol, "" for what there is none of; after the handshake."""
    ssl = connection._ssl
    cipher = _lib.SSL_get_current_cipher(ssl)
    return (
        _text(_lib.SSL_get_version(ssl)),
        _text(_lib.SSL_CIPHER_get_name(cipher)) if cipher != _ffi.NULL else "",
        connection.get_group_name() or "",
        connection.get_alpn_proto_negotiated().decode("latin-1"),
    )


def _text(name: Any) -> str:
    text: str = _ffi.string(name).decode("ascii", "replace")
    return text


def cipher_suites(connection: SSL.Connection) -> list[str]:
    """Names of the suites the connection offers or accepts."""
    return connection.get_cipher_list()


_BUFFER_BYTES = 1 << 17
_buffer = _ffi.new("char[]", _BUFFER_BYTES)  # for what is read, until it is copied a line later: no threads
_RECORD_BYTES = 16384  # SSL_read(3) gives one record at most


def feed(connection: SSL.Connection, data: bytes) -> None:
    """Ciphertext of the peer, not empty. BIO_write(3)."""
    if _lib.BIO_write(connection._into_ssl, data, len(data)) != len(data):
        raise MemoryError("BIO_write")


def take(connection: SSL.Connection) -> bytes:
    """Ciphertext for the peer, all there is. BIO_read(3)."""
    size = _lib.BIO_read(connection._from_ssl, _buffer, _BUFFER_BYTES)
    if size <= 0:
        return b""
    taken: bytes = _ffi.unpack(_buffer, size)
    return taken + take(connection) if size == _BUFFER_BYTES else taken


def handshake(connection: SSL.Connection) -> bool:
    """Go on with it; False: more bytes are needed. Raises SSL.Error. SSL_do_handshake(3)."""
    ssl = connection._ssl
    result = _lib.SSL_do_handshake(ssl)
    return result == 1 or _wants_more(connection, ssl, result)


def read(connection: SSL.Connection) -> bytes | None:
    """Plaintext of one record; None: more bytes are needed. Raises SSL.Error. SSL_read(3)."""
    ssl = connection._ssl
    size = _lib.SSL_read(ssl, _buffer, _RECORD_BYTES)
    if size > 0:
        plaintext: bytes = _ffi.unpack(_buffer, size)
        return plaintext
    _wants_more(connection, ssl, size)
    return None


def write(connection: SSL.Connection, plaintext: bytes) -> None:
    """Encrypt it. Raises SSL.Error. SSL_write(3), which pyOpenSSL asks to take a record at a time."""
    ssl, size = connection._ssl, len(plaintext)
    data: Any = plaintext if size <= _RECORD_BYTES else _ffi.from_buffer(plaintext)
    at = 0
    while at < size:
        written = _lib.SSL_write(ssl, data + at if at else data, size - at)
        if written <= 0:
            connection._raise_ssl_error(ssl, written)
        at += written


def _wants_more(connection: SSL.Connection, ssl: Any, result: int) -> bool:
    """False: it does. Raises SSL.Error for all else; SSL_get_error(3) looks at the error queue and leaves it."""
    if _lib.SSL_get_error(ssl, result) != _lib.SSL_ERROR_WANT_READ:
        connection._raise_ssl_error(ssl, result)
    return False


def renew_buffers(connection: SSL.Connection) -> None:
    """Swap both memory buffers, which must be empty, for new ones: they grow to what they once held and never shrink.

    They are empty whenever OpenSSL has said WantRead (it takes all it is given) and the output was collected.
    """
    incoming, outgoing = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
    _lib.SSL_set_bio(connection._ssl, incoming, outgoing)  # frees the old pair
    connection._into_ssl, connection._from_ssl = incoming, outgoing


_SHA256 = _lib.EVP_get_digestbyname(b"sha256")
_digest = _ffi.new("unsigned char[]", 32)


def verified_path(connection: SSL.Connection) -> tuple[bytes, ...]:
    """SHA-256 of the certificates of the path that was verified, leaf first; none if there is no such path.

    SSL_get0_verified_chain(3), X509_digest(3).
    """
    chain = _lib.SSL_get0_verified_chain(connection._ssl)
    if chain == _ffi.NULL:
        return ()
    found = []
    for at in range(_lib.sk_X509_num(chain)):
        if _lib.X509_digest(_lib.sk_X509_value(chain, at), _SHA256, _digest, _ffi.NULL) != 1:
            return ()
        found.append(_ffi.unpack(_ffi.cast("char *", _digest), 32))
    return tuple(found)


def call_back_for_faults(context: SSL.Context) -> Any:
    """Have the context's verification callback, which must be there, called for faults alone and not for each
    certificate in which there is none. Returns what must outlive the context.

    SSL_CTX_set_verify(3); pyOpenSSL's own does the same for a certificate without fault whose callback says True.
    """
    helper: Any = context._verify_helper

    @_ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator,unused-ignore]
    def judged(good: int, store: Any) -> int:
        if not good:
            return int(helper.callback(good, store))
        _lib.X509_STORE_CTX_set_error(store, _lib.X509_V_OK)
        return 1

    _lib.SSL_CTX_set_verify(context._context, _lib.SSL_CTX_get_verify_mode(context._context), judged)
    return judged


def watch_certificate_requests(context: SSL.Context) -> Any:
    """Make connections of this client context note that the server asked for a certificate.

    The note is ``certificate_requested = True`` on the connection's app data. SSL_CTX_set_cert_cb(3): on the client
    the callback runs only when a certificate was requested. Returns the callback, which must outlive the context.
    """

    @_ffi.callback("int(*)(SSL *, void *)")  # type: ignore[untyped-decorator,unused-ignore]
    def requested(ssl: Any, _argument: Any) -> int:
        connection = SSL.Connection._reverse_mapping.get(ssl)
        if connection is not None:
            connection.get_app_data().certificate_requested = True
        return 1  # go on; with no certificate loaded an empty one is sent

    _lib.SSL_CTX_set_cert_cb(context._context, requested, _ffi.NULL)
    return requested

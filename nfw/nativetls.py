"""A TLS endpoint whose private key is in another process: the client-facing half of inbound inspection.

The OpenSSL inside Python's ``cryptography`` has no way to sign elsewhere, the system's has: a key of which only the
public part is here, with a method that asks for each signature (RSA_METHOD, EC_KEY_METHOD). So this half drives the
system's libssl (3.x, the one Python's own ``ssl`` uses) over memory buffers, in the shape of
:class:`engines.tls.half.TlsHalf`, and with what :func:`engines.tls.verify.harden` asks of both legs.

Sources: SSL_new(3), BIO_s_mem(3), SSL_CTX_set_alpn_select_cb(3), RSA_meth_new(3), openssl/ec.h; RFC 8017 sections 5.2
and 9.2 (what an RSA private key is asked for).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from engines.tls.events import Leg
from engines.tls.half import UNNAMED_ALERT, TlsError, TlsHalf
from engines.tls.verify import CIPHERS

Sign = Callable[[bytes], bytes | None]
"""A digest (elliptic curves) or a padded block (RSA) to its signature, None when there is none to be had."""

_SLICE = 65536
_P = ctypes.c_void_p
_INT = ctypes.c_int
_ERROR_SSL, _WANT_READ, _ZERO_RETURN = 1, 2, 6
_CTRL_MODE, _CTRL_MIN_PROTO, _CTRL_MAX_PROTO, _CTRL_GROUP, _CTRL_CACHE, _CTRL_CHAIN = 33, 123, 124, 134, 44, 89
_TLS1_2, _TLS1_3 = 0x0303, 0x0304
_RELEASE_BUFFERS = 0x10
# SSL_OP_NO_TICKET, NO_COMPRESSION, CIPHER_SERVER_PREFERENCE, NO_RENEGOTIATION (openssl/ssl.h of 3.x)
_OPTIONS = 1 << 14 | 1 << 17 | 1 << 22 | 1 << 30
_ALPN_OK, _ALPN_NONE = 0, 3
_EVP_PKEY_RSA, _EVP_PKEY_EC = 6, 408
_RSA_PKCS1, _RSA_NONE = 1, 3

_AlpnCallback = ctypes.CFUNCTYPE(_INT, _P, ctypes.POINTER(_P), ctypes.POINTER(ctypes.c_ubyte), _P, ctypes.c_uint, _P)
_RsaCallback = ctypes.CFUNCTYPE(_INT, _INT, _P, _P, _P, _INT)
_EcCallback = ctypes.CFUNCTYPE(_INT, _INT, _P, _INT, _P, ctypes.POINTER(ctypes.c_uint), _P, _P, _P)
_EcRawCallback = ctypes.CFUNCTYPE(_P, _P, _INT, _P, _P, _P)


class NativeTlsError(Exception):
    """The system's libssl is missing or does not take what it is given; the text says what."""


class _Library:
    """The functions used, with their types."""

    def __init__(self) -> None:
        try:
            self._ssl, self._crypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
        except OSError as error:
            raise NativeTlsError(f"inbound inspection needs libssl 3 of the system: {error}") from error
        data = ctypes.POINTER(ctypes.c_char_p)
        text, long = ctypes.c_char_p, ctypes.c_long
        for library, name, result, *arguments in (
            (self._ssl, "TLS_server_method", _P),
            (self._ssl, "SSL_CTX_new", _P, _P),
            (self._ssl, "SSL_CTX_free", None, _P),
            (self._ssl, "SSL_CTX_ctrl", long, _P, _INT, long, _P),
            (self._ssl, "SSL_CTX_set_options", ctypes.c_uint64, _P, ctypes.c_uint64),
            (self._ssl, "SSL_CTX_set_num_tickets", _INT, _P, ctypes.c_size_t),
            (self._ssl, "SSL_CTX_set_cipher_list", _INT, _P, text),
            (self._ssl, "SSL_CTX_use_certificate", _INT, _P, _P),
            (self._ssl, "SSL_CTX_use_PrivateKey", _INT, _P, _P),
            (self._ssl, "SSL_CTX_set_alpn_select_cb", None, _P, _AlpnCallback, _P),
            (self._ssl, "SSL_new", _P, _P),
            (self._ssl, "SSL_free", None, _P),
            (self._ssl, "SSL_ctrl", long, _P, _INT, long, _P),
            (self._ssl, "SSL_set_bio", None, _P, _P, _P),
            (self._ssl, "SSL_set_accept_state", None, _P),
            (self._ssl, "SSL_do_handshake", _INT, _P),
            (self._ssl, "SSL_read", _INT, _P, _P, _INT),
            (self._ssl, "SSL_write", _INT, _P, text, _INT),
            (self._ssl, "SSL_shutdown", _INT, _P),
            (self._ssl, "SSL_get_error", _INT, _P, _INT),
            (self._ssl, "SSL_get_version", text, _P),
            (self._ssl, "SSL_get_current_cipher", _P, _P),
            (self._ssl, "SSL_CIPHER_get_name", text, _P),
            (self._ssl, "SSL_group_to_name", text, _P, _INT),
            (self._ssl, "SSL_get_servername", text, _P, _INT),
            (self._crypto, "BIO_new", _P, _P),
            (self._crypto, "BIO_s_mem", _P),
            (self._crypto, "BIO_read", _INT, _P, _P, _INT),
            (self._crypto, "BIO_write", _INT, _P, text, _INT),
            (self._crypto, "ERR_clear_error", None),
            (self._crypto, "ERR_get_error", ctypes.c_ulong),
            (self._crypto, "ERR_reason_error_string", text, ctypes.c_ulong),
            (self._crypto, "d2i_X509", _P, _P, data, long),
            (self._crypto, "X509_free", None, _P),
            (self._crypto, "d2i_RSA_PUBKEY", _P, _P, data, long),
            (self._crypto, "d2i_EC_PUBKEY", _P, _P, data, long),
            (self._crypto, "EVP_PKEY_new", _P),
            (self._crypto, "EVP_PKEY_free", None, _P),
            (self._crypto, "EVP_PKEY_assign", _INT, _P, _INT, _P),
            (self._crypto, "RSA_PKCS1_OpenSSL", _P),
            (self._crypto, "RSA_meth_dup", _P, _P),
            (self._crypto, "RSA_meth_set_priv_enc", _INT, _P, _RsaCallback),
            (self._crypto, "RSA_set_method", _INT, _P, _P),
            (self._crypto, "EC_KEY_OpenSSL", _P),
            (self._crypto, "EC_KEY_METHOD_new", _P, _P),
            (self._crypto, "EC_KEY_METHOD_set_sign", None, _P, _EcCallback, _P, _EcRawCallback),
            (self._crypto, "EC_KEY_set_method", _INT, _P, _P),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


_library: _Library | None = None


def _lib() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


class NativeContext:
    """A server's certificate, whose key is elsewhere. ``chain``: leaf first. Raises :class:`NativeTlsError`."""

    ALPNS = 16  # contexts, one for each protocol a client was given

    def __init__(self, chain: Sequence[x509.Certificate], sign: Sign) -> None:
        self._chain = [certificate.public_bytes(serialization.Encoding.DER) for certificate in chain]
        self._sign = sign
        self._kept: list[object] = []  # what C calls must outlive its contexts
        self._contexts: dict[bytes, int] = {}
        self._key = self._remote_key(chain[0])
        self._context(b"")

    def half(self, alpn: bytes, only_tls12: bool) -> NativeHalf:
        """One connection's half; ``alpn`` is answered, ``only_tls12``: no better version."""
        lib = _lib()
        ssl = lib.SSL_new(self._context(alpn))
        if not ssl:
            raise NativeTlsError("SSL_new failed")
        if only_tls12:
            lib.SSL_ctrl(ssl, _CTRL_MAX_PROTO, _TLS1_2, None)
        return NativeHalf(ssl, alpn)

    def _context(self, alpn: bytes) -> int:
        found = self._contexts.get(alpn)
        if found is not None:
            return found
        if len(self._contexts) >= self.ALPNS:
            raise NativeTlsError("too many ALPN protocols")
        lib = _lib()
        context = lib.SSL_CTX_new(lib.TLS_server_method())
        for what, value in (
            (_CTRL_MIN_PROTO, _TLS1_2),
            (_CTRL_MAX_PROTO, _TLS1_3),
            (_CTRL_MODE, _RELEASE_BUFFERS),
            (_CTRL_CACHE, 0),
        ):
            lib.SSL_CTX_ctrl(context, what, value, None)
        lib.SSL_CTX_set_options(context, _OPTIONS)
        lib.SSL_CTX_set_num_tickets(context, 0)
        lib.SSL_CTX_set_cipher_list(context, CIPHERS)
        leaf, *above = [self._certificate(der) for der in self._chain]
        done = lib.SSL_CTX_use_certificate(context, leaf) == 1
        for certificate in above:
            done = done and lib.SSL_CTX_ctrl(context, _CTRL_CHAIN, 1, certificate) == 1  # SSL_CTX_add1_chain_cert
        done = done and lib.SSL_CTX_use_PrivateKey(context, self._key) == 1
        for certificate in (leaf, *above):
            lib.X509_free(certificate)
        if not done:
            lib.SSL_CTX_free(context)
            raise NativeTlsError(f"the certificate cannot be used: {_reason()}")
        answer = ctypes.create_string_buffer(alpn, len(alpn) + 1)

        def choose(_ssl: Any, out: Any, length: Any, _offer: Any, _size: Any, _argument: Any) -> int:
            if not alpn:
                return _ALPN_NONE
            out[0], length[0] = ctypes.addressof(answer), len(alpn)
            return _ALPN_OK

        select = _AlpnCallback(choose)
        self._kept += [answer, select]
        lib.SSL_CTX_set_alpn_select_cb(context, select, None)
        self._contexts[alpn] = context
        return int(context)

    def _certificate(self, der: bytes) -> Any:
        certificate = _lib().d2i_X509(None, ctypes.byref(ctypes.c_char_p(der)), len(der))
        if not certificate:
            raise NativeTlsError(f"the certificate cannot be used: {_reason()}")
        return certificate

    def _remote_key(self, certificate: x509.Certificate) -> int:
        lib = _lib()
        public = certificate.public_key()
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        given = ctypes.byref(ctypes.c_char_p(der))
        pkey = lib.EVP_PKEY_new()
        if isinstance(public, rsa.RSAPublicKey):
            key = lib.d2i_RSA_PUBKEY(None, given, len(der))
            method = lib.RSA_meth_dup(lib.RSA_PKCS1_OpenSSL())
            callback: Any = self._rsa(public.key_size // 8)
            lib.RSA_meth_set_priv_enc(method, callback)
            done = key and lib.RSA_set_method(key, method) and lib.EVP_PKEY_assign(pkey, _EVP_PKEY_RSA, key)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            key = lib.d2i_EC_PUBKEY(None, given, len(der))
            method = lib.EC_KEY_METHOD_new(lib.EC_KEY_OpenSSL())
            callback = self._ec()
            raw = _EcRawCallback(lambda *_: None)  # nobody asks for the two numbers
            self._kept.append(raw)
            lib.EC_KEY_METHOD_set_sign(method, callback, None, raw)
            done = key and lib.EC_KEY_set_method(key, method) and lib.EVP_PKEY_assign(pkey, _EVP_PKEY_EC, key)
        else:
            raise NativeTlsError("the key of the certificate is neither RSA nor elliptic curve")
        if not done:
            raise NativeTlsError(f"the key of the certificate cannot be used: {_reason()}")
        self._kept.append(callback)
        return int(pkey)

    def _rsa(self, size: int) -> Any:
        def sign(length: int, source: Any, target: Any, _key: Any, padding: int) -> int:
            block = ctypes.string_at(source, length)
            if padding == _RSA_PKCS1 and length <= size - 11:  # RFC 8017 9.2
                block = b"\0\1" + b"\xff" * (size - length - 3) + b"\0" + block
            elif padding != _RSA_NONE or length != size:
                return -1
            signature = self._sign(block)
            if signature is None or len(signature) != size:
                return -1
            ctypes.memmove(target, signature, size)
            return size

        return _RsaCallback(sign)

    def _ec(self) -> Any:
        def sign(
            _type: int, digest: Any, length: int, target: Any, size: Any, _inverse: Any, _r: Any, _key: Any
        ) -> int:
            signature = self._sign(ctypes.string_at(digest, length))
            if signature is None:
                return 0
            ctypes.memmove(target, signature, len(signature))
            size[0] = len(signature)
            return 1

        return _EcCallback(sign)


class NativeHalf(TlsHalf):
    """See :class:`TlsHalf`; the promise is the same."""

    __slots__ = ("_alpn", "_incoming", "_outgoing", "_read", "_ssl")

    def __init__(self, ssl: int, alpn: bytes) -> None:
        lib = _lib()
        self.closed = False
        self.error = None
        self._alpn = alpn
        self._ssl = ssl
        self._incoming, self._outgoing = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(ssl, self._incoming, self._outgoing)
        lib.SSL_set_accept_state(ssl)
        self._read = ctypes.create_string_buffer(16384)

    def __del__(self) -> None:
        _lib().SSL_free(self._ssl)

    def handshake(self, data: bytes = b"") -> int | None:
        lib, at = _lib(), 0
        while True:
            piece = data[at : at + _SLICE]
            if piece:
                lib.BIO_write(self._incoming, piece, len(piece))
                at += len(piece)
            lib.ERR_clear_error()
            result = lib.SSL_do_handshake(self._ssl)
            if result == 1:
                return at
            code = lib.SSL_get_error(self._ssl, result)
            if code != _WANT_READ:
                raise _error(code)
            if at >= len(data):
                return None

    def decrypt(self, data: bytes) -> bytes:
        if self.closed or self.error is not None:
            return b""
        lib, at, pieces = _lib(), 0, []
        while True:
            piece = data[at : at + _SLICE]
            if piece:
                lib.BIO_write(self._incoming, piece, len(piece))
                at += len(piece)
            while True:
                lib.ERR_clear_error()
                count = lib.SSL_read(self._ssl, self._read, len(self._read))
                if count <= 0:
                    break
                pieces.append(self._read.raw[:count])
            code = lib.SSL_get_error(self._ssl, count)
            if code == _ZERO_RETURN:
                self.closed = True
            elif code != _WANT_READ:
                self.error = _error(code)
            if self.closed or self.error is not None or at >= len(data):
                return b"".join(pieces)

    def encrypt(self, plaintext: bytes) -> bytes:
        if self.error is not None:
            return b""
        lib, pieces = _lib(), []
        for at in range(0, len(plaintext), _SLICE):
            piece = plaintext[at : at + _SLICE]
            lib.ERR_clear_error()
            result = lib.SSL_write(self._ssl, piece, len(piece))
            if result <= 0:
                self.error = _error(lib.SSL_get_error(self._ssl, result))
                break
            pieces.append(self.output())
        return b"".join(pieces)

    def close_notify(self) -> bytes:
        if self.error is None:
            _lib().ERR_clear_error()
            _lib().SSL_shutdown(self._ssl)
        return self.output()

    def output(self) -> bytes:
        lib, pieces = _lib(), []
        buffer = ctypes.create_string_buffer(_SLICE)
        while (count := lib.BIO_read(self._outgoing, buffer, _SLICE)) > 0:
            pieces.append(buffer.raw[:count])
        return b"".join(pieces)

    def trim(self) -> None:
        """Its buffers stay as they have grown: 64 KB at most each."""

    def servername(self) -> bytes | None:
        name: bytes | None = _lib().SSL_get_servername(self._ssl, 0)
        return name

    def leg(self) -> Leg:
        lib = _lib()
        group = lib.SSL_group_to_name(self._ssl, lib.SSL_ctrl(self._ssl, _CTRL_GROUP, 0, None))
        return Leg(
            version=lib.SSL_get_version(self._ssl).decode(),
            cipher=lib.SSL_CIPHER_get_name(lib.SSL_get_current_cipher(self._ssl)).decode(),
            group=(group or b"").decode(),
            alpn=self._alpn.decode("latin-1"),
        )


def _reason() -> str:
    """The last entry of this thread's error queue, "" when there is none."""
    lib, text = _lib(), ""
    while code := lib.ERR_get_error():
        text = (lib.ERR_reason_error_string(code) or b"").decode("ascii", "replace") or text
    return text


def _error(code: int) -> TlsError:
    if code == _ZERO_RETURN:
        return TlsError("the peer closed during the handshake", "close notify")
    reason = _reason()
    if not reason:
        return TlsError("received an alert that OpenSSL has no name for", UNNAMED_ALERT)
    _, alert, name = reason.partition(" alert ")
    return TlsError(f"received alert {name}" if alert else reason, name)

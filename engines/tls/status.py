"""The verdict on one intercepted connection, and what is done about it."""

from __future__ import annotations

import enum


class Status(enum.Enum):
    """Why a session ended, or OK. Every verdict on the server, NO_SNI, PROTOCOL and NOT_TLS can have its own action."""

    OK = "OK"
    BYPASSED = "BYPASSED"  # passed on as it was, not decrypted: the policy exempts the name
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    UNTRUSTED = "UNTRUSTED"  # no path to a trusted root, or the path uses a refused key (our own CA)
    NAME_MISMATCH = "NAME_MISMATCH"  # the certificate does not cover the SNI, or the SNI is no host name
    INVALID = "INVALID"  # malformed, bad signature, constraint or usage violated
    WEAK = "WEAK"  # key or signature algorithm below the floor
    REVOKED = "REVOKED"  # a certificate of the chain, by its issuer's word
    UNKNOWN = "UNKNOWN"  # nobody who may say so said whether it is revoked
    MUST_STAPLE = "MUST_STAPLE"  # RFC 7633: the certificate demands a stapled OCSP response, none that is good came
    NO_SNI = "NO_SNI"
    PROTOCOL = "PROTOCOL"  # TLS failed: version, cipher, alert, timeout, malformed
    NOT_TLS = "NOT_TLS"  # the client does not speak TLS
    UNREACHABLE = "UNREACHABLE"  # no TCP connection to the server
    POLICY = "POLICY"  # the owner ended it: a rule, a policy swap
    ABORTED = "ABORTED"  # the client left before the session was established
    INTERNAL = "INTERNAL"  # our own fault: no leaf, buffer bound reached


PASSABLE = frozenset(
    (
        Status.EXPIRED,
        Status.NOT_YET_VALID,
        Status.UNTRUSTED,
        Status.NAME_MISMATCH,
        Status.INVALID,
        Status.WEAK,
        Status.REVOKED,
        Status.UNKNOWN,
        Status.MUST_STAPLE,
    )
)
"""Verdicts on a certificate, which a policy may let pass. The others leave nothing that could be decrypted."""


class FailAction(enum.Enum):
    """``drop`` closes silently (FIN, no TLS alert); ``reject`` resets (RST). To both sides."""

    DROP = "drop"
    REJECT = "reject"

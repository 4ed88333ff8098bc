"""Who is trusted in the grade's world: one good root, and roots with every fault a root can have."""

from __future__ import annotations

import base64
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.grade import pki
from tests.grade.pki import DAY, authority

# The public keys of roots whose private ones were shipped to everybody: Superfish's, eDell's, webpack-dev-server's.
_BAD_KEYS = {
    "Superfish": """
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDo80oYdl8ZP7HPWOl/QwcJlYA1xQ/+cTEngZkSJiCl349q/EJVOe4JOInZ4DbE
rAGCW9U55vmPB4jf/u72oRTOqXRF2P3wF1cqguF6LhKTWqyK1xVj0bebVYAPWLwcSe0gYt22TKU66xw9oP96cabTEHgzrkvCHP2S
SqHD50GkLQIDAQAB""",
    "eDellRoot": """
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAvdEmDW7NW4RfQfDhdYbOzqgj1b6jsdl1V0EwxVvgbNvi5mMJM2Ns/Hhv
ws0UvW4CtS37lVUxAOw5NjcuD9d79Q26RjZv7SWVQ7PMFhiluwVxyjifpKxO8OE2Lm36Q+jtzbdmtgE+Y67zZ4Qnpxq+z+3f277A
U6RdfC9EKIcD+VbI1Y0Q+HXv5sIQ/erk34mtX7oejfNA8S/lBQlh2ZewyYPYIxCiN5BSPrwn3U/nDkEqO6sbTGOK/OFKiJ73KbtV
HAsWNZJxG7D/1dXoIupPIvnGuqKIOnW5M66o2Pe7HK2z2hxuygle7GPmIRiRIzWe8u6kS/6WDL1arMgQUybWXwIDAQAB""",
    "webpack-dev-server": """
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA5b5hZ2dxwP0Q05MMVZGZrs+ecc5ZzOBbvkvk1CZ7D/7aXeyd/vWRXD66
ZQbkwp8XUxchAvLCmy84pCwcxdajXoT/Ydj80X+SPuHdx7YxodSY9rl5KfOj5n3n4UPxOJRXFWznOG+aterqYb+WRTmcJfS9+cJt
fCz5QNnYHhdzcDePClP8d78o/6VMGAxl2sucoF+yx9XAs1vQD6wYiNWh5POdlxXAr1iuztuny/MV0dlnt1/2NQtpVj3OveMNqi6L
edO3beWMu5Nb3snnUdK68ExoiJVtbJZ5zEolMrY9zS9J3lTVkq7whZUAm18ahbUX8g3jfl25XEVUjjKbNB3vfQIDAQAB""",
}


class Trust:
    """``root`` issues whatever has no fault at the top. All named here are in the firewall's trust file but
    ``unknown``, ``public`` (in the system's store) and nfw's own CA, which is added by the bench."""

    def __init__(self) -> None:
        now = time.time()
        self.root = authority("Grade Root")
        self.unknown = authority("Nobody's Root")
        self.expired = authority("Expired Root", start=now - 900 * DAY, end=now - DAY)
        self.future = authority("Future Root", start=now + 3 * DAY, end=now + 900 * DAY)
        self.sha1 = authority("SHA-1 Root", key=pki.rsa_key(2048, 65537, "sha1"), digest="sha1")
        self.weak = authority("Short Root", key=pki.rsa_key(1024))
        self.critical = authority("Critical Root", extra=[("1.3.6.1.4.1.99999.1", True, b"\x05\0")])
        self.distrusted = authority("Distrusted Root")
        self.long = authority("Long Root", end=now + 9000 * DAY)
        self.plain = authority("Plain Root", extensions=[pki.basic(True)])
        self.public = authority("Public Root")
        self.log_key = ec.generate_private_key(ec.SECP256R1())
        self.log_key_pem = self.log_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.extra: list[bytes] = []  # DER of more anchors

    def pem(self) -> bytes:
        """The firewall's trust file."""
        anchors = (
            self.root,
            self.expired,
            self.future,
            self.sha1,
            self.weak,
            self.critical,
            self.distrusted,
            self.long,
            self.plain,
        )
        return b"".join(map(pki.pem, [*(one.der for one in anchors), *self.extra]))

    def known_bad(self) -> dict[str, bytes]:
        """Certificates (DER) of keys that are known to be bad; who made the certificate does not matter to trust."""
        found = {}
        for label, text in _BAD_KEYS.items():
            subject = pki.name(label)
            found[label] = pki.certificate(
                subject=subject,
                issuer=subject,
                spki=base64.b64decode(text),
                signer=self.root.key,
                extensions=[pki.basic(True), pki.key_usage("key_cert_sign")],
                end=time.time() + 900 * DAY,
            )
        return found

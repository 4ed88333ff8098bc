"""The web sites of the lab: who lives on which address, and what is right or wrong with each one's certificate."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tests.lab.addresses import server_v4, server_v6


class Proof(Enum):
    """How a site's certificate comes about; everything below GOOD_RSA must be refused by a careful client."""

    GOOD = auto()  # P-256, issued by the lab's root
    GOOD_RSA = auto()  # RSA-2048, issued by the lab's root
    LISTED = auto()  # as GOOD, and names a CRL, which the site itself serves
    INTERMEDIATE = auto()  # issued by an intermediate, which the server sends along
    NO_INTERMEDIATE = auto()  # issued by an intermediate, which the server keeps to itself
    EXPIRED = auto()
    NOT_YET_VALID = auto()
    SELF_SIGNED = auto()
    UNKNOWN_CA = auto()  # issued by a root nobody was told of
    WRONG_NAME = auto()  # valid, for other.test


@dataclass(frozen=True, slots=True)
class Site:
    """One virtual host on ports 80 and 443.

    `host` selects the address pair (see addresses.py). `names` are the certificate's DNS names where they are not just
    the site's own. HTTP versions and TLS versions belong to the address in nginx, so odd ones have it for themselves.
    """

    name: str
    host: int
    proof: Proof = Proof.GOOD
    names: tuple[str, ...] = ()
    http2: bool = True
    tls_versions: tuple[str, ...] = ("TLSv1.2", "TLSv1.3")

    @property
    def ipv4(self) -> str:
        """The site's IPv4 address as text."""
        return str(server_v4(self.host))

    @property
    def ipv6(self) -> str:
        """The site's IPv6 address as text, without brackets."""
        return str(server_v6(self.host))

    @property
    def addresses(self) -> tuple[str, str]:
        """Both addresses, IPv4 first."""
        return self.ipv4, self.ipv6

    @property
    def crl_url(self) -> str | None:
        """Where its certificate says that the root's revocation list is."""
        return f"http://{self.ipv4}/root.crl" if self.proof is Proof.LISTED else None

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The DNS names in the site's certificate."""
        return self.names or (self.name,)


# The first site of an address answers there when no name, or an unknown one, is asked for.
SITES: Final = {
    site.name: site
    for site in (
        Site("site-a.test", 10),
        Site("site-b.test", 10),
        Site("allowed.test", 11),
        Site("blocked.test", 11),
        Site("a.wild.test", 11, names=("*.wild.test", "wild.test")),
        Site("rsa.test", 11, Proof.GOOD_RSA),
        Site("intermediate.test", 11, Proof.INTERMEDIATE),
        Site("evil.test", 12),
        Site("expired.test", 13, Proof.EXPIRED),
        Site("future.test", 13, Proof.NOT_YET_VALID),
        Site("selfsigned.test", 13, Proof.SELF_SIGNED),
        Site("unknownca.test", 13, Proof.UNKNOWN_CA),
        Site("wrongname.test", 13, Proof.WRONG_NAME, names=("other.test",)),
        Site("halfchain.test", 13, Proof.NO_INTERMEDIATE),
        Site("tls12.test", 14, tls_versions=("TLSv1.2",)),
        Site("http1.test", 15, http2=False),
        Site("listed.test", 16, Proof.LISTED),
    )
}

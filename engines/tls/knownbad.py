"""Keys of authorities that must vouch for nothing: their private halves were shipped to the public.

SHA-256 of the SubjectPublicKeyInfo, hexadecimal. Sources: the advisories named, and the certificates as kept by
badssl.com.
"""

from __future__ import annotations

KNOWN_BAD = frozenset(
    map(
        bytes.fromhex,
        (
            "4bb8f35ba1e126f8dde1b0c420625ed86dce61a7bddadbdea9aba578ff13145e",  # Superfish (US-CERT TA15-051A)
            "cdee9f3305572a677e1a6c82dc1e02a35b11cae6a684338c9f37fe1ac8daec23",  # eDellRoot (US-CERT VU#870761)
            "130ad4e0633521290531b6651f5759b0bc7bc656709ff8f365c2143b0389b6f6",  # DSDTestProvider (VU#925497)
            "2bd1e667ec9ebbe02b9a7da264210c99b3eac1cc9141a0e30e3f623eaccec4e1",  # webpack-dev-server's localhost CA
            "9d40513f43991af39fe413aff7608fc56463827137166547de0a1828d524ae98",  # badssl.com's interception test CA
        ),
    )
)

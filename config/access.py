"""What may an operator set? This file: who may come in, key by key.

Durations end in `_s` or `_ms`, sizes in `_bytes`; rates allow one second's worth at once.
"""

from typing import Annotated

import msgspec

from config import checks
from config.checks import Scope
from config.declare import DAY_S, MOST, says
from config.rules import Action


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How clients' tokens (JWT) are checked and minted."""

    secret: Annotated[
        str,
        says(
            "Secret for HS256; also signs the tokens that the server mints.",
            secret=True,
            check=checks.check_secret,
            allowed=f"at least {checks.MIN_SECRET_BYTES} bytes",
        ),
    ] = ""
    secret_file: Annotated[str, says("File that holds `token.secret`, read at start.")] = ""
    public_key: Annotated[
        str,
        says(
            "Public key in PEM; needs `token.algorithm`.",
            check=checks.check_public_key,
            allowed="PEM text of a public key",
        ),
    ] = ""
    public_key_file: Annotated[str, says("File that holds `token.public_key`, read at start.")] = ""
    algorithm: Annotated[
        str,
        says(
            "Algorithm of `token.public_key`.",
            check=checks.check_algorithm,
            allowed="one of " + ", ".join(checks.ALGORITHMS),
        ),
    ] = ""
    jwks_url: Annotated[
        str,
        says(
            "Address of a key set (JWKS); keys rotate by `kid`.",
            mask=checks.mask_url,
            check=checks.check_jwks_url,
            allowed="an http or https URL",
        ),
    ] = ""
    jwks_refresh_s: Annotated[
        float, says("How often the key set is fetched.", unit="s", low=1, high=DAY_S)
    ] = 300.0
    issuer: Annotated[str, says("Required `iss` of a token; empty: not checked.")] = ""
    audience: Annotated[str, says("Required `aud` of a token; empty: not checked.")] = ""
    leeway_s: Annotated[
        float,
        says("Difference of clocks allowed for.", unit="s", zero="none", low=0, high=300),
    ] = 5.0
    max_lifetime_s: Annotated[
        float,
        says(
            "Tokens that expire later than this from now are refused; a user whose sessions were "
            "ended is remembered this long.",
            unit="s",
            low=60,
            high=366 * DAY_S,
        ),
    ] = 30.0 * DAY_S
    default_ttl_s: Annotated[
        float,
        says("Lifetime of a minted token when none is asked for.", unit="s", low=1, high=MOST),
    ] = 3_600.0

    def __repr__(self) -> str:
        # Settings may end up in a log or a traceback; the secret must not.
        return "TokenSettings(...)"


class AnonymousSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Clients without a token."""

    grants: Annotated[
        dict[str, tuple[Action, ...]],
        says(
            "Pattern to list of actions, for clients without a token; empty: they are refused.",
            check=checks.check_grants,
            allowed="a table of pattern = list of subscribe, publish, presence, history",
        ),
    ] = msgspec.field(default_factory=dict)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key of a service: `id.secret`, of which only the hash of the secret is kept."""

    name: Annotated[
        str,
        says(
            "Whose key it is; two keys may share a name while they are rotated.",
            check=checks.check_key_name,
            allowed="1 to 255 bytes of printable text",
        ),
    ]
    id: Annotated[
        str,
        says(
            "The part of the key before the dot.",
            check=checks.check_key_id,
            allowed="1 to 64 letters, digits, _ or -",
        ),
    ]
    hash: Annotated[
        str,
        says(
            "SHA-256 of the part after the dot.",
            secret=True,
            check=checks.check_key_hash,
            allowed='"sha256:" and 64 hexadecimal digits in lower case',
        ),
    ]
    scopes: Annotated[
        dict[Scope, tuple[str, ...] | bool],
        says(
            "Scope to list of patterns (publish, history, presence, channels, purge) or to true "
            "(sessions, tokens, metrics).",
            check=checks.check_scopes,
            allowed="a table of scope = list of patterns, or = true for sessions, tokens, metrics",
        ),
    ]

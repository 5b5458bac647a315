"""Which user a token stands for: every way to forge one, and the tokens that the server mints."""

import base64
import hmac
import json
import traceback
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

from config.access import TokenSettings
from config.rules import ChannelRule, ChannelRules
from server.errors import BadRequest, Forbidden, Refused, TokenExpired, Unauthorized
from server.jwks import Jwks, KeyRejected, VerifyingKey
from server.principal import GrantsCache, Principal
from server.tokens import (
    MAX_TOKEN_BYTES,
    TokenSigner,
    TokenVerifier,
    parse_secret,
    signature_checker,
)

NOW = 1_000_000.0
SECRET = "a-secret-of-at-least-thirty-two-bytes"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}


def pem(key: Any) -> str:
    raw: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw.decode()


def private_pem(key: Any) -> str:
    raw: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return raw.decode()


PUBLIC = {algorithm: pem(key.public_key()) for algorithm, key in PRIVATE.items()}


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_token(payload: Any, header: Any = None, secret: bytes = SECRET.encode()) -> str:
    """Sign anything with HS256, by hand: libraries refuse to make what attackers send."""
    signed = (
        part({"alg": "HS256", "typ": "JWT"} if header is None else header) + "." + part(payload)
    )
    return signed + "." + part(hmac.digest(secret, signed.encode(), "sha256"))


def claims(**changes: Any) -> dict[str, Any]:
    every = {"sub": "u7", "exp": NOW + 600, "iat": NOW, **changes}
    return {name: value for name, value in every.items() if value is not None}


def verifier(
    rules: ChannelRules | None = None,
    now: Callable[[], float] = lambda: NOW,
    jwks: Jwks | None = None,
    **settings: Any,
) -> TokenVerifier:
    settings = settings or {"secret": SECRET}
    return TokenVerifier(
        TokenSettings(**settings), rules or ChannelRules(), GrantsCache(), now=now, jwks=jwks
    )


def refusal(check: TokenVerifier, text: str, kind: type[Refused] = Unauthorized) -> str:
    """Return the public text; nothing of the token may be in what a log could show."""
    with pytest.raises(kind) as caught:
        check.verify(text)
    assert type(caught.value) is kind
    error = caught.value
    assert error.__context__ is None and error.__cause__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__)
    for piece in text.split("."):
        assert len(piece) < 12 or piece not in shown
    assert "canary" not in shown
    return error.message


# ---- tokens that are good


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_public_key_checks_its_signatures(algorithm: str) -> None:
    check = verifier(public_key=PUBLIC[algorithm], algorithm=algorithm)
    text = jwt.encode(claims(grants={"chat.*": ["subscribe"]}), PRIVATE[algorithm], algorithm)
    principal = check.verify(text)
    assert (principal.kind, principal.user) == ("user", "u7")
    assert (principal.issued_at, principal.expires_at) == (NOW, NOW + 600)
    assert principal.allows("subscribe", "chat.lobby")
    assert not principal.allows("publish", "chat.lobby")


def test_hs256() -> None:
    principal = verifier().verify(jwt.encode(claims(), SECRET, "HS256"))
    assert principal.user == "u7"
    assert not principal.allows("subscribe", "chat.lobby")


def test_a_secret_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token used to be preceded by attempts to read the secret as a public key."""
    check, text = verifier(), raw_token(claims())
    examined = Mock(return_value=True)
    monkeypatch.setattr(HMACAlgorithm, "_is_der_key", examined)
    assert check.verify(text).user == "u7"
    examined.assert_not_called()
    with pytest.raises(KeyRejected):
        parse_secret("a secret that would be a public key in DER")
    examined.assert_called_once()


def test_what_is_no_parsed_secret_signs_nothing() -> None:
    with pytest.raises(InvalidKeyError):
        signature_checker().encode(b"{}", "text, though it is long enough for HS256", "HS256")


def test_rules_grant_on_top_of_a_token() -> None:
    rules = ChannelRules([ChannelRule(match="user.{sub}.>", grant=("subscribe",))])
    principal = verifier(rules).verify(raw_token(claims()))
    assert principal.allows("subscribe", "user.u7.inbox")
    assert not principal.allows("subscribe", "user.u8.inbox")


def test_sessions_with_equal_grants_share_them() -> None:
    check = verifier()
    grants = {"chat.*": ["subscribe"]}
    first = check.verify(raw_token(claims(grants=grants)))
    second = check.verify(raw_token(claims(sub="u8", grants=grants)))
    assert first.grants is second.grants


@pytest.mark.parametrize(
    "changes",
    [
        {"iat": None},
        {"iat": NOW + 5},
        {"nbf": NOW + 5},
        {"nbf": 0},
        {"exp": NOW - 4.9},
        {"exp": NOW + 600.25, "iat": NOW - 0.5},
        {"exp": NOW + 30 * 86400},
        {"grants": {}},
        {"sub": "\u5f20\u4e09 \u00e9"},
        {"sub": "x" * 255},
        {"aud": ["others", "too"], "iss": "anyone", "jti": 7, "extra": {"a": [1]}},
    ],
)
def test_what_a_token_may_also_say(changes: dict[str, Any]) -> None:
    principal = verifier().verify(raw_token(claims(**changes)))
    assert principal.user == changes.get("sub", "u7")
    assert principal.expires_at == changes.get("exp", NOW + 600)  # the leeway adds nothing


def test_several_kinds_of_keys_at_once() -> None:
    check = verifier(secret=SECRET, public_key=PUBLIC["ES256"], algorithm="ES256")
    assert check.verify(jwt.encode(claims(), SECRET, "HS256")).user == "u7"
    assert check.verify(jwt.encode(claims(), EC_KEY, "ES256")).user == "u7"


# ---- signatures


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_is_never_a_secret(algorithm: str) -> None:
    """Algorithm confusion: HS256 with the text of the public key, which everyone may know."""
    key_text = PUBLIC[algorithm].encode()
    der = base64.b64decode("".join(PUBLIC[algorithm].splitlines()[1:-1]))
    for alone in (True, False):
        settings: dict[str, Any] = {"public_key": PUBLIC[algorithm], "algorithm": algorithm}
        check = verifier(**settings) if alone else verifier(secret=SECRET, **settings)
        for secret in (key_text, key_text.strip(), der):
            said = refusal(check, raw_token(claims(), secret=secret))
            assert said == f"token: wrong {'algorithm' if alone else 'signature'}"
            header = {"alg": algorithm}
            forged = raw_token(claims(), header, secret)
            assert refusal(check, forged) == "token: wrong signature"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "HS384", "HS512", "PS256"])
def test_other_algorithms(name: str) -> None:
    header = {"alg": name}
    unsigned = part(header) + "." + part(claims()) + "."
    assert refusal(verifier(), unsigned) == "token: wrong algorithm"
    assert refusal(verifier(), raw_token(claims(), header)) == "token: wrong algorithm"


@pytest.mark.parametrize("name", ["HS384", "HS512"])
def test_the_right_secret_with_another_hash(name: str) -> None:
    token = jwt.encode(claims(), SECRET * 2, name)
    assert refusal(verifier(secret=SECRET * 2), token) == "token: wrong algorithm"


def test_a_foreign_key() -> None:
    assert refusal(verifier(), raw_token(claims(), secret=b"x" * 40)) == "token: wrong signature"
    other = rsa.generate_private_key(65537, 2048)
    check = verifier(public_key=PUBLIC["RS256"], algorithm="RS256")
    text = jwt.encode(claims(), other, "RS256")
    assert refusal(check, text) == "token: wrong signature"


def test_a_right_key_under_another_algorithm() -> None:
    check = verifier(public_key=PUBLIC["RS256"], algorithm="RS256")
    assert refusal(check, jwt.encode(claims(), RSA_KEY, "RS512")) == "token: wrong algorithm"
    assert refusal(check, jwt.encode(claims(), EC_KEY, "ES256")) == "token: wrong algorithm"


def test_changed_claims_and_cut_signatures() -> None:
    header, _, signature = raw_token(claims()).split(".")
    changed = f"{header}.{part(claims(sub='admin'))}.{signature}"
    assert refusal(verifier(), changed) == "token: wrong signature"
    assert refusal(verifier(), raw_token(claims())[:-2]) == "token: wrong signature"
    assert refusal(verifier(), raw_token(claims()).rpartition(".")[0] + ".") == (
        "token: wrong signature"
    )


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit", "b64"])
def test_a_token_brings_no_key_along(name: str) -> None:
    values: list[Any] = ["https://evil.example/canary", None, [], {"kty": "oct"}]
    for value in values:
        token = raw_token(claims(), {"alg": "HS256", name: value})
        assert refusal(verifier(), token) == f"token: header {name} is not allowed"
    hidden = ('{"alg":"HS256","\\u00%02x%s":1}' % (ord(name[0]), name[1:])).encode()  # noqa: UP031
    assert refusal(verifier(), raw_token(claims(), hidden)).endswith("is not allowed")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "....",
        "canary",
        "\u00e9.b.c",
        "\udcff.b.c",
        "\x00.\x00.\x00",
        part([1]) + ".b.c",
        part(b'{"alg":"HS256"') + ".b.c",
        part(b'{"alg":"\xff"}') + ".b.c",
        part(b'{"a":' + b"[" * 4000) + ".b.c",
        part({"alg": 7}) + ".b.c",
        part({"alg": ["HS256"]}) + ".b.c",
        part({}) + ".b.c",
        part({"alg": "HS256", "kid": 7}) + ".b.c",
    ],
)
def test_malformed(text: str) -> None:
    assert refusal(verifier(), text) == "token: malformed"


def test_over_8_kib_is_not_even_looked_at() -> None:
    text = raw_token(claims(pad="canary" * 1500))
    assert len(text) > MAX_TOKEN_BYTES
    assert refusal(verifier(), text) == "token: longer than 8192 bytes"
    room = (MAX_TOKEN_BYTES - len(raw_token(claims(pad="")))) * 3 // 4
    largest = raw_token(claims(pad="x" * room))
    assert MAX_TOKEN_BYTES - 4 < len(largest) <= MAX_TOKEN_BYTES
    assert verifier().verify(largest).user == "u7"


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_=-]{0,20}\.[A-Za-z0-9_-]{0,20}\.[a-z]*"))
def test_nothing_else_but_a_refusal_comes_out(text: str) -> None:
    with pytest.raises(Unauthorized):
        verifier().verify(text)


@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "zip"]), st.text(max_size=8)),
    payload=st.binary(max_size=60),
)
def test_nothing_else_comes_out_of_signed_rubbish(header: dict[str, str], payload: bytes) -> None:
    with pytest.raises(Unauthorized):
        verifier().verify(raw_token(payload, {"alg": "HS256", **header}))


# ---- claims


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (claims(sub=None), "sub is missing"),
        (claims(exp=None), "exp is missing"),
        (b'{"sub":null,"exp":1000600}', "sub is missing"),
        (claims(sub=7), "sub has the wrong type"),
        (claims(sub=["u7"]), "sub has the wrong type"),
        (claims(sub={}), "sub has the wrong type"),
        (claims(sub=True), "sub has the wrong type"),
        (claims(sub=""), "sub is not a valid user id"),
        (claims(sub="x" * 256), "sub is not a valid user id"),
        (claims(sub="canary\n"), "sub is not a valid user id"),
        (claims(sub="canary\x00"), "sub is not a valid user id"),
        (b'{"sub":"\\ud800","exp":1000600}', "malformed"),
        (claims(exp="soon"), "exp has the wrong type"),
        (claims(exp=str(NOW + 600)), "exp has the wrong type"),
        (claims(exp=True), "exp has the wrong type"),
        (claims(iat="canary"), "iat has the wrong type"),
        (claims(nbf=[]), "nbf has the wrong type"),
        (claims(iss=7), "iss has the wrong type"),
        (b'{"sub":"u7","exp":NaN}', "malformed"),
        (b'{"sub":"u7","exp":Infinity}', "malformed"),
        (b"[]", "malformed"),
        (b"null", "malformed"),
        (b"", "malformed"),
        (b'{"sub":"\xff","exp":1000600}', "malformed"),
        (b'{"x":' + b"[" * 5000, "malformed"),
        (claims(exp=NOW - 5 - 1e-3, nbf=NOW + 100), "not yet valid"),
        (claims(nbf=NOW + 5.1), "not yet valid"),
        (claims(iat=NOW + 5.1), "not yet valid"),
        (claims(exp=NOW + 30 * 86400 + 6, iat=None), "exp is too far ahead"),
        (claims(exp=NOW + 60, iat=NOW - 30 * 86400), "exp is too far ahead"),
        (claims(exp=1e300), "exp is too far ahead"),
        (claims(iat=-1e300), "exp is too far ahead"),
        (claims(grants=[]), "grants has the wrong type"),
        (claims(grants={"chat.*": "subscribe"}), "grants has the wrong type"),
        (claims(grants={"chat.*": [1]}), "grants has the wrong type"),
        (claims(grants={"chat.*": ["write"]}), "grants: unknown action 'write'"),
        (claims(grants={f"c{n}": [] for n in range(257)}), "grants: more than 256 patterns"),
    ],
)
def test_claims_that_are_wrong(payload: Any, said: str) -> None:
    assert refusal(verifier(), raw_token(payload)) == f"token: {said}"


def test_numbers_beyond_all_bounds() -> None:
    for number in (b"1e999", b"9" * 5000, b"-" + b"9" * 400):
        refusal(verifier(), raw_token(b'{"sub":"u7","exp":' + number + b"}"))
        refusal(verifier(), raw_token(b'{"sub":"u7","exp":1000600,"iat":' + number + b"}"))


@pytest.mark.parametrize(
    "pattern", ["chat.lo*", "a.>.b", "$sys.>", "ch\u0430t.*", "chat.*\n", "a."]
)
def test_a_malformed_pattern_is_named(pattern: str) -> None:
    with pytest.raises(Unauthorized, match=r"^token: grants: pattern '") as caught:
        verifier().verify(raw_token(claims(grants={pattern: ["subscribe"]})))
    assert pattern.encode("unicode_escape").decode() in caught.value.message


def test_expired() -> None:
    text = raw_token(claims(exp=NOW - 5))
    assert refusal(verifier(), text, TokenExpired) == "token: expired"
    forged = raw_token(claims(exp=NOW - 5), secret=b"x" * 32)
    assert refusal(verifier(), forged) == "token: wrong signature"  # only the valid expire


def test_the_clock_is_the_injected_one() -> None:
    text = raw_token(claims())
    assert refusal(verifier(now=lambda: NOW + 605), text, TokenExpired) == "token: expired"
    assert verifier(now=lambda: NOW + 604).verify(text).user == "u7"
    assert refusal(verifier(now=lambda: NOW - 6), text) == "token: not yet valid"


def test_issuer_and_audience_where_they_are_set() -> None:
    check = verifier(secret=SECRET, issuer="https://issuer.example", audience="galecast")
    good = {"iss": "https://issuer.example", "aud": "galecast"}
    assert check.verify(raw_token(claims(**good))).user == "u7"
    wrong: Any
    for wrong in (None, "", "https://issuer.example/", "canary"):
        assert refusal(check, raw_token(claims(**{**good, "iss": wrong}))) == "token: wrong issuer"
    for wrong in (None, "", "canary", "Galecast", ["galecast"], ["galecast", "x"], {}, 7):
        text = raw_token(claims(**{**good, "aud": wrong}))
        assert refusal(check, text) == "token: wrong audience"


@pytest.mark.parametrize("sub", ["*", ">", "u8.x", "a b", "{sub}", "u\u0437"])
def test_an_evil_user_id_binds_no_template(sub: str) -> None:
    rules = ChannelRules([ChannelRule(match="user.{sub}.>", grant=("subscribe",))])
    principal = verifier(rules).verify(raw_token(claims(sub=sub)))
    for channel in ("user.u8.x", "user.u8.x.y", f"user.{sub}.x"):
        assert not principal.allows("subscribe", channel)


def test_a_canary_is_in_no_representation() -> None:
    text = raw_token(claims(canary="canary-7c1f"))
    check = verifier(secret=SECRET)
    principal = check.verify(text)
    for shown in (repr(principal), str(principal), repr(check), repr(TokenSigner(TokenSettings()))):
        assert "canary" not in shown and SECRET not in shown
        assert not any(piece in shown for piece in text.split("."))


# ---- keys at start


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"secret": "x" * 31}, "token.secret has 31 bytes, it needs 32"),
        ({"secret": PUBLIC["RS256"]}, "token.secret holds a key in PEM"),
        ({"secret": private_pem(EC_KEY)}, "token.secret holds a key in PEM"),
        ({"public_key": "canary", "algorithm": "RS256"}, "not a public key in PEM"),
        ({"public_key": private_pem(RSA_KEY), "algorithm": "RS256"}, "not a public key in PEM"),
        ({"public_key": PUBLIC["RS256"], "algorithm": "ES256"}, "not a public key for ES256"),
        ({"public_key": PUBLIC["ES256"], "algorithm": "RS256"}, "not a public key for RS256"),
        ({"public_key": PUBLIC["ES256"], "algorithm": "EdDSA"}, "not a public key for EdDSA"),
        ({"public_key": PUBLIC["RS256"], "algorithm": "HS256"}, "token.algorithm must be one of"),
        ({"public_key": PUBLIC["RS256"], "algorithm": ""}, "token.algorithm must be one of"),
        (
            {
                "public_key": pem(rsa.generate_private_key(65537, 1024).public_key()),  # noqa: S505
                "algorithm": "RS256",
            },
            "an RSA key has 2048 to 8192 bits",
        ),
        (
            {
                "public_key": pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
                "algorithm": "ES256",
            },
            "P-256 only",
        ),
    ],
)
def test_unusable_keys_stop_the_start(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(KeyRejected, match=said) as caught:
        verifier(**settings)
    for value in settings.values():
        assert len(value) < 10 or value not in str(caught.value)


def test_without_any_key_no_token_is_taken() -> None:
    check = verifier(secret="")
    assert refusal(check, raw_token(claims())) == "token: none are taken here"
    unsigned = part({"alg": "none"}) + "." + part(claims()) + "."
    assert refusal(check, unsigned) == "token: none are taken here"


# ---- key sets


class KeySet(Jwks):
    """A key set whose keys the test sets; it counts how often a refresh was asked for."""

    def __init__(self, **keys: VerifyingKey) -> None:
        async def fetch(url: str) -> bytes:
            raise AssertionError

        super().__init__("https://issuer.example", fetch, refresh_s=300)
        self._keys = keys
        self.wanted = 0

    def rotate(self, **keys: VerifyingKey) -> None:
        self._keys = keys

    def want(self) -> None:
        self.wanted += 1


RSA_PUBLIC = VerifyingKey("RS256", RSA_KEY.public_key())
EC_PUBLIC = VerifyingKey("ES256", EC_KEY.public_key())


def test_a_key_set_by_kid_and_its_rotation() -> None:
    keys = KeySet(old=RSA_PUBLIC)
    check = verifier(jwks=keys, secret="")
    old = jwt.encode(claims(), RSA_KEY, "RS256", headers={"kid": "old"})
    new = jwt.encode(claims(), EC_KEY, "ES256", headers={"kid": "new"})
    assert check.verify(old).user == "u7"
    assert keys.wanted == 0
    assert refusal(check, new) == "token: unknown key"
    assert keys.wanted == 1
    keys.rotate(new=EC_PUBLIC)
    assert check.verify(new).user == "u7"
    assert refusal(check, old) == "token: unknown key"
    assert keys.wanted == 2


def test_a_key_of_the_set_is_used_with_its_own_algorithm_only() -> None:
    keys = KeySet(k=RSA_PUBLIC)
    check = verifier(jwks=keys, secret="")
    for algorithm, key in (("ES256", EC_KEY), ("EdDSA", ED_KEY)):
        text = jwt.encode(claims(), key, algorithm, headers={"kid": "k"})
        assert refusal(check, text) == "token: wrong algorithm"
    confused = raw_token(claims(), {"alg": "HS256", "kid": "k"}, PUBLIC["RS256"].encode())
    assert refusal(check, confused) == "token: wrong algorithm"
    assert keys.wanted == 0


def test_without_a_kid_a_key_set_cannot_choose() -> None:
    keys = KeySet(k=RSA_PUBLIC)
    text = jwt.encode(claims(), RSA_KEY, "RS256")
    assert refusal(verifier(jwks=keys, secret=""), text) == "token: unknown key"
    assert keys.wanted == 0


def test_a_key_set_beside_a_key_and_a_secret() -> None:
    keys = KeySet(k=RSA_PUBLIC)
    check = verifier(jwks=keys, secret=SECRET, public_key=PUBLIC["ES256"], algorithm="ES256")
    assert check.verify(raw_token(claims(), {"alg": "HS256", "kid": "k"})).user == "u7"
    assert check.verify(jwt.encode(claims(), EC_KEY, "ES256")).user == "u7"
    text = jwt.encode(claims(), EC_KEY, "ES256", headers={"kid": "mine"})
    assert check.verify(text).user == "u7"
    assert keys.wanted == 1
    forged = jwt.encode(claims(), ED_KEY, "EdDSA", headers={"kid": "evil"})
    assert refusal(check, forged) == "token: unknown key"


# ---- minting


def test_a_minted_token_is_accepted() -> None:
    settings = TokenSettings(secret=SECRET, issuer="me", audience="galecast")
    signer = TokenSigner(settings, now=lambda: NOW + 0.9)
    text = signer.mint("u7", {"chat.*": ["subscribe", "publish"]}, 60)
    check = TokenVerifier(settings, ChannelRules(), GrantsCache(), now=lambda: NOW)
    principal = check.verify(text)
    assert principal.allows("publish", "chat.lobby")
    assert (principal.issued_at, principal.expires_at) == (NOW, NOW + 60)
    payload = jwt.decode(text, options={"verify_signature": False})
    assert payload == {
        "sub": "u7",
        "iat": NOW,
        "exp": NOW + 60,
        "iss": "me",
        "aud": "galecast",
        "grants": {"chat.*": ["publish", "subscribe"]},
    }


def test_a_minted_token_lives_as_set_when_nothing_is_asked() -> None:
    def minted(**settings: Any) -> Principal:
        made = TokenSettings(secret=SECRET, **settings)
        text = TokenSigner(made, now=lambda: NOW).mint("u7", {})
        return TokenVerifier(made, ChannelRules(), GrantsCache(), now=lambda: NOW).verify(text)

    assert minted().expires_at == NOW + 3600
    assert minted(default_ttl_s=90.0).expires_at == NOW + 90
    assert minted(default_ttl_s=60.0, max_lifetime_s=60.0, leeway_s=0).expires_at == NOW + 60


def test_without_a_secret_nothing_is_minted() -> None:
    signer = TokenSigner(TokenSettings(public_key=PUBLIC["RS256"], algorithm="RS256"))
    with pytest.raises(Forbidden, match=r"token\.secret is not set"):
        signer.mint("u7", {}, 60)


@pytest.mark.parametrize(
    ("sub", "grants", "ttl_s", "said"),
    [
        ("", {}, 60, "the user is empty"),
        ("u7\n", {}, 60, "not printable"),
        ("u7", {"chat.*": ["write"]}, 60, "unknown action"),
        ("u7", {"chat.lo*": ["publish"]}, 60, "pattern 'chat.lo"),
        ("u7", {}, 0, "1 to 3600 s"),
        ("u7", {}, -5, "1 to 3600 s"),
        ("u7", {}, 3601, "1 to 3600 s"),
        ("u7", {}, float("nan"), "1 to 3600 s"),
        ("u7", {}, float("inf"), "1 to 3600 s"),
        ("u7", {f"{n:0>100}": ["publish"] for n in range(200)}, 60, "longer than 8192 bytes"),
    ],
)
def test_what_would_not_be_accepted_is_not_minted(
    sub: str, grants: dict[str, list[str]], ttl_s: float, said: str
) -> None:
    signer = TokenSigner(TokenSettings(secret=SECRET, max_lifetime_s=3600.0), now=lambda: NOW)
    with pytest.raises(BadRequest, match=said):
        signer.mint(sub, grants, ttl_s)

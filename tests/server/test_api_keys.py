"""Which service an API key belongs to."""

import hmac
import string

import pytest

from config.access import ApiKey
from config.settings import hash_secret
from server import api_keys
from server.api_keys import MAX_KEY_BYTES, ApiKeys, new_key
from server.errors import Unauthorized

SECRET = "s3cret-canary-value"


def key(key_id: str, secret: str = SECRET, name: str = "shop") -> ApiKey:
    return ApiKey(name=name, id=key_id, hash=hash_secret(secret), scopes={"publish": ("orders.>",)})


def test_a_key_names_its_service() -> None:
    keys = ApiKeys([key("k1")])
    principal = keys.authenticate(f"k1.{SECRET}")
    assert (principal.kind, principal.name, principal.key) == ("service", "shop", "k1")
    assert principal.user is None
    assert principal.expires_at is None
    assert principal.allows("publish", "orders.1")
    assert keys.authenticate(f"k1.{SECRET}") is principal


def test_the_development_key_is_a_key_like_others() -> None:
    assert ApiKeys([key("dev", "galecast")]).authenticate("dev.galecast").key == "dev"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "k1",
        "k1.",
        f".{SECRET}",
        f"k2.{SECRET}",
        f"K1.{SECRET}",
        f"k1.{SECRET}x",
        f"k1.{SECRET}.",
        f"k1.{SECRET}\n",
        f" k1.{SECRET}",
        f"k1.{SECRET.upper()}",
        f"k1.{hash_secret(SECRET)}",
        f"k1\x00.{SECRET}",
        "k1.\udcff",
        "k1." + "x" * MAX_KEY_BYTES,
        "x" * 1_000_000,
    ],
)
def test_everything_else_is_refused_in_the_same_words(text: str) -> None:
    with pytest.raises(Unauthorized, match=r"^the API key is not valid$") as caught:
        ApiKeys([key("k1")]).authenticate(text)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_longest_key_passes() -> None:
    secret = "x" * (MAX_KEY_BYTES - 3)
    assert ApiKeys([key("k1", secret)]).authenticate(f"k1.{secret}").key == "k1"


def test_known_and_unknown_ids_take_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(api_keys, "compare_digest", compare)
    keys = ApiKeys([key("k1")])
    for text in ("k1.wrong", "nobody.wrong", "nothing"):
        with pytest.raises(Unauthorized):
            keys.authenticate(text)
    assert compared == [(32, 32)] * 3


def test_two_keys_of_one_name_are_rotated() -> None:
    keys = ApiKeys([key("old", "first")])
    keys.replace([key("old", "first"), key("new", "second")])
    assert keys.ids == {"old", "new"}
    assert keys.authenticate("old.first").name == keys.authenticate("new.second").name
    keys.replace([key("new", "second")])
    assert keys.service("old") is None
    with pytest.raises(Unauthorized):
        keys.authenticate("old.first")
    assert keys.service("new") is keys.authenticate("new.second")


def test_a_bad_list_changes_nothing() -> None:
    keys = ApiKeys([key("k1")])
    broken = ApiKey(name="x", id="k2", hash="sha256:zz", scopes={})
    with pytest.raises(ValueError, match="non-hexadecimal"):
        keys.replace([broken])
    assert keys.authenticate(f"k1.{SECRET}").key == "k1"


def test_a_new_key_opens_and_hides_itself() -> None:
    made = new_key()
    other = new_key()
    assert made.id != other.id and made.secret != other.secret
    assert len(made.secret) == 43  # 256 bits, six in each character
    assert set(made.text) <= set(string.ascii_letters + string.digits + "-_.")
    assert made.text == f"{made.id}.{made.secret}"
    settings = ApiKey(name="n", id=made.id, hash=made.hash, scopes={})
    assert ApiKeys([settings]).authenticate(made.text).key == made.id
    assert made.secret not in repr(made)
    assert made.secret not in made.hash


def test_no_secret_in_a_representation() -> None:
    principal = ApiKeys([key("k1")]).authenticate(f"k1.{SECRET}")
    assert SECRET not in repr(principal)
    assert hash_secret(SECRET) not in repr(principal)

"""Later sources override earlier ones, and every problem is told at once, without secrets."""

from pathlib import Path

import pytest

from config.errors import SettingsRejected
from config.rules import ChannelRule
from config.settings import DEV_SECRET, Settings
from config.sources import Loaded, load, reloadable
from config.values import MASK

CANARY = "canary-0123456789-0123456789-0123456789"
HASH = "sha256:" + "0a" * 32


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "galecast.toml"


def problems_of(
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    path: Path | None = None,
) -> list[str]:
    with pytest.raises(SettingsRejected) as caught:
        load(flags or {}, environ or {}, path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def problems_in(toml: Path, text: str) -> list[str]:
    toml.write_text(text, encoding="utf-8")
    return problems_of(path=toml)


# ---- precedence


def test_without_sources_every_default_holds() -> None:
    loaded = load({}, {"HOME": "/", "galecast_port": "1"}, None)
    assert loaded.settings == Settings()
    assert loaded.origin("port") == "default"


def test_later_sources_override_earlier_ones(toml: Path) -> None:
    toml.write_text("port = 1\nadmin_port = 2\nnode = 'f'\n[session]\nping_s = 9\n", "utf-8")
    environ = {"GALECAST_ADMIN_PORT": "3", "GALECAST_NODE": "e"}
    loaded = load({"node": "c"}, environ, toml)
    settings = loaded.settings
    assert (settings.port, settings.admin_port, settings.node) == (1, 3, "c")
    assert settings.session.ping_s == 9.0
    assert loaded.origin("port") == f"file {toml}"
    assert loaded.origin("admin_port") == "env GALECAST_ADMIN_PORT"
    assert loaded.origin("node") == "flag --node"
    assert loaded.origin("session.ping_s") == f"file {toml}"


def test_the_environment_names_the_file_unless_a_flag_does(toml: Path, tmp_path: Path) -> None:
    toml.write_text("port = 7\n", "utf-8")
    other = tmp_path / "other.toml"
    other.write_text("port = 8\n", "utf-8")
    assert load({}, {"GALECAST_CONFIG": str(toml)}, None).settings.port == 7
    assert load({}, {"GALECAST_CONFIG": str(toml)}, other).settings.port == 8
    assert load({}, {"GALECAST_CONFIG": ""}, None).settings.port == 8000


def test_text_becomes_values() -> None:
    environ = {
        "GALECAST_DEV": "No",
        "GALECAST_DEMO": "1",
        "GALECAST_SESSION_PING_S": "2.5",
        "GALECAST_ORIGINS": "https://a, https://B:443,",
        "GALECAST_TRUSTED_PROXIES": '["10.0.0.0/8"]',
        "GALECAST_ANONYMOUS_GRANTS": '{"news.>": ["subscribe"]}',
        "GALECAST_CHANNELS": '[{"match": "a.*", "history_ttl_s": 5, "grant": ["history"]}]',
        "GALECAST_KEYS": f'[{{"name":"a","id":"b","hash":"{HASH}","scopes":{{"tokens":true}}}}]',
    }
    settings = load({"limits.connections": "1_000"}, environ, None).settings
    assert not settings.dev
    assert settings.demo
    assert settings.session.ping_s == 2.5
    assert settings.origins == ("https://a", "https://b")
    assert settings.trusted_proxies == ("10.0.0.0/8",)
    assert settings.anonymous.grants == {"news.>": ("subscribe",)}
    assert settings.channels == (ChannelRule(match="a.*", history_ttl_s=5.0, grant=("history",)),)
    assert settings.keys[0].scopes == {"tokens": True}
    assert settings.limits.connections == 1000


# ---- problems


def test_every_problem_is_told_at_once(toml: Path) -> None:
    toml.write_text("prot = 1\nport = 99999\n[limits]\nframe_bytes = 2000\n", "utf-8")
    problems = problems_of({"workers": "0"}, {"GALECAST_LOG_LEVEL": "loud"}, toml)
    assert problems == [
        f"prot: unknown setting; did you mean port? (file {toml})",
        f"port = 99999: allowed: a whole number from 0 to 65_535 (file {toml})",
        'log.level = "loud": unknown level; allowed: one of debug, info, warning, error '
        "(env GALECAST_LOG_LEVEL)",
        "workers = 0: allowed: a whole number from 1 to 256 (flag --workers)",
        f"limits.frame_bytes = 2000: must exceed limits.data_bytes (65536) (file {toml})",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ping_s = 1", "ping_s: unknown setting; did you mean session.ping_s?"),
        ("[session]\npin_s = 1", "session.pin_s: unknown setting; did you mean session.ping_s?"),
        ("[sesion]\nping_s = 1", "sesion: unknown setting; did you mean session?"),
        ("zzzzzz = 1", "zzzzzz: unknown setting ("),
        ("session = 1", "session: must be a table"),
        ("port = true", "port = True: allowed: a whole number"),
        ("port = '8000'", 'port = "8000": allowed: a whole number'),
        ("port = 1.5", "port = 1.5: allowed"),
        ("port = -1", "port = -1: allowed"),
        ("demo = 1", "demo = 1: allowed: true or false"),
        ("node = 1979-05-27", "node = datetime.date(1979, 5, 27): "),
        ("session.ping_s = nan", "session.ping_s = nan: not a number"),
        ("session.ping_s = inf", "session.ping_s = inf: allowed"),
        ("session.ping_s = 0", "session.ping_s = 0: allowed: a number from 0.05 to 3_600"),
        ("token.issuer = 1", "token.issuer = 1: allowed: text"),
        ("limits.depth = 0", "limits.depth = 0: allowed: a whole number from 1 to 500"),
        ("origins = 'https://a'", 'origins = "https://a": allowed: a list'),
        ("origins = ['https://*.a']", "'https://*.a' is not scheme://host"),
        ("broker.url = 'http://u:p@h'", 'broker.url = "http://u:***@h": unknown scheme'),
        ("publish.wait_replicas = 1", "publish.wait_replicas = 1: needs a broker.url with"),
        (
            "publish = {wait_replicas = 1, wait_timeout_s = 5}\nbroker.url = 'redis://h'",
            "publish.wait_timeout_s = 5.0: must be below broker.call_timeout_s (5)",
        ),
        ("channels = 1", "channels = 1: not a list of tables; allowed: a list of tables"),
        ("channels = [1]", "not a list of tables"),
        ("[[channels]]\npresence = true", "channels[0].match: must be given"),
        (
            "[[channels]]\nmatch = 'a'\nslow = 'x'",
            'slow = "x": unknown policy; allowed: "disconnect" or',
        ),
        ("[[channels]]\nmatch = 'a'\nhistory_siz = 1", "did you mean history_size?"),
        ("[[channels]]\nmatch = 'a'\nhistory_size = 100001", "from 0 to 100_000"),
        ("[[channels]]\nmatch = 'a'\ngrant = ['fly']", "allowed: a list of subscribe"),
        ("anonymous.grants = {'a*' = ['publish']}", "a wildcard must be a whole segment"),
        ("anonymous.grants = {a = ['fly']}", "anonymous.grants = {'a': ['fly']}: allowed"),
        ("node = '" + "x" * 500 + "'", "..: not a node's name"),
        ("port = ", "is not TOML"),
        ("port = " + "9" * 5_000, "a number that is too long"),
        ("origins = " + "[" * 5_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_by_name(toml: Path, text: str, expected: str) -> None:
    """The reader of TOML raised what is not of TOML for the last two of these.

    At a reload that ended the supervisor, and with it all of its workers.
    """
    [problem] = problems_in(toml, text)
    assert expected in problem
    assert str(toml) in problem
    assert len(problem) < 400


def test_each_table_of_a_list_is_checked(toml: Path) -> None:
    text = "[[channels]]\nmatch = 'a'\n[[channels]]\nmatch = 'a*'\n[[channels]]\nmatch = ''\n"
    first, second = problems_in(toml, text)
    assert first.startswith('channels[1].match = "a*": a wildcard')
    assert second.startswith('channels[2].match = "": the pattern is empty')


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in problems_of(path=tmp_path / "none")[0]
    assert "cannot be read: Is a directory" in problems_of(path=tmp_path)[0]
    (tmp_path / "latin").write_bytes(b"node = '\xe9'")
    assert "is not UTF-8" in problems_of(path=tmp_path / "latin")[0]


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("GALECAST_PRT", "1", "GALECAST_PRT: unknown setting; did you mean GALECAST_PORT?"),
        ("GALECAST_PORT", "tcp://10.0.0.1:80", "not a number; allowed: a whole number"),
        ("GALECAST_PORT", "", "not a number"),
        ("GALECAST_PORT", "9" * 5000, "not a number"),
        ("GALECAST_SERVICE_HOST", "10.0.0.1", "enableServiceLinks: false"),
        ("GALECAST_PORT_80_TCP", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
        ("GALECAST_DEV", "maybe", "not a truth value; allowed: true or false"),
        ("GALECAST_CHANNELS", "[", "not valid JSON"),
        ("GALECAST_CHANNELS", "{}", "not a list of tables"),
        ("GALECAST_NODE", "\udcff", "surrogates not allowed"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable: str, text: str, expected: str) -> None:
    [problem] = problems_of(environ={variable: text})
    assert expected in problem
    assert variable in problem


def test_an_unknown_flag_is_refused() -> None:
    [problem] = problems_of({"broker.uri": "x"})
    assert problem == "broker.uri: unknown setting; did you mean broker.url? (command line)"


def test_a_value_that_is_overridden_has_to_be_valid_too(toml: Path) -> None:
    toml.write_text("port = 99999\n", "utf-8")
    [problem] = problems_of(environ={"GALECAST_PORT": "1"}, path=toml)
    assert problem.startswith("port = 99999")


def test_a_refused_value_is_no_ground_for_a_second_problem() -> None:
    environ = {"GALECAST_LIMITS_DATA_BYTES": "0", "GALECAST_LIMITS_FRAME_BYTES": "2000"}
    [problem] = problems_of(environ=environ)
    assert problem.startswith("limits.data_bytes = 0")


def test_keys_that_clash_are_refused(toml: Path) -> None:
    table = f"[[keys]]\nname = 'a'\nid = 'k'\nhash = '{HASH}'\nscopes = {{metrics = true}}\n"
    [problem] = problems_in(toml, table * 2)
    assert problem == "keys[1].id: must be unlike the ids of all other keys"


# ---- secrets


def test_no_problem_shows_a_secret(toml: Path) -> None:
    toml.write_text(
        f"[token]\nsecret = ['{CANARY}']\n[[keys]]\nname = 'a'\nid = 'b'\nhash = '{CANARY}'\n"
        "scopes = {metrics = true}\n",
        "utf-8",
    )
    environ = {
        "GALECAST_TOKEN_SECRE": CANARY,
        "GALECAST_KEYS": f'"{CANARY}"',
        "GALECAST_TOKEN_SECRET": CANARY[:20],
    }
    problems = problems_of(environ=environ, path=toml)
    assert len(problems) == 5
    assert CANARY[:20] not in "\n".join(problems)
    assert sum(MASK in problem for problem in problems) == 4


def test_a_secret_is_read_from_a_file(toml: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY + "\n", "utf-8")
    toml.write_text(f"token.secret_file = '{secret}'\n", "utf-8")
    loaded = load({}, {}, toml)
    assert loaded.settings.token.secret == CANARY
    assert loaded.origin("token.secret") == f"file {toml}, token.secret_file"


def test_a_public_key_is_read_from_a_file(tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_text("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n", "utf-8")
    flags = {"token.public_key_file": str(pem), "token.algorithm": "ES256"}
    assert load(flags, {}, None).settings.token.public_key.startswith("-----BEGIN")
    [problem] = problems_of({"token.public_key_file": str(pem)})
    assert "token.algorithm and a public key" in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n", "is empty"),
        (b"short", "it has 5 bytes; allowed: at least 32 bytes"),
        (b"\xff" * 40, "is not UTF-8"),
        (b"x" * 70_000, "is larger than 65536 bytes"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_secret_file_is_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    [problem] = problems_of(environ={"GALECAST_TOKEN_SECRET_FILE": str(secret)})
    assert "token.secret" in problem
    assert expected in problem


def test_a_file_that_fails_is_the_only_problem_told() -> None:
    flags = {"token.public_key_file": "no\0file", "token.algorithm": "ES256"}
    [problem] = problems_of(flags)
    assert problem.startswith("token.public_key_file")


def test_a_secret_beside_its_file_is_refused() -> None:
    environ = {"GALECAST_TOKEN_SECRET": CANARY, "GALECAST_TOKEN_SECRET_FILE": "/secret"}
    [problem] = problems_of(environ=environ)
    assert "set only one" in problem
    assert CANARY not in problem


# ---- development mode


def dev(**flags: str) -> Loaded:
    return load({"dev": "true", **flags}, {}, None)


def test_development_mode_says_what_it_set() -> None:
    loaded = dev(port="8901")
    assert loaded.settings.token.secret == DEV_SECRET
    assert loaded.origin("dev") == "flag --dev"
    for path in ("token.secret", "keys", "demo", "origins", "anonymous.grants", "drain.delay_s"):
        assert loaded.origin(path) == "dev"
    assert loaded.origin("host") == "default"


def test_development_mode_keeps_what_is_set() -> None:
    flags = {"dev": "true", "drain.delay_s": "1", "anonymous.grants": "{}", "host": "::1"}
    loaded = load(flags, {"GALECAST_TOKEN_SECRET": CANARY}, None)
    assert loaded.settings.drain.delay_s == 1
    assert loaded.settings.anonymous.grants == {}
    assert loaded.settings.token.secret == CANARY
    assert loaded.origin("token.secret") == "env GALECAST_TOKEN_SECRET"


def test_development_mode_is_for_loopback_only() -> None:
    [problem] = problems_of({"dev": "true", "host": "0.0.0.0"})
    assert problem.startswith('host = "0.0.0.0": must be a loopback address in development mode')
    assert "(flag --host)" in problem


# ---- reload


def test_a_reload_applies_rules_keys_and_level_only() -> None:
    old = load({}, {"GALECAST_PORT": "1"}, None).settings
    environ = {
        "GALECAST_PORT": "2",
        "GALECAST_LOG_LEVEL": "debug",
        "GALECAST_LIMITS_DEPTH": "9",
        "GALECAST_CHANNELS": '[{"match": "a"}]',
    }
    new = load({}, environ, None).settings
    reload = reloadable(old, new)
    assert reload.applied == ("log.level", "channels")
    assert reload.needs_restart == ("port", "limits.depth")
    assert (reload.settings.port, reload.settings.log.level) == (1, "debug")
    assert reload.settings.channels == new.channels


def test_a_reload_without_changes_does_nothing() -> None:
    settings = dev().settings
    reload = reloadable(settings, settings)
    assert (reload.applied, reload.needs_restart) == ((), ())
    assert reload.settings == settings


def test_a_reload_never_brings_the_development_key() -> None:
    old, new = Settings(), dev().settings
    reload = reloadable(old, new)
    assert reload.applied == ()
    assert {"dev", "keys"} <= set(reload.needs_restart)
    assert reload.settings == old

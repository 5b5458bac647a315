"""The files of deploy/ fit together, and what they set is what the server knows.

There is no Docker here: what containers would do is read, not run.
"""

import ast
import json
import re
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, warnings
from config.sources import all_settings, load
from fleet import KEY, NAMES, TIMES, Node, redis_lines, settings_file
from handlers.accept import RESERVE
from nginx import ROOT
from redis_server import RedisServer
from server.metrics import ARCHIVE, ARCHIVE_NOW, BROKER, REASONS, Metrics
from server.tickets import MAX_TICKET_BYTES

yaml = pytest.importorskip("yaml")

DEPLOY = ROOT / "deploy"
CONF = (DEPLOY / "nginx" / "nginx.conf").read_text()
PASSWORD = "0123456789"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


COMPOSE = read("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def address(service: str, network: str = "galecast") -> str:
    found: str = SERVICES[service]["networks"][network]["ipv4_address"]
    return found


def environment(node: str) -> dict[str, str]:
    given: dict[str, str] = SERVICES[node]["environment"]
    return {
        name: re.sub(r"\$\{REDIS_PASSWORD:\?[^}]*\}", PASSWORD, value)
        for name, value in given.items()
    }


def settings_of(node: str, folder: Path) -> Settings:
    """Return the settings with which a node would start."""
    secret = folder / "secret"
    secret.write_text("x" * 44)
    text = (DEPLOY / "galecast.toml").read_text()
    file = folder / "galecast.toml"
    file.write_text(text.replace("/run/secrets/token_secret", str(secret)))
    return load({}, environment(node), file).settings


def seconds(text: str) -> float:
    """Read a time of Nginx or of Compose."""
    number, unit = re.fullmatch(r"(\d+)([smhd])", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[unit]


def size(text: str) -> int:
    return int(text[:-1]) * {"k": 1_024, "m": 1_024 * 1_024}[text[-1]]


def block(head: str) -> dict[str, str]:
    """Return the directives of a block without blocks inside, by name; the last of each."""
    match = re.search(re.escape(head) + r" \{([^{}]*)\}", CONF)
    assert match is not None, head
    lines = re.sub(r"#.*", "", match[1])
    return dict(re.findall(r"^\s*(\w+)\s+([^;]+);", lines, re.MULTILINE))


# ---- nodes


@pytest.mark.parametrize("node", NAMES)
def test_every_node_starts_with_these_settings(node: str, tmp_path: Path) -> None:
    assert {*environment(node)} <= {setting.variable for setting in all_settings().values()}
    settings = settings_of(node, tmp_path)
    assert settings.node == node
    assert warnings(settings) == []
    assert settings.broker.url == f"redis://galecast:{PASSWORD}@{address('redis')}:6379"
    assert settings.archive.url == "mongodb://mongodb:27017/galecast?replicaSet=galecast"
    assert any(rule.archive for rule in settings.channels)
    assert settings.trusted_proxies == (address("nginx") + "/32",)
    assert SERVICES[node]["command"][:2] == ["serve", "--config"]
    assert "./galecast.toml:" + SERVICES[node]["command"][2] + ":ro" in SERVICES[node]["volumes"]


@pytest.mark.parametrize("node", NAMES)
def test_a_node_has_the_time_and_the_files_that_it_may_need(node: str, tmp_path: Path) -> None:
    settings, service = settings_of(node, tmp_path), SERVICES[node]
    drain, limits = settings.drain, settings.limits
    assert seconds(service["stop_grace_period"]) > drain.delay_s + drain.grace_s
    assert service["ulimits"]["nofile"] > limits.connections + limits.http_connections + RESERVE
    assert service["build"]["context"] == ".."
    assert f"127.0.0.1:{settings.admin_port}/readyz" in service["healthcheck"]["test"][-1]
    ast.parse(service["healthcheck"]["test"][-1])
    assert settings.host == "0.0.0.0"


def test_nginx_and_prometheus_know_the_nodes(tmp_path: Path) -> None:
    settings = settings_of(NAMES[0], tmp_path)
    main = [f"{address(node)}:{settings.port}" for node in NAMES]
    admin = [f"{address(node)}:{settings.admin_port}" for node in NAMES]
    for upstream in ("galecast", "galecast_live"):
        found = re.search(rf"upstream {upstream} \{{(.*?)\n    \}}", CONF, re.DOTALL)
        assert found is not None
        assert re.findall(r"^\s*server (\S+) ", found[1], re.MULTILINE) == main
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": admin}]


# ---- what Nginx and the nodes have to agree on


def test_times_of_nginx_fit_those_of_the_nodes(tmp_path: Path) -> None:
    settings = settings_of(NAMES[0], tmp_path)
    kept = seconds(block("upstream galecast")["keepalive_timeout"])
    assert kept < settings.drain.delay_s
    assert kept < settings.http.idle_timeout_s
    assert seconds(block("location = /v1/ws")["proxy_read_timeout"]) > 2 * settings.session.ping_s
    assert seconds(block("location = /v1/sse")["proxy_read_timeout"]) > 2 * settings.sse.comment_s
    keyed = block("location = /publish/keyed")
    assert seconds(keyed["proxy_read_timeout"]) > settings.broker.call_timeout_s
    assert settings.broker.idempotency_window_s > 60
    stream = block("location = /publish/stream")
    for name in ("client_body_timeout", "proxy_read_timeout", "proxy_send_timeout"):
        assert seconds(stream[name]) > settings.http.idle_timeout_s


def test_sizes_of_nginx_fit_those_of_the_nodes(tmp_path: Path) -> None:
    settings = settings_of(NAMES[0], tmp_path)
    (most,) = re.findall(r"client_max_body_size (\d+m);", CONF)
    assert size(most) == settings.limits.body_bytes
    (buffer,) = re.findall(r"large_client_header_buffers \d+ (\w+);", CONF)
    assert size(buffer) > MAX_TICKET_BYTES
    (files,) = re.findall(r"worker_rlimit_nofile (\d+);", CONF)
    assert SERVICES["nginx"]["ulimits"]["nofile"] == int(files)
    ports = {port.split(":")[1] for port in SERVICES["nginx"]["ports"]}
    assert ports == set(re.findall(r"listen (\d+)[; ]", CONF))


def test_no_header_is_set_where_it_would_hide_the_others() -> None:
    """A location that sets one header for the nodes inherits none of the others."""
    server = CONF[CONF.index("    server {") :]
    assert "proxy_set_header" in CONF
    assert "proxy_set_header" not in server


# ---- containers


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_few_rights_and_is_watched(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    if "build" not in service:
        assert re.fullmatch(r"[a-z/]+:v?\d[\w.]*", service["image"]), "a version"
    assert [port for port in service.get("ports", ()) if name not in ("nginx", "prometheus")] == []


def test_all_that_is_named_is_there() -> None:
    addresses = [
        address(name, network) for name in SERVICES for network in SERVICES[name]["networks"]
    ]
    assert len(set(addresses)) == len(addresses)
    for service in SERVICES.values():
        assert {*service.get("depends_on", ())} <= SERVICES.keys()
        assert {*service.get("secrets", ())} <= COMPOSE["secrets"].keys()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
    kept = (DEPLOY / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].split("/")[1] + "/" in kept
    assert {name for service in SERVICES.values() for name in service["networks"]} == {
        *COMPOSE["networks"]
    }


# ---- MongoDB


def test_only_the_nodes_reach_the_archive() -> None:
    """It has no users: who reaches it may read and write all."""
    assert COMPOSE["networks"]["archive"]["internal"] is True
    members = {name for name in SERVICES if "archive" in SERVICES[name]["networks"]}
    assert members == {*NAMES, "mongodb"}
    assert [*SERVICES["mongodb"]["networks"]] == ["archive"]


def test_the_archive_is_a_replica_set(tmp_path: Path) -> None:
    """Else a majority would mean nothing, and could never come to mean more."""
    command, check = (SERVICES["mongodb"][name] for name in ("command", "healthcheck"))
    url = settings_of(NAMES[0], tmp_path).archive.url
    match = re.fullmatch(r"mongodb://([\w:]+)/\w+\?replicaSet=(\w+)", url)
    assert match is not None
    assert command[command.index("--replSet") + 1] == match[2]
    assert f"_id: '{match[2]}'" in check["test"][-1]
    assert f"host: '{match[1]}'" in check["test"][-1]
    assert match[1].split(":")[0] in SERVICES


# ---- Redis


def test_redis_keeps_what_it_acknowledged() -> None:
    with RedisServer(*redis_lines()) as server:
        for name, value in (
            ("appendonly", b"yes"),
            ("appendfsync", b"everysec"),
            ("maxmemory-policy", b"noeviction"),
        ):
            assert server.ask("CONFIG", "GET", name) == [name.encode(), value]


def test_the_users_of_redis_may_do_what_they_have_to(tmp_path: Path) -> None:
    text = (DEPLOY / "README.md").read_text()
    users = re.findall(r"^user .*$", text, re.MULTILINE)
    assert [line.split()[1] for line in users] == ["default", "health", "galecast"]
    acl = tmp_path / "redis.acl"
    acl.write_text("\n".join(users).replace("$password", PASSWORD) + "\n")
    with RedisServer(*redis_lines(), f"aclfile {acl}") as server:
        health = {"username": "health", "password": "health"}
        assert server.ask("PING", **health) is True
        with pytest.raises(Exception, match="no permissions"):
            server.ask("GET", "galecast:x", **health)
        node = Node(
            "node-1", settings_file(tmp_path), f"unix://galecast:{PASSWORD}@{server.socket}"
        )
        try:
            node.start()
            assert post(node, "/v1/events", b'{"channel":"orders.a","data":1}') == 200
            for path in ("channels", "channels/orders.a", "channels/orders.a/events", "sessions"):
                assert node.ask(f"/v1/{path}", bearer())[0] == 200
            assert node.ask("/v1/channels/orders.a/presence", bearer())[0] == 200
            assert "permission" not in node.log
        finally:
            node.hurry()


def bearer() -> Mapping[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def post(node: Node, path: str, body: bytes) -> int:
    connection = HTTPConnection("127.0.0.1", node.port, timeout=10)
    try:
        connection.request("POST", path, body, {**bearer(), "Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


# ---- Prometheus


def known_metrics() -> set[str]:
    metrics = Metrics(version="0")
    metrics.count(lambda: dict.fromkeys(BROKER, 0))
    metrics.archive(lambda: dict.fromkeys([*ARCHIVE, *ARCHIVE_NOW], 0))
    body, _kind = metrics.exposition(None)
    return set(re.findall(r"^# TYPE (\S+) ", body.decode(), re.MULTILINE)) | {"up"}


def test_alerts_are_about_metrics_that_there_are() -> None:
    known = known_metrics()
    (group,) = read("alerts.yml")["groups"]
    assert group["rules"]
    for what in ("alert", "expr"):
        each = [rule[what] for rule in group["rules"]]
        assert len(set(each)) == len(each), "two of them say the same"
    for rule in group["rules"]:
        found = re.findall(r"\b(?:galecast|process)_[a-z_]+|\bup\b", rule["expr"])
        assert found
        assert {name.removesuffix("_bucket") for name in found} <= known, rule["alert"]
        assert {*re.findall(r'reason="(\w+)"', rule["expr"])} <= REASONS
        assert "$labels.instance" in rule["annotations"]["summary"]
    assert read("prometheus.yml")["rule_files"] == ["alerts.yml"]


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana-archive.json").read_text())
    shown = {panel["title"]: panel for panel in dashboard["panels"]}
    assert {"Backlog", "Lag", "Retention"} <= shown.keys()
    named: set[str] = set()
    for panel in shown.values():
        assert panel["description"]
        for target in panel["targets"]:
            found = re.findall(r"\b(?:galecast|process)_[a-z_]+", target["expr"])
            assert found, target
            named.update(found)
    assert named <= known_metrics()
    archive = {name for name in known_metrics() if name.startswith("galecast_archive_")}
    assert archive <= named
    places = [tuple(panel["gridPos"].values()) for panel in shown.values()]
    assert len(set(places)) == len(places)


def test_the_short_times_of_the_tests_are_settings() -> None:
    assert TIMES.keys() <= {setting.variable for setting in all_settings().values()}

"""Metrics: what is counted appears, in both formats, and nothing has labels without bound."""

import re
from dataclasses import dataclass

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from config.limits import LimitSettings
from server.closing import Closing
from server.errors import ALL
from server.metrics import REASONS, Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True)
class Kind:
    transport: str
    label: str


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The one sample of that name and those labels."""
    text, _ = metrics.exposition(None)
    found = [
        each.value
        for family in plain(text.decode())
        for each in family.samples
        if each.name == f"galecast_{name}" and each.labels == labels
    ]
    assert len(found) == 1, f"{name}{labels}: {found}"
    return found[0]


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("events_in", "events_in_total"),
        ("events_duplicate", "events_duplicate_total"),
        ("events_out", "events_out_total"),
        ("bytes_in", "bytes_in_total"),
        ("bytes_out", "bytes_out_total"),
        ("unsent_bytes", "unsent_bytes"),
        ("slow_closes", "slow_closes_total"),
        ("resets", "resets_total"),
        ("replayed", "events_replayed_total"),
        ("publishes_slowed", "publishes_slowed_total"),
        ("presence_changes", "presence_changes_total"),
    ],
)
def test_what_hot_paths_add_up_is_told(attribute: str, name: str) -> None:
    metrics = Metrics(version="1")
    assert sample(metrics, name) == 0
    setattr(metrics, attribute, getattr(metrics, attribute) + 7)
    assert sample(metrics, name) == 7


def test_connections_and_sessions_come_and_go() -> None:
    metrics = Metrics(version="1")
    one, two = Kind("ws", "msgpack"), Kind("sse", "json")
    for kind in (one, one, two):
        metrics.connection_opened(kind)
        metrics.session_opened(kind)
    metrics.connection_closed(one)
    metrics.session_closed(two)
    assert sample(metrics, "connections", transport="ws") == 1
    assert sample(metrics, "connections", transport="sse") == 1
    assert sample(metrics, "sessions", transport="ws", encoding="msgpack") == 2
    assert sample(metrics, "sessions", transport="sse", encoding="json") == 0


def test_bound_gauges_are_asked_at_each_scrape() -> None:
    metrics = Metrics(version="1")
    assert b"galecast_channels" not in metrics.exposition(None)[0]
    counts = [3, 4]
    metrics.bind(channels=lambda: counts.pop(0), subscriptions=lambda: 9)
    assert sample(metrics, "channels") == 3
    assert sample(metrics, "channels") == 4
    counts.append(0)
    assert sample(metrics, "subscriptions") == 9
    with pytest.raises(ValueError, match="'users'"):
        metrics.bind(users=lambda: 1)


def test_closes_recoveries_and_requests_have_labels() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.closed(Closing.TOO_SLOW)
    metrics.recovered(True)
    metrics.recovered(False)
    metrics.recovered(False)
    metrics.http_request("POST", "/v1/events", 200, 0.002)
    metrics.http_request("POST", "/v1/events", 200, 0.002)
    metrics.http_request("BREW", "/v1/events", 405, 0.002)
    assert sample(metrics, "build_info", version="1.2.3") == 1
    assert sample(metrics, "closes_total", code="4002") == 1
    assert sample(metrics, "closes_total", code="4500") == 0
    assert sample(metrics, "recoveries_total", recovered="true") == 1
    assert sample(metrics, "recoveries_total", recovered="false") == 2
    route = {"route": "/v1/events"}
    assert sample(metrics, "http_requests_total", method="POST", status="200", **route) == 2
    assert sample(metrics, "http_requests_total", method="other", status="405", **route) == 1
    assert sample(metrics, "http_request_seconds_count") == 3


def test_a_refusal_counts_under_its_code_or_setting() -> None:
    metrics = Metrics(version="1")
    for reason in ("bad_ref", "data_bytes", "limits.data_bytes", "limits.tags", "too_slow"):
        metrics.refused(reason)
    assert sample(metrics, "refusals_total", reason="bad_ref") == 1
    assert sample(metrics, "refusals_total", reason="data_bytes") == 2
    assert sample(metrics, "refusals_total", reason="tags") == 1
    assert sample(metrics, "refusals_total", reason="too_slow") == 1
    assert {error.code for error in ALL} <= REASONS
    assert set(LimitSettings.__struct_fields__) <= REASONS


def test_no_input_makes_a_new_series() -> None:
    metrics = Metrics(version="1")
    before = len(metrics.exposition(None)[0].splitlines())
    for reason in ("user-7", "", "limits.", "secret.token", "limits.nonsense"):
        metrics.refused(reason)
    assert sample(metrics, "refusals_total", reason="other") == 5
    assert len(metrics.exposition(None)[0].splitlines()) == before


def test_histograms_have_few_buckets_and_count_right() -> None:
    metrics = Metrics(version="1")
    metrics.publish_seconds.observe(0.004)
    metrics.delivery_seconds.observe(0.004)
    metrics.loop_lag(0.25)
    metrics.loop_lag(0.004)
    for name in ("publish_seconds", "delivery_seconds"):
        assert sample(metrics, f"{name}_count") == 1
        assert sample(metrics, f"{name}_bucket", le="0.0025") == 0
        assert sample(metrics, f"{name}_bucket", le="0.005") == 1
    assert sample(metrics, "loop_lag_seconds_count") == 2
    assert sample(metrics, "loop_lag_seconds_sum") == pytest.approx(0.254)
    assert sample(metrics, "loop_lag_last_seconds") == 0.004


def test_both_formats_are_well_formed() -> None:
    metrics = Metrics(version='1"\n')
    metrics.session_opened(Kind("ws", "json"))
    text, content_type = metrics.exposition(None)
    assert content_type.startswith("text/plain")
    names = {family.name for family in plain(text.decode())}
    assert {"galecast_connections", "galecast_publish_seconds", "process_open_fds"} <= names
    text, content_type = metrics.exposition(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    assert {"galecast_events_in", "galecast_closes"} <= {
        family.name
        for family in openmetrics(text.decode())  # type: ignore[no-untyped-call]
    }


def test_registries_are_apart() -> None:
    one, two = Metrics(version="1"), Metrics(version="1")
    one.events_in += 1
    one.publish_seconds.observe(1)
    assert sample(two, "events_in_total") == 0
    assert sample(two, "publish_seconds_count") == 0


def test_no_label_names_a_channel_a_user_or_an_address() -> None:
    metrics = Metrics(version="1")
    metrics.http_request("GET", "/v1/channels/{channel}", 200, 0.1)
    metrics.session_opened(Kind("ws", "json"))
    labels = set(re.findall(r'[{,]([a-z_]+)="', metrics.exposition(None)[0].decode()))
    assert labels <= {
        "code",
        "encoding",
        "generation",
        "le",
        "method",
        "outcome",
        "reason",
        "recovered",
        "route",
        "status",
        "transport",
        "version",
    }

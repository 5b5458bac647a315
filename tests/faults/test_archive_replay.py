"""Clients come back after far more events than Redis keeps, while more are published."""

import asyncio
from pathlib import Path

import pytest

from fleet import Fleet
from fleet_clients import KINDS, Follower, following, until
from fleet_publishers import acknowledged, all_came, gaps, publishing

CHANNELS = ("orders.eu", "orders.us")
# Redis keeps a few hundred all the same, for repair.
RULE = """
[[channels]]
match = ">"
history_size = 20
archive = true
"""
MOST_KEPT = 500
# To publish thousands of events, or to follow them, takes a busy machine long.
PATIENCE_S = 60.0


@pytest.mark.timeout(seconds=170)
async def test_they_get_all_of_it_and_go_live_without_a_seam(tmp_path: Path) -> None:
    fleet = Fleet(archive_url=f"sqlite:///{tmp_path / 'archive.db'}", rule=RULE)
    late: list[Follower] = []
    try:
        await asyncio.to_thread(fleet.__enter__)
        url, tls = fleet.nginx.url, fleet.nginx.tls()
        async with following(url, tls, CHANNELS, KINDS) as followers:
            async with publishing(url, tls, CHANNELS, 20, patient=True, pause_s=0.02) as publishers:
                for channel in CHANNELS:
                    await until(
                        lambda c=channel: len(acknowledged(publishers, c)) > 2 * MOST_KEPT,  # type: ignore[misc]
                        PATIENCE_S,
                    )
                for kind in KINDS * 3:
                    follower = kind(url, tls, CHANNELS)
                    for channel, followed in follower.channels.items():
                        # Where the first of all followers began.
                        followed.since = str(followers[0].channels[channel].first)
                    late.append(follower)
                await until(lambda: all(each.live for each in late))
                # Some of them come back elsewhere in the middle of it.
                await asyncio.to_thread(fleet.nodes[0].kill)
                await until(
                    lambda: all(
                        len(followed.events) > 2 * MOST_KEPT
                        for each in late
                        for followed in each.channels.values()
                    ),
                    PATIENCE_S,
                )
            await all_came([*followers, *late], publishers)
            for each in late:
                for channel, followed in each.channels.items():
                    assert gaps(followed) == []
                    ids = followers[0].channels[channel].ids
                    await until(lambda f=followed, i=ids: len(f.ids) >= len(i))  # type: ignore[misc]
                    assert followed.ids == ids
    finally:
        await asyncio.gather(*(each.close() for each in late))
        await asyncio.to_thread(fleet.close)

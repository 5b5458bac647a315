"""Tickets of event streams where there are several nodes: one first use among all of them."""

import asyncio

from node_group import ServedNode, serve_group
from nodes import make_token


async def status(node: ServedNode, ticket: str, last_id: str = "") -> int:
    """What a stream is answered, without waiting for its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    header = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
    writer.write(
        f"GET /v1/sse?channel=a&ticket={ticket} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode()
    )
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def test_a_ticket_is_used_once_among_all_nodes() -> None:
    async with serve_group("n1", "n2") as (_group, (first, second)):
        answer = await first.ask("POST", "/v1/tickets", bearer=make_token())
        ticket = answer.json["ticket"]
        assert await status(second, ticket) == 200
        assert await status(second, ticket) == 401
        assert await status(first, ticket) == 401
        # Its stream comes back to whatever node.
        proof = first.node.auth.redeem(ticket).proof.decode()
        assert await status(first, ticket, f"{proof}.") == 200


async def test_no_second_use_while_nobody_can_be_asked() -> None:
    async with serve_group("n1", "n2") as (group, (first, second)):
        answer = await first.ask("POST", "/v1/tickets", bearer=make_token())
        ticket = answer.json["ticket"]
        group.away = True
        refused = await second.ask("GET", f"/v1/sse?channel=a&ticket={ticket}", bearer=None)
        assert (refused.status, refused.json["code"], refused.json["retry"]) == (
            503,
            "unavailable",
            True,
        )
        proof = first.node.auth.redeem(ticket).proof.decode()
        assert await status(first, ticket, f"{proof}.") == 200  # that asks nobody
        group.away = False
        assert await status(second, ticket) == 200
        assert await status(first, ticket) == 401

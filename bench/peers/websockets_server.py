"""python-websockets: `broadcast()`, which prepares a frame once for all.

It serves WebSockets only, so that what is published comes over one of them too.
"""

import json
from collections import defaultdict
from urllib.parse import parse_qs, urlsplit

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

channels: dict[str, set[ServerConnection]] = defaultdict(set)


async def session(connection: ServerConnection) -> None:
    """Hold a subscriber until it goes, or take what a publisher sends."""
    assert connection.request is not None
    address = urlsplit(connection.request.path)
    if address.path == "/publish":
        async for body in connection:
            broadcast(channels[json.loads(body)["channel"]], body)
            await connection.send("{}")
        return
    subscribers = channels[parse_qs(address.query)["channel"][0]]
    subscribers.add(connection)
    try:
        await connection.wait_closed()
    finally:
        subscribers.discard(connection)


async def main() -> None:
    """Serve until killed."""
    # No client of the load answers pings.
    async with serve(
        session, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}", flush=True)
        await server.serve_forever()


uvloop.run(main())

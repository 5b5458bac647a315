"""python-socketio under uvicorn: what is posted goes to the room of its channel."""

import json
from typing import Any
from urllib.parse import parse_qs

import socketio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from _uvicorn import run

# No client of the load answers pings, and none is needed in the time that a run takes.
server = socketio.AsyncServer(
    async_mode="asgi", transports=["websocket"], http_compression=False, ping_interval=600
)


@server.event  # type: ignore[untyped-decorator]
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Let a session into the room that its address names."""
    await server.enter_room(sid, parse_qs(environ["QUERY_STRING"])["channel"][0])


async def publish(request: Request) -> Response:
    """Send what is posted to every session of its room."""
    event = json.loads(await request.body())
    await server.emit("event", event, room=event["channel"])
    return Response(b"{}", media_type="application/json")


run(socketio.ASGIApp(server, Starlette(routes=[Route("/v1/events", publish, methods=["POST"])])))

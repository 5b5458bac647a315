"""Starlette under uvicorn: one text for all, sent to one subscriber after the other."""

import json
from collections import defaultdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from _uvicorn import run

channels: dict[str, set[WebSocket]] = defaultdict(set)


async def session(socket: WebSocket) -> None:
    """Hold a subscriber until it goes."""
    await socket.accept()
    subscribers = channels[socket.query_params["channel"]]
    subscribers.add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        subscribers.discard(socket)


async def publish(request: Request) -> Response:
    """Send what is posted to every subscriber of its channel."""
    body = (await request.body()).decode()
    for subscriber in tuple(channels[json.loads(body)["channel"]]):
        await subscriber.send_text(body)
    return Response(b"{}", media_type="application/json")


run(
    Starlette(
        routes=[WebSocketRoute("/v1/ws", session), Route("/v1/events", publish, methods=["POST"])]
    )
)

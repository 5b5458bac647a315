"""Django Channels under uvicorn: a group for each channel, over the layer in memory."""

import json
import secrets
from typing import Any
from urllib.parse import parse_qs

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from _uvicorn import run


class Session(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A subscriber of the channel that its address names."""

    async def connect(self) -> None:
        self.group = parse_qs(self.scope["query_string"].decode())["channel"][0]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, _code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def event(self, message: dict[str, Any]) -> None:
        await self.send(text_data=message["text"])


async def publish(request: HttpRequest) -> JsonResponse:
    """Send what is posted to the group of its channel."""
    body = request.body.decode()
    message = {"type": "event", "text": body}
    await get_channel_layer().group_send(json.loads(body)["channel"], message)
    return JsonResponse({})


urlpatterns = [path("v1/events", publish)]
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    # Over its capacity the layer drops messages; nothing may be lost here.
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels.layers.InMemoryChannelLayer",
            "CONFIG": {"capacity": 1_000_000},
        }
    },
    MIDDLEWARE=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(32),
)
django.setup()
run(
    ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": URLRouter([path("v1/ws", Session.as_asgi())]),
        }
    )
)

"""The yardstick: fan-out as a first version would do it, a loop over Tornado's `write_message`."""

import asyncio
import json

from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

clients: set["Session"] = set()


class Session(WebSocketHandler):
    """A subscriber of the only channel there is."""

    def open(self, *_args: str, **_kwargs: str) -> None:
        clients.add(self)

    def on_close(self) -> None:
        clients.discard(self)

    def on_message(self, message: str | bytes) -> None:
        pass


class Publish(RequestHandler):
    """Sends what is posted to every subscriber."""

    offset = 0

    def post(self) -> None:
        event = json.loads(self.request.body)
        Publish.offset += 1
        message = json.dumps(
            {
                "type": "event",
                "channel": event["channel"],
                "position": f"0123456789abcdef-{Publish.offset}-0123456789abcdef",
                "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "name": event["name"],
                "data": event["data"],
                "tags": {},
                "time": 1789000000123,
            },
            separators=(",", ":"),
        )
        for client in clients:
            client.write_message(message)
        self.write({"position": Publish.offset})


async def main() -> None:
    """Serve until killed."""
    application = Application(
        [("/v1/ws", Session), ("/v1/events", Publish)], log_function=lambda _: None
    )
    server = application.listen(0, "127.0.0.1", backlog=4096)
    port = next(iter(server._sockets.values())).getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())

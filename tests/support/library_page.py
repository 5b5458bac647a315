"""The browser's library at work in a page, and publishers that speak to a node directly."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from playwright.async_api import JSHandle, Page

_PATIENCE_S = 20.0
_HEADERS = {"Authorization": "Bearer dev.galecast", "Content-Type": "application/json"}

# Runs in the page, which has to be one of the node: its policy lets in no other script.
_CLIENT = """
async ({ mint, ...options }) => {
  const { connect } = await import(`${location.origin}/static/galecast.js`);
  const client = { states: [], reasons: [], farewells: [], followed: {}, published: [] };
  if (mint) {
    options.getToken = async ({ reason }) => {
      client.reasons.push(reason);
      const headers = { Authorization: "Bearer dev.galecast", "Content-Type": "application/json" };
      const body = JSON.stringify(mint);
      const response = await fetch("/v1/tokens", { method: "POST", headers, body });
      return (await response.json()).token;
    };
  }
  // The library does not show what the server says when it leaves.
  const { parse } = JSON;
  JSON.parse = (text) => {
    const message = parse(text);
    if (message?.type === "closing") client.farewells.push(message);
    return message;
  };
  client.connection = connect(location.origin, options);
  client.connection.addEventListener("state", ({ state, transport, code, retryInMs }) => {
    client.states.push({ state, transport, code, retryInMs, at: performance.now() });
  });
  return client;
}
"""
_FOLLOW = """
async (client, [channel, options]) => {
  const follower = { data: [], names: [], recovered: [], resets: 0, members: [], ended: null };
  const subscription = client.connection.subscribe(
    channel,
    ({ data, name }) => {
      follower.data.push(data);
      follower.names.push(name);
    },
    options,
  );
  follower.subscription = subscription;
  client.followed[channel] = follower;
  subscription.addEventListener("subscribed", ({ recovered }) => {
    follower.recovered.push(recovered ?? null);
  });
  subscription.addEventListener("reset", () => { follower.resets += 1; });
  subscription.addEventListener("members", ({ action }) => follower.members.push(action));
  subscription.addEventListener("ended", ({ code }) => { follower.ended = code ?? null; });
  await subscription.ready;
}
"""


class LibraryClient:
    """A connection of the library in a page, with all that it has told.

    Expressions are functions of the page whose first parameter is `client`: its `connection`, the
    `states` it went through, the `reasons` for which it wanted a token, what the server said at
    its end (`farewells`), and what came for each channel (`followed`).
    """

    def __init__(self, client: JSHandle) -> None:
        self._client = client

    @property
    def handle(self) -> JSHandle:
        """It, as an argument of functions of its page."""
        return self._client

    @classmethod
    async def connect(cls, page: Page, **options: Any) -> Self:
        """Connect to the page's origin; `mint` is what to mint tokens of."""
        return cls(await page.evaluate_handle(_CLIENT, options))

    async def do(self, expression: str, argument: Any = None) -> Any:
        """Call a function of the page and return what its promise holds."""
        return await self._client.evaluate(expression, argument)

    async def until(self, expression: str, argument: Any = None) -> None:
        """Wait until a function of the page returns true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not await self.do(expression, argument):
            if time.monotonic() > deadline:
                raise AssertionError(f"{expression}; {argument}; states: {await self.states()}")
            await asyncio.sleep(0.02)

    async def reach(self, state: str) -> None:
        """Wait until the connection is in this state."""
        await self.until("(client, state) => client.connection.state === state", state)

    async def states(self) -> list[dict[str, Any]]:
        """Return all states so far: `state`, `transport`, `code`, `retryInMs`, and when (`at`)."""
        states: list[dict[str, Any]] = await self.do("(client) => client.states")
        return states

    async def follow(self, channel: str, **options: Any) -> None:
        """Subscribe, and wait until the subscription is live."""
        await self.do(_FOLLOW, [channel, options])

    async def followed(self, channel: str, field: str) -> Any:
        """Return what came for a channel: `data`, `recovered`, `resets`, `members`, `ended`."""
        return await self.do(
            "(client, [of, field]) => client.followed[of][field]", [channel, field]
        )

    async def hear(self, channel: str, count: int) -> list[Any]:
        """Wait for that many events, and return the data of all that came."""
        await self.until(
            "(client, [of, count]) => client.followed[of].data.length >= count", [channel, count]
        )
        data: list[Any] = await self.followed(channel, "data")
        return data

    async def publish(self, channel: str, data: Any) -> Any:
        """Publish and return the answer."""
        publish = "(client, [channel, data]) => client.connection.publish(channel, data)"
        return await self.do(publish, [channel, data])

    async def publish_unanswered(self, channel: str, values: Sequence[Any]) -> None:
        """Publish, and let the answers come when they can: see `answers`."""
        await self.do(
            """
            (client, [channel, values]) => {
              for (const data of values) {
                client.published.push(client.connection.publish(channel, data));
              }
            }
            """,
            [channel, values],
        )

    async def answers(self) -> list[Any]:
        """Wait for the answers to what was published unanswered, and return them."""
        answers: list[Any] = await self.do("(client) => Promise.all(client.published)")
        return answers


def ask(port: int, method: str, path: str, body: Any = None) -> Any:
    """Send a request with the key of development mode to a node; return what it answers."""
    # Not escaped: what is odd in a text is to be on the wire as it is.
    payload = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request(method, path, payload, _HEADERS)
        response = connection.getresponse()
        text = response.read()
        assert response.status in (200, 204), text
        return json.loads(text) if text else None
    finally:
        connection.close()


def publish(port: int, channel: str, data: Any) -> None:
    """Publish one event as a backend does."""
    ask(port, "POST", "/v1/events", {"channel": channel, "data": data})


def kept(port: int, channel: str) -> list[Any]:
    """Return the data of a channel's events, oldest first."""
    page = ask(port, "GET", f"/v1/channels/{channel}/events?limit=1000")
    return [event["data"] for event in page["events"]]


class Publisher:
    """Publishes 0, 1, 2, ... to a channel in a thread, 200 each second, while the block runs."""

    _BATCH = 10
    _EVERY_S = 0.05

    def __init__(self, port: int, channel: str) -> None:
        self._port = port
        self._channel = channel
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None
        self.acknowledged = 0

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                first = self.acknowledged
                numbers = range(first, first + self._BATCH)
                batch = [{"channel": self._channel, "data": number} for number in numbers]
                results = ask(self._port, "POST", "/v1/events", batch)["results"]
                assert len(results) == self._BATCH and all("position" in each for each in results)
                self.acknowledged += self._BATCH
                # Who comes late hurries: the rate holds on a busy machine.
                due += self._EVERY_S
        except BaseException as error:
            self._error = error

    async def reach(self, count: int) -> None:
        """Wait until that many events are acknowledged."""
        while self.acknowledged < count:
            assert self._thread.is_alive(), self._error
            await asyncio.sleep(0.02)

    def stop(self) -> int:
        """Publish no more; return how many events were acknowledged."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.acknowledged

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

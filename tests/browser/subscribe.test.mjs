/** Subscribing: what arrives, from where on, and how it ends. */

import assert from "node:assert/strict";

import { GalecastError } from "../../static/galecast.js";
import { heard, numbers, state, until } from "./conditions.mjs";
import { client, follow, serve, settled, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

const server = await serve();

test("a connection tells what it is", async (t) => {
  const connection = client(t, server, { token: await server.token({ sub: "ann" }) });
  assert.equal(connection.state, "connecting");
  assert.equal(connection.session, null);
  assert.equal(connection.user, null);
  assert.equal(connection.limits, null);
  const { state: name, transport } = await heard(connection, "state");
  assert.deepEqual([name, transport], ["connected", "websocket"]);
  assert.equal(connection.state, "connected");
  assert.equal(connection.transport, "websocket");
  assert.equal(connection.user, "ann");
  assert.match(connection.node, /^node-/);
  assert.equal(connection.limits.publishes_per_s, 50);
  const [session] = await server.sessions("ann");
  assert.equal(session.session, connection.session);
});

test("what the platform brings is enough", async (t) => {
  // Node.js before 22 has no WebSocket of its own.
  const { WebSocket } = globalThis;
  const connection = client(t, server, { WebSocket });
  const { data, subscription } = await follow(connection, channelName());
  assert.equal(connection.transport, WebSocket ? "websocket" : "sse");
  await connection.publish(subscription.channel, 1);
  await until(() => data.length);
});

test("events arrive in order and whole", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const events = [];
  const subscription = connection.subscribe(channel, (event, from) => {
    assert.equal(from, subscription);
    // Kept once the event has been dealt with.
    events.push(event);
  });
  assert.equal(subscription.channel, channel);
  assert.equal(subscription.state, "pending");
  assert.equal(await subscription.ready, subscription);
  assert.equal(subscription.state, "live");
  await server.publish(channel, { x: [1, null] }, { name: "n", tags: { k: "v" }, id: "one" });
  for (const value of numbers(20)) await server.publish(channel, value);
  await until(() => events.length === 21, "all events");
  assert.deepEqual(
    events.slice(1).map(({ data }) => data),
    numbers(20),
  );
  const [kept] = await server.kept(channel);
  const { type, ...first } = events[0];
  assert.deepEqual(first, kept);
  assert.deepEqual([first.name, first.tags, first.id], ["n", { k: "v" }, "one"]);
  assert.equal(subscription.position, events.at(-1).position);
});

test("before anything came the position is that which it resumes from", async (t) => {
  // It was none: who gave up a subscription then and began again from it lost what lay between.
  const channel = channelName();
  const [{ position: since }] = await server.publishAll(channel, [1]);
  const connection = client(t, server);
  const subscription = connection.subscribe(channel, () => {}, { since });
  assert.equal(subscription.position, since);
});

test("the position is kept once the handler has dealt with the event", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const before = [];
  const subscription = connection.subscribe(channel, (event) => {
    before.push([subscription.position, event.position]);
  });
  await subscription.ready;
  await server.publish(channel, 1);
  await until(() => before.length);
  assert.notEqual(before[0][0], before[0][1]);
  assert.equal(subscription.position, before[0][1]);
});

test("unsubscribing ends it on both sides", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const { subscription, data } = await follow(connection, channel);
  assert.equal(await server.subscribers(channel), 1);
  const ended = heard(subscription, "ended");
  subscription.unsubscribe();
  assert.equal((await ended).code, undefined);
  assert.equal(subscription.state, "ended");
  await until(async () => (await server.subscribers(channel)) === 0, "the server knows");
  await server.publish(channel, 1);
  const again = await follow(connection, channel);
  await server.publish(channel, 2);
  await until(() => again.data.length);
  assert.deepEqual([data, again.data], [[], [2]]);
  subscription.unsubscribe();
  await settled(connection);
  assert.equal(again.subscription.state, "live");
});

test("subscribing anew right after unsubscribing", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const first = await follow(connection, channel);
  first.subscription.unsubscribe();
  const second = await follow(connection, channel);
  await server.publish(channel, 1);
  await until(() => second.data.length);
  assert.deepEqual([first.data, second.data], [[], [1]]);
});

test("unsubscribing before the server has answered", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  await state(connection, "connected");
  const subscription = connection.subscribe(channel, () => assert.fail("an event"));
  subscription.unsubscribe();
  assert.equal(subscription.state, "ended");
  await assert.rejects(subscription.ready, { name: "GalecastError", code: "closed" });
  await until(async () => (await server.subscribers(channel)) === 0, "the server knows");
});

test("a handler that unsubscribes gets no more, though more had come", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => {
    data.push(event.data);
    if (event.data === 2) subscription.unsubscribe();
  });
  await subscription.ready;
  await server.publishAll(channel, numbers(10));
  await until(async () => (await server.subscribers(channel)) === 0, "the server knows");
  assert.deepEqual(data, [0, 1, 2]);
});

test("rewind begins with the last events", async (t) => {
  const channel = channelName();
  await server.publishAll(channel, numbers(10));
  const { data } = await follow(client(t, server), channel, { rewind: 3 });
  await server.publish(channel, 10);
  await until(() => data.length === 4);
  assert.deepEqual(data, [7, 8, 9, 10]);
});

test("since goes on where the page before stopped", async (t) => {
  const channel = channelName();
  const before = client(t, server);
  const first = await follow(before, channel);
  await server.publishAll(channel, [1, 2]);
  await until(() => first.data.length === 2);
  const since = first.subscription.position;
  before.close();
  await server.publishAll(channel, [3, 4, 5]);

  const connection = client(t, server);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => data.push(event.data), { since });
  const subscribed = await heard(subscription, "subscribed");
  assert.deepEqual([subscribed.recovered, subscribed.position], [true, since]);
  await server.publish(channel, 6);
  await until(() => data.length === 4);
  assert.deepEqual(data, [3, 4, 5, 6]);
});

for (const transport of ["websocket", "sse"]) {
  test(`a since of null is none, as it comes from an empty store: ${transport}`, async (t) => {
    const channel = channelName();
    await server.publish(channel, "before");
    const connection = client(t, server, { transports: [transport] });
    const { data, subscription } = await follow(connection, channel, { since: null });
    assert.equal(typeof subscription.position, "string");
    await server.publish(channel, "after");
    await until(() => data.length);
    assert.deepEqual(data, ["after"]);
  });
}

test("a since that cannot be continued is told", async (t) => {
  const channel = channelName();
  const [{ position: since }] = await server.publishAll(channel, numbers(5));
  await server.request("DELETE", `/v1/channels/${channel}/events`);
  await server.publish(channel, 5);
  const connection = client(t, server);
  const data = [];
  const told = [];
  const subscription = connection.subscribe(channel, (event) => data.push(event.data), { since });
  subscription.addEventListener("reset", ({ position }) => told.push(["reset", position]));
  subscription.addEventListener("subscribed", (e) => told.push(["subscribed", e.recovered]));
  await subscription.ready;
  await server.publish(channel, 6);
  await until(() => data.length);
  assert.deepEqual(data, [6]);
  assert.equal(told.length, 2);
  assert.deepEqual(Object.fromEntries(told).subscribed, false);
  assert.equal(typeof Object.fromEntries(told).reset, "string");
});

test("with since and rewind, rewind applies where since cannot be continued", async (t) => {
  const channel = channelName();
  const [{ position: since }] = await server.publishAll(channel, [1, 2]);
  await server.request("DELETE", `/v1/channels/${channel}/events`);
  await server.publishAll(channel, numbers(5));
  const { data } = await follow(client(t, server), channel, { since, rewind: 2 });
  await until(() => data.length === 2);
  assert.deepEqual(data, [3, 4]);
});

test("rewind does not come again with a reconnect", async (t) => {
  const channel = channelName();
  await server.publishAll(channel, numbers(5));
  const connection = client(t, server);
  const { data } = await follow(connection, channel, { rewind: 2 });
  await until(() => data.length === 2);
  connection.pause();
  await server.publish(channel, 5);
  connection.resume();
  await until(() => data.length === 3);
  await settled(connection);
  assert.deepEqual(data, [3, 4, 5]);
});

test("a handler that is none is refused", async (t) => {
  const connection = client(t, server);
  assert.throws(() => connection.subscribe("a.b", { rewind: 5 }), TypeError);
  await follow(connection, "a.b");
});

test("a refused subscription says why", async (t) => {
  const token = await server.token({ grants: { "open.>": ["subscribe"] } });
  const connection = client(t, server, { token });
  const refused = connection.subscribe("closed.room", () => {});
  const ended = heard(refused, "ended");
  await assert.rejects(refused.ready, (error) => {
    assert.ok(error instanceof GalecastError && error instanceof Error);
    assert.deepEqual([error.name, error.code, error.retry], ["GalecastError", "forbidden", false]);
    assert.notEqual(error.message, "");
    return true;
  });
  const { code, message } = await ended;
  assert.equal(code, "forbidden");
  assert.equal(typeof message, "string");
  assert.equal(refused.state, "ended");
  // The others do not mind, and the name is free again.
  const { subscription } = await follow(connection, channelName("open"));
  assert.equal(subscription.state, "live");
  await assert.rejects(connection.subscribe("closed.room").ready, { code: "forbidden" });
});

test("a refused subscription that nobody awaits troubles nobody", async (t) => {
  // An unhandled rejection would fail the test.
  const subscription = client(t, server).subscribe("no.*", () => {});
  assert.equal((await heard(subscription, "ended")).code, "bad_request");
});

test("a channel has one subscription", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const { data } = await follow(connection, channel);
  const again = () => connection.subscribe(channel, () => {});
  assert.throws(again, { name: "GalecastError", code: "conflict" });
  await server.publish(channel, 1);
  await until(() => data.length);
});

test("a handler that throws stops nothing", async (t) => {
  const thrown = [];
  process.setUncaughtExceptionCaptureCallback((error) => thrown.push(error.message));
  t.after(() => process.setUncaughtExceptionCaptureCallback(null));
  const silenced = t.mock.method(console, "error", (...parts) => thrown.push(String(parts)));
  const channel = channelName();
  const connection = client(t, server);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => {
    data.push(event.data);
    throw new Error(`cannot deal with ${event.data}`);
  });
  await subscription.ready;
  const other = await follow(connection, channelName());
  await server.publishAll(channel, numbers(3));
  await server.publish(other.subscription.channel, "fine");
  await until(() => data.length === 3 && other.data.length === 1);
  assert.deepEqual(data, [0, 1, 2]);
  assert.equal(connection.state, "connected");
  // Neither is it swallowed.
  await until(() => thrown.length === 3, "the errors are reported");
  assert.match(thrown[0], /cannot deal with 0/);
  silenced.mock.restore();
});

test("subscriptions that are made together go out together", async (t) => {
  const wire = watched();
  const connection = client(t, server, { WebSocket: wire.WebSocket });
  const subscriptions = numbers(10).map(() => connection.subscribe(channelName()));
  await Promise.all(subscriptions.map(({ ready }) => ready));
  const sent = wire.sent.map(({ type }) => type);
  assert.deepEqual(sent, ["connect", ...Array(10).fill("subscribe")]);
  // All before the first answer to one of them.
  assert.ok(wire.commands("subscribe").at(-1).at <= wire.messages("subscribed")[0].at);
});

test("commands have rising refs", async (t) => {
  const wire = watched();
  const connection = client(t, server, { WebSocket: wire.WebSocket });
  await follow(connection, channelName());
  await settled(connection);
  const refs = wire.sent.map(({ ref }) => ref);
  assert.ok(refs.every((ref, index) => Number.isInteger(ref) && ref > (refs[index - 1] ?? 0)));
});

test("a channel's own object does the same", async (t) => {
  const name = channelName();
  const channel = client(t, server).channel(name);
  assert.equal(channel.name, name);
  const data = [];
  const subscription = channel.subscribe((event) => data.push(event.data), { presence: true });
  await subscription.ready;
  const { id } = await channel.publish({ x: 1 }, { name: "n" });
  await until(() => data.length);
  assert.deepEqual(data, [{ x: 1 }]);
  const { events } = await channel.history({ limit: 1 });
  assert.deepEqual([events[0].id, events[0].name], [id, "n"]);
  assert.equal((await channel.members()).members.length, 1);
});

test("history is read page by page, backwards", async (t) => {
  const channel = channelName();
  await server.publishAll(channel, numbers(5));
  const connection = client(t, server);
  const pages = [];
  let before;
  do {
    const page = await connection.history(channel, { limit: 2, before });
    pages.push(page.events.map(({ data }) => data));
    before = page.cursor;
  } while (before);
  assert.deepEqual(pages.filter((page) => page.length), [[3, 4], [1, 2], [0]]);
  const { events } = await connection.history(channel);
  assert.deepEqual(events, await server.kept(channel));
});

test("history that is not granted is refused", async (t) => {
  const token = await server.token({ grants: { ">": ["subscribe"] } });
  const connection = client(t, server, { token });
  await assert.rejects(connection.history("some.channel"), { code: "forbidden", retry: false });
  await assert.rejects(connection.members("some.channel"), { code: "forbidden", retry: false });
});

test("a round trip is measured", async (t) => {
  const connection = client(t, server);
  const took = await connection.ping();
  assert.ok(Number.isFinite(took) && took >= 0);
});

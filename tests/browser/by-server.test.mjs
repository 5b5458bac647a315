/** Subscriptions that the server makes for a user: they come by themselves, and last. */

import assert from "node:assert/strict";

import { becomes, heard, state, until } from "./conditions.mjs";
import { client, follow, ownProxy, serve, settled, test } from "./rig.mjs";
import { Scripted, polite } from "./scripted.mjs";
import { channelName } from "./server.mjs";

const server = await serve();

/** A user of the test's own, connected with these grants. */
async function user(t, place = server, grants = { ">": ["subscribe"] }) {
  const sub = channelName("user");
  const connection = client(t, place, { token: await server.token({ sub, grants }) });
  await state(connection, "connected");
  return { sub, connection };
}

const path = (sub, channel) => `/v1/users/${sub}/subscriptions/${channel}`;

/** Take what a subscription yields, until it ends. */
async function collect(subscription, data) {
  for await (const event of subscription) data.push(event.data);
}

test("the server subscribes a user, and the application is told", async (t) => {
  const channel = channelName();
  // Without any grant of its own.
  const { sub, connection } = await user(t, server, {});
  const offered = heard(connection, "subscription");
  const answer = await server.request("PUT", path(sub, channel), { presence: true });
  assert.deepEqual(answer, { sessions: 1, refused: 0 });
  const { subscription } = await offered;
  assert.deepEqual([subscription.channel, subscription.state], [channel, "live"]);
  assert.equal(await subscription.ready, subscription);
  assert.deepEqual([...subscription.members.keys()], [connection.session]);
  const data = [];
  const over = { code: "forbidden", message: "unsubscribed by the server" };
  const done = assert.rejects(collect(subscription, data), over);
  await server.publish(channel, 1);
  await until(() => data.length);
  assert.throws(() => connection.subscribe(channel), { code: "conflict" });
  await server.request("DELETE", path(sub, channel));
  await done;
  assert.deepEqual([data, subscription.state], [[1], "ended"]);
});

test("it is resumed after the connection was lost", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const { sub, connection } = await user(t, proxy);
  const offered = heard(connection, "subscription");
  await server.request("PUT", path(sub, channel));
  const { subscription } = await offered;
  connection.addEventListener("subscription", () => assert.fail("it is the same"));
  const data = [];
  collect(subscription, data).catch(() => {});
  await server.publish(channel, 1);
  await until(() => data.length);
  connection.pause();
  await server.publish(channel, 2);
  const resumed = heard(subscription, "subscribed");
  connection.resume();
  assert.equal((await resumed).recovered, true);
  await server.publish(channel, 3);
  await until(() => data.length === 3);
  assert.deepEqual(data, [1, 2, 3]);
});

test("without a grant it is told, when it cannot be resumed", async (t) => {
  const channel = channelName();
  const { sub, connection } = await user(t, server, {});
  const offered = heard(connection, "subscription");
  await server.request("PUT", path(sub, channel));
  const { subscription } = await offered;
  const ended = heard(subscription, "ended");
  connection.pause();
  connection.resume();
  assert.equal((await ended).code, "forbidden");
  // The next time it is another one.
  const again = heard(connection, "subscription");
  await server.request("PUT", path(sub, channel));
  assert.notEqual((await again).subscription, subscription);
});

test("nothing is lost when the server is quicker than a client that comes back", async (t) => {
  const channel = channelName();
  const { sub, connection } = await user(t);
  connection.addEventListener("subscription", () => assert.fail("there is one"));
  const { data, subscription } = await follow(connection, channel);
  await server.publish(channel, 1);
  await until(() => data.length);
  connection.pause();
  await server.publish(channel, 2);
  connection.resume();
  await becomes(connection, "connected");
  await server.request("PUT", path(sub, channel));
  await server.publish(channel, 3);
  await until(() => data.length === 3);
  assert.deepEqual(data, [1, 2, 3]);
  assert.equal(subscription.state, "live");
});

test("what the server says of a subscription that waits for its own answer is left to that", async (t) => {
  let subscribe;
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket);
    if (message.type === "subscribe") subscribe = message;
  });
  const connection = client(t, scripted);
  connection.addEventListener("subscription", () => assert.fail("there is one"));
  const data = [];
  const subscription = connection.subscribe("a", (event) => data.push(event.data), { since: "p0" });
  await until(() => subscribe);
  const [socket] = scripted.sockets;
  const event = { type: "event", channel: "a", name: "x", tags: {}, time: 1 };
  socket.say({ type: "subscribed", channel: "a", position: "p1" });
  socket.say({ ...event, position: "p2", id: "e2", data: 2 });
  socket.say({ type: "subscribed", ref: subscribe.ref, channel: "a", position: "p0", recovered: true });
  socket.say({ ...event, position: "p1", id: "e1", data: 1 });
  socket.say({ ...event, position: "p2", id: "e2", data: 2 });
  await until(() => data.length === 2);
  assert.deepEqual([data, subscription.position], [[1, 2], "p2"]);
});

test("a listener may leave at once", async (t) => {
  const channel = channelName();
  const { sub, connection } = await user(t);
  connection.addEventListener("subscription", ({ subscription }) => subscription.unsubscribe());
  await server.request("PUT", path(sub, channel));
  await until(async () => (await server.subscribers(channel)) === 0, "the server knows");
  assert.equal(connection.state, "connected");
});

test("a stream keeps its own channels, but one may be taken from it", async (t) => {
  const sub = channelName("user");
  const [kept, taken, other] = [channelName(), channelName(), channelName()];
  const connection = client(t, server, { token: await server.token({ sub }), transports: ["sse"] });
  connection.addEventListener("subscription", () => assert.fail("a stream has its own"));
  const first = await follow(connection, kept);
  const second = connection.subscribe(taken);
  await second.ready;
  assert.equal((await server.request("PUT", path(sub, other))).sessions, 0);
  const ended = heard(second, "ended");
  assert.equal((await server.request("DELETE", path(sub, taken))).sessions, 1);
  assert.equal((await ended).code, "forbidden");
  await server.publish(kept, 1);
  await until(() => first.data.length);
  await settled(connection);
  assert.deepEqual([first.subscription.state, second.state], ["live", "ended"]);
});

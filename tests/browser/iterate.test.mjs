/** `for await` over a subscription. */

import assert from "node:assert/strict";

import { heard, numbers, until } from "./conditions.mjs";
import { client, ownServer, serve, settled, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

const server = await serve({
  channels: [{ match: ">", history_size: 10_000, presence: true, client_publish: true }],
});

/** Take `count` events' data, and leave the loop. */
async function take(subscription, count) {
  const data = [];
  for await (const event of subscription) {
    data.push(event.data);
    if (data.length === count) break;
  }
  return data;
}

test("events come in order; leaving the loop unsubscribes", async (t) => {
  const channel = channelName();
  const subscription = client(t, server).subscribe(channel);
  await subscription.ready;
  await server.publishAll(channel, numbers(10));
  assert.deepEqual(await take(subscription, 5), numbers(5));
  assert.equal(subscription.state, "ended");
  await until(async () => (await server.subscribers(channel)) === 0, "the server knows");
});

test("the loop may begin before, and waits for what comes", async (t) => {
  const channel = channelName();
  const subscription = client(t, server).subscribe(channel);
  const taken = take(subscription, 3);
  await subscription.ready;
  for (const value of numbers(3)) await server.publish(channel, value);
  assert.deepEqual(await taken, numbers(3));
});

test("a consumer that lags loses nothing", async (t) => {
  const channel = channelName();
  const wire = watched();
  const connection = client(t, server, { WebSocket: wire.WebSocket });
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  const resets = [];
  subscription.addEventListener("reset", (event) => resets.push(event));
  const total = 5000;
  const data = [];
  await server.publish(channel, 0);
  for await (const event of subscription) {
    data.push(event.data);
    if (data.length === 1) {
      await server.publishAll(channel, numbers(total - 1).map((n) => n + 1));
      await until(() => wire.commands("unsubscribe").length, "it pauses");
    }
    // New events come while the consumer catches up.
    if (data.length % 1000 === 0) await server.publish(channel, total + data.length / 1000 - 1);
    if (data.length % 100 === 0) await connection.ping();
    if (data.length === total + 5) break;
  }
  assert.deepEqual(data, numbers(total + 5));
  assert.deepEqual(resets, []);
});

test("what nobody takes is not kept without end, and who comes late is told", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  await server.publishAll(channel, numbers(5000));
  await settled(connection);
  const reset = heard(subscription, "reset");
  const [first] = await take(subscription, 1);
  await reset;
  assert.ok(first > 0);
});

test("the position is that of the event that was dealt with, not of what waits", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  const results = await server.publishAll(channel, numbers(5));
  let turn = 0;
  for await (const event of subscription) {
    assert.equal(event.position, results[turn].position);
    if (turn > 0) assert.equal(subscription.position, results[turn - 1].position);
    turn += 1;
    if (turn === 5) break;
  }
  // The last one was not dealt with to the end: the loop was left in it.
  assert.equal(subscription.position, results[3].position);
});

test("an event of one's own that is left out does not pass over what waits", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  const begun = subscription.position;
  await server.publish(channel, "waits");
  await connection.publish(channel, "own", { echo: false });
  connection.pause();
  await server.publish(channel, "missed");
  connection.resume();
  await heard(subscription, "subscribed");
  await settled(connection);
  assert.equal(subscription.position, begun);
  assert.deepEqual(await take(subscription, 2), ["waits", "missed"]);
});

test("a reset stands in its place among the events", async (t) => {
  const own = await ownServer(t);
  const channel = channelName();
  const connection = client(t, own);
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  await own.publishAll(channel, [1, 2]);
  await settled(connection);
  await own.kill();
  await own.restart();
  connection.resume();
  assert.equal((await heard(subscription, "subscribed")).recovered, false);
  await own.publishAll(channel, [3, 4]);
  const seen = [];
  subscription.addEventListener("reset", () => seen.push("reset"));
  for await (const { data } of subscription) {
    seen.push(data);
    if (data === 4) break;
  }
  assert.deepEqual(seen, [1, 2, "reset", 3, 4]);
});

test("a loop goes on over a reconnect", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const subscription = connection.subscribe(channel);
  const taken = take(subscription, 4);
  await subscription.ready;
  await server.publishAll(channel, [0, 1]);
  connection.pause();
  await server.publish(channel, 2);
  connection.resume();
  await heard(subscription, "subscribed");
  await server.publish(channel, 3);
  assert.deepEqual(await taken, numbers(4));
});

test("events that wait are not lost by a reconnect, nor doubled", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const subscription = connection.subscribe(channel);
  await subscription.ready;
  await server.publishAll(channel, numbers(10));
  await settled(connection);
  connection.pause();
  await server.publishAll(channel, [10, 11]);
  connection.resume();
  await heard(subscription, "subscribed");
  assert.deepEqual(await take(subscription, 12), numbers(12));
});

test("unsubscribing ends the loop, after what had come", async (t) => {
  const channel = channelName();
  const subscription = client(t, server).subscribe(channel);
  const data = [];
  const done = (async () => {
    for await (const event of subscription) data.push(event.data);
  })();
  await subscription.ready;
  await server.publish(channel, 1);
  await until(() => data.length);
  subscription.unsubscribe();
  await done;
  assert.deepEqual(data, [1]);
});

test("a refusal ends the loop with its error", async (t) => {
  const subscription = client(t, server).subscribe("no.>");
  await assert.rejects(take(subscription, 1), { name: "GalecastError", code: "bad_request" });
  // And once more, for whoever comes later.
  await assert.rejects(take(subscription, 1), { name: "GalecastError", code: "bad_request" });
});

test("close ends the loop", async (t) => {
  const connection = client(t, server);
  const subscription = connection.subscribe(channelName());
  const taken = take(subscription, 1);
  await subscription.ready;
  connection.close();
  assert.deepEqual(await taken, []);
});

test("an error in the loop's body unsubscribes and comes through", async (t) => {
  const channel = channelName();
  const subscription = client(t, server).subscribe(channel);
  await subscription.ready;
  await server.publish(channel, 1);
  const broken = (async () => {
    for await (const event of subscription) throw new Error(`broken by ${event.data}`);
  })();
  await assert.rejects(broken, /broken by 1/);
  assert.equal(subscription.state, "ended");
});

test("a subscription with a handler cannot be iterated", async (t) => {
  const subscription = client(t, server).subscribe(channelName(), () => {});
  await assert.rejects(take(subscription, 1), TypeError);
  await subscription.ready;
  assert.equal(subscription.state, "live");
});

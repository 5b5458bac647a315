/** Fewer events than there are: `maxRateHz`, and what an event says of those that were skipped. */

import assert from "node:assert/strict";

import { becomes, numbers, until } from "./conditions.mjs";
import { client, ownServer, serve, settled, test } from "./rig.mjs";
import { channelName } from "./server.mjs";

const server = await serve();

/** Follow a channel; `accounted` is how many events came or were skipped. */
async function sample(connection, channel, options) {
  const found = { events: [], accounted: 0 };
  found.subscription = connection.subscribe(
    channel,
    (event) => {
      found.events.push(event);
      found.accounted += 1 + (event.skipped ?? 0);
    },
    options,
  );
  await found.subscription.ready;
  return found;
}

for (const transport of ["websocket", "sse"]) {
  const transports = [transport];

  test(`${transport}: the newest, and how many were skipped`, async (t) => {
    const channel = channelName();
    const connection = client(t, server, { transports });
    const found = await sample(connection, channel, { maxRateHz: 100 / 3 });
    for (const number of numbers(60)) await server.publish(channel, number);
    await until(() => found.accounted === 60);
    assert.equal(found.events.at(-1).data, 59);
    assert.equal(found.events[0].data, 0);
    assert.equal(found.events[0].skipped, undefined);
    await settled(connection);
    assert.equal(found.subscription.position, found.events.at(-1).position);
  });

  test(`${transport}: each channel has its own rate, also after a reconnect`, async (t) => {
    const own = await ownServer(t);
    const [slow, whole] = [channelName(), channelName()];
    const connection = client(t, own, { transports });
    const sampled = await sample(connection, slow, { maxRateHz: 0.01 });
    const all = await sample(connection, whole);
    await own.kill();
    await becomes(connection, "waiting");
    await own.restart();
    await settled(connection);
    await until(() => sampled.subscription.state === "live" && all.subscription.state === "live");
    await own.publishAll(slow, numbers(1));
    await own.publishAll(slow, numbers(5));
    await own.publishAll(whole, numbers(3));
    await own.publishAll(whole, numbers(3));
    await until(() => all.events.length === 6);
    assert.deepEqual(sampled.events.map(({ data }) => data), [0]);
  });
}

test("a rate that makes no sense is refused", async (t) => {
  const connection = client(t, server);
  const subscription = connection.subscribe(channelName(), () => {}, { maxRateHz: 0 });
  await assert.rejects(subscription.ready, { code: "bad_request" });
});

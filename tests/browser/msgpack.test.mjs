/** MessagePack, with the encoder that most use. */

import assert from "node:assert/strict";
import { decode, encode } from "@msgpack/msgpack";

import { numbers, until } from "./conditions.mjs";
import { client, follow, serve, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

const server = await serve();
const encoding = { encode, decode };

test("all is as with JSON", async (t) => {
  const channel = channelName();
  const wire = watched(decode);
  const connection = client(t, server, { encoding, WebSocket: wire.WebSocket });
  const { subscription, data } = await follow(connection, channel, { presence: true });
  assert.equal(wire.sockets[0].protocol, "galecast.v1.msgpack");
  const value = { text: "é", list: [1, null, -2.5], deep: { yes: true } };
  const { id, duplicate } = await connection.publish(channel, value, { tags: { k: "v" } });
  assert.equal(duplicate, false);
  await server.publish(channel, value);
  await until(() => data.length === 2);
  assert.deepEqual(data, [value, value]);
  const { events } = await connection.history(channel, { limit: 2 });
  assert.deepEqual([events[0].id, events[0].data], [id, value]);
  await subscription.setPresence({ typing: true });
  await until(() => subscription.members.get(connection.session)?.info.typing);
  assert.ok((await connection.ping()) >= 0);
  const [kept] = await server.kept(channel);
  assert.deepEqual([kept.data, kept.tags], [value, { k: "v" }]);
});

test("resuming and the queue work alike", async (t) => {
  const channel = channelName();
  const connection = client(t, server, { encoding });
  const { data } = await follow(connection, channel);
  connection.pause();
  await server.publishAll(channel, [0, 1]);
  const waiting = [2, 3].map((n) => connection.publish(channel, n));
  connection.resume();
  await Promise.all(waiting);
  await until(() => data.length === 4);
  assert.deepEqual(data, numbers(4));
});

test("JSON and MessagePack clients hear each other", async (t) => {
  const channel = channelName();
  const one = client(t, server, { encoding });
  const other = client(t, server);
  const [first, second] = await Promise.all([follow(one, channel), follow(other, channel)]);
  await one.publish(channel, { from: "one" });
  await other.publish(channel, { from: "other" });
  await until(() => first.data.length === 2 && second.data.length === 2);
  assert.deepEqual(first.data, second.data);
});

test("a refusal is one here too", async (t) => {
  const connection = client(t, server, { encoding });
  await assert.rejects(connection.publish("a.b", new Uint8Array(3)), { code: "invalid_data" });
  await assert.rejects(connection.publish("a.b", () => {}), { code: "invalid_data" });
  await assert.rejects(connection.subscribe("a.*").ready, { code: "bad_request" });
});

test("an encoder may be an object with state of its own", async (t) => {
  const own = {
    count: 0,
    encode(value) {
      this.count += 1;
      return encode(value);
    },
    decode(bytes) {
      this.count += 1;
      assert.ok(bytes instanceof Uint8Array);
      return decode(bytes);
    },
  };
  const connection = client(t, server, { encoding: own });
  await connection.ping();
  assert.ok(own.count >= 2);
});

/** Publishing: answers, order, and what happens while there is no connection. */

import assert from "node:assert/strict";

import { numbers, state, until } from "./conditions.mjs";
import { client, follow, ownProxy, ownServer, serve, settled, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

const server = await serve();

/** The data of all events that the channel keeps. */
async function kept(channel) {
  return (await server.kept(channel)).map(({ data }) => data);
}

test("a publish is answered with where the event stands", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const answer = await connection.publish(channel, { x: 1 }, { name: "n", tags: { k: "v" } });
  const [event] = await server.kept(channel);
  assert.equal(answer.channel, channel);
  assert.deepEqual([answer.position, answer.id], [event.position, event.id]);
  assert.equal(answer.duplicate, false);
  assert.deepEqual([event.data, event.name, event.tags], [{ x: 1 }, "n", { k: "v" }]);
});

test("any JSON value is data", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const values = [null, 0, false, "", "é\u2028\r\n", -1.5e300, [], {}, [[{ a: [null] }]]];
  await Promise.all(values.map((value) => connection.publish(channel, value)));
  assert.deepEqual(await kept(channel), values);
});

test("an id is published once", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const first = await connection.publish(channel, 1, { id: "same" });
  const second = await connection.publish(channel, 2, { id: "same" });
  assert.deepEqual([first.id, first.duplicate], ["same", false]);
  assert.deepEqual([second.id, second.duplicate], ["same", true]);
  assert.equal(second.position, first.position);
  assert.deepEqual(await kept(channel), [1]);
});

test("without echo the others get it, and oneself does not", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const own = await follow(connection, channel);
  const other = await follow(client(t, server), channel);
  await connection.publish(channel, "quiet", { echo: false });
  await connection.publish(channel, "loud");
  await until(() => own.data.length === 1 && other.data.length === 2);
  assert.deepEqual([own.data, other.data], [["loud"], ["quiet", "loud"]]);
});

test("without echo it does not come by resuming either", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const { data, subscription } = await follow(connection, channel);
  const { position } = await connection.publish(channel, "quiet", { echo: false });
  connection.pause();
  await server.publish(channel, "missed");
  connection.resume();
  await until(() => data.length);
  await settled(connection);
  assert.deepEqual(data, ["missed"]);
  assert.notEqual(subscription.position, position);
});

test("a refused publish says why and stops no other", async (t) => {
  const token = await server.token({ grants: { "open.>": ["publish", "subscribe"] } });
  const connection = client(t, server, { token });
  const channel = channelName("open");
  const refused = connection.publish("closed.room", 1);
  const fine = connection.publish(channel, 1);
  await assert.rejects(refused, { name: "GalecastError", code: "forbidden", retry: false });
  assert.equal((await fine).duplicate, false);
  await assert.rejects(connection.publish("a..b", 1), { code: "bad_request" });
  await assert.rejects(connection.publish(channel, 1, { tags: { k: 5 } }), { retry: false });
});

test("a value that cannot be encoded is refused here", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const circle = {};
  circle.self = circle;
  for (const value of [circle, 1n, undefined, () => {}]) {
    await assert.rejects(connection.publish(channel, value), { name: "GalecastError" });
  }
  await connection.publish(channel, "fine");
  assert.deepEqual(await kept(channel), ["fine"]);
});

test("data that is too large is refused, and the connection stands", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  await state(connection, "connected");
  const { session, limits } = connection;
  for (const size of [limits.data_bytes, limits.frame_bytes]) {
    // In UTF-8 each of these is three bytes.
    for (const text of ["x".repeat(size), "€".repeat(size / 2)]) {
      const refused = connection.publish(channel, text);
      await assert.rejects(refused, { name: "GalecastError", code: "too_large", retry: false });
    }
  }
  await connection.publish(channel, "fine");
  assert.deepEqual(await kept(channel), ["fine"]);
  assert.equal(connection.session, session);
});

test("what is published before there is a connection waits for it", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const answers = await Promise.all(numbers(20).map((n) => connection.publish(channel, n)));
  assert.ok(answers.every(({ duplicate }) => !duplicate));
  assert.deepEqual(await kept(channel), numbers(20));
});

test("what is published while paused is sent after resume, in order and once", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const { data } = await follow(connection, channel);
  connection.pause();
  const value = { n: 0 };
  const first = connection.publish(channel, value);
  // What was handed over stays as it was.
  value.n = 100;
  const rest = numbers(9).map((n) => connection.publish(channel, { n: n + 1 }));
  assert.deepEqual(await kept(channel), []);
  connection.resume();
  const answers = await Promise.all([first, ...rest]);
  assert.ok(answers.every(({ duplicate }) => !duplicate));
  await until(() => data.length === 10);
  assert.deepEqual(
    data,
    numbers(10).map((n) => ({ n })),
  );
  assert.deepEqual(await kept(channel), data);
});

test("the queue is bounded", async (t) => {
  const channel = channelName();
  const connection = client(t, server, { queue: 3 });
  connection.pause();
  const waiting = numbers(3).map((n) => connection.publish(channel, n));
  await assert.rejects(connection.publish(channel, 3), {
    name: "GalecastError",
    code: "queue_full",
  });
  connection.resume();
  await Promise.all(waiting);
  await connection.publish(channel, 4);
  assert.deepEqual(await kept(channel), [0, 1, 2, 4]);
});

test("questions that wait are bounded too", async (t) => {
  const channel = channelName();
  await server.publish(channel, 1);
  const connection = client(t, server, { queue: 3 });
  connection.pause();
  const waiting = [
    connection.history(channel),
    connection.members(channel),
    connection.history(channel, { limit: 1 }),
  ];
  const full = { name: "GalecastError", code: "queue_full", retry: true };
  await assert.rejects(connection.history(channel), full);
  await assert.rejects(connection.members(channel), full);
  // Publishes have a bound of their own.
  const published = connection.publish(channel, 2);
  connection.resume();
  const [first, , last] = await Promise.all([...waiting, published]);
  assert.deepEqual([first.events.length > 0, last.events.length], [true, 1]);
  // Those that are answered make room, refused or not.
  await Promise.allSettled(numbers(3).map(() => connection.history("a..b")));
  assert.equal((await connection.history(channel)).events.length, 2);
});

test("a publish whose answer was lost is not doubled", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const wire = watched();
  const connection = client(t, proxy, { WebSocket: wire.WebSocket });
  const { data } = await follow(connection, channel);
  proxy.holdAnswers();
  const publishes = numbers(3).map((n) => connection.publish(channel, n));
  await until(async () => (await kept(channel)).length === 3, "the server has them");
  proxy.cut();
  const later = connection.publish(channel, 3);
  const answers = await Promise.all([...publishes, later]);
  assert.deepEqual(
    answers.map(({ duplicate }) => duplicate),
    [true, true, true, false],
  );
  await until(() => data.length === 4);
  assert.deepEqual(data, numbers(4));
  assert.deepEqual(await kept(channel), numbers(4));
  const sent = wire.commands("publish").map(({ id }) => id);
  assert.ok(sent.length >= 7);
  assert.equal(new Set(sent).size, 4);
});

test("a publish that was sent and gets no answer is given up in the end", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy, { retryFor: 200 });
  await state(connection, "connected");
  proxy.holdAnswers();
  const lost = connection.publish(channel, 1);
  await until(async () => (await kept(channel)).length === 1, "the server has it");
  proxy.refuses = true;
  proxy.cut();
  await assert.rejects(lost, { name: "GalecastError", code: "timeout" });
  proxy.refuses = false;
  connection.resume();
  assert.equal((await connection.publish(channel, 2)).duplicate, false);
  assert.deepEqual(await kept(channel), [1, 2]);
});

test("a publish that was never sent waits longer than one that was", async (t) => {
  const channel = channelName();
  const connection = client(t, server, { retryFor: 1 });
  connection.pause();
  const waiting = connection.publish(channel, 1);
  await server.publish(channel, 0);
  connection.resume();
  // An answer within 1 ms cannot be had for sure; that it was not given up before is enough.
  await waiting.catch((error) => assert.equal(error.code, "timeout"));
  assert.deepEqual(await kept(channel), [0, 1]);
});

test("a flood stays within the server's rate, whole and in order", async (t) => {
  const flooded = await ownServer(t, { "limits.session_publishes_per_s": 100 });
  const channel = channelName();
  const wire = watched();
  const connection = client(t, flooded, { WebSocket: wire.WebSocket });
  const { data } = await follow(connection, channel);
  const { session } = connection;
  const answers = await Promise.all(numbers(500).map((n) => connection.publish(channel, n)));
  assert.ok(answers.every(({ duplicate }) => !duplicate));
  await until(() => data.length === 500);
  assert.deepEqual(data, numbers(500));
  assert.equal(connection.session, session);
  assert.deepEqual(wire.messages("error"), []);
});

test("a clock that is set back stops nothing", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  await state(connection, "connected");
  const { session } = connection;
  const first = Promise.all(numbers(60).map((n) => connection.publish(channel, n)));
  const { now } = Date;
  t.mock.method(Date, "now", () => now() - 3_600_000);
  const second = Promise.all(numbers(60).map((n) => connection.publish(channel, 60 + n)));
  await Promise.all([first, second]);
  assert.equal(connection.session, session);
  assert.deepEqual(await kept(channel), numbers(120));
});

test("a publish that is refused for the moment is sent again", async (t) => {
  // The server allows fewer commands than publishes, so pacing the publishes alone is not enough.
  const busy = await ownServer(t, {
    "limits.session_publishes_per_s": 1000,
    "limits.session_commands_per_s": 20,
  });
  const channel = channelName();
  const connection = client(t, busy);
  const answers = await Promise.all(numbers(60).map((n) => connection.publish(channel, n)));
  assert.ok(answers.every(({ duplicate }) => !duplicate));
  const events = await busy.kept(channel);
  assert.deepEqual(
    events.map(({ data }) => data),
    numbers(60),
  );
});

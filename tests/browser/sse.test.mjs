/** Where WebSocket cannot be had: Server-Sent Events, and HTTP for the rest. */

import assert from "node:assert/strict";

import { becomes, heard, numbers, state, until } from "./conditions.mjs";
import { client, follow, ownProxy, ownServer, serve, settled, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { watchedFetch } from "./wire.mjs";

const server = await serve({ "token.leeway_s": 0, "session.expiring_s": 1 });
const transports = ["sse"];
const streamed = (t, place, options) => client(t, place, { transports, ...options });

async function kept(channel) {
  return (await server.kept(channel)).map(({ data }) => data);
}

test("a network without WebSocket makes it fall back", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  proxy.refusesWebSocket = true;
  const connection = client(t, proxy);
  const { data } = await follow(connection, channel);
  assert.deepEqual([connection.state, connection.transport], ["connected", "sse"]);
  assert.equal(typeof connection.session, "string");
  assert.match(connection.node, /^node-/);
  assert.equal(connection.limits.publishes_per_s, 50);
  await server.publishAll(channel, numbers(3));
  await until(() => data.length === 3);
  assert.deepEqual(data, numbers(3));
  // Once it can be had, it is taken again with a new connection.
  proxy.refusesWebSocket = false;
  connection.pause();
  await server.publish(channel, 3);
  connection.resume();
  await until(() => data.length === 4);
  assert.equal(connection.transport, "websocket");
});

test("a stream gives way to WebSocket once that gets through, and nothing is lost", async (t) => {
  // The library tries after a minute, two minutes, and so on; here the test says when.
  const tries = [];
  const { setTimeout: begin } = globalThis;
  t.mock.method(globalThis, "setTimeout", (act, ms, ...rest) => {
    if (ms !== 60_000 && ms !== 120_000) return begin(act, ms, ...rest);
    tries.push({ act, ms });
    return undefined;
  });
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  proxy.refusesWebSocket = true;
  const connection = client(t, proxy);
  const { data, subscription } = await follow(connection, channel);
  subscription.addEventListener("reset", () => assert.fail("a reset"));
  const again = [];
  subscription.addEventListener("subscribed", ({ recovered }) => again.push(recovered));
  assert.equal(connection.transport, "sse");
  assert.deepEqual(tries.map(({ ms }) => ms), [60_000]);

  // In vain: back to the stream.
  tries[0].act();
  await server.publish(channel, 0);
  await until(() => connection.state === "connected" && data.length === 1);
  assert.equal(connection.transport, "sse");
  assert.deepEqual(tries.map(({ ms }) => ms), [60_000, 120_000]);

  proxy.refusesWebSocket = false;
  await server.publish(channel, 1);
  tries[1].act();
  const waits = connection.publish(channel, 2);
  await waits;
  assert.equal(connection.transport, "websocket");
  await server.publish(channel, 3);
  await until(() => data.length >= 4);
  await settled(connection);
  assert.deepEqual(data, numbers(4));
  assert.deepEqual(again, [true, true]);
  assert.equal(tries.length, 2);
});

test("an environment without WebSocket does too", async (t) => {
  class Missing {
    constructor() {
      throw new Error("no sockets here");
    }
  }
  const connection = client(t, server, { WebSocket: Missing });
  await state(connection, "connected");
  assert.equal(connection.transport, "sse");
});

test("a server that is away is no reason to fall back for ever", async (t) => {
  const proxy = await ownProxy(t, server);
  proxy.refuses = true;
  const connection = client(t, proxy);
  await until(() => proxy.arrivals.length >= 4);
  proxy.refuses = false;
  connection.resume();
  await state(connection, "connected");
  connection.pause();
  connection.resume();
  await state(connection, "connected");
  assert.equal(connection.transport, "websocket");
});

test("without fallback there is none", async (t) => {
  const proxy = await ownProxy(t, server);
  proxy.refusesWebSocket = true;
  const connection = client(t, proxy, { transports: ["websocket"] });
  await until(() => proxy.arrivals.length >= 3);
  assert.notEqual(connection.state, "connected");
  proxy.refusesWebSocket = false;
  await state(connection, "connected");
  assert.equal(connection.transport, "websocket");
});

test("what was missed comes once and in order", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const connection = streamed(t, proxy);
  const { data, subscription } = await follow(connection, channel);
  subscription.addEventListener("reset", () => assert.fail("a reset"));
  for (const n of numbers(100)) {
    await server.publish(channel, n);
    if (n % 25 !== 10) continue;
    await state(connection, "connected");
    const waiting = becomes(connection, "waiting");
    proxy.cut();
    await waiting;
  }
  await until(() => data.length >= 100);
  connection.pause();
  await server.publishAll(channel, [100, 101]);
  connection.resume();
  await until(() => data.length >= 102);
  await settled(connection);
  assert.deepEqual(data, numbers(102));
});

test("any JSON comes through as it is", async (t) => {
  const channel = channelName();
  const { data } = await follow(streamed(t, server), channel);
  const values = ["é\u2028\n\n\r\ndata: x", "€".repeat(20_000), { a: [null, 1.5] }, ""];
  for (const value of values) await server.publish(channel, value);
  await until(() => data.length === values.length);
  assert.deepEqual(data, values);
});

test("publishing goes over HTTP, in order", async (t) => {
  const channel = channelName();
  const connection = streamed(t, server);
  const { data } = await follow(connection, channel);
  const publishes = numbers(10).map((n) => connection.publish(channel, n, { tags: { k: "v" } }));
  const answers = await Promise.all(publishes);
  const events = await server.kept(channel);
  assert.deepEqual(
    answers,
    events.map(({ position, id }) => ({ channel, position, id, duplicate: false })),
  );
  assert.deepEqual(events[0].tags, { k: "v" });
  await until(() => data.length === 10);
  assert.deepEqual(data, numbers(10));
  assert.equal((await connection.publish(channel, 0, { id: answers[0].id })).duplicate, true);
  await assert.rejects(connection.publish("a..b", 1), { code: "bad_request", retry: false });
});

test("publishing without a subscription works as well", async (t) => {
  const channel = channelName();
  const connection = streamed(t, server);
  await connection.publish(channel, 1);
  assert.deepEqual([connection.state, await kept(channel)], ["connected", [1]]);
});

test("a publish whose answer was lost is not doubled", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const connection = streamed(t, proxy);
  const { data } = await follow(connection, channel);
  await connection.publish(channel, 0);
  proxy.holdAnswers();
  const lost = connection.publish(channel, 1);
  await until(async () => (await kept(channel)).length === 2, "the server has it");
  proxy.cut();
  const later = connection.publish(channel, 2);
  assert.deepEqual([(await lost).duplicate, (await later).duplicate], [true, false]);
  await until(() => data.length === 3);
  assert.deepEqual([data, await kept(channel)], [numbers(3), numbers(3)]);
});

test("publishes that wait for a connection are sent once there is one", async (t) => {
  const channel = channelName();
  const connection = streamed(t, server);
  connection.pause();
  const waiting = numbers(5).map((n) => connection.publish(channel, n));
  connection.resume();
  await Promise.all(waiting);
  assert.deepEqual(await kept(channel), numbers(5));
});

test("more publishes than the rate allows all get through, in order", async (t) => {
  const channel = channelName();
  const own = await ownServer(t, { "limits.session_publishes_per_s": 20 });
  // The rate over HTTP is that of a user.
  const token = await own.token();
  const connection = streamed(t, own, { token });
  await Promise.all(numbers(60).map((n) => connection.publish(channel, n)));
  assert.deepEqual(
    (await own.kept(channel)).map(({ data }) => data),
    numbers(60),
  );
});

test("without echo the others get it, and oneself does not", async (t) => {
  const channel = channelName();
  const connection = streamed(t, server);
  const own = await follow(connection, channel);
  const other = await follow(streamed(t, server), channel);
  await connection.publish(channel, "quiet", { echo: false });
  await connection.publish(channel, "loud");
  await until(() => own.data.length === 1 && other.data.length === 2);
  assert.deepEqual([own.data, other.data], [["loud"], ["quiet", "loud"]]);
});

test("channels come and go, and the others lose nothing", async (t) => {
  const [first, second, third] = numbers(3).map(() => channelName());
  const connection = streamed(t, server);
  const one = await follow(connection, first);
  await server.publish(first, 0);
  const two = await follow(connection, second);
  await server.publishAll(first, [1, 2]);
  await server.publish(second, 0);
  const adding = follow(connection, third);
  two.subscription.unsubscribe();
  await server.publish(first, 3);
  const three = await adding;
  await server.publish(second, "unheard");
  await server.publish(third, 0);
  await server.publish(first, 4);
  await until(() => one.data.length === 5 && three.data.length === 1);
  assert.deepEqual([one.data, two.data, three.data], [numbers(5), [0], [0]]);
  await until(async () => (await server.subscribers(second)) === 0);
  assert.equal(two.subscription.state, "ended");
  one.subscription.unsubscribe();
  three.subscription.unsubscribe();
  await until(async () => (await server.subscribers(first)) === 0);
  await until(() => connection.state === "connected");
  const again = await follow(connection, first);
  await server.publish(first, 5);
  await until(() => again.data.length);
  assert.deepEqual(again.data, [5]);
});

test("rewind is each channel's own, and comes once", async (t) => {
  const [first, second] = [channelName(), channelName()];
  await server.publishAll(first, numbers(5));
  await server.publishAll(second, numbers(5));
  const connection = streamed(t, server);
  const one = await follow(connection, first, { rewind: 2 });
  await until(() => one.data.length === 2);
  const two = await follow(connection, second, { rewind: 3 });
  await until(() => two.data.length === 3);
  connection.pause();
  connection.resume();
  await state(connection, "connected");
  await server.publish(first, 5);
  await server.publish(second, 5);
  await until(() => one.data.length === 3 && two.data.length === 4);
  assert.deepEqual([one.data, two.data], [[3, 4, 5], [2, 3, 4, 5]]);
});

test("since goes on where the page before stopped, and is told if it cannot", async (t) => {
  const [good, bad] = [channelName(), channelName()];
  const [{ position: since }] = await server.publishAll(good, numbers(3));
  const [{ position: stale }] = await server.publishAll(bad, numbers(3));
  await server.request("DELETE", `/v1/channels/${bad}/events`);
  await server.publish(bad, 3);
  const connection = streamed(t, server);
  const data = [];
  const one = connection.subscribe(good, (event) => data.push(event.data), { since });
  const two = connection.subscribe(bad, () => {}, { since: stale });
  const reset = heard(two, "reset");
  const recovered = heard(one, "subscribed");
  await until(() => data.length === 2);
  assert.deepEqual(data, [1, 2]);
  assert.equal((await recovered).recovered, true);
  assert.equal(typeof (await reset).position, "string");
});

test("more channels than one stream takes", async (t) => {
  const prefix = channelName();
  const connection = streamed(t, server);
  const all = await Promise.all(numbers(120).map((n) => follow(connection, `${prefix}.${n}`)));
  await server.request(
    "POST",
    "/v1/events",
    numbers(120).map((n) => ({ channel: `${prefix}.${n}`, data: n })),
  );
  await until(() => all.every(({ data }) => data.length));
  all.forEach(({ data }, n) => assert.deepEqual(data, [n]));
});

test("a channel that is refused ends, and the others go on", async (t) => {
  const token = await server.token({ grants: { "open.>": ["subscribe"] } });
  const connection = streamed(t, server, { token });
  const channel = channelName("open");
  const { data } = await follow(connection, channel);
  await assert.rejects(connection.subscribe("closed.room").ready, {
    name: "GalecastError",
    code: "forbidden",
  });
  await assert.rejects(connection.subscribe("open.*").ready, { code: "bad_request" });
  await server.publish(channel, 1);
  await until(() => data.length);
  assert.equal(connection.state, "connected");
});

test("the presence set is seen and stays in step", async (t) => {
  const channel = channelName();
  const connection = streamed(t, server);
  const { subscription } = await follow(connection, channel, { presence: true });
  await until(() => subscription.members.has(connection.session));
  const other = client(t, server);
  const follows = await follow(other, channel);
  await follows.subscription.setPresence({ typing: true });
  const { session } = other;
  await until(() => subscription.members.get(session)?.info.typing);
  assert.equal(subscription.members.size, 2);
  other.close();
  await until(() => subscription.members.size === 1);
});

test("one's own entry cannot be set over a stream, and it says so", async (t) => {
  const connection = streamed(t, server);
  const { subscription } = await follow(connection, channelName());
  await assert.rejects(subscription.setPresence({}), { code: "unavailable" });
});

test("history, members and round trips are had over HTTP", async (t) => {
  const channel = channelName();
  await server.publishAll(channel, numbers(5));
  const connection = streamed(t, server);
  await follow(connection, channel);
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
  const { members } = await connection.members(channel);
  assert.deepEqual(
    members.map(({ session }) => session),
    [connection.session],
  );
  assert.ok((await connection.ping()) >= 0);
  await assert.rejects(connection.history("a..b"), { name: "GalecastError", code: "bad_request" });
});

test("a consumer that lags loses nothing", async (t) => {
  const own = await ownServer(t, {
    channels: [{ match: ">", history_size: 10_000, client_publish: true }],
  });
  const channel = channelName();
  const subscription = streamed(t, own).subscribe(channel);
  await subscription.ready;
  await own.publish(channel, 0);
  const data = [];
  for await (const event of subscription) {
    data.push(event.data);
    if (data.length === 1) {
      await own.publishAll(channel, numbers(2999).map((n) => n + 1));
      await until(async () => (await own.subscribers(channel)) === 0, "it pauses");
    }
    if (data.length === 3000) break;
  }
  assert.deepEqual(data, numbers(3000));
});

test("a token is replaced before it ends, and nothing is lost", async (t) => {
  const channel = channelName();
  const reasons = [];
  const connection = streamed(t, server, {
    getToken: ({ reason }) => {
      reasons.push(reason);
      return server.token({ sub: "ann", ttl_s: 2 });
    },
  });
  const seen = [];
  connection.addEventListener("state", (event) => seen.push(event.state));
  const { data } = await follow(connection, channel);
  assert.equal(connection.user, "ann");
  let sent = 0;
  while (reasons.length < 4) await server.publish(channel, sent++);
  await until(() => data.length >= sent);
  assert.deepEqual(data, numbers(sent));
  assert.deepEqual(reasons.slice(0, 4), ["connect", "expiring", "expiring", "expiring"]);
  assert.ok(!seen.includes("waiting"), `${seen}`);
  await connection.publish(channel, sent);
});

test("a token that has ended is replaced by a new one", async (t) => {
  const old = await server.token({ ttl_s: 1 });
  const { exp } = JSON.parse(Buffer.from(old.split(".")[1], "base64url"));
  await until(() => Date.now() > 1000 * exp + 10);
  const tokens = [old, await server.token({ sub: "ann" })];
  const reasons = [];
  const connection = streamed(t, server, {
    getToken: ({ reason }) => {
      reasons.push(reason);
      return tokens.shift();
    },
  });
  await follow(connection, channelName());
  assert.equal(connection.user, "ann");
  assert.deepEqual(reasons, ["connect", "expired"]);
});

test("without a subscription a token that has ended is replaced when it is needed", async (t) => {
  const channel = channelName();
  const tokens = [];
  const reasons = [];
  const connection = streamed(t, server, {
    async getToken({ reason }) {
      reasons.push(reason);
      tokens.push(await server.token({ sub: "ann", ttl_s: 1 + 600 * tokens.length }));
      return tokens.at(-1);
    },
  });
  await connection.publish(channel, 1);
  const { exp } = JSON.parse(Buffer.from(tokens[0].split(".")[1], "base64url"));
  await until(() => Date.now() > 1000 * exp + 10);
  const [published, { events }] = await Promise.all([
    connection.publish(channel, 2),
    connection.history(channel, { limit: 1 }),
  ]);
  assert.deepEqual([published.duplicate, events.length], [false, 1]);
  assert.deepEqual(await kept(channel), [1, 2]);
  assert.deepEqual(reasons, ["connect", "expired"]);
});

test("a token that is not valid is the end", async (t) => {
  const connection = streamed(t, server, { token: "nonsense" });
  connection.subscribe("a.b", () => {});
  const { code } = await becomes(connection, "closed");
  assert.equal(code, 4501);
});

test("no token reaches an address", async (t) => {
  const watch = watchedFetch();
  const token = await server.token();
  const connection = streamed(t, server, { token, fetch: watch.fetch });
  await follow(connection, channelName());
  await connection.publish(channelName(), 1);
  assert.ok(watch.requests.length >= 2);
  assert.ok(watch.requests.every(({ url }) => !url.includes(token)));
});

test("an operator ends a session for good", async (t) => {
  const connection = streamed(t, server);
  await follow(connection, channelName());
  const closed = becomes(connection, "closed");
  await server.request("DELETE", `/v1/sessions/${connection.session}`);
  assert.equal((await closed).code, 4502);
});

test("a server that drains is left in peace, one that crashed resets", async (t) => {
  const own = await ownServer(t, { "drain.retry_spread_ms": 2000 });
  const proxy = await ownProxy(t, own);
  const channel = channelName();
  const connection = streamed(t, proxy);
  const { subscription, data } = await follow(connection, channel);
  const waiting = becomes(connection, "waiting");
  const stopped = own.stop();
  const { retryInMs } = await waiting;
  const begun = performance.now();
  const came = proxy.arrivals.length;
  await stopped;
  await own.restart();
  await heard(subscription, "reset");
  assert.ok(proxy.arrivals[came] - begun >= retryInMs - 20);
  const lost = becomes(connection, "waiting");
  await own.kill();
  await lost;
  const again = heard(subscription, "reset");
  await own.restart();
  connection.resume();
  await again;
  await own.publish(channel, 1);
  await until(() => data.length);
});

test("a stream that went silent is noticed", async (t) => {
  const own = await ownServer(t, { "session.ping_s": 1, "sse.comment_s": 0.3 });
  const proxy = await ownProxy(t, own);
  const channel = channelName();
  const { data } = await follow(streamed(t, proxy), channel);
  proxy.hold();
  await own.publish(channel, "unheard");
  await until(() => data.length);
  assert.deepEqual(data, ["unheard"]);
});

/** Tokens: asked for, refreshed in time, and given up. */

import assert from "node:assert/strict";

import { becomes, heard, numbers, state, until } from "./conditions.mjs";
import { client, follow, serve, test } from "./rig.mjs";
import { Scripted, polite } from "./scripted.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

// A token of two seconds is warned of after one.
const server = await serve({ "token.leeway_s": 0, "session.expiring_s": 1 });
const brief = { ttl_s: 2 };
// Here a token of a minute is warned of at once.
const long = await serve({ "session.expiring_s": 59.5 });

/** A `getToken` that notes why it was asked; each answer is made by the next of `makers`. */
function giver(...makers) {
  const reasons = [];
  const getToken = async ({ reason }) => {
    const make = makers[Math.min(reasons.length, makers.length - 1)];
    reasons.push(reason);
    return make();
  };
  return { getToken, reasons };
}

/** A token whose time is over. */
async function expired() {
  const token = await server.token({ ttl_s: 1 });
  const { exp } = JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
  await until(() => Date.now() > 1000 * exp + 10, "it has expired");
  return token;
}

test("a token is asked for at the beginning", async (t) => {
  const { getToken, reasons } = giver(() => server.token({ sub: "ann" }));
  const connection = client(t, server, { getToken });
  await state(connection, "connected");
  assert.equal(connection.user, "ann");
  assert.deepEqual(reasons, ["connect"]);
});

test("a token may be given without waiting, and null is nobody", async (t) => {
  const connection = client(t, server, { getToken: () => null });
  await state(connection, "connected");
  assert.equal(connection.user, null);
});

test("a token is kept over a reconnect as long as it is good", async (t) => {
  const { getToken, reasons } = giver(() => server.token({ ttl_s: 600 }));
  const connection = client(t, server, { getToken });
  await state(connection, "connected");
  connection.pause();
  connection.resume();
  await state(connection, "connected");
  assert.deepEqual(reasons, ["connect"]);
});

test("a token that is about to end is replaced in the session", async (t) => {
  const wire = watched();
  const { getToken, reasons } = giver(() => server.token(brief));
  const connection = client(t, server, { getToken, WebSocket: wire.WebSocket });
  const channel = channelName();
  const { data } = await follow(connection, channel);
  const { session } = connection;
  // With the third, the time of the first is over.
  await until(() => wire.messages("refreshed").length === 3);
  await server.publish(channel, 1);
  await until(() => data.length);
  assert.equal(connection.session, session);
  assert.deepEqual(reasons.slice(0, 4), ["connect", "expiring", "expiring", "expiring"]);
  assert.equal(wire.sockets.length, 1);
});

test("a token that has ended is replaced by a new one", async (t) => {
  const old = await expired();
  const { getToken, reasons } = giver(
    () => old,
    () => server.token({ sub: "ann" }),
  );
  const connection = client(t, server, { getToken });
  await state(connection, "connected");
  assert.equal(connection.user, "ann");
  assert.deepEqual(reasons, ["connect", "expired"]);
});

test("a token that ends while nobody replaces it is replaced afterwards", async (t) => {
  let refuses = false;
  const { getToken, reasons } = giver(async () => {
    if (refuses) throw new Error("not now");
    return server.token(brief);
  });
  const connection = client(t, server, { getToken });
  const channel = channelName();
  const { data } = await follow(connection, channel);
  refuses = true;
  await becomes(connection, "waiting");
  await server.publish(channel, "missed");
  refuses = false;
  await until(() => data.length);
  assert.deepEqual(data, ["missed"]);
  assert.ok(reasons.includes("expiring") && reasons.includes("expired"), `${reasons}`);
});

test("getToken that fails is asked again", async (t) => {
  const { getToken, reasons } = giver(
    () => Promise.reject(new Error("the login service is away")),
    () => server.token({ sub: "ann" }),
  );
  const connection = client(t, server, { getToken });
  await becomes(connection, "waiting");
  await state(connection, "connected");
  assert.equal(connection.user, "ann");
  assert.deepEqual(reasons, ["connect", "connect"]);
});

test("a refresh that fails is tried again", async (t) => {
  // Time for a second attempt.
  const own = await serve({ "token.leeway_s": 0, "session.expiring_s": 15 });
  const wire = watched();
  const { getToken, reasons } = giver(
    () => own.token({ ttl_s: 16 }),
    () => Promise.reject(new Error("the login service is away")),
    () => own.token({ ttl_s: 600 }),
  );
  const connection = client(t, own, { getToken, WebSocket: wire.WebSocket });
  await until(() => wire.messages("refreshed").length === 1);
  assert.deepEqual(reasons, ["connect", "expiring", "expiring"]);
  assert.equal(wire.sockets.length, 1);
  assert.equal(connection.state, "connected");
});

test("not all clients ask for a new token at once", async (t) => {
  // All that a server has may be warned in one moment.
  const { getToken, reasons } = giver(() => "a token");
  const scripted = await Scripted.start(t, polite);
  const connection = client(t, scripted, { getToken });
  await state(connection, "connected");
  scripted.sockets[0].say({ type: "expiring", in_s: 60 });
  scripted.sockets[0].say({ type: "expiring", in_s: 1 });
  await connection.ping();
  assert.deepEqual(reasons, ["connect"]);
  connection.pause();
  connection.resume();
  await state(connection, "connected");
  scripted.sockets[1].say({ type: "expiring", in_s: 1 });
  await until(() => reasons.length === 2);
  assert.deepEqual(reasons, ["connect", "expiring"]);
});

test("another user's token makes another session", async (t) => {
  const { getToken } = giver(
    () => server.token({ sub: "ann", ...brief }),
    () => server.token({ sub: "bob" }),
  );
  const connection = client(t, server, { getToken });
  const channel = channelName();
  const { data } = await follow(connection, channel);
  await until(() => connection.user === "bob");
  await server.publish(channel, 1);
  await until(() => data.length);
});

test("without getToken a token's end is the end", async (t) => {
  const connection = client(t, server, { token: await expired() });
  const { code } = await becomes(connection, "closed");
  assert.equal(code, 4005);
});

test("a token that is not valid is the end", async (t) => {
  const connection = client(t, server, { token: "nonsense" });
  const waiting = connection.publish("a.b", 1);
  const subscription = connection.subscribe("a.b", () => {});
  const closed = becomes(connection, "closed");
  await assert.rejects(waiting, { name: "GalecastError", code: "closed" });
  await assert.rejects(subscription.ready, { code: "closed" });
  assert.equal((await closed).code, 4501);
});

test("a token that was refused is not used again", async (t) => {
  const { getToken, reasons } = giver(() => "nonsense");
  const connection = client(t, server, { getToken });
  await state(connection, "closed");
  assert.deepEqual(reasons, ["connect"]);
});

test("what the new token does not grant ends, and the rest goes on", async (t) => {
  const [kept, lost] = [channelName("kept"), channelName("lost")];
  const { getToken } = giver(
    () => server.token({ ...brief, grants: { ">": ["subscribe"] } }),
    () => server.token({ grants: { "kept.>": ["subscribe"] } }),
  );
  const connection = client(t, server, { getToken });
  const first = await follow(connection, kept);
  const second = await follow(connection, lost);
  const { code } = await heard(second.subscription, "ended");
  assert.equal(code, "forbidden");
  assert.equal(second.subscription.state, "ended");
  await server.publish(kept, 1);
  await until(() => first.data.length);
});

test("a user whose sessions were ended stays away", async (t) => {
  const sub = channelName("user");
  const connection = client(t, server, { token: await server.token({ sub }) });
  await state(connection, "connected");
  const closed = becomes(connection, "closed");
  await server.request("DELETE", `/v1/users/${sub}/sessions`);
  assert.equal((await closed).code, 4502);
});

test("no token reaches an address", async (t) => {
  const wire = watched();
  const token = await server.token();
  const connection = client(t, server, { token, WebSocket: wire.WebSocket });
  for (const _ of numbers(2)) {
    await state(connection, "connected");
    connection.pause();
    connection.resume();
  }
  assert.ok(wire.sockets.length >= 2);
  assert.ok(wire.sockets.every(({ url }) => url.endsWith("/v1/ws")));
});

for (const [how, getToken] of Object.entries({
  "throws at once": () => { throw new Error("no token today"); },
  "rejects": async () => { throw new Error("no token today"); },
  "gives no string": async () => ({ token: "x", expires_s: 60 }),
})) {
  test(`a getToken that ${how} is asked again, and the reason is told`, async (t) => {
    // One that threw at once left a rejection behind that nobody handled, which ends a program.
    const connection = client(t, server, { getToken });
    const { reason } = await becomes(connection, "waiting");
    assert.match(reason, how === "gives no string" ? /no string/ : /no token today/);
  });
}

test("a token that still counts is used while no newer one can be had", async (t) => {
  // It was thrown away with the first attempt to replace it, and the client stayed away.
  const reasons = [];
  const token = await server.token({ ttl_s: 60, sub: "eve" });
  const connection = client(t, long, {
    getToken({ reason }) {
      reasons.push(reason);
      if (reasons.length > 1) throw new Error("the backend is away");
      return token;
    },
  });
  await state(connection, "connected");
  await until(() => reasons.length > 1, "it was warned");
  connection.pause();
  connection.resume();
  await state(connection, "connected");
  assert.equal(connection.user, "eve");
  assert.ok(!reasons.includes("expired"));
});

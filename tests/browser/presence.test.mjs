/** Who is present: a set that stays in step. */

import assert from "node:assert/strict";

import { heard, numbers, until } from "./conditions.mjs";
import { client, follow, serve, test } from "./rig.mjs";
import { Scripted, polite } from "./scripted.mjs";
import { channelName } from "./server.mjs";
import { WebSocket } from "./wire.mjs";

const server = await serve();
const present = { presence: true };

/** The members that a subscription knows, as session -> info. */
function seen(subscription) {
  return Object.fromEntries([...subscription.members].map(([key, member]) => [key, member.info]));
}

test("two connections see each other come, change and go", async (t) => {
  const channel = channelName();
  const ann = client(t, server, { token: await server.token({ sub: "ann" }) });
  const { subscription } = await follow(ann, channel, present);
  const actions = [];
  subscription.addEventListener("members", ({ action, member }) => {
    actions.push([action, member?.user]);
  });
  assert.deepEqual([...subscription.members.values()], [
    { session: ann.session, user: "ann", info: {} },
  ]);

  const bob = client(t, server, { token: await server.token({ sub: "bob" }) });
  const other = (await follow(bob, channel, present)).subscription;
  const { session } = bob;
  await until(() => subscription.members.size === 2);
  assert.deepEqual(seen(other), seen(subscription));

  await other.setPresence({ typing: true });
  await until(() => subscription.members.get(session)?.info.typing);
  assert.deepEqual(seen(subscription), { [ann.session]: {}, [session]: { typing: true } });
  await until(() => other.members.get(session)?.info.typing, "one's own entry");

  bob.close();
  await until(() => subscription.members.size === 1);
  assert.deepEqual(actions, [
    ["join", "bob"],
    ["update", "bob"],
    ["leave", "bob"],
  ]);
});

test("who does not ask for presence is present and knows nobody", async (t) => {
  const channel = channelName();
  const silent = client(t, server);
  const { subscription } = await follow(silent, channel);
  const watching = await follow(client(t, server), channel, present);
  assert.equal(subscription.members.size, 0);
  assert.ok(watching.subscription.members.has(silent.session));
});

test("one's own entry is set again after every reconnect", async (t) => {
  const channel = channelName();
  const { subscription } = await follow(client(t, server), channel, present);
  const connection = client(t, server);
  const own = (await follow(connection, channel)).subscription;
  await own.setPresence({ name: "x" });
  for (const _ of numbers(2)) {
    const left = connection.session;
    connection.pause();
    await until(() => !subscription.members.has(left), "the old session is gone");
    connection.resume();
    await heard(own, "subscribed");
    const member = await until(() => subscription.members.get(connection.session));
    await until(() => subscription.members.get(connection.session).info.name === "x");
    assert.notEqual(member.session, left);
  }
  await own.setPresence({ name: "y" });
  await until(() => subscription.members.get(connection.session).info.name === "y");
});

test("one's own entry may be set before there is a connection", async (t) => {
  const channel = channelName();
  const { subscription } = await follow(client(t, server), channel, present);
  const connection = client(t, server);
  const own = connection.subscribe(channel);
  await own.setPresence("early");
  await until(() => subscription.members.get(connection.session)?.info === "early");
});

test("what changed while away is seen after the return", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const { subscription } = await follow(connection, channel, present);
  const leaving = client(t, server);
  await follow(leaving, channel);
  await until(() => subscription.members.size === 2);
  connection.pause();
  leaving.close();
  const coming = client(t, server);
  const come = (await follow(coming, channel)).subscription;
  await come.setPresence({ new: true });
  await until(async () => (await server.subscribers(channel)) === 1, "the others are gone");
  const changed = heard(subscription, "members", ({ action }) => action === "sync");
  connection.resume();
  await changed;
  const expected = { [connection.session]: {}, [coming.session]: { new: true } };
  assert.deepEqual(seen(subscription), expected);
});

test("more members than one message holds", async (t) => {
  const channel = channelName();
  const sockets = numbers(150).map(() => {
    const socket = new WebSocket(`${server.url.replace("http", "ws")}/v1/ws`);
    socket.on("open", () => {
      socket.send('{"type":"connect","ref":1}');
      socket.send(JSON.stringify({ type: "subscribe", ref: 2, channel }));
    });
    return socket;
  });
  t.after(() => sockets.forEach((socket) => socket.terminate()));
  await until(async () => (await server.subscribers(channel)) === 150, "all are there");
  const connection = client(t, server);
  const { subscription } = await follow(connection, channel, present);
  await until(() => subscription.members.size === 151, "all members are known");
  for (const socket of sockets.slice(0, 100)) socket.close();
  await until(() => subscription.members.size === 51, "they are gone");

  const sessions = new Set();
  let cursor;
  do {
    const page = await connection.members(channel, { cursor });
    for (const { session } of page.members) sessions.add(session);
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(sessions, new Set(subscription.members.keys()));
});

test("who leaves while the pages are read does not come back with one of them", async (t) => {
  const channel = channelName();
  const member = (session) => ({ session, user: null, info: {} });
  const asked = [];
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket);
    const { type, ref } = message;
    const found = { ref, channel, members: [member("first")] };
    if (type === "subscribe") socket.say({ type: "subscribed", position: "p", more: true, ...found });
    if (type === "presence") asked.push(message);
  });
  const connection = client(t, scripted);
  const { subscription } = await follow(connection, channel, present);
  const actions = [];
  subscription.addEventListener("members", ({ action }) => actions.push(action));
  const [socket] = scripted.sockets;
  const say = (action, session) => {
    socket.say({ type: "presence", channel, action, member: member(session) });
  };
  const answer = (sessions, cursor) => {
    const { ref } = asked.at(-1);
    socket.say({ type: "members", ref, channel, members: sessions.map(member), cursor });
  };

  await until(() => asked.length === 1);
  assert.deepEqual([subscription.more, asked[0].cursor], [true, undefined]);
  // The server had made its page before this, or makes the next one before it knows.
  say("leave", "ghost");
  say("leave", "back");
  answer(["first", "ghost", "second"], "c1");
  await until(() => asked.length === 2);
  assert.equal(asked[1].cursor, "c1");
  say("join", "back");
  say("leave", "second");
  answer(["ghost", "second", "back", "third"]);
  await until(() => actions.at(-1) === "sync");
  assert.deepEqual([...subscription.members.keys()].sort(), ["back", "first", "third"]);
  assert.equal(subscription.more, false);
  assert.deepEqual(actions, ["leave", "leave", "join", "leave", "sync"]);
  // Whoever is there no more may come again.
  say("join", "ghost");
  await until(() => subscription.members.has("ghost"));
});

test("there is an end to the pages that are read", async (t) => {
  const channel = channelName();
  let pages = 0;
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket);
    const { type, ref } = message;
    const members = [{ session: `s${pages}`, user: null, info: {} }];
    const found = { ref, channel, members };
    if (type === "subscribe") socket.say({ type: "subscribed", position: "p", more: true, ...found });
    if (type === "presence") socket.say({ type: "members", cursor: `c${(pages += 1)}`, ...found });
  });
  const connection = client(t, scripted);
  const { subscription } = await follow(connection, channel, present);
  await heard(subscription, "members", ({ action }) => action === "sync");
  await connection.ping();
  assert.deepEqual([pages, subscription.more], [10, true]);
});

test("members are read page by page", async (t) => {
  const few = await serve({ "limits.members_per_reply": 2 });
  const channel = channelName();
  const clients = numbers(5).map(() => client(t, few));
  for (const each of clients) await follow(each, channel);
  const pages = [];
  let cursor;
  do {
    const page = await clients[0].members(channel, { cursor });
    pages.push(page.members.map(({ session }) => session));
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(
    pages.map((page) => page.length),
    [2, 2, 1],
  );
  assert.deepEqual(new Set(pages.flat()), new Set(clients.map(({ session }) => session)));
});

test("an entry that cannot be set says why", async (t) => {
  const token = await server.token({ grants: { ">": ["subscribe"] } });
  const { subscription } = await follow(client(t, server, { token }), channelName());
  await assert.rejects(subscription.setPresence({}), { name: "GalecastError", code: "forbidden" });
  const other = await follow(client(t, server), channelName());
  const large = other.subscription.setPresence("x".repeat(5000));
  await assert.rejects(large, { code: "too_large" });
  await assert.rejects(other.subscription.setPresence(1n), { code: "invalid_data" });
});

/** Connections break; nothing is lost, nothing comes twice, or one is told. */

import assert from "node:assert/strict";

import { becomes, heard, numbers, state, until } from "./conditions.mjs";
import { client, follow, ownProxy, ownServer, serve, settled, test } from "./rig.mjs";
import { Scripted, polite } from "./scripted.mjs";
import { channelName } from "./server.mjs";
import { watched } from "./wire.mjs";

const server = await serve();

/** Note the states that a connection goes through. */
function states(connection) {
  const seen = [];
  connection.addEventListener("state", (event) => seen.push(event.state));
  return seen;
}

test("what was missed while paused comes once and in order", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const seen = states(connection);
  const { data, subscription } = await follow(connection, channel);
  const again = [];
  subscription.addEventListener("subscribed", ({ recovered }) => again.push(recovered));
  subscription.addEventListener("reset", () => assert.fail("a reset"));
  for (const turn of numbers(3)) {
    await server.publish(channel, 10 * turn);
    await until(() => data.length === 4 * turn + 1);
    connection.pause();
    assert.deepEqual([connection.state, connection.transport], ["paused", null]);
    assert.equal(connection.session, null);
    await server.publishAll(channel, [1, 2, 3].map((n) => 10 * turn + n));
    connection.resume();
    await until(() => data.length === 4 * turn + 4);
  }
  assert.deepEqual(data, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
  assert.deepEqual(again, [true, true, true]);
  const round = ["paused", "connecting", "connected"];
  assert.deepEqual(seen, ["connected", ...round, ...round, ...round]);
});

test("a line that is cut again and again loses nothing and doubles nothing", async (t) => {
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  const seen = states(connection);
  const { data } = await follow(connection, channel);
  for (const n of numbers(200)) {
    await server.publish(channel, n);
    if (n % 40 === 20) {
      await state(connection, "connected");
      const waiting = becomes(connection, "waiting");
      proxy.cut();
      await waiting;
    }
  }
  await until(() => data.length >= 200);
  await settled(connection);
  assert.deepEqual(data, numbers(200));
  assert.ok(seen.filter((name) => name === "waiting").length >= 5);
});

test("resume comes back at once", async (t) => {
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  await state(connection, "connected");
  proxy.refuses = true;
  proxy.cut();
  // A few failures in a row, so that the pause would be long.
  await until(() => proxy.arrivals.length >= 4 && connection.state === "waiting");
  proxy.refuses = false;
  connection.resume();
  const { retryInMs } = await Promise.race([
    becomes(connection, "connected"),
    becomes(connection, "waiting"),
  ]);
  assert.equal(retryInMs, undefined, "it has failed once more");
});

/** What a page is to the library: a target whose events tell that it is online, say. */
function ownPage(t) {
  const page = new EventTarget();
  for (const verb of ["addEventListener", "removeEventListener"]) {
    globalThis[verb] = t.mock.fn(page[verb].bind(page));
  }
  t.after(() => {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  });
  return page;
}

/** Note the pauses of a connection; of what each may be at most it takes this share. */
function ownPauses(t, connection, share) {
  const told = { share, pauses: [] };
  t.mock.method(Math, "random", () => told.share);
  connection.addEventListener("state", ({ state, retryInMs }) => {
    if (state === "waiting") told.pauses.push(retryInMs);
  });
  return told;
}

test("a page that comes online comes back at once", async (t) => {
  const page = ownPage(t);
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  await state(connection, "connected");
  proxy.refuses = true;
  proxy.cut();
  // A few failures in a row, so that the pause would be long.
  await until(() => proxy.arrivals.length >= 4 && connection.state === "waiting");
  proxy.refuses = false;
  const seen = states(connection);
  page.dispatchEvent(new Event("online"));
  await becomes(connection, "connected");
  assert.ok(!seen.includes("waiting"), `${seen}`);
  connection.close();
  const listened = globalThis.addEventListener.mock.calls.map((call) => call.arguments);
  const forgotten = globalThis.removeEventListener.mock.calls.map((call) => call.arguments);
  assert.deepEqual(forgotten, listened);
});

test("a page that comes online begins with short pauses again", async (t) => {
  // After some failures the pause was nearly 30 s, and so it was again after one more attempt.
  const page = ownPage(t);
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  await state(connection, "connected");
  const told = ownPauses(t, connection, 0.001);
  proxy.refuses = true;
  proxy.cut();
  await until(() => told.pauses.length >= 5);
  told.share = 0.9;
  await until(() => told.pauses.at(-1) > 20_000, "it waits long");
  page.dispatchEvent(new Event("online"));
  await becomes(connection, "waiting");
  assert.equal(told.pauses.at(-1), 900);
});

for (const [transport, refusesWebSocket] of [["websocket", false], ["sse", false], ["sse", true]]) {
  const how = refusesWebSocket ? "after WebSocket was refused" : "alone";
  test(`a page that comes online does not wait for an attempt that hangs: ${transport} ${how}`, async (t) => {
    // It was left to its 10 s, and the pause behind that.
    const page = ownPage(t);
    const proxy = await ownProxy(t, server);
    proxy.refusesWebSocket = refusesWebSocket;
    const transports = refusesWebSocket ? ["websocket", "sse"] : [transport];
    const connection = client(t, proxy, { transports });
    await state(connection, "connected");
    connection.pause();
    // What fetch has kept open would be used again.
    proxy.cut();
    await server.publish(channelName(), 1);
    proxy.holdAnswers();
    let time = performance.now();
    t.mock.method(performance, "now", () => time);
    const expected = proxy.arrivals.length + (refusesWebSocket ? 2 : 1);
    connection.resume();
    await until(() => proxy.arrivals.length === expected, "it hangs");
    const seen = states(connection);
    proxy.answerAgain();
    // One that has just begun is given its time.
    page.dispatchEvent(new Event("online"));
    assert.deepEqual(seen, []);
    time += 1001;
    page.dispatchEvent(new Event("online"));
    await state(connection, "connected");
    // With what it had come to: not once more with what was refused before.
    assert.equal(proxy.arrivals.length, expected + 1);
    assert.deepEqual(seen, ["connecting", "connected"]);
    assert.equal(connection.transport, transport);
  });
}

test("the pause before coming back is told, and grows up to 30 s", async (t) => {
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  await state(connection, "connected");
  const told = ownPauses(t, connection, 0.001);
  proxy.refuses = true;
  proxy.cut();
  await until(() => told.pauses.length >= 8);
  assert.deepEqual(told.pauses.slice(0, 8), [1, 2, 4, 8, 16, 30, 30, 30]);
});

test("a server that crashed has begun anew, and says so", async (t) => {
  const own = await ownServer(t);
  const channel = channelName();
  const connection = client(t, own);
  const { data, subscription } = await follow(connection, channel);
  await own.publish(channel, "before");
  await until(() => data.length === 1);
  const { position } = subscription;
  const lost = becomes(connection, "waiting");
  await own.kill();
  await lost;
  const waiting = connection.publish(channel, "meanwhile");
  const reset = heard(subscription, "reset");
  const again = heard(subscription, "subscribed");
  await own.restart();
  connection.resume();
  assert.equal((await again).recovered, false);
  assert.equal((await reset).position.length > 0, true);
  assert.equal((await waiting).duplicate, false);
  await until(() => data.length === 2);
  assert.deepEqual(data, ["before", "meanwhile"]);
  assert.notEqual(subscription.position, position);
});

test("a channel that begins anew during the session resets its subscription", async (t) => {
  const channel = channelName();
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket);
    const { type, ref } = message;
    if (type === "subscribe") socket.say({ type: "subscribed", ref, channel, position: "p1" });
  });
  const connection = client(t, scripted);
  const { subscription } = await follow(connection, channel);
  const reset = heard(subscription, "reset");
  scripted.sockets[0].say({ type: "reset", channel, position: "p9" });
  assert.equal((await reset).position, "p9");
  assert.equal(subscription.position, "p9");
  connection.pause();
  connection.resume();
  await until(() => scripted.sockets[1]?.heard[1]?.since === "p9");
});

test("a drained server is left in peace as long as it asked for", async (t) => {
  const own = await ownServer(t, { "drain.retry_spread_ms": 3000 });
  const proxy = await ownProxy(t, own);
  const channel = channelName();
  const wire = watched();
  const connection = client(t, proxy, { WebSocket: wire.WebSocket });
  await follow(connection, channel);
  let told;
  connection.addEventListener("state", (event) => {
    if (event.state === "waiting") told ??= event;
  });
  const waiting = becomes(connection, "waiting");
  const stopped = own.stop();
  await waiting;
  const [closing] = wire.messages("closing");
  const came = proxy.arrivals.length;
  // Not even somebody who is in a hurry.
  connection.resume();
  await stopped;
  await own.restart();
  await state(connection, "connected");
  assert.equal(closing.code, 4001);
  assert.ok(told.retryInMs >= closing.retry_in_ms);
  // Timers may be a little early.
  assert.ok(proxy.arrivals[came] - closing.at >= closing.retry_in_ms - 20);
});

test("a connection that went silent is noticed, one that is just quiet stays", async (t) => {
  const own = await ownServer(t, { "session.ping_s": 1 });
  const proxy = await ownProxy(t, own);
  const channel = channelName();
  const wire = watched();
  const quiet = client(t, own, { WebSocket: wire.WebSocket });
  await state(quiet, "connected");
  const { session } = quiet;
  const { data } = await follow(client(t, proxy), channel);
  proxy.hold();
  await own.publish(channel, "unheard");
  await until(() => data.length === 1);
  assert.deepEqual(data, ["unheard"]);
  await until(() => wire.messages("pong").length >= 2, "it asks the server now and then");
  assert.equal(quiet.session, session);
});

test("many subscriptions come back within the server's rate", async (t) => {
  const wire = watched();
  const connection = client(t, server, { WebSocket: wire.WebSocket });
  const prefix = channelName();
  const all = numbers(300).map((n) => connection.subscribe(`${prefix}.${n}`, () => {}));
  await Promise.all(all.map(({ ready }) => ready));
  connection.pause();
  connection.resume();
  await until(() => all.every((each) => each.state === "live"), "all are back");
  assert.equal(wire.commands("subscribe").length, 600);
  assert.deepEqual(wire.messages("error"), []);
  assert.deepEqual(wire.messages("closing"), []);
});

test("a subscription that is refused for the moment is tried again", async (t) => {
  const channel = channelName();
  let asked = 0;
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket);
    const { type, ref } = message;
    if (type !== "subscribe") return;
    asked += 1;
    if (asked > 1) socket.say({ type: "subscribed", ref, channel, position: "p" });
    else socket.say({ type: "error", ref, code: "unavailable", message: "later", retry: true });
  });
  const subscription = client(t, scripted).subscribe(channel, () => {});
  await subscription.ready;
  assert.equal(asked, 2);
});

test("subscriptions may change while there is no connection", async (t) => {
  const [left, kept, anew, added] = numbers(4).map(() => channelName());
  const connection = client(t, server);
  const first = await follow(connection, left);
  const second = await follow(connection, kept);
  const third = await follow(connection, anew);
  connection.pause();
  first.subscription.unsubscribe();
  third.subscription.unsubscribe();
  const fourth = follow(connection, added);
  const fifth = follow(connection, anew);
  for (const channel of [left, kept, anew, added]) await server.publish(channel, "missed");
  connection.resume();
  const [{ data: here }, { data: again }] = await Promise.all([fourth, fifth]);
  for (const channel of [left, kept, anew, added]) await server.publish(channel, "live");
  await until(() => second.data.length === 2 && here.length === 1 && again.length === 1);
  assert.deepEqual([first.data, second.data], [[], ["missed", "live"]]);
  assert.deepEqual([third.data, again, here], [[], ["live"], ["live"]]);
  assert.equal(await server.subscribers(left), 0);
});

test("an operator ends a session for good", async (t) => {
  const wire = watched();
  const connection = client(t, server, { WebSocket: wire.WebSocket });
  const { subscription } = await follow(connection, channelName());
  const closed = becomes(connection, "closed");
  const ended = heard(subscription, "ended");
  await server.request("DELETE", `/v1/sessions/${connection.session}`);
  const { code, reason } = await closed;
  assert.deepEqual([code, reason], [4502, "ended"]);
  await ended;
  assert.equal(subscription.state, "ended");
  await assert.rejects(connection.publish("a.b", 1), { code: "closed" });
  connection.resume();
  assert.equal(connection.state, "closed");
  assert.equal(wire.sockets.length, 1);
});

for (const code of [4500, 4567, 4999]) {
  test(`the code ${code} is an end`, async (t) => {
    const scripted = await Scripted.start(t, (message, socket) => {
      polite(message, socket);
      if (message.type === "subscribe") socket.close(code, "no more");
    });
    const connection = client(t, scripted);
    const closed = becomes(connection, "closed");
    const subscription = connection.subscribe("a.b");
    assert.equal((await closed).code, code);
    await assert.rejects(subscription.ready, { code: "closed" });
    assert.equal(scripted.sockets.length, 1);
  });
}

for (const code of [1000, 4002, 4499]) {
  test(`the code ${code} is none`, async (t) => {
    const scripted = await Scripted.start(t, (message, socket) => {
      polite(message, socket);
      if (scripted.sockets.length === 1) socket.close(code);
    });
    const connection = client(t, scripted);
    await until(() => scripted.sockets.length === 2 && connection.state === "connected");
  });
}

test("what it does not know is ignored", async (t) => {
  const channel = channelName();
  const event = { channel, position: "p2", id: "i", name: "n", data: 1, tags: {}, time: 1 };
  const scripted = await Scripted.start(t, (message, socket) => {
    polite(message, socket, { later: { more: true } });
    const { type, ref } = message;
    if (type !== "subscribe") return;
    socket.say({ type: "weather", rain: true });
    socket.say({ type: "event", ...event, channel: "another.one" });
    socket.say({ type: "presence", channel: "another.one", action: "leave", member: {} });
    socket.say({ type: "reset", channel: "another.one", position: "p" });
    socket.say({ type: "error", code: "bad_request", message: "no ref", retry: false });
    socket.say({ type: "subscribed", ref, channel, position: "p1", colour: "red" });
    socket.say({ type: "presence", channel, action: "shrug", member: { session: "x" } });
    socket.say({ type: "event", ...event, size: 3 });
  });
  const connection = client(t, scripted);
  const { data } = await follow(connection, channel);
  await until(() => data.length === 1);
  assert.deepEqual(data, [1]);
  await connection.ping();
  assert.equal(scripted.sockets.length, 1);
});

test("an event that comes again though it was dealt with is dropped", async (t) => {
  // A session that was cut off on the server's side may hold events that the next one repeats.
  const channel = channelName();
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => {
    data.push(event.data);
    // In the middle of a batch.
    if (event.data === 3) proxy.cut();
  });
  await subscription.ready;
  await server.publishAll(channel, numbers(20));
  await until(() => data.length >= 20);
  await settled(connection);
  assert.deepEqual(data, numbers(20));
});

test("pausing within a handler resumes behind that event", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => {
    data.push(event.data);
    if (event.data === 3) connection.pause();
  });
  await subscription.ready;
  await server.publishAll(channel, numbers(10));
  await state(connection, "paused");
  connection.resume();
  await until(() => data.length >= 10);
  await settled(connection);
  assert.deepEqual(data, numbers(10));
});

test("questions that were asked before the line broke are answered after", async (t) => {
  const channel = channelName();
  await server.publish(channel, 1);
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  await state(connection, "connected");
  proxy.holdAnswers();
  const questions = Promise.all([connection.history(channel), connection.members(channel)]);
  proxy.cut();
  const [{ events }, { members }] = await questions;
  assert.deepEqual([events.length, members.length], [1, 0]);
});

test("questions that were asked in the moment of a pause are answered after", async (t) => {
  const channel = channelName();
  await server.publish(channel, 1);
  const connection = client(t, server);
  await state(connection, "connected");
  const questions = [connection.history(channel), connection.members(channel)];
  connection.pause();
  questions.push(connection.history(channel));
  connection.resume();
  const [{ events }, { members }, later] = await Promise.all(questions);
  assert.deepEqual([events.length, members.length, later.events.length], [1, 0, 1]);
});

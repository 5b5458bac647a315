/** The end: `close()`, and what is refused at the beginning. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";

import { connect } from "../../static/galecast.js";
import { becomes, heard, state, until } from "./conditions.mjs";
import { client, follow, ownProxy, serve, test } from "./rig.mjs";
import { channelName } from "./server.mjs";
import { WebSocket } from "./wire.mjs";

const server = await serve();

test("close settles all that waits", async (t) => {
  const proxy = await ownProxy(t, server);
  const connection = client(t, proxy);
  const { subscription } = await follow(connection, channelName());
  // From here on nothing is answered.
  proxy.hold();
  const waiting = [
    connection.publish(channelName(), 1),
    connection.history(channelName()),
    connection.members(channelName()),
    connection.ping(),
    subscription.setPresence({}),
    connection.subscribe(channelName()).ready,
  ];
  const iterated = connection.subscribe(channelName())[Symbol.asyncIterator]().next();
  connection.close();
  for (const { status, reason } of await Promise.allSettled(waiting)) {
    assert.deepEqual([status, reason?.name, reason?.code], ["rejected", "GalecastError", "closed"]);
  }
  assert.deepEqual(await iterated, { done: true, value: undefined });
});

test("close before there is a connection settles all that waits", async (t) => {
  const connection = client(t, server);
  const waiting = [
    connection.publish(channelName(), 1),
    connection.history(channelName()),
    connection.ping(),
    connection.subscribe(channelName()).ready,
    connection.subscribe(channelName()).setPresence({}),
  ];
  connection.close();
  for (const { status, reason } of await Promise.allSettled(waiting)) {
    assert.deepEqual([status, reason?.code], ["rejected", "closed"]);
  }
});

test("nothing goes after close", async (t) => {
  const connection = client(t, server);
  const { subscription } = await follow(connection, channelName());
  const closed = becomes(connection, "closed");
  const ended = heard(subscription, "ended");
  connection.close();
  assert.equal(connection.state, "closed");
  assert.equal((await closed).code, undefined);
  assert.equal((await ended).code, undefined);
  assert.equal(subscription.state, "ended");
  connection.addEventListener("state", () => assert.fail("it has changed again"));
  connection.close();
  connection.pause();
  connection.resume();
  assert.equal(connection.state, "closed");
  assert.deepEqual([connection.transport, connection.session], [null, null]);
  const refused = { name: "GalecastError", code: "closed" };
  assert.throws(() => connection.subscribe(channelName()), refused);
  await assert.rejects(connection.publish(channelName(), 1), refused);
  await assert.rejects(connection.history(channelName()), refused);
  await assert.rejects(connection.ping(), refused);
  await assert.rejects(subscription.setPresence({}), refused);
  subscription.unsubscribe();
});

test("the server sees the end at once", async (t) => {
  const connection = client(t, server, { token: await server.token({ sub: "leaving" }) });
  await state(connection, "connected");
  assert.equal((await server.sessions("leaving")).length, 1);
  connection.close();
  await until(async () => (await server.sessions("leaving")).length === 0, "it is gone");
});

test("closing within a handler is fine", async (t) => {
  const channel = channelName();
  const connection = client(t, server);
  const data = [];
  const subscription = connection.subscribe(channel, (event) => {
    data.push(event.data);
    connection.close();
  });
  await subscription.ready;
  const ended = heard(subscription, "ended");
  await server.publishAll(channel, [1, 2, 3]);
  await ended;
  assert.deepEqual(data, [1]);
});

test("an address that is none is refused", () => {
  for (const url of ["", "nonsense", "ftp://example.org", "file:///tmp", "http://"]) {
    assert.throws(() => connect(url, { WebSocket }), TypeError, url);
  }
  // There is no page here whose address it could take.
  assert.throws(() => connect(undefined, { WebSocket }), TypeError);
});

test("options that make no sense are refused", () => {
  const wrong = [
    { encoding: "xml" },
    { encoding: {} },
    { encoding: { encode() {} } },
    { transports: [] },
    { transports: ["pigeon"] },
  ];
  for (const options of wrong) {
    const attempt = () => connect(server.url, { WebSocket, ...options });
    assert.throws(attempt, TypeError, JSON.stringify(options));
  }
});

for (const change of [
  (url) => url.replace("http", "ws"),
  (url) => new URL(url),
  (url) => `${url}/`,
  (url) => `${url}/?x=1#y`,
]) {
  test(`an address may be written as ${change("http://host")}`, async (t) => {
    const connection = connect(change(server.url), { WebSocket });
    t.after(() => connection.close());
    await connection.ping();
  });
}

test("a path before /v1 is kept", async (t) => {
  const urls = [];
  class Noted extends WebSocket {
    constructor(url, ...rest) {
      urls.push(url);
      super(server.url.replace("http", "ws") + "/v1/ws", ...rest);
    }
  }
  const connection = client(t, { url: "https://example.org/live/" }, { WebSocket: Noted });
  await connection.ping();
  assert.deepEqual(urls, ["wss://example.org/live/v1/ws"]);
});

/** Run a program that uses the library; returns its exit code and what it printed. */
async function run(t, program) {
  const library = new URL("../../static/galecast.js", import.meta.url);
  const wire = new URL("wire.mjs", import.meta.url);
  const text = `
    const { setTimeout: begin, clearTimeout: end } = globalThis;
    const timers = new Map();
    globalThis.setTimeout = (act, ms = 0, ...rest) => {
      const timer = begin((...parts) => { timers.delete(timer); act(...parts); }, ms, ...rest);
      if (new Error().stack.split("\\n")[2].includes("galecast.js")) timers.set(timer, ms);
      return timer;
    };
    globalThis.clearTimeout = (timer) => { timers.delete(timer); end(timer); };
    function left() {
      for (const ms of timers.values()) if (ms > 2000) console.log("a timer of " + ms + " ms");
    }
    const { WebSocket } = await import(${JSON.stringify(wire)});
    const { connect } = await import(${JSON.stringify(library)});
    const url = ${JSON.stringify(server.url)};
    ${program}
    left();
  `;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", text]);
  t.after(() => child.kill("SIGKILL"));
  let printed = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (data) => (printed += data));
  }
  const code = await new Promise((resolve) => child.once("close", resolve));
  return { code, printed };
}

const USE = `
  const { ready } = connection.subscribe("exit.channel", () => {}, { presence: true });
  await ready;
  await connection.publish("exit.channel", 1);
  await connection.ping();
  connection.close();
`;

const programs = {
  "after use": `const connection = connect(url, { WebSocket }); ${USE}`,
  "after use over a stream": `const connection = connect(url, { transports: ["sse"] }); ${USE}`,
  "while it connects": "connect(url, { WebSocket }).close();",
  "while it connects a stream": 'connect(url, { transports: ["sse"] }).close();',
  "while it waits": `
    const connection = connect("http://127.0.0.1:9", { WebSocket });
    connection.addEventListener("state", ({ state }) => {
      if (state !== "waiting") return;
      connection.close();
      left();
    });`,
  "while publishes are paced": `
    const connection = connect(url, { WebSocket });
    const wait = [...Array(200).keys()].map((n) => connection.publish("exit.paced", n));
    await wait[0];
    connection.close();
    await Promise.allSettled(wait);`,
  "while a publish waits for its answer": `
    const connection = connect(url, { WebSocket });
    await connection.ping();
    const sent = connection.publish("exit.sent", 1);
    connection.close();
    await sent.catch(() => {});`,
  "while a refused command waits to be sent again": `
    const connection = connect(url, { WebSocket });
    await connection.ping();
    const all = [...Array(1100).keys()].map((n) => connection.subscribe("exit.many." + n).ready);
    await all[0];
    connection.close();
    await Promise.allSettled(all);`,
};

for (const [when, program] of Object.entries(programs)) {
  test(`nothing keeps the process alive when it is closed ${when}`, async (t) => {
    const { code, printed } = await run(t, program);
    assert.deepEqual([code, printed], [0, ""]);
  });
}

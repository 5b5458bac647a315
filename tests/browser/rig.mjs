/** What most tests need: a server for the file, and clients that are closed with their test. */

import { after, test as nodeTest } from "node:test";

import { connect } from "../../static/galecast.js";
import { Proxy } from "./proxy.mjs";
import { Server } from "./server.mjs";
import { WebSocket } from "./wire.mjs";

/** A test that may take a minute and no more. */
export const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);

/** Start a server that ends with the tests of the file. */
export async function serve(settings) {
  const server = await Server.start(settings);
  after(() => server.stop());
  return server;
}

/** Start a server of the test's own. */
export async function ownServer(t, settings) {
  const server = await Server.start(settings);
  t.after(() => server.stop());
  return server;
}

/** Put a proxy of the test's own before a server. */
export async function ownProxy(t, server) {
  const proxy = await Proxy.start(server.port);
  t.after(() => proxy.stop());
  return proxy;
}

/** Connect to a server or a proxy, with the package `ws` unless told otherwise. */
export function client(t, place, options = {}) {
  const connection = connect(place.url, { WebSocket, ...options });
  t.after(() => connection.close());
  return connection;
}

/** Wait until all that the server had sent has arrived; the line may break meanwhile. */
export async function settled(connection) {
  await connection.history("settled", { limit: 1 });
}

/** Subscribe; returns the subscription, live, and the list that its events' data goes to. */
export async function follow(connection, channel, options) {
  const data = [];
  const subscription = connection.subscribe(channel, (event) => data.push(event.data), options);
  await subscription.ready;
  return { subscription, data };
}

/** Beginning in the past: at a time, across a restart, from an archive far larger than memory keeps. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { becomes, numbers, until } from "./conditions.mjs";
import { client, follow, ownServer, test } from "./rig.mjs";

const CHANNEL = "archived.a";

/** Start a server that archives, with a history of ten events. */
async function archiving(t) {
  const folder = mkdtempSync(join(tmpdir(), "archive-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const config = join(folder, "galecast.toml");
  writeFileSync(
    config,
    `[[channels]]\nmatch = ">"\narchive = true\nhistory_size = 10\nclient_publish = true\n` +
      `[archive]\nurl = "sqlite:///${folder}/archive.db"\n`,
  );
  return ownServer(t, { config });
}

for (const transport of ["websocket", "sse"]) {
  const transports = [transport];

  test(`${transport}: all that was ever published, then what comes`, async (t) => {
    const server = await archiving(t);
    await server.publishAll(CHANNEL, numbers(250));
    const { data } = await follow(client(t, server, { transports }), CHANNEL, { from: 0 });
    await server.publish(CHANNEL, 250);
    await until(() => data.length === 251);
    assert.deepEqual(data, numbers(251));
  });

  test(`${transport}: a restart of the server is no loss`, async (t) => {
    const server = await archiving(t);
    const connection = client(t, server, { transports });
    const { data, subscription } = await follow(connection, CHANNEL);
    let resets = 0;
    subscription.addEventListener("reset", () => (resets += 1));
    await server.publishAll(CHANNEL, numbers(30));
    await until(() => data.length === 30);
    await server.kill();
    await becomes(connection, "waiting");
    await server.restart();
    await server.publishAll(CHANNEL, [30, 31]);
    await until(() => data.length === 32);
    assert.deepEqual(data, numbers(32));
    assert.equal(resets, 0);
  });
}

test("each channel of a stream has a time of its own", async (t) => {
  const server = await archiving(t);
  await server.publishAll("archived.b", numbers(3));
  await server.publishAll("archived.c", numbers(3));
  const connection = client(t, server, { transports: ["sse"] });
  const b = follow(connection, "archived.b", { from: 0 });
  const c = follow(connection, "archived.c", { from: Date.now() + 60_000 });
  const all = await Promise.all([b, c]);
  await until(() => all[0].data.length === 3);
  await server.publish("archived.c", "live");
  await until(() => all[1].data.length === 1);
  assert.deepEqual(all[0].data, numbers(3));
  assert.deepEqual(all[1].data, ["live"]);
});

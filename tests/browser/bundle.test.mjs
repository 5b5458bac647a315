/** An application gets the library from its package, and a bundler puts both into one file. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";

import { serve, test } from "./rig.mjs";
import { channelName } from "./server.mjs";

const run = promisify(execFile);
const STATIC = fileURLToPath(new URL("../../static", import.meta.url));

const server = await serve();

test("the package is installed, bundled, and works", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "galecast-"));
  t.after(() => rm(folder, { recursive: true }));
  const npm = (...parts) => run("npm", [...parts, "--offline", "--no-audit"], { cwd: folder });

  const packed = JSON.parse((await npm("pack", STATIC, "--json")).stdout);
  const [{ filename, files }] = Array.isArray(packed) ? packed : Object.values(packed);
  assert.deepEqual(
    files.map(({ path }) => path).sort(),
    ["galecast.d.ts", "galecast.js", "package.json"],
  );
  await writeFile(join(folder, "package.json"), '{"private":true}');
  await npm("install", `./${filename}`);

  const app = `
    import { connect } from "galecast";
    const connection = connect(process.argv[2], { transports: ["sse"] });
    console.log((await connection.publish(process.argv[3], "from the bundle")).duplicate);
    connection.close();
  `;
  await writeFile(join(folder, "app.mjs"), app);
  const outfile = join(folder, "bundle.mjs");
  await build({
    absWorkingDir: folder,
    entryPoints: ["app.mjs"],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    outfile,
    logLevel: "silent",
  });
  assert.ok(!/from ?"galecast"/.test(await readFile(outfile, "utf8")));
  await rm(join(folder, "node_modules"), { recursive: true });
  const channel = channelName();
  // Node.js 18 has no global crypto, which the library does not need.
  const { stdout } = await run(process.execPath, [outfile, server.url, channel]);
  assert.equal(stdout, "false\n");
  assert.equal((await server.kept(channel))[0].data, "from the bundle");
});

test("what is not used leaves nothing behind", async () => {
  const { outputFiles } = await build({
    stdin: { contents: `import "./galecast.js"; console.log(1);`, resolveDir: STATIC },
    bundle: true,
    minify: true,
    format: "esm",
    write: false,
    logLevel: "silent",
  });
  assert.equal(outputFiles[0].text.trim(), "console.log(1);");
});

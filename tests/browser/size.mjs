/** Print what static/galecast.js weighs minified and gzipped, in bytes; fail over the budget. */

import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const BUDGET_BYTES = 6 * 1024;

const { outputFiles } = await build({
  entryPoints: [fileURLToPath(new URL("../../static/galecast.js", import.meta.url))],
  format: "esm",
  legalComments: "none",
  minify: true,
  target: "es2022",
  write: false,
});
const minified = outputFiles[0].contents;
const gzipped = gzipSync(minified, { level: 9 }).length;
console.log(
  `static/galecast.js: ${minified.length} bytes minified, ${gzipped} gzipped` +
    ` (at most ${BUDGET_BYTES})`,
);
process.exitCode = gzipped > BUDGET_BYTES ? 1 : 0;

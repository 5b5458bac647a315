/** Print what a bundler makes of static/galecast.js, minified and gzipped; fail over the budget. */

import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

// So that it is at most 6 KB by every gzip: those of GNU and of Python make up to 56 bytes more.
const BUDGET_BYTES = 6 * 1024 - 64;

const { outputFiles } = await build({
  entryPoints: [fileURLToPath(new URL("../../static/galecast.js", import.meta.url))],
  format: "esm",
  legalComments: "none",
  minify: true,
  target: "es2022",
  // As for an application: what is not used any more is left out.
  treeShaking: true,
  write: false,
});
const minified = outputFiles[0].contents;
const gzipped = gzipSync(minified, { level: 9 }).length;
console.log(
  `static/galecast.js: ${minified.length} bytes minified, ${gzipped} gzipped` +
    ` (at most ${BUDGET_BYTES})`,
);
process.exitCode = gzipped > BUDGET_BYTES ? 1 : 0;

/** Make the declarations of static/galecast.js from its JSDoc: `node types.mjs FOLDER`. */

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const folder = resolve(process.argv[2]);

const project = ["-p", here("tsconfig.types.json"), "--outDir", folder];
const { status } = spawnSync(here("node_modules/.bin/tsc"), project, { stdio: "inherit" });
if (status !== 0) process.exit(1);

// TypeScript leaves out what is marked as internal, but for types; those it exports all.
const source = readFileSync(here("../../static/galecast.js"), "utf8");
const internal = [...source.matchAll(/@internal\s[\s*]*@typedef \{.*\} (\w+)/g)].map(([, name]) => name);
const file = join(folder, "galecast.d.ts");
let declared = readFileSync(file, "utf8");
for (const name of internal) {
  declared = declared.replace(new RegExp(`^export type ${name} = [^]*?^\\S*;\\n`, "m"), "");
}
writeFileSync(file, declared);

/** A real node in a process of its own, as an operator runs it. */

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { PATIENCE_MS, until } from "./conditions.mjs";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const VENV = `${ROOT}.venv/bin/python`;
const PYTHON = process.env.TEST_PYTHON ?? (existsSync(VENV) ? VENV : "python3");
const KEY = "Bearer dev.galecast";
const running = new Set();

// Whatever ends this process, no server outlives it.
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));

/** The environment that settings such as {"session.ping_s": 1} mean. */
function environment(settings) {
  const named = Object.entries(settings).map(([name, value]) => [
    `GALECAST_${name.toUpperCase().replaceAll(".", "_")}`,
    typeof value === "object" ? JSON.stringify(value) : String(value),
  ]);
  return { ...process.env, GALECAST_LOG_FORMAT: "json", ...Object.fromEntries(named) };
}

/** A name that no other test uses. */
export function channelName(prefix = "test") {
  return `${prefix}.${randomUUID()}`;
}

export class Server {
  #child;
  #ended;
  #settings;
  log = "";
  port = 0;

  /** Start `galecast serve --dev` on a free port, or on the one given. */
  static async start(settings = {}, port = 0) {
    const server = new Server();
    server.#settings = settings;
    server.port = port;
    await server.restart();
    return server;
  }

  /** Start once more on the same port, after `stop` or `kill`. */
  async restart() {
    const command = ["-m", "server.cli", "serve", "--dev", "--port", String(this.port)];
    const child = spawn(PYTHON, command, {
      cwd: ROOT,
      env: environment(this.#settings),
      stdio: ["ignore", "ignore", "pipe"],
    });
    running.add(child);
    this.#child = child;
    this.#ended = new Promise((resolve) => {
      child.once("error", resolve);
      child.once("close", resolve);
    });
    this.#ended.then(() => running.delete(child));
    this.log = "";
    child.stderr.setEncoding("utf8").on("data", (text) => {
      this.log += text;
    });
    const listening = /listening on http:\/\/\S+?:(\d+)/;
    await until(() => listening.test(this.log) || !running.has(child), "the server listens");
    if (!running.has(child)) throw new Error(`the server ended:\n${this.log}`);
    this.port = Number(listening.exec(this.log)[1]);
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** End it as an operator does; what it has covered is written down then. */
  async stop() {
    if (!running.has(this.#child)) return;
    this.#child.kill("SIGTERM");
    const late = setTimeout(() => this.#child.kill("SIGKILL"), PATIENCE_MS);
    await this.#ended;
    clearTimeout(late);
  }

  /** End it as a crash does. */
  async kill() {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  /** Send a request with the API key; returns the answer's JSON, throws on a refusal. */
  async request(method, path, body) {
    const response = await fetch(this.url + path, {
      method,
      headers: { Authorization: KEY, "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text ? JSON.parse(text) : null;
  }

  /** Publish one event. */
  publish(channel, data, more = {}) {
    return this.request("POST", "/v1/events", { channel, data, ...more });
  }

  /** Publish many events in one request. */
  async publishAll(channel, values) {
    return (
      await this.request(
        "POST",
        "/v1/events",
        values.map((data) => ({ channel, data })),
      )
    ).results;
  }

  /** Return all events that the channel keeps, oldest first. */
  async kept(channel) {
    const path = `/v1/channels/${encodeURIComponent(channel)}/events?limit=1000`;
    return (await this.request("GET", path)).events;
  }

  /** Return how many sessions are subscribed to the channel. */
  async subscribers(channel) {
    const { channels } = await this.request("GET", `/v1/channels?prefix=${channel}`);
    return channels.find((each) => each.channel === channel)?.subscribers ?? 0;
  }

  /** Return the live sessions of a user. */
  async sessions(user) {
    return (await this.request("GET", `/v1/sessions?user=${user}`)).sessions;
  }

  /** Mint a token. */
  async token({
    sub = "u1",
    grants = { ">": ["subscribe", "publish", "presence", "history"] },
    ttl_s = 600,
  } = {}) {
    return (await this.request("POST", "/v1/tokens", { sub, grants, ttl_s })).token;
  }
}

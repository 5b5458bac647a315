/** A server that says what a test wants, for what no real one can be made to say. */

import { WebSocketServer } from "ws";

export class Scripted {
  #server;
  /** The sockets that came, in order; each with the messages that it sent as `heard`. */
  sockets = [];

  /** `answer(message, socket)` is called with each message; `socket.say(message)` answers. */
  static async start(t, answer) {
    const scripted = new Scripted();
    const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
    scripted.#server = server;
    server.on("connection", (socket) => {
      socket.heard = [];
      socket.say = (message) => socket.send(JSON.stringify(message));
      scripted.sockets.push(socket);
      socket.on("message", (data) => {
        const message = JSON.parse(data);
        socket.heard.push(message);
        answer(message, socket);
      });
    });
    await new Promise((resolve) => server.once("listening", resolve));
    t.after(() => {
      for (const socket of scripted.sockets) socket.terminate();
      return new Promise((resolve) => server.close(resolve));
    });
    return scripted;
  }

  get url() {
    return `http://127.0.0.1:${this.#server.address().port}`;
  }
}

/** Answer `connect` and `ping` as a server does. */
export function polite({ type, ref }, socket, more = {}) {
  const limits = { commands_per_s: 100, publishes_per_s: 50, frame_bytes: 131_072 };
  if (type === "ping") socket.say({ type: "pong", ref });
  if (type !== "connect") return;
  const session = { session: "s", user: null, node: "n" };
  socket.say({ type: "connected", ref, ...session, ping_s: 25, limits, ...more });
}

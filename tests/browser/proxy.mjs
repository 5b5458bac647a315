/** A TCP proxy that does what bad networks do. */

import net from "node:net";

export class Proxy {
  #server;
  #links = new Set();
  #answersHeld = false;
  /** The port of this machine that bytes go to. */
  target;
  port = 0;
  /** When each connection came, in ms of `performance.now()`. */
  arrivals = [];
  /** Whether new connections are ended at once. */
  refuses = false;
  /** Whether those that ask for a WebSocket are, as some company's network does. */
  refusesWebSocket = false;

  static async start(target) {
    const proxy = new Proxy();
    proxy.target = target;
    proxy.#server = net.createServer((inner) => proxy.#serve(inner));
    await new Promise((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    proxy.port = proxy.#server.address().port;
    return proxy;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** How many connections stand. */
  get size() {
    return this.#links.size;
  }

  #serve(inner) {
    this.arrivals.push(performance.now());
    if (this.refuses) {
      inner.on("error", () => {});
      inner.resetAndDestroy();
      return;
    }
    const outer = net.connect(this.target, "127.0.0.1");
    const link = { inner, outer };
    this.#links.add(link);
    for (const socket of [inner, outer]) {
      socket.setNoDelay(true);
      const other = socket === inner ? outer : inner;
      socket.on("error", () => this.#end(link));
      // What is on its way still arrives when an end is orderly.
      socket.on("end", () => other.end());
      socket.on("close", () => {
        if (this.#links.delete(link)) other.end();
      });
    }
    inner.on("data", (bytes) => this.#forward(link, bytes));
    outer.on("data", (bytes) => inner.write(bytes));
    if (this.#answersHeld) outer.pause();
  }

  #forward(link, bytes) {
    if (this.refusesWebSocket && /^upgrade: *websocket/im.test(bytes.toString("latin1"))) {
      this.#end(link);
    } else {
      link.outer.write(bytes);
    }
  }

  #end(link) {
    if (!this.#links.delete(link)) return;
    for (const socket of [link.inner, link.outer]) {
      // A reset, as after a crash; nothing that is on its way arrives. Where the end has begun
      // already Node.js would keep the socket, and spin at its exit.
      if (socket.connecting || socket.writableEnded) socket.destroy();
      else socket.resetAndDestroy();
    }
  }

  /** End every connection at once, in both directions; new ones pass bytes again. */
  cut() {
    this.#answersHeld = false;
    for (const link of this.#links) this.#end(link);
  }

  /** Let nothing through any more on the connections that stand; they stay open (half-open). */
  hold() {
    for (const { inner, outer } of this.#links) {
      inner.pause();
      outer.pause();
    }
  }

  /** Hold what the server sends, on new connections too; what the client sends still arrives. */
  holdAnswers() {
    this.#answersHeld = true;
    for (const { outer } of this.#links) outer.pause();
  }

  /** Let new connections be answered again; those that stand stay as they are. */
  answerAgain() {
    this.#answersHeld = false;
  }

  async stop() {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

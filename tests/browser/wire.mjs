/** WebSocket as the tests hand it to the library: one that is watched, one that does not work. */

import { webcrypto } from "node:crypto";
import { WebSocket } from "ws";

// Node.js 18 has it, but not as a global.
globalThis.crypto ??= webcrypto;

export { WebSocket };

/** A WebSocket class that notes all that goes through its sockets, decoded. */
export function watched(decode = JSON.parse) {
  const wire = { sent: [], received: [], sockets: [] };
  const note = (list, data) =>
    list.push({
      ...decode(typeof data === "string" ? data : new Uint8Array(data)),
      at: performance.now(),
    });
  wire.WebSocket = class extends WebSocket {
    constructor(...parameters) {
      super(...parameters);
      wire.sockets.push(this);
      this.addEventListener("message", ({ data }) => note(wire.received, data));
    }

    send(data, ...rest) {
      note(wire.sent, data);
      super.send(data, ...rest);
    }
  };
  /** The messages of a type that the library has sent. */
  wire.commands = (type) => wire.sent.filter((message) => message.type === type);
  /** The messages of a type that it has received. */
  wire.messages = (type) => wire.received.filter((message) => message.type === type);
  return wire;
}

/** A fetch that notes the requests and lets each be answered by something else. */
export function watchedFetch(instead = () => undefined) {
  const requests = [];
  const fetched = async (url, options = {}) => {
    const request = { url: String(url), method: options.method ?? "GET", options };
    requests.push(request);
    return (await instead(request)) ?? fetch(url, options);
  };
  return { fetch: fetched, requests };
}

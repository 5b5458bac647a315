// The package `ws`: a loop over `send`, as its documentation shows it.
"use strict";

const http = require("node:http");
const { WebSocketServer, WebSocket } = require("ws");

const channels = new Map();

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    const clients = channels.get(JSON.parse(body.toString()).channel) ?? [];
    for (const client of clients) {
      if (client.readyState === WebSocket.OPEN) client.send(body, { binary: false });
    }
    response.writeHead(200, { "Content-Type": "application/json" });
    response.end("{}");
  });
});

const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (client, request) => {
  const channel = new URL(request.url, "http://127.0.0.1").searchParams.get("channel");
  if (!channels.has(channel)) channels.set(channel, new Set());
  channels.get(channel).add(client);
  client.on("close", () => channels.get(channel).delete(client));
  client.on("error", () => client.terminate());
});

server.keepAliveTimeout = 600_000;
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});

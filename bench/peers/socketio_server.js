// Socket.IO, with its own adapter in memory: what is posted goes to the room of its channel.
"use strict";

const http = require("node:http");
const { Server } = require("socket.io");

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const event = JSON.parse(Buffer.concat(chunks).toString());
    io.to(event.channel).emit("event", event);
    response.writeHead(200, { "Content-Type": "application/json" });
    response.end("{}");
  });
});

// No client of the load answers pings, and none is needed in the time that a run takes.
const io = new Server(server, {
  transports: ["websocket"],
  perMessageDeflate: false,
  serveClient: false,
  pingInterval: 600_000,
});
io.on("connection", (socket) => socket.join(socket.handshake.query.channel));

server.keepAliveTimeout = 600_000;
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});

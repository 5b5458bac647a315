// A plain page that follows one channel. What comes from others is only ever set as text.

const MOST = 100;
const element = (id) => document.getElementById(id);

let socket = null;
let channel = "";
let position = null;
let timer = 0;
let pause = 250;

function say(text) {
  element("state").textContent = text;
}

function add(...nodes) {
  const item = document.createElement("li");
  item.append(...nodes);
  element("events").prepend(item);
  element("none").hidden = true;
  while (element("events").children.length > MOST) element("events").lastChild.remove();
}

function show(event) {
  const time = document.createElement("time");
  time.dateTime = new Date(event.time).toISOString();
  time.textContent = new Date(event.time).toLocaleTimeString();
  const name = document.createElement("strong");
  name.textContent = event.name;
  const data = document.createElement("code");
  data.textContent = JSON.stringify(event.data);
  add(time, " ", name, " ", data);
}

function note(text) {
  const line = document.createElement("span");
  line.className = "note";
  line.textContent = text;
  add(line);
}

function command(name) {
  const event = JSON.stringify({ channel: name, name: "message", data: { hello: "world" } });
  return `curl -H 'Authorization: Bearer dev.galecast' -d '${event}' ${location.origin}/v1/events`;
}

function take(message) {
  if (message.type === "subscribed") {
    position = message.position;
    pause = 250;
    say(`following ${channel}`);
    if (message.recovered === false) note("Events were missed: they are no longer kept.");
  } else if (message.type === "event") {
    position = message.position;
    show(message);
  } else if (message.type === "reset") {
    position = message.position;
    note("Continuity was lost: this channel began anew.");
  } else if (message.type === "error") {
    say(message.message);
  }
}

function open() {
  clearTimeout(timer);
  const mine = new WebSocket(`${location.origin.replace("http", "ws")}/v1/ws`);
  socket = mine;
  mine.onopen = () => {
    mine.send(JSON.stringify({ type: "connect", ref: 1 }));
    const subscribe = { type: "subscribe", ref: 2, channel };
    mine.send(JSON.stringify(position ? { ...subscribe, since: position } : { ...subscribe, rewind: 10 }));
  };
  mine.onmessage = ({ data }) => {
    if (socket === mine) take(JSON.parse(data));
  };
  mine.onclose = ({ code, reason }) => {
    if (socket !== mine) return;
    if (code >= 4500) return say(`ended: ${reason}`);
    say("connecting again");
    timer = setTimeout(open, Math.random() * pause);
    pause = Math.min(pause * 2, 10_000);
  };
}

function follow(name) {
  channel = name;
  position = null;
  element("curl").textContent = command(name);
  element("events").replaceChildren();
  element("none").hidden = false;
  if (socket) socket.close();
  open();
}

element("follow").addEventListener("submit", (event) => {
  event.preventDefault();
  follow(element("channel").value.trim());
});
const wanted = new URLSearchParams(location.search).get("channel");
if (wanted) element("channel").value = wanted;
follow(element("channel").value);

// The demo: one connection, two channels, and what can be seen of them.

import { Chart } from "./chart.js";
import { Chat } from "./chat.js";
import { Arrivals, ServerClock } from "./clock.js";
import { connect } from "./galecast.js";
import { isLocal, KEY_NOTE, showCommands } from "./terminal.js";
import { count } from "./units.js";
import { Wind } from "./wind.js";

const READINGS = "machine.readings";
const LOBBY = "chat.lobby";
const CUT_S = 5;
const PING_MS = 2000;
const RATE_S = 5;
const SETTLE_MS = 600;
// Without a reading for so long, nobody publishes any.
const SILENCE_MS = 8000;
const PATIENCE_MS = 2500;
const PUBLISHER = `galecast readings ${isLocal ? "--dev" : "--key-file FILE"} --url ${location.origin}`;
const TRANSPORTS = { websocket: "WebSocket", sse: "Server-Sent Events" };

const REFUSED = {
  4501:
    "this node takes no anonymous clients, and this page has no token. In development mode " +
    "(galecast serve --dev) it does; otherwise the setting anonymous.grants says what they may do.",
  4503:
    `this node lets no page of ${location.origin} connect. The setting origins lists those that may.`,
};

const element = (id) => document.getElementById(id);
const write = (id, text) => {
  // What is the same is not said again to those who listen.
  if (element(id).textContent !== text) element(id).textContent = text;
};

const clock = new ServerClock();
const connection = connect(location.origin);
const wind = new Wind(element("wind"));
const chart = new Chart(element("strips"), element("axis"), clock);
const chat = new Chat(connection, LOBBY);
let cutting = false;
let opened = 0;

// ---- events

const received = [];

function took(kind) {
  if (kind === "past") return;
  received.push(performance.now());
  wind.gust(kind === "late");
  if (kind === "late") tellSoon();
}

const readings = connection.subscribe(READINGS, (event) => {
  const kind = readingsSeen.kindOf(event);
  if (event.name === "reading") chart.add(event, kind === "late");
  took(kind);
  noteReadings();
}, { rewind: 120 });
const readingsSeen = new Arrivals(connection, readings, clock);

const lobby = connection.subscribe(LOBBY, (event) => {
  const kind = lobbySeen.kindOf(event);
  chat.add(event, kind);
  took(kind);
}, { rewind: 20, presence: true });
const lobbySeen = new Arrivals(connection, lobby, clock);
chat.follow(lobby);

// ---- how the connection is

function stateText({ state, retryInMs, code }) {
  if (state === "connected") return `Connected over ${TRANSPORTS[connection.transport]}`;
  if (state === "paused") return "Cut off, on purpose";
  if (state === "waiting" && retryInMs >= 1000) {
    return `Lost; tries again in ${Math.round(retryInMs / 1000)} s`;
  }
  if (state === "closed") return code in REFUSED ? "Refused" : "Ended for good";
  return opened ? "Lost; tries again" : "Connecting";
}

/** What there is to say in place of all that cannot be shown. */
function noticeOf({ state, code, reason }) {
  if (state !== "closed") return "";
  if (code in REFUSED) return `Nothing can be shown here: ${REFUSED[code]}`;
  const why = code ? ` (${code} ${reason ?? ""})` : "";
  return `The connection has ended for good${why}. Load this page again to come back.`;
}

connection.addEventListener("state", (event) => {
  const { state } = event;
  opened += state === "connected" ? 1 : 0;
  write("state", stateText(event));
  write("node", connection.node ?? "node");
  if (state !== "connected") write("round-trip", "–");
  document.body.dataset.state = state;
  document.body.toggleAttribute("data-never", state === "closed" && !opened);
  wind.cut = chart.cut = state !== "connected";
  element("cut").setAttribute("aria-disabled", String(cutting || state !== "connected"));
  const notice = noticeOf(event);
  write("notice", notice);
  element("notice").hidden = !notice;
  if (notice) tell("");
  if (state === "connected") measure();
  noteReadings();
});

async function measure() {
  if (document.hidden || connection.state !== "connected") return;
  try {
    const ms = await connection.ping();
    const text = `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
    if (connection.state === "connected") write("round-trip", text);
  } catch {
    // The connection was lost meanwhile; its state tells.
  }
}
setInterval(measure, PING_MS);

setInterval(() => {
  const from = performance.now() - RATE_S * 1000;
  while (received[0] < from) received.shift();
  write("rate", `${(received.length / RATE_S).toFixed(1)} events/s`);
  element("late-key").hidden = !chart.late;
  noteReadings();
}, 1000);

// ---- without readings

let since = performance.now();
let refusal = "";
readings.addEventListener("subscribed", () => (since = performance.now()));
readings.addEventListener("reset", () => (since = performance.now()));

function noteReadings() {
  const note = element("readings-note");
  const waited = performance.now() - since > PATIENCE_MS;
  const none = readings.state === "live" && waited && chart.age > SILENCE_MS;
  const any = chart.age < Infinity ? " any more" : "";
  const text = refusal
    ? `No readings here: ${refusal}`
    : none
      ? `Nobody publishes readings${any}. Start the publisher on this machine:`
      : "";
  note.hidden = !text;
  if (note.dataset.text === text) return;
  note.dataset.text = text;
  const command = document.createElement("code");
  command.textContent = none ? PUBLISHER : "";
  note.replaceChildren(text, " ", command);
}

readings.addEventListener("ended", ({ code, message }) => {
  if (code && code !== "closed") refusal = `${message} (${code})`;
  noteReadings();
});

// ---- the cut

element("cut").addEventListener("click", () => {
  if (cutting || connection.state !== "connected") return;
  cutting = true;
  tell("");
  connection.pause();
  countDown(CUT_S);
});

function countDown(left) {
  const button = element("cut");
  if (left > 0) {
    button.textContent = `Back in ${left} s`;
    setTimeout(countDown, 1000, left - 1);
    return;
  }
  cutting = false;
  button.textContent = `Cut the connection for ${CUT_S} s`;
  connection.resume();
}

function tell(text) {
  element("outcome").classList.remove("hint");
  write("outcome", text);
}

let telling = 0;
for (const subscription of [readings, lobby]) {
  subscription.addEventListener("subscribed", ({ recovered }) => {
    if (recovered !== undefined) tellSoon();
  });
  subscription.addEventListener("reset", tellSoon);
}

/** Say what became of the events that were missed, once the replay is through. */
function tellSoon() {
  clearTimeout(telling);
  telling = setTimeout(tellOutcome, SETTLE_MS);
}

function tellOutcome() {
  const all = [
    { name: READINGS, seen: readingsSeen, what: count(readingsSeen.late, "reading") },
    { name: LOBBY, seen: lobbySeen, what: count(lobbySeen.late, "message") },
  ];
  const resumed = all.filter(({ seen }) => seen.recovered === true);
  const broken = all.filter(({ seen }) => seen.recovered === false).map(({ name }) => name);
  const late = resumed.reduce((sum, { seen }) => sum + seen.late, 0);
  const said = [];
  const none = broken.length ? `None is missing in ${resumed.map(({ name }) => name).join(" and ")}.` : "None is missing.";
  if (late) {
    const what = resumed.map(({ what }) => what).join(" and ");
    said.push(`${what} missed while cut off came back, in order. ${none}`);
  } else if (resumed.length) {
    said.push(`Nothing was published while cut off. ${none}`);
  }
  if (broken.length) {
    said.push(
      `${broken.join(" and ")} could not be continued, and the server said so (reset): ` +
        "what was published there meanwhile may be missing.",
    );
  }
  tell(said.join(" "));
  element("late-key").hidden = !chart.late;
}

write("key-note", KEY_NOTE);
showCommands(element("commands"), LOBBY, element("said"));

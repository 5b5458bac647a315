// The same from a terminal: commands that can be copied, with this page's address and key.

const LOCAL = ["localhost", "127.0.0.1", "[::1]"];
const FEEDBACK_MS = 2000;

// Development mode listens on this machine only, so elsewhere its key is of no use.
export const isLocal = LOCAL.includes(location.hostname);
const KEY = isLocal ? "dev.galecast" : "YOUR_API_KEY";

/** The commands for a channel, each with what it does. */
export function commands(channel) {
  const event = JSON.stringify({ channel, data: { text: "Hello from a terminal", from: "curl" } });
  const key = `-H 'Authorization: Bearer ${KEY}'`;
  return [
    ["publish", "Publish a message", `curl ${key} -d '${event}' '${location.origin}/v1/events'`],
    ["receive", "Receive what is said", `curl -N ${isLocal ? "" : `${key} `}'${location.origin}/v1/sse?channel=${channel}'`],
  ];
}

export const KEY_NOTE = isLocal
  ? "with the key of development mode"
  : "put an API key in place of YOUR_API_KEY";

/** Show the commands of `channel` in `place`; what is copied is said to `said` as well. */
export function showCommands(place, channel, said) {
  for (const [name, title, text] of commands(channel)) {
    const block = document.createElement("div");
    block.className = "command";
    const label = document.createElement("h3");
    label.className = "label";
    label.textContent = title;
    const code = document.createElement("code");
    code.id = `curl-${name}`;
    code.textContent = text;
    const shown = document.createElement("pre");
    shown.append(code);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${title.toLowerCase()}`);
    button.addEventListener("click", () => copy(code, button, said));
    block.append(label, button, shown);
    place.append(block);
  }
}

async function copy(code, button, said) {
  const done = await put(code);
  const text = done ? "Copied" : "Press Ctrl+C";
  button.textContent = text;
  said.textContent = done ? "Copied" : "Selected; press Control and C to copy";
  clearTimeout(button.timer);
  button.timer = setTimeout(() => {
    button.textContent = "Copy";
    said.textContent = "";
  }, FEEDBACK_MS);
}

async function put(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // Not over plain HTTP, except from this machine; or it was not allowed.
    getSelection().selectAllChildren(code);
    return false;
  }
}

// A chat with presence. What comes from others is only ever set as text, and never all too long.

const MOST_MESSAGES = 200;
const MOST_MEMBERS = 40;
const MOST_NAME = 32;
const MOST_TEXT = 500;
const KEPT = "galecast.name";
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const WINDS = (
  "Bise Bora Brisa Chinook Cierzo Foehn Gregale Harmattan Kona Levanter Libeccio Marin Meltemi " +
  "Mistral Norte Ostro Pampero Passat Ponente Shamal Sirocco Tramontana Williwaw Zephyr Zonda"
).split(" ");

const cut = (value, most) => {
  const text = String(value).trim();
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
};

/** What somebody calls themselves, or else who they are known to be. */
const nameOf = (name, user) =>
  cut((typeof name === "string" && name.trim()) || (user ?? "someone"), MOST_NAME);

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

function keptName() {
  try {
    return localStorage.getItem(KEPT) ?? "";
  } catch {
    // A browser that keeps nothing for this page.
    return "";
  }
}

function keepName(name) {
  try {
    localStorage.setItem(KEPT, name);
  } catch {
    // It lasts as long as the page, then.
  }
}

const aWind = () => WINDS[Math.floor(Math.random() * WINDS.length)];

export class Chat {
  #connection;
  #channel;
  #subscription;
  #name = document.getElementById("name");
  #text = document.getElementById("text");
  #form = document.getElementById("chat");
  #log = document.getElementById("log");
  #list = document.getElementById("messages");
  #none = document.getElementById("no-messages");
  #members = document.getElementById("members");
  #note = document.getElementById("chat-note");
  #items = new Map();

  constructor(connection, channel) {
    this.#connection = connection;
    this.#channel = channel;
    this.#name.value = cut(keptName(), MOST_NAME) || aWind();
    this.#name.addEventListener("change", () => this.#rename());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  /** Follow a subscription with presence. */
  follow(subscription) {
    this.#subscription = subscription;
    subscription.addEventListener("members", () => this.#showMembers());
    subscription.addEventListener("subscribed", () => this.#showMembers());
    subscription.addEventListener("reset", () =>
      this.#line("Messages may be missing here: the server could not continue, and said so."),
    );
    subscription.addEventListener("ended", ({ code, message }) => {
      // Of the connection as a whole more is said elsewhere.
      if (code && code !== "closed") this.#say(`No chat here: ${message} (${code})`);
    });
    // What is there at first is not read out; what comes is.
    const speak = () => this.#log.setAttribute("aria-live", "polite");
    subscription.addEventListener("subscribed", () => setTimeout(speak, 1000), { once: true });
    this.#tellName();
  }

  /** Show a message. */
  add(event, kind) {
    const { id, time, data, user } = event;
    const known = this.#items.get(id);
    if (known && !known.classList.contains("waiting")) return;
    const said = typeof data === "string" ? data : data?.text;
    const text = typeof said === "string" ? said : JSON.stringify(data);
    const item = this.#item(nameOf(data?.from, user), text, time, kind === "late");
    this.#items.set(id, item);
    if (known) known.remove();
    this.#append(item);
  }

  #item(from, text, time, late) {
    const item = element("li", late ? "message late" : "message");
    const head = element("p", "by");
    head.append(element("strong", "", from), " ");
    if (time) {
      const when = element("time", "", new Date(time).toLocaleTimeString([], CLOCK));
      when.dateTime = new Date(time).toISOString();
      head.append(when);
    }
    if (late) head.append(" ", element("span", "tag", "came back"));
    item.append(head, element("p", "said", cut(text, MOST_TEXT)));
    return item;
  }

  #line(text) {
    this.#append(element("li", "aside", text));
  }

  #append(item) {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    this.#none.hidden = true;
    // What waits to be sent stays below what was said.
    const waiting = item.classList.contains("waiting") ? null : this.#list.querySelector(".waiting");
    this.#list.insertBefore(item, waiting);
    while (this.#list.children.length > MOST_MESSAGES) this.#forget(this.#list.firstElementChild);
    if (atEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #forget(item) {
    item.remove();
    for (const [id, each] of this.#items) {
      if (each === item) this.#items.delete(id);
    }
  }

  // ---- one's own

  get #ownName() {
    return cut(this.#name.value, MOST_NAME) || (this.#name.value = aWind());
  }

  #rename() {
    keepName(this.#ownName);
    this.#tellName();
  }

  #tellName() {
    const told = this.#subscription?.setPresence({ name: this.#ownName });
    // Without WebSocket there is no entry of one's own; with it the next connection tells it.
    told?.catch(() => {});
  }

  async #send() {
    const text = cut(this.#text.value, MOST_TEXT);
    if (!text) return;
    this.#say("");
    this.#text.value = "";
    const id = newId();
    const item = this.#item(this.#ownName, text, 0, false);
    item.classList.add("waiting");
    this.#items.set(id, item);
    this.#append(item);
    this.#log.scrollTop = this.#log.scrollHeight;
    try {
      const data = { text, from: this.#ownName };
      await this.#connection.publish(this.#channel, data, { name: "message", id });
    } catch (error) {
      if (this.#items.get(id) === item) this.#forget(item);
      this.#text.value ||= text;
      this.#say(`Not sent: ${error.message}`);
    }
  }

  #say(text) {
    this.#note.textContent = text;
    this.#note.hidden = !text;
  }

  // ---- who is here

  #showMembers() {
    const { members } = this.#subscription;
    const own = this.#connection.session;
    const all = [...members.values()].sort((one, other) =>
      (other.session === own) - (one.session === own));
    const shown = all.slice(0, MOST_MEMBERS).map(({ session, user, info }) => {
      const item = element("li", session === own ? "own" : "", nameOf(info?.name, user));
      if (session === own) item.append(element("span", "you", " (you)"));
      return item;
    });
    if (all.length > MOST_MEMBERS) {
      shown.push(element("li", "more", `and ${all.length - MOST_MEMBERS} more`));
    }
    if (!all.length) shown.push(element("li", "more", "not known"));
    this.#members.replaceChildren(...shown);
  }
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

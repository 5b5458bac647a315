/**
 * The browser's side of Galecast: one live connection that comes back by itself and misses nothing.
 *
 * ```js
 * import { connect } from "/static/galecast.js";
 *
 * const connection = connect();
 * connection.subscribe("chat.lobby", (event) => console.log(event.data), { rewind: 20 });
 * await connection.publish("chat.lobby", { text: "hello" });
 * ```
 *
 * The messages are those of protocol version 1; all that is promised rests on positions, see
 * docs/protocol.md. Runs in every browser since 2022, in workers, and in Node.js from 18 on.
 *
 * @module galecast
 */

/**
 * An event, as the protocol has it.
 * @typedef {object} EventMessage
 * @property {string} channel
 * @property {string} position where it stands in its channel; what `since` takes
 * @property {string} id unique in its channel
 * @property {string} name the kind of event
 * @property {any} data
 * @property {Record<string, string>} tags
 * @property {number} time in ms since 1970; never decreases within a channel
 * @property {string} [user] who published it, if a user did
 * @property {number} [skipped] events that were left out directly before it, if any were
 */

/**
 * A session that is present in a channel.
 * @typedef {object} Member
 * @property {string} session
 * @property {string | null} user
 * @property {any} info what the session set; `{}` at first
 */

/**
 * The answer to a publish.
 * @typedef {object} Published
 * @property {string} channel
 * @property {string} position
 * @property {string} id
 * @property {boolean} duplicate whether the id had been published before
 */

/** @typedef {{ events: EventMessage[], cursor?: string }} EventPage oldest first; `cursor` is the `before` of the page before */
/** @typedef {{ members: Member[], cursor?: string }} MemberPage `cursor` asks for the next page */
/** @typedef {"connecting" | "connected" | "waiting" | "paused" | "closed"} ConnectionState */
/** @typedef {"websocket" | "sse"} Transport */
/** @typedef {"connect" | "expiring" | "expired"} TokenReason */

/**
 * What `encoding` takes for MessagePack, such as `{ encode, decode }` of `@msgpack/msgpack`.
 * @typedef {object} Encoding
 * @property {(value: any) => Uint8Array} encode
 * @property {(bytes: Uint8Array) => any} decode
 */

/**
 * @typedef {object} ConnectOptions
 * @property {string} [token] a JWT; without it and without `getToken` the client is anonymous
 * @property {(why: { reason: TokenReason }) => Promise<string | null> | string | null} [getToken]
 *   asked for a token before the first connection, and before the token ends; null: anonymous.
 *   When it throws it is asked again after a pause.
 * @property {"json" | Encoding} [encoding] `"json"` unless a MessagePack encoder is handed in
 * @property {Transport[]} [transports] what may be used, both unless told otherwise
 * @property {number} [queue] publishes and questions that may wait at most (1000)
 * @property {number} [retryFor] ms after its first attempt within which a publish is sent again
 *   (240000); has to be less than the server's `broker.idempotency_window_s`
 * @property {any} [WebSocket] takes the place of the global one
 * @property {typeof fetch} [fetch] takes the place of the global one
 */

/**
 * @typedef {object} SubscribeOptions
 * @property {string | null} [since] resume behind this position; null: from now on
 * @property {number} [rewind] begin with the last N events; with `since` only if that is too old
 * @property {number} [from] begin with the first event of this time (ms since 1970) or later; with
 *   `since` only if that cannot be continued
 * @property {boolean} [presence] keep `members` in step
 * @property {number} [maxRateHz] at most so many events a second, the newest ones; others are skipped
 */

/**
 * @typedef {object} PublishOptions
 * @property {string} [name] the kind of event (`"message"`)
 * @property {Record<string, string>} [tags]
 * @property {string} [id] published once in its channel; a random one unless told otherwise
 * @property {boolean} [echo] `false`: this client does not get the event itself
 */

/** @typedef {Event & { state: ConnectionState, transport: Transport | null, code?: number, reason?: string, retryInMs?: number }} StateEvent */
/** @typedef {Event & { subscription: Subscription }} SubscriptionEvent */
/** @typedef {{ state: StateEvent, subscription: SubscriptionEvent }} ConnectionEvents */
/** @typedef {Event & { position: string, recovered?: boolean }} SubscribedEvent */
/** @typedef {Event & { position: string }} ResetEvent */
/** @typedef {Event & { action: "join" | "leave" | "update" | "sync", member?: Member }} MembersEvent */
/** @typedef {Event & { code?: string, message?: string }} EndedEvent */
/** @typedef {{ subscribed: SubscribedEvent, reset: ResetEvent, members: MembersEvent, ended: EndedEvent }} SubscriptionEvents */

/**
 * An EventTarget whose listeners know what they are told.
 * @template M
 * @typedef {{
 *   addEventListener<K extends keyof M>(type: K, listener: (event: M[K]) => void, options?: boolean | AddEventListenerOptions): void,
 *   removeEventListener<K extends keyof M>(type: K, listener: (event: M[K]) => void, options?: boolean | EventListenerOptions): void,
 * } & EventTarget} Typed
 */

/** @typedef {(event: EventMessage, subscription: Subscription) => unknown} EventHandler */
/** @internal @typedef {{ resolve: (value?: any) => void, reject: (error: unknown) => void }} Settle */
/** @internal @typedef {Settle & { message: any, timer?: any, until?: number }} Item a publish that was not answered yet */
/** @internal @typedef {Settle & { subscription?: Subscription }} Call a command that was not answered yet */
/** @internal @typedef {{ code?: number, reason?: string, retry_in_ms?: number }} Closing */

/**
 * One attempt to be connected, over WebSocket (`socket`) or as a stream (`abort`).
 * @internal
 * @typedef {object} Link
 * @property {boolean} sse
 * @property {WebSocket} [socket]
 * @property {AbortController} [abort]
 * @property {any} [timer]
 * @property {number} ref
 * @property {Map<number, Call>} calls
 * @property {Pacer} commands
 * @property {Pacer} publishes
 * @property {Closing} closing
 * @property {boolean} [posting]
 * @property {boolean} [renewing]
 * @property {number[]} heard when, by the wall clock, for each stream
 * @property {number} refusals in a row, of what may succeed later
 * @property {boolean} [stale] the set of channels has changed
 */

const BUFFER = 1000;
const MEMBER_PAGES = 10;
const MUTED = 1000;
const STREAM_CHANNELS = 50;
const PATIENCE_MS = 10_000;
const PONG_MS = 5000;
const SPREAD_MS = 1000;
const MOST_MS = 30_000;
const UPGRADE_MS = 60_000;

const noop = () => {};
/** @param {unknown} value */
const callable = (value) => typeof value === "function";
const random = () => Math.random();
/** In ms; unlike Date it is never set back. */
const clock = () => performance.now();
const newId = () => globalThis.crypto?.randomUUID?.() ?? `${Date.now()}${random()}${random()}`;

/** @param {EventTarget} target @param {string} type @param {object} fields */
const emit = (target, type, fields) => target.dispatchEvent(Object.assign(new Event(type), fields));

/** Wait about so long, jittered. @param {number} ms @returns {Promise<void>} */
const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms * (1 + random())); });

const lost = () => new GalecastError("disconnected", "", true);
const broken = () => { throw lost(); };
const full = () => new GalecastError("queue_full", "", true);

/**
 * What was refused, or could not be done.
 *
 * `code` is an error code of the protocol, such as `forbidden`, or one of this library: `closed`
 * (the connection is over), `disconnected` (it was lost meanwhile), `queue_full`, and `timeout` (a
 * publish whose answer did not come in time; it may have happened). `retry` says whether the same
 * may succeed later.
 */
export class GalecastError extends Error {
  /** @param {string} code @param {string} [message] @param {boolean} [retry] */
  constructor(code, message, retry = false) {
    super(message || code);
    this.name = "GalecastError";
    this.code = code;
    this.retry = retry;
  }
}

/** Lets through what the server's rate allows, with a margin, and keeps the order. @internal */
class Pacer {
  /** @type {any[]} */ #queue = [];
  #full = 0;
  /** @type {any} */ #timer = 0;
  #gap = 0;
  #send;

  /** @param {(item: any) => void} send */
  constructor(send) {
    this.#send = send;
  }

  /** @param {number | undefined} rate per second; 0: no limit */
  limit(rate) {
    this.#gap = rate ? 1250 / rate : 0;
  }

  /** @param {any} item */
  push(item) {
    this.#queue.push(item);
    this.#pump();
  }

  #pump() {
    while (this.#queue.length && !this.#timer) {
      const now = clock();
      const full = Math.max(this.#full, now) + this.#gap;
      const wait = full - now - Math.max(1000, this.#gap);
      if (wait > 0) {
        this.#timer = setTimeout(() => {
          this.#timer = 0;
          this.#pump();
        }, wait);
      } else {
        this.#full = full;
        this.#send(this.#queue.shift());
      }
    }
  }

  stop() {
    clearTimeout(this.#timer);
  }
}

/**
 * One channel's events, resumed after every reconnect: nothing lost, nothing twice, or `reset`.
 *
 * Made by `connection.subscribe`. Events go to the handler, or to `for await` where none was given.
 *
 * - `subscribed` (`position`, `recovered`): after every subscription, the first and all others.
 * - `reset` (`position`): continuity was lost; read your state anew. Events go on behind it.
 * - `members` (`action`, `member`): `members` has changed; `sync`: all of it.
 * - `ended` (`code`, `message`): refused or ended by the server; without `code` by `unsubscribe()`.
 */
export class Subscription extends /** @type {new () => Typed<SubscriptionEvents>} */ (EventTarget) {
  /** Who is present, by session; kept in step with `presence: true`. @type {Map<string, Member>} */
  members = new Map();
  /** Whether there are more members than `members` holds; it ends at 1000. */
  more = false;
  /** @type {"pending" | "live" | "ended"} */
  state = "pending";

  /** @internal @type {string | null | undefined} */ _at;
  /** @internal */ _held = false;
  /** @internal @type {any} */ _info;
  /** @internal @type {Set<string> | null} */ _left = null;
  /** @internal @type {any} */ _first;
  /** @internal @type {SubscribeOptions & { max_rate_hz?: number }} */ _options;
  /** @type {(EventMessage | { reset: string })[]} */ #buffer = [];
  /** @type {(() => void)[]} */ #waiting = [];
  /** @type {GalecastError | undefined} */ #error;
  #iterated = false;
  #connection;
  #handler;

  /**
   * Private to applications; a connection makes them.
   * @private
   * @param {Connection} connection
   * @param {string} channel
   * @param {EventHandler} [handler]
   * @param {SubscribeOptions} [options]
   */
  constructor(connection, channel, handler, options = {}) {
    super();
    this.#connection = connection;
    this.channel = channel;
    this.#handler = handler;
    this._options = { ...options, max_rate_hz: options.maxRateHz };
    this._at = options.since;
    /**
     * Behind the last event that was dealt with; null before there is one to resume from.
     * @type {string | null}
     */
    this.position = this._at ?? null;
    /** Settled by the first `subscribed`, or by the refusal. @type {Promise<Subscription>} */
    this.ready = new Promise((resolve, reject) => { this._first = { resolve, reject }; });
    this.ready.catch(noop);
  }

  /** End it; what comes late is dropped. */
  unsubscribe() {
    this.#connection._unsubscribe(this);
    this._end();
  }

  /**
   * Set this session's own entry in the presence set, now and after every reconnect.
   *
   * Over WebSocket only: else it rejects with `unavailable`, and is sent once there is one.
   * @param {any} info
   * @returns {Promise<void>}
   */
  async setPresence(info) {
    await this.#connection._setPresence(this, info);
  }

  /**
   * Yields events in order; to leave the loop ends the subscription.
   *
   * While 1000 events wait for a slow consumer the subscription is given up, and resumed later: then
   * too nothing is lost that the server still keeps, or there is a `reset`.
   */
  async *[Symbol.asyncIterator]() {
    if (this.#handler) throw new TypeError("events go to the handler");
    this.#iterated = true;
    try {
      for (;;) {
        const next = this.#buffer.shift();
        if (this._held && this.#buffer.length < BUFFER / 2) this.#connection._release(this);
        if (next === undefined) {
          if (this.state === "ended") {
            if (this.#error) throw this.#error;
            return;
          }
          await /** @type {Promise<void>} */ (new Promise((resolve) => this.#waiting.push(resolve)));
        } else if ("reset" in next) {
          this.#reset(next.reset);
        } else {
          yield next;
          this.position = next.position;
        }
      }
    } finally {
      this.unsubscribe();
    }
  }

  /** @internal @param {EventMessage} event */
  _take(event) {
    this._at = event.position;
    if (!this.#handler) {
      if (this.#buffer.push(event) > BUFFER) {
        if (this.#iterated) this.#connection._hold(this);
        // Nobody may ever come for them; who does is told.
        else this.#buffer = [{ reset: event.position }];
      }
      this.#wake();
      return;
    }
    try {
      this.#handler(event, this);
    } catch (error) {
      // To the page's own handling of errors; delivery goes on.
      setTimeout(() => { throw error; });
    }
    this.position = event.position;
  }

  /** @internal @param {any} message */
  _subscribed(message) {
    const { position, recovered } = message;
    this.state = "live";
    this._at = position;
    this.position ??= position;
    if (message.members) this._sync(message);
    this._first.resolve(this);
    emit(this, "subscribed", { position, recovered });
    if (recovered === false && this.state === "live") this._reset(position);
  }

  /** @internal @param {string} position */
  _reset(position) {
    this._at = position;
    if (this.#handler) return this.#reset(position);
    // In its place among the events.
    this.#buffer.push({ reset: position });
    this.#wake();
  }

  /** @param {string} position */
  #reset(position) {
    this.position = position;
    emit(this, "reset", { position });
  }

  /** @internal @param {any} message */
  _presence({ action, member, ...message }) {
    if (action === "sync") {
      this._sync(message);
      return;
    }
    if (action === "leave") {
      this.members.delete(member.session);
      this._left?.add(member.session);
    } else {
      this.members.set(member.session, member);
      this._left?.delete(member.session);
    }
    emit(this, "members", { action, member });
  }

  /**
   * Take a whole set, and read the pages behind its first. Who leaves meanwhile may still stand there.
   * @internal
   * @param {{ members: Member[], more?: boolean, cursor?: string }} page
   */
  async _sync(page) {
    const left = (this._left = new Set());
    this.members.clear();
    for (let count = 0; page; count += 1) {
      for (const member of page.members) {
        if (!left.has(member.session)) this.members.set(member.session, member);
      }
      const { cursor, more = cursor } = page;
      const last = !more || count === MEMBER_PAGES;
      this.more = !!more;
      if (last || !count) emit(this, "members", { action: "sync" });
      if (last) break;
      // Without an answer the next `subscribed` brings the set anew.
      page = /** @type {any} */ (await this.#connection.members(this.channel, { cursor }).catch(noop));
      if (this._left !== left) return;
    }
    this._left = null;
  }

  /** @internal @param {GalecastError} [error] */
  _end(error) {
    if (this.state === "ended") return;
    this.state = "ended";
    this.#error = error;
    this._left = null;
    if (!error) this.#buffer = [];
    this._first.reject(error ?? new GalecastError("closed"));
    this.#wake();
    emit(this, "ended", { code: error?.code, message: error?.message });
  }

  #wake() {
    for (const resume of this.#waiting.splice(0)) resume();
  }
}

/**
 * A live connection to a server, which comes back by itself until it is closed.
 *
 * `state` events (`state`, `transport`, `code`, `reason`, `retryInMs`) tell how it stands:
 * `connecting`, `connected`, `waiting` (comes back in `retryInMs`), `paused`, and `closed`: for good,
 * by `close()`, or because the server said so (a code from 4500 to 4999).
 *
 * `subscription` events (`subscription`): the server itself has subscribed this session to a channel.
 * Its events wait for `for await`; after a reconnect it is resumed like any other.
 */
export class Connection extends /** @type {new () => Typed<ConnectionEvents>} */ (EventTarget) {
  /** @type {ConnectionState} */ state = "connecting";
  /** @type {Transport | null} */ transport = null;
  /** The server's name for this session. @type {string | null} */ session = null;
  /** @type {string | null} */ user = null;
  /** The server process. @type {string | null} */ node = null;
  /** What the server allows. @type {Record<string, number> | null} */ limits = null;

  #base;
  #queue;
  #retryFor;
  #getToken;
  #sse;
  /** @type {any} */ #WebSocket;
  /** @type {typeof fetch} */ #fetch;
  /** @type {{ encode: (value: any) => any, decode: (data: any) => any }} */ #codec;
  #protocol;

  /** @type {Map<string, Subscription>} */ #subscriptions = new Map();
  /** @type {Set<Item>} */ #outbox = new Set();
  /** @type {Set<string>} */ #muted = new Set();
  /** @type {Link | null} */ #link = null;
  /** Those who wait for a connection. @type {Set<Settle>} */ #waiting = new Set();
  #asking = 0;

  #turn = 0;
  #failures = 0;
  #misses = 0;
  #upgrades = 0;
  #notBefore = 0;
  #begun = 0;
  #count = 0;
  #silence = MOST_MS;
  /** @type {any} */ #timer;
  /** @type {any} */ #watcher;

  /** @type {string | null | undefined} */ #token;
  #tokenUntil = Infinity;
  /** @type {TokenReason} */ #why = "connect";
  #fresh = false;

  /** Private to applications; `connect` makes them. @private @param {string | URL} url @param {ConnectOptions} options */
  constructor(url, options) {
    super();
    const { encoding = "json", transports = ["websocket", "sse"], queue = 1000, retryFor = 240_000 } = options;
    this.#base = new URL(url).href.replace(/^ws/, "http").replace(/\/?([?#].*)?$/, "");
    if (!/^https?:/.test(this.#base)) throw new TypeError(`not http or ws: ${url}`);
    this.#queue = queue;
    this.#retryFor = Math.min(retryFor, 2 ** 31 - 1);
    this.#getToken = options.getToken;
    this.#token = options.token;
    this.#fetch = options.fetch ?? globalThis.fetch;
    this.#WebSocket = transports.includes("websocket") && (options.WebSocket ?? globalThis.WebSocket);
    this.#sse = transports.includes("sse");
    if (!this.#WebSocket && !this.#sse) throw new TypeError("no transport");
    this.#codec = encoding === "json" ? { encode: JSON.stringify, decode: JSON.parse } : encoding;
    if (!callable(this.#codec?.encode) || !callable(this.#codec.decode)) {
      throw new TypeError("encoding without encode or decode");
    }
    this.#protocol = "galecast.v1." + (encoding === "json" ? encoding : "msgpack");
    this.#listen("addEventListener");
    this.#attempt();
  }

  /**
   * Receive a channel's events, from now on unless `since`, `rewind` or `from` say otherwise.
   *
   * Throws GalecastError `conflict` if there is a subscription to the channel already, and `closed`.
   * @param {string} channel
   * @param {EventHandler} [handler] without it, take events by `for await`
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   */
  subscribe(channel, handler, options) {
    this.#assertOpen();
    if (!callable(handler ?? noop)) throw new TypeError("no handler function");
    if (this.#subscriptions.has(channel)) {
      throw new GalecastError("conflict", `subscribed to ${channel}`);
    }
    /** @type {Subscription} */
    const subscription = new (/** @type {any} */ (Subscription))(this, channel, handler, options);
    this.#subscriptions.set(channel, subscription);
    this.#subscribe(subscription);
    return subscription;
  }

  /**
   * Publish an event. Waits while there is no connection, and is sent again until it is answered.
   *
   * Sent in the order of the calls; only what the server refuses for the moment comes later. Rejects
   * with what the server refused, `queue_full`, `timeout`, or `closed`.
   * @param {string} channel
   * @param {any} data
   * @param {PublishOptions} [options]
   * @returns {Promise<Published>}
   */
  async publish(channel, data, { name, tags, id = newId(), echo } = {}) {
    this.#assertOpen();
    if (this.#outbox.size >= this.#queue) throw full();
    const message = { type: "publish", channel, data: this.#copy(data), name, tags, id, echo };
    if (echo === false) {
      this.#muted.add(channel + " " + id);
      if (this.#muted.size > MUTED) this.#muted.delete(/** @type {string} */ (this.#muted.values().next().value));
    }
    return new Promise((resolve, reject) => {
      const item = { resolve, reject, message };
      this.#outbox.add(item);
      if (this.state === "connected") this.#post(item);
    });
  }

  /**
   * Read kept events, the newest first page; the page before with `before: page.cursor`.
   * @param {string} channel
   * @param {{ limit?: number, before?: string }} [options]
   * @returns {Promise<EventPage>}
   */
  async history(channel, { limit, before } = {}) {
    return this.#ask({ type: "history", channel, limit, before });
  }

  /**
   * Read a page of who is present.
   * @param {string} channel
   * @param {{ cursor?: string }} [options]
   * @returns {Promise<MemberPage>}
   */
  async members(channel, { cursor } = {}) {
    return this.#ask({ type: "presence", channel, cursor });
  }

  /** Measure the time to the server and back, in ms. @returns {Promise<number>} */
  async ping() {
    const link = await this.#connected();
    const begun = clock();
    await (link.sse ? this.#http("/healthz") : this.#call(link, { type: "ping" }));
    return clock() - begun;
  }

  /**
   * The same for one channel.
   * @param {string} name
   */
  channel(name) {
    return {
      name,
      /** @param {EventHandler} [handler] @param {SubscribeOptions} [options] */
      subscribe: (handler, options) => this.subscribe(name, handler, options),
      /** @param {any} data @param {PublishOptions} [options] */
      publish: (data, options) => this.publish(name, data, options),
      /** @param {{ limit?: number, before?: string }} [options] */
      history: (options) => this.history(name, options),
      /** @param {{ cursor?: string }} [options] */
      members: (options) => this.members(name, options),
    };
  }

  /** Cut the connection until `resume()`; what is published meanwhile waits. */
  pause() {
    if (this.state === "closed") return;
    this.#stop();
    this.#change("paused");
  }

  /** Come back at once, and resume everything; not before the time that the server has asked for. */
  resume() {
    if (this.state === "paused" || this.state === "waiting") this.#hurry();
  }

  /** End it for good; all that waits is rejected with `closed`. */
  close() {
    this.#finish({});
  }

  // ---- coming and going

  async #attempt(sse = !this.#WebSocket) {
    this.#stop();
    const turn = this.#turn;
    this.#begun = clock();
    this.#change("connecting");
    const failure = await this.#renew(this.#why).catch((error) => error || {});
    if (turn !== this.#turn) return;
    if (failure) {
      const { retry, message: reason } = failure;
      return retry === false ? this.#finish({ code: 4501, reason }) : this.#wait(0, { reason });
    }
    /** @type {Link} */
    const link = {
      sse,
      ref: 0,
      refusals: 0,
      heard: [],
      calls: new Map(),
      commands: new Pacer((data) => link.socket?.send(data)),
      publishes: new Pacer((item) => this.#send(link, item)),
      closing: {},
    };
    this.#link = link;
    const patience = sse || this.#misses < 2 ? PATIENCE_MS : PONG_MS;
    link.timer = setTimeout(() => this.#lost(link), patience);
    if (sse) this.#stream(link);
    else this.#open(link).catch(() => this.#lost(link));
  }

  /** Have a token that is valid for a while, if there is to be one. @param {TokenReason} reason */
  async #renew(reason) {
    if (!this.#getToken || (this.#token && reason !== "expiring" && Date.now() < this.#tokenUntil)) return;
    const turn = this.#turn;
    // First, since it may throw at once.
    const asked = this.#getToken({ reason });
    /** @type {any} */
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(reject, MOST_MS, Error("no token in time")); });
    const token = await Promise.race([asked, late]).finally(() => clearTimeout(timer));
    if (turn !== this.#turn) return;
    if (token && typeof token !== "string") throw new TypeError("no string");
    this.#token = token;
    this.#tokenUntil = Infinity;
    this.#fresh = true;
  }

  /** @param {Link} link */
  async #open(link) {
    const socket = (link.socket = new this.#WebSocket(`${this.#base.replace(/^http/, "ws")}/v1/ws`, this.#protocol));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const message = { type: "connect", token: this.#token ?? undefined };
      this.#call(link, message).catch(noop);
    };
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => {
      if (link === this.#link) this.#take(link, this.#codec.decode(typeof data === "string" ? data : new Uint8Array(data)));
    };
    socket.onerror = noop;
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.#lost(link, { code, reason });
  }

  /** @param {Link} link @param {any} message */
  #connect(link, message) {
    clearTimeout(link.timer);
    link.timer = setTimeout(() => { this.#failures = 0; }, PATIENCE_MS);
    this.#fresh = false;
    const { session, user, node, limits, ping_s = 25, expires_s } = message;
    Object.assign(this, { session, user, node, limits });
    this.#silence = 1500 * ping_s;
    if (expires_s) this.#tokenUntil = Date.now() + 1000 * expires_s - PONG_MS;
    this.#why = "expired";
    this.#watch();
    if (this.state === "connected") return;
    if (!link.sse) this.#misses = this.#upgrades = 0;
    // It may get through after all. That is tried now and then, and costs a stream nothing but time.
    else if (this.#WebSocket) this.#later(UPGRADE_MS * 2 ** Math.min(9, this.#upgrades++));
    this.transport = link.sse ? "sse" : "websocket";
    const { commands_per_s, publishes_per_s } = this.limits ?? {};
    link.commands.limit(commands_per_s);
    link.publishes.limit(publishes_per_s);
    this.state = "connected";
    if (!link.sse) for (const each of this.#subscriptions.values()) this.#subscribe(each);
    for (const item of this.#outbox) this.#post(item);
    for (const each of this.#waiting) each.resolve();
    this.#waiting.clear();
    // Last: what a listener does comes behind what was wanted before.
    this.#change("connected");
  }

  /** The link broke, or was given up. @param {Link} link @param {Closing} [end] */
  #lost(link, end = {}) {
    if (link !== this.#link) return;
    const { code = 1006, reason, retry_in_ms = 0 } = { ...end, ...link.closing };
    const missed = this.state === "connecting" && !link.sse && code < 4000;
    this.#stop();
    if (code === 4005) {
      this.#token = null;
      this.#why = "expired";
    }
    if ((code >= 4500 && code < 5000) || (code === 4005 && !this.#getToken)) return this.#finish({ code, reason });
    if (missed && ++this.#misses >= 2 && this.#sse) {
      // HTTP may get through where WebSocket does not.
      this.#attempt(true);
    } else {
      this.#wait(retry_in_ms, { code, reason });
    }
  }

  /** @param {number} least in ms @param {Closing} why */
  #wait(least, why) {
    const spread = random() * Math.min(MOST_MS, SPREAD_MS * 2 ** this.#failures++);
    const retryInMs = Math.max(least, spread);
    this.#notBefore = clock() + least;
    this.#later(retryInMs);
    this.#change("waiting", { retryInMs, ...why });
  }

  /** @param {number} ms */
  #later(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#attempt(), ms);
  }

  /** Let go of the link and of all that rests on it. */
  #stop(error = lost()) {
    this.#turn += 1;
    clearTimeout(this.#timer);
    clearTimeout(this.#watcher);
    const link = this.#link;
    if (!link) return;
    this.#link = null;
    this.transport = this.session = null;
    clearTimeout(link.timer);
    link.commands.stop();
    link.publishes.stop();
    link.abort?.abort();
    link.socket?.close();
    for (const each of this.#subscriptions.values()) each.state = "pending";
    for (const call of link.calls.values()) call.reject(error);
  }

  /** @param {Closing} end */
  #finish({ code, reason }) {
    if (this.state === "closed") return;
    const error = new GalecastError("closed", reason);
    this.#stop(error);
    this.#listen("removeEventListener");
    this.#change("closed", { code, reason });
    for (const each of this.#subscriptions.values()) each._end(code ? error : undefined);
    this.#subscriptions.clear();
    for (const item of this.#outbox) this.#settle(item, error);
    for (const each of this.#waiting) each.reject(error);
    this.#waiting.clear();
  }

  /** @param {ConnectionState} state @param {object} [more] */
  #change(state, more) {
    this.state = state;
    emit(this, "state", { state, transport: this.transport, ...more });
  }

  #assertOpen() {
    if (this.state === "closed") throw new GalecastError("closed");
  }

  // ---- staying alive

  /** @param {"addEventListener" | "removeEventListener"} verb */
  #listen(verb) {
    globalThis[verb]?.("online", this.#wake);
    globalThis.document?.[verb]("visibilitychange", this.#wake);
  }

  /** The network is back, or the page is looked at: no reason to wait. */
  #wake = () => {
    if (globalThis.document?.hidden) return;
    this.#failures = 0;
    if (this.state === "connected") this.#probe();
    // An attempt that began before may hang for long: nobody answers it any more.
    else if (this.state === "waiting" || (this.state === "connecting" && clock() - this.#begun > SPREAD_MS)) this.#hurry();
  };

  #hurry() {
    const retryInMs = this.#notBefore - clock();
    if (retryInMs > 0) {
      this.#later(retryInMs);
      this.#change("waiting", { retryInMs });
    } else {
      this.#attempt(this.#link?.sse);
    }
  }

  /** Look again when silence would be strange. */
  #watch() {
    clearTimeout(this.#watcher);
    const left = this.#silence - this.#quiet;
    if (left > 0) this.#watcher = setTimeout(() => this.#watch(), left);
    else this.#probe();
  }

  /**
   * For how long nothing was heard, in ms; by the clock that goes on while the machine sleeps.
   * Of several streams the most silent one counts: another that lives says nothing of it.
   */
  get #quiet() {
    return Math.abs(Date.now() - Math.min(.../** @type {Link} */ (this.#link).heard));
  }

  /** Find out whether the server is there. */
  #probe() {
    const link = /** @type {Link} */ (this.#link);
    if (link.sse) {
      // Streams bring comments, so there is nothing to ask; without one there is.
      if (this.#quiet < this.#silence) return;
      if (this.#subscriptions.size) this.#lost(link);
      else this.#restream(link);
      return;
    }
    clearTimeout(this.#watcher);
    const count = this.#count;
    this.#call(link, { type: "ping" }).catch(noop);
    this.#watcher = setTimeout(() => (count === this.#count ? this.#lost(link) : this.#watch()), PONG_MS);
  }

  // ---- what comes

  /** @param {Link} link @param {any} fields */
  #take(link, { type, ref, ...message }) {
    if (!link.sse) link.heard[0] = Date.now();
    this.#count += 1;
    const { channel } = message;
    const subscription = this.#subscriptions.get(channel);
    const live = subscription?.state === "live" && !subscription._held;
    if (type === "event") {
      if (!live) return;
      if (this.#muted.has(channel + " " + message.id)) subscription._at = message.position;
      else subscription._take(message);
      return;
    }
    const call = link.calls.get(ref);
    link.calls.delete(ref);
    if (type === "error") call?.reject(new GalecastError(message.code, message.message, message.retry));
    else if (type === "connected") this.#connect(link, message);
    else if (type === "closing") link.closing = message;
    else this.#failures = 0;
    if (type === "subscribed" || type === "published") link.refusals = 0;
    if (type === "subscribed") {
      if (subscription) {
        if (link.sse || call?.subscription === subscription) subscription._subscribed(message);
      } else if (!ref) {
        // The server itself subscribed this session.
        /** @type {Subscription} */
        const subscription = new (/** @type {any} */ (Subscription))(this, channel);
        this.#subscriptions.set(channel, subscription);
        subscription._subscribed(message);
        emit(this, "subscription", { subscription });
      }
    } else if (type === "reset") {
      if (live) subscription._reset(message.position);
    } else if (type === "presence") {
      if (live) subscription._presence(message);
    } else if (type === "unsubscribed" && !ref && subscription) {
      this.#refused(subscription, new GalecastError(message.code, message.message));
    } else if (type === "expiring") {
      this.#refresh(link, message.in_s);
    }
    call?.resolve(message);
  }

  /** Get a new token before this one ends. @param {Link} link @param {number} inS */
  async #refresh(link, inS) {
    if (!this.#getToken || link.renewing) return;
    link.renewing = true;
    // Not all clients at once, and not at once again when the new one is short too.
    await pause(inS * 100);
    while (link === this.#link) {
      try {
        await this.#renew("expiring");
        if (link !== this.#link) return;
        link.renewing = false;
        if (!this.#token) return;
        if (link.sse) return this.#restream(link);
        const { expires_s } = await this.#call(link, { type: "refresh", token: this.#token });
        this.#tokenUntil = Date.now() + 1000 * expires_s;
        return;
      } catch (/** @type {any} */ error) {
        // Of another user: that takes a new session.
        if (error?.code === "forbidden") return this.#lost(link);
      }
      await pause(SPREAD_MS * 3);
    }
  }

  // ---- commands

  /**
   * Send a command over a link.
   * @param {Link} link @param {any} message @param {Subscription} [subscription]
   * @returns {Promise<any>}
   */
  #call(link, message, subscription) {
    return new Promise((resolve, reject) => {
      this.#assertOpen();
      // It may have been lost between the look for it and here; nothing would answer.
      if (link !== this.#link) throw lost();
      const ref = (link.ref += 1);
      const data = this.#codec.encode({ ...defined(message), ref });
      const most = this.limits?.frame_bytes;
      // The server would end the session for good.
      if (most && data.length * 3 > most && new Blob([data]).size > most) throw new GalecastError("too_large", `over ${most} bytes`);
      link.calls.set(ref, { resolve, reject, subscription });
      link.commands.push(data);
    });
  }

  /** Ask, over whatever there is, and again if the connection is lost. @param {any} message @returns {Promise<any>} */
  async #ask(message) {
    if (this.#asking >= this.#queue) throw full();
    this.#asking += 1;
    try {
      for (;;) {
        const link = await this.#connected();
        try {
          return await (link.sse ? this.#get(message) : this.#call(link, message));
        } catch (/** @type {any} */ error) {
          if (link.sse && this.#expired(error)) this.#failed(link, error);
          else if (error.code !== "disconnected") throw error;
          else if (link === this.#link) await pause(SPREAD_MS);
        }
      }
    } finally {
      this.#asking -= 1;
    }
  }

  /** @returns {Promise<Link>} */
  async #connected() {
    this.#assertOpen();
    while (this.state !== "connected" || !this.#link) {
      await new Promise((resolve, reject) => this.#waiting.add({ resolve, reject }));
    }
    return this.#link;
  }

  /** What it is now, whatever becomes of it. @param {any} value @returns {any} */
  #copy(value) {
    try {
      return this.#codec.decode(this.#codec.encode(value));
    } catch {
      throw new GalecastError("invalid_data", "cannot be encoded");
    }
  }

  // ---- publishing

  /** @param {Item} item */
  #post(item) {
    const link = this.#link;
    if (link?.sse) this.#postAll(link);
    else link?.publishes.push(item);
  }

  /** @param {Link} link @param {Item} item */
  async #send(link, item) {
    if (!this.#start(item)) return;
    try {
      this.#settle(item, null, await this.#call(link, item.message));
    } catch (error) {
      await this.#postpone(link, item, error);
      if (link === this.#link) link.publishes.push(item);
    }
  }

  /** Publish over HTTP, one after the other. @param {Link} link */
  async #postAll(link) {
    if (link.posting) return;
    link.posting = true;
    for (const item of this.#outbox) {
      while (link === this.#link && this.#start(item)) {
        try {
          const { type: _type, echo: _echo, ...event } = item.message;
          this.#settle(item, null, await this.#http("/v1/events", JSON.stringify(event)));
          link.refusals = 0;
        } catch (error) {
          if (this.#expired(error)) this.#failed(link, error);
          else await this.#postpone(link, item, error);
        }
      }
    }
    link.posting = false;
  }

  /** Say whether an item may be sent: not when the server may have forgotten its id. @param {Item} item */
  #start(item) {
    const late = () => this.#settle(item, new GalecastError("timeout", "no answer in time"));
    item.timer ??= setTimeout(late, this.#retryFor);
    // Timers stand still while the machine sleeps.
    item.until ??= Date.now() + this.#retryFor;
    if (Date.now() > item.until) late();
    return this.#outbox.has(item);
  }

  /** Wait before an item is sent again, or give it up. @param {Link} link @param {Item} item @param {any} error */
  async #postpone(link, item, error) {
    if (!error.retry) return this.#settle(item, error);
    if (link === this.#link) await this.#pause(link);
  }

  /** Wait the longer, the more was refused in a row. @param {Link} link */
  #pause(link) {
    return pause(Math.min(MOST_MS / 2, SPREAD_MS * 2 ** (link.refusals++ >> 3)));
  }

  /** @param {Item} item @param {unknown} error @param {any} [answer] */
  #settle(item, error, answer) {
    if (!this.#outbox.delete(item)) return;
    clearTimeout(item.timer);
    if (error) item.reject(error);
    else item.resolve(answer);
  }

  // ---- subscriptions

  /** Whether it is the one of its channel. @param {Subscription} subscription */
  #has(subscription) {
    return this.#subscriptions.get(subscription.channel) === subscription;
  }

  /** @param {Subscription} subscription */
  async #subscribe(subscription) {
    const link = this.#link;
    if (!link || subscription._held) return;
    if (link.sse) return this.#restream(link);
    if (this.state !== "connected") return;
    const { channel, _at: since, _options } = subscription;
    subscription.state = "pending";
    const answer = this.#call(link, { ..._options, type: "subscribe", channel, since }, subscription);
    const { _info: info } = subscription;
    if (info !== undefined) this.#call(link, { type: "presence", channel, info }).catch(noop);
    try {
      await answer;
    } catch (/** @type {any} */ error) {
      if (link === this.#link && this.#has(subscription)) this.#refused(subscription, error);
    }
  }

  /** @param {Subscription} subscription @param {GalecastError} error */
  async #refused(subscription, error) {
    const { channel } = subscription;
    const link = this.#link;
    if (error.retry && link) {
      await this.#pause(link);
      if (link === this.#link && this.#has(subscription)) this.#subscribe(subscription);
      return;
    }
    this.#subscriptions.delete(channel);
    subscription._end(error);
  }

  /** @internal @param {Subscription} subscription */
  _unsubscribe(subscription) {
    const { channel } = subscription;
    if (!this.#has(subscription)) return;
    this.#subscriptions.delete(channel);
    if (!subscription._held) this.#leave(channel);
  }

  /** @internal @param {Subscription} subscription */
  _hold(subscription) {
    subscription._held = true;
    this.#leave(subscription.channel);
  }

  /** @internal @param {Subscription} subscription */
  _release(subscription) {
    subscription._held = false;
    if (this.#has(subscription)) this.#subscribe(subscription);
  }

  /** @param {string} channel */
  #leave(channel) {
    const link = this.#link;
    if (link?.sse) this.#restream(link);
    else if (link && this.state === "connected") this.#call(link, { type: "unsubscribe", channel }).catch(noop);
  }

  /** @internal @param {Subscription} subscription @param {any} value */
  async _setPresence(subscription, value) {
    const { channel } = subscription;
    const info = (subscription._info = this.#copy(value));
    const link = await this.#connected();
    if (link.sse) throw new GalecastError("unavailable", "WebSocket only", true);
    await this.#ask({ type: "presence", channel, info });
  }

  // ---- the stream, where WebSocket cannot be had

  /** Open the stream anew with the channels that are wanted now. @param {Link} link */
  #restream(link) {
    if (link.stale) return;
    link.stale = true;
    // Now: what is on its way would be taken for what the next stream brings.
    link.abort?.abort();
    // Calls that come together make one stream.
    setTimeout(() => {
      if (link === this.#link) this.#stream(link);
    });
  }

  /** @param {Link} link */
  async #stream(link) {
    link.stale = false;
    const { signal } = (link.abort = new AbortController());
    const wanted = [...this.#subscriptions.values()].filter((each) => !each._held);
    for (const each of wanted) each.state = "pending";
    try {
      link.heard = [Date.now()];
      if (!wanted.length) {
        await this.#http("/healthz");
        if (!signal.aborted) this.#connect(link, this);
        return;
      }
      const streams = [];
      while (wanted.length) {
        streams.push(this.#read(link, signal, wanted.splice(0, STREAM_CHANNELS), streams.length));
      }
      await Promise.race(streams);
      if (!signal.aborted) this.#lost(link);
    } catch (error) {
      if (!signal.aborted) this.#failed(link, error);
    }
  }

  /**
   * Read one stream to its end.
   * @param {Link} link @param {AbortSignal} signal @param {Subscription[]} wanted @param {number} place
   */
  async #read(link, signal, wanted, place) {
    link.heard[place] = Date.now();
    const query = new URLSearchParams(wanted.map(({ channel }) => ["channel", channel]));
    // Each in the order of the channels, empty where there is none.
    query.set("since", wanted.map((each) => each._at).join());
    for (const name of /** @type {const} */ (["rewind", "from", "max_rate_hz"])) {
      query.set(name, wanted.map((each) => each._options[name]).join());
    }
    for (const each of wanted) if (each._options.presence) query.append("presence", each.channel);
    const response = await this.#request(`/v1/sse?${query}`, { signal });
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted || done) return;
      link.heard[place] = Date.now();
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        // Not by a regular expression: to those, U+2028 within a text ends a line.
        const line = block.split("\n").find((each) => each.startsWith("data: "));
        if (line) this.#take(link, JSON.parse(line.slice(6)));
        if (signal.aborted) return;
      }
    }
  }

  /** Whether a new token would help. @param {any} error */
  #expired({ code }) {
    return code === "token_expired" || (code === "unauthorized" && this.#getToken && !this.#fresh);
  }

  /** The stream was refused, or broke. @param {Link} link @param {any} error */
  #failed(link, error) {
    const { code, channel, retry, retry_in_ms, message: reason } = error;
    const subscription = this.#subscriptions.get(channel);
    if (subscription && !retry) {
      this.#refused(subscription, error);
      return this.#restream(link);
    }
    const ends = { forbidden: 4503, bad_request: 4500, unauthorized: 4501 };
    const end = this.#expired(error) ? 4005 : /** @type {Record<string, number>} */ (ends)[code];
    this.#lost(link, { code: end, reason, retry_in_ms });
  }

  /** Ask over HTTP what a command asks. @param {any} message @returns {Promise<any>} */
  async #get({ type, channel, ...rest }) {
    const query = new URLSearchParams(defined({ ...rest, order: "desc" }));
    const what = type === "history" ? "events" : type;
    const page = await this.#http(`/v1/channels/${encodeURIComponent(channel)}/${what}?${query}`);
    page.events?.reverse();
    return page;
  }

  /** @param {string} path @param {string} [body] @returns {Promise<any>} */
  async #http(path, body) {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const response = await this.#request(path, { method: body && "POST", body, signal });
    return response.json().catch(broken);
  }

  /** Send a request; throws what was refused. @param {string} path @param {RequestInit} init @returns {Promise<Response>} */
  async #request(path, init) {
    /** @type {Record<string, string>} */
    const headers = init.body ? { "Content-Type": "application/json" } : {};
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    // Called as a method it would be refused by browsers.
    const fetch = this.#fetch;
    const response = await fetch(this.#base + path, { ...init, headers, cache: "no-store", credentials: "omit" }).catch(broken);
    if (response.ok) return response;
    const { code = "unavailable", detail, retry = response.status >= 500, channel } = await response.json().catch(() => ({}));
    // A proxy may write a date.
    const retry_in_ms = 1000 * (Number(response.headers.get("Retry-After")) || 0);
    throw Object.assign(new GalecastError(code, detail, retry), { channel, retry_in_ms });
  }
}

/** Leave out what is undefined. @param {Record<string, any>} fields */
const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/**
 * Connect to a server, and stay connected.
 *
 * `url` is its address (http, https, ws or wss), with a path if it stands behind one; without it, the
 * server that the page came from. Returns at once. Throws TypeError if an option makes no sense.
 * @param {string | URL} [url]
 * @param {ConnectOptions} [options]
 * @returns {Connection}
 */
export function connect(url = globalThis.location?.origin, options = {}) {
  return new (/** @type {any} */ (Connection))(url, options);
}

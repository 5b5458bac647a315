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
export type EventMessage = {
    channel: string;
    /**
     * where it stands in its channel; what `since` takes
     */
    position: string;
    /**
     * unique in its channel
     */
    id: string;
    /**
     * the kind of event
     */
    name: string;
    data: any;
    tags: Record<string, string>;
    /**
     * in ms since 1970; never decreases within a channel
     */
    time: number;
    /**
     * who published it, if a user did
     */
    user?: string;
    /**
     * events that were left out directly before it, if any were
     */
    skipped?: number;
};
export type Member = {
    session: string;
    user: string | null;
    /**
     * what the session set; `{}` at first
     */
    info: any;
};
export type Published = {
    channel: string;
    position: string;
    id: string;
    /**
     * whether the id had been published before
     */
    duplicate: boolean;
};
export type EventPage = {
    events: EventMessage[];
    cursor?: string;
};
export type MemberPage = {
    members: Member[];
    cursor?: string;
};
export type ConnectionState = "connecting" | "connected" | "waiting" | "paused" | "closed";
export type Transport = "websocket" | "sse";
export type TokenReason = "connect" | "expiring" | "expired";
export type Encoding = {
    encode: (value: any) => Uint8Array;
    decode: (bytes: Uint8Array) => any;
};
export type ConnectOptions = {
    /**
     * a JWT; without it and without `getToken` the client is anonymous
     */
    token?: string;
    /**
     * asked for a token before the first connection, and before the token ends; null: anonymous.
     * When it throws it is asked again after a pause.
     */
    getToken?: (why: {
        reason: TokenReason;
    }) => Promise<string | null> | string | null;
    /**
     * `"json"` unless a MessagePack encoder is handed in
     */
    encoding?: "json" | Encoding;
    /**
     * what may be used, both unless told otherwise
     */
    transports?: Transport[];
    /**
     * publishes and questions that may wait at most (1000)
     */
    queue?: number;
    /**
     * ms after its first attempt within which a publish is sent again
     * (240000); has to be less than the server's `broker.idempotency_window_s`
     */
    retryFor?: number;
    /**
     * takes the place of the global one
     */
    WebSocket?: any;
    /**
     * takes the place of the global one
     */
    fetch?: typeof fetch;
};
export type SubscribeOptions = {
    /**
     * resume behind this position; null: from now on
     */
    since?: string | null;
    /**
     * begin with the last N events; with `since` only if that is too old
     */
    rewind?: number;
    /**
     * begin with the first event of this time (ms since 1970) or later; with
     * `since` only if that cannot be continued
     */
    from?: number;
    /**
     * keep `members` in step
     */
    presence?: boolean;
    /**
     * at most so many events a second, the newest ones; others are skipped
     */
    maxRateHz?: number;
};
export type PublishOptions = {
    /**
     * the kind of event (`"message"`)
     */
    name?: string;
    tags?: Record<string, string>;
    /**
     * published once in its channel; a random one unless told otherwise
     */
    id?: string;
    /**
     * `false`: this client does not get the event itself
     */
    echo?: boolean;
};
export type StateEvent = Event & {
    state: ConnectionState;
    transport: Transport | null;
    code?: number;
    reason?: string;
    retryInMs?: number;
};
export type SubscriptionEvent = Event & {
    subscription: Subscription;
};
export type ConnectionEvents = {
    state: StateEvent;
    subscription: SubscriptionEvent;
};
export type SubscribedEvent = Event & {
    position: string;
    recovered?: boolean;
};
export type ResetEvent = Event & {
    position: string;
};
export type MembersEvent = Event & {
    action: "join" | "leave" | "update" | "sync";
    member?: Member;
};
export type EndedEvent = Event & {
    code?: string;
    message?: string;
};
export type SubscriptionEvents = {
    subscribed: SubscribedEvent;
    reset: ResetEvent;
    members: MembersEvent;
    ended: EndedEvent;
};
export type Typed<M> = {
    addEventListener<K extends keyof M>(type: K, listener: (event: M[K]) => void, options?: boolean | AddEventListenerOptions): void;
    removeEventListener<K extends keyof M>(type: K, listener: (event: M[K]) => void, options?: boolean | EventListenerOptions): void;
} & EventTarget;
export type EventHandler = (event: EventMessage, subscription: Subscription) => unknown;
/**
 * What was refused, or could not be done.
 *
 * `code` is an error code of the protocol, such as `forbidden`, or one of this library: `closed`
 * (the connection is over), `disconnected` (it was lost meanwhile), `queue_full`, and `timeout` (a
 * publish whose answer did not come in time; it may have happened). `retry` says whether the same
 * may succeed later.
 */
export declare class GalecastError extends Error {
    code: string;
    retry: boolean;
    /** @param {string} code @param {string} [message] @param {boolean} [retry] */
    constructor(code: string, message?: string, retry?: boolean);
}
declare const Subscription_base: new () => Typed<SubscriptionEvents>;
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
export declare class Subscription extends /** @type {new () => Typed<SubscriptionEvents>} */ /** @type {new () => Typed<SubscriptionEvents>} */ Subscription_base {
    #private;
    channel: string;
    /**
     * Behind the last event that was dealt with; null before there is one to resume from.
     * @type {string | null}
     */
    position: string | null;
    /** Settled by the first `subscribed`, or by the refusal. @type {Promise<Subscription>} */
    ready: Promise<Subscription>;
    /** Who is present, by session; kept in step with `presence: true`. @type {Map<string, Member>} */
    members: Map<string, Member>;
    /** Whether there are more members than `members` holds; it ends at 1000. */
    more: boolean;
    /** @type {"pending" | "live" | "ended"} */
    state: "pending" | "live" | "ended";
    /**
     * Private to applications; a connection makes them.
     * @private
     * @param {Connection} connection
     * @param {string} channel
     * @param {EventHandler} [handler]
     * @param {SubscribeOptions} [options]
     */
    private constructor();
    /** End it; what comes late is dropped. */
    unsubscribe(): void;
    /**
     * Set this session's own entry in the presence set, now and after every reconnect.
     *
     * Over WebSocket only: else it rejects with `unavailable`, and is sent once there is one.
     * @param {any} info
     * @returns {Promise<void>}
     */
    setPresence(info: any): Promise<void>;
    /**
     * Yields events in order; to leave the loop ends the subscription.
     *
     * While 1000 events wait for a slow consumer the subscription is given up, and resumed later: then
     * too nothing is lost that the server still keeps, or there is a `reset`.
     */
    [Symbol.asyncIterator](): AsyncGenerator<EventMessage, void, unknown>;
}
declare const Connection_base: new () => Typed<ConnectionEvents>;
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
export declare class Connection extends /** @type {new () => Typed<ConnectionEvents>} */ /** @type {new () => Typed<ConnectionEvents>} */ Connection_base {
    #private;
    /** @type {ConnectionState} */ state: ConnectionState;
    /** @type {Transport | null} */ transport: Transport | null;
    /** The server's name for this session. @type {string | null} */ session: string | null;
    /** @type {string | null} */ user: string | null;
    /** The server process. @type {string | null} */ node: string | null;
    /** What the server allows. @type {Record<string, number> | null} */ limits: Record<string, number> | null;
    /** Private to applications; `connect` makes them. @private @param {string | URL} url @param {ConnectOptions} options */
    private constructor();
    /**
     * Receive a channel's events, from now on unless `since`, `rewind` or `from` say otherwise.
     *
     * Throws GalecastError `conflict` if there is a subscription to the channel already, and `closed`.
     * @param {string} channel
     * @param {EventHandler} [handler] without it, take events by `for await`
     * @param {SubscribeOptions} [options]
     * @returns {Subscription}
     */
    subscribe(channel: string, handler?: EventHandler, options?: SubscribeOptions): Subscription;
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
    publish(channel: string, data: any, { name, tags, id, echo }?: PublishOptions): Promise<Published>;
    /**
     * Read kept events, the newest first page; the page before with `before: page.cursor`.
     * @param {string} channel
     * @param {{ limit?: number, before?: string }} [options]
     * @returns {Promise<EventPage>}
     */
    history(channel: string, { limit, before }?: {
        limit?: number;
        before?: string;
    }): Promise<EventPage>;
    /**
     * Read a page of who is present.
     * @param {string} channel
     * @param {{ cursor?: string }} [options]
     * @returns {Promise<MemberPage>}
     */
    members(channel: string, { cursor }?: {
        cursor?: string;
    }): Promise<MemberPage>;
    /** Measure the time to the server and back, in ms. @returns {Promise<number>} */
    ping(): Promise<number>;
    /**
     * The same for one channel.
     * @param {string} name
     */
    channel(name: string): {
        name: string;
        /** @param {EventHandler} [handler] @param {SubscribeOptions} [options] */
        subscribe: (handler?: EventHandler, options?: SubscribeOptions) => Subscription;
        /** @param {any} data @param {PublishOptions} [options] */
        publish: (data: any, options?: PublishOptions) => Promise<Published>;
        /** @param {{ limit?: number, before?: string }} [options] */
        history: (options?: {
            limit?: number;
            before?: string;
        }) => Promise<EventPage>;
        /** @param {{ cursor?: string }} [options] */
        members: (options?: {
            cursor?: string;
        }) => Promise<MemberPage>;
    };
    /** Cut the connection until `resume()`; what is published meanwhile waits. */
    pause(): void;
    /** Come back at once, and resume everything; not before the time that the server has asked for. */
    resume(): void;
    /** End it for good; all that waits is rejected with `closed`. */
    close(): void;
}
/**
 * Connect to a server, and stay connected.
 *
 * `url` is its address (http, https, ws or wss), with a path if it stands behind one; without it, the
 * server that the page came from. Returns at once. Throws TypeError if an option makes no sense.
 * @param {string | URL} [url]
 * @param {ConnectOptions} [options]
 * @returns {Connection}
 */
export declare function connect(url?: string | URL, options?: ConnectOptions): Connection;
export {};

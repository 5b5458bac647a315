/** Not run, only compiled: all of the library as an application in TypeScript uses it. */

import { connect, Connection, GalecastError, Subscription } from "../../static/galecast.js";
import type {
  ConnectOptions,
  EventMessage,
  Member,
  Published,
  StateEvent,
} from "../../static/galecast.js";

/** Whether two types are the same. */
type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
declare function expect<T extends true>(): T;

export async function use(signal: AbortSignal): Promise<void> {
  const texts: string[] = [];

  // ---- connecting
  connect();
  connect(new URL("https://example.org"));
  connect("https://example.org", { token: "jwt" });
  connect("wss://example.org/live", { getToken: () => null });
  const options: ConnectOptions = {
    getToken: async ({ reason }) => {
      expect<Same<typeof reason, "connect" | "expiring" | "expired">>();
      return (await fetch(`/token?reason=${reason}`)).text();
    },
    encoding: { encode: (value) => new Uint8Array([value]), decode: (bytes) => bytes.length },
    transports: ["sse"],
    queue: 10,
    retryFor: 1000,
    WebSocket,
    fetch,
  };
  const connection: Connection = connect("https://example.org", options);
  connect("https://example.org", { encoding: "json", transports: ["websocket", "sse"] });

  // @ts-expect-error: no such option
  connect("https://example.org", { tokens: "jwt" });
  // @ts-expect-error: no such encoding
  connect("https://example.org", { encoding: "xml" });
  // @ts-expect-error: no such transport
  connect("https://example.org", { transports: ["pigeon"] });
  // @ts-expect-error: a token is a string
  connect("https://example.org", { getToken: async () => 5 });
  // @ts-expect-error: that is no address
  connect(5);

  // ---- the connection
  expect<
    Same<typeof connection.state, "connecting" | "connected" | "waiting" | "paused" | "closed">
  >();
  expect<Same<typeof connection.transport, "websocket" | "sse" | null>>();
  expect<Same<typeof connection.session, string | null>>();
  expect<Same<typeof connection.user, string | null>>();
  expect<Same<typeof connection.node, string | null>>();
  connection.limits?.publishes_per_s?.toFixed();
  connection.addEventListener("state", (event) => {
    expect<Same<typeof event, StateEvent>>();
    expect<Same<typeof event.state, typeof connection.state>>();
    event.retryInMs?.toFixed();
    event.code?.toFixed();
    event.reason?.trim();
    // @ts-expect-error: no such field
    event.colour;
  });
  connection.addEventListener("state", () => {}, { once: true, signal });
  connection.addEventListener("subscription", ({ subscription }) => {
    expect<Same<typeof subscription, Subscription>>();
  });
  const listener = ({ state }: StateEvent) => texts.push(state);
  connection.addEventListener("state", listener);
  connection.removeEventListener("state", listener);
  connection.removeEventListener("state", listener, { capture: true });
  // @ts-expect-error: it would be told something else
  connection.removeEventListener("subscription", listener);
  // @ts-expect-error: made by `connect` alone
  new Connection();
  // @ts-expect-error: made by `connect` alone
  new Connection("https://example.org", {});
  const target: EventTarget = connection;
  target.dispatchEvent(new Event("state"));
  connection.pause();
  connection.resume();
  expect<Same<Awaited<ReturnType<typeof connection.ping>>, number>>();
  // @ts-expect-error: it has no channel
  await connection.publish({ text: "hello" });

  // ---- publishing
  const published = await connection.publish(
    "chat.lobby",
    { text: "hello" },
    { name: "said", tags: { lang: "en" }, id: "m-1", echo: false },
  );
  expect<Same<typeof published, Published>>();
  expect<Same<typeof published.duplicate, boolean>>();
  texts.push(published.channel, published.position, published.id);
  // @ts-expect-error: tags are strings
  await connection.publish("chat.lobby", 1, { tags: { n: 1 } });
  // @ts-expect-error: no such option
  await connection.publish("chat.lobby", 1, { retain: true });

  // ---- subscribing
  const handled: Subscription = connection.subscribe(
    "chat.lobby",
    (event, subscription) => {
      expect<Same<typeof event, EventMessage>>();
      expect<Same<typeof subscription, Subscription>>();
      texts.push(event.channel, event.position, event.id, event.name, event.tags.lang ?? "");
      texts.push(event.data.text, event.user ?? "nobody", new Date(event.time).toISOString());
    },
    { since: texts[0] ?? "", rewind: 20, presence: true, maxRateHz: 10 },
  );
  connection.subscribe("chat.lobby", () => {}, { since: localStorage.getItem("position") });
  // @ts-expect-error: a position is no number
  connection.subscribe("chat.lobby", () => {}, { since: 5 });
  // @ts-expect-error: made by `subscribe` alone
  new Subscription(connection, "chat.lobby");
  // @ts-expect-error: a number of events
  connection.subscribe("chat.lobby", () => {}, { rewind: "20" });
  // @ts-expect-error: no such field
  connection.subscribe("chat.lobby", (event) => event.offset);
  expect<Same<typeof handled.state, "pending" | "live" | "ended">>();
  expect<Same<typeof handled.position, string | null>>();
  expect<Same<typeof handled.channel, string>>();
  expect<Same<Awaited<typeof handled.ready>, Subscription>>();
  const members: Map<string, Member> = handled.members;
  for (const { session, user, info } of members.values()) texts.push(session, user ?? "", info);
  await handled.setPresence({ typing: true });
  handled.addEventListener("subscribed", ({ recovered, position }) => {
    expect<Same<typeof recovered, boolean | undefined>>();
    texts.push(position);
  });
  handled.addEventListener("reset", ({ position }) => texts.push(position));
  handled.addEventListener("members", ({ action, member }) => {
    expect<Same<typeof action, "join" | "leave" | "update" | "sync">>();
    texts.push(member?.session ?? "");
  });
  handled.addEventListener("ended", ({ code, message }) => texts.push(code ?? "", message ?? ""));
  // @ts-expect-error: a position is no number
  handled.addEventListener("reset", ({ position }) => position.toFixed());
  const ended = ({ code }: { code?: string }) => texts.push(code ?? "");
  handled.addEventListener("ended", ended);
  handled.removeEventListener("ended", ended);
  // @ts-expect-error: it may be null
  handled.position.length;
  handled.unsubscribe();

  // ---- iterating
  for await (const event of connection.subscribe("chat.lobby")) {
    expect<Same<typeof event, EventMessage>>();
    if (event.name === "end") break;
  }
  for await (const { data } of connection.subscribe("x", undefined, { rewind: 1 })) {
    texts.push(data);
  }
  // @ts-expect-error: it takes time
  for (const event of connection.subscribe("chat.lobby")) texts.push(event);

  // ---- questions
  const { events, cursor } = await connection.history("chat.lobby", { limit: 5, before: "p" });
  expect<Same<typeof events, EventMessage[]>>();
  expect<Same<typeof cursor, string | undefined>>();
  const page = await connection.members("chat.lobby", { cursor: "c" });
  expect<Same<typeof page.members, Member[]>>();

  // ---- a channel's own object
  const channel = connection.channel("chat.lobby");
  expect<Same<typeof channel.name, string>>();
  channel.subscribe((event) => texts.push(event.id), { rewind: 5 }).unsubscribe();
  expect<Same<Awaited<ReturnType<typeof channel.publish>>, Published>>();
  await channel.publish({ text: "hello" }, { name: "said" });
  (await channel.history({ limit: 5 })).events.at(0)?.id.trim();
  (await channel.members({ cursor: "c" })).members.at(0)?.session.trim();
  // @ts-expect-error: the channel is known
  await channel.history("chat.lobby");

  // ---- errors
  try {
    await connection.ping();
  } catch (error) {
    if (!(error instanceof GalecastError)) throw error;
    const wrong: Error = error;
    expect<Same<typeof error.retry, boolean>>();
    texts.push(wrong.message, error.code);
  }
  connection.close();
}

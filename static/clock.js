// What time it is on the server, and which events a page got late.

/** The server's clock, as far as the times of its events tell. */
export class ServerClock {
  #offset = Infinity;

  /** An event came that the server had stamped with `time`. */
  heard(time) {
    this.#offset = Math.min(this.#offset, Date.now() - time);
  }

  now() {
    return Date.now() - (Number.isFinite(this.#offset) ? this.#offset : 0);
  }
}

/**
 * Tells the events of one subscription apart: "past" (kept from before this page came), "late"
 * (missed while the connection was cut, and replayed), or "live".
 */
export class Arrivals {
  /** Of the last time that the subscription was resumed; `recovered` is undefined before any. */
  late = 0;
  recovered;

  #clock;
  #kind = "past";
  #until = 0;

  constructor(connection, subscription, clock) {
    this.#clock = clock;
    // From here on the server knows of this page; what is published now is not missed, though it
    // may be part of the replay.
    connection.addEventListener("state", ({ state }) => {
      if (state === "connected") this.#until = clock.now();
    });
    subscription.addEventListener("subscribed", ({ recovered }) => {
      // What comes behind a reset is kept history, not all that was missed.
      this.#kind = recovered ? "late" : "past";
      this.late = 0;
      this.recovered = recovered;
    });
    subscription.addEventListener("reset", () => (this.recovered = false));
  }

  /** Say which kind an event is, and count it. Replayed events come before all live ones. */
  kindOf({ time }) {
    this.#clock.heard(time);
    if (time >= this.#until) this.#kind = "live";
    if (this.#kind === "late") this.late += 1;
    return this.#kind;
  }
}

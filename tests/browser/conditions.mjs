/** Tests wait for conditions, never for a duration. */

export const PATIENCE_MS = 20_000;

/** Wait until `condition` (which may be async) holds, and return what it returned. */
export async function until(condition, what = String(condition), patience = PATIENCE_MS) {
  const deadline = performance.now() + patience;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (performance.now() > deadline) throw new Error(`did not come true: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Wait for an event of `target` that `accepts` takes. */
export function heard(target, type, accepts = () => true, patience = PATIENCE_MS) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => finish(reject, new Error(`no event ${type} came`)), patience);
    const listen = (event) => {
      if (accepts(event)) finish(resolve, event);
    };
    function finish(settle, value) {
      clearTimeout(late);
      target.removeEventListener(type, listen);
      settle(value);
    }
    target.addEventListener(type, listen);
  });
}

/** Wait until the connection is in the state, if it is not. */
export async function state(connection, name) {
  if (connection.state !== name) await becomes(connection, name);
}

/** Wait until the connection comes into the state, which may last only a moment. */
export function becomes(connection, name) {
  return heard(connection, "state", (event) => event.state === name);
}

/** The numbers from 0 to `count` - 1. */
export function numbers(count) {
  return Array.from({ length: count }, (_, index) => index);
}

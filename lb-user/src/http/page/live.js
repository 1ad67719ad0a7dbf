// Keeps in touch with the manager: its status every second, its events as they happen.

const EVERY_MS = 1000;
const PATIENCE_MS = 4000;
const AGAIN_MS = 2000;

export class Live {
  /** `on` has status(status), event(entry), lost(count) and live(word). */
  constructor(on) {
    this.on = on;
    this.last = null;
    this.timer = null;
    this.asking = false;
    this.again = false;
  }

  start() {
    document.addEventListener("visibilitychange", () => this.ask());
    this.ask();
    this.recall();
  }

  /** Asks for the status now, and from then on every second. */
  async ask() {
    if (this.asking) {
      this.again = true;
      return;
    }
    clearTimeout(this.timer);
    this.asking = true;
    this.again = false;
    try {
      this.on.status(await json("/api/v1/status"));
      this.on.live("live");
    } catch (error) {
      this.on.live("lost", String(error.message ?? error));
    }
    this.asking = false;
    const wait = this.again ? 50 : EVERY_MS;
    if (!document.hidden) this.timer = setTimeout(() => this.ask(), wait);
  }

  /** Asks for the events that were before, then listens. */
  async recall() {
    try {
      const { events } = await json("/api/v1/events");
      for (const entry of events) this.take(entry);
      this.listen();
    } catch {
      setTimeout(() => this.recall(), AGAIN_MS);
    }
  }

  listen() {
    const after = this.last === null ? "" : `?after=${this.last}`;
    const stream = new EventSource(`/api/v1/events/stream${after}`);
    stream.onmessage = (message) => {
      this.take(JSON.parse(message.data));
      this.ask();
    };
    stream.addEventListener("lost", (message) => this.on.lost(JSON.parse(message.data).events));
    stream.onerror = () => {
      // By itself it comes back only when the connection broke, not when it was refused.
      if (stream.readyState === EventSource.CLOSED) setTimeout(() => this.listen(), AGAIN_MS);
    };
  }

  take(entry) {
    if (this.last !== null && entry.id <= this.last) return;
    this.last = entry.id;
    this.on.event(entry);
  }
}

/** Asks what the manager remembers of a service. */
export function timeline(service, range) {
  return json(`/api/v1/timeline?range=${range}&service=${encodeURIComponent(service)}`);
}

async function json(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

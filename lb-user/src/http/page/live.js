// Requests the manager's status every second, and receives its events as they happen.

const INTERVAL_MS = 1000;
const TIMEOUT_MS = 4000;
const RETRY_MS = 2000;

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
    document.addEventListener("visibilitychange", () => this.poll());
    this.poll();
    this.loadEvents();
  }

  /** Requests the status now, and then every second. */
  async poll() {
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
    const wait = this.again ? 50 : INTERVAL_MS;
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), wait);
  }

  /** Requests the past events, then listens. */
  async loadEvents() {
    try {
      const { events } = await json("/api/v1/events");
      for (const entry of events) this.handle(entry);
      this.listen();
    } catch {
      setTimeout(() => this.loadEvents(), RETRY_MS);
    }
  }

  listen() {
    const after = this.last === null ? "" : `?after=${this.last}`;
    const stream = new EventSource(`/api/v1/events/stream${after}`);
    stream.onmessage = (message) => {
      this.handle(JSON.parse(message.data));
      this.poll();
    };
    stream.addEventListener("lost", (message) => this.on.lost(JSON.parse(message.data).events));
    stream.onerror = () => {
      // The browser reconnects after a broken connection, not after an error response.
      if (stream.readyState === EventSource.CLOSED) setTimeout(() => this.listen(), RETRY_MS);
    };
  }

  handle(entry) {
    if (this.last !== null && entry.id <= this.last) return;
    this.last = entry.id;
    this.on.event(entry);
  }
}

/** Requests the manager's samples of a service. */
export function timeline(service, range) {
  return json(`/api/v1/timeline?range=${range}&service=${encodeURIComponent(service)}`);
}

async function json(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

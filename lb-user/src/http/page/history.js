// Remembers the last ten minutes of figures, and turns counters into rates.

const KEPT_MS = 600_000;
/** Rates are taken over this long: shorter jumps about, longer lags behind. */
const RATE_MS = 1800;

export class History {
  constructor() {
    this.samples = [];
    this.marks = [];
    /** How far this clock is ahead of the manager's. */
    this.ahead = 0;
  }

  /** Puts what the manager remembers before what was seen here. */
  recall(timeline, now = Date.now()) {
    this.ahead = now - timeline.now_ms;
    const earliest = this.samples[0]?.at ?? now;
    const samples = timeline.at_ms.map((time, place) => {
      const services = {};
      for (const [service, tracks] of Object.entries(timeline.services)) {
        const backends = {};
        for (const [backend, track] of Object.entries(tracks)) {
          const connections = track.connections[place] ?? undefined;
          backends[backend] = { memory: track.memory_available_bytes[place], connections };
        }
        services[service] = backends;
      }
      return { at: time + this.ahead, services, verdicts: {} };
    });
    this.samples.unshift(...samples.filter(({ at }) => at < earliest));
  }

  add(status, at = Date.now()) {
    const services = {};
    for (const service of status.services) {
      const backends = {};
      for (const backend of service.backends) {
        backends[backend.name] = {
          memory: backend.memory_available_bytes,
          connections: backend.connections,
          in: backend.bytes_in,
          out: backend.bytes_out,
        };
      }
      services[service.name] = backends;
    }
    const verdicts = {};
    for (const [name, { packets }] of Object.entries(status.verdicts)) verdicts[name] = packets;
    this.samples.push({ at, services, verdicts });
    while (at - this.samples[0].at > KEPT_MS) this.samples.shift();
  }

  /** Remembers that a service's selection changed, at a time by the manager's clock. */
  mark(service, time) {
    const at = time + this.ahead;
    this.marks.push({ service, at });
    while (at - this.marks[0].at > KEPT_MS) this.marks.shift();
  }

  /** A counter's increase a second, now or at an earlier sample; null if it is not known. */
  rate(read, end = this.samples.length - 1) {
    const now = this.samples[end];
    if (!now) return null;
    let begin = end - 1;
    while (begin > 0 && now.at - this.samples[begin].at < RATE_MS) begin -= 1;
    const before = this.samples[begin];
    if (!before) return null;
    const [one, other] = [read(before), read(now)];
    if (one === undefined || other === undefined || now.at <= before.at) return null;
    return (Math.max(0, other - one) * 1000) / (now.at - before.at);
  }

  rateOf(service, backend, counter) {
    return this.rate((sample) => sample.services[service]?.[backend]?.[counter]);
  }

  /** Points [time, available bytes] of a backend. */
  memory(service, backend) {
    return this.samples.map((sample) => [
      sample.at,
      sample.services[service]?.[backend]?.memory ?? null,
    ]);
  }

  /** Points [time, new connections a second] of a backend. */
  connections(service, backend) {
    const read = (sample) => sample.services[service]?.[backend]?.connections;
    return this.samples.map((sample, index) => [sample.at, this.rate(read, index)]);
  }
}

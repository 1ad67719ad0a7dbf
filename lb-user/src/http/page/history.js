// Remembers the last ten minutes of figures, and turns counters into rates.

const KEPT = 600;
/** Rates are taken over this long: shorter jumps about, longer lags behind. */
const RATE_MS = 1800;

export class History {
  constructor() {
    this.samples = [];
    this.marks = [];
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
    if (this.samples.length > KEPT) this.samples.shift();
  }

  /** Remembers that a service's selection changed. */
  mark(service, at) {
    this.marks.push({ service, at });
    if (this.marks.length > KEPT) this.marks.shift();
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

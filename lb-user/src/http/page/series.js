// Figures over time: the manager's samples, then the page's own. Converts counters to rates.

/** The time for which the page keeps its samples, one a second; older ones come from the manager. */
const KEPT_MS = 90_000;
/** The time over which rates are computed: shorter ones fluctuate, longer ones lag. */
const RATE_MS = 1800;

/** Span and interval of samples, the manager's name of the range, and the interval of requests for it. */
export const RANGES = {
  "1m": { span: 60_000, step: 1000, from: "10m", every: 60_000 },
  "10m": { span: 600_000, step: 5000, from: "10m", every: 30_000 },
  "1h": { span: 3_600_000, step: 30_000, from: "1h", every: 30_000 },
  "24h": { span: 86_400_000, step: 600_000, from: "24h", every: 60_000 },
};

const GAUGES = ["memory", "open"];
const COUNTERS = ["connections", "refused", "bytes"];

export class Series {
  constructor() {
    this.live = [];
    this.marks = [];
    /** The manager's samples of one service, by its name for the range. */
    this.recalled = { service: null, ranges: {} };
    /** This clock minus the manager's. */
    this.ahead = 0;
  }

  /** Stores the manager's samples of a service. */
  recall(service, timeline, now = Date.now()) {
    this.ahead = now - timeline.now_ms;
    if (this.recalled.service !== service) this.recalled = { service, ranges: {} };
    const tracks = Object.entries(timeline.services[service] ?? {});
    this.recalled.ranges[timeline.range] = timeline.at_ms.map((time, place) => {
      const backends = {};
      for (const [name, track] of tracks) {
        const connections = track.connections[place];
        if (connections === null) continue;
        backends[name] = {
          memory: track.memory_available_bytes[place],
          open: track.open[place],
          connections,
          refused: track.refused[place],
          bytes: track.bytes[place],
        };
      }
      return { at: time + this.ahead, backends };
    });
  }

  add(status, at = Date.now()) {
    const services = {};
    for (const service of status.services) {
      const backends = (services[service.name] = {});
      for (const backend of service.backends) {
        // As the manager does: the line of a worker without heartbeats and connections ends.
        const heard = backend.name === "manager" || !["down", "unknown"].includes(backend.health);
        if (!heard && backend.flows === 0) continue;
        backends[backend.name] = {
          memory: heard ? backend.memory_available_bytes : null,
          open: backend.flows,
          connections: backend.connections,
          refused: backend.refused + backend.unanswered,
          bytes: backend.bytes_in + backend.bytes_out,
          in: backend.bytes_in,
          out: backend.bytes_out,
        };
      }
    }
    const refusals = {};
    for (const [name, counts] of Object.entries(status.refusals ?? {})) {
      refusals[name] = Object.values(counts).reduce((sum, count) => sum + count, 0);
    }
    const verdicts = {};
    for (const [name, { packets }] of Object.entries(status.verdicts)) verdicts[name] = packets;
    this.live.push({ at, services, refusals, verdicts });
    while (at - this.live[0].at > KEPT_MS) this.live.shift();
  }

  /** Stores the time of a change of a service's selection, by the manager's clock. */
  mark(service, time) {
    this.marks.push({ service, time });
    if (this.marks.length > 500) this.marks.shift();
  }

  /** The present rate of a counter, in increments a second; null if unknown. */
  rate(read) {
    const end = this.live.length - 1;
    const now = this.live[end];
    const before = this.live[since(this.live, end)];
    return before ? increase(read(before), read(now), now.at - before.at) : null;
  }

  rateOf(service, backend, counter) {
    return this.rate((sample) => sample.services[service]?.[backend]?.[counter]);
  }

  /** The connections to a service that the manager itself refuses, per second. */
  refusedByManager(service) {
    return this.rate((sample) => sample.refusals[service] ?? 0) ?? 0;
  }

  /** The sums of a service's rates a second: {connections, refused, bytes}; `refused` with those of the manager. */
  ratesOf(service) {
    const sums = {};
    for (const counter of COUNTERS) {
      const rates = service.backends.map(({ name }) => this.rateOf(service.name, name, counter));
      sums[counter] = rates.every((rate) => rate === null) ? null : rates.reduce((sum, rate) => sum + rate, 0);
    }
    if (sums.refused !== null) sums.refused += this.refusedByManager(service.name);
    return sums;
  }

  /** The times of a range, and by backend a list of values for each figure: rates for counters. */
  over(service, range) {
    const { span, step, from } = RANGES[range];
    const rows = this.rows(service, from, range === "1m" ? 0 : step);
    const earliest = (rows.at(-1)?.at ?? 0) - span - step;
    const kept = rows.filter(({ at }) => at >= earliest);
    const names = new Set(kept.flatMap(({ backends }) => Object.keys(backends)));
    const before = kept.map((row, index) => kept[since(kept, index)]);
    const tracks = new Map();
    for (const name of names) {
      const track = {};
      for (const gauge of GAUGES) track[gauge] = kept.map(({ backends }) => backends[name]?.[gauge] ?? null);
      for (const counter of COUNTERS) {
        track[counter] = kept.map((row, index) => {
          const past = before[index];
          if (!past || row.at - past.at > 3 * Math.max(step, 3000)) return null;
          return increase(past.backends[name]?.[counter], row.backends[name]?.[counter], row.at - past.at);
        });
      }
      tracks.set(name, track);
    }
    return { times: kept.map(({ at }) => at), tracks };
  }

  /** The manager's samples, then the page's own: at least `step` apart, and always the newest. */
  rows(service, from, step) {
    const recalled = this.recalled.service === service ? (this.recalled.ranges[from] ?? []) : [];
    const live = this.live.map(({ at, services }) => ({ at, backends: services[service] ?? {} }));
    // All samples of a manager that has just started.
    const isShort = (live.at(-1)?.at ?? 0) - (recalled[0]?.at ?? live[0]?.at ?? 0) < KEPT_MS;
    const apartMs = isShort ? 0 : step * 0.9;
    const rows = apartMs === 0 ? recalled.filter(({ at }) => at < (live[0]?.at ?? Infinity)) : [...recalled];
    live.forEach((row, index) => {
      const apart = row.at - (rows.at(-1)?.at ?? 0);
      if (apart > 0 && (apart >= apartMs || index === live.length - 1)) rows.push(row);
    });
    return rows;
  }

  marksOf(service) {
    return this.marks.filter((mark) => mark.service === service).map(({ time }) => time + this.ahead);
  }
}

/** The index of the sample before `end` from which a rate is computed; -1 if there is none. */
function since(rows, end) {
  let begin = end - 1;
  while (begin > 0 && rows[end].at - rows[begin].at < RATE_MS) begin -= 1;
  return begin;
}

function increase(before, now, ms) {
  if (before === undefined || now === undefined || ms <= 0) return null;
  return (Math.max(0, now - before) * 1000) / ms;
}

// The list of events, its filters, and the event that the overview shows for each service.

import { byId, make, syncChildren, write } from "./format.js";
import { natural } from "./names.js";
import { workersOf } from "./trouble.js";

const KEPT = 500;
const SHOWN = 200;
/** The overview shows no warning that is older than this. */
const RECENT_MS = 3_600_000;
/** The fields of events that name a worker. */
const NAMING = ["worker", "from", "to", "most", "least", "one", "other"];

export class Events {
  constructor() {
    /** The newest first. */
    this.entries = [];
    this.service = null;
    this.workers = [];
    this.filter = byId("event-worker");
    byId("event-filters").addEventListener("change", () => this.show());
  }

  add(entry) {
    this.entries.unshift({ ...entry, at: Date.parse(entry.time) });
    this.entries.length = Math.min(this.entries.length, KEPT);
    this.stale = true;
  }

  lost(events) {
    const message = `this page was too slow for ${events} events; the event log has them`;
    const time = new Date().toISOString();
    this.add({ id: `lost ${time}`, time, severity: "warn", message, event: "lost" });
  }

  /** Shows the events of `service` and its workers; of all services if there is none. */
  update(status, service) {
    const workers = service ? workersOf(service) : status.services.flatMap(workersOf);
    const names = [...new Set(workers.map(({ name }) => name))].sort(natural);
    const title = service ? `Events of ${service.name} and its workers` : "Events";
    write(byId("events-title"), title);
    if (this.service !== service?.name || names.join() !== this.workers.join()) {
      this.service = service?.name;
      this.workers = names;
      this.options();
      this.stale = true;
    }
    if (this.stale) this.show();
  }

  options() {
    const before = this.filter.value;
    const all = make("option", "", "every worker");
    all.value = "";
    const options = this.workers.map((name) => make("option", "", name));
    this.filter.replaceChildren(all, ...options);
    this.filter.value = this.workers.includes(before) ? before : "";
  }

  show() {
    this.stale = false;
    const severity = byId("event-filters").querySelector("input:checked").value;
    const worker = this.filter.value;
    const own = new Set(this.workers);
    const wanted = this.entries.filter(
      (entry) =>
        (severity === "all" || entry.severity === severity) &&
        (worker === "" || NAMING.some((field) => entry[field] === worker)) &&
        (!this.service || concerns(entry, this.service, own)),
    );
    syncChildren(byId("events"), wanted.slice(0, SHOWN), ({ id }) => id, item, () => {});
    byId("no-events").hidden = wanted.length > 0;
  }

  /** The latest warning of the last hour about a service, or else its latest event other than a change of shares. */
  worst(service) {
    const own = new Set(workersOf(service).map(({ name }) => name));
    const about = this.entries.filter(
      (entry) => (entry.service ?? entry.worker) && concerns(entry, service.name, own),
    );
    const recent = Date.now() - RECENT_MS;
    const warning = about.find(({ severity, at }) => severity === "warn" && at > recent);
    return warning ?? about.find(({ event }) => event !== "shares_changed");
  }
}

function concerns(entry, service, workers) {
  if (entry.service) return entry.service === service;
  return entry.worker ? workers.has(entry.worker) : true;
}

function item(entry) {
  const item = make("li");
  item.dataset.severity = entry.severity;
  item.dataset.event = entry.event;
  const at = new Date(entry.time);
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? "" : `${at.toLocaleDateString([], { month: "short", day: "numeric" })} `;
  const time = make("time", "", day + at.toLocaleTimeString([], { hour12: false }));
  time.dateTime = entry.time;
  time.title = entry.time;
  const sign = make("span", "sign", entry.severity === "warn" ? "▲ warning" : "● info");
  item.append(time, sign, make("span", "message", entry.message));
  return item;
}

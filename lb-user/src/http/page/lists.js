// What is shown as lists and tables: services, events, packets, heartbeats, all figures.

import { age, byId, bytes, count, duration, keep, make, part100, rate, state, write } from "./format.js";

const EVENTS = 200;
/** Verdicts of class forwarded. A test compares these lists with the code. */
const CARRIED = new Set(["to_backend", "to_client", "to_manager", "from_manager"]);
/** Verdicts of classes refused, reset and dropped. */
const LOSSES = new Set([
  "no_flow",
  "backend_down",
  "no_backend",
  "no_route",
  "ports_exhausted",
  "client_limit",
  "table_full",
  "time_to_live",
  "denied",
  "implausible_error",
  "too_large",
]);

export function services(status, chosen, choose) {
  const nav = byId("services");
  nav.hidden = status.services.length < 2;
  keep(
    nav,
    status.services,
    (service) => service.name,
    (service) => {
      const button = make("button", "service", service.name);
      button.type = "button";
      button.addEventListener("click", () => choose(service.name));
      return button;
    },
    (button, service) => {
      if (service.name === chosen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    },
  );
}

export function decision(service) {
  const serves = service.selected === "manager";
  write(byId("eyebrow"), `${service.name} · ${service.address}/${service.protocol}`);
  const takers = service.backends.filter(({ share }) => share > 0).length;
  const spread = service.selected === "*";
  const whither = spread ? `are spread over ${takers} workers` : `go to ${service.selected}`;
  write(byId("choice"), serves ? "The manager serves by itself" : `New connections ${whither}`);
  byId("decision").toggleAttribute("data-fallback", serves);
  write(byId("reason"), service.reason.charAt(0).toUpperCase() + service.reason.slice(1) + ".");
  const threshold =
    service.threshold_bytes === null || service.threshold !== "auto"
      ? service.threshold
      : `auto = ${bytes(service.threshold_bytes)}`;
  facts(byId("facts"), [
    ["for", duration(service.since_ms)],
    ["rule", words(service.rule)],
    ["policy", words(service.policy)],
    ...(service.policy === "memory" ? [["threshold", threshold]] : []),
    ...(service.waiting ? [["waiting for the hold to end", service.waiting.worker]] : []),
    ...(service.mode === "nat" ? [] : [["mode", service.mode]]),
  ]);
}

export function event(entry) {
  const item = make("li");
  item.dataset.severity = entry.severity;
  item.dataset.event = entry.event;
  const time = make("time", "", new Date(entry.time).toLocaleTimeString([], { hour12: false }));
  time.dateTime = entry.time;
  time.title = entry.time;
  const sign = make("span", "sign", entry.severity === "warn" ? "▲ warning" : "● info");
  item.append(time, sign, make("span", "message", entry.message));
  prepend(item);
}

export function lost(events) {
  const item = make("li", "lost", `${events} events were too fast for this page; the event log has them`);
  prepend(item);
}

function prepend(item) {
  const list = byId("events");
  list.prepend(item);
  while (list.children.length > EVENTS) list.lastElementChild.remove();
}

export function packets(status, history) {
  const rows = Object.entries(status.verdicts)
    .filter(([, { packets }]) => packets > 0)
    .sort(([one], [other]) => rank(one) - rank(other));
  keep(
    byId("packets"),
    rows,
    ([name]) => name,
    ([name]) => {
      const row = make("tr", CARRIED.has(name) ? "carried" : LOSSES.has(name) ? "refused" : "");
      const head = make("th", "", words(name));
      head.scope = "row";
      row.append(head, make("td"), make("td"));
      return row;
    },
    (row, [name, { packets }]) => {
      write(row.children[1], rate(history.rate((sample) => sample.verdicts[name])));
      write(row.children[2], count(packets));
    },
  );
}

function rank(verdict) {
  return CARRIED.has(verdict) ? 0 : LOSSES.has(verdict) ? 1 : 2;
}

export function heartbeats(status) {
  const { accepted, refused } = status.heartbeats;
  const refusals = Object.entries(refused).map(([reason, number]) => [words(reason), count(number)]);
  const unsigned = Object.values(status.heartbeats.unsigned ?? {}).reduce((sum, one) => sum + one, 0);
  facts(byId("heartbeats"), [
    ["authentication", status.heartbeats.authentication],
    ["accepted", count(accepted)],
    ...(unsigned > 0 ? [["not signed", count(unsigned)]] : []),
    ...refusals,
  ]);
}

export function maps(status) {
  keep(
    byId("maps"),
    Object.entries(status.maps ?? {}),
    ([name]) => name,
    () => {
      const item = make("li");
      const meter = make("span", "meter");
      meter.setAttribute("role", "meter");
      meter.append(make("span", "fill"));
      item.append(make("span", "name"), meter, make("span", "mono"));
      return item;
    },
    (item, [name, { entries, capacity }]) => {
      const [label, meter, figures] = item.children;
      write(label, words(name));
      meter.setAttribute("aria-valuemax", capacity);
      meter.setAttribute("aria-valuenow", entries);
      meter.setAttribute("aria-label", `${words(name)}: entries in use`);
      meter.firstElementChild.style.inlineSize = `${((100 * entries) / capacity).toFixed(2)}%`;
      write(figures, `${count(entries)} of ${count(capacity)}`);
    },
  );
}

export function figures(service, history) {
  keep(
    byId("figures").tBodies[0],
    service.backends,
    (backend) => backend.name,
    (backend) => {
      const row = make("tr");
      const head = make("th", "", backend.name);
      head.scope = "row";
      row.append(head);
      for (let column = 1; column < 14; column += 1) row.append(make("td"));
      return row;
    },
    (row, backend) => {
      row.dataset.state = backend.state;
      const pressure = backend.memory_pressure ?? null;
      const texts = [
        state(backend.state).join(" "),
        backend.address,
        age(backend.age_ms),
        bytes(backend.memory_available_bytes),
        bytes(backend.memory_total_bytes),
        pressure === null ? "–" : part100(pressure),
        backend.share === 0 ? "–" : part100(backend.share),
        count(backend.flows),
        count(backend.half_open),
        rate(history.rateOf(service.name, backend.name, "connections")),
        count(backend.connections),
        bytes(backend.bytes_in),
        bytes(backend.bytes_out),
      ];
      texts.forEach((text, index) => write(row.children[index + 1], text));
    },
  );
}

function facts(list, pairs) {
  keep(
    list,
    pairs,
    ([name]) => name,
    ([name]) => {
      const item = make("li");
      item.append(make("span", "label", name), make("span", "value"));
      return item;
    },
    (item, [, value]) => write(item.lastElementChild, value),
  );
}

function words(name) {
  return name.replaceAll("_", " ");
}

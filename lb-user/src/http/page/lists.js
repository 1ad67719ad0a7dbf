// The lists and tables: packets, heartbeats, connection tables, all figures.

import { age, byId, bytes, count, facts, make, part100, rate, state, syncChildren, words, write } from "./format.js";

/** Verdicts of class forwarded. A test compares these lists with the code. */
const CARRIED = new Set(["to_backend", "to_client", "to_manager", "from_manager", "to_peer"]);
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
  "workers_full",
  "unknown_to_peer",
  "lookup_pending",
]);

export function packets(status, series) {
  const rows = Object.entries(status.verdicts)
    .filter(([, { packets }]) => packets > 0)
    .sort(([one], [other]) => rank(one) - rank(other));
  syncChildren(
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
      write(row.children[1], rate(series.rate((sample) => sample.verdicts[name])));
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
  byId("heartbeats").firstElementChild.toggleAttribute("data-bad", status.heartbeats.authentication === "off");
}

export function maps(status) {
  syncChildren(
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

export function figures(service, series) {
  syncChildren(
    byId("figures").tBodies[0],
    service.backends,
    (backend) => backend.name,
    (backend) => {
      const row = make("tr");
      const head = make("th", "", backend.name);
      head.scope = "row";
      row.append(head);
      for (let column = 1; column < 18; column += 1) row.append(make("td"));
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
        rate(series.rateOf(service.name, backend.name, "connections")),
        rate(series.rateOf(service.name, backend.name, "refused")),
        count(backend.refused),
        count(backend.unanswered),
        count(backend.resets),
        count(backend.connections),
        bytes(backend.bytes_in),
        bytes(backend.bytes_out),
      ];
      texts.forEach((text, index) => write(row.children[index + 1], text));
    },
  );
}

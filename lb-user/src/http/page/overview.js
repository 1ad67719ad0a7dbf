// The overview of all services, those in trouble first.

import { byId, byteRate, count, facts, make, rate, syncChildren, write } from "./format.js";
import { natural } from "./names.js";
import { ATTENTION, stateOf, workersOf } from "./trouble.js";

/** With more services than this, the page has a search field. */
const SEARCH = 15;
const COLUMNS = ["state", "workers", "new", "open", "refused", "bytes", "worst"];

export class Overview {
  constructor(events) {
    this.events = events;
    byId("find-service").addEventListener("input", () => this.filter());
  }

  update(status, series, unknown) {
    const rows = status.services.map((service) => {
      const rates = series.ratesOf(service);
      return { service, rates, state: stateOf(service, rates.refused) };
    });
    rows.sort(
      (one, other) =>
        other.state.level - one.state.level ||
        other.state.troubled - one.state.troubled ||
        natural(one.service.name, other.service.name),
    );
    write(byId("fleet-title"), headline(rows));
    byId("unknown").hidden = unknown === null;
    if (unknown !== null) write(byId("unknown"), `There is no service “${unknown}”. These are all services:`);
    facts(byId("fleet-facts"), sums(status, rows));
    byId("service-search").hidden = rows.length <= SEARCH;
    syncChildren(byId("fleet"), rows, ({ service }) => service.name, create, (row, it) => this.fill(row, it));
    this.filter();
  }

  fill(row, { service, rates, state }) {
    row.dataset.level = String(state.level);
    row.toggleAttribute("data-trouble", state.level >= ATTENTION);
    const cell = (name) => row.querySelector(`[data-cell=${name}]`);
    write(row.querySelector(".where"), `${service.address}/${service.protocol}`);
    write(cell("state"), `${state.sign} ${state.word}`);
    const workers = workersOf(service);
    const up = workers.filter((worker) => worker.state === "up").length;
    write(cell("workers").querySelector(".figure"), `${count(up)} / ${count(workers.length)}`);
    const part = workers.length === 0 ? 0 : (100 * up) / workers.length;
    cell("workers").querySelector(".fill").style.inlineSize = `${part.toFixed(1)}%`;
    const open = service.backends.reduce((sum, { flows }) => sum + flows, 0);
    write(cell("new"), rate(rates.connections));
    write(cell("open"), count(open));
    write(cell("refused"), rates.refused > 0 ? `▲ ${rate(rates.refused)}` : rate(rates.refused));
    cell("refused").toggleAttribute("data-bad", rates.refused > 0);
    write(cell("bytes"), byteRate(rates.bytes));
    const worst = this.events.worst(service);
    const sign = worst?.severity === "warn" ? "▲ " : "";
    const at = worst && new Date(worst.time).toLocaleTimeString([], { hour12: false });
    write(cell("worst"), worst ? `${sign}${at} ${worst.message.replace(`${service.name}: `, "")}` : "–");
    cell("worst").toggleAttribute("data-bad", worst?.severity === "warn");
  }

  filter() {
    const wanted = byId("find-service").value.trim().toLowerCase();
    for (const row of byId("fleet").children) row.hidden = !row.dataset.key.toLowerCase().includes(wanted);
  }
}

function headline(rows) {
  const bad = rows.filter(({ state }) => state.level >= ATTENTION).length;
  const all = rows.length === 1 ? "The service is" : `All ${rows.length} services are`;
  if (bad === 0) return `${all} in order`;
  return `${bad} of ${rows.length} services ${bad === 1 ? "needs" : "need"} attention`;
}

function sums(status, rows) {
  const sum = (read) => rows.reduce((total, row) => total + (read(row) ?? 0), 0);
  const workers = new Map();
  for (const { name, health } of status.services.flatMap(workersOf)) {
    workers.set(name, health === "up");
  }
  const up = [...workers.values()].filter(Boolean).length;
  return [
    ["workers up", `${count(up)} of ${count(workers.size)}`],
    ["new connections", `${rate(sum(({ rates }) => rates.connections))}/s`],
    ["open", count(sum(({ service }) => service.backends.reduce((all, { flows }) => all + flows, 0)))],
    ["refused", `${rate(sum(({ rates }) => rates.refused))}/s`],
    ["traffic", byteRate(sum(({ rates }) => rates.bytes))],
  ];
}

/** The roles keep the table's semantics where a phone shows its rows as cards. */
function create({ service }) {
  const row = make("tr");
  row.setAttribute("role", "row");
  const head = make("th");
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  const link = make("a", "name", service.name);
  link.href = `#${encodeURIComponent(service.name)}`;
  head.append(link, make("span", "where"));
  row.append(head);
  for (const column of COLUMNS) {
    const cell = make("td", `at-${column}`);
    cell.setAttribute("role", "cell");
    cell.dataset.cell = column;
    if (column === "workers") {
      const meter = make("span", "meter");
      meter.append(make("span", "fill"));
      cell.append(make("span", "figure"), meter);
    }
    row.append(cell);
  }
  return row;
}

// The workers of a service: few as cards, many as tiles, those in trouble first; and the figures of the chosen one.

import { age, brief, byId, byteRate, bytes, capital, count, duration, facts, make, part100, rate, state, syncChildren, write } from "./format.js";
import { natural, shorten } from "./names.js";
import { rankOf, whyNot } from "./trouble.js";

/** With more workers than this, each is a tile, and one link leads to all of them. */
const CARDS = 12;
/** With more workers than this, the page has a search field. */
const SEARCH = 8;
/** The number of tiles that are shown at first; fewer on a phone. */
const [FIRST, FIRST_PHONE] = [48, 16];
/** The order by shares, which change often, is kept for this time. */
const ORDER_MS = 10_000;
const PHONE = matchMedia("(max-width: 480px)");

export class Workers {
  /** `pick` is called with the name of the chosen worker, or null. */
  constructor(pick) {
    this.list = byId("workers");
    this.find = byId("find");
    this.pick = pick;
    this.order = { key: "", at: 0, names: [] };
    this.all = false;
    this.letters = 20;
    this.find.addEventListener("input", () => this.filter());
    byId("worker-close").addEventListener("click", () => pick(null));
    byId("all-workers").addEventListener("click", () => {
      this.all = !this.all;
      this.filter();
    });
    PHONE.addEventListener("change", () => this.filter());
    new ResizeObserver(() => this.measure()).observe(this.list);
  }

  update(service, workers, flows, picked) {
    this.dense = workers.length > CARDS;
    byId("picture").classList.toggle("many", this.dense);
    this.list.classList.toggle("dense", this.dense);
    byId("crew").parentElement.hidden = !this.dense;
    byId("worker-tools").hidden = workers.length <= SEARCH;
    const sorted = this.sort(service.name, workers, flows);
    const names = shorten(sorted.map(({ name }) => name), this.letters);
    syncChildren(
      this.list,
      sorted,
      (worker) => worker.name,
      () => this.card(),
      (item, worker) => {
        const card = item.firstElementChild;
        item.dataset.state = worker.state;
        item.dataset.rank = String(rankOf(worker, flows.get(worker.name).refused));
        item.toggleAttribute("data-selected", worker.share > 0);
        card.setAttribute("aria-pressed", String(worker.name === picked));
        fill(card, worker, flows.get(worker.name), names.get(worker.name), this.dense);
      },
    );
    this.filter();
    const up = workers.filter((worker) => worker.state === "up").length;
    write(byId("crew-up"), `${count(up)} of ${count(workers.length)}`);
    write(byId("tally"), tally(workers));
    detail(workers.find(({ name }) => name === picked), flows.get(picked));
    if (sorted.length > 0 && this.letters === 20) this.measure();
  }

  /** In trouble first, then by share. The order does not change under the pointer or the focus. */
  sort(service, workers, flows) {
    const ranks = new Map(workers.map((worker) => [worker.name, rankOf(worker, flows.get(worker.name).refused)]));
    const key = `${service} ${[...ranks].join(";")}`;
    const { order } = this;
    const touched = this.list.matches(":hover, :focus-within") && order.key.startsWith(`${service} `);
    const same = order.names.length === workers.length && workers.every(({ name }) => order.names.includes(name));
    if (!(same && (touched || (order.key === key && Date.now() - order.at < ORDER_MS)))) {
      const sorted = [...workers].sort(
        (one, other) =>
          ranks.get(other.name) - ranks.get(one.name) || other.share - one.share || natural(one.name, other.name),
      );
      this.order = { key, at: Date.now(), names: sorted.map(({ name }) => name) };
    }
    const byName = new Map(workers.map((worker) => [worker.name, worker]));
    return this.order.names.map((name) => byName.get(name));
  }

  /** Measures how many letters of a name fit. */
  measure() {
    const name = this.list.querySelector("li:not([hidden]) .name");
    if (!name) return;
    const pen = document.createElement("canvas").getContext("2d");
    const { fontSize, fontFamily, fontWeight } = getComputedStyle(name);
    pen.font = `${fontWeight} ${fontSize} ${fontFamily}`;
    this.letters = Math.max(10, Math.floor(name.clientWidth / pen.measureText("0").width));
  }

  card() {
    const item = make("li");
    const card = make("button", "card");
    card.type = "button";
    for (const part of ["name", "state", "address", "meter", "memory", "figures", "why"]) {
      card.append(make("span", part));
    }
    card.querySelector(".meter").append(make("span", "fill"));
    card.addEventListener("click", () => {
      const pressed = card.getAttribute("aria-pressed") === "true";
      this.pick(pressed ? null : item.dataset.key);
    });
    item.append(card);
    return item;
  }

  filter() {
    const wanted = this.find.value.trim().toLowerCase();
    const first = PHONE.matches ? FIRST_PHONE : FIRST;
    const items = [...this.list.children];
    items.forEach((item, place) => {
      const found = item.dataset.key.toLowerCase().includes(wanted) || item.dataset.state === wanted;
      item.hidden = wanted === "" ? this.dense && !this.all && place >= first : !found;
    });
    const button = byId("all-workers");
    button.hidden = !this.dense || items.length <= first || wanted !== "";
    button.setAttribute("aria-expanded", String(this.all));
    write(button, this.all ? "Show fewer" : `Show all ${items.length} workers`);
  }
}

function fill(card, worker, flow, name, dense) {
  const [sign, word] = state(worker.state);
  const unchecked = worker.unchecked && worker.state === "up" ? ", unchecked" : "";
  const share = worker.share === 10000 ? ", selected" : `, takes ${part100(worker.share)}`;
  const part = (name) => card.querySelector(`.${name}`);
  write(part("name"), name);
  write(part("state"), `${sign} ${word}${unchecked}${worker.share === 0 ? "" : share}`);
  write(part("address"), worker.address);
  const { memory_available_bytes: available, memory_total_bytes: total } = worker;
  const part100OfMemory = available !== null && total ? available / total : 0;
  part("fill").style.inlineSize = `${(part100OfMemory * 100).toFixed(1)}%`;
  const of = total ? ` of ${brief(total)}` : "";
  const known = dense ? `${bytes(available)}${of}` : `${bytes(available)} available${of}`;
  write(part("memory"), available === null ? "memory not known" : known);
  const traffic = dense ? "" : ` · ${byteRate(flow.in + flow.out)}`;
  write(part("figures"), `${rate(flow.connections)} new/s · ${count(worker.flows)} open${traffic}`);
  const refused = flow.refused > 0 ? [`▲ ${rate(flow.refused)} refused/s`] : [];
  // The headline says that another worker is selected.
  const why = worker.reason?.kind === "not_selected" ? "" : whyNot(worker);
  const missing = worker.heartbeats_missing ? ["▲ heartbeats missing"] : [];
  write(part("why"), [...refused, ...missing, ...(why ? [why] : [])].join(" · "));
  card.title = [worker.name, word, whyNot(worker), worker.address].filter(Boolean).join(", ");
}

function tally(workers) {
  const counts = new Map();
  for (const worker of workers) counts.set(worker.state, (counts.get(worker.state) ?? 0) + 1);
  return [...counts].map(([name, number]) => `${number} ${state(name).join(" ")}`).join(" · ");
}

/** The age of its last heartbeat. */
function heartbeat({ agent, age_ms: ms, heartbeats_missing: missing }) {
  if (agent === false) return "none expected: agent = false";
  const last = ms === null ? "none yet" : `${age(ms)} ago`;
  return missing ? `missing, last ${last}; its packets keep it up` : last;
}

/** All figures of the chosen worker. */
function detail(worker, flow) {
  byId("worker").hidden = !worker;
  if (!worker) return;
  byId("worker").dataset.state = worker.state;
  write(byId("worker-name"), worker.name);
  write(byId("worker-why"), whyNot(worker) ? `${capital(whyNot(worker))}.` : "");
  const pressure = worker.memory_pressure ?? null;
  const failing = worker.failing;
  const optional = [
    ["weight", worker.manual_weight_percent === 100 ? null : `${worker.manual_weight_percent} %`],
    ["pressure", pressure === null ? null : part100(pressure)],
    ["memory figures", worker.memory_stale_ms ? `${duration(worker.memory_stale_ms)} old` : null],
    ["checks", worker.unchecked ? "none: its agent runs without --check" : null],
    ["failing for", failing ? duration(failing.since_ms) : null],
    ["next trial in", failing?.next_trial_ms ? duration(failing.next_trial_ms) : null],
    ["backup", worker.backup ? "yes" : null],
  ];
  facts(byId("worker-facts"), [
    ["state", state(worker.state).join(" ")],
    ["share", worker.share === 0 ? "none" : part100(worker.share)],
    ["address", worker.address],
    ["heartbeat", heartbeat(worker)],
    ["last answer to a client", worker.last_answer_ms == null ? "never" : `${duration(worker.last_answer_ms)} ago`],
    ["available", `${bytes(worker.memory_available_bytes)} of ${brief(worker.memory_total_bytes)}`],
    ["new", `${rate(flow.connections)}/s`],
    ["open", count(worker.flows)],
    ["half open", count(worker.half_open)],
    ["refused or unanswered", `${rate(flow.refused)}/s`],
    ["answered", count(worker.answered)],
    ["refused", count(worker.refused)],
    ["of which sent to another worker", count(worker.retried)],
    ["unanswered", count(worker.unanswered)],
    ["reset by the worker", count(worker.resets)],
    ["in", byteRate(flow.in)],
    ["out", byteRate(flow.out)],
    ...optional.filter(([, value]) => value !== null),
  ]);
}

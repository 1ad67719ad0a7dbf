// The picture: clients, manager and workers, and the traffic between them.

import { age, byId, bytes, keep, make, part100, rate, state, write } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
/** With more workers than these, each is a tile, and one line leads to all of them. */
const CARDS = 12;
/** With more than these, they can be searched. */
const SEARCH = 8;
/** Length of the pattern that moves along a link, in pixels; as in style.css. */
const PERIOD = 16;

export class Picture {
  /** `pick` is told the name of the worker that is pointed out, or null. */
  constructor(pick) {
    this.root = byId("picture");
    this.svg = byId("links");
    this.list = byId("workers");
    this.find = byId("find");
    this.pick = pick;
    this.links = [];
    this.find.addEventListener("input", () => this.filter());
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  update(service, history, interfaces, picked) {
    const workers = service.backends.filter((backend) => backend.name !== "manager");
    const fallback = service.backends.find((backend) => backend.name === "manager");
    const flow = (backend) => ({
      connections: history.rateOf(service.name, backend.name, "connections"),
      in: history.rateOf(service.name, backend.name, "in") ?? 0,
      out: history.rateOf(service.name, backend.name, "out") ?? 0,
    });
    const flows = new Map(service.backends.map((backend) => [backend.name, flow(backend)]));
    const total = [...flows.values()].reduce(
      (sum, one) => ({
        connections: sum.connections + (one.connections ?? 0),
        in: sum.in + one.in,
        out: sum.out + one.out,
      }),
      { connections: 0, in: 0, out: 0 },
    );

    const open = service.backends.reduce((sum, backend) => sum + backend.flows, 0);
    write(byId("clients-open"), open.toLocaleString("en"));
    write(byId("clients-new"), `${rate(total.connections)} new a second`);
    write(byId("manager-address"), service.address);
    write(
      byId("manager-attach"),
      interfaces.map(({ name, attachment }) => `${attachment.toUpperCase()} on ${name}`).join(", "),
    );
    const serves = service.selected === "manager";
    byId("manager").toggleAttribute("data-selected", serves);
    write(byId("manager-fallback"), serves ? `serves by itself at ${fallback.address}` : "");

    this.list.classList.toggle("dense", workers.length > CARDS);
    byId("worker-tools").hidden = workers.length <= SEARCH;
    keep(
      this.list,
      workers,
      (worker) => worker.name,
      () => this.card(),
      (item, worker) => {
        const card = item.firstElementChild;
        const selected = worker.share > 0;
        item.dataset.state = worker.state;
        item.toggleAttribute("data-selected", selected);
        card.setAttribute("aria-pressed", String(worker.name === picked));
        fill(card, worker, flows.get(worker.name));
      },
    );
    this.filter();
    write(byId("tally"), tally(workers));
    this.plan(service, workers, flows, total);
    this.draw();
  }

  card() {
    const item = make("li");
    const card = make("button", "card");
    card.type = "button";
    for (const part of ["name", "state", "address", "meter", "memory", "figures"]) {
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
    for (const item of this.list.children) {
      const text = item.dataset.key.toLowerCase();
      item.hidden = wanted !== "" && !text.includes(wanted) && item.dataset.state !== wanted;
    }
  }

  /** Decides which links there are; where they run is measured when they are drawn. */
  plan(service, workers, flows, total) {
    const clients = byId("clients");
    const manager = byId("manager");
    const links = [{ from: clients, to: manager, flow: total, state: "up", selected: true }];
    if (workers.length > CARDS) {
      const sum = { in: 0, out: 0 };
      for (const worker of workers) {
        sum.in += flows.get(worker.name).in;
        sum.out += flows.get(worker.name).out;
      }
      const selected = workers.some((worker) => worker.share > 0);
      links.push({ from: manager, to: this.list, flow: sum, state: "up", selected });
    } else {
      for (const item of this.list.children) {
        links.push({
          from: manager,
          to: item.firstElementChild,
          flow: flows.get(item.dataset.key),
          state: item.dataset.state,
          selected: item.hasAttribute("data-selected"),
        });
      }
    }
    this.links = links;
  }

  draw() {
    const frame = this.root.getBoundingClientRect();
    this.svg.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    // The selected one last, on top of the others.
    const links = [...this.links].sort((one, other) => one.selected - other.selected);
    while (this.svg.children.length < links.length) this.svg.append(group());
    while (this.svg.children.length > links.length) this.svg.lastChild.remove();
    links.forEach((link, index) => {
      const element = this.svg.children[index];
      const path = way(box(link.from, frame), box(link.to, frame));
      element.setAttribute("data-state", link.state);
      element.toggleAttribute("data-selected", link.selected);
      const [line, inward, outward] = element.children;
      set(line, "d", path);
      move(inward, path, link.flow.in);
      move(outward, path, link.flow.out);
    });
  }
}

function fill(card, worker, flow) {
  const [sign, word] = state(worker.state);
  const takes = worker.share === 0 ? "" : worker.share === 10000 ? ", selected" : `, takes ${part100(worker.share)}`;
  const order = worker.admin_state ?? worker.pause;
  const held = order ? `, held by ${order.by}` : "";
  const part = (name) => card.querySelector(`.${name}`);
  write(part("name"), worker.name);
  write(part("state"), `${sign} ${word}${takes}${held}`);
  write(part("address"), worker.address);
  const { memory_available_bytes: available, memory_total_bytes: total } = worker;
  const share = available !== null && total ? available / total : 0;
  part("fill").style.inlineSize = `${(share * 100).toFixed(1)}%`;
  write(
    part("memory"),
    available === null
      ? "memory not known"
      : `${bytes(available)} available${total ? ` of ${bytes(total)}` : ""}`,
  );
  write(
    part("figures"),
    `${worker.flows.toLocaleString("en")} open · ${rate(flow.connections)} new/s · ` +
      `${bytes(flow.in + flow.out)}/s`,
  );
  const heard = worker.age_ms === null ? "never heard" : `heard ${age(worker.age_ms)} ago`;
  const ineligible = worker.ineligible_reason ? `: ${worker.ineligible_reason}` : "";
  const why = order?.reason ? `: ${order.reason}` : ineligible;
  const ramp = worker.ramp_percent < 100 ? `, ramping up at ${worker.ramp_percent} %` : "";
  card.title = `${worker.name}, ${word}${held}${why}${ramp}, ${worker.address}, ${heard}`;
}

function tally(workers) {
  const counts = new Map();
  for (const worker of workers) counts.set(worker.state, (counts.get(worker.state) ?? 0) + 1);
  return [...counts].map(([name, number]) => `${number} ${state(name).join(" ")}`).join(" · ");
}

function group() {
  const element = document.createElementNS(SVG, "g");
  for (const name of ["line", "in", "out"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    element.append(path);
  }
  return element;
}

function box(element, frame) {
  const { left, top, width, height } = element.getBoundingClientRect();
  return { left: left - frame.left, top: top - frame.top, width, height };
}

/** Beside each other: a curve. Below each other: down a gutter and in from the left. */
function way(from, to) {
  const right = from.left + from.width;
  const middle = (one) => one.top + one.height / 2;
  if (to.left >= right) {
    const [x1, y1, x2, y2] = [right, middle(from), to.left, middle(to)];
    const bend = (x2 - x1) / 2;
    return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  }
  const bottom = from.top + from.height;
  if (Math.abs(from.left - to.left) < 2 && from.width === to.width) {
    const x = from.left + from.width / 2;
    return `M${x} ${bottom}L${x} ${to.top}`;
  }
  const x = to.left - 14;
  const y = middle(to);
  return `M${x} ${bottom}L${x} ${y - 10}Q${x} ${y} ${x + 10} ${y}L${to.left} ${y}`;
}

/** Lets dots run along a path, faster and thicker with more traffic. */
function move(path, way, bytesPerSecond) {
  path.toggleAttribute("hidden", bytesPerSecond <= 0);
  if (bytesPerSecond <= 0) return;
  set(path, "d", way);
  // In steps, since changing the pace makes the dots jump.
  const step = Math.min(7, Math.max(1, Math.round(Math.log10(bytesPerSecond))));
  if (path.dataset.step === String(step)) return;
  path.dataset.step = step;
  path.style.strokeWidth = `${2 + step * 0.45}px`;
  path.style.animationDuration = `${(PERIOD / (14 * step)).toFixed(2)}s`;
}

function set(element, attribute, value) {
  if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
}

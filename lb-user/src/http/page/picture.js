// The picture of clients, manager and workers, with the traffic between them.

import { byId, rate, write } from "./format.js";
import { workersOf } from "./trouble.js";

const SVG = "http://www.w3.org/2000/svg";
/** The period of the pattern that moves along a link, in pixels; style.css has the same. */
const PERIOD = 16;

export class Picture {
  /** The links lead to the cards of `workers`. */
  constructor(workers) {
    this.root = byId("picture");
    this.svg = byId("links");
    this.workers = workers;
    this.links = [];
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  update(service, series, interfaces, picked) {
    const flow = ({ name }) => ({
      connections: series.rateOf(service.name, name, "connections"),
      refused: series.rateOf(service.name, name, "refused") ?? 0,
      in: series.rateOf(service.name, name, "in") ?? 0,
      out: series.rateOf(service.name, name, "out") ?? 0,
    });
    const flows = new Map(service.backends.map((backend) => [backend.name, flow(backend)]));
    const total = sum([...flows.values()]);
    const open = service.backends.reduce((sum, backend) => sum + backend.flows, 0);
    write(byId("clients-open"), open.toLocaleString("en"));
    write(byId("clients-new"), `${rate(total.connections)} new a second`);
    write(byId("manager-address"), service.address);
    write(
      byId("manager-attach"),
      interfaces.map(({ name, attachment }) => `${attachment.toUpperCase()} on ${name}`).join(", "),
    );
    const fallback = service.backends.find(({ name }) => name === "manager");
    const serves = service.selected === "manager";
    byId("manager").toggleAttribute("data-selected", serves);
    write(byId("manager-fallback"), serves ? `fallback at ${fallback.address}` : "");

    const workers = workersOf(service);
    this.workers.update(service, workers, flows, picked);
    this.plan(workers, flows, total);
    this.draw();
  }

  /** Determines the links; `draw` determines their positions. */
  plan(workers, flows, total) {
    const [clients, manager] = [byId("clients"), byId("manager")];
    const links = [{ from: clients, to: manager, flow: total, state: "up", selected: true }];
    if (this.workers.dense) {
      const flow = sum(workers.map(({ name }) => flows.get(name)));
      const selected = workers.some(({ share }) => share > 0);
      links.push({ from: manager, to: byId("crew"), flow, state: "up", selected });
    } else {
      for (const item of this.workers.list.children) {
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
      const path = linkPath(box(link.from, frame), box(link.to, frame));
      element.setAttribute("data-state", link.state);
      element.toggleAttribute("data-selected", link.selected);
      const [line, inward, outward] = element.children;
      set(line, "d", path);
      animate(inward, path, link.flow.in);
      animate(outward, path, link.flow.out);
    });
  }
}

function sum(flows) {
  const add = (key) => flows.reduce((all, flow) => all + (flow[key] ?? 0), 0);
  return { connections: add("connections"), in: add("in"), out: add("out") };
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
function linkPath(from, to) {
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

/** Moves dots along a path, faster and thicker with more traffic. */
function animate(element, path, bytesPerSecond) {
  element.toggleAttribute("hidden", bytesPerSecond <= 0);
  if (bytesPerSecond <= 0) return;
  set(element, "d", path);
  // In steps, because the dots jump when their speed changes.
  const step = Math.min(7, Math.max(1, Math.round(Math.log10(bytesPerSecond))));
  if (element.dataset.step === String(step)) return;
  element.dataset.step = step;
  element.style.strokeWidth = `${2 + step * 0.45}px`;
  element.style.animationDuration = `${(PERIOD / (14 * step)).toFixed(2)}s`;
}

function set(element, attribute, value) {
  if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
}

// The five charts of a service, in the view and range that the reader chose.

import { Chart, binaryStep, decimalStep, total } from "./charts.js";
import { brief, byId, byteRate, percent, rate } from "./format.js";
import { timeline } from "./live.js";
import { RANGES } from "./series.js";
import { rankOf, workersOf } from "./trouble.js";

const FIGURES = {
  connections: { format: rate, step: decimalStep },
  memory: { format: brief, step: binaryStep, low: true },
  refused: { format: rate, step: decimalStep },
  open: { format: (value) => Math.round(value).toLocaleString("en"), step: decimalStep },
  bytes: { format: byteRate, step: binaryStep },
};

export class Graphs {
  /** `changed` is called when there is something new to show. */
  constructor(series, changed) {
    this.series = series;
    this.changed = changed;
    this.charts = {};
    for (const [figure, { low }] of Object.entries(FIGURES)) {
      this.charts[figure] = new Chart(byId(figure), byId(`${figure}-readout`), low);
    }
    for (const input of byId("chart-tools").querySelectorAll("input")) {
      input.addEventListener("change", () => {
        this.asked = null;
        changed();
      });
    }
    this.asked = null;
  }

  update(service, picked) {
    const range = chosen("range");
    const view = chosen("view");
    this.requestTimeline(service.name, range);
    const { times, tracks } = this.series.over(service.name, range);
    const workers = new Map(workersOf(service).map((worker) => [worker.name, worker]));
    // Removed workers come last.
    const names = [...service.backends.map(({ name }) => name), ...tracks.keys()];
    const idle = (name) => name === "manager" && !tracks.get(name)?.connections.some((value) => value > 0);
    const shown = [...new Set(names)].filter((name) => tracks.has(name) && !idle(name));
    for (const [figure, { format, step }] of Object.entries(FIGURES)) {
      const lines = shown
        .filter((name) => figure !== "memory" || name !== "manager")
        .map((name) => ({
          name,
          values: tracks.get(name)[figure],
          strong: name === service.selected || name === picked,
          trouble: trouble(workers.get(name)),
        }));
      const basis = { times, lines, marks: this.series.marksOf(service.name), span: RANGES[range].span, format, step };
      this.charts[figure].update({ ...basis, ...VIEWS[view](lines, times, figure, workers) });
    }
  }

  /** Requests the manager's samples, now and at intervals. */
  async requestTimeline(service, range) {
    const key = `${service} ${range}`;
    const { from, every } = RANGES[range];
    if (this.asked?.key === key && Date.now() - this.asked.at < every) return;
    this.asked = { key, at: Date.now() };
    try {
      const remembered = await timeline(service, from);
      if (this.asked?.key !== key) return;
      this.series.recall(service, remembered);
      this.changed();
    } catch {
      // The sign at the top says that the manager does not answer.
      if (this.asked?.key === key) this.asked.at = Date.now() - every + 5000;
    }
  }
}

const VIEWS = {
  workers: () => ({ sum: true }),
  total(lines, times) {
    const known = (index) => lines.some(({ values }) => values[index] !== null);
    const values = times.map((_, index) => (known(index) ? total(lines, index) : null));
    return { lines: [{ name: "total", values }], fill: true };
  },
  /** Shares of the total; of memory, the part of the worker's own total. */
  percent(lines, times, figure, workers) {
    const totals = times.map((_, index) => total(lines, index));
    const whole = (name, index) =>
      figure === "memory" ? workers.get(name)?.memory_total_bytes : totals[index];
    const shares = lines.map((line) => ({
      ...line,
      values: line.values.map((value, index) => {
        const all = whole(line.name, index);
        return value === null || !all ? null : (100 * value) / all;
      }),
    }));
    const highest = Math.max(0, ...shares.flatMap(({ values }) => values));
    const whole100 = highest > 40 ? { step: () => 25, most: 100 } : { step: decimalStep };
    return { lines: shares, format: percent, ...whole100 };
  },
};

/** Lines of workers in trouble get a name before others. */
function trouble(worker) {
  return worker ? rankOf(worker, 0) : 0;
}

function chosen(name) {
  return byId("chart-tools").querySelector(`input[name=${name}]:checked`).value;
}

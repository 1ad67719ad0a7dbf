// Lines over time on a canvas, readable by pointer and by keyboard.

const MARGIN = { top: 10, bottom: 22, left: 58 };
const SHORTEST_MS = 60_000;
/** So many lines have a colour and a name of their own; of more, only those that stand out. */
const COLOURS = 8;

export class Chart {
  /** `format` writes a figure, `steps(top)` says how far apart the lines of the scale are. */
  constructor(canvas, readout, format, step) {
    this.canvas = canvas;
    this.readout = readout;
    this.format = format;
    this.step = step;
    this.series = [];
    this.marks = [];
    this.cursor = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.set(null));
    canvas.addEventListener("blur", () => this.set(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** `series` are {name, points, strong, muted}; `marks` are times at which the selection changed. */
  update(series, marks) {
    this.series = series;
    this.marks = marks;
    this.draw();
  }

  point(x) {
    const { first, last, left, width } = this.frame;
    const at = first + ((x - left) / width) * (last - first);
    const times = this.series[0]?.points ?? [];
    let nearest = null;
    times.forEach(([time], index) => {
      if (nearest === null || Math.abs(time - at) < Math.abs(times[nearest][0] - at)) nearest = index;
    });
    this.set(nearest === null ? null : times.length - 1 - nearest);
  }

  key(event) {
    const length = this.series[0]?.points.length ?? 0;
    const by = { ArrowLeft: 1, ArrowRight: -1, PageUp: 30, PageDown: -30 }[event.key];
    if (by !== undefined) {
      const from = this.cursor ?? -1;
      this.set(Math.min(Math.max(from + by, 0), length - 1));
    } else if (event.key === "Escape") {
      this.set(null);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** The cursor counts samples back from now. */
  set(cursor) {
    this.cursor = cursor;
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    const names = this.series.length <= COLOURS;
    const longest = Math.max(0, ...this.series.map(({ name }) => pen.measureText(name).width));
    const right = names ? Math.min(longest + 30, width * 0.3) : 14;

    const last = this.series[0]?.points.at(-1)?.[0] ?? Date.now();
    const first = Math.min(this.series[0]?.points[0]?.[0] ?? last, last - SHORTEST_MS);
    const most = Math.max(0, ...this.series.flatMap(({ points }) => points.map(([, y]) => y ?? 0)));
    const step = this.step(most);
    const top = Math.max(step, Math.ceil((most * 1.05) / step) * step);
    this.frame = {
      first,
      last,
      left: MARGIN.left,
      width: width - MARGIN.left - right,
    };
    const x = (time) => MARGIN.left + ((time - first) / (last - first)) * this.frame.width;
    const y = (value) => height - MARGIN.bottom - (value / top) * (height - MARGIN.top - MARGIN.bottom);

    this.grid(pen, colour, { x, y, top, step, first, last, width: width - right });
    pen.strokeStyle = colour("--line-strong");
    pen.setLineDash([2, 3]);
    for (const time of this.marks.filter((time) => time >= first && time <= last)) {
      line(pen, [[x(time), MARGIN.top], [x(time), height - MARGIN.bottom]]);
    }
    pen.setLineDash([]);
    const order = this.series.map((one, index) => ({ ...one, index }));
    order.sort((one, other) => Boolean(one.strong) - Boolean(other.strong));
    for (const { points, strong, index } of order) {
      const own = names ? colour(`--series-${(index % COLOURS) + 1}`) : colour("--series-other");
      pen.strokeStyle = strong && !names ? colour("--accent") : own;
      pen.lineWidth = strong ? 2.5 : names ? 1.5 : 1;
      pen.globalAlpha = strong || names ? 1 : 0.35;
      for (const part of parts(points)) line(pen, part.map(([time, value]) => [x(time), y(value)]));
    }
    pen.globalAlpha = 1;
    pen.lineWidth = 1;
    if (names) this.names(pen, colour, y, width - right + 8);
    this.mark(pen, colour, x, y, height);
  }

  grid(pen, colour, { x, y, top, step, first, last, width }) {
    pen.strokeStyle = colour("--line");
    pen.fillStyle = colour("--muted");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let value = 0; value <= top; value += step) {
      line(pen, [[MARGIN.left, y(value)], [width, y(value)]]);
      pen.fillText(this.format(value), MARGIN.left - 8, y(value));
    }
    const minutes = Math.max(1, Math.ceil((last - first) / 60_000 / 5));
    pen.textBaseline = "alphabetic";
    for (let back = 0; last - back * 60_000 >= first; back += minutes) {
      const at = x(last - back * 60_000);
      const text = back === 0 ? "now" : `−${back} min`;
      pen.textAlign = back === 0 ? "right" : "center";
      const half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.max(at, MARGIN.left + half), y(0) + 16);
    }
  }

  names(pen, colour, y, left) {
    const labels = this.series
      .map(({ name, points, strong }, index) => {
        const value = points.findLast(([, value]) => value !== null)?.[1];
        return { name, strong, index, at: value === undefined ? null : y(value) };
      })
      .filter(({ at }) => at !== null)
      .sort((one, other) => one.at - other.at);
    // Names that would lie on each other make room upwards.
    for (let place = labels.length - 2; place >= 0; place -= 1) {
      labels[place].at = Math.min(labels[place].at, labels[place + 1].at - 14);
    }
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    for (const { name, strong, index, at } of labels) {
      pen.fillStyle = colour(`--series-${(index % COLOURS) + 1}`);
      pen.fillText(strong ? `${name} ◂` : name, left, at);
    }
  }

  /** Draws the cursor and writes what lies under it; without a cursor, the latest. */
  mark(pen, colour, x, y, height) {
    const length = this.series[0]?.points.length ?? 0;
    if (length === 0) return;
    const index = length - 1 - Math.min(this.cursor ?? 0, length - 1);
    const time = this.series[0].points[index][0];
    if (this.cursor !== null) {
      pen.strokeStyle = colour("--ink");
      line(pen, [[x(time), MARGIN.top], [x(time), height - MARGIN.bottom]]);
    }
    const shown = this.series.length <= COLOURS ? this.series : this.series.filter(({ strong }) => strong);
    const figures = shown.map(({ name, points }) => {
      const value = points[index]?.[1];
      return `${name} ${value === null || value === undefined ? "–" : this.format(value)}`;
    });
    const at = this.cursor === null ? "" : `${new Date(time).toLocaleTimeString([], { hour12: false })} · `;
    const text = at + figures.join(" · ");
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }
}

/** Steps of a scale that suits bytes: about four, each a power of two. */
export function binaryStep(most) {
  return 2 ** Math.ceil(Math.log2(Math.max(most, 2 ** 20) / 4));
}

/** Steps of 1, 2 or 5 times a power of ten; at most five of them. */
export function decimalStep(most) {
  const rough = Math.max(most, 4) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

/** The stretches of points in which nothing is missing. */
function parts(points) {
  const all = [[]];
  for (const point of points) {
    if (point[1] === null) all.push([]);
    else all.at(-1).push(point);
  }
  return all.filter((part) => part.length > 1);
}

function line(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], index) => (index === 0 ? pen.moveTo(x, y) : pen.lineTo(x, y)));
  pen.stroke();
}

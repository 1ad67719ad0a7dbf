// A line chart over time on a canvas; pointer and keyboard move a cursor over it.

import { shorten } from "./names.js";

const MARGIN = { top: 12, bottom: 24 };
const SHORTEST_MS = 60_000;
/** Up to this number of lines, each has a colour and a name. */
const COLOURS = 8;
/** With more lines, this number have a name, and a band shows the range of all. */
const NAMED = 6;
/** The maximum number of these that are named because their workers are in trouble. */
const TROUBLED = 2;
const TIME_STEPS_S = [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600];

export class Chart {
  /** `low`: the lowest lines matter, not the highest. */
  constructor(canvas, readout, low = false) {
    this.short = new Map();
    this.named = [];
    this.canvas = canvas;
    this.readout = readout;
    this.low = low;
    this.data = { times: [], lines: [], marks: [], span: SHORTEST_MS };
    this.slots = new Map();
    this.cursor = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.set(null));
    canvas.addEventListener("blur", () => this.set(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** `data` is {times, lines, marks, span, format, step, most, fill}; a line is {name, values, strong, trouble}. */
  update(data) {
    this.data = data;
    this.choose();
    this.draw();
  }

  /** Chooses the lines that get a name. A named line keeps its colour. */
  choose() {
    const { lines } = this.data;
    const last = ({ values }) => values.findLast((value) => value !== null) ?? 0;
    const byValue = [...lines].sort((one, other) => (this.low ? last(one) - last(other) : last(other) - last(one)));
    const strong = byValue.filter((line) => line.strong);
    const troubled = byValue.filter((line) => !line.strong && line.trouble).slice(0, TROUBLED);
    const first = new Set([...strong, ...troubled, ...byValue.filter((line) => this.low || last(line) > 0)]);
    this.named = lines.length <= COLOURS ? lines : [...first].slice(0, NAMED);
    const names = new Set(this.named.map(({ name }) => name));
    for (const name of this.slots.keys()) if (!names.has(name)) this.slots.delete(name);
    // In the order of the service, so that a line has the same colour in every chart.
    for (const { name } of lines) {
      if (!names.has(name) || this.slots.has(name)) continue;
      const used = new Set(this.slots.values());
      this.slots.set(name, Array.from({ length: COLOURS }, (_, slot) => slot).find((slot) => !used.has(slot)));
    }
  }

  /** Shortens the names until those of the named lines fit in `room` pixels; returns them, and the widest. */
  fit(pen, room) {
    const names = this.data.lines.map(({ name }) => name);
    const key = [room, pen.font, ...this.named.map(({ name }) => name), names.length].join();
    if (this.fitted?.key === key) return this.fitted;
    for (const letters of [18, 16, 14, 12, 10, 8]) {
      const short = shorten(names, letters);
      const width = Math.max(0, ...this.named.map(({ name }) => pen.measureText(short.get(name)).width));
      this.fitted = { key, short, width: Math.min(width, room) };
      if (width <= room) break;
    }
    return this.fitted;
  }

  point(x) {
    if (!this.frame) return;
    const { first, last, left, width } = this.frame;
    const at = first + ((x - left) / width) * (last - first);
    const { times } = this.data;
    let nearest = -1;
    times.forEach((time, index) => {
      if (nearest < 0 || Math.abs(time - at) < Math.abs(times[nearest] - at)) nearest = index;
    });
    this.set(nearest < 0 ? null : times.length - 1 - nearest);
  }

  key(event) {
    const { length } = this.data.times;
    const by = { ArrowLeft: 1, ArrowRight: -1, PageUp: 30, PageDown: -30 }[event.key];
    if (by !== undefined) this.set(Math.min(Math.max((this.cursor ?? -1) + by, 0), length - 1));
    else if (event.key === "Escape") this.set(null);
    else return;
    event.preventDefault();
  }

  /** The cursor counts samples back from now. */
  set(cursor) {
    this.cursor = cursor;
    this.readout.setAttribute("aria-live", cursor === null ? "off" : "polite");
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const { times, lines, span, format, step: stepOf, most: fixed } = this.data;
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0 || !format) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const style = getComputedStyle(canvas);
    const colour = (name) => colourOf(canvas, name);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    const { short, width: longest } = this.fit(pen, width * 0.34 - 28);
    this.short = short;
    const right = lines.length > 1 ? longest + 28 : 16;

    const last = times.at(-1) ?? Date.now();
    const first = Math.max(last - span, Math.min(times[0] ?? last, last - SHORTEST_MS));
    const highest = fixed ?? lines.reduce((top, { values }) => values.reduce((max, y) => Math.max(max, y ?? 0), top), 0);
    const step = stepOf(highest);
    const top = fixed ?? Math.max(step, Math.ceil((highest * 1.05) / step) * step);
    const scaleTexts = Array.from({ length: Math.round(top / step) + 1 }, (_, place) => format(place * step));
    const left = Math.max(30, ...scaleTexts.map((text) => pen.measureText(text).width)) + 12;
    this.frame = { first, last, left, width: width - left - right };
    const bottom = height - MARGIN.bottom;
    const x = (time) => this.frame.left + ((time - first) / (last - first)) * this.frame.width;
    const y = (value) => bottom - (Math.min(value, top) / top) * (bottom - MARGIN.top);
    const view = { pen, colour, x, y, top, step, bottom, width, right: width - right };

    this.grid(view);
    pen.save();
    pen.beginPath();
    pen.rect(this.frame.left - 1, 0, this.frame.width + 2, height);
    pen.clip();
    this.lines(view);
    pen.restore();
    if (lines.length > 1) this.labels(view);
    this.mark(view);
  }

  grid({ pen, colour, x, y, top, step, right }) {
    const { format } = this.data;
    pen.strokeStyle = colour("--line");
    pen.fillStyle = colour("--muted");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let value = 0; value <= top * 1.001; value += step) {
      stroke(pen, [[this.frame.left, y(value)], [right, y(value)]]);
      pen.fillText(format(value), this.frame.left - 8, y(value));
    }
    const { first, last, width } = this.frame;
    const seconds = (last - first) / 1000;
    const apart = TIME_STEPS_S.find((it) => (width * it) / seconds >= 70) ?? TIME_STEPS_S.at(-1);
    pen.textBaseline = "alphabetic";
    for (let back = 0; back <= seconds; back += apart) {
      const text = back === 0 ? "now" : ago(back);
      pen.textAlign = back === 0 ? "right" : "center";
      const half = pen.measureText(text).width / 2;
      const at = x(last - back * 1000);
      if (back === 0 || (at - half >= this.frame.left - 8 && at + half < right - 34)) pen.fillText(text, at, y(0) + 17);
    }
  }

  lines({ pen, colour, x, y, bottom }) {
    const { times, lines, marks, fill } = this.data;
    pen.strokeStyle = colour("--line-strong");
    pen.setLineDash([2, 3]);
    for (const time of marks.filter((time) => time >= this.frame.first)) stroke(pen, [[x(time), MARGIN.top], [x(time), bottom]]);
    pen.setLineDash([]);
    if (lines.length > COLOURS) this.band({ pen, colour, x, y });
    const order = [...this.named].sort((one, other) => Boolean(one.strong) - Boolean(other.strong));
    pen.lineJoin = "round";
    for (const { name, values, strong } of order) {
      const points = values.map((value, index) => (value === null ? null : [x(times[index]), y(value)]));
      pen.strokeStyle = pen.fillStyle = colour(`--series-${this.slots.get(name) + 1}`);
      pen.lineWidth = strong ? 2.75 : 1.75;
      for (const part of parts(points)) {
        if (fill) area(pen, part, bottom);
        stroke(pen, part);
      }
      const end = points.findLastIndex((point) => point !== null);
      if (end >= 0 && end < points.length - 1) this.end(pen, points[end], name);
    }
    pen.lineWidth = 1;
  }

  /** The end of a line: a cross, and its name beside it. */
  end(pen, [x, y], name) {
    const size = 4;
    pen.lineWidth = 2;
    stroke(pen, [[x - size, y - size], [x + size, y + size]]);
    stroke(pen, [[x - size, y + size], [x + size, y - size]]);
    const text = `${this.short.get(name)} ended`;
    const room = this.frame.left + this.frame.width - x - 10;
    const fits = pen.measureText(text).width <= room;
    pen.textAlign = fits ? "left" : "right";
    pen.textBaseline = "bottom";
    const at = [fits ? x + 8 : x - 8, Math.max(y - 3, MARGIN.top + 12)];
    pen.save();
    pen.strokeStyle = colourOf(this.canvas, "--surface");
    pen.lineWidth = 4;
    pen.strokeText(text, ...at);
    pen.restore();
    pen.fillText(text, ...at);
  }

  band({ pen, colour, x, y }) {
    const { times } = this.data;
    const extremes = times.map((time, index) => extent(this.data.lines, index));
    const points = extremes.map((it, index) => it && [x(times[index]), y(it.most), y(it.least)]);
    pen.fillStyle = colour("--band");
    for (const part of parts(points)) {
      pen.beginPath();
      part.forEach(([at, upper], index) => (index === 0 ? pen.moveTo(at, upper) : pen.lineTo(at, upper)));
      [...part].reverse().forEach(([at, , lower]) => pen.lineTo(at, lower));
      pen.fill();
    }
  }

  labels({ pen, colour, y, right, bottom, width }) {
    const labels = this.named
      .filter(({ values }) => values.length > 0 && values.at(-1) !== null)
      .map(({ name, values, strong }) => ({ name, strong, at: y(values.at(-1)) }))
      .sort((one, other) => one.at - other.at);
    // Overlapping names are moved apart: first downwards, then back up from the bottom.
    const apart = 15;
    labels.forEach((label, place) => {
      const above = place === 0 ? MARGIN.top - apart : labels[place - 1].at;
      label.at = Math.max(label.at, above + apart);
    });
    for (let place = labels.length - 1, limit = bottom; place >= 0; place -= 1, limit = labels[place + 1].at - apart) {
      labels[place].at = Math.min(labels[place].at, limit);
    }
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    for (const { name, strong, at } of labels) {
      pen.fillStyle = colour(`--series-${this.slots.get(name) + 1}`);
      const text = this.short.get(name);
      pen.fillText(strong ? `${text} ◂` : text, right + 8, at, width - right - 8);
    }
  }

  /** Draws the cursor, and writes the figures at the cursor, or the latest without one. */
  mark({ pen, colour, x, bottom }) {
    const { times, lines, format, sum } = this.data;
    if (times.length === 0) return;
    const index = times.length - 1 - Math.min(this.cursor ?? 0, times.length - 1);
    if (this.cursor !== null) {
      pen.strokeStyle = colour("--ink");
      stroke(pen, [[x(times[index]), MARGIN.top], [x(times[index]), bottom]]);
    }
    const value = ({ values }) => (values[index] === null ? "–" : format(values[index]));
    const figures = lines.length === 1 ? [value(lines[0])] : [];
    if (lines.length > COLOURS) {
      const range = extent(lines, index);
      if (range) figures.push(`${lines.length} lines: ${format(range.least)} to ${format(range.most)}`);
    }
    if (lines.length > 1) {
      if (sum) figures.push(`total ${format(total(lines, index))}`);
      const shown = lines.length <= COLOURS || this.cursor !== null ? this.named : [];
      figures.push(...shown.map((line) => `${this.short.get(line.name)} ${value(line)}`));
    }
    const at = this.cursor === null ? [] : [new Date(times[index]).toLocaleTimeString([], { hour12: false })];
    const text = [...at, ...figures].join(" · ");
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }
}

/** The colour of a variable, as the canvas shows it: the browser resolves light-dark() in properties only. */
function colourOf(canvas, name) {
  canvas.style.color = `var(${name})`;
  return getComputedStyle(canvas).color;
}

/** The step of a scale of bytes: a power of two, for about four steps. */
export function binaryStep(most) {
  return 2 ** Math.ceil(Math.log2(Math.max(most, 1024) / 4));
}

/** The step of a decimal scale: 1, 2 or 5 times a power of ten, for at most five steps. */
export function decimalStep(most) {
  const rough = Math.max(most, 4) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

export function total(lines, index) {
  return lines.reduce((sum, { values }) => sum + (values[index] ?? 0), 0);
}

function extent(lines, index) {
  let range = null;
  for (const { values } of lines) {
    const value = values[index];
    if (value === null || value === undefined) continue;
    if (range === null) range = { least: value, most: value };
    else range = { least: Math.min(range.least, value), most: Math.max(range.most, value) };
  }
  return range;
}

function ago(seconds) {
  if (seconds < 60) return `−${seconds} s`;
  return seconds < 3600 ? `−${seconds / 60} min` : `−${seconds / 3600} h`;
}

/** The sections of a line between missing points. */
function parts(points) {
  const all = [[]];
  for (const point of points) {
    if (point === null) all.push([]);
    else all.at(-1).push(point);
  }
  return all.filter((part) => part.length > 1);
}

function area(pen, points, bottom) {
  pen.save();
  pen.globalAlpha = 0.12;
  pen.beginPath();
  pen.moveTo(points[0][0], bottom);
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.lineTo(points.at(-1)[0], bottom);
  pen.fill();
  pen.restore();
}

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], index) => (index === 0 ? pen.moveTo(x, y) : pen.lineTo(x, y)));
  pen.stroke();
}

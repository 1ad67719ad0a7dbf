// Formats figures, and has helpers for the page's elements.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count, digits = 1) {
  if (count === null || count === undefined) return "–";
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count.toFixed(unit === 0 ? 0 : digits)} ${UNITS[unit]}`;
}

export function rate(perSecond) {
  if (perSecond === null) return "–";
  if (perSecond === 0) return "0";
  if (perSecond < 0.05) return "< 0.1";
  return perSecond < 10 && !Number.isInteger(perSecond) ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString("en");
}

export function byteRate(perSecond) {
  return perSecond === null ? "–" : `${brief(perSecond)}/s`;
}

/** Bytes, without ".0". */
export function brief(count) {
  return bytes(count).replace(".0 ", " ");
}

export function percent(value) {
  return `${value.toFixed(value < 10 && !Number.isInteger(value) ? 1 : 0)} %`;
}

/** A part of the whole, given in hundredths of a percent. */
export function part100(hundredths) {
  const digits = hundredths < 100 ? 2 : hundredths < 1000 ? 1 : 0;
  return `${(hundredths / 100).toFixed(digits)} %`;
}

export function count(number) {
  return number.toLocaleString("en");
}

export function duration(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function age(ms) {
  if (ms === null) return "–";
  return ms < 10000 ? `${ms} ms` : duration(ms);
}

/** A sign and a word for each state: they differ without colour, too. */
export const STATES = {
  up: ["●", "up"],
  down: ["✕", "down"],
  failing: ["▲", "failing"],
  unhealthy: ["▲", "unhealthy"],
  leaving: ["◐", "leaving"],
  maintenance: ["■", "maintenance"],
  draining: ["◐", "draining"],
  paused: ["■", "paused"],
  terminated: ["✕", "terminated"],
  ineligible: ["▲", "ineligible"],
  unreachable: ["▲", "no route"],
  unknown: ["○", "no heartbeat yet"],
};

export function state(name) {
  return STATES[name] ?? ["◇", name];
}

export function byId(id) {
  return document.getElementById(id);
}

/** Words of an identifier of the API. */
export function words(name) {
  return name.replaceAll("_", " ");
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Makes an element. The text is never parsed as HTML. */
export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Writes only a changed text, so that nothing is announced or repainted in vain. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Updates the children of `parent` to `items`, one for each, and keeps the existing ones. */
export function syncChildren(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = String(key(item));
    let child = known.get(name);
    if (child) {
      known.delete(name);
    } else {
      child = create(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  known.forEach((child) => child.remove());
}

/** Shows pairs of a label and a value. */
export function facts(list, pairs) {
  syncChildren(
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

// Shortens names in the middle, so that they stay different from each other.

/** Returns a map from each name to a text of at most `most` characters, or to the name where no such text is unique. */
export function shorten(names, most) {
  const sorted = [...names].sort();
  const own = new Map(sorted.map((name, place) => [name, ownPart(name, sorted[place - 1], sorted[place + 1])]));
  const methods = [(name) => middle(name, most), (name) => window(name, own.get(name), most), (name) => name];
  const short = new Map();
  const taken = new Set(names.filter((name) => name.length <= most));
  let rest = names.filter((name) => name.length > most);
  for (const name of taken) short.set(name, name);
  for (const method of methods) {
    const number = new Map();
    for (const name of rest) number.set(method(name), (number.get(method(name)) ?? 0) + 1);
    const unique = (name) => number.get(method(name)) === 1 && !taken.has(method(name));
    const done = rest.filter(unique);
    rest = rest.filter((name) => !unique(name));
    for (const name of done) {
      short.set(name, method(name));
      taken.add(method(name));
    }
  }
  return short;
}

/** The beginning and the end of a name. */
export function middle(name, most) {
  const tail = Math.floor((most - 1) / 2);
  return `${name.slice(0, most - 1 - tail)}…${name.slice(name.length - tail)}`;
}

/** The end of the word in which a name differs from its sorted neighbours. */
function ownPart(name, ...neighbours) {
  let end = 0;
  for (const other of neighbours) {
    let shared = 0;
    while (other !== undefined && shared < name.length && other[shared] === name[shared]) shared += 1;
    end = Math.max(end, shared + 1);
  }
  while (end < name.length && /[0-9A-Za-z]/.test(name[end])) end += 1;
  return Math.min(end, name.length);
}

/** The part of a name before `end` that fits. */
function window(name, end, most) {
  const from = Math.max(0, end - (most - 2));
  const to = Math.min(name.length, from + most - 2);
  return `${from > 0 ? "…" : ""}${name.slice(from, to)}${to < name.length ? "…" : ""}`;
}

/** Compares numbers within names by value: worker9 before worker10. */
export const natural = new Intl.Collator("en", { numeric: true }).compare;

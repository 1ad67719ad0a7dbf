// A service's present selection, its reason and its age.

import { byId, bytes, capital, count, duration, facts, make, syncChildren, words, write } from "./format.js";
import { peerRisks } from "./peers.js";
import { ATTENTION, rankOf, stateOf, whyNot, workersOf } from "./trouble.js";

/** Rules whose reason holds as long as the selection. The reason of any other rule may have ended since. */
const LASTING = new Set(["no_heartbeat", "no_worker_up", "spread"]);
const REMARKS = 5;

export function service(service, refused, refusals) {
  const state = stateOf(service, refused);
  const serves = service.selected === "manager";
  write(byId("eyebrow"), `${service.name} · ${service.address}/${service.protocol}`);
  write(byId("choice"), headline(service));
  byId("decision").toggleAttribute("data-fallback", serves || service.selected === "none");
  write(byId("now"), now(service));
  byId("now").hidden = byId("now").textContent === "";
  const lasting = LASTING.has(service.rule);
  byId("reason").hidden = lasting && service.selected === "*";
  const before = lasting ? "" : `Decided ${duration(service.since_ms)} ago: `;
  write(byId("reason"), before + (lasting ? capital(service.reason) : service.reason) + ".");
  const threshold =
    service.threshold_bytes === null || service.threshold !== "auto"
      ? service.threshold
      : `auto = ${bytes(service.threshold_bytes)}`;
  facts(byId("facts"), [
    ["state", `${state.sign} ${state.word}`],
    ["for", duration(service.since_ms)],
    ["rule", words(service.rule)],
    ["policy", words(service.policy)],
    ...(service.policy === "memory" ? [["threshold", threshold]] : []),
    ...(service.waiting ? [["waiting for the hold to end", service.waiting.worker]] : []),
    ...(service.mode === "nat" ? [] : [["mode", service.mode]]),
    ...Object.entries(refusals ?? {}).map(([verdict, number]) => [`refused: ${words(verdict)}`, count(number)]),
  ]);
  byId("facts").firstElementChild.toggleAttribute("data-bad", state.level >= ATTENTION);
  remarks(service);
}

function headline(service) {
  const workers = workersOf(service);
  const takers = workers.filter(({ share }) => share > 0).length;
  if (service.overwritten) return `New connections go to ${selectionName(service.overwritten.selected)}`;
  if (service.selected === "none") return "New connections are refused";
  if (service.selected === "manager") return "The fallback on the manager serves";
  if (service.selected !== "*") return `New connections go to ${service.selected}`;
  const over = takers === workers.length ? `${takers}` : `${takers} of ${workers.length}`;
  return `New connections are spread over ${over} workers`;
}

function selectionName(selected) {
  return { "*": "all workers", none: "no worker" }[selected] ?? selected;
}

/** The present figures of a selection. */
function now(service) {
  if (service.overwritten) {
    const { selected, since_ms: since } = service.overwritten;
    return (
      `▲ Another program wrote ${selectionName(selected)} to the kernel's map ${duration(since)} ago. The manager had chosen ` +
      `${selectionName(service.selected)}, and writes the map with its next choice.`
    );
  }
  if (service.problem) return `▲ ${capital(service.problem)}`;
  const workers = workersOf(service);
  const selected = workers.find(({ name }) => name === service.selected);
  if (!selected) return "";
  const has = (worker) => `${worker.name} has ${bytes(worker.memory_available_bytes)} available`;
  const known = workers.filter((worker) => worker !== selected && worker.state === "up");
  known.sort((one, other) => (other.memory_available_bytes ?? 0) - (one.memory_available_bytes ?? 0));
  const best = known[0] ? `; of the others up, ${has(known[0])}` : "; no other worker is up";
  return `Now: ${has(selected)}${best}.`;
}

/** The workers in trouble or kept from serving, with their reasons, the worst first. */
function remarks(service) {
  const found = workersOf(service)
    .map((worker) => ({ worker, rank: rankOf(worker, 0), why: whyNot(worker) }))
    .filter(({ rank }) => rank > 0)
    .sort((one, other) => other.rank - one.rank);
  const shown = found.slice(0, REMARKS).map(({ worker, rank, why }) => ({
    name: worker.name,
    text: `${worker.name}: ${why}`,
    bad: rank > 1,
  }));
  if (found.length > REMARKS) shown.push({ name: "*", text: `and ${found.length - REMARKS} more, below`, bad: false });
  syncChildren(
    byId("remarks"),
    shown,
    ({ name }) => name,
    () => make("li"),
    (item, { text, bad }) => {
      item.toggleAttribute("data-bad", bad);
      write(item, text);
    },
  );
}

/** The risks to all services, which every view shows. */
export function risks(status) {
  const { authentication, unsigned, refused_lately: lately } = status.heartbeats;
  const found = [];
  if (authentication === "off") {
    found.push([
      "authentication",
      "Risk: heartbeats are not authenticated",
      "Any host that can send to the manager's heartbeat port can declare workers up or down, and so move or stop " +
        "traffic. memlb keygen makes keys; then set authentication = \"enforce\" under [heartbeats].",
    ]);
  } else if (authentication === "permissive") {
    const names = Object.keys(unsigned ?? {});
    const who = names.length === 0 ? "All workers sign: set it to enforce." : `Not signed: ${list(names)}.`;
    found.push(["authentication", "Risk: unsigned heartbeats are accepted", `Authentication is permissive. ${who}`]);
  }
  for (const { name, attachment, reason } of status.interfaces) {
    if (attachment === "none") found.push([`interface ${name}`, `Interface ${name} is not served`, capital(reason)]);
  }
  found.push(...peerRisks(status));
  if (status.counters_problem) found.push(["counters", "There are no counters", capital(status.counters_problem)]);
  for (const [reason, { from, detail }] of Object.entries(lately ?? {})) {
    if (reason === "not_fresh") continue;
    found.push([`refused ${reason}`, "Heartbeats are refused", `${words(reason)}, the last from ${from}: ${detail}`]);
  }
  syncChildren(
    byId("risks"),
    found,
    ([key]) => key,
    () => {
      const item = make("li");
      item.append(make("strong"), make("span"));
      return item;
    },
    (item, [, title, text]) => {
      write(item.firstElementChild, `▲ ${title}. `);
      write(item.lastElementChild, text.endsWith(".") ? text : `${text}.`);
    },
  );
}

function list(names) {
  const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
  return names.slice(0, 4).join(", ") + more;
}

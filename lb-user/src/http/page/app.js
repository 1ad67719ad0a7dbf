// Connects the parts of the page: passes the manager's status and events to them.

import { Events } from "./events.js";
import { byId, duration, write } from "./format.js";
import { Graphs } from "./graphs.js";
import * as lists from "./lists.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { peers } from "./peers.js";
import { Picture } from "./picture.js";
import { Series } from "./series.js";
import * as service from "./service.js";
import { Workers } from "./workers.js";

const series = new Series();
const events = new Events();
const overview = new Overview(events);
const picture = new Picture(new Workers(pick));
const graphs = new Graphs(series, show);

let status = null;
/** The service and the worker in the page's address. */
let place = readAddress();
/** The scroll position of each view when the reader left it. */
const scrolled = new Map();

new Live({
  status(received) {
    status = received;
    for (const service of status.services) {
      service.overwritten = status.kernel_selections.find((moved) => moved.service === service.name);
    }
    series.add(status);
    show();
  },
  event(entry) {
    events.add(entry);
    if (entry.event === "selection_changed") series.mark(entry.service, Date.parse(entry.time));
  },
  lost: (number) => events.lost(number),
  live(word, why) {
    const sign = byId("live");
    sign.dataset.live = word;
    write(sign, word === "live" ? "live" : `no answer: ${why}`);
  },
}).start();

function show() {
  if (!status) return;
  write(byId("about"), `version ${status.version}, up ${duration(status.uptime_ms)}`);
  const wanted = place.service ?? (status.services.length === 1 ? status.services[0].name : null);
  const chosen = status.services.find(({ name }) => name === wanted) ?? null;
  byId("overview").hidden = chosen !== null;
  byId("service").hidden = chosen === null;
  byId("back").hidden = status.services.length < 2;
  service.risks(status);
  if (chosen) {
    document.title = `${chosen.selected === "*" ? "all" : chosen.selected} · ${chosen.name} · memlb`;
    service.service(chosen, series.ratesOf(chosen).refused, status.refusals?.[chosen.name]);
    picture.update(chosen, series, status.interfaces, place.worker);
    graphs.update(chosen, place.worker);
    lists.figures(chosen, series);
  } else {
    overview.update(status, series, wanted);
    document.title = `${byId("fleet-title").textContent} · memlb`;
  }
  peers(status);
  events.update(status, chosen);
  lists.packets(status, series);
  lists.heartbeats(status);
  lists.maps(status);
}

/** The address is #SERVICE or #SERVICE/WORKER. */
function readAddress() {
  const parts = location.hash.slice(1).split("/").map(decoded);
  return { service: parts[0] || null, worker: parts[1] || null };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function pick(name) {
  place.worker = name;
  const service = place.service ?? status.services[0].name;
  const parts = name === null ? [service] : [service, name];
  history.replaceState(null, "", `#${parts.map(encodeURIComponent).join("/")}`);
  place = readAddress();
  show();
  if (name !== null) byId("worker").scrollIntoView({ block: "nearest" });
}

addEventListener("hashchange", () => {
  const before = place;
  place = readAddress();
  if (before.service !== place.service) scrolled.set(before.service, scrollY);
  show();
  if (before.service === place.service) return;
  byId("main").focus({ preventScroll: true });
  scrollTo(0, place.service === null ? (scrolled.get(null) ?? 0) : 0);
});

byId("skip").addEventListener("click", () => byId("main").focus());

const THEMES = ["auto", "light", "dark"];
function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  write(byId("theme"), `◐ ${theme}`);
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  show();
}
byId("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(localStorage.theme ?? "auto") + 1) % THEMES.length];
  localStorage.theme = theme;
  applyTheme(theme);
});
applyTheme(THEMES.includes(localStorage.theme) ? localStorage.theme : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

byId("motion").addEventListener("click", () => {
  const still = document.documentElement.toggleAttribute("data-still");
  byId("motion").setAttribute("aria-pressed", String(still));
  write(byId("motion"), still ? "▶" : "❚❚");
});

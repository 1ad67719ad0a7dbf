// Puts the page together: what comes in from the manager goes to the parts that show it.

import { Chart, binaryStep, decimalStep } from "./charts.js";
import { byId, bytes, duration, rate, write } from "./format.js";
import { History } from "./history.js";
import * as lists from "./lists.js";
import { Live } from "./live.js";
import { Picture } from "./picture.js";

const history = new History();
const picture = new Picture((name) => {
  picked = name;
  show();
});
const memory = new Chart(byId("memory"), byId("memory-readout"), (value) => bytes(value, 0), binaryStep);
const connections = new Chart(byId("connections"), byId("connections-readout"), rate, decimalStep);

let status = null;
/** The chosen service's name, written as it stands in the address. */
let chosen = location.hash.slice(1);
let picked = null;

new Live({
  timeline: (timeline) => history.recall(timeline),
  status(news) {
    status = news;
    history.add(news);
    show();
  },
  event(entry) {
    lists.event(entry);
    if (entry.event === "selection_changed") history.mark(entry.service, Date.parse(entry.time));
  },
  lost: lists.lost,
  live(word, why) {
    const sign = byId("live");
    sign.dataset.live = word;
    write(sign, word === "live" ? "live" : `no answer: ${why}`);
  },
}).start();

function show() {
  if (!status) return;
  const wanted = status.services.find(({ name }) => encodeURIComponent(name) === chosen);
  const service = wanted ?? status.services[0];
  if (!service) return;
  write(byId("about"), `version ${status.version}, up ${duration(status.uptime_ms)}`);
  document.title = `${service.selected === "*" ? "all" : service.selected} · ${service.name} · memlb`;
  lists.services(status, service.name, choose);
  lists.decision(service);
  picture.update(service, history, status.interfaces, picked);
  const stands = (name) => name === service.selected || name === picked;
  const marks = history.marks.filter((mark) => mark.service === service.name).map(({ at }) => at);
  const workers = service.backends.filter(({ name }) => name !== "manager");
  memory.update(
    workers.map(({ name }) => ({
      name,
      points: history.memory(service.name, name),
      strong: stands(name),
    })),
    marks,
  );
  connections.update(
    service.backends.map(({ name }) => ({
      name,
      points: history.connections(service.name, name),
      strong: stands(name),
    })),
    marks,
  );
  lists.packets(status, history);
  lists.heartbeats(status);
  lists.maps(status);
  lists.figures(service, history);
}

function choose(name) {
  chosen = encodeURIComponent(name);
  picked = null;
  location.replace(`#${chosen}`);
  show();
}

const THEMES = ["auto", "light", "dark"];
function dress(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  write(byId("theme"), `◐ ${theme}`);
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  show();
}
byId("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(localStorage.theme ?? "auto") + 1) % THEMES.length];
  localStorage.theme = theme;
  dress(theme);
});
dress(THEMES.includes(localStorage.theme) ? localStorage.theme : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

byId("motion").addEventListener("click", () => {
  const still = document.documentElement.toggleAttribute("data-still");
  byId("motion").setAttribute("aria-pressed", String(still));
  write(byId("motion"), still ? "▶" : "❚❚");
});

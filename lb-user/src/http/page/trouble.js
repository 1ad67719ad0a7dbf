// Ranks services and workers by how much they need an operator.

/** The reasons that need an operator. A test compares them with the code. */
const TROUBLE = new Set([
  "down",
  "unhealthy",
  "terminated",
  "ineligible",
  "unreachable",
  "failing",
  "reserve",
  "pressure",
  "full",
]);
/** The reasons that keep a worker from serving, but are intended or temporary. */
const HELD = new Set(["unknown", "leaving", "maintenance", "draining", "zero_weight", "paused"]);

/** 3: in trouble; 2: refuses connections, or its heartbeats are missing; 1: kept from serving; 0: in order. */
export function rankOf(worker, refused) {
  if (TROUBLE.has(worker.reason?.kind)) return 3;
  if (refused > 0 || worker.heartbeats_missing) return 2;
  return HELD.has(worker.reason?.kind) ? 1 : 0;
}

export function workersOf(service) {
  return service.backends.filter(({ name }) => name !== "manager");
}

/** The state of a service: {level, sign, word}; the higher the level, the worse. */
export function stateOf(service, refused) {
  const workers = workersOf(service);
  const number = (kinds) => workers.filter(({ reason }) => kinds.has(reason?.kind)).length;
  const [troubled, held] = [number(TROUBLE), number(HELD)];
  const of = (count) => `${count} of ${workers.length}`;
  if (service.selected === "none") return { level: 5, sign: "✕", word: "refuses clients", troubled };
  if (service.selected === "manager") return { level: 4, sign: "▲", word: "fallback serves", troubled };
  if (service.overwritten) return { level: 4, sign: "▲", word: "selection overwritten", troubled };
  if (service.problem) return { level: 4, sign: "▲", word: "heartbeats missing", troubled };
  if (troubled > 0) return { level: 3, sign: "▲", word: `${of(troubled)} in trouble`, troubled };
  if (refused > 0) return { level: 2, sign: "▲", word: "refusals", troubled };
  if (held > 0) return { level: 1, sign: "◐", word: `${of(held)} not serving`, troubled };
  return { level: 0, sign: "●", word: "in order", troubled };
}

/** A service of this level or above needs an operator. */
export const ATTENTION = 2;

/** Why a worker gets no new connections, or fewer than its share; "" if it gets its share. */
export function whyNot(worker) {
  const order = worker.admin_state ?? worker.weight_percent ?? worker.pause;
  const by = order && worker.reason ? ` (${order.by}${order.reason ? `: ${order.reason}` : ""})` : "";
  return worker.reason ? worker.reason.text + by : "";
}

// The peers: whether each knows all connections, and its lag.

import { byId, bytes, count, duration, facts, make, syncChildren, words, write } from "./format.js";

const STATES = {
  connected: ["●", "connected"],
  connecting: ["○", "not connected"],
  refused: ["✕", "refused"],
};
/** A peer with at least this lag is reported as late. */
const LATE_US = 1_000_000;

export function peers(status) {
  byId("peers").hidden = status.peers.length === 0;
  syncChildren(byId("peer-list"), status.peers, ({ name }) => name, create, fill);
}

function create({ name }) {
  const item = make("li", "peer");
  const head = make("p", "peer-head");
  head.append(make("strong", "", name), make("span", "peer-state"), make("span", "mono small"));
  item.append(head, make("ul", "facts"));
  return item;
}

function fill(item, peer) {
  const [head, list] = item.children;
  const [sign, word] = STATES[peer.state] ?? ["◇", words(peer.state)];
  item.dataset.state = peer.state;
  item.toggleAttribute("data-bad", faults(peer).length > 0);
  write(head.children[1], `${sign} ${word} for ${duration(peer.state_since_ms)}`);
  write(head.children[2], peer.address);
  const quantile = (us) => (us === null ? [] : [["acknowledged within (99 %)", lag(us)]]);
  const refused = Object.values(peer.refused_frames).reduce((sum, one) => sum + one, 0);
  const some = (label, number) => (number > 0 ? [[label, count(number)]] : []);
  const records = (number, size) => `${count(number)} (${bytes(size)})`;
  facts(list, [
    ...(peer.lag_us === null ? [] : [["lag", lag(peer.lag_us)]]),
    ...quantile(peer.lag_p99_us),
    ["it knows", peer.complete ? "all connections" : "not all connections yet"],
    ["known of it", peer.received_complete ? "all connections" : "not all connections yet"],
    ["sent", records(peer.records_sent, peer.bytes_sent)],
    ["received", records(peer.records_received, peer.bytes_received)],
    ...some("waiting", peer.queue_records),
    ...some("lost and sent again", peer.lost_records),
    ...some("packets relayed", peer.relayed_packets),
    ...some("frames refused", refused),
    ...(peer.configuration_matches === null ? [] : [["settings", peer.configuration_matches ? "equal" : "differ"]]),
    ...(peer.version ? [["version", peer.version]] : []),
  ]);
  for (const fact of list.children) {
    fact.toggleAttribute("data-bad", /not all|^settingsdiffer/.test(fact.textContent));
  }
}

/** The problems of peers, as [key, title, text] of the list of risks. */
export function peerRisks(status) {
  const found = status.peers.flatMap((peer) =>
    faults(peer).map(([kind, title, text]) => [`peer ${peer.name} ${kind}`, `Peer ${peer.name} ${title}`, text]),
  );
  if (status.handed_over) {
    const by = status.handed_over.by === null ? "" : ` by ${status.handed_over.by}`;
    found.push([
      "handed over",
      `Handed over${by}`,
      "This manager asks for a lower priority. memlb handover --undo ends that.",
    ]);
  }
  return found;
}

function faults(peer) {
  const found = [];
  if (peer.state !== "connected") {
    const reason = peer.reason ?? "it has not answered yet";
    found.push(["state", "is not connected", `${reason}. New connections are lost if this machine dies`]);
  } else if (!peer.complete) {
    found.push(["complete", "does not know all connections yet", "A take-over now loses the connections that it does not know"]);
  } else if (peer.lag_us !== null && peer.lag_us >= LATE_US) {
    found.push(["lag", "is late", `Its lag is ${lag(peer.lag_us)}: newer connections are lost if this machine dies`]);
  }
  if (peer.configuration_matches === false) {
    found.push(["settings", "has other settings", "Compare what memlb check --shared prints on both managers"]);
  }
  return found;
}

function lag(us) {
  if (us < 10_000) return `${(us / 1000).toFixed(us === 0 ? 0 : 1)} ms`;
  return us < 10_000_000 ? `${Math.round(us / 1000)} ms` : duration(us / 1000);
}

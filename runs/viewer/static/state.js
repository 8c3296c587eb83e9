// Where the reader is, kept in the address: what is copied from there comes back to the same step.

const PAUSE = 150; // milliseconds between two writes: browsers refuse more than a few a second

const onDisk = () => location.protocol === "file:";

export function read() {
  const parameters = new URLSearchParams(onDisk() ? location.hash.slice(1) : location.search);
  const t = Number.parseInt(parameters.get("t") ?? "", 10);
  return {
    ep: parameters.get("ep"),
    with: parameters.get("with"),
    t: Number.isFinite(t) ? t : 0,
    head: parameters.get("head"),
    memory: parameters.get("memory"),
  };
}

// The address of a place; of the list of episodes if nothing is named.
export function address(where) {
  const named = Object.entries(where).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = named.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  if (onDisk()) return `#${text}`;
  return text ? `?${text}` : location.pathname;
}

let timer = 0;
let waiting = null;

function flush() {
  clearTimeout(timer);
  timer = 0;
  if (waiting) history.replaceState(null, "", address(waiting));
  waiting = null;
}

export function write(where) {
  waiting = where;
  timer ||= setTimeout(flush, PAUSE);
}

// Go to another place of this page: what was about to be written belongs to the place that is left.
export function push(where) {
  flush();
  history.pushState(null, "", address(where));
}

export function forget() {
  clearTimeout(timer);
  timer = 0;
  waiting = null;
}

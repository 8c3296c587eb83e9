// Where the reader is, kept in the address: what is copied from there comes back to the same step.

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

export function address(state) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== null && value !== undefined && value !== "") parameters.set(name, value);
  }
  return (onDisk() ? "#" : "?") + parameters.toString();
}

let timer = 0;
export function write(state) {
  clearTimeout(timer); // browsers refuse more than a few changes a second
  timer = setTimeout(() => history.replaceState(null, "", address(state)), 120);
}

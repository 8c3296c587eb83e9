// Episodes: from the page itself, if they were exported into it, else from the server; their arrays unpacked and checked.

const SCHEMA = 1;
const KINDS = { f4: Float32Array, u1: Uint8Array, i4: Int32Array };

export const exported = () => [...document.querySelectorAll("script.episode")];

// Keys are paths: their slashes stay, all else that means something in an address is escaped.
export const path = (key) => key.split("/").map(encodeURIComponent).join("/");

export async function fetchJson(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("The server does not answer: is neurocoder watch still running?");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok || !body) throw new Error(body?.error ?? `The server's answer cannot be read (status ${response.status}).`);
  return body;
}

export async function loadEpisode(key) {
  return unpack(await fetchJson(`/api/episode/${path(key)}`));
}

export async function unpack(payload) {
  if (payload?.schema !== SCHEMA) {
    throw new Error(
      `This episode has schema ${payload?.schema ?? "unknown"}, and this page reads schema ${SCHEMA}: ` +
        "watch it with the version of Neurocoder that recorded it.",
    );
  }
  const entries = await Promise.all(
    Object.entries(payload.arrays).map(async ([name, packed]) => [name, await decode(name, packed)]),
  );
  const episode = { ...payload, arrays: Object.fromEntries(entries) };
  check(episode);
  episode.soFar = sums(episode.arrays.reward);
  return episode;
}

async function decode(name, { dtype, shape, data }) {
  const kind = KINDS[dtype];
  if (!kind) throw new Error(`The array ${name} cannot be read: its type is ${dtype}, expected one of f4, u1, i4.`);
  const expected = shape.reduce((product, side) => product * side, 1) * kind.BYTES_PER_ELEMENT;
  let bytes;
  try {
    const packed = bytesOf(data);
    bytes = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  } catch {
    throw new Error(`The array ${name} is damaged: it cannot be unpacked.`);
  }
  if (bytes.byteLength !== expected) {
    throw new Error(
      `The array ${name} is damaged: expected ${expected} bytes for ${dtype} [${shape.join(", ")}], got ${bytes.byteLength}.`,
    );
  }
  return Object.assign(new kind(bytes), { shape });
}

export function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// Every array that a panel will read is there, and as long as the episode.
function check({ arrays, length, labels, programs, sigma, gate }) {
  const expect = (name, ...shape) => {
    const found = arrays[name];
    if (!found) throw new Error(`The episode is damaged: it has no array ${name}.`);
    const fits = shape.every((side, axis) => side === null || found.shape[axis] === side);
    if (!fits) {
      const wanted = shape.map((side) => side ?? "any").join(", ");
      throw new Error(`The array ${name} is damaged: expected shape [${wanted}], got [${found.shape.join(", ")}].`);
    }
  };
  expect("reward", length);
  expect("action", length);
  const optional = { value: [length], return_to_go: [length], boundary: [length], lives: [length + 1], probabilities: [length, null] };
  for (const [name, shape] of Object.entries(optional)) if (arrays[name]) expect(name, ...shape);
  for (const { array } of labels) expect(array, length);
  for (const program of programs) {
    expect(program.codes, program.slots, length);
    for (const part of ["low", "step", "mean", "order"]) expect(program[part], program.slots);
  }
  for (const name of Object.values(sigma)) expect(name, length, null);
  for (const name of Object.values(gate)) expect(name, length);
}

// sums[t] is what came before step t.
function sums(reward) {
  const result = new Float64Array(reward.length + 1);
  for (let t = 0; t < reward.length; t += 1) result[t + 1] = result[t] + reward[t];
  return result;
}

// What a per-step array holds at step t, as a list of numbers.
export function row(array, t) {
  const size = array.shape.slice(1).reduce((product, side) => product * side, 1);
  return Array.from(array.subarray(t * size, (t + 1) * size));
}

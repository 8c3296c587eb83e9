// Episodes: from the page itself, if they were exported into it, else from the server; arrays unpacked.

const SCHEMA = 1;
const KINDS = { f4: Float32Array, u1: Uint8Array, i4: Int32Array };

export const exported = () => [...document.querySelectorAll("script.episode")];

export async function fetchJson(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("The server does not answer: is neurocoder watch still running?");
  }
  const body = await response.json().catch(() => ({ error: `${url}: no JSON came` }));
  if (!response.ok) throw new Error(body.error ?? `${url}: ${response.status}`);
  return body;
}

const path = (key) => key.split("/").map(encodeURIComponent).join("/");

export async function loadEpisode(key) {
  return unpack(await fetchJson(`/api/episode/${path(key)}`));
}

export async function unpack(payload) {
  if (payload.schema !== SCHEMA) {
    throw new Error(`This episode has schema ${payload.schema}, the page reads ${SCHEMA}: use the version that recorded it.`);
  }
  const entries = await Promise.all(
    Object.entries(payload.arrays).map(async ([name, packed]) => [name, await decode(name, packed)]),
  );
  return { ...payload, arrays: Object.fromEntries(entries) };
}

async function decode(name, { dtype, shape, data }) {
  const packed = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer().catch(() => new ArrayBuffer(0));
  const kind = KINDS[dtype];
  const size = shape.reduce((product, side) => product * side, 1);
  if (!kind || bytes.byteLength !== size * kind.BYTES_PER_ELEMENT) {
    throw new Error(`The array ${name} is damaged: ${bytes.byteLength} bytes for ${dtype} [${shape}].`);
  }
  return Object.assign(new kind(bytes), { shape });
}

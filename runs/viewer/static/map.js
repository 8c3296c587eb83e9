// The program map: slots over time, coloured by lift. One pixel for each slot and step, or few steps of a long episode.

import { colour } from "./colours.js";
import { el, say } from "./dom.js";
import { attentionOf, lift, liftOf, rangeOf } from "./programs.js";
import { Timeline } from "./timeline.js";

const WIDEST = 8192; // columns of a canvas
const ROW = 14; // pixels of a slot, where there is room
const HIGHEST = 340;

export const memoryName = (memory) => (memory === "S" ? "σ" : memory);

export class MapPanel {
  constructor(episode, length, seek, choose) {
    this.episode = episode;
    this.timeline = new Timeline({ label: "Program map: lift of every slot over time", kind: "map", length, seek, axis: true });
    this.canvas = this.timeline.canvas;
    this.canvas.id = "map";
    this.canvas.style.width = `${(100 * episode.length) / Math.max(1, length)}%`;
    this.line = el("div", { class: "row-mark", hidden: true });
    this.timeline.area.append(this.line);
    this.readout = el("span", { id: "hover" });
    this.select = el(
      "select",
      { id: "program", "aria-label": "Head and memory", onchange: (event) => choose(episode.programs[Number(event.target.value)]) },
      ...episode.programs.map(({ head, memory }, index) => el("option", { value: index }, `${head} ${memoryName(memory)}`)),
    );
    this.warnings = el("div", { id: "warnings" });
    this.dark = el("b");
    this.light = el("b");
    this.key = el("canvas", { class: "key", role: "img", "aria-label": "Colours of lift, from low to high" });
    this.element = el(
      "section",
      { class: "panel" },
      el("div", { class: "head" }, el("h2", {}, "Programs"), this.select),
      this.warnings,
      this.timeline.element,
      el(
        "div",
        { class: "legend" },
        el("span", { class: "scale" }, this.dark, this.key, this.light, " of a slot's own mean (lift)"),
        this.readout,
      ),
    );
    this.area = this.timeline.area;
    this.area.addEventListener("pointermove", (event) => this.hover(event));
    this.area.addEventListener("pointerleave", () => this.leave());
    this.fit = () => this.labels();
  }

  choose(program) {
    this.program = program;
    this.select.value = String(this.episode.programs.indexOf(program));
    this.range = rangeOf(this.episode, program);
    drawMap(this.canvas, this.episode, program, this.range);
    drawKey(this.key, this.range);
    const percent = (value) => `×${value.toFixed(value < 0.1 || Math.abs(value - 1) < 0.1 ? 3 : 2)}`;
    say(this.dark, percent(1 / this.range));
    say(this.light, percent(this.range));
    this.area.style.height = `${Math.max(56, Math.min(HIGHEST, program.slots * ROW))}px`;
    this.warnings.replaceChildren(...program.warnings.map((text) => el("p", { class: "note" }, text)));
    this.leave();
    this.labels();
  }

  // Numbers of the slots, as many as there is room for.
  labels() {
    const { slots, order } = this.program;
    const height = this.area.clientHeight;
    if (!height) return;
    const every = Math.ceil((11 * slots) / height);
    const numbers = Array.from(this.episode.arrays[order]);
    const places = numbers.map((slot, row) => [(row + 0.5) / slots, String(slot)]);
    this.timeline.scale(places.filter((_, row) => row % every === 0));
  }

  redraw() {
    if (this.program) this.labels();
  }

  show(t) {
    this.t = t;
    this.timeline.show(t);
    if (this.line.hidden) this.describe(t, null);
  }

  // Tells of the slot that is pointed at, else of the one that stands out at the step shown.
  describe(t, slot) {
    const { episode, program } = this;
    if (!program) return;
    if (t >= episode.length) return say(this.readout, "");
    const leads = slot === null;
    if (leads) slot = leader(episode, program, t);
    const attention = attentionOf(episode, program, slot, t);
    say(
      this.readout,
      `${leads ? "now: " : ""}slot ${slot}, step ${t}, attention ${attention.toPrecision(3)}, lift ${liftOf(episode, program, slot, t).toFixed(3)}`,
    );
  }

  hover(event) {
    const { episode, program } = this;
    const box = this.canvas.getBoundingClientRect();
    const t = Math.floor(((event.clientX - box.left) / box.width) * episode.length);
    const row = Math.floor(((event.clientY - box.top) / box.height) * program.slots);
    if (t < 0 || t >= episode.length || row < 0 || row >= program.slots) return this.leave();
    this.line.hidden = false;
    this.line.style.top = `${(100 * row) / program.slots}%`;
    this.line.style.height = `${100 / program.slots}%`;
    this.describe(t, episode.arrays[program.order][row]);
  }

  leave() {
    this.line.hidden = true;
    if (this.t !== undefined) this.describe(this.t, null);
  }
}

function leader(episode, program, t) {
  let [best, most] = [0, -Infinity];
  for (let slot = 0; slot < program.slots; slot += 1) {
    const found = liftOf(episode, program, slot, t);
    if (found > most) [best, most] = [slot, found];
  }
  return best;
}

// Columns of a canvas at most WIDEST wide: column c is the mean of the steps c · bin to (c + 1) · bin.
export function drawMap(canvas, { arrays, length }, program, range) {
  const bin = Math.max(1, Math.ceil(length / WIDEST));
  const columns = (canvas.width = Math.max(1, Math.ceil(length / bin)));
  canvas.height = program.slots;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(columns, program.slots);
  const pixels = new Uint32Array(image.data.buffer);
  const codes = arrays[program.codes];
  arrays[program.order].forEach((slot, row) => {
    const mean = arrays[program.mean][slot];
    const low = arrays[program.low][slot];
    const step = arrays[program.step][slot];
    const known = new Map(); // mean code -> pixel
    for (let column = 0; column < columns && length; column += 1) {
      const stop = Math.min(length, (column + 1) * bin);
      let sum = 0;
      for (let t = column * bin; t < stop; t += 1) sum += codes[slot * length + t];
      const code = sum / (stop - column * bin);
      let pixel = known.get(code);
      if (pixel === undefined) known.set(code, (pixel = packed(colour(lift(low + step * code, mean), range))));
      pixels[row * columns + column] = pixel;
    }
  });
  context.putImageData(image, 0, 0);
}

function drawKey(canvas, range) {
  canvas.width = 129;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(129, 1);
  const pixels = new Uint32Array(image.data.buffer);
  pixels.forEach((_, index) => (pixels[index] = packed(colour(range ** (index / 64 - 1), range))));
  context.putImageData(image, 0, 0);
}

// Bytes r, g, b, 255 in memory order.
const ends = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
const packed = ([r, g, b]) => (ends ? ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0 : ((r << 24) | (g << 16) | (b << 8) | 255) >>> 0);

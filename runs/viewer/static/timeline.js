// A panel over time: a canvas that is drawn once, a cursor that moves, steps that are chosen by pointing.

import { el } from "./dom.js";

// Step t, as a share of the width: steps have width, and the end is the right edge.
export const place = (t, length) => (t >= length ? 1 : (t + 0.5) / length);

export class Timeline {
  // `length` is that of the clock; `draw(context, width, height, ratio)` is called when the size or the theme changes.
  constructor({ label, kind = "", length, seek, draw = null, axis = false }) {
    this.length = length;
    this.draw = draw;
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.cursor = el("div", { class: "cursor" });
    this.area = el("div", { class: "area" }, this.canvas, this.cursor);
    this.gutter = el("div", { class: "gutter", "aria-hidden": "true" });
    this.element = el("div", { class: `plot ${kind}` }, this.gutter, this.area, axis && this.axis());
    const choose = (event) => {
      const { left, width } = this.area.getBoundingClientRect();
      seek(Math.max(0, Math.min(length, Math.floor(((event.clientX - left) / width) * length))));
    };
    this.area.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.area.setPointerCapture(event.pointerId);
      choose(event);
    });
    this.area.addEventListener("pointermove", (event) => this.area.hasPointerCapture(event.pointerId) && choose(event));
  }

  show(t) {
    this.cursor.style.left = `${100 * place(t, this.length)}%`;
  }

  redraw() {
    if (!this.draw) return;
    const { clientWidth, clientHeight } = this.area;
    if (!clientWidth || !clientHeight) return;
    const ratio = Math.min(3, window.devicePixelRatio || 1);
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.draw(context, clientWidth, clientHeight);
  }

  // Texts left of the canvas: [share of the height from the top, text].
  scale(labels) {
    this.gutter.replaceChildren(
      ...labels.map(([share, text]) => {
        const label = el("span", {}, text);
        label.style.top = `${100 * share}%`;
        return label;
      }),
    );
  }

  axis() {
    const labels = ticks(0, this.length, 6)
      .filter((t) => Number.isInteger(t) && t <= this.length)
      .map((t) => {
        const label = el("span", {}, t.toLocaleString("en"));
        label.style.left = `${(100 * t) / Math.max(1, this.length)}%`;
        if (t > 0.97 * this.length) label.className = "last";
        return label;
      });
    return el("div", { class: "axis", "aria-hidden": "true" }, ...labels);
  }
}

// About `count` round numbers between low and high.
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  if (!(raw > 0)) return [low];
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= raw * 0.7);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n += 1) found.push(Number((n * step).toPrecision(10)));
  return found;
}

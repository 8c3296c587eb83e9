// How the weights of the chosen head are composed: its singular values and the share of its residual program, over time.

import { el, number, say } from "./dom.js";
import { row } from "./data.js";
import { drawGrid, drawLine, extent, legend, valueScale } from "./plots.js";
import { Timeline } from "./timeline.js";

const DIGITS = "₀₁₂₃₄₅₆₇₈₉";
const subscript = (n) => String(n).replace(/\d/g, (digit) => DIGITS[digit]);

export class WeightsPanel {
  constructor(episode, length, seek) {
    this.episode = episode;
    this.length = length;
    this.body = el("div");
    this.element = el("section", { class: "panel" }, el("h2", {}, "Composed weights"), this.body);
    this.seek = seek;
    this.plots = [];
  }

  choose(program) {
    const { arrays, sigma, gate } = this.episode;
    const head = program?.head;
    this.plots = [];
    this.sigma = arrays[sigma[head]];
    this.gate = arrays[gate[head]];
    if (this.sigma) this.plots.push(this.plot("Singular values over time", "σ", columns(this.sigma)));
    if (this.gate) this.plots.push(this.plot("Residual gate over time", "gate", [this.gate], "--second"));
    const R = this.sigma?.shape[1] ?? 0;
    this.legend = legend([
      this.sigma && ["line first", R > 1 ? `σ₁ … σ${subscript(R)} of the ${head}, the first the darkest` : `σ of the ${head}`, "sigma"],
      this.gate && ["line second", "share of the residual program", "gate"],
    ]);
    this.body.replaceChildren(...this.plots.map(({ element }) => element), this.legend.element);
    this.element.hidden = !this.plots.length;
    this.redraw();
  }

  plot(label, name, lines, only) {
    const { length, seek } = this;
    const timeline = new Timeline({ label, kind: "low", length, seek });
    timeline.draw = (context, width, height) => {
      const scale = valueScale(extent(lines), 8, height - 8, height, 18);
      drawGrid(context, scale, width);
      lines.forEach((values, index) => {
        context.globalAlpha = 1 - (0.72 * index) / lines.length;
        drawLine(context, values, { length, width, y: scale.y, colour: only ?? "--first", thick: 1.5 });
      });
      context.globalAlpha = 1;
      timeline.scale(scale.labels.length > 1 ? scale.labels : [[0.5, name]]);
    };
    return timeline;
  }

  show(t) {
    for (const plot of this.plots) plot.show(t);
    const over = t >= this.episode.length;
    if (this.sigma) say(this.legend.live.sigma, over ? "–" : row(this.sigma, t).slice(0, 8).map((value) => number(value, 3)).join("  "));
    if (this.gate) say(this.legend.live.gate, over ? "–" : number(this.gate[t], 3));
  }

  redraw() {
    for (const plot of this.plots) plot.redraw();
  }
}

function columns(array) {
  const [length, width] = array.shape;
  return Array.from({ length: width }, (_, r) => Float32Array.from({ length }, (_, t) => array[t * width + r]));
}

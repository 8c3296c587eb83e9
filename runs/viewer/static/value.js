// The value panel: what the critic expected, what came, and below them the rewards as ticks, up and down.

import { el, number, say } from "./dom.js";
import { css, drawGrid, drawLine, drawMark, extent, legend, valueScale } from "./plots.js";
import { place, Timeline } from "./timeline.js";

const LANE = 34; // pixels of the rewards
const COLOURS = ["--first", "--second"];
const NAMES = ["A", "B"];
const THICK = [[1.75], [3, 1.25]]; // where two curves agree, both are seen

export class ValuePanel {
  constructor(episodes, parted, length, seek) {
    this.episodes = episodes;
    this.parted = parted; // the first step at which two episodes differ
    this.length = length;
    const [first, second] = episodes;
    const known = episodes.some(({ arrays }) => arrays.value || arrays.return_to_go);
    this.lines = episodes.flatMap(({ arrays }, index) => [
      !second && arrays.return_to_go && { values: arrays.return_to_go, colour: "--faint", dash: [5, 4], thick: 1.25 },
      arrays.value && { values: arrays.value, colour: COLOURS[index], thick: THICK[episodes.length - 1][index] },
    ]).filter(Boolean);
    this.timeline = new Timeline({
      label: known ? "Value and rewards over time" : "Rewards over time",
      kind: known ? "value" : "rewards",
      length,
      seek,
      draw: (...place) => this.draw(...place),
      axis: true,
    });
    this.lives = episodes.map(({ arrays }) => lost(arrays.lives));
    this.boundaries = episodes.map(({ arrays }) => steps(arrays.boundary));
    const any = (lists) => lists.some((list) => list.length);
    const rewards = episodes.map(({ arrays }) => arrays.reward);
    this.legend = legend([
      !second && first.arrays.value && ["line first", "value", "value0"],
      second && first.arrays.value && ["line first", "value A", "value0"],
      second?.arrays.value && ["line second", "value B", "value1"],
      !second && first.arrays.return_to_go && ["line dashed", "return to go", "togo"],
      rewards.some((reward) => reward.some((r) => r > 0)) && ["up", "reward"],
      rewards.some((reward) => reward.some((r) => r < 0)) && ["down", "negative reward"],
      any(this.lives) && ["life", "life lost"],
      any(this.boundaries) && ["boundary", "a training episode ends"],
      second && parted !== undefined && ["parted", "actions part"],
      ["end", second ? "end" : `end: ${first.ended}`],
    ]);
    this.element = el(
      "section",
      { class: "panel" },
      el("h2", {}, known ? "Value" : "Rewards"),
      this.timeline.element,
      this.legend.element,
    );
  }

  show(t) {
    this.timeline.show(t);
    const at = (name, values) => this.legend.live[name] && say(this.legend.live[name], t < values.length ? number(values[t], 3) : "–");
    this.episodes.forEach(({ arrays }, index) => arrays.value && at(`value${index}`, arrays.value));
    at("togo", this.episodes[0].arrays.return_to_go ?? []);
  }

  redraw() {
    this.timeline.redraw();
  }

  draw(context, width, height) {
    const { length, lines } = this;
    const two = this.episodes.length > 1;
    const top = 8;
    const bottom = height - LANE;
    const labels = [];
    if (lines.length) {
      const scale = valueScale(extent(lines.map((line) => line.values)), top, bottom - 8, height);
      labels.push(...scale.labels);
      drawGrid(context, scale, width);
      this.marks(context, width, bottom);
      for (const line of lines) drawLine(context, line.values, { ...line, length, width, y: scale.y });
      if (two) this.names(context, width, scale);
    } else {
      this.marks(context, width, bottom);
    }
    this.rewards(context, width, bottom, height);
    this.timeline.scale([...labels, [(bottom + LANE / 2) / height, "reward"]]);
  }

  marks(context, width, bottom) {
    const x = (t) => place(t, this.length) * width;
    const colours = this.episodes.length > 1 ? COLOURS : ["--mark"];
    this.lives.forEach((list, index) => list.forEach((t) => drawMark(context, x(t), 0, bottom, colours[index], [1, 3])));
    this.boundaries.forEach((list, index) => {
      context.fillStyle = css(colours[index]);
      for (const t of list) {
        context.beginPath(); // a small diamond at the foot
        context.moveTo(x(t), bottom - 7);
        context.lineTo(x(t) + 3.5, bottom - 3.5);
        context.lineTo(x(t), bottom);
        context.lineTo(x(t) - 3.5, bottom - 3.5);
        context.fill();
      }
    });
    if (this.parted !== undefined) drawMark(context, x(this.parted), 0, bottom, "--ink", [6, 3, 1, 3]);
    this.episodes.forEach((episode) => {
      const end = Math.min(width, x(episode.length));
      drawMark(context, end, 0, bottom, "--ink");
      context.fillStyle = css("--ink");
      context.fillRect(end - 5, 0, 5, 5);
    });
  }

  // Letters at the right end of two curves.
  names(context, width, scale) {
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "right";
    this.episodes.forEach(({ arrays, length }, index) => {
      if (!arrays.value?.length) return;
      context.fillStyle = css(COLOURS[index]);
      const x = place(length, this.length) * width - 9;
      const y = Math.max(14, scale.y(arrays.value[length - 1]) + (index ? 16 : -8));
      context.strokeStyle = css("--surface");
      context.lineWidth = 4;
      context.strokeText(NAMES[index], x, y);
      context.fillText(NAMES[index], x, y);
    });
  }

  // Positive rewards stand filled on the line, negative ones hang hollow from it; with two episodes, A has the left half.
  rewards(context, width, top, height) {
    const middle = Math.round((top + height) / 2);
    context.fillStyle = css("--axis");
    context.fillRect(0, middle - 0.5, width, 1);
    let most = 0;
    for (const { arrays } of this.episodes) for (const reward of arrays.reward) most = Math.max(most, Math.abs(reward));
    const two = this.episodes.length > 1;
    const thick = Math.max(2, Math.min(4, width / Math.max(1, this.length) - 1));
    this.episodes.forEach(({ arrays }, index) => {
      arrays.reward.forEach((reward, t) => {
        if (!reward) return;
        const size = 5 + (LANE / 2 - 7) * Math.sqrt(Math.abs(reward) / most);
        const x = place(t, this.length) * width - thick / 2 + (two ? (index - 0.5) * (thick + 1) : 0);
        if (reward > 0) {
          context.fillStyle = css(two ? COLOURS[index] : "--good");
          context.fillRect(x, middle - size, thick, size);
        } else {
          context.strokeStyle = css(two ? COLOURS[index] : "--bad");
          context.lineWidth = 1;
          context.strokeRect(x + 0.5, middle + 0.5, Math.max(1, thick - 1), size - 1);
        }
      });
    });
  }
}

const steps = (flags) => (flags ? Array.from(flags.keys()).filter((t) => flags[t]) : []);

// Steps after which there are fewer lives.
const lost = (lives) => (lives ? Array.from(lives.keys()).slice(1).filter((t) => lives[t] < lives[t - 1]).map((t) => t - 1) : []);

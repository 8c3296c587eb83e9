// Strokes on a canvas over time: a scale for values, lines, marks, and a legend that names them.

import { el } from "./dom.js";
import { place, ticks } from "./timeline.js";

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Smallest and largest number of some arrays; a little room if there is only one, and 0 and 1 if there is none.
export function extent(arrays) {
  let [low, high] = [Infinity, -Infinity];
  for (const values of arrays) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  if (high - low > 1e-6 * Math.max(1, Math.abs(high))) return [low, high];
  const room = Math.max(0.5, Math.abs(low) / 10);
  return [low - room, high + room];
}

// Where a value lies between `top` and `bottom` (pixels), and the labels of a gutter of `height` pixels, about `room` apart.
export function valueScale([low, high], top, bottom, height, room = 36) {
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const round = ticks(low, high, Math.max(2, Math.floor((bottom - top) / room)));
  return { y, low, high, labels: round.map((value) => [y(value) / height, String(value).replace("-", "−")]), round };
}

export function drawGrid(context, scale, width) {
  for (const value of scale.round) {
    const y = Math.round(scale.y(value)) - 0.5;
    context.fillStyle = css(value === 0 ? "--axis" : "--grid");
    context.fillRect(0, y, width, 1);
  }
}

// A line through values[t]; where many steps share a pixel, from the smallest to the largest of them.
export function drawLine(context, values, { length, width, y, colour, dash = [], thick = 1.5 }) {
  context.strokeStyle = css(colour);
  context.lineWidth = thick;
  context.lineJoin = "round";
  context.setLineDash(dash);
  context.beginPath();
  if (values.length <= 3 * width) {
    let pen = false;
    values.forEach((value, t) => {
      if (Number.isNaN(value)) return (pen = false);
      context[pen ? "lineTo" : "moveTo"](place(t, length) * width, y(value));
      pen = true;
    });
  } else {
    const bin = values.length / (width * 1.5 * (values.length / length));
    for (let from = 0; from < values.length; from += bin) {
      const [low, high, mean] = binOf(values, Math.floor(from), Math.min(values.length, Math.ceil(from + bin)));
      if (low > high) continue;
      const x = ((from + bin / 2) / length) * width;
      if (dash.length) {
        context.lineTo(x, y(mean)); // dashes of a line that goes up and down in a pixel would not be seen
        continue;
      }
      context.lineTo(x, y(low));
      context.lineTo(x, y(high));
    }
  }
  context.stroke();
  context.setLineDash([]);
}

function binOf(values, start, stop) {
  let [low, high, sum] = [Infinity, -Infinity, 0];
  for (let t = start; t < stop; t += 1) {
    if (values[t] < low) low = values[t];
    if (values[t] > high) high = values[t];
    sum += values[t];
  }
  return [low, high, sum / (stop - start)];
}

export function drawMark(context, x, top, bottom, colour, dash = []) {
  context.strokeStyle = css(colour);
  context.lineWidth = 1;
  context.setLineDash(dash);
  context.beginPath();
  context.moveTo(Math.round(x) - 0.5, top);
  context.lineTo(Math.round(x) - 0.5, bottom);
  context.stroke();
  context.setLineDash([]);
}

// [swatch, name, live?]: what a stroke means; a live one has room for the number at the step shown.
export function legend(entries) {
  const live = {};
  const element = el(
    "div",
    { class: "legend" },
    ...entries.filter(Boolean).map(([swatch, name, id]) => {
      if (id) live[id] = el("b");
      return el("span", {}, el("i", { class: `swatch ${swatch}`, "aria-hidden": "true" }), name, id ? " " : null, live[id]);
    }),
  );
  return { element, live };
}

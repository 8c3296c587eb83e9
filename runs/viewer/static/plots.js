// Curves over the steps of an episode, drawn once; only a cursor moves with the step.

const RATIO = () => Math.min(2, window.devicePixelRatio || 1);

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas in a box with a cursor; dragging on it asks for steps.
export class Plot {
  constructor(label, seek, length) {
    this.box = document.createElement("div");
    this.box.className = "plot";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", label);
    this.cursor = document.createElement("div");
    this.cursor.className = "cursor";
    this.box.append(this.canvas, this.cursor);
    this.length = length;
    const move = (event) => {
      const box = this.box.getBoundingClientRect();
      seek(Math.round(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * length));
    };
    this.box.addEventListener("pointerdown", (event) => {
      this.box.setPointerCapture(event.pointerId);
      move(event);
    });
    this.box.addEventListener("pointermove", (event) => event.buttons && move(event));
  }

  show(t) {
    this.cursor.style.left = `${(100 * t) / Math.max(1, this.length)}%`;
  }
}

export function drawCurves(plot, { lines, ticks = [], marks = [], zero = false }) {
  const { canvas, length } = plot;
  const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * RATIO())));
  const height = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * RATIO())));
  const context = canvas.getContext("2d");
  let low = zero ? 0 : Infinity;
  let high = zero ? 0 : -Infinity;
  for (const { values } of lines) {
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (!(high > low)) [low, high] = [(low || 0) - 1, (high || 0) + 1];
  const pad = 8 * RATIO();
  const x = (t) => (t / Math.max(1, length)) * width;
  const y = (value) => height - pad - ((value - low) / (high - low)) * (height - 2 * pad);
  context.clearRect(0, 0, width, height);
  context.lineWidth = RATIO();
  if (low < 0 && high > 0) {
    context.strokeStyle = css("--line");
    context.beginPath();
    context.moveTo(0, y(0));
    context.lineTo(width, y(0));
    context.stroke();
  }
  for (const { t, name } of marks) {
    context.strokeStyle = css(name === "end" ? "--ink" : "--faint");
    context.setLineDash(name === "end" ? [] : [2, 4]);
    context.beginPath();
    context.moveTo(x(t), 0);
    context.lineTo(x(t), height);
    context.stroke();
  }
  context.setLineDash([]);
  for (const { t, value } of ticks) {
    const size = 7 * RATIO();
    const up = value > 0;
    context.fillStyle = css(up ? "--good" : "--bad");
    context.beginPath(); // a triangle that points up at the top, or down at the bottom
    context.moveTo(x(t), up ? 0 : height);
    context.lineTo(x(t) - size / 2, up ? size : height - size);
    context.lineTo(x(t) + size / 2, up ? size : height - size);
    context.fill();
  }
  for (const { values, colour, dashed = false } of lines) {
    context.strokeStyle = css(colour);
    context.setLineDash(dashed ? [5, 4] : []);
    context.beginPath();
    const every = Math.max(1, Math.floor(values.length / (4 * width)));
    for (let t = 0; t < values.length; t += every) context.lineTo(x(t), y(values[t]));
    context.stroke();
  }
  context.setLineDash([]);
  return { low, high };
}

// The program map: slots over time, coloured by lift. One pixel for each row and step (or a few steps of a long episode).

import { colour } from "./colours.js";

const WIDEST = 8192;

export function attentionOf(episode, program, slot, t) {
  const { arrays, length } = episode;
  const code = arrays[program.codes][slot * length + t];
  return arrays[program.low][slot] + arrays[program.step][slot] * code;
}

export function liftOf(episode, program, slot, t) {
  const mean = episode.arrays[program.mean][slot];
  return mean > 0 ? attentionOf(episode, program, slot, t) / mean : 1;
}

// The range of the colours: nearly all lifts lie within it, and at least one percent does.
export function rangeOf(episode, program) {
  const { length } = episode;
  const sizes = [];
  const every = Math.max(1, Math.floor((length * program.slots) / 50000));
  for (let cell = 0; cell < length * program.slots; cell += every) {
    const lift = liftOf(episode, program, Math.floor(cell / length), cell % length);
    sizes.push(lift > 0 ? Math.abs(Math.log(lift)) : 5);
  }
  sizes.sort((a, b) => a - b);
  return Math.exp(Math.max(0.01, Math.min(5, sizes[Math.floor(0.995 * (sizes.length - 1))] ?? 0)));
}

export function drawMap(canvas, episode, program) {
  const { length } = episode;
  const range = rangeOf(episode, program);
  const bin = Math.ceil(length / WIDEST);
  canvas.width = Math.ceil(length / bin);
  canvas.height = program.slots;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(canvas.width, canvas.height);
  const order = episode.arrays[program.order];
  for (let row = 0; row < program.slots; row += 1) {
    for (let column = 0; column < canvas.width; column += 1) {
      let sum = 0;
      const stop = Math.min(length, (column + 1) * bin);
      for (let t = column * bin; t < stop; t += 1) sum += liftOf(episode, program, order[row], t);
      const rgb = colour(sum / (stop - column * bin), range);
      image.data.set([...rgb, 255], 4 * (row * canvas.width + column));
    }
  }
  context.putImageData(image, 0, 0);
  return range;
}

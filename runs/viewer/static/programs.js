// Numbers of a program memory: attention of a slot at a step, its lift, the range of lifts, the chapter of a step.

const QUANTILE = 0.995;
const LEAST = 0.01; // the smallest range, as |log lift|: flat attention shall look flat
const MOST = 5;

export function attentionOf({ arrays, length }, program, slot, t) {
  return arrays[program.low][slot] + arrays[program.step][slot] * arrays[program.codes][slot * length + t];
}

// Attention over its mean in this episode; 1 for a slot that is never read.
export function lift(attention, mean) {
  return mean > 0 ? attention / mean : 1;
}

export function liftOf(episode, program, slot, t) {
  return lift(attentionOf(episode, program, slot, t), episode.arrays[program.mean][slot]);
}

// The lift at the light end of the colours: 99.5 % of the lifts above 1 lie below it. Those below 1 have no say: of a
// sharp attention many are near 0, and the rest would all be grey.
export function rangeOf({ arrays, length }, program) {
  const sizes = []; // [log lift, how many cells]
  let above = 0;
  for (let slot = 0; slot < program.slots; slot += 1) {
    const counts = new Uint32Array(256);
    for (let t = slot * length; t < (slot + 1) * length; t += 1) counts[arrays[program.codes][t]] += 1;
    counts.forEach((count, code) => {
      const found = lift(arrays[program.low][slot] + arrays[program.step][slot] * code, arrays[program.mean][slot]);
      if (!count || found < 1) return;
      sizes.push([Math.log(found), count]);
      above += count;
    });
  }
  sizes.sort(([a], [b]) => a - b);
  let left = QUANTILE * above;
  const bound = sizes.find(([, count]) => (left -= count) <= 0);
  return Math.exp(Math.max(LEAST, Math.min(MOST, bound?.[0] ?? 0)));
}

// Index of the chapter of step t; the last one at the end.
export function chapterAt(chapters, t) {
  let [low, high] = [0, chapters.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (chapters[middle].start <= t) low = middle;
    else high = middle - 1;
  }
  return low;
}

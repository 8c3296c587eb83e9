// The colour of a lift: dark blue below 1, grey at 1, warm light above, evenly in lightness, so that it is read without hue.

// CIE lightness 10, 20.5, 31, ... 94.
const ANCHORS = [
  [12, 25, 61], [25, 47, 97], [42, 72, 125], [67, 100, 142], [116, 126, 131],
  [181, 145, 106], [222, 170, 97], [243, 203, 125], [252, 237, 199],
];

// `range` > 1 is the lift at the light end, 1 / range the one at the dark end; between them by its logarithm.
export function colour(lift, range) {
  const x = lift > 0 ? Math.log(lift) / Math.log(range) : -1;
  const position = ((Math.max(-1, Math.min(1, x)) + 1) / 2) * (ANCHORS.length - 1);
  const low = Math.min(ANCHORS.length - 2, Math.floor(position));
  return ANCHORS[low].map((from, channel) => Math.round(from + (ANCHORS[low + 1][channel] - from) * (position - low)));
}

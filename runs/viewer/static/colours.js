// The colour of a lift: darker below 1, lighter above, evenly in brightness, so that it can be read without hue.

// Anchors from dark blue over grey to warm white; their brightness rises by equal steps.
const ANCHORS = [[8, 15, 60], [40, 70, 130], [110, 118, 125], [200, 165, 95], [255, 244, 214]];

// `range` > 1 is the lift at the bright end, 1 / range that at the dark one.
export function colour(lift, range) {
  const x = lift > 0 ? Math.log(lift) / Math.log(range) : -1;
  const place = ((Math.max(-1, Math.min(1, x)) + 1) / 2) * (ANCHORS.length - 1);
  const low = Math.min(ANCHORS.length - 2, Math.floor(place));
  return ANCHORS[low].map((from, channel) => Math.round(from + (ANCHORS[low + 1][channel] - from) * (place - low)));
}

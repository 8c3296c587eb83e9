// Where two episodes part.

const sameAction = (a, b, t) => {
  const [x, y] = [a.arrays.action, b.arrays.action];
  const size = x.shape[1] ?? 1;
  if (size !== (y.shape[1] ?? 1)) return false;
  for (let part = 0; part < size; part += 1) if (x[t * size + part] !== y[t * size + part]) return false;
  return true;
};

// The first step after `t` at which the actions differ, or null.
export function nextDifference(a, b, t) {
  const shorter = Math.min(a.length, b.length);
  for (let step = t + 1; step < shorter; step += 1) if (!sameAction(a, b, step)) return step;
  return t < shorter && a.length !== b.length ? shorter : null;
}

export function describe(a, b) {
  const step = nextDifference(a, b, -1);
  const name = (episode, t) => {
    if (t >= episode.length) return "the end";
    const size = episode.arrays.action.shape[1] ?? 1;
    const action = [...episode.arrays.action.subarray(t * size, (t + 1) * size)];
    return (size === 1 && episode.action_names?.[action[0]]) || action.join(", ");
  };
  if (step !== null) return `first difference at step ${step}: ${name(a, step)} / ${name(b, step)}`;
  for (let t = 0; t < a.length; t += 1) {
    if (a.arrays.reward[t] !== b.arrays.reward[t]) return `same actions; rewards first differ at step ${t}`;
  }
  return "same actions, same rewards";
}

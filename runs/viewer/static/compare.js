// Where two episodes part.

import { number } from "./dom.js";
import { row } from "./data.js";

const same = (a, b) => a.length === b.length && a.every((value, index) => Object.is(value, b[index]));

// All steps, in order, at which the actions differ; the first that only one episode has is one of them.
export function differences(a, b) {
  const shorter = Math.min(a.length, b.length);
  const steps = [];
  for (let t = 0; t < shorter; t += 1) if (!same(row(a.arrays.action, t), row(b.arrays.action, t))) steps.push(t);
  if (a.length !== b.length) steps.push(shorter);
  return steps;
}

export function describe(a, b, steps) {
  if (steps.length) {
    const [t] = steps;
    const many = steps.length > 1 ? `; ${number(steps.length)} steps differ` : "";
    return `first difference at step ${t}: ${action(a, t)} / ${action(b, t)}${many}`;
  }
  const t = a.arrays.reward.findIndex((reward, step) => reward !== b.arrays.reward[step]);
  return t < 0 ? "identical: the same actions and rewards" : `same actions; rewards first differ at step ${t}`;
}

function action(episode, t) {
  if (t >= episode.length) return "the end";
  const values = row(episode.arrays.action, t);
  return (values.length === 1 && episode.action_names?.[values[0]]) || values.map((value) => number(value)).join(", ");
}

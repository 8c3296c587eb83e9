// What the agent was about to do: probabilities of its actions with the one it took, or the numbers of a continuous action.

import { el, number, say } from "./dom.js";
import { row } from "./data.js";

export class ActionsPanel {
  constructor(episode, which = "") {
    this.episode = episode;
    const { action, probabilities } = episode.arrays;
    this.discrete = action.shape.length === 1 && Boolean(episode.action_names || probabilities);
    this.size = this.discrete ? Math.max(probabilities?.shape[1] ?? 0, episode.action_names?.length ?? 0) : row(action, 0).length;
    this.most = this.discrete ? 1 : action.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    const names = Array.from({ length: this.size }, (_, index) => (this.discrete && episode.action_names?.[index]) || String(index));
    this.rows = names.map((name) => this.row(name));
    this.note = el("p", { class: "faint" });
    this.element = el(
      "div",
      { class: `probabilities${this.discrete ? "" : " continuous"}`, id: which ? `probabilities-${which}` : "probabilities" },
      ...this.rows.flatMap(({ name, track, text }) => [name, track, text]),
      this.note,
    );
  }

  row(label) {
    const mark = el("span", { class: "taken-mark" }, "▸ ");
    const fill = el("div", { class: "fill" });
    return {
      name: el("span", { class: "name" }, mark, label),
      fill,
      track: el("div", { class: "track" }, fill),
      text: el("span", { class: "share" }),
    };
  }

  show(t) {
    const { arrays, length, ended } = this.episode;
    const over = t >= length;
    const action = over ? [] : row(arrays.action, t);
    const shares = over ? [] : this.discrete ? arrays.probabilities && row(arrays.probabilities, t) : action;
    let entropy = 0;
    this.rows.forEach(({ name, fill, text }, index) => {
      const share = shares?.[index];
      const taken = this.discrete && action[0] === index;
      name.classList.toggle("taken", taken);
      fill.classList.toggle("taken", taken);
      if (this.discrete) {
        if (share > 0) entropy -= share * Math.log(share);
        fill.style.width = `${100 * (share ?? 0)}%`;
      } else {
        const part = 50 * Math.max(-1, Math.min(1, (share ?? 0) / this.most)); // from the middle
        fill.style.left = `${50 + Math.min(0, part)}%`;
        fill.style.width = `${Math.abs(part)}%`;
      }
      say(text, share === undefined ? "" : this.discrete ? share.toFixed(3) : number(share, 3));
    });
    if (over) say(this.note, `The episode is over: ${ended}.`);
    else if (!this.discrete) say(this.note, "the numbers of the action");
    else if (!arrays.probabilities) say(this.note, "no probabilities were recorded");
    else say(this.note, `entropy ${entropy.toFixed(3)} of at most ${Math.log(this.size).toFixed(3)}`);
  }
}

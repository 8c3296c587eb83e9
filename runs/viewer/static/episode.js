// One episode, or two on one clock. Every panel is drawn from the data, the step and the chosen program, and nothing else.

import { ActionsPanel } from "./actions.js";
import { ChaptersPanel } from "./chapters.js";
import { Clock } from "./clock.js";
import { colour } from "./colours.js";
import { describe, differences } from "./compare.js";
import { row } from "./data.js";
import { el, number, say, signed } from "./dom.js";
import { Screens, Strips } from "./frames.js";
import { MapPanel } from "./map.js";
import { chapterAt, rangeOf } from "./programs.js";
import * as state from "./state.js";
import { ValuePanel } from "./value.js";
import { WeightsPanel } from "./weights.js";

const NAMES = ["A", "B"];
const MOST = 16; // numbers of a label that are printed
const DAMAGE = "This picture is missing or damaged: neurocoder replay render makes it anew.";

export class EpisodeView {
  // `episodes` are one or two; `where` is a place as `state.read` gives it; `actions` are { help, browse }.
  constructor(main, episodes, where, actions) {
    this.episodes = episodes;
    this.first = episodes[0];
    this.two = episodes.length > 1;
    this.where = { ep: where.ep, with: where.with };
    this.steps = this.two ? differences(...episodes) : [];
    this.clock = new Clock(Math.max(...episodes.map(({ length }) => length)), (t) => this.show(t), () => this.showClock());
    this.ending = new AbortController();
    this.strips = episodes.map(({ frames }) => frames && new Strips(frames));
    this.build(main, actions);
    this.choose(this.find(where.head, where.memory));
    this.clock.seek(where.t);
    this.fit();
    this.listen();
  }

  // ------------------------------------------------------------------------------------ what stands where

  build(main, actions) {
    const { episodes, first, two, clock, steps } = this;
    const seek = (t) => this.clock.seek(t);
    this.canvases = episodes.map((episode, index) => {
      const label = `Picture of ${episode.env}${two ? `, ${NAMES[index]}` : ""}`;
      const canvas = el("canvas", { id: index ? "game-2" : "game", role: "img", "aria-label": label });
      canvas.width = episode.frames?.width ?? 1;
      canvas.height = episode.frames?.height ?? 1;
      return canvas;
    });
    this.captions = episodes.map(() => el("figcaption"));
    this.screens = new Screens(
      episodes.flatMap(({ length, frames }, index) =>
        frames ? [{ index, canvas: this.canvases[index], strips: this.strips[index], last: Math.min(length, frames.count - 1) }] : [],
      ),
      (t, whole) => this.showPictures(t, whole),
    );
    this.games = el(
      "div",
      { class: "games" },
      ...episodes.map(({ frames }, index) =>
        el("figure", {}, frames ? this.canvases[index] : el("p", { class: "faint" }, "No pictures were recorded."), this.captions[index]),
      ),
    );
    this.numbers = el("div", { id: "numbers" });
    this.cells = new Map();
    this.actions = episodes.map((episode, index) => new ActionsPanel(episode, index ? "2" : ""));
    this.value = new ValuePanel(episodes, steps[0], clock.length, seek);
    this.panels = [this.value];
    if (first.programs.length) {
      this.map = new MapPanel(first, clock.length, seek, (program) => this.choose(program));
      this.chapters = new ChaptersPanel(first, this.strips[0], clock.length, seek);
      this.panels.push(this.map, this.chapters);
    }
    this.weights = new WeightsPanel(first, clock.length, seek);
    this.panels.push(this.weights);
    this.left = el(
      "div",
      { class: "left" },
      this.games,
      this.numbers,
      two && this.difference(),
      el(
        "section",
        { class: "panel" },
        el("h2", {}, "Actions"),
        el("div", { class: "agents" }, ...this.actions.map(({ element }) => element)),
      ),
    );
    this.root = el(
      "div",
      { class: `episode${two ? " two" : ""}` },
      this.header(actions),
      ...episodes.flatMap(({ problems }, index) =>
        problems.map((text) => el("p", { class: "note" }, (two ? `${NAMES[index]}: ` : "") + text)),
      ),
      el(
        "div",
        { class: "columns" },
        this.left,
        el(
          "div",
          { class: "right" },
          this.value.element,
          this.map?.element ?? el("p", { class: "faint" }, "This agent has no program memory: there are no slots to map, and no chapters."),
          this.chapters?.element,
          this.weights.element,
          ...episodes.map((episode, index) => this.details(episode, index)),
        ),
      ),
      this.transport(),
    );
    main.replaceChildren(this.root);
  }

  header(actions) {
    const { episodes, two } = this;
    const envs = [...new Set(episodes.map(({ env }) => env))];
    return el(
      "header",
      { class: "top" },
      actions.browse && el("button", { type: "button", class: "quiet", onclick: actions.browse }, "← Episodes"),
      el("h1", {}, envs.join(" / ")),
      el("div", { class: "summaries" }, ...episodes.map((episode, index) => el("p", {}, two && letter(index), ...summary(episode)))),
      el("button", { type: "button", class: "quiet", onclick: actions.help }, "Keys"),
    );
  }

  difference() {
    const next = el("button", { type: "button", onclick: () => this.nextDifference() }, "Next difference");
    return el(
      "div",
      { class: "difference" },
      el("p", { id: "difference" }, describe(...this.episodes, this.steps)),
      this.steps.length > 0 && next,
    );
  }

  details(episode, index) {
    const facts = [["seed", String(episode.seed)], ...episode.facts];
    return el(
      "details",
      { class: "panel" },
      el("summary", {}, this.two ? `About episode ${NAMES[index]}` : "About this episode"),
      el("dl", {}, ...facts.flatMap(([name, text]) => [el("dt", {}, String(name)), el("dd", {}, String(text))])),
    );
  }

  transport() {
    const { clock } = this;
    const button = (label, text, does) => el("button", { type: "button", "aria-label": label, title: label, onclick: does }, text);
    this.play = el("button", { id: "play", type: "button", class: "main", onclick: () => clock.toggle() }, "Play");
    this.speed = el("span", { role: "status", "aria-live": "off", "aria-label": "Speed" }, "1×");
    this.scrub = el("input", {
      id: "scrub", type: "range", min: 0, max: clock.length, step: 1, value: 0, "aria-label": "Step",
      oninput: (event) => clock.seek(Number(event.target.value)),
    });
    this.time = el("span", { id: "clock" });
    return el(
      "div",
      { class: "transport", role: "group", "aria-label": "Playback" },
      this.scrub,
      el(
        "div",
        { class: "group" },
        button("Step back", "‹", () => clock.seek(clock.t - 1)),
        this.play,
        button("Step forward", "›", () => clock.seek(clock.t + 1)),
      ),
      el(
        "div",
        { class: "group speed" },
        button("Slower", "−", () => clock.setSpeed(clock.speed - 1)),
        this.speed,
        button("Faster", "+", () => clock.setSpeed(clock.speed + 1)),
      ),
      this.time,
    );
  }

  // ----------------------------------------------------------------------------------- what fits the window

  listen() {
    const { signal } = this.ending;
    const redraw = () => this.panels.forEach((panel) => panel.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw, { signal });
    addEventListener("resize", () => this.fit(), { signal });
    this.sizes = new ResizeObserver(redraw);
    this.sizes.observe(this.value.element);
  }

  // Pictures in whole device pixels for each of theirs, as large as leaves room for the rest of the column.
  fit() {
    const column = innerWidth >= 1000;
    const ratio = window.devicePixelRatio || 1;
    const gap = this.two ? 16 : 0;
    let across = (this.root.clientWidth - gap) / this.episodes.length;
    if (column) across = this.two ? Math.min(320, innerWidth * 0.24) : Math.min(480, innerWidth * 0.36);
    const rest = 210 + 21 * Math.min(this.actions[0].size, 9);
    const high = Math.max(column ? innerHeight * 0.48 : innerHeight * 0.56, innerHeight - rest);
    let widest = 0;
    this.episodes.forEach(({ frames }, index) => {
      if (!frames) return;
      const whole = Math.min(across / frames.width, high / frames.height);
      const scale = whole * ratio >= 2 ? Math.floor(whole * ratio) / ratio : whole;
      this.canvases[index].style.width = `${frames.width * scale}px`;
      this.canvases[index].style.height = `${frames.height * scale}px`;
      widest = Math.max(widest, frames.width * scale);
    });
    this.root.style.setProperty("--left", `${Math.max(this.two ? 420 : 320, widest * this.episodes.length + gap)}px`);
    this.left.classList.toggle("stays", column && this.left.offsetHeight < innerHeight - 90);
  }

  // -------------------------------------------------------------------------------------- what is chosen

  find(head, memory) {
    const { programs } = this.first;
    return (
      programs.find((program) => program.head === head && program.memory === memory) ??
      programs.find((program) => program.head === head) ??
      programs.find((program) => !head && program.memory === memory) ??
      programs.find((program) => program.head === "actor") ??
      programs[0] ??
      null
    );
  }

  choose(program) {
    this.program = program;
    if (program) {
      this.map.choose(program);
      this.chapters.choose(program);
    }
    this.weights.choose(program ?? { head: Object.keys({ ...this.first.sigma, ...this.first.gate })[0] });
    for (const panel of this.panels) panel.show(this.t);
    this.remember();
  }

  remember() {
    state.write({ ep: this.where.ep, t: this.t, head: this.program?.head, memory: this.program?.memory, with: this.where.with });
  }

  // --------------------------------------------------------------------------------------------- time

  get t() {
    return this.clock.t;
  }

  get length() {
    return this.clock.length;
  }

  get playing() {
    return this.clock.playing;
  }

  get drawn() {
    return this.clock.drawn;
  }

  seek(t) {
    return this.clock.seek(t);
  }

  // Go to a place in these episodes.
  restore({ t, head, memory }) {
    const program = this.find(head, memory);
    if (program !== this.program) this.choose(program);
    return this.seek(t);
  }

  show(t) {
    if (this.ending.signal.aborted) return Promise.resolve();
    this.scrub.value = t;
    this.scrub.style.setProperty("--done", `${(100 * t) / Math.max(1, this.length)}%`);
    say(this.time, `${number(t)} / ${number(this.length)}`);
    for (const panel of [...this.panels, ...this.actions]) panel.show(t);
    this.showNumbers(t);
    this.remember();
    if (this.screens.parts.length) return this.screens.show(t);
    this.showPictures(t, []);
    return Promise.resolve();
  }

  showPictures(t, whole) {
    const damaged = new Set(this.screens.parts.filter((_, part) => !whole[part]).map(({ index }) => index));
    this.episodes.forEach((episode, index) => {
      const over = t > episode.length ? `, ended at ${number(episode.length)}` : "";
      const caption = this.two ? `${NAMES[index]}${over}` : "";
      say(this.captions[index], damaged.has(index) ? `${caption ? `${caption}. ` : ""}${DAMAGE}` : caption);
      this.captions[index].classList.toggle("damage", damaged.has(index));
    });
    document.documentElement.dataset.t = t;
  }

  showNumbers(t) {
    this.episodes.forEach((episode, index) => {
      const { value, lives, reward } = episode.arrays;
      const at = Math.min(t, episode.length);
      const over = at >= episode.length;
      const which = this.two ? ` ${NAMES[index]}` : "";
      this.number(`return so far${which}`, number(episode.soFar[at]));
      this.number(`${over ? "end" : "reward"}${which}`, over ? episode.ended : reward[at] ? signed(reward[at]) : "0", `reward${index}`);
      if (value) this.number(`value${which}`, over ? "–" : number(value[at], 3));
      if (lives) this.number(`lives${which}`, String(lives[at]));
      for (const { name, array } of episode.labels) {
        const values = over ? [] : row(episode.arrays[array], at);
        const text = values.slice(0, MOST).map((part) => number(part, 3)).join(", ") + (values.length > MOST ? ", …" : "");
        this.number(`${name}${which}`, over ? "–" : text, `label ${name} ${index}`, values.length > 2);
      }
    });
  }

  // One of the numbers below the picture: it keeps its place from step to step.
  number(name, text, id = name, wide = false) {
    let cell = this.cells.get(id);
    if (!cell) {
      cell = { name: el("span"), text: el("b") };
      this.cells.set(id, cell);
      this.numbers.append(el("p", { class: wide ? "wide" : null }, cell.name, " ", cell.text));
    }
    say(cell.name, name);
    say(cell.text, text);
  }

  showClock() {
    say(this.play, this.clock.playing ? "Pause" : "Play");
    say(this.speed, `${this.clock.speed}×`);
  }

  chapter(direction) {
    const chapters = this.program?.chapters ?? [];
    if (!chapters.length) return;
    const current = chapterAt(chapters, this.t);
    const next = direction > 0 ? current + 1 : chapters[current].start < this.t ? current : current - 1;
    if (chapters[next]) this.seek(chapters[next].start);
  }

  nextDifference() {
    const next = this.steps.find((step) => step > this.t);
    if (next !== undefined) this.seek(next);
  }

  close() {
    this.ending.abort();
    this.clock.pause();
    this.sizes.disconnect();
    this.chapters?.close();
    for (const strips of this.strips) strips?.close();
  }

  // What tests look at.
  hooks() {
    const find = (head, memory) => this.first.programs.find((program) => program.head === head && program.memory === memory);
    return { colour, range: (head, memory) => rangeOf(this.first, find(head, memory)), seek: (t) => this.seek(t), view: this };
  }
}

const letter = (index) => el("b", { class: `letter ${index ? "second" : "first"}` }, NAMES[index]);

function summary({ return: sum, length, ended, seed, checkpoint, masked }) {
  const parts = [
    ["return ", el("b", {}, number(sum))],
    [`${number(length)} steps`],
    [ended],
    [`seed ${seed}`],
    checkpoint !== null && checkpoint !== undefined && [`checkpoint ${number(checkpoint)}`],
    masked && masked.length > 0 && [el("span", { class: "pill" }, `without slot${masked.length > 1 ? "s" : ""} ${masked.join(", ")}`)],
  ];
  return parts.filter(Boolean).map((texts) => el("span", {}, ...texts));
}

// One episode, or two on one clock. One integer step t is all that moves; every panel is drawn from it.

import { colour } from "./colours.js";
import { describe, nextDifference } from "./compare.js";
import { el, number } from "./dom.js";
import { Frames } from "./frames.js";
import { attentionOf, drawMap, liftOf, rangeOf } from "./map.js";
import { drawCurves, Plot } from "./plots.js";
import * as state from "./state.js";

const REAL_TIME = 15; // steps a second: four frames each, of sixty

function summary({ return: sum, length, ended, masked }) {
  const without = masked ? `, without slot ${masked.join(", ")}` : "";
  return `return ${number(sum)}, ${number(length)} steps, ${ended}${without}`;
}

export class EpisodeView {
  constructor(main, episodes, where, keys) {
    this.main = main;
    this.episodes = episodes;
    this.first = episodes[0];
    this.keys = keys;
    this.length = Math.max(...episodes.map((episode) => episode.length));
    this.frames = episodes.map((episode) => episode.frames && new Frames(episode.frames));
    this.speed = 1;
    this.playing = false;
    this.drawn = Promise.resolve();
    const programs = this.first.programs;
    this.program =
      programs.find((program) => program.head === where.head && program.memory === where.memory) ??
      programs.find((program) => program.head === "actor") ??
      programs[0] ??
      null;
    this.build();
    this.chooseProgram(this.program);
    this.redraw();
    this.seek(where.t);
    this.onResize = () => this.redraw();
    addEventListener("resize", this.onResize);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.onResize);
  }

  // ------------------------------------------------------------------------------------ what stands where

  build() {
    const { first } = this;
    const second = this.episodes[1];
    this.canvases = this.episodes.map((episode, index) => {
      const canvas = el("canvas", { id: index ? "game-2" : "game", role: "img", "aria-label": `Picture of ${episode.env}` });
      canvas.width = episode.frames?.width ?? 1;
      canvas.height = episode.frames?.height ?? 1;
      return canvas;
    });
    this.damage = el("p", { class: "note", hidden: true });
    this.scrub = el("input", {
      id: "scrub", type: "range", min: 0, max: this.length, value: 0, "aria-label": "Step",
      oninput: (event) => this.seek(Number(event.target.value)),
    });
    this.playButton = el("button", { id: "play", onclick: () => this.toggle() }, "Play");
    this.clock = el("span", { id: "clock" });
    this.speedLabel = el("button", { "aria-label": "Speed", onclick: () => this.setSpeed((this.speed % 9) + 1) }, "1×");
    this.numbers = el("div", { class: "numbers", id: "numbers" });
    this.probabilities = el("div", { class: "probabilities", id: "probabilities" });
    this.value = new Plot("Value over time", (t) => this.seek(t), this.length);
    this.valueLegend = el("div", { class: "legend" });
    this.sigma = new Plot("Singular values and residual gate over time", (t) => this.seek(t), this.length);
    this.sigma.box.classList.add("low");
    this.sigmaLegend = el("div", { class: "legend" });
    this.sigmaPanel = el("section", { class: "panel" }, el("h2", {}, "Singular values, residual gate"), this.sigma.box, this.sigmaLegend);
    this.map = new Plot("Program map: slots over time", (t) => this.seek(t), first.length);
    this.map.canvas.id = "map";
    this.map.box.addEventListener("pointermove", (event) => this.hover(event));
    this.map.box.addEventListener("pointerleave", () => (this.mapHover.textContent = ""));
    this.mapLegend = el("span");
    this.mapHover = el("span", { id: "hover" });
    this.programSelect = el(
      "select",
      { id: "program", "aria-label": "Head and memory", onchange: (event) => this.chooseProgram(first.programs[event.target.value]) },
      ...first.programs.map((program, index) => el("option", { value: index }, `${program.head} ${program.memory}`)),
    );
    this.chapters = el("div", { id: "chapters", role: "group", "aria-label": "Chapters" });
    this.warnings = el("div", { id: "warnings" });
    const step = (n) => () => this.seek(this.t + n);
    const hasPrograms = first.programs.length > 0;
    this.main.replaceChildren(
      el(
        "div",
        { class: "bar" },
        el("h1", {}, first.env),
        el("span", { class: "faint" }, this.episodes.map(summary).join("  |  ")),
        this.keys.browse && el("button", { onclick: this.keys.browse }, "All episodes"),
        el("button", { onclick: this.keys.help }, "Keys"),
      ),
      ...this.episodes.flatMap((episode) => episode.problems.map((text) => el("p", { class: "note" }, text))),
      el(
        "div",
        { class: `episode${second ? " two" : ""}` },
        el(
          "div",
          { class: "left" },
          el(
            "section",
            { class: "panel" },
            el("div", { class: "games" }, ...this.canvases.map((canvas, index) => el("div", { class: "game", hidden: !this.frames[index] }, canvas))),
            this.damage,
            el(
              "div",
              { class: "bar" },
              this.playButton,
              el("button", { "aria-label": "Step back", onclick: step(-1) }, "‹"),
              el("button", { "aria-label": "Step forward", onclick: step(1) }, "›"),
              this.speedLabel,
              this.scrub,
              this.clock,
            ),
            this.numbers,
            second &&
              el(
                "div",
                { class: "bar" },
                el("span", { id: "difference" }, describe(first, second)),
                el("button", { onclick: () => this.difference() }, "Next difference"),
              ),
          ),
          el("section", { class: "panel" }, el("h2", {}, "Actions"), this.probabilities),
          el(
            "details",
            { class: "panel" },
            el("summary", {}, "About this episode"),
            el("dl", {}, ...[["seed", String(first.seed)], ...first.facts].flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
          ),
        ),
        el(
          "div",
          { class: "right" },
          el("section", { class: "panel", hidden: !first.arrays.value }, el("h2", {}, "Value"), this.value.box, this.valueLegend),
          hasPrograms
            ? el(
                "section",
                { class: "panel" },
                el("div", { class: "bar" }, el("h2", {}, "Programs"), this.programSelect),
                this.warnings,
                this.map.box,
                el("div", { class: "legend" }, this.mapLegend, this.mapHover),
              )
            : el("section", { class: "panel" }, el("p", {}, "This agent has no program memory: there is no map of programs.")),
          hasPrograms && el("section", { class: "panel" }, el("h2", {}, "Chapters by leading program"), this.chapters),
          hasPrograms && this.sigmaPanel,
        ),
      ),
    );
  }

  chooseProgram(program) {
    if (!program) return;
    this.program = program;
    this.programSelect.value = String(this.first.programs.indexOf(program));
    this.range = drawMap(this.map.canvas, this.first, program);
    const percent = (x) => `${x >= 1 ? "+" : "−"}${number(Math.abs(x - 1) * 100, 0)} %`;
    this.mapLegend.textContent =
      `${program.slots} slots, most used on top; dark ${percent(1 / this.range)} to light ${percent(this.range)} of a slot's own mean`;
    this.warnings.replaceChildren(...program.warnings.map((text) => el("p", { class: "note" }, text)));
    this.buildChapters();
    this.drawSigma();
    if (this.t !== undefined) this.seek(this.t);
  }

  buildChapters() {
    const { first, program } = this;
    this.cards = program.chapters.map((chapter) => {
      const canvas = el("canvas", { "aria-hidden": "true" });
      canvas.width = Math.min(160, first.frames?.width ?? 1);
      canvas.height = first.frames ? Math.round((canvas.width * first.frames.height) / first.frames.width) : 1;
      const earned = chapter.reward ? `, ${chapter.reward > 0 ? "+" : "−"}${number(Math.abs(chapter.reward))}` : "";
      return el(
        "button",
        { dataset: { start: chapter.start, slot: chapter.slot }, onclick: () => this.seek(chapter.start) },
        this.frames[0] ? canvas : null,
        el("b", {}, `program ${chapter.slot}`),
        el("br"),
        `${number(chapter.stop - chapter.start)} steps${earned}`,
      );
    });
    this.chapters.replaceChildren(...this.cards);
    if (!this.frames[0]) return;
    const thumbnails = new Frames(first.frames); // a store of its own: scrolling chapters must not slow the game
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        thumbnails.draw(entry.target.querySelector("canvas"), Number(entry.target.dataset.start));
      }
    });
    this.cards.forEach((card) => seen.observe(card));
  }

  // ------------------------------------------------------------------------------------------- curves

  redraw() {
    const { first } = this;
    const lines = [];
    const colours = ["--accent", "--bad"];
    this.episodes.forEach((episode, index) => {
      const { value, return_to_go: target } = episode.arrays;
      if (value) lines.push({ values: value, colour: colours[index], name: this.episodes[1] ? `value ${index + 1}` : "value" });
      if (target && !this.episodes[1]) lines.push({ values: target, colour: "--faint", dashed: true, name: "what came (clipped rewards, discounted)" });
    });
    const ticks = [];
    first.arrays.reward.forEach((value, t) => value && ticks.push({ t, value }));
    const marks = [{ t: first.length, name: "end" }];
    first.arrays.boundary?.forEach((lost, t) => lost && marks.push({ t, name: "life" }));
    if (lines.length) {
      const { low, high } = drawCurves(this.value, { lines, ticks: ticks.slice(0, 5000), marks });
      this.valueLegend.textContent =
        `${lines.map((line) => line.name + (line.dashed ? " (dashed)" : "")).join(", ")}; ${number(low)} to ${number(high)}; ` +
        "▲ reward, ▼ punishment" + (marks.length > 1 ? ", dotted: a life lost" : "");
    }
    this.drawSigma();
  }

  drawSigma() {
    const { first, program } = this;
    const name = program && first.sigma[program.head];
    this.sigmaPanel.hidden = !name;
    if (!name) return;
    const sigma = first.arrays[name];
    const components = sigma.shape[1];
    const lines = [];
    for (let r = 0; r < components; r += 1) {
      lines.push({ values: Float32Array.from({ length: first.length }, (_, t) => sigma[t * components + r]), colour: r ? "--faint" : "--accent" });
    }
    const gate = first.arrays[first.gate[program.head]];
    if (gate) lines.push({ values: gate, colour: "--bad", dashed: true });
    const { low, high } = drawCurves(this.sigma, { lines, zero: true });
    this.sigmaLegend.textContent = `${components} singular values of the ${program.head}, the largest in blue; dashed: share of the residual program; ${number(low)} to ${number(high)}`;
  }

  hover(event) {
    const { first, program } = this;
    const box = this.map.box.getBoundingClientRect();
    const t = Math.min(first.length - 1, Math.floor(((event.clientX - box.left) / box.width) * first.length));
    const row = Math.min(program.slots - 1, Math.floor(((event.clientY - box.top) / box.height) * program.slots));
    if (t < 0 || row < 0) return;
    const slot = first.arrays[program.order][row];
    this.mapHover.textContent =
      `slot ${slot}, step ${t}: attention ${attentionOf(first, program, slot, t).toPrecision(3)}, lift ${liftOf(first, program, slot, t).toFixed(3)}`;
  }

  // --------------------------------------------------------------------------------------------- time

  // Show step t; resolves when its pictures are drawn.
  seek(t) {
    t = Math.max(0, Math.min(this.length, Math.round(t)));
    this.t = t;
    this.scrub.value = t;
    this.clock.textContent = `${number(t)} / ${number(this.length)}`;
    for (const plot of [this.value, this.sigma, this.map]) plot.show(Math.min(t, plot.length));
    this.showNumbers(t);
    this.showChapter(t);
    state.write({ ...this.keys.where, t, head: this.program?.head, memory: this.program?.memory });
    const draws = this.frames.map((frames, index) =>
      frames ? frames.draw(this.canvases[index], Math.min(t, this.episodes[index].length), () => this.t === t) : true,
    );
    this.drawn = Promise.all(draws).then((whole) => {
      if (this.t !== t) return;
      this.damage.hidden = whole.every(Boolean);
      this.damage.textContent = "This picture is missing or damaged: neurocoder replay render makes it anew.";
      document.documentElement.dataset.t = t;
    });
    return this.drawn;
  }

  showNumbers(t) {
    const { first } = this;
    const parts = [];
    this.episodes.forEach((episode, index) => {
      const { reward, value, lives, action } = episode.arrays;
      const at = Math.min(t, episode.length);
      let sum = 0;
      for (let step = 0; step < at; step += 1) sum += reward[step];
      const which = this.episodes[1] ? ` ${index + 1}` : "";
      parts.push([`return so far${which}`, number(sum)]);
      if (value && at < episode.length) parts.push([`value${which}`, value[at].toFixed(3)]);
      if (lives && !index) parts.push(["lives", String(lives[at])]);
      if (at < episode.length && reward[at]) parts.push([`reward of this step${which}`, number(reward[at])]);
      if (at < episode.length && !episode.action_names) {
        const size = action.shape[1] ?? 1;
        parts.push([`action${which}`, [...action.subarray(at * size, (at + 1) * size)].map((x) => number(x, 3)).join(", ")]);
      }
      if (at === episode.length) parts.push([`end${which}`, episode.ended]);
    });
    for (const { name, array } of first.labels) {
      const values = first.arrays[array];
      const size = values.shape.slice(1).reduce((product, side) => product * side, 1);
      if (t < first.length) parts.push([name, [...values.subarray(t * size, (t + 1) * size)].map((x) => number(x, 3)).join(", ")]);
    }
    this.numbers.replaceChildren(...parts.map(([name, text]) => el("span", {}, `${name} `, el("b", {}, text))));
    this.showProbabilities(t);
  }

  showProbabilities(t) {
    const { action_names: names, arrays, length } = this.first;
    const { probabilities, action } = arrays;
    this.probabilities.parentElement.hidden = !probabilities && !names;
    if (!names || t >= length) {
      this.probabilities.replaceChildren(el("span", { class: "faint" }, t >= length ? "The episode is over." : ""));
      return;
    }
    let entropy = 0;
    const rows = names.flatMap((name, index) => {
      const p = probabilities ? probabilities[t * names.length + index] : Number(action[t] === index);
      entropy -= p > 0 ? p * Math.log(p) : 0;
      const taken = action[t] === index ? "taken" : "";
      const fill = el("div", { class: `fill ${taken}` });
      fill.style.width = `${100 * p}%`;
      return [el("span", { class: taken }, (taken ? "▸ " : "") + name), el("div", { class: "track" }, fill), el("span", {}, p.toFixed(3))];
    });
    const uniform = Math.log(names.length);
    const note = probabilities ? `entropy ${entropy.toFixed(3)} of ${uniform.toFixed(3)}` : "no probabilities were recorded";
    this.probabilities.replaceChildren(...rows, el("span", { class: "faint" }, note));
  }

  showChapter(t) {
    if (!this.cards) return;
    const chapters = this.program.chapters;
    let current = chapters.findIndex((chapter) => t < chapter.stop);
    if (current < 0) current = chapters.length - 1;
    if (current === this.current && this.cards[current]?.getAttribute("aria-current")) return;
    this.cards.forEach((card, index) => (index === current ? card.setAttribute("aria-current", "true") : card.removeAttribute("aria-current")));
    this.current = current;
    const card = this.cards[current];
    if (card) this.chapters.scrollLeft = card.offsetLeft - this.chapters.offsetLeft - 60;
  }

  chapter(direction) {
    const starts = this.program ? this.program.chapters.map((chapter) => chapter.start) : [];
    const found = direction > 0 ? starts.find((start) => start > this.t) : starts.filter((start) => start < this.t).pop();
    if (found !== undefined) this.seek(found);
  }

  difference() {
    if (!this.episodes[1]) return;
    const step = nextDifference(this.first, this.episodes[1], this.t);
    if (step !== null) this.seek(step);
  }

  setSpeed(speed) {
    this.speed = speed;
    this.speedLabel.textContent = `${speed}×`;
  }

  toggle() {
    this.playing = !this.playing;
    this.playButton.textContent = this.playing ? "Pause" : "Play";
    if (!this.playing) return;
    if (this.t >= this.length) this.seek(0);
    let last = performance.now();
    let owed = 0;
    const tick = async (now) => {
      if (!this.playing) return;
      owed = Math.min(owed + ((now - last) / 1000) * REAL_TIME * this.speed, REAL_TIME * this.speed);
      last = now;
      const steps = Math.floor(owed);
      if (steps) {
        owed -= steps;
        await this.seek(this.t + steps);
        if (this.t >= this.length) return this.toggle();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  // What tests look at.
  hooks() {
    const find = (head, memory) => this.first.programs.find((program) => program.head === head && program.memory === memory);
    return { colour, range: (head, memory) => rangeOf(this.first, find(head, memory)), seek: (t) => this.seek(t), view: this };
  }
}

// Chapters: stretches of an episode that are about one slot. A ribbon over time, and a card with a picture for each.

import { el, number, signed } from "./dom.js";
import { Strips } from "./frames.js";
import { css } from "./plots.js";
import { chapterAt } from "./programs.js";
import { Timeline } from "./timeline.js";

const PICTURE = 84; // pixels, the wider side of a thumbnail

export class ChaptersPanel {
  constructor(episode, strips, length, seek) {
    this.episode = episode;
    this.length = length;
    this.seek = seek;
    // A small store of its own: scrolling through chapters must not drive out the strips of the game.
    this.game = strips;
    this.strips = strips && new Strips(strips.description, 2, strips.blobs);
    this.ribbon = new Timeline({ label: "Chapters over time", kind: "ribbon", length, seek, draw: (...size) => this.draw(...size) });
    this.now = el("div", { class: "now" });
    this.ribbon.area.append(this.now);
    this.cards = el("div", { id: "chapters", role: "group", "aria-label": "Chapters" });
    this.title = el("span", { class: "faint" });
    this.element = el(
      "section",
      { class: "panel" },
      el("div", { class: "head" }, el("h2", {}, "Chapters"), this.title),
      this.ribbon.element,
      this.cards,
    );
    this.waiting = new Set();
  }

  choose(program) {
    this.chapters = program.chapters;
    this.current = -1;
    this.observer?.disconnect();
    this.waiting.clear();
    this.title.textContent = `by the slot that stands out, ${number(this.chapters.length)}`;
    this.buttons = this.chapters.map((chapter) => this.card(chapter));
    this.cards.replaceChildren(...this.buttons);
    if (this.strips) {
      this.observer = new IntersectionObserver((entries) => this.seen(entries), { root: this.cards, rootMargin: "0px 200px" });
      for (const button of this.buttons) this.observer.observe(button);
    }
    this.ribbon.redraw();
  }

  card({ start, stop, slot, reward }) {
    const steps = `${number(stop - start)} step${stop - start === 1 ? "" : "s"}${reward ? `, ${signed(reward)}` : ""}`;
    return el(
      "button",
      { type: "button", dataset: { start, slot }, onclick: () => this.seek(start), title: `steps ${number(start)} to ${number(stop)}` },
      this.strips && this.picture(),
      el("b", {}, `slot ${slot}`),
      el("br"),
      steps,
    );
  }

  picture() {
    const { width, height } = this.strips.description;
    const scale = Math.min(1, PICTURE / Math.max(width, height));
    const canvas = el("canvas", { "aria-hidden": "true" });
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    return canvas;
  }

  seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.waiting.add(target);
      else this.waiting.delete(target); // scrolled past before its turn
    }
    this.running ??= this.paint().finally(() => (this.running = null));
  }

  async paint() {
    while (this.waiting.size) {
      const [card] = this.waiting;
      this.waiting.delete(card);
      this.observer.unobserve(card);
      const start = Number(card.dataset.start);
      const bitmap = this.game.peek(start) ?? (await this.strips.load(this.strips.numberOf(start)));
      this.strips.paint(card.querySelector("canvas"), bitmap, start);
    }
  }

  show(t) {
    this.ribbon.show(t);
    if (!this.chapters?.length) return;
    const current = chapterAt(this.chapters, t);
    if (current === this.current) return;
    this.buttons[this.current]?.removeAttribute("aria-current");
    this.current = current;
    const card = this.buttons[current];
    card.setAttribute("aria-current", "true");
    const { start, stop } = this.chapters[current];
    this.now.style.left = `${(100 * start) / this.length}%`;
    this.now.style.width = `${(100 * (stop - start)) / this.length}%`;
    const middle = card.offsetLeft + card.offsetWidth / 2 - this.cards.clientWidth / 2;
    this.cards.scrollLeft = middle;
  }

  redraw() {
    this.ribbon.redraw();
  }

  draw(context, width, height) {
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    (this.chapters ?? []).forEach(({ start, stop, slot }, index) => {
      const [left, right] = [start, stop].map((t) => (t / this.length) * width);
      context.fillStyle = css(index % 2 ? "--ribbon-odd" : "--ribbon-even");
      context.fillRect(left, 0, Math.max(0.5, right - left), height);
      context.fillStyle = css("--ink");
      if (right - left > 20) context.fillText(String(slot), (left + right) / 2, height / 2 + 0.5);
    });
  }

  close() {
    this.observer?.disconnect();
    this.waiting.clear();
    this.strips?.close();
  }
}

// The list of episodes: sorted, filtered, two ticked to be compared, and growing while something is recorded.

import { fetchJson, path } from "./data.js";
import { el, number, say } from "./dom.js";
import { address } from "./state.js";

const COLUMNS = [
  ["env", "Environment"],
  ["run", "Run"],
  ["checkpoint", "Checkpoint"],
  ["seed", "Seed"],
  ["return", "Return"],
  ["length", "Steps"],
  ["chapters", "Chapters"],
  ["ended", "Ended"],
  ["masked", "Masked"],
  ["picked", "Pick"],
  ["recorded", "Recorded"],
];
const NUMBERS = new Set(["checkpoint", "seed", "return", "length", "chapters"]);

// How the reader last looked at the list: it is as they left it when they come back to it.
const look = { sort: "recorded", down: true, text: "", env: "", pick: "", masked: "", ticked: new Set() };

export class BrowseView {
  // `go(where)` opens a place of this page.
  constructor(main, go) {
    this.go = go;
    this.rows = new Map(); // key -> { element, text: what the row was made of, box }
    this.found = { episodes: [], problems: [], logs: "" };
    this.build(main);
  }

  async open() {
    this.found = await fetchJson("/api/episodes");
    this.draw();
    this.live = new EventSource("/api/live");
    this.live.addEventListener("message", () => this.refresh());
  }

  close() {
    this.live?.close();
  }

  build(main) {
    const choice = (name, label, options) =>
      el("select", { "aria-label": label, onchange: (event) => ((look[name] = event.target.value), this.draw()) }, ...options.map(option));
    this.env = choice("env", "Environment", []);
    this.pick = choice("pick", "Pick", [["", "every pick"], ["best"], ["median"], ["worst"]]);
    this.masked = choice("masked", "Masked", [["", "masked or not"], ["yes", "masked"], ["no", "not masked"]]);
    this.pick.value = look.pick;
    this.masked.value = look.masked;
    this.search = el("input", {
      type: "search", placeholder: "Filter", "aria-label": "Filter", value: look.text,
      oninput: (event) => ((look.text = event.target.value), this.draw()),
    });
    this.compare = el("button", { type: "button", class: "main", onclick: () => this.openTwo() }, "Compare two");
    this.heads = COLUMNS.map(([name, label]) => {
      const arrow = el("span", { "aria-hidden": "true", class: "arrow" });
      const button = el("button", { type: "button", onclick: () => this.sortBy(name) }, label, arrow);
      return { name, arrow, element: el("th", { role: "columnheader", scope: "col", class: NUMBERS.has(name) ? "number" : "" }, button) };
    });
    this.body = el("tbody", { role: "rowgroup" });
    this.count = el("p", { class: "faint" });
    this.news = el("p", { class: "news", role: "status" });
    this.problems = el("section", { class: "problems" });
    const hidden = (text) => el("th", { role: "columnheader", scope: "col", class: "plain" }, el("span", { class: "visually-hidden" }, text));
    this.table = el(
      "table",
      { role: "table", "aria-label": "Episodes" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, hidden("Compare"), hidden("Picture"), ...this.heads.map(({ element }) => element))),
      this.body,
    );
    this.empty = el("div", { class: "empty", hidden: true });
    main.replaceChildren(
      el(
        "div",
        { class: "browse" },
        el("header", { class: "top" }, el("h1", {}, "Episodes"), this.count, this.news),
        (this.tools = el("div", { class: "tools" }, this.search, this.env, this.pick, this.masked, this.compare)),
        el("div", { class: "scroll" }, this.table),
        this.empty,
        this.problems,
      ),
    );
  }

  async refresh() {
    const known = new Set(this.found.episodes.map(({ key }) => key));
    const found = await fetchJson("/api/episodes").catch(() => null);
    if (!found) return;
    this.found = found;
    const fresh = found.episodes.filter(({ key }) => !known.has(key));
    this.draw();
    for (const { key } of fresh) this.rows.get(key)?.element.classList.add("fresh");
    if (fresh.length) say(this.news, `${fresh.length} new`);
  }

  sortBy(name) {
    look.down = look.sort === name ? !look.down : true;
    look.sort = name;
    this.draw();
  }

  tick(key, on) {
    look.ticked.delete(key);
    if (on) look.ticked.add(key);
    while (look.ticked.size > 2) {
      const [oldest] = look.ticked;
      look.ticked.delete(oldest);
    }
    this.showTicks();
  }

  openTwo() {
    const [first, second] = look.ticked;
    this.go({ ep: first, with: second });
  }

  showTicks() {
    for (const [key, { box, element }] of this.rows) {
      box.checked = look.ticked.has(key);
      element.classList.toggle("ticked", box.checked);
    }
    this.compare.disabled = look.ticked.size !== 2;
    this.compare.title = this.compare.disabled ? "Tick two episodes" : "";
  }

  draw() {
    const { episodes, problems, logs } = this.found;
    const focused = document.activeElement;
    for (const { name, arrow, element } of this.heads) {
      const sorted = look.sort === name ? (look.down ? "descending" : "ascending") : "none";
      element.setAttribute("aria-sort", sorted);
      say(arrow, { none: "", descending: " ↓", ascending: " ↑" }[sorted]);
    }
    const envs = [...new Set(episodes.map(({ env }) => env))].sort();
    if (look.env && !envs.includes(look.env)) look.env = "";
    this.env.replaceChildren(...[["", "every environment"], ...envs.map((env) => [env])].map(option));
    this.env.value = look.env;
    for (const key of look.ticked) if (!episodes.some((episode) => episode.key === key)) look.ticked.delete(key);
    const words = look.text.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = episodes.filter((episode) => {
      const text = [episode.key, ...COLUMNS.map(([name]) => cellText(episode, name)), episode.masked ? "masked" : ""].join(" ").toLowerCase();
      return (
        (!look.env || episode.env === look.env) &&
        (!look.pick || episode.picked === look.pick) &&
        (!look.masked || Boolean(episode.masked?.length) === (look.masked === "yes")) &&
        words.every((word) => text.includes(word))
      );
    });
    shown.sort((a, b) => order(a[look.sort], b[look.sort]) * (look.down ? -1 : 1));
    this.body.replaceChildren(...shown.map((episode) => this.row(episode)));
    if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    this.showTicks();
    this.tools.hidden = this.table.hidden = episodes.length === 0;
    this.empty.hidden = shown.length > 0;
    this.empty.replaceChildren(...(episodes.length ? [el("p", {}, "No episode is like that.")] : nothingYet(logs)));
    say(this.count, episodes.length ? `${number(shown.length)} of ${number(episodes.length)} in ${logs}` : "");
    this.problems.replaceChildren(
      ...(problems.length ? [el("h2", {}, "Not readable")] : []),
      ...problems.map(({ path: file, error }) => el("p", { class: "note" }, el("b", {}, file), ` ${error}`)),
    );
  }

  // The row of an episode; the same element as before if nothing has changed.
  row(episode) {
    const text = JSON.stringify(episode);
    const known = this.rows.get(episode.key);
    if (known?.text === text) return known.element;
    const { key, thumbnail } = episode;
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${key}`, onchange: (event) => this.tick(key, event.target.checked) });
    const where = { ep: key };
    const link = (attributes, child) => el("a", { href: address(where), onclick: (event) => this.follow(event, where), ...attributes }, child);
    const image = thumbnail && el("img", { src: thumbnailUrl(episode), alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.remove() });
    const cells = COLUMNS.map(([name, label]) =>
      el(
        "td",
        { role: "cell", class: `${name}${NUMBERS.has(name) ? " number" : ""}`, dataset: { label } },
        name === "env" ? link({}, episode.env) : cellText(episode, name),
      ),
    );
    const element = el(
      "tr",
      { role: "row" },
      el("td", { role: "cell", class: "tick" }, el("label", {}, box)),
      el("td", { role: "cell", class: "picture" }, image ? link({ tabindex: -1, "aria-hidden": "true" }, image) : ""),
      ...cells,
    );
    this.rows.set(key, { element, text, box });
    return element;
  }

  follow(event, where) {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    this.go(where);
  }
}

const option = ([value, label = value]) => el("option", { value }, label);

// Numbers as numbers, texts as texts, what is missing last of the ascending.
function order(a, b) {
  const missing = (value) => value === null || value === undefined;
  if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function cellText(episode, name) {
  const value = episode[name];
  if (value === null || value === undefined) return "";
  if (name === "recorded") return String(value).slice(0, 16).replace("T", " ");
  if (name === "seed") return String(value);
  if (Array.isArray(value)) return `slot${value.length > 1 ? "s" : ""} ${value.join(", ")}`;
  return number(value);
}

// The address of a picture has the key at its end, with characters that an address cannot have as they are.
function thumbnailUrl({ key, thumbnail }) {
  return thumbnail.endsWith(key) ? thumbnail.slice(0, thumbnail.length - key.length) + path(key) : thumbnail;
}

function nothingYet(logs) {
  return [
    el("p", {}, `There are no episodes in ${logs} yet.`),
    el("p", {}, "Record some of a trained run: ", el("code", {}, "neurocoder record RUN")),
    el("p", { class: "faint" }, "They appear here by themselves."),
  ];
}

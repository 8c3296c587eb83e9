// The list of episodes: sorted, filtered, two ticked to be compared, and growing while something is recorded.

import { fetchJson } from "./data.js";
import { el, number } from "./dom.js";
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
  ["masked", "Without slot"],
  ["picked", "Pick"],
  ["recorded", "Recorded"],
];

export async function showList(main) {
  const view = { sort: "recorded", down: true, text: "", env: "", pick: "", ticked: new Set() };
  let found = await fetchJson("/api/episodes");
  const body = el("tbody");
  const head = el("tr");
  const count = el("p", { class: "faint", "aria-live": "polite" });
  const problems = el("div");
  const compare = el("button", { onclick: () => open([...view.ticked]) }, "Compare two");
  const env = el("select", { "aria-label": "Environment", onchange: (e) => ((view.env = e.target.value), draw()) });
  const pick = el(
    "select",
    { "aria-label": "Pick", onchange: (e) => ((view.pick = e.target.value), draw()) },
    ...["", "best", "median", "worst"].map((name) => el("option", { value: name }, name || "every pick")),
  );
  const search = el("input", {
    type: "search",
    placeholder: "Filter",
    "aria-label": "Filter",
    oninput: (e) => ((view.text = e.target.value.toLowerCase()), draw()),
  });
  main.replaceChildren(
    el("div", { class: "bar" }, el("h1", {}, "Episodes"), search, env, pick, compare),
    count,
    el("div", { class: "scroll panel" }, el("table", {}, el("thead", {}, head), body)),
    problems,
  );

  function open([first, second]) {
    location.href = address({ ep: first, with: second });
  }

  function drawHead() {
    head.replaceChildren(
      el("th", {}, el("span", { class: "visually-hidden" }, "Compare")),
      el("th", {}, el("span", { class: "visually-hidden" }, "Picture")),
      ...COLUMNS.map(([name, label]) => {
        const sorted = view.sort === name ? (view.down ? "descending" : "ascending") : "none";
        const arrow = sorted === "none" ? "" : view.down ? " ↓" : " ↑";
        const sort = () => {
          view.down = view.sort === name ? !view.down : true;
          view.sort = name;
          draw();
        };
        return el("th", { "aria-sort": sorted }, el("button", { onclick: sort }, label + arrow));
      }),
    );
  }

  function row(episode) {
    const tick = el("input", {
      type: "checkbox",
      "aria-label": `Compare ${episode.key}`,
      checked: view.ticked.has(episode.key),
      onchange: (e) => {
        if (e.target.checked) view.ticked.add(episode.key);
        else view.ticked.delete(episode.key);
        compare.disabled = view.ticked.size !== 2;
      },
    });
    const image = episode.thumbnail ? el("img", { src: encodeURI(episode.thumbnail), alt: "", loading: "lazy" }) : "";
    const cells = COLUMNS.map(([name]) => {
      const value = episode[name];
      if (name === "env") return el("td", {}, el("a", { href: address({ ep: episode.key }) }, value));
      if (name === "recorded") return el("td", {}, String(value ?? "").replace("T", " ").replace("Z", ""));
      if (Array.isArray(value)) return el("td", {}, value.join(", "));
      return el("td", {}, typeof value === "number" && name !== "seed" ? number(value) : String(value ?? ""));
    });
    return el("tr", {}, el("td", {}, tick), el("td", {}, image), ...cells);
  }

  function draw() {
    drawHead();
    const names = [...new Set(found.episodes.map((episode) => episode.env))].sort();
    env.replaceChildren(
      ...["", ...names].map((name) => el("option", { value: name, selected: name === view.env }, name || "every environment")),
    );
    const shown = found.episodes.filter(
      (episode) =>
        (!view.env || episode.env === view.env) &&
        (!view.pick || episode.picked === view.pick) &&
        (!view.text || JSON.stringify(Object.values(episode)).toLowerCase().includes(view.text)),
    );
    const order = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);
    shown.sort((a, b) => order(a[view.sort], b[view.sort]) * (view.down ? -1 : 1));
    body.replaceChildren(...shown.map(row));
    compare.disabled = view.ticked.size !== 2;
    count.textContent = found.episodes.length
      ? `${shown.length} of ${found.episodes.length} episodes in ${found.logs}`
      : `There are no episodes in ${found.logs} yet. Record some: neurocoder record RUN`;
    problems.replaceChildren(
      ...found.problems.map(({ path, error }) => el("p", { class: "note" }, `${path}: ${error}`)),
    );
  }

  draw();
  const live = new EventSource("/api/live");
  live.onmessage = async () => {
    found = await fetchJson("/api/episodes").catch(() => found);
    draw();
  };
  addEventListener("pagehide", () => live.close());
}

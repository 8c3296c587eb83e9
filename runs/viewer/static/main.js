// Where it begins: episodes that the page brings along, those that the address names, or the list of all.

import { BrowseView } from "./browse.js";
import { exported, loadEpisode, unpack } from "./data.js";
import { el } from "./dom.js";
import { EpisodeView } from "./episode.js";
import { fillHelp, listen } from "./keys.js";
import * as state from "./state.js";

const root = document.documentElement;
const main = document.getElementById("main");
const help = document.getElementById("help");
const error = document.getElementById("error");
const inside = exported();
const actions = { help: () => help.showModal(), browse: inside.length ? null : () => view instanceof BrowseView || go({}) };

let view = null; // a BrowseView or an EpisodeView
let episode = null; // the EpisodeView, if it is one
let turn = 0; // of going somewhere: what was asked for before does not come after

function go(where) {
  state.push(where);
  route();
}

async function route() {
  const where = state.read();
  if (episode && (inside.length || (where.ep === episode.where.ep && where.with === episode.where.with))) {
    return episode.restore(where);
  }
  const mine = (turn += 1);
  state.forget();
  view?.close();
  view = episode = null;
  delete window.viewer;
  error.hidden = true;
  root.dataset.state = "loading";
  delete root.dataset.t;
  try {
    await (inside.length || where.ep ? openEpisodes(where, mine) : openList(mine));
  } catch (problem) {
    if (mine !== turn) return;
    view?.close();
    view = episode = null;
    main.replaceChildren(
      el(
        "header",
        { class: "top" },
        actions.browse && el("button", { type: "button", class: "quiet", onclick: actions.browse }, "← Episodes"),
        el("h1", {}, "This cannot be shown"),
      ),
    );
    error.textContent = problem.message;
    error.hidden = false;
    root.dataset.state = "error";
  }
}

async function openList(mine) {
  document.title = "Neurocoder episodes";
  const list = (view = new BrowseView(main, go));
  await list.open();
  if (mine !== turn) return list.close();
  root.dataset.state = "browse";
}

async function openEpisodes(where, mine) {
  main.replaceChildren(el("p", { class: "loading" }, "Loading …"));
  const loading = inside.length
    ? inside.map(async (script) => unpack(JSON.parse(script.textContent)))
    : [where.ep, where.with].filter(Boolean).map(loadEpisode);
  const [first, second] = await Promise.allSettled(loading);
  if (mine !== turn) return;
  if (first.status === "rejected") throw first.reason;
  const episodes = [first.value];
  if (second?.status === "fulfilled") episodes.push(second.value);
  else if (second) first.value.problems = [...first.value.problems, `The second episode cannot be shown. ${second.reason.message}`];
  document.title = `${first.value.env}, seed ${first.value.seed}`;
  view = episode = new EpisodeView(main, episodes, where, actions);
  window.viewer = episode.hooks();
  await episode.drawn;
  if (mine === turn) root.dataset.state = "ready";
}

fillHelp(help);
listen(() => episode, actions);
addEventListener("popstate", route);
addEventListener("pagehide", () => view?.live?.close());
route();

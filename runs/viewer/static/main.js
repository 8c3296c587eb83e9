// Where it begins: episodes that the page brings along, one that the address names, or the list of all.

import { showList } from "./browse.js";
import { exported, loadEpisode, unpack } from "./data.js";
import { EpisodeView } from "./episode.js";
import { fillHelp, listen } from "./keys.js";
import * as state from "./state.js";

const root = document.documentElement;
const main = document.getElementById("main");
const help = document.getElementById("help");

async function begin() {
  const where = state.read();
  const inside = exported();
  if (!inside.length && !where.ep) {
    await showList(main);
    root.dataset.state = "browse";
    return;
  }
  const keys = inside.length ? [] : [where.ep, where.with].filter(Boolean);
  const episodes = inside.length
    ? await Promise.all(inside.map((script) => unpack(JSON.parse(script.textContent))))
    : await Promise.all(keys.map(loadEpisode));
  const actions = {
    where: { ep: where.ep, with: where.with },
    help: () => help.showModal(),
    browse: inside.length ? null : () => (location.href = "/"),
  };
  document.title = `${episodes[0].env}, seed ${episodes[0].seed}`;
  const view = new EpisodeView(main, episodes, where, actions);
  window.viewer = view.hooks();
  addEventListener("popstate", () => view.seek(state.read().t));
  fillHelp(help);
  listen(view, actions);
  await view.drawn;
  root.dataset.state = "ready";
}

begin().catch((error) => {
  const line = document.getElementById("error");
  line.textContent = error.message;
  line.hidden = false;
  root.dataset.state = "error";
});

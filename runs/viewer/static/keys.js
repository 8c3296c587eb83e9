// The keyboard, and the table that tells of it.

import { el } from "./dom.js";

export const KEYS = [
  ["Space", "play, pause"],
  ["← →", "one step"],
  ["Shift ← →", "sixteen steps"],
  ["[ ]", "chapter before, chapter after"],
  ["Home End", "start, end"],
  ["1 … 9", "speed; 1 is real time"],
  ["d", "next difference of two episodes"],
  ["b", "all episodes"],
  ["?", "this table"],
];

export function fillHelp(dialog) {
  dialog.replaceChildren(
    el("h1", {}, "Keys"),
    el("dl", {}, ...KEYS.flatMap(([keys, what]) => [el("dt", {}, ...keys.split(" ").map((key) => el("kbd", {}, key))), el("dd", {}, what)])),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
}

export function listen(view, actions) {
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target.matches?.('input[type="search"], input[type="text"], select, textarea');
    if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === " " && target.matches?.("button, summary")) return; // a button is pressed, as everywhere
    const far = event.shiftKey ? 16 : 1;
    const does = {
      " ": () => view.toggle(),
      ArrowLeft: () => view.seek(view.t - far),
      ArrowRight: () => view.seek(view.t + far),
      "[": () => view.chapter(-1),
      "]": () => view.chapter(1),
      Home: () => view.seek(0),
      End: () => view.seek(view.length),
      d: () => view.difference(),
      b: () => actions.browse?.(),
      "?": () => actions.help(),
    }[event.key];
    if (does) {
      event.preventDefault();
      does();
    } else if (/^[1-9]$/.test(event.key)) {
      view.setSpeed(Number(event.key));
    }
  });
}

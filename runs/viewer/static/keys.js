// The keyboard, and the table that tells of it.

import { el } from "./dom.js";

const KEYS = [
  [["Space"], "play, pause"],
  [["←", "→"], "one step back, forward"],
  [["Shift ←", "Shift →"], "sixteen steps"],
  [["[", "]"], "chapter before, chapter after"],
  [["Home", "End"], "start, end"],
  [["1", "…", "9"], "speed; 1 is the pace of the game"],
  [["d"], "next step at which two episodes differ"],
  [["b"], "back to all episodes"],
  [["?"], "this table"],
];

export function fillHelp(dialog) {
  const keyboard = (keys) => keys.flatMap((key) => [key === "…" ? el("span", {}, "…") : el("kbd", {}, key), " "]);
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, ...KEYS.flatMap(([keys, what]) => [el("dt", {}, ...keyboard(keys)), el("dd", {}, what)])),
    el("p", { class: "faint" }, "Curves, map and ribbon are also scrubbed by pointing at them."),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
}

// `view()` is the episode on the page, or null; `actions` are { help, browse }.
export function listen(view, actions) {
  let pointed = false; // the last thing done was done with a pointer
  document.addEventListener("pointerdown", () => (pointed = true), true);
  document.addEventListener("keydown", () => (pointed = false), true);
  // What was clicked gives the keyboard back; what was reached by Tab keeps it.
  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("button");
    if (pointed && button && view() && !button.closest("dialog")) button.blur();
  });
  document.addEventListener("change", ({ target }) => pointed && view() && target.matches?.("select") && target.blur());
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (target.matches?.("select, textarea, input:not([type=range])")) return;
    if (document.querySelector("dialog[open]")) return;
    if ((event.ctrlKey || event.metaKey || event.altKey) && !event.getModifierState("AltGraph")) return;
    if (key === " " && target.matches?.("button, summary, a")) return; // pressed, as everywhere
    const does = key === "?" ? actions.help : key === "b" ? actions.browse : view() && command(view(), event);
    if (!does) return;
    event.preventDefault();
    does();
  });
}

function command(view, { key, shiftKey }) {
  const far = shiftKey ? 16 : 1;
  if (/^[1-9]$/.test(key)) return () => view.clock.setSpeed(Number(key));
  return {
    " ": () => view.clock.toggle(),
    ArrowLeft: () => view.seek(view.t - far),
    ArrowRight: () => view.seek(view.t + far),
    "[": () => view.chapter(-1),
    "]": () => view.chapter(1),
    Home: () => view.seek(0),
    End: () => view.seek(view.length),
    d: () => view.nextDifference(),
  }[key];
}

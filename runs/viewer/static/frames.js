// Pictures: strips are decoded when they are needed, the last few are kept, and screens show the step last asked for.

import { bytesOf } from "./data.js";

const KEPT = 12; // a strip of 64 Atari frames is 8.6 MB

// The strips of an episode, decoded; `blobs`, their compressed bytes, can be shared with another store.
export class Strips {
  constructor(description, kept = KEPT, blobs = new Map()) {
    this.description = description;
    this.kept = kept;
    this.blobs = blobs;
    this.bitmaps = new Map(); // number -> { promise, bitmap }, the one used last at the end; bitmap null: damaged
  }

  // The strip with frame t: a bitmap, null if it is missing or damaged, undefined if it is not decoded yet.
  peek(t) {
    const number = this.numberOf(t);
    const found = this.bitmaps.get(number);
    if (found) this.touch(number, found);
    return found?.bitmap;
  }

  numberOf(t) {
    return Math.floor(t / this.description.per_strip);
  }

  load(number) {
    let found = this.bitmaps.get(number);
    if (!found) {
      found = { bitmap: undefined, promise: null };
      found.promise = this.decode(number).then((bitmap) => (found.bitmap = bitmap));
    }
    this.touch(number, found);
    while (this.bitmaps.size > this.kept) this.drop(this.bitmaps.keys().next().value);
    return found.promise;
  }

  touch(number, found) {
    this.bitmaps.delete(number);
    this.bitmaps.set(number, found);
  }

  drop(number) {
    const { promise } = this.bitmaps.get(number);
    this.bitmaps.delete(number);
    promise.then((bitmap) => bitmap?.close());
  }

  close() {
    for (const number of [...this.bitmaps.keys()]) this.drop(number);
    this.blobs.clear();
  }

  async decode(number) {
    const { strips, width, height, per_strip: perStrip, count } = this.description;
    if (!strips[number]) return null;
    try {
      if (!this.blobs.has(number)) this.blobs.set(number, await fetchBlob(strips[number]));
      const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
      const bitmap = await createImageBitmap(this.blobs.get(number), exact);
      const rows = Math.min(perStrip, count - number * perStrip);
      if (bitmap.width === width && bitmap.height >= rows * height) return bitmap;
      bitmap.close();
    } catch {
      // told on the page, beside a grey picture
    }
    this.blobs.delete(number);
    return null;
  }

  // Copy frame t out of its strip; the canvas may be smaller than the frame. Returns whether there was one.
  paint(canvas, bitmap, t) {
    const { width, height, per_strip: perStrip } = this.description;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (bitmap) {
      context.imageSmoothingEnabled = canvas.width < width;
      context.drawImage(bitmap, 0, (t % perStrip) * height, width, height, 0, 0, canvas.width, canvas.height);
    } else {
      context.fillStyle = "#808080";
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    return Boolean(bitmap);
  }
}

async function fetchBlob(url) {
  if (url.startsWith("data:")) return new Blob([bytesOf(url.slice(url.indexOf(",") + 1))], { type: "image/webp" });
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.blob();
}

// Canvases in lock step: all show the same step, or the last frame of an episode that is over.
export class Screens {
  // `parts` are { canvas, strips, last }; `drawn(t, whole)` is told what can be seen now.
  constructor(parts, drawn) {
    this.parts = parts;
    this.drawn = drawn;
    this.wanted = 0;
    this.shown = -1;
    this.running = null;
  }

  // Show step t; resolves when that step, or one that was asked for since, is on the canvases.
  show(t) {
    this.wanted = t;
    if (this.running) return this.running;
    if (this.paint(t)) return Promise.resolve();
    this.running = this.catchUp();
    return this.running;
  }

  // One decode at a time, always of the newest wish: who scrubs fast sees what can be shown, never a queue.
  async catchUp() {
    try {
      do {
        const t = this.wanted;
        await Promise.all(this.parts.map(({ strips, last }) => strips.load(strips.numberOf(Math.min(t, last)))));
        this.paint(t);
      } while (this.shown !== this.wanted);
    } finally {
      this.running = null;
    }
  }

  paint(t) {
    const bitmaps = this.parts.map(({ strips, last }) => strips.peek(Math.min(t, last)));
    if (bitmaps.includes(undefined)) return false;
    const whole = this.parts.map(({ canvas, strips, last }, index) => strips.paint(canvas, bitmaps[index], Math.min(t, last)));
    const step = t >= this.shown ? 1 : -1;
    this.shown = t;
    this.drawn(t, whole);
    if (t === this.wanted) this.prefetch(t, step);
    return true;
  }

  // The strip that comes next, the way the reader goes.
  prefetch(t, step) {
    for (const { strips, last } of this.parts) {
      const next = strips.numberOf(Math.min(t, last)) + step;
      if (next >= 0 && next <= strips.numberOf(last) && !strips.bitmaps.has(next)) strips.load(next);
    }
  }
}

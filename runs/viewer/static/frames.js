// Pictures of an episode: strips are decoded when they are needed, and the last few are kept.

const KEPT = 12;

export class Frames {
  constructor(description) {
    this.description = description;
    this.strips = new Map(); // number -> promise of a bitmap, or of null where it is missing or damaged
  }

  strip(number) {
    let found = this.strips.get(number);
    if (found) this.strips.delete(number);
    else found = this.decode(this.description.strips[number]);
    this.strips.set(number, found);
    if (this.strips.size > KEPT) {
      const [oldest] = this.strips.keys();
      const dropped = this.strips.get(oldest);
      this.strips.delete(oldest);
      dropped.then((bitmap) => bitmap?.close());
    }
    return found;
  }

  async decode(url) {
    if (!url) return null;
    try {
      const blob = url.startsWith("data:") ? fromDataUrl(url) : await (await fetch(url)).blob();
      return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    } catch {
      return null;
    }
  }

  // Draw frame t; resolves to whether there was one.
  async draw(canvas, t, isStillWanted = () => true) {
    const { width, height, per_strip: perStrip, strips } = this.description;
    const number = Math.floor(t / perStrip);
    const bitmap = await this.strip(number);
    if (!isStillWanted()) return true;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    if (bitmap) {
      context.drawImage(bitmap, 0, (t % perStrip) * height, width, height, 0, 0, canvas.width, canvas.height);
    } else {
      context.fillStyle = "#808080";
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    if (t % perStrip > perStrip / 2 && number + 1 < strips.length) this.strip(number + 1);
    return Boolean(bitmap);
  }
}

function fromDataUrl(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/webp" });
}

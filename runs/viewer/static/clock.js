// The only clock: one integer step. Playing moves it on by whole steps, and waits for pictures that are not there yet.

const REAL_TIME = 15; // steps a second: four frames each, of sixty

export class Clock {
  // `show(t)` draws a step and resolves when it can be seen; `changed()` is told of a new speed, of play and of pause.
  constructor(length, show, changed) {
    this.length = length;
    this.show = show;
    this.changed = changed;
    this.t = 0;
    this.speed = 1;
    this.playing = false;
    this.drawn = Promise.resolve();
  }

  seek(t) {
    this.t = Math.max(0, Math.min(this.length, Math.round(t)));
    this.drawn = this.show(this.t);
    return this.drawn;
  }

  setSpeed(speed) {
    this.speed = Math.max(1, Math.min(9, speed));
    this.changed();
  }

  pause() {
    this.playing = false;
    this.changed();
  }

  toggle() {
    if (this.playing) return this.pause();
    this.playing = true;
    this.changed();
    if (this.t >= this.length) this.seek(0);
    let last = performance.now();
    let owed = 0; // steps, with a fraction
    let drawing = false;
    const run = (this.run = (now) => {
      if (!this.playing || this.run !== run) return;
      const pace = REAL_TIME * this.speed;
      owed = drawing ? 0 : Math.min(owed + (Math.max(0, now - last) / 1000) * pace, pace / 4);
      last = now;
      const steps = Math.floor(owed);
      if (steps) {
        owed -= steps;
        drawing = true;
        this.seek(this.t + steps).then(() => (drawing = false));
        if (this.t >= this.length) return this.pause();
      }
      requestAnimationFrame(run);
    });
    requestAnimationFrame(run);
  }
}

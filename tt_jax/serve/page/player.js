// Shows frames at their rate, each once and in order, and says which; draws the drift over them.

// Reads the server's binary message: see tt_jax/serve/protocol.py.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const parts = header.parts.map((size) => {
    at += size;
    return buffer.slice(at - size, at);
  });
  const [drift, dropped, ...frames] = parts;
  return {
    ...header, frames, drift: new Float32Array(drift), dropped: new Uint8Array(dropped),
  };
}

export class Player {
  // shown(frame): after each; begun(chunk): with a chunk's first frame.
  constructor(video, map, { shown, begun, colour }) {
    Object.assign(this, { video, map, shown, begun, colour });
    this.fps = 16;
    this.overlay = false;
    this.clear();
    const tick = (now) => {
      this.#tick(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  get waiting() {
    return this.queue.length;
  }

  clear() {
    this.queue = [];
    this.due = 0;
    this.times = [];
    this.chunk = null;
    this.era = (this.era ?? 0) + 1;
    this.map.getContext("2d").clearRect(0, 0, this.map.width, this.map.height);
  }

  // Something to do once all that came before has been shown.
  then(act) {
    this.queue.push({ act });
  }

  async push(chunk) {
    // In line at once, so that order holds whichever is decoded first.
    const items = chunk.frames.map((data, i) => ({ frame: chunk.frame + i, chunk, first: i === 0 }));
    this.queue.push(...items);
    const era = this.era;
    await Promise.all(items.map(async (item, i) => {
      const blob = new Blob([chunk.frames[i]], { type: "image/jpeg" });
      const image = await createImageBitmap(blob);
      if (era === this.era) item.image = image;
      else image.close();
    }));
    chunk.frames = null;
  }

  // Frames a second, of the latest two seconds.
  get rate() {
    const [first, last] = [this.times[0], this.times.at(-1)];
    return this.times.length > 1 ? (1000 * (this.times.length - 1)) / (last - first) : 0;
  }

  #tick(now) {
    while (this.queue.length && this.queue[0].act) this.queue.shift().act();
    const item = this.queue[0];
    if (!item?.image || now < this.due - 2) return;
    this.queue.shift();
    const step = 1000 / this.fps;
    // Who is late goes on from now instead of hurrying.
    this.due = now - this.due > step ? now + step : this.due + step;
    this.times.push(now);
    if (this.times.length > 2 * this.fps) this.times.shift();
    const { video } = this;
    if (video.width !== item.image.width || video.height !== item.image.height) {
      [video.width, video.height] = [item.image.width, item.image.height];
    }
    video.getContext("2d").drawImage(item.image, 0, 0);
    item.image.close();
    video.dataset.frame = item.frame;
    if (item.first) {
      this.chunk = item.chunk;
      this.begun(item.chunk);
      this.drawMap();
    }
    this.shown(item.frame);
  }

  // Drift by token, stronger where larger; a frame around what was dropped.
  drawMap() {
    const { map, chunk } = this;
    const context = map.getContext("2d");
    const [width, height] = [map.clientWidth, map.clientHeight].map((side) => side * devicePixelRatio);
    [map.width, map.height] = [width, height];
    if (!this.overlay || !chunk) return;
    const [rows, columns] = chunk.grid;
    const [w, h] = [width / columns, height / rows];
    const most = Math.max(chunk.threshold ?? 0, ...chunk.drift) || 1;
    context.fillStyle = context.strokeStyle = this.colour("--warn");
    context.lineWidth = Math.max(1.5, 0.06 * w);
    for (let i = 0; i < rows * columns; i++) {
      const [x, y] = [(i % columns) * w, Math.floor(i / columns) * h];
      context.globalAlpha = 0.75 * (chunk.drift[i] / most);
      context.fillRect(x, y, w, h);
      context.globalAlpha = 1;
      if (chunk.dropped[i]) {
        const inset = context.lineWidth;
        context.strokeRect(x + inset, y + inset, w - 2 * inset, h - 2 * inset);
      }
    }
  }
}

// Principal components of patches as colours: one basis for the whole set, so that colours agree between images.

import { binary } from "/static/api.js";

const KEPT = 2000; // pictures
const AT_ONCE = 4; // requests

export class Colours {
  constructor(api, { onError, onColours }) {
    Object.assign(this, { api, onError, onColours, first: 0, kept: new Map(), queue: [], coming: new Set(), running: 0 });
  }

  /** Ask for images in sight; those asked for before and not in sight any more are dropped. */
  ask(rows, first) {
    if (first !== this.first) Object.assign(this, { first, kept: new Map(), coming: new Set() });
    this.queue = rows.filter((row) => !this.kept.has(row) && !this.coming.has(row));
    while (this.running < AT_ONCE && this.queue.length) this.run();
  }

  async run() {
    this.running++;
    try {
      while (this.queue.length) {
        const { first, coming } = this;
        const row = this.queue.shift();
        coming.add(row);
        try {
          const { header, bytes } = await binary(`${this.api}/pca/${row}?first=${first}`);
          if (first === this.first) this.keep(row, header.shape, new Uint8Array(bytes));
        } finally {
          coming.delete(row);
        }
      }
    } catch (error) {
      this.queue = [];
      this.onError(error);
    } finally {
      this.running--;
    }
  }

  keep(row, [height, width], values) {
    const picture = new ImageData(width, height);
    for (let index = 0; index < height * width; index++) {
      picture.data.set([values[3 * index], values[3 * index + 1], values[3 * index + 2], 255], index * 4);
    }
    if (this.kept.size >= KEPT) this.kept.delete(this.kept.keys().next().value);
    this.kept.set(row, picture);
    this.onColours(row);
  }

  picture(row) {
    return this.kept.get(row) ?? null;
  }
}

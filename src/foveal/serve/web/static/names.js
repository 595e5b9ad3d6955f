// What images are called: asked for by chunks when they come into sight, and kept for a while.

import { json } from "/static/api.js";

const CHUNK = 200; // images described at once
const MOST = 20_000; // images whose names are kept

export class Names {
  /**
   * @param {(error: Error) => void} onError
   * @param {(has: (row: number) => boolean) => void} onNames more is known, of the rows that `has` says
   */
  constructor(api, { onError, onNames }) {
    Object.assign(this, { api, onError, onNames, known: new Map(), asked: new Set() });
  }

  /** Return {row, uri, label} of an image, or undefined where it is not known yet. */
  get(row) {
    return this.known.get(row);
  }

  of(row) {
    return this.get(row)?.uri.split("/").slice(-2).join("/") ?? `image ${row + 1}`;
  }

  labelOf(row) {
    return this.get(row)?.label ?? null;
  }

  /** Keep what came with an answer. */
  add(images) {
    for (const image of images) this.known.set(image.row, image);
  }

  ask(rows) {
    if (this.known.size > MOST) this.forget();
    const missing = rows.filter((row) => !this.known.has(row));
    for (const start of new Set(missing.map((row) => row - (row % CHUNK)))) if (!this.asked.has(start)) this.fetch(start);
  }

  async fetch(start) {
    this.asked.add(start);
    try {
      this.add((await json(`${this.api}/images?start=${start}&count=${CHUNK}`)).images);
      this.onNames((row) => row >= start && row < start + CHUNK);
    } catch (error) {
      this.asked.delete(start);
      this.onError(error);
    }
  }

  forget() {
    this.known.clear();
    this.asked.clear();
  }
}

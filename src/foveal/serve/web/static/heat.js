// Similarity to one patch, over every image in sight. The server computes it: nothing but 256 bytes an image travel.

import { binary } from "/static/api.js";

// Dark blue over violet and orange to light yellow: lightness grows with the value, so it also reads without colour.
const STOPS = [[18, 12, 60], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

const AT_ONCE = 1000; // images
const KEPT = 4000; // maps: more than any window shows

export const cosineOf = (byte) => byte / 127.5 - 1;

/** Return red, green and blue of a share of the range, 0..1. */
export function colourOf(share) {
  const at = Math.max(0, Math.min(1, share)) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[low].map((value, channel) => Math.round(value + (at - low) * (STOPS[low + 1][channel] - value)));
}

export class Heat {
  /**
   * @param {(error: Error) => void} onError
   * @param {() => void} onHeat there is more to paint
   */
  constructor(api, { onError, onHeat }) {
    Object.assign(this, { api, onError, onHeat, query: null, maps: new Map(), wanted: null, busy: false });
  }

  /** Ask for the similarity of {row or upload, patch} to the images `rows`; the latest question wins. */
  ask(query, rows) {
    const key = query && JSON.stringify(query);
    if (key !== this.key) Object.assign(this, { key, query, next: new Map(), ranged: false });
    if (query === null) this.maps = new Map();
    this.wanted = query && rows;
    if (!this.busy) this.run();
  }

  async run() {
    this.busy = true;
    try {
      while (this.wanted) {
        const { key, query, next } = this;
        const missing = this.wanted.filter((row) => !next.has(row));
        const rows = missing.slice(0, AT_ONCE);
        this.wanted = missing.length > rows.length ? missing : null;
        if (rows.length === 0) continue;
        const { header, bytes } = await binary(`${this.api}/heat`, { ...query, rows });
        if (this.key !== key) continue;
        this.take(next, rows, header.shape, new Uint8Array(bytes));
      }
    } catch (error) {
      this.key = undefined;
      this.wanted = null;
      this.onError(error);
    } finally {
      this.busy = false;
    }
  }

  take(next, rows, [, height, width], values) {
    const size = height * width;
    rows.forEach((row, index) => next.set(row, { height, width, values: values.subarray(index * size, (index + 1) * size) }));
    for (const row of next.keys()) {
      if (next.size <= KEPT) break;
      next.delete(row); // the oldest: somebody scrolls through the set with a patch held
    }
    if (!this.ranged) this.range(values);
    this.maps = next;
    this.onHeat();
  }

  /** Colours run from the median of what was in sight to its highest value: the numbers are beside them. */
  range(values) {
    const counts = new Uint32Array(256);
    for (const value of values) counts[value]++;
    let low = 0;
    for (let seen = counts[0]; seen < values.length / 2; seen += counts[low]) low++;
    low = Math.min(low, 254);
    let high = 255;
    while (high > low + 1 && counts[high] === 0) high--;
    const shares = Array.from(counts, (_, value) => Math.max(0, Math.min(1, (value - low) / (high - low))));
    Object.assign(this, { low, high, ranged: true, colours: shares.map((share) => [...colourOf(share), 150 + 105 * share]) });
  }

  /** Return the cosine at a patch of an image, or null. */
  value(row, patch) {
    const map = this.maps === this.next ? this.maps.get(row) : undefined; // older maps are about another patch
    return map ? cosineOf(map.values[patch]) : null;
  }

  /** Return the pixels of an image's map, one a patch, or null. */
  picture(row) {
    const map = this.maps.get(row);
    if (!map) return null;
    const picture = new ImageData(map.width, map.height);
    map.values.forEach((value, index) => picture.data.set(this.colours[value], 4 * index));
    return Object.assign(picture, { isHeat: true });
  }
}

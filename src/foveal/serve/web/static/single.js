// One image, large: its patches under the pointer or the arrow keys.

const $ = (id) => document.getElementById(id);

export class Single {
  /** @param {object} told onPatch(patch, held), onBroken(source) */
  constructor(told) {
    Object.assign(this, { told, grid: null, patch: null });
    const over = $("large-over");
    over.addEventListener("pointermove", (event) => this.onPointer(event, false));
    over.addEventListener("click", (event) => this.onPointer(event, true));
    over.addEventListener("pointerleave", () => this.told.onPatch(null, false));
    over.addEventListener("keydown", (event) => this.onKey(event));
    $("large").addEventListener("load", () => { $("large").hidden = false; });
    $("large").addEventListener("error", () => this.told.onBroken($("large").src));
  }

  /** Show a picture. @param {[number, number]|null} grid patches down and across */
  show(name, source, grid) {
    Object.assign(this, { grid, patch: null });
    $("single").hidden = false;
    $("large-over").hidden = $("like-patch").hidden = $("let-go").hidden = grid === null;
    this.rename(name);
    this.load(source);
    this.paint(null);
    this.mark(null);
  }

  rename(name) {
    $("single-name").textContent = $("large").alt = name;
  }

  /** Load a picture, also again; until it is there none is shown, least of all the one of before. */
  load(source) {
    $("large").hidden = true;
    $("large-words").textContent = "";
    $("large").src = source;
  }

  /** Load the picture once more where it did not come. */
  again() {
    if ($("large").hidden && $("large").hasAttribute("src")) this.load($("large").src);
  }

  /** Say in place of the picture why it is not shown. */
  refuse(words) {
    $("large-words").textContent = words;
  }

  /** Say how wide pictures are, in heights. */
  aspect(value) {
    $("picture").style.aspectRatio = value;
  }

  paint(picture) {
    $("picture").classList.toggle("heated", picture?.isHeat === true);
    const over = $("large-over");
    over.width = picture?.width ?? 1;
    over.height = picture?.height ?? 1;
    if (picture) over.getContext("2d").putImageData(picture, 0, 0);
  }

  /** Draw a ring around a patch, or around none. */
  mark(patch) {
    this.patch = patch;
    ringAround($("large-ring"), patch, this.grid);
  }

  onPointer(event, held) {
    if (!this.grid) return;
    const [rows, columns] = this.grid;
    const box = $("large-over").getBoundingClientRect();
    const place = (at, start, length, count) => Math.min(count - 1, Math.max(0, Math.floor(((at - start) / length) * count)));
    const row = place(event.clientY, box.top, box.height, rows);
    this.told.onPatch(row * columns + place(event.clientX, box.left, box.width, columns), held);
  }

  onKey(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in moves) || !this.grid) return;
    event.preventDefault();
    const [rows, columns] = this.grid;
    const from = this.patch ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const inside = (value, count) => Math.min(count - 1, Math.max(0, value));
    const row = inside(Math.floor(from / columns) + moves[event.key][0], rows);
    this.told.onPatch(row * columns + inside((from % columns) + moves[event.key][1], columns), true);
  }
}

/** Put an element around a patch of the picture that its parent shows. */
export function ringAround(ring, patch, grid) {
  ring.hidden = patch === null || !grid;
  if (ring.hidden) return;
  const [rows, columns] = grid;
  const left = (patch % columns) / columns;
  const top = Math.floor(patch / columns) / rows;
  const [x, y, width, height] = [left, top, 1 / columns, 1 / rows].map((share) => `${100 * share}%`);
  Object.assign(ring.style, { left: x, top: y, width, height });
}

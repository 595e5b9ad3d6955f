// A grid of any number of images, of which only those in sight are in the page. One list box: arrow keys walk through it.

const EDGE = 3; // pixels around an image
const MARGIN = 1; // lines of images above and below what is in sight

export class Grid {
  /**
   * @param {HTMLElement} box scrolls; becomes the list box
   * @param {object} told of what happens: onVisible(cells), onHover(index, x, y), onLeave(), onActive(index), onOpen(index, x, y),
   *   onBroken(cell, src);
   *   x and y are 0..1 within the image, null by keyboard; `source(index)` gives {row, src, label, caption}
   */
  constructor(box, told) {
    Object.assign(this, { box, told, count: 0, least: 132, side: 132, aspect: 1, columns: 1, active: 0, cells: new Map(), asked: 0 });
    box.setAttribute("role", "listbox");
    box.tabIndex = 0;
    this.space = box.appendChild(document.createElement("div"));
    this.space.className = "space";
    this.space.setAttribute("role", "presentation");
    box.addEventListener("scroll", () => this.soon());
    box.addEventListener("keydown", (event) => this.onKey(event));
    for (const kind of ["pointermove", "click"]) this.space.addEventListener(kind, (event) => this.onPointer(event));
    box.addEventListener("pointerleave", () => this.told.onLeave());
    new ResizeObserver(() => this.soon()).observe(box);
  }

  /** Show `count` images from the start. */
  show(count) {
    this.clear();
    Object.assign(this, { count, active: 0 });
    this.box.scrollTop = 0;
    this.layout();
  }

  /** Make all images again: their source says something else. */
  clear() {
    for (const cell of this.cells.values()) this.drop(cell);
  }

  drop({ index, image, node }) {
    image.removeAttribute("src"); // what nobody sees need not be loaded
    node.remove();
    this.cells.delete(index);
  }

  resize(side) {
    this.least = side;
    this.layout();
  }

  soon() {
    if (!this.asked) this.asked = requestAnimationFrame(() => { this.asked = 0; this.layout(); });
  }

  layout() {
    if (this.box.clientWidth === 0) return; // hidden
    const width = this.space.clientWidth;
    const columns = Math.max(1, Math.floor(width / this.least));
    const side = Math.floor(width / columns);
    const first = Math.floor(this.box.scrollTop / this.side) * this.columns;
    const isOther = columns !== this.columns || side !== this.side;
    Object.assign(this, { columns, side });
    this.space.style.height = `${Math.ceil(this.count / columns) * side}px`;
    if (isOther) {
      this.clear();
      this.box.scrollTop = Math.floor(first / columns) * side; // what was in sight stays
    }
    const top = Math.max(0, Math.floor(this.box.scrollTop / this.side) - MARGIN) * columns;
    const lines = Math.ceil(this.box.clientHeight / this.side) + 2 * MARGIN + 1;
    const end = Math.min(this.count, top + lines * columns);
    for (const [index, cell] of this.cells) if (index < top || index >= end) this.drop(cell);
    for (let index = top; index < end; index++) if (!this.cells.has(index)) this.cells.set(index, this.make(index));
    this.mark();
    this.told.onVisible([...this.cells.values()]);
  }

  make(index) {
    const node = document.createElement("div");
    node.id = `image-${index}`;
    node.className = "cell";
    node.setAttribute("role", "option");
    node.setAttribute("aria-setsize", this.count);
    node.setAttribute("aria-posinset", index + 1);
    node.style.width = node.style.height = `${this.side}px`;
    node.style.transform = `translate(${(index % this.columns) * this.side}px, ${Math.floor(index / this.columns) * this.side}px)`;
    const frame = node.appendChild(document.createElement("div"));
    frame.className = "frame";
    const [width, height] = [Math.min(1, this.aspect), Math.min(1, 1 / this.aspect)].map((share) => share * (this.side - 2 * EDGE));
    Object.assign(frame.style, { width: `${width}px`, height: `${height}px` });
    Object.assign(frame.style, { left: `${(this.side - width) / 2}px`, top: `${(this.side - height) / 2}px` });
    const image = frame.appendChild(document.createElement("img"));
    image.alt = "";
    image.draggable = false;
    const over = frame.appendChild(document.createElement("canvas"));
    const ring = frame.appendChild(document.createElement("i"));
    ring.hidden = true;
    const caption = node.appendChild(document.createElement("span"));
    const { row, src } = this.told.source(index);
    const cell = { index, row, node, image, over, ring, caption };
    image.addEventListener("error", () => this.told.onBroken(cell, src));
    image.src = src;
    this.space.append(node);
    this.describe(cell);
    return cell;
  }

  /** Say again what an image is: more is known of it. */
  describe(cell) {
    const { label, caption } = this.told.source(cell.index);
    const words = cell.refused ? `${label}: ${cell.refused}` : label;
    cell.node.setAttribute("aria-label", words);
    cell.node.title = words;
    cell.caption.textContent = caption;
  }

  /** Say in the place of an image, shortly and at length, why it is not shown. */
  refuse(cell, short, words) {
    cell.refused = words;
    cell.node.classList.add("gone");
    cell.node.dataset.words = short;
    this.describe(cell);
  }

  mark() {
    for (const { index, node } of this.cells.values()) node.setAttribute("aria-selected", String(index === this.active));
    if (this.cells.has(this.active)) this.box.setAttribute("aria-activedescendant", `image-${this.active}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Make an image the one that keys move from, in sight. */
  go(index) {
    this.active = Math.max(0, Math.min(this.count - 1, index));
    const top = Math.floor(this.active / this.columns) * this.side;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + this.side > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.side - this.box.clientHeight;
    this.layout();
    this.told.onActive(this.active);
  }

  onKey(event) {
    if (this.count === 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = this.columns * Math.max(1, Math.floor(this.box.clientHeight / this.side));
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page };
    if (event.key in moves) {
      const index = this.active + moves[event.key];
      if (Math.abs(moves[event.key]) === page || (index >= 0 && index < this.count)) this.go(index);
    } else if (event.key === "Home") this.go(0);
    else if (event.key === "End") this.go(this.count - 1);
    else if (event.key === "Enter" || event.key === " ") this.told.onOpen(this.active, null, null);
    else return;
    event.preventDefault();
  }

  onPointer(event) {
    const node = event.target.closest(".cell");
    if (!node) return this.told.onLeave();
    const index = Number(node.getAttribute("aria-posinset")) - 1;
    const within = node.querySelector(".frame").getBoundingClientRect();
    const share = (at, start, length) => Math.min(0.9999, Math.max(0, (at - start) / length));
    const x = share(event.clientX, within.left, within.width);
    const y = share(event.clientY, within.top, within.height);
    if (event.type === "pointermove") return this.told.onHover(index, x, y);
    this.active = index;
    this.mark();
    return this.told.onOpen(index, x, y);
  }
}

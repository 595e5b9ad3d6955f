// A map of the set: one point an image. Zoom, move, and draw around points: with a pointer or with keys.

const SMALL = 3; // pixels of a point where there are many
const LARGE = 7; // where there are few
const MANY = 3000;
const NEAR = 14; // pixels within which a pointer means a point
// Ten colours for classes, of a contrast of 3 or more to both grounds; the class is also said in words.
export const COLOURS = ["#3b7dd8", "#c4611a", "#3d8f4e", "#c0445c", "#8c62c8", "#1f8a8a", "#a8742a", "#b0559e", "#6f7f1f", "#6b7480"];

export class Scatter {
  /** @param {object} told onNear(row or null, left, top), onOpen(row), onSelect(rows), onWords(text) */
  constructor(canvas, told) {
    Object.assign(this, { canvas, told, points: new Float32Array(0), groups: null, picked: new Set(), lasso: [], drawing: false, cross: null, marked: null });
    Object.assign(this, { scale: 1, x: 0, y: 0, tool: "lasso", asked: 0 });
    canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    canvas.addEventListener("pointermove", (event) => this.onMove(event));
    canvas.addEventListener("pointerup", (event) => this.onUp(event));
    canvas.addEventListener("pointerleave", () => this.told.onNear(null));
    canvas.addEventListener("pointercancel", () => { Object.assign(this, { drawing: false, lasso: [] }); this.soon(); });
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", () => { this.cross = null; this.told.onNear(null); this.soon(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.soon());
    new ResizeObserver(() => this.soon()).observe(canvas);
  }

  /** @param {Float32Array} points x and y of every image, 0..1 */
  show(points) {
    Object.assign(this, { points, lasso: [] });
    this.soon();
  }

  /** @param {number[]} groups number of the class of every image, -1 for none */
  colour(groups) {
    this.groups = groups;
    this.soon();
  }

  select(rows) {
    this.picked = new Set(rows);
    this.soon();
    this.told.onSelect(rows);
  }

  /** Draw a ring around the point of an image that is open, or around none. */
  mark(row) {
    this.marked = row;
    this.soon();
  }

  soon() {
    if (!this.asked) this.asked = requestAnimationFrame(() => { this.asked = 0; this.draw(); });
  }

  get edge() {
    return Math.max(1, Math.min(this.canvas.clientWidth, this.canvas.clientHeight) - 24);
  }

  /** Where a point of the map is on the canvas, in CSS pixels. */
  at(x, y) {
    const size = this.edge * this.scale;
    return [this.canvas.clientWidth / 2 + (x - 0.5) * size + this.x, this.canvas.clientHeight / 2 + (y - 0.5) * size + this.y];
  }

  back(left, top) {
    const size = this.edge * this.scale;
    return [(left - this.canvas.clientWidth / 2 - this.x) / size + 0.5, (top - this.canvas.clientHeight / 2 - this.y) / size + 0.5];
  }

  draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    pen.scale(ratio, ratio);
    const size = this.points.length > 2 * MANY ? SMALL : LARGE;
    const accent = style.getPropertyValue("--accent");
    for (let row = 0; row < this.points.length / 2; row++) {
      const [left, top] = this.at(this.points[2 * row], this.points[2 * row + 1]);
      pen.fillStyle = this.groups && this.groups[row] >= 0 ? COLOURS[this.groups[row] % COLOURS.length] : accent;
      pen.fillRect(left - size / 2, top - size / 2, size, size);
    }
    pen.strokeStyle = style.color;
    pen.lineWidth = 1.5;
    for (const row of this.picked) {
      const [left, top] = this.at(this.points[2 * row], this.points[2 * row + 1]);
      pen.strokeRect(left - size / 2 - 2, top - size / 2 - 2, size + 4, size + 4);
    }
    if (this.marked !== null) {
      pen.beginPath();
      pen.arc(...this.at(this.points[2 * this.marked], this.points[2 * this.marked + 1]), size + 3, 0, 2 * Math.PI);
      pen.stroke();
    }
    this.drawLasso(pen, style.color);
  }

  drawLasso(pen, colour) {
    pen.strokeStyle = colour;
    pen.setLineDash([6, 4]);
    pen.beginPath();
    for (const [x, y] of this.lasso) pen.lineTo(...this.at(x, y));
    pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
    if (!this.cross) return;
    const [left, top] = this.cross;
    pen.beginPath();
    for (const [dx, dy] of [[12, 0], [0, 12]]) {
      pen.moveTo(left - dx, top - dy);
      pen.lineTo(left + dx, top + dy);
    }
    pen.stroke();
  }

  nearest(left, top) {
    let best = null;
    let least = NEAR * NEAR;
    for (let row = 0; row < this.points.length / 2; row++) {
      const [x, y] = this.at(this.points[2 * row], this.points[2 * row + 1]);
      const far = (x - left) ** 2 + (y - top) ** 2;
      if (far < least) [best, least] = [row, far];
    }
    return best;
  }

  /** Say which point is near a place, and where that point is. */
  near(left, top) {
    const row = this.nearest(left, top);
    if (row === null) this.told.onNear(null);
    else this.told.onNear(row, ...this.at(this.points[2 * row], this.points[2 * row + 1]));
  }

  /** Select what lies within the line that was drawn: a point is inside where a ray from it crosses the line an odd number of times. */
  close() {
    const line = this.lasso;
    this.lasso = [];
    if (line.length < 3) return this.soon();
    const rows = [];
    for (let row = 0; row < this.points.length / 2; row++) {
      if (isInside(this.points[2 * row], this.points[2 * row + 1], line)) rows.push(row);
    }
    return this.select(rows);
  }

  onDown(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.start = [event.offsetX, event.offsetY];
    this.drawing = true;
    this.told.onNear(null);
    this.lasso = this.tool === "lasso" ? [this.back(...this.start)] : [];
  }

  onMove(event) {
    const here = [event.offsetX, event.offsetY];
    if (!this.drawing) return this.near(...here);
    if (this.tool === "lasso") this.lasso.push(this.back(...here));
    else {
      this.x += event.movementX;
      this.y += event.movementY;
    }
    return this.soon();
  }

  onUp(event) {
    if (!this.drawing) return;
    this.drawing = false;
    const moved = Math.hypot(event.offsetX - this.start[0], event.offsetY - this.start[1]);
    if (moved >= 4 || this.lasso.length > 8) return void (this.tool === "lasso" && this.close());
    this.lasso = [];
    this.soon();
    const row = this.nearest(event.offsetX, event.offsetY);
    if (row !== null) this.told.onOpen(row);
  }

  onWheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }

  zoom(factor, left = this.canvas.clientWidth / 2, top = this.canvas.clientHeight / 2) {
    const [x, y] = this.back(left, top);
    this.scale = Math.max(0.5, Math.min(200, this.scale * factor));
    const [nowLeft, nowTop] = this.at(x, y);
    this.x += left - nowLeft;
    this.y += top - nowTop;
    this.soon();
  }

  whole() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.soon();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 40 : 10;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) this.moveCross(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25, ...(this.cross ?? []));
    else if (event.key === "-") this.zoom(0.8, ...(this.cross ?? []));
    else if (event.key === "0") this.whole();
    else if (event.key === " ") this.corner();
    else if (event.key === "Escape" && this.lasso.length) this.lasso = [];
    else if (event.key === "Enter") this.enter();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.soon();
  }

  moveCross(dx, dy) {
    const [left, top] = this.cross ?? [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    this.cross = [
      Math.max(0, Math.min(this.canvas.clientWidth, left + dx)),
      Math.max(0, Math.min(this.canvas.clientHeight, top + dy)),
    ];
    this.near(...this.cross);
  }

  corner() {
    this.moveCross(0, 0);
    this.lasso.push(this.back(...this.cross));
    this.told.onWords(`${this.lasso.length} corners; Enter selects what lies between three or more.`);
  }

  enter() {
    if (this.lasso.length >= 3) return this.close();
    const row = this.cross && this.nearest(...this.cross);
    if (row !== null) this.told.onOpen(row);
    return undefined;
  }
}

function isInside(x, y, line) {
  let inside = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [ax, ay] = line[i];
    const [bx, by] = line[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

// The image with its masks, and what a person does on it: clicks, strokes, boxes, and a cross for the keyboard.

const PATTERN = 9; // pixels between the stripes of a mask
const LONGER_SIDE = 960; // small pictures are shown larger

export class MaskCanvas {
  /**
   * @param {HTMLCanvasElement} element
   * @param {(prompt: object) => void} onPrompt told of what was done, in pixels of the original
   */
  constructor(element, onPrompt) {
    Object.assign(this, { element, onPrompt, tool: "point", positive: true, prompts: [], layers: [], preview: null, cross: null, path: null });
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", () => this.leave());
    for (const change of ["focus", "blur"]) element.addEventListener(change, () => this.draw()); // with the cross, or without
    element.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Show a picture whose original has width x height pixels; size decides how strokes look. @param {ImageBitmap|null} picture */
  show(picture, width, height) {
    this.picture?.close();
    Object.assign(this, { picture, width, height, layers: [], prompts: [], preview: null, path: null });
    const scale = picture ? Math.max(1, LONGER_SIDE / Math.max(picture.width, picture.height)) : 1;
    this.element.width = Math.round((picture?.width ?? 640) * scale);
    this.element.height = Math.round((picture?.height ?? 480) * scale);
    this.cross = { x: width / 2, y: height / 2 };
    this.draw();
  }

  place(event) {
    const box = this.element.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width - 0.5;
    const y = ((event.clientY - box.top) / box.height) * this.height - 0.5;
    return [Math.min(Math.max(x, 0), this.width - 1), Math.min(Math.max(y, 0), this.height - 1)];
  }

  get radius() {
    return Math.max(1, Math.round(Math.max(this.width, this.height) / 100));
  }

  down(event) {
    if (!this.picture || ![0, 2].includes(event.button)) return;
    this.element.focus();
    this.element.setPointerCapture(event.pointerId);
    this.path = { points: [this.place(event)], positive: this.positive !== (event.button === 2 || event.altKey) };
    this.draw();
  }

  move(event) {
    if (!this.path) return;
    if (this.tool === "stroke" && this.path.points.length < 1000) this.path.points.push(this.place(event));
    if (this.tool === "box") this.path.points[1] = this.place(event);
    this.draw();
  }

  up(event) {
    if (!this.path) return;
    const { points, positive } = this.path;
    this.path = null;
    if (this.tool === "box" && points.length < 2) return this.draw();
    this.onPrompt({ kind: this.tool, points, positive, radius: this.tool === "stroke" ? this.radius : 0 });
  }

  leave() {
    this.path = null;
    this.draw();
  }

  /** Move the cross of the keyboard by steps of 1/50 of the picture, 1/200 when fine. */
  step(dx, dy, fine) {
    if (!this.picture) return;
    const step = Math.max(1, Math.max(this.width, this.height) / (fine ? 200 : 50));
    this.cross.x = Math.min(Math.max(this.cross.x + dx * step, 0), this.width - 1);
    this.cross.y = Math.min(Math.max(this.cross.y + dy * step, 0), this.height - 1);
    this.draw();
  }

  draw() {
    const context = this.element.getContext("2d");
    context.clearRect(0, 0, this.element.width, this.element.height);
    if (!this.picture) return;
    context.drawImage(this.picture, 0, 0, this.element.width, this.element.height);
    const scale = this.element.width / this.width;
    const size = this.element.width / (this.element.clientWidth || this.element.width); // of one pixel on the screen
    for (const layer of this.layers) drawMask(context, layer.bitmap, layer.colour, layer.name, size);
    if (this.preview) drawMask(context, this.preview, "#00c2ff", "new", size);
    const marks = [...this.prompts, ...(this.path ? [{ ...this.path, kind: this.tool, radius: this.radius }] : [])];
    for (const one of marks) drawPrompt(context, one, scale, size);
    if (document.activeElement === this.element) drawCross(context, (this.cross.x + 0.5) * scale, (this.cross.y + 0.5) * scale, size);
  }
}

const painted = new WeakMap(); // bitmap -> what was painted of it, since moving the pointer draws all again

/** Stripes inside, a line around, and the name: no mask is told by its colour alone. */
export function drawMask(context, bitmap, colour, name, size = 1) {
  const { width, height } = context.canvas;
  const key = `${colour} ${width} ${height}`;
  if (painted.get(bitmap)?.key !== key) painted.set(bitmap, { key, ...paint(bitmap, colour, width, height) });
  const { layer, top } = painted.get(bitmap);
  context.drawImage(layer, 0, 0);
  if (top) label(context, name, Math.min(top[0] + 3 * size, width - 60 * size), Math.max(top[1] - 4 * size, 14 * size), size);
}

function paint(bitmap, colour, width, height) {
  const layer = new OffscreenCanvas(width, height);
  const inner = layer.getContext("2d", { willReadFrequently: true });
  inner.drawImage(bitmap, 0, 0, width, height);
  const { data } = inner.getImageData(0, 0, width, height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x)] > 127;
  const out = new ImageData(width, height);
  let top = null;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      top ??= [x, y];
      const edge = !inside(x - 2, y) || !inside(x + 2, y) || !inside(x, y - 2) || !inside(x, y + 2);
      out.data.set([red, green, blue, edge ? 255 : (x + y) % PATTERN < 3 ? 170 : 60], 4 * (y * width + x));
    }
  }
  inner.putImageData(out, 0, 0);
  return { layer, top };
}

function label(context, text, x, y, size) {
  context.font = `bold ${13 * size}px system-ui, sans-serif`;
  context.lineWidth = 3 * size;
  context.strokeStyle = "#000000";
  context.fillStyle = "#ffffff";
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

function drawPrompt(context, { kind, points, positive, radius }, scale, size) {
  const places = points.map(([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale]);
  context.strokeStyle = positive ? "#ffffff" : "#ffd000";
  context.lineWidth = kind === "stroke" ? Math.max(2, 2 * radius * scale) : 2 * size;
  context.globalAlpha = kind === "stroke" ? 0.6 : 1;
  context.beginPath();
  if (kind === "box" && places.length > 1) context.rect(...places[0], places[1][0] - places[0][0], places[1][1] - places[0][1]);
  else places.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
  context.globalAlpha = 1;
  const [x, y] = places[0];
  context.beginPath();
  context.arc(x, y, 8 * size, 0, 2 * Math.PI);
  context.fillStyle = positive ? "#0b6b2a" : "#8a1010";
  context.fill();
  context.lineWidth = 2 * size;
  context.strokeStyle = "#ffffff";
  context.stroke();
  context.beginPath();
  context.moveTo(x - 4 * size, y);
  context.lineTo(x + 4 * size, y);
  if (positive) {
    context.moveTo(x, y - 4 * size);
    context.lineTo(x, y + 4 * size);
  }
  context.stroke();
}

function drawCross(context, x, y, size) {
  for (const [colour, width] of [["#000000", 3], ["#ffffff", 1]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * size;
    context.beginPath();
    context.moveTo(x - 12 * size, y);
    context.lineTo(x + 12 * size, y);
    context.moveTo(x, y - 12 * size);
    context.lineTo(x, y + 12 * size);
    context.stroke();
  }
}

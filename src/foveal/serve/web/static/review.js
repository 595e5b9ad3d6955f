// What was proposed, as a grid: accepted, rejected, corrected.

import { drawMask } from "/static/canvas.js";
import { newName } from "/static/outbox.js";

const COUNT = 24;

export class ReviewMode {
  /** @param {(annotation: object) => Promise} open shows what is to be corrected */
  constructor(page, open) {
    Object.assign(this, { page, open, start: 0, total: 0, items: [], tiles: new Map(), loads: 0, summary: "" });
    const { $ } = page;
    $("review-filter").addEventListener("change", () => {
      Object.assign(this, { start: 0, summary: "" });
      page.run(() => this.load());
    });
    $("propose").addEventListener("click", () => page.run(() => this.propose({ what: "labels" })));
    $("propose-masks").addEventListener("click", () => page.run(() => this.proposeMasks()));
    $("accept-all").addEventListener("click", () => page.run(() => this.send(this.items, "accepted")));
    $("page-back").addEventListener("click", () => this.turn(-COUNT));
    $("page-on").addEventListener("click", () => this.turn(COUNT));
    this.keys = {
      a: () => this.judge("accepted"), x: () => this.judge("rejected"), c: () => this.correct(), g: () => this.propose({ what: "labels" }), m: () => this.proposeMasks(),
      ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1), ArrowUp: () => this.move(-this.columns()), ArrowDown: () => this.move(this.columns()),
    };
  }

  get state() {
    return this.page.$("review-filter").value;
  }

  turn(by) {
    this.start = Math.max(0, this.start + by < this.total ? this.start + by : this.start);
    this.page.run(() => this.load());
  }

  async load() {
    const number = ++this.loads;
    const found = await this.page.json(`annotations?state=${this.state}&start=${this.start}&count=${COUNT}`);
    if (number !== this.loads) return undefined; // a later answer counts
    if (!found.annotations.length && this.start) {
      this.start = 0;
      return this.load();
    }
    this.total = found.total;
    this.show(found.annotations);
    this.page.$("review-words").textContent = found.total
      ? `Images ${this.start + 1} to ${Math.min(this.start + COUNT, found.total)} of ${found.total} ${this.state}. ${this.summary}`
      : `Nothing is ${this.state}. ${this.summary}`;
    this.page.$("accept-all").disabled = this.state === "accepted" || !this.items.length;
    this.page.$("page-back").disabled = this.start === 0;
    this.page.$("page-on").disabled = this.start + COUNT >= found.total;
    return undefined;
  }

  /** Show these; a tile that stays keeps the focus, wherever it is then. */
  show(items) {
    const [at, focused, known] = [this.at(), document.activeElement, this.tiles];
    this.items = items;
    this.tiles = new Map(items.map((one) => [nameOf(one), known.get(nameOf(one)) ?? this.tile(one)]));
    this.page.$("tiles").replaceChildren(...this.tiles.values());
    if (this.page.$("tiles").contains(focused)) focused.focus({ preventScroll: true });
    else if (at >= 0) this.focus(at);
  }

  tile(one) {
    const tile = Object.assign(document.createElement("li"), { tabIndex: 0, className: one.state });
    const pictures = Object.assign(document.createElement("div"), { className: "pictures" });
    pictures.append(Object.assign(new Image(), { src: this.page.at(`pictures/${one.image}?side=320`), alt: `Image ${one.uri}`, loading: "lazy" }));
    if (one.kind === "mask") {
      pictures.append(this.overlay(one));
    }
    const sure = one.score === null ? "" : `, ${Math.round(100 * one.score)} %`;
    const words = Object.assign(document.createElement("p"), { className: "words", textContent: `${one.class_name}${sure}, ${one.state}` });
    words.append(Object.assign(document.createElement("span"), { textContent: one.uri }));
    tile.append(pictures, words);
    const buttons = [["Accept", () => this.send([one], "accepted")], ["Reject", () => this.send([one], "rejected")]];
    if (one.kind === "mask") buttons.push(["Correct", () => this.open(one)]);
    for (const [name, act] of buttons) {
      const button = Object.assign(document.createElement("button"), { textContent: name, tabIndex: -1 });
      button.addEventListener("click", () => this.page.run(act));
      tile.append(button, " ");
    }
    tile.setAttribute("aria-label", `${one.class_name}${sure}, ${one.state}. ${one.uri}`);
    return tile;
  }

  /** The mask of a tile, striped and outlined as it is where it is drawn. */
  overlay(one) {
    const canvas = Object.assign(document.createElement("canvas"), { className: "mask", width: 1, height: 1 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Its mask of ${one.class_name}`);
    const colour = this.page.project.classes.find((found) => found.name === one.class_name)?.colour ?? "#888888";
    const draw = async () => {
      const { bytes } = await this.page.binary(`masks/${one.id}?side=320`);
      const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
      drawMask(canvas.getContext("2d"), bitmap, colour, "");
    };
    draw().catch(() => canvas.setAttribute("aria-label", "Its mask is gone"));
    return canvas;
  }

  at() {
    return [...this.page.$("tiles").children].findIndex((tile) => tile.contains(document.activeElement));
  }

  focus(at) {
    const tiles = this.page.$("tiles").children;
    tiles[Math.min(Math.max(at, 0), tiles.length - 1)]?.focus();
  }

  move(by) {
    this.focus(this.at() < 0 ? 0 : this.at() + by);
  }

  columns() {
    const tiles = [...this.page.$("tiles").children];
    return tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
  }

  judge(state, className = null) {
    const one = this.focused();
    return one && this.send([one], state, className);
  }

  correct() {
    const one = this.focused();
    if (one?.kind === "mask") return this.open(one);
    if (one) this.page.tell("Press the number of the right class; only masks are corrected by clicks.");
    return undefined;
  }

  /** What the keys are for; the first one gets the focus where none has it, and is not decided about unseen. */
  focused() {
    const at = this.at();
    if (at < 0) this.focus(0);
    return this.items[at];
  }

  send(items, state, className = null) {
    if (!items.length) return undefined;
    const annotations = items.map((one) => [one.id, one.revision]);
    this.show(this.items.filter((one) => !items.includes(one))); // the next key is for the next one
    return this.page.change({ act: "judge", annotations, state, class_name: className });
  }

  /** Look for what is masked in the images most like those that have a mask of the class. */
  proposeMasks() {
    const count = Number(this.page.$("similar-count").value);
    return this.propose({ what: "similar", class_name: this.page.nameClass(), count });
  }

  /** Ask for proposals; they take the place of those that nobody has decided about. */
  async propose(wanted) {
    if (this.looking) return;
    this.looking = true;
    this.progress();
    try {
      await this.page.outbox.answered(); // a mask that was just kept teaches too
      const found = await this.page.work("propose", { client: this.page.client, request: newName(), wanted }, (done) => this.progress(done));
      Object.assign(this, { start: 0, summary: found.summary });
      this.page.$("review-filter").value = found.num_proposed ? "proposed" : "unsure";
    } finally {
      this.looking = false;
      await this.load();
    }
  }

  /** Say how far the server is with what this window or another one asked for. */
  progress(done) {
    const was = this.shows;
    this.shows = Boolean(done || this.looking);
    const words = done ? `: ${done[0]} of ${done[1]} …` : " …";
    if (this.shows) this.page.$("review-words").textContent = `Looking at the other images${words}`;
    else if (was) this.page.attempt(() => this.load());
  }
}

const nameOf = (one) => `${one.id} ${one.revision} ${one.class_name}`;

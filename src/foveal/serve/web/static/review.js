// What was proposed, as a grid: accepted, rejected, corrected.

import { newName } from "/static/outbox.js";

const API = "/annotate/api";
const COUNT = 24;

export class ReviewMode {
  /** @param {(index: number) => void} open shows an image for its mask to be corrected */
  constructor(page, open) {
    Object.assign(this, { page, open, start: 0, total: 0, items: [] });
    const { $ } = page;
    $("review-filter").addEventListener("change", () => {
      this.start = 0;
      page.run(() => this.load());
    });
    $("propose").addEventListener("click", () => page.run(() => this.propose()));
    $("accept-all").addEventListener("click", () => page.run(() => this.send(this.items, "accepted")));
    $("page-back").addEventListener("click", () => this.turn(-COUNT));
    $("page-on").addEventListener("click", () => this.turn(COUNT));
    this.keys = {
      a: () => this.judge("accepted"), x: () => this.judge("rejected"), c: () => this.correct(), g: () => this.propose(),
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
    const found = await this.page.json(`${API}/annotations?state=${this.state}&start=${this.start}&count=${COUNT}`);
    if (!found.annotations.length && this.start) {
      this.start = 0;
      return this.load();
    }
    this.total = found.total;
    this.items = found.annotations;
    const at = this.at();
    this.page.$("tiles").replaceChildren(...this.items.map((one) => this.tile(one)));
    this.page.$("review-words").textContent = found.total
      ? `${this.start + 1} to ${this.start + this.items.length} of ${found.total} ${this.state}.`
      : `Nothing is ${this.state}.`;
    this.page.$("accept-all").disabled = this.state === "accepted" || !this.items.length;
    this.page.$("page-back").disabled = this.start === 0;
    this.page.$("page-on").disabled = this.start + COUNT >= found.total;
    if (at >= 0) this.focus(at);
    return undefined;
  }

  tile(one) {
    const tile = Object.assign(document.createElement("li"), { tabIndex: 0, className: one.state });
    const pictures = Object.assign(document.createElement("div"), { className: "pictures" });
    pictures.append(Object.assign(new Image(), { src: `${API}/pictures/${one.image}?side=320`, alt: `Image ${one.uri}`, loading: "lazy" }));
    if (one.kind === "mask") {
      pictures.append(Object.assign(new Image(), { src: `${API}/masks/${one.id}?side=320`, alt: `Its mask of ${one.class_name}`, className: "mask" }));
    }
    const sure = one.score === null ? "" : `, ${Math.round(100 * one.score)} %`;
    const words = Object.assign(document.createElement("p"), { className: "words", textContent: `${one.class_name}${sure}, ${one.state}. ${one.uri}` });
    tile.append(pictures, words);
    const buttons = [["Accept", () => this.send([one], "accepted")], ["Reject", () => this.send([one], "rejected")]];
    if (one.kind === "mask") buttons.push(["Correct", () => this.open(one.image)]);
    for (const [name, act] of buttons) {
      const button = Object.assign(document.createElement("button"), { textContent: name, tabIndex: -1 });
      button.addEventListener("click", () => this.page.run(act));
      tile.append(button, " ");
    }
    tile.setAttribute("aria-label", words.textContent);
    return tile;
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
    const one = this.items[Math.max(this.at(), 0)];
    return one && this.send([one], state, className);
  }

  correct() {
    const one = this.items[Math.max(this.at(), 0)];
    return one && this.open(one.image);
  }

  send(items, state, className = null) {
    if (!items.length) return undefined;
    const annotations = items.map((one) => [one.id, one.revision]);
    return this.page.change({ act: "judge", annotations, state, class_name: className });
  }

  async propose() {
    this.page.$("review-words").textContent = "Looking at the other images …";
    const request = { client: this.page.client, request: newName() };
    let found;
    try {
      found = await this.page.json(`${API}/propose`, request);
    } finally {
      await this.load();
    }
    this.page.$("review-filter").value = found.num_proposed ? "proposed" : "unsure";
    await this.load();
    this.page.$("review-words").textContent = found.summary;
  }
}

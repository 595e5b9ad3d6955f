// Masks of one image: what is shown, what it makes, and what is kept.

import { isPassing } from "/static/api.js";
import { MaskCanvas } from "/static/canvas.js";

export class MaskMode {
  constructor(page) {
    this.page = page;
    this.image = null;
    this.corrects = null; // an annotation whose mask is made anew
    this.wanted = 0; // number of the image that is shown, or on its way
    this.failure = ""; // why its picture is not there
    this.asked = this.shows = this.reloads = 0; // of several answers the last one counts
    this.bitmaps = new Map(); // of the masks that are kept, by id and revision
    this.looking = null; // the answer to the last click
    this.canvas = new MaskCanvas(page.$("canvas"), (prompt) => page.run(() => this.add(prompt)));
    const { $ } = page;
    $("take-mask").addEventListener("click", () => page.run(() => this.take()));
    $("find-similar").addEventListener("click", () => page.run(() => page.spread("similar")));
    $("follow-video").addEventListener("click", () => page.run(() => page.spread("video")));
    $("clear-mask").addEventListener("click", () => this.clear());
    $("previous").addEventListener("click", () => page.run(() => this.go(-1)));
    $("following").addEventListener("click", () => page.run(() => this.go(1)));
    for (const tool of ["point", "stroke", "box"]) $(`tool-${tool}`).addEventListener("click", () => this.setTool(tool));
    $("sign-positive").addEventListener("click", () => this.setSign(true));
    $("sign-negative").addEventListener("click", () => this.setSign(false));
    this.keys = {
      Enter: () => this.take(), Escape: () => this.clear(), Backspace: () => this.takeBack(),
      p: () => this.setTool("point"), b: () => this.setTool("stroke"), r: () => this.setTool("box"),
      n: () => this.setSign(!this.canvas.positive), g: () => this.page.spread("similar"), v: () => this.page.spread("video"), "[": () => this.go(-1), "]": () => this.go(1), s: () => this.go(1),
      ArrowLeft: (event) => this.canvas.step(-1, 0, event.shiftKey), ArrowRight: (event) => this.canvas.step(1, 0, event.shiftKey),
      ArrowUp: (event) => this.canvas.step(0, -1, event.shiftKey), ArrowDown: (event) => this.canvas.step(0, 1, event.shiftKey),
      " ": (event) => this.clickAtCross(!event.shiftKey),
    };
  }

  start() {
    this.page.$("canvas").focus();
    return this.image ? this.reload() : this.show(0);
  }

  /** Show an image, once it and its picture are there: a click is always for what is seen. */
  async show(index) {
    const number = ++this.shows;
    this.wanted = index;
    try {
      const [image, picture] = await Promise.all([this.page.json(`images/${index}`), this.pictureOf(index)]);
      if (number !== this.shows) return;
      this.asked++; // answers to clicks on the image before are not for this one
      Object.assign(this, { image, corrects: null, failure: picture.failure ?? "" });
      this.canvas.show(picture.bitmap ?? null, image.width, image.height);
    } catch (error) {
      if (number === this.shows) this.wanted = this.image?.index ?? 0;
      throw error;
    }
    this.page.$("canvas").focus();
    this.say();
    await this.drawLayers();
  }

  async pictureOf(index) {
    try {
      return { bitmap: await createImageBitmap(await this.page.picture(index)) };
    } catch (error) {
      if (isPassing(error)) throw error;
      return { failure: error.message };
    }
  }

  /** Read again what is said of the image. */
  async reload() {
    if (!this.image) return;
    const number = ++this.reloads;
    const found = await this.page.json(`images/${this.image.index}`);
    if (number !== this.reloads || found.index !== this.image.index) return;
    this.image = found;
    this.say();
    await this.drawLayers();
  }

  async drawLayers() {
    const { image } = this;
    this.list();
    const colours = Object.fromEntries(this.page.project.classes.map((one) => [one.name, one.colour]));
    const masks = image.annotations.filter((one) => one.kind === "mask" && one.state !== "rejected" && one.id !== this.corrects?.id);
    const known = this.bitmaps;
    this.bitmaps = new Map(masks.map((one) => [`${one.id} ${one.revision}`, known.get(`${one.id} ${one.revision}`) ?? this.bitmapOf(one)]));
    const bitmaps = await Promise.all(this.bitmaps.values());
    if (image !== this.image) return;
    const layers = masks.map((one, at) => ({
      bitmap: bitmaps[at],
      colour: colours[one.class_name] ?? "#888888",
      name: one.state === "accepted" ? one.class_name : `${one.class_name}, ${one.state}`,
    }));
    this.canvas.layers = layers.filter((one) => one.bitmap);
    this.canvas.draw();
  }

  /** The picture of a mask; null where another window has taken it away meanwhile. */
  async bitmapOf({ id, revision }) {
    try {
      return await bitmapFrom(await this.page.binary(`masks/${id}?side=1280`));
    } catch (error) {
      this.bitmaps.delete(`${id} ${revision}`);
      if (error.code === "mask_not_found") return null;
      throw error;
    }
  }

  list() {
    const { page } = this;
    const rows = this.image.annotations.map((one) => {
      const row = document.createElement("li");
      row.append(`${one.kind} ${one.class_name}, ${one.state} `);
      const add = (words, act) => {
        const button = Object.assign(document.createElement("button"), { textContent: words });
        button.addEventListener("click", () => page.run(act));
        row.append(button, " ");
      };
      if (one.state !== "accepted") add("Accept", () => page.change({ act: "judge", annotations: [[one.id, one.revision]], state: "accepted" }));
      if (one.kind === "mask") add("Correct", () => this.correct(one));
      add("Remove", () => page.change({ act: "remove", annotations: [[one.id, one.revision]] }));
      return row;
    });
    page.fill(page.$("annotations"), rows);
    page.$("place").textContent = `${this.image.index + 1} of ${page.project.num_images}: ${this.image.uri}`;
  }

  async correct(annotation) {
    this.corrects = annotation;
    this.canvas.prompts = annotation.prompts.length ? annotation.prompts.map((one) => ({ ...one })) : promptsAround(annotation.box);
    this.page.chooseNamed(annotation.class_name);
    await Promise.all([this.drawLayers(), this.look()]);
  }

  async add(prompt) {
    if (!this.canvas.picture) return;
    this.page.nameClass();
    this.canvas.prompts.push(prompt);
    this.canvas.draw();
    await this.look();
  }

  /** Show what the prompts make. */
  look() {
    this.looking = this.preview();
    return this.looking;
  }

  async preview() {
    const asked = ++this.asked;
    const { prompts } = this.canvas;
    if (!prompts.some((one) => one.positive)) {
      this.canvas.preview = null;
      this.canvas.draw();
      return this.say();
    }
    this.page.$("mask-words").textContent = "Looking for it …";
    let found;
    try {
      found = await this.page.binary("masks", { image: this.image.index, prompts });
    } catch (error) {
      if (asked === this.asked) this.say();
      throw error;
    }
    const bitmap = await bitmapFrom(found);
    if (asked !== this.asked) return bitmap.close(); // a later click is being answered
    this.canvas.preview = found.header.num_pixels > 0 && bitmap; // false where nothing is found
    this.canvas.draw();
    return this.say();
  }

  say() {
    const { $, className } = this.page;
    const { prompts, preview, positive } = this.canvas;
    $("take-mask").disabled = !preview;
    $("clear-mask").disabled = !prompts.length;
    if (this.failure) {
      $("mask-words").textContent = `It cannot be shown: ${this.failure}`;
      return;
    }
    const none = this.page.project.classes.length ? "No class is chosen: press the number of one. " : "Add a class first. ";
    const what = className ? `Class: ${className}. ` : none;
    const nothing = preview === false ? "Nothing is found so. " : "";
    const given = prompts.length ? `${prompts.length} given. ` : "";
    const next = preview ? "Enter keeps the mask; more clicks improve it." : `${nothing}Click on ${className ?? "a thing"} in the image.`;
    $("mask-words").textContent = `${what}${given}${next}${positive ? "" : " Clicks say what does not belong to it."}`;
  }

  /** Keep the mask, with all that was clicked. */
  async take() {
    const { image, corrects } = this;
    await this.looking?.catch(() => {}); // it was said there
    const { prompts, preview } = this.canvas;
    if (!preview || image?.index !== this.image?.index) return;
    const replaces = corrects ? { id: corrects.id, seen: corrects.revision } : {};
    const action = { act: "mask", image: image.index, class_name: this.page.nameClass(), prompts: [...prompts], ...replaces };
    this.corrects = null;
    this.clear();
    try {
      await this.page.change(action);
    } catch (error) {
      await this.giveBack(action, corrects); // a person has clicked all that
      throw error;
    }
    await this.page.back();
  }

  async giveBack({ image, prompts }, corrects) {
    if (this.image?.index !== image || this.canvas.prompts.length) return;
    this.canvas.prompts = prompts;
    this.corrects = corrects;
    await this.look();
  }

  /** Start again; what is corrected stays so, until there is nothing to start again. */
  clear() {
    const shown = this.canvas.prompts.length;
    this.asked++;
    Object.assign(this.canvas, { prompts: [], preview: null, path: null });
    this.canvas.draw();
    this.say();
    if (shown || !this.corrects) return undefined;
    this.corrects = null;
    return this.drawLayers();
  }

  /** Take the last click back, where there is one. */
  takeBack() {
    if (!this.canvas.prompts.length) return false;
    this.canvas.prompts.pop();
    this.page.run(() => this.look());
    return true;
  }

  clickAtCross(positive) {
    if (!this.canvas.picture) return undefined;
    const { x, y } = this.canvas.cross;
    return this.add({ kind: "point", points: [[x, y]], positive: positive === this.canvas.positive, radius: 0 });
  }

  go(by) {
    const index = this.wanted + by;
    if (index < 0 || index >= this.page.project.num_images) return undefined;
    return this.show(index);
  }

  setTool(tool) {
    this.canvas.tool = tool;
    for (const one of ["point", "stroke", "box"]) this.page.$(`tool-${one}`).setAttribute("aria-pressed", String(one === tool));
  }

  setSign(positive) {
    this.canvas.positive = positive;
    this.page.$("sign-positive").setAttribute("aria-pressed", String(positive));
    this.page.$("sign-negative").setAttribute("aria-pressed", String(!positive));
    this.say();
  }
}

/** What a mask that nobody has clicked begins with: the box around it. */
const promptsAround = (box) => {
  if (!box) return [];
  const [x, y, width, height] = box;
  return [{ kind: "box", points: [[x, y], [x + width - 1, y + height - 1]], positive: true, radius: 0 }];
};

const bitmapFrom = ({ bytes }) => createImageBitmap(new Blob([bytes], { type: "image/png" }));

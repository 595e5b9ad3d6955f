// Masks of one image: what is shown, what it makes, and what is kept.

import { MaskCanvas } from "/static/canvas.js";

export class MaskMode {
  constructor(page) {
    this.page = page;
    this.image = null;
    this.corrects = null; // an annotation whose mask is made anew
    this.asked = 0;
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

  async show(index) {
    this.image = await this.page.json(`images/${index}`);
    const answer = await fetch(this.page.at(`pictures/${index}?side=1280`));
    if (!answer.ok) throw new Error(`The image ${this.image.uri} cannot be shown: ${(await answer.json()).error?.message}`);
    this.corrects = null;
    this.canvas.show(await createImageBitmap(await answer.blob()), this.image.width, this.image.height);
    this.page.$("canvas").focus();
    await this.drawLayers();
    this.say();
  }

  async reload() {
    if (!this.image) return;
    this.image = await this.page.json(`images/${this.image.index}`);
    await this.drawLayers();
  }

  async drawLayers() {
    const colours = Object.fromEntries(this.page.project.classes.map((one) => [one.name, one.colour]));
    const masks = this.image.annotations.filter((one) => one.kind === "mask" && one.state !== "rejected" && one.id !== this.corrects?.id);
    this.canvas.layers = await Promise.all(
      masks.map(async (one) => ({
        bitmap: await bitmapOf(await this.page.binary(`masks/${one.id}?side=1280`)),
        colour: colours[one.class_name] ?? "#888888",
        name: one.state === "accepted" ? one.class_name : `${one.class_name}, ${one.state}`,
      })),
    );
    this.canvas.draw();
    this.list();
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
    page.$("annotations").replaceChildren(...rows);
    page.$("place").textContent = `${this.image.index + 1} of ${page.project.num_images}: ${this.image.uri}`;
  }

  async correct(annotation) {
    this.corrects = annotation;
    this.canvas.prompts = annotation.prompts.length ? annotation.prompts.map((one) => ({ ...one })) : promptsAround(annotation.box);
    this.page.classNumber = Math.max(this.page.project.classes.findIndex((one) => one.name === annotation.class_name), 0);
    await this.drawLayers();
    await this.preview();
  }

  async add(prompt) {
    this.page.nameClass();
    this.canvas.prompts.push(prompt);
    this.canvas.draw();
    await this.preview();
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
    const bitmap = await bitmapOf(found);
    if (asked !== this.asked) return; // a later click is being answered
    this.canvas.preview = found.header.num_pixels > 0 && bitmap; // false where nothing is found
    this.canvas.draw();
    this.say();
  }

  say() {
    const { $, className } = this.page;
    const { prompts, preview, positive } = this.canvas;
    $("take-mask").disabled = !preview;
    $("clear-mask").disabled = !prompts.length;
    const what = className ? `Class: ${className}. ` : "Add a class first. ";
    const nothing = preview === false ? "Nothing is found so. " : "";
    const next = preview ? "Enter keeps the mask; more clicks improve it." : `${nothing}Click on what it is.`;
    $("mask-words").textContent = `${what}${prompts.length} shown. ${next}${positive ? "" : " Clicks say what does not belong to it."}`;
  }

  async take() {
    const { prompts, preview } = this.canvas;
    if (!preview) return;
    const replaces = this.corrects ? { id: this.corrects.id, seen: this.corrects.revision } : {};
    const sent = this.page.change({ act: "mask", image: this.image.index, class_name: this.page.nameClass(), prompts: [...prompts], ...replaces });
    this.corrects = null;
    this.clear();
    await sent;
    await this.page.back();
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
    this.page.run(() => this.preview());
    return true;
  }

  clickAtCross(positive) {
    const { x, y } = this.canvas.cross;
    return this.add({ kind: "point", points: [[x, y]], positive: positive === this.canvas.positive, radius: 0 });
  }

  go(by) {
    const index = (this.image?.index ?? 0) + by;
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

const bitmapOf = ({ bytes }) => createImageBitmap(new Blob([bytes], { type: "image/png" }));

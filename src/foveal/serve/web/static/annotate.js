// The page of annotation: classes, masks and review, all over one outbox.

import { ApiError, binary, isPassing, json, whenBack } from "/static/api.js";
import { Outbox, windowName } from "/static/outbox.js";
import { MaskMode } from "/static/masks.js";
import { ReviewMode } from "/static/review.js";
import { drawChart } from "/static/chart.js";

const FOLLOW_MS = 1500; // between looks at what other windows do
const $ = (id) => document.getElementById(id);
const client = windowName();

export const page = {
  $,
  client,
  project: null,
  mode: "classes",
  classNumber: 0,
  outbox: null,
  /** The address of something in this project; the server of another one refuses it. */
  at: (path) => `/annotate/api/${path}${path.includes("?") ? "&" : "?"}project=${page.project.key}`,
  json: (path, body) => json(page.at(path), body),
  binary: (path, body) => binary(page.at(path), body),
  get className() {
    return this.project?.classes[this.classNumber]?.name ?? null;
  },
  say(error) {
    $("error").textContent = error ? error.message : "";
    if (error && !(error instanceof ApiError)) console.error(error);
  },
  /** Run something of a person's; say what goes wrong where it can be seen. */
  async run(work) {
    try {
      page.say(null);
      return await work();
    } catch (error) {
      if (!isPassing(error)) page.say(error);
      else page.onState({ waiting: page.outbox?.keys().length ?? 0, gone: error.message });
    }
  },
  change: (action) => page.outbox.add(action),
  /** Look for the masks of the chosen class elsewhere, and show what was found for review. */
  async spread(what) {
    const wanted = { what, class_name: page.nameClass(), ...(what === "video" ? { image: masks.image.index } : { count: Number($("similar-count").value) }) };
    await setMode("review");
    await review.propose(wanted);
  },
  /** Return to the review that a mask was corrected from. */
  async back() {
    if (page.from !== "review") return;
    page.from = null;
    await setMode("review");
  },
  from: null, // the mode to go back to after a correction
  nameClass: () => {
    if (page.className) return page.className;
    $("new-class").focus();
    throw new ApiError("no_class", "There is no class yet; write its name and press Enter.");
  },
  onState({ waiting, gone }) {
    $("saved").classList.toggle("waiting", Boolean(gone));
    const changes = `${waiting} change${waiting === 1 ? "" : "s"}`;
    $("saved").textContent = gone
      ? `${gone} ${waiting ? `${changes} ${waiting === 1 ? "waits" : "wait"} here, kept in this browser until then.` : "Nothing is lost."}`
      : waiting ? `Saving ${changes} …` : "All changes are saved.";
  },
};

let offered = null;
const skipped = [];
const masks = new MaskMode(page);
const review = new ReviewMode(page, open);

/** Show a mask under review, to be corrected. */
async function open(annotation) {
  await setMode("masks", false);
  await masks.show(annotation.image);
  page.from = "review";
  await masks.correct(annotation);
}

function setProject(project) {
  const kept = page.className;
  page.project = project;
  const at = project.classes.findIndex((one) => one.name === kept);
  page.classNumber = at < 0 ? Math.min(page.classNumber, Math.max(project.classes.length - 1, 0)) : at;
  $("name").textContent = `${project.name} · ${project.num_images.toLocaleString("en")} images · ${project.model}`;
  $("undecided").textContent = project.num_undecided ? `(${project.num_undecided})` : "";
  for (const name of ["undo", "redo"]) {
    $(name).disabled = !project[name];
    $(name).title = project[name] ? `${name}: ${project[name]}` : `nothing to ${name}`;
  }
  drawClasses();
  drawConflicts();
}

function drawClasses() {
  const rows = page.project.classes.map((one, at) => {
    const row = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.setAttribute("aria-pressed", String(page.mode !== "classes" && at === page.classNumber));
    const key = Object.assign(document.createElement("kbd"), { textContent: at < 9 ? at + 1 : at === 9 ? 0 : "·" });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = one.colour;
    const name = Object.assign(document.createElement("span"), { textContent: one.name });
    const count = Object.assign(document.createElement("span"), { className: "count", textContent: one.num_annotations });
    button.append(key, swatch, name, count);
    button.addEventListener("click", () => choose(at));
    button.addEventListener("dblclick", () => rename(one.name));
    row.append(button);
    return row;
  });
  const buttons = () => [...$("classes").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  $("classes").replaceChildren(...rows);
  buttons()[focused]?.focus(); // whoever walks by Tab stays where they were
}

function drawConflicts() {
  const rows = page.project.conflicts.map((one) => {
    const row = Object.assign(document.createElement("p"), { textContent: one.words + " " });
    for (const [take, words] of [["stored", "Keep theirs"], ["wanted", "Take mine"]]) {
      const button = Object.assign(document.createElement("button"), { textContent: words });
      button.addEventListener("click", () => page.run(() => page.change({ act: "settle", conflict: one.id, take })));
      row.append(button, " ");
    }
    return row;
  });
  $("conflicts").replaceChildren(...rows);
}

function rename(name) {
  const wanted = prompt(`Another name for the class ${name}:`, name);
  if (wanted && wanted !== name) page.run(() => page.change({ act: "rename_class", name, new: wanted }));
}

/** A class was chosen: in classes it is the label, in masks what is drawn, in review the right class of a tile. */
function choose(at) {
  if (!page.project.classes[at]) return;
  if (page.mode === "classes") return label(page.project.classes[at].name);
  page.classNumber = at;
  drawClasses();
  if (page.mode === "review" && review.at() >= 0) review.judge("accepted", page.className);
  else if (page.mode === "review") $("review-words").textContent = `Class: ${page.className}.`;
  else masks.say();
}

async function label(name) {
  if (!offered) return;
  const { index } = offered;
  const seen = offered.labels.find((one) => one.state === "accepted")?.revision ?? 0;
  skipped.push(index);
  const done = page.change({ act: "label", image: index, class_name: name, seen });
  await page.run(() => done);
  await page.run(offer);
}

function setFace(found) {
  offered = found.image;
  $("offered").hidden = !offered;
  $("accept-guess").disabled = !found.guess;
  $("skip").disabled = !offered;
  if (offered) {
    $("offered").src = page.at(`pictures/${offered.index}?side=1280`);
    $("offered").alt = `Image ${offered.uri}, to be labelled`;
    const guess = found.guess ? ` The head says ${found.guess.class_name}${found.learning.num_held_out ? `, ${Math.round(100 * found.guess.probability)} %` : ""}.` : "";
    $("offer").textContent = `${offered.uri}: ${found.why}.${guess}`;
  } else {
    $("offer").textContent = found.why;
  }
  page.guess = found.guess;
  drawChart($("chart"), $("chart-words"), found.learning);
}

async function offer() {
  const skip = skipped.slice(-100).map((index) => `skip=${index}`).join("&");
  setFace(await page.json(`next?${skip}`));
}

async function setMode(mode, load = true) {
  page.mode = mode;
  page.from = null;
  for (const one of ["classes", "masks", "review"]) {
    $(`view-${one}`).hidden = one !== mode;
    $(`mode-${one}`).setAttribute("aria-pressed", String(one === mode));
  }
  $("progress").hidden = mode !== "classes";
  $("here").hidden = mode !== "masks";
  drawClasses();
  if (!load) return;
  await page.run(() => (mode === "classes" ? offer() : mode === "masks" ? masks.start() : review.load()));
}

async function refresh() {
  setProject(await page.json(`project?client=${client}`));
  if (page.mode === "masks") await masks.reload();
  if (page.mode === "review") await review.load();
}

/** Look what other windows have changed, and whether the server is there. */
async function follow() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
    if (document.hidden) continue;
    try {
      const found = await page.json(`changes?since=${page.project.revision}`);
      if (page.outbox.gone === null) page.onState({ waiting: page.outbox.keys().length, gone: null });
      review.progress(found.looking);
      if (found.revision !== page.project.revision) await page.run(refresh);
    } catch (error) {
      if (isPassing(error)) page.onState({ waiting: page.outbox.keys().length, gone: error.message });
      else await page.run(refresh); // the project was put back to an older state
    }
  }
}

const SHORTCUTS = [
  ["1 … 9, 0", "Classes: label the image. Masks: choose the class. Review: accept as this class."],
  ["Enter", "Classes: take the head's guess. Masks: keep the mask."],
  ["S", "Skip the image for now"],
  ["Arrow keys", "Masks: move the cross; with Shift finely. Review: go through the tiles"],
  ["Space", "Masks: click at the cross, what belongs to it; with Shift what does not"],
  ["P, B, R", "Masks: click, brush a stroke, draw a rectangle"],
  ["N", "Masks: what you show does not belong to it, or does again"],
  ["Right button, Alt", "Masks: one click for what does not belong to it"],
  ["Esc, Backspace", "Masks: start again; take the last click back"],
  ["[ and ]", "Masks: the image before, the next one"],
  ["A, X, C", "Review: accept, reject, correct"],
  ["G, V", "Masks: find the class in similar images; follow it through the frames of the folder"],
  ["G, M", "Review: propose labels; masks of the class"],
  ["Ctrl+Z, Ctrl+Shift+Z", "Undo, redo"],
  ["F1, F2, F3", "Classes, masks, review"],
  ["I", "Write a new class"],
  ["E", "Export"],
  ["?", "This list"],
];

function onKey(event) {
  if (event.target.closest("input, select, dialog") || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey) {
    if (key !== "z") return;
    event.preventDefault();
    return page.run(() => takeBack(event.shiftKey ? "redo" : "undo"));
  }
  const number = "1234567890".indexOf(key);
  const here = page.mode === "masks" ? masks.keys : page.mode === "review" ? review.keys : { s: skip, Enter: takeGuess };
  const everywhere = {
    F1: () => setMode("classes"), F2: () => setMode("masks"), F3: () => setMode("review"),
    "?": () => $("shortcuts").showModal(), i: () => $("new-class").focus(), e: askExport,
  };
  const act = number >= 0 && key.length === 1 ? () => choose(number) : here[key] ?? everywhere[key];
  if (!act || (event.target.closest("button") && (key === "Enter" || key === " "))) return;
  event.preventDefault();
  page.run(() => act(event));
}

function skip() {
  if (offered) skipped.push(offered.index);
  return offer();
}

const takeGuess = () => (page.guess ? label(page.guess.class_name) : undefined);

async function takeBack(act) {
  if (act === "undo" && page.mode === "masks" && masks.takeBack()) return;
  await page.change({ act });
  skipped.length = 0;
  if (page.mode === "classes") await offer();
}

async function askExport() {
  const dialog = $("export-dialog");
  $("export-format").replaceChildren(...page.project.formats.map((name) => new Option(name, name)));
  $("export-name").value ||= `export-${new Date().toISOString().slice(0, 10)}`;
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "go") return;
  const found = await page.json("export", { name: $("export-name").value, format: $("export-format").value });
  $("export-name").value = "";
  $("saved").textContent = `Exported to ${found.folder}. ${found.notes.join(" ")}`;
}

function connect() {
  for (const mode of ["classes", "masks", "review"]) $(`mode-${mode}`).addEventListener("click", () => setMode(mode));
  for (const act of ["undo", "redo"]) $(act).addEventListener("click", () => page.run(() => takeBack(act)));
  $("skip").addEventListener("click", () => page.run(skip));
  $("accept-guess").addEventListener("click", () => page.run(takeGuess));
  $("export").addEventListener("click", () => page.run(askExport));
  $("help").addEventListener("click", () => $("shortcuts").showModal());
  $("shortcuts").querySelector("button").addEventListener("click", () => $("shortcuts").close());
  $("shortcuts").querySelector("dl").append(
    ...SHORTCUTS.flatMap(([keys, words]) => [
      Object.assign(document.createElement("dt"), { innerText: keys }),
      Object.assign(document.createElement("dd"), { innerText: words }),
    ]),
  );
  $("add-class").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("new-class").value.trim();
    if (!name) return;
    $("new-class").value = "";
    $("view").focus();
    page.run(async () => {
      await page.change({ act: "add_class", name });
      page.classNumber = Math.max(page.project.classes.findIndex((one) => one.name === name), 0);
      drawClasses();
    });
  });
  document.addEventListener("keydown", onKey);
}

async function begin() {
  connect();
  setProject(await whenBack(() => json(`/annotate/api/project?client=${client}`)));
  page.outbox = new Outbox(page.project.key, client, (change) => page.json("write", change), {
    onState: page.onState,
    onDone: (answer, action) => {
      setProject(answer.project);
      page.say(null);
      if (page.mode === "masks") page.run(() => masks.reload());
      if (page.mode === "review" && action.act !== "label") page.run(() => review.load());
    },
    onRefused: (error) => {
      page.say(error);
      page.run(refresh);
    },
  });
  page.outbox.send(); // what a window before this one could not send
  await setMode("classes");
  follow();
}

page.run(begin);

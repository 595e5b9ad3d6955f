// The page of annotation: classes, masks and review, all over one outbox.

import { ApiError, binary, isPassing, json, whenBack } from "/static/api.js";
import { newName, Outbox, windowName } from "/static/outbox.js";
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
  chosen: null, // id of a class
  outbox: null,
  /** The address of something in this project; the server of another one refuses it. */
  at: (path) => `/annotate/api/${path}${path.includes("?") ? "&" : "?"}project=${page.project.key}`,
  json: (path, body) => json(page.at(path), body),
  binary: (path, body) => binary(page.at(path), body),
  /** An image as a file, up to date. */
  async picture(index) {
    const { bytes } = await binary(page.at(`pictures/${index}?side=1280`), undefined, { cache: "no-cache" });
    return new Blob([bytes], { type: "image/jpeg" });
  },
  /** Ask for long work: it goes on by itself, and the same request waits for it. */
  async work(path, body, onProgress = () => {}) {
    for (;;) {
      const found = await whenBack(() => page.json(path, body), isPassing);
      if (!("looking" in found)) return found;
      onProgress(found.looking);
    }
  },
  get className() {
    return page.project?.classes.find((one) => one.id === page.chosen)?.name ?? null;
  },
  chooseNamed(name) {
    page.chosen = page.project.classes.find((one) => one.name === name)?.id ?? null;
  },
  say(error) {
    $("error").textContent = error ? error.message : "";
    if (error && !(error instanceof ApiError)) console.error(error);
  },
  /** Say what stays to be read until a person does something else. */
  tell(words) {
    $("notice").textContent = words;
  },
  /** Run something of a person's; what was said before has been read. */
  run(work) {
    page.say(null);
    page.tell("");
    return page.attempt(work);
  },
  /** Run something; say what goes wrong where it can be seen. */
  async attempt(work) {
    try {
      return await work();
    } catch (error) {
      if (["unreachable", "other_project"].includes(error.code) || error.status === 401) page.onState({ waiting: page.outbox?.waiting ?? 0, isKept: page.outbox?.isKept ?? true, gone: error.message });
      else page.say(error);
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
    if (page.project.classes.length) throw new ApiError("no_class", "No class is chosen: press the number of one.");
    $("new-class").focus();
    throw new ApiError("no_class", "There is no class yet; write its name and press Enter.");
  },
  onState({ waiting, gone, isKept }) {
    const changes = `${waiting} change${waiting === 1 ? "" : "s"}`;
    const where = isKept ? "kept in this browser until then" : "and this browser has no room to keep them: leave this window open until then";
    const words = gone
      ? `${gone} ${waiting ? `${changes} ${waiting === 1 ? "waits" : "wait"} here, ${where}.` : "Nothing is lost."}`
      : waiting ? `Saving ${changes} …` : "All changes are saved.";
    $("saved").classList.toggle("waiting", Boolean(gone));
    if ($("saved").textContent !== words) $("saved").textContent = words; // what is set again is read out again
  },
};

let offered = null; // an image, and whether its picture is shown: then it may be labelled
let asked = 0; // offers so far
let isMissed = false; // an offer that the server did not answer
const skipped = [];
const masks = new MaskMode(page);
const review = new ReviewMode(page, open);

/** Show a mask under review, to be corrected. */
async function open(annotation) {
  await setMode("masks", false);
  await masks.show(annotation.image);
  if (masks.image?.index !== annotation.image || masks.failure) return;
  page.from = "review";
  await masks.correct(annotation);
}

function setProject(project) {
  const isFirst = !page.project?.classes.length;
  page.project = project;
  // A class that is gone is not replaced by its neighbour: somebody is working with it.
  if (!page.className) page.chosen = isFirst ? (project.classes[0]?.id ?? null) : null;
  $("name").textContent = `${project.name} · ${project.num_images.toLocaleString("en")} images · ${project.model}`;
  $("undecided").textContent = project.num_undecided ? `(${project.num_undecided})` : "";
  for (const name of ["undo", "redo"]) {
    $(name).disabled = !project[name];
    $(name).title = project[name] ? `${name}: ${project[name]}` : `nothing to ${name}`;
  }
  drawClasses();
  drawConflicts();
}

/** Put rows into a list; whoever walks by Tab stays where they were. */
page.fill = (list, rows) => {
  const buttons = () => [...list.querySelectorAll("button")];
  const at = buttons().indexOf(document.activeElement);
  list.replaceChildren(...rows);
  buttons()[Math.min(at, buttons().length - 1)]?.focus();
};

function drawClasses() {
  const rows = page.project.classes.map((one, at) => {
    const row = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.setAttribute("aria-pressed", String(page.mode !== "classes" && one.id === page.chosen));
    const key = Object.assign(document.createElement("kbd"), { textContent: at < 9 ? at + 1 : at === 9 ? 0 : "·" });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = one.colour;
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: one.name });
    const count = Object.assign(document.createElement("span"), { className: "count", textContent: one.num_annotations });
    button.append(key, swatch, name, count);
    button.addEventListener("click", (event) => {
      if (event.detail) $(page.mode === "masks" ? "canvas" : "view").focus(); // by mouse: Enter is not for this button
      page.run(() => choose(at));
    });
    const other = Object.assign(document.createElement("button"), { type: "button", textContent: "✎", title: "Rename or merge" });
    other.setAttribute("aria-label", `Rename or merge ${one.name}`);
    other.addEventListener("click", () => page.run(() => rename(one.name)));
    row.append(button, other);
    return row;
  });
  page.fill($("classes"), rows);
  $("first-steps").hidden = rows.length > 0;
  $("label-hint").hidden = rows.length === 0;
}

let drawn = "[]"; // conflicts

function drawConflicts() {
  const said = JSON.stringify(page.project.conflicts);
  if (said === drawn) return;
  drawn = said;
  const rows = page.project.conflicts.map((one) => {
    const row = Object.assign(document.createElement("p"), { textContent: one.words + " " });
    for (const [take, words] of [["stored", `Keep the first: ${one.stored}`], ["wanted", `Take the second: ${one.wanted}`]]) {
      const button = Object.assign(document.createElement("button"), { textContent: words });
      button.addEventListener("click", () => page.run(() => page.change({ act: "settle", conflict: one.id, take })));
      row.append(button, " ");
    }
    return row;
  });
  page.fill($("conflicts"), rows);
}

function rename(name) {
  const wanted = prompt(`Another name for the class ${name}:`, name)?.trim();
  if (!wanted || wanted === name) return undefined;
  if (!page.project.classes.some((one) => one.name === wanted)) return page.change({ act: "rename_class", name, new: wanted });
  if (!confirm(`There is a class ${wanted} already. Shall it have all that is ${name} now?`)) return undefined;
  return page.change({ act: "merge_class", name, into: wanted });
}

/** A class was chosen: in classes it is the label, in masks what is drawn, in review the right class of a tile. */
function choose(at) {
  const one = page.project.classes[at];
  if (!one) return undefined;
  if (page.mode === "classes") return label(one.name);
  page.chosen = one.id;
  drawClasses();
  if (page.mode === "review" && review.at() >= 0) return review.judge("accepted", one.name);
  if (page.mode === "review") $("review-words").textContent = `Class: ${one.name}.`;
  else masks.say();
  return undefined;
}

async function label(name) {
  if (!offered?.isShown) return;
  const { index, labels } = offered;
  wait(); // nobody has seen the next image yet: no key labels it
  const seen = labels.find((one) => one.state === "accepted")?.revision ?? 0;
  await page.attempt(() => page.change({ act: "label", image: index, class_name: name, seen }));
  await page.attempt(offer);
}

function wait() {
  offered = page.guess = null;
  $("offered").classList.add("waiting");
}

/** Ask for the next image, and show it once its picture is there; of several answers the last one counts. */
async function offer() {
  const number = ++asked;
  wait();
  isMissed = true;
  const found = await page.json(`next?${skipped.slice(-100).map((index) => `skip=${index}`).join("&")}`);
  const [picture, failure] = found.image ? await page.picture(found.image.index).then((one) => [one, null], (error) => [null, error]) : [null, null];
  if (failure && isPassing(failure)) throw failure;
  if (number !== asked) return;
  isMissed = false;
  setFace(found, picture, failure);
  await $("offered").decode().catch(() => {}); // it is gone, or another one came
  if (number !== asked) return;
  if (found.image) offered = { ...found.image, isShown: Boolean(picture) };
  $("offered").classList.remove("waiting");
}

function setFace({ image, guess, why, learning }, picture, failure) {
  URL.revokeObjectURL($("offered").src);
  $("offered").hidden = !picture;
  $("offered").alt = picture ? `Image ${image.uri}, to be labelled` : "";
  if (picture) $("offered").src = URL.createObjectURL(picture);
  page.guess = picture ? guess : null;
  $("accept-guess").disabled = !page.guess;
  $("skip").disabled = !image;
  const says = page.guess ? ` The head says ${guess.class_name}${learning.num_held_out ? `, ${Math.round(100 * guess.probability)} %` : ""}.` : "";
  $("offer").textContent = failure ? `It cannot be shown, skip it: ${failure.message}` : image ? `${image.uri}: ${why}.${says}` : why;
  drawChart($("chart"), $("chart-words"), learning);
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
  await page.attempt(() => (mode === "classes" ? offer() : mode === "masks" ? masks.start() : review.load()));
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
      page.outbox.send(); // also what windows that are closed by now have left
      review.progress(found.looking);
      if (found.revision !== page.project.revision) await page.attempt(refresh);
      if (isMissed && page.mode === "classes") await page.attempt(offer);
    } catch (error) {
      if (!isPassing(error)) await page.attempt(refresh); // the project was put back to an older state
      else page.onState({ waiting: page.outbox.waiting, isKept: page.outbox.isKept, gone: error.message });
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

const REPEATS = /^(Arrow.*|\[|\])$/; // a key that is held down goes on with these, and decides about nothing unseen

function onKey(event) {
  if (event.target.closest("input, select") || document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const writes = event.getModifierState("AltGraph"); // [ and ] on many keyboards
  if ((event.altKey && !writes) || (event.repeat && !REPEATS.test(key))) return;
  if ((event.ctrlKey || event.metaKey) && !writes) {
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
  const { left } = await page.change({ act });
  if (left) page.tell(`${left} of it stay${left === 1 ? "s" : ""} as it is: others have changed it since.`);
  if (page.mode === "classes") await offer();
}

async function askExport() {
  const dialog = $("export-dialog");
  $("export-format").replaceChildren(...page.project.formats.map((name) => new Option(name, name)));
  $("export-name").value ||= `export-${new Date().toISOString().slice(0, 10)}`;
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "go") return;
  const found = await page.work("export", { request: newName(), name: $("export-name").value, format: $("export-format").value });
  $("export-name").value = "";
  page.tell(`Exported to ${found.folder}. ${found.notes.join(" ")}`);
}

function connect() {
  for (const mode of ["classes", "masks", "review"]) $(`mode-${mode}`).addEventListener("click", () => page.run(() => setMode(mode)));
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
    const name = $("new-class").value.normalize("NFC").trim();
    if (!name) return;
    $("new-class").value = "";
    $("view").focus();
    page.run(async () => {
      await page.change({ act: "add_class", name });
      page.chooseNamed(name);
      drawClasses();
    });
  });
  document.addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => {
    if (page.outbox && !page.outbox.isKept) event.preventDefault();
  });
}

/** Whether to ask for the project again; says why it is not there yet. */
function isLater(error) {
  if (isPassing(error)) page.onState({ waiting: 0, isKept: true, gone: error.message });
  return isPassing(error);
}

async function begin() {
  connect();
  setProject(await whenBack(() => json(`/annotate/api/project?client=${client}`), isLater));
  page.outbox = new Outbox(page.project.key, client, (change) => page.json("write", change), {
    onState: page.onState,
    onDone: (answer, change) => {
      if (change.client === client) setProject(answer.project);
      if (page.mode === "masks") page.attempt(() => masks.reload());
      if (page.mode === "review" && change.action.act !== "label") page.attempt(() => review.load());
    },
    onRefused: (error) => {
      page.say(error);
      page.attempt(refresh);
    },
  });
  await setMode("classes");
  if (page.project.classes.length === 0) $("new-class").focus();
  follow();
}

page.run(begin);

// The explorer: what is looked at, and who has to know. Grid, heat, colours, map and the single view do not know each other.

import { binary, json, upload, whenBack } from "/static/api.js";
import { Colours } from "/static/colours.js";
import { acceptDrops, contentOf } from "/static/files.js";
import { Grid } from "/static/grid.js";
import { Heat, colourOf, cosineOf } from "/static/heat.js";
import { Names } from "/static/names.js";
import { Near } from "/static/near.js";
import { COLOURS, Scatter } from "/static/scatter.js";
import { Single, ringAround } from "/static/single.js";

const API = "/explore/api";
const MOST_COLOURED = 20_000; // images of which the map shows classes
const FOUND = 100; // images that a search shows
const ALIVE = 4000; // milliseconds between two looks whether the server is there
const $ = (id) => document.getElementById(id);

let info = null; // of the set
let order = null; // rows shown, or null for all
let scores = new Map(); // of what was found, by row
let held = null; // the patch that stays: {row or upload, patch}
let pointed = null; // the patch that the words are about: {row, patch}
let met = null; // [row, left, top] of the map's point near the pointer
let opened = null; // {row} or {upload, file} in the single view
let searches = 0; // of which the last is shown
let back = null; // a promise while the server is away

const thumbnailOf = (row) => `${API}/thumbnail/${row}?revision=${info.revision}`;
const rowAt = (index) => (order ? order[index] : index);
const hasPatches = () => Boolean(info?.patches);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** Say something to those who do not see the page. */
const say = (text) => { $("live").textContent = text; };

function fail(error) {
  $("error").textContent = error.message;
  if (error.code === "unreachable") back ??= comeBack();
}

async function comeBack() {
  const again = await whenBack(() => json(`${API}/set`)).catch((error) => error);
  back = null;
  if (again instanceof Error) return fail(again);
  if (again.revision !== info?.revision) return location.reload();
  $("error").textContent = "";
  say("The server is there again.");
  names.forget();
  grid.clear();
  grid.layout();
  single.again();
  return undefined;
}

async function attempt(action) {
  $("error").textContent = "";
  try {
    return await action();
  } catch (error) {
    fail(error);
    return null;
  }
}

// --- the grid

const grid = new Grid($("grid"), {
  source(index) {
    const row = rowAt(index);
    const score = scores.get(row) === undefined ? "" : ` ${scores.get(row).toFixed(2)}`;
    const label = [wordsFor(row), score && `cosine${score}`].filter(Boolean).join(", ");
    const caption = `${names.labelOf(row) ?? ""}${score}`.trim();
    return { row, src: thumbnailOf(row), label, caption };
  },
  onVisible: (cells) => { names.ask(cells.map(({ row }) => row)); cover(cells); },
  onHover: (index, x, y) => look({ row: rowAt(index), patch: patchAt(x, y) }),
  onLeave: () => leave(),
  onActive: (index) => say(grid.told.source(index).label),
  onOpen: (index, x, y) => open(rowAt(index), x === null ? null : patchAt(x, y)),
  async onBroken(cell, src) {
    const error = await whyNot(src);
    if (error) grid.refuse(cell, error.status === 410 ? "gone or changed" : "not shown", error.message);
  },
});

/** Ask for a picture again that was not shown, and return the server's words; null where there are none. */
async function whyNot(src) {
  const error = await binary(src).then(() => null, (said) => said);
  if (error?.code === "unreachable") fail(error); // it comes back, and pictures are loaded again
  return error?.code === "unreachable" ? null : error;
}

function patchAt(x, y) {
  if (!hasPatches()) return null;
  const [rows, columns] = info.patches.grid;
  return Math.floor(y * rows) * columns + Math.floor(x * columns);
}

const names = new Names(API, {
  onError: fail,
  onNames(has) {
    for (const cell of grid.cells.values()) if (has(cell.row)) grid.describe(cell);
    if (opened?.row !== undefined && has(opened.row)) single.rename(names.of(opened.row));
    if (met && has(met[0])) meet(...met);
  },
});

const wordsFor = (row) => [names.of(row), names.labelOf(row)].filter(Boolean).join(", ");

// --- what lies over the images

const heat = new Heat(API, { onError: fail, onHeat: () => { legend(); coverAll(); tell(); } });
const colours = new Colours(API, { onError: fail, onColours: (row) => coverAll(row) });

/** Ask for what lies over images in sight, and paint what is there already. */
function cover(cells) {
  const rows = cells.map(({ row }) => row);
  if (opened?.row !== undefined && !rows.includes(opened.row)) rows.push(opened.row);
  if ($("over").value === "heat" && heat.query) heat.ask(heat.query, rows);
  if ($("over").value === "pca" && hasPatches()) colours.ask(rows, Number($("first").value));
  for (const cell of cells) paint(cell);
  single.paint(opened?.row === undefined ? null : pictureOf(opened.row));
}

function coverAll(row) {
  for (const cell of grid.cells.values()) if (row === undefined || cell.row === row) paint(cell);
  if (opened?.row !== undefined) single.paint(pictureOf(opened.row));
}

function pictureOf(row) {
  return { heat: () => heat.picture(row), pca: () => colours.picture(row), none: () => null }[$("over").value]();
}

function paint({ row, node, over, ring }) {
  const picture = pictureOf(row);
  over.hidden = picture === null;
  if (picture) {
    if (over.width !== picture.width || over.height !== picture.height) Object.assign(over, { width: picture.width, height: picture.height });
    over.getContext("2d").putImageData(picture, 0, 0);
  }
  node.classList.toggle("heated", picture !== null && $("over").value === "heat");
  node.classList.toggle("open", opened?.row === row);
  ringAround(ring, heat.query?.row === row && $("over").value === "heat" ? heat.query.patch : null, info.patches?.grid);
}

function legend() {
  $("legend").hidden = !(heat.query && heat.maps.size && $("over").value === "heat");
  if ($("legend").hidden) return;
  $("low").textContent = `≤ ${cosineOf(heat.low).toFixed(2)}`;
  $("high").textContent = cosineOf(heat.high).toFixed(2);
}

function drawScale() {
  const pen = $("scale").getContext("2d");
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = `rgb(${colourOf(x / 255).join(" ")})`;
    pen.fillRect(x, 0, 1, 10);
  }
}

/** The pointer is over a patch: light up what is like it, or say how like the held one it is. */
function look({ row, patch }) {
  if (patch === null) return void ($("words").textContent = names.of(row));
  if (!held) askHeat({ row, patch });
  pointed = { row, patch };
  $("words").textContent = wordsOf(row, patch);
  return undefined;
}

/** The heat of the held patch has come: say the cosine to it where the pointer is. */
function tell() {
  if (held && pointed) $("words").textContent = wordsOf(pointed.row, pointed.patch);
}

function wordsOf(row, patch) {
  const columns = info.patches.grid[1];
  const place = `${names.of(row)}, patch ${Math.floor(patch / columns) + 1} down, ${(patch % columns) + 1} across`;
  const value = held ? heat.value(row, patch) : null;
  return value === null ? place : `${place}: cosine ${value.toFixed(2)}`;
}

function askHeat(query) {
  if ($("over").value !== "heat") return; // what lies over the images stays until something is held
  const rows = [...grid.cells.values()].map(({ row }) => row);
  if (opened?.row !== undefined && !rows.includes(opened.row)) rows.push(opened.row);
  heat.ask(query, rows);
}

function leave() {
  if (held) return;
  heat.ask(null, []);
  $("words").textContent = "";
  legend();
  coverAll();
}

/** Hold a patch: its heat stays while one scrolls, and it can be searched for. */
function hold(query) {
  held = query;
  pointed = query.row === undefined ? null : query;
  if ($("over").value !== "heat") $("over").value = "heat";
  onOver();
  askHeat(query);
  single.mark(query.patch);
  $("like-patch").disabled = $("let-go").disabled = false;
  $("words").textContent = query.row === undefined ? "A patch of the picture is held." : wordsOf(query.row, query.patch);
  say($("words").textContent);
  $("hint").hidden = true;
}

function letGo() {
  held = null;
  if (document.activeElement === $("let-go")) $("large-over").focus({ preventScroll: true });
  single.mark(null);
  $("like-patch").disabled = $("let-go").disabled = true;
  leave();
}

function onOver() {
  $("first-label").hidden = $("over").value !== "pca";
  if (info) cover([...grid.cells.values()]);
  legend();
}

function onFirst() {
  const first = Number($("first").value);
  $("first-words").textContent = `${first + 1}–${first + 3}`;
  cover([...grid.cells.values()]);
}

// --- one image

const single = new Single({
  onPatch(patch, isHeld) {
    if (patch === null) return leave();
    const query = opened.upload === undefined ? { row: opened.row, patch } : { upload: opened.upload, patch };
    if (isHeld) return hold(query);
    if (query.row !== undefined) return look(query);
    if (!held) askHeat(query);
    return undefined;
  },
  async onBroken(source) {
    const error = await whyNot(source);
    if (error && $("large").src === source) single.refuse(error.message);
  },
});

function open(row, patch) {
  opened = { row };
  held = null;
  scatter.mark(row);
  single.show(names.of(row), `${API}/picture/${row}?side=640&revision=${info.revision}`, info.patches?.grid ?? null);
  if (patch === null) letGo();
  else hold({ row, patch });
  coverAll();
  if (patch === null) {
    say(`${names.of(row)} is open.`);
    if (hasPatches()) $("large-over").focus({ preventScroll: true });
  }
}

// --- searches

/** Ask, and say that something is looked for; returns null where it failed, or something else was asked for since. */
async function search(words, ask) {
  const number = ++searches;
  $("status").textContent = words;
  $("error").textContent = "";
  try {
    const answer = await ask();
    if (number === searches) return answer;
  } catch (error) {
    if (number === searches) fail(error);
  } finally {
    if (number === searches) status();
  }
  return null;
}

/** Show images that were found, best first, in place of all. */
function showFound(images, words) {
  order = images.map(({ row }) => row);
  scores = new Map(images.map(({ row, score }) => [row, score]));
  names.add(images.filter(({ uri }) => uri !== undefined));
  $("found-words").textContent = words;
  showView("grid");
  grid.show(order.length);
  say(words);
}

function showAll() {
  searches++; // what is still looked for is not wanted any more
  status();
  order = null;
  scores = new Map();
  $("found").hidden = true;
  grid.show(info.images);
  $("grid").focus();
}

async function likeImage() {
  if (opened.upload !== undefined) return searchFile(opened.file);
  const { row } = opened;
  const answer = await search("Searching …", () => json(`${API}/neighbours?row=${row}&count=${FOUND}`));
  if (answer) showFound(answer.images, `${plural(answer.images.length, "image")} like ${names.of(row)}, the most alike first`);
  return undefined;
}

async function likePatch() {
  const query = held;
  const answer = await search("Searching …", () => json(`${API}/find`, { ...query, count: FOUND }));
  if (answer) showFound(answer.images, `${plural(answer.images.length, "image")} with a patch like the held one, the most alike first`);
}

async function searchFile(file) {
  const answer = await search(`Searching with ${file.name} …`, async () => upload(`${API}/neighbours?count=${FOUND}`, await contentOf(file, info.most_bytes)));
  if (!answer) return;
  opened = { upload: answer.upload, file };
  scatter.mark(null);
  letGo();
  single.show(file.name, `${API}/upload/${answer.upload}`, answer.grid);
  $("hint").hidden = true;
  showFound(answer.images, `${plural(answer.images.length, "image")} like ${file.name}, the most alike first`);
}

// --- the map

const scatter = new Scatter($("points"), {
  onNear: meet,
  onOpen: (row) => open(row, null),
  onSelect: (rows) => select(rows),
  onWords: say,
});
const near = new Near($("near"), $("points"));
let selected = [];
let mapped = null; // the method of the map that is shown
let laterMap = 0; // timer

/** A point is near the pointer or the cross: show its image. */
function meet(row, left, top) {
  met = row === null ? null : [row, left, top];
  if (row === null) return near.hide();
  pointed = null;
  names.ask([row]);
  $("words").textContent = wordsFor(row);
  return near.show(thumbnailOf(row), wordsFor(row), left, top);
}

async function loadMap() {
  clearTimeout(laterMap);
  const method = $("method").value;
  const answer = await fetchMap(method).catch((error) => void fail(error));
  if (method !== $("method").value) return;
  $("map-words").textContent = answer?.state ? "Computing the map …" : "";
  if (answer?.state) {
    laterMap = setTimeout(loadMap, 1000);
    return;
  }
  if (!answer) return void ($("method").value = mapped ?? method); // the map in sight keeps its name
  mapped = method;
  scatter.show(new Float32Array(answer.bytes));
  if (info.classes && !scatter.groups && info.images <= MOST_COLOURED) await attempt(colourMap);
}

/** Give the points of a class one colour; the class of a point is also said in words. */
async function colourMap() {
  const places = new Map(info.classes.map((name, index) => [name, index]));
  const groups = [];
  for (let start = 0; start < info.images; start += 500) {
    const { images } = await json(`${API}/images?start=${start}&count=500`);
    for (const { label } of images) groups.push(places.get(label) ?? -1);
  }
  scatter.colour(groups);
  if (places.size > COLOURS.length) return; // colours come again
  $("classes").replaceChildren(...info.classes.map((name, index) => {
    const item = Object.assign(document.createElement("li"), { textContent: name });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = COLOURS[index];
    item.prepend(swatch);
    return item;
  }));
  $("classes").hidden = false;
}

/** A map that is still computed answers in JSON. */
async function fetchMap(method) {
  const { header, bytes } = await binary(`${API}/map?method=${method}`);
  return header.shape ? { header, bytes } : JSON.parse(new TextDecoder().decode(bytes));
}

function showView(name) {
  for (const view of ["grid", "map"]) {
    $({ grid: "images", map: "map" }[view]).hidden = view !== name;
    $(`view-${view}`).setAttribute("aria-pressed", String(view === name));
  }
  $("found").hidden = name === "map" || order === null;
  if (name === "map" && scatter.points.length === 0) loadMap();
  if (name === "grid") grid.soon();
}

function pick(tool) {
  scatter.tool = tool;
  for (const name of ["lasso", "move"]) $(`tool-${name}`).setAttribute("aria-pressed", String(name === tool));
}

function select(rows) {
  selected = rows;
  if (document.activeElement === $("select-none")) $($("map").hidden ? "grid" : "points").focus();
  $("selection").hidden = rows.length === 0;
  $("selected").textContent = `${plural(rows.length, "image")} selected`;
  $("saved").textContent = "";
  say($("selected").textContent);
}

async function save(event) {
  event.preventDefault();
  const answer = await attempt(() => json(`${API}/selection`, { name: $("set-name").value, rows: selected }));
  if (!answer) return $("set-name").focus();
  $("saved").replaceChildren(`${plural(answer.images, "image")} saved in ${answer.path}. Annotate them:`, document.createElement("code"));
  $("saved").lastChild.textContent = answer.command;
  return undefined;
}

// --- the page

function status() {
  const bad = info.unreadable ? `, ${info.unreadable.toLocaleString("en")} unreadable left out` : "";
  const unfinished = info.unfinished ? "; not all are extracted yet" : "";
  $("status").textContent = `${plural(info.images, "image")}${bad}, seen by ${info.model}${unfinished}`;
}

function onKey(event) {
  if (event.key === "Escape" && held) letGo();
}

function listen() {
  const onClick = {
    "view-grid": () => showView("grid"), "view-map": () => showView("map"), "show-all": showAll, "like-image": likeImage,
    "like-patch": likePatch, "let-go": letGo, "open-file": () => $("file").click(), "tool-lasso": () => pick("lasso"),
    "tool-move": () => pick("move"), "zoom-in": () => scatter.zoom(1.25), "zoom-out": () => scatter.zoom(0.8),
    "zoom-all": () => scatter.whole(), "show-selected": () => showSelected(), "select-none": () => scatter.select([]),
  };
  for (const [id, action] of Object.entries(onClick)) $(id).addEventListener("click", action);
  $("save").addEventListener("submit", save);
  $("file").addEventListener("change", () => { if ($("file").files.length) searchFile($("file").files[0]); $("file").value = ""; });
  $("over").addEventListener("change", onOver);
  $("first").addEventListener("input", onFirst);
  $("size").addEventListener("input", () => grid.resize(Number($("size").value)));
  $("opacity").addEventListener("input", setOpacity);
  $("method").addEventListener("change", loadMap);
  addEventListener("keydown", onKey);
  acceptDrops(searchFile);
}

function setOpacity() {
  document.documentElement.style.setProperty("--over", $("opacity").value / 100);
}

function showSelected() {
  showFound(selected.map((row) => ({ row })), `${plural(selected.length, "image")} selected on the map`);
}

async function start() {
  drawScale();
  setOpacity();
  info = await attempt(() => whenBack(() => json(`${API}/set`)));
  if (!info) return void ($("status").textContent = "");
  listen();
  $("name").textContent = info.name;
  document.title = `${info.name} – foveal explore`;
  if (!hasPatches()) noPatches();
  $("first").max = Math.max(0, (info.patches?.components ?? 0) - 3);
  $("method").replaceChildren(...info.maps.map((method) => new Option({ pca: "PCA", umap: "UMAP" }[method] ?? method, method)));
  if (hasPatches()) grid.aspect = info.patches.grid[1] / info.patches.grid[0];
  single.aspect(grid.aspect);
  grid.resize(Number($("size").value));
  grid.show(info.images);
  status();
  setInterval(alive, ALIVE);
}

function noPatches() {
  $("over").value = "none";
  $("over").disabled = true;
  $("hint").textContent =
    "This store keeps no patches: there is no similarity to show over images. Make one with: foveal extract SET --model MODEL --tokens cls,patches --pca 64 --dtype int8 --out STORE";
}

async function alive() {
  if (document.hidden || back) return;
  try {
    if ((await json(`${API}/set`)).revision !== info.revision) location.reload();
  } catch (error) {
    if (error.code === "unreachable") fail(error);
  }
}

start();

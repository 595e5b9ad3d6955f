// The explorer: what is looked at, and who has to know. Grid, heat, colours, map and the single view do not know each other.

import { binary, json, upload, whenBack } from "/static/api.js";
import { Colours } from "/static/colours.js";
import { Grid } from "/static/grid.js";
import { Heat, colourOf, cosineOf } from "/static/heat.js";
import { Near } from "/static/near.js";
import { COLOURS, Scatter } from "/static/scatter.js";
import { Single, ringAround } from "/static/single.js";

const API = "/explore/api";
const CHUNK = 200; // images described at once
const MOST_COLOURED = 20_000; // images of which the map shows classes
const FOUND = 100; // images that a search shows
const ALIVE = 4000; // milliseconds between two looks whether the server is there
const $ = (id) => document.getElementById(id);

let info = null; // of the set
let order = null; // rows shown, or null for all
let scores = new Map(); // of what was found, by row
let held = null; // the patch that stays: {row or upload, patch}
let pointed = null; // the patch that the words are about: {row, patch}
let opened = null; // {row} or {upload, file} in the single view
let back = null; // a promise while the server is away
const known = new Map(); // row -> what the server says of an image
const asked = new Set(); // chunks

const nameOf = (row) => known.get(row)?.uri.split("/").slice(-2).join("/") ?? `image ${row + 1}`;
const thumbnailOf = (row) => `${API}/thumbnail/${row}?revision=${info.revision}`;
const rowAt = (index) => (order ? order[index] : index);
const hasPatches = () => Boolean(info?.patches?.grid);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** Say something to those who do not see the page. */
const say = (text) => { $("live").textContent = text; };

function fail(error) {
  if (error.name === "AbortError") return;
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
  asked.clear();
  grid.clear();
  grid.layout();
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
    const image = known.get(row);
    const score = scores.get(row) === undefined ? "" : ` ${scores.get(row).toFixed(2)}`;
    const label = [nameOf(row), image?.label, score && `cosine${score}`].filter(Boolean).join(", ");
    return { row, src: thumbnailOf(row), label, caption: `${image?.label ?? ""}${score}`.trim() };
  },
  onVisible: (cells) => { describe(cells); cover(cells); },
  onHover: (index, x, y) => look({ row: rowAt(index), patch: patchAt(x, y) }),
  onLeave: () => leave(),
  onActive: (index) => say(grid.told.source(index).label),
  onOpen: (index, x, y) => open(rowAt(index), x === null ? null : patchAt(x, y)),
  async onBroken(cell) {
    try {
      await binary(cell.image.src);
    } catch (error) {
      cell.node.title = error.message;
      if (error.code === "unreachable") fail(error);
    }
  },
});

function patchAt(x, y) {
  if (!hasPatches()) return null;
  const [rows, columns] = info.patches.grid;
  return Math.floor(y * rows) * columns + Math.floor(x * columns);
}

/** Ask what the images in sight are called, by chunks. */
function describe(cells) {
  for (const start of new Set(cells.map(({ row }) => row - (row % CHUNK)))) {
    if (asked.has(start)) continue;
    asked.add(start);
    json(`${API}/images?start=${start}&count=${CHUNK}`).then(({ images }) => {
      for (const image of images) known.set(image.row, image);
      for (const cell of grid.cells.values()) if (cell.row >= start && cell.row < start + CHUNK) grid.describe(cell);
      if (opened?.row >= start && opened.row < start + CHUNK) $("single-name").textContent = nameOf(opened.row);
    }, (error) => { asked.delete(start); fail(error); });
  }
}

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
  $("legend").hidden = !(heat.query && $("over").value === "heat");
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
  if (patch === null) return void ($("words").textContent = nameOf(row));
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
  const place = `${nameOf(row)}, patch ${Math.floor(patch / columns) + 1} down, ${(patch % columns) + 1} across`;
  const value = held ? heat.value(row, patch) : null;
  return value === null ? place : `${place}: cosine ${value.toFixed(2)}`;
}

function askHeat(query) {
  if ($("over").value === "pca") return; // colours stay until something is held
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
});

function open(row, patch) {
  opened = { row };
  held = null;
  scatter.mark(row);
  single.show(nameOf(row), `${API}/picture/${row}?side=640&revision=${info.revision}`, info.patches?.grid ?? null);
  $("like-image").disabled = false;
  if (patch === null) letGo();
  else hold({ row, patch });
  coverAll();
  if (patch === null) {
    say(`${nameOf(row)} is open; Tab goes to its patches.`);
    if (hasPatches()) $("large-over").focus({ preventScroll: true });
  }
}

// --- searches

/** Show images that were found, best first, in place of all. */
function showFound(images, words) {
  order = images.map(({ row }) => row);
  scores = new Map(images.map(({ row, score }) => [row, score]));
  $("found-words").textContent = words;
  showView("grid");
  grid.show(order.length);
  say(words);
}

function showAll() {
  order = null;
  scores = new Map();
  $("found").hidden = true;
  grid.show(info.images);
  $("grid").focus();
}

async function likeImage() {
  if (opened.upload !== undefined) return searchFile(opened.file);
  const { row } = opened;
  const answer = await attempt(() => json(`${API}/neighbours?row=${row}&count=${FOUND}`));
  if (answer) showFound(answer.images, `${plural(answer.images.length, "image")} like ${nameOf(row)}, the most alike first`);
  return undefined;
}

async function likePatch() {
  const query = held;
  $("status").textContent = "Searching …";
  const answer = await attempt(() => json(`${API}/find`, { ...query, count: FOUND }));
  status();
  if (answer) showFound(answer.images, `${plural(answer.images.length, "image")} with a patch like the held one, the most alike first`);
}

async function searchFile(file) {
  $("status").textContent = `Searching with ${file.name} …`;
  const answer = await attempt(() => upload(`${API}/neighbours?count=${FOUND}`, file));
  status();
  if (!answer) return;
  opened = { upload: answer.upload, file };
  scatter.mark(null);
  letGo();
  single.show(file.name, file, answer.heat ? answer.grid : null);
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

/** A point is near the pointer or the cross: show its image. */
function meet(row, left, top) {
  if (row === null) return near.hide();
  pointed = null;
  describe([{ row }]);
  const words = [nameOf(row), known.get(row)?.label].filter(Boolean).join(", ");
  $("words").textContent = words;
  return near.show(thumbnailOf(row), words, left, top);
}

async function loadMap() {
  const method = $("method").value;
  const answer = await attempt(() => fetchMap(method));
  if (method !== $("method").value) return;
  $("map-words").textContent = answer?.state ? "Computing the map …" : "";
  if (answer?.state) setTimeout(loadMap, 1000);
  if (!answer || answer.state) return;
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
  $("status").textContent = `${plural(info.images, "image")}${bad}, seen by ${info.model}`;
}

function onKey(event) {
  if (event.key === "Escape" && held) letGo();
}

function acceptDrops() {
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const shown = (on) => { depth = on ? depth : 0; $("drop").hidden = !on; };
  addEventListener("dragenter", (event) => { if (holdsFile(event)) { depth++; shown(true); } });
  addEventListener("dragleave", (event) => { if (holdsFile(event) && --depth <= 0) shown(false); });
  addEventListener("dragover", (event) => { if (holdsFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    shown(false);
    if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
  });
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
  acceptDrops();
}

function setOpacity() {
  document.documentElement.style.setProperty("--over", $("opacity").value / 100);
}

function showSelected() {
  showFound(selected.map((row) => ({ row })), `${plural(selected.length, "image")} selected on the map`);
}

async function start() {
  listen();
  drawScale();
  setOpacity();
  info = await attempt(() => whenBack(() => json(`${API}/set`)));
  if (!info) return void ($("status").textContent = "");
  $("name").textContent = info.name;
  document.title = `${info.name} – foveal explore`;
  if (!hasPatches()) noPatches();
  $("first").max = Math.max(0, (info.patches?.components ?? 3) - 3);
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
  $("hint").replaceChildren(
    info.patches
      ? "These images have patches in different numbers: there is no similarity to show over them. Extract them with one size."
      : "This store keeps no patches: there is no similarity to show over images. Make one with: foveal extract SET --model MODEL --tokens cls,patches --pca 64 --dtype int8 --out STORE",
  );
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

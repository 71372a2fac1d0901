// Renders the page from its embedded data. Three kinds of items can be selected: a token of the source, a global token,
// a step of the summary. The page is a function of `state`, which holds the selected item and layer of each kind.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
const SHOWN_KEYS = 4; // of each layer in the table
const MOST_NUMBERED = 32; // global tokens
const PLAY_MS = 700;

addEventListener("error", () => (byId("failure").hidden = false));

// --- data ------------------------------------------------------------------------------------------------------------

function unpacked({ type, data: base64 }) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ARRAYS[type](bytes.buffer);
}

const weightOf = (byte) => (byte / 255) ** 2; // bytes are quantized square roots

// Returns a function (layer, row) -> [{ at, weight, head }] of the stored keys, the strongest first.
function reader({ rows, count, ...arrays }) {
  const [keys, weights, heads] = [arrays.keys, arrays.weights, arrays.heads].map(unpacked);
  return (layer, row) => {
    const found = [];
    const start = (layer * rows + row) * count;
    for (let i = start; i < start + count && weights[i]; i++)
      found.push({ at: keys[i], weight: weightOf(weights[i]), head: heads[i] });
    return found;
  };
}

const inBlock = reader(data.inBlock);
const onGlobals = reader(data.onGlobals);
const byGlobals = reader(data.byGlobals);
const cross = reader(data.cross);
const globalsShare = unpacked(data.globalsShare);
const globalsOwnShare = unpacked(data.globalsOwnShare);
const numTokens = data.tokens.length;
const special = new Set(data.special);
const writtenSpecial = new Set(data.writtenSpecial);

// The block [start, stop) of a token in an encoder layer.
function blockOf(layer, token) {
  const starts = data.layouts[data.layers[layer]];
  let low = 0;
  let high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= token) low = middle;
    else high = middle - 1;
  }
  return [starts[low], starts[low + 1] ?? numTokens];
}

const staggeredName = (layer) => (layer % 2 && data.staggers ? "staggered" : "even");
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const visible = (piece) => piece.trim() || "␣";

// --- kinds of items --------------------------------------------------------------------------------------------------

// Of each kind: the number of items and layers, and the keys that an item attends to in a layer.
const KINDS = {
  token: {
    list: byId("source"),
    count: numTokens,
    layers: data.layers.length,
    layerName: (layer) => `Encoder layer ${layer}, ${staggeredName(layer)}`,
    name: (i) => `Token ${i}: “${visible(data.tokens[i])}”`,
    description: () => "It attends to the tokens of its block and to the global tokens, in one softmax.",
    columns: ["layer", "block", "on globals", "strongest in the block"],
    block: blockOf,
    share: (layer, i) => weightOf(globalsShare[layer * numTokens + i]),
    keys: (layer, i) => {
      const [start] = blockOf(layer, i);
      return inBlock(layer, i).map((key) => ({ ...key, at: start + key.at }));
    },
    globals: onGlobals,
  },
  global: {
    list: byId("globals"),
    count: data.numGlobals,
    layers: data.layers.length,
    layerName: (layer) => `Encoder layer ${layer}, ${staggeredName(layer)}`,
    name: (i) => `Global token ${i}`,
    description: () => "It attends to all tokens and to all global tokens, in every layer.",
    columns: ["layer", "on globals", "strongest in the text"],
    share: (layer, i) => weightOf(globalsOwnShare[layer * data.numGlobals + i]),
    keys: byGlobals,
  },
  step: {
    list: byId("summary"),
    count: data.written.length,
    layers: data.cross.layers,
    layerName: (layer) => `Decoder layer ${layer}`,
    name: (i) => `Step ${i + 1}: “${visible(data.written[i])}”`,
    description: (i) => {
      const { probability, rank } = data.steps[i];
      const place = rank ? `rank ${rank + 1}: the search chose it over ${rank} more likely ${rank > 1 ? "tokens" : "token"}` : "the most likely token";
      return `Probability ${percent(probability)}, ${place}. The layers below show its cross-attention to the source.`;
    },
    columns: ["layer", "strongest in the text"],
    keys: cross,
  },
};

const firstEdge = data.layouts[data.layers[0]][1] ?? 1; // the initial selection: staggering shows best at a block edge
const state = {
  kind: "token",
  at: { token: firstEdge - 1, global: 0, step: 0 },
  layer: { token: 0, global: 0, step: 0 },
};

// --- building the page, once -----------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function option(kind, i, text, isSpecial) {
  const made = element("span", { id: `${kind}-${i}`, textContent: text, className: isSpecial ? "special" : "" });
  made.role = "option";
  made.dataset.at = i;
  made.ariaSelected = "false";
  return made;
}

// The source is split at the block edges of all layers, so that every block is a run of whole pieces.
function buildSource() {
  const starts = [...new Set(data.layouts.flat())].sort((a, b) => a - b);
  const pieces = starts.map((start, n) => {
    const stop = starts[n + 1] ?? numTokens;
    const piece = element("div", { className: "piece" });
    piece.role = "group";
    piece.ariaLabel = `tokens ${start} to ${stop - 1}`;
    piece.dataset.start = start;
    for (let i = start; i < stop; i++) piece.append(option("token", i, data.tokens[i], special.has(i)));
    return piece;
  });
  KINDS.token.list.append(...pieces);
  return pieces;
}

const pieces = buildSource();
KINDS.global.list.append(...Array.from({ length: data.numGlobals }, (_, i) => option("global", i, i, false)));
KINDS.global.list.childNodes.forEach((chip, i) => (chip.title = `global token ${i}`));
KINDS.global.list.classList.toggle("many", data.numGlobals > MOST_NUMBERED); // small chips without numbers
KINDS.step.list.append(...data.written.map((piece, i) => option("step", i, piece, writtenSpecial.has(i))));

// --- drawing ---------------------------------------------------------------------------------------------------------

let highlighted = []; // to clear before the next are highlighted
let selected = null;

const largest = (...lists) => Math.max(...lists.map((keys) => keys[0]?.weight ?? 0)) || 1;

function highlight(prefix, keys, most) {
  for (const { at, weight } of keys) {
    const token = byId(`${prefix}-${at}`);
    const share = weight / most;
    token.style.setProperty("--share", share.toFixed(3));
    token.classList.add("highlighted");
    token.classList.toggle("strong", share > 0.5);
    highlighted.push(token);
  }
}

function drawHighlights(kind, layer, i) {
  for (const token of highlighted) token.classList.remove("highlighted", "strong");
  highlighted = [];
  const keys = kind.keys(layer, i);
  const globals = kind.globals?.(layer, i) ?? [];
  const most = largest(keys, globals); // one scale for both: they share one softmax
  highlight("token", keys, most);
  highlight("global", globals, most);
  drawOverview(kind, layer, i, keys);
}

function drawOverview(kind, layer, i, keys) {
  const top = (at) => `${((100 * at) / numTokens).toFixed(2)}%`;
  const marks = [];
  if (kind.block) {
    const [start, stop] = kind.block(layer, i);
    const block = element("i", { className: "block" });
    block.style.top = top(start);
    block.style.height = top(stop - start);
    marks.push(block);
  }
  const most = largest(keys);
  for (const { at, weight } of keys) {
    const mark = element("i");
    mark.style.top = top(at);
    mark.style.setProperty("--share", (weight / most).toFixed(3));
    marks.push(mark);
  }
  if (kind === KINDS.token) {
    const here = element("i", { className: "here" });
    here.style.top = top(i);
    marks.push(here);
  }
  byId("overview").replaceChildren(...marks);
}

function drawEdges() {
  const layer = state.layer.token;
  const own = new Set(data.layouts[data.layers[layer]]);
  const [start, stop] = state.kind === "token" ? blockOf(layer, state.at.token) : [0, 0];
  for (const piece of pieces) {
    const at = Number(piece.dataset.start);
    piece.classList.toggle("edge", at > 0 && own.has(at));
    piece.classList.toggle("other-edge", at > 0 && !own.has(at));
    piece.classList.toggle("in-block", start <= at && at < stop);
  }
  byId("edges").textContent = `blocks of encoder layer ${layer}, ${staggeredName(layer)}`;
  const size = stop - start;
  for (const varying of document.querySelectorAll("[data-dimension]"))
    varying.textContent = varying.dataset.dimension === "S" ? size : data.numGlobals + size;
}

function layerRow(kind, layer, i) {
  const cells = [];
  if (kind.block)
    cells.push(element("span", { className: "block", textContent: `[${kind.block(layer, i).join(", ")})` }));
  if (kind.share) cells.push(element("span", { className: "share", textContent: percent(kind.share(layer, i)) }));
  const strongest = kind.keys(layer, i).slice(0, SHOWN_KEYS);
  const names = strongest.flatMap(({ at }, n) => {
    const key = element("span", { textContent: visible(data.tokens[at]), title: `token ${at}` });
    key.dataset.key = at;
    return n ? [" · ", key] : [key];
  });
  const layerName = kind === KINDS.step ? layer : `${layer} ${staggeredName(layer)}`;
  const pick = element("button", { type: "button", textContent: layerName });
  const heading = element("th", { scope: "row" }, pick);
  const strongestCell = element("td", { className: "strongest" }, ...names);
  const row = element("tr", {}, heading, ...cells.map((cell) => element("td", {}, cell)), strongestCell);
  row.dataset.layer = layer;
  row.ariaCurrent = String(layer === state.layer[state.kind]);
  return row;
}

function bar(share) {
  const made = element("span", { className: "bar" });
  made.style.setProperty("--share", share.toFixed(4));
  return made;
}

function keyItem({ at, weight, head }, most, prefix) {
  const isGlobal = prefix === "global";
  const name = isGlobal ? `global ${at}` : visible(data.tokens[at]);
  const button = element("button", { type: "button", className: "name", textContent: name });
  button.dataset.go = prefix;
  button.dataset.at = at;
  const item = element(
    "li",
    { className: isGlobal ? "global" : "" },
    element("span", { className: "position", textContent: isGlobal ? "" : at }),
    button,
    bar(weight / most),
    element("span", { className: "head", textContent: `head ${head}`, title: "the head with the largest weight" }),
    element("span", { className: "number", textContent: percent(weight) }),
  );
  item.dataset.key = `${prefix}-${at}`;
  return item;
}

function drawCandidates(i) {
  const { candidates, probability, rank } = data.steps[i];
  const rows = candidates.map(([piece, p], n) => [piece, p, n === rank, ""]);
  if (rank >= candidates.length) rows.push([data.written[i], probability, true, `rank ${rank + 1}`]);
  const items = rows.map(([piece, p, isChosen, aside]) => {
    const name = element("span", { className: "name", textContent: visible(piece) });
    const number = element("span", { className: "number", textContent: percent(p), title: aside });
    return element("li", { className: isChosen ? "chosen" : "" }, name, bar(p), number);
  });
  const heading = element("h3", { textContent: "Most likely tokens" });
  byId("candidates").replaceChildren(heading, element("ol", { className: "bars" }, ...items));
}

function drawDetail(kind, layer, i) {
  byId("what").textContent = kind.name(i);
  byId("description").textContent = kind.description(i);
  if (kind === KINDS.step) drawCandidates(i);
  else byId("candidates").replaceChildren();
  const [head, body] = byId("layers").children;
  const titles = kind.columns.map((textContent) => element("th", { scope: "col", textContent }));
  head.replaceChildren(element("tr", {}, ...titles));
  body.replaceChildren(...Array.from({ length: kind.layers }, (_, n) => layerRow(kind, n, i)));
  byId("keys-title").textContent = `${kind.layerName(layer)}: the strongest keys`;
  const own = kind.keys(layer, i).map((key) => ["token", key]);
  const all = [...own, ...(kind.globals?.(layer, i) ?? []).map((key) => ["global", key])];
  all.sort(([, a], [, b]) => b.weight - a.weight);
  const most = largest(all.map(([, key]) => key));
  byId("keys").replaceChildren(...all.map(([prefix, key]) => keyItem(key, most, prefix)));
}

function drawSelection(kind, i) {
  if (selected) selected.ariaSelected = "false";
  selected = byId(`${state.kind}-${i}`);
  selected.ariaSelected = "true";
  for (const other of Object.values(KINDS)) other.list.removeAttribute("aria-activedescendant");
  kind.list.setAttribute("aria-activedescendant", selected.id);
  KINDS.step.list.childNodes.forEach((word, n) => word.classList.toggle("unwritten", state.kind === "step" && n > i));
}

function draw() {
  const kind = KINDS[state.kind];
  const i = state.at[state.kind];
  const layer = state.layer[state.kind];
  byId("layer").max = kind.layers - 1;
  byId("layer").value = layer;
  byId("layer").ariaValueText = kind.layerName(layer);
  byId("layer-name").textContent = kind.layerName(layer);
  drawSelection(kind, i);
  drawHighlights(kind, layer, i);
  drawEdges();
  drawDetail(kind, layer, i);
  for (const stage of document.querySelectorAll("details")) stage.hidden = stage.dataset.kind !== state.kind;
}

// --- navigation ------------------------------------------------------------------------------------------------------

function show(target) {
  target?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// The keys of a global token or a step may be far away in the text.
function showStrongest() {
  if (state.kind !== "token") show(highlighted[0]);
}

function select(kindName, i) {
  const changesKind = state.kind !== kindName;
  state.kind = kindName;
  state.at[kindName] = Math.max(0, Math.min(KINDS[kindName].count - 1, i));
  draw();
  show(selected);
  showStrongest();
  if (changesKind) byId("detail").scrollTop = byId("stages").scrollTop = 0;
}

function chooseLayer(layer) {
  const most = KINDS[state.kind].layers - 1;
  state.layer[state.kind] = Math.max(0, Math.min(most, layer));
  // Tokens and global tokens share the encoder layers.
  if (state.kind !== "step") state.layer.token = state.layer.global = state.layer[state.kind];
  draw();
  showStrongest();
}

let playing = null;

function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(next, PLAY_MS) : null;
  byId("play").textContent = on ? "Stop" : "Play";
  byId("play").ariaPressed = String(on);
}

function next() {
  if (state.at.step >= data.written.length - 1) play(false);
  else select("step", state.at.step + 1);
}

function togglePlay() {
  if (playing) return play(false);
  select("step", state.at.step >= data.written.length - 1 || state.kind !== "step" ? 0 : state.at.step);
  return play(true);
}

// The next token at a block edge of the layer: the last or first of this block, then the first or last beyond it.
function acrossEdge(token, direction) {
  const [start, stop] = blockOf(state.layer.token, token);
  if (direction > 0) return token < stop - 1 ? stop - 1 : stop;
  return token > start ? start : start - 1;
}

function listKey(kindName, event) {
  const i = state.at[kindName];
  const last = KINDS[kindName].count - 1;
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const upwards = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (upwards) {
    if (state.kind !== kindName) select(kindName, i);
    chooseLayer(state.layer[kindName] + upwards);
  } else if (sideways && event.shiftKey && kindName === "token") select(kindName, acrossEdge(i, sideways));
  else if (sideways) select(kindName, i + sideways);
  else if (event.key === "Home") select(kindName, 0);
  else if (event.key === "End") select(kindName, last);
  else if (event.key === "Enter") select(kindName, i);
  else if (event.key === " ") select(kindName, kindName === "step" ? i + 1 : i);
  else return;
  event.preventDefault();
}

for (const [kindName, { list }] of Object.entries(KINDS)) {
  list.addEventListener("click", (event) => {
    const target = event.target.closest("[data-at]");
    if (!target) return;
    play(false);
    select(kindName, Number(target.dataset.at));
  });
  list.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) listKey(kindName, event);
  });
}

byId("layer").addEventListener("input", (event) => chooseLayer(Number(event.target.value)));
byId("layers").addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-layer]");
  if (!row) return;
  const layer = Number(row.dataset.layer);
  const byKeyboard = event.detail === 0;
  chooseLayer(layer);
  if (byKeyboard) byId("layers").querySelector(`tr[data-layer="${layer}"] button`).focus();
});
byId("keys").addEventListener("click", (event) => {
  const button = event.target.closest("[data-go]");
  if (button) select(button.dataset.go, Number(button.dataset.at));
});
byId("overview").addEventListener("click", (event) => {
  const { top, height } = byId("overview").getBoundingClientRect();
  const token = Math.floor(((event.clientY - top) / height) * numTokens);
  byId(`token-${Math.max(0, Math.min(numTokens - 1, token))}`).scrollIntoView({ block: "center" });
});
byId("play").addEventListener("click", togglePlay);
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.key === "?") byId("help").showModal();
  else if (event.key === "p") togglePlay();
});

draw();
